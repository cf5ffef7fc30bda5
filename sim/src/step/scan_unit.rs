//! The selective scan in a unit as a chip has it: functions from tables, a state of a chosen format,
//! a parallel order of the recurrence. Scalar code, channel by channel; `scan` runs the kernels.
//!
//! A **float** state (f32, f16) has the formula of `exact` (`Fused`) with the unit's functions in
//! place of exp, softplus and SiLU; f16 rounds each stored state.
//!
//! A **fixed-point** state makes the whole scan integer. With F the fraction bits of a value and
//! `step` the state's:
//!
//! | value | F or step | made by |
//! |---|---|---|
//! | dt | softplus's input | `requant(q_dt, s_dt)` + bias, rounded ties to even |
//! | δ | softplus's output (16 if exact) | softplus |
//! | α = exp(A_log) | 12 | offline, ties to even |
//! | a | exp's output (16 if exact) | `exp(−(α·δ >> …))`, ties up |
//! | b | step · 2^-guard | `requant(q_B·(δ·q_u), s_B·s_u·2^-F_δ / step)` |
//! | x | step · 2^-guard | `fit(round(a·x >> F_a) + b)` |
//! | y | s_C · step · 2^-guard | accumulator: `requant(q_D·q_u)`, then `q_C·x`, n ascending |
//! | output | f32 | `f32(y) ⊗ f32(s_C·step) ⊗ silu(z)`, then f16 or FP32 as the mode says |
//!
//! `requant` follows the unit's scaling and rounding. Where u or z is FP32 (modes 2-2 and on) its
//! product is taken in f32 and rounded to the same grid.

use super::scan::{ScanInputs, ScanWeight, Source};
use crate::arith::accumulate::{Accumulated, Accumulator};
use crate::arith::binary16::{from_f16, to_f16};
use crate::arith::fixed::{Requantizer, random};
use crate::arith::function::{Function, Inputs, Unit};
use crate::arith::lfsr::Lfsr;
use crate::arith::real::{Ieee, RealMath};
use crate::arith::requant::QuantRule;
use crate::arith::round::Rounding;
use crate::error::{Result, SimError};
use crate::profile::unit::{ScanUnit, StateFormat, StateScale, UnitOrder};
use crate::quant::Scale;
use ndarray::Array2;
use rayon::prelude::*;
use std::sync::Arc;

/// Fraction bits of α, and of δ and the decay where their function is exact.
const ALPHA_FRACTION: u32 = 12;
const EXACT_FRACTION: u32 = 16;
/// Positions of a state's random bits: state (e, n) starts at `(e·N + n) · 2^20` and steps once a token.
const LANE: u64 = 1 << 20;

/// What a unit scan emits.
#[derive(Clone, Debug)]
pub struct UnitScan {
    /// Gated output, `[L, E]` FP32, before any rounding to f16.
    pub y: Array2<f32>,
    /// State after the last token, `[E, N]` FP32.
    pub state: Array2<f32>,
    /// What its registers and functions saw.
    pub seen: ScanSeen,
}

/// What the registers and functions of a scan saw.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ScanSeen {
    /// The sum over states.
    pub sum: Accumulated,
    /// The state.
    pub state: Accumulated,
    /// Softplus.
    pub softplus: Inputs,
    /// exp.
    pub exp: Inputs,
    /// SiLU of the gate.
    pub silu: Inputs,
}

impl ScanSeen {
    fn plus(mut self, other: Self) -> Self {
        self.sum += other.sum;
        self.state += other.state;
        self.softplus += other.softplus;
        self.exp += other.exp;
        self.silu += other.silu;
        self
    }
}

/// The step of a fixed-point state.
pub fn state_step(format: StateFormat, calibrated: Scale) -> Option<f64> {
    let StateFormat::Fixed {
        register,
        scale,
        headroom,
        ..
    } = format
    else {
        return None;
    };
    let top = (1i64 << (register.bits() - 1)) - 1;
    let step = f64::from(calibrated.get()) * 127.0 / top as f64 * 2f64.powi(headroom.into());
    Some(match scale {
        StateScale::Calibrated => step,
        StateScale::PowerOfTwo => 2f64.powi(step.log2().ceil() as i32),
    })
}

