//! Edits of the convolution's parameters and of how they meet the inputs: other places, other scales.

use super::on_conv;
use crate::diagnosis::diagnose::edit::{ChannelOrder, Edits};
use crate::diagnosis::diagnose::formula::{Conv, Narrow};
use crate::diagnosis::diagnose::kind::Kind;
use ndarray::{Array2, Axis, concatenate};
use scalescope_sim::arith::round::Rounding;

/// Every map of a few taps to the inputs that they meet, but for the orders.
fn tap_maps(count: usize) -> Vec<Vec<usize>> {
    if count > 4 {
        return Vec::new();
    }
    let digits = |i: usize| (0..count).map(move |tap| i / count.pow(tap as u32) % count);
    let all = (0..count.pow(count as u32)).map(|i| digits(i).collect::<Vec<usize>>());
    all.filter(|map| (0..count).any(|to| !map.contains(&to)))
        .collect()
}

impl Edits<'_, '_> {
    /// Taps and biases of other channels, by a rule of their number; other scales of the block.
    pub(super) fn conv_parameters(&mut self, own: &Conv) {
        for map in tap_maps(own.taps.nrows()) {
            let names: Vec<String> = map.iter().map(ToString::to_string).collect();
            let words = format!("the taps meet the inputs of taps {}", names.join(", "));
            let change = on_conv(move |c| {
                let mut taps = Array2::zeros(c.taps.dim());
                for (tap, to) in map.iter().enumerate() {
                    let mut to = taps.row_mut(*to);
                    to += &c.taps.row(tap);
                }
                c.taps = taps;
            });
            self.formula(4, (Kind::Neighbour, "taps"), words, change);
        }
        for order in ChannelOrder::heads(own.taps.ncols()) {
            let words = format!("the taps' {}", order.words());
            let change = on_conv(move |c| c.taps = order.of(&c.taps));
            self.formula(4, (order.kind(), "weight"), words, change);
            let words = format!("the bias's {}", order.words());
            let change = on_conv(move |c| c.bias = order.of_vector(&c.bias));
            self.formula(4, (order.kind(), "bias"), words, change);
        }
        for (by, scale) in self.other_scales() {
            if let Some(bias) = own.bias_scale.filter(|bias| *bias != scale) {
                let words = format!("the bias has the scale of {by}");
                let change = on_conv(move |c| c.bias.iter_mut().for_each(|b| *b *= scale / bias));
                self.formula(4, (Kind::Neighbour, "bias scale"), words, change);
            }
            if own.tap_scale[..] != [scale] {
                let words = format!("the weight has the scale of {by}");
                let change = on_conv(move |c| c.tap_scale = vec![scale]);
                self.formula(4, (Kind::Neighbour, "weight scale"), words, change);
            }
            let narrow = Narrow::Codes(8, scale, Rounding::NearestTiesToEven);
            let words = format!("what comes to SiLU is a code of the scale of {by}");
            let change = on_conv(move |c| c.narrow_sum = Some(narrow));
            self.formula(5, (Kind::Format, "SiLU"), words, change);
        }
        for narrow in [Narrow::F16, Narrow::Bf16] {
            let words = format!("what comes to SiLU passes through {}", narrow.name());
            let change = on_conv(move |c| c.narrow_sum = Some(narrow));
            self.formula(5, (Kind::Format, "SiLU"), words, change);
        }
        if let Some(scale) = own.bias_scale {
            let words = "the codes of the bias are its reals cut to integers";
            let change = on_conv(move |c| c.bias.iter_mut().for_each(|b| *b = scale * b.trunc()));
            self.formula(4, (Kind::Format, "bias"), words, change);
        }
        self.conv_formats();
        for by in 1..own.taps.nrows() {
            let words =
                format!("the input is that of {by} tokens after, for the history's tokens too");
            let change = on_conv(move |c| {
                let all = [c.history.view(), c.x.values.view()];
                let all = concatenate(Axis(0), &all).expect("as many channels");
                let before = c.history.nrows();
                let at = |t: usize, e: usize| all.get((t + by, e)).copied().unwrap_or(0.0);
                c.history = Array2::from_shape_fn(c.history.dim(), |(t, e)| at(t, e));
                let dim = c.x.values.dim();
                c.x.values = Array2::from_shape_fn(dim, |(t, e)| at(before + t, e));
            });
            self.formula(3, (Kind::Neighbour, "input"), words, change);
        }
    }

    /// The whole convolution in a type of fewer bits, or all but some of it.
    fn conv_formats(&mut self) {
        for narrow in Narrow::of_factors() {
            let words = format!("the product of the scales passes through {}", narrow.name());
            let change = on_conv(move |c| c.scale_through = Some(narrow));
            self.formula(6, (Kind::Format, "scale"), words, change);
        }
        for narrow in [Narrow::F16, Narrow::Bf16, Narrow::Tf32] {
            for which in 0..16u8 {
                let has = |bit: u8| which >> bit & 1 == 1;
                let (bias, running, sum, out) = (has(0), has(1), has(2), has(3));
                let parts = [
                    (bias, "the bias"),
                    (running, "the sum after each tap"),
                    (sum, "the sum"),
                    (out, "the result"),
                ];
                let parts = parts.iter().filter(|(has, _)| *has);
                let parts: String = parts.map(|(_, name)| format!(", {name}")).collect();
                let words = format!("in {}: inputs and taps{parts}", narrow.name());
                let change = on_conv(move |c| {
                    c.dequantize(narrow);
                    if bias {
                        c.bias.iter_mut().for_each(|b| *b = narrow.of(*b));
                    }
                    c.running = running.then_some(narrow);
                    c.narrow_sum = sum.then_some(narrow);
                    c.output.through = out.then_some(narrow);
                });
                self.formula(5, (Kind::Format, "input"), words, change);
            }
        }
    }
}
