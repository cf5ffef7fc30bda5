//! One block: the steps in their order, each with the precision its mode assigns, the scale that
//! [`crate::dataflow`] names and the rules of its profile. A [`Backend`] makes the tensors: the CPU
//! (`datapath/cpu`) or a GPU (`cuda/gpu`). What is made from what is decided here alone.

mod conv;
mod hadamard;
mod linears;
mod norm;
mod scan;

use crate::arith::requant::QuantRule;
use crate::dataflow::{Phase, Step};
use crate::datapath::Layer;
use crate::error::{Result, SimError};
use crate::mode::{Implementation, Precision, RouteA};
use crate::model::Config;
use crate::plan::ScaleUse;
use crate::profile::StepRules;
use crate::profile::unit::{ActivationGranularity, ScaleGrid};
use crate::quant::Scale;
use crate::trace::{Place, TracePoint};
use std::ops::Range;

pub(crate) use conv::ConvStep;
pub(crate) use hadamard::HadamardStep;
pub(crate) use linears::LinearSteps;
pub(crate) use norm::NormStep;
pub(crate) use scan::{ScanReads, ScanStep, StateOutput};

/// The block that runs: its weights, scales and mode, its place in the model, the phase.
#[derive(Clone, Copy)]
pub(crate) struct Site<'a, 'm> {
    pub config: &'a Config,
    pub layer: &'a Layer<'m>,
    pub index: usize,
    pub phase: Phase,
}

impl<'a> Site<'a, '_> {
    /// The rules this block follows where the mode names an implementation.
    pub fn rules(&self, implementation: Implementation) -> &'a StepRules {
        let arithmetic = self.layer.profile.arithmetic(implementation);
        match self.phase {
            Phase::Prefill => &arithmetic.prefill,
            Phase::Decode => &arithmetic.decode,
        }
    }

    /// A point of this block.
    pub fn place(&self, point: TracePoint) -> Place {
        Place::layer(self.index, point)
    }

    /// The scale of a use.
    pub fn scale(&self, scale_use: ScaleUse) -> Scale {
        self.layer.scale(scale_use)
    }
}

/// What the elements of a tensor are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    /// INT8 codes of one scale.
    Int8,
    /// INT8 codes whose scales stand beside them.
    Codes,
    /// binary16.
    F16,
    /// FP32.
    F32,
}

/// What the output of a step becomes.
#[derive(Clone, Copy)]
pub(crate) enum Output {
    /// FP32.
    Real,
    /// INT8 of a scale.
    Int8(Scale),
    /// INT8 with a scale for each token, found as the step runs.
    Tokens {
        /// The scales that there are.
        grid: ScaleGrid,
        /// The tensor's calibrated scale, by which a chip's integers are sized.
        calibrated: Scale,
    },
}

/// A tensor that a step reads, with the scale the step believes its codes to have; none for real values.
pub(crate) struct Read<'v, V> {
    pub value: &'v V,
    pub scale: Option<Scale>,
}

/// Holds the tensors of a block, shows and converts them. Shown tensors may come back changed.
pub(crate) trait Tensors {
    /// A tensor between steps.
    type Value;
    /// What in_proj and out_proj read: a tensor, or codes whose tokens have scales of their own.
    type Operand;

    /// Names the step that begins.
    fn enter(&mut self, step: Step) -> Result<()>;
    /// Whether somebody looks at a point.
    fn wants(&self, point: TracePoint) -> bool;
    /// Shows a tensor.
    fn show(&mut self, point: TracePoint, value: Self::Value) -> Result<Self::Value>;
    /// Shows two tensors of one type as one, side by side.
    fn show_both(
        &mut self,
        point: TracePoint,
        left: Self::Value,
        right: Self::Value,
    ) -> Result<(Self::Value, Self::Value)>;
    /// Shows what in_proj or out_proj reads, and the scales of its tokens if it has them.
    fn show_operand(&mut self, point: TracePoint, value: Self::Operand) -> Result<Self::Operand>;

    /// What the elements are.
    fn kind(value: &Self::Value) -> Kind;
    /// What the elements are.
    fn operand_kind(operand: &Self::Operand) -> Kind;
    /// The same tensor for another reader.
    fn share(value: &Self::Value) -> Self::Value;
    /// Some columns.
    fn columns(&self, value: &Self::Value, columns: &Range<usize>) -> Self::Value;
    /// The values in FP32, codes times a scale.
    fn real(&self, value: &Self::Value, scale: Option<Scale>) -> Result<Self::Value>;
    /// Quantizes real values; what had to be made fit is counted at a point.
    fn quantize(
        &mut self,
        point: TracePoint,
        values: &Self::Value,
        scale: Scale,
        rule: QuantRule,
    ) -> Result<Self::Value>;
}

/// Makes the tensors of a block: one trait for each step, beside what is decided of the step.
pub(crate) trait Backend:
    NormStep + LinearSteps + ConvStep + ScanStep + HadamardStep
{
}

impl<B: NormStep + LinearSteps + ConvStep + ScanStep + HadamardStep> Backend for B {}

