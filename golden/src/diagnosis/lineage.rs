//! Scale lineage: every quantizer of a mode, who reads its codes with which scale, and what its
//! scale meets in a run.
//!
//! Values are judged before they are quantized: `scale_ratio` is max|x| / (127 · scale) of the real
//! values that came to a quantizer (to half a step, as it counts in codes), however it saturates or
//! wraps them afterwards.

mod watch;

use crate::diagnosis::finding::Severity;
use crate::diagnosis::fit::{Fit, percent};
use rayon::prelude::*;
use scalescope_sim::arith::saturate::Status;
use scalescope_sim::dataflow::{Block, Columns, Flow, Format, Phase, Quantizer as Maker};
use scalescope_sim::datapath::{Datapath, LogitRows};
use scalescope_sim::error::Result;
use scalescope_sim::plan::ScaleUse;
use scalescope_sim::quant::Scale;
use scalescope_sim::trace::TracePoint;
use serde::Serialize;
use watch::Grid;
pub(super) use watch::Watch;

/// The lineage of a mode on some text.
#[derive(Clone, Debug, Serialize)]
pub struct Lineage {
    /// The mode's name.
    pub mode: String,
    /// The profile's name.
    pub profile: String,
    /// Every quantizer of every block, in the order of the data.
    pub quantizers: Vec<Quantizer>,
}

/// A quantizer and those who read its codes.
#[derive(Clone, Debug, Serialize)]
pub struct Quantizer {
    /// The block.
    pub layer: usize,
    /// Its use of a scale (`x_proj_quant`), or `conv_in_dynamic`, `norm_out_dynamic`, `had_out_dynamic`.
    pub name: &'static str,
    /// Where its codes can be seen.
    pub point: &'static str,
    /// The calibrated scale that it should have, or would have if it were not dynamic.
    pub calibrated: &'static str,
    /// Its scale; the largest of a dynamic quantizer.
    pub scale: f64,
    /// The smallest scale of a dynamic quantizer.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub smallest_scale: Option<f64>,
    /// A dynamic quantizer's largest scale over the calibrated one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub over_calibrated: Option<f64>,
    /// Values quantized.
    pub values: u64,
    /// Largest magnitude that came, before it was made to fit.
    pub absmax: f64,
    /// absmax / (127 · scale); a dynamic quantizer's is 1 by construction.
    pub scale_ratio: f64,
    /// Share of values that were clamped or wrapped.
    pub clipped: f64,
    /// Values that lost their high bits.
    pub wrapped: u64,
    /// Distinct codes / 256; `None` where the values stay FP32 on the grid.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub grid_occupancy: Option<f64>,
    /// Values in each segment of a quantizer that has several, small ones first, and after them those
    /// beyond; empty for one grid.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub segments: Vec<u64>,
    /// Share of values that its scale was calibrated to clip; 0 of a dynamic quantizer.
    pub promised_rate: f64,
    /// The verdict on what is clipped, wrapped or never reached ([`Fit`]).
    pub severity: Severity,
    /// The verdict in words; empty if there is nothing to say.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub fit: String,
    /// Who reads the codes; nobody, where the values stay FP32 on the grid.
    pub readers: Vec<Reader>,
    /// How often each code from −128 to 127 came out; empty where there are no codes.
    #[serde(skip)]
    pub histogram: Vec<u64>,
}

/// Who reads codes, and with which scale.
#[derive(Clone, Debug, Serialize)]
pub struct Reader {
    /// Its use of a scale (`scan_b`), or the step for a dynamic scale, which comes with the codes.
    pub name: &'static str,
    /// What it takes of the tensor.
    pub part: Columns,
    /// Its scale.
    pub scale: f64,
    /// Its scale over the quantizer's: 1 if both agree.
    pub factor: f64,
    /// Largest |code| of its part / 127: how far its part reaches into the grid.
    pub reach: f64,
    /// Distinct codes of its part / 256.
    pub grid_occupancy: f64,
    /// Error if the scales differ.
    pub severity: Severity,
}

