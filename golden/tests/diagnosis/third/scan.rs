//! Faults of the third list in the scan and its outputs.

use super::*;
use ndarray::Array3;

impl Fresh {
    pub(super) fn third_scan(&mut self) {
        self.made(
            "third: the decay is bilinear",
            ("scan", SCAN),
            ("2-4", "exact"),
            (
                TOKENS,
                &[
                    ("function", "decay"),
                    ("function", "exp"),
                    ("function", "A"),
                    ("table", "exp"),
                ],
            ),
            recurred(|s, [t, c, i], x| {
                let delta = s.delta(t, c);
                let half = 0.5 * s.a[(c, i)] * delta;
                (1.0 - half) / (1.0 + half) * x + s.b[(t, i)] * delta * s.u[(t, c)]
            }),
        );
        self.made(
            "third: δ is kept between the bounds of its initial values",
            ("scan", SCAN),
            ("0", "exact"),
            (
                ALL,
                &[
                    ("overflow", "delta"),
                    ("overflow", "softplus"),
                    ("overflow", "dt"),
                    ("function", "softplus"),
                    ("function", "delta"),
                ],
            ),
            plain(|s| s.softplus = |v| v.exp().ln_1p().clamp(0.001, 0.1)),
        );
        self.made(
            "third: softplus is log(1 + exp) in binary16",
            ("scan", SCAN),
            ("2-1", "torch"),
            (
                ALL,
                &[
                    ("format", "softplus"),
                    ("rounding", "softplus"),
                    ("function", "softplus"),
                    ("table", "softplus"),
                    ("format", "delta"),
                    ("rounding", "delta"),
                    ("width", "delta"),
                    ("format", "dt"),
                ],
            ),
            plain(|s| {
                s.softplus = |v| {
                    let half = |v: f64| f16::from_f64(v).to_f64();
                    half(half(1.0 + half(half(v).exp())).ln())
                }
            }),
        );
        self.made(
            "third: a chunk begins with the last state but one",
            ("scan", SCAN),
            ("5-3", "exact"),
            (
                TOKENS,
                &[
                    ("history", "state"),
                    ("neighbour", "state"),
                    ("shifted", "state"),
                    ("not-reset", "state"),
                    ("order", "state"),
                ],
            ),
            scanned(|_, _, _, s| {
                let (l, e) = s.u.dim();
                let mut states = Array3::zeros((l, e, s.b.ncols()));
                for t in 0..l {
                    let before = t.checked_sub(if t % 16 == 0 { 2 } else { 1 });
                    for (c, i) in (0..e).flat_map(|c| (0..s.b.ncols()).map(move |i| (c, i))) {
                        let x = before.map_or(0.0, |t| states[(t, c, i)]);
                        states[(t, c, i)] = s.next([t, c, i], x);
                    }
                }
                (s.output(&states), states)
            }),
        );
        self.made(
            "third: B is read at the first token of four",
            ("scan", SCAN),
            ("2-2", "exact"),
            (
                TOKENS,
                &[
                    ("neighbour", "B"),
                    ("shifted", "B"),
                    ("order", "B"),
                    ("history", "B"),
                ],
            ),
            plain(|s| s.b = Array2::from_shape_fn(s.b.dim(), |(t, i)| s.b[(t & !3, i)])),
        );
        self.made(
            "third: the decay has eight bits behind the point",
            ("scan", SCAN),
            ("2-3", "torch"),
            (
                TOKENS,
                &[
                    ("format", "decay"),
                    ("rounding", "decay"),
                    ("width", "decay"),
                    ("format", "exp"),
                    ("rounding", "exp"),
                    ("table", "exp"),
                    ("function", "decay"),
                    ("function", "exp"),
                ],
            ),
            recurred(|s, [t, c, i], x| {
                let delta = s.delta(t, c);
                let decay = (256.0 * (-s.a[(c, i)] * delta).exp()).floor() / 256.0;
                decay * x + s.b[(t, i)] * delta * s.u[(t, c)]
            }),
        );
        self.made(
            "third: A is read as [N, E]",
            ("scan", SCAN),
            ("0", "deployed"),
            (
                TOKENS,
                &[
                    ("transposed", "A"),
                    ("order", "A"),
                    ("neighbour", "A"),
                    ("order", "decay"),
                ],
            ),
            plain(|s| {
                let e = s.a.nrows();
                let flat: Vec<f64> = s.a.iter().copied().collect();
                s.a = Array2::from_shape_fn(s.a.dim(), |(c, i)| flat[i * e + c]);
            }),
        );
        self.made(
            "third: A has its initial values",
            ("scan", SCAN),
            ("4", "exact"),
            (
                TOKENS,
                &[
                    ("constant", "A"),
                    ("left-out", "A"),
                    ("neighbour", "A"),
                    ("weights", "A"),
                    ("function", "A"),
                    ("order", "A"),
                    ("stale-scale", "A_log"),
                ],
            ),
            // A_log was not in the checkpoint under the name that was looked for.
            plain(|s| s.a = Array2::from_shape_fn(s.a.dim(), |(_, i)| (i + 1) as f64)),
        );
        self.model(
            "third: the bias of dt has the scale of D",
            "scan",
            ("0", "tflite-double"),
            (
                ALL,
                &[
                    ("stale-scale", "dt_bias"),
                    ("factor", "dt_bias"),
                    ("missing-scale", "dt_bias"),
                    ("constant", "dt_bias"),
                    ("neighbour", "scale"),
                    ("neighbour", "dt_bias scale"),
                ],
            ),
            |m, l| m.layers[l].dt_bias.scale = m.layers[l].d.scale,
        );
        self.made(
            "third: u comes from before SiLU",
            ("scan", SCAN),
            ("2-4", "torch"),
            (
                ALL,
                &[
                    ("left-out", "SiLU"),
                    ("order", "SiLU"),
                    ("neighbour", "u"),
                    ("neighbour", "ssm_u"),
                    ("neighbour", "input"),
                    ("function", "u"),
                    ("function", "input"),
                    ("function", "ssm_u"),
                ],
            ),
            scan(|path, layer, seen, s| {
                s.u = conv_parts(path, layer, seen).run(ALL_TOKENS, |v| v);
            }),
        );
    }

