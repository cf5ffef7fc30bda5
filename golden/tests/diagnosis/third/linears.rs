//! Faults of the third list in x_proj, dt_proj and out_proj.

use super::*;
use scalescope_sim::datapath::Datapath;

/// dt_proj by its own reals: of its parts, and of the codes that x_proj left.
fn projected(make: fn(&Datapath, usize, Lin, &Array2<f64>) -> Array2<f64>) -> Make {
    Box::new(move |path, layer, seen, _, like| {
        let lin = lin_parts(path, layer, seen, Step::DtProj, (P::XProjOut, U::DtProjIn));
        let Tensor::I8(x) = &seen[&P::XProjOut] else {
            panic!("codes")
        };
        let scale = f64::from(path.scale(layer, U::DtProjOut).unwrap().get());
        let v = make(path, layer, lin, &x.codes.mapv(f64::from));
        store(&v, like, scale, Round::Even)
    })
}

impl Fresh {
    pub(super) fn third_x_proj(&mut self) {
        let x_proj_out: &[P] = &[P::XProjOut];
        self.model(
            "third: x_proj's rows are B, C, dt",
            "x_proj",
            ("0", "exact"),
            (
                ALL,
                &[
                    ("order", "x_proj_out"),
                    ("order", "output"),
                    ("order", "weight"),
                    ("shifted", "x_proj_out"),
                    ("shifted", "output"),
                    ("shifted", "weight"),
                ],
            ),
            |m, l| {
                let w = int8(&mut m.layers[l].x_proj);
                let rows = w.nrows();
                *w = Array2::from_shape_fn(w.dim(), |(r, k)| w[((r + 12) % rows, k)]);
            },
        );
        self.made(
            "third: x_proj reads with in_proj's input scale",
            ("x_proj", x_proj_out),
            ("2-0", "torch"),
            (
                ALL,
                &[
                    ("stale-scale", "x_proj_in"),
                    ("stale-scale", "x_proj_input"),
                    ("stale-scale", "x_proj_out"),
                    ("stale-scale", "x_proj_output"),
                    ("stale-scale", "weight"),
                    ("neighbour", "scale"),
                    ("factor", "input"),
                    ("factor", "sum"),
                    ("factor", "weight"),
                    ("factor", "x_proj_out"),
                    ("factor", "output"),
                ],
            ),
            product(
                Step::XProj,
                P::ConvOut,
                (U::XProjIn, Some(U::XProjOut)),
                sums,
                |path, layer, by| {
                    let of = |by| f64::from(path.scale(layer, by).unwrap().get());
                    by * of(U::InProjIn) / of(U::XProjIn)
                },
            ),
        );
        self.made(
            "third: the last block of K meets the inputs of the one before",
            ("x_proj", x_proj_out),
            ("2-4", "deployed"),
            (
                ALL,
                &[
                    ("neighbour", "input"),
                    ("shifted", "input"),
                    ("order", "inputs"),
                    ("order", "input"),
                    ("twice", "input"),
                    ("not-reset", "input"),
                    ("history", "input"),
                ],
            ),
            // The copy into the second buffer was not waited for.
            product(
                Step::XProj,
                P::XProjIn,
                (U::XProjIn, Some(U::XProjOut)),
                |l| {
                    let mut x = l.x.clone();
                    x.slice_mut(s![.., 256..])
                        .assign(&l.x.slice(s![.., 128..256]));
                    x.dot(&l.w.t())
                },
                ideal,
            ),
        );
        self.made(
            "third: rows are written 48 apart and read 44 apart",
            ("x_proj", x_proj_out),
            ("2-1", "exact"),
            (
                TOKENS,
                &[
                    ("order", "x_proj_out"),
                    ("order", "output"),
                    ("shifted", "x_proj_out"),
                    ("shifted", "output"),
                    ("transposed", "x_proj_out"),
                    ("transposed", "output"),
                    ("neighbour", "x_proj_out"),
                    ("neighbour", "output"),
                ],
            ),
            whole(|v| {
                let width = v.ncols();
                let written = |at: usize| match at % 48 {
                    c if c < width => v[(at / 48, c)],
                    _ => 0.0,
                };
                Array2::from_shape_fn(v.dim(), |(t, c)| written(t * width + c))
            }),
        );
        self.model(
            "third: x_proj's rows were quantized each to its largest, with one scale",
            "x_proj",
            ("5-1", "exact"),
            (
                CHANNELS,
                &[
                    ("factor", "weight"),
                    ("stale-scale", "weight"),
                    ("missing-scale", "weight"),
                    ("constant", "weight"),
                    ("weights", "weight"),
                    ("format", "weight"),
                    ("factor", "x_proj_out"),
                    ("factor", "output"),
                    ("factor", "sum"),
                ],
            ),
            |m, l| {
                for mut row in int8(&mut m.layers[l].x_proj).rows_mut() {
                    let most = row.fold(1.0f64, |most, c| most.max(f64::from(*c).abs()));
                    row.mapv_inplace(|c| (127.0 * f64::from(c) / most).round_ties_even() as i8);
                }
            },
        );
        self.made(
            "third: of 44 columns the tile of 32 is written",
            ("x_proj", x_proj_out),
            ("0", "tflite-single"),
            (
                CHANNELS,
                &[
                    ("left-out", "x_proj_out"),
                    ("constant", "x_proj_out"),
                    ("left-out", "output"),
                    ("constant", "output"),
                    ("left-out", "weight"),
                ],
            ),
            each(|_, c, v| if c < 32 { v } else { 0.0 }),
        );
        self.made(
            "third: the accumulator of x_proj saturates at 16 bits",
            ("x_proj", x_proj_out),
            ("2-1", "torch-cpu"),
            (
                ALL,
                &[
                    ("width", "accumulator"),
                    ("width", "sum"),
                    ("overflow", "accumulator"),
                    ("overflow", "sum"),
                    ("narrow-accumulator", "x_proj"),
                ],
            ),
            product(
                Step::XProj,
                P::ConvOut,
                (U::XProjIn, Some(U::XProjOut)),
                |l| {
                    Array2::from_shape_fn((l.x.nrows(), l.w.nrows()), |(t, o)| {
                        (0..l.x.ncols()).fold(0.0f64, |sum, k| {
                            (sum + l.x[(t, k)] * l.w[(o, k)]).clamp(-32768.0, 32767.0)
                        })
                    })
                },
                ideal,
            ),
        );
    }

