// The recurrence as the CUDA prefill kernel associates it, a block scan over time: the twin of
// sim/src/step/scan_block.rs. The formula is `Fused`.
//
// A sequence is cut into chunks of T·I tokens: T threads of I consecutive items, padded with the
// neutral element. A *group* of T threads takes a channel at a time, state after state: each thread
// folds its items, each warp makes an inclusive Kogge-Stone scan of the folds, warps are chained in
// order, and every thread replays its items from its prefix.
#include "scan.cuh"

constexpr unsigned ALL = 0xFFFFFFFF;
constexpr int WARP = 32, THREADS = 512;
/// Channels of a block: 16 codes are one load.
constexpr int CHANNELS = 16;
/// States that go through time together: their chains of dependent operations overlap.
constexpr int PAIR = 2;
/// B and C of this many pairs lie in shared memory: in use, ready next, and on the way.
constexpr int STAGES = 3;

/// The affine map x → a·x + b of a stretch of tokens.
struct Map {
    float a, b;

    /// This map, then `after`.
    template <class R>
    DEVICE Map then(Map after) const {
        return {R::mul(after.a, a), R::fma(after.a, b, after.b)};
    }
};

/// One of two maps.
DEVICE Map choose(bool first, Map a, Map b) { return {first ? a.a : b.a, first ? a.b : b.b}; }

/// Four neighbours in shared memory.
DEVICE void load_four(float (&v)[4], const float *from) {
    float4 four = *(const float4 *)from;
    v[0] = four.x, v[1] = four.y, v[2] = four.z, v[3] = four.w;
}

/// A pair of states of one channel through a chunk: adds it to `out`, and moves `state` to the end of
/// the chunk. `operands` are the thread's own, B of both states, then C, SPAN apart, in vectors of four
/// T apart. `totals` holds the folds of each warp of the group; successive calls need different ones.
/// `then` runs once all threads of the block have made their folds.
template <class R, int T, int I, class Then>
DEVICE void advance(float (&state)[PAIR], const float (&alpha)[PAIR], int states,
                    const float (&delta)[I], const float (&du)[I], const float *operands,
                    Map (*totals)[T / WARP], float (&out)[I], Then then) {
    constexpr int SPAN = T * I;
    int thread = threadIdx.x % T, lane = thread % WARP, warp = thread / WARP;
    float decay[PAIR][I];
    Map fold[PAIR];
#pragma unroll
    for (int i = 0; i < I; i += 4)
#pragma unroll
        for (int s = 0; s < PAIR; ++s) {
            float b[4];
            load_four(b, operands + s * SPAN + i * T);
#pragma unroll
            for (int j = 0; j < 4; ++j) {
                decay[s][i + j] = R::exp_neg(R::mul(alpha[s], delta[i + j]));
                Map map = {decay[s][i + j], R::mul(b[j], du[i + j])};
                fold[s] = i + j == 0 ? map : fold[s].then<R>(map);
            }
        }
#pragma unroll
    for (int offset = 1; offset < WARP; offset *= 2)
#pragma unroll
        for (int s = 0; s < PAIR; ++s) {
            Map lower = {__shfl_up_sync(ALL, fold[s].a, offset), __shfl_up_sync(ALL, fold[s].b, offset)};
            // Without a branch: every lane has the sum ready when it knows whether it is its own.
            fold[s] = choose(lane >= offset, lower.then<R>(fold[s]), fold[s]);
        }
    if (lane == WARP - 1)
        for (int s = 0; s < PAIR; ++s) totals[s][warp] = fold[s];
    asm volatile("cp.async.wait_all;" ::: "memory");
    __syncthreads();
    then();
    float x[PAIR];
#pragma unroll
    for (int s = 0; s < PAIR; ++s) {
        Map lower = {__shfl_up_sync(ALL, fold[s].a, 1), __shfl_up_sync(ALL, fold[s].b, 1)};
        Map chain = totals[s][0], before = chain;
#pragma unroll
        for (int w = 1; w < T / WARP; ++w) {
            before = choose(warp == w, chain, before);
            chain = chain.then<R>(totals[s][w]);
        }
        Map both = choose(lane == 0, before, before.then<R>(lower));
        Map exclusive = choose(warp == 0, lower, both);
        x[s] = thread == 0 ? state[s] : R::fma(exclusive.a, state[s], exclusive.b);
        state[s] = R::fma(chain.a, state[s], chain.b);
    }
    // State by state, as the output adds them up.
#pragma unroll
    for (int s = 0; s < PAIR; ++s) {
        if (s >= states) break;
#pragma unroll
        for (int i = 0; i < I; i += 4) {
            float b[4], c[4];
            load_four(b, operands + s * SPAN + i * T);
            load_four(c, operands + (PAIR + s) * SPAN + i * T);
#pragma unroll
            for (int j = 0; j < 4; ++j) {
                x[s] = R::fma(decay[s][i + j], x[s], R::mul(b[j], du[i + j]));
                out[i + j] = R::fma(x[s], c[j], out[i + j]);
            }
        }
    }
}

