//! The formula of a step, one scalar at a time, with every term, order, function and constant as data that
//! an edit can change. Without an edit it makes what the step makes; what rounds differently in the
//! last bit (a scan in another association) is left to the comparison.
//!
//! A chip's linears, convolution and rotation have their integer arithmetic here; of its scan the step itself
//! runs, with the edits that its inputs and parameters can have.

mod conv;
mod grids;
mod hadamard;
mod linear;
mod norm;
mod scan;

pub use conv::Conv;
pub use grids::Grids;
pub use hadamard::Hadamard;
pub use linear::{Linear, Meet, weight as linear_weight};
pub use norm::{Add, Norm};
pub use scan::{Delta, Scan};

use super::rule::QuantizerPart;
use half::{bf16, f16};
use ndarray::{Array2, s};
use scalescope_sim::arith::fixed::Requantizer;
use scalescope_sim::arith::real::{Ieee, RealMath, RealRules};
use scalescope_sim::arith::requant::QuantRule;
use scalescope_sim::arith::round::Rounding;
use scalescope_sim::arith::sfu::{CudaFast, CudaLibm, CudaSubnormal};
use scalescope_sim::dataflow::{Block, Format, Quantizer, Read, Row, Step};
use scalescope_sim::datapath::Datapath;
use scalescope_sim::plan::ScaleUse;
use scalescope_sim::profile::StepRules;
use scalescope_sim::profile::unit::ScaleGrid;
use scalescope_sim::quant::Scale;
use scalescope_sim::step::dynamic;
use scalescope_sim::trace::{Tensor, TracePoint};
use std::collections::BTreeMap;

/// The tensors of a block as they went in, by point.
pub type Seen = BTreeMap<TracePoint, Tensor>;

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
            for entries in [16, 32, 64, 128, 256, 1024] {
                all.extend([Line, Nearest, Before, Middle].map(|between| Self {
                    entries,
                    low,
                    high,
                    between,
                }));
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
        format!("a table of {entries} entries from {low} to {high}, {between}")
    }

    /// A function by this table.
    pub fn of(self, function: impl Fn(f32) -> f32, v: f32) -> f32 {
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
            Activation::Tabled(table) => table.of(|v| sigmoid(v, v), v),
            Activation::QuickGelu => sigmoid(v, 1.702 * v),
            Activation::Softplus => (math.softplus)(v),
            Activation::LeakyRelu => v.max(0.01 * v),
            Activation::Elu => v.max(0.0) + v.min(0.0).exp_m1(),
            Activation::Mish => v * (math.softplus)(v).tanh(),
            Activation::SiluOfNegative => sigmoid(-v, -v),
            Activation::HardSilu => v * ((v + 3.0).clamp(0.0, 6.0) / 6.0),
        }
    }
}

/// A narrower type, or a range, that a value passes through.
#[derive(Clone, Copy, Debug, PartialEq)]
#[allow(missing_docs)] // `name` says what each is
pub enum Narrow {
    F16,
    Bf16,
    /// Codes of so many bits with this step.
    Codes(u8, f32),
    /// Codes of so many bits and this step, rounded so.
    Rounded(u8, f32, Rounding),
    /// From the lowest to the highest value.
    Range(f32, f32),
}

impl Narrow {
    /// In words.
    pub fn name(self) -> String {
        match self {
            Narrow::F16 => "f16".to_owned(),
            Narrow::Bf16 => "bf16".to_owned(),
            Narrow::Codes(bits, _) => format!("INT{bits}"),
            Narrow::Rounded(bits, _, by) => format!("INT{bits} ({})", QuantizerPart::Rounding(by)),
            Narrow::Range(low, high) if high == f32::INFINITY => format!("{low} and more"),
            Narrow::Range(low, high) => format!("{low} to {high}"),
        }
    }

    /// Of `v`.
    #[inline]
    pub fn of(self, v: f32) -> f32 {
        match self {
            Narrow::F16 => f16::from_f32(v).to_f32(),
            Narrow::Bf16 => bf16::from_f32(v).to_f32(),
            Narrow::Codes(bits, step) => {
                let top = ((1i32 << (bits - 1)) - 1) as f32;
                step * (v / step).round_ties_even().clamp(-top - 1.0, top)
            }
            Narrow::Rounded(bits, step, by) => {
                let top = ((1i32 << (bits - 1)) - 1) as f32;
                step * by.round(v / step).clamp(-top - 1.0, top)
            }
            Narrow::Range(low, high) => v.clamp(low, high),
        }
    }
}

