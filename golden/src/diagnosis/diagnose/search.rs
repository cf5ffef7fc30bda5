//! Which candidate leaves the fewest mismatches.

pub(super) mod factor;
pub(super) mod local;

use super::candidate::{self, Candidate};
use super::edit::{self, Edit};
use super::formula::{self, Seen};
use super::locate::replay::{Formulas, PointScore};
use super::locate::{Left, Scene, Search, State};
use local::{FREQUENT, Local};
use rayon::prelude::*;
use scalescope_sim::dataflow::{Block, Phase, Step};
use scalescope_sim::error::Result;
use scalescope_sim::trace::Place;

/// Other explanations that are named beside the best.
pub(super) const OTHERS: usize = 4;
/// Shares closer than this are equally good.
pub(super) const TIE: f64 = 0.002;
/// Stale scales whose factor is fitted finely.
const FINE: usize = 6;
/// Edits that are run through the window.
const RUN: usize = 8;
/// Edits of steps whose tensors the dump does not have that are tried, the usual ones first.
const BEFORE: usize = 12_000;
/// An edit that removes less of the first rows' mismatches is not run on all.
const HOPE: f64 = 0.3;
/// Of floats that mostly differ in their last place, one of so many may still do.
const LAST_PLACES: usize = 4;
/// A cause explains this share of what deviates in the first tensor.
pub(super) const EXPLAINS: f64 = 0.99;

/// A candidate and the mismatches that are left with it.
pub(super) struct ScoredCandidate {
    pub(super) candidate: Candidate,
    /// In the window.
    pub(super) left: usize,
    /// Of these, the ones that are not near: other codes, floats that are more than about an ulp apart.
    pub(super) far: usize,
    /// In the first tensor.
    pub(super) first: PointScore,
}

impl ScoredCandidate {
    /// How many of the elements of the first tensor that deviate it explains. Where floats deviate by more than
    /// an ulp, one within an ulp of what an edit makes is explained.
    pub(super) fn explained(&self, scene: &Scene) -> (usize, usize) {
        let base = &scene.at_first;
        let (left, of) = match base.far {
            0 => (self.first.mismatched, base.mismatched),
            far => (self.first.far, far),
        };
        (of.saturating_sub(left), of)
    }

    /// Whether it explains so much that it is named a cause.
    pub(super) fn is_cause(&self, scene: &Scene) -> bool {
        let (explained, of) = self.explained(scene);
        (explains(explained, of) || self.leaves_noise(scene)) && self.gains(scene)
    }

    /// Whether it is a cause that leaves nothing of the first tensor.
    fn explains_all(&self, scene: &Scene) -> bool {
        self.is_cause(scene) && self.first.far == 0
    }

    /// Elements of the first tensor that it does not explain, but for what noise makes.
    pub(super) fn unexplained(&self, scene: &Scene) -> usize {
        let (explained, of) = self.explained(scene);
        match (self.leaves_noise(scene), self.leaves_last_places(scene)) {
            (true, _) => 0,
            (false, true) => self.first.mismatched,
            (false, false) => of - explained,
        }
    }

    /// Whether so many floats still differ in their last place, of which most of what deviates consists, that it need
    /// not be the right edit.
    fn leaves_last_places(&self, scene: &Scene) -> bool {
        let base = &scene.at_first;
        2 * base.far < base.mismatched && LAST_PLACES * self.first.mismatched > base.mismatched
    }

    /// Whether what it leaves is what the floats of another device make: these keep a right edit from being exact.
    fn leaves_noise(&self, scene: &Scene) -> bool {
        let base = &scene.at_first;
        scene.noise.is_some_and(|n| {
            n.far > 0
                && self.first.far <= 2 * n.far
                && self.first.distance <= 2.0 * n.distance
                && self.first.distance <= 0.05 * base.distance
        })
    }

    /// Whether it is a cause too, and leaves no more than the best one does.
    pub(super) fn is_as_good_as(&self, best: &Self, scene: &Scene) -> bool {
        self.is_cause(scene)
            && self.first.far <= best.first.far
            && self.far <= best.far + slack(scene.base)
    }

    /// Whether it leaves less: fewer elements, or floats that no more than the last place keeps apart.
    fn gains(&self, scene: &Scene) -> bool {
        self.left < scene.base || self.first.far < scene.at_first.far
    }
}

/// Whether so many of the elements that deviate are enough for a cause.
pub(super) fn explains(explained: usize, of: usize) -> bool {
    match of < 100 {
        true => explained == of,
        false => explained as f64 >= EXPLAINS * of as f64,
    }
}

