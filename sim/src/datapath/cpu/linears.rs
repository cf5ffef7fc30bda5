//! The four linear steps.

use super::{Cpu, Operand};
use crate::arith::accumulate::Accumulated;
use crate::block::{LinearSteps, Read};
use crate::dataflow::Step;
use crate::error::Result;
use crate::kernels::team::both;
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

impl LinearSteps for Cpu<'_, '_> {
    fn in_proj(
        &mut self,
        input: &Operand,
        scale: Option<Scale>,
        rule: LinearRule,
        [x, z]: [(TracePoint, LinearOutput); 2],
    ) -> Result<(Tensor, Tensor)> {
        let layer = self.at.layer;
        let [of_x, of_z] = [&layer.in_proj_x, &layer.in_proj_z];
        // Side by side, so that threads meet once.
        let (x_done, z_done) = both(
            || product(input, scale, of_x, rule, x.1),
            || product(input, scale, of_z, rule, z.1),
        );
        let (x_done, z_done, codes) = (x_done?, z_done?, input.codes());
        let x = self.counted(x.0, rule, (codes, of_x), x_done)?;
        Ok((x, self.counted(z.0, rule, (codes, of_z), z_done)?))
    }

    fn projection(
        &mut self,
        step: Step,
        x: Read<Tensor>,
        rule: LinearRule,
        (point, output): (TracePoint, LinearOutput),
    ) -> Result<Tensor> {
        let weight = self.at.layer.linear(step)[0];
        let done = linear(x.value, x.scale, weight, rule, output)?;
        self.counted(point, rule, (x.value.codes(), weight), done)
    }

    fn out_proj(
        &mut self,
        x: &Operand,
        scale: Option<Scale>,
        rule: LinearRule,
        output: LinearOutput,
    ) -> Result<Tensor> {
        let weight = &self.at.layer.out_proj;
        let done = product(x, scale, weight, rule, output)?;
        let seen = self.watched(rule, (x.codes(), weight), &done);
        self.accumulated(TracePoint::OutProjOut, rule.accumulator, seen)?;
        Ok(done.out)
    }
}

impl Cpu<'_, '_> {
    /// Hands on what a linear step counted, and keeps its output.
    fn counted(
        &mut self,
        point: TracePoint,
        rule: LinearRule,
        operands: (Option<&Array2<i8>>, &LinearWeight),
        done: LinearResult,
    ) -> Result<Tensor> {
        self.count(point, done.status);
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