/// B and C as the scan reads them: times their scales, `[sequence, chunk, pair of states, B or C, state
/// of the pair, I/4, T, 4]`, so that the threads of a group read neighbouring vectors; zeros beyond the
/// sequence and beyond an odd number of states.
template <class R>
DEVICE void operands_in(const Source &b, const Source &c, float *out, int states, int length,
                        int threads, int items, long long count) {
    long long i = blockIdx.x * (long long)blockDim.x + threadIdx.x;
    if (i >= count) return;
    int span = threads * items;
    int within = (int)(i % span), item = within / (threads * 4) * 4 + within % 4;
    long long rest = i / span;
    int n = (int)(rest % PAIR), of_c = (int)(rest / PAIR % 2);
    rest /= 2 * PAIR;
    int pairs = (states + PAIR - 1) / PAIR, chunks = (length + span - 1) / span;
    n += (int)(rest % pairs) * PAIR;
    rest /= pairs;
    int t = (int)(rest % chunks) * span + within / 4 % threads * items + item;
    long long row = rest / chunks * length + t;
    out[i] = t < length && n < states ? real<R>(of_c ? c : b, row, n) : 0.0f;
}

/// Word i of four.
DEVICE uint32_t word_of(uint4 words, int i) {
    return i == 0 ? words.x : i == 1 ? words.y : i == 2 ? words.z : words.w;
}

/// Byte j of word i becomes byte i of word j.
DEVICE void turn_bytes(uint32_t (&words)[4]) {
    uint32_t low01 = __byte_perm(words[0], words[1], 0x5140), high01 = __byte_perm(words[0], words[1], 0x7362);
    uint32_t low23 = __byte_perm(words[2], words[3], 0x5140), high23 = __byte_perm(words[2], words[3], 0x7362);
    words[0] = __byte_perm(low01, low23, 0x5410), words[1] = __byte_perm(low01, low23, 0x7632);
    words[2] = __byte_perm(high01, high23, 0x5410), words[3] = __byte_perm(high01, high23, 0x7632);
}

/// I codes of neighbouring tokens as f32.
template <int I>
DEVICE void load_codes(float (&v)[I], const int8_t *from) {
    uint32_t words[I / 4];
    if (I == 16) {
        *(int4 *)words = *(const int4 *)from;
    } else if (I == 8) {
        *(int2 *)words = *(const int2 *)from;
    } else {
        words[0] = *(const uint32_t *)from;
    }
#pragma unroll
    for (int i = 0; i < I; ++i) v[i] = (float)(int8_t)(words[i / 4] >> (i % 4 * 8));
}

