//! Faults of the fifth list before the projections of dt, B and C: the norm and the convolution.

use super::*;
use half::f16;

impl List {
    pub(super) fn norm(&mut self) {
        let residual_out: &[P] = &[P::ResidualOut];
        let norm_out: &[P] = &[P::NormOut];

        // Expected: the residual stream is kept in binary16 (rounded to f16 after the addition), not in FP32.
        self.made(
            "fifth: the residual stream is binary16",
            ("norm", residual_out),
            ("0", "exact"),
            (
                ALL,
                &[
                    ("format", "residual"),
                    ("format", "residual_out"),
                    ("format", "output"),
                    ("rounding", "residual"),
                    ("rounding", "residual_out"),
                    ("rounding", "output"),
                    ("width", "residual"),
                    ("width", "residual_out"),
                    ("width", "output"),
                ],
            ),
            Box::new(|_, _, _, _, like| {
                Tensor::F32(like.to_real().mapv(|v| f16::from_f32(v).to_f32()))
            }),
        );

        // Expected: the residual is added twice (once in out_proj's epilogue, once in the norm).
        self.made(
            "fifth: the residual is added in the epilogue and in the norm",
            ("norm", residual_out),
            ("2-1", "deployed"),
            (
                ALL,
                &[
                    ("twice", "residual"),
                    ("twice", "residual_in"),
                    ("factor", "residual"),
                    ("factor", "residual_in"),
                ],
            ),
            Box::new(|_, _, seen, _, like| match seen.get(&P::ResidualIn) {
                Some(before) => Tensor::F32(like.to_real() + before.to_real()),
                None => Tensor::F32(like.to_real() * 2.0),
            }),
        );

        // Expected: the mean of squares is divided by a wrong length: the row padded to a power of two (256 for 192).
        self.made(
            "fifth: the mean is over the padded row",
            ("norm", norm_out),
            ("2-3", "exact"),
            (
                ALL,
                &[
                    ("constant", "mean"),
                    ("factor", "mean"),
                    ("function", "mean"),
                    ("constant", "norm"),
                    ("factor", "norm"),
                    ("factor", "norm_out"),
                    ("factor", "output"),
                    ("factor", "weight"),
                    ("stale-scale", "norm_out"),
                    ("stale-scale", "in_proj_input"),
                ],
            ),
            normed(Round::Even, |n| {
                let m = n.r.ncols();
                let share = m as f64 / m.next_power_of_two() as f64;
                n.times(|t| ((n.mean(t) - n.eps) * share + n.eps).sqrt().recip())
            }),
        );

        // Expected: the sum of squares leaves out channels: only the first 128 are summed (the tail of the row is lost).
        self.made(
            "fifth: the sum of squares stops after the last full vector of 128",
            ("norm", norm_out),
            ("0", "deployed"),
            (
                ALL,
                &[
                    ("part-missing", "mean"),
                    ("part-missing", "sum"),
                    ("part-missing", "norm"),
                ],
            ),
            normed(Round::Even, |n| {
                let m = n.r.ncols();
                let squares = |t: usize| -> f64 {
                    let row = n.r.row(t);
                    row.iter().take(m / 128 * 128).map(|v| v * v).sum()
                };
                n.times(|t| (squares(t) / m as f64 + n.eps).sqrt().recip())
            }),
        );

        // Expected: the norm's quantizer truncates toward zero instead of rounding to nearest.
        self.made(
            "fifth: the norm's output is cast to int8",
            ("norm", norm_out),
            ("2-1", "exact"),
            (ALL, &[("rounding", "norm_out"), ("rounding", "output")]),
            normed(Round::Zero, |n| n.times(|t| n.mean(t).sqrt().recip())),
        );

        // Expected: the reciprocal root is an approximation (0x5f3759df with one Newton step, up to 0.18 % too small).
        self.made(
            "fifth: the reciprocal root is the fast one with one Newton step",
            ("norm", norm_out),
            ("0", "exact"),
            (
                ALL,
                &[
                    ("function", "rsqrt"),
                    ("function", "root"),
                    ("function", "mean"),
                    ("function", "norm"),
                    ("table", "rsqrt"),
                    ("table", "root"),
                    ("table", "norm"),
                ],
            ),
            normed(Round::Even, |n| {
                n.times(|t| {
                    let v = n.mean(t) as f32;
                    let y = f32::from_bits(0x5f37_59df - (v.to_bits() >> 1));
                    f64::from(y * (1.5 - 0.5 * v * y * y))
                })
            }),
        );
    }

