//! Faults of the third list in the rotation and the quantizers, and two at once.

use super::*;

fn entry(i: usize, j: usize) -> f64 {
    f64::from(HadamardSize::of(384).unwrap().entry(i, j))
}

/// Of order twelve by Paley's construction, as textbooks have it.
fn paley(i: usize, j: usize) -> f64 {
    let square = |v: usize| matches!(v % 11, 1 | 3 | 4 | 5 | 9);
    match (i, j) {
        (0, _) => 1.0,
        (_, 0) => -1.0,
        _ if i == j || square(j + 11 - i) => 1.0,
        _ => -1.0,
    }
}

impl Fresh {
    pub(super) fn third_rotation(&mut self) {
        let had_out: &[P] = &[P::HadOut];
        self.made(
            "third: another matrix of twelve",
            ("hadamard", had_out),
            ("2-1", "deployed"),
            (
                ALL,
                &[
                    ("transposed", "rotation"),
                    ("transposed", "stages"),
                    ("order", "rotation"),
                    ("order", "stages"),
                    ("sign", "rotation"),
                    ("sign", "stages"),
                    ("function", "rotation"),
                    ("function", "stages"),
                    ("constant", "rotation"),
                    ("constant", "stages"),
                    ("neighbour", "rotation"),
                    ("neighbour", "stages"),
                    ("weights", "rotation"),
                    ("weights", "stages"),
                ],
            ),
            hadamard(
                |i, j, _| {
                    let inner = (i & j & 31).count_ones() % 2;
                    paley(i / 32, j / 32) * if inner == 0 { 1.0 } else { -1.0 }
                },
                |e| 1.0 / e.sqrt(),
            ),
        );
        self.made(
            "third: the factor of twelve is the inner one",
            ("hadamard", had_out),
            ("0", "exact"),
            (
                ALL,
                &[
                    ("order", "rotation"),
                    ("order", "stages"),
                    ("order", "input"),
                    ("order", "inputs"),
                    ("transposed", "rotation"),
                    ("transposed", "stages"),
                    ("transposed", "input"),
                    ("two-edits", "input and had_out"),
                    ("two-edits", "had_out and input"),
                    ("two-edits", "input and output"),
                    ("two-edits", "output and input"),
                ],
            ),
            // `view(32, 12)` for `view(12, 32)`.
            hadamard(
                |i, j, _| entry(i % 12 * 32 + i / 12, j % 12 * 32 + j / 12),
                |e| 1.0 / e.sqrt(),
            ),
        );
        self.made(
            "third: the rotation is over the root of its power of two alone",
            ("hadamard", had_out),
            ("6-1", "torch"),
            (
                ALL,
                &[
                    ("constant", "norm"),
                    ("factor", "norm"),
                    ("constant", "rotation"),
                    ("factor", "rotation"),
                    ("factor", "input"),
                    ("factor", "had_out"),
                    ("factor", "output"),
                    ("constant", "had_out"),
                    ("stale-scale", "had_out"),
                    ("stale-scale", "out_proj_input"),
                ],
            ),
            hadamard(|_, _, h| h, |_| 1.0 / 32f64.sqrt()),
        );
        self.made(
            "third: the rotated are cast to int8 without rounding",
            ("hadamard", had_out),
            ("3", "exact"),
            (ALL, &[("rounding", "had_out"), ("rounding", "output")]),
            Box::new(|path, layer, seen, _, like| {
                let y = seen[&P::SsmY].to_real().mapv(f64::from);
                let h = Array2::from_shape_fn((384, 384), |(i, j)| entry(i, j));
                let scale = f64::from(path.scale(layer, U::HadOut).unwrap().get());
                store(&(y.dot(&h.t()) / 384f64.sqrt()), like, scale, Round::Zero)
            }),
        );
        self.made(
            "third: three rotations of 128 stand for one of 384",
            ("hadamard", had_out),
            ("2-4", "exact"),
            (
                ALL,
                &[
                    ("part-missing", "rotation"),
                    ("part-missing", "stages"),
                    ("left-out", "stages"),
                    ("order", "stages"),
                    ("order", "rotation"),
                    ("function", "rotation"),
                ],
            ),
            hadamard(
                |i, j, _| match (i / 128 == j / 128, (i & j & 127).count_ones() % 2) {
                    (false, _) => 0.0,
                    (true, 0) => 1.0,
                    (true, _) => -1.0,
                },
                |_| 1.0 / 128f64.sqrt(),
            ),
        );
    }

