//! The online Hadamard rotation and its quantizer.

use super::Gpu;
use crate::block::{HadamardStep, Output, Tensors};
use crate::cuda::matrix::Matrix;
use crate::cuda::step::hadamard::rotate;
use crate::error::Result;
use crate::profile::HadamardRules;
use crate::step::hadamard::quantizer_factor;
use crate::trace::TracePoint;

impl HadamardStep for Gpu<'_, '_> {
    fn hadamard(&mut self, y: &Matrix, output: Output, rules: HadamardRules) -> Result<Matrix> {
        let (point, rule) = (TracePoint::HadOut, rules.quantizer());
        let Some(size) = self.at.layer.rotation else {
            return match output {
                Output::Int8(scale) => self.quantize(point, y, scale, rule),
                _ => self.real(y, None),
            };
        };
        let factor = match output {
            // The quotient is in the factor.
            Output::Int8(scale) => quantizer_factor(size, scale),
            _ => size.norm() as f32,
        };
        let (kind, quantizer) = self.emit(point, y.rows * y.columns, output, rule)?;
        rotate(y, size, factor, kind, quantizer)
    }
}
