// Quantizers with segments: the twin of sim/src/arith/quantizer.rs.
#include "tensor.cuh"

constexpr int THREADS = 256;

enum Until { END = 0, CODE = 1, MAGNITUDE = 2 };
enum Beyond { KEEP = 0, GRID = 1, FOUND = 2, LOGARITHMIC = 3 };

/// `scale` is what the quotient meets (a reciprocal where it is a product), `step` what codes are times.
struct Segment {
    float scale, step, low, high, offset, end;
    int is_signed, until;
};

struct Segments {
    Segment segments[3];
    float base_scale, base_step, beyond_scale, beyond_step, edge, highest;
    int count, quotient, rounding, beyond;
};

/// The first 16 bytes are `Status`.
struct Counts {
    Status status;
    unsigned long long segments[4];
};

DEVICE float rounded(int rounding, float v) {
    if (rounding == TIES_TO_EVEN) return rintf(v);
    if (rounding == TIES_AWAY) return truncf(__fadd_rz(v, copysignf(0.5f, v)));
    return v >= 0.0f ? floorf(__fadd_rn(v, 0.5f)) : ceilf(__fsub_rn(v, 0.5f));
}

/// v in units of a scale, rounded.
DEVICE float integer(int quotient, int rounding, float scale, float v) {
    Quantizer by = {scale, quotient, rounding, SATURATE, nullptr};
    return rounded(rounding, by.units(v, by.divisor()));
}

DEVICE int segment_of(const Segments &s, float v, float q) {
    for (int i = 0; i < s.count; ++i) {
        const Segment &segment = s.segments[i];
        if (segment.until == END || (segment.until == CODE && fabsf(q) <= segment.end) ||
            (segment.until == MAGNITUDE && fabsf(v) <= segment.end))
            return i;
    }
    return s.count;
}

/// NaN stays NaN.
DEVICE float clamped(float v, float low, float high) {
    return v < low ? low : v > high ? high : v;
}

/// The largest magnitude beyond the segments of each group, as bits; `peaks` begin at zero.
extern "C" __global__ void __launch_bounds__(THREADS)
largest_beyond(const float *values, unsigned int *peaks, long long group, Segments s) {
    const float *v = values + blockIdx.x * group;
    unsigned int most = 0;
    for (long long i = blockIdx.y * (long long)THREADS + threadIdx.x; i < group;
         i += (long long)gridDim.y * THREADS) {
        float q = integer(s.quotient, s.rounding, s.base_scale, v[i]);
        bool beyond = segment_of(s, v[i], q) == s.count && v[i] == v[i];
        most = max(most, beyond ? __float_as_uint(fabsf(v[i])) : 0);
    }
    most = __reduce_max_sync(0xFFFFFFFF, most);
    if (threadIdx.x % 32 == 0) atomicMax(&peaks[blockIdx.x], most);
}

/// The values of each group. A block of threads takes a part of one group.
extern "C" __global__ void __launch_bounds__(THREADS)
quantize_segments(const float *values, float *out, const unsigned int *peaks, long long group,
                  Segments s, Counts *counts) {
    int beyond_quotient = s.quotient;
    if (s.beyond == FOUND) {
        float t = __fmul_rn(__uint_as_float(peaks[blockIdx.x]), (float)(1.0 / 127.0));
        s.beyond_scale = s.beyond_step = fmaxf(t, s.base_step);
        beyond_quotient = DIVIDE;
    }
    unsigned int overflows = 0, most = 0, in_segment[4] = {0, 0, 0, 0};
    const float *from = values + blockIdx.x * group;
    float *to = out + blockIdx.x * group;
    for (long long i = blockIdx.y * (long long)THREADS + threadIdx.x; i < group;
         i += (long long)gridDim.y * THREADS) {
        float v = from[i], sign = v == 0.0f ? 0.0f : copysignf(1.0f, v), value = v;
        float q = integer(s.quotient, s.rounding, s.base_scale, v);
        int at = segment_of(s, v, q);
        bool cut = false;
        if (at < s.count) {
            const Segment &g = s.segments[at];
            float x = g.is_signed ? v : __fsub_rn(fabsf(v), g.offset);
            float code = integer(s.quotient, s.rounding, g.scale, x);
            float fit = clamped(code, g.low, g.high);
            cut = fit != code;
            value = __fmul_rn(fit, g.step);
            if (!g.is_signed) value = __fmul_rn(sign, __fadd_rn(g.offset, value));
        } else if (s.beyond == GRID || s.beyond == FOUND) {
            float code = integer(beyond_quotient, s.rounding, s.beyond_scale, v);
            float fit = clamped(code, -128.0f, 127.0f);
            cut = fit != code;
            value = __fmul_rn(fit, s.beyond_step);
        } else if (s.beyond == LOGARITHMIC) {
            Quantizer by = {s.beyond_scale, s.quotient, s.rounding, SATURATE, nullptr};
            float x = fmaxf(__fsub_rn(fabsf(v), s.edge), s.beyond_step);
            float exponent = floorf(__double2float_rn(log2((double)by.units(x, by.divisor()))));
            float k = clamped(exponent, 0.0f, s.highest);
            cut = k != exponent;
            float power = __uint_as_float((unsigned int)(min((int)k, 128) + 127) << 23);
            value = __fmul_rn(sign, __fadd_rn(s.edge, __fmul_rn(power, s.beyond_step)));
        }
        to[i] = value;
        overflows += cut;
        in_segment[at] += 1;
        most = max(most, q == q ? __float_as_uint(fabsf(q)) : 0);
    }
    if (!counts) return;
    overflows = __reduce_add_sync(0xFFFFFFFF, overflows);
    most = __reduce_max_sync(0xFFFFFFFF, most);
    for (int i = 0; i < 4; ++i) in_segment[i] = __reduce_add_sync(0xFFFFFFFF, in_segment[i]);
    if (threadIdx.x % 32 == 0) {
        if (overflows) atomicAdd(&counts->status.overflows, (unsigned long long)overflows);
        if (most) atomicMax(&counts->status.peak, most);
        for (int i = 0; i < 4; ++i)
            if (in_segment[i]) atomicAdd(&counts->segments[i], (unsigned long long)in_segment[i]);
    }
}
