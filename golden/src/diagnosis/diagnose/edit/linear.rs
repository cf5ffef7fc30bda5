//! Edits of a product with a weight matrix.

use super::codes::{stuck, unsigned};
use super::{
    BEGINS, ChannelOrder, Edits, Half, TokenOrder, begins, halves, moves, replace, reversed,
    turned, whole_of,
};
use crate::diagnosis::diagnose::formula::{
    BlockInputs, Formula, Linear, Meet, Stride, Uncleared, numbers,
};
use crate::diagnosis::diagnose::kind::Kind;
use ndarray::{Array2, s};
use scalescope_sim::dataflow::{Columns, Step};
use scalescope_sim::trace::Tensor;
use std::sync::Arc;

mod formats;
mod inputs;
mod solved;

pub use inputs::read_off;
pub use solved::{blocks, cells, entries, solve_entries, solve_times, times};

/// Changes a linear formula.
fn on(
    change: impl Fn(&mut Linear) + Send + Sync,
) -> impl Fn(&mut Formula, super::Around) + Send + Sync {
    move |formula, _| {
        if let Formula::Linear(linear) = formula {
            change(linear);
        }
    }
}

/// Inputs at either end of a sum that may be missing.
const TAILS: [usize; 13] = [1, 2, 4, 8, 16, 24, 32, 48, 64, 96, 128, 192, 256];

