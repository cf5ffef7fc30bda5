//! The online Hadamard rotation and its quantizer.

use super::{Backend, Output, Run, Tensors};
use crate::error::Result;
use crate::mode::Implementation;
use crate::plan::ScaleUse;
use crate::profile::HadamardRules;
use crate::trace::TracePoint;

pub(crate) trait HadamardStep: Tensors {
    /// Rotates y, where the mode rotates, and quantizes it by the quantizer of the rules.
    fn hadamard(
        &mut self,
        y: &Self::Value,
        output: Output,
        rules: HadamardRules,
    ) -> Result<Self::Operand>;
}

impl<B: Backend> Run<'_, '_, B> {
    /// What out_proj reads.
    pub fn hadamard(&mut self, y: &B::Value) -> Result<B::Operand> {
        let rules = self.at.rules(Implementation::Cuda).hadamard;
        let output = self.operand(self.at.layer.mode.had_out, ScaleUse::HadOut);
        let out = self.on.hadamard(y, output, rules)?;
        self.on.show_operand(TracePoint::HadOut, out)
    }
}
