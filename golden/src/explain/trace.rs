//! Explanations for the mismatches of a trace.

use super::scales::FACTORS;
use super::{Explanation, Findings, Layouts};
use crate::check::{CheckOptions, CheckReport, Feed, check};
use crate::check_op::Change;
use crate::compare::Summary;
use crate::layout::detect;
use crate::trace_file::TraceFile;
use rayon::prelude::*;
use scalescope_sim::dataflow::{Block, phases};
use scalescope_sim::datapath::Datapath;
use scalescope_sim::error::Result;
use scalescope_sim::fault::{Defect, Fault, ScaleSite};
use scalescope_sim::mode::{Implementation, ModeSpec};
use scalescope_sim::model::{Config, Model, ScaleKey};
use scalescope_sim::plan::ScaleUse;
use scalescope_sim::profile::Profile;
use scalescope_sim::trace::TracePoint;
use std::collections::{BTreeMap, BTreeSet};

/// A single change of the whole run, in words and made, and the tensors that it can alter when every
/// step has the file's inputs.
struct Hypothesis {
    words: String,
    touches: BTreeSet<TracePoint>,
    profile: Profile,
    faults: Vec<Fault>,
}

/// Explains the mismatches of a trace, one entry a point (over all blocks and steps). A change that
/// brings new mismatches elsewhere explains only what is left after them; of changes that explain a
/// point equally well, the one that explains more of the whole file comes first.
///
/// `report` is that of a check with `options` and with tensors kept.
pub fn explain_trace(
    (model, mode, profile): (&Model, &ModeSpec, &Profile),
    trace: &TraceFile,
    options: &CheckOptions,
    report: &CheckReport,
) -> Result<Vec<Explanation>> {
    let before = by_point(&report.summary);
    let mut groups: BTreeMap<TracePoint, Findings> = before
        .iter()
        .filter(|(_, mismatched)| **mismatched > 0)
        .map(|(point, mismatched)| (*point, Findings::new(*mismatched)))
        .collect();
    if groups.is_empty() {
        return Ok(Vec::new());
    }
    let again = CheckOptions {
        keep: false,
        ..options.clone()
    };
    let local = options.feed == Feed::Local;
    let mut hypotheses = rules(mode, profile);
    if model.quantized.is_some() && mode.needs_quantized() {
        hypotheses.extend(scales(mode, profile));
    }
    hypotheses.retain(|h| !local || groups.keys().any(|p| h.touches.contains(p)));
    let judged: Vec<Option<BTreeMap<TracePoint, usize>>> = hypotheses
        .par_iter()
        .map(|h| {
            // Some factors take a scale out of its range.
            let Ok(path) = Datapath::with_faults(model, mode, &h.profile, &h.faults) else {
                return Ok(None);
            };
            Ok(Some(by_point(&check(&path, trace, &again)?.summary)))
        })
        .collect::<Result<_>>()?;
    let all: usize = before.values().sum();
    for (hypothesis, after) in hypotheses.into_iter().zip(judged) {
        let Some(after) = after else { continue };
        let new: usize = after
            .iter()
            .map(|(point, left)| left.saturating_sub(before.get(point).copied().unwrap_or(0)))
            .sum();
        let left: usize = after.values().sum();
        for (point, findings) in &mut groups {
            if !local || hypothesis.touches.contains(point) {
                let remaining = after.get(point).copied().unwrap_or(0);
                let of_all = all.saturating_sub(left) as f64 / all as f64;
                findings.add_of_all(hypothesis.words.clone(), remaining + new, of_all);
            }
        }
    }
    let mut layouts: BTreeMap<TracePoint, Layouts> = BTreeMap::new();
    for ((_, place), pairs) in &report.kept {
        let blocks = blocks(model.config()?, place.point);
        for (expected, found, scale) in pairs {
            let findings = detect((found, *scale), (expected, *scale), &blocks);
            let count = expected.elements().len();
            layouts
                .entry(place.point)
                .or_default()
                .take(findings, count);
        }
    }
    for (point, layouts) in layouts {
        if let Some(findings) = groups.get_mut(&point) {
            layouts.report(findings);
        }
    }
    let ranked = groups
        .into_iter()
        .map(|(point, findings)| findings.rank(point.name().to_owned()));
    Ok(ranked.collect())
}

