//! A tensor of a file, of whatever container: its values checked as they are taken out.

use super::bytes::ReadOnce;
use crate::error::{Result, SimError};
use crate::quant::Scale;
use bytemuck::Zeroable;
use half::{bf16, f16};
use ndarray::Array2;
use rayon::prelude::*;
use std::borrow::Cow;
use std::fmt;
use std::path::Path;

pub use safetensors::Dtype;

/// A tensor of a file. Its data lie inside the file, wherever they begin and however far apart.
#[derive(Debug)]
pub struct FileTensor<'a> {
    path: &'a Path,
    name: String,
    dtype: Dtype,
    shape: Vec<usize>,
    /// Elements from one to the next along each axis; `None` if row-major.
    strides: Option<Vec<usize>>,
    part: ReadOnce<'a>,
}

impl<'a> FileTensor<'a> {
    /// `part` begins with the first element and holds the last.
    pub(super) fn new(
        path: &'a Path,
        name: &str,
        dtype: Dtype,
        shape: Vec<usize>,
        strides: Option<Vec<usize>>,
        part: ReadOnce<'a>,
    ) -> Self {
        let strides = strides.filter(|strides| !is_row_major(&shape, strides));
        Self {
            path,
            name: name.to_owned(),
            dtype,
            shape,
            strides,
            part,
        }
    }

    /// Type of the elements.
    pub fn dtype(&self) -> Dtype {
        self.dtype
    }

    /// Lengths of the axes.
    pub fn shape(&self) -> &[usize] {
        &self.shape
    }

    /// The same tensor, if it has this shape.
    ///
    /// # Errors
    ///
    /// Another shape.
    pub fn of_shape(self, shape: &[usize]) -> Result<Self> {
        match self.shape == shape {
            true => Ok(self),
            false => Err(SimError::file(
                self.path,
                &self.name,
                format_args!("shape {shape:?}"),
                shown_shape(&self.shape),
            )),
        }
    }

    /// Its axes in the reverse order; nothing is moved.
    #[must_use]
    pub fn transposed(mut self) -> Self {
        let mut strides = self
            .strides
            .take()
            .unwrap_or_else(|| row_major(&self.shape));
        strides.reverse();
        self.shape.reverse();
        self.strides = Some(strides).filter(|strides| !is_row_major(&self.shape, strides));
        self
    }

