//! Fault models: known defects of kernels, put into any mode and profile to study them. A fault is
//! an edit of the data that one block's steps read (its scales, its rules, its layouts); no step
//! knows of faults. `Datapath::inject` makes the edit.
//!
//! `docs/attribution.md` shows the table, checked by a test.

mod parse;

use crate::arith::accumulate::{AccOverflow, Accumulator};
use crate::arith::requant::{QuantRule, Quotient};
use crate::arith::round::Rounding;
use crate::dataflow::{Block, Columns, Row, Step, Weight};
use crate::model::ScaleKey;
use crate::plan::ScaleUse;
use crate::profile::QuantizerRule;
use crate::trace::TracePoint;
use serde::{Serialize, Serializer};
use std::fmt;

/// A defect and the blocks that have it.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Fault {
    /// The block; `None` puts it into every one.
    pub layer: Option<usize>,
    /// What is wrong there.
    pub defect: Defect,
}

/// What is wrong.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Defect {
    /// The convolution multiplies by its input scale twice.
    ConvDoubleInputScale,
    /// The convolution forgets its K − 1 previous inputs at every 8th token.
    ConvHistoryLoss,
    /// The Hadamard quantizer keeps the low 8 bits instead of saturating.
    HadamardWrap,
    /// A scale times a factor.
    StaleScale {
        /// Whose scale.
        site: ScaleSite,
        /// What it is multiplied with.
        factor: f32,
    },
    /// A weight of four bits read wrongly.
    FourBit {
        /// The step that multiplies by it.
        site: Step,
        /// What is wrong with it.
        what: FourBitDefect,
    },
    /// Codes of a parameter of the scan are taken for real values.
    MissingScale {
        /// The parameter.
        site: ScanParameter,
    },
    /// The scan takes C for B and B for C.
    SwappedBc,
    /// A tensor's buffer is written channel by channel and read row by row.
    Transposed {
        /// The tensor, under any of its names.
        site: TracePoint,
    },
    /// A quantizer with another tie rule or quotient.
    Rounding {
        /// The quantizer.
        site: QuantizerRule,
        /// What it does instead.
        rule: RoundingRule,
    },
    /// Sums of products in a register that is too narrow.
    NarrowAccumulator {
        /// The step that sums.
        site: Step,
        /// The register.
        register: Accumulator,
    },
}

/// Whose scale is stale.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum ScaleSite {
    /// Every quantizer of a calibrated scale; those who read the codes keep the scale.
    Key(ScaleKey),
    /// One use by one step.
    Use(ScaleUse),
}

impl ScaleSite {
    /// The uses whose scale is multiplied.
    pub fn uses(self) -> impl Iterator<Item = ScaleUse> {
        ScaleUse::ALL.into_iter().filter(move |u| match self {
            ScaleSite::Key(key) => u.key() == key && u.produces(),
            ScaleSite::Use(only) => *u == only,
        })
    }

    /// The calibrated scale it belongs to.
    pub fn key(self) -> ScaleKey {
        match self {
            ScaleSite::Key(key) => key,
            ScaleSite::Use(scale_use) => scale_use.key(),
        }
    }
}

/// What is wrong with a weight of four bits.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum FourBitDefect {
    /// Scales times a factor; those of groups become binary16 again.
    StaleScale(WeightScale, f32),
    /// Scales as a packed file stores them, taken for those of the outputs in order.
    ScaleOrder(WeightScale),
    /// The codes of a packed word as they lie, not in the order that they are packed in.
    WordOrder,
}

impl FourBitDefect {
    /// Whether it is about scales of groups, which short rows do not have.
    pub fn is_of_groups(self) -> bool {
        match self {
            FourBitDefect::StaleScale(scale, _) | FourBitDefect::ScaleOrder(scale) => {
                scale == WeightScale::Group
            }
            FourBitDefect::WordOrder => false,
        }
    }
}

/// The scales that a weight of four bits has.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum WeightScale {
    /// One for each 128 codes of an output.
    Group,
    /// One for each output.
    Channel,
}

impl WeightScale {
    /// Both.
    pub const ALL: [WeightScale; 2] = [WeightScale::Group, WeightScale::Channel];

    /// The name on the command line.
    pub fn name(self) -> &'static str {
        match self {
            WeightScale::Group => "group",
            WeightScale::Channel => "channel",
        }
    }

    /// The name of a step's scales as a site of `stale-scale`.
    pub fn of(self, step: Step) -> &'static str {
        match (self, step) {
            (WeightScale::Group, Step::InProj) => "in_proj_group",
            (WeightScale::Group, Step::XProj) => "x_proj_group",
            (WeightScale::Group, _) => "out_proj_group",
            (WeightScale::Channel, Step::InProj) => "in_proj_channel",
            (WeightScale::Channel, Step::XProj) => "x_proj_channel",
            (WeightScale::Channel, _) => "out_proj_channel",
        }
    }
}

