// FP32 products with a defined order, k ascending by fma: the twin of sim/src/kernels/matmul_f32.rs.
#include "tensor.cuh"

/// A block makes 64 × 64 outputs, a thread 4 × 4; 16 columns of k at a time.
constexpr int TILE = 64, BK = 16, THREADS = 256;

/// Activations `[rows, k]` FP32, weights `[n, k]` binary16, or codes times their scale; `scales` has one
/// for each row if it is not null.
extern "C" __global__ void __launch_bounds__(THREADS)
linear_f32(const float *x, Source weight, Sink out, long long rows, int n, int k,
           const float *scales) {
    __shared__ float xs[BK][TILE + 4], ws[BK][TILE + 4];
    long long first_row = (long long)blockIdx.y * TILE;
    int first_column = blockIdx.x * TILE;
    int row = threadIdx.x / 16 * 4, column = threadIdx.x % 16 * 4;
    float acc[4][4] = {};
    for (int from = 0; from < k; from += BK) {
        for (int i = threadIdx.x; i < TILE * BK; i += THREADS) {
            int r = i / BK, c = i % BK;
            bool inside = from + c < k;
            xs[c][r] = inside && first_row + r < rows ? x[(first_row + r) * k + from + c] : 0.0f;
            float w = 0.0f;
            if (inside && first_column + r < n) {
                w = weight.load(first_column + r, from + c);
                if (weight.type == I8)
                    w = __fmul_rn(scales ? scales[first_column + r] : weight.scale, w);
            }
            ws[c][r] = w;
        }
        __syncthreads();
        // Not past k: fma with zeros would turn −0 into 0.
        int columns = min(BK, k - from);
#pragma unroll 4
        for (int c = 0; c < columns; ++c) {
            float4 a = *(const float4 *)&xs[c][row], b = *(const float4 *)&ws[c][column];
            float av[4] = {a.x, a.y, a.z, a.w}, bv[4] = {b.x, b.y, b.z, b.w};
#pragma unroll
            for (int i = 0; i < 4; ++i)
#pragma unroll
                for (int j = 0; j < 4; ++j) acc[i][j] = __fmaf_rn(av[i], bv[j], acc[i][j]);
        }
        __syncthreads();
    }
    float divisor = out.quantizer.divisor();
    Tally tally;
#pragma unroll
    for (int i = 0; i < 4; ++i)
#pragma unroll
        for (int j = 0; j < 4; ++j)
            if (first_row + row + i < rows && first_column + column + j < n)
                out.store(first_row + row + i, first_column + column + j, acc[i][j], divisor, tally);
    out.quantizer.finish(tally);
}

/// Outputs of a block with few rows, and columns of k at a time.
constexpr int OUTPUTS = 64, COLUMNS = 64, EACH = OUTPUTS * COLUMNS / THREADS;

/// The same for a few rows, which wait for weights alone: a thread makes one output, all threads fetch
/// the next columns while those of this step are added.
extern "C" __global__ void __launch_bounds__(THREADS)
linear_f32_rows(const float *x, Source weight, Sink out, long long rows, int n, int k,
           const float *scales) {
    __shared__ float ws[COLUMNS][OUTPUTS + 1], xs[COLUMNS];
    long long row = blockIdx.y;
    int first = blockIdx.x * OUTPUTS;
    float next[EACH], next_x = 0.0f;
    auto fetch = [&](int from) {
#pragma unroll
        for (int i = 0; i < EACH; ++i) {
            int at = threadIdx.x + i * THREADS, r = first + at / COLUMNS, c = from + at % COLUMNS;
            next[i] = r < n && c < k ? weight.load(r, c) : 0.0f;
        }
        int c = from + threadIdx.x;
        if (threadIdx.x < COLUMNS) next_x = c < k ? x[row * k + c] : 0.0f;
    };
    fetch(0);
    float acc = 0.0f;
    for (int from = 0; from < k; from += COLUMNS) {
#pragma unroll
        for (int i = 0; i < EACH; ++i) {
            int at = threadIdx.x + i * THREADS;
            float w = next[i];
            int r = min(first + at / COLUMNS, n - 1);
            if (weight.type == I8) w = __fmul_rn(scales ? scales[r] : weight.scale, w);
            ws[at % COLUMNS][at / COLUMNS] = w;
        }
        if (threadIdx.x < COLUMNS) xs[threadIdx.x] = next_x;
        __syncthreads();
        if (from + COLUMNS < k) fetch(from + COLUMNS);
        if (threadIdx.x < OUTPUTS) {
            // Not past k: fma with zeros would turn −0 into 0.
            int columns = min(COLUMNS, k - from);
#pragma unroll 16
            for (int c = 0; c < columns; ++c) acc = __fmaf_rn(xs[c], ws[c][threadIdx.x], acc);
        }
        __syncthreads();
    }
    Tally tally;
    if (threadIdx.x < OUTPUTS && first + threadIdx.x < n)
        out.store(row, first + threadIdx.x, acc, out.quantizer.divisor(), tally);
    out.quantizer.finish(tally);
}

