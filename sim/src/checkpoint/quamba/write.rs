//! Writes a quantized model as Quamba does: the folder that [`super`] reads.

use super::{NIBBLES, OUTPUTS, int4};
use crate::atomic;
use crate::checkpoint::hf::CONFIG;
use crate::checkpoint::torch::write::{Elements, Value, write_to};
use crate::error::{Result, SimError};
use crate::model::{Config, Embedding, Head, QRows, QuantizedLayer, QuantizedModel};
use crate::quant::{QTensor, QVector, QWeight, Scale};
use serde_json::{Map, json};
use std::borrow::Cow;
use std::fs;
use std::io::Write;
use std::path::Path;

/// What `mamba_ssm` gives RMSNorm; its configuration has no key for it.
const EPS: f32 = 1e-5;

/// Writes `config.json` and `pytorch_model.bin` into a folder, which is made if it is not there: keys,
/// shapes, strides and Python floats as in the files of Quamba's own conversion. Each file appears whole or
/// not at all, the configuration last.
///
/// # Errors
///
/// A shape that the configuration of `mamba_ssm` cannot say; weights of eight bits beside weights of
/// four; the system's.
pub fn write(dir: &Path, model: &QuantizedModel) -> Result<()> {
    let config = config(model).map_err(|e| e.in_file(dir))?;
    if !dir.is_dir() {
        fs::create_dir(dir).map_err(|e| SimError::io(dir, e))?;
    }
    let entries = entries(model);
    atomic::write(&dir.join("pytorch_model.bin"), |out| {
        write_to(out, "pytorch_model", &entries)
    })?;
    let text = serde_json::to_string_pretty(&config).expect("plain data");
    atomic::write(&dir.join(CONFIG), |out| out.write_all(text.as_bytes()))
}

fn config(model: &QuantizedModel) -> Result<serde_json::Value> {
    let c = &model.config;
    if c.eps != EPS {
        let expected = format!("{EPS:e}, the only one the format can say");
        return Err(SimError::value("RMSNorm's epsilon", expected, c.eps));
    }
    if !c.d_inner.is_multiple_of(c.d_model) {
        let expected = "a multiple of d_model, as the format says it";
        return Err(SimError::value("d_inner", expected, c.d_inner));
    }
    let embedding = match &model.embedding {
        Embedding::F16(_) => "Embedding",
        Embedding::Rows(rows) if rows.bits == 4 => "W4O16Embedding",
        Embedding::Rows(_) => "W8O16Embedding",
    };
    let weights = model
        .layers
        .iter()
        .flat_map(|l| [&l.in_proj, &l.x_proj, &l.out_proj]);
    let (head, head_weight) = match &model.head {
        Head::F16(_) => ("Linear", None),
        Head::Quantized { weight, .. } => match weight {
            QWeight::Int8(_) => ("W8A8B16O16Linear", Some(weight)),
            QWeight::Int4(_) => ("W4A8B16O16Linear", Some(weight)),
        },
    };
    let mut bits: Vec<u8> = weights.chain(head_weight).map(QWeight::bits).collect();
    bits.dedup();
    let layer = match bits[..] {
        [8] | [] => "W8A8QMamba",
        [4] => "W4A8QMamba",
        _ => {
            let expected = "of eight bits all, or of four all, as the format says it";
            return Err(SimError::value("weights", expected, "both"));
        }
    };
    Ok(json!({
        "d_model": c.d_model,
        "d_intermediate": 0,
        "n_layer": c.n_layers,
        "vocab_size": c.vocab_size,
        "ssm_cfg": ssm(c, layer),
        "attn_layer_idx": [],
        "attn_cfg": {},
        "rms_norm": true,
        "residual_in_fp32": true,
        "fused_add_norm": true,
        "pad_vocab_size_multiple": if c.vocab_size.is_multiple_of(8) { 8 } else { 1 },
        "tie_embeddings": false,
        // Of the blocks; Quamba names no other for the final norm.
        "norm_cfg": {"norm": "QRMSNorm"},
        "embedding_cfg": {"layer": embedding},
        "lm_head_cfg": {"layer": head},
    }))
}

