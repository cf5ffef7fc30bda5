// Hadamard rotations of many rows.
#include "hadamard.cuh"

constexpr int THREADS = 128;

/// Blocks of threads rotate rows, one at a time.
template <int BASE>
DEVICE void rotate_in(const Source &in, const Sink &out, long long rows, int block, float factor) {
    extern __shared__ __align__(16) float row[];
    Tally tally;
    for (long long r = blockIdx.x; r < rows; r += gridDim.x)
        rotate_row<BASE>(row, in, out, r, block, factor, tally);
    out.quantizer.finish(tally);
}

/// Values a lane holds of each block of 128, and rows (warps) of a block of threads.
constexpr int LANE = 4, ROWS = 8;

/// Rows of BASE·128 values of binary16 to codes, a warp each and all of it in registers: strides 1 and 2
/// are a lane's own, the others reach from lane to lane. Rows and strides are multiples of four.
template <int BASE>
DEVICE void rotate_warps(const Source &in, const Sink &out, long long rows, float factor) {
    long long r = blockIdx.x * (long long)ROWS + threadIdx.x / 32;
    int lane = threadIdx.x % 32;
    Tally tally;
    if (r < rows) {
        const uint16_t *from = (const uint16_t *)in.data + r * in.stride + lane * LANE;
        float v[BASE][LANE];
#pragma unroll
        for (int j = 0; j < BASE; ++j) {
            uint2 four = *(const uint2 *)(from + j * 128);
            const uint16_t *halves = (const uint16_t *)&four;
#pragma unroll
            for (int i = 0; i < LANE; ++i) v[j][i] = from_f16(halves[i]);
        }
#pragma unroll
        for (int j = 0; j < BASE; ++j) butterflies<LANE>(v[j]);
#pragma unroll
        for (int distance = 1; distance < 32; distance *= 2) {
            // A lane below adds the other's, one above is taken from it: by fma with ±1, exactly.
            float sign = lane & distance ? -1.0f : 1.0f;
#pragma unroll
            for (int j = 0; j < BASE; ++j)
#pragma unroll
                for (int i = 0; i < LANE; ++i) {
                    float other = __shfl_xor_sync(0xFFFFFFFF, v[j][i], distance);
                    v[j][i] = __fmaf_rn(sign, v[j][i], other);
                }
        }
        bool counts = out.quantizer.status;
        int low = out.quantizer.overflow == WRAP ? INT_MIN : -128;
        int high = out.quantizer.overflow == WRAP ? INT_MAX : 127;
        int8_t *codes = (int8_t *)out.data + r * out.stride + lane * LANE;
#pragma unroll
        for (int i = 0; i < BASE; ++i) {
            uint32_t packed = 0;
#pragma unroll
            for (int q = 0; q < LANE; ++q) {
                float sum = signs<BASE>(i) & 1 ? -v[0][q] : v[0][q];
#pragma unroll
                for (int j = 1; j < BASE; ++j)
                    sum = signs<BASE>(i) >> j & 1 ? __fsub_rn(sum, v[j][q]) : __fadd_rn(sum, v[j][q]);
                float product = __fmul_rn(sum, factor);
                int integer = to_integer(TIES_AWAY, product);
                if (counts) tally.add(product, integer);
                packed |= (max(low, min(high, integer)) & 0xFF) << (8 * q);
            }
            *(uint32_t *)(codes + i * 128) = packed;
        }
    }
    out.quantizer.finish(tally);
}

/// For 12·128 channels.
extern "C" __global__ void __launch_bounds__(ROWS * 32)
rotate_12x128(Source in, Sink out, long long rows, float factor) {
    rotate_warps<12>(in, out, rows, factor);
}

#define ROTATE(BASE)                                                              \
    extern "C" __global__ void __launch_bounds__(THREADS)                         \
    rotate_##BASE(Source in, Sink out, long long rows, int block, float factor) { \
        rotate_in<BASE>(in, out, rows, block, factor);                            \
    }
ROTATE(1)
ROTATE(12)
ROTATE(20)
ROTATE(28)
ROTATE(40)
