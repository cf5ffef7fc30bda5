//! Causal conv1d with SiLU as a chip has it: the sum over the taps and the bias in one register, an
//! integer multiplier to SiLU's input, SiLU from a table, an integer multiplier to the output's grid.
//! `conv` runs the kernels.
//!
//! | step | rule |
//! |---|---|
//! | sum | the taps, oldest first, then `nearest-even(s_b·q_b / (s_w·s_x))`, in the accumulator |
//! | X | integer scaling: `requant(sum, s_w·s_x)` on SiLU's input grid; f32: `fma(s_w ⊗ s_x, f32(taps), s_b ⊗ q_b)` |
//! | Y | SiLU's unit, or exact in f32 |
//! | code | integer scaling of a unit's Y: `requant(Y, 2^-F / s_out)`; else the output's quantizer |

use super::conv::{ConvWeight, ConvWindow};
use crate::arith::accumulate::{Accumulated, Accumulator};
use crate::arith::fixed::{FixedFactor, Requantizer, Scaling};
use crate::arith::function::{Function, Inputs};
use crate::arith::real::{Ieee, RealMath, RealRules};
use crate::arith::requant::QuantRule;
use crate::arith::saturate::Status;
use crate::arith::sfu::{CudaFast, CudaLibm, CudaSubnormal};
use crate::error::Result;
use crate::profile::{ConvForm, ConvRules};
use crate::quant::{QTensor, Scale};
use ndarray::Array2;

/// What a convolution emits.
#[derive(Clone, Debug)]
pub struct ConvUnitResult {
    /// Codes, where a scale was given.
    pub codes: Option<(QTensor, Status)>,
    /// The real output, `[L, E]`.
    pub real: Array2<f32>,
    /// The register.
    pub accumulated: Accumulated,
    /// SiLU's inputs.
    pub silu: Inputs,
}

/// Whether rules need this form of the step for codes of one scale.
pub fn is_unit(rules: &ConvRules, weight: &ConvWeight, window: &ConvWindow) -> bool {
    if !matches!(window, ConvWindow::Int8 { .. }) || !weight.has_codes() {
        return false;
    }
    let narrow = !rules.accumulator.holds((weight.taps() as u64) << 14);
    rules.form == ConvForm::IntegerSum
        && (rules.scaling != Scaling::F32
            || rules.silu.is_unit()
            || weight.channel_scales().is_some()
            || narrow)
}

/// Convolves codes of one scale, applies SiLU and, given the output's scale, quantizes.
///
/// # Errors
///
/// Scales whose factors no integer multiplier has.
pub fn conv_unit(
    rules: &ConvRules,
    weight: &ConvWeight,
    codes: &Array2<i8>,
    s_x: Scale,
    output: Option<Scale>,
) -> Result<ConvUnitResult> {
    let integer = rules.scaling != Scaling::F32;
    let bias = |c| bias_term(rules, weight, s_x, c);
    let (sums, accumulated) = tap_sums(rules.accumulator, weight, codes, bias);
    let unit = rules.silu.unit(Function::Silu);
    let mut silu = Inputs::default();
    let scale = |c| weight.tap_scale(c) * s_x.get();
    // Random bits are the output's alone.
    let rule = match rules.output.rounding.lfsr() {
        Some(_) => QuantRule::NEAREST_EVEN,
        None => rules.output,
    };
    // From the sum to SiLU's input; one for all channels, or one for each.
    let to_input = |fraction: u32| -> Result<Vec<Requantizer>> {
        let factors = per_sums(weight, s_x).into_iter().enumerate();
        factors
            .map(|(c, m)| {
                let made = Requantizer::new(rules.scaling, m * 2f64.powi(fraction as i32), rule);
                made.map_err(|e| e.within(format_args!("channel {c}")))
            })
            .collect()
    };
    let Some(unit) = unit else {
        let factor = to_input(0)?;
        let real = Array2::from_shape_fn(sums.dim(), |(t, c)| {
            let v = match integer {
                true => (sums[(t, c)] as f64 * of_channel(&factor, c).real()) as f32,
                false => fma(rules.real, scale(c), sums[(t, c)] as f32, weight.bias(c)),
            };
            silu_of(rules.real, v)
        });
        return Ok(quantized(rules, real, output, accumulated, silu));
    };
    let fraction = u32::from(unit.rule().output_fraction);
    let factor = to_input(unit.rule().input_fraction.into())?;
    let y = Array2::from_shape_fn(sums.dim(), |(t, c)| {
        let sum = sums[(t, c)];
        let x = match integer {
            true => unit.fit(of_channel(&factor, c).integer(sum, 0)),
            false => unit.input(fma(rules.real, scale(c), sum as f32, weight.bias(c)).into()),
        };
        unit.eval(x, &mut silu)
    });
    let one = 2f64.powi(-(fraction as i32));
    let real = y.mapv(|y| (y as f64 * one) as f32);
    let (Some(s_out), true) = (output, integer) else {
        return Ok(quantized(rules, real, output, accumulated, silu));
    };
    let requantizer = Requantizer::new(rules.scaling, one / f64::from(s_out.get()), rules.output)?;
    let mut out = Array2::zeros(y.dim());
    let status = requantizer.codes(
        y.as_slice().expect("fresh arrays are row-major"),
        0,
        out.as_slice_mut().expect("fresh arrays are row-major"),
    );
    let q = QTensor {
        codes: out,
        scale: s_out,
    };
    Ok(ConvUnitResult {
        codes: Some((q, status)),
        real,
        accumulated,
        silu,
    })
}

