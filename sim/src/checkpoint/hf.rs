//! Reads a float checkpoint: a folder with `config.json` of `transformers` or `mamba_ssm` and the weights in
//! `model.safetensors` or `pytorch_model.bin`, in one file or in shards with an index: `docs/models.md`.

use super::config::{self, HfConfig};
use super::container::Container;
use super::info::Entry;
use super::input::{in_layer, read_small};
use super::quamba;
use super::tensor::{Dtype, FileTensor};
use super::weights::{self, File, MAX_JSON, Weights};
use crate::error::{Result, SimError};
use crate::model::{Checkpoint, Config, FloatLayer, FloatModel};
use half::f16;
use ndarray::Array2;
use rayon::prelude::*;
use std::path::Path;

pub(super) const CONFIG: &str = "config.json";
/// Names of the embedding: `transformers`, then the original `mamba_ssm`.
const EMBEDDING: [&str; 2] = ["backbone.embeddings.weight", "backbone.embedding.weight"];
const HEAD: &str = "lm_head.weight";
const NORM_F: &str = "backbone.norm_f.weight";

/// Reads the folder `dir` as binary16, nearest even: the reference runs its checkpoints in f16. A_log and D
/// keep the precision of the file. Tied heads are copies of the embedding.
///
/// # Errors
///
/// One line with file, tensor, what was expected and what was found: files missing, empty or not
/// consistent; tensors missing, unexpected, of a wrong shape or type; values that are not finite in
/// binary16; a shard outside the directory; a configuration that is not Mamba-1; a model that is quantized
/// already.
pub fn read(dir: &Path) -> Result<FloatModel> {
    let (hf, weights) = open(dir)?;
    model(hf, &weights)
}

/// Reads the folder `dir` in the precision it has.
///
/// # Errors
///
/// As [`read`], where values need not fit binary16.
pub fn read_exact(dir: &Path) -> Result<Checkpoint> {
    let (hf, weights) = open(dir)?;
    exact(hf, &weights)
}

/// Weights that binary16 does not hold as their file has them.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Rounded {
    /// How many.
    pub weights: usize,
    /// Of how many.
    pub of: usize,
    /// The largest change of one.
    pub by: f32,
}

/// What is lost of the folder `dir` where it is read in binary16 ([`read`], [`Checkpoint::into_f16`]).
///
/// # Errors
///
/// As [`read_exact`], of the files alone.
pub fn rounded_in_f16(dir: &Path) -> Result<Rounded> {
    let weights = Weights::open(dir)?;
    let entries =
        (weights.files.iter()).flat_map(|file| file.entries().into_iter().map(move |e| (file, e)));
    let wide =
        entries.filter(|(_, e)| !stays_f32(&e.name) && ["F32", "BF16"].contains(&e.dtype.as_str()));
    let wide: Vec<_> = wide.collect();
    let of = |(file, entry): &(&File<'_>, Entry)| -> Result<Rounded> {
        let values = file.tensor(&entry.name, &entry.shape)?.to_f32()?;
        let mut seen = Rounded {
            of: values.len(),
            ..Rounded::default()
        };
        for v in values {
            let change = (f32::from(f16::from_f32(v)) - v).abs();
            seen.weights += usize::from(change > 0.0);
            seen.by = seen.by.max(change);
        }
        Ok(seen)
    };
    let seen: Vec<Rounded> = wide.par_iter().map(of).collect::<Result<_>>()?;
    Ok(seen.into_iter().fold(Rounded::default(), |a, b| Rounded {
        weights: a.weights + b.weights,
        of: a.of + b.of,
        by: a.by.max(b.by),
    }))
}

/// Whether a weight is held in f32 in any model.
fn stays_f32(name: &str) -> bool {
    name.ends_with("mixer.A_log") || name.ends_with("mixer.D")
}

pub(super) fn exact(hf: HfConfig, weights: &Weights<'_>) -> Result<Checkpoint> {
    let wide = |name: &String| {
        !stays_f32(name) && matches!(weights.dtype(name), Some(Dtype::F32 | Dtype::BF16))
    };
    let is_wide = weights
        .files
        .iter()
        .any(|file| file.names().iter().any(wide));
    Ok(match is_wide {
        true => Checkpoint::F32(model(hf, weights)?),
        false => Checkpoint::F16(model(hf, weights)?),
    })
}

fn open(dir: &Path) -> Result<(HfConfig, Weights<'static>)> {
    let config_path = dir.join(CONFIG);
    let hf = config::parse(&config_path, &read_small(&config_path, MAX_JSON)?)?;
    let weights = Weights::open(dir)?;
    if let Some(kind) = quamba::kind(&weights).quantized() {
        let found = format!("{kind} model, quantized already");
        return Err(SimError::file(dir, "weights", "a float checkpoint", found));
    }
    Ok((hf, weights))
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
    model(hf, &Weights::single(File::Safetensors(container)))
}

