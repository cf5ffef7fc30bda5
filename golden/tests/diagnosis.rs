//! How often the diagnosis is right on faults that are no fault models: made by an emulation of its own in
//! f64, which knows nothing of the edits that are searched, put into a run and flowing on.
//!
//! ```text
//! cargo test --release -p scalescope-golden --test all diagnosis::grid -- --ignored --nocapture
//! ```

use half::f16;
use ndarray::Array2;
use scalescope_golden::attribute::{Finding, Severity};
use scalescope_golden::diagnose::diagnose;
use scalescope_golden::diagnose::identify::identify;
use scalescope_golden::trace_file::TraceFile;
use scalescope_golden::value::Value;
use scalescope_sim::dataflow::Step;
use scalescope_sim::datapath::{Datapath, LogitRows};
use scalescope_sim::error::Result;
use scalescope_sim::fault::Fault;
use scalescope_sim::mode::{MODES, ModeTable};
use scalescope_sim::plan::ScaleUse;
use scalescope_sim::profile::{PROFILES, Profile};
use scalescope_sim::sample;
use scalescope_sim::trace::{Place, Probe, Recorder, Selection, Tensor, TracePoint as P};
use std::collections::BTreeMap;
use std::time::Instant;

type Seen = BTreeMap<P, Tensor>;
type Make = Box<dyn Fn(&Datapath, usize, &Seen, P, &Tensor) -> Tensor + Send + Sync>;

/// Puts a fault into one block and records what follows.
struct Faulty<'a, 'm> {
    path: &'a Datapath<'m>,
    layer: usize,
    points: &'a [P],
    make: &'a Make,
    seen: Seen,
    recorder: Recorder,
}

impl Probe for Faulty<'_, '_> {
    fn wants(&self, _: Place) -> bool {
        true
    }

    fn visit(&mut self, place: Place, value: &mut Tensor) -> Result<()> {
        if place.layer == Some(self.layer) {
            if self.points.contains(&place.point) {
                *value = (self.make)(self.path, self.layer, &self.seen, place.point, value);
            }
            self.seen.insert(place.point, value.clone());
        }
        if self.recorder.wants(place) {
            self.recorder.visit(place, value)?;
        }
        Ok(())
    }
}

/// Real values of a tensor, codes in steps of the scale of a use.
fn real(path: &Datapath, layer: usize, tensor: &Tensor, by: ScaleUse) -> Array2<f64> {
    match tensor {
        Tensor::I8(q) => {
            let scale = f64::from(path.scale(layer, by).unwrap().get());
            q.codes.mapv(|c| scale * f64::from(c))
        }
        other => other.to_real().mapv(f64::from),
    }
}

/// How a real becomes a code.
#[derive(Clone, Copy)]
enum Round {
    Even,
    Away,
    Floor,
    Zero,
}

fn store(values: &Array2<f64>, like: &Tensor, scale: f64, round: Round) -> Tensor {
    let code = |v: &f64| {
        let units = v / scale;
        let integer = match round {
            Round::Even => units.round_ties_even(),
            Round::Away => units.round(),
            Round::Floor => units.floor(),
            Round::Zero => units.trunc(),
        };
        integer.clamp(-128.0, 127.0) as i8
    };
    match like {
        Tensor::I8(q) => Tensor::I8(scalescope_sim::quant::QTensor {
            codes: values.map(code),
            scale: q.scale,
        }),
        Tensor::F16(_) => Tensor::F16(values.map(|v| f16::from_f64(*v))),
        _ => Tensor::F32(values.map(|v| *v as f32)),
    }
}

fn silu(v: f64) -> f64 {
    v / (1.0 + (-v).exp())
}

struct Conv {
    x: Array2<f64>,
    w: Array2<f64>,
    bias: Vec<f64>,
}

