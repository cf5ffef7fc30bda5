//! Linear steps. Twin: `step/linear.rs`.

use super::convert::real;
use super::{MAX_BLOCKS, blocks};
use crate::cuda::args::{LinearI8, Pointer, Type};
use crate::cuda::matrix::{Kind, Matrix};
use crate::cuda::rules::{self, NO_QUANTIZER};
use crate::cuda::weights::Linear;
use crate::error::{Result, SimError};
use crate::profile::LinearRule;
use crate::quant::Scale;
use crate::step::linear::LinearOutput;

/// Outputs of a tile of the tensor-core kernel, its threads, and its shared memory: four stages of both operands, or
/// outputs of four bytes in rows that are 16 longer.
const TILE: u32 = 128;
const TILE_THREADS: u32 = 128;
const TILE_SHARED: u32 = TILE * (4 * TILE + 16);
const _: () = assert!(TILE_SHARED >= 4 * 2 * TILE * 64);
/// Threads of the other kernels.
const THREADS: u32 = 256;
/// Rows up to which a warp for each output, or a thread, beats tiles; rows such a warp takes.
const FEW_ROWS: usize = 16;
const ROWS_OF_WARP: u32 = 4;
/// Outputs of a block of the FP32 kernels.
const TILE_F32: u32 = 64;
/// Threads of the kernel for few rows and weights of binary16, and bytes of a row that it holds.
const HALF_THREADS: u32 = 64;
const HALF_SHARED: usize = 20 << 10;

/// The type of an output.
pub fn kind(output: LinearOutput) -> Kind {
    match output {
        LinearOutput::Int8(scale) => Kind::I8(scale),
        LinearOutput::F16 => Kind::F16,
        LinearOutput::F32 => Kind::F32,
    }
}

/// Multiplies `x` (`[rows, in]`) by `weight` (`[out, in]`).
pub fn linear(
    x: &Matrix,
    input_scale: Option<Scale>,
    weight: &Linear,
    rule: LinearRule,
    output: LinearOutput,
    status: Pointer,
) -> Result<Matrix> {
    let out = Matrix::new(x.device(), x.rows, weight.outputs(), kind(output))?;
    linear_into(&out, x, input_scale, weight, rule, output, status)?;
    Ok(out)
}

/// [`linear`] into a matrix, or columns of one.
pub fn linear_into(
    out: &Matrix,
    x: &Matrix,
    input_scale: Option<Scale>,
    weight: &Linear,
    rule: LinearRule,
    output: LinearOutput,
    status: Pointer,
) -> Result<()> {
    let quantizer = match output {
        LinearOutput::Int8(scale) => rules::quantizer(rule.output, scale, status),
        LinearOutput::F16 | LinearOutput::F32 => NO_QUANTIZER,
    };
    let sink = out.sink(quantizer);
    let (rows, n) = (x.rows, weight.outputs());
    let product = match (x.kind, weight) {
        (Kind::I8(own), Linear::Int8 { codes, scale }) => {
            let s_in = input_scale.unwrap_or(own);
            let a = match output {
                LinearOutput::Int8(s_out) => s_in.ratio(s_out).get(),
                LinearOutput::F16 | LinearOutput::F32 => s_in.get(),
            };
            Some((codes, a, scale.get(), 0))
        }
        (Kind::I8(own), Linear::Int4 { codes, channels }) => {
            let s_in = input_scale.unwrap_or(own);
            let s_out = match output {
                LinearOutput::Int8(s_out) => s_out.get(),
                LinearOutput::F16 | LinearOutput::F32 => 1.0,
            };
            Some((codes, s_in.get(), s_out, channels.pointer()))
        }
        _ => None,
    };
    if let Some((codes, a, b, channels)) = product {
        let product = LinearI8 {
            x: x.pointer(),
            weight: codes.pointer(),
            x_stride: x.stride() as i64,
            weight_stride: codes.stride() as i64,
            rows: rows as i64,
            n: n as i32,
            k: x.columns as i32,
            a,
            b,
            order: rules::order(rule.order),
            channels,
        };
        let aligned = x.pointer().is_multiple_of(16) && x.stride().is_multiple_of(16);
        let (name, grid, threads, shared) = if aligned && rows > FEW_ROWS {
            let name = match sink.of {
                Type::I8 => "linear_i8_to_i8",
                Type::F16 => "linear_i8_to_f16",
                Type::F32 => "linear_i8_to_f32",
            };
            let grid = [blocks(n, TILE), check_rows(blocks(rows, TILE))?, 1];
            (name, grid, TILE_THREADS, TILE_SHARED)
        } else {
            let grid = [
                blocks(n, THREADS / 32),
                check_rows(blocks(rows, ROWS_OF_WARP))?,
                1,
            ];
            ("linear_i8_rows", grid, THREADS, 0)
        };
        let args: [&dyn crate::cuda::args::Arg; 2] = [&product, &sink];
        return (x.device()).launch("linear_i8", name, grid, threads, shared, &args);
    }
    let x = real(x, input_scale)?;
    let (source, scales) = match weight {
        Linear::Int8 { codes, scale } => {
            let mut source = codes.source(None);
            source.scale = scale.get();
            (source, 0)
        }
        Linear::Int4 { codes, channels } => (codes.source(None), channels.pointer()),
        Linear::Float(weight) => (weight.source(None), 0),
    };
    let k = x.columns as i32;
    let halves = source.of == Type::F16
        && source.data.is_multiple_of(16)
        && source.stride % 8 == 0
        && k % 8 == 0
        && 4 * x.columns <= HALF_SHARED;
    if halves && rows <= FEW_ROWS {
        let args: [&dyn crate::cuda::args::Arg; 6] = [
            &x.pointer(),
            &source,
            &sink,
            &(rows as i64),
            &(n as i32),
            &k,
        ];
        let (grid, shared) = ([blocks(n, TILE_F32), rows as u32, 1], 4 * k as u32);
        let name = "linear_half_rows";
        return (x.device()).launch("linear_f32", name, grid, HALF_THREADS, shared, &args);
    }
    let (name, grid) = if rows > ROWS_OF_WARP as usize {
        let grid = [blocks(n, TILE_F32), check_rows(blocks(rows, TILE_F32))?, 1];
        ("linear_f32", grid)
    } else {
        ("linear_f32_rows", [blocks(n, TILE_F32), rows as u32, 1])
    };
    let args: [&dyn crate::cuda::args::Arg; 7] = [
        &x.pointer(),
        &source,
        &sink,
        &(rows as i64),
        &(n as i32),
        &k,
        &scales,
    ];
    x.device()
        .launch("linear_f32", name, grid, THREADS, 0, &args)
}

fn check_rows(blocks: u32) -> Result<u32> {
    match blocks as usize <= MAX_BLOCKS {
        true => Ok(blocks),
        false => Err(SimError::value(
            "tokens on a CUDA device",
            "fewer in one run",
            "more blocks of rows than a grid has",
        )),
    }
}
