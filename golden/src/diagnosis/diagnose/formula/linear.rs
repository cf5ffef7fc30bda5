//! Products with a weight matrix.

use super::{BlockInputs, Math, Narrow, Operand, Output, Stride};
use ndarray::Array2;
use rayon::prelude::*;
use scalescope_sim::arith::accumulate::Accumulator;
use scalescope_sim::arith::fixed::{Requantizer, Scaling};
use scalescope_sim::arith::real::RealRules;
use scalescope_sim::arith::requant::{QuantRule, ScaleOrder};
use scalescope_sim::arith::round::Rounding;
use scalescope_sim::dataflow::Row;
use scalescope_sim::mode::Implementation;
use scalescope_sim::profile::unit::GROUP;
use scalescope_sim::quant::{Acc, Multiplier, Scale};
use scalescope_sim::step::linear::LinearWeight;
use scalescope_sim::step::linear_unit::ScaledWeight;
use scalescope_sim::trace::Tensor;
use std::ops::Range;
use std::sync::Arc;

/// How sums meet their scales.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Meet {
    /// Codes times codes, one scale each, in an order.
    Order(ScaleOrder),
    /// The scales of rows of four bits come first, then the input's.
    FourBits,
    /// By one factor of each row, as a chip has it.
    Unit(Scaling),
    /// An operand is real: products of reals.
    Real,
}

/// What holds a sum of runs.
#[derive(Clone, Copy, Debug)]
pub enum Register {
    /// An integer.
    Integer(Accumulator),
    /// A float, to which the sum is rounded after each run.
    Float(Narrow),
    /// An integer without so many low bits, which are rounded away after each run.
    Cut(u8, Rounding),
}

/// A sum without so many low bits.
fn cut(sum: i64, bits: u8, by: Rounding) -> i64 {
    let parts = (1i64 << bits) as f32;
    by.round(sum as f32 / parts) as i64 * (1i64 << bits)
}

impl Register {
    fn sum(self, terms: impl Iterator<Item = i64>) -> i64 {
        match self {
            Register::Integer(register) => register.sum(terms).0,
            Register::Float(narrow) => {
                terms.fold(0.0f32, |sum, term| narrow.of(sum + term as f32)) as i64
            }
            Register::Cut(bits, by) => terms.fold(0, |sum, term| cut(sum + term, bits, by)),
        }
    }
}

/// Products that are summed in runs, one of two sums in a narrow register.
#[derive(Clone, Copy, Debug)]
pub struct Blocks {
    /// Products of a run.
    pub length: usize,
    /// The narrow register.
    pub register: Register,
    /// Whether the runs' own sums are in it, and not the sum of the runs.
    pub inside: bool,
}

impl Blocks {
    fn sum(&self, products: &[i64]) -> i64 {
        let runs = products.chunks(self.length);
        match self.inside {
            true => match self.register {
                Register::Cut(bits, by) => runs.map(|run| cut(run.iter().sum(), bits, by)).sum(),
                register => runs.map(|run| register.sum(run.iter().copied())).sum(),
            },
            false => self.register.sum(runs.map(|run| run.iter().sum())),
        }
    }
}

/// What a register of sums still holds when the next sum begins.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Uncleared {
    /// The sum of the output so many before, of the same token; it is cleared before the first of each so many.
    Outputs(usize, usize),
    /// The sum of the same output, of the token before; it is cleared before the first of each so many.
    Tokens(usize),
}

impl Uncleared {
    /// Sums that are added to what is left of others. `all` if these are such sums themselves, and not the others' own.
    fn put(self, sums: &mut Array2<i64>, all: bool) {
        let own = sums.clone();
        for t in 0..sums.nrows() {
            for c in 0..sums.ncols() {
                let from = match self {
                    Uncleared::Outputs(back, tile) if c % tile >= back => (t, c - back),
                    Uncleared::Tokens(tile) if t % tile > 0 => (t - 1, c),
                    _ => continue,
                };
                sums[(t, c)] += if all { sums[from] } else { own[from] };
            }
        }
    }
}

