//! Faults of the fifth list in the scan.

use super::*;
use half::{bf16, f16};
use ndarray::Axis;
use std::f64::consts::LN_2;

/// What the scan makes.
const SCAN: (&str, &[P]) = ("scan", &[P::SsmY, P::SsmState]);

impl List {
    /// In the recurrence.
    pub(super) fn scan(&mut self) {
        // Expected: the decay is 2^(δA) instead of e^(δA): the factor log2 e is missing before the base-2 exponential
        // (token 0, which has no state before it, is right).
        self.made(
            "fifth: the decay is exp2 without log2 e",
            SCAN,
            ("0", "exact"),
            (
                TOKENS,
                &[
                    ("function", "exp"),
                    ("function", "decay"),
                    ("constant", "exp"),
                    ("factor", "A"),
                ],
            ),
            changed(|_, s| s.a *= LN_2),
        );

        // Expected: softplus is approximated: its table begins at −4, and inputs below have the table's first value.
        self.made(
            "fifth: the table of softplus begins at -4",
            SCAN,
            ("2-1", "exact"),
            (
                ALL,
                &[
                    ("table", "softplus"),
                    ("function", "softplus"),
                    ("overflow", "softplus"),
                    ("overflow", "delta"),
                    ("overflow", "dt"),
                    ("function", "delta"),
                ],
            ),
            changed(|_, s| s.softplus = |v| v.max(-4.0).exp().ln_1p()),
        );

        // Expected: B and C are swapped (their columns of x_proj's output are read in the other order). y of token 0 has their
        // product and is right.
        self.made(
            "fifth: the scan takes C for B",
            SCAN,
            ("0", "deployed"),
            (
                TOKENS,
                &[
                    ("swapped-bc", "x_proj_out"),
                    ("two-edits", "B and C"),
                    ("two-edits", "C and B"),
                ],
            ),
            changed(|_, s| std::mem::swap(&mut s.b, &mut s.c)),
        );

        // Expected: the input is discretized by the full zero-order hold, (e^(δA) − 1)/A · B, instead of δB.
        self.made(
            "fifth: B has the paper's zero-order hold",
            SCAN,
            ("2-4", "exact"),
            (
                ALL,
                &[
                    ("function", "B"),
                    ("function", "input_delta"),
                    ("function", "input"),
                ],
            ),
            recurred(|_, s| {
                let states = s.states(|s, [t, c, i], x| {
                    let a = s.a[(c, i)];
                    let decay = (-a * s.delta(t, c)).exp();
                    decay * x + (1.0 - decay) / a * s.b[(t, i)] * s.u[(t, c)]
                });
                (s.output(&states), states)
            }),
        );

        // Expected: the scan does not begin with a zero state but with the final state of the run before (here the same
        // prompt, a warm-up).
        self.made(
            "fifth: the state still holds the end of the run before",
            SCAN,
            ("0", "exact"),
            (ALL, &[("not-reset", "state"), ("history", "state")]),
            recurred(|_, s| {
                let before = s.states(Scan::next);
                let last = before.index_axis(Axis(0), before.dim().0 - 1);
                let code = |v: f64| (v / s.step).round().clamp(-128.0, 127.0);
                let kept = last.mapv(|v| s.step * code(v));
                let states = walked(s, |[t, c, i], all| {
                    let x = match t {
                        0 => kept[(c, i)],
                        _ => all[(t - 1, c, i)],
                    };
                    s.next([t, c, i], x)
                });
                (s.output(&states), states)
            }),
        );

        // Expected: the state is rounded to bfloat16 after each token.
        self.made(
            "fifth: the state is bfloat16",
            SCAN,
            ("2-1", "deployed"),
            (
                ALL,
                &[
                    ("format", "state"),
                    ("rounding", "state"),
                    ("width", "state"),
                ],
            ),
            changed(|_, s| s.state = |v, _| bf16::from_f64(v).to_f64()),
        );

        // Expected: the decay has eight fractional bits, cut off (token 0, which has no state before it, is right).
        self.made(
            "fifth: the decay is an unsigned byte",
            SCAN,
            ("2-0", "exact"),
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
            recurred(|_, s| {
                let states = s.states(|s, [t, c, i], x| {
                    let delta = s.delta(t, c);
                    let decay = (-s.a[(c, i)] * delta).exp();
                    let decay = (decay * 256.0).floor().min(255.0) / 256.0;
                    decay * x + s.b[(t, i)] * delta * s.u[(t, c)]
                });
                (s.output(&states), states)
            }),
        );

        // Expected: A is transposed: [E, N] in memory is read as [N, E] (token 0, which has no state before it, is right).
        self.made(
            "fifth: A lies as [E, N] and is read as [N, E]",
            SCAN,
            ("0", "exact"),
            (TOKENS, &[("transposed", "A"), ("order", "A")]),
            changed(|_, s| {
                let (e, n) = s.a.dim();
                s.a = Array2::from_shape_fn((e, n), |(c, i)| {
                    let flat = i * e + c;
                    s.a[(flat / n, flat % n)]
                });
            }),
        );

        // Expected: the recurrence reads the state of two tokens before (the state of the token before is not yet written
        // back); token 0 is right.
        self.made(
            "fifth: the state is read before it is written back",
            SCAN,
            ("2-1", "exact"),
            (
                TOKENS,
                &[
                    ("history", "state"),
                    ("neighbour", "state"),
                    ("shifted", "state"),
                    ("order", "state"),
                ],
            ),
            recurred(|_, s| {
                let states = walked(s, |[t, c, i], all| {
                    let x = t.checked_sub(2).map_or(0.0, |t| all[(t, c, i)]);
                    s.next([t, c, i], x)
                });
                (s.output(&states), states)
            }),
        );

        // Expected: dt is read with a wrong scale: that of x_proj's output.
        self.made(
            "fifth: the scan reads dt in x_proj's scale",
            SCAN,
            ("2-1", "deployed"),
            (
                ALL,
                &[
                    ("stale-scale", "scan_dt"),
                    ("stale-scale", "dt_proj_output"),
                    ("factor", "dt"),
                    ("neighbour", "scale"),
                ],
            ),
            changed(|at, s| {
                let [wrong, own] = [U::XProjOut, U::ScanDt].map(|by| scale(at.path, at.layer, by));
                s.dt *= wrong / own;
            }),
        );

        // Expected: the state that is carried into a tile of 16 tokens is that of the tile before alone, begun from zero:
        // tiles are not chained, tokens from 32 on are wrong.
        self.made(
            "fifth: a tile gets the tile before, but not what came into that",
            SCAN,
            ("0", "deployed"),
            (TOKENS, &[("history", "state"), ("part-missing", "state")]),
            recurred(|_, s| {
                let mut alone = s.clone();
                alone.tile = 16;
                let local = alone.states(Scan::next);
                let states = walked(s, |[t, c, i], all| {
                    let x = match t {
                        0 => 0.0,
                        t if t % 16 == 0 => local[(t - 1, c, i)],
                        t => all[(t - 1, c, i)],
                    };
                    s.next([t, c, i], x)
                });
                (s.output(&states), states)
            }),
        );
    }

