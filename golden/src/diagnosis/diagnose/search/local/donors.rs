//! Channels that have parameters of others, found by what these would make; numbers that have a factor.

use super::{Local, SECOND_LOOK};
use crate::diagnosis::diagnose::edit::{self, Edit, Part};
use crate::diagnosis::diagnose::formula::Formula;
use crate::diagnosis::diagnose::search::factor;
use rayon::prelude::*;

/// Tokens on which channels are compared.
const TOKENS: usize = 16;
/// Channels that are looked at first.
const SAMPLE: usize = 12;

impl Local<'_, '_> {
    /// Parameters that channels have of others.
    pub(super) fn donated(&self) -> Vec<Edit> {
        let Some(formula) = self.sequences.first().and_then(|s| s.formula.as_ref()) else {
            return Vec::new();
        };
        let sets = edit::PARTS.into_iter();
        let sets = sets.filter(|(parts, ..)| parts.iter().all(|part| part.is_of(formula)));
        sets.filter_map(|set| {
            let of = self.donors(formula, set.0)?;
            Some(edit::donated(self.scenes.first(), self.row, set, of))
        })
        .collect()
    }

    /// Of each channel the nearest one with whose parameters it makes what the dump has; `None` where hardly one has
    /// another's.
    fn donors(&self, formula: &Formula, parts: &[Part]) -> Option<Vec<usize>> {
        let target = self
            .sequences
            .first()?
            .targets
            .first()
            .filter(|t| !t.state)?;
        let (rows, channels) = target.made.dim();
        let rows = rows.min(TOKENS);
        let column = |c: usize| (0..rows).map(move |t| (t, c));
        let deviates = |c: &usize| {
            let apart =
                column(*c).filter(|at| target.judge.differs(target.made[*at], target.dumped[*at]));
            apart.count() * 8 > rows
        };
        let deviating: Vec<usize> = (0..channels).filter(deviates).collect();
        let own: Vec<usize> = (0..channels).collect();
        let donor = |c: usize| -> Option<usize> {
            let mut tried = Part::spread(formula, c, rows);
            for (all, ..) in edit::PARTS {
                all.iter()
                    .for_each(|part| part.put(&mut tried, formula, &vec![c; channels]));
            }
            parts
                .iter()
                .for_each(|part| part.put(&mut tried, formula, &own));
            let made = tried.run().out;
            let same = |other: &usize| {
                let wrong = column(c).filter(|at| {
                    target
                        .judge
                        .differs(made[(at.0, *other)], target.dumped[*at])
                });
                wrong.count() * 16 <= rows
            };
            let found = (0..channels).filter(|other| *other != c).filter(same);
            found.min_by_key(|other| other.abs_diff(c))
        };
        let most = |found: usize, of: usize| 10 * found >= 9 * of;
        let step = (deviating.len() / SAMPLE).max(1);
        let sample: Vec<usize> = deviating.iter().copied().step_by(step).collect();
        let found = sample.par_iter().filter_map(|c| donor(*c)).count();
        if sample.is_empty() || !most(found, sample.len()) {
            return None;
        }
        let found: Vec<(usize, usize)> = deviating
            .par_iter()
            .filter_map(|c| Some((*c, donor(*c)?)))
            .collect();
        let mut of = own;
        found.iter().for_each(|(c, other)| of[*c] = *other);
        most(found.len(), deviating.len()).then_some(of)
    }

    /// Numbers of the formula with the factor that brings the step nearest, where one does.
    pub(super) fn fitted(&self) -> Vec<Edit> {
        let Some(formula) = self.sequences.first().and_then(|s| s.formula.as_ref()) else {
            return Vec::new();
        };
        let few = self.look(SECOND_LOOK);
        let base = self.unedited(few.as_ref()).off;
        let here = self.scenes.first();
        let one = |fit: &edit::Fit| -> Option<Edit> {
            let left = |by: f32| self.left(&edit::fit(here, self.row, *fit, by), few.as_ref());
            let off = |by: f32| Ok(left(by).map_or(f64::INFINITY, |left| left.off));
            let rough = factor::coarse(&mut |by| off(by)).ok()?;
            if rough.value > NEAR * base {
                return None;
            }
            let (found, _) = factor::refine(rough.factor, rough.width, 24, off).ok()?;
            let all = factor::round_numbers(found).into_iter().chain([found]);
            let count = |by: &f32| left(*by).map_or(usize::MAX, |left| left.all);
            // Of equal ones the shortest number.
            let best = all.min_by_key(count)?;
            Some(edit::fit(here, self.row, *fit, best))
        };
        edit::fits(formula).par_iter().filter_map(one).collect()
    }
}

