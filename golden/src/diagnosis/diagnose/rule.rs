//! Rules of steps that could be others, and their words.

use super::kind::Kind;
use scalescope_sim::arith::real::RealRules;
use scalescope_sim::arith::requant::{QuantRule, Quotient, ScaleOrder};
use scalescope_sim::arith::round::Rounding;
use scalescope_sim::arith::saturate::Overflow;
use scalescope_sim::dataflow::Step;
use scalescope_sim::profile::{ConvForm, ScanFormula, ScanOrder, StepRules, SumOrder};
use std::fmt;

/// A part of a quantizer.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum QuantizerPart {
    /// To units of the scale.
    Quotient(Quotient),
    /// To an integer.
    Rounding(Rounding),
    /// To INT8.
    Overflow(Overflow),
}

impl QuantizerPart {
    /// Every one.
    pub fn all() -> impl Iterator<Item = QuantizerPart> {
        let overflow = Overflow::ALL.map(QuantizerPart::Overflow);
        let rounding = Rounding::ALL.map(QuantizerPart::Rounding);
        let quotient = Quotient::ALL.map(QuantizerPart::Quotient);
        overflow.into_iter().chain(rounding).chain(quotient)
    }

    /// Makes it a part of a rule.
    pub fn apply(self, rule: &mut QuantRule) {
        match self {
            QuantizerPart::Quotient(quotient) => rule.quotient = quotient,
            QuantizerPart::Rounding(rounding) => rule.rounding = rounding,
            QuantizerPart::Overflow(overflow) => rule.overflow = overflow,
        }
    }

    /// The sort of edit.
    pub fn kind(self) -> Kind {
        match self {
            QuantizerPart::Quotient(_) => Kind::Quotient,
            QuantizerPart::Rounding(_) => Kind::Rounding,
            QuantizerPart::Overflow(_) => Kind::Overflow,
        }
    }

    /// What a quantizer with it does otherwise.
    pub fn words(self) -> String {
        let what = match self {
            QuantizerPart::Quotient(_) => "the quantizer divides differently",
            QuantizerPart::Rounding(_) => "the quantizer rounds differently",
            QuantizerPart::Overflow(_) => {
                "the quantizer treats values beyond its range differently"
            }
        };
        format!("{what}: {self}")
    }
}

impl fmt::Display for QuantizerPart {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            QuantizerPart::Overflow(Overflow::Saturate) => "saturate",
            QuantizerPart::Overflow(Overflow::SaturateSymmetric) => "saturate at ±127",
            QuantizerPart::Overflow(Overflow::Wrap) => "wrap",
            QuantizerPart::Rounding(Rounding::NearestTiesToEven) => "ties to even",
            QuantizerPart::Rounding(Rounding::NearestTiesAway) => "ties away from zero",
            QuantizerPart::Rounding(Rounding::HalfAwayByAdding) => "a half added in f32",
            QuantizerPart::Rounding(Rounding::NearestTiesUp) => "ties up",
            QuantizerPart::Rounding(Rounding::Floor) => "rounding down",
            QuantizerPart::Rounding(Rounding::Ceil) => "rounding up",
            QuantizerPart::Rounding(Rounding::TowardZero) => "truncation",
            QuantizerPart::Rounding(Rounding::Stochastic(_)) => "stochastic rounding",
            QuantizerPart::Quotient(Quotient::Divide) => "division",
            QuantizerPart::Quotient(Quotient::ApproxReciprocal) => {
                "multiplication by the reciprocal"
            }
            QuantizerPart::Quotient(Quotient::RoundedReciprocal) => {
                "multiplication by the rounded reciprocal"
            }
            QuantizerPart::Quotient(Quotient::DivideInHalf) => "division, rounded to binary16",
            QuantizerPart::Quotient(Quotient::RoundedReciprocalInHalf) => {
                "multiplication by the rounded reciprocal, rounded to binary16"
            }
            QuantizerPart::Quotient(Quotient::ScaledApproxDivision) => {
                "scaled approximate division"
            }
        })
    }
}

/// A way to compute a step.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Way {
    /// How the convolution's taps meet its scales.
    ConvForm(ConvForm),
    /// The convolution's operations and functions.
    ConvReal(RealRules),
    /// The scan's formula.
    ScanFormula(ScanFormula),
    /// The scan's sum over states.
    ScanSum(SumOrder),
    /// The scan's association over time.
    ScanOrder(ScanOrder),
    /// The scan's operations and functions.
    ScanReal(RealRules),
    /// In which order the accumulator of a linear step meets its factors.
    LinearOrder(Step, ScaleOrder),
}

