//! A model in memory, and its runs.

use crate::decode::Decoder;
use crate::errors::raise;
use crate::rules::{Named, find_mode, find_profile};
use crate::score::Scorer;
use crate::simulator::{Setup, simulator};
use crate::trace::{Parts, parts};
use crate::work;
use numpy::PyReadonlyArray2;
use pyo3::prelude::*;
use rayon::prelude::*;
use scalescope::cli::{ModelArgs, recipe};
use scalescope::dumps::trace_points;
use scalescope::embed;
use scalescope::input;
use scalescope::kept::Kept;
use scalescope::sequences::calibration_sequences;
use scalescope::tokenizer::encode;
use scalescope_golden::trace_file::{Meta, TraceFile, model_digest};
use scalescope_sim::Simulator;
use scalescope_sim::arith::saturate::Status;
use scalescope_sim::calibrate::CalibrationOptions;
use scalescope_sim::checkpoint::scales;
use scalescope_sim::datapath::{LogitRows, check_tokens};
use scalescope_sim::error::{Result, SimError};
use scalescope_sim::generate::OwnText;
use scalescope_sim::mode::FLOAT;
use scalescope_sim::score::SequenceScore;
use scalescope_sim::trace::{Recorder, Selection};
use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::{Arc, OnceLock};

/// A model in memory.
#[pyclass(frozen, module = "scalescope._scalescope")]
pub struct Model {
    kept: Arc<Kept>,
    /// Digests of the embedding without and with a quantized part: hashing one takes as long as many tokens.
    digests: [OnceLock<Option<String>>; 2],
}

/// Which places a run keeps.
pub fn selection(points: Option<Vec<String>>, layers: Option<Vec<usize>>) -> Result<Selection> {
    Ok(Selection {
        layers,
        points: points.as_deref().map(trace_points).transpose()?,
    })
}

impl Model {
    /// A mode of the model's own modes, a profile, and faults.
    pub fn setup(&self, mode: &Named, profile: &Named, faults: &[String]) -> Result<Setup> {
        Ok(Setup {
            mode: find_mode(mode, Some(&self.kept))?,
            profile: find_profile(profile)?,
            faults: faults.iter().map(|f| f.parse()).collect::<Result<_>>()?,
        })
    }

    fn layers(&self, layers: Option<&[usize]>) -> Result<()> {
        let Some(layers) = layers else { return Ok(()) };
        let count = self.kept.subject(&[])?.model.config()?.n_layers;
        match layers.iter().find(|layer| **layer >= count) {
            Some(layer) => {
                let expected = format_args!("blocks below {count}").to_string();
                Err(SimError::value("layers", expected, layer))
            }
            None => Ok(()),
        }
    }
}

/// Runs sequences, one a row, and records what is selected.
fn run(
    simulator: &Simulator,
    setup: &Setup,
    tokens: &ndarray::Array2<u32>,
    selection: &Selection,
    digest: Option<String>,
) -> Result<(TraceFile, String)> {
    let done: Vec<(Recorder, SequenceScore)> = (0..tokens.nrows())
        .into_par_iter()
        .map(|row| {
            let ids = tokens.row(row).to_vec();
            let mut recorder = Recorder::new(selection.clone());
            let logits = simulator.with(|path| {
                let (logits, _) = path.prefill(&ids, LogitRows::All, &mut recorder)?;
                Ok::<_, SimError>(logits)
            })?;
            Ok((recorder, SequenceScore::new(&ids, &logits.to_real())))
        })
        .collect::<Result<_>>()?;
    let (recorders, scores): (Vec<_>, Vec<_>) = done.into_iter().unzip();
    let mut quantizers: BTreeMap<&str, Status> = BTreeMap::new();
    for (place, status) in recorders.iter().flat_map(|r| &r.counts) {
        *quantizers.entry(place.point.name()).or_default() += *status;
    }
    let likelihoods: Vec<_> = scores.iter().map(|s| &s.log_likelihood).collect();
    let more = serde_json::json!({ "log_likelihood": likelihoods, "quantizers": quantizers });
    let mut meta = Meta {
        mode: Some(setup.mode.name.to_string()),
        profile: Some(setup.profile.name.to_string()),
        profile_hash: Some(setup.profile.hash()),
        model: digest,
        ..Meta::default()
    };
    if !setup.faults.is_empty() {
        let faults = serde_json::json!(setup.faults);
        meta.other.insert("faults".into(), faults);
    }
    let mut trace = TraceFile::from_recorders(tokens.clone(), recorders)?;
    trace.meta = Some(meta);
    Ok((trace, more.to_string()))
}

#[pymethods]
impl Model {
    /// Opens a model by the arguments of the commands.
    #[new]
    #[pyo3(signature = (model = None, synthetic = None, float = None, scales = None, recipe_name = "quamba", tokenizer = None, modes_file = vec![]))]
    fn new(
        py: Python<'_>,
        model: Option<PathBuf>,
        synthetic: Option<String>,
        float: Option<PathBuf>,
        scales: Option<PathBuf>,
        recipe_name: &str,
        tokenizer: Option<PathBuf>,
        modes_file: Vec<PathBuf>,
    ) -> PyResult<Self> {
        let recipe = recipe(recipe_name).map_err(crate::errors::Error::new_err)?;
        let args = ModelArgs {
            model,
            synthetic,
            float,
            scales,
            recipe,
            tokenizer,
            modes_file,
            kept: None,
        };
        let kept = work::long(py, None, || Kept::open(args))?;
        Ok(Self {
            kept,
            digests: Default::default(),
        })
    }

    /// The path, or "sample model".
    #[getter]
    fn name(&self) -> PyResult<String> {
        Ok(self.kept.subject(&[]).map_err(raise)?.name)
    }

