//! The input as the device had it, solved from all outputs where there are more of them than inputs.

use super::on;
use crate::diagnosis::diagnose::edit::{Edit, Edits, replace};
use crate::diagnosis::diagnose::formula::{BlockInputs, Factored, Linear, Meet};
use crate::diagnosis::diagnose::kind::Kind;
use ndarray::Array2;
use scalescope_sim::dataflow::Row;
use std::collections::BTreeMap;

/// Outputs for each input: the steps of their codes hide what is between.
const OUTPUTS: usize = 2;
/// Elements that may be otherwise than a rule says: one in so many.
const REST: usize = 20;
/// Tokens that an input may be late.
const LATE: std::ops::RangeInclusive<isize> = -2..=4;

/// The codes of the input that make what a dump has; `None` where these are no codes.
fn solved(own: &Linear, dumped: &Array2<f32>) -> Option<Array2<f32>> {
    let (n, k) = own.w.dim();
    if own.meet == Meet::Real || n < OUTPUTS * k || own.x.rows.is_some() || own.w_scales.len() > 1 {
        return None;
    }
    let unit = match own.output.quantizer.as_ref() {
        Some(q) if q.dynamic.is_some() || q.dequantized => return None,
        Some(q) => own.x.scale * own.w_scales[0] / q.scale,
        None => own.x.scale * own.w_scales[0],
    };
    let w = own.w.mapv(f64::from);
    let normal = Factored::of(w.t().dot(&w))?;
    let sums = dumped.mapv(|v| f64::from(v) / f64::from(unit));
    let right = sums.dot(&w);
    let mut codes = Array2::zeros((dumped.nrows(), k));
    let mut near = 0;
    for (right, mut to) in right.rows().into_iter().zip(codes.rows_mut()) {
        let found = normal.solve(right.to_vec());
        for (to, v) in to.iter_mut().zip(found) {
            near += usize::from((v - v.round()).abs() < 0.25);
            *to = v.round() as f32;
        }
    }
    (near * REST >= codes.len() * (REST - 1)).then_some(codes)
}

/// Whether all but a few of some pairs are equal.
fn alike(mut pairs: impl ExactSizeIterator<Item = (f32, f32)>) -> bool {
    let mut left = pairs.len() / REST + 1;
    pairs.all(|(a, b)| {
        left -= usize::from(a != b);
        left > 0
    })
}

/// Edits of the input as the device had it: its codes are a function of what they should be, or those of other
/// columns or tokens.
pub fn read_off<'a>(
    scene: Option<&'a BlockInputs<'a, '_>>,
    row: &'a Row,
    own: &Linear,
    dumped: &Array2<f32>,
) -> Vec<Edit> {
    let x = &own.x.values;
    let Some(found) = solved(own, dumped).filter(|found| found.dim() == x.dim() && found != x)
    else {
        return Vec::new();
    };
    let mut edits = Edits::new(scene, row, own.w.nrows());
    edits.of_codes(x, &found);
    edits.of_columns(x, &found);
    edits.all
}

impl Edits<'_, '_> {
    /// Each code is read as another one.
    fn of_codes(&mut self, x: &Array2<f32>, found: &Array2<f32>) {
        let mut seen: BTreeMap<i32, BTreeMap<i32, usize>> = BTreeMap::new();
        for (x, found) in x.iter().zip(found) {
            *seen
                .entry(*x as i32)
                .or_default()
                .entry(*found as i32)
                .or_default() += 1;
        }
        let most = |of: &BTreeMap<i32, usize>| of.iter().max_by_key(|(_, n)| **n).map(|(v, _)| *v);
        let map: BTreeMap<i32, i32> = (seen.iter())
            .filter_map(|(code, of)| Some((*code, most(of)?)))
            .collect();
        let mapped = |v: f32| map.get(&(v as i32)).map_or(v, |v| *v as f32);
        let pairs = x.iter().map(|x| mapped(*x)).zip(found.iter().copied());
        if !alike(pairs) || x.len() < REST * map.len() {
            return;
        }
        let others = map.iter().filter(|(from, to)| from != to);
        let some: Vec<String> = others
            .take(4)
            .map(|(from, to)| format!("{to} for {from}"))
            .collect();
        let words = format!("the input codes are others: {}, …", some.join(", "));
        let change = on(move |l| {
            l.inputs(|x| {
                x.values
                    .mapv_inplace(|v| map.get(&(v as i32)).map_or(v, |v| *v as f32));
            });
        });
        self.formula(7, (Kind::Function, "input"), words, change);
    }