fn conv_parts(path: &Datapath, layer: usize, seen: &Seen) -> Conv {
    let weight = path.conv_weight(layer);
    let (w, _) = weight.tensors().unwrap();
    let e = weight.channels();
    let x = seen.get(&P::InProjOut).unwrap();
    let x = real(path, layer, x, ScaleUse::ConvIn);
    Conv {
        x: x.slice(ndarray::s![.., ..e]).to_owned(),
        w: w.codes.mapv(|c| f64::from(w.scale.get()) * f64::from(c)),
        bias: (0..e).map(|c| f64::from(weight.bias(c))).collect(),
    }
}

impl Conv {
    fn run(&self, tile: usize, act: impl Fn(f64) -> f64) -> Array2<f64> {
        let (e, k) = self.w.dim();
        Array2::from_shape_fn((self.x.nrows(), e), |(t, c)| {
            let mut v = self.bias[c];
            for tap in 0..k {
                let Some(at) = (t + tap + 1).checked_sub(k) else {
                    continue;
                };
                if at >= t / tile * tile {
                    v += self.w[(c, tap)] * self.x[(at, c)];
                }
            }
            act(v)
        })
    }
}

/// A fault of the convolution: its parts changed, its function.
fn conv(
    change: impl Fn(&Datapath, usize, &Seen, &mut Conv) + Send + Sync + 'static,
    tile: usize,
    act: fn(f64) -> f64,
) -> Make {
    Box::new(move |path, layer, seen, _, like| {
        let mut parts = conv_parts(path, layer, seen);
        change(path, layer, seen, &mut parts);
        let scale = f64::from(path.scale(layer, ScaleUse::ConvOut).unwrap().get());
        store(&parts.run(tile, act), like, scale, Round::Away)
    })
}

struct Lin {
    x: Array2<f64>,
    w: Array2<f64>,
    unit: f64,
}

/// A linear step: codes in, codes or reals out.
fn linear(
    step: Step,
    input: P,
    (reads, writes): (ScaleUse, Option<ScaleUse>),
    round: Round,
    change: impl Fn(&Datapath, usize, &mut Lin) + Send + Sync + 'static,
    after: fn(usize, usize, f64) -> f64,
) -> Make {
    Box::new(move |path, layer, seen, _, like| {
        let all: Vec<_> = path.linear_weights(layer, step);
        let rows: Vec<_> = all.iter().map(|w| w.stored().unwrap()).collect();
        let codes: Vec<_> = rows.iter().map(|w| w.codes.view()).collect();
        let w = ndarray::concatenate(ndarray::Axis(0), &codes).unwrap();
        let Tensor::I8(x) = &seen[&input] else {
            panic!("codes")
        };
        let k = w.ncols();
        let mut lin = Lin {
            x: x.codes.slice(ndarray::s![.., ..k]).mapv(f64::from),
            w: w.mapv(f64::from),
            unit: f64::from(path.scale(layer, reads).unwrap().get())
                * f64::from(rows[0].scales[0].get()),
        };
        change(path, layer, &mut lin);
        let unit = lin.unit;
        let v = lin.x.dot(&lin.w.t()).mapv(|v| v * unit);
        let scale = writes.map_or(1.0, |by| f64::from(path.scale(layer, by).unwrap().get()));
        let v = Array2::from_shape_fn(v.dim(), |(t, c)| scale * after(t, c, v[(t, c)] / scale));
        store(&v, like, scale, round)
    })
}

fn as_is(_: usize, _: usize, v: f64) -> f64 {
    v
}

#[derive(Clone)]
struct Scan {
    u: Array2<f64>,
    dt: Array2<f64>,
    b: Array2<f64>,
    c: Array2<f64>,
    z: Array2<f64>,
    a: Array2<f64>,
    d: Vec<f64>,
    bias: Vec<f64>,
    softplus: fn(f64) -> f64,
    gate: fn(f64) -> f64,
    state: fn(f64, f64) -> f64,
    tile: usize,
    states: usize,
    step: f64,
}

