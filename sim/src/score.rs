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
        let top = f64::from(dispatch(Top { logits }));
        let total: f64 = dispatch(Exps { logits, less: top }).iter().sum();
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
        let less = self.log_total;
        dispatch(Probabilities {
            logits: self.logits,
            less,
        })
    }

    /// KL(reference ‖ self): the nats lost by believing `self` where `reference` is true.
    pub fn kl_from(&self, reference: &Row) -> f64 {
        self.kl_from_known(reference, &reference.probabilities())
    }

    /// [`Row::kl_from`] a reference whose [`Row::probabilities`] are known already.
    pub fn kl_from_known(&self, reference: &Row, probabilities: &[f64]) -> f64 {
        assert_eq!(self.logits.len(), reference.logits.len());
        assert_eq!(self.logits.len(), probabilities.len());
        let sums = dispatch(Divergence {
            own: self.logits,
            reference: reference.logits,
            probabilities,
            shift: self.log_total - reference.log_total,
        });
        sums.iter().sum::<f64>().max(0.0)
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

/// Sums are taken in so many lanes, so that they are the same whatever vectors a machine has.
const LANES: usize = 16;

/// The largest logit; NaN is none.
struct Top<'a> {
    logits: &'a [f32],
}

impl Kernel for Top<'_> {
    type Output = f32;

    #[inline(always)]
    fn run(self) -> f32 {
        let mut tops = [f32::NEG_INFINITY; LANES];
        let larger = |top: f32, v: f32| if v > top { v } else { top };
        let (whole, rest) = self.logits.as_chunks::<LANES>();
        for part in whole {
            for i in 0..LANES {
                tops[i] = larger(tops[i], part[i]);
            }
        }
        let whole = tops.into_iter().fold(f32::NEG_INFINITY, larger);
        rest.iter().copied().fold(whole, larger)
    }
}

/// Σ exp(logit − less), lane by lane.
struct Exps<'a> {
    logits: &'a [f32],
    less: f64,
}

impl Kernel for Exps<'_> {
    type Output = [f64; LANES];

    #[inline(always)]
    fn run(self) -> [f64; LANES] {
        let mut sums = [0.0; LANES];
        let (whole, rest) = self.logits.as_chunks::<LANES>();
        for part in whole {
            for (sum, v) in sums.iter_mut().zip(part) {
                *sum += exp(f64::from(*v) - self.less);
            }
        }
        for (sum, v) in sums.iter_mut().zip(rest) {
            *sum += exp(f64::from(*v) - self.less);
        }
        sums
    }
}

struct Probabilities<'a> {
    logits: &'a [f32],
    less: f64,
}

impl Kernel for Probabilities<'_> {
    type Output = Vec<f64>;

    #[inline(always)]
    fn run(self) -> Vec<f64> {
        let mut all = vec![0.0; self.logits.len()];
        for (p, v) in all.iter_mut().zip(self.logits) {
            *p = exp(f64::from(*v) - self.less);
        }
        all
    }
}

/// Σ p · (reference − own + shift), lane by lane.
struct Divergence<'a> {
    own: &'a [f32],
    reference: &'a [f32],
    probabilities: &'a [f64],
    shift: f64,
}

impl Kernel for Divergence<'_> {
    type Output = [f64; LANES];

    #[inline(always)]
    fn run(self) -> [f64; LANES] {
        let mut sums = [0.0; LANES];
        let term = |own: f32, reference: f32, p: f64| {
            p * (f64::from(reference) - f64::from(own) + self.shift)
        };
        let (own, own_rest) = self.own.as_chunks::<LANES>();
        let (reference, reference_rest) = self.reference.as_chunks::<LANES>();
        let (p, p_rest) = self.probabilities.as_chunks::<LANES>();
        for ((own, reference), p) in own.iter().zip(reference).zip(p) {
            for i in 0..LANES {
                sums[i] += term(own[i], reference[i], p[i]);
            }
        }
        for i in 0..own_rest.len() {
            sums[i] += term(own_rest[i], reference_rest[i], p_rest[i]);
        }
        sums
    }
}

/// exp of a number that is not above 0 by much, to two units in the last place, in operations that vectors have; 0 below
/// −700.
#[inline(always)]
fn exp(x: f64) -> f64 {
    const LN_2_HIGH: f64 = 0.693_147_180_369_123_8;
    const LN_2_LOW: f64 = 1.908_214_929_270_587_7e-10;
    // Adding this rounds to an integer, which then stands in the low bits.
    const INTEGER: f64 = 6_755_399_441_055_744.0;
    const FACTORIALS: [f64; 14] = [
        1.0 / 6_227_020_800.0,
        1.0 / 479_001_600.0,
        1.0 / 39_916_800.0,
        1.0 / 3_628_800.0,
        1.0 / 362_880.0,
        1.0 / 40_320.0,
        1.0 / 5_040.0,
        1.0 / 720.0,
        1.0 / 120.0,
        1.0 / 24.0,
        1.0 / 6.0,
        1.0 / 2.0,
        1.0,
        1.0,
    ];
    let shifted = x * std::f64::consts::LOG2_E + INTEGER;
    let n = shifted - INTEGER;
    let r = (x - n * LN_2_HIGH) - n * LN_2_LOW;
    let series = FACTORIALS.iter().fold(0.0, |sum, term| sum * r + term);
    let scaled = f64::from_bits(series.to_bits().wrapping_add(shifted.to_bits() << 52));
    if x < -700.0 { 0.0 } else { scaled }
}

struct Greedy<'a> {
    logits: &'a [f32],
}

impl Kernel for Greedy<'_> {
    type Output = u32;

    #[inline(always)]
    fn run(self) -> u32 {
        let top = Top {
            logits: self.logits,
        }
        .run();
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
    fn exp_is_exp() {
        for i in -700_000..=1000 {
            let x = f64::from(i) / 1000.0 + 1e-7 * f64::from(i % 7);
            let (found, want) = (exp(x), x.exp());
            let off = (found.to_bits() as i64 - want.to_bits() as i64).abs();
            assert!(
                off <= 2 || x < -700.0,
                "exp({x}) = {found}, {off} units off"
            );
        }
        assert_eq!(
            (exp(0.0), exp(f64::NEG_INFINITY), exp(-701.0)),
            (1.0, 0.0, 0.0)
        );
        assert!(exp(f64::NAN).is_nan());
    }

    /// Every length has its rest beyond whole lanes.
    #[test]
    fn lanes_are_plain_sums() {
        let at = |i: usize, by: usize| ((i * by) % 113) as f32 / 9.0 - 6.0;
        for length in 1..70 {
            let own: Vec<f32> = (0..length).map(|i| at(i, 37)).collect();
            let reference: Vec<f32> = (0..length).map(|i| at(i, 53)).collect();
            let total = |v: &[f32]| v.iter().map(|v| f64::from(*v).exp()).sum::<f64>().ln();
            let (p, q) = (Row::new(&reference), Row::new(&own));
            assert_relative_eq!(q.log_total(), total(&own), epsilon = 1e-13);
            let kl = (reference.iter().zip(&own)).map(|(t, o)| {
                let p = f64::from(*t) - total(&reference);
                p.exp() * (p - f64::from(*o) + total(&own))
            });
            assert_relative_eq!(q.kl_from(&p), kl.sum::<f64>(), epsilon = 1e-12);
            let first = own.iter().position(|v| own.iter().all(|o| o <= v));
            assert_eq!(Some(q.greedy() as usize), first);
        }
    }

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
