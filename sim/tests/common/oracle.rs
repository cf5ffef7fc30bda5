//! exp, log1p and 2^x by 128-bit integer arithmetic: the oracle of the exhaustive tests.
//!
//! Independent of what it judges: no floating-point operation, no coefficient taken from anywhere.
//! Every constant is computed here from its series. Numbers are fixed point with [`F`] = 120
//! fraction bits; a unit is 2^-120.
//!
//! **Error.** Every product, quotient and table entry is truncated. The bounds next to the functions
//! count units; what is taken from and added to a value before it is rounded, 2^16 to 2^20 units
//! (2^-100), is above their sum. Both roundings must agree, so a returned f32 is *proved* to be the
//! correctly rounded one. `Undecided` never occurred (docs/exhaustive.md).

use std::sync::LazyLock;

/// Fraction bits.
const F: u32 = 120;
const ONE: u128 = 1 << F;
/// Above the errors of [`exp_of`] and [`log_of`], in units.
const BOUND: u128 = 1 << 16;
const LOW: u128 = u64::MAX as u128;

/// The two ends of an error interval round differently.
#[derive(Debug, PartialEq, Eq)]
pub struct Undecided;

/// `⌊a·b / 2^120⌋` for a·b < 2^248.
fn mul(a: u128, b: u128) -> u128 {
    let (ah, al, bh, bl) = (a >> 64, a & LOW, b >> 64, b & LOW);
    let (mid1, mid2) = (ah * bl, al * bh);
    let carry = ((al * bl) >> 64) + (mid1 & LOW) + (mid2 & LOW);
    let high = ah * bh + (mid1 >> 64) + (mid2 >> 64) + (carry >> 64);
    debug_assert!(high < 1 << 120);
    (high << 8) | ((carry & LOW) >> 56)
}

/// `log((1+t)/(1-t)) = 2·(t + t³/3 + t⁵/5 + …)` for t = n/d ≤ 1/3, from below. Each step of the
/// power series loses at most 2n units, each of its at most 40 terms one more: under 2^15 units for
/// n < 128, and 2^9 for n = 1.
fn log_ratio(n: u128, d: u128) -> u128 {
    let mut power = ONE / d * n;
    let mut sum = 0;
    let mut k = 1;
    while power > 0 {
        sum += power / k;
        power = power / d * n / d * n;
        k += 2;
    }
    2 * sum
}

/// log 2 = log((1 + 1/3)/(1 − 1/3)), at most 2^9 units low.
static LN2: LazyLock<u128> = LazyLock::new(|| log_ratio(1, 3));

/// `exp(r)` by its Taylor series, r < 1. At most 2 units low per term, under 2^7 in all.
fn exp_series(r: u128) -> u128 {
    let (mut term, mut sum, mut n) = (ONE, 0, 1);
    while term > 0 {
        sum += term;
        term = mul(term, r) / n;
        n += 1;
    }
    sum
}

/// `exp(j/64)` for j/64 < 1, at most 2^7 units low.
static EXP_64THS: LazyLock<Vec<u128>> =
    LazyLock::new(|| (0..64).map(|j| exp_series(j << (F - 6))).collect());

/// `exp(r)` for 0 ≤ r < 1: exp(j/64)·exp(r − j/64). At most 2^10 units low.
fn exp_of(r: u128) -> u128 {
    mul(
        EXP_64THS[(r >> (F - 6)) as usize],
        exp_series(r & ((ONE >> 6) - 1)),
    )
}

/// `1/c_j` steps of [`log_of`]: for m in [1 + j/128, 1 + (j+1)/128) the multiplier c_j/256 with
/// c_j = ⌈256·128/(128+j)⌉, so that 1 ≤ m·c_j/256 < 1 + 1/64, and log(256/c_j).
static LOG_STEPS: LazyLock<Vec<(u128, u128)>> = LazyLock::new(|| {
    (0..128u128)
        .map(|j| {
            let c = (256 * 128u128).div_ceil(128 + j);
            (c, log_ratio(256 - c, 256 + c))
        })
        .collect()
});

