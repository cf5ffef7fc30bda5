//! The answer before the tables: what each mode costs with its interval, which modes cannot be told apart, what
//! costs most and would go in floating point. Whatever is not beyond its own error is not said.

use super::measure::Run;
use crate::eval::bootstrap::{Resampled, resample};
use crate::eval::stats::{ALPHA, Estimate, holm, ratio};
use crate::eval::ties;
use crate::output::{number, wrapped};
use scalescope_golden::diagnosis::cost::sites::parts;
use scalescope_sim::datapath::{Datapath, Part};
use scalescope_sim::model::ScaleKey;
use serde::Serialize;

/// Neighbouring positions are alike: the bootstrap draws stretches of so many.
const STRETCH: usize = 32;
/// Parts that are named.
const NAMED: usize = 3;
/// Seed of the bootstrap.
const SEED: u64 = 0;

/// What a run of all modes says.
#[derive(Clone, Debug, Serialize)]
pub struct Verdict {
    /// The mode that the others are held against.
    pub reference: String,
    /// Positions at which losses were measured.
    pub positions: usize,
    /// Stretches of positions that the bootstrap drew from.
    pub stretches: usize,
    /// Every mode but the reference.
    pub modes: Vec<ModeCost>,
    /// Modes whose losses are the same at every position, where there are several.
    pub equal: Vec<Vec<String>>,
    /// Groups of modes whose KL cannot be told apart, as large as possible.
    pub tied: Vec<Vec<String>>,
    /// What the parts of one mode cost.
    pub parts: Option<PartCosts>,
}

/// What a mode costs.
#[derive(Clone, Debug, Serialize)]
pub struct ModeCost {
    /// Its name.
    pub mode: String,
    /// KL from the reference, nats a token.
    pub kl: Estimate,
    /// Logarithm of its perplexity over the reference's.
    pub log_perplexity: Estimate,
    /// Letters: modes that share one cannot be told apart by KL.
    pub tied: String,
}

/// What the parts of a mode cost: each as the reference has it, in every block at once.
#[derive(Clone, Debug, Serialize)]
pub struct PartCosts {
    /// The mode.
    pub mode: String,
    /// Every part in which it differs from the reference, the costliest first.
    pub parts: Vec<PartCost>,
}

/// What a tensor or weight costs.
#[derive(Clone, Debug, Serialize)]
pub struct PartCost {
    /// The tensor or weight.
    pub site: &'static str,
    /// The calibrated scale of an activation.
    pub scale: Option<ScaleKey>,
    /// KL that goes away, nats a token.
    pub kl: Estimate,
    /// The same as a share of the mode's KL.
    pub share: f64,
    /// Whether it is beyond its own error, with Holm's correction over all parts. (A site of `attribute` is judged
    /// by `Mean::stands_out`.)
    pub stands_out: bool,
}

/// The mode whose parts are switched, of those that are reported: the first with INT8 tensors.
pub fn mode_of_parts(paths: &[Datapath]) -> Option<usize> {
    paths.iter().position(|path| path.mode().needs_quantized())
}

/// A mode with one part after the other as the reference has it, in every block; parts that the profile cannot run
/// so are left out.
pub fn switched<'m>(path: &Datapath<'m>, reference: &Datapath<'m>) -> Vec<(Part, Datapath<'m>)> {
    let (parts, _) = parts(path, reference);
    let switch = |part: Part| {
        let mut path = path.clone();
        for layer in 0..path.config().n_layers {
            path.adopt(layer, part, reference);
        }
        (part, path)
    };
    parts.into_iter().map(switch).collect()
}

/// What was run.
pub struct Runs<'a> {
    /// The reference's name and its own run.
    pub reference: (&'a str, &'a Run),
    /// Every mode but the reference.
    pub modes: &'a [(&'a str, &'a Run)],
    /// The place of a mode among them, and its runs with one part switched.
    pub parts: Option<(usize, &'a [(Part, Run)])>,
    /// Positions of each sequence.
    pub lengths: &'a [usize],
}

