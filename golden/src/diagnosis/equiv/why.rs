//! What makes two runs part: the fields of the modes and the rules of the profiles behind the tensor
//! that differs, and which of them alone would close the gap.

use super::{Data, Divergence, Run, Tensors, values};
use crate::diagnosis::diagnose::diagnose;
use crate::diagnosis::finding::Finding;
use crate::trace_file::TraceFile;
use crate::trace_file::counterpart::find;
use ndarray::Array2;
use scalescope_sim::dataflow::{Block, Field, Phase, Step};
use scalescope_sim::datapath::LogitRows;
use scalescope_sim::error::Result;
use scalescope_sim::fault::Fault;
use scalescope_sim::mode::ModeSpec;
use scalescope_sim::model::Model;
use scalescope_sim::trace::{Place, Recorder, Selection, TracePoint};
use serde::Serialize;
use serde_json::Value;
use std::collections::BTreeSet;

/// The reasons, as far as data name them.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Why {
    /// Fields of the mode that have to do with the tensor and differ.
    pub fields: Vec<FieldDifference>,
    /// Rules that make the tensor and differ.
    pub rules: Vec<RuleDifference>,
    /// Defects that only B has.
    pub faults: Vec<FaultDifference>,
    /// What B does otherwise in that block, as a diagnosis of its tensors says; of one mode's prefill.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub findings: Vec<Finding>,
}

/// A defect of B.
#[derive(Clone, Debug, Serialize)]
pub struct FaultDifference {
    /// As `--fault` takes it.
    pub fault: Fault,
    /// Whether A with it makes the tensor that B makes.
    pub alone: bool,
}

/// A field of the mode that differs.
#[derive(Clone, Debug, Serialize)]
pub struct FieldDifference {
    /// Its name.
    pub field: &'static str,
    /// In A.
    pub a: String,
    /// In B.
    pub b: String,
    /// Whether A with this one field as in B makes the tensor that B makes.
    pub alone: bool,
}

/// A rule that differs.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct RuleDifference {
    /// Its path in the arithmetic, or that of A's and that of B's.
    pub rule: String,
    /// In A.
    pub a: String,
    /// In B.
    pub b: String,
}

/// The fields of a mode that differ, and A with B's.
fn differing(a: &ModeSpec, b: &ModeSpec) -> Vec<(Field, ModeSpec)> {
    let fields = Field::ALL.into_iter().filter(|field| field.differs(a, b));
    let with = fields.map(|field| {
        let mut mode = a.clone();
        field.copy(&mut mode, b);
        (field, mode)
    });
    with.collect()
}

/// The value of a field, as mode files write it.
fn value_of(mode: &ModeSpec, field: Field) -> String {
    let fields = serde_json::to_value(mode).expect("modes are plain data");
    word(&fields[field.name()])
}

fn word(value: &impl Serialize) -> String {
    match serde_json::to_value(value) {
        Ok(Value::String(text)) => text,
        Ok(other) => other.to_string(),
        Err(_) => unreachable!("fields are plain data"),
    }
}

/// Whether a field decides about a tensor of a run. Of points that the mode does not make, every one may.
fn decides(run: Run, at: &Divergence, point: TracePoint, field: Field) -> bool {
    let block = Block::of(run.mode, run.profile, phase(at.step));
    block
        .row(point)
        .is_none_or(|row| row.fields.contains(&field))
}

fn phase(step: Option<usize>) -> Phase {
    match step {
        None => Phase::Prefill,
        Some(_) => Phase::Decode,
    }
}

pub(super) fn why(
    model: &Model,
    (a, b): (Run, Run),
    data: Data,
    at: &Divergence,
    target: &Tensors,
) -> Result<Why> {
    let point = TracePoint::from_name(at.b_point).expect("a point of a trace");
    let a_point = TracePoint::from_name(at.a_point).expect("a point of a trace");
    let mut fields = differing(a.mode, b.mode);
    let matters = |field| decides(b, at, point, field) || decides(a, at, a_point, field);
    if fields.iter().any(|(field, _)| matters(*field)) {
        fields.retain(|(field, _)| matters(*field));
    }
    let mut out = Why {
        rules: rules(a, b, at, (a_point, point)),
        ..Why::default()
    };
    for (field, mode) in fields {
        let run = Run { mode: &mode, ..a };
        out.fields.push(FieldDifference {
            field: field.name(),
            a: value_of(a.mode, field),
            b: value_of(b.mode, field),
            alone: makes(model, run, data, at, target)?,
        });
    }
    for fault in b.faults.iter().filter(|fault| !a.faults.contains(fault)) {
        let faults = [a.faults, &[*fault]].concat();
        let run = Run {
            faults: &faults,
            ..a
        };
        out.faults.push(FaultDifference {
            fault: *fault,
            alone: makes(model, run, data, at, target)?,
        });
    }
    let in_block = at.step.is_none() && at.layer.is_some();
    if a.mode == b.mode && a.faults.is_empty() && in_block {
        out.findings = findings(model, a, data, at, target)?;
    }
    Ok(out)
}

