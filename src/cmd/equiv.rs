//! `scalescope equiv`: are two modes one computation?

use super::attribute::findings_text;
use crate::Outcome;
use crate::cli::{FaultArgs, InputArgs, ModelArgs};
use crate::input::{faults, faults_text, load_subject, mode_table};
use crate::output::{counted, print, print_json, progress};
use clap::Args;
use scalescope_golden::diagnosis::equiv::{
    Data, Divergence, Equivalence, Run, by_rule, equivalence,
};
use scalescope_sim::error::{Result, SimError};
use scalescope_sim::fault::Fault;
use scalescope_sim::profile::Profile;
use serde_json::json;
use std::fmt::Write;

/// Arguments of `equiv`.
#[derive(Args, Debug)]
#[command(after_help = "Examples:
  scalescope equiv 2-0 0 --profile deployed
  scalescope equiv 2-3 2-1 --profile deployed --file book.txt --length 512
  scalescope equiv 0 0 --profile exact,deployed      one mode in two profiles

Exit code 0 if the logits and every tensor that both make are equal bit for bit, 1 if not.")]
pub struct EquivArgs {
    /// The first mode, A
    #[arg(value_name = "MODE")]
    pub a: String,
    /// The second mode, B
    #[arg(value_name = "MODE")]
    pub b: String,
    /// The model.
    #[command(flatten)]
    pub model: ModelArgs,
    /// The text.
    #[command(flatten)]
    pub input: InputArgs,
    /// Arithmetic: a built-in profile (exact, torch, deployed, asic-int8, …) or a .toml file; two separated by a
    /// comma give A and B one each
    #[arg(long, default_value = "exact", value_name = "PROFILE")]
    pub profile: String,
    /// Defects of B.
    #[command(flatten)]
    pub faults: FaultArgs,
    /// Decode the last tokens of each sequence one by one
    #[arg(long, default_value_t = 8, value_name = "N")]
    pub decode: usize,
    /// Print JSON instead of text
    #[arg(long)]
    pub json: bool,
}

pub fn run(args: &EquivArgs) -> Result<Outcome> {
    let known = mode_table(&args.model.modes_file)?;
    let modes = [known.get(&args.a)?.clone(), known.get(&args.b)?.clone()];
    let names: Vec<&str> = args.profile.split(',').map(str::trim).collect();
    let profiles = match names[..] {
        [one] => [Profile::get(one)?, Profile::get(one)?],
        [a, b] => [Profile::get(a)?, Profile::get(b)?],
        _ => {
            return Err(SimError::value(
                "--profile",
                "one profile or two",
                &args.profile,
            ));
        }
    };
    let subject = load_subject(&args.model, &modes)?;
    let sequences = subject.sequences_for("equiv", &args.input)?;
    let faults = faults(&args.faults)?;
    let in_each: [&[Fault]; 2] = [&[], &faults];
    let runs = [0, 1].map(|i| Run {
        mode: &modes[i],
        profile: &profiles[i],
        faults: in_each[i],
    });
    let rule = by_rule(&runs[0], &runs[1]);
    let data = Data {
        sequences: &sequences,
        decode: args.decode,
    };
    let bar = progress(sequences.len() as u64, "running both");
    let result = equivalence(&subject.model, (runs[0], runs[1]), data, || bar.inc(1))?;
    bar.finish_and_clear();
    if args.json {
        let mut json = json!({
            "model": subject.name,
            "a": modes[0].name,
            "b": modes[1].name,
            "a_profile": profiles[0].name,
            "b_profile": profiles[1].name,
            "b_faults": faults,
            "proven_by_rule": rule,
        });
        super::check::merge(&mut json, json!(result));
        print_json(&json);
    } else {
        let heading = format!(
            "{}: A is mode {}, profile {}; B is mode {}, profile {}{}\n",
            subject.name,
            modes[0].name,
            profiles[0].name,
            modes[1].name,
            profiles[1].name,
            faults_text(&faults)
        );
        print(&(heading + &text(&result, rule)));
    }
    Ok(match result.equal {
        true => Outcome::Success,
        false => Outcome::Mismatch,
    })
}

fn text(result: &Equivalence, rule: Option<&str>) -> String {
    let mut out = String::new();
    for (point, a, b) in &result.by_value {
        let _ = writeln!(out, "{point}: {a} in A, {b} in B, compared by value");
    }
    if !result.not_shared.is_empty() {
        let points: Vec<&str> = result.not_shared.iter().copied().collect();
        let _ = writeln!(out, "not shared, so not compared: {}", points.join(", "));
    }
    match &result.divergence {
        None => {
            let _ = writeln!(
                out,
                "\nequal on this text, bit for bit: {} elements of {}, {} tokens in prefill and {} decoded",
                result.compared,
                counted(result.sequences, "sequence"),
                result.prefill_tokens,
                result.decoded_tokens
            );
            let _ = match rule {
                Some(why) => writeln!(out, "Proven by rule on any text: {why}."),
                None => writeln!(
                    out,
                    "Observed, not proven: no rule makes these modes equal, and they may differ on more text (--file)."
                ),
            };
        }
        Some(divergence) => out += &parting(divergence),
    }
    out
}

fn parting(d: &Divergence) -> String {
    let step = d
        .step
        .map_or(String::new(), |step| format!("decode step {step}, "));
    let layer = d
        .layer
        .map_or("after the last block".into(), |l| format!("block {l}"));
    let point = match d.a_point == d.b_point {
        true => d.a_point.to_owned(),
        false => format!("{} in A, {} in B", d.a_point, d.b_point),
    };
    let mut out = format!(
        "\nMISMATCH from here on: sequence {}, {step}{layer}, {point}\n\
         first element [{}, {}]: {} in A, {} in B; {} of {} elements of this tensor differ\n",
        d.sequence, d.index[0], d.index[1], d.a, d.b, d.mismatched, d.elements
    );
    if let Some(before) = d.before_quantization {
        let _ = writeln!(out, "before quantization it is {before} steps of the grid");
    }
    out.push_str("everything before is equal\n");
    for field in &d.why.fields {
        let alone = match field.alone {
            true => "this field alone makes the difference",
            false => "this field alone does not make it",
        };
        let _ = writeln!(
            out,
            "\nmode field {}: {} in A, {} in B: {alone}",
            field.field, field.a, field.b
        );
    }
    if !d.why.rules.is_empty() {
        out.push_str("\nrules that make this tensor and differ:\n");
        for rule in &d.why.rules {
            let _ = writeln!(out, "  {}: {} in A, {} in B", rule.rule, rule.a, rule.b);
        }
    }
    for fault in &d.why.faults {
        let alone = match fault.alone {
            true => "alone makes the difference",
            false => "alone does not make it",
        };
        let _ = writeln!(out, "\nfault {} in B {alone}", fault.fault);
    }
    if !d.why.findings.is_empty() {
        out.push_str("\nwhat B does differently in this block:\n");
        out += &findings_text(&d.why.findings);
    }
    if d.why.fields.is_empty() && d.why.rules.is_empty() && d.why.faults.is_empty() {
        out.push_str(
            "\nno mode field and no rule of this step differs: something in the model does\n",
        );
    }
    out
}