fn scan(change: impl Fn(&Datapath, usize, &Seen, &mut Scan) + Send + Sync + 'static) -> Make {
    Box::new(move |path, layer, seen, point, like| {
        let e = path.config().d_inner;
        let (r, n) = (path.config().dt_rank, path.config().d_state);
        let (a, d, bias) = path.scan_weight(layer).tensors();
        let of = |q: &scalescope_sim::quant::QVector| -> Vec<f64> {
            q.codes
                .iter()
                .map(|c| f64::from(q.scale.get()) * f64::from(*c))
                .collect()
        };
        let x = real(path, layer, &seen[&P::XProjOut], ScaleUse::ScanB);
        let xz = real(path, layer, &seen[&P::InProjOut], ScaleUse::ScanZ);
        let u = seen.get(&P::SsmU).or(seen.get(&P::ConvOut)).unwrap();
        let mut s = Scan {
            u: real(path, layer, u, ScaleUse::ScanU),
            dt: real(path, layer, &seen[&P::DtProjOut], ScaleUse::ScanDt),
            b: x.slice(ndarray::s![.., r..r + n]).to_owned(),
            c: x.slice(ndarray::s![.., r + n..]).to_owned(),
            z: xz.slice(ndarray::s![.., e..]).to_owned(),
            a: a.codes
                .mapv(|c| (f64::from(a.scale.get()) * f64::from(c)).exp()),
            d: of(&d),
            bias: of(&bias),
            softplus: |v| v.exp().ln_1p(),
            gate: silu,
            state: |v, _| v,
            tile: usize::MAX,
            states: n,
            step: f64::from(path.scale(layer, ScaleUse::StateOut).unwrap().get()),
        };
        change(path, layer, seen, &mut s);
        let l = s.u.nrows();
        let mut y = Array2::zeros((l, e));
        let mut last = Array2::zeros((e, n));
        for c in 0..e {
            let mut x = vec![0.0f64; n];
            for t in 0..l {
                if t % s.tile == 0 {
                    x.fill(0.0);
                }
                let delta = (s.softplus)(s.dt[(t, c)] + s.bias[c]);
                let mut out = s.d[c] * s.u[(t, c)];
                for i in 0..n {
                    x[i] = (-s.a[(c, i)] * delta).exp() * x[i] + s.b[(t, i)] * delta * s.u[(t, c)];
                    x[i] = (s.state)(x[i], s.step);
                    if i < s.states {
                        out += x[i] * s.c[(t, i)];
                    }
                }
                y[(t, c)] = out * (s.gate)(s.z[(t, c)]);
            }
            for i in 0..n {
                last[(c, i)] = x[i];
            }
        }
        match point {
            P::SsmY => store(&y, like, 1.0, Round::Even),
            _ => store(&last, like, s.step, Round::Away),
        }
    })
}

fn hadamard(change: fn(usize, usize, f64) -> f64, factor: fn(f64) -> f64) -> Make {
    Box::new(move |path, layer, seen, _, like| {
        let y = seen[&P::SsmY].to_real().mapv(f64::from);
        let size = path.rotation(layer).unwrap();
        let e = size.n();
        let h = Array2::from_shape_fn((e, e), |(i, j)| change(i, j, f64::from(size.entry(i, j))));
        let v = y.dot(&h.t()).mapv(|v| v * factor(e as f64));
        let scale = f64::from(path.scale(layer, ScaleUse::HadOut).unwrap().get());
        store(&v, like, scale, Round::Away)
    })
}

fn norm(change: fn(&mut Vec<f64>, &mut f64, &mut bool)) -> Make {
    Box::new(move |path, layer, seen, _, like| {
        let r = seen[&P::ResidualOut].to_real().mapv(f64::from);
        let mut w: Vec<f64> = path
            .norm_weight(layer)
            .iter()
            .map(|v| f64::from(*v))
            .collect();
        let mut eps = f64::from(path.config().eps);
        let mut centred = false;
        change(&mut w, &mut eps, &mut centred);
        let mut out = r.clone();
        for mut row in out.rows_mut() {
            let m = row.len() as f64;
            if centred {
                let mean = row.sum() / m;
                row.mapv_inplace(|v| v - mean);
            }
            let rms = (row.iter().map(|v| v * v).sum::<f64>() / m + eps).sqrt();
            row.iter_mut().zip(&w).for_each(|(v, w)| *v = *v / rms * w);
        }
        let scale = f64::from(path.scale(layer, ScaleUse::NormOut).unwrap().get());
        store(&out, like, scale, Round::Even)
    })
}

