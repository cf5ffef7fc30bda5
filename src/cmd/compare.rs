//! `scalescope compare`: two traces, tensor by tensor.

use crate::Outcome;
use crate::cmd::blocks::{Compared, ShownArgs, by_block, not_shown};
use crate::cmd::check::merge;
use crate::dumps::{NUMBERED_FROM_1, read_mapped};
use crate::output::{by_parts, counted, note, number, print, print_as_is, print_json, wrapped};
use clap::Args;
use scalescope_golden::compare::{
    CompareOptions, Comparison, Difference, TensorInfo, Tolerance, Tolerances, compare_traces,
};
use scalescope_golden::metrics::{Better, METRICS, MetricInfo, Reading};
use scalescope_golden::trace_file::OpenTrace;
use scalescope_sim::error::{Result, SimError};
use serde_json::json;
use std::collections::BTreeSet;
use std::fmt::Write;
use std::path::PathBuf;

/// Arguments of `compare`.
#[derive(Args, Debug)]
#[command(after_help = "Examples:
  scalescope compare float.npz int8.npz
  scalescope compare simulated.npz device.npz --atol ssm_y:1e-3 --atol layer_07/conv_out:1
  scalescope compare a.npz b.npz --metrics sqnr_db,cosine,scale_ratio
  scalescope compare a.npz dump.npz --common --csv > differences.csv

Exit code 0 only if everything is equal (within --atol), 1 if not. Traces of other tokens, lengths
or models, tensors that only one trace holds, NaN and infinity are refused with 2.")]
pub struct CompareArgs {
    /// The reference: a trace, see docs/trace-points.md
    #[arg(value_name = "A.npz")]
    pub a: PathBuf,
    /// The trace to compare with it
    #[arg(value_name = "B.npz")]
    pub b: PathBuf,
    /// How B is laid out, as a TOML file (docs/mapping.md; `scalescope map` makes one to start from)
    #[arg(long, value_name = "FILE")]
    pub map: Option<PathBuf>,
    /// Allow differences up to X at a point, in every block or in one (layer_07/ssm_y:0.5);
    /// steps between two tensors of codes
    #[arg(long, value_name = "POINT:X")]
    pub atol: Vec<String>,
    /// Compare the tensors that both hold and list the others, instead of refusing the traces
    #[arg(long)]
    pub common: bool,
    /// Columns of the table, separated by commas, or all; JSON and CSV have all of them
    /// [default: mismatch_rate,max_abs_lsb,ulp_max,sqnr_db]
    #[arg(long, alias = "metric", value_name = "LIST", value_delimiter = ',')]
    pub metrics: Option<Vec<String>>,
    /// Rows of the table.
    #[command(flatten)]
    pub shown: ShownArgs,
    /// Print CSV instead of a table, one row a block and point
    #[arg(long, conflicts_with = "json")]
    pub csv: bool,
    /// Print JSON instead of a table
    #[arg(long)]
    pub json: bool,
}

pub fn run(args: &CompareArgs) -> Result<Outcome> {
    let options = CompareOptions {
        tolerances: Tolerances::parse(&args.atol)?,
        common: args.common,
    };
    let metrics = metrics(args.metrics.as_deref())?;
    let comparison = match &args.map {
        None => streamed(args, &options)?,
        Some(map) => {
            let (a, b) = (OpenTrace::open(&args.a)?, read_mapped(&args.b, Some(map))?);
            compare_traces(&a, &b, &options).map_err(|e| in_both(e, args))?
        }
    };
    if args.json {
        let mut json = json!({ "a": args.a, "b": args.b, "metrics": METRICS });
        merge(&mut json, json!(comparison));
        print_json(&json);
    } else if args.csv {
        print_as_is(&csv(&comparison)?);
    } else {
        let heading = format!("A {}\nB {}\n\n", args.a.display(), args.b.display());
        print(&(heading + &text(&comparison, &metrics, &args.shown)));
    }
    Ok(match comparison.is_equal() {
        true => Outcome::Success,
        false => Outcome::Mismatch,
    })
}

fn in_both(error: SimError, args: &CompareArgs) -> SimError {
    error.in_file(format!("{} and {}", args.a.display(), args.b.display()))
}

