//! Reads a model that Quamba quantized: `config.json` of `mamba_ssm` and `pytorch_model.bin`. What a folder
//! holds is decided by its keys; the configuration gives the sizes.
//!
//! Layer i, `backbone.layers.{i}.`, E = d_inner:
//!
//! | key | what it holds |
//! |---|---|
//! | `norm.weight`, `norm.output_scale` | f16 `[M]`; the scale in_proj_input |
//! | `mixer.{in,x,dt,out}_proj.weight` | INT8 `[in, out]`, out filled up to a multiple of 16 |
//! | `….b`, `….a`, `….alpha` | weight scale; input by output scale; their product |
//! | `mixer.conv1d.{weight,bias}` and `_scale` | INT8 `[E, K]`, `[E]` |
//! | `mixer.conv1d.{input_scale,output_scale}` | in_proj_output, x_proj_input |
//! | `mixer.selective_scan.{A_log,D,dt_bias}` | INT8; scales `A_scale`, `D_scale`, `dt_bias_scale` |
//! | `mixer.selective_scan.{u,z,B,C,dt,ssm_state}_scale` | x_proj_input, in_proj_output, twice x_proj_output, dt_proj_output, ssm_state |
//! | `mixer.had.x_H_scale` | out_proj_input |
//!
//! In a W4A8 model in_proj, x_proj and out_proj, and a quantized head, are as `int4` says.
//!
//! | key | f16 ends | quantized ends |
//! |---|---|---|
//! | `backbone.embedding.weight` | f16 `[V, M]` | INT8 `[V, M]`, or INT32 `[V, M/8]` with 8 codes a word; `backbone.embedding.scales` f16 `[V]` |
//! | `backbone.norm_f.weight` | f16 `[M]` | and `backbone.norm_f.output_scale` |
//! | `lm_head.weight` | f16 `[V, M]` | INT8 `[M, V]` with `a`, `b`, `alpha`, V filled up to a multiple of 16 |

mod int4;
mod write;

use super::config;
use super::hf::CONFIG;
use super::input::{in_layer, read_small, shown};
use super::tensor::Dtype;
use super::torch::{Found, TorchFile};
use super::weights::{File, MAX_JSON, Weights};
use crate::arith::int4::GROUP;
use crate::error::{Result, SimError};
use crate::model::ScaleKey;
use crate::model::{
    ActivationScales, Config, Embedding, Head, QRows, QuantizedLayer, QuantizedModel,
};
use crate::quant::{QTensor, QVector, QWeight, Scale};
use half::f16;
use ndarray::Array2;
use rayon::prelude::*;
use serde_json::Value;
use std::path::Path;

pub use write::write;

/// The kernels want outputs in multiples of this; what is filled up is zero.
pub(super) const OUTPUTS: usize = 16;
/// Eight codes of a word of a 4-bit embedding: nibble p is the code of element `NIBBLES[p]`.
const NIBBLES: [usize; 8] = [0, 2, 4, 6, 1, 3, 5, 7];
/// How far a stored product of scales may lie from the product of the stored scales.
const NEAR: f32 = 1e-5;

/// What the keys of a folder say it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// A float checkpoint of Mamba-1.
    Float,
    /// INT8 weights and activations.
    W8A8,
    /// 4-bit weights, INT8 activations.
    W4A8,
    /// 4-bit weights, binary16 activations.
    W4A16,
    /// A model of Mamba-2.
    Mamba2,
}

impl Kind {
    /// What to call it, unless it is a float checkpoint.
    pub fn quantized(self) -> Option<&'static str> {
        match self {
            Kind::Float => None,
            Kind::W8A8 => Some("a W8A8"),
            Kind::W4A8 => Some("a W4A8"),
            Kind::W4A16 => Some("a W4A16"),
            Kind::Mamba2 => Some("a Mamba-2"),
        }
    }
}

