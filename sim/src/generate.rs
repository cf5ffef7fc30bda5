//! Text from a model: greedy or sampled continuations, token by token with the state carried, and
//! the sequences that a model is calibrated on when there is no text.

use crate::arith::real::{Ieee, RealMath};
use crate::datapath::{Datapath, LogitRows};
use crate::engine::{Engine, Sequence};
use crate::error::{Result, SimError};
use crate::mode;
use crate::model::Model;
use crate::profile::Profile;
use crate::progress::{Progress, Steps, in_order};
use crate::random::Stream;
use crate::score::most_likely;
use crate::trace::Blind;

/// How the next token is chosen.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Sampler {
    /// The most likely; the first of equals.
    Greedy,
    /// By chance: token i with weight exp((logit_i − max) / temperature).
    Random {
        /// 1 is the model's own distribution; smaller is more likely text.
        temperature: f32,
        /// Equal seeds give equal text.
        seed: u64,
    },
}

impl Sampler {
    /// Chooses the token at `position` of a continuation. A pure function of its arguments, the same
    /// on every machine: SplitMix64, correctly rounded exp, sums in f64 in order.
    ///
    /// # Errors
    ///
    /// Logits with NaN or infinity; a temperature that is not positive and finite.
    pub fn pick(&self, logits: &[f32], position: usize) -> Result<u32> {
        let most_likely = most_likely(logits)?;
        let Sampler::Random { temperature, seed } = *self else {
            return Ok(most_likely);
        };
        if !(temperature > 0.0 && temperature.is_finite()) {
            let expected = "a positive, finite number";
            return Err(SimError::value("temperature", expected, temperature));
        }
        let top = logits[most_likely as usize];
        let mut total = 0.0;
        let sums: Vec<f64> = logits
            .iter()
            .map(|logit| {
                total += f64::from(Ieee::exp((logit - top) / temperature));
                total
            })
            .collect();
        let chance = Stream(seed).uniform(position) * total;
        // The last sum is above any chance, but for its rounding.
        let token = sums.partition_point(|sum| *sum <= chance);
        Ok(token.min(logits.len() - 1) as u32)
    }
}

/// Continues `prompt` by `count` tokens.
///
/// # Errors
///
/// An empty prompt, a token id out of range, and those of [`Sampler::pick`].
pub fn generate(
    engine: &dyn Engine,
    prompt: &[u32],
    count: usize,
    sampler: Sampler,
) -> Result<Vec<u32>> {
    let mut sequence = engine.begin();
    let logits = sequence.prefill(prompt, LogitRows::Last, &mut Blind)?;
    let logits = logits.to_real();
    let logits = logits.as_slice().expect("logits are row-major");
    continue_from(&mut *sequence, logits, count, sampler)
}

/// Continues a sequence after its prefill by `count` tokens, from the logits of its last token. The
/// last of the new tokens is not run, so the sequence ends before it.
///
/// # Errors
///
/// Those of [`Sampler::pick`].
pub fn continue_from(
    sequence: &mut dyn Sequence,
    logits: &[f32],
    count: usize,
    sampler: Sampler,
) -> Result<Vec<u32>> {
    let mut tokens = Vec::with_capacity(count);
    if count > 0 {
        tokens.push(sampler.pick(logits, 0)?);
    }
    for position in 1..count {
        let before = tokens[position - 1];
        tokens.push(match sampler {
            Sampler::Greedy => sequence.decode_greedy(before, &mut Blind)?,
            Sampler::Random { .. } => {
                let logits = sequence.decode(before, &mut Blind)?.to_real();
                let row = logits.as_slice().expect("logits are row-major");
                sampler.pick(row, position)?
            }
        });
    }
    Ok(tokens)
}

/// Which sequences a model writes for its own calibration.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct OwnText {
    /// How many.
    pub sequences: usize,
    /// Tokens of each.
    pub length: usize,
    /// Equal seeds give equal sequences.
    pub seed: u64,
}

impl Default for OwnText {
    fn default() -> Self {
        Self {
            sequences: 32,
            length: 256,
            seed: 0x5ca1_e5c0_9e00_0002,
        }
    }
}

impl OwnText {
    /// Tokens of all sequences: where the progress of [`own_text`] ends.
    pub fn tokens(&self) -> usize {
        self.sequences * self.length
    }
}

/// Sequences that decode as one batch.
const BATCH: usize = 8;