/// How results are stored.
#[derive(Clone, Debug)]
pub struct Output {
    /// Codes, by this quantizer.
    pub quantizer: Option<Quantize>,
    /// Whether reals are rounded to binary16.
    pub half: bool,
    /// A type that reals pass through before they are stored.
    pub through: Option<Narrow>,
    /// What is added to a real before it is stored, in units of the grid for codes.
    pub offset: f32,
    /// What it is multiplied with.
    pub factor: f32,
}

/// A quantizer.
#[derive(Clone, Copy, Debug)]
pub struct Quantize {
    /// The step of its grid; values are divided by it. Of a dynamic one the values say.
    pub scale: f32,
    /// Which values have a scale of their own, if it is found at run time.
    pub dynamic: Option<Dynamic>,
    /// Its rule.
    pub rule: QuantRule,
    /// Whether values come in units of the grid.
    pub in_units: bool,
    /// Whether what is stored is the code's real value.
    pub dequantized: bool,
    /// Added to the rounded value.
    pub zero_point: f32,
    /// The range of codes is that of this many bits.
    pub bits: u8,
}

/// The values that share a scale which is found at run time.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Dynamic {
    /// All of the tensor, as PyTorch divides.
    Tensor,
    /// Those of a token, as PyTorch divides.
    TorchToken,
    /// Those of a token, with a scale on a grid.
    Token(ScaleGrid),
}

impl Quantize {
    /// A grid of its own.
    pub fn of(scale: f32, rule: QuantRule) -> Self {
        Self {
            scale,
            dynamic: None,
            rule,
            in_units: false,
            dequantized: false,
            zero_point: 0.0,
            bits: 8,
        }
    }

    /// The code of an integer of the grid.
    #[inline]
    fn fit(&self, integer: i128) -> f32 {
        let integer = integer + self.zero_point as i128;
        if self.bits < 8 {
            let top = (1i128 << (self.bits - 1)) - 1;
            return integer.clamp(-top - 1, top) as f32;
        }
        f32::from(self.rule.overflow.fit(integer).0)
    }
}

impl Output {
    /// As reals.
    pub fn real(half: bool) -> Self {
        Self {
            quantizer: None,
            half,
            through: None,
            offset: 0.0,
            factor: 1.0,
        }
    }

    /// What is stored of `v`: a code or a real.
    #[inline]
    pub fn of(&self, v: f32) -> f32 {
        let mut v = v;
        if let Some(narrow) = self.through {
            v = narrow.of(v);
        }
        let Some(q) = self.quantizer.as_ref().filter(|q| q.dynamic.is_none()) else {
            let v = v * self.factor + self.offset;
            return match self.half {
                true => f16::from_f32(v).to_f32(),
                false => v,
            };
        };
        let scale = || Scale::new(q.scale).unwrap_or_else(|_| Scale::new(1.0).expect("one"));
        let units = match q.in_units {
            true => v,
            false => q.rule.in_units(v, scale()),
        };
        let units = match (self.factor, self.offset) {
            (1.0, 0.0) => units,
            (factor, offset) => units * factor + offset,
        };
        let integer = q.rule.rounding.round(units) + q.zero_point;
        let code = match q.bits {
            8.. => f32::from(q.rule.overflow.to_i8(integer)),
            bits => {
                let top = f32::from((1i16 << (bits - 1)) - 1);
                integer.clamp(-top - 1.0, top)
            }
        };
        if q.dequantized { q.scale * code } else { code }
    }

    /// What is stored of an integer sum that a chip brings to the output's grid.
    #[inline]
    fn of_sum(&self, sum: i64, by: &Requantizer) -> f32 {
        let plain = (self.factor, self.offset, self.through) == (1.0, 0.0, None);
        match self.quantizer.as_ref().filter(|q| plain && q.in_units) {
            Some(q) => q.fit(by.integer(sum, 0)),
            None => self.of((sum as f64 * by.real()) as f32),
        }
    }

