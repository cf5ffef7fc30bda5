//! The selective scan in a unit as a chip has it: functions from tables, a state of a chosen format,
//! a parallel order of the recurrence. Scalar code, channel by channel; `scan` runs the kernels.
//! `scan_unit/float` and `scan_unit/fixed` hold the numbers.
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
//! A state of zeros (its calibrated scale is the least one) has a step of which D·u fits into y.
//!
//! `requant` follows the unit's scaling and rounding. Where u or z is FP32 (modes 2-2 and on) its
//! product is taken in f32 and rounded to the same grid.

mod fixed;
mod float;

use super::scan::{ScanInputs, ScanWeight, Source};
use crate::arith::accumulate::Accumulated;
use crate::arith::fixed::{FixedFactor, Requantizer, random};
use crate::arith::function::{Function, FunctionUnit, Inputs};
use crate::arith::lfsr::Lfsr;
use crate::arith::real::{Ieee, RealMath};
use crate::arith::round::up_to_power_of_two;
use crate::error::Result;
use crate::isa::{Kernel, dispatch};
use crate::profile::unit::{ScanUnit, ScanUnitOrder, StateFormat, StateScale};
use crate::quant::Scale;
use fixed::Fixed;
use float::Float;
use ndarray::Array2;
use rayon::prelude::*;
use std::sync::Arc;

/// Positions of a state's random bits: state (e, n) starts at `(e·N + n) · 2^20` and steps once a token.
const LANE: u64 = 1 << 20;

