//! The rules of every step, as data.

use super::unit::{HadamardForm, ScanUnit};
use crate::arith::accumulate::Accumulator;
use crate::arith::fixed::Scaling;
use crate::arith::function::FunctionRule;
use crate::arith::int4::Dequantize;
use crate::arith::real::RealRules;
use crate::arith::requant::{QuantRule, ScaleOrder};
use crate::arith::round::Rounding;
use crate::arith::saturate::Overflow;
use crate::dataflow::Step;
use serde::Serialize;
use std::borrow::Cow;

/// Rules of a linear step.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub struct LinearRule {
    /// The register that sums the products of codes.
    pub accumulator: Accumulator,
    /// By what the sum is brought to the output's grid.
    pub scaling: Scaling,
    /// The order in which the sum meets f32 factors.
    pub order: ScaleOrder,
    /// The scaled sum to INT8; it is in units of the output grid already, so the quotient does not
    /// apply.
    pub output: QuantRule,
}

impl LinearRule {
    /// Exact sums, `rne8`.
    pub(super) const fn exact(order: ScaleOrder) -> Self {
        Self {
            accumulator: Accumulator::I32,
            scaling: Scaling::F32,
            order,
            output: QuantRule::NEAREST_EVEN,
        }
    }
}

/// Rules of the four linear steps.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[allow(missing_docs)] // each is the step of that name
pub struct LinearRules {
    pub in_proj: LinearRule,
    pub x_proj: LinearRule,
    pub dt_proj: LinearRule,
    pub out_proj: LinearRule,
}

impl LinearRules {
    /// The rule of a step; `None` if it is no linear one.
    pub fn get(&self, step: Step) -> Option<&LinearRule> {
        let at = Step::LINEAR.into_iter().position(|linear| linear == step)?;
        Some(self.each()[at])
    }

    /// The four, in the order of the data.
    pub fn each(&self) -> [&LinearRule; 4] {
        [&self.in_proj, &self.x_proj, &self.dt_proj, &self.out_proj]
    }

    /// The four, to be changed.
    pub fn each_mut(&mut self) -> [&mut LinearRule; 4] {
        [
            &mut self.in_proj,
            &mut self.x_proj,
            &mut self.dt_proj,
            &mut self.out_proj,
        ]
    }
}

/// Rules of the Hadamard transform and its quantizer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub struct HadamardRules {
    /// The transform.
    pub form: HadamardForm,
    /// `h ⊗ factor` to an integer.
    pub rounding: Rounding,
    /// That integer to INT8.
    pub overflow: Overflow,
}

impl HadamardRules {
    /// The rule of its quantizer, for values in units of the output's grid.
    pub fn quantizer(&self) -> QuantRule {
        QuantRule {
            rounding: self.rounding,
            overflow: self.overflow,
            ..QuantRule::NEAREST_EVEN
        }
    }
}

/// How conv taps meet the scales.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum ConvForm {
    /// Exact integer sum over the taps, then `fma(s_w ⊗ s_x, f32(acc), s_b ⊗ bias)`.
    IntegerSum,
    /// From `s_b ⊗ bias`, `v ← fma((s_w ⊗ s_x) ⊗ w_k, x_k, v)` tap by tap.
    TapChain,
}

/// The formula of the selective scan.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum ScanFormula {
    /// The CUDA prefill kernel's: fused δ, `(B)·(δ ⊗ u)`, output folded by fma from the skip term.
    Fused,
    /// PyTorch's: every operation rounded on its own, skip term added last.
    Separate,
    /// The CUDA decode kernel's: `(B ⊗ Δ) ⊗ x`, sum over states in groups of four.
    Grouped,
}

/// The association of the recurrence over time.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum ScanOrder {
    /// `x ← fma(a, x, b)` (or its separate form), token after token.
    Sequential,
    /// The block scan: per-thread folds, a Kogge-Stone warp scan, warp prefixes, replay.
    WarpBlock,
}

/// The order of the sum over states, `Σ_n x_n ⊗ C_n`, of the formula that rounds products before it adds them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum SumOrder {
    /// n = 0, 1, ….
    #[default]
    Ascending,
    /// `v ← v[0..h] ⊕ v[h..2h]` with h = N/2, N/4, …, 1: PyTorch on a GPU, measured for N of 4 to 64. An N that is
    /// no power of two is taken as padded to one; from N = 128 on PyTorch's order is another, not known.
    Halves,
    /// Eight running sums over n mod 8, then those in order: PyTorch on a CPU, measured for N = 16.
    EightLanes,
}

