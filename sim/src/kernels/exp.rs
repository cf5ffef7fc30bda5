//! Correctly rounded exp on 16 lanes of f32 with AVX-512, and the functions built on it.
//!
//! The scalar code ([`crate::arith::elementary::exp`], the specification) computes in f64. Here the result is
//! the sum of two f32, about 2^-35 from the true value, and rounded twice: a little above and a little
//! below. Where both roundings agree, so does the true value's, and that is what the scalar code
//! returns. Where they do not (about one lane in 1,000), and outside [−87, 88], the scalar code is asked.
//!
//! e^x = 2^(n/32)·e^r with r = x − n·log(2)/32, |r| < 0.0109: 2^(n mod 32 / 32) comes from a table of pairs, e^r
//! from four terms. `every_input` below compares all 2^32 inputs.

use crate::arith::elementary;
use crate::arith::real::Slices;
use crate::isa::Isa;
use std::arch::x86_64::*;

/// 32/log(2).
const PER_STEP: f32 = f32::from_bits(0x4238_AA3B);
/// log(2)/32 in three parts: multiples of 2^-17 and of 2^-30, whose products with n are exact, and the rest.
const STEP: [f32; 3] = [
    f32::from_bits(0x3CB1_7000),
    f32::from_bits(0x3586_0000),
    f32::from_bits(0xAE82_E308),
];
/// 1.5·2^23: adding it rounds to an integer and leaves that in the low bits.
const TO_INTEGER: f32 = 12_582_912.0;
/// 2^-34: how far above and below is looked, for a sum in [½, 2).
const DOUBT: f32 = f32::from_bits(0x2E80_0000);

/// 2^(j/32) rounded to f32.
#[rustfmt::skip]
static HIGH: [u32; 32] = [
    0x3F80_0000, 0x3F82_CD87, 0x3F85_AAC3, 0x3F88_980F, 0x3F8B_95C2, 0x3F8E_A43A, 0x3F91_C3D3, 0x3F94_F4F0,
    0x3F98_37F0, 0x3F9B_8D3A, 0x3F9E_F532, 0x3FA2_7043, 0x3FA5_FED7, 0x3FA9_A15B, 0x3FAD_583F, 0x3FB1_23F6,
    0x3FB5_04F3, 0x3FB8_FBAF, 0x3FBD_08A4, 0x3FC1_2C4D, 0x3FC5_672A, 0x3FC9_B9BE, 0x3FCE_248C, 0x3FD2_A81E,
    0x3FD7_44FD, 0x3FDB_FBB8, 0x3FE0_CCDF, 0x3FE5_B907, 0x3FEA_C0C7, 0x3FEF_E4BA, 0x3FF5_257D, 0x3FFA_83B3,
];

/// What that leaves, rounded to f32.
#[rustfmt::skip]
static LOW: [u32; 32] = [
    0x0000_0000, 0xB34E_A7A9, 0x334F_9891, 0xB37E_DA4B, 0xB260_ABA1, 0xB369_7465, 0x3367_5624, 0xB32E_0212,
    0x3323_1B71, 0xB30C_5563, 0x3341_2342, 0x30C3_125A, 0xB32C_9D5E, 0xB316_2B08, 0xB22D_EAF6, 0xB37C_5AA8,
    0x32CF_E77A, 0x330E_C5F7, 0xB341_4FE8, 0xB2D6_663E, 0x320A_A837, 0xB373_23A2, 0x3228_FC24, 0xB35C_1DAA,
    0xB2D4_A58A, 0xB350_4A1C, 0xB21E_AB59, 0xB244_1BE6, 0xB241_16DE, 0xB348_464A, 0x3229_2436, 0xB292_3758,
];

