//! Faults of the norm and of the linear steps.

use super::*;

/// Rows of a weight as a permutation has them.
fn rows(w: &mut Array2<i8>, from: impl Fn(usize) -> usize) {
    let own = w.clone();
    *w = Array2::from_shape_fn(own.dim(), |(r, k)| own[(from(r), k)]);
}

impl Fresh {
    pub(super) fn unseen_norm(&mut self) {
        self.made(
            "unseen: the mean is over a padded width of 256",
            ("norm", &[P::NormOut]),
            ("0", "tflite-single"),
            (
                ALL,
                &[
                    ("constant", "mean"),
                    ("factor", "mean"),
                    ("constant", "norm"),
                    ("factor", "norm"),
                    ("factor", "norm_out"),
                    ("factor", "output"),
                    ("factor", "weight"),
                    ("constant", "weight"),
                    ("stale-scale", "norm_out"),
                    ("stale-scale", "in_proj_input"),
                ],
            ),
            normed(|r, t, eps| (squares(r, t) / 256.0 + eps).sqrt()),
        );
        self.made(
            "unseen: four tokens share the root of the first",
            ("norm", &[P::NormOut]),
            ("5-1", "exact"),
            (
                TOKENS,
                &[
                    ("neighbour", "mean"),
                    ("neighbour", "norm"),
                    ("neighbour", "rms"),
                ],
            ),
            normed(|r, t, eps| (squares(r, t / 4 * 4) / r.ncols() as f64 + eps).sqrt()),
        );
        self.made(
            "unseen: the root is the bit trick without a Newton step",
            ("norm", &[P::NormOut]),
            ("2-1", "torch"),
            (
                ALL,
                &[
                    ("function", "norm"),
                    ("function", "mean"),
                    ("function", "root"),
                    ("function", "rsqrt"),
                    ("table", "norm"),
                    ("table", "root"),
                    ("table", "rsqrt"),
                ],
            ),
            normed(|r, t, eps| {
                let v = (squares(r, t) / r.ncols() as f64 + eps) as f32;
                1.0 / f64::from(f32::from_bits(0x5f37_59df - (v.to_bits() >> 1)))
            }),
        );
        self.made(
            "unseen: hidden is subtracted from the residual",
            ("norm", &[P::ResidualOut]),
            ("6-3", "exact"),
            (ALL, &[("sign", "hidden")]),
            Box::new(|_, _, seen, _, like| {
                // The sum less twice one of its terms.
                Tensor::F32(like.to_real() - 2.0 * seen[&P::HiddenIn].to_real())
            }),
        );
        self.made(
            "unseen: a warp's channels of the norm are a token old",
            ("norm", &[P::NormOut]),
            ("0", "torch-cpu"),
            (
                CHANNELS,
                &[
                    ("shifted", "norm_out"),
                    ("neighbour", "residual"),
                    ("neighbour", "input"),
                ],
            ),
            whole(|v| {
                let mut out = v.clone();
                let before = late(v, 1);
                out.slice_mut(s![.., 160..])
                    .assign(&before.slice(s![.., 160..]));
                out
            }),
        );
    }