impl SumOrder {
    /// Every order.
    pub const ALL: [SumOrder; 3] = [SumOrder::Ascending, SumOrder::Halves, SumOrder::EightLanes];

    fn is_ascending(&self) -> bool {
        *self == SumOrder::Ascending
    }
}

/// Rules of a scan.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub struct ScanRules {
    /// Operations and functions.
    pub real: RealRules,
    /// Formula.
    pub formula: ScanFormula,
    /// The sum over states, where the formula is [`ScanFormula::Separate`].
    #[serde(skip_serializing_if = "SumOrder::is_ascending")]
    pub sum: SumOrder,
    /// Association over time.
    pub order: ScanOrder,
    /// Real state to INT8.
    pub state: QuantRule,
    /// The unit that runs the scan in place of all of the above but `state`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub unit: Option<ScanUnit>,
}

/// How often a convolution multiplies by its input scale.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum InputScale {
    /// `s_w ⊗ s_x`, as it should be.
    Once,
    /// `s_w ⊗ (s_x ⊗ s_x)`: a published FP32 kernel.
    Twice,
}

/// What a convolution knows of the tokens before the ones it computes together.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum TapHistory {
    /// Their last K − 1.
    Kept,
    /// Nothing, at every 8th token of a sequence whose length is a multiple of 8: a published FP32
    /// kernel.
    LostEvery8,
}

/// How SiLU is made of the sigmoid.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum SiluForm {
    /// `v / (1 ⊕ exp(−v))`.
    #[default]
    Quotient,
    /// `v ⊗ (1 / (1 ⊕ exp(−v)))`: PyTorch code that writes `x * torch.sigmoid(x)`.
    Product,
}

impl SiluForm {
    fn is_quotient(&self) -> bool {
        *self == SiluForm::Quotient
    }
}

/// Rules of a convolution with SiLU.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub struct ConvRules {
    /// Operations and functions.
    pub real: RealRules,
    /// The register of an integer sum over the taps.
    pub accumulator: Accumulator,
    /// By what that sum is brought to SiLU's input, and a unit's SiLU to the output's grid.
    pub scaling: Scaling,
    /// SiLU of an integer sum.
    pub silu: FunctionRule,
    /// SiLU of a real sum.
    #[serde(skip_serializing_if = "SiluForm::is_quotient")]
    pub silu_form: SiluForm,
    /// How taps meet scales.
    pub form: ConvForm,
    /// How often the input scale is applied.
    pub input_scale: InputScale,
    /// Whether the taps reach back.
    pub history: TapHistory,
    /// Real output to INT8.
    pub output: QuantRule,
}

/// The rules of every step that has more than one, for prefill or for decode.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub struct StepRules {
    /// Output of RMSNorm to INT8.
    pub norm_out: QuantRule,
    /// The linear steps.
    pub linear: LinearRules,
    /// A real conv input to INT8, with a static scale.
    pub conv_in: QuantRule,
    /// Convolution.
    pub conv: ConvRules,
    /// Selective scan.
    pub scan: ScanRules,
    /// The Hadamard quantizer.
    pub hadamard: HadamardRules,
    /// Quantization of an FP32 tensor between steps.
    pub requantize: QuantRule,
}

impl StepRules {
    /// The register that sums the products of codes in a step; `None` if it sums none.
    pub fn accumulator_mut(&mut self, step: Step) -> Option<&mut Accumulator> {
        if step == Step::Conv {
            return Some(&mut self.conv.accumulator);
        }
        let at = Step::LINEAR.into_iter().position(|linear| linear == step)?;
        let [a, b, c, d] = self.linear.each_mut();
        Some(&mut [a, b, c, d].into_iter().nth(at)?.accumulator)
    }
}

/// How the norm after the last block finds 1/√(mean r² + ε).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum FinalNorm {
    /// In f64, rounded once to f32, as the norms of the blocks.
    RoundedOnce,
    /// PyTorch's `rsqrt(r.pow(2).mean(-1) + ε)` on the device: its order of summation in f32, the
    /// special-function unit's root.
    TorchDevice,
}

/// A full rule set for the steps.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub struct Arithmetic {
    /// The name it is called by.
    pub name: Cow<'static, str>,
    /// Prefill: a whole sequence at once.
    pub prefill: StepRules,
    /// Decode: one token, the state carried.
    pub decode: StepRules,
    /// The norm after the last block, in both.
    pub final_norm: FinalNorm,
    /// How four-bit weights become INT8, once.
    pub dequantize: Dequantize,
}

