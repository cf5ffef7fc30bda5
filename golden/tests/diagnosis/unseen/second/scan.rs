//! Faults of the second list in the scan and its outputs.

use super::*;

impl Fresh {
    pub(super) fn second_scan(&mut self) {
        self.read(
            "second: the counter of states has three bits where C is read",
            ("scan", &[P::XProjOut]),
            ("5-1", "deployed"),
            (
                ALL,
                &[
                    ("neighbour", "C"),
                    ("order", "C"),
                    ("shifted", "C"),
                    ("order", "states"),
                    ("neighbour", "states"),
                ],
            ),
            columns(|c, width| if c >= width - 8 { c - 8 } else { c }),
        );
        self.read(
            "second: the counter of tokens wraps at 32 where dt is read",
            ("scan", &[P::DtProjOut]),
            ("0", "asic-int8"),
            (
                TOKENS,
                &[
                    ("neighbour", "dt"),
                    ("shifted", "dt"),
                    ("order", "dt"),
                    ("history", "dt"),
                ],
            ),
            rows(|t| t % 32),
        );
        self.made(
            "second: without a barrier half of the channels have B of the tile before",
            ("scan", SCAN),
            ("2-1", "exact"),
            (
                BOTH,
                &[
                    ("neighbour", "B"),
                    ("shifted", "B"),
                    ("history", "B"),
                    ("order", "B"),
                ],
            ),
            recurred(|s, [t, c, i], x| {
                let stale = t > 0 && t % 8 == 0 && c >= s.u.ncols() / 2;
                let delta = s.delta(t, c);
                let b = s.b[(if stale { t - 1 } else { t }, i)];
                (-s.a[(c, i)] * delta).exp() * x + b * delta * s.u[(t, c)]
            }),
        );
        self.made(
            "second: δ has eight bits behind the point",
            ("scan", SCAN),
            ("2-4", "exact"),
            (
                ALL,
                &[
                    ("format", "delta"),
                    ("rounding", "delta"),
                    ("width", "delta"),
                    ("format", "dt"),
                    ("format", "softplus"),
                    ("table", "softplus"),
                    ("function", "softplus"),
                    ("rounding", "softplus"),
                ],
            ),
            plain(|s| s.softplus = |v| (v.exp().ln_1p() * 256.0).floor() / 256.0),
        );
        self.made(
            "second: A is a power of two, not of e",
            ("scan", SCAN),
            ("6-0", "exact"),
            (
                TOKENS,
                &[
                    ("function", "A"),
                    ("function", "exp"),
                    ("function", "decay"),
                    ("factor", "A"),
                    ("constant", "A"),
                    ("stale-scale", "A_log"),
                    ("constant", "exp"),
                ],
            ),
            plain(|s| s.a.mapv_inplace(|a| a.powf(std::f64::consts::LN_2))),
        );
        self.made(
            "second: A has its exponential twice",
            ("scan", SCAN),
            ("2-3", "exact"),
            (
                TOKENS,
                &[
                    ("twice", "exp"),
                    ("twice", "A"),
                    ("function", "A"),
                    ("function", "exp"),
                    ("function", "decay"),
                ],
            ),
            plain(|s| s.a.mapv_inplace(f64::exp)),
        );
        self.made(
            "second: softplus has the units' base of two",
            ("scan", SCAN),
            ("2-2", "exact"),
            (ALL, &[("function", "softplus"), ("constant", "softplus")]),
            plain(|s| s.softplus = |v| v.exp2().ln_1p() / std::f64::consts::LN_2),
        );
        self.made(
            "second: what a chunk begins with does not decay inside it",
            ("scan", SCAN),
            ("2-4", "exact"),
            (
                TOKENS,
                &[
                    ("left-out", "decay"),
                    ("part-missing", "decay"),
                    ("order", "decay"),
                    ("history", "state"),
                    ("history", "decay"),
                    ("function", "decay"),
                ],
            ),
            scanned(|_, _, _, s| {
                s.tile = 16;
                let mut states = s.states(Scan::next);
                let (l, e, n) = states.dim();
                for t in s.tile..l {
                    let carried = t / s.tile * s.tile - 1;
                    for (c, i) in (0..e).flat_map(|c| (0..n).map(move |i| (c, i))) {
                        states[(t, c, i)] += states[(carried, c, i)];
                    }
                }
                (s.output(&states), states)
            }),
        );
        self.model(
            "second: the bias of dt is a channel on",
            "scan",
            ("6-2", "torch"),
            (
                ALL,
                &[
                    ("shifted", "dt_bias"),
                    ("order", "dt_bias"),
                    ("neighbour", "dt_bias"),
                ],
            ),
            |m, l| m.layers[l].dt_bias.codes.rotate_right(1),
        );
    }

    pub(super) fn second_outputs_of_the_scan(&mut self) {
        self.made(
            "second: z's codes are unsigned bytes",
            ("scan", SCAN),
            ("0", "exact"),
            (
                ALL,
                &[
                    ("format", "z"),
                    ("sign", "z"),
                    ("overflow", "z"),
                    ("width", "z"),
                    ("zero-point", "z"),
                    ("function", "z"),
                    ("function", "gate"),
                ],
            ),
            scan(|path, layer, _, s| {
                let scale = f64::from(path.scale(layer, U::ScanZ).unwrap().get());
                s.z.mapv_inplace(|z| if z < 0.0 { z + 256.0 * scale } else { z });
            }),
        );
        self.made(
            "second: SiLU is on the output, not on z",
            ("scan", SCAN),
            ("5-3", "exact"),
            (
                ALL,
                &[
                    ("order", "gate"),
                    ("order", "SiLU"),
                    ("neighbour", "gate"),
                    ("neighbour", "z"),
                    ("function", "gate"),
                ],
            ),
            scanned(|_, _, _, s| {
                s.gate = |_| 1.0;
                let states = s.states(Scan::next);
                let out = s.output(&states);
                (out.mapv(silu) * &s.z, states)
            }),
        );
        self.made(
            "second: D is read by the token's number",
            ("scan", SCAN),
            ("5-0", "torch"),
            (
                ALL,
                &[
                    ("neighbour", "D"),
                    ("order", "D"),
                    ("transposed", "D"),
                    ("shifted", "D"),
                ],
            ),
            scanned(|_, _, _, s| {
                let states = s.states(Scan::next);
                let own = s.output(&states);
                let y = Array2::from_shape_fn(own.dim(), |at @ (t, c)| {
                    let off = s.d[t % s.d.len()] - s.d[c];
                    own[at] + off * s.u[at] * (s.gate)(s.z[at])
                });
                (y, states)
            }),
        );
    }
}
