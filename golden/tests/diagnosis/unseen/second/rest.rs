//! Faults of the second list in the rotation, out_proj and the quantizers, and two at once.

use super::*;

impl Fresh {
    pub(super) fn second_rotation(&mut self) {
        let had_out: &[P] = &[P::HadOut];
        self.read(
            "second: one operand of the butterflies is a token late",
            ("hadamard", &[P::SsmY]),
            ("2-2", "tflite-double"),
            (
                ALL,
                &[
                    ("neighbour", "input"),
                    ("shifted", "input"),
                    ("neighbour", "y"),
                    ("shifted", "y"),
                    ("shifted", "ssm_y"),
                    ("shifted", "stages"),
                    ("neighbour", "stages"),
                ],
            ),
            whole(|v| {
                let before = late(v, 1);
                let operand =
                    |at @ (_, c): (usize, usize)| if c % 2 == 1 { before[at] } else { v[at] };
                Array2::from_shape_fn(v.dim(), operand)
            }),
        );
        self.made(
            "second: butterflies of stride 8 add where they subtract",
            ("hadamard", had_out),
            ("2-0", "exact"),
            (
                CHANNELS,
                &[
                    ("sign", "stages"),
                    ("sign", "rotation"),
                    ("sign", "input"),
                    ("part-missing", "stages"),
                    ("neighbour", "had_out"),
                    ("neighbour", "output"),
                    ("order", "had_out"),
                    ("order", "output"),
                    ("shifted", "had_out"),
                ],
            ),
            hadamard(
                |i, j, h| if i & j & 8 != 0 { -h } else { h },
                |e| 1.0 / e.sqrt(),
            ),
        );
        self.made(
            "second: what the butterflies of 32 give is clipped before the factor of twelve",
            ("hadamard", had_out),
            ("2-3", "exact"),
            (
                ALL,
                &[
                    ("overflow", "stages"),
                    ("overflow", "rotation"),
                    ("overflow", "sum"),
                    ("overflow", "accumulator"),
                    ("overflow", "input"),
                    ("overflow", "had_out"),
                    ("overflow", "output"),
                    ("width", "stages"),
                    ("width", "rotation"),
                    ("width", "sum"),
                    ("format", "stages"),
                ],
            ),
            Box::new(|path, layer, seen, _, like| {
                let y = seen[&P::SsmY].to_real().mapv(f64::from);
                let size = path.rotation(layer).unwrap();
                let e = size.n();
                let scale = f64::from(path.scale(layer, U::HadOut).unwrap().get());
                let parts = |inside: bool| {
                    Array2::from_shape_fn((e, e), |(i, j)| match inside {
                        true if i / 32 == j / 32 => f64::from(size.entry(i % 32, j % 32)),
                        false if i % 32 == j % 32 => {
                            f64::from(size.entry(i / 32 * 32, j / 32 * 32))
                        }
                        _ => 0.0,
                    })
                };
                // A quarter of the codes' range, carried back over the factor of twelve.
                let most = 32.0 * scale * 32f64.sqrt();
                let within = y.dot(&parts(true).t()).mapv(|v| v.clamp(-most, most));
                let v = within.dot(&parts(false).t()) / (e as f64).sqrt();
                store(&v, like, scale, Round::Away)
            }),
        );
        self.made(
            "second: the FIFO gives each two tokens in the other order",
            ("hadamard", had_out),
            ("0", "tflite-single"),
            (
                ALL,
                &[
                    ("order", "had_out"),
                    ("order", "output"),
                    ("order", "tokens"),
                    ("order", "input"),
                    ("shifted", "had_out"),
                    ("neighbour", "had_out"),
                    ("neighbour", "input"),
                ],
            ),
            rows(|t| t ^ 1),
        );
    }

    pub(super) fn second_out_proj(&mut self) {
        self.made(
            "second: the last shuffle of the sum has the distance before",
            ("out_proj", &[P::OutProjOut]),
            ("2-1", "exact"),
            (
                ALL,
                &[
                    ("part-missing", "sum"),
                    ("twice", "sum"),
                    ("twice", "input"),
                    ("neighbour", "input"),
                    ("neighbour", "sum"),
                    ("order", "inputs"),
                    ("two-edits", "sum and input"),
                    ("two-edits", "input and sum"),
                    ("two-edits", "sum and sum"),
                    ("two-edits", "input and input"),
                ],
            ),
            // Lane k of 32 has the terms k, k + 32, …; even lanes meet even ones twice.
            out_proj(|l| {
                for ((_, k), x) in l.x.indexed_iter_mut() {
                    *x *= if k % 2 == 0 { 2.0 } else { 0.0 };
                }
            }),
        );
        self.made(
            "second: the halves of __half2 are exchanged from channel 96 on",
            ("out_proj", &[P::OutProjOut]),
            ("6-4", "deployed"),
            (
                CHANNELS,
                &[
                    ("order", "out_proj_out"),
                    ("order", "output"),
                    ("order", "weight"),
                    ("neighbour", "out_proj_out"),
                    ("neighbour", "output"),
                    ("shifted", "out_proj_out"),
                ],
            ),
            columns(|c, width| if c >= width / 2 { c ^ 1 } else { c }),
        );
    }

