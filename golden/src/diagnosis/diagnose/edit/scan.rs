//! Edits of the selective scan.

use super::{Edits, moves, replace, reversed, turned};
use crate::diagnosis::diagnose::formula::{
    Activation, Delta, Formula, Narrow, Operand, Scan, Table, numbers,
};
use crate::diagnosis::diagnose::kind::Kind;
use ndarray::{Array2, s};
use scalescope_sim::plan::ScaleUse;
use scalescope_sim::trace::TracePoint;

fn on(
    change: impl Fn(&mut Scan) + Send + Sync,
) -> impl Fn(&mut Formula, super::Around) + Send + Sync {
    move |formula, _| {
        if let Formula::Scan(scan) = formula {
            change(scan);
        }
    }
}

/// An input of a scan.
type Input = (&'static str, fn(&mut Scan) -> &mut Operand);

const INPUTS: [Input; 5] = [
    ("u", |s| &mut s.u),
    ("dt", |s| &mut s.dt),
    ("B", |s| &mut s.b),
    ("C", |s| &mut s.c),
    ("z", |s| &mut s.z),
];

impl Edits<'_, '_> {
    pub(super) fn of_scan(&mut self, own: &Scan) {
        self.terms();
        self.functions();
        self.inputs(own);
        self.states(own);
        self.other_parameters(own);
    }

    fn terms(&mut self) {
        self.formula(
            1,
            (Kind::LeftOut, "D"),
            "the skip term D·u is missing",
            on(|s| s.d.fill(0.0)),
        );
        self.formula(
            1,
            (Kind::Twice, "D"),
            "the skip term D·u is added twice",
            on(|s| {
                s.d.iter_mut().for_each(|d| *d *= 2.0);
            }),
        );
        self.formula(2, (Kind::Constant, "D"), "D is one", on(|s| s.d.fill(1.0)));
        self.formula(
            2,
            (Kind::Order, "D"),
            "the skip term D·u is added after the gate",
            on(|s| s.skip_ungated = true),
        );
        self.formula(
            1,
            (Kind::LeftOut, "dt_bias"),
            "the bias of dt is missing",
            on(|s| s.dt_bias.fill(0.0)),
        );
        self.formula(
            1,
            (Kind::Twice, "dt_bias"),
            "the bias of dt is added twice",
            on(|s| {
                s.dt_bias.iter_mut().for_each(|b| *b *= 2.0);
            }),
        );
        self.formula(
            2,
            (Kind::Sign, "dt_bias"),
            "the bias of dt is taken away",
            on(|s| {
                s.dt_bias.iter_mut().for_each(|b| *b = -*b);
            }),
        );
        self.formula(
            1,
            (Kind::LeftOut, "gate"),
            "the gate of z is missing",
            on(|s| s.gate = None),
        );
        self.formula(
            2,
            (Kind::LeftOut, "input_delta"),
            "B·u enters without δ",
            on(|s| s.input_delta = false),
        );
        self.formula(
            2,
            (Kind::LeftOut, "state"),
            "the outputs have the skip term alone",
            on(|s| s.states.fill(false)),
        );
        self.formula(
            2,
            (Kind::Sign, "D"),
            "the skip term D·u is taken away",
            on(|s| {
                s.d.iter_mut().for_each(|d| *d = -*d);
            }),
        );
    }

    fn functions(&mut self) {
        for gate in Activation::OTHERS {
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
            (Kind::Function, "decay"),
            "decays are 1 − α·δ and not exp(−α·δ)",
            on(|s| s.linear_decay = true),
        );
        for table in Table::all(&[(-8.0, 8.0), (-16.0, 16.0)]) {
            let words = format!("the gate's SiLU is {}", table.name());
            let gate = Some(Activation::Tabled(table));
            self.formula(5, (Kind::Table, "gate"), words, on(move |s| s.gate = gate));
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
            let change = on(move |s| s.decay = Some(table));
            self.formula(5, (Kind::Table, "decay"), words, change);
        }
    }

    fn inputs(&mut self, own: &Scan) {
        for (name, of) in INPUTS {
            for by in moves([1, -1]) {
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
                let words = format!("{name} is turned by one channel ({by:+})");
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
            let words = format!("{name} has a zero point of 1");
            self.formula(
                5,
                (Kind::ZeroPoint, name),
                words,
                on(move |s| of(s).values += 1.0),
            );
            let words = format!("{name} has a zero point of -1");
            self.formula(
                5,
                (Kind::ZeroPoint, name),
                words,
                on(move |s| of(s).values -= 1.0),
            );
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
        // x before the convolution.
        let e = own.u.values.ncols();
        let x = self
            .seen(TracePoint::InProjOut)
            .or(self.seen(TracePoint::InProjX));
        let x = x.map(|tensor| {
            let all = numbers(tensor);
            let codes = matches!(tensor, scalescope_sim::trace::Tensor::I8(_));
            let range = match all.ncols() {
                c if c == 2 * e => 0..e,
                c => 0..c,
            };
            let scale = match (codes, self.scene) {
                (true, Some(scene)) => scene.scale(ScaleUse::ConvIn),
                _ => None,
            };
            Operand::new(all.slice(s![.., range]).to_owned(), scale.unwrap_or(1.0))
        });
        if let Some(x) = x.filter(|x| x.values.dim() == own.u.values.dim()) {
            let as_z = x.clone();
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

    fn states(&mut self, own: &Scan) {
        let n = own.states.len();
        for tile in [
            2usize, 4, 8, 16, 32, 64, 128, 256, 512, 1024, 10, 12, 20, 24, 40, 48, 96,
        ] {
            let words = format!("at every {tile}th token the state is empty again");
            self.formula(
                2,
                (Kind::History, "state"),
                words,
                on(move |s| s.tile = Some(tile)),
            );
        }
        self.formula(
            1,
            (Kind::History, "state"),
            "no state is carried from token to token",
            on(|s| s.carry = 0.0),
        );
        self.formula(
            2,
            (Kind::Order, "state"),
            "outputs read the state before the token",
            on(|s| s.late = true),
        );
        let mut formats = vec![Narrow::F16, Narrow::Bf16];
        if let Some(scale) = own.state_scale {
            formats.extend([
                Narrow::Codes(8, scale),
                Narrow::Codes(4, scale * 127.0 / 7.0),
                Narrow::Codes(4, scale * 16.0),
                Narrow::Codes(16, scale * 127.0 / 32767.0),
            ]);
        }
        for narrow in formats {
            let words = format!("the state is kept in {}", narrow.name());
            self.formula(
                2,
                (Kind::Format, "state"),
                words,
                on(move |s| s.state = Some(narrow)),
            );
        }
        for narrow in [Narrow::F16, Narrow::Bf16] {
            let words = |what: &str| format!("{what} passes through {}", narrow.name());
            self.formula(
                3,
                (Kind::Format, "delta"),
                words("δ"),
                on(move |s| s.narrow_delta = Some(narrow)),
            );
            self.formula(
                3,
                (Kind::Format, "gate"),
                words("the gate"),
                on(move |s| s.narrow_gate = Some(narrow)),
            );
            self.formula(
                3,
                (Kind::Format, "sum"),
                words("the sum over states"),
                on(move |s| s.narrow_sum = Some(narrow)),
            );
            self.formula(
                3,
                (Kind::Format, "D"),
                words("D"),
                on(move |s| s.d.iter_mut().for_each(|d| *d = narrow.of(*d))),
            );
            self.formula(
                3,
                (Kind::Format, "dt_bias"),
                words("the bias of dt"),
                on(move |s| s.dt_bias.iter_mut().for_each(|b| *b = narrow.of(*b))),
            );
        }
        if let Some(scale) = own.state_scale {
            for (words, top) in [
                ("its calibrated range", 127.0 * scale),
                ("half of its calibrated range", 63.5 * scale),
            ] {
                let words = format!("after each token the state is saturated to {words}");
                self.formula(
                    2,
                    (Kind::Overflow, "state"),
                    words,
                    on(move |s| s.state = Some(Narrow::Range(-top, top))),
                );
            }
        }
        // What implementations of Mamba limit δ to.
        for (low, high) in [
            (0.0, 0.1),
            (0.0, 1.0),
            (0.0, 10.0),
            (1e-4, f32::INFINITY),
            (1e-3, f32::INFINITY),
            (1e-2, f32::INFINITY),
            (1e-3, 0.1),
        ] {
            let narrow = Narrow::Range(low, high);
            let words = format!("δ is kept to {}", narrow.name());
            self.formula(
                3,
                (Kind::Overflow, "delta"),
                words,
                on(move |s| s.narrow_delta = Some(narrow)),
            );
        }
        let mut missing: Vec<(String, std::ops::Range<usize>)> = Vec::new();
        for tail in [1usize, 2, 4, 8].into_iter().filter(|t| *t < n) {
            missing.push((
                format!("the last {tail} of {n} states are not summed"),
                n - tail..n,
            ));
            missing.push((
                format!("the first {tail} of {n} states are not summed"),
                0..tail,
            ));
        }
        for (words, range) in missing {
            self.formula(
                2,
                (Kind::PartMissing, "states"),
                words,
                on(move |s| s.states[range.clone()].fill(false)),
            );
        }
        let words = "the state of the sequence before is not reset";
        self.formula(1, (Kind::NotReset, "state"), words, |f, around| {
            let Formula::Scan(scan) = f else { return };
            let state = around
                .before
                .and_then(|seen| seen.get(&TracePoint::SsmState));
            scan.before = state.map(|t| t.to_real());
        });
        let words = "the sequence begins with its own last state";
        self.formula(2, (Kind::NotReset, "state"), words, |f, _| {
            let Formula::Scan(scan) = f else { return };
            let mut first = scan.clone();
            first.last = crate::diagnosis::diagnose::formula::Output::real(false);
            scan.before = first.run().state;
        });
    }

    fn other_parameters(&mut self, own: &Scan) {
        let m = own.math;
        for (layer, scene) in self.other_layers() {
            let (a, d, bias) = scene.path.scan_weight(layer).tensors();
            let real = move |q: &scalescope_sim::quant::QVector| -> Vec<f32> {
                q.codes
                    .iter()
                    .map(|c| (m.mul)(q.scale.get(), f32::from(*c)))
                    .collect()
            };
            let a = Operand::new(a.codes.mapv(f32::from), a.scale.get());
            let (d, bias) = (real(&d), real(&bias));
            let words = format!("A is that of block {layer}");
            self.formula(
                2,
                (Kind::Neighbour, "A"),
                words,
                on(move |s| s.a_log = a.clone()),
            );
            let words = format!("D is that of block {layer}");
            self.formula(
                2,
                (Kind::Neighbour, "D"),
                words,
                on(move |s| s.d = d.clone()),
            );
            let words = format!("the bias of dt is that of block {layer}");
            self.formula(
                2,
                (Kind::Neighbour, "dt_bias"),
                words,
                on(move |s| s.dt_bias = bias.clone()),
            );
        }
        self.formula(
            3,
            (Kind::Neighbour, "D"),
            "each channel has D of the next one",
            on(|s| s.d.rotate_left(1)),
        );
        self.formula(
            3,
            (Kind::Neighbour, "dt_bias"),
            "each channel has the bias of dt of the next one",
            on(|s| s.dt_bias.rotate_left(1)),
        );
        self.formula(
            3,
            (Kind::Order, "A"),
            "the states of A are in reverse",
            on(|s| {
                s.a_log.values = reversed(&s.a_log.values);
            }),
        );
        self.formula(
            3,
            (Kind::Order, "A"),
            "the buffer of A is read transposed",
            on(|s| {
                let (e, n) = s.a_log.values.dim();
                let t: Vec<f32> = s.a_log.values.t().iter().copied().collect();
                s.a_log.values = Array2::from_shape_vec((e, n), t).expect("as many elements");
            }),
        );
        let (d, bias) = (own.d_scale, own.dt_bias_scale);
        self.formula(
            3,
            (Kind::LeftOut, "D scale"),
            "the scale of D is left out",
            on(move |s| {
                s.d.iter_mut().for_each(|v| *v /= d);
            }),
        );
        self.formula(
            3,
            (Kind::LeftOut, "dt_bias scale"),
            "the scale of the bias of dt is left out",
            on(move |s| {
                s.dt_bias.iter_mut().for_each(|v| *v /= bias);
            }),
        );
    }
}
