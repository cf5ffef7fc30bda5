//! Reads and writes the quantized model, `quantized.safetensors`. See `docs/models.md`.
//!
//! | tensor | dtype | shape |
//! |---|---|---|
//! | `embeddings.weight`, `lm_head.weight` | F16 | `[V, M]` |
//! | … with quantized ends | I8 | `[V, M]` |
//! | `embeddings.weight_scale`, `lm_head.weight_scale`, `norm_f.output_scale` | F16, F32, F32 | `[V]`, `[1]`, `[1]` |
//! | `norm_f.weight`, `layers.{i}.norm.weight` | F16 | `[M]` |
//! | `layers.{i}.in_proj.weight` | I8 | `[2E, M]` |
//! | `layers.{i}.conv1d.weight`, `….bias` | I8 | `[E, K]`, `[E]` |
//! | `layers.{i}.x_proj.weight` | I8 | `[R+2N, E]` |
//! | `layers.{i}.dt_proj.weight` | I8 | `[E, R]` |
//! | `layers.{i}.out_proj.weight` | I8 | `[M, E]` |
//! | `layers.{i}.ssm.A_log`, `….D`, `….dt_bias` | I8 | `[E, N]`, `[E]`, `[E]` |
//! | each I8 tensor's name + `_scale` | F32 | `[1]` |
//! | `in_proj.weight`, `x_proj.weight`, `out_proj.weight` or `lm_head.weight` in four bits | U8 | `[out, in/2]` |
//! | its name + `_groups`, where a row has more than 128 codes | F16 | `[out, in/128]` |
//! | its name + `_channels` | F32 | `[out]` |
//! | `layers.{i}.scales.{key}`, seven keys, and `x_proj_input_max` where there is one | F32 | `[1]` |
//!
//! A weight is in four bits if its type is U8; [`crate::quant::Int4Tensor`] says what its bytes are.
//! Metadata: `config`, the configuration (of `transformers` or `mamba_ssm`) as JSON; `format`, `int8-mamba`; and, where
//! it is known, `float_sha256`, the [digest](super::identity::digest) of the float model it was made from; and
//! `embedding_bits`, `4`, where codes of the embedding are −8 to 7.

use super::config;
use super::container::Container;
use super::input::in_layer;
use super::scales::Stored;
use super::tensor::{Dtype, FileTensor};
use crate::arith::int4::GROUP;
use crate::atomic;
use crate::error::{Result, SimError};
use crate::model::{ActivationScales, Config, Embedding, Head, QRows, QuantizedLayer};
use crate::model::{QuantizedModel, ScaleKey};
use crate::quant::{Int4Tensor, QTensor, QVector, QWeight, Scale};
use crate::text;
use half::f16;
use ndarray::Array2;
use rayon::prelude::*;
use serde_json::{Map, Value, json};
use std::collections::BTreeMap;
use std::io::{self, Write};
use std::path::Path;

/// The metadata value that marks a file as ours.
pub const FORMAT: &str = "int8-mamba";
/// The metadata key of the float model's digest.
const FLOAT_DIGEST: &str = "float_sha256";
/// The metadata key that says that codes of the embedding have four bits.
const EMBEDDING_BITS: &str = "embedding_bits";

/// Reads a quantized model from a file.
///
/// # Errors
///
/// One line with file, tensor, expected and found: an inconsistent container, another format, a
/// configuration that is not Mamba-1, tensors missing, unexpected, or of a wrong shape or type,
/// scales that are not positive, finite and normal, binary16 values that are not finite.
pub fn read(path: &Path) -> Result<QuantizedModel> {
    from_container(&Container::open(path)?)
}

/// Reads a quantized model from bytes; `name` stands for the path in errors.
///
/// # Errors
///
/// As [`read`].
pub fn read_bytes(name: &str, bytes: &[u8]) -> Result<QuantizedModel> {
    from_container(&Container::from_bytes(Path::new(name), bytes)?)
}

/// Whether a container says that it holds a quantized model.
pub(crate) fn is_quantized(file: &Container<'_>) -> bool {
    file.metadata("format") == Some(FORMAT)
}