/// `y = x · wᵀ` with its scales.
#[derive(Clone, Debug)]
pub struct Linear {
    /// `[L, K]`.
    pub x: Operand,
    /// `[N, K]` codes, those of groups times the group's factor.
    pub w: Arc<Array2<f32>>,
    /// The step of each row of codes, or one for all.
    pub w_scales: Vec<f32>,
    /// How sums meet their scales.
    pub meet: Meet,
    /// How often each input goes in.
    pub times: Vec<f32>,
    /// Added to each sum (codes), or to each product (reals); N or nothing.
    pub bias: Vec<f32>,
    /// The register of sums.
    pub accumulator: Accumulator,
    /// The type of sums of reals, after each product.
    pub running: Option<Narrow>,
    /// Products that are summed in runs.
    pub blocks: Option<Blocks>,
    /// A type that the product of the scales passes through.
    pub scale_through: Option<Narrow>,
    /// What registers still hold, and whether of all sums before.
    pub uncleared: Option<(Uncleared, bool)>,
    /// Outputs that are computed; others are zero.
    pub channels: Option<Vec<bool>>,
    /// Sums of the operands as they are; none where they are to be summed.
    pub sums: Option<Arc<Array2<i64>>>,
    /// How results are stored.
    pub output: Output,
}

/// The weight of a step in the rows of one tensor.
pub struct Weight {
    /// `[N, K]` codes, those of groups times the group's factor.
    pub codes: Array2<f32>,
    /// The step of each row, or one for all.
    pub scales: Vec<f32>,
    meet: Option<Meet>,
}

/// The codes of a step's weight and their scales; `None` where they are real.
pub fn weight(scene: &BlockInputs, layer: usize, row: &Row) -> Option<Weight> {
    let mut parts = scene.path.linear_weights(layer, row.step);
    // A part of a tensor that has a row of its own has a part of the weight.
    let part = row.point.stand_ins().iter().find_map(|(whole, columns)| {
        let mut all = whole.parts().iter();
        all.position(|part| part == columns)
    });
    if let Some(part) = part.filter(|part| *part < parts.len()) {
        parts = vec![parts[part]];
    }
    let stored: Vec<ScaledWeight> = parts.iter().map(|p| p.stored()).collect::<Option<_>>()?;
    let whole = ScaledWeight::stacked(&stored);
    let mut codes = whole.codes.mapv(f32::from);
    if let Some(groups) = &whole.groups {
        let own = |((n, k), code): ((usize, usize), &mut f32)| {
            *code *= f32::from(groups[(n, k / GROUP)]);
        };
        codes.indexed_iter_mut().for_each(own);
    }
    let any = |is: fn(&LinearWeight) -> bool| parts.iter().any(|part| is(part));
    let meet = if any(|part| part.int4().is_some()) {
        Some(Meet::FourBits)
    } else if any(|part| matches!(part, LinearWeight::Scaled(_))) {
        Some(Meet::Unit(Scaling::F32))
    } else {
        None
    };
    Some(Weight {
        codes,
        scales: whole.scales.iter().map(|s| s.get()).collect(),
        meet,
    })
}

