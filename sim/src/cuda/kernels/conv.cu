// Causal depthwise conv1d with SiLU, many tokens, and its history.
#include "conv.cuh"

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
        float under[TAPS];
#pragma unroll
        for (int k = 0; k < TAPS; ++k)
            if (k < conv.taps) under[k] = window(conv, sequence, t, k, c);
        Channel channel;
        channel.load(conv, c);
        out.store(row, c, convolve<R>(conv, channel, sequence, t, under), divisor, tally);
    }
    out.quantizer.finish(tally);
}

/// Tokens a thread computes in the packed form, four channels side by side; tokens read ahead.
constexpr int RUN = 16, STEP = 4;

/// Four neighbours of a row, in one store. `plain`: the rule that needs no look at the others.
DEVICE void store_four(const Sink &out, long long row, int c, const float (&y)[4], float divisor, bool plain,
                       Tally &tally) {
    long long at = row * out.stride + c;
    if (plain) {
        int codes[4];
#pragma unroll
        for (int e = 0; e < 4; ++e) codes[e] = to_integer(TIES_AWAY, __fmul_rn(y[e], divisor));
        *(uint32_t *)((int8_t *)out.data + at) = four_codes(codes[0], codes[1], codes[2], codes[3]);
    } else if (out.type == I8) {
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
        const Quantizer &quantizer = out.quantizer;
        float divisor = quantizer.divisor();
        bool plain = out.type == I8 && quantizer.quotient == APPROX_RECIPROCAL && quantizer.rounding == TIES_AWAY &&
                     quantizer.overflow == SATURATE && !quantizer.status;
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
        int end = min(first + RUN, conv.length), ahead[STEP];
        auto fetch = [&](int run) {
#pragma unroll
            for (int i = 0; i < STEP; ++i)
                ahead[i] = run + i < end ? *(const int *)(x + (long long)(run + i) * conv.x.stride) : 0;
        };
        fetch(first);
#pragma unroll 1
        for (int run = first; run < end; run += STEP) {
            int codes[STEP];
#pragma unroll
            for (int i = 0; i < STEP; ++i) codes[i] = ahead[i];
            fetch(run + STEP);
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
                if (run + i < end) store_four(out, sequence * conv.length + run + i, c, y,
                                                      divisor, plain, tally);
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