/// Compares two traces whose tensors stay in their files until it is their turn.
fn streamed(args: &CompareArgs, options: &CompareOptions) -> Result<Comparison> {
    let (a, b) = (OpenTrace::open(&args.a)?, OpenTrace::open(&args.b)?);
    let comparison = compare_traces(&a, &b, options);
    for (path, trace) in [(&args.a, &a), (&args.b, &b)] {
        (trace.remarks().iter()).for_each(|remark| note(path.display(), remark));
    }
    let comparison = comparison.map_err(|e| in_both(e, args))?;
    if !comparison.is_equal() {
        for (path, other) in [(&args.a, &b), (&args.b, &a)] {
            let mut from_0 = OpenTrace::open(path)?;
            if from_0.number_from_0()
                && compare_traces(other, &from_0, options).is_ok_and(|c| c.is_equal())
            {
                note(path.display(), NUMBERED_FROM_1);
            }
        }
    }
    Ok(comparison)
}

/// Metrics that a table shows unless others are asked for.
const MAIN: [&str; 4] = ["mismatch_rate", "max_abs_lsb", "ulp_max", "sqnr_db"];

/// The metrics of a list of names.
fn metrics(names: Option<&[String]>) -> Result<Vec<&'static MetricInfo>> {
    match names {
        None => MAIN.iter().map(|name| metric("--metrics", name)).collect(),
        Some([all]) if all == "all" => Ok(METRICS.iter().collect()),
        Some(names) => names.iter().map(|name| metric("--metrics", name)).collect(),
    }
}

/// The metric of a name that an option gives.
pub fn metric(option: &str, name: &str) -> Result<&'static MetricInfo> {
    METRICS.iter().find(|row| row.name == name).ok_or_else(|| {
        let known: Vec<_> = METRICS.iter().map(|row| row.name).collect();
        SimError::value(option, format_args!("one of {}", known.join(", ")), name)
    })
}

/// Which way a metric is good, as a sign.
pub fn sign(better: Better) -> &'static str {
    match better {
        Better::Lower => "↓",
        Better::Higher => "↑",
        Better::NearZero => "→0",
        Better::NearOne => "→1",
    }
}

fn text(comparison: &Comparison, metrics: &[&MetricInfo], shown: &ShownArgs) -> String {
    let all: Vec<Compared> = comparison.points.iter().map(Compared::from).collect();
    let shown = shown.of(&all);
    let points = || shown.iter().map(|i| &comparison.points[*i]);
    let column = |head: &str, cell: &dyn Fn(&Difference) -> String| -> Vec<String> {
        std::iter::once(head.to_owned())
            .chain(points().map(cell))
            .collect()
    };
    let mut columns = vec![
        column("A", &|point| side(point, &point.expected)),
        column("B", &|point| side(point, &point.found)),
    ];
    for info in metrics {
        let reading = |point: &Difference| point.metrics.as_ref().map(|m| m.get(info.metric));
        columns.push(column(info.name, &|point| cell(reading(point))));
    }
    let mut out = match shown.is_empty() {
        true => String::new(),
        false => by_parts(column("point", &Difference::key), columns),
    };
    out += &not_shown(shown.len(), all.len());
    let ways = metrics
        .iter()
        .map(|info| format!("{} {}", info.name, sign(info.better)));
    let ways: Vec<String> = ways.collect();
    let ways = format!(
        "\n{}: ↓ lower is better, ↑ higher, →0 and →1 nearest; x is A, y is B",
        ways.join(", ")
    );
    out += &wrapped(&ways, 0);
    for line in notes(comparison) {
        let _ = writeln!(out, "{line}");
    }
    out += &by_block(&all);
    if let Some(line) = first_failure(comparison) {
        let _ = writeln!(out, "\n{line}");
    }
    let word = match comparison.is_equal() {
        true => "equal",
        false => "MISMATCH",
    };
    let _ = writeln!(
        out,
        "\n{}, {} elements compared, mismatched {}: {word}",
        counted(comparison.points.len(), "tensor"),
        comparison.compared(),
        comparison.beyond_tolerance()
    );
    out
}

/// The type of a side's tensor, and its point if that stands in for another.
fn side(point: &Difference, tensor: &TensorInfo) -> String {
    match point.point == tensor.point {
        true => tensor.dtype.to_owned(),
        false => format!("{} {}", tensor.dtype, tensor.point),
    }
}

