//! `scalescope attribute`: what each site of a mode costs, or what is wrong with a dump.

use crate::Outcome;
use crate::cli::{FaultArgs, InputArgs, ModelArgs};
use crate::dumps::{AUTO, Dumped, mode_of_dump, profiles_from, read_mapped, recognised};
use crate::input::{Subject, faults, faults_text, load_subject, mode_table};
use crate::output::{note, print, print_json, progress, table, table_text, wrapped};
use clap::Args;
use comfy_table::CellAlignment;
use scalescope_golden::check::Recognised;
use scalescope_golden::diagnosis::cost::causes;
use scalescope_golden::diagnosis::cost::loss::{Mean, Text};
use scalescope_golden::diagnosis::cost::sites::{Costs, Options, SiteCost, attribute};
use scalescope_golden::diagnosis::diagnose::{Diagnosis, diagnose_telling};
use scalescope_golden::diagnosis::finding::{Finding, Severity};
use scalescope_sim::datapath::Datapath;
use scalescope_sim::error::{Result, SimError};
use scalescope_sim::mode::{ModeSpec, ModeTable};
use scalescope_sim::profile::Profile;
use serde_json::json;
use std::fmt::Write;
use std::num::NonZeroUsize;
use std::path::{Path, PathBuf};

/// Arguments of `attribute`.
#[derive(Args, Debug)]
#[command(after_help = "Examples:
  scalescope attribute --mode 2-4 --against 1
  scalescope attribute --mode 0 --file book.txt --length 512 --shapley 8
  scalescope attribute --dump dump.npz --json

The first form switches every site (a tensor or weight of a block) to the reference and back. The
second uses the model, the mode and the dump's tensors, never its metadata. docs/attribution.md")]
pub struct AttributeArgs {
    /// The model.
    #[command(flatten)]
    pub model: ModelArgs,
    /// The text of the first form [default: 2,048 tokens of the built-in passages].
    #[command(flatten)]
    pub input: InputArgs,
    /// The mode (see `scalescope modes`); auto tells a dump's from its tensors [default: 0; of a dump auto]
    #[arg(long)]
    pub mode: Option<String>,
    /// The mode that sites are switched to
    #[arg(long, default_value = "1", value_name = "MODE")]
    pub against: String,
    /// A dump to diagnose: tokens and any tensors of a prefill, see docs/trace-points.md
    #[arg(long = "dump", alias = "trace", value_name = "FILE", conflicts_with_all = ["against", "text", "tokens", "file", "shapley", "fault"])]
    pub trace: Option<PathBuf>,
    /// How the dump is laid out, as a TOML file (docs/mapping.md; `scalescope map` makes one to start from)
    #[arg(long, value_name = "FILE", requires = "trace")]
    pub map: Option<PathBuf>,
    /// Arithmetic: a built-in profile (exact, torch, deployed, asic-int8, …) or a .toml file (docs/asic.md)
    /// [default: exact; of a dump the one that it follows best]
    #[arg(long)]
    pub profile: Option<String>,
    /// Defects.
    #[command(flatten)]
    pub faults: FaultArgs,
    /// Sample Shapley values over this many random orders (each as many runs as there are sites)
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(2..))]
    pub shapley: Option<u32>,
    /// Measure losses at every n-th position
    #[arg(
        long = "every",
        alias = "stride",
        value_name = "N",
        default_value = "4"
    )]
    pub stride: NonZeroUsize,
    /// Sites shown in the table
    #[arg(long, value_name = "N", default_value_t = 20)]
    pub top: usize,
    /// Seed of the orders
    #[arg(long, default_value_t = 0)]
    pub seed: u64,
    /// Print JSON instead of tables
    #[arg(long)]
    pub json: bool,
}

pub fn run(args: &AttributeArgs) -> Result<Outcome> {
    let known = mode_table(&args.model.modes_file)?;
    if let Some(path) = &args.trace {
        return dump(args, path, &known);
    }
    let mode = known.get(args.mode.as_deref().unwrap_or("0"))?;
    against(args, mode, known.get(&args.against)?)
}

