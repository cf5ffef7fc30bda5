//! `faults`, `--fault`, `attribute`, `recommend`, run as a user runs them.

use crate::common::{arg, edited, flowing, json, refusal, run, stdout};
use ndarray::{ArrayD, Axis};
use scalescope_golden::npz::{Array, Compression, NpzReader, NpzWriter};
use scalescope_sim::fault::FAULTS;
use std::path::{Path, PathBuf};

const TEXT: &str = "The old captain looked at the sea, and then he looked at the boy.";
const FAULT: &str = "stale-scale@site=x_proj_input,layer=3,factor=1.7";

#[test]
fn faults_are_listed() {
    let text = stdout(&["faults"]);
    let listed = json(&["faults", "--json"]);
    for (i, fault) in FAULTS.iter().enumerate() {
        assert!(text.contains(fault.example));
        assert_eq!(listed[i]["name"], fault.name);
    }
    let error = refusal(&["run", "--text", TEXT, "--fault", "rust@layer=1"]);
    assert!(error.contains("stale-scale"), "{error}");
    let error = refusal(&["run", "--text", TEXT, "--mode", "1", "--fault", FAULT]);
    assert!(error.contains("mode 1"), "{error}");
}

/// A device's rules in every block are said once, with the command that reads them; `check --explain` says the
/// same in the same words.
#[test]
fn a_device_is_said_once() {
    let dir = tempfile::tempdir().unwrap();
    let (device, dump) = (dir.path().join("device.toml"), dir.path().join("dump.npz"));
    let rules = "version = 1\nextends = \"exact\"\n[quantizer]\nrounding = \"floor\"\n[requant]\nrounding = \"toward-zero\"\n";
    std::fs::write(&device, rules).unwrap();
    let made = [
        "run", "--mode", "0", "--text", "abcdefgh", "--layers", "0,1,2",
    ];
    stdout(
        &[
            &made[..],
            &["--profile", arg(&device), "--trace", arg(&dump)],
        ]
        .concat(),
    );
    let asked = ["--mode", "0", "--profile", "exact"];
    let out = run(&[&["attribute", "--dump", arg(&dump)], &asked[..]].concat());
    let text = String::from_utf8(out.stdout).unwrap();
    let begins = |word: &str| text.lines().filter(|l| l.starts_with(word)).count();
    assert_eq!((begins("warning"), begins("error")), (1, 0), "{text}");
    let flowed = flowing(&text);
    assert!(
        flowed.contains("warning device: every block, all"),
        "{text}"
    );
    assert!(
        flowed.contains("next: scalescope identify --mode 0 --dump"),
        "{text}"
    );
    let out = run(&[&["check", "--explain", "--golden", arg(&dump)], &asked[..]].concat());
    let checked = flowing(&String::from_utf8(out.stdout).unwrap());
    let device = flowed.split("warning device").nth(1).unwrap();
    let device = device.split("next: scalescope").next().unwrap();
    assert!(checked.contains(device.trim()), "{checked}");
}

#[test]
fn a_dump_is_diagnosed_without_its_metadata() {
    let dir = tempfile::tempdir().unwrap();
    let dump = dir.path().join("dump.npz");
    let made = [
        "run",
        "--mode",
        "2-4",
        "--text",
        TEXT,
        "--fault",
        FAULT,
        "--trace",
        arg(&dump),
    ];
    stdout(&made);
    // Metadata that names another fault, and scales that lie, change nothing.
    let lying = dir.path().join("lying.npz");
    let mut from = NpzReader::open(&dump).unwrap();
    let mut to = NpzWriter::create(&lying, Compression::Stored).unwrap();
    for name in from.names().map(str::to_owned).collect::<Vec<_>>() {
        match name.as_str() {
            "meta" => {}
            name if name.starts_with("scale/") => {}
            name => to.add(name, &from.read(name).unwrap()).unwrap(),
        }
    }
    let meta = br#"{"mode":"0","profile":"deployed","faults":["swapped-bc@layer=1"]}"#;
    let meta = Array::U8(ndarray::Array1::from(meta.to_vec()).into_dyn());
    to.add("meta", &meta).unwrap();
    to.finish().unwrap();
    let mut answers = Vec::new();
    for file in [&dump, &lying] {
        let out = run(&["attribute", "--mode", "2-4", "--trace", arg(file), "--json"]);
        assert_eq!(out.status.code(), Some(1));
        let answer: serde_json::Value = serde_json::from_slice(&out.stdout).unwrap();
        let first = &answer["findings"][0];
        assert_eq!(first["kind"], "stale-scale");
        assert_eq!(first["layer"], 3);
        assert_eq!(first["site"], "x_proj_input");
        assert_eq!(first["severity"], "error");
        assert!(first["share"].as_f64().unwrap() > 0.99);
        answers.push(answer["findings"].clone());
    }
    assert_eq!(answers[0], answers[1]);
    let clean = dir.path().join("clean.npz");
    stdout(&[
        "run",
        "--mode",
        "2-4",
        "--text",
        TEXT,
        "--trace",
        arg(&clean),
    ]);
    let answer = json(&[
        "attribute",
        "--mode",
        "2-4",
        "--trace",
        arg(&clean),
        "--json",
    ]);
    assert_eq!(answer["findings"][0]["kind"], "none");
    assert_eq!(answer["mismatched"], 0);
    // Of another mode: the one that it is of is named, and found without being named.
    let out = run(&["attribute", "--mode", "0", "--dump", arg(&clean)]);
    assert_eq!(out.status.code(), Some(1));
    let said = flowing(&String::from_utf8_lossy(&out.stdout));
    assert!(
        said.contains("not a dump of mode 0")
            && said.contains("one of mode 2-4: no element differs"),
        "{said}"
    );
    let answer = json(&["attribute", "--dump", arg(&clean), "--json"]);
    assert_eq!(
        (&answer["mode"], &answer["mismatched"]),
        (&"2-4".into(), &0.into())
    );
    assert_eq!(answer["recognised"]["mode"], "2-4");
}

