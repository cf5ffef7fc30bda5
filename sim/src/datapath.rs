//! The engine: runs the steps of a model as a mode and a profile say, a whole sequence at once or
//! token by token, and shows every tensor to a probe. It reads the fields of a mode; it never asks
//! for its name.

mod adopt;
mod bounds;
mod cpu;
mod inject;
mod parts;
mod prepare;
mod storage;

use crate::arith::accumulate::{AccOverflow, Accumulated, Accumulator};
use crate::dataflow::{Phase, Step};
use crate::error::{Result, SimError};
use crate::kernels::team;
use crate::mode::{ModeSpec, Stream};
use crate::model::{Config, Model};
use crate::plan::ScalePlan;
use crate::profile::{Profile, StepRules};
use crate::quant::{QTensor, Scale};
use crate::score::most_likely;
use crate::step::linear::{LinearOutput, LinearResult, LinearWeight, linear};
use crate::step::next_token::HeadBounds;
use crate::step::norm;
use crate::trace::{Blind, Place, Probe, Tensor, TracePoint, show};
use ndarray::{Array2, Axis, s};
use prepare::prepare_layer;
use std::ops::Range;
use std::sync::{Arc, OnceLock};

pub use adopt::{BlockChange, Part};
#[cfg(feature = "cuda")]
pub(crate) use cpu::columns::{columns, join_columns};
pub use cpu::{ConvHistory, LayerState};
pub use parts::FourBitWeight;
pub(crate) use prepare::{Layer, Rows};

/// Which rows of logits a prefill computes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LogitRows {
    /// None; the head is not run.
    None,
    /// The last token's.
    Last,
    /// Those of this token and the ones after it.
    From(usize),
    /// Every token's.
    All,
}

/// What decode carries from token to token.
#[derive(Clone, Debug, PartialEq)]
pub struct State {
    /// One entry a block.
    pub layers: Vec<LayerState>,
}

/// What one block hands to the next.
#[derive(Clone, Debug)]
pub struct BlockInput {
    /// Output of the block before, or the embedding; `[L, M]`.
    pub hidden: Tensor,
    /// Residual stream before the next block, `[L, M]`; `None` before the first.
    pub residual: Option<Array2<f32>>,
}

impl BlockInput {
    /// That of some tokens.
    pub fn rows(&self, rows: Range<usize>) -> Self {
        Self {
            hidden: match &self.hidden {
                Tensor::F16(a) => Tensor::F16(a.slice(s![rows.clone(), ..]).to_owned()),
                other => Tensor::F32(other.to_real().slice(s![rows.clone(), ..]).to_owned()),
            },
            residual: (self.residual.as_ref()).map(|r| r.slice(s![rows, ..]).to_owned()),
        }
    }
}

/// A model ready to run in one mode and profile.
#[derive(Clone)]
pub struct Datapath<'m> {
    pub(crate) config: &'m Config,
    mode: ModeSpec,
    profile: Profile,
    /// Shared with the datapaths this one was cloned from, until a fault edits one.
    pub(crate) layers: Vec<Arc<Layer<'m>>>,
    pub(crate) embedding: Rows<'m>,
    pub(crate) norm_f: Vec<f32>,
    /// The scale of the final norm's output, where the head reads codes.
    pub(crate) head_input: Option<Scale>,
    pub(crate) head: LinearWeight<'m>,
    /// Whether the blocks' weights were prepared for decode: at the first token that is decoded.
    prepared: OnceLock<()>,
    /// What bounds the logits, from the first token on whose successor alone is asked for.
    bounds: OnceLock<Arc<HeadBounds>>,
}

impl<'m> Datapath<'m> {
    /// Prepares the weights a mode needs. Errors if the model lacks a part of them.
    pub fn new(model: &'m Model, mode: &ModeSpec, profile: &Profile) -> Result<Self> {
        let config = model.config()?;
        let ends = prepare::ends(model, mode, profile)?;
        let layers = (0..config.n_layers)
            .map(|i| prepare_layer(model, mode, profile, i).map(Arc::new))
            .collect::<Result<_>>()?;
        Ok(Self {
            config,
            mode: mode.clone(),
            profile: profile.clone(),
            layers,
            embedding: ends.embedding,
            norm_f: ends.norm_f,
            head_input: ends.head_input,
            head: ends.head,
            prepared: OnceLock::new(),
            bounds: OnceLock::new(),
        })
    }

    /// Shape of the model.
    pub fn config(&self) -> &Config {
        self.config
    }

    /// The mode it runs in.
    pub fn mode(&self) -> &ModeSpec {
        &self.mode
    }

