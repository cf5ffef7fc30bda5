//! `scalescope bench --device cuda`: time, bytes and operations of each step, against the bandwidth that a copy
//! reaches on the device. Times are of the device's own clock, the median block of the median run.

use super::BenchArgs;
use crate::Outcome;
use crate::input::Subject;
use crate::interrupt;
use crate::output::{print, print_json, progress, table, table_text};
use scalescope_sim::cuda::{CudaDatapath, Device, copy_bandwidth, decode_time, prefill_times};
use scalescope_sim::dataflow::Step;
use scalescope_sim::datapath::Datapath;
use scalescope_sim::error::{Result, SimError};
use scalescope_sim::mode::{ModeSpec, Precision, ScanInput, Stream, XOutput};
use scalescope_sim::model::Config;
use scalescope_sim::profile::Profile;
use serde::Serialize;
use std::sync::Arc;

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

/// A prefill of several sequences of one length.
#[derive(Serialize)]
struct Prefill {
    sequences: usize,
    tokens: usize,
    /// All of it, the last token's logits included.
    seconds: f64,
    tokens_per_second: f64,
    steps: Vec<Row>,
}

/// One token of several sequences, decoded together.
#[derive(Serialize)]
struct Decode {
    sequences: usize,
    /// Recorded once as a graph, launched as a whole.
    recorded_seconds: f64,
    /// Every kernel launched by itself.
    launched_seconds: f64,
}

#[derive(Serialize)]
struct Measurement {
    mode: String,
    profile: String,
    prefills: Vec<Prefill>,
    decodes: Vec<Decode>,
}

pub fn run(
    args: &BenchArgs,
    subject: &Subject,
    (modes, profiles): (&[ModeSpec], &[Profile]),
    device: &Arc<Device>,
) -> Result<Outcome> {
    if let Some(points) = &args.points {
        let expected = "none on a GPU, where no prefill is timed with points recorded";
        return Err(SimError::value("--points", expected, points.join(",")));
    }
    let bandwidth = copy_bandwidth(device)?;
    let bar = progress((modes.len() * profiles.len()) as u64, "measuring");
    let mut measurements = Vec::new();
    for mode in modes {
        for profile in profiles {
            interrupt::check()?;
            let prepared = Datapath::new(&subject.model, mode, profile)?;
            let path = CudaDatapath::new(prepared, device)?;
            measurements.push(measure(
                args,
                subject.model.config()?,
                mode,
                profile,
                &path,
            )?);
            bar.inc(1);
        }
    }
    bar.finish_and_clear();
    if args.json {
        print_json(&serde_json::json!({
            "model": subject.name,
            "device": device.name(),
            "repeats": args.repeat,
            "copy_bytes_per_second": bandwidth,
            "measurements": measurements,
        }));
    } else {
        let heading = format!(
            "{}, {}; medians of {} runs; a copy there moves {:.2} TB/s",
            subject.name,
            device.name(),
            args.repeat,
            bandwidth * 1e-12
        );
        let all: String = measurements.iter().map(|m| text(m, bandwidth)).collect();
        print(&format!("{heading}\n{all}"));
    }
    Ok(Outcome::Success)
}

fn measure(
    args: &BenchArgs,
    config: &Config,
    mode: &ModeSpec,
    profile: &Profile,
    path: &CudaDatapath,
) -> Result<Measurement> {
    let (mut prefills, mut decodes) = (Vec::new(), Vec::new());
    for sequences in args.batch.iter().map(|n| n.get()) {
        for tokens in args.length.iter().map(|n| n.get()) {
            let (times, whole) = prefill_times(path, sequences, tokens, args.repeat.get())?;
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
            prefills.push(Prefill {
                sequences,
                tokens,
                seconds: whole.as_secs_f64(),
                tokens_per_second: (sequences * tokens) as f64 / whole.as_secs_f64(),
                steps: steps.collect(),
            });
        }
        if args.decode > 0 {
            let time = decode_time(path, sequences, args.decode)?;
            decodes.push(Decode {
                sequences,
                recorded_seconds: time.recorded.as_secs_f64(),
                launched_seconds: time.launched.as_secs_f64(),
            });
        }
    }
    Ok(Measurement {
        mode: mode.name.to_string(),
        profile: profile.name.to_string(),
        prefills,
        decodes,
    })
}

fn text(m: &Measurement, bandwidth: f64) -> String {
    let mut out = String::new();
    for prefill in &m.prefills {
        let header = ["step", "µs", "MB", "GB/s", "floor µs", "× floor", "Top/s"];
        let mut rows = table(&header, 1);
        for row in &prefill.steps {
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
        out += &format!(
            "\nmode {}, {}, prefill of {} × {} tokens: {:.2} ms, {:.0} tokens/s\n\n{}",
            m.mode,
            m.profile,
            prefill.sequences,
            prefill.tokens,
            prefill.seconds * 1e3,
            prefill.tokens_per_second,
            table_text(&rows)
        );
    }
    for decode in &m.decodes {
        out += &format!(
            "\nmode {}, {}, decode of {}: {:.0} tokens/s ({:.0} µs a token of each, recorded as a graph; {:.0} µs launch by launch)\n",
            m.mode,
            m.profile,
            decode.sequences,
            decode.sequences as f64 / decode.recorded_seconds,
            decode.recorded_seconds * 1e6,
            decode.launched_seconds * 1e6
        );
    }
    out
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
