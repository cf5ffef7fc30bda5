//! `scalescope modes`: the mode table as the engine reads it.

use crate::Outcome;
use crate::input::mode_table;
use crate::output::{print, print_json, table, table_text};
use clap::Args;
use scalescope_sim::error::Result;
use scalescope_sim::mode::ModeSpec;
use serde_json::Value;
use std::path::PathBuf;

/// Arguments of `modes`.
#[derive(Args, Debug)]
pub struct ModesArgs {
    /// TOML file of further modes
    #[arg(long, value_name = "FILE")]
    pub modes_file: Vec<PathBuf>,
    /// Print JSON instead of a table
    #[arg(long)]
    pub json: bool,
}

pub fn run(args: &ModesArgs) -> Result<Outcome> {
    let modes = mode_table(&args.modes_file)?;
    if args.json {
        print_json(&modes.rows());
        return Ok(Outcome::Success);
    }
    let mut out = text(modes.rows());
    out.push_str("\nby name only, `all` does not mean them\n");
    for row in modes.references() {
        out.push_str(&format!("{:<8}{}\n", format!("{} ", row.name), row.summary));
    }
    print(&out);
    Ok(Outcome::Success)
}

/// A column for each mode, a row for each field; the fields come from the table itself.
fn text(rows: &[ModeSpec]) -> String {
    let rows: Vec<serde_json::Map<String, Value>> = rows
        .iter()
        .map(|row| match serde_json::to_value(row) {
            Ok(Value::Object(fields)) => fields,
            _ => unreachable!("a mode is a struct"),
        })
        .collect();
    let cell = |value: &Value| match value {
        Value::String(s) => s.clone(),
        other => other.to_string(),
    };
    let mut header = vec!["tensor or step"];
    header.extend(rows.iter().map(|row| row["name"].as_str().unwrap_or("")));
    let mut fields = table(&header, usize::MAX);
    for field in rows[0].keys().filter(|k| *k != "name" && *k != "summary") {
        let mut line = vec![field.clone()];
        line.extend(rows.iter().map(|row| cell(&row[field])));
        fields.add_row(line);
    }
    let mut text = table_text(&fields);
    text.push('\n');
    for row in &rows {
        let (name, summary) = (cell(&row["name"]), cell(&row["summary"]));
        text.push_str(&format!("{name:<8}{summary}\n"));
    }
    text
}