/// A parameter of the scan that is stored as codes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum ScanParameter {
    /// A = −exp(A_log).
    ALog,
    /// The skip connection.
    D,
    /// The bias of dt.
    DtBias,
}

impl ScanParameter {
    /// Every one.
    pub const ALL: [ScanParameter; 3] =
        [ScanParameter::ALog, ScanParameter::D, ScanParameter::DtBias];

    /// The name on the command line.
    pub fn name(self) -> &'static str {
        match self {
            ScanParameter::ALog => "A_log",
            ScanParameter::D => "D",
            ScanParameter::DtBias => "dt_bias",
        }
    }
}

/// What a quantizer does instead.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum RoundingRule {
    /// Ties away from zero.
    HalfAway,
    /// Ties to the even neighbour.
    HalfEven,
    /// Multiplies by the special-function unit's reciprocal of the scale.
    Reciprocal,
    /// Divides by the scale.
    Division,
}

impl RoundingRule {
    /// Every one.
    pub const ALL: [RoundingRule; 4] = [
        RoundingRule::HalfAway,
        RoundingRule::HalfEven,
        RoundingRule::Reciprocal,
        RoundingRule::Division,
    ];

    /// The name on the command line.
    pub fn name(self) -> &'static str {
        match self {
            RoundingRule::HalfAway => "half-away",
            RoundingRule::HalfEven => "half-even",
            RoundingRule::Reciprocal => "reciprocal",
            RoundingRule::Division => "division",
        }
    }

    /// Whether it is about the quotient rather than about ties.
    pub fn is_quotient(self) -> bool {
        match self {
            RoundingRule::HalfAway | RoundingRule::HalfEven => false,
            RoundingRule::Reciprocal | RoundingRule::Division => true,
        }
    }

    /// Makes it the rule of a quantizer.
    pub fn apply(self, quantizer: &mut QuantRule) {
        match self {
            RoundingRule::HalfAway => quantizer.rounding = Rounding::NearestTiesAway,
            RoundingRule::HalfEven => quantizer.rounding = Rounding::NearestTiesToEven,
            RoundingRule::Reciprocal => quantizer.quotient = Quotient::ApproxReciprocal,
            RoundingRule::Division => quantizer.quotient = Quotient::Divide,
        }
    }
}

/// A parameter of a fault model.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct Parameter {
    /// Its name.
    pub name: &'static str,
    /// What it can be, in words or as names.
    pub values: Values,
    /// What it is if not given; `None` where it must be.
    pub default: Option<&'static str>,
}

/// What a parameter can be.
#[derive(Clone, Copy, Debug)]
pub enum Values {
    /// A number of a block, or `all`.
    Layer,
    /// One of these names.
    Names(fn() -> Vec<&'static str>),
    /// A number, described.
    Number(&'static str),
}

impl fmt::Display for Values {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Values::Layer => f.write_str("a block, or all"),
            Values::Names(names) => f.write_str(&names().join(", ")),
            Values::Number(words) => f.write_str(words),
        }
    }
}

impl Serialize for Values {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

/// A row of the table of fault models.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct FaultModel {
    /// Its name in `--fault` and in findings.
    pub name: &'static str,
    /// What goes wrong.
    pub effect: &'static str,
    /// What can be chosen.
    pub parameters: &'static [Parameter],
    /// One to copy.
    pub example: &'static str,
}

const LAYER: Parameter = Parameter {
    name: "layer",
    values: Values::Layer,
    default: Some("all"),
};

const fn choice(
    name: &'static str,
    names: fn() -> Vec<&'static str>,
    default: &'static str,
) -> Parameter {
    Parameter {
        name,
        values: Values::Names(names),
        default: Some(default),
    }
}

fn buffers() -> Vec<&'static str> {
    TracePoint::buffers().map(TracePoint::name).collect()
}

fn quantizers() -> Vec<&'static str> {
    QuantizerRule::ALL.map(QuantizerRule::name).to_vec()
}

fn rounding_rules() -> Vec<&'static str> {
    RoundingRule::ALL.map(RoundingRule::name).to_vec()
}

fn sums() -> Vec<&'static str> {
    Step::SUMS.map(Step::name).to_vec()
}

fn four_bit_steps() -> Vec<&'static str> {
    Step::FOUR_BIT.map(Step::name).to_vec()
}

fn weight_scales() -> Vec<&'static str> {
    WeightScale::ALL.map(WeightScale::name).to_vec()
}

/// Every kind of scale of every weight that may have four bits.
pub(crate) fn weight_scale_sites() -> impl Iterator<Item = (Step, WeightScale)> {
    let of = |step| WeightScale::ALL.map(|scale| (step, scale));
    Step::FOUR_BIT.into_iter().flat_map(of)
}

