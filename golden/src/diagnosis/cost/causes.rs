//! Probable causes of what a mode costs, in words: how each scale meets its data.

use super::loss::Text;
use super::sites::{Costs, SiteCost};
use crate::diagnosis::finding::{Finding, Severity};
use crate::diagnosis::fit::{Fit, percent};
use crate::diagnosis::lineage::{Disagreement, disagreements};
use scalescope_sim::arith::saturate::Status;
use scalescope_sim::dataflow::{Block, Phase, Step};
use scalescope_sim::datapath::{Datapath, LogitRows};
use scalescope_sim::error::Result;
use scalescope_sim::trace::{Place, Recorder, Selection, TracePoint};
use std::collections::BTreeMap;

/// Sites that are spoken of.
const SITES: usize = 8;

/// Speaks of scales that are read otherwise than written, of the costliest sites, and of scales that do not fit
/// what comes. A cost that is not beyond its own error is no finding.
pub fn find(
    path: &Datapath,
    reference: &Datapath,
    text: &Text,
    costs: &Costs,
) -> Result<Vec<Finding>> {
    let (own, clean) = (counts(path, text)?, absmax(reference, text)?);
    let mut findings = stale(path, costs);
    findings.extend(applied_twice(path, costs, &own, &clean));
    let costly = costs.sites.iter().filter(|site| site.cost_kl.stands_out());
    for (i, site) in costly.enumerate() {
        let place = point(path, site).map(|point| (site.layer, point));
        let status = place.and_then(|place| own.get(&place)).map(|(s, _)| s);
        let fit = status.zip(site.scale);
        let fit = fit.map(|(status, key)| Fit::of(key, status, text.tokens()));
        if i < SITES
            || fit
                .as_ref()
                .is_some_and(|fit| fit.severity > Severity::Info)
        {
            findings.push(finding(site, status, fit));
        }
    }
    findings.sort_by_key(|finding| std::cmp::Reverse(finding.severity));
    Ok(findings)
}

/// Scales that are not those the codes were written with.
fn stale(path: &Datapath, costs: &Costs) -> Vec<Finding> {
    let finding = |d: &Disagreement| {
        let here = |s: &&SiteCost| (s.layer, point(path, s)) == (d.layer, Some(d.point));
        let share = costs.sites.iter().find(here).map_or(0.0, |s| s.share);
        Finding {
            kind: "stale-scale",
            layer: Some(d.layer),
            site: d.written.key().name().to_owned(),
            severity: Severity::Error,
            share: share.clamp(0.0, 1.0),
            evidence: format!(
                "{} reads with a scale {:.4} times the one that {} writes with",
                d.read.name(),
                d.factor,
                d.written.name()
            ),
            ..Finding::default()
        }
    };
    disagreements(path).iter().map(finding).collect()
}

/// Blocks whose conv output is smaller than the float model's by about the conv's input scale; its
/// bias, which is not scaled, keeps some of it.
fn applied_twice(
    path: &Datapath,
    costs: &Costs,
    own: &BTreeMap<At, (Status, f64)>,
    clean: &BTreeMap<At, f64>,
) -> Vec<Finding> {
    let block = Block::of(path.mode(), path.profile(), Phase::Prefill);
    // The convolution's output, and the calibrated scale of its codes' input, which a dynamic one stands in for.
    let mut rows = block
        .of_step(Step::Conv)
        .filter(|row| !row.weights.is_empty());
    let conv = rows.next().and_then(|row| {
        let read = row.reads.first()?;
        let made = || block.row(read.point()?)?.quantizer;
        let input = read.scale.or_else(|| Some(made()?.scale_use()))?;
        Some((row.point, input))
    });
    let in_block = |layer: usize| {
        let (out, input) = conv?;
        let input = f64::from(path.scales(layer)?.get(input).get());
        // Its own codes, or those that are made of it.
        let readers = block.readers(out).map(|(row, _)| row);
        let readers = readers.filter(|row| row.is_between_steps());
        let readers = readers.map(|row| row.point);
        let mut points = [out].into_iter().chain(readers);
        let point = points.find(|p| own.contains_key(&(layer, *p)))?;
        let (status, scale) = own[&(layer, point)];
        let mut names = [point]
            .into_iter()
            .chain(point.stand_ins().iter().map(|(p, _)| *p));
        let clean = names.find_map(|name| clean.get(&(layer, name)))?;
        let shrunk = f64::from(status.peak) * scale / clean;
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

fn finding(site: &SiteCost, status: Option<&Status>, fit: Option<Fit>) -> Finding {
    let mut evidence = format!(
        "{} costs {:.1} % of the KL (± {:.1} %; off {:.5}, on {:.5})",
        site.site,
        100.0 * site.share,
        100.0 * site.share * site.cost_kl.se / site.cost_kl.mean,
        site.one_off_kl,
        site.one_on_kl
    );
    let (mut kind, mut severity) = ("none", Severity::Info);
    if let (Some(status), Some(fit)) = (status, fit) {
        severity = fit.severity;
        if severity > Severity::Info {
            kind = "scale-misfit";
        }
        evidence += "; ";
        evidence += &match fit.words.is_empty() {
            false => fit.words,
            true => format!(
                "clips {} of its values, calibrated to clip {}",
                percent(status.overflow_rate()),
                percent(fit.promised)
            ),
        };
    }
    Finding {
        kind,
        layer: Some(site.layer),
        site: site
            .scale
            .map_or(site.site, |scale| scale.name())
            .to_owned(),
        severity,
        share: site.share.clamp(0.0, 1.0),
        evidence,
        ..Finding::default()
    }
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
            let entry = all.entry((*layer, *point)).or_default();
            *entry = entry.max(f64::from(top));
        }
    }
    Ok(all)
}
