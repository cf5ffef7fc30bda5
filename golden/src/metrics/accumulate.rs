//! One pass over two tensors that yields every metric.

use super::{METRICS, Metric, Metrics, Reading};
use crate::ulp::{ulp_f16, ulp_f32};
use crate::value::Elements;
use half::f16;
use scalescope_sim::error::{Result, SimError};
use scalescope_sim::quant::Scale;

/// Collects metrics over several pieces of one tensor (the sequences of a batch). Sums are in f64.
#[derive(Clone, Debug)]
pub struct Accumulator {
    expected_scale: Option<Scale>,
    found_scale: Option<Scale>,
    types: Option<(&'static str, &'static str)>,
    compared: usize,
    mismatched: usize,
    non_finite: usize,
    lanes: Lanes,
    saturated: usize,
    used: [bool; 256],
    atol: Option<f64>,
    beyond: usize,
    first: Option<usize>,
}

/// A pair of elements: real values, whether they differ, and how far in ulp.
struct Pair {
    x: f64,
    y: f64,
    differ: bool,
    ulp: Option<u64>,
}

impl Pair {
    #[inline(always)]
    fn is_finite(&self) -> bool {
        self.x.is_finite() && self.y.is_finite()
    }

    /// A finite f32 beyond binary16 has no neighbour there: as far as it gets.
    #[inline(always)]
    fn ulp(&self) -> u64 {
        self.ulp.unwrap_or(u64::from(u16::MAX))
    }
}

/// Sums are taken in so many lanes, which need not wait for each other: an element's lane follows from its number among all
/// pieces, so that pieces give what the whole gives.
const LANES: usize = 8;

/// Sums and maxima over finite pairs.
#[derive(Clone, Debug, Default)]
struct Lanes {
    error: [f64; LANES],
    error2: [f64; LANES],
    x2: [f64; LANES],
    y2: [f64; LANES],
    xy: [f64; LANES],
    max_error: [f64; LANES],
    max_x: [f64; LANES],
    ulp: [u64; LANES],
}

impl Lanes {
    /// Adds a pair to a lane.
    #[inline(always)]
    fn add(&mut self, i: usize, pair: &Pair) {
        let larger = |a: f64, b: f64| if a > b { a } else { b };
        let Pair { x, y, .. } = *pair;
        let error = y - x;
        self.error[i] += error;
        self.error2[i] += error * error;
        self.x2[i] += x * x;
        self.y2[i] += y * y;
        self.xy[i] += x * y;
        self.max_error[i] = larger(self.max_error[i], error.abs());
        self.max_x[i] = larger(self.max_x[i], x.abs());
        self.ulp[i] = self.ulp[i].max(pair.ulp());
    }

    /// Adds those of other pieces.
    fn merge(&mut self, other: &Self) {
        for i in 0..LANES {
            self.error[i] += other.error[i];
            self.error2[i] += other.error2[i];
            self.x2[i] += other.x2[i];
            self.y2[i] += other.y2[i];
            self.xy[i] += other.xy[i];
            self.max_error[i] = self.max_error[i].max(other.max_error[i]);
            self.max_x[i] = self.max_x[i].max(other.max_x[i]);
            self.ulp[i] = self.ulp[i].max(other.ulp[i]);
        }
    }
}

fn sum(lanes: [f64; LANES]) -> f64 {
    lanes.iter().sum()
}

fn largest(lanes: [f64; LANES]) -> f64 {
    lanes.into_iter().fold(0.0, f64::max)
}

impl Accumulator {
    /// Starts with the scales of codes, if known. Unless both are, two tensors of codes are
    /// compared as integers.
    pub fn new(expected: Option<Scale>, found: Option<Scale>) -> Self {
        Self {
            expected_scale: expected,
            found_scale: found,
            types: None,
            compared: 0,
            mismatched: 0,
            non_finite: 0,
            lanes: Lanes::default(),
            saturated: 0,
            used: [false; 256],
            atol: None,
            beyond: 0,
            first: None,
        }
    }

