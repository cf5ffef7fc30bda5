//! Designs on text: perplexity, divergence from the float model, cost.

use super::grid::Values;
use ndarray::Array2;
use rayon::prelude::*;
use scalescope_golden::diagnosis::cost::loss::Mean;
use scalescope_sim::datapath::{Datapath, LogitRows};
use scalescope_sim::error::Result;
use scalescope_sim::mode::ModeSpec;
use scalescope_sim::model::Model;
use scalescope_sim::profile::Profile;
use scalescope_sim::profile::cost::Cost;
use scalescope_sim::score::{Row, perplexity};
use scalescope_sim::trace::Blind;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

/// The outcome of one design.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Design {
    /// Keys and their values.
    pub values: Map<String, Value>,
    /// Hash of the rules.
    pub profile_hash: String,
    /// exp(−mean log-likelihood). Lower is better.
    pub perplexity: f64,
    /// Standard error of its logarithm against the float model's, position by position; none in files of before.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub log_perplexity_se: Option<f64>,
    /// Mean KL from the float model, in nats. Lower is better.
    pub kl: f64,
    /// Share of positions with the float model's greedy token. Higher is better.
    pub agreement: f64,
    /// Hardware.
    pub cost: Cost,
}

impl Design {
    /// Whether its perplexity differs from another's by less than two standard errors of the difference.
    pub fn is_tied_with(&self, other: &Design) -> bool {
        let (Some(own), Some(others)) = (self.log_perplexity_se, other.log_perplexity_se) else {
            return false;
        };
        (self.perplexity / other.perplexity).ln().abs() < 2.0 * own.hypot(others)
    }

    /// The perplexity with its standard error in `digits` digits.
    pub fn perplexity_text(&self, digits: usize) -> String {
        match self.log_perplexity_se {
            Some(se) => format!(
                "{:.digits$} ± {:.digits$}",
                self.perplexity,
                se * self.perplexity
            ),
            None => format!("{:.digits$}", self.perplexity),
        }
    }

    /// Whether this design is nowhere worse than another, and somewhere better: perplexity and every
    /// field of the cost.
    pub fn dominates(&self, other: &Design) -> bool {
        let fields = self.cost.fields().into_iter().zip(other.cost.fields());
        let costs: Vec<(u64, u64)> = fields.map(|((_, a), (_, b))| (a, b)).collect();
        let no_worse = self.perplexity <= other.perplexity && costs.iter().all(|(a, b)| a <= b);
        no_worse && (self.perplexity < other.perplexity || costs.iter().any(|(a, b)| a < b))
    }
}

/// The designs that no other one dominates, in their order. A perplexity that is not a number is on
/// no front.
pub fn pareto(designs: &[Design]) -> Vec<bool> {
    designs
        .iter()
        .map(|design| {
            design.perplexity.is_finite() && !designs.iter().any(|other| other.dominates(design))
        })
        .collect()
}

/// Text, and what the float model says of it.
pub struct Bench {
    mode: ModeSpec,
    sequences: Vec<Vec<u32>>,
    reference: Vec<Reference>,
}

/// What the float model says of a sequence: a row predicts the token after it, the last row nothing.
struct Reference {
    logits: Array2<f32>,
    /// [`Row::log_total`] of each row.
    log_totals: Vec<f64>,
}

impl Reference {
    fn new(logits: Array2<f32>) -> Self {
        let rows = 0..logits.nrows();
        let log_totals = rows
            .into_par_iter()
            .map(|t| Row::new(row(&logits, t)).log_total());
        Self {
            log_totals: log_totals.collect(),
            logits,
        }
    }

    fn row(&self, t: usize) -> Row<'_> {
        Row::with_total(row(&self.logits, t), self.log_totals[t])
    }
}

impl Bench {
    /// Runs the reference once.
    pub fn new(
        model: &Model,
        mode: &ModeSpec,
        reference: &ModeSpec,
        sequences: Vec<Vec<u32>>,
    ) -> Result<Self> {
        let path = Datapath::new(model, reference, &Profile::get("exact")?)?;
        let reference = (sequences.iter()).map(|tokens| logits(&path, tokens).map(Reference::new));
        Ok(Self {
            reference: reference.collect::<Result<_>>()?,
            mode: mode.clone(),
            sequences,
        })
    }

