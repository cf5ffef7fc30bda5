//! Edits whose numbers are read off what deviates: functions, grids, registers, entries of weights, channels and
//! tokens that are others'.

use super::{Local, Target};
use crate::diagnosis::diagnose::edit::{self, Edit};
use crate::diagnosis::diagnose::formula::{self, Formula, Measured, Output, Sample};
use crate::diagnosis::diagnose::pattern::{Indices, Pattern};
use ndarray::Array2;
use rayon::prelude::*;

/// Channels (or tokens) that are others'.
pub struct Moves {
    /// Each with whose values it has.
    pub found: Vec<(usize, usize)>,
    /// Those that are zero.
    pub zeros: Vec<usize>,
}

impl Local<'_, '_> {
    /// The function of a convolution or of a gate, read off the dump.
    pub(super) fn measured(&self) -> Option<Edit> {
        let here = self.scenes.first();
        let pattern = self.pattern.as_deref().filter(|_| self.may_restrict());
        let mut samples: Vec<Sample> = Vec::new();
        for (s, sequence) in self.sequences.iter().enumerate() {
            let target = sequence.targets.iter().find(|t| !t.state)?;
            let formula = sequence.formula.as_ref()?;
            let (before, step) = match formula {
                Formula::Conv(own) => {
                    let codes = own.output.quantizer.filter(|q| !q.dequantized);
                    (own.before_function()?, codes.map_or(1.0, |q| q.scale))
                }
                Formula::Scan(own) => (own.before_gate()?, 1.0),
                _ => return None,
            };
            for (at, dumped) in target.dumped.indexed_iter() {
                if pattern.is_some_and(|p| !p.contains(s, at.0, at.1)) {
                    continue;
                }
                samples.push(match formula {
                    Formula::Scan(own) => Sample {
                        at: own.z.real(own.math, at),
                        value: dumped / before[at],
                        weight: before[at] * before[at],
                    },
                    _ => Sample {
                        at: before[at],
                        value: dumped * step,
                        weight: 1.0,
                    },
                });
            }
        }
        let found = Measured::of(samples).filter(|found| self.tells(found))?;
        Some(match self.sequences.first()?.formula.as_ref()? {
            Formula::Scan(_) => edit::measured_gate(here, self.row, found),
            _ => edit::measured_silu(here, self.row, found),
        })
    }

    /// The function that stores a step's results, read off the dump.
    pub(super) fn measured_output(&self) -> Option<Edit> {
        let pattern = self.pattern.as_deref().filter(|_| self.may_restrict());
        let mut samples: Vec<Sample> = Vec::new();
        let mut grid = None;
        for (s, sequence) in self.sequences.iter().enumerate() {
            let target = sequence.targets.iter().find(|t| !t.state)?;
            let mut formula = sequence.formula.clone()?;
            let step = match (&formula, &formula.clone().output().quantizer) {
                // The convolution's and the scan's have an edit of their own.
                (Formula::Conv(_) | Formula::Scan(_), _) => return None,
                (_, Some(q)) if q.dynamic.is_some() => return None,
                (_, Some(q)) if !q.dequantized => {
                    grid = Some(q.scale);
                    q.scale
                }
                (_, Some(_) | None) => 1.0,
            };
            if let Formula::Grids(grids) = &mut formula {
                // What its quantizer gets tells more than what it makes.
                grids.quantizer = None;
            }
            *formula.output() = Output::real(false);
            let before = formula.run().out;
            for (at, dumped) in target.dumped.indexed_iter() {
                if pattern.is_none_or(|p| p.contains(s, at.0, at.1)) {
                    samples.push(Sample {
                        at: *before.get(at)?,
                        value: dumped * step,
                        weight: 1.0,
                    });
                }
            }
        }
        let found = Measured::of(samples).filter(|found| self.tells(found))?;
        Some(edit::measured_output(
            self.scenes.first(),
            self.row,
            found,
            grid,
        ))
    }

    /// A scan's state before the first token.
    pub(super) fn first_state(&self) -> Option<Edit> {
        let [only] = &self.sequences[..] else {
            return None;
        };
        let target = only.targets.first().filter(|t| !t.state)?;
        match &only.formula {
            Some(Formula::Scan(own)) if self.first_row() == Some(0) => {
                edit::begins_with(self.scenes.first(), self.row, own, &target.dumped)
            }
            _ => None,
        }
    }

