//! Running the built program, and small inputs for it.

use scalescope_golden::npz::{Array, Compression, NpzReader, NpzWriter};
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

/// The program with arguments, not started yet.
pub fn scalescope(args: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_scalescope"));
    command.args(args).env("NO_COLOR", "1");
    command
}

/// Runs the program.
pub fn run(args: &[&str]) -> Output {
    scalescope(args).output().expect("the program starts")
}

/// Standard output of a run that must succeed.
pub fn stdout(args: &[&str]) -> String {
    let out = run(args);
    let error = String::from_utf8_lossy(&out.stderr);
    assert_eq!(out.status.code(), Some(0), "{args:?}: {error}");
    String::from_utf8(out.stdout).expect("results are text")
}

/// Every command of the program and of its commands: `check`, `check op`.
pub fn commands(program: &clap::Command) -> Vec<(String, clap::Command)> {
    let mut all = Vec::new();
    for command in program.get_subcommands() {
        let name = command.get_name();
        all.push((name.to_owned(), command.clone()));
        // clap's own `help` lists all of them again.
        let inner = command.get_subcommands();
        let inner = inner.filter(|inner| name != "help" && inner.get_name() != "help");
        all.extend(inner.map(|inner| (format!("{name} {}", inner.get_name()), inner.clone())));
    }
    all
}

/// JSON of a run that must succeed.
pub fn json(args: &[&str]) -> serde_json::Value {
    serde_json::from_str(&stdout(args)).expect("--json prints JSON")
}

/// The one line of a run that must be refused with exit code 2.
pub fn refusal(args: &[&str]) -> String {
    let out = run(args);
    let error = String::from_utf8_lossy(&out.stderr).into_owned();
    assert_eq!(out.status.code(), Some(2), "{args:?}: {error}");
    assert!(out.stdout.is_empty(), "{args:?} printed a result");
    assert!(!error.contains("panicked"), "{args:?}: {error}");
    assert_eq!(error.trim_end().lines().count(), 1, "{args:?}: {error}");
    error
}

/// The built-in model's files as a checkpoint directory.
pub fn checkpoint(dir: &Path) -> PathBuf {
    let sample = Path::new(env!("CARGO_MANIFEST_DIR")).join("sim/sample");
    let to = dir.join("checkpoint");
    std::fs::create_dir_all(&to).unwrap();
    for name in ["config.json", "model.safetensors", "tokenizer.json"] {
        std::fs::copy(sample.join(name), to.join(name)).unwrap();
    }
    to
}

/// The reference scales of the built-in model.
pub fn scales() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("sim/sample/scales.json")
}

/// A path as an argument.
pub fn arg(path: &Path) -> &str {
    path.to_str().expect("temporary paths are UTF-8")
}

/// The same file with its arrays changed.
pub fn edited(file: &Path, name: &str, edit: impl Fn(&str, Array) -> Option<Array>) -> PathBuf {
    let to = file.with_file_name(name);
    let mut npz = NpzReader::open(file).unwrap();
    let names: Vec<String> = npz.names().map(str::to_owned).collect();
    let mut out = NpzWriter::create(&to, Compression::Stored).unwrap();
    for key in names {
        if let Some(array) = edit(&key, npz.read(&key).unwrap()) {
            out.add(&key, &array).unwrap();
        }
    }
    out.finish().unwrap();
    to
}

/// A text in one line: where it was broken to fit a terminal says nothing.
pub fn flowing(text: &str) -> String {
    text.split_whitespace().collect::<Vec<_>>().join(" ")
}
