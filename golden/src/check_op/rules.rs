//! The rules of an operation as data, and every single change of them.

use scalescope_sim::arith::real::RealRules;
use scalescope_sim::arith::requant::{QuantRule, Quotient, ScaleOrder};
use scalescope_sim::arith::round::Rounding;
use scalescope_sim::arith::saturate::Overflow;
use scalescope_sim::profile::{
    Arithmetic, ConvForm, QuantizerRule, ScanFormula, ScanOrder, StepRules, SumOrder,
};
use std::fmt;

/// One rule that could be another one.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Change {
    /// The convolution's quantizer.
    ConvOutput(Part),
    /// How the convolution's taps meet its scales.
    ConvForm(ConvForm),
    /// The convolution's operations and functions.
    ConvReal(RealRules),
    /// The state's quantizer.
    State(Part),
    /// The scan's formula.
    ScanFormula(ScanFormula),
    /// The scan's sum over states.
    ScanSum(SumOrder),
    /// The scan's association over time.
    ScanOrder(ScanOrder),
    /// The scan's operations and functions.
    ScanReal(RealRules),
    /// The Hadamard quantizer beyond INT8.
    HadamardOverflow(Overflow),
    /// The Hadamard quantizer's ties.
    HadamardRounding(Rounding),
    /// The quantizer between steps.
    Requantize(Part),
    /// RMSNorm's quantizer.
    Norm(Part),
    /// In which order a linear step's accumulator meets its factors.
    LinearOrder(ScaleOrder),
    /// A linear step's quantizer.
    Linear(Part),
}

/// A part of a quantizer.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Part {
    /// To units of the scale.
    Quotient(Quotient),
    /// To an integer.
    Rounding(Rounding),
    /// To INT8.
    Overflow(Overflow),
}

impl Part {
    /// Every one.
    pub(crate) fn all() -> impl Iterator<Item = Part> {
        let overflow = Overflow::ALL.map(Part::Overflow);
        let rounding = Rounding::ALL.map(Part::Rounding);
        let quotient = Quotient::ALL.map(Part::Quotient);
        overflow.into_iter().chain(rounding).chain(quotient)
    }

    /// Makes it a part of a rule.
    pub(crate) fn apply(self, rule: &mut QuantRule) {
        match self {
            Part::Quotient(quotient) => rule.quotient = quotient,
            Part::Rounding(rounding) => rule.rounding = rounding,
            Part::Overflow(overflow) => rule.overflow = overflow,
        }
    }

    fn of(self, rule: QuantRule) -> Part {
        match self {
            Part::Quotient(_) => Part::Quotient(rule.quotient),
            Part::Rounding(_) => Part::Rounding(rule.rounding),
            Part::Overflow(_) => Part::Overflow(rule.overflow),
        }
    }
}

impl fmt::Display for Part {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Part::Overflow(Overflow::Saturate) => "saturate",
            Part::Overflow(Overflow::SaturateSymmetric) => "saturate at ±127",
            Part::Overflow(Overflow::Wrap) => "wrap",
            Part::Rounding(Rounding::NearestTiesToEven) => "ties to even",
            Part::Rounding(Rounding::NearestTiesAway) => "ties away from zero",
            Part::Rounding(Rounding::HalfAwayByAdding) => "a half added in f32",
            Part::Rounding(Rounding::NearestTiesUp) => "ties up",
            Part::Rounding(Rounding::Floor) => "rounding down",
            Part::Rounding(Rounding::Ceil) => "rounding up",
            Part::Rounding(Rounding::TowardZero) => "truncation",
            Part::Rounding(Rounding::Stochastic(_)) => "stochastic rounding",
            Part::Quotient(Quotient::Divide) => "division",
            Part::Quotient(Quotient::ApproxReciprocal) => "multiplication by the reciprocal",
            Part::Quotient(Quotient::RoundedReciprocal) => {
                "multiplication by the rounded reciprocal"
            }
            Part::Quotient(Quotient::DivideInHalf) => "division, rounded to binary16",
            Part::Quotient(Quotient::RoundedReciprocalInHalf) => {
                "multiplication by the rounded reciprocal, rounded to binary16"
            }
            Part::Quotient(Quotient::ScaledApproxDivision) => "scaled approximate division",
        })
    }
}

