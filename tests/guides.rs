//! The guides for newcomers are followed: `docs/adding-a-mode.md` command by command, and of
//! `docs/adding-a-step.md` every place it sends the reader to. (Their Rust examples are documentation
//! tests of the library.)

use crate::common::{checkpoint, commands, flowing, scales, scalescope};
use clap::{CommandFactory, Parser};
use scalescope::cli::Cli;
use std::fs;
use std::path::{Path, PathBuf};

fn root() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
}

/// The fenced blocks of a language, in their order.
fn blocks(document: &str, language: &str) -> Vec<String> {
    let open = format!("```{language}\n");
    let mut rest = document;
    let mut found = Vec::new();
    while let Some(start) = rest.find(&open) {
        let body = &rest[start + open.len()..];
        let end = body.find("```").expect("a block ends");
        found.push(body[..end].to_owned());
        rest = &body[end..];
    }
    found
}

/// A command line in words; quotes hold words together.
fn words(line: &str) -> Vec<&str> {
    let quoted = line.split('"').enumerate();
    quoted
        .flat_map(|(i, part)| match i % 2 {
            0 => part.split_whitespace().collect(),
            _ => vec![part],
        })
        .collect()
}

#[test]
fn a_new_mode_as_the_guide_says() {
    let guide = fs::read_to_string(root().join("docs/adding-a-mode.md")).unwrap();
    let dir = tempfile::tempdir().unwrap();
    let [row] = &blocks(&guide, "toml")[..] else {
        panic!("the guide has one row");
    };
    fs::write(dir.path().join("mine.toml"), row).unwrap();
    let run = |line: &str| {
        let words = words(line);
        assert_eq!(words[0], "scalescope");
        let out = scalescope(&words[1..])
            .current_dir(dir.path())
            .output()
            .unwrap();
        let text = String::from_utf8(out.stdout).unwrap();
        let error = String::from_utf8_lossy(&out.stderr).into_owned();
        (text, out.status.code(), error)
    };
    let [first, equiv] = &blocks(&guide, "sh")[..] else {
        panic!("the guide has two blocks of commands");
    };
    assert_eq!(first.lines().count(), 3);
    for line in first.lines() {
        let (text, code, error) = run(line);
        assert_eq!(code, Some(0), "{line}: {error}");
        assert!(text.contains("2-4d"), "{line}: {text}");
    }
    let (text, code, error) = run(equiv.trim());
    assert_eq!(code, Some(1), "{error}");
    for line in blocks(&guide, "text")[0].lines() {
        assert!(text.lines().any(|l| l == line), "{line}\nin\n{text}");
    }
    // What it says of mistakes.
    for (from, to) in [
        ("conv_in", "conv_inn"),
        ("dynamic-token", "dynamic"),
        ("\"2-4\"\n", "\"2-5\"\n"),
    ] {
        assert!(row.contains(from));
        fs::write(dir.path().join("mine.toml"), row.replace(from, to)).unwrap();
        let (text, code, error) = run("scalescope modes --modes-file mine.toml");
        assert_eq!((code, text.as_str()), (Some(2), ""), "{to}");
        assert_eq!(error.trim_end().lines().count(), 1, "{error}");
        assert!(error.contains(to.trim().trim_matches('"')), "{error}");
    }
}

/// The command lines of a text: what a line has behind `scalescope `, without remarks.
fn command_lines(text: &str) -> Vec<String> {
    let joined = text.replace("\\\n", " ");
    let lines = joined.lines().filter_map(|line| {
        let line = line.trim_start().strip_prefix("scalescope ")?;
        // A remark, a file that is written to, words in a column of their own.
        let end = [" #", " > ", " | ", "   "]
            .iter()
            .filter_map(|mark| line.find(mark));
        let line = &line[..end.min().unwrap_or(line.len())];
        Some(line.replace(['[', ']'], " "))
    });
    lines.collect()
}

