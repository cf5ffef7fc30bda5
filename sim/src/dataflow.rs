//! The block as a table: one row for each tensor that a step makes, with what the step reads, the
//! scale it dequantizes each input with, the quantizer of the output, the rule it runs by and the
//! fields of a mode that decide about it.
//!
//! This is the one picture of the dataflow: `names` has its steps, tensors and scale uses, a line each.
//! The engine runs the rows; what a check can follow from
//! what, what a scale or a rule can alter, scale lineage, fault sites and the tables of the
//! documents are questions to it. A block of another kind is another list of rows.
//!
//! `sim/tests/dataflow.rs` holds the table against the engine: it perturbs every tensor, every scale
//! and every rule, and looks which tensors change.

mod mamba;
mod names;
mod questions;

use crate::mode::{Implementation, ModeSpec, Precision};
use crate::model::Config;
use crate::profile::Profile;
use crate::profile::unit::{ActivationGranularity, HadamardForm, ScanUnit, StateFormat};
use serde::Serialize;
use std::ops::Range;

pub use names::{ScaleUse, Step, TracePoint};
pub use questions::{Flow, phases};

/// A whole sequence or one token: which rules of an arithmetic apply, and whether states come in.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Phase {
    /// A whole sequence, from empty states.
    Prefill,
    /// One token, from the states of the one before.
    Decode,
}

/// The columns of a tensor that a reader takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Columns {
    /// Every one.
    All,
    /// x of x‖z.
    X,
    /// z of x‖z.
    Z,
    /// dt of dt‖B‖C.
    Dt,
    /// B of dt‖B‖C.
    B,
    /// C of dt‖B‖C.
    C,
    /// B‖C of dt‖B‖C.
    BAndC,
}

impl Columns {
    /// The name in tables.
    pub fn name(self) -> &'static str {
        match self {
            Columns::All => "all",
            Columns::X => "x",
            Columns::Z => "z",
            Columns::Dt => "dt",
            Columns::B => "B",
            Columns::C => "C",
            Columns::BAndC => "B‖C",
        }
    }

    /// Which they are, of a tensor of `width` columns: B‖C without dt has 2N.
    pub fn range(self, config: &Config, width: usize) -> Range<usize> {
        let (e, n) = (config.d_inner, config.d_state);
        let r = match width == 2 * n {
            true => 0,
            false => config.dt_rank,
        };
        match self {
            Columns::All => 0..width,
            Columns::X => 0..e,
            Columns::Z => e..2 * e,
            Columns::Dt => 0..r,
            Columns::B => r..r + n,
            Columns::C => r + n..r + 2 * n,
            Columns::BAndC => r..r + 2 * n,
        }
    }
}

/// An extent of a tensor.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize)]
#[allow(missing_docs)] // the letters of `model`
pub enum Dim {
    /// Tokens.
    L,
    One,
    M,
    E,
    /// x‖z.
    TwoE,
    N,
    /// B‖C.
    TwoN,
    K,
    /// dt‖B‖C, R + 2N.
    XProj,
    V,
}

impl Dim {
    /// The extent in a model, for a sequence of `length` tokens.
    pub fn of(self, config: &Config, length: usize) -> usize {
        match self {
            Dim::L => length,
            Dim::One => 1,
            Dim::M => config.d_model,
            Dim::E => config.d_inner,
            Dim::TwoE => 2 * config.d_inner,
            Dim::N => config.d_state,
            Dim::TwoN => 2 * config.d_state,
            Dim::K => config.d_conv,
            Dim::XProj => config.x_proj_width(),
            Dim::V => config.vocab_size,
        }
    }

    /// As documents write it.
    pub fn name(self) -> &'static str {
        match self {
            Dim::L => "L",
            Dim::One => "1",
            Dim::M => "M",
            Dim::E => "E",
            Dim::TwoE => "2E",
            Dim::N => "N",
            Dim::TwoN => "2N",
            Dim::K => "K",
            Dim::XProj => "R+2N",
            Dim::V => "V",
        }
    }
}

/// Where an input comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Origin {
    /// A tensor of the same block (or of the same end of the model).
    Here(TracePoint),
    /// A tensor of the block before; of the first one, the embedding of the tokens, and no residual.
    BlockBefore(TracePoint),
    /// A state that the token before left; empty before the first.
    TokenBefore(TracePoint),
}

