//! One block on the device: the steps in their order, each with the precision its mode assigns and
//! the rules its profile names. Twin: `datapath/block`.

mod conv;
mod linears;
mod scan;

use super::args::{Pointer, Quantizer, Status as Counted};
use super::device::Buffer;
use super::matrix::{Kind, Matrix};
use super::rules::{self, NO_QUANTIZER};
use super::step::{convert, norm, rotate};
use super::timing::Clock;
use super::weights::Weights;
use crate::arith::requant::QuantRule;
use crate::arith::saturate::{Overflow, Status};
use crate::dataflow::Phase;
use crate::dataflow::Step;
use crate::datapath::Layer;
use crate::error::Result;
use crate::mode::{Implementation, Precision};
use crate::model::Config;
use crate::plan::ScaleUse;
use crate::profile::{FinalNorm, StepRules};
use crate::quant::Scale;
use crate::step::rotate::quantizer_factor;
use crate::trace::{Place, Probe, Tensor, TracePoint};
use std::sync::Arc;

/// What a block carries from token to token, for each sequence of a batch.
#[derive(Clone)]
pub struct LayerState {
    /// The last K conv inputs, oldest first, `[batch·K, E]`: codes, or FP32.
    pub conv: Matrix,
    /// Recurrent state, `[batch·E, N]`.
    pub ssm: Matrix,
}

/// Sequences that run together, all of one length.
#[derive(Clone, Copy, Debug)]
pub struct Extent {
    pub batch: usize,
    pub length: usize,
}

/// Counters of quantizers, read when a run is over: reading one would wait for the device.
pub struct Counts {
    slots: Option<Arc<Buffer>>,
    pending: Vec<(Place, usize, Overflow)>,
}

/// Quantizers of a block, at most.
const QUANTIZERS: usize = 12;

impl Counts {
    /// Counters for a run through `layers` blocks, if the probe asks for them.
    pub fn new(device: &Arc<super::Device>, layers: usize, probe: &dyn Probe) -> Result<Self> {
        let slots = match probe.counts() {
            true => {
                // One more for the final norm.
                let bytes = (layers * QUANTIZERS + 1) * size_of::<Counted>();
                let buffer = device.allocate(bytes)?;
                device.zero(&buffer, bytes)?;
                Some(buffer)
            }
            false => None,
        };
        Ok(Self {
            slots,
            pending: Vec::new(),
        })
    }

    /// Where a quantizer of `values` values counts; 0 for nowhere.
    pub(super) fn slot(&mut self, place: Place, values: usize, overflow: Overflow) -> Pointer {
        let Some(slots) = &self.slots else { return 0 };
        let at = self.pending.len() * size_of::<Counted>();
        self.pending.push((place, values, overflow));
        slots.pointer() + at as u64
    }

    /// Tells the probe what was counted.
    pub fn tell(self, probe: &mut dyn Probe) -> Result<()> {
        let Some(slots) = self.slots else {
            return Ok(());
        };
        let counted: Vec<Counted> = slots
            .device()
            .download(slots.pointer(), self.pending.len())?;
        for ((place, values, overflow), counted) in self.pending.into_iter().zip(counted) {
            let peak = f32::from_bits(counted.peak);
            let status = Status::counted(values, counted.overflows, peak, overflow);
            probe.count(place, status);
        }
        Ok(())
    }
}

/// Shows a matrix to the probe if it wants the place; what the probe puts there takes its place.
pub fn show(probe: &mut dyn Probe, place: Place, value: &Matrix) -> Result<()> {
    show_as(probe, place, value, |tensor| tensor)
}

/// [`show`] of a matrix in another layout: `turn` leads there and back.
fn show_as(
    probe: &mut dyn Probe,
    place: Place,
    value: &Matrix,
    turn: impl Fn(Tensor) -> Tensor,
) -> Result<()> {
    if !probe.wants(place) {
        return Ok(());
    }
    let before = turn(value.to_tensor()?);
    let shown = crate::trace::show(probe, place, before.clone())?;
    if !same_bits(&before, &shown) {
        let put = Matrix::of_tensor(value.device(), &turn(shown))?;
        convert::convert(&put, None, value, NO_QUANTIZER)?;
    }
    Ok(())
}

/// Whether nothing was replaced.
fn same_bits(a: &Tensor, b: &Tensor) -> bool {
    match (a, b) {
        (Tensor::I8(a), Tensor::I8(b)) => a.codes == b.codes,
        (Tensor::Codes(a), Tensor::Codes(b)) => a == b,
        (Tensor::F16(a), Tensor::F16(b)) => {
            a.iter().zip(b).all(|(a, b)| a.to_bits() == b.to_bits())
        }
        (Tensor::F32(a), Tensor::F32(b)) => {
            a.iter().zip(b).all(|(a, b)| a.to_bits() == b.to_bits())
        }
        _ => false,
    }
}

/// One block about to run.
pub struct Run<'a, 'm> {
    pub config: &'a Config,
    pub layer: &'a Layer<'m>,
    pub weights: &'a Weights,
    pub index: usize,
    pub phase: Phase,
    pub extent: Extent,
    pub probe: &'a mut dyn Probe,
    pub counts: &'a mut Counts,
    pub clock: &'a mut Clock,
}

/// What a block hands on.
pub struct BlockOutput {
    pub hidden: Matrix,
    pub residual: Matrix,
    pub state: LayerState,
}

