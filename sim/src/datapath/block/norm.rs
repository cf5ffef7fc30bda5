//! Residual add, RMSNorm and its quantizer.

use super::{Run, f32_of};
use crate::error::Result;
use crate::mode::{Implementation, Precision};
use crate::plan::ScaleUse;
use crate::step::norm;
use crate::trace::{Tensor, TracePoint};
use ndarray::Array2;

impl Run<'_, '_> {
    pub(super) fn norm(
        &mut self,
        hidden: Tensor,
        residual: Option<Array2<f32>>,
    ) -> Result<(Array2<f32>, Tensor)> {
        let hidden = self.show(TracePoint::HiddenIn, hidden)?;
        let residual = match residual {
            Some(r) => Some(f32_of(self.show(TracePoint::ResidualIn, Tensor::F32(r))?)),
            None => None,
        };
        let eps = self.path.config.eps;
        let norm = &self.layer.norm;
        let wants_residual = self.probe.wants(self.place(TracePoint::ResidualOut));
        if self.layer.mode.norm_out == Precision::Int8 && !wants_residual {
            let rule = self.rules(Implementation::Cuda).norm_out;
            let scale = self.scale(ScaleUse::NormOut);
            let (residual, q, status) =
                norm::rms_norm_quantize(&hidden, residual, norm, eps, rule, scale);
            self.probe.count(self.place(TracePoint::NormOut), status);
            return Ok((residual, self.show(TracePoint::NormOut, Tensor::I8(q))?));
        }
        let mut out = norm::rms_norm(&hidden, residual.as_ref(), norm, eps);
        if wants_residual {
            let shown = self.show(TracePoint::ResidualOut, Tensor::F32(out.residual))?;
            // The probe may have put another residual in its place.
            out = norm::rms_norm(&shown, None, norm, eps);
        }
        let value = match self.layer.mode.norm_out {
            Precision::Int8 => Tensor::I8(self.quantize(
                TracePoint::NormOut,
                &out.normed,
                ScaleUse::NormOut,
                self.rules(Implementation::Cuda).norm_out,
            )),
            Precision::Float => Tensor::F32(out.normed),
        };
        Ok((out.residual, self.show(TracePoint::NormOut, value)?))
    }
}
