//! One block: the steps in their order, each with the precision its mode assigns and the rules its
//! profile names.

mod batch;

use super::prepare::Layer;
use super::{Datapath, Phase};
use crate::arith::requant::QuantRule;
use crate::bench::Step;
use crate::error::Result;
use crate::mode::{ConvInput, Implementation, Precision, ScanInput, Stream, XOutput};
use crate::plan::ScaleUse;
use crate::quant::{QTensor, Scale};
use crate::step::conv::{ConvWindow, conv_silu};
use crate::step::linear::{LinearOutput, linear};
use crate::step::scan::{ScanInputs, Source, selective_scan};
use crate::step::{dynamic, norm, rotate};
use crate::trace::{Place, Probe, Tensor, TracePoint, show};
use ndarray::{Array2, Axis, Slice, concatenate, s};

/// The last K inputs of a block's convolution, oldest first, `[K, E]`.
#[derive(Clone, Debug, PartialEq)]
pub enum ConvHistory {
    /// INT8 codes on the static grid.
    Int8(QTensor),
    /// Real values: kept where the conv input is FP32, or quantized dynamically (a dynamic
    /// quantizer sees the whole window of each token again).
    Real(Array2<f32>),
}

/// What a block carries from token to token.
#[derive(Clone, Debug, PartialEq)]
pub struct LayerState {
    /// Conv inputs.
    pub conv: ConvHistory,
    /// Recurrent state, `[E, N]`, INT8 or FP32 as the mode says.
    pub ssm: Tensor,
}

/// What a block hands on.
pub(super) struct BlockOutput {
    pub hidden: Tensor,
    pub residual: Array2<f32>,
    pub state: LayerState,
}

/// One block about to run: its place, its prepared weights, who looks.
struct Run<'a, 'm> {
    path: &'a Datapath<'m>,
    layer: &'a Layer<'m>,
    index: usize,
    phase: Phase,
    probe: &'a mut dyn Probe,
}

impl Datapath<'_> {
    pub(super) fn block(
        &self,
        index: usize,
        phase: Phase,
        hidden: Tensor,
        residual: Option<Array2<f32>>,
        state: Option<LayerState>,
        probe: &mut dyn Probe,
    ) -> Result<BlockOutput> {
        let run = Run {
            path: self,
            layer: &self.layers[index],
            index,
            phase,
            probe,
        };
        run.run(hidden, residual, state)
    }

    /// The state of a block before the first token.
    pub(super) fn empty_layer_state(&self, index: usize) -> LayerState {
        let layer = &self.layers[index];
        let (e, n, k) = (self.config.d_inner, self.config.d_state, self.config.d_conv);
        let conv = match layer.mode.conv_in {
            ConvInput::Static => ConvHistory::Int8(QTensor {
                codes: Array2::zeros((k, e)),
                scale: scale_of(layer, ScaleUse::ConvIn),
            }),
            _ => ConvHistory::Real(Array2::zeros((k, e))),
        };
        let ssm = match layer.mode.state {
            Precision::Int8 => Tensor::I8(QTensor {
                codes: Array2::zeros((e, n)),
                scale: scale_of(layer, ScaleUse::StateOut),
            }),
            Precision::Float => Tensor::F32(Array2::zeros((e, n))),
        };
        LayerState { conv, ssm }
    }
}

fn scale_of(layer: &Layer, scale_use: ScaleUse) -> Scale {
    layer
        .scales
        .as_ref()
        .expect("a mode with an INT8 tensor has scales: `ModeSpec::needs_quantized`")
        .get(scale_use)
}

impl Run<'_, '_> {
    fn run(
        mut self,
        hidden: Tensor,
        residual: Option<Array2<f32>>,
        state: Option<LayerState>,
    ) -> Result<BlockOutput> {
        let before = state.unwrap_or_else(|| self.path.empty_layer_state(self.index));
        self.probe.enter(Step::Norm);
        let (residual, norm_out) = self.norm(hidden, residual)?;
        self.probe.enter(Step::InProj);
        let (x, z) = self.in_proj(&norm_out)?;
        self.probe.enter(Step::Conv);
        let (conv, conv_state) = self.conv(x, before.conv)?;
        self.probe.enter(Step::XProj);
        let x_proj_out = self.x_proj(&conv)?;
        self.probe.enter(Step::DtProj);
        let dt = self.dt_proj(&x_proj_out)?;
        self.probe.enter(Step::Scan);
        let u = self.scan_input(conv)?;
        let (y, ssm) = self.scan(&u, &dt, &x_proj_out, &z, before.ssm)?;
        self.probe.enter(Step::Hadamard);
        let rotated = self.rotate(&y)?;
        self.probe.enter(Step::OutProj);
        let hidden = self.out_proj(&rotated)?;
        Ok(BlockOutput {
            hidden,
            residual,
            state: LayerState {
                conv: conv_state,
                ssm,
            },
        })
    }