/// Groups of T threads, each with a channel at a time out of the block's 16, all with the same states
/// of it. `TILED`: u, dt and z are codes and y is binary16; they pass through shared memory, turned, in
/// vectors of 16 channels.
template <class R, int T, int I, bool TILED>
DEVICE void scan_block_in(const Scan &p, const float *operands) {
    constexpr int GROUPS = THREADS / T, SPAN = T * I, SET = 2 * PAIR * SPAN;
    extern __shared__ __align__(16) int8_t shared[];
    // For each channel u and dt, where y goes later, then z; B and C; states and exp(A_log).
    int8_t *tile = shared;
    float *sets = (float *)(shared + (TILED ? CHANNELS * 3 * SPAN : 0));
    float *states_all = sets + STAGES * SET, *alpha_all = states_all + CHANNELS * p.states;
    __shared__ Map totals[GROUPS][2][PAIR][T / WARP];
    int group = threadIdx.x / T, thread = threadIdx.x % T;
    int first = blockIdx.x * CHANNELS;
    long long sequence = blockIdx.y;
    int chunks = (p.length + SPAN - 1) / SPAN, pairs = (p.states + PAIR - 1) / PAIR;
    int visits = CHANNELS / GROUPS * pairs;
    Tally tally;

    for (int i = threadIdx.x; i < CHANNELS * p.states; i += THREADS) {
        int e = first + i / p.states, n = i % p.states;
        bool real_channel = e < p.channels;
        long long row = sequence * p.channels + e;
        states_all[i] = real_channel ? state_before<R>(p.before, row, n) : 0.0f;
        alpha_all[i] = real_channel ? p.alpha[(long long)n * p.channels + e] : 0.0f;
    }
    for (int chunk = 0; chunk < chunks; ++chunk) {
        int tokens = min(SPAN, p.length - chunk * SPAN);
        long long row = sequence * p.length + chunk * SPAN;
        const float *chunk_operands = operands + (sequence * chunks + chunk) * pairs * SET;
        // Every group goes through the pairs once for each of its channels; the next set to fetch, and where to.
        int fetched = 0, pair = 0;
        const float *from = chunk_operands + threadIdx.x * 4;
        uint32_t first_to = (uint32_t)__cvta_generic_to_shared(sets + threadIdx.x * 4), to = first_to;
        auto fetch = [&] {
            if (fetched++ >= visits) return;
#pragma unroll
            for (int i = 0; i < (SET + THREADS * 4 - 1) / (THREADS * 4); ++i)
                if (SET % (THREADS * 4) == 0 || threadIdx.x * 4 + i * THREADS * 4 < SET)
                    asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" ::"r"(to + i * THREADS * 16),
                                 "l"(from + i * THREADS * 4));
            from += SET, to += SET * 4;
            if (++pair == pairs) pair = 0, from = chunk_operands + threadIdx.x * 4;
            if (to == first_to + STAGES * SET * 4) to = first_to;
        };
        __syncthreads();
        fetch();
        fetch();
        if (TILED) {
            // Four tokens a thread; everything it loads is on its way at once.
            const Source *sources[3] = {&p.u, &p.dt, &p.z};
            for (int t = threadIdx.x * 4; t < tokens; t += THREADS * 4) {
                uint4 codes[3][4];
#pragma unroll
                for (int s = 0; s < 3; ++s) {
                    const int8_t *from = (const int8_t *)sources[s]->data + (row + t) * sources[s]->stride + first;
#pragma unroll
                    for (int i = 0; i < 4; ++i)
                        codes[s][i] = t + i < tokens ? *(const uint4 *)(from + i * sources[s]->stride)
                                                     : make_uint4(0, 0, 0, 0);
                }
#pragma unroll
                for (int s = 0; s < 3; ++s)
#pragma unroll
                    for (int e = 0; e < CHANNELS; e += 4) {
                        uint32_t words[4];
#pragma unroll
                        for (int i = 0; i < 4; ++i) words[i] = word_of(codes[s][i], e / 4);
                        turn_bytes(words);
#pragma unroll
                        for (int i = 0; i < 4; ++i)
                            *(uint32_t *)(tile + ((e + i) * 3 + s) * SPAN + t) = words[i];
                    }
            }
        }
        asm volatile("cp.async.wait_all;" ::: "memory");
        __syncthreads();
        int current = 0, parity = 0;
        for (int own = group; own < CHANNELS; own += GROUPS) {
            // Groups beyond the last channel go along with it and keep nothing.
            int e = min(first + own, p.channels - 1);
            bool real_channel = first + own < p.channels;
            float bias = R::mul(p.dt_bias_scale, p.dt_bias[e]), skip = R::mul(p.d_scale, p.d[e]);
            float delta[I], du[I], out[I];
            if (TILED) {
                load_codes<I>(du, tile + own * 3 * SPAN + thread * I);
                load_codes<I>(delta, tile + (own * 3 + 1) * SPAN + thread * I);
            }
#pragma unroll
            for (int i = 0; i < I; ++i) {
                int t = thread * I + i;
                bool inside = t < tokens;
                float u = TILED ? du[i] : inside ? p.u.load(row + t, e) : 0.0f;
                float dt = TILED ? delta[i] : inside ? p.dt.load(row + t, e) : 0.0f;
                u = R::mul(p.u.scale, u);
                float soft = softplus<R>(Fused<R>::dt(p.dt.scale, dt, bias));
                // Beyond the sequence, zeros make the neutral element: decay exp(0) = 1, input 0.
                delta[i] = inside ? soft : 0.0f;
                du[i] = inside ? R::mul(soft, u) : 0.0f;
                out[i] = inside ? Fused<R>::first_output(skip, u) : 0.0f;
            }
            for (int n = 0; n < p.states; n += PAIR) {
                int left = min(PAIR, p.states - n);
                float state[PAIR], alpha[PAIR];
#pragma unroll
                for (int s = 0; s < PAIR; ++s) {
                    state[s] = s < left ? states_all[own * p.states + n + s] : 0.0f;
                    alpha[s] = s < left ? alpha_all[own * p.states + n + s] : 0.0f;
                }
                advance<R, T, I>(state, alpha, left, delta, du, sets + current * SET + thread * 4,
                                 totals[group][parity], out, fetch);
                current = current + 1 == STAGES ? 0 : current + 1;
                parity ^= 1;
                // Every thread of the group has read the states ahead of the barrier in `advance`.
                if (thread == 0)
                    for (int s = 0; s < left; ++s) states_all[own * p.states + n + s] = state[s];
            }
            if (TILED) {
                float z[I];
                load_codes<I>(z, tile + (own * 3 + 2) * SPAN + thread * I);
                __align__(16) uint16_t y[I];
#pragma unroll
                for (int i = 0; i < I; ++i)
                    y[i] = to_f16(Fused<R>::gate(out[i], R::mul(p.z.scale, z[i])));
                // All have read u and dt of this channel ahead of the barriers in `advance`.
                uint16_t *to = (uint16_t *)(tile + own * 3 * SPAN) + thread * I;
#pragma unroll
                for (int i = 0; i < I; i += 4) *(uint2 *)(to + i) = *(const uint2 *)(y + i);
            } else {
#pragma unroll
                for (int i = 0; i < I; ++i) {
                    int t = thread * I + i;
                    if (t < tokens && real_channel) {
                        float v = Fused<R>::last_output(out[i], 0.0f, 0.0f);
                        if (p.z.data) v = Fused<R>::gate(v, real<R>(p.z, row + t, e));
                        Tally none;
                        p.y.store(row + t, e, v, 1.0f, none);
                    }
                }
            }
        }
        if (TILED) {
            __syncthreads();
            for (int t = threadIdx.x * 4; t < tokens; t += THREADS * 4) {
                uint32_t rows[4][CHANNELS / 2];
#pragma unroll
                for (int e = 0; e < CHANNELS; e += 2) {
                    uint2 even = *(const uint2 *)((const uint16_t *)(tile + e * 3 * SPAN) + t);
                    uint2 odd = *(const uint2 *)((const uint16_t *)(tile + (e + 1) * 3 * SPAN) + t);
                    rows[0][e / 2] = __byte_perm(even.x, odd.x, 0x5410);
                    rows[1][e / 2] = __byte_perm(even.x, odd.x, 0x7632);
                    rows[2][e / 2] = __byte_perm(even.y, odd.y, 0x5410);
                    rows[3][e / 2] = __byte_perm(even.y, odd.y, 0x7632);
                }
#pragma unroll
                for (int i = 0; i < 4; ++i) {
                    if (t + i >= tokens) break;
                    uint4 *to = (uint4 *)((uint16_t *)p.y.data + (row + t + i) * p.y.stride + first);
                    to[0] = make_uint4(rows[i][0], rows[i][1], rows[i][2], rows[i][3]);
                    to[1] = make_uint4(rows[i][4], rows[i][5], rows[i][6], rows[i][7]);
                }
            }
        }
    }
    __syncthreads();
    float divisor = p.after.quantizer.divisor();
    for (int i = threadIdx.x; i < CHANNELS * p.states; i += THREADS) {
        int e = first + i / p.states;
        if (e < p.channels)
            p.after.store(sequence * p.channels + e, i % p.states, states_all[i], divisor, tally);
    }
    p.after.quantizer.finish(tally);
}

/// T × I by the length of the sequence, in words: scan_block_32x4, …; `_tiled` as above.
#define SCAN(T, I, name, R, TILED)                                                     \
    extern "C" __global__ void __launch_bounds__(THREADS, 1)                           \
    scan_block_##T##x##I##_##name(Scan p, const float *operands) {                     \
        scan_block_in<R, T, I, TILED>(p, operands);                                    \
    }
#define SCANS(name, R, TILED)     \
    SCAN(32, 4, name, R, TILED)   \
    SCAN(32, 8, name, R, TILED)   \
    SCAN(32, 16, name, R, TILED)  \
    SCAN(64, 16, name, R, TILED)  \
    SCAN(128, 16, name, R, TILED)
SCANS(unit_tiled, CudaFast, true)
SCANS(unit, CudaFast, false)

extern "C" __global__ void scan_operands_unit(Source b, Source c, float *out, int states, int length,
                                              int threads, int items, long long count) {
    operands_in<CudaFast>(b, c, out, states, length, threads, items, count);
}
