//! What is wrong with the vectors of one operation. Its step stands by itself: the rules of a dump's steps are
//! tried as the vectors' own check runs them, scales are fitted as a dump's are, and the edits of the formula are
//! a dump's, in the same words.

mod formulas;

use super::candidate::{self, Candidate};
use super::findings::{alike_words, claim, deviates, not_explained};
use super::locate::replay::{Closeness, PointScore, between_values};
use super::pattern::Pattern;
use super::search::local::Local;
use super::search::{OTHERS, explains, factor, simplest_first};
use crate::check_op::{Case, ScaleOf, Vectors, scales};
use crate::compare::Summary;
use crate::diagnosis::finding::{Explained, Finding, Severity};
use crate::value::Value;
use ndarray::Array2;
use rayon::prelude::*;
use scalescope_sim::dataflow::{Block, Format, Phase, Row, Step};
use scalescope_sim::error::Result;
use scalescope_sim::mode::ModeTable;
use scalescope_sim::profile::{Arithmetic, Profile};
use scalescope_sim::trace::TracePoint;
use std::collections::BTreeMap;

/// Elements that a scale's factor is fitted on.
const FIT: usize = 2_000;
/// Edits of a formula that are judged on every case.
const EDITS: usize = 8;

/// Something that would explain an output, and how many elements it leaves.
struct Told {
    kind: &'static str,
    site: String,
    words: String,
    rank: usize,
    left: usize,
    /// Whether it is restricted to a pattern.
    restricted: bool,
}

/// An output of an operation, in all cases that have it.
struct Output<'a> {
    key: String,
    point: TracePoint,
    cases: Vec<Case>,
    rules: &'a Arithmetic,
    block: &'a Block,
}

/// Says what is wrong with the outputs that mismatch, output by output, the most probable first.
///
/// # Errors
///
/// A case that the datapath cannot run.
pub fn diagnose_vectors(
    vectors: &Vectors,
    rules: &Arithmetic,
    summary: &Summary,
) -> Result<Vec<Finding>> {
    let mut outputs: BTreeMap<&str, Vec<Case>> = BTreeMap::new();
    for case in &vectors.cases {
        for (key, expected) in &case.expected {
            let expected = vec![(key.clone(), expected.clone())];
            let case = Case {
                expected,
                ..case.clone()
            };
            outputs.entry(key).or_default().push(case);
        }
    }
    // Vectors are those of the published kernels, whose steps mode 0 has.
    let (table, profile) = (ModeTable::default(), Profile::get("exact")?);
    let block = Block::of(table.get("0")?, &profile, Phase::Prefill);
    let mut findings = Vec::new();
    for (key, cases) in outputs {
        let point = formulas::point(&cases[0], key);
        let key = key.to_owned();
        let output = Output {
            key,
            point,
            cases,
            rules,
            block: &block,
        };
        if output.score(rules, &output.cases)?.mismatched > 0 {
            findings.extend(output.diagnose(vectors.op.name(), summary.mismatched())?);
        }
    }
    Ok(findings)
}