/// What a unit scan emits.
#[derive(Clone, Debug)]
pub struct ScanUnitResult {
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
        StateScale::PowerOfTwo => up_to_power_of_two(step),
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
) -> Result<ScanUnitResult> {
    let functions = Functions::of(unit);
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

/// What hardware with a fixed-point state keeps of the weights and scales of a scan.
#[derive(Clone, Debug, PartialEq)]
pub struct Constants {
    /// Integer factors by what they lead to: `drive_` (δ·u·B to the state), `skip_` (D·u to the sum),
    /// `softplus_` (dt to its input), `silu_` (z to its input). Those of f32 scaling and of exact functions
    /// are left out.
    pub factors: Vec<(&'static str, FixedFactor)>,
    /// −A, `[E, N]`, in units of 2^-12.
    pub alpha: Array2<i64>,
    /// dt's bias, E, in units of softplus's input.
    pub bias: Vec<i64>,
    /// The real value of one unit of the state.
    pub state_step: f64,
    /// The real value of one unit of the sum.
    pub sum_step: f32,
}

/// The constants of a scan; `None` where the state is a float.
///
/// # Errors
///
/// As [`unit_scan`].
pub fn constants(
    unit: &ScanUnit,
    weight: &ScanWeight,
    inputs: &ScanInputs,
    calibrated: Option<Scale>,
) -> Result<Option<Constants>> {
    let StateFormat::Fixed {
        register, guard, ..
    } = unit.state
    else {
        return Ok(None);
    };
    let functions = Functions::of(unit);
    let alu = Fixed::new(unit, register, guard, weight, inputs, calibrated, functions)?;
    Ok(Some(alu.constants(weight, inputs)))
}

struct Functions {
    softplus: Option<Arc<FunctionUnit>>,
    exp: Option<Arc<FunctionUnit>>,
    silu: Option<Arc<FunctionUnit>>,
}

impl Functions {
    fn of(unit: &ScanUnit) -> Self {
        Self {
            softplus: unit.softplus.unit(Function::Softplus),
            exp: unit.exp.unit(Function::Exp),
            silu: unit.silu.unit(Function::Silu),
        }
    }
}

/// An input over the tokens of a call.
struct Column {
    /// Codes; empty where the input is FP32.
    codes: Vec<i8>,
    /// Real values.
    reals: Vec<f32>,
}

impl Column {
    fn of(source: &Source, column: usize) -> Self {
        match source {
            Source::Int8 { codes, scale } => {
                let codes = codes.column(column).to_vec();
                Self {
                    reals: (codes.iter())
                        .map(|code| scale.get() * f32::from(*code))
                        .collect(),
                    codes,
                }
            }
            Source::Real(values) => Self {
                codes: Vec::new(),
                reals: values.column(column).to_vec(),
            },
        }
    }

    #[inline(always)]
    fn code(&self, t: usize) -> Option<i64> {
        self.codes.get(t).map(|code| i64::from(*code))
    }

    #[inline(always)]
    fn real(&self, t: usize) -> f32 {
        self.reals[t]
    }
}

/// Values of dt that a channel has, each once: what depends on them alone is computed so often.
struct Distinct {
    /// A token of each value, and how many have it.
    of: Vec<(usize, u64)>,
    /// The place in `of` of each token's value.
    places: Vec<usize>,
}

impl Distinct {
    /// Codes repeat; FP32 values are taken as if they did not.
    fn of(dt: &Column) -> Self {
        let mut places_of_codes = [None; 256];
        let mut of = Vec::new();
        let places = (0..dt.reals.len()).map(|t| {
            let mut new = || {
                of.push((t, 0));
                of.len() - 1
            };
            let place = match dt.codes.get(t) {
                Some(code) => *places_of_codes[usize::from(*code as u8)].get_or_insert_with(new),
                None => new(),
            };
            of[place].1 += 1;
            place
        });
        Self {
            places: places.collect(),
            of,
        }
    }
}

/// One channel of the inputs.
struct Channel {
    index: usize,
    skip: f32,
    bias: f32,
    u: Column,
    dt: Column,
    /// The scale of dt's codes.
    dt_scale: f32,
    z: Option<Column>,
}

impl Channel {
    fn of(inputs: &ScanInputs, weight: &ScanWeight, index: usize) -> Self {
        let (skip, bias) = weight.exact_skip_and_bias(index);
        Self {
            index,
            skip,
            bias,
            u: Column::of(&inputs.u, index),
            dt: Column::of(&inputs.dt, index),
            dt_scale: inputs.dt.scale(),
            z: inputs.z.as_ref().map(|z| Column::of(z, index)),
        }
    }

    /// dt with its bias.
    #[inline(always)]
    fn biased_dt(&self, t: usize) -> f32 {
        match self.dt.code(t) {
            Some(code) => Ieee::fma(self.dt_scale, code as f32, self.bias),
            None => self.dt.real(t) + self.bias,
        }
    }
}

/// B and C of one state.
struct StateBc {
    b: Column,
    c: Column,
}

/// How a scan's numbers are held.
trait Alu: Sync {
    /// A number.
    type Value: Copy + Default + Send + Sync;

    fn delta(&self, channel: &Channel, t: usize, seen: &mut ScanSeen) -> Self::Value;
    fn alpha(&self, alpha: f32) -> Self::Value;
    fn decay(&self, alpha: Self::Value, delta: Self::Value, seen: &mut ScanSeen) -> Self::Value;
    fn drive(&self, channel: &Channel, bc: &StateBc, t: usize, delta: Self::Value) -> Self::Value;
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
        bc: &StateBc,
        t: usize,
        x: Self::Value,
        seen: &mut ScanSeen,
    ) -> Self::Value;
    /// The gated output.
    fn output(&self, sum: Self::Value, channel: &Channel, t: usize, seen: &mut ScanSeen) -> f32;
}

fn run<A: Alu>(
    unit: &ScanUnit,
    weight: &ScanWeight,
    inputs: &ScanInputs,
    alu: &A,
) -> ScanUnitResult {
    let (e, n, l) = (weight.channels(), weight.states(), inputs.rows());
    let bc: Vec<StateBc> = (0..n)
        .map(|s| StateBc {
            b: Column::of(&inputs.b, s),
            c: Column::of(&inputs.c, s),
        })
        .collect();
    let channels: Vec<Scanned> = (0..e)
        .into_par_iter()
        .map(|index| {
            dispatch(ChannelScan {
                unit,
                weight,
                state: inputs.state.as_ref(),
                bc: &bc,
                channel: Channel::of(inputs, weight, index),
                alu,
            })
        })
        .collect();
    ScanUnitResult {
        y: Array2::from_shape_fn((l, e), |(t, c)| channels[c].y[t]),
        state: Array2::from_shape_fn((e, n), |(c, s)| channels[c].states[s]),
        seen: channels
            .iter()
            .map(|c| c.seen)
            .fold(ScanSeen::default(), ScanSeen::plus),
    }
}

/// What a channel emits.
struct Scanned {
    /// Over the tokens.
    y: Vec<f32>,
    /// After the last token.
    states: Vec<f32>,
    seen: ScanSeen,
}

/// The scan of one channel.
struct ChannelScan<'a, A> {
    unit: &'a ScanUnit,
    weight: &'a ScanWeight,
    /// The state before the first token.
    state: Option<&'a Source<'a>>,
    bc: &'a [StateBc],
    channel: Channel,
    alu: &'a A,
}

