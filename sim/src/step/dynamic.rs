//! Dynamic quantization: the scale comes from the data at run time.
//! Source: `docs/modes.md`, mode 3.

use crate::arith::requant::{AbsmaxDivision, Divisor, QuantRule};
use crate::arith::round::up_to_power_of_two;
use crate::arith::saturate::Status;
use crate::isa::{Kernel, dispatch};
use crate::profile::unit::ScaleGrid;
use crate::quant::{Scale, dequantize_slice};
use ndarray::Array2;
use rayon::prelude::*;

/// INT8 codes whose scale was found at run time, for the whole tensor or for each row.
#[derive(Clone, Debug)]
pub struct DynamicTensor {
    /// `[L, E]`.
    pub codes: Array2<i8>,
    /// One scale, or one a row.
    pub scales: Vec<Scale>,
}

impl DynamicTensor {
    /// Real values: `scale ⊗ code`.
    pub fn to_real(&self) -> Array2<f32> {
        let (codes, mut real) = (&self.codes, Array2::zeros(self.codes.dim()));
        for (t, (codes, mut real)) in codes.rows().into_iter().zip(real.rows_mut()).enumerate() {
            let scale = self.scales[t.min(self.scales.len() - 1)];
            dequantize_slice(
                codes.as_slice().expect("codes are row-major"),
                scale,
                real.as_slice_mut().expect("fresh arrays are row-major"),
            );
        }
        real
    }
}

/// The largest power of two that f32 has, 2^127.
const LARGEST_POWER: f64 = (1u128 << 127) as f64;

/// The scale that puts `absmax` on code 127, on a grid; 1 for 0.
pub fn scale_of(absmax: f32, grid: ScaleGrid) -> Scale {
    let scale = match absmax {
        0.0 => 1.0,
        _ => AbsmaxDivision::Division
            .of(absmax)
            .clamp(f32::MIN_POSITIVE, f32::MAX),
    };
    let scale = match grid {
        ScaleGrid::Calibrated => scale,
        ScaleGrid::PowerOfTwo => up_to_power_of_two(scale.into()).min(LARGEST_POWER) as f32,
    };
    Scale::new(scale).expect("clamped to the normal range")
}

/// Quantizes each row (token) by a rule, with a scale of its own on a grid.
pub fn tokens(values: &Array2<f32>, grid: ScaleGrid, rule: QuantRule) -> (DynamicTensor, Status) {
    let columns = values.ncols();
    let mut codes = Array2::zeros(values.dim());
    let rows = values.as_slice().expect("activations are row-major");
    let out = codes.as_slice_mut().expect("fresh arrays are row-major");
    let (scales, statuses): (Vec<Scale>, Vec<Status>) = rows
        .par_chunks_exact(columns)
        .zip(out.par_chunks_exact_mut(columns))
        .enumerate()
        .map(|(t, (row, codes))| {
            let scale = scale_of(dispatch(Absmax { values: row }), grid);
            (scale, rule.quantize_part(row, scale, codes, t * columns))
        })
        .unzip();
    let status = statuses.into_iter().fold(Status::default(), Status::plus);
    (DynamicTensor { codes, scales }, status)
}

/// `max|x|/127` as PyTorch has it, a Python number in f64; 1 if all zero. (A scale that would be subnormal in f32
/// becomes the smallest normal f32.)
fn dynamic_scale(values: &[f32]) -> Divisor {
    let scale = match dispatch(Absmax { values }) {
        0.0 => 1.0,
        absmax => AbsmaxDivision::Division
            .of(f64::from(absmax))
            .clamp(f32::MIN_POSITIVE.into(), f32::MAX.into()),
    };
    Divisor::new(scale).expect("clamped to the normal range")
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

/// Quantizes a tensor by a rule with one scale.
pub fn per_tensor(values: &Array2<f32>, rule: QuantRule) -> (DynamicTensor, Status) {
    groups(values, values.len().max(1), rule)
}

/// Quantizes each row (token) by a rule with its own scale.
pub fn per_token(values: &Array2<f32>, rule: QuantRule) -> (DynamicTensor, Status) {
    groups(values, values.ncols(), rule)
}

/// Quantizes each group of `size` values with the scale of the group.
fn groups(values: &Array2<f32>, size: usize, rule: QuantRule) -> (DynamicTensor, Status) {
    let mut codes = Array2::zeros(values.dim());
    let values = values.as_slice().expect("activations are row-major");
    let out = codes.as_slice_mut().expect("fresh arrays are row-major");
    let (mut scales, mut status) = (Vec::new(), Status::default());
    for (i, (values, codes)) in values.chunks(size).zip(out.chunks_mut(size)).enumerate() {
        let scale = dynamic_scale(values);
        status += rule.quantize_part(values, scale, codes, i * size);
        scales.push(Scale::new(scale.to_f32()).expect("clamped to the normal range"));
    }
    (DynamicTensor { codes, scales }, status)
}

#[cfg(test)]
mod tests {
    use super::*;
    use ndarray::array;

    #[test]
    fn the_largest_value_is_code_127_and_zero_has_scale_one() {
        let x = array![[0.5, -2.0], [0.0, 0.0], [0.25, 0.25]];
        let (tensor, _) = per_tensor(&x, QuantRule::NEAREST_EVEN);
        assert_eq!(tensor.scales, [Scale::new(2.0 / 127.0).unwrap()]);
        assert_eq!(tensor.codes.row(0).to_vec(), [32, -127]);
        let (token, _) = per_token(&x, QuantRule::NEAREST_EVEN);
        assert_eq!(token.scales[1].get(), 1.0);
        assert_eq!(token.codes.row(1).to_vec(), [0, 0]);
        assert_eq!(token.codes.row(2).to_vec(), [127, 127]);
        let (same, status) = tokens(&x, ScaleGrid::Calibrated, QuantRule::NEAREST_EVEN);
        assert_eq!((same.codes, same.scales), (token.codes, token.scales));
        assert_eq!(
            (status.values, status.saturated, status.peak),
            (6, 0, 127.0)
        );
    }

    #[test]
    fn scales_on_powers_of_two_are_the_next_ones_up() {
        for (absmax, scale) in [
            (0.0, 1.0),
            (127.0, 1.0),
            (127.001, 2.0),
            (1.0, 1.0 / 64.0),
            (f32::MAX, 2f32.powi(122)),
            (1e-44, f32::MIN_POSITIVE),
        ] {
            assert_eq!(
                scale_of(absmax, ScaleGrid::PowerOfTwo).get(),
                scale,
                "{absmax}"
            );
        }
    }
}
