//! Faults of the fourth list in the rotation and the quantizers.

use super::*;

impl Fresh {
    pub(super) fn fourth_rotation(&mut self) {
        let had_out: &[P] = &[P::HadOut];
        self.made(
            "fourth: the rotation is over its size, not over the size's root",
            ("hadamard", had_out),
            ("0", "deployed"),
            (
                ALL,
                &[
                    ("constant", "norm"),
                    ("factor", "norm"),
                    ("twice", "norm"),
                    ("constant", "rotation"),
                    ("factor", "rotation"),
                    ("factor", "had_out"),
                    ("factor", "output"),
                    ("stale-scale", "had_out"),
                ],
            ),
            hadamard(|_, _, h| h, |e| 1.0 / e),
        );
        self.made(
            "fourth: the stage of distance 16 is left out",
            ("hadamard", had_out),
            ("2-4", "exact"),
            (
                ALL,
                &[
                    ("left-out", "stages"),
                    ("part-missing", "stages"),
                    ("left-out", "rotation"),
                    ("part-missing", "rotation"),
                ],
            ),
            hadamard(
                |i, j, h| match (i & 16, j & 16) {
                    (16, 16) => -h,
                    (0, 0) => h,
                    _ => 0.0,
                },
                |e| 1.0 / e.sqrt(),
            ),
        );
        self.made(
            "fourth: the first stage subtracts the other way round",
            ("hadamard", had_out),
            ("2-1", "exact"),
            (
                CHANNELS,
                &[
                    ("sign", "rotation"),
                    ("sign", "stages"),
                    ("sign", "had_out"),
                    ("sign", "output"),
                ],
            ),
            hadamard(
                |i, _, h| if i & 1 == 1 { -h } else { h },
                |e| 1.0 / e.sqrt(),
            ),
        );
        self.made(
            "fourth: blocks of 32 are written from the last to the first",
            ("hadamard", had_out),
            ("3", "exact"),
            (
                ALL,
                &[
                    ("order", "had_out"),
                    ("order", "output"),
                    ("order", "rotation"),
                    ("order", "stages"),
                ],
            ),
            columns(|c, n| (n / 32 - 1 - c / 32) * 32 + c % 32),
        );
    }

    pub(super) fn fourth_quantizers(&mut self) {
        let u: &[P] = &[P::SsmU];
        self.made(
            "fourth: the sign of u has no place in the code word",
            ("scan", u),
            ("5-4", "torch"),
            (
                ALL,
                &[
                    ("sign", "u"),
                    ("sign", "ssm_u"),
                    ("format", "ssm_u"),
                    ("function", "u"),
                    ("function", "ssm_u"),
                ],
            ),
            each(|_, _, v| v.abs()),
        );
        self.made(
            "fourth: every other tile of u comes from the buffer before",
            ("scan", u),
            ("2-3", "exact"),
            (
                TOKENS,
                &[
                    ("neighbour", "ssm_u"),
                    ("neighbour", "u"),
                    ("neighbour", "input"),
                    ("neighbour", "output"),
                    ("shifted", "ssm_u"),
                    ("shifted", "output"),
                    ("history", "input"),
                    ("order", "tokens"),
                ],
            ),
            whole(|v| {
                let from = |t: usize| if t / 16 % 2 == 1 { t - 16 } else { t };
                Array2::from_shape_fn(v.dim(), |(t, c)| v[(from(t), c)])
            }),
        );
        self.made(
            "fourth: x_proj's input is quantized with the scale of its output",
            ("x_proj", &[P::XProjIn]),
            ("2-4", "exact"),
            (
                ALL,
                &[
                    ("factor", "x_proj_in"),
                    ("factor", "output"),
                    ("stale-scale", "x_proj_in"),
                    ("stale-scale", "x_proj_quant"),
                    ("stale-scale", "x_proj_input"),
                    ("neighbour", "scale"),
                ],
            ),
            Box::new(|path, layer, seen, _, like| {
                let conv = seen[&P::ConvOutF32].to_real().mapv(f64::from);
                let scale = f64::from(path.scale(layer, U::XProjOut).unwrap().get());
                store(&conv, like, scale, Round::Even)
            }),
        );
    }
}
