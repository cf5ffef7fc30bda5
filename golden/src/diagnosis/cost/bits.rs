//! Which linear weights could have four bits: what each costs by itself, and what all of the cheapest
//! ones cost together. The order is chosen on one half of the text and measured on the other.

use super::loss::{Judge, Losses, Mean, Text};
use super::recommend::{Z95, halves};
use rayon::prelude::*;
use scalescope_sim::dataflow::{Step, Weight};
use scalescope_sim::datapath::{Datapath, Part};
use scalescope_sim::error::{Result, SimError};
use serde::Serialize;

/// Numbers of weights that are measured together, at most.
const POINTS: usize = 24;

/// A weight that could have four bits.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct WeightCost {
    /// The block.
    pub layer: usize,
    /// The step.
    pub step: Step,
    /// Bytes of codes and scales that it would save.
    pub bytes_saved: usize,
    /// The rise of KL from the reference when it alone has four bits, nats a token, on the half that
    /// the order is chosen on.
    pub kl_rise: Mean,
}

/// The cheapest weights in four bits, the others as they are.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Together {
    /// How many, from the first on.
    pub weights: usize,
    /// Bytes of all linear weights that can have four bits.
    pub bytes: usize,
    /// KL from the reference on the other half, nats a token.
    pub kl: f64,
    /// Its rise.
    pub kl_rise: Mean,
    /// The 95 % interval of the rise.
    pub kl_interval: [f64; 2],
    /// Perplexity there.
    pub perplexity: f64,
}

/// What was measured.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Bits {
    /// Every weight that can have four bits, the one that costs least a byte first.
    pub weights: Vec<WeightCost>,
    /// From none of them to all.
    pub together: Vec<Together>,
}

/// Compares `path`, of eight-bit weights, with `four`, the same model with four bits wherever it can.
///
/// # Errors
///
/// Fewer than two sequences; no weight that has four bits in `four` and not in `path`.
pub fn bits<'m>(
    path: &Datapath<'m>,
    four: &Datapath<'m>,
    reference: &Datapath,
    text: &Text,
    done: &(dyn Fn() + Sync),
) -> Result<Bits> {
    let [choosing, measuring] = halves(text)?;
    let sizes = sizes(path, four);
    if sizes.is_empty() {
        return Err(SimError::value(
            "weights",
            "one that could have four bits: rows of two groups of 128 or more",
            "none",
        ));
    }
    let judge = Judge::new(&choosing, reference)?;
    let starts = judge.starts(path)?;
    let before = judge.losses(path, &starts, 0)?;
    let alone: Vec<WeightCost> = sizes
        .par_iter()
        .map(|(layer, step, [eight, four_bits])| {
            let mut changed = path.clone();
            changed.adopt(*layer, part(*step), four);
            let after = judge.losses(&changed, &starts, *layer)?;
            done();
            Ok(WeightCost {
                layer: *layer,
                step: *step,
                bytes_saved: eight - four_bits,
                kl_rise: Mean::of_difference(&after.kl, &before.kl),
            })
        })
        .collect::<Result<_>>()?;
    let mut weights = alone;
    let price = |w: &WeightCost| w.kl_rise.mean / w.bytes_saved as f64;
    weights.sort_by(|a, b| price(a).total_cmp(&price(b)));
    let judge = Judge::new(&measuring, reference)?;
    let starts = judge.starts(path)?;
    let before = judge.losses(path, &starts, 0)?;
    let all: usize = sizes.iter().map(|(_, _, [eight, _])| eight).sum();
    let count = weights.len();
    let mut points: Vec<usize> = (0..=POINTS).map(|i| i * count / POINTS).collect();
    points.dedup();
    let together = points.into_par_iter().map(|n| {
        let mut changed = path.clone();
        for weight in &weights[..n] {
            changed.adopt(weight.layer, part(weight.step), four);
        }
        let after = judge.losses(&changed, &starts, 0)?;
        done();
        let saved: usize = weights[..n].iter().map(|w| w.bytes_saved).sum();
        Ok(together(n, all - saved, &before, &after))
    });
    Ok(Bits {
        together: together.collect::<Result<_>>()?,
        weights,
    })
}

fn together(weights: usize, bytes: usize, before: &Losses, after: &Losses) -> Together {
    let kl_rise = Mean::of_difference(&after.kl, &before.kl);
    Together {
        weights,
        bytes,
        kl: after.mean_kl(),
        kl_rise,
        kl_interval: [-1.0, 1.0].map(|side| kl_rise.mean + side * Z95 * kl_rise.se),
        perplexity: after.perplexity(),
    }
}

fn part(step: Step) -> Part {
    let weights = [
        Weight::InProj,
        Weight::XProj,
        Weight::DtProj,
        Weight::OutProj,
    ];
    let weight = weights.into_iter().find(|weight| weight.step() == step);
    Part::Weight(weight.expect("a linear step"))
}

/// Weights that have four bits in one path only, and their bytes in eight bits and in four.
fn sizes(path: &Datapath, four: &Datapath) -> Vec<(usize, Step, [usize; 2])> {
    let all =
        (0..path.config().n_layers).flat_map(|layer| Step::FOUR_BIT.map(|step| (layer, step)));
    all.filter_map(|(layer, step)| {
        let weight = four.linear_weights(layer, step)[0].int4()?.source();
        if path.linear_weights(layer, step)[0].int4().is_some() {
            return None;
        }
        let (outputs, inputs) = weight.dim();
        let bytes = [outputs * inputs + 4, weight.bits() / 8];
        Some((layer, step, bytes))
    })
    .collect()
}
