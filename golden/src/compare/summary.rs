//! Many points, one verdict.

use super::{PointResult, Tolerances};
use crate::trace_file::{Points, TraceFile, in_data_order, step_key};
use scalescope_sim::error::{Result, SimError};
use serde::ser::SerializeStruct;
use serde::{Serialize, Serializer};
use std::fmt;

/// The outcome of a comparison.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Verdict {
    /// Everything was compared and is equal.
    Equal,
    /// Something differs.
    Mismatch,
    /// What was compared is equal, but something was not there.
    Incomplete,
    /// There are NaN or ∞.
    NonFinite,
    /// Nothing was compared.
    Empty,
}

impl Verdict {
    /// 0 equal, 1 a mismatch, 2 data that cannot be judged.
    pub fn exit_code(self) -> u8 {
        match self {
            Verdict::Equal => 0,
            Verdict::Mismatch => 1,
            Verdict::Incomplete | Verdict::NonFinite | Verdict::Empty => 2,
        }
    }
}

/// The results of all points, and what could not be compared.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Summary {
    /// One result a point, in the order of the data.
    pub points: Vec<PointResult>,
    /// Keys that the reference has and the result lacks.
    pub missing: Vec<String>,
}

impl Summary {
    /// Elements compared.
    pub fn compared(&self) -> usize {
        self.points.iter().map(|p| p.compared).sum()
    }

    /// Elements that differ by more than their tolerance.
    pub fn mismatched(&self) -> usize {
        self.points.iter().map(|p| p.mismatched).sum()
    }

    /// Elements with NaN or ∞.
    pub fn non_finite(&self) -> usize {
        self.points.iter().map(|p| p.non_finite).sum()
    }

    /// The outcome. A point of which nothing was compared counts as missing.
    pub fn verdict(&self) -> Verdict {
        if self.compared() == 0 {
            Verdict::Empty
        } else if self.non_finite() > 0 {
            Verdict::NonFinite
        } else if self.mismatched() > 0 {
            Verdict::Mismatch
        } else if !self.missing.is_empty() || self.points.iter().any(|p| p.compared == 0) {
            Verdict::Incomplete
        } else {
            Verdict::Equal
        }
    }

    /// The process's exit code: 0 only if something was compared, all of it is equal and nothing
    /// is missing.
    pub fn exit_code(&self) -> u8 {
        self.verdict().exit_code()
    }
}

/// `compared N, mismatched M, missing K`
impl fmt::Display for Summary {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (compared, mismatched) = (self.compared(), self.mismatched());
        let missing = self.missing.len();
        write!(
            f,
            "compared {compared}, mismatched {mismatched}, missing {missing}"
        )?;
        match self.non_finite() {
            0 => Ok(()),
            bad => write!(f, ", NaN or infinite {bad}"),
        }
    }
}

impl Serialize for Summary {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut json = serializer.serialize_struct("Summary", 6)?;
        json.serialize_field("verdict", &self.verdict())?;
        json.serialize_field("compared", &self.compared())?;
        json.serialize_field("mismatched", &self.mismatched())?;
        json.serialize_field("non_finite", &self.non_finite())?;
        json.serialize_field("missing", &self.missing)?;
        json.serialize_field("points", &self.points)?;
        json.end()
    }
}

/// Compares every tensor of a reference trace, prefill and decode, with a result's. The result may
/// hold more.
///
/// Traces of other tokens or of another number of sequences are refused.
pub fn compare_traces(
    expected: &TraceFile,
    found: &TraceFile,
    tolerances: &Tolerances,
) -> Result<Summary> {
    if let (Some(x), Some(y)) = (&expected.tokens, &found.tokens) {
        if x.dim() != y.dim() {
            let words = |dim: (usize, usize)| format!("[{}, {}]", dim.0, dim.1);
            return Err(SimError::value("tokens", words(x.dim()), words(y.dim())));
        }
        if let Some(((b, t), id)) = x.indexed_iter().find(|(at, id)| y[*at] != **id) {
            return Err(SimError::value(
                format_args!("tokens[{b}, {t}]"),
                id,
                y[(b, t)],
            ));
        }
    }
    let mut summary = Summary::default();
    compare_sequences(
        &mut summary,
        None,
        &expected.sequences,
        &found.sequences,
        tolerances,
    )?;
    for step in &expected.steps {
        let other = found.steps.iter().find(|other| other.index == step.index);
        let head = format!("step_{}", step.index);
        if let Some(other) = other
            && !step.tokens.is_empty()
            && !other.tokens.is_empty()
            && step.tokens != other.tokens
        {
            return Err(SimError::value(
                format_args!("{head}/token"),
                format_args!("{:?}", step.tokens),
                format_args!("{:?}", other.tokens),
            ));
        }
        let sequences = other.map_or(&[][..], |other| &other.sequences);
        compare_sequences(
            &mut summary,
            Some(step.index),
            &step.sequences,
            sequences,
            tolerances,
        )?;
    }
    Ok(summary)
}

fn compare_sequences(
    summary: &mut Summary,
    step: Option<usize>,
    expected: &[Points],
    found: &[Points],
    tolerances: &Tolerances,
) -> Result<()> {
    if !expected.is_empty() && !found.is_empty() && expected.len() != found.len() {
        return Err(SimError::value("sequences", expected.len(), found.len()));
    }
    for place in in_data_order(expected.iter().flat_map(|s| s.keys().copied())) {
        let mut result = PointResult::new(place, tolerances.of(place));
        result.step = step;
        let pairs: Option<Vec<_>> = expected
            .iter()
            .enumerate()
            .map(|(b, points)| Some((b, points.get(&place)?, found.get(b)?.get(&place)?)))
            .collect();
        let Some(pairs) = pairs else {
            summary.missing.push(match step {
                Some(step) => format!("step_{step}/{}", step_key(place)),
                None => place.key(),
            });
            continue;
        };
        for (sequence, expected, found) in pairs {
            result.add_value(sequence, expected, found)?;
        }
        summary.points.push(result);
    }
    Ok(())
}
