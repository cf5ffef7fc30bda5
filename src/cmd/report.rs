//! `scalescope report`: every mode against the float model, block by block.

use crate::Outcome;
use crate::cli::{FaultArgs, InputArgs, ModelArgs};
use crate::eval::summary::EvalReport;
use crate::input::{
    Subject, faults, faults_text, load_subject, mode_table, runnable, runnable_with, select_modes,
    with_faults_unless_float,
};
use crate::output::{
    WIDTH, by_parts, counted, note, print, print_json, progress, table, table_text, wrapped,
};
use crate::report::depth::{Depth, sampled};
use crate::report::measure::{LayerResult, ModeResult, POINT, Run, runs};
use crate::report::verdict::{Runs, Verdict, mode_of_parts, switched};
use crate::report::{ModeDetail, Report, detail, page};
use clap::Args;
use indicatif::ProgressBar;
use scalescope_golden::diagnosis::propagate::{errors_over_time, propagate_all};
use scalescope_sim::atomic;
use scalescope_sim::datapath::{Datapath, Part};
use scalescope_sim::error::{Result, SimError};
use scalescope_sim::fault::Fault;
use scalescope_sim::mode::ModeSpec;
use scalescope_sim::profile::Profile;
use std::io::Write;
use std::path::PathBuf;

/// Arguments of `report`.
#[derive(Args, Debug)]
#[command(after_help = "Examples:
  scalescope report
  scalescope report --modes 0,2-4 --profile deployed --file book.txt --length 512
  scalescope report --json > report.json
  scalescope report --html report.html --eval results.json

A text that is longer than useful is sampled evenly, and the heading says so; --limit and --length
choose how much instead.")]
pub struct ReportArgs {
    /// The model.
    #[command(flatten)]
    pub model: ModelArgs,
    /// The text.
    #[command(flatten)]
    pub input: InputArgs,
    /// Modes to run: `all`, or names separated by commas
    #[arg(long, default_value = "all", value_name = "MODES")]
    pub modes: String,
    /// Arithmetic: exact, torch, deployed, asic-int8, tflite-single, tflite-double, pow2, or a .toml
    /// file (docs/asic.md)
    #[arg(long, default_value = DEFAULT_PROFILE)]
    pub profile: String,
    /// Defects.
    #[command(flatten)]
    pub faults: FaultArgs,
    /// Write one self-contained page: every mode in depth, in a browser and on paper
    #[arg(long, value_name = "FILE")]
    pub html: Option<PathBuf>,
    /// Results of `scalescope eval --json` to show on the page
    #[arg(long, value_name = "FILE", requires = "html")]
    pub eval: Option<PathBuf>,
    /// Print JSON instead of tables
    #[arg(long)]
    pub json: bool,
}