    pub(super) fn unseen_in_proj(&mut self) {
        let in_proj_out: &[P] = &[P::InProjOut];
        let scales = (U::InProjIn, Some(U::InProjOut));
        self.model(
            "unseen: rows of x and z interleaved",
            "in_proj",
            ("2-3", "torch"),
            (
                ALL,
                &[
                    ("order", "in_proj_out"),
                    ("order", "output"),
                    ("order", "weight"),
                ],
            ),
            |m, l| {
                let w = int8(&mut m.layers[l].in_proj);
                let e = w.nrows() / 2;
                rows(w, |r| r % 2 * e + r / 2);
            },
        );
        self.model(
            "unseen: each tile of 16 by 16 weights transposed",
            "in_proj",
            ("0", "tflite-double"),
            (
                ALL,
                &[
                    ("transposed", "weight"),
                    ("order", "weight"),
                    ("weights", "weight"),
                ],
            ),
            |m, l| {
                let w = int8(&mut m.layers[l].in_proj);
                let own = w.clone();
                *w = Array2::from_shape_fn(own.dim(), |(r, k)| {
                    own[(r / 16 * 16 + k % 16, k / 16 * 16 + r % 16)]
                });
            },
        );
        self.made(
            "unseen: sixteen products are summed in 16 bits",
            ("in_proj", in_proj_out),
            ("2-1", "exact"),
            (
                ALL,
                &[
                    ("overflow", "sum"),
                    ("overflow", "accumulator"),
                    ("overflow", "in_proj_out"),
                    ("width", "sum"),
                    ("width", "accumulator"),
                    ("narrow-accumulator", "in_proj"),
                ],
            ),
            product(
                Step::InProj,
                P::NormOut,
                scales,
                |lin| {
                    // Unsigned by signed bytes: the input with 128 added, which is taken off the sums.
                    let l = lin.x.nrows();
                    Array2::from_shape_fn((l, lin.w.nrows()), |(t, c)| {
                        let (x, w) = (lin.x.row(t), lin.w.row(c));
                        let pair = |k: usize| (x[k] + 128.0) * w[k] + (x[k + 1] + 128.0) * w[k + 1];
                        let add = |sum: f64, k| (sum + pair(k)).clamp(-32768.0, 32767.0);
                        let sixteen = |k: usize| (k..k + 16).step_by(2).fold(0.0, add);
                        let sum: f64 = (0..x.len()).step_by(16).map(sixteen).sum();
                        sum - 128.0 * w.sum()
                    })
                },
                ideal,
            ),
        );
        self.made(
            "unseen: the multiplier is truncated to three bits",
            ("in_proj", in_proj_out),
            ("0", "exact"),
            (
                ALL,
                &[
                    ("factor", "in_proj_out"),
                    ("factor", "output"),
                    ("factor", "weight"),
                    ("factor", "input"),
                    ("factor", "sum"),
                    ("stale-scale", "in_proj_output"),
                    ("stale-scale", "in_proj_out"),
                    ("stale-scale", "in_proj_input"),
                    ("stale-scale", "in_proj_in"),
                ],
            ),
            product(Step::InProj, P::NormOut, scales, sums, |_, _, by| {
                let unit = by.log2().floor().exp2() / 4.0;
                (by / unit).floor() * unit
            }),
        );
        self.made(
            "unseen: z is written a channel on",
            ("in_proj", in_proj_out),
            ("2-0", "deployed"),
            (
                CHANNELS,
                &[("shifted", "in_proj_out"), ("order", "in_proj_out")],
            ),
            columns(|c, width| if c > width / 2 { c - 1 } else { c }),
        );
        self.made(
            "unseen: the last tile is not written",
            ("in_proj", in_proj_out),
            ("3-grid", "torch"),
            (
                BOTH,
                &[("constant", "in_proj_out"), ("left-out", "in_proj_out")],
            ),
            each(|t, c, v| if t >= 48 && c >= 576 { 0.0 } else { v }),
        );
        self.model(
            "unseen: neighbours of K exchanged, as by swapped nibbles",
            "in_proj",
            ("0", "tflite-single"),
            (
                ALL,
                &[
                    ("order", "weight"),
                    ("order", "inputs"),
                    ("order", "input"),
                    ("weights", "weight"),
                    ("nibble-order", "in_proj"),
                ],
            ),
            |m, l| {
                let w = int8(&mut m.layers[l].in_proj);
                let own = w.clone();
                *w = Array2::from_shape_fn(own.dim(), |(r, k)| own[(r, k ^ 1)]);
            },
        );
        self.model(
            "unseen: the norm's weight is folded in twice, after the rotation",
            "in_proj",
            ("6-1", "torch"),
            (
                ALL,
                &[
                    ("weights", "weight"),
                    ("twice", "weight"),
                    ("factor", "weight"),
                    ("factor", "input"),
                ],
            ),
            |m, l| {
                let norm = sample::float_checkpoint().layers[l % 12].norm.clone();
                let w = int8(&mut m.layers[l].in_proj);
                for ((_, k), v) in w.indexed_iter_mut() {
                    let by = f64::from(norm[k % norm.len()]);
                    *v = (f64::from(*v) * by).round_ties_even() as i8;
                }
            },
        );
        self.made(
            "unseen: x in binary16 goes over the INT8 grid",
            ("in_proj", &[P::InProjX]),
            ("3-f16", "exact"),
            (
                ALL,
                &[
                    ("format", "in_proj_x"),
                    ("format", "output"),
                    ("width", "in_proj_x"),
                    ("width", "output"),
                    ("rounding", "in_proj_x"),
                ],
            ),
            Box::new(|path, layer, _, _, like| {
                let scale = f64::from(path.scale(layer, U::InProjOut).unwrap().get());
                let own = like.to_real().mapv(f64::from);
                let code = |v: f64| (v / scale).round_ties_even().clamp(-128.0, 127.0);
                store(&own.mapv(|v| scale * code(v)), like, 1.0, Round::Even)
            }),
        );
    }

