//! Buffers that lie otherwise than their shape says.

use crate::value::Value;
use ndarray::{Array2, s};
use scalescope_sim::trace::Place;

/// How a dumped buffer lies.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Lie {
    /// Written column by column under the shape of rows.
    ByColumns,
    /// Rows read as if they were columns.
    FromColumns,
    /// Its axes have changed places.
    Turned,
    /// Two blocks of columns have changed places: the first one's start, their width.
    Swapped(usize, usize),
}

/// Who lays a buffer wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reading {
    /// The dump alone: what follows comes from the right tensor.
    DumpLies,
    /// The step that writes it; the next one reads what is there.
    ProducerWrites,
    /// The step that reads it; what is there is right.
    ConsumerReads,
}

/// A dumped tensor that lies differently.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Misread {
    /// The tensor.
    pub place: Place,
    /// How it lies.
    pub lie: Lie,
    /// Who is to blame.
    pub reading: Reading,
}

impl Misread {
    /// In words.
    pub fn words(&self) -> String {
        let lie = match self.lie {
            Lie::ByColumns => "is written column by column",
            Lie::FromColumns => "is read as if its rows were columns",
            Lie::Turned => "has its axes swapped",
            Lie::Swapped(..) => "has B and C swapped",
        };
        let who = match self.reading {
            Reading::DumpLies => "in the dump alone",
            Reading::ProducerWrites => "by the step that writes it",
            Reading::ConsumerReads => "by the step that reads it",
        };
        format!("{} {lie} ({who})", self.place.point.name())
    }

    /// The tensor as it should lie (or, where the consumer is to blame, as it is read).
    pub fn undo(&self, value: &Value) -> Value {
        match self.lie {
            Lie::ByColumns => from_columns(value),
            Lie::FromColumns => to_columns(value),
            Lie::Turned => turned(value),
            Lie::Swapped(first, width) => swapped(value, first, width),
        }
    }
}

/// A tensor `[rows, columns]` whose buffer holds it column by column, read right.
fn from_columns(value: &Value) -> Value {
    let (rows, columns) = value.dim();
    // Element (r, c) lies at c · rows + r.
    picked(value, |i| i % columns * rows + i / columns)
}

/// A tensor `[rows, columns]` written column by column into a buffer of that shape.
fn to_columns(value: &Value) -> Value {
    let (rows, columns) = value.dim();
    picked(value, |i| i % rows * columns + i / rows)
}

/// A tensor of the other shape, turned.
fn turned(value: &Value) -> Value {
    match value {
        Value::I8(a) => Value::I8(a.t().as_standard_layout().into_owned()),
        Value::F16(a) => Value::F16(a.t().as_standard_layout().into_owned()),
        Value::F32(a) => Value::F32(a.t().as_standard_layout().into_owned()),
    }
}

/// A tensor of the same shape whose element i is element `from(i)` of the buffer.
fn picked(value: &Value, from: impl Fn(usize) -> usize) -> Value {
    fn pick<T: Copy>(values: &Array2<T>, from: impl Fn(usize) -> usize) -> Array2<T> {
        let buffer = values.as_slice().expect("values are kept row-major");
        let order = (0..buffer.len()).map(|i| buffer[from(i)]).collect();
        Array2::from_shape_vec(values.dim(), order).expect("as many elements")
    }
    match value {
        Value::I8(a) => Value::I8(pick(a, from)),
        Value::F16(a) => Value::F16(pick(a, from)),
        Value::F32(a) => Value::F32(pick(a, from)),
    }
}

/// A dumped tensor with two blocks of columns in each other's place.
fn swapped(value: &Value, first: usize, width: usize) -> Value {
    fn swap<T: Copy>(values: &Array2<T>, first: usize, width: usize) -> Array2<T> {
        let mut out = values.clone();
        let (a, b) = (first..first + width, first + width..first + 2 * width);
        out.slice_mut(s![.., a.clone()])
            .assign(&values.slice(s![.., b.clone()]));
        out.slice_mut(s![.., b]).assign(&values.slice(s![.., a]));
        out
    }
    match value {
        Value::I8(a) => Value::I8(swap(a, first, width)),
        Value::F16(a) => Value::F16(swap(a, first, width)),
        Value::F32(a) => Value::F32(swap(a, first, width)),
    }
}
