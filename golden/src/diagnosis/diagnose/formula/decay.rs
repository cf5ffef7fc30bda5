//! What is between the states of a scan: decays, sums over states.

use super::{Math, Narrow, Table};

/// What makes a decay of α·δ.
#[derive(Clone, Copy, Debug, PartialEq)]
#[allow(missing_docs)] // `name` says what each is
pub enum Decay {
    Exp,
    Linear,
    LinearEnding,
    Quadratic,
    Backward,
    Bilinear,
    Tabled(Table),
}

impl Decay {
    /// Those that are not exp, and no table.
    pub const OTHERS: [Decay; 5] = [
        Decay::Linear,
        Decay::LinearEnding,
        Decay::Quadratic,
        Decay::Backward,
        Decay::Bilinear,
    ];

    /// In words.
    pub fn name(self) -> String {
        let name = match self {
            Decay::Tabled(table) => return table.name(),
            Decay::Exp => "exp(−α·δ)",
            Decay::Linear => "1 − α·δ",
            Decay::LinearEnding => "1 − α·δ, and no less than zero",
            Decay::Quadratic => "1 − α·δ + (α·δ)²/2",
            Decay::Backward => "1/(1 + α·δ)",
            Decay::Bilinear => "(1 − α·δ/2)/(1 + α·δ/2)",
        };
        name.to_owned()
    }

    #[inline]
    pub(super) fn of(self, m: Math, exponent: f32) -> f32 {
        match self {
            Decay::Exp => (m.exp_neg)(exponent),
            Decay::Linear => 1.0 - exponent,
            Decay::LinearEnding => (1.0 - exponent).max(0.0),
            Decay::Quadratic => 1.0 - exponent + 0.5 * exponent * exponent,
            Decay::Backward => 1.0 / (1.0 + exponent),
            Decay::Bilinear => (1.0 - 0.5 * exponent) / (1.0 + 0.5 * exponent),
            Decay::Tabled(table) => table.of(m.exp, -exponent),
        }
    }
}

/// A sum that passes through a type after each term.
#[derive(Clone, Copy, Debug)]
pub struct Running {
    /// The type.
    pub narrow: Narrow,
    /// Whether products pass through it too.
    pub products: bool,
    /// Whether the sum begins with D·u, which is added after it otherwise.
    pub skip: bool,
}

impl Running {
    pub(super) fn add(self, sum: f32, (a, b): (f32, f32)) -> f32 {
        self.narrow.of(match self.products {
            true => sum + self.narrow.of(a * b),
            false => a.mul_add(b, sum),
        })
    }
}
