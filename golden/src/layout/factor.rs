//! Is the result the reference times a constant?

use super::{Layout, MIN_MISMATCHED, RELATIVE, RecognisedLayout, Side};
use crate::value::Elements;

/// Squared correlation, means removed, that a factor needs.
const MIN_R2: f64 = 0.95;
/// Share of elements that must fit.
const MIN_SHARE: f64 = 0.9;
/// Factors closer to 1 than this are rounding, not scaling: of floats, of codes.
const NEAR_ONE: (f64, f64) = (4.0 * RELATIVE, 0.02);

/// One side as real values.
struct Reals<'a> {
    elements: Elements<'a>,
    step: f64,
}

impl Reals<'_> {
    fn get(&self, at: usize) -> f64 {
        self.step * self.elements.get(at)
    }

    /// Half a step of the grid; nothing for floats.
    fn half_step(&self) -> f64 {
        if self.is_codes() {
            0.5 * self.step
        } else {
            0.0
        }
    }

    fn is_codes(&self) -> bool {
        matches!(self.elements, Elements::I8(_))
    }

    /// Whether an element is a code at the grid's edge: it may stand for anything beyond.
    fn clipped(&self, at: usize) -> bool {
        match self.elements {
            Elements::I8(codes) => matches!(codes[at], i8::MIN | i8::MAX),
            _ => false,
        }
    }
}

pub(super) fn detect(expected: Side<'_>, found: Side<'_>, before: f64) -> Option<RecognisedLayout> {
    let both = expected.scale.zip(found.scale);
    let codes = |side: &Side<'_>| matches!(side.elements, Elements::I8(_));
    let steps = match (codes(&expected), codes(&found)) {
        (true, true) => both.map_or((1.0, 1.0), |(x, y)| (x.get().into(), y.get().into())),
        (true, false) => (expected.scale.map_or(1.0, |s| s.get().into()), 1.0),
        (false, true) => (1.0, found.scale.map_or(1.0, |s| s.get().into())),
        (false, false) => (1.0, 1.0),
    };
    let x = Reals {
        elements: expected.elements,
        step: steps.0,
    };
    let y = Reals {
        elements: found.elements,
        step: steps.1,
    };
    let count = x.elements.len();
    let usable: Vec<usize> = (0..count)
        .filter(|at| !x.clipped(*at) && !y.clipped(*at))
        .collect();
    if usable.len() < MIN_MISMATCHED || usable.len() < count / 4 {
        return None;
    }
    let n = usable.len() as f64;
    let (mut sx, mut sy, mut sxx, mut syy, mut sxy) = (0.0, 0.0, 0.0, 0.0, 0.0);
    for at in usable {
        let (x, y) = (x.get(at), y.get(at));
        sx += x;
        sy += y;
        sxx += x * x;
        syy += y * y;
        sxy += x * y;
    }
    // Means removed, or every constant tensor would be a multiple of every other.
    let (vx, vy, cov) = (sxx - sx * sx / n, syy - sy * sy / n, sxy - sx * sy / n);
    let factor = sxy / sxx;
    let varied = vx > 1e-6 * sxx && vy > 1e-6 * syy;
    let near_one = if x.is_codes() || y.is_codes() {
        NEAR_ONE.1
    } else {
        NEAR_ONE.0
    };
    let linear = cov * cov >= MIN_R2 * vx * vy;
    // NaN anywhere fails these comparisons.
    if !(varied && linear && (factor - 1.0).abs() > near_one && factor != 0.0) {
        return None;
    }
    let slack = 1.001 * (y.half_step() + factor.abs() * x.half_step());
    let fits = |at: usize| {
        let (predicted, y_value) = (factor * x.get(at), y.get(at));
        let relative = 2.0 * RELATIVE * predicted.abs();
        let beyond = y.clipped(at)
            && predicted.abs() >= y_value.abs() - slack
            && predicted.signum() == y_value.signum();
        (predicted - y_value).abs() <= slack + relative || x.clipped(at) || beyond
    };
    let explains = (0..count).filter(|at| fits(*at)).count() as f64 / count as f64;
    (explains >= MIN_SHARE).then_some(RecognisedLayout {
        layout: Layout::Factor { factor },
        explains,
        before,
    })
}
