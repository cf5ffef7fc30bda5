//! Local and propagated error: what a step makes, what arrives there, what becomes of it.
//!
//! Three runs of a sequence beside the one of the reference, whose tensors are *clean*:
//!
//! | run | its inputs | what is compared |
//! |---|---|---|
//! | the mode, freely | its own | every tensor with the reference's: **propagated** error |
//! | the mode, fed | at every step the clean tensors, as the mode stores them | every tensor a step makes … |
//! | the reference, fed | the very same values | … with what the reference makes of the same values: **local** error |
//!
//! As the mode stores them: a clean value goes to the nearest point of the tensor's grid (INT8 codes,
//! saturated, with the quantizer's scale; or f16). Both fed runs get these values, so the rounding of an
//! input counts once, at the step that writes it, and not again at those that read it. The local error
//! of a step holds its weights' quantization, its arithmetic and its output's quantization, nothing else.
//!
//! A quantizer that the reference lacks (`conv_in`, `x_proj_in`, `ssm_u`) is held against its input.

mod feed;
mod time;

pub use time::{TimeError, Window, error_over_time, errors_over_time};

use super::lineage::{Lineage, Watch, of_watched};
use crate::metrics::{Accumulator, Metric, Metrics};
use crate::trace_file::counterpart::{find, standing_for};
use crate::value::Elements;
use feed::{Fed, Feeder, real_of};
use rayon::prelude::*;
use scalescope_sim::arith::saturate::Status;
use scalescope_sim::dataflow::{Block, Columns, Phase};
use scalescope_sim::datapath::{Datapath, LogitRows};
use scalescope_sim::error::{Result, SimError};
use scalescope_sim::trace::{Place, Probe, Recorder, Selection, Tensor, TracePoint};
use serde::Serialize;
use std::collections::{BTreeMap, BTreeSet};

/// The error of a mode against a reference.
#[derive(Clone, Debug, Serialize)]
pub struct Propagation {
    /// The mode.
    pub mode: String,
    /// The reference.
    pub against: String,
    /// The profile.
    pub profile: String,
    /// Every step of every block, in the order of the data.
    pub sites: Vec<SiteError>,
}

/// The error at one step.
#[derive(Clone, Debug, Serialize)]
pub struct SiteError {
    /// The block; `None` after the last one.
    pub layer: Option<usize>,
    /// The point at which the step's output is seen.
    pub site: &'static str,
    /// Error made here: the step fed with clean inputs.
    pub local: Metrics,
    /// Error with the mode's own inputs.
    pub propagated: Metrics,
    /// The largest propagated `normalized_l2` among the step's inputs; `None` if it has none here.
    pub arriving: Option<f64>,
    /// Propagated `normalized_l2` over what arrives: above 1 the step adds or amplifies.
    pub amplification: Option<f64>,
}

impl SiteError {
    /// `normalized_l2` of the local error.
    pub fn local_l2(&self) -> f64 {
        l2(&self.local)
    }

    /// `normalized_l2` of the propagated error.
    pub fn propagated_l2(&self) -> f64 {
        l2(&self.propagated)
    }
}

fn l2(metrics: &Metrics) -> f64 {
    let reading = metrics.get(Metric::NormalizedL2).value();
    reading.expect("runs of finite tensors")
}

impl Propagation {
    /// The error at a step.
    pub fn get(&self, layer: Option<usize>, site: &str) -> Option<&SiteError> {
        let mut sites = self.sites.iter();
        sites.find(|s| s.layer == layer && s.site == site)
    }

    /// The sites of a block that the mode has, in the order of the data.
    pub fn sites_of_a_block(&self) -> Vec<&'static str> {
        let first = self.sites.iter().filter(|s| s.layer == Some(0));
        first.map(|s| s.site).collect()
    }

    /// Growth of the residual stream's error from each block to the next, the second block's first;
    /// `None` where none arrives.
    pub fn layer_amplification(&self) -> Vec<Option<f64>> {
        let residual = |layer| {
            let site = self.get(Some(layer), TracePoint::ResidualOut.name())?;
            Some(site.propagated_l2())
        };
        let growth = |layer| {
            let (before, after) = (residual(layer - 1)?, residual(layer)?);
            Some((before > 0.0).then_some(after / before))
        };
        (1..).map_while(growth).collect()
    }
}

/// What a step reads of the same block, under the names of sites.
fn inputs(block: &Block, site: TracePoint) -> Vec<TracePoint> {
    let reads = block.site(site).into_iter().flat_map(|row| &row.reads);
    reads
        .filter_map(|read| Some(read.point()?.site(read.columns)))
        .collect()
}

