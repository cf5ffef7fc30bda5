//! One block: the steps in their order, each with the precision its mode assigns and the rules its
//! profile names.

mod batch;
mod columns;
mod conv;
mod linears;
mod norm;
mod rotate;
mod scan;

use super::Datapath;
use super::prepare::Layer;
use crate::arith::accumulate::{Accumulated, Accumulator};
use crate::arith::requant::QuantRule;
use crate::dataflow::Phase;
use crate::dataflow::Step;
use crate::error::{Result, SimError};
use crate::mode::{ConvInput, Implementation, Precision, Projected, RouteA};
use crate::plan::ScaleUse;
use crate::profile::StepRules;
use crate::profile::unit::ActivationGranularity;
use crate::quant::{QTensor, Scale};
use crate::step::dynamic::DynamicTensor;
use crate::trace::{Place, Probe, Tensor, TracePoint, show};
use ndarray::Array2;

pub use conv::ConvHistory;

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

/// What in_proj or out_proj reads.
pub(super) enum Operand {
    /// Codes of one scale, or FP32.
    Tensor(Tensor),
    /// Codes whose tokens have scales of their own.
    Tokens(DynamicTensor),
}

/// One block about to run: its place, its prepared weights, who looks.
struct Run<'a, 'm> {
    path: &'a Datapath<'m>,
    layer: &'a Layer<'m>,
    index: usize,
    phase: Phase,
    probe: &'a mut dyn Probe,
}

/// What the convolution's output becomes.
struct Routed {
    x_proj_out: Tensor,
    dt: Tensor,
    u: Tensor,
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
        crate::progress::go_on()?;
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
                scale: layer.scale(ScaleUse::ConvIn),
            }),
            _ => ConvHistory::Real(Array2::zeros((k, e))),
        };
        let ssm = match layer.mode.state {
            Precision::Int8 => Tensor::I8(QTensor {
                codes: Array2::zeros((e, n)),
                scale: layer.scale(ScaleUse::StateOut),
            }),
            Precision::Float => Tensor::F32(Array2::zeros((e, n))),
        };
        LayerState { conv, ssm }
    }
}

impl Run<'_, '_> {
    fn run(
        mut self,
        hidden: Tensor,
        residual: Option<Array2<f32>>,
        state: Option<LayerState>,
    ) -> Result<BlockOutput> {
        let before = state.unwrap_or_else(|| self.path.empty_layer_state(self.index));
        let index = self.index;
        let at = |step| within(index, step);
        self.probe.enter(Step::Norm);
        let (residual, norm_out) = self.norm(hidden, residual).map_err(at(Step::Norm))?;
        self.probe.enter(Step::InProj);
        let (x, z) = self.in_proj(&norm_out).map_err(at(Step::InProj))?;
        self.probe.enter(Step::Conv);
        let (conv, conv_state) = self.conv(x, before.conv).map_err(at(Step::Conv))?;
        let Routed { x_proj_out, dt, u } = self.routes(conv)?;
        let (y, ssm) = self
            .scan(&u, &dt, &x_proj_out, &z, before.ssm)
            .map_err(at(Step::Scan))?;
        self.probe.enter(Step::Hadamard);
        let rotated = self.rotate(&y).map_err(at(Step::Hadamard))?;
        self.probe.enter(Step::OutProj);
        let hidden = self.out_proj(&rotated).map_err(at(Step::OutProj))?;
        Ok(BlockOutput {
            hidden,
            residual,
            state: LayerState {
                conv: conv_state,
                ssm,
            },
        })
    }

