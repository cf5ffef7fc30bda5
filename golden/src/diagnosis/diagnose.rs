//! What is wrong with a dump: it sees the model, the mode and the dump's tensors, nothing else. The
//! metadata and the scales that a file may carry are not read.
//!
//! Before any of it, the file as a whole may be wrong (`file`): late, in reverse, under other names.
//!
//! 1. **Locate** ([`locate`]): every block runs with the dump's tensors in place, as in a local check. What
//!    is made before the first tensor that deviates is in order; the cause lies between the dumped tensor
//!    before it and that one.
//! 2. **Describe** ([`pattern`]): which sequences, tokens, channels and values deviate, and how.
//! 3. **List** what could be wrong ([`candidate`]): every fault model, rule and misread buffer at every site in between,
//!    run by the datapath, and every edit ([`edit`]) of the step's [`formula`].
//! 4. **Search** (`search`): the candidate that leaves the fewest mismatches is a cause if it explains all but
//!    one in a hundred of what deviates in the first tensor; else it is a lead. A stale scale's factor is fitted. What
//!    floats of another device would do, flowing on, is no deviation.
//! 5. **Say** (`findings`). A cause is put into the simulation, and the search goes on with what still deviates.
//!
//! Where it is the device's rules that are asked for, they are read off ([`identify`]). The same questions of decode
//! steps (`decode`) and of the vectors of one operation (`vectors`) have the same answers in the same words.

mod file;
pub mod locate;
pub mod pattern;

mod kind;
mod rule;

pub mod candidate;
pub mod edit;
pub mod formula;

mod findings;
mod search;

pub mod identify;

mod decode;
mod vectors;

pub use decode::diagnose_steps;
pub use vectors::diagnose_vectors;

use crate::diagnosis::finding::{Finding, Severity};
use crate::trace_file::{Points, TraceFile, in_data_order};
use candidate::Candidate;
use findings::{
    alternatives, cause, device, everywhere_of, in_every_block, in_order, is_unplaced, no_cause,
    noise, rival_words, rivals, undecided_by, unexplained_words,
};
use locate::replay::{self, Closeness, Score};
use locate::{Scene, Search, State, first_deviation};
use pattern::How;
use scalescope_sim::dataflow::{Block, Phase, Step};
use scalescope_sim::datapath::Datapath;
use scalescope_sim::error::{Result, SimError};
use scalescope_sim::mode::ModeSpec;
use scalescope_sim::model::Model;
use scalescope_sim::profile::Profile;
use scalescope_sim::trace::Place;
use search::{EXPLAINS, Hint, ScoredCandidate, TIE};
use serde::Serialize;
use std::collections::BTreeSet;

/// Elements of a tensor of floats that may be an ulp off.
const NOISE: f64 = 0.03;
/// Times that the noise of another device is drawn where most elements deviate by it.
const DRAWS: u64 = 8;
/// What deviates by this much more than the largest of them is no noise.
const BEYOND: f64 = 1.5;
/// Tokens that what may be noise has to show in before it is a rule's.
const TOKENS: usize = 3;
/// Causes of a block that are searched at most, on the average.
const ROUNDS: usize = 8;
/// Tensors that may stay unexplained before the search ends.
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
/// No tokens, no tensor of a prefill that the mode makes, another model's shape or ids.
pub fn diagnose(
    model: &Model,
    mode: &ModeSpec,
    trace: &TraceFile,
    profiles: &[Profile],
) -> Result<Diagnosis> {
    diagnose_telling(model, mode, trace, profiles, &|_, _| {})
}

