//! The four linear steps: in_proj, x_proj with the quantizer of route A, dt_proj, out_proj.

use super::{Backend, Kind, Read, Run, Tensors};
use crate::dataflow::Step;
use crate::error::Result;
use crate::mode::{Implementation, Precision, Projected, Stream, XOutput};
use crate::plan::ScaleUse;
use crate::profile::LinearRule;
use crate::quant::Scale;
use crate::step::linear::LinearOutput;
use crate::trace::TracePoint;

pub(crate) trait LinearSteps: Tensors {
    /// x and z, each counted at its point.
    fn in_proj(
        &mut self,
        x: &Self::Operand,
        scale: Option<Scale>,
        rule: LinearRule,
        outputs: [(TracePoint, LinearOutput); 2],
    ) -> Result<(Self::Value, Self::Value)>;

    /// x_proj or dt_proj, counted at a point.
    fn projection(
        &mut self,
        step: Step,
        x: Read<Self::Value>,
        rule: LinearRule,
        output: (TracePoint, LinearOutput),
    ) -> Result<Self::Value>;

    /// out_proj, which quantizes nothing.
    fn out_proj(
        &mut self,
        x: &Self::Operand,
        scale: Option<Scale>,
        rule: LinearRule,
        output: LinearOutput,
    ) -> Result<Self::Value>;
}

impl<B: Backend> Run<'_, '_, B> {
    pub fn in_proj(&mut self, norm_out: &B::Operand) -> Result<(B::Value, B::Value)> {
        let mode = &self.at.layer.mode;
        let scale = self.believed(B::operand_kind(norm_out), ScaleUse::InProjIn);
        let rule = self.at.rules(Implementation::Cuda).linear.in_proj;
        let x_output = match mode.x {
            XOutput::Int8 => LinearOutput::Int8(self.at.scale(ScaleUse::InProjOut)),
            XOutput::F16 => LinearOutput::F16,
            XOutput::Float => LinearOutput::F32,
        };
        let z_output = self.linear_output(mode.z, ScaleUse::InProjOut);
        let together = x_output == z_output;
        let [x_point, z_point] = match together {
            true => [TracePoint::InProjOut; 2],
            false => [TracePoint::InProjX, TracePoint::InProjZ],
        };
        let outputs = [(x_point, x_output), (z_point, z_output)];
        let (x, z) = self.on.in_proj(norm_out, scale, rule, outputs)?;
        if together {
            return self.on.show_both(TracePoint::InProjOut, x, z);
        }
        let x = self.on.show(x_point, x)?;
        Ok((x, self.on.show(z_point, z)?))
    }

    /// Route A: x_proj on the conv's output, or on u.
    pub fn x_proj(&mut self, conv: &B::Value) -> Result<B::Value> {
        let made_here = match (B::kind(conv), self.at.layer.mode.x_proj_in) {
            (Kind::Int8, Precision::Int8) | (Kind::F32, Precision::Float) => None,
            (_, Precision::Float) => {
                let Read { value, scale } = self.read(conv, ScaleUse::XProjIn);
                Some(self.on.real(value, scale)?)
            }
            (_, Precision::Int8) => {
                Some(self.requantize(TracePoint::XProjIn, conv, ScaleUse::XProjQuant)?)
            }
        };
        let made_here = match made_here {
            Some(made_here) => Some(self.on.show(TracePoint::XProjIn, made_here)?),
            None => None,
        };
        let input = self.read(made_here.as_ref().unwrap_or(conv), ScaleUse::XProjIn);
        let rule = self.at.rules(Implementation::Cuda).linear.x_proj;
        let output = self.linear_output(self.at.layer.mode.x_proj_out, ScaleUse::XProjOut);
        let (step, point) = (Step::XProj, TracePoint::XProjOut);
        self.projection(step, input, rule, (point, output), ScaleUse::XProjOut)
    }

    pub fn dt_proj(&mut self, x_proj_out: &B::Value) -> Result<B::Value> {
        let dt = self.on.columns(x_proj_out, &self.at.layer.columns.dt);
        let input = self.read(&dt, ScaleUse::DtProjIn);
        let rule = self.at.rules(Implementation::Cuda).linear.dt_proj;
        let output = self.linear_output(self.at.layer.mode.dt_proj_out, ScaleUse::DtProjOut);
        let (step, point) = (Step::DtProj, TracePoint::DtProjOut);
        self.projection(step, input, rule, (point, output), ScaleUse::DtProjOut)
    }

    /// A projection, its output as it is or, where the mode says so, on its grid.
    fn projection(
        &mut self,
        step: Step,
        input: Read<B::Value>,
        mut rule: LinearRule,
        (point, output): (TracePoint, LinearOutput),
        by: ScaleUse,
    ) -> Result<B::Value> {
        if B::kind(input.value) == Kind::F32 {
            // An FP32 product is PyTorch's, and so is its quantizer.
            rule.output = self.requantizer();
        }
        let mut out = self.on.projection(step, input, rule, (point, output))?;
        if (B::kind(&out), self.at.layer.mode.projected) == (Kind::F32, Projected::Grid) {
            let codes = self.requantize(point, &out, by)?;
            out = self.on.real(&codes, Some(self.at.scale(by)))?;
        }
        self.on.show(point, out)
    }

    pub fn out_proj(&mut self, rotated: &B::Operand) -> Result<B::Value> {
        let scale = self.believed(B::operand_kind(rotated), ScaleUse::OutProjIn);
        let rule = self.at.rules(Implementation::Cuda).linear.out_proj;
        let output = match self.at.layer.mode.stream {
            Stream::F16 => LinearOutput::F16,
            Stream::Float => LinearOutput::F32,
        };
        let out = self.on.out_proj(rotated, scale, rule, output)?;
        self.on.show(TracePoint::OutProjOut, out)
    }

    fn linear_output(&self, precision: Precision, scale_use: ScaleUse) -> LinearOutput {
        match precision {
            Precision::Int8 => LinearOutput::Int8(self.at.scale(scale_use)),
            Precision::Float => LinearOutput::F32,
        }
    }
}
