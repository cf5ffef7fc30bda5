//! Route B, the selective scan with its gate, and the recurrent state. Twin:
//! `datapath/block/scan.rs`.

use super::Run;
use super::linears::part;
use crate::arith::requant::Divisor;
use crate::cuda::matrix::{Kind, Matrix};
use crate::cuda::rules::NO_QUANTIZER;
use crate::cuda::step::scan::{Inputs, selective_scan};
use crate::cuda::step::{convert, segments};
use crate::dataflow::Phase;
use crate::error::Result;
use crate::mode::{Precision, ScanBc, ScanInput, Stream};
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
        let u = self.on_grids(u)?;
        self.show(TracePoint::SsmU, &u)?;
        Ok(u)
    }

    /// FP32 u through the mode's quantizer, each sequence by itself.
    fn on_grids(&mut self, u: Matrix) -> Result<Matrix> {
        let Some(quantizer) = self
            .layer
            .mode
            .u_quantizer
            .as_ref()
            .filter(|_| u.kind == Kind::F32)
        else {
            return Ok(u);
        };
        let rule = self.requantizer();
        let scales = [ScaleUse::ScanUQuant, ScaleUse::ScanUMax];
        let scales = scales.map(|by| Divisor::from(self.scale(by)));
        let place = self.place(TracePoint::SsmU);
        let counts = self.counts.segmented_slot(place, u.rows * u.columns);
        segments::quantize(&u, self.extent.length, (quantizer, rule), scales, counts)
    }

    /// B and C: columns of x_proj's output, or quantized after it.
    fn scan_bc(&mut self, x_proj_out: &Matrix) -> Result<(Matrix, Matrix)> {
        let b = part(x_proj_out, &self.layer.columns.b);
        let c = part(x_proj_out, &self.layer.columns.c);
        if self.layer.mode.scan_bc != ScanBc::Int8 || x_proj_out.kind != Kind::F32 {
            return Ok((b, c));
        }
        let n = self.config.d_state;
        let kind = Kind::I8(self.scale(ScaleUse::XProjOut));
        let both = Matrix::new(b.device(), b.rows, 2 * n, kind)?;
        for (i, real) in [b, c].iter().enumerate() {
            let codes = self.requantize(TracePoint::SsmBc, real, ScaleUse::XProjOut)?;
            let to = both.columns(i * n, (i + 1) * n);
            convert::convert(&codes, None, &to, NO_QUANTIZER)?;
        }
        self.show(TracePoint::SsmBc, &both)?;
        Ok((both.columns(0, n), both.columns(n, 2 * n)))
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
        let (b, c) = self.scan_bc(x_proj_out)?;
        let rules = self.rules(self.layer.mode.scan).scan;
        let source = |value: &Matrix, scale_use| value.source(self.input_scale(value, scale_use));
        let inputs = Inputs {
            u: source(u, ScaleUse::ScanU),
            dt: source(dt, ScaleUse::ScanDt),
            b: source(&b, ScaleUse::ScanB),
            c: source(&c, ScaleUse::ScanC),
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
