// INT8 × INT8 products: the integer half of sim/src/step/linear.rs. Sums are exact, so only the epilogue has
// an order.
#pragma once
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

/// Puts an output in its place, from its accumulator.
DEVICE void put(const LinearI8 &p, const Sink &out, long long row, int column, int sum, Tally &tally) {
    float v = Factors(p, column).of(sum);
    if (out.type == I8) {
        ((int8_t *)out.data)[row * out.stride + column] = out.quantizer.grid(v, tally);
    } else {
        out.store(row, column, v, 1.0f, tally);
    }
}

/// Adds the products of 16 codes.
DEVICE int add_products(int4 a, int4 b, int sum) {
    sum = __dp4a(a.x, b.x, sum);
    sum = __dp4a(a.y, b.y, sum);
    sum = __dp4a(a.z, b.z, sum);
    return __dp4a(a.w, b.w, sum);
}
