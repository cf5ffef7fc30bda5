//! Convolution with SiLU, its input, and the history kept for decode.

use super::{Backend, Kind, Read, Run, Tensors};
use crate::arith::requant::QuantRule;
use crate::dataflow::Phase;
use crate::error::Result;
use crate::mode::{ConvInput, Implementation, Precision};
use crate::plan::ScaleUse;
use crate::profile::ConvRules;
use crate::quant::Scale;
use crate::trace::TracePoint;

pub(crate) trait ConvStep: Tensors {
    /// The last K inputs of the convolution.
    type History;
    /// The rows under the convolution's taps: those of the history, and x below them.
    type Window;

    /// Shows a history as `[E, K]`.
    fn show_history(&mut self, point: TracePoint, history: Self::History) -> Result<Self::History>;

    /// x below the rows of a history (zeros if none), and the history after it; codes are read, and kept, with
    /// the scale.
    fn window(
        &mut self,
        x: Self::Value,
        scale: Option<Scale>,
        before: Option<Self::History>,
    ) -> Result<(Self::Window, Self::History)>;

    /// Quantizes a window with a scale found for each of its rows or for all of them, and shows the rows
    /// of x and their scales.
    fn quantize_window(
        &mut self,
        window: Self::Window,
        each_row: bool,
        rule: QuantRule,
    ) -> Result<Self::Window>;

    /// Convolves and applies SiLU: FP32, or INT8 of a scale.
    fn conv(
        &mut self,
        rules: &ConvRules,
        window: Self::Window,
        output: Option<Scale>,
    ) -> Result<Self::Value>;
}

impl<B: Backend> Run<'_, '_, B> {
    /// Convolution with SiLU: its output, and the last K inputs.
    pub fn conv(
        &mut self,
        x: B::Value,
        before: Option<B::History>,
    ) -> Result<(B::Value, B::History)> {
        let before = match before {
            Some(before) => Some(self.show_history(TracePoint::ConvStateIn, before)?),
            None => None,
        };
        let x = self.conv_input(x)?;
        let scale = self.believed(B::kind(&x), ScaleUse::ConvIn);
        let (window, after) = self.on.window(x, scale, before)?;
        // Found at run time: PyTorch's, whose quotient has the type of x.
        let mode = &self.at.layer.mode;
        let rule = self.at.rules(Implementation::Torch).requantize;
        let rule = mode.conv_in_quotient.of(rule);
        let window = match mode.conv_in {
            ConvInput::Static | ConvInput::Float => window,
            ConvInput::DynamicTensor => self.on.quantize_window(window, false, rule)?,
            ConvInput::DynamicToken => self.on.quantize_window(window, true, rule)?,
        };
        let after = self.show_history(TracePoint::ConvStateOut, after)?;
        let rules = &self.at.rules(mode.conv).conv;
        let (output, point) = match mode.conv_out {
            Precision::Int8 => {
                let scale = self.at.scale(ScaleUse::ConvOut);
                (Some(scale), TracePoint::ConvOut)
            }
            Precision::Float => (None, TracePoint::ConvOutF32),
        };
        let out = self.on.conv(rules, window, output)?;
        Ok((self.on.show(point, out)?, after))
    }

    /// What the history keeps of x: codes of a static scale, else real values, for a dynamic quantizer sees
    /// the whole window of each token again.
    fn conv_input(&mut self, x: B::Value) -> Result<B::Value> {
        match (self.at.layer.mode.conv_in, B::kind(&x)) {
            (ConvInput::Static, Kind::Int8) => Ok(x),
            (ConvInput::Static, Kind::Codes | Kind::F16 | Kind::F32) => {
                let rule = self.at.rules(Implementation::Cuda).conv_in;
                let scale = self.at.scale(ScaleUse::ConvIn);
                let codes = self.on.quantize(TracePoint::ConvIn, &x, scale, rule)?;
                self.on.show(TracePoint::ConvIn, codes)
            }
            (ConvInput::Float | ConvInput::DynamicTensor | ConvInput::DynamicToken, _) => {
                let Read { value, scale } = self.read(&x, ScaleUse::ConvIn);
                self.on.real(value, scale)
            }
        }
    }

    /// A history is shown in decode alone: prefill begins without one.
    fn show_history(&mut self, point: TracePoint, history: B::History) -> Result<B::History> {
        match self.at.phase {
            Phase::Prefill => Ok(history),
            Phase::Decode => self.on.show_history(point, history),
        }
    }
}