pub(crate) fn from_container(file: &Container<'_>) -> Result<QuantizedModel> {
    let config = read_config(file)?;
    refuse_others(file, &config)?;
    let (v, m) = (config.vocab_size, config.d_model);
    let table = |name: &str| -> Result<Array2<f16>> {
        let tensor = file.tensor(name, &[v, m])?;
        Ok(tensor.matrix(tensor.exact_f16()?))
    };
    // A layer that is missing altogether, before one line is written for each of a thousand.
    for i in 0..config.n_layers {
        let name = format!("layers.{i}.norm.weight");
        if !file.contains(&name) {
            file.tensor(&name, &[m])?;
        }
    }
    // Collected before it is searched, so that the error does not depend on threads.
    let layers: Vec<Result<QuantizedLayer>> = (0..config.n_layers)
        .into_par_iter()
        .map(|i| Layer { file, i }.read(&config))
        .collect();
    let int8 = |name: &str| file.dtype(name) == Some(Dtype::I8);
    let int4 = |name: &str| file.dtype(name) == Some(Dtype::U8);
    Ok(QuantizedModel {
        float_digest: file.metadata(FLOAT_DIGEST).map(str::to_owned),
        embedding: match int8(EMBEDDING) {
            true => Embedding::Rows(rows(file, [v, m])?),
            false => Embedding::F16(table(EMBEDDING)?),
        },
        head: match int8(HEAD) || int4(HEAD) {
            true => Head::Quantized {
                input: scale(file, NORM_F_SCALE)?,
                weight: weight(file, HEAD, [v, m])?,
            },
            false => Head::F16(table(HEAD)?),
        },
        norm_f: file.tensor("norm_f.weight", &[m])?.exact_f16()?,
        layers: layers.into_iter().collect::<Result<_>>()?,
        config,
    })
}

/// The rows of a quantized embedding: of eight bits unless the file says four, and then no code has more.
fn rows(file: &Container<'_>, shape: [usize; 2]) -> Result<QRows> {
    let codes = codes(file, EMBEDDING, shape)?;
    let refuse = |item: &str, expected: &str, found: String| {
        Err(SimError::file(file.path(), item, expected, found))
    };
    let bits = match file.metadata(EMBEDDING_BITS) {
        None => 8,
        Some("4") => 4,
        Some(other) => {
            let item = format!("metadata {EMBEDDING_BITS}");
            return refuse(&item, "4, or nothing", super::input::shown(other));
        }
    };
    let wide = codes.iter().find(|code| !(-8..8).contains(*code));
    if let (4, Some(code)) = (bits, wide) {
        return refuse(EMBEDDING, "codes of four bits, -8 to 7", code.to_string());
    }
    Ok(QRows {
        codes,
        scales: file.tensor(EMBEDDING_SCALE, &[shape[0]])?.exact_f16()?,
        bits,
    })
}

/// The activation scales of a quantized file, one set a layer, without its weights.
pub(crate) fn scales_from_container(file: &Container<'_>) -> Result<Stored> {
    let config = read_config(file)?;
    let layers = (0..config.n_layers).map(|i| Layer { file, i }.scales());
    Ok(Stored {
        layers: layers.collect::<Result<_>>()?,
        float_digest: file.metadata(FLOAT_DIGEST).map(str::to_owned),
    })
}

fn read_config(file: &Container<'_>) -> Result<Config> {
    let missing = |item, expected: &str| SimError::file(file.path(), item, expected, "nothing");
    match file.metadata("format") {
        Some(FORMAT) => {}
        Some(other) => {
            return Err(SimError::file(
                file.path(),
                "metadata format",
                FORMAT,
                super::input::shown(other),
            ));
        }
        None => return Err(missing("metadata format", FORMAT)),
    }
    let json = file
        .metadata("config")
        .ok_or_else(|| missing("metadata config", "the model's configuration as JSON"))?;
    Ok(config::parse(file.path(), json.as_bytes())?.config)
}

fn refuse_others(file: &Container<'_>, config: &Config) -> Result<()> {
    let expected = format!(
        "only tensors of a quantized model of {} layers",
        config.n_layers
    );
    file.refuse_others(|name| is_of(name, config), &expected)
}

/// Whether a model of this shape has a tensor of that name; as in [`super::hf`], no names are made.
fn is_of(name: &str, config: &Config) -> bool {
    if ENDS.contains(&name) {
        return true;
    }
    let Some((layer, tensor)) = in_layer(name, "layers.") else {
        return false;
    };
    let known = match tensor.strip_prefix("scales.") {
        Some(key) => ScaleKey::WITH_OPTIONAL
            .iter()
            .any(|known| known.name() == key),
        None => {
            let without = |suffixes: &[&str]| {
                let mut stripped = suffixes.iter().filter_map(|s| tensor.strip_suffix(s));
                stripped.next().unwrap_or(tensor)
            };
            tensor == "norm.weight"
                || CODES.contains(&without(&["_scale"]))
                || INT4.contains(&without(&["_groups", "_channels"]))
        }
    };
    known && layer < config.n_layers
}

