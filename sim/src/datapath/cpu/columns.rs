//! Cutting and joining tensors by rows and columns.

use crate::quant::QTensor;
use crate::trace::Tensor;
use ndarray::{Array2, ArrayView2, Axis, concatenate, s};
use std::ops::Range;

pub(super) fn transposed<T: Copy>(values: &Array2<T>) -> Array2<T> {
    values.t().as_standard_layout().into_owned()
}

pub(super) fn stack<T: Copy>(above: ArrayView2<T>, below: &Array2<T>) -> Array2<T> {
    concatenate(Axis(0), &[above, below.view()]).expect("both have E columns")
}

pub(super) fn last_rows<T: Copy>(rows: &Array2<T>, count: usize) -> Array2<T> {
    rows.slice(s![rows.nrows() - count.., ..]).to_owned()
}

/// Columns of a tensor, row-major.
pub(crate) fn columns(value: &Tensor, range: &Range<usize>) -> Tensor {
    let cut = s![.., range.clone()];
    match value {
        Tensor::I8(q) => Tensor::I8(QTensor {
            codes: q.codes.slice(cut).as_standard_layout().into_owned(),
            scale: q.scale,
        }),
        Tensor::Codes(v) => Tensor::Codes(v.slice(cut).as_standard_layout().into_owned()),
        Tensor::F16(v) => Tensor::F16(v.slice(cut).as_standard_layout().into_owned()),
        Tensor::F32(v) => Tensor::F32(v.slice(cut).as_standard_layout().into_owned()),
    }
}

/// A tensor whose buffer was written channel by channel and is read row by row: element i of the
/// buffer is element i of the transposed tensor.
pub(super) fn rewritten(value: Tensor) -> Tensor {
    fn again<T: Copy>(values: &Array2<T>) -> Array2<T> {
        let (buffer, _) = transposed(values).into_raw_vec_and_offset();
        Array2::from_shape_vec(values.dim(), buffer).expect("as many elements as before")
    }
    match value {
        Tensor::I8(q) => Tensor::I8(QTensor {
            codes: again(&q.codes),
            scale: q.scale,
        }),
        Tensor::Codes(v) => Tensor::Codes(again(&v)),
        Tensor::F16(v) => Tensor::F16(again(&v)),
        Tensor::F32(v) => Tensor::F32(again(&v)),
    }
}

/// Two tensors of one type side by side.
pub(crate) fn join_columns(left: &Tensor, right: &Tensor) -> Tensor {
    fn join<T: Copy>(left: &Array2<T>, right: &Array2<T>) -> Array2<T> {
        concatenate(Axis(1), &[left.view(), right.view()])
            .expect("both have L rows")
            .as_standard_layout()
            .into_owned()
    }
    match (left, right) {
        (Tensor::I8(a), Tensor::I8(b)) => Tensor::I8(QTensor {
            codes: join(&a.codes, &b.codes),
            scale: a.scale,
        }),
        (Tensor::F16(a), Tensor::F16(b)) => Tensor::F16(join(a, b)),
        (a, b) => Tensor::F32(join(&a.to_real(), &b.to_real())),
    }
}
