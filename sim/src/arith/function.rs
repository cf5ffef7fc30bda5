//! exp, softplus and SiLU as a chip has them: from a table, a piecewise polynomial, or shifts. All
//! in integers; entries and coefficients come from software functions that give the same bits on
//! every machine.
//!
//! A unit reads `X`, a two's complement number of `input_bits` bits with `input_fraction` of them
//! behind the point, and makes `Y` with `output_fraction` bits behind the point. Its range
//! `[low, high)`, whole numbers, is cut into n equal segments of 2^w units of X; in a segment `f` is
//! the low w bits of `X − low`.
//!
//! | form | Y inside the range | words |
//! |---|---|---|
//! | table, nearest | the entry of the segment: the function at its middle | n |
//! | table, linear | `y0 + ((y1 − y0)·f + 2^(w−1)) >> w` | n + 1 |
//! | polynomial | Horner's rule, `c ← c_i + ((c·f + 2^(w−1)) >> w)`, 8 guard bits rounded away (ties up) at the end | n·(degree + 1) |
//! | shift (exp) | `t = X + (X >> 1) − (X >> 4)`; `(1 + frac t) · 2^⌊t⌋`, shifted right with truncation | 0 |
//!
//! Beyond the range `asymptote` gives 0 below and, above, 1 for exp and X itself for the others;
//! `clamp` holds the nearest end and so needs a range that covers every X.

mod unit;

use crate::error::{Result, SimError};
use serde::{Deserialize, Serialize};
use std::collections::HashMap;
use std::sync::{Arc, Mutex, OnceLock};

pub use unit::FunctionUnit;

/// The functions of a block.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Function {
    /// eˣ for x ≤ 0: the decay.
    Exp,
    /// log(1 + eˣ): the time step.
    Softplus,
    /// x/(1 + e⁻ˣ): the convolution's activation and the gate.
    Silu,
}

/// What lies between entries.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Interpolation {
    /// Nothing: the entry of the segment.
    Nearest,
    /// A straight line.
    Linear,
}

/// What a unit gives for inputs outside its range.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Beyond {
    /// What the function tends to.
    Asymptote,
    /// The value at the end.
    Clamp,
}

/// How a unit computes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Form {
    /// A table of segments.
    Table {
        /// Segments.
        entries: u32,
        /// Between entries.
        interpolation: Interpolation,
    },
    /// A polynomial a segment.
    Polynomial {
        /// Segments.
        segments: u32,
        /// 1 to 3.
        degree: u8,
    },
    /// A power of two by shifting; exp only.
    Shift,
}

/// A fixed-point unit.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "kebab-case")]
pub struct FunctionUnitRule {
    /// How it computes.
    pub form: Form,
    /// Width of X, sign included.
    pub input_bits: u8,
    /// Bits of X behind the point.
    pub input_fraction: u8,
    /// Bits of Y behind the point.
    pub output_fraction: u8,
    /// Start of the range.
    pub low: i32,
    /// End of the range.
    pub high: i32,
    /// Outside of it.
    pub beyond: Beyond,
}

/// How a function is computed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum FunctionRule {
    /// In f32, every result the nearest to the true value (SiLU: as `exact`, from exp and a division).
    Exact,
    /// In a fixed-point unit.
    Unit(FunctionUnitRule),
}

impl FunctionRule {
    /// Whether it is computed in a fixed-point unit.
    pub fn is_unit(self) -> bool {
        self != FunctionRule::Exact
    }

