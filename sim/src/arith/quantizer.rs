//! Quantizers of one tensor with more than one grid, as data: segments of |v|, each with a step, a range of
//! codes and an offset, and a rule for what lies beyond. All lengths are in units of the tensor's scale s.
//! Source: `docs/modes.md`.
//!
//! | file | what it has |
//! |---|---|
//! | `quantizer` | the data, and the value and code of a number |
//! | `quantizer/built_in` | the published quantizers |
//! | `quantizer/table` | a quantizer in TOML, and which ones are refused |

mod built_in;
mod table;

pub use built_in::{
    FOUND_SCALE, GRID, HALF_STEPS_EVEN, INT8_EVEN, KEEP, KEEP_EVEN, LOG_TAIL, QUANTIZERS,
    QUARTER_STEPS, SECOND_SCALE_EVEN, THREE_SEGMENTS,
};
pub use table::QuantizerTable;

use super::requant::{AbsmaxDivision, By, Divisor, Quotient};
use super::round::Rounding;
use super::saturate::{SEGMENTS, Status};
use crate::isa::{Kernel, dispatch};
use rayon::prelude::*;
use serde::{Deserialize, Serialize};
use std::borrow::Cow;

/// A quantizer by its name alone, as tables of modes show it.
pub(crate) fn by_name<S: serde::Serializer>(
    quantizer: &Option<Quantizer>,
    serializer: S,
) -> Result<S::Ok, S::Error> {
    match quantizer {
        Some(quantizer) => serializer.serialize_str(&quantizer.name),
        None => serializer.serialize_none(),
    }
}

/// A quantizer. It gives real numbers that lie on its grids, or, beyond them, as they are.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub struct Quantizer {
    /// The name it is called by.
    pub name: Cow<'static, str>,
    /// To units of a step; `None` takes the quotient of the profile's requantization.
    pub quotient: Option<Quotient>,
    /// To an integer.
    pub rounding: Rounding,
    /// From small |v| to large; 1 to 3.
    pub segments: Cow<'static, [Segment]>,
    /// What becomes of a value in no segment.
    pub beyond: Beyond,
}

/// A stretch of |v| with one grid.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct Segment {
    /// The real value of one step, in units of s.
    pub step: f64,
    /// Lowest and highest code, to which others are clamped. From a lowest code below 0 the codes are those of
    /// v; else they are those of |v| less the offset, and the value takes the sign of v.
    pub codes: [i32; 2],
    /// Where code 0 lies, in units of s; 0 where codes have a sign.
    #[serde(default)]
    pub offset: f64,
    /// Where it ends.
    #[serde(default)]
    pub until: Until,
}

/// The largest |v| of a segment.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Until {
    /// All that is left; nothing lies beyond.
    #[default]
    End,
    /// v/s, rounded, has at most this magnitude.
    Code(i32),
    /// |v| is at most this many s, a product in f64 that is rounded to f32 once.
    Magnitude(f64),
}

/// What becomes of a value in no segment.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub enum Beyond {
    /// There is none: the last segment clamps.
    #[default]
    Clamp,
    /// It stays as it is, in FP32.
    Keep,
    /// INT8 codes of a second scale, calibrated.
    SecondScale,
    /// INT8 codes of a second scale, `max(max|v| ⊗ f32(1/127), s)` over the values beyond, found at each call. It
    /// is a tensor: the quotient is correctly rounded.
    FoundScale,
    /// `sign(v)·(edge + 2^k·step)`: k = ⌊log2(max(|v| − edge, step)/step)⌋, 0 to `highest`, where log2 is rounded to
    /// f32 first; `edge` is the end of the last segment.
    Logarithmic {
        /// In units of s.
        step: f64,
        /// The highest k.
        highest: i32,
    },
}

/// A code word: the segment (after the last one: beyond) and the code in it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Word {
    /// Which grid.
    pub segment: usize,
    /// The sign, where the code is one of |v|.
    pub negative: bool,
    /// Its code; `None` for a value that is kept.
    pub code: Option<i32>,
}

/// Codes of a second scale.
const SECOND: [f32; 2] = [-128.0, 127.0];

