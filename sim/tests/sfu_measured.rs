//! The special-function unit against what an NVIDIA H200 returned: for every mantissa of ex2 and
//! rcp, and for samples of the functions built on them.

use crate::common::{npz, oracle};
use rayon::prelude::*;
use scalescope_sim::arith::real::RealMath;
use scalescope_sim::arith::sfu::{self, CudaFast};

#[test]
fn ex2_is_correct_rounding_plus_the_measured_correction() {
    let corrections = npz::corrections("ex2");
    let wrong: usize = (0..1u32 << 23)
        .into_par_iter()
        .filter(|m| {
            let x = f32::from_bits(0x3F80_0000 | m); // 1 + m/2^23, so the result is in [2, 4).
            let want =
                oracle::ex2_mantissa(*m).unwrap() as i32 + i32::from(corrections[*m as usize]);
            sfu::ex2(x).to_bits() as i32 != 0x4000_0000 + want
        })
        .count();
    assert_eq!(wrong, 0, "of 2^23 mantissas");
}

#[test]
fn rcp_is_correct_rounding_plus_the_measured_correction() {
    let corrections = npz::corrections("rcp");
    let wrong: usize = (0..1u32 << 23)
        .into_par_iter()
        .filter(|m| {
            let x = f32::from_bits(0x3F80_0000 | m);
            let want = oracle::rcp_mantissa(*m) as i32 + i32::from(corrections[*m as usize]);
            sfu::rcp(x).to_bits() as i32 != want
        })
        .count();
    assert_eq!(wrong, 0, "of 2^23 mantissas");
}

/// Four codes a byte as above, code = c + 1, but c goes down to −2 in eight places of 2^24: that
/// code, 255, was shifted into its byte with what fell out at the top lost.
#[test]
fn rsq_is_correct_rounding_plus_the_measured_correction() {
    for (parity, key) in [(0u32, "even"), (1, "odd")] {
        let packed: Vec<u8> = npz::read("tests/data/rsq_corrections_h200.npz", key);
        assert_eq!(packed.len(), 1 << 21);
        let wrong: usize = (0..1u32 << 21)
            .into_par_iter()
            .filter(|byte| {
                let code = |j: u32| {
                    let x = f32::from_bits((0x3F80_0000 + (parity << 23)) | (4 * byte + j));
                    // f64 has bits enough: no result lies so close to a midpoint.
                    let rounded = (1.0 / f64::from(x).sqrt()) as f32;
                    let c = sfu::rsq(x).to_bits() as i32 - rounded.to_bits() as i32;
                    ((c + 1) as u8) << (2 * j)
                };
                let byte = *byte as usize;
                (0..4).map(code).fold(0u8, u8::wrapping_add) != packed[byte]
            })
            .count();
        assert_eq!(wrong, 0, "{key}");
    }
    for (x, want) in [
        (4.0f32, 0.5f32),
        (0.25, 2.0),
        (1.0, 1.0),
        (f32::INFINITY, 0.0),
    ] {
        assert_eq!(sfu::rsq(x), want);
    }
    let subnormal = f32::from_bits(0x007F_FFFF);
    for (x, want) in [
        (0.0, f32::INFINITY),
        (-0.0, f32::NEG_INFINITY),
        (subnormal, f32::INFINITY),
        (-subnormal, f32::NEG_INFINITY),
        (f32::MIN_POSITIVE, 2f32.powi(63)),
    ] {
        assert_eq!(sfu::rsq(x), want, "{x:e}");
    }
    assert!(sfu::rsq(-1.0).is_nan() && sfu::rsq(-f32::MIN_POSITIVE).is_nan());
}

fn sample(key: &str) -> Vec<f32> {
    npz::read("tests/data/samples_h200.npz", key)
}

/// Compares bit for bit; returns how many differ.
fn differing(got: impl Iterator<Item = f32>, want: &str) -> usize {
    let want = sample(want);
    let got: Vec<f32> = got.collect();
    assert_eq!(got.len(), want.len());
    assert_eq!(got.len(), 20_000);
    got.iter()
        .zip(&want)
        .filter(|(g, w)| g.to_bits() != w.to_bits())
        .count()
}

#[test]
fn fast_functions_equal_the_device() {
    let each = |key: &str, f: fn(f32) -> f32| -> usize {
        let x = sample(&format!("{key}_x"));
        differing(x.into_iter().map(f), &format!("{key}_fast"))
    };
    assert_eq!(each("exp", CudaFast::exp), 0, "exp");
    assert_eq!(each("log1p", CudaFast::log1p), 0, "log1p");
    assert_eq!(each("softplus", CudaFast::softplus), 0, "softplus");
    assert_eq!(each("silu", |x| CudaFast::times_sigmoid(x, x)), 0, "silu");
    let quotients = sample("div_x").into_iter().zip(sample("div_y"));
    let wrong = differing(quotients.map(|(n, d)| CudaFast::div(n, d)), "div_fast");
    assert_eq!(wrong, 0, "div");
}
