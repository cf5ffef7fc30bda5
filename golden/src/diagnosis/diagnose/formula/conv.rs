//! Convolution and its function.

use super::{Activation, BlockInputs, Math, Measured, Narrow, Operand, Output};
use ndarray::Array2;
use scalescope_sim::arith::accumulate::Accumulator;
use scalescope_sim::arith::fixed::{Requantizer, Scaling};
use scalescope_sim::arith::function::{Function, FunctionUnit, Inputs};
use scalescope_sim::arith::requant::QuantRule;
use scalescope_sim::dataflow::{Columns, Row};
use scalescope_sim::profile::{ConvForm, InputScale, SiluForm, TapHistory};
use scalescope_sim::trace::Tensor;
use std::sync::Arc;

/// `act(Σ_k w_k · x_{t−K+1+k} + bias)`.
#[derive(Clone, Debug)]
pub struct Conv {
    /// Operations.
    pub math: Math,
    /// `[L, E]`.
    pub x: Operand,
    /// Inputs of the tokens before the first, the last one nearest; `[K−1, E]`.
    pub history: Array2<f32>,
    /// `[K, E]`, the oldest token's first.
    pub taps: Array2<f32>,
    /// One step for all taps, or one for each channel.
    pub tap_scale: Vec<f32>,
    /// Dequantized, E.
    pub bias: Vec<f32>,
    /// The step of the bias's codes, where it has codes.
    pub bias_scale: Option<f32>,
    /// Whether the bias is added after the function.
    pub bias_after: bool,
    /// Whether taps and inputs are codes that are summed as integers.
    pub integer: bool,
    /// What a chip does otherwise.
    pub chip: Option<Chip>,
    /// Whether the function is a product with the sigmoid.
    pub product: bool,
    /// The function.
    pub activation: Activation,
    /// A function that was read off a dump, in its place.
    pub measured: Option<Arc<Measured>>,
    /// A type that the product of the scales passes through.
    pub scale_through: Option<Narrow>,
    /// A type that the function's input passes through.
    pub narrow_sum: Option<Narrow>,
    /// A type that the sum passes through after each tap.
    pub running: Option<Narrow>,
    /// A convolution whose sum the sigmoid gets, and not the factor.
    pub sigmoid_of: Option<Box<Conv>>,
    /// Tokens from one tap's input to the next one's.
    pub dilation: usize,
    /// Tokens after which nothing of the ones before is known.
    pub tile: Option<usize>,
    /// Channels that are computed; others are zero.
    pub channels: Option<Vec<bool>>,
    /// Tokens of a tile, and what stands for those before it.
    pub halo: Option<(usize, Halo)>,
    /// How results are stored.
    pub output: Output,
}

/// What a tile of tokens has of the tokens before it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs)] // `words` says what each is
pub enum Halo {
    OneLate,
    OneEarly,
    FirstRepeated,
    LastOfTile,
    Stale,
    Nearest,
    AllButNearest,
}

impl Halo {
    /// Every one.
    pub const ALL: [Halo; 7] = [
        Halo::OneLate,
        Halo::OneEarly,
        Halo::FirstRepeated,
        Halo::LastOfTile,
        Halo::Stale,
        Halo::Nearest,
        Halo::AllButNearest,
    ];

    /// In words, after the tokens.
    pub fn words(self) -> &'static str {
        match self {
            Halo::OneLate => "the history is one token older than it should be",
            Halo::OneEarly => "the history begins one token too late",
            Halo::FirstRepeated => "the first token stands for its history",
            Halo::LastOfTile => "the history is the end of the tile itself",
            Halo::Stale => "the history is that of the tile before",
            Halo::Nearest => "only the nearest token of the history is known",
            Halo::AllButNearest => "the nearest token of the history is lost",
        }
    }

    /// The token that is read in the place of token `at`, which lies before the tile that begins at `first`; `None` for
    /// zero.
    fn of(self, at: usize, first: usize, tile: usize) -> Option<usize> {
        match self {
            Halo::OneLate => at.checked_sub(1),
            Halo::OneEarly => Some(at + 1),
            Halo::FirstRepeated => Some(first),
            Halo::LastOfTile => Some(at + tile),
            Halo::Stale => at.checked_sub(tile),
            Halo::Nearest => (at + 1 == first).then_some(at),
            Halo::AllButNearest => (at + 1 < first).then_some(at),
        }
    }
}

