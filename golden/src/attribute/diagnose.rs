//! What is wrong with a dump: it sees the model, the mode and the dump's tensors, nothing else. The
//! metadata and the scales that a file may carry are not read.
//!
//! 1. Every block runs with the dump's tensors in place, as in a local check. What is made before the
//!    first tensor that deviates is in order; the fault lies between the dumped tensor before it and
//!    that one.
//! 2. Every fault model is tried at every site in between, and every way in which the tensor could be
//!    misread. A stale scale's factor is fitted: first on a few tokens, then on all.
//! 3. The one that leaves the fewest mismatches is taken as a cause, put into the simulation, and
//!    the search goes on with what still deviates.

use super::candidate::{self, Candidate, Misread};
use super::replay::{self, Closeness, Replay, Score, Window};
use super::{Finding, Severity, fit};
use crate::trace_file::{Points, TraceFile, in_data_order};
use rayon::prelude::*;
use scalescope_sim::datapath::{Datapath, Passing};
use scalescope_sim::error::{Result, SimError};
use scalescope_sim::fault::{Named, SumSite};
use scalescope_sim::mode::ModeSpec;
use scalescope_sim::model::Model;
use scalescope_sim::profile::Profile;
use scalescope_sim::trace::{Place, TracePoint};
use serde::Serialize;
use std::collections::BTreeSet;

/// Tokens of a first fit.
const FIRST_ROWS: usize = 32;
/// Stale scales whose factor is fitted finely.
const FINE: usize = 8;
/// Other explanations that are named beside the best.
const OTHERS: usize = 4;
/// A cause has to remove this share of the mismatches that it is tried on.
const MIN_SHARE: f64 = 0.5;
/// Shares closer than this are equally good.
const TIE: f64 = 0.002;
/// Blocks that may stay unexplained before the search ends.
const GIVE_UP: usize = 3;

/// What was found in a dump.
#[derive(Clone, Debug, Serialize)]
pub struct Diagnosis {
    /// The profile whose arithmetic the dump follows best.
    pub profile: String,
    /// Elements that could be compared.
    pub compared: usize,
    /// Elements that deviate when every step has the dump's inputs.
    pub mismatched: usize,
    /// Places of the dump that the mode does not make.
    pub not_made: Vec<String>,
    /// Probable causes, the most probable first.
    pub findings: Vec<Finding>,
}

/// Says what is wrong with a dump of `mode`, whose arithmetic is one of `profiles`.
///
/// # Errors
///
/// No tokens, no tensor of a prefill that the mode makes, NaN, another model's shape or ids.
pub fn diagnose(
    model: &Model,
    mode: &ModeSpec,
    trace: &TraceFile,
    profiles: &[Profile],
) -> Result<Diagnosis> {
    check_input(model, trace)?;
    let mut all: Vec<(Search, State)> = Vec::new();
    for profile in profiles {
        let mut search = Search {
            tokens: trace
                .tokens()?
                .rows()
                .into_iter()
                .map(|row| row.to_vec())
                .collect(),
            sequences: &trace.sequences,
            closeness: Closeness::Bits,
            profile: profile.name.to_string(),
        };
        let mut state = search.begin(Datapath::new(model, mode, profile)?)?;
        if search.is_another_implementation(&state) {
            search.closeness = Closeness::Near;
            state = search.begin(state.path)?;
        }
        all.push((search, state));
    }
    // The profile that the most blocks follow, to the last bit.
    all.sort_by_key(|(_, state)| {
        let score = state.score();
        let bad = || score.iter().filter(|(_, s)| s.bits > 0);
        let blocks: BTreeSet<_> = bad().map(|(place, _)| place.layer).collect();
        let bits: usize = score.values().map(|s| s.bits).sum();
        (blocks.len(), bad().count(), bits)
    });
    let mut best: Option<Diagnosis> = None;
    for (search, state) in all {
        let found = search.diagnose(state)?;
        let share = |d: &Diagnosis| d.findings.iter().map(|f| f.share).fold(0.0, f64::max);
        if best.as_ref().is_none_or(|b| share(&found) > share(b) + TIE) {
            best = Some(found);
        }
        let best = best.as_ref().expect("set above");
        if best.mismatched == 0 || share(best) > 0.98 {
            break;
        }
    }
    best.ok_or_else(|| SimError::value("profile", "at least one", "none"))
}