/// Every change of a rule: in the arithmetic of `cuda` steps, and of `torch` steps.
fn rules(mode: &ModeSpec, profile: &Profile) -> Vec<Hypothesis> {
    let blocks = phases(mode, profile);
    let mut found = Vec::new();
    for change in Change::all() {
        for by in [Implementation::Cuda, Implementation::Torch] {
            let mut changed = profile.clone();
            let arithmetic = match by {
                Implementation::Cuda => &mut changed.cuda,
                Implementation::Torch => &mut changed.torch,
            };
            let words = change
                .describe(arithmetic, false)
                .or_else(|| change.describe(arithmetic, true));
            change.apply(arithmetic);
            let name = match by {
                Implementation::Cuda => "cuda",
                Implementation::Torch => "torch",
            };
            if let (Some(words), true) = (words, changed != *profile) {
                let made = |block: &Block| match change.quantizer() {
                    Some(quantizer) => block.quantized_by(quantizer),
                    None => block.altered_by_rule(by, change.path()),
                };
                found.push(Hypothesis {
                    words: format!("{} ({name}): {words}", change.step()),
                    touches: blocks.iter().flat_map(made).collect(),
                    profile: changed,
                    faults: Vec::new(),
                });
            }
        }
    }
    found
}

/// Every scale off by a factor: a calibrated one at every use, at its quantizers, or one use by itself.
fn scales(mode: &ModeSpec, profile: &Profile) -> Vec<Hypothesis> {
    let blocks = phases(mode, profile);
    let uses = |key: ScaleKey| ScaleUse::ALL.into_iter().filter(move |u| u.key() == key);
    let mut sites: Vec<(String, Vec<ScaleUse>)> = Vec::new();
    for scale in ScaleUse::ALL {
        sites.push((scale.name().to_owned(), vec![scale]));
    }
    for key in ScaleKey::ALL {
        let quantizers: Vec<ScaleUse> = uses(key).filter(|u| u.produces()).collect();
        if quantizers.len() > 1 {
            sites.push((format!("every quantizer of {}", key.name()), quantizers));
        }
        sites.push((format!("{} at every use", key.name()), uses(key).collect()));
    }
    let mut found = Vec::new();
    for factor in FACTORS {
        for (name, uses) in &sites {
            let fault = |scale: &ScaleUse| Fault {
                layer: None,
                defect: Defect::StaleScale {
                    site: ScaleSite::Use(*scale),
                    factor,
                },
            };
            let faults: Vec<Fault> = uses.iter().map(fault).collect();
            let altered = |block: &Block| -> Vec<TracePoint> {
                let altered = faults.iter().map(|fault| fault.defect.alters(block));
                altered.flatten().collect()
            };
            found.push(Hypothesis {
                words: format!("scale: {name} times {factor}"),
                touches: blocks.iter().flat_map(altered).collect(),
                profile: profile.clone(),
                faults,
            });
        }
    }
    found
}

/// Mismatches of each point, over blocks and steps.
fn by_point(summary: &Summary) -> BTreeMap<TracePoint, usize> {
    let mut counts = BTreeMap::new();
    for result in &summary.points {
        if let Some(point) = TracePoint::from_name(&result.point) {
            *counts.entry(point).or_default() += result.mismatched;
        }
    }
    counts
}

/// Widths of the blocks of channels a point consists of.
fn blocks(config: &Config, point: TracePoint) -> Vec<usize> {
    let parts = point.parts().iter();
    parts.map(|part| part.range(config, 0).len()).collect()
}
