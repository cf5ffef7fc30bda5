//! What commands print: lines that fit a terminal of 80 columns, and JSON.

use crate::common::{commands, scalescope};
use clap::{Command, CommandFactory};
use scalescope::cli::Cli;
use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

/// A command with its usual options, on little. Those before `|` are its own.
#[rustfmt::skip]
const RUNS: &[&str] = &[
    "run --mode 2-1 --text abc --generate 3",
    "run --mode 0 --text abc --fault stale-scale@layer=3,site=x_proj_input,factor=1.7",
    "modes",
    "faults",
    "info q.safetensors",
    "info path",
    "quantize path -o again.safetensors --scales path/scales.json",
    "eval --data passages.jsonl --modes 0,1,2-4",
    "eval --data passages.jsonl --modes 0,1 --task perplexity",
    "eval --merge samples.jsonl",
    "check --golden other.npz",
    "check --golden other.npz --mode 0 --cumulative --explain",
    "check op hadamard_quant op.npz",
    "compare q.npz other.npz",
    "compare q.npz other.npz --metrics all",
    "attribute --mode 2-1 --length 12 --limit 1 --every 8",
    "attribute --trace q.npz",
    "attribute --trace q.npz --mode 2-4",
    "identify --trace q.npz",
    "propagate --mode 2-4 --time --length 8 --limit 1",
    "lineage --mode 0 --length 12 --limit 1",
    "lineage --mode 5-7 --length 12 --limit 1 --layers 0,1",
    "equiv 2-3 2-4 --length 12 --limit 1",
    "equiv 2-3 2-1 --length 12 --limit 1",
    "recommend --mode 2-1 --length 32 --limit 2 --every 8",
    "headroom --profile asic-int8 --length 12 --limit 1",
    "sweep --vary scan.state=int8,int16 --length 12 --limit 1",
    "export --layer 1 --step conv --length 8 --limit 1 -o vectors",
    "check export vectors",
    "report --modes 0,2-4 --length 8 --limit 1",
    "bench --synthetic tiny --modes 0 --length 8 --decode 0 --repeat 1",
    "selftest",
];

/// Commands whose result is no table: a mapping file, a script, and what needs a GPU.
const OTHERS: [&str; 4] = ["map", "completions", "check gpu", "help"];

/// Runs a line in a folder; what it printed. Exit code 1 is a result too.
fn printed(dir: &Path, line: &str) -> String {
    let words: Vec<&str> = line.split(' ').collect();
    let out = scalescope(&words).current_dir(dir).output().unwrap();
    let said = String::from_utf8_lossy(&out.stderr);
    assert!(matches!(out.status.code(), Some(0 | 1)), "{line}: {said}");
    String::from_utf8(out.stdout).unwrap()
}

/// The files that the runs read.
fn prepare(dir: &Path) {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    fs::create_dir(dir.join("path")).unwrap();
    for name in [
        "config.json",
        "model.safetensors",
        "tokenizer.json",
        "scales.json",
    ] {
        fs::copy(
            root.join("sim/sample").join(name),
            dir.join("path").join(name),
        )
        .unwrap();
    }
    let op = root.join("golden/data/ops/hadamard_quant.npz");
    fs::copy(op, dir.join("op.npz")).unwrap();
    let row = "{\"text\": \"It was late in the evening when he came home.\"}\n";
    fs::write(dir.join("passages.jsonl"), row.repeat(3)).unwrap();
    for line in [
        "quantize path -o q.safetensors --scales path/scales.json",
        "run --mode 0 --text abcdefgh --trace q.npz --layers 0,1",
        "eval --data passages.jsonl --modes 0,1 --samples samples.jsonl",
        "run --mode 0 --text abcdefgh --trace other.npz --layers 0,1 --fault stale-scale@layer=1,site=x_proj_input,factor=1.7",
    ] {
        printed(dir, line);
    }
}

/// The command that a line asks: `check`, `check op`.
fn name<'a>(line: &'a str, names: &BTreeSet<String>) -> &'a str {
    let spaces = line.rmatch_indices(' ').map(|(at, _)| at);
    let mut asked = [line.len()].into_iter().chain(spaces).map(|at| &line[..at]);
    asked
        .find(|words| names.contains(*words))
        .unwrap_or_else(|| panic!("{line}: no command"))
}

#[test]
fn every_command_fits_a_terminal_and_prints_json() {
    let mut cli = Cli::command();
    cli.build();
    let has_json = |command: &Command| command.get_arguments().any(|a| a.get_id() == "json");
    let commands = commands(&cli);
    let names: BTreeSet<String> = commands.iter().map(|(name, _)| name.clone()).collect();
    let run = RUNS.iter().map(|line| name(line, &names)).chain(OTHERS);
    let run: BTreeSet<String> = run.map(str::to_owned).collect();
    assert_eq!(names, run, "every command is run, or said not to be");
    for (name, command) in &commands {
        let without = ["map", "completions", "help"].contains(&&**name);
        assert!(has_json(command) != without, "--json of {name}");
    }
    let dir = tempfile::tempdir().unwrap();
    prepare(dir.path());
    let mut wide = Vec::new();
    for line in RUNS {
        let text = printed(dir.path(), line);
        assert!(!text.trim().is_empty(), "{line}");
        let beyond = text.lines().filter(|l| l.chars().count() > 80);
        wide.extend(beyond.map(|l| format!("{line}: {l}")));
        let json = printed(dir.path(), &format!("{line} --json"));
        let json: Result<serde_json::Value, _> = serde_json::from_str(&json);
        assert!(json.is_ok(), "{line}: {json:?}");
    }
    assert!(wide.is_empty(), "{}", wide.join("\n"));
}
