//! The GPU's special-function unit in integer form, and the functions the CUDA kernels build on it.
//! Source: `docs/arithmetic.md` (the rules of each arithmetic).
//!
//! | function | is | used by |
//! |---|---|---|
//! | [`ex2`], [`rcp`] | the unit itself: quadratic interpolation in a table, truncated | everything below |
//! | [`rsq`] | the unit's 1/√x | the norm after the last block |
//! | [`exp_fast`], [`log1p_fast`] | fast-math `expf`, `log1pf`, subnormals flushed | [`CudaFast`] |
//! | [`exp_libm`], [`log1p_libm`] | CUDA's `expf`, `log1pf` without fast math | [`CudaLibm`] |
//! | [`exp2a`], [`expa`], [`diva`], [`loga`] | the same functions with subnormals kept | [`CudaSubnormal`] |
//!
//! No function here branches, reads outside its table or calls another crate: loops over them
//! vectorise in every instruction set of [`crate::isa`].

mod math;
pub(crate) mod tables;

pub use math::{CudaFast, CudaLibm, CudaSubnormal, Fast};

use std::hint::select_unpredictable as select;

/// log2(e) as the kernels have it, 0x3FB8AA3B.
pub(crate) const LOG2_E: f32 = f32::from_bits(0x3FB8_AA3B);
/// log(2), nearest f32.
pub(crate) const LN_2: f32 = f32::from_bits(0x3F31_7218);
/// What the unit returns for NaN.
pub(crate) const NAN: u32 = 0x7FFF_FFFF;
pub(crate) const INFINITY: u32 = 0x7F80_0000;
pub(crate) const SIGN: u32 = 0x8000_0000;
pub(crate) const MANTISSA: u32 = 0x007F_FFFF;
/// Significant bits: bit 23 is the hidden one.
pub(crate) const HIDDEN: u32 = 0x0080_0000;

/// A coefficient table laid out for 32-bit lanes: two words a segment instead of three.
///
/// The interpolation is `(C0·2^13 + C1·x + C2·SQ + rounding) >> 15`, 36 bits wide. `C0 >> 2` is
/// therefore added after the shift; the word `slopes` holds |C1| (16 bits), C2 (10 bits) and the
/// remaining two bits of C0.
struct Segments<const N: usize> {
    /// `(C0 >> 2) − 2^23`: the result at the left end of the segment.
    base: [u32; N],
    /// `|C1| | C2 << 16 | (C0 & 3) << 26`.
    slopes: [u32; N],
}

impl<const N: usize> Segments<N> {
    const fn new(rows: [[i32; 3]; N]) -> Self {
        let mut packed = Self {
            base: [0; N],
            slopes: [0; N],
        };
        let mut i = 0;
        while i < N {
            let [c0, c1, c2] = rows[i];
            let slope = c1.unsigned_abs();
            assert!(c0 > 0 && slope < 1 << 16 && c2 >= 0 && c2 < 1 << 10);
            packed.base[i] = (c0 as u32 >> 2) - HIDDEN;
            packed.slopes[i] = slope | (c2 as u32) << 16 | (c0 as u32 & 3) << 26;
            i += 1;
        }
        packed
    }

    /// `(base, |C1|, C2, C0 & 3)` of a segment. The mask removes the bounds check.
    #[inline(always)]
    fn row(&self, segment: u32) -> (u32, u32, u32, u32) {
        let segment = segment as usize & (N - 1);
        let slopes = self.slopes[segment];
        (
            self.base[segment],
            slopes & 0xFFFF,
            slopes >> 16 & 0x3FF,
            slopes >> 26,
        )
    }
}

const EX2: &Segments<64> = &Segments::new(tables::EX2);
const RCP: &Segments<128> = &Segments::new(tables::RCP);

/// The coefficients `[C0, C1, C2]` of ex2 (64 segments) and of rcp (128), for self-tests that flip
/// their bits.
pub fn coefficients() -> (&'static [[i32; 3]; 64], &'static [[i32; 3]; 128]) {
    (&tables::EX2, &tables::RCP)
}

/// The unit's truncated square of a 17-bit `x`, about x²/2^19: partial products that fall below its
/// adder tree are dropped one by one. Equals `(Σ_i bit_i(x)·(x >> (18−i))) >> 1`
/// (`truncated_square_is_its_definition`).
#[inline(always)]
fn truncated_square(x: u32) -> u32 {
    let h = x >> 9;
    ((h * h + 2 * (x >> 13) * (x >> 5 & 15)) >> 1)
        + truncated_product(x >> 14, x >> 2 & 7)
        + truncated_product(x >> 10 & 7, x >> 6 & 7)
}

