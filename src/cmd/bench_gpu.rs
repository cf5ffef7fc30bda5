//! `scalescope bench-gpu`: time, bytes and operations of each step on a GPU, against the bandwidth
//! that a copy reaches there.

use crate::Outcome;
use crate::device::{DeviceArg, Devices};
use clap::Args;
use scalescope_sim::error::{Result, SimError};
use std::num::NonZeroUsize;

/// Arguments of `bench-gpu`.
#[derive(Args, Debug)]
#[command(after_help = "Examples:
  scalescope bench-gpu
  scalescope bench-gpu --synthetic 370m --mode 2-1 --profile exact --shapes 4x1024

Times are of the device's own clock, the median block of the median run. docs/cuda.md says what is
counted as bytes and operations.")]
pub struct BenchGpuArgs {
    /// A model of random weights in a published shape
    #[arg(long, value_name = "SHAPE", default_value = "130m")]
    pub synthetic: String,
    /// The mode (see `scalescope modes`)
    #[arg(long, default_value = "0")]
    pub mode: String,
    /// Arithmetic: exact, torch, deployed
    #[arg(long, default_value = "deployed")]
    pub profile: String,
    /// Sequences and their tokens, separated by commas
    #[arg(
        long,
        value_name = "BxL",
        value_delimiter = ',',
        default_value = "1x512,1x2048,8x2048"
    )]
    pub shapes: Vec<String>,
    /// Runs, of which the median counts
    #[arg(
        long = "repeat",
        alias = "repeats",
        value_name = "N",
        default_value = "5"
    )]
    pub repeats: NonZeroUsize,
    /// The GPU: cuda or cuda:I
    #[arg(long, default_value = "cuda", value_name = "DEVICE")]
    pub device: DeviceArg,
    /// Print JSON instead of tables
    #[arg(long)]
    pub json: bool,
}

/// Without the feature there is no device to open.
#[cfg(not(feature = "cuda"))]
pub fn run(args: &BenchGpuArgs) -> Result<Outcome> {
    Devices::open_one(&args.device)?;
    Err(not_a_gpu(args))
}

#[cfg(feature = "cuda")]
pub fn run(args: &BenchGpuArgs) -> Result<Outcome> {
    on_gpu::run(args)
}

fn not_a_gpu(args: &BenchGpuArgs) -> SimError {
    SimError::value("--device", "a GPU", &args.device)
}

#[cfg(feature = "cuda")]
mod on_gpu {
    use super::{BenchGpuArgs, Devices, Outcome, Result, SimError, not_a_gpu};
    use crate::cli::ModelArgs;
    use crate::input::load_subject;
    use crate::output::{print, print_json, table, table_text};
    use scalescope_sim::cuda::{
        CudaDatapath, DecodeTime, copy_bandwidth, decode_time, prefill_times,
    };
    use scalescope_sim::dataflow::Step;
    use scalescope_sim::datapath::Datapath;
    use scalescope_sim::mode::{ModeSpec, ModeTable, Precision, ScanInput, Stream, XOutput};
    use scalescope_sim::model::Config;
    use scalescope_sim::profile::Profile;
    use serde::Serialize;

    /// Tokens decoded to time one.
    const DECODED: usize = 64;

    /// A step of one shape, timed.
    #[derive(Serialize)]
    struct Row {
        step: Step,
        /// Runs in one prefill: one a block.
        runs: usize,
        /// Median run.
        seconds: f64,
        /// Bytes a run has to read and write, each once.
        bytes: f64,
        /// INT8 or FP32 multiplications and additions of a run's matrix product.
        operations: f64,
    }

    #[derive(Serialize)]
    struct Shape {
        sequences: usize,
        tokens: usize,
        /// Whole prefill, the last token's logits included.
        seconds: f64,
        tokens_per_second: f64,
        steps: Vec<Row>,
    }

    pub fn run(args: &BenchGpuArgs) -> Result<Outcome> {
        let table = ModeTable::default();
        let mode = table.get(&args.mode)?;
        let profile = Profile::get(&args.profile)?;
        let shapes = args.shapes.iter().map(|text| shape(text));
        let shapes = shapes.collect::<Result<Vec<_>>>()?;
        let devices = Devices::open_one(&args.device)?;
        let Devices::Cuda(devices) = &devices else {
            return Err(not_a_gpu(args));
        };
        let model = ModelArgs {
            synthetic: Some(args.synthetic.clone()),
            ..ModelArgs::default()
        };
        let subject = load_subject(&model, std::slice::from_ref(mode))?;
        let prepared = Datapath::new(&subject.model, mode, &profile)?;
        let path = CudaDatapath::new(prepared, &devices[0])?;
        let bandwidth = copy_bandwidth(&devices[0])?;
        let mut timed = Vec::new();
        for (sequences, tokens) in shapes {
            let (times, whole) = prefill_times(&path, sequences, tokens, args.repeats.into())?;
            let config = subject.model.config()?;
            let steps = times.into_iter().map(|time| {
                let (bytes, operations) = work(config, mode, sequences * tokens, time.step);
                Row {
                    step: time.step,
                    runs: time.runs,
                    seconds: time.median.as_secs_f64(),
                    bytes,
                    operations,
                }
            });
            timed.push(Shape {
                sequences,
                tokens,
                seconds: whole.as_secs_f64(),
                tokens_per_second: (sequences * tokens) as f64 / whole.as_secs_f64(),
                steps: steps.collect(),
            });
        }
        let decode = decode_time(&path, 1, DECODED)?;
        if args.json {
            print_json(&serde_json::json!({
                "model": subject.name,
                "device": devices[0].name(),
                "mode": mode.name,
                "profile": profile.name,
                "copy_bytes_per_second": bandwidth,
                "shapes": timed,
                "decode_seconds": {
                    "recorded": decode.recorded.as_secs_f64(),
                    "launched": decode.launched.as_secs_f64(),
                },
            }));
        } else {
            let heading = format!(
                "{}, mode {}, profile {}, {}; a copy there moves {:.2} TB/s",
                subject.name,
                mode.name,
                profile.name,
                devices[0].name(),
                bandwidth * 1e-12
            );
            let shapes: Vec<String> = timed.iter().map(|shape| text(shape, bandwidth)).collect();
            print(&format!(
                "{heading}\n{}\n{}",
                shapes.concat(),
                decode_text(decode)
            ));
        }
        Ok(Outcome::Success)
    }

