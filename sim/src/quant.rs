//! Quantized data: scales, tensors of codes, accumulators. `real = scale · code`, symmetric, zero
//! point 0.

mod int4;

use crate::arith::requant::{AbsmaxDivision, QuantRule};
use crate::arith::saturate::Status;
use crate::error::{Result, SimError};
use crate::isa::{Kernel, dispatch};
use ndarray::Array2;
use serde::{Serialize, Serializer};
use std::fmt;

pub use int4::{Int4Tensor, Int4Weight};

/// The size of one step of an INT8 grid: a positive, finite, normal f32.
#[derive(Clone, Copy, PartialEq, PartialOrd)]
pub struct Scale(f32);

impl Scale {
    /// Checks that `value` can be a scale. Subnormal scales are refused: round trips through them
    /// lose codes, and the kernels flush them to zero.
    pub fn new(value: f32) -> Result<Self> {
        if value.is_normal() && value > 0.0 {
            Ok(Self(value))
        } else {
            Err(SimError::value(
                "scale",
                "a positive, finite, normal f32",
                format_args!("{value:e}"),
            ))
        }
    }

    /// The scale that puts `absmax` on code 127, but at least `floor`.
    pub fn from_absmax(absmax: f32, floor: f32) -> Result<Self> {
        Self::new(AbsmaxDivision::Division.of(absmax).max(floor))
    }

    /// The f32 value.
    #[inline(always)]
    pub fn get(self) -> f32 {
        self.0
    }

    /// `f32(f64(self) / f64(output))`: the factor from this grid to `output`'s.
    pub fn ratio(self, output: Scale) -> Multiplier {
        Multiplier((f64::from(self.0) / f64::from(output.0)) as f32)
    }

    /// This scale as the factor to real values.
    pub fn to_real(self) -> Multiplier {
        Multiplier(self.0)
    }

    /// This scale times a factor (fault models, recommendations).
    pub fn times(self, factor: f32) -> Result<Self> {
        Self::new(self.0 * factor)
    }
}

impl fmt::Debug for Scale {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:e}", self.0)
    }
}

impl Serialize for Scale {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_f32(self.0)
    }
}

/// A factor between an accumulator and its output grid: finite and positive.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Multiplier(f32);

impl Multiplier {
    /// Checks that `value` can be a multiplier.
    pub fn new(value: f32) -> Result<Self> {
        if value.is_finite() && value > 0.0 {
            Ok(Self(value))
        } else {
            Err(SimError::value(
                "multiplier",
                "a positive, finite f32",
                value,
            ))
        }
    }

    /// The f32 value.
    #[inline(always)]
    pub fn get(self) -> f32 {
        self.0
    }
}

/// An exact INT8×INT8 dot product. |acc| ≤ 2^14·K, so i32 holds every K ≤ 131,071.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Acc(pub i32);

impl Acc {
    /// The longest dot product that cannot overflow: 2^31 / 2^14, less one.
    pub const MAX_LENGTH: usize = (i32::MAX as usize) >> 14;
}

/// A matrix of INT8 codes with one scale: activations `[tokens, channels]`, weights
/// `[out, in]`, states `[E, N]`.
#[derive(Clone, Debug, PartialEq)]
pub struct QTensor {
    /// Row-major codes.
    pub codes: Array2<i8>,
    /// Real value of one step.
    pub scale: Scale,
}

impl QTensor {
    /// Quantizes real values by a rule and counts what did not fit.
    pub fn quantize(values: &Array2<f32>, scale: Scale, rule: QuantRule) -> (Self, Status) {
        let mut codes = Array2::zeros(values.dim());
        let status = rule.quantize_slice(
            values.as_slice().expect("activations are row-major"),
            scale,
            codes.as_slice_mut().expect("fresh arrays are row-major"),
        );
        (Self { codes, scale }, status)
    }

    /// Real values: `scale ⊗ code`, exact to one rounding.
    pub fn dequantize(&self) -> Array2<f32> {
        let mut values = Array2::zeros(self.codes.dim());
        dequantize_slice(
            self.codes.as_slice().expect("codes are row-major"),
            self.scale,
            values.as_slice_mut().expect("fresh arrays are row-major"),
        );
        values
    }
}

/// `scale ⊗ code` for each code.
pub fn dequantize_slice(codes: &[i8], scale: Scale, values: &mut [f32]) {
    assert_eq!(codes.len(), values.len());
    dispatch(DequantizeSlice {
        codes,
        scale,
        values,
    });
}

struct DequantizeSlice<'a> {
    codes: &'a [i8],
    scale: Scale,
    values: &'a mut [f32],
}

impl Kernel for DequantizeSlice<'_> {
    type Output = ();

    #[inline(always)]
    fn run(self) {
        for (code, value) in self.codes.iter().zip(self.values.iter_mut()) {
            *value = self.scale.get() * f32::from(*code);
        }
    }
}

/// A vector of INT8 codes with one scale (bias, D, dt_bias).
#[derive(Clone, Debug, PartialEq)]
pub struct QVector {
    /// One code a channel.
    pub codes: Vec<i8>,
    /// Real value of one step.
    pub scale: Scale,
}

/// A linear weight `[out, in]` as a model stores it.
#[derive(Clone, Debug, PartialEq)]
pub enum QWeight {
    /// INT8 codes of one scale.
    Int8(QTensor),
    /// Four-bit codes with scales of groups and rows.
    Int4(Int4Tensor),
}

impl QWeight {
    /// Outputs and inputs.
    pub fn dim(&self) -> (usize, usize) {
        match self {
            QWeight::Int8(weight) => weight.codes.dim(),
            QWeight::Int4(weight) => weight.dim(),
        }
    }

    /// Bits of a code.
    pub fn bits(&self) -> u8 {
        match self {
            QWeight::Int8(_) => 8,
            QWeight::Int4(_) => 4,
        }
    }
}

impl From<QTensor> for QWeight {
    fn from(weight: QTensor) -> Self {
        Self::Int8(weight)
    }
}

impl From<Int4Tensor> for QWeight {
    fn from(weight: Int4Tensor) -> Self {
        Self::Int4(weight)
    }
}
