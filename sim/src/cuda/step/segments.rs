//! Quantizers with segments. Twin: `arith/quantizer.rs`.

use super::MAX_BLOCKS;
use crate::arith::quantizer::{Beyond, Quantizer, Until};
use crate::arith::requant::{Divisor, QuantRule};
use crate::arith::saturate::Overflow;
use crate::cuda::args::{Pointer, Segment, Segments};
use crate::cuda::matrix::{Kind, Matrix};
use crate::cuda::rules;
use crate::error::Result;

const THREADS: u32 = 256;

/// A quantizer for its scales, as kernels have it.
fn prepared(quantizer: &Quantizer, rule: QuantRule, first: Divisor, second: Divisor) -> Segments {
    let quotient = quantizer.quotient.unwrap_or(rule.quotient);
    let [quotient_number, rounding, _] = rules::quantizer_numbers(QuantRule {
        quotient,
        rounding: quantizer.rounding,
        overflow: Overflow::Saturate,
    });
    let times = |factor: f64| first.steps(factor).to_f32();
    let scale = |step: f64| quotient.factor(first.steps(step));
    let mut segments = [Segment::default(); 3];
    let mut edge = 0.0;
    for (to, segment) in segments.iter_mut().zip(&*quantizer.segments) {
        let (until, end) = match segment.until {
            Until::End => (0, 0.0),
            Until::Code(code) => (1, code as f32),
            Until::Magnitude(edge) => (2, times(edge)),
        };
        if until == 2 {
            edge = end;
        }
        *to = Segment {
            scale: scale(segment.step),
            step: times(segment.step),
            low: segment.codes[0] as f32,
            high: segment.codes[1] as f32,
            offset: times(segment.offset),
            end,
            is_signed: i32::from(segment.codes[0] < 0),
            until,
        };
    }
    let (beyond, beyond_scale, beyond_step, highest) = match quantizer.beyond {
        Beyond::Clamp | Beyond::Keep => (0, 1.0, 1.0, 0.0),
        Beyond::SecondScale => (1, quotient.factor(second), second.to_f32(), 0.0),
        Beyond::FoundScale => (2, 1.0, 1.0, 0.0),
        Beyond::Logarithmic { step, highest } => (3, scale(step), times(step), highest as f32),
    };
    Segments {
        segments,
        base_scale: scale(1.0),
        base_step: times(1.0),
        beyond_scale,
        beyond_step,
        edge,
        highest,
        count: quantizer.segments.len() as i32,
        quotient: quotient_number,
        rounding,
        beyond,
    }
}

/// Puts real values on a quantizer's grids, `rows` rows together; counts at `counts` (0 for nowhere).
pub fn quantize(
    values: &Matrix,
    rows: usize,
    (quantizer, rule): (&Quantizer, QuantRule),
    [first, second]: [Divisor; 2],
    counts: Pointer,
) -> Result<Matrix> {
    assert!(values.kind == Kind::F32 && values.is_contiguous() && values.rows.is_multiple_of(rows));
    let device = values.device();
    let segments = prepared(quantizer, rule, first, second);
    let groups = values.rows / rows;
    let group = rows * values.columns;
    let out = Matrix::new(device, values.rows, values.columns, Kind::F32)?;
    let parts = group.div_ceil(16 * THREADS as usize).clamp(1, MAX_BLOCKS) as u32;
    let grid = [groups as u32, parts, 1];
    let peaks = device.allocate(groups * 4)?;
    let (from, to, top, size) = (
        values.pointer(),
        out.pointer(),
        peaks.pointer(),
        group as i64,
    );
    if quantizer.beyond == Beyond::FoundScale {
        device.zero(&peaks, groups * 4)?;
        let args: [&dyn crate::cuda::args::Arg; 4] = [&from, &top, &size, &segments];
        device.launch("segments", "largest_beyond", grid, THREADS, 0, &args)?;
    }
    let args: [&dyn crate::cuda::args::Arg; 6] = [&from, &to, &top, &size, &segments, &counts];
    device.launch("segments", "quantize_segments", grid, THREADS, 0, &args)?;
    Ok(out)
}
