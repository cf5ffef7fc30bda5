// INT8 × INT8 linear steps by the products of a warpgroup (wgmma of compute capability 9.0): what linear_i8.cu makes
// of many rows, faster. Sums are exact in any order.
//
// What limits tiles is how often the cache between memory and multiprocessors is read. So each block of threads keeps a
// panel of the weight, all k of N outputs, in shared memory for good, and rows of x pass by. Its warpgroups take 64
// rows each and never wait for each other: while one stores its outputs, the others multiply.
#include "linear.cuh"

/// Rows of a warpgroup at a time, columns of k in a stage (128 bytes are the widest row that its products read), and
/// threads of a warpgroup.
constexpr int ROWS = 64, BK = 128, WARPGROUP = 128, STAGE = ROWS * BK;

/// Offset of 16 bytes in rows of 128: permuted as the products expect it, so that eight rows hit all banks.
DEVICE uint32_t chunk(int row, int column) { return row * BK + ((column ^ (row & 7)) << 4); }

DEVICE void copy_16(uint32_t to, const void *from, int bytes) {
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(to), "l"(from), "r"(bytes));
}
DEVICE void copy_16(uint32_t to, const void *from) {
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" ::"r"(to), "l"(from));
}

/// What the products are told of rows of 128 bytes that begin at a multiple of 1024: where they are, eight rows are 1024
/// bytes, permuted over 128 bytes.
DEVICE uint64_t descriptor(uint32_t at) { return at >> 4 & 0x3FFF | 1ull << 16 | 64ull << 32 | 1ull << 62; }

#define REGISTERS_8(d, i)                                                                                          \
    "+r"(d[i]), "+r"(d[i + 1]), "+r"(d[i + 2]), "+r"(d[i + 3]), "+r"(d[i + 4]), "+r"(d[i + 5]), "+r"(d[i + 6]),    \
        "+r"(d[i + 7])
#define REGISTERS_16(d, i) REGISTERS_8(d, i), REGISTERS_8(d, i + 8)
#define REGISTERS_32(d, i) REGISTERS_16(d, i), REGISTERS_16(d, i + 16)

/// 64 rows of x times N of the weight over 32 columns; the products before are added, or forgotten.
template <int N>
DEVICE void multiply(int (&d)[N / 2], uint64_t x, uint64_t weight, int add);
template <>
DEVICE void multiply<96>(int (&d)[48], uint64_t x, uint64_t weight, int add) {
    asm volatile(
        "{ .reg .pred p; setp.ne.b32 p, %50, 0;\n"
        "wgmma.mma_async.sync.aligned.m64n96k32.s32.s8.s8 {"
            "%0,%1,%2,%3,%4,%5,%6,%7,%8,%9,%10,%11,%12,%13,%14,%15,"
            "%16,%17,%18,%19,%20,%21,%22,%23,%24,%25,%26,%27,%28,%29,%30,%31,"
            "%32,%33,%34,%35,%36,%37,%38,%39,%40,%41,%42,%43,%44,%45,%46,%47"
        "}, %48, %49, p; }"
        : REGISTERS_32(d, 0), REGISTERS_16(d, 32)
        : "l"(x), "l"(weight), "r"(add));
}
template <>
DEVICE void multiply<192>(int (&d)[96], uint64_t x, uint64_t weight, int add) {
    asm volatile(
        "{ .reg .pred p; setp.ne.b32 p, %98, 0;\n"
        "wgmma.mma_async.sync.aligned.m64n192k32.s32.s8.s8 {"
            "%0,%1,%2,%3,%4,%5,%6,%7,%8,%9,%10,%11,%12,%13,%14,%15,"
            "%16,%17,%18,%19,%20,%21,%22,%23,%24,%25,%26,%27,%28,%29,%30,%31,"
            "%32,%33,%34,%35,%36,%37,%38,%39,%40,%41,%42,%43,%44,%45,%46,%47,"
            "%48,%49,%50,%51,%52,%53,%54,%55,%56,%57,%58,%59,%60,%61,%62,%63,"
            "%64,%65,%66,%67,%68,%69,%70,%71,%72,%73,%74,%75,%76,%77,%78,%79,"
            "%80,%81,%82,%83,%84,%85,%86,%87,%88,%89,%90,%91,%92,%93,%94,%95"
        "}, %96, %97, p; }"
        : REGISTERS_32(d, 0), REGISTERS_32(d, 32), REGISTERS_32(d, 64)
        : "l"(x), "l"(weight), "r"(add));
}

/// Keeps the compiler from moving what it does with sums into the time when products write them.
template <int COUNT>
DEVICE void fence(int (&d)[COUNT]) {
#pragma unroll
    for (int i = 0; i < COUNT; ++i) asm volatile("" : "+r"(d[i])::"memory");
}

