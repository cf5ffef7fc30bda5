//! Products with a weight matrix.

use super::{Math, Operand, Output, Scene};
use ndarray::Array2;
use rayon::prelude::*;
use scalescope_sim::arith::accumulate::Accumulator;
use scalescope_sim::arith::fixed::Scaling;
use scalescope_sim::arith::real::RealRules;
use scalescope_sim::arith::requant::ScaleOrder;
use scalescope_sim::dataflow::{Columns, Quantizer, Row, Step};
use scalescope_sim::mode::Precision;
use scalescope_sim::quant::{Acc, Multiplier, Scale};
use scalescope_sim::step::linear_unit::ScaledWeight;
use scalescope_sim::trace::{Tensor, TracePoint};
use std::sync::Arc;

/// `y = x · wᵀ` with its scales.
#[derive(Clone, Debug)]
pub struct Linear {
    /// `[L, K]`.
    pub x: Operand,
    /// `[N, K]` codes.
    pub w: Arc<Array2<f32>>,
    /// The step of each row of codes, or one for all.
    pub w_scales: Vec<f32>,
    /// Whether rows have scales of their own, which come first.
    pub four_bits: bool,
    /// The order of factors of codes times codes; `None` where an operand is real.
    pub order: Option<ScaleOrder>,
    /// Inputs that go in.
    pub inputs: Vec<bool>,
    /// Added to each sum (codes), or to each product (reals); N or nothing.
    pub bias: Vec<f32>,
    /// Sums of the unedited operands.
    pub sums: Option<Arc<Array2<f32>>>,
    /// How results are stored.
    pub output: Output,
}

/// The codes of a step's weight and their scales, in the rows of one tensor.
pub fn weight(scene: &Scene, layer: usize, row: &Row) -> Option<(ScaledWeight, bool)> {
    let parts = scene.path.linear_weights(layer, row.step);
    let parts: Vec<_> = match (row.point, &parts[..]) {
        (TracePoint::InProjX, [x, _]) => vec![*x],
        (TracePoint::InProjZ, [_, z]) => vec![*z],
        (_, all) => all.to_vec(),
    };
    let four_bits = parts.iter().any(|part| part.int4().is_some());
    let stored: Vec<ScaledWeight> = parts.iter().map(|p| p.stored()).collect::<Option<_>>()?;
    let whole = ScaledWeight::stacked(&stored);
    whole.groups.is_none().then_some((whole, four_bits))
}

impl Linear {
    pub(super) fn of(scene: &Scene, row: &Row) -> Option<Self> {
        let rules = &scene
            .path
            .layer_profile(scene.layer)
            .arithmetic(scalescope_sim::mode::Implementation::Cuda)
            .prefill;
        let rule = *rules.linear.get(row.step)?;
        if rule.scaling != Scaling::F32 || rule.accumulator != Accumulator::I32 {
            return None;
        }
        let read = row.reads.iter().find(|read| {
            read.columns != Columns::B && read.point().is_some_and(|p| !p.is_scale())
        })?;
        let x = scene.operand(read)?;
        let codes = matches!(scene.seen.get(&read.point()?)?, Tensor::I8(_));
        let (w, four_bits) = weight(scene, scene.layer, row)?;
        if x.values.ncols() != w.codes.ncols() || row.reads.len() > 1 && row.step != Step::DtProj {
            return None;
        }
        // A product of reals is PyTorch's, and so is its quantizer.
        let quant = match codes {
            true => rule.output,
            false => {
                let torch = scene
                    .path
                    .layer_profile(scene.layer)
                    .arithmetic(scalescope_sim::mode::Implementation::Torch);
                scene.path.mode().requantize(torch.prefill.requantize)
            }
        };
        let grid = matches!(row.quantizer, Some(Quantizer::Static(_)))
            && row.format.dtype() == "f32"
            && scene.path.mode().x_proj_out == Precision::Float;
        if grid {
            return None;
        }
        let mut linear = Self {
            inputs: vec![true; x.values.ncols()],
            w: Arc::new(w.codes.mapv(f32::from)),
            w_scales: w.scales.iter().map(|s| s.get()).collect(),
            four_bits,
            order: codes.then_some(rule.order),
            bias: Vec::new(),
            sums: None,
            output: scene.output(row, Some(quant), codes)?,
            x,
        };
        if codes {
            linear.sums = Some(Arc::new(linear.sums()));
        }
        Some(linear)
    }

