//! `scalescope check gpu`: the same model, tokens and mode on the CPU and on a GPU, every tensor
//! compared bit for bit.
//!
//! The CPU's run is recorded as a trace, and the GPU is checked against it as against any other
//! (`check`), with errors flowing and each step by itself.

use super::summary_text;
use crate::Outcome;
use crate::cli::{ModelArgs, TextSource};
use crate::cmd::blocks::ShownArgs;
use crate::device::{DeviceArg, Devices};
use crate::input::{Subject, load_subject, mode_table, runnable, select_modes};
use crate::interrupt;
use crate::output::{print, print_json, progress, table, table_text};
use clap::Args;
use ndarray::Array2;
use scalescope_golden::check::{CheckOptions, CheckReport, Feed, check};
use scalescope_golden::compare::Summary;
use scalescope_golden::trace_file::TraceFile;
use scalescope_sim::datapath::{Datapath, LogitRows};
use scalescope_sim::error::{Result, SimError};
use scalescope_sim::mode::ModeSpec;
use scalescope_sim::profile::Profile;
use scalescope_sim::sample;
use scalescope_sim::trace::{Recorder, Selection};
use serde::Serialize;
use std::num::NonZeroUsize;

/// Arguments of `check gpu`.
#[derive(Args, Debug)]
#[command(after_help = "Examples:
  scalescope check gpu
  scalescope check gpu --modes 0,2-1 --profile deployed --length 2500 --decode 64
  scalescope check gpu --synthetic 130m --profile exact,deployed --layers 0,11,23 --json

Exit code 0 only if every tensor of every run is equal, bit for bit.")]
pub struct CheckGpuArgs {
    /// The model.
    #[command(flatten)]
    pub model: ModelArgs,
    /// Where the tokens come from [default: the sample model's text, or any tokens].
    #[command(flatten)]
    pub source: TextSource,
    /// Modes to run: `all`, or names separated by commas
    #[arg(long, default_value = "all", value_name = "MODES")]
    pub modes: String,
    /// Arithmetics, separated by commas: exact, torch, deployed
    #[arg(long, default_value = "exact,deployed", value_delimiter = ',')]
    pub profile: Vec<String>,
    /// Blocks to compare, separated by commas [default: every one]
    #[arg(long, alias = "layer", value_name = "LIST", value_delimiter = ',')]
    pub layers: Option<Vec<usize>>,
    /// Tokens of the prefill [default: 512]
    #[arg(long, value_name = "N")]
    pub length: Option<NonZeroUsize>,
    /// Tokens decoded one by one after it
    #[arg(long, value_name = "N", default_value_t = 0)]
    pub decode: usize,
    /// The GPU: cuda or cuda:I
    #[arg(long, default_value = "cuda", value_name = "DEVICE")]
    pub device: DeviceArg,
    /// Print JSON instead of tables
    #[arg(long)]
    pub json: bool,
}

/// Tokens without a text and a length.
const LENGTH: usize = 512;

/// One mode and profile, compared.
#[derive(Serialize)]
struct Row {
    mode: String,
    profile: String,
    feed: Feed,
    #[serde(flatten)]
    report: CheckReport,
}

pub fn run(args: &CheckGpuArgs) -> Result<Outcome> {
    let modes = select_modes(&mode_table(&args.model.modes_file)?, &args.modes)?;
    let profiles = args.profile.iter().map(|name| Profile::get(name));
    let profiles = profiles.collect::<Result<Vec<_>>>()?;
    let devices = Devices::open_one(&args.device)?;
    let subject = load_subject(&args.model, &modes)?;
    let modes = runnable(modes, &args.modes, &subject);
    let layers = subject.model.config()?.n_layers;
    if let Some(layer) = args.layers.iter().flatten().find(|l| **l >= layers) {
        let allowed = format!("blocks below {layers}");
        return Err(SimError::value("--layers", allowed, layer));
    }
    let tokens = tokens(args, &subject)?;
    let bar = progress((modes.len() * profiles.len()) as u64, "comparing");
    let mut rows = Vec::new();
    for profile in &profiles {
        for mode in &modes {
            interrupt::check()?;
            rows.extend(compare(args, &devices, &subject, (mode, profile), &tokens)?);
            bar.inc(1);
        }
    }
    bar.finish_and_clear();
    let equal = rows.iter().all(|row| row.report.exit_code() == 0);
    if args.json {
        print_json(&serde_json::json!({
            "model": subject.name,
            "device": args.device.to_string(),
            "tokens": tokens[0].len(),
            "decoded": tokens[1].len(),
            "equal": equal,
            "rows": rows,
        }));
    } else {
        let heading = format!(
            "{}, cpu and {}, {} tokens, then {} one by one",
            subject.name,
            args.device,
            tokens[0].len(),
            tokens[1].len()
        );
        print(&format!("{heading}\n\n{}", text(&rows, equal)));
    }
    Ok(match equal {
        true => Outcome::Success,
        false => Outcome::Mismatch,
    })
}