    /// The unit, made once; `None` where the function is exact.
    pub fn unit(self, function: Function) -> Option<Arc<FunctionUnit>> {
        /// More units than any run has at a time; what tries rules by the thousand must not keep them all.
        const KEPT: usize = 64;
        type Made = HashMap<(Function, FunctionUnitRule), Arc<FunctionUnit>>;
        static MADE: OnceLock<Mutex<Made>> = OnceLock::new();
        let FunctionRule::Unit(rule) = self else {
            return None;
        };
        let mut made = MADE
            .get_or_init(Mutex::default)
            .lock()
            .expect("no panics inside");
        if made.len() >= KEPT && !made.contains_key(&(function, rule)) {
            made.clear();
        }
        let unit = made
            .entry((function, rule))
            .or_insert_with(|| Arc::new(FunctionUnit::new(function, rule)));
        Some(unit.clone())
    }
}

impl FunctionUnitRule {
    /// Checks widths, segments and range; errors name the field.
    pub fn validate(&self, function: Function) -> Result<()> {
        let within =
            |item: &str, value: i64, low: i64, high: i64| match (low..=high).contains(&value) {
                true => Ok(()),
                false => Err(SimError::value(
                    item,
                    format_args!("{low} to {high}"),
                    value,
                )),
            };
        within("input_bits", self.input_bits.into(), 4, 24)?;
        within(
            "input_fraction",
            self.input_fraction.into(),
            0,
            i64::from(self.input_bits) - 1,
        )?;
        within("output_fraction", self.output_fraction.into(), 4, 24)?;
        let reach = 1i64 << (self.input_bits - 1 - self.input_fraction);
        within("range[0]", self.low.into(), -256, 255)?;
        within("range[1]", self.high.into(), i64::from(self.low) + 1, 256)?;
        let top = if function == Function::Exp { 0 } else { reach };
        let covers = i64::from(self.low) <= -reach && i64::from(self.high) >= top;
        if self.beyond == Beyond::Clamp && !covers && self.form != Form::Shift {
            return Err(SimError::value(
                "range",
                format_args!(
                    "a range that covers the input, [{}, {top}] at least, or beyond = \"asymptote\"",
                    -reach
                ),
                format_args!("[{}, {}]", self.low, self.high),
            ));
        }
        match self.form {
            Form::Table { entries, .. } => self.check_segments("entries", entries),
            Form::Polynomial { segments, degree } => {
                within("degree", degree.into(), 1, 3)?;
                self.check_segments("segments", segments)
            }
            Form::Shift if function != Function::Exp => Err(SimError::value(
                "form",
                "table, polynomial or exact (shift is for exp)",
                "shift",
            )),
            Form::Shift => Ok(()),
        }
    }

    fn check_segments(&self, item: &str, segments: u32) -> Result<()> {
        let inputs = self.span();
        let fits = (1..=1 << 16).contains(&segments)
            && inputs.is_multiple_of(u64::from(segments))
            && (inputs / u64::from(segments)).is_power_of_two();
        if fits {
            return Ok(());
        }
        Err(SimError::value(
            item,
            format_args!(
                "1 to 65536 segments, a power of two of inputs each (the range has {inputs})"
            ),
            segments,
        ))
    }

    /// Inputs in the range.
    fn span(&self) -> u64 {
        (i64::from(self.high) - i64::from(self.low)).unsigned_abs() << self.input_fraction
    }

    /// Bits of memory: words times their width.
    pub fn memory_bits(&self, function: Function) -> u64 {
        let unit = FunctionUnit::new(function, *self);
        unit.words().len() as u64 * u64::from(unit.word_bits())
    }
}

/// What the inputs of a unit came to.
#[must_use]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Inputs {
    /// Inputs read.
    pub count: u64,
    /// The lowest X.
    pub low: i64,
    /// The highest X.
    pub high: i64,
    /// Inputs outside the range.
    pub beyond: u64,
}

impl Inputs {
    fn add(&mut self, x: i64, beyond: bool) {
        self.low = if self.count == 0 { x } else { self.low.min(x) };
        self.high = if self.count == 0 { x } else { self.high.max(x) };
        self.count += 1;
        self.beyond += u64::from(beyond);
    }