impl Output<'_> {
    /// How the cases compare under some rules.
    fn score(&self, rules: &Arithmetic, cases: &[Case]) -> Result<PointScore> {
        let mut total = PointScore::default();
        for case in cases {
            let found = case.compute(rules)?;
            let (Some((_, found)), (_, expected)) = (found.first(), &case.expected[0]) else {
                continue;
            };
            let (expected, found) = case.settled(expected, found);
            let of = |array| Value::from_array(array);
            total.add(between_values(&of(&expected), &of(&found), Closeness::Bits));
        }
        Ok(total)
    }

    fn diagnose(&self, op: &'static str, total: usize) -> Result<Vec<Finding>> {
        let base = self.score(self.rules, &self.cases)?;
        // Floats that an ulp keeps apart do not decide, but where nothing else deviates.
        let count = |s: PointScore| if base.far > 0 { s.far } else { s.mismatched };
        let of = count(base);
        let mut told = self.rules(&count)?;
        told.extend(self.scales(&count)?);
        let (edits, pattern) = self.edits(of);
        told.extend(edits);
        told.retain(|t| t.left < of);
        simplest_first(&mut told, of, |t| (t.left, t.rank));
        let explained = |t: &Told| Explained {
            explained: of - t.left,
            deviating: of,
        };
        let share =
            |t: &Told| (of - t.left) as f64 / of as f64 * base.mismatched as f64 / total as f64;
        let is_cause = |t: &&Told| explains(of - t.left, of);
        let finding = |t: &Told, severity, sort: &str| {
            let claim = claim(op, &t.words, explained(t), &self.key, pattern.as_ref());
            Finding {
                kind: t.kind,
                site: t.site.clone(),
                severity,
                share: share(t),
                evidence: format!("{sort}{claim}"),
                step: Some(op),
                edit: Some(t.words.clone()),
                explained: Some(explained(t)),
                ..Finding::default()
            }
        };
        let (mut first, others) = match told.iter().find(is_cause) {
            Some(best) => {
                let alike = told
                    .iter()
                    .filter(is_cause)
                    .filter(|t| t.words != best.words);
                let alike =
                    alike.filter(|t| t.left <= best.left && (best.restricted || !t.restricted));
                let mut words: Vec<String> = alike.map(|t| t.words.clone()).collect();
                words.dedup();
                words.truncate(OTHERS);
                let whole = best.left == 0;
                let severity = if whole {
                    Severity::Error
                } else {
                    Severity::Warning
                };
                let mut found = finding(best, severity, "");
                found.evidence += &alike_words(&words);
                found.alike = words;
                (found, &told[..0])
            }
            None => {
                let found = Finding {
                    kind: "none",
                    site: self.key.clone(),
                    severity: Severity::Error,
                    share: base.mismatched as f64 / total as f64,
                    evidence: format!(
                        "{}; {}",
                        deviates(
                            &format!("{op}: {} deviates", self.key),
                            &base,
                            pattern.as_ref()
                        ),
                        not_explained()
                    ),
                    step: Some(op),
                    ..Finding::default()
                };
                (found, &told[..told.len().min(OTHERS)])
            }
        };
        first.pattern = pattern.clone();
        let leads = others
            .iter()
            .map(|t| finding(t, Severity::Info, "a lead: "));
        Ok([first].into_iter().chain(leads).collect())
    }

    /// Rules that make the output, each another one.
    fn rules(&self, count: &(dyn Fn(PointScore) -> usize + Sync)) -> Result<Vec<Told>> {
        let steps = [Step::InProj, Step::XProj];
        let registers = steps
            .into_iter()
            .flat_map(|step| candidate::registers(0, step));
        let all = candidate::discrete(0)
            .into_iter()
            .chain(candidate::rules(0, self.block))
            .chain(registers)
            .filter(|c| c.is_of(self.block, self.point));
        let all: Vec<(Candidate, Arithmetic)> = all
            .filter_map(|c| {
                let change = c.on_rules()?;
                let mut rules = self.rules.clone();
                change(&mut rules.prefill);
                change(&mut rules.decode);
                (rules != *self.rules).then_some((c, rules))
            })
            .collect();
        all.into_par_iter()
            .map(|(c, rules)| {
                Ok(Told {
                    kind: c.kind(),
                    site: c.site().to_owned(),
                    words: c.words(),
                    rank: c.rank(),
                    left: count(self.score(&rules, &self.cases)?),
                    restricted: false,
                })
            })
            .collect()
    }

    /// Scales of the file, each by a fitted factor, or applied twice.
    fn scales(&self, count: &(dyn Fn(PointScore) -> usize + Sync)) -> Result<Vec<Told>> {
        let base = self.score(self.rules, &self.cases)?;
        let with = |scale: ScaleOf, cases: &[Case]| -> Result<PointScore> {
            let mut cases = cases.to_vec();
            for case in &mut cases {
                if scale.apply(&mut case.inputs).is_err() {
                    // A factor that takes a scale out of its range explains nothing.
                    return Ok(PointScore {
                        distance: f64::INFINITY,
                        ..base
                    });
                }
            }
            self.score(self.rules, &cases)
        };
        let few = self.few()?;
        let off = self.score(self.rules, &few)?.distance;
        let all: Vec<Vec<Told>> = scales(&self.cases[0].inputs)
            .into_par_iter()
            .map(|name| {
                let of = |factor| ScaleOf { name, factor };
                let far = |factor: f32| Ok(with(of(Some(factor)), &few)?.distance);
                let left = |scale: ScaleOf| Ok(count(with(scale, &self.cases)?));
                let told = |scale: ScaleOf, (kind, rank), left| Told {
                    kind,
                    site: name.to_owned(),
                    words: scale.to_string(),
                    rank,
                    left,
                    restricted: false,
                };
                let twice = of(None);
                let mut all = vec![told(twice, ("twice", 4), left(twice)?)];
                let rough = factor::coarse(&mut |factor| far(factor))?;
                if rough.value < off {
                    let (factor, _) = factor::refine(rough.factor, rough.width, 18, far)?;
                    // Of equally good ones the number of the fewest digits.
                    let mut best: Option<(usize, ScaleOf)> = None;
                    for number in factor::round_numbers(factor).into_iter().chain([factor]) {
                        let scale = of(Some(number));
                        let left = left(scale)?;
                        if best.is_none_or(|(fewest, _)| left < fewest) {
                            best = Some((left, scale));
                        }
                    }
                    all.extend(best.map(|(left, scale)| told(scale, ("stale-scale", 7), left)));
                }
                Ok(all)
            })
            .collect::<Result<_>>()?;
        Ok(all.into_iter().flatten().collect())
    }

    /// The smallest cases that deviate, of so many elements as a fit needs.
    fn few(&self) -> Result<Vec<Case>> {
        let mut cases = self.cases.clone();
        cases.sort_by_key(|case| case.expected[0].1.len());
        let (mut few, mut elements) = (Vec::new(), 0);
        for case in cases {
            let one = std::slice::from_ref(&case);
            if elements < FIT && self.score(self.rules, one)?.mismatched > 0 {
                elements += case.expected[0].1.len();
                few.push(case);
            }
        }
        Ok(few)
    }

    /// Edits of the formula, and what deviates: in the cases of one size, of which the most deviates.
    fn edits(&self, of: usize) -> (Vec<Told>, Option<Pattern>) {
        let Some(row) = self.row() else {
            return (Vec::new(), None);
        };
        let mut sizes: BTreeMap<Vec<usize>, Vec<&Case>> = BTreeMap::new();
        for case in &self.cases {
            sizes.entry(case.inputs.sizes()).or_default().push(case);
        }
        let mut locals: Vec<Local> = sizes
            .values()
            .filter_map(|cases| self.local(&row, cases))
            .collect();
        locals.sort_by_key(|local| std::cmp::Reverse(local.base()));
        let Some((largest, others)) = locals.split_first() else {
            return (Vec::new(), None);
        };
        let told = largest
            .best(&|_| true, EDITS, true)
            .into_iter()
            .map(|edit| {
                let same = |e: &super::edit::Edit| e.words == edit.words;
                let left = |local: &Local| {
                    let found = local.best(&same, 1, true);
                    found.first().map_or(local.base(), |e| local.leaves(e))
                };
                let all: usize = others.iter().map(left).sum();
                Told {
                    kind: edit.kind.name(),
                    site: edit.site.clone(),
                    words: edit.words.clone(),
                    rank: edit.rank + 2 * usize::from(edit.only.is_some()),
                    left: (largest.leaves(&edit) + all).min(of),
                    restricted: edit.only.is_some(),
                }
            });
        (told.collect(), largest.pattern().cloned())
    }

    /// The row of the block's table that the output is, stored as the file has it.
    fn row(&self) -> Option<Row> {
        let mut row = self.block.row(self.point)?.clone();
        let array = &self.cases[0].expected[0].1;
        row.format = match Value::from_array(array).dtype() {
            "f16" => Format::F16,
            "f32" => Format::F32,
            _ => row.format,
        };
        Some(row)
    }

    fn local<'r>(&self, row: &'r Row, cases: &[&Case]) -> Option<Local<'r, 'static>> {
        let (mut formulas, mut made, mut dumped) = (Vec::new(), Vec::new(), Vec::new());
        for case in cases {
            let own = formulas::of(case, &self.key, self.rules);
            let found = case.compute(self.rules).ok()?;
            let of = |array| -> Vec<Array2<f32>> {
                formulas::tensors(array, &self.key, self.point, own.len())
            };
            made.extend(of(&found.first()?.1));
            dumped.extend(of(&case.expected[0].1));
            let none = made.len() - formulas.len() - own.len();
            formulas.extend(own.into_iter().map(Some));
            formulas.extend((0..none).map(|_| None));
        }
        Local::alone(row, formulas, made, dumped)
    }
}
