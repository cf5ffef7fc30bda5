//! `scalescope check`: a run against a recorded trace; in files of their own an operation, an export, a GPU.

pub mod export;
pub mod gpu;
pub mod op;

use super::attribute::{diagnosis_text, findings_text};
use crate::Outcome;
use crate::cli::{FaultArgs, ModelArgs};
use crate::cmd::blocks::{Compared, ShownArgs, by_block, not_shown};
use crate::device::{DeviceArg, Devices};
use crate::dumps::{
    AUTO, Dumped, mode_of_dump, profiles_from, read_mapped, recognised, tell_numbered_from_1,
};
use crate::input::{faults, faults_text, mode_table};
use crate::output::{note, print, print_json, table, table_text, wrapped};
use clap::{Args, Subcommand};
use export::CheckExportArgs;
use gpu::CheckGpuArgs;
use op::CheckOpArgs;
use scalescope_golden::check::{CheckOptions, CheckReport, Feed, check};
use scalescope_golden::compare::{PointResult, Summary, Tolerance, Tolerances};
use scalescope_golden::diagnosis::diagnose::{Diagnosis, diagnose, diagnose_steps};
use scalescope_golden::diagnosis::finding::{Finding, Severity};
use scalescope_golden::trace_file::TraceFile;
use scalescope_sim::datapath::Datapath;
use scalescope_sim::error::{Result, SimError};
use scalescope_sim::profile::Profile;
use scalescope_sim::trace::TracePoint;
use serde_json::json;
use std::collections::BTreeMap;
use std::fmt::Write;
use std::path::{Path, PathBuf};

/// Arguments of `check`.
#[derive(Args, Debug)]
#[command(
    args_conflicts_with_subcommands = true,
    subcommand_negates_reqs = true,
    after_help = "Examples:
  scalescope check --golden trace.npz --mode 0
  scalescope check --model q.safetensors --golden trace.npz --mode 2-1 --cumulative --json
  scalescope check --golden trace.npz --mode 0 --atol ssm_y:1e-3 --explain
  scalescope check op selective_scan vectors.npz
  scalescope check export vectors/conv

A local check runs each step on the file's own tensors; a tensor whose inputs are not in the file is
used as an input and not compared. Exit code 0 only if something was compared, everything is equal
and nothing is missing."
)]
pub struct CheckArgs {
    /// What is checked instead of a trace.
    #[command(subcommand)]
    pub instead: Option<CheckInstead>,
    /// The model.
    #[command(flatten)]
    pub model: ModelArgs,
    /// The trace: tokens and any tensors, see docs/trace-points.md
    #[arg(long, value_name = "FILE", required = true)]
    pub golden: Option<PathBuf>,
    /// How the trace is laid out, as a TOML file (docs/mapping.md; `scalescope map` makes one to start from)
    #[arg(long, value_name = "FILE")]
    pub map: Option<PathBuf>,
    /// The mode (see `scalescope modes`); auto tells it from the tensors [default: the file's own, else auto]
    #[arg(long)]
    pub mode: Option<String>,
    /// Arithmetic: a built-in profile or a .toml file [default: the file's own, else deployed]
    #[arg(long)]
    pub profile: Option<String>,
    /// Defects.
    #[command(flatten)]
    pub faults: FaultArgs,
    /// Where to run: cpu, cuda or cuda:I (needs the feature `cuda`)
    #[arg(long, default_value = "cpu", value_name = "DEVICE")]
    pub device: DeviceArg,
    /// Feed each step the file's own inputs (the default)
    #[arg(long, conflicts_with = "cumulative")]
    pub local: bool,
    /// Feed each step what the run made: errors flow on
    #[arg(long)]
    pub cumulative: bool,
    /// Allow differences up to X at a point, in every block or in one (layer_07/ssm_y:0.5)
    #[arg(long, value_name = "POINT:X")]
    pub atol: Vec<String>,
    /// Find what explains the mismatches, as `attribute --dump` does, in this profile's arithmetic
    #[arg(long, conflicts_with = "fault")]
    pub explain: bool,
    /// Rows of the table.
    #[command(flatten)]
    pub shown: ShownArgs,
    /// Print JSON instead of a table
    #[arg(long)]
    pub json: bool,
}

/// What `check` checks besides a trace.
#[derive(Debug, Subcommand)]
pub enum CheckInstead {
    /// Compare one operation with vectors, such as a kernel's dump
    Op(CheckOpArgs),
    /// Read exported vectors back, simulate them again, and compare dumps of RTL with them
    Export(CheckExportArgs),
    /// Compare a GPU with the CPU, every tensor bit for bit (needs the feature `cuda`)
    Gpu(Box<CheckGpuArgs>),
}

pub fn run(args: &CheckArgs) -> Result<Outcome> {
    match &args.instead {
        Some(CheckInstead::Op(args)) => op::run(args),
        Some(CheckInstead::Export(args)) => export::run(args),
        Some(CheckInstead::Gpu(args)) => gpu::run(args),
        None => trace(args, args.golden.as_deref().expect("clap asks for it")),
    }
}

