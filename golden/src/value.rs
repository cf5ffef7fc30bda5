//! A tensor of a file: what [`Tensor`] is in the datapath, less the scale, which files may lack.

use crate::npz::Array;
use half::f16;
use ndarray::{Array2, ArrayD};
use scalescope_sim::quant::{QTensor, Scale};
use scalescope_sim::trace::Tensor;
use std::borrow::Cow;

/// Values of one tensor of one sequence, row-major: `[L, channels]`, or `[E, N]` for a state.
#[derive(Clone, Debug, PartialEq)]
pub enum Value {
    /// INT8 codes; the scale, if known, is kept beside.
    I8(Array2<i8>),
    /// Binary16.
    F16(Array2<f16>),
    /// FP32.
    F32(Array2<f32>),
}

/// The elements of a [`Value`] or of any other array, in row-major order.
#[derive(Clone, Copy, Debug)]
pub enum Elements<'a> {
    /// INT8 codes.
    I8(&'a [i8]),
    /// Binary16.
    F16(&'a [f16]),
    /// FP32.
    F32(&'a [f32]),
}

impl Value {
    /// The codes of floats that are INT8 codes in a float type: integers from −128 to 127, not all 0.
    pub fn codes(&self) -> Option<Array2<i8>> {
        fn of<T: Copy + Into<f64>>(values: &Array2<T>) -> Option<Array2<i8>> {
            let code = |v: &T| (*v).into() == f64::from((*v).into() as i8);
            let some = values.iter().any(|v| (*v).into() != 0.0);
            (some && values.iter().all(code)).then(|| values.mapv(|v| v.into() as i8))
        }
        match self {
            Value::I8(_) => None,
            Value::F16(a) => of(a),
            Value::F32(a) => of(a),
        }
    }

    /// The same values in a type that a mode makes: as they are, or codes and binary16 that lie in a wider
    /// float type. `None` where they are none of that type.
    pub fn in_type(&self, dtype: &str) -> Option<Cow<'_, Self>> {
        match (self, dtype) {
            _ if self.dtype() == dtype => Some(Cow::Borrowed(self)),
            (_, "i8") => self.codes().map(|codes| Cow::Owned(Value::I8(codes))),
            (Value::F32(a), "f16") => {
                let narrow = a.mapv(f16::from_f32);
                let same =
                    |(wide, narrow): (&f32, &f16)| narrow.to_f32().to_bits() == wide.to_bits();
                (a.iter().zip(&narrow).all(same)).then_some(Cow::Owned(Value::F16(narrow)))
            }
            _ => None,
        }
    }

    /// The share of elements that differ in a bit from those of a tensor of the same type and shape.
    pub(crate) fn differs(&self, other: &Self) -> f64 {
        let differing = match (self.elements(), other.elements()) {
            (Elements::I8(x), Elements::I8(y)) => x.iter().zip(y).filter(|(x, y)| x != y).count(),
            (Elements::F16(x), Elements::F16(y)) => {
                let differ = |(x, y): &(&f16, &f16)| x.to_bits() != y.to_bits();
                x.iter().zip(y).filter(differ).count()
            }
            (Elements::F32(x), Elements::F32(y)) => {
                let differ = |(x, y): &(&f32, &f32)| x.to_bits() != y.to_bits();
                x.iter().zip(y).filter(differ).count()
            }
            (x, _) => x.len(),
        };
        differing as f64 / self.elements().len().max(1) as f64
    }

    /// An array of a file in rows of its last axis.
    ///
    /// # Panics
    ///
    /// An array of another type than values have.
    pub(crate) fn from_array(array: &Array) -> Self {
        fn rows<T: Copy>(array: &ArrayD<T>) -> Array2<T> {
            let columns = match array.shape() {
                [.., _, columns] => (*columns).max(1),
                _ => 1,
            };
            let values = array.iter().copied().collect();
            Array2::from_shape_vec((array.len() / columns, columns), values).expect("whole rows")
        }
        match array {
            Array::I8(a) => Value::I8(rows(a)),
            Array::F16(a) => Value::F16(rows(a)),
            Array::F32(a) => Value::F32(rows(a)),
            other => unreachable!("outputs are i8, f16 or f32, not {}", other.describe()),
        }
    }

    /// Rows and columns.
    pub fn dim(&self) -> (usize, usize) {
        match self {
            Value::I8(a) => a.dim(),
            Value::F16(a) => a.dim(),
            Value::F32(a) => a.dim(),
        }
    }

    /// The type's name: `i8`, `f16`, `f32`.
    pub fn dtype(&self) -> &'static str {
        self.elements().dtype()
    }

    /// Type and shape in words: `i8 [171, 192]`.
    pub fn describe(&self) -> String {
        let (rows, columns) = self.dim();
        format!("{} [{rows}, {columns}]", self.dtype())
    }

    /// The elements, row by row.
    pub fn elements(&self) -> Elements<'_> {
        let fit = "values are kept row-major";
        match self {
            Value::I8(a) => Elements::I8(a.as_slice().expect(fit)),
            Value::F16(a) => Elements::F16(a.as_slice().expect(fit)),
            Value::F32(a) => Elements::F32(a.as_slice().expect(fit)),
        }
    }

    /// Splits a tensor of the datapath into its values and its scale.
    pub fn from_tensor(tensor: Tensor) -> (Self, Option<Scale>) {
        let scale = tensor.scale();
        let value = match tensor {
            Tensor::I8(QTensor { codes, .. }) | Tensor::Codes(codes) => Value::I8(standard(codes)),
            Tensor::F16(a) => Value::F16(standard(a)),
            Tensor::F32(a) => Value::F32(standard(a)),
        };
        (value, scale)
    }

    /// As the datapath takes it. Codes without a scale become [`Tensor::Codes`].
    pub fn into_tensor(self, scale: Option<Scale>) -> Tensor {
        match (self, scale) {
            (Value::I8(codes), Some(scale)) => Tensor::I8(QTensor { codes, scale }),
            (Value::I8(codes), None) => Tensor::Codes(codes),
            (Value::F16(a), _) => Tensor::F16(a),
            (Value::F32(a), _) => Tensor::F32(a),
        }
    }

    /// Real values; codes without a scale count in steps of 1.
    pub fn to_real(&self, scale: Option<Scale>) -> Array2<f64> {
        let step = scale.map_or(1.0, |s| f64::from(s.get()));
        match self {
            Value::I8(a) => a.mapv(|q| step * f64::from(q)),
            Value::F16(a) => a.mapv(f64::from),
            Value::F32(a) => a.mapv(f64::from),
        }
    }
}

