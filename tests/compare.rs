//! `scalescope compare` as a user meets it: two modes, damaged dumps, bad input.

use crate::common::{arg, edited, refusal, run, stdout};
use ndarray::{ArrayD, Axis};
use scalescope_golden::npz::Array;
use std::path::{Path, PathBuf};
use std::process::Output;

const TEXT: &str = "It was late in the evening when the old captain came home from the harbour.";

/// The trace of a mode on a text, the first two blocks and what follows the last.
fn trace(dir: &Path, name: &str, mode: &str, text: &str) -> PathBuf {
    let file = dir.join(name);
    let source = [
        "run",
        "--mode",
        mode,
        "--profile",
        "deployed",
        "--text",
        text,
    ];
    stdout(&[&source[..], &["--layers", "0,1", "--trace", arg(&file)]].concat());
    file
}

/// Changes one array of i8 codes.
fn codes(
    key: &'static str,
    edit: impl Fn(ArrayD<i8>) -> ArrayD<i8>,
) -> impl Fn(&str, Array) -> Option<Array> {
    move |name, array| match array {
        Array::I8(a) if name == key => Some(Array::I8(edit(a).as_standard_layout().into_owned())),
        other => Some(other),
    }
}

/// Every sequence once more; scales stay.
fn doubled(array: Array) -> Array {
    fn twice<T: Clone>(a: ArrayD<T>) -> ArrayD<T> {
        match a.ndim() {
            0 => a,
            _ => ndarray::concatenate(Axis(0), &[a.view(), a.view()]).unwrap(),
        }
    }
    match array {
        Array::I8(a) => Array::I8(twice(a)),
        Array::F16(a) => Array::F16(twice(a)),
        Array::F32(a) => Array::F32(twice(a)),
        Array::I32(a) => Array::I32(twice(a)),
        other => other,
    }
}

fn compare(a: &Path, b: &Path, more: &[&str]) -> Output {
    run(&[&["compare", arg(a), arg(b)], more].concat())
}

fn compared(a: &Path, b: &Path, code: i32) -> serde_json::Value {
    let out = compare(a, b, &["--json"]);
    assert_eq!(out.status.code(), Some(code), "{out:?}");
    serde_json::from_slice(&out.stdout).unwrap()
}

#[test]
fn a_trace_equals_itself_and_two_modes_differ_by_every_metric() {
    let dir = tempfile::tempdir().unwrap();
    let [float, int8, dynamic] =
        ["1", "0", "3"].map(|mode| trace(dir.path(), &format!("{mode}.npz"), mode, TEXT));
    let same = compared(&int8, &int8, 0);
    assert_eq!(
        (&same["verdict"], &same["beyond_tolerance"]),
        (&"equal".into(), &0.into())
    );
    for other in [&int8, &dynamic] {
        let out = compared(&float, other, 1);
        assert_eq!(out["left_out"], serde_json::json!([]));
        let points = out["points"].as_array().unwrap();
        let conv = points
            .iter()
            .find(|p| p["layer"] == 1 && p["point"] == "dt_proj_out");
        let metrics = &conv.unwrap()["metrics"];
        assert_eq!(out["metrics"].as_array().unwrap().len(), 13);
        for info in out["metrics"].as_array().unwrap() {
            let (name, better) = (
                info["name"].as_str().unwrap(),
                info["better"].as_str().unwrap(),
            );
            assert!(!better.is_empty());
            let applies = name != "ulp_max";
            assert_eq!(metrics[name].is_number(), applies, "{name}: {metrics}");
        }
        assert!(metrics["sqnr_db"].as_f64().unwrap() > 20.0);
    }
    let text = compare(&float, &int8, &["--metrics", "all"]);
    let text = String::from_utf8(text.stdout).unwrap();
    for part in [
        "sqnr_db ↑",
        "mse ↓",
        "scale_ratio →1",
        "conv_out_f32",
        "MISMATCH",
    ] {
        assert!(text.contains(part), "{part}: {text}");
    }
    let few = compare(&float, &int8, &["--metrics", "cosine"]);
    let few = String::from_utf8(few.stdout).unwrap();
    assert!(few.contains("cosine ↑") && !few.contains("mse"));
    let rows = String::from_utf8(compare(&float, &int8, &["--csv"]).stdout).unwrap();
    let mut lines = rows.lines();
    let columns = lines.next().unwrap().split(',').count();
    assert_eq!(columns, 24);
    let json = compared(&float, &int8, 1);
    assert_eq!(
        lines.clone().count(),
        json["points"].as_array().unwrap().len()
    );
    assert!(lines.all(|line| line.split(',').count() == columns));
}

