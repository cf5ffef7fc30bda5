//! Edits of a product whose numbers are solved from what deviates: entries of the weight, how often inputs go in,
//! the registers of sums.

use super::on;
use crate::diagnosis::diagnose::edit::codes::stuck;
use crate::diagnosis::diagnose::edit::{Edit, Edits};
use crate::diagnosis::diagnose::formula::{
    BlockInputs, Blocks, Linear, Meet, Narrow, Register, solve,
};
use crate::diagnosis::diagnose::kind::Kind;
use crate::diagnosis::diagnose::rule::QuantizerPart;
use ndarray::Array2;
use rayon::prelude::*;
use scalescope_sim::arith::accumulate::{AccOverflow, Accumulator};
use scalescope_sim::arith::round::Rounding;
use scalescope_sim::dataflow::Row;
use std::sync::Arc;

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
                tried.weights(|w| w[(0, k)] = after);
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
        row.weights(|w| w[(0, k)] = after);
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
    row: &'a Row,
    own: &Linear,
    channel: usize,
    found: &[(usize, f32)],
) -> Edit {
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
            l.weights(|w| {
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
    row: &'a Row,
    own: &Linear,
    dumped: &Array2<f32>,
    differs: &(dyn Fn(f32, f32) -> bool + Sync),
) -> Vec<Edit> {
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
    for length in [1usize, 2, 4, 8, 16, 32, 64, 128, 256, own.w.ncols()] {
        let floats = [Narrow::F16, Narrow::Bf16, Narrow::F16Cut, Narrow::Bf16Cut];
        all.extend(floats.map(|narrow| Blocks {
            length,
            register: Register::Float(narrow),
            inside: false,
        }));
        let rules = [
            Rounding::Floor,
            Rounding::TowardZero,
            Rounding::NearestTiesUp,
        ];
        for (bits, by) in (1..=10).flat_map(|bits| rules.map(|by| (bits, by))) {
            let places = [true, false].into_iter();
            let places = places.filter(|inside| *inside || length < own.w.ncols());
            all.extend(places.map(|inside| Blocks {
                length,
                register: Register::Cut(bits, by),
                inside,
            }));
        }
        if length == 1 || length > 128 {
            continue;
        }
        for bits in 10..=20 {
            for overflow in [AccOverflow::Saturate, AccOverflow::Wrap] {
                let register = Accumulator::new(bits, overflow).expect("8 to 64 bits");
                let register = Register::Integer(register);
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
        let length = blocks.length;
        let (kind, words) = match blocks.register {
            Register::Float(narrow) => {
                let name = narrow.name();
                let words = match length < own.w.ncols() {
                    true => format!("the sum passes through {name} after each {length} products"),
                    false => format!("the sum passes through {name} before it meets its scales"),
                };
                (Kind::Format, words)
            }
            Register::Cut(bits, by) => {
                let by = QuantizerPart::Rounding(by);
                let words = match (length < own.w.ncols(), blocks.inside) {
                    (false, _) => format!("the sum loses its low {bits} bits ({by})"),
                    (_, true) => {
                        format!("sums of {length} products lose their low {bits} bits ({by})")
                    }
                    (_, false) => format!(
                        "the sum loses its low {bits} bits after each {length} products ({by})"
                    ),
                };
                (Kind::Width, words)
            }
            Register::Integer(register) => {
                let bits = register.bits();
                let overflow = match register.overflow() {
                    AccOverflow::Saturate => "saturates",
                    AccOverflow::Wrap | AccOverflow::Trap => "wraps",
                };
                let words = match blocks.inside {
                    true => format!(
                        "each {length} products are summed in {bits} bits, which {overflow}"
                    ),
                    false => format!(
                        "sums of {length} products are added in {bits} bits, which {overflow}"
                    ),
                };
                (Kind::Width, words)
            }
        };
        let change = on(move |l| (l.blocks, l.sums) = (Some(blocks), None));
        edits.formula(5, (kind, "sum"), words, change);
    }
    edits.all
}

/// One stuck bit of one cell of a square of multipliers, that of every so many-th output from `first` on.
pub fn cells<'a>(
    scene: Option<&'a BlockInputs<'a, '_>>,
    row: &'a Row,
    own: &Linear,
    (size, first): (usize, usize),
) -> Vec<Edit> {
    let mut edits = Edits::new(scene, row, own.w.nrows());
    for (column, bit, set) in (0..size)
        .flat_map(|column| (0..8u8).map(move |bit| (column, bit)))
        .flat_map(|(column, bit)| [false, true].map(|set| (column, bit, set)))
    {
        let words = format!(
            "bit {bit} of the weight is stuck at {} in every {size}th output from {first} on and every {size}th input \
             from {column} on: one cell of {size} by {size}",
            u8::from(set)
        );
        let change = on(move |l| {
            l.weights(|w| {
                let all = w.indexed_iter_mut();
                let here = all.filter(|((n, k), _)| (n % size, k % size) == (first, column));
                here.for_each(|(_, v)| *v = stuck(*v, 1 << bit, set));
            });
        });
        edits.formula(6, (Kind::StuckBit, "weight"), words, change);
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

/// The edits of how often inputs go in.
pub fn times<'a>(
    scene: Option<&'a BlockInputs<'a, '_>>,
    row: &'a Row,
    own: &Linear,
    times: Vec<f32>,
) -> Vec<Edit> {
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
        l.times(|own| own.clone_from(&times));
    });
    edits.formula(4, (kind, "sum"), words, change);
    edits.all
}
