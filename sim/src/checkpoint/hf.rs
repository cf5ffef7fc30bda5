//! Reads a Hugging Face Mamba directory: `config.json` with `model.safetensors`, or with shards and
//! `model.safetensors.index.json`. Source: datapath specification, section 2.
//!
//! Weights become binary16, nearest even: the reference runs its checkpoints in f16.

use super::config::{self, HfConfig};
use super::container::Container;
use super::input::{in_layer, read_small, shown};
use crate::error::{Result, SimError};
use crate::model::{Config, FloatLayer, FloatModel};
use crate::text;
use half::f16;
use ndarray::Array2;
use rayon::prelude::*;
use serde::Deserialize;
use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::path::{Path, PathBuf};

const CONFIG: &str = "config.json";
const WEIGHTS: &str = "model.safetensors";
const INDEX: &str = "model.safetensors.index.json";
/// Real configurations have 1 kB, real indices 100 kB.
const MAX_JSON: u64 = 16 << 20;
/// Names of the embedding: `transformers`, then the original `mamba_ssm`.
const EMBEDDING: [&str; 2] = ["backbone.embeddings.weight", "backbone.embedding.weight"];
const HEAD: &str = "lm_head.weight";
const NORM_F: &str = "backbone.norm_f.weight";

/// Reads the directory `dir`. Tied heads are copies of the embedding.
///
/// # Errors
///
/// One line with file, tensor, what was expected and what was found: files missing, empty or not
/// consistent; tensors missing, unexpected, of a wrong shape or type; values that are not finite in
/// binary16; a shard outside the directory; a configuration that is not Mamba-1.
pub fn read(dir: &Path) -> Result<FloatModel> {
    let config_path = dir.join(CONFIG);
    let hf = config::parse(&config_path, &read_small(&config_path, MAX_JSON)?)?;
    let index = dir.join(INDEX);
    // The order of `transformers`: a single file before shards.
    let weights = if dir.join(WEIGHTS).exists() {
        Weights::single(Container::open(&dir.join(WEIGHTS))?)
    } else if index.exists() {
        Weights::sharded(dir, &index)?
    } else {
        return Err(SimError::file(
            dir,
            "weights",
            format_args!("{WEIGHTS} or {INDEX}"),
            "neither (other formats must be converted first)",
        ));
    };
    model(hf, &weights)
}

/// Reads a model from bytes in memory; the two names stand for paths in errors.
///
/// # Errors
///
/// As [`read`].
pub fn read_bytes(
    (config_name, config_json): (&str, &[u8]),
    (weights_name, weights): (&str, &[u8]),
) -> Result<FloatModel> {
    let hf = config::parse(Path::new(config_name), config_json)?;
    let container = Container::from_bytes(Path::new(weights_name), weights)?;
    model(hf, &Weights::single(container))
}

/// The files of a model and which of them has which tensor.
struct Weights<'a> {
    files: Vec<Container<'a>>,
    /// From a tensor's name to its file; `None` when there is a single file.
    shards: Option<BTreeMap<String, usize>>,
    /// What a missing tensor is reported against.
    path: PathBuf,
    /// Whether the files are a base model's, saved by itself: no name has the prefix.
    bare: bool,
}

/// What a model with a head has before the names of its base model's tensors. A base model that was saved
/// by itself has no prefix.
const PREFIX: &str = "backbone.";

#[derive(Deserialize)]
struct Index {
    weight_map: BTreeMap<String, String>,
}

impl<'a> Weights<'a> {
    fn single(file: Container<'a>) -> Self {
        Self {
            path: file.path().to_path_buf(),
            bare: is_bare(file.names().iter()),
            files: vec![file],
            shards: None,
        }
    }

