//! `scalescope report`: every mode against the float model, block by block.

use crate::Outcome;
use crate::cli::ReportArgs;
use crate::input::{Subject, encode, load_subject, mode_table, select_modes};
use crate::output::{print, print_json, progress, table, table_text};
use rayon::prelude::*;
use scalescope_sim::arith::saturate::Status;
use scalescope_sim::datapath::{Datapath, LogitRows};
use scalescope_sim::error::{Result, SimError};
use scalescope_sim::mode::ModeSpec;
use scalescope_sim::profile::Profile;
use scalescope_sim::sample;
use scalescope_sim::score::{Row, SequenceScore, perplexity};
use scalescope_sim::trace::{Place, Recorder, Selection, TracePoint};
use serde::Serialize;
use std::collections::BTreeMap;

/// The mode every other one is held against.
const REFERENCE: &str = "1";
/// The point at which a block's error is measured: what it adds to the residual stream.
const POINT: TracePoint = TracePoint::OutProjOut;
/// Tokens of each passage of the built-in text.
const SAMPLE_LENGTH: usize = 512;

/// One mode against the reference.
#[derive(Clone, Debug, Default, Serialize)]
struct ModeResult {
    mode: String,
    summary: String,
    /// Whether this is the mode the others are held against.
    reference: bool,
    perplexity: f64,
    /// Share of positions whose greedy next token is the reference's.
    agreement: f64,
    /// Mean KL(reference ‖ mode), nats a token.
    kl: f64,
    /// Share of quantized values that were clamped or wrapped.
    overflow_rate: f64,
    layers: Vec<LayerResult>,
}

/// One block of one mode against the reference: propagated error, its own quantizers.
#[derive(Clone, Debug, Default, Serialize)]
struct LayerResult {
    layer: usize,
    normalized_l2: f64,
    sqnr_db: f64,
    /// Share of this block's quantized values that were clamped or wrapped.
    saturation_rate: f64,
    /// The scale ratio farthest from 1 among this block's quantizers, and whose it is.
    scale_ratio: Option<f64>,
    scale_ratio_point: Option<&'static str>,
}

/// Sums over tokens and sequences, from which a [`ModeResult`] is made.
#[derive(Clone, Default)]
struct Tally {
    log_likelihood: Vec<f64>,
    agreed: usize,
    positions: usize,
    kl: f64,
    /// Σ reference², Σ (mode − reference)² of each block.
    energy: Vec<(f64, f64)>,
    counts: BTreeMap<Place, Status>,
}

pub fn run(args: &ReportArgs) -> Result<Outcome> {
    let known = mode_table(&args.model.modes_file)?;
    let reference = known.get(REFERENCE)?.clone();
    let modes = select_modes(&known, &args.modes)?;
    let profile = Profile::get(&args.profile)?;
    let mut needed = modes.clone();
    needed.push(reference.clone());
    let subject = load_subject(&args.model, &needed)?;
    let sequences = match subject.sequences(&args.input)? {
        Some(sequences) => sequences,
        None => sample_sequences(&subject)?,
    };
    if let Some(i) = sequences.iter().position(|s| s.len() < 2) {
        return Err(SimError::value(
            format_args!("sequence {i}"),
            "at least two tokens, to predict one from the other",
            sequences[i].len(),
        ));
    }
    let results = compare(&subject, &reference, &modes, &profile, &sequences)?;
    if args.json {
        print_json(&serde_json::json!({
            "model": subject.name,
            "profile": profile.name,
            "reference": REFERENCE,
            "sequences": sequences.len(),
            "tokens": sequences.iter().map(Vec::len).sum::<usize>(),
            "error_point": POINT.name(),
            "modes": results,
        }));
    } else {
        print(&text(&subject, &profile, &sequences, &results)?);
    }
    Ok(Outcome::Success)
}

fn sample_sequences(subject: &Subject) -> Result<Vec<Vec<u32>>> {
    let mut sequences = encode(&subject.tokenizer()?, &sample::texts())?;
    for sequence in &mut sequences {
        sequence.truncate(SAMPLE_LENGTH);
    }
    Ok(sequences)
}

/// Runs every mode on every sequence. The reference runs once a sequence.
fn compare(
    subject: &Subject,
    reference: &ModeSpec,
    modes: &[ModeSpec],
    profile: &Profile,
    sequences: &[Vec<u32>],
) -> Result<Vec<ModeResult>> {
    let float = Datapath::new(&subject.model, reference, profile)?;
    let paths: Vec<Datapath> = modes
        .iter()
        .map(|mode| Datapath::new(&subject.model, mode, profile))
        .collect::<Result<_>>()?;
    let bar = progress((sequences.len() * paths.len()) as u64, "comparing modes");
    let mut tallies = vec![Tally::default(); paths.len()];
    for tokens in sequences {
        let (clean, logits) = record(&float, tokens)?;
        let rows: Vec<Row> = (logits.rows().into_iter())
            .map(|row| Row::new(row.to_slice().expect("logits are row-major")))
            .collect();
        let ends: Vec<Tally> = paths
            .par_iter()
            .map(|path| {
                let out = tally(path, tokens, &clean, &rows);
                bar.inc(1);
                out
            })
            .collect::<Result<_>>()?;
        for (total, one) in tallies.iter_mut().zip(ends) {
            total.add(one);
        }
    }
    bar.finish_and_clear();
    Ok(modes
        .iter()
        .zip(tallies)
        .map(|(mode, tally)| ModeResult {
            reference: mode == reference,
            ..tally.result(mode)
        })
        .collect())
}