    /// Both routes out of the convolution, up to the scan.
    fn routes(&mut self, conv: Tensor) -> Result<Routed> {
        let (route_a, early) = match self.layer.mode.x_proj_from {
            RouteA::Conv => (conv, None),
            RouteA::U => {
                self.probe.enter(Step::Scan);
                let u = self.scan_input(conv)?;
                (u.clone(), Some(u))
            }
        };
        self.probe.enter(Step::XProj);
        let at = |step| within(self.index, step);
        let (x_proj, dt_proj) = (at(Step::XProj), at(Step::DtProj));
        let x_proj_out = self.x_proj(&route_a).map_err(x_proj)?;
        self.probe.enter(Step::DtProj);
        let dt = self.dt_proj(&x_proj_out).map_err(dt_proj)?;
        self.probe.enter(Step::Scan);
        let u = match early {
            Some(u) => u,
            None => self.scan_input(route_a)?,
        };
        Ok(Routed { x_proj_out, dt, u })
    }

    /// The rules this block follows where the mode names an implementation.
    fn rules(&self, implementation: Implementation) -> &StepRules {
        let arithmetic = self.layer.profile.arithmetic(implementation);
        match self.phase {
            Phase::Prefill => &arithmetic.prefill,
            Phase::Decode => &arithmetic.decode,
        }
    }

    fn place(&self, point: TracePoint) -> Place {
        Place::layer(self.index, point)
    }

    fn show(&mut self, point: TracePoint, value: Tensor) -> Result<Tensor> {
        let place = self.place(point);
        let value = match self.layer.transposed.contains(&point) {
            true => columns::rewritten(value),
            false => value,
        };
        show(self.probe, place, value)
    }

    fn scale(&self, scale_use: ScaleUse) -> Scale {
        self.layer.scale(scale_use)
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
        self.quantize(point, values, by, self.requantizer())
    }

    /// The rule of quantizers between steps.
    fn requantizer(&self) -> QuantRule {
        let rule = self.rules(Implementation::Torch).requantize;
        self.layer.mode.requantize(rule)
    }

    /// An FP32 output of a projection: as it is, or on its grid.
    fn projected(&mut self, point: TracePoint, real: Tensor, by: ScaleUse) -> Tensor {
        match (real, self.layer.mode.projected) {
            (Tensor::F32(real), Projected::Grid) => {
                Tensor::F32(self.requantize(point, &real, by).dequantize())
            }
            (as_it_is, _) => as_it_is,
        }
    }

    /// Whether the inputs of in_proj and out_proj have a scale for each token.
    fn by_token(&self) -> bool {
        let granularity = self.layer.profile.storage.activation_granularity;
        granularity == ActivationGranularity::Token
    }

    /// Shows codes whose tokens have scales of their own, and the scales.
    fn show_tokens(&mut self, point: TracePoint, q: DynamicTensor) -> Result<Operand> {
        let codes = match self.show(point, Tensor::Codes(q.codes))? {
            Tensor::Codes(codes) => codes,
            _ => unreachable!("`show` keeps the type"),
        };
        let scales = Array2::from_shape_fn((q.scales.len(), 1), |(t, _)| q.scales[t].get());
        let point = point.scales().expect("a point that can be dynamic");
        let scales = f32_of(self.show(point, Tensor::F32(scales))?);
        let scales = scales.iter().map(|scale| Scale::new(*scale));
        Ok(Operand::Tokens(DynamicTensor {
            codes,
            scales: scales.collect::<Result<_>>()?,
        }))
    }

    /// Hands on what accumulators came to, and ends the run if one may not overflow and did.
    fn accumulated(&mut self, point: TracePoint, by: Accumulator, seen: Accumulated) -> Result<()> {
        let place = self.place(point);
        super::accumulated(self.probe, place, by, seen)
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
}

/// Names the step of an error.
fn within(index: usize, step: Step) -> impl Fn(SimError) -> SimError {
    move |e| match &e {
        // A probe names the tensor, and with it the block.
        SimError::Value { item, .. } if Place::from_key(item).is_some() => e,
        _ => e.within(format_args!("block {index}: {}", step.name())),
    }
}

fn f32_of(value: Tensor) -> Array2<f32> {
    match value {
        Tensor::F32(values) => values,
        other => other.to_real(),
    }
}
