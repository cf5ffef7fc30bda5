//! Weights to INT8. Source: datapath specification, section 2, item 3.
//!
//! Two rules, both `s = max(|w|, at least 1e-5)/127`, `q = sat8(rne(w/s))`: all tensors but one in
//! binary16 arithmetic, every operation rounded to f16; dt_bias in f32. A_log and D follow the
//! binary16 rule too: with it every code and scale of the reference's files comes out.

use crate::arith::requant::to_f16;
use crate::arith::round::Rounding;
use crate::arith::saturate::Overflow;
use crate::error::{Result, SimError};
use crate::isa::{Kernel, dispatch};
use crate::model::{ActivationScales, FloatLayer, FloatModel, QuantizedLayer, QuantizedModel};
use crate::quant::{QTensor, QVector, Scale};
use half::f16;
use half::slice::HalfFloatSliceExt;
use ndarray::Array2;
use rayon::prelude::*;

/// No weight scale is smaller than this over 127.
const LEAST_ABSMAX: f32 = 1e-5;
/// Weights converted at a time, and weights a task takes.
const BLOCK: usize = 256;
const TASK: usize = 1 << 15;

/// Quantizes a folded model, with one set of activation scales a layer. Embedding, head and norms
/// stay binary16.
///
/// # Errors
///
/// A model that is not folded, or not as many sets of scales as layers.
pub fn quantize(model: &FloatModel, scales: &[ActivationScales]) -> Result<QuantizedModel> {
    if !model.rotated {
        return Err(SimError::value("model", "a folded model", "one not folded"));
    }
    if scales.len() != model.layers.len() {
        return Err(SimError::value(
            "activation scales",
            format_args!("{} layers", model.layers.len()),
            scales.len(),
        ));
    }
    let layers = model
        .layers
        .par_iter()
        .zip(scales)
        .map(|(layer, scales)| quantize_layer(layer, *scales))
        .collect();
    Ok(QuantizedModel {
        float_digest: None,
        config: model.config.clone(),
        embedding: model.embedding.clone(),
        layers,
        norm_f: model.norm_f.clone(),
        head: model.head.clone(),
    })
}

pub(crate) fn quantize_layer(layer: &FloatLayer, scales: ActivationScales) -> QuantizedLayer {
    QuantizedLayer {
        norm: layer.norm.clone(),
        in_proj: matrix(&layer.in_proj),
        conv_weight: matrix(&layer.conv_weight),
        conv_bias: vector(&layer.conv_bias),
        x_proj: matrix(&layer.x_proj),
        dt_proj: matrix(&layer.dt_proj),
        dt_bias: in_f32(&layer.dt_bias),
        a_log: matrix(&layer.a_log),
        d: vector(&layer.d),
        out_proj: matrix(&layer.out_proj),
        scales,
    }
}

fn matrix(weights: &Array2<f16>) -> QTensor {
    let (codes, scale) = in_f16(weights.as_slice().expect("weights are row-major"));
    QTensor {
        codes: Array2::from_shape_vec(weights.dim(), codes).expect("as many codes as weights"),
        scale,
    }
}

fn vector(weights: &[f16]) -> QVector {
    let (codes, scale) = in_f16(weights);
    QVector { codes, scale }
}

/// The binary16 rule. A quotient is taken in f32 and rounded to f16: that is the correctly rounded
/// binary16 quotient, since f32 carries 24 ≥ 2·11 + 2 bits.
fn in_f16(weights: &[f16]) -> (Vec<i8>, Scale) {
    let scale = f32::from(to_f16(f32::from(to_f16(absmax(weights))) / 127.0));
    let mut codes = vec![0; weights.len()];
    codes
        .par_chunks_mut(TASK)
        .zip(weights.par_chunks(TASK))
        .for_each(|(codes, weights)| {
            dispatch(QuantizeF16 {
                weights,
                scale,
                codes,
            });
        });
    (codes, positive(scale))
}

struct QuantizeF16<'a> {
    weights: &'a [f16],
    scale: f32,
    codes: &'a mut [i8],
}

impl Kernel for QuantizeF16<'_> {
    type Output = ();

    #[inline(always)]
    fn run(self) {
        // Whole slices are converted, as that is where the conversion instructions are used.
        let mut real = [0.0f32; BLOCK];
        let mut rounded = [f16::ZERO; BLOCK];
        let blocks = self.weights.chunks(BLOCK);
        for (weights, codes) in blocks.zip(self.codes.chunks_mut(BLOCK)) {
            let real = &mut real[..weights.len()];
            let rounded = &mut rounded[..weights.len()];
            weights.convert_to_f32_slice(real);
            for v in real.iter_mut() {
                *v /= self.scale;
            }
            rounded.convert_from_f32_slice(real);
            rounded.convert_to_f32_slice(real);
            for (code, v) in codes.iter_mut().zip(real) {
                *code = nearest_code(*v);
            }
        }
    }
}

