//! binary16 by the machine's own conversions, AVX-512. The scalar code is in [`crate::arith::binary16`].

use crate::isa::Isa;
use half::f16;
use std::arch::x86_64::*;

/// [`crate::arith::binary16::narrow`], if the machine can.
pub(crate) fn narrow(values: &[f32], out: &mut [f16]) -> bool {
    if Isa::current() < Isa::Avx512 {
        return false;
    }
    // SAFETY: the instruction set was found.
    unsafe { narrow_lanes(values, out) };
    true
}

/// [`crate::arith::binary16::widen`], if the machine can.
pub(crate) fn widen(values: &[f16], out: &mut [f32]) -> bool {
    if Isa::current() < Isa::Avx512 {
        return false;
    }
    // SAFETY: the instruction set was found.
    unsafe { widen_lanes(values, out) };
    true
}

#[target_feature(enable = "avx2,fma,f16c,avx512f,avx512bw,avx512dq,avx512vl")]
fn narrow_lanes(values: &[f32], out: &mut [f16]) {
    assert_eq!(values.len(), out.len());
    for (values, out) in values.chunks(16).zip(out.chunks_mut(16)) {
        let mask = u16::MAX >> (16 - values.len());
        // SAFETY: the mask keeps load and store inside the slices.
        unsafe {
            let v = _mm512_maskz_loadu_ps(mask, values.as_ptr());
            let halves = _mm512_cvtps_ph::<_MM_FROUND_TO_NEAREST_INT>(v);
            _mm256_mask_storeu_epi16(out.as_mut_ptr().cast(), mask, halves);
        }
    }
}

#[target_feature(enable = "avx2,fma,f16c,avx512f,avx512bw,avx512dq,avx512vl")]
fn widen_lanes(values: &[f16], out: &mut [f32]) {
    assert_eq!(values.len(), out.len());
    for (values, out) in values.chunks(16).zip(out.chunks_mut(16)) {
        let mask = u16::MAX >> (16 - values.len());
        // SAFETY: the mask keeps load and store inside the slices.
        unsafe {
            let halves = _mm256_maskz_loadu_epi16(mask, values.as_ptr().cast());
            _mm512_mask_storeu_ps(out.as_mut_ptr(), mask, _mm512_cvtph_ps(halves));
        }
    }
}