/// One input of a step.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Read {
    /// The tensor.
    pub from: Origin,
    /// What is taken of it.
    pub columns: Columns,
    /// The scale it is dequantized with: of codes on a static grid. Codes of a dynamic quantizer come
    /// with their scales, which are an input of their own; codes that are handed on are not
    /// dequantized.
    pub scale: Option<ScaleUse>,
}

impl Read {
    /// The tensor of the same block that is read.
    pub fn point(&self) -> Option<TracePoint> {
        match self.from {
            Origin::Here(point) => Some(point),
            Origin::BlockBefore(_) | Origin::TokenBefore(_) => None,
        }
    }
}

/// What makes codes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Quantizer {
    /// With the calibrated scale of this use.
    Static(ScaleUse),
    /// With one scale, absmax/127, found at run time for the whole tensor, where a static quantizer
    /// would have the scale of this use.
    Tensor(ScaleUse),
    /// With a scale found at run time for each token, likewise.
    Token(ScaleUse),
}

impl Quantizer {
    /// Its use of a scale, or the one it stands in for.
    pub fn scale_use(self) -> ScaleUse {
        match self {
            Quantizer::Static(by) | Quantizer::Tensor(by) | Quantizer::Token(by) => by,
        }
    }

    /// Whether it finds its scale at run time.
    pub fn is_dynamic(self) -> bool {
        match self {
            Quantizer::Static(_) => false,
            Quantizer::Tensor(_) | Quantizer::Token(_) => true,
        }
    }
}

/// How a tensor is stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Format {
    /// INT8 codes on the static grid that this use makes (or, for a state, that this use reads).
    Int8(ScaleUse),
    /// INT8 codes with scales of their own, which are at [`TracePoint::scales`].
    Codes,
    /// Binary16.
    F16,
    /// FP32.
    F32,
}

impl Format {
    /// The type's name as files have it.
    pub fn dtype(self) -> &'static str {
        match self {
            Format::Int8(_) | Format::Codes => "i8",
            Format::F16 => "f16",
            Format::F32 => "f32",
        }
    }
}

/// The rules that a tensor is made by: a part of [`crate::profile::StepRules`], or the last norm's.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Rule {
    /// Whose arithmetic.
    pub by: Implementation,
    /// Where in it, as profile files write it: `linear.in_proj`, `conv`, `scan`.
    pub path: &'static str,
}

/// Weights that a step reads, as one mode or another has them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize)]
#[allow(missing_docs)] // `name` says what each is
pub enum Weight {
    Norm,
    InProj,
    Conv,
    XProj,
    DtProj,
    Scan,
    OutProj,
    FinalNorm,
    Head,
}

impl Weight {
    /// The name in tables.
    pub fn name(self) -> &'static str {
        match self {
            Weight::Norm => "norm.weight",
            Weight::InProj => "in_proj.weight",
            Weight::Conv => "conv1d.weight",
            Weight::XProj => "x_proj.weight",
            Weight::DtProj => "dt_proj.weight",
            Weight::Scan => "A_log, D, dt_bias",
            Weight::OutProj => "out_proj.weight",
            Weight::FinalNorm => "norm_f.weight",
            Weight::Head => "lm_head.weight",
        }
    }
}

/// A field of [`ModeSpec`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[allow(missing_docs)] // each is the field of that name
pub enum Field {
    Weights,
    NormOut,
    X,
    Z,
    ConvIn,
    ConvInQuotient,
    ConvOut,
    XProjFrom,
    XProjIn,
    XProjOut,
    DtProjOut,
    Projected,
    ScanBc,
    U,
    UQuantizer,
    RequantizeRounding,
    State,
    Stream,
    HadOut,
    Conv,
    Scan,
    Rotated,
}

