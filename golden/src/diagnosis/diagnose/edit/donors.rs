//! Parameters that channels have of other channels, whatever the rule.

use super::{Edit, Edits};
use crate::diagnosis::diagnose::formula::{BlockInputs, Formula, Scan};
use crate::diagnosis::diagnose::kind::Kind;
use ndarray::{Array2, Axis};
use scalescope_sim::dataflow::Row;

/// A parameter of each channel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Part {
    /// The convolution's weight.
    Taps,
    /// Its bias.
    Bias,
    /// The scan's decays.
    A,
    /// Its skip term.
    D,
    /// The bias of dt.
    DtBias,
}

/// Parameters that come from one place, with a site and a name.
pub const PARTS: [(&[Part], &str, &str); 7] = [
    (&[Part::Taps], "weight", "the taps"),
    (&[Part::Bias], "bias", "the bias"),
    (&[Part::Taps, Part::Bias], "weight", "taps and bias"),
    (&[Part::A], "A", "A"),
    (&[Part::D], "D", "D"),
    (&[Part::DtBias], "dt_bias", "the bias of dt"),
    (
        &[Part::A, Part::D, Part::DtBias],
        "A",
        "A, D and the bias of dt",
    ),
];

impl Part {
    /// Whether a formula has it.
    pub fn is_of(self, formula: &Formula) -> bool {
        match self {
            Part::Taps | Part::Bias => matches!(formula, Formula::Conv(_)),
            Part::A | Part::D | Part::DtBias => {
                matches!(formula, Formula::Scan(scan) if scan.unit.is_none())
            }
        }
    }

    /// Gives each channel what channel `of` it has in another formula of the same step.
    pub fn put(self, to: &mut Formula, from: &Formula, of: &[usize]) {
        let vector = |values: &[f32]| of.iter().map(|c| values[*c]).collect();
        match (self, to, from) {
            (Part::Taps, Formula::Conv(to), Formula::Conv(from)) => {
                to.taps = from.taps.select(Axis(1), of);
                if from.tap_scale.len() > 1 {
                    to.tap_scale = vector(&from.tap_scale);
                }
            }
            (Part::Bias, Formula::Conv(to), Formula::Conv(from)) => to.bias = vector(&from.bias),
            (Part::A, Formula::Scan(to), Formula::Scan(from)) => {
                to.a_log.values = from.a_log.values.select(Axis(0), of);
            }
            (Part::D, Formula::Scan(to), Formula::Scan(from)) => to.d = vector(&from.d),
            (Part::DtBias, Formula::Scan(to), Formula::Scan(from)) => {
                to.dt_bias = vector(&from.dt_bias);
            }
            (Part::Taps | Part::Bias | Part::A | Part::D | Part::DtBias, ..) => {}
        }
    }

    /// The first tokens of a channel, with its inputs in every channel's place; parameters are as they were.
    pub fn spread(formula: &Formula, channel: usize, tokens: usize) -> Formula {
        let every = |values: &Array2<f32>| {
            let rows = tokens.min(values.nrows());
            Array2::from_shape_fn((rows, values.ncols()), |(t, _)| values[(t, channel)])
        };
        let mut formula = formula.clone();
        match &mut formula {
            Formula::Conv(conv) => {
                conv.x.values = every(&conv.x.values);
                conv.history = every(&conv.history);
            }
            Formula::Scan(scan) => {
                let inputs: [fn(&mut Scan) -> &mut Array2<f32>; 3] = [
                    |s| &mut s.u.values,
                    |s| &mut s.dt.values,
                    |s| &mut s.z.values,
                ];
                for of in inputs {
                    let values = of(scan);
                    *values = every(values);
                }
            }
            Formula::Add(_)
            | Formula::Norm(_)
            | Formula::Linear(_)
            | Formula::Hadamard(_)
            | Formula::Grids(_)
            | Formula::Requantize(..) => {}
        }
        formula
    }
}

/// Of each channel, whose parameters it has.
pub fn donated<'a>(
    scene: Option<&'a BlockInputs<'a, '_>>,
    row: &'a Row,
    (parts, site, name): (&'static [Part], &str, &str),
    of: Vec<usize>,
) -> Edit {
    let others: Vec<(usize, usize)> = of
        .iter()
        .copied()
        .enumerate()
        .filter(|(c, o)| c != o)
        .collect();
    let some = others.iter().take(4);
    let some: Vec<String> = some.map(|(c, o)| format!("{c} has that of {o}")).collect();
    let more = if others.len() > 4 { ", …" } else { "" };
    let words = format!("{name} of channels are others': {}{more}", some.join(", "));
    // Where none is another's twice they have changed places.
    let mut sorted = of.clone();
    sorted.sort_unstable();
    let kind = match sorted.windows(2).all(|w| w[0] != w[1]) {
        true => Kind::Order,
        false => Kind::Neighbour,
    };
    let mut edits = Edits::new(scene, row, of.len());
    edits.formula(6, (kind, site), words, move |formula, _| {
        let own = formula.clone();
        let channels = match &own {
            Formula::Conv(conv) => conv.taps.ncols(),
            Formula::Scan(scan) => scan.d.len(),
            Formula::Add(_)
            | Formula::Norm(_)
            | Formula::Linear(_)
            | Formula::Hadamard(_)
            | Formula::Grids(_)
            | Formula::Requantize(..) => return,
        };
        if channels == of.len() {
            parts.iter().for_each(|part| part.put(formula, &own, &of));
        }
    });
    edits.all.remove(0)
}