    fn place(&self, point: TracePoint) -> Place {
        Place::layer(self.index, point)
    }

    fn show(&mut self, point: TracePoint, value: Tensor) -> Result<Tensor> {
        let place = self.place(point);
        show(self.probe, place, value)
    }

    fn scale(&self, scale_use: ScaleUse) -> Scale {
        scale_of(self.layer, scale_use)
    }

    /// The scale a consumer believes a tensor to have; none for FP32.
    fn input_scale(&self, value: &Tensor, scale_use: ScaleUse) -> Option<Scale> {
        matches!(value, Tensor::I8(_)).then(|| self.scale(scale_use))
    }

    fn quantize(
        &mut self,
        point: TracePoint,
        values: &Array2<f32>,
        scale_use: ScaleUse,
        rule: QuantRule,
    ) -> QTensor {
        let (q, status) = QTensor::quantize(values, self.scale(scale_use), rule);
        self.probe.count(self.place(point), status);
        q
    }

    /// Quantizes an FP32 tensor between steps, which modes do in PyTorch.
    fn requantize(&mut self, point: TracePoint, values: &Array2<f32>, by: ScaleUse) -> QTensor {
        let rule = self
            .path
            .rules(Implementation::Torch, self.phase)
            .requantize;
        self.quantize(point, values, by, rule)
    }

    fn norm(
        &mut self,
        hidden: Tensor,
        residual: Option<Array2<f32>>,
    ) -> Result<(Array2<f32>, Tensor)> {
        let hidden = self.show(TracePoint::HiddenIn, hidden)?;
        let residual = match residual {
            Some(r) => Some(f32_of(self.show(TracePoint::ResidualIn, Tensor::F32(r))?)),
            None => None,
        };
        let eps = self.path.config.eps;
        let norm = &self.layer.norm;
        let mut out = norm::rms_norm(&hidden, residual.as_ref(), norm, eps);
        if self.probe.wants(self.place(TracePoint::ResidualOut)) {
            let shown = self.show(TracePoint::ResidualOut, Tensor::F32(out.residual))?;
            // The probe may have put another residual in its place.
            out = norm::rms_norm(&shown, None, norm, eps);
        }
        let value = match self.layer.mode.norm_out {
            Precision::Int8 => Tensor::I8(self.quantize(
                TracePoint::NormOut,
                &out.normed,
                ScaleUse::NormOut,
                QuantRule::NEAREST_EVEN,
            )),
            Precision::Float => Tensor::F32(out.normed),
        };
        Ok((out.residual, self.show(TracePoint::NormOut, value)?))
    }

    fn in_proj(&mut self, norm_out: &Tensor) -> Result<(Tensor, Tensor)> {
        let mode = &self.layer.mode;
        let s_in = self.input_scale(norm_out, ScaleUse::InProjIn);
        let order = self
            .path
            .rules(Implementation::Cuda, self.phase)
            .linear
            .in_proj;
        let x_output = match mode.x {
            XOutput::Int8 => LinearOutput::Int8(self.scale(ScaleUse::InProjOut)),
            XOutput::F16 => LinearOutput::F16,
            XOutput::Float => LinearOutput::F32,
        };
        let z_output = self.linear_output(mode.z, ScaleUse::InProjOut);
        let (x, mut status) = linear(norm_out, s_in, &self.layer.in_proj_x, order, x_output);
        let (z, z_status) = linear(norm_out, s_in, &self.layer.in_proj_z, order, z_output);
        status += z_status;
        self.probe.count(self.place(TracePoint::InProjOut), status);
        if x.dtype() != z.dtype() {
            let x = self.show(TracePoint::InProjX, x)?;
            let z = self.show(TracePoint::InProjZ, z)?;
            return Ok((x, z));
        }
        if !self.probe.wants(self.place(TracePoint::InProjOut)) {
            return Ok((x, z));
        }
        let e = self.path.config.d_inner;
        let both = self.show(TracePoint::InProjOut, join_columns(&x, &z))?;
        Ok((columns(&both, 0, e), columns(&both, e, 2 * e)))
    }