impl Change {
    /// Every change that a table of rules knows, those that change nothing included. Of changes
    /// that explain equally much the first is named first.
    pub fn all() -> Vec<Change> {
        let mut all = Overflow::ALL.map(Change::HadamardOverflow).to_vec();
        all.extend(Rounding::ALL.map(Change::HadamardRounding));
        let quantizers = [
            Change::ConvOutput as fn(Part) -> Change,
            Change::State,
            Change::Requantize,
            Change::Norm,
            Change::Linear,
        ];
        for quantizer in quantizers {
            all.extend(Part::all().map(quantizer));
        }
        all.extend(ScaleOrder::ALL.map(Change::LinearOrder));
        all.extend([ConvForm::IntegerSum, ConvForm::TapChain].map(Change::ConvForm));
        all.extend(SumOrder::ALL.map(Change::ScanSum));
        all.extend([ScanOrder::Sequential, ScanOrder::WarpBlock].map(Change::ScanOrder));
        all.extend(
            [
                ScanFormula::Fused,
                ScanFormula::Separate,
                ScanFormula::Grouped,
            ]
            .map(Change::ScanFormula),
        );
        all.extend(RealRules::ALL.map(Change::ConvReal));
        all.extend(RealRules::ALL.map(Change::ScanReal));
        all
    }

    /// The arithmetic with this rule changed, in prefill and decode.
    pub fn apply(self, arithmetic: &mut Arithmetic) {
        for step in [&mut arithmetic.prefill, &mut arithmetic.decode] {
            self.apply_to_step(step);
        }
    }

    /// The same in the rules of one phase.
    pub(crate) fn apply_to_step(self, step: &mut StepRules) {
        let StepRules {
            linear, conv, scan, ..
        } = step;
        match self {
            Change::ConvOutput(part) => part.apply(&mut conv.output),
            Change::ConvForm(form) => conv.form = form,
            Change::ConvReal(real) => conv.real = real,
            Change::State(part) => part.apply(&mut scan.state),
            Change::ScanFormula(formula) => scan.formula = formula,
            Change::ScanSum(sum) => scan.sum = sum,
            Change::ScanOrder(order) => scan.order = order,
            Change::ScanReal(real) => scan.real = real,
            Change::HadamardOverflow(overflow) => step.hadamard.overflow = overflow,
            Change::HadamardRounding(rounding) => step.hadamard.rounding = rounding,
            Change::Norm(part) => part.apply(&mut step.norm_out),
            Change::Requantize(part) => part.apply(&mut step.requantize),
            Change::LinearOrder(order) => linear
                .each_mut()
                .into_iter()
                .for_each(|rule| rule.order = order),
            Change::Linear(part) => linear
                .each_mut()
                .into_iter()
                .for_each(|rule| part.apply(&mut rule.output)),
        }
    }