#[test]
fn layouts_and_factors_are_named() {
    let dir = tempfile::tempdir().unwrap();
    let golden = trace(dir.path(), "0.npz", "0", TEXT);
    let named = |name: &str, edit: &dyn Fn(&str, Array) -> Option<Array>, words: &str| {
        let file = edited(&golden, name, edit);
        let out = compare(&golden, &file, &[]);
        let text = String::from_utf8(out.stdout).unwrap();
        assert_eq!(out.status.code(), Some(1), "{name}: {text}");
        let line = text
            .lines()
            .find(|line| line.contains("B is A"))
            .unwrap_or("none");
        assert!(line.contains(words), "{name}: {line}");
    };
    const NORM: &str = "layer_01/norm_out";
    named(
        "across.npz",
        &codes(NORM, |mut a| {
            a.swap_axes(1, 2);
            a
        }),
        "layer_01/norm_out: B is A transposed (100.0 %",
    );
    named(
        "halves.npz",
        &codes("layer_01/in_proj_out", |a| {
            let (x, z) = a.view().split_at(Axis(2), a.shape()[2] / 2);
            ndarray::concatenate(Axis(2), &[z, x]).unwrap()
        }),
        "channels 0..384 and 384..768 swapped",
    );
    named(
        "late.npz",
        &codes("layer_00/conv_out", |a| {
            let (first, _) = a.view().split_at(Axis(1), 2);
            let (rest, _) = a.view().split_at(Axis(1), a.shape()[1] - 2);
            ndarray::concatenate(Axis(1), &[first, rest]).unwrap()
        }),
        "shifted by +2 tokens",
    );
    let louder = |name: &str, array: Array| match array {
        Array::F16(a) if name == "layer_00/ssm_y" => Some(Array::F16(
            a.mapv(|v| half::f16::from_f32(1.5 * v.to_f32())),
        )),
        other => Some(other),
    };
    named("louder.npz", &louder, "multiplied by 1.5");
    let other_scale = |name: &str, array: Array| match array {
        Array::F32(a) if name == "scale/layer_00/conv_out" => Some(Array::F32(a * 2.0)),
        other => Some(other),
    };
    named("scale.npz", &other_scale, "multiplied by 2");
    let file = edited(&golden, "scale2.npz", other_scale);
    let text = String::from_utf8(compare(&golden, &file, &[]).stdout).unwrap();
    assert!(text.contains("in B is 2.0000 times"), "{text}");
}

#[test]
fn tolerances_are_explicit_and_printed() {
    let dir = tempfile::tempdir().unwrap();
    let golden = trace(dir.path(), "0.npz", "0", TEXT);
    let off = edited(
        &golden,
        "off.npz",
        codes("layer_01/conv_out", |mut a| {
            let first = &mut a[[0, 3, 5]];
            *first = first.saturating_sub(2);
            a
        }),
    );
    let out = compared(&golden, &off, 1);
    assert_eq!(out["beyond_tolerance"], 1);
    let bad = out["points"]
        .as_array()
        .unwrap()
        .iter()
        .find(|p| p["beyond_tolerance"] == 1);
    assert_eq!(bad.unwrap()["first"]["index"], serde_json::json!([0, 3, 5]));
    for (atol, code) in [
        ("conv_out:1", 1),
        ("layer_00/conv_out:2", 1),
        ("conv_out:2", 0),
    ] {
        let out = compare(&golden, &off, &["--atol", atol]);
        assert_eq!(out.status.code(), Some(code), "{atol}");
        let text = String::from_utf8(out.stdout).unwrap();
        assert!(text.contains("conv_out: tolerance atol"), "{text}");
    }
}

