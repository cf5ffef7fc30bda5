//! Faults of a second list, written by somebody who has seen neither the search nor its rates: reductions, barriers
//! and lanes of kernels, carries, counters and registers of RTL, axes and orders of converters.

mod rest;
mod scan;

use super::steps::{convolved, recurred, scanned};
use super::*;
use scalescope_sim::arith::hadamard::HadamardSize;

const ALL_TOKENS: usize = usize::MAX;

/// Tokens taken from elsewhere, by number.
fn rows(from: impl Fn(usize) -> usize + Send + Sync + 'static) -> Make {
    whole(move |v| Array2::from_shape_fn(v.dim(), |(t, c)| v[(from(t).min(v.nrows() - 1), c)]))
}

/// The residual before the block; none before the first.
fn before(seen: &Seen, like: &Array2<f32>) -> Array2<f32> {
    let kept = seen.get(&P::ResidualIn).map(Tensor::to_real);
    kept.unwrap_or_else(|| Array2::zeros(like.dim()))
}

impl Fresh {
    pub(super) fn unseen_second(&mut self) {
        self.second_norm();
        self.second_in_proj();
        self.second_conv();
        self.second_x_proj();
        self.second_dt_proj();
        self.second_scan();
        self.second_outputs_of_the_scan();
        self.second_rotation();
        self.second_out_proj();
        self.second_quantizers();
        self.second_pairs();
    }

    fn second_norm(&mut self) {
        self.made(
            "second: the sum of squares is not cleared between tokens",
            ("norm", &[P::NormOut]),
            ("5-7", "exact"),
            (
                TOKENS,
                &[
                    ("not-reset", "mean"),
                    ("not-reset", "sum"),
                    ("not-reset", "norm"),
                    ("not-reset", "accumulator"),
                    ("history", "mean"),
                    ("history", "norm"),
                ],
            ),
            normed(|r, t, eps| {
                let all: f64 = (0..=t).map(|t| squares(r, t)).sum();
                (all / r.ncols() as f64 + eps).sqrt()
            }),
        );
        self.made(
            "second: the mean of absolute values stands for the root",
            ("norm", &[P::NormOut]),
            ("2-3", "torch-cpu"),
            (
                ALL,
                &[
                    ("function", "norm"),
                    ("function", "mean"),
                    ("function", "root"),
                    ("left-out", "root"),
                ],
            ),
            normed(|r, t, eps| {
                r.row(t).iter().map(|v| v.abs()).sum::<f64>() / r.ncols() as f64 + eps
            }),
        );
        self.made(
            "second: the norm reads the residual before hidden was added",
            ("norm", &[P::NormOut]),
            ("0", "torch"),
            (
                ALL,
                &[
                    ("left-out", "hidden"),
                    ("order", "hidden"),
                    ("order", "residual"),
                    ("neighbour", "residual"),
                    ("neighbour", "input"),
                ],
            ),
            Box::new(|path, layer, seen, point, like| {
                let own = seen[&P::ResidualOut].to_real();
                let mut seen = seen.clone();
                seen.insert(P::ResidualOut, Tensor::F32(before(&seen, &own)));
                norm(|_, _, _| {})(path, layer, &seen, point, like)
            }),
        );
        self.made(
            "second: hidden comes to the adder a token late",
            ("norm", &[P::ResidualOut]),
            ("6-1", "torch-cpu"),
            (
                ALL,
                &[
                    ("neighbour", "hidden"),
                    ("shifted", "hidden"),
                    ("neighbour", "input"),
                ],
            ),
            Box::new(|_, _, seen, _, like| {
                let hidden = seen[&P::HiddenIn].to_real().mapv(f64::from);
                let hidden = late(&hidden, 1).mapv(|v| v as f32);
                Tensor::F32(before(seen, &like.to_real()) + hidden)
            }),
        );
        self.made(
            "second: the residual is a fraction of one half and wraps",
            ("norm", &[P::ResidualOut]),
            ("2-1", "tflite-double"),
            (
                ALL,
                &[
                    ("overflow", "residual_out"),
                    ("overflow", "residual"),
                    ("overflow", "output"),
                    ("width", "residual_out"),
                    ("format", "residual_out"),
                    ("format", "residual"),
                ],
            ),
            each(|_, _, v| v - (v + 0.5).floor()),
        );
    }

