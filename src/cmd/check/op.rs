//! `scalescope check op`: one operation against vectors.

use super::{merge, summary_text, verdict};
use crate::Outcome;
use crate::cmd::attribute::finding_text;
use crate::cmd::blocks::ShownArgs;
use crate::output::{print, print_json, table, table_text};
use clap::Args;
use scalescope_golden::check_op::{Vectors, check_op, layout, write_expected};
use scalescope_golden::diagnosis::diagnose::diagnose_vectors;
use scalescope_golden::ops::Op;
use scalescope_sim::error::{Result, SimError};
use scalescope_sim::profile::{ARITHMETICS, Arithmetic};
use serde_json::json;
use std::path::{Path, PathBuf};

/// Arguments of `check op`.
#[derive(Args, Debug)]
#[command(after_help = "Examples:
  scalescope check op selective_scan vectors.npz
  scalescope check op linear vectors.npz --arith exact --explain
  scalescope check op linear inputs.npz --arith exact -o vectors.npz

Operations: conv1d_silu, conv1d_update, selective_scan, selective_scan_update, hadamard_quant,
linear, rmsnorm_quant. Keys of a file: see docs/golden.md.")]
pub struct CheckOpArgs {
    /// The operation
    #[arg(value_name = "NAME")]
    pub op: String,
    /// Vectors, .npz: inputs, scales and outputs of one or more cases
    #[arg(value_name = "FILE")]
    pub vectors: PathBuf,
    /// Arithmetic: exact, torch, cuda-fast
    #[arg(long, default_value = "cuda-fast")]
    pub arith: String,
    /// Say what would explain the mismatches, as `attribute --dump` says it of a step of a dump
    #[arg(long)]
    pub explain: bool,
    /// Compare nothing: write the inputs again with every output that there is of them
    #[arg(short, long, value_name = "FILE", conflicts_with = "explain")]
    pub output: Option<PathBuf>,
    /// Print JSON instead of a table
    #[arg(long)]
    pub json: bool,
}

pub fn run(args: &CheckOpArgs) -> Result<Outcome> {
    let op = Op::from_name(&args.op)
        .ok_or_else(|| SimError::unknown("operation", &Op::ALL.map(Op::name), &args.op))?;
    let arithmetic = arithmetic(&args.arith)?;
    if let Some(to) = &args.output {
        return write(args, op, to, &arithmetic);
    }
    let vectors = Vectors::read(op, &args.vectors)?;
    let summary = check_op(&vectors, &arithmetic).map_err(|e| e.in_file(&args.vectors))?;
    let equal = summary.compared() > 0 && summary.mismatched() == 0 && summary.missing.is_empty();
    let findings = match args.explain {
        true => diagnose_vectors(&vectors, &arithmetic, &summary)?,
        false => Vec::new(),
    };
    let lies = match equal {
        true => None,
        false => layout(op, &args.vectors, &vectors, &arithmetic, &summary)?,
    };
    if args.json {
        let mut json = json!({
            "op": op.name(),
            "vectors": args.vectors,
            "arithmetic": arithmetic.name,
        });
        merge(&mut json, json!(summary));
        if let Some(lies) = &lies {
            json["layout"] = json!(lies);
        }
        if args.explain {
            json["findings"] = json!(findings);
        }
        print_json(&json);
    } else {
        let heading = format!("{}, arithmetic {}", op.name(), arithmetic.name);
        let body = summary_text(&summary, &ShownArgs::default());
        let verdict = verdict(&summary, u8::from(!equal));
        let found = findings.iter().map(|f| finding_text(f, &f.site));
        let explained: String = found.collect();
        let gap = if explained.is_empty() { "" } else { "\n" };
        let lies = lies.map_or(String::new(), |lies| format!("\nlayout: {lies}\n"));
        print(&format!(
            "{heading}\n\n{body}{lies}{verdict}{gap}{explained}"
        ));
    }
    Ok(match equal {
        true => Outcome::Success,
        false => Outcome::Mismatch,
    })
}

/// Writes expected outputs, and says which.
fn write(args: &CheckOpArgs, op: Op, to: &Path, arithmetic: &Arithmetic) -> Result<Outcome> {
    let outputs = write_expected(op, &args.vectors, to, arithmetic)?;
    if args.json {
        let keys: Vec<_> = (outputs.iter())
            .map(|(key, array)| json!({"key": key, "array": array.describe()}))
            .collect();
        print_json(&json!({
            "op": op.name(),
            "vectors": args.vectors,
            "arithmetic": arithmetic.name,
            "outputs": keys,
            "written": to,
        }));
    } else {
        let mut rows = table(&["output", "array"], 2);
        for (key, array) in &outputs {
            rows.add_row([key.clone(), array.describe()]);
        }
        print(&format!(
            "{}, arithmetic {}\n\n{}\nwritten to {}, beside the inputs\n",
            op.name(),
            arithmetic.name,
            table_text(&rows),
            to.display()
        ));
    }
    Ok(Outcome::Success)
}

fn arithmetic(name: &str) -> Result<Arithmetic> {
    let found = ARITHMETICS.iter().find(|a| a.name == name);
    found.cloned().ok_or_else(|| {
        let known: Vec<&str> = ARITHMETICS.iter().map(|a| a.name.as_ref()).collect();
        SimError::value("--arith", format_args!("one of {}", known.join(", ")), name)
    })
}
