//! Vectors of single operations: inputs, parameters, and what the reference kernel made of them.
//!
//! A file holds cases, keys `case_0/x` and so on, or one case with bare keys. Axes: B sequences,
//! L tokens, C channels, K taps, N states, I inputs, O outputs.

pub(crate) mod array_layout;
mod cases;
mod group;
mod linear;
mod linear_int4;
#[cfg(test)]
mod tests;

pub use cases::{
    Conv1dSilu, Conv1dUpdate, HadamardQuant, RmsNormQuant, ScanParameters, SelectiveScan,
    SelectiveScanUpdate,
};
pub use linear::{Linear, LinearCase, LinearInput};
pub use linear_int4::{Expected, Int4Case, Int4Linear};

use crate::compare::{PointResult, Summary, Tolerance};
use crate::npz::{Array, NpzReader};
use crate::value::Elements;
use group::Group;
use scalescope_sim::error::{Result, SimError};
use std::collections::BTreeMap;
use std::path::Path;

/// An operation that vectors exist for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Op {
    /// Causal convolution and SiLU over a sequence.
    Conv1dSilu,
    /// The same, one token with a state.
    Conv1dUpdate,
    /// Selective scan over a sequence.
    SelectiveScan,
    /// The same, one token with an INT8 state.
    SelectiveScanUpdate,
    /// Hadamard transform and quantization.
    HadamardQuant,
    /// Matrix product of INT8 codes with INT8 or four-bit weights, and requantization.
    Linear,
    /// Residual sum, RMSNorm and quantization.
    RmsNormQuant,
}

impl Op {
    /// Every operation.
    pub const ALL: [Op; 7] = [
        Op::Conv1dSilu,
        Op::Conv1dUpdate,
        Op::SelectiveScan,
        Op::SelectiveScanUpdate,
        Op::HadamardQuant,
        Op::Linear,
        Op::RmsNormQuant,
    ];

    /// The name, also of its file of vectors.
    pub fn name(self) -> &'static str {
        match self {
            Op::Conv1dSilu => "conv1d_silu",
            Op::Conv1dUpdate => "conv1d_update",
            Op::SelectiveScan => "selective_scan",
            Op::SelectiveScanUpdate => "selective_scan_update",
            Op::HadamardQuant => "hadamard_quant",
            Op::Linear => "linear",
            Op::RmsNormQuant => "rmsnorm_quant",
        }
    }

    /// The operation of a name.
    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|op| op.name() == name)
    }
}

/// An expected or computed output of a case.
#[derive(Clone, Copy, Debug)]
pub struct Output<'a> {
    /// Its key within the case.
    pub key: &'static str,
    /// Elements, row-major.
    pub elements: Elements<'a>,
    /// Lengths of the axes.
    pub shape: &'a [usize],
}

impl<'a> Output<'a> {
    /// The output of a key, if the file has it.
    pub(crate) fn of<T, D>(
        key: &'static str,
        array: &'a Option<ndarray::Array<T, D>>,
    ) -> Option<Self>
    where
        D: ndarray::Dimension,
        Elements<'a>: From<&'a [T]>,
    {
        array.as_ref().map(|array| Self {
            key,
            elements: array
                .as_slice()
                .expect("arrays of files are row-major")
                .into(),
            shape: array.shape(),
        })
    }
}

/// One case of an operation.
pub trait OpCase: Sized {
    /// The operation.
    const OP: Op;

    /// Reads a case and checks that its arrays fit together.
    #[doc(hidden)]
    fn parse(group: &mut Group) -> Result<Self>;

    /// The case's name in the file; empty for bare keys.
    fn name(&self) -> &str;

    /// The expected outputs that the file holds.
    fn expected(&self) -> Vec<Output<'_>>;
}

/// The cases of a file.
#[derive(Clone, Debug, PartialEq)]
pub struct OpVectors<T> {
    /// Cases, in the order of their numbers.
    pub cases: Vec<T>,
    /// Matrices that belong to no case: the Hadamard matrices beside their vectors.
    pub matrices: BTreeMap<String, Array>,
    /// Keys that were not understood, sorted.
    pub unknown: Vec<String>,
}

/// Reads the vectors of an operation.
pub fn load<T: OpCase>(path: impl AsRef<Path>) -> Result<OpVectors<T>> {
    let path = path.as_ref();
    read(&mut NpzReader::open(path)?).map_err(|e| e.in_file(path))
}

/// Takes the vectors of an operation from an open file; every case has an output at least.
pub fn read<T: OpCase>(npz: &mut NpzReader) -> Result<OpVectors<T>> {
    let vectors = read_inputs::<T>(npz)?;
    match vectors.cases.iter().find(|case| case.expected().is_empty()) {
        None => Ok(vectors),
        Some(case) => {
            let label = match case.name() {
                "" => "the case",
                name => name,
            };
            Err(SimError::value(
                format_args!("{}: {label}", T::OP.name()),
                "at least one output",
                "inputs only",
            ))
        }
    }
}

