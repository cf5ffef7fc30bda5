//! The selective scan.

use super::{Activation, Made, Math, Narrow, Operand, Output, Quantize, Scene};
use ndarray::Array2;
use rayon::prelude::*;
use scalescope_sim::dataflow::{Columns, Format, Row};
use scalescope_sim::plan::ScaleUse;
use scalescope_sim::profile::ScanFormula;
use scalescope_sim::trace::TracePoint;

/// What makes δ of dt.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs)] // `name` says what each is
pub enum Step {
    Softplus,
    SoftplusTwice,
    Exp,
    Relu,
    Identity,
    Sigmoid,
    Magnitude,
}

impl Step {
    /// Those that are not softplus.
    pub const OTHERS: [Step; 6] = [
        Step::SoftplusTwice,
        Step::Exp,
        Step::Relu,
        Step::Identity,
        Step::Sigmoid,
        Step::Magnitude,
    ];

    /// In words.
    pub fn name(self) -> &'static str {
        match self {
            Step::Softplus => "softplus",
            Step::SoftplusTwice => "softplus twice",
            Step::Exp => "exp",
            Step::Relu => "ReLU",
            Step::Identity => "no function",
            Step::Sigmoid => "the sigmoid",
            Step::Magnitude => "the magnitude",
        }
    }

    fn of(self, m: Math, v: f32) -> f32 {
        match self {
            Step::Softplus => (m.softplus)(v),
            Step::SoftplusTwice => (m.softplus)((m.softplus)(v)),
            Step::Exp => (m.exp)(v),
            Step::Relu => v.max(0.0),
            Step::Identity => v,
            Step::Sigmoid => Activation::Sigmoid.of(m, v),
            Step::Magnitude => v.abs(),
        }
    }
}

/// `x ← exp(−α·δ)·x + B·δ·u`, `y = (C·x + D·u) · gate(z)`.
#[derive(Clone, Debug)]
pub struct Scan {
    /// Operations.
    pub math: Math,
    /// How they are grouped.
    pub formula: ScanFormula,
    /// `[L, E]`.
    pub u: Operand,
    /// `[L, E]`.
    pub dt: Operand,
    /// `[L, N]`.
    pub b: Operand,
    /// `[L, N]`.
    pub c: Operand,
    /// `[L, E]`.
    pub z: Operand,
    /// `[E, N]`.
    pub a_log: Operand,
    /// E, dequantized.
    pub d: Vec<f32>,
    /// E, dequantized.
    pub dt_bias: Vec<f32>,
    /// Makes δ.
    pub delta: Step,
    /// Whether A_log is α itself.
    pub a_is_log: bool,
    /// Decays are 1 − α·δ and not exp.
    pub linear_decay: bool,
    /// Whether B enters with δ.
    pub input_delta: bool,
    /// What makes the gate of z; `None` leaves the output ungated.
    pub gate: Option<Activation>,
    /// The state before the first token, `[E, N]`.
    pub before: Option<Array2<f32>>,
    /// Tokens after which the state is empty again.
    pub tile: Option<usize>,
    /// A type that the state passes through after each token.
    pub state: Option<Narrow>,
    /// A type that δ passes through.
    pub narrow_delta: Option<Narrow>,
    /// States that are summed.
    pub states: Vec<bool>,
    /// How much of the state goes on.
    pub carry: f32,
    /// Whether outputs read the state before the token.
    pub late: bool,
    /// Channels that are computed; others are zero.
    pub channels: Option<Vec<bool>>,
    /// How outputs are stored.
    pub output: Output,
    /// How the last state is stored.
    pub last: Output,
}

impl Scan {
    pub(super) fn of(scene: &Scene, row: &Row) -> Option<Self> {
        let rules = scene.rules(row)?.scan;
        if rules.unit.is_some() {
            return None;
        }
        let weight = scene.path.scan_weight(scene.layer);
        let (a_log, d, dt_bias) = weight.tensors();
        let at = |by: Option<ScaleUse>, columns: Columns, points: &[TracePoint]| {
            let read = row.reads.iter().find(|read| {
                read.point().is_some_and(|p| points.contains(&p))
                    && (read.columns == columns)
                    && (by.is_none() || read.scale.is_none() || read.scale == by)
            })?;
            scene.operand(read)
        };
        use TracePoint as P;
        let u = at(
            Some(ScaleUse::ScanU),
            Columns::All,
            &[P::SsmU, P::ConvOut, P::ConvOutF32],
        )?;
        let dt = at(None, Columns::All, &[P::DtProjOut])?;
        let bc = [P::XProjOut, P::SsmBc];
        let z = at(None, Columns::Z, &[P::InProjOut])
            .or_else(|| at(None, Columns::All, &[P::InProjZ]))?;
        let state_row = scene.block.row(P::SsmState)?;
        let last = match state_row.format {
            Format::Int8(by) => Output {
                quantizer: Some(Quantize {
                    scale: scene.scale(by)?,
                    rule: rules.state,
                    in_units: false,
                    zero_point: 0.0,
                    bits: 8,
                }),
                ..Output::real(false)
            },
            _ => Output::real(false),
        };
        let math = Math::of(rules.real);
        let dequantized = |q: &scalescope_sim::quant::QVector| -> Vec<f32> {
            let codes = q.codes.iter();
            codes
                .map(|c| (math.mul)(q.scale.get(), f32::from(*c)))
                .collect()
        };
        if d.codes.is_empty() || scene.path.mode().needs_float() {
            return None;
        }
        Some(Self {
            math,
            formula: rules.formula,
            states: vec![true; a_log.codes.ncols()],
            u,
            dt,
            b: at(None, Columns::B, &bc)?,
            c: at(None, Columns::C, &bc)?,
            z,
            a_log: Operand {
                values: a_log.codes.mapv(f32::from),
                scale: a_log.scale.get(),
            },
            d: dequantized(&d),
            dt_bias: dequantized(&dt_bias),
            delta: Step::Softplus,
            a_is_log: true,
            linear_decay: false,
            input_delta: true,
            gate: Some(Activation::Silu),
            before: None,
            tile: None,
            state: None,
            narrow_delta: None,
            carry: 1.0,
            late: false,
            channels: None,
            output: Output::real(row.format == Format::F16),
            last,
        })
    }

