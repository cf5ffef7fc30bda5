//! A function's unit: its table or coefficients, and Y of X.

use super::{Beyond, Form, Function, FunctionUnitRule, Inputs, Interpolation};

/// Guard bits of polynomials.
const GUARD: u32 = 8;

/// A unit with its table.
#[derive(Clone, Debug)]
pub struct FunctionUnit {
    function: Function,
    rule: FunctionUnitRule,
    /// X at the start of the range, and one behind its end.
    low: i64,
    high: i64,
    /// Bits of a segment.
    width: u32,
    /// Entries, or coefficients segment by segment, constant first.
    words: Vec<i64>,
}

impl FunctionUnit {
    /// Makes the table of a rule that [`FunctionUnitRule::validate`] accepts.
    pub fn new(function: Function, rule: FunctionUnitRule) -> Self {
        let unit = f64::from(1u32 << rule.input_fraction);
        let (low, high) = (
            i64::from(rule.low) << rule.input_fraction,
            i64::from(rule.high) << rule.input_fraction,
        );
        let width = |segments: u32| (rule.span() / u64::from(segments)).trailing_zeros();
        let out = f64::from(1u32 << rule.output_fraction);
        let word = |v: f64| (v * out).round_ties_even() as i64;
        let (width, words) = match rule.form {
            Form::Table {
                entries,
                interpolation,
            } => {
                let width = width(entries);
                let at = |i: u32, middle: f64| {
                    let x = low as f64 + (f64::from(i) + middle) * 2f64.powi(width as i32);
                    word(value(function, x / unit))
                };
                let words = match interpolation {
                    Interpolation::Nearest => (0..entries).map(|i| at(i, 0.5)).collect(),
                    Interpolation::Linear => (0..=entries).map(|i| at(i, 0.0)).collect(),
                };
                (width, words)
            }
            Form::Polynomial { segments, degree } => {
                let width = width(segments);
                let length = 2f64.powi(width as i32) / unit;
                let words = (0..segments).flat_map(|i| {
                    let start = f64::from(rule.low) + f64::from(i) * length;
                    let fit = chebyshev(degree, |f| value(function, start + f * length));
                    fit.into_iter().map(|c| word(c * f64::from(1u32 << GUARD)))
                });
                (width, words.collect())
            }
            Form::Shift => (0, Vec::new()),
        };
        Self {
            function,
            rule,
            low,
            high,
            width,
            words,
        }
    }

    /// Its rule.
    pub fn rule(&self) -> &FunctionUnitRule {
        &self.rule
    }

    /// Table or coefficients, in units of 2^-output_fraction (polynomials: 2^-8 of that).
    pub fn words(&self) -> &[i64] {
        &self.words
    }

    /// Bits of a word: of the largest magnitude, and of a sign where one is negative.
    pub fn word_bits(&self) -> u32 {
        let magnitudes = self.words.iter().map(|w| w.unsigned_abs());
        let widest = magnitudes.max().unwrap_or(0);
        64 - widest.leading_zeros() + u32::from(self.words.iter().any(|w| *w < 0))
    }

    /// An integer made to fit X.
    #[inline(always)]
    pub fn fit(&self, x: i128) -> i64 {
        let top = 1i128 << (self.rule.input_bits - 1);
        x.clamp(-top, top - 1) as i64
    }

    /// The X nearest to a real number, ties to even.
    #[inline(always)]
    pub fn input(&self, v: f64) -> i64 {
        let scaled = v * f64::from(1u32 << self.rule.input_fraction);
        // i64 holds every X, and what it does not hold saturates.
        self.fit((scaled.round_ties_even() as i64).into())
    }

    /// Y of X.
    #[inline(always)]
    pub fn eval(&self, x: i64, seen: &mut Inputs) -> i64 {
        let inside = match self.rule.form {
            // Every input is the shifter's.
            Form::Shift => true,
            _ => (self.low..self.high).contains(&x),
        };
        seen.add(x, !inside);
        match inside {
            true => self.inside(x),
            false => self.outside(x),
        }
    }

    /// The function of a real number, by way of X and Y.
    #[inline(always)]
    pub fn real(&self, v: f64, seen: &mut Inputs) -> f64 {
        self.eval(self.input(v), seen) as f64 / f64::from(1u32 << self.rule.output_fraction)
    }

