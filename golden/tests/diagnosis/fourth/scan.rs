//! Faults of the fourth list in the scan and its outputs.

use super::*;
use ndarray::Array3;

impl Fresh {
    pub(super) fn fourth_scan(&mut self) {
        self.made(
            "fourth: A is its logarithm, negated",
            ("scan", SCAN),
            ("2-1", "exact"),
            (
                TOKENS,
                &[
                    ("left-out", "exp"),
                    ("function", "A"),
                    ("left-out", "A"),
                    ("table", "exp"),
                ],
            ),
            plain(|s| s.a.mapv_inplace(f64::ln)),
        );
        self.made(
            "fourth: B is not multiplied by δ",
            ("scan", SCAN),
            ("0", "exact"),
            (
                ALL,
                &[
                    ("left-out", "delta"),
                    ("constant", "delta"),
                    ("left-out", "input_delta"),
                    ("constant", "input_delta"),
                    ("factor", "input_delta"),
                    ("function", "input_delta"),
                    ("function", "B"),
                ],
            ),
            recurred(|s, [t, c, i], x| {
                (-s.a[(c, i)] * s.delta(t, c)).exp() * x + s.b[(t, i)] * s.u[(t, c)]
            }),
        );
        self.made(
            "fourth: B is discretized as A is",
            ("scan", SCAN),
            ("2-2", "torch"),
            (
                ALL,
                &[
                    ("function", "B"),
                    ("function", "input_delta"),
                    ("function", "delta"),
                    ("function", "input"),
                ],
            ),
            // (exp(δA) − 1) / A · B, as the paper has it.
            recurred(|s, [t, c, i], x| {
                let decay = (-s.a[(c, i)] * s.delta(t, c)).exp();
                decay * x + (1.0 - decay) / s.a[(c, i)] * s.b[(t, i)] * s.u[(t, c)]
            }),
        );
        self.made(
            "fourth: C meets the states in reverse",
            ("scan", &[P::SsmY]),
            ("2-3", "exact"),
            (
                ALL,
                &[
                    ("order", "C"),
                    ("order", "states"),
                    ("order", "state"),
                    ("transposed", "state"),
                ],
            ),
            plain(|s| {
                s.c.invert_axis(ndarray::Axis(1));
            }),
        );
        self.made(
            "fourth: what a chunk hands on does not decay in the next",
            ("scan", SCAN),
            ("0", "deployed"),
            (
                TOKENS,
                &[
                    ("left-out", "decay"),
                    ("part-missing", "decay"),
                    ("function", "decay"),
                    ("history", "decay"),
                    ("constant", "decay"),
                    ("history", "state"),
                    ("not-reset", "state"),
                ],
            ),
            scanned(|_, _, _, s| {
                let (l, e) = s.u.dim();
                let n = s.b.ncols();
                let mut states = Array3::zeros((l, e, n));
                for (c, i) in (0..e).flat_map(|c| (0..n).map(move |i| (c, i))) {
                    let (mut own, mut carried) = (0.0, 0.0);
                    for t in 0..l {
                        if t % 16 == 0 {
                            carried += own;
                            own = 0.0;
                        }
                        own = s.next([t, c, i], own);
                        states[(t, c, i)] = own + carried;
                    }
                }
                (s.output(&states), states)
            }),
        );
        self.made(
            "fourth: softplus is eight chords between -4 and 4",
            ("scan", SCAN),
            ("0", "exact"),
            (
                ALL,
                &[
                    ("table", "softplus"),
                    ("function", "softplus"),
                    ("format", "softplus"),
                    ("rounding", "softplus"),
                    ("function", "delta"),
                ],
            ),
            plain(|s| {
                s.softplus = |v| {
                    let exact = |v: f64| v.exp().ln_1p();
                    let from = v.floor();
                    match v {
                        v if v < -4.0 => 0.0,
                        v if v >= 4.0 => v,
                        _ => exact(from) + (v - from) * (exact(from + 1.0) - exact(from)),
                    }
                }
            }),
        );
        self.made(
            "fourth: the mantissa of the decay is linear",
            ("scan", SCAN),
            ("5-4", "exact"),
            (
                TOKENS,
                &[
                    ("function", "exp"),
                    ("table", "exp"),
                    ("rounding", "exp"),
                    ("format", "exp"),
                    ("function", "decay"),
                    ("format", "decay"),
                    ("rounding", "decay"),
                ],
            ),
            // 2^n (1 + f), by a shift of the exponent.
            recurred(|s, [t, c, i], x| {
                let delta = s.delta(t, c);
                let at = -s.a[(c, i)] * delta * std::f64::consts::LOG2_E;
                let decay = at.floor().exp2() * (1.0 + at - at.floor());
                decay * x + s.b[(t, i)] * delta * s.u[(t, c)]
            }),
        );
        self.made(
            "fourth: B begins one column too early",
            ("scan", SCAN),
            ("2-1", "deployed"),
            (
                ALL,
                &[
                    ("shifted", "B"),
                    ("neighbour", "B"),
                    ("order", "B"),
                    ("shifted", "ssm_bc"),
                ],
            ),
            scan(|path, layer, seen, s| {
                let x = real(path, layer, &seen[&P::XProjOut], U::ScanB);
                let (r, n) = (path.config().dt_rank, path.config().d_state);
                s.b = x.slice(s![.., r - 1..r - 1 + n]).to_owned();
            }),
        );
        self.read(
            "fourth: two channels share a word, and its dt",
            ("scan", &[P::DtProjOut]),
            ("2-4", "exact"),
            (
                CHANNELS,
                &[
                    ("neighbour", "dt"),
                    ("shifted", "dt"),
                    ("order", "dt"),
                    ("neighbour", "delta"),
                ],
            ),
            whole(|v| Array2::from_shape_fn(v.dim(), |(t, c)| v[(t, c & !1)])),
        );
        self.model(
            "fourth: A is of as many states as four, repeated",
            "scan",
            ("6-1", "exact"),
            (
                TOKENS,
                &[
                    ("neighbour", "A"),
                    ("order", "A"),
                    ("weights", "A"),
                    ("shifted", "A"),
                ],
            ),
            |m, l| {
                let a = &mut m.layers[l].a_log.codes;
                *a = Array2::from_shape_fn(a.dim(), |(e, n)| a[(e, n & 3)]);
            },
        );
        self.model(
            "fourth: the bias of dt was not quantized but cast",
            "scan",
            ("2-0", "deployed"),
            (
                ALL,
                &[
                    ("left-out", "dt_bias"),
                    ("missing-scale", "dt_bias"),
                    ("factor", "dt_bias"),
                    ("rounding", "dt_bias"),
                    ("width", "dt_bias"),
                    ("format", "dt_bias"),
                    ("weights", "dt_bias"),
                    ("stale-scale", "dt_bias"),
                ],
            ),
            // `.to(torch.int8)` of reals, its scale kept.
            |m, l| {
                let bias = &mut m.layers[l].dt_bias;
                let scale = bias.scale.get();
                let cast = |c: &mut i8| *c = (f32::from(*c) * scale) as i8;
                bias.codes.iter_mut().for_each(cast);
            },
        );
    }

