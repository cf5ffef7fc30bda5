//! A scan whose numbers are f32 throughout.

use super::{Alu, Channel, Functions, ScanSeen, StateBc, gate};
use crate::arith::binary16::{from_f16, to_f16};
use crate::arith::real::{Ieee, RealMath};

/// f32 throughout, as `Fused`.
pub(super) struct Float {
    /// Whether each stored state is rounded to binary16.
    pub half: bool,
    pub functions: Functions,
}

impl Alu for Float {
    type Value = f32;

    #[inline(always)]
    fn delta(&self, c: &Channel, t: usize, seen: &mut ScanSeen) -> f32 {
        let dt = c.biased_dt(t);
        match &self.functions.softplus {
            None => Ieee::softplus(dt),
            Some(unit) => unit.real(dt.into(), &mut seen.softplus) as f32,
        }
    }

    #[inline(always)]
    fn alpha(&self, alpha: f32) -> f32 {
        alpha
    }

    #[inline(always)]
    fn decay(&self, alpha: f32, delta: f32, seen: &mut ScanSeen) -> f32 {
        let exponent = alpha * delta;
        match &self.functions.exp {
            None => Ieee::exp_neg(exponent),
            Some(unit) => unit.real(-f64::from(exponent), &mut seen.exp) as f32,
        }
    }

    #[inline(always)]
    fn drive(&self, c: &Channel, bc: &StateBc, t: usize, delta: f32) -> f32 {
        bc.b.real(t) * (delta * c.u.real(t))
    }

    #[inline(always)]
    fn compose(&self, later: f32, earlier: f32) -> f32 {
        later * earlier
    }

    #[inline(always)]
    fn update(&self, a: f32, x: f32, b: f32, _: u16, _: &mut ScanSeen) -> f32 {
        let x = Ieee::fma(a, x, b);
        if self.half { from_f16(to_f16(x)) } else { x }
    }

    #[inline(always)]
    fn settle(&self, x: f32, _: usize) -> f32 {
        x
    }

    #[inline(always)]
    fn load(&self, real: f32) -> f32 {
        real
    }

    #[inline(always)]
    fn store(&self, x: f32) -> f32 {
        x
    }

    #[inline(always)]
    fn first(&self, c: &Channel, t: usize, _: &mut ScanSeen) -> f32 {
        c.skip * c.u.real(t)
    }

    #[inline(always)]
    fn accumulate(&self, sum: f32, bc: &StateBc, t: usize, x: f32, _: &mut ScanSeen) -> f32 {
        Ieee::fma(x, bc.c.real(t), sum)
    }

    #[inline(always)]
    fn output(&self, sum: f32, c: &Channel, t: usize, seen: &mut ScanSeen) -> f32 {
        gate(sum, c, t, self.functions.silu.as_deref(), None, seen)
    }
}