/// The nearest f32 to eˣ, and the lanes in which that is not certain.
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx2,fma,f16c")]
#[inline]
fn nearly_always(x: __m512) -> (__m512, __mmask16) {
    let of = |v: f32| _mm512_set1_ps(v);
    let shifted = _mm512_fmadd_ps(x, of(PER_STEP), of(TO_INTEGER));
    let n = _mm512_sub_ps(shifted, of(TO_INTEGER));
    // Exact; what the third part takes off is added to the small terms.
    let r = _mm512_fnmadd_ps(n, of(STEP[0]), x);
    let r = _mm512_fnmadd_ps(n, of(STEP[1]), r);
    let rest = _mm512_mul_ps(n, of(-STEP[2]));

    // e^(r + rest) − 1 − r.
    let p = _mm512_fmadd_ps(r, of(1.0 / 24.0), of(1.0 / 6.0));
    let p = _mm512_fmadd_ps(r, p, of(0.5));
    let small = _mm512_fmadd_ps(_mm512_mul_ps(r, r), p, _mm512_fmadd_ps(rest, r, rest));

    // (high + low)·(1 + r + small) as sum + error.
    let (high, low) = (of_step(&HIGH, shifted), of_step(&LOW, shifted));
    let product = _mm512_mul_ps(high, r);
    let lost = _mm512_fmsub_ps(high, r, product);
    let sum = _mm512_add_ps(high, product);
    let error = _mm512_sub_ps(product, _mm512_sub_ps(sum, high));
    let terms = _mm512_fmadd_ps(low, r, _mm512_add_ps(low, lost));
    let error = _mm512_add_ps(_mm512_fmadd_ps(high, small, terms), error);

    let above = _mm512_add_ps(sum, _mm512_add_ps(error, of(DOUBT)));
    let below = _mm512_add_ps(sum, _mm512_sub_ps(error, of(DOUBT)));
    let unsure = _mm512_cmp_ps_mask::<_CMP_NEQ_UQ>(above, below);
    // Results are normal inside, so that scaling is exact.
    let inside = _mm512_cmp_ps_mask::<_CMP_GE_OQ>(x, of(-87.0));
    let inside = _mm512_mask_cmp_ps_mask::<_CMP_LE_OQ>(inside, x, of(88.0));
    // Takes the floor of n/32.
    let y = _mm512_scalef_ps(above, _mm512_mul_ps(n, of(1.0 / 32.0)));
    (y, unsure | !inside)
}

/// The entries for the low five bits of each lane.
#[target_feature(enable = "avx512f")]
#[inline]
fn of_step(table: &[u32; 32], shifted: __m512) -> __m512 {
    let from = table.as_ptr().cast::<f32>();
    // SAFETY: twice 16 words.
    let (first, second) = unsafe { (_mm512_loadu_ps(from), _mm512_loadu_ps(from.add(16))) };
    _mm512_permutex2var_ps(first, _mm512_castps_si512(shifted), second)
}

/// The nearest f32 to eˣ.
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx2,fma,f16c")]
#[inline]
fn exp(x: __m512) -> __m512 {
    let (y, unsure) = nearly_always(x);
    if unsure == 0 {
        y
    } else {
        by_definition(x, y, unsure)
    }
}

#[cold]
#[inline(never)]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx2,fma,f16c")]
fn by_definition(x: __m512, y: __m512, unsure: __mmask16) -> __m512 {
    // SAFETY: both types are 16 f32.
    let (x, mut y) = unsafe {
        (
            std::mem::transmute::<__m512, [f32; 16]>(x),
            std::mem::transmute::<__m512, [f32; 16]>(y),
        )
    };
    let mut rest = unsure;
    while rest != 0 {
        let e = rest.trailing_zeros() as usize;
        y[e] = elementary::exp(x[e]);
        rest &= rest - 1;
    }
    // SAFETY: as above.
    unsafe { std::mem::transmute::<[f32; 16], __m512>(y) }
}

/// log(1 + e^x), x where it is above 20.
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx2,fma,f16c")]
#[inline]
fn softplus(x: __m512) -> __m512 {
    // SAFETY: both types are 16 f32.
    let exp = unsafe { std::mem::transmute::<__m512, [f32; 16]>(exp(x)) };
    let mut soft = [0.0; 16];
    for e in 0..16 {
        soft[e] = elementary::log1p(exp[e]);
    }
    // SAFETY: as above.
    let soft = unsafe { std::mem::transmute::<[f32; 16], __m512>(soft) };
    let large = _mm512_cmp_ps_mask::<_CMP_GT_OQ>(x, _mm512_set1_ps(20.0));
    _mm512_mask_mov_ps(soft, large, x)
}

/// n / (1 + e^-z).
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx2,fma,f16c")]
#[inline]
fn times_sigmoid(n: __m512, z: __m512) -> __m512 {
    let minus = _mm512_xor_ps(z, _mm512_set1_ps(-0.0));
    _mm512_div_ps(n, _mm512_add_ps(_mm512_set1_ps(1.0), exp(minus)))
}

slices! {
    "avx2,fma,f16c,avx512f,avx512bw,avx512dq,avx512vl";
    /// eˣ of each value.
    #[cfg(test)]
    fn exp_slice(values, x) = exp(x);
    /// `softplus` of each value.
    fn softplus_slice(values, x) = softplus(x);
    /// `times_sigmoid(value, z)` for each pair.
    fn times_sigmoid_slice(values, n, z: z_lanes) = times_sigmoid(n, z_lanes);
    /// `times_sigmoid(value, value)` of each value.
    fn silu_slice(values, x) = times_sigmoid(x, x);
}

