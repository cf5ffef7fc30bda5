//! The selective scan with its gate, and the recurrent state.

use super::{Cpu, f32_of};
use crate::arith::function::Function;
use crate::arith::quantizer::Quantizer;
use crate::arith::requant::{Divisor, QuantRule};
use crate::arith::saturate::Status;
use crate::block::{Read, ScanReads, ScanStep, StateOutput};
use crate::dataflow::Phase;
use crate::error::Result;
use crate::mode::Stream;
use crate::profile::ScanRules;
use crate::profile::unit::{ScanUnit, StateFormat};
use crate::quant::{QTensor, Scale};
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

impl ScanStep for Cpu<'_, '_> {
    fn on_grids(
        &mut self,
        point: TracePoint,
        values: Tensor,
        (quantizer, rule): (&Quantizer, QuantRule),
        [first, second]: [Divisor; 2],
    ) -> Result<Tensor> {
        let mut values = f32_of(values);
        let quantizer = quantizer.prepare(first, rule.quotient, Some(second));
        // Tokens that are decoded belong to sequences of their own.
        let together = match self.at.phase {
            Phase::Prefill => values.len(),
            Phase::Decode => values.ncols(),
        };
        let all = values.as_slice_mut().expect("activations are row-major");
        let status = all.chunks_mut(together.max(1));
        let status = status.map(|values| quantizer.quantize(values));
        let status = status.fold(Status::default(), Status::plus);
        self.count(point, status);
        Ok(Tensor::F32(values))
    }

    fn scan(
        &mut self,
        rules: &ScanRules,
        reads: &ScanReads<Tensor>,
        stream: Stream,
        output: StateOutput,
    ) -> Result<(Tensor, Tensor)> {
        let inputs = ScanInputs {
            u: source(&reads.u),
            dt: source(&reads.dt),
            b: source(&reads.b),
            c: source(&reads.c),
            z: Some(source(&reads.z)),
            state: reads.before.as_ref().map(source),
        };
        let (y, state) = match &rules.unit {
            Some(unit) => {
                let done = unit_scan(unit, &self.at.layer.scan, &inputs, output.calibrated)?;
                self.scan_seen(unit, done.seen)?;
                let y = match stream {
                    Stream::F16 => Tensor::f16(&done.y),
                    Stream::Float => Tensor::F32(done.y),
                };
                (y, LastState::Real(done.state))
            }
            None => self.scan_kernel(rules, &inputs, stream, output.scale),
        };
        let last = match (output.scale, state) {
            (_, LastState::Quantized(q, status)) => {
                self.count(output.point, status);
                Tensor::I8(q)
            }
            (Some(scale), LastState::Real(state)) => {
                self.quantized(output.point, &state, scale, rules.state)
            }
            (None, LastState::Real(state)) => Tensor::F32(state),
        };
        Ok((y, last))
    }
}

impl Cpu<'_, '_> {
    /// The scan's kernel, with the quantizer of the state where there is one and it can run inside.
    fn scan_kernel(
        &self,
        rules: &ScanRules,
        inputs: &ScanInputs,
        stream: Stream,
        state_scale: Option<Scale>,
    ) -> (Tensor, LastState) {
        let weight = &self.at.layer.scan;
        let dim = (inputs.rows(), weight.channels());
        if let Some(scale) = state_scale {
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
}

fn source<'v>(read: &Read<'v, Tensor>) -> Source<'v> {
    match (read.value, read.scale) {
        (Tensor::I8(q), Some(scale)) => Source::Int8 {
            codes: &q.codes,
            scale,
        },
        (Tensor::F32(values), _) => Source::Real(values),
        _ => unreachable!("steps before the scan emit INT8 with a scale, or FP32"),
    }
}