    pub(super) fn fourth_outputs_of_the_scan(&mut self) {
        let y: &[P] = &[P::SsmY];
        self.made(
            "fourth: D comes behind the gate",
            ("scan", y),
            ("2-4", "torch"),
            (
                ALL,
                &[
                    ("order", "D"),
                    ("order", "gate"),
                    ("function", "gate"),
                    ("two-edits", "D and gate"),
                    ("two-edits", "gate and D"),
                ],
            ),
            scanned(|_, _, _, s| {
                let states = s.states(Scan::next);
                let d = std::mem::replace(&mut s.d, vec![0.0; s.u.ncols()]);
                let gated = s.output(&states);
                let y = Array2::from_shape_fn(gated.dim(), |at| gated[at] + d[at.1] * s.u[at]);
                (y, states)
            }),
        );
        self.made(
            "fourth: the gate is the sigmoid of z",
            ("scan", y),
            ("0", "exact"),
            (
                ALL,
                &[
                    ("function", "gate"),
                    ("left-out", "z"),
                    ("function", "z"),
                    ("part-missing", "gate"),
                ],
            ),
            plain(|s| s.gate = |z| 1.0 / (1.0 + (-z).exp())),
        );
        self.made(
            "fourth: z was overwritten by the tile that comes next",
            ("scan", y),
            ("2-0", "exact"),
            (
                TOKENS,
                &[
                    ("neighbour", "z"),
                    ("shifted", "z"),
                    ("order", "z"),
                    ("neighbour", "gate"),
                    ("shifted", "gate"),
                ],
            ),
            plain(|s| {
                let l = s.z.nrows();
                let next = |t: usize| if t + 16 < l { t + 16 } else { t };
                s.z = Array2::from_shape_fn(s.z.dim(), |(t, c)| s.z[(next(t), c)]);
            }),
        );
        self.made(
            "fourth: D of a channel is read in the order of heads of 64",
            ("scan", y),
            ("2-1", "torch"),
            (
                ALL,
                &[
                    ("order", "D"),
                    ("transposed", "D"),
                    ("neighbour", "D"),
                    ("weights", "D"),
                ],
            ),
            plain(|s| {
                let own = s.d.clone();
                let heads = own.len() / 64;
                s.d = (0..own.len())
                    .map(|c| own[c % heads * 64 + c / heads])
                    .collect();
            }),
        );
        self.made(
            "fourth: the last state is cast without rounding",
            ("scan", &[P::SsmState]),
            ("0", "exact"),
            (
                ALL,
                &[
                    ("rounding", "ssm_state"),
                    ("rounding", "state"),
                    ("rounding", "output"),
                ],
            ),
            Box::new(|path, layer, seen, _, like| {
                let s = scan_parts(path, layer, seen);
                let states = s.states(Scan::next);
                let last = states.index_axis(ndarray::Axis(0), s.u.nrows() - 1);
                store(&last.to_owned(), like, s.step, Round::Zero)
            }),
        );
    }
}
