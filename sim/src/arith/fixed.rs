//! Accumulator to output grid without a floating-point unit: by an integer multiplier and a right
//! shift, or by the shift alone.
//!
//! The real factor `m` of a step (`s_in · s_w / s_out`, in f64) becomes `M · 2^-shift` once, offline:
//!
//! | scaling | M | shift | result |
//! |---|---|---|---|
//! | fixed, single rounding | `nearest-away(m · 2^shift)`, in `[2^(bits−2), 2^(bits−1)]` | so that M has `bits` bits, sign included | `round(acc · M / 2^shift)` |
//! | fixed, double rounding | the same | the same | `round(first(acc · 2^left · M / 2^(bits−1)) / 2^right)` |
//! | power of two | 1 | `nearest-even(−log2 m)` | `round(acc / 2^shift)` |
//!
//! A product is exact before it is rounded. `round` is the output's rule, `first` the rule of the
//! high multiplication; the double form splits `shift = bits − 1 + right − left`, where one of
//! `left` and `right` is 0.
//!
//! With 32 bits, `single` with [`Rounding::NearestTiesUp`] is TFLite's `MultiplyByQuantizedMultiplier`
//! under `TFLITE_SINGLE_ROUNDING`; `double` with `first` ties up and ties away after it is gemmlowp's
//! `RoundingDivideByPOT(SaturatingRoundingDoublingHighMul(acc << left, M), right)`, and M is
//! `QuantizeMultiplier`'s (`sim/tests/tflite.rs`).

use super::lfsr::Lfsr;
use super::requant::QuantRule;
use super::round::Rounding;
use super::saturate::{Status, Tally};
use crate::error::{Result, SimError};
use serde::Serialize;

/// How an accumulator is brought to its output's grid.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Scaling {
    /// By f32 factors, in the step's [`ScaleOrder`](super::requant::ScaleOrder).
    F32,
    /// By an integer multiplier and a right shift.
    Fixed {
        /// Width of the multiplier, sign included, 8 to 32.
        bits: u8,
        /// The rule of the high multiplication where rounding happens twice.
        first: Option<Rounding>,
    },
    /// By a shift.
    PowerOfTwo,
}

/// A factor as the hardware has it: `multiplier · 2^-shift`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct FixedFactor {
    /// M.
    pub multiplier: i64,
    /// To the right; below 0, to the left.
    pub shift: i32,
    /// Bits of the first of two shifts, and its rule.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub first: Option<(u32, Rounding)>,
}

/// The longest shift to the left that a factor may have.
pub const LONGEST_LEFT_SHIFT: i32 = 30;

/// Shifts a factor may have.
const SHIFTS: std::ops::RangeInclusive<i32> = -LONGEST_LEFT_SHIFT..=62;

impl FixedFactor {
    /// Bits of a shift, sign included.
    pub const SHIFT_BITS: u32 = 7;

    /// The integer form of a real factor; `None` for [`Scaling::F32`].
    ///
    /// # Errors
    ///
    /// A factor that is not positive and finite, or so large that its shift is below −30. One so small
    /// that its shift would be above 62 has that shift and fewer bits, and is 0 in the end.
    pub fn new(scaling: Scaling, factor: f64) -> Result<Option<Self>> {
        let refused = |expected: &str| Err(SimError::value("multiplier", expected, factor));
        if !(factor.is_finite() && factor > 0.0) {
            return refused("a positive, finite factor");
        }
        let (multiplier, shift, first) = match scaling {
            Scaling::F32 => return Ok(None),
            Scaling::Fixed { bits, first } => {
                let digits = i32::from(bits) - 1;
                let (mantissa, exponent) = frexp(factor);
                let mut multiplier = (mantissa * 2f64.powi(digits)).round() as i64;
                let mut shift = digits - exponent;
                if multiplier == 1 << digits {
                    multiplier /= 2;
                    shift -= 1;
                }
                (multiplier, shift, first.map(|rule| (digits as u32, rule)))
            }
            Scaling::PowerOfTwo => {
                let (mantissa, exponent) = frexp(factor);
                // In logarithms the middle between two powers is √½.
                let up = mantissa > std::f64::consts::FRAC_1_SQRT_2;
                (1, i32::from(!up) - exponent, None)
            }
        };
        if shift < *SHIFTS.start() {
            return refused("a factor whose shift is -30 or more");
        }
        // Below the last shift a multiplier has fewer bits, down to none: of a row of zeros every factor
        // makes zeros.
        let beyond = (shift - SHIFTS.end()).clamp(0, 63) as u32;
        Ok(Some(Self {
            multiplier: Rounding::NearestTiesAway.shift(multiplier.into(), beyond, 0) as i64,
            shift: shift.min(*SHIFTS.end()),
            first,
        }))
    }

    /// The factor it stands for.
    pub fn real(self) -> f64 {
        self.multiplier as f64 * 2f64.powi(-self.shift)
    }