/// The faultless result where a test says so, else a fault's.
fn only(make: Make, here: fn(usize, usize) -> bool) -> Make {
    Box::new(move |path, layer, seen, point, like| {
        let faulty = make(path, layer, seen, point, like);
        if point.is_state() {
            return like.clone();
        }
        match (faulty, like) {
            (Tensor::I8(mut q), Tensor::I8(own)) => {
                for (at, v) in q.codes.indexed_iter_mut() {
                    if !here(at.0, at.1) {
                        *v = own.codes[at];
                    }
                }
                Tensor::I8(q)
            }
            (Tensor::F16(mut a), Tensor::F16(own)) => {
                for (at, v) in a.indexed_iter_mut() {
                    if !here(at.0, at.1) {
                        *v = own[at];
                    }
                }
                Tensor::F16(a)
            }
            (other, _) => other,
        }
    })
}

struct Case {
    name: &'static str,
    step: &'static str,
    points: &'static [P],
    /// Kinds and sites, any of which is right; none for what is not searched.
    right: &'static [(&'static str, &'static str)],
    /// Whether tokens and channels are a part.
    part: [bool; 2],
    make: Make,
}

const NO: [bool; 2] = [false, false];
const SCAN: &[P] = &[P::SsmY, P::SsmState];

fn case(
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
    }
}

fn bits(change: fn(usize, usize, i8) -> i8) -> Make {
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

fn cases() -> Vec<Case> {
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
            "conv oldest tap missing" | "conv tile of 16" | "scan tile of 32" => [true, false],
            "out_proj one weight" | "in_proj one weight" => [false, true],
            _ => case.part,
        };
    }
    all_cases
}

fn tokens(length: usize, seed: u64) -> Vec<u32> {
    let mut state = seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1;
    (0..length)
        .map(|_| {
            state = state
                .wrapping_mul(6364136223846793005)
                .wrapping_add(1442695040888963407);
            (state >> 33) as u32 % 8192
        })
        .collect()
}

#[derive(Clone, Copy, PartialEq)]
enum Sort {
    Full,
    Three,
    Outputs,
}

fn selection(sort: Sort) -> Selection {
    let points = match sort {
        Sort::Full => None,
        Sort::Three => Some(vec![P::ConvOut, P::ConvOutF32, P::SsmY, P::OutProjOut]),
        Sort::Outputs => Some(vec![P::OutProjOut]),
    };
    Selection {
        layers: None,
        points,
    }
}

fn trace(tokens: &[u32], recorder: Recorder) -> TraceFile {
    let ids = Array2::from_shape_vec((1, tokens.len()), tokens.to_vec()).unwrap();
    let mut trace = TraceFile::from_recorders(ids, [recorder]).unwrap();
    trace.scales.clear();
    trace
}

fn dump(path: &Datapath, layer: usize, case: &Case, tokens: &[u32], sort: Sort) -> TraceFile {
    let mut probe = Faulty {
        path,
        layer,
        points: case.points,
        make: &case.make,
        seen: Seen::new(),
        recorder: Recorder::new(selection(sort)),
    };
    path.prefill(tokens, LogitRows::None, &mut probe).unwrap();
    trace(tokens, probe.recorder)
}

fn is_right(finding: &Finding, case: &Case, layer: usize) -> bool {
    finding.layer == Some(layer)
        && case
            .right
            .iter()
            .any(|(kind, site)| (finding.kind, &finding.site[..]) == (*kind, *site))
}

#[derive(Default)]
struct Rates {
    cases: usize,
    placed: usize,
    patterns: usize,
    first: usize,
    three: usize,
    searched: usize,
    wrong: usize,
    seconds: Vec<f64>,
}

