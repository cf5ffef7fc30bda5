//! The first screen of `--help`: commands in groups, by what people come for.

use crate::output::words_in_lines;
use clap::Command;
use clap::error::{ContextKind, ContextValue};
use std::fmt::Write;
use std::io::IsTerminal;

/// What people come for, and the commands for it.
const GROUPS: &[(&str, &[&str])] = &[
    (
        "Run and report",
        &["report", "run", "quantize", "info", "modes"],
    ),
    ("Check and compare", &["check", "compare", "map"]),
    (
        "Diagnose",
        &[
            "attribute",
            "identify",
            "propagate",
            "lineage",
            "equiv",
            "faults",
        ],
    ),
    ("Evaluate", &["eval", "recommend"]),
    ("Design a chip", &["headroom", "sweep", "export"]),
];

/// Commands that the first screen only names.
const MORE: &[&str] = &["bench", "selftest", "completions", "help"];

/// Names under which somebody may look for a part of another command, and how it is asked.
const ASKED_OTHERWISE: &[(&str, &str)] = &[
    ("check-op", "check op NAME FILE"),
    ("check-export", "check export DIR"),
    ("crosscheck", "check gpu"),
    ("bench-gpu", "bench --device cuda"),
    ("merge", "eval --merge FILE"),
];

/// The command line with its commands in groups.
pub fn grouped(command: Command) -> Command {
    let command = flowing_help(numbers_may_be_negative(command));
    let mut text = String::from(
        "{about-with-newline}\n{usage-heading} {usage}\n\nWithout a model, commands use the built-in sample model.\n",
    );
    for (title, names) in GROUPS {
        let _ = writeln!(text, "\n{title}:");
        for name in *names {
            let about = command.find_subcommand(name).and_then(Command::get_about);
            let about = about.map(ToString::to_string).unwrap_or_default();
            let mut lines = words_in_lines(&about, 80 - INDENT).into_iter();
            let first = lines.next().unwrap_or_default();
            let _ = writeln!(text, "  {name:width$}{first}", width = INDENT - 2);
            for line in lines {
                let _ = writeln!(text, "{:INDENT$}{line}", "");
            }
        }
    }
    let _ = writeln!(text, "\nMore: {}", MORE.join(", "));
    text += "\nOptions:\n{options}{after-help}";
    command.help_template(text)
}

/// Columns before a command's words.
const INDENT: usize = 16;

/// Prints what clap says of arguments (or of --help, or --version), in words for people; the exit code.
pub fn refused(error: &clap::Error) -> u8 {
    let code = u8::try_from(error.exit_code()).unwrap_or(2);
    if !error.use_stderr() {
        let _ = error.print();
        return code;
    }
    let words = match std::io::stderr().is_terminal() && std::env::var_os("NO_COLOR").is_none() {
        true => error.render().ansi().to_string(),
        false => error.render().to_string(),
    };
    let words = match otherwise(error) {
        Some(line) => format!("error: {line}\n"),
        None => words,
    };
    eprint!("{}", ranges(&plain(words)));
    code
}

/// What Rust says of numbers, in words for people.
fn plain(mut words: String) -> String {
    for (said, meant) in [
        (
            "number would be zero for non-zero type",
            "expected a number above 0",
        ),
        (
            "invalid digit found in string",
            "expected a whole number, 0 or more",
        ),
        (
            "cannot parse integer from empty string",
            "expected a whole number",
        ),
        (
            "number too large to fit in target type",
            "expected a smaller number",
        ),
        ("invalid float literal", "expected a number"),
        ("cannot parse float from empty string", "expected a number"),
    ] {
        words = words.replace(said, meant);
    }
    words
}

/// For a command that is part of another one: which.
fn otherwise(error: &clap::Error) -> Option<String> {
    let Some(ContextValue::String(name)) = error.get(ContextKind::InvalidSubcommand) else {
        return None;
    };
    let (_, now) = ASKED_OTHERWISE.iter().find(|(known, _)| known == name)?;
    Some(format!(
        "there is no command '{name}'; it is: scalescope {now}"
    ))
}

/// Ranges that clap writes as Rust does, in words: `5 is not in 2..=4294967295`, `expected 2 or more`.
fn ranges(words: &str) -> String {
    let line = |line: &str| {
        let said = || {
            let (before, range) = line.split_once(" is not in ")?;
            let (option, _) = before.rsplit_once(": ")?;
            let (low, high) = range.split_once("..")?;
            let most = high.strip_prefix('=').unwrap_or_default();
            let expected = match most.parse::<u64>() {
                Ok(most) if most < u64::from(u32::MAX) => format!("{low} to {most}"),
                _ => format!("{low} or more"),
            };
            Some(format!("{option}: expected {expected}\n"))
        };
        said().unwrap_or_else(|| format!("{line}\n"))
    };
    words.lines().map(line).collect()
}

