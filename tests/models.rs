//! What belongs to a model: its scales, its float checkpoint, the precision of its weights. Nothing of another
//! model passes, nothing that is given is left aside, nothing is rounded in silence.

use crate::common::{arg, checkpoint, refusal, run, scales, stdout};
use std::fs;
use std::path::Path;

/// A run of mode 0 with scales of a file: its result and what it said of them.
fn with_scales(model: &Path, scales: &Path) -> (String, String) {
    let args = [
        "run",
        "--model",
        arg(model),
        "--scales",
        arg(scales),
        "--text",
        "It was",
        "--json",
    ];
    let out = run(&args);
    let error = String::from_utf8(out.stderr).unwrap();
    assert_eq!(out.status.code(), Some(0), "{error}");
    (String::from_utf8(out.stdout).unwrap(), error)
}

#[test]
fn scales_know_their_model() {
    let dir = tempfile::tempdir().unwrap();
    let (model, file) = (checkpoint(dir.path()), dir.path().join("s.json"));
    // A file that names no model is used, and that is said, with what it would have to name.
    let plain = fs::read_to_string(scales()).unwrap();
    fs::write(&file, &plain).unwrap();
    let (want, said) = with_scales(&model, &file);
    assert!(
        said.contains("names no model, so its scales were not compared"),
        "{said}"
    );
    let digest = said
        .split("\"model\": \"")
        .nth(1)
        .unwrap()
        .split('"')
        .next()
        .unwrap();
    assert_eq!(digest.len(), 64);
    let named = |digest: &str| plain.replacen('{', &format!("{{\"model\": \"{digest}\", "), 1);
    fs::write(&file, named(digest)).unwrap();
    assert_eq!(with_scales(&model, &file), (want.clone(), String::new()));
    // The quantized model has the same digest and scales.
    let q = dir.path().join("q.safetensors");
    stdout(&[
        "quantize",
        arg(&model),
        "-o",
        arg(&q),
        "--scales",
        arg(&file),
    ]);
    assert_eq!(with_scales(&model, &q), (want, String::new()));
    // One bit of a weight makes another model.
    let weights = model.join("model.safetensors");
    let mut bytes = fs::read(&weights).unwrap();
    let last = bytes.len() - 2;
    bytes[last] ^= 1;
    fs::write(&weights, bytes).unwrap();
    for scales in [&file, &q] {
        let args = [
            "run",
            "--model",
            arg(&model),
            "--scales",
            arg(scales),
            "--text",
            "It",
        ];
        let line = refusal(&args);
        assert!(
            line.contains("expected the one its scales are of, of sha256"),
            "{line}"
        );
        assert!(line.contains(arg(scales)), "{line}");
    }
}

#[test]
fn parts_of_a_model_that_are_not_read_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    let (model, q) = (checkpoint(dir.path()), dir.path().join("q.safetensors"));
    let scales = scales();
    stdout(&[
        "quantize",
        arg(&model),
        "-o",
        arg(&q),
        "--scales",
        arg(&scales),
    ]);
    let run = ["run", "--text", "It", "--model"];
    let line = refusal(&[&run[..], &[arg(&q), "--scales", arg(&scales)]].concat());
    assert!(
        line.contains("--scales: expected a float --model beside it, found a quantized one"),
        "{line}"
    );
    let line = refusal(&[&run[..], &[arg(&model), "--float", arg(&model)]].concat());
    assert!(
        line.contains("--float: expected a quantized --model beside it, found a float one"),
        "{line}"
    );
}

/// f32 weights that binary16 does not hold are counted wherever they are rounded, and only there.
#[test]
fn rounded_weights_are_counted() {
    let dir = tempfile::tempdir().unwrap();
    let (model, scales) = (checkpoint(dir.path()), scales());
    let file = model.join("model.safetensors");
    let said = |mode: &str| {
        let args = [
            "run",
            "--model",
            arg(&model),
            "--mode",
            mode,
            "--text",
            "It",
            "--scales",
            arg(&scales),
        ];
        let out = run(&args);
        let error = String::from_utf8(out.stderr).unwrap();
        assert_eq!(out.status.code(), Some(0), "{error}");
        error
    };
    let plain = fs::read(&file).unwrap();
    for off in [0, 3] {
        fs::write(&file, in_f32(&plain, "backbone.norm_f.weight", off)).unwrap();
        let count = "3 of 192 weights are rounded to binary16, by ";
        assert_eq!(said("1").contains(count), off > 0);
        if off == 0 {
            continue;
        }
        assert!(!said("original").contains("rounded"));
        let q = dir.path().join("q.safetensors");
        let out = run(&[
            "quantize",
            arg(&model),
            "-o",
            arg(&q),
            "--scales",
            arg(&scales),
        ]);
        assert!(String::from_utf8(out.stderr).unwrap().contains(count));
    }
}

/// A safetensors file with its last tensor, of binary16, in f32; the first `off` values a little off.
fn in_f32(bytes: &[u8], name: &str, off: usize) -> Vec<u8> {
    let length = u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize;
    let (header, data) = bytes[8..].split_at(length);
    let mut header: serde_json::Value = serde_json::from_slice(header).unwrap();
    let tensor = &mut header[name];
    let start = tensor["data_offsets"][0].as_u64().unwrap() as usize;
    assert_eq!(tensor["data_offsets"][1], data.len());
    let half = data[start..].chunks_exact(2);
    let half = half.map(|b| half::f16::from_le_bytes([b[0], b[1]]).to_f32());
    let wide: Vec<u8> = (half.enumerate())
        .flat_map(|(i, v)| f32::from_bits(v.to_bits() ^ u32::from(i < off)).to_le_bytes())
        .collect();
    tensor["dtype"] = "F32".into();
    tensor["data_offsets"] = serde_json::json!([start, start + wide.len()]);
    let header = serde_json::to_vec(&header).unwrap();
    let length = (header.len() as u64).to_le_bytes();
    [&length[..], &header, &data[..start], &wide].concat()
}
