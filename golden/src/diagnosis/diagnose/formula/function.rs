//! The operations of an arithmetic, and functions made of them: those of the steps, and others in their place.

use super::{Exp, Log, Narrow, Sigmoid};
use scalescope_sim::arith::real::{Ieee, RealMath, RealRules};
use scalescope_sim::arith::sfu::{CudaFast, CudaLibm, CudaSubnormal};

/// The operations of an arithmetic.
#[derive(Clone, Copy, Debug)]
pub struct Math {
    /// `a ⊗ b`.
    pub mul: fn(f32, f32) -> f32,
    /// `a ⊕ b`.
    pub add: fn(f32, f32) -> f32,
    /// `a·b + c`.
    pub fma: fn(f32, f32, f32) -> f32,
    /// `n / d`.
    pub div: fn(f32, f32) -> f32,
    /// `exp(x)`.
    pub exp: fn(f32) -> f32,
    /// `exp(-x)`.
    pub exp_neg: fn(f32) -> f32,
    /// `log(1 + exp(x))`.
    pub softplus: fn(f32) -> f32,
}

impl Math {
    /// The operations of a set.
    pub fn of(rules: RealRules) -> Self {
        fn new<R: RealMath>() -> Math {
            Math {
                mul: R::mul,
                add: R::add,
                fma: R::fma,
                div: R::div,
                exp: R::exp,
                exp_neg: R::exp_neg,
                softplus: R::softplus,
            }
        }
        match rules {
            RealRules::CorrectlyRounded => new::<Ieee>(),
            RealRules::SpecialFunctionUnit => new::<CudaFast>(),
            RealRules::CudaLibm => new::<CudaLibm>(),
            RealRules::SpecialFunctionUnitSubnormal => new::<CudaSubnormal>(),
        }
    }
}

/// A table of a function's values in the function's place.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Table {
    /// Values.
    pub entries: u16,
    /// Where it begins; inputs before are taken for this one.
    pub low: f32,
    /// Where it ends; inputs beyond are taken for this one.
    pub high: f32,
    /// What lies between.
    pub between: Between,
    /// Whether the function has its limits beyond either end, and not the entry there.
    pub limits: bool,
}

/// What a table gives between its entries.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Between {
    /// A straight line; the last entry lies at the end.
    Line,
    /// The nearest entry; the last one lies at the end.
    Nearest,
    /// The entry before; the last one lies a step before the end.
    Before,
    /// The function at the middle of the step.
    Middle,
}

impl Table {
    /// Every table that is tried over some ranges.
    pub fn all(ranges: &[(f32, f32)]) -> Vec<Self> {
        use Between::{Before, Line, Middle, Nearest};
        let mut all = Vec::new();
        for (low, high) in ranges.iter().copied() {
            for entries in [4, 8, 16, 32, 64, 128, 256, 1024] {
                let both = [(entries, Line), (entries + 1, Line), (entries, Nearest)];
                let all_of = both
                    .into_iter()
                    .chain([(entries, Before), (entries, Middle)]);
                for (limits, (entries, between)) in [false, true]
                    .into_iter()
                    .flat_map(|l| all_of.clone().map(move |t| (l, t)))
                {
                    all.push(Self {
                        entries,
                        low,
                        high,
                        between,
                        limits,
                    });
                }
            }
        }
        all
    }

    /// In words.
    pub fn name(self) -> String {
        let between = match self.between {
            Between::Line => "straight lines between them",
            Between::Nearest => "the nearest one",
            Between::Before => "the one before",
            Between::Middle => "one for each step, of its middle",
        };
        let Self {
            entries, low, high, ..
        } = self;
        let beyond = if self.limits {
            ", its limits beyond"
        } else {
            ""
        };
        format!("a table of {entries} entries from {low} to {high}{beyond}, {between}")
    }

    /// A function by this table, which has a limit for large values and is 0 far below zero.
    pub fn of(self, function: impl Fn(f32) -> f32, limit: impl Fn(f32) -> f32, v: f32) -> f32 {
        match self.limits {
            true if v > self.high => return limit(v),
            true if v < self.low => return 0.0,
            _ => {}
        }
        let steps = match self.between {
            Between::Line | Between::Nearest => f32::from(self.entries) - 1.0,
            Between::Before | Between::Middle => f32::from(self.entries),
        };
        let step = (self.high - self.low) / steps;
        let at = ((v - self.low) / step).clamp(0.0, steps);
        let last = f32::from(self.entries) - 1.0;
        let entry = |i: f32| function(self.low + i.min(last) * step);
        match self.between {
            Between::Nearest => entry(at.round()),
            Between::Before => entry(at.floor()),
            Between::Middle => function(self.low + (at.floor().min(last) + 0.5) * step),
            Between::Line => {
                let (before, rest) = (at.floor(), at.fract());
                let first = entry(before);
                first + rest * (entry(before + 1.0) - first)
            }
        }
    }
}

