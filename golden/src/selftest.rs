//! Would a flipped bit be noticed? Flips single bits in memory and looks whether the checks say so.
//!
//! | kind | flipped | noticed by |
//! |---|---|---|
//! | golden values | vectors of operations, tensors of a trace | `check op`, `check` |
//! | scales, weights | the model's, and those of operations | the same, with the model or the case altered |
//! | tables | coefficients of the special-function unit | the results measured on the device |
//!
//! A flip of a golden value must be noticed. A flip of a scale or a weight may change nothing (its
//! low bits are rounded away): then the tensors with and without it are equal byte for byte, and it
//! counts as *no effect*. A flip that changes a tensor and is not reported is *missed*.

mod model;
mod operations;
mod tables;

use crate::npz::NpzReader;
use crate::ops::Op;
use crate::trace_file::TraceFile;
use scalescope_sim::error::{Result, SimError};
use scalescope_sim::random::Congruential;
use serde::Serialize;

/// What became of the flips of one kind.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Kind {
    /// What was flipped.
    pub kind: &'static str,
    /// Flips that a check reported, or that a range check refused.
    pub detected: usize,
    /// Flips that change no compared result.
    pub no_effect: usize,
    /// Flips that change a result and were not reported.
    pub missed: usize,
    /// Where those were.
    pub missed_places: Vec<String>,
}

/// What became of one flip.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fate {
    Detected,
    NoEffect,
    Missed,
}

impl Kind {
    fn new(kind: &'static str) -> Self {
        Self {
            kind,
            ..Self::default()
        }
    }

    /// All flips of the kind.
    pub fn flips(&self) -> usize {
        self.detected + self.no_effect + self.missed
    }

    fn add(&mut self, fate: Fate, place: impl FnOnce() -> String) {
        match fate {
            Fate::Detected => self.detected += 1,
            Fate::NoEffect => self.no_effect += 1,
            Fate::Missed => {
                self.missed += 1;
                self.missed_places.push(place());
            }
        }
    }
}

impl Fate {
    /// From what a check said and what the bytes say.
    fn of(reported: bool, changed: bool) -> Self {
        match (reported, changed) {
            (true, _) => Fate::Detected,
            (false, false) => Fate::NoEffect,
            (false, true) => Fate::Missed,
        }
    }
}

/// The result of a self-test.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct SelftestReport {
    /// One entry a kind.
    pub kinds: Vec<Kind>,
}

impl SelftestReport {
    /// Whether nothing was missed and every kind of flip was noticed at least once.
    pub fn passed(&self) -> bool {
        let good = |kind: &Kind| kind.missed == 0 && kind.detected > 0;
        !self.kinds.is_empty() && self.kinds.iter().all(good)
    }
}

/// The golden data inside the program: vectors of every operation, and a decode trace.
static OPERATIONS: [(Op, &[u8]); 7] = [
    (
        Op::Conv1dSilu,
        include_bytes!("../data/ops/conv1d_silu.npz"),
    ),
    (
        Op::Conv1dUpdate,
        include_bytes!("../data/ops/conv1d_update.npz"),
    ),
    (
        Op::SelectiveScan,
        include_bytes!("../data/ops/selective_scan.npz"),
    ),
    (
        Op::SelectiveScanUpdate,
        include_bytes!("../data/ops/selective_scan_update.npz"),
    ),
    (
        Op::HadamardQuant,
        include_bytes!("../data/ops/hadamard_quant.npz"),
    ),
    (Op::Linear, include_bytes!("../data/ops/linear.npz")),
    (
        Op::RmsNormQuant,
        include_bytes!("../data/ops/rmsnorm_quant.npz"),
    ),
];

static TRACE: &[u8] = include_bytes!("../data/trace/decode_after64_steps0-3.npz");

/// Vectors of an operation that are part of the program.
pub fn embedded_vectors(op: Op) -> Result<crate::check_op::Vectors> {
    let (_, bytes) = OPERATIONS
        .iter()
        .find(|(other, _)| *other == op)
        .expect("every operation has vectors");
    let mut npz = NpzReader::from_bytes(op.name(), bytes)?;
    crate::check_op::Vectors::from_npz(op, &mut npz)
}

/// A decode trace of the sample model in mode 0 that is part of the program.
pub fn embedded_trace() -> Result<TraceFile> {
    TraceFile::from_npz(&mut NpzReader::from_bytes("decode trace", TRACE)?)
}

/// Runs the self-test. `seed` chooses the sampled positions.
///
/// # Errors
///
/// The checks fail before anything was flipped.
pub fn selftest(seed: u64) -> Result<SelftestReport> {
    let mut random = Congruential(seed);
    let mut kinds = operations::kinds(&mut random)?;
    kinds.extend(model::kinds(&mut random)?);
    kinds.extend(tables::kinds()?);
    Ok(SelftestReport { kinds })
}

/// The program disagrees with its own golden data.
fn broken(what: impl std::fmt::Display, found: impl std::fmt::Display) -> SimError {
    SimError::value(what, "equal before any flip", found)
}
