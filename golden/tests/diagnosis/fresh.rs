//! Faults that were thought of after the edits: in other modes and profiles, of other strengths, in parts, two at
//! once. Three ways into a run: what a step makes, what the next step reads, and the parameters of a block.

mod steps;

use super::cases::{Case, Into, SCAN};
use super::emulation::*;
use ndarray::{Array2, s};
use scalescope_sim::plan::ScaleUse as U;
use scalescope_sim::quant::QWeight;
use scalescope_sim::trace::{Tensor, TracePoint as P};

/// Codes or reals as they are stored, changed as a whole.
pub(super) fn whole(change: impl Fn(&Array2<f64>) -> Array2<f64> + Send + Sync + 'static) -> Make {
    Box::new(move |_, _, _, _, like| {
        let own = match like {
            Tensor::I8(q) => q.codes.mapv(f64::from),
            Tensor::Codes(codes) => codes.mapv(f64::from),
            other => other.to_real().mapv(f64::from),
        };
        let changed = change(&own).as_standard_layout().into_owned();
        match like {
            Tensor::Codes(_) => Tensor::Codes(changed.mapv(|v| v.clamp(-128.0, 127.0) as i8)),
            _ => store(&changed, like, 1.0, Round::Even),
        }
    })
}

/// Element by element: token, channel, value.
pub(super) fn each(change: impl Fn(usize, usize, f64) -> f64 + Send + Sync + 'static) -> Make {
    whole(move |own| Array2::from_shape_fn(own.dim(), |at| change(at.0, at.1, own[at])))
}

pub(super) fn late(own: &Array2<f64>, by: usize) -> Array2<f64> {
    let mut out = Array2::zeros(own.dim());
    for t in by..own.nrows() {
        out.row_mut(t).assign(&own.row(t - by));
    }
    out
}

fn bit(v: f64, change: fn(u8) -> u8) -> f64 {
    f64::from(change(v as i8 as u8) as i8)
}

pub(super) fn conv_of(tile: usize, act: fn(f64) -> f64, change: fn(&mut Conv)) -> Make {
    conv(move |_, _, _, c| change(c), tile, act)
}

fn scan_of(change: fn(&mut Scan)) -> Make {
    scan(move |_, _, _, s| change(s))
}

pub(super) fn int8(weight: &mut QWeight) -> &mut Array2<i8> {
    match weight {
        QWeight::Int8(q) => &mut q.codes,
        QWeight::Int4(_) => panic!("eight bits"),
    }
}

pub(super) struct Fresh(pub(super) Vec<Case>);

pub(super) type Right = &'static [(&'static str, &'static str)];
pub(super) type On = (&'static str, &'static str);

