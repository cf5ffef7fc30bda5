// Causal depthwise conv1d with SiLU: the twin of sim/src/step/conv.rs.
#include "tensor.cuh"

enum Form { INTEGER_SUM = 0, TAP_CHAIN = 1 };

/// Taps, at most.
constexpr int TAPS = 4;

/// A convolution over B sequences of L tokens; weights `[K, E]`.
struct Conv {
    /// Rows to compute; `x.scale` is the scale of codes that have one.
    Source x;
    /// Elements from one sequence's rows to the next one's.
    long long x_step;
    /// The K−1 rows before each sequence; null for zeros.
    const void *before;
    long long before_step;
    /// Scales found at run time, `scales_each` for each sequence: one for all of it, or one for each of
    /// K−1 rows of history and L rows of x. Null for `x.scale`.
    const float *scales;
    /// Weights as codes, if they are; and as f32.
    const int8_t *codes;
    const float *weights;
    const float *bias;
    float weight_scale, bias_scale;
    int taps, channels, length, form, scales_each;
    /// Whether SiLU is x times its sigmoid, else a quotient.
    int silu_product;
};

/// Element of the window of token t at tap k.
DEVICE float window(const Conv &conv, long long sequence, int t, int k, int c) {
    int row = t + k - (conv.taps - 1);
    if (row >= 0) return conv.x.load(row, sequence * conv.x_step + c);
    if (!conv.before) return 0.0f;
    Source before = {conv.before, conv.channels, 1.0f, conv.x.type};
    return before.load(t + k, sequence * conv.before_step + c);
}

/// Any input and form, one thread an element.
template <class R>
DEVICE void conv_general(const Conv &conv, const Sink &out, long long rows) {
    int c = blockIdx.x * blockDim.x + threadIdx.x;
    float divisor = out.quantizer.divisor();
    Tally tally;
    for (long long row = blockIdx.y; row < rows; row += gridDim.y) {
        if (c >= conv.channels) break;
        long long sequence = row / conv.length;
        int t = (int)(row % conv.length);
        float bias = R::mul(conv.bias_scale, conv.bias[c]);
        bool scale_per_row = conv.scales && conv.scales_each > 1;
        const float *scales = conv.scales + sequence * conv.scales_each;
        float whole = conv.x.type != I8 ? 1.0f : conv.scales ? scales[0] : conv.x.scale;
        float v;
        if (conv.x.type == I8 && conv.codes && conv.form == INTEGER_SUM && !scale_per_row) {
            int acc = 0;
            for (int k = 0; k < conv.taps; ++k)
                acc += (int)conv.codes[k * conv.channels + c] * (int)window(conv, sequence, t, k, c);
            v = R::fma(R::mul(conv.weight_scale, whole), __int2float_rn(acc), bias);
        } else {
            v = bias;
            for (int k = 0; k < conv.taps; ++k) {
                float scale = R::mul(conv.weight_scale, scale_per_row ? scales[t + k] : whole);
                float w = R::mul(scale, conv.weights[k * conv.channels + c]);
                v = R::fma(w, window(conv, sequence, t, k, c), v);
            }
        }
        float y = conv.silu_product ? R::mul(v, times_sigmoid<R>(1.0f, v)) : times_sigmoid<R>(v, v);
        out.store(row, c, y, divisor, tally);
    }
    out.quantizer.finish(tally);
}

/// Tokens a thread computes in the packed form, four channels side by side; tokens read ahead.
constexpr int RUN = 16, STEP = 4;

/// Four neighbours of a row, in one store.
DEVICE void store_four(const Sink &out, long long row, int c, const float (&y)[4], float divisor,
                       Tally &tally) {
    long long at = row * out.stride + c;
    if (out.type == I8) {
        uint32_t packed = 0;
#pragma unroll
        for (int e = 0; e < 4; ++e)
            packed |= (uint32_t)(uint8_t)out.quantizer.code(y[e], divisor, tally) << (8 * e);
        *(uint32_t *)((int8_t *)out.data + at) = packed;
    } else {
        *(float4 *)((float *)out.data + at) = make_float4(y[0], y[1], y[2], y[3]);
    }
}

