//! The selective scan.

use super::{
    Activation, BlockInputs, Carried, Conv, Decay, Delta, Hiccup, Made, Math, Measured, Narrow,
    Operand, Output, Running,
};
use ndarray::Array2;
use rayon::prelude::*;
use scalescope_sim::dataflow::Step;
use scalescope_sim::profile::ScanFormula;
use scalescope_sim::quant::{QTensor, QVector, Scale};
use std::sync::Arc;
use unit::Chip;

mod unit;

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
    /// What the convolution's function got, `[L, E]`, where it is known.
    pub before_silu: Option<Arc<Array2<f32>>>,
    /// The unit of a chip, which runs as it is.
    pub unit: Option<Chip>,
    /// E, dequantized.
    pub d: Vec<f32>,
    /// The step of D's codes.
    pub d_scale: f32,
    /// E, dequantized.
    pub dt_bias: Vec<f32>,
    /// The step of the codes of the bias of dt.
    pub dt_bias_scale: f32,
    /// The calibrated step of the state's codes, where there is one.
    pub state_scale: Option<f32>,
    /// Makes δ.
    pub delta: Delta,
    /// What δ is multiplied with.
    pub delta_times: f32,
    /// Whether A_log is α itself.
    pub a_is_log: bool,
    /// Makes decays of α·δ.
    pub decay: Decay,
    /// A type that decays pass through.
    pub narrow_decay: Option<Narrow>,
    /// The logarithm of what decays are powers of, 1 for e.
    pub decay_base: f32,
    /// Whether the bias of dt is added after softplus.
    pub late_bias: bool,
    /// Whether decays are those of the token before.
    pub late_decay: bool,
    /// Whether the input is held over the step, `(1 − exp(−α·δ))/α·B·u`, and not multiplied by δ.
    pub held: bool,
    /// Whether the token's input decays with the state.
    pub input_decays: bool,
    /// Whether D·u is added after the gate.
    pub skip_ungated: bool,
    /// What D is multiplied with in the place of u, `[L, E]`.
    pub skip: Option<Arc<Operand>>,
    /// Whether D is read by the token's number and not by the channel's.
    pub d_by_token: bool,
    /// Whether SiLU is of the output, which z then multiplies.
    pub output_gated: bool,
    /// Whether a channel begins with the last state of the one before.
    pub passed_on: bool,
    /// Whether B enters with δ.
    pub input_delta: bool,
    /// What makes the gate of z; `None` leaves the output ungated.
    pub gate: Option<Activation>,
    /// A gate that was read off a dump, in its place.
    pub measured_gate: Option<Arc<Measured>>,
    /// The state before the first token, `[E, N]`.
    pub before: Option<Array2<f32>>,
    /// Tokens after which the state is empty again.
    pub tile: Option<usize>,
    /// Tokens after which the state of so many tokens before is taken for the last one.
    pub older: Option<(usize, usize)>,
    /// What goes wrong at these tokens of each so many.
    pub hiccup: Option<(usize, usize, Hiccup)>,
    /// A token, a channel and a state to which something is added after the token.
    pub bump: Option<(usize, usize, usize, f32)>,
    /// Tokens of a chunk, and what becomes of the state that one hands on to the next.
    pub chunks: Option<(usize, Carried)>,
    /// A scan whose δ the decays have.
    pub decay_of: Option<Arc<Scan>>,
    /// A scan whose δ the input has.
    pub drive_of: Option<Arc<Scan>>,
    /// A scan whose z the sigmoid of the gate gets, and not the factor.
    pub sigmoid_of: Option<Arc<Scan>>,
    /// A type or range that the state passes through after each token.
    pub state: Option<Narrow>,
    /// A type or range that δ passes through.
    pub narrow_delta: Option<Narrow>,
    /// A type that the gate passes through.
    pub narrow_gate: Option<Narrow>,
    /// A type that outputs pass through before the gate.
    pub narrow_sum: Option<Narrow>,
    /// A type that the sum over states passes through after each of them.
    pub running: Option<Running>,
    /// States that are summed.
    pub states: Vec<bool>,
    /// How much of the state goes on.
    pub carry: f32,
    /// Whether outputs read the state before the token.
    pub late: bool,
    /// Whether the state that is kept is the one before the last token.
    pub kept_early: bool,
    /// Channels that are computed; others are zero.
    pub channels: Option<Vec<bool>>,
    /// How outputs are stored.
    pub output: Output,
    /// How the last state is stored.
    pub last: Output,
}

