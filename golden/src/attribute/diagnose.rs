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

mod findings;
mod judge;
mod search;

use super::Finding;
use super::replay::{self, Closeness};
use crate::trace_file::{Points, TraceFile, in_data_order};
use findings::{alternatives, cause, in_every_block, in_order, no_cause};
use scalescope_sim::datapath::Datapath;
use scalescope_sim::error::{Result, SimError};
use scalescope_sim::mode::ModeSpec;
use scalescope_sim::model::Model;
use scalescope_sim::profile::Profile;
use scalescope_sim::trace::Place;
use search::{Search, State, first_deviation};
use serde::Serialize;
use std::collections::BTreeSet;

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
/// No tokens, no tensor of a prefill that the mode makes, NaN or infinity, another model's shape or ids.
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
        if let Some(i) = (0..elements.len()).find(|i| !elements.get(*i).is_finite()) {
            return Err(SimError::value(
                place,
                "finite numbers",
                format_args!("{} at element {i}", elements.get(i)),
            ));
        }
    }
    if trace.sequences.iter().all(Points::is_empty) {
        let expected = "at least one tensor of a prefill, such as layer_00/conv_out";
        return Err(SimError::value("dump", expected, "none"));
    }
    Ok(())
}

impl Search<'_> {
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
}
