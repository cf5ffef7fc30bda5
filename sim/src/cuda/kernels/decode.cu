// Steps of a block for one token of one sequence that would wait for each other's launches: together in one, by
// the same functions, in the same order. What is between them lies in shared memory, made anew by every block
// of threads where all of them need it; block 0 also writes it to where the step by itself would.
#include "conv.cuh"
#include "hadamard.cuh"
#include "linear.cuh"
#include "norm.cuh"
#include "scan_sequential.cuh"

constexpr int WARP = 32;

DEVICE int up_to_16(int n) { return (n + 15) / 16 * 16; }

/// Asks for what will be read soon.
DEVICE void ask_for(const void *at) {
    asm volatile("{ .reg .b32 unused; ld.global.u8 unused, [%0]; }" ::"l"(at));
}

/// Quantizes, by rules that are too many to be written out wherever they are used.
__device__ __noinline__ int code_of(float scale, int quotient, int rounding, int overflow, float v, bool in_units) {
    Quantizer quantizer = {scale, quotient, rounding, overflow, nullptr};
    Tally none;
    return in_units ? quantizer.grid(v, none) : quantizer.code(v, quantizer.divisor(), none);
}
DEVICE int8_t code_of(const Quantizer &q, float v, bool in_units = false) {
    return (int8_t)code_of(q.scale, q.quotient, q.rounding, q.overflow, v, in_units);
}

/// A code of one row, as [`put`] makes it.
DEVICE int8_t code_of(const LinearI8 &p, const Sink &out, int column, int sum) {
    return code_of(out.quantizer, Factors(p, column).of(sum), true);
}

/// Products of x, a row of codes in shared memory, with some rows of weights; a warp takes every so many of them,
/// `AT_ONCE` side by side, and has `16·32·AHEAD` weights of each on their way before it calls `wait` for x.
/// `column` names the output of a number below `count`; `done` takes the number, the output and its sum.
template <int AT_ONCE, int AHEAD, class Column, class Wait, class Done>
DEVICE void products(const LinearI8 &p, const int8_t *x, int count, Column column, Wait wait, Done done) {
    int lane = threadIdx.x % WARP, warps = blockDim.x / WARP;
    int4 weights[AT_ONCE][AHEAD];
    auto row_of = [&](int i) { return p.weight + column(i) * p.weight_stride; };
    auto load = [&](int first) {
#pragma unroll
        for (int g = 0; g < AT_ONCE; ++g)
#pragma unroll
            for (int s = 0; s < AHEAD; ++s) {
                int i = first + g * warps, k = (lane + s * WARP) * 16;
                weights[g][s] = i < count && k < p.k ? *(const int4 *)(row_of(i) + k) : make_int4(0, 0, 0, 0);
            }
    };
    int first = threadIdx.x / WARP;
    load(first);
    wait();
    for (; first < count; first += AT_ONCE * warps) {
        int sums[AT_ONCE] = {};
#pragma unroll
        for (int s = 0; s < AHEAD; ++s) {
            int k = (lane + s * WARP) * 16;
            int4 codes = k < p.k ? *(const int4 *)(x + k) : make_int4(0, 0, 0, 0);
#pragma unroll
            for (int g = 0; g < AT_ONCE; ++g) sums[g] = add_products(codes, weights[g][s], sums[g]);
        }
        // A lane finishes each.
        int own = 0;
#pragma unroll
        for (int g = 0; g < AT_ONCE; ++g) {
            int i = first + g * warps;
            if (i < count)
                for (int k = (lane + AHEAD * WARP) * 16; k < p.k; k += WARP * 16)
                    sums[g] = add_products(*(const int4 *)(x + k), *(const int4 *)(row_of(i) + k), sums[g]);
            int sum = __reduce_add_sync(0xFFFFFFFF, sums[g]);
            if (lane == g) own = sum;
        }
        int i = first + lane * warps;
        if (lane < AT_ONCE && i < count) done(i, column(i), own);
        if (first + AT_ONCE * warps < count) load(first + AT_ONCE * warps);
    }
}

/// The first of the threads that have a channel of the convolution: not of the warp that adds squares.
constexpr int CONV_FROM = WARP;