impl Verdict {
    /// Of runs on the same text.
    pub fn of(runs: &Runs) -> Self {
        let stretches: Vec<usize> = (runs.lengths.iter())
            .flat_map(|length| {
                let last = length % STRETCH;
                let whole = std::iter::repeat_n(STRETCH, length / STRETCH);
                whole.chain((last > 0).then_some(last))
            })
            .collect();
        let judge = Judge::new(runs, &stretches);
        let names: Vec<&str> = runs.modes.iter().map(|(name, _)| *name).collect();
        let mut modes: Vec<ModeCost> = (0..names.len())
            .map(|i| ModeCost {
                mode: names[i].to_owned(),
                kl: judge.estimate(judge.kl(i), judge.zero()).0,
                log_perplexity: judge.estimate(judge.nll(i), judge.reference()).0,
                tied: String::new(),
            })
            .collect();
        let (equal, alike) = alike(runs.modes);
        // Of modes that are equal one stands for all.
        let firsts: Vec<usize> = (0..names.len()).filter(|i| alike[*i] == *i).collect();
        let groups = judge.ties(&firsts);
        let letters = ties::letters(firsts.len(), &groups);
        let told = modes.iter_mut().filter(|_| stretches.len() > 1);
        for (mode, first) in told.zip(&alike) {
            let place = firsts.iter().position(|f| f == first);
            mode.tied = letters[place.expect("the first of its equals")].clone();
        }
        let named = |group: &Vec<usize>| -> Vec<String> {
            let members =
                (0..names.len()).filter(|i| group.iter().any(|g| firsts[*g] == alike[*i]));
            members.map(|i| names[i].to_owned()).collect()
        };
        Self {
            reference: runs.reference.0.to_owned(),
            positions: runs.lengths.iter().sum(),
            stretches: stretches.len(),
            equal: (equal.iter())
                .map(|group| group.iter().map(|i| names[*i].to_owned()).collect())
                .collect(),
            tied: match stretches.len() {
                0 | 1 => Vec::new(),
                _ => groups.iter().map(named).collect(),
            },
            parts: runs.parts.map(|(mode, parts)| PartCosts {
                mode: names[mode].to_owned(),
                parts: judge.parts(mode, parts, modes[mode].kl.value),
            }),
            modes,
        }
    }

    fn cost(&self, mode: &str) -> Option<&ModeCost> {
        self.modes.iter().find(|cost| cost.mode == mode)
    }

    /// The sentences, one a line or more.
    pub fn sentences(&self) -> Vec<String> {
        let mut out = Vec::new();
        let of_parts = self.parts.as_ref().map(|parts| parts.mode.as_str());
        let Some(main) = of_parts.map_or(self.modes.first(), |mode| self.cost(mode)) else {
            return vec!["There is no mode to compare with the reference.".to_owned()];
        };
        out.push(self.cost_sentence(main));
        if self.stretches < 2 {
            let few = format!(
                "{} positions are too few to say how sure this is: no intervals, no ties, no ranking.",
                self.positions
            );
            out.push(few);
            return out;
        }
        let order = |a: &&ModeCost, b: &&ModeCost| a.kl.value.total_cmp(&b.kl.value);
        let (least, most) = (
            self.modes.iter().min_by(order).expect("there is one"),
            // The first of equals.
            (self.modes.iter().rev().max_by(order)).expect("there is one"),
        );
        if self.modes.len() > 1 {
            out.push(self.least_sentence(least));
            if !most.tied.contains(|letter| least.tied.contains(letter)) {
                let cost = nats(most.kl.value) + &interval(&most.kl);
                out.push(format!("Mode {} costs most: {cost}.", most.mode));
            }
        }
        for group in &self.equal {
            out.push(format!(
                "Modes {} are equal at every position of this text.",
                listed(group)
            ));
        }
        out.extend(self.parts.iter().map(PartCosts::sentence));
        out
    }

