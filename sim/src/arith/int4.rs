//! Four-bit weights: from codes with a scale for each group to the INT8 weights of a product, from its
//! sums to outputs, and from real weights to codes. Source: `docs/arithmetic.md`, four-bit weights.

use super::requant::{AbsmaxDivision, to_f16};
use super::round::Rounding;
use super::saturate::Overflow;
use crate::quant::Scale;
use half::f16;
use serde::{Deserialize, Serialize};
use std::sync::OnceLock;

/// Codes of a row, one after another, that share a group scale.
pub const GROUP: usize = 128;

/// The lowest four-bit code; the highest is 7.
pub const LOWEST: i8 = -8;

/// What a step of a code is worth where rows have no groups: codes become INT8 by ⋅16.
pub const STEP_WITHOUT_GROUPS: i8 = 16;

/// How a code and the scale of its group become an INT8 weight.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Dequantize {
    /// `sat8(rne(code · s_group))`.
    Saturate,
    /// The kernel's: one binary16 `fma(code, s_group, 1152)`, whose steps are 1 and whose low byte
    /// is the weight plus 128. Products that do not round into −128…127 wrap; below −128 the sum's
    /// steps are 0.5, and what rounds to −128.5 there (from −128.25 down) gives 127. An infinite
    /// scale gives −128, NaN gives 127.
    WrappingFma,
}

impl Dequantize {
    /// Every rule.
    pub const ALL: [Dequantize; 2] = [Dequantize::Saturate, Dequantize::WrappingFma];

    /// The INT8 weight of a code, −8 to 7.
    pub fn weight(self, code: i8, s_group: f16) -> i8 {
        // Exact: 4 bits times 11.
        let product = f32::from(code) * f32::from(s_group);
        match self {
            Dequantize::Saturate => {
                Overflow::Saturate.to_i8(Rounding::NearestTiesToEven.round(product))
            }
            Dequantize::WrappingFma => {
                // The f32 sum rounds before binary16 does, but never onto or off a tie of it; a test
                // goes through all scales and codes.
                (fused(product).to_bits() as u8 ^ 0x80) as i8
            }
        }
    }

    /// Whether the INT8 weight of a code is not `rne(code · s_group)`: it was saturated, or wrapped.
    pub fn overflows(self, code: i8, s_group: f16) -> bool {
        let product = f32::from(code) * f32::from(s_group);
        f32::from(self.weight(code, s_group)) != Rounding::NearestTiesToEven.round(product)
    }

    /// The INT8 weights of all codes: code −8 first.
    pub fn table(self, s_group: f16) -> [i8; 16] {
        std::array::from_fn(|i| self.weight(i as i8 + LOWEST, s_group))
    }

    /// [`Dequantize::table`] of every scale, by its bits. Made once: all weights of a model share the few that occur,
    /// which then stay in the cache.
    pub fn tables(self) -> &'static [[i8; 16]] {
        static TABLES: [OnceLock<Vec<[i8; 16]>>; 2] = [const { OnceLock::new() }; 2];
        TABLES[self as usize].get_or_init(|| {
            (0..=u16::MAX)
                .map(|bits| self.table(f16::from_bits(bits)))
                .collect()
        })
    }
}

/// `product + 1152` in binary16. NaN is the device's, all bits set.
fn fused(product: f32) -> f16 {
    match to_f16(product + 1152.0) {
        sum if sum.is_nan() => f16::from_bits(0x7FFF),
        sum => sum,
    }
}

/// The INT8 weights of all codes of a row without groups.
pub fn table_without_groups() -> &'static [[i8; 16]; 1] {
    const TABLE: [i8; 16] = {
        let mut table = [0; 16];
        let mut i = 0;
        while i < 16 {
            table[i] = STEP_WITHOUT_GROUPS * (i as i8 + LOWEST);
            i += 1;
        }
        table
    };
    &[TABLE]
}

/// The real value of a sum of INT8 weights, or its value in units of the output's scale where
/// `s_channel` was divided by that, in f32: `(f32(acc) ⊗ s_channel) ⊗ s_in`.
#[inline(always)]
pub fn real(acc: i32, s_channel: f32, s_in: Scale) -> f32 {
    (acc as f32 * s_channel) * s_in.get()
}

/// A row of real weights in four bits.
#[derive(Clone, Debug, PartialEq)]
pub struct Row {
    /// One of −8 to 7 for each weight.
    pub codes: Vec<i8>,
    /// One for each group of 128.
    pub groups: Vec<f16>,
    /// An f32 that binary16 holds.
    pub channel: f32,
}

