//! The step that makes the first tensor that deviates, by itself: edits of its formula, tried without running
//! the block.

mod donors;
mod solved;

use crate::diagnosis::diagnose::edit::{self, Around, Edit};
use crate::diagnosis::diagnose::formula::{self, Formula, Made, numbers};
use crate::diagnosis::diagnose::locate::elements::{Compared, Judge, pattern_of, values};
use crate::diagnosis::diagnose::locate::{Scene, Search, State};
use crate::diagnosis::diagnose::pattern::{Indices, Pattern};
use crate::value::Value;
use ndarray::Array2;
use rayon::prelude::*;
use scalescope_sim::dataflow::{Block, Row};
use scalescope_sim::trace::{Place, TracePoint};
use std::sync::Arc;

/// Elements of an output that a first look at every edit computes.
const FIRST_LOOK: usize = 200;
/// Those of a second look, at the ones that do best.
const SECOND_LOOK: usize = 2_000;
/// Edits that are looked at again, for each one that is wanted.
const AGAIN: [usize; 2] = [8, 2];
/// A lead that explains nothing by itself brings the step at least this much nearer.
const NEARER: f64 = 0.8;
/// An edit has to explain this share of the first look's mismatches.
const HOPE: f64 = 0.25;
/// No element counts for more, in sizes of the tensor's values.
const FARTHEST: f64 = 4.0;
/// Edits that are combined in twos.
const LEADS: usize = 4;
/// The rank of edits that are tried first.
pub(super) const FREQUENT: usize = 4;
/// The rank of edits that leads are combined with.
const USUAL: usize = 5;
/// Edits that are combined with each other where there is no lead.
const SIMPLE: usize = 48;

/// One tensor of one sequence that is judged.
struct Target {
    made: Array2<f32>,
    dumped: Array2<f32>,
    judge: Judge,
    state: bool,
}

/// One sequence.
struct Sequence {
    formula: Option<Formula>,
    targets: Vec<Target>,
    own: Made,
}

/// The step.
pub struct Local<'a, 'm> {
    row: &'a Row,
    /// The block of each sequence; none where the step stands by itself.
    scenes: Vec<formula::BlockInputs<'a, 'm>>,
    /// Channels of what the step makes.
    width: usize,
    sequences: Vec<Sequence>,
    pattern: Option<Arc<Pattern>>,
    /// Mismatches without an edit.
    base: usize,
}

/// How an edit does: what it leaves everywhere, and restricted to the pattern.
#[derive(Clone, Copy, Default)]
struct Left {
    all: usize,
    restricted: usize,
    /// How far all are off, each over the size of the tensor's values, four at most.
    off: f64,
}

/// Edits that were looked at.
pub struct Looked {
    /// They.
    edits: Vec<Edit>,
    /// What each leaves of a few elements; only of the usual ones where these suffice.
    scored: Vec<Option<Left>>,
    /// The best of them, with what they leave of all elements.
    best: Vec<(usize, Edit)>,
}

impl Looked {
    /// The best ones.
    pub fn best(&self, count: usize) -> Vec<Edit> {
        self.best
            .iter()
            .take(count)
            .map(|(_, e)| e.clone())
            .collect()
    }
}

impl<'a, 'm> Local<'a, 'm> {
    /// The step of a scene's first tensor; `None` where the dump's tensor has another shape.
    pub fn of(
        search: &'a Search,
        state: &'a State<'m>,
        scene: &'a Scene,
        block: &'a Block,
    ) -> Option<Self> {
        let layer = scene.first.layer?;
        let row = block.row(scene.first.point)?;
        let mut places = vec![scene.first];
        if scene.first.point == TracePoint::SsmY {
            places.push(Place::layer(layer, TracePoint::SsmState));
        }
        let (mut scenes, mut sequences) = (Vec::new(), Vec::new());
        for s in 0..search.batch() {
            let here = formula::BlockInputs {
                path: &state.path,
                layer,
                block,
                seen: scene.seen[s].get(&layer)?,
            };
            let mut targets = Vec::new();
            for place in &places {
                let (Some(made), Some(dumped)) =
                    (scene.made[s].get(place), search.sequences[s].get(place))
                else {
                    continue;
                };
                let (found, _) = Value::from_tensor(made.clone());
                if found.dim() != dumped.dim() || found.dtype() != dumped.dtype() {
                    return None;
                }
                let made = values(&found);
                targets.push(Target {
                    judge: Judge::of(found.dtype(), &made),
                    made,
                    dumped: values(dumped),
                    state: place.point.is_state(),
                });
            }
            let own = scene.made[s].get(&scene.first)?;
            let own = Made::of(numbers(own), scene.first.point.is_state());
            let formula = here.formula(row);
            sequences.push(Sequence {
                formula: formula.filter(|f| holds(f, &own)),
                targets,
                own,
            });
            scenes.push(here);
        }
        let width = scenes.first()?.width(row);
        Self::new((row, width), scenes, sequences, scene.pattern.clone())
    }

