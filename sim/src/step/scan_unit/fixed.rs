//! A scan whose numbers are integers throughout; the table in `scan_unit` lists their grids.

use super::{Alu, Channel, Constants, Functions, ScanSeen, StateBc, gate, state_step};
use crate::arith::accumulate::Accumulator;
use crate::arith::fixed::{LONGEST_LEFT_SHIFT, Requantizer};
use crate::arith::function::FunctionUnit;
use crate::arith::real::{Ieee, RealMath};
use crate::arith::requant::QuantRule;
use crate::arith::round::{Rounding, up_to_power_of_two};
use crate::calibrate::LEAST_SCALE;
use crate::error::{Result, SimError};
use crate::profile::unit::ScanUnit;
use crate::quant::Scale;
use crate::step::scan::{ScanInputs, ScanWeight, Source};
use ndarray::Array2;
use std::sync::Arc;

/// Fraction bits of α, and of δ and the decay where their function is exact.
const ALPHA_FRACTION: u32 = 12;
const EXACT_FRACTION: u32 = 16;

/// The largest product of two codes, one of them a weight's.
const LARGEST_PRODUCT: f64 = 127.0 * 128.0;

/// The step of a state, made larger by a power of two where the state is one of zeros: any step is
/// theirs, and in a sum of this one D·u fits and has a factor (`skip` is its real one over s_C). A scale
/// that calibration gives to zeros tells such a state, of a model whose x_proj was pruned.
fn step_with_room(step: f64, calibrated: Scale, skip: f64, sum: Accumulator) -> f64 {
    // Twice: a profile may have put the scale on the next power of two.
    if calibrated.get() > 2.0 * LEAST_SCALE {
        return step;
    }
    let fits = skip * LARGEST_PRODUCT / 2f64.powi(i32::from(sum.bits()) - 1);
    let has_factor = skip / 2f64.powi(LONGEST_LEFT_SHIFT);
    let larger = fits.max(has_factor) / step;
    step * up_to_power_of_two(larger.max(1.0))
}

