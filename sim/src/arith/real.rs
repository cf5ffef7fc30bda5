//! The f32 operations and functions of an arithmetic: what `⊗`, `⊕`, fma, exp, log1p and division
//! mean in a step. Steps are generic over [`RealMath`]; [`RealRules`] is the data that names one.

use super::elementary;
use crate::isa::{Kernel, dispatch};
use serde::{Deserialize, Serialize};
use std::marker::PhantomData;

/// Channels side by side where steps work on channels.
pub const LANES: usize = 16;
/// One value for each of them.
pub type Lanes = [f32; LANES];

/// One value for each lane, from values read before: no store lies between the reads, which is what
/// lets the compiler see a vector in the loop.
#[inline(always)]
pub(crate) fn lanes(value: impl Fn(usize) -> f32) -> Lanes {
    let mut lanes = [0.0; LANES];
    for e in 0..LANES {
        lanes[e] = value(e);
    }
    lanes
}

/// A function of an arithmetic and the values it is asked for.
#[derive(Debug)]
pub enum Slices<'a> {
    /// `v ← softplus(v)`.
    Softplus(&'a mut [f32]),
    /// `v ← times_sigmoid(v, v)`.
    Silu(&'a mut [f32]),
    /// `n ← times_sigmoid(n, z)`, pair by pair.
    TimesSigmoid(&'a mut [f32], &'a [f32]),
    /// `decay ← exp_neg(alpha ⊗ delta)`, a row of `delta` for each row of `decay`.
    Decays(&'a Lanes, &'a [Lanes], &'a mut [Lanes]),
}

/// The f32 operations of an arithmetic, those of IEEE 754 where it does not say otherwise. All are pure functions of
/// their operands' bits.
pub trait RealMath: Copy + Send + Sync + 'static {
    /// The same arithmetic for operands that are results of it: what it does to operands before it
    /// uses them is done.
    type OfResults: RealMath;

    /// Whether a subnormal result of a sum, a product or an fma becomes a zero of its sign. Else these are the
    /// operations of IEEE 754.
    const FLUSHES: bool = false;

    /// `x` as this arithmetic takes an operand.
    #[inline(always)]
    fn operand(x: f32) -> f32 {
        x
    }
    /// `a ⊗ b`.
    #[inline(always)]
    fn mul(a: f32, b: f32) -> f32 {
        a * b
    }
    /// `a ⊕ b`.
    #[inline(always)]
    fn add(a: f32, b: f32) -> f32 {
        a + b
    }
    /// `a·b + c`, rounded once.
    #[inline(always)]
    fn fma(a: f32, b: f32, c: f32) -> f32 {
        a.mul_add(b, c)
    }
    /// Quotient `n / d` as this arithmetic divides.
    #[inline(always)]
    fn div(n: f32, d: f32) -> f32 {
        n / d
    }
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
        Self::by_sigmoid(n, Self::sigmoid_divisor(z))
    }

    /// What z alone decides of [`RealMath::times_sigmoid`]: `1 + exp(-z)`, or what this arithmetic makes of it
    /// before n comes in.
    #[inline(always)]
    fn sigmoid_divisor(z: f32) -> f32 {
        Self::add(1.0, Self::exp_neg(z))
    }

    /// `times_sigmoid(n, z)` from `sigmoid_divisor(z)`.
    #[inline(always)]
    fn by_sigmoid(n: f32, divisor: f32) -> f32 {
        Self::div(n, divisor)
    }

    /// Computes `slices` by code of its own for the machine's lanes and returns true, or returns
    /// false. The functions below say what the results are.
    #[inline(always)]
    fn on_lanes(_: Slices) -> bool {
        false
    }

    /// [`Slices::Softplus`].
    #[inline(always)]
    fn softplus_slice(values: &mut [f32]) {
        if !Self::on_lanes(Slices::Softplus(values)) {
            one_by_one::<Self>(Slices::Softplus(values));
        }
    }

    /// [`Slices::Silu`].
    #[inline(always)]
    fn silu_slice(values: &mut [f32]) {
        if !Self::on_lanes(Slices::Silu(values)) {
            one_by_one::<Self>(Slices::Silu(values));
        }
    }

    /// [`Slices::TimesSigmoid`].
    #[inline(always)]
    fn times_sigmoid_slice(n: &mut [f32], z: &[f32]) {
        if !Self::on_lanes(Slices::TimesSigmoid(n, z)) {
            one_by_one::<Self>(Slices::TimesSigmoid(n, z));
        }
    }

    /// [`Slices::Decays`].
    #[inline(always)]
    fn decays(alpha: &Lanes, delta: &[Lanes], decay: &mut [Lanes]) {
        if !Self::on_lanes(Slices::Decays(alpha, delta, decay)) {
            one_by_one::<Self>(Slices::Decays(alpha, delta, decay));
        }
    }
}

