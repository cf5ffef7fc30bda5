//! The steps of a block on a GPU: what `crate::block` asks of a backend, by the launches of `step`.

mod conv;
mod hadamard;
mod linears;
mod norm;
mod scan;

use super::args::{Pointer, Quantizer};
use super::counts::Counts;
use super::matrix::{Kind, Matrix};
use super::rules::{self, NO_QUANTIZER};
use super::show::{show, show_both};
use super::step::convert;
use super::timing::Clock;
use super::weights::Weights;
use crate::arith::requant::QuantRule;
use crate::arith::saturate::Overflow;
use crate::block::{self, BlockState, Output, Site, Tensors};
use crate::dataflow::Step;
use crate::error::{Result, SimError};
use crate::quant::Scale;
use crate::trace::{Probe, TracePoint};
use std::ops::Range;

/// What a block carries from token to token, for each sequence of a batch: the last K conv inputs, oldest
/// first, `[batch·K, E]`, codes or FP32; the recurrent state, `[batch·E, N]`.
pub type LayerState = BlockState<Matrix, Matrix>;

/// Sequences that run together, all of one length.
#[derive(Clone, Copy, Debug)]
pub struct Extent {
    pub batch: usize,
    pub length: usize,
}

/// A GPU, about to run a block.
pub struct Gpu<'a, 'm> {
    pub at: Site<'a, 'm>,
    pub weights: &'a Weights,
    pub extent: Extent,
    pub probe: &'a mut dyn Probe,
    pub counts: &'a mut Counts,
    pub clock: &'a mut Clock,
}

impl Gpu<'_, '_> {
    /// A quantizer of `values` values at a point.
    fn quantizer(
        &mut self,
        point: TracePoint,
        values: usize,
        scale: Scale,
        rule: QuantRule,
    ) -> Quantizer {
        let place = self.at.place(point);
        let status = self.counts.slot(place, values, rule.overflow);
        rules::quantizer(rule, scale, status)
    }

    /// The type of a step's output, and the quantizer that makes `values` values so.
    fn emit(
        &mut self,
        point: TracePoint,
        values: usize,
        output: Output,
        rule: QuantRule,
    ) -> Result<(Kind, Quantizer)> {
        match output {
            Output::Real => Ok((Kind::F32, NO_QUANTIZER)),
            Output::Int8(scale) => {
                let quantizer = self.quantizer(point, values, scale, rule);
                Ok((Kind::I8(scale), quantizer))
            }
            Output::Tokens { .. } => Err(SimError::value(
                "activation scales on a CUDA device",
                "one for a tensor",
                "one for each token",
            )),
        }
    }

    /// Where an epilogue that saturates counts `values` values.
    fn slot(&mut self, point: TracePoint, values: usize) -> Pointer {
        let place = self.at.place(point);
        self.counts.slot(place, values, Overflow::Saturate)
    }
}

impl Tensors for Gpu<'_, '_> {
    type Value = Matrix;
    type Operand = Matrix;

    fn enter(&mut self, step: Step) -> Result<()> {
        self.probe.enter(step);
        self.clock.enter(step)
    }

    fn wants(&self, point: TracePoint) -> bool {
        self.probe.wants(self.at.place(point))
    }

    fn show(&mut self, point: TracePoint, value: Matrix) -> Result<Matrix> {
        show(self.probe, self.at.place(point), &value)?;
        Ok(value)
    }

    fn show_both(
        &mut self,
        point: TracePoint,
        left: Matrix,
        right: Matrix,
    ) -> Result<(Matrix, Matrix)> {
        show_both(self.probe, self.at.place(point), &left, &right)?;
        Ok((left, right))
    }

    fn show_operand(&mut self, point: TracePoint, value: Matrix) -> Result<Matrix> {
        self.show(point, value)
    }

    fn kind(value: &Matrix) -> block::Kind {
        match value.kind {
            Kind::I8(_) => block::Kind::Int8,
            Kind::Codes => block::Kind::Codes,
            Kind::F16 => block::Kind::F16,
            Kind::F32 => block::Kind::F32,
        }
    }

    fn operand_kind(operand: &Matrix) -> block::Kind {
        Self::kind(operand)
    }

    fn share(value: &Matrix) -> Matrix {
        value.clone()
    }

    fn columns(&self, value: &Matrix, columns: &Range<usize>) -> Matrix {
        value.columns(columns.start, columns.end)
    }

    fn real(&self, value: &Matrix, scale: Option<Scale>) -> Result<Matrix> {
        convert::real(value, scale)
    }

    fn quantize(
        &mut self,
        point: TracePoint,
        values: &Matrix,
        scale: Scale,
        rule: QuantRule,
    ) -> Result<Matrix> {
        let (rows, columns) = (values.rows, values.columns);
        let codes = Matrix::new(values.device(), rows, columns, Kind::I8(scale))?;
        let quantizer = self.quantizer(point, rows * columns, scale, rule);
        convert::convert(values, None, &codes, quantizer)?;
        Ok(codes)
    }
}