/// The tokens of the prefill, and those decoded after it.
fn tokens(args: &CheckGpuArgs, subject: &Subject) -> Result<[Vec<u32>; 2]> {
    let length = args.length.map_or(LENGTH, Into::into);
    let mut all = match subject.sequences(&args.source.whole())? {
        Some(sequences) => sequences.concat(),
        None if args.model.model.is_none() && args.model.synthetic.is_none() => {
            crate::tokenizer::encode(&subject.tokenizer()?, &sample::texts())?.concat()
        }
        None => {
            let vocabulary = subject.model.config()?.vocab_size;
            let token = |i: usize| (i * 7_919 % vocabulary) as u32;
            (0..length + args.decode).map(token).collect()
        }
    };
    if all.len() < length + args.decode {
        return Err(SimError::value(
            "tokens",
            format_args!("{length} (--length) and {} more (--decode)", args.decode),
            all.len(),
        ));
    }
    all.truncate(length + args.decode);
    let decoded = all.split_off(length);
    Ok([all, decoded])
}

/// Records the CPU's run and checks the device against it, errors flowing and step by step.
fn compare(
    args: &CheckGpuArgs,
    devices: &Devices,
    subject: &Subject,
    (mode, profile): (&ModeSpec, &Profile),
    [tokens, decoded]: &[Vec<u32>; 2],
) -> Result<Vec<Row>> {
    let path = Datapath::new(&subject.model, mode, profile)?;
    let recorder = || {
        Recorder::new(Selection {
            layers: args.layers.clone(),
            points: None,
        })
    };
    let mut prefill = recorder();
    let (_, mut state) = path.prefill(tokens, LogitRows::All, &mut prefill)?;
    let row = Array2::from_shape_vec((1, tokens.len()), tokens.clone()).expect("one row");
    let mut trace = TraceFile::from_recorders(row, [prefill])?;
    for token in decoded {
        let mut step = recorder();
        path.decode(*token, &mut state, &mut step)?;
        trace.push_step(&[*token], [step])?;
    }
    let engine = devices.engine(path, 0)?;
    [Feed::Cumulative, Feed::Local]
        .into_iter()
        .map(|feed| {
            let options = CheckOptions {
                feed,
                ..CheckOptions::default()
            };
            Ok(Row {
                mode: mode.name.to_string(),
                profile: profile.name.to_string(),
                feed,
                report: check(&*engine, &trace, &options)?,
            })
        })
        .collect()
}

fn text(rows: &[Row], equal: bool) -> String {
    let header = [
        "mode",
        "profile",
        "feed",
        "compared",
        "mismatched",
        "missing",
    ];
    let mut overview = table(&header, 3);
    for row in rows {
        let summary = &row.report.summary;
        overview.add_row([
            row.mode.clone(),
            row.profile.clone(),
            feed(row.feed).into(),
            summary.compared().to_string(),
            summary.mismatched().to_string(),
            summary.missing.len().to_string(),
        ]);
    }
    let mut out = table_text(&overview);
    for row in rows.iter().filter(|row| row.report.exit_code() != 0) {
        let differing = row.report.summary.points.iter();
        let differing = differing.filter(|p| p.mismatched > 0 || p.non_finite > 0);
        let summary = Summary {
            points: differing.cloned().collect(),
            missing: row.report.summary.missing.clone(),
        };
        let name = format!("mode {}, {}, {}", row.mode, row.profile, feed(row.feed));
        out += &format!(
            "\n{name}: what differs\n\n{}",
            summary_text(&summary, &ShownArgs::default())
        );
    }
    let compared: usize = rows.iter().map(|r| r.report.summary.compared()).sum();
    let mismatched: usize = rows.iter().map(|r| r.report.summary.mismatched()).sum();
    let verdict = if equal { "equal" } else { "MISMATCH" };
    out + &format!("\ncompared {compared}, mismatched {mismatched}: {verdict}\n")
}

fn feed(feed: Feed) -> &'static str {
    match feed {
        Feed::Local => "each step by itself",
        Feed::Cumulative => "errors flow",
    }
}
