//! Rules of a profile as the numbers that kernels know. A rule without a number is refused when a
//! model is prepared, so that nothing runs with another in its place.

use super::args::{Pointer, Quantizer};
use crate::arith::fixed::Scaling;
use crate::arith::function::FunctionRule;
use crate::arith::real::RealRules;
use crate::arith::requant::{QuantRule, Quotient, ScaleOrder};
use crate::arith::round::Rounding;
use crate::arith::saturate::Overflow;
use crate::error::{Result, SimError};
use crate::mode::ModeSpec;
use crate::profile::unit::{HadamardForm, Storage};
use crate::profile::{
    Arithmetic, ConvForm, ConvRules, FinalNorm, HadamardRules, InputScale, LinearRule, Profile,
    ScanFormula, ScanOrder, ScanRules, StepRules, SumOrder, TapHistory,
};
use crate::quant::Scale;

/// A rule no kernel has.
fn refused(arithmetic: &str, rule: impl std::fmt::Debug) -> SimError {
    let item = format!("arithmetic {arithmetic} on a CUDA device");
    SimError::value(
        item,
        "rules that its kernels implement",
        format!("{rule:?}"),
    )
}

// Rules that are added later get no number by themselves; hence the patterns for the rest.
#[allow(unreachable_patterns)]
mod numbers {
    use super::*;

    pub fn order(rule: ScaleOrder) -> Option<i32> {
        match rule {
            ScaleOrder::RowMajor => Some(0),
            ScaleOrder::ChannelMajor => Some(1),
            ScaleOrder::OneRow => Some(2),
            _ => None,
        }
    }

    pub fn quotient(rule: Quotient) -> Option<i32> {
        match rule {
            Quotient::Divide => Some(0),
            Quotient::ApproxReciprocal => Some(1),
            Quotient::ScaledApproxDivision => Some(2),
            Quotient::RoundedReciprocal => Some(3),
            Quotient::DivideInHalf => Some(4),
            Quotient::RoundedReciprocalInHalf => Some(5),
            _ => None,
        }
    }

    pub fn rounding(rule: Rounding) -> Option<i32> {
        match rule {
            Rounding::NearestTiesToEven => Some(0),
            Rounding::NearestTiesAway => Some(1),
            Rounding::HalfAwayByAdding => Some(2),
            _ => None,
        }
    }

    pub fn overflow(rule: Overflow) -> Option<i32> {
        match rule {
            Overflow::Saturate => Some(0),
            Overflow::Wrap => Some(1),
            _ => None,
        }
    }

    pub fn form(rule: ConvForm) -> Option<i32> {
        match rule {
            ConvForm::IntegerSum => Some(0),
            ConvForm::TapChain => Some(1),
            _ => None,
        }
    }

    /// The name kernels give a set of operations.
    pub fn real(rule: RealRules) -> Option<&'static str> {
        match rule {
            RealRules::CorrectlyRounded => Some("correctly_rounded"),
            RealRules::SpecialFunctionUnit => Some("unit"),
            RealRules::CudaLibm => Some("libm"),
            RealRules::SpecialFunctionUnitSubnormal => Some("unit_subnormal"),
            _ => None,
        }
    }

    pub fn sum(rule: SumOrder) -> Option<i32> {
        match rule {
            SumOrder::Ascending => Some(0),
            SumOrder::Halves => Some(1),
            SumOrder::EightLanes => Some(2),
            _ => None,
        }
    }

    pub fn final_norm(rule: FinalNorm) -> Option<i32> {
        match rule {
            FinalNorm::RoundedOnce => Some(0),
            FinalNorm::TorchDevice => Some(1),
            _ => None,
        }
    }

    pub fn scan(rules: ScanRules) -> Option<&'static str> {
        match (rules.formula, rules.order, rules.real) {
            (ScanFormula::Fused, ScanOrder::Sequential, _) => Some("fused"),
            (ScanFormula::Fused, ScanOrder::WarpBlock, RealRules::SpecialFunctionUnit) => {
                Some("block")
            }
            (ScanFormula::Separate, ..) => Some("separate"),
            (ScanFormula::Grouped, ..) => Some("grouped"),
            _ => None,
        }
    }
}

const CHECKED: &str = "rules were checked when the model was prepared";

/// Number of a scale order.
pub fn order(rule: ScaleOrder) -> i32 {
    numbers::order(rule).expect(CHECKED)
}

/// Number of a form of convolution.
pub fn form(rule: ConvForm) -> i32 {
    numbers::form(rule).expect(CHECKED)
}

/// Name of a set of operations.
pub fn real(rule: RealRules) -> &'static str {
    numbers::real(rule).expect(CHECKED)
}

/// Number of a final norm.
pub fn final_norm(rule: FinalNorm) -> i32 {
    numbers::final_norm(rule).expect(CHECKED)
}

/// The kernel of a scan: `block`, or the formula of the sequential one.
pub fn scan(rules: ScanRules) -> &'static str {
    numbers::scan(rules).expect(CHECKED)
}

/// Number of the order of the sum over states.
pub fn sum(rules: ScanRules) -> i32 {
    numbers::sum(rules.sum).expect(CHECKED)
}

/// Numbers of the rounding to even and of saturation.
const TO_EVEN: i32 = 0;
const SATURATED: i32 = 0;

/// Whether codes are rounded to even and saturated, and nobody counts them.
pub fn rounds_to_even(quantizer: &Quantizer) -> bool {
    (quantizer.rounding, quantizer.overflow, quantizer.status) == (TO_EVEN, SATURATED, 0)
}