    pub(super) fn second_quantizers(&mut self) {
        self.made(
            "second: the largest x is found by the last warp alone",
            ("conv", &[P::ConvIn, P::ConvInScale]),
            ("3", "exact"),
            (
                ALL,
                &[
                    ("part-missing", "conv_in_scale"),
                    ("part-missing", "conv_in"),
                    ("part-missing", "input"),
                    ("constant", "conv_in_scale"),
                    ("factor", "conv_in_scale"),
                    ("factor", "conv_in"),
                    ("factor", "output"),
                    ("stale-scale", "conv_in"),
                    ("stale-scale", "conv_in_scale"),
                    ("overflow", "conv_in"),
                ],
            ),
            Box::new(|_, _, seen, point, like| {
                let x = seen[&P::InProjX].to_real();
                let warp = x.slice(s![.., x.ncols() - 32..]);
                let scale = warp.iter().fold(0.0f32, |most, v| most.max(v.abs())) / 127.0;
                let code = |v: f32| (v / scale).round_ties_even().clamp(-128.0, 127.0) as i8;
                match point {
                    P::ConvIn => Tensor::Codes(x.mapv(code)),
                    _ => Tensor::F32(like.to_real().mapv(|_| scale)),
                }
            }),
        );
        self.made(
            "second: the border of fine steps is compared with the signed value",
            ("scan", &[P::SsmU]),
            ("5-6", "torch"),
            (
                ALL,
                &[
                    ("sign", "ssm_u"),
                    ("sign", "u"),
                    ("function", "ssm_u"),
                    ("function", "u"),
                    ("constant", "ssm_u"),
                    ("constant", "u"),
                    ("table", "ssm_u"),
                    ("format", "ssm_u"),
                    ("format", "u"),
                    ("rounding", "ssm_u"),
                    ("rounding", "u"),
                    ("width", "ssm_u"),
                    ("overflow", "ssm_u"),
                    ("overflow", "u"),
                ],
            ),
            Box::new(|path, layer, seen, _, like| {
                let scale = f64::from(path.scale(layer, U::ScanUQuant).unwrap().get());
                let own = like.to_real().mapv(f64::from);
                let conv = seen[&P::ConvOutF32].to_real().mapv(f64::from);
                let fine = |v: f64| (4.0 * v / scale).round().clamp(-127.0, 127.0) / 4.0 * scale;
                let u = Array2::from_shape_fn(own.dim(), |at| match conv[at] < -8.0 * scale {
                    true => fine(conv[at]),
                    false => own[at],
                });
                store(&u, like, 1.0, Round::Even)
            }),
        );
    }

    pub(super) fn second_pairs(&mut self) {
        self.made(
            "second: two: conv's input has a zero point of four, hard swish",
            ("conv", &[P::ConvOut]),
            ("2-1", "exact"),
            (
                ALL,
                &[
                    ("two-edits", "input and SiLU"),
                    ("two-edits", "SiLU and input"),
                ],
            ),
            conv(
                |path, layer, _, c| {
                    let scale = f64::from(path.scale(layer, U::ConvIn).unwrap().get());
                    c.x += 4.0 * scale;
                },
                ALL_TOKENS,
                |v| v * ((v + 3.0) / 6.0).clamp(0.0, 1.0),
            ),
        );
        self.made(
            "second: two: halves of B exchanged, D negated",
            ("scan", SCAN),
            ("2-4", "exact"),
            (ALL, &[("two-edits", "B and D"), ("two-edits", "D and B")]),
            plain(|s| {
                let (own, n) = (s.b.clone(), s.b.ncols());
                s.b = Array2::from_shape_fn(own.dim(), |(t, i)| own[(t, (i + n / 2) % n)]);
                s.d.iter_mut().for_each(|d| *d = -*d);
            }),
        );
        self.model(
            "second: two steps: dt_proj's weight of two blocks before, out_proj's negated",
            "dt_proj",
            ("0", "deployed"),
            (
                ALL,
                &[
                    ("neighbour", "weight"),
                    ("sign", "out_proj_out"),
                    ("sign", "weight"),
                    ("sign", "output"),
                ],
            ),
            |m, l| {
                let n = m.layers.len();
                m.layers[l].dt_proj = m.layers[(l + n - 2) % n].dt_proj.clone();
                int8(&mut m.layers[l].out_proj).mapv_inplace(i8::saturating_neg);
            },
        );
        self.made(
            "second: two: a centred norm with an eps of 1 in 20",
            ("norm", &[P::NormOut]),
            ("0", "exact"),
            (
                ALL,
                &[("two-edits", "norm and eps"), ("two-edits", "eps and norm")],
            ),
            norm(|_, eps, centred| {
                *eps = 0.05;
                *centred = true;
            }),
        );
        self.made(
            "second: two: x is rounded down, z a step too high",
            ("in_proj", &[P::InProjOut]),
            ("2-0", "exact"),
            (
                ALL,
                &[
                    ("rounding", "in_proj_out"),
                    ("rounding", "output"),
                    ("zero-point", "in_proj_out"),
                    ("zero-point", "output"),
                    ("two-edits", "output and output"),
                    ("two-edits", "in_proj_out and in_proj_out"),
                    ("two-edits", "output and in_proj_out"),
                    ("two-edits", "in_proj_out and output"),
                ],
            ),
            linear(
                Step::InProj,
                P::NormOut,
                (U::InProjIn, Some(U::InProjOut)),
                Round::Even,
                |_, _, _| {},
                |_, c, v| {
                    if c < 384 {
                        v.floor()
                    } else {
                        v.round_ties_even() + 1.0
                    }
                },
            ),
        );
    }
}
