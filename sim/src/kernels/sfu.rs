//! The special-function unit on 16 lanes with AVX-512 VBMI: the same integers as the scalar code of
//! [`crate::arith::sfu`], its specification; the tests below compare them bit for bit.
//! What differs is how the integers are made, because gathers and single bits are slow in vectors:
//!
//! - coefficient tables stay in registers and are read by permutations;
//! - the sum `C0·2^13 ± |C1|·x + C2·SQ + rounding` is 36 bits wide. With `C = 2^15 ± …` put into 16 signed
//!   bits and x cut at its 15th, everything above bit 15 is added after the shift, and one
//!   `vpdpwssd` makes both products of what is below;
//! - the truncated products of the square are two look-ups in one table of 64 bytes.

use crate::arith::real::Slices;
use crate::arith::sfu::{
    EXPONENTS, HIDDEN, INFINITY, LN_2, LOG1P_COEFFICIENTS, LOG2_E, LOG2_E_252ND, LOG2_E_LOW,
    LOGA_COEFFICIENTS, MANTISSA, NAN, SIGN, TO_EXPONENT, tables,
};
use crate::isa::Isa;
use std::arch::x86_64::*;

/// The exponent field of 1.0.
const BIAS: i32 = 127 << 23;
/// 2^23: a fraction scaled by it is the unit's fixed point.
const TO_FIXED: f32 = 8_388_608.0;

/// A coefficient table for 16 lanes: two words a segment, `N` = segments / 16 registers each.
struct Table<const N: usize> {
    /// `(C0 >> 2) − 2^23`, and from bit 23 on the bits 13 to 15 of `(C0 & 3)·2^13 + rounding`.
    base: [[u32; 16]; N],
    /// The signed slope, `C1 − 2^15` (rising) or `2^15 − |C1|` (falling), and from bit 16 on C2.
    slopes: [[u32; 16]; N],
}

impl<const N: usize> Table<N> {
    const fn new<const ROWS: usize>(rows: [[i32; 3]; ROWS], rounding: u32) -> Self {
        assert!(ROWS == 16 * N);
        let mut table = Self {
            base: [[0; 16]; N],
            slopes: [[0; 16]; N],
        };
        let mut i = 0;
        while i < ROWS {
            let [c0, c1, c2] = rows[i];
            let slope = if c1 > 0 { c1 - 0x8000 } else { c1 + 0x8000 };
            assert!(slope >= -0x8000 && slope < 0x8000 && c2 >= 0 && c2 < 0x8000);
            let rest = (c0 as u32 & 3) + (rounding >> 13);
            assert!(rest < 8);
            table.base[i / 16][i % 16] = ((c0 as u32 >> 2) - HIDDEN) | rest << 23;
            table.slopes[i / 16][i % 16] = (slope as u32 & 0xFFFF) | (c2 as u32) << 16;
            i += 1;
        }
        table
    }
}

/// What is added to the sums: their low 13 bits stay out of the tables.
const EX2_ROUNDING: u32 = 0x77E2;
const RCP_ROUNDING: u32 = 0x47E7;

static EX2: Table<4> = Table::new(tables::EX2, EX2_ROUNDING);
static RCP: Table<8> = Table::new(tables::RCP, RCP_ROUNDING);

/// `truncated_product(a, b)` at `8·a + b`.
static PRODUCTS: [u8; 64] = {
    let mut products = [0; 64];
    let mut i = 0;
    while i < 64 {
        let (a, b) = (i >> 3, i & 7);
        products[i as usize] = ((a >> 2) * b + (a >> 1 & 1) * (b >> 1) + (a & 1) * (b >> 2)) as u8;
        i += 1;
    }
    products
};

