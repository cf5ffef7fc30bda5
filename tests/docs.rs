//! The tables in the documents are made from the code. A table that no longer says what the code
//! does fails here; `SCALESCOPE_UPDATE_DOCS=1 cargo test --test all docs` writes them anew.

use clap::CommandFactory;
use scalescope::cli::Cli;
use scalescope::sequences::SAMPLE_LENGTHS;
use scalescope_sim::arith::quantizer::QUANTIZERS;
use scalescope_sim::checkpoint::quantize::{Ends, quantize};
use scalescope_sim::checkpoint::recipe::Recipe;
use scalescope_sim::dataflow::{Block, Columns, Dim, Origin, Phase, Read};
use scalescope_sim::fault::FAULTS;
use scalescope_sim::mode::{MODES, ModeSpec, families};
use scalescope_sim::model::Model;
use scalescope_sim::plan::ScaleUse;
use scalescope_sim::profile::{ARITHMETICS, CHIP_PROFILES, PROFILES, Profile};
use scalescope_sim::quant::Scale;
use scalescope_sim::trace::{Tensor, TracePoint};
use serde_json::Value;
use std::collections::BTreeMap;
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
        Value::Null => "–".into(),
        other => other.to_string(),
    }
}

/// The fields of a mode as tables show them.
fn fields(mode: &ModeSpec) -> Vec<(String, String)> {
    let row = serde_json::to_value(mode).unwrap();
    let fields = row.as_object().unwrap().iter();
    let fields = fields.filter(|(name, _)| *name != "name" && *name != "summary");
    fields
        .map(|(name, value)| (name.clone(), cell(value)))
        .collect()
}

/// One table a family of modes: the first whole, the others where a mode differs from the first one of all.
fn fields_by_family() -> String {
    let mut text = String::new();
    let usual = fields(&MODES[0]);
    for (i, (title, modes)) in families().enumerate() {
        let mut header = vec!["field"];
        header.extend(modes.iter().map(|mode| &*mode.name));
        let columns: Vec<_> = modes.iter().map(fields).collect();
        let shown = usual.iter().enumerate();
        let shown = shown.filter(|(f, own)| i == 0 || columns.iter().any(|c| c[*f] != **own));
        let rows = shown.map(|(f, (name, _))| {
            let cells = columns.iter().map(|column| column[f].1.clone());
            [format!("`{name}`")].into_iter().chain(cells).collect()
        });
        write!(text, "\n**{title}**\n\n{}", markdown(&header, rows)).unwrap();
    }
    text
}

#[test]
fn modes() {
    check("docs/modes.md", "fields", &fields_by_family());
    let rows = families().flat_map(|(title, modes)| {
        let modes = modes
            .iter()
            .map(|m| vec![format!("`{}`", m.name), m.summary.to_string()]);
        [vec![String::new(), format!("**{title}**")]]
            .into_iter()
            .chain(modes)
    });
    let summaries = markdown(&["mode", "what it does"], rows);
    check("README.md", "modes", &summaries);
    let quantizers = QUANTIZERS.iter().map(|q| {
        let modes = MODES.iter().filter(|m| m.u_quantizer.as_ref() == Some(q));
        let modes: Vec<String> = modes.map(|m| format!("`{}`", m.name)).collect();
        vec![
            format!("`{}`", q.name),
            q.word_bits().to_string(),
            modes.join(", "),
        ]
    });
    let header = ["quantizer", "bits of a code word", "modes"];
    check(
        "docs/modes.md",
        "quantizers",
        &markdown(&header, quantizers),
    );
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
    // A rule that only some arithmetics state has a dash in the others.
    let most = flat.iter().max_by_key(|rules| rules.len()).unwrap();
    for (path, _) in most.iter().filter(|(p, _)| p != "name") {
        let mut row = vec![format!("`{path}`")];
        for arithmetic in &flat {
            let own = arithmetic.iter().find(|(own, _)| own == path);
            row.push(own.map_or("–".into(), |(_, rule)| rule.clone()));
        }
        rules.push(row);
    }
    let stated = rules
        .iter()
        .map(|row| row.iter().skip(1).filter(|cell| *cell != "–").count());
    let all: usize = flat.iter().map(|rules| rules.len() - 1).sum();
    assert_eq!(stated.sum::<usize>(), all, "a rule is in no row");
    // Decode has rows of its own where it differs from prefill.
    let prefill: BTreeMap<String, Vec<String>> = (rules.iter())
        .map(|row| (row[0].clone(), row[1..].to_vec()))
        .collect();
    rules.retain(|row| {
        let before = row[0].replacen("`decode.", "`prefill.", 1);
        before == row[0] || prefill[&before] != row[1..]
    });
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

/// Every rule of docs/trust.md names tests, and each of these is there.
#[test]
fn every_rule_names_tests_that_exist() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let text = std::fs::read_to_string(root.join("docs/trust.md")).unwrap();
    let rules = text.split("## Rules\n").nth(1).unwrap();
    let rules = rules.split("\n## ").next().unwrap();
    let rows = rules.lines().filter(|line| line.starts_with("| ")).skip(1);
    let mut named = 0;
    for row in rows {
        let cell = row.split(" | ").nth(1).unwrap_or_else(|| panic!("{row}"));
        let tests = cell
            .split('`')
            .skip(1)
            .step_by(2)
            .filter(|name| name.contains("::"));
        let mut found = 0;
        for name in tests {
            let (file, test) = name.split_once("::").unwrap();
            let source =
                std::fs::read_to_string(root.join(file)).unwrap_or_else(|e| panic!("{name}: {e}"));
            let (before, _) = source
                .split_once(&format!("fn {test}("))
                .unwrap_or_else(|| panic!("{file} has no {test}"));
            let attributes = before.trim_end().rsplit("\n\n").next().unwrap();
            assert!(attributes.contains("#[test]"), "{name} is no test");
            found += 1;
        }
        assert!(found > 0, "{row}");
        named += found;
    }
    assert!(named > 30, "{named}");
}