impl Linear {
    pub(super) fn of(scene: &BlockInputs, row: &Row) -> Option<Self> {
        let profile = scene.path.layer_profile(scene.layer);
        let rules = &profile.arithmetic(Implementation::Cuda).prefill;
        let rule = *rules.linear.get(row.step)?;
        if rule.output.rounding.lfsr().is_some() {
            return None;
        }
        // The scales of a dynamic quantizer come after its codes.
        let read = row.reads.first()?;
        let x = scene.operand(read)?;
        let codes = matches!(
            scene.seen.get(&read.point()?)?,
            Tensor::I8(_) | Tensor::Codes(_)
        );
        let w = weight(scene, scene.layer, row)?;
        if x.values.ncols() != w.codes.ncols() {
            return None;
        }
        let meet = match (codes, rule.scaling, w.meet) {
            (false, ..) => Meet::Real,
            // Where tokens have scales of their own, the unit of a chip runs whatever the rule.
            _ if x.rows.is_some() => Meet::Unit(rule.scaling),
            (_, Scaling::F32, Some(meet)) => meet,
            (_, Scaling::F32, None) => Meet::Order(rule.order),
            (_, scaling, _) => Meet::Unit(scaling),
        };
        let mut linear = Self {
            times: vec![1.0; x.values.ncols()],
            w: Arc::new(w.codes),
            w_scales: w.scales,
            meet,
            bias: Vec::new(),
            accumulator: rule.accumulator,
            running: None,
            blocks: None,
            scale_through: None,
            uncleared: None,
            channels: None,
            sums: None,
            output: scene.output(row, codes)?,
            x,
        };
        if codes {
            linear.sums = Some(Arc::new(linear.sums()));
        }
        Some(linear)
    }

    /// Whether an output is computed.
    fn is_used(&self, channel: usize) -> bool {
        self.channels.as_ref().is_none_or(|used| used[channel])
    }

    /// Results of every output that is computed, by the token and the output.
    fn each(&self, of: impl Fn(usize, usize) -> f32) -> Array2<f32> {
        let dim = (self.x.values.nrows(), self.w.nrows());
        Array2::from_shape_fn(dim, |(t, c)| if self.is_used(c) { of(t, c) } else { 0.0 })
    }

    /// Whether the register holds every sum, so that order does not matter.
    fn is_exact(&self) -> bool {
        self.accumulator.holds((self.times.len() as u64) << 14)
    }

    /// Sums of codes.
    fn sums(&self) -> Array2<i64> {
        self.sums_of(0..self.times.len(), &self.times)
    }

    /// Sums over some inputs, each so many times.
    fn sums_of(&self, range: Range<usize>, times: &[f32]) -> Array2<i64> {
        let (l, k) = self.x.values.dim();
        let n = self.w.nrows();
        let mut out = Array2::zeros((l, n));
        let x = self.x.values.as_standard_layout();
        let own = |c: usize| self.w.row(c).iter().map(|w| *w as i32).collect();
        let used = (0..n).filter(|c| self.is_used(*c));
        let w: Vec<(usize, Vec<i32>)> = used.map(|c| (c, own(c))).collect();
        let x = x.as_slice().expect("standard");
        // Products of codes; those of groups have factors more.
        let narrow = |w: &i32| w.unsigned_abs() <= 1 << 10;
        let narrow = w.iter().all(|(_, w)| w.iter().all(narrow));
        let exact = self.is_exact();
        let to = out.as_slice_mut().expect("fresh");
        to.par_chunks_mut(n.max(1))
            .zip(x.par_chunks(k.max(1)))
            .for_each(|(to, x)| {
                let x: Vec<i32> = range.clone().map(|i| (x[i] * times[i]) as i32).collect();
                for (c, w) in &w {
                    let to = &mut to[*c];
                    let products = || x.iter().zip(&w[range.clone()]);
                    if let Some(blocks) = &self.blocks {
                        let products = products().map(|(x, w)| i64::from(*x) * i64::from(*w));
                        *to = blocks.sum(&products.collect::<Vec<_>>());
                        continue;
                    }
                    *to = match (exact, narrow) {
                        (true, true) => products().map(|(x, w)| x * w).sum::<i32>().into(),
                        (true, false) => {
                            products().map(|(x, w)| i64::from(*x) * i64::from(*w)).sum()
                        }
                        (false, _) => {
                            let terms = products().map(|(x, w)| i64::from(*x) * i64::from(*w));
                            self.accumulator.sum(terms).0
                        }
                    };
                }
            });
        out
    }

    /// Of some rows of the input alone.
    pub fn of_rows(&self, rows: &[usize]) -> Self {
        let mut own = self.clone();
        own.x.values = self.x.values.select(ndarray::Axis(0), rows);
        own.x.rows = (self.x.rows.as_ref()).map(|steps| rows.iter().map(|r| steps[*r]).collect());
        own.sums = None;
        own
    }