/// Runs a scan in a unit. `calibrated` is the scale of the INT8 state, which a fixed-point format
/// starts from.
///
/// # Errors
///
/// A fixed-point state without a calibrated scale, or with FP32 B or C; factors no integer
/// multiplier has.
pub fn unit_scan(
    unit: &ScanUnit,
    weight: &ScanWeight,
    inputs: &ScanInputs,
    calibrated: Option<Scale>,
) -> Result<UnitScan> {
    let functions = Functions {
        softplus: unit.softplus.unit(Function::Softplus),
        exp: unit.exp.unit(Function::Exp),
        silu: unit.silu.unit(Function::Silu),
    };
    match unit.state {
        StateFormat::F32 | StateFormat::F16 => {
            let half = unit.state == StateFormat::F16;
            Ok(run(unit, weight, inputs, &Float { half, functions }))
        }
        StateFormat::Fixed {
            register, guard, ..
        } => {
            let alu = Fixed::new(unit, register, guard, weight, inputs, calibrated, functions)?;
            Ok(run(unit, weight, inputs, &alu))
        }
    }
}

struct Functions {
    softplus: Option<Arc<Unit>>,
    exp: Option<Arc<Unit>>,
    silu: Option<Arc<Unit>>,
}

/// One channel of the inputs.
struct Channel<'a> {
    inputs: &'a ScanInputs<'a>,
    index: usize,
    skip: f32,
    bias: f32,
}

impl Channel<'_> {
    fn code(source: &Source, row: usize, column: usize) -> Option<i64> {
        match source {
            Source::Int8 { codes, .. } => Some(codes[(row, column)].into()),
            Source::Real(_) => None,
        }
    }

    fn real(source: &Source, row: usize, column: usize) -> f32 {
        match source {
            Source::Int8 { codes, scale } => scale.get() * f32::from(codes[(row, column)]),
            Source::Real(values) => values[(row, column)],
        }
    }
}

/// How a scan's numbers are held.
trait Alu: Sync {
    /// A number.
    type Value: Copy + Send + Sync;

    fn delta(&self, channel: &Channel, t: usize, seen: &mut ScanSeen) -> Self::Value;
    fn alpha(&self, alpha: f32) -> Self::Value;
    fn decay(&self, alpha: Self::Value, delta: Self::Value, seen: &mut ScanSeen) -> Self::Value;
    fn drive(&self, channel: &Channel, t: usize, n: usize, delta: Self::Value) -> Self::Value;
    /// `later` after `earlier`, as decays.
    fn compose(&self, later: Self::Value, earlier: Self::Value) -> Self::Value;
    /// `a·x + b`.
    fn update(
        &self,
        a: Self::Value,
        x: Self::Value,
        b: Self::Value,
        random: u16,
        seen: &mut ScanSeen,
    ) -> Self::Value;
    /// The state of token t as it is kept.
    fn settle(&self, x: Self::Value, t: usize) -> Self::Value;
    fn load(&self, real: f32) -> Self::Value;
    fn store(&self, x: Self::Value) -> f32;
    /// The sum over states before the first.
    fn first(&self, channel: &Channel, t: usize, seen: &mut ScanSeen) -> Self::Value;
    fn accumulate(
        &self,
        sum: Self::Value,
        channel: &Channel,
        t: usize,
        n: usize,
        x: Self::Value,
        seen: &mut ScanSeen,
    ) -> Self::Value;
    /// The gated output.
    fn output(&self, sum: Self::Value, channel: &Channel, t: usize, seen: &mut ScanSeen) -> f32;
}

