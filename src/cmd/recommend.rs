//! `scalescope recommend`: the smallest changes that help most, measured.

use crate::Outcome;
use crate::cli::{InputArgs, ModelArgs};
use crate::input::{load_subject, mode_table};
use crate::output::{print, print_json, progress, table, table_text};
use clap::Args;
use scalescope_golden::attribute::loss::Text;
use scalescope_golden::attribute::recommend::{Recommendations, recommend};
use scalescope_sim::datapath::Datapath;
use scalescope_sim::error::Result;
use scalescope_sim::profile::Profile;
use serde_json::json;
use std::num::NonZeroUsize;

/// Arguments of `recommend`.
#[derive(Args, Debug)]
#[command(after_help = "Examples:
  scalescope recommend --mode 2-4
  scalescope recommend --mode 0 --profile deployed --file book.jsonl --length 256 --json

Sequences 0, 2, 4, … choose the changes, the others measure them.")]
pub struct RecommendArgs {
    /// The model.
    #[command(flatten)]
    pub model: ModelArgs,
    /// The text [default: the built-in passages, cut to 128 tokens].
    #[command(flatten)]
    pub input: InputArgs,
    /// The mode (see `scalescope modes`)
    #[arg(long, default_value = "0")]
    pub mode: String,
    /// The mode that losses are measured against
    #[arg(long, default_value = "1", value_name = "MODE")]
    pub against: String,
    /// Arithmetic: exact, torch, deployed
    #[arg(long, default_value = "exact")]
    pub profile: String,
    /// Measure losses at every n-th position
    #[arg(long, value_name = "N", default_value = "2")]
    pub stride: NonZeroUsize,
    /// Print JSON instead of a table
    #[arg(long)]
    pub json: bool,
}

/// Tokens of each built-in passage.
const LENGTH: usize = 128;

pub fn run(args: &RecommendArgs) -> Result<Outcome> {
    let known = mode_table(&args.model.modes_file)?;
    let (mode, reference) = (known.get(&args.mode)?, known.get(&args.against)?);
    let profile = Profile::get(&args.profile)?;
    let subject = load_subject(&args.model, &[mode.clone(), reference.clone()])?;
    let sequences = subject.sequences_or_sample(&args.input, LENGTH)?;
    let text = Text {
        sequences,
        stride: args.stride.get(),
    };
    let path = Datapath::new(&subject.model, mode, &profile)?;
    let truth = Datapath::new(&subject.model, reference, &profile)?;
    let bar = progress(0, "trying changes");
    let found = recommend(&path, &truth, &text, &|| bar.inc(1))?;
    bar.finish_and_clear();
    if args.json {
        let mut json = json!({
            "model": subject.name,
            "mode": mode.name,
            "against": reference.name,
            "profile": profile.name,
            "tokens": text.tokens(),
            "stride": text.stride,
        });
        super::check::merge(&mut json, json!(found));
        print_json(&json);
    } else {
        let heading = format!(
            "{}, mode {} against {}, profile {}, {} tokens",
            subject.name,
            mode.name,
            reference.name,
            profile.name,
            text.tokens()
        );
        print(&format!("{heading}\n{}", words(&found)));
    }
    Ok(Outcome::Success)
}

fn words(found: &Recommendations) -> String {
    let mut out = format!(
        "{} changes tried on one half; on the other: KL {:.5}, perplexity {:.3}\n\n",
        found.tried, found.kl, found.perplexity
    );
    if found.helpful.is_empty() {
        out.push_str("none of them helps beyond chance (95 %)\n");
        return out;
    }
    let mut rows = table(
        &[
            "block",
            "change",
            "site",
            "KL falls by",
            "95 %",
            "perplexity",
        ],
        3,
    );
    for r in &found.helpful {
        let factor = r.factor.map_or(String::new(), |f| format!(" by {f}"));
        rows.add_row([
            r.layer.map_or("all".into(), |l| l.to_string()),
            format!("{}{factor}", r.change),
            r.site.to_owned(),
            format!("{:.6}", r.kl_gain.mean),
            format!("{:.6} to {:.6}", r.kl_interval[0], r.kl_interval[1]),
            format!("{:.3} → {:.3}", r.perplexity[0], r.perplexity[1]),
        ]);
    }
    out + &table_text(&rows)
}