    /// Changes the input: the sums are no longer those of the model.
    pub fn inputs(&mut self, change: impl FnOnce(&mut Operand)) {
        change(&mut self.x);
        self.sums = None;
    }

    /// Changes the weight, and so the sums.
    pub fn weights(&mut self, change: impl FnOnce(&mut Array2<f32>)) {
        change(Arc::make_mut(&mut self.w));
        self.sums = None;
    }

    /// Changes how often inputs go in, and so the sums.
    pub fn times(&mut self, change: impl FnOnce(&mut Vec<f32>)) {
        change(&mut self.times);
        self.sums = None;
    }

    /// Lets the sums run on beyond the ends of the rows of both operands, to so many products: what lies there in
    /// the buffers.
    pub fn run_on(&mut self, to: usize) {
        let (rows, k) = self.w.dim();
        let next = |(r, i): (usize, usize)| {
            let at = r * k + i;
            self.w.get((at / k, at % k)).copied().unwrap_or(0.0)
        };
        let w = Array2::from_shape_fn((rows, to), next);
        self.x.values = match &self.x.whole {
            Some(whole) => Stride::Read(whole.0.ncols()).of(&whole.0, whole.1, to),
            None => Stride::Read(k).of(&self.x.values, 0, to),
        };
        self.w = Arc::new(w);
        self.times = vec![1.0; to];
        self.sums = None;
    }

    /// Multiplies reals of a type in the place of codes.
    pub fn dequantize(&mut self, narrow: Narrow) {
        let m = Math::of(RealRules::CorrectlyRounded);
        let real = |at| narrow.of(self.x.real(m, at));
        let x = Array2::from_shape_fn(self.x.values.dim(), real);
        let scale = |c: usize| self.w_scales[c.min(self.w_scales.len() - 1)];
        let w = Array2::from_shape_fn(self.w.dim(), |(c, k)| narrow.of(scale(c) * self.w[(c, k)]));
        (self.x, self.w) = (Operand::new(x, 1.0), Arc::new(w));
        (self.w_scales, self.meet, self.sums) = (vec![1.0], Meet::Real, None);
        if let Some(q) = &mut self.output.quantizer {
            q.in_units = false;
        }
    }

    /// Lets some inputs go in so many times.
    pub fn part(&mut self, range: Range<usize>, times: f32) {
        let more: Vec<f32> = self.times.iter().map(|before| times - before).collect();
        self.times[range.clone()].fill(times);
        let sums = self.sums.take().filter(|_| self.is_exact());
        self.sums = sums.map(|sums| Arc::new(&*sums + &self.sums_of(range, &more)));
    }

    /// Moves the rows of the input, and with them those of the sums.
    pub fn rows(
        &mut self,
        inputs: impl Fn(&Array2<f32>) -> Array2<f32>,
        sums: impl Fn(&Array2<i64>) -> Array2<i64>,
    ) {
        self.x.values = inputs(&self.x.values);
        self.sums = self.sums.take().map(|own| Arc::new(sums(&own)));
    }