impl Fresh {
    fn add(
        &mut self,
        (name, step, points, into): (&'static str, &'static str, &'static [P], Into),
        on: On,
        (part, right): ([bool; 2], Right),
        make: Make,
    ) {
        self.0.push(Case {
            name,
            step,
            points,
            right,
            part,
            make,
            into,
            on: Some(on),
        });
    }

    pub(super) fn made(
        &mut self,
        name: &'static str,
        (step, points): (&'static str, &'static [P]),
        on: On,
        right: ([bool; 2], Right),
        make: Make,
    ) {
        self.add((name, step, points, Into::Output), on, right, make);
    }

    pub(super) fn read(
        &mut self,
        name: &'static str,
        (step, points): (&'static str, &'static [P]),
        on: On,
        right: ([bool; 2], Right),
        make: Make,
    ) {
        self.add((name, step, points, Into::Reading), on, right, make);
    }

    pub(super) fn model(
        &mut self,
        name: &'static str,
        step: &'static str,
        on: On,
        right: ([bool; 2], Right),
        change: fn(&mut scalescope_sim::model::QuantizedModel, usize),
    ) {
        let make = whole(Array2::clone);
        self.add((name, step, &[], Into::Model(change)), on, right, make);
    }
}

pub(super) const ALL: [bool; 2] = [false, false];
pub(super) const TOKENS: [bool; 2] = [true, false];
pub(super) const CHANNELS: [bool; 2] = [false, true];
pub(super) const BOTH: [bool; 2] = [true, true];

pub fn fresh() -> Vec<Case> {
    let mut all = Fresh(Vec::new());
    all.parameters();
    all.results();
    all.readings();
    all.convolutions();
    all.scans();
    all.others();
    all.pairs();
    all.0
}

impl Fresh {
    fn parameters(&mut self) {
        self.model(
            "fresh: bias of the block before",
            "conv",
            ("0", "asic-int8"),
            (ALL, &[("neighbour", "bias")]),
            |m, l| {
                let other = m.layers[(l + m.layers.len() - 1) % m.layers.len()]
                    .conv_bias
                    .clone();
                m.layers[l].conv_bias = other;
            },
        );
        self.model(
            "fresh: conv weight of two blocks on",
            "conv",
            ("2-4", "exact"),
            (ALL, &[("neighbour", "weight")]),
            |m, l| {
                let other = m.layers[(l + 2) % m.layers.len()].conv_weight.clone();
                m.layers[l].conv_weight = other;
            },
        );
        self.model(
            "fresh: taps turned by one",
            "conv",
            ("3", "exact"),
            (ALL, &[("order", "taps")]),
            |m, l| {
                let w = &mut m.layers[l].conv_weight.codes;
                let own = w.clone();
                let k = own.ncols();
                *w = Array2::from_shape_fn(own.dim(), |(c, tap)| own[(c, (tap + 1) % k)]);
            },
        );
        self.model(
            "fresh: half of the conv bias",
            "conv",
            ("2-1", "deployed"),
            (ALL, &[("factor", "bias")]),
            |m, l| {
                let b = &mut m.layers[l].conv_bias;
                b.scale = b.scale.times(0.5).unwrap();
            },
        );
        self.model(
            "fresh: one bit of x_proj's weight",
            "x_proj",
            ("2-3", "exact"),
            (CHANNELS, &[("weights", "weight")]),
            |m, l| {
                let w = int8(&mut m.layers[l].x_proj);
                w[(3, 100)] = (w[(3, 100)] as u8 ^ 0x20) as i8;
            },
        );
        self.model(
            "fresh: three entries of one output",
            "in_proj",
            ("0", "asic-int8"),
            (CHANNELS, &[("weights", "weight")]),
            |m, l| {
                let w = int8(&mut m.layers[l].in_proj);
                for k in [7, 60, 121] {
                    w[(200, k)] = (w[(200, k)] as u8 ^ 0x40) as i8;
                }
            },
        );
        self.model(
            "fresh: D zero in the second half",
            "scan",
            ("2-4", "exact"),
            (CHANNELS, &[("left-out", "D")]),
            |m, l| {
                let d = &mut m.layers[l].d.codes;
                let half = d.len() / 2;
                d[half..].fill(0);
            },
        );
        self.model(
            "fresh: A of two blocks before",
            "scan",
            ("6-0", "exact"),
            (TOKENS, &[("neighbour", "A")]),
            |m, l| {
                let other = m.layers[(l + m.layers.len() - 2) % m.layers.len()]
                    .a_log
                    .clone();
                m.layers[l].a_log = other;
            },
        );
        self.model(
            "fresh: bias of dt of the block before",
            "scan",
            ("3", "exact"),
            (ALL, &[("neighbour", "dt_bias")]),
            |m, l| {
                let other = m.layers[(l + m.layers.len() - 1) % m.layers.len()]
                    .dt_bias
                    .clone();
                m.layers[l].dt_bias = other;
            },
        );
        self.model(
            "fresh: rows of out_proj in reverse",
            "out_proj",
            ("2-0", "deployed"),
            (ALL, &[("order", "out_proj_out")]),
            |m, l| {
                int8(&mut m.layers[l].out_proj).invert_axis(ndarray::Axis(0));
                let w = int8(&mut m.layers[l].out_proj);
                *w = w.as_standard_layout().into_owned();
            },
        );
        self.model(
            "fresh: x and z exchanged",
            "in_proj",
            ("0", "asic-int8"),
            (ALL, &[("order", "in_proj_out")]),
            |m, l| {
                let w = int8(&mut m.layers[l].in_proj);
                let half = w.nrows() / 2;
                let own = w.clone();
                w.slice_mut(s![..half, ..])
                    .assign(&own.slice(s![half.., ..]));
                w.slice_mut(s![half.., ..])
                    .assign(&own.slice(s![..half, ..]));
            },
        );
        self.model(
            "fresh: an output of in_proj negated",
            "in_proj",
            ("2-1", "exact"),
            (
                CHANNELS,
                &[
                    ("sign", "in_proj_out"),
                    ("sign", "weight"),
                    ("sign", "output"),
                ],
            ),
            |m, l| {
                let w = int8(&mut m.layers[l].in_proj);
                w.row_mut(77).mapv_inplace(|v| v.saturating_neg());
            },
        );
        self.model(
            "fresh: eight channels without taps",
            "conv",
            ("0", "exact"),
            (
                CHANNELS,
                &[
                    ("left-out", "weight"),
                    ("left-out", "input"),
                    ("part-missing", "taps"),
                ],
            ),
            |m, l| {
                m.layers[l]
                    .conv_weight
                    .codes
                    .slice_mut(s![40..48, ..])
                    .fill(0);
            },
        );
        self.model(
            "fresh: x_proj's weight in four bits",
            "x_proj",
            ("2-1", "deployed"),
            (ALL, &[("width", "weight")]),
            |m, l| {
                int8(&mut m.layers[l].x_proj).mapv_inplace(|v| {
                    (16.0 * (f64::from(v) / 16.0).round_ties_even().clamp(-8.0, 7.0)) as i8
                });
            },
        );
        self.model(
            "fresh: bias of dt missing in a head",
            "scan",
            ("2-4", "deployed"),
            (CHANNELS, &[("left-out", "dt_bias")]),
            |m, l| {
                m.layers[l].dt_bias.codes[64..128].fill(0);
            },
        );
        self.model(
            "fresh: sign bit of dt_proj's weight stuck",
            "dt_proj",
            ("0", "asic-int8"),
            (ALL, &[("stuck-bit", "weight")]),
            |m, l| {
                m.layers[l]
                    .dt_proj
                    .codes
                    .mapv_inplace(|v| (v as u8 & 0x7f) as i8);
            },
        );
        self.model(
            "fresh: out_proj's weight of three blocks on",
            "out_proj",
            ("6-0", "exact"),
            (ALL, &[("neighbour", "weight")]),
            |m, l| {
                let other = m.layers[(l + 3) % m.layers.len()].out_proj.clone();
                m.layers[l].out_proj = other;
            },
        );
        self.model(
            "fresh: A of one state for all",
            "scan",
            ("2-1", "exact"),
            (TOKENS, &[]),
            |m, l| {
                let a = &mut m.layers[l].a_log.codes;
                let first = a.column(0).to_owned();
                a.columns_mut()
                    .into_iter()
                    .for_each(|mut c| c.assign(&first));
            },
        );
    }

