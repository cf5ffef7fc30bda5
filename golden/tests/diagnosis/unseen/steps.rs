//! Faults of the convolution and of the scan.

use super::*;
use ndarray::Array3;
use std::cell::RefCell;

const ALL_TOKENS: usize = usize::MAX;

/// A convolution by its own loop, before what stores it.
pub fn convolved(values: fn(Conv) -> Array2<f64>) -> Make {
    Box::new(move |path, layer, seen, _, like| {
        let scale = f64::from(path.scale(layer, U::ConvOut).unwrap().get());
        let values = values(conv_parts(path, layer, seen));
        store(&values, like, scale, Round::Away)
    })
}

/// A scan by its own loop: its output and its states.
pub fn scanned(
    make: impl Fn(&Datapath, usize, &Seen, &mut Scan) -> (Array2<f64>, Array3<f64>)
    + Send
    + Sync
    + 'static,
) -> Make {
    Box::new(move |path, layer, seen, point, like| {
        let mut s = scan_parts(path, layer, seen);
        let (y, states) = make(path, layer, seen, &mut s);
        s.stored(&y, &states, point, like)
    })
}

/// A scan with its own rule for the next state.
pub fn recurred(next: fn(&Scan, [usize; 3], f64) -> f64) -> Make {
    scanned(move |_, _, _, s| {
        let states = s.states(next);
        (s.output(&states), states)
    })
}

impl Fresh {
    pub(super) fn unseen_conv(&mut self) {
        let conv_out: &[P] = &[P::ConvOut];
        let real: &[P] = &[P::ConvOutF32];
        self.made(
            "unseen: in front of the first token stands the first token",
            ("conv", conv_out),
            ("0", "exact"),
            (
                TOKENS,
                &[
                    ("history", "conv"),
                    ("not-reset", "conv"),
                    ("neighbour", "input"),
                ],
            ),
            convolved(|mut c| {
                let k = c.w.ncols();
                let l = c.x.nrows();
                let before = |t: usize| t.saturating_sub(k - 1);
                c.x = Array2::from_shape_fn((l + k - 1, c.x.ncols()), |(t, e)| c.x[(before(t), e)]);
                c.run(ALL_TOKENS, silu).slice(s![k - 1.., ..]).to_owned()
            }),
        );
        self.made(
            "unseen: taps two tokens apart",
            ("conv", real),
            ("3", "exact"),
            (
                TOKENS,
                &[
                    ("order", "taps"),
                    ("neighbour", "taps"),
                    ("neighbour", "input"),
                    ("shifted", "input"),
                ],
            ),
            convolved(|c| {
                let k = c.w.ncols();
                Array2::from_shape_fn(c.x.dim(), |(t, e)| {
                    let term = |tap: usize| match t.checked_sub(2 * (k - 1 - tap)) {
                        Some(at) => c.w[(e, tap)] * c.x[(at, e)],
                        None => 0.0,
                    };
                    silu(c.bias[e] + (0..k).map(term).sum::<f64>())
                })
            }),
        );
        self.model(
            "unseen: conv's weight is stored taps first",
            "conv",
            ("0", "deployed"),
            (
                ALL,
                &[
                    ("transposed", "weight"),
                    ("order", "weight"),
                    ("order", "taps"),
                    ("weights", "weight"),
                ],
            ),
            |m, l| {
                let w = &mut m.layers[l].conv_weight.codes;
                let (e, k) = w.dim();
                let flat: Vec<i8> = w.iter().copied().collect();
                *w = Array2::from_shape_fn((e, k), |(c, tap)| flat[tap * e + c]);
            },
        );
        self.made(
            "unseen: conv's bias comes after SiLU",
            ("conv", conv_out),
            ("2-1", "exact"),
            (ALL, &[("order", "bias"), ("order", "SiLU")]),
            convolved(|mut c| {
                let bias = std::mem::take(&mut c.bias);
                c.bias = vec![0.0; bias.len()];
                let mut v = c.run(ALL_TOKENS, silu);
                v.indexed_iter_mut().for_each(|((_, e), v)| *v += bias[e]);
                v
            }),
        );
        self.made(
            "unseen: SiLU's table ends at three quarters",
            ("conv", conv_out),
            ("2-0", "exact"),
            (
                ALL,
                &[
                    ("overflow", "SiLU"),
                    ("table", "SiLU"),
                    ("function", "SiLU"),
                    ("overflow", "conv_out"),
                ],
            ),
            conv_of(ALL_TOKENS, |v| silu(v.clamp(-0.75, 0.75)), |_| {}),
        );
        self.made(
            "unseen: SiLU's table of 64 is read an entry too low",
            ("conv", real),
            ("5-2", "exact"),
            (ALL, &[("table", "SiLU"), ("function", "SiLU")]),
            conv_of(
                ALL_TOKENS,
                |v| silu((((v.clamp(-8.0, 7.99) + 8.0) * 4.0).floor() - 1.0) / 4.0 - 8.0),
                |_| {},
            ),
        );
        self.made(
            "unseen: conv's weights lose their sign in the extension",
            ("conv", conv_out),
            ("2-1", "exact"),
            (
                ALL,
                &[
                    ("format", "weight"),
                    ("sign", "weight"),
                    ("width", "weight"),
                    ("overflow", "weight"),
                    ("zero-point", "weight"),
                ],
            ),
            conv(
                |path, layer, _, c| {
                    let scale = f64::from(path.conv_weight(layer).tensors().unwrap().0.scale.get());
                    let unsigned = |w: f64| if w < 0.0 { w + 256.0 * scale } else { w };
                    c.w.mapv_inplace(unsigned);
                },
                ALL_TOKENS,
                silu,
            ),
        );
        self.model(
            "unseen: conv takes the taps of the channel below",
            "conv",
            ("4", "exact"),
            (
                ALL,
                &[
                    ("neighbour", "weight"),
                    ("shifted", "weight"),
                    ("order", "weight"),
                ],
            ),
            |m, l| {
                let w = &mut m.layers[l].conv_weight.codes;
                let own = w.clone();
                let e = own.nrows();
                *w = Array2::from_shape_fn(own.dim(), |(c, tap)| own[((c + 1) % e, tap)]);
            },
        );
    }

