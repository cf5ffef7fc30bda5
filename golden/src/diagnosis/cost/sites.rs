//! Which site costs how much: every part of every block in which a mode differs from a reference is
//! switched on its own.
//!
//! - **one off**: the mode with this site as the reference has it; what the loss falls by.
//! - **one on**: the reference with this site as the mode has it; what the loss rises to.
//! - **Shapley**: sites are switched from the reference to the mode one after another in random
//!   orders; what each adds on average. Exact in the mean, and its parts add up to the whole.
//!
//! Runs share what lies before the block that they change.

use super::loss::{Judge, Losses, Mean, Text};
use rayon::prelude::*;
use scalescope_sim::datapath::{Datapath, Part};
use scalescope_sim::error::Result;
use scalescope_sim::model::ScaleKey;
use scalescope_sim::random::SplitMix64;
use serde::Serialize;
use std::sync::atomic::{AtomicUsize, Ordering};

/// A part of a block.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Site {
    /// The block.
    pub layer: usize,
    /// Its part.
    pub part: Part,
}

/// What a site costs.
#[derive(Clone, Debug, Serialize)]
pub struct SiteCost {
    /// The block.
    pub layer: usize,
    /// The step.
    pub step: &'static str,
    /// The tensor or weight.
    pub site: &'static str,
    /// The same as data, for its order among the sites of a block.
    #[serde(skip)]
    pub part: Part,
    /// The calibrated scale of an activation.
    pub scale: Option<ScaleKey>,
    /// KL that goes away with the site as the reference has it, nats a token.
    pub one_off_kl: Mean,
    /// The same of the negative log-likelihood (the logarithm of perplexity).
    pub one_off_nll: Mean,
    /// KL of the reference with this site alone as the mode has it.
    pub one_on_kl: Mean,
    /// The same of the negative log-likelihood.
    pub one_on_nll: Mean,
    /// KL by Shapley sampling, if asked for; the error over orders.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub shapley_kl: Option<Mean>,
    /// What it costs, nats a token: one off and one on pooled ([`Mean::pooled_with`]), or Shapley's.
    pub cost_kl: Mean,
    /// The same as a share of the mode's KL.
    pub share: f64,
}

/// What all sites cost.
#[derive(Clone, Debug, Serialize)]
pub struct Costs {
    /// Tokens that run.
    pub tokens: usize,
    /// Positions at which losses are measured.
    pub positions: usize,
    /// KL of the mode from the reference, nats a token.
    pub kl: f64,
    /// Perplexity of the mode.
    pub perplexity: f64,
    /// Perplexity of the reference.
    pub reference_perplexity: f64,
    /// KL that is left with every site as the reference has it: implementations and their rules.
    pub kl_without_sites: f64,
    /// Parts that differ and that the profile cannot run as the reference has them: they stay as they are.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub not_switched: Vec<&'static str>,
    /// Sites, the costliest first.
    pub sites: Vec<SiteCost>,
}

/// How to attribute.
#[derive(Clone, Copy, Debug, Default)]
pub struct Options {
    /// Orders of Shapley sampling; 0 for none.
    pub orders: usize,
    /// Seed of the orders.
    pub seed: u64,
}

/// The parts in which two paths differ: those that their profiles can switch, and those that they cannot.
pub fn parts(path: &Datapath, reference: &Datapath) -> (Vec<Part>, Vec<Part>) {
    let parts = Part::ALL
        .into_iter()
        .filter(|part| part.differs(path.mode(), reference.mode()));
    parts.partition(|part| path.can_adopt(*part, reference) && reference.can_adopt(*part, path))
}

/// The sites in which two paths differ and that can be switched.
pub fn sites(path: &Datapath, reference: &Datapath) -> Vec<Site> {
    let (parts, _) = parts(path, reference);
    (0..path.config().n_layers)
        .flat_map(|layer| parts.iter().map(move |part| Site { layer, part: *part }))
        .collect()
}