/// Numbers of a quantizer's quotient, rounding and overflow.
pub fn quantizer_numbers(rule: QuantRule) -> [i32; 3] {
    [
        numbers::quotient(rule.quotient).expect(CHECKED),
        numbers::rounding(rule.rounding).expect(CHECKED),
        numbers::overflow(rule.overflow).expect(CHECKED),
    ]
}

/// A quantizer of a rule and a scale, counting at `status` (0 for nowhere).
pub fn quantizer(rule: QuantRule, scale: Scale, status: Pointer) -> Quantizer {
    let [quotient, rounding, overflow] = quantizer_numbers(rule);
    Quantizer {
        scale: rule.quotient.factor(scale.into()),
        quotient,
        rounding,
        overflow,
        status,
    }
}

/// What a sink of real values carries.
pub const NO_QUANTIZER: Quantizer = Quantizer {
    scale: 1.0,
    quotient: 0,
    rounding: TO_EVEN,
    overflow: 0,
    status: 0,
};

/// The kernels' registers have 32 bits, which hold every sum of a linear step; and the largest sum over
/// the taps of a convolution.
const EVERY_SUM: u64 = i32::MAX as u64;
const TAP_SUM: u64 = 4 << 14;

/// Checks that kernels have every rule of a profile.
///
/// # Errors
///
/// The first rule they lack, by name.
pub fn check_profile(profile: &Profile) -> Result<()> {
    let Profile {
        name: _,
        summary: _,
        cuda,
        torch,
        storage,
    } = profile;
    check(cuda)?;
    check(torch)?;
    match *storage == Storage::MODEL {
        true => Ok(()),
        false => Err(refused(&profile.name, storage)),
    }
}

/// Checks that kernels have every rule that a mode itself states.
///
/// # Errors
///
/// The first rule they lack, by name.
pub fn check_mode(mode: &ModeSpec) -> Result<()> {
    let own = mode.u_quantizer.as_ref();
    let roundings = [own.map(|q| q.rounding), mode.requantize_rounding];
    for rounding in roundings.into_iter().flatten() {
        if numbers::rounding(rounding).is_none() {
            return Err(refused(&format!("of mode {}", mode.name), rounding));
        }
    }
    match own.and_then(|q| q.quotient) {
        Some(quotient) if numbers::quotient(quotient).is_none() => {
            Err(refused(&format!("of mode {}", mode.name), quotient))
        }
        _ => Ok(()),
    }
}

/// Checks that kernels have every rule of an arithmetic.
///
/// # Errors
///
/// The first rule they lack, by name.
fn check(arithmetic: &Arithmetic) -> Result<()> {
    // Every field is named: a new one has to be looked at here.
    let Arithmetic {
        name,
        prefill,
        decode,
        final_norm,
        // Done before weights are uploaded.
        dequantize: _,
    } = arithmetic;
    let known = |known: bool, rule: &dyn std::fmt::Debug| match known {
        true => Ok(()),
        false => Err(refused(name, rule)),
    };
    let quantizer = |rule: &QuantRule| {
        let QuantRule {
            quotient,
            rounding,
            overflow,
        } = *rule;
        known(numbers::quotient(quotient).is_some(), rule)?;
        known(numbers::rounding(rounding).is_some(), rule)?;
        known(numbers::overflow(overflow).is_some(), rule)
    };
    for rules in [prefill, decode] {
        let StepRules {
            norm_out,
            linear,
            conv_in,
            conv,
            scan,
            hadamard,
            requantize,
        } = rules;
        for rule in linear.each() {
            let LinearRule {
                order,
                accumulator,
                scaling,
                output,
            } = rule;
            known(*scaling == Scaling::F32, scaling)?;
            known(numbers::order(*order).is_some(), order)?;
            known(accumulator.holds(EVERY_SUM), accumulator)?;
            quantizer(output)?;
        }
        let ConvRules {
            real,
            accumulator,
            scaling,
            silu,
            // Both have kernels.
            silu_form: _,
            form,
            input_scale,
            history,
            output,
        } = conv;
        known(*scaling == Scaling::F32, scaling)?;
        known(*silu == FunctionRule::Exact, silu)?;
        known(*input_scale == InputScale::Once, input_scale)?;
        known(*history == TapHistory::Kept, history)?;
        known(accumulator.holds(TAP_SUM), accumulator)?;
        known(numbers::real(*real).is_some(), real)?;
        known(numbers::form(*form).is_some(), form)?;
        known(numbers::real(scan.real).is_some(), &scan.real)?;
        known(numbers::scan(*scan).is_some(), scan)?;
        known(numbers::sum(scan.sum).is_some(), scan)?;
        known(scan.unit.is_none(), scan)?;
        let HadamardRules {
            form,
            rounding,
            overflow,
        } = hadamard;
        known(*form == HadamardForm::F32, form)?;
        known(numbers::rounding(*rounding).is_some(), hadamard)?;
        known(numbers::overflow(*overflow).is_some(), hadamard)?;
        for rule in [norm_out, conv_in, output, &scan.state, requantize] {
            quantizer(rule)?;
        }
    }
    known(numbers::final_norm(*final_norm).is_some(), final_norm)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::profile::{ARITHMETICS, CUDA_FAST};

    #[test]
    fn built_in_arithmetics_have_kernels_and_others_are_refused() {
        for arithmetic in ARITHMETICS {
            check(arithmetic).unwrap();
        }
        let mut other = CUDA_FAST.clone();
        other.prefill.scan.real = RealRules::CorrectlyRounded;
        let error = check(&other).unwrap_err().to_string();
        assert!(error.contains("WarpBlock"), "{error}");
    }
}