impl Scan {
    /// The scan of a block makes outputs and a state; both are this formula's.
    pub(super) fn of(scene: &BlockInputs) -> Option<Self> {
        let made = |state: bool| {
            let mut rows = scene.block.of_step(Step::Scan);
            rows.find(|row| !row.weights.is_empty() && row.point.is_state() == state)
        };
        let (row, last) = (made(false)?, made(true)?);
        let rules = scene.rules(row)?.scan;
        let weight = scene.path.scan_weight(scene.layer);
        let (a_log, d, dt_bias) = weight.tensors();
        let [u, dt, b, c, z] = &row.reads[..] else {
            return None;
        };
        // A state that is real in this mode has a calibrated scale too, for an edit that keeps it in codes.
        let calibrated = last.grid().and_then(|by| scene.path.scale(scene.layer, by));
        if d.codes.is_empty() || scene.path.mode().needs_float() {
            return None;
        }
        let reads = [
            scene.operand(u)?,
            scene.operand(dt)?,
            scene.operand(b)?,
            scene.operand(c)?,
            scene.operand(z)?,
        ];
        Some(Self {
            formula: rules.formula,
            before_silu: sums_of_conv(scene).map(Arc::new),
            unit: rules.unit.map(|unit| Chip { unit, calibrated }),
            state_scale: calibrated.map(Scale::get),
            output: scene.output(row, false)?,
            last: scene.output(last, false)?,
            ..Self::new(Math::of(rules.real), reads, &a_log, [&d, &dt_bias])
        })
    }

    /// The scan of what it reads (u, dt, B, C, z) and its parameters (D, the bias of dt), as the prefill kernel has it.
    pub fn new(
        math: Math,
        [u, dt, b, c, z]: [Operand; 5],
        a_log: &QTensor,
        [d, dt_bias]: [&QVector; 2],
    ) -> Self {
        Self {
            math,
            formula: ScanFormula::Fused,
            states: vec![true; a_log.codes.ncols()],
            u,
            dt,
            b,
            c,
            z,
            a_log: Operand::new(a_log.codes.mapv(f32::from), a_log.scale.get()),
            before_silu: None,
            unit: None,
            d: dequantized(math, d),
            d_scale: d.scale.get(),
            dt_bias: dequantized(math, dt_bias),
            dt_bias_scale: dt_bias.scale.get(),
            state_scale: None,
            delta: Delta::Softplus,
            delta_times: 1.0,
            a_is_log: true,
            decay: Decay::Exp,
            narrow_decay: None,
            decay_base: 1.0,
            late_bias: false,
            late_decay: false,
            held: false,
            input_decays: false,
            skip_ungated: false,
            skip: None,
            d_by_token: false,
            output_gated: false,
            passed_on: false,
            input_delta: true,
            gate: Some(Activation::Silu),
            measured_gate: None,
            before: None,
            tile: None,
            older: None,
            hiccup: None,
            bump: None,
            chunks: None,
            decay_of: None,
            drive_of: None,
            sigmoid_of: None,
            state: None,
            narrow_delta: None,
            narrow_gate: None,
            narrow_sum: None,
            running: None,
            carry: 1.0,
            late: false,
            kept_early: false,
            channels: None,
            output: Output::real(true),
            last: Output::real(false),
        }
    }

