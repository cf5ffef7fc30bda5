//! What the numbers of a mode say, in words.

use super::ModeDetail;
use scalescope_golden::diagnosis::finding::{Finding, Severity};
use scalescope_golden::diagnosis::lineage::{Lineage, Quantizer};
use scalescope_golden::diagnosis::propagate::{Propagation, SiteError};
use serde::Serialize;
use std::collections::BTreeMap;

/// Sites of the largest local errors that are named.
const NAMED: usize = 3;

/// A sentence about a place.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Remark {
    /// How much it matters.
    pub severity: Severity,
    /// A quantizer, a step, a scale.
    pub site: String,
    /// The blocks it holds for; none for the whole model.
    pub layers: Vec<usize>,
    /// The words.
    pub words: String,
}

impl From<&Finding> for Remark {
    fn from(finding: &Finding) -> Self {
        Self {
            severity: finding.severity,
            site: finding.site.clone(),
            layers: finding.layer.into_iter().collect(),
            words: match finding.kind {
                "none" => finding.evidence.clone(),
                kind => format!("{kind}? {}", finding.evidence),
            },
        }
    }
}

/// Everything worth saying of a mode, worst first.
pub fn remarks(detail: &ModeDetail) -> Vec<Remark> {
    let mut remarks = scales(&detail.lineage);
    remarks.extend(steps(&detail.propagation));
    remarks.extend(state(detail));
    remarks.sort_by_key(|remark| std::cmp::Reverse(remark.severity));
    remarks
}

/// One remark a quantizer and severity, over the blocks that have it, and one a reader with another scale.
fn scales(lineage: &Lineage) -> Vec<Remark> {
    let mut by_name: BTreeMap<&str, Vec<&Quantizer>> = BTreeMap::new();
    for q in &lineage.quantizers {
        by_name.entry(q.name).or_default().push(q);
    }
    let mut out = Vec::new();
    for (name, all) in by_name {
        for severity in [Severity::Error, Severity::Warning, Severity::Info] {
            let here = |q: &&Quantizer| q.severity == severity && !q.fit.is_empty();
            let bad: Vec<&Quantizer> = all.iter().copied().filter(here).collect();
            let farthest = |q: &&&Quantizer| q.scale_ratio.ln().abs();
            let worst = bad
                .iter()
                .max_by(|a, b| farthest(a).total_cmp(&farthest(b)));
            out.extend(worst.map(|worst| Remark {
                severity,
                site: name.to_owned(),
                layers: layers(&bad),
                words: match bad.len() {
                    1 => worst.fit.clone(),
                    _ => format!("worst in block {}: {}", worst.layer, worst.fit),
                },
            }));
        }
        for q in &all {
            for reader in q.readers.iter().filter(|r| r.severity > Severity::Info) {
                out.push(Remark {
                    severity: reader.severity,
                    site: name.to_owned(),
                    layers: vec![q.layer],
                    words: format!(
                        "{} reads these codes with {:.4} times the scale they were written with",
                        reader.name, reader.factor
                    ),
                });
            }
        }
    }
    out.extend(lineage.clips_as_promised().into_iter().map(|words| Remark {
        severity: Severity::Info,
        site: "clipping".to_owned(),
        layers: Vec::new(),
        words,
    }));
    out
}

fn layers(quantizers: &[&Quantizer]) -> Vec<usize> {
    quantizers.iter().map(|q| q.layer).collect()
}

/// A step in every block.
fn of_site<'a>(error: &'a Propagation, site: &'a str) -> impl Iterator<Item = &'a SiteError> {
    let here = move |s: &&SiteError| s.site == site && s.layer.is_some();
    error.sites.iter().filter(here)
}

/// Where error is made, and where it grows.
pub fn steps(error: &Propagation) -> Vec<Remark> {
    let sites = error.sites_of_a_block();
    let mean = |values: Vec<f64>| match values.len() {
        0 => 0.0,
        n => values.iter().sum::<f64>() / n as f64,
    };
    let mut made: Vec<(f64, &str)> = (sites.iter())
        .map(|site| {
            (
                mean(of_site(error, site).map(|s| s.local_l2()).collect()),
                *site,
            )
        })
        .filter(|(value, _)| *value > 0.0)
        .collect();
    made.sort_by(|a, b| b.0.total_cmp(&a.0));
    let info = |site: &str, words: String| Remark {
        severity: Severity::Info,
        site: site.to_owned(),
        layers: Vec::new(),
        words,
    };
    let mut out: Vec<Remark> = (made.iter().take(NAMED).enumerate())
        .map(|(i, (value, site))| {
            let rank = ["largest", "second largest", "third largest"][i];
            let words = format!(
                "has the {rank} local error: {:.2} % of its output, mean of the blocks",
                100.0 * value
            );
            info(site, words)
        })
        .collect();
    let growth = (sites.iter())
        .map(|site| {
            let values = of_site(error, site)
                .filter_map(|s| s.amplification)
                .collect();
            (mean(values), *site)
        })
        .max_by(|a, b| a.0.total_cmp(&b.0));
    if let Some((factor, site)) = growth.filter(|(factor, _)| *factor > 1.0) {
        let words =
            format!("error grows most here: {factor:.2} times what arrives, mean of the blocks");
        out.push(info(site, words));
    }
    if let Some(logits) = error.get(None, "logits") {
        let words = format!(
            "the logits have {:.2} % error; the head alone makes {:.3} %",
            100.0 * logits.propagated_l2(),
            100.0 * logits.local_l2()
        );
        out.push(info("logits", words));
    }
    out
}

/// What the recurrent state gathers.
fn state(detail: &ModeDetail) -> Option<Remark> {
    let last = detail.time.windows.last()?;
    let median = |values: &[f64]| {
        let mut sorted = values.to_vec();
        sorted.sort_by(f64::total_cmp);
        sorted[sorted.len() / 2]
    };
    let (all, own) = (
        median(&last.ssm_state),
        median(&last.ssm_state_clean_inputs),
    );
    Some(Remark {
        severity: Severity::Info,
        site: "ssm_state".into(),
        layers: Vec::new(),
        words: format!(
            "after {} tokens of decode the recurrent state is {:.2} % off (median block); \
             with clean inputs it would be {:.2} %, which is what the state gathers by itself",
            last.last + 1,
            100.0 * all,
            100.0 * own
        ),
    })
}
