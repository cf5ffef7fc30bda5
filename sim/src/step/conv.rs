//! Causal depthwise conv1d with SiLU. Source: datapath specification, section 4 step 3 (prefill)
//! and section 5 (decode).

use crate::arith::real::{Ieee, RealMath, RealRules};
use crate::arith::sfu::{CudaFast, CudaSubnormal};
use crate::isa::{Kernel, dispatch};
use crate::profile::ConvForm;
use crate::quant::{QTensor, QVector, Scale};
use half::f16;
use ndarray::Array2;
use rayon::prelude::*;

/// Rows a thread takes at once.
const ROW_BLOCK: usize = 16;

/// Weights of a convolution, taps major: `[K, E]`. Real weights have scale 1.
#[derive(Clone, Debug)]
pub struct ConvWeight {
    /// INT8 codes, when the weight has them.
    pub(super) codes: Option<Vec<i8>>,
    /// Codes or real weights as f32.
    taps: Vec<f32>,
    pub(super) tap_scale: f32,
    /// Codes or real biases as f32.
    pub(super) bias: Vec<f32>,
    pub(super) bias_scale: f32,
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
            tap_scale: weight.scale.get(),
            bias: bias.codes.iter().map(|q| f32::from(*q)).collect(),
            bias_scale: bias.scale.get(),
            channels: e,
        }
    }

    /// From binary16 weights `[E, K]` and bias E.
    pub fn float(weight: &Array2<f16>, bias: &[f16]) -> Self {
        let (e, k) = weight.dim();
        Self {
            codes: None,
            taps: (0..k)
                .flat_map(|tap| (0..e).map(move |c| (c, tap)))
                .map(|at| f32::from(weight[at]))
                .collect(),
            tap_scale: 1.0,
            bias: bias.iter().map(|b| f32::from(*b)).collect(),
            bias_scale: 1.0,
            channels: e,
        }
    }

    /// K, the number of taps.
    pub fn taps(&self) -> usize {
        self.taps.len() / self.channels
    }
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

impl ConvWindow {
    fn rows(&self) -> usize {
        match self {
            ConvWindow::Int8 { codes, .. } | ConvWindow::PerRow { codes, .. } => codes.nrows(),
            ConvWindow::Real(values) => values.nrows(),
        }
    }
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
    match real {
        RealRules::CorrectlyRounded => conv_in::<Ieee>(form, weight, window, silu),
        RealRules::SpecialFunctionUnit => conv_in::<CudaFast>(form, weight, window, silu),
        RealRules::SpecialFunctionUnitSubnormal => {
            conv_in::<CudaSubnormal>(form, weight, window, silu)
        }
    }
}

fn conv_in<R: RealMath>(
    form: ConvForm,
    weight: &ConvWeight,
    window: &ConvWindow,
    silu: bool,
) -> Array2<f32> {
    let e = weight.channels;
    let l = window.rows() + 1 - weight.taps();
    let mut out = Array2::zeros((l, e));
    out.as_slice_mut()
        .expect("fresh arrays are row-major")
        .par_chunks_mut(ROW_BLOCK * e)
        .enumerate()
        .for_each(|(block, out)| {
            dispatch(Rows::<R> {
                form,
                weight,
                window,
                silu,
                first: block * ROW_BLOCK,
                out,
                real: std::marker::PhantomData,
            });
        });
    out
}

struct Rows<'a, R> {
    form: ConvForm,
    weight: &'a ConvWeight,
    window: &'a ConvWindow,
    silu: bool,
    first: usize,
    out: &'a mut [f32],
    real: std::marker::PhantomData<R>,
}

impl<R: RealMath> Kernel for Rows<'_, R> {
    type Output = ();

    #[inline(always)]
    fn run(self) {
        let e = self.weight.channels;
        let bias: Vec<f32> = (self.weight.bias.iter())
            .map(|b| R::mul(self.weight.bias_scale, *b))
            .collect();
        for (r, out) in self.out.chunks_exact_mut(e).enumerate() {
            let row = self.first + r;
            match (self.window, &self.weight.codes, self.form) {
                (ConvWindow::Int8 { codes, scale }, Some(w), ConvForm::IntegerSum) => {
                    let x = codes.as_slice().expect("windows are row-major");
                    let scale = R::mul(self.weight.tap_scale, scale.get());
                    integer_row::<R>(&x[row * e..], w, scale, &bias, out);
                }
                (ConvWindow::Int8 { codes, scale }, ..) => {
                    let x = codes.as_slice().expect("windows are row-major");
                    let scale = |_| scale.get();
                    chain_row::<R>(&x[row * e..], self.weight, scale, &bias, out);
                }
                (ConvWindow::PerRow { codes, scales }, ..) => {
                    let x = codes.as_slice().expect("windows are row-major");
                    let scale = |tap: usize| scales[row + tap].get();
                    chain_row::<R>(&x[row * e..], self.weight, scale, &bias, out);
                }
                (ConvWindow::Real(values), ..) => {
                    let x = values.as_slice().expect("windows are row-major");
                    chain_row::<R>(&x[row * e..], self.weight, |_| 1.0, &bias, out);
                }
            }
            if self.silu {
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
