//! How results are stored: as reals of a type, or as codes by a quantizer.

use super::{Activation, Math, Measured};
use crate::diagnosis::diagnose::rule::QuantizerPart;
use half::{bf16, f16};
use ndarray::{Array2, Axis, s};
use scalescope_sim::arith::fixed::Requantizer;
use scalescope_sim::arith::real::RealRules;
use scalescope_sim::arith::requant::QuantRule;
use scalescope_sim::arith::round::Rounding;
use scalescope_sim::profile::unit::ScaleGrid;
use scalescope_sim::quant::Scale;
use scalescope_sim::step::dynamic;
use std::sync::Arc;

/// A narrower type, or a range, that a value passes through.
#[derive(Clone, Copy, Debug, PartialEq)]
#[allow(missing_docs)] // `name` says what each is
pub enum Narrow {
    F16,
    Bf16,
    /// f16 toward zero.
    F16Cut,
    /// The upper half of the f32.
    Bf16Cut,
    /// f16 without its subnormal numbers, which are zero.
    F16Flushed,
    /// A float with so many bits of mantissa.
    Mantissa(u8),
    /// 19 bits, of which ten are the mantissa's: products of f32 on tensor cores.
    Tf32,
    /// FP8 with three bits of mantissa; the largest is 448.
    E4m3,
    /// FP8 with two bits of mantissa; the largest is 57,344.
    E5m2,
    /// Codes of so many bits and this step, rounded so.
    Codes(u8, f32, Rounding),
    /// From the lowest to the highest value.
    Range(f32, f32),
}

/// A float with so many bits of mantissa, whose steps are no smaller than 2^`least`, up to `top`.
fn to_float(v: f32, (mantissa, least, top): (i32, i32, f32), round: fn(f64) -> f64) -> f32 {
    if v == 0.0 || !v.is_finite() {
        return v;
    }
    let exponent = ((v.to_bits() >> 23) & 0xff) as i32 - 127;
    let step = f64::from((exponent - mantissa).max(least)).exp2();
    let near = (round(f64::from(v) / step) * step) as f32;
    near.clamp(-top, top)
}

impl Narrow {
    /// The types of 16 bits, and floats of fewer and more bits, that a factor may pass through.
    pub fn of_factors() -> Vec<Narrow> {
        let mantissas = (2..=15).map(Narrow::Mantissa);
        let all = [Narrow::F16, Narrow::Bf16, Narrow::F16Cut, Narrow::Bf16Cut].into_iter();
        all.chain(mantissas).collect()
    }

    /// The types that values may pass through: those of 16 bits first.
    pub const FLOATS: [Narrow; 8] = [
        Narrow::F16,
        Narrow::Bf16,
        Narrow::F16Cut,
        Narrow::Bf16Cut,
        Narrow::F16Flushed,
        Narrow::Tf32,
        Narrow::E4m3,
        Narrow::E5m2,
    ];

    /// In words.
    pub fn name(self) -> String {
        match self {
            Narrow::F16 => "f16".to_owned(),
            Narrow::Bf16 => "bf16".to_owned(),
            Narrow::F16Cut => "f16, toward zero".to_owned(),
            Narrow::Bf16Cut => "bf16, toward zero".to_owned(),
            Narrow::F16Flushed => "f16 whose subnormal numbers are zero".to_owned(),
            Narrow::Mantissa(bits) => format!("a float with {bits} bits of mantissa"),
            Narrow::Tf32 => "TF32".to_owned(),
            Narrow::E4m3 => "FP8 (E4M3)".to_owned(),
            Narrow::E5m2 => "FP8 (E5M2)".to_owned(),
            Narrow::Codes(bits, _, Rounding::NearestTiesToEven) => format!("INT{bits}"),
            Narrow::Codes(bits, _, by) => format!("INT{bits} ({})", QuantizerPart::Rounding(by)),
            Narrow::Range(low, high) if high == f32::INFINITY => format!("{low} and more"),
            Narrow::Range(low, high) => format!("{low} to {high}"),
        }
    }