    pub(super) fn third_dt_proj(&mut self) {
        let dt_proj_out: &[P] = &[P::DtProjOut];
        self.made(
            "third: the requantizer shifts by one too many",
            ("dt_proj", dt_proj_out),
            ("0", "asic-int8"),
            (
                ALL,
                &[
                    ("factor", "dt_proj_out"),
                    ("factor", "output"),
                    ("factor", "sum"),
                    ("factor", "input"),
                    ("factor", "weight"),
                    ("constant", "dt_proj_out"),
                    ("stale-scale", "dt_proj_out"),
                    ("stale-scale", "dt_proj_output"),
                    ("stale-scale", "dt_proj_in"),
                    ("stale-scale", "weight"),
                ],
            ),
            product(
                Step::DtProj,
                P::XProjOut,
                (U::DtProjIn, Some(U::DtProjOut)),
                sums,
                |_, _, by| 0.5 * by,
            ),
        );
        self.made(
            "third: dt_proj reads the last columns of x_proj",
            ("dt_proj", dt_proj_out),
            ("2-3", "exact"),
            (
                ALL,
                &[
                    ("neighbour", "input"),
                    ("shifted", "input"),
                    ("order", "inputs"),
                    ("order", "input"),
                ],
            ),
            projected(|_, _, l, x| {
                let from = x.ncols() - l.x.ncols();
                x.slice(s![.., from..]).dot(&l.w.t()) * l.unit
            }),
        );
        self.made(
            "third: K of 12 is read as 16 without a mask",
            ("dt_proj", dt_proj_out),
            ("2-1", "exact"),
            (
                ALL,
                &[
                    ("neighbour", "input"),
                    ("neighbour", "weight"),
                    ("neighbour", "sum"),
                    ("order", "input"),
                    ("order", "inputs"),
                    ("order", "weight"),
                    ("twice", "sum"),
                    ("two-edits", "input and weight"),
                    ("two-edits", "weight and input"),
                ],
            ),
            // Four of B's columns meet the first weights of the next row.
            projected(|_, _, l, x| {
                let (rows, k) = l.w.dim();
                let wide = Array2::from_shape_fn((rows, 16), |(r, at)| match at < k {
                    true => l.w[(r, at)],
                    false => l.w[((r + 1) % rows, at - k)],
                });
                x.slice(s![.., ..16]).dot(&wide.t()) * l.unit
            }),
        );
        self.made(
            "third: F.linear adds the bias that the scan adds",
            ("dt_proj", dt_proj_out),
            ("2-2", "torch"),
            (
                ALL,
                &[
                    ("twice", "dt_bias"),
                    ("twice", "bias"),
                    ("order", "dt_bias"),
                    ("order", "bias"),
                    ("neighbour", "bias"),
                    ("neighbour", "dt_bias"),
                    ("zero-point", "dt_proj_out"),
                    ("zero-point", "output"),
                ],
            ),
            projected(|path, layer, l, _| {
                let (_, _, bias) = path.scan_weight(layer).tensors();
                let mut v = l.x.dot(&l.w.t()) * l.unit;
                for ((_, c), v) in v.indexed_iter_mut() {
                    *v += f64::from(bias.scale.get()) * f64::from(bias.codes[c]);
                }
                v
            }),
        );
        self.model(
            "third: dt_proj's weight is stored [R, E]",
            "dt_proj",
            ("0", "deployed"),
            (
                ALL,
                &[
                    ("transposed", "weight"),
                    ("order", "weight"),
                    ("weights", "weight"),
                ],
            ),
            |m, l| {
                let w = &mut m.layers[l].dt_proj.codes;
                let (e, r) = w.dim();
                let flat: Vec<i8> = w.t().iter().copied().collect();
                *w = Array2::from_shape_fn((e, r), |(c, k)| flat[c * r + k]);
            },
        );
        self.made(
            "third: softplus is fused into dt_proj and stays in the scan",
            ("dt_proj", dt_proj_out),
            ("5-2", "torch"),
            (
                ALL,
                &[
                    ("twice", "softplus"),
                    ("order", "softplus"),
                    ("function", "dt_proj_out"),
                    ("function", "output"),
                    ("function", "softplus"),
                ],
            ),
            projected(|_, _, l, _| (l.x.dot(&l.w.t()) * l.unit).mapv(|v| v.exp().ln_1p())),
        );
    }

