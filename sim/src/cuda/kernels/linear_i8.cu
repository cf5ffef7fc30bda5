// INT8 × INT8 linear steps: the twin of sim/src/kernels/matmul_i8.rs.
#include "linear.cuh"

// ---- tensor cores: mma.m16n8k32 over tiles in shared memory ----------------------------------------

/// A block of 4 warps makes 128 × 128 outputs, 64 columns of k a stage; a warp makes 64 × 64.
constexpr int BM = 128, BN = 128, BK = 64, STAGES = 4, THREADS = 128, WARP_TILE = 64;
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

/// What a thread copies of a matrix's tiles: 16 bytes of rows 32 apart, of `first..first + 128`; zeros beyond its
/// ends.
struct Copies {
    static constexpr int EACH = TILE / 16 / THREADS, APART = THREADS / (BK / 16);
    const int8_t *from;
    long long apart;
    int column, rows, left;
    uint32_t to;

    DEVICE Copies(const int8_t *matrix, long long stride, long long first, long long rows_of_all, int columns,
                  uint32_t tile) {
        int row = threadIdx.x / (BK / 16);
        column = threadIdx.x % (BK / 16);
        long long there = rows_of_all - first - row;
        // How many of its rows there are.
        rows = there <= 0 ? 0 : (int)min((long long)EACH, (there + APART - 1) / APART);
        from = rows ? matrix + (first + row) * stride + column * 16 : matrix;
        apart = APART * stride;
        left = columns - column * 16;
        to = tile + chunk(row, column);
    }

    /// Copies the next 64 columns to a stage.
    DEVICE void next(uint32_t stage) {
        int bytes = max(0, min(16, left));
#pragma unroll
        for (int i = 0; i < EACH; ++i)
            copy_16(to + stage + i * APART * BK, i < rows && bytes ? from + i * apart : from, i < rows ? bytes : 0);
        left -= BK;
        if (left > 0) from += rows ? BK : 0;
    }
};

/// Codes by any rule, from the accumulators of a block of threads, by way of shared memory.
DEVICE void store_by_rule(const int (&acc)[4][8][4], const LinearI8 &p, const Sink &out, long long first_row,
                          int first_column, int8_t *shared) {
    constexpr int ROW = BN + 4;
    int *sums = (int *)shared;
    int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
#pragma unroll
    for (int j = 0; j < 8; ++j)
#pragma unroll
        for (int i = 0; i < 4; ++i)
#pragma unroll
            for (int half = 0; half < 2; ++half) {
                int row = warp % 2 * WARP_TILE + i * 16 + half * 8 + lane / 4;
                int column = warp / 2 * WARP_TILE + j * 8 + lane % 4 * 2;
                *(int2 *)(sums + row * ROW + column) = make_int2(acc[i][j][half * 2], acc[i][j][half * 2 + 1]);
            }
    __syncthreads();
    Tally tally;
#pragma unroll 1
    for (int i = threadIdx.x; i < BM * BN; i += THREADS) {
        int row = i / BN, column = i % BN;
        if (first_row + row < p.rows && first_column + column < p.n)
            put(p, out, first_row + row, first_column + column, sums[row * ROW + column], tally);
    }
    out.quantizer.finish(tally);
}

