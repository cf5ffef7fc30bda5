// Between types: quantize and dequantize between steps, widen, narrow, cut columns, gather rows. The
// twin of the conversions in sim/src/quant.rs, sim/src/trace.rs and `Datapath::embed`.
#include "tensor.cuh"

constexpr int THREADS = 256;

/// Row `rows_of[row]` (or `row`) of `in`, converted: codes times their scale where the output is
/// real, as they are where it is codes too and `copy` says so.
extern "C" __global__ void __launch_bounds__(THREADS)
convert(Source in, Sink out, const int *rows_of, long long rows, int columns, int copy) {
    long long count = rows * columns;
    float divisor = out.quantizer.divisor();
    Tally tally;
    for (long long i = blockIdx.x * (long long)THREADS + threadIdx.x; i < count;
         i += (long long)gridDim.x * THREADS) {
        long long row = i / columns, column = i % columns;
        float v = in.load(rows_of ? rows_of[row] : row, column);
        if (copy && out.type == I8) {
            ((int8_t *)out.data)[row * out.stride + column] = (int8_t)v;
            continue;
        }
        if (in.type == I8) v = __fmul_rn(in.scale, v);
        out.store(row, column, v, divisor, tally);
    }
    out.quantizer.finish(tally);
}

/// Rows of `in` as they are, in vectors of 16 bytes; strides are of vectors too.
extern "C" __global__ void __launch_bounds__(THREADS)
gather_vectors(const int4 *in, long long in_stride, int4 *out, long long out_stride, const int *rows_of, int rows,
               int vectors) {
    for (long long row = blockIdx.x; row < rows; row += gridDim.x)
        for (int i = threadIdx.x; i < vectors; i += blockDim.x)
            out[row * out_stride + i] = in[rows_of[row] * in_stride + i];
}

/// The parameter A of a scan: exp(scale ⊗ A_log), once a model.
template <class R>
DEVICE void decay_rates_in(const float *a_log, float scale, float *alpha, int count) {
    int i = blockIdx.x * THREADS + threadIdx.x;
    if (i < count) alpha[i] = R::exp(R::mul(scale, a_log[i]));
}
extern "C" __global__ void decay_rates_correctly_rounded(const float *a, float s, float *o, int n) {
    decay_rates_in<Ieee>(a, s, o, n);
}
extern "C" __global__ void decay_rates_unit(const float *a, float s, float *o, int n) {
    decay_rates_in<CudaFast>(a, s, o, n);
}
extern "C" __global__ void decay_rates_libm(const float *a, float s, float *o, int n) {
    decay_rates_in<CudaLibm>(a, s, o, n);
}
extern "C" __global__ void decay_rates_unit_subnormal(const float *a, float s, float *o, int n) {
    decay_rates_in<CudaSubnormal>(a, s, o, n);
}

/// Functions of one argument over any f32, for tests against the CPU: `function` as listed.
extern "C" __global__ void function_values(int function, const float *x, float *y, int count) {
    int i = blockIdx.x * THREADS + threadIdx.x;
    if (i >= count) return;
    float v = x[i];
    switch (function) {
    case 0: y[i] = exp_rounded(v); break;
    case 1: y[i] = log1p_rounded(v); break;
    case 2: y[i] = ex2_unit(v); break;
    case 3: y[i] = rcp_unit(v); break;
    case 4: y[i] = rsq_unit(v); break;
    case 5: y[i] = log1p_fast(v); break;
    case 6: y[i] = expa(v); break;
    case 7: y[i] = loga(v); break;
    case 8: y[i] = diva(1.0f, v); break;
    case 9: y[i] = from_f16(to_f16(v)); break;
    case 10: y[i] = (float)to_code(SATURATE, to_integer(TIES_AWAY, v)); break;
    case 11: y[i] = (float)to_code(WRAP, to_integer(TIES_AWAY, v)); break;
    case 12: y[i] = (float)to_code(SATURATE, to_integer(TIES_TO_EVEN, v)); break;
    case 13: y[i] = softplus<CudaFast>(v); break;
    case 14: y[i] = times_sigmoid<CudaFast>(v, v); break;
    case 15: y[i] = times_sigmoid<CudaSubnormal>(v, v); break;
    case 16: y[i] = exp_libm(v); break;
    case 17: y[i] = log1p_libm(v); break;
    case 18: y[i] = times_sigmoid<CudaLibm>(v, v); break;
    case 19: y[i] = (float)to_code(SATURATE, to_integer(HALF_AWAY_BY_ADDING, v)); break;
    default: y[i] = 0.0f;
    }
}

/// Keeps the device busy for about `cycles`, so that a host can queue what is to be timed.
extern "C" __global__ void wait_cycles(long long cycles) {
    long long begin = clock64();
    while (clock64() - begin < cycles) {
    }
}
