// Hadamard rotation of the scan's output, and its quantizer: the twin of sim/src/step/hadamard.rs and
// of sim/src/arith/hadamard.rs, where the matrices come from.
#pragma once
#include "tensor.cuh"
#include <climits>

/// Neighbours that a thread takes at once.
constexpr int SHORT = 16;

/// Signs of row i of H_BASE: bit j set where the entry is −1. Indices are constants once unrolled.
template <int BASE>
DEVICE uint64_t signs(int i) {
    return 0;
}
template <>
DEVICE uint64_t signs<12>(int i) {
    const uint64_t rows[12] = {
        0x002, 0xaab, 0x3c8, 0x96e, 0xf20, 0x5ba, 0xc8c, 0x6e6,
        0x23c, 0xb96, 0x8f0, 0xe5a,
    };
    return rows[i];
}
template <>
DEVICE uint64_t signs<20>(int i) {
    const uint64_t rows[20] = {
        0x933de, 0x2e3bd, 0x5477b, 0xa0ef7, 0x499ef, 0x637c1, 0xc6ba2, 0x8d764,
        0x1aee8, 0x359f0, 0x0fa53, 0x174a7, 0x26d4e, 0x45e9c, 0x83d39, 0xf7a6d,
        0xef4fa, 0xdedd5, 0xbdf8b, 0x7bf36,
    };
    return rows[i];
}
template <>
DEVICE uint64_t signs<28>(int i) {
    const uint64_t rows[28] = {
        0xcd69e7e, 0x9ad7c7d, 0x37ab8fb, 0x6d571f7, 0xd8ae3ef, 0xb3587df, 0x66b4f3f, 0xb467f43,
        0x6acbe87, 0xd593d8e, 0xab27b9c, 0x564f7b8, 0xac9aff0, 0x5b31fe1, 0x87fb325, 0x0ff66ca,
        0x1decd95, 0x39ddb2a, 0x71bf654, 0xe17eca9, 0xc2fd9d2, 0xfcf1299, 0xfbe2532, 0xf7c4ae4,
        0xef8d549, 0xdf1ea13, 0xbe3d4a6, 0x7e7a94c,
    };
    return rows[i];
}
template <>
DEVICE uint64_t signs<40>(int i) {
    const uint64_t rows[40] = {
        0xffffeffffe, 0x615e4615e4, 0xc2bc8c2bc8, 0x8579285792, 0x0af260af26, 0x15e4c15e4c,
        0x2bc982bc98, 0x5793057930, 0xaf260af260, 0x5e4c25e4c2, 0xbc984bc984, 0x7930a7930a,
        0xf2614f2614, 0xe4c2ae4c2a, 0xc9856c9856, 0x930ae930ae, 0x2615e2615e, 0x4c2bc4c2bc,
        0x9857898578, 0x30af230af2, 0x00001ffffe, 0x9ea1b615e4, 0x3d437c2bc8, 0x7a86d85792,
        0xf50d90af26, 0xea1b315e4c, 0xd43672bc98, 0xa86cf57930, 0x50d9faf260, 0xa1b3d5e4c2,
        0x4367bbc984, 0x86cf57930a, 0x0d9ebf2614, 0x1b3d5e4c2a, 0x367a9c9856, 0x6cf51930ae,
        0xd9ea12615e, 0xb3d434c2bc, 0x67a8798578, 0xcf50d30af2,
    };
    return rows[i];
}

/// Where an element lies in shared memory, spread so that every access below hits all banks.
DEVICE int at(int element) { return element + (element >> 4) * 4 + (element >> 7) * 16; }

/// Butterflies of N values that lie one stride apart: strides 1, 2, 4, … of them, in this order.
template <int N>
DEVICE void butterflies(float (&v)[N]) {
#pragma unroll
    for (int stride = 1; stride < N; stride *= 2)
#pragma unroll
        for (int i = 0; i < N; ++i)
            if (!(i & stride)) {
                float a = v[i], b = v[i + stride];
                v[i] = __fadd_rn(a, b);
                v[i + stride] = __fsub_rn(a, b);
            }
}