    /// The accumulator times the factor, as an integer.
    #[inline(always)]
    pub fn apply(self, acc: i64, rounding: Rounding, random: u16) -> i128 {
        let Some((digits, first)) = self.first else {
            return match self.shift {
                0.. => rounding.shift_product(acc, self.multiplier, self.shift as u32, random),
                left => (i128::from(acc) * i128::from(self.multiplier)) << -left,
            };
        };
        let acc = i128::from(acc);
        let right = self.shift - digits as i32;
        let left = (-right).max(0);
        let high = first.shift((acc << left) * i128::from(self.multiplier), digits, random);
        rounding.shift(high, right.max(0) as u32, random)
    }
}

/// `(mantissa, exponent)` with `v = mantissa · 2^exponent` and a mantissa in [½, 1), for positive
/// normal numbers.
fn frexp(v: f64) -> (f64, i32) {
    let bits = v.to_bits();
    let exponent = ((bits >> 52) & 0x7FF) as i32 - 1022;
    let mantissa = f64::from_bits((bits & !(0x7FF << 52)) | (1022 << 52));
    (mantissa, exponent)
}

/// Brings accumulators to a grid: an integer factor or an f32 one, and what rounds and fits.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Requantizer {
    factor: Factor,
    rule: QuantRule,
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum Factor {
    /// `f32(acc) ⊗ f32(m)`.
    F32(f32),
    Fixed(FixedFactor),
}

impl Requantizer {
    /// By `scaling` with the real factor `factor`; `rule`'s quotient does not apply.
    pub fn new(scaling: Scaling, factor: f64, rule: QuantRule) -> Result<Self> {
        let factor = match FixedFactor::new(scaling, factor)? {
            Some(fixed) => Factor::Fixed(fixed),
            None => Factor::F32(factor as f32),
        };
        Ok(Self { factor, rule })
    }

    /// Multiplier and shift; `None` for an f32 factor.
    pub fn fixed(&self) -> Option<FixedFactor> {
        match self.factor {
            Factor::Fixed(fixed) => Some(fixed),
            Factor::F32(_) => None,
        }
    }

    /// The factor as this requantizer has it.
    pub fn real(&self) -> f64 {
        match self.factor {
            Factor::F32(factor) => factor.into(),
            Factor::Fixed(fixed) => fixed.real(),
        }
    }

    /// An accumulator as an integer of the output's grid, before it is made to fit.
    #[inline(always)]
    pub fn integer(&self, acc: i64, random: u16) -> i128 {
        match self.factor {
            Factor::F32(factor) => {
                let v = self.rule.rounding.round_at(acc as f32 * factor, random);
                // As a wide integer only where it must be: that conversion is a call.
                match v.abs() < 2f32.powi(62) {
                    true => i128::from(v as i64),
                    false => wide(v),
                }
            }
            Factor::Fixed(fixed) => fixed.apply(acc, self.rule.rounding, random),
        }
    }

    /// A row of accumulators to INT8; `position` is that of the first.
    pub fn codes(&self, acc: &[i64], position: u64, codes: &mut [i8]) -> Status {
        let mut lfsr = self.rule.rounding.lfsr().map(|lfsr| lfsr.at(position));
        let mut tally = Tally::of(self.rule.overflow);
        for (acc, code) in acc.iter().zip(codes) {
            let integer = self.integer(*acc, random(&mut lfsr));
            tally.add(nearest(integer));
            *code = self.rule.overflow.fit(integer).0;
        }
        tally.status(acc.len(), self.rule.overflow)
    }
}

/// The f32 nearest to an integer.
#[inline(always)]
pub(crate) fn nearest(integer: i128) -> f32 {
    // Most integers are narrow, and for those there is an instruction.
    match i64::try_from(integer) {
        Ok(narrow) => narrow as f32,
        Err(_) => nearest_of_wide(integer),
    }
}

// Out of line, or the compiler computes both ways and chooses.
#[cold]
#[inline(never)]
fn nearest_of_wide(integer: i128) -> f32 {
    integer as f32
}

#[cold]
#[inline(never)]
fn wide(v: f32) -> i128 {
    v as i128
}