/// A convolution of codes as a chip has it.
#[derive(Clone, Debug)]
pub struct Chip {
    /// From the register to the function's input, and from its output to the codes.
    pub scaling: Scaling,
    /// The register.
    pub accumulator: Accumulator,
    /// What rounds on the way to a real output.
    pub rule: QuantRule,
    /// The function; exact where there is none.
    pub silu: Option<Arc<FunctionUnit>>,
}

/// The factors of a chip's convolution.
struct Factors {
    /// To the function's input, one for all channels or one for each.
    input: Vec<Requantizer>,
    /// From its output to the codes.
    output: Option<Requantizer>,
}

impl Conv {
    pub(super) fn of(scene: &BlockInputs, row: &Row) -> Option<Self> {
        let rules = scene.rules(row)?.conv;
        let weight = scene.path.conv_weight(scene.layer);
        let random = rules.output.rounding.lfsr().is_some();
        if random || rules.input_scale != InputScale::Once || !weight.has_codes() {
            return None;
        }
        // The window is the first read; the scales of a dynamic one come with it.
        let read = row
            .reads
            .iter()
            .find(|read| read.point().is_some_and(|p| !p.is_scale()))?;
        let x = scene.operand(read)?;
        if read.columns == Columns::All && x.values.ncols() != weight.channels() {
            return None;
        }
        let codes = matches!(
            scene.seen.get(&read.point()?),
            Some(Tensor::I8(_) | Tensor::Codes(_))
        );
        let (e, k) = (weight.channels(), weight.taps());
        let integer = codes && x.rows.is_none() && rules.form == ConvForm::IntegerSum;
        let per_channel = weight.channel_scales().is_some();
        let chip = rules.scaling != Scaling::F32
            || rules.silu.is_unit()
            || per_channel
            || !rules.accumulator.holds((k as u64) << 14);
        let chip = (integer && chip).then(|| Chip {
            scaling: rules.scaling,
            accumulator: rules.accumulator,
            rule: rules.output,
            silu: rules.silu.unit(Function::Silu),
        });
        let rows = x.values.nrows();
        Some(Self {
            math: Math::of(rules.real),
            history: Array2::zeros((k - 1, e)),
            taps: Array2::from_shape_fn((k, e), |(tap, c)| f32::from(weight.code(tap, c))),
            tap_scale: match per_channel {
                true => (0..e).map(|c| weight.tap_scale(c)).collect(),
                false => vec![weight.tap_scale(0)],
            },
            bias: (0..e).map(|c| weight.bias(c)).collect(),
            bias_scale: weight.tensors().map(|(_, b)| b.scale.get()),
            bias_after: false,
            integer,
            chip,
            product: rules.silu_form == SiluForm::Product,
            activation: Activation::Silu,
            measured: None,
            scale_through: None,
            narrow_sum: None,
            running: None,
            sigmoid_of: None,
            dilation: 1,
            channels: None,
            halo: None,
            tile: match rules.history {
                TapHistory::LostEvery8 if rows.is_multiple_of(8) => Some(8),
                _ => None,
            },
            output: scene.output(row, false)?,
            x,
        })
    }

    /// The step of a channel's taps.
    pub fn tap_scale(&self, channel: usize) -> f32 {
        self.tap_scale[channel.min(self.tap_scale.len() - 1)]
    }

