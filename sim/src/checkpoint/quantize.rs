//! Weights to INT8. Source: `docs/arithmetic.md`, "Model preparation".
//!
//! Two rules, both `s = max(|w|, at least 1e-5)/127`, `q = sat8(rne(w/s))`: one in binary16 arithmetic,
//! every operation rounded to f16, for all weights but dt_bias, which is quantized in f32. A_log and D
//! follow the one or the other, as the recipe says.
//!
//! A quantized embedding has a scale for each row: `s = f16(max w / 127)` of the signed maximum,
//! `q = sat8(rne(f16(w/s)))`. A quantized head is a weight as all others.

mod int4;

pub use int4::{FourBits, to_int4};

use super::recipe::{Recipe, ScanPrecision};
use crate::arith::requant::{AbsmaxDivision, QuantRule, to_f16};
use crate::error::{Result, SimError};
use crate::isa::{Kernel, dispatch};
use crate::model::{ActivationScales, Embedding, FloatLayer, FloatModel, Head, QRows};
use crate::model::{QuantizedLayer, QuantizedModel};
use crate::quant::{QTensor, QVector, QWeight, Scale};
use half::f16;
use half::slice::HalfFloatSliceExt;
use ndarray::Array2;
use rayon::prelude::*;

/// No weight scale is smaller than this over 127.
const LEAST_ABSMAX: f32 = 1e-5;
/// Weights converted at a time, and weights a task takes.
const BLOCK: usize = 256;
const TASK: usize = 1 << 15;

/// What embedding, final norm and head become.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Ends {
    /// They stay binary16.
    F16,
    /// INT8: the embedding row by row, the norm's output at this scale, the head's weight.
    Int8 {
        /// Scale of the final norm's output.
        head_input: Scale,
    },
    /// Embedding and head in four bits, the norm's output INT8 at this scale.
    Int4 {
        /// Scale of the final norm's output.
        head_input: Scale,
    },
}

/// Quantizes a folded model by a recipe, with one set of activation scales a layer. The norms of blocks
/// stay binary16.
///
/// # Errors
///
/// A model that is not folded, or not as many sets of scales as layers.
pub fn quantize(
    model: &FloatModel,
    scales: &[ActivationScales],
    recipe: &Recipe,
    ends: Ends,
) -> Result<QuantizedModel> {
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
        .map(|(layer, scales)| quantize_layer(layer, *scales, recipe))
        .collect();
    let (embedding, head) = quantize_ends(&model.embedding, &model.head, recipe, ends)?;
    Ok(QuantizedModel {
        float_digest: None,
        config: model.config.clone(),
        embedding,
        layers,
        norm_f: model.norm_f.clone(),
        head,
    })
}

/// Embedding and head, both of a row for each token. Fails as [`to_int4`] does.
pub(crate) fn quantize_ends(
    embedding: &Array2<f16>,
    head: &Array2<f16>,
    recipe: &Recipe,
    ends: Ends,
) -> Result<(Embedding, Head)> {
    let (bits, input, weight) = match ends {
        Ends::F16 => return Ok((Embedding::F16(embedding.clone()), Head::F16(head.clone()))),
        Ends::Int8 { head_input } => (8, head_input, matrix(head, recipe.step).into()),
        Ends::Int4 { head_input } => (
            4,
            head_input,
            QWeight::Int4(int4::int4("lm_head.weight", head)?),
        ),
    };
    let embedding = Embedding::Rows(rows(embedding, bits, recipe.step));
    Ok((embedding, Head::Quantized { input, weight }))
}

pub(crate) fn quantize_layer(
    layer: &FloatLayer,
    scales: ActivationScales,
    recipe: &Recipe,
) -> QuantizedLayer {
    let step = recipe.step;
    let matrix = |weights| matrix(weights, step);
    let a_log = layer.a_log.as_slice().expect("weights are row-major");
    let scan = |values: &[f32]| match recipe.scan {
        ScanPrecision::F32 => in_f32(values, step),
        ScanPrecision::F16 => {
            let values: Vec<f16> = values.iter().map(|v| to_f16(*v)).collect();
            vector(&values, step)
        }
    };
    let QVector { codes, scale } = scan(a_log);
    let dt_bias: Vec<f32> = layer.dt_bias.iter().map(|w| f32::from(*w)).collect();
    QuantizedLayer {
        norm: layer.norm.clone(),
        in_proj: matrix(&layer.in_proj).into(),
        conv_weight: matrix(&layer.conv_weight),
        conv_bias: vector(&layer.conv_bias, step),
        x_proj: matrix(&layer.x_proj).into(),
        dt_proj: matrix(&layer.dt_proj),
        dt_bias: in_f32(&dt_bias, step),
        a_log: QTensor {
            codes: Array2::from_shape_vec(layer.a_log.dim(), codes).expect("as many codes"),
            scale,
        },
        d: scan(&layer.d),
        out_proj: matrix(&layer.out_proj).into(),
        scales,
    }
}

fn matrix(weights: &Array2<f16>, step: AbsmaxDivision) -> QTensor {
    let (codes, scale) = in_f16(weights.as_slice().expect("weights are row-major"), step);
    QTensor {
        codes: Array2::from_shape_vec(weights.dim(), codes).expect("as many codes as weights"),
        scale,
    }
}

fn vector(weights: &[f16], step: AbsmaxDivision) -> QVector {
    let (codes, scale) = in_f16(weights, step);
    QVector { codes, scale }
}

