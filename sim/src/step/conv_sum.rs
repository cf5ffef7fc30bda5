//! The integer sum over the taps of a convolution, in a register of a chosen width: the scalar form
//! for registers that the sum may not fit. Where it fits, `conv` sums exactly.

use super::conv::{ConvWeight, ConvWindow};
use crate::arith::accumulate::{Accumulated, Accumulator};
use crate::arith::real::RealRules;
use crate::arith::real::{Ieee, RealMath};
use crate::arith::sfu::{CudaFast, CudaSubnormal};
use ndarray::Array2;

/// Sums of a convolution, `[L, E]`, taps added oldest first; `None` unless codes meet codes of one
/// scale, or if no sum can leave the register.
pub fn narrow_sums(
    accumulator: Accumulator,
    weight: &ConvWeight,
    window: &ConvWindow,
) -> Option<(Array2<i32>, Accumulated)> {
    let (ConvWindow::Int8 { codes, .. }, Some(taps)) = (window, &weight.codes) else {
        return None;
    };
    if accumulator.holds((weight.taps() as u64) << 14) {
        return None;
    }
    let e = weight.channels;
    let mut seen = Accumulated::default();
    let dim = (codes.nrows() + 1 - weight.taps(), e);
    let sums = Array2::from_shape_fn(dim, |(t, c)| {
        let products = taps.iter().skip(c).step_by(e).enumerate();
        let (sum, now) = accumulator
            .sum(products.map(|(tap, w)| i64::from(*w) * i64::from(codes[(t + tap, c)])));
        seen += now;
        sum as i32
    });
    Some((sums, seen))
}

/// `silu(fma(s_w ⊗ s_x, f32(sum), s_b ⊗ bias))` of sums, as `conv_silu` makes them of its own.
pub fn silu_of_sums(
    real: RealRules,
    weight: &ConvWeight,
    input_scale: f32,
    sums: &Array2<i32>,
) -> Array2<f32> {
    match real {
        RealRules::CorrectlyRounded => of_sums::<Ieee>(weight, input_scale, sums),
        RealRules::SpecialFunctionUnit => of_sums::<CudaFast>(weight, input_scale, sums),
        RealRules::SpecialFunctionUnitSubnormal => {
            of_sums::<CudaSubnormal>(weight, input_scale, sums)
        }
    }
}

fn of_sums<R: RealMath>(weight: &ConvWeight, input_scale: f32, sums: &Array2<i32>) -> Array2<f32> {
    let scale = R::mul(weight.tap_scale, input_scale);
    Array2::from_shape_fn(sums.dim(), |(t, c)| {
        let bias = R::mul(weight.bias_scale, weight.bias[c]);
        let v = R::fma(scale, sums[(t, c)] as f32, bias);
        R::times_sigmoid(v, v)
    })
}
