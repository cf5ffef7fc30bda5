//! The commands as a user meets them: what they print, what they write, how they refuse.

use crate::common::{arg, json, refusal, scalescope, stdout};
use ndarray::Array;
use scalescope_golden::npz::{Array as NpyArray, read_npz, write_npy};
use scalescope_sim::mode::MODES;
use std::fs;
use std::path::Path;

const TEXT: &str = "It was late in the evening when the old captain came home from the harbour.";

#[test]
fn help_explains_itself_with_examples() {
    for args in [
        vec!["--help"],
        vec!["report", "--help"],
        vec!["run", "--help"],
    ] {
        let text = stdout(&args);
        assert!(text.contains("Examples:"), "{args:?}");
        assert!(text.contains("scalescope run") || text.contains("scalescope report"));
    }
}

#[test]
fn modes_lists_the_table() {
    let rows = json(&["modes", "--json"]);
    let names: Vec<&str> = rows
        .as_array()
        .unwrap()
        .iter()
        .map(|r| r["name"].as_str().unwrap())
        .collect();
    assert_eq!(
        names,
        [
            "0", "1", "2-0", "2-1", "2-2", "2-3", "2-4", "3", "3-f16", "3-grid", "4", "5-0", "5-1",
            "5-2", "5-3", "5-4", "5-6", "5-7", "6-0", "6-1", "6-2", "6-3", "6-4"
        ]
    );
    assert_eq!(rows[7]["conv_in"], "dynamic-tensor");
    assert_eq!(rows[13]["u_quantizer"], "keep");
    let text = stdout(&["modes"]);
    assert!(text.contains("conv_out") && text.contains("3-grid"));
}

#[test]
fn a_mode_from_a_file_works_like_a_built_in_one() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("mine.toml");
    fs::write(
        &file,
        "[mode.\"2-4t\"]\nbase = \"2-4\"\nconv_in = \"dynamic-token\"\n",
    )
    .unwrap();
    let out = json(&[
        "run",
        "--modes-file",
        arg(&file),
        "--mode",
        "2-4t",
        "--text",
        TEXT,
        "--json",
    ]);
    assert_eq!(out["mode"], "2-4t");
    fs::write(&file, "[mode.x]\nbase = \"0\"\nconv_in = \"dynmic\"\n").unwrap();
    let line = refusal(&[
        "run",
        "--modes-file",
        arg(&file),
        "--mode",
        "x",
        "--text",
        TEXT,
    ]);
    assert!(
        line.contains("mine.toml") && line.contains("dynmic"),
        "{line}"
    );
}

#[test]
fn run_predicts_and_generates() {
    let out = json(&[
        "run",
        "--mode",
        "2-1",
        "--text",
        TEXT,
        "--generate",
        "5",
        "--json",
    ]);
    let sequence = &out["sequences"][0];
    assert_eq!(sequence["generated"].as_array().unwrap().len(), 5);
    assert!(sequence["perplexity"].as_f64().unwrap() < 500.0);
    let p: f64 = sequence["next"]
        .as_array()
        .unwrap()
        .iter()
        .map(|c| c["probability"].as_f64().unwrap())
        .sum();
    assert!(p > 0.0 && p <= 1.0 + 1e-9);
    assert!(out["quantizers"]["conv_out"]["values"].as_u64().unwrap() > 0);
}

#[test]
fn a_trace_holds_what_was_asked_for_and_is_the_same_for_any_thread_count() {
    let dir = tempfile::tempdir().unwrap();
    let mut files = Vec::new();
    for threads in ["1", "2", "5"] {
        let file = dir.path().join(format!("t{threads}.npz"));
        stdout(&[
            "run",
            "--mode",
            "0",
            "--profile",
            "deployed",
            "--text",
            TEXT,
            "--trace",
            arg(&file),
            "--layers",
            "0,3",
            "--points",
            "conv_out,ssm_y,logits",
            "--threads",
            threads,
        ]);
        files.push(fs::read(&file).unwrap());
    }
    assert!(files.windows(2).all(|w| w[0] == w[1]));
    let arrays = read_npz(dir.path().join("t1.npz")).unwrap();
    let keys: Vec<&str> = arrays
        .keys()
        .map(String::as_str)
        .filter(|k| !k.starts_with("scale/") && *k != "meta")
        .collect();
    assert_eq!(
        keys,
        [
            "final/logits",
            "layer_00/conv_out",
            "layer_00/ssm_y",
            "layer_03/conv_out",
            "layer_03/ssm_y",
            "tokens"
        ]
    );
    assert_eq!(arrays["layer_00/conv_out"].shape()[2], 384);
}

