//! Arithmetics and profiles, as data. An [`Arithmetic`] is a full rule set for the steps; a
//! [`Profile`] maps the implementations a mode names to arithmetics. Steps read the fields.
//!
//! `docs/arithmetic.md` shows the tables.

pub mod choices;
pub mod cost;
mod file;
mod rules;
mod tables;
pub mod unit;

use crate::arith::accumulate::Accumulator;
use crate::arith::fixed::Scaling;
use crate::arith::function::FunctionRule;
use crate::arith::int4::Dequantize;
use crate::arith::real::RealRules;
use crate::arith::requant::{QuantRule, ScaleOrder};
use crate::arith::round::Rounding;
use crate::arith::saturate::Overflow;
use crate::dataflow::{Block, Choices, Format, Phase};
use crate::error::{Result, SimError};
use crate::mode::{Implementation, ModeSpec};
use crate::text;
use crate::trace::TracePoint;
use serde::Serialize;
use sha2::{Digest, Sha256};
use std::borrow::Cow;
use std::path::Path;
use unit::{HadamardForm, Storage};

pub use rules::*;

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
        silu_form: SiluForm::Quotient,
        form: ConvForm::IntegerSum,
        input_scale: InputScale::Once,
        history: TapHistory::Kept,
        output: QuantRule::HALF_AWAY,
    },
    scan: ScanRules {
        real: RealRules::CorrectlyRounded,
        formula: ScanFormula::Fused,
        sum: SumOrder::Ascending,
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
    dequantize: Dequantize::Saturate,
};

const TORCH_CPU_RULES: StepRules = StepRules {
    conv: ConvRules {
        silu_form: SiluForm::Product,
        output: QuantRule::NEAREST_EVEN,
        ..EXACT_RULES.conv
    },
    scan: ScanRules {
        formula: ScanFormula::Separate,
        sum: SumOrder::EightLanes,
        state: QuantRule::NEAREST_EVEN,
        ..EXACT_RULES.scan
    },
    ..EXACT_RULES
};

const TORCH_RULES: StepRules = StepRules {
    conv: ConvRules {
        real: RealRules::CudaLibm,
        output: QuantRule::NEAREST_EVEN_RECIPROCAL,
        ..TORCH_CPU_RULES.conv
    },
    scan: ScanRules {
        real: RealRules::CudaLibm,
        sum: SumOrder::Halves,
        ..TORCH_CPU_RULES.scan
    },
    requantize: QuantRule::NEAREST_EVEN_RECIPROCAL,
    ..TORCH_CPU_RULES
};

/// What PyTorch computes on an NVIDIA GPU. Linears and Hadamard are never PyTorch steps; their rules here are
/// `exact`'s. Source: `docs/arithmetic.md`.
pub const TORCH: Arithmetic = Arithmetic {
    name: Cow::Borrowed("torch"),
    prefill: TORCH_RULES,
    decode: TORCH_RULES,
    final_norm: FinalNorm::RoundedOnce,
    dequantize: Dequantize::Saturate,
};

/// What PyTorch computes on a CPU with AVX2 or AVX-512. Its exp and log1p, which were not measured, are taken
/// as correctly rounded.
pub const TORCH_CPU: Arithmetic = Arithmetic {
    name: Cow::Borrowed("torch-cpu"),
    prefill: TORCH_CPU_RULES,
    decode: TORCH_CPU_RULES,
    final_norm: FinalNorm::RoundedOnce,
    dequantize: Dequantize::Saturate,
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
            silu_form: SiluForm::Quotient,
            form: ConvForm::IntegerSum,
            input_scale: InputScale::Once,
            history: TapHistory::Kept,
            output: QuantRule::HALF_AWAY_RECIPROCAL,
        },
        scan: ScanRules {
            real: RealRules::SpecialFunctionUnit,
            formula: ScanFormula::Fused,
            sum: SumOrder::Ascending,
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
            silu_form: SiluForm::Quotient,
            form: ConvForm::TapChain,
            input_scale: InputScale::Once,
            history: TapHistory::Kept,
            output: QuantRule::HALF_AWAY_RECIPROCAL,
        },
        scan: ScanRules {
            real: RealRules::SpecialFunctionUnitSubnormal,
            formula: ScanFormula::Grouped,
            sum: SumOrder::Ascending,
            order: ScanOrder::Sequential,
            state: QuantRule::SCALED_QUOTIENT,
            unit: None,
        },
        hadamard: HADAMARD_WRAPS,
        requantize: QuantRule::NEAREST_EVEN,
    },
    final_norm: FinalNorm::TorchDevice,
    dequantize: Dequantize::WrappingFma,
};

/// Every arithmetic.
pub const ARITHMETICS: &[Arithmetic] = &[EXACT, TORCH, TORCH_CPU, CUDA_FAST];

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
            "correctly rounded kernels around PyTorch's scan and requantizations as a GPU runs them",
        ),
        cuda: EXACT,
        torch: TORCH,
        storage: Storage::MODEL,
    },
    Profile {
        name: Cow::Borrowed("torch-cpu"),
        summary: Cow::Borrowed("the same as a CPU runs them"),
        cuda: EXACT,
        torch: TORCH_CPU,
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

/// Whether a name is that of a profile file: it ends in `.toml`, or is no profile's and a file has it.
fn is_file(name: &str) -> bool {
    let known =
        || PROFILES.iter().any(|p| p.name == name) || CHIP_PROFILES.iter().any(|(n, _)| *n == name);
    name.to_ascii_lowercase().ends_with(".toml") || (!known() && Path::new(name).is_file())
}

impl Profile {
    /// The profile of a name, or of a profile file.
    pub fn get(name: &str) -> Result<Profile> {
        if is_file(name) {
            let path = Path::new(name);
            let text = text::read(path)?;
            return Profile::from_toml(name, &text).map_err(|e| e.in_file(path));
        }
        if let Some(profile) = PROFILES.iter().find(|profile| profile.name == name) {
            return Ok(profile.clone());
        }
        if let Some((_, text)) = CHIP_PROFILES.iter().find(|(known, _)| *known == name) {
            return Profile::from_toml(name, text);
        }
        let known = Profile::names();
        let expected = format!("one of {}, or a .toml file", known.join(", "));
        Err(SimError::value(
            "profile",
            expected,
            SimError::like(&known, name),
        ))
    }

    /// The text of a profile file: the file's own, a built-in chip's, or one that only extends a
    /// built-in profile of kernels.
    pub fn text(name: &str) -> Result<String> {
        if is_file(name) {
            return text::read(Path::new(name));
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

    /// What the rules ask for and a mode does not have: a scan in fixed point takes codes of B and C. `None` if the
    /// mode runs.
    pub fn lacks(&self, mode: &ModeSpec) -> Option<&'static str> {
        let lacking = [Phase::Prefill, Phase::Decode].into_iter().any(|phase| {
            let block = Block::of(mode, self, phase);
            let made = |point| block.row(point).map(|row| row.format);
            let from = made(TracePoint::SsmBc).or_else(|| made(TracePoint::XProjOut));
            Choices::of(mode, self, phase).fixed_point_scan && from == Some(Format::F32)
        });
        lacking.then_some("INT8 B and C, which a fixed-point scan.state takes")
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