    fn second_in_proj(&mut self) {
        let in_proj_out: &[P] = &[P::InProjOut];
        let scales = (U::InProjIn, Some(U::InProjOut));
        self.made(
            "second: the shift of the sum is logical",
            ("in_proj", in_proj_out),
            ("2-2", "torch"),
            (
                ALL,
                &[
                    ("sign", "in_proj_out"),
                    ("sign", "sum"),
                    ("sign", "output"),
                    ("overflow", "in_proj_out"),
                    ("overflow", "sum"),
                    ("overflow", "output"),
                    ("function", "in_proj_out"),
                    ("function", "output"),
                    ("format", "sum"),
                    ("format", "in_proj_out"),
                ],
            ),
            // A negative sum is a large one.
            linear(
                Step::InProj,
                P::NormOut,
                scales,
                Round::Even,
                |_, _, _| {},
                |_, _, v| if v < 0.0 { 127.0 } else { v },
            ),
        );
        self.made(
            "second: half of the lanes store where the others do",
            ("in_proj", in_proj_out),
            ("0", "asic-int8"),
            (
                CHANNELS,
                &[
                    ("neighbour", "in_proj_out"),
                    ("neighbour", "output"),
                    ("neighbour", "weight"),
                    ("order", "in_proj_out"),
                    ("order", "output"),
                    ("order", "weight"),
                    ("shifted", "in_proj_out"),
                    ("shifted", "output"),
                ],
            ),
            columns(|c, _| if c % 32 < 16 { c + 16 } else { c }),
        );
        self.made(
            "second: the carry into bit 12 is cut where two sums meet",
            ("in_proj", in_proj_out),
            ("0", "exact"),
            (
                ALL,
                &[
                    ("overflow", "sum"),
                    ("overflow", "accumulator"),
                    ("width", "sum"),
                    ("width", "accumulator"),
                    ("stuck-bit", "sum"),
                    ("stuck-bit", "accumulator"),
                    ("narrow-accumulator", "in_proj"),
                ],
            ),
            product(
                Step::InProj,
                P::NormOut,
                scales,
                |lin| {
                    let half = lin.x.ncols() / 2;
                    let part = |k: std::ops::Range<usize>| {
                        let (x, w) = (lin.x.slice(s![.., k.clone()]), lin.w.slice(s![.., k]));
                        x.dot(&w.t()).mapv(|v| v as i64)
                    };
                    let (a, b) = (part(0..half), part(half..lin.x.ncols()));
                    Array2::from_shape_fn(a.dim(), |at| {
                        let low = (a[at] & 0xfff) + (b[at] & 0xfff);
                        let high = (a[at] >> 12) + (b[at] >> 12);
                        ((high << 12) | (low & 0xfff)) as f64
                    })
                },
                ideal,
            ),
        );
        self.model(
            "second: each row has codes of a scale of its own, which is not read",
            "in_proj",
            ("5-4", "tflite-single"),
            (
                ALL,
                &[
                    ("factor", "weight"),
                    ("factor", "output"),
                    ("factor", "in_proj_out"),
                    ("weights", "weight"),
                    ("neighbour", "scale"),
                    ("stale-scale", "weight"),
                    ("missing-scale", "weight"),
                ],
            ),
            |m, l| {
                for mut row in int8(&mut m.layers[l].in_proj).rows_mut() {
                    let most = row
                        .iter()
                        .map(|v| v.unsigned_abs())
                        .max()
                        .unwrap_or(0)
                        .max(1);
                    row.mapv_inplace(|v| (f64::from(v) * 127.0 / f64::from(most)).round() as i8);
                }
            },
        );
        self.model(
            "second: in_proj's weight is not rotated",
            "in_proj",
            ("0", "deployed"),
            (
                ALL,
                &[
                    ("left-out", "rotation"),
                    ("weights", "weight"),
                    ("order", "weight"),
                ],
            ),
            |m, l| {
                let w = int8(&mut m.layers[l].in_proj);
                let n = w.ncols();
                let size = HadamardSize::of(n).unwrap();
                let h = Array2::from_shape_fn((n, n), |(i, j)| f64::from(size.entry(i, j)));
                let own = w.mapv(f64::from).dot(&h.t()) / (n as f64).sqrt();
                *w = own.mapv(|v| v.round_ties_even() as i8);
            },
        );
    }