fn trace(args: &CheckArgs, golden: &Path) -> Result<Outcome> {
    let tolerances = Tolerances::parse(&args.atol)?;
    let table = mode_table(&args.model.modes_file)?;
    if let Some(name) = args.mode.as_deref().filter(|name| *name != AUTO) {
        table.get(name)?;
    }
    if let Some(name) = &args.profile {
        Profile::get(name)?;
    }
    let faults = faults(&args.faults)?;
    let devices = Devices::open_one(&args.device)?;
    let trace = read_mapped(golden, args.map.as_deref())?;
    let meta = trace.meta.clone().unwrap_or_default();
    let in_file = |e: SimError| e.in_file(golden);
    let mode = match (&args.mode, &meta.mode) {
        (Some(name), _) => name.as_str(),
        (None, Some(name)) => &table.get(name).map_err(in_file)?.name,
        // Nothing tells the mode of decode steps alone.
        (None, None) if trace.places().iter().all(|place| place.layer.is_none()) => "0",
        (None, None) => AUTO,
    };
    let mut profile = match (&args.profile, &meta.profile) {
        (Some(name), _) => Profile::get(name)?,
        (None, Some(name)) => Profile::get(name).map_err(in_file)?,
        (None, None) => Profile::get("deployed")?,
    };
    if let (None, Some(hash)) = (&args.profile, &meta.profile_hash)
        && *hash != profile.hash()
    {
        let item = format!("profile {}", profile.name);
        let expected = format!("rules of hash {hash}, which made the trace, or another --profile");
        return Err(SimError::file(golden, item, expected, profile.hash()));
    }
    let Dumped {
        subject,
        mode,
        recognised: told,
    } = mode_of_dump(
        &args.model,
        &table,
        mode,
        &profiles_from(&profile),
        (golden, &trace),
    )?;
    let mode = &mode;
    if let (None, None, Some(told)) = (&args.profile, &meta.profile, &told) {
        profile = Profile::get(&told.profile)?;
    }
    let datapath = Datapath::with_faults(&subject.model, mode, &profile, &faults)?;
    let engine = devices.engine(datapath, 0)?;
    let feed = match args.cumulative {
        true => Feed::Cumulative,
        false => Feed::Local,
    };
    let options = CheckOptions {
        feed,
        tolerances,
        keep: args.explain,
    };
    let report = check(&*engine, &trace, &options).map_err(in_file);
    if !report.as_ref().is_ok_and(|report| report.exit_code() == 0) {
        let equal = |from_0: &TraceFile| {
            check(&*engine, from_0, &options).is_ok_and(|report| report.exit_code() == 0)
        };
        tell_numbered_from_1(golden, &trace, equal);
    }
    let is_equal = report.as_ref().is_ok_and(|report| report.exit_code() == 0);
    let another = match told.is_none() && !is_equal && faults.is_empty() {
        true => recognised(
            &subject,
            &table,
            &profiles_from(&profile),
            &trace,
            Some(mode),
        )
        .ok()
        .filter(|found| found.is_another(&mode.name)),
        false => None,
    };
    if let Some(found) = &another {
        note(
            golden.display(),
            format_args!("this looks like a dump of {found}"),
        );
    }
    let report = report?;
    for remark in &report.remarks {
        note(golden.display(), remark);
    }
    // The same question as `attribute --dump` has the same answer, whatever the check feeds; decode steps are
    // looked at where the prefill is in order.
    let prefill = trace.tokens.is_some() && trace.sequences.iter().any(|p| !p.is_empty());
    let one = std::slice::from_ref(&profile);
    let diagnosis = match args.explain && prefill {
        true => Some(diagnose(&subject.model, mode, &trace, one).map_err(in_file)?),
        false => None,
    };
    let wrong = |d: &Diagnosis| d.findings.iter().any(|f| f.severity > Severity::Info);
    let of_steps = match args.explain && !diagnosis.as_ref().is_some_and(wrong) {
        true => diagnose_steps((&subject.model, mode, &profile), &trace, &options, &report)?,
        false => Vec::new(),
    };
    if args.json {
        let mut json = json!({
            "model": subject.name,
            "golden": golden,
            "mode": mode.name,
            "profile": profile.name,
            "faults": faults,
            "feed": feed,
        });
        if let Some(found) = told.as_ref().or(another.as_ref()) {
            json["recognised"] = json!(found);
        }
        merge(&mut json, json!(report));
        if args.explain {
            let of_prefill = diagnosis.iter().flat_map(|d| &d.findings);
            let findings: Vec<&Finding> = of_prefill.chain(&of_steps).collect();
            json["findings"] = json!(findings);
        }
        print_json(&json);
    } else {
        let feed = match feed {
            Feed::Local => "each step by itself",
            Feed::Cumulative => "errors flow",
        };
        let heading = format!(
            "{}, mode {}, profile {}{}, {feed}; expected: the file, found: the run",
            subject.name,
            mode.name,
            profile.name,
            faults_text(&faults)
        );
        let of_prefill = diagnosis
            .as_ref()
            .map(|d| format!("\n{}", diagnosis_text(d)));
        let explained = match of_steps.is_empty() {
            true => of_prefill.unwrap_or_default(),
            false => of_prefill.unwrap_or_default() + "\n" + &findings_text(&of_steps),
        };
        let told = told.map_or(String::new(), |found| {
            wrapped(&format!("recognised from the tensors: {found}"), 0)
        });
        print(&format!(
            "{heading}\n{told}\n{}{explained}",
            text(&report, &args.shown)
        ));
    }
    Ok(match report.exit_code() {
        0 => Outcome::Success,
        _ => Outcome::Mismatch,
    })
}

