//! What a change of a mode costs: KL from the reference and the negative log-likelihood of the text,
//! position by position, so that two runs can be paired.

use ndarray::{Array2, ArrayView1, Axis};
use rayon::prelude::*;
use scalescope_sim::datapath::{BlockInput, Datapath, LogitRows};
use scalescope_sim::error::{Result, SimError};
use scalescope_sim::score::{Row, perplexity_at};
use scalescope_sim::trace::{Blind, Tensor};

/// The text that losses are measured on: sequences, and every how many positions one counts.
#[derive(Clone, Debug)]
pub struct Text {
    /// Token ids, each sequence at least two.
    pub sequences: Vec<Vec<u32>>,
    /// Distance of the positions that count; 1 for every one.
    pub stride: usize,
}

impl Text {
    /// Positions of a sequence that count; each has a next token.
    fn positions(&self, sequence: usize) -> Vec<usize> {
        (0..self.sequences[sequence].len() - 1)
            .step_by(self.stride)
            .collect()
    }

    /// Tokens of all sequences.
    pub fn tokens(&self) -> usize {
        self.sequences.iter().map(Vec::len).sum()
    }

    /// Checks that every sequence predicts something.
    pub fn check(&self) -> Result<()> {
        match self.sequences.iter().position(|s| s.len() < 2) {
            None => Ok(()),
            Some(i) => Err(SimError::value(
                format_args!("sequence {i}"),
                "at least two tokens, to predict one from the other",
                self.sequences[i].len(),
            )),
        }
    }
}

/// Losses at the positions that count, over all sequences.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Losses {
    /// KL(reference ‖ run), nats.
    pub kl: Vec<f64>,
    /// −log p of the next token, nats.
    pub nll: Vec<f64>,
}

/// Mean and its standard error.
#[derive(Clone, Copy, Debug, Default, PartialEq, serde::Serialize)]
pub struct Mean {
    /// Mean.
    pub mean: f64,
    /// Standard error of the mean; positions are taken as independent.
    pub se: f64,
}

/// With its error, which one position does not tell.
impl std::fmt::Display for Mean {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let digits = f.precision().unwrap_or(6);
        match self.se.is_nan() {
            true => write!(f, "{:.digits$}", self.mean),
            false => write!(f, "{:.digits$} ± {:.digits$}", self.mean, self.se),
        }
    }
}

impl Mean {
    /// Of some numbers.
    pub fn of(values: impl Iterator<Item = f64> + Clone) -> Self {
        let n = values.clone().count() as f64;
        let mean = values.clone().sum::<f64>() / n;
        let squares: f64 = values.map(|v| (v - mean).powi(2)).sum();
        let se = match n > 1.0 {
            true => (squares / (n - 1.0) / n).sqrt(),
            false => f64::NAN,
        };
        Self { mean, se }
    }

    /// Two estimates in one: each with the weight of 1 / se², or their plain mean where they differ
    /// by more than three standard errors, so that they do not measure the same.
    pub fn pooled_with(self, other: Self) -> Self {
        let (own, others) = (self.se * self.se, other.se * other.se);
        let apart = (self.mean - other.mean).powi(2) > 9.0 * (own + others);
        // Without any error all values are equal, or there is one only.
        match own + others > 0.0 && !apart {
            true => Self {
                mean: (self.mean * others + other.mean * own) / (own + others),
                se: (own * others / (own + others)).sqrt(),
            },
            false => Self {
                mean: 0.5 * (self.mean + other.mean),
                se: 0.5 * (own + others).sqrt(),
            },
        }
    }

    /// Whether it lies above zero by more than three standard errors: one in a thousand that are zero do. The one
    /// rule of sites (table, findings, shading of the page). Parts of the report's verdict are tested all at once,
    /// on other errors, and have Holm's correction (`report::verdict`).
    pub fn stands_out(self) -> bool {
        self.mean > 3.0 * self.se
    }

    /// Of the paired differences a − b.
    pub fn of_difference(a: &[f64], b: &[f64]) -> Self {
        Self::of(a.iter().zip(b).map(|(a, b)| a - b))
    }
}

impl Losses {
    /// Mean KL.
    pub fn mean_kl(&self) -> f64 {
        Mean::of(self.kl.iter().copied()).mean
    }

    /// exp of the mean negative log-likelihood.
    pub fn perplexity(&self) -> f64 {
        perplexity_at(-Mean::of(self.nll.iter().copied()).mean)
    }
}

const ROW_MAJOR: &str = "logits are row-major";

/// A text with the reference's logits.
pub struct Judge<'a> {
    text: &'a Text,
    /// Logits at the positions that count, one array a sequence.
    truth: Vec<Array2<f32>>,
    /// Of each of them the logarithm of its total and its probabilities: every run asks for them.
    known: Vec<Vec<(f64, Vec<f64>)>>,
}

/// What every block of a path gets, sequence by sequence.
pub struct Starts(Vec<Vec<BlockInput>>);

