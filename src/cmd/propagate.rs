//! `scalescope propagate`: where error is made, and what becomes of it.

use crate::Outcome;
use crate::cli::{FaultArgs, InputArgs, ModelArgs};
use crate::cmd::compare::{metric, sign};
use crate::input::{faults, faults_text, load_subject, mode_table};
use crate::output::{counted, number, print, print_json, progress, table, table_text, wrapped};
use crate::report::remarks::steps;
use clap::Args;
use scalescope_golden::diagnosis::propagate::{
    Propagation, SiteError, TimeError, error_over_time, propagate,
};
use scalescope_golden::metrics::MetricInfo;
use scalescope_sim::datapath::Datapath;
use scalescope_sim::error::{Result, SimError};
use scalescope_sim::profile::Profile;
use serde_json::json;

/// Arguments of `propagate`.
#[derive(Args, Debug)]
#[command(after_help = "Examples:
  scalescope propagate --mode 2-4
  scalescope propagate --mode 0 --against 2-1 --profile deployed --file book.txt --length 256
  scalescope propagate --mode 0 --time --metric sqnr_db

Local: the step and the reference's step, both fed the reference's clean tensors. Propagated: with
the mode's own inputs. docs/diagnosis.md defines both.")]
pub struct PropagateArgs {
    /// The model.
    #[command(flatten)]
    pub model: ModelArgs,
    /// The text.
    #[command(flatten)]
    pub input: InputArgs,
    /// The mode (see `scalescope modes`)
    #[arg(long, default_value = "0")]
    pub mode: String,
    /// The reference: the mode whose tensors are clean
    #[arg(long, default_value = "1", value_name = "MODE")]
    pub against: String,
    /// Arithmetic: a built-in profile (exact, torch, deployed, asic-int8, …) or a .toml file (docs/asic.md)
    #[arg(long, default_value = "exact")]
    pub profile: String,
    /// Defects.
    #[command(flatten)]
    pub faults: FaultArgs,
    /// What the tables show (JSON has every metric)
    #[arg(long, alias = "metrics", default_value = "normalized_l2")]
    pub metric: String,
    /// Also decode token by token and show the error of the recurrent state along time
    #[arg(long)]
    pub time: bool,
    /// Print JSON instead of tables
    #[arg(long)]
    pub json: bool,
}

pub fn run(args: &PropagateArgs) -> Result<Outcome> {
    let known = mode_table(&args.model.modes_file)?;
    let modes = [
        known.get(&args.mode)?.clone(),
        known.get(&args.against)?.clone(),
    ];
    let profile = Profile::get(&args.profile)?;
    if modes[0] == modes[1] && args.faults.fault.is_empty() {
        return Err(SimError::value(
            "--against",
            format_args!(
                "another mode than --mode {}: a mode has no error against itself",
                modes[0].name
            ),
            &modes[1].name,
        ));
    }
    let metric = metric("--metric", &args.metric)?;
    let subject = load_subject(&args.model, &modes)?;
    let sequences = subject.sequences_for("propagate", &args.input)?;
    let faults = faults(&args.faults)?;
    let path = Datapath::with_faults(&subject.model, &modes[0], &profile, &faults)?;
    let reference = Datapath::new(&subject.model, &modes[1], &profile)?;
    let bar = progress(sequences.len() as u64, "running freely and fed");
    let error = propagate(&path, &reference, &sequences, || bar.inc(1))?;
    bar.finish_and_clear();
    let tokens: usize = sequences.iter().map(Vec::len).sum();
    let time = match args.time {
        false => None,
        true => {
            let bar = progress(tokens as u64, "decoding");
            let time = error_over_time(&path, &reference, &sequences, || bar.inc(1))?;
            bar.finish_and_clear();
            Some(time)
        }
    };
    if args.json {
        let mut json = json!({
            "model": subject.name,
            "tokens": tokens,
            "faults": faults,
            "layer_amplification": error.layer_amplification(),
        });
        super::check::merge(&mut json, json!(error));
        json["time"] = json!(time);
        print_json(&json);
    } else {
        let heading = format!(
            "{}, mode {} against mode {}, profile {}{}: {}, {tokens} tokens\n",
            subject.name,
            error.mode,
            error.against,
            error.profile,
            faults_text(&faults),
            counted(sequences.len(), "sequence")
        );
        let time = time.map_or(String::new(), |time| time_text(&time));
        print(&(heading + &text(&error, metric) + &time));
    }
    Ok(Outcome::Success)
}

