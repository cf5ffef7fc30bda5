//! Tensors as the numbers that a formula computes with.

use super::function::Math;
use half::f16;
use ndarray::Array2;
use scalescope_sim::quant::QTensor;
use scalescope_sim::trace::Tensor;
use std::sync::Arc;

/// Something that a step reads: numbers, and what one of them stands for.
#[derive(Clone, Debug)]
pub struct Operand {
    /// Codes or reals.
    pub values: Array2<f32>,
    /// The step of codes, 1 for reals.
    pub scale: f32,
    /// The step of each row's codes, where rows have their own; it is met beside `scale`, which is 1 then.
    pub rows: Option<Vec<f32>>,
    /// The tensor that the values are columns of, and the first of them, where they are a part.
    pub whole: Option<Arc<(Array2<f32>, usize)>>,
}

impl Operand {
    /// Numbers with one step.
    pub fn new(values: Array2<f32>, scale: f32) -> Self {
        Self {
            values,
            scale,
            rows: None,
            whole: None,
        }
    }

    /// The step of a row.
    #[inline]
    pub fn step(&self, row: usize) -> f32 {
        match &self.rows {
            Some(rows) => self.scale * rows[row.min(rows.len() - 1)],
            None => self.scale,
        }
    }

    /// The real value of an element.
    #[inline]
    pub fn real(&self, math: Math, at: (usize, usize)) -> f32 {
        match self.step(at.0) {
            1.0 => self.values[at],
            scale => (math.mul)(scale, self.values[at]),
        }
    }
}

/// Codes or reals as numbers.
pub fn numbers(tensor: &Tensor) -> Array2<f32> {
    match tensor {
        Tensor::I8(q) => q.codes.mapv(f32::from),
        Tensor::Codes(codes) => codes.mapv(f32::from),
        other => other.to_real(),
    }
}

/// Numbers as a tensor like another one.
pub fn like(numbers: &Array2<f32>, tensor: &Tensor) -> Tensor {
    match tensor {
        Tensor::I8(q) => Tensor::I8(QTensor {
            codes: numbers.mapv(|v| v as i8),
            scale: q.scale,
        }),
        Tensor::Codes(_) => Tensor::Codes(numbers.mapv(|v| v as i8)),
        Tensor::F16(_) => Tensor::F16(numbers.mapv(f16::from_f32)),
        Tensor::F32(_) => Tensor::F32(numbers.clone()),
    }
}
