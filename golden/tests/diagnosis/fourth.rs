//! Faults of a fourth list, again by somebody who has seen neither the search nor its rates: what goes wrong in kernels,
//! RTL, converters and re-implementations, most of it simple.

mod linears;
mod rest;
mod scan;

use super::cases::{Case, SCAN};
use super::emulation::*;
use super::fresh::*;
use super::more::{dt_proj, in_proj, out_proj, plain, x_proj};
use super::unseen::{columns, convolved, ideal, normed, product, recurred, scanned, squares, sums};
use half::{bf16, f16};
use ndarray::{Array2, s};
use scalescope_sim::dataflow::Step;
use scalescope_sim::plan::ScaleUse as U;
use scalescope_sim::trace::{Tensor, TracePoint as P};

const ALL_TOKENS: usize = usize::MAX;

pub fn fourth() -> Vec<Case> {
    let mut all = Fresh(Vec::new());
    all.fourth_norm();
    all.fourth_in_proj();
    all.fourth_conv();
    all.fourth_x_proj();
    all.fourth_dt_proj();
    all.fourth_scan();
    all.fourth_outputs_of_the_scan();
    all.fourth_rotation();
    all.fourth_out_proj();
    all.fourth_quantizers();
    all.0
}

impl Fresh {
    fn fourth_norm(&mut self) {
        let norm_out: &[P] = &[P::NormOut];
        self.made(
            "fourth: the norm divides by the mean square, not by its root",
            ("norm", norm_out),
            ("2-1", "exact"),
            (
                ALL,
                &[
                    ("function", "root"),
                    ("left-out", "root"),
                    ("function", "rsqrt"),
                    ("function", "norm"),
                    ("twice", "norm"),
                ],
            ),
            normed(|r, t, eps| squares(r, t) / r.ncols() as f64 + eps),
        );
        self.made(
            "fourth: the norm reads the residual before hidden came to it",
            ("norm", norm_out),
            ("0", "deployed"),
            (
                ALL,
                &[
                    ("left-out", "hidden"),
                    ("neighbour", "residual"),
                    ("neighbour", "input"),
                    ("neighbour", "norm"),
                    ("left-out", "residual"),
                    ("history", "input"),
                ],
            ),
            Box::new(|path, layer, seen, _, like| {
                let r = seen[&P::ResidualIn].to_real().mapv(f64::from);
                let w = path.norm_weight(layer);
                let root = |t: usize| (squares(&r, t) / r.ncols() as f64).sqrt().max(1e-6);
                let roots: Vec<f64> = (0..r.nrows()).map(root).collect();
                let out =
                    Array2::from_shape_fn(r.dim(), |at| r[at] / roots[at.0] * f64::from(w[at.1]));
                let scale = f64::from(path.scale(layer, U::NormOut).unwrap().get());
                store(&out, like, scale, Round::Even)
            }),
        );
        self.made(
            "fourth: the root comes from a table of eight entries an octave",
            ("norm", norm_out),
            ("0", "exact"),
            (
                ALL,
                &[
                    ("table", "rsqrt"),
                    ("table", "root"),
                    ("table", "norm"),
                    ("function", "rsqrt"),
                    ("function", "root"),
                    ("function", "norm"),
                    ("rounding", "rsqrt"),
                    ("rounding", "root"),
                    ("rounding", "mean"),
                    ("format", "mean"),
                    ("width", "mean"),
                ],
            ),
            normed(|r, t, eps| {
                let mean = squares(r, t) / r.ncols() as f64 + eps;
                let octave = mean.log2().floor().exp2();
                (octave * (8.0 * mean / octave).floor() / 8.0).sqrt()
            }),
        );
        self.made(
            "fourth: the number of the row has five bits",
            ("norm", norm_out),
            ("6-2", "exact"),
            (
                TOKENS,
                &[
                    ("neighbour", "norm_out"),
                    ("shifted", "norm_out"),
                    ("neighbour", "output"),
                    ("shifted", "output"),
                    ("order", "tokens"),
                    ("neighbour", "residual"),
                    ("neighbour", "input"),
                    ("history", "input"),
                ],
            ),
            whole(|v| Array2::from_shape_fn(v.dim(), |(t, c)| v[(t & 31, c)])),
        );
    }