fn text(error: &Propagation, metric: &MetricInfo) -> String {
    let shown = format!("{} {}", metric.name, sign(metric.better));
    let of = |site: &SiteError, local: bool| {
        let metrics = if local { &site.local } else { &site.propagated };
        metrics
            .get(metric.metric)
            .value()
            .map_or("-".into(), number)
    };
    let said = steps(error).into_iter();
    let mut out: String = said
        .map(|remark| wrapped(&format!("{}: {}", remark.site, remark.words), 0))
        .collect();
    out += &format!(
        "\nlocal {shown}: the error each step makes with clean inputs\n{}",
        matrix(error, |site| of(site, true))
    );
    out += &format!(
        "\npropagated {shown}: the error with the mode's own inputs\n{}",
        matrix(error, |site| of(site, false))
    );
    out += &format!(
        "\namplification: propagated normalized_l2 over the largest among the step's inputs\n{}",
        matrix(error, |site| site.amplification.map_or("-".into(), number))
    );
    let growth: Vec<String> = (error.layer_amplification().into_iter())
        .map(|factor| factor.map_or("-".into(), number))
        .collect();
    out += &format!(
        "\nresidual stream, from each block to the next: {}\n",
        growth.join("  ")
    );
    let mut ends = table(&["after the last block", "local", "propagated"], 1);
    for site in error.sites.iter().filter(|s| s.layer.is_none()) {
        ends.add_row([site.site.to_string(), of(site, true), of(site, false)]);
    }
    out + "\n" + &table_text(&ends)
}

/// A row a block, a column a step.
fn matrix(error: &Propagation, cell: impl Fn(&SiteError) -> String) -> String {
    let sites = error.sites_of_a_block();
    let mut header = vec!["block"];
    header.extend(&sites);
    let mut rows = table(&header, 1);
    for layer in 0.. {
        let row: Vec<Option<&SiteError>> = sites
            .iter()
            .map(|site| error.get(Some(layer), site))
            .collect();
        if row.iter().all(Option::is_none) {
            break;
        }
        let cells = row.iter().map(|site| site.map_or("-".into(), &cell));
        rows.add_row([layer.to_string()].into_iter().chain(cells));
    }
    table_text(&rows)
}

fn time_text(time: &TimeError) -> String {
    type Part = fn(&scalescope_golden::diagnosis::propagate::Window) -> &[f64];
    let parts: [(&str, Part); 3] = [
        ("recurrent state, own inputs", |w| &w.ssm_state),
        ("recurrent state, clean inputs, own state", |w| {
            &w.ssm_state_clean_inputs
        }),
        ("ssm_y, own inputs", |w| &w.ssm_y),
    ];
    let mut out = String::new();
    for (title, values) in parts {
        let layers = time.windows.first().map_or(0, |w| values(w).len());
        let names: Vec<String> = (0..layers).map(|layer| format!("block {layer}")).collect();
        let mut header = vec!["tokens"];
        header.extend(names.iter().map(String::as_str));
        let mut rows = table(&header, 1);
        for window in &time.windows {
            let cells = values(window).iter().map(|v| number(*v));
            let span = format!("{}-{}", window.first, window.last);
            rows.add_row([span].into_iter().chain(cells));
        }
        out += &format!(
            "\nalong time, normalized_l2 ↓, {title}\n{}",
            table_text(&rows)
        );
    }
    out
}