/// Runs a mode and a reference on sequences, freely and fed.
///
/// # Errors
///
/// Models of different shape; tensors that are not finite.
pub fn propagate(
    path: &Datapath,
    reference: &Datapath,
    sequences: &[Vec<u32>],
    mut done: impl FnMut(),
) -> Result<Propagation> {
    let done = || {
        done();
        Ok(())
    };
    let mut one = propagate_all(std::slice::from_ref(path), reference, sequences, done)?;
    Ok(one.remove(0).0)
}

/// As [`propagate`], of several modes, which share the clean run, and what the free runs met at every scale
/// ([`lineage`](super::lineage::lineage)). `done` is called after every mode of every sequence and may end the work.
///
/// # Errors
///
/// As [`propagate`]; that of `done`.
pub fn propagate_all(
    paths: &[Datapath],
    reference: &Datapath,
    sequences: &[Vec<u32>],
    mut done: impl FnMut() -> Result<()>,
) -> Result<Vec<(Propagation, Lineage)>> {
    let mut all: Vec<(BTreeMap<Place, Sums>, Watch)> = (paths.iter())
        .map(|path| (BTreeMap::new(), Watch::new(path)))
        .collect();
    for tokens in sequences {
        let clean = prefilled(reference, tokens, None)?;
        for (path, (sums, watch)) in paths.iter().zip(&mut all) {
            for (place, one) in of_sequence(path, reference, &clean, tokens, watch)? {
                match sums.get_mut(&place) {
                    None => {
                        sums.insert(place, one);
                    }
                    Some(sum) => {
                        sum.local.merge(one.local)?;
                        sum.propagated.merge(one.propagated)?;
                    }
                }
            }
            done()?;
        }
    }
    let both = |(path, (sums, watch)): (&Datapath, (BTreeMap<Place, Sums>, Watch))| {
        let propagation = Propagation {
            mode: path.mode().name.to_string(),
            against: reference.mode().name.to_string(),
            profile: path.profile().name.to_string(),
            sites: finish(sums, &prefill(path))?,
        };
        Ok((propagation, of_watched(path, &watch, sequences)))
    };
    paths.iter().zip(all).map(both).collect()
}

/// Every tensor of a prefill, whose scales are watched.
fn prefilled(
    path: &Datapath,
    tokens: &[u32],
    watch: Option<&mut Watch>,
) -> Result<BTreeMap<Place, Tensor>> {
    let mut watched = Watched {
        recorder: Recorder::new(Selection::default()),
        watch,
    };
    path.prefill(tokens, LogitRows::All, &mut watched)?;
    Ok(watched.recorder.tensors)
}

/// Records every tensor, and watches scales beside.
struct Watched<'a> {
    recorder: Recorder,
    watch: Option<&'a mut Watch>,
}

impl Probe for Watched<'_> {
    fn wants(&self, _place: Place) -> bool {
        true
    }

    fn visit(&mut self, place: Place, value: &mut Tensor) -> Result<()> {
        if let Some(watch) = self.watch.as_mut().filter(|watch| watch.wants(place)) {
            watch.visit(place, value)?;
        }
        self.recorder.visit(place, value)
    }

    fn count(&mut self, place: Place, status: Status) {
        if let Some(watch) = &mut self.watch {
            watch.count(place, status);
        }
    }
}

#[derive(Clone)]
struct Sums {
    local: Accumulator,
    propagated: Accumulator,
}

fn prefill(path: &Datapath) -> Block {
    Block::of(path.mode(), path.profile(), Phase::Prefill)
}

fn finish(sums: BTreeMap<Place, Sums>, block: &Block) -> Result<Vec<SiteError>> {
    let mut sites: Vec<(Place, Metrics, Metrics)> = Vec::new();
    for place in crate::trace_file::in_data_order(sums.keys().copied()) {
        let Sums { local, propagated } = sums[&place].clone();
        let (local, propagated) = (local.finish()?, propagated.finish()?);
        if local.non_finite + propagated.non_finite > 0 {
            let found = format!(
                "{} that are not",
                local.non_finite.max(propagated.non_finite)
            );
            return Err(SimError::value(place, "finite numbers", found));
        }
        sites.push((place, local, propagated));
    }
    let errors: BTreeMap<Place, f64> = sites.iter().map(|s| (s.0, l2(&s.2))).collect();
    let site = |(place, local, propagated): (Place, Metrics, Metrics)| {
        let read = inputs(block, place.point).into_iter();
        let read = read.filter_map(|point| errors.get(&Place { point, ..place }).copied());
        let arriving = read.reduce(f64::max);
        let amplification = arriving.filter(|a| *a > 0.0).map(|a| errors[&place] / a);
        SiteError {
            layer: place.layer,
            site: place.point.name(),
            local,
            propagated,
            arriving,
            amplification,
        }
    };
    Ok(sites.into_iter().map(site).collect())
}

