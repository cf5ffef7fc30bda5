//! The f32 operations and functions of an arithmetic: what `⊗`, `⊕`, fma, exp, log1p and division
//! mean in a step. Steps are generic over [`RealMath`]; [`RealRules`] is the data that names one.

use super::elementary;
use serde::{Deserialize, Serialize};

/// The f32 operations of an arithmetic. All are pure functions of their operands' bits.
pub trait RealMath: Copy + Send + Sync + 'static {
    /// `a ⊗ b`.
    fn mul(a: f32, b: f32) -> f32;
    /// `a ⊕ b`.
    fn add(a: f32, b: f32) -> f32;
    /// `a·b + c`, rounded once.
    fn fma(a: f32, b: f32, c: f32) -> f32;
    /// Quotient `n / d` as this arithmetic divides.
    fn div(n: f32, d: f32) -> f32;
    /// `exp(x)`.
    fn exp(x: f32) -> f32;
    /// `exp(-x)`, which the kernels reach with one multiplication by −log2 e.
    fn exp_neg(x: f32) -> f32;
    /// `log(1 + a)` for `a ≥ 0`.
    fn log1p(a: f32) -> f32;

    /// `x` if `x > 20`, else `log1p(exp(x))`.
    #[inline(always)]
    fn softplus(x: f32) -> f32 {
        let soft = Self::log1p(Self::exp(x));
        std::hint::select_unpredictable(x > 20.0, x, soft)
    }

    /// `n / (1 + exp(-z))`: SiLU when `n = z`, the gate when `n = out ⊗ z`.
    #[inline(always)]
    fn times_sigmoid(n: f32, z: f32) -> f32 {
        Self::div(n, Self::add(1.0, Self::exp_neg(z)))
    }
}

/// Names a set of f32 operations.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum RealRules {
    /// Every operation correctly rounded (nearest even), subnormals kept: [`Ieee`].
    CorrectlyRounded,
    /// Special-function unit, subnormals flushed to zero: [`CudaFast`](super::sfu::CudaFast).
    SpecialFunctionUnit,
    /// Special-function unit with subnormals kept and scaled division:
    /// [`CudaSubnormal`](super::sfu::CudaSubnormal).
    SpecialFunctionUnitSubnormal,
}

/// Correctly rounded operations: IEEE 754 arithmetic, and exp and log1p whose every result is the
/// nearest f32 to the true value.
#[derive(Clone, Copy, Debug)]
pub struct Ieee;

impl RealMath for Ieee {
    #[inline(always)]
    fn mul(a: f32, b: f32) -> f32 {
        a * b
    }
    #[inline(always)]
    fn add(a: f32, b: f32) -> f32 {
        a + b
    }
    #[inline(always)]
    fn fma(a: f32, b: f32, c: f32) -> f32 {
        a.mul_add(b, c)
    }
    #[inline(always)]
    fn div(n: f32, d: f32) -> f32 {
        n / d
    }
    #[inline(always)]
    fn exp(x: f32) -> f32 {
        elementary::exp(x)
    }
    #[inline(always)]
    fn exp_neg(x: f32) -> f32 {
        elementary::exp(-x)
    }
    #[inline(always)]
    fn log1p(a: f32) -> f32 {
        elementary::log1p(a)
    }
}