/// Decides by the keys alone.
pub(super) fn kind(weights: &Weights<'_>) -> Kind {
    let names: Vec<String> = weights.files.iter().flat_map(File::names).collect();
    let has = |part: &str| names.iter().any(|name| name.contains(part));
    if has(".mixer.in_proj.") && !has(".mixer.x_proj.") && !has(".mixer.dt_proj.") {
        Kind::Mamba2
    } else if has(".mixer.in_proj.s_channel") {
        Kind::W4A8
    } else if has(".mixer.in_proj.alpha") {
        Kind::W8A8
    } else if has(".mixer.in_proj.scale") {
        Kind::W4A16
    } else {
        Kind::Float
    }
}

/// Reads a folder whose keys are those of a quantized model. Gives also what the configuration says
/// otherwise than the keys, a line each.
///
/// # Errors
///
/// One line with file, key, expected and found: a kind that is not simulated; keys missing, unexpected,
/// of a wrong shape or type; padding that is not zero; scales that are not positive, finite and normal,
/// or that disagree where two keys hold one scale.
pub(super) fn read(
    dir: &Path,
    kind: Kind,
    weights: &Weights<'_>,
) -> Result<(QuantizedModel, Vec<String>)> {
    let path = dir.join(CONFIG);
    let parsed = config::parse(&path, &read_small(&path, MAX_JSON)?)?;
    let refuse = |found: &str| {
        let expected = "a float, W8A8 or W4A8 model of Mamba-1";
        Err(SimError::file(dir, "keys", expected, found))
    };
    let file = match (kind, &weights.files[..]) {
        (Kind::W4A16, _) => {
            return refuse(
                "W4A16: 4-bit weights with binary16 activations, which is not simulated",
            );
        }
        (Kind::Mamba2, _) => return refuse("a Mamba-2 model, which is not simulated"),
        (_, [File::Torch(file)]) => file,
        _ => return refuse("quantized weights outside one pytorch_model.bin"),
    };
    let config = parsed.config;
    let name = kind.quantized().expect("not a float checkpoint");
    let expected = format!("only keys of {name} model of {} layers", config.n_layers);
    weights.refuse_others(|name| is_of(name, kind, &config), &expected)?;
    // Collected before it is searched, so that the error does not depend on threads.
    let layers: Vec<Result<QuantizedLayer>> = (0..config.n_layers)
        .into_par_iter()
        .map(|i| layer(file, kind, i, &config))
        .collect();
    let model = QuantizedModel {
        float_digest: None,
        embedding: embedding(file, &config)?,
        norm_f: file.tensor(NORM_F, &[config.d_model])?.exact_f16()?,
        head: head(file, kind, &config)?,
        layers: layers.into_iter().collect::<Result<_>>()?,
        config,
    };
    let notes = contradictions(kind, &model);
    Ok((model, notes))
}

const EMBEDDING: &str = "backbone.embedding.weight";
const EMBEDDING_SCALES: &str = "backbone.embedding.scales";
const NORM_F: &str = "backbone.norm_f.weight";
const NORM_F_SCALE: &str = "backbone.norm_f.output_scale";
const HEAD: &str = "lm_head";
/// Keys of an INT8 linear.
const LINEAR: [&str; 4] = ["weight", "a", "b", "alpha"];
const LINEARS: [&str; 4] = ["in_proj", "x_proj", "dt_proj", "out_proj"];
/// Keys of a linear.
fn linear_keys(kind: Kind, name: &str) -> &'static [&'static str] {
    match (kind, name) {
        (Kind::W4A8, "in_proj" | "x_proj" | "out_proj" | HEAD) => &int4::INT4,
        _ => &LINEAR,
    }
}

/// Inputs of a linear of a block.
fn inputs(config: &Config, linear: &str) -> usize {
    match linear {
        "in_proj" => config.d_model,
        "dt_proj" => config.dt_rank,
        _ => config.d_inner,
    }
}

const CONV: [&str; 6] = [
    "weight",
    "bias",
    "weight_scale",
    "bias_scale",
    "input_scale",
    "output_scale",
];
const SCAN: [&str; 12] = [
    "A_log",
    "D",
    "dt_bias",
    "A_scale",
    "D_scale",
    "dt_bias_scale",
    "u_scale",
    "z_scale",
    "B_scale",
    "C_scale",
    "dt_scale",
    "ssm_state_scale",
];

