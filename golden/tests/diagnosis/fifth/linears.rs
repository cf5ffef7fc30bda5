//! Faults of the fifth list in in_proj, x_proj and dt_proj.

use super::*;
use half::f16;

const IN_PROJ: Site = Site {
    name: "in_proj",
    points: &[P::InProjOut],
    step: Step::InProj,
    inputs: &[P::NormOut],
    reads: U::InProjIn,
    writes: Some(U::InProjOut),
};
const X_PROJ: Site = Site {
    name: "x_proj",
    points: &[P::XProjOut],
    step: Step::XProj,
    inputs: &[P::ConvOut, P::XProjIn],
    reads: U::XProjIn,
    writes: Some(U::XProjOut),
};
const DT_PROJ: Site = Site {
    name: "dt_proj",
    points: &[P::DtProjOut],
    step: Step::DtProj,
    inputs: &[P::XProjOut],
    reads: U::DtProjIn,
    writes: Some(U::DtProjOut),
};

impl List {
    pub(super) fn in_proj(&mut self) {
        // Expected: the sum leaves out inputs from 128 on (the last, partial tile of K is not multiplied).
        self.made(
            "fifth: in_proj runs over whole tiles of K alone",
            IN_PROJ.at(),
            ("0", "exact"),
            (
                ALL,
                &[
                    ("part-missing", "sum"),
                    ("part-missing", "input"),
                    ("left-out", "input"),
                    ("left-out", "weight"),
                ],
            ),
            product(IN_PROJ, Round::Even, |p| {
                p.real(&p.sums_of(0, p.x.ncols() / 128 * 128))
            }),
        );

        // Expected: the input has an offset of 128 (unsigned activations) whose compensation, 128 times the sum of a row's
        // weights, is missing: each output channel has a constant added.
        self.made(
            "fifth: activations are unsigned and not compensated",
            IN_PROJ.at(),
            ("2-1", "exact"),
            (
                ALL,
                &[
                    ("zero-point", "input"),
                    ("zero-point", "in_proj_out"),
                    ("zero-point", "output"),
                    ("zero-point", "sum"),
                    ("format", "input"),
                ],
            ),
            product(IN_PROJ, Round::Even, |p| {
                p.real(&p.x.mapv(|x| x + 128.0).dot(&p.w.t()))
            }),
        );

        // Expected: x and z are swapped: the halves of in_proj's rows stand in the file in the other order.
        self.model(
            "fifth: the file has z before x",
            "in_proj",
            ("0", "deployed"),
            (
                ALL,
                &[
                    ("order", "in_proj_out"),
                    ("order", "output"),
                    ("order", "weight"),
                    ("shifted", "in_proj_out"),
                    ("shifted", "output"),
                    ("shifted", "weight"),
                    ("neighbour", "in_proj_out"),
                    ("neighbour", "output"),
                ],
            ),
            |m, l| {
                let w = codes(&mut m.layers[l].in_proj);
                let rows = w.nrows();
                *w = Array2::from_shape_fn(w.dim(), |(r, k)| w[((r + rows / 2) % rows, k)]);
            },
        );

        // Expected: the factor from sums to codes is rounded to binary16 (a requantization multiplier of low precision).
        self.made(
            "fifth: the multiplier of the epilogue is binary16",
            IN_PROJ.at(),
            ("2-3", "exact"),
            (
                ALL,
                &[
                    ("format", "scale"),
                    ("rounding", "scale"),
                    ("width", "scale"),
                    ("factor", "in_proj_out"),
                    ("factor", "output"),
                    ("factor", "sum"),
                    ("factor", "weight"),
                    ("factor", "input"),
                    ("stale-scale", "in_proj_out"),
                    ("stale-scale", "in_proj_output"),
                    ("stale-scale", "in_proj_in"),
                    ("stale-scale", "in_proj_input"),
                    ("stale-scale", "weight"),
                ],
            ),
            product(IN_PROJ, Round::Even, |p| {
                let factor = f16::from_f64(p.unit / p.scale).to_f64();
                p.sums().mapv(|v| v * factor * p.scale)
            }),
        );

        // Expected: the accumulator is not cleared at the first token of each tile of 16: it goes on from the sum of the
        // token before.
        self.made(
            "fifth: the accumulator is not cleared between tiles",
            IN_PROJ.at(),
            ("0", "exact"),
            (
                TOKENS,
                &[
                    ("not-reset", "sum"),
                    ("not-reset", "accumulator"),
                    ("not-reset", "in_proj_out"),
                    ("not-reset", "output"),
                    ("history", "sum"),
                    ("history", "accumulator"),
                ],
            ),
            product(IN_PROJ, Round::Even, |p| {
                let sums = p.sums();
                let mut kept = sums.clone();
                for t in (16..sums.nrows()).step_by(16) {
                    let mut row = kept.row_mut(t);
                    row += &sums.row(t - 1);
                }
                p.real(&kept)
            }),
        );

        // Expected: bit 6 of some weights is stuck at one: those of one cell of a 16 × 16 array, so that every sixteenth
        // output channel is wrong.
        self.model(
            "fifth: a bit of one cell's weight register is stuck",
            "in_proj",
            ("2-1", "deployed"),
            (CHANNELS, &[("stuck-bit", "weight"), ("weights", "weight")]),
            |m, l| {
                for ((row, k), w) in codes(&mut m.layers[l].in_proj).indexed_iter_mut() {
                    if row % 16 == 9 && k % 16 == 3 {
                        *w |= 0x40;
                    }
                }
            },
        );

        // Expected: tokens 32 to 47 are made from the inputs of tokens 16 to 31: stale (the ping-pong buffer is read before
        // it is filled).
        self.made(
            "fifth: the third tile is read from the buffer of the second",
            IN_PROJ.at(),
            ("2-0", "exact"),
            (
                TOKENS,
                &[
                    ("neighbour", "input"),
                    ("neighbour", "in_proj_out"),
                    ("neighbour", "output"),
                    ("shifted", "input"),
                    ("shifted", "in_proj_out"),
                    ("shifted", "output"),
                    ("history", "input"),
                    ("not-reset", "input"),
                    ("order", "tokens"),
                ],
            ),
            product(IN_PROJ, Round::Even, |p| {
                let sums = p.sums();
                let from = |t: usize| if t / 16 == 2 { t - 16 } else { t };
                let stale = Array2::from_shape_fn(sums.dim(), |(t, c)| sums[(from(t), c)]);
                p.real(&stale)
            }),
        );
    }