const EMBEDDING: &str = "embeddings.weight";
const EMBEDDING_SCALE: &str = "embeddings.weight_scale";
const HEAD: &str = "lm_head.weight";
const HEAD_SCALE: &str = "lm_head.weight_scale";
const HEAD_GROUPS: &str = "lm_head.weight_groups";
const HEAD_CHANNELS: &str = "lm_head.weight_channels";
const NORM_F: &str = "norm_f.weight";
const NORM_F_SCALE: &str = "norm_f.output_scale";
const ENDS: [&str; 8] = [
    EMBEDDING,
    EMBEDDING_SCALE,
    HEAD,
    HEAD_SCALE,
    HEAD_GROUPS,
    HEAD_CHANNELS,
    NORM_F,
    NORM_F_SCALE,
];

/// A layer's INT8 tensors, each with a scale beside it.
const CODES: [&str; 9] = [
    "conv1d.bias",
    "conv1d.weight",
    "dt_proj.weight",
    "in_proj.weight",
    "out_proj.weight",
    "ssm.A_log",
    "ssm.D",
    "ssm.dt_bias",
    "x_proj.weight",
];

/// Those that can have four bits.
const INT4: [&str; 3] = ["in_proj.weight", "out_proj.weight", "x_proj.weight"];

fn scale_tensor(layer: usize, key: ScaleKey) -> String {
    format!("layers.{layer}.scales.{}", key.name())
}

fn scale(file: &Container<'_>, name: &str) -> Result<Scale> {
    let value = file.tensor(name, &[1])?.scalar_f32()?;
    Scale::new(value).map_err(|_| {
        let found = format_args!("{value:e}");
        SimError::file(file.path(), name, "a positive, finite, normal f32", found)
    })
}

fn codes(file: &Container<'_>, name: &str, shape: [usize; 2]) -> Result<Array2<i8>> {
    let tensor = file.tensor(name, &shape)?;
    Ok(tensor.matrix(tensor.codes()?))
}

/// A weight in eight or four bits.
fn weight(file: &Container<'_>, name: &str, [rows, columns]: [usize; 2]) -> Result<QWeight> {
    let part = |suffix: &str| format!("{name}{suffix}");
    // Tensors that only a weight of other bits has.
    let refuse = |suffixes: &[&str], bits: &str| {
        let mut beside = suffixes.iter().map(|suffix| part(suffix));
        beside
            .find(|name| file.contains(name))
            .map_or(Ok(()), |found| {
                let expected = format!("nothing: {name} is not in {bits} bits");
                Err(SimError::file(file.path(), found, expected, "a tensor"))
            })
    };
    if file.dtype(name) != Some(Dtype::U8) {
        refuse(&["_groups", "_channels"], "four")?;
        return Ok(QWeight::Int8(QTensor {
            codes: codes(file, name, [rows, columns])?,
            scale: scale(file, &part("_scale"))?,
        }));
    }
    refuse(&["_scale"], "eight")?;
    let packed = file.tensor(name, &[rows, columns / 2])?;
    let groups = match columns > GROUP {
        true => {
            let groups = file.tensor(&part("_groups"), &[rows, columns / GROUP])?;
            Some(groups.matrix(groups.exact_f16()?))
        }
        false => None,
    };
    let channels = file.tensor(&part("_channels"), &[rows])?.scales()?;
    let tensor = Int4Tensor::of_nibbles(packed.matrix(packed.nibbles()?), groups, channels);
    Ok(QWeight::Int4(tensor.map_err(|e| e.in_file(file.path()))?))
}

struct Layer<'a> {
    file: &'a Container<'a>,
    i: usize,
}

impl<'a> Layer<'a> {
    fn read(&self, c: &Config) -> Result<QuantizedLayer> {
        let (m, e, n) = (c.d_model, c.d_inner, c.d_state);
        Ok(QuantizedLayer {
            norm: self.tensor("norm.weight", &[m])?.exact_f16()?,
            in_proj: self.weight("in_proj.weight", [2 * e, m])?,
            conv_weight: self.matrix("conv1d.weight", [e, c.d_conv])?,
            conv_bias: self.vector("conv1d.bias", e)?,
            x_proj: self.weight("x_proj.weight", [c.x_proj_width(), e])?,
            dt_proj: self.matrix("dt_proj.weight", [e, c.dt_rank])?,
            dt_bias: self.vector("ssm.dt_bias", e)?,
            a_log: self.matrix("ssm.A_log", [e, n])?,
            d: self.vector("ssm.D", e)?,
            out_proj: self.weight("out_proj.weight", [m, e])?,
            scales: self.scales()?,
        })
    }

