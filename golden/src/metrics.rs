//! How far two tensors are apart. One table names every metric; the names are those of CSV, JSON and
//! HTML.
//!
//! Traps, and what happens in them:
//! - NaN or ∞ on either side, even on both: [`Reading::NonFinite`] for every metric of values, and
//!   the element counts as a mismatch.
//! - Nothing to compare: an error.
//! - A reference that is all zero: `normalized_l2` is 0 if the other is all zero too, else ∞;
//!   `sqnr_db` is ∞ or −∞; `cosine` is 1 or 0.
//! - +0 against −0: a mismatch (the bits differ) of 0 ulp and no error.

mod accumulate;
#[cfg(test)]
mod tests;

pub use accumulate::Accumulator;

use crate::value::Value;
use scalescope_sim::error::{Result, SimError};
use scalescope_sim::quant::Scale;
use serde::ser::SerializeMap;
use serde::{Serialize, Serializer};

/// A measure of the difference between a reference x and a result y.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Metric {
    /// Share of elements that differ.
    MismatchRate,
    /// Largest difference in steps of the grid.
    MaxAbsLsb,
    /// Largest difference.
    MaxAbsError,
    /// Mean of y − x.
    MeanError,
    /// Mean of (y − x)².
    Mse,
    /// √mse in steps of the grid.
    RmseOverScale,
    /// ‖x − y‖ / ‖x‖.
    NormalizedL2,
    /// 20·log₁₀(‖x‖ / ‖x − y‖).
    SqnrDb,
    /// Cosine of the angle between x and y.
    Cosine,
    /// Largest distance in representable values.
    UlpMax,
    /// Share of codes of y at the edge of the grid.
    SaturationRate,
    /// Distinct codes of y / 256.
    GridOccupancy,
    /// max|x| / (127 · scale of y).
    ScaleRatio,
}

/// Which way a metric is good.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Better {
    /// Small is good.
    Lower,
    /// Large is good.
    Higher,
    /// Zero is good, both signs occur.
    NearZero,
    /// One is good.
    NearOne,
}

/// A row of the table of metrics.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct MetricInfo {
    /// The metric.
    #[serde(skip)]
    pub metric: Metric,
    /// Its name everywhere.
    pub name: &'static str,
    /// Which way is good.
    pub better: Better,
    /// The unit of its values.
    pub unit: &'static str,
    /// What it says.
    pub doc: &'static str,
}

macro_rules! table {
    ($($metric:ident $name:literal $better:ident $unit:literal $doc:literal;)*) => {
        /// Every metric, in the order of tables and files.
        pub const METRICS: [MetricInfo; 13] = [$(MetricInfo {
            metric: Metric::$metric,
            name: $name,
            better: Better::$better,
            unit: $unit,
            doc: $doc,
        }),*];
    };
}

table! {
    MismatchRate "mismatch_rate" Lower "share" "elements whose bits differ; NaN and infinity always do";
    MaxAbsLsb "max_abs_lsb" Lower "steps" "off by N: largest |x - y| in steps of the INT8 grid";
    MaxAbsError "max_abs_error" Lower "as x" "largest |x - y|";
    MeanError "mean_error" NearZero "as x" "mean of y - x: the bias";
    Mse "mse" Lower "as x, squared" "mean of (y - x)^2";
    RmseOverScale "rmse_over_scale" Lower "steps" "root of mse in steps of the INT8 grid; 0.29 is rounding alone";
    NormalizedL2 "normalized_l2" Lower "ratio" "||x - y|| / ||x||";
    SqnrDb "sqnr_db" Higher "dB" "20 log10(||x|| / ||x - y||); infinite if equal";
    Cosine "cosine" Higher "ratio" "x.y / (||x|| ||y||)";
    UlpMax "ulp_max" Lower "ulp" "largest distance of floats in representable values";
    SaturationRate "saturation_rate" Lower "share" "codes of y that are -128 or 127";
    GridOccupancy "grid_occupancy" Higher "share" "distinct codes of y / 256";
    ScaleRatio "scale_ratio" NearOne "ratio" "max|x| / (127 scale of y): under 1 wastes codes, over 1 clips";
}

impl Metric {
    /// Its row of the table.
    pub fn info(self) -> &'static MetricInfo {
        METRICS
            .iter()
            .find(|row| row.metric == self)
            .expect("every metric has a row")
    }

    /// Its name everywhere.
    pub fn name(self) -> &'static str {
        self.info().name
    }

    /// The metric of a name.
    pub fn from_name(name: &str) -> Option<Self> {
        METRICS
            .iter()
            .find(|row| row.name == name)
            .map(|row| row.metric)
    }
}

/// What a metric says of two tensors.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Reading {
    /// A number; ±∞ where the definition gives it (no error at all: `sqnr_db` = ∞).
    Value(f64),
    /// The metric has no meaning for these types.
    NotApplicable,
    /// NaN or ∞ among the data: a failure.
    NonFinite,
}

impl Reading {
    /// The number, if there is one.
    pub fn value(self) -> Option<f64> {
        match self {
            Reading::Value(value) => Some(value),
            _ => None,
        }
    }
}

impl Serialize for Reading {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            Reading::Value(value) => serialize_number(value, serializer),
            Reading::NotApplicable => serializer.serialize_none(),
            Reading::NonFinite => serializer.serialize_str("non-finite"),
        }
    }
}

/// A number as JSON; NaN and ∞, which JSON lacks, as texts.
pub(crate) fn serialize_number<S: Serializer>(
    value: &f64,
    serializer: S,
) -> Result<S::Ok, S::Error> {
    if value.is_finite() {
        serializer.serialize_f64(*value)
    } else {
        serializer.collect_str(value)
    }
}

/// Every metric of one comparison.
#[derive(Clone, Debug, PartialEq)]
pub struct Metrics {
    /// Elements compared; at least one.
    pub compared: usize,
    /// Elements that differ.
    pub mismatched: usize,
    /// Elements with NaN or ∞ on either side.
    pub non_finite: usize,
    readings: [Reading; METRICS.len()],
}

impl Metrics {
    /// What a metric says.
    pub fn get(&self, metric: Metric) -> Reading {
        let row = METRICS.iter().position(|row| row.metric == metric);
        self.readings[row.expect("every metric has a row")]
    }

    /// Every metric with its reading, in the order of the table.
    pub fn iter(&self) -> impl Iterator<Item = (&'static MetricInfo, Reading)> + '_ {
        METRICS.iter().zip(self.readings)
    }

    /// Whether every element is equal and finite.
    pub fn is_equal(&self) -> bool {
        self.mismatched == 0 && self.non_finite == 0
    }
}

impl Serialize for Metrics {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut map = serializer.serialize_map(None)?;
        map.serialize_entry("compared", &self.compared)?;
        map.serialize_entry("mismatched", &self.mismatched)?;
        map.serialize_entry("non_finite", &self.non_finite)?;
        for (info, reading) in self.iter() {
            map.serialize_entry(info.name, &reading)?;
        }
        map.end()
    }
}

/// Metrics of one tensor pair.
pub fn measure(
    expected: (&Value, Option<Scale>),
    found: (&Value, Option<Scale>),
) -> Result<Metrics> {
    if expected.0.dim() != found.0.dim() {
        return Err(SimError::value(
            "tensor",
            expected.0.describe(),
            found.0.describe(),
        ));
    }
    let mut accumulator = Accumulator::new(expected.1, found.1);
    accumulator.add(expected.0.elements(), found.0.elements())?;
    accumulator.finish()
}