#[test]
fn sequences_do_not_depend_on_their_batch() {
    let dir = tempfile::tempdir().unwrap();
    let ids = |rows: &[[u16; 6]]| -> NpyArray {
        let flat: Vec<u16> = rows.iter().flatten().copied().collect();
        NpyArray::U16(Array::from_shape_vec(vec![rows.len(), 6], flat).unwrap())
    };
    let rows = [
        [46, 37, 55, 1238, 47, 50],
        [898, 294, 2365, 339, 262, 7],
        [1, 2, 3, 4, 5, 6],
    ];
    let trace = |name: &str, rows: &[[u16; 6]], mode: &str| {
        let npy = dir.path().join(format!("{name}.npy"));
        let npz = dir.path().join(format!("{name}.npz"));
        write_npy(&npy, &ids(rows)).unwrap();
        stdout(&[
            "run",
            "--mode",
            mode,
            "--tokens",
            arg(&npy),
            "--trace",
            arg(&npz),
            "--points",
            "ssm_y,logits",
        ]);
        read_npz(npz).unwrap()
    };
    for mode in ["0", "1", "3"] {
        let all = trace("all", &rows, mode);
        for (i, row) in rows.iter().enumerate() {
            let one = trace("one", &[*row], mode);
            for (key, whole) in all
                .iter()
                .filter(|(k, _)| k.contains("ssm_y") || k.contains("logits"))
            {
                let (a, b) = (
                    format!("{:?}", row_of(whole, i)),
                    format!("{:?}", row_of(&one[key], 0)),
                );
                assert!(a == b, "mode {mode} {key} sequence {i}");
            }
        }
    }
}

fn row_of(array: &NpyArray, i: usize) -> Vec<u32> {
    use ndarray::Axis;
    match array {
        NpyArray::F16(a) => a
            .index_axis(Axis(0), i)
            .iter()
            .map(|v| u32::from(v.to_bits()))
            .collect(),
        NpyArray::F32(a) => a
            .index_axis(Axis(0), i)
            .iter()
            .map(|v| v.to_bits())
            .collect(),
        other => panic!("unexpected {}", other.describe()),
    }
}

#[test]
fn report_tells_every_mode_from_the_reference() {
    let out = json(&["report", "--text", TEXT, "--json"]);
    let modes = out["modes"].as_array().unwrap();
    assert_eq!(modes.len(), MODES.len());
    for mode in modes {
        let exact = mode["reference"].as_bool().unwrap();
        let l2 = mode["layers"][11]["normalized_l2"].as_f64().unwrap();
        assert_eq!(l2 == 0.0, exact, "mode {}", mode["mode"]);
        assert_eq!(
            mode["agreement"].as_f64().unwrap() == 1.0 && mode["kl"].as_f64().unwrap() == 0.0,
            exact
        );
        assert!(mode["perplexity"].as_f64().unwrap().is_finite());
    }
    // 0 ≡ 2-0 ≡ 2-1 ≡ 2-2 in profile exact.
    // (2-0 quantizes u once more, so its saturation rates have another denominator.)
    let layers = |name: &str| {
        let mut rows = modes.iter();
        &rows.find(|mode| mode["mode"] == name).unwrap()["layers"]
    };
    for layer in 0..12 {
        let l2 = |mode: &str| &layers(mode)[layer]["normalized_l2"];
        assert!(
            ["2-0", "2-1", "2-2"]
                .into_iter()
                .all(|same| l2("0") == l2(same))
        );
    }
    assert_eq!(layers("0"), layers("2-1"));
    assert_ne!(layers("0"), layers("2-4"));
    let text = stdout(&["report", "--text", TEXT]);
    assert!(
        text.lines().all(|line| line.chars().count() <= 80),
        "{text}"
    );
    for words in [
        "Verdict\n  Mode 0 costs ",
        "too few to say how sure this is",
        "Next\n  scalescope attribute --mode 0 ",
        "normalized_l2",
        "clipped",
        "perplexity",
        "agreement",
    ] {
        assert!(text.contains(words), "{words}: {text}");
    }
}

