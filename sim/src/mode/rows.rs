//! The built-in modes, a row each: `docs/modes.md`.

use super::*;
use crate::arith::quantizer;

/// INT8 everywhere, all CUDA kernels: the row the others are stated against.
const INT8: ModeSpec = ModeSpec {
    name: Cow::Borrowed("0"),
    summary: Cow::Borrowed("INT8 everywhere, CUDA INT8 scan"),
    weights: Precision::Int8,
    norm_out: Precision::Int8,
    x: XOutput::Int8,
    z: Precision::Int8,
    conv_in: ConvInput::Static,
    conv_in_quotient: QuotientType::F32,
    conv_out: Precision::Int8,
    x_proj_from: RouteA::Conv,
    x_proj_in: Precision::Int8,
    x_proj_out: Precision::Int8,
    dt_proj_out: Precision::Int8,
    projected: Projected::Real,
    scan_bc: ScanBc::Projected,
    u: ScanInput::Int8,
    u_quantizer: None,
    requantize_rounding: None,
    state: Precision::Int8,
    stream: Stream::F16,
    had_out: Precision::Int8,
    conv: Implementation::Cuda,
    scan: Implementation::Cuda,
    rotated: true,
};

/// The float reference: what quantized models are calibrated and measured against.
pub const FLOAT: ModeSpec = ModeSpec {
    name: Cow::Borrowed("1"),
    summary: Cow::Borrowed("float reference: rotated model, no quantization anywhere"),
    weights: Precision::Float,
    norm_out: Precision::Float,
    x: XOutput::Float,
    z: Precision::Float,
    conv_in: ConvInput::Float,
    conv_in_quotient: QuotientType::F32,
    conv_out: Precision::Float,
    x_proj_from: RouteA::Conv,
    x_proj_in: Precision::Float,
    x_proj_out: Precision::Float,
    dt_proj_out: Precision::Float,
    projected: Projected::Real,
    scan_bc: ScanBc::Projected,
    u: ScanInput::Float,
    u_quantizer: None,
    requantize_rounding: None,
    state: Precision::Float,
    stream: Stream::Float,
    had_out: Precision::Float,
    conv: Implementation::Torch,
    scan: Implementation::Torch,
    rotated: true,
};

/// True FP32 u through a quantizer, INT8 x_proj on what it made, CUDA scan: the row of 5-x.
const GRIDS: ModeSpec = ModeSpec {
    conv_out: Precision::Float,
    x_proj_from: RouteA::U,
    u: ScanInput::Float,
    requantize_rounding: Some(Rounding::HalfAwayByAdding),
    ..INT8
};

/// True FP32 u through a quantizer, FP32 projections, PyTorch scan: the row of 6-x.
const REAL: ModeSpec = ModeSpec {
    conv_out: Precision::Float,
    x_proj_from: RouteA::U,
    x_proj_in: Precision::Float,
    x_proj_out: Precision::Float,
    dt_proj_out: Precision::Float,
    u: ScanInput::Float,
    scan: Implementation::Torch,
    ..INT8
};

