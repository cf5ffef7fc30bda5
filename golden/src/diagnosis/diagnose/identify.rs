//! A device's arithmetic, read off a dump: which profile makes the dump's tensors of the dump's own inputs, step
//! by step.
//!
//! The built-in profiles are tried first. From the one that comes nearest, the keys of profile files are
//! changed, group by group, as long as a step comes nearer to the dump: since every step gets the dump's
//! inputs, a group is judged by the tensors that its own steps make.

mod keys;

use super::replay::{self, Closeness, Replay, Window};
use crate::trace_file::TraceFile;
use keys::{Group, Keys, groups};
use rayon::prelude::*;
use scalescope_sim::dataflow::{Block, Phase, Row};
use scalescope_sim::datapath::{BlockInput, Datapath};
use scalescope_sim::error::{Result, SimError};
use scalescope_sim::mode::ModeSpec;
use scalescope_sim::model::Model;
use scalescope_sim::profile::Profile;
use scalescope_sim::trace::{Place, TracePoint};
use serde::Serialize;
use serde_json::Value;
use std::fmt::Write;

/// Rounds over all groups.
const ROUNDS: usize = 3;
/// Blocks that are looked at while rules are tried.
const BLOCKS: usize = 2;
/// Rows of a first look at a setting.
const GLANCE: usize = 16;
/// Settings that a second look is given.
const TRIED: usize = 12;
/// Other settings of a group that are told.
const SHOWN: usize = 8;

/// Rules of a device, one group of a profile file's keys at a time.
#[derive(Clone, Debug, Serialize)]
pub struct GroupFound {
    /// The step or what the keys are about.
    pub group: &'static str,
    /// Elements of its tensors that were compared, in the whole dump.
    pub compared: usize,
    /// Elements that the profile does not make.
    pub mismatched: usize,
    /// Settings that make the same elements, each with an input that would tell: none of this dump tells them from
    /// the profile's.
    pub alike: Vec<String>,
}

/// What was read off a dump.
#[derive(Clone, Debug, Serialize)]
pub struct Identified {
    /// The built-in profile that it goes back to.
    pub extends: String,
    /// Built-in profiles that make the same elements of this dump.
    pub alike: Vec<String>,
    /// The profile file.
    pub toml: String,
    /// Elements compared.
    pub compared: usize,
    /// Elements that the profile does not make.
    pub mismatched: usize,
    /// Group by group.
    pub groups: Vec<GroupFound>,
}

/// A dump, and what its blocks get.
struct Dump<'a> {
    model: &'a Model,
    mode: &'a ModeSpec,
    trace: &'a TraceFile,
    /// Block by block, of the first sequence.
    starts: Vec<BlockInput>,
    blocks: Vec<usize>,
}

/// How far a profile is off at some points: a number that falls as it comes nearer, and elements.
#[derive(Clone, Copy, Default, PartialEq)]
struct Off {
    distance: f64,
    mismatched: usize,
    compared: usize,
}

impl Off {
    fn key(&self) -> f64 {
        self.distance + 0.1 * self.mismatched as f64 / self.compared.max(1) as f64
    }
}

impl Dump<'_> {
    /// How blocks compare, as far as the last of some points; `None` for all. On the first rows alone where a
    /// number is given.
    fn score(
        &self,
        profile: &Profile,
        (blocks, rows): (&[usize], Option<usize>),
        last: Option<&[TracePoint]>,
    ) -> Result<replay::Score> {
        let path = Datapath::new(self.model, self.mode, profile)?;
        let points = &self.trace.sequences[0];
        let mut total = replay::Score::new();
        for block in blocks {
            let mut replay = Replay::new(points, rows, Closeness::Bits, &[]);
            let here = last.into_iter().flatten().map(|p| Place::layer(*block, *p));
            replay.stop = here.filter(|place| points.contains_key(place)).max();
            let window = Window::blocks(*block..block + 1);
            replay.run(&path, window, self.starts[*block].clone())?;
            replay::add(&mut total, replay.score);
        }
        Ok(total)
    }

    fn off(score: &replay::Score, points: Option<&[TracePoint]>) -> Off {
        let mut off = Off::default();
        for (place, s) in score {
            if points.is_none_or(|points| points.contains(&place.point)) && place.layer.is_some() {
                off.distance += s.distance / s.compared.max(1) as f64;
                off.mismatched += s.mismatched;
                off.compared += s.compared;
            }
        }
        off
    }
}

/// The text of a profile file.
fn text(extends: &str, keys: &[(String, Value)]) -> String {
    let mut out = format!("version = 1\nextends = \"{extends}\"\n");
    for (name, value) in keys {
        let _ = writeln!(out, "{name} = {value}");
    }
    out
}

