//! Calibration: activation scales from what the float model's tensors hold while it runs over
//! samples. The scales: `docs/arithmetic.md`, "Where a scale is used".
//!
//! Every sample is reduced to one statistic for each scale while it runs (nothing is stored), and
//! the statistics are folded in the order of the samples. The result therefore depends on neither
//! the number of threads nor their luck.

mod observer;

use crate::datapath::{Datapath, LogitRows};
use crate::error::{Result, SimError};
use crate::mode;
use crate::model::{ActivationScales, Model, ScaleKey};
use crate::profile::Profile;
use crate::progress::{Progress, Steps, in_order};
use crate::quant::Scale;
use crate::step::norm::rms_norm;
use crate::trace::{Place, Probe, Tensor, TracePoint};
use std::fmt::Display;

pub use observer::{Observer, quantile_abs};

/// The scale that a silent tensor gets: no scale is smaller.
pub const LEAST_SCALE: f32 = 1e-6;

/// Which point of the float model each scale is calibrated on, and how.
pub const OBSERVED: [(ScaleKey, TracePoint, Observer); 7] = [
    (ScaleKey::InProjInput, TracePoint::NormOut, Observer::MinMax),
    (
        ScaleKey::InProjOutput,
        TracePoint::InProjOut,
        Observer::MinMax,
    ),
    (
        ScaleKey::XProjInput,
        TracePoint::ConvOutF32,
        Observer::PERCENTILE,
    ),
    (
        ScaleKey::XProjOutput,
        TracePoint::XProjOut,
        Observer::MinMax,
    ),
    (
        ScaleKey::DtProjOutput,
        TracePoint::DtProjOut,
        Observer::MinMax,
    ),
    (
        ScaleKey::SsmState,
        TracePoint::SsmState,
        Observer::PERCENTILE,
    ),
    (ScaleKey::OutProjInput, TracePoint::HadOut, Observer::MinMax),
];

/// The observer of the scale that a model may lack, at the same point as `x_proj_input`'s.
pub const OBSERVED_MAX: (ScaleKey, TracePoint, Observer) = (
    ScaleKey::XProjInputMax,
    TracePoint::ConvOutF32,
    Observer::Percentile { alpha: 1.0 },
);

/// The share of values that the observer of a scale is told to clip, where calibration was not told another
/// one.
pub fn promised_clipping(key: ScaleKey) -> f64 {
    let all = OBSERVED.iter().chain([&OBSERVED_MAX]);
    let mut of_key = all.filter(|(observed, ..)| *observed == key);
    of_key.next().map_or(0.0, |(.., observer)| observer.clips())
}

/// What calibration may be told.
#[derive(Clone, Debug, PartialEq)]
pub struct CalibrationOptions {
    /// The observer of each scale, in the order of [`ScaleKey::ALL`].
    pub observers: [Observer; 7],
    /// Samples used: the first ones.
    pub samples: usize,
    /// Tokens used of each sample: the first ones.
    pub length: usize,
}

impl Default for CalibrationOptions {
    /// The observers of [`OBSERVED`], 128 samples of 512 tokens.
    fn default() -> Self {
        Self {
            observers: OBSERVED.map(|(_, _, observer)| observer),
            samples: 128,
            length: 512,
        }
    }
}

impl CalibrationOptions {
    /// The observer of a scale.
    pub fn observer(&self, key: ScaleKey) -> Observer {
        self.observers[key as usize]
    }

    /// Gives every percentile observer another quantile.
    pub fn set_alpha(&mut self, new: f32) {
        for observer in &mut self.observers {
            if let Observer::Percentile { alpha } = observer {
                *alpha = new;
            }
        }
    }

    fn validate(&self) -> Result<()> {
        let range = |item: &str, expected: &str, good: bool, found: &dyn Display| match good {
            true => Ok(()),
            false => Err(SimError::value(item, expected, found)),
        };
        let some = "at least 1";
        range("calibration samples", some, self.samples > 0, &self.samples)?;
        range("calibration length", some, self.length > 0, &self.length)?;
        for observer in &self.observers {
            if let Observer::Percentile { alpha } = observer {
                let good = *alpha > 0.0 && *alpha <= 1.0;
                range("percentile", "a number above 0, at most 1", good, alpha)?;
            }
        }
        Ok(())
    }
}

/// One sample's statistics of one block, in the order of [`OBSERVED`]; the last is [`OBSERVED_MAX`]'s.
type Statistics = [f32; OBSERVED.len() + 1];

/// Takes the statistics of one sample as its tensors pass.
struct Observing<'a> {
    options: &'a CalibrationOptions,
    layers: Vec<Statistics>,
}

