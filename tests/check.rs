//! `check`, `check op` and `selftest` as a user meets them: verdicts, exit codes, damaged files.

use crate::common::{arg, edited, flowing, json, refusal, run, stdout};
use scalescope_golden::npz::{Array, Compression, NpzReader, read_npz, write_npz};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

fn golden(file: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("golden/data")
        .join(file)
}

fn write(path: &Path, arrays: &BTreeMap<String, Array>) {
    let arrays = arrays.iter().map(|(k, v)| (k.as_str(), v));
    write_npz(path, arrays, Compression::Stored).unwrap();
}

/// The parts of the mode 0 trace that are quick to check: block 0 and the tokens.
fn block_0(dir: &Path) -> (PathBuf, BTreeMap<String, Array>) {
    let mut arrays = read_npz(golden("trace/mode_0_len171.npz")).unwrap();
    arrays.retain(|name, _| name == "tokens" || name.starts_with("layer_00/"));
    let path = dir.join("block_0.npz");
    write(&path, &arrays);
    (path, arrays)
}

/// Runs a check that must find something: its text, on exit code 1.
fn mismatch(args: &[&str]) -> String {
    let out = run(args);
    let text = String::from_utf8_lossy(&out.stdout).into_owned();
    assert_eq!(out.status.code(), Some(1), "{args:?}: {text}");
    text
}

#[test]
fn an_equal_trace_exits_with_0() {
    let dir = tempfile::tempdir().unwrap();
    let (path, _) = block_0(dir.path());
    let text = stdout(&["check", "--golden", arg(&path), "--mode", "0"]);
    assert!(text.contains("layer_00/ssm_y"), "{text}");
    assert!(text.ends_with("mismatched 0, missing 0: equal\n"), "{text}");
    for feed in ["--local", "--cumulative"] {
        let json = json(&[
            "check",
            "--golden",
            arg(&path),
            "--mode",
            "0",
            feed,
            "--json",
        ]);
        assert_eq!(json["mismatched"], 0);
        assert_eq!(json["missing"], serde_json::json!([]));
        assert_eq!(json["given"], 0);
        let points = json["points"].as_array().unwrap();
        assert_eq!(points.len(), 12);
        let total: u64 = points.iter().map(|p| p["compared"].as_u64().unwrap()).sum();
        assert_eq!(json["compared"], total);
        for point in points {
            for key in [
                "layer",
                "point",
                "compared",
                "mismatched",
                "max_abs_lsb",
                "ulp_max",
            ] {
                assert!(point.get(key).is_some(), "{key}: {point}");
            }
        }
    }
}

#[test]
fn the_mode_of_a_dump_is_told_from_its_tensors() {
    let dir = tempfile::tempdir().unwrap();
    let (path, _) = block_0(dir.path());
    // The golden files have no metadata.
    for mode in [&[][..], &["--mode", "auto"]] {
        let args = [&["check", "--golden", arg(&path), "--json"][..], mode].concat();
        let json = json(&args);
        assert_eq!(
            (&json["mode"], &json["mismatched"]),
            (&"0".into(), &0.into())
        );
        assert_eq!(json["recognised"]["differs"], 0.0);
        assert_eq!(json["recognised"]["blocks"], serde_json::json!([0]));
    }
    let out = run(&["check", "--golden", arg(&path), "--mode", "2-4"]);
    let error = String::from_utf8_lossy(&out.stderr).into_owned();
    assert!(
        error.contains("this looks like a dump of mode 0:"),
        "{error}"
    );
    let out = run(&[
        "check",
        "--golden",
        arg(&path),
        "--mode",
        "2-1",
        "--only-failures",
    ]);
    let error = String::from_utf8_lossy(&out.stderr).into_owned();
    assert!(
        error.contains("this looks like a dump of mode 0:"),
        "{error}"
    );
    let text = String::from_utf8_lossy(&out.stdout).into_owned();
    assert!(text.contains("11 other tensors not shown"), "{text}");
    assert!(text.contains("first failure: layer_00/ssm_y"), "{text}");
}

/// binary16 that lies in f32 is itself; other f32 in its place are compared by value.
#[test]
fn floats_in_a_wider_type_are_what_they_are() {
    let dir = tempfile::tempdir().unwrap();
    let (path, mut arrays) = block_0(dir.path());
    for array in arrays.values_mut() {
        if let Array::F16(a) = array {
            *array = Array::F32(a.mapv(half::f16::to_f32));
        }
    }
    write(&path, &arrays);
    let json = json(&["check", "--golden", arg(&path), "--mode", "0", "--json"]);
    assert_eq!(json["mismatched"], 0);
    let Some(Array::F32(y)) = arrays.get_mut("layer_00/ssm_y") else {
        panic!("made above");
    };
    y[[0, 3, 5]] += 1e-6;
    write(&path, &arrays);
    let text = mismatch(&["check", "--golden", arg(&path), "--mode", "0"]);
    assert!(
        text.contains("first failure: layer_00/ssm_y [0, 3, 5]"),
        "{text}"
    );
    let found = run(&["attribute", "--mode", "0", "--dump", arg(&path)]);
    assert_eq!(found.status.code(), Some(1));
}

