//! Residual add, RMSNorm and its quantizer.

use super::{Cpu, Operand, f32_of};
use crate::arith::requant::QuantRule;
use crate::block::{NormStep, Output};
use crate::error::Result;
use crate::step::norm;
use crate::trace::{Tensor, TracePoint};

impl NormStep for Cpu<'_, '_> {
    fn residual(&mut self, hidden: &Tensor, residual: Option<Tensor>) -> Result<Tensor> {
        let (weight, eps) = (&self.at.layer.norm, self.at.config.eps);
        let residual = residual.map(f32_of);
        let out = norm::rms_norm(hidden, residual.as_ref(), weight, eps);
        Ok(Tensor::F32(out.residual))
    }

    fn norm(
        &mut self,
        hidden: &Tensor,
        residual: Option<Tensor>,
        output: Output,
        rule: QuantRule,
    ) -> Result<(Tensor, Operand)> {
        let (weight, eps) = (&self.at.layer.norm, self.at.config.eps);
        let residual = residual.map(f32_of);
        if let Output::Int8(scale) = output {
            let (residual, q, status) =
                norm::rms_norm_quantize(hidden, residual, weight, eps, rule, scale);
            self.count(TracePoint::NormOut, status);
            return Ok((Tensor::F32(residual), Operand::Tensor(Tensor::I8(q))));
        }
        let out = norm::rms_norm(hidden, residual.as_ref(), weight, eps);
        let normed = self.operand(TracePoint::NormOut, out.normed, output, rule);
        Ok((Tensor::F32(out.residual), normed))
    }
}