fn of_sequence(
    path: &Datapath,
    reference: &Datapath,
    clean: &BTreeMap<Place, Tensor>,
    tokens: &[u32],
    watch: &mut Watch,
) -> Result<Vec<(Place, Sums)>> {
    let block = prefill(path);
    let clean_block = prefill(reference);
    let free = prefilled(path, tokens, Some(watch))?;
    let places = |run: &BTreeMap<Place, Tensor>| run.keys().copied().collect::<BTreeSet<Place>>();
    let sites = sites_of(&free);
    let propagated: Vec<(Place, Accumulator)> = (sites.par_iter())
        .map(|place| Ok((*place, compare((clean, place.point), &free, *place)?)))
        .collect::<Result<_>>()?;
    let mut feeder = Feeder::new(clean, &clean_block, places(&free));
    drop(free);
    path.prefill(tokens, LogitRows::All, &mut feeder)?;
    let Fed { made, given } = feeder.finish();
    let mut twin = Feeder::new(&given, &block, places(clean));
    reference.prefill(tokens, LogitRows::All, &mut twin)?;
    let twin = twin.finish().made;
    let sums = |(place, propagated): (Place, Accumulator)| {
        // A quantizer that the reference lacks is held against its input. (Where only the mode quantizes
        // for x_proj, the reference's u is what x_proj was given, and says nothing of u.)
        let lacks = |point| {
            let place = Place { point, ..place };
            sites.contains(&place) && !twin.contains_key(&place)
        };
        let row = block.site(place.point).filter(|row| row.is_between_steps());
        let lacking = match place.point {
            TracePoint::SsmU => TracePoint::XProjIn,
            point => point,
        };
        let input = row
            .filter(|_| lacks(lacking))
            .and_then(|_| inputs(&block, place.point).first().copied());
        let expected = match input {
            Some(input) => (&given, input),
            None => (&twin, place.point),
        };
        let local = compare(expected, &made, place)?;
        Ok((place, Sums { local, propagated }))
    };
    propagated.into_par_iter().map(sums).collect()
}

/// The sites of a run: its places, x and z apart, one name for the conv's output.
fn sites_of(tensors: &BTreeMap<Place, Tensor>) -> BTreeSet<Place> {
    let of_place = |place: &Place| {
        let site = |columns| Place {
            point: place.point.site(columns),
            ..*place
        };
        // What the block before handed on was seen there.
        let seen_before = [TracePoint::HiddenIn, TracePoint::ResidualIn].contains(&place.point);
        match place.point.parts() {
            _ if seen_before || place.point.is_scale() => Vec::new(),
            [] => vec![site(Columns::All)],
            parts => parts.iter().map(|part| site(*part)).collect(),
        }
    };
    tensors.keys().flat_map(of_place).collect()
}

/// Compares what a run has at a point, or what stands for it, with the tensor of another at a place; codes keep
/// their grid.
fn compare(
    (expected, point): (&BTreeMap<Place, Tensor>, TracePoint),
    tensors: &BTreeMap<Place, Tensor>,
    place: Place,
) -> Result<Accumulator> {
    let places = |run: &BTreeMap<Place, Tensor>| run.keys().copied().collect::<BTreeSet<Place>>();
    let wanted = Place { point, ..place };
    let clean = match expected.contains_key(&wanted) {
        true => standing_for(place.point, wanted),
        false => find(&places(expected), wanted)
            .ok_or_else(|| SimError::value(wanted, "a tensor of the reference", "none"))?,
    };
    let take = find(&places(tensors), place).expect("a site of this run");
    let width = |run: &BTreeMap<Place, Tensor>, place| run[&place].dim().1;
    let (of_clean, of_taken) = (width(expected, clean.place()), width(tensors, take.place()));
    let clean = real_of(expected, clean, of_taken);
    let x = Elements::F32(clean.as_slice().expect("row-major"));
    if let Tensor::I8(q) = &tensors[&take.place()] {
        let codes = take.columns_of(&q.codes, of_clean);
        let mut sums = Accumulator::new(None, Some(q.scale));
        sums.add(x, Elements::I8(codes.as_slice().expect("row-major")))?;
        return Ok(sums);
    }
    let real = real_of(tensors, take, of_clean);
    let mut sums = Accumulator::new(None, None);
    sums.add(x, Elements::F32(real.as_slice().expect("row-major")))?;
    Ok(sums)
}