/// Row by row, at a scale of the row's signed maximum: over 127, or over 8 in four bits. (A row without a
/// positive value is lost, as it is with the reference.)
fn rows(weights: &Array2<f16>, bits: u8, step: AbsmaxDivision) -> QRows {
    let largest = |row: ndarray::ArrayView1<f16>| {
        let values = row.iter().map(|w| f32::from(*w));
        values.fold(f32::NEG_INFINITY, f32::max)
    };
    let four = bits == 4;
    let step = |largest: f32| {
        if four {
            largest / 8.0
        } else {
            step.of(largest)
        }
    };
    let scales: Vec<f16> = (weights.rows().into_iter())
        .map(|row| to_f16(step(largest(row))))
        .collect();
    let code = |(row, column)| {
        let quotient = f32::from(weights[(row, column)]) / f32::from(scales[row]);
        let quotient = f32::from(to_f16(quotient));
        if !four {
            return QuantRule::NEAREST_EVEN.code(quotient);
        }
        // 0 to 15 in binary16, which rounds the sum.
        QuantRule::NEAREST_EVEN
            .code(f32::from(to_f16(quotient + 8.0)))
            .clamp(0, 15)
            - 8
    };
    QRows {
        codes: Array2::from_shape_fn(weights.dim(), code),
        scales,
        bits,
    }
}

/// The binary16 rule. A quotient is taken in f32 and rounded to f16: that is the correctly rounded
/// binary16 quotient, since f32 carries 24 ≥ 2·11 + 2 bits.
fn in_f16(weights: &[f16], step: AbsmaxDivision) -> (Vec<i8>, Scale) {
    let scale = f32::from(to_f16(step.of(f32::from(to_f16(absmax(weights))))));
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
                *code = QuantRule::NEAREST_EVEN.code(*v);
            }
        }
    }
}

/// The f32 rule.
fn in_f32(weights: &[f32], step: AbsmaxDivision) -> QVector {
    let absmax = weights
        .iter()
        .fold(LEAST_ABSMAX, |most, w| most.max(w.abs()));
    let scale = step.of(absmax);
    QVector {
        codes: weights
            .iter()
            .map(|w| QuantRule::NEAREST_EVEN.code(*w / scale))
            .collect(),
        scale: positive(scale),
    }
}

fn absmax(weights: &[f16]) -> f32 {
    // Magnitudes of finite binary16 numbers are ordered as their bits are.
    let bits = weights.iter().map(|w| w.to_bits() & 0x7fff).max();
    f32::from(f16::from_bits(bits.unwrap_or(0))).max(LEAST_ABSMAX)
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
        let (codes, scale) = in_f16(&f16s(&[0.5, -1.0, 0.25, 0.0]), AbsmaxDivision::Division);
        assert_eq!(scale.get(), f32::from(f16::from_f32(1.0 / 127.0)));
        assert_eq!(codes, [64, -127, 32, 0]);
        let vector = in_f32(&[0.5, -1.0], AbsmaxDivision::Division);
        assert_eq!(vector.scale.get(), 1.0 / 127.0);
        assert_eq!(vector.codes, [64, -127]);
    }

    #[test]
    fn zeros_get_the_least_scale() {
        let (codes, scale) = in_f16(&f16s(&[0.0; 300]), AbsmaxDivision::Division);
        assert!(codes.iter().all(|c| *c == 0));
        assert_eq!(scale.get(), 2f32.powi(-24));
        assert_eq!(
            in_f32(&[0.0], AbsmaxDivision::Division).scale.get(),
            1e-5 / 127.0
        );
        // A scale rounded down that far leaves codes outside INT8.
        assert_eq!(
            in_f16(&f16s(&[1e-5, -1e-5]), AbsmaxDivision::Division).0,
            [127, -128]
        );
    }

    #[test]
    fn embedding_rows_have_scales_of_their_signed_maximum() {
        let weights = Array2::from_shape_vec((2, 3), f16s(&[1.27, -2.54, 0.0, 0.0, -0.5, 0.0]));
        let rows = rows(&weights.unwrap(), 8, AbsmaxDivision::Reciprocal);
        let scale = f16::from_f32(f32::from(f16::from_f32(1.27)) / 127.0);
        assert_eq!(rows.scales[0], scale);
        // −254 is out of reach; so is everything in a row without a positive value.
        assert_eq!(rows.codes.row(0).to_vec(), [127, -128, 0]);
        assert_eq!(rows.scales[1], f16::ZERO);
        let back: Vec<f32> = rows.row(0).map(f32::from).collect();
        let value = |code: f32| f32::from(f16::from_f32(code * f32::from(scale)));
        assert_eq!(back, [127.0, -128.0, 0.0].map(value));
        assert!(rows.row(1).all(|v| v == f16::ZERO));
    }

    #[cfg(feature = "sample")]
    #[test]
    fn only_folded_models_with_matching_scales() {
        let model = crate::sample::float_checkpoint();
        let scales = crate::sample::activation_scales();
        let error = quantize(&model, &scales, &Recipe::QUAMBA, Ends::F16)
            .unwrap_err()
            .to_string();
        assert!(error.contains("folded"), "{error}");
        let model = FloatModel {
            rotated: true,
            ..model
        };
        let error = quantize(&model, &scales[1..], &Recipe::QUAMBA, Ends::F16)
            .unwrap_err()
            .to_string();
        assert!(
            error.contains("12 layers") && error.contains("11"),
            "{error}"
        );
    }
}
