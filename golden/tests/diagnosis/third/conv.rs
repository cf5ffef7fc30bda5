//! Faults of the third list in the convolution.

use super::*;

impl Fresh {
    pub(super) fn third_conv(&mut self) {
        let conv_out: &[P] = &[P::ConvOut];
        let real: &[P] = &[P::ConvOutF32];
        self.made(
            "third: the padded convolution is cut at its other end",
            ("conv", conv_out),
            ("0", "exact"),
            (
                ALL,
                &[
                    ("shifted", "conv_out"),
                    ("shifted", "output"),
                    ("shifted", "input"),
                    ("neighbour", "input"),
                    ("neighbour", "conv_out"),
                    ("neighbour", "taps"),
                    ("shifted", "taps"),
                ],
            ),
            // `[..., -L:]` for `[..., :L]`.
            convolved(|c| {
                let (l, k) = (c.x.nrows(), c.w.ncols());
                Array2::from_shape_fn(c.x.dim(), |(t, e)| {
                    let taps = (0..k).filter(|tap| t + tap < l);
                    let sum: f64 = taps.map(|tap| c.w[(e, tap)] * c.x[(t + tap, e)]).sum();
                    silu(c.bias[e] + sum)
                })
            }),
        );
        self.made(
            "third: four channels of a vector have the taps of the first",
            ("conv", real),
            ("2-4", "exact"),
            (
                CHANNELS,
                &[
                    ("neighbour", "weight"),
                    ("neighbour", "taps"),
                    ("order", "weight"),
                    ("order", "taps"),
                    ("shifted", "weight"),
                    ("weights", "weight"),
                ],
            ),
            conv_of(ALL_TOKENS, silu, |c| {
                c.w = Array2::from_shape_fn(c.w.dim(), |(e, tap)| c.w[(e / 4 * 4, tap)]);
            }),
        );
        self.made(
            "third: the bias is added with each tap",
            ("conv", conv_out),
            ("2-1", "torch"),
            (
                ALL,
                &[
                    ("factor", "bias"),
                    ("twice", "bias"),
                    ("constant", "bias"),
                    ("stale-scale", "bias"),
                ],
            ),
            conv_of(ALL_TOKENS, silu, |c| {
                c.bias.iter_mut().for_each(|b| *b *= 4.0);
            }),
        );
        self.made(
            "third: what comes to SiLU is a code of the input's scale",
            ("conv", conv_out),
            ("0", "tflite-single"),
            (
                ALL,
                &[
                    ("format", "SiLU"),
                    ("table", "SiLU"),
                    ("rounding", "SiLU"),
                    ("width", "SiLU"),
                    ("function", "SiLU"),
                    ("format", "sum"),
                    ("rounding", "sum"),
                    ("width", "sum"),
                    ("format", "accumulator"),
                ],
            ),
            // A table of 256 entries needs an address of eight bits.
            Box::new(|path, layer, seen, _, like| {
                let address = f64::from(path.scale(layer, U::ConvIn).unwrap().get());
                let scale = f64::from(path.scale(layer, U::ConvOut).unwrap().get());
                let code = |v: f64| (v / address).round_ties_even().clamp(-128.0, 127.0);
                let sums = conv_parts(path, layer, seen).run(ALL_TOKENS, |v| v);
                let v = sums.mapv(|v| silu(address * code(v)));
                store(&v, like, scale, Round::Away)
            }),
        );
        self.made(
            "third: hard swish",
            ("conv", real),
            ("2-3", "exact"),
            (ALL, &[("function", "SiLU"), ("table", "SiLU")]),
            conv_of(ALL_TOKENS, |v| v * (v + 3.0).clamp(0.0, 6.0) / 6.0, |_| {}),
        );
        self.model(
            "third: the bias has the scale of the weight",
            "conv",
            ("3", "torch"),
            (
                ALL,
                &[
                    ("stale-scale", "bias"),
                    ("factor", "bias"),
                    ("constant", "bias"),
                    ("missing-scale", "bias"),
                    ("neighbour", "bias scale"),
                    ("neighbour", "scale"),
                    ("neighbour", "bias"),
                ],
            ),
            |m, l| m.layers[l].conv_bias.scale = m.layers[l].conv_weight.scale,
        );
        self.made(
            "third: the ring's oldest entry was overwritten by the newest",
            ("conv", conv_out),
            ("0", "tflite-double"),
            (
                ALL,
                &[
                    ("neighbour", "taps"),
                    ("order", "taps"),
                    ("shifted", "taps"),
                    ("neighbour", "input"),
                    ("history", "conv"),
                ],
            ),
            convolved(|mut c| {
                // The tap that is lost meets the token itself.
                let oldest = c.w.column(0).to_owned();
                let newest = c.w.ncols() - 1;
                let mut newest = c.w.column_mut(newest);
                newest += &oldest;
                c.w.column_mut(0).fill(0.0);
                c.run(ALL_TOKENS, silu)
            }),
        );
        self.made(
            "third: codes of each token's own scale are read with the sequence's",
            ("conv", &[P::ConvIn]),
            ("3", "exact"),
            (
                TOKENS,
                &[
                    ("factor", "conv_in"),
                    ("stale-scale", "conv_in"),
                    ("stale-scale", "conv_in_scale"),
                    ("constant", "conv_in"),
                    ("constant", "conv_in_scale"),
                    ("factor", "conv_in_scale"),
                    ("function", "conv_in"),
                    ("function", "conv_in_scale"),
                    ("factor", "output"),
                    ("neighbour", "scale"),
                    ("format", "conv_in"),
                    ("format", "scale"),
                ],
            ),
            Box::new(|_, _, seen, _, _| {
                let x = seen[&P::InProjX].to_real();
                let most = |t: usize| x.row(t).fold(0.0f32, |most, v| most.max(v.abs()));
                let most: Vec<f32> = (0..x.nrows()).map(most).collect();
                let code = |(t, c)| (127.0 * x[(t, c)] / most[t].max(1e-9)).round_ties_even() as i8;
                Tensor::Codes(Array2::from_shape_fn(x.dim(), code))
            }),
        );
        self.made(
            "third: the last warp's channels have no SiLU",
            ("conv", conv_out),
            ("2-0", "deployed"),
            (CHANNELS, &[("left-out", "SiLU")]),
            only(conv_of(ALL_TOKENS, |v| v, |_| {}), |_, c| c >= 352),
        );
        self.made(
            "third: the quantizer after SiLU is clamped as after ReLU",
            ("conv", conv_out),
            ("2-2", "exact"),
            (
                ALL,
                &[
                    ("overflow", "conv_out"),
                    ("overflow", "output"),
                    ("overflow", "SiLU"),
                    ("function", "SiLU"),
                    ("function", "conv_out"),
                ],
            ),
            each(|_, _, v| v.max(0.0)),
        );
    }
}