#[test]
fn one_changed_element_is_named_and_exits_with_1() {
    let dir = tempfile::tempdir().unwrap();
    let (path, mut arrays) = block_0(dir.path());
    let Some(Array::I8(codes)) = arrays.get_mut("layer_00/conv_out") else {
        panic!("conv_out is i8");
    };
    codes[[0, 33, 7]] ^= 1;
    write(&path, &arrays);
    let text = mismatch(&["check", "--golden", arg(&path)]);
    let line = text
        .lines()
        .find(|l| l.starts_with("layer_00/conv_out "))
        .unwrap();
    assert!(
        line.contains("1 LSB") && line.contains("[0, 33, 7]"),
        "{line}"
    );
    assert!(text.contains("MISMATCH"), "{text}");
    // Forgiven on request, and the output says so.
    let text = stdout(&[
        "check",
        "--golden",
        arg(&path),
        "--atol",
        "conv_out:1",
        "--atol",
        "x_proj_out:1",
        "--atol",
        "ssm_u:1",
        "--atol",
        "ssm_y:1e-3",
        "--atol",
        "dt_proj_out:1",
    ]);
    assert!(text.contains("conv_out: tolerance atol"), "{text}");
}

#[test]
fn unknown_points_are_missing_and_exit_with_1() {
    let dir = tempfile::tempdir().unwrap();
    let (path, mut arrays) = block_0(dir.path());
    let copy = arrays["layer_00/conv_out"].clone();
    arrays.insert("layer_00/conv_owt".into(), copy);
    write(&path, &arrays);
    let text = mismatch(&["check", "--golden", arg(&path)]);
    assert!(text.contains("  layer_00/conv_owt"), "{text}");
    assert!(text.contains("missing 1: not verified"), "{text}");
}

#[test]
fn files_that_cannot_be_used_exit_with_2() {
    let dir = tempfile::tempdir().unwrap();
    let (path, arrays) = block_0(dir.path());
    let check = |file: &Path| refusal(&["check", "--golden", arg(file)]);
    // A byte of the data: the archive's checksum tells.
    let bytes = std::fs::read(&path).unwrap();
    let broken = dir.path().join("broken.npz");
    let mut one = bytes.clone();
    let middle = one.len() / 2;
    one[middle] ^= 0x10;
    std::fs::write(&broken, &one).unwrap();
    let line = check(&broken);
    assert!(line.contains("broken.npz: layer_00/"), "{line}");
    for keep in [0, 10, bytes.len() / 3, bytes.len() - 1] {
        std::fs::write(&broken, &bytes[..keep]).unwrap();
        assert!(check(&broken).contains("broken.npz"));
    }
    assert!(check(&dir.path().join("none.npz")).contains("none.npz"));
    // Nothing in it, tokens that the model does not have, another shape.
    let only = |keep: &str| -> BTreeMap<String, Array> {
        let kept = arrays.iter().filter(|(name, _)| *name == keep);
        kept.map(|(k, v)| (k.clone(), v.clone())).collect()
    };
    write(&broken, &only("none"));
    assert!(check(&broken).contains("at least one tensor"));
    write(&broken, &only("tokens"));
    assert!(check(&broken).contains("at least one tensor"));
    let mut other = arrays.clone();
    let Some(Array::I32(tokens)) = other.get_mut("tokens") else {
        panic!("tokens are i32");
    };
    tokens[[0, 5]] = 8192;
    write(&broken, &other);
    assert!(check(&broken).contains("token 5"));
    tokens_of(&mut other)[[0, 5]] = -1;
    write(&broken, &other);
    assert!(check(&broken).contains("token ids"));
    let mut other = arrays.clone();
    let Some(Array::I8(codes)) = other.get("layer_00/norm_out") else {
        panic!("norm_out is i8");
    };
    let narrow = codes
        .slice(ndarray::s![.., .., ..100])
        .to_owned()
        .into_dyn();
    other.insert("layer_00/norm_out".into(), narrow.into());
    write(&broken, &other);
    assert!(check(&broken).contains("layer_00/norm_out: expected"));
    let mut other = arrays;
    let deep = other["layer_00/norm_out"].clone();
    other.insert("layer_40/norm_out".into(), deep);
    write(&broken, &other);
    assert!(check(&broken).contains("blocks 0 to 11"));
    let path = arg(&path);
    let line = refusal(&["check", "--golden", path, "--mode", "9"]);
    assert!(line.contains("2-4"), "{line}");
    refusal(&["check", "--golden", path, "--profile", "fast"]);
    refusal(&["check", "--golden", path, "--atol", "conv_owt:1"]);
    refusal(&["check", "--golden", path, "--atol", "conv_out:x"]);
}