impl Rates {
    fn print(&mut self, name: &str) {
        self.seconds.sort_by(f64::total_cmp);
        let median = self
            .seconds
            .get(self.seconds.len() / 2)
            .copied()
            .unwrap_or(0.0);
        let worst = self.seconds.last().copied().unwrap_or(0.0);
        println!(
            "| {name} | {} | {} | {} | {} of {} | {} | {} | {median:.1} s, at most {worst:.1} s |",
            self.cases,
            self.placed,
            self.patterns,
            self.first,
            self.searched,
            self.three,
            self.wrong
        );
    }
}

fn run(cases: &[Case], sort: Sort, modes: &[(&str, &str)], length: usize) -> Rates {
    let model = sample::model();
    let table = ModeTable::default();
    let mut rates = Rates::default();
    for (i, case) in cases.iter().enumerate() {
        let (mode, profile) = modes[i % modes.len()];
        let mode = table.get(mode).unwrap();
        let path = Datapath::new(&model, mode, &Profile::get(profile).unwrap()).unwrap();
        let layer = (i * 5 + 1) % 12;
        let tokens = tokens(length, i as u64 + 1);
        let file = dump(&path, layer, case, &tokens, sort);
        let begun = Instant::now();
        let found = diagnose(&model, mode, &file, PROFILES).unwrap();
        rates.seconds.push(begun.elapsed().as_secs_f64());
        let first = &found.findings[0];
        let at = found.findings.iter().position(|f| is_right(f, case, layer));
        let placed = first.layer == Some(layer) && first.step == Some(case.step);
        let pattern = first
            .pattern
            .as_ref()
            .is_some_and(|p| [p.tokens.is_part(), p.channels.is_part()] == case.part);
        let named = first.severity == Severity::Error && first.kind != "none" && at != Some(0);
        rates.cases += 1;
        rates.placed += usize::from(placed);
        rates.patterns += usize::from(pattern);
        rates.searched += usize::from(!case.right.is_empty());
        rates.first += usize::from(at == Some(0));
        rates.three += usize::from(at.is_some_and(|at| at < 3));
        rates.wrong += usize::from(named);
        if !placed
            || named
            || !pattern && sort == Sort::Full
            || !case.right.is_empty() && at != Some(0)
        {
            println!(
                "   {} (mode {}, {profile}, block {layer}): {placed} {pattern} {at:?}, {:.1} s",
                case.name,
                mode.name,
                rates.seconds.last().unwrap()
            );
            for f in found.findings.iter().take(3) {
                println!("      {} {} {}: {}", f.severity, f.kind, f.site, f.evidence);
            }
        }
    }
    rates
}

/// The rates of docs/diagnosis-catalogue.md.
#[test]
#[ignore = "minutes: measures the rates in the documentation"]
fn grid() {
    let wanted = std::env::var("SCALESCOPE_GRID").unwrap_or_default();
    let is = |name: &str| wanted.is_empty() || wanted.contains(name);
    println!(
        "| dumps | cases | step and block | pattern | edit first | among three | named wrongly | time |"
    );
    let mut all = cases();
    if let Ok(name) = std::env::var("SCALESCOPE_CASE") {
        all.retain(|case| case.name.contains(&name));
    }
    let int8 = [
        ("0", "exact"),
        ("2-1", "exact"),
        ("0", "deployed"),
        ("2-0", "exact"),
    ];
    if is("full") {
        run(&all, Sort::Full, &int8, 64).print("every tensor");
    }
    if is("three") {
        run(&all, Sort::Three, &int8, 64).print("conv_out, ssm_y, out_proj_out");
    }
    if is("outputs") {
        run(&all, Sort::Outputs, &int8, 64).print("out_proj_out");
    }
    if is("scales") {
        scales();
    }
    if is("quiet") {
        quiet();
    }
}

