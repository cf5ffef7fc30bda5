//! Weights and scales as a profile stores them: quantized anew from the float model, per tensor,
//! channel or group, in 8 or 4 bits, at calibrated scales or powers of two.

use crate::arith::round::{nearest_within, up_to_power_of_two};
use crate::profile::unit::{ConvGranularity, GROUP, Granularity, ScaleGrid, Storage};
use crate::quant::{QTensor, QVector, Scale};
use crate::step::conv::ConvWeight;
use crate::step::linear_unit::ScaledWeight;
use half::f16;
use ndarray::{Array2, ArrayView2};

/// The largest multiple of a row's scale that a group has: 6 bits.
const GROUP_STEPS: f64 = 63.0;

/// The step of a tensor of zeros: that of every quantized file.
const LEAST_STEP: f64 = 1e-5 / 127.0;

/// The step of values whose largest is `own`. Zeros take that of the whole tensor: any step is theirs, and
/// this one has the integer factors that its neighbours have.
fn step(own: f64, whole: f64, top: f64) -> f64 {
    match (own > 0.0, whole > 0.0) {
        (true, _) => own / top,
        (false, true) => whole / top,
        (false, false) => LEAST_STEP,
    }
}

fn largest<'a, T: Copy + Into<f64> + 'a>(values: impl IntoIterator<Item = &'a T>) -> f64 {
    let magnitudes = values.into_iter().map(|v| (*v).into().abs());
    magnitudes.fold(0.0, f64::max)
}

/// The scale nearest to a step size, at least the smallest normal f32.
fn scale(step: f64, grid: ScaleGrid) -> Scale {
    let step = match grid {
        ScaleGrid::Calibrated => step,
        ScaleGrid::PowerOfTwo => up_to_power_of_two(step.max(f64::from(f32::MIN_POSITIVE))),
    };
    Scale::new((step as f32).max(f32::MIN_POSITIVE)).expect("a positive, normal f32")
}

/// A scale on the grid of a profile.
pub(super) fn activation_scale(calibrated: Scale, grid: ScaleGrid) -> Scale {
    scale(calibrated.get().into(), grid)
}

/// Quantizes a weight `[out, in]`: `code = nearest-even(w / step)` within ±(2^(bits−1) − 1).
pub(super) fn linear(weight: ArrayView2<f16>, storage: &Storage) -> ScaledWeight {
    let most = (1i64 << (storage.weight_bits - 1)) - 1;
    let top = most as f64;
    let code = |w: f16, step: f64| nearest_within(f64::from(w) / step, -most..=most) as i8;
    let grid = storage.weight_scales;
    let whole = largest(weight);
    let row_scale =
        |r: usize, steps: f64| scale(step(largest(weight.row(r)), whole, top) / steps, grid);
    match storage.weight_granularity {
        Granularity::Tensor => {
            let scale = scale(step(whole, whole, top), grid);
            ScaledWeight {
                codes: weight.mapv(|w| code(w, scale.get().into())),
                scales: vec![scale],
                groups: None,
            }
        }
        Granularity::Channel => {
            let scales: Vec<Scale> = (0..weight.nrows()).map(|r| row_scale(r, 1.0)).collect();
            ScaledWeight {
                codes: Array2::from_shape_fn(weight.dim(), |(r, k)| {
                    code(weight[(r, k)], scales[r].get().into())
                }),
                scales,
                groups: None,
            }
        }
        Granularity::Group => {
            let scales: Vec<Scale> = (0..weight.nrows())
                .map(|r| row_scale(r, GROUP_STEPS))
                .collect();
            let dim = (weight.nrows(), weight.ncols().div_ceil(GROUP));
            let groups = Array2::from_shape_fn(dim, |(r, g)| {
                let group = weight.row(r);
                let group = group.iter().skip(g * GROUP).take(GROUP);
                let step = largest(group) / top / f64::from(scales[r].get());
                step.ceil().clamp(1.0, GROUP_STEPS) as u8
            });
            ScaledWeight {
                codes: Array2::from_shape_fn(weight.dim(), |(r, k)| {
                    let steps = f64::from(groups[(r, k / GROUP)]);
                    code(weight[(r, k)], f64::from(scales[r].get()) * steps)
                }),
                scales,
                groups: Some(groups),
            }
        }
    }
}

/// The convolution's weight `[E, K]` in INT8, with the model's own bias. Weights of zeros have at least the
/// step of the bias, which integer sums take in that step.
pub(super) fn conv(values: &Array2<f16>, bias: &QVector, storage: &Storage) -> ConvWeight {
    let grid = storage.weight_scales;
    let whole = largest(values);
    let step = |own: f64| match own > 0.0 {
        true => step(own, whole, 127.0),
        false => step(own, whole, 127.0).max(bias.scale.get().into()),
    };
    match storage.conv_granularity {
        ConvGranularity::Tensor => {
            let scale = scale(step(whole), grid);
            let codes = values.mapv(|v| int8(v, scale));
            ConvWeight::int8(&QTensor { codes, scale }, bias)
        }
        ConvGranularity::Channel => {
            let rows = values.rows().into_iter();
            let scales: Vec<Scale> = rows.map(|row| scale(step(largest(row)), grid)).collect();
            let codes = Array2::from_shape_fn(values.dim(), |at| int8(values[at], scales[at.0]));
            ConvWeight::int8_channels(codes, scales, bias)
        }
    }
}

/// A vector at a power-of-two scale.
pub(super) fn vector(values: &[f32]) -> QVector {
    let whole = largest(values);
    let scale = scale(step(whole, whole, 127.0), ScaleGrid::PowerOfTwo);
    QVector {
        codes: values.iter().map(|v| int8(*v, scale)).collect(),
        scale,
    }
}

fn int8(v: impl Into<f64>, scale: Scale) -> i8 {
    nearest_within(v.into() / f64::from(scale.get()), -127..=127) as i8
}
