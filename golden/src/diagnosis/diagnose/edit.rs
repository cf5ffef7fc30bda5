//! Edits of a step: what a device may do instead of the step's formula, each as a change of the formula's data
//! or of its result. The lists here are what is searched; `docs/diagnosis-catalogue.md` shows them.

mod codes;
mod conv;
mod donors;
mod fits;
mod grids;
mod linear;
mod norm;
mod orders;
mod result;
mod rotation;
mod scan;

use super::formula::{BlockInputs, Formula, Made, Seen, like};
use super::kind::Kind;
use super::pattern::Pattern;
use ndarray::{Array2, Axis, concatenate, s};
use orders::{ChannelOrder, TokenOrder};
use scalescope_sim::dataflow::{Read, Row, ScaleUse, Step};
use scalescope_sim::trace::{Place, Tensor, TracePoint};
use std::fmt;
use std::sync::Arc;

pub use conv::{bits as conv_bits, measured as measured_silu};
pub use donors::{PARTS, Part, donated};
pub use fits::{Fit, fit, fits};
pub use linear::{blocks, cells, entries, read_off, solve_entries, solve_times, times};
pub use norm::{root as norm_root, weights as norm_weights};
pub use result::{grid_of, measured as measured_output, moved, of_pattern, on_grid};
pub use rotation::{factor as hadamard_factor, signs as hadamard_signs};
pub use scan::{begins_with, bits as scan_bits, bumps, measured as measured_gate};

/// What is around a sequence: the tensors of the one before it in the batch.
#[derive(Clone, Copy, Default)]
pub struct Around<'a> {
    /// Of the sequence before.
    pub before: Option<&'a Seen>,
}

type OfFormula = Arc<dyn Fn(&mut Formula, Around) + Send + Sync>;
type OfResult = Arc<dyn Fn(&mut Made) + Send + Sync>;

/// What an edit changes.
#[derive(Clone, Default)]
pub struct Change {
    /// The data of the formula.
    pub formula: Vec<OfFormula>,
    /// What the step makes.
    pub result: Vec<OfResult>,
}

/// Something that a step does otherwise.
#[derive(Clone)]
pub struct Edit {
    /// The sort.
    pub kind: Kind,
    /// The block.
    pub layer: usize,
    /// The step.
    pub step: Step,
    /// The tensor that the step makes.
    pub point: TracePoint,
    /// What it is about: `bias`, `D`, `weight`.
    pub site: String,
    /// In words.
    pub words: String,
    /// Of edits that explain equally well, the lower one is named first.
    pub rank: usize,
    /// What is changed.
    pub change: Change,
    /// Where alone; everywhere if `None`.
    pub only: Option<Arc<Pattern>>,
    /// Whether the dump alone has it, and what follows is made from the right tensor.
    pub alone: bool,
}

impl fmt::Debug for Edit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{} {}: {}",
            self.step.name(),
            self.kind.name(),
            self.words
        )
    }
}

impl PartialEq for Edit {
    fn eq(&self, other: &Self) -> bool {
        let key = |e: &Edit| {
            (
                e.kind,
                e.layer,
                e.point,
                e.words.clone(),
                e.only.is_some(),
                e.alone,
            )
        };
        key(self) == key(other)
    }
}

impl Edit {
    /// What the step makes with it.
    pub fn run(&self, formula: Option<&Formula>, made: &Made, around: Around) -> Option<Made> {
        let mut made = match self.change.formula.is_empty() {
            true => made.clone(),
            false => {
                let mut changed = formula?.clone();
                for change in &self.change.formula {
                    change(&mut changed, around);
                }
                changed.run()
            }
        };
        for change in &self.change.result {
            change(&mut made);
        }
        Some(made)
    }

    /// Two edits of one tensor together.
    pub fn and(&self, other: &Edit) -> Edit {
        let mut both = self.clone();
        both.change
            .formula
            .extend(other.change.formula.iter().cloned());
        both.change
            .result
            .extend(other.change.result.iter().cloned());
        both.kind = if self.kind == other.kind {
            self.kind
        } else {
            Kind::Two
        };
        if self.site != other.site {
            both.site = format!("{} and {}", self.site, other.site);
        }
        both.words = format!("{}, and {}", self.words, other.words);
        both.rank = self.rank + other.rank + 4;
        both
    }