    /// Little-endian elements in row-major order.
    pub fn bytes(&self) -> Cow<'_, [u8]> {
        let size = self.dtype.bitsize() / 8;
        let count: usize = self.shape.iter().product();
        let Some(strides) = &self.strides else {
            return Cow::Borrowed(&self.part.data[..count * size]);
        };
        let mut gathered = Vec::with_capacity(count * size);
        if count > 0 {
            gather(self.part.data, size, &self.shape, strides, &mut gathered);
        }
        Cow::Owned(gathered)
    }

    fn wrong_dtype(&self, expected: &str) -> SimError {
        SimError::file(
            self.path,
            &self.name,
            format_args!("dtype {expected}"),
            self.dtype,
        )
    }

    fn bad_value(&self, flat: usize, expected: &str, found: impl fmt::Display) -> SimError {
        let mut index = vec![0; self.shape.len()];
        let mut rest = flat;
        for (i, n) in index.iter_mut().zip(&self.shape).rev() {
            (*i, rest) = (rest % n, rest / n);
        }
        let item = format!("{}{index:?}", self.name);
        SimError::file(self.path, item, expected, found)
    }

    /// Values of an F16, BF16 or F32 tensor as binary16, RNE; every one finite.
    pub fn to_f16(&self) -> Result<Vec<f16>> {
        match self.dtype {
            Dtype::F16 => self.convert(f16::from_le_bytes, f16::is_finite),
            Dtype::BF16 => self.convert(
                |b| f16::from_f32(bf16::from_le_bytes(b).into()),
                f16::is_finite,
            ),
            Dtype::F32 => self.convert(|b| f16::from_f32(f32::from_le_bytes(b)), f16::is_finite),
            _ => Err(self.wrong_dtype("F16, BF16 or F32")),
        }
    }

    /// Values of an F16, BF16 or F32 tensor, exact; every one finite.
    pub fn to_f32(&self) -> Result<Vec<f32>> {
        match self.dtype {
            Dtype::F16 => self.convert(|b| f16::from_le_bytes(b).into(), f32::is_finite),
            Dtype::BF16 => self.convert(|b| bf16::from_le_bytes(b).into(), f32::is_finite),
            Dtype::F32 => self.convert(f32::from_le_bytes, f32::is_finite),
            _ => Err(self.wrong_dtype("F16, BF16 or F32")),
        }
    }

    /// Values of an F16 tensor, every one finite.
    pub fn exact_f16(&self) -> Result<Vec<f16>> {
        match self.dtype {
            Dtype::F16 => self.to_f16(),
            _ => Err(self.wrong_dtype("F16")),
        }
    }

    /// The elements through `f`. A pass over a file of gigabytes is a pass over memory: values are made and
    /// judged in one, into pages that nobody cleared before.
    fn convert<T: Zeroable + Copy + Send + Sync, const SIZE: usize>(
        &self,
        f: impl Fn([u8; SIZE]) -> T + Sync,
        is_finite: impl Fn(T) -> bool + Sync,
    ) -> Result<Vec<T>> {
        const PART: usize = 1 << 18;
        let data = self.bytes();
        let (elements, _) = data.as_chunks::<SIZE>();
        let mut values = bytemuck::zeroed_vec::<T>(elements.len());
        let parts = values.par_chunks_mut(PART).zip(elements.par_chunks(PART));
        let part = |(values, elements): (&mut [T], &[[u8; SIZE]])| {
            let pairs = values.iter_mut().zip(elements);
            pairs.fold(true, |finite, (value, bytes)| {
                *value = f(*bytes);
                finite & is_finite(*value)
            })
        };
        let finite: Vec<bool> = parts.map(part).collect();
        if !finite.contains(&false) {
            return Ok(values);
        }
        // The first offender, whatever the number of threads.
        let mut offenders = elements.iter().zip(&values).enumerate();
        let (at, found) = offenders
            .find_map(|(i, (bytes, v))| (!is_finite(*v)).then(|| (i, real(self.dtype, bytes))))
            .expect("a value is not finite");
        let expected = match found.is_finite() {
            true => "a value within binary16 (|w| < 65520)",
            false => "a finite value",
        };
        Err(self.bad_value(at, expected, found))
    }

    /// Bytes of an I8 tensor.
    pub fn codes(&self) -> Result<Vec<i8>> {
        match self.dtype {
            Dtype::I8 => Ok(bytemuck::cast_slice(&self.bytes()).to_vec()),
            _ => Err(self.wrong_dtype("I8")),
        }
    }

    /// Bytes of a U8 tensor.
    pub fn nibbles(&self) -> Result<Vec<u8>> {
        match self.dtype {
            Dtype::U8 => Ok(self.bytes().into_owned()),
            _ => Err(self.wrong_dtype("U8")),
        }
    }

    /// The scales in an F32 tensor.
    pub fn scales(&self) -> Result<Vec<Scale>> {
        if self.dtype != Dtype::F32 {
            return Err(self.wrong_dtype("F32"));
        }
        let data = self.bytes();
        let scale = |(i, bytes): (usize, &[u8; 4])| {
            let value = f32::from_le_bytes(*bytes);
            Scale::new(value).map_err(|_| {
                let found = format_args!("{value:e}");
                self.bad_value(i, "a positive, finite, normal f32", found)
            })
        };
        data.as_chunks::<4>()
            .0
            .iter()
            .enumerate()
            .map(scale)
            .collect()
    }

    /// Values of an I32 tensor.
    pub fn integers(&self) -> Result<Vec<i32>> {
        match self.dtype {
            Dtype::I32 => {
                let data = self.bytes();
                let (elements, _) = data.as_chunks::<4>();
                Ok(elements.iter().map(|b| i32::from_le_bytes(*b)).collect())
            }
            _ => Err(self.wrong_dtype("I32")),
        }
    }

    /// The number in an F32 tensor of one element.
    pub fn scalar_f32(&self) -> Result<f32> {
        if self.dtype != Dtype::F32 {
            return Err(self.wrong_dtype("F32"));
        }
        match self.bytes().as_array::<4>() {
            Some(bytes) => Ok(f32::from_le_bytes(*bytes)),
            None => {
                let found = shown_shape(&self.shape);
                Err(SimError::file(self.path, &self.name, "one element", found))
            }
        }
    }

    /// Puts values, one for each element, into the tensor's two dimensions: first by the rest.
    pub fn matrix<T>(&self, values: Vec<T>) -> Array2<T> {
        let rows = self.shape[0];
        let columns = self.shape[1..].iter().product();
        Array2::from_shape_vec((rows, columns), values).expect("as many values as the shape says")
    }
}

/// The number that an element's bytes are.
fn real(dtype: Dtype, bytes: &[u8]) -> f32 {
    match (dtype, bytes) {
        (Dtype::F16, &[a, b]) => f16::from_le_bytes([a, b]).into(),
        (Dtype::BF16, &[a, b]) => bf16::from_le_bytes([a, b]).into(),
        (Dtype::F32, &[a, b, c, d]) => f32::from_le_bytes([a, b, c, d]),
        _ => unreachable!("a float type and its size"),
    }
}

/// Strides of a tensor whose elements follow each other.
pub(super) fn row_major(shape: &[usize]) -> Vec<usize> {
    let mut strides = vec![1usize; shape.len()];
    for axis in (1..shape.len()).rev() {
        strides[axis - 1] = strides[axis].saturating_mul(shape[axis].max(1));
    }
    strides
}

/// Whether elements follow each other; the stride of an axis of length 1 means nothing.
pub(super) fn is_row_major(shape: &[usize], strides: &[usize]) -> bool {
    let mut axes = shape.iter().zip(strides).zip(row_major(shape));
    axes.all(|((n, stride), usual)| *n == 1 || *stride == usual)
}

/// Appends the elements of a tensor that is not empty, the last axis running fastest.
fn gather(data: &[u8], size: usize, shape: &[usize], strides: &[usize], out: &mut Vec<u8>) {
    match (shape, strides) {
        ([], []) => out.extend_from_slice(&data[..size]),
        ([n], [1]) => out.extend_from_slice(&data[..n * size]),
        ([n, shape @ ..], [stride, strides @ ..]) => {
            for i in 0..*n {
                gather(&data[i * stride * size..], size, shape, strides, out);
            }
        }
        _ => unreachable!("a stride for each axis"),
    }
}

/// A shape of bounded length.
pub(super) fn shown_shape(shape: &[usize]) -> String {
    match shape.len() {
        0..=8 => format!("{shape:?}"),
        n => format!("{n} dimensions"),
    }
}