    pub(super) fn third_quantizers(&mut self) {
        let u: &[P] = &[P::SsmU];
        self.made(
            "third: u is cast to uint8",
            ("scan", u),
            ("2-3", "torch"),
            (
                ALL,
                &[
                    ("overflow", "ssm_u"),
                    ("overflow", "u"),
                    ("overflow", "output"),
                    ("sign", "ssm_u"),
                    ("sign", "u"),
                    ("format", "ssm_u"),
                    ("format", "u"),
                    ("width", "ssm_u"),
                    ("function", "ssm_u"),
                    ("function", "u"),
                    ("zero-point", "ssm_u"),
                ],
            ),
            Box::new(|path, layer, seen, _, like| {
                let scale = f64::from(path.scale(layer, U::ScanUQuant).unwrap().get());
                let conv = seen[&P::ConvOutF32].to_real().mapv(f64::from);
                let byte = |v: f64| (v / scale).round_ties_even().clamp(0.0, 255.0) as u8;
                store(
                    &conv.mapv(|v| f64::from(byte(v) as i8)),
                    like,
                    1.0,
                    Round::Even,
                )
            }),
        );
        self.made(
            "third: x_proj's input is quantized to its largest value",
            ("x_proj", &[P::XProjIn]),
            ("2-4", "torch-cpu"),
            (
                ALL,
                &[
                    ("factor", "x_proj_in"),
                    ("factor", "output"),
                    ("factor", "input"),
                    ("constant", "x_proj_in"),
                    ("function", "x_proj_in"),
                    ("stale-scale", "x_proj_in"),
                    ("stale-scale", "x_proj_quant"),
                    ("stale-scale", "x_proj_input"),
                    ("neighbour", "scale"),
                ],
            ),
            // A scale found at run time, which x_proj knows nothing of.
            Box::new(|_, _, seen, _, like| {
                let conv = seen[&P::ConvOutF32].to_real().mapv(f64::from);
                let most = conv.fold(0.0f64, |most, v| most.max(v.abs()));
                store(&(conv * (127.0 / most)), like, 1.0, Round::Even)
            }),
        );
        self.made(
            "third: the base of the second segment is not added to u",
            ("scan", u),
            ("5-7", "exact"),
            (
                ALL,
                &[
                    ("constant", "ssm_u"),
                    ("constant", "u"),
                    ("zero-point", "ssm_u"),
                    ("zero-point", "u"),
                    ("function", "ssm_u"),
                    ("function", "u"),
                    ("table", "ssm_u"),
                    ("table", "u"),
                    ("left-out", "ssm_u"),
                    ("left-out", "u"),
                ],
            ),
            // Seven bits for 16 to 143.
            Box::new(|path, layer, _, _, like| {
                let scale = f64::from(path.scale(layer, U::ScanUQuant).unwrap().get());
                let own = like.to_real().mapv(f64::from);
                let read = |v: f64| match v.abs() / scale {
                    at if at > 15.875 && at < 143.5 => v - v.signum() * 16.0 * scale,
                    _ => v,
                };
                store(&own.mapv(read), like, 1.0, Round::Even)
            }),
        );
        self.made(
            "third: half steps of u are read as whole ones",
            ("scan", u),
            ("6-3", "torch-cpu"),
            (
                ALL,
                &[
                    ("factor", "ssm_u"),
                    ("factor", "u"),
                    ("constant", "ssm_u"),
                    ("constant", "u"),
                    ("stale-scale", "ssm_u"),
                    ("missing-scale", "ssm_u"),
                    ("function", "ssm_u"),
                    ("function", "u"),
                    ("format", "ssm_u"),
                    ("table", "ssm_u"),
                ],
            ),
            Box::new(|path, layer, _, _, like| {
                let scale = f64::from(path.scale(layer, U::ScanUQuant).unwrap().get());
                let own = like.to_real().mapv(f64::from);
                let read = |v: f64| if v.abs() < 63.75 * scale { 2.0 * v } else { v };
                store(&own.mapv(read), like, 1.0, Round::Even)
            }),
        );
    }

    pub(super) fn third_pairs(&mut self) {
        self.made(
            "third: two: z of the token before, D missing",
            ("scan", &[P::SsmY]),
            ("2-3", "exact"),
            (
                ALL,
                &[
                    ("two-edits", "z and D"),
                    ("two-edits", "D and z"),
                    ("two-edits", "gate and D"),
                    ("two-edits", "D and gate"),
                ],
            ),
            plain(|s| {
                s.z = late(&s.z, 1);
                s.d.fill(0.0);
            }),
        );
        self.made(
            "third: two: the last four of K missing, outputs truncated",
            ("dt_proj", &[P::DtProjOut]),
            ("0", "exact"),
            (
                ALL,
                &[
                    ("two-edits", "sum and dt_proj_out"),
                    ("two-edits", "dt_proj_out and sum"),
                    ("two-edits", "sum and output"),
                    ("two-edits", "output and sum"),
                ],
            ),
            linear(
                Step::DtProj,
                P::XProjOut,
                (U::DtProjIn, Some(U::DtProjOut)),
                Round::Zero,
                |_, _, l| l.x.slice_mut(s![.., 8..]).fill(0.0),
                as_is,
            ),
        );
    }
}
