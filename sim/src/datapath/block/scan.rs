//! Route B, the selective scan with its gate, and the recurrent state.

use super::Run;
use super::columns::{columns, join_columns};
use crate::arith::function::Function;
use crate::arith::requant::Divisor;
use crate::arith::saturate::Status;
use crate::dataflow::Phase;
use crate::error::Result;
use crate::mode::{Precision, ScanBc, ScanInput, Stream};
use crate::plan::ScaleUse;
use crate::profile::ScanRules;
use crate::profile::unit::{ScanUnit, StateFormat};
use crate::quant::QTensor;
use crate::step::scan::{
    Outputs, ScanInputs, Source, selective_scan, selective_scan_f16, selective_scan_quantize,
};
use crate::step::scan_unit::{ScanSeen, unit_scan};
use crate::trace::{Tensor, TracePoint};
use ndarray::Array2;

/// The state after the last token, `[E, N]`.
enum LastState {
    Real(Array2<f32>),
    /// With what its quantizer counted.
    Quantized(QTensor, Status),
}

impl Run<'_, '_> {
    /// Route B: the scan's main input.
    pub(super) fn scan_input(&mut self, conv: Tensor) -> Result<Tensor> {
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
        let u = self.on_grids(u);
        self.show(TracePoint::SsmU, u)
    }

    /// FP32 u through the mode's quantizer. Tokens that are decoded belong to sequences of their own.
    fn on_grids(&mut self, u: Tensor) -> Tensor {
        let (quantizer, mut u) = match (&self.layer.mode.u_quantizer, u) {
            (Some(quantizer), Tensor::F32(u)) => (quantizer, u),
            (_, u) => return u,
        };
        let quotient = self.requantizer().quotient;
        let [first, second] = [ScaleUse::ScanUQuant, ScaleUse::ScanUMax];
        let [first, second] = [first, second].map(|by| Divisor::from(self.scale(by)));
        let quantizer = quantizer.prepare(first, quotient, Some(second));
        let together = match self.phase {
            Phase::Prefill => u.len(),
            Phase::Decode => u.ncols(),
        };
        let values = u.as_slice_mut().expect("activations are row-major");
        let status = values.chunks_mut(together.max(1));
        let status = status.map(|values| quantizer.quantize(values));
        let status = status.fold(Status::default(), Status::plus);
        self.probe.count(self.place(TracePoint::SsmU), status);
        Tensor::F32(u)
    }

    /// B and C: columns of x_proj's output, or quantized after it.
    fn scan_bc(&mut self, x_proj_out: &Tensor) -> Result<(Tensor, Tensor)> {
        let b = columns(x_proj_out, &self.layer.columns.b);
        let c = columns(x_proj_out, &self.layer.columns.c);
        let (Tensor::F32(b), Tensor::F32(c), ScanBc::Int8) = (&b, &c, self.layer.mode.scan_bc)
        else {
            return Ok((b, c));
        };
        let point = TracePoint::SsmBc;
        let [b, c] =
            [b, c].map(|real| Tensor::I8(self.requantize(point, real, ScaleUse::XProjOut)));
        let n = self.path.config.d_state;
        let both = self.show(point, join_columns(&b, &c))?;
        Ok((columns(&both, &(0..n)), columns(&both, &(n..2 * n))))
    }

    pub(super) fn scan(
        &mut self,
        u: &Tensor,
        dt: &Tensor,
        x_proj_out: &Tensor,
        z: &Tensor,
        before: Tensor,
    ) -> Result<(Tensor, Tensor)> {
        let (b, c) = self.scan_bc(x_proj_out)?;
        let before = match self.phase {
            Phase::Prefill => None,
            Phase::Decode => Some(self.show(TracePoint::SsmStateIn, before)?),
        };
        let rules = self.rules(self.layer.mode.scan).scan;
        let inputs = ScanInputs {
            u: self.source(u, ScaleUse::ScanU),
            dt: self.source(dt, ScaleUse::ScanDt),
            b: self.source(&b, ScaleUse::ScanB),
            c: self.source(&c, ScaleUse::ScanC),
            z: Some(self.source(z, ScaleUse::ScanZ)),
            state: before.as_ref().map(|s| self.source(s, ScaleUse::StateIn)),
        };
        let weight = &self.layer.scan;
        let (y, state) = match (&rules.unit, self.layer.mode.stream) {
            (Some(unit), stream) => {
                let scales = self.layer.scales.as_ref();
                let calibrated = scales.map(|s| s.get(ScaleUse::StateOut));
                let done = unit_scan(unit, weight, &inputs, calibrated)?;
                self.scan_seen(unit, done.seen)?;
                let y = match stream {
                    Stream::F16 => Tensor::f16(&done.y),
                    Stream::Float => Tensor::F32(done.y),
                };
                (y, LastState::Real(done.state))
            }
            (None, stream) => self.scan_kernel(&rules, &inputs, stream),
        };
        let y = self.show(TracePoint::SsmY, y)?;
        let point = match self.phase {
            Phase::Prefill => TracePoint::SsmState,
            Phase::Decode => TracePoint::SsmStateOut,
        };
        let last = match (self.layer.mode.state, state) {
            (_, LastState::Quantized(q, status)) => {
                self.probe.count(self.place(point), status);
                Tensor::I8(q)
            }
            (Precision::Int8, LastState::Real(state)) => {
                Tensor::I8(self.quantize(point, &state, ScaleUse::StateOut, rules.state))
            }
            (Precision::Float, LastState::Real(state)) => Tensor::F32(state),
        };
        Ok((y, self.show(point, last)?))
    }

    /// The scan's kernel, with the quantizer of the state where the mode has one and it can run inside.
    fn scan_kernel(
        &self,
        rules: &ScanRules,
        inputs: &ScanInputs,
        stream: Stream,
    ) -> (Tensor, LastState) {
        let weight = &self.layer.scan;
        let dim = (inputs.rows(), weight.channels());
        if self.layer.mode.state == Precision::Int8 {
            let scale = self.scale(ScaleUse::StateOut);
            let quantized = |y| selective_scan_quantize(rules, weight, inputs, y, scale);
            let done = match stream {
                Stream::F16 => {
                    let mut y = Array2::zeros(dim);
                    quantized(Outputs::f16(&mut y)).map(|last| (Tensor::F16(y), last))
                }
                Stream::Float => {
                    let mut y = Array2::zeros(dim);
                    quantized(Outputs::f32(&mut y)).map(|last| (Tensor::F32(y), last))
                }
            };
            if let Some((y, (q, status))) = done {
                return (y, LastState::Quantized(q, status));
            }
        }
        match stream {
            Stream::F16 => {
                let (y, state) = selective_scan_f16(rules, weight, inputs);
                (Tensor::F16(y), LastState::Real(state))
            }
            Stream::Float => {
                let out = selective_scan(rules, weight, inputs);
                (Tensor::F32(out.y), LastState::Real(out.state))
            }
        }
    }

    /// Hands on what a scan unit saw, and ends the run where a register may not overflow and did.
    fn scan_seen(&mut self, unit: &ScanUnit, seen: ScanSeen) -> Result<()> {
        let place = self.place(TracePoint::SsmY);
        for (function, inputs) in [
            (Function::Softplus, seen.softplus),
            (Function::Exp, seen.exp),
            (Function::Silu, seen.silu),
        ] {
            self.probe.function(place, function, inputs);
        }
        if let StateFormat::Fixed { register, .. } = unit.state {
            self.accumulated(TracePoint::SsmY, unit.accumulator, seen.sum)?;
            self.accumulated(TracePoint::SsmState, register, seen.state)?;
        }
        Ok(())
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
