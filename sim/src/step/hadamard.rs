//! Hadamard rotation of the scan's output, and its quantizer.
//! Source: `docs/arithmetic.md`, "The rules of each arithmetic".

use crate::arith::hadamard::HadamardSize;
use crate::arith::requant::codes_of;
use crate::arith::saturate::Status;
use crate::isa::{Kernel, dispatch};
use crate::profile::HadamardRules;
use crate::quant::{QTensor, Scale};
use crate::trace::Tensor;
use ndarray::Array2;
use rayon::prelude::*;

/// Rows a thread takes at once.
const ROW_BLOCK: usize = 16;

/// `f32(1/√n/s_out)`, computed in f64: the one factor between butterflies and grid.
pub fn quantizer_factor(size: HadamardSize, output: Scale) -> f32 {
    (size.norm() / f64::from(output.get())) as f32
}

/// Rotates each row of `y` (`[L, E]`), its real values, and quantizes it: `h ⊗ factor`, rounded and made
/// to fit.
pub fn rotate_quantize(
    y: &Tensor,
    size: HadamardSize,
    factor: f32,
    output: Scale,
    rules: HadamardRules,
) -> (QTensor, Status) {
    let (_, e) = y.dim();
    let mut codes = Array2::zeros(y.dim());
    let out = codes.as_slice_mut().expect("fresh arrays are row-major");
    let status = out
        .par_chunks_mut(e)
        .enumerate()
        .with_min_len(ROW_BLOCK)
        .map_init(
            || vec![0.0; e],
            |values, (row, codes)| {
                y.real_row(row, values);
                size.transform(values);
                if rules.rounding.lfsr().is_some() {
                    return quantize_products_at(values, factor, rules, codes, row * e);
                }
                dispatch(QuantizeProducts {
                    values,
                    factor,
                    rules,
                    codes,
                })
            },
        )
        .reduce(Status::default, Status::plus);
    let q = QTensor {
        codes,
        scale: output,
    };
    (q, status)
}

/// Rotates each row of `y` (`[L, E]`) and scales it by `f32(1/√E)`: no quantization.
pub fn rotate(y: Array2<f32>, size: HadamardSize) -> Array2<f32> {
    let mut y = y;
    let e = y.ncols();
    let norm = size.norm() as f32;
    y.as_slice_mut()
        .expect("activations are row-major")
        .par_chunks_mut(ROW_BLOCK * e)
        .for_each(|rows| {
            size.transform(rows);
            for v in rows {
                *v *= norm;
            }
        });
    y
}

/// [`QuantizeProducts`] by a stochastic rule, the first value at a position.
fn quantize_products_at(
    values: &mut [f32],
    factor: f32,
    rules: HadamardRules,
    codes: &mut [i8],
    position: usize,
) -> Status {
    let rule = rules.quantizer();
    values.iter_mut().for_each(|v| *v *= factor);
    // Divided by one, which is exact.
    let one = Scale::new(1.0).expect("one is a scale");
    rule.quantize_part(values, one, codes, position)
}

struct QuantizeProducts<'a> {
    values: &'a [f32],
    factor: f32,
    rules: HadamardRules,
    codes: &'a mut [i8],
}

impl Kernel for QuantizeProducts<'_> {
    type Output = Status;

    #[inline(always)]
    fn run(self) -> Status {
        let HadamardRules {
            rounding, overflow, ..
        } = self.rules;
        codes_of(
            rounding,
            overflow,
            |v| v * self.factor,
            self.values,
            self.codes,
        )
    }
}