    pub(super) fn x_proj(&mut self) {
        // Expected: the order of the output is wrong: rows of the weight are in the order B, C, dt instead of dt, B, C.
        self.model(
            "fifth: the file has dt behind B and C",
            "x_proj",
            ("0", "exact"),
            (
                ALL,
                &[
                    ("order", "x_proj_out"),
                    ("order", "output"),
                    ("order", "weight"),
                    ("shifted", "x_proj_out"),
                    ("shifted", "output"),
                    ("shifted", "weight"),
                ],
            ),
            |m, l| {
                let rank = m.config.dt_rank;
                let w = codes(&mut m.layers[l].x_proj);
                let rows = w.nrows();
                *w = Array2::from_shape_fn(w.dim(), |(r, k)| w[((r + rank) % rows, k)]);
            },
        );

        // Expected: the rows of the output have a wrong stride: written with rows padded to 48, read with rows of 44, so that
        // rows drift (token 0 is right).
        self.made(
            "fifth: rows are written padded and read packed",
            X_PROJ.at(),
            ("2-1", "exact"),
            (
                TOKENS,
                &[
                    ("order", "x_proj_out"),
                    ("order", "output"),
                    ("shifted", "x_proj_out"),
                    ("shifted", "output"),
                    ("neighbour", "x_proj_out"),
                    ("neighbour", "output"),
                ],
            ),
            product(X_PROJ, Round::Even, |p| {
                let sums = p.sums();
                let width = sums.ncols();
                let wide = width.next_multiple_of(16);
                let packed = Array2::from_shape_fn(sums.dim(), |(t, c)| {
                    let flat = t * width + c;
                    let at = (flat / wide, flat % wide);
                    sums.get(at).copied().unwrap_or(0.0)
                });
                p.real(&packed)
            }),
        );

        // Expected: output channels from 32 on are zero: the last, partial tile of outputs is never written.
        self.made(
            "fifth: the last columns are masked out",
            X_PROJ.at(),
            ("2-3", "exact"),
            (
                CHANNELS,
                &[
                    ("left-out", "x_proj_out"),
                    ("left-out", "output"),
                    ("left-out", "weight"),
                    ("constant", "x_proj_out"),
                    ("constant", "output"),
                ],
            ),
            product(X_PROJ, Round::Even, |p| {
                let mut sums = p.sums();
                let whole = sums.ncols() / 32 * 32;
                sums.slice_mut(ndarray::s![.., whole..]).fill(0.0);
                p.real(&sums)
            }),
        );

        // Expected: the sum has the second half of the inputs alone: partial sums of a split K are overwritten, not added.
        self.made(
            "fifth: the second split of K overwrites the first",
            X_PROJ.at(),
            ("0", "deployed"),
            (
                ALL,
                &[
                    ("part-missing", "sum"),
                    ("part-missing", "input"),
                    ("left-out", "input"),
                    ("left-out", "weight"),
                ],
            ),
            product(X_PROJ, Round::Even, |p| {
                let k = p.x.ncols();
                p.real(&p.sums_of(k / 2, k))
            }),
        );

        // Expected: the factor from sums to codes is rounded to a power of two (requantization by a shift alone): all outputs
        // are off by one factor.
        self.made(
            "fifth: x_proj's sums are requantized by a shift",
            X_PROJ.at(),
            ("2-1", "deployed"),
            (
                ALL,
                &[
                    ("format", "scale"),
                    ("rounding", "scale"),
                    ("width", "scale"),
                    ("factor", "x_proj_out"),
                    ("factor", "output"),
                    ("factor", "sum"),
                    ("factor", "weight"),
                    ("factor", "input"),
                    ("stale-scale", "x_proj_out"),
                    ("stale-scale", "x_proj_output"),
                    ("stale-scale", "x_proj_in"),
                    ("stale-scale", "x_proj_input"),
                    ("stale-scale", "weight"),
                ],
            ),
            product(X_PROJ, Round::Even, |p| {
                let factor = (p.unit / p.scale).log2().round().exp2();
                p.sums().mapv(|v| v * factor * p.scale)
            }),
        );

        // Expected: x_proj's input is quantized with a wrong scale: that of its output (the next entry of the table).
        self.made(
            "fifth: the quantizer before x_proj has the next scale of the table",
            ("x_proj", &[P::XProjIn]),
            ("2-4", "exact"),
            (
                ALL,
                &[
                    ("factor", "x_proj_in"),
                    ("factor", "output"),
                    ("factor", "input"),
                    ("stale-scale", "x_proj_in"),
                    ("stale-scale", "x_proj_quant"),
                    ("stale-scale", "x_proj_input"),
                    ("neighbour", "scale"),
                ],
            ),
            Box::new(|path, layer, seen, _, like| {
                let conv = seen[&P::ConvOutF32].to_real().mapv(f64::from);
                store(&conv, like, scale(path, layer, U::XProjOut), Round::Even)
            }),
        );
    }

