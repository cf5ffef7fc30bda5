//! In which mode a dump was made: of the modes, the one that the dump's tensors follow best, each judged with
//! the dump's own inputs. Tensors alone decide; metadata is not read.

use super::known::Known;
use super::put_back;
use crate::trace_file::{Points, TraceFile, in_data_order};
use crate::value::Value;
use ndarray::Array2;
use scalescope_sim::dataflow::{Block, Phase};
use scalescope_sim::datapath::Datapath;
use scalescope_sim::error::{Result, SimError};
use scalescope_sim::mode::ModeSpec;
use scalescope_sim::model::Model;
use scalescope_sim::profile::{CHIP_PROFILES, Profile};
use scalescope_sim::trace::{Place, Probe, Tensor};
use serde::Serialize;
use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

/// Blocks of the dump that are looked at first; all of them where that leaves several modes.
const BLOCKS: usize = 2;
/// Modes that are tried in every profile.
const CLOSEST: usize = 4;

/// The mode that a dump follows best.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Recognised {
    /// Its name.
    pub mode: String,
    /// The profile whose arithmetic the dump follows best in it.
    pub profile: String,
    /// Share of the dump's elements that this mode makes otherwise, averaged over its tensors.
    pub differs: f64,
    /// Blocks looked at.
    pub blocks: Vec<usize>,
    /// Other modes that it follows just as well.
    pub as_well: Vec<String>,
    /// The best mode that it follows less well, and the share there.
    pub next: Option<(String, f64)>,
    /// The share in the mode that was asked about, if one was.
    #[serde(skip)]
    pub asked: Option<f64>,
}

impl Recognised {
    /// Whether another mode than the one asked about is clearly meant.
    pub fn is_another(&self, asked: &str) -> bool {
        let tied = self.mode == asked || self.as_well.iter().any(|mode| mode == asked);
        !tied && self.asked.is_some_and(|share| 2.0 * self.differs < share)
    }
}

impl fmt::Display for Recognised {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let share = |share: f64| match share {
            0.0 => "no element differs".to_owned(),
            share => format!("{} of its elements differ", percent(share)),
        };
        let (first, last) = (self.blocks.first(), self.blocks.last());
        let (word, blocks) = match (first, last) {
            (Some(first), Some(last)) if first == last => ("block", first.to_string()),
            (Some(first), Some(last)) if last - first + 1 == self.blocks.len() => {
                ("blocks", format!("{first} to {last}"))
            }
            _ => {
                let blocks: Vec<String> = self.blocks.iter().map(ToString::to_string).collect();
                ("blocks", blocks.join(", "))
            }
        };
        write!(
            f,
            "mode {}: {} in {word} {} (profile {})",
            self.mode,
            share(self.differs),
            blocks,
            self.profile
        )?;
        match self.as_well.as_slice() {
            [] => {}
            [one] => write!(f, "; mode {one} fits as well")?,
            more => write!(f, "; modes {} fit as well", more.join(", "))?,
        }
        match &self.next {
            Some((mode, differs)) => {
                write!(
                    f,
                    "; the next is mode {mode}, where {} differ",
                    percent(*differs)
                )
            }
            None => Ok(()),
        }
    }
}

fn percent(share: f64) -> String {
    let percent = 100.0 * share;
    // Two digits, and no exponent where a few noughts do.
    let digits = (1.0 - percent.log10()).ceil().clamp(1.0, 6.0) as usize;
    format!("{percent:.digits$} %")
}

/// A mode in a profile.
struct Tried<'a> {
    /// Its place in the table of modes.
    place: usize,
    mode: &'a ModeSpec,
    profile: &'a Profile,
    differs: f64,
}

