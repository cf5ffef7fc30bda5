// The recurrence token after token, with a sum over states in order (prefill and decode) or in groups
// (decode) or of products that are rounded first: the twin of
// sim/src/step/{scan_sequential,scan_update,scan_sum}.rs.
#pragma once
#include "scan.cuh"

/// Tokens whose values lie in shared memory at once.
constexpr int CHUNK = 16;

/// The sum over states in ascending order, from the output before the first state.
template <class R, class F>
DEVICE float sum_in_order(float *x, const float *c, int states, float skip, float u) {
    float out = F::first_output(skip, u);
    for (int n = 0; n < states; ++n) out = F::accumulate(x[n], c[n], out);
    return out;
}

/// Groups of four (state 1 first, then 0, 2, 3), then a butterfly over the groups from the widest
/// distance down, padded with zeros to a power of two. Overwrites x.
template <class R, class F>
DEVICE float sum_in_groups(float *x, const float *c, int states) {
    int groups = (states + 3) / 4, width = 1;
    for (int j = 0; j < groups; ++j) {
        int first = 4 * j;
        float sum = first + 1 < states ? R::mul(x[first + 1], c[first + 1]) : 0.0f;
        for (int i = 0; i < 4; ++i)
            if (i != 1 && first + i < states) sum = F::accumulate(x[first + i], c[first + i], sum);
        x[j] = sum;
    }
    while (width < groups) width *= 2;
    while (width > 1) {
        width /= 2;
        for (int i = 0; i < min(width, groups); ++i)
            x[i] = R::add(x[i], i + width < groups ? x[i + width] : 0.0f);
    }
    return x[0];
}

enum SumOrder { ASCENDING = 0, HALVES = 1, EIGHT_LANES = 2 };

/// The sum of the products, each rounded. Overwrites x.
template <class R>
DEVICE float sum_of_products(float *x, const float *c, int states, int order) {
    for (int n = 0; n < states; ++n) x[n] = R::mul(x[n], c[n]);
    int left = states;
    if (order == HALVES) {
        int half = 1;
        while (half < states) half *= 2;
        for (half /= 2; half > 0; half /= 2) {
            for (int i = 0; i < half; ++i)
                if (i + half < left) x[i] = R::add(x[i], x[i + half]);
            left = min(left, half);
        }
        return x[0];
    }
    if (order == EIGHT_LANES) {
        left = min(states, 8);
        for (int n = 8; n < states; ++n) x[n % 8] = R::add(x[n % 8], x[n]);
    }
    float sum = x[0];
    for (int n = 1; n < left; ++n) sum = R::add(sum, x[n]);
    return sum;
}

enum Sum { IN_ORDER, IN_GROUPS, OF_PRODUCTS };

/// Overwrites x.
template <class R, class F, Sum SUM>
DEVICE float sum_over_states(float *x, const float *c, int states, float skip, float u, int order) {
    if constexpr (SUM == IN_GROUPS) {
        return sum_in_groups<R, F>(x, c, states);
    } else if constexpr (SUM == OF_PRODUCTS) {
        return sum_of_products<R>(x, c, states, order);
    } else {
        return sum_in_order<R, F>(x, c, states, skip, u);
    }
}

/// The states that nearly every model has.
constexpr int MANY = 16;

/// Thread (e, n) carries state n of channel e, of `width` channels of a block; between, threads are (token,
/// channel). Shared memory: states `[CHUNK, width, N]`, δ and u `[CHUNK, width]`, B and C `[CHUNK, N]`.
template <class R, class F, Sum SUM>
DEVICE void scan_in(const Scan &p, float *shared, int width) {
    int states = p.states;
    float *x_all = shared, *delta_all = x_all + CHUNK * width * states;
    float *u_all = delta_all + CHUNK * width, *b_all = u_all + CHUNK * width;
    float *c_all = b_all + CHUNK * states;
    int first = blockIdx.x * width;
    long long sequence = blockIdx.y;
    width = min(width, p.channels - first);
    int own_e = threadIdx.x / states, own_n = threadIdx.x % states;
    bool carries = own_e < width;
    long long state_row = sequence * p.channels + first + own_e;
    float alpha = carries ? p.alpha[(long long)own_n * p.channels + first + own_e] : 0.0f;
    float state = carries ? state_before<R>(p.before, state_row, own_n) : 0.0f;
    Tally tally;

    for (int from = 0; from < p.length; from += CHUNK) {
        int tokens = min(CHUNK, p.length - from);
        long long row = sequence * p.length + from;
        for (int i = threadIdx.x; i < tokens * width; i += blockDim.x) {
            int t = i / width, e = first + i % width;
            float bias = R::mul(p.dt_bias_scale, p.dt_bias[e]);
            u_all[i] = real<R>(p.u, row + t, e);
            delta_all[i] = softplus<R>(F::dt(p.dt.scale, p.dt.load(row + t, e), bias));
        }
        for (int i = threadIdx.x; i < tokens * states; i += blockDim.x) {
            b_all[i] = real<R>(p.b, row + i / states, i % states);
            c_all[i] = real<R>(p.c, row + i / states, i % states);
        }
        __syncthreads();
        if (carries) {
            for (int t = 0; t < tokens; ++t) {
                float delta = delta_all[t * width + own_e], u = u_all[t * width + own_e];
                float decay = R::exp_neg(R::mul(alpha, delta));
                float input = F::input(b_all[t * states + own_n], delta, u);
                state = F::update(decay, state, input);
                x_all[(t * width + own_e) * states + own_n] = state;
            }
        }
        __syncthreads();
        for (int i = threadIdx.x; i < tokens * width; i += blockDim.x) {
            int t = i / width, e = first + i % width;
            float skip = R::mul(p.d_scale, p.d[e]), u = u_all[i], out;
            float *x = x_all + i * states;
            const float *c = c_all + t * states;
            if (states == MANY) {
                // Written out, and read at once.
                float own_x[MANY], own_c[MANY];
#pragma unroll
                for (int n = 0; n < MANY; ++n) own_x[n] = x[n], own_c[n] = c[n];
                out = sum_over_states<R, F, SUM>(own_x, own_c, MANY, skip, u, p.sum);
            } else {
                out = sum_over_states<R, F, SUM>(x, c, states, skip, u, p.sum);
            }
            out = F::last_output(out, skip, u);
            if (p.z.data) out = F::gate(out, real<R>(p.z, row + t, e));
            Tally none;
            p.y.store(row + t, e, out, 1.0f, none);
        }
        __syncthreads();
    }
    if (carries) p.after.store(state_row, own_n, state, p.after.quantizer.divisor(), tally);
    p.after.quantizer.finish(tally);
}
