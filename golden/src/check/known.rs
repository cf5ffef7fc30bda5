//! Which tensors a local check can judge: those whose every input is known.

use scalescope_sim::dataflow::{Block, Origin, Phase};
use scalescope_sim::engine::Engine;
use scalescope_sim::trace::{Place, TracePoint};
use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};

/// What is known while a run goes from point to point.
///
/// The tokens are known if the file has them. A tensor of the file is known once it has been put in
/// place. Any other is known if everything it is made from is (the rows of [`Block`] say what that
/// is), but nothing comes out of a block of which the file holds nothing.
#[derive(Clone, Debug)]
pub(super) struct Known {
    layers: usize,
    /// Prefill and decode.
    blocks: [Block; 2],
    phase: Phase,
    token: bool,
    /// Put in place in this prefill or step.
    given: BTreeSet<Place>,
    /// States that are known before this step.
    states: BTreeSet<Place>,
    /// Answers so far. Points come in the order of the data, so they do not change.
    answers: RefCell<BTreeMap<Place, bool>>,
}

impl Known {
    /// Nothing of a model's run yet, not even the states before the first step.
    pub(super) fn of(path: &dyn Engine) -> Self {
        let of = |phase| Block::of(path.mode(), path.profile(), phase);
        Self::new(
            path.config().n_layers,
            [of(Phase::Prefill), of(Phase::Decode)],
        )
    }

    fn new(layers: usize, blocks: [Block; 2]) -> Self {
        Self {
            layers,
            blocks,
            phase: Phase::Decode,
            token: false,
            given: BTreeSet::new(),
            states: BTreeSet::new(),
            answers: RefCell::default(),
        }
    }

    /// A prefill begins, from empty states; `tokens` tells whether the file has them.
    pub(super) fn prefill(&mut self, tokens: bool) {
        self.token = tokens;
        self.phase = Phase::Prefill;
        self.answers.borrow_mut().clear();
    }

    /// Goes on to the next token; `token` tells whether the file has it.
    pub(super) fn next_token(&mut self, token: bool) {
        let mut states = BTreeSet::new();
        for layer in 0..self.layers {
            let left = self
                .block()
                .rows()
                .iter()
                .map(|row| Place::layer(layer, row.point));
            let vouched = |place: &Place| {
                self.given.contains(place) || self.is_present(layer) && self.made(*place)
            };
            states.extend(left.filter(|place| place.point.is_state()).filter(vouched));
        }
        self.states = states;
        self.given.clear();
        self.answers.borrow_mut().clear();
        self.phase = Phase::Decode;
        self.token = token;
    }

    /// Notes a tensor of the file that was put in place.
    pub(super) fn given(&mut self, place: Place) {
        self.given.insert(place);
    }

    /// Whether all that a tensor is made from is known.
    pub(super) fn knows(&self, place: Place) -> bool {
        self.given.contains(&place) || self.made(place)
    }

    fn block(&self) -> &Block {
        match self.phase {
            Phase::Prefill => &self.blocks[0],
            Phase::Decode => &self.blocks[1],
        }
    }

    /// Whether all that a tensor is made from is known, whether or not it was put in place.
    fn made(&self, place: Place) -> bool {
        if let Some(answer) = self.answers.borrow().get(&place) {
            return *answer;
        }
        let answer = self.follows(place);
        self.answers.borrow_mut().insert(place, answer);
        answer
    }

    fn is_present(&self, layer: usize) -> bool {
        self.given.iter().any(|place| place.layer == Some(layer))
    }

    fn follows(&self, place: Place) -> bool {
        let Some(row) = self.block().row(place.point) else {
            return false;
        };
        let mut states = row.reads.iter().filter_map(|read| match read.from {
            Origin::TokenBefore(point) => Some(Place { point, ..place }),
            Origin::Here(_) | Origin::BlockBefore(_) => None,
        });
        if row
            .reads
            .iter()
            .any(|read| matches!(read.from, Origin::TokenBefore(_)))
        {
            // One state; a prefill and a decode leave it under names of their own.
            return states.any(|state| self.states.contains(&state));
        }
        row.reads.iter().all(|read| match read.from {
            Origin::Here(point) => self.knows(Place { point, ..place }),
            Origin::BlockBefore(point) => self.enters(place.layer, point),
            Origin::TokenBefore(_) => true,
        })
    }

