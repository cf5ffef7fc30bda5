//! Hadamard rotation as a chip has it: integer butterflies that may grow by so many bits, then one
//! integer multiplier. `hadamard` runs the f32 form.
//!
//! The input is `nearest-even(y / (s_out · 2^-fraction))`, saturated to `bits` bits. Each butterfly
//! stage (`a+b`, `a−b`, strides 1, 2, 4, …) grows values by a bit, the c×c stage by ⌈log2 c⌉; what
//! exceeds `growth` bits in all is shifted out after its stage, ties up.

use crate::arith::accumulate::{AccOverflow, Accumulated, Accumulator};
use crate::arith::fixed::{Requantizer, Scaling};
use crate::arith::hadamard::HadamardSize;
use crate::arith::round::{Rounding, nearest_within};
use crate::arith::saturate::Status;
use crate::error::Result;
use crate::profile::HadamardRules;
use crate::profile::unit::{HadamardForm, ScaleGrid};
use crate::quant::{QTensor, Scale};
use crate::step::dynamic::{DynamicTensor, scale_of};
use ndarray::Array2;
use rayon::prelude::*;

/// The integer transform of a size.
#[derive(Clone, Copy, Debug)]
pub struct IntegerRotation {
    /// The length of a row.
    pub size: HadamardSize,
    /// Input width.
    pub bits: u8,
    /// Bits of the input below the output's step.
    pub fraction: u8,
    /// Bits that values may grow by.
    pub growth: u8,
    /// To the output's grid.
    pub scaling: Scaling,
}

impl IntegerRotation {
    /// The integer transform of a form; `None` for f32 butterflies.
    pub fn of(size: HadamardSize, form: HadamardForm) -> Option<Self> {
        match form {
            HadamardForm::F32 => None,
            HadamardForm::Integer {
                bits,
                fraction,
                growth,
                scaling,
            } => Some(Self {
                size,
                bits,
                fraction,
                growth,
                scaling,
            }),
        }
    }

    /// Bits shifted out after each stage: the butterflies, then the c×c factor if there is one.
    pub fn stage_shifts(&self) -> Vec<u32> {
        self.stages().iter().map(|stage| stage.shift).collect()
    }

    /// Bits shifted out over all stages.
    pub fn shifts(&self) -> u32 {
        self.stages().iter().map(|stage| stage.shift).sum()
    }

    /// From the last stage to the output's grid.
    pub fn factor(&self) -> f64 {
        self.size.norm() * 2f64.powi(self.shifts() as i32 - i32::from(self.fraction))
    }

    /// What brings the last stage to the grid of a scale; `anchor` is the scale that the input's grid
    /// comes from.
    ///
    /// # Errors
    ///
    /// A factor no integer multiplier has.
    pub fn to_grid(
        &self,
        anchor: Scale,
        output: Scale,
        rules: HadamardRules,
    ) -> Result<Requantizer> {
        let factor = match anchor == output {
            true => self.factor(),
            false => f64::from(anchor.get()) * self.factor() / f64::from(output.get()),
        };
        Requantizer::new(self.scaling, factor, rules.quantizer())
    }

    /// Input codes of a real row.
    pub fn input(&self, y: f32, output: Scale) -> i64 {
        let step = f64::from(output.get()) * 2f64.powi(-i32::from(self.fraction));
        let top = 1i64 << (self.bits - 1);
        nearest_within(f64::from(y) / step, -top..=top - 1)
    }

    /// The register that holds every stage: the input's bits and those it may grow by.
    pub fn register(&self) -> Accumulator {
        Accumulator::new(self.bits + self.growth + 1, AccOverflow::Saturate)
            .expect("at most 24 + 24 + 1 bits")
    }

    /// The lowest and highest value any stage can reach, before it is shifted.
    pub fn reach(&self) -> (i64, i64) {
        let (mut now, mut most) = (1i64 << (self.bits - 1), 0);
        for stage in self.stages() {
            now *= match stage.kind {
                Kind::Butterfly(_) => 2,
                Kind::Base => self.size.base() as i64,
            };
            most = most.max(now);
            now = (now >> stage.shift) + i64::from(stage.shift > 0);
        }
        (-most, most)
    }

    fn stages(&self) -> Vec<Stage> {
        let (base, block) = (self.size.base(), self.size.n() / self.size.base());
        let mut grown = 0;
        let mut stage = |kind, growth: u32| {
            let allowed = u32::from(self.growth).saturating_sub(grown).min(growth);
            grown += allowed;
            Stage {
                kind,
                shift: growth - allowed,
            }
        };
        let strides = (0..block.trailing_zeros()).map(|k| 1usize << k);
        let mut stages: Vec<Stage> = strides.map(|s| stage(Kind::Butterfly(s), 1)).collect();
        if base > 1 {
            stages.push(stage(Kind::Base, usize::BITS - (base - 1).leading_zeros()));
        }
        stages
    }