impl Reader {
    /// Its name, and what it takes if that is not all.
    pub fn label(&self) -> String {
        match self.part {
            Columns::All => self.name.to_owned(),
            part => format!("{} ({})", self.name, part.name()),
        }
    }
}

impl Lineage {
    /// The worst verdict of all.
    pub fn severity(&self) -> Severity {
        let all = self.quantizers.iter();
        all.map(Quantizer::worst).max().unwrap_or(Severity::Info)
    }

    /// Quantizers that clip as their scales were calibrated to, by name: how many blocks, how much, and how
    /// much was promised.
    pub fn clips_as_promised(&self) -> Vec<String> {
        let mut names: Vec<&str> = self.quantizers.iter().map(|q| q.name).collect();
        let mut seen = std::collections::BTreeSet::new();
        names.retain(|name| seen.insert(*name));
        let words = |name: &str| {
            let clips = |q: &&Quantizer| {
                q.name == name
                    && q.promised_rate > 0.0
                    && q.clipped > 0.0
                    && q.severity == Severity::Info
            };
            let all: Vec<&Quantizer> = self.quantizers.iter().filter(clips).collect();
            let rates = all.iter().map(|q| q.clipped);
            let (low, high) = (rates.clone().reduce(f64::min)?, rates.reduce(f64::max)?);
            Some(format!(
                "{name} clips {} to {} of its values in {} blocks; its scales were calibrated to clip {}",
                percent(low),
                percent(high),
                all.len(),
                percent(all[0].promised_rate)
            ))
        };
        names.into_iter().filter_map(words).collect()
    }

    /// Whether every reader has the scale of its quantizer.
    pub fn is_consistent(&self) -> bool {
        let mut readers = self.quantizers.iter().flat_map(|q| &q.readers);
        readers.all(|reader| reader.severity == Severity::Info)
    }
}

impl Quantizer {
    /// The worse of its own verdict and its readers'.
    pub fn worst(&self) -> Severity {
        let readers = self.readers.iter().map(|r| r.severity);
        readers.fold(self.severity, Severity::max)
    }

    /// `, 40 % of the codes used`; nothing where there are no codes.
    pub fn codes_used(&self) -> String {
        let used = |share| format!(", {:.0} % of the codes used", 100.0 * share);
        self.grid_occupancy.map_or_else(String::new, used)
    }

    /// The share of values in each segment, in percent, `61.0 + 38.9 + 0.1 %`; nothing for one grid.
    pub fn segments_text(&self) -> String {
        let share = |n: &u64| format!("{:.1}", 100.0 * *n as f64 / self.values.max(1) as f64);
        let shares: Vec<String> = self.segments.iter().map(share).collect();
        match shares.is_empty() {
            true => String::new(),
            false => format!("{} %", shares.join(" + ")),
        }
    }

    /// What is wrong, in words; nothing if all is well.
    pub fn remarks(&self) -> Vec<(Severity, String)> {
        let fit = (!self.fit.is_empty()).then(|| (self.severity, self.fit.clone()));
        let readers = self.readers.iter().filter(|r| r.severity > Severity::Info);
        let readers = readers.map(|reader| {
            let words = format!(
                "{} reads with a scale {:.4} times the one it was written with",
                reader.name, reader.factor
            );
            (reader.severity, words)
        });
        fit.into_iter().chain(readers).collect()
    }
}

/// Runs a mode on sequences and follows its scales. Modes without INT8 tensors have no quantizers.
pub fn lineage(path: &Datapath, sequences: &[Vec<u32>], done: impl Fn() + Sync) -> Result<Lineage> {
    let watches: Vec<Watch> = sequences
        .par_iter()
        .map(|tokens| {
            let mut watch = Watch::new(path);
            path.prefill(tokens, LogitRows::None, &mut watch)?;
            done();
            Ok(watch)
        })
        .collect::<Result<_>>()?;
    let mut seen = Watch::new(path);
    for watch in watches {
        seen.add(watch);
    }
    Ok(of_watched(path, &seen, sequences))
}