    fn results(&mut self) {
        self.made(
            "fresh: conv bit 5 lost from token 30 on",
            ("conv", &[P::ConvOut]),
            ("0", "deployed"),
            (TOKENS, &[("stuck-bit", "conv_out")]),
            each(|t, _, v| if t >= 30 { bit(v, |b| b & !32) } else { v }),
        );
        self.made(
            "fresh: dt zero point of 3",
            ("dt_proj", &[P::DtProjOut]),
            ("2-1", "exact"),
            (ALL, &[("zero-point", "dt_proj_out")]),
            each(|_, _, v| v + 3.0),
        );
        self.made(
            "fresh: B in five bits",
            ("x_proj", &[P::XProjOut]),
            ("2-0", "exact"),
            (
                CHANNELS,
                &[("overflow", "x_proj_out"), ("width", "x_proj_out")],
            ),
            each(|_, c, v| {
                if (12..28).contains(&c) {
                    v.clamp(-16.0, 15.0)
                } else {
                    v
                }
            }),
        );
        self.made(
            "fresh: every third channel of the rotation is zero",
            ("hadamard", &[P::HadOut]),
            ("2-4", "exact"),
            (
                CHANNELS,
                &[("constant", "had_out"), ("left-out", "had_out")],
            ),
            each(|_, c, v| if c % 3 == 1 { 0.0 } else { v }),
        );
        self.made(
            "fresh: out_proj in bf16",
            ("out_proj", &[P::OutProjOut]),
            ("2-4", "deployed"),
            (ALL, &[("format", "out_proj_out"), ("format", "output")]),
            each(|_, _, v| half::bf16::from_f64(v).to_f64()),
        );
        self.made(
            "fresh: norm one channel late",
            ("norm", &[P::NormOut]),
            ("0", "asic-int8"),
            (ALL, &[("shifted", "norm_out")]),
            whole(|v| {
                Array2::from_shape_fn(v.dim(), |(t, c)| v[(t, (c + v.ncols() - 1) % v.ncols())])
            }),
        );
        self.made(
            "fresh: token 5 repeated at 6",
            ("in_proj", &[P::InProjOut]),
            ("2-0", "exact"),
            (
                TOKENS,
                &[("shifted", "in_proj_out"), ("neighbour", "input")],
            ),
            whole(|v| {
                let mut v = v.clone();
                let before = v.row(5).to_owned();
                v.row_mut(6).assign(&before);
                v
            }),
        );
        self.made(
            "fresh: y ends at a twentieth",
            ("scan", &[P::SsmY]),
            ("2-1", "exact"),
            (ALL, &[("overflow", "ssm_y")]),
            each(|_, _, v| v.clamp(-0.05, 0.05)),
        );
        self.made(
            "fresh: residual in f16",
            ("norm", &[P::ResidualOut]),
            ("2-4", "exact"),
            (
                ALL,
                &[
                    ("format", "residual_out"),
                    ("format", "residual"),
                    ("format", "output"),
                ],
            ),
            each(|_, _, v| half::f16::from_f64(v).to_f64()),
        );
        self.made(
            "fresh: one NaN",
            ("out_proj", &[P::OutProjOut]),
            ("0", "exact"),
            (BOTH, &[("not-finite", "out_proj_out")]),
            each(|t, c, v| if (t, c) == (17, 9) { f64::NAN } else { v }),
        );
        self.made(
            "fresh: y negative in a head",
            ("scan", &[P::SsmY]),
            ("2-4", "exact"),
            (CHANNELS, &[("sign", "ssm_y"), ("sign", "output")]),
            each(|_, c, v| if (128..192).contains(&c) { -v } else { v }),
        );
        self.made(
            "fresh: rotation two tokens late",
            ("hadamard", &[P::HadOut]),
            ("3", "deployed"),
            (ALL, &[("shifted", "had_out"), ("neighbour", "input")]),
            whole(|v| late(v, 2)),
        );
        self.made(
            "fresh: codes of dt are one too low where negative",
            ("dt_proj", &[P::DtProjOut]),
            ("0", "asic-int8"),
            (
                ALL,
                &[("zero-point", "dt_proj_out"), ("rounding", "dt_proj_out")],
            ),
            each(|_, _, v| if v < 0.0 { v - 1.0 } else { v }),
        );
        self.made(
            "fresh: state of zeros in the last states",
            ("scan", &[P::SsmState]),
            ("2-1", "exact"),
            (
                CHANNELS,
                &[("constant", "ssm_state"), ("left-out", "ssm_state")],
            ),
            each(|_, n, v| if n >= 12 { 0.0 } else { v }),
        );
        self.made(
            "fresh: dt_proj every 16th token is zero",
            ("dt_proj", &[P::DtProjOut]),
            ("2-4", "exact"),
            (
                TOKENS,
                &[("constant", "dt_proj_out"), ("left-out", "dt_proj_out")],
            ),
            each(|t, _, v| if t % 16 == 15 { 0.0 } else { v }),
        );
        self.made(
            "fresh: unknown: y rises with the token",
            ("scan", &[P::SsmY]),
            ("2-4", "exact"),
            (TOKENS, &[]),
            each(|t, _, v| v * (1.0 + 0.003 * t as f64)),
        );
        self.made(
            "fresh: unknown: conv codes of two channels mixed",
            ("conv", &[P::ConvOut]),
            ("0", "exact"),
            (ALL, &[]),
            whole(|v| {
                Array2::from_shape_fn(v.dim(), |(t, c)| {
                    ((v[(t, c)] * 3.0 + v[(t, (c + 5) % v.ncols())]) / 4.0).floor()
                })
            }),
        );
    }

