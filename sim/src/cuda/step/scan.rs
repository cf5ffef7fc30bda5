//! The selective scan. Twins: `step/scan*.rs`.

use super::blocks;
use crate::arith::real::RealRules;
use crate::cuda::args::{self, Quantizer, Source, Type};
use crate::cuda::device::{Buffer, Device};
use crate::cuda::matrix::{Kind, Matrix};
use crate::cuda::rules::{self, NO_QUANTIZER};
use crate::cuda::weights;
use crate::error::Result;
use crate::profile::ScanRules;
use crate::step::scan_plan;
use std::sync::Arc;

const THREADS: u32 = 256;
/// Tokens of a chunk of the sequential kernel.
const CHUNK: usize = 16;
/// Of the block scan: threads and channels of a block, states whose B and C lie in shared memory, and bytes of the
/// tables of a block's codes.
const BLOCK_THREADS: u32 = 512;
const CHANNELS: usize = 16;
const STAGES: usize = 3;
const TABLES: usize = 256 * (4 * CHANNELS + 8);

/// What a scan over `batch` sequences of `length` tokens reads.
pub struct Inputs {
    pub u: Source,
    pub dt: Source,
    pub b: Source,
    pub c: Source,
    pub z: Source,
    /// State before the first token, `[batch·E, N]`; zeros if none.
    pub before: Option<Source>,
    pub batch: usize,
    pub length: usize,
    pub channels: usize,
    pub states: usize,
}

/// What a scan makes.
pub struct Outputs {
    /// Gated, `[batch·L, E]`.
    pub y: Matrix,
    /// After the last token, `[batch·E, N]`.
    pub state: Matrix,
}

/// exp(A_log) by a set of operations.
pub fn decay_rates(
    device: &Arc<Device>,
    real: RealRules,
    a_log: &Buffer,
    scale: f32,
    count: usize,
) -> Result<Arc<Buffer>> {
    let alpha = device.allocate(count * 4)?;
    let name = format!("decay_rates_{}", rules::real(real));
    let grid = [blocks(count, THREADS), 1, 1];
    let (from, to, count) = (a_log.pointer(), alpha.pointer(), count as i32);
    device.launch(
        "convert",
        &name,
        grid,
        THREADS,
        0,
        &[&from, &scale, &to, &count],
    )?;
    Ok(alpha)
}

/// Runs a scan by its rules; `y` is binary16 or FP32, the state is quantized by `quantizer` or FP32.
pub fn selective_scan(
    device: &Arc<Device>,
    rules: &ScanRules,
    weight: &weights::Scan,
    inputs: &Inputs,
    y: Kind,
    state: Kind,
    quantizer: Quantizer,
) -> Result<Outputs> {
    let Inputs {
        batch,
        length,
        channels,
        states,
        ..
    } = *inputs;
    let out = Outputs {
        y: Matrix::new(device, batch * length, channels, y)?,
        state: Matrix::new(device, batch * channels, states, state)?,
    };
    let scan = args::Scan {
        u: inputs.u,
        dt: inputs.dt,
        b: inputs.b,
        c: inputs.c,
        z: inputs.z,
        before: inputs.before.unwrap_or(Source::NONE),
        alpha: weight.alpha(rules.real),
        d: weight.d.pointer(),
        dt_bias: weight.dt_bias.pointer(),
        d_scale: weight.d_scale,
        dt_bias_scale: weight.dt_bias_scale,
        channels: channels as i32,
        states: states as i32,
        length: length as i32,
        sum: rules::sum(*rules),
        y: out.y.sink(NO_QUANTIZER),
        after: out.state.sink(quantizer),
    };
    let name = rules::scan(*rules);
    if name == "block" {
        block_scan(device, &scan, inputs)?;
    } else {
        let name = format!("scan_{name}_{}", rules::real(rules.real));
        let width = (THREADS as usize / states).max(1);
        let threads = ((width * states) as u32).next_multiple_of(32).min(THREADS);
        let shared = 4 * CHUNK * (width * states + 2 * width + 2 * states);
        let grid = [blocks(channels, width as u32), batch as u32, 1];
        device.launch(
            "scan_sequential",
            &name,
            grid,
            threads,
            shared as u32,
            &[&scan],
        )?;
    }
    Ok(out)
}

fn block_scan(device: &Arc<Device>, scan: &args::Scan, inputs: &Inputs) -> Result<()> {
    let (batch, length, states) = (inputs.batch, inputs.length, inputs.states);
    let (threads, items) = scan_plan(length);
    let span = threads * items;
    // B and C of a state.
    let set = 2 * span;
    let tokens = length.next_multiple_of(span);
    let operands = device.allocate(batch * tokens * 2 * states * 4)?.pointer();
    let (n, l, t, i) = (states as i32, length as i32, threads as i32, items as i32);
    device.launch(
        "scan_block",
        "scan_operands_unit",
        [blocks(tokens, THREADS), batch as u32, 2 * blocks(states, 4)],
        THREADS,
        0,
        &[
            &inputs.b,
            &inputs.c,
            &operands,
            &n,
            &l,
            &t,
            &i,
            &(tokens as i32),
        ],
    )?;
    let vectors = |source: &Source| {
        source.of == Type::I8 && source.data.is_multiple_of(16) && source.stride % 16 == 0
    };
    let tiled = inputs.channels.is_multiple_of(CHANNELS)
        && [&scan.u, &scan.dt, &scan.z].into_iter().all(vectors)
        && scan.y.of == Type::F16;
    let rest = 4 * (STAGES * set + 2 * CHANNELS * states);
    let tile = CHANNELS * 3 * span + TABLES;
    let tiled = tiled && tile + rest <= device.shared() as usize;
    let shared = rest + if tiled { tile } else { 0 };
    let suffix = if tiled { "_tiled" } else { "" };
    let name = format!("scan_block_{threads}x{items}_unit{suffix}");
    let grid = [blocks(inputs.channels, CHANNELS as u32), batch as u32, 1];
    device.launch(
        "scan_block",
        &name,
        grid,
        BLOCK_THREADS,
        shared as u32,
        &[scan, &operands],
    )
}