    fn linear_output(&self, precision: Precision, scale_use: ScaleUse) -> LinearOutput {
        match precision {
            Precision::Int8 => LinearOutput::Int8(self.scale(scale_use)),
            Precision::Float => LinearOutput::F32,
        }
    }

    /// Convolution with SiLU: its output, and the last K inputs.
    fn conv(&mut self, x: Tensor, before: ConvHistory) -> Result<(Tensor, ConvHistory)> {
        let before = self.show_history(TracePoint::ConvStateIn, before)?;
        let (window, after) = self.conv_window(x, before)?;
        let after = self.show_history(TracePoint::ConvStateOut, after)?;
        let rules = self.path.rules(self.layer.mode.conv, self.phase).conv;
        let y = conv_silu(rules.real, rules.form, &self.layer.conv, &window, true);
        let out = match self.layer.mode.conv_out {
            Precision::Int8 => {
                let q = self.quantize(TracePoint::ConvOut, &y, ScaleUse::ConvOut, rules.output);
                self.show(TracePoint::ConvOut, Tensor::I8(q))?
            }
            Precision::Float => self.show(TracePoint::ConvOutF32, Tensor::F32(y))?,
        };
        Ok((out, after))
    }

    /// Puts the history before x, quantizes as the mode says, and keeps the last K rows.
    fn conv_window(&mut self, x: Tensor, before: ConvHistory) -> Result<(ConvWindow, ConvHistory)> {
        let taps = self.layer.conv.taps();
        match before {
            ConvHistory::Int8(history) => {
                let x = match x {
                    Tensor::I8(x) => x.codes,
                    other => {
                        let rule = QuantRule::NEAREST_EVEN;
                        let point = TracePoint::ConvIn;
                        let q = self.quantize(point, &other.to_real(), ScaleUse::ConvIn, rule);
                        match self.show(point, Tensor::I8(q))? {
                            Tensor::I8(q) => q.codes,
                            _ => unreachable!("`show` keeps the type"),
                        }
                    }
                };
                let rows = stack(&history.codes, &x);
                let after = ConvHistory::Int8(QTensor {
                    codes: last_rows(&rows, taps),
                    scale: history.scale,
                });
                let window = ConvWindow::Int8 {
                    codes: rows.slice_axis(Axis(0), Slice::from(1..)).to_owned(),
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
                let rows = stack(&history, &real);
                let after = ConvHistory::Real(last_rows(&rows, taps));
                let window = rows.slice_axis(Axis(0), Slice::from(1..)).to_owned();
                let dynamic = match self.layer.mode.conv_in {
                    ConvInput::DynamicTensor => dynamic::per_tensor(&window),
                    ConvInput::DynamicToken => dynamic::per_token(&window),
                    _ => return Ok((ConvWindow::Real(window), after)),
                };
                Ok((self.show_dynamic(dynamic, real.nrows())?, after))
            }
        }
    }

    /// Shows what a dynamic quantizer made of the last `l` rows of a window.
    fn show_dynamic(&mut self, mut q: dynamic::DynamicTensor, l: usize) -> Result<ConvWindow> {
        let history = q.codes.nrows() - l;
        let own_scales = match q.scales.len() {
            1 => &q.scales[..],
            _ => &q.scales[history..],
        };
        let column = Array2::from_shape_fn((own_scales.len(), 1), |(i, _)| own_scales[i].get());
        self.show(TracePoint::ConvInScale, Tensor::F32(column))?;
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

    /// Route A: x_proj on the conv's output.
    fn x_proj(&mut self, conv: &Tensor) -> Result<Tensor> {
        let mode = &self.layer.mode;
        let input = match (conv, mode.x_proj_in) {
            (Tensor::I8(_), Precision::Int8) | (Tensor::F32(_), Precision::Float) => None,
            (Tensor::I8(q), Precision::Float) => {
                Some(Tensor::F32(self.dequantize(q, ScaleUse::XProjIn)))
            }
            (other, Precision::Int8) => {
                let real = other.to_real();
                let q = self.requantize(TracePoint::XProjIn, &real, ScaleUse::XProjQuant);
                Some(Tensor::I8(q))
            }
            (other, Precision::Float) => Some(Tensor::F32(other.to_real())),
        };
        let input = match input {
            Some(made_here) => Some(self.show(TracePoint::XProjIn, made_here)?),
            None => None,
        };
        let input = input.as_ref().unwrap_or(conv);
        let s_in = self.input_scale(input, ScaleUse::XProjIn);
        let order = self
            .path
            .rules(Implementation::Cuda, self.phase)
            .linear
            .x_proj;
        let output = self.linear_output(mode.x_proj_out, ScaleUse::XProjOut);
        let (out, status) = linear(input, s_in, &self.layer.x_proj, order, output);
        self.probe.count(self.place(TracePoint::XProjOut), status);
        self.show(TracePoint::XProjOut, out)
    }

    fn dt_proj(&mut self, x_proj_out: &Tensor) -> Result<Tensor> {
        let dt = columns(x_proj_out, 0, self.path.config.dt_rank);
        let s_in = self.input_scale(&dt, ScaleUse::DtProjIn);
        let order = self
            .path
            .rules(Implementation::Cuda, self.phase)
            .linear
            .dt_proj;
        let output = self.linear_output(self.layer.mode.dt_proj_out, ScaleUse::DtProjOut);
        let (out, status) = linear(&dt, s_in, &self.layer.dt_proj, order, output);
        self.probe.count(self.place(TracePoint::DtProjOut), status);
        self.show(TracePoint::DtProjOut, out)
    }

    /// Route B: the scan's main input.
    fn scan_input(&mut self, conv: Tensor) -> Result<Tensor> {
        let u = match (conv, self.layer.mode.u) {
            (Tensor::I8(q), ScanInput::Int8) => Tensor::I8(q),
            (Tensor::I8(q), ScanInput::Float) => Tensor::F32(self.dequantize(&q, ScaleUse::ScanU)),
            (Tensor::I8(q), ScanInput::RoundTrip) => {
                let real = self.dequantize(&q, ScaleUse::ScanU);
                Tensor::I8(self.requantize(TracePoint::SsmU, &real, ScaleUse::ScanUQuant))
            }
            (real, ScanInput::Float) => real,
            (real, ScanInput::Int8 | ScanInput::RoundTrip) => {
                let real = real.to_real();
                Tensor::I8(self.requantize(TracePoint::SsmU, &real, ScaleUse::ScanUQuant))
            }
        };
        self.show(TracePoint::SsmU, u)
    }

    fn scan(
        &mut self,
        u: &Tensor,
        dt: &Tensor,
        x_proj_out: &Tensor,
        z: &Tensor,
        before: Tensor,
    ) -> Result<(Tensor, Tensor)> {
        let (r, n) = (self.path.config.dt_rank, self.path.config.d_state);
        let b = columns(x_proj_out, r, r + n);
        let c = columns(x_proj_out, r + n, r + 2 * n);
        let before = match self.phase {
            Phase::Prefill => None,
            Phase::Decode => Some(self.show(TracePoint::SsmStateIn, before)?),
        };
        let rules = self.path.rules(self.layer.mode.scan, self.phase).scan;
        let inputs = ScanInputs {
            u: self.source(u, ScaleUse::ScanU),
            dt: self.source(dt, ScaleUse::ScanDt),
            b: self.source(&b, ScaleUse::ScanB),
            c: self.source(&c, ScaleUse::ScanC),
            z: Some(self.source(z, ScaleUse::ScanZ)),
            state: before.as_ref().map(|s| self.source(s, ScaleUse::StateIn)),
        };
        let out = selective_scan(&rules, &self.layer.scan, &inputs);
        let y = match self.layer.mode.stream {
            Stream::F16 => Tensor::f16(&out.y),
            Stream::Float => Tensor::F32(out.y),
        };
        let y = self.show(TracePoint::SsmY, y)?;
        let point = match self.phase {
            Phase::Prefill => TracePoint::SsmState,
            Phase::Decode => TracePoint::SsmStateOut,
        };
        let last = match self.layer.mode.state {
            Precision::Int8 => {
                Tensor::I8(self.quantize(point, &out.state, ScaleUse::StateOut, rules.state))
            }
            Precision::Float => Tensor::F32(out.state),
        };
        Ok((y, self.show(point, last)?))
    }

    fn rotate(&mut self, y: &Tensor) -> Result<Tensor> {
        let real = y.to_real();
        let overflow = self
            .path
            .rules(Implementation::Cuda, self.phase)
            .hadamard_overflow;
        let out = match (self.layer.rotation, self.layer.mode.had_out) {
            (Some(size), Precision::Int8) => {
                let scale = self.scale(ScaleUse::HadOut);
                let factor = rotate::quantizer_factor(size, scale);
                let (q, status) = rotate::rotate_quantize(real, size, factor, scale, overflow);
                self.probe.count(self.place(TracePoint::HadOut), status);
                Tensor::I8(q)
            }
            (Some(size), Precision::Float) => Tensor::F32(rotate::rotate(real, size)),
            (None, Precision::Int8) => Tensor::I8(self.quantize(
                TracePoint::HadOut,
                &real,
                ScaleUse::HadOut,
                QuantRule::HALF_AWAY,
            )),
            (None, Precision::Float) => Tensor::F32(real),
        };
        self.show(TracePoint::HadOut, out)
    }

    fn out_proj(&mut self, rotated: &Tensor) -> Result<Tensor> {
        let s_in = self.input_scale(rotated, ScaleUse::OutProjIn);
        let order = self
            .path
            .rules(Implementation::Cuda, self.phase)
            .linear
            .out_proj;
        let output = match self.layer.mode.stream {
            Stream::F16 => LinearOutput::F16,
            Stream::Float => LinearOutput::F32,
        };
        let (out, _) = linear(rotated, s_in, &self.layer.out_proj, order, output);
        self.show(TracePoint::OutProjOut, out)
    }

    fn dequantize(&self, q: &QTensor, scale_use: ScaleUse) -> Array2<f32> {
        let mut real = Array2::zeros(q.codes.dim());
        crate::quant::dequantize_slice(
            q.codes.as_slice().expect("codes are row-major"),
            self.scale(scale_use),
            real.as_slice_mut().expect("fresh arrays are row-major"),
        );
        real
    }

    fn source<'t>(&self, value: &'t Tensor, scale_use: ScaleUse) -> Source<'t> {
        match value {
            Tensor::I8(q) => Source::Int8 {
                codes: &q.codes,
                scale: self.scale(scale_use),
            },
            Tensor::F32(values) => Source::Real(values),
            Tensor::F16(_) | Tensor::Codes(_) => {
                unreachable!("steps before the scan emit INT8 with a scale, or FP32")
            }
        }
    }
}

