//! Systems of equations.

use ndarray::{Array2, s};

/// A symmetric positive matrix in a form that solves systems with it (Cholesky).
pub struct Factored(Array2<f64>);

impl Factored {
    /// Of a matrix; `None` if it is not positive.
    pub fn of(mut a: Array2<f64>) -> Option<Self> {
        for i in 0..a.nrows() {
            for j in 0..=i {
                let sum = a.slice(s![i, ..j]).dot(&a.slice(s![j, ..j]));
                let v = a[(i, j)] - sum;
                if i == j {
                    if v <= 0.0 {
                        return None;
                    }
                    a[(i, i)] = v.sqrt();
                } else {
                    a[(i, j)] = v / a[(j, j)];
                }
            }
        }
        Some(Self(a))
    }

    /// The solution for a right side.
    pub fn solve(&self, mut b: Vec<f64>) -> Vec<f64> {
        let Self(a) = self;
        let n = b.len();
        for i in 0..n {
            let sum: f64 = (0..i).map(|k| a[(i, k)] * b[k]).sum();
            b[i] = (b[i] - sum) / a[(i, i)];
        }
        for i in (0..n).rev() {
            let sum: f64 = (i + 1..n).map(|k| a[(k, i)] * b[k]).sum();
            b[i] = (b[i] - sum) / a[(i, i)];
        }
        b
    }
}

/// Solves a symmetric positive system.
pub fn solve(a: Array2<f64>, b: Vec<f64>) -> Option<Vec<f64>> {
    Some(Factored::of(a)?.solve(b))
}