/// All butterflies of a row in shared memory over log2(N) strides from `stride`, a power of two, on.
template <int N>
DEVICE void pass(float *row, int length, int stride) {
    int step = at(stride);
#pragma unroll 1
    for (int g = threadIdx.x; g < length / N; g += blockDim.x) {
        // Elements one stride apart never straddle a gap that the stride itself does not have.
        float *first = row + at((g & -stride) * N + (g & (stride - 1)));
        float v[N];
#pragma unroll
        for (int i = 0; i < N; ++i) v[i] = first[i * step];
        butterflies<N>(v);
#pragma unroll
        for (int i = 0; i < N; ++i) first[i * step] = v[i];
    }
    __syncthreads();
}

/// Butterflies of 16 neighbours, and their place in shared memory.
DEVICE void begin(float *row, int g, float (&v)[SHORT]) {
    butterflies<SHORT>(v);
#pragma unroll
    for (int i = 0; i < SHORT; i += 4)
        *(float4 *)&row[at(g * SHORT + i)] = make_float4(v[i], v[i + 1], v[i + 2], v[i + 3]);
}

/// The factor H_BASE across the blocks of a row, each row of it summed left to right.
template <int BASE>
DEVICE void combine(const float *row, const Sink &out, long long r, int block, float factor,
                    Tally &tally) {
    bool plain = out.type == I8 && out.quantizer.rounding == TIES_AWAY && !out.quantizer.status;
    int low = out.quantizer.overflow == WRAP ? INT_MIN : -128;
    int high = out.quantizer.overflow == WRAP ? INT_MAX : 127;
    for (int q = threadIdx.x; q < block; q += blockDim.x) {
        int8_t *codes = (int8_t *)out.data + r * out.stride + q;
        float v[BASE];
        if (block % 128 == 0) {
            const float *first = row + at(q);
            int step = at(block);
#pragma unroll
            for (int j = 0; j < BASE; ++j) v[j] = first[j * step];
        } else {
#pragma unroll
            for (int j = 0; j < BASE; ++j) v[j] = row[at(j * block + q)];
        }
#pragma unroll
        for (int i = 0; i < BASE; ++i) {
            // A sum from the left starts with its first term, so a −0 there survives.
            float sum = signs<BASE>(i) & 1 ? -v[0] : v[0];
#pragma unroll
            for (int j = 1; j < BASE; ++j)
                sum = signs<BASE>(i) >> j & 1 ? __fsub_rn(sum, v[j]) : __fadd_rn(sum, v[j]);
            float product = __fmul_rn(sum, factor);
            if (plain) {
                codes[i * block] = (int8_t)max(low, min(high, to_integer(TIES_AWAY, product)));
            } else if (out.type == I8) {
                codes[i * block] = out.quantizer.grid(product, tally);
            } else {
                out.store(r, i * block + q, product, 1.0f, tally);
            }
        }
    }
}

/// 16 neighbours of a row.
DEVICE void read(float (&v)[SHORT], const Source &in, long long r, int column) {
    const uint16_t *from = (const uint16_t *)in.data + r * in.stride + column;
    if (in.type == F16 && (uintptr_t)from % 16 == 0) {
        __align__(16) uint16_t halves[SHORT];
        ((int4 *)halves)[0] = ((const int4 *)from)[0];
        ((int4 *)halves)[1] = ((const int4 *)from)[1];
#pragma unroll
        for (int i = 0; i < SHORT; ++i) v[i] = from_f16(halves[i]);
    } else {
#pragma unroll
        for (int i = 0; i < SHORT; ++i) v[i] = in.load(r, column + i);
    }
}

/// A block of threads rotates row r of BASE·block values in shared memory and multiplies it by `factor`.
template <int BASE>
DEVICE void rotate_row(float *row, const Source &in, const Sink &out, long long r, int block, float factor,
                       Tally &tally) {
    int length = BASE * block, stride = 1;
    if (block >= SHORT) {
        for (int g = threadIdx.x; g < length / SHORT; g += blockDim.x) {
            float v[SHORT];
            read(v, in, r, g * SHORT);
            begin(row, g, v);
        }
        stride = SHORT;
    } else {
        for (int i = threadIdx.x; i < length; i += blockDim.x) row[at(i)] = in.load(r, i);
    }
    __syncthreads();
    while (stride < block) {
        int left = block / stride;
        if (left >= 8) {
            pass<8>(row, length, stride);
            stride *= 8;
        } else if (left == 4) {
            pass<4>(row, length, stride);
            stride *= 4;
        } else {
            pass<2>(row, length, stride);
            stride *= 2;
        }
    }
    combine<BASE>(row, out, r, block, factor, tally);
    __syncthreads();
}