impl Way {
    /// Every one.
    pub fn all() -> Vec<Way> {
        let mut all: Vec<Way> = [ConvForm::IntegerSum, ConvForm::TapChain]
            .map(Way::ConvForm)
            .to_vec();
        all.extend(SumOrder::ALL.map(Way::ScanSum));
        all.extend([ScanOrder::Sequential, ScanOrder::WarpBlock].map(Way::ScanOrder));
        let formulas = [
            ScanFormula::Fused,
            ScanFormula::Separate,
            ScanFormula::Grouped,
        ];
        all.extend(formulas.map(Way::ScanFormula));
        all.extend(RealRules::ALL.map(Way::ConvReal));
        all.extend(RealRules::ALL.map(Way::ScanReal));
        for step in Step::LINEAR {
            all.extend(ScaleOrder::ALL.map(|order| Way::LinearOrder(step, order)));
        }
        all
    }

    /// Makes it the way of its step.
    pub fn apply(self, rules: &mut StepRules) {
        let StepRules {
            linear, conv, scan, ..
        } = rules;
        match self {
            Way::ConvForm(form) => conv.form = form,
            Way::ConvReal(real) => conv.real = real,
            Way::ScanFormula(formula) => scan.formula = formula,
            Way::ScanSum(sum) => scan.sum = sum,
            Way::ScanOrder(order) => scan.order = order,
            Way::ScanReal(real) => scan.real = real,
            Way::LinearOrder(step, order) => {
                let all = Step::LINEAR.into_iter().zip(linear.each_mut());
                for (_, rule) in all.filter(|(of, _)| *of == step) {
                    rule.order = order;
                }
            }
        }
    }

    /// The step.
    pub fn step(self) -> Step {
        match self {
            Way::ConvForm(_) | Way::ConvReal(_) => Step::Conv,
            Way::ScanFormula(_) | Way::ScanSum(_) | Way::ScanOrder(_) | Way::ScanReal(_) => {
                Step::Scan
            }
            Way::LinearOrder(step, _) => step,
        }
    }

    /// The sort of edit.
    pub fn kind(self) -> Kind {
        match self {
            Way::ConvReal(_) | Way::ScanReal(_) => Kind::Function,
            _ => Kind::Order,
        }
    }

    /// What a step of it does otherwise.
    pub fn words(self) -> String {
        let what = match self {
            Way::LinearOrder(..) => "factors in another order",
            _ => self.step().name(),
        };
        let real = |real| match real {
            RealRules::CorrectlyRounded => "correctly rounded functions",
            RealRules::SpecialFunctionUnit => "special-function unit, subnormals flushed",
            RealRules::CudaLibm => "CUDA's exp and log1p without fast math",
            RealRules::SpecialFunctionUnitSubnormal => "special-function unit, subnormals kept",
        };
        let way = match self {
            Way::ConvForm(ConvForm::IntegerSum) => "integer sum and one fma",
            Way::ConvForm(ConvForm::TapChain) => "fma tap by tap",
            Way::ScanSum(SumOrder::Ascending) => "sum over states in order",
            Way::ScanSum(SumOrder::Halves) => "sum over states by halves",
            Way::ScanSum(SumOrder::EightLanes) => "sum over states in eight lanes",
            Way::ScanOrder(ScanOrder::Sequential) => "sequential scan",
            Way::ScanOrder(ScanOrder::WarpBlock) => "block scan",
            Way::ScanFormula(ScanFormula::Fused) => "prefill kernel's formula (fma)",
            Way::ScanFormula(ScanFormula::Separate) => "PyTorch's formula (separate roundings)",
            Way::ScanFormula(ScanFormula::Grouped) => "decode kernel's formula (grouped sum)",
            Way::LinearOrder(_, ScaleOrder::RowMajor) => "a ⊗ (b ⊗ acc)",
            Way::LinearOrder(_, ScaleOrder::ChannelMajor) => "b ⊗ (a ⊗ acc)",
            Way::LinearOrder(_, ScaleOrder::OneRow) => "(b ⊗ a) ⊗ acc",
            Way::ConvReal(r) | Way::ScanReal(r) => real(r),
        };
        format!("{what}: {way}")
    }
}
