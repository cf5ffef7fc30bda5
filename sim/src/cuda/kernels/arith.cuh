// f32 operations and functions of each arithmetic: the twin of sim/src/arith/{real,elementary,sfu}.rs.
// Every rounding is an explicit intrinsic or one PTX instruction; nothing is left to the compiler
// (which is told -fmad=false as well). What the special-function unit computes is not emulated here:
// its own instructions run, which makes this side independent of the tables of sfu.rs.
#pragma once
#include <cstdint>

#define DEVICE __device__ __forceinline__

// ---- binary16 -------------------------------------------------------------------------------

DEVICE uint16_t to_f16(float v) {
    uint16_t h;
    asm("cvt.rn.f16.f32 %0, %1;" : "=h"(h) : "f"(v));
    return h;
}
DEVICE float from_f16(uint16_t h) {
    float v;
    asm("cvt.f32.f16 %0, %1;" : "=f"(v) : "h"(h));
    return v;
}

// ---- correctly rounded exp and log1p: elementary.rs, operation by operation --------------------

DEVICE double bits_f64(uint64_t bits) { return __longlong_as_double((long long)bits); }
DEVICE uint64_t f64_bits(double v) { return (uint64_t)__double_as_longlong(v); }

constexpr uint64_t LN2_HI = 0x3FE62E42FEFA3800, LN2_LO = 0x3D2EF35793C76730;
constexpr uint64_t LOG2_E_F64 = 0x3FF71547652B82FE, TO_INTEGER = 0x4338000000000000;
constexpr uint64_t FROM_INTEGER = 0x4330000000000000, SQRT_HALF = 0x3FE6A09E667F3BCD;

DEVICE float canonical_nan() { return __uint_as_float(0x7FC00000); }

__device__ __noinline__ float exp_rounded(float x) {
    double v = (double)x;
    v = v > 89.0 ? 89.0 : v;
    v = v < -104.0 ? -104.0 : v;
    double shifted = __dadd_rn(__dmul_rn(v, bits_f64(LOG2_E_F64)), bits_f64(TO_INTEGER));
    double k = __dsub_rn(shifted, bits_f64(TO_INTEGER));
    double r = __dsub_rn(__dsub_rn(v, __dmul_rn(k, bits_f64(LN2_HI))), __dmul_rn(k, bits_f64(LN2_LO)));
#define PAIR(even, odd) __dadd_rn(1.0 / even, __dmul_rn(r, 1.0 / odd))
    double r2 = __dmul_rn(r, r), r4 = __dmul_rn(r2, r2);
    double low = __dadd_rn(PAIR(2.0, 6.0), __dmul_rn(r2, PAIR(24.0, 120.0)));
    double middle = __dadd_rn(PAIR(720.0, 5040.0), __dmul_rn(r2, PAIR(40320.0, 362880.0)));
    double high = __dadd_rn(PAIR(3628800.0, 39916800.0),
                            __dmul_rn(r2, PAIR(479001600.0, 6227020800.0)));
#undef PAIR
    double p = __dadd_rn(low, __dmul_rn(r4, __dadd_rn(middle, __dmul_rn(r4, high))));
    double y = __dadd_rn(1.0, __dadd_rn(r, __dmul_rn(r2, p)));
    double scale = bits_f64((f64_bits(shifted) << 52) + (1023ull << 52));
    return x != x ? canonical_nan() : __double2float_rn(__dmul_rn(y, scale));
}

__device__ __noinline__ float log1p_rounded(float x) {
    double v = (double)x;
    uint64_t one_plus = f64_bits(__dadd_rn(1.0, v));
    uint64_t above = one_plus - SQRT_HALF + (1024ull << 52);
    double k = __dsub_rn(bits_f64(FROM_INTEGER | above >> 52), bits_f64(FROM_INTEGER) + 1024.0);
    uint64_t power = (above >> 52 << 52) - (1024ull << 52);
    double m = bits_f64(one_plus - power);
    double f = k == 0.0 ? v : __dsub_rn(m, 1.0);

    double s = __ddiv_rn(f, __dadd_rn(2.0, f));
    double z = __dmul_rn(s, s), z2 = __dmul_rn(z, z);
#define PAIR(even, odd) __dadd_rn(2.0 / even, __dmul_rn(z, 2.0 / odd))
    double tail = __dadd_rn(
        PAIR(13.0, 15.0), __dmul_rn(z2, __dadd_rn(PAIR(17.0, 19.0), __dmul_rn(z2, 2.0 / 21.0))));
    double inner = __dadd_rn(PAIR(9.0, 11.0), __dmul_rn(z2, tail));
    double series = __dadd_rn(
        2.0 / 3.0, __dmul_rn(z, __dadd_rn(PAIR(5.0, 7.0), __dmul_rn(z2, inner))));
#undef PAIR
    double h = __dmul_rn(__dmul_rn(0.5, f), f);

    double k_high = __dmul_rn(k, bits_f64(LN2_HI));
    double high = __dadd_rn(k_high, f);
    double rest = __dsub_rn(f, __dsub_rn(high, k_high));
    double low = __dadd_rn(
        __dsub_rn(__dadd_rn(__dmul_rn(s, __dadd_rn(h, __dmul_rn(z, series))),
                            __dmul_rn(k, bits_f64(LN2_LO))), h), rest);
    double sum = __dadd_rn(high, low);
    double error = __dsub_rn(low, __dsub_rn(sum, high));
    uint64_t beyond = (f64_bits(error) ^ f64_bits(sum)) >> 63;
    float result = __double2float_rn(bits_f64((f64_bits(sum) - beyond) | 1));

    result = x == 0.0f || x == __uint_as_float(0x7F800000) ? x : result;
    result = x == -1.0f ? __uint_as_float(0xFF800000) : result;
    return x < -1.0f || x != x ? canonical_nan() : result;
}

