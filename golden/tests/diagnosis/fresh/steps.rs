//! Faults of single steps by the emulation of the step: convolution, scan, others, and two at once.

use super::*;

impl Fresh {
    pub(super) fn convolutions(&mut self) {
        let conv_out: &[P] = &[P::ConvOut];
        let real: &[P] = &[P::ConvOutF32];
        let all = usize::MAX;
        self.made(
            "fresh: conv tile of 7",
            ("conv", conv_out),
            ("2-1", "exact"),
            (TOKENS, &[("history", "conv")]),
            conv_of(7, silu, |_| {}),
        );
        self.made(
            "fresh: hard swish",
            ("conv", real),
            ("2-4", "exact"),
            (ALL, &[("function", "SiLU")]),
            conv_of(all, |v| v * ((v + 3.0) / 6.0).clamp(0.0, 1.0), |_| {}),
        );
        self.made(
            "fresh: leaky ReLU",
            ("conv", conv_out),
            ("0", "deployed"),
            (ALL, &[("function", "SiLU")]),
            conv_of(all, |v| if v > 0.0 { v } else { 0.01 * v }, |_| {}),
        );
        self.made(
            "fresh: SiLU with the exponent 1.702",
            ("conv", real),
            ("3", "exact"),
            (ALL, &[("function", "SiLU")]),
            conv_of(all, |v| v / (1.0 + (-1.702 * v).exp()), |_| {}),
        );
        self.made(
            "fresh: own tap missing in a head",
            ("conv", conv_out),
            ("2-0", "exact"),
            (CHANNELS, &[("part-missing", "taps")]),
            only(
                conv_of(all, silu, |c| c.w.column_mut(3).fill(0.0)),
                |_, c| (192..256).contains(&c),
            ),
        );
        self.made(
            "fresh: conv bias missing at every 5th token",
            ("conv", conv_out),
            ("2-1", "exact"),
            (TOKENS, &[("left-out", "bias")]),
            only(conv_of(all, silu, |c| c.bias.fill(0.0)), |t, _| t % 5 == 2),
        );
    }

