//! Convolution with SiLU, its input window, dynamic quantization, and the history kept for decode.

use super::Gpu;
use crate::arith::requant::QuantRule;
use crate::block::{ConvStep, Output, Tensors};
use crate::cuda::matrix::{Kind, Matrix};
use crate::cuda::show::show_as;
use crate::cuda::step::conv::{Window, conv_silu, last_rows};
use crate::cuda::step::dynamic::{self, Dynamic};
use crate::error::Result;
use crate::profile::ConvRules;
use crate::quant::{QTensor, Scale};
use crate::trace::{Tensor, TracePoint};
use ndarray::Array2;

/// The rows under the taps.
pub struct Rows {
    x: Matrix,
    /// That of x, if x is codes.
    scale: Option<Scale>,
    before: Option<Matrix>,
    /// Codes of the K−1 rows before and of the rows of x, where their scale is found at run time.
    dynamic: Option<Dynamic>,
}

impl ConvStep for Gpu<'_, '_> {
    type History = Matrix;
    type Window = Rows;

    fn show_history(&mut self, point: TracePoint, history: Matrix) -> Result<Matrix> {
        show_as(self.probe, self.at.place(point), &history, transposed)?;
        Ok(history)
    }

    fn window(
        &mut self,
        x: Matrix,
        scale: Option<Scale>,
        before: Option<Matrix>,
    ) -> Result<(Rows, Matrix)> {
        let mut after = self.last_rows(&x, before.as_ref(), self.at.config.d_conv)?;
        if let (Kind::I8(kept), Some(scale)) = (&mut after.kind, scale) {
            *kept = scale;
        }
        let rows = Rows {
            x,
            scale,
            before,
            dynamic: None,
        };
        Ok((rows, after))
    }

    fn quantize_window(&mut self, rows: Rows, each_row: bool, rule: QuantRule) -> Result<Rows> {
        let count = self.at.config.d_conv - 1 + self.extent.length;
        let all = self.last_rows(&rows.x, rows.before.as_ref(), count)?;
        let group = if each_row { 1 } else { count };
        let quantized = dynamic::quantize(&all, group, rule)?;
        self.show_dynamic(&quantized)?;
        Ok(Rows {
            dynamic: Some(quantized),
            ..rows
        })
    }

    fn conv(&mut self, rules: &ConvRules, rows: Rows, output: Option<Scale>) -> Result<Matrix> {
        let taps = self.at.config.d_conv;
        let (batch, length) = (self.extent.batch, self.extent.length);
        let window = match &rows.dynamic {
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
                x: &rows.x,
                step: length,
                // The oldest of K rows has left the window.
                before: (rows.before.as_ref()).map(|all| all.rows(all.rows.min(1), all.rows)),
                before_step: taps,
                scale: rows.scale,
                scales: None,
                batch,
                length,
                taps,
            },
        };
        let values = rows.x.rows * rows.x.columns;
        let output = output.map_or(Output::Real, Output::Int8);
        let (kind, quantizer) = self.emit(TracePoint::ConvOut, values, output, rules.output)?;
        conv_silu(rules, &self.weights.conv, &window, kind, quantizer)
    }
}

impl Gpu<'_, '_> {
    /// The last rows of each sequence's history and x.
    fn last_rows(&self, x: &Matrix, before: Option<&Matrix>, rows: usize) -> Result<Matrix> {
        let (batch, length) = (self.extent.batch, self.extent.length);
        last_rows(x, before, self.at.config.d_conv, batch, length, rows)
    }

    /// Shows what a dynamic quantizer made of the rows of x.
    fn show_dynamic(&mut self, quantized: &Dynamic) -> Result<()> {
        let history = self.at.config.d_conv - 1;
        let scales = &quantized.scales;
        let own = match scales.rows {
            1 => scales.clone(),
            rows => scales.rows(history.min(rows), rows),
        };
        self.show(TracePoint::ConvInScale, own)?;
        let codes = &quantized.codes;
        self.show(TracePoint::ConvIn, codes.rows(history, codes.rows))?;
        Ok(())
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
