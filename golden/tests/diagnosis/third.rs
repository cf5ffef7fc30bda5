//! Faults of a third list, written by somebody who has seen neither the search nor its rates: what reviews, issue
//! trackers and the bring-up of chips are full of. Most are simple.

mod conv;
mod linears;
mod rest;
mod scan;

use super::cases::{Case, SCAN};
use super::emulation::*;
use super::fresh::*;
use super::more::{in_proj, plain};
use super::unseen::{columns, convolved, ideal, normed, product, recurred, scanned, squares, sums};
use half::{bf16, f16};
use ndarray::{Array2, s};
use scalescope_sim::arith::hadamard::HadamardSize;
use scalescope_sim::dataflow::Step;
use scalescope_sim::plan::ScaleUse as U;
use scalescope_sim::sample;
use scalescope_sim::trace::{Tensor, TracePoint as P};

const ALL_TOKENS: usize = usize::MAX;

pub fn third() -> Vec<Case> {
    let mut all = Fresh(Vec::new());
    all.third_norm();
    all.third_in_proj();
    all.third_conv();
    all.third_x_proj();
    all.third_dt_proj();
    all.third_scan();
    all.third_outputs_of_the_scan();
    all.third_rotation();
    all.third_out_proj();
    all.third_quantizers();
    all.third_pairs();
    all.0
}

impl Fresh {
    fn third_norm(&mut self) {
        let norm_out: &[P] = &[P::NormOut];
        self.made(
            "third: the mean of squares is over one channel fewer",
            ("norm", norm_out),
            ("0", "exact"),
            (
                ALL,
                &[
                    ("constant", "mean"),
                    ("factor", "mean"),
                    ("function", "mean"),
                    ("constant", "norm"),
                    ("factor", "norm"),
                    ("factor", "norm_out"),
                    ("factor", "output"),
                    ("factor", "weight"),
                    ("stale-scale", "norm_out"),
                    ("stale-scale", "in_proj_input"),
                ],
            ),
            // The variance without bias, as torch.var has it.
            normed(|r, t, eps| (squares(r, t) / (r.ncols() - 1) as f64 + eps).sqrt()),
        );
        self.made(
            "third: the norm's weight is one too large",
            ("norm", norm_out),
            ("2-3", "torch"),
            (
                ALL,
                &[
                    ("constant", "weight"),
                    ("factor", "weight"),
                    ("twice", "weight"),
                    ("zero-point", "weight"),
                    ("weights", "weight"),
                    ("factor", "norm"),
                    ("factor", "norm_out"),
                    ("factor", "output"),
                    ("constant", "norm"),
                    ("stale-scale", "norm_out"),
                    ("stale-scale", "in_proj_input"),
                ],
            ),
            // A class that multiplies by 1 + w, as Gemma's does.
            norm(|w, _, _| w.iter_mut().for_each(|w| *w += 1.0)),
        );
        self.model(
            "third: the norm's weight stays after it was folded into in_proj",
            "norm",
            ("2-1", "exact"),
            (
                ALL,
                &[
                    ("twice", "weight"),
                    ("weights", "weight"),
                    ("factor", "weight"),
                    ("constant", "weight"),
                    ("neighbour", "weight"),
                ],
            ),
            |m, l| m.layers[l].norm = sample::float_checkpoint().layers[l].norm.clone(),
        );
        self.made(
            "third: the residual is cast to bfloat16 before hidden is added",
            ("norm", &[P::ResidualOut]),
            ("2-4", "exact"),
            (
                ALL,
                &[
                    ("format", "residual"),
                    ("rounding", "residual"),
                    ("width", "residual"),
                    ("format", "residual_in"),
                    ("format", "residual_out"),
                    ("format", "input"),
                ],
            ),
            Box::new(|_, _, seen, _, _| {
                let hidden = seen[&P::HiddenIn].to_real();
                let kept = seen.get(&P::ResidualIn).map(Tensor::to_real);
                let before = kept.unwrap_or_else(|| Array2::zeros(hidden.dim()));
                Tensor::F32(before.mapv(|v| bf16::from_f32(v).to_f32()) + hidden)
            }),
        );
        self.made(
            "third: the norm writes the largest power of two of the channels",
            ("norm", norm_out),
            ("0", "deployed"),
            (
                CHANNELS,
                &[
                    ("left-out", "norm_out"),
                    ("constant", "norm_out"),
                    ("left-out", "output"),
                    ("constant", "output"),
                    ("left-out", "weight"),
                    ("left-out", "residual"),
                ],
            ),
            each(|_, c, v| if c < 128 { v } else { 0.0 }),
        );
        self.made(
            "third: the block of the reduction has 128 channels",
            ("norm", norm_out),
            ("5-0", "exact"),
            (
                ALL,
                &[
                    ("part-missing", "mean"),
                    ("part-missing", "sum"),
                    ("part-missing", "norm"),
                ],
            ),
            normed(|r, t, eps| {
                let seen = r.slice(s![t, ..128]);
                (seen.dot(&seen) / r.ncols() as f64 + eps).sqrt()
            }),
        );
        self.made(
            "third: each token of the norm is quantized to its own largest value",
            ("norm", norm_out),
            ("0", "torch-cpu"),
            (
                ALL,
                &[
                    ("factor", "norm_out"),
                    ("factor", "output"),
                    ("constant", "norm_out"),
                    ("stale-scale", "norm_out"),
                    ("stale-scale", "in_proj_input"),
                    ("neighbour", "scale"),
                    ("function", "norm_out"),
                    ("format", "norm_out"),
                    ("format", "scale"),
                    ("function", "norm"),
                ],
            ),
            Box::new(|path, layer, seen, _, like| {
                let r = seen[&P::ResidualOut].to_real().mapv(f64::from);
                let w = path.norm_weight(layer);
                // The root falls out of the quotient.
                let v = Array2::from_shape_fn(r.dim(), |(t, c)| r[(t, c)] * f64::from(w[c]));
                let most = |t: usize| v.row(t).fold(0.0f64, |most, v| most.max(v.abs()));
                let most: Vec<f64> = (0..v.nrows()).map(most).collect();
                let codes =
                    Array2::from_shape_fn(v.dim(), |at| 127.0 * v[at] / most[at.0].max(1e-9));
                store(&codes, like, 1.0, Round::Even)
            }),
        );
    }

