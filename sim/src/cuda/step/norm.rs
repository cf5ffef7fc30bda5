//! Residual add and RMSNorm. Twin: `step/norm.rs`.

use super::blocks;
use crate::cuda::args::Quantizer;
use crate::cuda::device::Buffer;
use crate::cuda::matrix::{Kind, Matrix};
use crate::cuda::rules;
use crate::error::Result;
use crate::profile::FinalNorm;

const ROWS: u32 = 8;

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
    hidden.device().launch(
        "norm",
        "rms_norm",
        [blocks(rows, ROWS), 1, 1],
        ROWS * 32,
        0,
        &[
            &hidden.source(None),
            &residual.map_or(0, Matrix::pointer),
            &weight.pointer(),
            &out.residual.pointer(),
            &out.normed.sink(quantizer),
            &(rows as i32),
            &(m as i32),
            &eps,
            &rules::final_norm(rule),
        ],
    )?;
    Ok(out)
}
