// The recurrence as the CUDA prefill kernel associates it, a block scan over time: the twin of
// sim/src/step/scan_block.rs. The formula is `Fused`.
//
// A sequence is cut into chunks of T·I tokens: T threads of I consecutive items, padded with the
// neutral element. A *group* of T threads takes PAIR channels at a time, state after state: each thread
// folds its items, each warp makes an inclusive Kogge-Stone scan of the folds, warps are chained in
// order, and every thread replays its items from its prefix.
#include "scan.cuh"

constexpr unsigned ALL = 0xFFFFFFFF;
constexpr int WARP = 32, THREADS = 512;
/// Channels of a block: 16 codes are one load.
constexpr int CHANNELS = 16;
/// Channels of a thread at a time. Two would share what is read of B and C, but leave registers for half as many
/// threads, which is no faster.
constexpr int PAIR = 1;
/// States whose B and C lie in shared memory: in use, ready next, and on the way.
constexpr int STAGES = 3;
/// Codes there are.
constexpr int CODES = 256;

/// The affine map x → a·x + b of a stretch of tokens.
struct Map {
    float a, b;

    /// This map, then `after`.
    template <class R>
    DEVICE Map then(Map after) const {
        return {R::mul(after.a, a), R::fma(after.a, b, after.b)};
    }
};

/// `map` after `lower`, where a condition holds: without a branch or a choice between copies. The operations
/// are those of `CudaFast`.
DEVICE void follow_if(bool condition, Map lower, Map &map) {
    asm("{ .reg .pred p; setp.ne.s32 p, %4, 0;\n"
        "@p fma.rn.ftz.f32 %1, %0, %3, %1;\n"
        "@p mul.rn.ftz.f32 %0, %0, %2; }"
        : "+f"(map.a), "+f"(map.b)
        : "f"(lower.a), "f"(lower.b), "r"((int)condition));
}

/// `map`, then `after`, where a condition holds.
DEVICE void precede_if(bool condition, Map &map, Map after) {
    asm("{ .reg .pred p; setp.ne.s32 p, %4, 0;\n"
        "@p fma.rn.ftz.f32 %1, %2, %1, %3;\n"
        "@p mul.rn.ftz.f32 %0, %2, %0; }"
        : "+f"(map.a), "+f"(map.b)
        : "f"(after.a), "f"(after.b), "r"((int)condition));
}

/// Neutral on either side of `then`, to the bit: what it is added to may be −0.
DEVICE Map neutral() { return {1.0f, -0.0f}; }

/// The folds of a warp, of each of a thread's channels.
struct __align__(8) Total {
    Map of[PAIR];
};

/// Four neighbours in shared memory.
DEVICE void load_four(float (&v)[4], const float *from) {
    float4 four = *(const float4 *)from;
    v[0] = four.x, v[1] = four.y, v[2] = four.z, v[3] = four.w;
}

/// Waits for the T threads of a group.
template <int T>
DEVICE void wait_for_group(int group) {
    if (T == WARP) {
        __syncwarp();
    } else {
        asm volatile("bar.sync %0, %1;" ::"r"(group + 1), "n"(T) : "memory");
    }
}

/// A state of a thread's channels on its way through a chunk.
template <int I>
struct Passage {
    float decay[PAIR][I], input[PAIR][I];
    Map fold[PAIR];

    /// Folds the thread's items. `operands` are its own of B, in vectors of four T apart.
    template <class R, int T>
    DEVICE void begin(const float (&alpha)[PAIR], const float (&delta)[PAIR][I], const float (&du)[PAIR][I],
                      const float *operands) {
#pragma unroll
        for (int i = 0; i < I; i += 4) {
            float b[4];
            load_four(b, operands + i * T);
#pragma unroll
            for (int j = 0; j < 4; ++j)
#pragma unroll
                for (int c = 0; c < PAIR; ++c) {
                    decay[c][i + j] = R::exp_neg(R::mul(alpha[c], delta[c][i + j]));
                    input[c][i + j] = R::mul(b[j], du[c][i + j]);
                    Map map = {decay[c][i + j], input[c][i + j]};
                    fold[c] = i + j == 0 ? map : fold[c].template then<R>(map);
                }
        }
    }