/// Every command that a document or a command's help shows is one: its options and values are known.
#[test]
fn every_command_shown_is_one() {
    let mut shown = vec![(
        "README.md".to_owned(),
        fs::read_to_string(root().join("README.md")).unwrap(),
    )];
    for file in fs::read_dir(root().join("docs")).unwrap() {
        let path = file.unwrap().path();
        if path.extension().is_some_and(|end| end == "md") {
            shown.push((
                path.display().to_string(),
                fs::read_to_string(path).unwrap(),
            ));
        }
    }
    let program = Cli::command();
    for command in std::iter::once(&program).chain(program.get_subcommands()) {
        if let Some(help) = command.get_after_help() {
            shown.push((format!("{} --help", command.get_name()), help.to_string()));
        }
    }
    let (mut count, mut wrong) = (0, Vec::new());
    for (place, text) in &shown {
        for line in command_lines(text) {
            let words = std::iter::once("scalescope").chain(words(&line));
            if let Err(error) = Cli::try_parse_from(words) {
                let error = error.to_string();
                wrong.push(format!(
                    "{place}: scalescope {line}: {}",
                    error.lines().next().unwrap()
                ));
            }
            count += 1;
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    assert!(count > 100, "{count}");
    assert!(Cli::try_parse_from(["scalescope", "report", "--no-such"]).is_err());
}

/// The README says which commands have no JSON.
#[test]
fn commands_without_json_are_named() {
    let program = Cli::command();
    let without: Vec<String> = commands(&program)
        .into_iter()
        .filter(|(_, command)| {
            command
                .get_arguments()
                .all(|a| a.get_long() != Some("json"))
        })
        .map(|(name, _)| name)
        .collect();
    assert_eq!(without, ["map", "completions"]);
    let readme = fs::read_to_string(root().join("README.md")).unwrap();
    let words = "All but `map` and `completions` print their result as JSON with `--json`";
    assert!(flowing(&readme).contains(words));
}

/// Names between backquotes.
fn names(text: &str) -> impl Iterator<Item = &str> {
    text.split('`').skip(1).step_by(2)
}

#[test]
fn every_place_of_the_guides_is_there() {
    let step = fs::read_to_string(root().join("docs/adding-a-step.md")).unwrap();
    let rows: Vec<Vec<&str>> = step
        .lines()
        .filter(|line| line.starts_with("| `"))
        .map(|line| line.trim_matches('|').split(" | ").collect())
        .collect();
    // More would be too many to find.
    assert_eq!(rows.len(), 6, "files that know a step");
    for row in rows {
        let [file, item, noticed] = row[..] else {
            panic!("{row:?}");
        };
        let file = names(file).next().unwrap();
        let text = fs::read_to_string(root().join(file)).unwrap_or_else(|e| panic!("{file}: {e}"));
        let item = names(item).next().unwrap();
        assert!(text.contains(item), "{file} has no {item}");
        for test in names(noticed).filter(|name| name.ends_with(".rs")) {
            let known = [test.to_owned(), format!("tests/{test}")];
            assert!(known.iter().any(|t| root().join(t).exists()), "{test}");
        }
    }
    // Every path that either guide names.
    let mode = fs::read_to_string(root().join("docs/adding-a-mode.md")).unwrap();
    let paths = names(&step).chain(names(&mode)).filter(|name| {
        let plain = |c: char| c.is_ascii_alphanumeric() || "/._-".contains(c);
        name.contains('/') && name.chars().all(plain)
    });
    let mut seen = 0;
    for path in paths {
        assert!(Path::new(&root()).join(path).exists(), "{path}");
        seen += 1;
    }
    assert!(seen > 20, "{seen}");
}

/// Every command of docs/ways-in.md runs, and prints what stands below it.
#[test]
fn the_ways_in_are_walked() {
    let guide = fs::read_to_string(root().join("docs/ways-in.md")).unwrap();
    let dir = tempfile::tempdir().unwrap();
    let at = dir.path();
    let run = |line: &str| {
        let out = scalescope(&words(line)).current_dir(at).output().unwrap();
        let said = [out.stdout, out.stderr].concat();
        let said = String::from_utf8(said).unwrap();
        assert!(matches!(out.status.code(), Some(0 | 1)), "{line}: {said}");
        said
    };
    // The files that it speaks of.
    let made = checkpoint(at);
    fs::rename(made, at.join("mamba-130m")).unwrap();
    fs::copy(scales(), at.join("scales.json")).unwrap();
    let line = "It was late in the evening when the old captain came home from the harbour. ";
    fs::write(at.join("book.txt"), line.repeat(4)).unwrap();
    let row = serde_json::json!({ "text": line }).to_string() + "\n";
    fs::write(at.join("texts.jsonl"), row.repeat(4)).unwrap();
    let op = root().join("golden/data/ops/hadamard_quant.npz");
    fs::copy(op, at.join("inputs.npz")).unwrap();
    run("quantize mamba-130m -o quamba-130m --format quamba --scales scales.json");
    let tokenizer = "mamba-130m/tokenizer.json";
    fs::copy(at.join(tokenizer), at.join("quamba-130m/tokenizer.json")).unwrap();
    run(
        "run --model quamba-130m --mode 0 --profile deployed --text \"It was a dark night\" --fault stale-scale@layer=3,site=x_proj_input,factor=1.7 --trace dump.npz",
    );
    let quick = |line: &str| match line.split(' ').next() {
        Some("report" | "attribute" | "headroom" | "sweep") if !line.contains("--dump") => {
            format!("{line} --length 24 --limit 1")
        }
        _ => line.to_owned(),
    };
    let (mut commands, mut promises) = (0, 0);
    let mut said = String::new();
    for part in guide.split("```").skip(1).step_by(2) {
        let (language, body) = part.split_once('\n').unwrap();
        match language {
            "sh" => {
                said = command_lines(body)
                    .iter()
                    .map(|line| run(&quick(line)))
                    .collect();
                commands += command_lines(body).len();
            }
            "text" => {
                let printed = flowing(&said);
                for line in body.lines() {
                    assert!(printed.contains(&flowing(line)), "{line}\nin\n{said}");
                    promises += 1;
                }
            }
            _ => {}
        }
    }
    assert!(commands >= 11 && promises >= 11, "{commands} {promises}");
}
