//! Dynamic quantization. Twin: `step/dynamic.rs`.

use super::MAX_BLOCKS;
use crate::arith::requant::QuantRule;
use crate::cuda::device::Buffer;
use crate::cuda::matrix::{Kind, Matrix};
use crate::cuda::rules;
use crate::error::Result;
use std::sync::Arc;

const THREADS: u32 = 256;

/// Codes and their scales, one a group of rows.
pub struct Dynamic {
    pub codes: Matrix,
    pub scales: Matrix,
}

/// Quantizes each group of `rows` rows by a rule with the scale absmax/127 of the group.
pub fn quantize(values: &Matrix, rows: usize, rule: QuantRule) -> Result<Dynamic> {
    assert!(values.kind == Kind::F32 && values.is_contiguous() && values.rows.is_multiple_of(rows));
    let device = values.device();
    let groups = values.rows / rows;
    let size = rows * values.columns;
    let peaks: Arc<Buffer> = device.allocate(groups * 4)?;
    device.zero(&peaks, groups * 4)?;
    let out = Dynamic {
        codes: Matrix::new(device, values.rows, values.columns, Kind::Codes)?,
        scales: Matrix::new(device, groups, 1, Kind::F32)?,
    };
    let parts = size.div_ceil(16 * THREADS as usize).clamp(1, MAX_BLOCKS) as u32;
    let grid = [groups as u32, parts, 1];
    let (from, peaks, size) = (values.pointer(), peaks.pointer(), size as i64);
    device.launch(
        "dynamic",
        "absmax",
        grid,
        THREADS,
        0,
        &[&from, &peaks, &size],
    )?;
    let (codes, scales) = (out.codes.pointer(), out.scales.pointer());
    let [quotient, rounding, overflow] = rules::quantizer_numbers(rule);
    let args: [&dyn crate::cuda::args::Arg; 8] = [
        &from, &peaks, &codes, &scales, &size, &quotient, &rounding, &overflow,
    ];
    device.launch("dynamic", "quantize_dynamic", grid, THREADS, 0, &args)?;
    Ok(out)
}