    /// Forgives differences up to this much, in steps of the grid between two tensors of codes.
    /// [`Accumulator::beyond`] tells what is left; the metrics stay those of the whole tensor.
    #[must_use]
    pub fn forgiving(self, atol: Option<f64>) -> Self {
        Self { atol, ..self }
    }

    /// Elements that differ by more than is forgiven; NaN and infinity always do.
    pub fn beyond(&self) -> usize {
        self.beyond
    }

    /// The first of those, counted over all pieces.
    pub fn first(&self) -> Option<usize> {
        self.first
    }

    /// Adds a piece: x and y, element for element. Pieces have the types of the first one.
    pub fn add(&mut self, expected: Elements<'_>, found: Elements<'_>) -> Result<()> {
        if expected.len() != found.len() {
            return Err(SimError::value(
                "elements to compare",
                expected.len(),
                found.len(),
            ));
        }
        let types = (expected.dtype(), found.dtype());
        if *self.types.get_or_insert(types) != types {
            return Err(SimError::value(
                "types",
                "those of the first piece",
                format_args!("{types:?}"),
            ));
        }
        let (sx, sy) = self.steps()?;
        match (expected, found) {
            (Elements::I8(x), Elements::I8(y)) => self.each(x, y, |x, y| {
                // On one grid the codes decide, in exact steps; on two the values.
                match sx == sy {
                    true => Pair {
                        x: sx * f64::from(x),
                        y: sy * f64::from(y),
                        differ: x != y,
                        ulp: None,
                    },
                    false => reals(real(sx, x), real(sy, y)),
                }
            }),
            (Elements::F32(x), Elements::F32(y)) => self.each(x, y, |x, y| Pair {
                x: f64::from(x),
                y: f64::from(y),
                differ: x.to_bits() != y.to_bits(),
                ulp: ulp_f32(x, y),
            }),
            (Elements::F16(x), Elements::F16(y)) => self.each(x, y, |x, y| Pair {
                x: f64::from(x),
                y: f64::from(y),
                differ: x.to_bits() != y.to_bits(),
                ulp: ulp_f16(x, y),
            }),
            (Elements::F16(x), Elements::F32(y)) => self.each(x, y, |x, y| Pair {
                x: f64::from(x),
                y: f64::from(y),
                differ: x.to_f32().to_bits() != y.to_bits(),
                ulp: ulp_f16(x, f16::from_f32(y)),
            }),
            (Elements::F32(x), Elements::F16(y)) => self.each(x, y, |x, y| Pair {
                x: f64::from(x),
                y: f64::from(y),
                differ: x.to_bits() != y.to_f32().to_bits(),
                ulp: ulp_f16(f16::from_f32(x), y),
            }),
            (Elements::I8(x), Elements::F16(y)) => {
                self.each(x, y, |x, y| reals(real(sx, x), f64::from(y)))
            }
            (Elements::I8(x), Elements::F32(y)) => {
                self.each(x, y, |x, y| reals(real(sx, x), f64::from(y)))
            }
            (Elements::F16(x), Elements::I8(y)) => {
                self.each(x, y, |x, y| reals(f64::from(x), real(sy, y)))
            }
            (Elements::F32(x), Elements::I8(y)) => {
                self.each(x, y, |x, y| reals(f64::from(x), real(sy, y)))
            }
        }
        if let Elements::I8(y) = found {
            for code in y {
                self.saturated += usize::from(matches!(*code, i8::MIN | i8::MAX));
                self.used[usize::from(*code as u8)] = true;
            }
        }
        Ok(())
    }

    /// Adds what another collected, of other pieces of the same tensor.
    pub fn merge(&mut self, other: Self) -> Result<()> {
        if let Some(types) = other.types
            && *self.types.get_or_insert(types) != types
        {
            return Err(SimError::value(
                "types",
                "those of the first piece",
                format_args!("{types:?}"),
            ));
        }
        self.first = (self.first).or(other.first.map(|at| self.compared + at));
        self.compared += other.compared;
        self.mismatched += other.mismatched;
        self.non_finite += other.non_finite;
        self.beyond += other.beyond;
        self.lanes.merge(&other.lanes);
        self.saturated += other.saturated;
        for (used, too) in self.used.iter_mut().zip(other.used) {
            *used |= too;
        }
        Ok(())
    }

