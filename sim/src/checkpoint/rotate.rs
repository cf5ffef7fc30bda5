//! Rotation of weight matrices by a Hadamard matrix, in the orders in which implementations do it.
//!
//! Quamba multiplies by butterflies, as on activations ([`crate::arith::hadamard`]). What made the model
//! behind the golden traces multiplied by a dense f32 matrix with the entries ±f32(1/√n): each output is a
//! chain of fused multiply-adds over ascending input indices, which gives one binary16 value in 800
//! another last bit. One of its products, out_proj along E, ran in five interleaved slices
//! ([`Order::FiveSlices`]). These two orders were found by measurement on the sample model (M = 192,
//! E = 384), the only one with vectors; a matrix library may choose others at other sizes, here they are
//! the definition.
//!
//! A processor without a fused multiply-add gets the same bits, slowly.

use crate::arith::hadamard::HadamardSize;
use crate::error::{Result, SimError};
use crate::isa::{Kernel, dispatch};
use half::f16;
use half::slice::HalfFloatSliceExt;
use rayon::prelude::*;

/// Order of the additions of a rotation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Order {
    /// Butterflies, then one multiplication by f32(1/√n).
    Butterflies,
    /// One accumulator over all inputs, first to last.
    Sequential,
    /// Inputs in groups of 8, dealt in turn to five accumulators, each a chain of its own; then
    /// the five are added, first to last.
    FiveSlices,
}

impl Order {
    fn slices(self) -> usize {
        match self {
            Order::Butterflies | Order::Sequential => 1,
            Order::FiveSlices => 5,
        }
    }
}

/// Consecutive inputs that stay in one slice.
const GROUP: usize = 8;
/// Rows and columns of the outputs that a kernel keeps in registers.
const TILE_ROWS: usize = 6;
const TILE_COLUMNS: usize = 16;
/// Rows a task takes: enough to share the matrix, few enough to balance.
const TASK_ROWS: usize = 8 * TILE_ROWS;

/// A Hadamard matrix times its norm, laid out for [`Rotation::rows`].
pub(crate) struct Rotation {
    n: usize,
    size: HadamardSize,
    order: Order,
    /// For a dense product, panels of [`TILE_COLUMNS`] outputs: `[n / 16, input, 16]`, zeros beyond n.
    panels: Vec<[f32; TILE_COLUMNS]>,
}

impl Rotation {
    /// The rotation of vectors of length `n`.
    pub fn new(n: usize, order: Order) -> Result<Self> {
        let size = HadamardSize::of(n)?;
        let norm = size.norm() as f32;
        let count = match order {
            Order::Butterflies => 0,
            Order::Sequential | Order::FiveSlices => n.div_ceil(TILE_COLUMNS) * n,
        };
        let mut panels = vec![[0.0; TILE_COLUMNS]; count];
        panels
            .par_chunks_exact_mut(n)
            .enumerate()
            .for_each(|(panel, inputs)| {
                for (input, outputs) in inputs.iter_mut().enumerate() {
                    let first = panel * TILE_COLUMNS;
                    for (output, entry) in (first..n).zip(outputs) {
                        *entry = size.entry(output, input) * norm;
                    }
                }
            });
        Ok(Self {
            n,
            size,
            order,
            panels,
        })
    }

    /// Replaces each row of length n by f16 of its rotation. `item` names the matrix in errors.
    ///
    /// # Errors
    ///
    /// A result that overflows binary16.
    pub fn rows(&self, rows: &mut [f16], item: &str) -> Result<()> {
        rows.par_chunks_mut(TASK_ROWS * self.n)
            .for_each(|rows| match self.order {
                Order::Butterflies => self.butterflies(rows),
                Order::Sequential | Order::FiveSlices => dispatch(RotateRows {
                    rotation: self,
                    rows,
                }),
            });
        all_finite(rows, item)
    }
}

impl Rotation {
    fn butterflies(&self, rows: &mut [f16]) {
        let norm = self.size.norm() as f32;
        let mut real = vec![0.0; self.n];
        for row in rows.chunks_exact_mut(self.n) {
            row.convert_to_f32_slice(&mut real);
            self.size.transform(&mut real);
            real.iter_mut().for_each(|v| *v *= norm);
            row.convert_from_f32_slice(&real);
        }
    }
}

/// Refuses values that overflowed binary16 on the way.
pub(crate) fn all_finite(values: &[f16], item: &str) -> Result<()> {
    if values.par_iter().all(|v| v.is_finite()) {
        Ok(())
    } else {
        Err(SimError::value(
            item,
            "weights within binary16 after folding",
            "an overflow",
        ))
    }
}

struct RotateRows<'a> {
    rotation: &'a Rotation,
    rows: &'a mut [f16],
}