    /// Of `v`.
    #[inline]
    pub fn of(self, v: f32) -> f32 {
        match self {
            Narrow::F16 => f16::from_f32(v).to_f32(),
            Narrow::Bf16 => bf16::from_f32(v).to_f32(),
            Narrow::F16Cut => to_float(v, (10, -24, 65504.0), f64::trunc),
            Narrow::Bf16Cut => f32::from_bits(v.to_bits() & 0xffff_0000),
            Narrow::F16Flushed => match f16::from_f32(v).to_f32() {
                short if short.abs() < f16::MIN_POSITIVE.to_f32() => 0.0,
                short => short,
            },
            Narrow::Mantissa(bits) => {
                to_float(v, (bits.into(), -200, f32::MAX), f64::round_ties_even)
            }
            Narrow::Tf32 => to_float(v, (10, -136, f32::MAX), f64::round_ties_even),
            Narrow::E4m3 => to_float(v, (3, -9, 448.0), f64::round_ties_even),
            Narrow::E5m2 => to_float(v, (2, -16, 57344.0), f64::round_ties_even),
            Narrow::Codes(bits, step, by) => {
                let top = ((1i32 << (bits - 1)) - 1) as f32;
                step * by.round(v / step).clamp(-top - 1.0, top)
            }
            Narrow::Range(low, high) => v.clamp(low, high),
        }
    }
}

/// How results are stored.
#[derive(Clone, Debug)]
pub struct Output {
    /// Codes, by this quantizer.
    pub quantizer: Option<Quantize>,
    /// Whether reals are rounded to binary16.
    pub half: bool,
    /// A type that reals pass through before they are stored.
    pub through: Option<Narrow>,
    /// What is added to a real before it is stored, in units of the grid for codes.
    pub offset: f32,
    /// What it is multiplied with.
    pub factor: f32,
    /// Parts of a step to which it is rounded, and how, before it is rounded to steps.
    pub first_rounded: Option<(u8, Rounding)>,
    /// A function that it passes through before it is stored.
    pub function: Option<Activation>,
    /// One that was read off a dump.
    pub measured: Option<Arc<Measured>>,
}

/// A quantizer.
#[derive(Clone, Copy, Debug)]
pub struct Quantize {
    /// The step of its grid; values are divided by it. Of a dynamic one the values say.
    pub scale: f32,
    /// Which values have a scale of their own, if it is found at run time.
    pub dynamic: Option<Dynamic>,
    /// Channels among which the largest magnitude is looked for, from the first to before the last, where the scale is
    /// found at run time; all if `None`.
    pub part: Option<(usize, usize)>,
    /// The code that the largest magnitude gets, where the scale is found at run time.
    pub largest: f32,
    /// What the scale is found from, where it is found at run time.
    pub found: Found,
    /// Its rule.
    pub rule: QuantRule,
    /// Whether values come in units of the grid.
    pub in_units: bool,
    /// Whether what is stored is the code's real value.
    pub dequantized: bool,
    /// Added to the rounded value.
    pub zero_point: f32,
    /// The range of codes is that of this many bits.
    pub bits: u8,
}

/// The values that share a scale which is found at run time.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Dynamic {
    /// All of the tensor, as PyTorch divides.
    Tensor,
    /// Those of a token, as PyTorch divides.
    TorchToken,
    /// Those of a token, with a scale on a grid.
    Token(ScaleGrid),
}

/// What a scale is found from at run time.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Found {
    /// The largest magnitude.
    Magnitude,
    /// The largest value.
    Value,
    /// The smallest value.
    Smallest,
    /// Half of what lies between the largest and the smallest value.
    HalfRange,
    /// The magnitude below which this share of all lie.
    Share(f32),
    /// So many times the root of the mean square.
    Deviations(f32),
    /// The power of two above the largest magnitude.
    PowerAbove,
    /// The power of two next to the largest magnitude.
    PowerNext,
}

