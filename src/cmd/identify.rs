//! `scalescope identify`: a device's arithmetic, read off a dump.

use crate::Outcome;
use crate::cli::ModelArgs;
use crate::dumps::{AUTO, Dumped, mode_of_dump, read_trace};
use crate::input::mode_table;
use crate::output::{print, print_json, progress, table, table_text};
use clap::Args;
use scalescope_golden::diagnosis::diagnose::identify::{Identified, identify_telling};
use scalescope_sim::atomic::write_text;
use scalescope_sim::error::Result;
use scalescope_sim::profile::PROFILES;
use serde_json::json;
use std::fmt::Write;
use std::path::PathBuf;

/// Arguments of `identify`.
#[derive(Args, Debug)]
#[command(after_help = "Examples:
  scalescope identify --mode 0 --dump dump.npz -o device.toml
  scalescope attribute --mode 0 --dump dump.npz --profile device.toml

Each step runs on the dump's own inputs. Rules that the dump cannot tell apart are listed.
docs/diagnosis-catalogue.md")]
pub struct IdentifyArgs {
    /// The model.
    #[command(flatten)]
    pub model: ModelArgs,
    /// The mode (see `scalescope modes`); auto tells it from the tensors
    #[arg(long, default_value = AUTO)]
    pub mode: String,
    /// A dump: tokens and the tensors of a prefill, see docs/trace-points.md
    #[arg(long = "dump", alias = "trace", value_name = "FILE")]
    pub trace: PathBuf,
    /// Writes the profile here
    #[arg(short, long, value_name = "FILE")]
    pub output: Option<PathBuf>,
    /// Print JSON instead of a table
    #[arg(long)]
    pub json: bool,
}

pub fn run(args: &IdentifyArgs) -> Result<Outcome> {
    let known = mode_table(&args.model.modes_file)?;
    let trace = read_trace(&args.trace)?;
    let file = (args.trace.as_path(), &trace);
    let Dumped { subject, mode, .. } =
        mode_of_dump(&args.model, &known, &args.mode, PROFILES, file)?;
    let bar = progress(0, "reading rules");
    let tell = |group: &str, at: usize, of: usize| {
        bar.set_length(of as u64);
        bar.set_position(at as u64);
        bar.set_message(format!("reading rules: {group}"));
    };
    let found = identify_telling(&subject.model, &mode, &trace, &tell);
    bar.finish_and_clear();
    let found = found.map_err(|e| e.in_file(&args.trace))?;
    if let Some(path) = &args.output {
        write_text(path, &found.toml)?;
    }
    match args.json {
        true => print_json(&json!({
            "model": subject.name, "trace": args.trace, "mode": mode.name, "identified": found,
        })),
        false => print(&text(&found)),
    }
    Ok(match found.mismatched {
        0 => Outcome::Success,
        _ => Outcome::Mismatch,
    })
}

fn text(found: &Identified) -> String {
    let mut out = format!("{}\n", found.toml);
    let mut rows = table(&["group", "compared", "not made"], 1);
    for group in &found.groups {
        rows.add_row(vec![
            group.group.to_owned(),
            group.compared.to_string(),
            group.mismatched.to_string(),
        ]);
    }
    out += &table_text(&rows);
    if !found.alike.is_empty() {
        let _ = writeln!(out, "\nthe same on this dump: {}", found.alike.join(", "));
    }
    for group in found.groups.iter().filter(|g| !g.alike.is_empty()) {
        let _ = writeln!(
            out,
            "{}: this dump has no input that tells it from {}",
            group.group,
            group.alike.join("; ")
        );
    }
    out
}