    /// Codes or reals, `[L, N]`.
    pub fn run(&self) -> Array2<f32> {
        let n = self.w.nrows();
        let scale = |c: usize| self.w_scales[c.min(self.w_scales.len() - 1)];
        let bias = |c: usize| self.bias.get(c).copied().unwrap_or(0.0);
        if self.meet == Meet::Real {
            return self.reals();
        }
        let sums = match &self.sums {
            Some(sums) => Arc::clone(sums),
            None => Arc::new(self.sums()),
        };
        let sums = match self.uncleared {
            Some((uncleared, all)) => {
                let mut sums = (*sums).clone();
                uncleared.put(&mut sums, all);
                Arc::new(sums)
            }
            None => sums,
        };
        let sum = |t: usize, c: usize| match self.bias.is_empty() {
            true => sums[(t, c)],
            false => (sums[(t, c)] as f64 + f64::from(bias(c))).round() as i64,
        };
        let quantizer = self.output.quantizer.as_ref();
        let units = quantizer.filter(|q| q.in_units).map(|q| q.scale);
        if let Some(narrow) = self.scale_through {
            return self.each(|t, c| {
                let factor = self.x.step(t) * scale(c) / units.unwrap_or(1.0);
                self.output.of(sum(t, c) as f32 * narrow.of(factor))
            });
        }
        match self.meet {
            Meet::Order(order) => {
                let a = match units {
                    Some(out) => (f64::from(self.x.scale) / f64::from(out)) as f32,
                    None => self.x.scale,
                };
                let a = Multiplier::new(a).unwrap_or_else(|_| Multiplier::new(1.0).expect("1"));
                let scales: Vec<Option<Scale>> =
                    (0..n).map(|c| Scale::new(scale(c)).ok()).collect();
                self.each(|t, c| {
                    let v = scales[c].map(|b| order.apply(a, b, Acc(sum(t, c) as i32)));
                    self.output.of(v.unwrap_or(0.0))
                })
            }
            Meet::FourBits => {
                let scales: Vec<f32> = (0..n).map(|c| scale(c) / units.unwrap_or(1.0)).collect();
                self.each(|t, c| {
                    self.output
                        .of((sum(t, c) as f32 * scales[c]) * self.x.scale)
                })
            }
            Meet::Unit(scaling) => {
                let rule = quantizer.map_or(QuantRule::NEAREST_EVEN, |q| q.rule);
                let made = |t: usize, c: usize| {
                    let factor = f64::from(self.x.step(t)) * f64::from(scale(c));
                    let factor = factor / f64::from(units.unwrap_or(1.0));
                    Requantizer::new(scaling, factor, rule).ok()
                };
                // One for each row of the weight, and of the input where rows have their own.
                let (rows, columns) = (
                    self.x.rows.as_ref().map_or(1, Vec::len),
                    self.w_scales.len(),
                );
                let all: Vec<Option<Requantizer>> = (0..rows)
                    .flat_map(|t| (0..columns).map(move |c| (t, c)))
                    .map(|(t, c)| made(t, c))
                    .collect();
                self.each(|t, c| {
                    let by = &all[t.min(rows - 1) * columns + c.min(columns - 1)];
                    let of = |by: &Requantizer| self.output.of_sum(sum(t, c), by);
                    by.as_ref().map_or(0.0, of)
                })
            }
            Meet::Real => unreachable!("done above"),
        }
    }

    /// Products of reals: the sum runs over k ascending by fma.
    fn reals(&self) -> Array2<f32> {
        let m = Math::of(RealRules::CorrectlyRounded);
        let (l, k) = self.x.values.dim();
        let n = self.w.nrows();
        let scale = |c: usize| self.w_scales[c.min(self.w_scales.len() - 1)];
        let x = Array2::from_shape_fn((l, k), |at| self.times[at.1] * self.x.real(m, at));
        let own = |c: usize| self.w.row(c).iter().map(|w| scale(c) * w).collect();
        let used = (0..n).filter(|c| self.is_used(*c));
        let w: Vec<(usize, Vec<f32>)> = used.map(|c| (c, own(c))).collect();
        let mut out = Array2::zeros((l, n));
        let x = x.as_slice().expect("fresh");
        let to = out.as_slice_mut().expect("fresh");
        to.par_chunks_mut(n.max(1))
            .zip(x.par_chunks(k.max(1)))
            .for_each(|(to, x)| {
                for (c, w) in &w {
                    let to = &mut to[*c];
                    let products = x.iter().zip(w);
                    let v = match self.running {
                        None => products.fold(0.0f32, |v, (x, w)| x.mul_add(*w, v)),
                        Some(to) => products.fold(0.0f32, |v, (x, w)| to.of(x.mul_add(*w, v))),
                    };
                    *to = self
                        .output
                        .of(v + self.bias.get(*c).copied().unwrap_or(0.0));
                }
            });
        out
    }
}
