//! The selective scan with its gate, the recurrent state, quantizers with segments.

use super::Gpu;
use crate::arith::quantizer::Quantizer;
use crate::arith::requant::{Divisor, QuantRule};
use crate::block::{Output, Read, ScanReads, ScanStep, StateOutput};
use crate::cuda::args::Source;
use crate::cuda::matrix::{Kind, Matrix};
use crate::cuda::step::scan::{Inputs, selective_scan};
use crate::cuda::step::segments;
use crate::error::Result;
use crate::mode::Stream;
use crate::profile::ScanRules;
use crate::trace::TracePoint;

fn source(read: &Read<Matrix>) -> Source {
    read.value.source(read.scale)
}

impl ScanStep for Gpu<'_, '_> {
    fn on_grids(
        &mut self,
        point: TracePoint,
        values: Matrix,
        by: (&Quantizer, QuantRule),
        scales: [Divisor; 2],
    ) -> Result<Matrix> {
        let place = self.at.place(point);
        let counts = self
            .counts
            .segmented_slot(place, values.rows * values.columns);
        segments::quantize(&values, self.extent.length, by, scales, counts)
    }

    fn scan(
        &mut self,
        rules: &ScanRules,
        reads: &ScanReads<Matrix>,
        stream: Stream,
        output: StateOutput,
    ) -> Result<(Matrix, Matrix)> {
        let inputs = Inputs {
            u: source(&reads.u),
            dt: source(&reads.dt),
            b: source(&reads.b),
            c: source(&reads.c),
            z: source(&reads.z),
            before: reads.before.as_ref().map(source),
            batch: self.extent.batch,
            length: self.extent.length,
            channels: self.at.config.d_inner,
            states: self.at.config.d_state,
        };
        let y = match stream {
            Stream::F16 => Kind::F16,
            Stream::Float => Kind::F32,
        };
        let values = inputs.batch * inputs.channels * inputs.states;
        let state = output.scale.map_or(Output::Real, Output::Int8);
        let (state, quantizer) = self.emit(output.point, values, state, rules.state)?;
        let (device, weight) = (reads.u.value.device(), &self.weights.scan);
        let out = selective_scan(device, rules, weight, &inputs, y, state, quantizer)?;
        Ok((out.y, out.state))
    }
}
