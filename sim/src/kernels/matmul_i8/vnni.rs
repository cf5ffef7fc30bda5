//! AVX-512 VNNI. `vpdpbusd` adds four products of an unsigned and a signed byte to each i32 lane,
//! but both our operands are signed. One of them is therefore offset by 128, which is flipping its
//! top bit, and the difference taken back:
//!
//! `Σ (w + 128)·x = Σ w·x + 128·Σ x`
//!
//! The packed product offsets w while packing; the accumulators of a row start at −128·Σx. The
//! one-row product offsets x and takes 128·Σw from a second `vpdpbusd` of w with the constant 128.
//! All sums are in i32 modulo 2^32 (`vpdpbusd`, not the saturating `vpdpbusds`; its four products
//! fit easily), so intermediate overflow is harmless: the result is the exact dot product modulo
//! 2^32, and that fits.

use super::packed::{self, Rows, Scratch, Tile, Words};
use super::{Epilogue, Job, dots, panels};
use crate::arith::saturate::Status;
use crate::kernels::transpose::{rows_to_words, transpose_16x16};
use std::arch::x86_64::*;

/// 128 in each byte of a word.
const OFFSET: i32 = 0x8080_8080_u32 as i32;

/// Rows whose words lie side by side in a packed tile.
const ROWS: usize = 16;

pub(super) struct Vnni;

impl Tile for Vnni {
    const GROUP: usize = 4;
    const UNIT: usize = 1;
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
    fn multiply(words: &[i32], rows: usize, panel: &[Words], starts: &[i32], acc: &mut [Words]) {
        let mut padded = [0; ROWS];
        padded[..rows].copy_from_slice(starts);
        let words = words.as_chunks().0;
        for first in (0..rows).step_by(8) {
            // SAFETY: only `Vnni::panel` multiplies, with AVX-512 VNNI enabled.
            unsafe { multiply(words, first, panel, &padded, acc) }
        }
    }

    fn panel<E: Epilogue>(job: &Job<E>, x: &Rows, scratch: &mut Scratch, p: usize) -> Status {
        // SAFETY: `matmul_i8` chooses this tile where `Isa::Avx512Vnni` was detected.
        unsafe { panel(job, x, scratch, p) }
    }
}

#[target_feature(enable = "avx2,fma,f16c,avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
fn panel<E: Epilogue>(job: &Job<E>, x: &Rows, scratch: &mut Scratch, p: usize) -> Status {
    packed::panel::<Vnni, E>(job, x, scratch, p)
}

#[target_feature(enable = "avx512f,avx512bw")]
fn pack_rows(rows: &[i8], k: usize, words: &mut [[i32; ROWS]]) {
    for (block, words) in words.chunks_mut(16).enumerate() {
        let turned = transpose_16x16(rows_to_words(rows, k, 64 * block));
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
            let turned = transpose_16x16(rows_to_words(rows, k, 64 * block));
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
    panels(
        job,
        job.out.rows(),
        || (),
        |(), p| {
            // SAFETY: `dots::run` calls this where `Isa::Avx512Vnni` was detected.
            unsafe { dots_panel(job, p) }
        },
    )
}

#[target_feature(enable = "avx2,fma,f16c,avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
fn dots_panel<E: Epilogue>(job: &Job<E>, p: usize) -> Status {
    dots::panel(job, p, |x, weight, acc| {
        let k = x.len();
        let mut fours = acc.chunks_exact_mut(4);
        let mut rows = weight.chunks_exact(4 * k);
        for (acc, rows) in fours.by_ref().zip(rows.by_ref()) {
            acc.copy_from_slice(&dots_of::<4>(x, rows));
        }
        let rest = fours.into_remainder().iter_mut();
        for (acc, row) in rest.zip(rows.remainder().chunks_exact(k)) {
            [*acc] = dots_of::<1>(x, row);
        }
    })
}

/// The dot products of x with R rows of a weight: R chains of sums that do not wait for each other.
#[target_feature(enable = "avx512f,avx512bw,avx512vnni")]
#[inline]
fn dots_of<const R: usize>(x: &[i8], rows: &[i8]) -> [i32; R] {
    let k = x.len();
    assert_eq!(rows.len(), R * k);
    let offset = _mm512_set1_epi32(OFFSET);
    let mut with_offset = [_mm512_setzero_si512(); R];
    let mut of_offset = [_mm512_setzero_si512(); R];
    for (i, codes) in x.chunks(64).enumerate() {
        let mask = u64::MAX >> (64 - codes.len());
        // SAFETY: the mask keeps the load inside `codes`.
        let unsigned = unsafe { _mm512_maskz_loadu_epi8(mask, codes.as_ptr()) };
        let unsigned = _mm512_xor_si512(unsigned, offset);
        for r in 0..R {
            // SAFETY: inside row r, as above; a code left out is zero.
            let w = unsafe { _mm512_maskz_loadu_epi8(mask, rows.as_ptr().add(r * k + 64 * i)) };
            with_offset[r] = _mm512_dpbusd_epi32(with_offset[r], unsigned, w);
            of_offset[r] = _mm512_dpbusd_epi32(of_offset[r], offset, w);
        }
    }
    let mut sums = [0; R];
    for r in 0..R {
        sums[r] = _mm512_reduce_add_epi32(_mm512_sub_epi32(with_offset[r], of_offset[r]));
    }
    sums
}