fn tokens_of(arrays: &mut BTreeMap<String, Array>) -> &mut ndarray::ArrayD<i32> {
    match arrays.get_mut("tokens") {
        Some(Array::I32(tokens)) => tokens,
        _ => panic!("tokens are i32"),
    }
}

#[test]
fn decode_traces_are_checked_both_ways() {
    let trace = golden("trace/decode_after64_steps0-3.npz");
    let trace = arg(&trace);
    let local = json(&["check", "--golden", trace, "--json"]);
    let cumulative = json(&["check", "--golden", trace, "--cumulative", "--json"]);
    assert_eq!(cumulative["given"], 0);
    assert!(local["given"].as_u64().unwrap() > 0);
    let sum =
        |v: &serde_json::Value| v["compared"].as_u64().unwrap() + v["given"].as_u64().unwrap();
    assert_eq!(sum(&local), sum(&cumulative));
    assert_eq!(cumulative["points"][0]["step"], 0);
    let text = flowing(&stdout(&["check", "--golden", trace, "--cumulative"]));
    assert!(
        text.contains("logits: tolerance 1 ulp of f16 or 1e-4"),
        "{text}"
    );
}

#[test]
fn a_trace_that_run_wrote_is_checked_with_its_own_mode_and_profile() {
    let dir = tempfile::tempdir().unwrap();
    let trace = dir.path().join("t.npz");
    let text = "It was late in the evening.";
    stdout(&[
        "run",
        "--mode",
        "2-4",
        "--text",
        text,
        "--trace",
        arg(&trace),
    ]);
    let json = json(&["check", "--golden", arg(&trace), "--json"]);
    assert_eq!(
        (&json["mode"], &json["profile"]),
        (&"2-4".into(), &"exact".into())
    );
    // Under another profile it is not equal, and the explanation says by how little.
    let text = mismatch(&[
        "check",
        "--golden",
        arg(&trace),
        "--profile",
        "deployed",
        "--explain",
    ]);
    assert!(text.contains("within one ulp of binary16"), "{text}");
}

#[test]
fn every_operation_checks_its_vectors() {
    for op in [
        "conv1d_silu",
        "conv1d_update",
        "selective_scan",
        "selective_scan_update",
        "hadamard_quant",
        "linear",
        "rmsnorm_quant",
    ] {
        let file = golden(&format!("ops/{op}.npz"));
        let json = json(&["check", "op", op, arg(&file), "--json"]);
        assert_eq!((&json["mismatched"], &json["op"]), (&0.into(), &op.into()));
        assert!(json["compared"].as_u64().unwrap() > 500, "{op}");
    }
    let file = golden("ops/hadamard_quant.npz");
    let text = mismatch(&[
        "check",
        "op",
        "hadamard_quant",
        arg(&file),
        "--arith",
        "exact",
        "--explain",
    ]);
    assert!(
        flowing(&text).contains("the quantizer treats values beyond its range differently: wrap"),
        "{text}"
    );
    let line = refusal(&["check", "op", "conv", arg(&file)]);
    assert!(line.contains("conv1d_silu"), "{line}");
    refusal(&["check", "op", "linear", arg(&file)]);
    refusal(&[
        "check",
        "op",
        "hadamard_quant",
        arg(&file),
        "--arith",
        "fast",
    ]);
    refusal(&["check", "op", "hadamard_quant", "none.npz"]);
}

#[test]
fn selftest_passes_and_prints_its_table() {
    let json = json(&["selftest", "--json"]);
    let kinds = json["kinds"].as_array().unwrap();
    assert_eq!(kinds.len(), 9);
    for kind in kinds {
        assert_eq!(kind["missed"], 0, "{kind}");
        assert!(kind["detected"].as_u64().unwrap() > 0, "{kind}");
    }
}