/// Computes `slices` value by value. Not inlined: exp and log1p in every loop of every step would be
/// most of the program, and of the time to compile it.
#[inline(never)]
fn one_by_one<R: RealMath>(slices: Slices) {
    dispatch(OneByOne::<R>(slices, PhantomData));
}

struct OneByOne<'a, R>(Slices<'a>, PhantomData<R>);

impl<R: RealMath> Kernel for OneByOne<'_, R> {
    type Output = ();

    #[inline(always)]
    fn run(self) {
        match self.0 {
            Slices::Softplus(values) => {
                for v in values {
                    *v = R::softplus(*v);
                }
            }
            Slices::Silu(values) => {
                for v in values {
                    *v = R::times_sigmoid(*v, *v);
                }
            }
            Slices::TimesSigmoid(n, z) => {
                for (n, z) in n.iter_mut().zip(z) {
                    *n = R::times_sigmoid(*n, *z);
                }
            }
            Slices::Decays(alpha, delta, decay) => {
                let alpha = *alpha;
                for (decay, delta) in decay.iter_mut().zip(delta) {
                    for e in 0..LANES {
                        decay[e] = R::exp_neg(R::mul(alpha[e], delta[e]));
                    }
                }
            }
        }
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
    /// IEEE operations, subnormals kept, and CUDA's exp and log1p without fast math:
    /// [`CudaLibm`](super::sfu::CudaLibm).
    CudaLibm,
    /// Special-function unit with subnormals kept and scaled division:
    /// [`CudaSubnormal`](super::sfu::CudaSubnormal).
    SpecialFunctionUnitSubnormal,
}

impl RealRules {
    /// Every set.
    pub const ALL: [RealRules; 4] = [
        RealRules::CorrectlyRounded,
        RealRules::SpecialFunctionUnit,
        RealRules::CudaLibm,
        RealRules::SpecialFunctionUnitSubnormal,
    ];
}

/// Correctly rounded operations: IEEE 754 arithmetic, and exp and log1p whose every result is the
/// nearest f32 to the true value.
#[derive(Clone, Copy, Debug)]
pub struct Ieee;

impl RealMath for Ieee {
    type OfResults = Self;

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

    #[cfg(target_arch = "x86_64")]
    #[inline(always)]
    fn on_lanes(slices: Slices) -> bool {
        crate::kernels::exp::correctly_rounded(slices)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::arith::sfu::CudaFast;

    fn around_the_threshold<M: RealMath>() {
        let soft = M::log1p(M::exp(20.0));
        assert_eq!(M::softplus(20.0).to_bits(), soft.to_bits());
        let above = 20.0f32.next_up();
        assert_eq!(M::softplus(above), above);
    }

    /// 20 itself is not above 20.
    #[test]
    fn softplus_passes_what_is_above_20() {
        around_the_threshold::<Ieee>();
        around_the_threshold::<CudaFast>();
    }
}
