//! Linear steps: in_proj, x_proj, dt_proj, out_proj and the head.
//! Source: `docs/arithmetic.md`, "The rules of each arithmetic".

mod epilogue;

pub use epilogue::Requantize;

use super::linear_unit::{self, ScaledWeight};
use crate::arith::accumulate::{Accumulated, Accumulator};
use crate::arith::int4::Dequantize;
use crate::arith::saturate::Status;
use crate::error::{Result, SimError};
use crate::kernels::matmul_f32::{Panels, RealWeight};
use crate::kernels::matmul_i8::{Epilogue, Sums, matmul_i8};
use crate::kernels::pages;
use crate::profile::LinearRule;
use crate::profile::unit::GROUP;
use crate::quant::{Int4Weight, QTensor, QWeight, Scale};
use crate::trace::Tensor;
use epilogue::{ChannelCodes, ChannelScales, ToF16, ToF32};
use half::f16;
use ndarray::{Array2, ArrayView2, s};
use rayon::prelude::*;
use std::borrow::Cow;
use std::ops::Range;
use std::sync::{Arc, OnceLock};

/// A weight `[out, in]` as the model has it; products turn what they need in the cache.
#[derive(Clone, Debug)]
pub enum LinearWeight<'m> {
    /// INT8.
    Int8 {
        /// The codes, `[out, in]`, row-major.
        codes: ArrayView2<'m, i8>,
        /// Real value of one step.
        scale: Scale,
    },
    /// INT8 or narrower with a scale for each row or group.
    Scaled(ScaledWeight),
    /// Four bits with scales of groups and rows.
    Int4(Int4Weight<'m>),
    /// Binary16, used as FP32.
    Float {
        /// `[out, in]`, row-major.
        weight: ArrayView2<'m, f16>,
        /// A copy for one token at a time, from the first one on.
        panels: OnceLock<Option<Arc<Panels>>>,
    },
    /// FP32, `[out, in]`, row-major: a checkpoint that is wider than binary16, as it is.
    Wide(ArrayView2<'m, f32>),
}

/// A type that the weights of a float model are held in.
pub trait Real: Copy + Into<f32> + 'static {
    /// A weight of this type, or some rows of one, used as FP32.
    fn weight(view: ArrayView2<'_, Self>) -> LinearWeight<'_>;
}

impl Real for f16 {
    fn weight(view: ArrayView2<'_, Self>) -> LinearWeight<'_> {
        LinearWeight::float(view)
    }
}

impl Real for f32 {
    fn weight(view: ArrayView2<'_, Self>) -> LinearWeight<'_> {
        LinearWeight::Wide(view)
    }
}

impl<'m> LinearWeight<'m> {
    /// An INT8 weight, or some rows of one.
    pub fn int8(codes: ArrayView2<'m, i8>, scale: Scale) -> Self {
        Self::Int8 { codes, scale }
    }

    /// Some rows of a quantized weight, whose four-bit codes become INT8 by a rule.
    pub fn quantized(weight: &'m QWeight, rows: Range<usize>, rule: Dequantize) -> Self {
        match weight {
            QWeight::Int8(w) => Self::int8(w.codes.slice(s![rows, ..]), w.scale),
            QWeight::Int4(w) => Self::Int4(Int4Weight::new(Cow::Borrowed(w), rows, rule)),
        }
    }

    /// A binary16 weight, or some rows of one, used as FP32.
    pub fn float(weight: ArrayView2<'m, f16>) -> Self {
        Self::Float {
            weight,
            panels: OnceLock::new(),
        }
    }

    /// Some of its rows.
    pub fn rows(&self, rows: Range<usize>) -> Self {
        match self {
            Self::Int8 { codes, scale } => Self::Int8 {
                codes: codes.slice_move(s![rows, ..]),
                scale: *scale,
            },
            Self::Scaled(weight) => Self::Scaled(weight.rows(rows)),
            Self::Int4(weight) => Self::Int4(weight.rows(rows)),
            Self::Float { weight, .. } => Self::float(weight.slice_move(s![rows, ..])),
            Self::Wide(weight) => Self::Wide(weight.slice_move(s![rows, ..])),
        }
    }

    fn real(&self) -> Result<RealWeight<'_>> {
        match self {
            LinearWeight::Float { weight, panels } => Ok(match panels.get() {
                Some(Some(panels)) => RealWeight::Panels(*weight, panels),
                _ => RealWeight::F16(*weight),
            }),
            LinearWeight::Wide(weight) => Ok(RealWeight::F32(*weight)),
            LinearWeight::Int8 { codes, scale } => {
                Ok(RealWeight::Codes(*codes, std::slice::from_ref(scale)))
            }
            LinearWeight::Int4(w) => Ok(RealWeight::Codes(w.int8(), w.channels())),
            LinearWeight::Scaled(_) => Err(SimError::value(
                "weights",
                "the model's own where a linear step's input is FP32",
                "weights of the profile's",
            )),
        }
    }
}

impl LinearWeight<'_> {
    /// The lowest and the highest value a sum can have at any moment, whatever codes it multiplies;
    /// `None` for real weights.
    pub fn reach(&self) -> Option<(i64, i64)> {
        let (codes, groups) = match self {
            LinearWeight::Int8 { codes, .. } => (*codes, None),
            LinearWeight::Scaled(weight) => (weight.codes.view(), weight.groups.as_ref()),
            LinearWeight::Int4(weight) => (weight.int8(), None),
            LinearWeight::Float { .. } | LinearWeight::Wide(_) => return None,
        };
        let (mut low, mut high) = (0, 0);
        for (r, row) in codes.rows().into_iter().enumerate() {
            let (mut least, mut most) = (0, 0);
            for (k, w) in row.iter().enumerate() {
                let steps = groups.map_or(1, |g| i64::from(g[(r, k / GROUP)]));
                let (a, b) = (-128 * i64::from(*w) * steps, 127 * i64::from(*w) * steps);
                least += a.min(b);
                most += a.max(b);
            }
            low = low.min(least);
            high = high.max(most);
        }
        Some((low, high))
    }

    /// Outputs and inputs.
    pub fn dim(&self) -> (usize, usize) {
        match self {
            LinearWeight::Int8 { codes, .. } => codes.dim(),
            LinearWeight::Scaled(weight) => weight.codes.dim(),
            LinearWeight::Int4(weight) => weight.dim(),
            LinearWeight::Float { weight, .. } => weight.dim(),
            LinearWeight::Wide(weight) => weight.dim(),
        }
    }

    /// Bits of a weight as it is read, scales of groups included; a scale of a row or of the whole weight is not.
    pub fn bits(&self) -> f64 {
        let group = 16.0 / GROUP as f64;
        match self {
            LinearWeight::Int8 { .. } => 8.0,
            LinearWeight::Scaled(weight) if weight.groups.is_none() => 8.0,
            LinearWeight::Scaled(_) => 8.0 + group,
            LinearWeight::Int4(weight) if weight.source().groups.is_none() => 4.0,
            LinearWeight::Int4(_) => 4.0 + group,
            LinearWeight::Float { .. } => 16.0,
            LinearWeight::Wide(_) => 32.0,
        }
    }

    /// Prepares for being read once a token, from end to end.
    pub(crate) fn enlarge_pages(&self) {
        match self {
            LinearWeight::Int8 { codes, .. } => pages::enlarge(codes.as_slice().unwrap_or(&[])),
            LinearWeight::Scaled(weight) => {
                pages::enlarge(weight.codes.as_slice().unwrap_or(&[]));
            }
            LinearWeight::Int4(weight) => {
                pages::enlarge(weight.nibbles().bytes);
            }
            LinearWeight::Float { weight, .. } => {
                pages::enlarge(weight.as_slice().unwrap_or(&[]));
            }
            LinearWeight::Wide(weight) => pages::enlarge(weight.as_slice().unwrap_or(&[])),
        }
    }

    /// Prepares real weights for being read once a token by a copy in the order of reading: as much
    /// memory again.
    pub(crate) fn turn(&self) {
        if let LinearWeight::Float { weight, panels } = self {
            panels.get_or_init(|| Panels::of_weight(*weight).map(Arc::new));
        }
    }

    /// The weight, if it has four bits.
    pub fn int4(&self) -> Option<&Int4Weight<'_>> {
        match self {
            LinearWeight::Int4(weight) => Some(weight),
            _ => None,
        }
    }

    /// The INT8 codes that are multiplied, and their scales; `None` for real weights.
    pub fn stored(&self) -> Option<ScaledWeight> {
        match self {
            LinearWeight::Int8 { codes, scale } => Some(ScaledWeight {
                codes: codes.to_owned(),
                scales: vec![*scale],
                groups: None,
            }),
            LinearWeight::Scaled(weight) => Some(weight.clone()),
            LinearWeight::Int4(weight) => Some(ScaledWeight {
                codes: weight.int8().to_owned(),
                scales: weight.channels().to_vec(),
                groups: None,
            }),
            LinearWeight::Float { .. } | LinearWeight::Wide(_) => None,
        }
    }

    /// The sums of codes times this weight in an accumulator, `[L, out]`; zeros for real weights.
    pub fn sums(&self, x: &Array2<i8>, accumulator: Accumulator) -> Array2<i64> {
        match self.stored() {
            Some(weight) => linear_unit::sums(x, &weight, accumulator).0,
            None => Array2::zeros((x.nrows(), 0)),
        }
    }

    /// The sums of codes times this weight, term by term in its accumulator; nothing for real weights
    /// and for groups, whose sums are always watched.
    pub fn watched(&self, x: &Array2<i8>, accumulator: Accumulator) -> Accumulated {
        let weight = match self {
            LinearWeight::Int8 { codes, .. } => *codes,
            LinearWeight::Scaled(weight) if weight.groups.is_none() => weight.codes.view(),
            LinearWeight::Int4(weight) => weight.int8(),
            LinearWeight::Scaled(_) | LinearWeight::Float { .. } | LinearWeight::Wide(_) => {
                return Accumulated::default();
            }
        };
        let mut sums = Array2::zeros((x.nrows(), weight.nrows()));
        narrow(x, weight, accumulator, &mut sums, &Sums).1
    }
}

