//! The rotation before out_proj.

use super::{BlockInputs, Operand, Output};
use ndarray::Array2;
use scalescope_sim::arith::fixed::Requantizer;
use scalescope_sim::arith::hadamard::HadamardSize;
use scalescope_sim::arith::round::Rounding;
use scalescope_sim::dataflow::{Quantizer, Row};
use scalescope_sim::quant::Scale;
use scalescope_sim::step::hadamard_unit::IntegerRotation;
use std::ops::{Add, Sub};

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