    pub(super) fn scans(&mut self) {
        self.made(
            "fresh: decays of powers of two",
            ("scan", SCAN),
            ("2-4", "exact"),
            (TOKENS, &[("function", "decay")]),
            scan_of(|s| s.a.mapv_inplace(|a| a * std::f64::consts::LN_2)),
        );
        self.made(
            "fresh: bias of dt after softplus",
            ("scan", SCAN),
            ("2-1", "exact"),
            (ALL, &[("order", "dt_bias")]),
            Box::new(|path, layer, seen, point, like| {
                // δ = softplus(dt) + bias: as softplus of what gives that.
                let make = scan(|_, _, _, s| {
                    let bias = s.bias.clone();
                    for ((_, c), dt) in s.dt.indexed_iter_mut() {
                        *dt = dt.exp().ln_1p() + bias[c];
                    }
                    s.bias.fill(0.0);
                    s.softplus = |v| v;
                });
                make(path, layer, seen, point, like)
            }),
        );
        self.made(
            "fresh: state reset at every 18th token",
            ("scan", SCAN),
            ("2-4", "exact"),
            (TOKENS, &[("history", "state")]),
            scan_of(|s| s.tile = 18),
        );
        self.made(
            "fresh: gate of tanh",
            ("scan", SCAN),
            ("3", "exact"),
            (ALL, &[("function", "gate")]),
            scan_of(|s| s.gate = f64::tanh),
        );
        self.made(
            "fresh: gate of ReLU",
            ("scan", SCAN),
            ("0", "deployed"),
            (ALL, &[("function", "gate")]),
            scan_of(|s| s.gate = |v| v.max(0.0)),
        );
        self.made(
            "fresh: only the last state is summed",
            ("scan", SCAN),
            ("2-1", "exact"),
            (ALL, &[("part-missing", "states")]),
            scan_of(|s| {
                let n = s.c.ncols();
                s.c.slice_mut(s![.., ..n - 1]).fill(0.0);
            }),
        );
        self.made(
            "fresh: δ is at most a fiftieth",
            ("scan", SCAN),
            ("0", "exact"),
            (ALL, &[("overflow", "delta")]),
            scan_of(|s| s.softplus = |v| v.exp().ln_1p().min(0.02)),
        );
        self.made(
            "fresh: δ twice in the input, D missing",
            ("scan", SCAN),
            ("2-1", "exact"),
            (
                ALL,
                &[
                    ("two-edits", "D and input_delta"),
                    ("two-edits", "input_delta and D"),
                ],
            ),
            scan_of(|s| {
                let (l, e) = s.u.dim();
                let u = s.u.clone();
                for (t, c) in (0..l).flat_map(|t| (0..e).map(move |c| (t, c))) {
                    s.u[(t, c)] = u[(t, c)] * (s.softplus)(s.dt[(t, c)] + s.bias[c]);
                }
                s.d.fill(0.0);
            }),
        );
        self.made(
            "fresh: state in six bits",
            ("scan", SCAN),
            ("2-1", "exact"),
            (ALL, &[("format", "state")]),
            scan_of(|s| {
                s.state =
                    |v, step| 4.0 * step * (v / (4.0 * step)).round_ties_even().clamp(-32.0, 31.0)
            }),
        );
        self.made(
            "fresh: state truncated to INT8",
            ("scan", SCAN),
            ("2-4", "exact"),
            (ALL, &[("format", "state")]),
            scan_of(|s| s.state = |v, step| step * (v / step).trunc().clamp(-128.0, 127.0)),
        );
        self.made(
            "fresh: the input decays too",
            ("scan", SCAN),
            ("2-4", "exact"),
            (ALL, &[("order", "decay"), ("order", "state")]),
            scan_of(|s| s.input_decays = true),
        );
        self.made(
            "fresh: D·u missing at tokens 8 to 15",
            ("scan", SCAN),
            ("2-0", "exact"),
            (TOKENS, &[("left-out", "D")]),
            only(scan_of(|s| s.d.fill(0.0)), |t, _| (8..16).contains(&t)),
        );
        self.made(
            "fresh: gate missing in every other channel",
            ("scan", SCAN),
            ("2-4", "exact"),
            (CHANNELS, &[("left-out", "gate")]),
            only(scan_of(|s| s.gate = |_| 1.0), |_, c| c % 2 == 1),
        );
        self.made(
            "fresh: u is clipped at zero",
            ("scan", SCAN),
            ("2-4", "exact"),
            (ALL, &[("function", "u"), ("overflow", "u")]),
            scan_of(|s| s.u.mapv_inplace(|v| v.max(0.0))),
        );
    }

    pub(super) fn others(&mut self) {
        self.made(
            "fresh: butterflies of stride 16 missing",
            ("hadamard", &[P::HadOut]),
            ("2-4", "deployed"),
            (ALL, &[("part-missing", "stages")]),
            hadamard(
                |i, j, h| {
                    if (i ^ j) & 16 != 0 {
                        0.0
                    } else if i & j & 16 != 0 {
                        -h
                    } else {
                        h
                    }
                },
                |e| 1.0 / e.sqrt(),
            ),
        );
        self.made(
            "fresh: rotation a quarter too large",
            ("hadamard", &[P::HadOut]),
            ("2-1", "exact"),
            (
                ALL,
                &[("constant", "norm"), ("stale-scale", "out_proj_input")],
            ),
            hadamard(|_, _, h| h, |e| 1.25 / e.sqrt()),
        );
        self.made(
            "fresh: eps of 1 in 50",
            ("norm", &[P::NormOut]),
            ("0", "exact"),
            (ALL, &[("constant", "eps")]),
            norm(|_, eps, _| *eps = 0.02),
        );
        self.made(
            "fresh: norm of the first half",
            ("norm", &[P::NormOut]),
            ("2-4", "exact"),
            (ALL, &[("part-missing", "mean"), ("part-missing", "sum")]),
            Box::new(|path, layer, seen, _, like| {
                let r = seen[&P::ResidualOut].to_real().mapv(f64::from);
                let w = path.norm_weight(layer);
                let eps = f64::from(path.config().eps);
                let half = r.ncols() / 2;
                let mut out = r.clone();
                for mut row in out.rows_mut() {
                    let squares: f64 = row.iter().take(half).map(|v| v * v).sum();
                    let rms = (squares / half as f64 + eps).sqrt();
                    row.iter_mut()
                        .zip(w)
                        .for_each(|(v, w)| *v = *v / rms * f64::from(*w));
                }
                let scale = f64::from(path.scale(layer, U::NormOut).unwrap().get());
                store(&out, like, scale, Round::Even)
            }),
        );
        self.made(
            "fresh: hidden dropped at the tail",
            ("norm", &[P::ResidualOut]),
            ("3", "exact"),
            (TOKENS, &[("left-out", "hidden"), ("left-out", "residual")]),
            Box::new(|_, _, seen, _, like| {
                let own = like.to_real();
                let kept = seen[&P::ResidualIn].to_real();
                Tensor::F32(Array2::from_shape_fn(own.dim(), |(t, c)| {
                    if t >= 48 { kept[(t, c)] } else { own[(t, c)] }
                }))
            }),
        );
        self.made(
            "fresh: hidden in front of the norm is halved",
            ("norm", &[P::ResidualOut]),
            ("0", "exact"),
            (ALL, &[("factor", "hidden")]),
            Box::new(|_, _, seen, _, _| {
                Tensor::F32(seen[&P::ResidualIn].to_real() + 0.5 * seen[&P::HiddenIn].to_real())
            }),
        );
    }

