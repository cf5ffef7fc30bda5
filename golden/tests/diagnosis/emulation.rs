//! Steps in f64, as somebody else would write them, and how they are put into a run.

use half::f16;
use ndarray::{Array2, Array3, Axis};
use scalescope_sim::dataflow::Step;
use scalescope_sim::datapath::Datapath;
use scalescope_sim::error::Result;
use scalescope_sim::plan::ScaleUse;
use scalescope_sim::trace::{Place, Probe, Recorder, Tensor, TracePoint as P};
use std::collections::BTreeMap;

pub type Seen = BTreeMap<P, Tensor>;
pub type Make = Box<dyn Fn(&Datapath, usize, &Seen, P, &Tensor) -> Tensor + Send + Sync>;

/// Puts a fault into one block and records what follows.
pub struct Faulty<'a, 'm> {
    pub path: &'a Datapath<'m>,
    pub layer: usize,
    pub points: &'a [P],
    pub make: &'a Make,
    /// Whether the dump has the tensors as they were.
    pub reading: bool,
    pub seen: Seen,
    pub recorder: Recorder,
}

impl Probe for Faulty<'_, '_> {
    fn wants(&self, _: Place) -> bool {
        true
    }

    fn visit(&mut self, place: Place, value: &mut Tensor) -> Result<()> {
        let own = value.clone();
        if place.layer == Some(self.layer) {
            if self.points.contains(&place.point) {
                *value = (self.make)(self.path, self.layer, &self.seen, place.point, value);
            }
            self.seen.insert(place.point, value.clone());
        }
        if self.recorder.wants(place) {
            let mut seen = if self.reading { own } else { value.clone() };
            self.recorder.visit(place, &mut seen)?;
        }
        Ok(())
    }
}

