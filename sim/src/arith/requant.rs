//! Accumulator or real number to a grid.

use super::binary16::from_f16;
pub use super::binary16::to_f16;
use super::lfsr::Lfsr;
use super::round::Rounding;
use super::saturate::{Overflow, Status, Tally, low_byte, magnitude};
use super::sfu;
use crate::error::Result;
use crate::isa::{Kernel, dispatch};
use crate::quant::{Acc, Multiplier, Scale};
use num_traits::float::FloatCore;
use rayon::prelude::*;
use serde::{Deserialize, Serialize};

/// In which order an accumulator meets the two factors `a` (activation scales) and `b` (weight
/// scale) of a linear step. Two roundings in f32 each; the orders differ in the last bit, and that
/// decides ties. Source: `docs/arithmetic.md`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ScaleOrder {
    /// `a ⊗ (b ⊗ f32(acc))`: the row-major kernels (x_proj, out_proj).
    RowMajor,
    /// `b ⊗ (a ⊗ f32(acc))`: the channel-major kernels (in_proj, dt_proj).
    ChannelMajor,
    /// `(b ⊗ a) ⊗ f32(acc)`: the one-row kernel of decode.
    OneRow,
}

impl ScaleOrder {
    /// Every order.
    pub const ALL: [ScaleOrder; 3] = [
        ScaleOrder::RowMajor,
        ScaleOrder::ChannelMajor,
        ScaleOrder::OneRow,
    ];

    /// The real value of an accumulator, in units of the output grid when `a` is a ratio of scales.
    #[inline(always)]
    pub fn apply(self, a: Multiplier, b: Scale, acc: Acc) -> f32 {
        let (a, b, acc) = (a.get(), b.get(), acc.0 as f32);
        match self {
            ScaleOrder::RowMajor => a * (b * acc),
            ScaleOrder::ChannelMajor => b * (a * acc),
            ScaleOrder::OneRow => (b * a) * acc,
        }
    }
}

/// How a largest magnitude becomes the scale that puts it on code 127.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AbsmaxDivision {
    /// `max ⊗ f(1/127)`: PyTorch on a GPU, when it divides by a constant.
    Reciprocal,
    /// `max / 127`.
    Division,
}

impl AbsmaxDivision {
    /// The scale in the type of the magnitude, before any floor and before it is rounded to another type.
    #[inline(always)]
    pub fn of<F: FloatCore>(self, largest: F) -> F {
        let top = F::from(i8::MAX).expect("every float has it");
        match self {
            AbsmaxDivision::Reciprocal => largest * (F::one() / top),
            AbsmaxDivision::Division => largest / top,
        }
    }
}

/// How a real number is brought to units of a scale.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Quotient {
    /// `v / s`, correctly rounded.
    Divide,
    /// `v ⊗ rcp(s)` with the special-function unit's approximate reciprocal.
    ApproxReciprocal,
    /// `diva(v ⊗ 100, s ⊗ 100)`: the decode kernel's scaled approximate division.
    ScaledApproxDivision,
    /// `v ⊗ f32(1/s)`, the reciprocal taken in f64 and rounded once: an f32 tensor over a Python number in
    /// PyTorch on a GPU. Source: `docs/arithmetic.md`.
    RoundedReciprocal,
    /// `f16(v / s)`: a binary16 tensor over a Python number in PyTorch on a CPU.
    DivideInHalf,
    /// `f16(v ⊗ f32(1/s))`: the same on a GPU.
    RoundedReciprocalInHalf,
}

impl Quotient {
    /// Every rule.
    pub const ALL: [Quotient; 6] = [
        Quotient::Divide,
        Quotient::ApproxReciprocal,
        Quotient::ScaledApproxDivision,
        Quotient::RoundedReciprocal,
        Quotient::DivideInHalf,
        Quotient::RoundedReciprocalInHalf,
    ];

    /// The rule whose quotient is rounded to binary16, as PyTorch rounds that of a binary16 tensor.
    #[must_use]
    pub fn in_half(self) -> Self {
        match self {
            Quotient::Divide => Quotient::DivideInHalf,
            Quotient::RoundedReciprocal => Quotient::RoundedReciprocalInHalf,
            other => other,
        }
    }

    /// What values meet of a scale that a device is given: its reciprocal where the quotient is a product with a
    /// rounded one, else the scale.
    #[cfg(feature = "cuda")]
    pub(crate) fn factor(self, scale: Divisor) -> f32 {
        match (self, self.by(scale)) {
            (Quotient::RoundedReciprocal, By::Product(factor)) | (_, By::ProductInHalf(factor)) => {
                factor
            }
            _ => scale.to_f32(),
        }
    }