/// A clean dump of mode 0.
fn clean_dump(dir: &Path) -> PathBuf {
    let file = dir.join("golden.npz");
    stdout(&["run", "--mode", "0", "--text", TEXT, "--trace", arg(&file)]);
    file
}

#[test]
fn dumps_that_cannot_be_judged_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    let golden = clean_dump(dir.path());
    type Edit<'a> = &'a dyn Fn(&str, Array) -> Option<Array>;
    let refused = |name: &str, edit: Edit, parts: &[&str]| {
        let file = edited(&golden, name, edit);
        let line = refusal(&["attribute", "--mode", "0", "--trace", arg(&file)]);
        for part in [&[name], parts].concat() {
            assert!(line.contains(part), "{part}: {line}");
        }
    };
    const Y: &str = "layer_01/ssm_y";
    for (name, value) in [
        ("NaN", half::f16::NAN),
        ("inf", half::f16::INFINITY),
        ("-inf", half::f16::NEG_INFINITY),
    ] {
        let file = format!("{name}.npz");
        // It is a finding, with where it is first.
        let edit = |key: &str, array: Array| match array {
            Array::F16(mut a) if key == Y => {
                a[[0, 1, 2]] = value;
                Some(Array::F16(a))
            }
            other => Some(other),
        };
        let file = edited(&golden, &file, edit);
        let out = run(&["attribute", "--mode", "0", "--trace", arg(&file), "--json"]);
        assert_eq!(out.status.code(), Some(1));
        let answer: serde_json::Value = serde_json::from_slice(&out.stdout).unwrap();
        let first = &answer["findings"][0];
        assert_eq!(
            (&first["kind"], &first["layer"]),
            (&"not-finite".into(), &1.into())
        );
        let words = first["evidence"].as_str().unwrap();
        let place = format!(
            "{Y} has {name} where the model's own value is finite, first at sequence 0, token 1, channel 2"
        );
        assert!(words.starts_with(&place), "{words}");
    }
    let ids = |edit: fn(ArrayD<i32>) -> ArrayD<i32>| {
        move |key: &str, array: Array| match array {
            Array::I32(a) if key == "tokens" => Some(Array::I32(edit(a))),
            other => Some(other),
        }
    };
    let beyond = ids(|mut a| {
        a[[0, 3]] = 8192;
        a
    });
    refused("beyond.npz", &beyond, &["token 3", "8192"]);
    let shorter = ids(|a| a.slice_axis(Axis(1), (0..9).into()).to_owned());
    refused("shorter.npz", &shorter, &["9 rows", "tokens"]);
    let without_tokens = |key: &str, array: Array| (key != "tokens").then_some(array);
    refused("unknown.npz", &without_tokens, &["tokens", "no such key"]);
    let tokens_only = |key: &str, array: Array| (key == "tokens").then_some(array);
    refused("nothing.npz", &tokens_only, &["at least one tensor"]);
    // Nothing in it follows from anything else in it, by no mode.
    let alone =
        |key: &str, array: Array| (key == "tokens" || key == "layer_03/hidden_in").then_some(array);
    let file = edited(&golden, "alone.npz", alone);
    for command in [["attribute", "--dump"], ["check", "--golden"]] {
        let line = refusal(&[&command[..], &[arg(&file), "--mode", "auto"]].concat());
        for part in ["alone.npz", "--mode NAME", "layer_03/hidden_in alone"] {
            assert!(line.contains(part), "{part}: {line}");
        }
    }
    let narrow = |key: &str, array: Array| match array {
        Array::F16(a) if key == Y => Some(Array::F16(
            a.slice_axis(Axis(2), (0..100).into()).to_owned(),
        )),
        other => Some(other),
    };
    refused("narrow.npz", &narrow, &[Y, "384]", "100]"]);
    let foreign = |key: &str, array: Array| {
        (key == "tokens" || key.ends_with("/conv_out_f32")).then_some(array)
    };
    let said = {
        let of_float = dir.path().join("float.npz");
        stdout(&[
            "run",
            "--mode",
            "2-4",
            "--text",
            TEXT,
            "--trace",
            arg(&of_float),
        ]);
        let file = edited(&of_float, "foreign.npz", foreign);
        let out = run(&["attribute", "--mode", "0", "--dump", arg(&file)]);
        assert_eq!(out.status.code(), Some(1));
        String::from_utf8_lossy(&out.stdout).into_owned()
    };
    // Nothing in it is of mode 0.
    assert!(said.contains("not a dump of mode 0"), "{said}");
}

