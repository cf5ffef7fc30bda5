//! The smallest changes that help most: scales to recalibrate, conv inputs to quantize dynamically,
//! saturation in place of wrapping. Each is chosen on one half of the text and measured on the other.

use super::loss::{Judge, Losses, Mean, Text};
use rayon::prelude::*;
use scalescope_sim::arith::saturate::Overflow;
use scalescope_sim::datapath::{BlockChange, Datapath};
use scalescope_sim::error::{Result, SimError};
use scalescope_sim::mode::{ConvInput, XOutput};
use scalescope_sim::model::ScaleKey;
use serde::Serialize;

/// Factors that a scale is tried with.
const FACTORS: [f32; 8] = [0.5, 0.67, 0.8, 0.9, 1.11, 1.25, 1.5, 2.0];
/// 95 % of a normal distribution lie within this many standard errors.
pub(super) const Z95: f64 = 1.959_963_984_540_054;

/// A change and what it gains on text that it was not chosen on.
#[derive(Clone, Debug, Serialize)]
pub struct Recommendation {
    /// What to do.
    pub change: &'static str,
    /// The block; `None` for every one.
    pub layer: Option<usize>,
    /// The scale or tensor.
    pub site: &'static str,
    /// What a scale is multiplied with.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub factor: Option<f32>,
    /// The fall of KL from the reference, nats a token.
    pub kl_gain: Mean,
    /// Its 95 % interval.
    pub kl_interval: [f64; 2],
    /// Perplexity before and after.
    pub perplexity: [f64; 2],
    /// The fall of the mean negative log-likelihood, nats a token.
    pub nll_gain: Mean,
}

/// What was tried and what helps.
#[derive(Clone, Debug, Serialize)]
pub struct Recommendations {
    /// KL of the mode on the measuring half, nats a token.
    pub kl: f64,
    /// Its perplexity there.
    pub perplexity: f64,
    /// Changes tried.
    pub tried: usize,
    /// Those whose interval lies above zero, most helpful first.
    pub helpful: Vec<Recommendation>,
}

/// A change of some blocks.
#[derive(Clone, Debug)]
struct Trial {
    layers: std::ops::Range<usize>,
    amendment: BlockChange,
    words: &'static str,
    site: &'static str,
}

/// Tries changes of `path` against `reference`.
///
/// # Errors
///
/// Fewer than two sequences: one half chooses, the other measures.
pub fn recommend<'m>(
    path: &Datapath<'m>,
    reference: &Datapath,
    text: &Text,
    done: &(dyn Fn() + Sync),
) -> Result<Recommendations> {
    if !path.mode().needs_quantized() {
        let item = format_args!("mode {}", path.mode().name);
        return Err(SimError::value(
            item,
            "a mode with INT8 tensors, to change",
            "none",
        ));
    }
    let [choosing, measuring] = halves(text)?;
    let (chooser, measurer) = (
        Judge::new(&choosing, reference)?,
        Judge::new(&measuring, reference)?,
    );
    let (starts, measured_starts) = (chooser.starts(path)?, measurer.starts(path)?);
    let before = chooser.losses(path, &starts, 0)?;
    let measured = measurer.losses(path, &measured_starts, 0)?;
    let trials = trials(path);
    let changed = |trial: &Trial| -> Result<Datapath<'m>> {
        let mut changed = path.clone();
        for layer in trial.layers.clone() {
            changed.amend(layer, trial.amendment)?;
        }
        Ok(changed)
    };
    let gains: Vec<f64> = trials
        .par_iter()
        .map(|trial| {
            let losses = chooser.losses(&changed(trial)?, &starts, trial.layers.start)?;
            done();
            Ok(Mean::of_difference(&before.kl, &losses.kl).mean)
        })
        .collect::<Result<_>>()?;
    let best = best_of_each(&trials, &gains);
    let mut helpful: Vec<Recommendation> = best
        .into_par_iter()
        .map(|i| {
            let trial = &trials[i];
            let path = changed(trial)?;
            let after = measurer.losses(&path, &measured_starts, trial.layers.start)?;
            Ok(recommendation(
                trial,
                &measured,
                &after,
                path.config().n_layers,
            ))
        })
        .collect::<Result<_>>()?;
    helpful.retain(|r| r.kl_interval[0] > 0.0);
    helpful.sort_by(|a, b| b.kl_gain.mean.total_cmp(&a.kl_gain.mean));
    Ok(Recommendations {
        kl: measured.mean_kl(),
        perplexity: measured.perplexity(),
        tried: trials.len(),
        helpful,
    })
}