/// Keys with others over them.
fn over(keys: &[(String, Value)], more: &[(String, Value)]) -> Keys {
    let mut all: Keys = keys
        .iter()
        .filter(|(name, _)| more.iter().all(|(other, _)| other != name))
        .cloned()
        .collect();
    all.extend(more.iter().cloned());
    all
}

fn words(keys: &[(String, Value)]) -> String {
    let all: Vec<String> = keys
        .iter()
        .map(|(name, value)| format!("{name} = {value}"))
        .collect();
    all.join(", ")
}

/// An input that tells settings of these keys apart.
fn told_by(keys: &[(String, Value)]) -> &'static str {
    let is = |part: &str| keys.iter().any(|(name, _)| name.contains(part));
    let told = [
        ("accumulator", "sums beyond the register"),
        (
            "nonlinearity",
            "inputs where the function bends, and beyond its range",
        ),
        ("scan.order", "more tokens than a block of the scan"),
        (
            "scan.requantize_every",
            "more tokens than lie between two roundings of the state",
        ),
        (
            "scan.",
            "states beyond the calibrated range, and smaller than its step",
        ),
        (
            "hadamard.",
            "outputs of the scan beyond the range of the rotation's integers",
        ),
        (
            "weights",
            "weights whose rows or groups have maxima that are far apart",
        ),
        ("activations", "scales that are no powers of two"),
        ("overflow", "values beyond the range of the codes"),
        (
            "scaling",
            "sums that come next to the middle between two codes",
        ),
    ];
    let found = told.iter().find(|(part, _)| is(part));
    found.map_or(
        "values at the middle between two codes, of either sign",
        |(_, told)| told,
    )
}