impl<'a> Judge<'a> {
    /// Runs the reference.
    pub fn new(text: &'a Text, reference: &Datapath) -> Result<Self> {
        text.check()?;
        let mut judge = Self {
            text,
            truth: Vec::new(),
            known: Vec::new(),
        };
        let starts = judge.starts(reference)?;
        judge.truth = (0..text.sequences.len())
            .into_par_iter()
            .map(|sequence| judge.logits(reference, sequence, &starts, 0))
            .collect::<Result<_>>()?;
        let known = |row: ArrayView1<f32>| {
            let row = Row::new(row.to_slice().expect(ROW_MAJOR));
            (row.log_total(), row.probabilities())
        };
        let all = |logits: &Array2<f32>| logits.outer_iter().map(known).collect();
        judge.known = judge.truth.par_iter().map(all).collect();
        Ok(judge)
    }

    /// What every block gets.
    pub fn starts(&self, path: &Datapath) -> Result<Starts> {
        let run = |tokens: &Vec<u32>| -> Result<Vec<BlockInput>> {
            let mut passing = path.start(tokens)?;
            let mut all = Vec::new();
            for block in 0..path.config().n_layers {
                all.push(passing.clone());
                (passing, _) = path.prefill_block(block, passing, &mut Blind)?;
            }
            all.push(passing);
            Ok(all)
        };
        Ok(Starts(
            self.text
                .sequences
                .par_iter()
                .map(run)
                .collect::<Result<_>>()?,
        ))
    }

    /// Makes `starts` those of a path that has changed in block `first`.
    pub fn advance(&self, path: &Datapath, starts: &mut Starts, first: usize) -> Result<()> {
        starts.0.par_iter_mut().try_for_each(|starts| {
            for block in first..path.config().n_layers {
                let passing = starts[block].clone();
                (starts[block + 1], _) = path.prefill_block(block, passing, &mut Blind)?;
            }
            Ok(())
        })
    }

    /// Losses of a path that is the one of `starts` up to block `first`.
    pub fn losses(&self, path: &Datapath, starts: &Starts, first: usize) -> Result<Losses> {
        let mut all = Losses::default();
        for (sequence, tokens) in self.text.sequences.iter().enumerate() {
            let logits = self.logits(path, sequence, starts, first)?;
            let positions = self.text.positions(sequence);
            let truth = self.truth[sequence].outer_iter().zip(&self.known[sequence]);
            for ((row, (truth, (total, probabilities))), t) in
                logits.outer_iter().zip(truth).zip(positions)
            {
                let row = Row::new(row.to_slice().expect(ROW_MAJOR));
                let truth = Row::with_total(truth.to_slice().expect(ROW_MAJOR), *total);
                all.kl.push(row.kl_from_known(&truth, probabilities));
                all.nll.push(-row.log_likelihood(tokens[t + 1]));
            }
        }
        match all.kl.iter().chain(&all.nll).all(|v| v.is_finite()) {
            true => Ok(all),
            false => Err(SimError::value(
                "logits",
                "finite numbers",
                "NaN or infinity",
            )),
        }
    }

    fn logits(
        &self,
        path: &Datapath,
        sequence: usize,
        starts: &Starts,
        first: usize,
    ) -> Result<Array2<f32>> {
        let mut passing = starts.0[sequence][first].clone();
        for block in first..path.config().n_layers {
            (passing, _) = path.prefill_block(block, passing, &mut Blind)?;
        }
        let rows = self.text.positions(sequence);
        let passing = BlockInput {
            hidden: match &passing.hidden {
                Tensor::F16(a) => Tensor::F16(a.select(Axis(0), &rows)),
                other => Tensor::F32(other.to_real().select(Axis(0), &rows)),
            },
            residual: passing.residual.map(|r| r.select(Axis(0), &rows)),
        };
        Ok(path.finish(passing, LogitRows::All, &mut Blind)?.to_real())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn estimates_are_pooled_by_precision_unless_they_contradict() {
        let of = |mean, se| Mean { mean, se };
        let pooled = |a: Mean, b: Mean| a.pooled_with(b);
        assert_eq!(pooled(of(2.0, 1.0), of(0.0, 1.0)), of(1.0, 0.5f64.sqrt()));
        let unequal = pooled(of(1.0, 2.0), of(0.0, 1.0));
        assert!((unequal.mean - 0.2).abs() < 1e-12 && (unequal.se - 0.8f64.sqrt()).abs() < 1e-12);
        let apart = pooled(of(5.0, 1.0), of(1.0, 0.1));
        assert!(apart.mean == 3.0 && (apart.se - 0.5 * 1.01f64.sqrt()).abs() < 1e-12);
        assert_eq!(pooled(of(0.5, 1.0), of(0.0, 0.0)), of(0.0, 0.0));
        assert_eq!(pooled(of(4.0, 0.0), of(2.0, 0.0)), of(3.0, 0.0));
        let one = pooled(of(4.0, f64::NAN), of(2.0, f64::NAN));
        assert!(one.mean == 3.0 && one.se.is_nan() && !one.stands_out());
        assert!(of(3.1, 1.0).stands_out() && !of(2.9, 1.0).stands_out());
    }
}