/// The f32 rule.
fn in_f32(weights: &[f16]) -> QVector {
    let scale = absmax(weights) / 127.0;
    QVector {
        codes: weights
            .iter()
            .map(|w| nearest_code(f32::from(*w) / scale))
            .collect(),
        scale: positive(scale),
    }
}

fn absmax(weights: &[f16]) -> f32 {
    // Magnitudes of finite binary16 numbers are ordered as their bits are.
    let bits = weights.iter().map(|w| w.to_bits() & 0x7fff).max();
    f32::from(f16::from_bits(bits.unwrap_or(0))).max(LEAST_ABSMAX)
}

#[inline(always)]
fn nearest_code(quotient: f32) -> i8 {
    Overflow::Saturate.to_i8(Rounding::NearestTiesToEven.round(quotient))
}

fn positive(scale: f32) -> Scale {
    Scale::new(scale).expect("a binary16 number, or an f32, of at least 2^-24 is a scale")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn f16s(values: &[f32]) -> Vec<f16> {
        values.iter().map(|v| f16::from_f32(*v)).collect()
    }

    /// The binary16 quotient nearest to a/b, ties to even, by integers: a and b are multiples of
    /// 2^-24, so is every candidate.
    fn quotient_by_integers(a: f16, b: f16) -> f16 {
        let fixed = |v: f16| (f64::from(v) * 2f64.powi(24)) as i128;
        let (a, b) = (fixed(a), fixed(b));
        let mut nearest = f16::ZERO;
        // Bits of positive numbers are ordered: bisect for the last candidate not above a/b.
        let (mut low, mut high) = (0u16, f16::MAX.to_bits() + 1);
        while high - low > 1 {
            let middle = low.midpoint(high);
            if fixed(f16::from_bits(middle)) * b <= a << 24 {
                low = middle;
            } else {
                high = middle;
            }
        }
        if low < f16::MAX.to_bits() {
            let (below, above) = (f16::from_bits(low), f16::from_bits(low + 1));
            let twice = (fixed(below) + fixed(above)) * b;
            nearest = match twice.cmp(&(a << 25)) {
                std::cmp::Ordering::Less => above,
                std::cmp::Ordering::Greater => below,
                std::cmp::Ordering::Equal if low % 2 == 0 => below,
                std::cmp::Ordering::Equal => above,
            };
        }
        nearest
    }

    #[test]
    fn a_quotient_through_f32_is_the_binary16_quotient() {
        // Every tenth mantissa against every seventh, at exponents that give normal and subnormal
        // quotients.
        for exponent in [1u16, 9, 15] {
            for a in (0..1024).step_by(10) {
                for b in (0..1024).step_by(7) {
                    let a = f16::from_bits(exponent << 10 | a);
                    for b in [f16::from_bits(15 << 10 | b), f16::from_bits(21 << 10 | b)] {
                        let got = to_f16(f32::from(a) / f32::from(b));
                        assert_eq!(got, quotient_by_integers(a, b), "{a} / {b}");
                    }
                }
            }
        }
    }

    #[test]
    fn the_largest_weight_is_near_code_127() {
        let (codes, scale) = in_f16(&f16s(&[0.5, -1.0, 0.25, 0.0]));
        assert_eq!(scale.get(), f32::from(f16::from_f32(1.0 / 127.0)));
        assert_eq!(codes, [64, -127, 32, 0]);
        let vector = in_f32(&f16s(&[0.5, -1.0]));
        assert_eq!(vector.scale.get(), 1.0 / 127.0);
        assert_eq!(vector.codes, [64, -127]);
    }

    #[test]
    fn zeros_get_the_least_scale() {
        let (codes, scale) = in_f16(&f16s(&[0.0; 300]));
        assert!(codes.iter().all(|c| *c == 0));
        assert_eq!(scale.get(), 2f32.powi(-24));
        assert_eq!(in_f32(&f16s(&[0.0])).scale.get(), 1e-5 / 127.0);
        // A scale rounded down that far leaves codes outside INT8.
        assert_eq!(in_f16(&f16s(&[1e-5, -1e-5])).0, [127, -128]);
    }

    #[test]
    fn only_folded_models_with_matching_scales() {
        let model = crate::sample::float_checkpoint();
        let scales = crate::sample::activation_scales();
        let error = quantize(&model, &scales).unwrap_err().to_string();
        assert!(error.contains("folded"), "{error}");
        let model = FloatModel {
            rotated: true,
            ..model
        };
        let error = quantize(&model, &scales[1..]).unwrap_err().to_string();
        assert!(
            error.contains("12 layers") && error.contains("11"),
            "{error}"
        );
    }
}
