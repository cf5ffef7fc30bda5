//! Linear steps as a chip has them: accumulators to their grid by integer multipliers or shifts,
//! weights with a scale for each channel or group. `linear` runs the kernels.

use super::dynamic::DynamicTensor;
use super::linear::{LinearOutput, LinearResult, LinearWeight, linear, product_sums};
use crate::arith::accumulate::{Accumulated, Accumulator};
use crate::arith::fixed::{FixedFactor, Requantizer, Scaling, nearest, random};
use crate::arith::requant::to_f16;
use crate::arith::saturate::{Status, Tally};
use crate::error::Result;
use crate::profile::LinearRule;
use crate::profile::unit::GROUP;
use crate::quant::{QTensor, Scale};
use crate::trace::Tensor;
use ndarray::{Array2, ArrayView2, Axis, concatenate, s};
use rayon::prelude::*;
use std::ops::Range;

/// A weight `[out, in]` whose rows, or groups of 128 codes in a row, have scales of their own.
#[derive(Clone, Debug, PartialEq)]
pub struct ScaledWeight {
    /// Codes.
    pub codes: Array2<i8>,
    /// The scale of each row, or one for all.
    pub scales: Vec<Scale>,
    /// `[out, ⌈in/128⌉]`: what each group's scale is, in whole multiples of its row's.
    pub groups: Option<Array2<u8>>,
}

impl ScaledWeight {
    /// The rows of all, one after another.
    pub fn stacked(parts: &[ScaledWeight]) -> Self {
        fn joined<T: Copy>(arrays: Vec<ArrayView2<T>>) -> Array2<T> {
            concatenate(Axis(0), &arrays).expect("parts of one weight have one width")
        }
        let one = parts
            .iter()
            .all(|p| p.scales == parts[0].scales && p.scales.len() == 1);
        let groups: Option<Vec<_>> = parts
            .iter()
            .map(|p| p.groups.as_ref().map(|g| g.view()))
            .collect();
        Self {
            codes: joined(parts.iter().map(|p| p.codes.view()).collect()),
            scales: match one {
                true => parts[0].scales.clone(),
                false => parts
                    .iter()
                    .flat_map(|p| (0..p.codes.nrows()).map(|r| p.scale(r)))
                    .collect(),
            },
            groups: groups.map(joined),
        }
    }

    /// Some of its rows.
    pub fn rows(&self, rows: Range<usize>) -> Self {
        Self {
            codes: self.codes.slice(s![rows.clone(), ..]).to_owned(),
            scales: match self.scales.len() {
                1 => self.scales.clone(),
                _ => self.scales[rows.clone()].to_vec(),
            },
            groups: (self.groups.as_ref()).map(|g| g.slice(s![rows, ..]).to_owned()),
        }
    }

    /// The scale of a row.
    pub fn scale(&self, row: usize) -> Scale {
        self.scales[row.min(self.scales.len() - 1)]
    }
}

/// Multiplies codes whose tokens have scales of their own, in the unit of a chip whatever the rule: by
/// an f32 factor, `f32(acc) ⊗ f32(s_t · s_w / s_out)`. Real weights multiply dequantized codes.
///
/// # Errors
///
/// Scales whose factors no integer multiplier has.
pub fn token_linear(
    x: &DynamicTensor,
    weight: &LinearWeight,
    rule: LinearRule,
    output: LinearOutput,
) -> Result<LinearResult> {
    let (codes, s_in) = (&x.codes, &x.scales[..]);
    match weight {
        LinearWeight::Int8 { codes: w, scale } => {
            unit_linear(codes, s_in, *w, &[*scale], None, rule, output)
        }
        LinearWeight::Scaled(w) => {
            let groups = w.groups.as_ref();
            unit_linear(codes, s_in, w.codes.view(), &w.scales, groups, rule, output)
        }
        LinearWeight::Int4(w) => {
            unit_linear(codes, s_in, w.int8(), w.channels(), None, rule, output)
        }
        LinearWeight::Float { .. } | LinearWeight::Wide(_) => {
            linear(&Tensor::F32(x.to_real()), None, weight, rule, output)
        }
    }
}

