//! From outcomes to what is known: a number with an interval for each mode, a test for each pair of
//! modes, and which modes are tied. The same outcomes give the same report, whoever made them.

use super::bootstrap::{PairedDifference, RESAMPLES, resample};
use super::samples::Record;
use super::settings::Settings;
use super::stats::{self, ALPHA, Estimate, POWER};
use super::ties;
use scalescope_sim::error::{Result, SimError};
use scalescope_sim::score;
use scalescope_sim::text;
use serde::{Deserialize, Serialize};
use std::path::Path;

/// Everything `eval` says.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub struct EvalReport {
    /// What was asked for.
    pub settings: Settings,
    /// Parameters of the statistics.
    pub statistics: Parameters,
    /// Passages (or windows of text) scored.
    pub samples: usize,
    /// Tokens predicted.
    pub target_tokens: usize,
    /// One entry a mode, in the order asked for.
    pub modes: Vec<ModeSummary>,
    /// Groups of modes that cannot be told apart.
    pub tied: Tied<Vec<Vec<String>>>,
    /// What each step away from the checkpoint costs.
    pub costs: Vec<Cost>,
    /// Every pair of modes.
    pub pairs: Vec<PairSummary>,
}

impl EvalReport {
    /// What `eval --json` wrote.
    ///
    /// # Errors
    ///
    /// A file that cannot be read, or something else in it.
    pub fn read(path: &Path) -> Result<Self> {
        let bytes = std::fs::read(path).map_err(|e| SimError::io(path, e))?;
        text::from_json(&bytes)
            .map_err(|e| SimError::file(path, "results", "what `scalescope eval --json` writes", e))
    }
}

/// Parameters of the statistics.
#[derive(Clone, Copy, Debug, Deserialize, Serialize)]
#[allow(missing_docs)] // named as in `stats` and `bootstrap`
pub struct Parameters {
    pub alpha: f64,
    pub power: f64,
    pub resamples: usize,
    pub seed: u64,
}

/// Something for each of the two metrics.
#[derive(Clone, Debug, Default, Deserialize, Serialize)]
#[allow(missing_docs)]
pub struct Tied<T> {
    pub accuracy: T,
    pub log_likelihood: T,
}

/// One mode.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub struct ModeSummary {
    /// Its name.
    pub mode: String,
    /// What it does.
    pub summary: String,
    /// Share of passages whose last word is the greedy choice; of tokens, in the perplexity task.
    pub accuracy: Estimate,
    /// Mean log-likelihood of a last word, or of a token.
    pub log_likelihood: Estimate,
    /// exp(−`log_likelihood`).
    pub perplexity: Estimate,
    /// Perplexity task: bits a byte of text.
    pub bits_per_byte: Option<f64>,
    /// Mean KL(reference ‖ mode), nats a target token.
    pub kl: Option<f64>,
    /// Share of target tokens at which the greedy choice is the reference's.
    pub top1_agreement: Option<f64>,
    /// Letters of its groups of ties.
    pub tied: Tied<String>,
}

/// Two modes.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub struct PairSummary {
    /// The first.
    pub a: String,
    /// The second.
    pub b: String,
    /// Whether every outcome is the same, to the last bit.
    pub identical: bool,
    /// Last-word task: McNemar's test.
    pub accuracy: Option<AccuracyPair>,
    /// The paired bootstrap.
    pub log_likelihood: LikelihoodPair,
}

/// Accuracy of two modes.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub struct AccuracyPair {
    /// a − b.
    pub difference: f64,
    /// Passages that only a gets right.
    pub a_only: usize,
    /// Passages that only b gets right.
    pub b_only: usize,
    /// McNemar's exact test, two-sided.
    pub p: f64,
    /// Corrected for the number of pairs.
    pub p_holm: f64,
    /// Smallest difference that this many passages show.
    pub detectable: Option<f64>,
    /// Passages that would show the observed difference, if it is real.
    pub samples_needed: Option<f64>,
}