    pub(super) fn conv(&mut self) {
        let conv_out: &[P] = &[P::ConvOut];
        let conv_out_f32: &[P] = &[P::ConvOutF32];

        // Expected: the convolution is not causal: its output is K−1 tokens late in the padded result (the last L rows are
        // taken instead of the first), so that token t is made from inputs t to t+3.
        self.made(
            "fifth: the padded convolution is cut at the wrong end",
            ("conv", conv_out),
            ("0", "exact"),
            (
                ALL,
                &[
                    ("shifted", "conv_out"),
                    ("shifted", "output"),
                    ("shifted", "input"),
                    ("shifted", "taps"),
                    ("neighbour", "conv_out"),
                    ("neighbour", "output"),
                    ("neighbour", "input"),
                    ("neighbour", "taps"),
                ],
            ),
            convolved(|_, _, _, parts| {
                let (x, late) = (padded(parts), parts.w.ncols() as isize - 1);
                tapped(parts, |t, c| x(t + late, c)).mapv(silu)
            }),
        );

        // Expected: the first token of each tile of 16 does not see the oldest tap (the halo of a tile is a row short).
        self.made(
            "fifth: the halo of a tile has two rows",
            ("conv", conv_out),
            ("2-1", "exact"),
            (
                TOKENS,
                &[
                    ("history", "conv"),
                    ("history", "input"),
                    ("part-missing", "taps"),
                    ("left-out", "input"),
                    ("left-out", "weight"),
                ],
            ),
            convolved(|_, _, _, parts| {
                let x = padded(parts);
                let mut out = tapped(parts, &x);
                let k = parts.w.ncols() as isize;
                for ((t, c), v) in out.indexed_iter_mut() {
                    if t % 16 == 0 {
                        *v -= parts.w[(c, 0)] * x(t as isize + 1 - k, c);
                    }
                }
                out.mapv_into(silu)
            }),
        );

        // Expected: the history is not cleared: the first three tokens see the last inputs of the run before (here the same
        // prompt, a warm-up).
        self.made(
            "fifth: the history still holds the end of the run before",
            ("conv", conv_out),
            ("0", "deployed"),
            (
                TOKENS,
                &[
                    ("history", "conv"),
                    ("history", "input"),
                    ("not-reset", "conv"),
                    ("not-reset", "input"),
                    ("neighbour", "input"),
                ],
            ),
            convolved(|_, _, _, parts| {
                let (x, l) = (padded(parts), parts.x.nrows() as isize);
                tapped(parts, |t, c| x(t.rem_euclid(l), c)).mapv(silu)
            }),
        );

        // Expected: the bias is in a wrong scale: its codes are added to the sum of codes as they are, in units of
        // s_x · s_w instead of its own scale.
        self.made(
            "fifth: codes of the bias start the accumulator",
            ("conv", conv_out_f32),
            ("2-4", "exact"),
            (
                ALL,
                &[
                    ("stale-scale", "bias"),
                    ("missing-scale", "bias"),
                    ("factor", "bias"),
                    ("constant", "bias"),
                    ("neighbour", "scale"),
                    ("neighbour", "bias scale"),
                ],
            ),
            convolved(|path, layer, _, parts| {
                let (weight, bias) = path.conv_weight(layer).tensors().unwrap();
                let unit = scale(path, layer, U::ConvIn) * f64::from(weight.scale.get());
                let parts = Conv {
                    x: parts.x.clone(),
                    w: parts.w.clone(),
                    bias: bias.codes.iter().map(|q| unit * f64::from(*q)).collect(),
                };
                parts.run(usize::MAX, silu)
            }),
        );

        // Expected: SiLU is approximated by hard-swish, x · relu6(x + 3) / 6.
        self.made(
            "fifth: hard-swish stands for SiLU",
            ("conv", conv_out),
            ("2-0", "exact"),
            (ALL, &[("function", "SiLU"), ("table", "SiLU")]),
            convolved(|_, _, _, parts| {
                parts.run(usize::MAX, |v| v * (v + 3.0).clamp(0.0, 6.0) / 6.0)
            }),
        );

        // Expected: the scale found at run time is the largest magnitude over 128, not over 127.
        self.made(
            "fifth: the conv input's scale is absmax / 128",
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
                    ("function", "conv_in_scale"),
                    ("stale-scale", "conv_in"),
                    ("stale-scale", "conv_in_scale"),
                ],
            ),
            Box::new(|_, _, seen, _, like| {
                let x = seen[&P::InProjX].to_real();
                let scale = x.fold(0.0f32, |most, v| most.max(v.abs())) / 128.0;
                let code = |v: &f32| (v / scale).round_ties_even().clamp(-128.0, 127.0) as i8;
                match like {
                    Tensor::Codes(_) => Tensor::Codes(x.mapv(|v| code(&v))),
                    other => Tensor::F32(Array2::from_elem(other.dim(), scale)),
                }
            }),
        );

        // Expected: the sum before SiLU is quantized to 8 bits (in the scale of the conv's input), then SiLU, then quantized
        // again.
        self.made(
            "fifth: SiLU is an operator of its own and reads int8",
            ("conv", conv_out),
            ("2-1", "deployed"),
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
            convolved(|path, layer, _, parts| {
                let s = scale(path, layer, U::ConvIn);
                let code = |v: f64| (v / s).round_ties_even().clamp(-128.0, 127.0);
                parts.run(usize::MAX, |v| silu(s * code(v)))
            }),
        );

        // Expected: channels from 256 on are convolved with the weights of the channels 256 before (the weight address has
        // 8 bits).
        self.made(
            "fifth: the address of the taps has eight bits",
            ("conv", conv_out_f32),
            ("2-3", "exact"),
            (
                CHANNELS,
                &[
                    ("neighbour", "weight"),
                    ("neighbour", "taps"),
                    ("order", "weight"),
                    ("order", "taps"),
                    ("shifted", "weight"),
                    ("shifted", "taps"),
                ],
            ),
            convolved(|_, _, _, parts| {
                let parts = Conv {
                    x: parts.x.clone(),
                    w: Array2::from_shape_fn(parts.w.dim(), |(c, tap)| parts.w[(c % 256, tap)]),
                    bias: parts.bias.clone(),
                };
                parts.run(usize::MAX, silu)
            }),
        );
    }
}
