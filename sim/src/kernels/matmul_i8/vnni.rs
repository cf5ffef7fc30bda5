//! AVX-512 VNNI. `vpdpbusd` adds four products of an unsigned and a signed byte to each i32 lane,
//! but both our operands are signed. One of them is therefore offset by 128, which is flipping its
//! top bit, and the difference taken back:
//!
//! `Σ (w + 128)·x = Σ w·x + 128·Σ x`
//!
//! The packed product offsets w while packing; the accumulators of a row start at −128·Σx. The
//! one-row product offsets x and takes 128·Σw from a second `vpdpbusd` of w with the constant 128; that of
//! four-bit weights offsets w in its tables.
//! All sums are in i32 modulo 2^32 (`vpdpbusd`, not the saturating `vpdpbusds`; its four products
//! fit easily), so intermediate overflow is harmless: the result is the exact dot product modulo
//! 2^32, and that fits.

use super::packed::{self, Rows, Tile, Words};
use super::{Epilogue, Job, Nibbles, dots, panels};
use crate::arith::saturate::Status;
use crate::kernels::transpose::words_of_rows;
use std::arch::x86_64::*;

/// 128 in each byte of a word.
const OFFSET: i32 = 0x8080_8080_u32 as i32;

/// Rows whose words lie side by side in a packed tile.
const ROWS: usize = 16;

pub(super) struct Vnni;

impl Tile for Vnni {
    const GROUP: usize = 4;
    const K_MULTIPLE: usize = 1;
    const ROWS: usize = ROWS;

    /// Words of 16 rows side by side, so that one register walks through all of them.
    fn pack_rows(rows: &[i8], k: usize, words: &mut [i32]) {
        // SAFETY: this tile is used where AVX-512 was found.
        unsafe { pack_rows(rows, k, words.as_chunks_mut().0) }
    }

    fn start(row_sum: i32) -> i32 {
        row_sum.wrapping_mul(-128)
    }

    #[inline(always)]
    fn pack(weight: &[i8], k: usize, panel: &mut [Words]) {
        // SAFETY: only `Vnni::panel` packs, with AVX-512 enabled.
        unsafe { pack(weight, k, OFFSET, panel) }
    }

    #[inline(always)]
    fn multiply(
        words: &[i32],
        panel: &[Words],
        starts: &[i32],
        acc: &mut [Words],
        _: impl FnMut(),
    ) {
        let rows = starts.len();
        let mut padded = [0; ROWS];
        padded[..rows].copy_from_slice(starts);
        let words = words.as_chunks().0;
        for first in (0..rows).step_by(8) {
            // SAFETY: only `Vnni::panel` multiplies, with AVX-512 VNNI enabled.
            unsafe { multiply(words, first, panel, &padded, acc) }
        }
    }

    fn panel<E: Epilogue>(job: &Job<E>, x: &Rows, p: usize) -> Status {
        // SAFETY: `matmul_i8` chooses this tile where `Isa::Avx512Vnni` was detected.
        unsafe { panel(job, x, p) }
    }
}

#[target_feature(enable = "avx2,fma,f16c,avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
fn panel<E: Epilogue>(job: &Job<E>, x: &Rows, p: usize) -> Status {
    packed::panel::<Vnni, E>(job, x, p)
}

#[target_feature(enable = "avx512f,avx512bw")]
fn pack_rows(rows: &[i8], k: usize, words: &mut [[i32; ROWS]]) {
    for (block, words) in words.chunks_mut(16).enumerate() {
        let turned = words_of_rows(rows, k, 64 * block);
        for (to, from) in words.iter_mut().zip(turned) {
            // SAFETY: 16 words.
            unsafe { _mm512_storeu_si512(to.as_mut_ptr().cast(), from) };
        }
    }
}

