//! Arithmetics and profiles, as data. An [`Arithmetic`] is a full rule set for the steps; a
//! [`Profile`] maps the implementations a mode names to arithmetics. Steps read the fields.
//!
//! Source: datapath specification, sections 4 to 7; `docs/arithmetic.md` shows the tables.

pub mod choices;
pub mod cost;
mod file;
mod tables;
pub mod unit;

use crate::arith::accumulate::Accumulator;
use crate::arith::fixed::Scaling;
use crate::arith::function::FunctionRule;
use crate::arith::real::RealRules;
use crate::arith::requant::{QuantRule, ScaleOrder};
use crate::arith::round::Rounding;
use crate::arith::saturate::Overflow;
use crate::error::{Result, SimError};
use crate::mode::{Implementation, ModeSpec};
use serde::Serialize;
use sha2::{Digest, Sha256};
use std::borrow::Cow;
use std::path::Path;
use unit::{HadamardForm, ScanUnit, Storage};

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
    const fn exact(order: ScaleOrder) -> Self {
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

/// A linear step of a block.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "snake_case")]
#[allow(missing_docs)] // each is the step of that name
pub enum LinearStep {
    InProj,
    XProj,
    DtProj,
    OutProj,
}

impl LinearStep {
    /// The step of a name: `in_proj`, ….
    pub fn from_name(name: &str) -> Option<Self> {
        match name {
            "in_proj" => Some(Self::InProj),
            "x_proj" => Some(Self::XProj),
            "dt_proj" => Some(Self::DtProj),
            "out_proj" => Some(Self::OutProj),
            _ => None,
        }
    }
}

impl LinearRules {
    /// The rule of a step.
    pub fn get(&self, step: LinearStep) -> &LinearRule {
        match step {
            LinearStep::InProj => &self.in_proj,
            LinearStep::XProj => &self.x_proj,
            LinearStep::DtProj => &self.dt_proj,
            LinearStep::OutProj => &self.out_proj,
        }
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

/// Rules of a scan.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub struct ScanRules {
    /// Operations and functions.
    pub real: RealRules,
    /// Formula.
    pub formula: ScanFormula,
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
}

/// The matrix kernels.
const MATRIX_LINEARS: LinearRules = LinearRules {
    in_proj: LinearRule::exact(ScaleOrder::ChannelMajor),
    x_proj: LinearRule::exact(ScaleOrder::RowMajor),
    dt_proj: LinearRule::exact(ScaleOrder::ChannelMajor),
    out_proj: LinearRule::exact(ScaleOrder::RowMajor),
};

/// The one-row kernels.
const ONE_ROW_LINEARS: LinearRules = LinearRules {
    in_proj: LinearRule::exact(ScaleOrder::OneRow),
    x_proj: LinearRule::exact(ScaleOrder::OneRow),
    dt_proj: LinearRule::exact(ScaleOrder::OneRow),
    out_proj: LinearRule::exact(ScaleOrder::OneRow),
};

/// `rha`, saturated.
const HADAMARD: HadamardRules = HadamardRules {
    form: HadamardForm::F32,
    rounding: Rounding::NearestTiesAway,
    overflow: Overflow::Saturate,
};

/// `rha`, the low 8 bits.
const HADAMARD_WRAPS: HadamardRules = HadamardRules {
    overflow: Overflow::Wrap,
    ..HADAMARD
};

const EXACT_RULES: StepRules = StepRules {
    norm_out: QuantRule::NEAREST_EVEN,
    linear: MATRIX_LINEARS,
    conv_in: QuantRule::NEAREST_EVEN,
    conv: ConvRules {
        real: RealRules::CorrectlyRounded,
        accumulator: Accumulator::I32,
        scaling: Scaling::F32,
        silu: FunctionRule::Exact,
        form: ConvForm::IntegerSum,
        input_scale: InputScale::Once,
        history: TapHistory::Kept,
        output: QuantRule::HALF_AWAY,
    },
    scan: ScanRules {
        real: RealRules::CorrectlyRounded,
        formula: ScanFormula::Fused,
        order: ScanOrder::Sequential,
        state: QuantRule::HALF_AWAY,
        unit: None,
    },
    hadamard: HADAMARD,
    requantize: QuantRule::NEAREST_EVEN,
};

/// Every primitive correctly rounded, IEEE division, sequential scan, saturation everywhere.
/// Decode uses the formulas of prefill.
pub const EXACT: Arithmetic = Arithmetic {
    name: Cow::Borrowed("exact"),
    prefill: EXACT_RULES,
    decode: EXACT_RULES,
    final_norm: FinalNorm::RoundedOnce,
};

const TORCH_RULES: StepRules = StepRules {
    conv: ConvRules {
        output: QuantRule::NEAREST_EVEN,
        ..EXACT_RULES.conv
    },
    scan: ScanRules {
        formula: ScanFormula::Separate,
        state: QuantRule::NEAREST_EVEN,
        ..EXACT_RULES.scan
    },
    ..EXACT_RULES
};

/// What PyTorch computes, with the two choices it leaves to the device fixed: sums over n = 0, 1, …
/// and correctly rounded exp and log1p. Linears and Hadamard are never PyTorch steps; their rules
/// here are `exact`'s.
pub const TORCH: Arithmetic = Arithmetic {
    name: Cow::Borrowed("torch"),
    prefill: TORCH_RULES,
    decode: TORCH_RULES,
    final_norm: FinalNorm::RoundedOnce,
};

/// The deployed CUDA kernels, bit for bit.
pub const CUDA_FAST: Arithmetic = Arithmetic {
    name: Cow::Borrowed("cuda-fast"),
    prefill: StepRules {
        norm_out: QuantRule::NEAREST_EVEN,
        linear: MATRIX_LINEARS,
        conv_in: QuantRule::NEAREST_EVEN,
        conv: ConvRules {
            real: RealRules::SpecialFunctionUnit,
            accumulator: Accumulator::I32,
            scaling: Scaling::F32,
            silu: FunctionRule::Exact,
            form: ConvForm::IntegerSum,
            input_scale: InputScale::Once,
            history: TapHistory::Kept,
            output: QuantRule::HALF_AWAY_RECIPROCAL,
        },
        scan: ScanRules {
            real: RealRules::SpecialFunctionUnit,
            formula: ScanFormula::Fused,
            order: ScanOrder::WarpBlock,
            state: QuantRule::HALF_AWAY_RECIPROCAL,
            unit: None,
        },
        hadamard: HADAMARD_WRAPS,
        requantize: QuantRule::NEAREST_EVEN,
    },
    decode: StepRules {
        norm_out: QuantRule::NEAREST_EVEN,
        linear: ONE_ROW_LINEARS,
        conv_in: QuantRule::NEAREST_EVEN,
        conv: ConvRules {
            real: RealRules::SpecialFunctionUnit,
            accumulator: Accumulator::I32,
            scaling: Scaling::F32,
            silu: FunctionRule::Exact,
            form: ConvForm::TapChain,
            input_scale: InputScale::Once,
            history: TapHistory::Kept,
            output: QuantRule::HALF_AWAY_RECIPROCAL,
        },
        scan: ScanRules {
            real: RealRules::SpecialFunctionUnitSubnormal,
            formula: ScanFormula::Grouped,
            order: ScanOrder::Sequential,
            state: QuantRule::SCALED_QUOTIENT,
            unit: None,
        },
        hadamard: HADAMARD_WRAPS,
        requantize: QuantRule::NEAREST_EVEN,
    },
    final_norm: FinalNorm::TorchDevice,
};

/// Every arithmetic.
pub const ARITHMETICS: &[Arithmetic] = &[EXACT, TORCH, CUDA_FAST];

/// Maps the implementations a mode names to arithmetics.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub struct Profile {
    /// The name it is called by.
    pub name: Cow<'static, str>,
    /// One line for tables and help.
    pub summary: Cow<'static, str>,
    /// Arithmetic of `cuda` steps.
    pub cuda: Arithmetic,
    /// Arithmetic of `torch` steps.
    pub torch: Arithmetic,
    /// How weights and scales are stored.
    pub storage: Storage,
}

/// Profiles of chips: their names and their files.
pub const CHIP_PROFILES: &[(&str, &str)] = &[
    ("asic-int8", include_str!("../profiles/asic-int8.toml")),
    (
        "tflite-single",
        include_str!("../profiles/tflite-single.toml"),
    ),
    (
        "tflite-double",
        include_str!("../profiles/tflite-double.toml"),
    ),
    ("pow2", include_str!("../profiles/pow2.toml")),
];

/// Every profile of kernels.
pub const PROFILES: &[Profile] = &[
    Profile {
        name: Cow::Borrowed("exact"),
        summary: Cow::Borrowed(
            "every primitive correctly rounded: any correct implementation gives these bits",
        ),
        cuda: EXACT,
        torch: EXACT,
        storage: Storage::MODEL,
    },
    Profile {
        name: Cow::Borrowed("torch"),
        summary: Cow::Borrowed(
            "correctly rounded kernels around PyTorch's scan and requantizations",
        ),
        cuda: EXACT,
        torch: TORCH,
        storage: Storage::MODEL,
    },
    Profile {
        name: Cow::Borrowed("deployed"),
        summary: Cow::Borrowed("the deployed CUDA kernels and PyTorch loops, bit for bit"),
        cuda: CUDA_FAST,
        torch: TORCH,
        storage: Storage::MODEL,
    },
];

impl Profile {
    /// The profile of a name, or of a profile file (a name that ends in `.toml`).
    pub fn get(name: &str) -> Result<Profile> {
        if name.ends_with(".toml") {
            let path = Path::new(name);
            let text = std::fs::read_to_string(path).map_err(|e| SimError::io(path, e))?;
            return Profile::from_toml(name, &text).map_err(|e| e.in_file(path));
        }
        if let Some(profile) = PROFILES.iter().find(|profile| profile.name == name) {
            return Ok(profile.clone());
        }
        if let Some((_, text)) = CHIP_PROFILES.iter().find(|(known, _)| *known == name) {
            return Profile::from_toml(name, text);
        }
        let expected = format!("one of {}, or a .toml file", Profile::names().join(", "));
        Err(SimError::value("profile", expected, name))
    }

    /// The text of a profile file: the file's own, a built-in chip's, or one that only extends a
    /// built-in profile of kernels.
    pub fn text(name: &str) -> Result<String> {
        if name.ends_with(".toml") {
            return std::fs::read_to_string(name).map_err(|e| SimError::io(name, e));
        }
        if let Some((_, text)) = CHIP_PROFILES.iter().find(|(known, _)| *known == name) {
            return Ok((*text).to_owned());
        }
        let known = Profile::get(name)?;
        Ok(format!(
            "version = {}\nextends = \"{}\"\n",
            file::VERSION,
            known.name
        ))
    }

    /// The names of the built-in profiles.
    pub fn names() -> Vec<&'static str> {
        let kernels = PROFILES.iter().map(|profile| match &profile.name {
            Cow::Borrowed(name) => *name,
            Cow::Owned(_) => unreachable!("built-in profiles are constants"),
        });
        kernels
            .chain(CHIP_PROFILES.iter().map(|(name, _)| *name))
            .collect()
    }

    /// sha256 of the rules, without names: JSON of `cuda`, `torch` and `storage`, in the order of the
    /// fields. Two profiles with one hash are one computation.
    pub fn hash(&self) -> String {
        let mut rules = serde_json::json!({
            "cuda": self.cuda, "torch": self.torch, "storage": self.storage,
        });
        for arithmetic in ["cuda", "torch"] {
            let fields = rules[arithmetic].as_object_mut().expect("a struct");
            fields.shift_remove("name");
        }
        let digest = Sha256::digest(rules.to_string());
        digest.iter().map(|byte| format!("{byte:02x}")).collect()
    }

    /// The name; of a file, with the start of the hash, since a file can change under its name.
    pub fn label(&self) -> String {
        match self.name.ends_with(".toml") {
            true => format!("{} ({})", self.name, &self.hash()[..12]),
            false => self.name.to_string(),
        }
    }

    /// The profile for blocks whose weights are not INT8: what no chip computes keeps the rules of
    /// the kernels.
    pub(crate) fn without_units(&self) -> Profile {
        match self.has_units() {
            false => self.clone(),
            true => Profile {
                cuda: EXACT,
                torch: EXACT,
                storage: Storage::MODEL,
                ..self.clone()
            },
        }
    }

    /// Whether any rule is one that only the `…_unit` steps follow, so that no kernel runs it.
    pub fn has_units(&self) -> bool {
        let of = |rules: &StepRules| {
            let linear =
                rules.linear.each().into_iter().any(|rule| {
                    rule.scaling != Scaling::F32 || rule.output.rounding.lfsr().is_some()
                });
            let conv = rules.conv.scaling != Scaling::F32 || rules.conv.silu != FunctionRule::Exact;
            linear || conv || rules.scan.unit.is_some() || rules.hadamard.form != HadamardForm::F32
        };
        let arithmetics = [&self.cuda, &self.torch];
        self.storage != Storage::MODEL
            || arithmetics
                .into_iter()
                .any(|a| of(&a.prefill) || of(&a.decode))
    }

    /// Whether two modes are one computation in prefill by construction: the same assignments, and
    /// implementations that this profile maps to the same rules.
    pub fn prefills_alike(&self, a: &ModeSpec, b: &ModeSpec) -> bool {
        let rules = |mode: &ModeSpec| {
            (
                self.arithmetic(mode.conv).prefill.conv,
                self.arithmetic(mode.scan).prefill.scan,
            )
        };
        let assignments = |mode: &ModeSpec| ModeSpec {
            name: "".into(),
            summary: "".into(),
            conv: Implementation::Cuda,
            scan: Implementation::Cuda,
            ..mode.clone()
        };
        assignments(a) == assignments(b) && rules(a) == rules(b)
    }

    /// The arithmetic of an implementation.
    pub fn arithmetic(&self, implementation: Implementation) -> &Arithmetic {
        match implementation {
            Implementation::Cuda => &self.cuda,
            Implementation::Torch => &self.torch,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::mode::ModeTable;

    #[test]
    fn modes_coincide_where_their_rules_do() {
        let table = ModeTable::default();
        let alike = |profile: &str, a: &str, b: &str| {
            let (a, b) = (table.get(a).unwrap(), table.get(b).unwrap());
            Profile::get(profile).unwrap().prefills_alike(a, b)
        };
        assert!(alike("exact", "0", "2-1"));
        assert!(!alike("deployed", "0", "2-1"));
        assert!(!alike("exact", "0", "2-3"));
        assert!(!alike("exact", "1", "original"));
    }
}
