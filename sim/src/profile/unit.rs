//! Rules of units as a chip has them: the scan unit, the integer Hadamard transform, and how weights
//! and scales are stored. A profile file sets them (`docs/asic.md`); no kernel profile does.

use crate::arith::accumulate::Accumulator;
use crate::arith::fixed::Scaling;
use crate::arith::function::FunctionRule;
use crate::arith::round::Rounding;
use serde::{Deserialize, Serialize};

/// The association of a scan unit's recurrence over time. Blocks start at the first token of a call.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum ScanUnitOrder {
    /// `x ← a·x + b`, token after token.
    Sequential,
    /// Blocks of `width` tokens (a power of two): an inclusive Kogge-Stone scan of the maps
    /// (offsets 1, 2, 4, …), each then applied to the state before the block.
    KoggeStone {
        /// Tokens of a block.
        width: u16,
    },
    /// Blocks of `length` tokens: the maps are folded one after another, each fold is applied to the
    /// state before the block.
    Chunked {
        /// Tokens of a block.
        length: u16,
    },
}

/// The real value of one step of a fixed-point state.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum StateScale {
    /// The calibrated range: `s · 127/(2^(bits−1) − 1) · 2^headroom`.
    Calibrated,
    /// The smallest power of two that is no less.
    PowerOfTwo,
}

/// How a scan unit holds its state.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum StateFormat {
    /// FP32; products, sums and the other values of the scan are f32 too.
    F32,
    /// Binary16: computed in f32, rounded (nearest even) when stored.
    F16,
    /// Fixed point; the other values of the scan are fixed-point too.
    Fixed {
        /// Width, and what happens beyond it.
        register: Accumulator,
        /// The value of one step.
        scale: StateScale,
        /// Bits of range above the calibrated one.
        headroom: u8,
        /// Bits below the step kept between requantizations (0 when every token requantizes).
        guard: u8,
    },
}

/// A scan unit.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "kebab-case")]
pub struct ScanUnit {
    /// δ.
    pub softplus: FunctionRule,
    /// The decay.
    pub exp: FunctionRule,
    /// The gate.
    pub silu: FunctionRule,
    /// Association over time.
    pub order: ScanUnitOrder,
    /// The state.
    pub state: StateFormat,
    /// Tokens between roundings of a fixed-point state to its step; 1 to 4096.
    pub requantize_every: u16,
    /// Rounding of the fixed-point decay product and state.
    pub rounding: Rounding,
    /// What brings `B·δ·u` to the state's step.
    pub scaling: Scaling,
    /// The sum over states, `Σ C·x + D·u`, of a fixed-point scan.
    pub accumulator: Accumulator,
}

impl ScanUnit {
    /// The f32 scan of `exact`, which needs no unit.
    pub const PLAIN: ScanUnit = ScanUnit {
        softplus: FunctionRule::Exact,
        exp: FunctionRule::Exact,
        silu: FunctionRule::Exact,
        order: ScanUnitOrder::Sequential,
        state: StateFormat::F32,
        requantize_every: 1,
        rounding: Rounding::NearestTiesToEven,
        scaling: Scaling::F32,
        accumulator: Accumulator::I48,
    };
}

/// The Hadamard transform before the quantizer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum HadamardForm {
    /// f32 butterflies, one f32 factor.
    F32,
    /// Integer butterflies, one [`Scaling`] factor.
    Integer {
        /// Width of the input, 8 to 24, saturating.
        bits: u8,
        /// The input's step is the output's scale times 2^-fraction.
        fraction: u8,
        /// Bits the values may grow by; a stage beyond them halves its results (ties up).
        growth: u8,
        /// From the last stage to the output's grid.
        scaling: Scaling,
    },
}

/// Values that share one scale.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Granularity {
    /// The whole tensor.
    Tensor,
    /// An output channel.
    Channel,
    /// 128 consecutive inputs of an output channel: its scale times a whole number 1 to 63.
    Group,
}

/// Values of in_proj's and out_proj's inputs that share one scale.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ActivationGranularity {
    /// The whole tensor: the static, calibrated scale.
    #[default]
    Tensor,
    /// A token: the scale that puts its largest magnitude on code 127, found at run time.
    Token,
}

/// Weights of the convolution that share one scale.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ConvGranularity {
    /// The whole tensor.
    #[default]
    Tensor,
    /// A channel.
    Channel,
}

/// Whether a rule is the one that profiles had before it could be another: such a rule is not part of
/// a hash.
fn is_default<T: Default + PartialEq>(value: &T) -> bool {
    *value == T::default()
}

/// Where scales may lie.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ScaleGrid {
    /// As calibrated.
    Calibrated,
    /// At the next power of two.
    PowerOfTwo,
}

/// How weights are stored, and where the scales of activations come from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "kebab-case")]
pub struct Storage {
    /// Bits of a linear weight, 8 or 4.
    pub weight_bits: u8,
    /// Linear weights that share a scale.
    pub weight_granularity: Granularity,
    /// Where weight scales lie.
    pub weight_scales: ScaleGrid,
    /// Where activation scales lie.
    pub activation_scales: ScaleGrid,
    /// Weights of the convolution that share a scale.
    #[serde(skip_serializing_if = "is_default")]
    pub conv_granularity: ConvGranularity,
    /// Values of in_proj's and out_proj's inputs that share a scale.
    #[serde(skip_serializing_if = "is_default")]
    pub activation_granularity: ActivationGranularity,
}

impl Storage {
    /// The model's own INT8 weights and scales.
    pub const MODEL: Storage = Storage {
        weight_bits: 8,
        weight_granularity: Granularity::Tensor,
        weight_scales: ScaleGrid::Calibrated,
        activation_scales: ScaleGrid::Calibrated,
        conv_granularity: ConvGranularity::Tensor,
        activation_granularity: ActivationGranularity::Tensor,
    };

    /// Whether the linear weights are quantized anew, from the float model.
    pub fn requantizes_linears(&self) -> bool {
        let own = |s: &Storage| (s.weight_bits, s.weight_granularity, s.weight_scales);
        own(self) != own(&Storage::MODEL)
    }

    /// Whether the convolution's weights are.
    pub fn requantizes_conv(&self) -> bool {
        let own = |s: &Storage| (s.conv_granularity, s.weight_scales);
        own(self) != own(&Storage::MODEL)
    }
}

/// Weights of a group with a scale of its own.
pub use crate::arith::int4::GROUP;
