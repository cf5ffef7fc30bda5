//! Damaged and hostile files: an error in one line, never a panic, never a huge allocation.

use crate::checkpoint_files::*;
use half::f16;
use safetensors::tensor::Dtype;
use scalescope_sim::checkpoint::load::{Loaded, load};
use scalescope_sim::checkpoint::synthetic::{self, Shape};
use scalescope_sim::checkpoint::{hf, quantized, scales};
use scalescope_sim::error::SimError;
use scalescope_sim::model::QuantizedModel;
use serde_json::json;
use std::collections::HashMap;

fn tiny() -> QuantizedModel {
    synthetic::quantized_model(Shape::named("tiny").unwrap())
}

fn file() -> Vec<u8> {
    let mut bytes = Vec::new();
    quantized::write_to(&mut bytes, &tiny()).unwrap();
    bytes
}

fn header_length(bytes: &[u8]) -> usize {
    u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize
}

fn read(bytes: &[u8]) -> Result<QuantizedModel, SimError> {
    quantized::read_bytes("a.safetensors", bytes)
}

/// The tiny model's file with other tensors or metadata.
fn edited(
    edit: impl FnOnce(&mut Tensors, &mut HashMap<String, String>),
) -> Result<QuantizedModel, SimError> {
    let (mut tensors, mut metadata) = parse(&file());
    edit(&mut tensors, &mut metadata);
    let metadata: Vec<(&str, &str)> = metadata
        .iter()
        .map(|(k, v)| (k.as_str(), v.as_str()))
        .collect();
    read(&bytes(&tensors, &metadata))
}

/// A container with this header and no data.
fn with_header(header: &str) -> Vec<u8> {
    let mut bytes = (header.len() as u64).to_le_bytes().to_vec();
    bytes.extend(header.as_bytes());
    bytes
}

#[test]
fn a_file_written_by_another_implementation_is_read() {
    assert!(edited(|_, _| {}).unwrap() == tiny());
}

#[test]
fn files_are_written_whole_and_always_alike() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("q.safetensors");
    std::fs::write(&path, "something older").unwrap();
    quantized::write(&path, &tiny()).unwrap();
    assert!(std::fs::read(&path).unwrap() == file());
    assert!(load(&path).unwrap() == Loaded::Quantized(tiny()));
    let names: Vec<_> = std::fs::read_dir(dir.path()).unwrap().collect();
    assert_eq!(names.len(), 1, "{names:?}");

    let nowhere = dir.path().join("none/q.safetensors");
    says(quantized::write(&nowhere, &tiny()), &["none/q.safetensors"]);

    let json = dir.path().join("scales.json");
    let sets: Vec<_> = tiny().layers.iter().map(|l| l.scales).collect();
    scales::write(&json, &sets).unwrap();
    assert_eq!(scales::read(&json).unwrap().layers, sets);
    assert_eq!(scales::read(&path).unwrap().layers, sets);
}

#[test]
fn every_truncation_is_an_error() {
    let bytes = file();
    let header = 8 + header_length(&bytes);
    let ends = (0..64).chain((64..header).step_by(97));
    for end in ends.chain((header..bytes.len()).step_by(1009)) {
        says(read(&bytes[..end]), &["a.safetensors"]);
    }
    says(
        read(&bytes[..bytes.len() - 1]),
        &["truncated", "x_proj.weight"],
    );
    let mut longer = bytes.clone();
    longer.push(0);
    says(read(&longer), &["data", "sum of all tensors"]);
}

#[test]
fn flipped_header_bits_never_panic() {
    let bytes = file();
    let mut refused = 0;
    let header = 8 + header_length(&bytes);
    for at in 0..header {
        let mut damaged = bytes.clone();
        damaged[at] ^= 1 << (at % 8);
        // A flip in a JSON number's exponent or a space may be harmless; then the model is whole.
        match read(&damaged) {
            Err(_) => {
                says(read(&damaged), &["a.safetensors"]);
                refused += 1;
            }
            Ok(model) => assert_eq!(model.layers.len(), 2),
        }
    }
    assert!(refused > header * 9 / 10, "{refused} of {header}");

    // The same in the other format.
    let float = synthetic::float_model(Shape::named("tiny").unwrap());
    let config = float.config.json.to_string();
    let bytes = crate::checkpoint_files::bytes(&hf_tensors(&float), &[]);
    for at in (0..8 + header_length(&bytes)).step_by(3) {
        let mut damaged = bytes.clone();
        damaged[at] ^= 1 << (at / 3 % 8);
        let result = hf::read_bytes(("c", config.as_bytes()), ("w", &damaged));
        if let Err(e) = result {
            says::<()>(Err(e), &["w: "]);
        }
    }
}