/// What a linear step emits.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum LinearOutput {
    /// INT8 on the grid of this scale: `rne8(v)`.
    Int8(Scale),
    /// Binary16 of the real value.
    F16,
    /// The real value in FP32.
    F32,
}

/// Multiplies `x` (`[L, in]`) by `weight` (`[out, in]`).
///
/// Codes times codes are summed in the rule's accumulator and meet their scales in its order;
/// `input_scale` is the scale this step believes its input to have. Any FP32 operand makes the product FP32: codes are
/// dequantized, the sum runs over k ascending by fma.
pub fn linear(
    x: &Tensor,
    input_scale: Option<Scale>,
    weight: &LinearWeight,
    rule: LinearRule,
    output: LinearOutput,
) -> Result<LinearResult> {
    if let Tensor::I8(x) = x {
        let s_in = input_scale.unwrap_or(x.scale);
        let x = &x.codes;
        match weight {
            LinearWeight::Int8 { codes, scale } if linear_unit::is_unit(&rule) => {
                return linear_unit::unit_linear(x, &[s_in], *codes, &[*scale], None, rule, output);
            }
            LinearWeight::Int8 { codes, scale } => {
                return Ok(integer_linear(x, s_in, *codes, *scale, rule, output));
            }
            LinearWeight::Scaled(w) => {
                let (codes, groups) = (w.codes.view(), w.groups.as_ref());
                return linear_unit::unit_linear(
                    x,
                    &[s_in],
                    codes,
                    &w.scales,
                    groups,
                    rule,
                    output,
                );
            }
            LinearWeight::Int4(w) if linear_unit::is_unit(&rule) => {
                let (codes, scales) = (w.int8(), w.channels());
                return linear_unit::unit_linear(x, &[s_in], codes, scales, None, rule, output);
            }
            LinearWeight::Int4(w) => return int4_linear(x, s_in, w, rule, output),
            LinearWeight::Float { .. } | LinearWeight::Wide(_) => {}
        }
    }
    let real = match (x, input_scale) {
        (Tensor::I8(x), Some(scale)) => QTensor {
            codes: x.codes.clone(),
            scale,
        }
        .dequantize(),
        (x, _) => x.to_real(),
    };
    let v = weight.real()?.multiply(&real);
    let (out, status) = match output {
        LinearOutput::Int8(scale) => {
            let (q, status) = QTensor::quantize(&v, scale, rule.output);
            (Tensor::I8(q), status)
        }
        LinearOutput::F16 => (Tensor::f16(&v), Status::default()),
        LinearOutput::F32 => (Tensor::F32(v), Status::default()),
    };
    Ok(LinearResult {
        out,
        status,
        accumulated: Accumulated::default(),
    })
}

