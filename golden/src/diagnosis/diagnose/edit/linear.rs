//! Edits of a product with a weight matrix.

use super::result::{Narrowed, stuck, unsigned};
use super::{
    BEGINS, COUNTERS, ChannelOrder, Edits, Half, begins, counted, halves, moves, replace, reversed,
    turned, whole_of,
};
use crate::diagnosis::diagnose::formula::{
    BlockInputs, Blocks, Formula, Linear, Meet, Narrow, numbers,
};
use crate::diagnosis::diagnose::kind::Kind;
use ndarray::{Array2, s};
use rayon::prelude::*;
use scalescope_sim::arith::accumulate::{AccOverflow, Accumulator};
use scalescope_sim::dataflow::{Columns, Step};
use scalescope_sim::trace::Tensor;
use std::sync::Arc;

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

/// A buffer of the other shape, read as this one.
fn reread(w: &Array2<f32>) -> Array2<f32> {
    let (n, k) = w.dim();
    let t: Vec<f32> = w.t().iter().copied().collect();
    Array2::from_shape_vec((n, k), t).expect("as many elements")
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
                        l.operands(|_, _, inputs| {
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
                    l.operands(|x, _, _| x.values = halves(&x.values));
                }),
            );
        }
        self.formula(
            3,
            (Kind::Order, "inputs"),
            "inputs meet the weight in reverse",
            on(|l| {
                l.operands(|x, _, _| x.values = reversed(&x.values));
            }),
        );
        self.formula(
            4,
            (Kind::Order, "weight"),
            "the weight's buffer is read transposed",
            on(|l| {
                l.operands(|_, w, _| *w = reread(w));
            }),
        );
        for by in moves([1, -1, 2, -2, 3, 4]) {
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
                    l.operands(|x, _, _| x.values = turned(&x.values, by));
                }),
            );
            for zero in [1.0f32, 2.0, 3.0, 4.0, 8.0, 128.0].map(|zero| zero * by as f32) {
                let words = format!("the input has a zero point of {zero}");
                self.formula(
                    5,
                    (Kind::ZeroPoint, "input"),
                    words,
                    on(move |l| {
                        l.operands(|x, _, _| x.values += zero);
                    }),
                );
            }
            let words = format!("the weight has a zero point of {by}");
            self.formula(
                5,
                (Kind::ZeroPoint, "weight"),
                words,
                on(move |l| {
                    l.operands(|_, w, _| *w += by as f32);
                }),
            );
        }
        for below in COUNTERS {
            let words =
                format!("the input's tokens are counted below {below} and then from 0 again");
            let change = on(move |l| l.operands(|x, _, _| x.values = counted(&x.values, below)));
            self.formula(4, (Kind::Neighbour, "input"), words, change);
        }
        for half in Half::ALL {
            let words = format!(
                "{} of the input are those of the token before",
                half.words()
            );
            let change = on(move |l| l.operands(|x, _, _| x.values = half.late(&x.values)));
            self.formula(4, (Kind::Neighbour, "input"), words, change);
        }
        for order in ChannelOrder::heads(k) {
            let words = format!("the input's {}", order.words());
            let change = on(move |l| l.operands(|x, _, _| x.values = order.of(&x.values)));
            self.formula(4, (order.kind(), "input"), words, change);
        }
        let words = "the input has the other sign";
        self.formula(
            5,
            (Kind::Sign, "input"),
            words,
            on(|l| l.operands(|x, _, _| x.values.mapv_inplace(|v| -v))),
        );
        if own.meet != Meet::Real {
            self.formula(
                5,
                (Kind::Format, "input"),
                "input codes are read as unsigned",
                on(|l| {
                    l.operands(|x, _, _| {
                        x.values.mapv_inplace(unsigned);
                    });
                }),
            );
            self.formula(
                5,
                (Kind::Format, "weight"),
                "the weight's codes are read as unsigned",
                on(|l| l.operands(|_, w, _| w.mapv_inplace(unsigned))),
            );
            for bits in [1u8, 2, 4] {
                let words = format!("the weight's codes are shifted right by {bits} bits");
                let by = f32::from(1u8 << bits);
                let change = on(move |l| {
                    l.operands(|_, w, _| w.mapv_inplace(|v| (v / by).floor()));
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
                        l.operands(|x, _, _| x.values.mapv_inplace(|v| stuck(v, mask, false)));
                    }),
                );
                let words = format!("the low {bits} bits of the weight's codes are lost");
                self.formula(
                    6,
                    (Kind::Width, "weight"),
                    words,
                    on(move |l| {
                        l.operands(|_, w, _| w.mapv_inplace(|v| stuck(v, mask, false)));
                    }),
                );
            }
            self.narrow_codes();
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
        self.tiles(own);
        self.formats(own);
        self.begins_elsewhere(k);
        self.other_inputs(k);
        if let (Step::DtProj, Some(scene)) = (self.row.step, self.scene) {
            self.early_bias(scene, own);
        }
    }

    /// Tiles in other places, or turned.
    fn tiles(&mut self, own: &Linear) {
        let (n, k) = own.w.dim();
        for tile in [2usize, 4, 8, 16, 32, 64, 128] {
            if n.is_multiple_of(tile) && k.is_multiple_of(tile) {
                let words = format!("each {tile}×{tile} tile of the weight is transposed");
                let change = on(move |l| {
                    l.operands(|_, w, _| {
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
                    l.operands(|x, _, _| {
                        let earlier = x.values.slice(s![.., from..from + tile]).to_owned();
                        let last = x.values.ncols() - tile;
                        x.values.slice_mut(s![.., last..]).assign(&earlier);
                    });
                });
                self.formula(5, (Kind::Neighbour, "input"), words, change);
            }
        }
    }

    /// Operands, and sums of reals, in a type of fewer bits.
    fn formats(&mut self, own: &Linear) {
        let real = own.meet == Meet::Real;
        for narrow in Narrow::FLOATS.into_iter().filter(|_| real) {
            let words = format!("each sum passes through {}", narrow.name());
            let change = on(move |l| l.running = Some(narrow));
            self.formula(5, (Kind::Format, "sum"), words, change);
        }
        for narrow in Narrow::FLOATS {
            // Codes are exact in 16 bits.
            if !real && !matches!(narrow, Narrow::E4m3 | Narrow::E5m2) {
                continue;
            }
            let words = |what: &str| format!("{what} through {}", narrow.name());
            let input = move |l: &mut Linear| {
                l.operands(|x, _, _| x.values.mapv_inplace(|v| narrow.of(v)));
            };
            // A weight of reals passes with its scale.
            let weight = move |l: &mut Linear| {
                let scales = match l.meet {
                    Meet::Real => std::mem::replace(&mut l.w_scales, vec![1.0]),
                    _ => vec![1.0],
                };
                l.operands(|_, w, _| {
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
            let change = on(move |l| l.operands(|x, _, _| replace(&mut x.values, &values)));
            self.formula(4, (Kind::Neighbour, "input"), words, change);
        }
    }

    /// Codes of inputs and weights that lack bits.
    fn narrow_codes(&mut self) {
        type Codes = (
            &'static str,
            &'static str,
            fn(&mut Linear, &dyn Fn(f32) -> f32),
        );
        let operands: [Codes; 2] = [
            ("input", "the input codes", |l, of| {
                l.operands(|x, _, _| x.values.mapv_inplace(of));
            }),
            ("weight", "the weight's codes", |l, of| {
                l.operands(|_, w, _| w.mapv_inplace(of));
            }),
        ];
        for (site, name, each) in operands {
            for narrowed in Narrowed::all().into_iter().filter(|n| n.is_of_codes()) {
                let words = narrowed.words(name);
                let change = on(move |l| each(l, &|v| narrowed.of(v)));
                self.formula(narrowed.rank(), (narrowed.kind(), site), words, change);
            }
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
                l.operands(|_, w, _| {
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
                    l.operands(|x, _, _| replace(&mut x.values, &values));
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

/// The formula of one output.
fn only(own: &Linear, channel: usize) -> Linear {
    let row = own.w.row(channel).to_owned().insert_axis(ndarray::Axis(0));
    let scale = own.w_scales[channel.min(own.w_scales.len() - 1)];
    Linear {
        w: Arc::new(row),
        w_scales: vec![scale],
        bias: own.bias.get(channel).map(|b| vec![*b]).unwrap_or_default(),
        sums: None,
        ..own.clone()
    }
}

/// Entries of an output's weight that differ, solved from what deviates in it: the input whose values follow the
/// deviations best, the code that leaves the fewest, and again with what is left. `differs` compares an element of
/// a dump with what is made.
pub fn solve_entries(
    own: &Linear,
    dumped: &[f32],
    channel: usize,
    differs: &dyn Fn(f32, f32) -> bool,
) -> Option<Vec<(usize, f32)>> {
    let mut row = only(own, channel);
    let mut found: Vec<(usize, f32)> = Vec::new();
    let unit = match row.output.quantizer.as_ref().filter(|q| !q.dequantized) {
        Some(q) => row.x.scale * row.w_scales[0] / q.scale,
        None => row.x.scale * row.w_scales[0],
    };
    // How many deviate, and how far they are off: of several entries, the right one may turn no code yet.
    let left = |row: &Linear| {
        let made = row.run();
        let pairs = made.iter().zip(dumped).filter(|(a, b)| differs(**a, **b));
        let off = pairs.map(|(a, b)| f64::from(a - b) * f64::from(a - b));
        off.fold((0usize, 0.0), |(n, sum), off| (n + 1, sum + off))
    };
    let (mut count, mut off) = left(&row);
    while count > 0 && found.len() < ENTRIES {
        let made = row.run();
        let of = |(made, dumped): (&f32, &f32)| f64::from(dumped - made) / f64::from(unit);
        let difference: Vec<f64> = made.iter().zip(dumped).map(of).collect();
        let mut gains: Vec<(f64, usize, f64)> = (0..row.times.len())
            .filter_map(|k| {
                let x = row.x.values.column(k);
                let pairs = x.iter().zip(&difference);
                let cross: f64 = pairs.map(|(x, d)| f64::from(*x) * d).sum();
                let size: f64 = x.iter().map(|x| f64::from(*x) * f64::from(*x)).sum();
                (size > 0.0).then(|| (cross * cross / size, k, cross / size))
            })
            .collect();
        gains.sort_by(|a, b| b.0.total_cmp(&a.0));
        gains.truncate(NEAREST);
        let mut best: Option<((usize, f64), u32, usize, f32)> = None;
        for (_, k, by) in gains {
            let before = row.w[(0, k)];
            // Coarse codes of outputs tell the difference only roughly.
            let about = |after: &f32| f64::from((after - before).abs()) <= 2.0 * by.abs() + 4.0;
            for after in (-128..=127).map(|code: i32| code as f32).filter(about) {
                let mut tried = row.clone();
                tried.operands(|_, w, _| w[(0, k)] = after);
                let bits = (before as i8 as u8 ^ after as i8 as u8).count_ones();
                let now = left(&tried);
                let better = best.is_none_or(|((_, off), fewest, ..)| {
                    now.1 < off || now.1 == off && bits < fewest
                });
                if better {
                    best = Some((now, bits, k, after));
                }
            }
        }
        let (now, _, k, after) = best.filter(|b| b.0.1 < off)?;
        row.operands(|_, w, _| w[(0, k)] = after);
        found.retain(|(other, _)| *other != k);
        found.push((k, after));
        (count, off) = now;
    }
    // More entries than these.
    (count == 0 || found.len() < ENTRIES)
        .then_some(found)
        .filter(|found| !found.is_empty())
}

/// Entries of one output's weight that are solved at most.
const ENTRIES: usize = 4;
/// Inputs of which each may be the one.
const NEAREST: usize = 6;

/// The edit of some entries of an output's weight.
pub fn entries<'a>(
    scene: Option<&'a BlockInputs<'a, '_>>,
    row: &'a scalescope_sim::dataflow::Row,
    own: &Linear,
    channel: usize,
    found: &[(usize, f32)],
) -> super::Edit {
    let mut edits = Edits::new(scene, row, own.w.nrows());
    let words: Vec<String> = found
        .iter()
        .map(|(k, after)| {
            let before = own.w[(channel, *k)];
            let bits = (before as i8 as u8) ^ (*after as i8 as u8);
            let bit = match bits.count_ones() {
                1 => format!(", bit {}", bits.trailing_zeros()),
                _ => String::new(),
            };
            format!("the weight of output {channel} and input {k} is {after} and not {before}{bit}")
        })
        .collect();
    let found = found.to_vec();
    edits.formula(
        6,
        (Kind::Weights, "weight"),
        words.join(", "),
        on(move |l| {
            l.operands(|_, w, _| {
                for (k, after) in &found {
                    w[(channel, *k)] = *after;
                }
            });
        }),
    );
    edits.all.remove(0)
}

/// Runs of products in a narrow register, tried on the rows that deviate most: the best ones.
pub fn blocks<'a>(
    scene: Option<&'a BlockInputs<'a, '_>>,
    row: &'a scalescope_sim::dataflow::Row,
    own: &Linear,
    dumped: &Array2<f32>,
    differs: &(dyn Fn(f32, f32) -> bool + Sync),
) -> Vec<super::Edit> {
    if own.meet == Meet::Real || own.x.values.nrows() != dumped.nrows() {
        return Vec::new();
    }
    let made = own.run();
    let off = |t: usize| {
        let pairs = made.row(t).into_iter().zip(dumped.row(t));
        pairs.filter(|(a, b)| differs(**a, **b)).count()
    };
    let mut rows: Vec<usize> = (0..dumped.nrows()).collect();
    rows.sort_by_key(|t| std::cmp::Reverse(off(*t)));
    rows.truncate(ROWS);
    let base: usize = rows.iter().map(|t| off(*t)).sum();
    let (few, wanted) = (own.of_rows(&rows), dumped.select(ndarray::Axis(0), &rows));
    let mut all = Vec::new();
    for length in [2usize, 4, 8, 16, 32, 64, 128] {
        for bits in 10..=20 {
            for overflow in [AccOverflow::Saturate, AccOverflow::Wrap] {
                let register = Accumulator::new(bits, overflow).expect("8 to 64 bits");
                all.extend([true, false].map(|inside| Blocks {
                    length,
                    register,
                    inside,
                }));
            }
        }
    }
    let mut scored: Vec<(usize, Blocks)> = all
        .into_par_iter()
        .map(|blocks| {
            let tried = Linear {
                blocks: Some(blocks),
                ..few.clone()
            };
            let made = tried.run();
            let pairs = made.iter().zip(&wanted);
            (pairs.filter(|(a, b)| differs(**a, **b)).count(), blocks)
        })
        .collect();
    scored.retain(|(left, _)| 4 * left < base);
    scored.sort_by_key(|(left, blocks)| (*left, blocks.length));
    let mut edits = Edits::new(scene, row, own.w.nrows());
    for (_, blocks) in scored.into_iter().take(2) {
        let (bits, length) = (blocks.register.bits(), blocks.length);
        let overflow = match blocks.register.overflow() {
            AccOverflow::Saturate => "saturates",
            AccOverflow::Wrap | AccOverflow::Trap => "wraps",
        };
        let words = match blocks.inside {
            true => format!("each {length} products are summed in {bits} bits, which {overflow}"),
            false => {
                format!("sums of {length} products are added in {bits} bits, which {overflow}")
            }
        };
        let change = on(move |l| (l.blocks, l.sums) = (Some(blocks), None));
        edits.formula(5, (Kind::Width, "sum"), words, change);
    }
    edits.all
}

/// Rows on which registers are tried.
const ROWS: usize = 4;

/// How often each input goes in, solved from all that deviates: of sums that lack some, or have them twice or with
/// the other sign. `None` where that is not what they lack.
pub fn solve_times(own: &Linear, dumped: &Array2<f32>) -> Option<Vec<f32>> {
    let (l, k) = own.x.values.dim();
    if k > 1024 || own.x.rows.is_some() || own.w_scales.len() > 1 {
        return None;
    }
    let made = own.run();
    let (unit, ends) = match own.output.quantizer.as_ref() {
        Some(q) if q.dynamic.is_some() || q.dequantized => return None,
        Some(q) => (own.x.scale * own.w_scales[0] / q.scale, true),
        None => (own.x.scale * own.w_scales[0], false),
    };
    let ended = |v: f32| ends && v.abs() >= 127.0;
    let of = |(made, dumped): (&f32, &f32)| match ended(*made) || ended(*dumped) {
        true => 0.0,
        false => f64::from(dumped - made) / f64::from(unit),
    };
    let difference: Vec<f64> = made.iter().zip(dumped).map(of).collect();
    let difference = Array2::from_shape_vec((l, own.w.nrows()), difference).expect("as many");
    let (x, w) = (own.x.values.mapv(f64::from), own.w.mapv(f64::from));
    // (XᵀX ∘ WᵀW) m = diag(Xᵀ D W).
    let mut normal = x.t().dot(&x) * w.t().dot(&w);
    let right = (x.t().dot(&difference) * w.t()).sum_axis(ndarray::Axis(1));
    let ridge = 1e-9 * normal.diag().iter().copied().fold(0.0, f64::max);
    normal.diag_mut().iter_mut().for_each(|v| *v += ridge);
    let solved = solve(normal, right.to_vec())?;
    let times: Vec<f32> = solved.iter().map(|m| m.round() as f32).collect();
    let near = solved
        .iter()
        .zip(&times)
        .filter(|(m, t)| (**m - f64::from(**t)).abs() < 0.25);
    let others = times.iter().filter(|t| **t != 0.0).count();
    // All alike is a factor, and no part of the sum.
    let part = times.iter().any(|t| *t != times[0]);
    let small = part && times.iter().all(|t| (-2.0..=1.0).contains(t));
    // Inputs that are nearly always zero have no say.
    (near.count() * 20 >= 19 * k && others > 0 && small)
        .then(|| times.iter().map(|t| 1.0 + t).collect())
}

/// Solves a symmetric positive system (Cholesky).
fn solve(mut a: Array2<f64>, mut b: Vec<f64>) -> Option<Vec<f64>> {
    let n = b.len();
    for i in 0..n {
        for j in 0..=i {
            let sum = a.slice(s![i, ..j]).dot(&a.slice(s![j, ..j]));
            let v = a[(i, j)] - sum;
            if i == j {
                if v <= 0.0 {
                    return None;
                }
                a[(i, i)] = v.sqrt();
            } else {
                a[(i, j)] = v / a[(j, j)];
            }
        }
    }
    for i in 0..n {
        let sum: f64 = (0..i).map(|k| a[(i, k)] * b[k]).sum();
        b[i] = (b[i] - sum) / a[(i, i)];
    }
    for i in (0..n).rev() {
        let sum: f64 = (i + 1..n).map(|k| a[(k, i)] * b[k]).sum();
        b[i] = (b[i] - sum) / a[(i, i)];
    }
    Some(b)
}

/// The edits of how often inputs go in.
pub fn times<'a>(
    scene: Option<&'a BlockInputs<'a, '_>>,
    row: &'a scalescope_sim::dataflow::Row,
    own: &Linear,
    times: Vec<f32>,
) -> Vec<super::Edit> {
    let mut edits = Edits::new(scene, row, own.w.nrows());
    let changed: Vec<f32> = times.iter().copied().filter(|t| *t != 1.0).collect();
    let Some(first) = changed.first().copied() else {
        return Vec::new();
    };
    let of = times.len();
    let hit = times.iter().map(|t| *t != 1.0).collect::<Vec<_>>();
    let which = crate::diagnosis::diagnose::pattern::Indices::of_some(&hit);
    let which = which.words("input").unwrap_or("all inputs".to_owned());
    let same = changed.iter().all(|t| *t == first);
    let (kind, what) = match first {
        _ if !same => (
            Kind::PartMissing,
            "are not summed as often as they should be",
        ),
        0.0 => (Kind::PartMissing, "not summed"),
        2.0 => (Kind::Twice, "summed twice"),
        _ => (Kind::Sign, "summed with the other sign"),
    };
    let words = match same {
        true => format!("{which} of {of}: {what}"),
        false => format!("{which} of {of} {what}"),
    };
    let change = on(move |l| {
        l.operands(|_, _, own| own.clone_from(&times));
    });
    edits.formula(4, (kind, "sum"), words, change);
    edits.all
}
