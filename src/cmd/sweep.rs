//! `scalescope sweep`: a grid of designs.

use crate::Outcome;
use crate::cli::{InputArgs, ModelArgs};
use crate::input::{load_subject, mode_table};
use crate::output::{counted, number, print, print_json, progress, table, table_text};
use crate::sweep::effects::effects;
use crate::sweep::engine::{Bench, Design, pareto};
use crate::sweep::grid::{Values, Vary, designs};
use crate::sweep::page::{page, words};
use crate::sweep::store::Store;
use clap::Args;
use rayon::prelude::*;
use scalescope_golden::trace_file::model_digest;
use scalescope_sim::checkpoint::quantize::{FourBits, to_int4};
use scalescope_sim::error::{Result, SimError};
use scalescope_sim::mode::FLOAT;
use scalescope_sim::model::Model;
use scalescope_sim::profile::Profile;
use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use std::collections::BTreeMap;
use std::num::NonZeroUsize;
use std::path::PathBuf;
use std::sync::{Arc, Mutex};

/// Arguments of `sweep`.
#[derive(Args, Debug)]
#[command(after_help = "Examples:
  scalescope sweep --vary requant.multiplier_bits=8..16 --vary scan.state=int8,int16,f16
  scalescope sweep --profile a.toml --vary nonlinearity.exp.entries=32..512*2 -o sweep.jsonl --html sweep.html
  scalescope sweep --profile a.toml --choices

  scalescope sweep --profile exact --vary weights=w8a8,w4a8:out_proj,w4a8:x_proj+out_proj@0

Keys are those of a profile file (docs/asic.md), and `weights`, which weights have four bits as
`quantize --weights` says it (with + for its commas). Values: 8..16, 8..32+8, 64..1024*2, or a list. With -o
a sweep that was stopped goes on where it was.")]
pub struct SweepArgs {
    /// The model.
    #[command(flatten)]
    pub model: ModelArgs,
    /// The text.
    #[command(flatten)]
    pub input: InputArgs,
    /// The mode (see `scalescope modes`)
    #[arg(long, default_value = "0")]
    pub mode: String,
    /// The profile that designs start from: a built-in one or a .toml file
    #[arg(long, default_value = "asic-int8")]
    pub profile: String,
    /// A key and the values it takes; several make a grid
    #[arg(long, value_name = "KEY=VALUES", required_unless_present = "choices", num_args = 1..)]
    pub vary: Vec<String>,
    /// Instead of a grid, the tables of the profile one at a time: what each costs alone, and what
    /// the others cost without it
    #[arg(long, conflicts_with = "vary")]
    pub choices: bool,
    /// Use at most this many tokens in all
    #[arg(long, value_name = "TOKENS", default_value = "2048")]
    pub budget: NonZeroUsize,
    /// Keep every design in this file, as it is done, and go on with it
    #[arg(short, long, value_name = "FILE")]
    pub output: Option<PathBuf>,
    /// Write a page with plots
    #[arg(long, value_name = "FILE")]
    pub html: Option<PathBuf>,
    /// Print JSON instead of tables
    #[arg(long)]
    pub json: bool,
}

/// The key of designs that are a profile's choices.
const RULES: &str = "rules";
/// The key of designs that differ in the bits of weights; its values are those of `quantize --weights`.
const WEIGHTS: &str = "weights";
/// Designs of the table besides the front.
const SHOWN: usize = 12;