impl Quantizer {
    /// Bits of a hardware code word: the number of the segment and the widest code. A kept value stands beside
    /// its word, in 32 bits more.
    pub fn word_bits(&self) -> u32 {
        let bits = |count: u64| count.next_power_of_two().trailing_zeros();
        let widths = self.segments.iter().map(|segment| {
            let [low, high] = segment.codes.map(i64::from);
            let signs = if low < 0 { 1 } else { 2 };
            bits(signs * (high - low + 1).unsigned_abs())
        });
        let beyond = match self.beyond {
            Beyond::Clamp | Beyond::Keep => 0,
            Beyond::SecondScale | Beyond::FoundScale => 8,
            Beyond::Logarithmic { highest, .. } => {
                bits(2 * (u64::from(highest.unsigned_abs()) + 1))
            }
        };
        let grids = self.segments.len() + usize::from(self.beyond != Beyond::Clamp);
        bits(grids as u64) + widths.max().unwrap_or(0).max(beyond)
    }

    /// Whether it needs a second calibrated scale.
    pub fn needs_second_scale(&self) -> bool {
        self.beyond == Beyond::SecondScale
    }

    /// The quantizer for a scale; `quotient` is the profile's, `second` the second calibrated scale.
    ///
    /// # Panics
    ///
    /// A quantizer that needs a second scale and gets none.
    pub fn prepare(&self, scale: Divisor, quotient: Quotient, second: Option<Divisor>) -> Prepared {
        let quotient = self.quotient.unwrap_or(quotient);
        let times = |factor: f64| (factor * scale.get()) as f32;
        let grid = |step: f64| Grid {
            by: quotient.by(scale.steps(step)),
            step: times(step),
        };
        let segments = self.segments.iter().map(|segment| PreparedSegment {
            grid: grid(segment.step),
            low: segment.codes[0] as f32,
            high: segment.codes[1] as f32,
            signed: segment.codes[0] < 0,
            offset: times(segment.offset),
            until: match segment.until {
                Until::End => PreparedUntil::End,
                Until::Code(code) => PreparedUntil::Code(code as f32),
                Until::Magnitude(edge) => PreparedUntil::Magnitude(times(edge)),
            },
        });
        let segments: Vec<_> = segments.collect();
        let edge = match segments.last().map(|segment| segment.until) {
            Some(PreparedUntil::Magnitude(edge)) => edge,
            _ => 0.0,
        };
        let beyond = match self.beyond {
            Beyond::Clamp | Beyond::Keep => PreparedBeyond::Keep,
            Beyond::SecondScale => {
                let second = second.expect("a second scale was looked for when the mode was");
                PreparedBeyond::Grid(Grid {
                    by: quotient.by(second),
                    step: second.to_f32(),
                })
            }
            Beyond::FoundScale => PreparedBeyond::Found,
            Beyond::Logarithmic { step, highest } => PreparedBeyond::Logarithmic {
                grid: grid(step),
                edge,
                highest: highest as f32,
            },
        };
        Prepared {
            rounding: self.rounding,
            base: grid(1.0),
            segments,
            beyond,
        }
    }
}

/// A quotient and the step it divides by.
#[derive(Clone, Copy, Debug)]
struct Grid {
    by: By,
    step: f32,
}

#[derive(Clone, Copy, Debug)]
struct PreparedSegment {
    grid: Grid,
    low: f32,
    high: f32,
    signed: bool,
    offset: f32,
    until: PreparedUntil,
}

#[derive(Clone, Copy, Debug)]
enum PreparedUntil {
    End,
    Code(f32),
    Magnitude(f32),
}

#[derive(Clone, Copy, Debug)]
enum PreparedBeyond {
    Keep,
    Grid(Grid),
    /// A scale that the values beyond decide.
    Found,
    Logarithmic {
        grid: Grid,
        edge: f32,
        highest: f32,
    },
}

/// A quantizer with its scales.
#[derive(Clone, Debug)]
pub struct Prepared {
    rounding: Rounding,
    /// s itself, in whose units `Until::Code` looks.
    base: Grid,
    segments: Vec<PreparedSegment>,
    beyond: PreparedBeyond,
}

impl Prepared {
    /// The segment of a value whose rounded v/s is `q`; beyond the last one their number.
    #[inline(always)]
    fn segment(&self, v: f32, q: f32) -> usize {
        let ends = self
            .segments
            .iter()
            .position(|segment| match segment.until {
                PreparedUntil::End => true,
                PreparedUntil::Code(code) => q.abs() <= code,
                PreparedUntil::Magnitude(edge) => v.abs() <= edge,
            });
        ends.unwrap_or(self.segments.len())
    }

    /// v/s, rounded.
    #[inline(always)]
    fn units(&self, v: f32) -> f32 {
        self.rounding.round(self.base.by.of(v))
    }

