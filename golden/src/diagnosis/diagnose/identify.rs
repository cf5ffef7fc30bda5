//! A device's arithmetic, read off a dump: which profile makes the dump's tensors of the dump's own inputs, step
//! by step.
//!
//! The built-in profiles are tried first. From the one that comes nearest, the keys of profile files are
//! changed, group by group, where a step comes nearer to the dump: since every step gets the dump's
//! inputs, a group is judged by the tensors that its own steps make, on a few rows first.

mod keys;

use super::locate::replay::{self, Closeness, Replay, Window};
use crate::trace_file::{Points, TraceFile};
use keys::{Group, Keys, groups};
use rayon::prelude::*;
use scalescope_sim::dataflow::{Block, Phase, Row};
use scalescope_sim::datapath::{BlockInput, Datapath};
use scalescope_sim::error::{Result, SimError};
use scalescope_sim::mode::ModeSpec;
use scalescope_sim::model::{Checkpoint, Config, FloatModel, Model, QuantizedModel};
use scalescope_sim::profile::Profile;
use scalescope_sim::trace::{Place, TracePoint};
use serde::Serialize;
use serde_json::Value;
use std::collections::BTreeSet;
use std::fmt::Write;
use std::sync::Arc;

/// Blocks that are looked at while rules are tried.
const BLOCKS: usize = 2;
/// Rows of a first look at a setting.
const GLANCE: usize = 16;
/// Settings that go on to the next sort of keys.
const BEAM: usize = 12;
/// Of those that make the same elements.
const SAME: usize = 2;
/// Times that the sorts of a group are gone through.
const PASSES: usize = 2;
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

/// Some blocks of a model by themselves, with what a dump has of them. A run of a part prepares no others' weights.
struct Part<'a> {
    model: Model,
    mode: &'a ModeSpec,
    points: Points,
    starts: Vec<BlockInput>,
}

