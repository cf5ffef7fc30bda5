//! What becomes of the sums of a linear step, as the kernels hand them over.

use crate::arith::int4;
use crate::arith::requant::{QuantRule, ScaleOrder, codes_of, to_f16};
use crate::arith::saturate::Status;
use crate::kernels::matmul_i8::{Epilogue, PANEL};
use crate::quant::{Acc, Multiplier, Scale};
use half::f16;
use std::ops::Range;

/// Accumulators to INT8 codes.
pub struct Requantize {
    /// `s_in / s_out`.
    pub a: Multiplier,
    /// Weight scale.
    pub b: Scale,
    /// Order in which they meet.
    pub order: ScaleOrder,
    /// To an integer, and to INT8.
    pub rule: QuantRule,
}

impl Requantize {
    #[inline(always)]
    fn codes(&self, order: ScaleOrder, acc: &[i32], out: &mut [i8]) -> Status {
        let in_units = |acc| order.apply(self.a, self.b, Acc(acc));
        codes_of(self.rule.rounding, self.rule.overflow, in_units, acc, out)
    }
}

impl Epilogue for Requantize {
    type Out = i8;

    #[inline(always)]
    fn finish(&self, _: Range<usize>, acc: &[i32], out: &mut [i8]) -> Status {
        // A constant in each copy of the loop.
        match self.order {
            ScaleOrder::RowMajor => self.codes(ScaleOrder::RowMajor, acc, out),
            ScaleOrder::ChannelMajor => self.codes(ScaleOrder::ChannelMajor, acc, out),
            ScaleOrder::OneRow => self.codes(ScaleOrder::OneRow, acc, out),
        }
    }
}

/// The real value of accumulators.
pub(super) struct ToF32 {
    pub a: Multiplier,
    pub b: Scale,
    pub order: ScaleOrder,
}

impl ToF32 {
    #[inline(always)]
    fn values(&self, order: ScaleOrder, acc: &[i32], out: &mut [f32]) {
        for (acc, out) in acc.iter().zip(out) {
            *out = order.apply(self.a, self.b, Acc(*acc));
        }
    }
}

impl Epilogue for ToF32 {
    type Out = f32;

    #[inline(always)]
    fn finish(&self, _: Range<usize>, acc: &[i32], out: &mut [f32]) -> Status {
        match self.order {
            ScaleOrder::RowMajor => self.values(ScaleOrder::RowMajor, acc, out),
            ScaleOrder::ChannelMajor => self.values(ScaleOrder::ChannelMajor, acc, out),
            ScaleOrder::OneRow => self.values(ScaleOrder::OneRow, acc, out),
        }
        Status::default()
    }
}

/// The real value of the sums of a four-bit weight: `(f32(acc) ⊗ s_channel) ⊗ s_in`.
pub(super) struct ChannelScales {
    pub s_in: Scale,
    /// One for each output, in units of the output's where it is INT8.
    pub scales: Vec<f32>,
}

impl Epilogue for ChannelScales {
    type Out = f32;

    #[inline(always)]
    fn finish(&self, columns: Range<usize>, acc: &[i32], out: &mut [f32]) -> Status {
        let scales = &self.scales[columns];
        let rows = acc.chunks(scales.len()).zip(out.chunks_mut(scales.len()));
        for (acc, out) in rows {
            for ((acc, out), scale) in acc.iter().zip(out).zip(scales) {
                *out = int4::real(*acc, *scale, self.s_in);
            }
        }
        Status::default()
    }
}

/// The same as INT8 codes.
pub(super) struct ChannelCodes(pub ChannelScales, pub QuantRule);

impl Epilogue for ChannelCodes {
    type Out = i8;

    #[inline(always)]
    fn finish(&self, columns: Range<usize>, acc: &[i32], out: &mut [i8]) -> Status {
        let Self(real, rule) = self;
        let mut values = [0.0; ROOM];
        let mut status = Status::default();
        let mut done = 0;
        while done < acc.len() {
            let (columns, part) = part(&columns, done..acc.len());
            let values = &mut values[..part.len()];
            let _ = real.finish(columns, &acc[part.clone()], values);
            let codes = &mut out[part.clone()];
            status += codes_of(rule.rounding, rule.overflow, |v| v, values, codes);
            done = part.end;
        }
        status
    }
}

/// Real values as binary16.
pub(super) struct ToF16<E>(pub E);

impl<E: Epilogue<Out = f32>> Epilogue for ToF16<E> {
    type Out = f16;

    #[inline(always)]
    fn finish(&self, columns: Range<usize>, acc: &[i32], out: &mut [f16]) -> Status {
        let mut values = [0.0; ROOM];
        let mut done = 0;
        while done < acc.len() {
            let (columns, part) = part(&columns, done..acc.len());
            let values = &mut values[..part.len()];
            let _ = self.0.finish(columns, &acc[part.clone()], values);
            for (out, value) in out[part.clone()].iter_mut().zip(values) {
                *out = to_f16(*value);
            }
            done = part.end;
        }
        Status::default()
    }
}

/// Real values between sums and outputs: four rows of a panel, which the kernels hand over at once.
const ROOM: usize = 4 * PANEL;

/// The next sums that have room together, of those still to do: whole rows of a panel, or a part of a longer
/// row; and the columns that they begin with. A function with a closure for what is done to them would not
/// be copied into each instruction set, and its loops would not become vectors.
#[inline(always)]
fn part(columns: &Range<usize>, left: Range<usize>) -> (Range<usize>, Range<usize>) {
    let width = columns.len();
    if width == PANEL {
        return (columns.clone(), left.start..left.end.min(left.start + ROOM));
    }
    let first = columns.start + left.start % width;
    let count = (columns.end - first).min(ROOM);
    (first..first + count, left.start..left.start + count)
}