    fn outside(&self, x: i64) -> i64 {
        if self.rule.beyond == Beyond::Clamp {
            return self.inside(x.clamp(self.low, self.high - 1));
        }
        match (x < self.low, self.function) {
            (true, _) => 0,
            (false, Function::Exp) => 1 << self.rule.output_fraction,
            (false, _) => self.on_output_grid(x),
        }
    }

    fn on_output_grid(&self, x: i64) -> i64 {
        let (from, to) = (self.rule.input_fraction, self.rule.output_fraction);
        match to >= from {
            true => x << (to - from),
            false => rounded(x, u32::from(from - to)),
        }
    }

    #[inline(always)]
    fn inside(&self, x: i64) -> i64 {
        let at = x - self.low;
        let (segment, f) = ((at >> self.width) as usize, at & ((1 << self.width) - 1));
        match self.rule.form {
            Form::Table {
                interpolation: Interpolation::Nearest,
                ..
            } => self.words[segment],
            Form::Table { .. } => {
                let (y0, y1) = (self.words[segment], self.words[segment + 1]);
                y0 + rounded((y1 - y0) * f, self.width)
            }
            Form::Polynomial { degree, .. } => {
                let terms = usize::from(degree) + 1;
                let c = &self.words[segment * terms..][..terms];
                let horner = c
                    .iter()
                    .rev()
                    .copied()
                    .reduce(|acc, c| c + rounded(acc * f, self.width));
                rounded(horner.expect("at least two terms"), GUARD)
            }
            Form::Shift => {
                // exp is asked for x ≤ 0; a positive X is taken as 0.
                let x = x.min(0);
                let t = x + (x >> 1) - (x >> 4);
                let (fraction, out) = (self.rule.input_fraction, self.rule.output_fraction);
                let whole = t >> fraction;
                let mantissa = (1i64 << fraction) + (t - (whole << fraction));
                // At most 24 + 24 bits; a shift beyond them leaves nothing.
                (mantissa << out >> fraction) >> (-whole).min(63)
            }
        }
    }
}

/// `v / 2^shift`, ties up.
#[inline(always)]
fn rounded(v: i64, shift: u32) -> i64 {
    match shift {
        0 => v,
        _ => (v + (1 << (shift - 1))) >> shift,
    }
}

/// The function in f64.
fn value(function: Function, x: f64) -> f64 {
    match function {
        Function::Exp => libm::exp(x),
        Function::Softplus => libm::log1p(libm::exp(x)),
        Function::Silu => x / (1.0 + libm::exp(-x)),
    }
}

/// Coefficients, constant first, of the polynomial through the function at Chebyshev's nodes of
/// [0, 1].
fn chebyshev(degree: u8, f: impl Fn(f64) -> f64) -> Vec<f64> {
    // cos of odd multiples of π/2(degree+1).
    const NODES: [&[f64]; 3] = [
        &[
            -std::f64::consts::FRAC_1_SQRT_2,
            std::f64::consts::FRAC_1_SQRT_2,
        ],
        &[-0.866_025_403_784_438_6, 0.0, 0.866_025_403_784_438_6],
        &[
            -0.923_879_532_511_286_7,
            -0.382_683_432_365_089_8,
            0.382_683_432_365_089_8,
            0.923_879_532_511_286_7,
        ],
    ];
    let nodes: Vec<f64> = NODES[usize::from(degree) - 1]
        .iter()
        .map(|c| 0.5 + 0.5 * c)
        .collect();
    // Newton's divided differences, then expanded into powers.
    let mut differences: Vec<f64> = nodes.iter().map(|x| f(*x)).collect();
    for level in 1..nodes.len() {
        for i in (level..nodes.len()).rev() {
            differences[i] = (differences[i] - differences[i - 1]) / (nodes[i] - nodes[i - level]);
        }
    }
    let mut powers = vec![0.0; nodes.len()];
    for (node, difference) in nodes.iter().zip(&differences).rev() {
        // powers ← powers · (x − node) + difference
        for i in (0..powers.len()).rev() {
            let below = if i == 0 { 0.0 } else { powers[i - 1] };
            powers[i] = below - node * powers[i];
        }
        powers[0] += difference;
    }
    powers
}

#[cfg(test)]
mod tests {
    use super::super::tests::TABLE;
    use super::*;

    fn worst(function: Function, rule: FunctionUnitRule) -> f64 {
        rule.validate(function).unwrap();
        let unit = FunctionUnit::new(function, rule);
        let top = if function == Function::Exp {
            0
        } else {
            1 << 15
        };
        let mut seen = Inputs::default();
        (-(1i64 << 15)..top)
            .map(|x| {
                let y = unit.eval(x, &mut seen) as f64 / f64::from(1u32 << rule.output_fraction);
                (y - value(function, x as f64 / 2048.0)).abs()
            })
            .fold(0.0, f64::max)
    }

