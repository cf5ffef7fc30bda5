//! `lineage`, `propagate` and `equiv` as a user meets them.

use crate::common::{json, refusal, run, stdout};

const TEXT: &str = "It was late in the evening when the old captain came home from the harbour.";

#[test]
fn lineage_names_every_quantizer_and_its_readers() {
    let all = json(&["lineage", "--mode", "2-4", "--text", TEXT, "--json"]);
    let quantizers = all["quantizers"].as_array().unwrap();
    let names: Vec<&str> = (quantizers.iter())
        .filter(|q| q["layer"] == 3)
        .map(|q| q["name"].as_str().unwrap())
        .collect();
    assert_eq!(
        names,
        [
            "norm_out",
            "in_proj_out",
            "x_proj_quant",
            "x_proj_out",
            "dt_proj_out",
            "state_out",
            "had_out"
        ]
    );
    assert_eq!(quantizers.len(), 12 * names.len());
    for q in quantizers {
        let number = |key: &str| q[key].as_f64().unwrap();
        let ratio = number("absmax") / (127.0 * number("scale"));
        assert!((ratio / number("scale_ratio") - 1.0).abs() < 1e-6);
        assert!(number("grid_occupancy") > 0.0 && number("grid_occupancy") <= 1.0);
        assert_eq!(q["severity"], "info", "{q}");
        let percentile = ["x_proj_input", "ssm_state"]
            .map(Into::into)
            .contains(&q["calibrated"]);
        assert_eq!(
            number("promised_rate"),
            if percentile { 0.0005 } else { 0.0 }
        );
        for reader in q["readers"].as_array().unwrap() {
            assert_eq!(
                (&reader["factor"], &reader["severity"]),
                (&1.0.into(), &"info".into())
            );
        }
    }
    let b = &quantizers[3]["readers"][1];
    assert_eq!((&b["name"], &b["part"]), (&"scan_b".into(), &"b".into()));
    // Mode 3 finds its conv input's scale at run time.
    let dynamic = json(&[
        "lineage", "--mode", "3", "--text", TEXT, "--layers", "5", "--json",
    ]);
    let quantizers = dynamic["quantizers"].as_array().unwrap();
    let conv = quantizers
        .iter()
        .find(|q| q["name"] == "conv_in_dynamic")
        .unwrap();
    assert_eq!(
        (&conv["layer"], &conv["scale_ratio"]),
        (&5.into(), &1.0.into())
    );
    assert!(conv["over_calibrated"].as_f64().unwrap() > 0.0);
    let text = stdout(&["lineage", "--text", TEXT, "--layers", "0"]);
    for part in [
        "conv_out",
        "└ scan_u",
        "└ scan_z (z)",
        "scale_ratio →1",
        "every reader has",
    ] {
        assert!(text.contains(part), "{part}: {text}");
    }
    let dot = stdout(&["lineage", "--text", TEXT, "--layers", "0,1", "--dot"]);
    assert!(dot.starts_with("digraph lineage {") && dot.contains("cluster_1"));
    assert_eq!(dot.matches('{').count(), dot.matches('}').count());
}

#[test]
fn propagate_tells_local_from_propagated() {
    let out = json(&[
        "propagate",
        "--mode",
        "2-4",
        "--text",
        TEXT,
        "--time",
        "--json",
    ]);
    let sites = out["sites"].as_array().unwrap();
    let at = |layer: usize, site: &str| {
        let mut sites = sites.iter();
        let found = sites.find(|s| s["layer"] == layer && s["site"] == site);
        found.unwrap_or_else(|| panic!("{layer} {site}")).clone()
    };
    let l2 = |metrics: &serde_json::Value| metrics["normalized_l2"].as_f64().unwrap();
    let norm = at(0, "norm_out");
    assert_eq!(l2(&norm["local"]), l2(&norm["propagated"]));
    let deep = at(11, "in_proj_x");
    assert!(l2(&deep["local"]) < 0.5 * l2(&deep["propagated"]));
    assert!(deep["amplification"].as_f64().unwrap() > 0.0);
    assert_eq!(l2(&at(4, "ssm_u")["local"]), 0.0);
    assert_eq!(out["layer_amplification"].as_array().unwrap().len(), 11);
    let windows = out["time"]["windows"].as_array().unwrap();
    assert_eq!(windows[0]["ssm_state"].as_array().unwrap().len(), 12);
    let text = stdout(&["propagate", "--text", TEXT, "--metric", "sqnr_db"]);
    assert!(text.contains("local sqnr_db ↑") && text.contains("propagated sqnr_db ↑"));
    let line = refusal(&["propagate", "--text", TEXT, "--metric", "sqnr"]);
    assert!(
        line.contains("--metric") && line.contains("sqnr_db"),
        "{line}"
    );
    let line = refusal(&["propagate", "--text", TEXT, "--against", "7"]);
    assert!(line.contains("mode"), "{line}");
}

