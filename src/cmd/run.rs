//! `scalescope run`: one mode on text or tokens.

use crate::Outcome;
use crate::cli::{FaultArgs, InputArgs, ModelArgs};
use crate::device::{DeviceArg, Devices};
use crate::dumps::trace_points;
use crate::input::{Subject, faults, faults_text, load_subject, mode_table};
use crate::interrupt;
use crate::output::{print, print_json, progress, table, table_text};
use crate::sequences::rectangular;
use clap::Args;
use rayon::prelude::*;
use scalescope_golden::npz::Compression;
use scalescope_golden::trace_file::{MAX_SEQUENCES, Meta, TraceSpool, model_digest};
use scalescope_sim::arith::saturate::Status;
use scalescope_sim::datapath::{Datapath, LogitRows};
use scalescope_sim::engine::Engine;
use scalescope_sim::error::{Result, SimError};
use scalescope_sim::generate::{Sampler, continue_from};
use scalescope_sim::profile::Profile;
use scalescope_sim::score::{Row, SequenceScore, perplexity};
use scalescope_sim::trace::{Place, Probe, Recorder, Selection, TracePoint};
use serde::Serialize;
use std::collections::BTreeMap;
use std::num::NonZeroUsize;
use std::path::{Path, PathBuf};

/// Arguments of `run`.
#[derive(Args, Debug)]
#[command(after_help = "Examples:
  scalescope run --text \"The old captain\"
  scalescope run --mode 2-4 --profile deployed --file book.txt --length 512 --trace out.npz
  scalescope run --model q.safetensors --mode 0 --tokens t.npy --trace out.npz --points conv_out,ssm_y")]
pub struct RunArgs {
    /// The model.
    #[command(flatten)]
    pub model: ModelArgs,
    /// The text.
    #[command(flatten)]
    pub input: InputArgs,
    /// The mode (see `scalescope modes`)
    #[arg(long, default_value = "0")]
    pub mode: String,
    /// Arithmetic: exact, torch, deployed, asic-int8, tflite-single, tflite-double, pow2, or a .toml
    /// file (docs/asic.md)
    #[arg(long, default_value = "exact")]
    pub profile: String,
    /// Defects.
    #[command(flatten)]
    pub faults: FaultArgs,
    /// Where to run: cpu, cuda or cuda:I (needs the feature `cuda`)
    #[arg(long, default_value = "cpu", value_name = "DEVICE")]
    pub device: DeviceArg,
    /// Write the tensors of the run to this .npz
    #[arg(long, value_name = "FILE")]
    pub trace: Option<PathBuf>,
    /// Blocks to trace, separated by commas [default: every one]
    #[arg(
        long,
        alias = "layer",
        value_name = "LIST",
        value_delimiter = ',',
        requires = "trace"
    )]
    pub layers: Option<Vec<usize>>,
    /// Points to trace, separated by commas [default: every one; see docs/trace-points.md]
    #[arg(long, value_name = "LIST", value_delimiter = ',', requires = "trace")]
    pub points: Option<Vec<String>>,
    /// Continue each sequence by this many tokens, greedily
    #[arg(long, value_name = "N")]
    pub generate: Option<NonZeroUsize>,
    /// Print JSON instead of text
    #[arg(long)]
    pub json: bool,
}

/// What a run of one sequence gave.
#[derive(Serialize)]
struct SequenceResult {
    tokens: usize,
    /// Over tokens 1, 2, …; absent for a single token.
    perplexity: Option<f64>,
    next: Vec<Candidate>,
    #[serde(skip_serializing_if = "Option::is_none")]
    generated: Option<Vec<u32>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    generated_text: Option<String>,
}

/// A token that may come next.
#[derive(Serialize)]
struct Candidate {
    token: u32,
    text: Option<String>,
    probability: f64,
}

/// Counters of every quantizer of a sequence.
type Counts = BTreeMap<Place, Status>;

/// Candidates shown.
const CANDIDATES: usize = 5;