    fn second_conv(&mut self) {
        let conv_out: &[P] = &[P::ConvOut];
        let real: &[P] = &[P::ConvOutF32];
        self.made(
            "second: SiLU comes after the quantizer",
            ("conv", conv_out),
            ("2-1", "exact"),
            (
                ALL,
                &[
                    ("order", "SiLU"),
                    ("order", "conv_out"),
                    ("table", "SiLU"),
                    ("format", "SiLU"),
                    ("width", "SiLU"),
                    ("overflow", "SiLU"),
                    ("rounding", "SiLU"),
                    ("rounding", "conv_out"),
                    ("twice", "conv_out"),
                ],
            ),
            Box::new(|path, layer, seen, _, like| {
                let scale = f64::from(path.scale(layer, U::ConvOut).unwrap().get());
                let code = |v: f64| (v / scale).round().clamp(-128.0, 127.0);
                let values =
                    conv_parts(path, layer, seen).run(ALL_TOKENS, |v| silu(scale * code(v)));
                store(&values, like, scale, Round::Away)
            }),
        );
        self.made(
            "second: of the padded convolution the last tokens are kept, not the first",
            ("conv", real),
            ("5-6", "exact"),
            (
                ALL,
                &[
                    ("shifted", "conv_out_f32"),
                    ("shifted", "conv_out"),
                    ("shifted", "input"),
                    ("neighbour", "input"),
                    ("order", "taps"),
                ],
            ),
            convolved(|mut c| {
                let (l, e) = c.x.dim();
                let late = c.w.ncols() - 1;
                let own = c.x.clone();
                c.x = Array2::zeros((l + late, e));
                c.x.slice_mut(s![..l, ..]).assign(&own);
                c.run(ALL_TOKENS, silu).slice(s![late.., ..]).to_owned()
            }),
        );
        self.model(
            "second: conv's weight is clipped at a percentile",
            "conv",
            ("5-7", "asic-int8"),
            (
                ALL,
                &[
                    ("overflow", "weight"),
                    ("width", "weight"),
                    ("format", "weight"),
                    ("weights", "weight"),
                ],
            ),
            |m, l| {
                m.layers[l]
                    .conv_weight
                    .codes
                    .mapv_inplace(|v| v.clamp(-48, 48))
            },
        );
        self.made(
            "second: the select of SiLU's line is inverted",
            ("conv", real),
            ("5-1", "torch"),
            (
                ALL,
                &[
                    ("function", "SiLU"),
                    ("left-out", "SiLU"),
                    ("order", "SiLU"),
                ],
            ),
            conv_of(ALL_TOKENS, |v| if v < 0.0 { v } else { silu(v) }, |_| {}),
        );
        self.model(
            "second: channels were permuted in the weight and not in the bias",
            "conv",
            ("3-f16", "exact"),
            (
                ALL,
                &[
                    ("order", "bias"),
                    ("neighbour", "bias"),
                    ("shifted", "bias"),
                ],
            ),
            |m, l| {
                let own = m.layers[l].conv_bias.codes.clone();
                let half = own.len() / 2;
                for (c, v) in m.layers[l].conv_bias.codes.iter_mut().enumerate() {
                    *v = own[c % 2 * half + c / 2];
                }
            },
        );
    }