/// A function in the place of SiLU.
#[derive(Clone, Copy, Debug, PartialEq)]
#[allow(missing_docs)] // `name` says what each is
pub enum Activation {
    Silu,
    SiluTwice,
    Sigmoid,
    Relu,
    Identity,
    Tanh,
    Gelu,
    QuickGelu,
    HardSilu,
    Softplus,
    LeakyRelu,
    Elu,
    Mish,
    SiluOfNegative,
    /// v times the sigmoid of so much times v.
    SiluOf(f32),
    /// v times something in the place of the sigmoid.
    Gated(Sigmoid),
    Tabled(Table),
}

impl Activation {
    /// Those that are not SiLU.
    pub const OTHERS: [Activation; 13] = [
        Activation::QuickGelu,
        Activation::Softplus,
        Activation::SiluTwice,
        Activation::Sigmoid,
        Activation::Relu,
        Activation::Identity,
        Activation::Tanh,
        Activation::Gelu,
        Activation::HardSilu,
        Activation::LeakyRelu,
        Activation::Elu,
        Activation::Mish,
        Activation::SiluOfNegative,
    ];

    /// In words.
    pub fn name(self) -> String {
        let name = match self {
            Activation::Tabled(table) => return table.name(),
            Activation::SiluOf(by) => return format!("v times the sigmoid of {by} v"),
            Activation::Gated(sigmoid) => {
                return format!("v times a sigmoid that is {}", sigmoid.name());
            }
            Activation::Silu => "SiLU",
            Activation::SiluTwice => "SiLU twice",
            Activation::Sigmoid => "the sigmoid",
            Activation::Relu => "ReLU",
            Activation::Identity => "no function",
            Activation::Tanh => "tanh",
            Activation::Gelu => "GELU",
            Activation::QuickGelu => "v times the sigmoid of 1.702 v",
            Activation::HardSilu => "hard SiLU",
            Activation::Softplus => "softplus",
            Activation::LeakyRelu => "leaky ReLU (0.01)",
            Activation::Elu => "ELU",
            Activation::Mish => "Mish",
            Activation::SiluOfNegative => "SiLU of the negative",
        };
        name.to_owned()
    }

    /// Of `v`.
    pub fn of(self, math: Math, v: f32) -> f32 {
        let sigmoid = |n: f32, z: f32| (math.div)(n, (math.add)(1.0, (math.exp_neg)(z)));
        match self {
            Activation::Silu => sigmoid(v, v),
            Activation::SiluTwice => {
                let once = sigmoid(v, v);
                sigmoid(once, once)
            }
            Activation::Sigmoid => sigmoid(1.0, v),
            Activation::Relu => v.max(0.0),
            Activation::Identity => v,
            Activation::Tanh => f64::from(v).tanh() as f32,
            Activation::Gelu => {
                let v = f64::from(v);
                let inner = 0.7978845608028654 * (v + 0.044715 * v * v * v);
                (0.5 * v * (1.0 + inner.tanh())) as f32
            }
            Activation::Tabled(table) => table.of(|v| sigmoid(v, v), |v| v, v),
            Activation::Gated(other) => (math.mul)(v, other.of(math, v)),
            Activation::QuickGelu => sigmoid(v, 1.702 * v),
            Activation::SiluOf(by) => sigmoid(v, by * v),
            Activation::Softplus => (math.softplus)(v),
            Activation::LeakyRelu => v.max(0.01 * v),
            Activation::Elu => v.max(0.0) + v.min(0.0).exp_m1(),
            Activation::Mish => v * (math.softplus)(v).tanh(),
            Activation::SiluOfNegative => sigmoid(-v, -v),
            Activation::HardSilu => v * ((v + 3.0).clamp(0.0, 6.0) / 6.0),
        }
    }
}