/// Every other sequence, to choose with, and the rest, to measure with.
pub(super) fn halves(text: &Text) -> Result<[Text; 2]> {
    text.check()?;
    if text.sequences.len() < 2 {
        return Err(SimError::value(
            "text",
            "at least two sequences: one half chooses the changes, the other measures them",
            text.sequences.len(),
        ));
    }
    Ok([0, 1].map(|odd| Text {
        sequences: (text.sequences.iter().skip(odd).step_by(2))
            .cloned()
            .collect(),
        stride: text.stride,
    }))
}

fn recommendation(trial: &Trial, before: &Losses, after: &Losses, layers: usize) -> Recommendation {
    let kl_gain = Mean::of_difference(&before.kl, &after.kl);
    let one = trial.layers.len() == 1 && layers > 1;
    Recommendation {
        change: trial.words,
        layer: one.then_some(trial.layers.start),
        site: trial.site,
        factor: match trial.amendment {
            BlockChange::Recalibrate(_, factor) => Some(factor),
            _ => None,
        },
        kl_gain,
        kl_interval: [-1.0, 1.0].map(|side| kl_gain.mean + side * Z95 * kl_gain.se),
        perplexity: [before.perplexity(), after.perplexity()],
        nll_gain: Mean::of_difference(&before.nll, &after.nll),
    }
}

/// Of the factors of one scale only the best; of all, those that gain.
fn best_of_each(trials: &[Trial], gains: &[f64]) -> Vec<usize> {
    let name = |t: &Trial| (t.layers.clone(), t.words, t.site);
    (0..trials.len())
        .filter(|i| {
            let rivals = (0..trials.len()).filter(|j| name(&trials[*j]) == name(&trials[*i]));
            gains[*i] > 0.0 && rivals.into_iter().all(|j| gains[j] <= gains[*i])
        })
        .collect()
}

fn trials(path: &Datapath) -> Vec<Trial> {
    let layers = path.config().n_layers;
    let mut blocks: Vec<std::ops::Range<usize>> = (0..layers).map(|l| l..l + 1).collect();
    // Of one block, `every block` is that block.
    if layers > 1 {
        blocks.push(0..layers);
    }
    let mut all = Vec::new();
    for layers in blocks {
        // The state's scale is not used before the first token of decode.
        let keys = ScaleKey::ALL
            .into_iter()
            .filter(|k| *k != ScaleKey::SsmState);
        for key in keys {
            all.extend(FACTORS.map(|factor| Trial {
                layers: layers.clone(),
                amendment: BlockChange::Recalibrate(key, factor),
                words: "multiply the scale",
                site: key.name(),
            }));
        }
        let mode = path.mode();
        if mode.conv_in != ConvInput::Float {
            let inputs = [
                (ConvInput::DynamicToken, "quantize the conv input per token"),
                (
                    ConvInput::DynamicTensor,
                    "quantize the conv input per tensor",
                ),
            ];
            for (input, words) in inputs.into_iter().filter(|(i, _)| *i != mode.conv_in) {
                all.push(Trial {
                    layers: layers.clone(),
                    amendment: BlockChange::ConvInput(input),
                    words,
                    site: match mode.x {
                        XOutput::Int8 => "x, dequantized",
                        _ => "x",
                    },
                });
            }
        }
        if path.profile().cuda.prefill.hadamard.overflow == Overflow::Wrap {
            all.push(Trial {
                layers: layers.clone(),
                amendment: BlockChange::Hadamard(Overflow::Saturate),
                words: "saturate instead of wrapping",
                site: "had_out",
            });
        }
    }
    all
}