fn check_input(model: &Model, trace: &TraceFile) -> Result<()> {
    let layers = model.config()?.n_layers;
    let tokens = trace.tokens()?;
    for row in tokens.rows() {
        scalescope_sim::datapath::check_tokens(&row.to_vec(), model.config()?.vocab_size)?;
    }
    if trace.layers() > layers {
        return Err(SimError::value(
            "dump",
            format_args!("blocks 0 to {}, as the model has", layers - 1),
            format_args!("block {}", trace.layers() - 1),
        ));
    }
    for (place, value) in trace.sequences.iter().flatten() {
        let elements = value.elements();
        if let Some(i) = (0..elements.len()).find(|i| elements.get(*i).is_nan()) {
            return Err(SimError::value(
                place,
                "numbers",
                format_args!("NaN at element {i}"),
            ));
        }
    }
    if trace.sequences.iter().all(Points::is_empty) {
        let expected = "at least one tensor of a prefill, such as layer_00/conv_out";
        return Err(SimError::value("dump", expected, "none"));
    }
    Ok(())
}

/// A dump and how to look at it.
struct Search<'a> {
    tokens: Vec<Vec<u32>>,
    sequences: &'a [Points],
    closeness: Closeness,
    profile: String,
}

/// The simulation with the causes found so far, and how it compares.
struct State<'m> {
    path: Datapath<'m>,
    misread: Vec<Misread>,
    /// What each block gets, sequence by sequence.
    starts: Vec<Vec<Passing>>,
    /// Sequence by sequence.
    scores: Vec<Score>,
}

impl State<'_> {
    fn score(&self) -> Score {
        let mut total = Score::new();
        for score in &self.scores {
            replay::add(&mut total, score.clone());
        }
        total
    }
}

/// A candidate and the mismatches that are left with it.
struct Judged {
    candidate: Candidate,
    left: usize,
}

/// Where a search looks.
struct Scene {
    first: Place,
    blocks: std::ops::Range<usize>,
    window: Window,
    /// The sequence and the rows that first fits run on.
    sequence: usize,
    rows: Option<usize>,
    /// Mismatches in the window.
    base: usize,
}

