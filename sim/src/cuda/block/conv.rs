//! Convolution with SiLU, its input window, dynamic quantization, and the history kept for decode.
//! Twin: `datapath/block/conv.rs`.

use super::{Run, show_as};
use crate::cuda::matrix::{Kind, Matrix};
use crate::cuda::rules::NO_QUANTIZER;
use crate::cuda::step::conv::{Window, conv_silu, last_rows};
use crate::cuda::step::{convert, dynamic};
use crate::dataflow::Phase;
use crate::error::Result;
use crate::mode::{ConvInput, Implementation, Precision};
use crate::plan::ScaleUse;
use crate::quant::QTensor;
use crate::trace::{Tensor, TracePoint};
use ndarray::Array2;

impl Run<'_, '_> {
    /// Convolution with SiLU: its output, and the last K inputs.
    pub(super) fn conv(&mut self, x: Matrix, before: Option<&Matrix>) -> Result<(Matrix, Matrix)> {
        if let Some(before) = before {
            self.show_history(TracePoint::ConvStateIn, before)?;
        }
        let x = self.conv_input(x)?;
        let taps = self.config.d_conv;
        let (batch, length) = (self.extent.batch, self.extent.length);
        let mut after = last_rows(&x, before, taps, batch, length, taps)?;
        if let Kind::I8(scale) = &mut after.kind {
            *scale = self.scale(ScaleUse::ConvIn);
        }
        // Dynamic codes of the K−1 rows before and the rows of x, with their scales.
        let group = match self.layer.mode.conv_in {
            ConvInput::Static | ConvInput::Float => None,
            ConvInput::DynamicTensor => Some(taps - 1 + length),
            ConvInput::DynamicToken => Some(1),
        };
        let quantized = match group {
            None => None,
            Some(rows) => {
                let all = last_rows(&x, before, taps, batch, length, taps - 1 + length)?;
                let rule = self.rules(Implementation::Torch).requantize;
                let rule = self.layer.mode.conv_in_quotient.of(rule);
                let quantized = dynamic::quantize(&all, rows, rule)?;
                self.show_dynamic(&quantized)?;
                Some(quantized)
            }
        };
        self.show_history(TracePoint::ConvStateOut, &after)?;
        let rows_before = |all: &Matrix| all.rows(all.rows.min(1), all.rows);
        let window = match &quantized {
            Some(quantized) => Window {
                x: &quantized.codes.rows(taps - 1, quantized.codes.rows),
                step: taps - 1 + length,
                before: Some(quantized.codes.clone()),
                before_step: taps - 1 + length,
                scale: None,
                scales: Some(&quantized.scales),
                batch,
                length,
                taps,
            },
            None => Window {
                x: &x,
                step: length,
                // The oldest of K rows has left the window.
                before: before.map(rows_before),
                before_step: taps,
                scale: self.input_scale(&x, ScaleUse::ConvIn),
                scales: None,
                batch,
                length,
                taps,
            },
        };
        let rules = self.rules(self.layer.mode.conv).conv;
        let (kind, quantizer, point) = match self.layer.mode.conv_out {
            Precision::Int8 => {
                let scale = self.scale(ScaleUse::ConvOut);
                let values = x.rows * x.columns;
                let quantizer = self.quantizer(TracePoint::ConvOut, values, scale, rules.output);
                (Kind::I8(scale), quantizer, TracePoint::ConvOut)
            }
            Precision::Float => (Kind::F32, NO_QUANTIZER, TracePoint::ConvOutF32),
        };
        let out = conv_silu(&rules, &self.weights.conv, &window, kind, quantizer)?;
        self.show(point, &out)?;
        Ok((out, after))
    }

    /// What the history keeps of x: codes of a static scale, else real values.
    fn conv_input(&mut self, x: Matrix) -> Result<Matrix> {
        match (self.layer.mode.conv_in, x.kind) {
            (ConvInput::Static, Kind::I8(_)) => Ok(x),
            (ConvInput::Static, _) => {
                let rule = self.rules(Implementation::Cuda).conv_in;
                let codes = self.quantize(TracePoint::ConvIn, &x, ScaleUse::ConvIn, rule)?;
                self.show(TracePoint::ConvIn, &codes)?;
                Ok(codes)
            }
            _ => convert::real(&x, self.input_scale(&x, ScaleUse::ConvIn)),
        }
    }

    /// Shows what a dynamic quantizer made of the rows of x.
    fn show_dynamic(&mut self, quantized: &dynamic::Dynamic) -> Result<()> {
        let history = self.config.d_conv - 1;
        let scales = &quantized.scales;
        let own = match scales.rows {
            1 => scales.clone(),
            rows => scales.rows(history.min(rows), rows),
        };
        self.show(TracePoint::ConvInScale, &own)?;
        let codes = &quantized.codes;
        self.show(TracePoint::ConvIn, &codes.rows(history, codes.rows))
    }

    /// Shows a conv state, `[E, K]`, in decode.
    fn show_history(&mut self, point: TracePoint, history: &Matrix) -> Result<()> {
        if self.phase != Phase::Decode {
            return Ok(());
        }
        let place = self.place(point);
        show_as(self.probe, place, history, transposed)
    }
}

fn transposed(tensor: Tensor) -> Tensor {
    fn turn<T: Copy>(values: &Array2<T>) -> Array2<T> {
        values.t().as_standard_layout().into_owned()
    }
    match tensor {
        Tensor::I8(q) => Tensor::I8(QTensor {
            codes: turn(&q.codes),
            scale: q.scale,
        }),
        Tensor::Codes(q) => Tensor::Codes(turn(&q)),
        Tensor::F16(v) => Tensor::F16(turn(&v)),
        Tensor::F32(v) => Tensor::F32(turn(&v)),
    }
}