/// Sorts by what is left; of those that leave equally little, all of which are `of`, the simpler first.
pub(super) fn simplest_first<T>(all: &mut [T], of: usize, key: impl Fn(&T) -> (usize, usize)) {
    all.sort_by_key(&key);
    if let Some(fewest) = all.first().map(|t| key(t).0) {
        let alike = all.partition_point(|t| key(t).0 <= fewest + slack(of));
        all[..alike].sort_by_key(|t| (key(t).1, key(t).0));
    }
}

/// What an earlier cause was: the first guess for the next one.
pub(super) type Hint = (&'static str, String);

impl Search<'_> {
    /// Every candidate of a scene with what it leaves, the best first.
    pub(super) fn judge(
        &self,
        state: &State,
        scene: &Scene,
        hints: &[Hint],
    ) -> Result<Vec<ScoredCandidate>> {
        let (config, score) = (state.path.config(), state.score());
        let dumped = |place: Place| state.scores.iter().any(|s| s.contains_key(&place));
        let block = Block::of(state.path.mode(), state.path.profile(), Phase::Prefill);
        let fits = |c: &Candidate| c.fits(&block, scene.first, &dumped);
        let (mut discrete, mut scales, mut registers) = (Vec::new(), Vec::new(), Vec::new());
        for layer in scene.blocks.clone() {
            discrete.extend(candidate::discrete(layer).into_iter().filter(fits));
            discrete.extend(candidate::rules(layer, &block).into_iter().filter(fits));
            scales.extend(candidate::scales(layer).into_iter().filter(fits));
            for site in Step::SUMS {
                registers.extend(candidate::registers(layer, site).into_iter().filter(fits));
            }
            for place in score.keys().filter(|p| p.layer == Some(layer)) {
                let misreads = candidate::misreads(config, *place, self.is_turned(*place));
                discrete.extend(misreads.into_iter().filter(fits));
            }
        }
        let off = self.far(state, scene, None)?;
        if !hints.is_empty() {
            let hinted = |kind: &str, site: &str| hints.iter().any(|h| h.0 == kind && h.1 == site);
            let of = |c: &Candidate| hinted(c.kind(), c.site());
            let first: Vec<Candidate> = discrete.iter().filter(|c| of(c)).cloned().collect();
            let mut judged = self.judge_all(state, scene, first)?;
            let first: Vec<Candidate> = scales.iter().filter(|c| of(c)).cloned().collect();
            judged.extend(self.judge_scales(state, scene, first, off)?);
            let of = |e: &Edit| hinted(e.kind.name(), Candidate::Edit(e.clone()).site());
            let looked = Local::of(self, state, scene, &block).map(|l| l.look_at(&of, RUN));
            let mut edits = looked.map_or(Vec::new(), |looked| looked.best(RUN));
            edits.extend(self.edits_before(state, scene, &block, &of)?);
            judged.extend(self.judge_alone_too(state, scene, edits)?);
            if judged.iter().any(|j| j.is_cause(scene)) {
                return Ok(ranked(judged, scene));
            }
        }
        let near = self.hopeful(state, scene, discrete, off)?;
        let mut judged = self.judge_all(state, scene, near)?;
        // What is explained to the last element by something usual needs nothing rare, and no number to be fitted.
        let usual = |j: &ScoredCandidate| j.explains_all(scene) && j.candidate.rank() <= FREQUENT;
        let wanted: fn(&Edit) -> bool = match judged.iter().any(usual) {
            true => |e| e.rank <= FREQUENT,
            false => |_| true,
        };
        let looked = Local::of(self, state, scene, &block).map(|l| l.look_at(&wanted, RUN));
        let mut edits = looked
            .as_ref()
            .map_or(Vec::new(), |looked| looked.best(RUN));
        edits.extend(self.edits_before(state, scene, &block, &|e| e.rank <= FREQUENT)?);
        judged.extend(self.judge_alone_too(state, scene, edits)?);
        if !judged.iter().any(usual) {
            let fitted = self.judge_scales(state, scene, scales, off)?;
            let hidden = fitted.iter().map(|j| &j.candidate);
            let hidden: Vec<Candidate> = hidden.filter(|c| c.hides(&block)).cloned().collect();
            judged.extend(fitted);
            if !judged.iter().any(|j| j.is_cause(scene)) {
                judged.extend(self.fitted(state, scene, hidden, off, factor::dense)?);
            }
        }
        if !judged.iter().any(|j| j.explains_all(scene)) {
            let rare = self.edits_before(state, scene, &block, &|e| e.rank > FREQUENT)?;
            judged.extend(self.judge_alone_too(state, scene, rare)?);
        }
        if !judged.iter().any(|j| j.is_cause(scene)) {
            let narrow = self.nearest(state, scene, registers, off, OTHERS)?;
            judged.extend(self.judge_all(state, scene, narrow)?);
        }
        // What takes longest, where nothing else is the cause.
        if !judged.iter().any(|j| j.is_cause(scene)) {
            let local = Local::of(self, state, scene, &block);
            let twos = match (local, looked) {
                (Some(local), Some(looked)) => local.twos(looked, RUN),
                _ => Vec::new(),
            };
            let twos = self.judge_alone_too(state, scene, twos)?;
            let new = |j: &ScoredCandidate| judged.iter().all(|o| o.candidate != j.candidate);
            let twos: Vec<ScoredCandidate> = twos.into_iter().filter(new).collect();
            judged.extend(twos);
        }
        Ok(ranked(judged, scene))
    }

    /// Faults and rules alone, for what may be noise.
    pub(super) fn judge_discrete(
        &self,
        state: &State,
        scene: &Scene,
    ) -> Result<Vec<ScoredCandidate>> {
        let dumped = |place: Place| state.scores.iter().any(|s| s.contains_key(&place));
        let block = Block::of(state.path.mode(), state.path.profile(), Phase::Prefill);
        let mut all = Vec::new();
        let Some(layer) = scene.first.layer else {
            return Ok(all);
        };
        let candidates = candidate::discrete(layer)
            .into_iter()
            .chain(candidate::rules(layer, &block))
            .filter(|c| c.fits(&block, scene.first, &dumped))
            .collect();
        let off = self.far(state, scene, None)?;
        let near = self.hopeful(state, scene, candidates, off)?;
        all.extend(self.judge_all(state, scene, near)?);
        Ok(ranked(all, scene))
    }

    fn judge_all(
        &self,
        state: &State,
        scene: &Scene,
        candidates: Vec<Candidate>,
    ) -> Result<Vec<ScoredCandidate>> {
        candidates
            .into_par_iter()
            .map(|candidate| {
                let Left { left, far, first } = self.left(state, scene, &candidate)?;
                Ok(ScoredCandidate {
                    candidate,
                    left,
                    far,
                    first,
                })
            })
            .collect()
    }

    /// Candidates that bring the first rows nearer.
    fn hopeful(
        &self,
        state: &State,
        scene: &Scene,
        candidates: Vec<Candidate>,
        off: f64,
    ) -> Result<Vec<Candidate>> {
        if scene.rows.is_none() {
            return Ok(candidates);
        }
        let kept: Vec<Option<Candidate>> = candidates
            .into_par_iter()
            .map(|c| {
                let near = || Ok(self.far(state, scene, Some(&c))? < 0.8 * off);
                Ok((c.needs_all_tokens() || near()?).then_some(c))
            })
            .collect::<Result<_>>()?;
        Ok(kept.into_iter().flatten().collect())
    }

    /// Edits, and each of the first tensor also in the dump alone.
    fn judge_alone_too(
        &self,
        state: &State,
        scene: &Scene,
        mut candidates: Vec<Edit>,
    ) -> Result<Vec<ScoredCandidate>> {
        let alone: Vec<Edit> = candidates
            .iter()
            .filter(|e| e.point == scene.first.point)
            .map(|e| Edit {
                alone: true,
                ..e.clone()
            })
            .collect();
        candidates.extend(alone);
        self.judge_all(
            state,
            scene,
            candidates.into_iter().map(Candidate::Edit).collect(),
        )
    }

    /// Edits of steps between the last tensor that the dump has and the first that deviates.
    fn edits_before(
        &self,
        state: &State,
        scene: &Scene,
        block: &Block,
        wanted: &(dyn Fn(&Edit) -> bool + Sync),
    ) -> Result<Vec<Edit>> {
        let parts = self.parts(block, &state.score(), scene);
        let mut all: Vec<Edit> = Vec::new();
        let nothing = Seen::new();
        for layer in scene.blocks.clone() {
            let seen = scene.seen[scene.sequence].get(&layer).unwrap_or(&nothing);
            let here = formula::BlockInputs {
                path: &state.path,
                layer,
                block,
                seen,
            };
            for row in block.rows() {
                let place = Place::layer(layer, row.point);
                if place == scene.first || !parts.contains(&place) {
                    continue;
                }
                let formula = here.formula(row);
                all.extend(
                    edit::of_row(Some(&here), row, here.width(row), formula.as_ref())
                        .into_iter()
                        .filter(|e| wanted(e)),
                );
            }
        }
        if all.is_empty() {
            return Ok(all);
        }
        all.sort_by_key(|e| e.rank);
        all.truncate(BEFORE);
        let off = self.far(state, scene, None)?;
        let formulas = Formulas::default();
        let mut near: Vec<(f64, Edit)> = all
            .into_par_iter()
            .map(|e| {
                let candidate = Candidate::Edit(e);
                let far = self.far_by(state, scene, Some(&candidate), Some(&formulas))?;
                let Candidate::Edit(e) = candidate else {
                    unreachable!("made above")
                };
                Ok((far, e))
            })
            .collect::<Result<_>>()?;
        near.retain(|(far, _)| *far < (1.0 - HOPE) * off);
        near.sort_by(|a, b| a.0.total_cmp(&b.0).then(a.1.rank.cmp(&b.1.rank)));
        near.truncate(RUN);
        Ok(near.into_iter().map(|(_, e)| e).collect())
    }

    /// Fits the factors of stale scales and judges the best of them.
    fn judge_scales(
        &self,
        state: &State,
        scene: &Scene,
        scales: Vec<Candidate>,
        off: f64,
    ) -> Result<Vec<ScoredCandidate>> {
        self.fitted(state, scene, scales, off, factor::coarse)
    }

    fn fitted(
        &self,
        state: &State,
        scene: &Scene,
        scales: Vec<Candidate>,
        off: f64,
        grid: fn(&mut dyn FnMut(f32) -> Result<f64>) -> Result<factor::Bracket>,
    ) -> Result<Vec<ScoredCandidate>> {
        let far = |c: &Candidate, factor: f32| self.far(state, scene, Some(&c.with_factor(factor)));
        let mut rough: Vec<(Candidate, factor::Bracket)> = scales
            .into_par_iter()
            .map(|c| {
                let bracket = grid(&mut |factor| far(&c, factor))?;
                Ok((c, bracket))
            })
            .collect::<Result<_>>()?;
        rough.retain(|(_, bracket)| bracket.value < 0.97 * off);
        rough.sort_by(|a, b| a.1.value.total_cmp(&b.1.value));
        rough.truncate(FINE);
        // Codes tell a factor as far as their steps, floats to its last place.
        let real = scene.made[scene.sequence].get(&scene.first);
        let real = real.is_some_and(|made| made.dtype() == "f32");
        let (rounds, places) = if real { (30, 3) } else { (18, 0) };
        rough
            .into_par_iter()
            .map(|(c, bracket)| {
                let (factor, _) =
                    factor::refine(bracket.factor, bracket.width, rounds, |factor| {
                        far(&c, factor)
                    })?;
                let left = |factor: f32| self.left(state, scene, &c.with_factor(factor));
                // Of equally good ones the number of the fewest digits.
                let mut best = (factor, Left::default());
                best.1.left = usize::MAX;
                let beside = factor::neighbours(factor, places);
                for number in factor::round_numbers(factor).into_iter().chain(beside) {
                    let now = left(number)?;
                    if now.left < best.1.left {
                        best = (number, now);
                    }
                }
                let hopeful = best.1.first.mismatched * 3 < scene.at_first.mismatched;
                if best.1.left > 0 && best.1.left < scene.base && hopeful {
                    let all = |factor: f32| left(factor).map(|now| now.left as f64);
                    let (factor, now) = factor::refine(best.0, 1e-3, 16, all)?;
                    if (now as usize) < best.1.left {
                        best = (factor, left(factor)?);
                    }
                }
                let Left { left, far, first } = best.1;
                Ok(ScoredCandidate {
                    candidate: c.with_factor(best.0),
                    left,
                    far,
                    first,
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

    /// The number of sequences.
    pub(super) fn batch(&self) -> usize {
        self.tokens.len()
    }
}

/// So many elements more or less of so many are equally good.
fn slack(of: usize) -> usize {
    (TIE * of as f64) as usize
}

/// The best first; of equally good ones the simpler.
fn ranked(mut judged: Vec<ScoredCandidate>, scene: &Scene) -> Vec<ScoredCandidate> {
    judged.retain(|j| j.gains(scene));
    // Floats that an ulp keeps apart do not decide, but where nothing else deviates.
    let near = scene.at_first.far > 0;
    let left = |j: &ScoredCandidate| match near {
        true => (j.first.far, j.far),
        false => (j.first.mismatched, j.left),
    };
    let of = match near {
        true => scene.at_first.far,
        false => scene.at_first.mismatched,
    };
    judged.sort_by_key(|j| (left(j), j.candidate.rank(), j.left));
    if let Some((first, _)) = judged.first().map(left) {
        let alike = judged.partition_point(|j| left(j).0 <= first + slack(of));
        let fewest = judged[..alike].iter().map(|j| left(j).1).min().unwrap_or(0);
        let tied = |j: &ScoredCandidate| left(j).1 <= fewest + slack(scene.base);
        judged[..alike].sort_by_key(|j| (!tied(j), j.candidate.rank(), j.left));
    }
    judged
}
