//! `scalescope headroom`: how wide registers, tables and values need to be.

use crate::Outcome;
use crate::cli::{InputArgs, ModelArgs};
use crate::input::{load_subject, mode_table};
use crate::output::{counted, number, print, print_json, progress, table, table_text, wrapped};
use clap::Args;
use scalescope_sim::arith::function::{Function, FunctionRule};
use scalescope_sim::bench::energy::{Energy, energy};
use scalescope_sim::bench::linear_work;
use scalescope_sim::datapath::{Datapath, LogitRows};
use scalescope_sim::error::Result;
use scalescope_sim::headroom::{Bound, Codes, Watch, bits_for};
use scalescope_sim::profile::Profile;
use scalescope_sim::trace::{Place, TracePoint};
use serde_json::{Value, json};
use std::collections::{BTreeMap, BTreeSet};

/// Arguments of `headroom`.
#[derive(Args, Debug)]
#[command(after_help = "Examples:
  scalescope headroom
  scalescope headroom --by-block
  scalescope headroom --mode 0 --profile asic-int8 --file book.txt --length 512 --json

Always enough: by interval arithmetic, from the weights and the range of their inputs. Enough here:
on this text.")]
pub struct HeadroomArgs {
    /// The model.
    #[command(flatten)]
    pub model: ModelArgs,
    /// The text.
    #[command(flatten)]
    pub input: InputArgs,
    /// The mode (see `scalescope modes`)
    #[arg(long, default_value = "0")]
    pub mode: String,
    /// Arithmetic: a built-in profile or a .toml file (docs/asic.md)
    #[arg(long, default_value = "asic-int8")]
    pub profile: String,
    /// Also show the bits of every accumulator block by block
    #[arg(long)]
    pub by_block: bool,
    /// Print JSON instead of tables
    #[arg(long)]
    pub json: bool,
}

pub fn run(args: &HeadroomArgs) -> Result<Outcome> {
    let known = mode_table(&args.model.modes_file)?;
    let mode = known.get(&args.mode)?.clone();
    let profile = Profile::get(&args.profile)?;
    let subject = load_subject(&args.model, std::slice::from_ref(&mode))?;
    let sequences = subject.sequences_for("headroom", &args.input)?;
    let path = Datapath::new(&subject.model, &mode, &profile)?;
    let mut watch = Watch::default();
    let bar = progress(sequences.len() as u64, "watching");
    for tokens in &sequences {
        crate::interrupt::check()?;
        path.prefill(tokens, LogitRows::None, &mut watch)?;
        bar.inc(1);
    }
    bar.finish_and_clear();
    let tokens: usize = sequences.iter().map(Vec::len).sum();
    let bounds = path.accumulator_bounds();
    let energy = energy(&linear_work(&path));
    let heading = format!(
        "{}, mode {}, profile {}, {tokens} tokens",
        subject.name, mode.name, profile.name
    );
    if args.json {
        print_json(&json!({
            "model": subject.name,
            "mode": mode.name,
            "profile": profile.name,
            "profile_hash": profile.hash(),
            "tokens": tokens,
            "accumulators": bounds.iter().map(|b| accumulator_json(b, &watch)).collect::<Vec<_>>(),
            "functions": functions_json(&watch, &profile),
            "energy": energy,
            "values": watch.codes.iter().map(|(place, codes)| value_json(*place, codes)).collect::<Vec<_>>(),
        }));
    } else {
        let mut out = text(&heading, &bounds, &watch, &profile);
        if args.by_block {
            out += &blocks_text(&bounds, &watch);
        }
        out += &energy_text(&energy);
        print(&out);
    }
    Ok(Outcome::Success)
}

/// The name of the register of the step that makes a place.
fn name(point: TracePoint) -> &'static str {
    const NAMES: [(TracePoint, &str); 8] = [
        (TracePoint::InProjOut, "in_proj"),
        (TracePoint::ConvOut, "conv"),
        (TracePoint::XProjOut, "x_proj"),
        (TracePoint::DtProjOut, "dt_proj"),
        (TracePoint::SsmY, "scan sum"),
        (TracePoint::SsmState, "scan state"),
        (TracePoint::HadOut, "hadamard"),
        (TracePoint::OutProjOut, "out_proj"),
    ];
    let own = NAMES.iter().find(|(one, _)| *one == point);
    own.map_or(point.name(), |(_, name)| *name)
}

fn accumulator_json(bound: &Bound, watch: &Watch) -> Value {
    let seen = watch
        .accumulators
        .get(&bound.place)
        .copied()
        .unwrap_or_default();
    json!({
        "layer": bound.place.layer,
        "accumulator": name(bound.place.point),
        "bits": bound.register.bits(),
        "overflow": bound.register.overflow(),
        "bits_always_enough": bound.bits(),
        "reach": bound.reach,
        "bits_enough_here": bits_for(seen.low.into(), seen.high.into()),
        "low": seen.low,
        "high": seen.high,
        "sums": seen.sums,
        "overflows": seen.overflows,
    })
}

