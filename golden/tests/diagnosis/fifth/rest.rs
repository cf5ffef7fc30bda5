//! Faults of the fifth list in the rotation and in out_proj.

use super::*;
use half::{bf16, f16};

const OUT_PROJ: Site = Site {
    name: "out_proj",
    points: &[P::OutProjOut],
    step: Step::OutProj,
    inputs: &[P::HadOut],
    reads: U::OutProjIn,
    writes: None,
};

impl List {
    pub(super) fn rotation(&mut self) {
        let had_out: (&str, &[P]) = ("hadamard", &[P::HadOut]);

        // Expected: the rotation's factor is wrong: 1/√512, of the padded length, instead of 1/√384.
        self.made(
            "fifth: the rotation is normalized by the padded length",
            had_out,
            ("0", "exact"),
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
                    ("stale-scale", "had_out"),
                    ("stale-scale", "out_proj_input"),
                ],
            ),
            rotated(|y, size| {
                let padded = (size.n().next_power_of_two() as f64).sqrt();
                turned(y, size.n(), |i, j| f64::from(size.entry(i, j))) / padded
            }),
        );

        // Expected: the odd factor of the rotation is another Hadamard matrix of order 12 (Paley's, by quadratic residues
        // modulo 11) than the one that is folded into out_proj's weight.
        self.made(
            "fifth: the odd factor is Paley's",
            had_out,
            ("2-1", "exact"),
            (
                ALL,
                &[
                    ("function", "rotation"),
                    ("function", "stages"),
                    ("neighbour", "rotation"),
                    ("neighbour", "stages"),
                    ("weights", "rotation"),
                    ("weights", "stages"),
                ],
            ),
            rotated(|y, size| {
                let block = size.n() / size.base();
                let entry = |i: usize, j: usize| {
                    // Without the signs of its odd factor.
                    let own = f64::from(size.entry(i % block, j % block) * size.entry(0, 0));
                    own * paley(size.base(), i / block, j / block)
                };
                turned(y, size.n(), entry) * size.norm()
            }),
        );

        // Expected: the factors of the rotation are in the wrong order: H32 ⊗ H12 instead of H12 ⊗ H32.
        self.made(
            "fifth: the odd factor runs over neighbours",
            had_out,
            ("0", "deployed"),
            (
                ALL,
                &[
                    ("order", "rotation"),
                    ("order", "stages"),
                    ("transposed", "rotation"),
                    ("transposed", "stages"),
                    ("two-edits", "input and had_out"),
                    ("two-edits", "had_out and input"),
                    ("two-edits", "input and output"),
                    ("two-edits", "output and input"),
                ],
            ),
            rotated(|y, size| {
                let (base, block) = (size.base(), size.n() / size.base());
                let from = |i: usize| i % base * block + i / base;
                let entry = |i: usize, j: usize| f64::from(size.entry(from(i), from(j)));
                turned(y, size.n(), entry) * size.norm()
            }),
        );

        // Expected: the last stage of the butterflies is missing (stride 16 of 1 to 16).
        self.made(
            "fifth: the butterflies stop a stage early",
            had_out,
            ("2-4", "exact"),
            (
                ALL,
                &[
                    ("part-missing", "stages"),
                    ("part-missing", "rotation"),
                    ("left-out", "stages"),
                ],
            ),
            rotated(|y, size| {
                let half = size.n() / size.base() / 2;
                let entry = |i: usize, j: usize| match (i ^ j) & half {
                    // Without its stage a bit of the index stays as it is.
                    0 => f64::from(size.entry(i & !half, j & !half)),
                    _ => 0.0,
                };
                turned(y, size.n(), entry) * size.norm()
            }),
        );
    }

    pub(super) fn out_proj(&mut self) {
        // Expected: weights are packed in the wrong order: each group of four inputs is reversed (byte order of a word),
        // the activations are not.
        self.made(
            "fifth: bytes of the weight's words are swapped",
            OUT_PROJ.at(),
            ("0", "exact"),
            (
                ALL,
                &[("order", "weight"), ("order", "inputs"), ("order", "input")],
            ),
            product(OUT_PROJ, Round::Even, |p| {
                let w = Array2::from_shape_fn(p.w.dim(), |(c, k)| p.w[(c, k ^ 3)]);
                p.real(&p.x.dot(&w.t()))
            }),
        );

        // Expected: the output is rounded to bfloat16 (and stored as binary16).
        self.made(
            "fifth: the output is bfloat16",
            OUT_PROJ.at(),
            ("2-1", "exact"),
            (
                ALL,
                &[
                    ("format", "out_proj_out"),
                    ("format", "output"),
                    ("rounding", "out_proj_out"),
                    ("rounding", "output"),
                    ("width", "out_proj_out"),
                    ("width", "output"),
                ],
            ),
            product(OUT_PROJ, Round::Even, |p| {
                p.real(&p.sums()).mapv(|v| bf16::from_f64(v).to_f64())
            }),
        );

        // Expected: tokens from 48 on lack the last 64 inputs: the last stage of the pipeline is not waited for in the last
        // tile of tokens.
        self.made(
            "fifth: the last tile does not wait for the last stage",
            OUT_PROJ.at(),
            ("2-3", "exact"),
            (
                TOKENS,
                &[
                    ("part-missing", "sum"),
                    ("part-missing", "input"),
                    ("left-out", "input"),
                    ("left-out", "weight"),
                ],
            ),
            product(OUT_PROJ, Round::Even, |p| {
                let (all, early) = (p.sums(), p.sums_of(0, p.x.ncols() - 64));
                let last = (all.nrows() - 1) / 16;
                let sums = Array2::from_shape_fn(all.dim(), |at| match at.0 / 16 == last {
                    true => early[at],
                    false => all[at],
                });
                p.real(&sums)
            }),
        );

        // Expected: one weight is wrong (bit 6 of one code is flipped), so that one output channel is.
        self.model(
            "fifth: a bit of the weight memory has flipped",
            "out_proj",
            ("0", "deployed"),
            (
                CHANNELS,
                &[("flipped-bit", "weight"), ("weights", "weight")],
            ),
            |m, l| {
                let w = codes(&mut m.layers[l].out_proj);
                let at = (77 % w.nrows(), 130 % w.ncols());
                w[at] ^= 0x40;
            },
        );

        // Expected: the scale of the sums, s_in · s_w, is kept in binary16, where it is subnormal: all outputs are off by one
        // factor.
        self.made(
            "fifth: the product of scales is binary16",
            OUT_PROJ.at(),
            ("2-1", "deployed"),
            (
                ALL,
                &[
                    ("format", "scale"),
                    ("rounding", "scale"),
                    ("width", "scale"),
                    ("factor", "out_proj_out"),
                    ("factor", "output"),
                    ("factor", "sum"),
                    ("factor", "weight"),
                    ("factor", "input"),
                    ("stale-scale", "out_proj_in"),
                    ("stale-scale", "out_proj_input"),
                    ("stale-scale", "weight"),
                ],
            ),
            product(OUT_PROJ, Round::Even, |p| {
                let unit = f16::from_f64(p.unit).to_f64();
                p.sums().mapv(|v| v * unit)
            }),
        );

        // Expected: output channels from 128 on are stale: the partial tile of outputs is not stored, and the buffer still
        // holds what the block before wrote there (its hidden_in).
        self.made(
            "fifth: the last tile of outputs is not stored",
            OUT_PROJ.at(),
            ("2-0", "exact"),
            (
                CHANNELS,
                &[
                    ("not-reset", "out_proj_out"),
                    ("not-reset", "output"),
                    ("neighbour", "out_proj_out"),
                    ("neighbour", "output"),
                    ("history", "out_proj_out"),
                    ("history", "output"),
                ],
            ),
            product(OUT_PROJ, Round::Even, |p| {
                let before = p.seen[&P::HiddenIn].to_real().mapv(f64::from);
                let real = p.real(&p.sums());
                let whole = real.ncols() / 128 * 128;
                Array2::from_shape_fn(real.dim(), |at| match at.1 < whole {
                    true => real[at],
                    false => before[at],
                })
            }),
        );
    }
}

/// The Hadamard matrix of quadratic residues modulo its order less one: I + S with S skew.
fn paley(order: usize, i: usize, j: usize) -> f64 {
    let residue = |difference: usize| {
        let q = order - 1;
        (1..q).any(|root| root * root % q == difference % q)
    };
    let positive = i == j || i == 0 || j != 0 && residue(order - 1 + j - i);
    if positive { 1.0 } else { -1.0 }
}
