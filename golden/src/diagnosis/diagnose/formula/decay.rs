//! What is between the states of a scan: decays, sums over states.

use super::{Exp, Math, Narrow, Table};
use crate::diagnosis::diagnose::kind::Kind;

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
    /// Another exp.
    Of(Exp),
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
            Decay::Of(exp) => return format!("{} of −α·δ", exp.name()),
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
            // An exp of what is below zero has no limit above.
            Decay::Tabled(table) => table.of(m.exp, m.exp, -exponent),
            Decay::Of(exp) => exp.of(m, -exponent),
        }
    }
}

/// Something that goes wrong with the state at some tokens alone.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs)] // `words` says what each is
pub enum Hiccup {
    NoDecay,
    DecayTwice,
    NoInput,
    InputTwice,
    Frozen,
    Late,
    NoSkip,
    Empty,
    Zero,
}

impl Hiccup {
    /// Every one.
    pub const ALL: [Hiccup; 9] = [
        Hiccup::NoDecay,
        Hiccup::DecayTwice,
        Hiccup::NoInput,
        Hiccup::InputTwice,
        Hiccup::Frozen,
        Hiccup::Late,
        Hiccup::NoSkip,
        Hiccup::Empty,
        Hiccup::Zero,
    ];

    /// In words, after the tokens.
    pub fn words(self) -> &'static str {
        match self {
            Hiccup::NoDecay => "the state does not decay",
            Hiccup::DecayTwice => "the state decays twice",
            Hiccup::NoInput => "B·δ·u does not enter the state",
            Hiccup::InputTwice => "B·δ·u enters the state twice",
            Hiccup::Frozen => "the state stays as it was",
            Hiccup::Late => "the output reads the state before the token",
            Hiccup::NoSkip => "the skip term D·u is missing",
            Hiccup::Empty => "the state is empty, for this output alone",
            Hiccup::Zero => "the state is empty, and so is the token's input",
        }
    }

    /// The sort of edit.
    pub fn kind(self) -> Kind {
        match self {
            Hiccup::NoDecay | Hiccup::NoInput | Hiccup::NoSkip => Kind::LeftOut,
            Hiccup::DecayTwice | Hiccup::InputTwice => Kind::Twice,
            Hiccup::Frozen | Hiccup::Empty | Hiccup::Zero => Kind::History,
            Hiccup::Late => Kind::Order,
        }
    }

    /// What it is about.
    pub fn site(self) -> &'static str {
        match self {
            Hiccup::NoDecay | Hiccup::DecayTwice => "decay",
            Hiccup::NoInput | Hiccup::InputTwice => "input_delta",
            Hiccup::NoSkip => "D",
            Hiccup::Frozen | Hiccup::Late | Hiccup::Empty | Hiccup::Zero => "state",
        }
    }
}

/// What becomes of the state that a chunk of tokens hands on to the next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs)] // `words` says what each is
pub enum Carried {
    Undecayed,
    ReadUndecayed,
    OneDecay,
    OwnAlone,
}

impl Carried {
    /// Every one.
    pub const ALL: [Carried; 4] = [
        Carried::Undecayed,
        Carried::ReadUndecayed,
        Carried::OneDecay,
        Carried::OwnAlone,
    ];

    /// The sort of edit and what it is about.
    pub fn kind(self) -> (Kind, &'static str) {
        match self {
            Carried::Undecayed | Carried::ReadUndecayed | Carried::OneDecay => {
                (Kind::LeftOut, "decay")
            }
            Carried::OwnAlone => (Kind::History, "state"),
        }
    }

    /// In words, after the tokens.
    pub fn words(self) -> &'static str {
        match self {
            Carried::Undecayed => {
                "make a chunk, and the state that is handed on does not decay in the next one"
            }
            Carried::ReadUndecayed => {
                "make a chunk, and what outputs read of the state that was handed on does not decay"
            }
            Carried::OneDecay => {
                "make a chunk, and of the state that was handed on outputs read what one decay leaves"
            }
            Carried::OwnAlone => {
                "make a chunk, which hands on what it began itself, and not what came into it"
            }
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
