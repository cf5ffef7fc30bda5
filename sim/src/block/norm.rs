//! Residual add, RMSNorm and its quantizer.

use super::{Backend, Output, Run, Tensors};
use crate::arith::requant::QuantRule;
use crate::error::Result;
use crate::mode::Implementation;
use crate::plan::ScaleUse;
use crate::trace::TracePoint;

pub(crate) trait NormStep: Tensors {
    /// Residual stream plus hidden state, FP32.
    fn residual(
        &mut self,
        hidden: &Self::Value,
        residual: Option<Self::Value>,
    ) -> Result<Self::Value>;

    /// The residual stream after the addition, and its norm, quantized by a rule.
    fn norm(
        &mut self,
        hidden: &Self::Value,
        residual: Option<Self::Value>,
        output: Output,
        rule: QuantRule,
    ) -> Result<(Self::Value, Self::Operand)>;
}

impl<B: Backend> Run<'_, '_, B> {
    /// The residual stream, and what in_proj reads.
    pub fn norm(
        &mut self,
        hidden: B::Value,
        residual: Option<B::Value>,
    ) -> Result<(B::Value, B::Operand)> {
        let mut hidden = self.on.show(TracePoint::HiddenIn, hidden)?;
        let mut residual = match residual {
            Some(residual) => Some(self.on.show(TracePoint::ResidualIn, residual)?),
            None => None,
        };
        let output = self.operand(self.at.layer.mode.norm_out, ScaleUse::NormOut);
        let rule = self.at.rules(Implementation::Cuda).norm_out;
        if self.on.wants(TracePoint::ResidualOut) {
            // The probe may put another residual in its place.
            let sum = self.on.residual(&hidden, residual.take())?;
            hidden = self.on.show(TracePoint::ResidualOut, sum)?;
        }
        let (residual, normed) = self.on.norm(&hidden, residual, output, rule)?;
        Ok((residual, self.on.show_operand(TracePoint::NormOut, normed)?))
    }
}