impl Kernel for RotateRows<'_> {
    type Output = ();

    #[inline(always)]
    fn run(self) {
        let Rotation {
            n, order, panels, ..
        } = self.rotation;
        let n = *n;
        // Inputs beside each other, so that one load serves a whole tile: [input, 6].
        let mut inputs = vec![[0.0f32; TILE_ROWS]; n];
        let mut row = vec![0.0f32; n];
        for rows in self.rows.chunks_mut(TILE_ROWS * n) {
            for (r, values) in rows.chunks_exact(n).enumerate() {
                values.convert_to_f32_slice(&mut row);
                for (input, value) in inputs.iter_mut().zip(&row) {
                    input[r] = *value;
                }
            }
            for (p, panel) in panels.chunks_exact(n).enumerate() {
                let sum = tile(&inputs, panel, order.slices());
                let first = p * TILE_COLUMNS;
                let width = TILE_COLUMNS.min(n - first);
                for (values, sum) in rows.chunks_exact_mut(n).zip(&sum) {
                    values[first..][..width].convert_from_f32_slice(&sum[..width]);
                }
            }
        }
    }
}

type Tile = [[f32; TILE_COLUMNS]; TILE_ROWS];

#[inline(always)]
fn tile(inputs: &[[f32; TILE_ROWS]], panel: &[[f32; TILE_COLUMNS]], slices: usize) -> Tile {
    if slices == 1 {
        let mut sum = [[0.0; TILE_COLUMNS]; TILE_ROWS];
        accumulate(&mut sum, inputs, panel);
        return sum;
    }
    let mut total = [[0.0; TILE_COLUMNS]; TILE_ROWS];
    for slice in 0..slices {
        let mut sum = [[0.0; TILE_COLUMNS]; TILE_ROWS];
        let groups = inputs.chunks(GROUP).zip(panel.chunks(GROUP));
        for (inputs, panel) in groups.skip(slice).step_by(slices) {
            accumulate(&mut sum, inputs, panel);
        }
        for (total, sum) in total.iter_mut().zip(&sum) {
            for (total, sum) in total.iter_mut().zip(sum) {
                *total = if slice == 0 { *sum } else { *total + *sum };
            }
        }
    }
    total
}

#[inline(always)]
fn accumulate(sum: &mut Tile, inputs: &[[f32; TILE_ROWS]], panel: &[[f32; TILE_COLUMNS]]) {
    for (input, entries) in inputs.iter().zip(panel) {
        for (sum, x) in sum.iter_mut().zip(input) {
            for (sum, entry) in sum.iter_mut().zip(entries) {
                *sum = x.mul_add(*entry, *sum);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The definition, element by element.
    fn by_definition(row: &[f16], order: Order) -> Vec<f16> {
        let n = row.len();
        let size = HadamardSize::of(n).unwrap();
        let norm = size.norm() as f32;
        let chain = |output: usize, inputs: &mut dyn Iterator<Item = usize>| {
            inputs.fold(0.0f32, |sum, input| {
                f32::from(row[input]).mul_add(size.entry(output, input) * norm, sum)
            })
        };
        if order == Order::Butterflies {
            let mut real: Vec<f32> = row.iter().map(|v| f32::from(*v)).collect();
            size.transform(&mut real);
            return real.iter().map(|v| f16::from_f32(*v * norm)).collect();
        }
        let value = |output| match order {
            Order::Butterflies => unreachable!("above"),
            Order::Sequential => chain(output, &mut (0..n)),
            Order::FiveSlices => (0..5)
                .map(|slice| chain(output, &mut (0..n).filter(|input| input / 8 % 5 == slice)))
                .reduce(|a, b| a + b)
                .unwrap(),
        };
        (0..n).map(|output| f16::from_f32(value(output))).collect()
    }

    #[test]
    fn rows_follow_the_definition() {
        for n in [1, 2, 12, 20, 28, 40, 64, 192] {
            for order in [Order::Butterflies, Order::Sequential, Order::FiveSlices] {
                // Row counts around the tile's and the task's edges.
                for count in [1, 5, 6, 7, 49] {
                    let mut state = 1u32;
                    let mut rows: Vec<f16> = (0..n * count)
                        .map(|_| {
                            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
                            f16::from_f32((state >> 8) as f32 / 8_388_608.0 - 1.0)
                        })
                        .collect();
                    let want: Vec<f16> = rows
                        .chunks(n)
                        .flat_map(|row| by_definition(row, order))
                        .collect();
                    let rotation = Rotation::new(n, order).unwrap();
                    rotation.rows(&mut rows, "test").unwrap();
                    assert!(rows == want, "n {n}, {order:?}, {count} rows");
                }
            }
        }
    }

    #[test]
    fn overflow_is_refused() {
        let rotation = Rotation::new(64, Order::Sequential).unwrap();
        let error = rotation
            .rows(&mut [f16::MAX; 64], "layers.3.x")
            .unwrap_err();
        assert!(error.to_string().contains("layers.3.x"), "{error}");
    }
}