/// Bases and row strides of x and of the weight are multiples of 16 bytes.
template <int TYPE>
DEVICE void linear_i8_tiles(const LinearI8 &p, const Sink &out) {
    extern __shared__ __align__(128) int8_t shared[];
    uint32_t base = (uint32_t)__cvta_generic_to_shared(shared);
    long long first_row = (long long)blockIdx.y * BM;
    int first_column = blockIdx.x * BN;
    int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
    int warp_row = warp % 2 * WARP_TILE, warp_column = warp / 2 * WARP_TILE;
    int steps = (p.k + BK - 1) / BK;

    Copies of_x(p.x, p.x_stride, first_row, p.rows, p.k, base);
    Copies of_weight(p.weight, p.weight_stride, first_column, p.n, p.k, base + TILE);
    auto load = [&](int step) {
        if (step < steps) {
            of_x.next(step % STAGES * STAGE);
            of_weight.next(step % STAGES * STAGE);
        }
        asm volatile("cp.async.commit_group;");
    };
    int acc[4][8][4] = {};
    for (int step = 0; step < STAGES - 1; ++step) load(step);
    for (int step = 0; step < steps; ++step) {
        asm volatile("cp.async.wait_group %0;" ::"n"(STAGES - 2));
        __syncthreads();
        load(step + STAGES - 1);
        uint32_t x = base + step % STAGES * STAGE, w = x + TILE;
#pragma unroll
        for (int k = 0; k < 2; ++k) {
            uint32_t a[4][4], b[4][4];
#pragma unroll
            for (int i = 0; i < 4; ++i)
                load_matrices(a[i], x + chunk(warp_row + i * 16 + lane % 16, k * 2 + lane / 16));
#pragma unroll
            for (int j = 0; j < 4; ++j) {
                int row = warp_column + j * 16 + lane / 16 * 8 + lane % 8;
                load_matrices(b[j], w + chunk(row, k * 2 + lane / 8 % 2));
            }
#pragma unroll
            for (int i = 0; i < 4; ++i)
#pragma unroll
                for (int j = 0; j < 8; ++j)
                    multiply(acc[i][j], a[i], b[j / 2][j % 2 * 2], b[j / 2][j % 2 * 2 + 1]);
        }
    }
    asm volatile("cp.async.wait_group 0;");
    __syncthreads();

    // Outputs go through shared memory, to leave in whole lines; rows are 16 bytes longer than the tile's,
    // to spread over the banks.
    constexpr int BYTES = TYPE == I8 ? 1 : TYPE == F16 ? 2 : 4, ROW = BN * BYTES + 16;
    const Quantizer &quantizer = out.quantizer;
    bool rounded = quantizer.rounding == TIES_TO_EVEN && quantizer.overflow == SATURATE && !quantizer.status;
    if (TYPE == I8 && !rounded) {
        // Other rules, and counts: too long to be written out for every register.
        store_by_rule(acc, p, out, first_row, first_column, shared);
        return;
    }
#pragma unroll
    for (int j = 0; j < 8; ++j) {
        int column = warp_column + j * 8 + lane % 4 * 2;
        Factors of0(p, first_column + column), of1(p, first_column + column + 1);
#pragma unroll
        for (int i = 0; i < 4; ++i)
#pragma unroll
            for (int half = 0; half < 2; ++half) {
                int row = warp_row + i * 16 + half * 8 + lane / 4;
                float v0 = of0.of(acc[i][j][half * 2]), v1 = of1.of(acc[i][j][half * 2 + 1]);
                int8_t *to = shared + row * ROW + column * BYTES;
                if (TYPE == I8) {
                    *(uint16_t *)to = (uint16_t)two_codes(__float2int_rn(v0), __float2int_rn(v1));
                } else if (TYPE == F16) {
                    *(uint32_t *)to = to_f16(v0) | (uint32_t)to_f16(v1) << 16;
                } else {
                    *(float2 *)to = make_float2(v0, v1);
                }
            }
    }
    __syncthreads();
    constexpr int VECTOR = 16 / BYTES;
    bool wide = first_column + BN <= p.n && out.stride % VECTOR == 0 && (uintptr_t)out.data % 16 == 0;
    for (int i = threadIdx.x; i < BM * BN / VECTOR; i += THREADS) {
        int row = i / (BN / VECTOR), column = i % (BN / VECTOR) * VECTOR;
        if (first_row + row >= p.rows) continue;
        long long at = (first_row + row) * out.stride + first_column + column;
        int8_t *to = (int8_t *)out.data + at * BYTES;
        const int8_t *from = shared + row * ROW + column * BYTES;
        if (wide) {
            *(int4 *)to = *(const int4 *)from;
        } else {
            for (int e = 0; e < min(VECTOR, p.n - first_column - column) * BYTES; ++e) to[e] = from[e];
        }
    }
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

/// Threads of a block, and rows a warp takes at once.
constexpr int THREADS_OF_FEW = 256, FEW = 4;

/// Any alignment of x; meant for decode.
extern "C" __global__ void __launch_bounds__(THREADS_OF_FEW) linear_i8_rows(LinearI8 p, Sink out) {
    int column = blockIdx.x * (THREADS_OF_FEW / 32) + threadIdx.x / 32, lane = threadIdx.x % 32;
    long long first = (long long)blockIdx.y * FEW;
    int rows = (int)min((long long)FEW, p.rows - first);
    bool whole = p.x_stride % 16 == 0 && (uintptr_t)p.x % 16 == 0;
    Tally tally;
    if (column < p.n) {
        const int8_t *w = p.weight + column * p.weight_stride;
        int acc[FEW] = {};
        for (int k = lane * 16; k < p.k; k += 512) {
            int4 weights = *(const int4 *)(w + k);
#pragma unroll
            for (int r = 0; r < FEW; ++r) {
                if (r >= rows) break;
                const int8_t *x = p.x + (first + r) * p.x_stride + k;
                if (whole && k + 16 <= p.k) {
                    acc[r] = add_products(*(const int4 *)x, weights, acc[r]);
                } else {
                    for (int i = 0; i < min(16, p.k - k); ++i) acc[r] += (int)x[i] * (int)w[k + i];
                }
            }
        }
#pragma unroll
        for (int r = 0; r < FEW; ++r) {
            int sum = __reduce_add_sync(0xFFFFFFFF, acc[r]);
            if (r < rows && lane == r) put(p, out, first + r, column, sum, tally);
        }
    }
    out.quantizer.finish(tally);
}