impl Search<'_> {
    /// Runs every block with the dump's tensors in place.
    fn begin<'m>(&self, path: Datapath<'m>) -> Result<State<'m>> {
        self.advance(path, Vec::new())
    }

    fn advance<'m>(&self, path: Datapath<'m>, misread: Vec<Misread>) -> Result<State<'m>> {
        let blocks = path.config().n_layers;
        let runs: Vec<(Vec<Passing>, Score)> = self
            .tokens
            .par_iter()
            .zip(self.sequences)
            .map(|(tokens, points)| {
                let mut starts = Vec::with_capacity(blocks + 1);
                let mut passing = path.start(tokens)?;
                let mut replay = Replay::new(points, None, self.closeness, &misread);
                for block in 0..blocks {
                    starts.push(passing.clone());
                    passing = replay.run(&path, Window::blocks(block..block + 1), passing)?;
                }
                starts.push(passing.clone());
                let head = Window {
                    first: blocks,
                    end: blocks,
                    head: true,
                };
                replay.run(&path, head, passing)?;
                Ok((starts, replay.score))
            })
            .collect::<Result<_>>()?;
        let (starts, scores) = runs.into_iter().unzip();
        Ok(State {
            path,
            misread,
            starts,
            scores,
        })
    }

    /// Whether floats are a hair off in several blocks whose codes are in order: functions of another
    /// device.
    fn is_another_implementation(&self, state: &State) -> bool {
        let near = match self.closeness {
            Closeness::Near => return true,
            Closeness::Bits => Search {
                tokens: self.tokens.clone(),
                closeness: Closeness::Near,
                profile: self.profile.clone(),
                ..*self
            },
        };
        let Ok(near) = near.begin(state.path.clone()) else {
            return false;
        };
        let near = near.score();
        let close: BTreeSet<_> = near
            .iter()
            .filter(|(_, s)| s.bits > 0 && s.mismatched == 0)
            .map(|(place, _)| place.layer)
            .collect();
        let all: BTreeSet<_> = near.keys().map(|place| place.layer).collect();
        close.len() >= 2 && 4 * close.len() >= all.len()
    }

    fn diagnose(&self, mut state: State) -> Result<Diagnosis> {
        let score = state.score();
        if score.is_empty() {
            return Err(SimError::value(
                "dump",
                format_args!("tensors that mode {} makes", state.path.mode().name),
                "others only",
            ));
        }
        let not_made: Vec<String> = in_data_order(self.sequences[0].keys().copied())
            .into_iter()
            .filter(|place| !score.contains_key(place))
            .map(Place::key)
            .collect();
        let total = replay::mismatched(&score);
        let mut causes: Vec<Finding> = Vec::new();
        let mut others: Vec<Finding> = Vec::new();
        let mut unexplained: BTreeSet<Option<usize>> = BTreeSet::new();
        for _ in 0..2 * state.path.config().n_layers + GIVE_UP {
            let score = state.score();
            let Some(first) = first_deviation(&score, &unexplained) else {
                break;
            };
            let scene = self.scene(&state, &score, first);
            let judged = self.judge(&state, &scene)?;
            let share = |left: usize| scene.base.saturating_sub(left) as f64 / scene.base as f64;
            let of_total = |left: usize| {
                (scene.base.saturating_sub(left) as f64 / total as f64).clamp(0.0, 1.0)
            };
            let best = judged.first().filter(|j| share(j.left) >= MIN_SHARE);
            let shown = match best {
                Some(_) => &judged[1..],
                None => &judged[..],
            };
            if others.is_empty() {
                others = alternatives(shown, best, &scene, of_total);
            }
            match best {
                Some(best) => {
                    causes.push(cause(best, &scene, &score, of_total(best.left)));
                    state = self.with(state, &best.candidate)?;
                }
                None => {
                    causes.push(no_cause(&scene, &score, total));
                    unexplained.insert(first.layer);
                    if unexplained.len() >= GIVE_UP {
                        break;
                    }
                }
            }
        }
        let mut findings = in_every_block(causes, &score);
        findings.sort_by(|a, b| {
            (a.kind == "none")
                .cmp(&(b.kind == "none"))
                .then(b.share.total_cmp(&a.share))
        });
        findings.extend(others);
        if findings.is_empty() {
            findings.push(in_order(&score, &self.profile, state.path.mode()));
        }
        Ok(Diagnosis {
            profile: self.profile.clone(),
            compared: score.values().map(|s| s.compared).sum(),
            mismatched: total,
            not_made,
            findings,
        })
    }

    /// Puts a cause into the simulation.
    fn with<'m>(&self, state: State<'m>, candidate: &Candidate) -> Result<State<'m>> {
        let (mut path, mut misread) = (state.path, state.misread);
        match candidate {
            Candidate::Faults(faults) => {
                for fault in faults {
                    path.inject(fault)?;
                }
            }
            Candidate::Misread(m) => misread.push(*m),
        }
        self.advance(path, misread)
    }

    fn scene(&self, state: &State, score: &Score, first: Place) -> Scene {
        let layers = state.path.config().n_layers;
        let places = in_data_order(score.keys().copied());
        let at = places
            .iter()
            .position(|p| *p == first)
            .expect("it has a score");
        // In the block of the last tensor that is in order, or in one after it.
        let from = match at.checked_sub(1) {
            Some(before) => places[before].layer.unwrap_or(layers - 1),
            None => 0,
        };
        let last = first.layer.unwrap_or(layers - 1);
        // As far as the next tensor that the block hands on.
        let handed_on = Place::layer(last, TracePoint::OutProjOut);
        let beyond = match first.layer {
            None => None,
            Some(_) if score.contains_key(&handed_on) => Some(last),
            Some(_) => places.iter().filter_map(|p| p.layer).find(|l| *l > last),
        };
        let end = places.iter().any(|p| p.layer.is_none());
        let window = match beyond {
            Some(block) => Window::blocks(from..block + 1),
            None => Window {
                first: from,
                end: layers,
                head: end,
            },
        };
        let inside = |place: &Place| match place.layer {
            Some(layer) => (window.first..window.end).contains(&layer),
            None => window.head,
        };
        let base = score
            .iter()
            .filter(|(place, _)| inside(place))
            .map(|(_, s)| s.mismatched)
            .sum();
        let deviates = |s: &&Score| s.get(&first).is_some_and(|s| s.mismatched > 0);
        let sequence = state.scores.iter().position(|s| deviates(&s)).unwrap_or(0);
        let length = self.tokens[sequence].len();
        let row = state.scores[sequence][&first].first_row.unwrap_or(0);
        let rows = (row + FIRST_ROWS / 2).max(FIRST_ROWS);
        let whole = first.point.is_state() || rows >= length;
        Scene {
            first,
            blocks: from..last + 1,
            window,
            sequence,
            rows: (!whole).then_some(rows),
            base,
        }
    }

    /// Every candidate of a scene with what it leaves, the best first.
    fn judge(&self, state: &State, scene: &Scene) -> Result<Vec<Judged>> {
        let config = state.path.config();
        let dumped = |place: Place| state.scores.iter().any(|s| s.contains_key(&place));
        let fits = |c: &Candidate| c.fits(scene.first, &dumped);
        let (mut discrete, mut scales, mut registers) = (Vec::new(), Vec::new(), Vec::new());
        for layer in scene.blocks.clone() {
            discrete.extend(candidate::discrete(layer).into_iter().filter(fits));
            scales.extend(candidate::scales(layer).into_iter().filter(fits));
            for site in SumSite::ALL {
                registers.extend(candidate::registers(layer, *site).into_iter().filter(fits));
            }
            for place in state.score().keys().filter(|p| p.layer == Some(layer)) {
                discrete.extend(candidate::misreads(config, *place).into_iter().filter(fits));
            }
        }
        let mut judged = self.judge_all(state, scene, discrete)?;
        let off = self.far(state, scene, None)?;
        judged.extend(self.judge_scales(state, scene, scales, off)?);
        let narrow = self.nearest(state, scene, registers, off, OTHERS)?;
        judged.extend(self.judge_all(state, scene, narrow)?);
        judged.retain(|j| j.left < scene.base);
        judged.sort_by_key(|j| (j.left, j.candidate.rank()));
        // Of equally good ones the simpler first.
        if let Some(best) = judged.first().map(|j| j.left) {
            let tied = best + (TIE * scene.base as f64) as usize;
            let count = judged.partition_point(|j| j.left <= tied);
            judged[..count].sort_by_key(|j| (j.candidate.rank(), j.left));
        }
        Ok(judged)
    }

    fn judge_all(
        &self,
        state: &State,
        scene: &Scene,
        candidates: Vec<Candidate>,
    ) -> Result<Vec<Judged>> {
        candidates
            .into_par_iter()
            .map(|candidate| {
                let left = self.left(state, scene, &candidate)?;
                Ok(Judged { candidate, left })
            })
            .collect()
    }

    /// Fits the factors of stale scales and judges the best of them.
    fn judge_scales(
        &self,
        state: &State,
        scene: &Scene,
        scales: Vec<Candidate>,
        off: f64,
    ) -> Result<Vec<Judged>> {
        let far = |c: &Candidate, factor: f32| self.far(state, scene, Some(&c.with_factor(factor)));
        let mut rough: Vec<(Candidate, f64)> = scales
            .into_par_iter()
            .map(|c| {
                let (factor, value) = fit::coarse(|factor| far(&c, factor))?;
                Ok((c.with_factor(factor), value))
            })
            .collect::<Result<_>>()?;
        rough.retain(|(_, value)| *value < 0.97 * off);
        rough.sort_by(|a, b| a.1.total_cmp(&b.1));
        rough.truncate(FINE);
        rough
            .into_par_iter()
            .map(|(c, _)| {
                let start = c.factor().expect("a stale scale");
                let (factor, _) = fit::refine(start, 0.5, 16, |factor| far(&c, factor))?;
                let left = |factor: f32| self.left(state, scene, &c.with_factor(factor));
                // Of equally good ones the number of the fewest digits.
                let mut best = (factor, usize::MAX);
                for number in fit::round_numbers(factor).into_iter().chain([factor]) {
                    let now = left(number)?;
                    if now < best.1 {
                        best = (number, now);
                    }
                }
                if best.1 > 0 && 20 * best.1 < scene.base {
                    let all = |factor: f32| left(factor).map(|left| left as f64);
                    let (factor, now) = fit::refine(best.0, 1e-4, 12, all)?;
                    best = (factor, now as usize);
                }
                Ok(Judged {
                    candidate: c.with_factor(best.0),
                    left: best.1,
                })
            })
            .collect()
    }

    /// The candidates that come nearest on a few tokens.
    fn nearest(
        &self,
        state: &State,
        scene: &Scene,
        candidates: Vec<Candidate>,
        off: f64,
        count: usize,
    ) -> Result<Vec<Candidate>> {
        let mut near: Vec<(f64, Candidate)> = candidates
            .into_par_iter()
            .map(|c| Ok((self.far(state, scene, Some(&c))?, c)))
            .collect::<Result<_>>()?;
        near.retain(|(value, _)| *value < off);
        near.sort_by(|a, b| a.0.total_cmp(&b.0));
        near.truncate(count);
        Ok(near.into_iter().map(|(_, c)| c).collect())
    }

    /// Mismatches that are left in the window with a candidate, over all sequences.
    fn left(&self, state: &State, scene: &Scene, candidate: &Candidate) -> Result<usize> {
        let mut left = 0;
        for sequence in 0..self.tokens.len() {
            let score = self.replay(state, scene, sequence, None, Some(candidate))?;
            left += score.map_or(scene.base, |s| replay::mismatched(&s));
        }
        Ok(left)
    }

    /// How far the window is off with a candidate, on the scene's first rows.
    fn far(&self, state: &State, scene: &Scene, candidate: Option<&Candidate>) -> Result<f64> {
        let score = self.replay(state, scene, scene.sequence, scene.rows, candidate)?;
        Ok(score.map_or(f64::INFINITY, |s| replay::distance(&s)))
    }

    /// Runs the window; `None` if the candidate takes a scale out of its range.
    fn replay(
        &self,
        state: &State,
        scene: &Scene,
        sequence: usize,
        rows: Option<usize>,
        candidate: Option<&Candidate>,
    ) -> Result<Option<Score>> {
        let mut misread = state.misread.clone();
        let mut window = scene.window;
        let mut changed = None;
        match candidate {
            None => {}
            Some(Candidate::Misread(m)) => misread.push(*m),
            Some(Candidate::Faults(faults)) => {
                let path = changed.insert(state.path.clone());
                if faults.iter().any(|fault| path.inject(fault).is_err()) {
                    return Ok(None);
                }
            }
        }
        if let Some(layer) = candidate.and_then(Candidate::layer) {
            window.first = window.first.max(layer);
        }
        let path = changed.as_ref().unwrap_or(&state.path);
        let start = state.starts[sequence][window.first].clone();
        let mut replay = Replay::new(&self.sequences[sequence], rows, self.closeness, &misread);
        replay.run(path, window, start)?;
        Ok(Some(replay.score))
    }
}