    /// Outputs `[L, E]` and the last state `[E, N]`.
    pub fn run(&self) -> Made {
        let (l, e) = self.u.values.dim();
        let n = self.a_log.values.ncols();
        // Channel by channel, each a row.
        let (mut y, mut last) = (Array2::zeros((e, l)), Array2::zeros((e, n)));
        let rows = y.as_slice_mut().expect("fresh").par_chunks_mut(l.max(1));
        let lasts = last.as_slice_mut().expect("fresh").par_chunks_mut(n.max(1));
        rows.zip(lasts)
            .enumerate()
            .filter(|(c, _)| self.channels.as_ref().is_none_or(|used| used[*c]))
            .for_each(|(c, (y, last))| {
                let mut x = match &self.before {
                    Some(before) => before.row(c).to_vec(),
                    None => vec![0.0; n],
                };
                self.channel(c, &mut x, |t, v| y[t] = v);
                last.iter_mut()
                    .zip(&x)
                    .for_each(|(to, x)| *to = self.last.of(*x));
            });
        Made {
            out: y.reversed_axes().as_standard_layout().into_owned(),
            state: Some(last),
        }
    }

    fn channel(&self, c: usize, x: &mut [f32], mut put: impl FnMut(usize, f32)) {
        let m = self.math;
        let alpha: Vec<f32> = (0..x.len())
            .map(|n| {
                let a = self.a_log.real(m, (c, n));
                if self.a_is_log { (m.exp)(a) } else { a }
            })
            .collect();
        let fused = self.formula != ScanFormula::Separate;
        for t in 0..self.u.values.nrows() {
            if self.tile.is_some_and(|tile| t > 0 && t % tile == 0) {
                x.fill(0.0);
            }
            let u = self.u.real(m, (t, c));
            let dt = match fused {
                true => (m.fma)(self.dt.scale, self.dt.values[(t, c)], self.dt_bias[c]),
                false => (m.add)(self.dt.real(m, (t, c)), self.dt_bias[c]),
            };
            let mut delta = self.delta.of(m, dt);
            if let Some(narrow) = self.narrow_delta {
                delta = narrow.of(delta);
            }
            let drive = if self.input_delta { delta } else { 1.0 };
            let mut out = match fused {
                true => (m.mul)(self.d[c], u),
                false => 0.0,
            };
            for (n, x) in x.iter_mut().enumerate() {
                let b = self.b.real(m, (t, n));
                let decay = match self.linear_decay {
                    true => 1.0 - alpha[n] * delta,
                    false => (m.exp_neg)((m.mul)(alpha[n], delta)),
                };
                let cs = self.c.real(m, (t, n));
                let before = *x * self.carry;
                let next = match fused {
                    true => (m.fma)(decay, before, (m.mul)(b, (m.mul)(drive, u))),
                    false => {
                        let input = (m.mul)((m.mul)(drive, b), u);
                        (m.add)((m.mul)(decay, before), input)
                    }
                };
                let next = self.state.map_or(next, |narrow| narrow.of(next));
                let read = if self.late { *x } else { next };
                if self.states[n] {
                    out = match fused {
                        true => (m.fma)(read, cs, out),
                        false => (m.add)(out, (m.mul)(read, cs)),
                    };
                }
                *x = next;
            }
            if !fused {
                out = (m.add)(out, (m.mul)(u, self.d[c]));
            }
            let z = self.z.real(m, (t, c));
            let y = match self.gate {
                None => out,
                Some(Activation::Silu) if fused => {
                    let gated = (m.mul)(out, z);
                    (m.div)(gated, (m.add)(1.0, (m.exp_neg)(z)))
                }
                Some(gate) => (m.mul)(out, gate.of(m, z)),
            };
            put(t, self.output.of(y));
        }
    }
}
