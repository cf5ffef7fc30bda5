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
    /// Nothing yet, not even the states before the first step.
    pub(super) fn new(path: &dyn Engine) -> Self {
        let layers = path.config().n_layers;
        let granularity = path.profile().storage.activation_granularity;
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
                P::Logits => self.knows(Place::end(P::FinalResidual)),
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
            P::FinalResidual | P::Logits => false,
        }
    }

    /// Whether what leaves a block is known.
    fn leaves(&self, layer: usize, point: TracePoint) -> bool {
        self.is_present(layer) && self.knows(Place::layer(layer, point))
    }
}