/// Norm, in_proj and convolution with SiLU. A block of threads has `width` channels of x and the same of z;
/// `after` is the history after this token, which may lie where the one before it does.
template <class R>
DEVICE void norm_to_conv(const Norm &norm, const LinearI8 &in_proj, const Sink &xz, const Conv &conv,
                         const Sink &out, int8_t *after, int width) {
    extern __shared__ __align__(16) int8_t shared[];
    int m = norm.m, channels = conv.channels, first = blockIdx.x * width;
    width = min(width, channels - first);
    double *squares = (double *)shared;
    float *r = (float *)(squares + up_to_16(m));
    int8_t *codes = (int8_t *)(r + up_to_16(m)), *x_codes = codes + up_to_16(m);
    __shared__ float rstd;
    // On its way before all else: nothing may wait in between.
    uint16_t hidden = 0;
    float residual = 0.0f, weight = 0.0f;
    bool has_one = threadIdx.x < m, halves = norm.hidden.type == F16;
    if (has_one && halves) hidden = ((const uint16_t *)norm.hidden.data)[threadIdx.x];
    if (has_one && norm.residual) residual = norm.residual[threadIdx.x];
    if (has_one) weight = norm.weight[threadIdx.x];
    int c = 0;
    Channel channel;
    float under[TAPS];
    auto normalize = [&] {
        for (int i = threadIdx.x; i < m; i += blockDim.x) {
            bool early = i == threadIdx.x;
            float v = early && halves ? from_f16(hidden) : norm.hidden.load(0, i);
            if (norm.residual) v = __fadd_rn(v, early ? residual : norm.residual[i]);
            r[i] = v;
            squares[i] = square(v);
            if (blockIdx.x == 0) norm.residual_out[i] = v;
        }
        __syncthreads();
        // What the convolution reads comes while the squares are added.
        if (threadIdx.x >= CONV_FROM && threadIdx.x - CONV_FROM < width) {
            c = first + threadIdx.x - CONV_FROM;
            channel.load(conv, c);
#pragma unroll
            for (int k = 0; k < TAPS - 1; ++k)
                if (k < conv.taps - 1) under[k] = window(conv, 0, 0, k, c);
        }
        if (threadIdx.x < WARP) {
            double sum = threadIdx.x < NORM_LANES ? sum_of_lane(m, [&](int i) { return squares[i]; }) : 0.0;
            float result = rstd_of_lanes(sum, m, norm.eps);
            if (threadIdx.x == 0) rstd = result;
        }
        __syncthreads();
        for (int i = threadIdx.x; i < m; i += blockDim.x) {
            float w = i == threadIdx.x ? weight : norm.weight[i];
            codes[i] = code_of(norm.out.quantizer, __fmul_rn(__fmul_rn(r[i], rstd), w));
            if (blockIdx.x == 0) ((int8_t *)norm.out.data)[i] = codes[i];
        }
        __syncthreads();
    };
    auto column = [&](int i) { return i < width ? first + i : channels + first + i - width; };
    products<1, 4>(in_proj, codes, 2 * width, column, normalize, [&](int i, int column, int sum) {
        int8_t code = code_of(in_proj, xz, column, sum);
        ((int8_t *)xz.data)[column] = code;
        if (i < width) x_codes[i] = code;
    });
    __syncthreads();
    if (threadIdx.x >= CONV_FROM && threadIdx.x - CONV_FROM < width) {
#pragma unroll
        for (int k = 0; k < TAPS; ++k) {
            if (k == conv.taps - 1) under[k] = (float)x_codes[threadIdx.x - CONV_FROM];
            if (k < conv.taps) after[k * channels + c] = (int8_t)under[k];
        }
        ((int8_t *)out.data)[c] = code_of(out.quantizer, convolve<R>(conv, channel, 0, 0, under));
    }
}

#define NORM_TO_CONV(name, R)                                                                      \
    extern "C" __global__ void __launch_bounds__(768)                                              \
    norm_to_conv_##name(Norm norm, LinearI8 in_proj, Sink xz, Conv conv, Sink out, int8_t *after,  \
                        int width) {                                                               \
        norm_to_conv<R>(norm, in_proj, xz, conv, out, after, width);                               \
    }
NORM_TO_CONV(correctly_rounded, Ieee)
NORM_TO_CONV(unit, CudaFast)
NORM_TO_CONV(libm, CudaLibm)
NORM_TO_CONV(unit_subnormal, CudaSubnormal)