impl Edits<'_, '_> {
    pub(super) fn of_linear(&mut self, own: &Linear) {
        let k = own.w.ncols();
        self.other_weights(own);
        for tail in TAILS.into_iter().filter(|t| *t < k) {
            self.part(1, k - tail..k, format!("the last {tail} of {k} inputs"));
            self.part(2, 0..tail, format!("the first {tail} of {k} inputs"));
        }
        // Halves, quarters, and of short sums every part.
        let parts = [k / 4, k / 3, k / 2, 2 * k / 3, 3 * k / 4];
        for tail in (1..k).filter(|t| (k <= 48 || parts.contains(t)) && !TAILS.contains(t)) {
            self.part(2, k - tail..k, format!("the last {tail} of {k} inputs"));
            self.part(2, 0..tail, format!("the first {tail} of {k} inputs"));
        }
        // Tiles of K in the middle.
        for tile in [8usize, 16, 32, 64, 128, 256]
            .into_iter()
            .filter(|t| 2 * t < k)
        {
            for first in (tile..k - tile).step_by(tile).filter(|f| f + tile < k) {
                let last = first + tile - 1;
                self.part(
                    3,
                    first..last + 1,
                    format!("inputs {first} to {last} of {k}"),
                );
            }
        }
        if k.is_multiple_of(2) {
            for odd in [0, 1] {
                let words = format!("only inputs 2i+{odd} are summed");
                self.formula(
                    3,
                    (Kind::PartMissing, "sum"),
                    words,
                    on(move |l| {
                        l.times(|inputs| {
                            let all = inputs.iter_mut().enumerate();
                            all.for_each(|(i, times)| *times = f32::from(i % 2 == odd));
                        });
                    }),
                );
            }
            let words = "the halves of the inputs are swapped";
            self.formula(
                3,
                (Kind::Order, "inputs"),
                words,
                on(|l| {
                    l.inputs(|x| x.values = halves(&x.values));
                }),
            );
        }
        self.formula(
            3,
            (Kind::Order, "inputs"),
            "inputs meet the weight in reverse",
            on(|l| {
                l.inputs(|x| x.values = reversed(&x.values));
            }),
        );
        for stride in Stride::all(k, k) {
            let words = stride.words("the weight");
            let change = on(move |l| l.weights(|w| *w = stride.of_all(w)));
            self.formula(4, (Kind::Order, "weight"), words, change);
        }
        for stride in Stride::of_each(&own.x) {
            let words = stride.words("the input");
            let change = on(move |l| l.inputs(|x| stride.of_operand(x)));
            self.formula(4, (Kind::Order, "input"), words, change);
        }
        for by in moves([1, -1, 2, -2, 3, 4, -4, 8, -8, 16, -16, 32, -32]) {
            let words = format!("the input is that {}", by.words());
            self.formula(
                3,
                (Kind::Neighbour, "input"),
                words,
                on(move |l| l.rows(|x| by.of(x), |sums| by.of(sums))),
            );
        }
        for by in [1isize, -1] {
            let words = format!("each input has the place of its neighbour ({by:+})");
            self.formula(
                4,
                (Kind::Neighbour, "input"),
                words,
                on(move |l| {
                    l.inputs(|x| x.values = turned(&x.values, by));
                }),
            );
            for zero in [1.0f32, 2.0, 3.0, 4.0, 8.0, 128.0].map(|zero| zero * by as f32) {
                let words = format!("the input has a zero point of {zero}");
                self.formula(
                    5,
                    (Kind::ZeroPoint, "input"),
                    words,
                    on(move |l| {
                        l.inputs(|x| x.values += zero);
                    }),
                );
            }
            for zero in [
                1.0f32, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0, 16.0, 32.0, 64.0, 128.0,
            ] {
                let zero = zero * by as f32;
                let words = format!("the weight has a zero point of {zero}");
                let change = on(move |l| l.weights(|w| *w += zero));
                self.formula(5, (Kind::ZeroPoint, "weight"), words, change);
            }
        }
        for order in TokenOrder::all() {
            let words = format!("the input's {}", order.words());
            let change = on(move |l| {
                l.rows(|x| order.of(x), |sums| order.of(sums));
            });
            self.formula(4, (order.kind(), "input"), words, change);
        }
        for half in Half::ALL {
            let words = format!(
                "{} of the input are those of the token before",
                half.words()
            );
            let change = on(move |l| l.inputs(|x| x.values = half.late(&x.values)));
            self.formula(4, (Kind::Neighbour, "input"), words, change);
        }
        for order in ChannelOrder::heads(k) {
            let words = format!("the input's {}", order.words());
            let change = on(move |l| l.inputs(|x| x.values = order.of(&x.values)));
            self.formula(4, (order.kind(), "input"), words, change);
        }
        let words = "the input has the other sign";
        self.formula(
            5,
            (Kind::Sign, "input"),
            words,
            on(|l| l.inputs(|x| x.values.mapv_inplace(|v| -v))),
        );
        if own.meet != Meet::Real {
            self.formula(
                5,
                (Kind::Format, "input"),
                "input codes are read as unsigned",
                on(|l| {
                    l.inputs(|x| {
                        x.values.mapv_inplace(unsigned);
                    });
                }),
            );
            self.formula(
                5,
                (Kind::Format, "weight"),
                "the weight's codes are read as unsigned",
                on(|l| l.weights(|w| w.mapv_inplace(unsigned))),
            );
            for bits in [1u8, 2, 4] {
                let words = format!("the weight's codes are shifted right by {bits} bits");
                let by = f32::from(1u8 << bits);
                let change = on(move |l| {
                    l.weights(|w| w.mapv_inplace(|v| (v / by).floor()));
                });
                self.formula(6, (Kind::Factor, "weight"), words, change);
            }
            for (mask, bits) in [(1u8, 1), (3, 2), (15, 4)] {
                let words = format!("the low {bits} bits of the input codes are lost");
                self.formula(
                    6,
                    (Kind::Width, "input"),
                    words,
                    on(move |l| {
                        l.inputs(|x| x.values.mapv_inplace(|v| stuck(v, mask, false)));
                    }),
                );
                let words = format!("the low {bits} bits of the weight's codes are lost");
                self.formula(
                    6,
                    (Kind::Width, "weight"),
                    words,
                    on(move |l| {
                        l.weights(|w| w.mapv_inplace(|v| stuck(v, mask, false)));
                    }),
                );
            }
            self.narrow_codes();
            self.own_scales(own);
            self.lanes();
        }
        self.formula(
            4,
            (Kind::LeftOut, "weight scale"),
            "the weight's scale is left out",
            on(|l| {
                l.w_scales.fill(1.0);
            }),
        );
        self.formula(
            4,
            (Kind::Twice, "weight scale"),
            "the weight's scale is applied twice",
            on(|l| {
                l.w_scales.iter_mut().for_each(|s| *s *= *s);
            }),
        );
        self.formula(
            4,
            (Kind::LeftOut, "input scale"),
            "the input's scale is left out",
            on(|l| {
                l.x.scale = 1.0;
            }),
        );
        self.formula(
            4,
            (Kind::Twice, "input scale"),
            "the input's scale is applied twice",
            on(|l| {
                l.x.scale *= l.x.scale;
            }),
        );
        let ends = [8usize, 16, 32, 64, 128].map(|to| k.next_multiple_of(to));
        let mut ends: Vec<usize> = ends.into_iter().chain([k + 1, k + 2, k + 4]).collect();
        ends.sort_unstable();
        ends.dedup();
        for to in ends.into_iter().filter(|to| *to > k) {
            let words = format!("sums run on over {to} inputs, beyond the ends of the rows of {k}");
            let change = on(move |l| l.run_on(to));
            self.formula(4, (Kind::Neighbour, "sum"), words, change);
        }
        self.uncleared(own);
        self.tiles(own);
        self.formats(own);
        self.begins_elsewhere(k);
        self.other_inputs(k);
        if let (Step::DtProj, Some(scene)) = (self.row.step, self.scene) {
            self.early_bias(scene, own);
        }
    }

