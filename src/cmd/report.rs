//! `scalescope report`: every mode against the float model, block by block.

use crate::Outcome;
use crate::cli::{FaultArgs, InputArgs, ModelArgs};
use crate::eval::summary::Report as EvalReport;
use crate::input::{
    Subject, faults, faults_text, load_subject, mode_table, runnable, select_modes,
    with_faults_unless_float,
};
use crate::output::{note, print, print_json, progress, table, table_text};
use crate::report::measure::{LayerResult, ModeResult, POINT, compare};
use crate::report::{ModeDetail, Report, detail, page};
use clap::Args;
use scalescope_sim::atomic;
use scalescope_sim::datapath::Datapath;
use scalescope_sim::error::{Result, SimError};
use scalescope_sim::fault::Fault;
use scalescope_sim::mode::ModeSpec;
use scalescope_sim::profile::Profile;
use std::io::Write;
use std::path::PathBuf;

/// Arguments of `report`.
#[derive(Args, Debug)]
#[command(after_help = "Examples:
  scalescope report
  scalescope report --modes 0,2-4 --profile deployed --file book.txt --length 512
  scalescope report --json > report.json
  scalescope report --html report.html --eval results.json")]
pub struct ReportArgs {
    /// The model.
    #[command(flatten)]
    pub model: ModelArgs,
    /// The text.
    #[command(flatten)]
    pub input: InputArgs,
    /// Modes to run: `all`, or names separated by commas
    #[arg(long, default_value = "all", value_name = "MODES")]
    pub modes: String,
    /// Arithmetic: exact, torch, deployed, asic-int8, tflite-single, tflite-double, pow2, or a .toml
    /// file (docs/asic.md)
    #[arg(long, default_value = "exact")]
    pub profile: String,
    /// Defects.
    #[command(flatten)]
    pub faults: FaultArgs,
    /// Write one self-contained page: every mode in depth, in a browser and on paper
    #[arg(long, value_name = "FILE")]
    pub html: Option<PathBuf>,
    /// Results of `scalescope eval --json` to show on the page
    #[arg(long, value_name = "FILE", requires = "html")]
    pub eval: Option<PathBuf>,
    /// Print JSON instead of tables
    #[arg(long)]
    pub json: bool,
}

/// The mode every other one is held against, where the model has its parts; else the first that runs.
const REFERENCE: &str = "1";
/// Tokens of each passage of the built-in text.
const SAMPLE_LENGTH: usize = 512;

pub fn run(args: &ReportArgs) -> Result<Outcome> {
    let known = mode_table(&args.model.modes_file)?;
    let float = known.get(REFERENCE)?.clone();
    let modes = select_modes(&known, &args.modes)?;
    let profile = Profile::get(&args.profile)?;
    let faults = faults(&args.faults)?;
    let mut needed = modes.clone();
    needed.push(float.clone());
    let subject = load_subject(&args.model, &needed)?;
    let modes = runnable(modes, &args.modes, &subject);
    let reference = match (subject.has_parts(&float), modes.first()) {
        (false, Some(first)) => {
            let what = format!(
                "modes are held against mode {}: mode {REFERENCE} needs the float model (--float)",
                first.name
            );
            note(&subject.name, what);
            first.clone()
        }
        _ => float,
    };
    let sequences = subject.sequences_or_sample(&args.input, SAMPLE_LENGTH)?;
    if let Some(i) = sequences.iter().position(|s| s.len() < 2) {
        return Err(SimError::value(
            format_args!("sequence {i}"),
            "at least two tokens, to predict one from the other",
            sequences[i].len(),
        ));
    }
    let eval = args.eval.as_deref().map(EvalReport::read).transpose()?;
    // Made before the work, so that a folder that cannot be written to is told at once.
    let file = args
        .html
        .as_deref()
        .map(atomic::temporary_beside)
        .transpose()?;
    let results = compare(&subject, &reference, &modes, &profile, &faults, &sequences)?;
    let tokens = sequences.iter().map(Vec::len).sum::<usize>();
    let mut json = serde_json::json!({
        "model": subject.name,
        "profile": profile.name,
        "faults": faults,
        "profile_hash": profile.hash(),
        "reference": reference.name,
        "sequences": sequences.len(),
        "tokens": tokens,
        "error_point": POINT.name(),
        "modes": results,
    });
    if let (Some(path), Some(mut file)) = (&args.html, file) {
        let report = Report {
            model: subject.name.clone(),
            shape: shape(&subject)?,
            profile: (profile.name.to_string(), profile.summary.to_string()),
            reference: reference.name.to_string(),
            sequences: sequences.len(),
            tokens,
            modes: results.clone(),
            details: details(&subject, &reference, &modes, &profile, &faults, &sequences)?,
            eval,
        };
        json["details"] = serde_json::json!(report.details);
        file.write_all(page::page(&report).as_bytes())
            .map_err(|e| SimError::io(path, e))?;
        atomic::put_in_place(file, path)?;
    }
    if args.json {
        print_json(&json);
    } else {
        print(&text(
            &subject, &reference, &profile, &faults, &sequences, &results,
        )?);
        if let Some(path) = &args.html {
            print(&format!("\npage written to {}", path.display()));
        }
    }
    Ok(Outcome::Success)
}