/// Whether a model of this shape has a key.
fn is_of(name: &str, kind: Kind, config: &Config) -> bool {
    if [EMBEDDING, EMBEDDING_SCALES, NORM_F, NORM_F_SCALE].contains(&name) {
        return true;
    }
    if let Some(part) = name.strip_prefix("lm_head.") {
        return linear_keys(kind, HEAD).contains(&part);
    }
    let Some((layer, key)) = in_layer(name, "backbone.layers.") else {
        return false;
    };
    let mixer = key
        .strip_prefix("mixer.")
        .and_then(|key| key.split_once('.'));
    let known = match mixer {
        None => ["norm.weight", "norm.output_scale"].contains(&key),
        Some(("conv1d", part)) => CONV.contains(&part),
        Some(("selective_scan", part)) => SCAN.contains(&part),
        Some(("had", part)) => part == "x_H_scale",
        Some((linear, part)) => {
            LINEARS.contains(&linear) && linear_keys(kind, linear).contains(&part)
        }
    };
    known && layer < config.n_layers
}

/// Every key that a model has, whatever its ends.
pub(super) fn required(kind: Kind, config: &Config) -> Vec<String> {
    let mut keys: Vec<String> = vec!["norm.weight".into(), "norm.output_scale".into()];
    let parts = |of: &str, parts: &[&str]| -> Vec<String> {
        parts
            .iter()
            .map(|part| format!("mixer.{of}.{part}"))
            .collect()
    };
    for linear in LINEARS {
        let mut of = parts(linear, linear_keys(kind, linear));
        // What kernels scribble on, and scales that short rows do not have.
        let short = inputs(config, linear) <= GROUP;
        of.retain(|key| !(key.ends_with(".workspace") || short && key.ends_with(".s_group")));
        keys.extend(of);
    }
    keys.extend(parts("conv1d", &CONV));
    keys.extend(parts("selective_scan", &SCAN));
    keys.push("mixer.had.x_H_scale".into());
    let mut names = vec![EMBEDDING.to_owned(), NORM_F.to_owned()];
    names.push(format!("{HEAD}.weight"));
    for key in keys {
        names.extend((0..config.n_layers).map(|i| format!("backbone.layers.{i}.{key}")));
    }
    names
}

/// The scale of a key.
fn scale(file: &TorchFile<'_>, name: &str) -> Result<Scale> {
    let value = file.number(name)?;
    Scale::new(value).map_err(|_| {
        let found = format_args!("{value:e}");
        SimError::file(file.path(), name, "a positive, finite, normal f32", found)
    })
}

