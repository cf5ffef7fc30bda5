//! What is wrong with decode steps: they run as a check runs them, and the faults, rules and scales of a prefill
//! are tried on them, in the block that deviates first and in every one. Edits of formulas are not.

use super::candidate::{self, Candidate};
use super::findings::{claim, deviates, not_explained};
use super::locate::elements::{Compared, pattern_of, values};
use super::locate::replay::{Closeness, PointScore, between_values};
use super::search::{OTHERS, explains, factor, simplest_first};
use crate::check::{CheckOptions, CheckReport, check};
use crate::compare::PointResult;
use crate::diagnosis::finding::{Explained, Finding, Severity};
use crate::trace_file::{Points, TraceFile};
use crate::value::Value;
use rayon::prelude::*;
use scalescope_sim::dataflow::{Block, Phase, Step};
use scalescope_sim::datapath::Datapath;
use scalescope_sim::error::Result;
use scalescope_sim::mode::ModeSpec;
use scalescope_sim::model::Model;
use scalescope_sim::profile::Profile;
use scalescope_sim::trace::{Place, TracePoint};

/// Stale scales whose factor is fitted finely.
const FINE: usize = 4;

/// What a candidate leaves.
#[derive(Clone, Copy)]
struct Left {
    /// Mismatches of the first tensor that deviates.
    first: usize,
    /// Of all steps.
    all: usize,
    /// How far all tensors of steps are off.
    distance: f64,
}

/// Where a result is: its decode step, its block (the last ones have none), its point.
fn at(result: &PointResult) -> Option<(Option<usize>, usize, TracePoint)> {
    let point = TracePoint::from_name(&result.point)?;
    Some((result.step, result.layer.unwrap_or(usize::MAX), point))
}

/// What was compared of decode steps: a prefill has kernels of its own.
fn steps(report: &CheckReport) -> impl Iterator<Item = &PointResult> {
    let points = report.summary.points.iter();
    points.filter(|r| r.step.is_some())
}