#[test]
fn a_dump_whose_axes_have_changed_places_is_named() {
    let dir = tempfile::tempdir().unwrap();
    let golden = clean_dump(dir.path());
    for (key, layer, site) in [
        ("layer_05/conv_out", 5, "conv_out"),
        ("layer_02/x_proj_out", 2, "x_proj_out"),
        ("layer_11/in_proj_out", 11, "in_proj_out"),
    ] {
        let file = edited(&golden, "turned.npz", |name, array| match array {
            Array::I8(mut a) if name == key => {
                a.swap_axes(1, 2);
                Some(Array::I8(a.as_standard_layout().into_owned()))
            }
            other => Some(other),
        });
        let out = run(&["attribute", "--mode", "0", "--trace", arg(&file), "--json"]);
        assert_eq!(out.status.code(), Some(1));
        let found: serde_json::Value = serde_json::from_slice(&out.stdout).unwrap();
        let first = &found["findings"][0];
        assert_eq!(first["kind"], "transposed");
        assert_eq!(
            (&first["layer"], &first["site"]),
            (&layer.into(), &site.into())
        );
        assert_eq!(first["share"], 1.0);
        let words = first["evidence"].as_str().unwrap();
        assert!(
            words.contains("axes swapped (in the dump alone)"),
            "{words}"
        );
    }
}

#[test]
fn sites_add_up_and_a_stale_scale_stands_out() {
    let fault = "stale-scale@site=dt_proj_output,layer=2,factor=6";
    let costs = |more: &[&str]| {
        let mut args = vec![
            "attribute",
            "--mode",
            "2-4",
            "--text",
            TEXT,
            "--stride",
            "1",
            "--json",
        ];
        args.extend(more);
        json(&args)
    };
    let clean = costs(&["--shapley", "2"]);
    let sites = clean["sites"].as_array().unwrap();
    // 8 activations, the f16 stream and 6 weights differ from float, in 12 blocks.
    assert_eq!(sites.len(), 12 * 14);
    let errors = |v: &serde_json::Value| {
        let findings = v["findings"].as_array().unwrap();
        findings.iter().filter(|f| f["severity"] == "error").count()
    };
    assert_eq!(errors(&clean), 0);
    let kl = clean["kl"].as_f64().unwrap();
    let shapley = |s: &serde_json::Value| s["shapley_kl"]["mean"].as_f64().unwrap();
    let total: f64 = sites.iter().map(shapley).sum();
    assert!((total / kl - 1.0).abs() < 0.01, "{total} of {kl}");
    assert!(clean["kl_without_sites"].as_f64().unwrap() < 0.01 * kl);
    let faulty = costs(&["--fault", fault]);
    assert!(faulty["kl"].as_f64() > clean["kl"].as_f64());
    let first = &faulty["sites"][0];
    assert_eq!(
        (first["layer"].as_u64(), first["site"].as_str()),
        (Some(2), Some("dt_proj_out"))
    );
    let first = &faulty["findings"][0];
    assert_eq!(
        (&first["kind"], &first["layer"], &first["severity"]),
        (&"stale-scale".into(), &2.into(), &"error".into())
    );
    assert_eq!(first["site"], "dt_proj_output");
}

