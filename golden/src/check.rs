//! Checks the datapath against a trace: runs the model on the file's tokens and compares every
//! tensor that the file holds.
//!
//! | feed | what follows a compared tensor | what the result says |
//! |---|---|---|
//! | [`Feed::Local`] | the file's tensor | each step by itself: errors do not add up |
//! | [`Feed::Cumulative`] | the run's own | the whole run, errors and all |
//!
//! A local check can judge a tensor only if it knows what went into it. A block of which the file
//! holds nothing hands on hidden states, residuals and decode states that nobody can vouch for:
//! whatever depends on them, with no tensor of the file in between, is *given*. It is put in place,
//! counted apart, and neither equal nor a mismatch. (Example: `layer_06/hidden_in` when block 5 is
//! not in the file.) See `known`.
//!
//! Decode steps: a cumulative check needs the prefill's tokens and carries the state through every
//! step. A local check takes the states from `*_state_in`, or from the step before; it runs the
//! prefill only to compare its tensors, if there are any.

mod known;
mod recognise;

pub use recognise::{Recognised, recognise};

use crate::compare::{PointResult, Summary, Tolerance, Tolerances};
use crate::trace_file::{Points, TraceFile, step_key};
use crate::value::{Elements, Value};
use known::Known;
use scalescope_sim::datapath::LogitRows;
use scalescope_sim::engine::Engine;
use scalescope_sim::error::{Result, SimError};
use scalescope_sim::quant::Scale;
use scalescope_sim::trace::{Place, Probe, Tensor, TracePoint};
use serde::{Serialize, Serializer};
use std::borrow::Cow;
use std::collections::{BTreeMap, BTreeSet};

/// What follows a compared tensor.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Feed {
    /// The file's tensor goes on: every step gets the reference's inputs.
    #[default]
    Local,
    /// The run's own tensor goes on.
    Cumulative,
}

/// A tensor of the file that went in and could not be judged.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Given {
    /// The decode step, if it is one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub step: Option<usize>,
    /// The block.
    pub layer: Option<usize>,
    /// The point.
    pub point: &'static str,
    /// Elements.
    pub elements: usize,
}

/// What a check found.
#[derive(Clone, Debug, Default)]
pub struct CheckReport {
    /// Compared points and missing keys.
    pub summary: Summary,
    /// Inputs taken as they are.
    pub given: Vec<Given>,
    /// Expected and found tensors of points with mismatches, when asked for.
    pub kept: BTreeMap<(Option<usize>, Place), Pairs>,
    /// Tensors of the file that were read in another type than they lie in.
    pub remarks: Vec<String>,
}

/// Expected and found tensors, one pair a sequence, with the scale of codes.
pub type Pairs = Vec<(Value, Value, Option<Scale>)>;

impl CheckReport {
    /// Elements that went in and could not be judged.
    pub fn given(&self) -> usize {
        self.given.iter().map(|g| g.elements).sum()
    }

    /// 0 if something was compared, all of it is equal and nothing is missing; else 1. (NaN and ∞ are
    /// mismatches.)
    pub fn exit_code(&self) -> u8 {
        let s = &self.summary;
        let bad = s.mismatched() > 0 || !s.missing.is_empty();
        u8::from(bad || s.compared() == 0)
    }
}

impl Serialize for CheckReport {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        #[derive(Serialize)]
        struct Json<'a> {
            #[serde(flatten)]
            summary: &'a Summary,
            given: usize,
            given_points: &'a [Given],
        }
        Json {
            summary: &self.summary,
            given: self.given(),
            given_points: &self.given,
        }
        .serialize(serializer)
    }
}

/// How to check.
#[derive(Clone, Debug, Default)]
pub struct CheckOptions {
    /// What follows a compared tensor.
    pub feed: Feed,
    /// What differences are forgiven.
    pub tolerances: Tolerances,
    /// Keep the tensors of points with mismatches, for explanations.
    pub keep: bool,
}

/// Runs `path` on a trace's tokens and compares every tensor that the trace holds.
///
/// # Errors
///
/// A trace without tensors, of another shape than the model, with token ids it does not have, or
/// without the tokens that a cumulative run needs; a local check in which nothing can be judged.
pub fn check(path: &dyn Engine, trace: &TraceFile, options: &CheckOptions) -> Result<CheckReport> {
    let points = |sequences: &[Points]| sequences.iter().any(|points| !points.is_empty());
    let steps_hold_points = trace.steps.iter().any(|s| points(&s.sequences));
    if !points(&trace.sequences) && !steps_hold_points {
        return Err(SimError::value(
            "trace",
            "at least one tensor, such as layer_00/conv_out",
            "none",
        ));
    }
    let layers = path.config().n_layers;
    if trace.layers() > layers {
        return Err(SimError::value(
            "trace",
            format_args!("blocks 0 to {}, as the model has", layers - 1),
            format_args!("block {}", trace.layers() - 1),
        ));
    }
    let mut run = Check {
        path,
        trace,
        options,
        found: Found::default(),
    };
    for sequence in 0..trace.batch() {
        run.sequence(sequence)?;
    }
    let report = run.report();
    if report.summary.compared() == 0 && report.summary.missing.is_empty() {
        return Err(SimError::value(
            "trace",
            "tensors whose inputs are in the file too (or --cumulative)",
            format_args!("{} elements that are inputs only", report.given()),
        ));
    }
    Ok(report)
}