/// [`diagnose`]; `done` is told how many of how many blocks are in order or explained.
pub fn diagnose_telling(
    model: &Model,
    mode: &ModeSpec,
    trace: &TraceFile,
    profiles: &[Profile],
    done: &(dyn Fn(usize, usize) + Sync),
) -> Result<Diagnosis> {
    check_input(model, trace)?;
    let Some(profile) = profiles.first() else {
        return Err(SimError::value("profile", "at least one", "none"));
    };
    let path = Datapath::new(model, mode, profile)?;
    let (sequences, mut types) = file::own_types(&path, &trace.sequences);
    types.extend(file::other_types(trace));
    let tokens = trace.tokens()?;
    let begin = |profile: &Profile| -> Result<(Search, State)> {
        let mut search = Search {
            tokens: tokens.rows().into_iter().map(|row| row.to_vec()).collect(),
            sequences: &sequences,
            closeness: Closeness::Bits,
            profile: profile.name.to_string(),
        };
        let mut state = search.begin(Datapath::new(model, mode, profile)?)?;
        if search.is_another_implementation(&state) {
            search.closeness = Closeness::Near;
            state = search.begin(state.path)?;
        }
        Ok((search, state))
    };
    let follows = |state: &State| {
        let score = state.score();
        let bad = score.iter().filter(|(_, s)| s.bits > 0);
        let blocks: BTreeSet<_> = bad.clone().map(|(place, _)| place.layer).collect();
        let bits: usize = score.values().map(|s| s.bits).sum();
        (blocks.len(), bad.count(), bits)
    };
    let mut all: Vec<(Search, State)> = profiles.iter().map(begin).collect::<Result<_>>()?;
    // The profile that the most blocks follow, to the last bit.
    all.sort_by_key(|(_, state)| follows(state));
    // Where the choice is ours and hardly a block follows, it may be a chip's, which most blocks follow then.
    let places = sequences.iter().flatten().map(|(place, _)| place.layer);
    let blocks = places.collect::<BTreeSet<_>>().len();
    let off = all.first().map_or(0, |(_, state)| follows(state).0);
    if profiles.len() > 1 && blocks > 2 && 2 * off > blocks {
        let known = |name: &&str| profiles.iter().any(|p| p.name == *name);
        let others = Profile::names().into_iter().filter(|name| !known(name));
        // Some need a float model beside the quantized one.
        let others = others.filter_map(|name| begin(&Profile::get(name).ok()?).ok());
        all.extend(others.filter(|(_, state)| 2 * follows(state).0 <= off));
        all.sort_by_key(|(_, state)| follows(state));
    }
    // Others that follow as many blocks may be the dump's as well.
    if let Some(blocks) = all.first().map(|(_, state)| follows(state).0) {
        all.retain(|(_, state)| follows(state).0 == blocks);
        all.truncate(2);
    }
    // Most of what follows from the dump's own inputs deviates: the file itself may be wrong.
    if let Some((search, state)) = all.first() {
        let score = state.score();
        let (bad, compared) = (
            replay::mismatched(&score),
            score.values().map(|s| s.compared).sum::<usize>(),
        );
        let typed = TraceFile {
            tokens: trace.tokens.clone(),
            sequences: sequences.clone(),
            ..TraceFile::default()
        };
        // A file that is late all through follows from itself: then what the tokens alone make is wrong.
        let heavy = |s: &replay::PointScore| 3 * s.mismatched > s.compared;
        let first = in_data_order(score.keys().copied()).first().copied();
        let several = 8 * score.values().filter(|s| heavy(s)).count() >= score.len();
        let suspect = first.is_some_and(|place| heavy(&score[&place])) || several;
        if let (true, Some(found)) = (suspect, file::find(&state.path, &typed).transpose()) {
            let mut findings = vec![found?];
            findings.extend(types);
            return Ok(Diagnosis {
                profile: search.profile.clone(),
                compared,
                mismatched: bad,
                not_made: Vec::new(),
                findings,
            });
        }
    }
    let mut best: Option<Diagnosis> = None;
    for (search, state) in all {
        let found = search.diagnose(state, done)?;
        let share = |d: &Diagnosis| {
            let causes = d.findings.iter().filter(|f| f.kind != "none");
            causes.map(|f| f.share).fold(0.0, f64::max)
        };
        if best.as_ref().is_none_or(|b| share(&found) > share(b) + TIE) {
            best = Some(found);
        }
        let best = best.as_ref().expect("set above");
        let wrong = best.findings.iter().any(|f| f.severity > Severity::Info);
        if !wrong || share(best) > 0.98 {
            break;
        }
    }
    let mut best = best.ok_or_else(|| SimError::value("profile", "at least one", "none"))?;
    best.findings.extend(types);
    Ok(best)
}

/// The places of a tensor that deviates in every block about as much as in the first; none if it does not.
fn all_blocks(score: &Score, first: Place) -> Vec<Place> {
    let here = |place: &Place| place.point == first.point && place.layer.is_some();
    let all: Vec<Place> = score.keys().copied().filter(here).collect();
    let rate = |place: &Place| score[place].mismatched as f64 / score[place].compared as f64;
    let alike = |place: &Place| 4.0 * rate(place) >= rate(&first);
    match all.len() > 2 && all.iter().all(alike) {
        true => all,
        false => Vec::new(),
    }
}