    pub(super) fn pairs(&mut self) {
        let all = usize::MAX;
        self.made(
            "fresh: two: bias missing, oldest tap missing",
            ("conv", &[P::ConvOut]),
            ("2-1", "exact"),
            (
                ALL,
                &[
                    ("two-edits", "bias and taps"),
                    ("two-edits", "taps and bias"),
                ],
            ),
            conv_of(all, silu, |c| {
                c.bias.fill(0.0);
                c.w.column_mut(0).fill(0.0);
            }),
        );
        self.made(
            "fresh: two: taps reversed, no SiLU",
            ("conv", &[P::ConvOutF32]),
            ("2-4", "exact"),
            (
                ALL,
                &[
                    ("two-edits", "taps and SiLU"),
                    ("two-edits", "SiLU and taps"),
                ],
            ),
            conv_of(all, |v| v, |c| c.w.invert_axis(ndarray::Axis(1))),
        );
        self.made(
            "fresh: two: D missing, B is C",
            ("scan", SCAN),
            ("2-1", "exact"),
            (ALL, &[("two-edits", "D and B"), ("two-edits", "B and D")]),
            scan_of(|s| {
                s.d.fill(0.0);
                s.b = s.c.clone();
            }),
        );
        self.made(
            "fresh: two: stride 2 missing, another factor",
            ("hadamard", &[P::HadOut]),
            ("0", "exact"),
            (
                ALL,
                &[
                    ("two-edits", "stages and norm"),
                    ("two-edits", "norm and stages"),
                ],
            ),
            hadamard(
                |i, j, h| {
                    if (i ^ j) & 2 != 0 {
                        0.0
                    } else if i & j & 2 != 0 {
                        -h
                    } else {
                        h
                    }
                },
                |e| 8.0 / e,
            ),
        );
        self.made(
            "fresh: two: bias of dt twice, gate missing",
            ("scan", SCAN),
            ("2-4", "exact"),
            (
                ALL,
                &[
                    ("two-edits", "dt_bias and gate"),
                    ("two-edits", "gate and dt_bias"),
                ],
            ),
            scan_of(|s| {
                s.bias.iter_mut().for_each(|b| *b *= 2.0);
                s.gate = |_| 1.0;
            }),
        );
        self.made(
            "fresh: two: known and unknown",
            ("conv", &[P::ConvOut]),
            ("0", "exact"),
            (ALL, &[]),
            Box::new(|path, layer, seen, point, like| {
                let faulty =
                    conv_of(usize::MAX, silu, |c| c.bias.fill(0.0))(path, layer, seen, point, like);
                each(|t, c, v| if (t + 3 * c) % 7 == 0 { v * 0.7 } else { v })(
                    path, layer, seen, point, &faulty,
                )
            }),
        );
    }
}
