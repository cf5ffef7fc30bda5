//! What a search found, in words.

use super::candidate::{Candidate, LINEARS, QUANTIZERS};
use super::kind::Kind;
use super::locate::Scene;
use super::locate::replay::{PointScore, Score};
use super::pattern::{How, Pattern};
use super::search::{EXPLAINS, OTHERS, ScoredCandidate};
use crate::diagnosis::finding::{Explained, Finding, Severity};
use crate::trace_file::Points;
use scalescope_sim::dataflow::Block;
use scalescope_sim::fault::Fault;
use scalescope_sim::mode::ModeSpec;
use scalescope_sim::trace::Place;
use std::collections::BTreeSet;

fn percent(share: f64) -> String {
    format!("{:.1} %", 100.0 * share)
}

/// 42,276.
fn thousands(n: usize) -> String {
    let digits = n.to_string();
    let mut out = String::new();
    for (i, digit) in digits.chars().enumerate() {
        if i > 0 && (digits.len() - i).is_multiple_of(3) {
            out.push(',');
        }
        out.push(digit);
    }
    out
}

fn where_words(layer: Option<usize>, step: &str) -> String {
    match layer {
        Some(layer) => format!("block {layer}, {step}"),
        None => format!("after the last block, {step}"),
    }
}

fn deviation(scene: &Scene) -> String {
    let what = format!("{} is the first tensor that deviates,", scene.first);
    deviates(&what, &scene.at_first, scene.pattern.as_ref())
}

/// What deviates, in how many elements, and how.
pub(super) fn deviates(what: &str, s: &PointScore, pattern: Option<&Pattern>) -> String {
    let pattern = pattern.map_or(String::new(), |pattern| format!(": {pattern}"));
    format!(
        "{what} in {} of {} elements ({}){pattern}",
        thousands(s.mismatched),
        thousands(s.compared),
        percent(s.mismatched as f64 / s.compared as f64)
    )
}

/// What a step does otherwise, and how much of a tensor that explains.
pub(super) fn claim(
    place: &str,
    words: &str,
    gone: Explained,
    tensor: impl std::fmt::Display,
    pattern: Option<&Pattern>,
) -> String {
    let pattern = pattern.map_or(String::new(), |pattern| format!(" ({pattern})"));
    format!(
        "{place}: {words}; explains {} of {} elements of {tensor} that deviate{pattern}",
        thousands(gone.explained),
        thousands(gone.deviating),
    )
}

/// What else explains as much.
pub(super) fn alike_words(alike: &[String]) -> String {
    match alike.is_empty() {
        true => String::new(),
        false => format!("; these data do not tell it from: {}", alike.join("; ")),
    }
}

pub(super) fn not_explained() -> String {
    format!("no single known edit explains {} of it", percent(EXPLAINS))
}

fn explained(judged: &ScoredCandidate, scene: &Scene) -> Explained {
    let (explained, deviating) = judged.explained(scene);
    Explained {
        explained,
        deviating,
    }
}

pub(super) fn cause(
    best: &ScoredCandidate,
    others: &[&ScoredCandidate],
    scene: &Scene,
    block: &Block,
    share: f64,
) -> Finding {
    let c = &best.candidate;
    let step = c.step(block).name();
    let alike: Vec<String> = others
        .iter()
        .filter(|j| j.is_as_good_as(best, scene))
        .filter(|j| best.candidate.is_restricted() || !j.candidate.is_restricted())
        .map(|j| j.candidate.words())
        .filter(|words| *words != c.words())
        .collect::<BTreeSet<_>>()
        .into_iter()
        .take(OTHERS)
        .collect();
    let mut evidence = claim(
        &where_words(c.layer(), step),
        &c.words(),
        explained(best, scene),
        scene.first,
        scene.pattern.as_ref(),
    );
    if best.left > 0 {
        evidence += &format!(
            "; {} mismatches up to the next tensor handed on are left, where {} were",
            thousands(best.left),
            thousands(scene.base)
        );
    }
    evidence += &alike_words(&alike);
    Finding {
        kind: c.kind(),
        layer: c.layer(),
        site: c.site().to_owned(),
        severity: Severity::Error,
        share,
        evidence,
        fault: c.fault().map(ToString::to_string),
        step: Some(step),
        pattern: scene.pattern.clone(),
        edit: Some(c.words()),
        explained: Some(explained(best, scene)),
        device: c.is_arithmetic(),
        alike,
    }
}

