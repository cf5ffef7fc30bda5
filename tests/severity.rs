//! A severity stands for harm: none on a model that is in order, in any command that prints one; an error
//! where a scale really is another one than the codes were written with.

use crate::common::{arg, checkpoint, flowing, json, run, stdout};
use serde_json::Value;

/// Every `severity` above `info`, with what stands beside it.
fn harm(value: &Value, found: &mut Vec<String>) {
    match value {
        Value::Object(fields) => {
            if fields.get("severity").is_some_and(|s| s != "info") {
                let told = [
                    "severity", "layer", "layers", "name", "site", "fit", "words",
                ];
                let told = told.iter().filter_map(|key| fields.get(*key));
                found.push(told.map(Value::to_string).collect::<Vec<_>>().join(" "));
            }
            fields.values().for_each(|field| harm(field, found));
        }
        Value::Array(all) => all.iter().for_each(|one| harm(one, found)),
        _ => {}
    }
}

fn harms(args: &[&str]) -> Vec<String> {
    let args = [args, &["--json"]].concat();
    let out = run(&args);
    let answer: Value = serde_json::from_slice(&out.stdout).expect("JSON");
    assert!(answer.to_string().contains("\"severity\""), "{args:?}");
    let mut found = Vec::new();
    harm(&answer, &mut found);
    // The exit code of `lineage` speaks of its errors.
    assert!(
        out.status.code() == Some(0) || !found.is_empty(),
        "{args:?}"
    );
    found
}

#[test]
fn a_calibrated_model_has_no_errors_and_no_warnings() {
    let dir = tempfile::tempdir().unwrap();
    let page = dir.path().join("page.html");
    let dump = dir.path().join("clean.npz");
    let text = "It was late in the evening when the old captain came home from the harbour.";
    stdout(&["run", "--text", text, "--trace", arg(&dump)]);
    // Calibrated here, on text that the model writes.
    let fresh = dir.path().join("fresh.safetensors");
    let float = checkpoint(dir.path());
    stdout(&[
        "quantize",
        arg(&float),
        "-o",
        arg(&fresh),
        "--limit",
        "8",
        "--length",
        "128",
    ]);
    let tokenizer = float.join("tokenizer.json");
    let fresh = ["--model", arg(&fresh), "--tokenizer", arg(&tokenizer)];
    let mut commands: Vec<Vec<&str>> = vec![
        vec![
            "report",
            "--modes",
            "2-4",
            "--length",
            "33",
            "--limit",
            "1",
            "--html",
            arg(&page),
        ],
        vec![
            "attribute",
            "--mode",
            "2-4",
            "--length",
            "32",
            "--limit",
            "1",
        ],
        vec!["attribute", "--trace", arg(&dump)],
    ];
    for mode in ["0", "2-4", "3", "5-4", "6-4"] {
        let of = |more: &[&'static str]| [&["lineage", "--mode", mode][..], more].concat();
        commands.push(of(&["--length", "128"]));
        commands.push(of(&["--length", "128", "--profile", "deployed"]));
        // What is said does not change with the length of the text.
        commands.push(of(&["--text", "The sea"]));
        commands.push([&of(&["--length", "128"])[..], &fresh[..]].concat());
    }
    commands.push(vec!["lineage", "--mode", "2-4"]);
    for command in &commands {
        assert_eq!(harms(command), Vec::<String>::new(), "{command:?}");
    }
    let text = flowing(&stdout(&["lineage", "--mode", "2-4"]));
    let meant = "x_proj_quant clips 0.034 % to 0.067 % of its values in 12 blocks; its scales were calibrated to clip 0.050 %";
    assert!(text.contains(meant), "{text}");
}

#[test]
fn a_scale_that_is_another_one_is_an_error() {
    let dir = tempfile::tempdir().unwrap();
    let page = dir.path().join("page.html");
    let fault = ["--fault", "stale-scale@layer=4,site=scan_b,factor=1.02"];
    for command in [
        &["lineage", "--mode", "2-4"][..],
        &[
            "report",
            "--modes",
            "2-4",
            "--length",
            "64",
            "--html",
            arg(&page),
        ],
        &[
            "attribute",
            "--mode",
            "2-4",
            "--length",
            "32",
            "--limit",
            "1",
        ],
    ] {
        let found = harms(&[command, &fault[..]].concat());
        let named = |harm: &String| harm.starts_with("\"error\"");
        assert!(found.iter().any(named), "{command:?}: {found:?}");
    }
    let found = json(
        &[
            &["attribute", "--mode", "2-4", "--length", "64", "--json"],
            &fault[..],
        ]
        .concat(),
    );
    let first = &found["findings"][0];
    assert_eq!(
        (&first["kind"], &first["layer"], &first["site"]),
        (&"stale-scale".into(), &4.into(), &"x_proj_output".into())
    );
}

#[test]
fn a_scale_that_fits_nothing_is_harm_though_all_agree() {
    use scalescope_sim::checkpoint::quantized;
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("bad.safetensors");
    let tokenizer = checkpoint(dir.path()).join("tokenizer.json");
    for (factor, severity, words) in [
        (0.25, "\"error\"", "are clipped"),
        (16.0, "\"warning\"", "three bits or more are never used"),
    ] {
        let mut model = (**scalescope_sim::sample::model().quantized.as_ref().unwrap()).clone();
        let scale = &mut model.layers[5].scales.in_proj_input;
        *scale = scale.times(factor).unwrap();
        quantized::write(&file, &model).unwrap();
        let found = harms(&[
            "lineage",
            "--model",
            arg(&file),
            "--tokenizer",
            arg(&tokenizer),
        ]);
        assert_eq!(found.len(), 1, "{found:?}");
        assert!(
            found[0].starts_with(severity) && found[0].contains(words),
            "{found:?}"
        );
        assert!(found[0].contains("norm_out"), "{found:?}");
    }
}