    /// What the rule needs of a scale, taken once.
    #[inline(always)]
    pub(super) fn by(self, scale: Divisor) -> By {
        let s = scale.to_f32();
        let reciprocal = (1.0 / scale.0) as f32;
        match self {
            Quotient::Divide => By::Quotient(s),
            Quotient::ApproxReciprocal => By::Product(sfu::rcp(s)),
            Quotient::ScaledApproxDivision => By::Scaled(s * 100.0),
            Quotient::RoundedReciprocal => By::Product(reciprocal),
            Quotient::DivideInHalf => By::QuotientInHalf(s),
            Quotient::RoundedReciprocalInHalf => By::ProductInHalf(reciprocal),
        }
    }
}

/// A scale as a quotient meets it: PyTorch keeps one that is a Python number in f64, and a scale found at run
/// time (`x.abs().max().item() / 127`) was never an f32.
#[derive(Clone, Copy, Debug, PartialEq, PartialOrd)]
pub struct Divisor(f64);

impl Divisor {
    /// Checks that `value` can be a scale, in f32 as well.
    pub fn new(value: f64) -> Result<Self> {
        Scale::new(value as f32)?;
        Ok(Self(value))
    }

    /// The f64 value.
    pub fn get(self) -> f64 {
        self.0
    }

    /// A tensor's f32, known to be one.
    pub(super) fn of_f32(scale: f32) -> Self {
        Self(scale.into())
    }

    /// The step of a grid that has this many of them.
    pub(crate) fn steps(self, step: f64) -> Self {
        Self(self.0 * step)
    }

    /// Rounded to f32.
    #[inline(always)]
    pub fn to_f32(self) -> f32 {
        self.0 as f32
    }
}

impl From<Scale> for Divisor {
    #[inline(always)]
    fn from(scale: Scale) -> Self {
        Self(scale.get().into())
    }
}

/// A quotient rule with its scale.
#[derive(Clone, Copy, Debug)]
pub(super) enum By {
    Quotient(f32),
    Product(f32),
    Scaled(f32),
    QuotientInHalf(f32),
    ProductInHalf(f32),
}

impl By {
    /// `v` in units of the scale.
    #[inline(always)]
    pub(super) fn of(self, v: f32) -> f32 {
        let half = |v: f32| from_f16(to_f16(v));
        match self {
            By::Quotient(s) => v / s,
            By::Product(reciprocal) => v * reciprocal,
            By::Scaled(s) => sfu::diva(v * 100.0, s),
            By::QuotientInHalf(s) => half(v / s),
            By::ProductInHalf(reciprocal) => half(v * reciprocal),
        }
    }
}

/// A rule that turns real numbers into INT8 codes: quotient, rounding, overflow.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct QuantRule {
    /// To units of the scale.
    pub quotient: Quotient,
    /// To an integer.
    pub rounding: Rounding,
    /// To INT8.
    pub overflow: Overflow,
}

impl QuantRule {
    /// `rne8(v / s)`: what PyTorch and most kernels do.
    pub const NEAREST_EVEN: QuantRule = QuantRule {
        quotient: Quotient::Divide,
        rounding: Rounding::NearestTiesToEven,
        overflow: Overflow::Saturate,
    };
    /// `sat8(rha(v / s))`.
    pub const HALF_AWAY: QuantRule = QuantRule {
        rounding: Rounding::NearestTiesAway,
        ..QuantRule::NEAREST_EVEN
    };
    /// `sat8(rha(v ⊗ rcp(s)))`: conv output and scan state of the CUDA kernels.
    pub const HALF_AWAY_RECIPROCAL: QuantRule = QuantRule {
        quotient: Quotient::ApproxReciprocal,
        ..QuantRule::HALF_AWAY
    };
    /// `rne8(v ⊗ f32(1/s))`: PyTorch on a GPU, with a scale that is a Python number.
    pub const NEAREST_EVEN_RECIPROCAL: QuantRule = QuantRule {
        quotient: Quotient::RoundedReciprocal,
        ..QuantRule::NEAREST_EVEN
    };
    /// `rne8(diva(v ⊗ 100, s ⊗ 100))`: the state between tokens of the CUDA decode kernel.
    pub const SCALED_QUOTIENT: QuantRule = QuantRule {
        quotient: Quotient::ScaledApproxDivision,
        ..QuantRule::NEAREST_EVEN
    };

    /// `v` in units of `scale`.
    #[inline(always)]
    pub fn in_units(self, v: f32, scale: impl Into<Divisor>) -> f32 {
        self.quotient.by(scale.into()).of(v)
    }