/// A minus before a number begins a value, which the option then judges, and no option.
fn numbers_may_be_negative(command: Command) -> Command {
    command
        .mut_args(|arg| {
            let takes = arg.get_action().takes_values();
            arg.allow_negative_numbers(takes)
        })
        .mut_subcommands(numbers_may_be_negative)
}

/// Sentences behind the options flow: where their lines break is for the terminal to say.
fn flowing_help(command: Command) -> Command {
    let command = match command.get_after_help().map(ToString::to_string) {
        Some(text) => command.after_help(flowing(&text)),
        None => command,
    };
    command.mut_subcommands(flowing_help)
}

/// Paragraphs in one line each, but for lists of commands.
fn flowing(text: &str) -> String {
    let paragraph = |text: &str| match text.lines().any(|line| line.starts_with("  ")) {
        true => text.to_owned(),
        false => text.replace('\n', " "),
    };
    let all: Vec<String> = text.split("\n\n").map(paragraph).collect();
    all.join("\n\n")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::Cli;
    use clap::CommandFactory;
    use std::collections::BTreeSet;

    #[test]
    fn numbers_are_asked_for_in_words() {
        for (given, expected) in [
            (["report", "--limit", "0"], "expected a number above 0"),
            (
                ["report", "--limit", "x"],
                "expected a whole number, 0 or more",
            ),
            (["report", "--limit", ""], "expected a whole number"),
            (
                ["report", "--limit", "99999999999999999999999"],
                "expected a smaller number",
            ),
        ] {
            let words = std::iter::once("scalescope").chain(given);
            let error = super::grouped(Cli::command()).try_get_matches_from(words);
            let said = plain(error.unwrap_err().to_string());
            assert!(said.contains(expected), "{said}");
        }
    }

    #[test]
    fn sentences_of_help_flow_and_commands_stand() {
        let text = "Examples:\n  scalescope a\n  scalescope b\n\nOne two\nthree.\n\n  scalescope c";
        let flown = "Examples:\n  scalescope a\n  scalescope b\n\nOne two three.\n\n  scalescope c";
        assert_eq!(flowing(text), flown);
        let command = super::grouped(Cli::command());
        let report = command.find_subcommand("report").unwrap();
        let help = report.get_after_help().unwrap().to_string();
        assert!(
            help.contains("--limit and --length choose how much instead."),
            "{help}"
        );
    }

    #[test]
    fn every_command_is_in_one_group() {
        let grouped = GROUPS.iter().flat_map(|(_, names)| *names);
        let all: Vec<&str> = grouped.chain(MORE).copied().collect();
        let listed: BTreeSet<&str> = all.iter().copied().collect();
        assert_eq!(all.len(), listed.len(), "a command is listed twice");
        let mut command = Cli::command();
        command.build();
        let names: BTreeSet<&str> = command.get_subcommands().map(Command::get_name).collect();
        assert_eq!(listed, names);
    }

    #[test]
    fn a_part_of_another_command_is_named() {
        for (name, now) in ASKED_OTHERWISE {
            let parse = |line: &str| {
                let words = ["scalescope"].into_iter().chain(line.split(' '));
                super::grouped(Cli::command()).try_get_matches_from(words)
            };
            let said = otherwise(&parse(name).unwrap_err()).unwrap();
            assert!(said.ends_with(now), "{said}");
            assert!(parse(now).is_ok(), "{now}");
            assert_eq!(otherwise(&parse("chek").unwrap_err()), None);
        }
    }

    #[test]
    fn a_minus_before_a_number_begins_a_value() {
        let parse = |args: &[&str]| {
            let args = ["scalescope"].iter().chain(args);
            super::grouped(Cli::command()).try_get_matches_from(args)
        };
        let alpha = ["quantize", "path", "-o", "out", "--alpha", "-0.5"];
        assert!(parse(&alpha).is_ok(), "judged by the command");
        let said = parse(&["run", "--length", "-3"]).unwrap_err().to_string();
        assert!(
            said.contains("invalid value '-3' for '--length <N>'"),
            "{said}"
        );
    }

    #[test]
    fn ranges_are_said_in_words() {
        let said = |range| {
            ranges(&format!(
                "error: invalid value '1' for '--n <N>': 1 is not in {range}"
            ))
        };
        let expected =
            |words| format!("error: invalid value '1' for '--n <N>': expected {words}\n");
        assert_eq!(said("2..=4294967295"), expected("2 or more"));
        assert_eq!(said("2..=8"), expected("2 to 8"));
        assert_eq!(said("2.."), expected("2 or more"));
        assert_eq!(ranges("1 is not in it"), "1 is not in it\n");
    }

    #[test]
    fn the_first_screen_fits() {
        let mut command = super::grouped(Cli::command().term_width(80));
        let help = command.render_help().to_string();
        for line in help.lines() {
            assert!(line.chars().count() <= 80, "{line}");
        }
        assert!(help.lines().count() < 75, "{help}");
        assert!(help.contains("Diagnose:\n  attribute"), "{help}");
    }
}
