//! Faults of the fourth list in the four linear steps.

use super::*;

impl Fresh {
    pub(super) fn fourth_in_proj(&mut self) {
        let in_proj_out: &[P] = &[P::InProjOut];
        self.model(
            "fourth: rows of x and z are interleaved",
            "in_proj",
            ("0", "exact"),
            (
                ALL,
                &[
                    ("order", "in_proj_out"),
                    ("order", "output"),
                    ("order", "weight"),
                    ("transposed", "output"),
                ],
            ),
            // As fused gates have them.
            |m, l| {
                let w = int8(&mut m.layers[l].in_proj);
                let e = w.nrows() / 2;
                *w = Array2::from_shape_fn(w.dim(), |(r, k)| w[(r % 2 * e + r / 2, k)]);
            },
        );
        self.model(
            "fourth: x and z were quantized each to its own largest weight",
            "in_proj",
            ("2-3", "exact"),
            (
                CHANNELS,
                &[
                    ("factor", "weight"),
                    ("factor", "in_proj_out"),
                    ("factor", "output"),
                    ("stale-scale", "weight"),
                    ("stale-scale", "in_proj_out"),
                    ("stale-scale", "in_proj_output"),
                    ("neighbour", "scale"),
                    ("weights", "weight"),
                ],
            ),
            // One scale is kept for both.
            |m, l| {
                let w = int8(&mut m.layers[l].in_proj);
                let e = w.nrows() / 2;
                for from in [0, e] {
                    let mut half = w.slice_mut(s![from..from + e, ..]);
                    let most = half.fold(1.0f64, |most, c| most.max(f64::from(*c).abs()));
                    half.mapv_inplace(|c| (127.0 * f64::from(c) / most).round() as i8);
                }
            },
        );
        self.made(
            "fourth: the last block of K is added twice",
            ("in_proj", in_proj_out),
            ("2-2", "torch"),
            (
                ALL,
                &[
                    ("twice", "sum"),
                    ("twice", "input"),
                    ("twice", "weight"),
                    ("factor", "input"),
                    ("factor", "sum"),
                    ("not-reset", "sum"),
                ],
            ),
            in_proj(
                |l| l.x.slice_mut(s![.., 160..]).mapv_inplace(|v| 2.0 * v),
                Round::Even,
            ),
        );
        self.made(
            "fourth: bytes are packed without a mask",
            ("in_proj", in_proj_out),
            ("0", "torch"),
            (
                ALL,
                &[
                    ("format", "input"),
                    ("sign", "input"),
                    ("width", "input"),
                    ("overflow", "input"),
                    ("stuck-bit", "input"),
                    ("neighbour", "input"),
                    ("order", "inputs"),
                ],
            ),
            // `a | b << 8 | c << 16 | d << 24` of ints: the sign of a covers b, c and d.
            in_proj(
                |l| {
                    let own = l.x.clone();
                    for ((t, k), v) in l.x.indexed_iter_mut() {
                        if (k & !3..k).any(|before| own[(t, before)] < 0.0) {
                            *v = -1.0;
                        }
                    }
                },
                Round::Even,
            ),
        );
        self.made(
            "fourth: the multiplier has five bits",
            ("in_proj", in_proj_out),
            ("0", "deployed"),
            (
                ALL,
                &[
                    ("format", "scale"),
                    ("rounding", "scale"),
                    ("width", "scale"),
                    ("factor", "in_proj_out"),
                    ("factor", "output"),
                    ("factor", "sum"),
                    ("stale-scale", "in_proj_out"),
                    ("stale-scale", "in_proj_output"),
                    ("stale-scale", "in_proj_in"),
                    ("stale-scale", "in_proj_input"),
                    ("stale-scale", "weight"),
                    ("factor", "weight"),
                    ("factor", "input"),
                ],
            ),
            product(
                Step::InProj,
                P::NormOut,
                (U::InProjIn, Some(U::InProjOut)),
                sums,
                |_, _, by| {
                    let unit = (by.log2().floor() - 4.0).exp2();
                    (by / unit).floor() * unit
                },
            ),
        );
        self.made(
            "fourth: a half is added by the accumulator's first value and by the shift",
            ("in_proj", in_proj_out),
            ("0", "exact"),
            (
                ALL,
                &[
                    ("rounding", "in_proj_out"),
                    ("rounding", "output"),
                    ("zero-point", "in_proj_out"),
                    ("zero-point", "output"),
                    ("zero-point", "sum"),
                ],
            ),
            linear(
                Step::InProj,
                P::NormOut,
                (U::InProjIn, Some(U::InProjOut)),
                Round::Floor,
                |_, _, _| {},
                |_, _, v| v + 1.0,
            ),
        );
    }

