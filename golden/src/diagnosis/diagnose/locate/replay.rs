//! Runs blocks with a dump's tensors in place, and says how far what is made there is from the dump.

use crate::diagnosis::diagnose::candidate::{Misread, Reading};
use crate::diagnosis::diagnose::edit::{Around, Edit};
use crate::diagnosis::diagnose::formula::{BlockInputs, Formula, Seen};
use crate::trace_file::Points;
use crate::ulp::ulp_f16;
use crate::value::{Elements, Value};
use half::f16;
use ndarray::s;
use scalescope_sim::dataflow::{Block, Phase};
use scalescope_sim::datapath::{BlockInput, Datapath, LogitRows};
use scalescope_sim::error::{Result, SimError};
use scalescope_sim::random::Congruential;
use scalescope_sim::trace::{Place, Probe, Tensor, TracePoint};
use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;
use std::sync::{Arc, Mutex, PoisonError};

/// When two elements count as equal.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Closeness {
    /// The same bits.
    Bits,
    /// The same codes; floats about one ulp of binary16 apart, or a ten-thousandth of the tensor's
    /// root mean square: a dump of another implementation, whose functions round otherwise.
    Near,
}

/// How one tensor compares.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct PointScore {
    /// Elements compared.
    pub compared: usize,
    /// Elements that are not equal.
    pub mismatched: usize,
    /// Elements whose bits differ.
    pub bits: usize,
    /// Elements that are not near: other codes, floats that are more than about an ulp apart.
    pub far: usize,
    /// Sum over elements of the difference, at most 1 each: of 8 codes, of the root mean square.
    pub distance: f64,
    /// Largest difference, in codes or in root mean squares.
    pub largest: f64,
    /// The first row that has an element which is not equal.
    pub first_row: Option<usize>,
}

/// How a replay compares, place by place.
pub type Score = BTreeMap<Place, PointScore>;

/// Elements that are not equal.
pub fn mismatched(score: &Score) -> usize {
    score.values().map(|s| s.mismatched).sum()
}

/// The mean over places of their mean difference; what a fit makes small.
pub fn distance(score: &Score) -> f64 {
    let mean = |s: &PointScore| s.distance / s.compared.max(1) as f64;
    score.values().map(mean).sum()
}

/// Adds the score of another sequence.
pub fn add(total: &mut Score, other: Score) {
    for (place, s) in other {
        total.entry(place).or_default().add(s);
    }
}

/// The blocks that a replay runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Window {
    /// The first block.
    pub first: usize,
    /// One past the last.
    pub end: usize,
    /// Whether the logits follow.
    pub head: bool,
}

/// The formulas of steps whose tensors are the same in many replays.
#[derive(Default)]
pub struct Formulas(Mutex<BTreeMap<Place, Arc<Option<Formula>>>>);

impl Formulas {
    fn of(&self, place: Place, make: impl FnOnce() -> Option<Formula>) -> Arc<Option<Formula>> {
        let mut all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        Arc::clone(all.entry(place).or_insert_with(|| Arc::new(make())))
    }
}

/// A replay of one sequence: what it looks at, and what it saw.
pub struct Replay<'a> {
    points: &'a Points,
    /// Rows that run; `None` for all, states included.
    rows: Option<usize>,
    closeness: Closeness,
    misread: &'a [Misread],
    /// Edits, the first ones of a tensor first.
    pub edits: &'a [Edit],
    /// The number of the sequence.
    pub sequence: usize,
    /// The tensors of the sequence before, by block.
    pub before: Option<&'a BTreeMap<usize, Seen>>,
    /// Blocks all of whose tensors are kept.
    pub keeps: Range<usize>,
    /// Whether floats that are not known to the last bit get the noise of another device.
    pub noise: Option<&'a BTreeSet<Place>>,
    /// Which noise it is, of many.
    pub draw: u64,
    /// Where the replay ends.
    pub stop: Option<Place>,
    /// Formulas that were made by another replay of the same tensors.
    pub formulas: Option<&'a Formulas>,
    stopped: bool,
    /// What was compared.
    pub score: Score,
    /// What went on, of the blocks that are kept.
    pub seen: BTreeMap<usize, Seen>,
    /// What the steps made, of the blocks that are kept.
    pub made: BTreeMap<Place, Tensor>,
}

