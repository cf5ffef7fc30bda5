//! Linear steps: in_proj, x_proj, dt_proj, out_proj and the head.
//! Source: datapath specification, section 4, steps 2 and 7.

use crate::arith::requant::{QuantRule, ScaleOrder, to_f16};
use crate::arith::saturate::{Status, Tally};
use crate::kernels::matmul_f32::RealWeight;
use crate::kernels::matmul_i8::{Epilogue, matmul_i8};
use crate::quant::{Acc, Multiplier, QTensor, Scale};
use crate::trace::Tensor;
use half::f16;
use ndarray::{Array2, ArrayView2};

/// A weight `[out, in]` as the model has it; products turn what they need in the cache.
#[derive(Clone, Copy, Debug)]
pub enum LinearWeight<'m> {
    /// INT8.
    Int8 {
        /// The codes, `[out, in]`, row-major.
        codes: ArrayView2<'m, i8>,
        /// Real value of one step.
        scale: Scale,
    },
    /// Binary16, used as FP32.
    Float(ArrayView2<'m, f16>),
}

impl<'m> LinearWeight<'m> {
    /// An INT8 weight, or some rows of one.
    pub fn int8(codes: ArrayView2<'m, i8>, scale: Scale) -> Self {
        Self::Int8 { codes, scale }
    }

    /// A binary16 weight, or some rows of one, used as FP32.
    pub fn float(weight: ArrayView2<'m, f16>) -> Self {
        Self::Float(weight)
    }

    fn real(&self) -> RealWeight<'m> {
        match self {
            LinearWeight::Float(weight) => RealWeight::F16(*weight),
            LinearWeight::Int8 { codes, scale } => RealWeight::Codes(*codes, scale.get()),
        }
    }
}

/// What a linear step emits.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum LinearOutput {
    /// INT8 on the grid of this scale: `rne8(v)`.
    Int8(Scale),
    /// Binary16 of the real value.
    F16,
    /// The real value in FP32.
    F32,
}

/// Multiplies `x` (`[L, in]`) by `weight` (`[out, in]`).
///
/// Codes times codes are summed exactly and meet their scales in `order`; `input_scale` is the
/// scale this step believes its input to have. Any FP32 operand makes the product FP32: codes are
/// dequantized, the sum runs over k ascending by fma.
pub fn linear(
    x: &Tensor,
    input_scale: Option<Scale>,
    weight: &LinearWeight,
    order: ScaleOrder,
    output: LinearOutput,
) -> (Tensor, Status) {
    if let (Tensor::I8(x), LinearWeight::Int8 { codes, scale }) = (x, weight) {
        let s_in = input_scale.unwrap_or(x.scale);
        return integer_linear(&x.codes, s_in, *codes, *scale, order, output);
    }
    let real = match (x, input_scale) {
        (Tensor::I8(x), Some(scale)) => QTensor {
            codes: x.codes.clone(),
            scale,
        }
        .dequantize(),
        (x, _) => x.to_real(),
    };
    let v = weight.real().multiply(&real);
    match output {
        LinearOutput::Int8(scale) => {
            let (q, status) = QTensor::quantize(&v, scale, QuantRule::NEAREST_EVEN);
            (Tensor::I8(q), status)
        }
        LinearOutput::F16 => (Tensor::f16(&v), Status::default()),
        LinearOutput::F32 => (Tensor::F32(v), Status::default()),
    }
}

fn integer_linear(
    x: &Array2<i8>,
    s_in: Scale,
    weight: ArrayView2<i8>,
    b: Scale,
    order: ScaleOrder,
    output: LinearOutput,
) -> (Tensor, Status) {
    let dim = (x.nrows(), weight.nrows());
    match output {
        LinearOutput::Int8(scale) => {
            let a = s_in.ratio(scale);
            let mut codes = Array2::zeros(dim);
            let status = matmul_i8(x, weight, &mut codes, &Requantize { a, b, order });
            (Tensor::I8(QTensor { codes, scale }), status)
        }
        LinearOutput::F16 => {
            let a = s_in.to_real();
            let mut out = Array2::zeros(dim);
            let status = matmul_i8(x, weight, &mut out, &ToF16 { a, b, order });
            (Tensor::F16(out), status)
        }
        LinearOutput::F32 => {
            let a = s_in.to_real();
            let mut out = Array2::zeros(dim);
            let status = matmul_i8(x, weight, &mut out, &ToF32 { a, b, order });
            (Tensor::F32(out), status)
        }
    }
}

/// `rne8(v)` of accumulators.
pub struct Requantize {
    /// `s_in / s_out`.
    pub a: Multiplier,
    /// Weight scale.
    pub b: Scale,
    /// Order in which they meet.
    pub order: ScaleOrder,
}

impl Epilogue for Requantize {
    type Out = i8;

    #[inline(always)]
    fn row(&self, acc: &[i32], out: &mut [i8]) -> Status {
        // The linear kernels' epilogue: the value is in units of the grid already.
        let rule = QuantRule::NEAREST_EVEN;
        let mut tally = Tally::default();
        for (acc, out) in acc.iter().zip(out.iter_mut()) {
            let integer = rule
                .rounding
                .round(self.order.apply(self.a, self.b, Acc(*acc)));
            tally.add(integer);
            *out = rule.overflow.to_i8(integer);
        }
        tally.status(acc.len(), rule.overflow)
    }
}

/// The real value of accumulators.
struct ToF32 {
    a: Multiplier,
    b: Scale,
    order: ScaleOrder,
}

impl Epilogue for ToF32 {
    type Out = f32;

    #[inline(always)]
    fn row(&self, acc: &[i32], out: &mut [f32]) -> Status {
        for (acc, out) in acc.iter().zip(out) {
            *out = self.order.apply(self.a, self.b, Acc(*acc));
        }
        Status::default()
    }
}

/// The real value of accumulators as binary16.
struct ToF16 {
    a: Multiplier,
    b: Scale,
    order: ScaleOrder,
}

impl Epilogue for ToF16 {
    type Out = f16;

    #[inline(always)]
    fn row(&self, acc: &[i32], out: &mut [f16]) -> Status {
        for (acc, out) in acc.iter().zip(out) {
            *out = to_f16(self.order.apply(self.a, self.b, Acc(*acc)));
        }
        Status::default()
    }
}
