//! Probable causes of what a mode costs, in words: how each scale meets its data.

use super::loss::Text;
use super::sites::{Costs, SiteCost};
use super::{Finding, Severity};
use scalescope_sim::arith::saturate::Status;
use scalescope_sim::dataflow::{Block, Phase, Step};
use scalescope_sim::datapath::{Datapath, LogitRows};
use scalescope_sim::error::Result;
use scalescope_sim::plan::ScaleUse;
use scalescope_sim::trace::{Place, Recorder, Selection, TracePoint};
use std::collections::BTreeMap;

/// Sites that are spoken of.
const SITES: usize = 8;
/// Outside of this a scale fits its data badly.
const WARNING: [f64; 2] = [0.67, 1.5];
/// Outside of this no calibration made it.
const ERROR: [f64; 2] = [0.2, 5.0];

/// Speaks of the costliest sites, and of every quantizer whose scale does not fit its data.
pub fn find(
    path: &Datapath,
    reference: &Datapath,
    text: &Text,
    costs: &Costs,
) -> Result<Vec<Finding>> {
    let (own, clean) = (counts(path, text)?, absmax(reference, text)?);
    let mut findings = applied_twice(path, costs, &own, &clean);
    for (i, site) in costs.sites.iter().enumerate() {
        let place = point(path, site).map(|point| (site.layer, point));
        let counted = place.and_then(|place| own.get(&place));
        let needed = counted
            .and(place)
            .and_then(|place| clean.get(&place))
            .copied();
        let ratio = counted.map(|(status, _)| status.scale_ratio());
        let odd = ratio.is_some_and(|r| !(WARNING[0]..=WARNING[1]).contains(&r));
        if i < SITES || odd && site.share > 0.01 {
            findings.push(finding(site, counted, needed));
        }
    }
    Ok(findings)
}

/// Blocks whose conv output is smaller than the float model's by about the conv's input scale; its
/// bias, which is not scaled, keeps some of it.
fn applied_twice(
    path: &Datapath,
    costs: &Costs,
    own: &BTreeMap<At, (Status, f64)>,
    clean: &BTreeMap<At, f64>,
) -> Vec<Finding> {
    let in_block = |layer: usize| {
        let input = f64::from(path.scales(layer)?.get(ScaleUse::ConvIn).get());
        let points = [TracePoint::ConvOut, TracePoint::XProjIn];
        let point = points
            .into_iter()
            .find(|p| own.contains_key(&(layer, *p)))?;
        let (status, scale) = own[&(layer, point)];
        let shrunk = f64::from(status.peak) * scale / clean.get(&(layer, point))?;
        let twice = shrunk < 0.5 && (0.5..=4.0).contains(&(shrunk / input));
        let near =
            |s: &&SiteCost| s.layer == layer && (s.site == "x" || s.step == Step::Conv.name());
        let share = costs.sites.iter().find(near).map_or(0.0, |s| s.share);
        twice.then(|| Finding {
            kind: "conv-double-input-scale",
            layer: Some(layer),
            site: "conv".to_owned(),
            severity: Severity::Error,
            share: share.clamp(0.0, 1.0),
            evidence: format!(
                "conv output: absmax/(127·scale) = {:.2}; it reaches {shrunk:.3} times as far as the float model's, \
                 the conv's input scale is {input:.3}: consistent with the input scale applied twice",
                status.scale_ratio()
            ),
            ..Finding::default()
        })
    };
    (0..path.config().n_layers).filter_map(in_block).collect()
}

fn finding(site: &SiteCost, counted: Option<&(Status, f64)>, clean: Option<f64>) -> Finding {
    let cost = format!(
        "costs {:.1} % of the KL (off {:.5}, on {:.5})",
        100.0 * site.share,
        site.one_off_kl,
        site.one_on_kl
    );
    let mut finding = Finding {
        kind: "none",
        layer: Some(site.layer),
        site: site
            .scale
            .map_or(site.site, |scale| scale.name())
            .to_owned(),
        severity: Severity::Info,
        share: site.share.clamp(0.0, 1.0),
        evidence: format!("{} {cost}", site.site),
        ..Finding::default()
    };
    let Some((status, scale)) = counted else {
        return finding;
    };
    let ratio = status.scale_ratio();
    finding.evidence += &format!(
        "; absmax/(127·scale) = {ratio:.2}, {:.3} % do not fit",
        100.0 * status.overflow_rate()
    );
    // What the float model would need of this scale.
    let wanted = clean.map(|absmax| absmax / 127.0 / scale);
    let outside = |range: [f64; 2], r: f64| !(range[0]..=range[1]).contains(&r);
    if outside(WARNING, ratio) {
        finding.kind = "stale-scale";
        finding.severity = Severity::Warning;
        if let Some(wanted) = wanted {
            finding.evidence +=
                &format!("; the float model's values ask for a scale {wanted:.2} times as large");
            if outside(ERROR, wanted) {
                finding.severity = Severity::Error;
            }
        }
    }
    finding
}

/// The point whose quantizer makes a site, as the mode names it; weights and f16 tensors have none.
fn point(path: &Datapath, site: &SiteCost) -> Option<TracePoint> {
    let block = Block::of(path.mode(), path.profile(), Phase::Prefill);
    Some(block.site(site.part.point()?)?.point)
}

type At = (usize, TracePoint);

/// Counters of every quantizer of a run, and its scale.
fn counts(path: &Datapath, text: &Text) -> Result<BTreeMap<At, (Status, f64)>> {
    let mut all = BTreeMap::new();
    for tokens in &text.sequences {
        let mut recorder = Recorder::new(Selection::default());
        path.prefill(tokens, LogitRows::None, &mut recorder)?;
        for (place, status) in &recorder.counts {
            let scale = recorder.tensors.get(place).and_then(|t| t.scale());
            if let (Some(layer), Some(scale)) = (place.layer, scale) {
                let entry = all
                    .entry((layer, place.point))
                    .or_insert((Status::default(), f64::from(scale.get())));
                entry.0 += *status;
            }
        }
    }
    Ok(all)
}

/// The largest magnitude of each tensor of the reference.
fn absmax(reference: &Datapath, text: &Text) -> Result<BTreeMap<At, f64>> {
    let mut all: BTreeMap<At, f64> = BTreeMap::new();
    for tokens in &text.sequences {
        let mut recorder = Recorder::new(Selection::default());
        reference.prefill(tokens, LogitRows::None, &mut recorder)?;
        for (Place { layer, point }, tensor) in &recorder.tensors {
            let Some(layer) = layer else { continue };
            let top = tensor.to_real().iter().fold(0.0f32, |m, v| m.max(v.abs()));
            // One tensor under several names.
            let names: &[TracePoint] = match point {
                TracePoint::ConvOutF32 => {
                    &[TracePoint::ConvOut, TracePoint::XProjIn, TracePoint::SsmU]
                }
                _ => std::slice::from_ref(point),
            };
            for name in names {
                let entry = all.entry((*layer, *name)).or_default();
                *entry = entry.max(f64::from(top));
            }
        }
    }
    Ok(all)
}
