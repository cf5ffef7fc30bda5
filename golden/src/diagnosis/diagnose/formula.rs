//! The formula of a step, one scalar at a time, with every term, order, function and constant as data that
//! an edit can change. Without an edit it makes what the step makes; what rounds differently in the
//! last bit (a scan in another association) is left to the comparison.
//!
//! A chip's linears, convolution and rotation have their integer arithmetic here; of its scan the step itself
//! runs, with the edits that its inputs and parameters can have.
//!
//! | what | module |
//! |---|---|
//! | which formula a row of the block's table has | `inputs` |
//! | what it reads | `operand` |
//! | operations and functions | `function` |
//! | what stands for exp, the sigmoid and the logarithm | `approximate` |
//! | a function that was read off a dump | `measured` |
//! | how results are stored | `output` |
//! | the formulas | a file each |

mod approximate;
mod conv;
mod decay;
mod function;
mod grids;
mod hadamard;
mod inputs;
mod linear;
mod measured;
mod norm;
mod operand;
mod output;
mod scan;
mod solve;
mod strides;

pub use approximate::{Exp, Log, Sigmoid};
pub use conv::{Conv, Halo};
pub use decay::{Carried, Decay, Hiccup, Running};
pub use function::{Activation, Between, Delta, Math, Table};
pub use grids::Grids;
pub use hadamard::Hadamard;
pub use inputs::{BlockInputs, Seen};
pub use linear::{Blocks, Linear, Meet, Register, Uncleared, weight as linear_weight};
pub use measured::{Measured, Sample};
pub use norm::{Add, Norm};
pub use operand::{Operand, like, numbers};
pub use output::{Dynamic, Found, Narrow, Output, Quantize};
pub use scan::{Scan, dequantized};
pub use solve::{Factored, solve};
pub use strides::Stride;

use ndarray::Array2;
use scalescope_sim::arith::real::RealRules;

/// The formula of a step.
#[derive(Clone, Debug)]
#[allow(missing_docs)] // each is the step of that name
pub enum Formula {
    Add(Add),
    Norm(Norm),
    Linear(Linear),
    Conv(Box<Conv>),
    Scan(Box<Scan>),
    Hadamard(Hadamard),
    Grids(Grids),
    /// One tensor in another form.
    Requantize(Operand, Output),
}

impl Formula {
    /// What is stored, and of a scan the state after the last token.
    pub fn run(&self) -> Made {
        let (values, output) = match self {
            Formula::Scan(step) => return step.run(),
            Formula::Add(step) => (step.run(), &step.output),
            Formula::Norm(step) => (step.run(), &step.output),
            Formula::Linear(step) => (step.run(), &step.output),
            Formula::Conv(step) => (step.run(), &step.output),
            Formula::Hadamard(step) => (step.run(), &step.output),
            Formula::Grids(step) => (step.run(), &step.output),
            Formula::Requantize(from, output) => {
                let math = Math::of(RealRules::CorrectlyRounded);
                let dim = from.values.dim();
                let values = Array2::from_shape_fn(dim, |at| output.of(from.real(math, at)));
                (values, output)
            }
        };
        Made {
            out: output.finish(values),
            state: None,
        }
    }

    /// How results are stored.
    pub fn output(&mut self) -> &mut Output {
        match self {
            Formula::Add(step) => &mut step.output,
            Formula::Norm(step) => &mut step.output,
            Formula::Linear(step) => &mut step.output,
            Formula::Conv(step) => &mut step.output,
            Formula::Scan(step) => &mut step.output,
            Formula::Hadamard(step) => &mut step.output,
            Formula::Grids(step) => &mut step.output,
            Formula::Requantize(_, output) => output,
        }
    }
}

/// What a formula makes.
#[derive(Clone, Debug)]
pub struct Made {
    /// The step's tensor, `[L, …]`.
    pub out: Array2<f32>,
    /// The state after the last token, `[E, N]`.
    pub state: Option<Array2<f32>>,
}

impl Made {
    /// A step's tensor or a state by itself.
    pub fn of(values: Array2<f32>, state: bool) -> Self {
        match state {
            true => Self {
                out: Array2::zeros((0, 0)),
                state: Some(values),
            },
            false => Self {
                out: values,
                state: None,
            },
        }
    }
}