    pub(super) fn unseen_x_proj(&mut self) {
        self.made(
            "unseen: the second half of K is added twice",
            ("x_proj", &[P::XProjOut]),
            ("0", "deployed"),
            (
                ALL,
                &[("twice", "sum"), ("twice", "input"), ("factor", "input")],
            ),
            x_proj(|l| {
                let k = l.x.ncols();
                l.x.slice_mut(s![.., k / 2..]).mapv_inplace(|x| 2.0 * x);
            }),
        );
        self.made(
            "unseen: x_proj writes with the scale of the next block",
            ("x_proj", &[P::XProjOut]),
            ("0", "exact"),
            (
                ALL,
                &[
                    ("stale-scale", "x_proj_output"),
                    ("stale-scale", "x_proj_out"),
                    ("stale-scale", "x_proj_input"),
                    ("stale-scale", "x_proj_in"),
                    ("neighbour", "x_proj_out"),
                    ("neighbour", "scale"),
                    ("factor", "x_proj_out"),
                    ("factor", "output"),
                    ("factor", "weight"),
                    ("factor", "input"),
                ],
            ),
            product(
                Step::XProj,
                P::ConvOut,
                (U::XProjIn, Some(U::XProjOut)),
                sums,
                |path, layer, by| {
                    let next = (layer + 1) % path.config().n_layers;
                    let scale = |l| f64::from(path.scale(l, U::XProjOut).unwrap().get());
                    by * scale(layer) / scale(next)
                },
            ),
        );
        self.made(
            "unseen: x_proj's quantizer is unsigned",
            ("x_proj", &[P::XProjIn]),
            ("2-3", "exact"),
            (
                ALL,
                &[
                    ("overflow", "x_proj_in"),
                    ("function", "x_proj_in"),
                    ("width", "x_proj_in"),
                    ("overflow", "input"),
                    ("function", "input"),
                ],
            ),
            each(|_, _, v| v.max(0.0)),
        );
        self.made(
            "unseen: FP32 x_proj multiplies in TF32",
            ("x_proj", &[P::XProjOut]),
            ("6-1", "exact"),
            (
                ALL,
                &[
                    ("format", "input"),
                    ("format", "inputs"),
                    ("format", "weight"),
                    ("format", "sum"),
                    ("format", "x_proj_out"),
                    ("format", "output"),
                    ("two-edits", "input and weight"),
                    ("two-edits", "weight and input"),
                ],
            ),
            Box::new(|path, layer, seen, _, like| {
                let tf32 = |v: f64| {
                    let bits = (v as f32).to_bits();
                    f64::from(f32::from_bits((bits + 0xfff + (bits >> 13 & 1)) & !0x1fff))
                };
                let x = seen[&P::SsmU].to_real().mapv(f64::from).mapv(tf32);
                let all = path.linear_weights(layer, Step::XProj);
                let w = all[0].stored().unwrap();
                let unit = w.scales[0].get();
                let w = w.codes.mapv(|c| tf32(f64::from(unit * f32::from(c))));
                store(&x.dot(&w.t()), like, 1.0, Round::Even)
            }),
        );
    }