fn f32_of(value: Tensor) -> Array2<f32> {
    match value {
        Tensor::F32(values) => values,
        other => other.to_real(),
    }
}

fn transposed<T: Copy>(values: &Array2<T>) -> Array2<T> {
    values.t().as_standard_layout().into_owned()
}

fn stack<T: Copy>(above: &Array2<T>, below: &Array2<T>) -> Array2<T> {
    concatenate(Axis(0), &[above.view(), below.view()]).expect("both have E columns")
}

fn last_rows<T: Copy>(rows: &Array2<T>, count: usize) -> Array2<T> {
    rows.slice(s![rows.nrows() - count.., ..]).to_owned()
}

/// Columns `[first, last)` of a tensor, row-major.
fn columns(value: &Tensor, first: usize, last: usize) -> Tensor {
    let cut = s![.., first..last];
    match value {
        Tensor::I8(q) => Tensor::I8(QTensor {
            codes: q.codes.slice(cut).as_standard_layout().into_owned(),
            scale: q.scale,
        }),
        Tensor::Codes(v) => Tensor::Codes(v.slice(cut).as_standard_layout().into_owned()),
        Tensor::F16(v) => Tensor::F16(v.slice(cut).as_standard_layout().into_owned()),
        Tensor::F32(v) => Tensor::F32(v.slice(cut).as_standard_layout().into_owned()),
    }
}

/// Two tensors of one type side by side.
fn join_columns(left: &Tensor, right: &Tensor) -> Tensor {
    fn join<T: Copy>(left: &Array2<T>, right: &Array2<T>) -> Array2<T> {
        concatenate(Axis(1), &[left.view(), right.view()])
            .expect("both have L rows")
            .as_standard_layout()
            .into_owned()
    }
    match (left, right) {
        (Tensor::I8(a), Tensor::I8(b)) => Tensor::I8(QTensor {
            codes: join(&a.codes, &b.codes),
            scale: a.scale,
        }),
        (Tensor::F16(a), Tensor::F16(b)) => Tensor::F16(join(a, b)),
        (a, b) => Tensor::F32(join(&a.to_real(), &b.to_real())),
    }
}