    /// The shape as JSON.
    #[getter]
    fn config(&self) -> PyResult<String> {
        let subject = self.kept.subject(&[]).map_err(raise)?;
        let config = subject.model.config().map_err(raise)?;
        Ok(serde_json::to_string(config).expect("a shape is plain data"))
    }

    /// The configuration that the model came with, as JSON.
    #[getter]
    fn source_config(&self) -> PyResult<String> {
        let subject = self.kept.subject(&[]).map_err(raise)?;
        Ok(subject.model.config().map_err(raise)?.json.to_string())
    }

    /// Token ids of texts.
    fn encode(&self, py: Python<'_>, texts: Vec<String>) -> PyResult<Vec<Vec<u32>>> {
        work::long(py, None, || encode(self.kept.tokenizer()?, &texts))
    }

    /// The text of token ids.
    fn decode_text(&self, py: Python<'_>, ids: Vec<u32>) -> PyResult<String> {
        work::long(py, None, || {
            let bad = |e: Box<dyn std::error::Error + Send + Sync>| {
                SimError::value("tokens", "ids of the tokenizer", e)
            };
            (self.kept.tokenizer()?.decode(&ids, false)).map_err(bad)
        })
    }

    /// Runs `[B, L]` token ids. Parts of the trace, and what else the run gave, as JSON.
    #[pyo3(signature = (tokens, mode, profile, points = None, layers = None, faults = vec![], progress = None))]
    fn run<'py>(
        &self,
        py: Python<'py>,
        tokens: PyReadonlyArray2<'py, u32>,
        mode: Named,
        profile: Named,
        points: Option<Vec<String>>,
        layers: Option<Vec<usize>>,
        faults: Vec<String>,
        progress: Option<Bound<'py, PyAny>>,
    ) -> PyResult<(Parts<'py>, String)> {
        let tokens = tokens.as_array().to_owned();
        let (trace, more) = work::long(py, progress.as_ref(), || {
            let setup = self.setup(&mode, &profile, &faults)?;
            let selection = selection(points, layers.clone())?;
            self.layers(layers.as_deref())?;
            let simulator = simulator(&self.kept, &setup)?;
            let vocabulary = simulator.with(|path| path.config().vocab_size);
            for row in tokens.outer_iter() {
                check_tokens(&row.to_vec(), vocabulary)?;
            }
            let model = simulator.model();
            let digest = &self.digests[usize::from(model.quantized.is_some())];
            let digest = digest.get_or_init(|| model_digest(model)).clone();
            run(&simulator, &setup, &tokens, &selection, digest)
        })?;
        Ok((parts(py, trace)?, more))
    }

    /// Runs a command on this model; see `call`.
    #[pyo3(signature = (arguments, progress = None))]
    fn call(
        &self,
        py: Python<'_>,
        arguments: Vec<String>,
        progress: Option<Bound<'_, PyAny>>,
    ) -> PyResult<(bool, String)> {
        let answer = work::long(py, progress.as_ref(), || {
            embed::call(&arguments, Some(&self.kept))
        })?;
        Ok((answer.equal, answer.printed))
    }

    /// A sequence before its first token.
    #[pyo3(signature = (mode, profile, faults = vec![]))]
    fn decoder(
        &self,
        py: Python<'_>,
        mode: Named,
        profile: Named,
        faults: Vec<String>,
    ) -> PyResult<Decoder> {
        let simulator = work::long(py, None, || {
            simulator(&self.kept, &self.setup(&mode, &profile, &faults)?)
        })?;
        Ok(Decoder::new(Arc::new(simulator)))
    }

    /// What scores continuations.
    #[pyo3(signature = (mode, profile, faults = vec![]))]
    fn scorer(
        &self,
        py: Python<'_>,
        mode: Named,
        profile: Named,
        faults: Vec<String>,
    ) -> PyResult<Scorer> {
        work::long(py, None, || {
            Scorer::new(&self.kept, &self.setup(&mode, &profile, &faults)?)
        })
    }

    /// Activation scales of the float model, as the JSON that the commands read.
    #[pyo3(signature = (sequences = None, file = None, samples = None, length = None, alpha = 0.9995, seed = None, progress = None))]
    fn calibrate(
        &self,
        py: Python<'_>,
        sequences: Option<Vec<Vec<u32>>>,
        file: Option<PathBuf>,
        samples: Option<usize>,
        length: Option<usize>,
        alpha: f32,
        seed: Option<u64>,
        progress: Option<Bound<'_, PyAny>>,
    ) -> PyResult<String> {
        work::long(py, progress.as_ref(), || {
            let subject = self.kept.subject(&[FLOAT])?;
            let float = (subject.model.float.as_ref())
                .ok_or_else(|| SimError::value("model", "a float model", "none"))?;
            let mut options = CalibrationOptions::default();
            options.set_alpha(alpha);
            options.samples = samples.unwrap_or(options.samples);
            options.length = length.unwrap_or(options.length);
            let sequences = match (sequences, file) {
                (Some(sequences), _) => sequences,
                (None, Some(file)) => {
                    calibration_sequences(&file, &options, || subject.tokenizer())?
                }
                (None, None) => {
                    let usual = OwnText::default();
                    let own = OwnText {
                        sequences: samples.unwrap_or(usual.sequences),
                        length: length.unwrap_or(usual.length),
                        seed: seed.unwrap_or(usual.seed),
                    };
                    (options.samples, options.length) = (own.sequences, own.length);
                    input::own_samples(float, &own)?
                }
            };
            let scales = input::calibrated(float, &sequences, &options)?;
            Ok(scales::to_json(&scales))
        })
    }
}