/// Whether another candidate explains as much as the best and is as simple, but is another mistake, or one of another
/// step.
pub(super) fn rivals(
    best: &ScoredCandidate,
    other: &ScoredCandidate,
    scene: &Scene,
    block: &Block,
) -> bool {
    let (a, b) = (&best.candidate, &other.candidate);
    let as_much = other.left <= best.left + best.left / 50;
    if !as_much
        || !other.is_as_good_as(best, scene)
        || b.is_restricted() && !a.is_restricted()
        || b.is_alone() && !a.is_alone()
    {
        return false;
    }
    // The same by another name: a fault model and the edit that does the same.
    let mistake = |c: &Candidate| match c.kind() {
        "conv-history-loss" => "history",
        "hadamard-wrap" => "overflow",
        "conv-double-input-scale" => "twice",
        "missing-scale" => "left-out",
        kind => kind,
    };
    let elsewhere = (a.layer(), a.step(block)) != (b.layer(), b.step(block));
    let simple = b.rank() <= SIMPLE && a.rank() <= SIMPLE;
    let other_sort = mistake(a) != mistake(b) && a.site() != b.site() && simple;
    let other_place = elsewhere && a.site() != b.site() && b.rank() <= a.rank() + SIMPLE;
    other_place || other_sort
}

/// The rank of what needs no number to be found.
const SIMPLE: usize = 3;

/// What else two rivals say.
pub(super) fn rival_words(
    best: &ScoredCandidate,
    other: &ScoredCandidate,
    block: &Block,
) -> String {
    let of = |j: &ScoredCandidate| {
        let c = &j.candidate;
        let place = where_words(c.layer(), c.step(block).name());
        format!("{place}: {}", c.words())
    };
    format!(
        "more than one edit explains it, and these data do not tell which: {}; or {}",
        of(best),
        of(other)
    )
}

/// What a cause leaves that nothing explains, if it leaves any.
pub(super) fn unexplained_words(best: &ScoredCandidate, scene: &Scene) -> Option<String> {
    let left = best.unexplained(scene);
    let elements = if left == 1 { "element" } else { "elements" };
    let words = best.candidate.words();
    (left > 0).then(|| {
        format!(
            "{} {elements} deviate also with the edit that explains most ({words})",
            thousands(left)
        )
    })
}

/// Whether a step before may as well be the one: the edit does to a whole tensor what that step could do to its own,
/// and nothing that goes into this one is in the dump.
pub(super) fn is_unplaced(best: &ScoredCandidate, block: &Block, score: &Score) -> bool {
    let Candidate::Edit(edit) = &best.candidate else {
        return false;
    };
    let whole = ["input", "inputs", "output", "tokens"].contains(&edit.site.as_str());
    let passes = match edit.kind {
        Kind::Sign | Kind::Factor | Kind::Shifted | Kind::Constant => true,
        Kind::Neighbour | Kind::Order | Kind::LeftOut => whole,
        _ => false,
    };
    let Some(row) = block.row(edit.point) else {
        return false;
    };
    let mut reads = row.reads.iter().filter_map(|read| read.point());
    passes && !reads.any(|point| score.contains_key(&Place::layer(edit.layer, point)))
}

/// A deviation whose edit or place these data do not tell, and why.
pub(super) fn undecided_by(scene: &Scene, block: &Block, total: usize, why: &str) -> Finding {
    Finding {
        kind: "none",
        layer: scene.first.layer,
        site: scene.first.point.name().to_owned(),
        severity: Severity::Error,
        share: scene.at_first.mismatched as f64 / total as f64,
        evidence: format!("{}; {why}", deviation(scene)),
        step: block.row(scene.first.point).map(|row| row.step.name()),
        pattern: scene.pattern.clone(),
        ..Finding::default()
    }
}

