//! `scalescope bench`: speed of whole models, where the time goes, and what the machine could do.

#[cfg(feature = "cuda")]
mod gpu;

use crate::Outcome;
use crate::cli::ModelArgs;
use crate::device::{DeviceArg, Devices};
use crate::dumps::trace_points;
use crate::input::{Subject, load_subject, mode_table, runnable, select_modes};
use crate::output::{print, print_json, progress, table, table_text};
use clap::Args;
use scalescope_sim::bench::{
    Peaks, StepTimes, batch_throughput, decode_throughput, greedy_throughput, linear_work,
    measure_peaks, throughput, traced_throughput,
};
use scalescope_sim::dataflow::Step;
use scalescope_sim::datapath::Datapath;
use scalescope_sim::error::Result;
use scalescope_sim::isa::Isa;
use scalescope_sim::mode::ModeSpec;
use scalescope_sim::profile::Profile;
use scalescope_sim::trace::{Selection, TracePoint};
use serde::Serialize;
use std::collections::BTreeMap;
use std::num::NonZeroUsize;
use std::time::Instant;

/// Arguments of `bench`.
#[derive(Args, Debug)]
#[command(after_help = "Examples:
  scalescope bench
  scalescope bench --synthetic 370m --modes 0,1 --profile exact,deployed --threads 2
  scalescope bench --length 512,2048,16384 --decode 0 --json
  scalescope bench --batch 1,8,32
  scalescope bench --device cuda --profile deployed --length 512,2048 --batch 1,8

tok/s is by wall time; processor time, beside it, suffers less from other work on the machine
(docs/performance.md). On a GPU each step has its own time by the device's clock, and that of a copy
of its bytes (docs/cuda.md).")]
pub struct BenchArgs {
    /// The model [default: random weights of the 130m shape].
    #[command(flatten)]
    pub model: ModelArgs,
    /// Modes to run: `all`, or names separated by commas
    #[arg(long, default_value = "0", value_name = "MODES")]
    pub modes: String,
    /// Arithmetics, separated by commas: built-in profiles (exact, torch, deployed, asic-int8, …) or .toml files
    #[arg(
        long,
        default_value = "exact",
        value_name = "LIST",
        value_delimiter = ','
    )]
    pub profile: Vec<String>,
    /// Tokens of a prefill; more than one length, separated by commas, shows growth
    #[arg(
        long,
        default_value = "512",
        value_name = "LIST",
        value_delimiter = ','
    )]
    pub length: Vec<NonZeroUsize>,
    /// Tokens of a decode, one by one from the empty state, with all logits and with the most likely next token
    /// alone (greedy); 0 for none
    #[arg(long, default_value_t = 32, value_name = "N")]
    pub decode: usize,
    /// Sequences decoded together, on a GPU also prefilled together, separated by commas
    #[arg(long, default_value = "1", value_name = "LIST", value_delimiter = ',')]
    pub batch: Vec<NonZeroUsize>,
    /// Prefill once more with these points recorded in every block, separated by commas (not on a GPU)
    #[arg(long, value_name = "LIST", value_delimiter = ',')]
    pub points: Option<Vec<String>>,
    /// Runs of each, after one that does not count
    #[arg(long, default_value = "5", value_name = "N")]
    pub repeat: NonZeroUsize,
    /// Where to run: cpu, cuda or cuda:I (needs the feature `cuda`)
    #[arg(long, default_value = "cpu", value_name = "DEVICE")]
    pub device: DeviceArg,
    /// Print JSON instead of tables
    #[arg(long)]
    pub json: bool,
}

/// The model that is measured when none is named.
const SHAPE: &str = "130m";

/// One mode and profile at one kind of work; medians over the repeats.
#[derive(Serialize)]
struct Measurement {
    mode: String,
    profile: String,
    /// `prefill`, `traced` (the same, with points recorded), `decode` or `greedy` (a decode that asks for the
    /// most likely next token alone).
    phase: &'static str,
    /// Tokens of a sequence.
    length: usize,
    /// Sequences together.
    batch: usize,
    /// By wall time.
    tokens_per_second: f64,
    /// Milliseconds of all threads; absent where the system does not tell.
    #[serde(skip_serializing_if = "Option::is_none")]
    processor_ms_per_token: Option<f64>,
    /// Tokens per second if the threads shared that processor time evenly and never waited.
    #[serde(skip_serializing_if = "Option::is_none")]
    tokens_per_processor_second: Option<f64>,
    /// 10^9 INT8 operations a second within the linear steps that are INT8.
    #[serde(skip_serializing_if = "Option::is_none")]
    int8_gops: Option<f64>,
    /// 10^9 FP32 operations a second within the linear steps that are not, in prefill.
    #[serde(skip_serializing_if = "Option::is_none")]
    fp32_gflops: Option<f64>,
    /// 10^9 bytes of weights a second over the whole of a decode.
    #[serde(skip_serializing_if = "Option::is_none")]
    read_gbs: Option<f64>,
    /// Share of wall time by step; empty where steps are not told apart.
    steps: BTreeMap<&'static str, f64>,
}

