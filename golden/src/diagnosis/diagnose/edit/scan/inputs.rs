//! Edits of what a scan reads.

use super::on;
use crate::diagnosis::diagnose::edit::codes::{Narrowed, Packing};
use crate::diagnosis::diagnose::edit::{
    BEGINS, ChannelOrder, Edits, Half, TokenOrder, begins, moves, replace, reversed, turned,
    whole_of,
};
use crate::diagnosis::diagnose::formula::{Activation, Operand, Scan, Stride};
use crate::diagnosis::diagnose::kind::Kind;
use scalescope_sim::dataflow::Step;
use std::sync::Arc;

/// An input of a scan.
type Input = (&'static str, fn(&mut Scan) -> &mut Operand);

pub(super) const INPUTS: [Input; 5] = [
    ("u", |s| &mut s.u),
    ("dt", |s| &mut s.dt),
    ("B", |s| &mut s.b),
    ("C", |s| &mut s.c),
    ("z", |s| &mut s.z),
];

impl Edits<'_, '_> {
    pub(super) fn inputs(&mut self, own: &Scan) {
        for (name, of) in INPUTS {
            for narrowed in Narrowed::all() {
                if narrowed.is_of_codes() && of(&mut own.clone()).scale == 1.0 {
                    continue;
                }
                let words = narrowed.words(&format!("the values of {name}"));
                let change = on(move |s| of(s).values.mapv_inplace(|v| narrowed.of(v)));
                self.formula(narrowed.rank(), (narrowed.kind(), name), words, change);
            }
            let channels = of(&mut own.clone()).values.ncols();
            for order in ChannelOrder::heads(channels) {
                let words = format!("{name}'s {}", order.words());
                let change = on(move |s| {
                    let x = of(s);
                    x.values = order.of(&x.values);
                });
                self.formula(5, (order.kind(), name), words, change);
            }
            for order in TokenOrder::all() {
                let words = format!("{name}'s {}", order.words());
                let change = on(move |s| of(s).values = order.of(&of(s).values));
                self.formula(4, (order.kind(), name), words, change);
            }
            for stride in Stride::of_each(of(&mut own.clone())) {
                let words = stride.words(name);
                let change = on(move |s| stride.of_operand(of(s)));
                self.formula(4, (Kind::Order, name), words, change);
            }
            if of(&mut own.clone()).scale != 1.0 {
                for packing in Packing::ALL {
                    let words = packing.words(name);
                    let change = on(move |s| of(s).values = packing.of(&of(s).values));
                    self.formula(5, (Kind::Format, name), words, change);
                }
            }
            for half in Half::ALL {
                let words = format!("{} of {name} are those of the token before", half.words());
                let change = on(move |s| of(s).values = half.late(&of(s).values));
                self.formula(4, (Kind::Neighbour, name), words, change);
            }
            for by in moves([1, -1, 2, -2, 4, -4, 8, -8, 16, -16, 32, -32, 64]) {
                let words = format!("{name} is that {}", by.words());
                self.formula(
                    2,
                    (Kind::Neighbour, name),
                    words,
                    on(move |s| {
                        let x = of(s);
                        x.values = by.of(&x.values);
                    }),
                );
            }
            for by in [1isize, -1] {
                let words = format!("{name} is rotated by one channel ({by:+})");
                self.formula(
                    4,
                    (Kind::Neighbour, name),
                    words,
                    on(move |s| {
                        let x = of(s);
                        x.values = turned(&x.values, by);
                    }),
                );
            }
            let words = format!("the channels of {name} are in reverse");
            self.formula(
                3,
                (Kind::Order, name),
                words,
                on(move |s| {
                    let x = of(s);
                    x.values = reversed(&x.values);
                }),
            );
            let words = format!("the scale of {name} is left out");
            self.formula(
                2,
                (Kind::LeftOut, name),
                words,
                on(move |s| of(s).scale = 1.0),
            );
            let words = format!("the scale of {name} is applied twice");
            self.formula(
                3,
                (Kind::Twice, name),
                words,
                on(move |s| {
                    let x = of(s);
                    x.scale *= x.scale;
                }),
            );
            let words = format!("{name} is zero");
            self.formula(
                3,
                (Kind::LeftOut, name),
                words,
                on(move |s| of(s).values.fill(0.0)),
            );
            for zero in [1.0f32, -1.0, 2.0, -2.0, 3.0, -3.0, 128.0, -128.0] {
                let words = format!("{name} has a zero point of {zero}");
                let change = on(move |s| of(s).values += zero);
                self.formula(5, (Kind::ZeroPoint, name), words, change);
            }
        }
        self.formula(
            1,
            (Kind::Neighbour, "C"),
            "C is B",
            on(|s| s.c = s.b.clone()),
        );
        self.formula(
            1,
            (Kind::Neighbour, "B"),
            "B is C",
            on(|s| s.b = s.c.clone()),
        );
        self.formula(
            3,
            (Kind::Factor, "D"),
            "D is multiplied by the codes of u, without their scale",
            on(|s| s.skip = Some(Arc::new(Operand::new(s.u.values.clone(), 1.0)))),
        );
        self.parts_elsewhere(own);
        self.other_functions_of_u(own);
        if own.u.values.dim() == own.z.values.dim() {
            self.formula(
                2,
                (Kind::Neighbour, "z"),
                "the gate is made of u and not of z",
                on(|s| s.z = s.u.clone()),
            );
            self.formula(
                2,
                (Kind::Neighbour, "u"),
                "u is z",
                on(|s| s.u = s.z.clone()),
            );
            self.formula(
                2,
                (Kind::Neighbour, "u"),
                "u is dt",
                on(|s| s.u = s.dt.clone()),
            );
        }
        // x before the convolution, as the first row of that step reads it.
        let x = self.scene.and_then(|scene| {
            let mut rows = scene.block.of_step(Step::Conv);
            let row = rows.find(|row| !row.point.is_state())?;
            scene.operand(row.reads.first()?)
        });
        if let Some(x) = x.filter(|x| x.values.dim() == own.u.values.dim()) {
            let as_z = x.clone();
            let as_skip = Arc::new(x.clone());
            self.formula(
                3,
                (Kind::Neighbour, "D"),
                "D is multiplied by x before the convolution and not by u",
                on(move |s| s.skip = Some(Arc::clone(&as_skip))),
            );
            self.formula(
                2,
                (Kind::Neighbour, "z"),
                "the gate is made of x and not of z",
                on(move |s| {
                    replace(&mut s.z.values, &as_z.values);
                }),
            );
            self.formula(
                2,
                (Kind::Neighbour, "u"),
                "u is x before the convolution",
                on(move |s| {
                    replace(&mut s.u.values, &x.values);
                    s.u.scale = x.scale;
                }),
            );
        }
    }

    /// u by another function of the convolution's sum, as a real and as a code.
    fn other_functions_of_u(&mut self, own: &Scan) {
        if own.before_silu.is_none() {
            return;
        }
        for function in Activation::OTHERS {
            for codes in [false, true]
                .into_iter()
                .filter(|c| !c || own.u.scale != 1.0)
            {
                let of = if codes { "a code of " } else { "" };
                let (kind, words) = match function {
                    Activation::Identity => (
                        Kind::Neighbour,
                        format!("u is {of}the convolution's sum before SiLU"),
                    ),
                    other => (
                        Kind::Function,
                        format!("u is {of}{} of the convolution's sum", other.name()),
                    ),
                };
                let change = on(move |s| {
                    let Some(sums) = s.before_silu.clone() else {
                        return;
                    };
                    if sums.dim() != s.u.values.dim() {
                        return;
                    }
                    let values = sums.mapv(|v| function.of(s.math, v));
                    match codes {
                        true => {
                            let code = |v: f32| (v / s.u.scale).round_ties_even();
                            s.u.values = values.mapv(|v| code(v).clamp(-128.0, 127.0));
                        }
                        false => s.u = Operand::new(values, 1.0),
                    }
                });
                self.formula(3, (kind, "u"), words, change);
            }
        }
    }

    /// B and C from other columns of the tensor that they are parts of.
    fn parts_elsewhere(&mut self, own: &Scan) {
        let Some(scene) = self.scene else { return };
        let n = own.b.values.ncols();
        // The reads are u, dt, B, C and z.
        let [_, _, b, c, _] = &self.row.reads[..] else {
            return;
        };
        let (Some(whole_b), Some(whole_c)) = (whole_of(scene, b), whole_of(scene, c)) else {
            return;
        };
        for by in BEGINS {
            let moved_b = begins(&whole_b, by, n).map(Arc::new);
            let moved_c = begins(&whole_c, by, n).map(Arc::new);
            let on_by = |name: &str| format!("{name} begins {by:+} columns on");
            if let Some(b) = moved_b.clone() {
                let change = on(move |s| replace(&mut s.b.values, &b));
                self.formula(3, (Kind::Neighbour, "B"), on_by("B"), change);
            }
            if let Some(c) = moved_c.clone() {
                let change = on(move |s| replace(&mut s.c.values, &c));
                self.formula(3, (Kind::Neighbour, "C"), on_by("C"), change);
            }
            if let (Some(b), Some(c)) = (moved_b, moved_c) {
                let change = on(move |s| {
                    replace(&mut s.b.values, &b);
                    replace(&mut s.c.values, &c);
                });
                let words = format!("B and C begin {by:+} columns on");
                self.formula(3, (Kind::Neighbour, "B"), words, change);
            }
        }
    }
}
