//! A trace in memory and as a `.npz`: every recorded tensor of a prefill, of decode steps, or both.
//!
//! | key | type | shape |
//! |---|---|---|
//! | `tokens` or `prefill_tokens` | integers | `[B, L]`, `[L]` if B is 1 |
//! | `layer_07/conv_out` and so on, `final/residual`, `final/logits` | i8, f16, f32 | `[B, L, channels]`, states `[B, E, N]`; `[L, channels]` if B is 1 |
//! | `step_3/token` | integers | `[B]` or `[B, 1]` |
//! | `step_3/layer_07/conv_out` and so on, `step_3/logits` | i8, f16, f32 | `[B, channels]` or `[B, 1, channels]`, states `[B, E, N]` |
//! | `scale/layer_07/conv_out` and so on | f32 | one value: the step of these INT8 codes, in prefill and decode |
//! | `meta` | u8 | JSON, see [`Meta`] |
//!
//! B sequences, L tokens each. Keys of no such form are listed in [`TraceFile::unknown`].

pub mod counterpart;
mod digest;
mod open;
mod read;
mod source;
mod spool;
#[cfg(test)]
mod tests;
mod write;

pub use digest::model_digest;
pub use open::OpenTrace;
pub use spool::{SequenceProbe, TraceSpool};

use crate::value::Value;
use ndarray::Array2;
use scalescope_sim::error::{Result, SimError};
use scalescope_sim::quant::Scale;
use scalescope_sim::trace::{Place, Recorder, Tensor};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// Sequences that a trace may have.
pub const MAX_SEQUENCES: usize = 1024;

/// The tensors of one sequence.
pub type Points = BTreeMap<Place, Value>;

/// What a file of traced tensors holds.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct TraceFile {
    /// Token ids of the prefill, `[B, L]`.
    pub tokens: Option<Array2<u32>>,
    /// Tensors of the prefill, one map a sequence.
    pub sequences: Vec<Points>,
    /// Decode steps, in order.
    pub steps: Vec<DecodeStep>,
    /// The step of INT8 tensors. Golden files have none: the model's own apply.
    pub scales: BTreeMap<Place, Scale>,
    /// Where the trace comes from.
    pub meta: Option<Meta>,
    /// Keys that were not understood, sorted.
    pub unknown: Vec<String>,
    /// Tensors that lie in another type than their own and were read as their own, to be told.
    pub remarks: Vec<String>,
}

/// One decode step.
#[derive(Clone, Debug, PartialEq)]
pub struct DecodeStep {
    /// Its number; 0 follows the prefill.
    pub index: usize,
    /// The token fed, one a sequence; empty if the file does not tell.
    pub tokens: Vec<u32>,
    /// Tensors, one map a sequence; sequences have one row each.
    pub sequences: Vec<Points>,
}

/// Where a trace comes from.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Meta {
    /// The mode's name.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mode: Option<String>,
    /// The profile's name.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub profile: Option<String>,
    /// Hash of the profile's rules, [`scalescope_sim::profile::Profile::hash`].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub profile_hash: Option<String>,
    /// Digest of the model, [`model_digest`].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub model: Option<String>,
    /// Anything else.
    #[serde(flatten)]
    pub other: serde_json::Map<String, serde_json::Value>,
}

/// Name of a point within a decode step: `layer_07/conv_out`, `logits`.
pub(crate) fn step_key(place: Place) -> String {
    match place.layer {
        Some(_) => place.key(),
        None => place.point.name().to_owned(),
    }
}

/// Places in the order of the data: blocks first, then what follows the last one.
pub fn in_data_order(places: impl IntoIterator<Item = Place>) -> Vec<Place> {
    let mut places: Vec<Place> = places.into_iter().collect();
    places.sort_by_key(|place| (place.layer.is_none(), place.layer, place.point));
    places.dedup();
    places
}

impl TraceFile {
    /// The same trace with every block one lower; `None` if it has a block 0, or none at all.
    pub fn numbered_from_0(&self) -> Option<Self> {
        let steps = self.steps.iter().flat_map(|step| &step.sequences);
        let places = self.sequences.iter().chain(steps).flat_map(|s| s.keys());
        let layers: Vec<usize> = places.filter_map(|place| place.layer).collect();
        if layers.is_empty() || layers.contains(&0) {
            return None;
        }
        let all = |points: &Points| -> Points {
            points
                .iter()
                .map(|(place, value)| (one_block_lower(*place), value.clone()))
                .collect()
        };
        let sequences = |of: &[Points]| of.iter().map(all).collect();
        Some(Self {
            sequences: sequences(&self.sequences),
            steps: (self.steps.iter())
                .map(|step| DecodeStep {
                    sequences: sequences(&step.sequences),
                    ..step.clone()
                })
                .collect(),
            scales: (self.scales.iter())
                .filter(|(place, _)| place.layer != Some(0))
                .map(|(place, scale)| (one_block_lower(*place), *scale))
                .collect(),
            ..self.clone()
        })
    }

