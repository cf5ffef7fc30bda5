//! The online Hadamard rotation and its quantizer.

use super::Run;
use crate::arith::requant::QuantRule;
use crate::error::Result;
use crate::mode::{Implementation, Precision};
use crate::plan::ScaleUse;
use crate::step::rotate;
use crate::step::rotate_unit::{IntegerRotation, rotate_unit};
use crate::trace::{Tensor, TracePoint};

impl Run<'_, '_> {
    pub(super) fn rotate(&mut self, y: &Tensor) -> Result<Tensor> {
        let rules = self.rules(Implementation::Cuda).hadamard;
        let out = match (self.layer.rotation, self.layer.mode.had_out) {
            (Some(size), Precision::Int8) => {
                let scale = self.scale(ScaleUse::HadOut);
                if let Some(rotation) = IntegerRotation::of(size, rules.form) {
                    let (q, status, seen) = rotate_unit(&y.to_real(), &rotation, scale, rules)?;
                    let place = self.place(TracePoint::HadOut);
                    self.probe.count(place, status);
                    self.probe.accumulate(place, seen);
                    return self.show(TracePoint::HadOut, Tensor::I8(q));
                }
                let factor = rotate::quantizer_factor(size, scale);
                let (q, status) = rotate::rotate_quantize(y, size, factor, scale, rules);
                self.probe.count(self.place(TracePoint::HadOut), status);
                Tensor::I8(q)
            }
            (Some(size), Precision::Float) => Tensor::F32(rotate::rotate(y.to_real(), size)),
            (None, Precision::Int8) => Tensor::I8(self.quantize(
                TracePoint::HadOut,
                &y.to_real(),
                ScaleUse::HadOut,
                QuantRule::HALF_AWAY,
            )),
            (None, Precision::Float) => Tensor::F32(y.to_real()),
        };
        self.show(TracePoint::HadOut, out)
    }
}
