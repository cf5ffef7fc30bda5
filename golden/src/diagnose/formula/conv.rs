//! Convolution and its function.

use super::{Activation, Math, Operand, Output, Scene};
use ndarray::Array2;
use scalescope_sim::arith::fixed::Scaling;
use scalescope_sim::arith::function::FunctionRule;
use scalescope_sim::dataflow::{Columns, Row};
use scalescope_sim::profile::{ConvForm, InputScale, SiluForm, TapHistory};
use scalescope_sim::trace::{Tensor, TracePoint};

/// `act(Σ_k w_k · x_{t−K+1+k} + bias)`.
#[derive(Clone, Debug)]
pub struct Conv {
    /// Operations.
    pub math: Math,
    /// `[L, E]`.
    pub x: Operand,
    /// The scale of each token, where tokens have their own.
    pub token_scales: Option<Vec<f32>>,
    /// Inputs of the tokens before the first, the last one nearest; `[K−1, E]`.
    pub history: Array2<f32>,
    /// `[K, E]`, the oldest token's first.
    pub taps: Array2<f32>,
    /// One step for all taps, or one for each channel.
    pub tap_scale: f32,
    /// Dequantized, E.
    pub bias: Vec<f32>,
    /// Whether taps and inputs are codes that are summed as integers.
    pub integer: bool,
    /// Whether the function is a product with the sigmoid.
    pub product: bool,
    /// The function.
    pub activation: Activation,
    /// Tokens after which nothing of the ones before is known.
    pub tile: Option<usize>,
    /// How results are stored.
    pub output: Output,
}

impl Conv {
    pub(super) fn of(scene: &Scene, row: &Row) -> Option<Self> {
        let rules = scene.rules(row)?.conv;
        let weight = scene.path.conv_weight(scene.layer);
        let plain = rules.scaling == Scaling::F32 && rules.silu == FunctionRule::Exact;
        if !plain || weight.channel_scales().is_some() || rules.input_scale != InputScale::Once {
            return None;
        }
        // The window is the first read; the scales of a dynamic one come with it.
        let read = row
            .reads
            .iter()
            .find(|read| read.point().is_some_and(|p| !p.is_scale()))?;
        let mut x = scene.operand(read)?;
        if read.columns == Columns::All && x.values.ncols() != weight.channels() {
            return None;
        }
        let mut token_scales = None;
        if let Some(Tensor::F32(scales)) = scene.seen.get(&TracePoint::ConvInScale)
            && read.point() == Some(TracePoint::ConvIn)
        {
            match scales.len() {
                1 => x.scale = scales[(0, 0)],
                _ => token_scales = Some(scales.iter().copied().collect()),
            }
        }
        let codes = matches!(
            scene.seen.get(&read.point()?),
            Some(Tensor::I8(_) | Tensor::Codes(_))
        );
        let (e, k) = (weight.channels(), weight.taps());
        let (taps, tap_scale) = match weight.tensors() {
            Some((w, _)) => (
                Array2::from_shape_fn((k, e), |(tap, c)| f32::from(w.codes[(c, tap)])),
                w.scale.get(),
            ),
            None => return None,
        };
        let rows = x.values.nrows();
        Some(Self {
            math: Math::of(rules.real),
            history: Array2::zeros((k - 1, e)),
            taps,
            tap_scale,
            bias: (0..e).map(|c| weight.bias(c)).collect(),
            integer: codes && token_scales.is_none() && rules.form == ConvForm::IntegerSum,
            product: rules.silu_form == SiluForm::Product,
            activation: Activation::Silu,
            tile: match rules.history {
                TapHistory::LostEvery8 if rows.is_multiple_of(8) => Some(8),
                _ => None,
            },
            output: scene.output(row, Some(rules.output), false)?,
            x,
            token_scales,
        })
    }

    /// Codes or reals, `[L, E]`.
    pub fn run(&self) -> Array2<f32> {
        let (k, e) = self.taps.dim();
        let rows = self.x.values.nrows();
        let m = self.math;
        let scale = |t: usize| match &self.token_scales {
            Some(scales) => scales[t.min(scales.len() - 1)],
            None => self.x.scale,
        };
        let both = (m.mul)(self.tap_scale, self.x.scale);
        Array2::from_shape_fn((rows, e), |(t, c)| {
            let first = self.tile.map_or(0, |tile| t / tile * tile);
            let x = |tap: usize| -> f32 {
                let at = (t + tap + 1).checked_sub(k);
                match at {
                    Some(at) if at >= first => self.x.values[(at, c)],
                    Some(_) => 0.0,
                    None if self.tile.is_none() || first == 0 => {
                        self.history[((t + tap) % (k - 1).max(1), c)]
                    }
                    None => 0.0,
                }
            };
            let v = if self.integer {
                let acc: f32 = (0..k).map(|tap| self.taps[(tap, c)] * x(tap)).sum();
                (m.fma)(both, acc, self.bias[c])
            } else {
                let mut v = self.bias[c];
                for tap in 0..k {
                    let at = (t + tap + 1).saturating_sub(k);
                    let w = (m.mul)((m.mul)(self.tap_scale, scale(at)), self.taps[(tap, c)]);
                    v = (m.fma)(w, x(tap), v);
                }
                v
            };
            let y = match (self.product, self.activation) {
                (true, Activation::Silu) => {
                    let sigmoid = Activation::Sigmoid.of(m, v);
                    (m.mul)(v, sigmoid)
                }
                (_, activation) => activation.of(m, v),
            };
            self.output.of(y)
        })
    }
}
