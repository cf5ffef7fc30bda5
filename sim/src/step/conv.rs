//! Causal depthwise conv1d with SiLU. Source: `docs/arithmetic.md`, "The rules of each arithmetic".

use crate::arith::real::{Ieee, RealMath, RealRules};
use crate::arith::requant::QuantRule;
use crate::arith::saturate::Status;
use crate::arith::sfu::{CudaFast, CudaLibm, CudaSubnormal};
use crate::error::Result;
use crate::isa::{Kernel, dispatch};
use crate::profile::ConvForm;
#[cfg(doc)]
use crate::profile::TapHistory;
use crate::quant::{QTensor, QVector, Scale};
use ndarray::Array2;
use rayon::prelude::*;

/// Rows a thread takes at once.
const ROW_BLOCK: usize = 16;
/// Rows whose FP32 values stay in the first-level cache until they are quantized.
const CACHED_ROWS: usize = 4;

/// Weights of a convolution, taps major: `[K, E]`. Real weights have scale 1.
#[derive(Clone, Debug)]
pub struct ConvWeight {
    /// INT8 codes, when the weight has them.
    pub(crate) codes: Option<Vec<i8>>,
    /// Codes or real weights as f32.
    pub(crate) taps: Vec<f32>,
    pub(crate) tap_scale: f32,
    /// Where each channel's codes have a scale of their own; `taps` then are real and `tap_scale` is 1.
    pub(super) channel_scales: Option<Vec<Scale>>,
    /// Codes or real biases as f32.
    pub(crate) bias: Vec<f32>,
    pub(crate) bias_scale: f32,
    pub(super) channels: usize,
}

impl ConvWeight {
    /// From INT8 codes `[E, K]` and bias E.
    pub fn int8(weight: &QTensor, bias: &QVector) -> Self {
        let (e, k) = weight.codes.dim();
        let codes: Vec<i8> = (0..k)
            .flat_map(|tap| (0..e).map(move |c| (c, tap)))
            .map(|at| weight.codes[at])
            .collect();
        Self {
            taps: codes.iter().map(|q| f32::from(*q)).collect(),
            codes: Some(codes),
            // Zeros have any step; integer sums take the bias in this one.
            tap_scale: match weight.codes.iter().all(|code| *code == 0) {
                true => weight.scale.get().max(bias.scale.get()),
                false => weight.scale.get(),
            },
            channel_scales: None,
            bias: bias.codes.iter().map(|q| f32::from(*q)).collect(),
            bias_scale: bias.scale.get(),
            channels: e,
        }
    }

    /// From INT8 codes `[E, K]` with a scale for each channel, and bias E.
    pub fn int8_channels(codes: Array2<i8>, scales: Vec<Scale>, bias: &QVector) -> Self {
        let one = Scale::new(1.0).expect("one is a scale");
        let mut weight = Self::int8(&QTensor { codes, scale: one }, bias);
        for taps in weight.taps.chunks_exact_mut(scales.len()) {
            taps.iter_mut()
                .zip(&scales)
                .for_each(|(w, s)| *w *= s.get());
        }
        weight.channel_scales = Some(scales);
        weight
    }

    /// From real weights `[E, K]` and bias E.
    pub fn float<W: Copy + Into<f32>>(weight: &Array2<W>, bias: &[W]) -> Self {
        let (e, k) = weight.dim();
        Self {
            codes: None,
            taps: (0..k)
                .flat_map(|tap| (0..e).map(move |c| (c, tap)))
                .map(|at| weight[at].into())
                .collect(),
            tap_scale: 1.0,
            channel_scales: None,
            bias: bias.iter().map(|b| (*b).into()).collect(),
            bias_scale: 1.0,
            channels: e,
        }
    }

    /// The scales of channels, where they have their own.
    pub fn channel_scales(&self) -> Option<&[Scale]> {
        self.channel_scales.as_deref()
    }

    /// The codes, weight `[E, K]` and bias E; `None` for real weights. Where channels have scales of
    /// their own, the weight's is 1.
    pub fn tensors(&self) -> Option<(QTensor, QVector)> {
        self.codes.as_ref()?;
        let scale = |v: f32| Scale::new(v).expect("scales of a weight that has codes");
        let weight = QTensor {
            codes: Array2::from_shape_fn((self.channels, self.taps()), |(c, tap)| {
                self.code(tap, c)
            }),
            scale: scale(self.tap_scale),
        };
        let bias = QVector {
            codes: self.bias.iter().map(|q| *q as i8).collect(),
            scale: scale(self.bias_scale),
        };
        Some((weight, bias))
    }

    /// E, the number of channels.
    pub fn channels(&self) -> usize {
        self.channels
    }

