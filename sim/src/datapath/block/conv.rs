//! Convolution with SiLU, its input window, dynamic quantization, and the history kept for decode.

use super::columns::{last_rows, stack, transposed};
use super::{Run, f32_of};
use crate::arith::function::Function;
use crate::arith::requant::QuantRule;
use crate::dataflow::Phase;
use crate::error::Result;
use crate::mode::{ConvInput, Implementation, Precision};
use crate::plan::ScaleUse;
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
    /// The rows as a tensor, `[K, E]`.
    #[cfg(feature = "cuda")]
    pub(crate) fn into_tensor(self) -> Tensor {
        match self {
            ConvHistory::Int8(q) => Tensor::I8(q),
            ConvHistory::Real(values) => Tensor::F32(values),
        }
    }
}

impl Run<'_, '_> {
    /// Convolution with SiLU: its output, and the last K inputs.
    pub(super) fn conv(&mut self, x: Tensor, before: ConvHistory) -> Result<(Tensor, ConvHistory)> {
        let before = self.show_history(TracePoint::ConvStateIn, before)?;
        let (window, after) = self.conv_window(x, before)?;
        let after = self.show_history(TracePoint::ConvStateOut, after)?;
        let rules = self.rules(self.layer.mode.conv).conv;
        let window = match rules.input_scale {
            InputScale::Once => window,
            InputScale::Twice => window.with_scale_twice()?,
        };
        let taps = self.layer.conv.taps();
        let tiles = match rules.history {
            TapHistory::Kept => None,
            TapHistory::LostEvery8 => window.tiled(taps),
        };
        let out = match &tiles {
            None => self.convolve(&rules, &window)?,
            Some(tiles) => self.convolve_tiles(&rules, tiles)?,
        };
        let point = match out {
            Tensor::I8(_) => TracePoint::ConvOut,
            _ => TracePoint::ConvOutF32,
        };
        let out = self.show(point, out)?;
        Ok((out, after))
    }

    fn convolve(&mut self, rules: &ConvRules, window: &ConvWindow) -> Result<Tensor> {
        let (real, form, weight) = (rules.real, rules.form, &self.layer.conv);
        let unit = conv_unit::is_unit(rules, weight, window);
        if self.probe.watches() && !unit {
            let seen = conv_unit::watched(rules, weight, window);
            self.accumulated(TracePoint::ConvOut, rules.accumulator, seen)?;
        }
        Ok(match (window, self.layer.mode.conv_out) {
            (ConvWindow::Int8 { codes, scale }, precision) if unit => {
                self.conv_unit(rules, codes, *scale, precision)?
            }
            (window, precision) if rules.silu_form == SiluForm::Product => {
                let mut y = conv_silu(real, form, weight, window, false);
                silu_product(real, y.as_slice_mut().expect("outputs are row-major"));
                match precision {
                    Precision::Int8 => {
                        let (point, by) = (TracePoint::ConvOut, ScaleUse::ConvOut);
                        Tensor::I8(self.quantize(point, &y, by, rules.output))
                    }
                    Precision::Float => Tensor::F32(y),
                }
            }
            (window, Precision::Int8) => {
                let (rule, scale) = (rules.output, self.scale(ScaleUse::ConvOut));
                let (q, status) = conv_silu_quantize(real, form, weight, window, rule, scale);
                self.probe.count(self.place(TracePoint::ConvOut), status);
                Tensor::I8(q)
            }
            (window, Precision::Float) => Tensor::F32(conv_silu(real, form, weight, window, true)),
        })
    }