    fn third_in_proj(&mut self) {
        let in_proj_out: &[P] = &[P::InProjOut];
        let scales = (U::InProjIn, Some(U::InProjOut));
        self.model(
            "third: in_proj's output has the scale of the next block",
            "in_proj",
            ("2-0", "exact"),
            (
                ALL,
                &[
                    ("stale-scale", "in_proj_output"),
                    ("stale-scale", "in_proj_out"),
                    ("neighbour", "scale"),
                    ("factor", "in_proj_out"),
                    ("factor", "output"),
                ],
            ),
            |m, l| {
                let next = (l + 1) % m.layers.len();
                m.layers[l].scales.in_proj_output = m.layers[next].scales.in_proj_output;
            },
        );
        self.made(
            "third: halves of 32 codes of K are exchanged",
            ("in_proj", in_proj_out),
            ("2-1", "deployed"),
            (
                ALL,
                &[
                    ("order", "inputs"),
                    ("order", "input"),
                    ("order", "weight"),
                    ("neighbour", "input"),
                    ("shifted", "input"),
                ],
            ),
            // A fragment as ldmatrix loads it, the other operand as it lies.
            in_proj(
                |l| l.x = Array2::from_shape_fn(l.x.dim(), |(t, k)| l.x[(t, k ^ 16)]),
                Round::Even,
            ),
        );
        self.made(
            "third: the grid has whole tiles of 48 tokens only",
            ("in_proj", in_proj_out),
            ("0", "asic-int8"),
            (
                TOKENS,
                &[
                    ("left-out", "in_proj_out"),
                    ("constant", "in_proj_out"),
                    ("left-out", "output"),
                    ("constant", "output"),
                    ("left-out", "input"),
                    ("left-out", "weight"),
                ],
            ),
            each(|t, _, v| if t < 48 { v } else { 0.0 }),
        );
        self.made(
            "third: a half is added to what is below zero too, then truncated",
            ("in_proj", in_proj_out),
            ("0", "torch"),
            (ALL, &[("rounding", "in_proj_out"), ("rounding", "output")]),
            // `(int)(v + 0.5f)`.
            linear(
                Step::InProj,
                P::NormOut,
                scales,
                Round::Zero,
                |_, _, _| {},
                |_, _, v| v + 0.5,
            ),
        );
        self.made(
            "third: the sum is bfloat16 between blocks of K",
            ("in_proj", in_proj_out),
            ("2-4", "torch"),
            (
                ALL,
                &[
                    ("format", "sum"),
                    ("format", "accumulator"),
                    ("width", "sum"),
                    ("width", "accumulator"),
                    ("rounding", "sum"),
                    ("rounding", "accumulator"),
                ],
            ),
            product(
                Step::InProj,
                P::NormOut,
                scales,
                |l| {
                    let k = l.x.ncols();
                    let mut sum = Array2::zeros((l.x.nrows(), l.w.nrows()));
                    for from in (0..k).step_by(64) {
                        let block = s![.., from..(from + 64).min(k)];
                        sum += &l.x.slice(block).dot(&l.w.slice(block).t());
                        sum.mapv_inplace(|v| bf16::from_f64(v).to_f64());
                    }
                    sum
                },
                ideal,
            ),
        );
        self.model(
            "third: in_proj's weights are unsigned with a zero of 128",
            "in_proj",
            ("0", "tflite-double"),
            (
                ALL,
                &[
                    ("zero-point", "weight"),
                    ("sign", "weight"),
                    ("format", "weight"),
                    ("stuck-bit", "weight"),
                    ("overflow", "weight"),
                    ("width", "weight"),
                ],
            ),
            // quint8, read as if it were qint8.
            |m, l| int8(&mut m.layers[l].in_proj).mapv_inplace(|c| (c as u8 ^ 0x80) as i8),
        );
        self.made(
            "third: what makes inputs unsigned is not taken off the sums",
            ("in_proj", in_proj_out),
            ("0", "exact"),
            (
                ALL,
                &[
                    ("zero-point", "input"),
                    ("zero-point", "in_proj_out"),
                    ("zero-point", "output"),
                    ("zero-point", "sum"),
                    ("sign", "input"),
                    ("format", "input"),
                    ("left-out", "input"),
                ],
            ),
            // vpdpbusd multiplies inputs of 128 more; 128 times the sum of the weights stays.
            in_proj(|l| l.x += 128.0, Round::Even),
        );
    }
}