impl Run<'_, '_> {
    /// Runs the block; no state is zeros.
    pub fn run(
        mut self,
        hidden: &Matrix,
        residual: Option<Matrix>,
        before: Option<&LayerState>,
    ) -> Result<BlockOutput> {
        self.enter(Step::Norm)?;
        let (residual, norm_out) = self.norm(hidden, residual)?;
        self.enter(Step::InProj)?;
        let (x, z) = self.in_proj(&norm_out)?;
        self.enter(Step::Conv)?;
        let (conv, conv_state) = self.conv(x, before.map(|s| &s.conv))?;
        self.enter(Step::XProj)?;
        let x_proj_out = self.x_proj(&conv)?;
        self.enter(Step::DtProj)?;
        let dt = self.dt_proj(&x_proj_out)?;
        self.enter(Step::Scan)?;
        let u = self.scan_input(conv)?;
        let (y, ssm) = self.scan(&u, &dt, &x_proj_out, &z, before.map(|s| &s.ssm))?;
        self.enter(Step::Hadamard)?;
        let rotated = self.rotate(&y)?;
        self.enter(Step::OutProj)?;
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

    fn enter(&mut self, step: Step) -> Result<()> {
        self.probe.enter(step);
        self.clock.enter(step)
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

    fn show(&mut self, point: TracePoint, value: &Matrix) -> Result<()> {
        let place = self.place(point);
        show(self.probe, place, value)
    }

    fn scale(&self, scale_use: ScaleUse) -> Scale {
        self.layer.scale(scale_use)
    }

    /// The scale a consumer believes a tensor to have; none for real values.
    fn input_scale(&self, value: &Matrix, scale_use: ScaleUse) -> Option<Scale> {
        matches!(value.kind, Kind::I8(_)).then(|| self.scale(scale_use))
    }

    /// A quantizer of `values` values at a point.
    fn quantizer(
        &mut self,
        point: TracePoint,
        values: usize,
        scale: Scale,
        rule: QuantRule,
    ) -> Quantizer {
        let place = self.place(point);
        let status = self.counts.slot(place, values, rule.overflow);
        rules::quantizer(rule, scale, status)
    }

    fn quantize(
        &mut self,
        point: TracePoint,
        values: &Matrix,
        by: ScaleUse,
        rule: QuantRule,
    ) -> Result<Matrix> {
        let scale = self.scale(by);
        let (rows, columns) = (values.rows, values.columns);
        let codes = Matrix::new(values.device(), rows, columns, Kind::I8(scale))?;
        let quantizer = self.quantizer(point, rows * columns, scale, rule);
        convert::convert(values, None, &codes, quantizer)?;
        Ok(codes)
    }

    /// Quantizes a real tensor between steps, which modes do in PyTorch.
    fn requantize(&mut self, point: TracePoint, values: &Matrix, by: ScaleUse) -> Result<Matrix> {
        let rule = self.rules(Implementation::Torch).requantize;
        self.quantize(point, values, by, rule)
    }

    fn norm(&mut self, hidden: &Matrix, residual: Option<Matrix>) -> Result<(Matrix, Matrix)> {
        self.show(TracePoint::HiddenIn, hidden)?;
        if let Some(residual) = &residual {
            self.show(TracePoint::ResidualIn, residual)?;
        }
        let (kind, quantizer) = match self.layer.mode.norm_out {
            Precision::Int8 => {
                let scale = self.scale(ScaleUse::NormOut);
                let rule = self.rules(Implementation::Cuda).norm_out;
                let values = hidden.rows * hidden.columns;
                let quantizer = self.quantizer(TracePoint::NormOut, values, scale, rule);
                (Kind::I8(scale), quantizer)
            }
            Precision::Float => (Kind::F32, NO_QUANTIZER),
        };
        let (weight, eps) = (&self.weights.norm, self.config.eps);
        let run = |hidden: &Matrix, residual: Option<&Matrix>, quantizer| {
            let rule = FinalNorm::RoundedOnce;
            norm::rms_norm(rule, hidden, residual, weight, eps, kind, quantizer)
        };
        let out = match self
            .probe
            .wants(Place::layer(self.index, TracePoint::ResidualOut))
        {
            false => run(hidden, residual.as_ref(), quantizer)?,
            true => {
                // The probe may put another residual in its place: only the second norm counts.
                let unseen = Quantizer {
                    status: 0,
                    ..quantizer
                };
                let first = run(hidden, residual.as_ref(), unseen)?;
                self.show(TracePoint::ResidualOut, &first.residual)?;
                run(&first.residual, None, quantizer)?
            }
        };
        self.show(TracePoint::NormOut, &out.normed)?;
        Ok((out.residual, out.normed))
    }

    fn rotate(&mut self, y: &Matrix) -> Result<Matrix> {
        let values = y.rows * y.columns;
        let out = match (self.layer.rotation, self.layer.mode.had_out) {
            (Some(size), Precision::Int8) => {
                let scale = self.scale(ScaleUse::HadOut);
                // The quotient is in the factor.
                let rules = self.rules(Implementation::Cuda).hadamard;
                let rule = QuantRule {
                    rounding: rules.rounding,
                    overflow: rules.overflow,
                    ..QuantRule::HALF_AWAY
                };
                let factor = quantizer_factor(size, scale);
                let quantizer = self.quantizer(TracePoint::HadOut, values, scale, rule);
                rotate::rotate(y, size, factor, Kind::I8(scale), quantizer)?
            }
            (Some(size), Precision::Float) => {
                let factor = size.norm() as f32;
                rotate::rotate(y, size, factor, Kind::F32, NO_QUANTIZER)?
            }
            (None, Precision::Int8) => {
                let rule = QuantRule::HALF_AWAY;
                self.quantize(TracePoint::HadOut, y, ScaleUse::HadOut, rule)?
            }
            (None, Precision::Float) => convert::real(y, None)?,
        };
        self.show(TracePoint::HadOut, &out)?;
        Ok(out)
    }
}