    /// The profile it runs with.
    pub fn profile(&self) -> &Profile {
        &self.profile
    }

    /// The scales of a block, one for each use; `None` where the mode quantizes nothing.
    pub fn scales(&self, layer: usize) -> Option<&ScalePlan> {
        self.layers[layer].scales.as_ref()
    }

    /// Runs a whole sequence from an empty state. Returns the logits asked for (`[rows, V]`, f16
    /// or FP32 as the mode's stream says) and the state after the last token.
    pub fn prefill(
        &self,
        tokens: &[u32],
        rows: LogitRows,
        probe: &mut dyn Probe,
    ) -> Result<(Tensor, State)> {
        in_pool(|| self.prefill_here(tokens, rows, probe))
    }

    fn prefill_here(
        &self,
        tokens: &[u32],
        rows: LogitRows,
        probe: &mut dyn Probe,
    ) -> Result<(Tensor, State)> {
        probe.enter(Step::Embed);
        let mut passing = self.start(tokens)?;
        let mut layers = Vec::with_capacity(self.layers.len());
        for i in 0..self.layers.len() {
            let (next, state) = self.prefill_block(i, passing, probe)?;
            passing = next;
            layers.push(state);
        }
        let logits = self.end(
            Phase::Prefill,
            passing.hidden,
            passing.residual,
            rows,
            probe,
        )?;
        Ok((logits, State { layers }))
    }

    /// What the first block of a prefill gets: the embedding of `tokens`.
    pub fn start(&self, tokens: &[u32]) -> Result<BlockInput> {
        Ok(BlockInput {
            hidden: self.embed(tokens)?,
            residual: None,
        })
    }

    /// One block of a prefill from an empty state, for runs that share what lies before it.
    pub fn prefill_block(
        &self,
        index: usize,
        passing: BlockInput,
        probe: &mut dyn Probe,
    ) -> Result<(BlockInput, LayerState)> {
        let BlockInput { hidden, residual } = passing;
        let out = self.block(index, Phase::Prefill, hidden, residual, None, probe)?;
        let next = BlockInput {
            hidden: out.hidden,
            residual: Some(cpu::f32_of(out.residual)),
        };
        Ok((next, out.state))
    }

    /// The logits after the last block.
    pub fn finish(
        &self,
        passing: BlockInput,
        rows: LogitRows,
        probe: &mut dyn Probe,
    ) -> Result<Tensor> {
        in_pool(|| {
            self.end(
                Phase::Prefill,
                passing.hidden,
                passing.residual,
                rows,
                probe,
            )
        })
    }

    /// Runs one token from `state`, which it advances. Returns its logits, `[1, V]`. After an error the
    /// state is lost.
    pub fn decode(&self, token: u32, state: &mut State, probe: &mut dyn Probe) -> Result<Tensor> {
        self.prepare_decode();
        self.head.turn();
        team::lead(|| {
            let (hidden, residual) = self.decode_blocks(token, state, probe)?;
            self.end(Phase::Decode, hidden, residual, LogitRows::All, probe)
        })
    }

    /// Runs the blocks alone for one token from `state`, which they advance: the probe sees nothing after the last
    /// one. After an error the state is lost.
    pub fn advance(&self, token: u32, state: &mut State, probe: &mut dyn Probe) -> Result<()> {
        self.prepare_decode();
        team::lead(|| self.decode_blocks(token, state, probe))?;
        Ok(())
    }

    /// Runs one token from `state`, which it advances. Returns the most likely token after it, the first of
    /// equals, without the logits that cannot be the largest; the probe sees no logits. After an error the
    /// state is lost.
    ///
    /// # Errors
    ///
    /// As [`Datapath::decode`]; logits with NaN or infinity.
    pub fn decode_greedy(
        &self,
        token: u32,
        state: &mut State,
        probe: &mut dyn Probe,
    ) -> Result<u32> {
        self.prepare_decode();
        team::lead(|| {
            let (hidden, residual) = self.decode_blocks(token, state, probe)?;
            probe.enter(Step::Head);
            let normed = self.final_norm(hidden, residual, 0, probe)?;
            self.most_likely(&self.head_input(Phase::Decode, normed, probe)?)
        })
    }