    /// Transforms a row in place.
    pub fn transform(&self, row: &mut [i64], seen: &mut Accumulated) {
        let block = row.len() / self.size.base();
        for stage in self.stages() {
            match stage.kind {
                Kind::Butterfly(stride) => {
                    for pair in row.chunks_exact_mut(2 * stride) {
                        let (low, high) = pair.split_at_mut(stride);
                        for (a, b) in low.iter_mut().zip(high) {
                            (*a, *b) = (*a + *b, *a - *b);
                        }
                    }
                }
                Kind::Base => {
                    let before = row.to_vec();
                    for (i, rows) in row.chunks_exact_mut(block).enumerate() {
                        rows.fill(0);
                        for (j, terms) in before.chunks_exact(block).enumerate() {
                            let sign = self.size.entry(i * block, j * block) as i64;
                            for (v, term) in rows.iter_mut().zip(terms) {
                                *v += sign * term;
                            }
                        }
                    }
                }
            }
            for v in row.iter_mut() {
                seen.see(*v, false);
            }
            if stage.shift > 0 {
                for v in row.iter_mut() {
                    *v = Rounding::NearestTiesUp.shift((*v).into(), stage.shift, 0) as i64;
                }
            }
        }
    }
}

#[derive(Clone, Copy, Debug)]
struct Stage {
    kind: Kind,
    shift: u32,
}

#[derive(Clone, Copy, Debug)]
enum Kind {
    /// Of a stride.
    Butterfly(usize),
    /// The c×c factor.
    Base,
}

/// Rotates each row of `y` (`[L, E]`) and quantizes it with a scale of its own, which puts the largest
/// magnitude after the last stage on code 127. `anchor` stands for the output's scale in the grid of
/// the input.
///
/// # Errors
///
/// A factor no integer multiplier has.
pub fn rotate_tokens(
    y: &Array2<f32>,
    rotation: &IntegerRotation,
    anchor: Scale,
    grid: ScaleGrid,
    rules: HadamardRules,
) -> Result<(DynamicTensor, Status, Accumulated)> {
    // The real value of one unit after the last stage.
    let unit = f64::from(anchor.get()) * rotation.factor();
    let e = y.ncols();
    let mut codes = Array2::zeros(y.dim());
    let mut scales = Vec::with_capacity(y.nrows());
    let (mut status, mut seen) = (Status::default(), Accumulated::default());
    let out = codes.as_slice_mut().expect("fresh arrays are row-major");
    for (t, (codes, y)) in out.chunks_mut(e).zip(y.rows()).enumerate() {
        let mut row: Vec<i64> = y.iter().map(|y| rotation.input(*y, anchor)).collect();
        rotation.transform(&mut row, &mut seen);
        let largest = row.iter().map(|v| v.unsigned_abs()).max().unwrap_or(0);
        let scale = scale_of((largest as f64 * unit) as f32, grid);
        let requantizer = rotation.to_grid(anchor, scale, rules)?;
        status += requantizer.codes(&row, (t * e) as u64, codes);
        scales.push(scale);
    }
    seen.sums = y.len() as u64;
    Ok((DynamicTensor { codes, scales }, status, seen))
}

/// Rotates each row of `y` (`[L, E]`) and quantizes it.
///
/// # Errors
///
/// A factor no integer multiplier has.
pub fn hadamard_unit(
    y: &Array2<f32>,
    rotation: &IntegerRotation,
    output: Scale,
    rules: HadamardRules,
) -> Result<(QTensor, Status, Accumulated)> {
    let requantizer = rotation.to_grid(output, output, rules)?;
    let e = y.ncols();
    let mut codes = Array2::zeros(y.dim());
    let (status, seen) = codes
        .as_slice_mut()
        .expect("fresh arrays are row-major")
        .par_chunks_mut(e)
        .zip(
            y.as_slice()
                .expect("activations are row-major")
                .par_chunks(e),
        )
        .enumerate()
        .map(|(t, (codes, y))| {
            let mut row: Vec<i64> = y.iter().map(|y| rotation.input(*y, output)).collect();
            let mut seen = Accumulated {
                sums: e as u64,
                ..Accumulated::default()
            };
            rotation.transform(&mut row, &mut seen);
            (requantizer.codes(&row, (t * e) as u64, codes), seen)
        })
        .reduce(Default::default, |a, b| (a.0.plus(b.0), a.1.plus(b.1)));
    Ok((
        QTensor {
            codes,
            scale: output,
        },
        status,
        seen,
    ))
}
