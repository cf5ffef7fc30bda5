//! One way in for every kind of model a user can name.

use super::container::Container;
use super::input::read_small;
use super::weights::{MAX_JSON, Weights};
use super::{config, hf, quamba, quantized};
use crate::error::{Result, SimError};
use crate::model::{Checkpoint, Config, QuantizedModel};
use std::path::Path;

/// What a path turned out to be.
#[derive(Clone, Debug, PartialEq)]
pub enum Loaded {
    /// A folder of `transformers` or `mamba_ssm`: float weights as trained, neither folded nor quantized.
    Float(Checkpoint),
    /// A file in the quantized format, or a folder of Quamba's.
    Quantized(QuantizedModel),
}

impl Loaded {
    /// The shape of either kind.
    pub fn config(&self) -> &Config {
        match self {
            Loaded::Float(model) => model.config(),
            Loaded::Quantized(model) => &model.config,
        }
    }
}

/// Loads a model: a folder by what its keys say, a file by [`quantized::read`].
///
/// # Errors
///
/// Those of the readers, and a line that says what a model is when the path is none.
pub fn load(path: &Path) -> Result<Loaded> {
    load_with_notes(path).map(|(loaded, _)| loaded)
}

/// [`load`], and what a reader of the model should know: where its configuration says otherwise than its
/// weights, a line each.
///
/// # Errors
///
/// As [`load`].
pub fn load_with_notes(path: &Path) -> Result<(Loaded, Vec<String>)> {
    let metadata = std::fs::metadata(path).map_err(|e| SimError::io(path, e))?;
    if metadata.is_dir() {
        return load_folder(path);
    }
    let whole_folder = |found: &str| {
        let expected = "the directory of a checkpoint, which has its config.json";
        Err(SimError::file(path, "model", expected, found))
    };
    if path.extension().is_some_and(|e| e == "bin") {
        return whole_folder("its weight file alone");
    }
    let named = path
        .extension()
        .is_some_and(|e| e.eq_ignore_ascii_case("safetensors"));
    if !Container::is_one(path, named)? {
        return Err(SimError::file(
            path,
            "model",
            "a directory of transformers, mamba_ssm or Quamba, or a quantized .safetensors file",
            "another kind of file",
        ));
    }
    let file = Container::open(path)?;
    if !quantized::is_quantized(&file)
        && file
            .names()
            .iter()
            .any(|name| hf::is_checkpoint_tensor(name))
    {
        return whole_folder("its weight file alone");
    }
    let model = quantized::from_container(&file)?;
    Ok((Loaded::Quantized(model), Vec::new()))
}

fn load_folder(dir: &Path) -> Result<(Loaded, Vec<String>)> {
    let path = dir.join(hf::CONFIG);
    let json = read_small(&path, MAX_JSON)?;
    let weights = Weights::open(dir)?;
    let kind = quamba::kind(&weights);
    if kind.quantized().is_some() {
        let (model, notes) = quamba::read(dir, kind, &weights)?;
        return Ok((Loaded::Quantized(model), notes));
    }
    let checkpoint = hf::exact(config::parse(&path, &json)?, &weights)?;
    Ok((Loaded::Float(checkpoint), Vec::new()))
}