/// What a block carries from token to token.
#[derive(Clone, Debug, PartialEq)]
pub struct BlockState<H, V> {
    /// The last K inputs of the convolution.
    pub conv: H,
    /// Recurrent state, `[E, N]`, INT8 or FP32 as the mode says.
    pub ssm: V,
}

/// What a block hands on.
pub(crate) struct BlockOutput<B: Backend> {
    pub hidden: B::Value,
    pub residual: B::Value,
    pub state: BlockState<B::History, B::Value>,
}

/// What the convolution's output becomes.
pub(crate) struct Routed<V> {
    pub x_proj_out: V,
    pub dt: V,
    pub u: V,
}

/// One block about to run.
pub(crate) struct Run<'a, 'm, B> {
    pub at: Site<'a, 'm>,
    pub on: B,
}

impl<B: Backend> Run<'_, '_, B> {
    /// Runs the block; no state is zeros.
    pub fn run(
        mut self,
        hidden: B::Value,
        residual: Option<B::Value>,
        state: Option<BlockState<B::History, B::Value>>,
    ) -> Result<BlockOutput<B>> {
        let (history, ssm) = match state {
            Some(state) => (Some(state.conv), Some(state.ssm)),
            None => (None, None),
        };
        let index = self.at.index;
        let at = |step| within(index, step);
        self.on.enter(Step::Norm)?;
        let (residual, norm_out) = self.norm(hidden, residual).map_err(at(Step::Norm))?;
        self.on.enter(Step::InProj)?;
        let (x, z) = self.in_proj(&norm_out).map_err(at(Step::InProj))?;
        self.on.enter(Step::Conv)?;
        let (out, conv) = self.conv(x, history).map_err(at(Step::Conv))?;
        let Routed { x_proj_out, dt, u } = self.routes(out)?;
        let (y, ssm) = self
            .scan(&u, &dt, &x_proj_out, &z, ssm)
            .map_err(at(Step::Scan))?;
        self.on.enter(Step::Hadamard)?;
        let rotated = self.hadamard(&y).map_err(at(Step::Hadamard))?;
        self.on.enter(Step::OutProj)?;
        let hidden = self.out_proj(&rotated).map_err(at(Step::OutProj))?;
        Ok(BlockOutput {
            hidden,
            residual,
            state: BlockState { conv, ssm },
        })
    }

    /// Both routes out of the convolution, up to the scan.
    pub fn routes(&mut self, conv: B::Value) -> Result<Routed<B::Value>> {
        // Route B comes first where route A begins at its end.
        let (route_a, early) = match self.at.layer.mode.x_proj_from {
            RouteA::Conv => (conv, None),
            RouteA::U => {
                self.on.enter(Step::Scan)?;
                let u = self.scan_input(conv)?;
                (B::share(&u), Some(u))
            }
        };
        self.on.enter(Step::XProj)?;
        let at = |step| within(self.at.index, step);
        let (x_proj, dt_proj) = (at(Step::XProj), at(Step::DtProj));
        let x_proj_out = self.x_proj(&route_a).map_err(x_proj)?;
        self.on.enter(Step::DtProj)?;
        let dt = self.dt_proj(&x_proj_out).map_err(dt_proj)?;
        self.on.enter(Step::Scan)?;
        let u = match early {
            Some(u) => u,
            None => self.scan_input(route_a)?,
        };
        Ok(Routed { x_proj_out, dt, u })
    }

    /// What an input of in_proj or out_proj is.
    fn operand(&self, precision: Precision, scale_use: ScaleUse) -> Output {
        let storage = &self.at.layer.profile.storage;
        match (precision, storage.activation_granularity) {
            (Precision::Float, _) => Output::Real,
            (Precision::Int8, ActivationGranularity::Token) => Output::Tokens {
                grid: storage.activation_scales,
                calibrated: self.at.scale(scale_use),
            },
            (Precision::Int8, ActivationGranularity::Tensor) => {
                Output::Int8(self.at.scale(scale_use))
            }
        }
    }

    /// A tensor as a step reads it.
    fn read<'v>(&self, value: &'v B::Value, scale_use: ScaleUse) -> Read<'v, B::Value> {
        Read {
            value,
            scale: self.believed(B::kind(value), scale_use),
        }
    }

    /// The scale a step believes what it reads to have; none for real values, and for codes that come with
    /// their scales.
    fn believed(&self, kind: Kind, scale_use: ScaleUse) -> Option<Scale> {
        (kind == Kind::Int8).then(|| self.at.scale(scale_use))
    }

    /// Quantizes real values between steps, which modes do in PyTorch.
    fn requantize(
        &mut self,
        point: TracePoint,
        values: &B::Value,
        by: ScaleUse,
    ) -> Result<B::Value> {
        let (scale, rule) = (self.at.scale(by), self.requantizer());
        self.on.quantize(point, values, scale, rule)
    }

    /// The rule of quantizers between steps.
    fn requantizer(&self) -> QuantRule {
        let rule = self.at.rules(Implementation::Torch).requantize;
        self.at.layer.mode.requantize(rule)
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