/// A type that weights are held in.
trait Real: Copy + PartialEq + Send + Sync {
    const ZERO: Self;
    fn of(tensor: &FileTensor<'_>) -> Result<Vec<Self>>;
}

impl Real for f16 {
    const ZERO: Self = f16::ZERO;
    fn of(tensor: &FileTensor<'_>) -> Result<Vec<Self>> {
        tensor.to_f16()
    }
}

impl Real for f32 {
    const ZERO: Self = 0.0;
    fn of(tensor: &FileTensor<'_>) -> Result<Vec<Self>> {
        tensor.to_f32()
    }
}

fn vector<W: Real>(weights: &Weights<'_>, name: &str, n: usize) -> Result<Vec<W>> {
    W::of(&weights.tensor(name, &[n])?)
}

fn matrix<W: Real>(weights: &Weights<'_>, name: &str, shape: &[usize]) -> Result<Array2<W>> {
    let tensor = weights.tensor(name, shape)?;
    Ok(tensor.matrix(W::of(&tensor)?))
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

/// Every tensor that a model has; a tied head need not be there.
pub(super) fn required(hf: &HfConfig) -> Vec<String> {
    let mut names = vec![EMBEDDING[0].to_owned(), NORM_F.to_owned()];
    if !hf.tied {
        names.push(HEAD.to_owned());
    }
    let tensors = LAYER_TENSORS.iter();
    let tensors = tensors.filter(|name| hf.conv_bias || **name != CONV_BIAS);
    for name in tensors {
        names.extend((0..hf.config.n_layers).map(|i| layer_tensor(i, name)));
    }
    names
}

/// Whether a tensor's name is one of this format.
pub(crate) fn is_checkpoint_tensor(name: &str) -> bool {
    name.starts_with(weights::PREFIX) || name.contains(".mixer.")
}

fn layer_tensor(layer: usize, name: &str) -> String {
    format!("backbone.layers.{layer}.{name}")
}

fn model<W: Real>(hf: HfConfig, weights: &Weights<'_>) -> Result<FloatModel<W>> {
    let HfConfig {
        config,
        conv_bias,
        tied,
    } = hf;
    let expected = format!(
        "only tensors of a Mamba-1 model of {} layers",
        config.n_layers
    );
    weights.refuse_others(|name| is_of(name, &config, conv_bias), &expected)?;
    let shape = [config.vocab_size, config.d_model];
    let name = EMBEDDING
        .into_iter()
        .find(|name| weights.file(name).is_some())
        .unwrap_or(EMBEDDING[0]);
    let embedding: Array2<W> = matrix(weights, name, &shape)?;
    let head = if tied {
        // Some writers store the tied head a second time.
        if let Some(file) = weights.file(HEAD)
            && matrix::<W>(weights, HEAD, &shape)? != embedding
        {
            return Err(SimError::file(
                file.path(),
                HEAD,
                "the embedding's values (tie_word_embeddings, or tie_embeddings, is true)",
                "other values",
            ));
        }
        embedding.clone()
    } else {
        matrix(weights, HEAD, &shape)?
    };
    // A layer that is missing altogether, before one line is written for each of a thousand.
    for i in 0..config.n_layers {
        let name = layer_tensor(i, LAYER_TENSORS[0]);
        if weights.file(&name).is_none() {
            vector::<W>(weights, &name, config.d_model)?;
        }
    }
    // All results are kept and then searched in order: the error does not depend on threads.
    let layers: Vec<Result<FloatLayer<W>>> = (0..config.n_layers)
        .into_par_iter()
        .map(|i| layer(i, &config, conv_bias, weights))
        .collect();
    Ok(FloatModel {
        layers: layers.into_iter().collect::<Result<_>>()?,
        norm_f: vector(weights, NORM_F, config.d_model)?,
        embedding,
        head,
        rotated: false,
        config,
    })
}

fn layer<W: Real>(
    i: usize,
    c: &Config,
    conv_bias: bool,
    weights: &Weights<'_>,
) -> Result<FloatLayer<W>> {
    let vector_of = |name: &str, n| vector(weights, &layer_tensor(i, name), n);
    let matrix_of = |name: &str, shape: &[usize]| matrix(weights, &layer_tensor(i, name), shape);
    let (m, e, n) = (c.d_model, c.d_inner, c.d_state);
    Ok(FloatLayer {
        norm: vector_of("norm.weight", m)?,
        in_proj: matrix_of("mixer.in_proj.weight", &[2 * e, m])?,
        conv_weight: matrix_of("mixer.conv1d.weight", &[e, 1, c.d_conv])?,
        conv_bias: if conv_bias {
            vector_of(CONV_BIAS, e)?
        } else {
            vec![W::ZERO; e]
        },
        x_proj: matrix_of("mixer.x_proj.weight", &[c.x_proj_width(), e])?,
        dt_proj: matrix_of("mixer.dt_proj.weight", &[e, c.dt_rank])?,
        dt_bias: vector_of("mixer.dt_proj.bias", e)?,
        a_log: matrix(weights, &layer_tensor(i, "mixer.A_log"), &[e, n])?,
        d: vector(weights, &layer_tensor(i, "mixer.D"), e)?,
        out_proj: matrix_of("mixer.out_proj.weight", &[m, e])?,
    })
}