fn quantized(
    rules: &ConvRules,
    real: Array2<f32>,
    output: Option<Scale>,
    accumulated: Accumulated,
    silu: Inputs,
) -> ConvUnitResult {
    let codes = output.map(|scale| QTensor::quantize(&real, scale, rules.output));
    ConvUnitResult {
        codes,
        real,
        accumulated,
        silu,
    }
}

impl ConvWeight {
    /// The lowest and the highest value the register can have, whatever codes of scale `s_x` it
    /// sums; `None` for real weights.
    pub fn reach(&self, rules: &ConvRules, s_x: Scale) -> Option<(i64, i64)> {
        if !self.has_codes() {
            return None;
        }
        let (mut low, mut high) = (0, 0);
        for c in 0..self.channels() {
            let (mut sum_low, mut sum_high) = (0, 0);
            for tap in 0..self.taps() {
                let w = i64::from(self.code(tap, c));
                sum_low += (-128 * w).min(127 * w);
                sum_high += (-128 * w).max(127 * w);
            }
            let bias = bias_term(rules, self, s_x, c);
            low = low.min(sum_low + bias.min(0));
            high = high.max(sum_high + bias.max(0));
        }
        Some((low, high))
    }
}

/// The sums of a convolution of codes, term by term in its accumulator.
pub fn watched(rules: &ConvRules, weight: &ConvWeight, window: &ConvWindow) -> Accumulated {
    match window {
        ConvWindow::Int8 { codes, scale } if weight.has_codes() => {
            tap_sums(rules.accumulator, weight, codes, |c| {
                bias_term(rules, weight, *scale, c)
            })
            .1
        }
        _ => Accumulated::default(),
    }
}

/// The sums over taps and bias of a convolution, `[L, E]`.
pub fn sums(rules: &ConvRules, weight: &ConvWeight, codes: &Array2<i8>, s_x: Scale) -> Array2<i64> {
    tap_sums(rules.accumulator, weight, codes, |c| {
        bias_term(rules, weight, s_x, c)
    })
    .0
}

/// The real factors of sums, `s_w · s_x`: one, or one for each channel.
fn per_sums(weight: &ConvWeight, s_x: Scale) -> Vec<f64> {
    let channels = match weight.channel_scales() {
        Some(scales) => 0..scales.len(),
        None => 0..1,
    };
    channels
        .map(|c| f64::from(weight.tap_scale(c)) * f64::from(s_x.get()))
        .collect()
}

/// The factor of a channel.
fn of_channel<T>(factors: &[T], channel: usize) -> &T {
    &factors[channel.min(factors.len() - 1)]
}

