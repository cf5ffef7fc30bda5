//! Hadamard rotation and its quantizer. Twin: `step/hadamard.rs`.

use super::blocks;
use crate::arith::hadamard::HadamardSize;
use crate::cuda::args::{Arg, Quantizer, Type};
use crate::cuda::matrix::{Kind, Matrix};
use crate::error::{Result, SimError};

const THREADS: u32 = 128;
/// Blocks of threads that a multiprocessor works on at once; each takes row after row.
const RESIDENT: u32 = 10;
/// Rows, a warp each, of a block of the kernel for 12·128 channels.
const ROWS_OF_WARPS: u32 = 8;
/// Number of the rounding that kernel has.
const HALF_AWAY: i32 = 1;
/// Shared memory a block can have on every device of compute capability 8.0 and more.
const MAX_SHARED: usize = 99 << 10;

/// Bytes of a row in shared memory, as `at` of the kernel spreads it.
pub fn shared_bytes(length: usize) -> usize {
    4 * (length + length / 16 * 4 + length / 128 * 16 + 32)
}

/// Checks that a row fits.
pub fn check(size: HadamardSize) -> Result<()> {
    match shared_bytes(size.n()) <= MAX_SHARED {
        true => Ok(()),
        false => Err(SimError::value(
            "Hadamard size on a CUDA device",
            "a row that fits shared memory",
            size.n(),
        )),
    }
}

/// Rotates each row of `y`, multiplies it by `factor`, and quantizes it (its quotient is in the
/// factor) or keeps it as FP32.
pub fn rotate(
    y: &Matrix,
    size: HadamardSize,
    factor: f32,
    kind: Kind,
    quantizer: Quantizer,
) -> Result<Matrix> {
    let out = Matrix::new(y.device(), y.rows, y.columns, kind)?;
    let (source, sink, rows) = (y.source(None), out.sink(quantizer), y.rows as i64);
    let block = size.n() / size.base();
    let fits =
        source.data.is_multiple_of(8) && source.stride % 4 == 0 && quantizer.rounding == HALF_AWAY;
    if (size.base(), block) == (12, 128) && (source.of, sink.of) == (Type::F16, Type::I8) && fits {
        let grid = [blocks(y.rows, ROWS_OF_WARPS), 1, 1];
        let threads = 32 * ROWS_OF_WARPS;
        let args: [&dyn Arg; 4] = [&source, &sink, &rows, &factor];
        (y.device()).launch("hadamard", "rotate_12x128", grid, threads, 0, &args)?;
        return Ok(out);
    }
    let name = format!("rotate_{}", size.base());
    let args: [&dyn Arg; 5] = [&source, &sink, &rows, &(block as i32), &factor];
    let shared = shared_bytes(size.n()) as u32;
    let resident = RESIDENT * y.device().multiprocessors();
    let grid = [(y.rows as u32).min(resident), 1, 1];
    y.device()
        .launch("hadamard", &name, grid, THREADS, shared, &args)?;
    Ok(out)
}