/// Log-likelihood of two modes.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub struct LikelihoodPair {
    /// a − b; positive where a is better.
    pub difference: f64,
    /// Its standard error.
    #[serde(deserialize_with = "stats::or_nan")]
    pub stderr: f64,
    /// Interval and p-value.
    #[serde(flatten)]
    pub bootstrap: PairedDifference,
    /// Corrected for the number of pairs.
    pub p_holm: f64,
    /// Smallest difference that this many samples show.
    #[serde(deserialize_with = "stats::or_nan")]
    pub detectable: f64,
    /// Samples that would show the observed difference, if it is real.
    pub samples_needed: Option<f64>,
}

/// Perplexity that a step away from the checkpoint adds.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub struct Cost {
    /// What the step is.
    pub step: Preparation,
    /// Mode before it.
    pub from: String,
    /// Mode after it.
    pub to: String,
    /// Perplexity of `to` over that of `from`.
    pub ratio: f64,
    /// Perplexity of `to` less that of `from`.
    pub perplexity: f64,
    /// 95 % interval, lower end, at the perplexity that `from` has here.
    #[serde(deserialize_with = "stats::or_nan")]
    pub low: f64,
    /// 95 % interval, upper end.
    #[serde(deserialize_with = "stats::or_nan")]
    pub high: f64,
}

/// What is done to a checkpoint.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Preparation {
    /// Hadamard matrices and norms folded in, weights rounded to f16.
    Folding,
    /// INT8.
    Quantization,
}

/// Outcomes by mode and sample.
struct Table {
    modes: Vec<Vec<Record>>,
    /// 1 for a passage; the number of targets where the mean is over tokens.
    weights: Vec<f64>,
    per_token: bool,
}

impl Table {
    fn new(settings: &Settings, mut records: Vec<Record>) -> Self {
        // Stable: the modes of a sample keep their order.
        records.sort_by_key(Record::sample);
        let count = settings.modes.len();
        let per_token = settings.task.per_token();
        let modes: Vec<Vec<Record>> = (0..count)
            .map(|m| records.iter().skip(m).step_by(count).cloned().collect())
            .collect();
        let weights = (modes[0].iter())
            .map(|r| {
                if per_token {
                    r.target_tokens as f64
                } else {
                    1.0
                }
            })
            .collect();
        Self {
            modes,
            weights,
            per_token,
        }
    }

    fn log_likelihoods(&self, mode: usize) -> Vec<f64> {
        self.modes[mode].iter().map(|r| r.log_likelihood).collect()
    }

    fn total(&self, mode: usize, part: impl Fn(&Record) -> usize) -> usize {
        self.modes[mode].iter().map(part).sum()
    }

    fn accuracy(&self, mode: usize) -> Estimate {
        if self.per_token {
            let hits: Vec<f64> = (self.modes[mode].iter())
                .map(|r| r.greedy_tokens as f64)
                .collect();
            let (share, stderr) = stats::ratio(&hits, &self.weights);
            return Estimate::normal(share, stderr);
        }
        let hits = self.total(mode, |r| usize::from(r.greedy));
        stats::proportion(hits, self.weights.len())
    }

    fn mode(&self, mode: usize, spec: &serde_json::Value) -> ModeSummary {
        let rows = &self.modes[mode];
        let (mean, stderr) = stats::ratio(&self.log_likelihoods(mode), &self.weights);
        let log_likelihood = Estimate::normal(mean, stderr);
        let perplexity = score::perplexity_at(mean);
        let targets = self.total(mode, |r| r.target_tokens) as f64;
        let nats: f64 = rows.iter().map(|r| r.log_likelihood).sum();
        let bytes = self.total(mode, |r| r.bytes) as f64;
        let kl: Option<f64> = rows.iter().map(|r| r.kl).sum();
        let agreed: Option<usize> = rows.iter().map(|r| r.agreed_tokens).sum();
        let text = |field: &str| spec[field].as_str().unwrap_or_default().to_string();
        ModeSummary {
            mode: text("name"),
            summary: text("summary"),
            accuracy: self.accuracy(mode),
            perplexity: Estimate {
                value: perplexity,
                stderr: perplexity * stderr,
                low: score::perplexity_at(log_likelihood.high),
                high: score::perplexity_at(log_likelihood.low),
            },
            log_likelihood,
            bits_per_byte: self
                .per_token
                .then(|| -nats / std::f64::consts::LN_2 / bytes),
            kl: kl.map(|kl| kl / targets),
            top1_agreement: agreed.map(|n| n as f64 / targets),
            tied: Tied::default(),
        }
    }