/// Reads a device's arithmetic off a dump.
///
/// # Errors
///
/// No tokens, no tensor of a prefill that the mode makes.
pub fn identify(model: &Model, mode: &ModeSpec, trace: &TraceFile) -> Result<Identified> {
    let layers = model.config()?.n_layers;
    let tokens = trace.tokens()?.row(0).to_vec();
    let exact = Profile::get("exact")?;
    let path = Datapath::new(model, mode, &exact)?;
    let Some(points) = trace.sequences.first() else {
        return Err(SimError::value("dump", "tensors of a prefill", "none"));
    };
    let mut starts = Vec::new();
    let mut passing = path.start(&tokens)?;
    let mut replay = Replay::new(points, None, Closeness::Bits, &[]);
    for block in 0..layers {
        starts.push(passing.clone());
        let next = replay.run(&path, Window::blocks(block..block + 1), passing)?;
        passing = next.expect("it has no end");
    }
    if replay.score.is_empty() {
        let item = format!("tensors that mode {} makes", mode.name);
        return Err(SimError::value("dump", item, "others only"));
    }
    // Blocks whose inputs are in the dump, spread over the model.
    let full = |layer: &usize| {
        let dumped = |layer: usize, point| points.contains_key(&Place::layer(layer, point));
        dumped(*layer, TracePoint::ResidualOut)
            || dumped(*layer, TracePoint::NormOut)
            || *layer == 0
    };
    let blocks: Vec<usize> = (0..layers).filter(full).collect();
    let step = blocks.len().div_ceil(BLOCKS).max(1);
    let some: Vec<usize> = blocks.iter().copied().step_by(step).collect();
    let dump = Dump {
        model,
        mode,
        trace,
        starts,
        blocks,
    };
    let mut bases: Vec<(Off, &str)> = Profile::names()
        .into_par_iter()
        .filter_map(|name| {
            let profile = Profile::get(name).ok()?;
            let score = dump.score(&profile, (&some, None), None).ok()?;
            Some((Dump::off(&score, None), name))
        })
        .collect();
    bases.sort_by(|a, b| a.0.key().total_cmp(&b.0.key()));
    let Some((best, extends)) = bases.first().copied() else {
        return Err(SimError::value(
            "profile",
            "one that runs on this model",
            "none",
        ));
    };
    let same = bases.iter().skip(1).filter(|(off, _)| *off == best);
    let alike: Vec<String> = same.map(|(_, name)| (*name).to_owned()).collect();
    let mut keys: Keys = Vec::new();
    let base = text(extends, &[]);
    let groups = groups();
    let profile_of = |keys: &Keys| Profile::with_keys("device", &base, keys);
    let judge_on = |keys: &Keys, group: &Group, on: (&[usize], Option<usize>)| -> Option<Off> {
        let points = Some(&group.points[..]);
        let score = dump.score(&profile_of(keys).ok()?, on, points).ok()?;
        Some(Dump::off(&score, points))
    };
    let judge = |keys: &Keys, group: &Group| judge_on(keys, group, (&some, None));
    // A glance tells most settings apart: a few rows of one block, where no scale is found from all rows.
    let found = |row: &Row| row.quantizer.is_some_and(|q| q.is_dynamic());
    let whole = Block::of(mode, &exact, Phase::Prefill)
        .rows()
        .iter()
        .any(found);
    let glance_on = (&some[..1], (!whole).then_some(GLANCE.min(tokens.len())));
    let glance = |keys: &Keys, group: &Group| judge_on(keys, group, glance_on);
    // The setting that brings a group nearer than it is: a glance chooses those that are looked at.
    let best_of = |moves: &[Keys], keys: &Keys, group: &Group, now: Off| -> Option<Keys> {
        let few = glance(keys, group)?.key();
        let mut tried: Vec<(f64, Keys)> = moves
            .par_iter()
            .filter_map(|m| {
                let tried = over(keys, m);
                let off = glance(&tried, group)?.key();
                (off <= few).then_some((off, tried))
            })
            .collect();
        tried.sort_by(|a, b| a.0.total_cmp(&b.0));
        // Those that a glance does not tell apart are all looked at.
        let last = tried.get(TRIED).map_or(few, |(off, _)| *off);
        let mut better: Vec<(f64, Keys)> = tried
            .into_par_iter()
            .filter(|(off, _)| *off <= last)
            .filter_map(|(_, tried)| Some((judge(&tried, group)?.key(), tried)))
            .filter(|(off, _)| *off < 0.999 * now.key())
            .collect();
        better.sort_by(|a, b| a.0.total_cmp(&b.0));
        better.into_iter().next().map(|(_, keys)| keys)
    };
    if best.mismatched > 0 {
        for _ in 0..ROUNDS {
            let before = keys.clone();
            for group in &groups {
                let Some(now) = judge(&keys, group) else {
                    continue;
                };
                if now.mismatched == 0 {
                    continue;
                }
                let single = best_of(&group.moves, &keys, group, now);
                // Pairs start from the group's keys as they were: one setting may have come near by chance.
                let own = |name: &String| group.moves.iter().flatten().any(|(n, _)| n == name);
                let bare: Keys = keys.iter().filter(|(n, _)| !own(n)).cloned().collect();
                let found = single.or_else(|| best_of(&group.pairs(), &bare, group, now));
                keys = found.unwrap_or(keys);
            }
            if keys == before {
                break;
            }
        }
    }
    let profile = profile_of(&keys)?;
    let whole = dump.score(&profile, (&dump.blocks, None), None)?;
    let all = Dump::off(&whole, None);
    let found = groups.iter().filter_map(|group| {
        let off = Dump::off(&whole, Some(&group.points));
        let (here, few) = (judge(&keys, group)?, glance(&keys, group)?);
        // The first settings of the same group that make the same elements.
        let is_alike = |m: &&Keys| {
            let tried = over(&keys, m);
            profile_of(&tried).is_ok_and(|p| p.hash() != profile.hash())
                && glance(&tried, group).is_some_and(|off| off == few)
                && judge(&tried, group).is_some_and(|off| off == here)
        };
        let mut alike: Vec<String> = Vec::new();
        for some in group.moves.chunks(2 * SHOWN) {
            let more: Vec<&Keys> = some.par_iter().filter(is_alike).collect();
            let told = more.into_iter();
            alike.extend(told.map(|m| format!("{} (told apart by {})", words(m), told_by(m))));
            if alike.len() >= SHOWN {
                break;
            }
        }
        (off.compared > 0).then(|| GroupFound {
            group: group.name,
            compared: off.compared,
            mismatched: off.mismatched,
            alike: alike.into_iter().take(SHOWN).collect(),
        })
    });
    Ok(Identified {
        extends: extends.to_owned(),
        alike,
        toml: text(extends, &keys),
        compared: all.compared,
        mismatched: all.mismatched,
        groups: found.collect(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Every setting that is tried is one that profile files have.
    #[test]
    fn moves_are_keys_of_profile_files() {
        let mut known = 0;
        for group in groups() {
            for keys in &group.moves {
                let over = ["exact", "asic-int8"]
                    .iter()
                    .any(|base| Profile::with_keys("device", &text(base, &[]), keys).is_ok());
                assert!(over, "{}", words(keys));
                known += 1;
            }
        }
        assert!(known > 500);
    }
}
