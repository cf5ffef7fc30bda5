// Residual add and RMSNorm, many rows.
#include "norm.cuh"

/// Vectors of four that a lane has on their way; rows of a warp, whose sums go side by side; rows of a block of
/// threads.
constexpr int WARP = 32, AT_ONCE = 6, ROWS_OF_WARP = WARP / NORM_LANES, ROWS = 8, THREADS = ROWS / ROWS_OF_WARP * WARP;

/// PyTorch's mean on the device: vectors of four over 32 threads, a butterfly from distance 16 down.
DEVICE float rstd_torch_device(const float *r, int m, float eps, int lane) {
    float sums[4] = {0.0f, 0.0f, 0.0f, 0.0f};
    int width = m >= 128 ? 4 : 1;
    for (int first = lane * width; first < m; first += WARP * width) {
#pragma unroll
        for (int i = 0; i < 4; ++i) {
            if (i < width && first + i < m) {
                float v = r[first + i];
                sums[i] = __fadd_rn(sums[i], __fmul_rn(v, v));
            }
        }
    }
    float sum = __fadd_rn(__fadd_rn(__fadd_rn(sums[0], sums[1]), sums[2]), sums[3]);
    for (int distance = WARP / 2; distance > 0; distance /= 2)
        sum = __fadd_rn(sum, __shfl_down_sync(0xFFFFFFFF, sum, distance));
    float mean = __fmul_rn(sum, __fdiv_rn(1.0f, (float)m));
    return __shfl_sync(0xFFFFFFFF, rsq_unit(__fadd_rn(mean, eps)), 0);
}

/// Elements i to i + 3 of a row of binary16, or of FP32.
template <int TYPE>
DEVICE float4 four_of(const Source &in, long long row, int i) {
    if (TYPE == F32) return *(const float4 *)((const float *)in.data + row * in.stride + i);
    uint2 halves = *(const uint2 *)((const uint16_t *)in.data + row * in.stride + i);
    return make_float4(from_f16((uint16_t)halves.x), from_f16((uint16_t)(halves.x >> 16)),
                       from_f16((uint16_t)halves.y), from_f16((uint16_t)(halves.y >> 16)));
}

/// Adds N rows to the residual stream, four elements at a time; a second copy where `kept` is not null, its rows `apart`.
/// Rows from `end` on are row `end − 1` once more.
template <int TYPE, bool FIRST, int N>
DEVICE void add_rows(const Norm &p, int first, int end, float *kept, int apart) {
    int m = p.m, lane = threadIdx.x % WARP;
    for (int from = lane * 4; from < m; from += AT_ONCE * WARP * 4) {
        // All on their way before the first is stored.
        float4 v[N][AT_ONCE], of_before[N][AT_ONCE];
#pragma unroll
        for (int n = 0; n < N; ++n)
#pragma unroll
            for (int j = 0; j < AT_ONCE; ++j) {
                int row = min(first + n, end - 1), i = min(from + j * WARP * 4, m - 4);
                v[n][j] = four_of<TYPE>(p.hidden, row, i);
                if (!FIRST) of_before[n][j] = *(const float4 *)(p.residual + (long long)row * m + i);
            }
#pragma unroll
        for (int n = 0; n < N; ++n)
#pragma unroll
            for (int j = 0; j < AT_ONCE; ++j) {
                int row = min(first + n, end - 1), i = from + j * WARP * 4;
                float4 sum = v[n][j], b = of_before[n][j];
                if (!FIRST)
                    sum = make_float4(__fadd_rn(sum.x, b.x), __fadd_rn(sum.y, b.y), __fadd_rn(sum.z, b.z),
                                      __fadd_rn(sum.w, b.w));
                if (i < m) {
                    *(float4 *)(p.residual_out + (long long)row * m + i) = sum;
                    if (kept) *(float4 *)(kept + (row - first) * apart + i) = sum;
                }
            }
    }
}

