//! Faults by somebody who does not know what is searched: what happens to writers of kernels, RTL and converters.
//! Right is every kind and site by which an engineer would know where to look.

mod linears;
mod rest;
mod second;
mod steps;

pub(super) use steps::{convolved, recurred, scanned};

use super::cases::{Case, Into, SCAN};
use super::emulation::*;
use super::fourth::fourth;
use super::fresh::*;
use super::more::{out_proj, plain, x_proj};
use super::third::third;
use super::{Sort, dump, tokens, trace};
use half::{bf16, f16};
use ndarray::{Array2, s};
use scalescope_golden::value::Value;
use scalescope_sim::dataflow::Step;
use scalescope_sim::datapath::{Datapath, LogitRows};
use scalescope_sim::mode::ModeTable;
use scalescope_sim::plan::ScaleUse as U;
use scalescope_sim::profile::Profile;
use scalescope_sim::sample;
use scalescope_sim::trace::{Recorder, Selection, Tensor, TracePoint as P};
use std::collections::BTreeSet;
use std::sync::Arc;

pub fn unseen() -> Vec<Case> {
    let mut all = Fresh(Vec::new());
    all.unseen_norm();
    all.unseen_in_proj();
    all.unseen_x_proj();
    all.unseen_dt_proj();
    all.unseen_out_proj();
    all.unseen_conv();
    all.unseen_scan();
    all.unseen_outputs_of_the_scan();
    all.unseen_rotation();
    all.unseen_quantizers();
    all.unseen_pairs();
    all.0
}

/// A second list, by another who does not know what is searched.
pub fn second() -> Vec<Case> {
    let mut all = Fresh(Vec::new());
    all.unseen_second();
    all.0
}

/// Columns taken from elsewhere, by number.
pub(super) fn columns(from: impl Fn(usize, usize) -> usize + Send + Sync + 'static) -> Make {
    whole(move |v| Array2::from_shape_fn(v.dim(), |(t, c)| v[(t, from(c, v.ncols()))]))
}

/// A norm with a root of its own: of the residual, a token and ε.
pub(super) fn normed(root: fn(&Array2<f64>, usize, f64) -> f64) -> Make {
    Box::new(move |path, layer, seen, _, like| {
        let r = seen[&P::ResidualOut].to_real().mapv(f64::from);
        let w = path.norm_weight(layer);
        let eps = f64::from(path.config().eps);
        let roots: Vec<f64> = (0..r.nrows()).map(|t| root(&r, t, eps)).collect();
        let out = Array2::from_shape_fn(r.dim(), |(t, c)| r[(t, c)] / roots[t] * f64::from(w[c]));
        let scale = f64::from(path.scale(layer, U::NormOut).unwrap().get());
        store(&out, like, scale, Round::Even)
    })
}

pub(super) fn squares(r: &Array2<f64>, t: usize) -> f64 {
    r.row(t).iter().map(|v| v * v).sum()
}

/// A linear step by its own sums, and by its own multiplier from sums to codes.
pub(super) fn product(
    step: Step,
    input: P,
    (reads, writes): (U, Option<U>),
    sums: fn(&Lin) -> Array2<f64>,
    multiplier: fn(&Datapath, usize, f64) -> f64,
) -> Make {
    Box::new(move |path, layer, seen, _, like| {
        let lin = lin_parts(path, layer, seen, step, (input, reads));
        let out = writes.map_or(1.0, |by| f64::from(path.scale(layer, by).unwrap().get()));
        let by = multiplier(path, layer, lin.unit / out);
        store(&sums(&lin).mapv(|v| v * by), like, 1.0, Round::Even)
    })
}

pub(super) fn sums(lin: &Lin) -> Array2<f64> {
    lin.x.dot(&lin.w.t())
}

pub(super) fn ideal(_: &Datapath, _: usize, by: f64) -> f64 {
    by
}

/// What deviates in a tensor: its elements, in how many tokens and channels, and by how much of its norm.
struct Effect {
    tensor: &'static str,
    elements: usize,
    tokens: usize,
    channels: usize,
    share: f64,
    /// The least share that no noise has: an ulp of the type, here and there.
    noise: f64,
}

/// The effects of a case on its block, in the order of the data.
fn effects(case: &Case, number: usize) -> Vec<Effect> {
    let model = sample::model();
    let table = ModeTable::default();
    let (mode, profile) = case.on.unwrap();
    let mode = table.get(mode).unwrap();
    let profile = Profile::get(profile).unwrap();
    let layer = (number * 5 + 1) % model.config().unwrap().n_layers;
    let mut other = model.clone();
    if let Into::Model(change) = case.into {
        change(Arc::make_mut(other.quantized.as_mut().unwrap()), layer);
    }
    let ids = tokens(64, number as u64 + 1);
    let path = Datapath::new(&other, mode, &profile).unwrap();
    let faulty = dump(&path, layer, case, &ids, Sort::Full);
    let path = Datapath::new(&model, mode, &profile).unwrap();
    let mut recorder = Recorder::new(Selection::default());
    path.prefill(&ids, LogitRows::None, &mut recorder).unwrap();
    let clean = trace(&ids, recorder);
    let mut effects = Vec::new();
    for (place, value) in &clean.sequences[0] {
        if place.layer != Some(layer) {
            continue;
        }
        let (own, its) = (
            value.to_real(None),
            faulty.sequences[0][place].to_real(None),
        );
        let off = &its - &own;
        let at: Vec<_> = off.indexed_iter().filter(|(_, v)| **v != 0.0).collect();
        let tokens: BTreeSet<_> = at.iter().map(|((t, _), _)| t).collect();
        let channels: BTreeSet<_> = at.iter().map(|((_, c), _)| c).collect();
        let norm = |v: &Array2<f64>| v.iter().map(|v| v * v).sum::<f64>().sqrt();
        if !at.is_empty() {
            effects.push(Effect {
                tensor: place.point.name(),
                elements: at.len(),
                tokens: tokens.len(),
                channels: channels.len(),
                share: norm(&off) / norm(&own),
                noise: match value {
                    Value::F32(_) => 1e-5,
                    _ => 1e-3,
                },
            });
        }
    }
    effects
}

/// Far above noise: not a code here and there.
#[test]
#[ignore = "a minute: the faults of the grid; cargo test --release -p scalescope-golden --test all every_unseen_fault -- --ignored --nocapture"]
fn every_unseen_fault_has_an_effect() {
    let mut all = unseen();
    all.extend(second());
    all.extend(third());
    all.extend(fourth());
    // Numbered as in the grid, where a case's number decides about its block.
    if let Ok(name) = std::env::var("SCALESCOPE_CASE") {
        all.retain(|case| case.name.contains(&name));
    }
    let mut without = Vec::new();
    for (number, case) in all.iter().enumerate() {
        let effects = effects(case, number);
        for e in effects.iter().take(2) {
            println!(
                "{} {:?}: {}: {} elements of {} tokens and {} channels, {:.1e}",
                case.name, case.on, e.tensor, e.elements, e.tokens, e.channels, e.share
            );
        }
        let first = effects.first();
        if !first.is_some_and(|e| e.elements >= 8 && e.share > e.noise) {
            without.push(case.name);
        }
    }
    assert!(without.is_empty(), "no effect: {without:?}");
}