    fn second_x_proj(&mut self) {
        self.made(
            "second: x_proj rounds to half steps first",
            ("x_proj", &[P::XProjOut]),
            ("2-3", "exact"),
            (
                ALL,
                &[
                    ("rounding", "x_proj_out"),
                    ("rounding", "output"),
                    ("twice", "x_proj_out"),
                ],
            ),
            linear(
                Step::XProj,
                P::XProjIn,
                (U::XProjIn, Some(U::XProjOut)),
                Round::Away,
                |_, _, _| {},
                |_, _, v| (2.0 * v).round() / 2.0,
            ),
        );
        self.made(
            "second: FP32 x_proj adds in bf16",
            ("x_proj", &[P::XProjOut]),
            ("6-3", "exact"),
            (
                ALL,
                &[
                    ("format", "sum"),
                    ("format", "accumulator"),
                    ("format", "x_proj_out"),
                    ("format", "output"),
                    ("width", "sum"),
                    ("width", "accumulator"),
                    ("rounding", "sum"),
                ],
            ),
            Box::new(|path, layer, seen, _, like| {
                let x = seen[&P::SsmU].to_real();
                let all = path.linear_weights(layer, Step::XProj);
                let w = all[0].stored().unwrap();
                let unit = w.scales[0].get();
                let w = w.codes.mapv(|c| unit * f32::from(c));
                let sum = Array2::from_shape_fn((x.nrows(), w.nrows()), |(t, c)| {
                    let add =
                        |sum: f32, k: usize| bf16::from_f32(sum + x[(t, k)] * w[(c, k)]).to_f32();
                    f64::from((0..x.ncols()).fold(0.0, add))
                });
                store(&sum, like, 1.0, Round::Even)
            }),
        );
        self.model(
            "second: x_proj's weight has a zero point of 7, which is not taken off",
            "x_proj",
            ("0", "exact"),
            (
                ALL,
                &[
                    ("zero-point", "weight"),
                    ("constant", "weight"),
                    ("shifted", "weight"),
                ],
            ),
            |m, l| int8(&mut m.layers[l].x_proj).mapv_inplace(|v| v.saturating_add(7)),
        );
        self.made(
            "second: x_proj's quantizer rounds by dice",
            ("x_proj", &[P::XProjIn]),
            ("2-4", "exact"),
            (
                ALL,
                &[
                    ("rounding", "x_proj_in"),
                    ("rounding", "input"),
                    ("rounding", "output"),
                ],
            ),
            Box::new(|path, layer, seen, _, like| {
                let scale = f64::from(path.scale(layer, U::XProjQuant).unwrap().get());
                let mut values = seen[&P::ConvOutF32].to_real().mapv(f64::from);
                for ((t, c), v) in values.indexed_iter_mut() {
                    let dice = (t as u32 * 384 + c as u32).wrapping_mul(2_654_435_761) >> 8;
                    *v = *v / scale + f64::from(dice) / f64::from(1 << 24);
                }
                store(&values, like, 1.0, Round::Floor)
            }),
        );
    }

    fn second_dt_proj(&mut self) {
        self.read(
            "second: x_proj's output is split into B, C and dt",
            ("dt_proj", &[P::XProjOut]),
            ("5-3", "torch"),
            (
                ALL,
                &[
                    ("order", "input"),
                    ("order", "inputs"),
                    ("order", "dt"),
                    ("order", "x_proj_out"),
                    ("shifted", "input"),
                    ("shifted", "dt"),
                    ("neighbour", "input"),
                    ("neighbour", "dt"),
                ],
            ),
            columns(|c, width| {
                let r = width - 32;
                if c < r { c + 32 } else { c - r }
            }),
        );
        self.made(
            "second: half a step is added twice before the shift",
            ("dt_proj", &[P::DtProjOut]),
            ("5-0", "exact"),
            (
                ALL,
                &[
                    ("rounding", "dt_proj_out"),
                    ("rounding", "output"),
                    ("zero-point", "dt_proj_out"),
                ],
            ),
            linear(
                Step::DtProj,
                P::XProjOut,
                (U::DtProjIn, Some(U::DtProjOut)),
                Round::Floor,
                |_, _, _| {},
                |_, _, v| v + 1.0,
            ),
        );
        self.model(
            "second: nibbles of dt_proj's codes are swapped",
            "dt_proj",
            ("0", "tflite-double"),
            (
                ALL,
                &[
                    ("order", "weight"),
                    ("weights", "weight"),
                    ("format", "weight"),
                    ("nibble-order", "dt_proj"),
                    ("nibble-order", "weight"),
                ],
            ),
            |m, l| {
                m.layers[l]
                    .dt_proj
                    .codes
                    .mapv_inplace(|v| (v as u8).rotate_left(4) as i8);
            },
        );
    }
}
