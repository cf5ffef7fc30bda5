//! Cases of the linear operation: whole products, and accumulators chosen to hit ties.

use super::group::Group;
use super::linear_int4::Int4Linear;
use super::{Op, OpCase, Output};
use half::f16;
use ndarray::{Array1, Array2, ArrayD};
use scalescope_sim::error::{Result, SimError};
use scalescope_sim::quant::{Acc, Multiplier};

/// What is requantized.
#[derive(Clone, Debug, PartialEq)]
pub enum LinearInput {
    /// The product of codes `x` `[L, I]` and `weight` `[O, I]`.
    Product {
        /// Input codes `[L, I]`.
        x: Array2<i8>,
        /// Weight codes `[O, I]`.
        weight: Array2<i8>,
    },
    /// Accumulators as they are, `[L]`.
    Accumulators(Array1<i32>),
}

/// INT8 product and requantization, in every form that the kernels have.
#[derive(Clone, Debug, PartialEq)]
pub struct Linear {
    /// The case's name.
    pub name: String,
    /// What is requantized.
    pub input: LinearInput,
    /// Input scale over output scale.
    pub a: Multiplier,
    /// Weight scale.
    pub b: Multiplier,
    /// `a ⊗ b` as the one-row kernel was given it.
    pub alpha: Option<Multiplier>,
    /// Row-major form, `[L, O]`, or `[L]` of accumulators.
    pub out_i8: Option<ArrayD<i8>>,
    /// Row-major form, before quantization.
    pub out_f16: Option<ArrayD<f16>>,
    /// Channel-major form, `[O, L]`.
    pub out_i8_channel_major: Option<ArrayD<i8>>,
    /// One-row form of the first row, `[1, O]`, or of every accumulator, `[L]`.
    pub gemv_out_i8: Option<ArrayD<i8>>,
    /// One-row form, before quantization.
    pub gemv_out_f16: Option<ArrayD<f16>>,
}

/// A linear step: what its weight is in.
#[derive(Clone, Debug, PartialEq)]
pub enum LinearCase {
    /// Eight bits.
    Int8(Linear),
    /// Four bits.
    Int4(Int4Linear),
}

impl OpCase for LinearCase {
    const OP: Op = Op::Linear;

    fn parse(group: &mut Group) -> Result<Self> {
        Ok(match Int4Linear::is_in(group) {
            true => Self::Int4(Int4Linear::parse(group)?),
            false => Self::Int8(Linear::parse(group)?),
        })
    }

    fn name(&self) -> &str {
        match self {
            Self::Int8(case) => &case.name,
            Self::Int4(case) => &case.name,
        }
    }

    fn expected(&self) -> Vec<Output<'_>> {
        match self {
            Self::Int8(case) => case.expected(),
            Self::Int4(case) => case.expected(),
        }
    }
}

impl Linear {
    fn parse(group: &mut Group) -> Result<Self> {
        let accumulators = group.has("acc");
        let (rows, columns, one): (&[_], &[_], &[_]) = if accumulators {
            (&["L"], &["L"], &["L"])
        } else {
            (&["L", "O"], &["O", "L"], &["one", "O"])
        };
        let input = if accumulators {
            LinearInput::Accumulators(accumulators_of(group)?)
        } else {
            let x: Array2<i8> = group.array("x", &["L", "I"])?;
            if x.ncols() > Acc::MAX_LENGTH {
                let expected = format!("dot products of at most {}", Acc::MAX_LENGTH);
                return Err(SimError::value(group.key("x"), expected, x.ncols()));
            }
            LinearInput::Product {
                x,
                weight: group.array("weight", &["O", "I"])?,
            }
        };
        let alpha = group.has("alpha");
        Ok(Self {
            name: group.name(),
            input,
            a: group.multiplier("a")?,
            b: group.multiplier("b")?,
            alpha: alpha.then(|| group.multiplier("alpha")).transpose()?,
            out_i8: group.optional("out_i8", rows)?,
            out_f16: group.optional("out_f16", rows)?,
            out_i8_channel_major: group.optional("out_i8_channel_major", columns)?,
            gemv_out_i8: group.optional("gemv_out_i8", one)?,
            gemv_out_f16: group.optional("gemv_out_f16", one)?,
        })
    }

    fn expected(&self) -> Vec<Output<'_>> {
        let outputs = [
            Output::of("out_i8", &self.out_i8),
            Output::of("out_f16", &self.out_f16),
            Output::of("out_i8_channel_major", &self.out_i8_channel_major),
            Output::of("gemv_out_i8", &self.gemv_out_i8),
            Output::of("gemv_out_f16", &self.gemv_out_f16),
        ];
        outputs.into_iter().flatten().collect()
    }
}

/// Accumulators, stored as any integers that i32 can hold.
fn accumulators_of(group: &mut Group) -> Result<Array1<i32>> {
    let wide = group.integers("acc", "L")?;
    let narrow = wide.iter().map(|acc| {
        i32::try_from(*acc)
            .map_err(|_| SimError::value(group.key("acc"), "accumulators that fit i32", acc))
    });
    narrow.collect::<Result<Vec<i32>>>().map(Array1::from_vec)
}