#[test]
fn a_report_says_first_what_is_beyond_chance() {
    let args = ["report", "--modes", "1,0,2-0,6-1", "--length", "128"];
    let out = json(&[&args[..], &["--json"]].concat());
    let verdict = &out["verdict"];
    assert_eq!(
        (&verdict["positions"], &verdict["stretches"]),
        (&508.into(), &16.into())
    );
    assert_eq!(verdict["equal"], serde_json::json!([["0", "2-0"]]));
    let number = |value: &serde_json::Value| value.as_f64().unwrap();
    for (cost, mode) in verdict["modes"].as_array().unwrap().iter().zip(1..) {
        assert_eq!(cost["mode"], out["modes"][mode]["mode"]);
        let apart = number(&cost["kl"]["value"]) - number(&out["modes"][mode]["kl"]);
        assert!(apart.abs() < 1e-12, "{cost}");
        let kl = ["low", "value", "high"].map(|key| number(&cost["kl"][key]));
        assert!(0.0 < kl[0] && kl.is_sorted(), "{kl:?}");
    }
    let letters = |i: usize| verdict["modes"][i]["tied"].as_str().unwrap();
    assert_eq!(letters(0), letters(1));
    assert_ne!(letters(0), letters(2));
    let parts = verdict["parts"]["parts"].as_array().unwrap();
    assert_eq!((&verdict["parts"]["mode"], parts.len()), (&"0".into(), 14));
    let text = stdout(&args)
        .split_whitespace()
        .collect::<Vec<_>>()
        .join(" ");
    for part in parts
        .iter()
        .filter(|part| part["stands_out"] == true)
        .take(3)
    {
        let kl = ["low", "value", "high"].map(|key| number(&part["kl"][key]));
        assert!(0.0 < kl[0] && kl.is_sorted(), "{part}");
        assert!(text.contains(part["site"].as_str().unwrap()), "{part}");
    }
    assert!(
        text.contains("Modes 0 and 2-0 are equal at every position"),
        "{text}"
    );
    assert!(text.contains("Mode 6-1 costs least"), "{text}");
}

#[test]
fn a_long_text_is_sampled_and_says_so() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("book.npy");
    let mut npy = b"\x93NUMPY\x01\x00\x76\x00".to_vec();
    let header = "{'descr': '|u1', 'fortran_order': False, 'shape': (6000,), }";
    npy.extend(format!("{header:<117}\n").into_bytes());
    npy.extend((0..6000u32).map(|i| (i * i % 251) as u8));
    std::fs::write(&file, npy).unwrap();
    let of = |more: &[&str]| {
        let args = [
            "report",
            "--synthetic",
            "tiny",
            "--modes",
            "0",
            "--tokens",
            arg(&file),
        ];
        json(&[&args[..], &["--json"], more].concat())
    };
    let sampled = of(&[]);
    assert_eq!(
        (&sampled["sequences"], &sampled["tokens"]),
        (&16.into(), &4096.into())
    );
    assert_eq!(sampled["sampled_of_tokens"], 6000);
    let asked = of(&["--length", "64"]);
    assert_eq!(
        (&asked["tokens"], &asked["sampled_of_tokens"]),
        (&64.into(), &serde_json::Value::Null)
    );
}