    /// Columns are those of others, of this or of another token.
    fn of_columns(&mut self, x: &Array2<f32>, found: &Array2<f32>) {
        let (l, k) = x.dim();
        let rows = |late: isize| {
            (0..l).filter_map(move |t| Some((t, usize::try_from(t as isize - late).ok()?)))
        };
        let same = |to: usize, from: usize, late: isize| {
            let pairs = rows(late).filter(|(_, from)| *from < l);
            let pairs: Vec<(f32, f32)> = pairs
                .map(|(t, other)| (found[(t, to)], x[(other, from)]))
                .collect();
            alike(pairs.into_iter())
        };
        let of = |to: usize| -> Option<(usize, isize)> {
            let mut others: Vec<usize> = (0..k).collect();
            others.sort_by_key(|from| from.abs_diff(to));
            let mut lates: Vec<isize> = LATE.collect();
            lates.sort_by_key(|late| late.abs());
            let pairs = lates
                .into_iter()
                .flat_map(|late| others.iter().map(move |o| (*o, late)));
            pairs
                .into_iter()
                .find(|(from, late)| same(to, *from, *late))
        };
        let from: Vec<(usize, isize)> = (0..k).map(|to| of(to).unwrap_or((to, 0))).collect();
        let changed: Vec<usize> = (0..k).filter(|c| from[*c] != (*c, 0)).collect();
        let unlike = (0..k).filter(|c| !same(*c, from[*c].0, from[*c].1)).count();
        if changed.is_empty() || unlike * REST > k {
            return;
        }
        let some: Vec<String> = (changed.iter().take(4))
            .map(|c| match from[*c] {
                (of, 0) => format!("{c} is {of}"),
                (of, late) => format!("{c} is {of} of {late:+} tokens before"),
            })
            .collect();
        let more = if changed.len() > 4 { ", …" } else { "" };
        let words = format!("columns of the input are others: {}{more}", some.join(", "));
        let change = on(move |l| {
            l.inputs(|x| {
                let own = x.values.clone();
                let at = |(t, c): (usize, usize)| {
                    let (of, late) = from[c];
                    let t = usize::try_from(t as isize - late).ok()?;
                    own.get((t, of)).copied()
                };
                let values = Array2::from_shape_fn(own.dim(), |to| at(to).unwrap_or(0.0));
                replace(&mut x.values, &values);
            });
        });
        self.formula(6, (Kind::Order, "input"), words, change);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::diagnosis::diagnose::formula::{Operand, Output};
    use scalescope_sim::arith::accumulate::Accumulator;
    use scalescope_sim::arith::requant::ScaleOrder;
    use scalescope_sim::dataflow::{Block, Phase};
    use scalescope_sim::mode::ModeTable;
    use scalescope_sim::profile::Profile;
    use scalescope_sim::trace::TracePoint;
    use std::sync::Arc;

    /// A product of codes that are as good as drawn.
    fn linear(x: Array2<f32>) -> Linear {
        let code = |i: usize| (i * i * 7919 % 251) as f32 - 125.0;
        Linear {
            times: vec![1.0; x.ncols()],
            x: Operand::new(x, 0.02),
            w: Arc::new(Array2::from_shape_fn((80, 20), |(r, c)| code(r * 20 + c))),
            w_scales: vec![0.01],
            meet: Meet::Order(ScaleOrder::ChannelMajor),
            bias: Vec::new(),
            accumulator: Accumulator::I32,
            running: None,
            blocks: None,
            scale_through: None,
            uncleared: None,
            channels: None,
            sums: None,
            output: Output::real(false),
        }
    }

    #[test]
    fn inputs_are_read_off_outputs() {
        let code = |i: usize| ((i * i + 3 * i) * 6007 % 241) as f32 - 120.0;
        let x = Array2::from_shape_fn((24, 20), |(t, c)| code(t * 20 + c));
        let own = linear(x.clone());
        let found = solved(&own, &own.run()).expect("more outputs than inputs");
        assert_eq!(found, x);
        // Columns in another order are told from a function of codes.
        let order = Array2::from_shape_fn(x.dim(), |(t, c)| x[(t, (c * 7 + 3) % 20)]);
        let table = ModeTable::default();
        let mode = table.get("0").unwrap();
        let block = Block::of(mode, &Profile::get("exact").unwrap(), Phase::Prefill);
        let row = block.row(TracePoint::InProjOut).unwrap();
        let mut edits = Edits::new(None, row, 80);
        edits.of_codes(&x, &order);
        assert!(edits.all.is_empty());
        edits.of_columns(&x, &order);
        assert_eq!(edits.all.len(), 1);
        // A dump that no input makes is none.
        let mut broken = own.run();
        broken
            .indexed_iter_mut()
            .for_each(|((t, c), v)| *v += code(t + 31 * c));
        assert!(solved(&own, &broken).is_none());
    }
}