    /// `v` in units of `scale`, rounded, before it is made to fit INT8.
    #[inline(always)]
    pub fn integer(self, v: f32, scale: impl Into<Divisor>) -> f32 {
        self.rounding.round(self.in_units(v, scale))
    }

    /// The code of a value that is in units of the scale already, as a linear step's sums are.
    #[inline(always)]
    pub fn code(self, units: f32) -> i8 {
        self.overflow.to_i8(self.rounding.round(units))
    }

    /// The code of `v`.
    #[inline(always)]
    pub fn quantize(self, v: f32, scale: impl Into<Divisor>) -> i8 {
        self.code(self.in_units(v, scale))
    }

    /// [`QuantRule::quantize_slice`] of a stochastic rule: the value at i has position i.
    fn quantize_at_positions(
        self,
        values: &[f32],
        scale: Divisor,
        codes: &mut [i8],
        mut lfsr: Lfsr,
    ) -> Status {
        let by = self.quotient.by(scale);
        let mut tally = Tally::of(self.overflow);
        for (v, code) in values.iter().zip(codes) {
            let random = lfsr.next_bits();
            let integer = self.rounding.round_at(by.of(*v), random);
            tally.add(integer);
            *code = self.overflow.to_i8(integer);
        }
        tally.status(values.len(), self.overflow)
    }

    /// [`QuantRule::quantize_slice`] of a part of a tensor, whose first value has this position.
    pub fn quantize_part(
        self,
        values: &[f32],
        scale: impl Into<Divisor>,
        codes: &mut [i8],
        position: usize,
    ) -> Status {
        let scale = scale.into();
        match self.rounding.lfsr() {
            Some(lfsr) => {
                let lfsr = lfsr.at(position as u64);
                self.quantize_at_positions(values, scale, codes, lfsr)
            }
            None => self.quantize_slice(values, scale, codes),
        }
    }

    /// Quantizes `values` into `codes` (same length) and counts what did not fit.
    pub fn quantize_slice(
        self,
        values: &[f32],
        scale: impl Into<Divisor>,
        codes: &mut [i8],
    ) -> Status {
        /// Values that are worth a thread of their own.
        const TASK: usize = 1 << 15;
        assert_eq!(values.len(), codes.len());
        let scale = scale.into();
        let quantize = |(values, codes)| {
            dispatch(QuantizeSlice {
                rule: self,
                values,
                scale,
                codes,
            })
        };
        if let Some(lfsr) = self.rounding.lfsr() {
            return self.quantize_at_positions(values, scale, codes, lfsr);
        }
        if values.len() <= TASK {
            return quantize((values, codes));
        }
        values
            .par_chunks(TASK)
            .zip(codes.par_chunks_mut(TASK))
            .map(quantize)
            .reduce(Status::default, Status::plus)
    }
}

struct QuantizeSlice<'a> {
    rule: QuantRule,
    values: &'a [f32],
    scale: Divisor,
    codes: &'a mut [i8],
}

impl Kernel for QuantizeSlice<'_> {
    type Output = Status;

    #[inline(always)]
    fn run(self) -> Status {
        // Each form in a loop of its own: a choice inside would keep it from becoming vectors.
        match self.rule.quotient.by(self.scale) {
            By::Quotient(s) => self.codes_of(|v| By::Quotient(s).of(v)),
            By::Product(s) => self.codes_of(|v| By::Product(s).of(v)),
            By::Scaled(s) => self.codes_of(|v| By::Scaled(s).of(v)),
            By::QuotientInHalf(s) => self.codes_of(|v| By::QuotientInHalf(s).of(v)),
            By::ProductInHalf(s) => self.codes_of(|v| By::ProductInHalf(s).of(v)),
        }
    }
}

impl QuantizeSlice<'_> {
    #[inline(always)]
    fn codes_of(self, quotient: impl Fn(f32) -> f32) -> Status {
        let QuantRule {
            rounding, overflow, ..
        } = self.rule;
        codes_of(rounding, overflow, quotient, self.values, self.codes)
    }
}

