//! Checks single operations against vectors: each case runs through the datapath's own steps, and
//! every output that the file holds is compared.

mod compute;
pub(crate) mod scales;
mod write;

pub use scales::{ScaleOf, scales};
pub use write::write_expected;

use crate::compare::{PointResult, Summary, Tolerance};
use crate::npz::{Array, NpzReader};
use crate::ops::array_layout::ways;
use crate::ops::{
    Conv1dSilu, Conv1dUpdate, HadamardQuant, LinearCase, LinearInput, Op, OpCase, RmsNormQuant,
    SelectiveScan, SelectiveScanUpdate, arrays_of, case_of, read, read_inputs,
};
use crate::value::Elements;
use half::f16;
use ndarray::ArrayD;
use scalescope_sim::error::{Result, SimError};
use scalescope_sim::profile::Arithmetic;
use std::borrow::Cow;
use std::collections::BTreeMap;
use std::path::Path;

/// The inputs of a case.
#[derive(Clone, Debug)]
pub enum Inputs {
    /// `conv1d_silu`.
    Conv1dSilu(Conv1dSilu),
    /// `conv1d_update`.
    Conv1dUpdate(Conv1dUpdate),
    /// `selective_scan`.
    SelectiveScan(SelectiveScan),
    /// `selective_scan_update`.
    SelectiveScanUpdate(SelectiveScanUpdate),
    /// `hadamard_quant`.
    HadamardQuant(HadamardQuant),
    /// `linear`.
    Linear(LinearCase),
    /// `rmsnorm_quant`.
    RmsNormQuant(RmsNormQuant),
    /// A Hadamard matrix that lies beside the vectors of `hadamard_quant`: its size.
    HadamardMatrix(usize),
}

impl Inputs {
    /// The lengths of the axes that cases of one kind share: channels, taps, states, inputs and outputs.
    pub(crate) fn sizes(&self) -> Vec<usize> {
        match self {
            Inputs::Conv1dSilu(c) => c.weight.shape().to_vec(),
            Inputs::Conv1dUpdate(c) => c.weight.shape().to_vec(),
            Inputs::SelectiveScan(c) => c.parameters.a_log.shape().to_vec(),
            Inputs::SelectiveScanUpdate(c) => c.parameters.a_log.shape().to_vec(),
            Inputs::HadamardQuant(c) => vec![c.x.ncols()],
            Inputs::Linear(LinearCase::Int8(c)) => match &c.input {
                LinearInput::Product { weight, .. } => weight.shape().to_vec(),
                LinearInput::Accumulators(_) => Vec::new(),
            },
            Inputs::Linear(LinearCase::Int4(_)) => Vec::new(),
            Inputs::RmsNormQuant(c) => c.weight.shape().to_vec(),
            Inputs::HadamardMatrix(n) => vec![*n],
        }
    }
}

/// An output of a case: its key and its elements.
pub type Named = (String, Array);

/// A case: what goes in, and what should come out.
#[derive(Clone, Debug)]
pub struct Case {
    /// Its name; empty for bare keys.
    pub name: String,
    /// What goes in.
    pub inputs: Inputs,
    /// What should come out. Tests and the self-test alter it.
    pub expected: Vec<Named>,
}

/// The vectors of an operation.
#[derive(Clone, Debug)]
pub struct Vectors {
    /// The operation.
    pub op: Op,
    /// Cases.
    pub cases: Vec<Case>,
    /// Keys of the file that belong to no output known.
    pub unknown: Vec<String>,
}

impl Vectors {
    /// Reads a file of vectors.
    pub fn read(op: Op, path: impl AsRef<Path>) -> Result<Self> {
        let path = path.as_ref();
        Self::from_npz(op, &mut NpzReader::open(path)?).map_err(|e| e.in_file(path))
    }

    /// Takes the vectors of an open file.
    pub fn from_npz(op: Op, npz: &mut NpzReader) -> Result<Self> {
        Self::of_op(op, npz, true)
    }

