//! Explanations for the mismatches of a trace.

use super::{Explanation, Findings, Layouts, scales};
use crate::check::{CheckOptions, CheckReport, Feed, check};
use crate::check_op::Change;
use crate::compare::Summary;
use crate::layout::detect;
use crate::trace_file::TraceFile;
use scalescope_sim::datapath::Datapath;
use scalescope_sim::error::Result;
use scalescope_sim::mode::ModeSpec;
use scalescope_sim::model::{ActivationScales, Config, Model, ScaleKey};
use scalescope_sim::profile::Profile;
use scalescope_sim::trace::TracePoint;
use std::collections::BTreeMap;
use std::sync::Arc;

/// Explains the mismatches of a trace, one entry a point (over all blocks and steps).
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
    let judge = |words: &str,
                 touches: &[TracePoint],
                 groups: &mut BTreeMap<TracePoint, Findings>,
                 model: &Model,
                 profile: &Profile|
     -> Result<()> {
        if local && !groups.keys().any(|p| touches.contains(p)) {
            return Ok(());
        }
        let path = Datapath::new(model, mode, profile)?;
        let after = by_point(&check(&path, trace, &again)?.summary);
        for (point, findings) in groups {
            if !local || touches.contains(point) {
                let remaining = after.get(point).copied().unwrap_or(0);
                findings.add(words.to_owned(), remaining);
            }
        }
        Ok(())
    };
    for change in Change::all() {
        for (words, changed) in profiles(change, profile) {
            judge(&words, touched(change), &mut groups, model, &changed)?;
        }
    }
    for key in ScaleKey::ALL {
        for factor in scales::FACTORS {
            let touches = scale_touches(key);
            if let Some(changed) = with_scale(model, key, factor) {
                let words = format!("scale: {} times {factor}", key.name());
                judge(&words, touches, &mut groups, &changed, profile)?;
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

/// The profiles that a change leads to: in the arithmetic of `cuda` steps, and of `torch` steps.
fn profiles(change: Change, profile: &Profile) -> Vec<(String, Profile)> {
    let mut found: Vec<(String, Profile)> = Vec::new();
    for (name, torch) in [("cuda", false), ("torch", true)] {
        let mut changed = profile.clone();
        let arithmetic = match torch {
            true => &mut changed.torch,
            false => &mut changed.cuda,
        };
        let words = change
            .describe(arithmetic, false)
            .or_else(|| change.describe(arithmetic, true));
        change.apply(arithmetic);
        if let (Some(words), true) = (words, changed != *profile) {
            found.push((format!("{} ({name}): {words}", change.step()), changed));
        }
    }
    found
}

/// Points that a change can alter when every step has the file's inputs.
fn touched(change: Change) -> &'static [TracePoint] {
    use TracePoint as P;
    match change.step() {
        "conv" => &[P::ConvOut, P::ConvOutF32],
        "state" => &[P::SsmState, P::SsmStateOut],
        "scan" => &[P::SsmY, P::SsmState, P::SsmStateOut],
        "Hadamard" => &[P::HadOut],
        "requantization" => &[P::XProjIn, P::SsmU],
        "linear" => &[
            P::InProjOut,
            P::InProjX,
            P::InProjZ,
            P::XProjOut,
            P::DtProjOut,
            P::OutProjOut,
        ],
        _ => &[P::NormOut],
    }
}

/// Points that a scale can alter when every step has the file's inputs.
fn scale_touches(key: ScaleKey) -> &'static [TracePoint] {
    use TracePoint as P;
    match key {
        ScaleKey::InProjInput => &[P::NormOut, P::InProjOut, P::InProjX, P::InProjZ],
        ScaleKey::InProjOutput => &[P::InProjOut, P::ConvOut, P::ConvOutF32, P::SsmY],
        ScaleKey::XProjInput => &[P::ConvOut, P::XProjIn, P::XProjOut, P::SsmU, P::SsmY],
        ScaleKey::XProjInputMax => &[P::SsmU],
        ScaleKey::XProjOutput => &[P::XProjOut, P::DtProjOut, P::SsmY],
        ScaleKey::DtProjOutput => &[P::DtProjOut, P::SsmY],
        ScaleKey::SsmState => &[P::SsmState, P::SsmStateOut, P::SsmY],
        ScaleKey::OutProjInput => &[P::HadOut, P::OutProjOut],
    }
}

/// The model with one calibrated scale times a factor, in every block.
fn with_scale(model: &Model, key: ScaleKey, factor: f32) -> Option<Model> {
    let mut quantized = model.quantized.as_deref()?.clone();
    for layer in &mut quantized.layers {
        let scales = ActivationScales::from_fn(|other| {
            let scale = layer.scales.get(other);
            if other == key {
                scale.times(factor)
            } else {
                Ok(scale)
            }
        });
        layer.scales = scales.ok()?;
    }
    Some(Model {
        quantized: Some(Arc::new(quantized)),
        ..model.clone()
    })
}

/// Widths of the blocks of channels a point consists of.
fn blocks(config: &Config, point: TracePoint) -> Vec<usize> {
    let (e, n) = (config.d_inner, config.d_state);
    match point {
        TracePoint::InProjOut => vec![e, e],
        TracePoint::XProjOut => vec![config.dt_rank, n, n],
        _ => Vec::new(),
    }
}
