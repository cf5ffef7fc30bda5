//! Every mode against the float model: what it costs at every position, the error of each block's output.
//!
//! Logits are consumed as they come, some rows at a time: those of a whole text would fill the memory.

use crate::output::progress;
use ndarray::Array2;
use rayon::prelude::*;
use scalescope_golden::diagnosis::cost::loss::Losses;
use scalescope_sim::arith::saturate::Status;
use scalescope_sim::datapath::{BlockInput, Datapath, LogitRows};
use scalescope_sim::error::Result;
use scalescope_sim::mode::ModeSpec;
use scalescope_sim::score::Row;
use scalescope_sim::trace::{Blind, Place, Probe, Recorder, Selection, TracePoint};
use serde::Serialize;
use std::collections::BTreeMap;
use std::ops::Range;

/// The point at which a block's error is measured: what it adds to the residual stream.
pub const POINT: TracePoint = TracePoint::OutProjOut;
/// Rows of logits that a mode has at a time.
const ROWS: usize = 64;

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
    pub clipped: f64,
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
    pub clipped: f64,
    /// The scale ratio farthest from 1 among this block's quantizers, and whose it is.
    pub scale_ratio: Option<f64>,
    /// The point of that quantizer.
    pub scale_ratio_point: Option<&'static str>,
}

/// What a path did on all sequences.
#[derive(Clone, Default)]
pub struct Run {
    /// KL from the reference and −log-likelihood, position by position.
    pub losses: Losses,
    pub(super) agreed: usize,
    /// Σ reference², Σ (path − reference)² of each block.
    pub(super) energy: Vec<(f64, f64)>,
    pub(super) counts: BTreeMap<Place, Status>,
}

/// Runs every path and the reference on every sequence; the reference's own run comes last. The first `modes` paths are
/// modes as they are, which have the same logits where they come to the head with the same bits.
pub fn runs(
    (paths, modes): (&[Datapath], usize),
    reference: &Datapath,
    sequences: &[Vec<u32>],
) -> Result<(Vec<Run>, Run)> {
    let bar = progress(
        (sequences.len() * (paths.len() + 1)) as u64,
        "comparing modes",
    );
    let mut runs = vec![Run::default(); paths.len()];
    let mut own = Run::default();
    for tokens in sequences {
        crate::interrupt::check()?;
        let clean = Ended::of(reference, tokens)?;
        bar.inc(1);
        own.add(&clean, &clean);
        // Of a path's tensors nothing is kept but the last block's output.
        let ends: Vec<BlockInput> = (runs.par_iter_mut().zip(paths))
            .map(|(run, path)| {
                let ended = Ended::of(path, tokens)?;
                bar.inc(1);
                run.add(&ended, &clean);
                Ok(ended.passing)
            })
            .collect::<Result<_>>()?;
        let twins = twins(&paths[..modes], &ends);
        for first in (0..tokens.len()).step_by(ROWS) {
            crate::interrupt::check()?;
            let part = first..(first + ROWS).min(tokens.len());
            let truth = logits(reference, &clean.passing, part.clone(), &mut Blind)?;
            let truth: Vec<Row> = (truth.rows().into_iter())
                .map(|row| Row::new(row.to_slice().expect("logits are row-major")))
                .collect();
            let probabilities: Vec<Vec<f64>> = truth.par_iter().map(Row::probabilities).collect();
            let truth = Truth {
                rows: &truth,
                probabilities: &probabilities,
            };
            let targets = &tokens[tokens.len().min(first + 1)..tokens.len().min(part.end + 1)];
            own.score(truth.rows, &truth, targets);
            let twin = |i: usize| twins.get(i).copied().unwrap_or(i);
            let scored: Vec<Option<Run>> = (paths.par_iter().zip(&ends).enumerate())
                .map(|(i, (path, passing))| {
                    if twin(i) != i {
                        return Ok(None);
                    }
                    let mut head = Recorder::new(nothing());
                    let logits = logits(path, passing, part.clone(), &mut head)?;
                    let rows: Vec<Row> = (logits.rows().into_iter())
                        .map(|row| Row::new(row.to_slice().expect("logits are row-major")))
                        .collect();
                    let mut run = Run::default();
                    run.score(&rows, &truth, targets);
                    run.count(head.counts);
                    Ok(Some(run))
                })
                .collect::<Result<_>>()?;
            for (i, run) in runs.iter_mut().enumerate() {
                run.scored(scored[twin(i)].as_ref().expect("a twin has its own"));
            }
        }
    }
    bar.finish_and_clear();
    Ok((runs, own))
}

/// For each mode the first one that hands the same bits to the same head.
fn twins(modes: &[Datapath], ends: &[BlockInput]) -> Vec<usize> {
    let bits = |values: &Array2<f32>| -> Vec<u32> { values.iter().map(|v| v.to_bits()).collect() };
    let ends: Vec<_> = (modes.iter().zip(ends))
        .map(|(mode, end)| {
            let residual = end.residual.as_ref().map(bits);
            (mode.mode().weights, bits(&end.hidden.to_real()), residual)
        })
        .collect();
    let first = |end| ends.iter().position(|other| other == end);
    ends.iter().map(|end| first(end).expect("itself")).collect()
}

