//! Decode with states that stay on the device. For a probe that looks at nothing, a token's work is
//! recorded once, steps fused where they can be, and launched as a graph from then on.

use super::counts::Counts;
use super::datapath::CudaDatapath;
use super::fuse::fuse;
use super::gpu::{Extent, LayerState};
use super::graph::Graph;
use super::matrix::Matrix;
use super::step::convert::{self, Rows};
use super::timing::Clock;
use crate::dataflow::Phase;
use crate::datapath::LogitRows;
use crate::engine::{Engine, Sequence};
use crate::error::Result;
use crate::mode::ModeSpec;
use crate::model::Config;
use crate::profile::Profile;
use crate::trace::{Blind, Probe, Tensor};

/// What decode carries from token to token, on the device.
#[derive(Default)]
pub struct State {
    pub(super) layers: Vec<LayerState>,
    recording: Recording,
}

/// How far the work of a token is recorded.
#[derive(Default)]
enum Recording {
    /// Not yet: kernels may not be loaded.
    #[default]
    None,
    /// A token ran; the next one is recorded.
    Loaded,
    /// For states that lie where they lay when it was made.
    Done(Box<Recorded>),
}

/// A token's work for a batch.
struct Recorded {
    graph: Graph,
    tokens: Rows,
    batch: usize,
    logits: Matrix,
}

impl CudaDatapath<'_> {
    /// Runs one token of each sequence from their states, which it advances. Returns their logits,
    /// `[batch, V]`.
    ///
    /// # Errors
    ///
    /// Those of [`CudaDatapath::prefill_batch`].
    pub fn decode_batch(
        &self,
        tokens: &[u32],
        state: &mut State,
        probe: &mut dyn Probe,
    ) -> Result<Tensor> {
        let _running = self.device.enter()?;
        if !probe.is_blind() {
            return self.decode_now(tokens, state, probe);
        }
        let recorded = match std::mem::take(&mut state.recording) {
            Recording::None => {
                let logits = self.decode_now(tokens, state, probe)?;
                state.recording = Recording::Loaded;
                return Ok(logits);
            }
            Recording::Done(recorded) if recorded.batch == tokens.len() => recorded,
            _ => Box::new(self.record(tokens, state)?),
        };
        recorded.tokens.replace(&self.row_numbers(tokens)?)?;
        recorded.graph.launch()?;
        let logits = recorded.logits.to_tensor()?;
        state.recording = Recording::Done(recorded);
        Ok(logits)
    }

    /// Launch by launch.
    fn decode_now(
        &self,
        tokens: &[u32],
        state: &mut State,
        probe: &mut dyn Probe,
    ) -> Result<Tensor> {
        // The states move.
        state.recording = Recording::None;
        let rows = self.token_rows(tokens)?;
        let done = self.queue_decode(&rows, tokens.len(), &mut state.layers, probe)?;
        self.finish(done, probe)
    }

    /// [`CudaDatapath::decode_batch`] without a graph, to be compared with it.
    ///
    /// # Errors
    ///
    /// Those of [`CudaDatapath::decode_batch`].
    pub fn decode_launched(&self, tokens: &[u32], state: &mut State) -> Result<Tensor> {
        let _running = self.device.enter()?;
        self.decode_now(tokens, state, &mut Blind)
    }

    fn queue_decode(
        &self,
        tokens: &Rows,
        batch: usize,
        states: &mut Vec<LayerState>,
        probe: &mut dyn Probe,
    ) -> Result<(Option<Matrix>, Counts)> {
        let extent = Extent { batch, length: 1 };
        let mut counts = Counts::new(&self.device, states.len(), probe)?;
        let clock = &mut Clock::default();
        let phase = Phase::Decode;
        let (hidden, residual) =
            self.blocks(tokens, extent, phase, states, probe, &mut counts, clock)?;
        let rows = LogitRows::All;
        let residual = residual.as_ref();
        let logits = self.end(
            phase,
            &hidden,
            residual,
            extent,
            rows,
            probe,
            &mut counts,
            clock,
        )?;
        Ok((logits, counts))
    }

    /// Records a token's work, which leaves the new states where it found the old.
    fn record(&self, tokens: &[u32], state: &State) -> Result<Recorded> {
        let rows = self.token_rows(tokens)?;
        let (graph, logits) = Graph::record(&self.device, || {
            let mut states = state.layers.clone();
            let ((logits, _), queued) = (self.device)
                .collect(|| self.queue_decode(&rows, tokens.len(), &mut states, &mut Blind))?;
            let layers = states.iter().zip(&state.layers);
            let moves: Vec<(&Matrix, &Matrix)> = layers
                .flat_map(|(new, old)| [(&new.conv, &old.conv), (&new.ssm, &old.ssm)])
                .collect();
            let places = moves
                .iter()
                .map(|(new, old)| (new.pointer(), old.pointer()));
            let multiprocessors = self.device.multiprocessors();
            let (mut queued, in_place) = fuse(queued, &places.collect(), multiprocessors);
            let ((), copies) = self.device.collect(|| {
                let mut left = moves
                    .iter()
                    .filter(|(new, _)| !in_place.contains(&new.pointer()));
                left.try_for_each(|(new, old)| convert::copy(new, old))
            })?;
            queued.extend(copies);
            Ok((logits.expect("decode asks for logits"), queued))
        })?;
        Ok(Recorded {
            graph,
            tokens: rows,
            batch: tokens.len(),
            logits,
        })
    }

    /// The states before the first token.
    fn empty_state(&self) -> Result<State> {
        let _running = self.device.enter()?;
        let layers = self.prepared.empty_state().layers.into_iter();
        let layers = layers.map(|layer| {
            Ok(LayerState {
                conv: Matrix::of_tensor(&self.device, &layer.conv.into_tensor())?,
                ssm: Matrix::of_tensor(&self.device, &layer.ssm)?,
            })
        });
        Ok(State {
            layers: layers.collect::<Result<_>>()?,
            ..State::default()
        })
    }
}

impl Engine for CudaDatapath<'_> {
    fn config(&self) -> &Config {
        self.prepared.config()
    }

    fn mode(&self) -> &ModeSpec {
        self.prepared.mode()
    }

    fn profile(&self) -> &Profile {
        self.prepared.profile()
    }

    fn begin(&self) -> Box<dyn Sequence + '_> {
        Box::new(Running {
            path: self,
            state: None,
        })
    }
}

/// A sequence on the device.
struct Running<'a, 'm> {
    path: &'a CudaDatapath<'m>,
    /// `None` before the first token.
    state: Option<State>,
}

impl Sequence for Running<'_, '_> {
    fn prefill(
        &mut self,
        tokens: &[u32],
        rows: LogitRows,
        probe: &mut dyn Probe,
    ) -> Result<Tensor> {
        let sequences = [tokens.to_vec()];
        let (logits, state) = self.path.prefill_batch(&sequences, rows, probe)?;
        self.state = Some(state);
        Ok(logits)
    }

    fn decode(&mut self, token: u32, probe: &mut dyn Probe) -> Result<Tensor> {
        let state = match &mut self.state {
            Some(state) => state,
            None => self.state.insert(self.path.empty_state()?),
        };
        self.path.decode_batch(&[token], state, probe)
    }
}