/// What is not as `mamba_ssm` has it anyway.
fn ssm(c: &Config, layer: &str) -> Map<String, serde_json::Value> {
    let mut ssm = Map::new();
    for (key, value, usual) in [
        ("d_state", c.d_state, 16),
        ("d_conv", c.d_conv, 4),
        ("expand", c.d_inner / c.d_model, 2),
        ("dt_rank", c.dt_rank, c.d_model.div_ceil(16)),
    ] {
        if value != usual {
            ssm.insert(key.into(), value.into());
        }
    }
    ssm.insert("layer".into(), layer.into());
    ssm
}

type Entries<'a> = Vec<(String, Value<'a>)>;

fn entries(model: &QuantizedModel) -> Entries<'_> {
    let mut all = Entries::new();
    match &model.embedding {
        Embedding::F16(table) => {
            let values = Elements::F16(slice(table).into());
            all.push((
                super::EMBEDDING.into(),
                Value::tensor(table.shape(), values),
            ));
        }
        Embedding::Rows(rows) => {
            let (v, m) = rows.codes.dim();
            let weight = match rows.bits {
                4 => Value::tensor(&[v, m / 8], Elements::I32(packed(rows).into())),
                _ => Value::tensor(&[v, m], Elements::I8(slice(&rows.codes).into())),
            };
            all.push((super::EMBEDDING.into(), weight));
            let scales = Elements::F16((&rows.scales[..]).into());
            all.push((super::EMBEDDING_SCALES.into(), Value::tensor(&[v], scales)));
        }
    }
    for (i, layer) in model.layers.iter().enumerate() {
        add_layer(&mut all, &format!("backbone.layers.{i}."), layer);
    }
    let norm = Elements::F16((&model.norm_f[..]).into());
    all.push((
        super::NORM_F.into(),
        Value::tensor(&[model.norm_f.len()], norm),
    ));
    match &model.head {
        Head::F16(table) => {
            let values = Elements::F16(slice(table).into());
            all.push((
                format!("{}.weight", super::HEAD),
                Value::tensor(table.shape(), values),
            ));
        }
        Head::Quantized { input, weight } => {
            all.push((super::NORM_F_SCALE.into(), number(*input)));
            add_weight(&mut all, super::HEAD, weight, *input, None);
        }
    }
    all
}

fn add_layer<'a>(all: &mut Entries<'a>, prefix: &str, layer: &'a QuantizedLayer) {
    let s = &layer.scales;
    let name = |key: &str| format!("{prefix}{key}");
    let norm = Elements::F16((&layer.norm[..]).into());
    all.push((
        name("norm.weight"),
        Value::tensor(&[layer.norm.len()], norm),
    ));
    all.push((name("norm.output_scale"), number(s.in_proj_input)));
    let linear = |key: &str| name(&format!("mixer.{key}"));
    let (x, dt) = (s.x_proj_output, s.dt_proj_output);
    let in_proj = (s.in_proj_input, Some(s.in_proj_output));
    add_weight(
        all,
        &linear("in_proj"),
        &layer.in_proj,
        in_proj.0,
        in_proj.1,
    );
    add_weight(
        all,
        &linear("x_proj"),
        &layer.x_proj,
        s.x_proj_input,
        Some(x),
    );
    add_linear(all, &linear("dt_proj"), &layer.dt_proj, x, Some(dt));
    add_weight(
        all,
        &linear("out_proj"),
        &layer.out_proj,
        s.out_proj_input,
        None,
    );
    let conv = |key: &str| name(&format!("mixer.conv1d.{key}"));
    all.push((conv("weight"), matrix(&layer.conv_weight)));
    all.push((conv("bias"), vector(&layer.conv_bias)));
    for (key, scale) in [
        ("weight_scale", layer.conv_weight.scale),
        ("bias_scale", layer.conv_bias.scale),
        ("input_scale", s.in_proj_output),
        ("output_scale", s.x_proj_input),
    ] {
        all.push((conv(key), number(scale)));
    }
    let scan = |key: &str| name(&format!("mixer.selective_scan.{key}"));
    all.push((scan("dt_bias"), vector(&layer.dt_bias)));
    all.push((scan("A_log"), matrix(&layer.a_log)));
    all.push((scan("D"), vector(&layer.d)));
    for (key, scale) in [
        ("dt_bias_scale", layer.dt_bias.scale),
        ("A_scale", layer.a_log.scale),
        ("D_scale", layer.d.scale),
        ("u_scale", s.x_proj_input),
        ("dt_scale", s.dt_proj_output),
        ("B_scale", s.x_proj_output),
        ("C_scale", s.x_proj_output),
        ("z_scale", s.in_proj_output),
        ("ssm_state_scale", s.ssm_state),
    ] {
        all.push((scan(key), tensor(&[], scale.get())));
    }
    all.push((name("mixer.had.x_H_scale"), number(s.out_proj_input)));
}