    /// All values, where a quantizer looks at many of them at once.
    fn finish(&self, values: Array2<f32>) -> Array2<f32> {
        let Some((q, dynamic)) = self.quantizer.as_ref().and_then(|q| Some((q, q.dynamic?))) else {
            return values;
        };
        let (tensor, _) = match dynamic {
            Dynamic::Tensor => dynamic::per_tensor(&values, q.rule),
            Dynamic::TorchToken => dynamic::per_token(&values, q.rule),
            Dynamic::Token(grid) => dynamic::tokens(&values, grid, q.rule),
        };
        tensor.codes.mapv(|code| q.fit(code.into()))
    }
}

/// Something that a step reads: numbers, and what one of them stands for.
#[derive(Clone, Debug)]
pub struct Operand {
    /// Codes or reals.
    pub values: Array2<f32>,
    /// The step of codes, 1 for reals.
    pub scale: f32,
    /// The step of each row's codes, where rows have their own; it is met beside `scale`, which is 1 then.
    pub rows: Option<Vec<f32>>,
}

impl Operand {
    /// Numbers with one step.
    pub fn new(values: Array2<f32>, scale: f32) -> Self {
        let rows = None;
        Self {
            values,
            scale,
            rows,
        }
    }

    /// The step of a row.
    #[inline]
    pub fn step(&self, row: usize) -> f32 {
        match &self.rows {
            Some(rows) => self.scale * rows[row.min(rows.len() - 1)],
            None => self.scale,
        }
    }

    /// The real value of an element.
    #[inline]
    pub fn real(&self, math: Math, at: (usize, usize)) -> f32 {
        match self.step(at.0) {
            1.0 => self.values[at],
            scale => (math.mul)(scale, self.values[at]),
        }
    }
}

/// The formula of a step.
#[derive(Clone, Debug)]
#[allow(missing_docs)] // each is the step of that name
#[expect(clippy::large_enum_variant, reason = "there is one at a time")]
pub enum Formula {
    Add(Add),
    Norm(Norm),
    Linear(Linear),
    Conv(Conv),
    Scan(Box<Scan>),
    Hadamard(Hadamard),
    Grids(Grids),
    /// One tensor in another form.
    Requantize(Operand, Output),
}

/// What steps are made from: a block of a datapath, and the tensors that went in.
pub struct Scene<'a, 'm> {
    /// The datapath, for weights and scales.
    pub path: &'a Datapath<'m>,
    /// The block.
    pub layer: usize,
    /// Its table.
    pub block: &'a Block,
    /// The tensors.
    pub seen: &'a Seen,
}

impl Scene<'_, '_> {
    fn rules(&self, row: &Row) -> Option<&StepRules> {
        let by = row.rules.first()?.by;
        Some(&self.path.layer_profile(self.layer).arithmetic(by).prefill)
    }

    /// The channels of what a row makes.
    pub fn width(&self, row: &Row) -> usize {
        row.shape[1].of(self.path.config(), 1)
    }

    /// The scale of a use.
    pub fn scale(&self, by: ScaleUse) -> Option<f32> {
        Some(self.path.scale(self.layer, by)?.get())
    }

    /// A tensor that a row reads.
    fn operand(&self, read: &Read) -> Option<Operand> {
        let point = read.point()?;
        let tensor = self.seen.get(&point)?;
        let values = numbers(tensor);
        let columns = read.columns.range(self.path.config(), values.ncols());
        let mut operand = Operand::new(values.slice(s![.., columns]).to_owned(), 1.0);
        match (tensor, read.scale) {
            (Tensor::I8(_), Some(by)) => operand.scale = self.scale(by)?,
            (Tensor::Codes(_), _) => match self.seen.get(&point.scales()?)? {
                Tensor::F32(scales) if scales.len() == 1 => operand.scale = scales[(0, 0)],
                Tensor::F32(scales) => operand.rows = Some(scales.iter().copied().collect()),
                _ => return None,
            },
            _ => {}
        }
        Some(operand)
    }

