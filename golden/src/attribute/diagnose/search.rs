//! A dump, the simulation with the causes found so far, and the part of it that a search looks at.

use crate::attribute::candidate::{Candidate, Misread};
use crate::attribute::replay::{self, Closeness, Replay, Score, Window};
use crate::trace_file::{Points, in_data_order};
use rayon::prelude::*;
use scalescope_sim::datapath::{Datapath, Passing};
use scalescope_sim::error::Result;
use scalescope_sim::trace::{Place, TracePoint};
use std::collections::BTreeSet;

/// Tokens of a first fit.
const FIRST_ROWS: usize = 32;

/// A dump and how to look at it.
pub(super) struct Search<'a> {
    pub(super) tokens: Vec<Vec<u32>>,
    pub(super) sequences: &'a [Points],
    pub(super) closeness: Closeness,
    pub(super) profile: String,
}

/// The simulation with the causes found so far, and how it compares.
pub(super) struct State<'m> {
    pub(super) path: Datapath<'m>,
    pub(super) misread: Vec<Misread>,
    /// What each block gets, sequence by sequence.
    starts: Vec<Vec<Passing>>,
    /// Sequence by sequence.
    pub(super) scores: Vec<Score>,
}

impl State<'_> {
    pub(super) fn score(&self) -> Score {
        let mut total = Score::new();
        for score in &self.scores {
            replay::add(&mut total, score.clone());
        }
        total
    }
}

/// Where a search looks.
pub(super) struct Scene {
    pub(super) first: Place,
    pub(super) blocks: std::ops::Range<usize>,
    pub(super) window: Window,
    /// The sequence and the rows that first fits run on.
    pub(super) sequence: usize,
    rows: Option<usize>,
    /// Mismatches in the window.
    pub(super) base: usize,
}

impl Search<'_> {
    /// Runs every block with the dump's tensors in place.
    pub(super) fn begin<'m>(&self, path: Datapath<'m>) -> Result<State<'m>> {
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
    pub(super) fn is_another_implementation(&self, state: &State) -> bool {
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

    /// Whether a dumped tensor has a row for each channel instead of each token.
    pub(super) fn is_turned(&self, place: Place) -> bool {
        let whole = !place.point.is_state() && place.point != TracePoint::ConvInScale;
        whole && self.sequences[0][&place].dim().0 != self.tokens[0].len()
    }

    /// Puts a cause into the simulation.
    pub(super) fn with<'m>(&self, state: State<'m>, candidate: &Candidate) -> Result<State<'m>> {
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

    pub(super) fn scene(&self, state: &State, score: &Score, first: Place) -> Scene {
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

    /// Mismatches that are left in the window with a candidate, over all sequences.
    pub(super) fn left(
        &self,
        state: &State,
        scene: &Scene,
        candidate: &Candidate,
    ) -> Result<usize> {
        let mut left = 0;
        for sequence in 0..self.tokens.len() {
            let score = self.replay(state, scene, sequence, None, Some(candidate))?;
            left += score.map_or(scene.base, |s| replay::mismatched(&s));
        }
        Ok(left)
    }

    /// How far the window is off with a candidate, on the scene's first rows.
    pub(super) fn far(
        &self,
        state: &State,
        scene: &Scene,
        candidate: Option<&Candidate>,
    ) -> Result<f64> {
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
pub(super) fn first_deviation(score: &Score, without: &BTreeSet<Option<usize>>) -> Option<Place> {
    let bad = |place: &Place| score[place].mismatched > 0 && !without.contains(&place.layer);
    in_data_order(score.keys().copied()).into_iter().find(bad)
}