    /// What the units are compared with below: e, ln 2, ln(1 + e) and 1/(1 + 1/e), from tables.
    #[test]
    fn functions_have_their_known_values() {
        for (function, x, y) in [
            (Function::Exp, 0.0, 1.0),
            (Function::Exp, 1.0, std::f64::consts::E),
            (Function::Softplus, 0.0, std::f64::consts::LN_2),
            (Function::Softplus, 1.0, 1.313_261_687_518_222_8),
            (Function::Silu, 0.0, 0.0),
            (Function::Silu, 1.0, 0.731_058_578_630_004_9),
            (Function::Silu, -1.0, -0.268_941_421_369_995_1),
        ] {
            assert!((value(function, x) - y).abs() < 1e-15, "{function:?} {x}");
        }
    }

    /// Every input of every form, against the function: the error each form can have, from its
    /// segment h, the function's derivatives (|f''| ≤ 1 for all three) and the output's last bit.
    #[test]
    fn forms_are_as_near_as_they_can_be() {
        let h: f64 = 32.0 / 256.0;
        let last = 2f64.powi(-16);
        for function in [Function::Exp, Function::Softplus, Function::Silu] {
            let linear = worst(function, TABLE);
            assert!(linear <= h * h / 8.0 + 2.0 * last, "{function:?} {linear}");
            let nearest = FunctionUnitRule {
                form: Form::Table {
                    entries: 256,
                    interpolation: Interpolation::Nearest,
                },
                ..TABLE
            };
            let nearest = worst(function, nearest);
            assert!(
                nearest <= 1.2 * h / 2.0 + last && nearest > linear,
                "{function:?} {nearest}"
            );
            for (degree, bound) in [
                (1, 1.1 * h * h / 16.0),
                (2, h.powi(3) / 32.0),
                (3, h.powi(4) / 50.0),
            ] {
                let form = Form::Polynomial {
                    segments: 256,
                    degree,
                };
                let error = worst(function, FunctionUnitRule { form, ..TABLE });
                assert!(
                    error <= bound + 2.0 * last,
                    "{function:?} degree {degree}: {error}"
                );
            }
        }
        // 1 + f for 2^f is 6.1 % high at most, and 1.4375 is 0.36 % below log2 e: of e^-1 and so on.
        let shift = worst(
            Function::Exp,
            FunctionUnitRule {
                form: Form::Shift,
                ..TABLE
            },
        );
        assert!((0.02..0.065).contains(&shift), "{shift}");
    }

    #[test]
    fn beyond_the_range() {
        let rule = FunctionUnitRule {
            low: -4,
            high: 4,
            form: Form::Table {
                entries: 64,
                interpolation: Interpolation::Linear,
            },
            ..TABLE
        };
        let x = 2048 * 5;
        let mut seen = Inputs::default();
        for (function, below, above) in [
            (Function::Softplus, 0, 5 << 16),
            (Function::Silu, 0, 5 << 16),
            (Function::Exp, 0, 1 << 16),
        ] {
            rule.validate(function).unwrap();
            let unit = FunctionUnit::new(function, rule);
            assert_eq!(
                (unit.eval(-x, &mut seen), unit.eval(x, &mut seen)),
                (below, above)
            );
        }
        assert_eq!(
            seen,
            Inputs {
                count: 6,
                low: -x,
                high: x,
                beyond: 6
            }
        );
        // A coarser output: 2^-8 of 2^-11, rounded, ties up.
        let coarse = FunctionUnit::new(
            Function::Silu,
            FunctionUnitRule {
                output_fraction: 8,
                ..rule
            },
        );
        for (x, y) in [(x + 3, 1280), (x + 4, 1281), (x + 8, 1281)] {
            assert_eq!(coarse.eval(x, &mut seen), y);
        }
        let clamp = FunctionUnitRule {
            beyond: Beyond::Clamp,
            ..rule
        };
        let error = clamp.validate(Function::Silu).unwrap_err().to_string();
        assert!(
            error.contains("range: expected a range that covers the input, [-16, 16]"),
            "{error}"
        );
        FunctionUnitRule {
            beyond: Beyond::Clamp,
            ..TABLE
        }
        .validate(Function::Silu)
        .unwrap();
    }
}