    pub(super) fn unseen_scan(&mut self) {
        self.read(
            "unseen: B and C begin a column late",
            ("scan", &[P::XProjOut]),
            ("0", "asic-int8"),
            (
                ALL,
                &[
                    ("neighbour", "B"),
                    ("neighbour", "C"),
                    ("shifted", "B"),
                    ("shifted", "C"),
                    ("order", "B"),
                    ("order", "C"),
                    ("two-edits", "B and C"),
                    ("two-edits", "C and B"),
                ],
            ),
            whole(|v| {
                let flat: Vec<f64> = v.iter().copied().collect();
                let width = v.ncols();
                Array2::from_shape_fn(v.dim(), |(t, c)| match c < width - 32 {
                    true => v[(t, c)],
                    false => flat.get(t * width + c + 1).copied().unwrap_or(0.0),
                })
            }),
        );
        self.made(
            "unseen: the gate's quotient lacks the one",
            ("scan", SCAN),
            ("2-1", "exact"),
            (ALL, &[("function", "gate")]),
            plain(|s| s.gate = |v| v * v.exp()),
        );
        self.made(
            "unseen: the state decays by the δ of the token before",
            ("scan", SCAN),
            ("2-1", "exact"),
            (
                TOKENS,
                &[
                    ("neighbour", "dt"),
                    ("neighbour", "delta"),
                    ("neighbour", "decay"),
                    ("order", "decay"),
                ],
            ),
            recurred(|s, [t, c, i], x| {
                let before = if t == 0 { 0.0 } else { s.delta(t - 1, c) };
                let input = s.b[(t, i)] * s.delta(t, c) * s.u[(t, c)];
                (-s.a[(c, i)] * before).exp() * x + input
            }),
        );
        self.made(
            "unseen: the last warp loses its state at token 32",
            ("scan", SCAN),
            ("5-0", "exact"),
            (BOTH, &[("history", "state")]),
            recurred(|s, at @ [t, c, _], x| match t == 32 && c >= 352 {
                true => s.next(at, 0.0),
                false => s.next(at, x),
            }),
        );
        self.made(
            "unseen: a channel begins with the last state of the one before",
            ("scan", SCAN),
            ("2-1", "exact"),
            (ALL, &[("not-reset", "state"), ("history", "state")]),
            scanned(|_, _, _, s| {
                let left = RefCell::new(vec![0.0; s.b.ncols()]);
                let end = s.u.nrows() - 1;
                let states = s.states(|s, at @ [t, _, i], x| {
                    let x = s.next(at, if t == 0 { left.borrow()[i] } else { x });
                    if t == end {
                        left.borrow_mut()[i] = x;
                    }
                    x
                });
                (s.output(&states), states)
            }),
        );
        self.model(
            "unseen: A's states in reverse",
            "scan",
            ("6-3", "exact"),
            (TOKENS, &[("order", "A"), ("order", "states")]),
            |m, l| {
                let a = &mut m.layers[l].a_log.codes;
                let reversed = a.slice(s![.., ..;-1]);
                *a = reversed.as_standard_layout().into_owned();
            },
        );
        self.made(
            "unseen: A rounded to powers of two",
            ("scan", SCAN),
            ("2-4", "exact"),
            (
                TOKENS,
                &[
                    ("format", "A"),
                    ("rounding", "A"),
                    ("function", "A"),
                    ("function", "decay"),
                    ("format", "decay"),
                ],
            ),
            plain(|s| s.a.mapv_inplace(|a| a.log2().round().exp2())),
        );
        self.made(
            "unseen: B has the scale of dt",
            ("scan", SCAN),
            ("2-0", "exact"),
            (
                ALL,
                &[
                    ("stale-scale", "scan_b"),
                    ("stale-scale", "x_proj_output"),
                    ("factor", "B"),
                    ("factor", "input"),
                    ("factor", "input_delta"),
                    ("neighbour", "scale"),
                ],
            ),
            scan(|path, layer, _, s| {
                let scale = |by| f64::from(path.scale(layer, by).unwrap().get());
                s.b *= scale(U::ScanDt) / scale(U::ScanB);
            }),
        );
        self.made(
            "unseen: δ is no less than a twentieth",
            ("scan", SCAN),
            ("2-2", "exact"),
            (
                ALL,
                &[
                    ("overflow", "delta"),
                    ("overflow", "softplus"),
                    ("overflow", "dt"),
                    ("function", "softplus"),
                    ("constant", "delta"),
                ],
            ),
            plain(|s| s.softplus = |v| v.exp().ln_1p().max(0.05)),
        );
        self.made(
            "unseen: the decay is a line",
            ("scan", SCAN),
            ("2-4", "exact"),
            (
                TOKENS,
                &[
                    ("function", "decay"),
                    ("function", "exp"),
                    ("left-out", "exp"),
                ],
            ),
            recurred(|s, [t, c, i], x| {
                let delta = s.delta(t, c);
                let input = s.b[(t, i)] * delta * s.u[(t, c)];
                (1.0 - s.a[(c, i)] * delta).max(0.0) * x + input
            }),
        );
        self.made(
            "unseen: the input is held exactly",
            ("scan", SCAN),
            ("3-grid", "exact"),
            (
                ALL,
                &[
                    ("function", "input"),
                    ("function", "input_delta"),
                    ("function", "B"),
                    ("function", "delta"),
                ],
            ),
            recurred(|s, [t, c, i], x| {
                let a = s.a[(c, i)];
                let decay = (-a * s.delta(t, c)).exp();
                decay * x + (1.0 - decay) / a * s.b[(t, i)] * s.u[(t, c)]
            }),
        );
    }