    /// The value of v in a segment, its word, and whether a code was clamped.
    #[inline(always)]
    fn one(&self, v: f32, segment: usize) -> (f32, Word, bool) {
        let word = |code: f32| Word {
            segment,
            negative: false,
            code: Some(code as i32),
        };
        let negative = v < 0.0;
        let sign = if v == 0.0 { 0.0 } else { 1f32.copysign(v) };
        match self.segments.get(segment) {
            Some(s) if s.signed => {
                let integer = self.rounding.round(s.grid.by.of(v));
                let code = integer.clamp(s.low, s.high);
                (code * s.grid.step, word(code), code != integer)
            }
            Some(s) => {
                let integer = self.rounding.round(s.grid.by.of(v.abs() - s.offset));
                let code = integer.clamp(s.low, s.high);
                let value = sign * (s.offset + code * s.grid.step);
                let word = Word {
                    negative,
                    ..word(code)
                };
                (value, word, code != integer)
            }
            None => match self.beyond {
                PreparedBeyond::Keep | PreparedBeyond::Found => {
                    let word = Word {
                        code: None,
                        ..word(0.0)
                    };
                    (v, word, false)
                }
                PreparedBeyond::Grid(grid) => {
                    let integer = self.rounding.round(grid.by.of(v));
                    let code = integer.clamp(SECOND[0], SECOND[1]);
                    (code * grid.step, word(code), code != integer)
                }
                PreparedBeyond::Logarithmic {
                    grid,
                    edge,
                    highest,
                } => {
                    let units = grid.by.of((v.abs() - edge).max(grid.step));
                    let exponent = log2(units).floor();
                    let k = exponent.clamp(0.0, highest);
                    let value = sign * (edge + power_of_two(k) * grid.step);
                    let word = Word {
                        negative,
                        ..word(k)
                    };
                    (value, word, k != exponent)
                }
            },
        }
    }

    /// With the scale that is found at run time for `values`, if it is one.
    fn found(&self, values: &[f32]) -> Self {
        if !matches!(self.beyond, PreparedBeyond::Found) {
            return self.clone();
        }
        let top = values
            .par_chunks(TASK)
            .map(|values| dispatch(LargestBeyond { of: self, values }))
            .reduce(|| 0.0, f32::max);
        let t = AbsmaxDivision::Reciprocal.of(top).max(self.base.step);
        Self {
            beyond: PreparedBeyond::Grid(Grid {
                by: Quotient::Divide.by(Divisor::of_f32(t)),
                step: t,
            }),
            ..self.clone()
        }
    }

    /// The word of a value among values that are quantized together.
    pub fn word(&self, v: f32, among: &[f32]) -> Word {
        let with = self.found(among);
        let q = with.units(v);
        with.one(v, with.segment(v, q)).1
    }

    /// Puts the value of each number in its place; those of one call share a scale that is found. `peak` of the
    /// counts is in units of s.
    pub fn quantize(&self, values: &mut [f32]) -> Status {
        let of = &self.found(values);
        values
            .par_chunks_mut(TASK)
            .map(|values| dispatch(Values { of, values }))
            .reduce(Status::default, Status::plus)
    }
}

/// Values that are worth a thread of their own.
const TASK: usize = 1 << 14;

struct Values<'a> {
    of: &'a Prepared,
    values: &'a mut [f32],
}

impl Kernel for Values<'_> {
    type Output = Status;

    #[inline(always)]
    fn run(self) -> Status {
        let mut segments = [0; SEGMENTS];
        let (mut saturated, mut peak) = (0, 0.0f32);
        for v in self.values.iter_mut() {
            let q = self.of.units(*v);
            let segment = self.of.segment(*v, q);
            let (value, _, clamped) = self.of.one(*v, segment);
            segments[segment] += 1;
            saturated += u64::from(clamped);
            peak = peak.max(q.abs());
            *v = value;
        }
        Status {
            values: self.values.len() as u64,
            saturated,
            wrapped: 0,
            peak,
            segments,
        }
    }
}

struct LargestBeyond<'a> {
    of: &'a Prepared,
    values: &'a [f32],
}

impl Kernel for LargestBeyond<'_> {
    type Output = f32;

    #[inline(always)]
    fn run(self) -> f32 {
        let beyond = self.values.iter().filter(|v| {
            let q = self.of.units(**v);
            self.of.segment(**v, q) == self.of.segments.len()
        });
        beyond.fold(0.0, |top, v| top.max(v.abs()))
    }
}

/// log2 rounded to f32: just below a power of two it is the integer already.
fn log2(v: f32) -> f32 {
    libm::log2(f64::from(v)) as f32
}

/// 2^k for a whole k of 0 to 127; infinity beyond.
fn power_of_two(k: f32) -> f32 {
    f32::from_bits(((k as i32).min(128) + 127) as u32 * (1 << 23))
}