/// The unit of a function at a place, if it has one.
fn rule_of(profile: &Profile, place: Place, function: Function) -> FunctionRule {
    let rules = &profile.cuda.prefill;
    let unit = rules.scan.unit;
    match (place.point, function) {
        (TracePoint::ConvOut, _) => rules.conv.silu,
        (_, Function::Exp) => unit.map_or(FunctionRule::Exact, |u| u.exp),
        (_, Function::Softplus) => unit.map_or(FunctionRule::Exact, |u| u.softplus),
        (_, Function::Silu) => unit.map_or(FunctionRule::Exact, |u| u.silu),
    }
}

fn functions_json(watch: &Watch, profile: &Profile) -> Vec<Value> {
    let used = watch
        .functions
        .iter()
        .filter(|(_, inputs)| inputs.count > 0);
    used.filter_map(|((place, function), inputs)| {
        let FunctionRule::Unit(rule) = rule_of(profile, *place, *function) else {
            return None;
        };
        let real = |x: i64| x as f64 / f64::from(1u32 << rule.input_fraction);
        Some(json!({
            "layer": place.layer,
            "step": name(place.point),
            "function": function,
            "range": [rule.low, rule.high],
            "input_low": real(inputs.low),
            "input_high": real(inputs.high),
            "inputs": inputs.count,
            "beyond_range": inputs.beyond,
        }))
    })
    .collect()
}

fn value_json(place: Place, codes: &Codes) -> Value {
    json!({
        "layer": place.layer,
        "point": place.point.name(),
        "bits": 8,
        "low": codes.low,
        "high": codes.high,
        "unused_bits": codes.unused_bits(),
    })
}

fn text(heading: &str, bounds: &[Bound], watch: &Watch, profile: &Profile) -> String {
    let mut out = format!("{heading}\n\n");
    let mut by_name: BTreeMap<TracePoint, Vec<&Bound>> = BTreeMap::new();
    for bound in bounds {
        by_name.entry(bound.place.point).or_default().push(bound);
    }
    let mut registers = table(
        &[
            "accumulator",
            "bits",
            "always enough",
            "enough here",
            "largest magnitude",
            "overflows",
        ],
        1,
    );
    let (mut any, mut here, mut overflowed) = (Vec::new(), Vec::new(), Vec::new());
    for (point, bounds) in by_name {
        let seen = bounds
            .iter()
            .filter_map(|b| watch.accumulators.get(&b.place));
        let (low, high, overflows) = seen.fold((0, 0, 0), |(l, h, o), s| {
            (s.low.min(l), s.high.max(h), s.overflows + o)
        });
        let always: Option<Vec<u32>> = bounds.iter().map(|b| b.bits()).collect();
        let always = always.and_then(|bits| bits.into_iter().max());
        let bits = bounds[0].register.bits();
        match (overflows, always) {
            (1.., _) => {
                let times = counted(overflows as usize, "time");
                overflowed.push(format!("{} ({times})", name(point)));
            }
            (_, Some(always)) if always <= bits.into() => any.push(name(point).to_owned()),
            _ => here.push(name(point).to_owned()),
        }
        registers.add_row([
            name(point).to_owned(),
            bits.to_string(),
            always.map_or("-".into(), |bits| bits.to_string()),
            bits_for(low.into(), high.into()).to_string(),
            high.max(-low).to_string(),
            overflows.to_string(),
        ]);
    }
    for (words, names) in [
        ("Wide enough for any input", any),
        ("Wide enough on this text", here),
        ("Overflowed on this text", overflowed),
    ] {
        if !names.is_empty() {
            out += &wrapped(&format!("{words}: {}.", names.join(", ")), 0);
        }
    }
    out += "\naccumulators, over all blocks\n";
    out += &table_text(&registers);
    let functions = functions_json(watch, profile);
    if !functions.is_empty() {
        out += "\nfunction units, over all blocks\n";
        out += &functions_text(&functions);
    }
    out += "\nINT8 values, over all blocks\n";
    let mut values = table(
        &[
            "value",
            "lowest",
            "highest",
            "bits never used",
            "blocks with unused bits",
        ],
        1,
    );
    let mut by_point: BTreeMap<TracePoint, Vec<&Codes>> = BTreeMap::new();
    for (place, codes) in &watch.codes {
        by_point.entry(place.point).or_default().push(codes);
    }
    for (point, codes) in by_point {
        let all = Codes {
            low: codes.iter().map(|c| c.low).min().unwrap_or(0),
            high: codes.iter().map(|c| c.high).max().unwrap_or(0),
        };
        let loose = codes.iter().filter(|c| c.unused_bits() > 0).count();
        values.add_row([
            point.name().to_owned(),
            all.low.to_string(),
            all.high.to_string(),
            all.unused_bits().to_string(),
            format!("{loose} of {}", codes.len()),
        ]);
    }
    out + &table_text(&values)
}