/// The integer factors of a linear step, row by row where tokens have scales of their own, and in a
/// row channel by channel where weights have. `None` under f32 scaling.
///
/// # Errors
///
/// Scales whose factors no integer multiplier has.
pub fn factors(
    s_in: &[Scale],
    weights: &[Scale],
    rule: LinearRule,
    output: LinearOutput,
) -> Result<Option<Vec<FixedFactor>>> {
    let requantizers = requantizers(s_in, weights, rule, output)?;
    Ok(requantizers.iter().map(Requantizer::fixed).collect())
}

fn requantizers(
    s_in: &[Scale],
    weights: &[Scale],
    rule: LinearRule,
    output: LinearOutput,
) -> Result<Vec<Requantizer>> {
    let to = match output {
        LinearOutput::Int8(scale) => f64::from(scale.get()),
        LinearOutput::F16 | LinearOutput::F32 => 1.0,
    };
    let all = (0..s_in.len()).flat_map(|t| (0..weights.len()).map(move |n| (t, n)));
    all.map(|(t, n)| {
        let factor = f64::from(s_in[t].get()) * f64::from(weights[n].get()) / to;
        let made = Requantizer::new(rule.scaling, factor, rule.output);
        made.map_err(|e| e.within(format_args!("token {t}, row {n}")))
    })
    .collect()
}

/// The requantizers of a product: those of each row, and in a row of each output.
struct Requantizers {
    all: Vec<Requantizer>,
    /// Of a row.
    columns: usize,
}

impl Requantizers {
    /// Those of a row: one, or one for each output.
    fn row(&self, row: usize) -> &[Requantizer] {
        let rows = self.all.len() / self.columns;
        &self.all[row.min(rows - 1) * self.columns..][..self.columns]
    }
}

/// The requantizer of an output.
#[inline(always)]
fn of_column(row: &[Requantizer], column: usize) -> &Requantizer {
    &row[column.min(row.len() - 1)]
}

/// Multiplies codes `x` (`[L, in]`) of one scale, or one a row, and brings the sums to `output`.
///
/// The sum of a row with groups is `Σ_g m_g · Σ_k w·x`, the groups one after another, each scaled
/// group one term of the accumulator; a group's own sum has a register of 32 bits.
pub(super) fn unit_linear(
    x: &Array2<i8>,
    s_in: &[Scale],
    weight: ArrayView2<i8>,
    scales: &[Scale],
    groups: Option<&Array2<u8>>,
    rule: LinearRule,
    output: LinearOutput,
) -> Result<LinearResult> {
    let (sums, accumulated) = sums_of(x, weight, groups, rule.accumulator);
    let requantizers = Requantizers {
        all: requantizers(s_in, scales, rule, output)?,
        columns: scales.len(),
    };
    let (out, status) = match output {
        LinearOutput::Int8(scale) => {
            let (codes, status) = codes(&sums, &requantizers, rule);
            (Tensor::I8(QTensor { codes, scale }), status)
        }
        LinearOutput::F16 => {
            let half = |sum, r: &Requantizer| to_f16(real(sum, r) as f32);
            (
                Tensor::F16(each(&sums, &requantizers, half)),
                Status::default(),
            )
        }
        LinearOutput::F32 => {
            let single = |sum, r: &Requantizer| real(sum, r) as f32;
            (
                Tensor::F32(each(&sums, &requantizers, single)),
                Status::default(),
            )
        }
    };
    Ok(LinearResult {
        out,
        status,
        accumulated,
    })
}