/// `a·b / 4` of 3-bit numbers with every partial product truncated.
#[inline(always)]
fn truncated_product(a: u32, b: u32) -> u32 {
    let bit = |i: u32| 0u32.wrapping_sub(a >> i & 1);
    (bit(2) & b) + (bit(1) & b >> 1) + (bit(0) & b >> 2)
}

/// `C0·2^places + C1·x + C2·square(at)`, the unit's interpolation between coefficients.
fn interpolated([c0, c1, c2]: [i32; 3], places: u32, x: u32, at: u32) -> i64 {
    let square = i64::from(truncated_square(at));
    (i64::from(c0) << places) + i64::from(c1) * i64::from(x) + i64::from(c2) * square
}

/// `2^23·(2^{m/2^23} − 1)` from the coefficients of m's segment and the position `x` in it, 17 bits.
pub fn ex2_of(coefficients: [i32; 3], x: u32) -> i64 {
    ((interpolated(coefficients, 13, x, x) + 0x77E2) >> 15) - i64::from(HIDDEN)
}

/// The bits of `1 / (1 + m/2^23)` from the coefficients of m's segment and the position `x` in it, 16 bits.
pub fn rcp_of(coefficients: [i32; 3], x: u32) -> i64 {
    ((interpolated(coefficients, 13, x, 2 * x) + 0x47E7) >> 15) - i64::from(HIDDEN) + 0x3F00_0000
}

/// [`ex2_of`] the segment of m < 2^23, in 32 bits.
#[inline(always)]
fn ex2_mantissa(m: u32) -> u32 {
    let x = m & 0x1_FFFF;
    let (base, c1, c2, c0_low) = EX2.row(m >> 17);
    // C1·x has 33 bits: its lowest is added to the small terms, so that the rest fits.
    let odd = 0u32.wrapping_sub(x & 1) & c1;
    let small = (c0_low << 13) + c2 * truncated_square(x) + 0x77E2 + odd;
    base + ((c1 * (x >> 1) + (small >> 1)) >> 14)
}

/// [`rcp_of`] the segment of m < 2^23, in 32 bits.
#[inline(always)]
fn rcp_mantissa(m: u32) -> u32 {
    let x = m & 0xFFFF;
    let (base, c1, c2, c0_low) = RCP.row(m >> 16);
    let odd = 0u32.wrapping_sub(x & 1) & c1;
    let small = (c0_low << 13) + c2 * truncated_square(2 * x) + 0x47E7;
    let small = (small.wrapping_sub(odd) as i32) >> 1;
    let fall = small.wrapping_sub((c1 * (x >> 1)) as i32) >> 14;
    base.wrapping_add(fall as u32).wrapping_add(0x3F00_0000)
}

/// The special-function unit's 2^x for every f32. NaN gives 0x7FFFFFFF, results below 2^-126 give
/// 0, from 2^128 on infinity, subnormal x counts as 0. Monotone; within 1.4 ulp for x ≥ 0 and 2.1 ulp
/// for x < 0. Source: `docs/arithmetic.md`.
#[inline(always)]
pub fn ex2(x: f32) -> f32 {
    let bits = x.to_bits();
    let magnitude = bits & !SIGN;
    // |x|·2^23 truncated to an integer, by shifting the significand; at |x| ≥ 256 any integer of at
    // least 128·2^23 will do, below 2^-23 the shift leaves nothing.
    let significand = ((magnitude & MANTISSA) | HIDDEN) << 7;
    let shift = (134 - (magnitude >> 23) as i32).clamp(0, 31) as u32;
    let fixed = (significand >> shift) as i32;
    let fraction = i32::from(fixed & MANTISSA as i32 != 0);
    // The unit negates by complementing all bits unless the fraction is zero: also an exact
    // negative multiple of 2^-23 moves down by one.
    let fixed = select(bits & SIGN != 0, -fixed - fraction, fixed);
    let exponent = fixed >> 23;
    let mantissa = ex2_mantissa(fixed as u32 & MANTISSA);
    let result = (((exponent + 127) << 23) as u32).wrapping_add(mantissa);
    let result = select(exponent < -126, 0, result);
    let result = select(exponent >= 128, INFINITY, result);
    f32::from_bits(select(magnitude > INFINITY, NAN, result))
}

