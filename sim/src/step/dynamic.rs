//! Dynamic quantization: the scale comes from the data at run time.
//! Source: the modes specification, mode 3.

use crate::arith::requant::QuantRule;
use crate::isa::{Kernel, dispatch};
use crate::quant::{QTensor, Scale};
use ndarray::Array2;

/// INT8 codes whose scale was found at run time, for the whole tensor or for each row.
#[derive(Clone, Debug)]
pub struct DynamicTensor {
    /// `[L, E]`.
    pub codes: Array2<i8>,
    /// One scale, or one a row.
    pub scales: Vec<Scale>,
}

/// `max|x|/127`; 1 if all zero. (A scale that would be subnormal becomes the smallest normal f32.)
fn dynamic_scale(values: &[f32]) -> Scale {
    let absmax = dispatch(Absmax { values });
    let scale = if absmax == 0.0 {
        1.0
    } else {
        (absmax / 127.0).clamp(f32::MIN_POSITIVE, f32::MAX)
    };
    Scale::new(scale).expect("clamped to the normal range")
}

/// The largest magnitude; NaN counts as none.
struct Absmax<'a> {
    values: &'a [f32],
}

impl Kernel for Absmax<'_> {
    type Output = f32;

    #[inline(always)]
    fn run(self) -> f32 {
        // Magnitudes order as their bits do, and a maximum of integers vectorises.
        let magnitude = |v: &f32| match v.is_nan() {
            true => 0,
            false => v.to_bits() & 0x7FFF_FFFF,
        };
        f32::from_bits(self.values.iter().map(magnitude).max().unwrap_or(0))
    }
}

/// Quantizes a tensor with one scale: `q = rne8(x / s_d)`.
pub fn per_tensor(values: &Array2<f32>) -> DynamicTensor {
    let scale = dynamic_scale(values.as_slice().expect("activations are row-major"));
    let (q, _) = QTensor::quantize(values, scale, QuantRule::NEAREST_EVEN);
    DynamicTensor {
        codes: q.codes,
        scales: vec![scale],
    }
}

/// Quantizes each row (token) with its own scale.
pub fn per_token(values: &Array2<f32>) -> DynamicTensor {
    let columns = values.ncols();
    let mut codes = Array2::zeros(values.dim());
    let rows = values.as_slice().expect("activations are row-major");
    let out = codes.as_slice_mut().expect("fresh arrays are row-major");
    let scales = rows
        .chunks_exact(columns)
        .zip(out.chunks_exact_mut(columns))
        .map(|(row, codes)| {
            let scale = dynamic_scale(row);
            let _ = QuantRule::NEAREST_EVEN.quantize_slice(row, scale, codes);
            scale
        })
        .collect();
    DynamicTensor { codes, scales }
}

#[cfg(test)]
mod tests {
    use super::*;
    use ndarray::array;

    #[test]
    fn the_largest_value_is_code_127_and_zero_has_scale_one() {
        let x = array![[0.5, -2.0], [0.0, 0.0], [0.25, 0.25]];
        let tensor = per_tensor(&x);
        assert_eq!(tensor.scales, [Scale::new(2.0 / 127.0).unwrap()]);
        assert_eq!(tensor.codes.row(0).to_vec(), [32, -127]);
        let token = per_token(&x);
        assert_eq!(token.scales[1].get(), 1.0);
        assert_eq!(token.codes.row(1).to_vec(), [0, 0]);
        assert_eq!(token.codes.row(2).to_vec(), [127, 127]);
    }
}