/// Every mode but the reference in depth.
fn details(
    subject: &Subject,
    reference: &ModeSpec,
    modes: &[ModeSpec],
    profile: &Profile,
    faults: &[Fault],
    sequences: &[Vec<u32>],
) -> Result<Vec<ModeDetail>> {
    let clean = Datapath::new(&subject.model, reference, profile)?;
    let modes: Vec<&ModeSpec> = modes.iter().filter(|mode| *mode != reference).collect();
    const PARTS: usize = 100;
    let bar = progress((PARTS * modes.len()) as u64, "examining modes");
    let mut details = Vec::new();
    for (i, mode) in modes.into_iter().enumerate() {
        let path = with_faults_unless_float(&subject.model, mode, profile, faults)?;
        bar.set_position((PARTS * i) as u64);
        let one = detail(&path, &clean, sequences, &details, &|done, total| {
            bar.set_position((PARTS * i + PARTS * done / total) as u64);
        })?;
        details.push(one);
    }
    bar.finish_and_clear();
    Ok(details)
}

fn shape(subject: &Subject) -> Result<String> {
    let config = subject.model.config()?;
    Ok(format!(
        "{} blocks, d_model {}, vocabulary {}",
        config.n_layers, config.d_model, config.vocab_size
    ))
}

fn text(
    subject: &Subject,
    reference: &ModeSpec,
    profile: &Profile,
    faults: &[Fault],
    sequences: &[Vec<u32>],
    results: &[ModeResult],
) -> Result<String> {
    let tokens: usize = sequences.iter().map(Vec::len).sum();
    let mut out = format!(
        "{}: {}; profile {} ({}){}\n{} passages, {tokens} tokens\n\n",
        subject.name,
        shape(subject)?,
        profile.name,
        profile.summary,
        faults_text(faults),
        sequences.len(),
    );
    let mut modes = table(
        &[
            "mode",
            "perplexity",
            "agreement",
            "KL",
            "saturated",
            "what it does",
        ],
        1,
    );
    left_aligned(&mut modes, 5);
    for r in results {
        modes.add_row([
            r.mode.clone(),
            format!("{:.3}", r.perplexity),
            format!("{:.2} %", 100.0 * r.agreement),
            format!("{:.5}", r.kl),
            format!("{:.4} %", 100.0 * r.overflow_rate),
            r.summary.clone(),
        ]);
    }
    out.push_str(&table_text(&modes));
    out.push_str(&format!(
        "\nagreement, KL: next-token choice and distribution against mode {}; \
         saturated: quantized values that did not fit INT8\n",
        reference.name
    ));
    type Cell = fn(&LayerResult) -> String;
    let against = |metric: &str, better: &str| {
        format!(
            "{metric} of each block's output against mode {}, propagated ({better} is better)",
            reference.name
        )
    };
    let cells: [(String, Cell); 4] = [
        (
            against("normalized_l2", "lower"),
            |l| format!("{:.4}", l.normalized_l2),
        ),
        (
            against("sqnr_db", "higher"),
            |l| format!("{:.2}", l.sqnr_db),
        ),
        ("saturation_rate of each block's quantizers, %".into(), |l| {
            format!("{:.4}", 100.0 * l.saturation_rate)
        }),
        (
            "scale_ratio absmax/(127·scale), the quantizer farthest from 1 (1 fits; above it the largest \
             values are clipped, below it the outer codes are never used)".into(),
            |l| match (l.scale_ratio, l.scale_ratio_point) {
                (Some(ratio), Some(point)) => format!("{ratio:.2} {}", short(point)),
                _ => "-".into(),
            },
        ),
    ];
    for (title, cell) in cells {
        out.push_str(&format!("\n{title}\n{}", by_layer(results, cell)));
    }
    Ok(out)
}

/// A row for each block, a column for each mode that differs from the reference by definition.
fn by_layer(results: &[ModeResult], cell: impl Fn(&LayerResult) -> String) -> String {
    let shown: Vec<&ModeResult> = results.iter().filter(|r| !r.reference).collect();
    let mut header = vec!["block"];
    header.extend(shown.iter().map(|r| r.mode.as_str()));
    let mut rows = table(&header, 1);
    for layer in 0..shown.first().map_or(0, |r| r.layers.len()) {
        let mut row = vec![layer.to_string()];
        row.extend(shown.iter().map(|r| cell(&r.layers[layer])));
        rows.add_row(row);
    }
    table_text(&rows)
}

/// A point's name, short enough for a cell.
fn short(point: &str) -> &str {
    point.strip_suffix("_out").unwrap_or(point)
}

fn left_aligned(table: &mut comfy_table::Table, column: usize) {
    if let Some(column) = table.column_mut(column) {
        column.set_cell_alignment(comfy_table::CellAlignment::Left);
    }
}