    fn factors(&self, chip: &Chip) -> Option<Factors> {
        let rule = self.output.quantizer.map_or(chip.rule, |q| q.rule);
        let rules = chip.silu.as_ref().map(|silu| *silu.rule());
        let fraction = rules.map_or(0, |rule| i32::from(rule.input_fraction));
        let input = self.tap_scale.iter().map(|tap| {
            let per_sum = f64::from(*tap) * f64::from(self.x.scale);
            Requantizer::new(chip.scaling, per_sum * 2f64.powi(fraction), rule)
        });
        let fixed = chip.scaling != Scaling::F32;
        let output = match (rules, &self.output.quantizer) {
            (Some(silu), Some(q)) if fixed => {
                let one = 2f64.powi(-i32::from(silu.output_fraction));
                Some(Requantizer::new(chip.scaling, one / f64::from(q.scale), rule).ok()?)
            }
            _ => None,
        };
        Some(Factors {
            input: input.collect::<Result<_, _>>().ok()?,
            output,
        })
    }

    /// What a chip makes of the products of a channel's taps, oldest first.
    fn of_chip(&self, c: usize, chip: &Chip, by: &Factors, taps: impl Iterator<Item = i64>) -> f32 {
        let m = self.math;
        let per_sum = f64::from(self.tap_scale(c)) * f64::from(self.x.scale);
        let fixed = chip.scaling != Scaling::F32;
        let bias = match fixed {
            true => (f64::from(self.bias[c]) / per_sum).round_ties_even() as i64,
            false => 0,
        };
        let (sum, _) = chip.accumulator.sum(taps.chain([bias]));
        let input = &by.input[c.min(by.input.len() - 1)];
        let real = |sum: i64| match fixed {
            true => (sum as f64 * per_sum) as f32,
            false => {
                let both = self.tap_scale(c) * self.x.scale;
                (m.fma)(both, sum as f32, self.bias[c])
            }
        };
        if self.measured.is_some() || self.narrow_sum.is_some() {
            return self.output.of(self.function(real(sum)));
        }
        let Some(silu) = &chip.silu else {
            let v = match fixed {
                true => (sum as f64 * input.real()) as f32,
                false => real(sum),
            };
            return self.output.of(self.activation.of(m, v));
        };
        let (mut seen, one) = (
            Inputs::default(),
            2f64.powi(-i32::from(silu.rule().output_fraction)),
        );
        let x = match fixed {
            true => silu.fit(input.integer(sum, 0)),
            false => silu.input(real(sum).into()),
        };
        let y = match self.activation {
            Activation::Silu => silu.eval(x, &mut seen),
            Activation::SiluTwice => {
                let once = silu.eval(x, &mut seen) as f64 * one;
                silu.eval(silu.input(once), &mut seen)
            }
            other => {
                let x = x as f64 * 2f64.powi(-i32::from(silu.rule().input_fraction));
                (f64::from(other.of(m, x as f32)) / one).round_ties_even() as i64
            }
        };
        let plain = (self.output.factor, self.output.offset, self.output.through);
        match (&by.output, &self.output.quantizer) {
            (Some(to_codes), Some(q)) if plain == (1.0, 0.0, None) => q.fit(to_codes.integer(y, 0)),
            _ => self.output.of((y as f64 * one) as f32),
        }
    }

    /// What becomes of a sum before it is stored.
    fn function(&self, v: f32) -> f32 {
        let m = self.math;
        let v = self.narrow_sum.map_or(v, |narrow| narrow.of(v));
        match (self.product, self.activation, &self.measured) {
            (_, _, Some(f)) => f.at(v),
            (true, Activation::Silu, None) => {
                let sigmoid = Activation::Sigmoid.of(m, v);
                (m.mul)(v, sigmoid)
            }
            (_, activation, None) => activation.of(m, v),
        }
    }

    /// What the function gets, as reals.
    pub fn before_function(&self) -> Option<Array2<f32>> {
        let mut plain = Self {
            activation: Activation::Identity,
            output: Output::real(false),
            sigmoid_of: None,
            ..self.clone()
        };
        // A unit of functions is left out; what it gets are the register's own sums.
        if let Some(chip) = &mut plain.chip {
            chip.silu = None;
        }
        (!self.bias_after).then(|| plain.run())
    }