    fn sharded(dir: &Path, index: &Path) -> Result<Self> {
        let map = text::from_json::<Index>(&read_small(index, MAX_JSON)?)
            .map_err(|found| SimError::file(index, "file", "a weight_map", shown(&found)))?
            .weight_map;
        let mut files: Vec<Container<'a>> = Vec::new();
        let mut numbers: BTreeMap<&str, usize> = BTreeMap::new();
        let mut shards = BTreeMap::new();
        for (tensor, shard) in &map {
            // A file's own name is the whole of it: no separators, no `..`, no drive.
            let plain = Path::new(shard).file_name() == Some(OsStr::new(shard));
            if !plain || shard.contains(char::is_control) {
                return Err(SimError::file(
                    index,
                    shown(tensor),
                    "the name of a file in the same directory",
                    shown(shard),
                ));
            }
            let number = match numbers.get(shard.as_str()) {
                Some(number) => *number,
                None => {
                    files.push(Container::open(&dir.join(shard))?);
                    numbers.insert(shard, files.len() - 1);
                    files.len() - 1
                }
            };
            if !files[number].contains(tensor) {
                return Err(SimError::file(
                    files[number].path(),
                    shown(tensor),
                    "the tensor the index promises",
                    "no tensor of that name",
                ));
            }
            shards.insert(tensor.clone(), number);
        }
        Ok(Self {
            files,
            bare: is_bare(map.keys()),
            shards: Some(shards),
            path: index.to_path_buf(),
        })
    }

    /// A tensor's name in the files.
    fn name<'n>(&self, name: &'n str) -> &'n str {
        match name.strip_prefix(PREFIX) {
            Some(rest) if self.bare => rest,
            _ => name,
        }
    }

    fn file(&self, tensor: &str) -> Option<&Container<'a>> {
        let tensor = self.name(tensor);
        match &self.shards {
            None => self.files.first().filter(|f| f.contains(tensor)),
            Some(shards) => shards.get(tensor).map(|n| &self.files[*n]),
        }
    }

    fn tensor(&self, name: &str, shape: &[usize]) -> Result<super::container::Tensor<'_>> {
        match self.file(name) {
            Some(file) => file.tensor(self.name(name), shape),
            None => Err(SimError::file(
                &self.path,
                self.name(name),
                format_args!("a tensor of shape {shape:?}"),
                "no tensor of that name",
            )),
        }
    }

    fn vector(&self, name: &str, n: usize) -> Result<Vec<f16>> {
        self.tensor(name, &[n])?.to_f16()
    }

    fn matrix(&self, name: &str, shape: &[usize]) -> Result<Array2<f16>> {
        self.tensor(name, shape)?.to_f16_matrix()
    }

    /// Every tensor must be one that a model of this shape has. A bias nobody reads, or a thirteenth
    /// layer of a model of twelve, would silently change what is computed.
    fn refuse_others(&self, config: &Config, conv_bias: bool) -> Result<()> {
        let expected = format!(
            "only tensors of a Mamba-1 model of {} layers",
            config.n_layers
        );
        for file in &self.files {
            let known = |name: &str| match self.bare && !name.starts_with("lm_head.") {
                true => is_of(&format!("{PREFIX}{name}"), config, conv_bias),
                false => is_of(name, config, conv_bias),
            };
            file.refuse_others(known, &expected)?;
        }
        Ok(())
    }
}

/// Whether these are the names of a base model that was saved by itself.
fn is_bare<'n>(names: impl Iterator<Item = &'n String> + Clone) -> bool {
    let prefixed = names.clone().any(|name| name.starts_with(PREFIX));
    !prefixed && { names }.any(|name| name.starts_with("embedding"))
}

/// Whether a model of this shape has a tensor of that name. The name is taken apart: to make the names
/// of a thousand layers first would take milliseconds, whatever the file has.
fn is_of(name: &str, config: &Config, conv_bias: bool) -> bool {
    if EMBEDDING.contains(&name) || [HEAD, NORM_F].contains(&name) {
        return true;
    }
    let Some((layer, tensor)) = in_layer(name, "backbone.layers.") else {
        return false;
    };
    let known = LAYER_TENSORS.contains(&tensor) && (conv_bias || tensor != CONV_BIAS);
    known && layer < config.n_layers
}