    pub(super) fn dt_proj(&mut self) {
        // Expected: the sum has terms too many: K is padded from 12 to 16 without a mask, and the four terms more are B's
        // first codes times the next row's first weights.
        self.made(
            "fifth: the padding of K reads on",
            DT_PROJ.at(),
            ("0", "exact"),
            (
                ALL,
                &[
                    ("neighbour", "sum"),
                    ("neighbour", "input"),
                    ("neighbour", "weight"),
                    ("two-edits", "input and weight"),
                    ("two-edits", "weight and input"),
                ],
            ),
            product(DT_PROJ, Round::Even, |p| {
                let Tensor::I8(all) = &p.seen[&P::XProjOut] else {
                    panic!("codes")
                };
                let (rows, k) = p.w.dim();
                let weight = |c: usize, i: usize| {
                    let flat = c * k + i;
                    p.w.get((flat / k, flat % k)).copied().unwrap_or(0.0)
                };
                let wide = k.next_multiple_of(16).min(all.codes.ncols());
                let w = Array2::from_shape_fn((rows, wide), |(c, i)| weight(c, i));
                let x = all.codes.slice(ndarray::s![.., ..wide]).mapv(f64::from);
                p.real(&x.dot(&w.t()))
            }),
        );

        // Expected: the weight is another block's: dt_proj reads the next block's weight and its scale.
        self.model(
            "fifth: dt_proj has the weight of the next block",
            "dt_proj",
            ("2-1", "exact"),
            (ALL, &[("neighbour", "weight")]),
            |m, l| {
                let next = (l + 1) % m.layers.len();
                m.layers[l].dt_proj = m.layers[next].dt_proj.clone();
            },
        );

        // Expected: dt_bias is already added in dt_proj (and then again in the scan).
        self.made(
            "fifth: dt_proj has a bias as the float model's has",
            DT_PROJ.at(),
            ("0", "deployed"),
            (
                ALL,
                &[
                    ("twice", "dt_bias"),
                    ("twice", "bias"),
                    ("order", "dt_bias"),
                    ("order", "bias"),
                    ("neighbour", "bias"),
                    ("zero-point", "dt_proj_out"),
                    ("zero-point", "output"),
                ],
            ),
            product(DT_PROJ, Round::Even, |p| {
                let (_, _, bias) = p.path.scan_weight(p.layer).tensors();
                let unit = f64::from(bias.scale.get());
                let mut real = p.real(&p.sums());
                for ((_, c), v) in real.indexed_iter_mut() {
                    *v += unit * f64::from(bias.codes[c]);
                }
                real
            }),
        );

        // Expected: dt_proj's output is rounded down (an arithmetic shift without the added half).
        self.made(
            "fifth: dt_proj's sums are shifted without a half",
            DT_PROJ.at(),
            ("2-4", "exact"),
            (ALL, &[("rounding", "dt_proj_out"), ("rounding", "output")]),
            product(DT_PROJ, Round::Floor, |p| p.real(&p.sums())),
        );

        // Expected: the weight is transposed: rows of [R, E] are read from memory that holds [E, R].
        self.made(
            "fifth: the weight lies as [E, R] and is read as [R, E]",
            DT_PROJ.at(),
            ("2-0", "exact"),
            (ALL, &[("transposed", "weight"), ("order", "weight")]),
            product(DT_PROJ, Round::Even, |p| {
                let (rows, k) = p.w.dim();
                let w = Array2::from_shape_fn((rows, k), |(c, i)| {
                    let flat = i * rows + c;
                    p.w[(flat / k, flat % k)]
                });
                p.real(&p.x.dot(&w.t()))
            }),
        );

        // Expected: input codes are read unsigned (no sign extension): negative ones are 256 too large.
        self.made(
            "fifth: codes of dt are extended with zeros",
            DT_PROJ.at(),
            ("2-1", "deployed"),
            (
                ALL,
                &[
                    ("format", "input"),
                    ("sign", "input"),
                    ("width", "input"),
                    ("overflow", "input"),
                ],
            ),
            product(DT_PROJ, Round::Even, |p| {
                let x = p.x.mapv(|x| if x < 0.0 { x + 256.0 } else { x });
                p.real(&x.dot(&p.w.t()))
            }),
        );
    }
}
