//! `scalescope modes`: the mode table as the engine reads it.

use crate::Outcome;
use crate::input::mode_table;
use crate::output::{print, print_json, table, table_text};
use clap::Args;
use scalescope_sim::error::Result;
use scalescope_sim::mode::{FAMILIES, ModeSpec};
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
    out.push_str("by name only, `all` does not mean them\n");
    for row in modes.references() {
        out.push_str(&format!("{:<8}{}\n", format!("{} ", row.name), row.summary));
    }
    print(&out);
    Ok(Outcome::Success)
}

/// A table for each family: a column for each mode, a row for each field in which one of them differs from
/// the first mode of all. The fields come from the modes themselves.
fn text(rows: &[ModeSpec]) -> String {
    let fields = |row: &ModeSpec| match serde_json::to_value(row) {
        Ok(Value::Object(fields)) => fields,
        _ => unreachable!("a mode is a struct"),
    };
    let cell = |value: &Value| match value {
        Value::String(s) => s.clone(),
        Value::Null => "-".to_owned(),
        other => other.to_string(),
    };
    let usual = fields(&rows[0]);
    let mut text = String::new();
    let (mut rest, mut first) = (rows, true);
    let own = ("From files", rows.len());
    for (title, count) in FAMILIES.iter().copied().chain([own]) {
        let (family, others) = rest.split_at(count.min(rest.len()));
        rest = others;
        if family.is_empty() {
            continue;
        }
        let columns: Vec<_> = family.iter().map(fields).collect();
        let mut header = vec!["tensor or step"];
        header.extend(family.iter().map(|row| &*row.name));
        let mut shown = table(&header, usize::MAX);
        for (field, usual) in usual
            .iter()
            .filter(|(k, _)| *k != "name" && *k != "summary")
        {
            if first || columns.iter().any(|column| column[field] != *usual) {
                let cells = columns.iter().map(|column| cell(&column[field]));
                shown.add_row([field.clone()].into_iter().chain(cells));
            }
        }
        let more = if first {
            ""
        } else {
            ", where they differ from the first"
        };
        text.push_str(&format!("{title}{more}\n\n{}\n", table_text(&shown)));
        for row in family {
            text.push_str(&format!("{:<8}{}\n", format!("{} ", row.name), row.summary));
        }
        text.push('\n');
        first = false;
    }
    text
}