/// What a linear step did.
#[derive(Clone, Debug)]
pub struct LinearResult {
    /// `[L, out]`.
    pub out: Tensor,
    /// What its quantizer counted.
    pub status: Status,
    /// What its accumulators counted, if they were watched.
    pub accumulated: Accumulated,
}

fn integer_linear(
    x: &Array2<i8>,
    s_in: Scale,
    weight: ArrayView2<i8>,
    b: Scale,
    rule: LinearRule,
    output: LinearOutput,
) -> LinearResult {
    let order = rule.order;
    let dim = (x.nrows(), weight.nrows());
    let product = Product {
        x,
        weight: Weight::Int8(weight),
        accumulator: rule.accumulator,
    };
    match output {
        LinearOutput::Int8(scale) => {
            let a = s_in.ratio(scale);
            let rule = rule.output;
            let epilogue = Requantize { a, b, order, rule };
            product.run(&epilogue, Array2::zeros(dim), |codes| {
                Tensor::I8(QTensor { codes, scale })
            })
        }
        LinearOutput::F16 => {
            let a = s_in.to_real();
            product.run(
                &ToF16(ToF32 { a, b, order }),
                Array2::zeros(dim),
                Tensor::F16,
            )
        }
        LinearOutput::F32 => {
            let a = s_in.to_real();
            product.run(&ToF32 { a, b, order }, Array2::zeros(dim), Tensor::F32)
        }
    }
}

