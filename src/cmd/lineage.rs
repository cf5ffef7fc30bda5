//! `scalescope lineage`: every scale of a mode, from its quantizer to its readers.

use crate::Outcome;
use crate::cli::{FaultArgs, InputArgs, ModelArgs};
use crate::input::{faults, faults_text, load_subject, mode_table};
use crate::output::{counted, number, print, print_as_is, print_json, progress, table, table_text};
use clap::Args;
use comfy_table::CellAlignment;
use scalescope_golden::diagnosis::finding::Severity;
use scalescope_golden::diagnosis::lineage::{Lineage, Quantizer, Reader, lineage};
use scalescope_sim::datapath::{Datapath, FourBitWeight};
use scalescope_sim::error::{Result, SimError};
use scalescope_sim::profile::Profile;
use std::fmt::Write;

/// Arguments of `lineage`.
#[derive(Args, Debug)]
#[command(after_help = "Examples:
  scalescope lineage --mode 2-4
  scalescope lineage --mode 3 --profile deployed --file book.txt --layers 0,7
  scalescope lineage --mode 0 --layers 7 --dot | dot -Tsvg > block7.svg

Clipping beyond what a scale was calibrated to clip is a warning from 0.25 % of the values on and an
error from 1 % on; a grid of which three bits are never used is a warning. Exit code 1 if a reader has
another scale than the quantizer it reads from (an error too).")]
pub struct LineageArgs {
    /// The model.
    #[command(flatten)]
    pub model: ModelArgs,
    /// The text.
    #[command(flatten)]
    pub input: InputArgs,
    /// The mode (see `scalescope modes`)
    #[arg(long, default_value = "0")]
    pub mode: String,
    /// Arithmetic: a built-in profile (exact, torch, deployed, asic-int8, …) or a .toml file (docs/asic.md)
    #[arg(long, default_value = "exact")]
    pub profile: String,
    /// Defects.
    #[command(flatten)]
    pub faults: FaultArgs,
    /// Blocks to show, separated by commas [default: every one]
    #[arg(long, alias = "layer", value_name = "LIST", value_delimiter = ',')]
    pub layers: Option<Vec<usize>>,
    /// Print the graph for Graphviz
    #[arg(long, conflicts_with = "json")]
    pub dot: bool,
    /// Print JSON instead of a table
    #[arg(long)]
    pub json: bool,
}

pub fn run(args: &LineageArgs) -> Result<Outcome> {
    let mode = mode_table(&args.model.modes_file)?.get(&args.mode)?.clone();
    let profile = Profile::get(&args.profile)?;
    if !mode.needs_quantized() {
        return Err(SimError::value(
            format_args!("mode {}", mode.name),
            "a mode with INT8 tensors",
            "none, so no scales",
        ));
    }
    let subject = load_subject(&args.model, std::slice::from_ref(&mode))?;
    let layers = subject.model.config()?.n_layers;
    if let Some(layer) = args.layers.iter().flatten().find(|layer| **layer >= layers) {
        let expected = format_args!("blocks below {layers}").to_string();
        return Err(SimError::value("--layers", expected, layer));
    }
    let sequences = subject.sequences_for("lineage", &args.input)?;
    let faults = faults(&args.faults)?;
    let path = Datapath::with_faults(&subject.model, &mode, &profile, &faults)?;
    let bar = progress(sequences.len() as u64, "following scales");
    let mut lineage = lineage(&path, &sequences, || bar.inc(1))?;
    bar.finish_and_clear();
    if let Some(layers) = &args.layers {
        lineage.quantizers.retain(|q| layers.contains(&q.layer));
    }
    let mut four_bits = path.four_bit_weights();
    if let Some(layers) = &args.layers {
        four_bits.retain(|w| layers.contains(&w.layer));
    }
    let tokens: usize = sequences.iter().map(Vec::len).sum();
    if args.json {
        let mut json = serde_json::json!({
            "model": subject.name,
            "tokens": tokens,
            "faults": faults,
        });
        if !four_bits.is_empty() {
            json["four_bit_weights"] = serde_json::json!(four_bits);
        }
        super::check::merge(&mut json, serde_json::json!(lineage));
        print_json(&json);
    } else if args.dot {
        print_as_is(&dot(&lineage));
    } else {
        let heading = format!(
            "{}, mode {}, profile {}{}: {}, {}\n\n",
            subject.name,
            mode.name,
            profile.name,
            faults_text(&faults),
            counted(sequences.len(), "sequence"),
            counted(tokens, "token")
        );
        print(&(heading + &text(&lineage) + &four_bits_text(&four_bits)));
    }
    Ok(match lineage.is_consistent() {
        true => Outcome::Success,
        false => Outcome::Mismatch,
    })
}

