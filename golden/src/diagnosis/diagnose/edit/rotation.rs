//! Edits of the rotation.

use super::{
    Around, Change, ChannelOrder, Edit, Edits, Half, OfFormula, OfResult, TokenOrder, halves,
    moves, reversed,
};
use crate::diagnosis::diagnose::formula::{BlockInputs, Formula, Hadamard, Narrow, Stride};
use crate::diagnosis::diagnose::kind::Kind;
use ndarray::{Array2, ArrayView1, s};
use scalescope_sim::dataflow::Row;
use std::sync::Arc;

fn on_hadamard(
    change: impl Fn(&mut Hadamard) + Send + Sync,
) -> impl Fn(&mut Formula, Around) + Send + Sync {
    move |formula, _| {
        if let Formula::Hadamard(step) = formula {
            change(step);
        }
    }
}

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

/// The outer factor of a rotation as a dump has it, solved from all outputs; `None` where its entries are not zero
/// and one magnitude.
pub fn factor<'a>(
    scene: Option<&'a BlockInputs<'a, '_>>,
    row: &'a Row,
    own: &Hadamard,
    dumped: &Array2<f32>,
) -> Option<Edit> {
    let (found, expected) = own.solved_factor(dumped)?;
    let base = found.nrows();
    let is_row = |row: ArrayView1<f32>| {
        let rows = || expected.rows().into_iter();
        rows().any(|other| other == row) || rows().any(|other| other.mapv(|v| -v) == row)
    };
    let (kind, what) = if found.iter().any(|v| *v == 0.0) {
        let used = found.row(0).iter().filter(|v| **v != 0.0).count();
        let what = format!("mixes {used} of {base} parts only");
        (Kind::PartMissing, what)
    } else if found == expected.t() {
        (Kind::Transposed, "is transposed".to_owned())
    } else if found.rows().into_iter().all(is_row) {
        let what = "has its rows in another order or with another sign";
        (Kind::Order, what.to_owned())
    } else {
        (Kind::Weights, "is another matrix of signs".to_owned())
    };
    let signs = |row: ArrayView1<f32>| -> String {
        let sign = |v: &f32| match v {
            v if *v > 0.0 => '+',
            v if *v < 0.0 => '-',
            _ => '0',
        };
        row.iter().map(sign).collect()
    };
    let rows = found.rows().into_iter().take(3).map(signs);
    let rows = rows.collect::<Vec<_>>().join(", ");
    let words = format!("the factor of {base} {what}; its rows are {rows}, …");
    let mut edits = Edits::new(scene, row, own.y.values.ncols());
    let found = Arc::new(found);
    let change = on_hadamard(move |h| h.factor = Some(Arc::clone(&found)));
    edits.formula(6, (kind, "stages"), words, change);
    edits.all.pop()
}

impl Edits<'_, '_> {
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
            // As a transform of the interleaved inputs, whose outputs may be interleaved back.
            let inputs = on_hadamard(move |h| {
                h.y.values = Array2::from_shape_fn(h.y.values.dim(), |(t, c)| {
                    h.y.values[(t, c % block * base + c / block)]
                });
            });
            let inputs: OfFormula = Arc::new(inputs);
            let outputs: OfResult = Arc::new(move |made| {
                made.out = Array2::from_shape_fn(made.out.dim(), |(t, c)| {
                    made.out[(t, c % base * block + c / base)]
                });
            });
            for (words, result) in [
                ("the input is interleaved by the two factors", Vec::new()),
                (
                    "the two factors of the transform are swapped",
                    vec![outputs],
                ),
            ] {
                let change = Change {
                    formula: vec![Arc::clone(&inputs)],
                    result,
                };
                self.push(2, Kind::Order, "stages", words, change);
            }
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
        for order in TokenOrder::all() {
            let words = format!("the input's {}", order.words());
            let change = on_hadamard(move |h| h.y.values = order.of(&h.y.values));
            self.formula(4, (order.kind(), "input"), words, change);
        }
        for stride in Stride::of_each(&own.y) {
            let words = stride.words("the input");
            let change = on_hadamard(move |h| stride.of_operand(&mut h.y));
            self.formula(3, (Kind::Order, "input"), words, change);
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
    }
}

/// The power of two next to a number, above or below.
fn power(of: f64, above: bool) -> f64 {
    let log = of.log2();
    (if above { log.ceil() } else { log.floor() }).exp2()
}
