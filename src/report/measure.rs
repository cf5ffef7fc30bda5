//! Every mode against the float model: perplexity, agreement, the error of each block's output.

use crate::input::{Subject, with_faults_unless_float};
use crate::output::progress;
use rayon::prelude::*;
use scalescope_sim::arith::saturate::Status;
use scalescope_sim::datapath::{Datapath, LogitRows};
use scalescope_sim::error::Result;
use scalescope_sim::fault::Fault;
use scalescope_sim::mode::ModeSpec;
use scalescope_sim::profile::Profile;
use scalescope_sim::score::{Row, SequenceScore, perplexity};
use scalescope_sim::trace::{Place, Recorder, Selection, TracePoint};
use serde::Serialize;
use std::collections::BTreeMap;

/// The point at which a block's error is measured: what it adds to the residual stream.
pub const POINT: TracePoint = TracePoint::OutProjOut;

/// One mode against the reference.
#[derive(Clone, Debug, Default, Serialize)]
pub struct ModeResult {
    /// Its name.
    pub mode: String,
    /// What it does, in one line.
    pub summary: String,
    /// Whether this is the mode the others are held against.
    pub reference: bool,
    /// exp of the mean negative log-likelihood of the next token.
    pub perplexity: f64,
    /// Share of positions whose greedy next token is the reference's.
    pub agreement: f64,
    /// Mean KL(reference ‖ mode), nats a token.
    pub kl: f64,
    /// Share of quantized values that were clamped or wrapped.
    pub overflow_rate: f64,
    /// Its blocks.
    pub layers: Vec<LayerResult>,
}

/// One block of one mode against the reference: propagated error, its own quantizers.
#[derive(Clone, Debug, Default, Serialize)]
pub struct LayerResult {
    /// The block.
    pub layer: usize,
    /// ‖difference‖ / ‖reference‖ at [`POINT`].
    pub normalized_l2: f64,
    /// The same as a ratio of powers, in dB.
    pub sqnr_db: f64,
    /// Share of this block's quantized values that were clamped or wrapped.
    pub saturation_rate: f64,
    /// The scale ratio farthest from 1 among this block's quantizers, and whose it is.
    pub scale_ratio: Option<f64>,
    /// The point of that quantizer.
    pub scale_ratio_point: Option<&'static str>,
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

/// Runs every mode on every sequence. The reference runs once a sequence.
pub fn compare(
    subject: &Subject,
    reference: &ModeSpec,
    modes: &[ModeSpec],
    profile: &Profile,
    faults: &[Fault],
    sequences: &[Vec<u32>],
) -> Result<Vec<ModeResult>> {
    let float = Datapath::new(&subject.model, reference, profile)?;
    let paths: Vec<Datapath> = modes
        .iter()
        .map(|mode| with_faults_unless_float(&subject.model, mode, profile, faults))
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