/// A tensor of a trace: its decode step and its place.
type At = (Option<usize>, Place);

#[derive(Default)]
struct Found {
    results: BTreeMap<At, PointResult>,
    scales: BTreeMap<At, PointResult>,
    given: BTreeMap<At, usize>,
    kept: BTreeMap<At, Pairs>,
    /// Tensors that lie in a wider type, by how they do.
    wider: BTreeMap<String, BTreeSet<At>>,
}

struct Check<'a> {
    path: &'a dyn Engine,
    trace: &'a TraceFile,
    options: &'a CheckOptions,
    found: Found,
}

impl Check<'_> {
    fn sequence(&mut self, sequence: usize) -> Result<()> {
        let no_points = Points::new();
        let prefill = self.trace.sequences.get(sequence).unwrap_or(&no_points);
        let cumulative = self.options.feed == Feed::Cumulative;
        let mut known = Known::of(self.path);
        let mut run = self.path.begin();
        if !prefill.is_empty() || (cumulative && !self.trace.steps.is_empty()) {
            let tokens = self.prefill_tokens(sequence, prefill, &mut known)?;
            let rows = match prefill.contains_key(&Place::end(TracePoint::Logits)) {
                true => LogitRows::All,
                false => LogitRows::None,
            };
            let mut probe = self.probe(None, sequence, prefill, known);
            run.prefill(&tokens, rows, &mut probe)?;
            known = probe.known;
        }
        for step in &self.trace.steps {
            let points = step.sequences.get(sequence).unwrap_or(&no_points);
            known.next_token(step.tokens.get(sequence).is_some());
            let token = match step.tokens.get(sequence) {
                Some(token) => *token,
                None if cumulative => {
                    return Err(SimError::value(
                        format_args!("step_{}/token", step.index),
                        "the token of the step, to run freely",
                        "no such key",
                    ));
                }
                None => 0,
            };
            let mut probe = self.probe(Some(step.index), sequence, points, known);
            run.decode(token, &mut probe)?;
            known = probe.known;
        }
        Ok(())
    }

    fn probe<'b>(
        &'b mut self,
        step: Option<usize>,
        sequence: usize,
        points: &'b Points,
        known: Known,
    ) -> Comparer<'b> {
        Comparer {
            trace: self.trace,
            options: self.options,
            step,
            sequence,
            points,
            known,
            found: &mut self.found,
        }
    }

    /// The tokens of a prefill. A local check of a file without them runs on any, of the length of
    /// its tensors, and takes the embedding as unknown.
    fn prefill_tokens(
        &self,
        sequence: usize,
        points: &Points,
        known: &mut Known,
    ) -> Result<Vec<u32>> {
        if let Some(tokens) = &self.trace.tokens {
            known.prefill(true);
            return Ok(tokens.row(sequence).to_vec());
        }
        if self.options.feed == Feed::Cumulative {
            return Err(SimError::value(
                "trace",
                "tokens or prefill_tokens, to run freely from (or --local)",
                "neither",
            ));
        }
        known.prefill(false);
        let whole =
            |(place, _): &(&Place, &Value)| !place.point.is_state() && !place.point.is_scale();
        match points.iter().find(whole) {
            Some((_, value)) => Ok(vec![0; value.dim().0]),
            None => Err(SimError::value("trace", "tokens", "states alone")),
        }
    }

    fn report(self) -> CheckReport {
        let Found {
            results,
            scales,
            given,
            kept,
            wider,
        } = self.found;
        let mut places: BTreeSet<At> = BTreeSet::new();
        for points in &self.trace.sequences {
            places.extend(points.keys().map(|place| (None, *place)));
        }
        for step in &self.trace.steps {
            for points in &step.sequences {
                places.extend(points.keys().map(|place| (Some(step.index), *place)));
            }
        }
        let mut places: Vec<At> = places.into_iter().collect();
        places.sort_by_key(|(step, place)| (*step, place.layer.is_none(), *place));
        let mut report = CheckReport {
            kept,
            remarks: wider.iter().filter_map(lying).collect(),
            ..CheckReport::default()
        };
        for at in places {
            if let Some(elements) = given.get(&at) {
                report.given.push(Given {
                    step: at.0,
                    layer: at.1.layer,
                    point: at.1.point.name(),
                    elements: *elements,
                });
            } else if let Some(result) = results.get(&at) {
                report.summary.points.push(result.clone());
            } else {
                report.summary.missing.push(key(at));
            }
            report.summary.points.extend(scales.get(&at).cloned());
        }
        let unseen = self.trace.scales.keys().filter(|place| {
            let seen = |(_, other): &At| other == *place;
            !scales.keys().any(seen) && !given.keys().any(seen)
        });
        let unseen = unseen.map(|place| format!("scale/{}", place.key()));
        report.summary.missing.extend(unseen);
        report.summary.missing.extend(self.trace.unknown.clone());
        report
    }
}