fn record(path: &Datapath, tokens: &[u32]) -> Result<(Recorder, ndarray::Array2<f32>)> {
    let mut recorder = Recorder::new(Selection {
        layers: None,
        points: Some(vec![POINT]),
    });
    let (logits, _) = path.prefill(tokens, LogitRows::All, &mut recorder)?;
    Ok((recorder, logits.to_real()))
}

fn tally(path: &Datapath, tokens: &[u32], clean: &Recorder, rows: &[Row]) -> Result<Tally> {
    let (own, logits) = record(path, tokens)?;
    let score = SequenceScore::new(tokens, &logits);
    let mut out = Tally {
        positions: score.greedy.len(),
        log_likelihood: score.log_likelihood,
        counts: own.counts,
        ..Tally::default()
    };
    for ((greedy, clean), own) in score.greedy.iter().zip(rows).zip(logits.rows()) {
        out.agreed += usize::from(*greedy == clean.greedy());
        out.kl += Row::new(own.to_slice().expect("logits are row-major")).kl_from(clean);
    }
    for (place, clean) in &clean.tensors {
        let (clean, own) = (clean.to_real(), own.tensors[place].to_real());
        let mut energy = (0.0, 0.0);
        for (x, y) in clean.iter().zip(&own) {
            let (x, y) = (f64::from(*x), f64::from(*y));
            energy.0 += x * x;
            energy.1 += (y - x) * (y - x);
        }
        out.energy.push(energy);
    }
    Ok(out)
}

impl Tally {
    fn add(&mut self, other: Tally) {
        self.log_likelihood.extend(other.log_likelihood);
        self.agreed += other.agreed;
        self.positions += other.positions;
        self.kl += other.kl;
        self.energy.resize(other.energy.len(), (0.0, 0.0));
        for (sum, (x, d)) in self.energy.iter_mut().zip(other.energy) {
            sum.0 += x;
            sum.1 += d;
        }
        for (place, status) in other.counts {
            *self.counts.entry(place).or_default() += status;
        }
    }

    fn result(&self, mode: &ModeSpec) -> ModeResult {
        let mut all = Status::default();
        for status in self.counts.values() {
            all += *status;
        }
        ModeResult {
            mode: mode.name.to_string(),
            summary: mode.summary.to_string(),
            perplexity: perplexity(&self.log_likelihood),
            agreement: self.agreed as f64 / self.positions as f64,
            kl: self.kl / self.positions as f64,
            overflow_rate: all.overflow_rate(),
            layers: (self.energy.iter().enumerate())
                .map(|(layer, energy)| self.layer(layer, *energy))
                .collect(),
            ..ModeResult::default()
        }
    }

    fn layer(&self, layer: usize, (signal, noise): (f64, f64)) -> LayerResult {
        let mut all = Status::default();
        let mut worst: Option<(f64, &'static str)> = None;
        for (place, status) in self.counts.iter().filter(|(p, _)| p.layer == Some(layer)) {
            all += *status;
            let ratio = status.scale_ratio();
            if worst.is_none_or(|(r, _)| ratio.ln().abs() > r.ln().abs()) {
                worst = Some((ratio, place.point.name()));
            }
        }
        LayerResult {
            layer,
            normalized_l2: (noise / signal).sqrt(),
            sqnr_db: 10.0 * (signal / noise).log10(),
            saturation_rate: all.overflow_rate(),
            scale_ratio: worst.map(|w| w.0),
            scale_ratio_point: worst.map(|w| w.1),
        }
    }
}

fn text(
    subject: &Subject,
    profile: &Profile,
    sequences: &[Vec<u32>],
    results: &[ModeResult],
) -> Result<String> {
    let config = subject.model.config()?;
    let tokens: usize = sequences.iter().map(Vec::len).sum();
    let mut out = format!(
        "{}: {} blocks, d_model {}, vocabulary {}; profile {} ({})\n{} passages, {tokens} tokens\n\n",
        subject.name,
        config.n_layers,
        config.d_model,
        config.vocab_size,
        profile.name,
        profile.summary,
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
        "\nagreement, KL: next-token choice and distribution against mode {REFERENCE}; \
         saturated: quantized values that did not fit INT8\n",
    ));
    type Cell = fn(&LayerResult) -> String;
    let cells: [(&str, Cell); 4] = [
        (
            "normalized_l2 of each block's output against mode 1, propagated (lower is better)",
            |l| format!("{:.4}", l.normalized_l2),
        ),
        (
            "sqnr_db of each block's output against mode 1, propagated (higher is better)",
            |l| format!("{:.2}", l.sqnr_db),
        ),
        ("saturation_rate of each block's quantizers, %", |l| {
            format!("{:.4}", 100.0 * l.saturation_rate)
        }),
        (
            "scale_ratio absmax/(127·scale), the quantizer farthest from 1 (1 fits; 2 clips half, 0.5 wastes half)",
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
