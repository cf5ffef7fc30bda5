//! Residual add and RMSNorm. Source: `docs/arithmetic.md`, "The rules of each arithmetic".

use crate::arith::requant::QuantRule;
use crate::arith::saturate::Status;
use crate::arith::sfu;
use crate::isa::{Kernel, dispatch};
use crate::profile::FinalNorm;
use crate::quant::{QTensor, Scale};
use crate::trace::Tensor;
use ndarray::Array2;
use rayon::prelude::*;

/// Rows a thread takes at once.
const ROW_BLOCK: usize = 16;

/// Residual stream and normed hidden state, both `[L, M]` FP32.
pub struct Normed {
    /// `hidden ⊕ residual`, or `hidden` in the first block.
    pub residual: Array2<f32>,
    /// `(r ⊗ rstd) ⊗ w` with `rstd = f32(1/√(mean r² + ε))`.
    pub normed: Array2<f32>,
}

/// Adds `hidden` (`[L, M]`, f16 or f32) to the residual stream and normalizes each row.
///
/// `rstd` is computed in f64 (squares summed in eight strided lanes) and rounded once. The reference
/// sums in f32 in an order its autotuner picks and takes an approximate root, so its own `rstd` lies
/// an ulp to either side; the one nearest to the true value agrees with it most often, and with
/// every recorded vector. Everything else is f32, nearest even, subnormals kept.
pub fn rms_norm(
    hidden: &Tensor,
    residual: Option<&Array2<f32>>,
    weight: &[f32],
    eps: f32,
) -> Normed {
    let mut stream = hidden.to_real();
    let m = stream.ncols();
    assert_eq!(weight.len(), m);
    let mut normed = Array2::zeros(stream.dim());
    let rows = stream.as_slice_mut().expect("activations are row-major");
    let out = normed.as_slice_mut().expect("fresh arrays are row-major");
    let before = residual.map(|r| {
        assert_eq!(r.len(), rows.len());
        r.as_slice().expect("the residual stream is row-major")
    });
    rows.par_chunks_mut(ROW_BLOCK * m)
        .zip(out.par_chunks_mut(ROW_BLOCK * m))
        .enumerate()
        .for_each(|(block, (stream, normed))| {
            for (r, (stream, normed)) in stream
                .chunks_exact_mut(m)
                .zip(normed.chunks_exact_mut(m))
                .enumerate()
            {
                let t = block * ROW_BLOCK + r;
                dispatch(Row {
                    stream,
                    before: before.map(|b| &b[t * m..(t + 1) * m]),
                    weight,
                    eps,
                    normed,
                });
            }
        });
    Normed {
        residual: stream,
        normed,
    }
}

/// [`rms_norm`] with its quantizer, row by row: the residual stream is updated in its place, and the
/// normed values stay in the cache.
pub fn rms_norm_quantize(
    hidden: &Tensor,
    residual: Option<Array2<f32>>,
    weight: &[f32],
    eps: f32,
    rule: QuantRule,
    scale: Scale,
) -> (Array2<f32>, QTensor, Status) {
    let (hidden, mut stream) = match residual {
        Some(residual) => (Some(hidden), residual),
        None => (None, hidden.to_real()),
    };
    let m = stream.ncols();
    assert_eq!(weight.len(), m);
    let mut codes = Array2::zeros(stream.dim());
    let rows = stream.as_slice_mut().expect("activations are row-major");
    let out = codes.as_slice_mut().expect("fresh arrays are row-major");
    let status = rows
        .par_chunks_mut(m)
        .zip(out.par_chunks_mut(m))
        .enumerate()
        .with_min_len(ROW_BLOCK)
        .map_init(
            || (vec![0.0; m], vec![0.0; m]),
            |(add, normed), (t, (stream, codes))| {
                if let Some(hidden) = hidden {
                    hidden.real_row(t, add);
                }
                dispatch(Row {
                    stream,
                    before: hidden.map(|_| &add[..]),
                    weight,
                    eps,
                    normed,
                });
                rule.quantize_part(normed, scale, codes, t * m)
            },
        )
        .reduce(Status::default, Status::plus);
    (stream, QTensor { codes, scale }, status)
}

/// The norm after the last block: [`rms_norm`], or as PyTorch runs it on the device, where
/// `rstd = rsq(mean ⊕ ε)` and the mean has PyTorch's order.
pub fn final_norm(
    rule: FinalNorm,
    hidden: &Tensor,
    residual: Option<&Array2<f32>>,
    weight: &[f32],
    eps: f32,
) -> Normed {
    let mut out = rms_norm(hidden, residual, weight, eps);
    if rule == FinalNorm::TorchDevice {
        for (r, mut y) in (out.residual.rows().into_iter()).zip(out.normed.rows_mut()) {
            let r = r.as_slice().expect("the residual stream is row-major");
            let rstd = sfu::rsq(torch_mean_square(r) + eps);
            for ((y, r), w) in y.iter_mut().zip(r).zip(weight) {
                *y = (*r * rstd) * *w;
            }
        }
    }
    out
}

/// `r.pow(2).mean()` of a row as PyTorch's reduction kernel sums it: 32 threads, each with vectors of
/// four elements in four sums, these added in order; then a butterfly from distance 16 down; then
/// one multiplication by 1/M. Rows under 128 elements go without vectors.
///
/// Measured with PyTorch 2.11 on an NVIDIA H200 for M = 64, 192, 384, 768, 1024, 2560: every bit.
fn torch_mean_square(row: &[f32]) -> f32 {
    const THREADS: usize = 32;
    let width = if row.len() >= 128 { 4 } else { 1 };
    let mut sums = [[0.0f32; 4]; THREADS];
    for (i, r) in row.iter().enumerate() {
        sums[i / width % THREADS][i % width] += r * r;
    }
    let mut threads = sums.map(|s| ((s[0] + s[1]) + s[2]) + s[3]);
    let mut distance = THREADS / 2;
    while distance > 0 {
        for i in 0..distance {
            threads[i] += threads[i + distance];
        }
        distance /= 2;
    }
    threads[0] * (1.0 / row.len() as f32)
}

struct Row<'a> {
    stream: &'a mut [f32],
    before: Option<&'a [f32]>,
    weight: &'a [f32],
    eps: f32,
    normed: &'a mut [f32],
}

impl Kernel for Row<'_> {
    type Output = ();

    #[inline(always)]
    fn run(self) {
        if let Some(before) = self.before {
            for (r, b) in self.stream.iter_mut().zip(before) {
                *r += *b;
            }
        }
        let mut lanes = [0.0f64; 8];
        let chunks = self.stream.chunks_exact(8);
        for (lane, r) in lanes.iter_mut().zip(chunks.remainder()) {
            *lane = f64::from(*r) * f64::from(*r);
        }
        for chunk in chunks {
            for (lane, r) in lanes.iter_mut().zip(chunk) {
                *lane += f64::from(*r) * f64::from(*r);
            }
        }
        let sum = ((lanes[0] + lanes[4]) + (lanes[2] + lanes[6]))
            + ((lanes[1] + lanes[5]) + (lanes[3] + lanes[7]));
        let mean = sum / self.stream.len() as f64;
        let rstd = (1.0 / (mean + f64::from(self.eps)).sqrt()) as f32;
        for ((y, r), w) in self
            .normed
            .iter_mut()
            .zip(self.stream.iter())
            .zip(self.weight)
        {
            *y = (*r * rstd) * *w;
        }
    }
}