/// Sequences the float model writes from nothing but its start-of-text token (`bos_token_id` of its
/// configuration, or else 0; not part of the sequences), at temperature 1. `progress` is told tokens.
///
/// # Errors
///
/// A model without its float part, logits that are not finite, [`SimError::Interrupted`] if `progress`
/// breaks.
pub fn own_text(model: &Model, options: &OwnText, progress: Progress) -> Result<Vec<Vec<u32>>> {
    let datapath = Datapath::new(model, &mode::FLOAT, &Profile::get("exact")?)?;
    let steps = Steps::new(progress);
    let batches = in_order(options.sequences.div_ceil(BATCH), |batch| {
        let first = batch * BATCH;
        let last = options.sequences.min(first + BATCH);
        let samplers: Vec<Sampler> = (first..last)
            .map(|sequence| Sampler::Random {
                temperature: 1.0,
                seed: Stream(options.seed).at(sequence),
            })
            .collect();
        write_batch(&datapath, &samplers, options.length, &steps)
    })?;
    Ok(batches.into_iter().flatten().collect())
}

/// One sequence for each sampler.
fn write_batch(
    datapath: &Datapath,
    samplers: &[Sampler],
    length: usize,
    steps: &Steps,
) -> Result<Vec<Vec<u32>>> {
    let mut sequences = vec![Vec::with_capacity(length); samplers.len()];
    let mut states = vec![datapath.empty_state(); samplers.len()];
    let mut tokens = vec![start_of_text(datapath); samplers.len()];
    for position in 0..length {
        let logits = datapath.decode_batch(&tokens, &mut states)?.to_real();
        for (i, (row, sampler)) in logits.rows().into_iter().zip(samplers).enumerate() {
            let row = row.to_slice().expect("logits are row-major");
            tokens[i] = sampler.pick(row, position)?;
            sequences[i].push(tokens[i]);
        }
        steps.advance(samplers.len())?;
    }
    Ok(sequences)
}

