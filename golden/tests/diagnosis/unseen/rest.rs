//! Faults of the rotation and of quantizers, and two at once.

use super::*;

impl Fresh {
    pub(super) fn unseen_rotation(&mut self) {
        let had_out: &[P] = &[P::HadOut];
        self.read(
            "unseen: the rotation's factors read y in each other's order",
            ("hadamard", &[P::SsmY]),
            ("0", "pow2"),
            (
                ALL,
                &[
                    ("order", "input"),
                    ("order", "inputs"),
                    ("order", "ssm_y"),
                    ("order", "stages"),
                    ("transposed", "input"),
                    ("transposed", "ssm_y"),
                ],
            ),
            columns(|c, width| c % 32 * (width / 32) + c / 32),
        );
        self.made(
            "unseen: the rotation lacks its factor of twelve",
            ("hadamard", had_out),
            ("5-3", "exact"),
            (
                ALL,
                &[
                    ("part-missing", "stages"),
                    ("part-missing", "rotation"),
                    ("left-out", "stages"),
                ],
            ),
            hadamard(
                |i, j, _| match (i / 32 == j / 32, ((i & j) % 32).count_ones() % 2) {
                    (false, _) => 0.0,
                    (true, 0) => 1.0,
                    (true, _) => -1.0,
                },
                |e| 1.0 / e.sqrt(),
            ),
        );
        self.read(
            "unseen: the rotation takes y in bf16",
            ("hadamard", &[P::SsmY]),
            ("2-4", "exact"),
            (
                ALL,
                &[
                    ("format", "input"),
                    ("format", "y"),
                    ("format", "ssm_y"),
                    ("format", "stages"),
                    ("format", "had_out"),
                    ("format", "output"),
                ],
            ),
            each(|_, _, v| bf16::from_f64(v).to_f64()),
        );
        self.made(
            "unseen: rotated channels in bit-reversed order",
            ("hadamard", had_out),
            ("2-1", "torch"),
            (ALL, &[("order", "had_out"), ("order", "output")]),
            columns(|c, _| c / 32 * 32 + ((c % 32) as u8).reverse_bits() as usize / 8),
        );
        self.made(
            "unseen: one sign of the matrix of twelve is wrong",
            ("hadamard", had_out),
            ("0", "tflite-double"),
            (
                CHANNELS,
                &[
                    ("sign", "input"),
                    ("sign", "stages"),
                    ("sign", "rotation"),
                    ("sign", "weight"),
                ],
            ),
            hadamard(
                |i, j, h| if (i / 32, j / 32) == (3, 5) { -h } else { h },
                |e| 1.0 / e.sqrt(),
            ),
        );
    }