impl Window {
    /// Some blocks, and no logits.
    pub fn blocks(range: std::ops::Range<usize>) -> Self {
        Self {
            first: range.start,
            end: range.end,
            head: false,
        }
    }
}

/// The first tensor in the order of the data that deviates, of blocks not given up.
fn first_deviation(score: &Score, without: &BTreeSet<Option<usize>>) -> Option<Place> {
    let bad = |place: &Place| score[place].mismatched > 0 && !without.contains(&place.layer);
    in_data_order(score.keys().copied()).into_iter().find(bad)
}

fn percent(share: f64) -> String {
    format!("{:.1} %", 100.0 * share)
}

fn deviation(scene: &Scene, score: &Score) -> String {
    let s = &score[&scene.first];
    format!(
        "{} is the first tensor that deviates: {} of {} elements ({})",
        scene.first,
        s.mismatched,
        s.compared,
        percent(s.mismatched as f64 / s.compared as f64)
    )
}

fn cause(best: &Judged, scene: &Scene, score: &Score, share: f64) -> Finding {
    let c = &best.candidate;
    let what = match c {
        Candidate::Faults(faults) => {
            let words: Vec<String> = faults.iter().map(ToString::to_string).collect();
            format!("with {}", words.join(" and "))
        }
        Candidate::Misread(m) => format!("with {} read {}", m.place, words(m)),
    };
    Finding {
        kind: c.kind(),
        layer: c.layer(),
        site: c.site().to_owned(),
        severity: Severity::Error,
        share,
        evidence: format!(
            "{}; {what} {} of {} mismatches up to the next tensor handed on are left",
            deviation(scene, score),
            best.left,
            scene.base,
        ),
        fault: c.fault().map(ToString::to_string),
    }
}

