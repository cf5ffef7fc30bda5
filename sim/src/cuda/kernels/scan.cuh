// The selective scan: its inputs and formulas. The twin of sim/src/step/{scan,scan_formula}.rs.
#pragma once
#include "tensor.cuh"

/// A scan over B sequences of L tokens; E channels, N states.
struct Scan {
    /// `[B·L, E]`, `[B·L, E]`, `[B·L, N]`, `[B·L, N]`, `[B·L, E]`.
    Source u, dt, b, c, z;
    /// State before the first token, `[B·E, N]`; null data for zeros.
    Source before;
    /// exp(A_log), `[N, E]`.
    const float *alpha;
    const float *d, *dt_bias;
    float d_scale, dt_bias_scale;
    int channels, states, length;
    /// The order of the sum over states, where products are rounded before they are added.
    int sum;
    /// Gated output `[B·L, E]`, and the state after the last token, `[B·E, N]`.
    Sink y, after;
};

/// A code or value times its scale; real values have scale 1.
template <class R>
DEVICE float real(const Source &source, long long row, long long column) {
    return R::mul(source.scale, source.load(row, column));
}

/// The state before the first token: real values as they are.
template <class R>
DEVICE float state_before(const Source &before, long long row, int n) {
    if (!before.data) return 0.0f;
    float v = before.load(row, n);
    return before.type == I8 ? R::mul(before.scale, v) : v;
}

/// The CUDA prefill kernel's formula.
template <class R>
struct Fused {
    static DEVICE float dt(float scale, float dt, float bias) { return R::fma(scale, dt, bias); }
    static DEVICE float first_output(float skip, float u) { return R::mul(skip, u); }
    static DEVICE float input(float b, float delta, float u) { return R::mul(b, R::mul(delta, u)); }
    static DEVICE float update(float decay, float x, float in) { return R::fma(decay, x, in); }
    static DEVICE float accumulate(float x, float c, float out) { return R::fma(x, c, out); }
    static DEVICE float last_output(float out, float, float) { return out; }
    static DEVICE float gate(float out, float z) { return times_sigmoid<R>(R::mul(out, z), z); }
};

/// PyTorch's formula: every operation rounded on its own; the sum over states is apart.
template <class R>
struct Separate {
    static DEVICE float dt(float scale, float dt, float bias) { return R::add(R::mul(dt, scale), bias); }
    static DEVICE float input(float b, float delta, float u) { return R::mul(R::mul(delta, b), u); }
    static DEVICE float update(float decay, float x, float in) { return R::add(R::mul(decay, x), in); }
    static DEVICE float last_output(float out, float skip, float u) { return R::add(out, R::mul(u, skip)); }
    static DEVICE float gate(float out, float z) { return R::mul(out, times_sigmoid<R>(z, z)); }
};

/// The CUDA decode kernel's formula; its sum over states is grouped.
template <class R>
struct Grouped {
    static DEVICE float dt(float scale, float dt, float bias) { return R::fma(scale, dt, bias); }
    static DEVICE float input(float b, float delta, float u) { return R::mul(R::mul(b, delta), u); }
    static DEVICE float update(float decay, float x, float in) { return R::fma(x, decay, in); }
    static DEVICE float accumulate(float x, float c, float out) { return R::fma(x, c, out); }
    static DEVICE float last_output(float out, float skip, float u) { return R::fma(skip, u, out); }
    static DEVICE float gate(float out, float z) {
        return R::mul(out, R::mul(z, R::div(1.0f, R::add(R::exp_neg(z), 1.0f))));
    }
};