fn codes(
    sums: &Array2<i64>,
    requantizers: &Requantizers,
    rule: LinearRule,
) -> (Array2<i8>, Status) {
    let n = sums.ncols();
    let mut codes = Array2::zeros(sums.dim());
    let rows = codes.as_slice_mut().expect("fresh arrays are row-major");
    let status = rows
        .par_chunks_mut(n.max(1))
        .zip(
            sums.as_slice()
                .expect("sums are row-major")
                .par_chunks(n.max(1)),
        )
        .enumerate()
        .map(|(row, (codes, sums))| {
            let lfsr = rule.output.rounding.lfsr();
            let mut lfsr = lfsr.map(|lfsr| lfsr.at((row * n) as u64));
            let mut tally = Tally::of(rule.output.overflow);
            let requantizers = requantizers.row(row);
            for (c, (code, sum)) in codes.iter_mut().zip(sums).enumerate() {
                let integer = of_column(requantizers, c).integer(*sum, random(&mut lfsr));
                tally.add(nearest(integer));
                *code = rule.output.overflow.fit(integer).0;
            }
            tally.status(n, rule.output.overflow)
        })
        .reduce(Status::default, Status::plus);
    (codes, status)
}

fn each<T: Clone>(
    sums: &Array2<i64>,
    requantizers: &Requantizers,
    of: impl Fn(i64, &Requantizer) -> T,
) -> Array2<T> {
    Array2::from_shape_fn(sums.dim(), |(t, c)| {
        of(sums[(t, c)], of_column(requantizers.row(t), c))
    })
}

/// A sum times its factor, so that rounding it to fewer bits rounds once: f32 factors in f32, exact
/// products of integer factors as an f64 whose last bit is set if bits were cut off.
fn real(sum: i64, requantizer: &Requantizer) -> f64 {
    let Some(FixedFactor {
        multiplier, shift, ..
    }) = requantizer.fixed()
    else {
        return f64::from(sum as f32 * requantizer.real() as f32);
    };
    let product = i128::from(sum) * i128::from(multiplier);
    let magnitude = product.unsigned_abs();
    let excess = (128 - magnitude.leading_zeros()).saturating_sub(53);
    let kept = magnitude >> excess;
    let sticky = u128::from(kept << excess != magnitude);
    let real = (kept | sticky) as f64 * 2f64.powi(excess as i32 - shift);
    if product < 0 { -real } else { real }
}

/// The sums of a weight, before they are scaled.
pub(super) fn sums(
    x: &Array2<i8>,
    weight: &ScaledWeight,
    accumulator: Accumulator,
) -> (Array2<i64>, Accumulated) {
    sums_of(x, weight.codes.view(), weight.groups.as_ref(), accumulator)
}

fn sums_of(
    x: &Array2<i8>,
    weight: ArrayView2<i8>,
    groups: Option<&Array2<u8>>,
    accumulator: Accumulator,
) -> (Array2<i64>, Accumulated) {
    match groups {
        None => product_sums(x, weight, accumulator),
        Some(multipliers) => grouped_sums(x, weight, multipliers, accumulator),
    }
}

fn grouped_sums(
    x: &Array2<i8>,
    weight: ArrayView2<i8>,
    multipliers: &Array2<u8>,
    accumulator: Accumulator,
) -> (Array2<i64>, Accumulated) {
    let mut sums = Array2::zeros((x.nrows(), weight.nrows()));
    let mut seen = Accumulated::default();
    for (g, multipliers) in multipliers.axis_iter(Axis(1)).enumerate() {
        let columns = g * GROUP..((g + 1) * GROUP).min(x.ncols());
        let part = x
            .slice(s![.., columns.clone()])
            .as_standard_layout()
            .into_owned();
        let weight = weight
            .slice(s![.., columns])
            .as_standard_layout()
            .into_owned();
        let (group, _) = product_sums(&part, weight.view(), Accumulator::I32);
        for ((at, sum), group) in sums.indexed_iter_mut().zip(&group) {
            let beyond;
            (*sum, beyond) = accumulator.add(*sum, group * i64::from(multipliers[at.1]));
            seen.see(*sum, beyond);
        }
    }
    seen.sums = sums.len() as u64;
    (sums, seen)
}

/// Whether a rule needs this form of the step.
pub(super) fn is_unit(rule: &LinearRule) -> bool {
    rule.scaling != Scaling::F32 || rule.output.rounding.lfsr().is_some()
}
