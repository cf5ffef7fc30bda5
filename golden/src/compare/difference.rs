//! What a comparison of two traces says.

use super::{Mismatch, Tolerance};
use crate::layout::RecognisedLayout;
use crate::metrics::Metrics;
use scalescope_sim::quant::Scale;
use serde::ser::SerializeStruct;
use serde::{Serialize, Serializer};
use std::fmt;

/// One tensor of the reference against one of the result.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Difference {
    /// The decode step, if it is one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub step: Option<usize>,
    /// The block; `None` after the last one.
    pub layer: Option<usize>,
    /// What is compared.
    pub point: &'static str,
    /// The reference's tensor.
    pub expected: TensorInfo,
    /// The result's tensor.
    pub found: TensorInfo,
    /// Elements that differ by more than the tolerance.
    pub beyond_tolerance: usize,
    /// What was allowed.
    pub tolerance: Tolerance,
    /// The first element beyond the tolerance.
    pub first: Option<Mismatch>,
    /// Every metric; `None` where the shapes differ and only a layout can be told.
    pub metrics: Option<Metrics>,
    /// Layouts that would explain what differs.
    pub layouts: Vec<RecognisedLayout>,
}

/// Where a side's tensor comes from and what it is.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct TensorInfo {
    /// Its point, which may stand in for the one compared.
    pub point: &'static str,
    /// `i8`, `f16`, `f32`.
    #[serde(rename = "type")]
    pub dtype: &'static str,
    /// Sequences, rows, columns.
    pub shape: [usize; 3],
    /// The step of codes, if the file tells.
    pub scale: Option<Scale>,
}

/// What two traces have to do with each other.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Comparison {
    /// One entry a tensor, in the order of the data.
    pub points: Vec<Difference>,
    /// Keys that only one of them holds, and which.
    pub left_out: Vec<LeftOut>,
    /// Whether both tell the token ids (they are the same then).
    pub tokens_compared: bool,
}

/// A key that was not compared.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct LeftOut {
    /// The key.
    pub key: String,
    /// The trace it is in.
    pub only_in: OneTrace,
}

/// One of two traces.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum OneTrace {
    /// The reference, A.
    Expected,
    /// The result, B.
    Found,
}

impl fmt::Display for OneTrace {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            OneTrace::Expected => "A",
            OneTrace::Found => "B",
        })
    }
}

impl Difference {
    /// The point as tables show it: `step_3/layer_07/conv_out`, `final/logits`.
    pub fn key(&self) -> String {
        let step = self.step.map_or(String::new(), |s| format!("step_{s}/"));
        match (self.layer, self.step) {
            (Some(layer), _) => format!("{step}layer_{layer:02}/{}", self.point),
            (None, Some(_)) => format!("{step}{}", self.point),
            (None, None) => format!("final/{}", self.point),
        }
    }

    /// Elements compared.
    pub fn compared(&self) -> usize {
        self.expected.shape.iter().product()
    }

    /// Whether every element is the same, or as near as the tolerance asks.
    pub fn is_equal(&self) -> bool {
        self.beyond_tolerance == 0
    }
}

impl Comparison {
    /// Whether everything compared is equal.
    pub fn is_equal(&self) -> bool {
        self.points.iter().all(Difference::is_equal)
    }

    /// Elements compared.
    pub fn compared(&self) -> usize {
        self.points.iter().map(Difference::compared).sum()
    }

    /// Elements that differ by more than their tolerance.
    pub fn beyond_tolerance(&self) -> usize {
        self.points.iter().map(|p| p.beyond_tolerance).sum()
    }
}

impl Serialize for Comparison {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let verdict = match self.is_equal() {
            true => "equal",
            false => "mismatch",
        };
        let mut json = serializer.serialize_struct("Comparison", 6)?;
        json.serialize_field("verdict", verdict)?;
        json.serialize_field("compared", &self.compared())?;
        json.serialize_field("beyond_tolerance", &self.beyond_tolerance())?;
        json.serialize_field("tokens_compared", &self.tokens_compared)?;
        json.serialize_field("left_out", &self.left_out)?;
        json.serialize_field("points", &self.points)?;
        json.end()
    }
}