    /// How a row's results are stored. A quantizer of a linear step gets values in units of its grid.
    fn output(&self, row: &Row, rule: Option<QuantRule>, in_units: bool) -> Option<Output> {
        let grid = |scale| rule.map(|rule| Quantize::of(scale, rule));
        let dynamic = |dynamic| {
            let dynamic = Some(dynamic);
            grid(1.0).map(|q| Quantize { dynamic, ..q })
        };
        let storage = self.path.layer_profile(self.layer).storage;
        let quantizer = match (row.quantizer, row.format) {
            (Some(Quantizer::Static(by)), Format::Int8(_)) => Some(Quantize {
                in_units,
                ..grid(self.scale(by)?)?
            }),
            (Some(Quantizer::Static(by)), Format::F32) if row.register_scale.is_none() => {
                Some(Quantize {
                    dequantized: true,
                    ..grid(self.scale(by)?)?
                })
            }
            (Some(Quantizer::Tensor(_)), _) => Some(dynamic(Dynamic::Tensor)?),
            (Some(Quantizer::Token(_)), _) if row.step == Step::Conv => {
                Some(dynamic(Dynamic::TorchToken)?)
            }
            (Some(Quantizer::Token(_)), _) => {
                Some(dynamic(Dynamic::Token(storage.activation_scales))?)
            }
            (None, Format::F16 | Format::F32) => None,
            (Some(_), _) | (None, _) => return None,
        };
        Some(Output {
            quantizer,
            ..Output::real(row.format == Format::F16)
        })
    }

    /// The formula of the row that makes a tensor; `None` where there is none here.
    pub fn formula(&self, row: &Row) -> Option<Formula> {
        match (row.step, row.point) {
            (Step::Norm, TracePoint::ResidualOut) => Add::of(self, row).map(Formula::Add),
            (Step::Norm, TracePoint::NormOut) => Norm::of(self, row).map(Formula::Norm),
            (Step::InProj | Step::XProj | Step::DtProj | Step::OutProj, _)
                if !row.is_between_steps() && !row.point.is_scale() =>
            {
                Linear::of(self, row).map(Formula::Linear)
            }
            (Step::Conv, TracePoint::ConvOut | TracePoint::ConvOutF32) => {
                Conv::of(self, row).map(Formula::Conv)
            }
            (Step::Scan, TracePoint::SsmY | TracePoint::SsmState) => {
                let y = self.block.row(TracePoint::SsmY)?;
                Scan::of(self, y).map(|scan| Formula::Scan(Box::new(scan)))
            }
            (Step::Hadamard, TracePoint::HadOut) => Hadamard::of(self, row).map(Formula::Hadamard),
            _ if row.is_between_steps() => self.requantize(row),
            _ => None,
        }
    }

    fn requantize(&self, row: &Row) -> Option<Formula> {
        let [read] = &row.reads[..] else { return None };
        let grids = self.path.mode().u_quantizer.is_some() && row.format == Format::F32;
        if row.point == TracePoint::SsmU && grids {
            return Grids::of(self, row).map(Formula::Grids);
        }
        let dynamic = row.quantizer.is_some_and(|q| q.is_dynamic());
        let rule = self.rules(row).map(|rules| match row.step {
            Step::Conv if dynamic => self.path.mode().conv_in_quotient.of(rules.requantize),
            Step::Conv => rules.conv_in,
            _ => self.path.mode().requantize(rules.requantize),
        });
        let output = self.output(row, rule, false)?;
        Some(Formula::Requantize(self.operand(read)?, output))
    }
}

/// Codes or reals as numbers.
pub fn numbers(tensor: &Tensor) -> Array2<f32> {
    match tensor {
        Tensor::I8(q) => q.codes.mapv(f32::from),
        Tensor::Codes(codes) => codes.mapv(f32::from),
        other => other.to_real(),
    }
}

/// Numbers as a tensor like another one.
pub fn like(numbers: &Array2<f32>, tensor: &Tensor) -> Tensor {
    match tensor {
        Tensor::I8(q) => Tensor::I8(scalescope_sim::quant::QTensor {
            codes: numbers.mapv(|v| v as i8),
            scale: q.scale,
        }),
        Tensor::Codes(_) => Tensor::Codes(numbers.mapv(|v| v as i8)),
        Tensor::F16(_) => Tensor::F16(numbers.mapv(f16::from_f32)),
        Tensor::F32(_) => Tensor::F32(numbers.clone()),
    }
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