impl<'a> Replay<'a> {
    /// A replay of one sequence.
    pub fn new(
        points: &'a Points,
        rows: Option<usize>,
        closeness: Closeness,
        misread: &'a [Misread],
    ) -> Self {
        Self {
            points,
            rows,
            closeness,
            misread,
            edits: &[],
            sequence: 0,
            before: None,
            keeps: 0..0,
            noise: None,
            draw: 0,
            stop: None,
            formulas: None,
            stopped: false,
            score: Score::new(),
            seen: BTreeMap::new(),
            made: BTreeMap::new(),
        }
    }

    /// Runs blocks from what the first one gets; returns what the last one hands on, `None` if the replay
    /// ended before.
    pub fn run(
        &mut self,
        path: &Datapath,
        window: Window,
        mut passing: BlockInput,
    ) -> Result<Option<BlockInput>> {
        if let Some(rows) = self.rows {
            passing = first_rows(&passing, rows);
        }
        let block = Block::of(path.mode(), path.profile(), Phase::Prefill);
        let mut looking = Looking {
            replay: self,
            path,
            block: &block,
        };
        for block in window.first..window.end {
            let done = path.prefill_block(block, passing, &mut looking);
            match done {
                Err(_) if looking.replay.stopped => return Ok(None),
                other => passing = other?.0,
            }
        }
        if window.head {
            let places = [TracePoint::Logits, TracePoint::NormFOut];
            let logits = places
                .map(Place::end)
                .iter()
                .any(|place| looking.replay.points.contains_key(place));
            let rows = match logits {
                true => LogitRows::All,
                false => LogitRows::None,
            };
            match path.finish(passing.clone(), rows, &mut looking) {
                Err(_) if looking.replay.stopped => return Ok(None),
                other => {
                    other?;
                }
            }
        }
        Ok(Some(passing))
    }
}

/// The probe of a replay.
struct Looking<'r, 'a, 'm> {
    replay: &'r mut Replay<'a>,
    path: &'r Datapath<'m>,
    block: &'r Block,
}

fn first_rows(passing: &BlockInput, rows: usize) -> BlockInput {
    let cut = |t: &Tensor| -> Tensor {
        match t {
            Tensor::F16(a) => Tensor::F16(a.slice(s![..rows, ..]).to_owned()),
            other => Tensor::F32(other.to_real().slice(s![..rows, ..]).to_owned()),
        }
    };
    BlockInput {
        hidden: cut(&passing.hidden),
        residual: passing
            .residual
            .as_ref()
            .map(|r| r.slice(s![..rows, ..]).to_owned()),
    }
}

/// The first rows of a dumped tensor; one that lies wrong may have fewer.
fn rows_of(value: &Value, rows: usize) -> Value {
    let cut = s![..rows.min(value.dim().0), ..];
    match value {
        Value::I8(a) => Value::I8(a.slice(cut).to_owned()),
        Value::F16(a) => Value::F16(a.slice(cut).to_owned()),
        Value::F32(a) => Value::F32(a.slice(cut).to_owned()),
    }
}

impl Replay<'_> {
    fn keeps(&self, place: Place) -> bool {
        let edited = || {
            self.edits
                .iter()
                .any(|edit| Some(edit.layer) == place.layer)
        };
        // What follows the last block is kept with any of them.
        let kept = |layer: usize| self.keeps.contains(&layer);
        place.layer.map_or(!self.keeps.is_empty(), kept) || edited()
    }

    /// Compares a tensor of the dump and puts it in place.
    fn dumped(&mut self, place: Place, value: &mut Tensor) -> Result<()> {
        let misread = self.misread.iter().find(|m| m.place == place);
        let whole = &self.points[&place];
        let cut = |value: &Value| match self.rows {
            Some(rows) => rows_of(value, rows),
            None => value.clone(),
        };
        // A buffer is misread as a whole, and cut afterwards.
        let undone = misread.map(|m| cut(&m.undo(whole)));
        let dumped = cut(whole);
        let (judged, handed_on) = match misread.map(|m| m.reading) {
            None => (&dumped, &dumped),
            Some(Reading::DumpLies) => {
                (undone.as_ref().expect("set"), undone.as_ref().expect("set"))
            }
            Some(Reading::ProducerWrites) => (undone.as_ref().expect("set"), &dumped),
            Some(Reading::ConsumerReads) => (&dumped, undone.as_ref().expect("set")),
        };
        let (found, _) = Value::from_tensor(value.clone());
        if self.rows.is_none() {
            check_shape(place, whole, &found)?;
        }
        let score = self.score.entry(place).or_default();
        compare(score, judged, &found, self.closeness);
        if handed_on.dim() == found.dim() && handed_on.dtype() == found.dtype() {
            *value = match (&*value, handed_on.clone()) {
                (Tensor::Codes(_), Value::I8(codes)) => Tensor::Codes(codes),
                (value, file) => file.into_tensor(value.scale()),
            };
        }
        Ok(())
    }
}

