//! The simulator against a twin that shares no code with it: the blocks of mode 0 in profile `exact`,
//! written in numpy from the documents (`tests/twin/blocks.py`). Needs Python with numpy, and so runs
//! on request: `cargo test --test all twin -- --ignored`; `SCALESCOPE_PYTHON` names another python3.

use crate::common::{arg, checkpoint, scales, stdout};
use ndarray::{ArrayD, IxDyn};
use scalescope_golden::npz::{Array, Compression, read_npz, write_npy, write_npz};
use std::path::Path;
use std::process::Command;

/// What the twin says of a trace of the model, and its exit code.
fn twin(model: &Path, trace: &Path) -> (String, Option<i32>) {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let python = std::env::var_os("SCALESCOPE_PYTHON").unwrap_or("python3".into());
    let out = Command::new(&python)
        .arg(root.join("tests/twin/blocks.py"))
        .args([model, trace])
        .arg(root.join("golden/data/ops/hadamard_quant.npz"))
        .output()
        .unwrap_or_else(|e| panic!("not run: {python:?}: {e}"));
    let error = String::from_utf8_lossy(&out.stderr);
    assert!(error.is_empty(), "not run to its end: {error}");
    let text = String::from_utf8(out.stdout).unwrap();
    (text, out.status.code())
}

#[test]
#[ignore = "needs Python with numpy; SCALESCOPE_PYTHON=python3 cargo test --test all twin -- --ignored"]
fn every_block_has_the_bits_of_the_twin() {
    // 12 blocks of 14 tensors and the stream after the last.
    agree("f16", 7_649_712);
    // And the norm and the logits after it.
    agree("int8", 7_649_712 + 171 * (192 + 8192));
}

fn agree(ends: &str, compared: usize) {
    let dir = tempfile::tempdir().unwrap();
    let path = |name: &str| dir.path().join(name);
    let (model, tokens, trace) = (path("q.safetensors"), path("tokens.npy"), path("trace.npz"));
    let original = checkpoint(dir.path());
    let scales = scales();
    stdout(&[
        "quantize",
        arg(&original),
        "--scales",
        arg(&scales),
        "--ends",
        ends,
        "--head-scale",
        "0.0473",
        "-o",
        arg(&model),
    ]);
    let ids: Vec<i32> = (0..171i32)
        .map(|t| (97 * t * t + 13 * t + 5) % 8192)
        .collect();
    let ids = ArrayD::from_shape_vec(IxDyn(&[1, ids.len()]), ids).unwrap();
    write_npy(&tokens, &Array::I32(ids)).unwrap();
    stdout(&[
        "run",
        "--model",
        arg(&model),
        "--mode",
        "0",
        "--profile",
        "exact",
        "--tokens",
        arg(&tokens),
        "--trace",
        arg(&trace),
    ]);
    let (text, code) = twin(&model, &trace);
    println!("{text}");
    assert_eq!(code, Some(0), "{text}");
    assert_eq!(text, format!("compared {compared}, different 0\n"));

    // One code of one tensor changed: found, and nothing else.
    let mut arrays = read_npz(&trace).unwrap();
    let Some(Array::I8(codes)) = arrays.get_mut("layer_05/dt_proj_out") else {
        panic!("the trace holds dt_proj_out");
    };
    codes[[0, 3, 7]] ^= 1;
    write_npz(
        &trace,
        arrays.iter().map(|(k, v)| (k.as_str(), v)),
        Compression::Stored,
    )
    .unwrap();
    let (text, code) = twin(&model, &trace);
    assert_eq!(code, Some(1), "{text}");
    assert!(
        text.starts_with("layer_05/dt_proj_out: 1 of 65664 differ, first at [3, 7]"),
        "{text}"
    );
}
