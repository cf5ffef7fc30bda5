//! Edits of the norm, the rotation and the quantizers between steps.

use super::{
    Around, COUNTERS, ChannelOrder, Edit, Edits, Half, counted, halves, moves, replace, reversed,
};
use crate::diagnosis::diagnose::formula::{
    Add, BlockInputs, Formula, Hadamard, Narrow, Norm, numbers,
};
use crate::diagnosis::diagnose::kind::Kind;
use ndarray::{Array2, s};
use scalescope_sim::dataflow::Row;
use scalescope_sim::trace::{Tensor, TracePoint};

macro_rules! on {
    ($variant:ident, $type:ty, $name:ident) => {
        fn $name(
            change: impl Fn(&mut $type) + Send + Sync,
        ) -> impl Fn(&mut Formula, Around) + Send + Sync {
            move |formula, _| {
                if let Formula::$variant(step) = formula {
                    change(step);
                }
            }
        }
    };
}

on!(Add, Add, on_add);
on!(Norm, Norm, on_norm);
on!(Hadamard, Hadamard, on_hadamard);

/// The signs of one row of the odd factor, that of a channel that deviates.
pub fn signs<'a>(
    scene: Option<&'a BlockInputs<'a, '_>>,
    row: &'a Row,
    own: &Hadamard,
    channel: usize,
) -> Vec<Edit> {
    let mut edits = Edits::new(scene, row, own.y.values.ncols());
    let Some(size) = own.size.filter(|size| size.base() > 1) else {
        return Vec::new();
    };
    let i = channel / (size.n() / size.base());
    for j in 0..size.base() {
        let words = format!(
            "entry ({i}, {j}) of the factor of {} has the other sign",
            size.base()
        );
        let change = on_hadamard(move |h| h.flipped = Some((i, j)));
        edits.formula(4, (Kind::Sign, "stages"), words, change);
    }
    edits.all
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
        for (words, range) in [
            ("the first half", 0..count / 2),
            ("the second half", count / 2..count),
            ("the first quarter", 0..count / 4),
            ("all but the last quarter", 0..count - count / 4),
        ] {
            for whole in [false, true] {
                let by = if whole { "all" } else { "these" };
                let words = format!("the mean is that of the squares of {words} over {by}");
                let length = range.len();
                let range = range.clone();
                let change = on_norm(move |n| {
                    n.squares = range.clone();
                    n.mean_of = if whole { 1.0 } else { m / length as f64 };
                });
                self.formula(3, (Kind::PartMissing, "mean"), words, change);
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

    pub(super) fn of_hadamard(&mut self, own: &Hadamard) {
        let Some(size) = own.size else { return };
        let stages = own.stages.len();
        for stage in 0..stages {
            let words = match stage + 1 == stages {
                true if size.base() > 1 => format!("the factor of {} is missing", size.base()),
                true => continue,
                false => format!("the butterflies of stride {} are missing", 1 << stage),
            };
            self.formula(
                1,
                (Kind::PartMissing, "stages"),
                words,
                on_hadamard(move |h| h.stages[stage] = false),
            );
        }
        for count in 2..stages {
            let kept = stages - count;
            for (missing, words) in [
                (
                    0..count,
                    format!("the first {count} of {stages} stages are missing"),
                ),
                (
                    kept..stages,
                    format!("the last {count} of {stages} stages are missing"),
                ),
            ] {
                let change = on_hadamard(move |h| h.stages[missing.clone()].fill(false));
                self.formula(2, (Kind::PartMissing, "stages"), words, change);
            }
        }
        self.formula(
            1,
            (Kind::LeftOut, "rotation"),
            "nothing is rotated",
            on_hadamard(move |h| {
                h.stages.fill(false);
                h.norm = 1.0 / size.norm();
            }),
        );
        for (norm, words) in [
            (1.0 / size.norm(), "the factor 1/√E is missing".to_owned()),
            (size.norm(), "the factor is 1/E and not 1/√E".to_owned()),
            (
                std::f64::consts::SQRT_2,
                "the factor is √2 times as large".to_owned(),
            ),
            (
                1.0 / std::f64::consts::SQRT_2,
                "the factor is √2 times as small".to_owned(),
            ),
            (
                power(size.norm(), true) / size.norm(),
                "the factor is the next power of two above 1/√E".to_owned(),
            ),
            (
                power(size.norm(), false) / size.norm(),
                "the factor is the next power of two below 1/√E".to_owned(),
            ),
        ] {
            self.formula(
                2,
                (Kind::Constant, "norm"),
                words,
                on_hadamard(move |h| h.norm = norm),
            );
        }
        self.formula(
            2,
            (Kind::Order, "input"),
            "inputs are in reverse",
            on_hadamard(|h| h.y.values = reversed(&h.y.values)),
        );
        let words = "the halves of the inputs are swapped";
        self.formula(
            2,
            (Kind::Order, "input"),
            words,
            on_hadamard(|h| h.y.values = halves(&h.y.values)),
        );
        let e = size.n();
        for order in ChannelOrder::heads(e) {
            let words = format!("the input's {}", order.words());
            let change = on_hadamard(move |h| h.y.values = order.of(&h.y.values));
            self.formula(4, (order.kind(), "input"), words, change);
        }
        for tile in [8usize, 16, 32, 64, 128, e / 2, e / 3, e / 4] {
            for first in (0..e).step_by(tile.max(1)) {
                let last = (first + tile).min(e);
                let words = format!("inputs {first} to {} are missing", last - 1);
                let change =
                    on_hadamard(move |h| h.y.values.slice_mut(s![.., first..last]).fill(0.0));
                self.formula(4, (Kind::PartMissing, "input"), words, change);
            }
        }
        for (first, name) in [(true, "first"), (false, "second")] {
            let words = format!("the {name} half of the inputs has the other sign");
            let change = on_hadamard(move |h| {
                let n = h.y.values.ncols();
                let half = if first { 0..n / 2 } else { n / 2..n };
                h.y.values.slice_mut(s![.., half]).mapv_inplace(|v| -v);
            });
            self.formula(3, (Kind::Sign, "input"), words, change);
        }
        let (base, block) = (size.base(), size.n() / size.base());
        if base > 1 {
            let words = "the two factors of the transform are swapped";
            self.formula(
                2,
                (Kind::Order, "stages"),
                words,
                on_hadamard(move |h| {
                    // As a transform of the interleaved inputs whose outputs are interleaved back.
                    h.y.values = Array2::from_shape_fn(h.y.values.dim(), |(t, c)| {
                        h.y.values[(t, c % block * base + c / block)]
                    });
                }),
            );
        }
        for by in moves([1, -1, 2, -2, 3, 4]) {
            let words = format!("the input is that {}", by.words());
            self.formula(
                3,
                (Kind::Neighbour, "input"),
                words,
                on_hadamard(move |h| {
                    h.y.values = by.of(&h.y.values);
                }),
            );
        }
        for half in Half::ALL {
            let words = format!(
                "{} of the input are those of the token before",
                half.words()
            );
            let change = on_hadamard(move |h| h.y.values = half.late(&h.y.values));
            self.formula(4, (Kind::Neighbour, "input"), words, change);
        }
        for below in COUNTERS {
            let words =
                format!("the input's tokens are counted below {below} and then from 0 again");
            let change = on_hadamard(move |h| h.y.values = counted(&h.y.values, below));
            self.formula(4, (Kind::Neighbour, "input"), words, change);
        }
        for narrow in [Narrow::Bf16, Narrow::F16] {
            let words = format!("the input passes through {}", narrow.name());
            self.formula(
                4,
                (Kind::Format, "input"),
                words,
                on_hadamard(move |h| {
                    h.y.values.mapv_inplace(|v| narrow.of(v));
                }),
            );
        }
        self.formula(
            3,
            (Kind::Order, "input"),
            "the input's buffer is read transposed",
            on_hadamard(|h| {
                let (l, e) = h.y.values.dim();
                let t: Vec<f32> = h.y.values.t().iter().copied().collect();
                h.y.values = Array2::from_shape_vec((l, e), t).expect("as many elements");
            }),
        );
    }

    pub(super) fn of_requantize(&mut self) {
        for by in moves([1, -1]) {
            let words = format!("the input is that {}", by.words());
            self.formula(3, (Kind::Neighbour, "input"), words, move |f, _| {
                if let Formula::Requantize(from, _) = f {
                    from.values = by.of(&from.values);
                }
            });
        }
        self.formula(
            4,
            (Kind::LeftOut, "input scale"),
            "the input's scale is left out",
            |f, _| {
                if let Formula::Requantize(from, _) = f {
                    from.scale = 1.0;
                }
            },
        );
        let Some(scene) = self.scene else { return };
        let e = scene.path.config().d_inner;
        for (point, tensor) in scene.seen {
            let own = self
                .row
                .reads
                .iter()
                .any(|read| read.point() == Some(*point));
            if own
                || *point >= self.row.point
                || point.is_state()
                || !matches!(tensor, Tensor::F32(_) | Tensor::F16(_))
            {
                continue;
            }
            let values = numbers(tensor);
            if values.ncols() == e && self.width == e {
                let words = format!("the input is {}", point.name());
                self.formula(3, (Kind::Neighbour, "input"), words, move |f, _| {
                    if let Formula::Requantize(from, _) = f {
                        replace(&mut from.values, &values);
                    }
                });
            }
        }
    }
}

/// The power of two next to a number, above or below.
fn power(of: f64, above: bool) -> f64 {
    let log = of.log2();
    (if above { log.ceil() } else { log.floor() }).exp2()
}