    fn scales(&self) -> Result<ActivationScales> {
        let name = |key: ScaleKey| format!("scales.{}", key.name());
        let max = name(ScaleKey::XProjInputMax);
        let there = self.file.contains(&format!("layers.{}.{max}", self.i));
        let max = there.then(|| self.scale(&max)).transpose()?;
        let scales = ActivationScales::from_fn(|key| self.scale(&name(key)))?;
        Ok(scales.with_max(max))
    }

    fn tensor(&self, name: &str, shape: &[usize]) -> Result<FileTensor<'a>> {
        self.file
            .tensor(&format!("layers.{}.{name}", self.i), shape)
    }

    fn scale(&self, name: &str) -> Result<Scale> {
        scale(self.file, &format!("layers.{}.{name}", self.i))
    }

    fn matrix(&self, name: &str, shape: [usize; 2]) -> Result<QTensor> {
        let tensor = self.tensor(name, &shape)?;
        Ok(QTensor {
            codes: tensor.matrix(tensor.codes()?),
            scale: self.scale(&format!("{name}_scale"))?,
        })
    }

    /// A weight in eight or four bits.
    fn weight(&self, name: &str, shape: [usize; 2]) -> Result<QWeight> {
        weight(self.file, &format!("layers.{}.{name}", self.i), shape)
    }

    fn vector(&self, name: &str, n: usize) -> Result<QVector> {
        Ok(QVector {
            codes: self.tensor(name, &[n])?.codes()?,
            scale: self.scale(&format!("{name}_scale"))?,
        })
    }
}

/// Writes a quantized model. The file appears whole or not at all; equal models give equal bytes.
///
/// # Errors
///
/// The system's, on the file or its directory.
pub fn write(path: &Path, model: &QuantizedModel) -> Result<()> {
    atomic::write(path, |out| write_to(out, model))
}

/// Writes a quantized model's bytes to a stream. Tensors of wider elements come first, then they
/// go by name, so that every tensor is aligned and the order is one of a kind.
///
/// # Errors
///
/// The stream's.
pub fn write_to(out: &mut impl Write, model: &QuantizedModel) -> io::Result<()> {
    let tensors = tensors(model);
    let mut header = Map::new();
    let config = text::python_json(&model.config.json);
    let mut metadata = json!({"config": config, "format": FORMAT});
    if let Some(digest) = &model.float_digest {
        metadata[FLOAT_DIGEST] = json!(digest);
    }
    if matches!(&model.embedding, Embedding::Rows(rows) if rows.bits == 4) {
        metadata[EMBEDDING_BITS] = json!("4");
    }
    header.insert("__metadata__".to_owned(), metadata);
    let mut end = 0;
    for (name, (shape, data)) in &tensors {
        let start = end;
        end += data.bytes();
        let entry = json!({"dtype": data.dtype(), "shape": shape, "data_offsets": [start, end]});
        header.insert(name.1.clone(), entry);
    }
    let mut header = Value::Object(header).to_string().into_bytes();
    header.resize(header.len().next_multiple_of(8), b' ');
    out.write_all(&(header.len() as u64).to_le_bytes())?;
    out.write_all(&header)?;
    for (_, data) in tensors.values() {
        data.write_to(out)?;
    }
    Ok(())
}

/// What a tensor of the file is written from.
enum Data<'a> {
    Scale(Scale),
    Floats(&'a [f16]),
    Codes(&'a [i8]),
    Nibbles(&'a [u8]),
    Scales(&'a [Scale]),
}

impl Data<'_> {
    fn dtype(&self) -> &'static str {
        match self {
            Data::Scale(_) | Data::Scales(_) => "F32",
            Data::Floats(_) => "F16",
            Data::Codes(_) => "I8",
            Data::Nibbles(_) => "U8",
        }
    }

    fn bytes(&self) -> usize {
        match self {
            Data::Scale(_) => 4,
            Data::Scales(scales) => 4 * scales.len(),
            Data::Floats(values) => 2 * values.len(),
            Data::Codes(codes) => codes.len(),
            Data::Nibbles(bytes) => bytes.len(),
        }
    }

    /// Place in the file: wider elements first.
    fn rank(&self) -> u8 {
        match self {
            Data::Scale(_) | Data::Scales(_) => 0,
            Data::Floats(_) => 1,
            Data::Codes(_) | Data::Nibbles(_) => 2,
        }
    }

    fn write_to(&self, out: &mut impl Write) -> io::Result<()> {
        match self {
            Data::Scale(scale) => out.write_all(&scale.get().to_le_bytes()),
            Data::Codes(codes) => out.write_all(bytemuck::cast_slice(codes)),
            Data::Nibbles(bytes) => out.write_all(bytes),
            Data::Scales(scales) => scales
                .iter()
                .try_for_each(|scale| out.write_all(&scale.get().to_le_bytes())),
            Data::Floats(values) => {
                let mut buffer = Vec::new();
                for chunk in values.chunks(1 << 15) {
                    buffer.clear();
                    buffer.extend(chunk.iter().flat_map(|v| v.to_le_bytes()));
                    out.write_all(&buffer)?;
                }
                Ok(())
            }
        }
    }
}

/// Tensors in the order of the file: by (rank, name).
type Tensors<'a> = BTreeMap<(u8, String), (Vec<usize>, Data<'a>)>;