    pub(super) fn fourth_x_proj(&mut self) {
        let x_proj_out: &[P] = &[P::XProjOut];
        self.read(
            "fourth: x_proj's input was fetched one row too far",
            ("x_proj", &[P::XProjIn]),
            ("2-4", "exact"),
            (
                ALL,
                &[
                    ("neighbour", "input"),
                    ("shifted", "input"),
                    ("neighbour", "x_proj_out"),
                    ("shifted", "x_proj_out"),
                    ("shifted", "output"),
                    ("neighbour", "output"),
                    ("order", "tokens"),
                ],
            ),
            // Behind the last row lie zeros.
            whole(|v| {
                let l = v.nrows();
                let at = |(t, c)| if t + 1 < l { v[(t + 1, c)] } else { 0.0 };
                Array2::from_shape_fn(v.dim(), at)
            }),
        );
        self.model(
            "fourth: the rank of dt was padded to sixteen",
            "x_proj",
            ("2-1", "deployed"),
            (
                CHANNELS,
                &[
                    ("shifted", "weight"),
                    ("shifted", "x_proj_out"),
                    ("shifted", "output"),
                    ("order", "weight"),
                    ("order", "x_proj_out"),
                    ("order", "output"),
                ],
            ),
            |m, l| {
                let w = int8(&mut m.layers[l].x_proj);
                *w = Array2::from_shape_fn(w.dim(), |(r, k)| match r {
                    0..12 => w[(r, k)],
                    12..16 => 0,
                    _ => w[(r - 4, k)],
                });
            },
        );
        self.made(
            "fourth: x_proj's sum becomes binary16 before it is scaled",
            ("x_proj", x_proj_out),
            ("0", "exact"),
            (
                ALL,
                &[
                    ("format", "sum"),
                    ("format", "accumulator"),
                    ("width", "sum"),
                    ("width", "accumulator"),
                    ("rounding", "sum"),
                    ("rounding", "accumulator"),
                    ("overflow", "sum"),
                    ("overflow", "accumulator"),
                ],
            ),
            x_proj_sums(|v| f16::from_f64(v).to_f64()),
        );
        self.made(
            "fourth: every fourth product is subtracted",
            ("x_proj", x_proj_out),
            ("2-0", "exact"),
            (
                ALL,
                &[
                    ("sign", "input"),
                    ("sign", "weight"),
                    ("sign", "sum"),
                    ("weights", "weight"),
                ],
            ),
            // A multiplier of the tree with its sign inverted.
            x_proj(|l| {
                let mut lane = l.x.slice_mut(s![.., 3..;4]);
                lane.mapv_inplace(|v| -v);
            }),
        );
        self.made(
            "fourth: columns above 31 lie in the words of the first",
            ("x_proj", x_proj_out),
            ("0", "deployed"),
            (
                CHANNELS,
                &[
                    ("neighbour", "x_proj_out"),
                    ("shifted", "x_proj_out"),
                    ("neighbour", "output"),
                    ("shifted", "output"),
                    ("order", "x_proj_out"),
                    ("order", "output"),
                    ("order", "weight"),
                    ("neighbour", "weight"),
                ],
            ),
            // Five bits of address; what is written later stays.
            columns(|c, n| if c + 32 < n { c + 32 } else { c }),
        );
    }

    pub(super) fn fourth_dt_proj(&mut self) {
        let dt_proj_out: &[P] = &[P::DtProjOut];
        self.made(
            "fourth: dt_proj's loop over K goes in steps of eight",
            ("dt_proj", dt_proj_out),
            ("2-3", "torch"),
            (
                ALL,
                &[
                    ("part-missing", "sum"),
                    ("part-missing", "input"),
                    ("left-out", "input"),
                    ("left-out", "weight"),
                ],
            ),
            dt_proj(|l| l.x.slice_mut(s![.., 8..]).fill(0.0)),
        );
        self.made(
            "fourth: dt below zero is cut off",
            ("dt_proj", dt_proj_out),
            ("2-4", "deployed"),
            (
                ALL,
                &[
                    ("overflow", "dt_proj_out"),
                    ("overflow", "output"),
                    ("function", "dt_proj_out"),
                    ("function", "output"),
                    ("left-out", "dt_proj_out"),
                ],
            ),
            each(|_, _, v| v.max(0.0)),
        );
        self.model(
            "fourth: the scale of dt_proj's weight is the power of two below",
            "dt_proj",
            ("0", "tflite-double"),
            (
                ALL,
                &[
                    ("format", "scale"),
                    ("rounding", "scale"),
                    ("stale-scale", "weight"),
                    ("stale-scale", "dt_proj_in"),
                    ("stale-scale", "dt_proj_out"),
                    ("stale-scale", "dt_proj_output"),
                    ("factor", "weight"),
                    ("factor", "input"),
                    ("factor", "sum"),
                    ("factor", "dt_proj_out"),
                    ("factor", "output"),
                ],
            ),
            |m, l| {
                let scale = &mut m.layers[l].dt_proj.scale;
                let own = scale.get();
                *scale = scale.times(own.log2().floor().exp2() / own).unwrap();
            },
        );
        self.made(
            "fourth: the tile of outputs is stored by columns",
            ("dt_proj", dt_proj_out),
            ("5-0", "exact"),
            (
                ALL,
                &[
                    ("transposed", "output"),
                    ("transposed", "weight"),
                    ("order", "output"),
                    ("order", "weight"),
                ],
            ),
            columns(|c, n| c % 16 * (n / 16) + c / 16),
        );
    }