    /// Real value of one step of each side; 1 for floats, and for codes without scales.
    fn steps(&self) -> Result<(f64, f64)> {
        let of = |scale: Option<Scale>| scale.map(|s| f64::from(s.get()));
        let missing = |side: &str| {
            SimError::value(
                format_args!("scale of the {side} codes"),
                "a scale, to compare codes with floats",
                "none",
            )
        };
        let (x, y) = (of(self.expected_scale), of(self.found_scale));
        match self.types.expect("set by the first piece") {
            ("i8", "i8") => Ok(x.zip(y).unwrap_or((1.0, 1.0))),
            ("i8", _) => Ok((x.ok_or_else(|| missing("expected"))?, 1.0)),
            (_, "i8") => Ok((1.0, y.ok_or_else(|| missing("found"))?)),
            _ => Ok((1.0, 1.0)),
        }
    }

    /// What is forgiven, in the units of x and y.
    fn allowed(&self) -> Option<f64> {
        let step = match (self.types, self.found_scale) {
            (Some(("i8", "i8")), Some(scale)) if self.expected_scale.is_some() => {
                f64::from(scale.get())
            }
            _ => 1.0,
        };
        self.atol.map(|atol| atol * step)
    }

    #[inline(always)]
    fn each<X: Copy, Y: Copy>(&mut self, x: &[X], y: &[Y], pair: impl Fn(X, Y) -> Pair) {
        let allowed = self.allowed();
        // Up to the first lane, then all lanes at once.
        let head = (self.compared.next_multiple_of(LANES) - self.compared).min(x.len());
        let ((x, next_x), (y, next_y)) = (x.split_at(head), y.split_at(head));
        let (parts, rest) = next_x.as_chunks::<LANES>();
        let (other_parts, other_rest) = next_y.as_chunks::<LANES>();
        for (x, y) in x.iter().zip(y) {
            self.one(&pair(*x, *y), allowed);
        }
        let mut lanes = std::mem::take(&mut self.lanes);
        for (x, y) in parts.iter().zip(other_parts) {
            let pairs: [Pair; LANES] = std::array::from_fn(|i| pair(x[i], y[i]));
            let finite = pairs.iter().all(Pair::is_finite);
            if finite {
                for (i, pair) in pairs.iter().enumerate() {
                    lanes.add(i, pair);
                }
            } else {
                for (i, pair) in pairs.iter().enumerate().filter(|(_, p)| p.is_finite()) {
                    lanes.add(i, pair);
                }
            }
            if !finite || pairs.iter().any(|p| p.differ) {
                self.count(&pairs, allowed);
            }
            self.compared += LANES;
        }
        self.lanes = lanes;
        for (x, y) in rest.iter().zip(other_rest) {
            self.one(&pair(*x, *y), allowed);
        }
    }

    /// Adds the next pair.
    #[inline(always)]
    fn one(&mut self, pair: &Pair, allowed: Option<f64>) {
        if pair.is_finite() {
            self.lanes.add(self.compared % LANES, pair);
        }
        self.count(std::slice::from_ref(pair), allowed);
        self.compared += 1;
    }

    /// Counts the next pairs that differ, and those beyond what is forgiven.
    fn count(&mut self, pairs: &[Pair], allowed: Option<f64>) {
        for (i, pair) in pairs.iter().enumerate() {
            let finite = pair.is_finite();
            let far = || allowed.is_none_or(|allowed| (pair.y - pair.x).abs() > allowed);
            if !finite || pair.differ && far() {
                self.beyond += 1;
                self.first.get_or_insert(self.compared + i);
            }
            self.non_finite += usize::from(!finite);
            self.mismatched += usize::from(!finite || pair.differ);
        }
    }