#[test]
fn what_cannot_be_compared_is_refused_in_one_line() {
    let dir = tempfile::tempdir().unwrap();
    let golden = trace(dir.path(), "0.npz", "0", TEXT);
    let refused = |b: &Path, parts: &[&str]| {
        let line = refusal(&["compare", arg(&golden), arg(b)]);
        for part in parts {
            assert!(line.contains(part), "{part}: {line}");
        }
    };
    refused(
        &trace(dir.path(), "short.npz", "0", "It was late"),
        &["tokens", "[1, 3]"],
    );
    let other = TEXT.replace("captain", "harbour");
    refused(&trace(dir.path(), "other.npz", "0", &other), &["tokens"]);
    let renamed = |name: &str, array: Array| match array {
        Array::U8(a) if name == "meta" => {
            let text = String::from_utf8(a.into_raw_vec_and_offset().0).unwrap();
            let mut meta: serde_json::Value = serde_json::from_str(&text).unwrap();
            meta["model"] = "another".into();
            let bytes = meta.to_string().into_bytes();
            Some(Array::U8(
                ArrayD::from_shape_vec(vec![bytes.len()], bytes).unwrap(),
            ))
        }
        other => Some(other),
    };
    refused(
        &edited(&golden, "model.npz", renamed),
        &["meta: model", "another"],
    );
    let without = |name: &str, array: Array| (name != "layer_01/had_out").then_some(array);
    let part = edited(&golden, "part.npz", without);
    refused(&part, &["layer_01/had_out", "A only"]);
    let out = compare(&golden, &part, &["--common"]);
    assert_eq!(out.status.code(), Some(0));
    assert!(
        String::from_utf8(out.stdout)
            .unwrap()
            .contains("not compared")
    );
    let nan = |name: &str, array: Array| match array {
        Array::F16(mut a) if name == "layer_01/ssm_y" => {
            a[[0, 1, 2]] = half::f16::NAN;
            Some(Array::F16(a))
        }
        other => Some(other),
    };
    refused(
        &edited(&golden, "nan.npz", nan),
        &["layer_01/ssm_y", "NaN in B at [0, 1, 2]"],
    );
    let infinite = |name: &str, array: Array| match array {
        Array::F16(mut a) if name == "layer_01/ssm_y" => {
            a[[0, 3, 5]] = half::f16::NEG_INFINITY;
            Some(Array::F16(a))
        }
        other => Some(other),
    };
    let infinite = edited(&golden, "infinite.npz", infinite);
    for (a, b, place) in [
        (&golden, &infinite, "-inf in B at [0, 3, 5]"),
        (&infinite, &golden, "-inf in A at [0, 3, 5]"),
        (&infinite, &infinite, "-inf in A"),
    ] {
        let line = refusal(&["compare", arg(a), arg(b)]);
        assert!(line.contains(place), "{line}");
    }
    let narrow = |name: &str, array: Array| match array {
        Array::F16(a) if name == "layer_01/ssm_y" => Some(Array::F16(
            a.slice_axis(Axis(2), (0..100).into()).to_owned(),
        )),
        other => Some(other),
    };
    refused(
        &edited(&golden, "narrow.npz", narrow),
        &["layer_01/ssm_y", "100]"],
    );
    let twice = |_: &str, array: Array| match array {
        Array::U8(a) => Some(Array::U8(a)),
        array => Some(doubled(array)),
    };
    refused(&edited(&golden, "twice.npz", twice), &["tokens", "[2, "]);
    let nothing = edited(&golden, "nothing.npz", |name, array| {
        (name == "tokens").then_some(array)
    });
    let line = refusal(&["compare", arg(&golden), arg(&nothing), "--common"]);
    assert!(line.contains("at least one tensor"), "{line}");
    let line = refusal(&["compare", arg(&golden), "no/such.npz"]);
    assert!(line.contains("no/such.npz"), "{line}");
    let line = refusal(&["compare", arg(&golden), arg(&golden), "--metrics", "msee"]);
    assert!(line.contains("--metrics") && line.contains("mse"), "{line}");
    let line = refusal(&["compare", arg(&golden), arg(&golden), "--atol", "conv:1"]);
    assert!(line.contains("--atol"), "{line}");
}