    /// Computes with reals of a type in the place of codes.
    pub fn dequantize(&mut self, narrow: Narrow) {
        let m = self.math;
        let real = |at| narrow.of(self.x.real(m, at));
        let x = Array2::from_shape_fn(self.x.values.dim(), real);
        self.history
            .mapv_inplace(|v| narrow.of((m.mul)(self.x.scale, v)));
        let tap = |at: (usize, usize)| narrow.of(self.tap_scale(at.1) * self.taps[at]);
        self.taps = Array2::from_shape_fn(self.taps.dim(), tap);
        (self.x, self.tap_scale) = (Operand::new(x, 1.0), vec![1.0]);
        (self.integer, self.chip) = (false, None);
    }

    /// Codes or reals, `[L, E]`, where the sigmoid gets another sum than the factor.
    fn gated_by(&self, other: &Self) -> Array2<f32> {
        let (Some(mut sums), Some(others)) = (self.before_function(), other.before_function())
        else {
            return Array2::zeros((0, 0));
        };
        let m = self.math;
        for (v, other) in sums.iter_mut().zip(&others) {
            let sigmoid = Activation::Sigmoid.of(m, *other);
            *v = self.output.of((m.mul)(*v, sigmoid));
        }
        sums
    }

    /// Codes or reals, `[L, E]`.
    pub fn run(&self) -> Array2<f32> {
        if let Some(other) = &self.sigmoid_of {
            return self.gated_by(other);
        }
        let (k, e) = self.taps.dim();
        let rows = self.x.values.nrows();
        let m = self.math;
        let chip = self
            .chip
            .as_ref()
            .and_then(|chip| Some((chip, self.factors(chip)?)));
        Array2::from_shape_fn((rows, e), |(t, c)| {
            if self.channels.as_ref().is_some_and(|used| !used[c]) {
                return 0.0;
            }
            let first = self.tile.map_or(0, |tile| t / tile * tile);
            let x = |tap: usize| -> f32 {
                let at = match self.dilation {
                    1 => (t + tap + 1).checked_sub(k),
                    by => match t.checked_sub(by * (k - 1 - tap)) {
                        Some(at) => Some(at),
                        None => return 0.0,
                    },
                };
                let beginning = self.halo.map(|(tile, halo)| (t / tile * tile, tile, halo));
                match at {
                    Some(at) if beginning.is_some_and(|(first, ..)| at < first) => beginning
                        .and_then(|(first, tile, halo)| halo.of(at, first, tile))
                        .and_then(|at| self.x.values.get((at, c)))
                        .copied()
                        .unwrap_or(0.0),
                    Some(at) if at >= first => self.x.values[(at, c)],
                    Some(_) => 0.0,
                    None if self.tile.is_none() || first == 0 => {
                        self.history[((t + tap) % (k - 1).max(1), c)]
                    }
                    None => 0.0,
                }
            };
            if let Some((chip, by)) = &chip {
                let products = (0..k).map(|tap| (self.taps[(tap, c)] * x(tap)) as i64);
                return self.of_chip(c, chip, by, products);
            }
            let bias = if self.bias_after { 0.0 } else { self.bias[c] };
            let v = if self.integer {
                let acc: f32 = (0..k).map(|tap| self.taps[(tap, c)] * x(tap)).sum();
                let both = (m.mul)(self.tap_scale(c), self.x.scale);
                let both = self.scale_through.map_or(both, |narrow| narrow.of(both));
                (m.fma)(both, acc, bias)
            } else {
                let mut v = bias;
                for tap in 0..k {
                    let at = (t + tap + 1).saturating_sub(k);
                    let scale = (m.mul)(self.tap_scale(c), self.x.step(at));
                    let w = (m.mul)(scale, self.taps[(tap, c)]);
                    v = (m.fma)(w, x(tap), v);
                    v = self.running.map_or(v, |narrow| narrow.of(v));
                }
                v
            };
            let y = self.function(v);
            self.output.of(match self.bias_after {
                true => y + self.bias[c],
                false => y,
            })
        })
    }
}