fn observed_at(point: TracePoint) -> Option<usize> {
    OBSERVED
        .iter()
        .position(|(_, observed, _)| *observed == point)
}

impl Probe for Observing<'_> {
    fn wants(&self, place: Place) -> bool {
        place.layer.is_some() && observed_at(place.point).is_some()
    }

    fn visit(&mut self, place: Place, value: &mut Tensor) -> Result<()> {
        let (Some(layer), Some(at)) = (place.layer, observed_at(place.point)) else {
            return Ok(());
        };
        let Tensor::F32(values) = value else {
            unreachable!("the float model's activations are FP32")
        };
        let observer = self.options.observer(OBSERVED[at].0);
        let values = values.as_slice().expect("activations are row-major");
        match observer.statistic(values) {
            Some(statistic) => self.layers[layer][at] = statistic,
            None => {
                let found = "NaN or infinity";
                return Err(SimError::value(place, "finite activations", found));
            }
        }
        if place.point == OBSERVED_MAX.1 {
            let statistic = OBSERVED_MAX.2.statistic(values);
            self.layers[layer][OBSERVED.len()] = statistic.expect("finite, as was seen");
        }
        Ok(())
    }
}

/// Takes the statistic of the head's input: the residual stream after the last block, normed by a weight
/// of ones, which folding leaves.
struct ObservingHead {
    ones: Vec<f32>,
    eps: f32,
    statistic: Option<f32>,
}

impl Probe for ObservingHead {
    fn wants(&self, place: Place) -> bool {
        place == Place::end(TracePoint::FinalResidual)
    }

    fn visit(&mut self, place: Place, value: &mut Tensor) -> Result<()> {
        let normed = rms_norm(value, None, &self.ones, self.eps).normed;
        let values = normed.as_slice().expect("activations are row-major");
        self.statistic = Observer::MinMax.statistic(values);
        match self.statistic {
            Some(_) => Ok(()),
            None => Err(SimError::value(
                place,
                "finite activations",
                "NaN or infinity",
            )),
        }
    }
}

/// Calibrates the scale of the final norm's output, for a quantized head: minmax, as in_proj_input.
///
/// # Errors
///
/// As [`calibrate`].
pub fn calibrate_head(
    model: &Model,
    samples: &[Vec<u32>],
    options: &CalibrationOptions,
    progress: Progress,
) -> Result<Scale> {
    let samples = used(samples, options)?;
    let datapath = Datapath::new(model, &mode::FLOAT, &Profile::get("exact")?)?;
    let steps = Steps::new(progress);
    let observe = |sample: usize| -> Result<f32> {
        let tokens = &samples[sample][..samples[sample].len().min(options.length)];
        let config = datapath.config();
        let mut probe = ObservingHead {
            ones: vec![1.0; config.d_model],
            eps: config.eps,
            statistic: None,
        };
        datapath
            .prefill(tokens, LogitRows::None, &mut probe)
            .map_err(|error| in_sample(error, sample))?;
        steps.advance(1)?;
        Ok(probe
            .statistic
            .expect("the float model shows its last residual"))
    };
    let per_sample = in_order(samples.len(), observe)?;
    let w_max = per_sample.into_iter().fold(None, |w_max, statistic| {
        Some(Observer::MinMax.fold(w_max, statistic))
    });
    Scale::from_absmax(w_max.unwrap_or(0.0), LEAST_SCALE)
}

/// The samples that are used.
fn used<'a>(samples: &'a [Vec<u32>], options: &CalibrationOptions) -> Result<&'a [Vec<u32>]> {
    options.validate()?;
    if samples.is_empty() {
        return Err(SimError::value(
            "calibration",
            "at least one sample",
            "none",
        ));
    }
    Ok(&samples[..samples.len().min(options.samples)])
}