const DEFAULT_PROFILE: &str = "exact";
/// The mode every other one is held against, where the model has its parts; else the first that runs.
const REFERENCE: &str = "1";
pub fn run(args: &ReportArgs) -> Result<Outcome> {
    let known = mode_table(&args.model.modes_file)?;
    let float = known.get(REFERENCE)?.clone();
    let modes = select_modes(&known, &args.modes)?;
    let profile = Profile::get(&args.profile)?;
    let faults = faults(&args.faults)?;
    let mut needed = modes.clone();
    needed.push(float.clone());
    let subject = load_subject(&args.model, &needed)?;
    let modes = runnable(modes, &args.modes, &subject);
    let modes = runnable_with(modes, &args.modes, &profile);
    let reference = match (subject.has_parts(&float), modes.first()) {
        (false, Some(first)) => {
            let what = format!(
                "modes are compared with mode {}: mode {REFERENCE} needs the float model (--float)",
                first.name
            );
            note(&subject.name, what);
            first.clone()
        }
        _ => float,
    };
    let sequences = subject.sequences_for("report", &args.input)?;
    let path = Datapath::new(&subject.model, &reference, &profile)?;
    let (sequences, sampled_of) = match (args.input.limit, args.input.length) {
        (None, None) => sampled(sequences, &path, modes.len()),
        _ => (sequences, None),
    };
    drop(path);
    if let Some(i) = sequences.iter().position(|s| s.len() < 2) {
        return Err(SimError::value(
            format_args!("sequence {i}"),
            "at least two tokens, to predict one from the other",
            sequences[i].len(),
        ));
    }
    let eval = args.eval.as_deref().map(EvalReport::read).transpose()?;
    // Made before the work, so that a folder that cannot be written to is told at once.
    let file = args
        .html
        .as_deref()
        .map(atomic::temporary_beside)
        .transpose()?;
    let measured = measured(&subject, &reference, &modes, &profile, &faults, &sequences)?;
    let Measured {
        results,
        reference_line,
        verdict,
    } = measured;
    let tokens = sequences.iter().map(Vec::len).sum::<usize>();
    let mut json = serde_json::json!({
        "model": subject.name,
        "profile": profile.name,
        "faults": faults,
        "profile_hash": profile.hash(),
        "reference": reference.name,
        "sequences": sequences.len(),
        "tokens": tokens,
        "error_point": POINT.name(),
        "verdict": verdict,
        "modes": results,
    });
    if let Some(of) = sampled_of {
        json["sampled_of_tokens"] = of.into();
    }
    if let (Some(path), Some(mut file)) = (&args.html, file) {
        let first = verdict.parts.as_ref().map(|parts| parts.mode.as_str());
        let (depth, details) = details(
            (&subject, &profile, &faults),
            &reference,
            &modes,
            first,
            &sequences,
        )?;
        let report = Report {
            model: subject.name.clone(),
            shape: shape(&subject)?,
            profile: (profile.name.to_string(), profile.summary.to_string()),
            reference: reference.name.to_string(),
            sequences: sequences.len(),
            tokens,
            sampled_of,
            verdict: verdict.clone(),
            reference_line: reference_line.clone(),
            modes: results.clone(),
            details,
            detail_tokens: depth.tokens(),
            eval,
        };
        json["details"] = serde_json::json!(report.details);
        json["detail_tokens"] = report.detail_tokens.into();
        file.write_all(page::page(&report).as_bytes())
            .map_err(|e| SimError::io(path, e))?;
        atomic::put_in_place(file, path)?;
    }
    if args.json {
        print_json(&json);
    } else {
        let run_with = format!(
            "{}: {}; profile {} ({}){}",
            subject.name,
            shape(&subject)?,
            profile.name,
            profile.summary,
            faults_text(&faults),
        );
        let sample = sampled_of.map_or(String::new(), |of| {
            format!(", sampled evenly of {of} (--limit and --length choose)")
        });
        let run_on = format!(
            "{}, {}{sample}",
            counted(sequences.len(), "passage"),
            counted(tokens, "token")
        );
        let heading = wrapped(&run_with, 0) + &wrapped(&run_on, 0) + "\n";
        let next = next(args, &verdict);
        print(&(heading + &verdict.text() + &next + &text(&reference_line, &verdict, &results)));
        if let Some(path) = &args.html {
            print(&format!("\npage written to {}", path.display()));
        }
    }
    Ok(Outcome::Success)
}

/// The numbers of every mode, and what they say.
struct Measured {
    results: Vec<ModeResult>,
    reference_line: ModeResult,
    verdict: Verdict,
}

/// Runs every mode, and one mode with one part after the other as the reference has it.
fn measured(
    subject: &Subject,
    reference: &ModeSpec,
    modes: &[ModeSpec],
    profile: &Profile,
    faults: &[Fault],
    sequences: &[Vec<u32>],
) -> Result<Measured> {
    let float = Datapath::new(&subject.model, reference, profile)?;
    let others: Vec<&ModeSpec> = modes.iter().filter(|mode| *mode != reference).collect();
    let mut paths: Vec<Datapath> = (others.iter())
        .map(|mode| with_faults_unless_float(&subject.model, mode, profile, faults))
        .collect::<Result<_>>()?;
    let of_parts = mode_of_parts(&paths).filter(|_| !reference.needs_quantized());
    let (parts, switched): (Vec<Part>, Vec<Datapath>) = match of_parts {
        Some(mode) => switched(&paths[mode], &float).into_iter().unzip(),
        None => (Vec::new(), Vec::new()),
    };
    paths.extend(switched);
    let (mut all, own) = runs((&paths, others.len()), &float, sequences)?;
    let parts: Vec<(Part, Run)> = parts.into_iter().zip(all.split_off(others.len())).collect();
    let named: Vec<(&str, &Run)> = (others.iter().zip(&all))
        .map(|(mode, run)| (&*mode.name, run))
        .collect();
    let lengths: Vec<usize> = sequences.iter().map(|s| s.len() - 1).collect();
    let verdict = Verdict::of(&Runs {
        reference: (&reference.name, &own),
        modes: &named,
        parts: of_parts.map(|mode| (mode, &parts[..])),
        lengths: &lengths,
    });
    let run_of = |mode: &ModeSpec| {
        let place = others.iter().position(|other| *other == mode);
        place.map_or(&own, |i| &all[i])
    };
    let result = |mode: &ModeSpec| run_of(mode).result(mode, reference);
    Ok(Measured {
        results: modes.iter().map(result).collect(),
        reference_line: own.result(reference, reference),
        verdict,
    })
}

