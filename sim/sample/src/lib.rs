//! The sample model of scalescope as bytes: a trained Mamba-1 language model of 4.6 million
//! parameters, what goes with it, and something to read to it. `PROVENANCE.md` says where it comes
//! from. `scalescope_sim::sample` reads it.

/// `config.json` of the checkpoint, as Hugging Face writes it.
pub static CONFIG: &[u8] = include_bytes!("../config.json");
/// The weights, binary16, in the safetensors format.
pub static WEIGHTS: &[u8] = include_bytes!("../model.safetensors");
/// A Hugging Face `tokenizer.json`.
pub static TOKENIZER: &[u8] = include_bytes!("../tokenizer.json");
/// The calibrated activation scales, one set a layer.
pub static SCALES: &[u8] = include_bytes!("../scales.json");
/// Four passages in the manner of the novels it was trained on, lines of `{"text": …}`.
pub static TEXTS: &str = include_str!("../text.jsonl");
/// Openings for it to continue, likewise.
pub static PROMPTS: &str = include_str!("../prompts.jsonl");