    pub(super) fn unseen_dt_proj(&mut self) {
        self.made(
            "unseen: dt_proj wraps at six bits",
            ("dt_proj", &[P::DtProjOut]),
            ("5-6", "exact"),
            (
                ALL,
                &[("overflow", "dt_proj_out"), ("width", "dt_proj_out")],
            ),
            each(|_, _, v| f64::from(((v as i8) << 2) >> 2)),
        );
        self.made(
            "unseen: dt_proj's loop runs to 16 into the next row",
            ("dt_proj", &[P::DtProjOut]),
            ("2-1", "exact"),
            (ALL, &[("neighbour", "sum")]),
            Box::new(|path, layer, seen, _, like| {
                let lin = lin_parts(path, layer, seen, Step::DtProj, (P::XProjOut, U::DtProjIn));
                let Tensor::I8(x) = &seen[&P::XProjOut] else {
                    panic!("codes")
                };
                let w: Vec<f64> = lin.w.iter().copied().collect();
                let (e, r) = lin.w.dim();
                let scale = f64::from(path.scale(layer, U::DtProjOut).unwrap().get());
                let sum = Array2::from_shape_fn((x.codes.nrows(), e), |(t, c)| {
                    let term = |k: usize| {
                        f64::from(x.codes[(t, k)]) * w.get(c * r + k).copied().unwrap_or(0.0)
                    };
                    lin.unit * (0..16).map(term).sum::<f64>()
                });
                store(&sum, like, scale, Round::Even)
            }),
        );
        self.made(
            "unseen: dt_proj's scale is the next power of two",
            ("dt_proj", &[P::DtProjOut]),
            ("2-2", "exact"),
            (
                ALL,
                &[
                    ("stale-scale", "dt_proj_output"),
                    ("stale-scale", "dt_proj_out"),
                    ("stale-scale", "x_proj_output"),
                    ("stale-scale", "dt_proj_in"),
                    ("factor", "dt_proj_out"),
                    ("factor", "output"),
                    ("factor", "weight"),
                    ("factor", "input"),
                    ("format", "scale"),
                    ("rounding", "scale"),
                ],
            ),
            product(
                Step::DtProj,
                P::XProjOut,
                (U::DtProjIn, Some(U::DtProjOut)),
                sums,
                |path, layer, by| {
                    let scale = f64::from(path.scale(layer, U::DtProjOut).unwrap().get());
                    by * scale / scale.log2().ceil().exp2()
                },
            ),
        );
        self.read(
            "unseen: dt begins four columns on",
            ("dt_proj", &[P::XProjOut]),
            ("6-2", "exact"),
            (
                ALL,
                &[
                    ("neighbour", "input"),
                    ("neighbour", "dt"),
                    ("shifted", "input"),
                    ("order", "input"),
                    ("order", "inputs"),
                ],
            ),
            columns(|c, width| if c < width - 32 { c + 4 } else { c }),
        );
    }