    /// Outputs `[L, E]` and the last state `[E, N]`.
    pub fn run(&self) -> Made {
        let (l, e) = self.u.values.dim();
        let n = self.a_log.values.ncols();
        if let Some(chip) = &self.unit {
            // What the unit cannot do otherwise explains nothing.
            return self.in_unit(chip).unwrap_or_else(|| Made {
                out: Array2::zeros((0, 0)),
                state: Some(Array2::zeros((0, 0))),
            });
        }
        if self.passed_on {
            return self.one_after_another();
        }
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

    /// Channels one after another, each from the state in which the one before ended.
    fn one_after_another(&self) -> Made {
        let (l, e) = self.u.values.dim();
        let n = self.a_log.values.ncols();
        let (mut y, mut last) = (Array2::zeros((l, e)), Array2::zeros((e, n)));
        let mut x = vec![0.0; n];
        for c in 0..e {
            self.channel(c, &mut x, |t, v| y[(t, c)] = v);
            for (to, x) in last.row_mut(c).iter_mut().zip(&x) {
                *to = self.last.of(*x);
            }
        }
        Made {
            out: y,
            state: Some(last),
        }
    }

    /// Outputs before the gate, as reals; `None` where a chip's unit makes them.
    pub fn before_gate(&self) -> Option<Array2<f32>> {
        let plain = Self {
            gate: None,
            measured_gate: None,
            output: Output::real(false),
            ..self.clone()
        };
        self.unit.is_none().then(|| plain.run().out)
    }

    /// δ of a token and a channel.
    fn delta_at(&self, t: usize, c: usize, fused: bool) -> f32 {
        let m = self.math;
        let (early, late) = match self.late_bias {
            true => (0.0, self.dt_bias[c]),
            false => (self.dt_bias[c], 0.0),
        };
        let dt = match fused {
            true => (m.fma)(self.dt.scale, self.dt.values[(t, c)], early),
            false => (m.add)(self.dt.real(m, (t, c)), early),
        };
        let mut delta = self.delta.of(m, dt);
        if self.late_bias {
            delta += late;
        }
        if self.delta_times != 1.0 {
            delta *= self.delta_times;
        }
        self.narrow_delta.map_or(delta, |narrow| narrow.of(delta))
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
        let mut delta_before = 0.0;
        let rows = self.u.values.nrows();
        let mut kept = x.to_vec();
        // States after the tokens before, the last one's first.
        let mut earlier = vec![vec![0.0; x.len()]; self.older.map_or(0, |(_, back)| back)];
        // The state that the chunk before handed on, and what its decays leave of it; `x` is the chunk's own then.
        let mut handed = vec![(0.0f32, 1.0f32); if self.chunks.is_some() { x.len() } else { 0 }];
        for t in 0..rows {
            if t + 1 == rows {
                kept.copy_from_slice(x);
            }
            if self.tile.is_some_and(|tile| t > 0 && t % tile == 0) {
                x.fill(0.0);
            }
            if let Some((tile, back)) = self.older {
                let own = x.to_vec();
                if t > 0 && t % tile == 0 {
                    x.copy_from_slice(&earlier[back - 1]);
                }
                earlier.rotate_right(1);
                earlier[0] = own;
            }
            if let Some((_, carried)) = self.chunks.filter(|(tile, _)| t > 0 && t % tile == 0) {
                for ((handed, left), x) in handed.iter_mut().zip(x.iter_mut()) {
                    let before = match carried {
                        Carried::Undecayed => *handed,
                        Carried::ReadUndecayed | Carried::OneDecay => *handed * *left,
                        Carried::OwnAlone => 0.0,
                    };
                    (*handed, *left) = (before + std::mem::take(x), 1.0);
                }
            }
            let u = self.u.real(m, (t, c));
            let own = || self.delta_at(t, c, fused);
            let of = |other: &Option<Arc<Scan>>| match other {
                Some(other) => other.delta_at(t, c, fused),
                None => own(),
            };
            let delta = of(&self.decay_of);
            let drive = match (self.input_delta, &self.drive_of, &self.decay_of) {
                (false, ..) => 1.0,
                (true, None, None) => delta,
                (true, other, _) => of(other),
            };
            let hiccup = self.hiccup.filter(|(tile, at, _)| t % tile == *at);
            let hiccup = hiccup.map(|(.., hiccup)| hiccup);
            if hiccup == Some(Hiccup::Zero) {
                x.fill(0.0);
            }
            let own_d = self.d[if self.d_by_token { t % self.d.len() } else { c }];
            let d = match self.skip_ungated || hiccup == Some(Hiccup::NoSkip) {
                true => 0.0,
                false => own_d,
            };
            let skipped = self.skip.as_ref().map_or(u, |x| x.real(m, (t, c)));
            let last = !fused || self.running.is_some_and(|running| !running.skip);
            let mut out = match last {
                false => (m.mul)(d, skipped),
                true => 0.0,
            };
            let decay_delta = match self.late_decay {
                true => std::mem::replace(&mut delta_before, delta),
                false => delta,
            };
            for (n, x) in x.iter_mut().enumerate() {
                let b = self.b.real(m, (t, n));
                let exponent = (m.mul)(alpha[n], decay_delta) * self.decay_base;
                let decay = self.decay.of(m, exponent);
                let decay = self.narrow_decay.map_or(decay, |narrow| narrow.of(decay));
                let decay = match hiccup {
                    Some(Hiccup::NoDecay) => 1.0,
                    Some(Hiccup::DecayTwice) => decay * decay,
                    _ => decay,
                };
                let cs = self.c.real(m, (t, n));
                let before = *x * self.carry;
                let drive = match self.held {
                    true => (1.0 - decay) / alpha[n],
                    false => drive,
                };
                let drive = match hiccup {
                    Some(Hiccup::NoInput | Hiccup::Zero) => 0.0,
                    Some(Hiccup::InputTwice) => 2.0 * drive,
                    _ => drive,
                };
                let next = match fused {
                    _ if self.input_decays => {
                        (m.mul)(decay, (m.add)(before, (m.mul)(b, (m.mul)(drive, u))))
                    }
                    true => (m.fma)(decay, before, (m.mul)(b, (m.mul)(drive, u))),
                    false => {
                        let input = (m.mul)((m.mul)(drive, b), u);
                        (m.add)((m.mul)(decay, before), input)
                    }
                };
                let next = self.state.map_or(next, |narrow| narrow.of(next));
                let next = match self.bump {
                    Some((token, channel, state, by)) if (t, c, n) == (token, channel, state) => {
                        next + by
                    }
                    _ => next,
                };
                let above = match (self.chunks, handed.get_mut(n)) {
                    (Some((_, carried)), Some((handed, left))) => {
                        *left *= decay;
                        match carried {
                            Carried::Undecayed | Carried::ReadUndecayed => *handed,
                            Carried::OneDecay => decay * *handed,
                            Carried::OwnAlone => *left * *handed,
                        }
                    }
                    _ => 0.0,
                };
                let next = if hiccup == Some(Hiccup::Frozen) {
                    *x
                } else {
                    next
                };
                let read = match hiccup {
                    Some(Hiccup::Late) => *x,
                    Some(Hiccup::Empty) => 0.0,
                    _ if self.late => *x,
                    _ if self.chunks.is_some() => next + above,
                    _ => next,
                };
                if self.states[n] {
                    out = match (self.running, fused) {
                        (Some(running), _) => running.add(out, (read, cs)),
                        (None, true) => (m.fma)(read, cs, out),
                        (None, false) => (m.add)(out, (m.mul)(read, cs)),
                    };
                }
                *x = next;
            }
            if last {
                out = (m.add)(out, (m.mul)(skipped, d));
            }
            let z = self.z.real(m, (t, c));
            let out = self.narrow_sum.map_or(out, |narrow| narrow.of(out));
            let sigmoid_of = self.sigmoid_of.as_ref().map(|s| s.z.real(m, (t, c)));
            let y = match (self.gate, self.narrow_gate) {
                _ if sigmoid_of.is_some() => {
                    let other = sigmoid_of.unwrap_or(z);
                    (m.mul)(out, (m.mul)(z, Activation::Sigmoid.of(m, other)))
                }
                _ if self.measured_gate.is_some() => {
                    (m.mul)(out, self.measured_gate.as_ref().map_or(0.0, |f| f.at(z)))
                }
                _ if self.output_gated => (m.mul)(Activation::Silu.of(m, out), z),
                (None, _) => out,
                (Some(gate), Some(narrow)) => (m.mul)(out, narrow.of(gate.of(m, z))),
                (Some(Activation::Silu), None) if fused => {
                    let gated = (m.mul)(out, z);
                    (m.div)(gated, (m.add)(1.0, (m.exp_neg)(z)))
                }
                (Some(gate), None) => (m.mul)(out, gate.of(m, z)),
            };
            let y = match self.skip_ungated {
                true => y + own_d * skipped,
                false => y,
            };
            put(t, self.output.of(y));
        }
        for ((handed, left), x) in handed.into_iter().zip(x.iter_mut()) {
            *x += match self.chunks {
                Some((_, Carried::Undecayed)) => handed,
                _ => handed * left,
            };
        }
        if self.kept_early {
            x.copy_from_slice(&kept);
        }
    }
}

/// The sums of the block's convolution, before its function.
fn sums_of_conv(scene: &BlockInputs) -> Option<Array2<f32>> {
    let mut rows = scene.block.of_step(Step::Conv);
    let row = rows.find(|row| !row.point.is_state())?;
    Conv::of(scene, row)?.before_function()
}

/// The values of codes.
pub fn dequantized(math: Math, codes: &QVector) -> Vec<f32> {
    let scale = codes.scale.get();
    let all = codes.codes.iter();
    all.map(|q| (math.mul)(scale, f32::from(*q))).collect()
}
