//! Folds norms and Hadamard matrices into the weights, so that the residual stream lives in
//! Hadamard space. Source: `docs/arithmetic.md`, "Model preparation"; the order of additions
//! is the recipe's (see the private module `rotate`).

use super::recipe::{Recipe, WeightRotation};
use super::rotate::{Order, Rotation, all_finite};
use crate::arith::requant::to_f16;
use crate::error::{Result, SimError};
use crate::model::{FloatLayer, FloatModel};
use half::f16;
use ndarray::Array2;
use rayon::prelude::*;

/// Folds a checkpoint in place, in the recipe's order of additions; the result has `rotated` set and computes the same function, up to
/// the f16 roundings below.
///
/// With H(n) the orthonormal Hadamard matrix of size n, rows times H, everything rounded to f16:
///
/// - embedding ← E·H(M); head ← f16(head·diag(norm_f))·H(M); norm_f ← 1.
/// - in_proj ← f16(W·diag(norm))·H(M); norm ← 1.
/// - out_proj ← rows times H(E), then columns times H(M).
///
/// # Errors
///
/// A model that is folded already, sizes without a Hadamard matrix, weights that overflow binary16
/// when they are multiplied by their norm.
pub fn fold(mut model: FloatModel, recipe: &Recipe) -> Result<FloatModel> {
    if model.rotated {
        return Err(SimError::value(
            "model",
            "a checkpoint as trained",
            "a model that is folded already",
        ));
    }
    let (order_m, order_e) = match recipe.rotation {
        WeightRotation::Butterflies => (Order::Butterflies, Order::Butterflies),
        WeightRotation::DenseProduct => (Order::Sequential, Order::FiveSlices),
    };
    let along_m = Rotation::new(model.config.d_model, order_m)?;
    let along_e = Rotation::new(model.config.d_inner, order_e)?;
    along_m.rows(slice(&mut model.embedding), "embeddings.weight")?;
    scale_columns(&mut model.head, &model.norm_f, "lm_head.weight")?;
    along_m.rows(slice(&mut model.head), "lm_head.weight")?;
    model.norm_f.fill(f16::ONE);
    for (i, layer) in model.layers.iter_mut().enumerate() {
        fold_layer(layer, i, &along_m, &along_e)?;
    }
    model.rotated = true;
    Ok(model)
}

fn fold_layer(
    layer: &mut FloatLayer,
    i: usize,
    along_m: &Rotation,
    along_e: &Rotation,
) -> Result<()> {
    let in_proj = format!("layers.{i}.in_proj.weight");
    scale_columns(&mut layer.in_proj, &layer.norm, &in_proj)?;
    layer.norm.fill(f16::ONE);
    along_m.rows(slice(&mut layer.in_proj), &in_proj)?;

    let out_proj = format!("layers.{i}.out_proj.weight");
    along_e.rows(slice(&mut layer.out_proj), &out_proj)?;
    let mut columns = transposed(&layer.out_proj);
    along_m.rows(slice(&mut columns), &out_proj)?;
    layer.out_proj = transposed(&columns);
    Ok(())
}

/// `W[i, j] ← f16(W[i, j] · v[j])`. The product of two binary16 numbers is exact in f32, so this
/// rounds once, as the reference's f64 product does.
fn scale_columns(matrix: &mut Array2<f16>, factors: &[f16], item: &str) -> Result<()> {
    let values = slice(matrix);
    values
        .par_chunks_exact_mut(factors.len())
        .with_min_len(64)
        .for_each(|row| {
            for (w, factor) in row.iter_mut().zip(factors) {
                *w = to_f16(f32::from(*w) * f32::from(*factor));
            }
        });
    all_finite(values, item)
}

fn transposed(matrix: &Array2<f16>) -> Array2<f16> {
    matrix.t().as_standard_layout().into_owned()
}

fn slice(matrix: &mut Array2<f16>) -> &mut [f16] {
    matrix.as_slice_mut().expect("weights are row-major")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::arith::hadamard::HadamardSize;
    use crate::checkpoint::synthetic::{Shape, float_model};

    fn tiny() -> FloatModel {
        let mut model = float_model(Shape::named("tiny").unwrap());
        model.rotated = false;
        for (i, norm) in model.layers[0].norm.iter_mut().enumerate() {
            *norm = f16::from_f32(0.5 + i as f32 / 64.0);
        }
        model
    }

    /// Row `i` of a matrix times H(n), in f64.
    fn times_hadamard(row: impl Iterator<Item = f64> + Clone, n: usize) -> Vec<f64> {
        let size = HadamardSize::of(n).unwrap();
        let entry = |i, j| f64::from(size.entry(i, j)) * size.norm();
        let dot = |i| row.clone().enumerate().map(|(j, v)| v * entry(i, j)).sum();
        (0..n).map(dot).collect()
    }

    #[test]
    fn the_function_stays_the_same() {
        for recipe in &Recipe::ALL {
            the_function_stays(&tiny(), &fold(tiny(), recipe).unwrap());
        }
    }

    fn the_function_stays(before: &FloatModel, after: &FloatModel) {
        assert!(after.rotated);
        assert!(after.layers[0].norm.iter().all(|n| *n == f16::ONE));
        let close = |got: f16, want: f64| (f64::from(got) - want).abs() < 2e-3;

        let (old, new) = (&before.layers[0], &after.layers[0]);
        let normed = |(w, n): (&f16, &f16)| f64::from(*w) * f64::from(*n);
        let row = old.in_proj.row(7);
        let want = times_hadamard(row.iter().zip(&old.norm).map(normed), 64);
        for (got, want) in new.in_proj.row(7).iter().zip(want) {
            assert!(close(*got, want), "{got} {want}");
        }
        // out_proj: H(M) · W · H(E), one entry by the definition.
        let (m, e) = (64, 128);
        let rows: Vec<Vec<f64>> = (0..m)
            .map(|i| times_hadamard(old.out_proj.row(i).iter().map(|w| f64::from(*w)), e))
            .collect();
        for j in [0, 5, 127] {
            let want = times_hadamard(rows.iter().map(|row| row[j]), m);
            for (i, want) in want.into_iter().enumerate() {
                assert!(close(new.out_proj[[i, j]], want), "[{i}, {j}]");
            }
        }
    }

    #[test]
    fn a_folded_model_is_refused() {
        let error = fold(fold(tiny(), &Recipe::QUAMBA).unwrap(), &Recipe::QUAMBA)
            .unwrap_err()
            .to_string();
        assert!(error.contains("folded already"), "{error}");
    }

    #[test]
    fn an_overflow_is_named() {
        let mut model = tiny();
        model.layers[1].in_proj[[3, 3]] = f16::MAX;
        model.layers[1].norm[3] = f16::from_f32(2.0);
        let error = fold(model, &Recipe::QUAMBA).unwrap_err().to_string();
        assert!(error.contains("layers.1.in_proj.weight"), "{error}");
    }
}