/// The random bits of the next position; 0 where no rule reads them.
#[inline(always)]
pub fn random(lfsr: &mut Option<Lfsr>) -> u16 {
    lfsr.as_mut().map_or(0, Lfsr::next_bits)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::arith::saturate::Overflow;

    const SINGLE: Scaling = Scaling::Fixed {
        bits: 16,
        first: None,
    };

    #[test]
    fn factors_have_their_width() {
        for bits in 8..=32u8 {
            for first in [None, Some(Rounding::NearestTiesUp)] {
                let scaling = Scaling::Fixed { bits, first };
                for factor in [1.0, 0.999_999_999_9, 0.5, 0.001_234_5, 37.5, 3.1e-7] {
                    let fixed = FixedFactor::new(scaling, factor).unwrap().unwrap();
                    let half = 1i64 << (bits - 2);
                    assert!((half..2 * half).contains(&fixed.multiplier), "{fixed:?}");
                    let error = (fixed.real() / factor - 1.0).abs();
                    assert!(error <= 0.5 / half as f64, "{bits} {factor}: {error}");
                }
            }
        }
        for (factor, shift) in [(1.0, 0), (0.7, 1), (0.72, 0), (0.26, 2), (3.0, -2)] {
            let fixed = FixedFactor::new(Scaling::PowerOfTwo, factor)
                .unwrap()
                .unwrap();
            assert_eq!((fixed.multiplier, fixed.shift), (1, shift), "{factor}");
        }
    }

    #[test]
    fn impossible_factors_are_refused() {
        for factor in [0.0, -1.0, f64::NAN, f64::INFINITY, 1e30] {
            let error = FixedFactor::new(SINGLE, factor).unwrap_err().to_string();
            assert!(error.starts_with("multiplier: expected a"), "{error}");
        }
        assert_eq!(FixedFactor::new(Scaling::F32, 0.5).unwrap(), None);
    }

    /// Below the last shift a factor loses bits, not its place: within half of 2^-62, whatever the form.
    #[test]
    fn small_factors_end_in_zero() {
        let forms = [
            SINGLE,
            Scaling::Fixed {
                bits: 32,
                first: Some(Rounding::NearestTiesUp),
            },
            Scaling::PowerOfTwo,
        ];
        for scaling in forms {
            for exponent in 20..=140 {
                let factor = 1.37 * 2f64.powi(-exponent);
                let fixed = FixedFactor::new(scaling, factor).unwrap().unwrap();
                assert!(SHIFTS.contains(&fixed.shift), "{fixed:?}");
                let near = match scaling {
                    Scaling::PowerOfTwo => 0.5 * factor,
                    _ => factor * 2f64.powi(-15),
                };
                let apart = (fixed.real() - factor).abs();
                assert!(
                    apart <= near.max(2f64.powi(-63)),
                    "{scaling:?} {factor:e}: {fixed:?}"
                );
                assert_eq!(fixed.apply(0, Rounding::Floor, 0), 0);
                assert_eq!(fixed.multiplier == 0, fixed.real() == 0.0);
            }
            let none = FixedFactor::new(scaling, f64::from(f32::MIN_POSITIVE)).unwrap();
            assert_eq!(none.map(|f| f.multiplier), Some(0));
        }
    }

    #[test]
    fn large_factors_shift_to_the_left() {
        let factor = 1.5 * 2f64.powi(20);
        let fixed = FixedFactor::new(SINGLE, factor).unwrap().unwrap();
        assert_eq!((fixed.multiplier, fixed.shift), (3 << 13, -6));
        let requantizer = Requantizer::new(SINGLE, factor, QuantRule::NEAREST_EVEN).unwrap();
        assert_eq!(requantizer.integer(-7, 0), (-7 * 3) << 19);
    }

    /// An f32 factor takes sums where 64 bits end, and what it gives is an integer still.
    #[test]
    fn products_beyond_64_bits_are_exact() {
        let rule = |overflow| QuantRule {
            overflow,
            ..QuantRule::NEAREST_EVEN
        };
        let saturating = rule(Overflow::Saturate);
        let wrapping = rule(Overflow::Wrap);
        let large = Requantizer::new(Scaling::F32, 2f64.powi(30), saturating).unwrap();
        for (acc, want) in [
            (1, 1i128 << 30),
            (1 << 32, 1 << 62),
            (-1 << 33, -1 << 63),
            (1 << 40, 1 << 70),
            (-3 << 40, -3 << 70),
        ] {
            assert_eq!(large.integer(acc, 0), want);
            assert_eq!(nearest(want), want as f32);
        }
        // Between two f32, the nearest.
        assert_eq!(
            nearest((1 << 100) + (1 << 76) + 1),
            2f32.powi(100).next_up()
        );
        let mut codes = [0; 3];
        let status = large.codes(&[1 << 40, -1 << 40, 0], 0, &mut codes);
        assert_eq!((codes, status.saturated), ([127, -128, 0], 2));
        assert_eq!(status.peak, 2f32.powi(70));
        let large = Requantizer::new(Scaling::F32, 2f64.powi(30), wrapping).unwrap();
        let status = large.codes(&[1 << 40, -1 << 40, 0], 0, &mut codes);
        assert_eq!((codes, status.wrapped), ([0; 3], 2));
    }

    /// A row starts where its position says, whatever came before.
    #[test]
    fn stochastic_rows_are_addressed_by_position() {
        let rule = QuantRule {
            rounding: Rounding::Stochastic(7),
            ..QuantRule::NEAREST_EVEN
        };
        let requantizer = Requantizer::new(SINGLE, 0.01, rule).unwrap();
        let acc: Vec<i64> = (0..512).map(|i| i * 37 % 9001).collect();
        let mut whole = vec![0; 512];
        let _ = requantizer.codes(&acc, 0, &mut whole);
        for start in [0, 1, 100, 511] {
            let mut part = vec![0; 512 - start];
            let _ = requantizer.codes(&acc[start..], start as u64, &mut part);
            assert_eq!(part, whole[start..]);
        }
        let nearest = Requantizer::new(SINGLE, 0.01, QuantRule::NEAREST_EVEN).unwrap();
        let mut even = vec![0; 512];
        let _ = nearest.codes(&acc, 0, &mut even);
        assert_ne!(even, whole);
    }
}