impl<A: Alu> Kernel for ChannelScan<'_, A> {
    type Output = Scanned;

    #[inline(always)]
    fn run(self) -> Scanned {
        let Self { alu, channel, .. } = self;
        let (n, l) = (self.bc.len(), channel.u.reals.len());
        let alpha = self.weight.exact_alpha(channel.index);
        let distinct = Distinct::of(&channel.dt);
        let mut seen = ScanSeen::default();
        let mut deltas = Vec::with_capacity(distinct.of.len());
        for (t, count) in &distinct.of {
            let mut one = ScanSeen::default();
            deltas.push(alu.delta(&channel, *t, &mut one));
            seen.softplus += one.softplus.repeated(*count);
        }
        let mut decays = vec![A::Value::default(); deltas.len()];
        let mut sums = vec![A::Value::default(); l];
        for (t, sum) in sums.iter_mut().enumerate() {
            *sum = alu.first(&channel, t, &mut seen);
        }
        let mut states = Vec::with_capacity(n);
        // a and b of each token; b's place takes the state after the token.
        let mut maps = vec![(A::Value::default(), A::Value::default()); l];
        for (s, bc) in self.bc.iter().enumerate() {
            let alpha = alu.alpha(alpha(s));
            for ((decay, delta), (_, count)) in decays.iter_mut().zip(&deltas).zip(&distinct.of) {
                let mut one = ScanSeen::default();
                *decay = alu.decay(alpha, *delta, &mut one);
                seen.exp += one.exp.repeated(*count);
            }
            for (t, (map, place)) in maps.iter_mut().zip(&distinct.places).enumerate() {
                *map = (decays[*place], alu.drive(&channel, bc, t, deltas[*place]));
            }
            let before = self.state.map_or(0.0, |source| match source {
                Source::Int8 { codes, scale } => scale.get() * f32::from(codes[(channel.index, s)]),
                Source::Real(values) => values[(channel.index, s)],
            });
            let position = (channel.index * n + s) as u64 * LANE;
            let lfsr = self.unit.rounding.lfsr().map(|lfsr| lfsr.at(position));
            let before = alu.load(before);
            let last = recur(alu, self.unit.order, &mut maps, before, lfsr, &mut seen);
            for (t, (sum, (_, x))) in sums.iter_mut().zip(&maps).enumerate() {
                *sum = alu.accumulate(*sum, bc, t, *x, &mut seen);
            }
            states.push(alu.store(last));
        }
        let mut y = vec![0.0; l];
        for (t, (y, sum)) in y.iter_mut().zip(&sums).enumerate() {
            *y = alu.output(*sum, &channel, t, &mut seen);
        }
        Scanned { y, states, seen }
    }
}

/// Puts the state after each token in the place of its map's b, and returns the last.
#[inline(always)]
fn recur<A: Alu>(
    alu: &A,
    order: ScanUnitOrder,
    maps: &mut [(A::Value, A::Value)],
    before: A::Value,
    mut lfsr: Option<Lfsr>,
    seen: &mut ScanSeen,
) -> A::Value {
    let mut x = before;
    let block = match order {
        ScanUnitOrder::Sequential => {
            for (t, (a, b)) in maps.iter_mut().enumerate() {
                x = alu.settle(alu.update(*a, x, *b, random(&mut lfsr), seen), t);
                *b = x;
            }
            return x;
        }
        ScanUnitOrder::KoggeStone { width } => width,
        ScanUnitOrder::Chunked { length } => length,
    };
    for block in maps.chunks_mut(block.into()) {
        let mut then = |later: (A::Value, A::Value), earlier: (A::Value, A::Value)| {
            let b = alu.update(later.0, earlier.1, later.1, random(&mut lfsr), seen);
            (alu.compose(later.0, earlier.0), b)
        };
        match order {
            ScanUnitOrder::KoggeStone { .. } => {
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

/// `out · silu(z)`.
#[inline(always)]
fn gate(
    out: f32,
    c: &Channel,
    t: usize,
    silu: Option<&FunctionUnit>,
    to_input: Option<&Requantizer>,
    seen: &mut ScanSeen,
) -> f32 {
    let Some(source) = &c.z else {
        return out;
    };
    let z = source.real(t);
    match (silu, to_input, source.code(t)) {
        (None, ..) => Ieee::times_sigmoid(out * z, z),
        (Some(unit), Some(to_input), Some(code)) => {
            let x = unit.fit(to_input.integer(code, 0));
            let y = unit.eval(x, &mut seen.silu) as f32;
            out * (y / (1u32 << unit.rule().output_fraction) as f32)
        }
        (Some(unit), ..) => out * unit.real(z.into(), &mut seen.silu) as f32,
    }
}