    pub(super) fn unseen_out_proj(&mut self) {
        let out_proj_out: &[P] = &[P::OutProjOut];
        self.made(
            "unseen: blocks of 32 products are added in 14 bits",
            ("out_proj", out_proj_out),
            ("2-1", "exact"),
            (
                ALL,
                &[
                    ("overflow", "sum"),
                    ("overflow", "accumulator"),
                    ("width", "sum"),
                    ("width", "accumulator"),
                    ("narrow-accumulator", "out_proj"),
                ],
            ),
            product(
                Step::OutProj,
                P::HadOut,
                (U::OutProjIn, None),
                |lin| {
                    Array2::from_shape_fn((lin.x.nrows(), lin.w.nrows()), |(t, c)| {
                        let mut sum = 0.0f64;
                        for k in (0..lin.x.ncols()).step_by(32) {
                            let block = s![k..k + 32];
                            let products =
                                lin.x.row(t).slice(block).dot(&lin.w.row(c).slice(block));
                            sum = (sum + products).clamp(-8192.0, 8191.0);
                        }
                        sum
                    })
                },
                ideal,
            ),
        );
        self.made(
            "unseen: the last tile of K still has the first",
            ("out_proj", out_proj_out),
            ("2-4", "deployed"),
            (
                ALL,
                &[
                    ("neighbour", "input"),
                    ("order", "input"),
                    ("order", "inputs"),
                    ("shifted", "input"),
                ],
            ),
            out_proj(|l| {
                let k = l.x.ncols();
                let first = l.x.slice(s![.., ..64]).to_owned();
                l.x.slice_mut(s![.., k - 64..]).assign(&first);
            }),
        );
        self.model(
            "unseen: eight rows of out_proj shifted right by a bit",
            "out_proj",
            ("5-2", "torch"),
            (
                CHANNELS,
                &[
                    ("factor", "weight"),
                    ("factor", "out_proj_out"),
                    ("factor", "output"),
                    ("weights", "weight"),
                ],
            ),
            |m, l| {
                let w = int8(&mut m.layers[l].out_proj);
                w.slice_mut(s![64..72, ..]).mapv_inplace(|v| v >> 1);
            },
        );
        self.made(
            "unseen: out_proj in FP8",
            ("out_proj", out_proj_out),
            ("2-2", "torch"),
            (ALL, &[("format", "out_proj_out"), ("format", "output")]),
            each(|_, _, v| {
                // E4M3: three bits after the first, no smaller step than 2^-9.
                let step = (v.abs().log2().floor() - 3.0).max(-9.0).exp2();
                (v / step).round_ties_even() * step
            }),
        );
        self.made(
            "unseen: out_proj adds to what the buffer held",
            ("out_proj", out_proj_out),
            ("2-4", "exact"),
            (
                ALL,
                &[
                    ("not-reset", "sum"),
                    ("not-reset", "accumulator"),
                    ("not-reset", "out_proj_out"),
                    ("not-reset", "output"),
                    ("neighbour", "out_proj_out"),
                    ("twice", "hidden"),
                ],
            ),
            Box::new(|_, _, seen, _, like| {
                // The buffer is the block's input: a product with β = 1.
                let sum = like.to_real() + seen[&P::HiddenIn].to_real();
                Tensor::F16(sum.mapv(f16::from_f32))
            }),
        );
        self.model(
            "unseen: a column of out_proj is zero",
            "out_proj",
            ("5-6", "torch-cpu"),
            (
                ALL,
                &[
                    ("part-missing", "sum"),
                    ("weights", "weight"),
                    ("left-out", "input"),
                ],
            ),
            |m, l| int8(&mut m.layers[l].out_proj).column_mut(200).fill(0),
        );
        self.model(
            "unseen: two rows of out_proj exchanged",
            "out_proj",
            ("0", "asic-int8"),
            (
                CHANNELS,
                &[
                    ("order", "out_proj_out"),
                    ("order", "output"),
                    ("order", "weight"),
                    ("weights", "weight"),
                ],
            ),
            |m, l| {
                rows(int8(&mut m.layers[l].out_proj), |r| match r {
                    17 => 30,
                    30 => 17,
                    _ => r,
                });
            },
        );
    }
}