fn check_input(model: &Model, trace: &TraceFile) -> Result<()> {
    let layers = model.config()?.n_layers;
    let tokens = trace.tokens()?;
    for row in tokens.rows() {
        scalescope_sim::datapath::check_tokens(&row.to_vec(), model.config()?.vocab_size)?;
    }
    // One more is a file whose blocks are numbered from 1.
    if trace.layers() > layers && trace.numbered_from_0().is_none_or(|t| t.layers() > layers) {
        return Err(SimError::value(
            "dump",
            format_args!("blocks 0 to {}, as the model has", layers - 1),
            format_args!("block {}", trace.layers() - 1),
        ));
    }
    if trace.sequences.iter().all(Points::is_empty) {
        let expected = "at least one tensor of a prefill, such as layer_00/conv_out";
        return Err(SimError::value("dump", expected, "none"));
    }
    Ok(())
}

impl Search<'_> {
    fn diagnose(
        &self,
        mut state: State,
        done: &(dyn Fn(usize, usize) + Sync),
    ) -> Result<Diagnosis> {
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
        let block = Block::of(state.path.mode(), state.path.profile(), Phase::Prefill);
        let mut causes: Vec<Finding> = Vec::new();
        let mut others: Vec<Finding> = Vec::new();
        let mut unexplained: usize = 0;
        let mut passed: BTreeSet<Place> = BTreeSet::new();
        let mut noisy = Vec::new();
        let mut undecided: Vec<Finding> = Vec::new();
        // Steps whose tensors nothing explains.
        let mut open: Vec<(Option<usize>, Step)> = Vec::new();
        let mut hints: Vec<Hint> = Vec::new();
        for _ in 0..ROUNDS * state.path.config().n_layers + GIVE_UP {
            let score = state.score();
            let Some(first) = first_deviation(&score, &passed) else {
                break;
            };
            // What is wrong with another tensor of a step that nothing explains is no finding of its own.
            let made_by = block.row(first.point).map(|row| (first.layer, row.step));
            if made_by.is_some_and(|step| open.contains(&step)) {
                passed.insert(first);
                continue;
            }
            let blocks = state.path.config().n_layers;
            done(first.layer.unwrap_or(blocks), blocks + 1);
            let scene = self.scene(&state, &score, first)?;
            let quiet = self.may_be_noise(&state, &scene)?;
            let judged = match quiet {
                Some(true) => Vec::new(),
                Some(false) => self.judge_discrete(&state, &scene)?,
                None => self.judge(&state, &scene, &hints)?,
            };
            let of_total = |left: usize| {
                (scene.base.saturating_sub(left) as f64 / total as f64).clamp(0.0, 1.0)
            };
            // Of a code or two that turn, a rule may turn the same ones by chance.
            let few = scene.pattern.as_ref().and_then(|p| p.tokens.few());
            let chance = few.is_some_and(|tokens| tokens < TOKENS);
            let exact =
                |j: &&ScoredCandidate| quiet.is_none() || j.first.mismatched == 0 && !chance;
            let best = judged.iter().position(|j| j.is_cause(&scene) && exact(&j));
            if let Some(at) = best {
                let best = &judged[at];
                let rest: Vec<&ScoredCandidate> = judged
                    .iter()
                    .enumerate()
                    .filter(|(i, _)| *i != at)
                    .map(|(_, j)| j)
                    .collect();
                let mut found = cause(best, &rest, &scene, &block, of_total(best.left));
                let rival = rest
                    .iter()
                    .find(|other| rivals(best, other, &scene, &block));
                let why = match rival {
                    Some(other) => Some(rival_words(best, other, &block)),
                    None if is_unplaced(best, &block, &score) => Some(
                        "no input of the step is in the dump: an earlier step may be the cause"
                            .to_owned(),
                    ),
                    None => unexplained_words(best, &scene),
                };
                if let Some(why) = why {
                    // Something is wrong, but not surely this.
                    found.severity = Severity::Warning;
                    undecided.push(undecided_by(&scene, &block, total, &why));
                }
                if others.is_empty() {
                    others = alternatives(&rest, Some(best), &scene, &block, of_total);
                }
                let hint = (best.candidate.kind(), best.candidate.site().to_owned());
                if !hints.contains(&hint) {
                    hints.push(hint);
                }
                if let Some((all, blocks)) = self.everywhere(&state, &best.candidate, &scene)? {
                    let gone =
                        replay::mismatched(&score).saturating_sub(replay::mismatched(&all.score()));
                    let share = (gone as f64 / total as f64).min(1.0);
                    causes.push(everywhere_of(found, blocks, share));
                    let here = |place: &Place| place.point == first.point;
                    passed.extend(score.keys().copied().filter(here));
                    state = all;
                    continue;
                }
                causes.push(found);
                let before = score[&first].mismatched;
                state = self.with(state, &best.candidate, &scene)?;
                // What it leaves is not searched again.
                if state
                    .score()
                    .get(&first)
                    .is_some_and(|s| s.mismatched > 0 && s.mismatched <= before)
                {
                    passed.insert(first);
                }
                continue;
            }
            passed.insert(first);
            if quiet.is_some() {
                noisy.push((first, scene.at_first.mismatched, scene.pattern.clone()));
                continue;
            }
            let mut found = no_cause(&scene, &block, total, self.sequences);
            let all = all_blocks(&score, first);
            if !all.is_empty() {
                let elements: usize = all.iter().map(|place| score[place].mismatched).sum();
                found = everywhere_of(found, all.len(), elements as f64 / total as f64);
                passed.extend(all);
            }
            causes.push(found);
            let rest: Vec<&ScoredCandidate> = judged.iter().collect();
            if others.is_empty() {
                others = alternatives(&rest, None, &scene, &block, of_total);
            }
            open.extend(made_by);
            unexplained += 1;
            if unexplained >= GIVE_UP {
                break;
            }
        }
        let mut findings = in_every_block(causes, &score);
        findings.extend(undecided);
        findings.sort_by(|a, b| {
            (a.kind == "none")
                .cmp(&(b.kind == "none"))
                .then(b.share.total_cmp(&a.share))
        });
        device(&mut findings);
        findings.extend(others);
        findings.extend(noise(&noisy, total));
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

    /// The simulation with a cause in every block, and in how many it explains what deviates: all but one in a
    /// hundred elements wherever the first tensor deviates, and nothing new where it does not. `None` if that is
    /// not so, or only in one block.
    fn everywhere<'m>(
        &self,
        state: &State<'m>,
        candidate: &Candidate,
        scene: &Scene,
    ) -> Result<Option<(State<'m>, usize)>> {
        let Some(all) = candidate.in_every_block() else {
            return Ok(None);
        };
        let before = state.score();
        let here = |place: &&Place| place.point == scene.first.point && place.layer.is_some();
        let deviates = |place: &&Place| before[*place].mismatched > 0;
        let blocks = before.keys().filter(here).filter(deviates).count();
        if blocks < 2 {
            return Ok(None);
        }
        let with = self.with(state.clone(), &all, scene)?;
        let after = with.score();
        let holds = |place: &Place| {
            let explains = 1.0 - EXPLAINS;
            after[place].mismatched as f64 <= explains * before[place].mismatched as f64
        };
        let holds = before.keys().filter(here).all(holds);
        Ok(holds.then_some((with, blocks)))
    }

    /// Whether what deviates may be floats of another device: `Some(true)` if it is floats an ulp apart in a
    /// few elements, `Some(false)` if what such floats make, flowing on, is as far off.
    fn may_be_noise(&self, state: &State, scene: &Scene) -> Result<Option<bool>> {
        let s = &scene.at_first;
        let last_place = scene
            .pattern
            .as_ref()
            .is_some_and(|p| p.how == How::LastPlace && !(p.is_part() && p.accident < -6.0));
        if last_place && s.mismatched as f64 <= NOISE * s.compared as f64 {
            return Ok(Some(true));
        }
        let Some(noise) = scene.noise else {
            return Ok(None);
        };
        // One code that turns makes a whole token deviate: a few tokens more are chance.
        let columns = scene.made.first().and_then(|made| made.get(&scene.first));
        let token = columns.map_or(0, |tensor| tensor.dim().1);
        let expected = 3.0 * noise.mismatched as f64;
        let allowed = expected + 4.0 * token as f64;
        let wider = allowed / expected.max(1.0);
        let near = noise.mismatched > 0
            && s.mismatched as f64 <= allowed
            && s.distance <= 3.0 * noise.distance * wider.min(5.0) + 1.0
            && s.largest <= (3.0 * noise.largest).max(1.0);
        if !near {
            return Ok(None);
        }
        // Where most elements deviate by noise alone, how far they are off is no matter of a few that turn.
        if 2 * noise.mismatched > noise.compared {
            let (mut distance, mut largest) = (noise.distance, noise.largest);
            for draw in 1..DRAWS {
                let other = self.noise(state, scene, draw)?.unwrap_or_default();
                distance = distance.max(other.distance);
                largest = largest.max(other.largest);
            }
            if s.distance > BEYOND * distance || s.largest > 2.0 * BEYOND * largest {
                return Ok(None);
            }
        }
        Ok(Some(false))
    }
}