fn run<A: Alu>(unit: &ScanUnit, weight: &ScanWeight, inputs: &ScanInputs, alu: &A) -> UnitScan {
    let (e, n, l) = (weight.channels(), weight.states(), inputs.rows());
    let channels: Vec<(Vec<f32>, Vec<f32>, ScanSeen)> = (0..e)
        .into_par_iter()
        .map(|index| {
            let (skip, bias) = weight.exact_skip_and_bias(index);
            let channel = Channel {
                inputs,
                index,
                skip,
                bias,
            };
            let alpha = weight.exact_alpha(index);
            let mut seen = ScanSeen::default();
            let deltas: Vec<A::Value> = (0..l).map(|t| alu.delta(&channel, t, &mut seen)).collect();
            let mut sums: Vec<A::Value> =
                (0..l).map(|t| alu.first(&channel, t, &mut seen)).collect();
            let mut states = Vec::with_capacity(n);
            for s in 0..n {
                let alpha = alu.alpha(alpha(s));
                let decays = deltas.iter().map(|d| alu.decay(alpha, *d, &mut seen));
                let decays: Vec<A::Value> = decays.collect();
                let drives = deltas
                    .iter()
                    .enumerate()
                    .map(|(t, d)| alu.drive(&channel, t, s, *d));
                let mut maps: Vec<(A::Value, A::Value)> = decays.into_iter().zip(drives).collect();
                let before = inputs
                    .state
                    .map_or(0.0, |source| Channel::real(&source, index, s));
                let lane = (index * n + s) as u64 * LANE;
                let lfsr = unit.rounding.lfsr().map(|lfsr| lfsr.at(lane));
                let last = recur(
                    alu,
                    unit.order,
                    &mut maps,
                    alu.load(before),
                    lfsr,
                    &mut seen,
                );
                for (t, (_, x)) in maps.iter().enumerate() {
                    sums[t] = alu.accumulate(sums[t], &channel, t, s, *x, &mut seen);
                }
                states.push(alu.store(last));
            }
            let y = sums
                .iter()
                .enumerate()
                .map(|(t, sum)| alu.output(*sum, &channel, t, &mut seen));
            (y.collect(), states, seen)
        })
        .collect();
    UnitScan {
        y: Array2::from_shape_fn((l, e), |(t, c)| channels[c].0[t]),
        state: Array2::from_shape_fn((e, n), |(c, s)| channels[c].1[s]),
        seen: channels
            .iter()
            .map(|c| c.2)
            .fold(ScanSeen::default(), ScanSeen::plus),
    }
}

/// Puts the state after each token in the place of its map's b, and returns the last.
fn recur<A: Alu>(
    alu: &A,
    order: UnitOrder,
    maps: &mut [(A::Value, A::Value)],
    before: A::Value,
    mut lfsr: Option<Lfsr>,
    seen: &mut ScanSeen,
) -> A::Value {
    let mut x = before;
    let block = match order {
        UnitOrder::Sequential => {
            for (t, (a, b)) in maps.iter_mut().enumerate() {
                x = alu.settle(alu.update(*a, x, *b, random(&mut lfsr), seen), t);
                *b = x;
            }
            return x;
        }
        UnitOrder::KoggeStone { width } => width,
        UnitOrder::Chunked { length } => length,
    };
    for block in maps.chunks_mut(block.into()) {
        let mut then = |later: (A::Value, A::Value), earlier: (A::Value, A::Value)| {
            let b = alu.update(later.0, earlier.1, later.1, random(&mut lfsr), seen);
            (alu.compose(later.0, earlier.0), b)
        };
        match order {
            UnitOrder::KoggeStone { .. } => {
                let mut offset = 1;
                while offset < block.len() {
                    for t in (offset..block.len()).rev() {
                        block[t] = then(block[t], block[t - offset]);
                    }
                    offset *= 2;
                }
            }
            _ => {
                for t in 1..block.len() {
                    block[t] = then(block[t], block[t - 1]);
                }
            }
        }
        for (a, b) in block.iter_mut() {
            *b = alu.update(*a, x, *b, random(&mut lfsr), seen);
        }
        x = block.last().expect("chunks are not empty").1;
    }
    x
}

/// f32 throughout, as `Fused`.
struct Float {
    half: bool,
    functions: Functions,
}

impl Alu for Float {
    type Value = f32;