    fn decode_text(time: DecodeTime) -> String {
        let (recorded, launched) = (time.recorded.as_secs_f64(), time.launched.as_secs_f64());
        format!(
            "decode, 1 sequence: {:.0} tokens/s ({:.0} µs a token, recorded as a graph; {:.0} µs launch by launch)",
            1.0 / recorded,
            recorded * 1e6,
            launched * 1e6
        )
    }

    fn shape(text: &str) -> Result<(usize, usize)> {
        let parts = text.split_once('x');
        let parts = parts.and_then(|(b, l)| Some((b.parse().ok()?, l.parse().ok()?)));
        match parts {
            Some((b, l)) if b > 0 && l > 0 => Ok((b, l)),
            _ => Err(SimError::value("--shapes", "BxL, such as 8x2048", text)),
        }
    }

    fn text(shape: &Shape, bandwidth: f64) -> String {
        let header = ["step", "µs", "MB", "GB/s", "floor µs", "× floor", "Top/s"];
        let mut rows = table(&header, 1);
        for row in &shape.steps {
            let floor = row.bytes / bandwidth;
            rows.add_row([
                row.step.name().to_string(),
                format!("{:.1}", row.seconds * 1e6),
                format!("{:.1}", row.bytes * 1e-6),
                format!("{:.0}", row.bytes / row.seconds * 1e-9),
                format!("{:.1}", floor * 1e6),
                format!("{:.1}", row.seconds / floor),
                match row.operations {
                    0.0 => String::new(),
                    operations => format!("{:.1}", operations / row.seconds * 1e-12),
                },
            ]);
        }
        format!(
            "\n{} × {} tokens: {:.2} ms, {:.0} tokens/s\n\n{}",
            shape.sequences,
            shape.tokens,
            shape.seconds * 1e3,
            shape.tokens_per_second,
            table_text(&rows)
        )
    }

    /// Bytes that a step must read and write, each once, and operations of its matrix product, for
    /// `rows` tokens. Weights count where they are a matrix. The head's row is one token a sequence
    /// and counts as none.
    fn work(config: &Config, mode: &ModeSpec, rows: usize, step: Step) -> (f64, f64) {
        let code = |precision| if precision == Precision::Int8 { 1 } else { 4 };
        let stream = if mode.stream == Stream::F16 { 2 } else { 4 };
        let weight = if mode.weights == Precision::Int8 {
            1
        } else {
            2
        };
        let x = match mode.x {
            XOutput::Int8 => 1,
            XOutput::F16 => 2,
            XOutput::Float => 4,
        };
        let u = if mode.u == ScanInput::Float { 4 } else { 1 };
        let (m, e, n) = (config.d_model, config.d_inner, config.d_state);
        let (r, w) = (config.dt_rank, config.x_proj_width());
        let dt = code(mode.dt_proj_out);
        let (bytes, operations) = match step {
            Step::Embed => (rows * m * (2 + stream), 0),
            Step::Norm => (rows * m * (stream + 8 + code(mode.norm_out)), 0),
            Step::InProj => (
                rows * (m * code(mode.norm_out) + e * (x + code(mode.z))) + 2 * e * m * weight,
                2 * rows * m * 2 * e,
            ),
            Step::Conv => (rows * e * (x + code(mode.conv_out)), 0),
            Step::XProj => (
                rows * (e * code(mode.conv_out) + w * code(mode.x_proj_out)) + w * e * weight,
                2 * rows * e * w,
            ),
            Step::DtProj => (
                rows * (r * code(mode.x_proj_out) + e * dt) + e * r * weight,
                2 * rows * r * e,
            ),
            Step::Scan => (
                rows * (e * (u + dt + code(mode.z) + stream) + 2 * n * code(mode.x_proj_out)),
                0,
            ),
            Step::Hadamard => (rows * e * (stream + code(mode.had_out)), 0),
            Step::OutProj => (
                rows * (e * code(mode.had_out) + m * stream) + m * e * weight,
                2 * rows * e * m,
            ),
            Step::Head => (2 * config.vocab_size * m, 0),
        };
        (bytes as f64, operations as f64)
    }
}
