//! `scalescope eval` from outside: files, refusals, exit codes.

use scalescope_sim::mode::MODES;
use serde_json::Value;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

/// Ten passages of our own: one of one word, one with double blanks, one with letters no training
/// text had.
const PASSAGES: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/data/passages.jsonl");

fn scalescope(args: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_scalescope"))
        .args(args)
        .output()
        .expect("the program starts")
}

fn eval(data: &str, args: &[&str]) -> Output {
    scalescope(&[&["eval", "--data", data], args].concat())
}

#[track_caller]
fn ok(output: &Output) -> String {
    let (out, err) = (text(&output.stdout), text(&output.stderr));
    assert_eq!(output.status.code(), Some(0), "{out}\n{err}");
    out
}

#[track_caller]
fn refused(output: &Output, part: &str) {
    let err = text(&output.stderr);
    assert_eq!(output.status.code(), Some(2), "{err}");
    assert!(err.contains(part), "{part:?} is not in: {err}");
    assert!(output.stdout.is_empty());
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

struct Dir(tempfile::TempDir);

impl Dir {
    fn new() -> Self {
        Self(tempfile::tempdir().unwrap())
    }
    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }
    fn file(&self, name: &str) -> String {
        self.path(name).to_str().unwrap().to_string()
    }
}

fn json(path: &Path) -> Value {
    serde_json::from_slice(&fs::read(path).unwrap()).unwrap()
}

fn names(list: &Value) -> Vec<&str> {
    let list = list.as_array().unwrap();
    list.iter().map(|m| m["mode"].as_str().unwrap()).collect()
}

#[test]
fn all_means_every_mode_and_original_has_a_name() {
    let dir = Dir::new();
    let (all, more) = (dir.file("all.json"), dir.file("more.json"));
    ok(&eval(PASSAGES, &["--limit", "2", "--json", &all]));
    let every: Vec<&str> = MODES.iter().map(|mode| &*mode.name).collect();
    assert_eq!(names(&json(Path::new(&all))["modes"]), every);
    let count = every.len() + 1;
    let args = ["--limit", "2", "--modes", "all,original", "--json", &more];
    let table = ok(&eval(PASSAGES, &args));
    let report = json(Path::new(&more));
    assert_eq!(names(&report["modes"])[count - 1], "original");
    let pairs = report["pairs"].as_array().unwrap().len();
    assert_eq!(pairs, count * (count - 1) / 2);
    assert!(table.contains("cannot be told apart") && table.contains("folding"));
    // Under `exact`, 0 and 2-1 are one computation; the round trip of 2-0 is the identity.
    for mode in ["2-0", "2-1"] {
        let pair = report["pairs"].as_array().unwrap().iter();
        let mut pair = pair.filter(|p| p["a"] == "0" && p["b"] == mode);
        assert_eq!(pair.next().unwrap()["identical"], true, "0 and {mode}");
    }
    refused(&eval(PASSAGES, &["--modes", "0,9"]), "original");
}

#[test]
fn folding_changes_little_and_int8_more() {
    let dir = Dir::new();
    let file = dir.file("out.json");
    let args = [
        "--modes",
        "original,1,0",
        "--task",
        "perplexity",
        "--json",
        &file,
    ];
    ok(&eval(PASSAGES, &args));
    let report = json(Path::new(&file));
    let costs = report["costs"].as_array().unwrap();
    let ratio = |i: usize| (costs[i]["ratio"].as_f64().unwrap() - 1.0).abs();
    assert_eq!(
        (&costs[0]["step"], &costs[1]["step"]),
        (&"folding".into(), &"quantization".into())
    );
    assert!(ratio(0) < 1e-3 && ratio(1) > ratio(0), "{costs:?}");
    assert!(report["modes"][0]["bits_per_byte"].as_f64().unwrap() > 0.5);
}