    /// The most likely token after what the head reads, `[1, M]`.
    fn most_likely(&self, x: &Tensor) -> Result<u32> {
        let largest = |weight: &LinearWeight<'_>| {
            let logits = self.head_output(Phase::Decode, x, weight)?.out.to_real();
            most_likely(logits.as_slice().expect("logits are row-major"))
        };
        if let (LinearWeight::Float { weight, .. }, Tensor::F32(row)) = (&self.head, x) {
            let bounds = || Arc::new(HeadBounds::of(*weight));
            let row = row.as_slice().expect("activations are row-major");
            if let Some(rows) = self.bounds.get_or_init(bounds).candidates(row) {
                let some = weight.select(Axis(0), &rows);
                let first = largest(&LinearWeight::float(some.view()))?;
                return Ok(rows[first as usize] as u32);
            }
        }
        self.head.turn();
        largest(&self.head)
    }

    /// Decode reads every weight once a token; a head that is not INT8 is nearly half of that.
    fn prepare_decode(&self) {
        self.prepared.get_or_init(|| {
            for layer in &self.layers {
                for weight in [&layer.in_proj_x, &layer.in_proj_z, &layer.out_proj] {
                    weight.enlarge_pages();
                }
            }
        });
    }

    /// All blocks for one token.
    fn decode_blocks(
        &self,
        token: u32,
        state: &mut State,
        probe: &mut dyn Probe,
    ) -> Result<(Tensor, Option<Array2<f32>>)> {
        probe.enter(Step::Embed);
        let mut hidden = self.embed(&[token])?;
        let mut residual = None;
        for (i, before) in std::mem::take(&mut state.layers).into_iter().enumerate() {
            let out = self.block(i, Phase::Decode, hidden, residual, Some(before), probe)?;
            hidden = out.hidden;
            residual = Some(cpu::f32_of(out.residual));
            state.layers.push(out.state);
        }
        Ok((hidden, residual))
    }

    /// Runs one token of each of several sequences from their states, which it advances. Returns
    /// their logits, `[B, V]`. Every sequence gets the bits that [`Datapath::decode`] gives it.
    pub fn decode_batch(&self, tokens: &[u32], states: &mut [State]) -> Result<Tensor> {
        assert_eq!(tokens.len(), states.len(), "a state for each token");
        self.prepare_decode();
        self.head.turn();
        let mut hidden = self.embed(tokens)?;
        let mut residual = None;
        for i in 0..self.layers.len() {
            let (out, sum) = self.block_batch(i, hidden, residual, states)?;
            hidden = out;
            residual = Some(sum);
        }
        self.end(Phase::Decode, hidden, residual, LogitRows::All, &mut Blind)
    }

    /// The state before the first token.
    pub fn empty_state(&self) -> State {
        State {
            layers: (0..self.layers.len())
                .map(|i| self.empty_layer_state(i))
                .collect(),
        }
    }

    fn embed(&self, tokens: &[u32]) -> Result<Tensor> {
        check_tokens(tokens, self.config.vocab_size)?;
        let dim = (tokens.len(), self.config.d_model);
        fn gather<T: Copy>(table: &Array2<T>, tokens: &[u32], rows: &mut Array2<T>) {
            for (mut row, token) in rows.rows_mut().into_iter().zip(tokens) {
                row.assign(&table.row(*token as usize));
            }
        }
        let mut rows = Array2::zeros(dim);
        match self.embedding {
            Rows::F16(table) => gather(table, tokens, &mut rows),
            Rows::Quantized(table) => {
                for (mut row, token) in rows.rows_mut().into_iter().zip(tokens) {
                    row.iter_mut()
                        .zip(table.row(*token as usize))
                        .for_each(|(to, value)| *to = value);
                }
            }
            Rows::F32(table) => {
                let mut wide = Array2::zeros(dim);
                gather(table, tokens, &mut wide);
                return Ok(match self.mode.stream {
                    Stream::F16 => Tensor::f16(&wide),
                    Stream::Float => Tensor::F32(wide),
                });
            }
        }
        let rows = Tensor::F16(rows);
        Ok(match self.mode.stream {
            Stream::F16 => rows,
            Stream::Float => Tensor::F32(rows.to_real()),
        })
    }

    fn end(
        &self,
        phase: Phase,
        hidden: Tensor,
        residual: Option<Array2<f32>>,
        rows: LogitRows,
        probe: &mut dyn Probe,
    ) -> Result<Tensor> {
        probe.enter(Step::Head);
        let vocab = self.config.vocab_size;
        if rows == LogitRows::None && !probe.wants(Place::end(TracePoint::FinalResidual)) {
            return Ok(Tensor::F32(Array2::zeros((0, vocab))));
        }
        let length = hidden.dim().0;
        let first = match rows {
            LogitRows::None => length,
            LogitRows::Last => length - 1,
            LogitRows::From(first) => first.min(length),
            LogitRows::All => 0,
        };
        let normed = self.final_norm(hidden, residual, first, probe)?;
        if rows == LogitRows::None {
            return Ok(Tensor::F32(Array2::zeros((0, vocab))));
        }
        let x = self.head_input(phase, normed, probe)?;
        let done = self.head_output(phase, &x, &self.head)?;
        let accumulator = self.rules(phase).linear.out_proj.accumulator;
        let place = Place::end(TracePoint::Logits);
        let seen = match x.codes() {
            Some(x) if probe.watches() && done.accumulated.sums == 0 => {
                self.head.watched(x, accumulator)
            }
            _ => done.accumulated,
        };
        accumulated(probe, place, accumulator, seen)?;
        show(probe, place, done.out)
    }

    fn rules(&self, phase: Phase) -> &StepRules {
        match phase {
            Phase::Prefill => &self.profile.cuda.prefill,
            Phase::Decode => &self.profile.cuda.decode,
        }
    }

    /// The final norm of the tokens from `first` on.
    fn final_norm(
        &self,
        hidden: Tensor,
        residual: Option<Array2<f32>>,
        first: usize,
        probe: &mut dyn Probe,
    ) -> Result<Array2<f32>> {
        let norm = |hidden: &Tensor, residual: Option<&Array2<f32>>| {
            let (weight, eps) = (&self.norm_f, self.config.eps);
            match self.head_input {
                None => {
                    norm::final_norm(self.profile.cuda.final_norm, hidden, residual, weight, eps)
                }
                // The norm that quantizes is that of the blocks.
                Some(_) => norm::rms_norm(hidden, residual, weight, eps),
            }
        };
        let place = Place::end(TracePoint::FinalResidual);
        if probe.wants(place) {
            let summed = norm(&hidden, residual.as_ref());
            let shown = show(probe, place, Tensor::F32(summed.residual))?;
            // The probe may have put another residual in its place.
            Ok(norm(&shown.rows_from(first), None).normed)
        } else {
            let residual = residual.map(|r| r.slice(s![first.., ..]).to_owned());
            Ok(norm(&hidden.rows_from(first), residual.as_ref()).normed)
        }
    }

    /// What the head reads.
    fn head_input(
        &self,
        phase: Phase,
        normed: Array2<f32>,
        probe: &mut dyn Probe,
    ) -> Result<Tensor> {
        Ok(match (self.head_input, self.mode.stream) {
            (Some(scale), _) => {
                let place = Place::end(TracePoint::NormFOut);
                let rule = self.rules(phase).norm_out;
                let (q, status) = QTensor::quantize(&normed, scale, rule);
                probe.count(place, status);
                show(probe, place, Tensor::I8(q))?
            }
            (None, Stream::F16) => Tensor::F32(Tensor::f16(&normed).to_real()),
            (None, Stream::Float) => Tensor::F32(normed),
        })
    }

    /// Logits of the head, or of some of its rows.
    fn head_output(
        &self,
        phase: Phase,
        x: &Tensor,
        weight: &LinearWeight<'_>,
    ) -> Result<LinearResult> {
        let output = match self.mode.stream {
            Stream::F16 => LinearOutput::F16,
            Stream::Float => LinearOutput::F32,
        };
        let rule = self.rules(phase).linear.out_proj;
        linear(x, self.head_input, weight, rule, output)
    }
}