/// A factor is refined where it leaves no more than this of how far all are off.
const NEAR: f64 = 0.7;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::diagnosis::diagnose::formula::{Activation, Conv, Math, Operand, Output};
    use crate::diagnosis::diagnose::kind::Kind;
    use ndarray::{Array2, s};
    use scalescope_sim::arith::real::RealRules;
    use scalescope_sim::dataflow::{Block, Phase};
    use scalescope_sim::mode::ModeTable;
    use scalescope_sim::profile::Profile;
    use scalescope_sim::trace::TracePoint;

    const CHANNELS: usize = 40;

    /// A convolution of codes that are as good as drawn.
    fn conv() -> Conv {
        let code = |i: usize| (i * i * 7919 % 251) as f32 - 125.0;
        let of = |from: usize| move |(r, c): (usize, usize)| code(from + r * CHANNELS + c);
        Conv {
            math: Math::of(RealRules::CorrectlyRounded),
            x: Operand::new(Array2::from_shape_fn((32, CHANNELS), of(17)), 0.02),
            history: Array2::zeros((3, CHANNELS)),
            taps: Array2::from_shape_fn((4, CHANNELS), of(5000)),
            tap_scale: vec![0.005],
            bias: (0..CHANNELS).map(|c| 0.01 * code(9000 + c)).collect(),
            bias_scale: Some(0.01),
            bias_after: false,
            integer: true,
            chip: None,
            product: false,
            activation: Activation::Silu,
            measured: None,
            scale_through: None,
            narrow_sum: None,
            running: None,
            sigmoid_of: None,
            dilation: 1,
            tile: None,
            channels: None,
            halo: None,
            output: Output::real(false),
        }
    }

    /// The first edit that is found for what another convolution makes, and what it leaves.
    fn found(other: Conv) -> (Edit, usize) {
        let table = ModeTable::default();
        let mode = table.get("2-4").unwrap();
        let block = Block::of(mode, &Profile::get("exact").unwrap(), Phase::Prefill);
        let row = block.row(TracePoint::ConvOutF32).unwrap();
        let (own, dumped) = (conv(), other.run());
        let made = own.run();
        let formulas = vec![Some(Formula::Conv(Box::new(own)))];
        let local = Local::alone(row, formulas, vec![made], vec![dumped]).unwrap();
        let edits = local.best(&|_| true, 8, false);
        let first = edits.into_iter().next().expect("an edit");
        let left = local.leaves(&first);
        (first, left)
    }

    #[test]
    fn channels_that_have_the_taps_of_others_are_found_by_their_values() {
        let mut other = conv();
        // No rule of the number that is listed.
        let of = |c: usize| c * 7 % CHANNELS;
        let own = other.taps.clone();
        other.taps = Array2::from_shape_fn(own.dim(), |(tap, c)| own[(tap, of(c))]);
        let (edit, left) = found(other);
        assert_eq!(
            (edit.kind, &edit.site[..], left),
            (Kind::Order, "weight", 0)
        );
        assert!(
            edit.words.contains("1 has that of 7, 2 has that of 14"),
            "{edit:?}"
        );

        let mut other = conv();
        let first = other.taps.column(3).to_owned();
        for mut column in other.taps.slice_mut(s![.., 10..30]).columns_mut() {
            column.assign(&first);
        }
        let (edit, left) = found(other);
        assert_eq!(
            (edit.kind, &edit.site[..], left),
            (Kind::Neighbour, "weight", 0)
        );
    }

    #[test]
    fn a_parameter_with_any_factor_is_found() {
        let mut other = conv();
        other.bias.iter_mut().for_each(|b| *b *= 1.37);
        let (edit, left) = found(other);
        assert_eq!((edit.kind, &edit.site[..], left), (Kind::Factor, "bias", 0));
        assert_eq!(edit.words, "the bias is multiplied by 1.37");
    }
}
