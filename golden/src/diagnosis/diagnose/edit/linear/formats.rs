//! Edits of a product's operands and sums: types of fewer bits, other codes.

use super::on;
use crate::diagnosis::diagnose::edit::Edits;
use crate::diagnosis::diagnose::edit::codes::{Narrowed, Packing, stuck};
use crate::diagnosis::diagnose::formula::{Linear, Meet, Narrow};
use crate::diagnosis::diagnose::kind::Kind;
use ndarray::{ArrayViewMut, Axis, Dimension, s};
use std::ops::Range;

/// Codes stretched so that the largest is 127.
fn to_largest<D: Dimension>(mut codes: ArrayViewMut<f32, D>) {
    let most = codes.iter().fold(1.0f32, |most, v| most.max(v.abs()));
    codes.mapv_inplace(|v| (127.0 * v / most).round_ties_even());
}

impl Edits<'_, '_> {
    /// Operands, and sums of reals, in a type of fewer bits.
    pub(super) fn formats(&mut self, own: &Linear) {
        let real = own.meet == Meet::Real;
        for narrow in Narrow::FLOATS.into_iter().filter(|_| real) {
            let words = format!("each sum passes through {}", narrow.name());
            let change = on(move |l| l.running = Some(narrow));
            self.formula(5, (Kind::Format, "sum"), words, change);
        }
        for narrow in Narrow::of_factors().into_iter().filter(|_| !real) {
            let name = narrow.name();
            let words = format!("the product of the scales passes through {name}");
            let change = on(move |l| l.scale_through = Some(narrow));
            self.formula(5, (Kind::Format, "scale"), words, change);
            let words = format!("the input's scale passes through {name}");
            let change = on(move |l| l.x.scale = narrow.of(l.x.scale));
            self.formula(6, (Kind::Format, "input scale"), words, change);
            let words = format!("the weight's scale passes through {name}");
            let change = on(move |l| l.w_scales.iter_mut().for_each(|s| *s = narrow.of(*s)));
            self.formula(6, (Kind::Format, "weight scale"), words, change);
        }
        for narrow in [Narrow::F16, Narrow::Bf16].into_iter().filter(|_| !real) {
            let name = narrow.name();
            let words = format!("input and weight are dequantized to {name} and multiplied so");
            let change = on(move |l| l.dequantize(narrow));
            self.formula(5, (Kind::Format, "input"), words, change);
        }
        for narrow in Narrow::FLOATS {
            // Codes are exact in 16 bits.
            if !real && !matches!(narrow, Narrow::E4m3 | Narrow::E5m2) {
                continue;
            }
            let words = |what: &str| format!("{what} through {}", narrow.name());
            let input = move |l: &mut Linear| {
                l.inputs(|x| x.values.mapv_inplace(|v| narrow.of(v)));
            };
            // A weight of reals passes with its scale.
            let weight = move |l: &mut Linear| {
                let scales = match l.meet {
                    Meet::Real => std::mem::replace(&mut l.w_scales, vec![1.0]),
                    _ => vec![1.0],
                };
                l.weights(|w| {
                    w.indexed_iter_mut().for_each(|((r, _), v)| {
                        *v = narrow.of(*v * scales[r.min(scales.len() - 1)]);
                    });
                });
            };
            self.formula(
                5,
                (Kind::Format, "input"),
                words("the input passes"),
                on(input),
            );
            self.formula(
                5,
                (Kind::Format, "weight"),
                words("the weight passes"),
                on(weight),
            );
            let both = on(move |l| {
                input(l);
                weight(l);
            });
            self.formula(
                5,
                (Kind::Format, "input"),
                words("input and weight pass"),
                both,
            );
        }
    }