/// What is wrong with B's tensors of the block, were they a dump of A's run.
fn findings(
    model: &Model,
    a: Run,
    data: Data,
    at: &Divergence,
    target: &Tensors,
) -> Result<Vec<Finding>> {
    let (prompt, _) = data.split(at.sequence);
    let mut recorder = Recorder::new(Selection::default());
    recorder.tensors = target.clone();
    recorder.tensors.retain(|place, _| place.layer == at.layer);
    let ids = Array2::from_shape_vec((1, prompt.len()), prompt.to_vec()).expect("one row");
    let dump = TraceFile::from_recorders(ids, [recorder])?;
    let found = diagnose(model, a.mode, &dump, std::slice::from_ref(a.profile))?;
    Ok(found.findings)
}

/// Whether a run makes the tensor that B makes at the place where A and B part.
fn makes(model: &Model, run: Run, data: Data, at: &Divergence, target: &Tensors) -> Result<bool> {
    // Some changes make a mode that no part of the model serves.
    let Ok(path) = run.path(model) else {
        return Ok(false);
    };
    let (prompt, rest) = data.split(at.sequence);
    let mut recorder = Recorder::new(Selection::default());
    let (_, mut state) = path.prefill(prompt, LogitRows::All, &mut recorder)?;
    for token in rest.iter().take(at.step.map_or(0, |step| step + 1)) {
        recorder = Recorder::new(Selection::default());
        path.decode(*token, &mut state, &mut recorder)?;
    }
    let place = Place {
        layer: at.layer,
        point: TracePoint::from_name(at.b_point).expect("a point of a trace"),
    };
    let takes = [&recorder.tensors, target].map(|run| {
        let places: BTreeSet<Place> = run.keys().copied().collect();
        find(&places, place)
    });
    let [Some(x), Some(y)] = takes else {
        return Ok(false);
    };
    let (x, y) = values(&recorder.tensors, x, target, y);
    Ok(x == y)
}

/// The rules that make a tensor, by path. A quantizer between steps and the conv's own stand against
/// each other where one mode has one and the other the other.
fn rules(
    a: Run,
    b: Run,
    at: &Divergence,
    (a_point, b_point): (TracePoint, TracePoint),
) -> Vec<RuleDifference> {
    let (x, y) = (rules_at(a, a_point, at.step), rules_at(b, b_point, at.step));
    // An accumulator's overflow is no quantizer's.
    let leaf = |path: &str| {
        let mut parts = path.rsplit('.');
        let last = parts.next().map(str::to_owned);
        (last, parts.next() == Some("accumulator"))
    };
    let mut out = Vec::new();
    for (path, value) in &y {
        let same = x.iter().find(|(other, _)| other == path);
        let like = || x.iter().find(|(other, _)| leaf(other) == leaf(path));
        let Some((other_path, other)) = same.or_else(like) else {
            continue;
        };
        if other != value {
            let rule = match other_path == path {
                true => path.clone(),
                false => format!("{other_path} in A, {path} in B"),
            };
            out.push(RuleDifference {
                rule,
                a: other.clone(),
                b: value.clone(),
            });
        }
    }
    out
}

/// The rules behind a tensor, flattened to paths and values. Of a tensor that is handed on as it is, those
/// of the one it comes from.
fn rules_at(run: Run, point: TracePoint, step: Option<usize>) -> Vec<(String, String)> {
    let mut out = Vec::new();
    let block = Block::of(run.mode, run.profile, phase(step));
    let Some(row) = block.row(point) else {
        return out;
    };
    if row.rules.is_empty() {
        let quantized = |point| block.row(point)?.quantizer_rule();
        let from = row
            .inputs()
            .find_map(|point| Some((point, quantized(point)?)));
        if let (Some((from, _)), Step::XProj | Step::Scan) = (from, row.step) {
            let of = rules_at(run, from, step).into_iter();
            out.extend(of.filter(|(path, _)| path.contains(".output.")));
        }
        return out;
    }
    for rule in &row.rules {
        let arithmetic = run.profile.arithmetic(rule.by);
        if rule.path == Step::Head.rule() {
            out.push((rule.path.into(), word(&arithmetic.final_norm)));
            continue;
        }
        let mut rules = match step {
            None => arithmetic.prefill,
            Some(_) => arithmetic.decode,
        };
        rules.requantize = run.mode.requantize(rules.requantize);
        let all = serde_json::to_value(rules).expect("rules are plain data");
        let part = rule.path.split('.').fold(&all, |value, key| {
            // Names of steps are spelled as steps are, other fields as rules are.
            let spelled = value.get(key).or_else(|| value.get(key.replace('_', "-")));
            spelled.expect("a rule of a profile")
        });
        flatten(rule.path, part, &mut out);
    }
    out
}

fn flatten(path: &str, value: &Value, out: &mut Vec<(String, String)>) {
    match value {
        Value::Object(fields) => {
            for (key, value) in fields {
                flatten(&format!("{path}.{key}"), value, out);
            }
        }
        leaf => out.push((path.to_owned(), word(leaf))),
    }
}
