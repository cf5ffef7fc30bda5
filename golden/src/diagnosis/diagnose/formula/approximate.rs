//! What hardware and fast kernels have in the place of exp, the sigmoid and the logarithm.

use super::{Math, Table};

/// In the place of exp.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Exp {
    /// exp itself.
    Exact,
    /// `2^i · (1 + f)`: the mantissa is a straight line.
    LinearMantissa,
    /// `2^i · (1 + (2f + f²)/3)`: the mantissa is a parabola through both ends.
    QuadraticMantissa,
    /// The bits of a float as a straight line, with this constant taken away from them.
    FloatBits(u32),
    /// The sum of so many terms about zero, and no less than zero.
    Series(u8),
    /// `(1 + x/2^n)^(2^n)`, and no less than zero.
    Power(u8),
    /// The power of two with so many bits behind its point.
    Fraction(u8),
    /// Of 2, with another constant for log₂ e.
    Log2(f32),
    /// Of no less than this, and no more than its negative.
    Within(f32),
}

impl Exp {
    /// Those that are not exp.
    pub fn others() -> Vec<Self> {
        let mut all = vec![Exp::LinearMantissa, Exp::QuadraticMantissa];
        all.extend([0, 366_393, 298_765, 486_411, 60_801].map(Exp::FloatBits));
        all.extend((2..=6).map(Exp::Series));
        all.extend((2..=10).map(Exp::Power));
        all.extend((0..=10).map(Exp::Fraction));
        all.extend([1.5, 1.4375, 1.4375 + 1.0 / 256.0, 1.44, 1.4, 1.0].map(Exp::Log2));
        all.extend([-4.0, -8.0, -10.0, -16.0, -20.0].map(Exp::Within));
        all
    }

    /// In words.
    pub fn name(self) -> String {
        match self {
            Exp::Exact => "exp".to_owned(),
            Exp::LinearMantissa => "2^i·(1 + f), a straight line for the mantissa".to_owned(),
            Exp::QuadraticMantissa => "2^i with a parabola for the mantissa".to_owned(),
            Exp::FloatBits(off) => {
                format!("a float's bits as a straight line, less {off} of them")
            }
            Exp::Series(terms) => format!("the first {terms} terms of its series"),
            Exp::Power(n) => format!("(1 + x/{0})^{0}", 1u32 << n),
            Exp::Fraction(bits) => {
                format!("a power of two with {bits} bits behind the exponent's point")
            }
            Exp::Log2(by) => format!("a power of two, with {by} for log₂ e"),
            Exp::Within(low) => format!("exp of what is kept to ±{}", -low),
        }
    }

    /// Of `x`.
    pub fn of(self, m: Math, x: f32) -> f32 {
        use std::f32::consts::LOG2_E;
        let power = x * LOG2_E;
        let mantissa = |of: fn(f32) -> f32| (power.floor()).exp2() * of(power - power.floor());
        match self {
            Exp::Exact => (m.exp)(x),
            Exp::LinearMantissa => mantissa(|f| 1.0 + f),
            Exp::QuadraticMantissa => mantissa(|f| 1.0 + (2.0 * f + f * f) / 3.0),
            Exp::FloatBits(off) => {
                let bits = (power + 127.0) * (1 << 23) as f32 - off as f32;
                f32::from_bits(bits.clamp(0.0, 0x7f7f_ffff as f32) as u32)
            }
            Exp::Series(terms) => {
                let term = |i: u8| (1..=i).map(|n| x / f32::from(n)).product::<f32>();
                (0..terms).map(term).sum::<f32>().max(0.0)
            }
            Exp::Power(n) => {
                let first = (1.0 + x / f32::from(1u16 << n)).max(0.0);
                (0..n).fold(first, |v, _| v * v)
            }
            Exp::Fraction(bits) => {
                let parts = f32::from(1u16 << bits);
                ((power * parts).round() / parts).exp2()
            }
            Exp::Log2(by) => (x * by).exp2(),
            Exp::Within(low) => (m.exp)(x.clamp(low, -low)),
        }
    }
}

/// In the place of the sigmoid.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Sigmoid {
    /// `1/(1 + exp(−x))`, of another exp.
    Of(Exp),
    /// A straight line of this slope through ½, from 0 to 1.
    Line(f32),
    /// Four straight lines of powers of two.
    Plan,
    /// `½ + ½·x/(1 + |x|)`.
    Soft,
    /// Parabolas on either side of zero that end at ±4.
    Parabola,
    /// A step at zero.
    Step,
    /// A table.
    Tabled(Table),
}

impl Sigmoid {
    /// Those that are not the sigmoid.
    pub fn others() -> Vec<Self> {
        let lines = [1.0 / 6.0, 0.2, 0.25, 0.125, 0.5].map(Sigmoid::Line);
        let rest = [
            Sigmoid::Plan,
            Sigmoid::Soft,
            Sigmoid::Parabola,
            Sigmoid::Step,
        ];
        let exps = Exp::others().into_iter().map(Sigmoid::Of);
        let ranges = [(-4.0, 4.0), (-6.0, 6.0), (-8.0, 8.0), (-16.0, 16.0)];
        let tables = Table::all(&ranges).into_iter().map(Sigmoid::Tabled);
        lines
            .into_iter()
            .chain(rest)
            .chain(exps)
            .chain(tables)
            .collect()
    }