/// The commands that go on from here, with the model and the text that were asked for.
fn next(args: &ReportArgs, verdict: &Verdict) -> String {
    let Some(parts) = &verdict.parts else {
        return "\n".to_owned();
    };
    let (model, source) = (&args.model, &args.input.source);
    let path = |file: &PathBuf| file.display().to_string();
    let mut given: Vec<(&str, String)> = Vec::new();
    for (option, value) in [
        ("--model", model.model.as_ref().map(path)),
        ("--synthetic", model.synthetic.clone()),
        ("--float", model.float.as_ref().map(path)),
        ("--scales", model.scales.as_ref().map(path)),
        ("--tokenizer", model.tokenizer.as_ref().map(path)),
        ("--text", source.text.clone()),
        ("--tokens", source.tokens.as_ref().map(path)),
        ("--file", source.file.as_ref().map(path)),
        ("--limit", args.input.limit.map(|n| n.to_string())),
        ("--length", args.input.length.map(|n| n.to_string())),
        (
            "--profile",
            Some(args.profile.clone()).filter(|name| name != DEFAULT_PROFILE),
        ),
    ] {
        given.extend(value.map(|value| (option, value)));
    }
    given.extend(
        model
            .modes_file
            .iter()
            .map(|file| ("--modes-file", path(file))),
    );
    let plain = |c: char| c.is_ascii_alphanumeric() || "-_./,:+@%=".contains(c);
    let quoted = |value: &str| match value.chars().all(plain) && !value.is_empty() {
        true => value.to_owned(),
        false => format!("'{}'", value.replace('\'', r"'\''")),
    };
    let command = |name: &str| {
        let options = (given.iter()).map(|(option, value)| format!("{option} {}", quoted(value)));
        let mut line = format!("  scalescope {name} --mode {}", parts.mode);
        let mut lines = String::new();
        for option in options {
            // A shell reads on behind a backslash.
            if line.chars().count() + option.chars().count() + 3 > WIDTH {
                lines += &format!("{line} \\\n");
                line = format!("    {option}");
            } else {
                line += &format!(" {option}");
            }
        }
        lines + &line
    };
    format!(
        "\nNext\n{}\n      which block and which scale\n{}\n      which small changes help, measured\n\n",
        command("attribute"),
        command("recommend")
    )
}

/// Every mode but the reference in depth, and what that is measured on. Where there is no time to switch the sites
/// of all modes, `first` is the first one.
fn details(
    (subject, profile, faults): (&Subject, &Profile, &[Fault]),
    reference: &ModeSpec,
    modes: &[ModeSpec],
    first: Option<&str>,
    sequences: &[Vec<u32>],
) -> Result<(Depth, Vec<ModeDetail>)> {
    let clean = Datapath::new(&subject.model, reference, profile)?;
    let paths: Vec<Datapath> = (modes.iter().filter(|mode| *mode != reference))
        .map(|mode| with_faults_unless_float(&subject.model, mode, profile, faults))
        .collect::<Result<_>>()?;
    let depth = Depth::of(sequences, &paths, &clean);
    let mut order: Vec<&Datapath> = paths.iter().collect();
    order.sort_by_key(|path| first != Some(&*path.mode().name));
    let switched: Vec<&str> = (order.iter().take(depth.site_modes))
        .map(|path| &*path.mode().name)
        .collect();
    let step = |bar: &ProgressBar| {
        bar.inc(1);
        crate::interrupt::check()
    };
    let runs = paths.len() * depth.sequences.len();
    let bar = progress(runs as u64, "running freely and fed");
    let errors = propagate_all(&paths, &clean, &depth.sequences, || step(&bar))?;
    bar.finish_and_clear();
    let mut first = depth.sequences[..1].to_vec();
    first[0].truncate(depth.decoded);
    let bar = progress(first[0].len() as u64, "decoding");
    let over_time = errors_over_time(&paths, &clean, &first, || step(&bar))?;
    bar.finish_and_clear();
    const PARTS: usize = 100;
    let bar = progress((PARTS * paths.len()) as u64, "examining modes");
    let mut details = Vec::new();
    for (i, (path, errors)) in paths
        .iter()
        .zip(errors.into_iter().zip(over_time))
        .enumerate()
    {
        crate::interrupt::check()?;
        bar.set_position((PARTS * i) as u64);
        let sites = switched.contains(&&*path.mode().name);
        let one = detail(
            path,
            &clean,
            &depth,
            errors,
            sites,
            &details,
            &|done, total| {
                bar.set_position((PARTS * i + PARTS * done / total) as u64);
            },
        )?;
        details.push(one);
    }
    bar.finish_and_clear();
    Ok((depth, details))
}