    /// A trace of recorded prefills: `tokens` is `[B, L]`, one recorder a row.
    pub fn from_recorders(
        tokens: Array2<u32>,
        recorders: impl IntoIterator<Item = Recorder>,
    ) -> Result<Self> {
        let mut trace = Self::default();
        let mut sequences = Vec::new();
        for recorder in recorders {
            sequences.push(trace.take(recorder)?);
        }
        check_sequences(&sequences, tokens.nrows())?;
        let length = tokens.ncols();
        for (place, value) in sequences.iter().flatten() {
            let rows = value.dim().0;
            if !allowed_rows(*place, rows, length) {
                return Err(SimError::value(
                    place,
                    format_args!("one row for each of {length} tokens"),
                    format_args!("{rows} rows"),
                ));
            }
        }
        trace.tokens = Some(crate::value::standard(tokens));
        trace.sequences = sequences;
        Ok(trace)
    }

    /// Adds a recorded decode step: one token and one recorder a sequence.
    pub fn push_step(
        &mut self,
        tokens: &[u32],
        recorders: impl IntoIterator<Item = Recorder>,
    ) -> Result<()> {
        let mut sequences = Vec::new();
        for recorder in recorders {
            sequences.push(self.take(recorder)?);
        }
        check_sequences(&sequences, tokens.len())?;
        for (place, value) in sequences.iter().flatten() {
            let rows = value.dim().0;
            if !place.point.is_state() && rows != 1 {
                return Err(SimError::value(
                    place,
                    "one row",
                    format_args!("{rows} rows"),
                ));
            }
        }
        self.steps.push(DecodeStep {
            index: self.steps.last().map_or(0, |step| step.index + 1),
            tokens: tokens.to_vec(),
            sequences,
        });
        Ok(())
    }

    /// Splits recorded tensors into values and scales.
    fn take(&mut self, recorder: Recorder) -> Result<Points> {
        let mut points = Points::new();
        for (place, tensor) in recorder.tensors {
            let (value, scale) = Value::from_tensor(tensor);
            if let Some(scale) = scale {
                let known = *self.scales.entry(place).or_insert(scale);
                if known != scale {
                    return Err(SimError::value(
                        place,
                        format_args!("the scale of the other sequences, {known:?}"),
                        format_args!("{scale:?}"),
                    ));
                }
            }
            points.insert(place, value);
        }
        Ok(points)
    }

    /// The token ids of the prefill; an error if the file has none.
    pub fn tokens(&self) -> Result<&Array2<u32>> {
        self.tokens
            .as_ref()
            .ok_or_else(|| SimError::value("tokens", "token ids [B, L]", "no such key"))
    }

    /// Number of sequences B.
    pub fn batch(&self) -> usize {
        match (&self.tokens, self.steps.first()) {
            (Some(tokens), _) => tokens.nrows(),
            (None, _) if !self.sequences.is_empty() => self.sequences.len(),
            (None, Some(step)) => step.sequences.len().max(step.tokens.len()),
            (None, None) => 0,
        }
    }

    /// Every place of the prefill, in the order of the data.
    pub fn places(&self) -> Vec<Place> {
        in_data_order(self.sequences.iter().flat_map(|s| s.keys().copied()))
    }

    /// The number of blocks that the file mentions: one more than the highest.
    pub fn layers(&self) -> usize {
        let steps = self.steps.iter().flat_map(|step| &step.sequences);
        let places = self.sequences.iter().chain(steps).flat_map(|s| s.keys());
        places
            .filter_map(|place| place.layer)
            .max()
            .map_or(0, |layer| layer + 1)
    }

    /// A tensor of a prefill as the datapath takes it, with the file's scale if it has one.
    pub fn tensor(&self, sequence: usize, place: Place) -> Option<Tensor> {
        let value = self.sequences.get(sequence)?.get(&place)?;
        Some(value.clone().into_tensor(self.scales.get(&place).copied()))
    }
}

impl DecodeStep {
    /// Every place of the step, in the order of the data.
    pub fn places(&self) -> Vec<Place> {
        in_data_order(self.sequences.iter().flat_map(|s| s.keys().copied()))
    }
}

/// The same place one block lower; block 0 stays.
fn one_block_lower(place: Place) -> Place {
    Place {
        layer: place.layer.map(|layer| layer.saturating_sub(1)),
        ..place
    }
}

/// Rows that a prefill tensor may have.
pub(crate) fn allowed_rows(place: Place, rows: usize, length: usize) -> bool {
    match place.point {
        point if point.is_state() => true,
        point if point.is_scale() => rows == 1 || rows == length,
        _ => rows == length,
    }
}

/// Sequences of one file hold the same places with the same types and shapes.
fn check_sequences(sequences: &[Points], batch: usize) -> Result<()> {
    if sequences.len() != batch {
        return Err(SimError::value(
            "sequences",
            format_args!("{batch}, one for each row of tokens"),
            sequences.len(),
        ));
    }
    let Some((first, others)) = sequences.split_first() else {
        return Ok(());
    };
    for (number, other) in others.iter().enumerate() {
        if let Some(place) = in_data_order(first.keys().chain(other.keys()).copied())
            .into_iter()
            .find(|p| first.get(p).map(Value::describe) != other.get(p).map(Value::describe))
        {
            let words = |points: &Points| {
                points
                    .get(&place)
                    .map_or("no such tensor".to_owned(), Value::describe)
            };
            return Err(SimError::value(
                format_args!("{place} of sequence {}", number + 1),
                words(first),
                words(other),
            ));
        }
    }
    Ok(())
}