    /// Tiles without history, laid end to end. (Where a chip's unit quantizes, its counts include the
    /// rows between tiles, which nobody reads.)
    fn convolve_tiles(&mut self, rules: &ConvRules, tiles: &ConvWindow) -> Result<Tensor> {
        let weight = &self.layer.conv;
        let taps = weight.taps();
        if conv_unit::is_unit(rules, weight, tiles) {
            return Ok(match self.convolve(rules, tiles)? {
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
        Ok(match self.layer.mode.conv_out {
            Precision::Int8 => {
                Tensor::I8(self.quantize(TracePoint::ConvOut, &y, ScaleUse::ConvOut, rules.output))
            }
            Precision::Float => Tensor::F32(y),
        })
    }

    fn conv_unit(
        &mut self,
        rules: &ConvRules,
        codes: &Array2<i8>,
        s_x: Scale,
        precision: Precision,
    ) -> Result<Tensor> {
        let output = (precision == Precision::Int8).then(|| self.scale(ScaleUse::ConvOut));
        let done = conv_unit::conv_unit(rules, &self.layer.conv, codes, s_x, output)?;
        self.accumulated(TracePoint::ConvOut, rules.accumulator, done.accumulated)?;
        let place = self.place(TracePoint::ConvOut);
        self.probe.function(place, Function::Silu, done.silu);
        Ok(match done.codes {
            Some((codes, status)) => {
                self.probe.count(place, status);
                Tensor::I8(codes)
            }
            None => Tensor::F32(done.real),
        })
    }

    /// Puts the history before x, quantizes as the mode says, and keeps the last K rows.
    fn conv_window(&mut self, x: Tensor, before: ConvHistory) -> Result<(ConvWindow, ConvHistory)> {
        let taps = self.layer.conv.taps();
        match before {
            ConvHistory::Int8(history) => {
                let x = match x {
                    Tensor::I8(x) => x.codes,
                    other => {
                        let rule = self.rules(Implementation::Cuda).conv_in;
                        let point = TracePoint::ConvIn;
                        let q = self.quantize(point, &other.to_real(), ScaleUse::ConvIn, rule);
                        match self.show(point, Tensor::I8(q))? {
                            Tensor::I8(q) => q.codes,
                            _ => unreachable!("`show` keeps the type"),
                        }
                    }
                };
                let codes = stack(history.codes.slice(s![1.., ..]), &x);
                let after = ConvHistory::Int8(QTensor {
                    codes: last_rows(&codes, taps),
                    scale: history.scale,
                });
                let window = ConvWindow::Int8 {
                    codes,
                    scale: self.scale(ScaleUse::ConvIn),
                };
                Ok((window, after))
            }
            ConvHistory::Real(history) => {
                let real = match (&x, self.input_scale(&x, ScaleUse::ConvIn)) {
                    (Tensor::I8(q), Some(scale)) => QTensor {
                        codes: q.codes.clone(),
                        scale,
                    }
                    .dequantize(),
                    _ => x.to_real(),
                };
                let window = stack(history.slice(s![1.., ..]), &real);
                let after = ConvHistory::Real(last_rows(&window, taps));
                let rule = self.dynamic_rule();
                let (dynamic, _) = match self.layer.mode.conv_in {
                    ConvInput::DynamicTensor => dynamic::per_tensor(&window, rule),
                    ConvInput::DynamicToken => dynamic::per_token(&window, rule),
                    _ => return Ok((ConvWindow::Real(window), after)),
                };
                Ok((self.show_dynamic(dynamic, real.nrows())?, after))
            }
        }
    }

    /// The rule of a quantizer whose scale is found at run time: PyTorch's, whose quotient has the type of x.
    fn dynamic_rule(&self) -> QuantRule {
        let rules = self.rules(Implementation::Torch);
        self.layer.mode.conv_in_quotient.of(rules.requantize)
    }

    /// Shows what a dynamic quantizer made of the last `l` rows of a window.
    fn show_dynamic(&mut self, mut q: dynamic::DynamicTensor, l: usize) -> Result<ConvWindow> {
        let history = q.codes.nrows() - l;
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
        if self.probe.wants(self.place(TracePoint::ConvIn)) {
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

    /// Shows a conv state, `[E, K]`, in decode.
    fn show_history(&mut self, point: TracePoint, history: ConvHistory) -> Result<ConvHistory> {
        if self.phase != Phase::Decode || !self.probe.wants(self.place(point)) {
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
}