    pub(super) fn unseen_quantizers(&mut self) {
        let u: &[P] = &[P::SsmU];
        self.made(
            "unseen: quarter steps end at 16 steps",
            ("scan", u),
            ("5-4", "exact"),
            (
                ALL,
                &[
                    ("constant", "ssm_u"),
                    ("constant", "u"),
                    ("format", "ssm_u"),
                    ("format", "u"),
                    ("rounding", "ssm_u"),
                    ("rounding", "u"),
                    ("width", "ssm_u"),
                    ("function", "ssm_u"),
                    ("table", "ssm_u"),
                ],
            ),
            Box::new(|path, layer, seen, _, like| {
                let scale = f64::from(path.scale(layer, U::ScanUQuant).unwrap().get());
                let own = like.to_real().mapv(f64::from);
                let conv = seen[&P::ConvOutF32].to_real().mapv(f64::from);
                let u = Array2::from_shape_fn(own.dim(), |at| match own[at].abs() > 16.0 * scale {
                    true => scale * (conv[at] / scale).round().clamp(-128.0, 127.0),
                    false => own[at],
                });
                store(&u, like, 1.0, Round::Even)
            }),
        );
        self.made(
            "unseen: u ends at 31 steps, outliers too",
            ("scan", u),
            ("4", "torch"),
            (
                ALL,
                &[
                    ("overflow", "ssm_u"),
                    ("overflow", "u"),
                    ("overflow", "output"),
                    ("left-out", "outliers"),
                ],
            ),
            Box::new(|path, layer, _, _, like| {
                let scale = f64::from(path.scale(layer, U::ScanUQuant).unwrap().get());
                let own = like.to_real().mapv(f64::from);
                let u = own.mapv(|v| v.clamp(-32.0 * scale, 31.0 * scale));
                store(&u, like, 1.0, Round::Even)
            }),
        );
        self.made(
            "unseen: the scale found at run time is over 128",
            ("conv", &[P::ConvIn, P::ConvInScale]),
            ("3", "exact"),
            (
                ALL,
                &[
                    ("constant", "conv_in_scale"),
                    ("constant", "conv_in"),
                    ("factor", "conv_in_scale"),
                    ("factor", "conv_in"),
                    ("factor", "output"),
                    ("stale-scale", "conv_in"),
                    ("stale-scale", "conv_in_scale"),
                ],
            ),
            Box::new(|_, _, seen, point, like| {
                let x = seen[&P::InProjX].to_real();
                let scale = x.iter().fold(0.0f32, |most, v| most.max(v.abs())) / 128.0;
                let code = |v: f32| (v / scale).round_ties_even().clamp(-128.0, 127.0) as i8;
                match point {
                    P::ConvIn => Tensor::Codes(x.mapv(code)),
                    _ => Tensor::F32(like.to_real().mapv(|_| scale)),
                }
            }),
        );
        self.made(
            "unseen: C is quantized a token late",
            ("scan", &[P::SsmBc]),
            ("6-4", "torch"),
            (
                CHANNELS,
                &[
                    ("shifted", "ssm_bc"),
                    ("neighbour", "C"),
                    ("neighbour", "input"),
                ],
            ),
            whole(|v| {
                let half = v.ncols() / 2;
                let mut out = late(v, 1);
                out.slice_mut(s![.., ..half])
                    .assign(&v.slice(s![.., ..half]));
                out
            }),
        );
        self.made(
            "unseen: u's round trip in binary16 truncates",
            ("scan", u),
            ("2-0", "torch"),
            (
                ALL,
                &[
                    ("rounding", "ssm_u"),
                    ("rounding", "u"),
                    ("format", "ssm_u"),
                    ("format", "u"),
                ],
            ),
            Box::new(|path, layer, seen, _, like| {
                let scale = path.scale(layer, U::ScanUQuant).unwrap().get();
                let by = f16::from_f32(1.0 / scale);
                let u = seen[&P::ConvOut].to_real();
                let u = u.mapv(|v| (f16::from_f32(v) * by).to_f64().trunc());
                store(&u, like, 1.0, Round::Even)
            }),
        );
    }