/// Calibrates the activation scales of every block on token sequences, with the folded float model.
/// `progress` is told samples.
///
/// # Errors
///
/// No samples; an empty one, or a token id out of range; a model without its float part; activations
/// that are not finite, by block, point and sample; [`SimError::Interrupted`] if `progress` breaks.
pub fn calibrate(
    model: &Model,
    samples: &[Vec<u32>],
    options: &CalibrationOptions,
    progress: Progress,
) -> Result<Vec<ActivationScales>> {
    let samples = used(samples, options)?;
    let datapath = Datapath::new(model, &mode::FLOAT, &Profile::get("exact")?)?;
    let steps = Steps::new(progress);
    let observe = |sample: usize| -> Result<Vec<Statistics>> {
        let tokens = &samples[sample][..samples[sample].len().min(options.length)];
        let mut probe = Observing {
            options,
            layers: vec![[f32::NAN; OBSERVED.len() + 1]; datapath.config().n_layers],
        };
        datapath
            .prefill(tokens, LogitRows::None, &mut probe)
            .map_err(|error| in_sample(error, sample))?;
        let seen = probe.layers.iter().flatten().all(|s| !s.is_nan());
        assert!(seen, "the float model shows every observed point");
        steps.advance(1)?;
        Ok(probe.layers)
    };
    let per_sample = in_order(samples.len(), observe)?;
    (0..datapath.config().n_layers)
        .map(|layer| {
            let scale = |at: usize, observer: Observer| {
                let w_max = per_sample.iter().fold(None, |w_max, statistics| {
                    Some(observer.fold(w_max, statistics[layer][at]))
                });
                Scale::from_absmax(w_max.unwrap_or(0.0), LEAST_SCALE)
            };
            let scales = ActivationScales::from_fn(|key| {
                let at = OBSERVED.iter().position(|(k, ..)| *k == key);
                scale(at.expect("every key is observed"), options.observer(key))
            })?;
            let max = scale(OBSERVED.len(), OBSERVED_MAX.2)?;
            Ok(scales.with_max(Some(max)))
        })
        .collect()
}