fn layer(file: &TorchFile<'_>, kind: Kind, i: usize, c: &Config) -> Result<QuantizedLayer> {
    let (m, e, n) = (c.d_model, c.d_inner, c.d_state);
    let name = |key: &str| format!("backbone.layers.{i}.{key}");
    let codes =
        |key: &str, shape: &[usize]| -> Result<Vec<i8>> { file.tensor(&name(key), shape)?.codes() };
    let scaled = |key: &str| scale(file, &name(key));
    let same = |key: &str, other: &str| -> Result<Scale> {
        let (value, second) = (scaled(key)?, scaled(other)?);
        match value == second {
            true => Ok(value),
            false => {
                let expected = format!("{value:?}, as {}", name(key));
                let found = format_args!("{second:?}");
                Err(SimError::file(file.path(), name(other), expected, found))
            }
        }
    };
    let matrix = |key: &str, shape: [usize; 2], by: &str| -> Result<QTensor> {
        let codes = Array2::from_shape_vec(shape, codes(key, &shape)?);
        Ok(QTensor {
            codes: codes.expect("the shape was checked"),
            scale: scaled(by)?,
        })
    };
    let vector = |key: &str, by: &str| -> Result<QVector> {
        Ok(QVector {
            codes: codes(key, &[e])?,
            scale: scaled(by)?,
        })
    };
    let scan = |key: &str| format!("mixer.selective_scan.{key}");
    let scales = ActivationScales::from_fn(|key| match key {
        ScaleKey::InProjInput => scaled("norm.output_scale"),
        ScaleKey::InProjOutput => same("mixer.conv1d.input_scale", &scan("z_scale")),
        // The second scale is no part of these folders, and is not asked for.
        ScaleKey::XProjInput | ScaleKey::XProjInputMax => {
            same("mixer.conv1d.output_scale", &scan("u_scale"))
        }
        ScaleKey::XProjOutput => same(&scan("B_scale"), &scan("C_scale")),
        ScaleKey::DtProjOutput => scaled(&scan("dt_scale")),
        ScaleKey::SsmState => scaled(&scan("ssm_state_scale")),
        ScaleKey::OutProjInput => scaled("mixer.had.x_H_scale"),
    })?;
    let weight = |key: &str, dim: [usize; 2], s_in: Scale, s_out: Option<Scale>| {
        weight(file, kind, &name(key), dim, s_in, s_out)
    };
    let s = scales;
    Ok(QuantizedLayer {
        norm: file.tensor(&name("norm.weight"), &[m])?.exact_f16()?,
        in_proj: weight(
            "mixer.in_proj",
            [2 * e, m],
            s.in_proj_input,
            Some(s.in_proj_output),
        )?,
        conv_weight: matrix(
            "mixer.conv1d.weight",
            [e, c.d_conv],
            "mixer.conv1d.weight_scale",
        )?,
        conv_bias: vector("mixer.conv1d.bias", "mixer.conv1d.bias_scale")?,
        x_proj: {
            let dim = [c.x_proj_width(), e];
            weight("mixer.x_proj", dim, s.x_proj_input, Some(s.x_proj_output))?
        },
        dt_proj: {
            let dim = [e, c.dt_rank];
            linear(
                file,
                &name("mixer.dt_proj"),
                dim,
                s.x_proj_output,
                Some(s.dt_proj_output),
            )?
        },
        dt_bias: vector(&scan("dt_bias"), &scan("dt_bias_scale"))?,
        a_log: matrix(&scan("A_log"), [e, n], &scan("A_scale"))?,
        d: vector(&scan("D"), &scan("D_scale"))?,
        out_proj: weight("mixer.out_proj", [m, e], s.out_proj_input, None)?,
        scales,
    })
}

/// A linear of a model of that kind.
fn weight(
    file: &TorchFile<'_>,
    kind: Kind,
    name: &str,
    dim: [usize; 2],
    s_in: Scale,
    s_out: Option<Scale>,
) -> Result<QWeight> {
    Ok(match kind {
        Kind::W4A8 => QWeight::Int4(int4::read(file, name, dim, s_in, s_out)?),
        _ => QWeight::Int8(linear(file, name, dim, s_in, s_out)?),
    })
}

/// An INT8 linear `[out, in]` with INT8 output at `s_out`, or binary16.
fn linear(
    file: &TorchFile<'_>,
    name: &str,
    [out, inputs]: [usize; 2],
    s_in: Scale,
    s_out: Option<Scale>,
) -> Result<QTensor> {
    let key = format!("{name}.weight");
    let padded = out.next_multiple_of(OUTPUTS);
    let weight = file.tensor(&key, &[inputs, padded])?.transposed();
    let mut codes = weight.codes()?;
    if codes[out * inputs..].iter().any(|code| *code != 0) {
        let expected = format!("zeros in the columns after {out}");
        return Err(SimError::file(file.path(), key, expected, "other codes"));
    }
    codes.truncate(out * inputs);
    let scale = scale(file, &format!("{name}.b"))?;
    // What the kernels are handed beside the weight follows from scales that are stored elsewhere.
    let a = match s_out {
        Some(s_out) => s_in.ratio(s_out).get(),
        None => s_in.get(),
    };
    for (part, value) in [("a", a), ("alpha", a * scale.get())] {
        let key = format!("{name}.{part}");
        let found = file.number(&key)?;
        let apart = (found - value).abs();
        if apart.is_nan() || apart > NEAR * value {
            let expected = format!("{value:e}, as the scales of its input, output and weight give");
            let found = format_args!("{found:e}");
            return Err(SimError::file(file.path(), key, expected, found));
        }
    }
    Ok(QTensor {
        codes: Array2::from_shape_vec((out, inputs), codes).expect("as many codes"),
        scale,
    })
}

fn dtype(file: &TorchFile<'_>, name: &str) -> Option<Dtype> {
    match file.get(name) {
        Some(Found::Tensor(view)) => Some(view.dtype()),
        _ => None,
    }
}