/// x_proj, dt_proj and the scan. A block of threads makes all of x_proj, and the rest for `width` channels.
template <class R, class F, Sum SUM>
DEVICE void projections_to_scan(const LinearI8 &x_proj, const Sink &projected, const LinearI8 &dt_proj,
                                const Sink &dt, Scan scan, int width) {
    extern __shared__ __align__(16) int8_t shared[];
    int8_t *x = shared, *made = x + up_to_16(x_proj.k), *dts = made + up_to_16(x_proj.n) + up_to_16(dt_proj.k);
    float *rest = (float *)(dts + up_to_16(width));
    int first = blockIdx.x * width, own = min(width, scan.channels - first);
    products<5, 3>(x_proj, x, x_proj.n, [](int i) { return i; }, [&] {
        for (int i = threadIdx.x * 16; i < x_proj.k; i += blockDim.x * 16)
            *(int4 *)(x + i) = *(const int4 *)(x_proj.x + i);
        for (int i = threadIdx.x; i < own; i += blockDim.x) {
            for (int k = 0; k < dt_proj.k; k += 32) ask_for(dt_proj.weight + (first + i) * dt_proj.weight_stride + k);
            ask_for(scan.dt_bias + first + i);
            ask_for(scan.d + first + i);
            if (scan.z.data) ask_for((const int8_t *)scan.z.data + first + i);
        }
        for (int i = threadIdx.x; i < own * scan.states; i += blockDim.x) {
            int e = first + i / scan.states, n = i % scan.states;
            ask_for(scan.alpha + (long long)n * scan.channels + e);
            if (scan.before.data && scan.before.type == I8)
                ask_for((const int8_t *)scan.before.data + (long long)e * scan.states + n);
        }
        __syncthreads();
    }, [&](int, int column, int sum) {
        made[column] = code_of(x_proj, projected, column, sum);
        if (blockIdx.x == 0) ((int8_t *)projected.data)[column] = made[column];
    });
    __syncthreads();
    const int8_t *from = made + (dt_proj.x - (const int8_t *)projected.data);
    for (int i = threadIdx.x; i < own; i += blockDim.x) {
        int sum = 0;
        const int8_t *w = dt_proj.weight + (first + i) * dt_proj.weight_stride;
#pragma unroll 4
        for (int k = 0; k < dt_proj.k; k += 16)
            sum = add_products(*(const int4 *)(from + k), *(const int4 *)(w + k), sum);
        dts[i] = code_of(dt_proj, dt, first + i, sum);
        ((int8_t *)dt.data)[first + i] = dts[i];
    }
    __syncthreads();
    scan.u.data = x;
    scan.dt.data = dts - first;
    scan.b.data = made + ((const int8_t *)scan.b.data - (const int8_t *)projected.data);
    scan.c.data = made + ((const int8_t *)scan.c.data - (const int8_t *)projected.data);
    scan_in<R, F, SUM>(scan, rest, width);
}

#define TO_SCAN(name, R, F, SUM)                                                                           \
    extern "C" __global__ void __launch_bounds__(512)                                                      \
    projections_to_scan_##name(LinearI8 x_proj, Sink projected, LinearI8 dt_proj, Sink dt, Scan scan,      \
                               int width) {                                                                \
        projections_to_scan<R, F<R>, SUM>(x_proj, projected, dt_proj, dt, scan, width);                    \
    }
TO_SCAN(fused_correctly_rounded, Ieee, Fused, IN_ORDER)
TO_SCAN(grouped_unit_subnormal, CudaSubnormal, Grouped, IN_GROUPS)
TO_SCAN(separate_libm, CudaLibm, Separate, OF_PRODUCTS)
TO_SCAN(separate_correctly_rounded, Ieee, Separate, OF_PRODUCTS)

/// Hadamard rotation and out_proj, `width` outputs for a block of threads.
template <int BASE>
DEVICE void rotation_to_out(const Source &y, const Sink &rotated, int block, float factor,
                            const LinearI8 &out_proj, const Sink &out, int width) {
    extern __shared__ __align__(16) int8_t shared[];
    int8_t *codes = shared;
    float *row = (float *)(codes + up_to_16(BASE * block));
    int first = blockIdx.x * width, own = min(width, out_proj.n - first);
    Tally none;
    Sink here = rotated;
    here.data = codes;
    products<1, 4>(out_proj, codes, own, [&](int i) { return first + i; }, [&] {
        rotate_row<BASE>(row, y, here, 0, block, factor, none);
        if (blockIdx.x == 0)
            for (int i = threadIdx.x; i < BASE * block; i += blockDim.x) ((int8_t *)rotated.data)[i] = codes[i];
    }, [&](int, int column, int sum) { put(out_proj, out, 0, column, sum, none); });
}

#define ROTATION_TO_OUT(BASE)                                                                              \
    extern "C" __global__ void __launch_bounds__(256)                                                      \
    rotation_to_out_##BASE(Source y, Sink rotated, int block, float factor, LinearI8 out_proj, Sink out,   \
                           int width) {                                                                    \
        rotation_to_out<BASE>(y, rotated, block, factor, out_proj, out, width);                            \
    }
ROTATION_TO_OUT(1)
ROTATION_TO_OUT(12)
ROTATION_TO_OUT(20)
ROTATION_TO_OUT(28)
ROTATION_TO_OUT(40)
