//! The steps of a block on the CPU: what `crate::block` asks of a backend, by the functions of
//! [`crate::step`].

mod batch;
pub(super) mod columns;
mod conv;
mod hadamard;
mod linears;
mod norm;
mod scan;

use super::Datapath;
use crate::arith::accumulate::{Accumulated, Accumulator};
use crate::arith::requant::QuantRule;
use crate::arith::saturate::Status;
use crate::block::{BlockOutput, BlockState, Kind, Output, Run, Site, Tensors};
use crate::dataflow::{Phase, Step};
use crate::error::Result;
use crate::mode::{ConvInput, Precision};
use crate::plan::ScaleUse;
use crate::quant::{QTensor, Scale};
use crate::step::dynamic::{self, DynamicTensor};
use crate::trace::{Place, Probe, Tensor, TracePoint, show};
use columns::{columns, join_columns, rewritten};
use ndarray::Array2;
use std::ops::Range;

pub use conv::ConvHistory;

/// What a block carries from token to token.
pub type LayerState = BlockState<ConvHistory, Tensor>;

/// What in_proj or out_proj reads.
pub(super) enum Operand {
    /// Codes of one scale, or FP32.
    Tensor(Tensor),
    /// Codes whose tokens have scales of their own.
    Tokens(DynamicTensor),
}

/// The CPU, about to run a block.
pub(super) struct Cpu<'a, 'm> {
    at: Site<'a, 'm>,
    probe: &'a mut dyn Probe,
}

impl<'m> Datapath<'m> {
    fn site(&self, index: usize, phase: Phase) -> Site<'_, 'm> {
        Site {
            config: self.config,
            layer: &self.layers[index],
            index,
            phase,
        }
    }

    pub(super) fn block<'a>(
        &'a self,
        index: usize,
        phase: Phase,
        hidden: Tensor,
        residual: Option<Array2<f32>>,
        state: Option<LayerState>,
        probe: &'a mut dyn Probe,
    ) -> Result<BlockOutput<Cpu<'a, 'm>>> {
        crate::progress::go_on()?;
        let at = self.site(index, phase);
        let on = Cpu { at, probe };
        Run { at, on }.run(hidden, residual.map(Tensor::F32), state)
    }

    /// The state of a block before the first token.
    pub(super) fn empty_layer_state(&self, index: usize) -> LayerState {
        let layer = &self.layers[index];
        let (e, n) = (self.config.d_inner, self.config.d_state);
        let ssm = match layer.mode.state {
            Precision::Int8 => Tensor::I8(QTensor {
                codes: Array2::zeros((e, n)),
                scale: layer.scale(ScaleUse::StateOut),
            }),
            Precision::Float => Tensor::F32(Array2::zeros((e, n))),
        };
        let conv = match layer.mode.conv_in {
            ConvInput::Static => Some(layer.scale(ScaleUse::ConvIn)),
            ConvInput::Float | ConvInput::DynamicTensor | ConvInput::DynamicToken => None,
        };
        LayerState {
            conv: ConvHistory::empty(conv, (self.config.d_conv, e)),
            ssm,
        }
    }
}

impl Cpu<'_, '_> {
    fn place(&self, point: TracePoint) -> Place {
        self.at.place(point)
    }

    fn count(&mut self, point: TracePoint, status: Status) {
        self.probe.count(self.at.place(point), status);
    }

    fn quantized(
        &mut self,
        point: TracePoint,
        values: &Array2<f32>,
        scale: Scale,
        rule: QuantRule,
    ) -> Tensor {
        let (q, status) = QTensor::quantize(values, scale, rule);
        self.count(point, status);
        Tensor::I8(q)
    }

    /// FP32 values as what in_proj or out_proj reads.
    fn operand(
        &mut self,
        point: TracePoint,
        values: Array2<f32>,
        output: Output,
        rule: QuantRule,
    ) -> Operand {
        match output {
            Output::Real => Operand::Tensor(Tensor::F32(values)),
            Output::Int8(scale) => Operand::Tensor(self.quantized(point, &values, scale, rule)),
            Output::Tokens { grid, .. } => {
                let (q, status) = dynamic::tokens(&values, grid, rule);
                self.count(point, status);
                Operand::Tokens(q)
            }
        }
    }