/// Codes with one scale, summed exactly; E and both strides multiples of 4. The four taps of a
/// channel sit in one register, so a token costs a byte permutation and a dot product.
template <class R>
DEVICE void conv_packed(const Conv &conv, const Sink &out) {
    int c = 4 * (blockIdx.x * blockDim.x + threadIdx.x);
    int first = blockIdx.y * RUN;
    long long sequence = blockIdx.z;
    Tally tally;
    if (c < conv.channels) {
        const char *x = (const char *)conv.x.data + sequence * conv.x_step + c;
        const char *before = (const char *)conv.before + sequence * conv.before_step + c;
        float scale = R::mul(conv.weight_scale, conv.x.scale);
        float divisor = out.quantizer.divisor();
        float bias[4];
        int taps[4] = {0, 0, 0, 0}, seen[4] = {0, 0, 0, 0};
        // Fewer than four taps: the oldest have weight zero.
        int skipped = TAPS - conv.taps;
#pragma unroll
        for (int k = 0; k < TAPS; ++k) {
            int w = 0;
            if (k >= skipped)
                w = *(const int *)(conv.codes + (long long)(k - skipped) * conv.channels + c);
#pragma unroll
            for (int e = 0; e < 4; ++e) taps[e] |= ((w >> (8 * e)) & 0xFF) << (8 * k);
        }
#pragma unroll
        for (int e = 0; e < 4; ++e) bias[e] = R::mul(conv.bias_scale, conv.bias[c + e]);
#pragma unroll
        for (int k = skipped; k < TAPS - 1; ++k) {
            int row = first + k - (TAPS - 1), codes = 0;
            if (row >= 0) {
                codes = *(const int *)(x + row * conv.x.stride);
            } else if (conv.before) {
                codes = *(const int *)(before + (long long)(conv.taps - 1 + row) * conv.channels);
            }
#pragma unroll
            for (int e = 0; e < 4; ++e) seen[e] |= ((codes >> (8 * e)) & 0xFF) << (8 * (k + 1));
        }
        for (int run = first; run < min(first + RUN, conv.length); run += STEP) {
            int codes[STEP];
#pragma unroll
            for (int i = 0; i < STEP; ++i)
                codes[i] = run + i < conv.length
                               ? *(const int *)(x + (long long)(run + i) * conv.x.stride)
                               : 0;
#pragma unroll
            for (int i = 0; i < STEP; ++i) {
                float y[4];
#pragma unroll
                for (int e = 0; e < 4; ++e) {
                    // The three newest taps move down, the new code comes last.
                    seen[e] = __byte_perm(seen[e], codes[i], 0x0321 | (4 + e) << 12);
                    float v = R::fma(scale, __int2float_rn(__dp4a(taps[e], seen[e], 0)), bias[e]);
                    y[e] = times_sigmoid<R>(v, v);
                }
                if (run + i < conv.length) store_four(out, sequence * conv.length + run + i, c, y,
                                                      divisor, tally);
            }
        }
    }
    out.quantizer.finish(tally);
}

extern "C" __global__ void conv_silu_correctly_rounded(Conv conv, Sink out, long long rows) {
    conv_general<Ieee>(conv, out, rows);
}
extern "C" __global__ void conv_silu_unit(Conv conv, Sink out, long long rows) {
    conv_general<CudaFast>(conv, out, rows);
}
extern "C" __global__ void conv_silu_libm(Conv conv, Sink out, long long rows) {
    conv_general<CudaLibm>(conv, out, rows);
}
extern "C" __global__ void conv_silu_unit_subnormal(Conv conv, Sink out, long long rows) {
    conv_general<CudaSubnormal>(conv, out, rows);
}
extern "C" __global__ void conv_silu_packed_unit(Conv conv, Sink out) {
    conv_packed<CudaFast>(conv, out);
}

/// The last `rows` of each sequence's K rows before (null for zeros) and L rows of x, `[B, rows, E]`:
/// the history after it (K rows), or the window to quantize (K−1+L rows).
extern "C" __global__ void conv_last_rows(Source x, const void *before, void *out, int taps,
                                          int channels, int length, int rows) {
    int c = blockIdx.x * blockDim.x + threadIdx.x;
    long long sequence = blockIdx.z;
    if (c >= channels) return;
    for (int row = blockIdx.y; row < rows; row += gridDim.y) {
        int from = length - rows + row;
        float v = 0.0f;
        if (from >= 0) {
            v = x.load(sequence * length + from, c);
        } else if (before) {
            Source old = {before, channels, 1.0f, x.type};
            v = old.load(sequence * taps + taps + from, c);
        }
        long long to = (sequence * rows + row) * channels + c;
        if (x.type == I8) {
            ((int8_t *)out)[to] = (int8_t)v;
        } else {
            ((float *)out)[to] = v;
        }
    }
}