    fn accuracy_pair(&self, a: usize, b: usize) -> AccuracyPair {
        let n = self.weights.len();
        let only = |a: usize, b: usize| {
            (self.modes[a].iter().zip(&self.modes[b]))
                .filter(|(a, b)| a.greedy && !b.greedy)
                .count()
        };
        let (a_only, b_only) = (only(a, b), only(b, a));
        let difference = (a_only as f64 - b_only as f64) / n as f64;
        let discordant = (a_only + b_only) as f64 / n as f64;
        AccuracyPair {
            difference,
            a_only,
            b_only,
            p: stats::mcnemar_exact(a_only, b_only),
            p_holm: 1.0,
            detectable: stats::detectable_accuracy(n, discordant),
            samples_needed: stats::passages_needed(difference, discordant),
        }
    }

    fn identical(&self, a: usize, b: usize) -> bool {
        self.modes[a].iter().zip(&self.modes[b]).all(|(a, b)| {
            a.log_likelihood.to_bits() == b.log_likelihood.to_bits()
                && a.greedy_tokens == b.greedy_tokens
        })
    }
}

impl EvalReport {
    /// Draws up the report of some samples' records, which must be together and in the order of the
    /// modes, as [`super::samples::Samples`] has them.
    pub fn new(settings: Settings, records: Vec<Record>, seed: u64) -> Result<Self> {
        if records.is_empty() {
            return Err(SimError::value("samples", "at least one", "none"));
        }
        let table = Table::new(&settings, records);
        let mut modes: Vec<ModeSummary> = (settings.modes.iter().enumerate())
            .map(|(i, spec)| table.mode(i, spec))
            .collect();
        let indices: Vec<(usize, usize)> = (0..modes.len())
            .flat_map(|a| (a + 1..modes.len()).map(move |b| (a, b)))
            .collect();
        let pairs = pairs(&table, &modes, &indices, seed);
        let tied = tie(&mut modes, &pairs, &indices);
        Ok(Self {
            statistics: Parameters {
                alpha: ALPHA,
                power: POWER,
                resamples: RESAMPLES,
                seed,
            },
            samples: table.weights.len(),
            target_tokens: table.total(0, |r| r.target_tokens),
            costs: costs(&settings, &modes, &pairs, &indices),
            settings,
            modes,
            tied,
            pairs,
        })
    }
}

fn pairs(
    table: &Table,
    modes: &[ModeSummary],
    indices: &[(usize, usize)],
    seed: u64,
) -> Vec<PairSummary> {
    let values: Vec<Vec<f64>> = (0..modes.len()).map(|m| table.log_likelihoods(m)).collect();
    let resampled = resample(&values, &table.weights, seed);
    let n = table.weights.len();
    let mut pairs: Vec<PairSummary> = (indices.iter())
        .map(|(a, b)| {
            let differences: Vec<f64> = values[*a]
                .iter()
                .zip(&values[*b])
                .map(|(a, b)| a - b)
                .collect();
            let (difference, stderr) = stats::ratio(&differences, &table.weights);
            PairSummary {
                a: modes[*a].mode.clone(),
                b: modes[*b].mode.clone(),
                identical: table.identical(*a, *b),
                accuracy: (!table.per_token).then(|| table.accuracy_pair(*a, *b)),
                log_likelihood: LikelihoodPair {
                    difference,
                    stderr,
                    bootstrap: resampled.difference(*a, *b, difference),
                    p_holm: 1.0,
                    detectable: stats::detectable_mean(stderr),
                    samples_needed: stats::samples_needed(difference, stderr, n),
                },
            }
        })
        .collect();
    let p: Vec<f64> = pairs.iter().map(|p| p.log_likelihood.bootstrap.p).collect();
    for (pair, p) in pairs.iter_mut().zip(stats::holm(&p)) {
        pair.log_likelihood.p_holm = p;
    }
    let p: Vec<f64> = pairs
        .iter()
        .flat_map(|p| &p.accuracy)
        .map(|a| a.p)
        .collect();
    let tested = pairs.iter_mut().flat_map(|p| &mut p.accuracy);
    for (accuracy, p) in tested.zip(stats::holm(&p)) {
        accuracy.p_holm = p;
    }
    pairs
}

