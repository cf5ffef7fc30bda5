// Residual add and RMSNorm of a row: the twin of sim/src/step/norm.rs.
#pragma once
#include "tensor.cuh"

/// What a norm takes: `residual_out = hidden ⊕ residual` (or hidden), `out = (r ⊗ rstd) ⊗ w`.
struct Norm {
    Source hidden;
    const float *residual;
    const float *weight;
    float *residual_out;
    Sink out;
    int rows, m;
    float eps;
    int torch_device;
};

/// Lanes that sum a row's squares.
constexpr int NORM_LANES = 8;

/// 1/rms from the sums of squares in f64 of eight neighbouring lanes, by a fixed tree; in the first of them.
DEVICE float rstd_of_lanes(double sum, int m, float eps) {
    sum = __dadd_rn(sum, __shfl_down_sync(0xFFFFFFFF, sum, 4));
    sum = __dadd_rn(sum, __shfl_down_sync(0xFFFFFFFF, sum, 2));
    sum = __dadd_rn(sum, __shfl_down_sync(0xFFFFFFFF, sum, 1));
    double mean = __ddiv_rn(sum, (double)m);
    double root = __dsqrt_rn(__dadd_rn(mean, (double)eps));
    return __double2float_rn(__ddiv_rn(1.0, root));
}

/// r² in f64, which is exact.
DEVICE double square(float r) { return __dmul_rn((double)r, (double)r); }

/// Lane j of 8 sums r² of the elements j, j+8, … in f64, after the row's odd end; `square_of` an element.
template <class Square>
DEVICE double sum_of_lane(int m, Square square_of) {
    int lane = threadIdx.x % NORM_LANES, whole = m / NORM_LANES * NORM_LANES;
    double sum = whole + lane < m ? square_of(whole + lane) : 0.0;
#pragma unroll 16
    for (int i = lane; i < whole; i += NORM_LANES) sum = __dadd_rn(sum, square_of(i));
    return sum;
}