    /// Whether so much deviates that a function of so many values is more than a list of it.
    fn tells(&self, found: &Measured) -> bool {
        self.base() >= 4 * found.values()
    }

    /// Reals that lie on a grid of codes on which the step's own do not.
    pub(super) fn on_grid(&self) -> Vec<Edit> {
        let target = self.sequences.first().and_then(|s| s.targets.first());
        let found = target
            .filter(|t| !t.state && self.row.format.dtype() != "i8")
            .filter(|t| edit::grid_of(&t.made).is_none())
            .and_then(|t| edit::grid_of(&t.dumped));
        let here = self.scenes.first();
        found.map_or(Vec::new(), |grid| edit::on_grid(here, self.row, grid))
    }

    /// The first channel that deviates.
    pub(super) fn first_channel(&self) -> Option<usize> {
        let targets = self.sequences.iter().filter_map(|s| s.targets.first());
        let first = |t: &Target| {
            let differs = |(at, made): ((usize, usize), &f32)| {
                t.judge.differs(*made, t.dumped[at]).then_some(at.1)
            };
            t.made.indexed_iter().filter_map(differs).min()
        };
        targets.filter_map(first).min()
    }

    /// Sums in narrow registers, run by run.
    pub(super) fn narrow_sums(&self, formula: Option<&Formula>) -> Vec<Edit> {
        let target = self.sequences.first().and_then(|s| s.targets.first());
        let (Some(Formula::Linear(own)), Some(target)) = (formula, target) else {
            return Vec::new();
        };
        let differs = |a: f32, b: f32| target.judge.differs(a, b);
        edit::blocks(self.scenes.first(), self.row, own, &target.dumped, &differs)
    }

    /// Whole channels or tokens that are others'.
    pub(super) fn moved(&self) -> Vec<Edit> {
        let here = self.scenes.first();
        [true, false]
            .into_iter()
            .filter_map(|channels| {
                let Moves { found, zeros } = self.moves(channels)?;
                edit::moved(here, self.row, (&found, &zeros), channels)
            })
            .collect()
    }

    /// Of channels (or tokens) that deviate, whose values they have, and which are all zero; `None` if hardly one has
    /// another's.
    pub(super) fn moves(&self, channels: bool) -> Option<Moves> {
        let first = self.sequences.iter().find_map(|s| s.targets.first())?;
        let all: Vec<&Target> = (self.sequences.iter())
            .filter_map(|s| s.targets.first())
            .collect();
        let length = first.made.len_of(ndarray::Axis(usize::from(channels)));
        let lane = |values: &Array2<f32>, i: usize| match channels {
            true => values.column(i).to_vec(),
            false => values.row(i).to_vec(),
        };
        let of = |values: fn(&Target) -> &Array2<f32>| -> Vec<Vec<f32>> {
            let lanes = (0..length).map(|i| all.iter().flat_map(|t| lane(values(t), i)).collect());
            lanes.collect()
        };
        // Sequences of other lengths have no tokens in common.
        if all.iter().any(|t| t.made.dim() != first.made.dim()) {
            return None;
        }
        let (made, dumped) = (of(|t| &t.made), of(|t| &t.dumped));
        let judge = first.judge;
        let same = |a: &[f32], b: &[f32]| {
            let allowed = a.len() / 64;
            let mut apart = 0;
            a.iter().zip(b).all(|(a, b)| {
                apart += usize::from(judge.differs(*a, *b));
                apart <= allowed
            })
        };
        // One value all over tells nothing.
        let plain = |lane: &[f32]| lane.iter().all(|v| *v == lane[0]);
        let deviating: Vec<usize> = (0..length)
            .filter(|i| !same(&made[*i], &dumped[*i]))
            .collect();
        let zero = |i: &usize| dumped[*i].iter().all(|v| *v == 0.0);
        let zeros: Vec<usize> = deviating.iter().copied().filter(zero).collect();
        let found: Vec<(usize, usize)> = deviating
            .par_iter()
            .filter(|i| !plain(&dumped[**i]))
            .filter_map(|i| {
                // The nearest of those that are equal.
                let mut others: Vec<usize> = (0..length).filter(|o| o != i).collect();
                others.sort_by_key(|o| o.abs_diff(*i));
                let of = others.into_iter().find(|o| same(&made[*o], &dumped[*i]))?;
                Some((*i, of))
            })
            .collect();
        let all = found.len() + zeros.len();
        (!found.is_empty() && 10 * all >= 9 * deviating.len() && 2 * found.len() >= all)
            .then_some(Moves { found, zeros })
    }

