// Dynamic quantization, a scale for a sequence or for a row: the twin of sim/src/step/dynamic.rs.
#include "tensor.cuh"

constexpr int THREADS = 256;

/// The largest magnitude of each group of `rows` rows, as bits; `peaks` begin at zero. A block of
/// threads takes a part of one group.
extern "C" __global__ void __launch_bounds__(THREADS)
absmax(const float *values, unsigned int *peaks, long long group) {
    const float *v = values + blockIdx.x * group;
    unsigned int most = 0;
    for (long long i = blockIdx.y * (long long)THREADS + threadIdx.x; i < group;
         i += (long long)gridDim.y * THREADS) {
        // NaN counts as none; magnitudes order as their bits do.
        unsigned int bits = __float_as_uint(v[i]) & 0x7FFFFFFF;
        most = max(most, bits > 0x7F800000 ? 0 : bits);
    }
    most = __reduce_max_sync(0xFFFFFFFF, most);
    if (threadIdx.x % 32 == 0) atomicMax(&peaks[blockIdx.x], most);
}

/// `max|x|/127` in f64, 1 if all zero, never subnormal in f32.
DEVICE double dynamic_scale(unsigned int peak) {
    float absmax = __uint_as_float(peak);
    if (absmax == 0.0f) return 1.0;
    double scale = __ddiv_rn((double)absmax, 127.0);
    return fmin(fmax(scale, (double)__uint_as_float(0x00800000)),
                (double)__uint_as_float(0x7F7FFFFF));
}

/// Codes of each group by its own scale and a rule, and the scales.
extern "C" __global__ void __launch_bounds__(THREADS)
quantize_dynamic(const float *values, const unsigned int *peaks, int8_t *codes, float *scales,
                 long long group, int quotient, int rounding, int overflow) {
    double scale = dynamic_scale(peaks[blockIdx.x]);
    if (blockIdx.y == 0 && threadIdx.x == 0) scales[blockIdx.x] = __double2float_rn(scale);
    bool product = quotient == PRODUCT || quotient == PRODUCT_IN_HALF;
    Quantizer by = {__double2float_rn(product ? __ddiv_rn(1.0, scale) : scale), quotient, rounding,
                    overflow, nullptr};
    float divisor = by.divisor();
    Tally none;
    const float *v = values + blockIdx.x * group;
    int8_t *q = codes + blockIdx.x * group;
    for (long long i = blockIdx.y * (long long)THREADS + threadIdx.x; i < group;
         i += (long long)gridDim.y * THREADS)
        q[i] = by.code(v[i], divisor, none);
}