/// An array that lies otherwise than the operation takes it is named, with what to give: where shapes and types do not
/// fit together, and where they do and the outputs differ.
#[test]
fn vectors_that_lie_otherwise_are_told_how_to_be_given() {
    let dir = tempfile::tempdir().unwrap();
    let golden = dir.path().join("golden.npz");
    let ops = Path::new(env!("CARGO_MANIFEST_DIR")).join("golden/data/ops");
    std::fs::copy(ops.join("conv1d_silu.npz"), &golden).unwrap();
    let first = |key: &str| key.strip_prefix("case_0/").map(str::to_owned);
    let lying = |name: &str, lie: &dyn Fn(&str, Array) -> Array| {
        edited(&golden, name, |key, array| {
            Some(match first(key) {
                Some(key) => lie(&key, array),
                None => array,
            })
        })
    };
    let turned = |array: Array| match array {
        Array::I8(a) => {
            let mut order: Vec<usize> = (0..a.ndim()).collect();
            let last = order.len() - 1;
            order.swap(last - 1, last);
            Array::I8(a.permuted_axes(order).as_standard_layout().into_owned())
        }
        other => other,
    };
    type Told<'a> = (&'a dyn Fn(&str, Array) -> Array, &'a str);
    let told: [Told; 4] = [
        (
            &|key, array| {
                if key == "weight" {
                    turned(array)
                } else {
                    array
                }
            },
            "fit with weight.transpose(1, 0)",
        ),
        (
            &|key, array| match (key, array) {
                ("x", Array::I8(a)) => Array::F32(a.mapv(f32::from)),
                (_, array) => array,
            },
            "fit with x.astype(np.int8)",
        ),
        (
            &|key, array| match (key, array) {
                ("weight", Array::I8(a)) => Array::U8(a.mapv(|v| v as u8)),
                (_, array) => array,
            },
            "fit with weight.view(np.int8)",
        ),
        (
            &|key, array| match (key, array) {
                ("bias", Array::I8(a)) => Array::I8(a.insert_axis(ndarray::Axis(0))),
                (_, array) => array,
            },
            "fit with bias.squeeze(0)",
        ),
    ];
    for (lie, how) in told {
        let file = lying("lying.npz", lie);
        let line = refusal(&["check", "op", "conv1d_silu", arg(&file)]);
        assert!(line.contains(how), "{how}: {line}");
    }
    // As many inputs as outputs: nothing but the result tells.
    let file = dir.path().join("square.npz");
    let n = 4;
    let codes = |seed: usize| {
        let code = |(i, j)| ((seed + 31 * i + 57 * j) % 200) as i32 as i8;
        ndarray::Array2::from_shape_fn((n, n), code).into_dyn()
    };
    let number = |v: f32| Array::F32(ndarray::ArrayD::from_elem(vec![], v));
    let inputs = [
        ("x", Array::I8(codes(3))),
        ("weight", Array::I8(codes(11))),
        ("a", number(0.002)),
        ("b", number(1.0)),
    ];
    write(
        &file,
        &inputs.map(|(key, array)| (key.to_owned(), array)).into(),
    );
    let made = dir.path().join("made.npz");
    stdout(&["check", "op", "linear", arg(&file), "-o", arg(&made)]);
    let lying = edited(&made, "lying.npz", |key, array| {
        Some(if key == "weight" {
            turned(array)
        } else {
            array
        })
    });
    let said = mismatch(&["check", "op", "linear", arg(&lying)]);
    assert!(
        said.contains("layout: linear is equal with weight.transpose(1, 0)"),
        "{said}"
    );
}

/// What a real kernel made of some inputs is what `check op -o` writes from them alone.
#[test]
fn outputs_are_written_from_inputs_alone() {
    let dir = tempfile::tempdir().unwrap();
    let ops = Path::new(env!("CARGO_MANIFEST_DIR")).join("golden/data/ops");
    for op in ["selective_scan_update", "linear", "rmsnorm_quant"] {
        let golden = dir.path().join(format!("{op}.npz"));
        std::fs::copy(ops.join(format!("{op}.npz")), &golden).unwrap();
        let checked = json(&["check", "op", op, arg(&golden), "--json"]);
        let outputs: Vec<String> = (checked["points"].as_array().unwrap().iter())
            .map(|point| point["point"].as_str().unwrap().to_owned())
            .collect();
        assert!(outputs.len() > 1, "{outputs:?}");
        let is_output = |key: &str| outputs.iter().any(|output| output == key);
        let inputs = edited(&golden, "inputs.npz", |key, array| {
            (!is_output(key)).then_some(array)
        });
        let line = refusal(&["check", "op", op, arg(&inputs)]);
        assert!(line.contains("at least one output"), "{line}");
        let to = dir.path().join("expected.npz");
        let said = stdout(&["check", "op", op, arg(&inputs), "-o", arg(&to)]);
        let (mut made, mut real) = (
            NpzReader::open(&to).unwrap(),
            NpzReader::open(&golden).unwrap(),
        );
        for key in &outputs {
            assert!(said.contains(key.as_str()), "{key}: {said}");
            assert_eq!(made.read(key).unwrap(), real.read(key).unwrap(), "{key}");
        }
    }
}