fn tie(
    modes: &mut [ModeSummary],
    pairs: &[PairSummary],
    indices: &[(usize, usize)],
) -> Tied<Vec<Vec<String>>> {
    let names: Vec<String> = modes.iter().map(|m| m.mode.clone()).collect();
    let mut of = |p: &dyn Fn(&PairSummary) -> Option<f64>,
                  put: &dyn Fn(&mut Tied<String>, String)| {
        let tested = !pairs.is_empty() && pairs.iter().all(|pair| p(pair).is_some());
        if !tested {
            return vec![];
        }
        let differ: Vec<(usize, usize)> = (pairs.iter().zip(indices))
            .filter(|(pair, _)| p(pair).is_some_and(|p| p < ALPHA))
            .map(|(_, index)| *index)
            .collect();
        let groups = ties::groups(names.len(), &differ);
        for (mode, letters) in modes.iter_mut().zip(ties::letters(names.len(), &groups)) {
            put(&mut mode.tied, letters);
        }
        (groups.iter())
            .map(|group| group.iter().map(|m| names[*m].clone()).collect())
            .collect()
    };
    Tied {
        accuracy: of(&|p| p.accuracy.as_ref().map(|a| a.p_holm), &|t, letters| {
            t.accuracy = letters;
        }),
        log_likelihood: of(&|p| Some(p.log_likelihood.p_holm), &|t, letters| {
            t.log_likelihood = letters;
        }),
    }
}