#[test]
fn equiv_proves_or_shows_where_and_why() {
    let out = json(&[
        "equiv",
        "2-0",
        "0",
        "--profile",
        "deployed",
        "--text",
        TEXT,
        "--json",
    ]);
    assert_eq!(out["equal"], true);
    assert!(out["compared"].as_u64().unwrap() > 100_000 && out["decoded_tokens"] == 8);
    let parted = run(&["equiv", "2-3", "2-4", "--text", TEXT]);
    assert_eq!(parted.status.code(), Some(1));
    let text = String::from_utf8(parted.stdout).unwrap();
    for part in [
        "MISMATCH",
        "block 0, ssm_u",
        "mode field u: int8 in A, float in B",
        "alone makes",
    ] {
        assert!(text.contains(part), "{part}: {text}");
    }
    let profiles = run(&[
        "equiv",
        "2-1",
        "2-1",
        "--profile",
        "exact,torch",
        "--text",
        TEXT,
    ]);
    assert_eq!(profiles.status.code(), Some(1));
    let text = String::from_utf8(profiles.stdout).unwrap();
    assert!(
        text.contains("scan.formula: fused in A, separate in B"),
        "{text}"
    );
    let line = refusal(&["equiv", "0", "1", "--profile", "a,b,c", "--text", TEXT]);
    assert!(line.contains("--profile"), "{line}");
}

#[test]
fn defects_show_where_they_are_put_in() {
    let fault = |fault: &'static str, command: &[&'static str]| {
        [command, &["--text", TEXT, "--fault", fault]].concat()
    };
    // A reader that disagrees with its quantizer.
    let disagreeing = fault("stale-scale@layer=4,site=scan_b,factor=2", &["lineage"]);
    let out = run(&disagreeing);
    assert_eq!(out.status.code(), Some(1));
    let text = String::from_utf8(out.stdout).unwrap();
    for part in [
        "fault stale-scale@layer=4,site=scan_b,factor=2",
        "block 4 x_proj_out: scan_b reads with a scale 2.0000 times",
        "MISMATCH",
    ] {
        assert!(text.contains(part), "{part}: {text}");
    }
    // A step that makes more error of its own, there and nowhere else.
    let command = ["propagate", "--mode", "2-4", "--json"];
    let clean = json(&[&command[..], &["--text", TEXT]].concat());
    let faulty = json(&fault("conv-double-input-scale@layer=2", &command));
    let conv = |out: &serde_json::Value, layer: usize| {
        let mut sites = out["sites"].as_array().unwrap().iter();
        let conv = sites.find(|s| s["layer"] == layer && s["site"] == "conv_out");
        conv.unwrap()["local"]["normalized_l2"].as_f64().unwrap()
    };
    assert!(conv(&faulty, 2) > 10.0 * conv(&clean, 2));
    assert_eq!(conv(&faulty, 3), conv(&clean, 3));
    // Two runs that part at the defect.
    let out = run(&fault("swapped-bc@layer=1", &["equiv", "2-0", "0"]));
    assert_eq!(out.status.code(), Some(1));
    let text = String::from_utf8(out.stdout).unwrap();
    for part in [
        "block 1, ssm_y",
        "fault swapped-bc@layer=1 in B alone makes",
    ] {
        assert!(text.contains(part), "{part}: {text}");
    }
    for command in [&["lineage"][..], &["propagate"], &["equiv", "0", "0"]] {
        let line = refusal(&fault("swapped-bc@layer=12", command));
        assert!(line.contains("layer") && line.contains("12"), "{line}");
    }
    let line = refusal(&fault("swapped-bc@layer=1", &["equiv", "0", "1"]));
    assert!(line.contains("mode 1"), "{line}");
}

#[test]
fn modes_without_scales_have_no_lineage() {
    let line = refusal(&["lineage", "--mode", "1", "--text", TEXT]);
    assert!(line.contains("mode 1"), "{line}");
    let line = refusal(&["lineage", "--mode", "0", "--text", TEXT, "--layers", "12"]);
    assert!(line.contains("--layers") && line.contains("12"), "{line}");
}
