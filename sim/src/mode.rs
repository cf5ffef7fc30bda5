//! Modes: precision assignments for a Mamba block, as data. The engine reads the fields of a
//! [`ModeSpec`]; nothing anywhere compares mode names.
//!
//! | file | what it has |
//! |---|---|
//! | `mode` | the fields, and what they say together |
//! | `mode/rows` | the built-in modes, a row each |
//! | `mode/table` | the modes a run can name, and modes in TOML |
//!
//! `docs/modes.md` shows the table of modes, checked by a test.

mod rows;
mod table;

pub use rows::{FAMILIES, FLOAT, MODES, REFERENCE_MODES, families};
pub use table::ModeTable;

use crate::arith::quantizer::{self, Quantizer};
use crate::arith::requant::QuantRule;
use crate::arith::round::Rounding;
use serde::{Deserialize, Serialize};
use std::borrow::Cow;

/// A tensor is INT8 codes or real numbers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Precision {
    /// INT8 codes on the tensor's static grid.
    Int8,
    /// FP32, not quantized here (it may still lie on a grid it was dequantized from).
    Float,
}

/// What in_proj emits for x, the half that enters the convolution.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum XOutput {
    /// INT8 on the static in_proj_output grid.
    Int8,
    /// Binary16: the accumulator scaled to real and rounded once.
    F16,
    /// FP32.
    Float,
}

/// What the convolution reads.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ConvInput {
    /// INT8 on the static in_proj_output grid: in_proj's own codes, or x quantized to them.
    Static,
    /// INT8 with one scale absmax/127 for the whole tensor, found at run time.
    DynamicTensor,
    /// INT8 with a scale absmax/127 for each token, found at run time.
    DynamicToken,
    /// x itself (dequantized if in_proj emitted codes).
    Float,
}

/// The type of x over its scale, where the scale is found at run time.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum QuotientType {
    /// FP32: x is converted first.
    F32,
    /// Binary16: PyTorch divides a binary16 x as it is, and rounds the quotient to its type before it is
    /// rounded to an integer.
    F16,
}

impl QuotientType {
    /// A rule with its quotient in this type.
    #[must_use]
    pub fn of(self, rule: QuantRule) -> QuantRule {
        match self {
            QuotientType::F32 => rule,
            QuotientType::F16 => QuantRule {
                quotient: rule.quotient.in_half(),
                ..rule
            },
        }
    }
}

/// What the scan reads as u (route B out of the convolution).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ScanInput {
    /// INT8: the conv's own codes, or its FP32 output requantized with the static scale.
    Int8,
    /// FP32: the conv's own output, or its codes dequantized (FP32 on the INT8 grid).
    Float,
    /// INT8 after a round trip: dequantized and requantized with the same scale.
    RoundTrip,
}

/// What route A quantizes for x_proj.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum RouteA {
    /// The conv's output.
    Conv,
    /// u, after its quantizer.
    U,
}

/// What an FP32 output of x_proj or dt_proj is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Projected {
    /// The product.
    Real,
    /// The product quantized to its INT8 grid and dequantized at once.
    Grid,
}

/// What the scan reads as B and C where x_proj's output is FP32.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ScanBc {
    /// x_proj's output as it is.
    Projected,
    /// INT8 on its grid, quantized after dt was projected.
    Int8,
}

/// What scan and out_proj emit into the residual stream's side.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Stream {
    /// Binary16.
    F16,
    /// FP32, no rounding in between.
    Float,
}

/// Which implementation runs a step; a profile maps it to an arithmetic.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Implementation {
    /// The CUDA kernel.
    Cuda,
    /// The PyTorch loop.
    Torch,
}

/// A precision assignment: for each tensor of a block, what it is and who makes it.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct ModeSpec {
    /// The name it is called by.
    pub name: Cow<'static, str>,
    /// One line for tables and help.
    pub summary: Cow<'static, str>,
    /// Weights of every step: INT8, or the float checkpoint's.
    pub weights: Precision,
    /// Normed hidden state, in_proj's input.
    pub norm_out: Precision,
    /// in_proj's x half.
    pub x: XOutput,
    /// in_proj's z half, the gate.
    pub z: Precision,
    /// What the convolution reads.
    pub conv_in: ConvInput,
    /// The quotient of a conv input quantized at run time.
    pub conv_in_quotient: QuotientType,
    /// What conv+SiLU emits: INT8 (fused quantizer) or true FP32.
    pub conv_out: Precision,
    /// Where route A begins.
    pub x_proj_from: RouteA,
    /// Route A, x_proj's input: the conv's codes, requantized FP32, or FP32.
    pub x_proj_in: Precision,
    /// dt‖B‖C.
    pub x_proj_out: Precision,
    /// dt.
    pub dt_proj_out: Precision,
    /// What x_proj_out and dt_proj_out are where they are FP32.
    pub projected: Projected,
    /// B and C of an FP32 x_proj_out.
    pub scan_bc: ScanBc,
    /// Route B, the scan's main input.
    pub u: ScanInput,
    /// What an FP32 u goes through; `None` leaves it as it is.
    #[serde(serialize_with = "quantizer::by_name")]
    pub u_quantizer: Option<Quantizer>,
    /// The rounding of quantizers between steps; `None` takes the profile's.
    pub requantize_rounding: Option<Rounding>,
    /// The recurrent state between tokens of decode and at the end of prefill.
    pub state: Precision,
    /// y and out_proj's output.
    pub stream: Stream,
    /// Rotated y, out_proj's input.
    pub had_out: Precision,
    /// Implementation of conv+SiLU.
    pub conv: Implementation,
    /// Implementation of the selective scan.
    pub scan: Implementation,
    /// Whether the model is rotated into Hadamard space; `false` runs a checkpoint as it is.
    pub rotated: bool,
}

impl ModeSpec {
    /// Whether any step needs INT8 weights or calibrated scales.
    pub fn needs_quantized(&self) -> bool {
        let int8 = [
            self.weights,
            self.norm_out,
            self.z,
            self.conv_out,
            self.x_proj_in,
            self.x_proj_out,
            self.dt_proj_out,
            self.state,
            self.had_out,
        ]
        .contains(&Precision::Int8);
        int8 || self.x == XOutput::Int8
            || self.conv_in == ConvInput::Static
            || self.u != ScanInput::Float
            || self.u_quantizer.is_some()
            || self.scan_bc == ScanBc::Int8
            || self.projected == Projected::Grid
    }

    /// A quantizer between steps, which modes run in PyTorch: a profile's rule with this mode's rounding.
    #[must_use]
    pub fn requantize(&self, rule: QuantRule) -> QuantRule {
        QuantRule {
            rounding: self.requantize_rounding.unwrap_or(rule.rounding),
            ..rule
        }
    }

    /// Whether a second calibrated scale is needed.
    pub fn needs_second_scale(&self) -> bool {
        self.u_quantizer
            .as_ref()
            .is_some_and(Quantizer::needs_second_scale)
    }

    /// Whether any step needs the float model's weights.
    pub fn needs_float(&self) -> bool {
        self.weights == Precision::Float
    }
}
