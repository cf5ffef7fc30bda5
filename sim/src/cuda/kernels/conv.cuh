// Causal depthwise conv1d with SiLU: the twin of sim/src/step/conv.rs.
#pragma once
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

/// The weights of a channel: codes, if they are used, else as f32.
struct Channel {
    bool codes;
    float taps[TAPS], bias;

    DEVICE void load(const Conv &conv, int c) {
        bool scale_per_row = conv.scales && conv.scales_each > 1;
        codes = conv.x.type == I8 && conv.codes && conv.form == INTEGER_SUM && !scale_per_row;
#pragma unroll
        for (int k = 0; k < TAPS; ++k) {
            int at = k * conv.channels + c;
            if (k < conv.taps) taps[k] = codes ? (float)conv.codes[at] : conv.weights[at];
        }
        bias = conv.bias[c];
    }
};

/// The output of a channel at token t of a sequence, from the values under its taps, the oldest first.
template <class R>
DEVICE float convolve(const Conv &conv, const Channel &channel, long long sequence, int t, const float (&under)[TAPS]) {
    float bias = R::mul(conv.bias_scale, channel.bias);
    bool scale_per_row = conv.scales && conv.scales_each > 1;
    const float *scales = conv.scales + sequence * conv.scales_each;
    float whole = conv.x.type != I8 ? 1.0f : conv.scales ? scales[0] : conv.x.scale;
    float v;
    if (channel.codes) {
        int acc = 0;
#pragma unroll
        for (int k = 0; k < TAPS; ++k)
            if (k < conv.taps) acc += (int)channel.taps[k] * (int)under[k];
        v = R::fma(R::mul(conv.weight_scale, whole), __int2float_rn(acc), bias);
    } else {
        v = bias;
#pragma unroll
        for (int k = 0; k < TAPS; ++k) {
            if (k >= conv.taps) break;
            float scale = R::mul(conv.weight_scale, scale_per_row ? scales[t + k] : whole);
            float w = R::mul(scale, channel.taps[k]);
            v = R::fma(w, under[k], v);
        }
    }
    return conv.silu_product ? R::mul(v, times_sigmoid<R>(1.0f, v)) : times_sigmoid<R>(v, v);
}