fn scan_parameters() -> Vec<&'static str> {
    ScanParameter::ALL.map(ScanParameter::name).to_vec()
}

fn scale_sites() -> Vec<&'static str> {
    let keys = ScaleKey::ALL.into_iter().map(ScaleKey::name);
    keys.chain(ScaleUse::ALL.into_iter().map(ScaleUse::name))
        .collect()
}

fn acc_overflows() -> Vec<&'static str> {
    vec!["wrap", "saturate"]
}

/// Every fault model.
pub const FAULTS: &[FaultModel] = &[
    FaultModel {
        name: "conv-double-input-scale",
        effect: "the convolution multiplies by its input scale twice: SiLU(s_x²·s_w·acc + bias)",
        parameters: &[LAYER],
        example: "conv-double-input-scale@layer=7",
    },
    FaultModel {
        name: "conv-history-loss",
        effect: "the convolution takes zeros for its K−1 previous inputs at every 8th token, when the length is a multiple of 8",
        parameters: &[LAYER],
        example: "conv-history-loss@layer=2",
    },
    FaultModel {
        name: "hadamard-wrap",
        effect: "the Hadamard quantizer keeps the low 8 bits of what does not fit, instead of saturating",
        parameters: &[LAYER],
        example: "hadamard-wrap@layer=all",
    },
    FaultModel {
        name: "stale-scale",
        effect: "a scale is multiplied by a factor at one site, so that producer and consumers of a tensor disagree; a calibrated scale's name means its quantizers; `_group` and `_channel` are scales of weights of four bits",
        parameters: &[
            LAYER,
            Parameter {
                name: "site",
                values: Values::Names(scale_sites),
                default: None,
            },
            Parameter {
                name: "factor",
                values: Values::Number("a positive number"),
                default: None,
            },
        ],
        example: "stale-scale@layer=3,site=x_proj_input,factor=1.7",
    },
    FaultModel {
        name: "missing-scale",
        effect: "codes of a parameter of the scan are taken for real values, as a published mode does with A_log: A = −exp(q)",
        parameters: &[LAYER, choice("site", scan_parameters, "A_log")],
        example: "missing-scale@layer=2,site=A_log",
    },
    FaultModel {
        name: "permuted-scales",
        effect: "scales of a weight of four bits as a packed file stores them, taken for those of the outputs in order",
        parameters: &[
            LAYER,
            choice("site", four_bit_steps, "in_proj"),
            choice("scales", weight_scales, "group"),
        ],
        example: "permuted-scales@layer=2,site=out_proj,scales=channel",
    },
    FaultModel {
        name: "nibble-order",
        effect: "the eight codes of a packed word of a four-bit weight taken as they lie, not interleaved as they are packed",
        parameters: &[LAYER, choice("site", four_bit_steps, "in_proj")],
        example: "nibble-order@layer=2,site=in_proj",
    },
    FaultModel {
        name: "swapped-bc",
        effect: "the scan takes C for B and B for C",
        parameters: &[LAYER],
        example: "swapped-bc@layer=5",
    },
    FaultModel {
        name: "transposed",
        effect: "a tensor is written channel by channel and read row by row",
        parameters: &[LAYER, choice("site", buffers, "conv_out")],
        example: "transposed@layer=4,site=x_proj_out",
    },
    FaultModel {
        name: "rounding",
        effect: "a quantizer with another tie rule, or with a reciprocal where a division is meant (or the other way round)",
        parameters: &[
            LAYER,
            choice("site", quantizers, "conv_out"),
            choice("rule", rounding_rules, "reciprocal"),
        ],
        example: "rounding@layer=6,site=norm_out,rule=half-away",
    },
    FaultModel {
        name: "narrow-accumulator",
        effect: "sums of products in a register of few bits, which wraps or saturates after every addition",
        parameters: &[
            LAYER,
            choice("site", sums, "in_proj"),
            Parameter {
                name: "bits",
                values: Values::Number("8 to 32"),
                default: Some("16"),
            },
            Parameter {
                name: "overflow",
                values: Values::Names(acc_overflows),
                default: Some("wrap"),
            },
        ],
        example: "narrow-accumulator@layer=1,site=out_proj,bits=18,overflow=saturate",
    },
];

