//! No command ends well without saying how much it looked at, and none ends well where there was nothing.

use crate::awkward::{Bench, rewritten, rows};
use crate::common::{arg, checkpoint, commands, refusal, run, scales, stdout};
use clap::CommandFactory;
use scalescope::cli::Cli;
use std::collections::BTreeSet;
use std::path::Path;

/// Commands that look at nothing: they list what is built in.
const LISTS: [&str; 4] = ["modes", "faults", "completions", "help"];

#[test]
fn every_command_says_how_much_it_looked_at() {
    let bench = Bench::new();
    let text = bench.put("t.txt", b"It was dark");
    let data = bench.put("d.jsonl", &rows().0);
    let trace = rewritten(&bench, "trace2.npz", |key, array| (key.to_owned(), array));
    let model = checkpoint(bench.0.path());
    let (samples, vectors, q) = (
        bench.path("s.jsonl"),
        bench.path("v"),
        bench.path("q.safetensors"),
    );
    let scales = scales();
    let op = Path::new(env!("CARGO_MANIFEST_DIR")).join("golden/data/ops/linear.npz");
    let tiny = bench.model();
    let tiny: Vec<&str> = tiny.iter().map(String::as_str).collect();
    // What is asked (of the tiny model and the text, or of neither), and the counts in the answer.
    let on_text: [(&str, &[&str], &str); 9] = [
        ("run", &["--json"], "\"tokens\": 11"),
        ("report", &["--modes", "0,1"], "1 passage, 11 tokens"),
        ("propagate", &["--mode", "2-4"], "1 sequence, 11 tokens"),
        ("lineage", &[], "1 sequence, 11 tokens"),
        ("equiv", &["2-3", "2-1"], "elements of 1 sequence"),
        ("headroom", &["--profile", "asic-int8"], "11 tokens"),
        (
            "sweep",
            &["--vary", "scan.state=int8"],
            "1 design of asic-int8, 11 tokens",
        ),
        ("recommend", &["--mode", "0"], "44 tokens"),
        ("attribute", &["--mode", "2-4"], "11 tokens"),
    ];
    let others: [(&[&str], &str); 12] = [
        (
            &["identify", "--mode", "0", "--trace", arg(&trace)],
            "in_proj",
        ),
        (&["map", arg(&trace)], " arrays"),
        (
            &[
                "eval",
                "--data",
                arg(&data),
                "--modes",
                "0",
                "--samples",
                arg(&samples),
            ],
            "3 passages",
        ),
        (&["eval", "--merge", arg(&samples)], "3 passages"),
        (
            &["bench", "--length", "8", "--decode", "2", "--repeat", "1"],
            "medians of 1 runs",
        ),
        (
            &["check", "--golden", arg(&trace)],
            "mismatched 0, missing 0",
        ),
        (&["compare", arg(&trace), arg(&trace)], " elements compared"),
        (
            &["check", "op", "linear", arg(&op)],
            "mismatched 0, missing 0",
        ),
        (
            &["export", "--step", "x_proj", "-o", arg(&vectors)],
            "words",
        ),
        (
            &["check", "export", arg(&vectors), "--no-dumps"],
            " words against the simulation",
        ),
        (
            &[
                "quantize",
                arg(&model),
                "-o",
                arg(&q),
                "--scales",
                arg(&scales),
            ],
            "12 blocks",
        ),
        (&["info", arg(&model)], " keys"),
    ];
    let mut seen: BTreeSet<String> = LISTS.map(str::to_owned).into();
    let mut ask = |args: &[&str], count: &str| {
        // Lines that were broken to fit a terminal, whole again.
        let said = stdout(args).replace("\n  ", " ");
        let at = said
            .find(count)
            .unwrap_or_else(|| panic!("{args:?}: no {count:?} in\n{said}"));
        // A number beside it, and not the number 0; of `words` in the rows below.
        let line = said[..at].rfind('\n').map_or(0, |start| start + 1);
        let line = said[line..].lines().next().unwrap();
        let mut numbers = line.split(|c: char| !c.is_ascii_digit());
        let counted = numbers.any(|n| n.parse().is_ok_and(|n: u64| n > 0));
        assert!(counted || count == "words", "{line}");
        let two = args[..2].join(" ");
        seen.insert(match two.as_str() {
            "check op" | "check export" => two,
            _ => args[0].to_owned(),
        });
    };
    for (command, more, count) in on_text {
        // `recommend` chooses on one half of the sequences and measures on the other.
        let file = if command == "recommend" { &data } else { &text };
        let mut args = vec![command, "--file", arg(file)];
        args.extend(&tiny);
        args.extend(more);
        ask(&args, count);
    }
    for (args, count) in others {
        let mut args = args.to_vec();
        let modelless = ["op", "export", "--merge"].contains(&args[1]);
        if ["eval", "bench", "check", "export", "identify"].contains(&args[0]) && !modelless {
            args.extend(&tiny);
        }
        ask(&args, count);
    }
    // `check::selftest_passes_and_prints_its_table` looks at its counts.
    seen.insert("selftest".into());
    // These need a GPU, and without one end with what they need.
    for command in [&["check", "gpu"][..], &["bench", "--device", "cuda"]] {
        if !cfg!(feature = "cuda") {
            let line = refusal(command);
            assert!(line.contains("--features cuda"), "{line}");
        }
    }
    seen.insert("check gpu".into());
    let mut program = Cli::command();
    program.build();
    let all = commands(&program).into_iter().map(|(name, _)| name);
    assert_eq!(seen, all.collect());
}

