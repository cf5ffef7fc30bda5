//! The README is true: every command in it runs, and prints what is said of it.

use crate::common::{checkpoint, flowing, scalescope};
use std::fs;
use std::path::Path;

/// A command of the README by its beginning; what makes it quick in a test; its exit code; what it prints.
type Promise = (&'static str, &'static str, i32, &'static [&'static str]);

const QUICK: &str = "--length 24 --limit 2";

#[rustfmt::skip]
const PROMISES: &[Promise] = &[
    ("run --mode 2-1 --text \"It was a dark\"", "", 0, &["perplexity", "scale_ratio"]),
    ("run --mode 0 --profile deployed --file book.txt", "", 0, &["trace written to out.npz"]),
    ("info path/to/quamba-130m-w8a8", "", 0, &["W8A8 model (Quamba)", "12 blocks"]),
    ("quantize path/to/mamba-130m -o q.safetensors", "", 0, &["q.safetensors: 12 blocks", "texts.jsonl"]),
    ("report --model q.safetensors", "--length 24 --modes 0,2-4", 0, &["Verdict", "Mode 0 costs", "scalescope attribute --mode 0 --model q.safetensors"]),
    ("report --html report.html", "--length 24 --limit 1 --modes 2-4", 0, &["Verdict", "page written to report.html"]),
    ("propagate --mode 2-4", QUICK, 0, &["local normalized_l2", "propagated normalized_l2"]),
    ("lineage --mode 2-4", QUICK, 0, &["x_proj_quant", "└ scan_b", "every reader has the scale of its quantizer"]),
    ("equiv 2-3 2-1", QUICK, 0, &["equal on this text", "not proven"]),
    ("headroom --profile asic-int8", QUICK, 0, &["always enough", "enough here"]),
    ("sweep --vary", QUICK, 0, &["Pareto front", "scan.state=int16"]),
    ("export --layer 3 --step conv", QUICK, 0, &["expected", "written to vectors"]),
    ("eval --modes all,original", "--limit 4", 0, &["perplexity", "tied", "original"]),
    ("bench --synthetic", "--length 8 --decode 0 --repeat 1", 0, &["mode"]),
    ("attribute --mode 2-4 --dump dump.npz", "", 1, &["stale-scale: block 3, x_proj_input", "--fault stale-scale@layer=3,site=x_proj_input,factor=1.7"]),
    ("identify --mode 0 --dump dump.npz", "", 1, &["extends = "]),
    ("attribute --mode 2-4 --against 1", "--length 24 --limit 1", 0, &["KL", "one off"]),
    ("recommend --mode 2-4", "--length 16 --limit 2 --stride 4", 0, &["KL"]),
    ("run --mode 0 --text \"…\" --fault", "", 0, &["fault stale-scale@layer=3,site=x_proj_input,factor=1.7"]),
    ("compare float.npz int8.npz", "", 1, &["sqnr_db", "MISMATCH"]),
    ("check --model q.safetensors", "", 0, &["mismatched", "are equal to the last bit"]),
    ("check op selective_scan vectors.npz", "", 0, &["mismatched 0, missing 0: equal"]),
    ("check gpu", "", 2, &[]),
    ("selftest", "", 0, &["every flip that changes a result was noticed"]),
];

/// The README's lines that run the program, without their comments.
fn commands(readme: &str) -> Vec<&str> {
    let lines = readme
        .lines()
        .filter_map(|line| line.strip_prefix("scalescope "));
    lines
        .map(|line| line.split(" #").next().unwrap().trim())
        .collect()
}

/// A command line in words; quotes hold words together.
fn words(line: &str) -> Vec<String> {
    let quoted = line.split('"').enumerate();
    let parts = quoted.flat_map(|(i, part)| match i % 2 {
        0 => part.split_whitespace().collect(),
        _ => vec![part],
    });
    parts.map(str::to_owned).collect()
}