#[derive(Serialize)]
struct BenchReport {
    model: String,
    threads: usize,
    isa: String,
    repeats: usize,
    /// Until the model was read or made.
    load_seconds: f64,
    /// Of this process before peaks were measured.
    #[serde(skip_serializing_if = "Option::is_none")]
    peak_memory_mib: Option<f64>,
    peaks: Peaks,
    measurements: Vec<Measurement>,
}

pub fn run(args: &BenchArgs) -> Result<Outcome> {
    let modes = select_modes(&mode_table(&args.model.modes_file)?, &args.modes)?;
    let profiles: Vec<Profile> = (args.profile.iter())
        .map(|name| Profile::get(name))
        .collect::<Result<_>>()?;
    let devices = Devices::open_one(&args.device)?;
    let traced = args.points.as_deref().map(trace_points).transpose()?;
    let mut model = args.model.clone();
    if model.model.is_none() && model.synthetic.is_none() {
        model.synthetic = Some(SHAPE.into());
    }
    let begun = Instant::now();
    let subject = load_subject(&model, &modes)?;
    let modes = runnable(modes, &args.modes, &subject);
    let load_seconds = begun.elapsed().as_secs_f64();
    match &devices {
        Devices::Cpu => on_cpu(args, &subject, (&modes, &profiles), traced, load_seconds),
        #[cfg(feature = "cuda")]
        Devices::Cuda(devices) => gpu::run(args, &subject, (&modes, &profiles), &devices[0]),
    }
}

fn on_cpu(
    args: &BenchArgs,
    subject: &Subject,
    (modes, profiles): (&[ModeSpec], &[Profile]),
    traced: Option<Vec<TracePoint>>,
    load_seconds: f64,
) -> Result<Outcome> {
    let repeats = args.repeat.get();
    let traced = traced.map(|points| Selection {
        layers: None,
        points: Some(points),
    });
    let prefills = args.length.len() * if traced.is_some() { 2 } else { 1 };
    let decodes = args.batch.len() + args.batch.iter().filter(|batch| batch.get() == 1).count();
    let each = prefills + if args.decode > 0 { decodes } else { 0 };
    let bar = progress((modes.len() * profiles.len() * each) as u64, "measuring");
    let mut measurements = Vec::new();
    for mode in modes {
        for profile in profiles {
            let path = Datapath::new(&subject.model, mode, profile)?;
            for length in &args.length {
                let times = throughput(&path, length.get(), repeats)?;
                measurements.push(measurement(&path, "prefill", length.get(), 1, &times));
                bar.inc(1);
                if let Some(selection) = &traced {
                    let times = traced_throughput(&path, length.get(), repeats, selection)?;
                    measurements.push(measurement(&path, "traced", length.get(), 1, &times));
                    bar.inc(1);
                }
            }
            for batch in args.batch.iter().filter(|_| args.decode > 0) {
                let times = match batch.get() {
                    1 => decode_throughput(&path, args.decode, repeats)?,
                    batch => batch_throughput(&path, batch, args.decode, repeats)?,
                };
                let (length, batch) = (args.decode, batch.get());
                measurements.push(measurement(&path, "decode", length, batch, &times));
                bar.inc(1);
                if batch == 1 {
                    let times = greedy_throughput(&path, length, repeats)?;
                    measurements.push(measurement(&path, "greedy", length, batch, &times));
                    bar.inc(1);
                }
            }
        }
    }
    bar.finish_and_clear();
    let report = BenchReport {
        model: subject.name.clone(),
        threads: rayon::current_num_threads(),
        isa: format!("{:?}", Isa::current()),
        repeats,
        load_seconds,
        peak_memory_mib: peak_memory_mib(),
        peaks: measure_peaks(),
        measurements,
    };
    if args.json {
        print_json(&report);
    } else {
        print(&text(&report));
    }
    Ok(Outcome::Success)
}