    fn fourth_conv(&mut self) {
        let conv_out: &[P] = &[P::ConvOut];
        let real: &[P] = &[P::ConvOutF32];
        self.made(
            "fourth: sigmoid sees the sum without the bias",
            ("conv", conv_out),
            ("2-0", "exact"),
            (
                ALL,
                &[
                    ("function", "SiLU"),
                    ("left-out", "bias"),
                    ("order", "bias"),
                    ("order", "SiLU"),
                ],
            ),
            convolved(|c| {
                let sums = c.run(ALL_TOKENS, |v| v);
                Array2::from_shape_fn(sums.dim(), |at| {
                    let v = sums[at];
                    v / (1.0 + (c.bias[at.1] - v).exp())
                })
            }),
        );
        self.made(
            "fourth: the loop over the taps begins at one",
            ("conv", conv_out),
            ("0", "deployed"),
            (
                TOKENS,
                &[
                    ("part-missing", "taps"),
                    ("left-out", "weight"),
                    ("left-out", "input"),
                    ("history", "conv"),
                ],
            ),
            // The first three tokens have nothing under that tap.
            conv_of(ALL_TOKENS, silu, |c| c.w.column_mut(0).fill(0.0)),
        );
        self.model(
            "fourth: the conv's weight lies [K, E] and is read [E, K]",
            "conv",
            ("5-2", "exact"),
            (
                ALL,
                &[
                    ("transposed", "weight"),
                    ("order", "weight"),
                    ("order", "taps"),
                ],
            ),
            |m, l| {
                let w = &mut m.layers[l].conv_weight.codes;
                let flat: Vec<i8> = w.t().iter().copied().collect();
                let k = w.ncols();
                *w = Array2::from_shape_fn(w.dim(), |(e, tap)| flat[e * k + tap]);
            },
        );
        self.made(
            "fourth: the convolution runs in bfloat16",
            ("conv", real),
            ("2-4", "torch"),
            (
                ALL,
                &[
                    ("format", "input"),
                    ("format", "weight"),
                    ("format", "output"),
                    ("format", "SiLU"),
                    ("format", "sum"),
                    ("format", "accumulator"),
                    ("rounding", "output"),
                    ("rounding", "SiLU"),
                    ("rounding", "input"),
                    ("rounding", "weight"),
                    ("width", "output"),
                    ("width", "SiLU"),
                    ("width", "input"),
                    ("width", "weight"),
                ],
            ),
            // torch.autocast.
            convolved(|mut c| {
                let short = |v: f64| bf16::from_f64(v).to_f64();
                c.x.mapv_inplace(short);
                c.w.mapv_inplace(short);
                c.bias.iter_mut().for_each(|b| *b = short(*b));
                c.run(ALL_TOKENS, |v| short(silu(short(v))))
            }),
        );
        self.read(
            "fourth: bit 4 of the channel's address is stuck",
            ("conv", &[P::InProjOut]),
            ("0", "asic-int8"),
            (
                CHANNELS,
                &[
                    ("neighbour", "input"),
                    ("shifted", "input"),
                    ("order", "input"),
                    ("order", "inputs"),
                ],
            ),
            whole(|v| {
                let e = v.ncols() / 2;
                let from = |c: usize| if c < e { c & !16 } else { c };
                Array2::from_shape_fn(v.dim(), |(t, c)| v[(t, from(c))])
            }),
        );
        self.made(
            "fourth: the bias is added behind SiLU",
            ("conv", conv_out),
            ("2-1", "deployed"),
            (
                ALL,
                &[
                    ("order", "bias"),
                    ("order", "SiLU"),
                    ("function", "SiLU"),
                    ("two-edits", "bias and SiLU"),
                    ("two-edits", "SiLU and bias"),
                    ("two-edits", "bias and output"),
                ],
            ),
            convolved(|mut c| {
                let bias = std::mem::replace(&mut c.bias, vec![0.0; c.w.nrows()]);
                let mut out = c.run(ALL_TOKENS, silu);
                let add = |(at, v): ((usize, usize), &mut f64)| *v += bias[at.1];
                out.indexed_iter_mut().for_each(add);
                out
            }),
        );
        self.made(
            "fourth: the scale is found from the largest value, not from the largest magnitude",
            ("conv", &[P::ConvIn, P::ConvInScale]),
            ("3", "torch"),
            (
                ALL,
                &[
                    ("function", "conv_in_scale"),
                    ("constant", "conv_in_scale"),
                    ("factor", "conv_in_scale"),
                    ("stale-scale", "conv_in_scale"),
                    ("part-missing", "conv_in_scale"),
                    ("function", "conv_in"),
                    ("factor", "conv_in"),
                    ("stale-scale", "conv_in"),
                    ("overflow", "conv_in"),
                ],
            ),
            Box::new(|_, _, seen, point, like| {
                let x = seen[&P::InProjX].to_real();
                let scale = x.fold(0.0f32, |most, v| most.max(*v)) / 127.0;
                let code = |v: f32| (v / scale).round_ties_even().clamp(-128.0, 127.0) as i8;
                match point {
                    P::ConvIn => Tensor::Codes(x.mapv(code)),
                    _ => Tensor::F32(like.to_real().mapv(|_| scale)),
                }
            }),
        );
        self.made(
            "fourth: two: taps turned round, the bias not given",
            ("conv", real),
            ("5-4", "exact"),
            (
                ALL,
                &[
                    ("two-edits", "taps and bias"),
                    ("two-edits", "bias and taps"),
                ],
            ),
            // F.conv1d(x, w.flip(-1)) for F.conv1d(x, w, bias).
            conv_of(ALL_TOKENS, silu, |c| {
                c.w.invert_axis(ndarray::Axis(1));
                c.bias.fill(0.0);
            }),
        );
    }
}