/// Nothing to look at is no success: every command that reads texts, arrays or results.
#[test]
fn nothing_is_refused_by_every_command() {
    let bench = Bench::new();
    let tiny = bench.model();
    let tiny: Vec<&str> = tiny.iter().map(String::as_str).collect();
    let plain = rewritten(&bench, "plain.npz", |key, array| (key.to_owned(), array));
    let zip = b"PK\x05\x06\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0";
    let npz = bench.put("nothing.npz", zip);
    let refused = |args: &[&str], file: &Path| {
        let out = run(args);
        let error = String::from_utf8(out.stderr).unwrap();
        assert_eq!(out.status.code(), Some(2), "{args:?}: {error}");
        assert!(out.stdout.is_empty(), "{args:?} printed a result");
        // Rows that were skipped are counted before.
        let mut lines = error.lines().filter(|l| l.starts_with("scalescope: "));
        let refusal = lines.next().unwrap_or_else(|| panic!("{args:?}: {error}"));
        assert!(
            refusal.contains(arg(file)) && lines.next().is_none(),
            "{args:?}: {error}"
        );
    };
    for (name, bytes) in [
        ("empty.txt", &b""[..]),
        ("blank.txt", b" \n\n"),
        ("blank.jsonl", b"{\"text\": \"\"}\n{\"text\": \" \"}\n"),
        ("array.json", b"[]"),
    ] {
        let file = bench.put(name, bytes);
        for (command, more) in [
            ("run", &["--mode", "0"][..]),
            ("report", &["--modes", "0,1"]),
            ("propagate", &["--mode", "2-4"]),
            ("lineage", &[]),
            ("equiv", &["2-3", "2-1"]),
            ("headroom", &[]),
            ("sweep", &["--vary", "scan.state=int8"]),
            ("recommend", &["--mode", "0"]),
            ("attribute", &["--mode", "2-4"]),
            ("export", &["-o", "nowhere"]),
        ] {
            let mut args = vec![command, "--file", arg(&file)];
            args.extend(&tiny);
            args.extend(more);
            refused(&args, &file);
        }
        let mut args = vec!["eval", "--modes", "0", "--data", arg(&file)];
        args.extend(&tiny);
        refused(&args, &file);
    }
    refused(
        &["check", "--synthetic", "tiny", "--golden", arg(&npz)],
        &npz,
    );
    refused(&["compare", arg(&plain), arg(&npz)], &npz);
    refused(&["compare", arg(&npz), arg(&npz)], &npz);
    refused(&["check", "op", "linear", arg(&npz)], &npz);
    refused(
        &[
            "attribute",
            "--synthetic",
            "tiny",
            "--mode",
            "0",
            "--trace",
            arg(&npz),
        ],
        &npz,
    );
    let folder = bench.path("folder");
    std::fs::create_dir(&folder).unwrap();
    refused(&["check", "export", arg(&folder)], &folder);
    let samples = bench.put("s.jsonl", b"");
    refused(&["eval", "--merge", arg(&samples)], &samples);
}
