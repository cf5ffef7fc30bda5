//! One token of each of several sequences through a block at once: every linear step reads its
//! weights once for all of them; convolution and scan run sequence by sequence, each on its own
//! state. Each sequence gets the bits it would get alone.

use super::super::{Datapath, State};
use super::{Cpu, f32_of};
use crate::block::{Routed, Run};
use crate::dataflow::Phase;
use crate::error::Result;
use crate::quant::QTensor;
use crate::trace::{Blind, Tensor};
use ndarray::{Array2, ArrayView2, Axis, concatenate, s};

impl Datapath<'_> {
    /// Row i of `hidden` and `residual` belongs to the sequence of `states[i]`, whose block `index` is
    /// advanced.
    pub(in super::super) fn block_batch(
        &self,
        index: usize,
        hidden: Tensor,
        residual: Option<Array2<f32>>,
        states: &mut [State],
    ) -> Result<(Tensor, Array2<f32>)> {
        let at = self.site(index, Phase::Decode);
        let probe = &mut Blind;
        let on = Cpu { at, probe };
        let mut run = Run { at, on };
        let (residual, norm_out) = run.norm(hidden, residual.map(Tensor::F32))?;
        let (x, z) = run.in_proj(&norm_out)?;
        let mut rows = Vec::with_capacity(states.len());
        for (i, state) in states.iter_mut().enumerate() {
            let conv = &mut state.layers[index].conv;
            let (out, after) = run.conv(row(&x, i), Some(conv.clone()))?;
            *conv = after;
            rows.push(out);
        }
        let conv = stacked(&rows);
        let Routed { x_proj_out, dt, u } = run.routes(conv)?;
        rows.clear();
        for (i, state) in states.iter_mut().enumerate() {
            let (u, dt, z) = (row(&u, i), row(&dt, i), row(&z, i));
            let ssm = &mut state.layers[index].ssm;
            let (y, after) = run.scan(&u, &dt, &row(&x_proj_out, i), &z, Some(ssm.clone()))?;
            *ssm = after;
            rows.push(y);
        }
        let rotated = run.hadamard(&stacked(&rows))?;
        Ok((run.out_proj(&rotated)?, f32_of(residual)))
    }
}

/// One row of a tensor, as a tensor.
fn row(value: &Tensor, i: usize) -> Tensor {
    fn cut<T: Copy>(values: &Array2<T>, i: usize) -> Array2<T> {
        values.slice(s![i..=i, ..]).to_owned()
    }
    match value {
        Tensor::I8(q) => Tensor::I8(QTensor {
            codes: cut(&q.codes, i),
            scale: q.scale,
        }),
        Tensor::Codes(v) => Tensor::Codes(cut(v, i)),
        Tensor::F16(v) => Tensor::F16(cut(v, i)),
        Tensor::F32(v) => Tensor::F32(cut(v, i)),
    }
}

/// Rows of one type and one scale, as a tensor.
fn stacked(rows: &[Tensor]) -> Tensor {
    fn stack<T: Copy>(rows: &[Tensor], of: impl Fn(&Tensor) -> Option<&Array2<T>>) -> Array2<T> {
        let views: Option<Vec<ArrayView2<T>>> =
            rows.iter().map(|r| of(r).map(|a| a.view())).collect();
        let views = views.expect("one step emits one type");
        concatenate(Axis(0), &views).expect("rows of one step are equally long")
    }
    match &rows[0] {
        Tensor::I8(q) => Tensor::I8(QTensor {
            codes: stack(rows, |r| match r {
                Tensor::I8(q) => Some(&q.codes),
                _ => None,
            }),
            scale: q.scale,
        }),
        Tensor::Codes(_) => Tensor::Codes(stack(rows, |r| match r {
            Tensor::Codes(v) => Some(v),
            _ => None,
        })),
        Tensor::F16(_) => Tensor::F16(stack(rows, |r| match r {
            Tensor::F16(v) => Some(v),
            _ => None,
        })),
        Tensor::F32(_) => Tensor::F32(stack(rows, |r| match r {
            Tensor::F32(v) => Some(v),
            _ => None,
        })),
    }
}