    pub(super) fn fourth_out_proj(&mut self) {
        let out: &[P] = &[P::OutProjOut];
        self.made(
            "fourth: the two halves of a word are exchanged",
            ("out_proj", out),
            ("2-1", "exact"),
            (
                ALL,
                &[
                    ("order", "out_proj_out"),
                    ("order", "output"),
                    ("order", "weight"),
                    ("neighbour", "out_proj_out"),
                    ("neighbour", "output"),
                ],
            ),
            columns(|c, _| c ^ 1),
        );
        self.made(
            "fourth: the second part of a split K is lost for the last tile of tokens",
            ("out_proj", out),
            ("0", "deployed"),
            (
                TOKENS,
                &[
                    ("part-missing", "sum"),
                    ("part-missing", "input"),
                    ("left-out", "input"),
                    ("left-out", "weight"),
                ],
            ),
            only(
                out_proj(|l| l.x.slice_mut(s![.., 192..]).fill(0.0)),
                |t, _| t >= 48,
            ),
        );
        self.made(
            "fourth: out_proj's input has the scale of the block before",
            ("out_proj", out),
            ("2-4", "exact"),
            (
                ALL,
                &[
                    ("neighbour", "scale"),
                    ("stale-scale", "out_proj_in"),
                    ("stale-scale", "out_proj_input"),
                    ("stale-scale", "weight"),
                    ("factor", "input"),
                    ("factor", "sum"),
                    ("factor", "weight"),
                    ("factor", "out_proj_out"),
                    ("factor", "output"),
                ],
            ),
            product(
                Step::OutProj,
                P::HadOut,
                (U::OutProjIn, None),
                sums,
                |path, layer, by| {
                    let of = |l| f64::from(path.scale(l, U::OutProjIn).unwrap().get());
                    let layers = path.config().n_layers;
                    by * of((layer + layers - 1) % layers) / of(layer)
                },
            ),
        );
        self.made(
            "fourth: sums of sixteen products lose their last six bits",
            ("out_proj", out),
            ("0", "exact"),
            (
                ALL,
                &[
                    ("width", "sum"),
                    ("width", "accumulator"),
                    ("rounding", "sum"),
                    ("rounding", "accumulator"),
                    ("format", "sum"),
                    ("format", "accumulator"),
                    ("stuck-bit", "sum"),
                    ("stuck-bit", "accumulator"),
                ],
            ),
            product(
                Step::OutProj,
                P::HadOut,
                (U::OutProjIn, None),
                |l| {
                    let mut sum = Array2::zeros((l.x.nrows(), l.w.nrows()));
                    for from in (0..l.x.ncols()).step_by(16) {
                        let block = s![.., from..from + 16];
                        let part = l.x.slice(block).dot(&l.w.slice(block).t());
                        sum += &part.mapv(|v| 64.0 * (v / 64.0).floor());
                    }
                    sum
                },
                ideal,
            ),
        );
        self.model(
            "fourth: out_proj's weight was stored before it was rotated",
            "out_proj",
            ("2-0", "torch"),
            (
                ALL,
                &[
                    ("left-out", "rotation"),
                    ("weights", "weight"),
                    ("neighbour", "weight"),
                    ("twice", "rotation"),
                ],
            ),
            // The columns are rotated back by the stages of 32.
            |m, l| {
                let w = int8(&mut m.layers[l].out_proj);
                let own = w.clone();
                for ((r, k), v) in w.indexed_iter_mut() {
                    let sum: f64 = (0..32)
                        .map(|j| {
                            let odd = (j & k & 31).count_ones() % 2 == 1;
                            let of = f64::from(own[(r, k & !31 | j)]);
                            if odd { -of } else { of }
                        })
                        .sum();
                    *v = (sum / 32f64.sqrt()).round_ties_even() as i8;
                }
            },
        );
    }
}

/// x_proj with sums that become something else.
fn x_proj_sums(to: fn(f64) -> f64) -> Make {
    Box::new(move |path, layer, seen, _, like| {
        let lin = lin_parts(path, layer, seen, Step::XProj, (P::ConvOut, U::XProjIn));
        let scale = f64::from(path.scale(layer, U::XProjOut).unwrap().get());
        let v = sums(&lin).mapv(|v| to(v) * lin.unit);
        store(&v, like, scale, Round::Even)
    })
}
