//! Route B, the selective scan with its gate, and the recurrent state.

use super::{Backend, Kind, Read, Run, Tensors};
use crate::arith::quantizer::Quantizer;
use crate::arith::requant::{Divisor, QuantRule};
use crate::dataflow::Phase;
use crate::error::Result;
use crate::mode::{Precision, ScanBc, ScanInput, Stream};
use crate::plan::ScaleUse;
use crate::profile::ScanRules;
use crate::quant::Scale;
use crate::trace::TracePoint;

/// What the scan reads.
pub(crate) struct ScanReads<'v, V> {
    pub u: Read<'v, V>,
    pub dt: Read<'v, V>,
    pub b: Read<'v, V>,
    pub c: Read<'v, V>,
    pub z: Read<'v, V>,
    /// The state before the first token, `[E, N]`; zeros if none.
    pub before: Option<Read<'v, V>>,
}

/// What the state after the last token becomes.
#[derive(Clone, Copy)]
pub(crate) struct StateOutput {
    /// Where it is shown, and counted.
    pub point: TracePoint,
    /// INT8 of this scale; FP32 if none.
    pub scale: Option<Scale>,
    /// The calibrated scale, by which a chip's fixed-point register is sized; a float model has none.
    pub calibrated: Option<Scale>,
}

pub(crate) trait ScanStep: Tensors {
    /// Puts FP32 values on the grids of a quantizer with segments, each sequence by itself.
    fn on_grids(
        &mut self,
        point: TracePoint,
        values: Self::Value,
        by: (&Quantizer, QuantRule),
        scales: [Divisor; 2],
    ) -> Result<Self::Value>;

    /// The gated output in the type of the stream, and the state after the last token.
    fn scan(
        &mut self,
        rules: &ScanRules,
        reads: &ScanReads<Self::Value>,
        stream: Stream,
        state: StateOutput,
    ) -> Result<(Self::Value, Self::Value)>;
}

impl<B: Backend> Run<'_, '_, B> {
    /// Route B: the scan's main input.
    pub fn scan_input(&mut self, conv: B::Value) -> Result<B::Value> {
        let point = TracePoint::SsmU;
        let real = |run: &Self| {
            let scale = run.at.scale(ScaleUse::ScanU);
            run.on.real(&conv, Some(scale))
        };
        let u = match (B::kind(&conv), self.at.layer.mode.u) {
            (Kind::Int8, ScanInput::Int8) => conv,
            (Kind::Int8, ScanInput::Float) => real(self)?,
            (Kind::Int8, ScanInput::RoundTrip) => {
                let real = real(self)?;
                self.requantize(point, &real, ScaleUse::ScanUQuant)?
            }
            (_, ScanInput::Float) => conv,
            (_, ScanInput::Int8 | ScanInput::RoundTrip) => {
                self.requantize(point, &conv, ScaleUse::ScanUQuant)?
            }
        };
        let u = self.u_on_grids(u)?;
        self.on.show(point, u)
    }

    /// FP32 u through the mode's quantizer.
    fn u_on_grids(&mut self, u: B::Value) -> Result<B::Value> {
        match &self.at.layer.mode.u_quantizer {
            Some(quantizer) if B::kind(&u) == Kind::F32 => {
                let scales = [ScaleUse::ScanUQuant, ScaleUse::ScanUMax];
                let scales = scales.map(|by| Divisor::from(self.at.scale(by)));
                let by = (quantizer, self.requantizer());
                self.on.on_grids(TracePoint::SsmU, u, by, scales)
            }
            _ => Ok(u),
        }
    }

    /// B and C: columns of x_proj's output, or quantized after it.
    fn scan_bc(&mut self, x_proj_out: &B::Value) -> Result<(B::Value, B::Value)> {
        let layer = self.at.layer;
        let b = self.on.columns(x_proj_out, &layer.columns.b);
        let c = self.on.columns(x_proj_out, &layer.columns.c);
        if (B::kind(x_proj_out), layer.mode.scan_bc) != (Kind::F32, ScanBc::Int8) {
            return Ok((b, c));
        }
        let point = TracePoint::SsmBc;
        let b = self.requantize(point, &b, ScaleUse::XProjOut)?;
        let c = self.requantize(point, &c, ScaleUse::XProjOut)?;
        self.on.show_both(point, b, c)
    }

    /// The gated output, and the state after the last token.
    pub fn scan(
        &mut self,
        u: &B::Value,
        dt: &B::Value,
        x_proj_out: &B::Value,
        z: &B::Value,
        before: Option<B::Value>,
    ) -> Result<(B::Value, B::Value)> {
        let (b, c) = self.scan_bc(x_proj_out)?;
        let before = match before {
            Some(before) => Some(self.on.show(TracePoint::SsmStateIn, before)?),
            None => None,
        };
        let mode = &self.at.layer.mode;
        let reads = ScanReads {
            u: self.read(u, ScaleUse::ScanU),
            dt: self.read(dt, ScaleUse::ScanDt),
            b: self.read(&b, ScaleUse::ScanB),
            c: self.read(&c, ScaleUse::ScanC),
            z: self.read(z, ScaleUse::ScanZ),
            before: (before.as_ref()).map(|state| self.read(state, ScaleUse::StateIn)),
        };
        let point = match self.at.phase {
            Phase::Prefill => TracePoint::SsmState,
            Phase::Decode => TracePoint::SsmStateOut,
        };
        let scales = self.at.layer.scales.as_ref();
        let output = StateOutput {
            point,
            scale: match mode.state {
                Precision::Int8 => Some(self.at.scale(ScaleUse::StateOut)),
                Precision::Float => None,
            },
            calibrated: scales.map(|scales| scales.get(ScaleUse::StateOut)),
        };
        let rules = &self.at.rules(mode.scan).scan;
        let (y, state) = self.on.scan(rules, &reads, mode.stream, output)?;
        let y = self.on.show(TracePoint::SsmY, y)?;
        Ok((y, self.on.show(point, state)?))
    }
}