/// What makes δ of dt.
#[derive(Clone, Copy, Debug, PartialEq)]
#[allow(missing_docs)] // `name` says what each is
pub enum Delta {
    Softplus,
    SoftplusTwice,
    Exp,
    Relu,
    Identity,
    Sigmoid,
    Magnitude,
    BaseTwo,
    Tabled(Table),
    /// log(1 + exp) with every result in a type.
    Narrowed(Narrow),
    /// The logarithm of 1 + exp, of another logarithm or another exp.
    LogOf(Log, Exp),
    /// softplus, and from here on v itself.
    IdentityFrom(f32),
    /// softplus, and below this exp.
    ExpBelow(f32),
    /// The larger of v and 0, and `ln 2 · 2^−|v|`.
    ReluAndPower,
    /// `(v + √(v² + b))/2`.
    SquarePlus(f32),
}

impl Delta {
    /// Those that are not softplus.
    pub const OTHERS: [Delta; 7] = [
        Delta::BaseTwo,
        Delta::SoftplusTwice,
        Delta::Exp,
        Delta::Relu,
        Delta::Identity,
        Delta::Sigmoid,
        Delta::Magnitude,
    ];

    /// What stands for softplus, or for a part of it, in hardware and fast kernels.
    pub fn approximations() -> Vec<Self> {
        let exps = Exp::others().into_iter();
        let mut all: Vec<Self> = exps.map(|exp| Delta::LogOf(Log::Exact, exp)).collect();
        all.extend(
            Log::ALL[1..]
                .iter()
                .map(|log| Delta::LogOf(*log, Exp::Exact)),
        );
        let lines = Delta::LogOf(Log::LinearMantissa, Exp::LinearMantissa);
        all.extend([lines, Delta::ReluAndPower]);
        all.extend([0.0, 1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 8.0, 10.0].map(Delta::IdentityFrom));
        all.extend([0.0, -1.0, -2.0, -3.0, -4.0, -5.0, -8.0].map(Delta::ExpBelow));
        all.extend([1.0, 2.0, 4.0, 1.921_812].map(Delta::SquarePlus));
        all
    }

    /// In words.
    pub fn name(self) -> String {
        let name = match self {
            Delta::Tabled(table) => return table.name(),
            Delta::Narrowed(narrow) => return format!("log(1 + exp) in {}", narrow.name()),
            Delta::LogOf(log, exp) => {
                return format!("{}, y = {}", log.name(), exp.name());
            }
            Delta::IdentityFrom(from) => return format!("softplus, and v itself from {from} on"),
            Delta::ExpBelow(below) => return format!("softplus, and exp below {below}"),
            Delta::SquarePlus(b) => return format!("(v + √(v² + {b}))/2"),
            Delta::ReluAndPower => "ReLU and ln 2·2^−|v|",
            Delta::Softplus => "softplus",
            Delta::SoftplusTwice => "softplus twice",
            Delta::Exp => "exp",
            Delta::Relu => "ReLU",
            Delta::Identity => "no function",
            Delta::Sigmoid => "the sigmoid",
            Delta::Magnitude => "the magnitude",
            Delta::BaseTwo => "log2(1 + 2^v)",
        };
        name.to_owned()
    }

    /// Of `v`.
    pub(super) fn of(self, m: Math, v: f32) -> f32 {
        match self {
            Delta::Softplus => (m.softplus)(v),
            Delta::SoftplusTwice => (m.softplus)((m.softplus)(v)),
            Delta::Exp => (m.exp)(v),
            Delta::Relu => v.max(0.0),
            Delta::Identity => v,
            Delta::Sigmoid => Activation::Sigmoid.of(m, v),
            Delta::Magnitude => v.abs(),
            Delta::BaseTwo => (1.0 + v.exp2()).log2(),
            Delta::Tabled(table) => table.of(m.softplus, |v| v, v),
            Delta::LogOf(log, exp) => log.of(exp.of(m, v)),
            Delta::IdentityFrom(from) if v >= from => v,
            Delta::ExpBelow(below) if v < below => (m.exp)(v),
            Delta::IdentityFrom(_) | Delta::ExpBelow(_) => (m.softplus)(v),
            Delta::ReluAndPower => v.max(0.0) + std::f32::consts::LN_2 * (-v.abs()).exp2(),
            Delta::SquarePlus(b) => 0.5 * (v + (v * v + b).sqrt()),
            Delta::Narrowed(narrow) => {
                narrow.of(narrow.of(1.0 + narrow.of(narrow.of(v).exp())).ln())
            }
        }
    }
}