    /// Whether it makes the tensor at a place.
    pub fn makes(&self, place: Place) -> bool {
        let scan = [TracePoint::SsmY, TracePoint::SsmState];
        let same = self.point == place.point
            || self.changes_formula() && scan.contains(&self.point) && scan.contains(&place.point);
        place.layer == Some(self.layer) && same
    }
}

impl Edit {
    /// Whether it changes the formula, and so all that the step makes.
    pub fn changes_formula(&self) -> bool {
        !self.change.formula.is_empty()
    }

    /// What a step makes with this edit, by its formula and of what it makes by itself; where the edit is restricted, the rest
    /// stays.
    pub fn apply(
        &self,
        formula: Option<&Formula>,
        row: &Row,
        own: &Tensor,
        (sequence, around): (usize, Around),
    ) -> Option<Tensor> {
        let numbers = super::formula::numbers(own);
        let state = row.point.is_state();
        let made = Made::of(numbers.clone(), state);
        let made = self.run(formula, &made, around)?;
        let mut out = if state { made.state? } else { made.out };
        if out.dim() != numbers.dim() {
            return None;
        }
        if let Some(only) = &self.only {
            for ((at, to), own) in out.indexed_iter_mut().zip(&numbers) {
                if !only.contains(sequence, at.0, at.1) {
                    *to = *own;
                }
            }
        }
        // Steps read rows that lie one after another.
        Some(like(&out.as_standard_layout().into_owned(), own))
    }
}

/// A list of edits of one row in the making.
pub struct Edits<'a, 'm> {
    /// The block; `None` where the step stands by itself, as in vectors of an operation.
    scene: Option<&'a BlockInputs<'a, 'm>>,
    /// The row.
    row: &'a Row,
    /// Channels of what it makes.
    width: usize,
    /// The list.
    all: Vec<Edit>,
}

impl<'a, 'm> Edits<'a, 'm> {
    fn push(&mut self, rank: usize, kind: Kind, site: &str, words: &str, change: Change) {
        self.all.push(Edit {
            kind,
            layer: self.scene.map_or(0, |scene| scene.layer),
            step: self.row.step,
            point: self.row.point,
            site: site.to_owned(),
            words: words.to_owned(),
            rank,
            change,
            only: None,
            alone: false,
        });
    }

    /// An edit of the data of a formula.
    fn formula(
        &mut self,
        rank: usize,
        (kind, site): (Kind, &str),
        words: impl AsRef<str>,
        change: impl Fn(&mut Formula, Around) + Send + Sync + 'static,
    ) {
        let change = Change {
            formula: vec![Arc::new(change)],
            result: Vec::new(),
        };
        self.push(rank, kind, site, words.as_ref(), change);
    }

    /// An edit of a result.
    fn result(
        &mut self,
        rank: usize,
        (kind, site): (Kind, &str),
        words: impl AsRef<str>,
        change: impl Fn(&mut Made) + Send + Sync + 'static,
    ) {
        let change = Change {
            formula: Vec::new(),
            result: vec![Arc::new(change)],
        };
        self.push(rank, kind, site, words.as_ref(), change);
    }

    /// A list with nothing in it.
    fn new(scene: Option<&'a BlockInputs<'a, 'm>>, row: &'a Row, width: usize) -> Self {
        Self {
            scene,
            row,
            width,
            all: Vec::new(),
        }
    }

    /// Other blocks, the neighbours first, each with where its weights are.
    fn other_layers(&self) -> Vec<(usize, &'a BlockInputs<'a, 'm>)> {
        let Some(scene) = self.scene else {
            return Vec::new();
        };
        let (own, layers) = (scene.layer, scene.path.config().n_layers);
        let mut all: Vec<usize> = (0..layers).filter(|l| *l != own).collect();
        all.sort_by_key(|l| (l.abs_diff(own), *l < own));
        all.into_iter().map(|layer| (layer, scene)).collect()
    }

