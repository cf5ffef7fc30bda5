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

use super::packed::{self, Packed, Tile, Words};
use super::{Epilogue, Job, dots, panels};
use crate::arith::saturate::Status;
use crate::kernels::transpose::transpose_16x16;
use std::arch::x86_64::*;

/// 128 in each byte of a word.
const OFFSET: i32 = 0x8080_8080_u32 as i32;

pub(super) struct Vnni;

impl Tile for Vnni {
    const GROUP: usize = 4;

    #[inline(always)]
    fn word(codes: &[i8]) -> i32 {
        let mut bytes = [0u8; 4];
        for (byte, q) in bytes.iter_mut().zip(codes) {
            *byte = *q as u8;
        }
        i32::from_le_bytes(bytes)
    }

    #[inline(always)]
    fn start(row_sum: i32) -> i32 {
        row_sum.wrapping_mul(-128)
    }

    #[inline(always)]
    fn pack(weight: &[i8], k: usize, panel: &mut [Words]) {
        // SAFETY: only `Vnni::panel` packs, with AVX-512 enabled.
        unsafe { pack(weight, k, panel) }
    }

    #[inline(always)]
    fn multiply<const R: usize>(x: [&[i32]; R], panel: &[Words], start: [i32; R]) -> [Words; R] {
        // SAFETY: only `Vnni::panel` multiplies, with AVX-512 VNNI enabled.
        unsafe { multiply(x, panel, start) }
    }

    fn panel<E: Epilogue>(job: &Job<E>, x: &Packed, buffer: &mut [Words], p: usize) -> Status {
        // SAFETY: `matmul_i8` chooses this tile where `Isa::Avx512Vnni` was detected.
        unsafe { panel(job, x, buffer, p) }
    }
}

#[target_feature(enable = "avx2,fma,f16c,avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
fn panel<E: Epilogue>(job: &Job<E>, x: &Packed, buffer: &mut [Words], p: usize) -> Status {
    packed::panel::<Vnni, E>(job, x, buffer, p)
}

#[target_feature(enable = "avx512f,avx512bw")]
#[inline]
fn pack(weight: &[i8], k: usize, panel: &mut [Words]) {
    let rows = weight.len() / k;
    let offset = _mm512_set1_epi32(OFFSET);
    for (block, words) in panel.chunks_mut(16).enumerate() {
        let first = 64 * block;
        let present = (k - first).min(64);
        let mask = u64::MAX >> (64 - present);
        for half in 0..2 {
            let mut lanes = [_mm512_setzero_si512(); 16];
            for (lane, codes) in lanes.iter_mut().enumerate() {
                let row = 16 * half + lane;
                if row < rows {
                    let codes_from = weight[row * k + first..][..present].as_ptr();
                    // SAFETY: the mask keeps the load inside those `present` codes.
                    *codes = unsafe { _mm512_maskz_loadu_epi8(mask, codes_from) };
                }
            }
            let turned = transpose_16x16(lanes);
            for (word, codes) in words.iter_mut().zip(turned) {
                let to = word[16 * half..][..16].as_mut_ptr();
                // SAFETY: 16 words from `to` on.
                unsafe { _mm512_storeu_si512(to.cast(), _mm512_xor_si512(codes, offset)) };
            }
        }
    }
}

#[target_feature(enable = "avx512f,avx512vnni")]
#[inline]
fn multiply<const R: usize>(x: [&[i32]; R], panel: &[Words], start: [i32; R]) -> [Words; R] {
    let mut acc = [[_mm512_setzero_si512(); 2]; R];
    for (acc, start) in acc.iter_mut().zip(start) {
        *acc = [_mm512_set1_epi32(start); 2];
    }
    for x in x {
        assert_eq!(x.len(), panel.len());
    }
    for (g, words) in panel.iter().enumerate() {
        // SAFETY: 32 words each; g is below the length of every row.
        let w = unsafe {
            [
                _mm512_loadu_si512(words[..16].as_ptr().cast()),
                _mm512_loadu_si512(words[16..].as_ptr().cast()),
            ]
        };
        for r in 0..R {
            // SAFETY: as above.
            let codes = _mm512_set1_epi32(unsafe { *x[r].get_unchecked(g) });
            acc[r][0] = _mm512_dpbusd_epi32(acc[r][0], w[0], codes);
            acc[r][1] = _mm512_dpbusd_epi32(acc[r][1], w[1], codes);
        }
    }
    let mut out = [[0; 32]; R];
    for (out, acc) in out.iter_mut().zip(acc) {
        // SAFETY: two vectors of 16 words are 32 words.
        *out = unsafe { std::mem::transmute::<[__m512i; 2], Words>(acc) };
    }
    out
}

/// The one-row product: every row of the weight is read once, in order.
pub(super) fn dots<E: Epilogue>(job: &Job<E>) -> Status {
    panels(
        job,
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