    /// Adds the state to `out`, and moves `states` to the end of the chunk. `operands` are of C. `totals` holds the
    /// folds of each warp of the group; successive calls need different ones.
    template <class R, int T>
    DEVICE void end(float *const (&states)[PAIR], const float *operands, Total *totals, float (&out)[PAIR][I]) {
        constexpr int WARPS = T / WARP;
        int group = threadIdx.x / T, lane = threadIdx.x % WARP, warp = threadIdx.x % T / WARP;
        float state[PAIR];
#pragma unroll
        for (int c = 0; c < PAIR; ++c) state[c] = *states[c];
#pragma unroll
        for (int offset = 1; offset < WARP; offset *= 2) {
            Map lower[PAIR];
#pragma unroll
            for (int c = 0; c < PAIR; ++c)
                lower[c] = {__shfl_up_sync(ALL, fold[c].a, offset), __shfl_up_sync(ALL, fold[c].b, offset)};
#pragma unroll
            for (int c = 0; c < PAIR; ++c) follow_if(lane >= offset, lower[c], fold[c]);
        }
        Map before[PAIR], lower[PAIR];
        if (WARPS > 1 && lane == WARP - 1) {
            Total total;
#pragma unroll
            for (int c = 0; c < PAIR; ++c) total.of[c] = fold[c];
            totals[warp] = total;
        }
#pragma unroll
        for (int c = 0; c < PAIR; ++c) {
            lower[c] = {__shfl_up_sync(ALL, fold[c].a, 1), __shfl_up_sync(ALL, fold[c].b, 1)};
            if (lane == 0) lower[c] = neutral();
            before[c] = neutral();
        }
        wait_for_group<T>(group);
        Total below[WARPS];
#pragma unroll
        for (int w = 0; w < WARPS - 1; ++w) below[w] = totals[w];
#pragma unroll
        for (int w = 0; w < WARPS - 1; ++w)
#pragma unroll
            for (int c = 0; c < PAIR; ++c) precede_if(warp > w, before[c], below[w].of[c]);
        float x[PAIR];
#pragma unroll
        for (int c = 0; c < PAIR; ++c) {
            if (WARPS > 1) lower[c] = before[c].template then<R>(lower[c]);
            x[c] = R::fma(lower[c].a, state[c], lower[c].b);
        }
        // Every thread of the group has read the states ahead of the wait.
        if (warp == WARPS - 1 && lane == WARP - 1) {
#pragma unroll
            for (int c = 0; c < PAIR; ++c) {
                Map whole = WARPS > 1 ? before[c].template then<R>(fold[c]) : fold[c];
                *states[c] = R::fma(whole.a, state[c], whole.b);
            }
        }
#pragma unroll
        for (int i = 0; i < I; i += 4) {
            float of_c[4];
            load_four(of_c, operands + i * T);
#pragma unroll
            for (int j = 0; j < 4; ++j)
#pragma unroll
                for (int c = 0; c < PAIR; ++c) {
                    x[c] = R::fma(decay[c][i + j], x[c], input[c][i + j]);
                    out[c][i + j] = R::fma(x[c], of_c[j], out[c][i + j]);
                }
        }
    }
};