/// Names the sample an error came from.
fn in_sample(error: SimError, sample: usize) -> SimError {
    match error {
        SimError::Value {
            item,
            expected,
            found,
        } => SimError::value(format_args!("{item} of sample {sample}"), expected, found),
        other => other,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::checkpoint::synthetic::{Shape, float_model};
    use crate::progress;
    #[cfg(feature = "sample")]
    use crate::sample;
    use crate::trace::{Recorder, Selection};
    use half::f16;
    use std::ops::ControlFlow;
    use std::sync::Arc;

    fn tiny() -> Model {
        Model {
            float: Some(Arc::new(float_model(Shape::named("tiny").unwrap()))),
            ..Model::default()
        }
    }

    fn samples() -> Vec<Vec<u32>> {
        let sample = |i: u32| (0..17 + i).map(|t| (i * 31 + t * t) % 256).collect();
        (0..9).map(sample).collect()
    }

    fn run(samples: &[Vec<u32>], options: &CalibrationOptions) -> Result<Vec<ActivationScales>> {
        calibrate(&tiny(), samples, options, &progress::ignore)
    }

    #[test]
    fn the_table_has_every_key_in_order() {
        assert_eq!(OBSERVED.map(|(key, ..)| key), ScaleKey::ALL);
        for (i, key) in ScaleKey::ALL.into_iter().enumerate() {
            assert_eq!(key as usize, i);
        }
    }

    /// The definition, from recorded tensors and sorted values, nothing taken on the way.
    fn by_definition(samples: &[Vec<u32>]) -> Vec<ActivationScales> {
        let model = tiny();
        let exact = Profile::get("exact").unwrap();
        let datapath = Datapath::new(&model, &mode::FLOAT, &exact).unwrap();
        let recorders: Vec<Recorder> = samples
            .iter()
            .map(|tokens| {
                let mut recorder = Recorder::new(Selection::default());
                datapath
                    .prefill(tokens, LogitRows::None, &mut recorder)
                    .unwrap();
                recorder
            })
            .collect();
        let scale = |layer: usize, key: ScaleKey| {
            let (_, point, observer) = match key {
                ScaleKey::XProjInputMax => OBSERVED_MAX,
                key => OBSERVED[key as usize],
            };
            let mut w_max: Option<f32> = None;
            for recorder in &recorders {
                let values = recorder.tensors[&Place::layer(layer, point)].to_real();
                let mut sorted: Vec<f32> = values.iter().map(|v| v.abs()).collect();
                sorted.sort_by(f32::total_cmp);
                let last = sorted.len() - 1;
                w_max = Some(match (observer, w_max) {
                    (Observer::MinMax, w) => w.unwrap_or(1e-5).max(sorted[last]),
                    (Observer::Percentile { alpha }, w) => {
                        let rank = alpha * last as f32;
                        let (low, high) =
                            (sorted[rank as usize], sorted[last.min(rank as usize + 1)]);
                        let q = match rank.fract() {
                            t if t < 0.5 => low + t * (high - low),
                            t => high - (high - low) * (1.0 - t),
                        };
                        w.map_or(q, |w| w + 0.01 * (q - w))
                    }
                });
            }
            Scale::new((w_max.unwrap() / 127.0).max(1e-6))
        };
        (0..2)
            .map(|layer| {
                let scales = ActivationScales::from_fn(|key| scale(layer, key)).unwrap();
                scales.with_max(Some(scale(layer, ScaleKey::XProjInputMax).unwrap()))
            })
            .collect()
    }

    #[test]
    fn it_is_the_definition_for_any_number_of_threads() {
        let samples = samples();
        let expected = by_definition(&samples);
        for threads in [1, 2, 5] {
            let pool = rayon::ThreadPoolBuilder::new().num_threads(threads);
            let got = pool
                .build()
                .unwrap()
                .install(|| run(&samples, &CalibrationOptions::default()));
            assert_eq!(got.unwrap(), expected, "{threads} threads");
        }
    }

    #[test]
    fn options_choose_samples_tokens_and_observers() {
        let all = samples();
        let options = CalibrationOptions {
            samples: 3,
            length: 10,
            ..CalibrationOptions::default()
        };
        let cut: Vec<Vec<u32>> = all[..3].iter().map(|s| s[..10].to_vec()).collect();
        assert_eq!(run(&all, &options).unwrap(), by_definition(&cut));
        let mut options = CalibrationOptions::default();
        options.set_alpha(1.0);
        let largest = run(&all[..1], &options).unwrap();
        options.observers = [Observer::MinMax; 7];
        assert_eq!(run(&all[..1], &options).unwrap(), largest);
        assert!(
            largest[0].ssm_state
                > run(&all[..1], &CalibrationOptions::default()).unwrap()[0].ssm_state
        );
    }

    #[cfg(feature = "sample")]
    #[test]
    fn the_reference_s_scales_where_they_depend_on_single_tokens() {
        // In block 0 the normed embedding and in_proj's output are functions of the token alone. The
        // reference's calibration text is not at hand, but among all tokens of a novel these two
        // give the largest |x| it met. One ulp is what the order of a sum may change.
        let samples = [vec![3554], vec![4850]];
        let options = CalibrationOptions::default();
        let got = calibrate(&sample::model(), &samples, &options, &progress::ignore).unwrap();
        let reference = sample::activation_scales();
        for key in [ScaleKey::InProjInput, ScaleKey::InProjOutput] {
            let [got, want] = [got[0], reference[0]].map(|s| s.get(key).get().to_bits());
            assert!(got.abs_diff(want) <= 1, "{}", key.name());
        }
    }

    #[test]
    fn refusals_name_what_is_wrong() {
        let refused = |samples: &[Vec<u32>], options: &CalibrationOptions, part: &str| {
            let error = run(samples, options).unwrap_err().to_string();
            assert!(error.contains(part), "{error}");
        };
        let options = CalibrationOptions::default();
        refused(&[], &options, "at least one sample");
        refused(&[vec![1], vec![]], &options, "tokens of sample 1");
        refused(&[vec![1], vec![2, 256]], &options, "token 1 of sample 1");
        for alpha in [0.0, 1.5, f32::NAN] {
            let mut options = options.clone();
            options.set_alpha(alpha);
            refused(&[vec![1]], &options, "percentile");
        }
        let no_samples = CalibrationOptions {
            samples: 0,
            ..options.clone()
        };
        refused(&[vec![1]], &no_samples, "samples");
        let no_tokens = CalibrationOptions {
            length: 0,
            ..options.clone()
        };
        refused(&[vec![1]], &no_tokens, "length");
        let none = calibrate(&Model::default(), &[vec![1]], &options, &progress::ignore);
        assert!(none.is_err());
    }

    #[test]
    fn activations_that_are_not_finite_are_named() {
        let mut float = float_model(Shape::named("tiny").unwrap());
        float.layers[1].conv_bias[3] = f16::NAN;
        let model = Model {
            float: Some(Arc::new(float)),
            ..Model::default()
        };
        let options = CalibrationOptions::default();
        let error = calibrate(&model, &samples(), &options, &progress::ignore).unwrap_err();
        let error = error.to_string();
        assert!(
            error.starts_with("layer_01/conv_out_f32 of sample 0: "),
            "{error}"
        );
    }

    #[test]
    fn it_stops_when_told() {
        let seen = std::sync::Mutex::new(Vec::new());
        let stop = |done| {
            seen.lock().unwrap().push(done);
            match done < 4 {
                true => ControlFlow::Continue(()),
                false => ControlFlow::Break(()),
            }
        };
        let options = CalibrationOptions::default();
        let error = calibrate(&tiny(), &samples(), &options, &stop).unwrap_err();
        assert!(matches!(error, SimError::Interrupted));
        assert_eq!(*seen.lock().unwrap(), [1, 2, 3, 4]);
    }
}