/// The lineage of a mode whose prefills of sequences were watched.
pub(super) fn of_watched(path: &Datapath, seen: &Watch, sequences: &[Vec<u32>]) -> Lineage {
    let layers = 0..path.config().n_layers;
    let tokens = sequences.iter().map(Vec::len).sum();
    Lineage {
        mode: path.mode().name.to_string(),
        profile: path.profile().name.to_string(),
        quantizers: layers
            .flat_map(|layer| of_layer(path, layer, seen, tokens))
            .collect(),
    }
}

fn of_layer(path: &Datapath, layer: usize, seen: &Watch, tokens: usize) -> Vec<Quantizer> {
    let Some(plan) = path.scales(layer) else {
        return Vec::new();
    };
    let mut quantizers: Vec<(TracePoint, Quantizer)> = Vec::new();
    for flow in flows(path) {
        let grid = seen.grid(layer, flow.point, flow.columns);
        let name = maker_name(flow.quantizer);
        let same = |(point, q): &(TracePoint, Quantizer)| q.name == name && *point == flow.point;
        if !quantizers.last().is_some_and(same) {
            let status = seen.status(layer, flow.point);
            let scale = plan.get(flow.quantizer.scale_use());
            let made = match flow.quantizer {
                Maker::Static(by) => fixed(layer, (by, scale), flow.point, status, tokens),
                dynamic => of_dynamic(layer, dynamic, (flow.point, scale), grid, seen),
            };
            quantizers.push((flow.point, made));
        }
        let (_, quantizer) = quantizers.last_mut().expect("pushed if there was none");
        let scale = match flow.scale {
            Some(by) => f64::from(plan.get(by).get()),
            None => quantizer.scale,
        };
        let factor = scale / quantizer.scale;
        quantizer.readers.push(Reader {
            name: match flow.scale {
                Some(by) => by.name(),
                None => flow.reader.name(),
            },
            part: flow.columns,
            scale,
            factor,
            reach: f64::from(grid.reach()) / 127.0,
            grid_occupancy: grid.occupancy(),
            severity: match factor == 1.0 {
                true => Severity::Info,
                false => Severity::Error,
            },
        });
        // Two readers of one part see the same codes; two parts make up the tensor.
        if quantizer.readers.len() == 1 || flow.columns != Columns::All {
            for (sum, count) in quantizer.histogram.iter_mut().zip(grid.counts) {
                *sum += count;
            }
        }
        let used = quantizer.histogram.iter().filter(|n| **n > 0).count();
        quantizer.grid_occupancy = Some(used as f64 / 256.0);
    }
    // Values that are put on a grid and stay FP32 have no readers that could disagree.
    for (point, by) in on_grids(path) {
        let status = seen.status(layer, point);
        let made = Quantizer {
            histogram: Vec::new(),
            ..fixed(layer, (by, plan.get(by)), point, status, tokens)
        };
        quantizers.push((point, made));
    }
    quantizers.sort_by_key(|(point, _)| *point);
    quantizers.into_iter().map(|(_, q)| q).collect()
}

/// The tensors of a prefill that are put on a grid and stay FP32, and the use of its scale.
fn on_grids(path: &Datapath) -> Vec<(TracePoint, ScaleUse)> {
    let block = Block::of(path.mode(), path.profile(), Phase::Prefill);
    let real = block.rows().iter().filter(|row| row.format == Format::F32);
    real.filter_map(|row| match row.quantizer? {
        Maker::Static(by) => Some((row.point, by)),
        Maker::Tensor(_) | Maker::Token(_) => None,
    })
    .collect()
}

