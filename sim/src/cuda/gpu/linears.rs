//! The four linear steps.

use super::Gpu;
use crate::block::{LinearSteps, Read};
use crate::cuda::matrix::Matrix;
use crate::cuda::step::linear::{kind, linear, linear_into};
use crate::dataflow::Step;
use crate::error::Result;
use crate::profile::LinearRule;
use crate::quant::Scale;
use crate::step::linear::LinearOutput;
use crate::trace::TracePoint;

/// Values that an epilogue makes fit.
fn counted(output: LinearOutput, values: usize) -> usize {
    match output {
        LinearOutput::Int8(_) => values,
        LinearOutput::F16 | LinearOutput::F32 => 0,
    }
}

impl LinearSteps for Gpu<'_, '_> {
    fn in_proj(
        &mut self,
        input: &Matrix,
        scale: Option<Scale>,
        rule: LinearRule,
        [x, z]: [(TracePoint, LinearOutput); 2],
    ) -> Result<(Matrix, Matrix)> {
        let e = self.at.config.d_inner;
        let weight = &self.weights.in_proj;
        if x != z {
            let status = self.slot(x.0, counted(x.1, input.rows * e));
            let of_x = linear(input, scale, &weight.x, rule, x.1, status)?;
            let status = self.slot(z.0, counted(z.1, input.rows * e));
            let of_z = linear(input, scale, &weight.z, rule, z.1, status)?;
            return Ok((of_x, of_z));
        }
        let (point, output) = x;
        let status = self.slot(point, counted(output, input.rows * 2 * e));
        let both = Matrix::new(input.device(), input.rows, 2 * e, kind(output))?;
        let (x, z) = (both.columns(0, e), both.columns(e, 2 * e));
        match &weight.both {
            Some(all) => linear_into(&both, input, scale, all, rule, output, status)?,
            None => {
                linear_into(&x, input, scale, &weight.x, rule, output, status)?;
                linear_into(&z, input, scale, &weight.z, rule, output, status)?;
            }
        }
        Ok((x, z))
    }

    fn projection(
        &mut self,
        step: Step,
        x: Read<Matrix>,
        rule: LinearRule,
        (point, output): (TracePoint, LinearOutput),
    ) -> Result<Matrix> {
        let weight = match step {
            Step::XProj => &self.weights.x_proj,
            Step::DtProj => &self.weights.dt_proj,
            Step::Embed
            | Step::Norm
            | Step::InProj
            | Step::Conv
            | Step::Scan
            | Step::Hadamard
            | Step::OutProj
            | Step::Head => unreachable!("the block asks for x_proj and dt_proj"),
        };
        let status = self.slot(point, counted(output, x.value.rows * weight.outputs()));
        linear(x.value, x.scale, weight, rule, output, status)
    }

    fn out_proj(
        &mut self,
        x: &Matrix,
        scale: Option<Scale>,
        rule: LinearRule,
        output: LinearOutput,
    ) -> Result<Matrix> {
        linear(x, scale, &self.weights.out_proj, rule, output, 0)
    }
}