fn measurement(
    path: &Datapath,
    phase: &'static str,
    length: usize,
    batch: usize,
    times: &StepTimes,
) -> Measurement {
    let seconds = times.total.as_secs_f64();
    let tokens = times.tokens as f64;
    let work = linear_work(path);
    let rate = |integer: bool| {
        // The head is left out: prefill runs it for one token, decode is bound by reading it.
        let linear = work[..4].iter().filter(|w| w.integer == integer);
        let (products, spent) = linear.fold((0, 0.0), |(products, spent), w| {
            (
                products + w.products,
                spent + times.step(w.step).as_secs_f64(),
            )
        });
        (products > 0 && spent > 0.0).then(|| 2.0 * products as f64 * tokens / spent / 1e9)
    };
    let prefill = !["decode", "greedy"].contains(&phase);
    let [.., head] = work;
    let head_bytes = match phase {
        "greedy" => path.greedy_head_bytes().unwrap_or(head.bytes),
        _ => head.bytes,
    };
    let bytes = work[..4].iter().map(|w| w.bytes).sum::<u64>() + head_bytes;
    let steps = Step::ALL
        .into_iter()
        .filter(|step| !times.step(*step).is_zero())
        .map(|step| (step.name(), times.step(step).as_secs_f64() / seconds));
    Measurement {
        mode: path.mode().name.to_string(),
        profile: path.profile().name.to_string(),
        phase,
        length,
        batch,
        tokens_per_second: times.tokens_per_second(),
        processor_ms_per_token: (times.processor).map(|p| p.as_secs_f64() * 1e3 / tokens),
        tokens_per_processor_second: (times.processor)
            .map(|p| tokens * rayon::current_num_threads() as f64 / p.as_secs_f64()),
        int8_gops: rate(true).filter(|_| prefill),
        fp32_gflops: rate(false).filter(|_| prefill),
        read_gbs: (!prefill).then(|| bytes as f64 * tokens / batch as f64 / seconds / 1e9),
        steps: steps.collect(),
    }
}

/// The most memory this process has held, where the system tells.
fn peak_memory_mib() -> Option<f64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|l| l.strip_prefix("VmHWM:"))?;
    let kib: f64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    Some(kib / 1024.0)
}

fn text(report: &BenchReport) -> String {
    let Peaks {
        int8_gops,
        int8_product_gops,
        int8_product_best_gops: best,
        fp32_gflops,
        read_gbs,
    } = report.peaks;
    let mut out = format!(
        "{}, {} threads, {}; medians of {} runs\n",
        report.model, report.threads, report.isa, report.repeats
    );
    let int8 = int8_gops.map_or("none".into(), |p| format!("{p:.0} GOP/s"));
    out += &format!(
        "peaks of this machine in this run: INT8 {int8}, FP32 {fp32_gflops:.0} GFLOP/s, reading {read_gbs:.1} GB/s\n"
    );
    let of_peak = int8_gops.map_or(String::new(), |p| {
        format!(" ({:.0} % of the peak)", 100.0 * int8_product_gops / p)
    });
    out += &format!(
        "one INT8 product of 512 x 768 by 768 x 3072, requantized: {int8_product_gops:.0} GOP/s{of_peak}, the fastest {best:.0}\n"
    );
    out += &format!("model ready after {:.2} s\n", report.load_seconds);
    if let Some(memory) = report.peak_memory_mib {
        out += &format!("most memory held before that: {memory:.0} MiB\n");
    }
    let share = |rate: Option<f64>, peak: Option<f64>| match (rate, peak) {
        (Some(rate), Some(peak)) => format!("{rate:.1} ({:.0} %)", 100.0 * rate / peak),
        _ => "-".into(),
    };
    let number = |v: Option<f64>, digits: usize| v.map_or("-".into(), |v| format!("{v:.digits$}"));
    let mut speeds = table(
        &[
            "mode",
            "profile",
            "phase",
            "length",
            "batch",
            "tok/s",
            "CPU ms/tok",
            "tok/s by CPU",
            "INT8 GOP/s",
            "FP32 GFLOP/s",
            "read GB/s",
        ],
        3,
    );
    for m in &report.measurements {
        speeds.add_row([
            m.mode.clone(),
            m.profile.clone(),
            m.phase.to_owned(),
            m.length.to_string(),
            m.batch.to_string(),
            format!("{:.1}", m.tokens_per_second),
            number(m.processor_ms_per_token, 3),
            number(m.tokens_per_processor_second, 1),
            share(m.int8_gops, int8_gops),
            share(m.fp32_gflops, Some(fp32_gflops)),
            share(m.read_gbs, Some(read_gbs)),
        ]);
    }
    out += &format!("\n{}", table_text(&speeds));
    out += "\nINT8 and FP32: the linear steps of the blocks, in their own time. Share of the peak in brackets.\n\n";
    let mut header = vec!["mode", "profile", "phase", "length"];
    header.extend(Step::ALL.map(Step::name));
    let mut shares = table(&header, 3);
    for m in report.measurements.iter().filter(|m| !m.steps.is_empty()) {
        let mut row = vec![
            m.mode.clone(),
            m.profile.clone(),
            m.phase.to_owned(),
            m.length.to_string(),
        ];
        let share = |step: Step| m.steps.get(step.name()).map(|s| 100.0 * s);
        row.extend(Step::ALL.map(|step| number(share(step), 1)));
        shares.add_row(row);
    }
    out + &table_text(&shares) + "\nShares of wall time, %.\n"
}