    /// The vectors of an open file; `outputs` tells whether every case must have one.
    fn of_op(op: Op, npz: &mut NpzReader, outputs: bool) -> Result<Self> {
        match op {
            Op::Conv1dSilu => Self::of(npz, outputs, Inputs::Conv1dSilu),
            Op::Conv1dUpdate => Self::of(npz, outputs, Inputs::Conv1dUpdate),
            Op::SelectiveScan => Self::of(npz, outputs, Inputs::SelectiveScan),
            Op::SelectiveScanUpdate => Self::of(npz, outputs, Inputs::SelectiveScanUpdate),
            Op::HadamardQuant => Self::of(npz, outputs, Inputs::HadamardQuant),
            Op::Linear => Self::of(npz, outputs, Inputs::Linear),
            Op::RmsNormQuant => Self::of(npz, outputs, Inputs::RmsNormQuant),
        }
    }

    fn of<T: OpCase>(npz: &mut NpzReader, outputs: bool, inputs: fn(T) -> Inputs) -> Result<Self> {
        let vectors = match outputs {
            true => read::<T>(npz)?,
            false => read_inputs::<T>(npz)?,
        };
        let mut cases: Vec<Case> = Vec::new();
        for (name, matrix) in vectors.matrices {
            let size = matrix.shape()[0];
            cases.push(Case {
                name: String::new(),
                inputs: Inputs::HadamardMatrix(size),
                expected: vec![(name, matrix)],
            });
        }
        cases.extend(vectors.cases.into_iter().map(|case| Case::of(case, inputs)));
        Ok(Self {
            op: T::OP,
            cases,
            unknown: vectors.unknown,
        })
    }
}

impl Case {
    fn of<T: OpCase>(case: T, inputs: fn(T) -> Inputs) -> Self {
        let expected = case.expected();
        let expected = expected
            .iter()
            .map(|o| (o.key.to_owned(), array_of(o.elements, o.shape)));
        Self {
            name: case.name().to_owned(),
            expected: expected.collect(),
            inputs: inputs(case),
        }
    }

    /// A case from arrays by their keys.
    fn from_arrays(op: Op, name: &str, arrays: &BTreeMap<String, Array>) -> Result<Self> {
        Ok(match op {
            Op::Conv1dSilu => Self::of(case_of(name, arrays)?, Inputs::Conv1dSilu),
            Op::Conv1dUpdate => Self::of(case_of(name, arrays)?, Inputs::Conv1dUpdate),
            Op::SelectiveScan => Self::of(case_of(name, arrays)?, Inputs::SelectiveScan),
            Op::SelectiveScanUpdate => {
                Self::of(case_of(name, arrays)?, Inputs::SelectiveScanUpdate)
            }
            Op::HadamardQuant => Self::of(case_of(name, arrays)?, Inputs::HadamardQuant),
            Op::Linear => Self::of(case_of(name, arrays)?, Inputs::Linear),
            Op::RmsNormQuant => Self::of(case_of(name, arrays)?, Inputs::RmsNormQuant),
        })
    }

    /// The key of an output as the file has it.
    pub fn key(&self, output: &str) -> String {
        match self.name.as_str() {
            "" => output.to_owned(),
            name => format!("{name}/{output}"),
        }
    }

    /// Runs the case and compares every expected output.
    pub fn check(&self, rules: &Arithmetic, summary: &mut Summary) -> Result<()> {
        let found = self.compute(rules)?;
        self.compare(&found, summary)
    }

    /// Compares every expected output with what came out.
    pub fn compare(&self, found: &[Named], summary: &mut Summary) -> Result<()> {
        for (key, expected) in &self.expected {
            let name = self.key(key);
            let Some((_, found)) = found.iter().find(|(other, _)| other == key) else {
                summary.missing.push(name);
                continue;
            };
            if found.shape() != expected.shape() || found.dtype() != expected.dtype() {
                return Err(SimError::value(name, found.describe(), expected.describe()));
            }
            let mut result = PointResult::named(name, Tolerance::Exact);
            let (x, y) = self.settled(expected, found);
            result.add(&[], expected.shape(), elements(&x), elements(&y))?;
            summary.points.push(result);
        }
        Ok(())
    }