    /// Whether a tensor's buffer is written channel by channel and read row by row (a fault).
    fn is_transposed(&self, point: TracePoint) -> bool {
        self.at.layer.transposed.contains(&point)
    }

    /// Shows codes whose tokens have scales of their own, and the scales.
    fn show_tokens(&mut self, point: TracePoint, q: DynamicTensor) -> Result<Operand> {
        let codes = match self.show(point, Tensor::Codes(q.codes))? {
            Tensor::Codes(codes) => codes,
            _ => unreachable!("`show` keeps the type"),
        };
        let scales = Array2::from_shape_fn((q.scales.len(), 1), |(t, _)| q.scales[t].get());
        let point = point.scales().expect("a point that can be dynamic");
        let scales = f32_of(self.show(point, Tensor::F32(scales))?);
        let scales = scales.iter().map(|scale| Scale::new(*scale));
        Ok(Operand::Tokens(DynamicTensor {
            codes,
            scales: scales.collect::<Result<_>>()?,
        }))
    }

    /// Hands on what accumulators came to, and ends the run if one may not overflow and did.
    fn accumulated(&mut self, point: TracePoint, by: Accumulator, seen: Accumulated) -> Result<()> {
        let place = self.place(point);
        super::accumulated(self.probe, place, by, seen)
    }
}

impl Tensors for Cpu<'_, '_> {
    type Value = Tensor;
    type Operand = Operand;

    fn enter(&mut self, step: Step) -> Result<()> {
        self.probe.enter(step);
        Ok(())
    }

    fn wants(&self, point: TracePoint) -> bool {
        self.probe.wants(self.place(point))
    }

    fn show(&mut self, point: TracePoint, value: Tensor) -> Result<Tensor> {
        let value = match self.is_transposed(point) {
            true => rewritten(value),
            false => value,
        };
        show(self.probe, self.at.place(point), value)
    }

    fn show_both(
        &mut self,
        point: TracePoint,
        left: Tensor,
        right: Tensor,
    ) -> Result<(Tensor, Tensor)> {
        if !self.is_transposed(point) && !self.wants(point) {
            return Ok((left, right));
        }
        let both = self.show(point, join_columns(&left, &right))?;
        let (width, border) = (both.dim().1, left.dim().1);
        Ok((
            columns(&both, &(0..border)),
            columns(&both, &(border..width)),
        ))
    }

    fn show_operand(&mut self, point: TracePoint, value: Operand) -> Result<Operand> {
        match value {
            Operand::Tensor(value) => Ok(Operand::Tensor(self.show(point, value)?)),
            Operand::Tokens(value) => self.show_tokens(point, value),
        }
    }

    fn kind(value: &Tensor) -> Kind {
        match value {
            Tensor::I8(_) => Kind::Int8,
            Tensor::Codes(_) => Kind::Codes,
            Tensor::F16(_) => Kind::F16,
            Tensor::F32(_) => Kind::F32,
        }
    }

    fn operand_kind(operand: &Operand) -> Kind {
        match operand {
            Operand::Tensor(value) => Self::kind(value),
            Operand::Tokens(_) => Kind::Codes,
        }
    }

    fn share(value: &Tensor) -> Tensor {
        value.clone()
    }

    fn columns(&self, value: &Tensor, range: &Range<usize>) -> Tensor {
        columns(value, range)
    }

    fn real(&self, value: &Tensor, scale: Option<Scale>) -> Result<Tensor> {
        let (Tensor::I8(q), Some(scale)) = (value, scale) else {
            return Ok(Tensor::F32(value.to_real()));
        };
        let mut real = Array2::zeros(q.codes.dim());
        crate::quant::dequantize_slice(
            q.codes.as_slice().expect("codes are row-major"),
            scale,
            real.as_slice_mut().expect("fresh arrays are row-major"),
        );
        Ok(Tensor::F32(real))
    }

    fn quantize(
        &mut self,
        point: TracePoint,
        values: &Tensor,
        scale: Scale,
        rule: QuantRule,
    ) -> Result<Tensor> {
        Ok(match values {
            Tensor::F32(values) => self.quantized(point, values, scale, rule),
            other => self.quantized(point, &other.to_real(), scale, rule),
        })
    }
}

pub(super) fn f32_of(value: Tensor) -> Array2<f32> {
    match value {
        Tensor::F32(values) => values,
        other => other.to_real(),
    }
}
