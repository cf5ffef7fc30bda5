//! The first tensor of a dump that deviates, and what surrounds it: every block runs with the dump's tensors in
//! place and with the causes found so far, and a search looks at the part between the last tensor that is known and that one.

pub(super) mod elements;
pub mod replay;

use super::candidate::{Candidate, Misread};
use super::edit::Edit;
use super::formula::Seen;
use super::pattern::Pattern;
use crate::trace_file::{Points, in_data_order};
use crate::value::Value;
use elements::{Compared, pattern_of, values};
use rayon::prelude::*;
use replay::{Closeness, Formulas, PointScore, Replay, Score, Window, between};
use scalescope_sim::arith::quantizer::Beyond;
use scalescope_sim::dataflow::{Block, Origin, Phase, Quantizer, Row};
use scalescope_sim::datapath::{BlockInput, Datapath};
use scalescope_sim::error::Result;
use scalescope_sim::trace::{Place, Tensor, TracePoint};
use std::collections::{BTreeMap, BTreeSet};

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
#[derive(Clone)]
pub(super) struct State<'m> {
    pub(super) path: Datapath<'m>,
    pub(super) misread: Vec<Misread>,
    pub(super) edits: Vec<Edit>,
    /// Of each sequence, the tensors of blocks that edits look at.
    around: Vec<BTreeMap<usize, Seen>>,
    /// What each block gets, sequence by sequence.
    starts: Vec<Vec<BlockInput>>,
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
    pub(super) rows: Option<usize>,
    /// Mismatches in the window.
    pub(super) base: usize,
    /// How the first tensor compares.
    pub(super) at_first: PointScore,
    /// Of each sequence, by block: the tensors that went on.
    pub(super) seen: Vec<BTreeMap<usize, Seen>>,
    /// Of each sequence: what the steps made.
    pub(super) made: Vec<BTreeMap<Place, Tensor>>,
    /// How far the first tensor would be off by the floats of another device, where they are not known.
    pub(super) noise: Option<PointScore>,
    /// What deviates in the first tensor; `None` where its shape is another.
    pub(super) pattern: Option<Pattern>,
}

/// What is left with a candidate.
#[derive(Clone, Copy, Default)]
pub(super) struct Left {
    /// Mismatches in the window.
    pub(super) left: usize,
    /// Those that are not near.
    pub(super) far: usize,
    /// How the first tensor compares.
    pub(super) first: PointScore,
}

/// A run of a scene's window.
#[derive(Clone, Copy, Default)]
pub(super) struct Look<'c> {
    pub(super) candidate: Option<&'c Candidate>,
    /// On the scene's first rows.
    pub(super) short: bool,
    /// Until the first tensor that deviates.
    pub(super) to_first: bool,
    /// All tensors of the scene's blocks are kept.
    pub(super) keeps: bool,
    /// Floats but those of these places get the noise of another device.
    pub(super) noise: Option<&'c BTreeSet<Place>>,
    /// Which noise it is, of many.
    pub(super) draw: u64,
    /// The formulas of steps, for edits of the same sequence and rows.
    pub(super) formulas: Option<&'c Formulas>,
}

