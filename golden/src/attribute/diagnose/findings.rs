//! What a search found, in words.

use super::OTHERS;
use super::judge::Judged;
use super::search::Scene;
use crate::attribute::candidate::{Candidate, Lie, Misread, Reading};
use crate::attribute::replay::Score;
use crate::attribute::{Finding, Severity};
use scalescope_sim::fault::Fault;
use scalescope_sim::mode::ModeSpec;
use std::collections::BTreeSet;

fn percent(share: f64) -> String {
    format!("{:.1} %", 100.0 * share)
}

fn deviation(scene: &Scene, score: &Score) -> String {
    let s = &score[&scene.first];
    format!(
        "{} is the first tensor that deviates: {} of {} elements ({})",
        scene.first,
        s.mismatched,
        s.compared,
        percent(s.mismatched as f64 / s.compared as f64)
    )
}

pub(super) fn cause(best: &Judged, scene: &Scene, score: &Score, share: f64) -> Finding {
    let c = &best.candidate;
    let what = match c {
        Candidate::Faults(faults) => {
            let words: Vec<String> = faults.iter().map(ToString::to_string).collect();
            format!("with {}", words.join(" and "))
        }
        Candidate::Misread(m) => format!("with {} read {}", m.place, words(m)),
    };
    Finding {
        kind: c.kind(),
        layer: c.layer(),
        site: c.site().to_owned(),
        severity: Severity::Error,
        share,
        evidence: format!(
            "{}; {what} {} of {} mismatches up to the next tensor handed on are left",
            deviation(scene, score),
            best.left,
            scene.base,
        ),
        fault: c.fault().map(ToString::to_string),
    }
}

fn words(m: &Misread) -> String {
    let lie = match m.lie {
        Lie::ByColumns => "as if written column by column",
        Lie::FromColumns => "as if its rows were columns",
        Lie::Turned => "with its axes swapped",
        Lie::Swapped(..) => "with B and C swapped",
    };
    let who = match m.reading {
        Reading::DumpLies => "in the dump alone",
        Reading::ProducerWrites => "by the step that writes it",
        Reading::ConsumerReads => "by the step that reads it",
    };
    format!("{lie} ({who})")
}

/// Other explanations of the same deviation, each kind and site once.
pub(super) fn alternatives(
    judged: &[Judged],
    best: Option<&Judged>,
    scene: &Scene,
    share: impl Fn(usize) -> f64,
) -> Vec<Finding> {
    let name = |c: &Candidate| (c.kind(), c.layer(), c.site());
    let mut seen: Vec<_> = best.map(|b| name(&b.candidate)).into_iter().collect();
    let mut found = Vec::new();
    for j in judged {
        if found.len() == OTHERS || seen.contains(&name(&j.candidate)) {
            continue;
        }
        seen.push(name(&j.candidate));
        found.push(Finding {
            kind: j.candidate.kind(),
            layer: j.candidate.layer(),
            site: j.candidate.site().to_owned(),
            severity: Severity::Info,
            share: share(j.left),
            evidence: format!(
                "another explanation of {}: it leaves {} of {} mismatches",
                scene.first, j.left, scene.base
            ),
            fault: j.candidate.fault().map(ToString::to_string),
        });
    }
    found
}

/// A deviation that no fault model explains.
pub(super) fn no_cause(scene: &Scene, score: &Score, total: usize) -> Finding {
    let s = &score[&scene.first];
    let rare = s.mismatched as f64 <= 1e-3 * s.compared as f64;
    let small = s.largest <= 1.0;
    Finding {
        kind: "none",
        layer: scene.first.layer,
        site: scene.first.point.name().to_owned(),
        severity: match rare && small {
            true => Severity::Warning,
            false => Severity::Error,
        },
        share: s.mismatched as f64 / total as f64,
        evidence: format!("{}; no fault model explains it", deviation(scene, score)),
        fault: None,
    }
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
        fault: None,
    }
}

/// One finding in place of the same one in every block. A tie rule, a quotient or wrapping that all
/// blocks share is how somebody's kernels are, not a defect of one.
pub(super) fn in_every_block(causes: Vec<Finding>, score: &Score) -> Vec<Finding> {
    let blocks: BTreeSet<usize> = score.keys().filter_map(|place| place.layer).collect();
    let mut out: Vec<Finding> = Vec::new();
    for finding in &causes {
        let same = |f: &&Finding| f.kind == finding.kind && f.site == finding.site;
        let all: Vec<&Finding> = causes.iter().filter(same).collect();
        let everywhere = blocks.len() > 2 && all.len() == blocks.len() && finding.kind != "none";
        if !everywhere {
            out.push(finding.clone());
        } else if all[0].layer == finding.layer {
            let rule = matches!(finding.kind, "rounding" | "hadamard-wrap");
            out.push(Finding {
                layer: None,
                severity: match rule {
                    true => Severity::Warning,
                    false => finding.severity,
                },
                share: all.iter().map(|f| f.share).sum::<f64>().min(1.0),
                evidence: format!("in each of {} blocks; {}", all.len(), finding.evidence),
                fault: same_fault(&all),
                ..finding.clone()
            });
        }
    }
    out
}

/// The one fault of all blocks, if it is the same in each.
fn same_fault(all: &[&Finding]) -> Option<String> {
    let everywhere = |finding: &Finding| {
        let fault: Fault = finding.fault.as_deref()?.parse().ok()?;
        Some(Fault {
            layer: None,
            ..fault
        })
    };
    let first = everywhere(all[0])?;
    let same = all.iter().all(|finding| everywhere(finding) == Some(first));
    same.then(|| first.to_string())
}
