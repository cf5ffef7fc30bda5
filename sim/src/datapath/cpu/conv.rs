//! Convolution with SiLU, its input window, dynamic quantization, and the history kept for decode.

use super::columns::{last_rows, stack, transposed};
use super::{Cpu, f32_of};
use crate::arith::function::Function;
use crate::arith::requant::QuantRule;
use crate::block::{ConvStep, Tensors};
use crate::error::Result;
use crate::profile::{ConvRules, InputScale, SiluForm, TapHistory};
use crate::quant::{QTensor, Scale};
use crate::step::conv::{ConvWindow, conv_silu, conv_silu_quantize, silu_product, untiled};
use crate::step::conv_unit;
use crate::step::dynamic;
use crate::trace::{Tensor, TracePoint};
use ndarray::{Array2, s};

/// The last K inputs of a block's convolution, oldest first, `[K, E]`.
#[derive(Clone, Debug, PartialEq)]
pub enum ConvHistory {
    /// INT8 codes on the static grid.
    Int8(QTensor),
    /// Real values: kept where the conv input is FP32, or quantized dynamically (a dynamic
    /// quantizer sees the whole window of each token again).
    Real(Array2<f32>),
}

impl ConvHistory {
    /// Zeros, as codes of a scale where there is one.
    pub(super) fn empty(scale: Option<Scale>, dim: (usize, usize)) -> Self {
        match scale {
            Some(scale) => ConvHistory::Int8(QTensor {
                codes: Array2::zeros(dim),
                scale,
            }),
            None => ConvHistory::Real(Array2::zeros(dim)),
        }
    }

    /// The rows as a tensor, `[K, E]`.
    #[cfg(feature = "cuda")]
    pub(crate) fn into_tensor(self) -> Tensor {
        match self {
            ConvHistory::Int8(q) => Tensor::I8(q),
            ConvHistory::Real(values) => Tensor::F32(values),
        }
    }
}

impl ConvStep for Cpu<'_, '_> {
    type History = ConvHistory;
    type Window = ConvWindow;

    fn show_history(&mut self, point: TracePoint, history: ConvHistory) -> Result<ConvHistory> {
        if !self.wants(point) {
            return Ok(history);
        }
        let value = match &history {
            ConvHistory::Int8(q) => Tensor::I8(QTensor {
                codes: transposed(&q.codes),
                scale: q.scale,
            }),
            ConvHistory::Real(values) => Tensor::F32(transposed(values)),
        };
        Ok(match self.show(point, value)? {
            Tensor::I8(q) => ConvHistory::Int8(QTensor {
                codes: transposed(&q.codes),
                scale: q.scale,
            }),
            other => ConvHistory::Real(transposed(&f32_of(other))),
        })
    }

    fn window(
        &mut self,
        x: Tensor,
        scale: Option<Scale>,
        before: Option<ConvHistory>,
    ) -> Result<(ConvWindow, ConvHistory)> {
        let taps = self.at.layer.conv.taps();
        let before = before.unwrap_or_else(|| ConvHistory::empty(scale, (taps, x.dim().1)));
        Ok(match (before, x, scale) {
            (ConvHistory::Int8(history), Tensor::I8(x), Some(scale)) => {
                let codes = stack(history.codes.slice(s![1.., ..]), &x.codes);
                let after = ConvHistory::Int8(QTensor {
                    codes: last_rows(&codes, taps),
                    scale: history.scale,
                });
                (ConvWindow::Int8 { codes, scale }, after)
            }
            (ConvHistory::Real(history), x, _) => {
                let window = stack(history.slice(s![1.., ..]), &f32_of(x));
                let after = ConvHistory::Real(last_rows(&window, taps));
                (ConvWindow::Real(window), after)
            }
            _ => unreachable!("a history of codes is kept where x is codes"),
        })
    }

    fn quantize_window(
        &mut self,
        window: ConvWindow,
        each_row: bool,
        rule: QuantRule,
    ) -> Result<ConvWindow> {
        let ConvWindow::Real(values) = window else {
            unreachable!("codes are quantized already")
        };
        let (dynamic, _) = match each_row {
            true => dynamic::per_token(&values, rule),
            false => dynamic::per_tensor(&values, rule),
        };
        self.show_dynamic(dynamic)
    }

    fn conv(
        &mut self,
        rules: &ConvRules,
        window: ConvWindow,
        output: Option<Scale>,
    ) -> Result<Tensor> {
        let window = match rules.input_scale {
            InputScale::Once => window,
            InputScale::Twice => window.with_scale_twice()?,
        };
        let taps = self.at.layer.conv.taps();
        let tiles = match rules.history {
            TapHistory::Kept => None,
            TapHistory::LostEvery8 => window.tiled(taps),
        };
        match &tiles {
            None => self.convolve(rules, &window, output),
            Some(tiles) => self.convolve_tiles(rules, tiles, output),
        }
    }
}

