//! The f32 operations of the CUDA kernels, whose functions are those of the special-function unit.

use super::{
    LOG2_E, diva, ex2, exp_fast, exp_libm, expa, flush, log1p_fast, log1p_libm, loga, rcp,
};
use crate::arith::real::RealMath;
#[cfg(target_arch = "x86_64")]
use crate::{arith::real::Slices, kernels};

/// The arithmetic of the prefill kernels: subnormal operands and results flushed to zero, division
/// and functions by the special-function unit. Source: `docs/arithmetic.md`.
pub type CudaFast = Fast<false>;

/// [`CudaFast`], or (`FLUSHED`) the same for operands that are flushed already.
#[derive(Clone, Copy, Debug)]
pub struct Fast<const FLUSHED: bool>;

impl<const FLUSHED: bool> RealMath for Fast<FLUSHED> {
    type OfResults = Fast<true>;

    const FLUSHES: bool = true;

    #[inline(always)]
    fn operand(x: f32) -> f32 {
        if FLUSHED { x } else { flush(x) }
    }
    #[inline(always)]
    fn mul(a: f32, b: f32) -> f32 {
        flush(Self::operand(a) * Self::operand(b))
    }
    #[inline(always)]
    fn add(a: f32, b: f32) -> f32 {
        flush(Self::operand(a) + Self::operand(b))
    }
    #[inline(always)]
    fn fma(a: f32, b: f32, c: f32) -> f32 {
        flush(Self::operand(a).mul_add(Self::operand(b), Self::operand(c)))
    }
    #[inline(always)]
    fn div(n: f32, d: f32) -> f32 {
        Self::mul(n, rcp(d))
    }
    /// A division is a product with the unit's reciprocal.
    #[inline(always)]
    fn sigmoid_divisor(z: f32) -> f32 {
        rcp(Self::add(1.0, Self::exp_neg(z)))
    }
    #[inline(always)]
    fn by_sigmoid(n: f32, reciprocal: f32) -> f32 {
        Self::mul(n, reciprocal)
    }
    #[inline(always)]
    fn exp(x: f32) -> f32 {
        exp_fast(x)
    }
    #[inline(always)]
    fn exp_neg(x: f32) -> f32 {
        ex2(Self::mul(x, -LOG2_E))
    }
    #[inline(always)]
    fn log1p(a: f32) -> f32 {
        log1p_fast(a)
    }

    #[cfg(target_arch = "x86_64")]
    #[inline(always)]
    fn on_lanes(slices: Slices) -> bool {
        kernels::sfu::fast::<FLUSHED>(slices)
    }
}

/// The arithmetic of PyTorch on a GPU: IEEE operations with subnormals kept, and CUDA's own exp and log1p
/// without fast math. Source: `docs/arithmetic.md`.
#[derive(Clone, Copy, Debug)]
pub struct CudaLibm;

impl RealMath for CudaLibm {
    type OfResults = Self;

    #[inline(always)]
    fn exp(x: f32) -> f32 {
        exp_libm(x)
    }
    #[inline(always)]
    fn exp_neg(x: f32) -> f32 {
        exp_libm(-x)
    }
    #[inline(always)]
    fn log1p(a: f32) -> f32 {
        log1p_libm(a)
    }

    #[cfg(target_arch = "x86_64")]
    #[inline(always)]
    fn on_lanes(slices: Slices) -> bool {
        kernels::sfu::libm(slices)
    }
}

/// The arithmetic of the decode kernels: IEEE operations with subnormals kept, division and
/// functions by the special-function unit. Source: `docs/arithmetic.md`.
#[derive(Clone, Copy, Debug)]
pub struct CudaSubnormal;

impl RealMath for CudaSubnormal {
    type OfResults = Self;

    #[inline(always)]
    fn div(n: f32, d: f32) -> f32 {
        diva(n, d)
    }
    #[inline(always)]
    fn exp(x: f32) -> f32 {
        expa(x)
    }
    #[inline(always)]
    fn exp_neg(x: f32) -> f32 {
        expa(-x)
    }
    #[inline(always)]
    fn log1p(a: f32) -> f32 {
        loga(a + 1.0)
    }
    /// `loga(expa(x) ⊕ 1)` for every x: the decode kernel has no threshold.
    #[inline(always)]
    fn softplus(x: f32) -> f32 {
        Self::log1p(Self::exp(x))
    }

    #[cfg(target_arch = "x86_64")]
    #[inline(always)]
    fn on_lanes(slices: Slices) -> bool {
        kernels::sfu::subnormal(slices)
    }
}