fn dump(args: &AttributeArgs, path: &Path, known: &ModeTable) -> Result<Outcome> {
    let profiles = match &args.profile {
        Some(name) => vec![Profile::get(name)?],
        None => profiles_from(&Profile::get("deployed")?),
    };
    let trace = read_mapped(path, args.map.as_deref())?;
    let in_file = |e: SimError| e.in_file(path);
    let name = args.mode.as_deref().unwrap_or(AUTO);
    let dumped = mode_of_dump(&args.model, known, name, &profiles, (path, &trace))?;
    let (subject, mode) = (&dumped.subject, &dumped.mode);
    if dumped.recognised.is_none()
        && let Ok(found) = recognised(subject, known, &profiles, &trace, Some(mode))
        && found.is_another(&mode.name)
    {
        // What a mode makes that the dump follows to the last bit is not searched for in another.
        if found.differs == 0.0 {
            return Ok(another_mode(args, path, &dumped, &found));
        }
        note(
            path.display(),
            format_args!("this looks like a dump of {found}"),
        );
    }
    let bar = progress(0, "looking for causes");
    let told = |done: usize, blocks: usize| {
        bar.set_length(blocks as u64);
        bar.set_position(done as u64);
    };
    let found = diagnose_telling(&subject.model, mode, &trace, &profiles, &told);
    bar.finish_and_clear();
    let found = found.map_err(in_file)?;
    if args.json {
        let mut json = json!({"model": subject.name, "trace": path, "mode": mode.name});
        if let Some(told) = &dumped.recognised {
            json["recognised"] = json!(told);
        }
        super::check::merge(&mut json, json!(found));
        print_json(&json);
    } else {
        let heading = format!(
            "{}, mode {}, {}, arithmetic of profile {}",
            subject.name,
            mode.name,
            path.display(),
            found.profile
        );
        let told = dumped.recognised.as_ref();
        let told = told.map_or(String::new(), |t| {
            wrapped(&format!("recognised from the tensors: {t}"), 0)
        });
        let mut text = format!("{heading}\n{told}\n{}", diagnosis_text(&found));
        let everywhere = |f: &Finding| f.device || f.severity > Severity::Info && f.layer.is_none();
        if found.findings.iter().any(everywhere) {
            let model = args.model.model.iter();
            let model: String = model.map(|m| format!(" --model {}", m.display())).collect();
            let _ = writeln!(
                text,
                "\nnext: scalescope identify{model} --mode {} --dump {} -o device.toml",
                mode.name,
                path.display()
            );
        }
        print(&text);
    }
    let wrong = |f: &Finding| f.severity == Severity::Error;
    Ok(
        match found.mismatched > 0 || found.findings.iter().any(wrong) {
            true => Outcome::Mismatch,
            false => Outcome::Success,
        },
    )
}

/// The answer for a dump of another mode than the one asked about.
fn another_mode(args: &AttributeArgs, path: &Path, asked: &Dumped, found: &Recognised) -> Outcome {
    let finding = Finding {
        kind: "other-mode",
        site: "file".to_owned(),
        severity: Severity::Error,
        share: 1.0,
        evidence: format!(
            "not a dump of mode {}: it looks like one of {found}",
            asked.mode.name
        ),
        edit: Some(format!("--mode {}", found.mode)),
        ..Finding::default()
    };
    let (model, mode) = (&asked.subject.name, &asked.mode.name);
    match args.json {
        true => print_json(&json!({
            "model": model, "trace": path, "mode": mode, "recognised": found, "findings": [finding],
        })),
        false => print(&format!(
            "{model}, mode {mode}, {}\n\n{}",
            path.display(),
            findings_text(&[finding])
        )),
    }
    Outcome::Mismatch
}

pub(super) fn diagnosis_text(found: &Diagnosis) -> String {
    let mut out = format!(
        "compared {}, mismatched {} (each step with the dump's own inputs): {}\n\n",
        found.compared,
        found.mismatched,
        if found.mismatched == 0 {
            "equal"
        } else {
            "MISMATCH"
        }
    );
    if !found.not_made.is_empty() {
        let _ = writeln!(
            out,
            "not made by this mode, so ignored: {}\n",
            found.not_made.join(", ")
        );
    }
    out + &findings_text(&found.findings)
}

/// Findings, most probable first.
pub(super) fn findings_text(findings: &[Finding]) -> String {
    let text = |f: &Finding| {
        let block = f
            .layer
            .map_or("every block".into(), |l| format!("block {l}"));
        finding_text(f, &format!("{block}, {}", f.site))
    };
    findings.iter().map(text).collect()
}

/// A finding and where it is.
pub(super) fn finding_text(f: &Finding, place: &str) -> String {
    let share = 100.0 * f.share;
    // Nothing deviates, so there is nothing to name or to explain.
    if f.kind == "none" && f.share == 0.0 && f.severity == Severity::Info {
        return format!("{:<8}{}\n", f.severity, f.evidence);
    }
    let mut out = format!(
        "{:<8}{}: {place} ({share:.1} %)\n        {}\n",
        f.severity, f.kind, f.evidence
    );
    if let Some(fault) = &f.fault {
        let _ = writeln!(out, "        --fault {fault}");
    }
    out
}

