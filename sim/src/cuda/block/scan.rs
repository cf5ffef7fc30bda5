//! Route B, the selective scan with its gate, and the recurrent state. Twin:
//! `datapath/block/scan.rs`.

use super::Run;
use super::linears::part;
use crate::cuda::matrix::{Kind, Matrix};
use crate::cuda::rules::NO_QUANTIZER;
use crate::cuda::step::convert;
use crate::cuda::step::scan::{Inputs, selective_scan};
use crate::dataflow::Phase;
use crate::error::Result;
use crate::mode::{Precision, ScanInput, Stream};
use crate::plan::ScaleUse;
use crate::trace::TracePoint;

impl Run<'_, '_> {
    /// Route B: the scan's main input.
    pub(super) fn scan_input(&mut self, conv: Matrix) -> Result<Matrix> {
        let u = match (conv.kind, self.layer.mode.u) {
            (Kind::I8(_), ScanInput::Int8) => conv,
            (Kind::I8(_), ScanInput::Float) => {
                convert::real(&conv, Some(self.scale(ScaleUse::ScanU)))?
            }
            (Kind::I8(_), ScanInput::RoundTrip) => {
                let real = convert::real(&conv, Some(self.scale(ScaleUse::ScanU)))?;
                self.requantize(TracePoint::SsmU, &real, ScaleUse::ScanUQuant)?
            }
            (_, ScanInput::Float) => conv,
            (_, ScanInput::Int8 | ScanInput::RoundTrip) => {
                self.requantize(TracePoint::SsmU, &conv, ScaleUse::ScanUQuant)?
            }
        };
        self.show(TracePoint::SsmU, &u)?;
        Ok(u)
    }

    pub(super) fn scan(
        &mut self,
        u: &Matrix,
        dt: &Matrix,
        x_proj_out: &Matrix,
        z: &Matrix,
        before: Option<&Matrix>,
    ) -> Result<(Matrix, Matrix)> {
        let n = self.config.d_state;
        if let Some(before) = before {
            self.show(TracePoint::SsmStateIn, before)?;
        }
        let rules = self.rules(self.layer.mode.scan).scan;
        let source = |value: &Matrix, scale_use| value.source(self.input_scale(value, scale_use));
        let inputs = Inputs {
            u: source(u, ScaleUse::ScanU),
            dt: source(dt, ScaleUse::ScanDt),
            b: source(&part(x_proj_out, &self.layer.columns.b), ScaleUse::ScanB),
            c: source(&part(x_proj_out, &self.layer.columns.c), ScaleUse::ScanC),
            z: source(z, ScaleUse::ScanZ),
            before: before.map(|state| source(state, ScaleUse::StateIn)),
            batch: self.extent.batch,
            length: self.extent.length,
            channels: self.config.d_inner,
            states: n,
        };
        let y = match self.layer.mode.stream {
            Stream::F16 => Kind::F16,
            Stream::Float => Kind::F32,
        };
        let point = match self.phase {
            Phase::Prefill => TracePoint::SsmState,
            Phase::Decode => TracePoint::SsmStateOut,
        };
        let (state, quantizer) = match self.layer.mode.state {
            Precision::Int8 => {
                let scale = self.scale(ScaleUse::StateOut);
                let values = inputs.batch * inputs.channels * n;
                let quantizer = self.quantizer(point, values, scale, rules.state);
                (Kind::I8(scale), quantizer)
            }
            Precision::Float => (Kind::F32, NO_QUANTIZER),
        };
        let weight = &self.weights.scan;
        let out = selective_scan(u.device(), &rules, weight, &inputs, y, state, quantizer)?;
        self.show(TracePoint::SsmY, &out.y)?;
        self.show(point, &out.state)?;
        Ok((out.y, out.state))
    }
}