    /// A step that stands by itself: of each sequence its formula, what it makes, and what a file has.
    pub fn alone(
        row: &'a Row,
        formulas: Vec<Option<Formula>>,
        made: Vec<Array2<f32>>,
        dumped: Vec<Array2<f32>>,
    ) -> Option<Self> {
        let (state, dtype) = (row.point.is_state(), row.format.dtype());
        let width = made.first()?.ncols();
        let all = made.into_iter().zip(dumped);
        let all: Vec<Compared> = all
            .map(|(made, dumped)| Compared::of(dtype, made, dumped))
            .collect();
        let pattern = pattern_of(&all, state);
        let sequences = all.into_iter().zip(formulas).map(|(c, formula)| {
            let own = Made::of(c.made.clone(), state);
            Sequence {
                formula: formula.filter(|f| holds(f, &own)),
                targets: vec![Target {
                    judge: Judge::of(dtype, &c.made),
                    made: c.made,
                    dumped: c.dumped,
                    state,
                }],
                own,
            }
        });
        let sequences = sequences.collect();
        Self::new((row, width), Vec::new(), sequences, Some(pattern))
    }

    /// Mismatches without an edit.
    pub fn base(&self) -> usize {
        self.base
    }

    /// What deviates.
    pub fn pattern(&self) -> Option<&Pattern> {
        self.pattern.as_deref()
    }

    /// Mismatches that an edit leaves.
    pub fn leaves(&self, edit: &Edit) -> usize {
        let left = self.left(edit, None);
        left.map_or(self.base, |left| match edit.only {
            Some(_) => left.restricted,
            None => left.all,
        })
    }

