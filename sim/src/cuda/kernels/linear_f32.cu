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