    fn cost_sentence(&self, cost: &ModeCost) -> String {
        let relative = |log: f64| 100.0 * log.exp_m1();
        let perplexity = &cost.log_perplexity;
        let change = relative(perplexity.value);
        let sign = if change < 0.0 { "lowers" } else { "raises" };
        let mut words = format!(
            "Mode {} costs {} of KL from mode {}{}. It {sign} perplexity by {:.2} %",
            cost.mode,
            nats(cost.kl.value),
            self.reference,
            interval(&cost.kl),
            change.abs()
        );
        if !perplexity.low.is_nan() {
            words += &format!(
                " (95 %: {:+.2} to {:+.2} %)",
                relative(perplexity.low),
                relative(perplexity.high)
            );
            if perplexity.low <= 0.0 && perplexity.high >= 0.0 {
                words += ", which is not beyond chance";
            }
        }
        words + "."
    }

    fn least_sentence(&self, least: &ModeCost) -> String {
        let tied = |other: &&ModeCost| {
            other.mode != least.mode && other.tied.contains(|letter| least.tied.contains(letter))
        };
        let others: Vec<String> = (self.modes.iter().filter(tied))
            .map(|cost| cost.mode.clone())
            .collect();
        let told = match others.is_empty() {
            true => "every other mode costs more, beyond chance".to_owned(),
            false => format!("it cannot be told apart from {}", listed(&others)),
        };
        let cost = nats(least.kl.value) + &interval(&least.kl);
        format!("Mode {} costs least: {cost}; {told}.", least.mode)
    }

    /// The sentences for a terminal.
    pub fn text(&self) -> String {
        let sentences = self.sentences();
        let lines = sentences.iter().map(|sentence| wrapped(sentence, 2));
        format!("Verdict\n{}", lines.collect::<String>())
    }
}

impl PartCosts {
    fn sentence(&self) -> String {
        let costly: Vec<&PartCost> = self.parts.iter().filter(|p| p.stands_out).collect();
        let words: Vec<String> = (costly.iter().take(NAMED))
            .map(|part| {
                let scale =
                    (part.scale).map_or(String::new(), |key| format!(" (scale {})", key.name()));
                format!(
                    "{}{scale} {:.0} % ({:.0} to {:.0} %)",
                    part.site,
                    100.0 * part.share,
                    100.0 * part.share * part.kl.low / part.kl.value,
                    100.0 * part.share * part.kl.high / part.kl.value
                )
            })
            .collect();
        match words.is_empty() {
            true => format!(
                "No single tensor or weight of mode {} costs more than its own error: more text would tell.",
                self.mode
            ),
            false => format!(
                "Mode {}'s KL falls by this much if one of these alone stays in floating point in every block: {}.",
                self.mode,
                words.join("; ")
            ),
        }
    }
}

/// `0.0089 nats a token`.
fn nats(kl: f64) -> String {
    format!("{} nats a token", short(kl))
}

/// ` (95 %: 0.0081 to 0.0098)`; nothing if there is no interval.
fn interval(of: &Estimate) -> String {
    match of.low.is_nan() {
        true => String::new(),
        false => format!(" (95 %: {} to {})", short(of.low), short(of.high)),
    }
}

/// A number in three digits at most.
fn short(value: f64) -> String {
    let power = 10f64.powi(2 - value.abs().max(1e-12).log10().floor() as i32);
    number((value * power).round() / power)
}

/// `a, b and c`.
fn listed(names: &[String]) -> String {
    match names {
        [] => String::new(),
        [one] => one.clone(),
        [first @ .., last] => format!("{} and {last}", first.join(", ")),
    }
}

/// Groups of modes with the same losses at every position, and for each mode the first that is equal to it.
fn alike(modes: &[(&str, &Run)]) -> (Vec<Vec<usize>>, Vec<usize>) {
    let first_of = |i: usize| {
        let same = |j: &usize| modes[*j].1.losses == modes[i].1.losses;
        (0..i).find(same).unwrap_or(i)
    };
    let firsts: Vec<usize> = (0..modes.len()).map(first_of).collect();
    let group = |first: usize| -> Vec<usize> {
        let members = firsts.iter().enumerate().filter(|(_, f)| **f == first);
        members.map(|(i, _)| i).collect()
    };
    let groups = (0..modes.len()).map(group).filter(|g| g.len() > 1);
    (groups.collect(), firsts)
}

