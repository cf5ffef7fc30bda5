//! Between types, and rows of a table. Twin: the conversions of `quant.rs` and `trace.rs`.

use super::blocks;
use crate::cuda::args::{Arg, Pointer, Quantizer};
use crate::cuda::device::{Buffer, Device};
use crate::cuda::matrix::{Kind, Matrix};
use crate::cuda::rules::NO_QUANTIZER;
use crate::error::Result;
use crate::quant::Scale;
use std::sync::Arc;

const THREADS: u32 = 256;
const MAX_GRID: u32 = 1 << 16;
/// Bytes a thread copies at a time of rows that stay as they are, and threads of a row.
const VECTOR: usize = 16;
const ROW_THREADS: u32 = 128;

/// Writes `from` into `to`, of the same shape: real values quantized where `to` is codes, codes
/// dequantized by `scale` (their own if none) where it is real, the same type copied.
pub fn convert(
    from: &Matrix,
    scale: Option<Scale>,
    to: &Matrix,
    quantizer: Quantizer,
) -> Result<()> {
    assert_eq!((from.rows, from.columns), (to.rows, to.columns));
    run(from, scale, to, quantizer, 0)
}

fn run(
    from: &Matrix,
    scale: Option<Scale>,
    to: &Matrix,
    quantizer: Quantizer,
    rows_of: Pointer,
) -> Result<()> {
    let (source, sink) = (from.source(scale), to.sink(quantizer));
    let copy = i32::from(source.of == sink.of);
    let count = to.rows * to.columns;
    if count == 0 {
        return Ok(());
    }
    let grid = [blocks(count, THREADS).min(MAX_GRID), 1, 1];
    let (rows, columns) = (to.rows as i64, to.columns as i32);
    to.device().launch(
        "convert",
        "convert",
        grid,
        THREADS,
        0,
        &[&source, &sink, &rows_of, &rows, &columns, &copy],
    )
}

/// Copies `from` to where `to` lies, of the same shape and type.
pub fn copy(from: &Matrix, to: &Matrix) -> Result<()> {
    assert_eq!(from.kind, to.kind);
    convert(from, None, to, NO_QUANTIZER)
}

/// Real values, rows without gaps: codes by `scale` (their own if none).
pub fn real(from: &Matrix, scale: Option<Scale>) -> Result<Matrix> {
    if from.kind == Kind::F32 && from.is_contiguous() {
        return Ok(from.clone());
    }
    let to = Matrix::new(from.device(), from.rows, from.columns, Kind::F32)?;
    convert(from, scale, &to, NO_QUANTIZER)?;
    Ok(to)
}

/// Which rows of a table, on the device.
pub struct Rows {
    indices: Arc<Buffer>,
    count: usize,
}

impl Rows {
    /// Copies row numbers to the device.
    pub fn upload(device: &Arc<Device>, rows: &[i32]) -> Result<Self> {
        Ok(Self {
            indices: device.upload(rows)?,
            count: rows.len(),
        })
    }

    /// Puts as many other numbers in their place.
    pub fn replace(&self, rows: &[i32]) -> Result<()> {
        assert_eq!(rows.len(), self.count);
        self.indices.device().write(&self.indices, rows)
    }
}

/// Rows of a table of real values, as `kind`.
pub fn gather(table: &Matrix, rows: &Rows, kind: Kind) -> Result<Matrix> {
    let to = Matrix::new(table.device(), rows.count, table.columns, kind)?;
    let bytes = kind.bytes();
    let whole = |n: usize| (n * bytes).is_multiple_of(VECTOR);
    let as_they_are = table.kind == kind
        && whole(table.columns)
        && whole(table.stride())
        && table.pointer().is_multiple_of(VECTOR as u64);
    if as_they_are && rows.count > 0 {
        let vectors = |n: usize| (n * bytes / VECTOR) as i64;
        let grid = [(rows.count as u32).min(MAX_GRID), 1, 1];
        let args: [&dyn Arg; 7] = [
            &table.pointer(),
            &vectors(table.stride()),
            &to.pointer(),
            &vectors(to.stride()),
            &rows.indices.pointer(),
            &(rows.count as i32),
            &(vectors(table.columns) as i32),
        ];
        let name = "gather_vectors";
        (table.device()).launch("convert", name, grid, ROW_THREADS, 0, &args)?;
        return Ok(to);
    }
    run(table, None, &to, NO_QUANTIZER, rows.indices.pointer())?;
    Ok(to)
}