/// A model of some of its blocks.
fn some_blocks(model: &Model, blocks: &[usize]) -> Model {
    let config = |config: &Config| Config {
        n_layers: blocks.len(),
        ..config.clone()
    };
    fn float<W: Clone>(model: &FloatModel<W>, config: Config, blocks: &[usize]) -> FloatModel<W> {
        FloatModel {
            config,
            embedding: model.embedding.clone(),
            layers: blocks.iter().map(|b| model.layers[*b].clone()).collect(),
            norm_f: model.norm_f.clone(),
            head: model.head.clone(),
            rotated: model.rotated,
        }
    }
    let quantized = model.quantized.as_deref().map(|m| {
        Arc::new(QuantizedModel {
            float_digest: m.float_digest.clone(),
            config: config(&m.config),
            embedding: m.embedding.clone(),
            layers: blocks.iter().map(|b| m.layers[*b].clone()).collect(),
            norm_f: m.norm_f.clone(),
            head: m.head.clone(),
        })
    });
    let of_float = |m: &FloatModel| Arc::new(float(m, config(&m.config), blocks));
    let original = model.original.as_deref().map(|m| match m {
        Checkpoint::F16(m) => Checkpoint::F16(float(m, config(&m.config), blocks)),
        Checkpoint::F32(m) => Checkpoint::F32(float(m, config(&m.config), blocks)),
    });
    Model {
        quantized,
        float: model.float.as_deref().map(of_float),
        original: original.map(Arc::new),
    }
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

impl<'a> Part<'a> {
    fn of(
        (model, mode): (&Model, &'a ModeSpec),
        points: &Points,
        starts: &[BlockInput],
        blocks: &[usize],
    ) -> Self {
        let number = |layer: usize| blocks.iter().position(|b| *b == layer);
        let here = points.iter().filter_map(|(place, value)| {
            let place = Place::layer(number(place.layer?)?, place.point);
            Some((place, value.clone()))
        });
        Self {
            model: some_blocks(model, blocks),
            mode,
            points: here.collect(),
            starts: blocks.iter().map(|b| starts[*b].clone()).collect(),
        }
    }

    /// How the blocks compare, as far as the last of some points; `None` for all. On the first rows alone where a
    /// number is given.
    fn score(
        &self,
        profile: &Profile,
        rows: Option<usize>,
        last: Option<&[TracePoint]>,
    ) -> Result<replay::Score> {
        let path = Datapath::new(&self.model, self.mode, profile)?;
        let mut total = replay::Score::new();
        for (block, start) in self.starts.iter().enumerate() {
            let mut replay = Replay::new(&self.points, rows, Closeness::Bits, &[]);
            let here = last.into_iter().flatten().map(|p| Place::layer(block, *p));
            replay.stop = here.filter(|p| self.points.contains_key(p)).max();
            replay.run(&path, Window::blocks(block..block + 1), start.clone())?;
            replay::add(&mut total, replay.score);
        }
        Ok(total)
    }

    fn off(&self, profile: &Profile, rows: Option<usize>, points: &[TracePoint]) -> Result<Off> {
        Ok(off(&self.score(profile, rows, Some(points))?, Some(points)))
    }
}

/// How far scores are off at some points; `None` for all.
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
    identify_telling(model, mode, trace, &|_, _, _| {})
}

/// [`identify`]; `done` is told which group is looked at, the how many-th it is, and of how many.
pub fn identify_telling(
    model: &Model,
    mode: &ModeSpec,
    trace: &TraceFile,
    done: &dyn Fn(&str, usize, usize),
) -> Result<Identified> {
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
    let part = |blocks: &[usize]| Part::of((model, mode), points, &starts, blocks);
    let (first, few) = (part(&some[..1]), part(&some));
    let mut bases: Vec<(Off, &str)> = Profile::names()
        .into_par_iter()
        .filter_map(|name| {
            let score = few.score(&Profile::get(name).ok()?, None, None).ok()?;
            Some((off(&score, None), name))
        })
        .collect();
    bases.sort_by(|a, b| a.0.key().total_cmp(&b.0.key()));
    let Some((best, extends)) = bases.first().copied() else {
        let expected = "one that runs on this model";
        return Err(SimError::value("profile", expected, "none"));
    };
    let same = bases.iter().skip(1).filter(|(off, _)| *off == best);
    let alike: Vec<String> = same.map(|(_, name)| (*name).to_owned()).collect();
    let base = text(extends, &[]);
    let profile_of = |keys: &Keys| Profile::with_keys("device", &base, keys);
    // A few rows of one block tell most settings apart, where no scale is found from all rows; then all of its
    // rows; then other blocks.
    let found = |row: &Row| row.quantizer.is_some_and(|q| q.is_dynamic());
    let whole = Block::of(mode, &exact, Phase::Prefill)
        .rows()
        .iter()
        .any(found);
    let glance = (!whole && GLANCE < tokens.len()).then_some((&first, Some(GLANCE)));
    let looks: Vec<(&Part, Option<usize>)> = glance
        .into_iter()
        .chain([(&first, None), (&few, None)])
        .collect();
    let judge = |keys: &Keys, group: &Group, (part, rows): (&Part, Option<usize>)| {
        let profile = profile_of(keys).ok()?;
        part.off(&profile, rows, &group.points).ok()
    };
    let groups = groups();
    let told = groups.len() * (looks.len() + 1);
    let mut keys: Keys = Vec::new();
    for (round, look) in looks.iter().copied().enumerate() {
        for (i, group) in groups.iter().enumerate() {
            done(group.name, round * groups.len() + i, told);
            let all = |keys: &Keys| judge(keys, group, (&few, None));
            let Some(now) = all(&keys).filter(|now| best.mismatched > 0 && now.mismatched > 0)
            else {
                continue;
            };
            let near = nearest(group, &keys, &|keys| judge(keys, group, look));
            let better = near
                .into_par_iter()
                .filter_map(|keys| Some((all(&keys)?.key(), keys)))
                .filter(|(off, _)| *off < 0.999 * now.key())
                .min_by(|a, b| a.0.total_cmp(&b.0));
            if let Some((_, better)) = better {
                keys = better;
            }
        }
    }
    let profile = profile_of(&keys)?;
    let mut all = replay::Score::new();
    for block in &blocks {
        replay::add(&mut all, part(&[*block]).score(&profile, None, None)?);
    }
    let whole = off(&all, None);
    let mut found = Vec::new();
    for (i, group) in groups.iter().enumerate() {
        done(group.name, looks.len() * groups.len() + i, told);
        let here = off(&all, Some(&group.points));
        if here.compared == 0 {
            continue;
        }
        found.push(GroupFound {
            group: group.name,
            compared: here.compared,
            mismatched: here.mismatched,
            alike: alike_of(group, &keys, &looks, &profile, &profile_of, &judge),
        });
    }
    Ok(Identified {
        extends: extends.to_owned(),
        alike,
        toml: text(extends, &keys),
        compared: whole.compared,
        mismatched: whole.mismatched,
        groups: found,
    })
}

/// Settings of a group's keys that come nearest, one sort of keys after another: of each sort every setting is put
/// over each of the best so far, since one alone may be farther off than none (a state in INT8 that is rounded at
/// every fourth token is far from one that is rounded at each).
fn nearest(group: &Group, keys: &Keys, judge: &(dyn Fn(&Keys) -> Option<Off> + Sync)) -> Vec<Keys> {
    let own = |name: &String| group.moves().flatten().any(|(n, _)| n == name);
    let bare: Keys = keys.iter().filter(|(n, _)| !own(n)).cloned().collect();
    let mut best: Vec<(f64, Keys)> = [keys.clone(), bare]
        .into_iter()
        .filter_map(|keys| Some((judge(&keys)?.key(), keys)))
        .collect();
    best.dedup_by(|a, b| a.1 == b.1);
    let mut seen: BTreeSet<String> = best.iter().map(|(_, keys)| sorted(keys)).collect();
    for sort in (0..PASSES).flat_map(|_| &group.sorts) {
        let mut new: Vec<Keys> = Vec::new();
        for m in sort {
            let over_all = best.iter().map(|(_, keys)| over(keys, m));
            new.extend(over_all.filter(|keys| seen.insert(sorted(keys))));
        }
        let judged: Vec<Option<(f64, Keys)>> = new
            .into_par_iter()
            .map(|keys| Some((judge(&keys)?.key(), keys)))
            .collect();
        best.extend(judged.into_iter().flatten());
        best.sort_by(|a, b| a.0.total_cmp(&b.0).then(a.1.len().cmp(&b.1.len())));
        // Of those that make the same elements the first: their keys have no effect here.
        let mut last = (f64::NAN, 0);
        best.retain(|(off, _)| {
            last = if last.0 == *off {
                (*off, last.1 + 1)
            } else {
                (*off, 1)
            };
            last.1 <= SAME
        });
        best.truncate(BEAM);
        if best.first().is_some_and(|(off, _)| *off == 0.0) {
            break;
        }
    }
    best.into_iter().map(|(_, keys)| keys).collect()
}

/// Keys in an order of their own.
fn sorted(keys: &[(String, Value)]) -> String {
    let mut all: Vec<String> = keys.iter().map(|(n, v)| format!("{n}={v}")).collect();
    all.sort();
    all.join(",")
}

/// How far off a device of some keys is in a part of a group, if it is told.
type Judge<'a> = dyn Fn(&Keys, &Group, (&Part, Option<usize>)) -> Option<Off> + Sync + 'a;

/// The first settings of a group that make the same elements.
fn alike_of(
    group: &Group,
    keys: &Keys,
    looks: &[(&Part, Option<usize>)],
    profile: &Profile,
    profile_of: &(dyn Fn(&Keys) -> Result<Profile> + Sync),
    judge: &Judge,
) -> Vec<String> {
    let own: Vec<Option<Off>> = looks.iter().map(|look| judge(keys, group, *look)).collect();
    let is_alike = |m: &&Keys| {
        let tried = over(keys, m);
        profile_of(&tried).is_ok_and(|p| p.hash() != profile.hash())
            && (looks.iter().zip(&own)).all(|(look, own)| judge(&tried, group, *look) == *own)
    };
    let moves: Vec<&Keys> = group.moves().collect();
    let mut alike: Vec<String> = Vec::new();
    for some in moves.chunks(2 * SHOWN) {
        let more: Vec<&&Keys> = some.par_iter().filter(|m| is_alike(m)).collect();
        let told = more.into_iter();
        alike.extend(told.map(|m| format!("{} (told apart by {})", words(m), told_by(m))));
        if alike.len() >= SHOWN {
            break;
        }
    }
    alike.truncate(SHOWN);
    alike
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Every setting that is tried is one that profile files have.
    #[test]
    fn moves_are_keys_of_profile_files() {
        let mut known = 0;
        for group in groups() {
            for keys in group.moves() {
                let over = ["exact", "asic-int8"]
                    .iter()
                    .any(|base| Profile::with_keys("device", &text(base, &[]), keys).is_ok());
                assert!(over, "{}", words(keys));
                known += 1;
            }
        }
        assert!(known > 400, "{known}");
    }
}
