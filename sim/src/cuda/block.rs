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
use crate::mode::{Implementation, Precision, Projected, RouteA};
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
    pending: Vec<Pending>,
    /// Slots given out.
    used: usize,
}

/// What a slot, or three of them, will hold.
struct Pending {
    place: Place,
    values: usize,
    overflow: Overflow,
    /// Whether two slots more count the values of segments.
    segments: bool,
}

/// Slots of the quantizers of a block, at most.
const SLOTS: usize = 16;
/// Slots that a quantizer with segments has.
const SEGMENTED: usize = 3;

impl Counts {
    /// Counters for a run through `layers` blocks, if the probe asks for them.
    pub fn new(device: &Arc<super::Device>, layers: usize, probe: &dyn Probe) -> Result<Self> {
        let slots = match probe.counts() {
            true => {
                // One more for the final norm.
                let bytes = (layers * SLOTS + 1) * size_of::<Counted>();
                let buffer = device.allocate(bytes)?;
                device.zero(&buffer, bytes)?;
                Some(buffer)
            }
            false => None,
        };
        Ok(Self {
            slots,
            pending: Vec::new(),
            used: 0,
        })
    }

    /// Where a quantizer of `values` values counts; 0 for nowhere.
    pub(super) fn slot(&mut self, place: Place, values: usize, overflow: Overflow) -> Pointer {
        self.give(Pending {
            place,
            values,
            overflow,
            segments: false,
        })
    }

    /// Where a quantizer with segments counts; 0 for nowhere.
    fn segmented_slot(&mut self, place: Place, values: usize) -> Pointer {
        self.give(Pending {
            place,
            values,
            overflow: Overflow::Saturate,
            segments: true,
        })
    }

    fn give(&mut self, pending: Pending) -> Pointer {
        let Some(slots) = &self.slots else { return 0 };
        let at = self.used * size_of::<Counted>();
        self.used += if pending.segments { SEGMENTED } else { 1 };
        self.pending.push(pending);
        slots.pointer() + at as u64
    }

    /// Tells the probe what was counted.
    pub fn tell(self, probe: &mut dyn Probe) -> Result<()> {
        let Some(slots) = self.slots else {
            return Ok(());
        };
        let counted: Vec<Counted> = slots.device().download(slots.pointer(), self.used)?;
        let mut counted = &counted[..];
        for pending in self.pending {
            let (first, rest) = counted.split_first().expect("as many as were given out");
            let peak = f32::from_bits(first.peak);
            let mut status =
                Status::counted(pending.values, first.overflows, peak, pending.overflow);
            counted = rest;
            if pending.segments {
                let (segments, rest) = rest.split_at(SEGMENTED - 1);
                status
                    .segments
                    .copy_from_slice(bytemuck::cast_slice(segments));
                counted = rest;
            }
            probe.count(pending.place, status);
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
        // Route B comes first where route A begins at its end.
        let (route_a, early) = match self.layer.mode.x_proj_from {
            RouteA::Conv => (conv, None),
            RouteA::U => {
                self.enter(Step::Scan)?;
                let u = self.scan_input(conv)?;
                (u.clone(), Some(u))
            }
        };
        self.enter(Step::XProj)?;
        let x_proj_out = self.x_proj(&route_a)?;
        self.enter(Step::DtProj)?;
        let dt = self.dt_proj(&x_proj_out)?;
        self.enter(Step::Scan)?;
        let u = match early {
            Some(u) => u,
            None => self.scan_input(route_a)?,
        };
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
        let rule = self.requantizer();
        self.quantize(point, values, by, rule)
    }

    /// The rule of quantizers between steps.
    fn requantizer(&self) -> QuantRule {
        let rule = self.rules(Implementation::Torch).requantize;
        self.layer.mode.requantize(rule)
    }

    /// An FP32 output of a projection: as it is, or on its grid.
    fn projected(&mut self, point: TracePoint, out: Matrix, by: ScaleUse) -> Result<Matrix> {
        match (out.kind, self.layer.mode.projected) {
            (Kind::F32, Projected::Grid) => {
                let codes = self.requantize(point, &out, by)?;
                convert::real(&codes, Some(self.scale(by)))
            }
            _ => Ok(out),
        }
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
        let rule = self.rules(Implementation::Cuda).hadamard.quantizer();
        let out = match (self.layer.rotation, self.layer.mode.had_out) {
            (Some(size), Precision::Int8) => {
                let scale = self.scale(ScaleUse::HadOut);
                // The quotient is in the factor.
                let factor = quantizer_factor(size, scale);
                let quantizer = self.quantizer(TracePoint::HadOut, values, scale, rule);
                rotate::rotate(y, size, factor, Kind::I8(scale), quantizer)?
            }
            (Some(size), Precision::Float) => {
                let factor = size.norm() as f32;
                rotate::rotate(y, size, factor, Kind::F32, NO_QUANTIZER)?
            }
            (None, Precision::Int8) => {
                self.quantize(TracePoint::HadOut, y, ScaleUse::HadOut, rule)?
            }
            (None, Precision::Float) => convert::real(y, None)?,
        };
        self.show(TracePoint::HadOut, &out)?;
        Ok(out)
    }
}
