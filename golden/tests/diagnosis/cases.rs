//! The faults of the grid, none of which is a fault model.

use super::emulation::*;
use half::f16;
use ndarray::Array2;
use scalescope_sim::dataflow::Step;
use scalescope_sim::datapath::Datapath;
use scalescope_sim::model::QuantizedModel;
use scalescope_sim::plan::ScaleUse;
use scalescope_sim::trace::{Tensor, TracePoint as P};

/// Where a fault comes into a run.
#[derive(Clone, Copy)]
pub enum Into {
    /// A step makes otherwise; the dump has what it makes.
    Output,
    /// The steps that read a tensor read otherwise; the dump has what they should have read.
    Reading,
    /// The parameters of a block are others.
    Model(fn(&mut QuantizedModel, usize)),
}

pub struct Case {
    pub name: &'static str,
    pub step: &'static str,
    pub points: &'static [P],
    /// Kinds and sites, any of which is right; none for what is not searched.
    pub right: &'static [(&'static str, &'static str)],
    /// Whether tokens and channels are a part.
    pub part: [bool; 2],
    pub make: Make,
    pub into: Into,
    /// Mode and profile; none for those of the grid in turn.
    pub on: Option<(&'static str, &'static str)>,
}

pub const NO: [bool; 2] = [false, false];
pub const SCAN: &[P] = &[P::SsmY, P::SsmState];

pub fn case(
    name: &'static str,
    step: &'static str,
    points: &'static [P],
    right: &'static [(&'static str, &'static str)],
    make: Make,
) -> Case {
    Case {
        name,
        step,
        points,
        right,
        part: NO,
        make,
        into: Into::Output,
        on: None,
    }
}

pub fn bits(change: fn(usize, usize, i8) -> i8) -> Make {
    Box::new(move |_, _, _, _, like| match like {
        Tensor::I8(q) => {
            let mut q = q.clone();
            for (at, v) in q.codes.indexed_iter_mut() {
                *v = change(at.0, at.1, *v);
            }
            Tensor::I8(q)
        }
        other => other.clone(),
    })
}

