//! Systems of equations.

use ndarray::{Array2, s};

/// Solves a symmetric positive system (Cholesky).
pub fn solve(mut a: Array2<f64>, mut b: Vec<f64>) -> Option<Vec<f64>> {
    let n = b.len();
    for i in 0..n {
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
    for i in 0..n {
        let sum: f64 = (0..i).map(|k| a[(i, k)] * b[k]).sum();
        b[i] = (b[i] - sum) / a[(i, i)];
    }
    for i in (0..n).rev() {
        let sum: f64 = (i + 1..n).map(|k| a[(k, i)] * b[k]).sum();
        b[i] = (b[i] - sum) / a[(i, i)];
    }
    Some(b)
}