fn tensors(model: &QuantizedModel) -> Tensors<'_> {
    let mut all = Tensors::new();
    let mut add = |name: String, shape: &[usize], data| {
        all.insert((Data::rank(&data), name), (shape.to_vec(), data));
    };
    match &model.embedding {
        Embedding::F16(table) => add(EMBEDDING.into(), table.shape(), Data::Floats(slice(table))),
        Embedding::Rows(rows) => {
            let (codes, scales) = (&rows.codes, &rows.scales);
            add(EMBEDDING.into(), codes.shape(), Data::Codes(slice(codes)));
            add(
                EMBEDDING_SCALE.into(),
                &[scales.len()],
                Data::Floats(scales),
            );
        }
    }
    match &model.head {
        Head::F16(table) => add(HEAD.into(), table.shape(), Data::Floats(slice(table))),
        Head::Quantized { input, weight } => {
            add_weight(&mut add, HEAD, weight);
            add(NORM_F_SCALE.into(), &[1], Data::Scale(*input));
        }
    }
    let norm_f = &model.norm_f;
    add(NORM_F.into(), &[norm_f.len()], Data::Floats(norm_f));
    for (i, l) in model.layers.iter().enumerate() {
        let norm = format!("layers.{i}.norm.weight");
        add(norm, &[l.norm.len()], Data::Floats(&l.norm));
        let matrices = [
            ("conv1d.weight", &l.conv_weight),
            ("dt_proj.weight", &l.dt_proj),
            ("ssm.A_log", &l.a_log),
        ]
        .map(|(name, t)| (name, t.codes.shape().to_vec(), slice(&t.codes), t.scale));
        let vectors = [
            ("conv1d.bias", &l.conv_bias),
            ("ssm.dt_bias", &l.dt_bias),
            ("ssm.D", &l.d),
        ]
        .map(|(name, v)| (name, vec![v.codes.len()], v.codes.as_slice(), v.scale));
        let weights = [
            ("in_proj.weight", &l.in_proj),
            ("x_proj.weight", &l.x_proj),
            ("out_proj.weight", &l.out_proj),
        ];
        for (name, weight) in weights {
            add_weight(&mut add, &format!("layers.{i}.{name}"), weight);
        }
        for (name, shape, codes, scale) in matrices.into_iter().chain(vectors) {
            add(format!("layers.{i}.{name}"), &shape, Data::Codes(codes));
            let name = format!("layers.{i}.{name}_scale");
            add(name, &[1], Data::Scale(scale));
        }
        for key in ScaleKey::ALL {
            add(scale_tensor(i, key), &[1], Data::Scale(l.scales.get(key)));
        }
        if let Some(max) = l.scales.x_proj_input_max {
            let name = scale_tensor(i, ScaleKey::XProjInputMax);
            add(name, &[1], Data::Scale(max));
        }
    }
    all
}

/// The tensors of a weight.
fn add_weight<'a>(
    add: &mut impl FnMut(String, &[usize], Data<'a>),
    name: &str,
    weight: &'a QWeight,
) {
    match weight {
        QWeight::Int8(t) => {
            add(name.into(), t.codes.shape(), Data::Codes(slice(&t.codes)));
            add(format!("{name}_scale"), &[1], Data::Scale(t.scale));
        }
        QWeight::Int4(t) => {
            add(
                name.into(),
                t.nibbles.shape(),
                Data::Nibbles(slice(&t.nibbles)),
            );
            let channels = Data::Scales(&t.channels);
            add(format!("{name}_channels"), &[t.channels.len()], channels);
            if let Some(groups) = &t.groups {
                let data = Data::Floats(slice(groups));
                add(format!("{name}_groups"), groups.shape(), data);
            }
        }
    }
}

fn slice<T>(array: &Array2<T>) -> &[T] {
    array.as_slice().expect("weights are row-major")
}
