// What kernels read and write: tensors of any type with a row stride, quantizers, counters. The twin
// of sim/src/arith/{round,saturate,requant}.rs; layouts are mirrored in sim/src/cuda/args.rs.
#pragma once
#include "arith.cuh"

enum Type { I8 = 0, F16 = 1, F32 = 2 };

/// A tensor to read: codes (times `scale`), or real values (with scale 1).
struct Source {
    const void *data;
    /// Elements from one row to the next.
    long long stride;
    float scale;
    int type;

    /// A code as f32, or the value.
    DEVICE float load(long long row, long long column) const {
        long long at = row * stride + column;
        if (type == I8) return (float)((const int8_t *)data)[at];
        if (type == F16) return from_f16(((const uint16_t *)data)[at]);
        return ((const float *)data)[at];
    }
};

/// PRODUCT and PRODUCT_IN_HALF find the reciprocal in place of the scale.
enum Quotient {
    DIVIDE = 0,
    APPROX_RECIPROCAL = 1,
    SCALED_APPROX_DIVISION = 2,
    PRODUCT = 3,
    DIVIDE_IN_HALF = 4,
    PRODUCT_IN_HALF = 5
};
enum Rounding { TIES_TO_EVEN = 0, TIES_AWAY = 1, HALF_AWAY_BY_ADDING = 2 };
enum Overflow { SATURATE = 0, WRAP = 1 };

/// To the nearest integer; NaN gives 0, values beyond i32 its ends.
DEVICE int to_integer(int rounding, float v) {
    if (rounding == TIES_TO_EVEN) return __float2int_rn(v);
    if (rounding == HALF_AWAY_BY_ADDING)
        return __float2int_rz(v >= 0.0f ? floorf(__fadd_rn(v, 0.5f)) : ceilf(__fsub_rn(v, 0.5f)));
    return __float2int_rz(__fadd_rz(v, copysignf(0.5f, v)));
}

DEVICE int8_t to_code(int overflow, int integer) {
    return (int8_t)(overflow == WRAP ? integer : max(-128, min(127, integer)));
}

/// Two codes side by side, saturated.
DEVICE uint32_t two_codes(int low, int high) {
    uint32_t codes;
    asm("cvt.pack.sat.s8.s32.b32 %0, %1, %2, 0;" : "=r"(codes) : "r"(high), "r"(low));
    return codes;
}

/// Four codes side by side, saturated.
DEVICE uint32_t four_codes(int a, int b, int c, int d) {
    uint32_t codes;
    asm("cvt.pack.sat.s8.s32.b32 %0, %1, %2, %3;" : "=r"(codes) : "r"(b), "r"(a), "r"(two_codes(c, d)));
    return codes;
}

/// How many values did not fit, and the bits of the largest magnitude (of integers, as f32).
struct Status {
    unsigned long long overflows;
    unsigned int peak;
    unsigned int unused;
};

/// Counts for one thread; NaN overflows and has no magnitude.
struct Tally {
    unsigned int overflows = 0;
    float peak = 0.0f;

    DEVICE void add(float v, int integer) {
        overflows += integer > 127 || integer < -128 || v != v;
        peak = fmaxf(peak, fabsf(v));
    }

    /// Adds the counts of a whole warp to `status`. Rounding is monotone, so the largest magnitude
    /// may be rounded last.
    DEVICE void flush_warp(int rounding, Status *status) const {
        float top = rounding == TIES_TO_EVEN ? rintf(peak)
                    : rounding == TIES_AWAY  ? truncf(__fadd_rz(peak, 0.5f))
                                             : floorf(__fadd_rn(peak, 0.5f));
        unsigned int count = __reduce_add_sync(0xFFFFFFFF, overflows);
        unsigned int most = __reduce_max_sync(0xFFFFFFFF, __float_as_uint(top));
        if ((threadIdx.x + threadIdx.y * blockDim.x) % 32 == 0) {
            if (count) atomicAdd(&status->overflows, (unsigned long long)count);
            if (most) atomicMax(&status->peak, most);
        }
    }
};

/// A rule and a scale.
struct Quantizer {
    float scale;
    int quotient;
    int rounding;
    int overflow;
    Status *status;

    /// What the quotient needs of the scale, taken once.
    DEVICE float divisor() const {
        if (quotient == APPROX_RECIPROCAL) return rcp_unit(scale);
        return quotient == SCALED_APPROX_DIVISION ? __fmul_rn(scale, 100.0f) : scale;
    }

    DEVICE int8_t code(float v, float divisor, Tally &tally) const {
        return grid(units(v, divisor), tally);
    }

    /// A value in units of the grid.
    DEVICE float units(float v, float divisor) const {
        float q;
        if (quotient == APPROX_RECIPROCAL || quotient == PRODUCT) {
            q = __fmul_rn(v, divisor);
        } else if (quotient == PRODUCT_IN_HALF) {
            q = from_f16(to_f16(__fmul_rn(v, divisor)));
        } else if (quotient == DIVIDE_IN_HALF) {
            q = from_f16(to_f16(__fdiv_rn(v, divisor)));
        } else if (quotient == SCALED_APPROX_DIVISION) {
            q = diva(__fmul_rn(v, 100.0f), divisor);
        } else {
            q = __fdiv_rn(v, divisor);
        }
        return q;
    }

    /// The code of a value in units of the grid.
    DEVICE int8_t grid(float q, Tally &tally) const {
        int integer = to_integer(rounding, q);
        if (status) tally.add(q, integer);
        return to_code(overflow, integer);
    }

    DEVICE void finish(const Tally &tally) const {
        if (status) tally.flush_warp(rounding, status);
    }
};

/// A tensor to write, real values in: quantized, rounded to binary16, or as they are.
struct Sink {
    void *data;
    long long stride;
    int type;
    Quantizer quantizer;

    DEVICE void store(long long row, long long column, float v, float divisor, Tally &tally) const {
        long long at = row * stride + column;
        if (type == I8) {
            ((int8_t *)data)[at] = quantizer.code(v, divisor, tally);
        } else if (type == F16) {
            ((uint16_t *)data)[at] = to_f16(v);
        } else {
            ((float *)data)[at] = v;
        }
    }
};