    /// Whether the weight has INT8 codes.
    pub fn has_codes(&self) -> bool {
        self.codes.is_some()
    }

    /// The code of a tap (0 is the oldest) of a channel, or 0 where the weight has none.
    pub fn code(&self, tap: usize, channel: usize) -> i8 {
        let codes = self.codes.as_ref();
        codes.map_or(0, |codes| codes[tap * self.channels + channel])
    }

    /// The scale of a channel's codes.
    pub fn tap_scale(&self, channel: usize) -> f32 {
        match &self.channel_scales {
            Some(scales) => scales[channel].get(),
            None => self.tap_scale,
        }
    }

    /// The bias of a channel, dequantized.
    pub fn bias(&self, channel: usize) -> f32 {
        self.bias_scale * self.bias[channel]
    }

    /// K, the number of taps.
    pub fn taps(&self) -> usize {
        self.taps.len() / self.channels
    }
}

/// Rows of `values` by their new place; zeros where there is none.
fn picked<T: Clone + Default>(
    values: &Array2<T>,
    rows: usize,
    from: impl Fn(usize) -> Option<usize>,
) -> Array2<T> {
    let mut out = Array2::default((rows, values.ncols()));
    for (r, mut row) in out.rows_mut().into_iter().enumerate() {
        if let Some(from) = from(r) {
            row.assign(&values.row(from));
        }
    }
    out
}

/// The outputs of a [`ConvWindow::tiled`] window, `[L, E]`.
pub fn untiled<T: Clone + Default>(out: &Array2<T>, taps: usize) -> Array2<T> {
    let rows = out.nrows() + taps - 1;
    let tokens = rows / (taps - 1 + TILE) * TILE;
    picked(out, tokens, |t| {
        Some(t / TILE * (taps - 1 + TILE) + t % TILE)
    })
}

/// The inputs of a convolution: K−1 rows of history (zeros at the start of a sequence), then the L
/// rows to compute, `[K−1+L, E]`.
#[derive(Clone, Debug)]
pub enum ConvWindow {
    /// INT8 codes of one scale, as this step believes it to be.
    Int8 {
        /// Codes.
        codes: Array2<i8>,
        /// Input scale s_x.
        scale: Scale,
    },
    /// INT8 codes with a scale for each row.
    PerRow {
        /// Codes.
        codes: Array2<i8>,
        /// One scale a row; history rows included.
        scales: Vec<Scale>,
    },
    /// Real values.
    Real(Array2<f32>),
}

/// Tokens after which a kernel with [`TapHistory::LostEvery8`] forgets.
pub const TILE: usize = 8;

impl ConvWindow {
    /// The window of a kernel that takes every [`TILE`] tokens for the start of a sequence: K−1 rows
    /// of zeros before each. [`untiled`] takes the outputs apart again. `None` if the L tokens are no
    /// whole number of tiles.
    pub fn tiled(&self, taps: usize) -> Option<Self> {
        let history = taps - 1;
        let tokens = self.rows() - history;
        if !tokens.is_multiple_of(TILE) {
            return None;
        }
        let from = |row: usize| {
            let token = (row % (history + TILE)).checked_sub(history)?;
            Some(history + row / (history + TILE) * TILE + token)
        };
        let rows = tokens / TILE * (history + TILE);
        Some(match self {
            ConvWindow::Int8 { codes, scale } => ConvWindow::Int8 {
                codes: picked(codes, rows, from),
                scale: *scale,
            },
            ConvWindow::PerRow { codes, scales } => ConvWindow::PerRow {
                codes: picked(codes, rows, from),
                // The scale of a row of zeros does not matter.
                scales: (0..rows).map(|r| scales[from(r).unwrap_or(0)]).collect(),
            },
            ConvWindow::Real(values) => ConvWindow::Real(picked(values, rows, from)),
        })
    }

    /// The window as a kernel sees it that multiplies by the input scale twice. Real inputs have no
    /// scale.
    pub fn with_scale_twice(self) -> Result<Self> {
        let twice = |scale: Scale| scale.times(scale.get());
        Ok(match self {
            ConvWindow::Int8 { codes, scale } => ConvWindow::Int8 {
                codes,
                scale: twice(scale)?,
            },
            ConvWindow::PerRow { codes, scales } => ConvWindow::PerRow {
                codes,
                scales: scales.into_iter().map(twice).collect::<Result<_>>()?,
            },
            ConvWindow::Real(values) => ConvWindow::Real(values),
        })
    }

    fn rows(&self) -> usize {
        match self {
            ConvWindow::Int8 { codes, .. } | ConvWindow::PerRow { codes, .. } => codes.nrows(),
            ConvWindow::Real(values) => values.nrows(),
        }
    }
}

