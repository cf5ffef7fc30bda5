//! One way in for every kind of model a user can name.

use super::container::Container;
use super::{hf, quantized};
use crate::error::{Result, SimError};
use crate::model::{Config, FloatModel, QuantizedModel};
use std::path::Path;

/// What a path turned out to be.
#[derive(Clone, Debug, PartialEq)]
pub enum Loaded {
    /// A Hugging Face directory: float weights as trained, neither folded nor quantized.
    Float(FloatModel),
    /// A file in the quantized format.
    Quantized(QuantizedModel),
}

impl Loaded {
    /// The shape of either kind.
    pub fn config(&self) -> &Config {
        match self {
            Loaded::Float(model) => &model.config,
            Loaded::Quantized(model) => &model.config,
        }
    }
}

/// Loads a model: a directory is read by [`hf::read`], a file by [`quantized::read`].
///
/// # Errors
///
/// Those of the two, and a line that says what a model is when the path is neither.
pub fn load(path: &Path) -> Result<Loaded> {
    let metadata = std::fs::metadata(path).map_err(|e| SimError::io(path, e))?;
    if metadata.is_dir() {
        return hf::read(path).map(Loaded::Float);
    }
    let named = path
        .extension()
        .is_some_and(|e| e.eq_ignore_ascii_case("safetensors"));
    if !Container::is_one(path, named)? {
        return Err(SimError::file(
            path,
            "model",
            "a Hugging Face directory or a quantized .safetensors file",
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
        return Err(SimError::file(
            path,
            "model",
            "the directory of a Hugging Face checkpoint, which has its config.json",
            "its weight file alone",
        ));
    }
    quantized::from_container(&file).map(Loaded::Quantized)
}