    /// The same inputs, each read `times` times.
    pub(crate) fn repeated(self, times: u64) -> Self {
        Self {
            count: self.count * times,
            beyond: self.beyond * times,
            ..self
        }
    }
}

impl std::ops::AddAssign for Inputs {
    fn add_assign(&mut self, other: Self) {
        if other.count == 0 {
            return;
        }
        let first = self.count == 0;
        self.low = if first {
            other.low
        } else {
            self.low.min(other.low)
        };
        self.high = if first {
            other.high
        } else {
            self.high.max(other.high)
        };
        self.count += other.count;
        self.beyond += other.beyond;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    pub(super) const TABLE: FunctionUnitRule = FunctionUnitRule {
        form: Form::Table {
            entries: 256,
            interpolation: Interpolation::Linear,
        },
        input_bits: 16,
        input_fraction: 11,
        output_fraction: 16,
        low: -16,
        high: 16,
        beyond: Beyond::Asymptote,
    };

    #[test]
    fn impossible_units_are_refused_by_field() {
        let table = |entries| Form::Table {
            entries,
            interpolation: Interpolation::Linear,
        };
        for (rule, item) in [
            (
                FunctionUnitRule {
                    input_bits: 25,
                    ..TABLE
                },
                "input_bits: expected 4 to 24",
            ),
            (
                FunctionUnitRule {
                    input_fraction: 16,
                    ..TABLE
                },
                "input_fraction: expected 0 to 15",
            ),
            (
                FunctionUnitRule {
                    output_fraction: 25,
                    ..TABLE
                },
                "output_fraction: expected 4 to 24",
            ),
            (
                FunctionUnitRule { high: -16, ..TABLE },
                "range[1]: expected -15 to 256",
            ),
            (
                FunctionUnitRule {
                    form: table(100),
                    ..TABLE
                },
                "entries: expected 1 to 65536 segments",
            ),
            (
                FunctionUnitRule {
                    form: Form::Polynomial {
                        segments: 8,
                        degree: 4,
                    },
                    ..TABLE
                },
                "degree: expected 1 to 3",
            ),
            (
                FunctionUnitRule {
                    form: Form::Shift,
                    ..TABLE
                },
                "form: expected table",
            ),
        ] {
            let error = rule.validate(Function::Silu).unwrap_err().to_string();
            assert!(error.starts_with(item), "{error}");
        }
    }

    /// The last rule that is accepted and the first that is not.
    #[test]
    fn limits_of_ranges_and_segments() {
        let accepted = |rule: FunctionUnitRule| rule.validate(Function::Silu).is_ok();
        let clamp = |low, high| FunctionUnitRule {
            low,
            high,
            beyond: Beyond::Clamp,
            ..TABLE
        };
        assert!(accepted(clamp(-16, 16)) && accepted(clamp(-32, 32)));
        // As wide as needed, but not where it is needed.
        assert!(!accepted(clamp(-24, 8)) && !accepted(clamp(-8, 24)));
        // For exp nothing above 0 is asked, and shifting needs no range.
        assert!(clamp(-16, 0).validate(Function::Exp).is_ok());
        let shift = FunctionUnitRule {
            form: Form::Shift,
            ..clamp(-1, 0)
        };
        assert!(shift.validate(Function::Exp).is_ok());
        let segments = |low, high, entries| FunctionUnitRule {
            form: Form::Table {
                entries,
                interpolation: Interpolation::Nearest,
            },
            low,
            high,
            ..TABLE
        };
        // 24 · 2^11 inputs: three times a power of two.
        assert!(accepted(segments(-16, 8, 3)) && accepted(segments(-16, 8, 3 << 14)));
        for entries in [0, 1, 2, 5, 1 << 14, 9 << 12] {
            assert!(!accepted(segments(-16, 8, entries)), "{entries}");
        }
        assert!(accepted(segments(-16, 16, 1 << 16)));
        assert!(!accepted(segments(-32, 32, 1 << 17)));
    }
}