/// The special-function unit's 1/x for every f32. NaN gives 0x7FFFFFFF, subnormals count as 0 of
/// their sign both in and out, ±0 gives ±∞ and ±∞ gives ±0. Monotone on either side of 0, within 1
/// ulp. Source: `docs/arithmetic.md`.
#[inline(always)]
pub fn rcp(x: f32) -> f32 {
    let bits = x.to_bits();
    let magnitude = bits & !SIGN;
    let exponent = magnitude >> 23;
    let mantissa = rcp_mantissa(magnitude & MANTISSA);
    // Signed: beyond 2^126 the exponent field falls to zero or below.
    let result = (mantissa as i32).wrapping_sub((exponent as i32 - 127) << 23);
    let result = select(result < HIDDEN as i32, 0, result as u32);
    let result = select(exponent == 0, INFINITY, result);
    let result = select(magnitude == INFINITY, 0, result) | (bits & SIGN);
    f32::from_bits(select(magnitude > INFINITY, NAN, result))
}

/// The special-function unit's 1/√x (`rsqrt.approx`), for every positive normal x. Subnormals count
/// as 0 of their sign, ±0 gives ±∞, ∞ gives 0, negative x and NaN give 0x7FFFFFFF: as PTX documents
/// the flushed form, not measured. Within 2 ulp.
///
/// `((C0 << 14) + C1·x + C2·SQ(x) + 0x3FFF) >> 16` gives what an NVIDIA H200 returned for all 2^24
/// pairs of a mantissa and a parity of the exponent; 1 is exact (`sim/tests/sfu_measured.rs`).
pub fn rsq(x: f32) -> f32 {
    let bits = x.to_bits();
    let magnitude = bits & !SIGN;
    if magnitude > INFINITY || (bits & SIGN != 0 && magnitude >= HIDDEN) {
        return f32::from_bits(NAN);
    }
    if magnitude < HIDDEN {
        return f32::from_bits(INFINITY | bits & SIGN);
    }
    if magnitude == INFINITY {
        return 0.0;
    }
    let exponent = (magnitude >> 23) as i32 - 127;
    let (parity, half) = (exponent & 1, exponent >> 1);
    let m = magnitude & MANTISSA;
    let x = m & 0x1_FFFF;
    let coefficients = tables::RSQ[(parity as usize) << 6 | (m >> 17) as usize];
    let sum = interpolated(coefficients, 14, x, x) + 0x3FFF;
    // In units of 2^-24, from 2^23 to 2^24; the table misses the one exact result by one.
    let y = if parity == 0 && m == 0 {
        1 << 24
    } else {
        (sum >> 16) as i32
    };
    f32::from_bits((y - (1 << 23) + 0x3F00_0000 - (half << 23)) as u32)
}

/// Flush to zero: a subnormal becomes zero of its sign, everything else stays.
#[inline(always)]
pub fn flush(x: f32) -> f32 {
    let bits = x.to_bits();
    f32::from_bits(select(bits & INFINITY == 0, bits & SIGN, bits))
}

/// Fast-math `expf`: `ex2(x ⊗ log2 e)`, flushed. For every f32, monotone, within 2.1 + 1.2·|x| ulp:
/// the rounding of the product grows with it. Source: `docs/arithmetic.md`.
#[inline(always)]
pub fn exp_fast(x: f32) -> f32 {
    ex2(flush(flush(x) * LOG2_E))
}

/// 1/(252·log 2), nearest f32: steps of [`exp_libm`] in [0, 1].
pub(crate) const LOG2_E_252ND: f32 = f32::from_bits(0x3BBB_989D);
/// Steps of [`exp_libm`]: exponents from −126 to 126.
pub(crate) const EXPONENTS: f32 = 252.0;
/// 1.5·2^23 + 1: adding it leaves an integer in the low bits, one above zero.
pub(crate) const TO_EXPONENT: f32 = 12_582_913.0;
/// log2(e) − [`LOG2_E`], nearest f32.
pub(crate) const LOG2_E_LOW: f32 = f32::from_bits(0x32A5_7060);