/// Rounds `in_units(v)` of each value and makes it fit. For kernels, which give it their instruction set.
#[inline(always)]
pub(crate) fn codes_of<T: Copy>(
    rounding: Rounding,
    overflow: Overflow,
    in_units: impl Fn(T) -> f32,
    values: &[T],
    codes: &mut [i8],
) -> Status {
    /// Values at a time.
    const PART: usize = 256;
    /// The loop.
    #[inline(always)]
    fn by<T: Copy>(
        rounding: Rounding,
        overflow: Overflow,
        in_units: impl Fn(T) -> f32,
        values: &[T],
        codes: &mut [i8],
    ) -> Status {
        let mut tally = Tally::of(overflow);
        for (values, codes) in values.chunks(PART).zip(codes.chunks_mut(PART)) {
            // Most parts fit as they are: nothing to clamp and nothing to count but how far they reach.
            let mut peak = 0;
            for (v, code) in values.iter().zip(codes.iter_mut()) {
                let integer = rounding.round(in_units(*v));
                peak = peak.max(magnitude(integer));
                *code = low_byte(integer);
            }
            if tally.add_fitting(peak) {
                continue;
            }
            for (v, code) in values.iter().zip(codes) {
                let integer = rounding.round(in_units(*v));
                tally.add(integer);
                *code = overflow.to_i8(integer);
            }
        }
        tally.status(values.len(), overflow)
    }
    use Overflow::{Saturate, Wrap};
    use Rounding::{HalfAwayByAdding, NearestTiesAway, NearestTiesToEven};
    // The rules of the kernels are constants in copies of the loop of their own: a choice inside would
    // keep it from becoming vectors.
    match (rounding, overflow) {
        (NearestTiesToEven, Saturate) => by(NearestTiesToEven, Saturate, in_units, values, codes),
        (NearestTiesAway, Saturate) => by(NearestTiesAway, Saturate, in_units, values, codes),
        (HalfAwayByAdding, Saturate) => by(HalfAwayByAdding, Saturate, in_units, values, codes),
        (NearestTiesAway, Wrap) => by(NearestTiesAway, Wrap, in_units, values, codes),
        _ => by(rounding, overflow, in_units, values, codes),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slices_agree_with_single_values() {
        let values = (-4000..4000).map(|i| i as f32 * 0.0625 + 0.03125);
        // Of parts in which everything fits, some have one value that does not.
        let odd = [
            f32::NAN,
            f32::INFINITY,
            f32::NEG_INFINITY,
            1e30,
            -16.0,
            15.9,
            -16.07,
        ];
        let fitting = |i: usize| (i % 250) as f32 * 0.125 - 15.875;
        let strange = |i: usize| odd.get(i / 300).filter(|_| i % 300 == 77);
        let values: Vec<f32> = values
            .chain((0..3000).map(|i| strange(i).copied().unwrap_or(fitting(i))))
            .collect();
        let scale = Scale::new(0.125).unwrap();
        for quotient in Quotient::ALL {
            for rounding in Rounding::ALL {
                for overflow in Overflow::ALL {
                    let rule = QuantRule {
                        quotient,
                        rounding,
                        overflow,
                    };
                    let mut codes = vec![0; values.len()];
                    let status = rule.quantize_slice(&values, scale, &mut codes);
                    let (mut overflows, mut peak) = (0, 0.0f32);
                    for (v, code) in values.iter().zip(&codes) {
                        assert_eq!(rule.quantize(*v, scale), *code, "{rule:?} of {v}");
                        let integer = rule.integer(*v, scale);
                        let fits = (overflow.lowest()..=127.0).contains(&integer);
                        overflows += u64::from(!fits);
                        peak = peak.max(integer.abs());
                    }
                    let want = Status::counted(values.len(), overflows, peak, overflow);
                    assert_eq!(status, want);
                    assert!(overflows > 0);
                }
            }
        }
    }

    /// `rne8(v / s)`, `rha(v / s)`, `rha(v ⊗ rcp(s))`, `rne8(diva(…))`: what their names say.
    #[test]
    fn the_named_rules() {
        let rule = |quotient, rounding| QuantRule {
            quotient,
            rounding,
            overflow: Overflow::Saturate,
        };
        let (even, away) = (Rounding::NearestTiesToEven, Rounding::NearestTiesAway);
        for (named, meant) in [
            (QuantRule::NEAREST_EVEN, rule(Quotient::Divide, even)),
            (QuantRule::HALF_AWAY, rule(Quotient::Divide, away)),
            (
                QuantRule::HALF_AWAY_RECIPROCAL,
                rule(Quotient::ApproxReciprocal, away),
            ),
            (
                QuantRule::SCALED_QUOTIENT,
                rule(Quotient::ScaledApproxDivision, even),
            ),
        ] {
            assert_eq!(named, meant);
        }
    }

    #[test]
    fn the_three_scale_orders_differ() {
        let a = Multiplier::new(0.62).unwrap();
        let b = Scale::new(0.0063).unwrap();
        let value = |order: ScaleOrder| -> Vec<u32> {
            (1..2000)
                .map(|acc| order.apply(a, b, Acc(acc)).to_bits())
                .collect()
        };
        let [row, channel, one] = ScaleOrder::ALL.map(value);
        assert_ne!(row, channel);
        assert_ne!(row, one);
        assert_ne!(channel, one);
    }
}