// ---- the special-function unit and flushed operations -------------------------------------------

DEVICE float ex2_unit(float x) {
    float y;
    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
    return y;
}
DEVICE float rcp_unit(float x) {
    float y;
    asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
    return y;
}
DEVICE float rsq_unit(float x) {
    float y;
    asm("rsqrt.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
    return y;
}
DEVICE float mul_ftz(float a, float b) {
    float y;
    asm("mul.rn.ftz.f32 %0, %1, %2;" : "=f"(y) : "f"(a), "f"(b));
    return y;
}
DEVICE float add_ftz(float a, float b) {
    float y;
    asm("add.rn.ftz.f32 %0, %1, %2;" : "=f"(y) : "f"(a), "f"(b));
    return y;
}
DEVICE float fma_ftz(float a, float b, float c) {
    float y;
    asm("fma.rn.ftz.f32 %0, %1, %2, %3;" : "=f"(y) : "f"(a), "f"(b), "f"(c));
    return y;
}

/// log2(e) as the kernels have it.
DEVICE float log2_e() { return __uint_as_float(0x3FB8AA3B); }
DEVICE float ln_2() { return __uint_as_float(0x3F317218); }
DEVICE float flush(float x) {
    uint32_t bits = __float_as_uint(x);
    return __uint_as_float((bits & 0x7F800000) == 0 ? bits & 0x80000000 : bits);
}

/// A polynomial by Horner's rule, one fma a coefficient (bits of f32), highest first.
template <int N>
DEVICE float horner(float x, float p, const uint32_t (&coefficients)[N]) {
#pragma unroll
    for (int i = 0; i < N; ++i) p = __fmaf_rn(x, p, __uint_as_float(coefficients[i]));
    return p;
}

DEVICE float log1p_libm(float a) {
    const uint32_t coefficients[8] = {0x3DD80012, 0xBE0778E0, 0x3E146475, 0xBE2A68DD,
                                      0x3E4CAF9E, 0xBE800042, 0x3EAAAAE6, 0xBF000000};
    uint32_t toward_zero = __float_as_uint(__fadd_rz(a, 1.0f));
    uint32_t e = (toward_zero - 0x3F400000) & 0xFF800000;
    float m = __uint_as_float(__float_as_uint(a) - e);
    m = __fadd_rn(m, __fmaf_rn(__uint_as_float(0x40800000 - e), 0.25f, -1.0f));
    float p = horner(m, __uint_as_float(0xBD39BF78), coefficients);
    float log = __fmaf_rn(m, __fmul_rn(m, p), m);
    float k = __fmul_rn(__int2float_rn((int)e), __uint_as_float(0x34000000));
    float result = __fmaf_rn(k, ln_2(), log);
    bool unchanged = a == 0.0f || (__float_as_uint(a) & 0x7F800000) == 0x7F800000;
    return unchanged ? a : result;
}

DEVICE float log1p_fast(float a) { return log1p_libm(flush(a)); }

DEVICE float exp_libm(float x) {
    const float to_exponent = 12582913.0f;
    float t = __saturatef(__fmaf_rn(x, __uint_as_float(0x3BBB989D), 0.5f));
    float down = __fmaf_rd(t, 252.0f, to_exponent);
    float n = __fsub_rn(down, to_exponent + 126.0f);
    float r = __fmaf_rn(x, __uint_as_float(0x32A57060), __fmaf_rn(x, log2_e(), -n));
    return __fmul_rn(ex2_unit(r), __uint_as_float(__float_as_uint(down) << 23));
}

DEVICE float expa(float x) {
    float t = __fmul_rn(x, log2_e());
    bool halved = t < -126.0f;
    float w = ex2_unit(__fmul_rn(t, halved ? 0.5f : 1.0f));
    return __fmul_rn(w, halved ? w : 1.0f);
}

DEVICE float diva(float n, float d) {
    float size = fabsf(d);
    float k = size > __uint_as_float(0x7E800000) ? 0.25f : 1.0f;
    k = size < __uint_as_float(0x00800000) ? 16777216.0f : k;
    return __fmul_rn(rcp_unit(__fmul_rn(d, k)), __fmul_rn(n, k));
}

DEVICE float loga(float s) {
    const uint32_t coefficients[8] = {0x3E1039F6, 0xBDF8CDCC, 0x3E0F2955, 0xBE2AD8B9,
                                      0x3E4CED0B, 0xBE7FFF22, 0x3EAAAA78, 0xBF000000};
    uint32_t bits = __float_as_uint(s);
    uint32_t e = (bits - 0x3F2AAAAB) & 0xFF800000;
    float f = __fsub_rn(__uint_as_float(bits - e), 1.0f);
    float k = __fmul_rn(__int2float_rn((int)e), __uint_as_float(0x34000000));
    float p = horner(f, __uint_as_float(0xBE055027), coefficients);
    float log = __fmaf_rn(__fmul_rn(f, p), f, f);
    float result = __fmaf_rn(k, ln_2(), log);
    return (bits & 0x7F800000) == 0x7F800000 ? s : result;
}

// ---- the four sets of operations ----------------------------------------------------------------

/// Correctly rounded, subnormals kept: `RealRules::CorrectlyRounded`.
struct Ieee {
    static DEVICE float mul(float a, float b) { return __fmul_rn(a, b); }
    static DEVICE float add(float a, float b) { return __fadd_rn(a, b); }
    static DEVICE float fma(float a, float b, float c) { return __fmaf_rn(a, b, c); }
    static DEVICE float div(float n, float d) { return __fdiv_rn(n, d); }
    static DEVICE float exp(float x) { return exp_rounded(x); }
    static DEVICE float exp_neg(float x) { return exp_rounded(-x); }
    static DEVICE float log1p(float a) { return log1p_rounded(a); }
    static constexpr bool threshold = true;
};

/// The prefill kernels' operations, flushed: `RealRules::SpecialFunctionUnit`.
struct CudaFast {
    static DEVICE float mul(float a, float b) { return mul_ftz(a, b); }
    static DEVICE float add(float a, float b) { return add_ftz(a, b); }
    static DEVICE float fma(float a, float b, float c) { return fma_ftz(a, b, c); }
    static DEVICE float div(float n, float d) { return mul_ftz(n, rcp_unit(d)); }
    static DEVICE float exp(float x) { return ex2_unit(mul_ftz(x, log2_e())); }
    static DEVICE float exp_neg(float x) { return ex2_unit(mul_ftz(x, -log2_e())); }
    static DEVICE float log1p(float a) { return log1p_fast(a); }
    static constexpr bool threshold = true;
};

/// PyTorch's operations on a GPU: `RealRules::CudaLibm`.
struct CudaLibm {
    static DEVICE float mul(float a, float b) { return __fmul_rn(a, b); }
    static DEVICE float add(float a, float b) { return __fadd_rn(a, b); }
    static DEVICE float fma(float a, float b, float c) { return __fmaf_rn(a, b, c); }
    static DEVICE float div(float n, float d) { return __fdiv_rn(n, d); }
    static DEVICE float exp(float x) { return exp_libm(x); }
    static DEVICE float exp_neg(float x) { return exp_libm(-x); }
    static DEVICE float log1p(float a) { return log1p_libm(a); }
    static constexpr bool threshold = true;
};

/// The decode kernels' operations: `RealRules::SpecialFunctionUnitSubnormal`.
struct CudaSubnormal {
    static DEVICE float mul(float a, float b) { return __fmul_rn(a, b); }
    static DEVICE float add(float a, float b) { return __fadd_rn(a, b); }
    static DEVICE float fma(float a, float b, float c) { return __fmaf_rn(a, b, c); }
    static DEVICE float div(float n, float d) { return diva(n, d); }
    static DEVICE float exp(float x) { return expa(x); }
    static DEVICE float exp_neg(float x) { return expa(-x); }
    static DEVICE float log1p(float a) { return loga(__fadd_rn(a, 1.0f)); }
    static constexpr bool threshold = false;
};

/// `x` if `x > 20` (where the arithmetic has that threshold), else `log1p(exp(x))`.
template <class R>
DEVICE float softplus(float x) {
    float soft = R::log1p(R::exp(x));
    return R::threshold && x > 20.0f ? x : soft;
}

/// `n / (1 + exp(-z))`.
template <class R>
DEVICE float times_sigmoid(float n, float z) {
    return R::div(n, R::add(1.0f, R::exp_neg(z)));
}
