//! The tables in the documents are made from the code. A table that no longer says what the code
//! does fails here; `SCALESCOPE_UPDATE_DOCS=1 cargo test --test all docs` writes them anew.

use scalescope_sim::checkpoint::quantize::{Ends, quantize};
use scalescope_sim::checkpoint::recipe::Recipe;
use scalescope_sim::fault::FAULTS;
use scalescope_sim::mode::MODES;
use scalescope_sim::model::Model;
use scalescope_sim::plan::ScaleUse;
use scalescope_sim::profile::{ARITHMETICS, CHIP_PROFILES, PROFILES, Profile};
use scalescope_sim::quant::Scale;
use scalescope_sim::trace::{Tensor, TracePoint};
use serde_json::Value;
use std::fmt::Write;
use std::path::Path;
use std::sync::Arc;

/// Holds the lines between `<!-- table NAME -->` and `<!-- end -->` of a document against `want`.
fn check(file: &str, name: &str, want: &str) {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(file);
    let text = std::fs::read_to_string(&path).unwrap_or_else(|e| panic!("{file}: {e}"));
    let open = format!("<!-- table {name} -->\n");
    let start = text
        .find(&open)
        .unwrap_or_else(|| panic!("{file}: no table {name}"))
        + open.len();
    let end = start + text[start..].find("<!-- end -->").expect("a table ends");
    if &text[start..end] == want {
        return;
    }
    if std::env::var_os("SCALESCOPE_UPDATE_DOCS").is_some() {
        let fresh = format!("{}{want}{}", &text[..start], &text[end..]);
        std::fs::write(&path, fresh).unwrap();
        return;
    }
    panic!("{file}: table {name} is out of date; it should read\n{want}");
}

fn markdown(header: &[&str], rows: impl IntoIterator<Item = Vec<String>>) -> String {
    let mut text = format!(
        "| {} |\n|{}\n",
        header.join(" | "),
        "---|".repeat(header.len())
    );
    for row in rows {
        writeln!(text, "| {} |", row.join(" | ")).unwrap();
    }
    text
}

fn cell(value: &Value) -> String {
    match value {
        Value::String(s) => s.clone(),
        other => other.to_string(),
    }
}

#[test]
fn modes() {
    let rows: Vec<Value> = MODES
        .iter()
        .map(|m| serde_json::to_value(m).unwrap())
        .collect();
    let fields: Vec<&String> = rows[0].as_object().unwrap().keys().collect();
    let mut header = vec!["field"];
    header.extend(MODES.iter().map(|m| &*m.name));
    let table = markdown(
        &header,
        fields
            .iter()
            .filter(|f| *f != &"name" && *f != &"summary")
            .map(|field| {
                let mut row = vec![format!("`{field}`")];
                row.extend(rows.iter().map(|r| cell(&r[field.as_str()])));
                row
            }),
    );
    check("docs/modes.md", "fields", &table);
    let summaries = markdown(
        &["mode", "what it does"],
        MODES
            .iter()
            .map(|m| vec![format!("`{}`", m.name), m.summary.to_string()]),
    );
    check("docs/modes.md", "summaries", &summaries);
    check("README.md", "modes", &summaries);
}

#[test]
fn arithmetics_and_profiles() {
    let profiles = markdown(
        &["profile", "`cuda` steps", "`torch` steps", "what it is"],
        PROFILES.iter().map(|p| {
            vec![
                format!("`{}`", p.name),
                format!("`{}`", p.cuda.name),
                format!("`{}`", p.torch.name),
                p.summary.to_string(),
            ]
        }),
    );
    check("docs/arithmetic.md", "profiles", &profiles);
    let chips = markdown(
        &["profile", "what it is"],
        CHIP_PROFILES.iter().map(|(name, _)| {
            let profile = Profile::get(name).unwrap();
            vec![format!("`{name}`"), profile.summary.to_string()]
        }),
    );
    check("docs/asic.md", "chips", &chips);
    let mut rules: Vec<Vec<String>> = Vec::new();
    let flat: Vec<Vec<(String, String)>> = ARITHMETICS
        .iter()
        .map(|a| {
            let mut out = Vec::new();
            flatten("", &serde_json::to_value(a).unwrap(), &mut out);
            out
        })
        .collect();
    for (i, (path, _)) in flat[0].iter().enumerate().filter(|(_, (p, _))| p != "name") {
        let mut row = vec![format!("`{path}`")];
        for arithmetic in &flat {
            assert_eq!(&arithmetic[i].0, path);
            row.push(arithmetic[i].1.clone());
        }
        rules.push(row);
    }
    let mut header = vec!["rule"];
    header.extend(ARITHMETICS.iter().map(|a| a.name.as_ref()));
    check(
        "docs/arithmetic.md",
        "arithmetics",
        &markdown(&header, rules),
    );
}

