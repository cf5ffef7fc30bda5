//! Correctly rounded f32 `exp` and `log1p`: for every input the f32 nearest to the true value, ties
//! to even. Source: `docs/arithmetic.md` (`exact`, `torch`).
//!
//! Both evaluate a series in f64, whose error of about one f64 ulp leaves the nearest f32 in doubt
//! only for the few inputs whose result lies that close to the midpoint of two f32. Those inputs are
//! known (`sim/tests/correct_rounding.rs` searches all 2^32 and lists them), and so the proof is not
//! an error bound but enumeration: the same test compares every input with an independent oracle,
//! in every instruction set. Change one operation here and it must run again.
//!
//! Only `+ − × ÷` and bit operations: they are exact or correctly rounded everywhere, so no result
//! depends on the instruction set. No fused multiply-add: without the instruction it is a call. No
//! branch and no table: loops vectorise to 8 (AVX-512) or 4 (AVX2) f64 lanes.

use std::hint::select_unpredictable as select;

/// log(2) rounded to 42 bits: its product with an integer of up to 11 bits is exact.
const LN2_HI: f64 = f64::from_bits(0x3FE6_2E42_FEFA_3800);
/// log(2) − LN2_HI, nearest f64 (5.5e-14).
const LN2_LO: f64 = f64::from_bits(0x3D2E_F357_93C7_6730);
/// 1/log(2), nearest f64.
const LOG2_E: f64 = f64::from_bits(0x3FF7_1547_652B_82FE);
/// 1.5·2^52: adding it rounds to an integer and leaves that in the low bits.
const TO_INTEGER: f64 = f64::from_bits(0x4338_0000_0000_0000);
/// 2^52: its low bits hold an unsigned integer.
const FROM_INTEGER: u64 = 0x4330_0000_0000_0000;
/// √½, nearest f64.
const SQRT_HALF: u64 = 0x3FE6_A09E_667F_3BCD;
/// The exponent field of 1.0, and its place.
const BIAS: u64 = 1023;
const EXPONENT: u32 = 52;

/// eˣ, correctly rounded, for every f32. NaN gives the canonical NaN (0x7FC00000).
///
/// eˣ = 2^k·e^r with r = x − k·log 2, |r| ≤ ½ log 2, and the Taylor series to r^13/13!, whose rest is
/// below 2^-57.7. The f64 result is off by an ulp at most; the hardest input, 0xC16912CD, lies 1.27
/// ulps from a midpoint.
#[inline(always)]
pub fn exp(x: f32) -> f32 {
    // Beyond these the result is ∞ and 0 by the last rounding, and 2^k stays an f64.
    let v = f64::from(x);
    let v = select(v > 89.0, 89.0, v);
    let v = select(v < -104.0, -104.0, v);

    let shifted = v * LOG2_E + TO_INTEGER;
    let k = shifted - TO_INTEGER;
    let r = (v - k * LN2_HI) - k * LN2_LO;

    // 1/2! + r/3! + … in pairs: short chains, as many operations as Horner's rule and two more.
    let pair = |even: f64, odd: f64| 1.0 / even + r * (1.0 / odd);
    let (r2, r4) = (r * r, (r * r) * (r * r));
    let low = pair(2.0, 6.0) + r2 * pair(24.0, 120.0);
    let middle = pair(720.0, 5_040.0) + r2 * pair(40_320.0, 362_880.0);
    let high = pair(3_628_800.0, 39_916_800.0) + r2 * pair(479_001_600.0, 6_227_020_800.0);
    let p = low + r4 * (middle + r4 * high);
    let y = 1.0 + (r + r2 * p);

    // The product with 2^k is exact, down to f32's subnormals and below: one rounding, at the end.
    let scale = f64::from_bits((shifted.to_bits() << EXPONENT).wrapping_add(BIAS << EXPONENT));
    select(x.is_nan(), f32::NAN, (y * scale) as f32)
}

