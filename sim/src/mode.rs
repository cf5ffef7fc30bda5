//! Modes: precision assignments for a Mamba block, as data. The engine reads the fields of a
//! [`ModeSpec`]; nothing anywhere compares mode names.
//!
//! Source: the mode table of the specification; `docs/modes.md` shows the table, checked by a test.

use crate::error::{Result, SimError};
use crate::text;
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
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
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
    /// What conv+SiLU emits: INT8 (fused quantizer) or true FP32.
    pub conv_out: Precision,
    /// Route A, x_proj's input: the conv's codes, requantized FP32, or FP32.
    pub x_proj_in: Precision,
    /// dt‖B‖C.
    pub x_proj_out: Precision,
    /// dt.
    pub dt_proj_out: Precision,
    /// Route B, the scan's main input.
    pub u: ScanInput,
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
    conv_out: Precision::Int8,
    x_proj_in: Precision::Int8,
    x_proj_out: Precision::Int8,
    dt_proj_out: Precision::Int8,
    u: ScanInput::Int8,
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
    conv_out: Precision::Float,
    x_proj_in: Precision::Float,
    x_proj_out: Precision::Float,
    dt_proj_out: Precision::Float,
    u: ScanInput::Float,
    state: Precision::Float,
    stream: Stream::Float,
    had_out: Precision::Float,
    conv: Implementation::Torch,
    scan: Implementation::Torch,
    rotated: true,
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
        name: Cow::Borrowed("3-grid"),
        summary: Cow::Borrowed("INT8 x dequantized and dynamically requantized, true FP32 u"),
        conv_in: ConvInput::DynamicTensor,
        conv_out: Precision::Float,
        u: ScanInput::Float,
        scan: Implementation::Torch,
        ..INT8
    },
];

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
}

impl Default for ModeTable {
    fn default() -> Self {
        Self {
            rows: MODES.to_vec(),
            references: REFERENCE_MODES.to_vec(),
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
    conv_out: Option<Precision>,
    x_proj_in: Option<Precision>,
    x_proj_out: Option<Precision>,
    dt_proj_out: Option<Precision>,
    u: Option<ScanInput>,
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
    mode: toml::Table,
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
        let text = text::read(path)?;
        self.add_toml(&text).map_err(|e| e.in_file(path))
    }

    /// Adds the rows of a TOML text; see [`ModeTable::add_file`].
    pub fn add_toml(&mut self, text: &str) -> Result<()> {
        let bad = |item: String, e: toml::de::Error| {
            SimError::value(item, "a table of modes", e.message().replace('\n', " "))
        };
        let file: ModeFile = toml::from_str(text).map_err(|e| bad("modes file".into(), e))?;
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
            conv_out,
            x_proj_in,
            x_proj_out,
            dt_proj_out,
            u,
            state,
            stream,
            had_out,
            conv,
            scan,
            rotated
        );
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