    /// In what the scan reads and writes.
    pub(super) fn outputs_of_the_scan(&mut self) {
        let ssm_y: (&str, &[P]) = ("scan", &[P::SsmY]);

        // Expected: the skip term is added after the gate: D·u is not gated.
        self.made(
            "fifth: D u is added behind the gate",
            ssm_y,
            ("0", "exact"),
            (ALL, &[("order", "D"), ("order", "gate")]),
            recurred(|_, s| {
                let states = s.states(Scan::next);
                let y = Array2::from_shape_fn(s.u.dim(), |(t, c)| {
                    let sum: f64 = (0..s.states).map(|i| states[(t, c, i)] * s.c[(t, i)]).sum();
                    sum * (s.gate)(s.z[(t, c)]) + s.d[c] * s.u[(t, c)]
                });
                (y, states)
            }),
        );

        // Expected: the gate is the sigmoid of z instead of SiLU (the factor z is missing).
        self.made(
            "fifth: the gate is a sigmoid",
            ssm_y,
            ("2-1", "exact"),
            (
                ALL,
                &[
                    ("function", "gate"),
                    ("left-out", "z"),
                    ("part-missing", "gate"),
                ],
            ),
            changed(|_, s| s.gate = |z| 1.0 / (1.0 + (-z).exp())),
        );

        // Expected: the gate reads x in place of z: the first half of in_proj's output.
        self.made(
            "fifth: the gate's offset into xz is missing",
            ssm_y,
            ("2-3", "exact"),
            (
                ALL,
                &[
                    ("neighbour", "z"),
                    ("neighbour", "gate"),
                    ("shifted", "z"),
                    ("shifted", "gate"),
                ],
            ),
            changed(|at, s| {
                let xz = real(at.path, at.layer, &at.seen[&P::InProjOut], U::ScanZ);
                let e = s.z.ncols();
                s.z = xz.slice(ndarray::s![.., ..e]).to_owned();
            }),
        );

        // Expected: the sum over states leaves out the last state (n = 15).
        self.made(
            "fifth: the sum over states stops one short",
            ssm_y,
            ("0", "deployed"),
            (ALL, &[("part-missing", "states"), ("part-missing", "sum")]),
            changed(|_, s| s.states -= 1),
        );

        // Expected: y's subnormal binary16 numbers are flushed to zero.
        self.made(
            "fifth: y has no subnormal numbers",
            ssm_y,
            ("2-1", "exact"),
            (
                ALL,
                &[
                    ("format", "ssm_y"),
                    ("format", "y"),
                    ("format", "output"),
                    ("function", "ssm_y"),
                    ("function", "y"),
                    ("function", "output"),
                ],
            ),
            recurred(|_, s| {
                let states = s.states(Scan::next);
                let least = f16::MIN_POSITIVE.to_f64();
                let flush = |v: f64| if v.abs() < least { 0.0 } else { v };
                (s.output(&states).mapv(flush), states)
            }),
        );

        // Expected: the quantizer of u truncates toward zero instead of rounding to nearest.
        self.made(
            "fifth: u is cast to int8",
            ("scan", &[P::SsmU]),
            ("2-3", "exact"),
            (
                ALL,
                &[
                    ("rounding", "ssm_u"),
                    ("rounding", "u"),
                    ("rounding", "output"),
                    ("rounding", "requantize"),
                ],
            ),
            Box::new(|path, layer, seen, _, like| {
                let conv = seen[&P::ConvOutF32].to_real().mapv(f64::from);
                store(&conv, like, scale(path, layer, U::ScanUQuant), Round::Zero)
            }),
        );
    }
}
