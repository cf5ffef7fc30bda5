//! More faults of the grid: of the kinds that whoever debugs a kernel meets, in steps and strengths of their own.

use super::cases::{Case, SCAN, bits, case};
use super::emulation::*;
use scalescope_sim::dataflow::Step;
use scalescope_sim::datapath::Datapath;
use scalescope_sim::plan::ScaleUse as U;
use scalescope_sim::quant::QVector;
use scalescope_sim::trace::{Tensor, TracePoint as P};

pub(super) fn x_proj(change: fn(&mut Lin)) -> Make {
    let scales = (U::XProjIn, Some(U::XProjOut));
    let change = move |_: &Datapath, _: usize, l: &mut Lin| change(l);
    linear(Step::XProj, P::ConvOut, scales, Round::Even, change, as_is)
}

pub(super) fn dt_proj(change: fn(&mut Lin)) -> Make {
    let scales = (U::DtProjIn, Some(U::DtProjOut));
    let change = move |_: &Datapath, _: usize, l: &mut Lin| change(l);
    linear(
        Step::DtProj,
        P::XProjOut,
        scales,
        Round::Even,
        change,
        as_is,
    )
}

pub(super) fn in_proj(change: fn(&mut Lin), round: Round) -> Make {
    let scales = (U::InProjIn, Some(U::InProjOut));
    let change = move |_: &Datapath, _: usize, l: &mut Lin| change(l);
    linear(Step::InProj, P::NormOut, scales, round, change, as_is)
}

pub(super) fn out_proj(change: fn(&mut Lin)) -> Make {
    let change = move |_: &Datapath, _: usize, l: &mut Lin| change(l);
    linear(
        Step::OutProj,
        P::HadOut,
        (U::OutProjIn, None),
        Round::Even,
        change,
        as_is,
    )
}

pub(super) fn plain(change: fn(&mut Scan)) -> Make {
    scan(move |_, _, _, s| change(s))
}

fn reals(q: &QVector) -> Vec<f64> {
    let scale = f64::from(q.scale.get());
    q.codes.iter().map(|c| scale * f64::from(*c)).collect()
}

fn tanh_gelu(v: f64) -> f64 {
    0.5 * v * (1.0 + (0.797_884_560_8 * (v + 0.044715 * v.powi(3))).tanh())
}

