//! Edits of the residual stream and its norm.

use super::{Around, ChannelOrder, Edit, Edits, TokenOrder, moves, replace};
use crate::diagnosis::diagnose::formula::{
    Add, BlockInputs, Formula, Measured, Narrow, Norm, Output, Sample, numbers,
};
use crate::diagnosis::diagnose::kind::Kind;
use ndarray::Array2;
use scalescope_sim::dataflow::Row;
use scalescope_sim::trace::TracePoint;
use std::sync::Arc;

fn on_add(change: impl Fn(&mut Add) + Send + Sync) -> impl Fn(&mut Formula, Around) + Send + Sync {
    move |formula, _| {
        if let Formula::Add(step) = formula {
            change(step);
        }
    }
}

fn on_norm(
    change: impl Fn(&mut Norm) + Send + Sync,
) -> impl Fn(&mut Formula, Around) + Send + Sync {
    move |formula, _| {
        if let Formula::Norm(step) = formula {
            change(step);
        }
    }
}

/// The factor that stores most of some numbers as they are in a dump: of codes, the middle of the range that most of
/// them allow.
fn fitted(samples: &[(f64, f32)], step: Option<f32>) -> Option<f64> {
    let mut ends: Vec<(f64, i32)> = Vec::new();
    for (v, stored) in samples.iter().filter(|(v, _)| v.abs() > 1e-9) {
        let half = match step {
            Some(_) if stored.abs() >= 127.0 => continue,
            Some(_) => 0.5,
            None => 1e-6 * f64::from(stored.abs()),
        };
        let unit = f64::from(step.unwrap_or(1.0));
        let at = |by: f64| unit * (f64::from(*stored) + by) / v;
        ends.extend([(at(-half).min(at(half)), 1), (at(-half).max(at(half)), -1)]);
    }
    ends.sort_by(|a, b| a.0.total_cmp(&b.0));
    let (mut inside, mut most, mut best) = (0, 0, None);
    for pair in ends.windows(2) {
        inside += pair[0].1;
        if inside > most {
            (most, best) = (inside, Some(0.5 * (pair[0].0 + pair[1].0)));
        }
    }
    best
}

/// Tokens that it takes to solve the weight of a channel from codes.
const TOKENS: usize = 16;

/// The norm's weight as a dump has it, solved channel by channel; `None` of few tokens.
pub fn weights<'a>(
    scene: Option<&'a BlockInputs<'a, '_>>,
    row: &'a Row,
    own: &Norm,
    dumped: &Array2<f32>,
) -> Option<Edit> {
    let step = match &own.output.quantizer {
        Some(q) if q.dynamic.is_some() || q.dequantized => return None,
        quantizer => quantizer.as_ref().map(|q| q.scale),
    };
    let plain = Norm {
        weight: vec![1.0; own.weight.len()],
        output: Output::real(false),
        ..own.clone()
    };
    let normed = plain.run();
    if normed.dim() != dumped.dim() || normed.nrows() < TOKENS {
        return None;
    }
    let of = |c: usize| {
        let pairs = normed.column(c).into_iter().zip(dumped.column(c));
        let samples: Vec<(f64, f32)> = pairs.map(|(v, q)| (f64::from(*v), *q)).collect();
        fitted(&samples, step).map_or(0.0, |w| w as f32)
    };
    let weight: Vec<f32> = (0..own.weight.len()).map(of).collect();
    let some: Vec<String> = (weight.iter().zip(&own.weight))
        .take(3)
        .map(|(found, own)| format!("{found:.3} for {own:.3}"))
        .collect();
    let words = format!("the norm's weight is another: {}, …", some.join(", "));
    let mut edits = Edits::new(scene, row, weight.len());
    let change = on_norm(move |n| {
        if n.weight.len() == weight.len() {
            n.weight.clone_from(&weight);
        }
    });
    edits.formula(8, (Kind::Weights, "weight"), words, change);
    edits.all.pop()
}