/// CUDA's `expf` without fast math: 2^n·ex2(x·log2 e − n) with n the floor of the exponent plus a half, in
/// [−126, 126]. For every f32, within 2 ulp, subnormal results kept. Source: `docs/arithmetic.md`.
#[inline(always)]
pub fn exp_libm(x: f32) -> f32 {
    let t = x.mul_add(LOG2_E_252ND, 0.5);
    let t = select(t >= 0.0, t, 0.0);
    let t = select(t <= 1.0, t, 1.0);
    // 252·t + 1.5·2^23 + 1 rounded down: the nearest sum, one lower where it lies above the exact one.
    let nearest = t.mul_add(EXPONENTS, TO_EXPONENT);
    let above = t.mul_add(EXPONENTS, TO_EXPONENT - nearest) < 0.0;
    let down = nearest - select(above, 1.0, 0.0);
    // Up to here every sum of integers is exact.
    let n = down - (TO_EXPONENT + 126.0);
    let r = x.mul_add(LOG2_E_LOW, x.mul_add(LOG2_E, -n));
    ex2(r) * f32::from_bits(down.to_bits() << 23)
}

/// Of the polynomial in [`log1p_libm`], highest degree first.
pub(crate) const LOG1P_COEFFICIENTS: [u32; 9] = [
    0xBD39_BF78,
    0x3DD8_0012,
    0xBE07_78E0,
    0x3E14_6475,
    0xBE2A_68DD,
    0x3E4C_AF9E,
    0xBE80_0042,
    0x3EAA_AAE6,
    0xBF00_0000,
];

/// Fast-math `log1pf`, for a ≥ 0 and NaN, monotone, within 0.9 ulp; a subnormal
/// counts as 0. For negative a the
/// value is defined by the formula but not a logarithm. Source: `docs/arithmetic.md`.
#[inline(always)]
pub fn log1p_fast(a: f32) -> f32 {
    // Only operands of the first step can be subnormal: from there on every value is zero, normal,
    // or a product too small to change the sum it is added to. So one flush suffices.
    log1p_libm(flush(a))
}

/// CUDA's `log1pf` without fast math, for a ≥ 0 and NaN, monotone, within 0.9 ulp: [`log1p_fast`] with
/// subnormals kept. Source: `docs/arithmetic.md`.
#[inline(always)]
pub fn log1p_libm(a: f32) -> f32 {
    // a + 1 rounded toward zero: the nearest sum, one lower where it lies above the exact one.
    // The error of a sum is an f32 and this sequence gives it (Knuth).
    let sum = a + 1.0;
    let back = sum - a;
    let error = (a - (sum - back)) + (1.0 - back);
    let toward_zero = sum.to_bits().wrapping_sub(u32::from(error < 0.0));
    let e = toward_zero.wrapping_sub(0x3F40_0000) & 0xFF80_0000;
    let m = f32::from_bits(a.to_bits().wrapping_sub(e));
    // 2^-k − 1; the product is exact, so this is the fma of the definition.
    let m = m + (f32::from_bits(0x4080_0000u32.wrapping_sub(e)) * 0.25 - 1.0);
    let [first, rest @ ..] = LOG1P_COEFFICIENTS;
    let mut p = f32::from_bits(first);
    for k in rest {
        p = m.mul_add(p, f32::from_bits(k));
    }
    let log = m.mul_add(m * p, m);
    let k = e as i32 as f32 * f32::from_bits(0x3400_0000);
    let result = k.mul_add(LN_2, log);
    // Zero keeps its sign, infinity and NaN stay.
    let unchanged = a == 0.0 || a.to_bits() & INFINITY == INFINITY;
    select(unchanged, a, result)
}

/// `ex2` with subnormal results: 2^t for every t, within 2.5 ulp. Below −126 it is the square of
/// `ex2(t ⊗ 0.5)`. Source: `docs/arithmetic.md`.
#[inline(always)]
pub fn exp2a(t: f32) -> f32 {
    let halved = t < -126.0;
    let w = ex2(t * select(halved, 0.5, 1.0));
    w * select(halved, w, 1.0)
}

/// `expf` of the decode kernels: `exp2a(x ⊗ log2 e)`, subnormals kept. For every f32, monotone, within
/// 2.1 + 1.2·|x| ulp.
/// Source: `docs/arithmetic.md`.
#[inline(always)]
pub fn expa(x: f32) -> f32 {
    exp2a(x * LOG2_E)
}

/// Division of the decode kernels: `rcp(d ⊗ k) ⊗ (n ⊗ k)`, where the power of two k keeps `d ⊗ k`
/// and its reciprocal normal. For every n and d, within 2 ulp where the quotient is normal.
/// Source: `docs/arithmetic.md`.
#[inline(always)]
pub fn diva(n: f32, d: f32) -> f32 {
    let size = d.abs();
    // 2^126 and 2^-126.
    let k = select(size > f32::from_bits(0x7E80_0000), 0.25, 1.0);
    let k = select(size < f32::MIN_POSITIVE, 16_777_216.0, k);
    rcp(d * k) * (n * k)
}