    /// Registers that still hold the sum before.
    fn uncleared(&mut self, own: &Linear) {
        if own.meet == Meet::Real {
            return;
        }
        let n = own.w.nrows();
        let mut kinds: Vec<(Uncleared, String)> = Vec::new();
        for tile in [2usize, 4, 8, 16, 32, 64, 128, 256, usize::MAX] {
            let each = match tile {
                usize::MAX => String::new(),
                _ => format!(" but before each {tile}th"),
            };
            if tile < n || tile == usize::MAX {
                let words = format!("sums are not cleared from output to output{each}");
                kinds.push((Uncleared::Outputs(1, tile), words));
            }
            let words = format!("sums are not cleared from token to token{each}");
            kinds.push((Uncleared::Tokens(tile), words));
        }
        for back in [2usize, 4, 8, 16, 32, 64, 128]
            .into_iter()
            .filter(|back| *back < n)
        {
            let words = format!("sums are not cleared from {back} outputs to the next {back}");
            kinds.push((Uncleared::Outputs(back, usize::MAX), words));
        }
        for (uncleared, words) in kinds {
            for all in [false, true] {
                let words = match all {
                    true => words.clone(),
                    false => format!("{words}; each holds the one before alone"),
                };
                let change = on(move |l| l.uncleared = Some((uncleared, all)));
                self.formula(3, (Kind::NotReset, "sum"), words, change);
            }
        }
    }

    /// Tiles in other places, or turned.
    fn tiles(&mut self, own: &Linear) {
        let (n, k) = own.w.dim();
        for tile in [2usize, 4, 8, 16, 32, 64, 128] {
            if n.is_multiple_of(tile) && k.is_multiple_of(tile) {
                let words = format!("each {tile}×{tile} tile of the weight is transposed");
                let change = on(move |l| {
                    l.weights(|w| {
                        let turned = |(r, c): (usize, usize)| {
                            w[(r / tile * tile + c % tile, c / tile * tile + r % tile)]
                        };
                        *w = Array2::from_shape_fn(w.dim(), turned);
                    });
                });
                self.formula(5, (Kind::Order, "weight"), words, change);
            }
            // A buffer that is not filled again: the last tile of K is an earlier one.
            for (from, which) in [
                (0, "first"),
                ((k / tile).saturating_sub(2) * tile, "one before"),
            ] {
                if k < 2 * tile || !k.is_multiple_of(tile) || from > 0 && k == 2 * tile {
                    continue;
                }
                let words = format!("the last {tile} inputs are the {which} {tile}");
                let change = on(move |l| {
                    l.inputs(|x| {
                        let earlier = x.values.slice(s![.., from..from + tile]).to_owned();
                        let last = x.values.ncols() - tile;
                        x.values.slice_mut(s![.., last..]).assign(&earlier);
                    });
                });
                self.formula(5, (Kind::Neighbour, "input"), words, change);
            }
        }
    }

    /// The input from other columns of the tensor that it is a part of.
    fn begins_elsewhere(&mut self, k: usize) {
        let Some(scene) = self.scene else { return };
        let Some(whole) = self
            .row
            .reads
            .first()
            .and_then(|read| whole_of(scene, read))
        else {
            return;
        };
        for by in BEGINS {
            let Some(values) = begins(&whole, by, k) else {
                continue;
            };
            let words = format!("the input begins {by:+} columns on");
            let change = on(move |l| l.inputs(|x| replace(&mut x.values, &values)));
            self.formula(4, (Kind::Neighbour, "input"), words, change);
        }
    }

