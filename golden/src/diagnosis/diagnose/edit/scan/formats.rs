//! Types of fewer bits inside the scan.

use super::inputs::INPUTS;
use super::on;
use crate::diagnosis::diagnose::edit::Edits;
use crate::diagnosis::diagnose::formula::{Delta, Narrow, Operand, Running, Scan};
use crate::diagnosis::diagnose::kind::Kind;
use ndarray::Array2;
use scalescope_sim::arith::round::Rounding;

/// A value of a scan that may pass through a type.
type Value = (&'static str, &'static str, fn(&mut Scan, Narrow));

const VALUES: [Value; 3] = [
    ("delta", "δ", |s, narrow| s.narrow_delta = Some(narrow)),
    ("decay", "the decay", |s, narrow| {
        s.narrow_decay = Some(narrow);
    }),
    ("gate", "the gate", |s, narrow| s.narrow_gate = Some(narrow)),
];

impl Edits<'_, '_> {
    pub(super) fn scan_formats(&mut self) {
        for narrow in [Narrow::F16, Narrow::Bf16] {
            let words = |what: &str| format!("{what} passes through {}", narrow.name());
            for (site, name, put) in VALUES {
                let change = on(move |s| put(s, narrow));
                self.formula(3, (Kind::Format, site), words(name), change);
            }
            for (site, of) in INPUTS {
                let change = on(move |s| {
                    let m = s.math;
                    let x = of(s);
                    let real = |at| narrow.of(x.real(m, at));
                    *x = Operand::new(Array2::from_shape_fn(x.values.dim(), real), 1.0);
                });
                self.formula(4, (Kind::Format, site), words(site), change);
            }
            for (site, of) in INPUTS {
                let change = on(move |s| of(s).scale = narrow.of(of(s).scale));
                let words = words(&format!("the scale of {site}"));
                self.formula(5, (Kind::Format, site), words, change);
            }
            let change = on(move |s| s.a_log.scale = narrow.of(s.a_log.scale));
            self.formula(5, (Kind::Format, "A"), words("the scale of A_log"), change);
            let change = on(move |s| s.narrow_sum = Some(narrow));
            self.formula(
                3,
                (Kind::Format, "sum"),
                words("the sum over states"),
                change,
            );
            let change = on(move |s| s.d.iter_mut().for_each(|d| *d = narrow.of(*d)));
            self.formula(3, (Kind::Format, "D"), words("D"), change);
            let change = on(move |s| s.dt_bias.iter_mut().for_each(|b| *b = narrow.of(*b)));
            self.formula(
                3,
                (Kind::Format, "dt_bias"),
                words("the bias of dt"),
                change,
            );
            let words = format!("δ is log(1 + exp) in {}", narrow.name());
            let change = on(move |s| s.delta = Delta::Narrowed(narrow));
            self.formula(3, (Kind::Format, "softplus"), words, change);
            for (products, skip) in [(false, false), (true, false), (false, true), (true, true)] {
                let running = Running {
                    narrow,
                    products,
                    skip,
                };
                let words = format!(
                    "the sum over states{}{} passes through {} after each term",
                    if skip { " and D·u" } else { "" },
                    if products {
                        ", of products that do too,"
                    } else {
                        ""
                    },
                    narrow.name()
                );
                let change = on(move |s| s.running = Some(running));
                self.formula(3, (Kind::Format, "sum"), words, change);
            }
        }
        for bits in 4..=16i8 {
            for rounding in [Rounding::NearestTiesToEven, Rounding::Floor] {
                let narrow = Narrow::Codes(24, f32::from(-bits).exp2(), rounding);
                for (site, name, put) in VALUES {
                    let words = match rounding {
                        Rounding::Floor => {
                            format!("{name} has {bits} bits behind the point, cut off")
                        }
                        _ => format!("{name} has {bits} bits behind the point"),
                    };
                    let change = on(move |s| put(s, narrow));
                    self.formula(4, (Kind::Format, site), words, change);
                }
            }
        }
    }
}