/// Codes times a four-bit weight. Source: `docs/arithmetic.md`, four-bit weights.
///
/// # Errors
///
/// A channel scale that no f32 is, in units of the output's.
fn int4_linear(
    x: &Array2<i8>,
    s_in: Scale,
    weight: &Int4Weight,
    rule: LinearRule,
    output: LinearOutput,
) -> Result<LinearResult> {
    let dim = (x.nrows(), weight.dim().0);
    let product = Product {
        x,
        weight: Weight::Int4(weight),
        accumulator: rule.accumulator,
    };
    let real = |scales| ChannelScales { s_in, scales };
    let own = || weight.channels().iter().map(|s| s.get()).collect();
    Ok(match output {
        LinearOutput::Int8(scale) => {
            let channels = weight.channels().iter();
            let units = channels.map(|s| s.get() / scale.get()).collect();
            let epilogue = ChannelCodes(real(units), rule.output);
            product.run(&epilogue, Array2::zeros(dim), |codes| {
                Tensor::I8(QTensor { codes, scale })
            })
        }
        LinearOutput::F16 => product.run(&ToF16(real(own())), Array2::zeros(dim), Tensor::F16),
        LinearOutput::F32 => product.run(&real(own()), Array2::zeros(dim), Tensor::F32),
    })
}

/// Sums of codes times codes, `[L, out]`, in a register.
pub(super) fn product_sums(
    x: &Array2<i8>,
    weight: ArrayView2<i8>,
    accumulator: Accumulator,
) -> (Array2<i64>, Accumulated) {
    let product = Product {
        x,
        weight: Weight::Int8(weight),
        accumulator,
    };
    let mut sums = Array2::zeros((x.nrows(), weight.nrows()));
    let (_, seen) = product.sums(&mut sums, &Sums);
    (sums.mapv(i64::from), seen)
}

/// What codes are multiplied by, `[N, K]`.
#[derive(Clone, Copy)]
enum Weight<'a> {
    Int8(ArrayView2<'a, i8>),
    Int4(&'a Int4Weight<'a>),
}

/// Codes times codes, and the register that sums them.
struct Product<'a> {
    /// `[L, K]`.
    x: &'a Array2<i8>,
    weight: Weight<'a>,
    accumulator: Accumulator,
}

impl Product<'_> {
    fn run<E: Epilogue>(
        &self,
        epilogue: &E,
        mut out: Array2<E::Out>,
        tensor: impl Fn(Array2<E::Out>) -> Tensor,
    ) -> LinearResult {
        let (status, accumulated) = self.sums(&mut out, epilogue);
        LinearResult {
            out: tensor(out),
            status,
            accumulated,
        }
    }

    fn sums<E: Epilogue>(&self, out: &mut Array2<E::Out>, epilogue: &E) -> (Status, Accumulated) {
        let codes = match self.weight {
            Weight::Int8(codes) => codes,
            Weight::Int4(weight) if self.in_kernels() => {
                let status = matmul_i8(self.x, weight.nibbles(), out, epilogue);
                return (status, Accumulated::default());
            }
            Weight::Int4(weight) => weight.int8(),
        };
        match self.in_kernels() {
            true => {
                let status = matmul_i8(self.x, codes, out, epilogue);
                (status, Accumulated::default())
            }
            false => narrow(self.x, codes, self.accumulator, out, epilogue),
        }
    }

    /// Whether the register holds any sum of K products, so that kernels may order them.
    fn in_kernels(&self) -> bool {
        let largest = (self.x.ncols() as u64) << 14;
        self.accumulator.holds(largest)
    }
}

/// Term by term, for registers that the sums may not fit.
fn narrow<E: Epilogue>(
    x: &Array2<i8>,
    weight: ArrayView2<i8>,
    accumulator: Accumulator,
    out: &mut Array2<E::Out>,
    epilogue: &E,
) -> (Status, Accumulated) {
    let (n, k) = weight.dim();
    if n == 0 || k == 0 {
        return Default::default();
    }
    let weight = weight.as_slice().expect("weights are row-major");
    let x = x.as_slice().expect("activations are row-major");
    let out = out.as_slice_mut().expect("fresh arrays are row-major");
    out.par_chunks_mut(n)
        .zip(x.par_chunks(k))
        .map(|(out, x)| {
            let mut seen = Accumulated::default();
            let sums = weight.chunks_exact(k).map(|w| {
                let (sum, now) = accumulator.dot(x, w);
                seen += now;
                // What a wider register holds fits 32 bits too: `Acc::MAX_LENGTH`.
                sum as i32
            });
            let sums: Vec<i32> = sums.collect();
            (epilogue.finish(0..n, &sums, out), seen)
        })
        .reduce(Default::default, |a, b| (a.0.plus(b.0), a.1.plus(b.1)))
}