/// A quantizer that has a rule of its own in [`StepRules`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum QuantizerRule {
    /// RMSNorm's.
    NormOut,
    /// in_proj's requantizer.
    InProjOut,
    /// That of a real conv input with a static scale.
    ConvIn,
    /// The convolution's.
    ConvOut,
    /// Those of FP32 tensors between steps: x_proj's input and u.
    Requantize,
    /// x_proj's requantizer.
    XProjOut,
    /// dt_proj's requantizer.
    DtProjOut,
    /// The state's.
    SsmState,
    /// The Hadamard quantizer.
    HadOut,
}

impl QuantizerRule {
    /// Every one, in the order of the data.
    pub const ALL: [QuantizerRule; 9] = [
        QuantizerRule::NormOut,
        QuantizerRule::InProjOut,
        QuantizerRule::ConvIn,
        QuantizerRule::ConvOut,
        QuantizerRule::Requantize,
        QuantizerRule::XProjOut,
        QuantizerRule::DtProjOut,
        QuantizerRule::SsmState,
        QuantizerRule::HadOut,
    ];

    /// The name on the command line.
    pub fn name(self) -> &'static str {
        match self {
            QuantizerRule::NormOut => "norm_out",
            QuantizerRule::InProjOut => "in_proj_out",
            QuantizerRule::ConvIn => "conv_in",
            QuantizerRule::ConvOut => "conv_out",
            QuantizerRule::Requantize => "requantize",
            QuantizerRule::XProjOut => "x_proj_out",
            QuantizerRule::DtProjOut => "dt_proj_out",
            QuantizerRule::SsmState => "ssm_state",
            QuantizerRule::HadOut => "had_out",
        }
    }

    /// The part of [`StepRules`] that it belongs to, as profile files write it.
    pub fn path(self) -> &'static str {
        match self {
            QuantizerRule::NormOut => "norm_out",
            QuantizerRule::InProjOut => "linear.in_proj",
            QuantizerRule::ConvIn => "conv_in",
            QuantizerRule::ConvOut => "conv",
            QuantizerRule::Requantize => "requantize",
            QuantizerRule::XProjOut => "linear.x_proj",
            QuantizerRule::DtProjOut => "linear.dt_proj",
            QuantizerRule::SsmState => "scan",
            QuantizerRule::HadOut => "hadamard",
        }
    }

    /// Whether it brings values to units of its scale itself, so that its quotient has a rule. (A sum
    /// of products is in units of its grid when it gets there.)
    pub fn has_quotient(self) -> bool {
        match self {
            QuantizerRule::NormOut
            | QuantizerRule::ConvIn
            | QuantizerRule::ConvOut
            | QuantizerRule::Requantize
            | QuantizerRule::SsmState => true,
            QuantizerRule::InProjOut
            | QuantizerRule::XProjOut
            | QuantizerRule::DtProjOut
            | QuantizerRule::HadOut => false,
        }
    }

    /// Its rule.
    pub fn of(self, rules: &StepRules) -> QuantRule {
        let (mut rules, mut own) = (*rules, QuantRule::NEAREST_EVEN);
        self.edit(&mut rules, |rule| own = *rule);
        own
    }

    /// Changes its rule.
    pub fn edit(self, rules: &mut StepRules, edit: impl FnOnce(&mut QuantRule)) {
        let linear = &mut rules.linear;
        let rule = match self {
            QuantizerRule::NormOut => &mut rules.norm_out,
            QuantizerRule::InProjOut => &mut linear.in_proj.output,
            QuantizerRule::ConvIn => &mut rules.conv_in,
            QuantizerRule::ConvOut => &mut rules.conv.output,
            QuantizerRule::Requantize => &mut rules.requantize,
            QuantizerRule::XProjOut => &mut linear.x_proj.output,
            QuantizerRule::DtProjOut => &mut linear.dt_proj.output,
            QuantizerRule::SsmState => &mut rules.scan.state,
            QuantizerRule::HadOut => {
                let mut rule = rules.hadamard.quantizer();
                edit(&mut rule);
                (rules.hadamard.rounding, rules.hadamard.overflow) = (rule.rounding, rule.overflow);
                return;
            }
        };
        edit(rule);
    }
}
