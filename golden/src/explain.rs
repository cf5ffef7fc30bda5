//! Says which single change would explain mismatches: runs what mismatched again with one rule or
//! one scale changed, as data, and counts the mismatches that are gone; recognises data that only
//! lie differently.
//!
//! | hypotheses | from |
//! |---|---|
//! | quantizers: ties, reciprocal or division, wrap or saturate; scale orders; conv form; scan association and formula; functions | [`Change::all`] |
//! | a scale off by a constant factor, an input scale applied twice | [`scales`] |
//! | transposed, shifted, blocks swapped, multiplied by a constant | [`crate::layout`] |
//!
//! Mismatches are grouped by output, over all cases or blocks. A hypothesis explains the net number
//! of mismatches that it removes from a group; those that it makes elsewhere count against it.

pub mod scales;
mod trace;

pub use trace::explain_trace;

use crate::check_op::{Case, Change, Vectors, elements};
use crate::compare::Summary;
use crate::layout::{Layout, LayoutFinding, Side, detect_in};
use crate::npz::Array;
use crate::ops::Op;
use scalescope_sim::error::Result;
use scalescope_sim::profile::Arithmetic;
use serde::Serialize;
use std::collections::BTreeMap;
use std::fmt;

/// What explains a group of mismatches.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Explanation {
    /// The output, over all cases or blocks that mismatch.
    pub group: String,
    /// Mismatches.
    pub mismatched: usize,
    /// Single changes, the best first; empty if none of the known ones helps.
    pub findings: Vec<Finding>,
}

/// A single change and what it explains.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Finding {
    /// The change: `conv: saturate instead of wrap`.
    pub change: String,
    /// Mismatches that are gone with it, less new ones.
    pub explains: usize,
    /// `explains` over all mismatches of the group.
    pub share: f64,
    /// Net share of the mismatches of the whole file that are gone with it; `None` where the group is
    /// judged by itself.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub of_all: Option<f64>,
}

/// Findings shown of a group.
const SHOWN: usize = 5;
/// A finding below this share says nothing.
const MIN_SHARE: f64 = 0.01;

impl fmt::Display for Explanation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{}: {} mismatches", self.group, self.mismatched)?;
        if self.findings.is_empty() {
            writeln!(f, "  not explained by any single known change")?;
        }
        for Finding { change, share, .. } in &self.findings {
            writeln!(f, "  {} % explained by: {change}", percent(*share))?;
        }
        Ok(())
    }
}

/// Percent; 100 only for all.
fn percent(share: f64) -> String {
    if share >= 1.0 {
        "100".into()
    } else {
        format!("{:.1}", (100.0 * share).min(99.9))
    }
}

/// Collects findings and ranks them: those that explain more first, of equals the one found first.
struct Findings {
    mismatched: usize,
    found: Vec<Finding>,
}

impl Findings {
    fn new(mismatched: usize) -> Self {
        Self {
            mismatched,
            found: Vec::new(),
        }
    }

    fn add(&mut self, change: String, remaining: usize) {
        self.push(change, remaining, None);
    }

    fn add_of_all(&mut self, change: String, remaining: usize, of_all: f64) {
        self.push(change, remaining, Some(of_all));
    }

    fn push(&mut self, change: String, remaining: usize, of_all: Option<f64>) {
        let explains = self.mismatched.saturating_sub(remaining);
        let share = explains as f64 / self.mismatched as f64;
        if share >= MIN_SHARE {
            self.found.push(Finding {
                change,
                explains,
                share,
                of_all,
            });
        }
    }

    fn rank(mut self, group: String) -> Explanation {
        let of_all = |f: &Finding| f.of_all.unwrap_or(0.0);
        self.found
            .sort_by(|a, b| (b.explains.cmp(&a.explains)).then(of_all(b).total_cmp(&of_all(a))));
        self.found.truncate(SHOWN);
        Explanation {
            group,
            mismatched: self.mismatched,
            findings: self.found,
        }
    }
}

/// Explains the mismatches of an operation's vectors, one entry an output (`out`, `y`, …).
pub fn explain_op(
    vectors: &Vectors,
    rules: &Arithmetic,
    summary: &Summary,
) -> Result<Vec<Explanation>> {
    let bad = |key: &str| {
        let mut points = summary.points.iter();
        points.any(|point| point.point == key && point.mismatched > 0)
    };
    // Cases that mismatch, each with the one output of the group.
    let mut groups: BTreeMap<String, Vec<Case>> = BTreeMap::new();
    for case in &vectors.cases {
        for (output, expected) in &case.expected {
            if bad(&case.key(output)) {
                let expected = vec![(output.clone(), expected.clone())];
                let case = Case {
                    expected,
                    ..case.clone()
                };
                groups.entry(output.clone()).or_default().push(case);
            }
        }
    }
    let mut explanations = Vec::new();
    for (group, cases) in groups {
        explanations.push(explain_cases(group, &cases, rules, vectors.op)?);
    }
    Ok(explanations)
}

