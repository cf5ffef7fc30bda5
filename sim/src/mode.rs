//! Modes: precision assignments for a Mamba block, as data. The engine reads the fields of a
//! [`ModeSpec`]; nothing anywhere compares mode names.
//!
//! Source: the mode table of the specification; `docs/modes.md` shows the table, checked by a test.

use crate::arith::quantizer::{self, QUANTIZERS, Quantizer, QuantizerTable};
use crate::arith::requant::QuantRule;
use crate::arith::round::Rounding;
use crate::error::{Result, SimError};
use serde::{Deserialize, Serialize};
use std::borrow::Cow;
use std::path::Path;

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

/// The modes a run can name: the built-in rows and those of a TOML file.
#[derive(Clone, Debug)]
pub struct ModeTable {
    rows: Vec<ModeSpec>,
    references: Vec<ModeSpec>,
    quantizers: Vec<Quantizer>,
}

impl Default for ModeTable {
    fn default() -> Self {
        Self {
            rows: MODES.to_vec(),
            references: REFERENCE_MODES.to_vec(),
            quantizers: QUANTIZERS.to_vec(),
        }
    }
}

/// A row of a TOML file: a base row and the fields it overrides.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct ModeRow {
    base: Option<String>,
    summary: Option<String>,
    weights: Option<Precision>,
    norm_out: Option<Precision>,
    x: Option<XOutput>,
    z: Option<Precision>,
    conv_in: Option<ConvInput>,
    conv_in_quotient: Option<QuotientType>,
    conv_out: Option<Precision>,
    x_proj_from: Option<RouteA>,
    x_proj_in: Option<Precision>,
    x_proj_out: Option<Precision>,
    dt_proj_out: Option<Precision>,
    projected: Option<Projected>,
    scan_bc: Option<ScanBc>,
    u: Option<ScanInput>,
    /// The name of a quantizer, or `none`.
    u_quantizer: Option<String>,
    requantize_rounding: Option<Rounding>,
    state: Option<Precision>,
    stream: Option<Stream>,
    had_out: Option<Precision>,
    conv: Option<Implementation>,
    scan: Option<Implementation>,
    rotated: Option<bool>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct ModeFile {
    #[serde(default)]
    mode: toml::Table,
    #[serde(default)]
    quantizer: toml::Table,
}

impl ModeTable {
    /// Every row that `all` means, built-in first.
    pub fn rows(&self) -> &[ModeSpec] {
        &self.rows
    }

    /// The rows that only their name selects: [`REFERENCE_MODES`].
    pub fn references(&self) -> &[ModeSpec] {
        &self.references
    }

    fn every(&self) -> impl Iterator<Item = &ModeSpec> {
        self.rows.iter().chain(&self.references)
    }

    /// The row of a name.
    pub fn get(&self, name: &str) -> Result<&ModeSpec> {
        self.every().find(|row| row.name == name).ok_or_else(|| {
            let known: Vec<&str> = self.every().map(|row| &*row.name).collect();
            SimError::value("mode", format_args!("one of {}", known.join(", ")), name)
        })
    }

    /// Adds the rows of a TOML file: `[mode."2-4d"]` with `base = "2-4"` and any fields of
    /// [`ModeSpec`] to override. A row named like an existing one overrides that row's fields.
    pub fn add_file(&mut self, path: &Path) -> Result<()> {
        let text = std::fs::read_to_string(path).map_err(|e| SimError::io(path, e))?;
        self.add_toml(&text).map_err(|e| e.in_file(path))
    }