/// 1/n, truncated.
static INVERSES: LazyLock<Vec<u128>> = LazyLock::new(|| {
    (0..24u128)
        .map(|n| ONE.checked_div(n).unwrap_or(0))
        .collect()
});

/// `log(m)` for 1 ≤ m < 2. With g = m·c/256 − 1 < 2^-6:
/// log(1+g) = g·(1 − g·(1/2 − g·(1/3 − …))), cut after g²²/22 (the rest is below 2^-138). Errors:
/// 2^15 units of the table entry, 1 of g, 3 of each of the last steps and ever less of the inner
/// ones, as g multiplies them.
fn log_of(m: u128) -> u128 {
    let (c, log_inverse) = LOG_STEPS[(m >> (F - 7)) as usize & 127];
    let g = (((m >> 64) * c) << 56) + (((m & LOW) * c) >> 8) - ONE;
    let mut sum = 0;
    for n in (1..=22).rev() {
        sum = INVERSES[n] - mul(g, sum);
    }
    log_inverse + mul(g, sum)
}

/// The f32 nearest to `value·2^(exponent − 120)`, ties to even; subnormals and overflow as IEEE 754
/// has them.
fn nearest(value: u128, exponent: i32) -> f32 {
    if value == 0 {
        return 0.0;
    }
    let top = 127 - value.leading_zeros() as i32;
    // Exponent of the last bit of the result.
    let last = (top + exponent - F as i32 - 23).max(-149);
    let drop = last - (exponent - F as i32);
    let integer = if drop <= 0 {
        value << -drop
    } else if drop > 127 {
        0
    } else {
        let (kept, rest, half) = (
            value >> drop,
            value & ((1 << drop) - 1),
            1u128 << (drop - 1),
        );
        kept + u128::from(rest > half || rest == half && kept & 1 == 1)
    };
    // integer ≤ 2^24: assembled from its bits, a carry moves into the exponent by itself.
    let bits = if last == -149 && integer < 1 << 23 {
        integer as i64
    } else {
        ((i64::from(last) + 149 + 1) << 23) + (integer as i64 - (1 << 23))
    };
    f32::from_bits(bits.min(0x7F80_0000) as u32)
}

/// The rounding of both ends of value ± bound, if they agree.
fn decide(value: u128, bound: u128, exponent: i32) -> Result<f32, Undecided> {
    let low = nearest(value - bound, exponent);
    if low.to_bits() == nearest(value + bound, exponent).to_bits() {
        Ok(low)
    } else {
        Err(Undecided)
    }
}

/// |x| as an integer significand and the exponent of its last bit.
fn parts(x: f32) -> (u128, i32) {
    let bits = x.to_bits() & 0x7FFF_FFFF;
    let field = (bits >> 23) as i32;
    if field == 0 {
        (u128::from(bits), -149)
    } else {
        (u128::from(bits & 0x7F_FFFF | 0x80_0000), field - 150)
    }
}

/// The correctly rounded exponential. NaN for NaN.
pub fn exp(x: f32) -> Result<f32, Undecided> {
    exp_knowing(x, EXACTLY)
}

/// The correctly rounded log(1 + x): NaN below −1, −∞ at −1, x itself at ±0 and +∞.
pub fn log1p(x: f32) -> Result<f32, Undecided> {
    log1p_knowing(x, EXACTLY)
}

/// As many bits as there are.
const EXACTLY: u32 = 127;

