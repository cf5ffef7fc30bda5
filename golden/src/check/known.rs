//! Which tensors a local check can judge: those whose every input is known.

use scalescope_sim::engine::Engine;
use scalescope_sim::profile::unit::ActivationGranularity;
use scalescope_sim::trace::{Place, TracePoint};
use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};

/// What is known while a run goes from point to point.
///
/// The tokens are known if the file has them. A tensor of the file is known once it has been put in
/// place. Any other is known if everything it is made from is, but nothing comes out of a block of
/// which the file holds nothing.
#[derive(Clone, Debug)]
pub(super) struct Known {
    layers: usize,
    /// Whether the inputs of in_proj and out_proj have scales that are found at run time.
    dynamic: bool,
    token: bool,
    /// Put in place in this prefill or step.
    given: BTreeSet<Place>,
    /// Blocks with a known conv state and a known ssm state before this prefill or step.
    states: Vec<(bool, bool)>,
    /// Answers so far. Points come in the order of the data, so they do not change.
    answers: RefCell<BTreeMap<Place, bool>>,
}

impl Known {
    /// Nothing of a model's run yet.
    pub(super) fn of(path: &dyn Engine) -> Self {
        let granularity = path.profile().storage.activation_granularity;
        Self::new(path.config().n_layers, granularity)
    }

    /// Nothing yet, not even the states before the first step.
    fn new(layers: usize, granularity: ActivationGranularity) -> Self {
        Self {
            layers,
            dynamic: granularity == ActivationGranularity::Token,
            token: false,
            given: BTreeSet::new(),
            states: vec![(false, false); layers],
            answers: RefCell::default(),
        }
    }

    /// A prefill begins, from empty states; `tokens` tells whether the file has them.
    pub(super) fn prefill(&mut self, tokens: bool) {
        self.token = tokens;
        self.states.fill((true, true));
    }