/// The same for weights of binary16 whose rows, and those of x, begin at multiples of 16 bytes, k a multiple of 8: a
/// thread makes one output of ROWS rows of x. COLUMNS of k of both are copied ahead without passing through registers;
/// rows of a stage are 16 bytes longer, to spread over the banks.
template <int OUTPUTS, int COLUMNS, int STAGES, int ROWS>
DEVICE void linear_half(const float *x, const Source &weight, const Sink &out, long long rows, int n, int k) {
    constexpr int ROW = COLUMNS + 8, AT_ONCE = ROWS > 1 ? 2 : 4;
    static_assert(OUTPUTS <= STAGES * COLUMNS, "sums take the place of x");
    extern __shared__ __align__(16) uint16_t ws[];
    float *xs = (float *)(ws + STAGES * OUTPUTS * ROW);
    long long row = (long long)blockIdx.y * ROWS;
    int first = blockIdx.x * OUTPUTS, steps = (k + COLUMNS - 1) / COLUMNS;
    auto copy = [](const void *to, const void *from) {
        asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" ::"r"((uint32_t)__cvta_generic_to_shared(to)),
                     "l"(from));
    };
    auto load = [&](int step) {
        if (step < steps) {
            uint16_t *of_weight = ws + step % STAGES * OUTPUTS * ROW;
#pragma unroll
            for (int i = 0; i < COLUMNS / 8; ++i) {
                int at = threadIdx.x + i * OUTPUTS, r = at / (COLUMNS / 8), c = at % (COLUMNS / 8) * 8;
                int column = step * COLUMNS + c;
                if (first + r < n && column < k)
                    copy(of_weight + r * ROW + c, (const uint16_t *)weight.data + (first + r) * weight.stride + column);
            }
            float *of_x = xs + step % STAGES * ROWS * COLUMNS;
            for (int at = threadIdx.x; at < ROWS * COLUMNS / 4; at += OUTPUTS) {
                int r = at / (COLUMNS / 4), c = at % (COLUMNS / 4) * 4, column = step * COLUMNS + c;
                if (row + r < rows && column < k) copy(of_x + r * COLUMNS + c, x + (row + r) * k + column);
            }
        }
        asm volatile("cp.async.commit_group;");
    };
    for (int step = 0; step < STAGES - 1; ++step) load(step);
    float acc[ROWS] = {};
    for (int step = 0; step < steps; ++step) {
        asm volatile("cp.async.wait_group %0;" ::"n"(STAGES - 2) : "memory");
        __syncthreads();
        load(step + STAGES - 1);
        const uint16_t *w = ws + (step % STAGES * OUTPUTS + threadIdx.x) * ROW;
        const float *of_x = xs + step % STAGES * ROWS * COLUMNS;
        // Not past k: fma with zeros would turn −0 into 0.
        int columns = min(COLUMNS, k - step * COLUMNS);
#pragma unroll AT_ONCE
        for (int c = 0; c < columns; c += 8) {
            int4 eight = *(const int4 *)(w + c);
            const uint16_t *halves = (const uint16_t *)&eight;
            float weights[8];
#pragma unroll
            for (int i = 0; i < 8; ++i) weights[i] = from_f16(halves[i]);
#pragma unroll
            for (int r = 0; r < ROWS; ++r) {
                const float *values = of_x + r * COLUMNS + c;
                float4 low = *(const float4 *)values, high = *(const float4 *)(values + 4);
                acc[r] = __fmaf_rn(low.x, weights[0], acc[r]);
                acc[r] = __fmaf_rn(low.y, weights[1], acc[r]);
                acc[r] = __fmaf_rn(low.z, weights[2], acc[r]);
                acc[r] = __fmaf_rn(low.w, weights[3], acc[r]);
                acc[r] = __fmaf_rn(high.x, weights[4], acc[r]);
                acc[r] = __fmaf_rn(high.y, weights[5], acc[r]);
                acc[r] = __fmaf_rn(high.z, weights[6], acc[r]);
                acc[r] = __fmaf_rn(high.w, weights[7], acc[r]);
            }
        }
    }
    // By way of shared memory: rules of quantizers are too long to be written out for every row.
    __syncthreads();
#pragma unroll
    for (int r = 0; r < ROWS; ++r) xs[r * OUTPUTS + threadIdx.x] = acc[r];
    Tally tally;
#pragma unroll 1
    for (int r = 0; r < ROWS; ++r)
        if (row + r < rows && first + threadIdx.x < n)
            out.store(row + r, first + threadIdx.x, xs[r * OUTPUTS + threadIdx.x], out.quantizer.divisor(), tally);
    out.quantizer.finish(tally);
}

#define HALF(rows)                                                                                 \
    extern "C" __global__ void __launch_bounds__(64)                                               \
    linear_half_##rows(const float *x, Source weight, Sink out, long long all, int n, int k) {     \
        linear_half<64, 64, 3, rows>(x, weight, out, all, n, k);                                   \
    }
HALF(1)
HALF(4)
HALF(8)