    fn readings(&mut self) {
        self.read(
            "fresh: in_proj's input lacks two bits",
            ("in_proj", &[P::NormOut]),
            ("0", "asic-int8"),
            (ALL, &[("width", "input")]),
            each(|_, _, v| bit(v, |b| b & !3)),
        );
        self.read(
            "fresh: in_proj's input in reverse",
            ("in_proj", &[P::NormOut]),
            ("3", "exact"),
            (ALL, &[("order", "inputs")]),
            whole(|v| v.slice(s![.., ..;-1]).to_owned()),
        );
        self.read(
            "fresh: first 32 inputs of out_proj are missing",
            ("out_proj", &[P::HadOut]),
            ("2-4", "deployed"),
            (ALL, &[("part-missing", "sum")]),
            each(|_, c, v| if c < 32 { 0.0 } else { v }),
        );
        self.read(
            "fresh: the rotation's input is late",
            ("hadamard", &[P::SsmY]),
            ("2-4", "exact"),
            (ALL, &[("neighbour", "input"), ("shifted", "had_out")]),
            whole(|v| late(v, 1)),
        );
        self.read(
            "fresh: z with the other sign",
            ("scan", &[P::InProjZ]),
            ("3", "exact"),
            (ALL, &[("sign", "z")]),
            each(|_, _, v| -v),
        );
        self.read(
            "fresh: z of the next head",
            ("scan", &[P::InProjOut]),
            ("2-1", "exact"),
            (ALL, &[("neighbour", "z")]),
            whole(|v| {
                let e = v.ncols() / 2;
                Array2::from_shape_fn(v.dim(), |(t, c)| {
                    if c < e {
                        v[(t, c)]
                    } else {
                        v[(t, e + (c - e + 64) % e)]
                    }
                })
            }),
        );
        self.read(
            "fresh: B negated",
            ("scan", &[P::XProjOut]),
            ("2-1", "exact"),
            (ALL, &[("sign", "B"), ("sign", "C")]),
            whole(|v| {
                let n = 16;
                let r = v.ncols() - 2 * n;
                Array2::from_shape_fn(v.dim(), |(t, c)| {
                    if (r..r + n).contains(&c) {
                        -v[(t, c)]
                    } else {
                        v[(t, c)]
                    }
                })
            }),
        );
        self.read(
            "fresh: conv's x with a zero point of 3",
            ("conv", &[P::InProjOut]),
            ("0", "exact"),
            (ALL, &[("zero-point", "input")]),
            whole(|v| {
                let e = v.ncols() / 2;
                Array2::from_shape_fn(
                    v.dim(),
                    |(t, c)| if c < e { v[(t, c)] + 3.0 } else { v[(t, c)] },
                )
            }),
        );
        self.read(
            "fresh: dt in four bits",
            ("scan", &[P::DtProjOut]),
            ("2-4", "exact"),
            (ALL, &[("width", "dt")]),
            each(|_, _, v| 16.0 * (v / 16.0).round_ties_even().clamp(-8.0, 7.0)),
        );
        self.read(
            "fresh: dt_proj's input has a zero point of 2",
            ("dt_proj", &[P::XProjOut]),
            ("0", "exact"),
            (ALL, &[("zero-point", "input")]),
            whole(|v| {
                let r = v.ncols() - 32;
                Array2::from_shape_fn(
                    v.dim(),
                    |(t, c)| if c < r { v[(t, c)] + 2.0 } else { v[(t, c)] },
                )
            }),
        );
        self.read(
            "fresh: out_proj's input at every 4th token of the one before",
            ("out_proj", &[P::HadOut]),
            ("2-0", "exact"),
            (
                TOKENS,
                &[("neighbour", "input"), ("shifted", "out_proj_out")],
            ),
            whole(|v| {
                let mut out = v.clone();
                for t in (3..v.nrows()).step_by(4) {
                    out.row_mut(t).assign(&v.row(t - 1));
                }
                out
            }),
        );
        self.read(
            "fresh: x_proj reads a head less",
            ("x_proj", &[P::XProjIn]),
            ("2-4", "exact"),
            (ALL, &[("part-missing", "sum")]),
            each(|_, c, v| if (64..128).contains(&c) { 0.0 } else { v }),
        );
        self.read(
            "fresh: heads of the rotation's input exchanged",
            ("hadamard", &[P::SsmY]),
            ("0", "asic-int8"),
            (ALL, &[("order", "input")]),
            whole(|v| {
                Array2::from_shape_fn(v.dim(), |(t, c)| v[(t, ((c / 64) ^ 1) * 64 + c % 64)])
            }),
        );
    }
}