/// `exp` from a value known to `bits` bits only: names the inputs that an evaluation with a relative
/// error of 2^-bits may round wrongly.
pub fn exp_knowing(x: f32, bits: u32) -> Result<f32, Undecided> {
    if x.is_nan() {
        return Ok(f32::NAN);
    }
    // exp(89) > 2^128, exp(-104) < 2^-150: overflow and half the least subnormal.
    if x > 89.0 {
        return Ok(f32::INFINITY);
    }
    if x < -104.0 {
        return Ok(0.0);
    }
    // |exp(x) − 1| < 2^-25.9, and the neighbours' midpoints with 1 lie at 2^-25 and beyond.
    if x.abs() < 2f32.powi(-26) {
        return Ok(1.0);
    }
    // Exact: the last bit of x is 2^-49 or above.
    let (significand, exponent) = parts(x);
    let fixed = (significand << (F as i32 + exponent)) as i128;
    let fixed = if x < 0.0 { -fixed } else { fixed };
    // x = k·log 2 + r, 0 ≤ r < log 2. |k| ≤ 150, so k·LN2 and with it r is off by 2^17 units at most,
    // and e^r by twice that and the error of exp_of: under 2^20.
    let ln2 = *LN2 as i128;
    let (k, r) = (fixed.div_euclid(ln2), fixed.rem_euclid(ln2));
    let value = exp_of(r as u128);
    decide(value, (BOUND << 4).max(value >> bits), k as i32)
}

/// `log1p` from a value known to `bits` bits only, likewise.
pub fn log1p_knowing(x: f32, bits: u32) -> Result<f32, Undecided> {
    if x.is_nan() || x < -1.0 {
        return Ok(f32::NAN);
    }
    if x == -1.0 {
        return Ok(f32::NEG_INFINITY);
    }
    // |log1p(x) − x| < |x|·2^-26.9; the nearest midpoint is |x|·2^-25 away or further.
    if x.abs() < 2f32.powi(-26) || x == f32::INFINITY {
        return Ok(x);
    }
    // 1 + x = m·2^k with m in [1, 2), truncated by at most one unit.
    let (significand, exponent) = parts(x);
    let (m, k) = if x < 0.0 {
        let one_plus = ONE - (significand << (F as i32 + exponent));
        let k = one_plus.leading_zeros() as i32 - (127 - F as i32);
        (one_plus << k, -k)
    } else {
        let k = (exponent + 23).max(0);
        let x_part = (significand << (F - 23)) >> (k - exponent - 23);
        let one_part = ONE.checked_shr(k as u32).unwrap_or(0);
        let m = x_part + one_part;
        if m >= 2 * ONE {
            (m >> 1, k + 1)
        } else {
            (m, k)
        }
    };
    // 128·2^9 units of k·LN2, 2^15 of log_of, a few of m.
    let log = i128::from(k) * *LN2 as i128 + log_of(m) as i128;
    let value = log.unsigned_abs();
    let size = decide(value, (2 * BOUND).max(value >> bits), 0)?;
    Ok(size.copysign(x))
}

/// `RN(2^23·(2^{m/2^23} − 1))` for m < 2^23.
pub fn ex2_mantissa(m: u32) -> Result<u32, Undecided> {
    // m/2^23·log 2, at most 2^9 units low.
    let r = mul(u128::from(m) << (F - 23), *LN2);
    let value = exp_of(r) - ONE;
    let round = |v: u128| ((v >> (F - 24)) + 1) >> 1;
    let low = round(value.saturating_sub(BOUND));
    if low == round(value + BOUND) {
        Ok(low as u32)
    } else {
        Err(Undecided)
    }
}

/// The bits of `RN(1 / (1 + m/2^23))` for m < 2^23, by integer division.
pub fn rcp_mantissa(m: u32) -> u32 {
    let d = (1u64 << 23) + u64::from(m);
    if m == 0 {
        return 0x3F80_0000;
    }
    // In (1/2, 1): 24 bits with the last at 2^-24. A tie would need d to be a power of two.
    let quotient = ((1u64 << 48) / d + 1) >> 1;
    0x3F00_0000 + (quotient as u32 - (1 << 23))
}