/// The root's inverse as a function of the mean square, solved token by token; each token has many channels that tell
/// it. Of each sequence its formula and what a dump has.
pub fn root<'a>(
    scene: Option<&'a BlockInputs<'a, '_>>,
    row: &'a Row,
    sequences: &[(&Norm, &Array2<f32>)],
) -> Option<Edit> {
    let mut samples = Vec::new();
    for (own, dumped) in sequences {
        let step = match &own.output.quantizer {
            Some(q) if q.dynamic.is_some() || q.dequantized => return None,
            quantizer => quantizer.as_ref().map(|q| q.scale),
        };
        if own.weight.len() < TOKENS {
            return None;
        }
        for ((values, dumped), mean) in (own.residual.values.rows().into_iter())
            .zip(dumped.rows())
            .zip(own.mean_squares())
        {
            let weighted = values.iter().zip(&own.weight);
            let weighted = weighted.map(|(v, w)| f64::from(*v) * f64::from(*w));
            let found: Vec<(f64, f32)> = weighted.zip(dumped.iter().copied()).collect();
            samples.push(Sample {
                at: mean as f32,
                value: fitted(&found, step)? as f32,
                weight: 1.0,
            });
        }
    }
    let found = Measured::of_places(samples)?;
    let words = format!(
        "the root's inverse is another function of the mean square: {}",
        found.over(|mean| 1.0 / mean.sqrt())
    );
    let found = Arc::new(found);
    let mut edits = Edits::new(scene, row, 0);
    let change = on_norm(move |n| n.measured = Some(Arc::clone(&found)));
    edits.formula(8, (Kind::Function, "root"), words, change);
    edits.all.pop()
}

impl Edits<'_, '_> {
    pub(super) fn of_add(&mut self) {
        self.formula(
            1,
            (Kind::LeftOut, "residual"),
            "the residual is missing",
            on_add(|a| {
                a.residual_times = 0.0;
            }),
        );
        self.formula(
            1,
            (Kind::LeftOut, "hidden"),
            "the block before's output is missing",
            on_add(|a| {
                a.hidden_times = 0.0;
            }),
        );
        self.formula(
            1,
            (Kind::Twice, "residual"),
            "the residual is added twice",
            on_add(|a| {
                a.residual_times = 2.0;
            }),
        );
        self.formula(
            1,
            (Kind::Twice, "hidden"),
            "the block before's output is added twice",
            on_add(|a| {
                a.hidden_times = 2.0;
            }),
        );
        for factor in [0.5f32, 0.25, 4.0, std::f32::consts::FRAC_1_SQRT_2] {
            let words = format!("the residual is multiplied by {factor:.4}");
            let change = on_add(move |a| a.residual_times = factor);
            self.formula(4, (Kind::Factor, "residual"), words, change);
            let words = format!("the block before's output is multiplied by {factor:.4}");
            let change = on_add(move |a| a.hidden_times = factor);
            self.formula(4, (Kind::Factor, "hidden"), words, change);
        }
        self.formula(
            2,
            (Kind::Sign, "hidden"),
            "the block before's output is subtracted",
            on_add(|a| {
                a.hidden_times = -1.0;
            }),
        );
        self.formula(
            2,
            (Kind::Sign, "residual"),
            "the residual is subtracted",
            on_add(|a| {
                a.residual_times = -1.0;
            }),
        );
        for by in moves([1, -1]) {
            let words = format!("the residual is that {}", by.words());
            self.formula(
                3,
                (Kind::Neighbour, "residual"),
                words,
                on_add(move |a| {
                    if let Some(r) = &mut a.residual {
                        r.values = by.of(&r.values);
                    }
                }),
            );
            let words = format!("the block before's output is that {}", by.words());
            self.formula(
                3,
                (Kind::Neighbour, "hidden"),
                words,
                on_add(move |a| {
                    a.hidden.values = by.of(&a.hidden.values);
                }),
            );
        }
        for order in TokenOrder::all() {
            let words = format!("the residual's {}", order.words());
            let change = on_add(move |a| {
                if let Some(r) = &mut a.residual {
                    r.values = order.of(&r.values);
                }
            });
            self.formula(4, (order.kind(), "residual"), words, change);
            let words = format!("the block before's output's {}", order.words());
            let change = on_add(move |a| a.hidden.values = order.of(&a.hidden.values));
            self.formula(4, (order.kind(), "hidden"), words, change);
        }
        for order in ChannelOrder::heads(self.width) {
            let words = format!("the residual's {}", order.words());
            let change = on_add(move |a| {
                if let Some(r) = &mut a.residual {
                    r.values = order.of(&r.values);
                }
            });
            self.formula(4, (order.kind(), "residual"), words, change);
            let words = format!("the block before's output's {}", order.words());
            let change = on_add(move |a| a.hidden.values = order.of(&a.hidden.values));
            self.formula(4, (order.kind(), "hidden"), words, change);
        }
        for narrow in [Narrow::F16, Narrow::Bf16] {
            let words = format!("the residual passes through {}", narrow.name());
            self.formula(
                3,
                (Kind::Format, "residual"),
                words,
                on_add(move |a| {
                    if let Some(r) = &mut a.residual {
                        r.values.mapv_inplace(|v| narrow.of(v));
                    }
                }),
            );
        }
    }