fn flatten(path: &str, value: &Value, out: &mut Vec<(String, String)>) {
    match value {
        Value::Object(fields) => {
            for (key, value) in fields {
                let path = match path {
                    "" => key.clone(),
                    _ => format!("{path}.{key}"),
                };
                flatten(&path, value, out);
            }
        }
        leaf => out.push((path.to_string(), cell(leaf))),
    }
}

#[test]
fn every_trace_point_is_documented_in_order() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/trace-points.md");
    let text = std::fs::read_to_string(path).unwrap();
    let documented: Vec<&str> = text
        .lines()
        .filter_map(|line| line.strip_prefix("| `")?.split('`').next())
        .filter(|name| TracePoint::from_name(name).is_some())
        .collect();
    let points: Vec<&str> = TracePoint::ALL.iter().map(|p| p.name()).collect();
    assert_eq!(documented, points);
}

/// The sample model with embedding, final norm and head in INT8.
fn with_int8_ends(model: &Model) -> Model {
    let head_input = Scale::new(0.0473).unwrap();
    let float = model.float.as_deref().unwrap();
    let scales = scalescope_sim::sample::activation_scales();
    let ends = Ends::Int8 { head_input };
    let quantized = quantize(float, &scales, &Recipe::QUAMBA, ends).unwrap();
    Model {
        quantized: Some(Arc::new(quantized)),
        ..Model::default()
    }
}

#[test]
fn documented_types_are_what_the_modes_emit() {
    use scalescope_sim::datapath::{Datapath, LogitRows};
    use scalescope_sim::trace::{Recorder, Selection};
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/trace-points.md");
    let text = std::fs::read_to_string(path).unwrap();
    let types = |point: TracePoint| -> String {
        let line = text
            .lines()
            .find(|l| l.starts_with(&format!("| `{}`", point.name())));
        line.expect("documented")
            .split('|')
            .nth(2)
            .unwrap()
            .to_string()
    };
    let model = scalescope_sim::sample::model();
    let int8_ends = with_int8_ends(&model);
    let tokens = [46, 37, 55, 1238, 47];
    let mut seen = std::collections::BTreeSet::new();
    // Scales of tokens are a profile's; every other point is a mode's.
    let tokens_text = "version = 1\n[activations]\ngranularity = \"token\"\n";
    let by_token = Profile::from_toml("tokens", tokens_text).unwrap();
    let exact = Profile::get("exact").unwrap();
    let runs = MODES
        .iter()
        .map(|mode| (&model, mode, &exact))
        .chain([(&model, &MODES[0], &by_token)])
        // An INT8 head is the model's, whatever the mode.
        .chain([(&int8_ends, &MODES[0], &exact)]);
    for (model, mode, profile) in runs {
        let datapath = Datapath::new(model, mode, profile).unwrap();
        let mut prefill = Recorder::new(Selection::default());
        let (_, mut state) = datapath
            .prefill(&tokens, LogitRows::All, &mut prefill)
            .unwrap();
        let mut decode = Recorder::new(Selection::default());
        datapath.decode(7, &mut state, &mut decode).unwrap();
        for (place, tensor) in prefill.tensors.iter().chain(&decode.tensors) {
            let dtype = tensor.dtype();
            assert!(
                types(place.point).contains(dtype),
                "mode {}: {place} is {dtype}, documented as{}",
                mode.name,
                types(place.point),
            );
            let _: &Tensor = tensor;
            seen.insert(place.point);
        }
    }
    for point in TracePoint::ALL {
        assert!(seen.contains(&point), "no mode emits {}", point.name());
    }
}

