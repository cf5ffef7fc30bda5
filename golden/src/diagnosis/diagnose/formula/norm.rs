//! The residual stream and its norm.

use super::{BlockInputs, Measured, Narrow, Operand, Output};
use ndarray::{Array2, s};
use scalescope_sim::dataflow::Row;
use std::ops::Range;
use std::sync::Arc;

/// `residual ⊕ hidden`.
#[derive(Clone, Debug)]
pub struct Add {
    /// The block before's output.
    pub hidden: Operand,
    /// How often it goes in.
    pub hidden_times: f32,
    /// The stream; none before the first block.
    pub residual: Option<Operand>,
    /// How often it goes in.
    pub residual_times: f32,
    /// How results are stored.
    pub output: Output,
}

impl Add {
    pub(super) fn of(scene: &BlockInputs, row: &Row) -> Option<Self> {
        let mut reads = row.reads.iter().map(|read| scene.operand(read));
        Some(Self {
            output: scene.output(row, false)?,
            ..Self::new(reads.next()??, reads.next()?)
        })
    }

    /// The sum of two.
    pub fn new(hidden: Operand, residual: Option<Operand>) -> Self {
        Self {
            hidden,
            hidden_times: 1.0,
            residual,
            residual_times: 1.0,
            output: Output::real(false),
        }
    }

    /// `[L, M]`.
    pub fn run(&self) -> Array2<f32> {
        let hidden = &self.hidden.values;
        Array2::from_shape_fn(hidden.dim(), |at| {
            let h = hidden[at] * self.hidden_times;
            self.output.of(match &self.residual {
                Some(residual) => h + residual.values[at] * self.residual_times,
                None => h,
            })
        })
    }
}

/// 1/√v, guessed from the bits of the float and made better by Newton's steps.
fn guess(v: f32, steps: usize) -> f32 {
    let mut y = f32::from_bits(0x5f37_59df - (v.to_bits() >> 1));
    for _ in 0..steps {
        y *= 1.5 - 0.5 * v * y * y;
    }
    y
}

/// `(r ⊗ rstd) ⊗ w`.
#[derive(Clone, Debug)]
pub struct Norm {
    /// The stream, `[L, M]`.
    pub residual: Operand,
    /// M.
    pub weight: Vec<f32>,
    /// ε.
    pub eps: f64,
    /// Whether ε is added to the root.
    pub eps_outside: bool,
    /// Whether the mean is taken away first, as LayerNorm does.
    pub centred: bool,
    /// Whose squares are summed.
    pub squares: Range<usize>,
    /// Of these only every so many-th, from here on.
    pub every: Option<(usize, usize)>,
    /// What squares are divided by, over M.
    pub mean_of: f64,
    /// Whether the root of the mean square is drawn.
    pub rooted: bool,
    /// Whether rows are normalized at all.
    pub normalizes: bool,
    /// The type of 1/rms.
    pub rstd: Option<Narrow>,
    /// Whether magnitudes are averaged in the place of squares, and no root is drawn.
    pub magnitudes: bool,
    /// Whether the sum of squares is not cleared between tokens.
    pub goes_on: bool,
    /// Tokens that share the root of the first of them.
    pub shared: usize,
    /// Channels that have a root of their own: so many one after another, or every so many-th.
    pub groups: Option<(usize, bool)>,
    /// Newton steps after the root's first guess out of the bits of the float; none for the root itself.
    pub guessed: Option<usize>,
    /// The inverse of the root as a function of the mean square and ε, read off a dump.
    pub measured: Option<Arc<Measured>>,
    /// How results are stored.
    pub output: Output,
}

impl Norm {
    pub(super) fn of(scene: &BlockInputs, row: &Row) -> Option<Self> {
        let residual = scene.operand(row.reads.first()?)?;
        let weight = scene.path.norm_weight(scene.layer).to_vec();
        let (eps, output) = (scene.path.config().eps.into(), scene.output(row, false)?);
        Some(Self::new(residual, weight, eps, output))
    }