/// Other explanations of the same deviation, each kind and site once.
pub(super) fn alternatives(
    judged: &[&ScoredCandidate],
    best: Option<&ScoredCandidate>,
    scene: &Scene,
    block: &Block,
    share: impl Fn(usize) -> f64,
) -> Vec<Finding> {
    let name = |j: &ScoredCandidate| {
        let c = &j.candidate;
        (c.kind(), c.layer(), c.site().to_owned())
    };
    let mut seen: Vec<_> = best.map(name).into_iter().collect();
    // One rule at a step and the same at more steps, which explains no more, are one lead.
    let wide = |c: &Candidate| [LINEARS, QUANTIZERS].contains(&c.site());
    let mut rules: Vec<&ScoredCandidate> = best.into_iter().collect();
    let mut found = Vec::new();
    for j in judged {
        // The same at fewer or more steps than the cause leaves more of what follows.
        let part = best.is_some_and(|b| name(b).0 == name(j).0 && j.left > b.left);
        if found.len() == OTHERS || part || seen.contains(&name(j)) {
            continue;
        }
        let c = &j.candidate;
        let again = |other: &&ScoredCandidate| {
            let what = |j: &ScoredCandidate| (j.candidate.kind(), j.left, j.first.mismatched);
            what(other) == what(j) && (wide(c) || wide(&other.candidate))
        };
        if rules.iter().any(again) {
            continue;
        }
        rules.push(j);
        seen.push(name(j));
        let sort = match j.is_cause(scene) {
            true => "another explanation",
            false => "a lead",
        };
        let gone = explained(j, scene);
        found.push(Finding {
            kind: c.kind(),
            layer: c.layer(),
            site: c.site().to_owned(),
            severity: Severity::Info,
            share: share(j.left),
            evidence: format!(
                "{sort}: {}",
                claim(
                    &where_words(c.layer(), c.step(block).name()),
                    &c.words(),
                    gone,
                    scene.first,
                    None
                )
            ),
            fault: c.fault().map(ToString::to_string),
            step: Some(c.step(block).name()),
            edit: Some(c.words()),
            explained: Some(gone),
            ..Finding::default()
        });
    }
    found
}

/// A deviation that no edit explains.
pub(super) fn no_cause(
    scene: &Scene,
    block: &Block,
    total: usize,
    sequences: &[Points],
) -> Finding {
    let s = &scene.at_first;
    let rare = s.mismatched as f64 <= 1e-3 * s.compared as f64;
    let small = s.largest <= 1.0;
    let pattern = scene.pattern.as_ref();
    let part = pattern.is_some_and(|p| p.is_part() && p.accident < -6.0);
    let step = block.row(scene.first.point).map(|row| row.step.name());
    let not_finite = pattern.is_some_and(|p| p.how == How::NotFinite);
    let evidence = match (not_finite, first_not_finite(scene.first, sequences)) {
        (true, Some(words)) => format!("{words}; {}", deviation(scene)),
        _ => format!("{}; {}", deviation(scene), not_explained()),
    };
    Finding {
        kind: if not_finite { "not-finite" } else { "none" },
        layer: scene.first.layer,
        site: scene.first.point.name().to_owned(),
        severity: match rare && small && !part && !not_finite {
            true => Severity::Warning,
            false => Severity::Error,
        },
        share: s.mismatched as f64 / total as f64,
        evidence,
        step,
        pattern: scene.pattern.clone(),
        ..Finding::default()
    }
}

/// Where a tensor has its first NaN or infinity.
fn first_not_finite(place: Place, sequences: &[Points]) -> Option<String> {
    for (sequence, points) in sequences.iter().enumerate() {
        let Some(value) = points.get(&place) else {
            continue;
        };
        let elements = value.elements();
        let columns = value.dim().1.max(1);
        let found = (0..elements.len()).find(|i| !elements.get(*i).is_finite());
        if let Some(i) = found {
            let (row, column) = match place.point.is_state() {
                true => ("channel", "state"),
                false => ("token", "channel"),
            };
            return Some(format!(
                "{place} has {} where the model's own value is finite, first at sequence {sequence}, {row} {}, {column} {}",
                elements.get(i),
                i / columns,
                i % columns
            ));
        }
    }
    None
}

