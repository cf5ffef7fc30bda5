//! The lanes against the scalar code.

use super::*;
use crate::arith::real::RealMath;
use crate::arith::sfu::{self, CudaFast, CudaLibm, CudaSubnormal, Fast};

fn has_lanes() -> bool {
    let found = Isa::available().contains(&Isa::Avx512Vbmi);
    if !found {
        eprintln!("not run: no AVX-512 VBMI");
    }
    found
}

/// Every mantissa at some exponents, every exponent at some mantissas, either sign.
fn words() -> impl Iterator<Item = u32> {
    let mantissas = |exponent: u32| {
        (0..1u32 << 23)
            .step_by(if exponent == 127 { 1 } else { 61 })
            .map(move |m| exponent << 23 | m)
    };
    let all = [0, 100, 118, 126, 127, 128, 132, 133, 134, 254, 255];
    let some = (0..1u32 << 17).map(|i| i << 14 | (i * 0x9E5) & 0x3FFF);
    let words = all.into_iter().flat_map(mantissas).chain(some);
    words.flat_map(|word| [word, word | SIGN])
}

fn check(lanes: unsafe fn(&mut [f32]), scalar: fn(f32) -> f32) {
    let mut block = Vec::with_capacity(1 << 12);
    let mut words = words().peekable();
    while words.peek().is_some() {
        block.clear();
        // An odd number, so that the last vector is not full.
        block.extend(words.by_ref().take(4093).map(f32::from_bits));
        let inputs = block.clone();
        // SAFETY: the caller looked for the instruction set.
        unsafe { lanes(&mut block) };
        for (x, got) in inputs.iter().zip(&block) {
            let want = scalar(*x);
            assert!(
                got.to_bits() == want.to_bits() || got.is_nan() && want.is_nan() && x.is_nan(),
                "{:08x}: {:08x}, not {:08x}",
                x.to_bits(),
                got.to_bits(),
                want.to_bits()
            );
        }
    }
}

#[test]
fn ex2_on_lanes() {
    if has_lanes() {
        // SAFETY: looked for.
        check(|v| unsafe { ex2_slice(v) }, sfu::ex2);
    }
}

#[test]
fn rcp_on_lanes() {
    if has_lanes() {
        // SAFETY: looked for.
        check(|v| unsafe { rcp_slice(v) }, sfu::rcp);
    }
}

#[test]
fn expa_on_lanes() {
    if has_lanes() {
        // SAFETY: looked for.
        check(|v| unsafe { expa_slice(v) }, sfu::expa);
    }
}

#[test]
fn exp_libm_on_lanes() {
    if has_lanes() {
        // SAFETY: looked for.
        check(|v| unsafe { exp_libm_slice(v) }, sfu::exp_libm);
    }
}

#[test]
fn softplus_on_lanes() {
    if has_lanes() {
        // SAFETY: looked for.
        check(|v| unsafe { softplus_fast_slice(v) }, CudaFast::softplus);
        check(|v| unsafe { softplus_libm_slice(v) }, CudaLibm::softplus);
        check(
            |v| unsafe { softplus_subnormal_slice(v) },
            CudaSubnormal::softplus,
        );
    }
}

#[test]
fn silu_on_lanes() {
    if has_lanes() {
        check(
            // SAFETY: looked for.
            |v| unsafe { silu_fast_slice(v) },
            |v| CudaFast::times_sigmoid(v, v),
        );
        check(
            // SAFETY: looked for.
            |v| unsafe {
                let z = v.to_vec();
                v.fill(0.3);
                times_sigmoid_fast_slice(v, &z)
            },
            |z| CudaFast::times_sigmoid(0.3, z),
        );
        check(
            // SAFETY: looked for.
            |v| unsafe { silu_libm_slice(v) },
            |v| CudaLibm::times_sigmoid(v, v),
        );
        check(
            // SAFETY: looked for.
            |v| unsafe {
                let z = v.to_vec();
                v.fill(0.3);
                times_sigmoid_libm_slice(v, &z)
            },
            |z| CudaLibm::times_sigmoid(0.3, z),
        );
    }
}

#[test]
fn decays_on_lanes() {
    if !has_lanes() {
        return;
    }
    for alpha in [0.0, 1e-38, 0.7, 3.3, 16.0, f32::INFINITY, f32::NAN] {
        let alpha: [f32; 16] = std::array::from_fn(|e| alpha * (1.0 + e as f32));
        let delta: Vec<[f32; 16]> = (0..100_000u32)
            .map(|t| {
                std::array::from_fn(|e| sfu::flush(f32::from_bits((t * 16 + e as u32) * 1340)))
            })
            .collect();
        let mut got = vec![[0.0; 16]; delta.len()];
        // SAFETY: looked for above.
        unsafe { decays_fast(&alpha, &delta, &mut got) };
        let fast = |a, d| Fast::<true>::exp_neg(Fast::<true>::mul(a, d));
        same(&alpha, &delta, &got, fast);
        // SAFETY: looked for above.
        unsafe { decays_subnormal(&alpha, &delta, &mut got) };
        same(&alpha, &delta, &got, |a, d| sfu::expa(-(a * d)));
        // SAFETY: looked for above.
        unsafe { decays_libm(&alpha, &delta, &mut got) };
        same(&alpha, &delta, &got, |a, d| sfu::exp_libm(-(a * d)));
    }
}

fn same(alpha: &[f32; 16], delta: &[[f32; 16]], got: &[[f32; 16]], want: impl Fn(f32, f32) -> f32) {
    for (delta, got) in delta.iter().zip(got) {
        for e in 0..16 {
            let want = want(alpha[e], delta[e]);
            assert_eq!(
                got[e].to_bits(),
                want.to_bits(),
                "{:e} {:e}",
                alpha[e],
                delta[e]
            );
        }
    }
}
