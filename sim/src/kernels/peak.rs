//! Loops that do nothing but the fastest instruction of a kind, for [`mod@crate::bench`].

use crate::isa::{Isa, Kernel, dispatch};
use std::hint::black_box;

/// Repetitions of a loop: some microseconds.
const REPEATS: usize = 1 << 10;

/// Whether the instruction set in use has an instruction for sums of INT8 products.
pub fn has_int8() -> bool {
    Isa::current() >= Isa::Avx2
}

/// INT8 products and sums in registers, as the matrix product makes them; returns how many
/// operations, two for each product.
///
/// # Panics
///
/// Without [`has_int8`].
pub fn int8() -> u64 {
    #[cfg(target_arch = "x86_64")]
    // SAFETY: each is used where its instruction set was found.
    unsafe {
        match Isa::current() {
            Isa::Baseline => {}
            Isa::Avx2 | Isa::Avx512 => return x86::madd(),
            Isa::Avx512Vnni | Isa::Avx512Vbmi => return x86::vnni(),
            Isa::Amx => return super::matmul_i8::amx_burst(REPEATS),
        }
    }
    panic!("no instruction for INT8 products");
}

/// FP32 fused multiply-adds in registers, or products and sums where there is no such instruction;
/// returns how many operations, two for each.
pub fn fp32() -> u64 {
    #[cfg(target_arch = "x86_64")]
    // SAFETY: each is used where its instruction set was found.
    unsafe {
        match Isa::current() {
            Isa::Baseline => {}
            Isa::Avx2 => return x86::fma_256(),
            _ => return x86::fma_512(),
        }
    }
    let factor = black_box([0.5f32; 16]);
    let mut sums = black_box([1.0f32; 16]);
    for _ in 0..REPEATS {
        for (sum, factor) in sums.iter_mut().zip(factor) {
            *sum = *sum * factor + 1.0;
        }
    }
    black_box(sums);
    (2 * 16 * REPEATS) as u64
}

/// The sum of all words, modulo 2^64.
pub fn read(words: &[u64]) -> u64 {
    dispatch(Read(words))
}

struct Read<'a>(&'a [u64]);

impl Kernel for Read<'_> {
    type Output = u64;

    #[inline(always)]
    fn run(self) -> u64 {
        self.0.iter().fold(0, |sum, word| sum.wrapping_add(*word))
    }
}

#[cfg(target_arch = "x86_64")]
mod x86 {
    use super::{REPEATS, black_box};
    use std::arch::x86_64::*;

    #[target_feature(enable = "avx2")]
    pub(super) fn madd() -> u64 {
        const CHAINS: usize = 12;
        let (a, b) = (
            black_box(_mm256_set1_epi8(1)),
            black_box(_mm256_set1_epi8(1)),
        );
        let mut sums = [_mm256_setzero_si256(); CHAINS];
        for _ in 0..REPEATS {
            for sum in &mut sums {
                // Both depend on the chain, so that no product leaves the loop.
                let product = _mm256_madd_epi16(_mm256_xor_si256(a, *sum), b);
                *sum = _mm256_add_epi32(*sum, product);
            }
        }
        black_box(sums);
        (2 * 16 * CHAINS * REPEATS) as u64
    }

    #[target_feature(enable = "avx2,fma")]
    pub(super) fn fma_256() -> u64 {
        const CHAINS: usize = 12;
        let factor = black_box(_mm256_set1_ps(0.5));
        let mut sums = [_mm256_set1_ps(1.0); CHAINS];
        for _ in 0..REPEATS {
            for sum in &mut sums {
                *sum = _mm256_fmadd_ps(*sum, factor, factor);
            }
        }
        black_box(sums);
        (2 * 8 * CHAINS * REPEATS) as u64
    }

    #[target_feature(enable = "avx512f")]
    pub(super) fn fma_512() -> u64 {
        const CHAINS: usize = 16;
        let factor = black_box(_mm512_set1_ps(0.5));
        let mut sums = [_mm512_set1_ps(1.0); CHAINS];
        for _ in 0..REPEATS {
            for sum in &mut sums {
                *sum = _mm512_fmadd_ps(*sum, factor, factor);
            }
        }
        black_box(sums);
        (2 * 16 * CHAINS * REPEATS) as u64
    }

    #[target_feature(enable = "avx512f,avx512vnni")]
    pub(super) fn vnni() -> u64 {
        const CHAINS: usize = 16;
        let (a, b) = (
            black_box(_mm512_set1_epi8(1)),
            black_box(_mm512_set1_epi8(1)),
        );
        let mut sums = [_mm512_setzero_si512(); CHAINS];
        for _ in 0..REPEATS {
            for sum in &mut sums {
                *sum = _mm512_dpbusd_epi32(*sum, a, b);
            }
        }
        black_box(sums);
        (2 * 64 * CHAINS * REPEATS) as u64
    }
}
