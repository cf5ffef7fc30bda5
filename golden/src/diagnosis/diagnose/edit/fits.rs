//! Numbers of a formula that may have any factor, which is fitted to what deviates.

use super::{Edit, Edits};
use crate::diagnosis::diagnose::formula::{Activation, BlockInputs, Formula};
use crate::diagnosis::diagnose::kind::Kind;
use scalescope_sim::dataflow::Row;

/// A number that may have any factor.
#[derive(Clone, Copy)]
pub struct Fit {
    kind: Kind,
    site: &'static str,
    name: &'static str,
    put: fn(&mut Formula, f32),
}

const fn factor(site: &'static str, name: &'static str, put: fn(&mut Formula, f32)) -> Fit {
    Fit {
        kind: Kind::Factor,
        site,
        name,
        put,
    }
}

const SCAN: [Fit; 7] = [
    factor("D", "D", |f, by| {
        if let Formula::Scan(s) = f {
            s.d.iter_mut().for_each(|d| *d *= by);
        }
    }),
    factor("dt_bias", "the bias of dt", |f, by| {
        if let Formula::Scan(s) = f {
            s.dt_bias.iter_mut().for_each(|b| *b *= by);
        }
    }),
    factor("A", "A", |f, by| {
        if let Formula::Scan(s) = f {
            s.decay_base *= by;
        }
    }),
    factor("input_delta", "B·δ·u", |f, by| {
        if let Formula::Scan(s) = f {
            s.b.scale *= by;
        }
    }),
    factor("state", "the state that is carried on", |f, by| {
        if let Formula::Scan(s) = f {
            s.carry *= by;
        }
    }),
    Fit {
        kind: Kind::Function,
        site: "gate",
        name: "what the gate's sigmoid gets",
        put: |f, by| {
            if let Formula::Scan(s) = f {
                s.gate = Some(Activation::SiluOf(by));
            }
        },
    },
    Fit {
        kind: Kind::Function,
        site: "delta",
        name: "δ",
        put: |f, by| {
            if let Formula::Scan(s) = f {
                s.delta_times *= by;
            }
        },
    },
];

const CONV: [Fit; 2] = [
    factor("bias", "the bias", |f, by| {
        if let Formula::Conv(c) = f {
            c.bias.iter_mut().for_each(|b| *b *= by);
        }
    }),
    Fit {
        kind: Kind::Function,
        site: "SiLU",
        name: "what SiLU's sigmoid gets",
        put: |f, by| {
            if let Formula::Conv(c) = f {
                c.activation = Activation::SiluOf(by);
            }
        },
    },
];

const NORM: [Fit; 2] = [
    Fit {
        kind: Kind::Constant,
        site: "eps",
        name: "ε",
        put: |f, by| {
            if let Formula::Norm(n) = f {
                n.eps *= f64::from(by);
            }
        },
    },
    Fit {
        kind: Kind::Constant,
        site: "mean",
        name: "the mean square",
        put: |f, by| {
            if let Formula::Norm(n) = f {
                n.mean_of *= f64::from(by);
            }
        },
    },
];

/// The numbers of a formula that may have any factor.
pub fn fits(formula: &Formula) -> &'static [Fit] {
    match formula {
        Formula::Scan(_) => &SCAN,
        Formula::Conv(_) => &CONV,
        Formula::Norm(_) => &NORM,
        // Their scales are searched with every factor.
        Formula::Add(_)
        | Formula::Linear(_)
        | Formula::Hadamard(_)
        | Formula::Grids(_)
        | Formula::Requantize(..) => &[],
    }
}

/// The edit of a factor.
pub fn fit<'a>(
    scene: Option<&'a BlockInputs<'a, '_>>,
    row: &'a Row,
    fit: Fit,
    factor: f32,
) -> Edit {
    let mut edits = Edits::new(scene, row, 0);
    let words = format!("{} is multiplied by {factor}", fit.name);
    edits.formula(7, (fit.kind, fit.site), words, move |f, _| {
        (fit.put)(f, factor)
    });
    edits.all.remove(0)
}