    /// Runs a design, on the model with the design's weights.
    pub fn run(&self, model: &Model, profile: &Profile, values: &Values) -> Result<Design> {
        let path = Datapath::new(model, &self.mode, profile)?;
        let mut cost = profile.cost(path.config());
        for weight in path.four_bit_weights() {
            cost.weight_bits -= weight.weights as u64 * u64::from(profile.storage.weight_bits);
            cost.weight_bits += weight.bits as u64;
        }
        let (mut likelihoods, mut lost, mut kl, mut agreed) = (Vec::new(), Vec::new(), 0.0, 0usize);
        for (tokens, reference) in self.sequences.iter().zip(&self.reference) {
            let own = logits(&path, tokens)?;
            let scores: Vec<(f64, f64, bool, f64)> = (0..tokens.len() - 1)
                .into_par_iter()
                .map(|t| {
                    let (own, clean) = (Row::new(row(&own, t)), reference.row(t));
                    let agrees = own.greedy() == clean.greedy();
                    let likelihood = own.log_likelihood(tokens[t + 1]);
                    let lost = clean.log_likelihood(tokens[t + 1]) - likelihood;
                    (likelihood, own.kl_from(&clean), agrees, lost)
                })
                .collect();
            likelihoods.extend(scores.iter().map(|score| score.0));
            lost.extend(scores.iter().map(|score| score.3));
            kl += scores.iter().map(|score| score.1).sum::<f64>();
            agreed += scores.iter().filter(|score| score.2).count();
        }
        let positions = likelihoods.len() as f64;
        Ok(Design {
            values: values.iter().cloned().collect(),
            profile_hash: profile.hash(),
            perplexity: perplexity(&likelihoods),
            log_perplexity_se: Some(Mean::of(lost.iter().copied()).se).filter(|se| se.is_finite()),
            kl: kl / positions,
            agreement: agreed as f64 / positions,
            cost,
        })
    }
}

fn logits(path: &Datapath, tokens: &[u32]) -> Result<Array2<f32>> {
    Ok(path
        .prefill(tokens, LogitRows::All, &mut Blind)?
        .0
        .to_real())
}

fn row(logits: &Array2<f32>, t: usize) -> &[f32] {
    let width = logits.ncols();
    &logits.as_slice().expect("logits are row-major")[t * width..(t + 1) * width]
}

#[cfg(test)]
mod tests {
    use super::*;

    fn design(perplexity: f64, state_bits: u64, table_bits: u64) -> Design {
        Design {
            values: Map::new(),
            profile_hash: String::new(),
            perplexity,
            log_perplexity_se: None,
            kl: 0.0,
            agreement: 0.0,
            cost: Cost {
                state_bits,
                table_bits,
                ..Cost::default()
            },
        }
    }

    #[test]
    fn designs_within_two_standard_errors_are_tied() {
        let of = |perplexity: f64, se| Design {
            log_perplexity_se: se,
            ..design(perplexity, 8, 8)
        };
        let (a, b) = (of(10.0, Some(0.003)), of(10.09, Some(0.004)));
        assert!(a.is_tied_with(&b) && b.is_tied_with(&a));
        assert!(!a.is_tied_with(&of(10.2, Some(0.004))));
        assert!(!a.is_tied_with(&of(10.0, None)));
        assert_eq!(a.perplexity_text(2), "10.00 ± 0.03");
    }

    #[test]
    fn the_front_is_what_nothing_dominates() {
        let designs = [
            design(10.0, 8, 8),
            design(9.0, 16, 8),
            design(10.0, 16, 8), // dominated by both
            design(10.0, 8, 8),  // as the first: neither dominates
            design(11.0, 8, 4),
            design(f64::NAN, 1, 1),
        ];
        assert_eq!(pareto(&designs), [true, true, false, true, true, false]);
    }
}