/// Tensors whose deviations are no larger than those of another device's floats.
pub(super) fn noise(noisy: &[(Place, usize, Option<Pattern>)], total: usize) -> Option<Finding> {
    let (first, _, pattern) = noisy.first()?;
    let elements: usize = noisy.iter().map(|(_, n, _)| n).sum();
    Some(Finding {
        kind: "none",
        layer: first.layer,
        site: first.point.name().to_owned(),
        severity: Severity::Info,
        share: elements as f64 / total.max(1) as f64,
        evidence: format!(
            "{} elements of {} tensors ({first} first) differ no more than another device's floats would: an ulp in one float of fifty; a fault this small looks the same",
            thousands(elements),
            noisy.len(),
        ),
        pattern: pattern.clone(),
        ..Finding::default()
    })
}

/// Nothing deviates.
pub(super) fn in_order(score: &Score, profile: &str, mode: &ModeSpec) -> Finding {
    let compared: usize = score.values().map(|s| s.compared).sum();
    let bits: usize = score.values().map(|s| s.bits).sum();
    let equal = match bits {
        0 => "equal to the last bit".to_owned(),
        _ => format!("equal, {bits} floats of them within one ulp of binary16"),
    };
    Finding {
        kind: "none",
        layer: None,
        site: "all".to_owned(),
        severity: Severity::Info,
        share: 0.0,
        evidence: format!(
            "all {compared} elements of {} tensors are {equal}: mode {}, profile {profile}",
            score.len(),
            mode.name,
        ),
        ..Finding::default()
    }
}

/// One finding in place of the same one in every block, numbers included. A way to compute that all blocks
/// share is how somebody's device is, not a defect of one.
pub(super) fn in_every_block(causes: Vec<Finding>, score: &Score) -> Vec<Finding> {
    let blocks: BTreeSet<usize> = score.keys().filter_map(|place| place.layer).collect();
    let mut out: Vec<Finding> = Vec::new();
    for finding in &causes {
        let same = |f: &&Finding| {
            let what = |f: &Finding| (f.kind, f.site.clone(), f.edit.clone(), f.layer.is_none());
            what(f) == what(finding)
        };
        let all: Vec<&Finding> = causes.iter().filter(same).collect();
        let everywhere = blocks.len() > 2 && all.len() == blocks.len() && finding.kind != "none";
        if !everywhere {
            out.push(finding.clone());
        } else if all[0].layer == finding.layer {
            let share = all.iter().map(|f| f.share).sum::<f64>().min(1.0);
            out.push(everywhere_of(finding.clone(), all.len(), share));
        }
    }
    for finding in &mut out {
        // In one block it is no device's way.
        finding.device &= finding.layer.is_none();
    }
    out
}

/// A finding of one block that holds in every one.
pub(super) fn everywhere_of(finding: Finding, blocks: usize, share: f64) -> Finding {
    Finding {
        layer: None,
        severity: match finding.device {
            true => Severity::Warning,
            false => finding.severity,
        },
        share,
        evidence: format!(
            "in each of {blocks} blocks that deviate; {}",
            finding.evidence
        ),
        fault: everywhere_fault(&finding).map(|fault| fault.to_string()),
        ..finding
    }
}

/// One finding for a device that computes several steps in another way in every block; each step's is told after
/// it.
pub(super) fn device(findings: &mut Vec<Finding>) {
    let of = |f: &&mut Finding| f.device;
    let ways: Vec<String> = (findings.iter_mut().filter(of))
        .map(|f| {
            f.severity = Severity::Info;
            let step = f.step.unwrap_or_default();
            format!("{step}: {}", f.edit.clone().unwrap_or_default())
        })
        .collect();
    if ways.len() < 2 {
        for f in findings.iter_mut().filter(|f| f.device) {
            f.severity = Severity::Warning;
        }
        return;
    }
    let share = findings.iter().filter(|f| f.device).map(|f| f.share).sum();
    let first = findings.iter().position(|f| f.device).unwrap_or(0);
    let found = Finding {
        kind: "device",
        site: "all".to_owned(),
        severity: Severity::Warning,
        share: f64::min(share, 1.0),
        evidence: format!(
            "the device's arithmetic differs in every block, so no single block is at fault: {}",
            ways.join("; ")
        ),
        device: true,
        ..Finding::default()
    };
    findings.insert(first, found);
}

/// A finding's fault, put into every block.
fn everywhere_fault(finding: &Finding) -> Option<Fault> {
    let fault: Fault = finding.fault.as_deref()?.parse().ok()?;
    Some(Fault {
        layer: None,
        ..fault
    })
}
