//! What a path holds, without running it: for people who got a file and want to know.

use super::input::read_small;
use super::load::{Loaded, load_with_notes};
use super::quamba::{self, Kind};
use super::weights::{File, MAX_JSON, Weights};
use super::{config, hf};
use crate::error::{Result, SimError};
use crate::model::{ActivationScales, Config};
use serde::Serialize;
use std::collections::BTreeSet;
use std::path::Path;

/// A key of a file.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Entry {
    /// The key.
    pub name: String,
    /// Element type as safetensors names it (`F16`), or what else the key holds (`a number`).
    pub dtype: String,
    /// Lengths of the axes; empty for a number.
    pub shape: Vec<usize>,
    /// Elements from one to the next along each axis, unless they follow each other.
    pub strides: Option<Vec<usize>>,
    /// The number, if it is one.
    pub value: Option<f64>,
}

/// What a path holds.
#[derive(Clone, Debug, Serialize)]
pub struct Info {
    /// In words: `W8A8 model (Quamba)`.
    pub kind: &'static str,
    /// The shape, of a model's folder whose configuration can be used.
    pub config: Option<Config>,
    /// Every key of every file, sorted.
    pub entries: Vec<Entry>,
    /// Keys that a model of this kind and shape has and the files have not.
    pub missing: Vec<String>,
    /// Where the configuration says otherwise than the weights.
    pub notes: Vec<String>,
    /// Why the model cannot be used, in one line; `None` if it can, or if it is no model.
    pub refusal: Option<String>,
    /// Activation scales, one set a layer, of a quantized model.
    pub scales: Vec<ActivationScales>,
}

/// Looks at a folder of a model, a weight file alone, or a dump.
///
/// # Errors
///
/// Files that cannot be opened, or whose tensors cannot be listed. A model that cannot be used is no
/// error but [`Info::refusal`].
pub fn info(path: &Path) -> Result<Info> {
    let metadata = std::fs::metadata(path).map_err(|e| SimError::io(path, e))?;
    let weights = match metadata.is_dir() {
        true => Weights::open(path)?,
        false => Weights::single(File::open(path)?),
    };
    let mut entries: Vec<Entry> = weights.files.iter().flat_map(File::entries).collect();
    entries.sort_by(|a, b| a.name.cmp(&b.name));
    let kind = quamba::kind(&weights);
    let mut info = Info {
        kind: in_words(kind, &weights),
        config: None,
        entries,
        missing: Vec::new(),
        notes: Vec::new(),
        refusal: None,
        scales: Vec::new(),
    };
    if !metadata.is_dir() && info.kind != QUANTIZED {
        return Ok(info);
    }
    match load_with_notes(path) {
        Ok((loaded, notes)) => {
            info.notes = notes;
            info.config = Some(loaded.config().clone());
            if let Loaded::Quantized(model) = loaded {
                info.scales = model.layers.iter().map(|layer| layer.scales).collect();
            }
        }
        Err(refusal) => {
            info.refusal = Some(refusal.to_string());
            let config_path = path.join(hf::CONFIG);
            let parsed = read_small(&config_path, MAX_JSON)
                .and_then(|json| config::parse(&config_path, &json));
            if let Ok(parsed) = parsed {
                let required = match kind {
                    Kind::Float => hf::required(&parsed),
                    Kind::W8A8 | Kind::W4A8 => quamba::required(kind, &parsed.config),
                    _ => Vec::new(),
                };
                let there: BTreeSet<&str> = info.entries.iter().map(|e| e.name.as_str()).collect();
                let missing = required
                    .into_iter()
                    .filter(|name| !there.contains(name.as_str()));
                info.missing = missing.collect();
                info.config = Some(parsed.config);
            }
        }
    }
    Ok(info)
}

const QUANTIZED: &str = "quantized model";

fn in_words(kind: Kind, weights: &Weights<'_>) -> &'static str {
    let has = |name: &str| weights.file(name).is_some();
    match kind {
        Kind::W8A8 => "W8A8 model (Quamba)",
        Kind::W4A8 => "W4A8 model (Quamba)",
        Kind::W4A16 => "W4A16 model (Quamba)",
        Kind::Mamba2 => "Mamba-2 model",
        Kind::Float if has("layers.0.in_proj.weight_scale") => QUANTIZED,
        Kind::Float if has("backbone.norm_f.weight") => "float checkpoint of Mamba-1",
        Kind::Float => "tensors of no known model",
    }
}