/// A linear with INT8 output at `s_out`, or binary16.
fn add_weight<'a>(
    all: &mut Entries<'a>,
    name: &str,
    weight: &'a QWeight,
    s_in: Scale,
    s_out: Option<Scale>,
) {
    match weight {
        QWeight::Int8(weight) => add_linear(all, name, weight, s_in, s_out),
        QWeight::Int4(weight) => all.extend(int4::write(name, weight, s_in, s_out)),
    }
}

/// The same in eight bits.
fn add_linear<'a>(
    all: &mut Entries<'a>,
    name: &str,
    weight: &'a QTensor,
    s_in: Scale,
    s_out: Option<Scale>,
) {
    let (out, inputs) = weight.codes.dim();
    let padded = out.next_multiple_of(OUTPUTS);
    let mut codes: Cow<'a, [i8]> = slice(&weight.codes).into();
    if padded > out {
        codes.to_mut().resize(padded * inputs, 0);
    }
    let b = weight.scale.get();
    let (a, alpha) = match s_out {
        Some(s_out) => {
            let alpha = (b * s_in.get()) * (1.0 / s_out.get());
            (s_in.ratio(s_out).get(), alpha)
        }
        None => (s_in.get(), b * s_in.get()),
    };
    let key = |part: &str| format!("{name}.{part}");
    let weight = Value::columns([inputs, padded], Elements::I8(codes));
    all.push((key("weight"), weight));
    all.push((key("a"), tensor(&[1, 1], a)));
    all.push((key("b"), tensor(&[1, 1], b)));
    all.push((key("alpha"), Value::Number(alpha.into())));
}

fn number<'a>(scale: Scale) -> Value<'a> {
    Value::Number(scale.get().into())
}

/// A tensor of one element.
fn tensor<'a>(shape: &[usize], value: f32) -> Value<'a> {
    Value::tensor(shape, Elements::F32(vec![value].into()))
}

fn matrix(weight: &QTensor) -> Value<'_> {
    let codes = &weight.codes;
    Value::tensor(codes.shape(), Elements::I8(slice(codes).into()))
}

fn vector(weight: &QVector) -> Value<'_> {
    Value::tensor(
        &[weight.codes.len()],
        Elements::I8((&weight.codes[..]).into()),
    )
}

/// Words of eight 4-bit codes, each plus 8.
fn packed(rows: &QRows) -> Vec<i32> {
    let word = |codes: &[i8; 8]| {
        let nibbles = NIBBLES.into_iter().enumerate();
        nibbles.fold(0u32, |word, (position, element)| {
            word | ((codes[element] + 8) as u32 & 15) << (4 * position)
        }) as i32
    };
    slice(&rows.codes)
        .as_chunks::<8>()
        .0
        .iter()
        .map(word)
        .collect()
}

fn slice<T>(array: &ndarray::Array2<T>) -> &[T] {
    array.as_slice().expect("weights are row-major")
}