    /// Adds the rows of a TOML text; see [`ModeTable::add_file`]. `[quantizer.NAME]` states a quantizer that rows
    /// name in `u_quantizer`, before any of them is read.
    pub fn add_toml(&mut self, text: &str) -> Result<()> {
        let bad = |item: String, e: toml::de::Error| {
            SimError::value(item, "a table of modes", e.message().replace('\n', " "))
        };
        let file: ModeFile = toml::from_str(text).map_err(|e| bad("modes file".into(), e))?;
        for (name, table) in file.quantizer {
            let table: QuantizerTable = table
                .try_into()
                .map_err(|e| bad(format!("quantizer \"{name}\""), e))?;
            let quantizer = table.named(&name)?;
            self.quantizers.retain(|known| known.name != name);
            self.quantizers.push(quantizer);
        }
        for (name, row) in file.mode {
            let row: ModeRow = row
                .try_into()
                .map_err(|e| bad(format!("mode \"{name}\""), e))?;
            self.add_row(name, row)?;
        }
        Ok(())
    }

    fn add_row(&mut self, name: String, row: ModeRow) -> Result<()> {
        let existing = self.every().find(|r| r.name == name);
        let mut spec = match (&row.base, existing) {
            (Some(base), _) => self
                .get(base)
                .map_err(|e| match e {
                    SimError::Value {
                        expected, found, ..
                    } => SimError::value(format_args!("mode \"{name}\": base"), expected, found),
                    other => other,
                })?
                .clone(),
            (None, Some(row)) => row.clone(),
            (None, None) => {
                return Err(SimError::value(
                    format_args!("mode \"{name}\""),
                    "a `base` mode to start from",
                    "none",
                ));
            }
        };
        macro_rules! override_fields {
            ($($field:ident),*) => { $( if let Some(value) = row.$field { spec.$field = value; } )* };
        }
        override_fields!(
            weights,
            norm_out,
            x,
            z,
            conv_in,
            conv_in_quotient,
            conv_out,
            x_proj_from,
            x_proj_in,
            x_proj_out,
            dt_proj_out,
            projected,
            scan_bc,
            u,
            state,
            stream,
            had_out,
            conv,
            scan,
            rotated
        );
        if let Some(rounding) = row.requantize_rounding {
            if rounding.lfsr().is_some() {
                let item = format!("mode \"{name}\": requantize_rounding");
                return Err(SimError::value(
                    item,
                    "a rule without random bits",
                    "stochastic",
                ));
            }
            spec.requantize_rounding = Some(rounding);
        }
        match row.u_quantizer.as_deref() {
            None => {}
            Some("none") => spec.u_quantizer = None,
            Some(wanted) => {
                let known = self.quantizers.iter().find(|known| known.name == wanted);
                let known = known.ok_or_else(|| {
                    let names: Vec<&str> = self.quantizers.iter().map(|q| &*q.name).collect();
                    let item = format!("mode \"{name}\": u_quantizer");
                    SimError::value(item, format_args!("none, {}", names.join(", ")), wanted)
                })?;
                spec.u_quantizer = Some(known.clone());
            }
        }
        if spec.u_quantizer.is_some() && spec.u != ScanInput::Float {
            let item = format!("mode \"{name}\": u");
            let found = "codes, which go through no other quantizer";
            return Err(SimError::value(item, "float beside a u_quantizer", found));
        }
        spec.summary = match row.summary {
            Some(summary) => Cow::Owned(summary),
            None => Cow::Owned(format!("{} with overrides", spec.name)),
        };
        spec.name = Cow::Owned(name);
        let existing = (self.rows.iter_mut())
            .chain(&mut self.references)
            .find(|r| r.name == spec.name);
        match existing {
            Some(row) => *row = spec,
            None => self.rows.push(spec),
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_unique_and_rows_differ() {
        let rows: Vec<&ModeSpec> = MODES.iter().chain(REFERENCE_MODES).collect();
        for (i, a) in rows.iter().enumerate() {
            for b in &rows[i + 1..] {
                assert_ne!(a.name, b.name);
                let mut renamed = (*b).clone();
                renamed.name = a.name.clone();
                renamed.summary = a.summary.clone();
                assert_ne!(**a, renamed, "{} and {} assign the same", a.name, b.name);
            }
        }
    }

    #[test]
    fn every_mode_is_in_one_family() {
        let rows = families().flat_map(|(_, rows)| rows);
        assert!(rows.eq(MODES));
    }

    #[test]
    fn quantizers_are_stated_and_named() {
        let mut table = ModeTable::default();
        let text = "
            [quantizer.mine]
            rounding = \"nearest-ties-to-even\"
            beyond = \"keep\"
            [[quantizer.mine.segment]]
            step = 1
            codes = [-128, 127]
            until = { code = 127 }
            [mode.a]
            base = \"5-2\"
            u_quantizer = \"mine\"
            [mode.b]
            base = \"5-2\"
            u_quantizer = \"none\"
        ";
        table.add_toml(text).unwrap();
        let mine = table.get("a").unwrap().u_quantizer.clone().unwrap();
        let even = Quantizer {
            name: "mine".into(),
            ..quantizer::KEEP_EVEN
        };
        assert_eq!(mine, even);
        assert_eq!(table.get("b").unwrap().u_quantizer, None);
        for (text, part) in [
            ("[mode.c]\nbase = \"5-2\"\nu_quantizer = \"theirs\"", "mine"),
            (
                "[mode.c]\nbase = \"2-3\"\nu_quantizer = \"keep\"",
                "mode \"c\": u",
            ),
            ("[quantizer.d]\nsegment = []", "quantizer \"d\": segments"),
            ("[quantizer.d]\nsegment = 1", "quantizer \"d\""),
        ] {
            let error = table.add_toml(text).unwrap_err().to_string();
            assert!(error.contains(part), "{error}");
        }
    }

    #[test]
    fn toml_rows_override_and_add() {
        let mut table = ModeTable::default();
        table
            .add_toml("[mode.\"2-4d\"]\nbase = \"2-4\"\nconv_in = \"dynamic-token\"\n[mode.0]\nstate = \"float\"\n")
            .unwrap();
        assert_eq!(table.get("2-4d").unwrap().conv_in, ConvInput::DynamicToken);
        assert_eq!(table.get("2-4d").unwrap().u, ScanInput::Float);
        assert_eq!(table.get("0").unwrap().state, Precision::Float);
        assert_eq!(table.rows().len(), MODES.len() + 1);
    }

    #[test]
    fn reference_rows_are_found_by_name_only() {
        let mut table = ModeTable::default();
        table
            .add_toml("[mode.original]\nstream = \"f16\"\n[mode.mine]\nbase = \"original\"\n")
            .unwrap();
        assert_eq!(table.get("original").unwrap().stream, Stream::F16);
        assert!(!table.get("mine").unwrap().rotated);
        assert_eq!(table.references().len(), REFERENCE_MODES.len());
        assert_eq!(table.rows().len(), MODES.len() + 1);
        assert!(table.rows().iter().all(|row| row.name != "original"));
    }

    #[test]
    fn bad_rows_are_refused_by_name() {
        for (text, part) in [
            ("[mode.a]\nbase = \"9\"", "mode \"a\": base"),
            ("[mode.a]\nstate = \"int8\"", "a `base` mode"),
            ("[mode.a]\nbase = \"0\"\nstaet = \"int8\"", "staet"),
            ("[mode.a]\nbase = \"0\"\nstate = \"int7\"", "int7"),
            ("[modes.a]\nbase = \"0\"", "modes"),
        ] {
            let error = ModeTable::default().add_toml(text).unwrap_err().to_string();
            assert!(error.contains(part), "{text:?} gave {error}");
            assert!(!error.contains('\n'));
        }
    }

    #[test]
    fn needs_follow_the_fields() {
        let table = ModeTable::default();
        assert!(!table.get("1").unwrap().needs_quantized());
        assert!(table.get("1").unwrap().needs_float());
        assert!(table.get("2-4").unwrap().needs_quantized());
        assert!(!table.get("2-4").unwrap().needs_float());
    }
}