fn words(m: &Misread) -> String {
    use super::candidate::{Lie, Reading};
    let lie = match m.lie {
        Lie::ByColumns => "as if written column by column",
        Lie::FromColumns => "as if its rows were columns",
        Lie::Turned => "with its axes swapped",
        Lie::Swapped(..) => "with B and C swapped",
    };
    let who = match m.reading {
        Reading::DumpLies => "in the dump alone",
        Reading::ProducerWrites => "by the step that writes it",
        Reading::ConsumerReads => "by the step that reads it",
    };
    format!("{lie} ({who})")
}

/// Other explanations of the same deviation, each kind and site once.
fn alternatives(
    judged: &[Judged],
    best: Option<&Judged>,
    scene: &Scene,
    share: impl Fn(usize) -> f64,
) -> Vec<Finding> {
    let name = |c: &Candidate| (c.kind(), c.layer(), c.site());
    let mut seen: Vec<_> = best.map(|b| name(&b.candidate)).into_iter().collect();
    let mut found = Vec::new();
    for j in judged {
        if found.len() == OTHERS || seen.contains(&name(&j.candidate)) {
            continue;
        }
        seen.push(name(&j.candidate));
        found.push(Finding {
            kind: j.candidate.kind(),
            layer: j.candidate.layer(),
            site: j.candidate.site().to_owned(),
            severity: Severity::Info,
            share: share(j.left),
            evidence: format!(
                "another explanation of {}: it leaves {} of {} mismatches",
                scene.first, j.left, scene.base
            ),
            fault: j.candidate.fault().map(ToString::to_string),
        });
    }
    found
}

