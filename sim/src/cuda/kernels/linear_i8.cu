// INT8 × INT8 linear steps: the twin of sim/src/kernels/matmul_i8.rs and of the integer half of
// sim/src/step/linear.rs. Sums are exact, so only the epilogue has an order.
#include "tensor.cuh"

enum ScaleOrder { ROW_MAJOR = 0, CHANNEL_MAJOR = 1, ONE_ROW = 2 };

/// Activations `[rows, k]`, weights `[n, k]` with rows padded with zeros to a multiple of 16.
struct LinearI8 {
    const int8_t *x;
    const int8_t *weight;
    long long x_stride, weight_stride;
    long long rows;
    int n, k;
    /// s_in/s_out or s_in, and the weight's scale.
    float a, b;
    int order;
    /// The scale of each output of a weight that was four bits; then a is s_in, b is s_out or 1.
    const float *channels;
};

/// The two factors of an output's accumulator in their order; one row has a single one.
struct Factors {
    float outer, inner;

    DEVICE Factors(const LinearI8 &p, int column) {
        if (p.channels) {
            outer = p.a;
            inner = __fdiv_rn(p.channels[min(column, p.n - 1)], p.b);
            return;
        }
        outer = p.order == ROW_MAJOR ? p.a : p.order == CHANNEL_MAJOR ? p.b : __fmul_rn(p.b, p.a);
        inner = p.order == ROW_MAJOR ? p.b : p.order == CHANNEL_MAJOR ? p.a : 1.0f;
    }
    /// An accumulator in units of the output. (A product with 1 is exact.)
    DEVICE float of(int acc) const { return __fmul_rn(outer, __fmul_rn(inner, __int2float_rn(acc))); }
};

// ---- tensor cores: mma.m16n8k32 over tiles in shared memory ----------------------------------------

/// A block of 8 warps makes 128 × 128 outputs, 64 columns of k a stage; a warp makes 64 × 32.
constexpr int BM = 128, BN = 128, BK = 64, STAGES = 4, THREADS = 256;
constexpr int TILE = BM * BK, STAGE = 2 * TILE;

/// Offset of 16 bytes in a tile: rows of four chunks, permuted so that eight rows hit all banks.
DEVICE uint32_t chunk(int row, int column) { return row * BK + ((column ^ (row >> 1 & 3)) << 4); }

