//! Residual add, RMSNorm and its quantizer.

use super::Gpu;
use crate::arith::requant::QuantRule;
use crate::block::{NormStep, Output};
use crate::cuda::args::Quantizer;
use crate::cuda::matrix::{Kind, Matrix};
use crate::cuda::rules::NO_QUANTIZER;
use crate::cuda::step::norm::{Normed, rms_norm};
use crate::error::Result;
use crate::profile::FinalNorm;
use crate::trace::TracePoint;

impl Gpu<'_, '_> {
    fn rms_norm(
        &self,
        hidden: &Matrix,
        residual: Option<&Matrix>,
        kind: Kind,
        quantizer: Quantizer,
    ) -> Result<Normed> {
        let (weight, eps) = (&self.weights.norm, self.at.config.eps);
        let rule = FinalNorm::RoundedOnce;
        rms_norm(rule, hidden, residual, weight, eps, kind, quantizer)
    }
}

impl NormStep for Gpu<'_, '_> {
    fn residual(&mut self, hidden: &Matrix, residual: Option<Matrix>) -> Result<Matrix> {
        let out = self.rms_norm(hidden, residual.as_ref(), Kind::F32, NO_QUANTIZER)?;
        Ok(out.residual)
    }

    fn norm(
        &mut self,
        hidden: &Matrix,
        residual: Option<Matrix>,
        output: Output,
        rule: QuantRule,
    ) -> Result<(Matrix, Matrix)> {
        let values = hidden.rows * hidden.columns;
        let (kind, quantizer) = self.emit(TracePoint::NormOut, values, output, rule)?;
        let out = self.rms_norm(hidden, residual.as_ref(), kind, quantizer)?;
        Ok((out.residual, out.normed))
    }
}