/// Stale scales of small factors.
fn scales() {
    let model = sample::model();
    let table = ModeTable::default();
    let (mut right, mut all) = (0, 0);
    let mut seconds = Vec::new();
    for (i, by) in [
        "norm_out",
        "in_proj_in",
        "conv_in",
        "conv_out",
        "x_proj_in",
        "dt_proj_in",
        "scan_dt",
        "scan_u",
        "scan_b",
        "scan_c",
        "scan_z",
        "had_out",
        "out_proj_in",
        "state_out",
    ]
    .into_iter()
    .enumerate()
    {
        for factor in [1.01, 0.93, 1.13] {
            let (mode, layer) = (["0", "2-1", "2-4", "3"][i % 4], (i * 5 + 2) % 12);
            let mode = table.get(mode).unwrap();
            let profile = Profile::get(["exact", "deployed"][i % 2]).unwrap();
            let fault: Fault = format!("stale-scale@layer={layer},site={by},factor={factor}")
                .parse()
                .unwrap();
            let path = Datapath::with_faults(&model, mode, &profile, &[fault]).unwrap();
            let clean = Datapath::new(&model, mode, &profile).unwrap();
            let ids = tokens(64, i as u64);
            let of = |path: &Datapath| {
                let mut recorder = Recorder::new(Selection::default());
                path.prefill(&ids, LogitRows::None, &mut recorder).unwrap();
                trace(&ids, recorder)
            };
            let file = of(&path);
            if file == of(&clean) {
                continue;
            }
            let begun = Instant::now();
            let found = diagnose(&model, mode, &file, PROFILES).unwrap();
            seconds.push(begun.elapsed().as_secs_f64());
            let first = &found.findings[0];
            all += 1;
            let ok = first.kind == "stale-scale"
                && first.layer == Some(layer)
                && first.severity == Severity::Error;
            right += usize::from(ok);
            if !ok {
                println!(
                    "   {fault} mode {}: {} {} {}",
                    mode.name, first.severity, first.kind, first.evidence
                );
            }
        }
    }
    seconds.sort_by(f64::total_cmp);
    println!(
        "| stale scales of 1.01, 0.93, 1.13 | {right} of {all} named | median {:.1} s |",
        seconds[seconds.len() / 2]
    );
}

/// Dumps without a fault, with floats an ulp off in one of fifty: full and sparse.
fn quiet() {
    let model = sample::model();
    let (mut errors, mut all) = (0, 0);
    let mut seconds = Vec::new();
    for (i, mode) in MODES.iter().filter(|m| m.needs_quantized()).enumerate() {
        for (k, sort) in [Sort::Full, Sort::Three, Sort::Outputs]
            .into_iter()
            .enumerate()
        {
            for flows in [false, true] {
                let profile = &PROFILES[(i + k) % PROFILES.len()];
                let path = Datapath::new(&model, mode, profile).unwrap();
                let ids = tokens(64, 77 + i as u64);
                let mut probe = Shaken {
                    flows,
                    dice: 12345 + i as u64,
                    recorder: Recorder::new(selection(sort)),
                    blocks: if i % 3 == 2 {
                        vec![0, 6, 11]
                    } else {
                        (0..12).collect()
                    },
                };
                path.prefill(&ids, LogitRows::None, &mut probe).unwrap();
                let mut recorder = probe.recorder;
                recorder
                    .tensors
                    .retain(|place, _| place.layer.is_none_or(|l| probe.blocks.contains(&l)));
                let file = trace(&ids, recorder);
                let begun = Instant::now();
                let found = diagnose(&model, mode, &file, PROFILES).unwrap();
                seconds.push(begun.elapsed().as_secs_f64());
                all += 1;
                let wrong: Vec<&Finding> = found
                    .findings
                    .iter()
                    .filter(|f| f.severity == Severity::Error)
                    .collect();
                errors += usize::from(!wrong.is_empty());
                if let Some(f) = wrong.first() {
                    let sort = match sort {
                        Sort::Full => "full",
                        Sort::Three => "three",
                        Sort::Outputs => "outputs",
                    };
                    println!(
                        "   mode {} {} {sort} flows {flows} blocks {}: {} {} {}",
                        mode.name,
                        profile.name,
                        probe.blocks.len(),
                        f.severity,
                        f.kind,
                        f.evidence
                    );
                }
            }
        }
    }
    seconds.sort_by(f64::total_cmp);
    println!(
        "| y an ulp off in 2 % | {errors} errors in {all} | median {:.1} s, at most {:.1} s |",
        seconds[seconds.len() / 2],
        seconds[seconds.len() - 1]
    );
}