/// A package's dependencies within the workspace, as its manifest has them.
fn own_dependencies(manifest: &str) -> (String, Vec<String>) {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(manifest);
    let manifest: toml::Table = std::fs::read_to_string(path).unwrap().parse().unwrap();
    let name = manifest["package"]["name"].as_str().unwrap().to_owned();
    let dependencies = manifest.get("dependencies").and_then(|d| d.as_table());
    let names = dependencies.into_iter().flat_map(|table| table.keys());
    let own = names.filter(|name| name.starts_with("scalescope"));
    (name, own.cloned().collect())
}

#[test]
fn architecture() {
    let manifests = [
        "sim/sample/Cargo.toml",
        "sim/Cargo.toml",
        "golden/Cargo.toml",
        "Cargo.toml",
        "python/Cargo.toml",
    ];
    let rows = manifests.map(|manifest| {
        let (name, own) = own_dependencies(manifest);
        let folder = manifest
            .trim_end_matches("Cargo.toml")
            .trim_end_matches('/');
        let folder = if folder.is_empty() { "." } else { folder };
        vec![format!("`{name}`"), format!("`{folder}`"), own.join(", ")]
    });
    let packages = markdown(&["package", "folder", "stands on"], rows);
    check("docs/architecture.md", "packages", &packages);

    let block = Block::of(&MODES[0], &Profile::get("exact").unwrap(), Phase::Prefill);
    let read = |read: &Read| {
        let tensor = match read.from {
            Origin::Here(point) => point.name().to_owned(),
            Origin::BlockBefore(point) => format!("{} of the block before", point.name()),
            Origin::TokenBefore(point) => format!("{} of the token before", point.name()),
        };
        let columns = match read.columns {
            Columns::All => String::new(),
            part => format!(" ({})", part.name()),
        };
        let scale = read
            .scale
            .map_or(String::new(), |s| format!(" by `{}`", s.name()));
        format!("{tensor}{columns}{scale}")
    };
    let rows = block.rows().iter().filter(|row| row.shown).map(|row| {
        let reads: Vec<String> = row.reads.iter().map(read).collect();
        let [rows, columns] = row.shape.map(Dim::name);
        vec![
            format!("`{}`", row.point.name()),
            row.step.name().to_owned(),
            format!("{} [{rows}, {columns}]", row.format.dtype()),
            reads.join(", "),
            row.quantizer
                .map_or(String::new(), |q| format!("`{}`", q.scale_use().name())),
            (row.rules.iter().map(|r| format!("`{}`", r.path)))
                .collect::<Vec<_>>()
                .join(", "),
        ]
    });
    let header = [
        "tensor",
        "step",
        "type, shape",
        "made from",
        "quantizer",
        "rules",
    ];
    check("docs/architecture.md", "dataflow", &markdown(&header, rows));
}

/// The table of what commands use unless told, from the arguments' own defaults.
#[test]
fn defaults() {
    let program = Cli::command();
    let rows = SAMPLE_LENGTHS.iter().map(|(name, length)| {
        let command = program.find_subcommand(name).expect("a command");
        let default = |id: &str| {
            let arg = command
                .get_arguments()
                .find(|arg| arg.get_long() == Some(id))?;
            let set = arg.get_default_values().first();
            // Where the default depends, the help says it.
            let said = || {
                let help = arg.get_help()?.to_string();
                let (_, rest) = help.split_once("[default: ")?;
                Some(rest.split([';', ']']).next()?.to_owned())
            };
            set.map(|value| value.to_string_lossy().into_owned())
                .or_else(said)
        };
        let mut text = length.to_string();
        if let Some(budget) = default("budget") {
            text += &format!(", {budget} in all");
        }
        match *name {
            "recommend" => text += "; every second passage chooses, the others measure",
            "export" => text += " of the first",
            _ => {}
        }
        let losses = match (*name, default("every")) {
            (_, Some(every)) => format!("one in {every}"),
            ("report" | "sweep", None) => "every position".to_owned(),
            _ => String::new(),
        };
        let profile = default("profile").expect("every one has a profile");
        vec![format!("`{name}`"), format!("`{profile}`"), text, losses]
    });
    let header = ["command", "profile", "tokens of each passage", "losses at"];
    check("docs/diagnosis.md", "defaults", &markdown(&header, rows));
}