/// Says what is wrong with the decode steps of a trace; `report` is that of a check with `options` and with
/// tensors kept.
///
/// # Errors
///
/// What a check of the trace refuses.
pub fn diagnose_steps(
    (model, mode, profile): (&Model, &ModeSpec, &Profile),
    trace: &TraceFile,
    options: &CheckOptions,
    report: &CheckReport,
) -> Result<Vec<Finding>> {
    let bad = steps(report).filter(|r| r.mismatched > 0);
    let bad = bad.filter_map(|r| Some((at(r)?, r)));
    let Some(((step, layer, point), first)) = bad.min_by_key(|(at, _)| *at) else {
        return Ok(Vec::new());
    };
    let clean = Datapath::new(model, mode, profile)?;
    // The step alone, where the file has the states that it begins with.
    let mut alone = trace.clone();
    alone.sequences.iter_mut().for_each(Points::clear);
    alone.steps.retain(|s| Some(s.index) == step);
    let is_first = |r: &&PointResult| at(r) == Some((step, layer, point));
    let same = |report: &CheckReport| steps(report).find(is_first) == Some(first);
    let of_alone = check(&clean, &alone, options).ok().filter(same);
    let (trace, base) = match of_alone {
        Some(base) => (&alone, base),
        None => (trace, check(&clean, trace, options)?),
    };
    let run = |candidate: &Candidate| -> Result<Option<Left>> {
        let mut path = clean.clone();
        match candidate {
            Candidate::Faults(faults) => {
                // Some factors take a scale out of its range.
                if faults.iter().any(|fault| path.inject(fault).is_err()) {
                    return Ok(None);
                }
            }
            Candidate::Rule(rule) => rule.put_into(&mut path),
            Candidate::Misread(_) | Candidate::Edit(_) => return Ok(None),
        }
        let report = check(&path, trace, options)?;
        let here = steps(&report).filter(|r| at(r) == Some((step, layer, point)));
        let kept = report.kept.iter().filter(|((step, _), _)| step.is_some());
        let pairs = kept.flat_map(|(_, pairs)| pairs);
        let distance = |(a, b, _): &(Value, Value, _)| {
            let score = between_values(a, b, Closeness::Bits);
            score.distance / score.compared.max(1) as f64
        };
        Ok(Some(Left {
            first: here.map(|r| r.mismatched).sum(),
            all: steps(&report).map(|r| r.mismatched).sum(),
            distance: pairs.map(distance).sum(),
        }))
    };
    let total: usize = steps(&base).map(|r| r.mismatched).sum();
    let of = first.mismatched;
    let elsewhere = |r: &PointResult| r.layer != first.layer && r.point == first.point;
    let several = steps(report).any(|r| elsewhere(r) && r.mismatched > 0);
    let block = Block::of(mode, profile, Phase::Decode);
    let place = Place {
        layer: first.layer,
        point,
    };
    let points = trace.steps.iter().filter(|s| Some(s.index) == step);
    let points: Vec<_> = points.flat_map(|s| &s.sequences).collect();
    let dumped = |place: Place| points.iter().any(|p| p.contains_key(&place));
    // The head has no candidates of its own.
    let layers: Vec<usize> = first.layer.into_iter().collect();
    let mut told: Vec<(Candidate, Left)> = Vec::new();
    for layer in layers {
        let fits = |c: &Candidate| c.fits(&block, place, &dumped);
        let registers = Step::SUMS
            .into_iter()
            .flat_map(|site| candidate::registers(layer, site));
        let discrete = candidate::discrete(layer).into_iter();
        let fixed: Vec<Candidate> = discrete
            .chain(candidate::rules(layer, &block))
            .chain(registers)
            .filter(fits)
            .collect();
        let both = |c: Candidate| {
            let all = c.in_every_block().filter(|_| several);
            [all, Some(c)].into_iter().flatten()
        };
        let fixed: Vec<Candidate> = fixed.into_iter().flat_map(both).collect();
        let judged: Vec<Option<(Candidate, Left)>> = fixed
            .into_par_iter()
            .map(|c| Ok(run(&c)?.map(|left| (c, left))))
            .collect::<Result<_>>()?;
        told.extend(judged.into_iter().flatten());
        let far = |c: &Candidate, factor: f32| -> Result<f64> {
            let left = run(&c.with_factor(factor))?;
            Ok(left.map_or(f64::INFINITY, |l| l.distance))
        };
        let scales = candidate::scales(layer)
            .into_iter()
            .filter(fits)
            .flat_map(both);
        let mut rough: Vec<(Candidate, factor::Bracket)> = scales
            .collect::<Vec<_>>()
            .into_par_iter()
            .map(|c| {
                let bracket = factor::coarse(&mut |factor| far(&c, factor))?;
                Ok((c, bracket))
            })
            .collect::<Result<_>>()?;
        rough.retain(|(_, bracket)| bracket.value.is_finite());
        rough.sort_by(|a, b| a.1.value.total_cmp(&b.1.value));
        rough.truncate(FINE);
        for (c, bracket) in rough {
            let (factor, _) = factor::refine(bracket.factor, bracket.width, 12, |f| far(&c, f))?;
            // The codes of one token are stairs: what lies beside may leave less. Of equally good ones the
            // number of the fewest digits.
            let beside = (-20..=20).map(|i| factor * (1.0 + 5e-4 * i as f32));
            let mut best: Option<(Candidate, Left)> = None;
            let numbers = beside.flat_map(factor::round_numbers);
            for number in factor::round_numbers(factor).into_iter().chain(numbers) {
                let c = c.with_factor(number);
                let fewest = best.as_ref().map_or(usize::MAX, |(_, b)| b.all);
                if fewest > 0
                    && let Some(left) = run(&c)?
                    && left.all < fewest
                {
                    best = Some((c, left));
                }
            }
            told.extend(best);
        }
    }
    told.retain(|(_, left)| left.first < of && left.all < total);
    simplest_first(&mut told, total, |(c, left)| (left.all, c.rank()));
    let number = step.unwrap_or(0);
    let place_of = |layer: Option<usize>, of: &str| match layer {
        Some(layer) => format!("decode step {number}, block {layer}, {of}"),
        None => format!("decode step {number}, every block, {of}"),
    };
    let finding = |(c, left): &(Candidate, Left), severity, sort: &str| {
        let gone = Explained {
            explained: of - left.first,
            deviating: of,
        };
        let name = c.step(&block).name();
        // In every block it is how a device is.
        let device = c.layer().is_none() && c.is_arithmetic();
        let severity = match (severity, device) {
            (Severity::Error, true) => Severity::Warning,
            _ => severity,
        };
        Finding {
            kind: c.kind(),
            layer: c.layer(),
            site: c.site().to_owned(),
            severity,
            share: (total - left.all) as f64 / total as f64,
            evidence: format!(
                "{sort}{}",
                claim(&place_of(c.layer(), name), &c.words(), gone, place, None)
            ),
            fault: c.fault().map(ToString::to_string),
            step: Some(name),
            edit: Some(c.words()),
            explained: Some(gone),
            device,
            ..Finding::default()
        }
    };
    let pairs = report.kept.get(&(step, place)).into_iter().flatten();
    let compared: Vec<Compared> = pairs
        .map(|(expected, found, _)| Compared::of(found.dtype(), values(found), values(expected)))
        .collect();
    let pattern = (!compared.is_empty()).then(|| pattern_of(&compared, point.is_state()));
    let is_cause = |(_, left): &&(Candidate, Left)| explains(of - left.first, of);
    let mut findings = Vec::new();
    match told.iter().find(is_cause) {
        Some(best) => {
            let whole = best.1.first == 0;
            let severity = if whole {
                Severity::Error
            } else {
                Severity::Warning
            };
            let mut found = finding(best, severity, "");
            found.pattern = pattern;
            findings.push(found);
        }
        None => {
            let score = PointScore {
                compared: first.compared,
                mismatched: of,
                ..PointScore::default()
            };
            let what = format!("decode step {number}: {place} is the first tensor that deviates,");
            findings.push(Finding {
                kind: "none",
                layer: first.layer,
                site: point.name().to_owned(),
                severity: Severity::Error,
                share: of as f64 / total as f64,
                evidence: format!(
                    "{}; {}",
                    deviates(&what, &score, pattern.as_ref()),
                    not_explained()
                ),
                step: block.row(point).map(|row| row.step.name()),
                pattern,
                ..Finding::default()
            });
            let leads = told.iter().take(OTHERS);
            findings.extend(leads.map(|t| finding(t, Severity::Info, "a lead: ")));
        }
    }
    Ok(findings)
}
