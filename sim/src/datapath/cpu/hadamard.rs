//! The online Hadamard rotation and its quantizer.

use super::{Cpu, Operand};
use crate::block::{HadamardStep, Output};
use crate::error::Result;
use crate::profile::HadamardRules;
use crate::step::hadamard;
use crate::step::hadamard_unit::{IntegerRotation, hadamard_unit, rotate_tokens};
use crate::trace::{Tensor, TracePoint};

impl HadamardStep for Cpu<'_, '_> {
    fn hadamard(&mut self, y: &Tensor, output: Output, rules: HadamardRules) -> Result<Operand> {
        let point = TracePoint::HadOut;
        let place = self.place(point);
        let Some(size) = self.at.layer.rotation else {
            return Ok(self.operand(point, y.to_real(), output, rules.quantizer()));
        };
        let integer = IntegerRotation::of(size, rules.form);
        Ok(match (output, integer) {
            (Output::Real, _) | (Output::Tokens { .. }, None) => {
                let rotated = hadamard::rotate(y.to_real(), size);
                self.operand(point, rotated, output, rules.quantizer())
            }
            (Output::Tokens { grid, calibrated }, Some(rotation)) => {
                let (q, status, seen) =
                    rotate_tokens(&y.to_real(), &rotation, calibrated, grid, rules)?;
                self.probe.accumulate(place, seen);
                self.count(point, status);
                Operand::Tokens(q)
            }
            (Output::Int8(scale), Some(rotation)) => {
                let (q, status, seen) = hadamard_unit(&y.to_real(), &rotation, scale, rules)?;
                self.count(point, status);
                self.probe.accumulate(place, seen);
                Operand::Tensor(Tensor::I8(q))
            }
            (Output::Int8(scale), None) => {
                let factor = hadamard::quantizer_factor(size, scale);
                let (q, status) = hadamard::rotate_quantize(y, size, factor, scale, rules);
                self.count(point, status);
                Operand::Tensor(Tensor::I8(q))
            }
        })
    }
}