/// Adds the fields of one JSON object to another.
pub fn merge(into: &mut serde_json::Value, from: serde_json::Value) {
    if let (Some(into), serde_json::Value::Object(from)) = (into.as_object_mut(), from) {
        into.extend(from);
    }
}

fn text(report: &CheckReport, shown: &ShownArgs) -> String {
    let mut out = summary_text(&report.summary, shown);
    if report.given() > 0 {
        let mut layers: BTreeMap<String, Vec<&str>> = BTreeMap::new();
        for given in &report.given {
            let step = given.step.map_or(String::new(), |s| format!("step_{s}/"));
            let layer = given
                .layer
                .map_or("final".into(), |l| format!("layer_{l:02}"));
            layers
                .entry(format!("{step}{layer}"))
                .or_default()
                .push(given.point);
        }
        let list: Vec<String> = layers
            .iter()
            .map(|(layer, points)| format!("{layer}/{{{}}}", points.join(",")))
            .collect();
        let _ = writeln!(
            out,
            "\ngiven, not judged (their inputs are not in the file): {} elements: {}",
            report.given(),
            list.join(" ")
        );
    }
    out + &failures(&report.summary) + &verdict(&report.summary, report.exit_code())
}

/// The lines before the verdict: which blocks differ, and where it begins.
fn failures(summary: &Summary) -> String {
    let all: Vec<Compared> = summary.points.iter().map(Compared::from).collect();
    let mut out = by_block(&all);
    if let Some(first) = summary.points.iter().find(|point| point.mismatched > 0) {
        let _ = write!(
            out,
            "\nfirst failure: {} {}\n",
            name(first),
            self::first(first)
        );
    }
    out
}

/// A row for each point, the tolerances, what is missing.
pub fn summary_text(summary: &Summary, shown: &ShownArgs) -> String {
    let header = ["point", "compared", "mismatched", "max", "first mismatch"];
    let mut points = table(&header, 1);
    points
        .column_mut(4)
        .expect("five columns")
        .set_cell_alignment(comfy_table::CellAlignment::Left);
    let all: Vec<Compared> = summary.points.iter().map(Compared::from).collect();
    let shown = shown.of(&all);
    for result in shown.iter().map(|i| &summary.points[*i]) {
        points.add_row([
            name(result),
            result.compared.to_string(),
            result.mismatched.to_string(),
            largest(result),
            first(result),
        ]);
    }
    let mut out = match shown.is_empty() && !all.is_empty() {
        true => String::new(),
        false => table_text(&points),
    };
    out += &not_shown(shown.len(), all.len());
    let mut forgiven: BTreeMap<(&str, String), (usize, usize)> = BTreeMap::new();
    for result in &summary.points {
        if result.tolerance != Tolerance::Exact {
            let key = (result.point.as_str(), result.tolerance.to_string());
            let (used, of) = forgiven.entry(key).or_default();
            *used += result.within_tolerance;
            *of += result.compared;
        }
    }
    for ((point, tolerance), (used, of)) in forgiven {
        let _ = writeln!(
            out,
            "\n{point}: tolerance {tolerance}; {used} of {of} elements needed it"
        );
    }
    if !summary.missing.is_empty() {
        let _ = writeln!(out, "\nmissing (the file has them, the run does not):");
        for key in &summary.missing {
            let _ = writeln!(out, "  {key}");
        }
    }
    out
}

/// The last line: counts and verdict.
pub fn verdict(summary: &Summary, exit_code: u8) -> String {
    let word = match (exit_code, summary.mismatched()) {
        (0, _) => "equal",
        (_, 0) => "not verified",
        _ => "MISMATCH",
    };
    format!("\n{summary}: {word}\n")
}

/// `layer_07/conv_out`, `final/logits`, `step_3/logits`.
fn name(result: &PointResult) -> String {
    let end = TracePoint::from_name(&result.point).is_some_and(|point| !point.in_layer());
    match (result.step, end) {
        (None, true) => format!("final/{}", result.point),
        _ => result.key(),
    }
}

fn largest(result: &PointResult) -> String {
    match (result.max_abs_lsb, result.ulp_max) {
        (Some(lsb), _) => format!("{lsb} LSB"),
        (None, Some(ulp)) => format!("{ulp} ulp"),
        (None, None) => "-".into(),
    }
}

fn first(result: &PointResult) -> String {
    match &result.first {
        None => String::new(),
        Some(first) => format!(
            "{:?}: expected {}, found {}",
            first.index,
            number(first.expected),
            number(first.found)
        ),
    }
}

/// All digits of an f32, no more.
fn number(v: f64) -> String {
    (v as f32).to_string()
}
