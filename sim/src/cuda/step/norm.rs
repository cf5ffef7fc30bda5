//! Residual add and RMSNorm. Twin: `step/norm.rs`.

use super::blocks;
use crate::cuda::args::{Norm, Quantizer, Type};
use crate::cuda::device::Buffer;
use crate::cuda::matrix::{Kind, Matrix};
use crate::cuda::rules;
use crate::error::Result;
use crate::profile::FinalNorm;

/// Rows of a block of threads, and its threads.
const ROWS: u32 = 8;
const THREADS: u32 = 64;
/// Elements that rows in shared memory are longer; memory they may take.
const GAP: usize = 8;
const KEPT: u32 = 48 << 10;

/// Residual stream (FP32) and normed hidden state (of `kind`).
pub struct Normed {
    pub residual: Matrix,
    pub normed: Matrix,
}

/// Adds `hidden` to the residual stream and normalizes each row by `rule`.
pub fn rms_norm(
    rule: FinalNorm,
    hidden: &Matrix,
    residual: Option<&Matrix>,
    weight: &Buffer,
    eps: f32,
    kind: Kind,
    quantizer: Quantizer,
) -> Result<Normed> {
    let (rows, m) = (hidden.rows, hidden.columns);
    let out = Normed {
        residual: Matrix::new(hidden.device(), rows, m, Kind::F32)?,
        normed: Matrix::new(hidden.device(), rows, m, kind)?,
    };
    let norm = Norm {
        hidden: hidden.source(None),
        residual: residual.map_or(0, Matrix::pointer),
        weight: weight.pointer(),
        residual_out: out.residual.pointer(),
        out: out.normed.sink(quantizer),
        rows: rows as i32,
        m: m as i32,
        eps,
        torch_device: rules::final_norm(rule),
    };
    let grid = [blocks(rows, ROWS), 1, 1];
    let shared = ROWS * 4 * (m + GAP) as u32;
    // What four elements at a time take.
    let fours = m % 4 == 0
        && norm.hidden.of != Type::I8
        && norm.hidden.stride % 4 == 0
        && norm.hidden.data.is_multiple_of(16)
        && norm.out.stride % 4 == 0
        && norm.out.data.is_multiple_of(16);
    let (name, shared) = match fours && rows > ROWS as usize && shared <= KEPT {
        true => ("rms_norm_kept", shared),
        false => ("rms_norm", 0),
    };
    (hidden.device()).launch("norm", name, grid, THREADS, shared, &[&norm])?;
    Ok(out)
}