/// The mode of `modes`, in one of `profiles`, that made a dump. `asked` is the mode that its user names.
///
/// # Errors
///
/// No tensors of a prefill, none that a mode could be told by, or a model that lacks a part of one.
pub fn recognise(
    model: &Model,
    modes: &[ModeSpec],
    profiles: &[Profile],
    trace: &TraceFile,
    asked: Option<&str>,
) -> Result<Recognised> {
    let dump = Dump::of(trace)?;
    let Some((first, others)) = profiles.split_first() else {
        return Err(SimError::value("profile", "at least one", "none"));
    };
    // Some need a float model beside the quantized one; those are refused where they are tried.
    let chips: Vec<Profile> = match others.is_empty() {
        true => Vec::new(),
        false => (CHIP_PROFILES.iter())
            .map(|(name, _)| Profile::get(name))
            .collect::<Result<_>>()?,
    };
    let all = dump.blocks(usize::MAX);
    let mut blocks = dump.blocks(BLOCKS);
    let mut tried = dump.try_modes(model, modes, first, &blocks, asked)?;
    if tried.is_empty() && all.len() > blocks.len() {
        blocks.clone_from(&all);
        tried = dump.try_modes(model, modes, first, &blocks, asked)?;
    }
    let close: Vec<&ModeSpec> = tried.iter().take(CLOSEST).map(|t| t.mode).collect();
    for mode in &close {
        for profile in others {
            let differs = dump.differs(model, mode, profile, &blocks)?;
            let own = tried.iter_mut().find(|t| t.mode.name == mode.name);
            if let (Some(own), Some((differs, _))) = (own, differs)
                && differs < own.differs
            {
                (own.profile, own.differs) = (profile, differs);
            }
        }
    }
    sort(&mut tried);
    // What no device's arithmetic makes may be a chip's, which is clearly nearer then: it is found on the best mode, and
    // the others are tried in it.
    if let Some(best) = tried.first().filter(|t| t.differs > 0.0) {
        let (mode, near) = (best.mode, best.differs / 2.0);
        let differs = |mode, chip| Some(dump.differs(model, mode, chip, &blocks).ok()??.0);
        let found = (chips.iter())
            .filter_map(|chip| Some((differs(mode, chip)?, chip)))
            .min_by(|a, b| a.0.total_cmp(&b.0));
        if let Some((_, chip)) = found.filter(|(differs, _)| *differs < near) {
            for t in tried
                .iter_mut()
                .filter(|t| close.iter().any(|mode| mode.name == t.mode.name))
            {
                let differs = differs(t.mode, chip).filter(|differs| *differs < t.differs);
                if let Some(differs) = differs {
                    (t.profile, t.differs) = (chip, differs);
                }
            }
            sort(&mut tried);
        }
    }
    // Modes that part in later blocks alone.
    let tied = |tried: &[Tried]| {
        let best = tried.first().map(|t| t.differs);
        tried.iter().take_while(|t| Some(t.differs) == best).count()
    };
    if tied(&tried) > 1 && all.len() > blocks.len() {
        // And the one after them, so that its share is one of the same blocks.
        let ties = (tied(&tried) + 1).min(tried.len());
        for t in &mut tried[..ties] {
            let differs = dump.differs(model, t.mode, t.profile, &all)?;
            t.differs = differs.map_or(t.differs, |(differs, _)| differs);
        }
        sort(&mut tried[..ties]);
        blocks = all;
    }
    let ties = tied(&tried);
    let Some(found) = tried.first() else {
        return Err(dump.tells_nothing());
    };
    let named = |t: &Tried| t.mode.name.to_string();
    Ok(Recognised {
        mode: named(found),
        profile: found.profile.name.to_string(),
        differs: found.differs,
        blocks,
        as_well: tried[1..ties].iter().map(named).collect(),
        next: tried.get(ties).map(|t| (named(t), t.differs)),
        asked: tried
            .iter()
            .find(|t| Some(&*t.mode.name) == asked)
            .map(|t| t.differs),
    })
}

/// The best first; of modes that are as good, the first of the table.
fn sort(tried: &mut [Tried]) {
    tried.sort_by(|a, b| a.differs.total_cmp(&b.differs).then(a.place.cmp(&b.place)));
}

/// The first sequence of a dump.
struct Dump<'a> {
    points: &'a Points,
    tokens: Vec<u32>,
    has_tokens: bool,
}

impl<'a> Dump<'a> {
    fn of(trace: &'a TraceFile) -> Result<Self> {
        let whole =
            |(place, _): &(&Place, &Value)| !place.point.is_state() && !place.point.is_scale();
        let found = trace.sequences.first().and_then(|points| {
            let (_, value) = points.iter().find(whole)?;
            Some((points, value.dim().0))
        });
        let Some((points, length)) = found else {
            let expected = "a tensor of a prefill, which the mode is told from (or --mode NAME)";
            return Err(SimError::value("trace", expected, "none"));
        };
        Ok(Self {
            points,
            tokens: match &trace.tokens {
                Some(tokens) => tokens.row(0).to_vec(),
                None => vec![0; length],
            },
            has_tokens: trace.tokens.is_some(),
        })
    }

    /// The first blocks of which the dump holds something.
    fn blocks(&self, count: usize) -> Vec<usize> {
        let held: BTreeSet<usize> = self.points.keys().filter_map(|place| place.layer).collect();
        held.into_iter().take(count).collect()
    }

    /// Tensors of these blocks.
    fn tensors(&self, blocks: &[usize]) -> impl Iterator<Item = (&'a Place, &'a Value)> {
        let points = self.points.iter();
        points.filter(|(place, _)| is_of(**place, blocks))
    }

    /// How many tensors of these blocks a mode does not make, or makes in another type.
    fn unlike(&self, mode: &ModeSpec, profile: &Profile, blocks: &[usize]) -> usize {
        let block = Block::of(mode, profile, Phase::Prefill);
        let unlike = |(place, value): &(&Place, &Value)| match block.row(place.point) {
            Some(row) => value.in_type(row.format.dtype()).is_none(),
            None => true,
        };
        self.tensors(blocks).filter(unlike).count()
    }