    fn new(
        (row, width): (&'a Row, usize),
        scenes: Vec<formula::BlockInputs<'a, 'm>>,
        sequences: Vec<Sequence>,
        pattern: Option<Pattern>,
    ) -> Option<Self> {
        let base = sequences.iter().map(|s| s.left(&s.own, None).all).sum();
        let local = Self {
            row,
            scenes,
            width,
            sequences,
            pattern: pattern.map(Arc::new),
            base,
        };
        (base > 0).then_some(local)
    }

    /// Channels of a look at so many elements; `None` for all.
    fn look(&self, elements: usize) -> Option<Vec<bool>> {
        // A scale that is found at run time is found from all channels.
        let found = |o: &formula::Output| o.quantizer.as_ref().is_some_and(|q| q.dynamic.is_some());
        let (l, e) = match self.sequences.iter().find_map(|s| s.formula.as_ref())? {
            Formula::Scan(scan) => scan.u.values.dim(),
            Formula::Linear(own) if !found(&own.output) => (own.x.values.nrows(), own.w.nrows()),
            Formula::Conv(own) if !found(&own.output) => own.x.values.dim(),
            _ => return None,
        };
        let count = (elements / l.max(1)).max(8);
        if count >= e {
            return None;
        }
        // Channels that deviate, and some others.
        let target = self.sequences.iter().flat_map(|s| &s.targets).next()?;
        let deviates = |c: usize| {
            let differs = |(a, b): (&f32, &f32)| target.judge.differs(*a, *b);
            match target.state {
                true => target
                    .made
                    .row(c)
                    .iter()
                    .zip(target.dumped.row(c))
                    .any(differs),
                false => target
                    .made
                    .column(c)
                    .iter()
                    .zip(target.dumped.column(c))
                    .any(differs),
            }
        };
        let mut used = vec![false; e];
        let bad: Vec<usize> = (0..e).filter(|c| deviates(*c)).collect();
        for i in 0..count.min(bad.len()) {
            used[bad[i * bad.len() / count.min(bad.len())]] = true;
        }
        for i in 0..count / 4 {
            used[i * e / (count / 4).max(1)] = true;
        }
        Some(used)
    }

    fn left(&self, edit: &Edit, few: Option<&Vec<bool>>) -> Option<Left> {
        let mut total = Left::default();
        for (s, sequence) in self.sequences.iter().enumerate() {
            let around = Around {
                before: s
                    .checked_sub(1)
                    .and_then(|s| Some(self.scenes.get(s)?.seen)),
            };
            let mut formula = sequence.formula.clone();
            match &mut formula {
                Some(Formula::Scan(scan)) => scan.channels = few.cloned(),
                Some(Formula::Linear(linear)) => linear.channels = few.cloned(),
                Some(Formula::Conv(conv)) => conv.channels = few.cloned(),
                _ => {}
            }
            if edit.changes_formula() && formula.is_none() {
                return None;
            }
            let made = edit.run(formula.as_ref(), &sequence.own, around)?;
            let pattern = self.pattern.as_deref().map(|p| (s, p));
            let left = sequence.left_in(&made, pattern, few);
            total.all += left.all;
            total.restricted += left.restricted;
            total.off += left.off;
        }
        Some(total)
    }

    /// The edits that leave the fewest mismatches, restricted to the pattern where that leaves fewer. With `twos` also
    /// what takes longer, where none suffices.
    pub fn best(
        &self,
        wanted: &(dyn Fn(&Edit) -> bool + Sync),
        count: usize,
        twos: bool,
    ) -> Vec<Edit> {
        let looked = self.look_at(wanted, count);
        match twos {
            true => self.twos(looked, count),
            false => looked.best(count),
        }
    }

    /// What every edit leaves, and the best of them by all elements.
    pub fn look_at(&self, wanted: &(dyn Fn(&Edit) -> bool + Sync), count: usize) -> Looked {
        let here = self.scenes.first();
        let formula = self.sequences.iter().find_map(|s| s.formula.as_ref());
        let mut edits = edit::of_row(here, self.row, self.width, formula);
        if let Some(pattern) = &self.pattern {
            edits.extend(edit::of_pattern(here, self.row, pattern));
            edits.extend(self.solved(formula, pattern));
        }
        edits.extend(self.moved());
        edits.extend(self.measured());
        edits.extend(self.measured_output());
        edits.extend(self.on_grid());
        if let Some(tile) = self.first_row().filter(|row| *row > 1) {
            edits.extend(edit::of_tile(here, self.row, formula, tile));
        }
        edits.retain(|e| wanted(e));
        let few = self.look(FIRST_LOOK);
        // The usual mistakes first, and the rare ones where these leave something.
        edits.sort_by_key(|e| e.rank > FREQUENT);
        let (frequent, rare) = edits.split_at(edits.partition_point(|e| e.rank <= FREQUENT));
        let mut scored = self.scored(frequent, few.as_ref());
        let mut best = self.promising(frequent, &scored, few.as_ref(), count);
        if best.first().is_none_or(|b| b.0 > 0) {
            let of_rare = self.scored(rare, few.as_ref());
            best.extend(self.promising(rare, &of_rare, few.as_ref(), count));
            scored.extend(of_rare);
        }
        if !self.is_enough(&best) {
            let more = self.fitted().into_iter().chain(self.donated());
            let more = more.chain(self.first_state());
            let more: Vec<Edit> = more.filter(|e| wanted(e)).collect();
            best.extend(self.tried(more, None));
        }
        best.sort_by_key(|(left, e)| (*left, e.rank));
        Looked {
            edits,
            scored,
            best,
        }
    }

    /// Sums in narrow registers and edits in twos too, where none of those that were looked at suffices.
    pub fn twos(&self, mut looked: Looked, count: usize) -> Vec<Edit> {
        let formula = self.sequences.iter().find_map(|s| s.formula.as_ref());
        if !self.is_enough(&looked.best) {
            let registers = self.tried(self.narrow_sums(formula), None);
            looked.best.extend(registers);
            looked.best.sort_by_key(|(left, e)| (*left, e.rank));
        }
        if !self.is_enough(&looked.best) {
            let few = self.look(FIRST_LOOK);
            let pairs = self.pairs(&looked);
            let scored = self.scored(&pairs, few.as_ref());
            let both = self.promising(&pairs, &scored, few.as_ref(), count);
            let enough = |both: &(usize, Edit)| both.0 * 50 <= self.base;
            looked.best.extend(both.into_iter().filter(enough));
            looked.best.sort_by_key(|(left, e)| (*left, e.rank));
        }
        looked.best(count)
    }

    /// Whether the best one leaves one in fifty or less.
    fn is_enough(&self, best: &[(usize, Edit)]) -> bool {
        best.first().is_some_and(|b| b.0 * 50 <= self.base)
    }

    /// What each edit leaves; `None` where it does not apply.
    fn scored(&self, edits: &[Edit], few: Option<&Vec<bool>>) -> Vec<Option<Left>> {
        edits.par_iter().map(|e| self.left(e, few)).collect()
    }

    /// Edits that explain a part of what deviates, the best first, restricted to the pattern where that leaves fewer.
    fn hopeful(
        &self,
        edits: &[Edit],
        scored: &[Option<Left>],
        few: Option<&Vec<bool>>,
    ) -> Vec<(usize, Edit)> {
        let base = self.unedited(few).all;
        let restricts = self.may_restrict();
        let mut hopeful: Vec<(usize, Edit)> = (edits.iter().zip(scored))
            .filter_map(|(e, left)| {
                let left = (*left)?;
                let restricted = restricts && left.restricted < left.all;
                let best = match restricted {
                    true => left.restricted,
                    false => left.all,
                };
                let only = self.pattern.clone().filter(|_| restricted);
                let explained = base.saturating_sub(best) as f64 / base.max(1) as f64;
                (explained >= HOPE).then(|| (best, Edit { only, ..e.clone() }))
            })
            .collect();
        hopeful.sort_by_key(|(left, e)| (*left, e.rank + 2 * usize::from(e.only.is_some())));
        hopeful
    }

    /// The best of those that a look at few elements shows, by all elements.
    fn promising(
        &self,
        edits: &[Edit],
        scored: &[Option<Left>],
        few: Option<&Vec<bool>>,
        count: usize,
    ) -> Vec<(usize, Edit)> {
        let mut best = self.hopeful(edits, scored, few);
        if few.is_some() {
            for (again, elements) in AGAIN.into_iter().zip([Some(SECOND_LOOK), None]) {
                best.truncate(again * count);
                let few = elements.and_then(|elements| self.look(elements));
                best = self.tried(best.into_iter().map(|(_, e)| e).collect(), few.as_ref());
            }
        }
        best
    }

    fn tried(&self, edits: Vec<Edit>, few: Option<&Vec<bool>>) -> Vec<(usize, Edit)> {
        self.hopeful(&edits, &self.scored(&edits, few), few)
    }

    /// What deviates without an edit.
    fn unedited(&self, few: Option<&Vec<bool>>) -> Left {
        let mut total = Left::default();
        for sequence in &self.sequences {
            let left = sequence.left_in(&sequence.own, None, few);
            total.all += left.all;
            total.off += left.off;
        }
        total
    }

    /// Two edits together: leads, by what they explain or by how near they come, with all others; the simplest
    /// mistakes with each other where nothing is explained.
    fn pairs(&self, looked: &Looked) -> Vec<Edit> {
        let Looked {
            edits,
            scored,
            best,
        } = looked;
        let base = self.unedited(self.look(FIRST_LOOK).as_ref()).off;
        let mut near: Vec<(f64, &Edit)> = (edits.iter().zip(scored))
            .filter_map(|(e, left)| Some((left.as_ref()?.off, e)))
            .filter(|(off, _)| *off < NEARER * base)
            .collect();
        near.sort_by(|a, b| a.0.total_cmp(&b.0).then(a.1.rank.cmp(&b.1.rank)));
        // One of a kind and site: what is nearly the same does not help twice.
        let mut leads: Vec<&Edit> = best.iter().take(LEADS).map(|(_, e)| e).collect();
        for (_, e) in near {
            let new = |lead: &&Edit| (lead.kind, &lead.site) != (e.kind, &e.site);
            if leads.len() < 2 * LEADS && leads.iter().all(new) {
                leads.push(e);
            }
        }
        let apart = |a: &Edit, b: &Edit| (a.kind, &a.site) != (b.kind, &b.site);
        let usual: Vec<&Edit> = edits.iter().filter(|e| e.rank <= USUAL).collect();
        let with_all = leads
            .iter()
            .flat_map(|lead| usual.iter().map(move |e| (*lead, *e)));
        let mut pairs: Vec<Edit> = with_all
            .filter(|(lead, e)| apart(lead, e))
            .map(|(lead, e)| lead.and(e))
            .collect();
        if best.is_empty() {
            let simple = |e: &&Edit| e.rank <= 1 && e.changes_formula();
            let simple: Vec<&Edit> = edits.iter().filter(simple).take(SIMPLE).collect();
            for (i, a) in simple.iter().enumerate() {
                let others = simple[i + 1..].iter().filter(|b| a.site != b.site);
                pairs.extend(others.map(|b| a.and(b)));
            }
        }
        pairs
    }

    /// Whether edits are tried on the pattern's part alone: not where few elements would prove anything.
    fn may_restrict(&self) -> bool {
        let Some(pattern) = &self.pattern else {
            return false;
        };
        let target = self.sequences.iter().flat_map(|s| &s.targets).next();
        let Some(target) = target else { return false };
        let (rows, columns) = target.made.dim();
        let count = |of: &Indices, n: usize| (0..n).filter(|i| of.contains(*i)).count();
        let inside = count(&pattern.sequences, self.sequences.len())
            * count(&pattern.tokens, rows)
            * count(&pattern.channels, columns);
        pattern.is_part() && pattern.deviating >= 8 && inside >= 16 && pattern.accident < -6.0
    }

    /// The first token that deviates.
    fn first_row(&self) -> Option<usize> {
        let targets = self.sequences.iter().filter_map(|s| s.targets.first());
        let first = |t: &Target| {
            let rows = t.made.rows().into_iter().zip(t.dumped.rows());
            let differs = |(a, b): (ndarray::ArrayView1<f32>, ndarray::ArrayView1<f32>)| {
                a.iter().zip(b).any(|(a, b)| t.judge.differs(*a, *b))
            };
            rows.into_iter().position(differs)
        };
        targets.filter(|t| !t.state).filter_map(first).min()
    }
}

/// Whether a formula without an edit makes what the step makes, within the last place.
fn holds(formula: &Formula, own: &Made) -> bool {
    let made = formula.run();
    let (found, expected) = match (&own.state, &made.state) {
        (Some(own), Some(made)) => (made, own),
        (None, _) => (&made.out, &own.out),
        _ => return false,
    };
    if found.dim() != expected.dim() {
        return false;
    }
    let unit = expected.iter().map(|v| v.abs()).fold(0.0, f32::max);
    let off = found.iter().zip(expected).filter(|(a, b)| {
        (**a - **b).abs() > 2e-3 * unit.max(b.abs()).min(b.abs().max(1e-2 * unit))
    });
    off.count() * 200 <= expected.len()
}

impl Sequence {
    fn left(&self, made: &Made, pattern: Option<(usize, &Pattern)>) -> Left {
        self.left_in(made, pattern, None)
    }

    fn left_in(
        &self,
        made: &Made,
        pattern: Option<(usize, &Pattern)>,
        few: Option<&Vec<bool>>,
    ) -> Left {
        let mut left = Left::default();
        for target in &self.targets {
            let edited = match target.state {
                true => made.state.as_ref().unwrap_or(&target.made),
                false => &made.out,
            };
            if edited.dim() != target.made.dim() {
                left.all += target.made.len();
                left.restricted += target.made.len();
                left.off += FARTHEST * target.made.len() as f64;
                continue;
            }
            for (at, edited) in edited.indexed_iter() {
                let channel = if target.state { at.0 } else { at.1 };
                if few.is_some_and(|few| !few[channel]) {
                    continue;
                }
                let dumped = target.dumped[at];
                let wrong = target.judge.differs(*edited, dumped);
                left.all += usize::from(wrong);
                if wrong {
                    // Not a number is as far off as can be.
                    left.off += target.judge.distance(*edited, dumped).min(FARTHEST);
                }
                left.restricted += match pattern {
                    Some((s, pattern)) if !pattern.contains(s, at.0, at.1) => {
                        usize::from(target.judge.differs(target.made[at], dumped))
                    }
                    _ => usize::from(wrong),
                };
            }
        }
        left
    }
}