struct Shaken {
    flows: bool,
    dice: u64,
    recorder: Recorder,
    blocks: Vec<usize>,
}

impl Probe for Shaken {
    fn wants(&self, place: Place) -> bool {
        self.recorder.wants(place) || place.point == P::SsmY
    }

    fn visit(&mut self, place: Place, value: &mut Tensor) -> Result<()> {
        let own = value.clone();
        if place.point == P::SsmY
            && let Tensor::F16(y) = value
        {
            for v in y.iter_mut() {
                self.dice = self
                    .dice
                    .wrapping_mul(6364136223846793005)
                    .wrapping_add(1442695040888963407);
                if (self.dice >> 33) % 50 == 0 && v.to_f32() != 0.0 {
                    *v = f16::from_bits(v.to_bits() ^ 1);
                }
            }
        }
        if self.recorder.wants(place) {
            self.recorder.visit(place, value)?;
        }
        if !self.flows {
            *value = own;
        }
        Ok(())
    }
}

fn clean(mode: &str, profile: &str, length: usize) -> TraceFile {
    let model = sample::model();
    let table = ModeTable::default();
    let profile = Profile::get(profile).unwrap();
    let path = Datapath::new(&model, table.get(mode).unwrap(), &profile).unwrap();
    let ids = tokens(length, 5);
    let mut recorder = Recorder::new(Selection::default());
    path.prefill(&ids, LogitRows::None, &mut recorder).unwrap();
    trace(&ids, recorder)
}

fn first_of(file: &TraceFile, mode: &str, profile: &str) -> Finding {
    let model = sample::model();
    let table = ModeTable::default();
    let profile = Profile::get(profile).unwrap();
    let found = diagnose(&model, table.get(mode).unwrap(), file, &[profile]).unwrap();
    found.findings[0].clone()
}

/// Files that are wrong as files are named once, by what is wrong with all of them.
#[test]
fn wrong_files_are_named_once() {
    let file = clean("0", "exact", 24);
    let mut late = file.clone();
    for (place, value) in &mut late.sequences[0] {
        if let (Value::I8(a), false) = (value, place.point.is_state()) {
            let before = a.clone();
            for t in 1..a.nrows() {
                a.row_mut(t).assign(&before.row(t - 1));
            }
        }
    }
    late.sequences[0].retain(|place, value| value.dtype() == "i8" && !place.point.is_state());
    assert_eq!(first_of(&late, "0", "exact").kind, "file-late");
    let mut from_1 = file.clone();
    from_1.sequences[0] = (file.sequences[0].iter())
        .map(|(place, value)| {
            let layer = place.layer.map(|layer| layer + 1);
            (Place { layer, ..*place }, value.clone())
        })
        .collect();
    assert_eq!(first_of(&from_1, "0", "exact").kind, "file-numbered-from-1");
    let mut floats = file;
    for value in floats.sequences[0].values_mut() {
        if let Value::I8(a) = value {
            *value = Value::F32(a.mapv(f32::from));
        }
    }
    let model = sample::model();
    let table = ModeTable::default();
    let found = diagnose(&model, table.get("0").unwrap(), &floats, &PROFILES[..1]).unwrap();
    assert_eq!(found.mismatched, 0);
    let kinds: Vec<&str> = found.findings.iter().map(|f| f.kind).collect();
    assert_eq!(kinds, ["none", "file-types"]);
}