#[test]
fn a_recommendation_undoes_a_bad_scale() {
    use scalescope_sim::checkpoint::quantized;
    let dir = tempfile::tempdir().unwrap();
    let mut model = scalescope_sim::sample::model()
        .quantized
        .as_deref()
        .unwrap()
        .clone();
    let scale = &mut model.layers[5].scales.out_proj_input;
    *scale = scale.times(8.0).unwrap();
    let bad = dir.path().join("bad.safetensors");
    quantized::write(&bad, &model).unwrap();
    let checkpoint = crate::common::checkpoint(dir.path());
    let text = dir.path().join("two.jsonl");
    let line = serde_json::json!({"text": TEXT}).to_string();
    std::fs::write(&text, format!("{line}\n{line}\n")).unwrap();
    let found = json(&[
        "recommend",
        "--mode",
        "0",
        "--model",
        arg(&bad),
        "--float",
        arg(&checkpoint),
        "--file",
        arg(&text),
        "--length",
        "16",
        "--stride",
        "1",
        "--json",
    ]);
    // Halving the scale of block 5 alone, or of every block with it.
    for i in 0..2 {
        let one = &found["helpful"][i];
        assert!(one["layer"] == 5 || one["layer"].is_null(), "{one}");
        assert_eq!(one["site"], "out_proj_input");
        assert_eq!(one["factor"], 0.5);
        assert!(one["kl_interval"][0].as_f64().unwrap() > 0.0);
    }
    let error = refusal(&["recommend", "--text", TEXT]);
    assert!(error.contains("two sequences"), "{error}");
}

/// One text, one profile, every position: one KL, by whichever command.
#[test]
fn a_mode_has_one_kl() {
    let text = ["--length", "24", "--limit", "2", "--json"];
    let of = |command: &[&str]| json(&[command, &text].concat());
    let report = of(&["report", "--modes", "0,2-4"]);
    let attribute = of(&["attribute", "--mode", "2-4", "--every", "1"]);
    let sweep = of(&[
        "sweep",
        "--mode",
        "2-4",
        "--profile",
        "exact",
        "--vary",
        "scan.state=f32",
    ]);
    let shown = report["modes"].as_array().unwrap();
    let shown = shown.iter().find(|mode| mode["mode"] == "2-4").unwrap();
    let kl = shown["kl"].as_f64().unwrap();
    let same = |other: &serde_json::Value| {
        let other = other.as_f64().unwrap();
        assert!((other - kl).abs() < 1e-9 * kl, "{other} {kl}");
    };
    assert!(kl > 0.0);
    same(&attribute["kl"]);
    same(&sweep["designs"][0]["kl"]);
    // `recommend` measures every second sequence.
    let dir = tempfile::tempdir().unwrap();
    let (both, second) = (
        dir.path().join("both.jsonl"),
        dir.path().join("second.jsonl"),
    );
    let rows = [
        TEXT,
        "The captain looked at the sea, and did not like what he saw there.",
    ]
    .map(|text| serde_json::json!({ "text": text }).to_string() + "\n");
    std::fs::write(&both, rows.concat()).unwrap();
    std::fs::write(&second, &rows[1]).unwrap();
    let of = |command: &str, file: &Path| {
        let file = ["--file", arg(file), "--length", "12"];
        json(
            &[
                &[command, "--mode", "2-4", "--every", "1", "--json"],
                &file[..],
            ]
            .concat(),
        )
    };
    let (recommend, attribute) = (of("recommend", &both), of("attribute", &second));
    let (kl, own) = (&attribute["kl"], &recommend["kl"]);
    assert!(kl.as_f64().unwrap() > 0.0 && kl == own, "{kl} {own}");
    // `eval` measures target tokens, and says so beside profile and reference.
    let eval = [
        "eval",
        "--file",
        arg(&both),
        "--task",
        "perplexity",
        "--modes",
        "0,1",
    ];
    let said = stdout(&eval);
    assert!(
        said.contains("profile exact: 2 windows of text, every token"),
        "{said}"
    );
    assert!(
        said.contains("KL, agreement: of the target tokens, against mode 1"),
        "{said}"
    );
}

/// A chip's dump is recognised in the chip's profile, though nothing names it.
#[test]
fn a_chips_dump_is_recognised_in_its_profile() {
    let dir = tempfile::tempdir().unwrap();
    let dump = dir.path().join("dump.npz");
    let made = [
        "run",
        "--mode",
        "2-4",
        "--profile",
        "asic-int8",
        "--text",
        TEXT,
    ];
    stdout(&[&made[..], &["--layers", "0,1,2", "--trace", arg(&dump)]].concat());
    let found = json(&["attribute", "--dump", arg(&dump), "--json"]);
    let told = &found["recognised"];
    assert_eq!(
        (&told["mode"], &told["profile"]),
        (&"2-4".into(), &"asic-int8".into())
    );
    assert_eq!(told["differs"], 0.0, "{told}");
}