/// Quantizes a row, in binary16, every operation rounded: `s = 2·max|w| / 15` of each group;
/// `code = clamp(rne(w / s), −8, 7)`; `s_channel = max |code ⊗ s| / 127` over the row;
/// `s_group = s / s_channel`. A group of zeros has code 0 and scale 0. A channel scale that would be
/// zero is 2^-24, binary16's least.
pub fn quantize_row(weights: &[f16]) -> Row {
    let largest = |values: &mut dyn Iterator<Item = f16>| {
        let magnitudes = values.map(|v| f32::from(v).abs());
        magnitudes.fold(0.0, f32::max)
    };
    let mut codes = Vec::with_capacity(weights.len());
    let mut steps = Vec::new();
    let mut reach = 0.0f32;
    for group in weights.chunks(GROUP) {
        let step = to_f16(2.0 * largest(&mut group.iter().copied()) / 15.0);
        let s = f32::from(step);
        let from = codes.len();
        codes.extend(group.iter().map(|w| match s > 0.0 {
            true => {
                let quotient = f32::from(to_f16(f32::from(*w) / s));
                Rounding::NearestTiesToEven.round(quotient).clamp(-8.0, 7.0) as i8
            }
            false => 0,
        }));
        let mut worth = (codes[from..].iter()).map(|code| to_f16(f32::from(*code) * s));
        reach = reach.max(largest(&mut worth));
        steps.push(step);
    }
    let channel = f32::from(to_f16(AbsmaxDivision::Division.of(reach)))
        .max(f32::from(f16::MIN_POSITIVE_SUBNORMAL));
    Row {
        codes,
        groups: (steps.iter())
            .map(|step| to_f16(f32::from(*step) / channel))
            .collect(),
        channel,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// `code · s + 1152` in binary16 by integers, whose low byte says the weight.
    fn by_integers(code: i8, s: f16) -> i8 {
        // In units of 2^-24 every finite binary16 is whole.
        let fixed = i128::from((f64::from(s) * 2f64.powi(24)) as i64);
        let sum = i128::from(code) * fixed + (1152 << 24);
        let magnitude = sum.unsigned_abs();
        // 11 bits are kept.
        let bits = 128 - magnitude.leading_zeros();
        let cut = bits.saturating_sub(11);
        let (kept, rest) = (magnitude >> cut, magnitude & ((1 << cut) - 1));
        let half = 1u128 << cut >> 1;
        let up = cut > 0 && (rest > half || rest == half && kept % 2 == 1);
        let rounded = f64::from((kept + u128::from(up)) as u32) * 2f64.powi(cut as i32 - 24);
        let signed = if sum < 0 { -rounded } else { rounded };
        let half = f16::from_f32(signed as f32);
        (half.to_bits() as u8 ^ 0x80) as i8
    }

    #[test]
    fn one_binary16_fma_for_every_scale_and_code() {
        for bits in 0..=u16::MAX {
            let s = f16::from_bits(bits);
            for code in -8..8 {
                let got = Dequantize::WrappingFma.weight(code, s);
                let product = f64::from(code) * f64::from(s);
                if !s.is_finite() {
                    assert_eq!(got, if product.is_nan() { 127 } else { -128 }, "{code} {s}");
                    continue;
                }
                assert_eq!(got, by_integers(code, s), "{code} · {s}");
                let nearest = product.round_ties_even();
                let fits = (-128.25..127.5).contains(&product);
                assert_eq!(f64::from(got) == nearest, fits, "{code} · {s}");
                assert_eq!(Dequantize::WrappingFma.overflows(code, s), !fits);
                let saturated = f64::from(Dequantize::Saturate.weight(code, s));
                assert_eq!(saturated, nearest.clamp(-128.0, 127.0));
                let fits = saturated == nearest;
                assert_eq!(Dequantize::Saturate.overflows(code, s), !fits);
            }
        }
    }

    #[test]
    fn beyond_the_range_steps_are_halves_and_the_low_byte_wraps() {
        let weight = |code, s| Dequantize::WrappingFma.weight(code, f16::from_f32(s));
        assert_eq!(weight(-8, 16.0), -128);
        assert_eq!(weight(-8, 16.0625), 127); // -128.5
        assert_eq!(weight(-8, 16.125), 126); // -129: two half steps below 1024
        assert_eq!(weight(7, 18.25), -128); // 127.75 rounds to 128
        assert_eq!(Dequantize::Saturate.weight(7, f16::from_f32(18.25)), 127);
    }

    #[test]
    fn rows_are_quantized_in_binary16() {
        let mut weights = vec![f16::ZERO; 256];
        weights[3] = f16::from_f32(-0.75);
        weights[5] = f16::from_f32(0.31);
        let row = quantize_row(&weights);
        assert_eq!(row.groups[1], f16::ZERO);
        assert_eq!((row.codes[3], row.codes[5]), (-8, 3));
        let s = f32::from(f16::from_f32(0.1));
        assert_eq!(row.channel, f32::from(f16::from_f32(8.0 * s / 127.0)));
        assert_eq!(row.groups[0], f16::from_f32(s / row.channel));
        let zeros = quantize_row(&[f16::ZERO; 128]);
        assert_eq!(zeros.channel, 2f32.powi(-24));
        assert!(zeros.codes.iter().all(|code| *code == 0));
    }
}