/// A row for each quantizer, one below for each of its readers.
fn text(lineage: &Lineage) -> String {
    let header = [
        "quantizer",
        "calibrated as",
        "scale",
        "absmax",
        "ratio",
        "clipped",
        "grid",
        "",
    ];
    let grid = |q: &Quantizer| match q.grid_occupancy {
        Some(share) => format!("{:.0} %", 100.0 * share),
        None => "FP32".into(),
    };
    let mut rows = table(&header, 2);
    let last = header.len() - 1;
    let column = rows.column_mut(last).expect("the last of the header");
    column.set_cell_alignment(CellAlignment::Left);
    let mut block = None;
    for q in &lineage.quantizers {
        if block.replace(q.layer) != Some(q.layer) {
            rows.add_row([format!("block {}", q.layer)]);
        }
        rows.add_row([
            q.name.to_owned(),
            q.calibrated.into(),
            scale(q),
            number(q.absmax),
            format!("{:.3}", q.scale_ratio),
            format!("{} %", number(100.0 * q.clipped)),
            grid(q),
            mark(q.severity).into(),
        ]);
        if q.wrapped > 0 {
            rows.add_row([format!(
                "└ {} wrapped",
                counted(q.wrapped as usize, "value")
            )]);
        }
        if !q.segments.is_empty() {
            rows.add_row(["└ in segments".into(), q.segments_text()]);
        }
        for reader in &q.readers {
            rows.add_row([
                format!("└ {}", reader.label()),
                String::new(),
                factor(reader),
                String::new(),
                format!("{:.2}", reader.reach),
                String::new(),
                format!("{:.0} %", 100.0 * reader.grid_occupancy),
                mark(reader.severity).into(),
            ]);
        }
    }
    let mut out = table_text(&rows);
    out.push_str(
        "\nratio (scale_ratio →1): absmax/(127·scale) of the values before they are quantized\n\
         clipped: values that did not fit INT8; grid: codes used, of 256 (JSON: grid_occupancy)\n\
         └ a reader of the codes: with the same scale or which multiple of it; how far its values reach into the grid\n\
         └ in segments: the share of values in each segment of the quantizer, from small to large, then those beyond\n",
    );
    out + &remarks(lineage)
}

/// A row for each weight of four bits; nothing if there is none.
fn four_bits_text(weights: &[FourBitWeight]) -> String {
    if weights.is_empty() {
        return String::new();
    }
    let header = [
        "block",
        "four-bit weight",
        "group scales",
        "channel scales",
        "beyond INT8",
    ];
    let mut rows = table(&header, 2);
    let range = |[low, high]: [f32; 2]| format!("{low:.4e} to {high:.4e}");
    for w in weights {
        rows.add_row([
            w.layer.to_string(),
            w.step.name().to_owned(),
            w.group_scale.map_or("none".into(), range),
            range(w.channel_scale),
            format!("{} of {}", w.overflows, w.weights),
        ]);
    }
    format!("\n{}", table_text(&rows))
}

fn remarks(lineage: &Lineage) -> String {
    let mut out = String::new();
    for severity in [Severity::Error, Severity::Warning, Severity::Info] {
        let all = lineage.quantizers.iter().flat_map(|q| {
            let remarks = q.remarks().into_iter().filter(move |r| r.0 == severity);
            remarks.map(move |(_, words)| format!("  block {} {}: {words}\n", q.layer, q.name))
        });
        let mut lines: Vec<String> = all.collect();
        if severity == Severity::Info {
            let meant = lineage.clips_as_promised().into_iter();
            lines.extend(meant.map(|words| format!("  {words}\n")));
        }
        let title = match (severity, lines.len()) {
            (Severity::Info, _) => "intended, or harmless".to_owned(),
            (_, 1) => format!("1 {severity}"),
            (_, count) => format!("{count} {severity}s"),
        };
        if !lines.is_empty() {
            let _ = write!(out, "\n{title}\n{}", lines.concat());
        }
    }
    let word = match lineage.is_consistent() {
        true => "every reader has the scale of its quantizer",
        false => "MISMATCH: a reader has another scale than its quantizer",
    };
    let _ = writeln!(out, "\n{word}");
    out
}

fn scale(q: &Quantizer) -> String {
    match (q.smallest_scale, q.over_calibrated) {
        (Some(smallest), Some(over)) => format!(
            "{} to {} ({over:.2}x calibrated)",
            number(smallest),
            number(q.scale)
        ),
        _ => number(q.scale),
    }
}

fn factor(reader: &Reader) -> String {
    match reader.factor == 1.0 {
        true => "same".into(),
        false => format!("x {:.4}", reader.factor),
    }
}

fn mark(severity: Severity) -> &'static str {
    match severity {
        Severity::Info => "",
        Severity::Warning => "warning",
        Severity::Error => "error",
    }
}

/// The graph for Graphviz: a cluster a block, a box a quantizer, an edge a reader.
fn dot(lineage: &Lineage) -> String {
    let color = |severity| match severity {
        Severity::Info => "gray40",
        Severity::Warning => "orange3",
        Severity::Error => "firebrick3",
    };
    let mut out = String::from(
        "digraph lineage {\n  rankdir=LR;\n  node [fontname=\"sans-serif\", fontsize=10];\n  edge [fontname=\"sans-serif\", fontsize=9];\n",
    );
    let layers: std::collections::BTreeSet<usize> =
        lineage.quantizers.iter().map(|q| q.layer).collect();
    for layer in layers {
        let _ = writeln!(
            out,
            "  subgraph cluster_{layer} {{\n    label=\"block {layer}\";"
        );
        for q in lineage.quantizers.iter().filter(|q| q.layer == layer) {
            let _ = writeln!(
                out,
                "    \"{layer}.{name}.out\" [shape=box, color={}, label=\"{name}\\nscale {}\\nratio {:.3}, clipped {:.4} %\\ngrid {:.0} %\"];",
                color(q.severity),
                number(q.scale),
                q.scale_ratio,
                100.0 * q.clipped,
                q.codes_used().replace(", ", "\\n"),
                name = q.name,
            );
            for reader in &q.readers {
                let to = format!("{layer}.{}.{}.in", q.name, reader.name);
                let _ = writeln!(
                    out,
                    "    \"{to}\" [shape=ellipse, label=\"{}\"];",
                    reader.label()
                );
                let _ = writeln!(
                    out,
                    "    \"{layer}.{}.out\" -> \"{to}\" [color={}, label=\"{}\"];",
                    q.name,
                    color(reader.severity),
                    factor(reader),
                );
            }
        }
        out.push_str("  }\n");
    }
    out + "}\n"
}