impl Probe for Looking<'_, '_, '_> {
    fn wants(&self, place: Place) -> bool {
        let replay = &*self.replay;
        let here = replay.points.contains_key(&place)
            && !(place.point.is_state() && replay.rows.is_some());
        here || replay.keeps(place)
            || replay.stop == Some(place)
            || replay.noise.is_some() && is_noisy(place)
    }

    fn counts(&self) -> bool {
        false
    }

    fn visit(&mut self, place: Place, value: &mut Tensor) -> Result<()> {
        let replay = &mut *self.replay;
        let keeps = replay.keeps(place);
        let own = value.clone();
        let alone = |edit: &Edit| edit.alone && edit.makes(place);
        for edit in replay.edits {
            if !edit.makes(place) {
                continue;
            }
            let layer = edit.layer;
            let nothing = Seen::new();
            let scene = BlockInputs {
                path: self.path,
                layer,
                block: self.block,
                seen: replay.seen.get(&layer).unwrap_or(&nothing),
            };
            let around = Around {
                before: replay.before.and_then(|before| before.get(&layer)),
            };
            let Some(row) = self.block.row(place.point) else {
                continue;
            };
            let formula = edit.changes_formula().then(|| match replay.formulas {
                Some(formulas) => formulas.of(place, || scene.formula(row)),
                None => Arc::new(scene.formula(row)),
            });
            let formula = formula.as_deref().and_then(Option::as_ref);
            if let Some(edited) = edit.apply(formula, row, value, (replay.sequence, around)) {
                *value = edited;
            }
        }
        if keeps {
            replay.made.insert(place, value.clone());
        }
        let whole_only = place.point.is_state() && replay.rows.is_some();
        if replay.points.contains_key(&place) && !whole_only {
            replay.dumped(place, value)?;
        }
        if replay.edits.iter().any(alone) {
            *value = own;
        }
        if let Some(known) = replay.noise
            && is_noisy(place)
            && !known.contains(&place)
        {
            shake(value, place, replay.sequence, replay.draw);
        }
        if let (true, Some(layer)) = (keeps, place.layer) {
            let seen = replay.seen.entry(layer).or_default();
            seen.insert(place.point, value.clone());
        }
        if replay.stop == Some(place) {
            replay.stopped = true;
            return Err(SimError::value("replay", "to end here", place));
        }
        Ok(())
    }
}

/// Whether another device's floats differ here in the last bit.
fn is_noisy(place: Place) -> bool {
    matches!(
        place.point,
        TracePoint::SsmY | TracePoint::ConvOutF32 | TracePoint::SsmU
    )
}

/// Moves one float in twenty-five to a neighbour: twice what another device's floats differ by.
fn shake(value: &mut Tensor, place: Place, sequence: usize, draw: u64) {
    let here = (place.layer.unwrap_or(99) * 64 + sequence) as u64;
    let mut random = Congruential(0x9E37_79B9_7F4A_7C15 ^ here ^ draw << 32);
    let mut moved = move || match random.below(100) {
        0 | 1 => Some(1i8),
        2 | 3 => Some(-1),
        _ => None,
    };
    match value {
        Tensor::F16(a) => a.iter_mut().for_each(|v| {
            if let Some(by) = moved() {
                let bits = v.to_bits();
                let other = if by > 0 {
                    bits.wrapping_add(1)
                } else {
                    bits.wrapping_sub(1)
                };
                let other = f16::from_bits(other);
                if other.is_finite() && bits & 0x7fff != 0 {
                    *v = other;
                }
            }
        }),
        Tensor::F32(a) => a.iter_mut().for_each(|v| {
            if let Some(by) = moved() {
                *v = if by > 0 { v.next_up() } else { v.next_down() };
            }
        }),
        Tensor::I8(_) | Tensor::Codes(_) => {}
    }
}

/// How far two tensors of one place are apart.
pub fn between(a: &Tensor, b: &Tensor, closeness: Closeness) -> PointScore {
    let (a, _) = Value::from_tensor(a.clone());
    let (b, _) = Value::from_tensor(b.clone());
    between_values(&a, &b, closeness)
}