/// Everything that is resampled together: KL and −log-likelihood of the modes, −log-likelihood of the
/// reference, zeros, KL of runs with a part switched.
struct Judge {
    values: Vec<Vec<f64>>,
    weights: Vec<f64>,
    resampled: Resampled,
    modes: usize,
}

impl Judge {
    fn new(runs: &Runs, stretches: &[usize]) -> Self {
        let sums = |losses: &[f64]| -> Vec<f64> {
            let mut rest = losses;
            let sum = |length: &usize| {
                let (stretch, after) = rest.split_at(*length);
                rest = after;
                stretch.iter().sum()
            };
            stretches.iter().map(sum).collect()
        };
        let kl = |run: &Run| sums(&run.losses.kl);
        let nll = |run: &Run| sums(&run.losses.nll);
        let mut values: Vec<Vec<f64>> = Vec::new();
        values.extend(runs.modes.iter().map(|(_, run)| kl(run)));
        values.extend(runs.modes.iter().map(|(_, run)| nll(run)));
        values.push(nll(runs.reference.1));
        values.push(vec![0.0; stretches.len()]);
        if let Some((_, parts)) = runs.parts {
            values.extend(parts.iter().map(|(_, run)| kl(run)));
        }
        let weights: Vec<f64> = stretches.iter().map(|length| *length as f64).collect();
        Self {
            resampled: resample(&values, &weights, SEED),
            values,
            weights,
            modes: runs.modes.len(),
        }
    }

    fn kl(&self, mode: usize) -> usize {
        mode
    }

    fn nll(&self, mode: usize) -> usize {
        self.modes + mode
    }

    fn reference(&self) -> usize {
        2 * self.modes
    }

    fn zero(&self) -> usize {
        2 * self.modes + 1
    }

    /// The mean difference a − b of two rows with its interval, and p.
    fn estimate(&self, a: usize, b: usize) -> (Estimate, f64) {
        let rows = self.values[a].iter().zip(&self.values[b]);
        let differences: Vec<f64> = rows.map(|(a, b)| a - b).collect();
        let (value, stderr) = ratio(&differences, &self.weights);
        let found = self.resampled.difference(a, b, value);
        let estimate = Estimate {
            value,
            stderr,
            low: found.low,
            high: found.high,
        };
        (estimate, found.p)
    }

    /// Groups of some modes that cannot be told apart by KL.
    fn ties(&self, modes: &[usize]) -> Vec<Vec<usize>> {
        let all = 0..modes.len();
        let pairs: Vec<(usize, usize)> = (all.clone())
            .flat_map(|a| (a + 1..all.end).map(move |b| (a, b)))
            .collect();
        let p: Vec<f64> = (pairs.iter())
            .map(|(a, b)| self.estimate(self.kl(modes[*a]), self.kl(modes[*b])).1)
            .collect();
        let differ: Vec<(usize, usize)> = (pairs.into_iter().zip(holm(&p)))
            .filter(|(_, p)| *p < ALPHA)
            .map(|(pair, _)| pair)
            .collect();
        ties::groups(modes.len(), &differ)
    }

