//! The published quantizers. Source: `docs/modes.md`.

use super::{Beyond, Quantizer, Segment, Until};
use crate::arith::round::Rounding;
use std::borrow::Cow;

/// The grid of INT8 whole: everything is in it.
const INT8: Segment = Segment {
    step: 1.0,
    codes: [-128, 127],
    offset: 0.0,
    until: Until::End,
};

/// The grid of INT8 as far as its codes reach.
const INT8_INSIDE: Segment = Segment {
    until: Until::Code(127),
    ..INT8
};

/// The INT8 grid: 5-0, and x_proj's input in 5-x.
pub const GRID: Quantizer = Quantizer {
    name: Cow::Borrowed("int8"),
    quotient: None,
    rounding: Rounding::HalfAwayByAdding,
    segments: Cow::Borrowed(&[INT8]),
    beyond: Beyond::Clamp,
};

/// The INT8 grid, ties to even: 6-0.
pub const INT8_EVEN: Quantizer = Quantizer {
    name: Cow::Borrowed("int8-even"),
    rounding: Rounding::NearestTiesToEven,
    ..GRID
};

/// Outliers stay FP32: 5-2.
pub const KEEP: Quantizer = Quantizer {
    name: Cow::Borrowed("keep"),
    segments: Cow::Borrowed(&[INT8_INSIDE]),
    beyond: Beyond::Keep,
    ..GRID
};

/// Outliers stay FP32, ties to even: 4 and 6-2.
pub const KEEP_EVEN: Quantizer = Quantizer {
    name: Cow::Borrowed("keep-even"),
    rounding: Rounding::NearestTiesToEven,
    segments: Cow::Borrowed(&[INT8_INSIDE]),
    beyond: Beyond::Keep,
    ..GRID
};

/// Outliers have a second scale, found at each call: 5-3.
pub const FOUND_SCALE: Quantizer = Quantizer {
    name: Cow::Borrowed("found-scale"),
    segments: Cow::Borrowed(&[INT8_INSIDE]),
    beyond: Beyond::FoundScale,
    ..GRID
};

/// Outliers have a second scale, calibrated, ties to even: 6-4.
pub const SECOND_SCALE_EVEN: Quantizer = Quantizer {
    name: Cow::Borrowed("second-scale-even"),
    rounding: Rounding::NearestTiesToEven,
    segments: Cow::Borrowed(&[INT8_INSIDE]),
    beyond: Beyond::SecondScale,
    ..GRID
};

/// Small values have quarter steps: 5-4.
pub const QUARTER_STEPS: Quantizer = Quantizer {
    name: Cow::Borrowed("quarter-steps"),
    segments: Cow::Borrowed(&[
        Segment {
            step: 0.25,
            codes: [-127, 127],
            offset: 0.0,
            until: Until::Code(31),
        },
        INT8,
    ]),
    ..GRID
};

/// Values up to half the range have half steps, ties to even: 6-3.
pub const HALF_STEPS_EVEN: Quantizer = Quantizer {
    name: Cow::Borrowed("half-steps-even"),
    rounding: Rounding::NearestTiesToEven,
    segments: Cow::Borrowed(&[
        Segment {
            step: 0.5,
            codes: [-127, 127],
            offset: 0.0,
            until: Until::Code(63),
        },
        INT8,
    ]),
    ..GRID
};

/// Quarter steps up to 8 s, powers of two beyond: 5-6.
pub const LOG_TAIL: Quantizer = Quantizer {
    name: Cow::Borrowed("log-tail"),
    segments: Cow::Borrowed(&[Segment {
        step: 0.25,
        codes: [-127, 127],
        offset: 0.0,
        until: Until::Magnitude(8.0),
    }]),
    beyond: Beyond::Logarithmic {
        step: 0.25,
        highest: 255,
    },
    ..GRID
};

/// Quarter, whole and fourfold steps: 5-7.
pub const THREE_SEGMENTS: Quantizer = Quantizer {
    name: Cow::Borrowed("three-segments"),
    segments: Cow::Borrowed(&[
        Segment {
            step: 0.25,
            codes: [-63, 63],
            offset: 0.0,
            until: Until::Magnitude(15.75),
        },
        Segment {
            step: 1.0,
            codes: [16, 143],
            offset: 0.0,
            until: Until::Magnitude(143.0),
        },
        Segment {
            step: 4.0,
            codes: [0, 63],
            offset: 143.0,
            until: Until::End,
        },
    ]),
    ..GRID
};

/// The built-in quantizers.
pub const QUANTIZERS: &[Quantizer] = &[
    GRID,
    INT8_EVEN,
    KEEP,
    KEEP_EVEN,
    FOUND_SCALE,
    SECOND_SCALE_EVEN,
    QUARTER_STEPS,
    HALF_STEPS_EVEN,
    LOG_TAIL,
    THREE_SEGMENTS,
];