pub fn cases() -> Vec<Case> {
    use ScaleUse as U;
    let nothing = |_: &Datapath, _: usize, _: &Seen, _: &mut Conv| {};
    let no_bias = |_: &Datapath, _: usize, _: &Seen, c: &mut Conv| c.bias.fill(0.0);
    let all = usize::MAX;
    let conv_out: &[P] = &[P::ConvOut];
    let in_proj =
        |change: fn(&Datapath, usize, &mut Lin), after: fn(usize, usize, f64) -> f64, round| {
            linear(
                Step::InProj,
                P::NormOut,
                (U::InProjIn, Some(U::InProjOut)),
                round,
                change,
                after,
            )
        };
    let x_proj =
        |change: fn(&Datapath, usize, &mut Lin), after: fn(usize, usize, f64) -> f64, round| {
            linear(
                Step::XProj,
                P::ConvOut,
                (U::XProjIn, Some(U::XProjOut)),
                round,
                change,
                after,
            )
        };
    let dt_proj = |change: fn(&Datapath, usize, &mut Lin), round| {
        linear(
            Step::DtProj,
            P::XProjOut,
            (U::DtProjIn, Some(U::DtProjOut)),
            round,
            change,
            as_is,
        )
    };
    let out_proj = |change: fn(&Datapath, usize, &mut Lin)| {
        linear(
            Step::OutProj,
            P::HadOut,
            (U::OutProjIn, None),
            Round::Even,
            change,
            as_is,
        )
    };
    let keep = |_: &Datapath, _: usize, _: &mut Lin| {};
    let next = |path: &Datapath, layer: usize| (layer + 1) % path.config().n_layers;
    let mut all_cases = vec![
        case(
            "conv bias missing",
            "conv",
            conv_out,
            &[("left-out", "bias")],
            conv(no_bias, all, silu),
        ),
        case(
            "conv taps reversed",
            "conv",
            conv_out,
            &[("order", "taps")],
            conv(|_, _, _, c| c.w.invert_axis(ndarray::Axis(1)), all, silu),
        ),
        case(
            "conv SiLU twice",
            "conv",
            conv_out,
            &[("twice", "SiLU")],
            conv(nothing, all, |v| silu(silu(v))),
        ),
        case(
            "conv sigmoid",
            "conv",
            conv_out,
            &[("function", "SiLU")],
            conv(nothing, all, |v| 1.0 / (1.0 + (-v).exp())),
        ),
        case(
            "conv ReLU",
            "conv",
            conv_out,
            &[("function", "SiLU")],
            conv(nothing, all, |v| v.max(0.0)),
        ),
        case(
            "conv no SiLU",
            "conv",
            conv_out,
            &[("left-out", "SiLU")],
            conv(nothing, all, |v| v),
        ),
        case(
            "conv oldest tap missing",
            "conv",
            conv_out,
            &[("part-missing", "taps")],
            conv(|_, _, _, c| c.w.column_mut(0).fill(0.0), all, silu),
        ),
        case(
            "conv tile of 16",
            "conv",
            conv_out,
            &[("history", "conv")],
            conv(nothing, 16, silu),
        ),
        case(
            "conv reads z",
            "conv",
            conv_out,
            &[("neighbour", "input")],
            conv(
                |path, layer, seen, c| {
                    let e = c.x.ncols();
                    let xz = real(path, layer, &seen[&P::InProjOut], U::ConvIn);
                    c.x = xz.slice(ndarray::s![.., e..]).to_owned();
                },
                all,
                silu,
            ),
        ),
        case(
            "conv bias of next block",
            "conv",
            conv_out,
            &[("neighbour", "bias")],
            conv(
                move |path, layer, _, c| {
                    let w = path.conv_weight((layer + 1) % path.config().n_layers);
                    c.bias = (0..c.bias.len()).map(|i| f64::from(w.bias(i))).collect();
                },
                all,
                silu,
            ),
        ),
        case(
            "conv one token late",
            "conv",
            conv_out,
            &[("neighbour", "input"), ("shifted", "conv_out")],
            conv(
                |_, _, _, c| {
                    let x = c.x.clone();
                    for t in (0..x.nrows()).rev() {
                        let row = if t == 0 {
                            ndarray::Array1::zeros(x.ncols())
                        } else {
                            x.row(t - 1).to_owned()
                        };
                        c.x.row_mut(t).assign(&row);
                    }
                },
                all,
                silu,
            ),
        ),
        case(
            "in_proj last 16 of K",
            "in_proj",
            &[P::InProjOut],
            &[("part-missing", "sum")],
            in_proj(
                |_, _, l| {
                    let k = l.x.ncols();
                    l.x.slice_mut(ndarray::s![.., k - 16..]).fill(0.0);
                },
                as_is,
                Round::Even,
            ),
        ),
        case(
            "in_proj K reversed",
            "in_proj",
            &[P::InProjOut],
            &[("order", "inputs")],
            in_proj(
                |_, _, l| l.x.invert_axis(ndarray::Axis(1)),
                as_is,
                Round::Even,
            ),
        ),
        case(
            "in_proj floor",
            "in_proj",
            &[P::InProjOut],
            &[("rounding", "in_proj_out"), ("rounding", "in_proj_out")],
            in_proj(keep, as_is, Round::Floor),
        ),
        case(
            "x_proj truncates",
            "x_proj",
            &[P::XProjOut],
            &[("rounding", "x_proj_out")],
            x_proj(keep, as_is, Round::Zero),
        ),
        case(
            "x_proj zero point 1",
            "x_proj",
            &[P::XProjOut],
            &[("zero-point", "x_proj_out")],
            x_proj(keep, |_, _, v| v + 1.0, Round::Even),
        ),
        case(
            "dt_proj weight of next block",
            "dt_proj",
            &[P::DtProjOut],
            &[("neighbour", "weight")],
            dt_proj(
                move |path, layer, l| {
                    let w = path.linear_weights((layer + 1) % path.config().n_layers, Step::DtProj)
                        [0]
                    .stored()
                    .unwrap();
                    l.w = w.codes.mapv(f64::from);
                },
                Round::Even,
            ),
        ),
        case(
            "out_proj weight of next block",
            "out_proj",
            &[P::OutProjOut],
            &[("neighbour", "weight")],
            out_proj(move |path, layer, l| {
                let w = path.linear_weights((layer + 1) % path.config().n_layers, Step::OutProj)[0]
                    .stored()
                    .unwrap();
                l.w = w.codes.mapv(f64::from);
            }),
        ),
        case(
            "out_proj one weight",
            "out_proj",
            &[P::OutProjOut],
            &[("weights", "weight")],
            out_proj(|_, _, l| {
                let v = l.w[(7, 33)];
                l.w[(7, 33)] = f64::from((v as i8) ^ 0x40);
            }),
        ),
        case(
            "in_proj one weight",
            "in_proj",
            &[P::InProjOut],
            &[("weights", "weight")],
            in_proj(
                |_, _, l| {
                    let v = l.w[(100, 5)];
                    l.w[(100, 5)] = f64::from((v as i8) ^ 0x40);
                },
                as_is,
                Round::Even,
            ),
        ),
        case(
            "out_proj input late",
            "out_proj",
            &[P::OutProjOut],
            &[("neighbour", "input"), ("shifted", "out_proj_out")],
            out_proj(|_, _, l| {
                let x = l.x.clone();
                for t in (0..x.nrows()).rev() {
                    let row = if t == 0 {
                        ndarray::Array1::zeros(x.ncols())
                    } else {
                        x.row(t - 1).to_owned()
                    };
                    l.x.row_mut(t).assign(&row);
                }
            }),
        ),
        case(
            "in_proj stuck bit",
            "in_proj",
            &[P::InProjOut],
            &[("stuck-bit", "in_proj_out")],
            bits(|_, _, v| v | 4),
        ),
        case(
            "x_proj bit 0 lost",
            "x_proj",
            &[P::XProjOut],
            &[("stuck-bit", "x_proj_out"), ("width", "x_proj_out")],
            bits(|_, _, v| v & !1),
        ),
        case(
            "scan D missing",
            "scan",
            SCAN,
            &[("left-out", "D")],
            scan(|_, _, _, s| s.d.fill(0.0)),
        ),
        case(
            "scan gate missing",
            "scan",
            SCAN,
            &[("left-out", "gate")],
            scan(|_, _, _, s| s.gate = |_| 1.0),
        ),
        case(
            "scan gate sigmoid",
            "scan",
            SCAN,
            &[("function", "gate")],
            scan(|_, _, _, s| s.gate = |v| 1.0 / (1.0 + (-v).exp())),
        ),
        case(
            "scan dt bias missing",
            "scan",
            SCAN,
            &[("left-out", "dt_bias")],
            scan(|_, _, _, s| s.bias.fill(0.0)),
        ),
        case(
            "scan ReLU for softplus",
            "scan",
            SCAN,
            &[("function", "softplus")],
            scan(|_, _, _, s| s.softplus = |v| v.max(0.0)),
        ),
        case(
            "scan exp for softplus",
            "scan",
            SCAN,
            &[("function", "softplus")],
            scan(|_, _, _, s| s.softplus = f64::exp),
        ),
        case(
            "scan B for C",
            "scan",
            SCAN,
            &[("neighbour", "C")],
            scan(|_, _, _, s| s.c = s.b.clone()),
        ),
        case(
            "scan C for B",
            "scan",
            SCAN,
            &[("neighbour", "B")],
            scan(|_, _, _, s| s.b = s.c.clone()),
        ),
        case(
            "scan state bf16",
            "scan",
            SCAN,
            &[("format", "state")],
            scan(|_, _, _, s| s.state = |v, _| half::bf16::from_f64(v).to_f64()),
        ),
        case(
            "scan state f16",
            "scan",
            SCAN,
            &[("format", "state")],
            scan(|_, _, _, s| s.state = |v, _| f16::from_f64(v).to_f64()),
        ),
        case(
            "scan state INT8",
            "scan",
            SCAN,
            &[("format", "state")],
            scan(|_, _, _, s| s.state = |v, s| s * (v / s).round_ties_even().clamp(-128.0, 127.0)),
        ),
        case(
            "scan tile of 32",
            "scan",
            SCAN,
            &[("history", "state")],
            scan(|_, _, _, s| s.tile = 32),
        ),
        case(
            "scan no state",
            "scan",
            SCAN,
            &[("history", "state")],
            scan(|_, _, _, s| s.tile = 1),
        ),
        case(
            "scan last 4 states",
            "scan",
            SCAN,
            &[("part-missing", "states")],
            scan(|_, _, _, s| s.states -= 4),
        ),
        case(
            "scan A of next block",
            "scan",
            SCAN,
            &[("neighbour", "A")],
            scan(move |path, layer, _, s| {
                let (a, _, _) = path
                    .scan_weight((layer + 1) % path.config().n_layers)
                    .tensors();
                s.a = a
                    .codes
                    .mapv(|c| (f64::from(a.scale.get()) * f64::from(c)).exp());
            }),
        ),
        case(
            "scan dt of previous token",
            "scan",
            SCAN,
            &[("neighbour", "dt")],
            scan(|_, _, _, s| {
                let dt = s.dt.clone();
                for t in 0..dt.nrows() {
                    let row = if t == 0 {
                        ndarray::Array1::zeros(dt.ncols())
                    } else {
                        dt.row(t - 1).to_owned()
                    };
                    s.dt.row_mut(t).assign(&row);
                }
            }),
        ),
        case(
            "Hadamard 1/d",
            "hadamard",
            &[P::HadOut],
            &[("constant", "norm")],
            hadamard(|_, _, h| h, |e| 1.0 / e),
        ),
        case(
            "Hadamard stride 4 missing",
            "hadamard",
            &[P::HadOut],
            &[("part-missing", "stages")],
            hadamard(
                |i, j, h| {
                    // Without the butterflies of stride 4: the entries of i and j that differ in bit 2 vanish.
                    if (i ^ j) & 4 != 0 {
                        0.0
                    } else if i & j & 4 != 0 {
                        -h
                    } else {
                        h
                    }
                },
                |e| 1.0 / e.sqrt(),
            ),
        ),
        case(
            "no rotation",
            "hadamard",
            &[P::HadOut],
            &[("left-out", "rotation")],
            hadamard(|i, j, _| f64::from(u8::from(i == j)), |_| 1.0),
        ),
        case(
            "norm weight missing",
            "norm",
            &[P::NormOut],
            &[("left-out", "weight")],
            norm(|w, _, _| w.fill(1.0)),
        ),
        case(
            "norm eps 1e-3",
            "norm",
            &[P::NormOut],
            &[("constant", "eps")],
            norm(|_, eps, _| *eps = 1e-3),
        ),
        case(
            "LayerNorm",
            "norm",
            &[P::NormOut],
            &[("function", "norm")],
            norm(|_, _, c| *c = true),
        ),
        case(
            "residual dropped",
            "norm",
            &[P::ResidualOut],
            &[("left-out", "residual")],
            Box::new(|_, _, seen, _, _| Tensor::F32(seen[&P::HiddenIn].to_real())),
        ),
        // Not searched: no name is the right answer.
        case(
            "unknown: conv output times a ramp",
            "conv",
            conv_out,
            &[],
            bits(|_, c, v| (f64::from(v) * (0.7 + 0.001 * c as f64)) as i8),
        ),
        case(
            "unknown: codes through a table",
            "x_proj",
            &[P::XProjOut],
            &[],
            bits(|_, _, v| {
                (f64::from(v) / 127.0)
                    .powi(3)
                    .mul_add(100.0, f64::from(v) * 0.2) as i8
            }),
        ),
        case(
            "unknown: y plus a sine",
            "scan",
            &[P::SsmY],
            &[],
            Box::new(|_, _, _, _, like| {
                let v = like.to_real().mapv(f64::from);
                let v = Array2::from_shape_fn(v.dim(), |(t, c)| {
                    v[(t, c)] + 0.05 * ((t * 7 + c * 3) as f64).sin()
                });
                store(&v, like, 1.0, Round::Even)
            }),
        ),
        case(
            "two: bias missing and floor",
            "conv",
            conv_out,
            &[("two-edits", "bias and output")],
            Box::new(|path, layer, seen, _, like| {
                let mut parts = conv_parts(path, layer, seen);
                parts.bias.fill(0.0);
                let scale = f64::from(path.scale(layer, U::ConvOut).unwrap().get());
                store(&parts.run(usize::MAX, silu), like, scale, Round::Floor)
            }),
        ),
    ];
    let mut part = |name,
                    tokens,
                    channels,
                    make: Make,
                    right: &'static [(&'static str, &'static str)],
                    step,
                    points| {
        all_cases.push(Case {
            name,
            step,
            points,
            right,
            part: [tokens, channels],
            make,
            into: Into::Output,
            on: None,
        });
    };
    part(
        "conv bias missing from token 20 on",
        true,
        false,
        only(conv(no_bias, all, silu), |t, _| t >= 20),
        &[("left-out", "bias")],
        "conv",
        conv_out,
    );
    part(
        "conv bias missing in channels 64 to 127",
        false,
        true,
        only(conv(no_bias, all, silu), |_, c| (64..128).contains(&c)),
        &[("left-out", "bias")],
        "conv",
        conv_out,
    );
    part(
        "in_proj stuck bit at every 8th token",
        true,
        false,
        only(bits(|_, _, v| v | 8), |t, _| t % 8 == 3),
        &[("stuck-bit", "in_proj_out")],
        "in_proj",
        &[P::InProjOut],
    );
    part(
        "gate missing in the tail",
        true,
        false,
        only(scan(|_, _, _, s| s.gate = |_| 1.0), |t, _| t >= 40),
        &[("left-out", "gate")],
        "scan",
        &[P::SsmY],
    );
    part(
        "out_proj channel of zeros",
        false,
        true,
        only(out_proj(|_, _, l| l.x.fill(0.0)), |_, c| c == 11),
        &[("constant", "out_proj_out"), ("left-out", "out_proj_out")],
        "out_proj",
        &[P::OutProjOut],
    );
    let _ = next;
    for case in &mut all_cases {
        // Tokens without history are as they should be; a weight is one output's.
        case.part = match case.name {
            "conv oldest tap missing" | "conv tile of 16" | "scan tile of 32" | "scan no state" => {
                [true, false]
            }
            "out_proj one weight" | "in_proj one weight" => [false, true],
            _ => case.part,
        };
    }
    all_cases
}