    fn parts(&self, mode: usize, parts: &[(Part, Run)], whole: f64) -> Vec<PartCost> {
        let found = (0..parts.len()).map(|i| self.estimate(self.kl(mode), self.zero() + 1 + i));
        let (estimates, p): (Vec<Estimate>, Vec<f64>) = found.unzip();
        let judged = parts.iter().zip(estimates).zip(holm(&p));
        let mut costs: Vec<PartCost> = judged
            .map(|(((part, _), kl), p)| PartCost {
                site: part.name(),
                scale: part.scale(),
                share: kl.value / whole,
                stands_out: p < ALPHA && kl.value > 0.0,
                kl,
            })
            .collect();
        costs.sort_by(|a, b| b.kl.value.total_cmp(&a.kl.value));
        costs
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use scalescope_golden::diagnosis::cost::loss::Losses;
    use scalescope_sim::random::SplitMix64;

    fn run(kl: Vec<f64>, nll: Vec<f64>) -> Run {
        Run {
            losses: Losses { kl, nll },
            ..Run::default()
        }
    }

    /// The text in one line.
    fn words(verdict: &Verdict) -> String {
        let text = verdict.text();
        text.split_whitespace().collect::<Vec<_>>().join(" ")
    }

    #[test]
    fn modes_are_told_apart_only_beyond_chance() {
        let mut random = SplitMix64::new(3);
        let mut noise = |mean: f64| -> Vec<f64> {
            let one = |_| mean * random.below(2000) as f64 / 1000.0;
            (0..640).map(one).collect()
        };
        let truth = run(vec![0.0; 640], noise(3.0));
        let low = run(noise(0.010), truth.losses.nll.clone());
        let like = run(noise(0.010), truth.losses.nll.clone());
        let worse = truth.losses.nll.iter().map(|v| v + 0.1).collect();
        let high = run(noise(0.030), worse);
        let modes = [("a", &low), ("b", &like), ("c", &low), ("d", &high)];
        let verdict = Verdict::of(&Runs {
            reference: ("1", &truth),
            modes: &modes,
            parts: None,
            lengths: &[320, 320],
        });
        assert_eq!(verdict.stretches, 20);
        assert_eq!(verdict.equal, [vec!["a", "c"]]);
        let letters: Vec<&str> = verdict.modes.iter().map(|m| m.tied.as_str()).collect();
        assert_eq!(letters, ["a", "a", "a", "b"]);
        let d = &verdict.modes[3];
        assert!(d.kl.low < 0.03 && d.kl.high > 0.029 && d.kl.high < 0.033);
        assert!((d.log_perplexity.value - 0.1).abs() < 1e-12);
        let text = words(&verdict);
        for part in [
            "Modes a and c are equal",
            "not beyond chance",
            "Mode d costs most",
        ] {
            assert!(text.contains(part), "{part}: {text}");
        }
        // The order of a and b is noise, and is not told.
        assert!(text.contains("cannot be told apart from"), "{text}");
    }

    #[test]
    fn parts_within_their_error_are_not_named() {
        let mut random = SplitMix64::new(5);
        let mut noise = |size: f64| size * (random.below(2000) as f64 / 1000.0 - 1.0);
        let own: Vec<f64> = (0..640).map(|_| 0.02 + noise(0.01)).collect();
        let without = own.iter().map(|v| v - 0.01 + noise(0.005)).collect();
        let no_matter = own.iter().map(|v| v + noise(0.005)).collect();
        let parts = [
            (Part::ALL[0], run(no_matter, vec![1.0; 640])),
            (Part::ALL[5], run(without, vec![1.0; 640])),
        ];
        let own = run(own, vec![1.0; 640]);
        let truth = run(vec![0.0; 640], vec![1.0; 640]);
        let verdict = Verdict::of(&Runs {
            reference: ("1", &truth),
            modes: &[("0", &own)],
            parts: Some((0, &parts)),
            lengths: &[640],
        });
        let found = &verdict.parts.as_ref().unwrap().parts;
        assert!(found[0].stands_out && !found[1].stands_out, "{found:?}");
        let text = words(&verdict);
        assert!(text.contains(Part::ALL[5].name()) && !text.contains(Part::ALL[0].name()));
    }

    #[test]
    fn one_stretch_says_nothing_of_chance() {
        let truth = run(vec![0.0; 9], vec![2.0; 9]);
        let own = run(vec![0.1; 9], vec![2.5; 9]);
        let verdict = Verdict::of(&Runs {
            reference: ("1", &truth),
            modes: &[("0", &own), ("5", &own)],
            parts: None,
            lengths: &[9],
        });
        let text = words(&verdict);
        assert!(
            text.contains("9 positions are too few") && !text.contains("95 %"),
            "{text}"
        );
    }
}
