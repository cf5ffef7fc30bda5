//! The online Hadamard rotation and its quantizer.

use super::{Operand, Run};
use crate::error::Result;
use crate::mode::{Implementation, Precision};
use crate::plan::ScaleUse;
use crate::profile::HadamardRules;
use crate::step::rotate_unit::{IntegerRotation, rotate_tokens, rotate_unit};
use crate::step::{dynamic, rotate};
use crate::trace::{Tensor, TracePoint};

impl Run<'_, '_> {
    pub(super) fn rotate(&mut self, y: &Tensor) -> Result<Operand> {
        let rules = self.rules(Implementation::Cuda).hadamard;
        if self.layer.mode.had_out == Precision::Int8 && self.by_token() {
            return self.rotate_tokens(y, rules);
        }
        let out = match (self.layer.rotation, self.layer.mode.had_out) {
            (Some(size), Precision::Int8) => {
                let scale = self.scale(ScaleUse::HadOut);
                if let Some(rotation) = IntegerRotation::of(size, rules.form) {
                    let (q, status, seen) = rotate_unit(&y.to_real(), &rotation, scale, rules)?;
                    let place = self.place(TracePoint::HadOut);
                    self.probe.count(place, status);
                    self.probe.accumulate(place, seen);
                    let q = self.show(TracePoint::HadOut, Tensor::I8(q))?;
                    return Ok(Operand::Tensor(q));
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
                rules.quantizer(),
            )),
            (None, Precision::Float) => Tensor::F32(y.to_real()),
        };
        Ok(Operand::Tensor(self.show(TracePoint::HadOut, out)?))
    }

    /// Rotated codes whose tokens have scales of their own.
    fn rotate_tokens(&mut self, y: &Tensor, rules: HadamardRules) -> Result<Operand> {
        let grid = self.layer.profile.storage.activation_scales;
        let place = self.place(TracePoint::HadOut);
        let size = self.layer.rotation;
        let integer = size.and_then(|size| IntegerRotation::of(size, rules.form));
        let (q, status) = match (integer, size) {
            (Some(rotation), _) => {
                let anchor = self.scale(ScaleUse::HadOut);
                let done = rotate_tokens(&y.to_real(), &rotation, anchor, grid, rules)?;
                self.probe.accumulate(place, done.2);
                (done.0, done.1)
            }
            (None, Some(size)) => {
                let rotated = rotate::rotate(y.to_real(), size);
                dynamic::tokens(&rotated, grid, rules.quantizer())
            }
            (None, None) => dynamic::tokens(&y.to_real(), grid, rules.quantizer()),
        };
        self.probe.count(place, status);
        self.show_tokens(TracePoint::HadOut, q)
    }
}