    /// Every scale of the block with its name: of its activations, of its weights, of the scan's parameters.
    fn other_scales(&self) -> Vec<(String, f32)> {
        let Some(scene) = self.scene else {
            return Vec::new();
        };
        let uses = ScaleUse::ALL.into_iter();
        let mut all: Vec<(String, f32)> = uses
            .filter_map(|by| Some((by.name().to_owned(), scene.scale(by)?)))
            .collect();
        for step in [Step::InProj, Step::XProj, Step::DtProj, Step::OutProj] {
            let weights = scene.path.linear_weights(scene.layer, step);
            let stored = weights.first().and_then(|w| w.stored());
            let scale = stored.and_then(|w| Some(w.scales.first()?.get()));
            all.extend(scale.map(|scale| (format!("{}'s weight", step.name()), scale)));
        }
        let conv = scene.path.conv_weight(scene.layer);
        if let Some((_, bias)) = conv.tensors().filter(|_| conv.has_codes()) {
            all.push(("the convolution's weight".to_owned(), conv.tap_scale(0)));
            all.push(("the convolution's bias".to_owned(), bias.scale.get()));
        }
        let (a, d, bias) = scene.path.scan_weight(scene.layer).tensors();
        all.push(("A_log".to_owned(), a.scale.get()));
        all.push(("D".to_owned(), d.scale.get()));
        all.push(("the bias of dt".to_owned(), bias.scale.get()));
        // Uses of one scale are one.
        let mut known: Vec<u32> = Vec::new();
        all.retain(|(_, scale)| {
            let new = !known.contains(&scale.to_bits());
            known.push(scale.to_bits());
            new
        });
        all
    }

    /// A tensor of the block.
    fn seen(&self, point: TracePoint) -> Option<&'a Tensor> {
        self.scene?.seen.get(&point)
    }
}

/// Every edit that is searched of a row, whose tensor has `width` channels.
pub fn of_row<'a, 'm>(
    scene: Option<&'a BlockInputs<'a, 'm>>,
    row: &'a Row,
    width: usize,
    formula: Option<&Formula>,
) -> Vec<Edit> {
    let mut edits = Edits::new(scene, row, width);
    match formula {
        Some(Formula::Add(_)) => edits.of_add(),
        Some(Formula::Norm(norm)) => edits.of_norm(norm),
        Some(Formula::Linear(linear)) => edits.of_linear(linear),
        Some(Formula::Conv(conv)) => edits.of_conv(conv),
        Some(Formula::Scan(scan)) => edits.of_scan(scan),
        Some(Formula::Hadamard(hadamard)) => edits.of_hadamard(hadamard),
        Some(Formula::Grids(grids)) => edits.of_grids(grids),
        Some(Formula::Requantize(..)) => edits.of_requantize(),
        None => {}
    }
    if formula.is_some() {
        edits.of_output();
    }
    edits.of_result();
    edits.all
}

/// History that is lost at every so many tokens, and what else goes wrong at tiles of tokens; `tile` is the first
/// token that deviates.
pub fn of_tile<'a>(
    scene: Option<&'a BlockInputs<'a, '_>>,
    row: &'a Row,
    formula: Option<&Formula>,
    tile: usize,
) -> Vec<Edit> {
    let mut edits = Edits::new(scene, row, 0);
    match formula {
        Some(Formula::Conv(_)) => edits.conv_tile(tile),
        Some(Formula::Scan(_)) => {
            edits.scan_tile(tile);
            edits.hiccups(tile);
        }
        _ => {}
    }
    edits.all
}

/// A move in time.
#[derive(Clone, Copy, PartialEq)]
struct Move {
    /// Tokens, later ones positive.
    by: isize,
    /// What stands for tokens beyond either end.
    beyond: Beyond,
}

/// What stands for tokens beyond either end of a sequence.
#[derive(Clone, Copy, PartialEq)]
enum Beyond {
    /// Zero.
    Zero,
    /// The token at the end.
    Last,
    /// The token itself, which is not moved.
    Own,
}

/// Every move by some tokens.
fn moves<const N: usize>(by: [isize; N]) -> impl Iterator<Item = Move> {
    let all = |by| {
        let own = (by != 1 && by != -1).then_some(Beyond::Own);
        let ends = [Beyond::Zero, Beyond::Last].into_iter().chain(own);
        ends.map(move |beyond| Move { by, beyond })
    };
    by.into_iter().flat_map(all)
}

impl Move {
    /// Rows of a tensor, moved.
    fn of<T: Copy + Default>(self, values: &Array2<T>) -> Array2<T> {
        let mut out = Array2::default(values.dim());
        let last = values.nrows() as isize - 1;
        for (t, mut row) in out.rows_mut().into_iter().enumerate() {
            let from = t as isize - self.by;
            let within = from.clamp(0, last);
            match (from == within, self.beyond) {
                (true, _) | (_, Beyond::Last) => row.assign(&values.row(within as usize)),
                (false, Beyond::Own) => row.assign(&values.row(t)),
                (false, Beyond::Zero) => {}
            }
        }
        out
    }

