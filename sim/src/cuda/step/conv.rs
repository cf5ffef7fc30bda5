//! Convolution with SiLU, its window and its history. Twin: `step/conv.rs`.

use super::{MAX_BLOCKS, blocks};
use crate::arith::real::RealRules;
use crate::cuda::args::{self, Quantizer, Type};
use crate::cuda::matrix::{Kind, Matrix};
use crate::cuda::rules;
use crate::cuda::weights;
use crate::error::Result;
use crate::profile::{ConvForm, ConvRules, SiluForm};
use crate::quant::Scale;

const THREADS: u32 = 128;
/// Tokens a thread of the packed kernel takes.
const RUN: usize = 16;

/// What a convolution over `batch` sequences of `length` tokens reads.
pub struct Window<'a> {
    /// The rows to compute: codes, or FP32.
    pub x: &'a Matrix,
    /// Rows from one sequence's first to the next one's.
    pub step: usize,
    /// The K−1 rows before each sequence; zeros if none.
    pub before: Option<Matrix>,
    /// Rows from one sequence's rows before to the next one's.
    pub before_step: usize,
    /// Scale of codes with a static scale.
    pub scale: Option<Scale>,
    /// Scales of dynamic codes, of each sequence one for all, or one a row of the window.
    pub scales: Option<&'a Matrix>,
    pub batch: usize,
    pub length: usize,
    pub taps: usize,
}

/// Convolves and applies SiLU; `kind` is INT8 or FP32.
pub fn conv_silu(
    rules: &ConvRules,
    weight: &weights::Conv,
    window: &Window,
    kind: Kind,
    quantizer: Quantizer,
) -> Result<Matrix> {
    let x = window.x;
    let (channels, rows) = (x.columns, window.batch * window.length);
    let out = Matrix::new(x.device(), rows, channels, kind)?;
    let sink = out.sink(quantizer);
    let args = args::Conv {
        x: x.source(window.scale),
        x_step: (window.step * x.stride()) as i64,
        before: window.before.as_ref().map_or(0, Matrix::pointer),
        before_step: (window.before_step * channels) as i64,
        scales: window.scales.map_or(0, Matrix::pointer),
        codes: weight.codes.as_ref().map_or(0, |codes| codes.pointer()),
        weights: weight.taps.pointer(),
        bias: weight.bias.pointer(),
        weight_scale: weight.tap_scale,
        bias_scale: weight.bias_scale,
        taps: window.taps as i32,
        channels: channels as i32,
        length: window.length as i32,
        form: rules::form(rules.form),
        scales_each: window.scales.map_or(0, |s| s.rows / window.batch) as i32,
        silu_product: i32::from(rules.silu_form == SiluForm::Product),
    };
    let aligned =
        channels.is_multiple_of(4) && x.stride().is_multiple_of(4) && x.pointer().is_multiple_of(4);
    let packed = rules.real == RealRules::SpecialFunctionUnit
        && rules.form == ConvForm::IntegerSum
        && rules.silu_form == SiluForm::Quotient
        && args.x.of == Type::I8
        && args.codes != 0
        && args.scales == 0
        && aligned
        && window.length.div_ceil(RUN) <= MAX_BLOCKS
        && window.batch <= MAX_BLOCKS;
    if packed {
        let grid = [
            blocks(channels / 4, THREADS),
            window.length.div_ceil(RUN) as u32,
            window.batch as u32,
        ];
        let name = "conv_silu_packed_unit";
        x.device()
            .launch("conv", name, grid, THREADS, 0, &[&args, &sink])?;
    } else {
        let name = format!("conv_silu_{}", rules::real(rules.real));
        let grid = [blocks(channels, THREADS), rows.min(MAX_BLOCKS) as u32, 1];
        let rows = rows as i64;
        x.device()
            .launch("conv", &name, grid, THREADS, 0, &[&args, &sink, &rows])?;
    }
    Ok(out)
}

/// The last `rows` rows of each sequence's K rows before (zeros if none) and its rows of x,
/// `[batch·rows, E]`.
pub fn last_rows(
    x: &Matrix,
    before: Option<&Matrix>,
    taps: usize,
    batch: usize,
    length: usize,
    rows: usize,
) -> Result<Matrix> {
    let out = Matrix::new(x.device(), batch * rows, x.columns, x.kind)?;
    let grid = [
        blocks(x.columns, THREADS),
        rows.min(MAX_BLOCKS) as u32,
        batch as u32,
    ];
    x.device().launch(
        "conv",
        "conv_last_rows",
        grid,
        THREADS,
        0,
        &[
            &x.source(None),
            &before.map_or(0, Matrix::pointer),
            &out.pointer(),
            &(taps as i32),
            &(x.columns as i32),
            &(length as i32),
            &(rows as i32),
        ],
    )?;
    Ok(out)
}
