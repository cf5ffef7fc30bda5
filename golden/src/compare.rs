//! Verdicts: is it equal, element for element, and was everything there?
//!
//! "Equal" is equality of bits, also for floats: +0 and −0 differ. Kernels and RTL hand their bits
//! on, and a sign lost at zero is a bug of theirs; a comparison by value (`torch.equal`) would hide
//! it. Such elements are counted in [`PointResult::signed_zeros`], so that a reader sees when they
//! are all there is. NaN and ∞ never pass, not even against themselves and under no tolerance.

mod difference;
mod summary;
#[cfg(test)]
mod tests;
mod tolerance;
mod traces;

pub use difference::{Comparison, Difference, LeftOut, OneTrace, TensorInfo};
pub use summary::{Summary, Verdict};
pub use tolerance::{Tolerance, Tolerances};
pub use traces::{CompareOptions, Source, compare_traces};

use crate::layout::detect;
use crate::metrics::serialize_number;
use crate::ulp::{ulp_f16, ulp_f32};
use crate::value::{Elements, Value};
use half::f16;
use scalescope_sim::error::{Result, SimError};
use scalescope_sim::trace::Place;
use serde::Serialize;

/// What was found at one point: counts, the largest differences, the first mismatch.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct PointResult {
    /// The decode step, if it is one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub step: Option<usize>,
    /// The block; `None` after the last one and for vectors of single operations.
    pub layer: Option<usize>,
    /// The point's name, or case and output of an operation (`case_0/out`).
    pub point: String,
    /// Elements compared.
    pub compared: usize,
    /// Elements that differ by more than the tolerance.
    pub mismatched: usize,
    /// Elements within the tolerance that are not identical.
    pub within_tolerance: usize,
    /// Elements with NaN or ∞ on either side; they are mismatches too.
    pub non_finite: usize,
    /// Elements that differ only in the sign of zero.
    pub signed_zeros: usize,
    /// Largest difference of codes; `None` for floats.
    pub max_abs_lsb: Option<u32>,
    /// Largest distance of floats, in binary16 if either side is or the tolerance says so; `None`
    /// for codes.
    pub ulp_max: Option<u64>,
    /// Largest difference of values; codes count in steps.
    #[serde(serialize_with = "serialize_number")]
    pub max_abs_error: f64,
    /// What was allowed.
    pub tolerance: Tolerance,
    /// The first mismatch.
    pub first: Option<Mismatch>,
}

/// An element that differs.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Mismatch {
    /// Its index: sequence, row, column for traces.
    pub index: Vec<usize>,
    /// The reference.
    #[serde(serialize_with = "serialize_number")]
    pub expected: f64,
    /// The result.
    #[serde(serialize_with = "serialize_number")]
    pub found: f64,
}

/// One element pair, judged.
#[derive(Clone, Copy)]
struct ElementPair {
    identical: bool,
    accepted: bool,
    ulp: Option<u64>,
    x: f64,
    y: f64,
}

impl PointResult {
    /// An empty result for a point of a trace.
    pub fn new(place: Place, tolerance: Tolerance) -> Self {
        Self {
            layer: place.layer,
            ..Self::named(place.point.name(), tolerance)
        }
    }

    /// An empty result under any name.
    pub fn named(point: impl Into<String>, tolerance: Tolerance) -> Self {
        Self {
            step: None,
            layer: None,
            point: point.into(),
            compared: 0,
            mismatched: 0,
            within_tolerance: 0,
            non_finite: 0,
            signed_zeros: 0,
            max_abs_lsb: None,
            ulp_max: None,
            max_abs_error: 0.0,
            tolerance,
            first: None,
        }
    }

    /// The point as tables show it: `step_3/layer_07/conv_out`.
    pub fn key(&self) -> String {
        let mut key = self
            .step
            .map_or(String::new(), |step| format!("step_{step}/"));
        if let Some(layer) = self.layer {
            key += &format!("layer_{layer:02}/");
        }
        key + &self.point
    }

    /// Compares one sequence's tensor.
    pub fn add_value(&mut self, sequence: usize, expected: &Value, found: &Value) -> Result<()> {
        if expected.dim() != found.dim() {
            let layout = detect((expected, None), (found, None), &[]);
            let hint = layout.first().map_or(String::new(), |l| format!(", {l}"));
            let found = format!("{}{hint}", found.describe());
            return Err(SimError::value(self.key(), expected.describe(), found));
        }
        let (rows, columns) = expected.dim();
        self.add(
            &[sequence],
            &[rows, columns],
            expected.elements(),
            found.elements(),
        )
    }

