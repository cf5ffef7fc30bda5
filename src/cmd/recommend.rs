//! `scalescope recommend`: the smallest changes that help most, measured.

use crate::Outcome;
use crate::cli::{InputArgs, ModelArgs};
use crate::input::{load_subject, mode_table};
use crate::output::{print, print_json, progress, table, table_text};
use clap::Args;
use scalescope_golden::diagnosis::cost::bits::{Bits, bits};
use scalescope_golden::diagnosis::cost::loss::Text;
use scalescope_golden::diagnosis::cost::recommend::{Recommendations, recommend};
use scalescope_sim::checkpoint::quantize::{FourBits, to_int4};
use scalescope_sim::datapath::Datapath;
use scalescope_sim::error::{Result, SimError};
use scalescope_sim::model::Model;
use scalescope_sim::profile::Profile;
use serde_json::json;
use std::num::NonZeroUsize;
use std::sync::Arc;

/// Arguments of `recommend`.
#[derive(Args, Debug)]
#[command(after_help = "Examples:
  scalescope recommend --mode 2-4
  scalescope recommend --mode 0 --profile deployed --file book.jsonl --length 256 --json

  scalescope recommend --mode 0 --bits

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
    /// Arithmetic: a built-in profile (exact, torch, deployed, asic-int8, …) or a .toml file (docs/asic.md)
    #[arg(long, default_value = "exact")]
    pub profile: String,
    /// Which of in_proj's, x_proj's and out_proj's weights could have four bits, and at what cost
    #[arg(long)]
    pub bits: bool,
    /// Measure losses at every n-th position
    #[arg(
        long = "every",
        alias = "stride",
        value_name = "N",
        default_value = "2"
    )]
    pub stride: NonZeroUsize,
    /// Print JSON instead of a table
    #[arg(long)]
    pub json: bool,
}

pub fn run(args: &RecommendArgs) -> Result<Outcome> {
    let known = mode_table(&args.model.modes_file)?;
    let (mode, reference) = (known.get(&args.mode)?, known.get(&args.against)?);
    let profile = Profile::get(&args.profile)?;
    let subject = load_subject(&args.model, &[mode.clone(), reference.clone()])?;
    let sequences = subject.sequences_for("recommend", &args.input)?;
    let text = Text {
        sequences,
        stride: args.stride.get(),
    };
    let path = Datapath::new(&subject.model, mode, &profile)?;
    let truth = Datapath::new(&subject.model, reference, &profile)?;
    let four = match args.bits {
        true => Some(in_four_bits(&subject.model)?),
        false => None,
    };
    let bar = progress(0, "trying changes");
    let (found, text_of_it) = match &four {
        None => {
            let found = recommend(&path, &truth, &text, &|| bar.inc(1))?;
            (json!(found), words(&found))
        }
        Some(model) => {
            let four = Datapath::new(model, mode, &profile)?;
            let found = bits(&path, &four, &truth, &text, &|| bar.inc(1))?;
            (json!(found), bits_words(&found))
        }
    };
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
        super::check::merge(&mut json, found);
        print_json(&json);
    } else {
        let heading = format!(
            "{}, mode {} against {}, profile {}, {} tokens, losses at one position in {}",
            subject.name,
            mode.name,
            reference.name,
            profile.name,
            text.tokens(),
            text.stride
        );
        print(&format!("{heading}\n{}", text_of_it));
    }
    Ok(Outcome::Success)
}

/// The model with four bits wherever its shape allows.
fn in_four_bits(model: &Model) -> Result<Model> {
    let missing = |what: &str| SimError::value("--bits", what, "a model without");
    let quantized = model.quantized.as_deref();
    let mut quantized = quantized
        .ok_or_else(|| missing("a quantized model"))?
        .clone();
    let float = model.float.as_deref();
    let float = float.ok_or_else(|| missing("the float model that it was quantized from"))?;
    to_int4(&mut quantized, float, &FourBits::possible(&float.config))?;
    Ok(Model {
        quantized: Some(Arc::new(quantized)),
        ..model.clone()
    })
}

fn bits_words(found: &Bits) -> String {
    let mut out =
        String::from("each weight alone, cheapest per byte first (chosen on one half)\n\n");
    let mut rows = table(&["block", "weight", "KiB saved", "KL rises by", "±"], 2);
    for w in &found.weights {
        rows.add_row([
            w.layer.to_string(),
            w.step.name().to_owned(),
            format!("{:.1}", w.bytes_saved as f64 / 1024.0),
            format!("{:.6}", w.kl_rise.mean),
            format!("{:.6}", w.kl_rise.se),
        ]);
    }
    out += &table_text(&rows);
    out += "\nthe first of them together (measured on the other half)\n\n";
    let mut rows = table(
        &["weights", "MiB", "KL", "rises by", "95 %", "perplexity"],
        1,
    );
    for t in &found.together {
        rows.add_row([
            t.weights.to_string(),
            format!("{:.3}", t.bytes as f64 / f64::from(1 << 20)),
            format!("{:.6}", t.kl),
            format!("{:.6}", t.kl_rise.mean),
            format!("{:.6} to {:.6}", t.kl_interval[0], t.kl_interval[1]),
            format!("{:.3}", t.perplexity),
        ]);
    }
    out + &table_text(&rows)
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
