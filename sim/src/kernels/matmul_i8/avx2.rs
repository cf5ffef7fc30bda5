//! AVX2. `vpmaddwd` adds two products of i16 to each i32 lane: codes are widened while packing, and
//! no sum can overflow (2·2^14 a step, then as in the scalar code).

use super::packed::{self, Rows, Tile, Words};
use super::{Epilogue, Job, PANEL};
use crate::arith::saturate::Status;
use std::arch::x86_64::*;

pub(super) struct Avx2;

impl Tile for Avx2 {
    const GROUP: usize = 2;
    const K_MULTIPLE: usize = 1;
    // Sixteen registers hold 2 rows of 32 outputs and what they need.
    const ROWS: usize = 2;

    /// Row-major.
    fn pack_rows(rows: &[i8], k: usize, words: &mut [i32]) {
        let groups = k.div_ceil(2);
        for (row, words) in rows.chunks_exact(k).zip(words.chunks_exact_mut(groups)) {
            for (word, codes) in words.iter_mut().zip(row.chunks(2)) {
                *word = pair(codes);
            }
        }
    }

    fn start(_: i32) -> i32 {
        0
    }

    #[inline(always)]
    fn pack(weight: &[i8], k: usize, panel: &mut [Words]) {
        for (lane, row) in weight.chunks_exact(k).enumerate() {
            for (words, codes) in panel.iter_mut().zip(row.chunks(2)) {
                words[lane] = pair(codes);
            }
        }
    }

    #[inline(always)]
    fn multiply(
        words: &[i32],
        panel: &[Words],
        starts: &[i32],
        acc: &mut [Words],
        _: impl FnMut(),
    ) {
        // SAFETY: only `Avx2::panel` multiplies, with AVX2 enabled.
        unsafe {
            match starts.len() {
                1 => multiply::<1>(words, panel, acc),
                _ => multiply::<2>(words, panel, acc),
            }
        }
    }

    fn panel<E: Epilogue>(job: &Job<E>, x: &Rows, p: usize) -> Status {
        // SAFETY: `matmul_i8` chooses this tile where `Isa::Avx2` was detected.
        unsafe { panel(job, x, p) }
    }
}

/// Two codes, the second one zero if it is missing.
#[inline(always)]
fn pair(codes: &[i8]) -> i32 {
    let code = |i| codes.get(i).map_or(0, |q: &i8| i32::from(*q));
    code(0) & 0xffff | code(1) << 16
}

#[target_feature(enable = "avx2,fma,f16c")]
fn panel<E: Epilogue>(job: &Job<E>, x: &Rows, p: usize) -> Status {
    packed::panel::<Avx2, E>(job, x, p)
}

#[target_feature(enable = "avx2")]
#[inline]
fn multiply<const R: usize>(words: &[i32], panel: &[Words], acc: &mut [Words]) {
    const VECTORS: usize = PANEL / 8;
    let x: [&[i32]; R] = std::array::from_fn(|r| &words[r * panel.len()..][..panel.len()]);
    let mut sums = [[_mm256_setzero_si256(); VECTORS]; R];
    for (g, words) in panel.iter().enumerate() {
        // SAFETY: g is below the length of every row.
        let codes: [__m256i; R] =
            std::array::from_fn(|r| unsafe { _mm256_set1_epi32(*x[r].get_unchecked(g)) });
        for v in 0..VECTORS {
            // SAFETY: 8 words from there on.
            let w = unsafe { _mm256_loadu_si256(words[8 * v..][..8].as_ptr().cast()) };
            for r in 0..R {
                sums[r][v] = _mm256_add_epi32(sums[r][v], _mm256_madd_epi16(w, codes[r]));
            }
        }
    }
    for r in 0..R {
        for v in 0..VECTORS {
            let to = acc[r][8 * v..][..8].as_mut_ptr();
            // SAFETY: 8 words from `to` on.
            unsafe { _mm256_storeu_si256(to.cast(), sums[r][v]) };
        }
    }
}
