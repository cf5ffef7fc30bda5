//! The rotation before out_proj.

use super::{BlockInputs, Operand, Output, solve};
use ndarray::{Array1, Array2};
use scalescope_sim::arith::fixed::Requantizer;
use scalescope_sim::arith::hadamard::HadamardSize;
use scalescope_sim::arith::round::Rounding;
use scalescope_sim::dataflow::{Quantizer, Row};
use scalescope_sim::quant::Scale;
use scalescope_sim::step::hadamard_unit::IntegerRotation;
use std::ops::{Add, Sub};
use std::sync::Arc;

/// `H · y`, scaled.
#[derive(Clone, Debug)]
pub struct Hadamard {
    /// `[L, E]`.
    pub y: Operand,
    /// Its size; `None` where nothing rotates.
    pub size: Option<HadamardSize>,
    /// Strides of butterflies that run, smallest first; the last entry is the odd factor.
    pub stages: Vec<bool>,
    /// An entry of the odd factor, row and column, that has the other sign.
    pub flipped: Option<(usize, usize)>,
    /// Another outer factor, in the place of the odd one (of powers of two, of the last stages).
    pub factor: Option<Arc<Array2<f32>>>,
    /// What the transform is multiplied with, over 1/√E.
    pub norm: f64,
    /// The integer transform of a chip, and the grid that its inputs come from.
    pub integer: Option<(IntegerRotation, Scale)>,
    /// How results are stored; codes in units of the grid.
    pub output: Output,
}

impl Hadamard {
    pub(super) fn of(scene: &BlockInputs, row: &Row) -> Option<Self> {
        let rules = scene.rules(row)?.hadamard;
        let size = scene.path.rotation(scene.layer);
        let rotation = size.and_then(|size| IntegerRotation::of(size, rules.form));
        let integer = match (rotation, row.quantizer) {
            (Some(rotation), Some(Quantizer::Static(by))) => {
                Some((rotation, scene.path.scale(scene.layer, by)?))
            }
            // Tokens have their scale from integers then.
            (Some(_), Some(_)) => return None,
            _ => None,
        };
        let stages = size.map_or(0, |size| (size.n() / size.base()).ilog2() as usize + 1);
        Some(Self {
            y: scene.operand(row.reads.first()?)?,
            size,
            stages: vec![true; stages],
            flipped: None,
            factor: None,
            norm: 1.0,
            integer,
            output: scene.output(row, size.is_some())?,
        })
    }

    /// Codes or reals, `[L, E]`.
    pub fn run(&self) -> Array2<f32> {
        let mut v = self.y.values.as_standard_layout().into_owned();
        let Some(size) = self.size else {
            return v.mapv(|v| self.output.of(v));
        };
        if let Some(factor) = &self.factor {
            let made = mixed(&v.mapv(f64::from), &factor.mapv(f64::from));
            let by = self.norm * size.norm() / self.unit();
            return made.mapv(|v| self.output.of((v * by) as f32));
        }
        if let Some(made) = self.integers(size) {
            return made;
        }
        let all = self.flipped.is_none() && self.stages.iter().all(|s| *s);
        let rows = v.as_slice_mut().expect("standard");
        match all {
            true => size.transform(rows),
            false => {
                for row in rows.chunks_exact_mut(size.n()) {
                    transform(row, size, (&self.stages, self.flipped), |v, _| v);
                }
            }
        }
        let factor = match &self.output.quantizer {
            Some(q) if q.in_units => (self.norm * size.norm() / f64::from(q.scale)) as f32,
            _ => (self.norm * size.norm()) as f32,
        };
        v.mapv(|v| self.output.of(v * factor))
    }

    /// What results are divided by before they are stored.
    fn unit(&self) -> f64 {
        match &self.output.quantizer {
            Some(q) if q.in_units => f64::from(q.scale),
            _ => 1.0,
        }
    }