/// Packs a panel: word g of all 32 rows side by side, `offset` added to (in fact, its bits flipped in)
/// each. Words past k hold `offset`.
#[target_feature(enable = "avx512f,avx512bw")]
#[inline]
pub(super) fn pack(weight: &[i8], k: usize, offset: i32, panel: &mut [Words]) {
    let offset = _mm512_set1_epi32(offset);
    let split = weight.len().min(16 * k);
    for (block, words) in panel.chunks_mut(16).enumerate() {
        for (half, rows) in [&weight[..split], &weight[split..]].into_iter().enumerate() {
            let turned = words_of_rows(rows, k, 64 * block);
            for (word, codes) in words.iter_mut().zip(turned) {
                let to = word[16 * half..][..16].as_mut_ptr();
                // SAFETY: 16 words from `to` on.
                unsafe { _mm512_storeu_si512(to.cast(), _mm512_xor_si512(codes, offset)) };
            }
        }
    }
}

/// Rows `first..first + 8` of a tile.
#[target_feature(enable = "avx512f,avx512vnni")]
#[inline]
fn multiply(
    words: &[[i32; ROWS]],
    first: usize,
    panel: &[Words],
    starts: &[i32; ROWS],
    acc: &mut [Words],
) {
    const R: usize = 8;
    assert_eq!(words.len(), panel.len());
    let starts: &[i32; R] = starts[first..][..R].try_into().expect("8 of 16");
    let mut sums = starts.map(|start| [_mm512_set1_epi32(start); 2]);
    for (x, w) in words.iter().zip(panel) {
        let x: &[i32; R] = x[first..][..R].try_into().expect("8 of 16");
        // SAFETY: 32 words.
        let w = unsafe {
            [
                _mm512_loadu_si512(w[..16].as_ptr().cast()),
                _mm512_loadu_si512(w[16..].as_ptr().cast()),
            ]
        };
        for r in 0..R {
            let codes = _mm512_set1_epi32(x[r]);
            sums[r][0] = _mm512_dpbusd_epi32(sums[r][0], w[0], codes);
            sums[r][1] = _mm512_dpbusd_epi32(sums[r][1], w[1], codes);
        }
    }
    for (acc, sums) in acc[first..][..R].iter_mut().zip(sums) {
        // SAFETY: two vectors of 16 words are 32 words.
        *acc = unsafe { std::mem::transmute::<[__m512i; 2], Words>(sums) };
    }
}

/// The one-row product: every row of the weight is read once, in order.
pub(super) fn dots<E: Epilogue>(job: &Job<E>) -> Status {
    panels(job, job.out.rows(), |p| {
        // SAFETY: `dots::run` calls this where `Isa::Avx512Vnni` was detected.
        unsafe { dots_panel(job, p) }
    })
}

#[target_feature(enable = "avx2,fma,f16c,avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
fn dots_panel<E: Epilogue>(job: &Job<E>, p: usize) -> Status {
    match job.weight {
        super::WeightRows::Int8(codes) => {
            let columns = job.columns(p);
            let weight = &codes[columns.start * job.k..columns.end * job.k];
            dots::panel(job, p, |x, acc| {
                rows_of_dots(acc, weight, x.len(), |row| partial_dots(x, row));
            })
        }
        super::WeightRows::Int4(nibbles) => nibble_panel(job, p, &nibbles.rows(job.columns(p))),
    }
}

/// A panel of four-bit rows.
#[target_feature(enable = "avx2,fma,f16c,avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
#[inline]
fn nibble_panel<E: Epilogue>(job: &Job<E>, p: usize, rows: &Nibbles) -> Status {
    dots::panel(job, p, |x, acc| {
        let x = x.as_chunks().0;
        let offset = 128 * sum(x.as_flattened());
        let mut table_of = rows.table_of.chunks_exact(rows.groups);
        rows_of_dots(acc, rows.chunks(), rows.groups, |row| {
            let table_of = table_of.next().expect("as many as groups of codes");
            partial_dots_of_nibbles(x, row, rows.tables, table_of)
        });
        acc.iter_mut()
            .for_each(|acc| *acc = acc.wrapping_sub(offset));
    })
}