/// A convolution about to run.
#[derive(Clone, Copy)]
struct Conv<'a> {
    form: ConvForm,
    weight: &'a ConvWeight,
    window: &'a ConvWindow,
    silu: bool,
}

/// Where its rows go.
enum Rows<'a> {
    /// As they are.
    Real(&'a mut Array2<f32>),
    /// Quantized.
    Codes(&'a mut Array2<i8>, QuantRule, Scale),
}

/// Convolves and applies SiLU (unless `silu` is off): `[L, E]` FP32, before any quantizer.
///
/// Codes times codes follow `form`; per-row scales and real values always run as a chain of fma
/// over the taps, oldest first, from the bias.
pub fn conv_silu(
    real: RealRules,
    form: ConvForm,
    weight: &ConvWeight,
    window: &ConvWindow,
    silu: bool,
) -> Array2<f32> {
    let conv = Conv {
        form,
        weight,
        window,
        silu,
    };
    let mut out = Array2::zeros(conv.dim());
    let _ = conv.run(real, Rows::Real(&mut out));
    out
}

/// `v ⊗ (1 / (1 ⊕ exp(−v)))` of each value: [`crate::profile::SiluForm::Product`].
pub fn silu_product(real: RealRules, values: &mut [f32]) {
    struct Products<'a, R>(&'a mut [f32], std::marker::PhantomData<R>);
    impl<R: RealMath> Kernel for Products<'_, R> {
        type Output = ();

        #[inline(always)]
        fn run(self) {
            let mut sigmoid = [0.0; 256];
            for values in self.0.chunks_mut(sigmoid.len()) {
                let sigmoid = &mut sigmoid[..values.len()];
                sigmoid.fill(1.0);
                R::times_sigmoid_slice(sigmoid, values);
                for (v, sigmoid) in values.iter_mut().zip(sigmoid) {
                    *v = R::mul(*v, *sigmoid);
                }
            }
        }
    }
    fn of<R: RealMath>(values: &mut [f32]) {
        let parts = values.par_chunks_mut(1 << 14);
        parts.for_each(|part| dispatch(Products::<R>(part, std::marker::PhantomData)));
    }
    match real {
        RealRules::CorrectlyRounded => of::<Ieee>(values),
        RealRules::SpecialFunctionUnit => of::<CudaFast>(values),
        RealRules::CudaLibm => of::<CudaLibm>(values),
        RealRules::SpecialFunctionUnitSubnormal => of::<CudaSubnormal>(values),
    }
}

/// [`conv_silu`] with its quantizer, a few rows at a time: the FP32 values stay in the cache.
pub fn conv_silu_quantize(
    real: RealRules,
    form: ConvForm,
    weight: &ConvWeight,
    window: &ConvWindow,
    rule: QuantRule,
    scale: Scale,
) -> (QTensor, Status) {
    let conv = Conv {
        form,
        weight,
        window,
        silu: true,
    };
    let mut codes = Array2::zeros(conv.dim());
    let status = conv.run(real, Rows::Codes(&mut codes, rule, scale));
    (QTensor { codes, scale }, status)
}

impl Conv<'_> {
    /// L and E.
    fn dim(&self) -> (usize, usize) {
        let l = self.window.rows() + 1 - self.weight.taps();
        (l, self.weight.channels)
    }

    fn run(&self, real: RealRules, rows: Rows) -> Status {
        match real {
            RealRules::CorrectlyRounded => self.run_in::<Ieee>(rows),
            RealRules::SpecialFunctionUnit => self.run_in::<CudaFast>(rows),
            RealRules::CudaLibm => self.run_in::<CudaLibm>(rows),
            RealRules::SpecialFunctionUnitSubnormal => self.run_in::<CudaSubnormal>(rows),
        }
    }

    fn run_in<R: RealMath>(&self, rows: Rows) -> Status {
        let e = self.weight.channels;
        let bias: Vec<f32> = (self.weight.bias.iter())
            .map(|b| R::mul(self.weight.bias_scale, *b))
            .collect();
        let compute = |first: usize, out: &mut [f32]| {
            dispatch(Block::<R> {
                conv: *self,
                bias: &bias,
                first,
                out,
                real: std::marker::PhantomData,
            });
        };
        match rows {
            Rows::Real(out) => {
                let out = out.as_slice_mut().expect("outputs are row-major");
                out.par_chunks_mut(ROW_BLOCK * e)
                    .enumerate()
                    .for_each(|(block, out)| compute(block * ROW_BLOCK, out));
                Status::default()
            }
            Rows::Codes(codes, rule, scale) => {
                let codes = codes.as_slice_mut().expect("outputs are row-major");
                let scratch = || vec![0.0; CACHED_ROWS * e];
                let quantize = |values: &mut Vec<f32>, (block, codes): (usize, &mut [i8])| {
                    let values = &mut values[..codes.len()];
                    compute(block * CACHED_ROWS, values);
                    rule.quantize_part(values, scale, codes, block * CACHED_ROWS * e)
                };
                codes
                    .par_chunks_mut(CACHED_ROWS * e)
                    .enumerate()
                    .with_min_len(ROW_BLOCK / CACHED_ROWS)
                    .map_init(scratch, quantize)
                    .reduce(Status::default, Status::plus)
            }
        }
    }
}