/// The same of what a file has and what is made.
pub fn between_values(dumped: &Value, made: &Value, closeness: Closeness) -> PointScore {
    let mut score = PointScore::default();
    compare(&mut score, dumped, made, closeness);
    score
}

/// A tensor of this model, or one whose axes have changed places.
fn check_shape(place: Place, dumped: &Value, made: &Value) -> Result<()> {
    let (rows, columns) = made.dim();
    match dumped.dim() == (rows, columns) || dumped.dim() == (columns, rows) {
        true => Ok(()),
        false => Err(SimError::value(
            place,
            format_args!("[{rows}, {columns}], as the model makes"),
            dumped.describe(),
        )),
    }
}

/// Compares a dumped tensor with what is made; another type or shape is no agreement at all.
fn compare(score: &mut PointScore, dumped: &Value, found: &Value, closeness: Closeness) {
    let count = found.elements().len();
    score.compared += count;
    if dumped.dim() != found.dim() || dumped.dtype() != found.dtype() {
        score.mismatched += count;
        score.bits += count;
        score.far += count;
        score.distance += count as f64;
        score.largest = f64::INFINITY;
        score.first_row = Some(0);
        return;
    }
    let columns = found.dim().1;
    match (dumped.elements(), found.elements()) {
        (Elements::I8(x), Elements::I8(y)) => {
            for (i, (x, y)) in x.iter().zip(y).enumerate() {
                if x != y {
                    let steps = f64::from(x.abs_diff(*y));
                    score.differs(i / columns, steps / 8.0, steps, [true, true]);
                }
            }
        }
        (Elements::F16(x), Elements::F16(y)) => {
            let unit = rms(x.iter().map(|v| v.to_f64()));
            for (i, (x, y)) in x.iter().zip(y).enumerate() {
                if x.to_bits() != y.to_bits() {
                    let error = (x.to_f64() - y.to_f64()).abs();
                    let near = near_f16(*x, *y) || error <= 1e-4 * unit;
                    let counts = closeness == Closeness::Bits || !near;
                    score.differs(i / columns, error / unit, error / unit, [counts, !near]);
                }
            }
        }
        (Elements::F32(x), Elements::F32(y)) => {
            let unit = rms(x.iter().map(|v| f64::from(*v)));
            for (i, (x, y)) in x.iter().zip(y).enumerate() {
                if x.to_bits() != y.to_bits() {
                    let (a, b) = (f64::from(*x), f64::from(*y));
                    let error = (a - b).abs();
                    let near = error <= 1e-5 * a.abs().max(b.abs()) || error <= 1e-6 * unit;
                    let counts = closeness == Closeness::Bits || !near;
                    score.differs(i / columns, error / unit, error / unit, [counts, !near]);
                }
            }
        }
        _ => unreachable!("the types are equal"),
    }
}

impl PointScore {
    /// Adds that of another sequence.
    pub fn add(&mut self, other: PointScore) {
        self.compared += other.compared;
        self.mismatched += other.mismatched;
        self.bits += other.bits;
        self.far += other.far;
        self.distance += other.distance;
        self.largest = self.largest.max(other.largest);
        self.first_row = match (self.first_row, other.first_row) {
            (Some(a), Some(b)) => Some(a.min(b)),
            (a, b) => a.or(b),
        };
    }

    fn differs(&mut self, row: usize, distance: f64, size: f64, [counts, far]: [bool; 2]) {
        self.bits += 1;
        self.far += usize::from(far);
        // NaN, of an infinity that fits nothing, is as far as can be.
        self.distance += if distance <= 1.0 { distance } else { 1.0 };
        if counts {
            self.mismatched += 1;
            self.largest = self.largest.max(size);
            self.first_row = Some(self.first_row.map_or(row, |r| r.min(row)));
        }
    }
}

fn near_f16(x: f16, y: f16) -> bool {
    ulp_f16(x, y).is_some_and(|ulp| ulp <= 1)
}

/// The root mean square of the finite ones; 1 if that is zero.
fn rms(values: impl Iterator<Item = f64>) -> f64 {
    let (mut sum, mut count) = (0.0, 0usize);
    for v in values.filter(|v| v.is_finite()) {
        sum += v * v;
        count += 1;
    }
    match sum > 0.0 {
        true => (sum / count as f64).sqrt(),
        false => 1.0,
    }
}