impl Found {
    /// Those that are not the largest magnitude.
    pub const OTHERS: [Found; 11] = [
        Found::Value,
        Found::Smallest,
        Found::HalfRange,
        Found::Share(0.99),
        Found::Share(0.999),
        Found::Share(0.9999),
        Found::Deviations(3.0),
        Found::Deviations(4.0),
        Found::Deviations(6.0),
        Found::PowerAbove,
        Found::PowerNext,
    ];

    /// In words.
    pub fn words(self) -> String {
        match self {
            Found::Magnitude => "the largest magnitude".to_owned(),
            Found::Value => "the largest value, and not the largest magnitude".to_owned(),
            Found::Smallest => "the smallest value".to_owned(),
            Found::HalfRange => "half of the range from the smallest to the largest".to_owned(),
            Found::Share(share) => format!("the magnitude below which {share} of all lie"),
            Found::Deviations(n) => format!("{n} times the root of the mean square"),
            Found::PowerAbove => "the power of two above the largest magnitude".to_owned(),
            Found::PowerNext => "the power of two next to the largest magnitude".to_owned(),
        }
    }

    /// Of some values.
    fn of<'a>(self, values: impl Iterator<Item = &'a f32> + Clone) -> f32 {
        let largest = || values.clone().fold(0.0f32, |max, v| max.max(v.abs()));
        let highest = || values.clone().copied().fold(f32::MIN, f32::max);
        let lowest = || values.clone().copied().fold(f32::MAX, f32::min);
        match self {
            Found::Magnitude => largest(),
            Found::Value => highest(),
            Found::Smallest => -lowest(),
            Found::HalfRange => 0.5 * (highest() - lowest()),
            Found::Share(share) => {
                let mut all: Vec<f32> = values.map(|v| v.abs()).collect();
                all.sort_by(f32::total_cmp);
                let at = (share * all.len() as f32) as usize;
                all.get(at.min(all.len().saturating_sub(1)))
                    .copied()
                    .unwrap_or(0.0)
            }
            Found::Deviations(n) => {
                let (count, sum) = values.fold((0usize, 0.0f64), |(count, sum), v| {
                    (count + 1, sum + f64::from(*v) * f64::from(*v))
                });
                n * (sum / count.max(1) as f64).sqrt() as f32
            }
            Found::PowerAbove => largest().log2().ceil().exp2(),
            Found::PowerNext => largest().log2().round().exp2(),
        }
    }
}

impl Quantize {
    /// A grid of its own.
    pub fn of(scale: f32, rule: QuantRule) -> Self {
        Self {
            scale,
            dynamic: None,
            part: None,
            largest: 127.0,
            found: Found::Magnitude,
            rule,
            in_units: false,
            dequantized: false,
            zero_point: 0.0,
            bits: 8,
        }
    }

    /// The code of an integer of the grid.
    #[inline]
    pub(super) fn fit(&self, integer: i128) -> f32 {
        let integer = integer + self.zero_point as i128;
        if self.bits < 8 {
            let top = (1i128 << (self.bits - 1)) - 1;
            return integer.clamp(-top - 1, top) as f32;
        }
        f32::from(self.rule.overflow.fit(integer).0)
    }
}

/// Codes whose scale puts the largest magnitude on a code of its own.
fn over(values: &Array2<f32>, q: &Quantize) -> Array2<f32> {
    let (first, last) = q.part.unwrap_or((0, values.ncols()));
    let seen = values.slice(s![.., first..last.min(values.ncols())]);
    let scale = Scale::new(q.found.of(seen.iter()) / q.largest)
        .unwrap_or_else(|_| Scale::new(1.0).expect("one"));
    values.mapv(|v| q.fit(q.rule.rounding.round(q.rule.in_units(v, scale)) as i128))
}