    /// Whose value it is.
    fn words(self) -> String {
        let of = match self.by {
            1 => "of the previous token".to_owned(),
            -1 => "of the next token".to_owned(),
            by if by > 0 => format!("of {by} tokens before"),
            by => format!("of {} tokens after", -by),
        };
        match (self.beyond, self.by > 0) {
            (Beyond::Zero, _) => of,
            (Beyond::Last, true) => format!("{of}, the first token's repeated"),
            (Beyond::Last, false) => format!("{of}, the last token's repeated"),
            (Beyond::Own, true) => format!("{of}, of the first ones their own"),
            (Beyond::Own, false) => format!("{of}, of the last ones their own"),
        }
    }
}

/// Some channels of a tensor, of which the tokens may be others'.
#[derive(Clone, Copy)]
enum Half {
    Even,
    Odd,
    First,
    Second,
}

impl Half {
    const ALL: [Half; 4] = [Half::Even, Half::Odd, Half::First, Half::Second];

    fn words(self) -> &'static str {
        match self {
            Half::Even => "the even channels",
            Half::Odd => "the odd channels",
            Half::First => "the first half of the channels",
            Half::Second => "the second half of the channels",
        }
    }

    /// These of the token before, the others as they are.
    fn late(self, values: &Array2<f32>) -> Array2<f32> {
        let columns = values.ncols();
        let has = |c: usize| match self {
            Half::Even => c.is_multiple_of(2),
            Half::Odd => !c.is_multiple_of(2),
            Half::First => 2 * c < columns,
            Half::Second => 2 * c >= columns,
        };
        Array2::from_shape_fn(values.dim(), |(t, c)| match (has(c), t) {
            (false, _) => values[(t, c)],
            (true, 0) => 0.0,
            (true, _) => values[(t - 1, c)],
        })
    }
}

/// Columns turned round by some places.
fn turned(values: &Array2<f32>, by: isize) -> Array2<f32> {
    let n = values.ncols() as isize;
    Array2::from_shape_fn(values.dim(), |(t, c)| {
        values[(t, (c as isize - by).rem_euclid(n.max(1)) as usize)]
    })
}

/// Columns by which a part of a tensor may begin elsewhere.
const BEGINS: [isize; 14] = [1, -1, 2, -2, 3, -3, 4, -4, 8, -8, 16, -16, 32, -32];

/// The tensor that a row reads a part of, and where the part begins; `None` where it reads all.
fn whole_of(scene: &BlockInputs, read: &Read) -> Option<(Array2<f32>, usize)> {
    let all = super::formula::numbers(scene.seen.get(&read.point()?)?);
    let range = read.columns.range(scene.path.config(), all.ncols());
    (range.len() < all.ncols()).then_some((all, range.start))
}

/// So many columns of a buffer of rows, so many on from where they should begin: beyond a row's end lies the next
/// row, beyond the buffer's nothing. `None` where none of them is in the row.
fn begins((all, first): &(Array2<f32>, usize), by: isize, count: usize) -> Option<Array2<f32>> {
    let width = all.ncols() as isize;
    let first = *first as isize + by;
    let buffer: Vec<f32> = all.iter().copied().collect();
    let at = |(t, c): (usize, usize)| {
        let at = t as isize * width + first + c as isize;
        let found = usize::try_from(at).ok().and_then(|at| buffer.get(at));
        found.copied().unwrap_or(0.0)
    };
    let within = first > -(count as isize) && first < width;
    within.then(|| Array2::from_shape_fn((all.nrows(), count), at))
}

/// Columns in reverse.
fn reversed(values: &Array2<f32>) -> Array2<f32> {
    values.slice(s![.., ..;-1]).to_owned()
}

/// The two halves of columns in each other's place.
fn halves(values: &Array2<f32>) -> Array2<f32> {
    let half = values.ncols() / 2;
    let (a, b) = (values.slice(s![.., ..half]), values.slice(s![.., half..]));
    concatenate(Axis(1), &[b, a]).expect("parts of one tensor")
}

/// Puts other numbers in the place of an operand's: as many tokens as it has, since short runs have fewer.
fn replace(operand: &mut Array2<f32>, other: &Array2<f32>) {
    let rows = operand.nrows().min(other.nrows());
    *operand = other.slice(s![..rows, ..]).to_owned();
}