    /// The step in words.
    pub fn step(self) -> &'static str {
        match self {
            Change::ConvOutput(_) | Change::ConvForm(_) | Change::ConvReal(_) => "conv",
            Change::State(_) => "state",
            Change::ScanFormula(_)
            | Change::ScanSum(_)
            | Change::ScanOrder(_)
            | Change::ScanReal(_) => "scan",
            Change::HadamardOverflow(_) | Change::HadamardRounding(_) => "Hadamard",
            Change::Requantize(_) => "requantization",
            Change::Norm(_) => "norm",
            Change::LinearOrder(_) | Change::Linear(_) => "linear",
        }
    }

    /// The part of an arithmetic that it changes, as profile files write it.
    pub fn path(self) -> &'static str {
        match self {
            Change::ConvOutput(_) | Change::ConvForm(_) | Change::ConvReal(_) => "conv",
            Change::State(_)
            | Change::ScanFormula(_)
            | Change::ScanOrder(_)
            | Change::ScanSum(_)
            | Change::ScanReal(_) => "scan",
            Change::HadamardOverflow(_) | Change::HadamardRounding(_) => "hadamard",
            Change::Requantize(_) => "requantize",
            Change::Norm(_) => "norm_out",
            Change::LinearOrder(_) | Change::Linear(_) => "linear",
        }
    }

    /// The one quantizer that it is about, where its step makes more than what that quantizer makes.
    pub fn quantizer(self) -> Option<QuantizerRule> {
        match self {
            Change::State(_) => Some(QuantizerRule::SsmState),
            _ => None,
        }
    }

    /// What the change puts in place of what: `saturate instead of wrap`. `None` if the rules have
    /// it already.
    pub fn describe(self, rules: &Arithmetic, decode: bool) -> Option<String> {
        let step = match decode {
            true => &rules.decode,
            false => &rules.prefill,
        };
        let before = self.current(step);
        (before != self).then(|| format!("{} instead of {}", self.word(), before.word()))
    }

    /// The change that would change nothing here.
    pub(crate) fn current(self, step: &StepRules) -> Change {
        let StepRules { conv, scan, .. } = step;
        match self {
            Change::ConvOutput(part) => Change::ConvOutput(part.of(conv.output)),
            Change::ConvForm(_) => Change::ConvForm(conv.form),
            Change::ConvReal(_) => Change::ConvReal(conv.real),
            Change::State(part) => Change::State(part.of(scan.state)),
            Change::ScanFormula(_) => Change::ScanFormula(scan.formula),
            Change::ScanSum(_) => Change::ScanSum(scan.sum),
            Change::ScanOrder(_) => Change::ScanOrder(scan.order),
            Change::ScanReal(_) => Change::ScanReal(scan.real),
            Change::HadamardOverflow(_) => Change::HadamardOverflow(step.hadamard.overflow),
            Change::HadamardRounding(_) => Change::HadamardRounding(step.hadamard.rounding),
            Change::Requantize(part) => Change::Requantize(part.of(step.requantize)),
            Change::Norm(part) => Change::Norm(part.of(step.norm_out)),
            // Orders differ from step to step; applying one to all of them is the change.
            Change::LinearOrder(order) => {
                match step
                    .linear
                    .each()
                    .into_iter()
                    .find(|rule| rule.order != order)
                {
                    Some(other) => Change::LinearOrder(other.order),
                    None => self,
                }
            }
            Change::Linear(part) => Change::Linear(part.of(step.linear.in_proj.output)),
        }
    }

    pub(crate) fn word(self) -> String {
        let real = |real| match real {
            RealRules::CorrectlyRounded => "correctly rounded functions",
            RealRules::SpecialFunctionUnit => "special-function unit, subnormals flushed",
            RealRules::CudaLibm => "CUDA's exp and log1p without fast math",
            RealRules::SpecialFunctionUnitSubnormal => "special-function unit, subnormals kept",
        };
        match self {
            Change::ConvOutput(part)
            | Change::State(part)
            | Change::Requantize(part)
            | Change::Norm(part)
            | Change::Linear(part) => return part.to_string(),
            Change::HadamardOverflow(overflow) => return Part::Overflow(overflow).to_string(),
            Change::HadamardRounding(rounding) => return Part::Rounding(rounding).to_string(),
            Change::ConvForm(ConvForm::IntegerSum) => "integer sum and one fma",
            Change::ConvForm(ConvForm::TapChain) => "fma tap by tap",
            Change::ScanSum(SumOrder::Ascending) => "sum over states in order",
            Change::ScanSum(SumOrder::Halves) => "sum over states by halves",
            Change::ScanSum(SumOrder::EightLanes) => "sum over states in eight lanes",
            Change::ScanOrder(ScanOrder::Sequential) => "sequential scan",
            Change::ScanOrder(ScanOrder::WarpBlock) => "block scan",
            Change::ScanFormula(ScanFormula::Fused) => "prefill kernel's formula (fma)",
            Change::ScanFormula(ScanFormula::Separate) => "PyTorch's formula (separate roundings)",
            Change::ScanFormula(ScanFormula::Grouped) => "decode kernel's formula (grouped sum)",
            Change::LinearOrder(ScaleOrder::RowMajor) => "a ⊗ (b ⊗ acc)",
            Change::LinearOrder(ScaleOrder::ChannelMajor) => "b ⊗ (a ⊗ acc)",
            Change::LinearOrder(ScaleOrder::OneRow) => "(b ⊗ a) ⊗ acc",
            Change::ConvReal(r) | Change::ScanReal(r) => real(r),
        }
        .to_owned()
    }
}
