//! The functions of the kernels one by one, to be held against [`crate::arith`] over any inputs.

use super::device::Device;
use crate::arith::binary16::{from_f16, to_f16};
use crate::arith::real::{Ieee, RealMath};
use crate::arith::round::Rounding;
use crate::arith::saturate::Overflow;
use crate::arith::sfu::{self, CudaFast, CudaLibm, CudaSubnormal};
use crate::error::Result;
use std::sync::Arc;

/// A function of one f32, by the number that `convert.cu` gives it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs)] // each is the function of `arith` with the same name
pub enum Function {
    Exp,
    Log1p,
    Ex2,
    Rcp,
    Rsq,
    Log1pFast,
    Expa,
    Loga,
    Diva,
    F16,
    HalfAway,
    HalfAwayWrapped,
    NearestEven,
    SoftplusFast,
    SiluFast,
    SiluSubnormal,
    ExpLibm,
    Log1pLibm,
    SiluLibm,
    HalfAwayByAdding,
}

impl Function {
    /// Every function.
    pub const ALL: [Function; 20] = [
        Function::Exp,
        Function::Log1p,
        Function::Ex2,
        Function::Rcp,
        Function::Rsq,
        Function::Log1pFast,
        Function::Expa,
        Function::Loga,
        Function::Diva,
        Function::F16,
        Function::HalfAway,
        Function::HalfAwayWrapped,
        Function::NearestEven,
        Function::SoftplusFast,
        Function::SiluFast,
        Function::SiluSubnormal,
        Function::ExpLibm,
        Function::Log1pLibm,
        Function::SiluLibm,
        Function::HalfAwayByAdding,
    ];

    /// Whether its definition covers `x`: the fast logarithms are defined where the steps use them.
    pub fn covers(self, x: f32) -> bool {
        match self {
            Function::Log1pFast | Function::Log1pLibm => x >= 0.0,
            Function::Loga => x >= 1.0,
            // `rsq` is modelled for normal numbers.
            Function::Rsq => x.is_normal() && x > 0.0,
            _ => !x.is_nan(),
        }
    }

    /// Its value on the CPU, which is normative.
    pub fn value(self, x: f32) -> f32 {
        let code =
            |rounding: Rounding, overflow: Overflow| f32::from(overflow.to_i8(rounding.round(x)));
        match self {
            Function::Exp => Ieee::exp(x),
            Function::Log1p => Ieee::log1p(x),
            Function::Ex2 => sfu::ex2(x),
            Function::Rcp => sfu::rcp(x),
            Function::Rsq => sfu::rsq(x),
            Function::Log1pFast => sfu::log1p_fast(x),
            Function::Expa => sfu::expa(x),
            Function::Loga => sfu::loga(x),
            Function::Diva => sfu::diva(1.0, x),
            Function::F16 => from_f16(to_f16(x)),
            Function::HalfAway => code(Rounding::NearestTiesAway, Overflow::Saturate),
            Function::HalfAwayWrapped => code(Rounding::NearestTiesAway, Overflow::Wrap),
            Function::NearestEven => code(Rounding::NearestTiesToEven, Overflow::Saturate),
            Function::SoftplusFast => CudaFast::softplus(x),
            Function::SiluFast => CudaFast::times_sigmoid(x, x),
            Function::SiluSubnormal => CudaSubnormal::times_sigmoid(x, x),
            Function::ExpLibm => sfu::exp_libm(x),
            Function::Log1pLibm => sfu::log1p_libm(x),
            Function::SiluLibm => CudaLibm::times_sigmoid(x, x),
            Function::HalfAwayByAdding => code(Rounding::HalfAwayByAdding, Overflow::Saturate),
        }
    }
}

/// A function's values on the device.
///
/// # Errors
///
/// A device that refuses memory or work.
pub fn values(device: &Arc<Device>, function: Function, x: &[f32]) -> Result<Vec<f32>> {
    const THREADS: u32 = 256;
    let _running = device.enter()?;
    let (from, to) = (device.upload(x)?, device.allocate(x.len() * 4)?);
    let grid = [x.len().div_ceil(THREADS as usize).max(1) as u32, 1, 1];
    let (number, count) = (function as i32, x.len() as i32);
    device.launch(
        "convert",
        "function_values",
        grid,
        THREADS,
        0,
        &[&number, &from.pointer(), &to.pointer(), &count],
    )?;
    device.download(to.pointer(), x.len())
}