    pub(super) fn unseen_outputs_of_the_scan(&mut self) {
        self.read(
            "unseen: the gate reads x",
            ("scan", &[P::InProjOut]),
            ("2-4", "deployed"),
            (ALL, &[("neighbour", "z"), ("neighbour", "gate")]),
            columns(|c, width| c % (width / 2)),
        );
        self.made(
            "unseen: D·u passes the gate by",
            ("scan", SCAN),
            ("2-2", "exact"),
            (ALL, &[("order", "gate"), ("order", "D")]),
            scanned(|_, _, _, s| {
                let d = std::mem::replace(&mut s.d, vec![0.0; s.u.ncols()]);
                let states = s.states(Scan::next);
                let gated = s.output(&states);
                let y = Array2::from_shape_fn(gated.dim(), |at| gated[at] + d[at.1] * s.u[at]);
                (y, states)
            }),
        );
        self.made(
            "unseen: D multiplies the convolution's input",
            ("scan", SCAN),
            ("5-1", "exact"),
            (
                ALL,
                &[
                    ("neighbour", "D"),
                    ("neighbour", "u"),
                    ("neighbour", "input"),
                ],
            ),
            scanned(|path, layer, seen, s| {
                let x = real(path, layer, &seen[&P::InProjOut], U::ConvIn);
                let states = s.states(Scan::next);
                let own = s.output(&states);
                let y = Array2::from_shape_fn(own.dim(), |at| {
                    own[at] + s.d[at.1] * (x[at] - s.u[at]) * (s.gate)(s.z[at])
                });
                (y, states)
            }),
        );
        self.made(
            "unseen: D multiplies codes",
            ("scan", SCAN),
            ("2-0", "exact"),
            (
                ALL,
                &[
                    ("factor", "D"),
                    ("missing-scale", "D"),
                    ("stale-scale", "D"),
                    ("neighbour", "u"),
                ],
            ),
            scan(|path, layer, _, s| {
                let scale = f64::from(path.scale(layer, U::ScanU).unwrap().get());
                s.d.iter_mut().for_each(|d| *d /= scale);
            }),
        );
        self.made(
            "unseen: y reads the state before its token",
            ("scan", SCAN),
            ("6-2", "exact"),
            (
                ALL,
                &[
                    ("order", "state"),
                    ("neighbour", "state"),
                    ("shifted", "state"),
                    ("history", "state"),
                ],
            ),
            scanned(|_, _, _, s| {
                let states = s.states(Scan::next);
                let before = Array3::from_shape_fn(states.dim(), |(t, c, i)| match t {
                    0 => 0.0,
                    _ => states[(t - 1, c, i)],
                });
                (s.output(&before), states)
            }),
        );
        self.made(
            "unseen: the last four tokens of y are as the memory was",
            ("scan", &[P::SsmY]),
            ("0", "deployed"),
            (TOKENS, &[("constant", "ssm_y")]),
            each(|t, _, v| {
                if t >= 60 {
                    f16::from_bits(0xcdcd).to_f64()
                } else {
                    v
                }
            }),
        );
        self.made(
            "unseen: the state is kept a token early",
            ("scan", &[P::SsmState]),
            ("2-4", "exact"),
            (
                ALL,
                &[
                    ("shifted", "ssm_state"),
                    ("neighbour", "ssm_state"),
                    ("neighbour", "state"),
                    ("history", "state"),
                    ("order", "state"),
                ],
            ),
            scanned(|_, _, _, s| {
                let states = s.states(Scan::next);
                let early = states.slice(s![..-1, .., ..]).to_owned();
                (s.output(&states), early)
            }),
        );
        self.made(
            "unseen: halves of y's channels interleaved",
            ("scan", &[P::SsmY]),
            ("2-2", "torch-cpu"),
            (ALL, &[("order", "ssm_y"), ("order", "output")]),
            columns(|c, width| c % 2 * (width / 2) + c / 2),
        );
    }
}