macro_rules! on_lanes {
    ($($(#[$meta:meta])* fn $name:ident($($arg:ident: $type:ty),*) $(-> $out:ty)? $body:block)*) => {
        $($(#[$meta])*
        #[target_feature(enable = "avx2,fma,f16c,avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,avx512vbmi")]
        #[inline]
        fn $name($($arg: $type),*) $(-> $out)? $body)*
    };
}

on_lanes! {
    /// The words of 32 segments for the segment numbers modulo 32 of each lane.
    fn of_32(low: &[u32; 16], high: &[u32; 16], segment: __m512i) -> __m512i {
        _mm512_permutex2var_epi32(load_words(low), segment, load_words(high))
    }

    fn load_words(words: &[u32; 16]) -> __m512i {
        // SAFETY: 16 words.
        unsafe { _mm512_loadu_si512(words.as_ptr().cast()) }
    }

    fn splat(word: u32) -> __m512i {
        _mm512_set1_epi32(word as i32)
    }

    /// `mask` selects bits of a, the others come from b.
    fn select_bits(mask: u32, a: __m512i, b: __m512i) -> __m512i {
        _mm512_ternarylogic_epi32::<0xCA>(splat(mask), a, b)
    }

    /// [`crate::arith::sfu::truncated_square`] of the low 17 bits of each lane, whose other bits may be anything.
    fn truncated_square(x: __m512i) -> __m512i {
        // Byte 0: x>>14 and x>>2&7; byte 1: x>>10&7 and x>>6&7, as places in the table of products;
        // byte 2: the factors x>>13 and x>>5&15. The shifts are those of the even lane, then of the
        // odd one.
        const fn shifts(three: [i64; 3]) -> i64 {
            let even = three[0] | three[1] << 8 | three[2] << 16;
            even | (even + 0x20_2020) << 32
        }
        let high = _mm512_multishift_epi64_epi8(_mm512_set1_epi64(const { shifts([11, 7, 13]) }), x);
        let low = _mm512_multishift_epi64_epi8(_mm512_set1_epi64(const { shifts([2, 6, 5]) }), x);
        let places = select_bits(0x0007_0707, low, high);
        // SAFETY: 64 bytes.
        let table = unsafe { _mm512_loadu_si512(PRODUCTS.as_ptr().cast()) };
        let factor = _mm512_and_si512(high, splat(0x000F_0000));
        const FIRST_TWO: u64 = 0x3333_3333_3333_3333;
        let left = _mm512_mask_permutexvar_epi8(factor, FIRST_TWO, places, table);
        // The other factor, and ones for the two products that are looked up.
        let right = _mm512_ternarylogic_epi32::<0xF8>(splat(0x0101), low, splat(0x000F_0000));
        let h = _mm512_and_si512(_mm512_srli_epi32::<9>(x), splat(0xFF));
        let square = _mm512_srli_epi32::<1>(_mm512_madd_epi16(h, h));
        _mm512_dpbusd_epi32(square, left, right)
    }

    /// `(C0·2^13 ± |C1|·x + C2·SQ + rounding) >> 15`, less 2^23, plus the exponent field of `exponent`, where
    /// x has `bits` bits and every other operand is as [`Table`] has it. `square` is SQ.
    fn interpolate(
        base: __m512i,
        slopes: __m512i,
        square: __m512i,
        x: __m512i,
        high: __m512i,
        rounding: u32,
        exponent: __m512i
    ) -> __m512i {
        // x below bit 15, SQ.
        let factors = select_bits(0x7FFF, x, _mm512_slli_epi32::<16>(square));
        let rest = _mm512_srli_epi32::<10>(base);
        // (rest & 0xE000) | low bits of the rounding.
        let rest = _mm512_ternarylogic_epi32::<0xF8>(splat(rounding & 0x1FFF), rest, splat(0xE000));
        let below = _mm512_srai_epi32::<15>(_mm512_dpwssd_epi32(rest, slopes, factors));
        let start = select_bits(MANTISSA, base, exponent);
        _mm512_add_epi32(_mm512_dpwssd_epi32(start, slopes, high), below)
    }

    /// [`crate::arith::sfu::ex2`] of `scaled`·2^-23.
    fn ex2_scaled(scaled: __m512) -> __m512 {
        // Beyond 32 bits, and for NaN: −2^31, which is special below.
        let fixed = _mm512_cvttps_epi32(scaled);
        let negative = _mm512_movepi32_mask(fixed);
        let fraction = _mm512_mask_test_epi32_mask(negative, fixed, splat(MANTISSA));
        let biased = _mm512_add_epi32(fixed, splat(BIAS as u32));
        let biased = _mm512_mask_add_epi32(biased, fraction, biased, splat(u32::MAX));
        let segment = _mm512_srli_epi32::<17>(biased);
        let upper = _mm512_test_epi32_mask(biased, splat(1 << 22));
        let base = _mm512_mask_mov_epi32(
            of_32(&EX2.base[0], &EX2.base[1], segment),
            upper,
            of_32(&EX2.base[2], &EX2.base[3], segment),
        );
        let slopes = _mm512_mask_mov_epi32(
            of_32(&EX2.slopes[0], &EX2.slopes[1], segment),
            upper,
            of_32(&EX2.slopes[2], &EX2.slopes[3], segment),
        );
        let high = _mm512_and_si512(_mm512_srli_epi32::<15>(biased), splat(3));
        let square = truncated_square(biased);
        let result = interpolate(base, slopes, square, biased, high, EX2_ROUNDING, biased);
        // C1·x = slope·x + 2^15·x.
        let result = _mm512_add_epi32(result, _mm512_and_si512(biased, splat(0x1_FFFF)));
        let result = _mm512_castsi512_ps(result);
        // An exponent field that is not that of a positive normal number.
        let special = _mm512_fpclass_ps_mask::<0xFF>(_mm512_castsi512_ps(biased));
        if special == 0 {
            return result;
        }
        let (low, high) = (_mm512_set1_ps(-126.0 * TO_FIXED), _mm512_set1_ps(128.0 * TO_FIXED));
        let zero = _mm512_cmp_ps_mask::<_CMP_LT_OQ>(scaled, low);
        let result = _mm512_mask_mov_ps(result, zero, _mm512_setzero_ps());
        let infinite = _mm512_cmp_ps_mask::<_CMP_GE_OQ>(scaled, high);
        let result = _mm512_mask_mov_ps(result, infinite, _mm512_set1_ps(f32::INFINITY));
        nan_where_nan(scaled, result)
    }

    fn nan_where_nan(x: __m512, result: __m512) -> __m512 {
        let nan = _mm512_cmp_ps_mask::<_CMP_UNORD_Q>(x, x);
        _mm512_mask_mov_ps(result, nan, _mm512_set1_ps(f32::from_bits(NAN)))
    }

    /// [`crate::arith::sfu::rcp`].
    fn rcp(x: __m512) -> __m512 {
        let bits = _mm512_castps_si512(x);
        let segment = _mm512_srli_epi32::<16>(bits);
        let (second, upper) = (
            _mm512_test_epi32_mask(bits, splat(1 << 21)),
            _mm512_test_epi32_mask(bits, splat(1 << 22)),
        );
        let base = of_128(&RCP.base, segment, second, upper);
        let slopes = of_128(&RCP.slopes, segment, second, upper);
        let x16 = _mm512_and_si512(bits, splat(0xFFFF));
        let high = _mm512_srli_epi32::<15>(x16);
        let square = truncated_square(_mm512_add_epi32(x16, x16));
        let zero = _mm512_setzero_si512();
        let mantissa = interpolate(base, slopes, square, x16, high, RCP_ROUNDING, zero);
        // −|C1|·x = slope·x − 2^15·x. The exponent is 126 less that of x, biased.
        let mantissa = _mm512_sub_epi32(mantissa, x16);
        let exponent = _mm512_and_si512(bits, splat(INFINITY));
        let result = _mm512_sub_epi32(
            _mm512_add_epi32(mantissa, splat(0x3F00_0000 + BIAS as u32)),
            exponent,
        );
        let sign = _mm512_and_ps(x, _mm512_castsi512_ps(splat(SIGN)));
        let normal = _mm512_cmpge_epi32_mask(result, splat(HIDDEN));
        let result = _mm512_maskz_mov_ps(normal, _mm512_castsi512_ps(result));
        // Zeros and subnormals, then infinities.
        let small = _mm512_fpclass_ps_mask::<0x26>(x);
        let result = _mm512_mask_mov_ps(result, small, _mm512_set1_ps(f32::INFINITY));
        let infinite = _mm512_fpclass_ps_mask::<0x18>(x);
        let result = _mm512_mask_mov_ps(result, infinite, _mm512_setzero_ps());
        nan_where_nan(x, _mm512_or_ps(result, sign))
    }

    fn of_128(
        words: &[[u32; 16]; 8],
        segment: __m512i,
        second: __mmask16,
        upper: __mmask16
    ) -> __m512i {
        let low = of_32(&words[0], &words[1], segment);
        let low = _mm512_mask_mov_epi32(low, second, of_32(&words[2], &words[3], segment));
        let high = of_32(&words[4], &words[5], segment);
        let high = _mm512_mask_mov_epi32(high, second, of_32(&words[6], &words[7], segment));
        _mm512_mask_mov_epi32(low, upper, high)
    }

    /// [`crate::arith::sfu::flush`].
    fn flush(x: __m512) -> __m512 {
        let subnormal = _mm512_fpclass_ps_mask::<0x20>(x);
        _mm512_mask_and_ps(x, subnormal, x, _mm512_castsi512_ps(splat(SIGN)))
    }

    /// `2^(x ⊗ factor)` by the unit. Neither x nor the product needs a flush: 2^ of a number that
    /// small is 1.
    fn ex2_product(x: __m512, factor: f32) -> __m512 {
        // Scaling by 2^23 is exact; where it overflows, the result is infinite or 0 either way.
        ex2_scaled(_mm512_mul_ps(x, _mm512_set1_ps(factor * TO_FIXED)))
    }

    /// [`crate::arith::sfu::log1p_libm`].
    fn log1p_libm(a: __m512) -> __m512 {
        let [first, rest @ ..] = LOG1P_COEFFICIENTS;
        let one = _mm512_set1_ps(1.0);
        let sum = _mm512_add_ps(a, one);
        let back = _mm512_sub_ps(sum, a);
        let error = _mm512_add_ps(
            _mm512_sub_ps(a, _mm512_sub_ps(sum, back)),
            _mm512_sub_ps(one, back),
        );
        let above = _mm512_cmp_ps_mask::<_CMP_LT_OQ>(error, _mm512_setzero_ps());
        let sum = _mm512_castps_si512(sum);
        let sum = _mm512_mask_add_epi32(sum, above, sum, splat(u32::MAX));
        let e = _mm512_and_si512(_mm512_sub_epi32(sum, splat(0x3F40_0000)), splat(0xFF80_0000));
        let m = _mm512_castsi512_ps(_mm512_sub_epi32(_mm512_castps_si512(a), e));
        let power = _mm512_castsi512_ps(_mm512_sub_epi32(splat(0x4080_0000), e));
        let m = _mm512_add_ps(m, _mm512_sub_ps(_mm512_mul_ps(power, _mm512_set1_ps(0.25)), one));
        let mut p = _mm512_set1_ps(f32::from_bits(first));
        for k in rest {
            p = _mm512_fmadd_ps(m, p, _mm512_set1_ps(f32::from_bits(k)));
        }
        let log = _mm512_fmadd_ps(m, _mm512_mul_ps(m, p), m);
        let k = _mm512_mul_ps(_mm512_cvtepi32_ps(e), _mm512_set1_ps(f32::from_bits(0x3400_0000)));
        let result = _mm512_fmadd_ps(k, _mm512_set1_ps(LN_2), log);
        // Zeros, infinities, NaN.
        let unchanged = _mm512_fpclass_ps_mask::<0x9F>(a);
        _mm512_mask_mov_ps(result, unchanged, a)
    }

    /// [`crate::arith::sfu::exp_libm`].
    fn exp_libm(x: __m512) -> __m512 {
        let of = |v: f32| _mm512_set1_ps(v);
        let t = _mm512_fmadd_ps(x, of(LOG2_E_252ND), of(0.5));
        // The second operand where the first is NaN.
        let t = _mm512_min_ps(_mm512_max_ps(t, of(0.0)), of(1.0));
        const DOWN: i32 = _MM_FROUND_TO_NEG_INF | _MM_FROUND_NO_EXC;
        let down = _mm512_fmadd_round_ps::<DOWN>(t, of(EXPONENTS), of(TO_EXPONENT));
        let n = _mm512_sub_ps(down, of(TO_EXPONENT + 126.0));
        let r = _mm512_fmadd_ps(x, of(LOG2_E_LOW), _mm512_fmsub_ps(x, of(LOG2_E), n));
        let power = _mm512_slli_epi32::<23>(_mm512_castps_si512(down));
        _mm512_mul_ps(ex2_product(r, 1.0), _mm512_castsi512_ps(power))
    }

    /// `softplus` of [`crate::arith::sfu::CudaLibm`].
    fn softplus_libm(x: __m512) -> __m512 {
        let soft = log1p_libm(exp_libm(x));
        let large = _mm512_cmp_ps_mask::<_CMP_GT_OQ>(x, _mm512_set1_ps(20.0));
        _mm512_mask_mov_ps(soft, large, x)
    }

    /// `times_sigmoid` of [`crate::arith::sfu::CudaLibm`].
    fn times_sigmoid_libm(n: __m512, z: __m512) -> __m512 {
        let minus = _mm512_xor_ps(z, _mm512_set1_ps(-0.0));
        _mm512_div_ps(n, _mm512_add_ps(_mm512_set1_ps(1.0), exp_libm(minus)))
    }

    /// [`crate::arith::sfu::exp2a`].
    fn exp2a(t: __m512) -> __m512 {
        let halved = _mm512_cmp_ps_mask::<_CMP_LT_OQ>(t, _mm512_set1_ps(-126.0));
        let t = _mm512_mul_ps(t, _mm512_set1_ps(TO_FIXED));
        let w = ex2_scaled(_mm512_mask_mul_ps(t, halved, t, _mm512_set1_ps(0.5)));
        _mm512_mask_mul_ps(w, halved, w, w)
    }

    /// [`crate::arith::sfu::expa`].
    fn expa(x: __m512) -> __m512 {
        exp2a(_mm512_mul_ps(x, _mm512_set1_ps(LOG2_E)))
    }

    /// [`crate::arith::sfu::loga`].
    fn loga(s: __m512) -> __m512 {
        let [first, rest @ ..] = LOGA_COEFFICIENTS;
        let bits = _mm512_castps_si512(s);
        let e = _mm512_sub_epi32(bits, splat(0x3F2A_AAAB));
        let e = _mm512_and_si512(e, splat(0xFF80_0000));
        let f = _mm512_castsi512_ps(_mm512_sub_epi32(bits, e));
        let f = _mm512_sub_ps(f, _mm512_set1_ps(1.0));
        let k = _mm512_mul_ps(_mm512_cvtepi32_ps(e), _mm512_set1_ps(f32::from_bits(0x3400_0000)));
        let mut p = _mm512_set1_ps(f32::from_bits(first));
        for c in rest {
            p = _mm512_fmadd_ps(p, f, _mm512_set1_ps(f32::from_bits(c)));
        }
        let log = _mm512_fmadd_ps(_mm512_mul_ps(f, p), f, f);
        let result = _mm512_fmadd_ps(k, _mm512_set1_ps(LN_2), log);
        // Infinities, NaN.
        let unchanged = _mm512_fpclass_ps_mask::<0x99>(s);
        _mm512_mask_mov_ps(result, unchanged, s)
    }

    /// `softplus` of [`crate::arith::sfu::CudaSubnormal`].
    fn softplus_subnormal(x: __m512) -> __m512 {
        loga(_mm512_add_ps(expa(x), _mm512_set1_ps(1.0)))
    }

    /// `softplus` of [`crate::arith::sfu::CudaFast`].
    fn softplus_fast(x: __m512) -> __m512 {
        let soft = log1p_libm(flush(ex2_product(x, LOG2_E)));
        let large = _mm512_cmp_ps_mask::<_CMP_GT_OQ>(x, _mm512_set1_ps(20.0));
        _mm512_mask_mov_ps(soft, large, x)
    }

    /// `times_sigmoid` of [`crate::arith::sfu::CudaFast`].
    fn times_sigmoid_fast(n: __m512, z: __m512) -> __m512 {
        let d = _mm512_add_ps(_mm512_set1_ps(1.0), ex2_product(z, -LOG2_E));
        flush(_mm512_mul_ps(flush(n), rcp(d)))
    }
}

slices! {
    "avx2,fma,f16c,avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,avx512vbmi";
    /// [`crate::arith::sfu::ex2`] of each value.
    #[cfg(test)]
    fn ex2_slice(values, x) = ex2_product(x, 1.0);
    /// [`crate::arith::sfu::rcp`] of each value.
    #[cfg(test)]
    fn rcp_slice(values, x) = rcp(x);
    /// [`crate::arith::sfu::expa`] of each value.
    #[cfg(test)]
    fn expa_slice(values, x) = expa(x);
    /// `softplus` of [`crate::arith::sfu::CudaSubnormal`] of each value.
    fn softplus_subnormal_slice(values, x) = softplus_subnormal(x);
    /// [`crate::arith::sfu::exp_libm`] of each value.
    #[cfg(test)]
    fn exp_libm_slice(values, x) = exp_libm(x);
    /// `softplus` of [`crate::arith::sfu::CudaLibm`] of each value.
    fn softplus_libm_slice(values, x) = softplus_libm(x);
    /// `times_sigmoid(value, z)` of [`crate::arith::sfu::CudaLibm`] for each pair.
    fn times_sigmoid_libm_slice(values, n, z: z_lanes) = times_sigmoid_libm(n, z_lanes);
    /// `times_sigmoid(value, value)` of [`crate::arith::sfu::CudaLibm`] of each value.
    fn silu_libm_slice(values, x) = times_sigmoid_libm(x, x);
    /// `softplus` of [`crate::arith::sfu::CudaFast`] of each value.
    fn softplus_fast_slice(values, x) = softplus_fast(x);
    /// `times_sigmoid(value, z)` of [`crate::arith::sfu::CudaFast`] for each pair.
    fn times_sigmoid_fast_slice(values, n, z: z_lanes) = times_sigmoid_fast(n, z_lanes);
    /// `times_sigmoid(value, value)` of [`crate::arith::sfu::CudaFast`] of each value.
    fn silu_fast_slice(values, x) = times_sigmoid_fast(x, x);
}

/// `exp_neg(alpha ⊗ delta)` of [`crate::arith::sfu::CudaFast`], operands flushed already: 16 channels, one row a token.
///
/// # Safety
///
/// The machine has [`crate::isa::Isa::Avx512Vbmi`].
#[target_feature(enable = "avx2,fma,f16c,avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,avx512vbmi")]
pub(super) fn decays_fast(alpha: &[f32; 16], delta: &[[f32; 16]], decay: &mut [[f32; 16]]) {
    // SAFETY: 16 values each.
    unsafe {
        let alpha = _mm512_loadu_ps(alpha.as_ptr());
        for (delta, decay) in delta.iter().zip(decay) {
            let product = _mm512_mul_ps(alpha, _mm512_loadu_ps(delta.as_ptr()));
            _mm512_storeu_ps(decay.as_mut_ptr(), ex2_product(product, -LOG2_E));
        }
    }
}

/// `exp_neg(alpha ⊗ delta)` of [`crate::arith::sfu::CudaSubnormal`], likewise.
///
/// # Safety
///
/// As above.
#[target_feature(enable = "avx2,fma,f16c,avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,avx512vbmi")]
pub(super) fn decays_subnormal(alpha: &[f32; 16], delta: &[[f32; 16]], decay: &mut [[f32; 16]]) {
    // SAFETY: 16 values each.
    unsafe {
        let alpha = _mm512_loadu_ps(alpha.as_ptr());
        let minus_log2_e = _mm512_set1_ps(-LOG2_E);
        for (delta, decay) in delta.iter().zip(decay) {
            let product = _mm512_mul_ps(alpha, _mm512_loadu_ps(delta.as_ptr()));
            let result = exp2a(_mm512_mul_ps(product, minus_log2_e));
            _mm512_storeu_ps(decay.as_mut_ptr(), result);
        }
    }
}

/// `exp_neg(alpha ⊗ delta)` of [`crate::arith::sfu::CudaLibm`], likewise.
///
/// # Safety
///
/// As above.
#[target_feature(enable = "avx2,fma,f16c,avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,avx512vbmi")]
pub(super) fn decays_libm(alpha: &[f32; 16], delta: &[[f32; 16]], decay: &mut [[f32; 16]]) {
    // SAFETY: 16 values each.
    unsafe {
        let alpha = _mm512_loadu_ps(alpha.as_ptr());
        let minus = _mm512_xor_ps(alpha, _mm512_set1_ps(-0.0));
        for (delta, decay) in delta.iter().zip(decay) {
            let product = _mm512_mul_ps(minus, _mm512_loadu_ps(delta.as_ptr()));
            _mm512_storeu_ps(decay.as_mut_ptr(), exp_libm(product));
        }
    }
}

/// Computes `slices` as [`crate::arith::sfu::Fast`] does, if the machine can.
pub(crate) fn fast<const FLUSHED: bool>(slices: Slices) -> bool {
    if Isa::current() < Isa::Avx512Vbmi {
        return false;
    }
    // SAFETY: the instruction set was found.
    unsafe {
        match slices {
            Slices::Softplus(values) => softplus_fast_slice(values),
            Slices::Silu(values) => silu_fast_slice(values),
            Slices::TimesSigmoid(n, z) => times_sigmoid_fast_slice(n, z),
            Slices::Decays(alpha, delta, decay) if FLUSHED => decays_fast(alpha, delta, decay),
            Slices::Decays(..) => return false,
        }
    }
    true
}

/// Computes `slices` as [`crate::arith::sfu::CudaLibm`] does, if the machine can.
pub(crate) fn libm(slices: Slices) -> bool {
    if Isa::current() < Isa::Avx512Vbmi {
        return false;
    }
    // SAFETY: the instruction set was found.
    unsafe {
        match slices {
            Slices::Softplus(values) => softplus_libm_slice(values),
            Slices::Silu(values) => silu_libm_slice(values),
            Slices::TimesSigmoid(n, z) => times_sigmoid_libm_slice(n, z),
            Slices::Decays(alpha, delta, decay) => decays_libm(alpha, delta, decay),
        }
    }
    true
}

/// Computes `slices` as [`crate::arith::sfu::CudaSubnormal`] does, if the machine can and it is worth while.
pub(crate) fn subnormal(slices: Slices) -> bool {
    if Isa::current() < Isa::Avx512Vbmi {
        return false;
    }
    // SAFETY: the instruction set was found.
    unsafe {
        match slices {
            Slices::Softplus(values) => softplus_subnormal_slice(values),
            Slices::Decays(alpha, delta, decay) => decays_subnormal(alpha, delta, decay),
            Slices::Silu(_) | Slices::TimesSigmoid(..) => return false,
        }
    }
    true
}

#[cfg(test)]
mod tests;