/// Mismatches of cases under a hypothesis.
fn mismatches(cases: &[Case], rules: &Arithmetic) -> Result<usize> {
    let mut summary = Summary::default();
    for case in cases {
        case.check(rules, &mut summary)?;
    }
    Ok(summary.mismatched())
}

fn explain_cases(group: String, cases: &[Case], rules: &Arithmetic, op: Op) -> Result<Explanation> {
    let mut findings = Findings::new(mismatches(cases, rules)?);
    for (words, changed) in rule_changes(rules, op) {
        findings.add(words, mismatches(cases, &changed)?);
    }
    for hypothesis in scales::hypotheses(&cases[0].inputs) {
        let changed: Result<Vec<Case>> = (cases.iter())
            .map(|case| {
                let mut case = case.clone();
                hypothesis.apply(&mut case.inputs)?;
                Ok(case)
            })
            .collect();
        if let Ok(changed) = changed {
            findings.add(hypothesis.to_string(), mismatches(&changed, rules)?);
        }
    }
    let mut layouts = Layouts::default();
    for case in cases {
        // One output a case: the group's.
        if let Some((_, found)) = case.compute(rules)?.first() {
            layouts.add(&case.expected[0].1, found);
        }
    }
    layouts.report(&mut findings);
    Ok(findings.rank(group))
}

/// Every change of a rule that an operation has, in words and made.
fn rule_changes(rules: &Arithmetic, op: Op) -> Vec<(String, Arithmetic)> {
    let decode = matches!(op, Op::Conv1dUpdate | Op::SelectiveScanUpdate);
    let steps: &[&str] = match op {
        Op::Conv1dSilu | Op::Conv1dUpdate => &["conv"],
        Op::SelectiveScan | Op::SelectiveScanUpdate => &["scan", "state"],
        Op::HadamardQuant => &["Hadamard"],
        Op::Linear => &["linear"],
        Op::RmsNormQuant => &["norm"],
    };
    let changes = Change::all()
        .into_iter()
        .filter(|c| steps.contains(&c.step()));
    changes
        .filter_map(|change| {
            let words = change.describe(rules, decode)?;
            let mut changed = rules.clone();
            change.apply(&mut changed);
            Some((format!("{}: {words}", change.step()), changed))
        })
        .collect()
}

/// Layout findings of several arrays, put together by what they say.
#[derive(Default)]
struct Layouts {
    /// Elements that a layout brings to agreement, by its words.
    gained: BTreeMap<String, f64>,
}

impl Layouts {
    fn add(&mut self, expected: &Array, found: &Array) {
        let side = |array| Side {
            elements: elements(array),
            shape: Array::shape(array),
            scale: None,
        };
        // What the run makes is taken as it should lie; the file's lies otherwise.
        let findings = detect_in(side(found), side(expected), &[]);
        self.take(findings, expected.len());
    }

    fn take(&mut self, findings: Vec<LayoutFinding>, count: usize) {
        for finding in findings {
            let words = match finding.layout {
                Layout::Transposed { .. } => "layout: the file is transposed".to_owned(),
                Layout::SwappedBlocks { at, first, second } => {
                    let (middle, end) = (at + first, at + first + second);
                    format!(
                        "layout: channels {at}..{middle} and {middle}..{end} of the file are swapped"
                    )
                }
                Layout::ShiftedInTime { by } => {
                    format!("layout: the file is shifted by {by:+} tokens")
                }
                Layout::ShiftedInChannels { by } => {
                    format!("layout: the file is shifted by {by:+} channels")
                }
                Layout::Factor { factor } => format!("values: the file has them times {factor:.4}"),
            };
            let gained = (finding.explains - finding.before) * count as f64;
            *self.gained.entry(words).or_default() += gained;
        }
    }

    fn report(self, findings: &mut Findings) {
        for (words, gained) in self.gained {
            let remaining = findings.mismatched as f64 - gained;
            findings.add(words, remaining.max(0.0).round() as usize);
        }
    }
}