pub fn run(args: &RunArgs) -> Result<Outcome> {
    let mode = mode_table(&args.model.modes_file)?.get(&args.mode)?.clone();
    let profile = Profile::get(&args.profile)?;
    let faults = faults(&args.faults)?;
    let selection = selection(args)?;
    let devices = Devices::open_one(&args.device)?;
    let subject = load_subject(&args.model, std::slice::from_ref(&mode))?;
    let Some(sequences) = subject.sequences(&args.input)? else {
        return Err(SimError::value(
            "input",
            "--text, --tokens or --file",
            "none of them",
        ));
    };
    let tokens = match (&args.trace, rectangular(&sequences)) {
        (Some(_), None) => {
            return Err(SimError::value(
                "--trace",
                "sequences of one length (cut them with --length, choose one with --limit 1)",
                "different lengths",
            ));
        }
        (Some(_), Some(tokens)) if tokens.nrows() > MAX_SEQUENCES => {
            return Err(SimError::value(
                "--trace",
                format_args!("at most {MAX_SEQUENCES} sequences (choose some with --limit)"),
                tokens.nrows(),
            ));
        }
        (_, tokens) => tokens,
    };
    check_layers(args, &subject)?;
    let datapath = Datapath::with_faults(&subject.model, &mode, &profile, &faults)?;
    let engine = devices.engine(datapath, 0)?;
    let spool = args.trace.as_ref().map(TraceSpool::create).transpose()?;
    let bar = progress(sequences.len() as u64, "running");
    let done: Vec<(Counts, SequenceResult)> = sequences
        .par_iter()
        .enumerate()
        .map(|(index, sequence)| {
            interrupt::check()?;
            let out = match &spool {
                Some(spool) => {
                    let mut probe = spool.sequence(index, selection.clone());
                    let out = run_sequence(&*engine, sequence, &mut probe, args.generate)?;
                    (probe.counts, out)
                }
                None => {
                    let mut probe = Recorder::new(selection.clone());
                    let out = run_sequence(&*engine, sequence, &mut probe, args.generate)?;
                    (probe.counts, out)
                }
            };
            bar.inc(1);
            Ok(out)
        })
        .collect::<Result<_>>()?;
    bar.finish_and_clear();
    let (counts, mut results): (Vec<_>, Vec<_>) = done.into_iter().unzip();
    let tokenizer = subject.tokenizer().ok();
    for result in &mut results {
        let Some(tokenizer) = &tokenizer else { break };
        for candidate in &mut result.next {
            candidate.text = tokenizer.decode(&[candidate.token], false).ok();
        }
        if let Some(ids) = &result.generated {
            result.generated_text = tokenizer.decode(ids, false).ok();
        }
    }
    let counts = total_counts(&counts);
    if let (Some(spool), Some(tokens)) = (spool, tokens) {
        let mut meta = Meta {
            mode: Some(mode.name.to_string()),
            profile: Some(profile.name.to_string()),
            profile_hash: Some(profile.hash()),
            model: model_digest(&subject.model),
            ..Meta::default()
        };
        if !faults.is_empty() {
            meta.other
                .insert("faults".into(), serde_json::json!(faults));
        }
        spool.finish(&tokens, &meta, Compression::Deflate)?;
    }
    if args.json {
        print_json(&serde_json::json!({
            "model": subject.name,
            "mode": mode.name,
            "profile": profile.name,
            "faults": faults,
            "profile_hash": profile.hash(),
            "sequences": results,
            "quantizers": counts.iter().map(|(point, status)| (point.name(), status)).collect::<BTreeMap<_, _>>(),
        }));
    } else {
        let heading = format!(
            "{}, mode {}, profile {}{}",
            subject.name,
            mode.name,
            profile.name,
            faults_text(&faults)
        );
        print(&text(&heading, &results, &counts, args.trace.as_deref()));
    }
    Ok(Outcome::Success)
}

fn selection(args: &RunArgs) -> Result<Selection> {
    if args.trace.is_none() {
        return Ok(Selection {
            layers: Some(Vec::new()),
            points: Some(Vec::new()),
        });
    }
    let points = args.points.as_deref().map(trace_points).transpose()?;
    Ok(Selection {
        layers: args.layers.clone(),
        points,
    })
}