/// The built-in modes, in the order tables show them.
pub const MODES: &[ModeSpec] = &[
    INT8,
    FLOAT,
    ModeSpec {
        name: Cow::Borrowed("2-0"),
        summary: Cow::Borrowed("u dequantized and requantized with the same scale, CUDA INT8 scan"),
        u: ScanInput::RoundTrip,
        ..INT8
    },
    ModeSpec {
        name: Cow::Borrowed("2-1"),
        summary: Cow::Borrowed("INT8 u, PyTorch scan dequantizes inside"),
        scan: Implementation::Torch,
        ..INT8
    },
    ModeSpec {
        name: Cow::Borrowed("2-2"),
        summary: Cow::Borrowed("u dequantized outside (FP32 on the INT8 grid), PyTorch scan"),
        u: ScanInput::Float,
        scan: Implementation::Torch,
        ..INT8
    },
    ModeSpec {
        name: Cow::Borrowed("2-3"),
        summary: Cow::Borrowed("FP32 conv output requantized for x_proj and u, PyTorch scan"),
        conv_out: Precision::Float,
        scan: Implementation::Torch,
        ..INT8
    },
    ModeSpec {
        name: Cow::Borrowed("2-4"),
        summary: Cow::Borrowed("FP32 conv output, requantized for x_proj only, true FP32 u"),
        conv_out: Precision::Float,
        u: ScanInput::Float,
        scan: Implementation::Torch,
        ..INT8
    },
    ModeSpec {
        name: Cow::Borrowed("3"),
        summary: Cow::Borrowed("f16 x quantized dynamically at the conv input, true FP32 u"),
        x: XOutput::F16,
        conv_in: ConvInput::DynamicTensor,
        conv_out: Precision::Float,
        u: ScanInput::Float,
        scan: Implementation::Torch,
        ..INT8
    },
    ModeSpec {
        name: Cow::Borrowed("3-f16"),
        summary: Cow::Borrowed(
            "as 3, but x over its scale is rounded to f16, as PyTorch divides f16",
        ),
        x: XOutput::F16,
        conv_in: ConvInput::DynamicTensor,
        conv_in_quotient: QuotientType::F16,
        conv_out: Precision::Float,
        u: ScanInput::Float,
        scan: Implementation::Torch,
        ..INT8
    },
    ModeSpec {
        name: Cow::Borrowed("3-grid"),
        summary: Cow::Borrowed("INT8 x dequantized and dynamically requantized, true FP32 u"),
        conv_in: ConvInput::DynamicTensor,
        conv_out: Precision::Float,
        u: ScanInput::Float,
        scan: Implementation::Torch,
        ..INT8
    },
    ModeSpec {
        name: Cow::Borrowed("4"),
        summary: Cow::Borrowed(
            "FP32 conv in PyTorch; u on the INT8 grid, outliers FP32; PyTorch scan",
        ),
        conv_in: ConvInput::Float,
        conv: Implementation::Torch,
        u_quantizer: Some(quantizer::KEEP_EVEN),
        requantize_rounding: None,
        scan: Implementation::Torch,
        ..GRIDS
    },
    ModeSpec {
        name: Cow::Borrowed("5-0"),
        summary: Cow::Borrowed("FP32 conv output; u on the INT8 grid, CUDA scan"),
        x_proj_from: RouteA::Conv,
        u_quantizer: Some(quantizer::GRID),
        ..GRIDS
    },
    ModeSpec {
        name: Cow::Borrowed("5-1"),
        summary: Cow::Borrowed("FP32 conv output; true FP32 u, CUDA scan"),
        x_proj_from: RouteA::Conv,
        ..GRIDS
    },
    ModeSpec {
        name: Cow::Borrowed("5-2"),
        summary: Cow::Borrowed("u on the INT8 grid, outliers FP32, CUDA scan"),
        u_quantizer: Some(quantizer::KEEP),
        ..GRIDS
    },
    ModeSpec {
        name: Cow::Borrowed("5-3"),
        summary: Cow::Borrowed("u on the INT8 grid, outliers on a second one found at run time"),
        u_quantizer: Some(quantizer::FOUND_SCALE),
        ..GRIDS
    },
    ModeSpec {
        name: Cow::Borrowed("5-4"),
        summary: Cow::Borrowed("u in quarter steps below 32 steps, whole steps above"),
        u_quantizer: Some(quantizer::QUARTER_STEPS),
        ..GRIDS
    },
    ModeSpec {
        name: Cow::Borrowed("5-6"),
        summary: Cow::Borrowed("u in quarter steps, a logarithmic tail from 8 steps on"),
        u_quantizer: Some(quantizer::LOG_TAIL),
        ..GRIDS
    },
    ModeSpec {
        name: Cow::Borrowed("5-7"),
        summary: Cow::Borrowed("u in three segments: quarter, whole and fourfold steps"),
        u_quantizer: Some(quantizer::THREE_SEGMENTS),
        ..GRIDS
    },
    ModeSpec {
        name: Cow::Borrowed("6-0"),
        summary: Cow::Borrowed("FP32 projections on INT8 grids; u on the INT8 grid, PyTorch scan"),
        projected: Projected::Grid,
        u_quantizer: Some(quantizer::INT8_EVEN),
        ..REAL
    },
    ModeSpec {
        name: Cow::Borrowed("6-1"),
        summary: Cow::Borrowed("FP32 projections; true FP32 u, PyTorch scan"),
        ..REAL
    },
    ModeSpec {
        name: Cow::Borrowed("6-2"),
        summary: Cow::Borrowed("FP32 projections; u on the INT8 grid, outliers FP32"),
        u_quantizer: Some(quantizer::KEEP_EVEN),
        ..REAL
    },
    ModeSpec {
        name: Cow::Borrowed("6-3"),
        summary: Cow::Borrowed("FP32 projections; u in half steps below 64 steps"),
        u_quantizer: Some(quantizer::HALF_STEPS_EVEN),
        ..REAL
    },
    ModeSpec {
        name: Cow::Borrowed("6-4"),
        summary: Cow::Borrowed(
            "FP32 projections requantized; outliers of u on a second calibrated grid, CUDA scan",
        ),
        dt_proj_out: Precision::Int8,
        scan_bc: ScanBc::Int8,
        u_quantizer: Some(quantizer::SECOND_SCALE_EVEN),
        scan: Implementation::Cuda,
        ..REAL
    },
];

/// The families of [`MODES`], as tables show them: a title and the number of rows.
pub const FAMILIES: &[(&str, usize)] = &[
    ("INT8 and FP32", 2),
    ("How u reaches the scan", 5),
    ("A conv input with a scale found at run time", 3),
    ("A conv in PyTorch, outliers of u kept", 1),
    ("Quantizers of u: INT8 projections, CUDA scan", 7),
    ("Quantizers of u: FP32 projections", 5),
];

/// The built-in modes by family.
pub fn families() -> impl Iterator<Item = (&'static str, &'static [ModeSpec])> {
    let mut first = 0;
    FAMILIES.iter().map(move |(title, count)| {
        let rows = &MODES[first..first + count];
        first += count;
        (*title, rows)
    })
}

/// Rows to hold the modes against. They are found by name and `all` does not mean them.
pub const REFERENCE_MODES: &[ModeSpec] = &[ModeSpec {
    name: Cow::Borrowed("original"),
    summary: Cow::Borrowed("the checkpoint as it is: not rotated, FP32 throughout"),
    rotated: false,
    ..FLOAT
}];