/// Lane q of four neighbours has pair q (16 bits) of each of four vectors, two in a word; then it has all of vector q.
DEVICE uint2 gather(uint32_t first_two, uint32_t last_two) {
    bool high = threadIdx.x & 2, odd = threadIdx.x & 1;
    uint32_t kept = high ? last_two : first_two;
    uint32_t got = __shfl_xor_sync(0xFFFFFFFF, high ? first_two : last_two, 2);
    uint32_t low = high ? got : kept, upper = high ? kept : got;
    uint32_t of_even = __byte_perm(low, upper, 0x5410), of_odd = __byte_perm(low, upper, 0x7632);
    kept = odd ? of_odd : of_even;
    got = __shfl_xor_sync(0xFFFFFFFF, odd ? of_even : of_odd, 1);
    low = odd ? got : kept, upper = odd ? kept : got;
    return make_uint2(__byte_perm(low, upper, 0x5410), __byte_perm(low, upper, 0x7632));
}

/// The same for pairs of 32 bits.
DEVICE uint4 gather(uint32_t v0, uint32_t v1, uint32_t v2, uint32_t v3) {
    bool high = threadIdx.x & 2, odd = threadIdx.x & 1;
    uint32_t kept0 = high ? v2 : v0, kept1 = high ? v3 : v1;
    uint32_t got0 = __shfl_xor_sync(0xFFFFFFFF, high ? v0 : v2, 2), got1 = __shfl_xor_sync(0xFFFFFFFF, high ? v1 : v3, 2);
    uint32_t low0 = high ? got0 : kept0, low1 = high ? got1 : kept1;
    uint32_t upper0 = high ? kept0 : got0, upper1 = high ? kept1 : got1;
    uint32_t kept_low = odd ? low1 : low0, kept_upper = odd ? upper1 : upper0;
    uint32_t got_low = __shfl_xor_sync(0xFFFFFFFF, odd ? low0 : low1, 1);
    uint32_t got_upper = __shfl_xor_sync(0xFFFFFFFF, odd ? upper0 : upper1, 1);
    return odd ? make_uint4(got_low, kept_low, got_upper, kept_upper)
               : make_uint4(kept_low, got_low, kept_upper, got_upper);
}