fn against(args: &AttributeArgs, mode: &ModeSpec, reference: &ModeSpec) -> Result<Outcome> {
    let profile = Profile::get(args.profile.as_deref().unwrap_or("exact"))?;
    let faults = faults(&args.faults)?;
    if mode == reference && faults.is_empty() {
        return Err(SimError::value(
            "--against",
            format_args!("another mode than {}, to find what it costs", mode.name),
            &reference.name,
        ));
    }
    let subject = load_subject(&args.model, &[mode.clone(), reference.clone()])?;
    let text = text(&subject, args)?;
    let path = Datapath::with_faults(&subject.model, mode, &profile, &faults)?;
    let truth = Datapath::new(&subject.model, reference, &profile)?;
    let bar = progress(0, "switching sites");
    let options = Options {
        orders: args.shapley.unwrap_or(0) as usize,
        seed: args.seed,
    };
    let costs = attribute(&path, &truth, &text, options, &|done, total| {
        bar.set_length(total as u64);
        bar.set_position(done as u64);
    })?;
    let findings = causes::find(&path, &truth, &text, &costs)?;
    bar.finish_and_clear();
    if args.json {
        let mut json = json!({
            "model": subject.name,
            "mode": mode.name,
            "against": reference.name,
            "profile": profile.name,
            "faults": faults,
            "stride": text.stride,
            "findings": findings,
        });
        super::check::merge(&mut json, json!(costs));
        print_json(&json);
    } else {
        let heading = format!(
            "{}, mode {} against {}, profile {}{}\n",
            subject.name,
            mode.name,
            reference.name,
            profile.name,
            faults_text(&faults)
        );
        let costs = costs_text(&costs, args.top);
        print(&format!("{heading}{costs}\n{}", findings_text(&findings)));
    }
    Ok(Outcome::Success)
}

fn text(subject: &Subject, args: &AttributeArgs) -> Result<Text> {
    let sequences = subject.sequences_for("attribute", &args.input)?;
    Ok(Text {
        sequences,
        stride: args.stride.get(),
    })
}

fn costs_text(costs: &Costs, top: usize) -> String {
    let mut out = format!(
        "{} tokens, losses at {} positions: KL {:.5}, perplexity {:.3} (reference {:.3}); KL {:.5} with every site switched\n\n",
        costs.tokens,
        costs.positions,
        costs.kl,
        costs.perplexity,
        costs.reference_perplexity,
        costs.kl_without_sites
    );
    if !costs.not_switched.is_empty() {
        let what = format!(
            "not switched, since the profile cannot run it in floating point alone: {}\n",
            costs.not_switched.join(", ")
        );
        out.push_str(&what);
    }
    let shapley = costs.sites.iter().any(|s| s.shapley_kl.is_some());
    let mut header = vec!["block", "site", "scale", "share", "±"];
    header.extend(["one off: KL", "one on: KL"]);
    if shapley {
        header.push("Shapley: KL");
    }
    let mut rows = table(&header, 3);
    let costly = || costs.sites.iter().filter(|site| site.cost_kl.stands_out());
    for site in costly().take(top) {
        rows.add_row(row(site, costs.kl));
    }
    if let Some(column) = rows.column_mut(0) {
        column.set_cell_alignment(CellAlignment::Right);
    }
    let shown = costly().count().min(top);
    if shown > 0 {
        out.push_str(&table_text(&rows));
    }
    let left = costs.sites.len() - shown;
    if left > 0 {
        let share: f64 = costs.sites.iter().map(|s| s.share).sum();
        let share = share - costly().take(top).map(|s| s.share).sum::<f64>();
        let _ = writeln!(
            out,
            "{left} more sites: {:.1} % together; {} of them cost more than three standard errors",
            100.0 * share,
            costly().count() - shown
        );
    }
    out
}

fn row(site: &SiteCost, kl: f64) -> Vec<String> {
    let number = |m: Mean| format!("{m:.5}");
    let mut row = vec![
        site.layer.to_string(),
        site.site.to_owned(),
        site.scale.map_or("", |scale| scale.name()).to_owned(),
        format!("{:.1} %", 100.0 * site.share),
        format!("{:.1}", 100.0 * site.cost_kl.se / kl),
        number(site.one_off_kl),
        number(site.one_on_kl),
    ];
    row.extend(site.shapley_kl.map(number));
    row
}
