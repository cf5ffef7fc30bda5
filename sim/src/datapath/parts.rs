//! What a prepared block holds, for those who hand its parts on: exports for RTL.

use super::Datapath;
use crate::arith::hadamard::HadamardSize;
use crate::dataflow::Step;
use crate::plan::ScaleUse;
use crate::quant::Scale;
use crate::step::conv::ConvWeight;
use crate::step::linear::LinearWeight;
use crate::step::scan::ScanWeight;
use serde::Serialize;

/// A linear weight of four bits and its scales: `real = int8(code · group) · channel`.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct FourBitWeight {
    /// The block.
    pub layer: usize,
    /// The step.
    pub step: Step,
    /// Codes.
    pub weights: usize,
    /// Bits of codes and scales.
    pub bits: usize,
    /// The smallest and the largest scale of a group, in INT8 steps a code; none where rows have no
    /// groups.
    pub group_scale: Option<[f32; 2]>,
    /// The smallest and the largest scale of a row.
    pub channel_scale: [f32; 2],
    /// Weights that are not `rne(code · group)`: the profile's rule saturates or wraps them.
    pub overflows: u64,
}

impl<'m> Datapath<'m> {
    /// The weights of a linear step; in_proj has two, x and z, other steps of a block none.
    pub fn linear_weights(&self, layer: usize, step: Step) -> Vec<&LinearWeight<'m>> {
        self.layers[layer].linear(step)
    }

    /// Every linear weight of four bits, block by block.
    pub fn four_bit_weights(&self) -> Vec<FourBitWeight> {
        let all = (0..self.layers.len()).flat_map(|layer| Step::FOUR_BIT.map(|step| (layer, step)));
        let seen = all.filter_map(|(layer, step)| {
            // Of in_proj, x and z are rows of one weight.
            let weight = self.linear_weights(layer, step)[0].int4()?;
            let source = weight.source();
            let range = |values: &mut dyn Iterator<Item = f32>| {
                values.fold([f32::INFINITY, f32::NEG_INFINITY], |[low, high], v| {
                    [low.min(v), high.max(v)]
                })
            };
            let groups = source.groups.as_ref();
            Some(FourBitWeight {
                layer,
                step,
                weights: source.dim().0 * source.dim().1,
                bits: source.bits(),
                group_scale: groups.map(|g| range(&mut g.iter().map(|s| f32::from(*s)))),
                channel_scale: range(&mut source.channels.iter().map(|s| s.get())),
                overflows: source.overflows(weight.rule()),
            })
        });
        seen.collect()
    }

    /// The head's weight, and whether codes meet it.
    pub fn head(&self) -> (&LinearWeight<'m>, bool) {
        (&self.head, self.head_input.is_some())
    }

    /// Bytes of the head that a greedy token reads, but for the few rows that are computed: of its INT8 copy, where
    /// there is one.
    pub fn greedy_head_bytes(&self) -> Option<u64> {
        self.bounds.get().map(|bounds| bounds.bytes() as u64)
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