/// The integer factors of a convolution by name: to SiLU's input (one, or one for each channel), and
/// from a unit's output to the codes. None under f32 scaling.
///
/// # Errors
///
/// Scales whose factors no integer multiplier has.
pub fn factors(
    rules: &ConvRules,
    weight: &ConvWeight,
    s_x: Scale,
    s_out: Scale,
) -> Result<Vec<(&'static str, Vec<FixedFactor>)>> {
    let mut found = Vec::new();
    let unit = rules.silu.unit(Function::Silu);
    let input = unit.as_ref().map_or(0, |unit| unit.rule().input_fraction);
    let first: Result<Option<Vec<FixedFactor>>> = per_sums(weight, s_x)
        .into_iter()
        .map(|m| FixedFactor::new(rules.scaling, m * 2f64.powi(input.into())))
        .collect::<Result<Vec<_>>>()
        .map(|factors| factors.into_iter().collect());
    found.extend(first?.map(|factors| ("silu_", factors)));
    if let Some(unit) = unit {
        let one = 2f64.powi(-i32::from(unit.rule().output_fraction));
        let second = FixedFactor::new(rules.scaling, one / f64::from(s_out.get()))?;
        found.extend(second.map(|factor| ("", vec![factor])));
    }
    Ok(found)
}

/// What each channel's bias adds to its register; `None` under f32 scaling, which adds it later.
pub fn bias_terms(rules: &ConvRules, weight: &ConvWeight, s_x: Scale) -> Option<Vec<i64>> {
    let term = |c| bias_term(rules, weight, s_x, c);
    (rules.scaling != Scaling::F32).then(|| (0..weight.channels()).map(term).collect())
}

/// The bias as a term of the register: its own under integer scaling, none under f32.
fn bias_term(rules: &ConvRules, weight: &ConvWeight, s_x: Scale, channel: usize) -> i64 {
    let per_sum = f64::from(weight.tap_scale(channel)) * f64::from(s_x.get());
    match rules.scaling {
        Scaling::F32 => 0,
        _ => (f64::from(weight.bias(channel)) / per_sum).round_ties_even() as i64,
    }
}

/// `a·b + c` by an arithmetic.
fn fma(real: RealRules, a: f32, b: f32, c: f32) -> f32 {
    match real {
        RealRules::CorrectlyRounded => Ieee::fma(a, b, c),
        RealRules::SpecialFunctionUnit => CudaFast::fma(a, b, c),
        RealRules::CudaLibm => CudaLibm::fma(a, b, c),
        RealRules::SpecialFunctionUnitSubnormal => CudaSubnormal::fma(a, b, c),
    }
}

/// SiLU by an arithmetic.
fn silu_of(real: RealRules, v: f32) -> f32 {
    match real {
        RealRules::CorrectlyRounded => Ieee::times_sigmoid(v, v),
        RealRules::SpecialFunctionUnit => CudaFast::times_sigmoid(v, v),
        RealRules::CudaLibm => CudaLibm::times_sigmoid(v, v),
        RealRules::SpecialFunctionUnitSubnormal => CudaSubnormal::times_sigmoid(v, v),
    }
}

/// Sums over the taps, oldest first, and a bias; `[L, E]`.
fn tap_sums(
    accumulator: Accumulator,
    weight: &ConvWeight,
    codes: &Array2<i8>,
    bias: impl Fn(usize) -> i64,
) -> (Array2<i64>, Accumulated) {
    let (taps, e) = (weight.taps(), codes.ncols());
    let biases: Vec<i64> = (0..e).map(bias).collect();
    let mut seen = Accumulated::default();
    let sums = Array2::from_shape_fn((codes.nrows() + 1 - taps, e), |(t, c)| {
        let products =
            (0..taps).map(|tap| i64::from(weight.code(tap, c)) * i64::from(codes[(t + tap, c)]));
        let (sum, now) = accumulator.sum(products.chain([biases[c]]));
        seen += now;
        sum
    });
    (sums, seen)
}