fn embedding(file: &TorchFile<'_>, config: &Config) -> Result<Embedding> {
    let (v, m) = (config.vocab_size, config.d_model);
    let scales = || -> Result<Vec<f16>> { file.tensor(EMBEDDING_SCALES, &[v])?.exact_f16() };
    let rows = |codes: Vec<i8>, bits| -> Result<Embedding> {
        Ok(Embedding::Rows(QRows {
            codes: Array2::from_shape_vec((v, m), codes).expect("as many codes"),
            scales: scales()?,
            bits,
        }))
    };
    match dtype(file, EMBEDDING) {
        Some(Dtype::I8) => rows(file.tensor(EMBEDDING, &[v, m])?.codes()?, 8),
        Some(Dtype::I32) => {
            let words = file.tensor(EMBEDDING, &[v, m / 8])?.integers()?;
            rows(unpacked(&words), 4)
        }
        _ => {
            let tensor = file.tensor(EMBEDDING, &[v, m])?;
            Ok(Embedding::F16(tensor.matrix(tensor.exact_f16()?)))
        }
    }
}

/// Codes −8 to 7 of words of eight nibbles, each code plus 8.
fn unpacked(words: &[i32]) -> Vec<i8> {
    let mut codes = vec![0; 8 * words.len()];
    for (word, codes) in words.iter().zip(codes.as_chunks_mut::<8>().0) {
        for (position, element) in NIBBLES.into_iter().enumerate() {
            codes[element] = (word >> (4 * position) & 15) as i8 - 8;
        }
    }
    codes
}

fn head(file: &TorchFile<'_>, kind: Kind, config: &Config) -> Result<Head> {
    let (v, m) = (config.vocab_size, config.d_model);
    let name = format!("{HEAD}.weight");
    if matches!(dtype(file, &name), Some(Dtype::I8 | Dtype::I32)) {
        let input = scale(file, NORM_F_SCALE)?;
        let weight = weight(file, kind, HEAD, [v, m], input, None)?;
        return Ok(Head::Quantized { input, weight });
    }
    let tensor = file.tensor(&name, &[v, m])?;
    let head = Head::F16(tensor.matrix(tensor.exact_f16()?));
    match file.get(NORM_F_SCALE) {
        None => Ok(head),
        Some(_) => {
            let expected = "a quantized head, which alone reads an INT8 norm";
            Err(SimError::file(
                file.path(),
                NORM_F_SCALE,
                expected,
                "a head in binary16",
            ))
        }
    }
}

/// Names that the configuration gives to parts, where the keys say otherwise.
fn contradictions(kind: Kind, model: &QuantizedModel) -> Vec<String> {
    let json = &model.config.json;
    let embedding = match &model.embedding {
        Embedding::F16(_) => ("Embedding", "binary16"),
        Embedding::Rows(rows) if rows.bits == 4 => ("W4O16Embedding", "4 bits"),
        Embedding::Rows(_) => ("W8O16Embedding", "INT8"),
    };
    let (head, norm) = match &model.head {
        Head::F16(_) => (("Linear", "binary16"), ("RMSNorm", "binary16")),
        Head::Quantized { weight, .. } => {
            let head = match weight {
                QWeight::Int8(_) => ("W8A8B16O16Linear", "INT8"),
                QWeight::Int4(_) => ("W4A8B16O16Linear", "4 bits"),
            };
            (head, ("QRMSNorm", "INT8"))
        }
    };
    let layer = match kind {
        Kind::W4A8 => ("W4A8QMamba", "W4A8"),
        _ => ("W8A8QMamba", "W8A8"),
    };
    let said = [
        ("ssm_cfg", "layer", layer),
        ("embedding_cfg", "layer", embedding),
        ("lm_head_cfg", "layer", head),
        ("norm_cfg", "norm", norm),
    ];
    let notes = said.into_iter().filter_map(|(part, key, (usual, found))| {
        let named = json.get(part)?.get(key).and_then(Value::as_str)?;
        (named != usual).then(|| {
            let named = shown(named);
            format!("{CONFIG}: {part}.{key} is {named}, the weights are {found}; the weights win")
        })
    });
    notes.collect()
}