/// The step from an unrotated float mode to the reference is folding; from the reference to modes
/// with INT8 weights it is quantization.
fn costs(
    settings: &Settings,
    modes: &[ModeSummary],
    pairs: &[PairSummary],
    indices: &[(usize, usize)],
) -> Vec<Cost> {
    let specs = &settings.modes;
    let Some(base) = (settings.reference_name())
        .and_then(|name| modes.iter().position(|m| m.mode == name))
        .filter(|base| specs[*base]["weights"] == "float" && specs[*base]["rotated"] == true)
    else {
        return vec![];
    };
    let cost = |step, from: usize, to: usize| {
        let place = (from.min(to), from.max(to));
        let pair = &pairs[indices.iter().position(|i| *i == place)?].log_likelihood;
        // The pair is a − b; a fall in log-likelihood from `from` to `to` is the cost.
        let (low, high) = match from < to {
            true => (pair.bootstrap.low, pair.bootstrap.high),
            false => (-pair.bootstrap.high, -pair.bootstrap.low),
        };
        let before = modes[from].perplexity.value;
        Some(Cost {
            step,
            from: modes[from].mode.clone(),
            to: modes[to].mode.clone(),
            ratio: modes[to].perplexity.value / before,
            perplexity: modes[to].perplexity.value - before,
            low: before * low.exp_m1(),
            high: before * high.exp_m1(),
        })
    };
    (specs.iter().enumerate())
        .filter_map(|(i, spec)| {
            if spec["rotated"] == false && spec["weights"] == "float" {
                cost(Preparation::Folding, i, base)
            } else if spec["weights"] == "int8" {
                cost(Preparation::Quantization, base, i)
            } else {
                None
            }
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::super::samples::tests::record;
    use super::super::settings::tests::settings;
    use super::super::task::Task;
    use super::*;
    use approx::assert_relative_eq;

    /// 40 passages: mode "b" is mode "a" exactly, mode "c" is worse by far.
    fn report() -> EvalReport {
        let records = (0..40)
            .rev()
            .flat_map(|id| {
                let noise = (id % 7) as f64 / 10.0;
                let good = record(id, "a", id % 2 == 0, -1.0 - noise);
                let same = record(id, "b", id % 2 == 0, -1.0 - noise);
                let bad = record(id, "c", id % 8 == 0, -2.0 - noise * 1.1);
                [good, same, bad]
            })
            .collect();
        let mut settings = settings(&["a", "b", "c"], 40);
        settings.modes[0]["weights"] = "float".into();
        settings.modes[0]["rotated"] = false.into();
        settings.modes[1]["weights"] = "float".into();
        settings.modes[1]["rotated"] = true.into();
        settings.modes[2]["weights"] = "int8".into();
        settings.reference = Some(settings.modes[1].clone());
        EvalReport::new(settings, records, 0).unwrap()
    }

    #[test]
    fn equal_modes_are_tied_and_others_are_not() {
        let r = report();
        assert_eq!(r.tied.accuracy, [vec!["a", "b"], vec!["c"]]);
        assert_eq!(r.tied.log_likelihood, [vec!["a", "b"], vec!["c"]]);
        let letters: Vec<&str> = r.modes.iter().map(|m| &*m.tied.accuracy).collect();
        assert_eq!(letters, ["a", "a", "b"]);
        let pair = |i: usize| (&*r.pairs[i].a, &*r.pairs[i].b, r.pairs[i].identical);
        assert_eq!(pair(0), ("a", "b", true));
        assert_eq!(pair(2), ("b", "c", false));
        let accuracy = r.pairs[1].accuracy.as_ref().unwrap();
        assert_eq!((accuracy.a_only, accuracy.b_only), (15, 0));
        assert_relative_eq!(accuracy.difference, 15.0 / 40.0);
        assert_relative_eq!(accuracy.p, 2.0 * 0.5f64.powi(15), max_relative = 1e-9);
        assert_relative_eq!(accuracy.p_holm, accuracy.p * 3.0, max_relative = 1e-9);
    }

    #[test]
    fn numbers_by_hand() {
        let r = report();
        assert_eq!((r.samples, r.target_tokens), (40, 40));
        let a = &r.modes[0];
        assert_eq!(a.accuracy.value, 0.5);
        let noise: f64 = (0..40).map(|i| (i % 7) as f64 / 10.0).sum::<f64>() / 40.0;
        assert_relative_eq!(a.log_likelihood.value, -1.0 - noise, epsilon = 1e-12);
        assert_relative_eq!(a.perplexity.value, (1.0 + noise).exp(), epsilon = 1e-12);
        assert_eq!((a.kl, a.top1_agreement), (Some(0.0), Some(1.0)));
        assert_eq!(a.bits_per_byte, None);
    }

    #[test]
    fn folding_and_quantization_are_separate_costs() {
        let r = report();
        let [folding, int8] = &r.costs[..] else {
            panic!("{:?}", r.costs)
        };
        assert_eq!((folding.step, &*folding.to), (Preparation::Folding, "b"));
        assert_eq!(
            (folding.perplexity, folding.low, folding.high),
            (0.0, 0.0, 0.0)
        );
        assert_eq!((int8.step, &*int8.from), (Preparation::Quantization, "b"));
        assert!(int8.low < int8.perplexity && int8.perplexity < int8.high && int8.low > 0.0);
    }

    #[test]
    fn perplexity_is_a_mean_over_tokens_and_bits_over_bytes() {
        let mut settings = settings(&["a"], 2);
        settings.task = Task::Perplexity {
            window: 8,
            stride: 4,
        };
        let sample = |part, target_tokens, log_likelihood| Record {
            part,
            target_tokens,
            bytes: 2 * target_tokens,
            ..record(0, "a", false, log_likelihood)
        };
        let r = EvalReport::new(settings, vec![sample(1, 1, -4.0), sample(0, 3, -2.0)], 0).unwrap();
        assert_relative_eq!(r.modes[0].log_likelihood.value, -1.5);
        let bits = r.modes[0].bits_per_byte.unwrap();
        assert_relative_eq!(bits, 6.0 / 8.0 / std::f64::consts::LN_2, epsilon = 1e-12);
        assert!(r.tied.accuracy.is_empty());
    }

    #[test]
    fn nothing_is_an_error() {
        assert!(EvalReport::new(settings(&["a"], 0), vec![], 0).is_err());
    }
}