impl Defect {
    /// The name of its model.
    pub fn name(self) -> &'static str {
        match self {
            Defect::ConvDoubleInputScale => "conv-double-input-scale",
            Defect::ConvHistoryLoss => "conv-history-loss",
            Defect::HadamardWrap => "hadamard-wrap",
            Defect::StaleScale { .. } => "stale-scale",
            Defect::FourBit { what, .. } => match what {
                FourBitDefect::StaleScale(..) => "stale-scale",
                FourBitDefect::ScaleOrder(_) => "permuted-scales",
                FourBitDefect::WordOrder => "nibble-order",
            },
            Defect::MissingScale { .. } => "missing-scale",
            Defect::SwappedBc => "swapped-bc",
            Defect::Transposed { .. } => "transposed",
            Defect::Rounding { .. } => "rounding",
            Defect::NarrowAccumulator { .. } => "narrow-accumulator",
        }
    }

    /// Where in a block it is, as findings say: the calibrated scale of a stale one, the parameter
    /// `site` of the others, or the step.
    pub fn site(self) -> &'static str {
        match self {
            Defect::ConvDoubleInputScale | Defect::ConvHistoryLoss => "conv",
            Defect::HadamardWrap => "had_out",
            Defect::StaleScale { site, .. } => site.key().name(),
            Defect::FourBit { site, what } => match what {
                FourBitDefect::StaleScale(scale, _) => scale.of(site),
                FourBitDefect::ScaleOrder(_) | FourBitDefect::WordOrder => site.name(),
            },
            Defect::MissingScale { site } => site.name(),
            Defect::SwappedBc => "x_proj_out",
            Defect::Transposed { site } => site.name(),
            Defect::Rounding { site, .. } => site.name(),
            Defect::NarrowAccumulator { site, .. } => site.name(),
        }
    }
}

impl Defect {
    /// The first tensors of a block that it can alter: what is made before them stays as it is.
    pub fn alters(self, block: &Block) -> Vec<TracePoint> {
        match self {
            Defect::ConvDoubleInputScale | Defect::ConvHistoryLoss => {
                block.made_by_rule(Step::Conv.rule())
            }
            Defect::HadamardWrap => block.quantized_by(QuantizerRule::HadOut),
            Defect::MissingScale { .. } => {
                let rows = block.rows().iter();
                let reading = rows.filter(|row| row.weights.contains(&Weight::Scan));
                reading.map(|row| row.point).collect()
            }
            Defect::SwappedBc => {
                let swapped = |row: &&Row| {
                    let mut reads = row.reads.iter();
                    reads.any(|read| matches!(read.columns, Columns::B | Columns::C))
                };
                let rows = block.rows().iter().filter(swapped);
                rows.map(|row| row.point).collect()
            }
            Defect::StaleScale { site, .. } => {
                let uses = site.uses();
                uses.flat_map(|scale| block.altered_by_scale(scale))
                    .collect()
            }
            Defect::FourBit { site, .. } => {
                let rows = block.of_step(site);
                let multiplied = rows.filter(|row| !row.weights.is_empty());
                multiplied.map(|row| row.point).collect()
            }
            Defect::Transposed { site } => site.names().to_vec(),
            Defect::Rounding { site, .. } => block.quantized_by(site),
            Defect::NarrowAccumulator { site, .. } => block.made_by_rule(site.rule()),
        }
    }
}

impl fmt::Display for Fault {
    /// As `--fault` takes it.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}@layer=", self.defect.name())?;
        match self.layer {
            Some(layer) => write!(f, "{layer}")?,
            None => f.write_str("all")?,
        }
        match self.defect {
            Defect::ConvDoubleInputScale
            | Defect::ConvHistoryLoss
            | Defect::HadamardWrap
            | Defect::SwappedBc => Ok(()),
            Defect::StaleScale { site, factor } => {
                let name = match site {
                    ScaleSite::Key(key) => key.name(),
                    ScaleSite::Use(scale_use) => scale_use.name(),
                };
                write!(f, ",site={name},factor={factor}")
            }
            Defect::FourBit { site, what } => match what {
                FourBitDefect::StaleScale(scale, factor) => {
                    write!(f, ",site={},factor={factor}", scale.of(site))
                }
                FourBitDefect::ScaleOrder(scale) => {
                    write!(f, ",site={},scales={}", site.name(), scale.name())
                }
                FourBitDefect::WordOrder => write!(f, ",site={}", site.name()),
            },
            Defect::Transposed { site } => write!(f, ",site={}", site.name()),
            Defect::MissingScale { site } => write!(f, ",site={}", site.name()),
            Defect::Rounding { site, rule } => {
                write!(f, ",site={},rule={}", site.name(), rule.name())
            }
            Defect::NarrowAccumulator { site, register } => {
                let overflow = match register.overflow() {
                    AccOverflow::Wrap => "wrap",
                    AccOverflow::Saturate => "saturate",
                    AccOverflow::Trap => "trap",
                };
                let (site, bits) = (site.name(), register.bits());
                write!(f, ",site={site},bits={bits},overflow={overflow}")
            }
        }
    }
}

impl Serialize for Fault {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}