    pub(super) fn of_norm(&mut self, own: &Norm) {
        for order in ChannelOrder::heads(own.weight.len()) {
            let words = format!("the norm's weight's {}", order.words());
            let change = on_norm(move |n| n.weight = order.of_vector(&n.weight));
            self.formula(4, (order.kind(), "weight"), words, change);
        }
        let powers = (-12..=-1).map(|power| 10f64.powi(power));
        let others = powers.flat_map(|power| [1.0, 2.0, 5.0].map(|by| by * power));
        for eps in [0.0].into_iter().chain(others) {
            if (eps - own.eps).abs() > 1e-3 * eps.max(own.eps) {
                let words = format!("ε is {eps:e} and not {:e}", own.eps);
                self.formula(
                    3,
                    (Kind::Constant, "eps"),
                    words,
                    on_norm(move |n| n.eps = eps),
                );
            }
        }
        self.formula(
            3,
            (Kind::Order, "eps"),
            "ε is added to the root",
            on_norm(|n| n.eps_outside = true),
        );
        self.formula(
            2,
            (Kind::Function, "norm"),
            "the mean is subtracted first, as in LayerNorm",
            on_norm(|n| {
                n.centred = true;
            }),
        );
        self.formula(
            1,
            (Kind::LeftOut, "weight"),
            "the norm's weight is missing",
            on_norm(|n| n.weight.fill(1.0)),
        );
        self.formula(
            2,
            (Kind::Twice, "weight"),
            "the norm's weight is applied twice",
            on_norm(|n| {
                n.weight.iter_mut().for_each(|w| *w *= *w);
            }),
        );
        self.formula(
            2,
            (Kind::Constant, "weight"),
            "one is added to the norm's weight",
            on_norm(|n| {
                n.weight.iter_mut().for_each(|w| *w += 1.0);
            }),
        );
        self.formula(
            1,
            (Kind::LeftOut, "norm"),
            "rows are not divided by their root mean square",
            on_norm(|n| {
                n.normalizes = false;
            }),
        );
        self.formula(
            2,
            (Kind::Function, "norm"),
            "rows are divided by their mean square, without the root",
            on_norm(|n| n.rooted = false),
        );
        let count = own.weight.len();
        let m = count as f64;
        // Every part at either end, of long rows every few.
        for part in (1..count).step_by((count / 192).max(1)) {
            let ends = [("first", 0..part), ("last", count - part..count)];
            for ((end, range), whole) in ends
                .into_iter()
                .flat_map(|e| [false, true].map(|w| (e.clone(), w)))
            {
                let by = if whole { "all" } else { "these" };
                let words = format!(
                    "the mean is that of the squares of the {end} {part} of {count} over {by}"
                );
                let change = on_norm(move |n| {
                    n.squares = range.clone();
                    n.mean_of = if whole { 1.0 } else { m / part as f64 };
                });
                let rank = if part.is_multiple_of(16) { 3 } else { 4 };
                self.formula(rank, (Kind::PartMissing, "mean"), words, change);
            }
        }
        self.formula(
            2,
            (Kind::Constant, "mean"),
            "squares are summed, with no mean",
            on_norm(move |n| n.mean_of = m),
        );
        self.formula(
            4,
            (Kind::Constant, "mean"),
            "squares are divided by M − 1",
            on_norm(move |n| {
                n.mean_of = m / (m - 1.0);
            }),
        );
        for power in [m.log2().floor().exp2(), m.log2().ceil().exp2()] {
            if power != m {
                let words = format!("squares are divided by {power} and not by {m}");
                self.formula(
                    3,
                    (Kind::Constant, "mean"),
                    words,
                    on_norm(move |n| n.mean_of = m / power),
                );
            }
        }
        self.formula(
            3,
            (Kind::Function, "norm"),
            "rows are divided by their mean magnitude",
            on_norm(|n| n.magnitudes = true),
        );
        self.formula(
            3,
            (Kind::NotReset, "mean"),
            "the sum of squares goes on from token to token",
            on_norm(|n| n.goes_on = true),
        );
        for size in [8usize, 16, 24, 32, 48, 64, 96, 128, 256]
            .into_iter()
            .filter(|s| *s < count)
        {
            for together in [true, false] {
                let which = match together {
                    true => format!("each {size} channels"),
                    false => format!("the channels of each of {size} lanes"),
                };
                let words = format!("{which} have a root of their own");
                let change = on_norm(move |n| n.groups = Some((size, together)));
                self.formula(4, (Kind::PartMissing, "mean"), words, change);
            }
        }
        for step in [2usize, 3, 4, 8, 16, 32, 64] {
            for first in (0..step).take(2).chain([step - 1]) {
                for whole in [false, true] {
                    let by = if whole { "all" } else { "these" };
                    let words = format!(
                        "the mean is that of the squares of every {step}th channel from {first} on over {by}"
                    );
                    let change = on_norm(move |n| {
                        n.every = Some((step, first));
                        n.mean_of = if whole { 1.0 } else { step as f64 };
                    });
                    self.formula(4, (Kind::PartMissing, "mean"), words, change);
                }
            }
        }
        for shared in [2usize, 4, 8, 16, 32] {
            let words = format!("every {shared} tokens share the root of the first");
            let change = on_norm(move |n| n.shared = shared);
            self.formula(3, (Kind::Neighbour, "norm"), words, change);
        }
        for steps in [0usize, 1] {
            let words = match steps {
                0 => "the root is guessed from the float's bits".to_owned(),
                _ => "the root is guessed from the float's bits, with one Newton step".to_owned(),
            };
            let change = on_norm(move |n| n.guessed = Some(steps));
            self.formula(3, (Kind::Function, "norm"), words, change);
        }
        for narrow in [Narrow::F16, Narrow::Bf16] {
            let words = format!("the root's inverse passes through {}", narrow.name());
            self.formula(
                4,
                (Kind::Format, "rstd"),
                words,
                on_norm(move |n| n.rstd = Some(narrow)),
            );
            let words = format!("the residual stream is read through {}", narrow.name());
            self.formula(
                4,
                (Kind::Format, "residual"),
                words,
                on_norm(move |n| {
                    n.residual.values.mapv_inplace(|v| narrow.of(v));
                }),
            );
        }
        for (layer, scene) in self.other_layers() {
            let weight = scene.path.norm_weight(layer).to_vec();
            if weight != own.weight {
                let words = format!("the norm's weight is that of block {layer}");
                self.formula(
                    2,
                    (Kind::Neighbour, "weight"),
                    words,
                    on_norm(move |n| n.weight.clone_from(&weight)),
                );
            }
        }
        for by in moves([1, -1]) {
            let words = format!("the input is that {}", by.words());
            self.formula(
                3,
                (Kind::Neighbour, "input"),
                words,
                on_norm(move |n| {
                    n.residual.values = by.of(&n.residual.values);
                }),
            );
        }
        for (point, left_out) in [
            (TracePoint::HiddenIn, "residual"),
            (TracePoint::ResidualIn, "hidden"),
        ] {
            if let Some(tensor) = self.seen(point) {
                let values = numbers(tensor);
                let words = format!("{} is normed and not the sum", point.name());
                self.formula(
                    2,
                    (Kind::LeftOut, left_out),
                    words,
                    on_norm(move |n| {
                        replace(&mut n.residual.values, &values);
                    }),
                );
            }
        }
    }
}
