//! Models as files: a quantized one, a folder of Quamba's, damaged ones, a tokenizer that is another model's.

use crate::common::{self, arg, checkpoint, flowing, json, refusal, scales, stdout};
use scalescope_sim::checkpoint::load::{Loaded, load};
use std::fs;
use std::path::Path;

const TEXT: &str = "It was late in the evening when the old captain came home from the harbour.";

#[test]
fn a_quantized_file_runs_like_the_built_in_model() {
    let dir = tempfile::tempdir().unwrap();
    let from = checkpoint(dir.path());
    let file = dir.path().join("checkpoint/q.safetensors");
    stdout(&[
        "quantize",
        arg(&from),
        "--recipe",
        "golden",
        "-o",
        arg(&file),
        "--scales",
        arg(&scales()),
    ]);
    let args = ["--mode", "2-4", "--text", TEXT, "--json"];
    let own = json(&[&["run", "--model", arg(&file)][..], &args].concat());
    let built_in = json(&[&["run"][..], &args].concat());
    assert_eq!(own["sequences"], built_in["sequences"]);
    let line = refusal(&["run", "--model", arg(&file), "--mode", "1", "--text", TEXT]);
    assert!(line.contains("float"), "{line}");
    let float = json(&[
        "run",
        "--model",
        arg(&file),
        "--float",
        arg(&from),
        "--recipe",
        "golden",
        "--mode",
        "1",
        "--text",
        TEXT,
        "--json",
    ]);
    let built_in = json(&["run", "--mode", "1", "--text", TEXT, "--json"]);
    assert_eq!(float["sequences"], built_in["sequences"]);
}

/// A folder as Quamba writes it, with INT8 ends: written, looked at, run like the file of the same model.
#[test]
fn a_folder_of_quambas_runs_like_the_file_of_the_same_model() {
    let dir = tempfile::tempdir().unwrap();
    let from = checkpoint(dir.path());
    let (file, folder) = (dir.path().join("q.safetensors"), dir.path().join("quamba"));
    for (to, format, ends) in [(&file, "safetensors", "int8"), (&folder, "quamba", "int8")] {
        stdout(&[
            "quantize",
            arg(&from),
            "-o",
            arg(to),
            "--format",
            format,
            "--ends",
            ends,
            "--head-scale",
            "0.0473",
            "--scales",
            arg(&scales()),
        ]);
    }
    let info = json(&["info", arg(&folder), "--json"]);
    assert_eq!(info["kind"], "W8A8 model (Quamba)");
    assert_eq!(info["entries"].as_array().unwrap().len(), 452);
    assert!(info["refusal"].is_null() && info["notes"].as_array().unwrap().is_empty());
    let text = flowing(&stdout(&["info", arg(&folder)]));
    assert!(
        text.contains("12 blocks") && text.contains("[1, 192]"),
        "{text}"
    );
    // Scales of a folder, and that of its head.
    let again = dir.path().join("again.safetensors");
    stdout(&[
        "quantize",
        arg(&from),
        "-o",
        arg(&again),
        "--ends",
        "int8",
        "--scales",
        arg(&folder),
    ]);
    // A folder of Quamba's has no second scale of the conv's output.
    let seven = |path: &Path| match load(path).unwrap() {
        Loaded::Quantized(mut model) => {
            for layer in &mut model.layers {
                layer.scales = layer.scales.with_max(None);
            }
            model
        }
        Loaded::Float(_) => panic!("a quantized model"),
    };
    assert!(seven(&again) == seven(&file));

    let tokenizer = from.join("tokenizer.json");
    let run = |model: &Path| {
        json(&[
            "run",
            "--model",
            arg(model),
            "--tokenizer",
            arg(&tokenizer),
            "--mode",
            "0",
            "--text",
            TEXT,
            "--generate",
            "3",
            "--json",
        ])["sequences"]
            .clone()
    };
    assert_eq!(run(&folder), run(&file));
    assert_ne!(
        run(&folder),
        json(&[
            "run",
            "--mode",
            "0",
            "--text",
            TEXT,
            "--generate",
            "3",
            "--json"
        ])["sequences"]
    );
    // Without a tokenizer it can be opened and not be asked with text.
    let line = refusal(&[
        "run",
        "--model",
        arg(&folder),
        "--mode",
        "0",
        "--text",
        TEXT,
    ]);
    assert!(line.contains("tokenizer.json"), "{line}");
    // It is no float model.
    let line = refusal(&[
        "quantize",
        arg(&folder),
        "-o",
        arg(&again),
        "--scales",
        arg(&scales()),
    ]);
    assert!(line.contains("quantized already"), "{line}");
    // What the weights are wins over what the configuration says, not in silence.
    let config = folder.join("config.json");
    let said = fs::read_to_string(&config).unwrap();
    fs::write(&config, said.replace("W8O16Embedding", "Embedding")).unwrap();
    let args = [
        "run",
        "--model",
        arg(&folder),
        "--mode",
        "0",
        "--text",
        TEXT,
    ];
    let out = common::run(&[&args[..], &["--tokenizer", arg(&tokenizer)]].concat());
    let noted = String::from_utf8_lossy(&out.stderr);
    assert!(
        noted.contains("embedding_cfg.layer is Embedding, the weights are INT8"),
        "{noted}"
    );
    assert_eq!(out.status.code(), Some(0));
    fs::write(
        folder.join("pytorch_model.bin"),
        b"\x80\x02\x8a\x0al\xfc\x9cF\xf9 j\xa8P\x19.",
    )
    .unwrap();
    let line = refusal(&[
        "run",
        "--model",
        arg(&folder),
        "--mode",
        "0",
        "--text",
        TEXT,
    ]);
    assert!(line.contains("before torch 1.6"), "{line}");
}