DEVICE void copy_16(uint32_t to, const void *from, int bytes) {
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(to), "l"(from), "r"(bytes));
}
DEVICE void load_matrices(uint32_t (&r)[4], uint32_t from) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0,%1,%2,%3}, [%4];"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
                 : "r"(from));
}
DEVICE void multiply(int (&c)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
    asm volatile(
        "mma.sync.aligned.m16n8k32.row.col.s32.s8.s8.s32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, "
        "{%0,%1,%2,%3};"
        : "+r"(c[0]), "+r"(c[1]), "+r"(c[2]), "+r"(c[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

/// Rows `first..first + 128` of a matrix, columns `from..from + 64`, zeros beyond its ends.
DEVICE void load_tile(uint32_t to, const int8_t *matrix, long long stride, long long first,
                      long long rows, int from, int columns) {
#pragma unroll
    for (int i = 0; i < TILE / 16 / THREADS; ++i) {
        int at = threadIdx.x + i * THREADS, row = at / 4, column = at % 4;
        int left = columns - from - column * 16;
        int bytes = first + row < rows ? max(0, min(16, left)) : 0;
        const int8_t *source = bytes ? matrix + (first + row) * stride + from + column * 16 : matrix;
        copy_16(to + chunk(row, column), source, bytes);
    }
}

/// Bases and row strides of x and of the weight are multiples of 16 bytes.
template <int TYPE>
DEVICE void linear_i8_tiles(const LinearI8 &p, const Sink &out) {
    extern __shared__ __align__(128) int8_t shared[];
    uint32_t base = (uint32_t)__cvta_generic_to_shared(shared);
    long long first_row = (long long)blockIdx.y * BM;
    int first_column = blockIdx.x * BN;
    int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
    int warp_row = warp % 2 * 64, warp_column = warp / 2 * 32;
    int steps = (p.k + BK - 1) / BK;

    auto load = [&](int step) {
        if (step < steps) {
            uint32_t to = base + step % STAGES * STAGE;
            load_tile(to, p.x, p.x_stride, first_row, p.rows, step * BK, p.k);
            load_tile(to + TILE, p.weight, p.weight_stride, first_column, p.n, step * BK, p.k);
        }
        asm volatile("cp.async.commit_group;");
    };
    int acc[4][4][4] = {};
    for (int step = 0; step < STAGES - 1; ++step) load(step);
    for (int step = 0; step < steps; ++step) {
        asm volatile("cp.async.wait_group %0;" ::"n"(STAGES - 2));
        __syncthreads();
        load(step + STAGES - 1);
        uint32_t x = base + step % STAGES * STAGE, w = x + TILE;
#pragma unroll
        for (int k = 0; k < 2; ++k) {
            uint32_t a[4][4], b[2][4];
#pragma unroll
            for (int i = 0; i < 4; ++i)
                load_matrices(a[i], x + chunk(warp_row + i * 16 + lane % 16, k * 2 + lane / 16));
#pragma unroll
            for (int j = 0; j < 2; ++j) {
                int row = warp_column + j * 16 + lane / 16 * 8 + lane % 8;
                load_matrices(b[j], w + chunk(row, k * 2 + lane / 8 % 2));
            }
#pragma unroll
            for (int i = 0; i < 4; ++i)
#pragma unroll
                for (int j = 0; j < 4; ++j)
                    multiply(acc[i][j], a[i], b[j / 2][j % 2 * 2], b[j / 2][j % 2 * 2 + 1]);
        }
    }
    asm volatile("cp.async.wait_group 0;");
    __syncthreads();

    // Codes go through shared memory, to leave in whole lines; rows are 16 bytes longer than the
    // tile's, to spread over the banks.
    constexpr int ROW = BN + 16;
    Tally tally;
#pragma unroll
    for (int j = 0; j < 4; ++j) {
        int column = warp_column + j * 8 + lane % 4 * 2;
        Factors of0(p, first_column + column), of1(p, first_column + column + 1);
#pragma unroll
        for (int i = 0; i < 4; ++i)
#pragma unroll
            for (int half = 0; half < 2; ++half) {
                int row = warp_row + i * 16 + half * 8 + lane / 4;
                float v0 = of0.of(acc[i][j][half * 2]), v1 = of1.of(acc[i][j][half * 2 + 1]);
                bool in_rows = first_row + row < p.rows;
                int left = p.n - first_column - column;
                long long at = (first_row + row) * out.stride + first_column + column;
                if (TYPE == I8) {
                    // Beyond the ends accumulators are zero: nothing to count.
                    uint32_t q0 = (uint8_t)out.quantizer.grid(v0, tally);
                    uint32_t q1 = (uint8_t)out.quantizer.grid(v1, tally);
                    *(uint16_t *)(shared + row * ROW + column) = (uint16_t)(q0 | q1 << 8);
                } else if (TYPE == F16) {
                    uint16_t *to = (uint16_t *)out.data + at;
                    if (in_rows && left > 0) to[0] = to_f16(v0);
                    if (in_rows && left > 1) to[1] = to_f16(v1);
                } else {
                    float *to = (float *)out.data + at;
                    if (in_rows && left > 0) to[0] = v0;
                    if (in_rows && left > 1) to[1] = v1;
                }
            }
    }
    if (TYPE == I8) {
        __syncthreads();
        bool wide = first_column + BN <= p.n && out.stride % 16 == 0 && (uintptr_t)out.data % 16 == 0;
        for (int i = threadIdx.x; i < BM * BN / 16; i += THREADS) {
            int row = i / (BN / 16), column = i % (BN / 16) * 16;
            if (first_row + row >= p.rows) continue;
            int8_t *to = (int8_t *)out.data + (first_row + row) * out.stride + first_column + column;
            const int8_t *from = shared + row * ROW + column;
            if (wide) {
                *(int4 *)to = *(const int4 *)from;
            } else {
                for (int e = 0; e < min(16, p.n - first_column - column); ++e) to[e] = from[e];
            }
        }
    }
    out.quantizer.finish(tally);
}

extern "C" __global__ void __launch_bounds__(THREADS, 2) linear_i8_to_i8(LinearI8 p, Sink out) {
    linear_i8_tiles<I8>(p, out);
}
extern "C" __global__ void __launch_bounds__(THREADS, 2) linear_i8_to_f16(LinearI8 p, Sink out) {
    linear_i8_tiles<F16>(p, out);
}
extern "C" __global__ void __launch_bounds__(THREADS, 2) linear_i8_to_f32(LinearI8 p, Sink out) {
    linear_i8_tiles<F32>(p, out);
}

// ---- a few rows: one warp for each output column -----------------------------------------------------

/// Rows a warp takes at once.
constexpr int FEW = 4;

/// Any alignment of x; meant for decode.
extern "C" __global__ void __launch_bounds__(THREADS) linear_i8_rows(LinearI8 p, Sink out) {
    int column = blockIdx.x * (THREADS / 32) + threadIdx.x / 32, lane = threadIdx.x % 32;
    long long first = (long long)blockIdx.y * FEW;
    int rows = (int)min((long long)FEW, p.rows - first);
    bool whole = p.x_stride % 16 == 0 && (uintptr_t)p.x % 16 == 0;
    Tally tally;
    if (column < p.n) {
        const int8_t *w = p.weight + column * p.weight_stride;
        int acc[FEW] = {};
        for (int k = lane * 16; k < p.k; k += 512) {
            int4 weights = *(const int4 *)(w + k);
            const int *four = (const int *)&weights;
#pragma unroll
            for (int r = 0; r < FEW; ++r) {
                if (r >= rows) break;
                const int8_t *x = p.x + (first + r) * p.x_stride + k;
                if (whole && k + 16 <= p.k) {
                    int4 values = *(const int4 *)x;
                    acc[r] = __dp4a(values.x, four[0], acc[r]);
                    acc[r] = __dp4a(values.y, four[1], acc[r]);
                    acc[r] = __dp4a(values.z, four[2], acc[r]);
                    acc[r] = __dp4a(values.w, four[3], acc[r]);
                } else {
                    for (int i = 0; i < min(16, p.k - k); ++i) acc[r] += (int)x[i] * (int)w[k + i];
                }
            }
        }
#pragma unroll
        for (int r = 0; r < FEW; ++r) {
            int sum = __reduce_add_sync(0xFFFFFFFF, acc[r]);
            if (r >= rows || lane != r) continue;
            float v = Factors(p, column).of(sum);
            if (out.type == I8) {
                ((int8_t *)out.data)[(first + r) * out.stride + column] = out.quantizer.grid(v, tally);
            } else {
                out.store(first + r, column, v, 1.0f, tally);
            }
        }
    }
    out.quantizer.finish(tally);
}