/// A fault of no fault model is named with its step, pattern and edit.
#[test]
fn a_missing_bias_is_named() {
    let all = cases();
    let case = all.iter().find(|c| c.name == "conv bias missing").unwrap();
    let model = sample::model();
    let table = ModeTable::default();
    let exact = Profile::get("exact").unwrap();
    let path = Datapath::new(&model, table.get("0").unwrap(), &exact).unwrap();
    let file = dump(&path, 2, case, &tokens(16, 3), Sort::Full);
    let found = first_of(&file, "0", "exact");
    assert!(is_right(&found, case, 2), "{found:#?}");
    assert_eq!(found.edit.as_deref(), Some("the bias is missing"));
    let explained = found.explained.unwrap();
    assert_eq!(explained.explained, explained.deviating);
    assert_eq!(found.step, Some("conv"));
}

/// The file of `SCALESCOPE_DUMP`, in the mode of `SCALESCOPE_MODE`.
#[test]
#[ignore = "reads a file of somebody's"]
fn of_a_file() {
    let path = std::env::var("SCALESCOPE_DUMP").expect("SCALESCOPE_DUMP=dump.npz");
    let mode = std::env::var("SCALESCOPE_MODE").unwrap_or("0".into());
    let file = TraceFile::read(path).unwrap();
    let table = ModeTable::default();
    let begun = Instant::now();
    let found = diagnose(&sample::model(), table.get(&mode).unwrap(), &file, PROFILES).unwrap();
    println!(
        "{:.1} s, profile {}",
        begun.elapsed().as_secs_f64(),
        found.profile
    );
    for f in &found.findings {
        println!(
            "{} {} {:?} {}: {}",
            f.severity, f.kind, f.layer, f.site, f.evidence
        );
    }
}

/// Profiles read off clean dumps of theirs.
#[test]
#[ignore = "minutes: reads the built-in profiles off their dumps"]
fn identified() {
    let table = ModeTable::default();
    let model = sample::model();
    let mut names: Vec<(String, Option<&str>)> = [
        "exact",
        "torch",
        "deployed",
        "asic-int8",
        "tflite-single",
        "tflite-double",
        "pow2",
    ]
    .map(|name| (name.to_owned(), None))
    .to_vec();
    names.extend(
        DRAWN
            .iter()
            .enumerate()
            .map(|(i, text)| (format!("drawn {i}"), Some(*text))),
    );
    for (name, text) in names {
        let profile = match text {
            Some(text) => Profile::from_toml(&name, &format!("version = 1\n{text}")).unwrap(),
            None => Profile::get(&name).unwrap(),
        };
        let path = Datapath::new(&model, table.get("0").unwrap(), &profile).unwrap();
        let ids = tokens(64, 9);
        let mut recorder = Recorder::new(Selection::default());
        path.prefill(&ids, LogitRows::None, &mut recorder).unwrap();
        let file = trace(&ids, recorder);
        let begun = Instant::now();
        let found = identify(&model, table.get("0").unwrap(), &file).unwrap();
        let same = Profile::from_toml("found", &found.toml).unwrap().hash() == profile.hash();
        println!(
            "{name}: {} of {} not made, the same rules: {same}, {:.1} s: {}",
            found.mismatched,
            found.compared,
            begun.elapsed().as_secs_f64(),
            found.toml.replace('\n', "; ")
        );
    }
}

/// Profiles drawn from the rules.
const DRAWN: &[&str] = &[
    "requant.scaling = \"fixed\"\nrequant.multiplier_bits = 12\nrequant.rounding = \"floor\"",
    "requant.x_proj.rounding = \"toward-zero\"\naccumulator.in_proj.bits = 18\naccumulator.in_proj.overflow = \"saturate\"",
    "scan.state = \"f16\"\nquantizer.rounding = \"nearest-ties-up\"",
    "scan.state = \"int16\"\nscan.headroom = 1\nhadamard.form = \"integer\"\nhadamard.bits = 14",
    "nonlinearity.silu.form = \"table\"\nnonlinearity.silu.entries = 64\nrequant.conv.scaling = \"fixed\"\nrequant.conv.multiplier_bits = 16",
    "scan.order = \"chunked\"\nscan.block = 16\nscan.state = \"f16\"",
];
