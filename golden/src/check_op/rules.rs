//! The rules of an operation as data, and every single change of them.

use scalescope_sim::arith::real::RealRules;
use scalescope_sim::arith::requant::{QuantRule, Quotient, ScaleOrder};
use scalescope_sim::arith::round::Rounding;
use scalescope_sim::arith::saturate::Overflow;
use scalescope_sim::profile::{
    Arithmetic, ConvForm, ConvRules, ScanFormula, ScanOrder, ScanRules, StepRules,
};
use std::fmt;

/// Everything an operation's bits depend on: an arithmetic, and the rules that all arithmetics
/// share.
#[derive(Clone, Debug, PartialEq)]
pub struct Rules {
    /// Rules that arithmetics differ in.
    pub arithmetic: Arithmetic,
    /// RMSNorm's quantizer.
    pub norm: QuantRule,
    /// The linear steps' quantizer; its quotient does not apply.
    pub linear: QuantRule,
    /// The Hadamard quantizer's rounding.
    pub hadamard: Rounding,
}

impl Rules {
    /// The rules of an arithmetic.
    pub fn new(arithmetic: Arithmetic) -> Self {
        Self {
            arithmetic,
            norm: QuantRule::NEAREST_EVEN,
            linear: QuantRule::NEAREST_EVEN,
            hadamard: Rounding::NearestTiesAway,
        }
    }
}

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
    fn all() -> impl Iterator<Item = Part> {
        let overflow = Overflow::ALL.map(Part::Overflow);
        let rounding = Rounding::ALL.map(Part::Rounding);
        let quotient = Quotient::ALL.map(Part::Quotient);
        overflow.into_iter().chain(rounding).chain(quotient)
    }

    fn apply(self, rule: &mut QuantRule) {
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
            Part::Overflow(Overflow::Wrap) => "wrap",
            Part::Rounding(Rounding::NearestTiesToEven) => "ties to even",
            Part::Rounding(Rounding::NearestTiesAway) => "ties away from zero",
            Part::Quotient(Quotient::Divide) => "division",
            Part::Quotient(Quotient::ApproxReciprocal) => "multiplication by the reciprocal",
            Part::Quotient(Quotient::ScaledApproxDivision) => "scaled approximate division",
        })
    }
}

const REAL: [RealRules; 3] = [
    RealRules::CorrectlyRounded,
    RealRules::SpecialFunctionUnit,
    RealRules::SpecialFunctionUnitSubnormal,
];

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
        all.extend([ScanOrder::Sequential, ScanOrder::WarpBlock].map(Change::ScanOrder));
        all.extend(
            [
                ScanFormula::Fused,
                ScanFormula::Separate,
                ScanFormula::Grouped,
            ]
            .map(Change::ScanFormula),
        );
        all.extend(REAL.map(Change::ConvReal));
        all.extend(REAL.map(Change::ScanReal));
        all
    }

    /// The rules with this one changed, in prefill and decode.
    pub fn apply(self, rules: &mut Rules) {
        match self {
            Change::Norm(part) => part.apply(&mut rules.norm),
            Change::Linear(part) => part.apply(&mut rules.linear),
            Change::HadamardRounding(rounding) => rules.hadamard = rounding,
            _ => self.apply_to(&mut rules.arithmetic),
        }
    }

    /// The arithmetic with this rule changed, in prefill and decode.
    pub fn apply_to(self, arithmetic: &mut Arithmetic) {
        for step in [&mut arithmetic.prefill, &mut arithmetic.decode] {
            self.apply_to_step(step);
        }
    }

    fn apply_to_step(self, step: &mut StepRules) {
        let StepRules {
            linear, conv, scan, ..
        } = step;
        match self {
            Change::ConvOutput(part) => part.apply(&mut conv.output),
            Change::ConvForm(form) => conv.form = form,
            Change::ConvReal(real) => conv.real = real,
            Change::State(part) => part.apply(&mut scan.state),
            Change::ScanFormula(formula) => scan.formula = formula,
            Change::ScanOrder(order) => scan.order = order,
            Change::ScanReal(real) => scan.real = real,
            Change::HadamardOverflow(overflow) => step.hadamard_overflow = overflow,
            Change::Requantize(part) => part.apply(&mut step.requantize),
            Change::LinearOrder(order) => {
                linear.in_proj = order;
                linear.x_proj = order;
                linear.dt_proj = order;
                linear.out_proj = order;
            }
            Change::Norm(_) | Change::Linear(_) | Change::HadamardRounding(_) => {}
        }
    }

    /// The step in words.
    pub fn step(self) -> &'static str {
        match self {
            Change::ConvOutput(_) | Change::ConvForm(_) | Change::ConvReal(_) => "conv",
            Change::State(_) => "state",
            Change::ScanFormula(_) | Change::ScanOrder(_) | Change::ScanReal(_) => "scan",
            Change::HadamardOverflow(_) | Change::HadamardRounding(_) => "Hadamard",
            Change::Requantize(_) => "requantization",
            Change::Norm(_) => "norm",
            Change::LinearOrder(_) | Change::Linear(_) => "linear",
        }
    }

    /// What the change puts in place of what: `saturate instead of wrap`. `None` if the rules have
    /// it already.
    pub fn describe(self, rules: &Rules, decode: bool) -> Option<String> {
        let step = match decode {
            true => &rules.arithmetic.decode,
            false => &rules.arithmetic.prefill,
        };
        let before = self.current(rules, step);
        (before != self).then(|| format!("{} instead of {}", self.word(), before.word()))
    }

    /// The change that would change nothing here.
    fn current(self, rules: &Rules, step: &StepRules) -> Change {
        let (conv, scan): (ConvRules, ScanRules) = (step.conv, step.scan);
        match self {
            Change::ConvOutput(part) => Change::ConvOutput(part.of(conv.output)),
            Change::ConvForm(_) => Change::ConvForm(conv.form),
            Change::ConvReal(_) => Change::ConvReal(conv.real),
            Change::State(part) => Change::State(part.of(scan.state)),
            Change::ScanFormula(_) => Change::ScanFormula(scan.formula),
            Change::ScanOrder(_) => Change::ScanOrder(scan.order),
            Change::ScanReal(_) => Change::ScanReal(scan.real),
            Change::HadamardOverflow(_) => Change::HadamardOverflow(step.hadamard_overflow),
            Change::HadamardRounding(_) => Change::HadamardRounding(rules.hadamard),
            Change::Requantize(part) => Change::Requantize(part.of(step.requantize)),
            Change::Norm(part) => Change::Norm(part.of(rules.norm)),
            // Orders differ from step to step; applying one to all of them is the change.
            Change::LinearOrder(order) => {
                let l = step.linear;
                let all = [l.in_proj, l.x_proj, l.dt_proj, l.out_proj];
                match all.into_iter().find(|o| *o != order) {
                    Some(other) => Change::LinearOrder(other),
                    None => self,
                }
            }
            Change::Linear(part) => Change::Linear(part.of(rules.linear)),
        }
    }

    fn word(self) -> String {
        let real = |real| match real {
            RealRules::CorrectlyRounded => "correctly rounded functions",
            RealRules::SpecialFunctionUnit => "special-function unit, subnormals flushed",
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
