//! A model on the device, and prefill of one or several sequences. Twin: `datapath.rs`.

use super::counts::Counts;
use super::decode::State;
use super::device::{Buffer, Device};
use super::gpu::{Extent, Gpu, LayerState};
use super::matrix::{Kind, Matrix};
use super::rules::{self, NO_QUANTIZER};
use super::show::show;
use super::step::{convert, hadamard, linear::linear, norm};
use super::timing::Clock;
use super::weights::{Linear, Weights};
use crate::block::{Run, Site};
use crate::dataflow::{Phase, Step};
use crate::datapath::{Datapath, LogitRows, Rows, check_tokens};
use crate::engine::Engine;
use crate::error::{Result, SimError};
use crate::mode::Stream;
use crate::profile::FinalNorm;
use crate::step::linear::LinearOutput;
use crate::trace::{Blind, Place, Probe, Tensor, TracePoint};
use half::f16;
use ndarray::Array2;
use std::sync::Arc;

/// A model ready to run on a device, its weights resident.
pub struct CudaDatapath<'m> {
    pub(super) prepared: Datapath<'m>,
    pub(super) device: Arc<Device>,
    layers: Vec<Weights>,
    embedding: Matrix,
    norm_f: Arc<Buffer>,
    head: Linear,
}

impl<'m> CudaDatapath<'m> {
    /// Uploads a prepared model.
    ///
    /// # Errors
    ///
    /// Rules or sizes that no kernel has; too little device memory.
    pub fn new(prepared: Datapath<'m>, device: &Arc<Device>) -> Result<Self> {
        let _running = device.enter()?;
        for layer in &prepared.layers {
            layer.rotation.map_or(Ok(()), hadamard::check)?;
            if let Some(point) = layer.transposed.first() {
                let item = format!("fault transposed@site={}", point.name());
                let found = "no kernels for it on a CUDA device";
                return Err(SimError::value(item, "--device cpu", found));
            }
        }
        let layers = prepared.layers.iter();
        let layers = layers.map(|layer| Weights::upload(device, layer));
        let layers = layers.collect::<Result<_>>()?;
        let columns = prepared.config.d_model;
        let f16_table = |values: Vec<f16>| Matrix::upload(device, &values, columns, Kind::F16);
        Ok(Self {
            layers,
            embedding: match prepared.embedding {
                Rows::F16(table) => f16_table(table.iter().copied().collect())?,
                // Read back once: the values that the CPU reads back token by token.
                Rows::Quantized(table) => f16_table(
                    (0..table.scales.len())
                        .flat_map(|row| table.row(row))
                        .collect(),
                )?,
                Rows::F32(table) => {
                    let values: Vec<f32> = table.iter().copied().collect();
                    Matrix::upload(device, &values, columns, Kind::F32)?
                }
            },
            norm_f: device.upload(&prepared.norm_f)?,
            head: Linear::head(device, &prepared.head)?,
            device: Arc::clone(device),
            prepared,
        })
    }

