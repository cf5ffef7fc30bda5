//! The sample model that travels inside the program: a trained Mamba-1 language model of 4.6
//! million parameters, its tokenizer, its calibrated activation scales, and something to read to
//! it. Origin: `sim/sample/PROVENANCE.md`.

use crate::checkpoint::fold::fold;
use crate::checkpoint::quantize::{Ends, quantize};
use crate::checkpoint::recipe::Recipe;
use crate::checkpoint::{hf, scales};
use crate::error::{Result, SimError};
use crate::model::{ActivationScales, Checkpoint, FloatModel, Model};
use serde::Deserialize;
use std::fmt::Display;
use std::sync::{Arc, Mutex, PoisonError};

static CONFIG: &[u8] = include_bytes!("../sample/config.json");
static WEIGHTS: &[u8] = include_bytes!("../sample/model.safetensors");
static TOKENIZER: &[u8] = include_bytes!("../sample/tokenizer.json");
static SCALES: &[u8] = include_bytes!("../sample/scales.json");
static TEXTS: &str = include_str!("../sample/text.jsonl");
static PROMPTS: &str = include_str!("../sample/prompts.jsonl");

/// The checkpoint as it was trained, not folded.
///
/// # Panics
///
/// Never: the bytes are part of the program and tests read them.
pub fn float_checkpoint() -> FloatModel {
    let model: Result<FloatModel> = hf::read_bytes(
        ("sample/config.json", CONFIG),
        ("sample/model.safetensors", WEIGHTS),
    );
    model.expect("the embedded model is read by tests")
}

/// The calibrated activation scales, one set a layer.
///
/// # Panics
///
/// Never, as [`float_checkpoint`].
pub fn activation_scales() -> Vec<ActivationScales> {
    scales::from_json(SCALES).expect("the embedded scales are read by tests")
}

/// The model ready to run: folded float and quantized. Made on the first call, shared afterwards.
///
/// # Panics
///
/// Where [`try_model`] fails.
pub fn model() -> Model {
    try_model().expect("threads can be started")
}

/// [`model`], for a program that has to say what went wrong.
///
/// # Errors
///
/// The system starts no threads to make it with.
pub fn try_model() -> Result<Model> {
    static MODEL: Mutex<Option<Model>> = Mutex::new(None);
    let mut known = MODEL.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some(model) = &*known {
        return Ok(model.clone());
    }
    let no_threads =
        |e: &dyn Display| SimError::value("sample model", "threads to make it with", e);
    // On threads of its own: those of the pool may all be waiting here for the model, which would wait
    // for them in turn.
    let pool = rayon::ThreadPoolBuilder::new().build();
    let pool = pool.map_err(|e| no_threads(&e))?;
    let apart = std::thread::Builder::new().spawn(move || pool.install(make));
    let made = apart.map_err(|e| no_threads(&e))?.join();
    let made = made.expect("tests make the embedded model")?;
    Ok(known.insert(made).clone())
}

fn make() -> Result<Model> {
    // The recipe of the golden traces, which were recorded with this model.
    let recipe = &Recipe::GOLDEN;
    let float = fold(float_checkpoint(), recipe)?;
    let quantized = quantize(&float, &activation_scales(), recipe, Ends::F16)?;
    Ok(Model {
        quantized: Some(Arc::new(quantized)),
        float: Some(Arc::new(float)),
        original: Some(Arc::new(Checkpoint::F16(float_checkpoint()))),
    })
}

/// The bytes the sample model is made from, for hashing.
pub fn files() -> [&'static [u8]; 4] {
    [CONFIG, WEIGHTS, TOKENIZER, SCALES]
}

/// The tokenizer, a Hugging Face `tokenizer.json`.
pub fn tokenizer_json() -> &'static [u8] {
    TOKENIZER
}

/// Four passages in the manner of the novels the model was trained on, each at least 512 tokens.
///
/// # Panics
///
/// Never, as [`float_checkpoint`].
pub fn texts() -> Vec<String> {
    lines(TEXTS)
}

/// Openings for the model to continue.
///
/// # Panics
///
/// Never, as [`float_checkpoint`].
pub fn prompts() -> Vec<String> {
    lines(PROMPTS)
}

fn lines(jsonl: &str) -> Vec<String> {
    #[derive(Deserialize)]
    struct Line {
        text: String,
    }
    let text = |line| {
        serde_json::from_str::<Line>(line)
            .expect("tests read every line")
            .text
    };
    jsonl.lines().map(text).collect()
}