/// Bases and row strides of x and of the weight are multiples of 16 bytes, n of 8, and base and stride of `out` of 8
/// outputs. One scale is that of all the weight. Codes are rounded to even and saturated, and not counted. `panels` of N
/// outputs make n; a multiple of them is the number of blocks.
template <int N, int TYPE, int GROUPS, int STAGES>
DEVICE void linear_wide(const LinearI8 &p, const Sink &out, int panels) {
    extern __shared__ __align__(1024) int8_t shared[];
    uint32_t panel = ((uint32_t)__cvta_generic_to_shared(shared) + 1023) & ~1023u;
    int group = threadIdx.x / WARPGROUP, thread = threadIdx.x % WARPGROUP, lane = threadIdx.x % 32;
    int steps = (p.k + BK - 1) / BK, blocks = gridDim.x / panels;
    int first_column = blockIdx.x % panels * N;
    uint32_t stages = panel + steps * N * BK + group * STAGES * STAGE;
    int tiles = (int)((p.rows + ROWS - 1) / ROWS);
    // Tiles go to the blocks in turn, so that none waits while others have two.
    int first_tile = blockIdx.x / panels + group * blocks, apart = blocks * GROUPS;

    for (int i = threadIdx.x; i < N * steps * (BK / 16); i += GROUPS * WARPGROUP) {
        int row = i / (steps * (BK / 16)), column = i % (steps * (BK / 16));
        int bytes = first_column + row < p.n ? max(0, min(16, p.k - column * 16)) : 0;
        const int8_t *from = p.weight + (first_column + row) * p.weight_stride + column * 16;
        copy_16(panel + column / (BK / 16) * N * BK + chunk(row, column % (BK / 16)), bytes ? from : p.weight, bytes);
    }
    asm volatile("cp.async.commit_group;");

    // The next stage to load: a thread's 16 bytes of rows that lie PARTS apart.
    constexpr int PARTS = WARPGROUP / (BK / 16);
    int row_of_tile = thread / (BK / 16), column = thread % (BK / 16) * 16;
    int tile_ahead = first_tile, columns_left = p.k - column, slot_ahead = 0;
    uint32_t to = stages + chunk(row_of_tile, column / 16);
    const int8_t *from = p.x + ((long long)first_tile * ROWS + row_of_tile) * p.x_stride + column;
    long long next_rows = PARTS * p.x_stride, next_tile = (long long)apart * ROWS * p.x_stride - steps * BK;
    bool whole_columns = p.k % BK == 0;
    int whole_tiles = (int)(p.rows / ROWS);
    auto load = [&] {
        if (tile_ahead < tiles) {
            const int8_t *of_row = from;
            if (whole_columns && tile_ahead < whole_tiles) {
#pragma unroll
                for (int i = 0; i < ROWS / PARTS; ++i, of_row += next_rows)
                    copy_16(to + slot_ahead + i * PARTS * BK, of_row);
            } else {
                int bytes = max(0, min(16, columns_left));
                int rows = (int)min((long long)ROWS, p.rows - (long long)tile_ahead * ROWS) - row_of_tile;
#pragma unroll
                for (int i = 0; i < ROWS / PARTS; ++i, of_row += next_rows) {
                    int there = i * PARTS < rows ? bytes : 0;
                    copy_16(to + slot_ahead + i * PARTS * BK, there ? of_row : p.x, there);
                }
            }
            from += BK, columns_left -= BK;
            if (columns_left <= -column) from += next_tile, columns_left = p.k - column, tile_ahead += apart;
        }
        asm volatile("cp.async.commit_group;");
        slot_ahead = slot_ahead + STAGE == STAGES * STAGE ? 0 : slot_ahead + STAGE;
    };
    for (int i = 0; i < STAGES - 1; ++i) load();
    asm volatile("cp.async.wait_group %0;" ::"n"(STAGES - 1) : "memory");
    asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
    __syncthreads();

    Factors factors(p, 0);
    int slot = 0;
    for (int tile = first_tile; tile < tiles; tile += apart) {
        int sums[N / 2];
        for (int step = 0; step < steps; ++step) {
            asm volatile("cp.async.wait_group %0;" ::"n"(STAGES - 2) : "memory");
            asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
            asm volatile("bar.sync %0, %1;" ::"r"(group + 1), "n"(WARPGROUP) : "memory");
            // All have waited for the products that read what this replaces.
            load();
            uint64_t x = descriptor(stages + slot), weight = descriptor(panel + step * N * BK);
            fence(sums);
            asm volatile("wgmma.fence.sync.aligned;" ::: "memory");
#pragma unroll
            for (int k = 0; k < BK / 32; ++k) multiply<N>(sums, x + k * 2, weight + k * 2, step + k);
            asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory");
            asm volatile("wgmma.wait_group.sync.aligned 0;" ::: "memory");
            fence(sums);
            slot = slot + STAGE == STAGES * STAGE ? 0 : slot + STAGE;
        }
#pragma unroll
        for (int half = 0; half < 2; ++half) {
            long long row = (long long)tile * ROWS + thread / 32 * 16 + half * 8 + lane / 4;
            bool inside = row < p.rows;
#pragma unroll
            for (int j = 0; j < N / 8; j += 4) {
                // A lane's two neighbours of four vectors.
                float v[4][2];
#pragma unroll
                for (int i = 0; i < 4; ++i)
#pragma unroll
                    for (int e = 0; e < 2; ++e)
                        v[i][e] = factors.of(sums[(j + i) * 4 + half * 2 + e]);
                int column = first_column + (j + lane % 4) * 8;
                if (TYPE == I8) {
                    uint32_t codes[2];
#pragma unroll
                    for (int i = 0; i < 2; ++i)
                        codes[i] = four_codes(__float2int_rn(v[2 * i][0]), __float2int_rn(v[2 * i][1]),
                                              __float2int_rn(v[2 * i + 1][0]), __float2int_rn(v[2 * i + 1][1]));
                    uint2 vector = gather(codes[0], codes[1]);
                    if (inside && column < p.n) *(uint2 *)((int8_t *)out.data + row * out.stride + column) = vector;
                } else {
                    uint32_t halves[4];
#pragma unroll
                    for (int i = 0; i < 4; ++i) halves[i] = to_f16(v[i][0]) | (uint32_t)to_f16(v[i][1]) << 16;
                    uint4 vector = gather(halves[0], halves[1], halves[2], halves[3]);
                    if (inside && column < p.n) *(uint4 *)((uint16_t *)out.data + row * out.stride + column) = vector;
                }
            }
        }
    }
}

#define WIDE(N, GROUPS, STAGES, BLOCKS, type, TYPE)                                       \
    extern "C" __global__ void __launch_bounds__(GROUPS *WARPGROUP, BLOCKS)               \
    linear_wide_##N##_to_##type(LinearI8 p, Sink out, int panels) {                       \
        linear_wide<N, TYPE, GROUPS, STAGES>(p, out, panels);                             \
    }
WIDE(96, 3, 3, 1, i8, I8)
WIDE(96, 3, 3, 1, f16, F16)
WIDE(192, 3, 3, 1, i8, I8)
WIDE(192, 3, 3, 1, f16, F16)