fn start_of_text(datapath: &Datapath) -> u32 {
    let config = datapath.config();
    let id = config.json.get("bos_token_id").and_then(|id| id.as_u64());
    id.filter(|id| *id < config.vocab_size as u64).unwrap_or(0) as u32
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::checkpoint::synthetic::{Shape, float_model, quantized_model};
    use crate::datapath::State;
    use crate::mode::MODES;
    use crate::model::Checkpoint;
    use crate::profile::PROFILES;
    use crate::progress;
    use std::ops::ControlFlow;
    use std::sync::Arc;

    fn tiny() -> Model {
        let shape = Shape::named("tiny").unwrap();
        let float = Arc::new(float_model(shape));
        Model {
            quantized: Some(Arc::new(quantized_model(shape))),
            original: Some(Arc::new(Checkpoint::F16((*float).clone()))),
            float: Some(float),
        }
    }

    #[test]
    fn chance_follows_the_weights() {
        let logits = [3f32.ln(), f32::MIN, 0.0];
        let count = |temperature: f32| {
            let sampler = Sampler::Random {
                temperature,
                seed: 7,
            };
            let picks = (0..10_000).map(|i| sampler.pick(&logits, i).unwrap());
            picks.fold([0; 3], |mut counts, token| {
                counts[token as usize] += 1;
                counts
            })
        };
        // 3 : 0 : 1, and 9 : 0 : 1 at half the temperature; four standard deviations.
        let [most, never, least] = count(1.0);
        assert!((7327..7673).contains(&most) && never == 0, "{most} {least}");
        let [most, never, least] = count(0.5);
        assert!((8880..9120).contains(&most) && never == 0, "{most} {least}");
        assert_eq!(count(0.01), [10_000, 0, 0]);
    }

    #[test]
    fn picks_that_make_no_sense_are_refused() {
        let refused = |sampler: Sampler, logits: &[f32], part: &str| {
            let error = sampler.pick(logits, 0).unwrap_err().to_string();
            assert!(error.contains(part), "{error}");
        };
        refused(Sampler::Greedy, &[0.0, f32::NAN], "logit of token 1");
        refused(Sampler::Greedy, &[f32::INFINITY], "logit of token 0");
        for temperature in [0.0, -1.0, f32::NAN, f32::INFINITY] {
            let seed = 1;
            let sampler = Sampler::Random { temperature, seed };
            refused(sampler, &[0.0], "temperature");
        }
    }

    #[test]
    fn generation_carries_the_state() {
        let model = tiny();
        let exact = Profile::get("exact").unwrap();
        let datapath = Datapath::new(&model, &mode::FLOAT, &exact).unwrap();
        let random = |seed| Sampler::Random {
            temperature: 1.0,
            seed,
        };
        for sampler in [Sampler::Greedy, random(1), random(2)] {
            let got = generate(&datapath, &[5, 6, 7], 12, sampler).unwrap();
            // The same without any state: the whole sequence again for every token.
            let mut tokens = vec![5, 6, 7];
            for position in 0..12 {
                let (logits, _) = datapath
                    .prefill(&tokens, LogitRows::Last, &mut Blind)
                    .unwrap();
                let logits = logits.to_real();
                tokens.push(sampler.pick(logits.as_slice().unwrap(), position).unwrap());
            }
            assert_eq!(got, tokens[3..]);
        }
        assert_ne!(
            generate(&datapath, &[5], 12, random(1)).unwrap(),
            generate(&datapath, &[5], 12, random(2)).unwrap()
        );
        assert!(generate(&datapath, &[5], 0, random(1)).unwrap().is_empty());
        assert!(generate(&datapath, &[], 1, random(1)).is_err());
        assert!(generate(&datapath, &[256], 1, random(1)).is_err());
    }

    /// A token whose logits are not all computed is that of all logits, in every mode and profile.
    #[test]
    fn a_greedy_token_is_that_of_all_logits() {
        let model = tiny();
        for mode in MODES {
            for profile in PROFILES {
                let datapath = Datapath::new(&model, mode, profile).unwrap();
                let (mut whole, mut greedy) = (datapath.empty_state(), datapath.empty_state());
                let mut token = 7;
                for _ in 0..6 {
                    let logits = datapath.decode(token, &mut whole, &mut Blind).unwrap();
                    let all = most_likely(logits.to_real().as_slice().unwrap()).unwrap();
                    token = datapath
                        .decode_greedy(token, &mut greedy, &mut Blind)
                        .unwrap();
                    assert_eq!(token, all, "{} {}", mode.name, profile.name);
                }
                assert!(whole == greedy);
            }
        }
    }

    #[test]
    fn a_batch_decodes_as_each_sequence_alone() {
        let model = tiny();
        for mode in MODES {
            for profile in PROFILES {
                let datapath = Datapath::new(&model, mode, profile).unwrap();
                let mut alone: Vec<State> = [&[1u32][..], &[2, 3], &[4, 5, 6]]
                    .map(|prompt| {
                        datapath
                            .prefill(prompt, LogitRows::None, &mut Blind)
                            .unwrap()
                            .1
                    })
                    .into();
                let mut together = alone.clone();
                for tokens in [[10, 20, 30], [40, 40, 40]] {
                    let batch = datapath.decode_batch(&tokens, &mut together).unwrap();
                    let batch = batch.to_real();
                    for (i, state) in alone.iter_mut().enumerate() {
                        let one = datapath.decode(tokens[i], state, &mut Blind).unwrap();
                        assert_eq!(one.to_real().row(0), batch.row(i));
                    }
                    assert!(alone == together, "{} {}", mode.name, profile.name);
                }
            }
        }
    }

    #[test]
    fn own_text_depends_on_the_seed_alone() {
        let model = tiny();
        let options = OwnText {
            sequences: 11,
            length: 9,
            seed: 3,
        };
        let write = |options, threads| {
            let pool = rayon::ThreadPoolBuilder::new().num_threads(threads);
            let pool = pool.build().unwrap();
            pool.install(|| own_text(&model, &options, &progress::ignore).unwrap())
        };
        let text = write(options, 1);
        assert_eq!(text.len() * text[10].len(), options.tokens());
        assert_eq!(text, write(options, 4));
        let fewer = OwnText {
            sequences: 2,
            ..options
        };
        assert_eq!(text[..2], write(fewer, 2));
        let other = write(OwnText { seed: 4, ..options }, 2);
        assert!(text.iter().zip(&other).all(|(a, b)| a != b));
        assert_ne!(text[0], text[1]);
    }

    #[test]
    fn own_text_stops_when_told() {
        let stop = |tokens| match tokens < 30 {
            true => ControlFlow::Continue(()),
            false => ControlFlow::Break(()),
        };
        let error = own_text(&tiny(), &OwnText::default(), &stop).unwrap_err();
        assert!(matches!(error, SimError::Interrupted));
        let none = own_text(&Model::default(), &OwnText::default(), &progress::ignore);
        assert!(none.is_err());
    }
}