/// Lines that are not blank, without modules of tests.
fn lines_of_code(text: &str) -> usize {
    let mut lines = text.lines().filter(|l| !l.trim().is_empty()).peekable();
    let mut count = 0;
    while let Some(line) = lines.next() {
        let module = |next: &&str| next.contains("mod ") && next.ends_with('{');
        if line.trim() == "#[cfg(test)]" && lines.peek().is_some_and(module) {
            let indent = line.len() - line.trim_start().len();
            lines.find(|line| line.trim_end() == format!("{:indent$}}}", ""));
            continue;
        }
        count += 1;
    }
    count
}

/// Every file of Rust below a folder, but for tests, with its lines.
fn files_with_lines(folder: &Path, files: &mut Vec<(std::path::PathBuf, usize)>) {
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        match path.file_name().unwrap().to_str().unwrap() {
            "tests" | "tests.rs" => {}
            _ if path.is_dir() => files_with_lines(&path, files),
            name if name.ends_with(".rs") => {
                let count = lines_of_code(&std::fs::read_to_string(&path).unwrap());
                files.push((path, count));
            }
            _ => {}
        }
    }
}

/// docs/architecture.md says where the lines are: every file is in a room, and no number is more than a tenth off.
#[test]
fn where_the_lines_are() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let text = std::fs::read_to_string(root.join("docs/architecture.md")).unwrap();
    let section = text.split("## Where the lines are\n").nth(1).unwrap();
    let section = section.split("\n## ").next().unwrap();
    let mut rooms: Vec<(&str, usize, usize)> = Vec::new();
    for row in section.lines().filter(|line| line.starts_with("| `")) {
        let cells: Vec<&str> = row.split(" | ").collect();
        let said = cells[1].replace(',', "").parse().unwrap();
        let room = cells[0].trim_start_matches("| `").trim_end_matches('`');
        rooms.push((room, said, 0));
    }
    let mut files = Vec::new();
    for folder in [
        "sim/src",
        "sim/sample/src",
        "golden/src",
        "src",
        "python/src",
    ] {
        files_with_lines(&root.join(folder), &mut files);
    }
    for (path, count) in files {
        let path = path.strip_prefix(root).unwrap().with_extension("");
        let holds = |room: &&mut (&str, usize, usize)| path.starts_with(room.0);
        let own = rooms
            .iter_mut()
            .filter(holds)
            .max_by_key(|room| room.0.len());
        own.unwrap_or_else(|| panic!("{}: in no room", path.display()))
            .2 += count;
    }
    for (room, said, counted) in rooms {
        let close = said.abs_diff(counted) * 10 <= counted;
        assert!(close, "{room} has {counted} lines, not {said}");
    }
}

/// The parts of a diagnosis know those above them in the table of docs/architecture.md, and no others.
#[test]
fn parts_of_a_diagnosis_know_those_above() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let text = std::fs::read_to_string(root.join("docs/architecture.md")).unwrap();
    let table = text.split("| part | what it does |\n").nth(1).unwrap();
    let table = table.lines().skip(1).take_while(|l| l.starts_with('|'));
    let names = table.map(|row| row.split(" | ").next().unwrap().trim_start_matches("| "));
    let ranks: Vec<(usize, String)> = names
        .enumerate()
        .flat_map(|(i, cell)| cell.split(", ").map(move |n| (i, n.replace('`', ""))))
        .collect();
    let folder = root.join("golden/src/diagnosis/diagnose");
    let mut files = Vec::new();
    files_with_lines(&folder, &mut files);
    let mut seen = 0;
    for (path, _) in files {
        let inside = path.strip_prefix(&folder).unwrap().with_extension("");
        let of = |name: &str| ranks.iter().find(|(_, n)| n == name).map(|(rank, _)| *rank);
        let own = of(inside.iter().next().unwrap().to_str().unwrap());
        let own = own.unwrap_or_else(|| panic!("{}: in no part", path.display()));
        let direct = inside.iter().count() == 1;
        for line in std::fs::read_to_string(&path).unwrap().lines() {
            let whole = line.split("diagnosis::diagnose::").nth(1);
            let used = whole.or_else(|| line.strip_prefix("use super::").filter(|_| direct));
            let name = used.and_then(|used| used.split([':', ';', '{']).next());
            if let Some(other) = name.and_then(of) {
                assert!(other <= own, "{}: {line}", path.display());
                seen += 1;
            }
        }
    }
    assert!(seen > 30, "{seen}");
}
