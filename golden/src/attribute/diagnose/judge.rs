//! Which candidate leaves the fewest mismatches.

use super::search::{Scene, Search, State};
use super::{OTHERS, TIE};
use crate::attribute::candidate::{self, Candidate};
use crate::attribute::fit;
use rayon::prelude::*;
use scalescope_sim::dataflow::{Block, Phase, Step};
use scalescope_sim::error::Result;
use scalescope_sim::trace::Place;

/// Stale scales whose factor is fitted finely.
const FINE: usize = 8;

/// A candidate and the mismatches that are left with it.
pub(super) struct Judged {
    pub(super) candidate: Candidate,
    pub(super) left: usize,
}

impl Search<'_> {
    /// Every candidate of a scene with what it leaves, the best first.
    pub(super) fn judge(&self, state: &State, scene: &Scene) -> Result<Vec<Judged>> {
        let (config, score) = (state.path.config(), state.score());
        let dumped = |place: Place| state.scores.iter().any(|s| s.contains_key(&place));
        let block = Block::of(state.path.mode(), state.path.profile(), Phase::Prefill);
        let fits = |c: &Candidate| c.fits(&block, scene.first, &dumped);
        let (mut discrete, mut scales, mut registers) = (Vec::new(), Vec::new(), Vec::new());
        for layer in scene.blocks.clone() {
            discrete.extend(candidate::discrete(layer).into_iter().filter(fits));
            scales.extend(candidate::scales(layer).into_iter().filter(fits));
            for site in Step::SUMS {
                registers.extend(candidate::registers(layer, site).into_iter().filter(fits));
            }
            for place in score.keys().filter(|p| p.layer == Some(layer)) {
                let misreads = candidate::misreads(config, *place, self.is_turned(*place));
                discrete.extend(misreads.into_iter().filter(fits));
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
                if best.1 > 0 && best.1 < scene.base {
                    let all = |factor: f32| left(factor).map(|left| left as f64);
                    let (factor, now) = fit::refine(best.0, 1e-3, 16, all)?;
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
}