impl Search<'_> {
    /// Runs every block with the dump's tensors in place.
    pub(super) fn begin<'m>(&self, path: Datapath<'m>) -> Result<State<'m>> {
        self.advance(
            path,
            Vec::new(),
            Vec::new(),
            vec![BTreeMap::new(); self.tokens.len()],
        )
    }

    fn advance<'m>(
        &self,
        path: Datapath<'m>,
        misread: Vec<Misread>,
        edits: Vec<Edit>,
        around: Vec<BTreeMap<usize, Seen>>,
    ) -> Result<State<'m>> {
        let blocks = path.config().n_layers;
        let runs: Vec<(Vec<BlockInput>, Score)> = (0..self.tokens.len())
            .into_par_iter()
            .map(|sequence| {
                let mut starts = Vec::with_capacity(blocks + 1);
                let mut passing = path.start(&self.tokens[sequence])?;
                let points = &self.sequences[sequence];
                let mut replay = Replay::new(points, None, self.closeness, &misread);
                replay.edits = &edits;
                replay.sequence = sequence;
                replay.before = sequence.checked_sub(1).map(|s| &around[s]);
                for block in 0..blocks {
                    starts.push(passing.clone());
                    let next = replay.run(&path, Window::blocks(block..block + 1), passing)?;
                    passing = next.expect("it has no end");
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
            edits,
            around,
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
        let whole = !place.point.is_state() && !place.point.is_scale();
        whole && self.sequences[0][&place].dim().0 != self.tokens[0].len()
    }

    /// Puts a cause into the simulation.
    pub(super) fn with<'m>(
        &self,
        state: State<'m>,
        candidate: &Candidate,
        scene: &Scene,
    ) -> Result<State<'m>> {
        let State {
            mut path,
            mut misread,
            mut edits,
            mut around,
            ..
        } = state;
        match candidate {
            Candidate::Faults(faults) => {
                for fault in faults {
                    path.inject(fault)?;
                }
            }
            Candidate::Misread(m) => misread.push(*m),
            Candidate::Rule(rule) => rule.put_into(&mut path),
            Candidate::Edit(edit) => {
                edits.push(edit.clone());
                for (around, seen) in around.iter_mut().zip(&scene.seen) {
                    if let Some(seen) = seen.get(&edit.layer) {
                        around.insert(edit.layer, seen.clone());
                    }
                }
            }
        }
        self.advance(path, misread, edits, around)
    }

    pub(super) fn scene(&self, state: &State, score: &Score, first: Place) -> Result<Scene> {
        let layers = state.path.config().n_layers;
        let places = in_data_order(score.keys().copied());
        let from = self.known_from(state, score, first);
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
        // Whole tiles of what runs in tiles.
        let rows = (row + FIRST_ROWS / 2).max(FIRST_ROWS).next_multiple_of(8);
        let block = Block::of(state.path.mode(), state.path.profile(), Phase::Prefill);
        // A scale that is found at run time is found from all rows.
        let found = |row: &Row| matches!(row.quantizer, Some(Quantizer::Tensor(_)));
        let quantizer = state.path.mode().u_quantizer.as_ref();
        let outliers = quantizer.is_some_and(|q| q.beyond == Beyond::FoundScale);
        let whole = first.point.is_state()
            || first.point.is_scale()
            || rows >= length
            || outliers
            || block.rows().iter().any(found);
        let mut scene = Scene {
            first,
            blocks: from..last + 1,
            window,
            sequence,
            rows: (!whole).then_some(rows),
            base,
            at_first: score[&first],
            seen: Vec::new(),
            made: Vec::new(),
            noise: None,
            pattern: None,
        };
        let look = Look {
            keeps: true,
            ..Look::default()
        };
        let runs: Vec<_> = (0..self.tokens.len())
            .into_par_iter()
            .map(|s| self.look(state, &scene, s, look))
            .collect::<Result<_>>()?;
        for run in runs {
            let run = run.expect("no candidate");
            scene.seen.push(run.seen);
            scene.made.push(run.made);
        }
        scene.pattern = self.pattern(&scene);
        scene.noise = self.noise(state, &scene, 0)?;
        Ok(scene)
    }

    /// What deviates in a scene's first tensor; `None` where it has another shape.
    fn pattern(&self, scene: &Scene) -> Option<Pattern> {
        let mut all = Vec::new();
        for (s, made) in scene.made.iter().enumerate() {
            let dumped = self.sequences[s].get(&scene.first)?;
            let made = match made.get(&scene.first) {
                Some(made) => made.clone(),
                None => return None,
            };
            let (found, _) = Value::from_tensor(made);
            if found.dim() != dumped.dim() || found.dtype() != dumped.dtype() {
                return None;
            }
            let (made, dumped) = (values(&found), values(dumped));
            let mut compared = Compared::of(found.dtype(), made, dumped);
            // Where half of them are more than an ulp off, the others may be noise.
            compared.near = self.closeness == Closeness::Near
                || 2 * scene.at_first.far > scene.at_first.mismatched;
            all.push(compared);
        }
        Some(pattern_of(&all, scene.first.point.is_state()))
    }

    /// The tensors that have a part in a scene's first one and that the dump does not have.
    pub(super) fn parts(&self, block: &Block, score: &Score, scene: &Scene) -> BTreeSet<Place> {
        let first = scene.first;
        let mut all = BTreeSet::new();
        let mut from = match first.layer {
            Some(_) => vec![first.point],
            None => handed_on(block).collect(),
        };
        for layer in scene.blocks.clone().rev() {
            let place = |point| Place::layer(layer, point);
            let parts = parts_of(block, from, |p| score.contains_key(&place(p)));
            all.extend(parts.here.into_iter().map(place));
            from = parts.before;
        }
        all
    }

    /// The first block whose steps have a part in a tensor: what goes into the ones before is in the dump.
    fn known_from(&self, state: &State, score: &Score, first: Place) -> usize {
        let layers = state.path.config().n_layers;
        let block = Block::of(state.path.mode(), state.path.profile(), Phase::Prefill);
        let layer = first.layer.unwrap_or(layers);
        let dumped = |layer: usize, point| score.contains_key(&Place::layer(layer, point));
        let from_before = match first.layer {
            Some(layer) => !parts_of(&block, [first.point], |p| dumped(layer, p))
                .before
                .is_empty(),
            None => true,
        };
        if !from_before {
            return layer.min(layers - 1);
        }
        // The stream is the sum of what all blocks handed on since it was last known.
        let stream = [TracePoint::ResidualIn, TracePoint::ResidualOut];
        let known = (0..layer)
            .rev()
            .find(|l| stream.iter().any(|p| dumped(*l, *p)));
        let missing = (known.unwrap_or(0)..layer).find(|l| !dumped(*l, TracePoint::OutProjOut));
        missing.unwrap_or(layer).min(layers - 1)
    }

    /// What is left in the window with a candidate; nothing is gained by one that cannot be.
    pub(super) fn left(&self, state: &State, scene: &Scene, candidate: &Candidate) -> Result<Left> {
        let look = Look {
            candidate: Some(candidate),
            ..Look::default()
        };
        let mut all = Left::default();
        for sequence in 0..self.tokens.len() {
            let Some(replay) = self.look(state, scene, sequence, look)? else {
                return Ok(Left {
                    left: scene.base,
                    far: scene.base,
                    first: scene.at_first,
                });
            };
            all.left += replay::mismatched(&replay.score);
            all.far += replay.score.values().map(|s| s.far).sum::<usize>();
            let mut both = Score::from([(scene.first, all.first)]);
            replay::add(&mut both, replay.score);
            all.first = both[&scene.first];
        }
        Ok(all)
    }

    /// How far the window is off with a candidate, on the scene's first rows.
    pub(super) fn far(
        &self,
        state: &State,
        scene: &Scene,
        candidate: Option<&Candidate>,
    ) -> Result<f64> {
        self.far_by(state, scene, candidate, None)
    }

    /// The same, with formulas that are made once for many edits.
    pub(super) fn far_by(
        &self,
        state: &State,
        scene: &Scene,
        candidate: Option<&Candidate>,
        formulas: Option<&Formulas>,
    ) -> Result<f64> {
        let look = Look {
            candidate,
            formulas,
            short: true,
            // A state comes after the output that deviates first, and both count.
            to_first: scene.first.point != TracePoint::SsmY || scene.rows.is_some(),
            ..Look::default()
        };
        let replay = self.look(state, scene, scene.sequence, look)?;
        Ok(replay.map_or(f64::INFINITY, |r| replay::distance(&r.score)))
    }

    /// Runs the window; `None` if the candidate takes a scale or a factor out of its range.
    pub(super) fn look<'s>(
        &'s self,
        state: &'s State,
        scene: &'s Scene,
        sequence: usize,
        look: Look<'s>,
    ) -> Result<Option<Seeing>> {
        let mut misread = state.misread.clone();
        let mut edits = state.edits.clone();
        let mut window = scene.window;
        let mut changed = None;
        match look.candidate {
            None => {}
            Some(Candidate::Misread(m)) => misread.push(*m),
            Some(Candidate::Faults(faults)) => {
                let path = changed.insert(state.path.clone());
                if faults.iter().any(|fault| path.inject(fault).is_err()) {
                    return Ok(None);
                }
            }
            Some(Candidate::Rule(rule)) => {
                rule.put_into(changed.insert(state.path.clone()));
            }
            Some(Candidate::Edit(edit)) => edits.push(edit.clone()),
        }
        if let Some(layer) = look.candidate.and_then(Candidate::layer) {
            window.first = window.first.max(layer);
        }
        let path = changed.as_ref().unwrap_or(&state.path);
        let start = state.starts[sequence][window.first].clone();
        let rows = scene.rows.filter(|_| look.short);
        let mut replay = Replay::new(&self.sequences[sequence], rows, self.closeness, &misread);
        replay.edits = &edits;
        replay.sequence = sequence;
        let around = match sequence.checked_sub(1) {
            Some(before) if !scene.seen.is_empty() => Some(&scene.seen[before]),
            Some(before) => Some(&state.around[before]),
            None => None,
        };
        replay.before = around;
        if look.to_first {
            replay.stop = Some(scene.first);
        }
        if look.keeps {
            replay.keeps = scene.blocks.clone();
        }
        replay.noise = look.noise;
        replay.draw = look.draw;
        replay.formulas = look.formulas;
        match replay.run(path, window, start) {
            // It takes a scale that is found at run time out of its range.
            Err(_) if look.candidate.is_some() => return Ok(None),
            done => done?,
        };
        Ok(Some(Seeing {
            score: replay.score,
            seen: replay.seen,
            made: replay.made,
        }))
    }

    /// How far the first tensor would be off if floats before it were those of another device: an ulp in
    /// one of fifty, where they are not known to the last bit. `None` if all are.
    pub(super) fn noise(
        &self,
        state: &State,
        scene: &Scene,
        draw: u64,
    ) -> Result<Option<PointScore>> {
        let score = state.score();
        let known: BTreeSet<Place> = score
            .iter()
            .filter(|(_, s)| s.bits == 0)
            .map(|(place, _)| *place)
            .collect();
        let layers = scene.blocks.clone();
        let layer = scene.first.layer.unwrap_or(usize::MAX);
        let noisy = [TracePoint::SsmY, TracePoint::ConvOutF32, TracePoint::SsmU];
        let made = |place: &Place| scene.made[0].contains_key(place);
        let before = layers
            .flat_map(|l| noisy.map(|point| Place::layer(l, point)))
            .filter(|place| (place.layer, place.point) < (Some(layer), scene.first.point));
        let unknown =
            before.filter(|p| made(p) && !known.contains(p) && is_float(&scene.made[0][p]));
        if unknown.count() == 0 {
            return Ok(None);
        }
        let mut total = PointScore::default();
        for sequence in 0..self.tokens.len() {
            let look = Look {
                to_first: true,
                keeps: true,
                noise: Some(&known),
                draw,
                ..Look::default()
            };
            let shaken = self.look(state, scene, sequence, look)?;
            let shaken = shaken.expect("no candidate");
            let (Some(a), Some(b)) = (
                scene.made[sequence].get(&scene.first),
                shaken.made.get(&scene.first),
            ) else {
                return Ok(None);
            };
            let mut both = Score::from([(scene.first, total)]);
            let now = between(a, b, self.closeness);
            replay::add(&mut both, Score::from([(scene.first, now)]));
            total = both[&scene.first];
        }
        Ok(Some(total))
    }
}