    /// What is compared of two outputs. Vectors of four-bit weights ask what becomes of scales that are no
    /// numbers: there NaN and infinity are equal to their like.
    pub(crate) fn settled<'a>(
        &self,
        expected: &'a Array,
        found: &'a Array,
    ) -> (Cow<'a, Array>, Cow<'a, Array>) {
        match (&self.inputs, expected, found) {
            (Inputs::Linear(LinearCase::Int4(_)), Array::F16(x), Array::F16(y)) => {
                let (x, y) = without_same_non_finite(x, y);
                (Cow::Owned(x), Cow::Owned(y))
            }
            _ => (Cow::Borrowed(expected), Cow::Borrowed(found)),
        }
    }

    /// What comes out under other rules.
    pub fn compute(&self, rules: &Arithmetic) -> Result<Vec<Named>> {
        let keys: Vec<&str> = self.expected.iter().map(|(key, _)| key.as_str()).collect();
        compute::compute(&self.inputs, Some(&keys), rules)
    }

    /// Every output that there is of the inputs.
    fn outputs(&self, rules: &Arithmetic) -> Result<Vec<Named>> {
        compute::compute(&self.inputs, None, rules)
    }
}

/// Zeros where both have the same infinity or both NaN, whatever its payload: a comparison takes no
/// other for equal.
fn without_same_non_finite(x: &ArrayD<f16>, y: &ArrayD<f16>) -> (Array, Array) {
    let (mut x, mut y) = (x.clone(), y.clone());
    for (x, y) in x.iter_mut().zip(&mut y) {
        if x.is_nan() && y.is_nan() || x.is_infinite() && x == y {
            (*x, *y) = (f16::ZERO, f16::ZERO);
        }
    }
    (Array::F16(x), Array::F16(y))
}

/// Runs every case and compares every output that the file holds.
///
/// # Errors
///
/// A case that the datapath cannot run (its sizes are beyond it), outputs of another type or shape.
pub fn check_op(vectors: &Vectors, rules: &Arithmetic) -> Result<Summary> {
    let mut summary = Summary::default();
    for case in &vectors.cases {
        case.check(rules, &mut summary)?;
    }
    summary.missing.extend(vectors.unknown.iter().cloned());
    Ok(summary)
}

/// How the arrays of the first case that mismatches may lie so that it is equal: a sentence, or none.
///
/// # Errors
///
/// A file that can no longer be read.
pub fn layout(
    op: Op,
    path: &Path,
    vectors: &Vectors,
    rules: &Arithmetic,
    summary: &Summary,
) -> Result<Option<String>> {
    let wrong = |case: &&Case| {
        let keys = case.expected.iter().map(|(key, _)| case.key(key));
        let mut mismatched = summary.points.iter().filter(|p| p.mismatched > 0);
        let keys: Vec<String> = keys.collect();
        mismatched.any(|point| keys.contains(&point.point))
    };
    let Some(case) = vectors.cases.iter().find(wrong) else {
        return Ok(None);
    };
    let arrays = arrays_of(&mut NpzReader::open(path)?, &case.name)?;
    let ways = ways(&arrays, |arrays| {
        let mut summary = Summary::default();
        let checked = Case::from_arrays(op, &case.name, arrays)
            .and_then(|case| case.check(rules, &mut summary));
        checked.is_ok() && summary.compared() > 0 && summary.mismatched() == 0
    });
    let name = match case.name.as_str() {
        "" => op.name(),
        name => name,
    };
    Ok((!ways.is_empty()).then(|| format!("{name} is equal with {}", ways.join(" or "))))
}

/// The elements of an array of an output.
pub(crate) fn elements(array: &Array) -> Elements<'_> {
    const ROW_MAJOR: &str = "arrays of files are row-major";
    match array {
        Array::I8(a) => a.as_slice().expect(ROW_MAJOR).into(),
        Array::F16(a) => a.as_slice().expect(ROW_MAJOR).into(),
        Array::F32(a) => a.as_slice().expect(ROW_MAJOR).into(),
        other => unreachable!("outputs are i8, f16 or f32, not {}", other.describe()),
    }
}

fn array_of(elements: Elements<'_>, shape: &[usize]) -> Array {
    fn of<T: crate::npz::Element>(values: &[T], shape: &[usize]) -> Array {
        let array = ndarray::ArrayD::from_shape_vec(shape, values.to_vec());
        T::wrap(array.expect("an output has as many elements as its shape says"))
    }
    match elements {
        Elements::I8(v) => of(v, shape),
        Elements::F16(v) => of(v, shape),
        Elements::F32(v) => of(v, shape),
    }
}
