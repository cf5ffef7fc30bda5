//! What a prepared block holds, for those who hand its parts on: exports for RTL.

use super::Datapath;
use crate::arith::hadamard::HadamardSize;
use crate::dataflow::Step;
use crate::plan::ScaleUse;
use crate::quant::Scale;
use crate::step::conv::ConvWeight;
use crate::step::linear::LinearWeight;
use crate::step::scan::ScanWeight;

impl<'m> Datapath<'m> {
    /// The weights of a linear step; in_proj has two, x and z, other steps of a block none.
    pub fn linear_weights(&self, layer: usize, step: Step) -> Vec<&LinearWeight<'m>> {
        let layer = &self.layers[layer];
        match step {
            Step::InProj => vec![&layer.in_proj_x, &layer.in_proj_z],
            Step::XProj => vec![&layer.x_proj],
            Step::DtProj => vec![&layer.dt_proj],
            Step::OutProj => vec![&layer.out_proj],
            Step::Embed | Step::Norm | Step::Conv | Step::Scan | Step::Hadamard | Step::Head => {
                Vec::new()
            }
        }
    }

    /// The convolution's weight.
    pub fn conv_weight(&self, layer: usize) -> &ConvWeight {
        &self.layers[layer].conv
    }

    /// The scan's parameters.
    pub fn scan_weight(&self, layer: usize) -> &ScanWeight {
        &self.layers[layer].scan
    }

    /// RMSNorm's weight.
    pub fn norm_weight(&self, layer: usize) -> &[f32] {
        &self.layers[layer].norm
    }

    /// The Hadamard rotation before out_proj; `None` where the model is not rotated.
    pub fn rotation(&self, layer: usize) -> Option<HadamardSize> {
        self.layers[layer].rotation
    }

    /// The scale of a use; `None` where the mode quantizes nothing.
    pub fn scale(&self, layer: usize, scale_use: ScaleUse) -> Option<Scale> {
        let scales = self.layers[layer].scales.as_ref();
        scales.map(|plan| plan.get(scale_use))
    }
}
