//! Residual add, RMSNorm and its quantizer.

use super::{Operand, Run, f32_of};
use crate::error::Result;
use crate::mode::{Implementation, Precision};
use crate::plan::ScaleUse;
use crate::step::{dynamic, norm};
use crate::trace::{Tensor, TracePoint};
use ndarray::Array2;

impl Run<'_, '_> {
    pub(super) fn norm(
        &mut self,
        hidden: Tensor,
        residual: Option<Array2<f32>>,
    ) -> Result<(Array2<f32>, Operand)> {
        let hidden = self.show(TracePoint::HiddenIn, hidden)?;
        let residual = match residual {
            Some(r) => Some(f32_of(self.show(TracePoint::ResidualIn, Tensor::F32(r))?)),
            None => None,
        };
        let eps = self.path.config.eps;
        let norm = &self.layer.norm;
        let wants_residual = self.probe.wants(self.place(TracePoint::ResidualOut));
        let int8 = self.layer.mode.norm_out == Precision::Int8;
        let rule = self.rules(Implementation::Cuda).norm_out;
        if int8 && !wants_residual && !self.by_token() {
            let scale = self.scale(ScaleUse::NormOut);
            let (residual, q, status) =
                norm::rms_norm_quantize(&hidden, residual, norm, eps, rule, scale);
            self.probe.count(self.place(TracePoint::NormOut), status);
            let q = self.show(TracePoint::NormOut, Tensor::I8(q))?;
            return Ok((residual, Operand::Tensor(q)));
        }
        let mut out = norm::rms_norm(&hidden, residual.as_ref(), norm, eps);
        if wants_residual {
            let shown = self.show(TracePoint::ResidualOut, Tensor::F32(out.residual))?;
            // The probe may have put another residual in its place.
            out = norm::rms_norm(&shown, None, norm, eps);
        }
        if int8 && self.by_token() {
            let grid = self.layer.profile.storage.activation_scales;
            let (q, status) = dynamic::tokens(&out.normed, grid, rule);
            self.probe.count(self.place(TracePoint::NormOut), status);
            return Ok((out.residual, self.show_tokens(TracePoint::NormOut, q)?));
        }
        let value = match int8 {
            true => {
                let by = ScaleUse::NormOut;
                Tensor::I8(self.quantize(TracePoint::NormOut, &out.normed, by, rule))
            }
            false => Tensor::F32(out.normed),
        };
        let value = self.show(TracePoint::NormOut, value)?;
        Ok((out.residual, Operand::Tensor(value)))
    }
}