    /// Codes of inputs and weights that lack bits.
    pub(super) fn narrow_codes(&mut self) {
        type Codes = (
            &'static str,
            &'static str,
            fn(&mut Linear, &dyn Fn(f32) -> f32),
        );
        let operands: [Codes; 2] = [
            ("input", "the input codes", |l, of| {
                l.inputs(|x| x.values.mapv_inplace(of));
            }),
            ("weight", "the weight's codes", |l, of| {
                l.weights(|w| w.mapv_inplace(of));
            }),
        ];
        for packing in Packing::ALL {
            let words = packing.words("the input");
            let change = on(move |l| l.inputs(|x| x.values = packing.of(&x.values)));
            self.formula(5, (Kind::Format, "input"), words, change);
            let words = packing.words("the weight");
            let change = on(move |l| l.weights(|w| *w = packing.of(w)));
            self.formula(5, (Kind::Format, "weight"), words, change);
        }
        for (site, name, each) in operands {
            for narrowed in Narrowed::all().into_iter().filter(|n| n.is_of_codes()) {
                let words = narrowed.words(name);
                let change = on(move |l| each(l, &|v| narrowed.of(v)));
                self.formula(narrowed.rank(), (narrowed.kind(), site), words, change);
            }
        }
    }

    /// A bit that is stuck in every so many-th input or column of the weight: a wire of a bus.
    pub(super) fn lanes(&mut self) {
        for lanes in [4usize, 8, 16, 32] {
            for (lane, bit, set) in (0..lanes)
                .flat_map(|lane| (0..8u8).map(move |bit| (lane, bit)))
                .flat_map(|(lane, bit)| [false, true].map(|set| (lane, bit, set)))
            {
                let of = format!("bit {bit} of every {lanes}th");
                let at = format!("from {lane} on is stuck at {}", u8::from(set));
                let change = on(move |l| {
                    l.inputs(|x| {
                        let columns = x.values.columns_mut().into_iter();
                        for mut column in columns.skip(lane).step_by(lanes) {
                            column.mapv_inplace(|v| stuck(v, 1 << bit, set));
                        }
                    });
                });
                let words = format!("{of} input {at}");
                self.formula(7, (Kind::StuckBit, "input"), words, change);
                let change = on(move |l| {
                    l.weights(|w| {
                        let columns = w.columns_mut().into_iter();
                        for mut column in columns.skip(lane).step_by(lanes) {
                            column.mapv_inplace(|v| stuck(v, 1 << bit, set));
                        }
                    });
                });
                let words = format!("{of} column of the weight {at}");
                self.formula(7, (Kind::StuckBit, "weight"), words, change);
            }
        }
    }

    /// Codes that were made with the scales of rows or columns and are read with one for all.
    pub(super) fn own_scales(&mut self, own: &Linear) {
        let (n, k) = own.w.dim();
        let config = self.scene.map(|scene| scene.path.config());
        let parts = self.row.point.parts().iter().zip(config);
        let parts: Vec<Range<usize>> = parts.map(|(part, c)| part.range(c, n)).collect();
        if !parts.is_empty() {
            let words = "the weight's parts are quantized each to its own largest code";
            let change = on(move |l| {
                l.weights(|w| {
                    for part in &parts {
                        to_largest(w.slice_mut(s![part.clone(), ..]));
                    }
                });
            });
            self.formula(4, (Kind::Factor, "weight"), words, change);
        }
        for (size, axis, what) in [(n, Axis(0), "outputs"), (k, Axis(1), "inputs")] {
            let runs = [16usize, 32, 64, 128, 256, size / 2, size / 3, size / 4];
            let mut runs: Vec<usize> = runs.into_iter().filter(|r| (2..size).contains(r)).collect();
            runs.sort_unstable();
            runs.dedup();
            for run in runs {
                let words =
                    format!("the weight of each {run} {what} is quantized to its own largest code");
                let change = on(move |l| {
                    l.weights(|w| w.axis_chunks_iter_mut(axis, run).for_each(to_largest));
                });
                self.formula(4, (Kind::Factor, "weight"), words, change);
            }
        }
        let words = "the weight's rows are quantized each to its own largest code";
        let change = on(|l| l.weights(|w| w.rows_mut().into_iter().for_each(to_largest)));
        self.formula(4, (Kind::Factor, "weight"), words, change);
        let words = "the weight's columns are quantized each to its own largest code";
        let change = on(|l| l.weights(|w| w.columns_mut().into_iter().for_each(to_largest)));
        self.formula(4, (Kind::Factor, "weight"), words, change);
        let words = "the input's tokens are quantized each to its own largest code";
        let change = on(|l| {
            l.inputs(|x| x.values.rows_mut().into_iter().for_each(to_largest));
        });
        self.formula(4, (Kind::Factor, "input"), words, change);
    }
}