    fn delta(&self, c: &Channel, t: usize, seen: &mut ScanSeen) -> f32 {
        let dt = match &c.inputs.dt {
            Source::Int8 { codes, scale } => {
                Ieee::fma(scale.get(), codes[(t, c.index)].into(), c.bias)
            }
            Source::Real(values) => values[(t, c.index)] + c.bias,
        };
        match &self.functions.softplus {
            None => Ieee::softplus(dt),
            Some(unit) => unit.real(dt.into(), &mut seen.softplus) as f32,
        }
    }

    fn alpha(&self, alpha: f32) -> f32 {
        alpha
    }

    fn decay(&self, alpha: f32, delta: f32, seen: &mut ScanSeen) -> f32 {
        let exponent = alpha * delta;
        match &self.functions.exp {
            None => Ieee::exp_neg(exponent),
            Some(unit) => unit.real(-f64::from(exponent), &mut seen.exp) as f32,
        }
    }

    fn drive(&self, c: &Channel, t: usize, n: usize, delta: f32) -> f32 {
        let u = Channel::real(&c.inputs.u, t, c.index);
        Channel::real(&c.inputs.b, t, n) * (delta * u)
    }

    fn compose(&self, later: f32, earlier: f32) -> f32 {
        later * earlier
    }

    fn update(&self, a: f32, x: f32, b: f32, _: u16, _: &mut ScanSeen) -> f32 {
        let x = Ieee::fma(a, x, b);
        if self.half { from_f16(to_f16(x)) } else { x }
    }

    fn settle(&self, x: f32, _: usize) -> f32 {
        x
    }

    fn load(&self, real: f32) -> f32 {
        real
    }

    fn store(&self, x: f32) -> f32 {
        x
    }

    fn first(&self, c: &Channel, t: usize, _: &mut ScanSeen) -> f32 {
        c.skip * Channel::real(&c.inputs.u, t, c.index)
    }

    fn accumulate(
        &self,
        sum: f32,
        c: &Channel,
        t: usize,
        n: usize,
        x: f32,
        _: &mut ScanSeen,
    ) -> f32 {
        Ieee::fma(x, Channel::real(&c.inputs.c, t, n), sum)
    }

    fn output(&self, sum: f32, c: &Channel, t: usize, seen: &mut ScanSeen) -> f32 {
        gate(sum, c, t, self.functions.silu.as_deref(), None, seen)
    }
}

/// `out · silu(z)`.
fn gate(
    out: f32,
    c: &Channel,
    t: usize,
    silu: Option<&Unit>,
    to_input: Option<&Requantizer>,
    seen: &mut ScanSeen,
) -> f32 {
    let Some(source) = &c.inputs.z else {
        return out;
    };
    let z = Channel::real(source, t, c.index);
    match (silu, to_input, Channel::code(source, t, c.index)) {
        (None, ..) => Ieee::times_sigmoid(out * z, z),
        (Some(unit), Some(to_input), Some(code)) => {
            let x = unit.fit(to_input.integer(code, 0));
            let y = unit.eval(x, &mut seen.silu) as f32;
            out * (y / (1u32 << unit.rule().output_fraction) as f32)
        }
        (Some(unit), ..) => out * unit.real(z.into(), &mut seen.silu) as f32,
    }
}

/// Integers throughout.
struct Fixed {
    functions: Functions,
    /// Of the decay product.
    rounding: Rounding,
    /// Of requantizations, the same unless that is stochastic.
    settling: Rounding,
    register: Accumulator,
    guard: u32,
    every: usize,
    sum: Accumulator,
    delta_fraction: u32,
    decay_fraction: u32,
    /// The real value of one unit of x.
    step: f64,
    /// The real value of one unit of the sum.
    sum_step: f64,
    drive: Requantizer,
    skip: Requantizer,
    /// q_D of each channel.
    d: Vec<i64>,
    to_softplus: Option<Requantizer>,
    to_silu: Option<Requantizer>,
}