/// Measures every site. `done` is told how many of how many runs are over.
pub fn attribute<'m>(
    path: &Datapath<'m>,
    reference: &Datapath<'m>,
    text: &Text,
    options: Options,
    done: &(dyn Fn(usize, usize) + Sync),
) -> Result<Costs> {
    let judge = Judge::new(text, reference)?;
    let sites = sites(path, reference);
    let (of_path, of_reference) = (judge.starts(path)?, judge.starts(reference)?);
    let whole = judge.losses(path, &of_path, 0)?;
    let truth = judge.losses(reference, &of_reference, 0)?;
    let total = sites.len() * (2 + options.orders);
    let runs = AtomicUsize::new(0);
    let tick = || done(runs.fetch_add(1, Ordering::Relaxed) + 1, total);
    let pairs: Vec<(Losses, Losses)> = sites
        .par_iter()
        .map(|site| {
            let switched = |from: &Datapath<'m>, to: &Datapath<'m>, starts| -> Result<Losses> {
                let mut path = from.clone();
                adopt(&mut path, *site, to);
                let losses = judge.losses(&path, starts, site.layer);
                tick();
                losses
            };
            Ok((
                switched(path, reference, &of_path)?,
                switched(reference, path, &of_reference)?,
            ))
        })
        .collect::<Result<_>>()?;
    let mut without = path.clone();
    for site in &sites {
        adopt(&mut without, *site, reference);
    }
    let without = judge.losses(&without, &of_path, 0)?;
    let kl = whole.mean_kl();
    let shapley = shapley(&judge, path, reference, &sites, options, &tick)?;
    let mut costs: Vec<SiteCost> = (sites.iter().zip(&pairs))
        .enumerate()
        .map(|(i, (site, (off, on)))| {
            let one_off_kl = Mean::of_difference(&whole.kl, &off.kl);
            let one_on_kl = Mean::of_difference(&on.kl, &truth.kl);
            let shapley_kl = shapley.as_ref().map(|s| s[i]);
            let cost_kl = shapley_kl.unwrap_or_else(|| one_off_kl.pooled_with(one_on_kl));
            SiteCost {
                layer: site.layer,
                step: site.part.step().name(),
                site: site.part.name(),
                part: site.part,
                scale: site.part.scale(),
                one_off_kl,
                one_off_nll: Mean::of_difference(&whole.nll, &off.nll),
                one_on_kl,
                one_on_nll: Mean::of_difference(&on.nll, &truth.nll),
                shapley_kl,
                cost_kl,
                share: cost_kl.mean / kl,
            }
        })
        .collect();
    costs.sort_by(|a, b| b.share.total_cmp(&a.share));
    Ok(Costs {
        tokens: text.tokens(),
        positions: whole.kl.len(),
        kl,
        perplexity: whole.perplexity(),
        reference_perplexity: truth.perplexity(),
        kl_without_sites: without.mean_kl(),
        not_switched: (parts(path, reference).1.into_iter())
            .map(Part::name)
            .collect(),
        sites: costs,
    })
}

/// Parts go in the order of the data, so that a part that reads another's switch finds it made.
fn adopt<'m>(path: &mut Datapath<'m>, site: Site, from: &Datapath<'m>) {
    path.adopt(site.layer, site.part, from);
}

/// Mean and error over random orders of what each site adds to the KL.
fn shapley<'m>(
    judge: &Judge,
    path: &Datapath<'m>,
    reference: &Datapath<'m>,
    sites: &[Site],
    options: Options,
    tick: &(dyn Fn() + Sync),
) -> Result<Option<Vec<Mean>>> {
    if options.orders == 0 {
        return Ok(None);
    }
    let added: Vec<Vec<f64>> = (0..options.orders)
        .into_par_iter()
        .map(|order| {
            let mut now = reference.clone();
            let mut starts = judge.starts(&now)?;
            let mut before = 0.0;
            let mut added = vec![0.0; sites.len()];
            for i in shuffled(sites.len(), options.seed, order) {
                adopt(&mut now, sites[i], path);
                judge.advance(&now, &mut starts, sites[i].layer)?;
                let kl = judge
                    .losses(&now, &starts, now.config().n_layers)?
                    .mean_kl();
                added[i] = kl - before;
                before = kl;
                tick();
            }
            Ok(added)
        })
        .collect::<Result<_>>()?;
    let of = |i: usize| Mean::of(added.iter().map(move |order| order[i]));
    Ok(Some((0..sites.len()).map(of).collect()))
}

/// A random order; odd ones are the ones before them reversed, which halves the variance of what
/// depends on early or late.
fn shuffled(count: usize, seed: u64, order: usize) -> Vec<usize> {
    let mut random = SplitMix64::of(seed, order as u64 / 2);
    let mut all: Vec<usize> = (0..count).collect();
    for i in (1..count).rev() {
        all.swap(i, (random.next_u64() % (i as u64 + 1)) as usize);
    }
    if order % 2 == 1 {
        all.reverse();
    }
    all
}