/// A warp takes four rows. Where rows and pointers allow it, four elements at a time. `KEPT`: they do, and rows stay in
/// shared memory, spread so that those of a warp begin in different banks.
template <bool KEPT>
DEVICE void rms_norm_in(const Norm &p) {
    extern __shared__ __align__(16) float kept[];
    int first = blockIdx.x * ROWS + threadIdx.x / WARP * ROWS_OF_WARP, lane = threadIdx.x % WARP;
    int rows = min(ROWS_OF_WARP, p.rows - first), m = p.m;
    bool fours = KEPT || m % 4 == 0 && p.hidden.type != I8 && p.hidden.stride % 4 == 0 &&
                 (uintptr_t)p.hidden.data % 16 == 0 && p.out.stride % 4 == 0 && (uintptr_t)p.out.data % 16 == 0;
    Tally tally;
    auto row_of = [&](int row) {
        return KEPT ? kept + (row % ROWS) * (m + NORM_LANES) : p.residual_out + (long long)row * m;
    };
    constexpr int N = KEPT ? 2 : 1;
#pragma unroll 1
    for (int row = first; row < first + rows; row += N) {
        float *copy = KEPT ? row_of(row) : nullptr;
        int end = first + rows, apart = m + NORM_LANES;
        if (fours && p.hidden.type == F16) {
            p.residual ? add_rows<F16, false, N>(p, row, end, copy, apart)
                       : add_rows<F16, true, N>(p, row, end, copy, apart);
        } else if (fours) {
            p.residual ? add_rows<F32, false, N>(p, row, end, copy, apart)
                       : add_rows<F32, true, N>(p, row, end, copy, apart);
        } else {
            for (int i = lane; i < m; i += WARP) {
                float v = p.hidden.load(row, i);
                if (p.residual) v = __fadd_rn(v, p.residual[(long long)row * m + i]);
                p.residual_out[(long long)row * m + i] = v;
            }
        }
    }
    __syncwarp();
    int own = lane / NORM_LANES;
    float rstd = 0.0f;
    if (!p.torch_device) {
        const float *r = row_of(first + own);
        double sum = own < rows ? sum_of_lane(m, [&](int i) { return square(r[i]); }) : 0.0;
        rstd = rstd_of_lanes(sum, m, p.eps);
    }
    const Quantizer &quantizer = p.out.quantizer;
    bool divided = quantizer.quotient == DIVIDE && quantizer.rounding == TIES_TO_EVEN &&
                   quantizer.overflow == SATURATE && !quantizer.status;
    float divisor = quantizer.divisor();
#pragma unroll 1
    for (int of_warp = 0; of_warp < rows; ++of_warp) {
        int row = first + of_warp;
        const float *r = row_of(row);
        float factor = p.torch_device ? rstd_torch_device(r, m, p.eps, lane)
                                      : __shfl_sync(0xFFFFFFFF, rstd, of_warp * NORM_LANES);
        if (fours && (p.out.type != I8 || divided)) {
            for (int from = lane * 4; from < m; from += AT_ONCE * WARP * 4) {
                float4 v[AT_ONCE], w[AT_ONCE];
#pragma unroll
                for (int j = 0; j < AT_ONCE; ++j) {
                    int i = min(from + j * WARP * 4, m - 4);
                    v[j] = *(const float4 *)(r + i), w[j] = *(const float4 *)(p.weight + i);
                }
                auto product = [&](float v, float w) { return __fmul_rn(__fmul_rn(v, factor), w); };
                if (p.out.type == I8) {
                    int8_t *to = (int8_t *)p.out.data + row * p.out.stride;
#pragma unroll
                    for (int j = 0; j < AT_ONCE; ++j) {
                        auto unit = [&](float v, float w) {
                            return __float2int_rn(__fdiv_rn(product(v, w), divisor));
                        };
                        uint32_t codes = four_codes(unit(v[j].x, w[j].x), unit(v[j].y, w[j].y),
                                                    unit(v[j].z, w[j].z), unit(v[j].w, w[j].w));
                        if (from + j * WARP * 4 < m) *(uint32_t *)(to + from + j * WARP * 4) = codes;
                    }
                } else {
#pragma unroll
                    for (int j = 0; j < AT_ONCE; ++j) {
                        int i = from + j * WARP * 4;
                        float4 four = make_float4(product(v[j].x, w[j].x), product(v[j].y, w[j].y),
                                                  product(v[j].z, w[j].z), product(v[j].w, w[j].w));
                        if (i >= m) continue;
                        if (p.out.type == F16) {
                            *(uint2 *)((uint16_t *)p.out.data + row * p.out.stride + i) =
                                make_uint2(to_f16(four.x) | (uint32_t)to_f16(four.y) << 16,
                                           to_f16(four.z) | (uint32_t)to_f16(four.w) << 16);
                        } else {
                            *(float4 *)((float *)p.out.data + row * p.out.stride + i) = four;
                        }
                    }
                }
            }
        } else {
#pragma unroll 1
            for (int i = lane; i < m; i += WARP)
                p.out.store(row, i, __fmul_rn(__fmul_rn(r[i], factor), p.weight[i]), divisor, tally);
        }
    }
    quantizer.finish(tally);
}

extern "C" __global__ void __launch_bounds__(THREADS) rms_norm(Norm p) { rms_norm_in<false>(p); }
extern "C" __global__ void __launch_bounds__(THREADS) rms_norm_kept(Norm p) { rms_norm_in<true>(p); }