#[test]
fn an_interrupted_run_is_resumed_and_other_settings_are_refused() {
    let dir = Dir::new();
    let (whole, cut) = (dir.file("whole.jsonl"), dir.file("cut.jsonl"));
    let (first, second) = (dir.file("first.json"), dir.file("second.json"));
    let modes = ["--modes", "0,1"];
    let run = |samples: &str, more: &[&str]| {
        eval(PASSAGES, &[&modes, &["--samples", samples], more].concat())
    };
    ok(&run(&whole, &["--json", &first]));
    let bytes = fs::read(&whole).unwrap();
    let lines: Vec<Value> = (text(&bytes).lines())
        .map(|line| serde_json::from_str(line).unwrap())
        .collect();
    assert_eq!(lines.len(), 1 + 2 * 10);
    assert_eq!(
        (&lines[1]["id"], &lines[1]["mode"]),
        (&0.into(), &"0".into())
    );
    for field in ["greedy", "log_likelihood", "target_tokens", "kl"] {
        assert!(!lines[1][field].is_null(), "{field}");
    }

    // Cut inside a line; then what is there is kept and the rest done again, bit for bit.
    fs::write(&cut, &bytes[..bytes.len() * 2 / 3]).unwrap();
    ok(&run(
        &cut,
        &["--resume", "--json", &second, "--threads", "1"],
    ));
    assert_eq!(fs::read(&cut).unwrap(), bytes);
    assert_eq!(fs::read(&first).unwrap(), fs::read(&second).unwrap());

    refused(&run(&cut, &[]), "--resume");
    let resume = |more: &[&str]| run(&cut, &[&["--resume"], more].concat());
    refused(&resume(&["--profile", "deployed"]), "settings: profile");
    refused(&resume(&["--limit", "9"]), "settings: limit");
    refused(&resume(&["--max-length", "9"]), "settings: task");
    let args = ["--modes", "0,2-4", "--samples", &cut, "--resume"];
    refused(&eval(PASSAGES, &args), "settings: modes");
    assert_eq!(fs::read(&cut).unwrap(), bytes);
    // Another file of the same text is the same data; another text is not.
    let copy = dir.file("copy.jsonl");
    fs::copy(PASSAGES, &copy).unwrap();
    let args = ["--modes", "0,1", "--samples", &cut, "--resume"];
    ok(&eval(&copy, &args));
    fs::write(&copy, "{\"text\": \"another text\"}\n").unwrap();
    refused(&eval(&copy, &args), "settings: data");
}

/// Quamba's protocol: pieces of all texts as one, each piece a sample.
#[test]
fn pieces_of_all_texts_are_samples_of_their_own() {
    let dir = Dir::new();
    let json = dir.file("pieces.json");
    let args = [
        "--modes",
        "1",
        "--task",
        "perplexity",
        "--protocol",
        "quamba",
    ];
    let pieces = |more: &[&str]| eval(PASSAGES, &[&args, more].concat());
    ok(&pieces(&["--window", "20", "--json", &json]));
    let report: Value = serde_json::from_slice(&fs::read(&json).unwrap()).unwrap();
    let samples = report["samples"].as_u64().unwrap();
    assert!(samples > 2, "{samples}");
    assert_eq!(report["target_tokens"], 19 * samples);
    assert_eq!(
        report["settings"]["task"],
        serde_json::json!({"task": "chunks", "length": 20})
    );
    // 2048 tokens are more than there are.
    refused(&pieces(&[]), "1 %");
    refused(&pieces(&["--window", "1"]), "--window");
    refused(&pieces(&["--window", "20", "--stride", "5"]), "--stride");
}