/// Real values of a tensor, codes in steps of the scale of a use.
pub fn real(path: &Datapath, layer: usize, tensor: &Tensor, by: ScaleUse) -> Array2<f64> {
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
pub enum Round {
    Even,
    Away,
    Floor,
    Zero,
}

pub fn store(values: &Array2<f64>, like: &Tensor, scale: f64, round: Round) -> Tensor {
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

pub fn silu(v: f64) -> f64 {
    v / (1.0 + (-v).exp())
}

pub struct Conv {
    pub x: Array2<f64>,
    pub w: Array2<f64>,
    pub bias: Vec<f64>,
}

pub fn conv_parts(path: &Datapath, layer: usize, seen: &Seen) -> Conv {
    let weight = path.conv_weight(layer);
    let (w, _) = weight.tensors().unwrap();
    let e = weight.channels();
    let x = match (seen.get(&P::ConvIn), seen.get(&P::ConvInScale)) {
        // Codes with scales that were found at run time.
        (Some(Tensor::Codes(codes)), Some(scales)) => {
            let scales = scales.to_real();
            Array2::from_shape_fn(codes.dim(), |(t, c)| {
                f64::from(scales[(t.min(scales.nrows() - 1), 0)]) * f64::from(codes[(t, c)])
            })
        }
        _ => {
            let x = seen.get(&P::InProjOut).or(seen.get(&P::InProjX)).unwrap();
            real(path, layer, x, ScaleUse::ConvIn)
        }
    };
    Conv {
        x: x.slice(ndarray::s![.., ..e]).to_owned(),
        w: w.codes.mapv(|c| f64::from(w.scale.get()) * f64::from(c)),
        bias: (0..e).map(|c| f64::from(weight.bias(c))).collect(),
    }
}

impl Conv {
    pub fn run(&self, tile: usize, act: impl Fn(f64) -> f64) -> Array2<f64> {
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
pub fn conv(
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

pub struct Lin {
    pub x: Array2<f64>,
    pub w: Array2<f64>,
    pub unit: f64,
}

/// What a linear step multiplies: the codes of its input and of its weight.
pub fn lin_parts(
    path: &Datapath,
    layer: usize,
    seen: &Seen,
    step: Step,
    (input, reads): (P, ScaleUse),
) -> Lin {
    let all: Vec<_> = path.linear_weights(layer, step);
    let rows: Vec<_> = all.iter().map(|w| w.stored().unwrap()).collect();
    let codes: Vec<_> = rows.iter().map(|w| w.codes.view()).collect();
    let w = ndarray::concatenate(ndarray::Axis(0), &codes).unwrap();
    let Tensor::I8(x) = &seen[&input] else {
        panic!("codes")
    };
    let k = w.ncols();
    Lin {
        x: x.codes.slice(ndarray::s![.., ..k]).mapv(f64::from),
        w: w.mapv(f64::from),
        unit: f64::from(path.scale(layer, reads).unwrap().get())
            * f64::from(rows[0].scales[0].get()),
    }
}

/// A linear step: codes in, codes or reals out.
pub fn linear(
    step: Step,
    input: P,
    (reads, writes): (ScaleUse, Option<ScaleUse>),
    round: Round,
    change: impl Fn(&Datapath, usize, &mut Lin) + Send + Sync + 'static,
    after: fn(usize, usize, f64) -> f64,
) -> Make {
    Box::new(move |path, layer, seen, _, like| {
        let mut lin = lin_parts(path, layer, seen, step, (input, reads));
        change(path, layer, &mut lin);
        let unit = lin.unit;
        let v = lin.x.dot(&lin.w.t()).mapv(|v| v * unit);
        let scale = writes.map_or(1.0, |by| f64::from(path.scale(layer, by).unwrap().get()));
        let v = Array2::from_shape_fn(v.dim(), |(t, c)| scale * after(t, c, v[(t, c)] / scale));
        store(&v, like, scale, round)
    })
}

pub fn as_is(_: usize, _: usize, v: f64) -> f64 {
    v
}

#[derive(Clone)]
pub struct Scan {
    pub u: Array2<f64>,
    pub dt: Array2<f64>,
    pub b: Array2<f64>,
    pub c: Array2<f64>,
    pub z: Array2<f64>,
    pub a: Array2<f64>,
    pub d: Vec<f64>,
    pub bias: Vec<f64>,
    pub softplus: fn(f64) -> f64,
    pub gate: fn(f64) -> f64,
    pub state: fn(f64, f64) -> f64,
    pub tile: usize,
    pub states: usize,
    /// Whether the input decays with the state.
    pub input_decays: bool,
    pub step: f64,
}

pub fn scan_parts(path: &Datapath, layer: usize, seen: &Seen) -> Scan {
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
    let xz = seen.get(&P::InProjOut).or(seen.get(&P::InProjZ)).unwrap();
    let xz = real(path, layer, xz, ScaleUse::ScanZ);
    let u = [P::SsmU, P::ConvOutF32, P::ConvOut];
    let u = u.iter().find_map(|point| seen.get(point)).unwrap();
    Scan {
        u: real(path, layer, u, ScaleUse::ScanU),
        dt: real(path, layer, &seen[&P::DtProjOut], ScaleUse::ScanDt),
        b: x.slice(ndarray::s![.., r..r + n]).to_owned(),
        c: x.slice(ndarray::s![.., r + n..]).to_owned(),
        z: xz.slice(ndarray::s![.., xz.ncols() - e..]).to_owned(),
        a: a.codes
            .mapv(|c| (f64::from(a.scale.get()) * f64::from(c)).exp()),
        d: of(&d),
        bias: of(&bias),
        softplus: |v| v.exp().ln_1p(),
        gate: silu,
        state: |v, _| v,
        tile: usize::MAX,
        states: n,
        input_decays: false,
        step: f64::from(path.scale(layer, ScaleUse::StateOut).unwrap().get()),
    }
}

impl Scan {
    pub fn delta(&self, t: usize, c: usize) -> f64 {
        (self.softplus)(self.dt[(t, c)] + self.bias[c])
    }

    /// The state of a channel that follows a state.
    pub fn next(&self, [t, c, i]: [usize; 3], x: f64) -> f64 {
        let delta = self.delta(t, c);
        let decay = (-self.a[(c, i)] * delta).exp();
        let input = self.b[(t, i)] * delta * self.u[(t, c)];
        match self.input_decays {
            true => decay * (x + input),
            false => decay * x + input,
        }
    }

    /// The states after each token, `[L, E, N]`, by a rule that makes the next one.
    pub fn states(&self, next: impl Fn(&Self, [usize; 3], f64) -> f64) -> Array3<f64> {
        let (l, e) = self.u.dim();
        let n = self.b.ncols();
        let mut all = Array3::zeros((l, e, n));
        for c in 0..e {
            for t in 0..l {
                for i in 0..n {
                    let x = match t % self.tile {
                        0 => 0.0,
                        _ => all[(t - 1, c, i)],
                    };
                    all[(t, c, i)] = (self.state)(next(self, [t, c, i], x), self.step);
                }
            }
        }
        all
    }

    /// The gated output of states.
    pub fn output(&self, states: &Array3<f64>) -> Array2<f64> {
        Array2::from_shape_fn(self.u.dim(), |(t, c)| {
            let mut out = self.d[c] * self.u[(t, c)];
            for i in 0..self.states {
                out += states[(t, c, i)] * self.c[(t, i)];
            }
            out * (self.gate)(self.z[(t, c)])
        })
    }

    /// What the scan shows at a point.
    pub fn stored(&self, y: &Array2<f64>, states: &Array3<f64>, point: P, like: &Tensor) -> Tensor {
        let last = || states.index_axis(Axis(0), states.dim().0 - 1).to_owned();
        match point {
            P::SsmY => store(y, like, 1.0, Round::Even),
            _ => store(&last(), like, self.step, Round::Away),
        }
    }
}

pub fn scan(change: impl Fn(&Datapath, usize, &Seen, &mut Scan) + Send + Sync + 'static) -> Make {
    Box::new(move |path, layer, seen, point, like| {
        let mut s = scan_parts(path, layer, seen);
        change(path, layer, seen, &mut s);
        let states = s.states(Scan::next);
        s.stored(&s.output(&states), &states, point, like)
    })
}

pub fn hadamard(change: fn(usize, usize, f64) -> f64, factor: fn(f64) -> f64) -> Make {
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

pub fn norm(change: fn(&mut Vec<f64>, &mut f64, &mut bool)) -> Make {
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
pub fn only(make: Make, here: fn(usize, usize) -> bool) -> Make {
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
