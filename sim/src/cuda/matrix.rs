//! Tensors on the device: a matrix of one type, or some of its rows and columns.

use super::args::{Pointer, Quantizer, Sink, Source, Type};
use super::device::{Buffer, Device};
use crate::error::Result;
use crate::quant::{QTensor, Scale};
use crate::trace::Tensor;
use half::f16;
use ndarray::Array2;
use std::sync::Arc;

/// What the elements of a matrix are, as in [`Tensor`].
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Kind {
    I8(Scale),
    Codes,
    F16,
    F32,
}

impl Kind {
    /// The type in memory.
    pub fn of(self) -> Type {
        match self {
            Kind::I8(_) | Kind::Codes => Type::I8,
            Kind::F16 => Type::F16,
            Kind::F32 => Type::F32,
        }
    }

    pub(super) fn bytes(self) -> usize {
        match self.of() {
            Type::I8 => 1,
            Type::F16 => 2,
            Type::F32 => 4,
        }
    }
}

/// Rows and columns of a buffer; clones are the same memory.
#[derive(Clone)]
pub struct Matrix {
    buffer: Arc<Buffer>,
    /// The first element, in bytes.
    offset: usize,
    /// Elements from one row to the next.
    stride: usize,
    pub rows: usize,
    pub columns: usize,
    pub kind: Kind,
}

impl Matrix {
    /// A new matrix, content undefined.
    pub fn new(device: &Arc<Device>, rows: usize, columns: usize, kind: Kind) -> Result<Self> {
        let buffer = device.allocate(rows * columns * kind.bytes())?;
        Ok(Self::of_buffer(buffer, rows, columns, kind))
    }

    fn of_buffer(buffer: Arc<Buffer>, rows: usize, columns: usize, kind: Kind) -> Self {
        Self {
            buffer,
            offset: 0,
            stride: columns,
            rows,
            columns,
            kind,
        }
    }

    /// A copy of values, row-major.
    pub fn upload<T: bytemuck::NoUninit>(
        device: &Arc<Device>,
        values: &[T],
        columns: usize,
        kind: Kind,
    ) -> Result<Self> {
        assert_eq!(size_of::<T>(), kind.bytes());
        let rows = values.len() / columns;
        let buffer = device.upload(values)?;
        Ok(Self::of_buffer(buffer, rows, columns, kind))
    }

    /// A copy of a tensor.
    pub fn of_tensor(device: &Arc<Device>, tensor: &Tensor) -> Result<Self> {
        fn flat<T: Copy>(values: &Array2<T>) -> std::borrow::Cow<'_, [T]> {
            match values.as_slice() {
                Some(values) => values.into(),
                None => values.iter().copied().collect(),
            }
        }
        let columns = tensor.dim().1;
        match tensor {
            Tensor::I8(q) => Self::upload(device, &flat(&q.codes), columns, Kind::I8(q.scale)),
            Tensor::Codes(q) => Self::upload(device, &flat(q), columns, Kind::Codes),
            Tensor::F16(v) => Self::upload(device, &flat(v), columns, Kind::F16),
            Tensor::F32(v) => Self::upload(device, &flat(v), columns, Kind::F32),
        }
    }

    /// The matrix as a tensor of the host.
    pub fn to_tensor(&self) -> Result<Tensor> {
        Ok(match self.kind {
            Kind::I8(scale) => Tensor::I8(QTensor {
                codes: self.download()?,
                scale,
            }),
            Kind::Codes => Tensor::Codes(self.download()?),
            Kind::F16 => Tensor::F16(self.download::<f16>()?),
            Kind::F32 => Tensor::F32(self.download()?),
        })
    }

    fn download<T: bytemuck::Pod>(&self) -> Result<Array2<T>> {
        let span = match self.rows {
            0 => 0,
            rows => (rows - 1) * self.stride + self.columns,
        };
        let all: Vec<T> = self.device().download(self.pointer(), span)?;
        let dim = (self.rows, self.columns);
        let values = if self.is_contiguous() {
            all
        } else {
            let rows = all.chunks(self.stride.max(1));
            rows.flat_map(|row| row[..self.columns].iter().copied())
                .collect()
        };
        Ok(Array2::from_shape_vec(dim, values).expect("as many rows"))
    }

    /// Columns `[first, last)`.
    pub fn columns(&self, first: usize, last: usize) -> Self {
        assert!(first <= last && last <= self.columns);
        Self {
            offset: self.offset + first * self.kind.bytes(),
            columns: last - first,
            ..self.clone()
        }
    }

    /// Rows `[first, last)`.
    pub fn rows(&self, first: usize, last: usize) -> Self {
        assert!(first <= last && last <= self.rows);
        Self {
            offset: self.offset + first * self.stride * self.kind.bytes(),
            rows: last - first,
            ..self.clone()
        }
    }

    /// The same memory, its rows `stride` elements apart of which the first `columns` count.
    pub fn padded(mut self, columns: usize) -> Self {
        assert!(columns <= self.columns);
        self.columns = columns;
        self
    }

    /// Whether rows follow each other without a gap.
    pub fn is_contiguous(&self) -> bool {
        self.stride == self.columns
    }

    /// Elements from one row to the next.
    pub fn stride(&self) -> usize {
        self.stride
    }

    /// Address of the first element.
    pub fn pointer(&self) -> Pointer {
        self.buffer.pointer() + self.offset as u64
    }

    /// Where it lies.
    pub fn device(&self) -> &Arc<Device> {
        self.buffer.device()
    }

    /// To be read: codes by the scale given, or their own.
    pub fn source(&self, scale: Option<Scale>) -> Source {
        let scale = match (self.kind, scale) {
            (Kind::I8(_), Some(scale)) | (Kind::I8(scale), None) => scale.get(),
            _ => 1.0,
        };
        Source {
            data: self.pointer(),
            stride: self.stride as i64,
            scale,
            of: self.kind.of(),
        }
    }

    /// To be written.
    pub fn sink(&self, quantizer: Quantizer) -> Sink {
        Sink {
            data: self.pointer(),
            stride: self.stride as i64,
            of: self.kind.of(),
            quantizer,
        }
    }
}