    /// Parameters solved from what deviates: entries of a few channels, inputs that are not summed.
    pub(super) fn solved(&self, formula: Option<&Formula>, pattern: &Pattern) -> Vec<Edit> {
        let here = self.scenes.first();
        let channels: Option<Vec<usize>> = match (&pattern.channels, pattern.state) {
            (Indices::One { index }, false) => Some(vec![*index]),
            (Indices::Few { indices }, false) if indices.len() <= 4 => Some(indices.clone()),
            (Indices::Range { first, last }, false) if last - first < 4 => {
                Some((*first..=*last).collect())
            }
            _ => None,
        };
        let first = self.sequences.first();
        let Some(target) = first.and_then(|s| s.targets.first()) else {
            return Vec::new();
        };
        let differs = |a: f32, b: f32| target.judge.differs(a, b);
        let entries = |own: &formula::Linear, channel: usize| -> Option<Edit> {
            let dumped = target.dumped.column(channel).to_vec();
            let found = edit::solve_entries(own, &dumped, channel, &differs)?;
            Some(edit::entries(here, self.row, own, channel, &found))
        };
        match (formula, channels) {
            (Some(Formula::Linear(own)), Some(channels)) if own.meet != formula::Meet::Real => {
                let all: Option<Vec<Edit>> = channels.iter().map(|c| entries(own, *c)).collect();
                let Some((first, others)) = all.as_deref().and_then(<[Edit]>::split_first) else {
                    return Vec::new();
                };
                let mut whole = others.iter().fold(first.clone(), |a, b| a.and(b));
                whole.rank = 6;
                vec![whole]
            }
            (Some(Formula::Linear(own)), None) if own.meet != formula::Meet::Real => {
                let cells = match pattern.channels {
                    Indices::Every {
                        period,
                        first,
                        last,
                    } if first == last && period <= 64 => {
                        edit::cells(here, self.row, own, (period, first))
                    }
                    _ => Vec::new(),
                };
                let times = edit::solve_times(own, &target.dumped);
                let times =
                    times.map_or(Vec::new(), |times| edit::times(here, self.row, own, times));
                let inputs = edit::read_off(here, self.row, own, &target.dumped);
                times.into_iter().chain(inputs).chain(cells).collect()
            }
            (Some(Formula::Hadamard(own)), _) => {
                let first = self.first_channel();
                let signs = first.map(|c| edit::hadamard_signs(here, self.row, own, c));
                let factor = edit::hadamard_factor(here, self.row, own, &target.dumped);
                signs
                    .unwrap_or_default()
                    .into_iter()
                    .chain(factor)
                    .collect()
            }
            (Some(Formula::Norm(own)), _) => {
                let weights = edit::norm_weights(here, self.row, own, &target.dumped);
                let sequences = self.sequences.iter().filter_map(|s| {
                    let Some(Formula::Norm(own)) = &s.formula else {
                        return None;
                    };
                    Some((own, &s.targets.first()?.dumped))
                });
                let root = edit::norm_root(here, self.row, &sequences.collect::<Vec<_>>());
                weights.into_iter().chain(root).collect()
            }
            (Some(Formula::Conv(own)), Some(channels)) if channels.len() == 1 => {
                edit::conv_bits(here, self.row, own, channels[0])
            }
            (Some(Formula::Scan(own)), Some(channels)) if channels.len() == 1 => {
                let bits = edit::scan_bits(here, self.row, own, channels[0]);
                let at = (self.first_row().unwrap_or(0), channels[0]);
                let bumps = edit::bumps(here, self.row, own, &target.dumped, at);
                bits.into_iter().chain(bumps).collect()
            }
            _ => Vec::new(),
        }
    }
}