    /// The norm of rows.
    pub fn new(residual: Operand, weight: Vec<f32>, eps: f64, output: Output) -> Self {
        Self {
            residual,
            squares: 0..weight.len(),
            every: None,
            weight,
            eps,
            eps_outside: false,
            centred: false,
            mean_of: 1.0,
            rooted: true,
            normalizes: true,
            rstd: None,
            magnitudes: false,
            goes_on: false,
            shared: 1,
            groups: None,
            guessed: None,
            measured: None,
            output,
        }
    }

    /// The inverse of the root of each group of a row's channels.
    fn roots(&self, row: ndarray::ArrayView1<f32>, (size, together): (usize, bool)) -> Vec<f32> {
        let count = if together {
            row.len().div_ceil(size)
        } else {
            size
        };
        let mut sums = vec![(0.0f64, 0.0f64); count];
        for (c, v) in row.iter().enumerate() {
            let sum = &mut sums[if together { c / size } else { c % size }];
            *sum = (sum.0 + f64::from(*v) * f64::from(*v), sum.1 + 1.0);
        }
        let root = |(sum, n): &(f64, f64)| (1.0 / (sum / n + self.eps).sqrt()) as f32;
        sums.iter().map(root).collect()
    }

    /// Of each token the mean square and ε.
    pub fn mean_squares(&self) -> Vec<f64> {
        let rows = self.residual.values.rows().into_iter();
        let mean = |row: ndarray::ArrayView1<f32>| {
            let squares = row.iter().map(|v| f64::from(*v) * f64::from(*v));
            squares.sum::<f64>() / row.len() as f64
        };
        rows.map(|row| mean(row) + self.eps).collect()
    }

    /// Codes or reals, `[L, M]`.
    pub fn run(&self) -> Array2<f32> {
        let values = &self.residual.values;
        let mut out = Array2::zeros(values.dim());
        let mut before = 0.0;
        for (t, (row, mut to)) in values.rows().into_iter().zip(out.rows_mut()).enumerate() {
            let rooted = values.row(t / self.shared * self.shared);
            let m = row.len() as f64;
            let mean = match self.centred {
                true => row.iter().map(|v| f64::from(*v)).sum::<f64>() / m,
                false => 0.0,
            };
            let square = |v: &f32| (f64::from(*v) - mean) * (f64::from(*v) - mean);
            let squares = rooted.slice(s![self.squares.clone()]);
            let used = |c: usize| self.every.is_none_or(|(step, first)| c % step == first);
            let squares = squares.iter().enumerate().filter(|(c, _)| used(*c));
            let squares = squares.map(|(_, v)| square(v)).sum::<f64>();
            before = squares + if self.goes_on { before } else { 0.0 };
            let mean_square = before / m * self.mean_of;
            let root = match (self.rooted, self.eps_outside) {
                _ if self.magnitudes => {
                    rooted.iter().map(|v| f64::from(v.abs())).sum::<f64>() / m + self.eps
                }
                (false, _) => mean_square + self.eps,
                (true, true) => mean_square.sqrt() + self.eps,
                (true, false) => (mean_square + self.eps).sqrt(),
            };
            let mut rstd = match self.normalizes {
                true => match self.guessed {
                    Some(steps) => guess((root * root) as f32, steps),
                    None => (1.0 / root) as f32,
                },
                false => 1.0,
            };
            if let Some(measured) = &self.measured {
                rstd = measured.at((mean_square + self.eps) as f32);
            }
            if let Some(narrow) = self.rstd {
                rstd = narrow.of(rstd);
            }
            let roots = self.groups.map(|groups| self.roots(row, groups));
            for (c, ((to, v), w)) in to.iter_mut().zip(row).zip(&self.weight).enumerate() {
                let rstd = match (&roots, self.groups) {
                    (Some(roots), Some((size, true))) => roots[c / size],
                    (Some(roots), Some((size, false))) => roots[c % size],
                    _ => rstd,
                };
                let v = match self.centred {
                    true => (f64::from(*v) - mean) as f32,
                    false => *v,
                };
                *to = self.output.of((v * rstd) * w);
            }
        }
        out
    }
}