pub fn run(args: &SweepArgs) -> Result<Outcome> {
    let known = mode_table(&args.model.modes_file)?;
    let mode = known.get(&args.mode)?.clone();
    let vary: Vec<Vary> = args
        .vary
        .iter()
        .map(|text| {
            text.parse()
                .map_err(|e| SimError::value(format_args!("--vary {text}"), e, text))
        })
        .collect::<Result<_>>()?;
    let base = Profile::text(&args.profile)?;
    // Every design is checked before the first one runs.
    let profiles = match args.choices {
        true => choices(&args.profile, &base)?,
        false => (designs(&vary)?.into_iter())
            .map(|values| {
                let rules: Values = (values.iter().filter(|(key, _)| key != WEIGHTS))
                    .cloned()
                    .collect();
                let profile = Profile::with_keys(&args.profile, &base, &rules)?;
                Ok((values, profile))
            })
            .collect::<Result<_>>()?,
    };
    let weights = (vary.iter().filter(|v| v.key == WEIGHTS))
        .flat_map(|v| &v.values)
        .map(four_bits)
        .collect::<Result<Vec<_>>>()?;
    let subject = load_subject(&args.model, &[mode.clone(), FLOAT])?;
    let weights = (weights.into_iter())
        .map(|(name, which)| Ok((name, with_weights(&subject.model, &which)?)))
        .collect::<Result<BTreeMap<String, Model>>>()?;
    if let Some((_, profile)) = profiles
        .iter()
        .find(|(_, p)| p.storage.requantizes_linears())
        && !weights.is_empty()
    {
        return Err(SimError::value(
            "--vary weights",
            "a profile that takes weights as the model has them",
            format_args!("{}, which makes its own (storage.weight_…)", profile.name),
        ));
    }
    let mut sequences = subject.sequences_for("sweep", &args.input)?;
    let tokens = within(&mut sequences, args.budget.get());
    if sequences.is_empty() {
        return Err(SimError::value(
            "text",
            "a sequence of two tokens at least",
            "none",
        ));
    }
    let mut digest = Sha256::new();
    for sequence in &sequences {
        digest.update(sequence.len().to_le_bytes());
        sequence
            .iter()
            .for_each(|id| digest.update(id.to_le_bytes()));
    }
    let text: String = digest
        .finalize()
        .iter()
        .map(|b| format!("{b:02x}"))
        .collect();
    let settings = json!({
        "sweep": 2,
        "model": model_digest(&subject.model),
        "mode": mode.name,
        "base": Profile::from_toml("base", &base)?.hash(),
        "tokens": tokens,
        "text": text,
        "keys": match args.choices {
            true => vec![RULES],
            false => vary.iter().map(|v| &v.key[..]).collect(),
        },
    });
    let mut store = args
        .output
        .as_ref()
        .map(|path| Store::open(path, &settings))
        .transpose()?;
    let before: Vec<Design> = store
        .as_mut()
        .map(|s| std::mem::take(&mut s.done))
        .unwrap_or_default();
    let find = |values: &Values| {
        let same = |d: &&Design| {
            values.len() == d.values.len() && values.iter().all(|(k, v)| d.values.get(k) == Some(v))
        };
        before.iter().find(same)
    };
    let missing: Vec<&(Values, Profile)> =
        profiles.iter().filter(|(v, _)| find(v).is_none()).collect();
    let bar = progress(missing.len() as u64, "running designs");
    let bench = Bench::new(&subject.model, &mode, &FLOAT, sequences)?;
    let store = Mutex::new(store);
    let fresh: Vec<Design> = missing
        .par_iter()
        .map(|(values, profile)| {
            crate::interrupt::check()?;
            let of = values.iter().find(|(key, _)| key == WEIGHTS);
            let model = match of.and_then(|(_, value)| value.as_str()) {
                Some(name) => &weights[name],
                None => &subject.model,
            };
            let design = bench.run(model, profile, values)?;
            if let Some(store) = store.lock().expect("no panics inside").as_mut() {
                store.add(&design)?;
            }
            bar.inc(1);
            Ok(design)
        })
        .collect::<Result<_>>()?;
    bar.finish_and_clear();
    let mut fresh = fresh.into_iter();
    let results: Vec<Design> = profiles
        .iter()
        .map(|(values, _)| match find(values) {
            Some(design) => design.clone(),
            None => fresh.next().expect("one for each missing design"),
        })
        .collect();
    let front = pareto(&results);
    let title = format!(
        "{}, mode {}, {} of {}, {tokens} tokens",
        subject.name,
        mode.name,
        counted(results.len(), "design"),
        args.profile
    );
    if let Some(path) = &args.html {
        std::fs::write(path, page(&title, &results, &front)).map_err(|e| SimError::io(path, e))?;
    }
    if args.json {
        let rows: Vec<Value> = results
            .iter()
            .zip(&front)
            .map(|(design, on)| {
                let mut row = json!(design);
                row["pareto"] = json!(on);
                row
            })
            .collect();
        print_json(&json!({ "settings": settings, "designs": rows }));
    } else {
        let mut out = format!("{title}\n");
        if !before.is_empty() {
            out += &format!("{} designs were in the file already\n", before.len());
        }
        out += &match args.choices {
            true => choices_text(&results),
            false => text_of(&results, &front),
        };
        print(&out);
    }
    Ok(Outcome::Success)
}

/// A value of the key of weights: its name, and which weights have four bits.
fn four_bits(value: &Value) -> Result<(String, FourBits)> {
    let name = value.as_str().unwrap_or_default();
    match name.parse() {
        Ok(which) => Ok((name.to_owned(), which)),
        Err(expected) => Err(SimError::value("--vary weights", expected, value)),
    }
}

/// The model with some weights in four bits, quantized from its float model.
fn with_weights(model: &Model, which: &FourBits) -> Result<Model> {
    let (Some(quantized), Some(float)) = (&model.quantized, &model.float) else {
        return Err(SimError::value(
            "--vary weights",
            "a model with the float model that it was quantized from",
            "none",
        ));
    };
    let mut quantized = (**quantized).clone();
    to_int4(&mut quantized, float, which)?;
    Ok(Model {
        quantized: Some(Arc::new(quantized)),
        ..model.clone()
    })
}

