//! The sorts of edits.

/// What sort of edit it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs)] // `name` says what each is
pub enum Kind {
    Constant,
    Factor,
    FlippedBit,
    Format,
    Function,
    History,
    LeftOut,
    Neighbour,
    NotReset,
    Order,
    Overflow,
    PartMissing,
    Quotient,
    Rounding,
    Shifted,
    Sign,
    StuckBit,
    Table,
    Transposed,
    Twice,
    Two,
    Weights,
    Width,
    ZeroPoint,
}

impl Kind {
    /// As findings call it.
    pub fn name(self) -> &'static str {
        match self {
            Kind::Constant => "constant",
            Kind::Factor => "factor",
            Kind::FlippedBit => "flipped-bit",
            Kind::Format => "format",
            Kind::Function => "function",
            Kind::History => "history",
            Kind::LeftOut => "left-out",
            Kind::Neighbour => "neighbour",
            Kind::NotReset => "not-reset",
            Kind::Order => "order",
            Kind::Overflow => "overflow",
            Kind::PartMissing => "part-missing",
            Kind::Quotient => "quotient",
            Kind::Rounding => "rounding",
            Kind::Shifted => "shifted",
            Kind::Sign => "sign",
            Kind::StuckBit => "stuck-bit",
            Kind::Table => "table",
            Kind::Transposed => "transposed",
            Kind::Twice => "twice",
            Kind::Two => "two-edits",
            Kind::Weights => "weights",
            Kind::Width => "width",
            Kind::ZeroPoint => "zero-point",
        }
    }

    /// Whether it is a way to compute rather than a mistake: in every block it is how a device is.
    pub fn is_arithmetic(self) -> bool {
        matches!(
            self,
            Kind::Format
                | Kind::Overflow
                | Kind::Quotient
                | Kind::Rounding
                | Kind::Table
                | Kind::Width
        )
    }
}
