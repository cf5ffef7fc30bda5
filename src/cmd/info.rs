//! `scalescope info`: what a folder or a file holds.

use crate::Outcome;
use crate::output::{print, print_json, table, table_text};
use clap::Args;
use scalescope_sim::checkpoint::info::{Entry, Info, info};
use scalescope_sim::error::Result;
use scalescope_sim::model::ScaleKey;
use std::path::PathBuf;

/// Arguments of `info`.
#[derive(Args, Debug)]
#[command(after_help = "Examples:
  scalescope info quamba-130m-w8a8            a folder: kind, shapes, scales, what is missing
  scalescope info dump.pt --all               a dict of tensors that torch.save wrote")]
pub struct InfoArgs {
    /// A folder of transformers, mamba_ssm or Quamba, a .safetensors file, or a file of torch.save
    #[arg(value_name = "PATH")]
    pub path: PathBuf,
    /// List the keys of every block, not of the first alone
    #[arg(long)]
    pub all: bool,
    /// Print JSON: everything
    #[arg(long)]
    pub json: bool,
}

pub fn run(args: &InfoArgs) -> Result<Outcome> {
    let info = info(&args.path)?;
    match args.json {
        true => print_json(&info),
        false => print(&text(&info, args.all)),
    }
    Ok(Outcome::Success)
}

fn text(info: &Info, all: bool) -> String {
    let mut out = format!("{}\n", info.kind);
    if let Some(c) = &info.config {
        out.push_str(&format!(
            "vocabulary {}, d_model {}, d_inner {}, d_state {}, dt_rank {}, d_conv {}, {} blocks\n",
            c.vocab_size, c.d_model, c.d_inner, c.d_state, c.dt_rank, c.d_conv, c.n_layers
        ));
    }
    for note in &info.notes {
        out.push_str(&format!("note: {note}\n"));
    }
    if let Some(refusal) = &info.refusal {
        out.push_str(&format!("cannot be used: {refusal}\n"));
    }
    if !info.missing.is_empty() {
        const SHOWN: usize = 10;
        let shown = info.missing.iter().take(SHOWN).map(String::as_str);
        let names: Vec<&str> = shown.collect();
        let more = info.missing.len().saturating_sub(SHOWN);
        let more = match more {
            0 => String::new(),
            more => format!(" and {more} more"),
        };
        out.push_str(&format!("missing: {}{more}\n", names.join(", ")));
    }
    out.push('\n');
    let mut keys = table(&["key", "type", "shape", "strides", "value"], 5);
    let listed = info
        .entries
        .iter()
        .filter(|e| all || in_first_block(&e.name));
    let mut left_out = info.entries.len();
    for entry in listed {
        keys.add_row(row(entry));
        left_out -= 1;
    }
    out.push_str(&table_text(&keys));
    out.push_str(&format!("{} keys\n", info.entries.len()));
    if left_out > 0 {
        out.push_str(&format!(
            "of them {left_out} of the other blocks, not listed (--all)\n"
        ));
    }
    if !info.scales.is_empty() {
        let names = ScaleKey::ALL.map(ScaleKey::name);
        let mut header = vec!["block"];
        header.extend(names);
        let mut scales = table(&header, 0);
        for (i, layer) in info.scales.iter().enumerate() {
            let values = ScaleKey::ALL.map(|key| format!("{:e}", layer.get(key).get()));
            scales.add_row(std::iter::once(i.to_string()).chain(values));
        }
        out.push_str(&format!("\n{}", table_text(&scales)));
    }
    out
}

/// Whether a key is of the first block or of none.
fn in_first_block(name: &str) -> bool {
    match name.split_once("layers.") {
        Some((_, rest)) => rest.starts_with("0."),
        None => true,
    }
}

fn row(entry: &Entry) -> Vec<String> {
    let sizes = |sizes: &[usize]| format!("{sizes:?}");
    let shape = match entry.value {
        Some(_) => String::new(),
        None => sizes(&entry.shape),
    };
    vec![
        entry.name.clone(),
        entry.dtype.clone(),
        shape,
        entry.strides.as_deref().map(sizes).unwrap_or_default(),
        entry
            .value
            .map(|value| value.to_string())
            .unwrap_or_default(),
    ]
}