/// Integers throughout.
pub(super) struct Fixed {
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
    pub fn new(
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
        let (d, d_scale) = weight.skip_codes();
        let (u, c) = (f64::from(inputs.u.scale()), f64::from(inputs.c.scale()));
        let step = state_step(unit.state, calibrated).expect("a fixed-point format");
        let skip = f64::from(d_scale) * u / c;
        let step =
            step_with_room(step, calibrated, skip, unit.accumulator) / 2f64.powi(guard as i32);
        let fraction = |unit: &Option<Arc<FunctionUnit>>| {
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
        let to_input = |function: &Option<Arc<FunctionUnit>>, source: Option<&Source>| match (
            function, source,
        ) {
            (Some(f), Some(source @ Source::Int8 { .. })) => {
                let unit_of_x = f64::from(1u32 << f.rule().input_fraction);
                requant(f64::from(source.scale()) * unit_of_x).map(Some)
            }
            _ => Ok(None),
        };
        let to_softplus = to_input(&functions.softplus, Some(&inputs.dt))?;
        let to_silu = to_input(&functions.silu, inputs.z.as_ref())?;
        let sum_step = c * step;
        let one_delta = 2f64.powi(-(delta_fraction as i32));
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

    /// What hardware keeps of the weights and scales.
    pub fn constants(&self, weight: &ScanWeight, inputs: &ScanInputs) -> Constants {
        let factors = [
            ("drive_", Some(&self.drive)),
            ("skip_", Some(&self.skip)),
            ("softplus_", self.to_softplus.as_ref()),
            ("silu_", self.to_silu.as_ref()),
        ];
        let fixed = |(name, r): (&'static str, Option<&Requantizer>)| Some((name, r?.fixed()?));
        let fraction =
            |unit: &Option<Arc<FunctionUnit>>| unit.as_ref().map_or(0, |u| u.rule().input_fraction);
        let one = 2f64.powi(-i32::from(fraction(&self.functions.softplus)));
        let alpha = Array2::from_shape_fn((weight.channels(), weight.states()), |(c, s)| {
            self.alpha(weight.exact_alpha(c)(s))
        });
        Constants {
            factors: factors.into_iter().filter_map(fixed).collect(),
            alpha,
            bias: (0..weight.channels())
                .map(|c| Self::on_grid(Channel::of(inputs, weight, c).bias.into(), one))
                .collect(),
            state_step: self.step,
            sum_step: self.sum_step as f32,
        }
    }

    /// A real number on a grid of `unit`, ties to even.
    fn on_grid(real: f64, unit: f64) -> i64 {
        (real / unit).round_ties_even() as i64
    }
}

impl Alu for Fixed {
    type Value = i64;

    #[inline(always)]
    fn delta(&self, c: &Channel, t: usize, seen: &mut ScanSeen) -> i64 {
        let Some(unit) = &self.functions.softplus else {
            return Self::on_grid(
                Ieee::softplus(c.biased_dt(t)).into(),
                2f64.powi(-(self.delta_fraction as i32)),
            );
        };
        let one = 2f64.powi(-i32::from(unit.rule().input_fraction));
        let x = match (&self.to_softplus, c.dt.code(t)) {
            (Some(requant), Some(code)) => {
                unit.fit(requant.integer(code, 0) + i128::from(Self::on_grid(c.bias.into(), one)))
            }
            _ => unit.input(f64::from(c.dt.real(t) + c.bias)),
        };
        unit.eval(x, &mut seen.softplus)
    }

    #[inline(always)]
    fn alpha(&self, alpha: f32) -> i64 {
        Self::on_grid(alpha.into(), 2f64.powi(-(ALPHA_FRACTION as i32)))
    }

    #[inline(always)]
    fn decay(&self, alpha: i64, delta: i64, seen: &mut ScanSeen) -> i64 {
        let fraction = ALPHA_FRACTION + self.delta_fraction;
        match &self.functions.exp {
            None => {
                let exponent = i128::from(alpha) * i128::from(delta);
                let real = exponent as f64 * 2f64.powi(-(fraction as i32));
                let one = 2f64.powi(-(self.decay_fraction as i32));
                Self::on_grid(Ieee::exp(-real as f32).into(), one)
            }
            // An input has 24 bits at most, 12 fewer than α·δ.
            Some(unit) => {
                let shift = fraction - u32::from(unit.rule().input_fraction).min(fraction);
                let x = Rounding::NearestTiesUp.shift_product(-alpha, delta, shift, 0);
                unit.eval(unit.fit(x), &mut seen.exp)
            }
        }
    }

    #[inline(always)]
    fn drive(&self, c: &Channel, bc: &StateBc, t: usize, delta: i64) -> i64 {
        let b = bc.b.code(t).expect("checked in `new`");
        let integer = match c.u.code(t) {
            Some(u) => self.drive.integer(b * (delta * u), 0),
            None => {
                let delta = delta as f32 * 2f32.powi(-(self.delta_fraction as i32));
                let v = bc.b.real(t) * (delta * c.u.real(t));
                (v / self.step as f32).round_ties_even() as i128
            }
        };
        // Far beyond any register: the update makes it fit.
        integer.clamp(-(1 << 60), 1 << 60) as i64
    }

    #[inline(always)]
    fn compose(&self, later: i64, earlier: i64) -> i64 {
        Rounding::NearestTiesUp.shift_product(later, earlier, self.decay_fraction, 0) as i64
    }

    #[inline(always)]
    fn update(&self, a: i64, x: i64, b: i64, random: u16, seen: &mut ScanSeen) -> i64 {
        let kept = (self.rounding).shift_product(a, x, self.decay_fraction, random);
        let (x, beyond) = self.register.add(kept as i64, b);
        seen.state.see(x, beyond);
        x
    }

    #[inline(always)]
    fn settle(&self, x: i64, t: usize) -> i64 {
        if self.guard == 0 || !(t + 1).is_multiple_of(self.every) {
            return x;
        }
        let rounded = self.settling.shift(x.into(), self.guard, 0) as i64;
        self.register.add(0, rounded << self.guard).0
    }

    #[inline(always)]
    fn load(&self, real: f32) -> i64 {
        self.register
            .add(0, Self::on_grid(real.into(), self.step))
            .0
    }

    #[inline(always)]
    fn store(&self, x: i64) -> f32 {
        (x as f64 * self.step) as f32
    }

    #[inline(always)]
    fn first(&self, c: &Channel, t: usize, seen: &mut ScanSeen) -> i64 {
        let integer = match c.u.code(t) {
            Some(u) => self.skip.integer(self.d[c.index] * u, 0),
            None => {
                let v = c.skip * c.u.real(t);
                (v / self.sum_step as f32).round_ties_even() as i128
            }
        };
        let (sum, beyond) = self.sum.add(0, integer.clamp(-(1 << 60), 1 << 60) as i64);
        seen.sum.see(sum, beyond);
        sum
    }

    #[inline(always)]
    fn accumulate(&self, sum: i64, bc: &StateBc, t: usize, x: i64, seen: &mut ScanSeen) -> i64 {
        let code = bc.c.code(t).expect("checked in `new`");
        let (sum, beyond) = self.sum.add(sum, code * x);
        seen.sum.see(sum, beyond);
        sum
    }

    #[inline(always)]
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