/// Runs a line in a folder: exit code and what it printed.
fn run(dir: &Path, line: &str) -> (Option<i32>, String) {
    let words = words(line);
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    let out = scalescope(&words).current_dir(dir).output().unwrap();
    let all = [out.stdout, out.stderr].concat();
    (out.status.code(), String::from_utf8(all).unwrap())
}

/// The files that the README's commands read, where they look for them.
fn prepare(dir: &Path) {
    let to = dir.join("path/to");
    fs::create_dir_all(&to).unwrap();
    let made = checkpoint(dir);
    for name in ["mamba-130m", "mamba-130m-hf"] {
        fs::create_dir(to.join(name)).unwrap();
        for file in fs::read_dir(&made).unwrap() {
            let file = file.unwrap();
            fs::copy(file.path(), to.join(name).join(file.file_name())).unwrap();
        }
    }
    let line = "It was late in the evening when the old captain came home from the harbour. ";
    fs::write(dir.join("book.txt"), line.repeat(4)).unwrap();
    let row = serde_json::json!({ "text": line }).to_string() + "\n";
    fs::write(dir.join("texts.jsonl"), row.repeat(4)).unwrap();
    fs::write(dir.join("passages.jsonl"), row.repeat(4)).unwrap();
    let op = Path::new(env!("CARGO_MANIFEST_DIR")).join("golden/data/ops/selective_scan.npz");
    fs::copy(op, dir.join("vectors.npz")).unwrap();
    for line in [
        "quantize path/to/mamba-130m -o path/to/quamba-130m-w8a8 --format quamba --calibrate texts.jsonl",
        "quantize path/to/mamba-130m -o q.safetensors --calibrate texts.jsonl",
        "run --mode 1 --text \"a dark night\" --trace float.npz",
        "run --mode 0 --text \"a dark night\" --trace int8.npz",
        "run --mode 2-4 --text \"It was a dark night and the sea\" --fault stale-scale@layer=3,site=x_proj_input,factor=1.7 --trace dump.npz",
        "run --model q.safetensors --tokenizer path/to/mamba-130m/tokenizer.json --mode 0 --profile deployed --text \"a dark night\" --trace trace.npz",
    ] {
        let (code, said) = run(dir, line);
        assert_eq!(code, Some(0), "{line}: {said}");
    }
}

#[test]
fn every_command_does_what_is_said_of_it() {
    let readme =
        fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("README.md")).unwrap();
    let dir = tempfile::tempdir().unwrap();
    prepare(dir.path());
    let commands = commands(&readme);
    for (begin, ..) in PROMISES {
        let found = commands.iter().filter(|line| line.starts_with(begin));
        assert_eq!(found.count(), 1, "{begin}: once in the README");
    }
    assert_eq!(commands.len(), PROMISES.len());
    for line in commands {
        let promise = PROMISES.iter().find(|(begin, ..)| line.starts_with(begin));
        let Some((_, quick, code, printed)) = promise else {
            panic!("{line}: the test knows nothing of it");
        };
        // A build with a GPU may do more than is promised.
        if *code == 2 && cfg!(feature = "cuda") {
            continue;
        }
        let line = line
            .replace("130m --modes", "tiny --modes")
            .replace("8..16", "8..9");
        let (found, said) = run(dir.path(), &format!("{line} {quick}"));
        assert_eq!(found, Some(*code), "{line}: {said}");
        let said = flowing(&said);
        for words in *printed {
            assert!(said.contains(words), "{line}: {words} in\n{said}");
        }
    }
}

#[test]
fn what_the_first_command_prints() {
    let readme =
        fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("README.md")).unwrap();
    let begin = readme.find("Verdict\n").expect("the README shows it");
    let shown = &readme[begin..];
    let shown = &shown[..shown.find("```").unwrap()];
    let (code, said) = run(Path::new("."), "report");
    assert_eq!(code, Some(0));
    assert!(said.contains(shown), "{shown}\nin\n{said}");
}