    /// The model as it was prepared for the CPU.
    pub fn prepared(&self) -> &Datapath<'m> {
        &self.prepared
    }

    /// The device it runs on.
    pub fn device(&self) -> &Arc<Device> {
        &self.device
    }

    /// Runs sequences of one length from empty states. Returns the logits asked for, those of all
    /// sequences below each other, and the states after the last tokens. Each sequence gets the bits
    /// it would get alone. A probe sees the sequences below each other.
    ///
    /// # Errors
    ///
    /// Tokens outside the vocabulary, sequences of different lengths, a device out of memory or lost.
    pub fn prefill_batch(
        &self,
        sequences: &[Vec<u32>],
        rows: LogitRows,
        probe: &mut dyn Probe,
    ) -> Result<(Tensor, State)> {
        let _running = self.device.enter()?;
        let (logits, state) = self.queue_prefill(sequences, rows, probe, &mut Clock::default())?;
        let logits = self.finish(logits, probe)?;
        Ok((logits, state))
    }

    /// Queues a prefill behind a wait long enough for the host to queue all of it, and waits for its
    /// end.
    pub(super) fn queue_timed(&self, sequences: &[Vec<u32>], clock: &mut Clock) -> Result<()> {
        /// About 20 ms.
        const CYCLES: i64 = 36_000_000;
        let _running = self.device.enter()?;
        let grid = [1, 1, 1];
        (self.device).launch("convert", "wait_cycles", grid, 1, 0, &[&CYCLES])?;
        self.queue_prefill(sequences, LogitRows::Last, &mut Blind, clock)?;
        clock.stop()?;
        self.device.synchronize()
    }

    #[allow(clippy::type_complexity)]
    fn queue_prefill(
        &self,
        sequences: &[Vec<u32>],
        rows: LogitRows,
        probe: &mut dyn Probe,
        clock: &mut Clock,
    ) -> Result<((Option<Matrix>, Counts), State)> {
        let length = sequences.first().map_or(0, Vec::len);
        if let Some(other) = sequences.iter().find(|s| s.len() != length) {
            let found = other.len();
            return Err(SimError::value("tokens of a sequence", length, found));
        }
        let tokens = sequences.concat();
        let extent = Extent {
            batch: sequences.len(),
            length,
        };
        let mut counts = Counts::new(&self.device, self.layers.len(), probe)?;
        let mut state = State::default();
        let (hidden, residual) = self.blocks(
            &self.token_rows(&tokens)?,
            extent,
            Phase::Prefill,
            &mut state.layers,
            probe,
            &mut counts,
            clock,
        )?;
        let (phase, residual) = (Phase::Prefill, residual.as_ref());
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
        Ok(((logits, counts), state))
    }

    /// Rows of the embedding, on the device.
    pub(super) fn token_rows(&self, tokens: &[u32]) -> Result<convert::Rows> {
        convert::Rows::upload(&self.device, &self.row_numbers(tokens)?)
    }

    pub(super) fn row_numbers(&self, tokens: &[u32]) -> Result<Vec<i32>> {
        check_tokens(tokens, self.config().vocab_size)?;
        Ok(tokens.iter().map(|t| *t as i32).collect())
    }

    /// Runs the blocks. Prefill makes the states, decode advances them.
    pub(super) fn blocks(
        &self,
        tokens: &convert::Rows,
        extent: Extent,
        phase: Phase,
        states: &mut Vec<LayerState>,
        probe: &mut dyn Probe,
        counts: &mut Counts,
        clock: &mut Clock,
    ) -> Result<(Matrix, Option<Matrix>)> {
        probe.enter(Step::Embed);
        clock.enter(Step::Embed)?;
        let kind = match self.mode().stream {
            Stream::F16 => Kind::F16,
            Stream::Float => Kind::F32,
        };
        let mut hidden = convert::gather(&self.embedding, tokens, kind)?;
        let mut residual = None;
        for (index, layer) in self.prepared.layers.iter().enumerate() {
            let at = Site {
                config: self.prepared.config,
                layer,
                index,
                phase,
            };
            let on = Gpu {
                at,
                weights: &self.layers[index],
                extent,
                probe: &mut *probe,
                counts: &mut *counts,
                clock: &mut *clock,
            };
            let before = match phase {
                Phase::Prefill => None,
                Phase::Decode => Some(states[index].clone()),
            };
            let out = Run { at, on }.run(hidden, residual, before)?;
            hidden = out.hidden;
            residual = Some(out.residual);
            match phase {
                Phase::Prefill => states.push(out.state),
                Phase::Decode => states[index] = out.state,
            }
        }
        Ok((hidden, residual))
    }

    /// The last norm and the head; `None` without rows.
    pub(super) fn end(
        &self,
        phase: Phase,
        hidden: &Matrix,
        residual: Option<&Matrix>,
        extent: Extent,
        rows: LogitRows,
        probe: &mut dyn Probe,
        counts: &mut Counts,
        clock: &mut Clock,
    ) -> Result<Option<Matrix>> {
        probe.enter(Step::Head);
        clock.enter(Step::Head)?;
        let place = Place::end(TracePoint::FinalResidual);
        let wants_residual = probe.wants(place);
        if rows == LogitRows::None && !wants_residual {
            return Ok(None);
        }
        let (kind, output) = match self.mode().stream {
            Stream::F16 => (Kind::F16, LinearOutput::F16),
            Stream::Float => (Kind::F32, LinearOutput::F32),
        };
        let rules = match phase {
            Phase::Prefill => &self.profile().cuda.prefill,
            Phase::Decode => &self.profile().cuda.decode,
        };
        let run = |hidden: &Matrix, residual: Option<&Matrix>| {
            let (weight, eps) = (&self.norm_f, self.config().eps);
            let (rule, kind) = match self.prepared.head_input {
                None => (self.profile().cuda.final_norm, kind),
                // The norm that quantizes is that of the blocks.
                Some(_) => (FinalNorm::RoundedOnce, Kind::F32),
            };
            norm::rms_norm(rule, hidden, residual, weight, eps, kind, NO_QUANTIZER)
        };
        let first = match rows {
            LogitRows::None => None,
            LogitRows::Last => Some(extent.length - 1),
            LogitRows::From(first) => Some(first.min(extent.length)),
            LogitRows::All => Some(0),
        };
        // Rows are normed each by itself, so only those of the logits are.
        let asked_for = |of: &Matrix| match first {
            None | Some(0) => Ok(of.clone()),
            Some(first) => {
                let of_sequence = |b| (b * extent.length + first)..(b + 1) * extent.length;
                let rows = (0..extent.batch).flat_map(of_sequence);
                let rows: Vec<i32> = rows.map(|row| row as i32).collect();
                let rows = convert::Rows::upload(&self.device, &rows)?;
                convert::gather(of, &rows, of.kind)
            }
        };
        let (hidden, residual) = if wants_residual {
            let out = run(hidden, residual)?;
            show(probe, place, &out.residual)?;
            // The probe may have put another residual in its place.
            (asked_for(&out.residual)?, None)
        } else {
            (asked_for(hidden)?, residual.map(asked_for).transpose()?)
        };
        if first.is_none() || hidden.rows == 0 {
            return Ok(None);
        }
        let normed = run(&hidden, residual.as_ref())?.normed;
        let normed = match self.prepared.head_input {
            None => normed,
            Some(scale) => {
                let place = Place::end(TracePoint::NormFOut);
                let (rule, values) = (rules.norm_out, normed.rows * normed.columns);
                let status = counts.slot(place, values, rule.overflow);
                let (device, kind) = (&self.device, Kind::I8(scale));
                let codes = Matrix::new(device, normed.rows, normed.columns, kind)?;
                convert::convert(&normed, None, &codes, rules::quantizer(rule, scale, status))?;
                show(probe, place, &codes)?;
                codes
            }
        };
        let logits = linear(&normed, None, &self.head, rules.linear.out_proj, output, 0)?;
        show(probe, Place::end(TracePoint::Logits), &logits)?;
        Ok(Some(logits))
    }

    /// Waits for a run and fetches what it made.
    pub(super) fn finish(
        &self,
        done: (Option<Matrix>, Counts),
        probe: &mut dyn Probe,
    ) -> Result<Tensor> {
        let (logits, counts) = done;
        let logits = match logits {
            Some(logits) => logits.to_tensor()?,
            None => Tensor::F32(Array2::zeros((0, self.config().vocab_size))),
        };
        counts.tell(probe)?;
        self.device.synchronize()?;
        Ok(logits)
    }
}