    pub(super) fn third_outputs_of_the_scan(&mut self) {
        self.made(
            "third: y is of the state before the token",
            ("scan", &[P::SsmY]),
            ("2-1", "exact"),
            (
                ALL,
                &[
                    ("neighbour", "state"),
                    ("shifted", "state"),
                    ("history", "state"),
                    ("order", "state"),
                    ("neighbour", "states"),
                    ("shifted", "states"),
                    ("order", "states"),
                ],
            ),
            scanned(|_, _, _, s| {
                let states = s.states(Scan::next);
                let mut before = Array3::zeros(states.dim());
                before
                    .slice_mut(s![1.., .., ..])
                    .assign(&states.slice(s![..-1, .., ..]));
                (s.output(&before), states)
            }),
        );
        self.made(
            "third: D meets the convolution's input",
            ("scan", &[P::SsmY]),
            ("0", "torch"),
            (
                ALL,
                &[
                    ("neighbour", "D"),
                    ("neighbour", "u"),
                    ("neighbour", "input"),
                    ("order", "D"),
                ],
            ),
            scanned(|path, layer, seen, s| {
                let states = s.states(Scan::next);
                // The states are made; what u is from here on is D's alone.
                s.u = conv_parts(path, layer, seen).x;
                (s.output(&states), states)
            }),
        );
        self.made(
            "third: rows of z are E apart",
            ("scan", &[P::SsmY]),
            ("2-0", "exact"),
            (
                TOKENS,
                &[
                    ("neighbour", "z"),
                    ("order", "z"),
                    ("shifted", "z"),
                    ("transposed", "z"),
                    ("neighbour", "gate"),
                    ("order", "gate"),
                    ("shifted", "gate"),
                ],
            ),
            // z is a view of x‖z, whose stride was taken for its width.
            scan(|path, layer, seen, s| {
                let xz = real(path, layer, &seen[&P::InProjOut], U::ScanZ);
                let flat: Vec<f64> = xz.iter().copied().collect();
                let e = s.z.ncols();
                s.z = Array2::from_shape_fn(s.z.dim(), |(t, c)| flat[(t + 1) * e + c]);
            }),
        );
        self.made(
            "third: D was not loaded and is one",
            ("scan", &[P::SsmY]),
            ("5-0", "deployed"),
            (
                ALL,
                &[
                    ("constant", "D"),
                    ("left-out", "D"),
                    ("missing-scale", "D"),
                    ("factor", "D"),
                    ("weights", "D"),
                    ("stale-scale", "D"),
                ],
            ),
            plain(|s| s.d.fill(1.0)),
        );
        self.made(
            "third: the gate is z sigmoid(1.702 z)",
            ("scan", &[P::SsmY]),
            ("6-2", "exact"),
            (
                ALL,
                &[
                    ("function", "gate"),
                    ("constant", "gate"),
                    ("function", "SiLU"),
                ],
            ),
            plain(|s| s.gate = |z| z / (1.0 + (-1.702 * z).exp())),
        );
        self.made(
            "third: y is summed in bfloat16",
            ("scan", &[P::SsmY]),
            ("2-2", "torch-cpu"),
            (
                ALL,
                &[
                    ("format", "sum"),
                    ("rounding", "sum"),
                    ("width", "sum"),
                    ("format", "accumulator"),
                    ("format", "y"),
                    ("format", "ssm_y"),
                    ("format", "output"),
                    ("format", "states"),
                ],
            ),
            scanned(|_, _, _, s| {
                let states = s.states(Scan::next);
                let low = |v: f64| bf16::from_f64(v).to_f64();
                let y = Array2::from_shape_fn(s.u.dim(), |(t, c)| {
                    let terms = (0..s.states).map(|i| states[(t, c, i)] * s.c[(t, i)]);
                    let sum = terms.fold(0.0, |sum, term| low(sum + term));
                    (sum + s.d[c] * s.u[(t, c)]) * (s.gate)(s.z[(t, c)])
                });
                (y, states)
            }),
        );
        self.made(
            "third: the state is written before the last token comes",
            ("scan", &[P::SsmState]),
            ("0", "tflite-single"),
            (
                ALL,
                &[
                    ("shifted", "ssm_state"),
                    ("neighbour", "ssm_state"),
                    ("history", "ssm_state"),
                    ("shifted", "state"),
                    ("neighbour", "state"),
                    ("history", "state"),
                    ("order", "state"),
                ],
            ),
            scanned(|_, _, _, s| {
                let states = s.states(Scan::next);
                (s.output(&states), states.slice(s![..-1, .., ..]).to_owned())
            }),
        );
        self.made(
            "third: the state is written as [N, E]",
            ("scan", &[P::SsmState]),
            ("2-1", "torch"),
            (
                ALL,
                &[
                    ("transposed", "ssm_state"),
                    ("transposed", "state"),
                    ("order", "ssm_state"),
                    ("order", "state"),
                ],
            ),
            whole(|v| {
                let flat: Vec<f64> = v.t().iter().copied().collect();
                let n = v.ncols();
                Array2::from_shape_fn(v.dim(), |(c, i)| flat[c * n + i])
            }),
        );
    }
}