/// B and C as the scan reads them: times their scales, `[sequence, chunk, state, B or C, I/4, T, 4]`, so that the
/// threads of a group read neighbouring vectors; zeros beyond the sequence, which whole chunks make `tokens` long.
template <class R>
DEVICE void operands_in(const Source &b, const Source &c, float *out, int states, int length,
                        int threads, int items, int tokens) {
    // A thread has a token and four states of B or C, which are neighbours where they come from.
    unsigned t = blockIdx.x * blockDim.x + threadIdx.x, span = threads * items;
    if (t >= tokens) return;
    unsigned chunk = t / span, thread = t % span / items, item = t % items;
    bool of_c = blockIdx.z % 2;
    long long row = blockIdx.y * (long long)length + t;
    out += (blockIdx.y * (long long)(tokens / span) + chunk) * states * 2 * span;
    out += (item / 4 * threads + thread) * 4 + item % 4;
#pragma unroll
    for (int i = 0; i < 4; ++i) {
        int n = blockIdx.z / 2 * 4 + i;
        if (n >= states) break;
        float v = 0.0f;
        if (t < length) v = of_c ? real<R>(c, row, n) : real<R>(b, row, n);
        out[(n * 2 + of_c) * span] = v;
    }
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

/// I codes of neighbouring tokens, in words.
template <int I>
DEVICE void load_codes(uint32_t (&words)[I / 4], const int8_t *from) {
    if (I == 16) {
        *(int4 *)words = *(const int4 *)from;
    } else if (I == 8) {
        *(int2 *)words = *(const int2 *)from;
    } else {
        words[0] = *(const uint32_t *)from;
    }
}

/// Code i of words, by the order of its bits.
template <int N>
DEVICE int index_of(const uint32_t (&words)[N], int i) {
    return __byte_perm(words[i / 4], 0, 0x4440 | i % 4);
}

/// What z alone decides of a gated output: its value, and one over 1 + exp(−z).
template <class R>
DEVICE float2 gate_of(float scale, int code) {
    float z = R::mul(scale, (float)code);
    return make_float2(z, R::div(1.0f, R::add(1.0f, R::exp_neg(z))));
}

/// Groups of T threads, each with PAIR channels at a time out of the block's 16, all with the same states
/// of them. `TILED`: u, dt and z are codes and y is binary16; they pass through shared memory, turned, in
/// vectors of 16 channels, and what dt and z decide alone is looked up by their codes.
template <class R, int T, int I, bool TILED>
DEVICE void scan_block_in(const Scan &p, const float *operands) {
    constexpr int GROUPS = THREADS / T, SPAN = T * I, SET = 2 * SPAN;
    extern __shared__ __align__(16) int8_t shared[];
    // For each channel u and dt, where y goes later, then z; B and C; tables of codes; states and exp(A_log).
    int8_t *tile = shared;
    float *sets = (float *)(shared + (TILED ? CHANNELS * 3 * SPAN : 0));
    float *deltas = sets + STAGES * SET;
    float2 *gates = (float2 *)(deltas + (TILED ? CHANNELS * CODES : 0));
    float *states_all = (float *)(gates + (TILED ? CODES : 0)), *alpha_all = states_all + CHANNELS * p.states;
    __shared__ Total totals[GROUPS][2][T / WARP];
    int group = threadIdx.x / T, thread = threadIdx.x % T;
    int first = blockIdx.x * CHANNELS;
    long long sequence = blockIdx.y;
    int chunks = (p.length + SPAN - 1) / SPAN;
    int visits = CHANNELS / (GROUPS * PAIR) * p.states;
    Tally tally;

    // While the first codes are on their way.
    auto prepare = [&] {
#pragma unroll 1
        for (int i = threadIdx.x; i < CHANNELS * p.states; i += THREADS) {
            int e = first + i / p.states, n = i % p.states;
            bool real_channel = e < p.channels;
            long long row = sequence * p.channels + e;
            states_all[i] = real_channel ? state_before<R>(p.before, row, n) : 0.0f;
            alpha_all[i] = real_channel ? p.alpha[(long long)n * p.channels + e] : 0.0f;
        }
        if (!TILED) return;
#pragma unroll 4
        for (int i = threadIdx.x; i < CHANNELS * CODES; i += THREADS) {
            float bias = R::mul(p.dt_bias_scale, p.dt_bias[first + i / CODES]);
            deltas[i] = softplus<R>(Fused<R>::dt(p.dt.scale, (float)(int8_t)i, bias));
        }
        for (int i = threadIdx.x; i < CODES; i += THREADS) gates[i] = gate_of<R>(p.z.scale, (int8_t)i);
    };
    for (int chunk = 0; chunk < chunks; ++chunk) {
        int tokens = min(SPAN, p.length - chunk * SPAN);
        long long row = sequence * p.length + chunk * SPAN;
        const float *chunk_operands = operands + (sequence * chunks + chunk) * p.states * SET;
        // Every group goes through the states once for each of its pairs of channels; the next one to fetch, and
        // where to.
        int fetched = 0, next = 0;
        const float *from = chunk_operands + threadIdx.x * 4;
        uint32_t first_to = (uint32_t)__cvta_generic_to_shared(sets + threadIdx.x * 4), to = first_to;
        auto fetch = [&] {
            if (fetched++ < visits) {
#pragma unroll
                for (int i = 0; i < (SET + THREADS * 4 - 1) / (THREADS * 4); ++i)
                    if (SET % (THREADS * 4) == 0 || threadIdx.x * 4 + i * THREADS * 4 < SET)
                        asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" ::"r"(to + i * THREADS * 16),
                                     "l"(from + i * THREADS * 4));
                from += SET, to += SET * 4;
                if (++next == p.states) next = 0, from = chunk_operands + threadIdx.x * 4;
                if (to == first_to + STAGES * SET * 4) to = first_to;
            }
            asm volatile("cp.async.commit_group;");
        };
        __syncthreads();
        fetch();
        fetch();
        if (TILED) {
            // Four tokens a thread at once; everything it loads is on its way before it stores.
            constexpr int TIMES = (SPAN + THREADS * 4 - 1) / (THREADS * 4);
            const Source *sources[3] = {&p.u, &p.dt, &p.z};
            uint4 codes[TIMES][3][4];
#pragma unroll
            for (int time = 0; time < TIMES; ++time)
#pragma unroll
                for (int s = 0; s < 3; ++s) {
                    int t = (time * THREADS + threadIdx.x) * 4;
                    const int8_t *from = (const int8_t *)sources[s]->data + (row + t) * sources[s]->stride + first;
#pragma unroll
                    for (int i = 0; i < 4; ++i)
                        codes[time][s][i] = t + i < tokens ? __ldcg((const uint4 *)(from + i * sources[s]->stride))
                                                           : make_uint4(0, 0, 0, 0);
                }
            if (chunk == 0) prepare();
#pragma unroll
            for (int time = 0; time < TIMES; ++time)
#pragma unroll
                for (int s = 0; s < 3; ++s) {
                    int t = (time * THREADS + threadIdx.x) * 4;
                    if (t >= tokens) continue;
#pragma unroll
                    for (int e = 0; e < CHANNELS; e += 4) {
                        uint32_t words[4];
#pragma unroll
                        for (int i = 0; i < 4; ++i) words[i] = word_of(codes[time][s][i], e / 4);
                        turn_bytes(words);
#pragma unroll
                        for (int i = 0; i < 4; ++i)
                            *(uint32_t *)(tile + ((e + i) * 3 + s) * SPAN + t) = words[i];
                    }
                }
        } else if (chunk == 0) {
            prepare();
        }
        __syncthreads();
        int current = 0, parity = 0;
        for (int own = group * PAIR; own < CHANNELS; own += GROUPS * PAIR) {
            float delta[PAIR][I], du[PAIR][I], out[PAIR][I];
#pragma unroll
            for (int c = 0; c < PAIR; ++c) {
                // Groups beyond the last channel go along with it and keep nothing.
                int e = min(first + own + c, p.channels - 1);
                float skip = R::mul(p.d_scale, p.d[e]);
                if (TILED) {
                    uint32_t of_u[I / 4], of_dt[I / 4];
                    load_codes<I>(of_u, tile + (own + c) * 3 * SPAN + thread * I);
                    load_codes<I>(of_dt, tile + ((own + c) * 3 + 1) * SPAN + thread * I);
                    const float *by_code = deltas + (own + c) * CODES;
#pragma unroll
                    for (int i = 0; i < I; ++i) {
                        float u = R::mul(p.u.scale, (float)(int8_t)(of_u[i / 4] >> (i % 4 * 8)));
                        delta[c][i] = by_code[index_of(of_dt, i)];
                        du[c][i] = R::mul(delta[c][i], u);
                        out[c][i] = Fused<R>::first_output(skip, u);
                    }
                } else {
                    float bias = R::mul(p.dt_bias_scale, p.dt_bias[e]);
#pragma unroll
                    for (int i = 0; i < I; ++i) {
                        int t = min(thread * I + i, tokens - 1);
                        float u = real<R>(p.u, row + t, e);
                        delta[c][i] = softplus<R>(Fused<R>::dt(p.dt.scale, p.dt.load(row + t, e), bias));
                        du[c][i] = R::mul(delta[c][i], u);
                        out[c][i] = Fused<R>::first_output(skip, u);
                    }
                }
                // Beyond the sequence, zeros make the neutral element: decay exp(0) = 1, input 0.
                if (thread * I + I > tokens) {
#pragma unroll
                    for (int i = 0; i < I; ++i)
                        if (thread * I + i >= tokens) delta[c][i] = du[c][i] = out[c][i] = 0.0f;
                }
            }
#pragma unroll 1
            for (int n = 0; n < p.states; ++n) {
                // The operands after these may be on their way; nobody reads those before them any more.
                asm volatile("cp.async.wait_group 1;" ::: "memory");
                __syncthreads();
                fetch();
                float alpha[PAIR];
                float *states[PAIR];
#pragma unroll
                for (int c = 0; c < PAIR; ++c) {
                    int at = (own + c) * p.states + n;
                    alpha[c] = alpha_all[at];
                    states[c] = states_all + at;
                }
                const float *own_operands = sets + current * SET + thread * 4;
                Passage<I> passage;
                passage.template begin<R, T>(alpha, delta, du, own_operands);
                passage.template end<R, T>(states, own_operands + SPAN, totals[group][parity], out);
                parity ^= 1;
                current = current + 1 == STAGES ? 0 : current + 1;
            }
#pragma unroll
            for (int c = 0; c < PAIR; ++c) {
                if (TILED) {
                    uint32_t of_z[I / 4];
                    load_codes<I>(of_z, tile + ((own + c) * 3 + 2) * SPAN + thread * I);
                    __align__(16) uint16_t y[I];
#pragma unroll
                    for (int i = 0; i < I; ++i) {
                        float2 gate = gates[index_of(of_z, i)];
                        y[i] = to_f16(R::mul(R::mul(out[c][i], gate.x), gate.y));
                    }
                    // All have read u and dt of this channel ahead of the waits in `advance`.
                    uint16_t *to = (uint16_t *)(tile + (own + c) * 3 * SPAN) + thread * I;
#pragma unroll
                    for (int i = 0; i < I; i += 4) *(uint2 *)(to + i) = *(const uint2 *)(y + i);
                } else {
                    int e = min(first + own + c, p.channels - 1);
                    bool real_channel = first + own + c < p.channels;
#pragma unroll
                    for (int i = 0; i < I; ++i) {
                        int t = thread * I + i;
                        if (t < tokens && real_channel) {
                            float v = Fused<R>::last_output(out[c][i], 0.0f, 0.0f);
                            if (p.z.data) v = Fused<R>::gate(v, real<R>(p.z, row + t, e));
                            Tally none;
                            p.y.store(row + t, e, v, 1.0f, none);
                        }
                    }
                }
            }
        }
        if (TILED) {
            __syncthreads();
            // Neighbours have the two halves of a token's 32 bytes.
            for (int i = threadIdx.x; i < tokens * 2; i += THREADS) {
                int t = i / 2, half = i % 2;
                uint32_t words[4];
#pragma unroll
                for (int e = 0; e < 4; ++e) {
                    const uint16_t *from = (const uint16_t *)(tile + (half * 8 + 2 * e) * 3 * SPAN) + t;
                    words[e] = from[0] | (uint32_t)from[3 * SPAN / 2] << 16;
                }
                *(uint4 *)((uint16_t *)p.y.data + (row + t) * p.y.stride + first + half * 8) =
                    make_uint4(words[0], words[1], words[2], words[3]);
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
                                              int threads, int items, int tokens) {
    operands_in<CudaFast>(b, c, out, states, length, threads, items, tokens);
}