    /// In words.
    pub fn name(self) -> String {
        match self {
            Sigmoid::Of(exp) => format!("1/(1 + exp(−x)), where exp is {}", exp.name()),
            Sigmoid::Line(slope) => format!("a straight line of slope {slope:.4} from 0 to 1"),
            Sigmoid::Plan => "four straight lines (PLAN)".to_owned(),
            Sigmoid::Soft => "½ + ½·x/(1 + |x|)".to_owned(),
            Sigmoid::Parabola => "two parabolas that end at ±4".to_owned(),
            Sigmoid::Step => "a step at zero".to_owned(),
            Sigmoid::Tabled(table) => table.name(),
        }
    }

    /// Of `x`.
    pub fn of(self, m: Math, x: f32) -> f32 {
        let upper = |of: fn(f32) -> f32| match x < 0.0 {
            true => 1.0 - of(-x),
            false => of(x),
        };
        match self {
            Sigmoid::Of(exp) => 1.0 / (1.0 + exp.of(m, -x)),
            Sigmoid::Line(slope) => (0.5 + slope * x).clamp(0.0, 1.0),
            Sigmoid::Plan => upper(|x| match x {
                5.0.. => 1.0,
                2.375.. => 0.03125 * x + 0.84375,
                1.0.. => 0.125 * x + 0.625,
                _ => 0.25 * x + 0.5,
            }),
            Sigmoid::Soft => 0.5 + 0.5 * x / (1.0 + x.abs()),
            Sigmoid::Parabola => upper(|x| {
                let rest = (1.0 - 0.25 * x).max(0.0);
                1.0 - 0.5 * rest * rest
            }),
            Sigmoid::Step => f32::from(u8::from(x >= 0.0)),
            Sigmoid::Tabled(table) => table.of(|v| 1.0 / (1.0 + (m.exp_neg)(v)), |_| 1.0, x),
        }
    }
}

/// In the place of the logarithm of 1 + y.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Log {
    /// The logarithm.
    Exact,
    /// y.
    First,
    /// y − y²/2.
    Second,
    /// Of the exponent and, as a straight line, the mantissa.
    LinearMantissa,
    /// The logarithm to the base 2.
    BaseTwo,
}

impl Log {
    /// Every one.
    pub const ALL: [Log; 5] = [
        Log::Exact,
        Log::First,
        Log::Second,
        Log::LinearMantissa,
        Log::BaseTwo,
    ];

    /// In words.
    pub fn name(self) -> &'static str {
        match self {
            Log::Exact => "the logarithm of 1 + y",
            Log::First => "y",
            Log::Second => "y − y²/2",
            Log::LinearMantissa => "the logarithm with a straight line for the mantissa",
            Log::BaseTwo => "the logarithm to the base 2 of 1 + y",
        }
    }

    /// Of 1 + `y`.
    pub fn of(self, y: f32) -> f32 {
        match self {
            Log::Exact => y.ln_1p(),
            Log::First => y,
            Log::Second => y - 0.5 * y * y,
            Log::LinearMantissa => {
                let power = (1.0 + y).log2().floor();
                (power + (1.0 + y) / power.exp2() - 1.0) * std::f32::consts::LN_2
            }
            Log::BaseTwo => (1.0 + y).log2(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use scalescope_sim::arith::real::RealRules;

    /// Each is near what it stands for, and none is it; tables of four entries end far from the limit.
    #[test]
    fn approximations_are_near() {
        let m = Math::of(RealRules::CorrectlyRounded);
        let at: Vec<f32> = (-12..=12).map(|i| i as f32 * 0.05).collect();
        for exp in Exp::others() {
            let off = at.iter().map(|x| (exp.of(m, *x) / x.exp() - 1.0).abs());
            let off = off.fold(0.0, f32::max);
            // A whole exponent is off by up to √2.
            let most = if exp == Exp::Fraction(0) { 0.42 } else { 0.28 };
            let far = matches!(exp, Exp::Within(_));
            assert!(off < most, "{}: {off}", exp.name());
            assert!(far || off > 1e-5, "{}: {off}", exp.name());
        }
        for sigmoid in Sigmoid::others() {
            let exact = |x: f32| 1.0 / (1.0 + (-x).exp());
            let off = at.iter().map(|x| (sigmoid.of(m, *x) - exact(*x)).abs());
            let off = off.fold(0.0, f32::max);
            let name = sigmoid.name();
            assert!(off < 0.51, "{name}: {off}");
            // Polynomials leave exp far from zero.
            let polynomial = matches!(sigmoid, Sigmoid::Of(Exp::Series(_) | Exp::Power(_)));
            assert!(polynomial || sigmoid.of(m, 30.0) > 0.85, "{name}");
        }
        for log in Log::ALL {
            let off = (log.of(0.1) - 0.1f32.ln_1p()).abs();
            assert!(off < 0.05, "{}: {off}", log.name());
        }
    }
}
