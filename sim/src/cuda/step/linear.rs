//! Linear steps. Twin: `step/linear.rs`.

use super::convert::real;
use super::{MAX_BLOCKS, blocks};
use crate::cuda::args::{Arg, LinearI8, Pointer, Sink, Type};
use crate::cuda::device::Device;
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
/// Of the kernel of warpgroups: outputs of the panel of a block of threads, rows of a warpgroup at a time, columns of k
/// and bytes of a stage, warpgroups and stages of each, and bytes by which a panel may be moved.
const PANELS: [usize; 2] = [192, 96];
const WIDE_ROWS: usize = 64;
const WIDE_COLUMNS: usize = 128;
const WIDE_STAGE: usize = WIDE_ROWS * WIDE_COLUMNS;
const WARPGROUPS: usize = 3;
const WIDE_STAGES: usize = 3;
const ALIGNED: usize = 1024;
/// Threads of the other kernels.
const THREADS: u32 = 256;
/// Rows up to which a warp for each output, or a thread, beats tiles; rows such a warp takes.
const FEW_ROWS: usize = 16;
const ROWS_OF_WARP: u32 = 4;
/// Outputs of a block of the FP32 kernels.
const TILE_F32: u32 = 64;
/// Of the kernel for few rows and weights of binary16: threads, columns of k in a stage, and stages; 8 columns more lie
/// between rows of the weight.
const HALF_THREADS: u32 = 64;
const HALF_COLUMNS: usize = 64;
const HALF_STAGES: usize = 3;

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
        let args: [&dyn Arg; 2] = [&product, &sink];
        if aligned
            && rows > FEW_ROWS
            && let Some(wide) = Wide::of(x.device(), &product, &sink)
        {
            return wide.launch(x.device(), &product, &sink);
        }
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
        && x.pointer().is_multiple_of(16)
        && k % 8 == 0;
    if halves && rows <= FEW_ROWS {
        let args: [&dyn Arg; 6] = [
            &x.pointer(),
            &source,
            &sink,
            &(rows as i64),
            &(n as i32),
            &k,
        ];
        let (name, at_once) = match rows {
            1 => ("linear_half_1", 1),
            2..=4 => ("linear_half_4", 4),
            _ => ("linear_half_8", 8),
        };
        let stage = 2 * HALF_THREADS as usize * (HALF_COLUMNS + 8) + 4 * at_once * HALF_COLUMNS;
        let (grid, shared) = (
            [blocks(n, HALF_THREADS), blocks(rows, at_once as u32), 1],
            (HALF_STAGES * stage) as u32,
        );
        return (x.device()).launch("linear_f32", name, grid, HALF_THREADS, shared, &args);
    }
    let (name, grid) = if rows > ROWS_OF_WARP as usize {
        let grid = [blocks(n, TILE_F32), check_rows(blocks(rows, TILE_F32))?, 1];
        ("linear_f32", grid)
    } else {
        ("linear_f32_rows", [blocks(n, TILE_F32), rows as u32, 1])
    };
    let args: [&dyn Arg; 7] = [
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

/// How the kernel of warpgroups makes a product.
struct Wide {
    name: String,
    /// Panels that make all outputs, and blocks of threads for each.
    panels: usize,
    blocks: usize,
    shared: usize,
}

impl Wide {
    /// `None` where the device, the shapes or the rule are not what that kernel has.
    fn of(device: &Device, product: &LinearI8, out: &Sink) -> Option<Self> {
        let (bytes, of) = match out.of {
            Type::I8 => (1, "i8"),
            Type::F16 => (2, "f16"),
            Type::F32 => return None,
        };
        let (n, k) = (product.n as usize, product.k as usize);
        let fits = product.channels == 0
            && n % 8 == 0
            && out.data.is_multiple_of(8 * bytes)
            && out.stride % 8 == 0
            && (out.of == Type::F16 || rules::rounds_to_even(&out.quantizer));
        if !fits || !device.has_warpgroups() {
            return None;
        }
        let stages = WARPGROUPS * WIDE_STAGES * WIDE_STAGE;
        let shared = |panel| panel * k.next_multiple_of(WIDE_COLUMNS) + stages + ALIGNED;
        // The widest that fits reads x least often; none wider than there are outputs.
        let mut panels = PANELS.into_iter();
        let panel = panels.find(|&panel| {
            shared(panel) <= device.shared() as usize && (panel <= n || panel == PANELS[1])
        })?;
        let (panels, tiles) = (
            n.div_ceil(panel),
            (product.rows as usize).div_ceil(WIDE_ROWS),
        );
        let multiprocessors = device.multiprocessors() as usize;
        Some(Self {
            name: format!("linear_wide_{panel}_to_{of}"),
            panels,
            blocks: (multiprocessors / panels).clamp(1, tiles),
            shared: shared(panel),
        })
    }

    fn launch(&self, device: &Device, product: &LinearI8, out: &Sink) -> Result<()> {
        let panels = self.panels as i32;
        let args: [&dyn Arg; 3] = [product, out, &panels];
        let grid = [(self.panels * self.blocks) as u32, 1, 1];
        let (threads, shared) = ((128 * WARPGROUPS) as u32, self.shared as u32);
        device.launch("linear_wide", &self.name, grid, threads, shared, &args)
    }
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