    /// The modes that say something of these blocks, the best first; none if no tensor can be judged by any.
    fn try_modes<'m>(
        &self,
        model: &Model,
        modes: &'m [ModeSpec],
        profile: &'m Profile,
        blocks: &[usize],
        asked: Option<&str>,
    ) -> Result<Vec<Tried<'m>>> {
        let unlike = |mode: &ModeSpec| self.unlike(mode, profile, blocks);
        let mut order: Vec<(usize, &ModeSpec, usize)> = (modes.iter().enumerate())
            .map(|(place, mode)| (place, mode, unlike(mode)))
            .collect();
        order.sort_by_key(|(_, _, unlike)| *unlike);
        let count = self.tensors(blocks).count().max(1) as f64;
        let mut best = f64::INFINITY;
        let mut tried = Vec::new();
        let mut any = false;
        for (place, mode, unlike) in order {
            // What the types alone tell is less than the whole.
            let unlike = unlike as f64 / count;
            let differs = match unlike > best && asked != Some(&mode.name) {
                true => unlike,
                false => match self.differs(model, mode, profile, blocks)? {
                    Some((differs, judged)) => {
                        any |= judged;
                        differs
                    }
                    None => continue,
                },
            };
            best = best.min(differs);
            tried.push(Tried {
                place,
                mode,
                profile,
                differs,
            });
        }
        if !any {
            tried.clear();
        }
        sort(&mut tried);
        Ok(tried)
    }

    /// The answer where no tensor can be judged.
    fn tells_nothing(&self) -> SimError {
        let expected =
            "tensors that follow from others of the file, which tell the mode (or --mode NAME)";
        let places = in_data_order(self.points.keys().copied());
        let found = match places.as_slice() {
            [one] => format!("{one} alone"),
            more => format!("{} tensors, none of which does", more.len()),
        };
        SimError::value("trace", expected, found)
    }

    /// The share of elements that a mode makes otherwise, averaged over the tensors of `blocks`; a tensor
    /// that it does not make, or makes in another type, differs all through. Also whether any that it makes is
    /// judged; `None` if it makes all and none can be.
    fn differs(
        &self,
        model: &Model,
        mode: &ModeSpec,
        profile: &Profile,
        blocks: &[usize],
    ) -> Result<Option<(f64, bool)>> {
        let path = Datapath::new(model, mode, profile)?;
        let mut known = Known::of(&path);
        known.prefill(self.has_tokens);
        let mut seen = Seen {
            points: self.points,
            blocks,
            known,
            shares: BTreeMap::new(),
        };
        let mut passing = path.start(&self.tokens)?;
        // Blocks that the dump does not hold make nothing that could be judged.
        for layer in blocks.iter().filter(|l| **l < path.config().n_layers) {
            if *layer > 0 && passing.residual.is_none() {
                passing.residual = Some(Array2::zeros(passing.hidden.dim()));
            }
            passing = path.prefill_block(*layer, passing, &mut seen)?.0;
        }
        let (mut sum, mut count, mut judged) = (0.0, 0, false);
        for (place, _) in self.tensors(blocks) {
            match seen.shares.get(place) {
                // Inputs that nobody can vouch for say nothing.
                Some(None) => continue,
                Some(Some(share)) => {
                    sum += share;
                    judged = true;
                }
                None => sum += 1.0,
            }
            count += 1;
        }
        Ok((count > 0).then(|| (sum / f64::from(count), judged)))
    }
}

/// Whether a place belongs to one of these blocks.
fn is_of(place: Place, blocks: &[usize]) -> bool {
    place.layer.is_some_and(|layer| blocks.contains(&layer))
}

/// Compares what a run makes with the dump's tensors, and puts those in place.
struct Seen<'a> {
    points: &'a Points,
    blocks: &'a [usize],
    known: Known,
    /// The share of elements that differ; `None` if the tensor is given, not judged.
    shares: BTreeMap<Place, Option<f64>>,
}

impl Probe for Seen<'_> {
    fn wants(&self, place: Place) -> bool {
        is_of(place, self.blocks) && self.points.contains_key(&place)
    }

    fn counts(&self) -> bool {
        false
    }

    fn visit(&mut self, place: Place, value: &mut Tensor) -> Result<()> {
        let (made, _) = Value::from_tensor(value.clone());
        let dumped = self.points[&place].in_type(made.dtype());
        let dumped = dumped.filter(|dumped| dumped.dim() == made.dim());
        let judged = self.known.knows(place);
        let share = dumped.as_ref().map_or(1.0, |dumped| made.differs(dumped));
        self.shares.insert(place, judged.then_some(share));
        if let Some(dumped) = dumped {
            self.known.given(place);
            *value = put_back(value, dumped.into_owned());
        }
        Ok(())
    }
}