/// A tensor that a step makes.
#[derive(Clone, Debug, PartialEq)]
pub struct Row {
    /// The tensor.
    pub point: TracePoint,
    /// What makes it.
    pub step: Step,
    /// Rows and columns.
    pub shape: [Dim; 2],
    /// What it is made from.
    pub reads: Vec<Read>,
    /// How it is stored.
    pub format: Format,
    /// What makes its codes, or puts an FP32 tensor on their grid; `None` where there are none, or where codes
    /// are handed on.
    pub quantizer: Option<Quantizer>,
    /// A scale that lays out a register inside the step, or of values beyond the quantizer's codes.
    pub register_scale: Option<ScaleUse>,
    /// The rules it is made by, the one of its quantizer last; none where there is one way only.
    pub rules: Vec<Rule>,
    /// Weights that go in.
    pub weights: &'static [Weight],
    /// The fields of a mode that decide about it.
    pub fields: &'static [Field],
    /// Whether a probe sees it in this phase. (The conv state after a prefill is carried, not shown.)
    pub shown: bool,
}

impl Row {
    /// Every scale that goes into the tensor: of its inputs, of its quantizer, of its registers.
    pub fn scales(&self) -> impl Iterator<Item = ScaleUse> + '_ {
        let quantizer = self.quantizer.and_then(|q| match q {
            Quantizer::Static(by) => Some(by),
            Quantizer::Tensor(_) | Quantizer::Token(_) => None,
        });
        let read = self.reads.iter().filter_map(|read| read.scale);
        read.chain(quantizer).chain(self.register_scale)
    }

    /// Tensors of the same block that go in.
    pub fn inputs(&self) -> impl Iterator<Item = TracePoint> + '_ {
        self.reads.iter().filter_map(Read::point)
    }

    /// The read of a tensor of the same block, of these columns.
    pub fn read(&self, point: TracePoint, columns: Columns) -> Option<&Read> {
        let mut reads = self.reads.iter();
        reads.find(|read| read.point() == Some(point) && read.columns == columns)
    }
}

/// What decides how a block's tensors flow: a mode, and the few choices of a profile that add or
/// take away tensors and scales.
#[derive(Clone, Copy, Debug)]
pub struct Choices<'a> {
    /// The mode.
    pub mode: &'a ModeSpec,
    /// Whether the inputs of in_proj and out_proj have a scale for each token.
    pub by_token: bool,
    /// Whether a fixed-point scan lays its state out on the calibrated grid.
    pub fixed_point_scan: bool,
    /// Whether the Hadamard transform runs on integers.
    pub integer_rotation: bool,
}

impl<'a> Choices<'a> {
    /// Those of a mode and a profile.
    pub fn of(mode: &'a ModeSpec, profile: &Profile, phase: Phase) -> Self {
        // Float weights run by the kernels' rules, whatever the chip.
        let kernels;
        let profile = match mode.weights {
            Precision::Int8 => profile,
            Precision::Float => {
                kernels = profile.without_units();
                &kernels
            }
        };
        let rules = |by| match phase {
            Phase::Prefill => profile.arithmetic(by).prefill,
            Phase::Decode => profile.arithmetic(by).decode,
        };
        let fixed_point = |unit: ScanUnit| matches!(unit.state, StateFormat::Fixed { .. });
        Self {
            mode,
            by_token: profile.storage.activation_granularity == ActivationGranularity::Token,
            fixed_point_scan: rules(mode.scan).scan.unit.is_some_and(fixed_point),
            integer_rotation: mode.rotated
                && rules(Implementation::Cuda).hadamard.form != HadamardForm::F32,
        }
    }
}

/// The dataflow of a block, and of the end of the model.
#[derive(Clone, Debug, PartialEq)]
pub struct Block {
    rows: Vec<Row>,
    phase: Phase,
}

impl Block {
    /// A Mamba-1 block in a mode and a profile, in the order of the data, and the end of the model.
    pub fn of(mode: &ModeSpec, profile: &Profile, phase: Phase) -> Self {
        Self::mamba(Choices::of(mode, profile, phase), phase)
    }

    /// Every row, in the order of the data.
    pub fn rows(&self) -> &[Row] {
        &self.rows
    }

    /// The phase it is for.
    pub fn phase(&self) -> Phase {
        self.phase
    }

    /// The row of a tensor; `None` if this mode does not make it.
    pub fn row(&self, point: TracePoint) -> Option<&Row> {
        self.rows.iter().find(|row| row.point == point)
    }

    /// The rows that a step makes.
    pub fn of_step(&self, step: Step) -> impl Iterator<Item = &Row> {
        self.rows.iter().filter(move |row| row.step == step)
    }
}
