//! When an element of a tensor counts as another, and the pattern of those that do.

use crate::diagnosis::diagnose::pattern::{Pair, Pattern, describe};
use crate::ulp::ulp_f16;
use crate::value::Value;
use half::f16;
use ndarray::Array2;

/// A tensor of a dump as numbers.
pub fn values(value: &Value) -> Array2<f32> {
    match value {
        Value::I8(a) => a.mapv(f32::from),
        Value::F16(a) => a.mapv(f16::to_f32),
        Value::F32(a) => a.clone(),
    }
}

/// When an element of a type counts as another.
#[derive(Clone, Copy)]
pub struct Judge {
    dtype: &'static str,
    unit: f32,
}

impl Judge {
    pub fn of(dtype: &'static str, numbers: &Array2<f32>) -> Self {
        let finite = numbers.iter().filter(|v| v.is_finite());
        let (sum, count) = finite.fold((0.0f64, 0usize), |(sum, n), v| {
            (sum + f64::from(*v) * f64::from(*v), n + 1)
        });
        Self {
            dtype,
            unit: (sum / count.max(1) as f64).sqrt() as f32,
        }
    }

    /// How far two are apart, in sizes of the tensor's values; infinitely far if one is no number.
    pub fn distance(&self, a: f32, b: f32) -> f64 {
        let apart = f64::from((a - b).abs()) / f64::from(self.unit.max(f32::MIN_POSITIVE));
        if apart.is_nan() { f64::INFINITY } else { apart }
    }

    pub fn differs(&self, a: f32, b: f32) -> bool {
        if a == b || a.is_nan() && b.is_nan() {
            return false;
        }
        let error = (a - b).abs();
        match self.dtype {
            "i8" => true,
            "f16" => {
                let near = ulp_f16(f16::from_f32(a), f16::from_f32(b)).is_some_and(|ulp| ulp <= 1);
                !(near || error <= 1e-4 * self.unit)
            }
            _ => !(error <= 1e-5 * a.abs().max(b.abs()) || error <= 1e-6 * self.unit),
        }
    }
}

/// What a step makes of one sequence, and what a file has of it.
pub struct Compared {
    pub dtype: &'static str,
    pub made: Array2<f32>,
    pub dumped: Array2<f32>,
    /// Whether floats that the last place keeps apart are equal.
    pub near: bool,
}

impl Compared {
    pub fn of(dtype: &'static str, made: Array2<f32>, dumped: Array2<f32>) -> Self {
        Self {
            dtype,
            made,
            dumped,
            near: true,
        }
    }
}

/// What deviates in the sequences of a tensor.
pub fn pattern_of(all: &[Compared], state: bool) -> Pattern {
    let deviates: Vec<Vec<bool>> = all
        .iter()
        .map(|c| {
            let judge = Judge::of(c.dtype, &c.made);
            let differs = |(a, b): (&f32, &f32)| match c.near {
                true => judge.differs(*a, *b),
                false => a.to_bits() != b.to_bits(),
            };
            c.made.iter().zip(&c.dumped).map(differs).collect()
        })
        .collect();
    let pairs: Vec<Pair> = all
        .iter()
        .zip(&deviates)
        .map(|(c, deviates)| Pair {
            made: c.made.as_slice().expect("row-major"),
            dumped: c.dumped.as_slice().expect("row-major"),
            deviates,
            columns: c.made.ncols(),
        })
        .collect();
    describe(&pairs, all.iter().any(|c| c.dtype == "i8"), state)
}
