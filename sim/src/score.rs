//! What logits say about the next token: log-likelihood, the greedy choice, divergence from a
//! reference. All in f64, natural logarithms.

use crate::error::{Result, SimError};
use crate::isa::{Kernel, dispatch};
use ndarray::ArrayView1;

/// Log-softmax of a row of logits, kept as logits and one constant.
#[derive(Clone, Copy, Debug)]
pub struct Row<'a> {
    logits: &'a [f32],
    /// log Σ exp(logit).
    log_total: f64,
}

impl<'a> Row<'a> {
    /// Takes the logits of one token, `[V]`.
    pub fn new(logits: &'a [f32]) -> Self {
        let top = f64::from(logits.iter().copied().fold(f32::NEG_INFINITY, f32::max));
        let total: f64 = logits.iter().map(|v| (f64::from(*v) - top).exp()).sum();
        Self {
            logits,
            log_total: top + total.ln(),
        }
    }

    /// [`Row::new`] of logits whose [`Row::log_total`] is known already.
    pub fn with_total(logits: &'a [f32], log_total: f64) -> Self {
        Self { logits, log_total }
    }

    /// log Σ exp(logit).
    pub fn log_total(&self) -> f64 {
        self.log_total
    }

    /// Log-likelihood of a token.
    pub fn log_likelihood(&self, token: u32) -> f64 {
        f64::from(self.logits[token as usize]) - self.log_total
    }

    /// The most likely token; the first of equals.
    pub fn greedy(&self) -> u32 {
        greedy(self.logits)
    }

    /// Probabilities of every token: what a row that many are held against gives them all.
    pub fn probabilities(&self) -> Vec<f64> {
        let probability = |v: &f32| (f64::from(*v) - self.log_total).exp();
        self.logits.iter().map(probability).collect()
    }

    /// KL(reference ‖ self): the nats lost by believing `self` where `reference` is true.
    pub fn kl_from(&self, reference: &Row) -> f64 {
        self.kl_from_known(reference, &reference.probabilities())
    }

    /// [`Row::kl_from`] a reference whose [`Row::probabilities`] are known already.
    pub fn kl_from_known(&self, reference: &Row, probabilities: &[f64]) -> f64 {
        assert_eq!(self.logits.len(), reference.logits.len());
        assert_eq!(self.logits.len(), probabilities.len());
        let shift = self.log_total - reference.log_total;
        let sum: f64 = (self.logits.iter().zip(reference.logits))
            .zip(probabilities)
            .map(|((own, true_logit), probability)| {
                probability * (f64::from(*true_logit) - f64::from(*own) + shift)
            })
            .sum();
        sum.max(0.0)
    }
}

/// The index of the largest logit; the first of equals.
pub fn greedy(logits: &[f32]) -> u32 {
    dispatch(Greedy { logits })
}

/// [`greedy`], of logits that have to be numbers.
///
/// # Errors
///
/// Logits with NaN or infinity.
pub fn most_likely(logits: &[f32]) -> Result<u32> {
    match logits.iter().position(|v| !v.is_finite()) {
        None => Ok(greedy(logits)),
        Some(token) => {
            let item = format_args!("logit of token {token}");
            Err(SimError::value(item, "a finite number", logits[token]))
        }
    }
}

struct Greedy<'a> {
    logits: &'a [f32],
}

impl Kernel for Greedy<'_> {
    type Output = u32;

    #[inline(always)]
    fn run(self) -> u32 {
        let top = self
            .logits
            .iter()
            .copied()
            .fold(f32::NEG_INFINITY, f32::max);
        self.logits.iter().position(|v| *v == top).unwrap_or(0) as u32
    }
}

/// Scores of a sequence under a model: for each token but the first, how likely the model held it.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct SequenceScore {
    /// Log-likelihood of tokens 1, 2, ….
    pub log_likelihood: Vec<f64>,
    /// Greedy choices for tokens 1, 2, ….
    pub greedy: Vec<u32>,
}

impl SequenceScore {
    /// Scores `tokens` (L) by `logits` (`[L, V]`, row t predicts token t+1; the last row is unused).
    pub fn new(tokens: &[u32], logits: &ndarray::Array2<f32>) -> Self {
        let mut score = Self::default();
        for (row, target) in logits.rows().into_iter().zip(&tokens[1..]) {
            let row = Row::new(slice(&row));
            score.log_likelihood.push(row.log_likelihood(*target));
            score.greedy.push(row.greedy());
        }
        score
    }
}

fn slice<'a>(row: &'a ArrayView1<f32>) -> &'a [f32] {
    row.as_slice().expect("logits are row-major")
}

/// exp(−mean log-likelihood); NaN of nothing.
pub fn perplexity<'a>(log_likelihoods: impl IntoIterator<Item = &'a f64>) -> f64 {
    let (mut sum, mut count) = (0.0, 0usize);
    for v in log_likelihoods {
        sum += v;
        count += 1;
    }
    perplexity_at(sum / count as f64)
}

/// The perplexity at a mean log-likelihood.
pub fn perplexity_at(mean_log_likelihood: f64) -> f64 {
    (-mean_log_likelihood).exp()
}

#[cfg(test)]
mod tests {
    use super::*;
    use approx::assert_relative_eq;

    #[test]
    fn by_hand() {
        let logits = [0.0, 2f32.ln(), 0.0];
        let p = Row::new(&logits);
        assert_relative_eq!(p.log_likelihood(1), 0.5f64.ln(), epsilon = 1e-7);
        assert_eq!(p.greedy(), 1);
        let q = Row::new(&[0.0, 0.0, 0.0]);
        let kl = 0.5 * (1.5f64).ln() + 0.5 * 0.75f64.ln();
        assert_relative_eq!(q.kl_from(&p), kl, epsilon = 1e-7);
        assert_eq!(p.kl_from(&p), 0.0);
        assert_eq!(greedy(&[1.0, 3.0, 3.0]), 1);
        assert!(perplexity(&[]).is_nan());
        assert_relative_eq!(
            perplexity(&[-(2f64.ln()), -(8f64.ln())]),
            4.0,
            epsilon = 1e-12
        );
    }
}