impl Fixed {
    fn new(
        unit: &ScanUnit,
        register: Accumulator,
        guard: u8,
        weight: &ScanWeight,
        inputs: &ScanInputs,
        calibrated: Option<Scale>,
        functions: Functions,
    ) -> Result<Self> {
        let needs = |what: &str, found: &str| SimError::value("scan.state", what, found);
        let calibrated = calibrated.ok_or_else(|| {
            needs(
                "a float format, or a model with calibrated scales",
                "a fixed-point format",
            )
        })?;
        for (source, name) in [(&inputs.b, "FP32 B"), (&inputs.c, "FP32 C")] {
            if matches!(source, Source::Real(_)) {
                return Err(needs(
                    "a float format, or a mode whose x_proj emits INT8",
                    name,
                ));
            }
        }
        let guard = if unit.requantize_every > 1 {
            u32::from(guard)
        } else {
            0
        };
        let step = state_step(unit.state, calibrated).expect("a fixed-point format")
            / 2f64.powi(guard as i32);
        let fraction = |unit: &Option<Arc<Unit>>| {
            unit.as_ref()
                .map_or(EXACT_FRACTION, |u| u.rule().output_fraction.into())
        };
        let (delta_fraction, decay_fraction) =
            (fraction(&functions.softplus), fraction(&functions.exp));
        // Random bits are the state's alone; everything else rounds to nearest then.
        let rule = match unit.rounding.lfsr() {
            Some(_) => QuantRule::NEAREST_EVEN,
            None => QuantRule {
                rounding: unit.rounding,
                ..QuantRule::NEAREST_EVEN
            },
        };
        let requant = |factor: f64| Requantizer::new(unit.scaling, factor, rule);
        let to_input =
            |function: &Option<Arc<Unit>>, source: Option<&Source>| match (function, source) {
                (Some(f), Some(source @ Source::Int8 { .. })) => {
                    let unit_of_x = f64::from(1u32 << f.rule().input_fraction);
                    requant(f64::from(source.scale()) * unit_of_x).map(Some)
                }
                _ => Ok(None),
            };
        let to_softplus = to_input(&functions.softplus, Some(&inputs.dt))?;
        let to_silu = to_input(&functions.silu, inputs.z.as_ref())?;
        let u = f64::from(inputs.u.scale());
        let sum_step = f64::from(inputs.c.scale()) * step;
        let one_delta = 2f64.powi(-(delta_fraction as i32));
        let (d, d_scale) = weight.skip_codes();
        Ok(Self {
            functions,
            rounding: unit.rounding,
            settling: rule.rounding,
            register: Accumulator::new(register.bits() + guard as u8, register.overflow())?,
            guard,
            every: unit.requantize_every.into(),
            sum: unit.accumulator,
            delta_fraction,
            decay_fraction,
            step,
            sum_step,
            drive: requant(f64::from(inputs.b.scale()) * u * one_delta / step)?,
            skip: requant(f64::from(d_scale) * u / sum_step)?,
            d,
            to_softplus,
            to_silu,
        })
    }

    /// A real number on a grid of `unit`, ties to even.
    fn on_grid(real: f64, unit: f64) -> i64 {
        (real / unit).round_ties_even() as i64
    }
}

impl Alu for Fixed {
    type Value = i64;

    fn delta(&self, c: &Channel, t: usize, seen: &mut ScanSeen) -> i64 {
        let Some(unit) = &self.functions.softplus else {
            let dt = match &c.inputs.dt {
                Source::Int8 { codes, scale } => {
                    Ieee::fma(scale.get(), codes[(t, c.index)].into(), c.bias)
                }
                Source::Real(values) => values[(t, c.index)] + c.bias,
            };
            return Self::on_grid(
                Ieee::softplus(dt).into(),
                2f64.powi(-(self.delta_fraction as i32)),
            );
        };
        let one = 2f64.powi(-i32::from(unit.rule().input_fraction));
        let x = match (&self.to_softplus, Channel::code(&c.inputs.dt, t, c.index)) {
            (Some(requant), Some(code)) => {
                unit.fit(requant.integer(code, 0) + i128::from(Self::on_grid(c.bias.into(), one)))
            }
            _ => unit.input(f64::from(Channel::real(&c.inputs.dt, t, c.index) + c.bias)),
        };
        unit.eval(x, &mut seen.softplus)
    }

    fn alpha(&self, alpha: f32) -> i64 {
        Self::on_grid(alpha.into(), 2f64.powi(-(ALPHA_FRACTION as i32)))
    }