/// Row-major, copied only if it is not.
pub(crate) fn standard<T: Clone>(array: Array2<T>) -> Array2<T> {
    if array.is_standard_layout() {
        array
    } else {
        array.as_standard_layout().into_owned()
    }
}

impl<'a> Elements<'a> {
    /// Number of elements.
    pub fn len(self) -> usize {
        match self {
            Elements::I8(a) => a.len(),
            Elements::F16(a) => a.len(),
            Elements::F32(a) => a.len(),
        }
    }

    /// Whether there is no element.
    pub fn is_empty(self) -> bool {
        self.len() == 0
    }

    /// The type's name: `i8`, `f16`, `f32`.
    pub fn dtype(self) -> &'static str {
        match self {
            Elements::I8(_) => "i8",
            Elements::F16(_) => "f16",
            Elements::F32(_) => "f32",
        }
    }

    /// Element `index` as a number; codes as they are.
    pub fn get(self, index: usize) -> f64 {
        match self {
            Elements::I8(a) => f64::from(a[index]),
            Elements::F16(a) => f64::from(a[index]),
            Elements::F32(a) => f64::from(a[index]),
        }
    }
}

impl<'a> From<&'a [i8]> for Elements<'a> {
    fn from(values: &'a [i8]) -> Self {
        Elements::I8(values)
    }
}

impl<'a> From<&'a [f16]> for Elements<'a> {
    fn from(values: &'a [f16]) -> Self {
        Elements::F16(values)
    }
}

impl<'a> From<&'a [f32]> for Elements<'a> {
    fn from(values: &'a [f32]) -> Self {
        Elements::F32(values)
    }
}