/// Takes the cases of an operation from an open file, with outputs or without.
pub fn read_inputs<T: OpCase>(npz: &mut NpzReader) -> Result<OpVectors<T>> {
    let names: Vec<String> = npz.names().map(str::to_owned).collect();
    let mut groups: BTreeMap<(String, usize, String), Group> = BTreeMap::new();
    let mut vectors = OpVectors {
        cases: Vec::new(),
        matrices: BTreeMap::new(),
        unknown: Vec::new(),
    };
    for name in names {
        let array = npz.read(&name)?;
        let (case, key) = name.split_once('/').unwrap_or(("", &name));
        if case.is_empty() && is_hadamard_matrix(T::OP, key, &array) {
            vectors.matrices.insert(name, array);
            continue;
        }
        groups
            .entry(in_order(case))
            .or_insert_with(|| Group::new(case))
            .insert(key, array);
    }
    for (_, mut group) in groups {
        let case = match T::parse(&mut group) {
            Ok(case) => case,
            Err(error) => {
                let arrays = arrays_of(npz, &group.name())?;
                return Err(fitting::<T>(error, &group.name(), &arrays));
            }
        };
        vectors.unknown.extend(group.leftover());
        vectors.cases.push(case);
    }
    if vectors.cases.is_empty() {
        return Err(SimError::value(T::OP.name(), "at least one case", "none"));
    }
    Ok(vectors)
}

/// The arrays of a case as the file has them.
pub(crate) fn arrays_of(npz: &mut NpzReader, case: &str) -> Result<BTreeMap<String, Array>> {
    let names: Vec<String> = npz.names().map(str::to_owned).collect();
    let mut arrays = BTreeMap::new();
    for name in names {
        let (own, key) = name.split_once('/').unwrap_or(("", &name));
        if own == case {
            arrays.insert(key.to_owned(), npz.read(&name)?);
        }
    }
    Ok(arrays)
}

/// A case from arrays of its own.
pub(crate) fn case_of<T: OpCase>(case: &str, arrays: &BTreeMap<String, Array>) -> Result<T> {
    let mut group = Group::new(case);
    for (key, array) in arrays {
        group.insert(key, array.clone());
    }
    T::parse(&mut group)
}

/// The error of a case whose arrays do not fit together, with the way in which they would.
fn fitting<T: OpCase>(error: SimError, case: &str, arrays: &BTreeMap<String, Array>) -> SimError {
    let ways = array_layout::ways(arrays, |arrays| case_of::<T>(case, arrays).is_ok());
    match (error, ways.is_empty()) {
        (
            SimError::Value {
                item,
                expected,
                found,
            },
            false,
        ) => {
            let ways = ways.join(" or ");
            SimError::value(
                item,
                expected,
                format_args!("{found}; the shapes and types fit with {ways}"),
            )
        }
        (error, _) => error,
    }
}

/// `case_2` before `case_10`.
fn in_order(case: &str) -> (String, usize, String) {
    let head = case.trim_end_matches(|c: char| c.is_ascii_digit());
    let number = case[head.len()..].parse().unwrap_or(0);
    (head.to_owned(), number, case.to_owned())
}

fn is_hadamard_matrix(op: Op, key: &str, array: &Array) -> bool {
    let named = key.starts_with("matrix_")
        || key
            .strip_prefix('h')
            .is_some_and(|n| n.parse::<usize>().is_ok());
    op == Op::HadamardQuant && named && matches!(*array.shape(), [n, m] if n == m)
}

/// Compares what was computed for a case with what the file expects. Outputs that were not computed
/// are listed as missing.
pub fn compare<T: OpCase>(
    case: &T,
    found: &[Output<'_>],
    tolerance: Tolerance,
    summary: &mut Summary,
) -> Result<()> {
    for expected in case.expected() {
        let key = match case.name() {
            "" => expected.key.to_owned(),
            name => format!("{name}/{}", expected.key),
        };
        let Some(found) = found.iter().find(|output| output.key == expected.key) else {
            summary.missing.push(key);
            continue;
        };
        if found.shape != expected.shape {
            let words =
                |output: &Output<'_>| format!("{} {:?}", output.elements.dtype(), output.shape);
            return Err(SimError::value(key, words(&expected), words(found)));
        }
        let mut result = PointResult::named(key, tolerance);
        result.add(&[], expected.shape, expected.elements, found.elements)?;
        summary.points.push(result);
    }
    Ok(())
}
