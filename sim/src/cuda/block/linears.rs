//! The four linear steps: in_proj, x_proj with the quantizer of route A, dt_proj, out_proj. Twin:
//! `datapath/block/linears.rs`.

use super::Run;
use crate::arith::saturate::Overflow;
use crate::cuda::args::Pointer;
use crate::cuda::matrix::{Kind, Matrix};
use crate::cuda::step::convert;
use crate::cuda::step::linear::{kind, linear, linear_into};
use crate::error::Result;
use crate::mode::{Implementation, Precision, Stream, XOutput};
use crate::plan::ScaleUse;
use crate::profile::LinearRule;
use crate::step::linear::LinearOutput;
use crate::trace::TracePoint;
use std::ops::Range;

/// Columns of x_proj's output.
pub(super) fn part(x_proj_out: &Matrix, columns: &Range<usize>) -> Matrix {
    x_proj_out.columns(columns.start, columns.end)
}

impl Run<'_, '_> {
    pub(super) fn in_proj(&mut self, norm_out: &Matrix) -> Result<(Matrix, Matrix)> {
        let mode = &self.layer.mode;
        let s_in = self.input_scale(norm_out, ScaleUse::InProjIn);
        let rule = self.rules(Implementation::Cuda).linear.in_proj;
        let x_output = match mode.x {
            XOutput::Int8 => LinearOutput::Int8(self.scale(ScaleUse::InProjOut)),
            XOutput::F16 => LinearOutput::F16,
            XOutput::Float => LinearOutput::F32,
        };
        let z_output = self.linear_output(mode.z, ScaleUse::InProjOut);
        let e = self.config.d_inner;
        let values = |out: LinearOutput, width: usize| match out {
            LinearOutput::Int8(_) => norm_out.rows * width,
            LinearOutput::F16 | LinearOutput::F32 => 0,
        };
        let weight = &self.weights.in_proj;
        if x_output != z_output {
            let status = self.slot(TracePoint::InProjX, values(x_output, e));
            let x = linear(norm_out, s_in, &weight.x, rule, x_output, status)?;
            let status = self.slot(TracePoint::InProjZ, values(z_output, e));
            let z = linear(norm_out, s_in, &weight.z, rule, z_output, status)?;
            self.show(TracePoint::InProjX, &x)?;
            self.show(TracePoint::InProjZ, &z)?;
            return Ok((x, z));
        }
        let status = self.slot(TracePoint::InProjOut, values(x_output, 2 * e));
        let both = Matrix::new(norm_out.device(), norm_out.rows, 2 * e, kind(x_output))?;
        let (x, z) = (both.columns(0, e), both.columns(e, 2 * e));
        match &weight.both {
            Some(all) => linear_into(&both, norm_out, s_in, all, rule, x_output, status)?,
            None => {
                linear_into(&x, norm_out, s_in, &weight.x, rule, x_output, status)?;
                linear_into(&z, norm_out, s_in, &weight.z, rule, z_output, status)?;
            }
        }
        self.show(TracePoint::InProjOut, &both)?;
        Ok((x, z))
    }

    /// Route A: x_proj on the conv's output.
    pub(super) fn x_proj(&mut self, conv: &Matrix) -> Result<Matrix> {
        let mode = &self.layer.mode;
        let made_here = match (conv.kind, mode.x_proj_in) {
            (Kind::I8(_), Precision::Int8) | (Kind::F32, Precision::Float) => None,
            (_, Precision::Float) => {
                let scale = self.input_scale(conv, ScaleUse::XProjIn);
                Some(convert::real(conv, scale)?)
            }
            (_, Precision::Int8) => {
                Some(self.requantize(TracePoint::XProjIn, conv, ScaleUse::XProjQuant)?)
            }
        };
        if let Some(made_here) = &made_here {
            self.show(TracePoint::XProjIn, made_here)?;
        }
        let input = made_here.as_ref().unwrap_or(conv);
        let s_in = self.input_scale(input, ScaleUse::XProjIn);
        let rule = self.projection(self.rules(Implementation::Cuda).linear.x_proj, input);
        let output = self.linear_output(mode.x_proj_out, ScaleUse::XProjOut);
        let status = self.linear_status(TracePoint::XProjOut, input.rows, output);
        let out = linear(input, s_in, &self.weights.x_proj, rule, output, status)?;
        let out = self.projected(TracePoint::XProjOut, out, ScaleUse::XProjOut)?;
        self.show(TracePoint::XProjOut, &out)?;
        Ok(out)
    }

    /// A projection's rule for its input: an FP32 product is PyTorch's, and so is its quantizer.
    fn projection(&self, rule: LinearRule, input: &Matrix) -> LinearRule {
        match input.kind {
            Kind::F32 => LinearRule {
                output: self.requantizer(),
                ..rule
            },
            _ => rule,
        }
    }

    pub(super) fn dt_proj(&mut self, x_proj_out: &Matrix) -> Result<Matrix> {
        let dt = part(x_proj_out, &self.layer.columns.dt);
        let s_in = self.input_scale(&dt, ScaleUse::DtProjIn);
        let rule = self.projection(self.rules(Implementation::Cuda).linear.dt_proj, &dt);
        let output = self.linear_output(self.layer.mode.dt_proj_out, ScaleUse::DtProjOut);
        let status = self.linear_status(TracePoint::DtProjOut, dt.rows, output);
        let out = linear(&dt, s_in, &self.weights.dt_proj, rule, output, status)?;
        let out = self.projected(TracePoint::DtProjOut, out, ScaleUse::DtProjOut)?;
        self.show(TracePoint::DtProjOut, &out)?;
        Ok(out)
    }

    pub(super) fn out_proj(&mut self, rotated: &Matrix) -> Result<Matrix> {
        let s_in = self.input_scale(rotated, ScaleUse::OutProjIn);
        let rule = self.rules(Implementation::Cuda).linear.out_proj;
        let output = match self.layer.mode.stream {
            Stream::F16 => LinearOutput::F16,
            Stream::Float => LinearOutput::F32,
        };
        let out = linear(rotated, s_in, &self.weights.out_proj, rule, output, 0)?;
        self.show(TracePoint::OutProjOut, &out)?;
        Ok(out)
    }

    fn linear_output(&self, precision: Precision, scale_use: ScaleUse) -> LinearOutput {
        match precision {
            Precision::Int8 => LinearOutput::Int8(self.scale(scale_use)),
            Precision::Float => LinearOutput::F32,
        }
    }

    /// Where the epilogue of a linear step counts.
    fn linear_status(&mut self, point: TracePoint, rows: usize, output: LinearOutput) -> Pointer {
        let outputs = match point {
            TracePoint::XProjOut => self.config.x_proj_width(),
            _ => self.config.d_inner,
        };
        let values = match output {
            LinearOutput::Int8(_) => rows * outputs,
            LinearOutput::F16 | LinearOutput::F32 => 0,
        };
        self.slot(point, values)
    }

    fn slot(&mut self, point: TracePoint, values: usize) -> Pointer {
        let place = self.place(point);
        self.counts.slot(place, values, Overflow::Saturate)
    }
}