impl Cpu<'_, '_> {
    fn convolve(
        &mut self,
        rules: &ConvRules,
        window: &ConvWindow,
        output: Option<Scale>,
    ) -> Result<Tensor> {
        let (real, form, weight) = (rules.real, rules.form, &self.at.layer.conv);
        let point = TracePoint::ConvOut;
        let unit = conv_unit::is_unit(rules, weight, window);
        if self.probe.watches() && !unit {
            let seen = conv_unit::watched(rules, weight, window);
            self.accumulated(TracePoint::ConvOut, rules.accumulator, seen)?;
        }
        Ok(match (window, output) {
            (ConvWindow::Int8 { codes, scale }, output) if unit => {
                self.conv_unit(rules, codes, *scale, output)?
            }
            (window, output) if rules.silu_form == SiluForm::Product => {
                let mut y = conv_silu(real, form, weight, window, false);
                silu_product(real, y.as_slice_mut().expect("outputs are row-major"));
                match output {
                    Some(scale) => self.quantized(point, &y, scale, rules.output),
                    None => Tensor::F32(y),
                }
            }
            (window, Some(scale)) => {
                let rule = rules.output;
                let (q, status) = conv_silu_quantize(real, form, weight, window, rule, scale);
                self.count(point, status);
                Tensor::I8(q)
            }
            (window, None) => Tensor::F32(conv_silu(real, form, weight, window, true)),
        })
    }

    /// Tiles without history, laid end to end. (Where a chip's unit quantizes, its counts include the
    /// rows between tiles, which nobody reads.)
    fn convolve_tiles(
        &mut self,
        rules: &ConvRules,
        tiles: &ConvWindow,
        output: Option<Scale>,
    ) -> Result<Tensor> {
        let weight = &self.at.layer.conv;
        let taps = weight.taps();
        if conv_unit::is_unit(rules, weight, tiles) {
            return Ok(match self.convolve(rules, tiles, output)? {
                Tensor::I8(q) => Tensor::I8(QTensor {
                    codes: untiled(&q.codes, taps),
                    scale: q.scale,
                }),
                real => Tensor::F32(untiled(&real.to_real(), taps)),
            });
        }
        let y = untiled(
            &conv_silu(rules.real, rules.form, weight, tiles, true),
            taps,
        );
        Ok(match output {
            Some(scale) => self.quantized(TracePoint::ConvOut, &y, scale, rules.output),
            None => Tensor::F32(y),
        })
    }

    fn conv_unit(
        &mut self,
        rules: &ConvRules,
        codes: &Array2<i8>,
        s_x: Scale,
        output: Option<Scale>,
    ) -> Result<Tensor> {
        let done = conv_unit::conv_unit(rules, &self.at.layer.conv, codes, s_x, output)?;
        self.accumulated(TracePoint::ConvOut, rules.accumulator, done.accumulated)?;
        let place = self.place(TracePoint::ConvOut);
        self.probe.function(place, Function::Silu, done.silu);
        Ok(match done.codes {
            Some((codes, status)) => {
                self.count(TracePoint::ConvOut, status);
                Tensor::I8(codes)
            }
            None => Tensor::F32(done.real),
        })
    }

    /// Shows what a dynamic quantizer made of the rows of x.
    fn show_dynamic(&mut self, mut q: dynamic::DynamicTensor) -> Result<ConvWindow> {
        let history = self.at.layer.conv.taps() - 1;
        let own_scales = match q.scales.len() {
            1 => &q.scales[..],
            _ => &q.scales[history..],
        };
        let own_first = q.scales.len() - own_scales.len();
        let column = Array2::from_shape_fn((own_scales.len(), 1), |(i, _)| own_scales[i].get());
        let shown = f32_of(self.show(TracePoint::ConvInScale, Tensor::F32(column))?);
        for (scale, shown) in q.scales[own_first..].iter_mut().zip(&shown) {
            *scale = Scale::new(*shown)?;
        }
        if self.wants(TracePoint::ConvIn) {
            let codes = q.codes.slice(s![history.., ..]).to_owned();
            if let Tensor::Codes(codes) = self.show(TracePoint::ConvIn, Tensor::Codes(codes))? {
                q.codes.slice_mut(s![history.., ..]).assign(&codes);
            }
        }
        Ok(match q.scales[..] {
            [scale] => ConvWindow::Int8 {
                codes: q.codes,
                scale,
            },
            _ => ConvWindow::PerRow {
                codes: q.codes,
                scales: q.scales,
            },
        })
    }
}
