//! What makes two runs part: the fields of the modes and the rules of the profiles behind the tensor
//! that differs, and which of them alone would close the gap.

use super::{Data, Divergence, Run, Tensors, values};
use crate::trace_file::counterpart::find;
use scalescope_sim::datapath::LogitRows;
use scalescope_sim::error::Result;
use scalescope_sim::fault::Fault;
use scalescope_sim::mode::{Implementation, ModeSpec, Precision, ScanInput};
use scalescope_sim::model::Model;
use scalescope_sim::profile::StepRules;
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

macro_rules! fields {
    ($($name:ident),*) => {
        /// The fields of a mode that differ, and A with B's.
        fn differing(a: &ModeSpec, b: &ModeSpec) -> Vec<(FieldDifference, ModeSpec)> {
            let mut out = Vec::new();
            $(if a.$name != b.$name {
                let difference = FieldDifference {
                    field: stringify!($name),
                    a: word(&a.$name),
                    b: word(&b.$name),
                    alone: false,
                };
                out.push((difference, ModeSpec { $name: b.$name, ..a.clone() }));
            })*
            out
        }
    };
}

fields!(
    weights,
    norm_out,
    x,
    z,
    conv_in,
    conv_out,
    x_proj_in,
    x_proj_out,
    dt_proj_out,
    u,
    state,
    stream,
    had_out,
    conv,
    scan,
    rotated
);

fn word(value: &impl Serialize) -> String {
    match serde_json::to_value(value) {
        Ok(Value::String(text)) => text,
        Ok(other) => other.to_string(),
        Err(_) => unreachable!("fields are plain data"),
    }
}

/// The fields that a step reads; `None`: every one may matter.
fn fields_at(point: TracePoint) -> Option<&'static [&'static str]> {
    use TracePoint as P;
    Some(match point {
        P::NormOut | P::NormOutScale => &["norm_out", "weights"],
        P::InProjOut => &["weights", "x", "z"],
        P::InProjX => &["weights", "x"],
        P::InProjZ => &["weights", "z"],
        P::ConvIn | P::ConvInScale | P::ConvStateIn | P::ConvStateOut => &["conv_in", "x"],
        P::ConvOut | P::ConvOutF32 => &["weights", "conv_in", "conv_out", "conv", "x"],
        P::XProjIn => &["conv_out", "x_proj_in"],
        P::XProjOut => &["weights", "x_proj_in", "x_proj_out"],
        P::DtProjOut => &["weights", "dt_proj_out"],
        P::SsmU => &["conv_out", "u"],
        P::SsmY => &["weights", "u", "scan", "state", "stream"],
        P::SsmState | P::SsmStateOut | P::SsmStateIn => &["weights", "u", "scan", "state"],
        P::HadOut | P::HadOutScale => &["had_out", "rotated"],
        P::OutProjOut => &["weights", "had_out", "stream"],
        _ => return None,
    })
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
    let reads = |name| {
        let named = |point| fields_at(point).is_none_or(|names| names.contains(&name));
        named(point) || named(a_point)
    };
    if fields.iter().any(|(f, _)| reads(f.field)) {
        fields.retain(|(f, _)| reads(f.field));
    }
    let mut out = Why {
        rules: rules(a, b, at, (a_point, point)),
        ..Why::default()
    };
    for (mut field, mode) in fields {
        let run = Run { mode: &mode, ..a };
        field.alone = makes(model, run, data, at, target)?;
        out.fields.push(field);
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
    Ok(out)
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

fn step_rules<'a>(run: Run<'a>, by: Implementation, step: Option<usize>) -> &'a StepRules {
    let arithmetic = run.profile.arithmetic(by);
    match step {
        None => &arithmetic.prefill,
        Some(_) => &arithmetic.decode,
    }
}

/// The rules behind a point, flattened to paths and values.
fn rules_at(run: Run, point: TracePoint, step: Option<usize>) -> Vec<(String, String)> {
    use TracePoint as P;
    let cuda = step_rules(run, Implementation::Cuda, step);
    let torch = step_rules(run, Implementation::Torch, step);
    let conv = step_rules(run, run.mode.conv, step);
    let scan = step_rules(run, run.mode.scan, step);
    let whole = |rules: &StepRules| serde_json::to_value(rules).expect("rules are plain data");
    let mut out = Vec::new();
    let mut add = |rules: &StepRules, path: &str| {
        let all = whole(rules);
        let part = path.split('.').fold(&all, |value, key| &value[key]);
        flatten(path, part, &mut out);
    };
    let requantized = run.mode.conv_out == Precision::Float;
    let codes = run.mode.u != ScanInput::Float;
    match point {
        P::NormOut | P::NormOutScale => add(cuda, "norm_out"),
        P::InProjOut | P::InProjX | P::InProjZ => add(cuda, "linear.in_proj"),
        P::ConvIn => add(cuda, "conv_in"),
        P::ConvOut | P::ConvOutF32 => add(conv, "conv"),
        P::XProjIn if requantized => add(torch, "requantize"),
        P::SsmU if requantized && codes => add(torch, "requantize"),
        P::SsmU if requantized => {}
        P::XProjIn | P::SsmU => add(conv, "conv.output"),
        P::XProjOut => add(cuda, "linear.x_proj"),
        P::DtProjOut => add(cuda, "linear.dt_proj"),
        P::SsmY | P::SsmState | P::SsmStateOut | P::SsmStateIn => add(scan, "scan"),
        P::HadOut | P::HadOutScale => {
            let all = whole(cuda);
            for (key, value) in all.as_object().into_iter().flatten() {
                if key.starts_with("hadamard") {
                    flatten(key, value, &mut out);
                }
            }
        }
        P::OutProjOut => add(cuda, "linear.out_proj"),
        P::FinalResidual | P::NormFOut | P::Logits => {
            out.push(("final_norm".into(), word(&run.profile.cuda.final_norm)));
        }
        _ => {}
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