/// Puts the dot products of all rows of a weight into `acc`; `partial` makes 16 words whose sum is one.
///
/// One row after another, in the order of memory: the machine's own prefetching follows one stream,
/// and four rows side by side came in at a quarter of its speed.
#[target_feature(enable = "avx512f")]
#[inline]
fn rows_of_dots<T>(
    acc: &mut [i32],
    weight: &[T],
    row: usize,
    mut partial: impl FnMut(&[T]) -> __m512i,
) {
    for (acc, rows) in acc.chunks_mut(16).zip(weight.chunks(16 * row)) {
        let mut parts = [_mm512_setzero_si512(); 16];
        for (part, row) in parts.iter_mut().zip(rows.chunks_exact(row)) {
            *part = partial(row);
        }
        // SAFETY: both types are 16 words.
        let sums = unsafe { std::mem::transmute::<__m512i, [i32; 16]>(sums_of_lanes(parts)) };
        acc.copy_from_slice(&sums[..acc.len()]);
    }
}

/// The sum of codes.
#[target_feature(enable = "avx512f,avx512bw")]
#[inline]
fn sum(codes: &[i8]) -> i32 {
    codes.iter().map(|q| i32::from(*q)).sum()
}

/// 16 words whose sum is the dot product of x with a row of four-bit codes, plus 128 times the sum of
/// x: the weights are looked up in tables to which 128 is added, 64 at a time.
#[target_feature(enable = "avx2,fma,f16c,avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
#[inline]
fn partial_dots_of_nibbles(
    x: &[[i8; 128]],
    row: &[[u8; 64]],
    tables: &[[i8; 16]],
    table_of: &[u16],
) -> __m512i {
    let offset = _mm_set1_epi8(-128);
    let low = _mm512_set1_epi8(15);
    let mut sums = [_mm512_setzero_si512(); 2];
    for ((x, bytes), table) in x.iter().zip(row).zip(table_of) {
        _mm_prefetch::<_MM_HINT_T1>(bytes.as_ptr().wrapping_add(2 * AHEAD).cast());
        _mm_prefetch::<_MM_HINT_T0>(bytes.as_ptr().wrapping_add(NEAR).cast());
        let table = tables[usize::from(*table)].as_ptr();
        // SAFETY: 16 bytes of a table, 64 of codes, two times 64 of x.
        let (table, pairs, x) = unsafe {
            (
                _mm_loadu_si128(table.cast()),
                _mm512_loadu_si512(bytes.as_ptr().cast()),
                [
                    _mm512_loadu_si512(x[..64].as_ptr().cast()),
                    _mm512_loadu_si512(x[64..].as_ptr().cast()),
                ],
            )
        };
        let table = _mm512_broadcast_i32x4(_mm_xor_si128(table, offset));
        let lows = _mm512_and_si512(pairs, low);
        let highs = _mm512_and_si512(_mm512_srli_epi16::<4>(pairs), low);
        sums[0] = _mm512_dpbusd_epi32(sums[0], _mm512_shuffle_epi8(table, lows), x[0]);
        sums[1] = _mm512_dpbusd_epi32(sums[1], _mm512_shuffle_epi8(table, highs), x[1]);
    }
    _mm512_add_epi32(sums[0], sums[1])
}

/// How far ahead of its reading the weight is asked for. The machine's own prefetching ends at each page: an
/// Intel core read 27 GB/s so and 16 without, an AMD core the same.
const AHEAD: usize = 8192;

/// How far ahead codes of four bits are asked for once more, from the second-level cache. A chunk of them is 128 products:
/// what waits for memory beside so many would fill the first level's queue. A Zen 4 read them a fifth faster so.
const NEAR: usize = 1024;