    /// Sums of codes, which f32 holds exactly below 2^24.
    fn sums(&self) -> Array2<f32> {
        let (l, k) = self.x.values.dim();
        let n = self.w.nrows();
        let mut out = Array2::zeros((l, n));
        let x = self.x.values.as_standard_layout();
        let w = self.w.as_standard_layout();
        let (x, w) = (
            x.as_slice().expect("standard"),
            w.as_slice().expect("standard"),
        );
        let all = self.inputs.iter().all(|i| *i);
        let to = out.as_slice_mut().expect("fresh");
        to.par_chunks_mut(n.max(1))
            .zip(x.par_chunks(k.max(1)))
            .for_each(|(to, x)| {
                let x: Vec<i32> = x
                    .iter()
                    .zip(&self.inputs)
                    .map(|(v, used)| if all || *used { *v as i32 } else { 0 })
                    .collect();
                for (to, w) in to.iter_mut().zip(w.chunks_exact(k)) {
                    let sum: i32 = x.iter().zip(w).map(|(x, w)| x * *w as i32).sum();
                    *to = sum as f32;
                }
            });
        out
    }

    /// Changes the operands: the sums are no longer those of the model.
    pub fn operands(
        &mut self,
        change: impl FnOnce(&mut Operand, &mut Array2<f32>, &mut Vec<bool>),
    ) {
        let mut w = (*self.w).clone();
        change(&mut self.x, &mut w, &mut self.inputs);
        self.w = Arc::new(w);
        self.sums = None;
    }

    /// Codes or reals, `[L, N]`.
    pub fn run(&self) -> Array2<f32> {
        let n = self.w.nrows();
        let scale = |c: usize| self.w_scales[c.min(self.w_scales.len() - 1)];
        let bias = |c: usize| self.bias.get(c).copied().unwrap_or(0.0);
        let Some(order) = self.order else {
            return self.reals();
        };
        let sums = match &self.sums {
            Some(sums) => Arc::clone(sums),
            None => Arc::new(self.sums()),
        };
        let units = self.output.quantizer.as_ref().map(|q| q.scale);
        let one = |v: f32| Multiplier::new(v).unwrap_or_else(|_| Multiplier::new(1.0).expect("1"));
        let a = match units {
            Some(out) => one((f64::from(self.x.scale) / f64::from(out)) as f32),
            None => one(self.x.scale),
        };
        let scales: Vec<f32> = (0..n)
            .map(|c| match (self.four_bits, units) {
                (true, Some(out)) => scale(c) / out,
                _ => scale(c),
            })
            .collect();
        Array2::from_shape_fn(sums.dim(), |(t, c)| {
            let sum = sums[(t, c)] + bias(c);
            let v = match self.four_bits {
                true => (sum * scales[c]) * self.x.scale,
                false => match Scale::new(scales[c]) {
                    Ok(b) => order.apply(a, b, Acc(sum as i32)),
                    Err(_) => 0.0,
                },
            };
            self.output.of(v)
        })
    }

    /// Products of reals: the sum runs over k ascending by fma.
    fn reals(&self) -> Array2<f32> {
        let m = Math::of(RealRules::CorrectlyRounded);
        let (l, k) = self.x.values.dim();
        let n = self.w.nrows();
        let scale = |c: usize| self.w_scales[c.min(self.w_scales.len() - 1)];
        let x = Array2::from_shape_fn((l, k), |at| match self.inputs[at.1] {
            true => self.x.real(m, at),
            false => 0.0,
        });
        let mut out = Array2::zeros((l, n));
        for t in 0..l {
            for c in 0..n {
                let s = scale(c);
                let mut v = 0.0f32;
                for i in 0..k {
                    v = x[(t, i)].mul_add(s * self.w[(c, i)], v);
                }
                v += self.bias.get(c).copied().unwrap_or(0.0);
                out[(t, c)] = self.output.of(v);
            }
        }
        out
    }
}