    fn decay(&self, alpha: i64, delta: i64, seen: &mut ScanSeen) -> i64 {
        let exponent = i128::from(alpha) * i128::from(delta);
        let fraction = ALPHA_FRACTION + self.delta_fraction;
        match &self.functions.exp {
            None => {
                let real = exponent as f64 * 2f64.powi(-(fraction as i32));
                let one = 2f64.powi(-(self.decay_fraction as i32));
                Self::on_grid(Ieee::exp(-real as f32).into(), one)
            }
            // An input has 24 bits at most, 12 fewer than α·δ.
            Some(unit) => {
                let shift = fraction - u32::from(unit.rule().input_fraction).min(fraction);
                let x = Rounding::NearestTiesUp.shift(-exponent, shift, 0);
                unit.eval(unit.fit(x), &mut seen.exp)
            }
        }
    }

    fn drive(&self, c: &Channel, t: usize, n: usize, delta: i64) -> i64 {
        let b = Channel::code(&c.inputs.b, t, n).expect("checked in `new`");
        let integer = match Channel::code(&c.inputs.u, t, c.index) {
            Some(u) => self.drive.integer(b * (delta * u), 0),
            None => {
                let delta = delta as f32 * 2f32.powi(-(self.delta_fraction as i32));
                let u = Channel::real(&c.inputs.u, t, c.index);
                let v = Channel::real(&c.inputs.b, t, n) * (delta * u);
                (v / self.step as f32).round_ties_even() as i128
            }
        };
        // Far beyond any register: the update makes it fit.
        integer.clamp(-(1 << 60), 1 << 60) as i64
    }

    fn compose(&self, later: i64, earlier: i64) -> i64 {
        Rounding::NearestTiesUp.shift(
            i128::from(later) * i128::from(earlier),
            self.decay_fraction,
            0,
        ) as i64
    }

    fn update(&self, a: i64, x: i64, b: i64, random: u16, seen: &mut ScanSeen) -> i64 {
        let product = i128::from(a) * i128::from(x);
        let kept = self.rounding.shift(product, self.decay_fraction, random) as i64;
        let (x, beyond) = self.register.add(kept, b);
        seen.state.see(x, beyond);
        x
    }

    fn settle(&self, x: i64, t: usize) -> i64 {
        if self.guard == 0 || !(t + 1).is_multiple_of(self.every) {
            return x;
        }
        let rounded = self.settling.shift(x.into(), self.guard, 0) as i64;
        self.register.add(0, rounded << self.guard).0
    }

    fn load(&self, real: f32) -> i64 {
        self.register
            .add(0, Self::on_grid(real.into(), self.step))
            .0
    }

    fn store(&self, x: i64) -> f32 {
        (x as f64 * self.step) as f32
    }

    fn first(&self, c: &Channel, t: usize, seen: &mut ScanSeen) -> i64 {
        let integer = match Channel::code(&c.inputs.u, t, c.index) {
            Some(u) => self.skip.integer(self.d[c.index] * u, 0),
            None => {
                let v = c.skip * Channel::real(&c.inputs.u, t, c.index);
                (v / self.sum_step as f32).round_ties_even() as i128
            }
        };
        let (sum, beyond) = self.sum.add(0, integer.clamp(-(1 << 60), 1 << 60) as i64);
        seen.sum.see(sum, beyond);
        sum
    }

    fn accumulate(
        &self,
        sum: i64,
        c: &Channel,
        t: usize,
        n: usize,
        x: i64,
        seen: &mut ScanSeen,
    ) -> i64 {
        let code = Channel::code(&c.inputs.c, t, n).expect("checked in `new`");
        let (sum, beyond) = self.sum.add(sum, code * x);
        seen.sum.see(sum, beyond);
        sum
    }

    fn output(&self, sum: i64, c: &Channel, t: usize, seen: &mut ScanSeen) -> f32 {
        seen.sum.sums += 1;
        let out = sum as f32 * self.sum_step as f32;
        gate(
            out,
            c,
            t,
            self.functions.silu.as_deref(),
            self.to_silu.as_ref(),
            seen,
        )
    }
}
