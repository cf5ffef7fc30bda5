//! Many points, one verdict.

use super::PointResult;
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