/// Codes that are read with another scale than they were written with.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Disagreement {
    /// The block.
    pub layer: usize,
    /// The tensor.
    pub point: TracePoint,
    /// The quantizer's use of its scale.
    pub written: ScaleUse,
    /// The reader's.
    pub read: ScaleUse,
    /// The reader's scale over the quantizer's.
    pub factor: f64,
}

/// Every disagreement of a path, from its scales alone.
pub fn disagreements(path: &Datapath) -> Vec<Disagreement> {
    let flows = flows(path);
    let of_layer = |layer: usize| {
        let plan = path.scales(layer)?;
        let found = flows.iter().filter_map(move |flow| {
            let (Maker::Static(written), Some(read)) = (flow.quantizer, flow.scale) else {
                return None;
            };
            let factor = f64::from(plan.get(read).get()) / f64::from(plan.get(written).get());
            (factor != 1.0).then_some(Disagreement {
                layer,
                point: flow.point,
                written,
                read,
                factor,
            })
        });
        Some(found.collect::<Vec<_>>())
    };
    let layers = 0..path.config().n_layers;
    layers.filter_map(of_layer).flatten().collect()
}

/// The flows of codes in a prefill, and of the state into the next token.
fn flows(path: &Datapath) -> Vec<Flow> {
    let block = |phase| Block::of(path.mode(), path.profile(), phase).flows();
    let mut flows = block(Phase::Prefill);
    // The state of a prefill is what the first decoded token reads.
    let state = block(Phase::Decode).into_iter();
    let state = state.filter(|flow| flow.point == TracePoint::SsmStateOut);
    flows.extend(state.map(|flow| Flow {
        point: TracePoint::SsmState,
        ..flow
    }));
    flows.sort_by_key(|flow| flow.point);
    flows
}

fn maker_name(maker: Maker) -> &'static str {
    match maker {
        Maker::Static(by) => by.name(),
        Maker::Tensor(by) | Maker::Token(by) => by.dynamic_name(),
    }
}

fn fixed(
    layer: usize,
    (by, scale): (ScaleUse, Scale),
    point: TracePoint,
    status: Status,
    tokens: usize,
) -> Quantizer {
    let step = f64::from(scale.get());
    let last = status.segments.iter().rposition(|count| *count > 0);
    let segments = &status.segments[..last.map_or(0, |last| last + 1)];
    // One of several segments is made for what lies beyond its first grid.
    let fit = match segments.len() > 1 {
        true => Fit::default(),
        false => Fit::of(by.key(), &status, tokens),
    };
    Quantizer {
        layer,
        name: by.name(),
        point: point.name(),
        calibrated: by.key().name(),
        scale: step,
        smallest_scale: None,
        over_calibrated: None,
        values: status.values,
        absmax: f64::from(status.peak) * step,
        scale_ratio: status.scale_ratio(),
        clipped: status.overflow_rate(),
        wrapped: status.wrapped,
        grid_occupancy: None,
        segments: segments.to_vec(),
        promised_rate: fit.promised,
        severity: fit.severity,
        fit: fit.words,
        readers: Vec::new(),
        histogram: vec![0; 256],
    }
}

fn of_dynamic(
    layer: usize,
    maker: Maker,
    (point, calibrated): (TracePoint, Scale),
    grid: &Grid,
    seen: &Watch,
) -> Quantizer {
    let (smallest, largest) = seen.dynamic_scales(layer, point);
    Quantizer {
        layer,
        name: maker_name(maker),
        point: point.name(),
        calibrated: maker.scale_use().key().name(),
        scale: largest,
        smallest_scale: Some(smallest),
        over_calibrated: Some(largest / f64::from(calibrated.get())),
        values: grid.counts.iter().sum(),
        absmax: 127.0 * largest,
        scale_ratio: 1.0,
        clipped: 0.0,
        wrapped: 0,
        grid_occupancy: None,
        segments: Vec::new(),
        promised_rate: 0.0,
        severity: Severity::Info,
        fit: String::new(),
        readers: Vec::new(),
        histogram: vec![0; 256],
    }
}