impl Output {
    /// As reals.
    pub fn real(half: bool) -> Self {
        Self {
            quantizer: None,
            half,
            through: None,
            offset: 0.0,
            factor: 1.0,
            first_rounded: None,
            function: None,
            measured: None,
        }
    }

    /// A value after the function that it passes through, if there is one.
    fn through_function(&self, v: f32) -> f32 {
        let unit = match &self.quantizer {
            Some(q) if q.in_units => q.scale,
            _ => 1.0,
        };
        let math = Math::of(RealRules::CorrectlyRounded);
        let v = self.function.map_or(v, |f| f.of(math, v * unit) / unit);
        self.measured.as_ref().map_or(v, |f| f.at(v * unit) / unit)
    }

    /// What is stored of `v`: a code or a real.
    #[inline]
    pub fn of(&self, v: f32) -> f32 {
        let mut v = v;
        if self.function.is_some() || self.measured.is_some() {
            v = self.through_function(v);
        }
        if let Some(narrow) = self.through {
            v = narrow.of(v);
        }
        let Some(q) = self.quantizer.as_ref().filter(|q| q.dynamic.is_none()) else {
            let v = v * self.factor + self.offset;
            return match self.half {
                true => f16::from_f32(v).to_f32(),
                false => v,
            };
        };
        let scale = || Scale::new(q.scale).unwrap_or_else(|_| Scale::new(1.0).expect("one"));
        let units = match q.in_units {
            true => v,
            false => q.rule.in_units(v, scale()),
        };
        let units = match (self.factor, self.offset) {
            (1.0, 0.0) => units,
            (factor, offset) => units * factor + offset,
        };
        let units = match self.first_rounded {
            Some((parts, by)) => by.round(units * f32::from(parts)) / f32::from(parts),
            None => units,
        };
        let integer = q.rule.rounding.round(units) + q.zero_point;
        let code = match q.bits {
            8.. => f32::from(q.rule.overflow.to_i8(integer)),
            bits => {
                let top = f32::from((1i16 << (bits - 1)) - 1);
                integer.clamp(-top - 1.0, top)
            }
        };
        if q.dequantized { q.scale * code } else { code }
    }

    /// What is stored of an integer sum that a chip brings to the output's grid.
    #[inline]
    pub(super) fn of_sum(&self, sum: i64, by: &Requantizer) -> f32 {
        let plain = (self.factor, self.offset, self.through, self.first_rounded)
            == (1.0, 0.0, None, None)
            && self.function.is_none()
            && self.measured.is_none();
        match self.quantizer.as_ref().filter(|q| plain && q.in_units) {
            Some(q) => q.fit(by.integer(sum, 0)),
            None => self.of((sum as f64 * by.real()) as f32),
        }
    }

    /// All values, where a quantizer looks at many of them at once.
    pub(super) fn finish(&self, values: Array2<f32>) -> Array2<f32> {
        let Some((q, dynamic)) = self.quantizer.as_ref().and_then(|q| Some((q, q.dynamic?))) else {
            return values;
        };
        if q.largest != 127.0 || q.part.is_some() || q.found != Found::Magnitude {
            return match dynamic {
                Dynamic::Tensor => over(&values, q),
                Dynamic::TorchToken | Dynamic::Token(_) => {
                    let rows = values.axis_chunks_iter(Axis(0), 1);
                    let rows: Vec<_> = rows.map(|row| over(&row.to_owned(), q)).collect();
                    let rows: Vec<_> = rows.iter().map(|row| row.view()).collect();
                    ndarray::concatenate(Axis(0), &rows).expect("rows of one tensor")
                }
            };
        }
        let (tensor, _) = match dynamic {
            Dynamic::Tensor => dynamic::per_tensor(&values, q.rule),
            Dynamic::TorchToken => dynamic::per_token(&values, q.rule),
            Dynamic::Token(grid) => dynamic::tokens(&values, grid, q.rule),
        };
        tensor.codes.mapv(|code| q.fit(code.into()))
    }
}