/// 16 words whose sum is the dot product of x with a row.
#[target_feature(enable = "avx512f,avx512bw,avx512vnni")]
#[inline]
fn partial_dots(x: &[i8], row: &[i8]) -> __m512i {
    assert_eq!(x.len(), row.len());
    let offset = _mm512_set1_epi32(OFFSET);
    let mut with_offset = _mm512_setzero_si512();
    let mut of_offset = _mm512_setzero_si512();
    let (codes, last) = x.as_chunks::<64>();
    let (weights, last_weights) = row.as_chunks::<64>();
    for (codes, w) in codes.iter().zip(weights) {
        _mm_prefetch::<_MM_HINT_T0>(w.as_ptr().wrapping_add(AHEAD));
        // SAFETY: 64 codes each.
        let (codes, w) = unsafe {
            (
                _mm512_loadu_si512(codes.as_ptr().cast()),
                _mm512_loadu_si512(w.as_ptr().cast()),
            )
        };
        let unsigned = _mm512_xor_si512(codes, offset);
        with_offset = _mm512_dpbusd_epi32(with_offset, unsigned, w);
        of_offset = _mm512_dpbusd_epi32(of_offset, offset, w);
    }
    if !last.is_empty() {
        _mm_prefetch::<_MM_HINT_T0>(last_weights.as_ptr().wrapping_add(AHEAD));
        let mask = u64::MAX >> (64 - last.len());
        // SAFETY: the mask keeps the loads inside the slices; a code left out is zero.
        let (codes, w) = unsafe {
            (
                _mm512_maskz_loadu_epi8(mask, last.as_ptr()),
                _mm512_maskz_loadu_epi8(mask, last_weights.as_ptr()),
            )
        };
        let unsigned = _mm512_xor_si512(codes, offset);
        with_offset = _mm512_dpbusd_epi32(with_offset, unsigned, w);
        of_offset = _mm512_dpbusd_epi32(of_offset, offset, w);
    }
    _mm512_sub_epi32(with_offset, of_offset)
}

/// Lane i: the sum of all lanes of vector i.
#[target_feature(enable = "avx512f")]
#[inline]
fn sums_of_lanes(parts: [__m512i; 16]) -> __m512i {
    // Two vectors become one, in which a lane has half as many terms left to add.
    let words = |a, b| _mm512_add_epi32(_mm512_unpacklo_epi32(a, b), _mm512_unpackhi_epi32(a, b));
    let pairs = |a, b| _mm512_add_epi32(_mm512_unpacklo_epi64(a, b), _mm512_unpackhi_epi64(a, b));
    let fours = |a, b| {
        let even = _mm512_shuffle_i32x4::<0b10_00_10_00>(a, b);
        let odd = _mm512_shuffle_i32x4::<0b11_01_11_01>(a, b);
        _mm512_add_epi32(even, odd)
    };
    let of_four = |i: usize| {
        pairs(
            words(parts[4 * i], parts[4 * i + 1]),
            words(parts[4 * i + 2], parts[4 * i + 3]),
        )
    };
    fours(fours(of_four(0), of_four(1)), fours(of_four(2), of_four(3)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::isa::Isa;

    #[test]
    fn lanes_are_summed_each_into_its_own() {
        if !Isa::available().contains(&Isa::Avx512) {
            eprintln!("not run: no AVX-512");
            return;
        }
        let parts: [[i32; 16]; 16] =
            std::array::from_fn(|i| std::array::from_fn(|j| 1000 * i as i32 + (j * j) as i32));
        // SAFETY: the instruction set was found; the types are as long.
        let sums: [i32; 16] = unsafe {
            std::mem::transmute(sums_of_lanes(std::mem::transmute::<
                [[i32; 16]; 16],
                [__m512i; 16],
            >(parts)))
        };
        for i in 0..16 {
            assert_eq!(sums[i], parts[i].iter().sum::<i32>(), "{i}");
        }
    }
}