#[test]
fn hostile_headers_are_refused_by_name() {
    let entry = |dtype: &str, shape: serde_json::Value, from: u64, to: u64| {
        json!({"dtype": dtype, "shape": shape, "data_offsets": [from, to]}).to_string()
    };
    let big = 1u64 << 61;
    let cases = [
        // Products and sums beyond 64 bits.
        (
            format!(
                r#"{{"t":{}}}"#,
                entry("F32", json!([1u64 << 40, 1u64 << 40]), 0, 4)
            ),
            "t",
        ),
        (
            format!(r#"{{"t":{}}}"#, entry("I8", json!([u64::MAX]), 0, u64::MAX)),
            "t",
        ),
        (
            format!(
                r#"{{"s":{},"t":{}}}"#,
                entry("I8", json!([big - 1]), 0, big - 1),
                entry("I8", json!([big - 1]), big - 1, 2 * big - 2)
            ),
            "s",
        ),
        (
            format!(
                r#"{{"t":{}}}"#,
                entry("I8", json!([1u64 << 40]), 0, 1 << 40)
            ),
            "t",
        ),
        // Offsets that run backwards, overlap, or leave holes.
        (format!(r#"{{"t":{}}}"#, entry("I8", json!([4]), 4, 0)), "t"),
        (
            format!(
                r#"{{"s":{},"t":{}}}"#,
                entry("I8", json!([0]), 0, 0),
                entry("I8", json!([0]), 8, 8)
            ),
            "t",
        ),
        (format!(r#"{{"t":{}}}"#, entry("I8", json!([2]), 0, 4)), "t"),
        (format!(r#"{{"t":{}}}"#, entry("F4", json!([1]), 0, 0)), "t"),
        // Types and values that are none.
        (
            format!(r#"{{"t":{}}}"#, entry("F99", json!([1]), 0, 1)),
            "F99",
        ),
        (
            r#"{"t":{"dtype":"I8","shape":[-1],"data_offsets":[0,0]}}"#.into(),
            "t",
        ),
        (
            r#"{"t":{"dtype":"I8","shape":[1.5],"data_offsets":[0,0]}}"#.into(),
            "t",
        ),
        (r#"{"t":{"dtype":"I8","shape":[0]}}"#.into(), "data_offsets"),
        (r#"{"t":7}"#.into(), "t"),
        (r#"{"__metadata__":{"format":7}}"#.into(), "__metadata__"),
        (
            format!(r#"{{"t":{0},"t":{0}}}"#, entry("I8", json!([0]), 0, 0)),
            "t twice",
        ),
        ("[]".into(), "header"),
        ("".into(), "header"),
        ("[".repeat(100_000), "header"),
        (format!("{{\"{}\":1}}", "x".repeat(100_000)), "header"),
        ("{\"a\\nb\\u001b[31m\":1}".into(), "\\n"),
    ];
    for (header, word) in cases {
        let bytes = with_header(&header);
        let message = says(read(&bytes), &["a.safetensors", word]);
        assert!(!message.contains(char::is_control), "{message:?}");
    }
    for length in [0u64, 1, 100_000_001, u64::MAX - 8, u64::MAX] {
        let mut bytes = length.to_le_bytes().to_vec();
        bytes.extend([b'{'; 64]);
        says(read(&bytes), &["header"]);
    }
}

#[test]
fn every_missing_tensor_is_named() {
    // A model may lack the second scale of the conv's output.
    let optional = |name: &String| name.ends_with("x_proj_input_max");
    for name in parse(&file()).0.into_keys().filter(|name| !optional(name)) {
        says(edited(|t, _| drop(t.remove(&name))), &[&name, "no tensor"]);
    }
}

#[test]
fn every_wrong_shape_and_type_is_named() {
    for (name, raw) in parse(&file()).0 {
        let shape = edited(|t, _| t.get_mut(&name).unwrap().shape.push(1));
        says(shape, &[&name, "shape ["]);
        let other = match raw.dtype {
            Dtype::F32 => Dtype::I32,
            Dtype::F16 => Dtype::BF16,
            // U8 would be a weight in four bits.
            _ => Dtype::BOOL,
        };
        let result = edited(|t, _| t.get_mut(&name).unwrap().dtype = other);
        says(result, &[&name, "dtype", &format!("{other:?}")]);
    }
}

#[test]
fn every_bad_scale_is_named() {
    let names = parse(&file()).0.into_keys();
    let names: Vec<String> = names.filter(|n| n.contains("scale")).collect();
    assert_eq!(names.len(), 2 * (9 + 8));
    for name in names {
        for bad in [-1.0, 0.0, -0.0, f32::NAN, f32::INFINITY, 1e-40] {
            let result = edited(|t, _| {
                t.insert(name.clone(), Raw::f32(&[1], &[bad]));
            });
            says(result, &[&name, "positive, finite, normal"]);
        }
    }
}

#[test]
fn floats_must_be_finite() {
    for name in [
        "embeddings.weight",
        "lm_head.weight",
        "norm_f.weight",
        "layers.1.norm.weight",
    ] {
        let result = edited(|t, _| {
            let raw = t.get_mut(name).unwrap();
            let last = raw.data.len() - 2;
            raw.data[last..].copy_from_slice(&f16::NAN.to_le_bytes());
        });
        says(result, &[name, "63]", "finite", "NaN"]);
    }
}

#[test]
fn metadata_is_checked() {
    says(
        edited(|_, m| drop(m.remove("config"))),
        &["metadata config"],
    );
    says(
        edited(|_, m| drop(m.remove("format"))),
        &["metadata format"],
    );
    let format = |_: &mut Tensors, m: &mut HashMap<String, String>| {
        m.insert("format".into(), "int4".into());
    };
    says(edited(format), &["metadata format", "int8-mamba", "int4"]);
    for config in ["", "{}", r#"{"model_type":"mamba","vocab_size":1e9}"#] {
        let result = edited(|_, m| drop(m.insert("config".into(), config.into())));
        says(result, &["a.safetensors"]);
    }
    // A vocabulary the file does not hold.
    let result = edited(|_, m| {
        let config = m["config"].replace("\"vocab_size\":256", "\"vocab_size\":16777216");
        m.insert("config".into(), config);
    });
    says(
        result,
        &["embeddings.weight", "[16777216, 64]", "[256, 64]"],
    );
    let extra = edited(|t, _| {
        t.insert(
            "layers.2.norm.weight".into(),
            Raw::f16(&[64], &[f16::ONE; 64]),
        );
    });
    says(extra, &["layers.2.norm.weight", "unexpected"]);
}