pub fn more() -> Vec<Case> {
    let (conv_out, x_proj_out): (&[P], &[P]) = (&[P::ConvOut], &[P::XProjOut]);
    let mut all = vec![
        case(
            "more: dt_proj last 4 of K",
            "dt_proj",
            &[P::DtProjOut],
            &[("part-missing", "sum")],
            dt_proj(|l| {
                let k = l.x.ncols();
                l.x.slice_mut(ndarray::s![.., k - 4..]).fill(0.0);
            }),
        ),
        case(
            "more: conv tile of 20",
            "conv",
            conv_out,
            &[("history", "conv")],
            conv(|_, _, _, _| {}, 20, silu),
        ),
        case(
            "more: x_proj input zero point 1",
            "x_proj",
            x_proj_out,
            &[("zero-point", "input")],
            x_proj(|l| l.x += 1.0),
        ),
        case(
            "more: conv rounds down",
            "conv",
            conv_out,
            &[("rounding", "conv_out")],
            Box::new(|path, layer, seen, _, like| {
                let scale = f64::from(path.scale(layer, U::ConvOut).unwrap().get());
                let parts = conv_parts(path, layer, seen);
                store(&parts.run(usize::MAX, silu), like, scale, Round::Floor)
            }),
        ),
        case(
            "more: D of the next block",
            "scan",
            SCAN,
            &[("neighbour", "D")],
            scan(|path, layer, _, s| {
                let next = (layer + 1) % path.config().n_layers;
                let (_, d, _) = path.scan_weight(next).tensors();
                s.d = reals(&d);
            }),
        ),
        case(
            "more: conv bit 2 stuck at 1",
            "conv",
            conv_out,
            &[("stuck-bit", "conv_out")],
            bits(|_, _, v| v | 4),
        ),
        case(
            "more: x_proj weight bit 0 stuck at 0",
            "x_proj",
            x_proj_out,
            &[("stuck-bit", "weight"), ("width", "weight")],
            x_proj(|l| l.w.mapv_inplace(|w| f64::from(w as i8 & !1))),
        ),
        case(
            "more: in_proj weight bit 3 stuck at 1",
            "in_proj",
            &[P::InProjOut],
            &[("stuck-bit", "weight")],
            in_proj(
                |l| l.w.mapv_inplace(|w| f64::from(w as i8 | 8)),
                Round::Even,
            ),
        ),
        case(
            "more: out_proj input bit 6 stuck at 0",
            "out_proj",
            &[P::OutProjOut],
            &[("stuck-bit", "input")],
            out_proj(|l| l.x.mapv_inplace(|x| f64::from(x as i8 & !64))),
        ),
        case(
            "more: residual twice",
            "norm",
            &[P::ResidualOut],
            &[("twice", "residual")],
            Box::new(|_, _, seen, _, _| {
                let residual = seen[&P::ResidualIn].to_real();
                Tensor::F32(seen[&P::HiddenIn].to_real() + 2.0 * residual)
            }),
        ),
        case(
            "more: softplus a line from 1 on",
            "scan",
            SCAN,
            &[("function", "softplus")],
            plain(|s| s.softplus = |v| if v > 1.0 { v } else { v.exp().ln_1p() }),
        ),
        case(
            "more: A without exp",
            "scan",
            SCAN,
            &[("left-out", "exp")],
            plain(|s| s.a.mapv_inplace(f64::ln)),
        ),
        case(
            "more: gate of GELU",
            "scan",
            SCAN,
            &[("function", "gate")],
            plain(|s| s.gate = tanh_gelu),
        ),
        case(
            "more: bias of dt twice",
            "scan",
            SCAN,
            &[("twice", "dt_bias")],
            plain(|s| s.bias.iter_mut().for_each(|b| *b *= 2.0)),
        ),
        case(
            "more: state saturates at half its range",
            "scan",
            SCAN,
            &[("overflow", "state")],
            plain(|s| s.state = |v, step| v.clamp(-63.5 * step, 63.5 * step)),
        ),
        case(
            "more: Hadamard of the wrong sign",
            "hadamard",
            &[P::HadOut],
            &[("sign", "had_out"), ("sign", "output")],
            hadamard(|_, _, v| v, |e| -1.0 / e.sqrt()),
        ),
        case(
            "more: Hadamard without 1/√d",
            "hadamard",
            &[P::HadOut],
            &[("constant", "norm"), ("left-out", "norm")],
            hadamard(|_, _, v| v, |_| 1.0),
        ),
        case(
            "more: second half of the rotation's inputs negated",
            "hadamard",
            &[P::HadOut],
            &[("sign", "input")],
            hadamard(|_, j, v| if j >= 192 { -v } else { v }, |e| 1.0 / e.sqrt()),
        ),
        case(
            "more: INT4 activations of x_proj",
            "x_proj",
            x_proj_out,
            &[("width", "input")],
            x_proj(|l| {
                l.x.mapv_inplace(|x| 16.0 * (x / 16.0).round_ties_even().clamp(-8.0, 7.0));
            }),
        ),
        case(
            "more: in_proj saturates at 6 bits",
            "in_proj",
            &[P::InProjOut],
            &[("width", "in_proj_out"), ("overflow", "in_proj_out")],
            bits(|_, _, v| v.clamp(-32, 31)),
        ),
        case(
            "more: norm weight plus one",
            "norm",
            &[P::NormOut],
            &[("constant", "weight"), ("neighbour", "weight")],
            norm(|w, _, _| w.iter_mut().for_each(|w| *w += 1.0)),
        ),
        case(
            "more: two: taps reversed, bias twice",
            "conv",
            conv_out,
            &[
                ("two-edits", "taps and bias"),
                ("two-edits", "bias and taps"),
            ],
            conv(
                |_, _, _, c| {
                    c.w.invert_axis(ndarray::Axis(1));
                    c.bias.iter_mut().for_each(|b| *b *= 2.0);
                },
                usize::MAX,
                silu,
            ),
        ),
        case(
            "more: two: D missing, gate a sigmoid",
            "scan",
            SCAN,
            &[("two-edits", "D and gate"), ("two-edits", "gate and D")],
            plain(|s| {
                s.d.fill(0.0);
                s.gate = |v| 1.0 / (1.0 + (-v).exp());
            }),
        ),
        case(
            "more: two: last 16 of K, rounding down",
            "in_proj",
            &[P::InProjOut],
            &[
                ("two-edits", "sum and output"),
                ("two-edits", "output and sum"),
            ],
            in_proj(
                |l| {
                    let k = l.x.ncols();
                    l.x.slice_mut(ndarray::s![.., k - 16..]).fill(0.0);
                },
                Round::Floor,
            ),
        ),
        case(
            "more: unknown: every fifth code times three",
            "x_proj",
            x_proj_out,
            &[],
            bits(|t, c, v| {
                if (t * 31 + c * 17) % 5 == 0 {
                    v.wrapping_mul(3)
                } else {
                    v
                }
            }),
        ),
    ];
    for case in &mut all {
        // Tokens without history are as they should be.
        let late = ["more: conv tile of 20", "more: A without exp"];
        if late.contains(&case.name) || case.name.contains("state saturates") {
            case.part = [true, false];
        }
    }
    all
}