#[test]
fn damaged_models_are_refused_and_nothing_is_left_behind() {
    let dir = tempfile::tempdir().unwrap();
    let from = checkpoint(dir.path());
    let weights = from.join("model.safetensors");
    let whole = fs::read(&weights).unwrap();
    let out = dir.path().join("q.safetensors");
    for length in [0, 4, 100, 20_000, whole.len() - 1] {
        fs::write(&weights, &whole[..length]).unwrap();
        let line = refusal(&[
            "quantize",
            arg(&from),
            "-o",
            arg(&out),
            "--scales",
            arg(&scales()),
        ]);
        assert!(line.contains("model.safetensors"), "{line}");
    }
    let mut damaged = whole.clone();
    let nan = [0x00, 0x7e];
    let at = damaged.len() - 2;
    damaged[at..].copy_from_slice(&nan);
    fs::write(&weights, &damaged).unwrap();
    let line = refusal(&[
        "quantize",
        arg(&from),
        "-o",
        arg(&out),
        "--scales",
        arg(&scales()),
    ]);
    assert!(
        line.contains("model.safetensors") && line.contains("finite"),
        "{line}"
    );
    fs::write(&weights, &whole).unwrap();
    let bad = dir.path().join("scales.json");
    for (from_text, to_text) in [("0.", "-0."), ("in_proj_input", "in_proj_inptu")] {
        let text = fs::read_to_string(scales())
            .unwrap()
            .replacen(from_text, to_text, 1);
        fs::write(&bad, text).unwrap();
        let line = refusal(&[
            "quantize",
            arg(&from),
            "-o",
            arg(&out),
            "--scales",
            arg(&bad),
        ]);
        assert!(line.contains("scales.json"), "{line}");
    }
    let left: Vec<_> = fs::read_dir(dir.path())
        .unwrap()
        .map(|e| e.unwrap().file_name())
        .collect();
    assert_eq!(left.len(), 2, "{left:?}");
    let line = refusal(&[
        "quantize",
        arg(&from),
        "-o",
        "no/such/q.safetensors",
        "--scales",
        arg(&scales()),
    ]);
    assert!(line.contains("no/such"), "{line}");
}

#[test]
fn a_tokenizer_of_another_model_is_named() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("tokenizer.json");
    fs::write(&file, scalescope_sim::sample::tokenizer_json()).unwrap();
    // The shape `tiny` has 256 tokens.
    let out = common::run(&[
        "run",
        "--synthetic",
        "tiny",
        "--tokenizer",
        arg(&file),
        "--text",
        "It was a dark",
    ]);
    assert_eq!(out.status.code(), Some(2));
    let said = String::from_utf8_lossy(&out.stderr).into_owned();
    assert!(said.contains("tokenizer.json"), "{said}");
    assert!(said.contains("tokens below 256"), "{said}");
}