#[test]
fn arguments_are_refused_in_one_line() {
    for (args, parts) in [
        (
            vec!["run", "--mode", "9", "--text", "a"],
            vec!["mode", "2-1", "9"],
        ),
        (
            vec!["run", "--profile", "fast", "--text", "a"],
            vec!["profile", "deployed", "fast"],
        ),
        (
            vec!["run", "--text", ""],
            vec!["--text", "at least one token"],
        ),
        (vec!["run"], vec!["--text, --tokens or --file"]),
        (vec!["run", "--file", "no/such.txt"], vec!["no/such.txt"]),
        (
            vec!["run", "--model", "no/such/dir", "--text", "a"],
            vec!["no/such/dir"],
        ),
        (
            vec!["run", "--text", "a", "--trace", "no/such/dir/t.npz"],
            vec!["no/such/dir"],
        ),
        (
            vec!["run", "--text", "a", "--trace", "t.npz", "--layers", "12"],
            vec!["--layers", "12"],
        ),
        (
            vec!["run", "--text", "a", "--trace", "t.npz", "--points", "conv"],
            vec!["--points", "conv_out", "conv"],
        ),
        (
            vec!["report", "--modes", "0,7", "--text", "a b"],
            vec!["mode", "7"],
        ),
        (vec!["report", "--text", "a"], vec!["at least two tokens"]),
        (
            vec!["quantize", "no/such", "-o", "q.safetensors"],
            vec!["no/such"],
        ),
    ] {
        let line = refusal(&args);
        for part in parts {
            assert!(line.contains(part), "{args:?}: {line}");
        }
    }
    assert!(!Path::new("t.npz").exists());
}

#[test]
fn token_files_are_checked() {
    let dir = tempfile::tempdir().unwrap();
    let npy = dir.path().join("t.npy");
    let check = |array: NpyArray, part: &str| {
        write_npy(&npy, &array).unwrap();
        let line = refusal(&["run", "--tokens", arg(&npy)]);
        assert!(line.contains("t.npy") && line.contains(part), "{line}");
    };
    check(
        NpyArray::I64(Array::from_vec(vec![1, 2, 8192]).into_dyn()),
        "token 2",
    );
    check(
        NpyArray::I32(Array::from_vec(vec![1, -2]).into_dyn()),
        "element 1",
    );
    check(NpyArray::F32(Array::from_vec(vec![1.0]).into_dyn()), "f32");
    check(
        NpyArray::I32(Array::zeros(vec![0, 4])),
        "at least one sequence",
    );
    check(NpyArray::I32(Array::zeros(vec![2, 2, 2])), "[B, L]");
    fs::write(&npy, b"\x93NUMPY\x01\x00v\x00{'descr'").unwrap();
    assert!(refusal(&["run", "--tokens", arg(&npy)]).contains("t.npy"));
}

#[test]
fn a_reader_that_stops_is_no_error() {
    use std::io::Read;
    use std::process::Stdio;
    let mut child = scalescope(&["modes"])
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut byte = [0u8; 1];
    child.stdout.take().unwrap().read_exact(&mut byte).unwrap();
    assert_eq!(child.wait().unwrap().code(), Some(0));
}

#[test]
fn bench_measures_every_mode_profile_length_and_batch() {
    let report = json(&[
        "bench",
        "--synthetic",
        "tiny",
        "--modes",
        "0,1",
        "--profile",
        "exact,deployed",
        "--length",
        "5,9",
        "--decode",
        "2",
        "--batch",
        "1,3",
        "--points",
        "had_out,ssm_state",
        "--repeat",
        "1",
        "--threads",
        "2",
        "--json",
    ]);
    assert_eq!(report["threads"], 2);
    assert!(report["peaks"]["int8_product_gops"].as_f64().unwrap() > 0.0);
    assert!(report["peaks"]["read_gbs"].as_f64().unwrap() > 0.0);
    let measurements = report["measurements"].as_array().unwrap();
    // Two lengths, two with points; one batch of one, decoded twice, and one of three.
    assert_eq!(measurements.len(), 2 * 2 * (2 + 2 + 3));
    let traced = measurements.iter().filter(|m| m["phase"] == "traced");
    assert_eq!(traced.count(), 2 * 2 * 2);
    for m in measurements {
        assert!(m["tokens_per_second"].as_f64().unwrap() > 0.0, "{m}");
        let steps = m["steps"].as_object().unwrap();
        let total: f64 = steps.values().map(|s| s.as_f64().unwrap()).sum();
        match m["batch"].as_u64() {
            // Waiting before the first step belongs to none.
            Some(1) => assert!(total > 0.0 && total <= 1.0 + 1e-9, "{m}"),
            _ => assert!(steps.is_empty(), "{m}"),
        }
        // Integer products where the mode has them, and only there.
        let prefill = m["phase"] == "prefill" || m["phase"] == "traced";
        let integer = m["mode"] == "0" && prefill;
        assert_eq!(m.get("int8_gops").is_some(), integer, "{m}");
    }
}