fn shape(subject: &Subject) -> Result<String> {
    let config = subject.model.config()?;
    Ok(format!(
        "{} blocks, d_model {}, vocabulary {}",
        config.n_layers, config.d_model, config.vocab_size
    ))
}

fn text(reference: &ModeResult, verdict: &Verdict, results: &[ModeResult]) -> String {
    let header = [
        "mode",
        "KL",
        "95 %",
        "tied",
        "perplexity",
        "agreement",
        "clipped",
    ];
    let mut modes = table(&header, 1);
    let listed = results.iter().any(|r| r.reference);
    let first = (!listed).then_some(reference);
    for r in first.into_iter().chain(results) {
        let cost = verdict.modes.iter().find(|cost| cost.mode == r.mode);
        let interval = cost.filter(|cost| !cost.kl.low.is_nan());
        let interval = interval.map(|cost| format!("{:.5} to {:.5}", cost.kl.low, cost.kl.high));
        modes.add_row([
            r.mode.clone(),
            format!("{:.5}", r.kl),
            interval.unwrap_or_else(|| "-".to_owned()),
            cost.map_or(String::new(), |cost| cost.tied.clone()),
            format!("{:.3}", r.perplexity),
            format!("{:.2} %", 100.0 * r.agreement),
            format!("{:.4} %", 100.0 * r.clipped),
        ]);
    }
    let mut out = table_text(&modes);
    out.push_str(&format!(
        "\nKL and agreement: the next token's distribution and choice against mode {}\n\
         tied: modes that share a letter cannot be told apart by KL on this text\n\
         clipped: quantized values that did not fit INT8\n\
         what each mode does: scalescope modes\n",
        reference.mode
    ));
    type Cell = fn(&LayerResult) -> String;
    let cells: [(String, Cell); 2] = [
        (
            format!(
                "Error of each block's output, % of its norm in mode {} (normalized_l2)",
                reference.mode
            ),
            |l| format!("{:.2}", 100.0 * l.normalized_l2),
        ),
        ("Clipped by each block's quantizers, %".into(), |l| {
            format!("{:.4}", 100.0 * l.clipped)
        }),
    ];
    for (title, cell) in cells {
        out.push_str(&format!("\n{title}\n{}", by_layer(results, verdict, cell)));
    }
    out
}

/// A row for each block, a column for each mode that differs from the reference and from those before it.
fn by_layer(
    results: &[ModeResult],
    verdict: &Verdict,
    cell: impl Fn(&LayerResult) -> String,
) -> String {
    let again = |mode: &str| (verdict.equal.iter()).any(|g| g[1..].iter().any(|m| m == mode));
    let shown: Vec<&ModeResult> = (results.iter())
        .filter(|r| !r.reference && !again(&r.mode))
        .collect();
    let column = |r: &&ModeResult| {
        let cells = r.layers.iter().map(&cell);
        std::iter::once(r.mode.clone()).chain(cells).collect()
    };
    let blocks = shown.first().map_or(0, |r| r.layers.len());
    let blocks = (0..blocks).map(|layer| layer.to_string());
    let first = std::iter::once("block".to_owned()).chain(blocks).collect();
    by_parts(first, shown.iter().map(column).collect())
}