/// `exp_neg(alpha ⊗ delta)`: 16 channels, one row a token.
#[target_feature(enable = "avx2,fma,f16c,avx512f,avx512bw,avx512dq,avx512vl")]
fn decays(alpha: &[f32; 16], delta: &[[f32; 16]], decay: &mut [[f32; 16]]) {
    // SAFETY: 16 values each.
    unsafe {
        let alpha = _mm512_loadu_ps(alpha.as_ptr());
        let minus = _mm512_xor_ps(alpha, _mm512_set1_ps(-0.0));
        for (delta, decay) in delta.iter().zip(decay) {
            let x = _mm512_mul_ps(minus, _mm512_loadu_ps(delta.as_ptr()));
            _mm512_storeu_ps(decay.as_mut_ptr(), exp(x));
        }
    }
}

/// Computes `slices` as [`crate::arith::real::Ieee`] does, if the machine can.
pub(crate) fn correctly_rounded(slices: Slices) -> bool {
    if Isa::current() < Isa::Avx512 {
        return false;
    }
    // SAFETY: the instruction set was found.
    unsafe {
        match slices {
            Slices::Softplus(values) => softplus_slice(values),
            Slices::Silu(values) => silu_slice(values),
            Slices::TimesSigmoid(n, z) => times_sigmoid_slice(n, z),
            Slices::Decays(alpha, delta, decay) => decays(alpha, delta, decay),
        }
    }
    true
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::arith::real::{Ieee, RealMath};
    use rayon::prelude::*;

    /// Compares 2^16 inputs; returns how many differ.
    fn wrong(block: u32) -> usize {
        let inputs: Vec<f32> = (0..1 << 16)
            .map(|i| f32::from_bits(block << 16 | i))
            .collect();
        let mut got = inputs.clone();
        // SAFETY: the tests look for the instruction set.
        unsafe { exp_slice(&mut got) };
        let differs = |(x, got): (&f32, &f32)| got.to_bits() != elementary::exp(*x).to_bits();
        inputs
            .iter()
            .zip(&got)
            .filter(|pair| differs(*pair))
            .count()
    }

    fn has_lanes() -> bool {
        let found = Isa::available().contains(&Isa::Avx512);
        if !found {
            eprintln!("not run: no AVX-512");
        }
        found
    }

    #[test]
    fn one_input_in_61() {
        if has_lanes() {
            let count: usize = (0..1u32 << 16).into_par_iter().step_by(61).map(wrong).sum();
            assert_eq!(count, 0);
        }
    }

    /// The proof.
    #[test]
    #[ignore = "a minute: every f32; cargo test --release -p scalescope-sim --lib every_input -- --ignored"]
    fn every_input() {
        assert!(has_lanes());
        let count: usize = (0..1u32 << 16).into_par_iter().map(wrong).sum();
        assert_eq!(count, 0, "of 2^32");
    }

    #[test]
    fn what_is_built_on_it() {
        if !has_lanes() {
            return;
        }
        let values: Vec<f32> = (0..400_003u32)
            .map(|i| f32::from_bits(i.wrapping_mul(0x9E37_79B9)))
            .chain((0..100_000).map(|i| i as f32 * 0.001 - 50.0))
            .collect();
        let check = |lanes: &dyn Fn(&mut [f32]), scalar: &dyn Fn(f32) -> f32| {
            let mut got = values.clone();
            lanes(&mut got);
            for (x, got) in values.iter().zip(&got) {
                let want = scalar(*x);
                let same = got.to_bits() == want.to_bits() || got.is_nan() && want.is_nan();
                assert!(same, "{x:e}: {got:e}, not {want:e}");
            }
        };
        // SAFETY: looked for above.
        unsafe {
            check(&|v| softplus_slice(v), &Ieee::softplus);
            check(&|v| silu_slice(v), &|v| Ieee::times_sigmoid(v, v));
            check(
                &|z| {
                    let mut n = vec![0.3; z.len()];
                    times_sigmoid_slice(&mut n, z);
                    z.copy_from_slice(&n);
                },
                &|z| Ieee::times_sigmoid(0.3, z),
            );
        }
        let alpha: [f32; 16] = std::array::from_fn(|e| 1.0 + e as f32);
        let delta: Vec<[f32; 16]> = values.as_chunks().0.to_vec();
        let mut got = delta.clone();
        // SAFETY: looked for above.
        unsafe { decays(&alpha, &delta, &mut got) };
        for (delta, got) in delta.iter().zip(&got) {
            for e in 0..16 {
                let want = Ieee::exp_neg(alpha[e] * delta[e]);
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
}
