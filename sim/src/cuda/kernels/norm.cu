// Residual add and RMSNorm: the twin of sim/src/step/norm.rs.
#include "tensor.cuh"

/// Rows of a block of threads, and threads a row.
constexpr int ROWS = 8, WARP = 32, THREADS = ROWS * WARP;

/// Lane j of 8 sums r² of the elements j, j+8, … in f64, after the row's odd end; then a fixed tree.
DEVICE float rstd_rounded_once(const float *r, int m, float eps, int lane) {
    double sum = 0.0;
    if (lane < 8) {
        int whole = m / 8 * 8;
        if (whole + lane < m) {
            double v = (double)r[whole + lane];
            sum = __dmul_rn(v, v);
        }
#pragma unroll 8
        for (int i = lane; i < whole; i += 8) {
            // The product of two f32 is exact in f64.
            double v = (double)r[i];
            sum = __dadd_rn(sum, __dmul_rn(v, v));
        }
    }
    sum = __dadd_rn(sum, __shfl_down_sync(0xFFFFFFFF, sum, 4));
    sum = __dadd_rn(sum, __shfl_down_sync(0xFFFFFFFF, sum, 2));
    sum = __dadd_rn(sum, __shfl_down_sync(0xFFFFFFFF, sum, 1));
    double mean = __ddiv_rn(sum, (double)m);
    double root = __dsqrt_rn(__dadd_rn(mean, (double)eps));
    return __shfl_sync(0xFFFFFFFF, __double2float_rn(__ddiv_rn(1.0, root)), 0);
}

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

/// `residual_out = hidden ⊕ residual` (or hidden), `out = (r ⊗ rstd) ⊗ w`; a warp takes a row.
extern "C" __global__ void __launch_bounds__(THREADS)
rms_norm(Source hidden, const float *residual, const float *weight, float *residual_out, Sink out,
         int rows, int m, float eps, int torch_device) {
    int row = blockIdx.x * ROWS + threadIdx.x / WARP, lane = threadIdx.x % WARP;
    Tally tally;
    if (row < rows) {
        float *r = residual_out + (long long)row * m;
        for (int i = lane; i < m; i += WARP) {
            float v = hidden.load(row, i);
            r[i] = residual ? __fadd_rn(v, residual[(long long)row * m + i]) : v;
        }
        __syncwarp();
        float rstd = torch_device ? rstd_torch_device(r, m, eps, lane)
                                  : rstd_rounded_once(r, m, eps, lane);
        float divisor = out.quantizer.divisor();
        for (int i = lane; i < m; i += WARP)
            out.store(row, i, __fmul_rn(__fmul_rn(r[i], rstd), weight[i]), divisor, tally);
    }
    out.quantizer.finish(tally);
}