/// What the reference says of some tokens, which every run is held against.
struct Truth<'a> {
    rows: &'a [Row<'a>],
    probabilities: &'a [Vec<f64>],
}

fn nothing() -> Selection {
    Selection {
        layers: None,
        points: Some(Vec::new()),
    }
}

/// A path after the last block of a sequence.
struct Ended {
    seen: Recorder,
    passing: BlockInput,
}

impl Ended {
    fn of(path: &Datapath, tokens: &[u32]) -> Result<Self> {
        let mut seen = Recorder::new(Selection {
            layers: None,
            points: Some(vec![POINT]),
        });
        let mut passing = path.start(tokens)?;
        for block in 0..path.config().n_layers {
            (passing, _) = path.prefill_block(block, passing, &mut seen)?;
        }
        Ok(Self { seen, passing })
    }
}

fn logits(
    path: &Datapath,
    passing: &BlockInput,
    rows: Range<usize>,
    probe: &mut dyn Probe,
) -> Result<Array2<f32>> {
    let logits = path.finish(passing.rows(rows), LogitRows::All, probe)?;
    Ok(logits.to_real())
}

impl Run {
    /// Errors of the blocks, and what their quantizers counted.
    fn add(&mut self, own: &Ended, clean: &Ended) {
        self.energy.resize(clean.seen.tensors.len(), (0.0, 0.0));
        let tensors = self.energy.iter_mut().zip(&clean.seen.tensors);
        for (sum, (place, clean)) in tensors {
            let (clean, own) = (clean.to_real(), own.seen.tensors[place].to_real());
            for (x, y) in clean.iter().zip(&own) {
                let (x, y) = (f64::from(*x), f64::from(*y));
                sum.0 += x * x;
                sum.1 += (y - x) * (y - x);
            }
        }
        self.count(own.seen.counts.clone());
    }

    fn count(&mut self, counts: BTreeMap<Place, Status>) {
        for (place, status) in counts {
            *self.counts.entry(place).or_default() += status;
        }
    }

    /// Losses of some rows, as many as have a next token.
    fn score(&mut self, rows: &[Row], truth: &Truth, targets: &[u32]) {
        let truth = truth.rows.iter().zip(truth.probabilities);
        for ((own, (truth, probabilities)), target) in rows.iter().zip(truth).zip(targets) {
            self.losses.kl.push(own.kl_from_known(truth, probabilities));
            self.losses.nll.push(-own.log_likelihood(*target));
            self.agreed += usize::from(own.greedy() == truth.greedy());
        }
    }

    /// Adds the losses of another's rows.
    fn scored(&mut self, other: &Self) {
        self.losses.kl.extend(&other.losses.kl);
        self.losses.nll.extend(&other.losses.nll);
        self.agreed += other.agreed;
        self.count(other.counts.clone());
    }

    /// The run in numbers.
    pub fn result(&self, mode: &ModeSpec, reference: &ModeSpec) -> ModeResult {
        let mut all = Status::default();
        for status in self.counts.values() {
            all += *status;
        }
        ModeResult {
            mode: mode.name.to_string(),
            summary: mode.summary.to_string(),
            reference: mode == reference,
            perplexity: self.losses.perplexity(),
            agreement: self.agreed as f64 / self.losses.kl.len() as f64,
            kl: self.losses.mean_kl(),
            clipped: all.overflow_rate(),
            layers: (self.energy.iter().enumerate())
                .map(|(layer, energy)| self.layer(layer, *energy))
                .collect(),
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
            clipped: all.overflow_rate(),
            scale_ratio: worst.map(|w| w.0),
            scale_ratio_point: worst.map(|w| w.1),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use scalescope_sim::mode::ModeTable;
    use scalescope_sim::profile::Profile;
    use scalescope_sim::sample;

    #[test]
    fn modes_that_share_their_logits_lose_nothing_by_it() {
        let model = sample::model();
        let table = ModeTable::default();
        let profile = Profile::get("exact").unwrap();
        let path = |name| Datapath::new(&model, table.get(name).unwrap(), &profile).unwrap();
        let float = path("1");
        let paths = ["0", "2-3", "2-0", "5-1", "2-1", "6-1"].map(path);
        let sequences = [(1..70).collect(), (900..940).rev().collect()];
        let (shared, _) = runs((&paths, paths.len()), &float, &sequences).unwrap();
        let (alone, own) = runs((&paths, 0), &float, &sequences).unwrap();
        for ((mode, shared), alone) in paths.iter().zip(&shared).zip(&alone) {
            let name = &mode.mode().name;
            assert_eq!(shared.losses, alone.losses, "{name}");
            assert_eq!(shared.agreed, alone.agreed, "{name}");
            assert_eq!(shared.counts, alone.counts, "{name}");
        }
        assert_eq!(own.losses.kl, vec![0.0; 107]);

        let ends = |path: &Datapath| Ended::of(path, &sequences[0]).unwrap().passing;
        let ends: Vec<BlockInput> = paths.iter().map(ends).collect();
        let twins = twins(&paths, &ends);
        assert_eq!((twins[0], twins[2], twins[4], twins[5]), (0, 0, 0, 5));
    }
}