/// What a block hands on to the next.
fn handed_on(block: &Block) -> impl Iterator<Item = TracePoint> {
    let reads = block.rows().iter().flat_map(|row| &row.reads);
    reads.filter_map(|read| match read.from {
        Origin::BlockBefore(point) => Some(point),
        Origin::Here(_) | Origin::TokenBefore(_) => None,
    })
}

/// Tensors that have a part in others, with none that is known in between.
struct Parts {
    /// Of the block, those others among them.
    here: BTreeSet<TracePoint>,
    /// Of the block before.
    before: Vec<TracePoint>,
}

fn parts_of(
    block: &Block,
    from: impl IntoIterator<Item = TracePoint>,
    known: impl Fn(TracePoint) -> bool,
) -> Parts {
    let mut points: Vec<TracePoint> = from.into_iter().collect();
    let mut parts = Parts {
        here: points.iter().copied().collect(),
        before: Vec::new(),
    };
    while let Some(point) = points.pop() {
        for read in block.row(point).iter().flat_map(|row| &row.reads) {
            match read.from {
                Origin::BlockBefore(point) => parts.before.push(point),
                Origin::Here(point) if !known(point) => {
                    if parts.here.insert(point) {
                        points.push(point);
                    }
                }
                Origin::Here(_) | Origin::TokenBefore(_) => {}
            }
        }
    }
    parts
}

fn is_float(tensor: &Tensor) -> bool {
    matches!(tensor, Tensor::F16(_) | Tensor::F32(_))
}

/// What a replay saw.
pub(super) struct Seeing {
    pub(super) score: Score,
    pub(super) seen: BTreeMap<usize, Seen>,
    pub(super) made: BTreeMap<Place, Tensor>,
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

/// The first tensor in the order of the data that deviates, of places not passed over.
pub(super) fn first_deviation(score: &Score, passed: &BTreeSet<Place>) -> Option<Place> {
    let bad = |place: &Place| score[place].mismatched > 0 && !passed.contains(place);
    in_data_order(score.keys().copied()).into_iter().find(bad)
}