/// Some rows of a convolution.
struct Block<'a, R> {
    conv: Conv<'a>,
    /// Dequantized.
    bias: &'a [f32],
    first: usize,
    out: &'a mut [f32],
    real: std::marker::PhantomData<R>,
}

impl<R: RealMath> Kernel for Block<'_, R> {
    type Output = ();

    #[inline(always)]
    fn run(self) {
        let Conv {
            form,
            weight,
            window,
            silu,
        } = self.conv;
        let (e, bias) = (weight.channels, self.bias);
        for (r, out) in self.out.chunks_exact_mut(e).enumerate() {
            let row = self.first + r;
            match (window, &weight.codes, form) {
                (ConvWindow::Int8 { codes, scale }, Some(w), ConvForm::IntegerSum) => {
                    let x = codes.as_slice().expect("windows are row-major");
                    let scale = R::mul(weight.tap_scale, scale.get());
                    integer_row::<R>(&x[row * e..], w, scale, bias, out);
                }
                (ConvWindow::Int8 { codes, scale }, ..) => {
                    let x = codes.as_slice().expect("windows are row-major");
                    let scale = |_| scale.get();
                    chain_row::<R>(&x[row * e..], weight, scale, bias, out);
                }
                (ConvWindow::PerRow { codes, scales }, ..) => {
                    let x = codes.as_slice().expect("windows are row-major");
                    let scale = |tap: usize| scales[row + tap].get();
                    chain_row::<R>(&x[row * e..], weight, scale, bias, out);
                }
                (ConvWindow::Real(values), ..) => {
                    let x = values.as_slice().expect("windows are row-major");
                    chain_row::<R>(&x[row * e..], weight, |_| 1.0, bias, out);
                }
            }
            if silu {
                R::silu_slice(out);
            }
        }
    }
}

/// `fma(s_w ⊗ s_x, f32(Σ w·x), s_b ⊗ bias)`; the sum of at most four products is exact.
#[inline(always)]
fn integer_row<R: RealMath>(x: &[i8], w: &[i8], scale: f32, bias: &[f32], out: &mut [f32]) {
    let e = out.len();
    match w.len() / e {
        4 => integer_taps::<R, 4>(x, w, scale, bias, out),
        3 => integer_taps::<R, 3>(x, w, scale, bias, out),
        _ => integer_taps::<R, 2>(x, w, scale, bias, out),
    }
}

#[inline(always)]
fn integer_taps<R: RealMath, const K: usize>(
    x: &[i8],
    w: &[i8],
    scale: f32,
    bias: &[f32],
    out: &mut [f32],
) {
    let e = out.len();
    let x: [&[i8]; K] = std::array::from_fn(|tap| &x[tap * e..][..e]);
    let w: [&[i8]; K] = std::array::from_fn(|tap| &w[tap * e..][..e]);
    let bias = &bias[..e];
    for c in 0..e {
        let mut acc = 0i32;
        for tap in 0..K {
            acc += i32::from(w[tap][c]) * i32::from(x[tap][c]);
        }
        out[c] = R::fma(scale, acc as f32, bias[c]);
    }
}

/// From the bias, `v ← fma((s_w ⊗ s_x) ⊗ w_k, x_k, v)` tap by tap, oldest first.
#[inline(always)]
fn chain_row<R: RealMath>(
    x: &[impl Copy + Into<f32>],
    weight: &ConvWeight,
    scale: impl Fn(usize) -> f32,
    bias: &[f32],
    out: &mut [f32],
) {
    let e = out.len();
    out.copy_from_slice(bias);
    for (tap, w) in weight.taps.chunks_exact(e).enumerate() {
        let scale = R::mul(weight.tap_scale, scale(tap));
        for ((v, w), x) in out.iter_mut().zip(w).zip(&x[tap * e..][..e]) {
            *v = R::fma(R::mul(scale, *w), (*x).into(), *v);
        }
    }
}
