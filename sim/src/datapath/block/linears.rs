//! The four linear steps: in_proj, x_proj with the quantizer of route A, dt_proj, out_proj.

use super::columns::{columns, join_columns};
use super::{Operand, Run};
use crate::arith::accumulate::Accumulated;
use crate::error::Result;
use crate::mode::{Implementation, Precision, Stream, XOutput};
use crate::plan::ScaleUse;
use crate::profile::LinearRule;
use crate::quant::Scale;
use crate::step::linear::{LinearOutput, LinearResult, LinearWeight, linear};
use crate::step::linear_unit::token_linear;
use crate::trace::{Tensor, TracePoint};
use ndarray::Array2;

impl Operand {
    /// Codes, if it has them.
    fn codes(&self) -> Option<&Array2<i8>> {
        match self {
            Operand::Tensor(x) => x.codes(),
            Operand::Tokens(x) => Some(&x.codes),
        }
    }
}

impl Run<'_, '_> {
    pub(super) fn in_proj(&mut self, norm_out: &Operand) -> Result<(Tensor, Tensor)> {
        let mode = &self.layer.mode;
        let rule = self.rules(Implementation::Cuda).linear.in_proj;
        let x_output = match mode.x {
            XOutput::Int8 => LinearOutput::Int8(self.scale(ScaleUse::InProjOut)),
            XOutput::F16 => LinearOutput::F16,
            XOutput::Float => LinearOutput::F32,
        };
        let z_output = self.linear_output(mode.z, ScaleUse::InProjOut);
        let layer = self.layer;
        let s_in = self.operand_scale(norm_out, ScaleUse::InProjIn);
        // Side by side, so that threads meet once.
        let (x, z) = rayon::join(
            || product(norm_out, s_in, &layer.in_proj_x, rule, x_output),
            || product(norm_out, s_in, &layer.in_proj_z, rule, z_output),
        );
        let (x, z, codes) = (x?, z?, norm_out.codes());
        let (x_point, z_point) = match x.out.dtype() == z.out.dtype() {
            true => (TracePoint::InProjOut, TracePoint::InProjOut),
            false => (TracePoint::InProjX, TracePoint::InProjZ),
        };
        let x = self.counted(x_point, rule, (codes, &layer.in_proj_x), x)?;
        let z = self.counted(z_point, rule, (codes, &layer.in_proj_z), z)?;
        if x_point != z_point {
            let x = self.show(TracePoint::InProjX, x)?;
            let z = self.show(TracePoint::InProjZ, z)?;
            return Ok((x, z));
        }
        let turned = self.layer.transposed.contains(&TracePoint::InProjOut);
        if !turned && !self.probe.wants(self.place(TracePoint::InProjOut)) {
            return Ok((x, z));
        }
        let e = self.path.config.d_inner;
        let both = self.show(TracePoint::InProjOut, join_columns(&x, &z))?;
        Ok((columns(&both, &(0..e)), columns(&both, &(e..2 * e))))
    }

    /// Route A: x_proj on the conv's output, or on u.
    pub(super) fn x_proj(&mut self, conv: &Tensor) -> Result<Tensor> {
        let mode = &self.layer.mode;
        let input = match (conv, mode.x_proj_in) {
            (Tensor::I8(_), Precision::Int8) | (Tensor::F32(_), Precision::Float) => None,
            (Tensor::I8(q), Precision::Float) => {
                Some(Tensor::F32(self.dequantize(q, ScaleUse::XProjIn)))
            }
            (other, Precision::Int8) => {
                let real = other.to_real();
                let q = self.requantize(TracePoint::XProjIn, &real, ScaleUse::XProjQuant);
                Some(Tensor::I8(q))
            }
            (other, Precision::Float) => Some(Tensor::F32(other.to_real())),
        };
        let input = match input {
            Some(made_here) => Some(self.show(TracePoint::XProjIn, made_here)?),
            None => None,
        };
        let input = input.as_ref().unwrap_or(conv);
        let s_in = self.input_scale(input, ScaleUse::XProjIn);
        let rule = self.projection(self.rules(Implementation::Cuda).linear.x_proj, input);
        let output = self.linear_output(mode.x_proj_out, ScaleUse::XProjOut);
        let done = linear(input, s_in, &self.layer.x_proj, rule, output)?;
        let out = self.counted(
            TracePoint::XProjOut,
            rule,
            (input.codes(), &self.layer.x_proj),
            done,
        )?;
        let out = self.projected(TracePoint::XProjOut, out, ScaleUse::XProjOut);
        self.show(TracePoint::XProjOut, out)
    }