    /// Every metric; an error if nothing was compared.
    pub fn finish(self) -> Result<Metrics> {
        if self.compared == 0 {
            return Err(SimError::value(
                "comparison",
                "at least one element",
                "none",
            ));
        }
        let (sx, sy) = self.steps()?;
        let (x_type, y_type) = self.types.expect("set by the first piece");
        let codes = (x_type == "i8", y_type == "i8");
        // The grid that differences are counted on: the result's own, else the reference's.
        let step = if codes.1 { sy } else { sx };
        let n = self.compared as f64;
        let [error, error2, x2] = [self.lanes.error, self.lanes.error2, self.lanes.x2].map(sum);
        let [max_error, max_x] = [self.lanes.max_error, self.lanes.max_x].map(largest);
        let mse = error2 / n;
        let reading = |metric| match metric {
            Metric::MismatchRate => Reading::Value(self.mismatched as f64 / n),
            // These count codes, which are always finite.
            Metric::SaturationRate if codes.1 => Reading::Value(self.saturated as f64 / n),
            Metric::GridOccupancy if codes.1 => {
                Reading::Value(self.used.iter().filter(|used| **used).count() as f64 / 256.0)
            }
            Metric::SaturationRate | Metric::GridOccupancy => Reading::NotApplicable,
            Metric::MaxAbsLsb | Metric::RmseOverScale if !(codes.0 || codes.1) => {
                Reading::NotApplicable
            }
            Metric::ScaleRatio if !codes.1 => Reading::NotApplicable,
            Metric::UlpMax if codes.0 || codes.1 => Reading::NotApplicable,
            _ if self.non_finite > 0 => Reading::NonFinite,
            // A whole number between codes on one grid: 32 bits hold a code's value, so f64 errs nowhere.
            Metric::MaxAbsLsb => Reading::Value(max_error / step),
            Metric::MaxAbsError => Reading::Value(max_error),
            Metric::MeanError => Reading::Value(error / n),
            Metric::Mse => Reading::Value(mse),
            Metric::RmseOverScale => Reading::Value(mse.sqrt() / step),
            Metric::NormalizedL2 => Reading::Value(ratio(error2, x2).sqrt()),
            // 20 log10 of the norms is 10 log10 of their squares. No error at all: infinite.
            Metric::SqnrDb => Reading::Value(-10.0 * ratio(error2, x2).log10()),
            Metric::Cosine => Reading::Value(self.cosine()),
            Metric::UlpMax => Reading::Value(self.lanes.ulp.into_iter().fold(0, u64::max) as f64),
            Metric::ScaleRatio => Reading::Value(max_x / (127.0 * sy)),
        };
        let readings = METRICS.map(|row| reading(row.metric));
        Ok(Metrics {
            compared: self.compared,
            mismatched: self.mismatched,
            non_finite: self.non_finite,
            readings,
        })
    }

    fn cosine(&self) -> f64 {
        let [x2, y2, xy] = [self.lanes.x2, self.lanes.y2, self.lanes.xy].map(sum);
        match (x2 == 0.0, y2 == 0.0) {
            (true, true) => 1.0,
            (true, false) | (false, true) => 0.0,
            // One root of the product: exactly 1 for y = x. Squares of f32 fit f64 by far.
            _ => (xy / (x2 * y2).sqrt()).clamp(-1.0, 1.0),
        }
    }
}

/// A pair compared by value, of unlike types.
fn reals(x: f64, y: f64) -> Pair {
    Pair {
        x,
        y,
        differ: x != y,
        ulp: None,
    }
}

/// The real value of a code, rounded to f32 as every step dequantizes: a tensor dequantized in FP32
/// equals its codes.
fn real(step: f64, code: i8) -> f64 {
    f64::from(step as f32 * f32::from(code))
}

/// error / signal, with 0/0 = 0: no error is no error.
fn ratio(error: f64, signal: f64) -> f64 {
    if error == 0.0 { 0.0 } else { error / signal }
}