fn cell(reading: Option<Reading>) -> String {
    match reading {
        Some(Reading::Value(value)) => number(value),
        Some(Reading::NonFinite) => "non-finite".into(),
        Some(Reading::NotApplicable) | None => "-".into(),
    }
}

/// What the table cannot hold: layouts, scales, tolerances, what was not compared.
fn notes(comparison: &Comparison) -> Vec<String> {
    let mut notes = Vec::new();
    for point in &comparison.points {
        for layout in &point.layouts {
            notes.push(format!("\n{}: B is A {layout}", point.key()));
        }
    }
    let scales: Vec<String> = (comparison.points.iter())
        .filter_map(|point| {
            let (x, y) = (point.expected.scale?.get(), point.found.scale?.get());
            (x != y).then(|| {
                format!(
                    "\n{}: scale {y:e} in B is {:.4} times {x:e} in A",
                    point.key(),
                    y / x
                )
            })
        })
        .collect();
    notes.extend(scales);
    let used: BTreeSet<(&str, String)> = (comparison.points.iter())
        .filter(|point| point.tolerance != Tolerance::Exact)
        .map(|point| (point.point, point.tolerance.to_string()))
        .collect();
    notes.extend(
        used.iter()
            .map(|(point, tolerance)| format!("\n{point}: tolerance {tolerance}")),
    );
    if !comparison.left_out.is_empty() {
        notes.push("\nnot compared, as only one trace holds it:".into());
        let keys = comparison.left_out.iter();
        notes.extend(keys.map(|left| format!("  {} (in {})", left.key, left.only_in)));
    }
    if !comparison.tokens_compared {
        notes.push("\ntoken ids not compared: they are not in both files".into());
    }
    notes
}

/// Where the traces part first.
fn first_failure(comparison: &Comparison) -> Option<String> {
    let point = comparison.points.iter().find(|point| !point.is_equal())?;
    let first = point.first.as_ref()?;
    let (x, y) = (&point.expected, &point.found);
    Some(format!(
        "first failure: {} {:?}: expected {} (A), found {} (B)",
        point.key(),
        first.index,
        element(first.expected, x, y),
        element(first.found, y, x)
    ))
}

/// An element as its type has it; a code against a real as the real it stands for.
fn element(value: f64, own: &TensorInfo, other: &TensorInfo) -> String {
    let is_codes = |tensor: &TensorInfo| tensor.dtype.starts_with("i8");
    match own.scale.filter(|_| is_codes(own) && !is_codes(other)) {
        Some(scale) => format!("code {value}, {}", value as f32 * scale.get()),
        None => value.to_string(),
    }
}

fn csv(comparison: &Comparison) -> Result<String> {
    let failed = |e: csv::Error| SimError::value("--csv", "rows that can be written", e);
    let mut csv = csv::Writer::from_writer(Vec::new());
    let fixed = [
        "step", "layer", "point", "a_point", "a_type", "b_point", "b_type", "compared",
    ];
    let tail = ["beyond_tolerance", "tolerance", "layout"];
    let names = METRICS.iter().map(|m| m.name);
    csv.write_record(fixed.into_iter().chain(names).chain(tail))
        .map_err(failed)?;
    for point in &comparison.points {
        let optional = |n: Option<usize>| n.map_or(String::new(), |n| n.to_string());
        let mut row = vec![
            optional(point.step),
            optional(point.layer),
            point.point.to_owned(),
            point.expected.point.to_owned(),
            point.expected.dtype.to_owned(),
            point.found.point.to_owned(),
            point.found.dtype.to_owned(),
            point.compared().to_string(),
        ];
        row.extend(METRICS.iter().map(|info| {
            let reading = point.metrics.as_ref().map(|m| m.get(info.metric));
            reading
                .and_then(Reading::value)
                .map_or(String::new(), |v| v.to_string())
        }));
        let layouts: Vec<String> = point.layouts.iter().map(ToString::to_string).collect();
        row.extend([
            point.beyond_tolerance.to_string(),
            point.tolerance.to_string(),
            layouts.join("; "),
        ]);
        csv.write_record(row).map_err(failed)?;
    }
    let bytes = csv
        .into_inner()
        .map_err(|e| failed(e.into_error().into()))?;
    Ok(String::from_utf8(bytes).expect("fields are text"))
}