#[test]
fn fault_models_are_documented() {
    let rows = FAULTS.iter().map(|fault| {
        let parameters: Vec<String> = fault
            .parameters
            .iter()
            .map(|p| match p.default {
                Some(default) => format!("`{}` ({default})", p.name),
                None => format!("`{}`", p.name),
            })
            .collect();
        vec![
            format!("`{}`", fault.name),
            fault.effect.to_string(),
            parameters.join(", "),
            format!("`{}`", fault.example),
        ]
    });
    let header = [
        "fault",
        "what goes wrong",
        "parameters (default)",
        "example",
    ];
    check("docs/attribution.md", "faults", &markdown(&header, rows));
}

#[test]
fn scale_uses_are_documented() {
    let rows = ScaleUse::ALL.iter().map(|u| {
        let name = serde_json::to_value(u).unwrap();
        vec![
            format!("`{}`", name.as_str().unwrap()),
            format!("`{}`", u.key().name()),
            if u.produces() { "producer" } else { "consumer" }.to_string(),
        ]
    });
    check(
        "docs/arithmetic.md",
        "scales",
        &markdown(&["use", "calibrated scale", "side"], rows),
    );
}

#[test]
fn the_dynamic_modes_are_read() {
    let mut table = scalescope_sim::mode::ModeTable::default();
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/dynamic-modes.toml");
    table.add_file(&file).unwrap();
    for base in ["0", "2-3", "2-4", "3"] {
        let token = table.get(&format!("{base}-token")).unwrap();
        let base = table.get(base).unwrap();
        assert_ne!(token.conv_in, base.conv_in);
        let same = scalescope_sim::mode::ModeSpec {
            name: base.name.clone(),
            summary: base.summary.clone(),
            conv_in: base.conv_in,
            ..token.clone()
        };
        assert_eq!(&same, base);
    }
}

/// Every `.rs` file below a folder.
fn sources(folder: &Path, found: &mut Vec<std::path::PathBuf>) {
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() && !path.ends_with("target") {
            sources(&path, found);
        } else if path.extension().is_some_and(|e| e == "rs") {
            found.push(path);
        }
    }
}

#[test]
fn every_unsafe_block_states_its_reason() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut files = Vec::new();
    for folder in ["sim/src", "golden/src", "src", "fuzz"] {
        sources(&root.join(folder), &mut files);
    }
    let mut blocks = 0;
    for file in &files {
        let text = std::fs::read_to_string(file).unwrap();
        let lines: Vec<&str> = text.lines().collect();
        for (i, line) in lines.iter().enumerate() {
            let code = line.split("//").next().unwrap();
            if !(code.contains("unsafe {") || code.contains("unsafe impl")) {
                continue;
            }
            blocks += 1;
            // Above it, or above the statement it stands in.
            let reason = lines[i.saturating_sub(5)..=i].iter();
            let stated = reason.into_iter().any(|line| line.contains("SAFETY: "));
            assert!(stated, "{}:{}: {line}", file.display(), i + 1);
        }
    }
    assert!(blocks > 80, "{blocks}");
}

/// With `autotests = false`, a file that no program names would silently not be tested.
#[test]
fn every_test_file_belongs_to_a_program() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    for package in ["", "golden", "sim"] {
        let package = root.join(package);
        let read = |file| std::fs::read_to_string(package.join(file)).unwrap();
        let (programs, modules) = (read("Cargo.toml"), read("tests/all.rs"));
        let mut files = 0;
        for entry in std::fs::read_dir(package.join("tests")).unwrap() {
            let path = entry.unwrap().path();
            if path.extension().is_none_or(|e| e != "rs") {
                continue;
            }
            files += 1;
            let name = path.file_stem().unwrap().to_str().unwrap();
            let program = programs.contains(&format!("[[test]]\nname = \"{name}\"\n"));
            let module = modules.lines().any(|l| l == format!("mod {name};"));
            let path = path.display();
            assert!(program != module, "{path} belongs into one program");
        }
        assert!(files > 10, "{}: {files}", package.display());
    }
}