    /// Compares arrays of one shape. `prefix` goes before the element's index in messages.
    ///
    /// Codes are compared with codes, and floats with floats: of two float types as the reals they are.
    pub fn add(
        &mut self,
        prefix: &[usize],
        shape: &[usize],
        expected: Elements<'_>,
        found: Elements<'_>,
    ) -> Result<()> {
        let count: usize = shape.iter().product();
        for (side, elements) in [("reference", expected), ("result", found)] {
            if elements.len() != count {
                return Err(SimError::value(
                    format_args!("{}, {side}", self.key()),
                    format_args!("{count} elements, shape {shape:?}"),
                    elements.len(),
                ));
            }
        }
        let rule = self.tolerance;
        let at = (prefix, shape);
        match (expected, found) {
            (Elements::I8(x), Elements::I8(y)) => {
                let widest = x
                    .iter()
                    .zip(y)
                    .map(|(x, y)| u32::from(x.abs_diff(*y)))
                    .max();
                self.max_abs_lsb = self.max_abs_lsb.max(widest);
                self.each(at, x, y, |x, y| {
                    let (a, b) = (f64::from(x), f64::from(y));
                    ElementPair {
                        identical: x == y,
                        accepted: x == y || rule.accepts(a, b, None),
                        ulp: None,
                        x: a,
                        y: b,
                    }
                });
            }
            (Elements::F32(x), Elements::F32(y)) if rule == Tolerance::LogitsF16 => {
                self.each(at, x, y, |x, y| {
                    let ulp = ulp_f16(f16::from_f32(x), f16::from_f32(y));
                    floats(rule, x.to_bits() == y.to_bits(), x.into(), y.into(), ulp)
                });
            }
            (Elements::F32(x), Elements::F32(y)) => self.each(at, x, y, |x, y| {
                floats(
                    rule,
                    x.to_bits() == y.to_bits(),
                    x.into(),
                    y.into(),
                    ulp_f32(x, y),
                )
            }),
            (Elements::F16(x), Elements::F16(y)) => self.each(at, x, y, |x, y| {
                floats(
                    rule,
                    x.to_bits() == y.to_bits(),
                    x.into(),
                    y.into(),
                    ulp_f16(x, y),
                )
            }),
            (Elements::F16(x), Elements::F32(y)) => self.each(at, x, y, |x, y| {
                let identical = x.to_f32().to_bits() == y.to_bits();
                floats(
                    rule,
                    identical,
                    x.into(),
                    y.into(),
                    ulp_f16(x, f16::from_f32(y)),
                )
            }),
            (Elements::F32(x), Elements::F16(y)) => self.each(at, x, y, |x, y| {
                let identical = x.to_bits() == y.to_f32().to_bits();
                floats(
                    rule,
                    identical,
                    x.into(),
                    y.into(),
                    ulp_f16(f16::from_f32(x), y),
                )
            }),
            _ => {
                return Err(SimError::value(self.key(), expected.dtype(), found.dtype()));
            }
        }
        Ok(())
    }

    #[inline(always)]
    fn each<X: Copy, Y: Copy>(
        &mut self,
        (prefix, shape): (&[usize], &[usize]),
        x: &[X],
        y: &[Y],
        judge: impl Fn(X, Y) -> ElementPair,
    ) {
        self.compared += x.len();
        for (at, (x, y)) in x.iter().zip(y).enumerate() {
            let judged = judge(*x, *y);
            let finite = judged.x.is_finite() && judged.y.is_finite();
            if let (Some(ulp), true) = (judged.ulp, finite) {
                self.ulp_max = self.ulp_max.max(Some(ulp));
            }
            if judged.identical && finite {
                continue;
            }
            let error = (judged.y - judged.x).abs();
            self.max_abs_error = self.max_abs_error.max(error);
            self.non_finite += usize::from(!finite);
            self.signed_zeros += usize::from(judged.x == 0.0 && judged.y == 0.0);
            if judged.accepted && finite {
                self.within_tolerance += 1;
                continue;
            }
            self.mismatched += 1;
            if self.first.is_none() {
                self.first = Some(Mismatch {
                    index: unravel(prefix, shape, at),
                    expected: judged.x,
                    found: judged.y,
                });
            }
        }
    }
}

fn floats(rule: Tolerance, identical: bool, x: f64, y: f64, ulp: Option<u64>) -> ElementPair {
    ElementPair {
        identical,
        accepted: identical || rule.accepts(x, y, ulp),
        ulp: ulp.or(Some(u64::from(u16::MAX))),
        x,
        y,
    }
}

/// The index of an element of a row-major array.
fn unravel(prefix: &[usize], shape: &[usize], mut at: usize) -> Vec<usize> {
    let mut index = vec![0; shape.len()];
    for (axis, length) in shape.iter().enumerate().rev() {
        index[axis] = at % length;
        at /= length;
    }
    [prefix, &index].concat()
}