    /// Goes on to the next token; `token` tells whether the file has it.
    pub(super) fn next_token(&mut self, token: bool) {
        if self.given.is_empty() {
            self.states.fill((false, false));
        } else {
            let states = (0..self.layers).map(|layer| {
                let after = |points: &[TracePoint]| {
                    points.iter().any(|p| self.has(layer, *p))
                        || (self.is_present(layer)
                            && points.iter().all(|p| self.made(Place::layer(layer, *p))))
                };
                (
                    after(&[TracePoint::ConvStateOut]),
                    after(&[TracePoint::SsmState, TracePoint::SsmStateOut]),
                )
            });
            self.states = states.collect();
            self.given.clear();
        }
        self.answers.borrow_mut().clear();
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

    /// Whether all that a tensor is made from is known, whether or not it was put in place.
    fn made(&self, place: Place) -> bool {
        if let Some(answer) = self.answers.borrow().get(&place) {
            return *answer;
        }
        let answer = self.follows(place);
        self.answers.borrow_mut().insert(place, answer);
        answer
    }

    fn has(&self, layer: usize, point: TracePoint) -> bool {
        self.given.contains(&Place::layer(layer, point))
    }

    fn is_present(&self, layer: usize) -> bool {
        self.given.iter().any(|place| place.layer == Some(layer))
    }

    fn follows(&self, place: Place) -> bool {
        use TracePoint as P;
        let Some(layer) = place.layer else {
            let last = self.layers - 1;
            return match place.point {
                // The head's input is codes or the norm of the residual stream.
                P::Logits if self.given.contains(&Place::end(P::NormFOut)) => true,
                P::Logits | P::NormFOut => self.knows(Place::end(P::FinalResidual)),
                _ => self.leaves(last, P::OutProjOut) && self.leaves(last, P::ResidualOut),
            };
        };
        let here = |point| self.knows(Place::layer(layer, point));
        let with_scales = |point, scales| here(point) && (!self.dynamic || here(scales));
        // The same tensor under either name, as the mode has it.
        let x = || self.has(layer, P::InProjX) || here(P::InProjOut);
        let z = || self.has(layer, P::InProjZ) || here(P::InProjOut);
        let conv_in = || (self.has(layer, P::ConvIn) || x()) && here(P::ConvStateIn);
        let conv = || self.has(layer, P::ConvOutF32) || here(P::ConvOut);
        let scan = || here(P::SsmU) && here(P::DtProjOut) && here(P::XProjOut);
        match place.point {
            P::HiddenIn if layer == 0 => self.token,
            P::HiddenIn => self.leaves(layer - 1, P::OutProjOut),
            P::ResidualIn => layer == 0 || self.leaves(layer - 1, P::ResidualOut),
            P::ResidualOut => here(P::HiddenIn) && here(P::ResidualIn),
            P::NormOut | P::NormOutScale => here(P::ResidualOut),
            P::InProjOut | P::InProjX | P::InProjZ => with_scales(P::NormOut, P::NormOutScale),
            P::ConvStateIn => self.states[layer].0,
            P::ConvIn | P::ConvInScale | P::ConvStateOut => x() && here(P::ConvStateIn),
            P::ConvOut | P::ConvOutF32 => conv_in(),
            P::XProjIn | P::SsmU => conv(),
            P::XProjOut => here(P::XProjIn),
            P::DtProjOut => here(P::XProjOut),
            P::SsmStateIn => self.states[layer].1,
            P::SsmY => scan() && z() && here(P::SsmStateIn),
            P::SsmState | P::SsmStateOut => scan() && here(P::SsmStateIn),
            P::HadOut | P::HadOutScale => here(P::SsmY),
            P::OutProjOut => with_scales(P::HadOut, P::HadOutScale),
            P::FinalResidual | P::NormFOut | P::Logits => false,
        }
    }

    /// Whether what leaves a block is known.
    fn leaves(&self, layer: usize, point: TracePoint) -> bool {
        self.is_present(layer) && self.knows(Place::layer(layer, point))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use scalescope_sim::trace::TracePoint::*;

    /// What each tensor of a block is made from, one row for each way to make it. (Names of one tensor in
    /// two forms stand in two rows.) States before the first token are known.
    const MADE_FROM: &[(TracePoint, &[TracePoint])] = &[
        (ResidualOut, &[HiddenIn, ResidualIn]),
        (NormOut, &[ResidualOut]),
        (InProjOut, &[NormOut]),
        (InProjX, &[NormOut]),
        (InProjZ, &[NormOut]),
        (ConvIn, &[InProjX]),
        (ConvIn, &[InProjOut]),
        (ConvInScale, &[InProjX]),
        (ConvStateOut, &[InProjX]),
        (ConvOut, &[ConvIn]),
        (ConvOut, &[InProjX]),
        (ConvOut, &[InProjOut]),
        (ConvOutF32, &[InProjOut]),
        (XProjIn, &[ConvOut]),
        (XProjIn, &[ConvOutF32]),
        (SsmU, &[ConvOut]),
        (SsmU, &[ConvOutF32]),
        (XProjOut, &[XProjIn]),
        (DtProjOut, &[XProjOut]),
        (SsmY, &[SsmU, DtProjOut, XProjOut, InProjZ]),
        (SsmY, &[SsmU, DtProjOut, XProjOut, InProjOut]),
        (SsmState, &[SsmU, DtProjOut, XProjOut]),
        (SsmStateOut, &[SsmU, DtProjOut, XProjOut]),
        (HadOut, &[SsmY]),
        (OutProjOut, &[HadOut]),
    ];

    fn knowing(layer: usize, points: &[TracePoint]) -> Known {
        let mut known = Known::new(3, ActivationGranularity::Tensor);
        known.prefill(true);
        points
            .iter()
            .for_each(|p| known.given(Place::layer(layer, *p)));
        known
    }

    /// Block 1, of whose neighbours nothing is given: a tensor is known from all that it is made from, and
    /// from no less.
    #[test]
    fn a_tensor_is_known_if_all_it_is_made_from_is() {
        for (point, from) in MADE_FROM {
            let place = Place::layer(1, *point);
            assert!(knowing(1, from).knows(place), "{point:?} from {from:?}");
            for missing in *from {
                let rest: Vec<_> = from.iter().copied().filter(|p| p != missing).collect();
                // What is made from the rest does not go missing: dt beside x_proj_out, all beside in_proj_out.
                let derived =
                    *missing == DtProjOut && rest.contains(&XProjOut) || rest.contains(&InProjOut);
                let known = knowing(1, &rest).knows(place);
                assert_eq!(known, derived, "{point:?} without {missing:?}");
            }
            // Of another block it says nothing.
            assert!(!knowing(2, from).knows(place), "{point:?}");
            assert!(knowing(1, &[*point]).knows(place), "given itself");
        }
    }

    #[test]
    fn codes_with_scales_of_tokens_need_these_too() {
        for (point, codes, scales) in [
            (InProjOut, NormOut, NormOutScale),
            (OutProjOut, HadOut, HadOutScale),
        ] {
            let knows = |granularity, points: &[TracePoint]| {
                let mut known = Known::new(3, granularity);
                for point in points {
                    known.given(Place::layer(1, *point));
                }
                known.knows(Place::layer(1, point))
            };
            assert!(knows(ActivationGranularity::Tensor, &[codes]));
            assert!(!knows(ActivationGranularity::Token, &[codes]));
            assert!(!knows(ActivationGranularity::Token, &[scales]));
            assert!(knows(ActivationGranularity::Token, &[codes, scales]));
        }
    }

    #[test]
    fn the_first_block_follows_from_the_tokens() {
        let every = [ResidualOut, NormOut, InProjOut, ConvOut, SsmY, OutProjOut];
        for point in every {
            let mut known = Known::new(2, ActivationGranularity::Tensor);
            known.prefill(true);
            assert!(known.knows(Place::layer(0, point)), "{point:?}");
            known.prefill(false);
            known.answers.borrow_mut().clear();
            assert!(!known.knows(Place::layer(0, point)), "{point:?}");
        }
    }

    /// What leaves a block is known if something of the block is given and the rest follows.
    #[test]
    fn nothing_comes_out_of_a_block_of_which_nothing_is_given() {
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
        let mut last = knowing(2, &[]);
        assert!(!last.knows(Place::end(Logits)));
        last = knowing(2, &[]);
        last.given(end);
        assert!(last.knows(Place::end(Logits)), "the head's own input");
        last = knowing(2, &[OutProjOut, ResidualOut]);
        assert!(last.knows(Place::end(Logits)));
    }

    #[test]
    fn states_go_from_token_to_token() {
        let state_in = |known: &Known| {
            [ConvStateIn, SsmStateIn].map(|point| known.knows(Place::layer(0, point)))
        };
        let mut known = Known::new(1, ActivationGranularity::Tensor);
        assert_eq!(state_in(&known), [false; 2]);
        known.prefill(true);
        known.answers.borrow_mut().clear();
        assert_eq!(state_in(&known), [true; 2]);
        // Nothing of the prefill was given: nobody vouches for what it leaves.
        known.next_token(true);
        assert_eq!(state_in(&known), [false; 2]);
        for (given, want) in [
            (&[ConvStateOut][..], [true, false]),
            (&[SsmState], [false, true]),
            (&[SsmStateOut], [false, true]),
            (&[ConvStateOut, SsmStateOut], [true; 2]),
            (&[InProjOut], [false; 2]),
        ] {
            let mut known = Known::new(1, ActivationGranularity::Tensor);
            for point in given {
                known.given(Place::layer(0, *point));
            }
            known.next_token(false);
            assert_eq!(state_in(&known), want, "{given:?}");
            assert!(!known.knows(Place::layer(0, HiddenIn)), "no token");
        }
        // A block of which nothing is given leaves no state that anybody could vouch for.
        let mut known = Known::new(2, ActivationGranularity::Tensor);
        known.prefill(true);
        known.given(Place::layer(1, NormOut));
        known.next_token(true);
        assert_eq!(state_in(&known), [false; 2]);
        // All of a step follows from its token and its states.
        let mut known = Known::new(1, ActivationGranularity::Tensor);
        known.prefill(true);
        known.given(Place::layer(0, NormOut));
        known.next_token(true);
        assert_eq!(state_in(&known), [true; 2]);
        assert!(known.knows(Place::layer(0, OutProjOut)));
    }
}