#[test]
fn shards_merge_to_the_report_of_one_run() {
    let dir = Dir::new();
    for task in ["last-word", "perplexity"] {
        let common = [
            "--modes", "2-4,1", "--task", task, "--window", "9", "--stride", "4",
        ];
        let run = |more: &[&str]| eval(PASSAGES, &[&common, more].concat());
        let whole = dir.file(&format!("{task}.json"));
        let table = ok(&run(&["--json", &whole]));
        let parts: Vec<String> = (0..3)
            .map(|i| {
                let part = dir.file(&format!("{task}{i}.jsonl"));
                let shown = ok(&run(&["--samples", &part, "--shard", &format!("{i}/3")]));
                assert!(shown.contains(&format!("shard {i}/3 only")));
                part
            })
            .collect();
        let merged = dir.file(&format!("{task}-merged.json"));
        let joined = dir.file(&format!("{task}-joined.jsonl"));
        let args = [
            "eval",
            "--merge",
            &parts[2],
            &parts[0],
            &parts[1],
            "--json",
            &merged,
            "--samples",
            &joined,
        ];
        assert_eq!(ok(&scalescope(&args)), table);
        assert_eq!(fs::read(&merged).unwrap(), fs::read(&whole).unwrap());
        assert_eq!(ok(&scalescope(&["eval", "--merge", &joined])), table);
        refused(
            &scalescope(&["eval", "--merge", &parts[0], &parts[1]]),
            "no shard 2/3",
        );
    }
    refused(&scalescope(&["eval", "--merge", PASSAGES]), "line 1");
    let bad = eval(PASSAGES, &["--samples", "x", "--shard", "3/3"]);
    assert_eq!(bad.status.code(), Some(2));
}

#[test]
fn bad_lines_are_named_and_more_than_one_percent_fails() {
    let dir = Dir::new();
    let data = dir.file("data.jsonl");
    let good = "{\"text\": \"a very short passage\"}\n".repeat(99);
    fs::write(&data, format!("{good}{{\"texts\": 1}}\n")).unwrap();
    let json = dir.file("out.json");
    let output = eval(
        &data,
        &["--modes", "0", "--reference", "none", "--json", &json],
    );
    assert!(ok(&output).contains("1 of 100 lines could not be used"));
    assert!(text(&output.stderr).contains("line 100 (id 99): not a JSON object"));
    let report: Value = serde_json::from_slice(&fs::read(&json).unwrap()).unwrap();
    assert_eq!(report["settings"]["bad_lines"][0]["id"], 99);
    fs::write(
        &data,
        format!("{good}nonsense\n\n\n{{\"text\": \"\"}}\n[]\n"),
    )
    .unwrap();
    refused(&eval(&data, &["--modes", "0"]), "found 2 of 101");
    fs::write(&data, "\n").unwrap();
    refused(&eval(&data, &["--modes", "0"]), "expected a text, found");
    refused(&eval("no/such/file", &["--modes", "0"]), "no/such/file");
    refused(
        &eval(PASSAGES, &["--task", "perplexity", "--stride", "513"]),
        "--stride",
    );
}

#[cfg(unix)]
#[test]
fn an_interrupt_leaves_a_file_to_go_on_with() {
    let dir = Dir::new();
    let (data, samples) = (dir.file("data.jsonl"), dir.file("s.jsonl"));
    let line = "{\"text\": \"He said it again, and again, until nobody in the house heard it\"}\n";
    fs::write(&data, line.repeat(100_000)).unwrap();
    let args = [
        "eval",
        "--data",
        &data,
        "--modes",
        "0,2-4",
        "--samples",
        &samples,
    ];
    let mut child = Command::new(env!("CARGO_BIN_EXE_scalescope"))
        .args(args)
        .stderr(std::process::Stdio::piped())
        .spawn()
        .unwrap();
    let lines = || fs::read_to_string(&samples).map_or(0, |s| s.lines().count());
    while lines() < 4 {
        assert!(child.try_wait().unwrap().is_none(), "it ended by itself");
        std::thread::sleep(std::time::Duration::from_millis(20));
    }
    Command::new("kill")
        .args(["-INT", &child.id().to_string()])
        .status()
        .unwrap();
    let end = child.wait_with_output().unwrap();
    assert_eq!(end.status.code(), Some(130));
    assert!(text(&end.stderr).contains("--resume"));
    let kept = fs::read_to_string(&samples).unwrap();
    assert!(kept.ends_with('\n'));
    assert_eq!((kept.lines().count() - 1) % 2, 0);
    for line in kept.lines() {
        serde_json::from_str::<Value>(line).unwrap();
    }
}