/// log(1 + x), correctly rounded, for every f32: −∞ at −1, the canonical NaN (0x7FC00000) below −1
/// and for NaN, −0 for −0.
///
/// log(1+x) = k·log 2 + log(1+f) with 1+f in [√½, √2), and with s = f/(2+f), h = f²/2,
/// log(1+f) = f − (h − s·(h + 2s²/3 + 2s⁴/5 + …)). The rest of the series is below 2^-62.
/// 35 results lie within 8 f64 ulps of a midpoint, the hardest (0x35400003, 0xB53FFFFD) within
/// 0.0001, so the f64 sum must not round to the midpoint itself: it is rounded to odd.
#[inline(always)]
pub fn log1p(x: f32) -> f32 {
    let v = f64::from(x);
    // Exact from |x| = 2^-29 on, if x ≤ 2^53; where it is not, k = 0 takes f from x, or 1 is far
    // below the result's last bit.
    let one_plus = (1.0 + v).to_bits();
    // k, with 1 + x in [√½·2^k, √2·2^k), is the exponent field of this; plus 1024, to be positive.
    let above = one_plus
        .wrapping_sub(SQRT_HALF)
        .wrapping_add(1024 << EXPONENT);
    let k =
        f64::from_bits(FROM_INTEGER | above >> EXPONENT) - (f64::from_bits(FROM_INTEGER) + 1024.0);
    let power = (above >> EXPONENT << EXPONENT).wrapping_sub(1024 << EXPONENT);
    let m = f64::from_bits(one_plus.wrapping_sub(power));
    let f = select(k == 0.0, v, m - 1.0);

    let s = f / (2.0 + f);
    let (z, z2) = (s * s, (s * s) * (s * s));
    let pair = |even: f64, odd: f64| 2.0 / even + z * (2.0 / odd);
    let tail = pair(13.0, 15.0) + z2 * (pair(17.0, 19.0) + z2 * (2.0 / 21.0));
    let series = 2.0 / 3.0 + z * (pair(5.0, 7.0) + z2 * (pair(9.0, 11.0) + z2 * tail));
    let h = 0.5 * f * f;

    // high + low, where high + rest = k·LN2_HI + f exactly (|k·LN2_HI| > |f| unless k = 0).
    let k_high = k * LN2_HI;
    let high = k_high + f;
    let rest = f - (high - k_high);
    let low = ((s * (h + z * series) + k * LN2_LO) - h) + rest;
    // Their sum rounded to odd: truncated, and the last bit set. The rounding to f32 then sees on
    // which side of a midpoint the sum lies. Never exact, so no exact result is harmed.
    let sum = high + low;
    let error = low - (sum - high);
    let beyond = (error.to_bits() ^ sum.to_bits()) >> 63;
    let result = f64::from_bits(sum.to_bits().wrapping_sub(beyond) | 1) as f32;

    let result = select(x == 0.0 || x == f32::INFINITY, x, result);
    let result = select(x == -1.0, f32::NEG_INFINITY, result);
    select(x < -1.0 || x.is_nan(), f32::NAN, result)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A stride over all bits, against f64 functions rounded once more. That second rounding could
    /// go wrong only within 2^-29 of a midpoint, where none of these inputs lies.
    #[test]
    fn near_functions_of_f64() {
        let same = |x: f32, got: f32, want: f64| {
            let want = want as f32;
            assert!(got == want || got.is_nan() && want.is_nan(), "{x:e}");
        };
        for bits in (0..=u32::MAX).step_by(16_411) {
            let x = f32::from_bits(bits);
            same(x, exp(x), libm::exp(x.into()));
            same(x, log1p(x), libm::log1p(x.into()));
            // Where results are neither 0, 1 nor infinite.
            let x = x % 104.0;
            same(x, exp(x), libm::exp(x.into()));
        }
        for x in [0.0, f32::INFINITY, f32::NEG_INFINITY, -1.0, f32::NAN] {
            same(x, exp(x), libm::exp(x.into()));
            same(x, log1p(x), libm::log1p(x.into()));
        }
        assert!(log1p(-0.0).is_sign_negative());
        for nan in [exp(-f32::NAN), log1p(-f32::NAN), log1p(-2.0)] {
            assert_eq!(nan.to_bits(), 0x7FC0_0000);
        }
    }

    /// Results so close to a midpoint that another implementation missed them (docs/exhaustive.md), or that
    /// the last terms of the series decide.
    #[test]
    fn hard_inputs() {
        for (x, y) in [
            (0xBBF0_EDF1, 0x3F7E_1FE9),
            (0x401B_6C99, 0x4135_7866),
            (0xBF81_EADF, 0x3EB9_8DC1),
            (0x3E4C_80CA, 0x3F9C_4B53),
        ] {
            assert_eq!(exp(f32::from_bits(x)).to_bits(), y, "{x:x}");
        }
        for (x, y) in [
            (0x3540_0003, 0x353F_FFFF),
            (0x3710_001B, 0x370F_FFF3),
            (0x3770_004B, 0x376F_FFDB),
            (0x3EFD_81AD, 0x3ECD_EEE1),
            (0x4107_8FEB, 0x400F_E5E7),
            (0x65D8_90D3, 0x4254_D1F9),
            (0xB53F_FFFD, 0xB540_0001),
            (0xB70F_FFE5, 0xB710_000D),
            (0xBB0E_C8C4, 0xBB0E_F0A5),
        ] {
            assert_eq!(log1p(f32::from_bits(x)).to_bits(), y, "{x:x}");
        }
    }
}