fn check_layers(args: &RunArgs, subject: &Subject) -> Result<()> {
    let count = subject.model.config()?.n_layers;
    match args.layers.iter().flatten().find(|layer| **layer >= count) {
        Some(layer) => Err(SimError::value(
            "--layers",
            format_args!("blocks below {count}"),
            layer,
        )),
        None => Ok(()),
    }
}

fn run_sequence(
    engine: &dyn Engine,
    tokens: &[u32],
    probe: &mut dyn Probe,
    generate: Option<std::num::NonZeroUsize>,
) -> Result<SequenceResult> {
    let mut sequence = engine.begin();
    let logits = sequence.prefill(tokens, LogitRows::All, probe)?;
    let logits = logits.to_real();
    let last = logits.row(logits.nrows() - 1).to_vec();
    let score = SequenceScore::new(tokens, &logits);
    let generated = match generate {
        None => None,
        Some(count) => Some(continue_from(
            &mut *sequence,
            &last,
            count.get(),
            Sampler::Greedy,
        )?),
    };
    Ok(SequenceResult {
        tokens: tokens.len(),
        perplexity: (tokens.len() > 1).then(|| perplexity(&score.log_likelihood)),
        next: candidates(&last),
        generated,
        generated_text: None,
    })
}

fn candidates(logits: &[f32]) -> Vec<Candidate> {
    let row = Row::new(logits);
    let mut ids: Vec<u32> = (0..logits.len() as u32).collect();
    ids.sort_by(|a, b| {
        logits[*b as usize]
            .total_cmp(&logits[*a as usize])
            .then(a.cmp(b))
    });
    ids.into_iter()
        .take(CANDIDATES)
        .map(|token| Candidate {
            token,
            text: None,
            probability: row.log_likelihood(token).exp(),
        })
        .collect()
}

/// Counters of every quantizer, summed over sequences and blocks.
fn total_counts(sequences: &[Counts]) -> BTreeMap<TracePoint, Status> {
    let mut total: BTreeMap<TracePoint, Status> = BTreeMap::new();
    for (Place { point, .. }, status) in sequences.iter().flatten() {
        *total.entry(*point).or_default() += *status;
    }
    total
}

fn text(
    heading: &str,
    results: &[SequenceResult],
    counts: &BTreeMap<TracePoint, Status>,
    trace: Option<&Path>,
) -> String {
    let mut sequences = table(&["sequence", "tokens", "perplexity", "next token"], 1);
    sequences
        .column_mut(3)
        .expect("four columns")
        .set_cell_alignment(comfy_table::CellAlignment::Left);
    for (i, result) in results.iter().enumerate() {
        let next: Vec<String> = result
            .next
            .iter()
            .map(|c| {
                let name = match &c.text {
                    Some(text) => format!("{text:?}"),
                    None => c.token.to_string(),
                };
                format!("{name} {:.1} %", 100.0 * c.probability)
            })
            .collect();
        sequences.add_row([
            i.to_string(),
            result.tokens.to_string(),
            result.perplexity.map_or("-".into(), |p| format!("{p:.3}")),
            next.join("  "),
        ]);
    }
    let mut out = format!("{heading}\n\n{}", table_text(&sequences));
    if !counts.is_empty() {
        let mut quantizers = table(
            &["quantizer", "values", "saturated", "wrapped", "scale_ratio"],
            1,
        );
        for (point, status) in counts {
            quantizers.add_row([
                point.name().to_string(),
                status.values.to_string(),
                status.saturated.to_string(),
                status.wrapped.to_string(),
                format!("{:.3}", status.scale_ratio()),
            ]);
        }
        out.push_str(&format!("\n{}", table_text(&quantizers)));
    }
    for (i, result) in results.iter().enumerate() {
        if let Some(ids) = &result.generated {
            let shown = match &result.generated_text {
                Some(text) => text.clone(),
                None => format!("{ids:?}"),
            };
            out.push_str(&format!("\nsequence {i} continues:{shown}\n"));
        }
    }
    if let Some(path) = trace {
        out.push_str(&format!("\ntrace written to {}\n", path.display()));
    }
    out
}