/// Compares what it is shown with the file's tensors and, in a local check, puts those in place.
struct Comparer<'a> {
    trace: &'a TraceFile,
    options: &'a CheckOptions,
    step: Option<usize>,
    sequence: usize,
    points: &'a Points,
    known: Known,
    found: &'a mut Found,
}

impl Probe for Comparer<'_> {
    fn wants(&self, place: Place) -> bool {
        self.points.contains_key(&place)
    }

    fn counts(&self) -> bool {
        false
    }

    fn visit(&mut self, place: Place, value: &mut Tensor) -> Result<()> {
        let at = (self.step, place);
        let expected = &self.points[&place];
        let (found, scale) = Value::from_tensor(value.clone());
        // Values that lie in a wider type are of the run's type.
        let own = expected.in_type(found.dtype());
        if let Some(Cow::Owned(own)) = &own {
            let (wide, own) = (expected.dtype(), own.dtype());
            let lying = format!("{own} values in {wide}");
            self.found.wider.entry(lying).or_default().insert(at);
        }
        let expected = own.as_deref().unwrap_or(expected);
        let floats = expected.dtype() != "i8" && found.dtype() != "i8";
        let local = self.options.feed == Feed::Local;
        if local && !self.known.knows(place) {
            // What goes in has to be what the run can read; nothing reads logits.
            let other_type = expected.dtype() != found.dtype();
            let unread = floats && place.point == TracePoint::Logits;
            if expected.dim() != found.dim() || other_type && !unread {
                let key = self.key(place);
                return Err(unlike(key, &found.describe(), &expected.describe()));
            }
            *self.found.given.entry(at).or_default() += expected.elements().len();
        } else {
            let tolerance = self.options.tolerances.of(place);
            let result = self.found.results.entry(at).or_insert_with(|| PointResult {
                step: self.step,
                ..PointResult::new(place, tolerance)
            });
            if !floats && expected.dtype() != found.dtype() {
                return Err(unlike(self.key(place), found.dtype(), expected.dtype()));
            }
            result.add_value(self.sequence, expected, &found)?;
            self.compare_scale(place, scale)?;
            if self.options.keep && self.found.results[&at].mismatched > 0 {
                let pair = (expected.clone(), found.clone(), scale);
                self.found.kept.entry(at).or_default().push(pair);
            }
        }
        if local {
            self.known.given(place);
            // Another float type cannot take the tensor's place.
            if expected.dtype() == found.dtype() {
                *value = put_back(value, expected.clone());
            }
        }
        Ok(())
    }
}

impl Comparer<'_> {
    fn key(&self, place: Place) -> String {
        key((self.step, place))
    }

    /// A file may tell the scale of its codes; then it has to be the model's.
    fn compare_scale(&mut self, place: Place, found: Option<Scale>) -> Result<()> {
        let (Some(expected), Some(found)) = (self.trace.scales.get(&place), found) else {
            return Ok(());
        };
        let at = (self.step, place);
        let result = self.found.scales.entry(at).or_insert_with(|| PointResult {
            step: self.step,
            layer: place.layer,
            ..PointResult::named(format!("{}/scale", place.point.name()), Tolerance::Exact)
        });
        let (x, y) = ([expected.get()], [found.get()]);
        result.add(&[self.sequence], &[1], Elements::F32(&x), Elements::F32(&y))
    }
}

/// A tensor's name in files.
fn key((step, place): At) -> String {
    match step {
        Some(step) => format!("step_{step}/{}", step_key(place)),
        None => place.key(),
    }
}

/// What is said of tensors that lie in a wider type.
fn lying((how, tensors): (&String, &BTreeSet<At>)) -> Option<String> {
    let first = key(*tensors.first()?);
    Some(match tensors.len() {
        1 => format!("{first}: {how}"),
        count => format!("{count} tensors ({first} first): {how}"),
    })
}

/// A tensor of the file that is none of the run.
fn unlike(key: String, run: &str, file: &str) -> SimError {
    SimError::value(
        key,
        format_args!("{run}, as the run has it"),
        format_args!("{file} in the file"),
    )
}

/// The file's elements as the tensor they replace: codes keep its scale.
fn put_back(value: &Tensor, file: Value) -> Tensor {
    match (value, file) {
        (Tensor::Codes(_), Value::I8(codes)) => Tensor::Codes(codes),
        (value, file) => file.into_tensor(value.scale()),
    }
}