const CONV_BIAS: &str = "mixer.conv1d.bias";
const LAYER_TENSORS: [&str; 10] = [
    "norm.weight",
    "mixer.in_proj.weight",
    "mixer.conv1d.weight",
    CONV_BIAS,
    "mixer.x_proj.weight",
    "mixer.dt_proj.weight",
    "mixer.dt_proj.bias",
    "mixer.A_log",
    "mixer.D",
    "mixer.out_proj.weight",
];

/// Whether a tensor's name is one of this format.
pub(crate) fn is_checkpoint_tensor(name: &str) -> bool {
    name.starts_with(PREFIX) || name.contains(".mixer.")
}

fn layer_tensor(layer: usize, name: &str) -> String {
    format!("backbone.layers.{layer}.{name}")
}

fn model(hf: HfConfig, weights: &Weights<'_>) -> Result<FloatModel> {
    let HfConfig {
        config,
        conv_bias,
        tied,
    } = hf;
    weights.refuse_others(&config, conv_bias)?;
    let shape = [config.vocab_size, config.d_model];
    let name = EMBEDDING
        .into_iter()
        .find(|name| weights.file(name).is_some())
        .unwrap_or(EMBEDDING[0]);
    let embedding = weights.matrix(name, &shape)?;
    let head = if tied {
        // Some writers store the tied head a second time.
        if let Some(file) = weights.file(HEAD)
            && weights.matrix(HEAD, &shape)? != embedding
        {
            return Err(SimError::file(
                file.path(),
                HEAD,
                "the embedding's values (tie_word_embeddings is true)",
                "other values",
            ));
        }
        embedding.clone()
    } else {
        weights.matrix(HEAD, &shape)?
    };
    // A layer that is missing altogether, before one line is written for each of a thousand.
    for i in 0..config.n_layers {
        let name = layer_tensor(i, LAYER_TENSORS[0]);
        if weights.file(&name).is_none() {
            weights.vector(&name, config.d_model)?;
        }
    }
    // All results are kept and then searched in order: the error does not depend on threads.
    let layers: Vec<Result<FloatLayer>> = (0..config.n_layers)
        .into_par_iter()
        .map(|i| layer(i, &config, conv_bias, weights))
        .collect();
    Ok(FloatModel {
        layers: layers.into_iter().collect::<Result<_>>()?,
        norm_f: weights.vector(NORM_F, config.d_model)?,
        embedding,
        head,
        rotated: false,
        config,
    })
}

fn layer(i: usize, c: &Config, conv_bias: bool, weights: &Weights<'_>) -> Result<FloatLayer> {
    let vector = |name: &str, n| weights.vector(&layer_tensor(i, name), n);
    let matrix = |name: &str, shape: &[usize]| weights.matrix(&layer_tensor(i, name), shape);
    let (m, e, n) = (c.d_model, c.d_inner, c.d_state);
    Ok(FloatLayer {
        norm: vector("norm.weight", m)?,
        in_proj: matrix("mixer.in_proj.weight", &[2 * e, m])?,
        conv_weight: matrix("mixer.conv1d.weight", &[e, 1, c.d_conv])?,
        conv_bias: if conv_bias {
            vector(CONV_BIAS, e)?
        } else {
            vec![f16::ZERO; e]
        },
        x_proj: matrix("mixer.x_proj.weight", &[c.x_proj_width(), e])?,
        dt_proj: matrix("mixer.dt_proj.weight", &[e, c.dt_rank])?,
        dt_bias: vector("mixer.dt_proj.bias", e)?,
        a_log: matrix("mixer.A_log", &[e, n])?,
        d: vector("mixer.D", e)?,
        out_proj: matrix("mixer.out_proj.weight", &[m, e])?,
    })
}
