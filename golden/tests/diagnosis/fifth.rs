//! Faults of a fifth list, by somebody who has seen neither the search nor the lists before: what is met when a
//! quantized block is ported to kernels, RTL, compilers of chips and converters. What a good engineer would call
//! each is said in a sentence above it.

mod effect;
mod front;
mod linears;
mod rest;
mod scan;

use super::cases::{Case, Into};
use super::emulation::*;
use ndarray::{Array2, Array3};
use scalescope_sim::arith::hadamard::HadamardSize;
use scalescope_sim::dataflow::Step;
use scalescope_sim::datapath::Datapath;
use scalescope_sim::model::QuantizedModel;
use scalescope_sim::plan::ScaleUse as U;
use scalescope_sim::quant::{QTensor, QWeight};
use scalescope_sim::trace::{Tensor, TracePoint as P};

/// Whether tokens and channels that deviate are a part.
type Part = [bool; 2];
const ALL: Part = [false, false];
const TOKENS: Part = [true, false];
const CHANNELS: Part = [false, true];

pub fn fifth() -> Vec<Case> {
    let mut all = List(Vec::new());
    all.norm();
    all.in_proj();
    all.conv();
    all.x_proj();
    all.dt_proj();
    all.scan();
    all.outputs_of_the_scan();
    all.rotation();
    all.out_proj();
    all.0
}

struct List(Vec<Case>);