    /// Inputs that are not summed, or twice.
    fn part(&mut self, rank: usize, range: std::ops::Range<usize>, inputs: String) {
        for (times, kind, rank) in [(0.0, Kind::PartMissing, rank), (2.0, Kind::Twice, rank + 1)] {
            let words = match times {
                0.0 => format!("{inputs} are not summed"),
                _ => format!("{inputs} are summed twice"),
            };
            let range = range.clone();
            let change = on(move |l| l.part(range.clone(), times));
            self.formula(rank, (kind, "sum"), words, change);
        }
    }

    fn other_weights(&mut self, own: &Linear) {
        for (i, (layer, scene)) in self.other_layers().into_iter().enumerate() {
            let found = crate::diagnosis::diagnose::formula::linear_weight(scene, layer, self.row);
            let Some(w) = found.filter(|w| w.codes.dim() == own.w.dim()) else {
                continue;
            };
            let (codes, scales) = (Arc::new(w.codes), w.scales);
            let rank = if i < 2 { 1 } else { 2 };
            let words = format!("the weight is that of block {layer}, at its own scale");
            let (both, kept) = ((Arc::clone(&codes), scales.clone()), codes);
            self.formula(
                rank,
                (Kind::Neighbour, "weight"),
                words,
                on(move |l| {
                    l.w = Arc::clone(&both.0);
                    l.w_scales.clone_from(&both.1);
                    l.sums = None;
                }),
            );
            let words = format!("the weight's codes are those of block {layer}");
            self.formula(
                rank,
                (Kind::Neighbour, "weight"),
                words,
                on(move |l| {
                    l.w = Arc::clone(&kept);
                    l.sums = None;
                }),
            );
            let words = format!("the weight's scale is that of block {layer}");
            self.formula(
                rank,
                (Kind::Neighbour, "weight scale"),
                words,
                on(move |l| {
                    l.w_scales.clone_from(&scales);
                }),
            );
        }
        let words = "each output has the weight of the next one";
        self.formula(
            4,
            (Kind::Neighbour, "weight"),
            words,
            on(|l| {
                l.weights(|w| {
                    let n = w.nrows();
                    *w = Array2::from_shape_fn(w.dim(), |(r, k)| w[((r + 1) % n, k)]);
                });
            }),
        );
    }

    /// Other tensors of the block in the place of the input.
    fn other_inputs(&mut self, k: usize) {
        let own = self.row.reads.first().and_then(|read| read.point());
        let Some(scene) = self.scene else { return };
        let config = scene.path.config();
        let mut others: Vec<(String, Array2<f32>)> = Vec::new();
        for (point, tensor) in scene.seen {
            if point.is_state() || point.is_scale() || !matches!(tensor, Tensor::I8(_)) {
                continue;
            }
            let all = numbers(tensor);
            let parts: &[Columns] = match point.parts() {
                [] => &[Columns::All],
                parts => parts,
            };
            for part in parts {
                let range = part.range(config, all.ncols());
                let same =
                    Some(*point) == own && (self.row.step != Step::DtProj || *part == Columns::Dt);
                if range.len() < k || same || *point >= self.row.point {
                    continue;
                }
                let name = match part {
                    Columns::All => point.name().to_owned(),
                    part => format!("{} of {}", part.name(), point.name()),
                };
                let range = range.start..range.start + k;
                others.push((name, all.slice(s![.., range]).to_owned()));
            }
        }
        for (name, values) in others {
            let words = format!("the input is {name}");
            self.formula(
                3,
                (Kind::Neighbour, "input"),
                words,
                on(move |l| {
                    l.inputs(|x| replace(&mut x.values, &values));
                }),
            );
        }
    }

    /// The bias of dt, which belongs to the scan.
    fn early_bias(&mut self, scene: &BlockInputs, own: &Linear) {
        let (_, _, bias) = scene.path.scan_weight(scene.layer).tensors();
        if bias.codes.len() != own.w.nrows() {
            return;
        }
        let unit = match own.meet {
            Meet::Real => 1.0,
            _ => own.x.scale * own.w_scales[0],
        };
        let scale = bias.scale.get();
        let bias: Vec<f32> = bias
            .codes
            .iter()
            .map(|b| scale * f32::from(*b) / unit)
            .collect();
        self.formula(
            3,
            (Kind::Twice, "dt_bias"),
            "the bias of dt is already added here",
            on(move |l| {
                l.bias.clone_from(&bias);
            }),
        );
    }
}
