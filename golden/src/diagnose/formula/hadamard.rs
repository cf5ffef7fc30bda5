//! The rotation before out_proj.

use super::{Operand, Output, Scene};
use ndarray::Array2;
use scalescope_sim::arith::hadamard::HadamardSize;
use scalescope_sim::arith::requant::QuantRule;
use scalescope_sim::dataflow::{Quantizer, Row};
use scalescope_sim::profile::unit::HadamardForm;

/// `H · y`, scaled.
#[derive(Clone, Debug)]
pub struct Hadamard {
    /// `[L, E]`.
    pub y: Operand,
    /// Its size; `None` where nothing rotates.
    pub size: Option<HadamardSize>,
    /// Strides of butterflies that run, smallest first; the last entry is the odd factor.
    pub stages: Vec<bool>,
    /// What the transform is multiplied with, over 1/√E.
    pub norm: f64,
    /// How results are stored; codes in units of the grid.
    pub output: Output,
}

impl Hadamard {
    pub(super) fn of(scene: &Scene, row: &Row) -> Option<Self> {
        let rules = scene.rules(row)?.hadamard;
        let plain = rules.form == HadamardForm::F32;
        let fixed = matches!(row.quantizer, None | Some(Quantizer::Static(_)));
        let size = scene.path.rotation(scene.layer);
        if !plain || !fixed {
            return None;
        }
        let rule = match size {
            Some(_) => rules.quantizer(),
            None => QuantRule::HALF_AWAY,
        };
        let stages = size.map_or(0, |size| (size.n() / size.base()).ilog2() as usize + 1);
        Some(Self {
            y: scene.operand(row.reads.first()?)?,
            size,
            stages: vec![true; stages],
            norm: 1.0,
            output: scene.output(row, Some(rule), size.is_some())?,
        })
    }

    /// Codes or reals, `[L, E]`.
    pub fn run(&self) -> Array2<f32> {
        let mut v = self.y.values.as_standard_layout().into_owned();
        let Some(size) = self.size else {
            return v.mapv(|v| self.output.of(v));
        };
        let all = self.stages.iter().all(|s| *s);
        let rows = v.as_slice_mut().expect("standard");
        match all {
            true => size.transform(rows),
            false => {
                for row in rows.chunks_exact_mut(size.n()) {
                    transform(row, size, &self.stages);
                }
            }
        }
        let factor = match &self.output.quantizer {
            Some(q) if q.in_units => (self.norm * size.norm() / f64::from(q.scale)) as f32,
            _ => (self.norm * size.norm()) as f32,
        };
        v.mapv(|v| self.output.of(v * factor))
    }
}

/// The stages that run, in order.
fn transform(row: &mut [f32], size: HadamardSize, stages: &[bool]) {
    let (base, block) = (size.base(), size.n() / size.base());
    let mut stride = 1;
    let mut stage = 0;
    while stride < block {
        if stages[stage] {
            for pair in row.chunks_exact_mut(2 * stride) {
                let (low, high) = pair.split_at_mut(stride);
                for (a, b) in low.iter_mut().zip(high) {
                    (*a, *b) = (*a + *b, *a - *b);
                }
            }
        }
        stride *= 2;
        stage += 1;
    }
    if base > 1 && stages[stage] {
        let before = row.to_vec();
        for i in 0..base {
            for at in 0..block {
                let terms =
                    (0..base).map(|j| size.entry(i * block, j * block) * before[j * block + at]);
                row[i * block + at] = terms.sum();
            }
        }
    }
}