type On = (&'static str, &'static str);
/// What deviates, and the names of which any is right.
type Named = (Part, &'static [(&'static str, &'static str)]);

impl List {
    /// A step that makes something else.
    fn made(
        &mut self,
        name: &'static str,
        (step, points): (&'static str, &'static [P]),
        on: On,
        (part, right): Named,
        make: Make,
    ) {
        self.0.push(Case {
            name,
            step,
            points,
            right,
            part,
            make,
            into: Into::Output,
            on: Some(on),
        });
    }

    /// Parameters of a block that are others.
    fn model(
        &mut self,
        name: &'static str,
        step: &'static str,
        on: On,
        (part, right): Named,
        change: fn(&mut QuantizedModel, usize),
    ) {
        self.0.push(Case {
            name,
            step,
            points: &[],
            right,
            part,
            make: Box::new(|_, _, _, _, like| like.clone()),
            into: Into::Model(change),
            on: Some(on),
        });
    }
}

/// The codes of a weight of eight bits.
fn codes(weight: &mut QWeight) -> &mut Array2<i8> {
    match weight {
        QWeight::Int8(weight) => &mut weight.codes,
        QWeight::Int4(_) => panic!("a weight of eight bits"),
    }
}

/// The device's own value where the fault makes no difference, else the fault's: but for its fault a device computes
/// by its own arithmetic, which an emulation in f64 misses by a last bit here and there.
fn beside(own: &Tensor, clean: &Tensor, faulty: Tensor) -> Tensor {
    match (own, clean, faulty) {
        (Tensor::I8(own), Tensor::I8(clean), Tensor::I8(faulty)) => Tensor::I8(QTensor {
            codes: chosen(&own.codes, &clean.codes, &faulty.codes),
            scale: own.scale,
        }),
        (Tensor::F16(own), Tensor::F16(clean), Tensor::F16(faulty)) => {
            Tensor::F16(chosen(own, clean, &faulty))
        }
        (Tensor::F32(own), Tensor::F32(clean), Tensor::F32(faulty)) => {
            Tensor::F32(chosen(own, clean, &faulty))
        }
        (_, _, faulty) => faulty,
    }
}

fn chosen<T: Copy + PartialEq>(
    own: &Array2<T>,
    clean: &Array2<T>,
    faulty: &Array2<T>,
) -> Array2<T> {
    Array2::from_shape_fn(own.dim(), |at| match clean[at] == faulty[at] {
        true => own[at],
        false => faulty[at],
    })
}

fn scale(path: &Datapath, layer: usize, by: U) -> f64 {
    f64::from(path.scale(layer, by).unwrap().get())
}

/// RMSNorm's input and parameters.
struct Norm {
    r: Array2<f64>,
    w: Vec<f64>,
    eps: f64,
}

impl Norm {
    /// The mean of squares and ε.
    fn mean(&self, t: usize) -> f64 {
        let squares: f64 = self.r.row(t).iter().map(|v| v * v).sum();
        squares / self.r.ncols() as f64 + self.eps
    }

    /// Every row times a factor of its own.
    fn times(&self, factor: impl Fn(usize) -> f64) -> Array2<f64> {
        let factors: Vec<f64> = (0..self.r.nrows()).map(factor).collect();
        Array2::from_shape_fn(self.r.dim(), |(t, c)| {
            self.r[(t, c)] * factors[t] * self.w[c]
        })
    }
}

/// A fault of the norm: its output from its parts, and how that is rounded.
fn normed(round: Round, fault: impl Fn(&Norm) -> Array2<f64> + Send + Sync + 'static) -> Make {
    Box::new(move |path, layer, seen, _, like| {
        let norm = Norm {
            r: seen[&P::ResidualOut].to_real().mapv(f64::from),
            w: path
                .norm_weight(layer)
                .iter()
                .map(|v| f64::from(*v))
                .collect(),
            eps: f64::from(path.config().eps),
        };
        let scale = scale(path, layer, U::NormOut);
        let clean = norm.times(|t| norm.mean(t).sqrt().recip());
        let clean = store(&clean, like, scale, Round::Even);
        beside(like, &clean, store(&fault(&norm), like, scale, round))
    })
}

/// A linear step: what it reads and writes.
#[derive(Clone, Copy)]
struct Site {
    name: &'static str,
    points: &'static [P],
    step: Step,
    /// The last of these that the run has.
    inputs: &'static [P],
    reads: U,
    writes: Option<U>,
}

impl Site {
    fn at(self) -> (&'static str, &'static [P]) {
        (self.name, self.points)
    }
}

/// A product of codes, `x · wᵀ`, whose sums are in a unit; the output's in a scale.
struct Product<'a, 'm> {
    path: &'a Datapath<'m>,
    layer: usize,
    seen: &'a Seen,
    x: Array2<f64>,
    w: Array2<f64>,
    unit: f64,
    scale: f64,
}

impl Product<'_, '_> {
    fn sums(&self) -> Array2<f64> {
        self.x.dot(&self.w.t())
    }

    /// Sums over inputs from, to.
    fn sums_of(&self, from: usize, to: usize) -> Array2<f64> {
        let part = ndarray::s![.., from..to];
        self.x.slice(part).dot(&self.w.slice(part).t())
    }

    fn real(&self, sums: &Array2<f64>) -> Array2<f64> {
        sums.mapv(|v| v * self.unit)
    }
}

/// A fault of a linear step: its real output, and how that is rounded.
fn product(
    site: Site,
    round: Round,
    fault: impl Fn(&Product) -> Array2<f64> + Send + Sync + 'static,
) -> Make {
    Box::new(move |path, layer, seen, _, like| {
        let input = site.inputs.iter().rfind(|point| seen.contains_key(*point));
        let lin = lin_parts(path, layer, seen, site.step, (*input.unwrap(), site.reads));
        let product = Product {
            path,
            layer,
            seen,
            x: lin.x,
            w: lin.w,
            unit: lin.unit,
            scale: site.writes.map_or(1.0, |by| scale(path, layer, by)),
        };
        let clean = product.real(&product.sums());
        let clean = store(&clean, like, product.scale, Round::Even);
        let faulty = store(&fault(&product), like, product.scale, round);
        beside(like, &clean, faulty)
    })
}

/// A fault of the convolution: its real output from its parts.
fn convolved(
    fault: impl Fn(&Datapath, usize, &Seen, &Conv) -> Array2<f64> + Send + Sync + 'static,
) -> Make {
    Box::new(move |path, layer, seen, _, like| {
        let parts = conv_parts(path, layer, seen);
        let scale = scale(path, layer, U::ConvOut);
        let clean = store(&parts.run(usize::MAX, silu), like, scale, Round::Away);
        let faulty = fault(path, layer, seen, &parts);
        beside(like, &clean, store(&faulty, like, scale, Round::Away))
    })
}

/// Sums of a convolution whose taps read x as a function of the token, which may lie before the first, and the channel.
fn tapped(parts: &Conv, x: impl Fn(isize, usize) -> f64) -> Array2<f64> {
    let (e, k) = parts.w.dim();
    Array2::from_shape_fn((parts.x.nrows(), e), |(t, c)| {
        (0..k).fold(parts.bias[c], |sum, tap| {
            let at = (t + tap + 1) as isize - k as isize;
            sum + parts.w[(c, tap)] * x(at, c)
        })
    })
}

/// Rows of x, zeros before the first and after the last.
fn padded(parts: &Conv) -> impl Fn(isize, usize) -> f64 {
    move |t, c| match usize::try_from(t) {
        Ok(t) if t < parts.x.nrows() => parts.x[(t, c)],
        _ => 0.0,
    }
}

struct At<'a, 'm> {
    path: &'a Datapath<'m>,
    layer: usize,
    seen: &'a Seen,
}

/// A fault of the scan: y and the states after each token.
fn recurred(
    fault: impl Fn(&At, &Scan) -> (Array2<f64>, Array3<f64>) + Send + Sync + 'static,
) -> Make {
    Box::new(move |path, layer, seen, point, like| {
        let s = scan_parts(path, layer, seen);
        let states = s.states(Scan::next);
        let clean = s.stored(&s.output(&states), &states, point, like);
        let (y, states) = fault(&At { path, layer, seen }, &s);
        beside(like, &clean, s.stored(&y, &states, point, like))
    })
}

/// A scan with other parts.
fn changed(change: impl Fn(&At, &mut Scan) + Send + Sync + 'static) -> Make {
    recurred(move |at, s| {
        let mut s = s.clone();
        change(at, &mut s);
        let states = s.states(Scan::next);
        (s.output(&states), states)
    })
}

/// States of a rule that sees all those before.
fn walked(s: &Scan, next: impl Fn([usize; 3], &Array3<f64>) -> f64) -> Array3<f64> {
    let (l, e) = s.u.dim();
    let n = s.b.ncols();
    let mut all = Array3::zeros((l, e, n));
    for t in 0..l {
        for c in 0..e {
            for i in 0..n {
                all[(t, c, i)] = next([t, c, i], &all);
            }
        }
    }
    all
}

/// A fault of the rotation: rows of y as it makes them.
fn rotated(
    fault: impl Fn(&Array2<f64>, HadamardSize) -> Array2<f64> + Send + Sync + 'static,
) -> Make {
    Box::new(move |path, layer, seen, _, like| {
        let y = seen[&P::SsmY].to_real().mapv(f64::from);
        let size = path.rotation(layer).unwrap();
        let scale = scale(path, layer, U::HadOut);
        let clean = turned(&y, size.n(), |i, j| f64::from(size.entry(i, j))) * size.norm();
        let clean = store(&clean, like, scale, Round::Away);
        beside(
            like,
            &clean,
            store(&fault(&y, size), like, scale, Round::Away),
        )
    })
}

/// Rows times a matrix of entries.
fn turned(y: &Array2<f64>, n: usize, entry: impl Fn(usize, usize) -> f64) -> Array2<f64> {
    y.dot(&Array2::from_shape_fn((n, n), |(i, j)| entry(i, j)).t())
}