/// Of the polynomial in [`loga`], highest degree first.
pub(crate) const LOGA_COEFFICIENTS: [u32; 9] = [
    0xBE05_5027,
    0x3E10_39F6,
    0xBDF8_CDCC,
    0x3E0F_2955,
    0xBE2A_D8B9,
    0x3E4C_ED0B,
    0xBE7F_FF22,
    0x3EAA_AA78,
    0xBF00_0000,
];

/// `logf` of the decode kernels, for s ≥ 1, infinity and NaN; monotone, within 0.9 ulp.
/// Source: `docs/arithmetic.md`.
#[inline(always)]
pub fn loga(s: f32) -> f32 {
    let bits = s.to_bits();
    let e = bits.wrapping_sub(0x3F2A_AAAB) & 0xFF80_0000;
    let f = f32::from_bits(bits.wrapping_sub(e)) - 1.0;
    let k = e as i32 as f32 * f32::from_bits(0x3400_0000);
    let [first, rest @ ..] = LOGA_COEFFICIENTS;
    let mut p = f32::from_bits(first);
    for c in rest {
        p = p.mul_add(f, f32::from_bits(c));
    }
    let log = (f * p).mul_add(f, f);
    let result = k.mul_add(LN_2, log);
    select(bits & INFINITY == INFINITY, s, result)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn truncated_square_is_its_definition() {
        for x in 0..1u32 << 17 {
            let sum: u32 = (0..17).map(|i| (x >> i & 1) * (x >> (18 - i))).sum();
            assert_eq!(truncated_square(x), sum >> 1, "{x:#x}");
        }
    }

    /// Each segment ends where the next begins, in units of a result's last place.
    #[test]
    fn segments_meet() {
        type Table<'a> = (&'a [[i32; 3]], u32, u32, u32);
        let tables: [Table; 3] = [
            (&tables::EX2, 13, 15, 17),
            (&tables::RCP, 13, 15, 16),
            (&tables::RSQ, 14, 16, 17),
        ];
        for (rows, up, down, width) in tables {
            for (i, pair) in rows.windows(2).enumerate() {
                let x = (1u32 << width) - 1;
                let end = interpolated(pair[0], up, x, x << (17 - width));
                let gap = (end - (i64::from(pair[1][0]) << up)) >> down;
                assert!(gap.abs() <= 4, "row {i}: {gap}");
            }
        }
    }

    /// The three a of all f32 for which it matters that a + 1 is rounded toward zero: the nearest sum has
    /// another segment than the sum below, or the segment begins there and the sum is exact. Below −1 the value
    /// is no logarithm, but the formula's still.
    #[test]
    fn the_sum_of_log1p_fast_is_rounded_toward_zero() {
        let a = 0.5f32.next_down();
        assert_eq!(a + 1.0, 1.5);
        assert_eq!(log1p_fast(a).to_bits(), 0x3ECF_991F);
        assert_eq!(log1p_fast(25_165_824.0), 17.040_997);
        assert_eq!(log1p_fast(-1.75), -177.733_37);
    }

    /// What is handed out for self-tests are the numbers the unit computes with.
    #[test]
    fn coefficients_are_those_in_use() {
        let (ex2, rcp) = coefficients();
        for (s, row) in ex2.iter().enumerate() {
            let m = (s as u32) << 17;
            let want = ex2_of(*row, 0);
            assert_eq!(i64::from(ex2_mantissa(m)), want, "ex2 {s}");
        }
        for (s, row) in rcp.iter().enumerate() {
            let m = (s as u32) << 16;
            let want = rcp_of(*row, 0);
            assert_eq!(i64::from(rcp_mantissa(m)), want, "rcp {s}");
        }
    }

    #[test]
    fn lanes_of_32_bits_lose_nothing() {
        for m in 0..1u32 << 23 {
            let x = m & 0x1_FFFF;
            let row = tables::EX2[m as usize >> 17];
            let want = ex2_of(row, x);
            assert_eq!(i64::from(ex2_mantissa(m)), want, "ex2 {m:#x}");
            let x = m & 0xFFFF;
            let row = tables::RCP[m as usize >> 16];
            let want = rcp_of(row, x);
            assert_eq!(i64::from(rcp_mantissa(m)), want, "rcp {m:#x}");
        }
    }
}