/// The designs of a profile's choices, in the order that [`choices_text`] reads them: the base, the
/// whole, then each table alone and the whole without it.
fn choices(name: &str, text: &str) -> Result<Vec<(Values, Profile)>> {
    let found = Profile::choices(name, text)?;
    let design = |rules: String, profile| (vec![(RULES.to_owned(), rules.into())], profile);
    let mut designs = vec![
        design(found.base.name.to_string(), found.base),
        design("all".to_owned(), found.whole),
    ];
    for table in found.tables {
        designs.push(design(format!("only {}", table.name), table.alone));
        designs.push(design(format!("all but {}", table.name), table.without));
    }
    Ok(designs)
}

/// What each choice costs: alone against the base, and what leaving it out changes.
fn choices_text(designs: &[Design]) -> String {
    let [base, whole, tables @ ..] = designs else {
        return String::new();
    };
    let against = |design: &Design, other: &Design| {
        format!(
            "{:+.2} %",
            100.0 * (design.perplexity / other.perplexity - 1.0)
        )
    };
    let base_name = words(base).replace("rules=", "");
    let header = [
        "rules",
        "perplexity",
        &format!("against {base_name}"),
        "KL",
        "agreement",
        "all others",
        "against all",
    ];
    let mut rows = table(&header, 1);
    let first = |design: &Design, name: String| {
        vec![
            name,
            format!("{:.3}", design.perplexity),
            against(design, base),
            number(design.kl),
            format!("{:.1} %", 100.0 * design.agreement),
        ]
    };
    for (design, name) in [(base, base_name.clone()), (whole, "all".to_owned())] {
        let mut row = first(design, name);
        row.extend(["-".to_owned(), "-".to_owned()]);
        rows.add_row(row);
    }
    for pair in tables.chunks_exact(2) {
        let mut row = first(&pair[0], words(&pair[0]).replace("rules=", ""));
        row.push(format!("{:.3}", pair[1].perplexity));
        row.push(against(&pair[1], whole));
        rows.add_row(row);
    }
    format!(
        "\n{}\nonly: this table of the profile over {base_name}; all others: the profile without it\n",
        table_text(&rows)
    )
}

/// Cuts sequences so that they have `most` tokens together; tells how many they have.
fn within(sequences: &mut Vec<Vec<u32>>, most: usize) -> usize {
    let mut left = most;
    for sequence in sequences.iter_mut() {
        sequence.truncate(left);
        left -= sequence.len();
    }
    sequences.retain(|sequence| sequence.len() > 1);
    sequences.iter().map(Vec::len).sum()
}

fn text_of(designs: &[Design], front: &[bool]) -> String {
    let mut order: Vec<usize> = (0..designs.len()).collect();
    order.sort_by(|a, b| designs[*a].perplexity.total_cmp(&designs[*b].perplexity));
    let best = &designs[order[0]];
    let tie = |design: &Design| match design.is_tied_with(best) {
        true => "best".to_owned(),
        false => String::new(),
    };
    let rows = |wanted: &dyn Fn(usize) -> bool, most: usize| {
        let mut header = vec!["design", "perplexity", "tied", "KL", "agreement"];
        header.extend(designs[0].cost.fields().map(|(name, _)| name));
        let mut table = table(&header, 1);
        for i in order.iter().filter(|i| wanted(**i)).take(most) {
            let design = &designs[*i];
            let mut row = vec![
                words(design),
                design.perplexity_text(3),
                tie(design),
                number(design.kl),
                format!("{:.1} %", 100.0 * design.agreement),
            ];
            row.extend(design.cost.fields().map(|(_, value)| value.to_string()));
            table.add_row(row);
        }
        table_text(&table)
    };
    let on = front.iter().filter(|on| **on).count();
    let mut out = format!(
        "\nPareto front ({}: none is better in perplexity without costing more somewhere)\n{}",
        counted(on, "design"),
        rows(&|i| front[i], usize::MAX)
    );
    if on < designs.len() {
        out += &format!("\nbest of the others\n{}", rows(&|i| !front[i], SHOWN));
    }
    out += "\n±: standard error against the float model on this text; tied with the best: within two standard errors of it, \
            so that their order says nothing\n";
    out + &effects_text(designs)
}

/// What each value of each key costs, over the designs that have it.
fn effects_text(designs: &[Design]) -> String {
    let header = [
        "key",
        "value",
        "designs",
        "best perplexity",
        "mean perplexity",
        "mean KL",
        "mean agreement",
    ];
    let mut rows = table(&header, 2);
    for effect in effects(designs) {
        rows.add_row([
            effect.key,
            effect.value,
            effect.designs.to_string(),
            format!("{:.3}", effect.best),
            format!("{:.3}", effect.perplexity),
            number(effect.kl),
            format!("{:.1} %", 100.0 * effect.agreement),
        ]);
    }
    format!(
        "\nwhat each value costs, over all designs that have it\n{}",
        table_text(&rows)
    )
}