    /// Whether what leaves the block before is known; before the first, the embedding of the tokens
    /// and no residual.
    fn enters(&self, layer: Option<usize>, point: TracePoint) -> bool {
        match layer.unwrap_or(self.layers).checked_sub(1) {
            Some(before) => self.is_present(before) && self.knows(Place::layer(before, point)),
            None => self.token || point == TracePoint::ResidualOut,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use scalescope_sim::mode::{MODES, ModeSpec};
    use scalescope_sim::profile::Profile;
    use scalescope_sim::trace::TracePoint::*;

    fn nothing(mode: &ModeSpec, layers: usize) -> Known {
        let profile = Profile::get("exact").unwrap();
        let of = |phase| Block::of(mode, &profile, phase);
        Known::new(layers, [of(Phase::Prefill), of(Phase::Decode)])
    }

    fn knowing(mode: &ModeSpec, layer: usize, points: &[TracePoint]) -> Known {
        let mut known = nothing(mode, 3);
        known.prefill(true);
        points
            .iter()
            .for_each(|p| known.given(Place::layer(layer, *p)));
        known
    }

    /// Block 1, of whose neighbours nothing is given: a tensor is known from all that its row reads, and
    /// from no less.
    #[test]
    fn a_tensor_is_known_if_all_it_is_made_from_is() {
        for mode in MODES {
            let block = nothing(mode, 3).blocks[0].clone();
            for row in block
                .rows()
                .iter()
                .filter(|row| row.inputs().next().is_some())
            {
                let Some(place) = row.point.in_layer().then(|| Place::layer(1, row.point)) else {
                    continue;
                };
                let from: BTreeSet<TracePoint> = row.inputs().collect();
                let from: Vec<TracePoint> = from.into_iter().collect();
                assert!(
                    knowing(mode, 1, &from).knows(place),
                    "{place} in {}",
                    mode.name
                );
                for missing in &from {
                    let rest: Vec<_> = from.iter().copied().filter(|p| p != missing).collect();
                    // What is made from the rest does not go missing.
                    let derived = knowing(mode, 1, &rest).made(Place::layer(1, *missing));
                    let known = knowing(mode, 1, &rest).knows(place);
                    assert_eq!(
                        known, derived,
                        "{place} without {missing:?} in {}",
                        mode.name
                    );
                }
                // Of another block it says nothing.
                assert!(!knowing(mode, 2, &from).knows(place), "{place}");
                assert!(knowing(mode, 1, &[row.point]).knows(place), "given itself");
            }
        }
    }

    #[test]
    fn the_first_block_follows_from_the_tokens() {
        for point in [ResidualOut, NormOut, InProjOut, ConvOut, SsmY, OutProjOut] {
            let mut known = nothing(&MODES[0], 2);
            known.prefill(true);
            assert!(known.knows(Place::layer(0, point)), "{point:?}");
            known.prefill(false);
            assert!(!known.knows(Place::layer(0, point)), "{point:?}");
        }
    }

    /// What leaves a block is known if something of the block is given and the rest follows.
    #[test]
    fn nothing_comes_out_of_a_block_of_which_nothing_is_given() {
        let knowing = |layer, points: &[TracePoint]| knowing(&MODES[0], layer, points);
        let next = Place::layer(1, HiddenIn);
        assert!(!knowing(0, &[]).knows(next));
        assert!(knowing(0, &[ConvOut]).knows(next));
        assert!(knowing(0, &[ConvOut]).knows(Place::layer(1, ResidualIn)));
        assert!(!knowing(0, &[ConvOut]).knows(Place::layer(2, HiddenIn)));
        let end = Place::end(FinalResidual);
        assert!(!knowing(2, &[OutProjOut]).knows(end));
        assert!(!knowing(2, &[HadOut]).knows(end));
        // The whole block follows from its residual stream.
        assert!(knowing(2, &[ResidualOut]).knows(end));
        assert!(knowing(2, &[OutProjOut, ResidualOut]).knows(end));
        assert!(!knowing(2, &[]).knows(Place::end(Logits)));
        let mut last = knowing(2, &[]);
        last.given(end);
        assert!(last.knows(Place::end(Logits)), "the head's own input");
        assert!(knowing(2, &[OutProjOut, ResidualOut]).knows(Place::end(Logits)));
    }

    #[test]
    fn states_go_from_token_to_token() {
        let state_in = |known: &Known| {
            [ConvStateIn, SsmStateIn].map(|point| known.knows(Place::layer(0, point)))
        };
        let mode = &MODES[0];
        let mut known = nothing(mode, 1);
        assert_eq!(state_in(&known), [false; 2]);
        known.prefill(true);
        // Nothing of the prefill was given: nobody vouches for what it leaves.
        known.next_token(true);
        assert_eq!(state_in(&known), [false; 2]);
        for (given, want) in [
            (&[ConvStateOut][..], [true, false]),
            (&[SsmStateOut], [false, true]),
            (&[ConvStateOut, SsmStateOut], [true; 2]),
            (&[InProjOut], [false; 2]),
        ] {
            let mut known = nothing(mode, 1);
            for point in given {
                known.given(Place::layer(0, *point));
            }
            known.next_token(false);
            assert_eq!(state_in(&known), want, "{given:?}");
            assert!(!known.knows(Place::layer(0, HiddenIn)), "no token");
        }
        let mut known = nothing(mode, 1);
        known.prefill(false);
        known.given(Place::layer(0, SsmState));
        known.next_token(false);
        assert_eq!(state_in(&known), [false, true], "a prefill's state");
        // A block of which nothing is given leaves no state that anybody could vouch for.
        let mut known = nothing(mode, 2);
        known.prefill(true);
        known.given(Place::layer(1, NormOut));
        known.next_token(true);
        assert_eq!(state_in(&known), [false; 2]);
        // All of a step follows from its token and its states.
        let mut known = nothing(mode, 1);
        known.prefill(true);
        known.given(Place::layer(0, NormOut));
        known.next_token(true);
        assert_eq!(state_in(&known), [true; 2]);
        assert!(known.knows(Place::layer(0, OutProjOut)));
    }
}