    pub(super) fn third_out_proj(&mut self) {
        let out: &[P] = &[P::OutProjOut];
        let scales = (U::OutProjIn, None);
        self.made(
            "third: the second and third tile of 64 outputs are exchanged",
            ("out_proj", out),
            ("2-3", "deployed"),
            (
                CHANNELS,
                &[
                    ("order", "out_proj_out"),
                    ("order", "output"),
                    ("order", "weight"),
                    ("neighbour", "out_proj_out"),
                    ("neighbour", "output"),
                    ("shifted", "out_proj_out"),
                    ("shifted", "output"),
                    ("shifted", "weight"),
                ],
            ),
            columns(|c, _| match c / 64 {
                1 => c + 64,
                2 => c - 64,
                _ => c,
            }),
        );
        self.made(
            "third: out_proj has the scale of in_proj's weight",
            ("out_proj", out),
            ("0", "exact"),
            (
                ALL,
                &[
                    ("stale-scale", "weight"),
                    ("factor", "weight"),
                    ("factor", "sum"),
                    ("factor", "input"),
                    ("factor", "out_proj_out"),
                    ("factor", "output"),
                    ("neighbour", "scale"),
                    ("stale-scale", "out_proj_in"),
                    ("stale-scale", "out_proj_input"),
                ],
            ),
            product(Step::OutProj, P::HadOut, scales, sums, |path, layer, by| {
                let of = |step| {
                    let weights = path.linear_weights(layer, step);
                    f64::from(weights[0].stored().unwrap().scales[0].get())
                };
                by * of(Step::InProj) / of(Step::OutProj)
            }),
        );
        self.made(
            "third: the last token of eight is the one before it",
            ("out_proj", out),
            ("0", "asic-int8"),
            (
                TOKENS,
                &[
                    ("neighbour", "out_proj_out"),
                    ("neighbour", "output"),
                    ("neighbour", "input"),
                    ("shifted", "out_proj_out"),
                    ("shifted", "output"),
                    ("shifted", "input"),
                    ("twice", "out_proj_out"),
                ],
            ),
            whole(|v| {
                let from = |t: usize| if t % 8 == 7 { t - 1 } else { t };
                Array2::from_shape_fn(v.dim(), |(t, c)| v[(from(t), c)])
            }),
        );
        self.made(
            "third: out_proj multiplies dequantized bfloat16",
            ("out_proj", out),
            ("6-3", "torch"),
            (
                ALL,
                &[
                    ("format", "input"),
                    ("format", "inputs"),
                    ("format", "weight"),
                    ("format", "sum"),
                    ("rounding", "input"),
                    ("rounding", "weight"),
                    ("two-edits", "input and weight"),
                    ("two-edits", "weight and input"),
                    ("two-edits", "inputs and weight"),
                    ("two-edits", "weight and inputs"),
                ],
            ),
            Box::new(|path, layer, seen, _, like| {
                let read = (P::HadOut, U::OutProjIn);
                let l = lin_parts(path, layer, seen, Step::OutProj, read);
                let x_scale = f64::from(path.scale(layer, U::OutProjIn).unwrap().get());
                let real = |v: &Array2<f64>, by: f64| v.mapv(|v| bf16::from_f64(by * v).to_f64());
                let w = real(&l.w, l.unit / x_scale);
                store(&real(&l.x, x_scale).dot(&w.t()), like, 1.0, Round::Even)
            }),
        );
    }
}
