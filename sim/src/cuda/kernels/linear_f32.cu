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

/// Outputs of a block and its threads, columns of k in a stage, stages in shared memory; the rows of a stage are 16
/// bytes longer, to spread over the banks.
constexpr int HALF_OUTPUTS = 64, HALF_COLUMNS = 64, HALF_STAGES = 3, HALF_ROW = HALF_COLUMNS + 8;

/// The same for weights of binary16 whose rows begin at multiples of 16 bytes, k a multiple of 8: a thread makes an
/// output, and weights are copied ahead without passing through registers.
extern "C" __global__ void __launch_bounds__(HALF_OUTPUTS)
linear_half_rows(const float *x, Source weight, Sink out, long long rows, int n, int k) {
    __shared__ __align__(16) uint16_t ws[HALF_STAGES][HALF_OUTPUTS][HALF_ROW];
    extern __shared__ __align__(16) float xs[];
    long long row = blockIdx.y;
    int first = blockIdx.x * HALF_OUTPUTS, steps = (k + HALF_COLUMNS - 1) / HALF_COLUMNS;
    auto load = [&](int step) {
        if (step < steps) {
#pragma unroll
            for (int i = 0; i < HALF_COLUMNS / 8; ++i) {
                int at = threadIdx.x + i * HALF_OUTPUTS, r = at / (HALF_COLUMNS / 8), c = at % (HALF_COLUMNS / 8) * 8;
                int column = step * HALF_COLUMNS + c;
                if (first + r < n && column < k)
                    asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" ::"r"(
                                     (uint32_t)__cvta_generic_to_shared(&ws[step % HALF_STAGES][r][c])),
                                 "l"((const uint16_t *)weight.data + (first + r) * weight.stride + column));
            }
        }
        asm volatile("cp.async.commit_group;");
    };
    for (int step = 0; step < HALF_STAGES - 1; ++step) load(step);
    for (int i = threadIdx.x; i < k; i += HALF_OUTPUTS) xs[i] = x[row * k + i];
    float acc = 0.0f;
    for (int step = 0; step < steps; ++step) {
        asm volatile("cp.async.wait_group %0;" ::"n"(HALF_STAGES - 2) : "memory");
        __syncthreads();
        load(step + HALF_STAGES - 1);
        const uint16_t *w = ws[step % HALF_STAGES][threadIdx.x];
        const float *of_step = xs + step * HALF_COLUMNS;
        // Not past k: fma with zeros would turn −0 into 0.
        int columns = min(HALF_COLUMNS, k - step * HALF_COLUMNS);
#pragma unroll 4
        for (int c = 0; c < columns; c += 8) {
            int4 eight = *(const int4 *)(w + c);
            float4 low = *(const float4 *)(of_step + c), high = *(const float4 *)(of_step + c + 4);
            float values[8] = {low.x, low.y, low.z, low.w, high.x, high.y, high.z, high.w};
            const uint16_t *halves = (const uint16_t *)&eight;
#pragma unroll
            for (int i = 0; i < 8; ++i) acc = __fmaf_rn(values[i], from_f16(halves[i]), acc);
        }
    }
    Tally tally;
    if (first + threadIdx.x < n) out.store(row, first + threadIdx.x, acc, out.quantizer.divisor(), tally);
    out.quantizer.finish(tally);
}
