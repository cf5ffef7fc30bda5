//! Other functions in the place of a scan's: the gate's, softplus, the exp of decays.

use super::on;
use crate::diagnosis::diagnose::edit::Edits;
use crate::diagnosis::diagnose::formula::{Activation, Decay, Delta, Exp, Sigmoid, Table};
use crate::diagnosis::diagnose::kind::Kind;

impl Edits<'_, '_> {
    pub(super) fn functions(&mut self) {
        // SiLU of −z is the gate of a z with the other sign, which is an edit of its own.
        let gates = Activation::OTHERS.into_iter();
        for gate in gates.filter(|gate| *gate != Activation::SiluOfNegative) {
            let (kind, words) = match gate {
                Activation::Identity => (
                    Kind::Function,
                    "the gate is z itself, without SiLU".to_owned(),
                ),
                Activation::SiluTwice => (Kind::Twice, "the gate is SiLU twice".to_owned()),
                other => (Kind::Function, format!("the gate is {} of z", other.name())),
            };
            self.formula(1, (kind, "gate"), words, on(move |s| s.gate = Some(gate)));
        }
        for delta in Delta::OTHERS {
            let words = format!("δ is made by {} and not by softplus", delta.name());
            let kind = match delta {
                Delta::SoftplusTwice => Kind::Twice,
                _ => Kind::Function,
            };
            self.formula(1, (kind, "softplus"), words, on(move |s| s.delta = delta));
        }
        self.formula(
            2,
            (Kind::LeftOut, "exp"),
            "A is A_log itself, without exp",
            on(|s| s.a_is_log = false),
        );
        self.formula(
            1,
            (Kind::LeftOut, "decay"),
            "the state does not decay",
            on(|s| s.decay_base = 0.0),
        );
        self.formula(
            2,
            (Kind::Function, "decay"),
            "decays are powers of two and not of e",
            on(|s| s.decay_base = std::f32::consts::LN_2),
        );
        self.formula(
            2,
            (Kind::Order, "gate"),
            "SiLU is of the output, which is then multiplied by z",
            on(|s| s.output_gated = true),
        );
        for decay in Decay::OTHERS {
            for held in [false, true] {
                let input = if held {
                    ", and the input is held so"
                } else {
                    ""
                };
                let words = format!("decays are {} and not exp(−α·δ){input}", decay.name());
                let change = on(move |s| (s.decay, s.held) = (decay, held));
                self.formula(2, (Kind::Function, "decay"), words, change);
            }
        }
        self.formula(
            3,
            (Kind::Neighbour, "decay"),
            "the state decays by the δ of the token before",
            on(|s| s.late_decay = true),
        );
        self.formula(
            2,
            (Kind::Function, "input_delta"),
            "the input is held exactly: (1 − exp(−α·δ))/α·B·u and not δ·B·u",
            on(|s| s.held = true),
        );
        for sigmoid in Sigmoid::others() {
            let gate = Activation::Gated(sigmoid);
            let words = format!("the gate is {} of z", gate.name());
            let change = on(move |s| s.gate = Some(gate));
            self.formula(6, (Kind::Function, "gate"), words, change);
        }
        for delta in Delta::approximations() {
            let words = format!("δ is made by {} and not by softplus", delta.name());
            let change = on(move |s| s.delta = delta);
            self.formula(6, (Kind::Function, "softplus"), words, change);
        }
        for exp in Exp::others() {
            let words = format!("the exp of decays is {}", exp.name());
            let change = on(move |s| s.decay = Decay::Of(exp));
            self.formula(6, (Kind::Function, "decay"), words, change);
        }
        for table in Table::all(&[(-4.0, 4.0), (-8.0, 8.0), (-16.0, 16.0)]) {
            let words = format!("the gate's SiLU is {}", table.name());
            let gate = Some(Activation::Tabled(table));
            self.formula(6, (Kind::Table, "gate"), words, on(move |s| s.gate = gate));
            let words = format!("softplus is {}", table.name());
            let delta = Delta::Tabled(table);
            self.formula(
                5,
                (Kind::Table, "softplus"),
                words,
                on(move |s| s.delta = delta),
            );
        }
        for table in Table::all(&[(-8.0, 0.0), (-16.0, 0.0)]) {
            let words = format!("the exp of decays is {}", table.name());
            let change = on(move |s| s.decay = Decay::Tabled(table));
            self.formula(6, (Kind::Table, "decay"), words, change);
        }
    }
}