    pub(super) fn unseen_pairs(&mut self) {
        let all = usize::MAX;
        self.made(
            "unseen: two: conv's bias negated, ReLU",
            ("conv", &[P::ConvOut]),
            ("2-1", "exact"),
            (
                ALL,
                &[
                    ("two-edits", "bias and SiLU"),
                    ("two-edits", "SiLU and bias"),
                ],
            ),
            conv_of(
                all,
                |v| v.max(0.0),
                |c| c.bias.iter_mut().for_each(|b| *b = -*b),
            ),
        );
        self.made(
            "unseen: two: A of the next block, D twice",
            ("scan", SCAN),
            ("2-4", "exact"),
            (ALL, &[("two-edits", "A and D"), ("two-edits", "D and A")]),
            scan(|path, layer, _, s| {
                let next = (layer + 1) % path.config().n_layers;
                let (a, _, _) = path.scan_weight(next).tensors();
                let scale = f64::from(a.scale.get());
                s.a = a.codes.mapv(|c| (scale * f64::from(c)).exp());
                s.d.iter_mut().for_each(|d| *d *= 2.0);
            }),
        );
        self.made(
            "unseen: two: K in reverse, a zero point of two",
            ("x_proj", &[P::XProjOut]),
            ("0", "exact"),
            (
                ALL,
                &[
                    ("two-edits", "inputs and x_proj_out"),
                    ("two-edits", "x_proj_out and inputs"),
                    ("two-edits", "inputs and output"),
                    ("two-edits", "output and inputs"),
                ],
            ),
            linear(
                Step::XProj,
                P::ConvOut,
                (U::XProjIn, Some(U::XProjOut)),
                Round::Even,
                |_, _, l| l.x.invert_axis(ndarray::Axis(1)),
                |_, _, v| v + 2.0,
            ),
        );
        self.made(
            "unseen: two: butterflies of stride 1 missing, a zero point of one",
            ("hadamard", &[P::HadOut]),
            ("2-0", "exact"),
            (
                ALL,
                &[
                    ("two-edits", "stages and had_out"),
                    ("two-edits", "had_out and stages"),
                    ("two-edits", "stages and output"),
                    ("two-edits", "output and stages"),
                ],
            ),
            Box::new(|path, layer, seen, point, like| {
                let rotated = hadamard(
                    |i, j, h| match ((i ^ j) & 1, i & j & 1) {
                        (1, _) => 0.0,
                        (_, 1) => -h,
                        _ => h,
                    },
                    |e| 1.0 / e.sqrt(),
                );
                let rotated = rotated(path, layer, seen, point, like);
                each(|_, _, v| v + 1.0)(path, layer, seen, point, &rotated)
            }),
        );
        self.model(
            "unseen: two steps: conv without its bias, out_proj's rows turned by one",
            "conv",
            ("0", "tflite-single"),
            (
                ALL,
                &[
                    ("left-out", "bias"),
                    ("order", "out_proj_out"),
                    ("shifted", "out_proj_out"),
                    ("order", "weight"),
                ],
            ),
            |m, l| {
                m.layers[l].conv_bias.codes.fill(0);
                let w = int8(&mut m.layers[l].out_proj);
                let own = w.clone();
                let n = own.nrows();
                *w = Array2::from_shape_fn(own.dim(), |(r, k)| own[((r + 1) % n, k)]);
            },
        );
        self.model(
            "unseen: two steps: a row of x_proj negated, no D",
            "x_proj",
            ("0", "asic-int8"),
            (
                CHANNELS,
                &[
                    ("sign", "x_proj_out"),
                    ("sign", "weight"),
                    ("sign", "output"),
                    ("left-out", "D"),
                ],
            ),
            |m, l| {
                let w = int8(&mut m.layers[l].x_proj);
                w.row_mut(3).mapv_inplace(i8::saturating_neg);
                m.layers[l].d.codes.fill(0);
            },
        );
        self.made(
            "unseen: two: gate of tanh in one half, D missing in the other",
            ("scan", &[P::SsmY]),
            ("0", "exact"),
            (
                ALL,
                &[
                    ("function", "gate"),
                    ("left-out", "D"),
                    ("two-edits", "gate and D"),
                    ("two-edits", "D and gate"),
                ],
            ),
            Box::new(|path, layer, seen, point, like| {
                let first = plain(|s| s.gate = f64::tanh)(path, layer, seen, point, like);
                let second = only(plain(|s| s.d.fill(0.0)), |_, c| c >= 192);
                second(path, layer, seen, point, &first)
            }),
        );
        self.made(
            "unseen: two: u a token late, no bias of dt",
            ("scan", SCAN),
            ("3", "exact"),
            (
                ALL,
                &[
                    ("two-edits", "u and dt_bias"),
                    ("two-edits", "dt_bias and u"),
                ],
            ),
            plain(|s| {
                s.u = late(&s.u, 1);
                s.bias.fill(0.0);
            }),
        );
    }
}