    /// A projection's rule for its input: an FP32 product is PyTorch's, and so is its quantizer.
    fn projection(&self, rule: LinearRule, input: &Tensor) -> LinearRule {
        match input {
            Tensor::F32(_) => LinearRule {
                output: self.requantizer(),
                ..rule
            },
            _ => rule,
        }
    }

    pub(super) fn dt_proj(&mut self, x_proj_out: &Tensor) -> Result<Tensor> {
        let dt = columns(x_proj_out, &self.layer.columns.dt);
        let s_in = self.input_scale(&dt, ScaleUse::DtProjIn);
        let rule = self.projection(self.rules(Implementation::Cuda).linear.dt_proj, &dt);
        let output = self.linear_output(self.layer.mode.dt_proj_out, ScaleUse::DtProjOut);
        let done = linear(&dt, s_in, &self.layer.dt_proj, rule, output)?;
        let out = self.counted(
            TracePoint::DtProjOut,
            rule,
            (dt.codes(), &self.layer.dt_proj),
            done,
        )?;
        let out = self.projected(TracePoint::DtProjOut, out, ScaleUse::DtProjOut);
        self.show(TracePoint::DtProjOut, out)
    }

    pub(super) fn out_proj(&mut self, rotated: &Operand) -> Result<Tensor> {
        let rule = self.rules(Implementation::Cuda).linear.out_proj;
        let output = match self.layer.mode.stream {
            Stream::F16 => LinearOutput::F16,
            Stream::Float => LinearOutput::F32,
        };
        let s_in = self.operand_scale(rotated, ScaleUse::OutProjIn);
        let done = product(rotated, s_in, &self.layer.out_proj, rule, output)?;
        let seen = self.watched(rule, (rotated.codes(), &self.layer.out_proj), &done);
        self.accumulated(TracePoint::OutProjOut, rule.accumulator, seen)?;
        self.show(TracePoint::OutProjOut, done.out)
    }

    /// The scale that a reader believes an operand to have; none for FP32 and for scales of tokens, which
    /// come with the codes.
    fn operand_scale(&self, x: &Operand, reads: ScaleUse) -> Option<Scale> {
        match x {
            Operand::Tensor(x) => self.input_scale(x, reads),
            Operand::Tokens(_) => None,
        }
    }

    /// Hands on what a linear step counted, and keeps its output.
    fn counted(
        &mut self,
        point: TracePoint,
        rule: LinearRule,
        operands: (Option<&Array2<i8>>, &LinearWeight),
        done: LinearResult,
    ) -> Result<Tensor> {
        self.probe.count(self.place(point), done.status);
        let seen = self.watched(rule, operands, &done);
        self.accumulated(point, rule.accumulator, seen)?;
        Ok(done.out)
    }

    /// What the accumulators came to; term by term, if the probe watches.
    fn watched(
        &self,
        rule: LinearRule,
        (x, weight): (Option<&Array2<i8>>, &LinearWeight),
        done: &LinearResult,
    ) -> Accumulated {
        match x {
            Some(x) if self.probe.watches() && done.accumulated.sums == 0 => {
                weight.watched(x, rule.accumulator)
            }
            _ => done.accumulated,
        }
    }

    fn linear_output(&self, precision: Precision, scale_use: ScaleUse) -> LinearOutput {
        match precision {
            Precision::Int8 => LinearOutput::Int8(self.scale(scale_use)),
            Precision::Float => LinearOutput::F32,
        }
    }
}

/// A linear step on an operand.
fn product(
    x: &Operand,
    s_in: Option<Scale>,
    weight: &LinearWeight,
    rule: LinearRule,
    output: LinearOutput,
) -> Result<LinearResult> {
    match x {
        Operand::Tensor(x) => linear(x, s_in, weight, rule, output),
        Operand::Tokens(x) => token_linear(x, weight, rule, output),
    }
}
