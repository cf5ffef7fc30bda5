//! The short strides of a Hadamard transform with AVX-512. The scalar code is in [`crate::arith::hadamard`].

use crate::isa::Isa;
use std::arch::x86_64::*;

/// Elements whose butterflies of strides 1, 2, …, 64 stay among themselves: eight vectors.
pub(crate) const LONG: usize = 128;

/// All butterflies of strides 1 to 64 of each [`LONG`] elements, if the machine can: `a+b` in the low place,
/// `a−b` in the high one. The length is a multiple of [`LONG`].
pub(crate) fn short_strides(values: &mut [f32]) -> bool {
    if Isa::current() < Isa::Avx512 {
        return false;
    }
    // SAFETY: the instruction set was found.
    unsafe { of_long(values) };
    true
}

#[target_feature(enable = "avx512f")]
fn of_long(values: &mut [f32]) {
    for long in values.as_chunks_mut::<LONG>().0 {
        let mut v = [_mm512_setzero_ps(); 8];
        for (v, short) in v.iter_mut().zip(long.as_chunks::<16>().0) {
            // SAFETY: 16 values.
            *v = of_short(unsafe { _mm512_loadu_ps(short.as_ptr()) });
        }
        for stride in [1, 2, 4] {
            for i in (0..8).filter(|i| i & stride == 0) {
                let (a, b) = (v[i], v[i + stride]);
                (v[i], v[i + stride]) = (_mm512_add_ps(a, b), _mm512_sub_ps(a, b));
            }
        }
        for (v, short) in v.iter().zip(long.as_chunks_mut::<16>().0) {
            // SAFETY: 16 values.
            unsafe { _mm512_storeu_ps(short.as_mut_ptr(), *v) };
        }
    }
}

/// Strides 1, 2, 4 and 8: each lane meets its partner, which another order of the lanes brings to it.
#[target_feature(enable = "avx512f")]
#[inline]
fn of_short(v: __m512) -> __m512 {
    let v = meet(
        v,
        _mm512_permute_ps::<0b10_11_00_01>(v),
        0b1010_1010_1010_1010,
    );
    let v = meet(
        v,
        _mm512_permute_ps::<0b01_00_11_10>(v),
        0b1100_1100_1100_1100,
    );
    let v = meet(v, _mm512_shuffle_f32x4::<0b10_11_00_01>(v, v), 0xF0F0);
    meet(v, _mm512_shuffle_f32x4::<0b01_00_11_10>(v, v), 0xFF00)
}

/// `a+b`, and `a−b` in the lanes that hold b.
#[target_feature(enable = "avx512f")]
#[inline]
fn meet(v: __m512, partner: __m512, high: __mmask16) -> __m512 {
    _mm512_mask_sub_ps(_mm512_add_ps(v, partner), high, partner, v)
}