/// A deviation that no fault model explains.
fn no_cause(scene: &Scene, score: &Score, total: usize) -> Finding {
    let s = &score[&scene.first];
    let rare = s.mismatched as f64 <= 1e-3 * s.compared as f64;
    let small = s.largest <= 1.0;
    Finding {
        kind: "none",
        layer: scene.first.layer,
        site: scene.first.point.name().to_owned(),
        severity: match rare && small {
            true => Severity::Warning,
            false => Severity::Error,
        },
        share: s.mismatched as f64 / total as f64,
        evidence: format!("{}; no fault model explains it", deviation(scene, score)),
        fault: None,
    }
}

/// Nothing deviates.
fn in_order(score: &Score, profile: &str, mode: &ModeSpec) -> Finding {
    let compared: usize = score.values().map(|s| s.compared).sum();
    let bits: usize = score.values().map(|s| s.bits).sum();
    let equal = match bits {
        0 => "equal to the last bit".to_owned(),
        _ => format!("equal, {bits} floats of them within one ulp of binary16"),
    };
    Finding {
        kind: "none",
        layer: None,
        site: "all".to_owned(),
        severity: Severity::Info,
        share: 0.0,
        evidence: format!(
            "all {compared} elements of {} tensors are {equal}: mode {}, profile {profile}",
            score.len(),
            mode.name,
        ),
        fault: None,
    }
}

/// One finding in place of the same one in every block. A tie rule, a quotient or wrapping that all
/// blocks share is how somebody's kernels are, not a defect of one.
fn in_every_block(causes: Vec<Finding>, score: &Score) -> Vec<Finding> {
    let blocks: BTreeSet<usize> = score.keys().filter_map(|place| place.layer).collect();
    let mut out: Vec<Finding> = Vec::new();
    for finding in &causes {
        let same = |f: &&Finding| f.kind == finding.kind && f.site == finding.site;
        let all: Vec<&Finding> = causes.iter().filter(same).collect();
        let everywhere = blocks.len() > 2 && all.len() == blocks.len() && finding.kind != "none";
        if !everywhere {
            out.push(finding.clone());
        } else if all[0].layer == finding.layer {
            let rule = matches!(finding.kind, "rounding" | "hadamard-wrap");
            out.push(Finding {
                layer: None,
                severity: match rule {
                    true => Severity::Warning,
                    false => finding.severity,
                },
                share: all.iter().map(|f| f.share).sum::<f64>().min(1.0),
                evidence: format!("in each of {} blocks; {}", all.len(), finding.evidence),
                fault: None,
                ..finding.clone()
            });
        }
    }
    out
}