    /// The outer factor that a dump's outputs show, and that of the transform; `None` where its entries are not
    /// zero or one magnitude.
    pub fn solved_factor(&self, dumped: &Array2<f32>) -> Option<(Array2<f32>, Array2<f32>)> {
        let size = self.size?;
        let step = match &self.output.quantizer {
            Some(q) if q.dynamic.is_some() || q.dequantized => return None,
            Some(q) => Some(f64::from(q.scale)),
            None => None,
        };
        if dumped.dim() != self.y.values.dim() {
            return None;
        }
        let base = match size.base() {
            1 => 16.min(size.n()),
            base => base,
        };
        let block = size.n() / base;
        let inner = mixed(&self.y.values.mapv(f64::from), &Array2::eye(base));
        let mut found = Array2::zeros((base, base));
        for i in 0..base {
            let (mut normal, mut right) = (Array2::<f64>::zeros((base, base)), vec![0.0; base]);
            for (z, d) in inner.rows().into_iter().zip(dumped.rows()) {
                for at in 0..block {
                    let stored = f64::from(d[i * block + at]);
                    if step.is_some() && stored.abs() >= 127.0 {
                        continue;
                    }
                    let target = stored * step.unwrap_or(1.0) / (self.norm * size.norm());
                    for j in 0..base {
                        let own = z[j * block + at];
                        right[j] += own * target;
                        for k in 0..=j {
                            normal[(j, k)] += own * z[k * block + at];
                        }
                    }
                }
            }
            let solved = solve(normal, right)?;
            found.row_mut(i).assign(&Array1::from(solved));
        }
        let most = found.iter().fold(0.0f64, |most, v| most.max(v.abs()));
        let used: Vec<f64> = (found.iter().map(|v| v.abs()))
            .filter(|v| 2.0 * v > most)
            .collect();
        let mean = used.iter().sum::<f64>() / used.len() as f64;
        let near = |v: &f64| (v / mean).abs().fract().min(1.0 - (v / mean).abs().fract()) < 0.25;
        if mean.is_nan() || mean <= 0.0 || !found.iter().all(near) {
            return None;
        }
        // Rotations keep lengths: few entries of a row are larger ones.
        let length = (base as f64 * base as f64 / used.len() as f64).sqrt();
        let unit = if (mean / length - 1.0).abs() < 0.02 {
            length
        } else {
            mean
        };
        let own = |(i, j): (usize, usize)| size.entry(i * block, j * block);
        let own = Array2::from_shape_fn((base, base), own);
        let found = found.mapv(|v| ((v / mean).round() * unit) as f32);
        (found != own).then_some((found, own))
    }

    /// As a chip has it; `None` where it has f32.
    fn integers(&self, size: HadamardSize) -> Option<Array2<f32>> {
        let (rotation, grid) = self.integer?;
        let shifts = rotation.stage_shifts();
        let rule = self.output.quantizer.as_ref()?.rule;
        let factor = rotation.factor() * self.norm;
        let by = Requantizer::new(rotation.scaling, factor, rule).ok()?;
        let mut out = Array2::zeros(self.y.values.dim());
        for (y, mut to) in self.y.values.rows().into_iter().zip(out.rows_mut()) {
            let mut row: Vec<i64> = y.iter().map(|y| rotation.input(*y, grid)).collect();
            transform(
                &mut row,
                size,
                (&self.stages, self.flipped),
                |v, stage| match shifts.get(stage) {
                    None | Some(0) => v,
                    Some(shift) => Rounding::NearestTiesUp.shift(v.into(), *shift, 0) as i64,
                },
            );
            for (to, v) in to.iter_mut().zip(row) {
                *to = self.output.of_sum(v, &by);
            }
        }
        Some(out)
    }
}

/// Butterflies inside blocks, of which the rows of a factor mix as many as it has columns.
fn mixed(values: &Array2<f64>, factor: &Array2<f64>) -> Array2<f64> {
    let base = factor.ncols();
    let block = values.ncols() / base;
    let mut out = Array2::zeros(values.dim());
    for (row, mut to) in values.rows().into_iter().zip(out.rows_mut()) {
        let mut row = row.to_vec();
        let mut stride = 1;
        while stride < block {
            for pair in row.chunks_exact_mut(2 * stride) {
                let (low, high) = pair.split_at_mut(stride);
                for (a, b) in low.iter_mut().zip(high) {
                    (*a, *b) = (*a + *b, *a - *b);
                }
            }
            stride *= 2;
        }
        for (i, signs) in factor.rows().into_iter().enumerate() {
            for at in 0..block {
                let terms = signs.iter().enumerate();
                to[i * block + at] = terms.map(|(j, sign)| sign * row[j * block + at]).sum();
            }
        }
    }
    out
}

/// The stages that run, in order; `after` is what each stage does with its results.
fn transform<T>(
    row: &mut [T],
    size: HadamardSize,
    (stages, flipped): (&[bool], Option<(usize, usize)>),
    after: impl Fn(T, usize) -> T,
) where
    T: Copy + Default + Add<Output = T> + Sub<Output = T>,
{
    let (base, block) = (size.base(), size.n() / size.base());
    let mut stride = 1;
    let mut stage = 0;
    while stride < block {
        if stages[stage] {
            for pair in row.chunks_exact_mut(2 * stride) {
                let (low, high) = pair.split_at_mut(stride);
                for (a, b) in low.iter_mut().zip(high) {
                    (*a, *b) = (after(*a + *b, stage), after(*a - *b, stage));
                }
            }
        }
        stride *= 2;
        stage += 1;
    }
    if base > 1 && stages[stage] {
        let before = row.to_vec();
        for i in 0..base {
            let positive =
                |j| (size.entry(i * block, j * block) > 0.0) != (flipped == Some((i, j)));
            let positive: Vec<bool> = (0..base).map(positive).collect();
            for at in 0..block {
                let sum = (0..base).fold(T::default(), |sum, j| {
                    let term = before[j * block + at];
                    match positive[j] {
                        true => sum + term,
                        false => sum - term,
                    }
                });
                row[i * block + at] = after(sum, stage);
            }
        }
    }
}