/// Hands on what accumulators came to, and ends the run if one may not overflow and did.
fn accumulated(
    probe: &mut dyn Probe,
    place: Place,
    by: Accumulator,
    seen: Accumulated,
) -> Result<()> {
    probe.accumulate(place, seen);
    if by.overflow() == AccOverflow::Trap && seen.overflows > 0 {
        return Err(SimError::value(
            format_args!("{place}: accumulator"),
            format_args!("sums within {} bits (overflow = \"trap\")", by.bits()),
            format_args!("{} additions beyond", seen.overflows),
        ));
    }
    Ok(())
}

/// Runs `work` on a thread of rayon's pool, where a parallel loop starts without waking anybody.
/// Outside, each of the hundreds of loops of a run would hand over and wait.
fn in_pool<T: Send>(work: impl FnOnce() -> T + Send) -> T {
    match rayon::current_thread_index() {
        Some(_) => work(),
        None => rayon::scope(|_| work()),
    }
}

/// Checks that a sequence is not empty and every id is in the vocabulary.
pub fn check_tokens(tokens: &[u32], vocab_size: usize) -> Result<()> {
    if tokens.is_empty() {
        return Err(SimError::value("tokens", "at least one token", "none"));
    }
    match tokens.iter().position(|t| *t as usize >= vocab_size) {
        None => Ok(()),
        Some(i) => Err(SimError::value(
            format_args!("token {i}"),
            format_args!("an id below the vocabulary size {vocab_size}"),
            tokens[i],
        )),
    }
}