/// The proxy of [`scalescope_sim::bench::energy`].
fn energy_text(steps: &[Energy]) -> String {
    let header = [
        "step",
        "MAC",
        "type",
        "arithmetic",
        "in FP32",
        "weights: SRAM",
        "DRAM",
    ];
    let mut rows = table(&header, 1);
    let total = |of: fn(&Energy) -> f64| steps.iter().map(of).sum::<f64>();
    let cells = |values: [f64; 4]| values.map(number);
    for step in steps {
        let kind = if step.integer { "INT8" } else { "FP32" };
        let first = [
            step.step.name().to_owned(),
            step.products.to_string(),
            kind.to_owned(),
        ];
        let energies = [
            step.arithmetic,
            step.in_fp32,
            step.weights_sram,
            step.weights_dram,
        ];
        rows.add_row(first.into_iter().chain(cells(energies)));
    }
    let products: u64 = steps.iter().map(|step| step.products).sum();
    let first = ["all".to_owned(), products.to_string(), String::new()];
    let energies = [
        total(|s| s.arithmetic),
        total(|s| s.in_fp32),
        total(|s| s.weights_sram),
        total(|s| s.weights_dram),
    ];
    rows.add_row(first.into_iter().chain(cells(energies)));
    let words = "A proxy that ranks designs, at 45 nm and 0.9 V (Horowitz, ISSCC 2014); scan, convolution, registers \
                 and wires are not in it.";
    format!(
        "\nenergy of a token's linear steps, µJ; weights are read once\n{}{}",
        table_text(&rows),
        wrapped(words, 0)
    )
}

/// Bits that were enough for each accumulator of each block.
fn blocks_text(bounds: &[Bound], watch: &Watch) -> String {
    let mut blocks: BTreeMap<Option<usize>, BTreeMap<TracePoint, u32>> = BTreeMap::new();
    for Bound { place, .. } in bounds {
        if let Some(seen) = watch.accumulators.get(place) {
            let bits = bits_for(seen.low.into(), seen.high.into());
            let block = blocks.entry(place.layer).or_default();
            block.insert(place.point, bits);
        }
    }
    let points: BTreeSet<TracePoint> = blocks.values().flat_map(BTreeMap::keys).copied().collect();
    let mut header = vec!["block"];
    header.extend(points.iter().map(|point| name(*point)));
    let mut rows = table(&header, 0);
    for (layer, bits) in blocks {
        let cell = |point| bits.get(point).map_or("-".into(), u32::to_string);
        let block = layer.map_or("end".into(), |layer| layer.to_string());
        rows.add_row(std::iter::once(block).chain(points.iter().map(cell)));
    }
    format!("\nbits enough here, block by block\n{}", table_text(&rows))
}

/// The inputs of a unit, over blocks.
struct Used {
    range: String,
    low: f64,
    high: f64,
    count: u64,
    beyond: u64,
}

fn functions_text(functions: &[Value]) -> String {
    let mut rows: BTreeMap<(&str, &str), Used> = BTreeMap::new();
    for f in functions {
        let name = |key: &str| f[key].as_str().unwrap_or("");
        let used = rows
            .entry((name("step"), name("function")))
            .or_insert_with(|| Used {
                range: format!("{} to {}", f["range"][0], f["range"][1]),
                low: f64::INFINITY,
                high: f64::NEG_INFINITY,
                count: 0,
                beyond: 0,
            });
        used.low = used.low.min(f["input_low"].as_f64().unwrap_or(0.0));
        used.high = used.high.max(f["input_high"].as_f64().unwrap_or(0.0));
        used.count += f["inputs"].as_u64().unwrap_or(0);
        used.beyond += f["beyond_range"].as_u64().unwrap_or(0);
    }
    let header = [
        "step",
        "function",
        "range",
        "inputs from",
        "to",
        "inputs",
        "beyond",
    ];
    let mut table = table(&header, 2);
    for ((step, function), used) in rows {
        table.add_row([
            step.to_owned(),
            function.to_owned(),
            used.range,
            format!("{:.3}", used.low),
            format!("{:.3}", used.high),
            used.count.to_string(),
            format!(
                "{:.3} %",
                100.0 * used.beyond as f64 / used.count.max(1) as f64
            ),
        ]);
    }
    table_text(&table)
}
