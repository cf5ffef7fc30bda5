//! Recognises data that are right but lie differently: transposed, blocks of channels swapped,
//! shifted by a few positions, multiplied by a constant.
//!
//! A hypothesis is a map from an element of the reference to one of the result. It is reported if it
//! resolves at least half of what differs and agrees far beyond chance: Cohen's κ, the share of
//! agreement above that of elements paired at random. So constant tensors, where everything agrees
//! with everything, and unrelated ones, where nothing does, give no finding.

mod factor;
#[cfg(test)]
mod tests;

use crate::value::{Elements, Value};
use scalescope_sim::quant::Scale;
use scalescope_sim::random::Congruential;
use serde::Serialize;
use std::fmt;

/// Positions that a shift may have.
const MAX_SHIFT: usize = 8;
/// Elements looked at before a hypothesis is tried on all.
const SAMPLE: usize = 1024;
/// Elements after which a hopeless hypothesis is dropped.
const FIRST_LOOK: usize = 64;
/// Fewer differing elements than this say nothing.
const MIN_MISMATCHED: usize = 16;
/// Agreement beyond chance that a finding needs.
const MIN_KAPPA: f64 = 0.5;
/// Floats agree within this share of their size: about one ulp of binary16.
const RELATIVE: f64 = 1.0 / 1024.0;

/// How the result lies, seen from the reference.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum Layout {
    /// Axes in another order: axis i of the result is axis `axes[i]` of the reference.
    Transposed {
        /// The order, over `[sequence, row, column]`.
        axes: [usize; 3],
    },
    /// Two neighbouring blocks of channels have changed places: channels `at..at + first` and the
    /// `second` ones behind.
    SwappedBlocks {
        /// First channel of the first block.
        at: usize,
        /// Channels of the first block.
        first: usize,
        /// Channels of the second block.
        second: usize,
    },
    /// Row t of the result is row t − `by` of the reference.
    ShiftedInTime {
        /// Rows; positive if the result is late.
        by: isize,
    },
    /// Channel c of the result is channel c − `by` of the reference.
    ShiftedInChannels {
        /// Channels; positive if the result is further to the right.
        by: isize,
    },
    /// The result is the reference times a constant.
    Factor {
        /// The constant.
        factor: f64,
    },
}

/// A recognised difference of layout.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct RecognisedLayout {
    /// What it is.
    #[serde(flatten)]
    pub layout: Layout,
    /// Share of all elements that agree under it.
    pub explains: f64,
    /// Share of all elements that agree as they lie.
    pub before: f64,
}

impl fmt::Display for RecognisedLayout {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.layout {
            Layout::Transposed { .. } => f.write_str("transposed")?,
            Layout::SwappedBlocks { at, first, second } => write!(
                f,
                "channels {at}..{} and {}..{} swapped",
                at + first,
                at + first,
                at + first + second
            )?,
            Layout::ShiftedInTime { by } => write!(f, "shifted by {by:+} tokens")?,
            Layout::ShiftedInChannels { by } => write!(f, "shifted by {by:+} channels")?,
            Layout::Factor { factor } => write!(f, "multiplied by {factor:.4}")?,
        }
        write!(
            f,
            " ({:.1} % of elements then agree, {:.1} % as stored)",
            100.0 * self.explains,
            100.0 * self.before
        )
    }
}

/// One of the two arrays: elements in row-major order, two or three axes, the scale of codes.
#[derive(Clone, Copy, Debug)]
pub struct Side<'a> {
    /// The elements.
    pub elements: Elements<'a>,
    /// Lengths of the axes: `[rows, channels]` or `[sequences, rows, channels]`.
    pub shape: &'a [usize],
    /// Real value of one step of codes, if known.
    pub scale: Option<Scale>,
}

/// Findings for two tensors of one sequence, most explaining first. See [`detect_in`].
pub fn detect(
    expected: (&Value, Option<Scale>),
    found: (&Value, Option<Scale>),
    blocks: &[usize],
) -> Vec<RecognisedLayout> {
    let shape = |value: &Value| {
        let (rows, columns) = value.dim();
        [rows, columns]
    };
    let (x, y) = (shape(expected.0), shape(found.0));
    detect_in(
        Side {
            elements: expected.0.elements(),
            shape: &x,
            scale: expected.1,
        },
        Side {
            elements: found.0.elements(),
            shape: &y,
            scale: found.1,
        },
        blocks,
    )
}

/// Findings, most explaining first; none if the arrays agree or if nothing known explains them.
///
/// `blocks` are the widths of known blocks of channels (`[E, E]` for x‖z, `[R, N, N]` for dt‖B‖C).
/// Without them halves are tried, and a swap of any two equal blocks at the end.
pub fn detect_in(expected: Side<'_>, found: Side<'_>, blocks: &[usize]) -> Vec<RecognisedLayout> {
    let is_codes = |side: &Side<'_>| matches!(side.elements, Elements::I8(_));
    let codes = is_codes(&expected) && is_codes(&found);
    let (Some(x), Some(y)) = (Grid::new(expected, codes), Grid::new(found, codes)) else {
        return Vec::new();
    };
    if x.values.len() != y.values.len() || x.values.is_empty() {
        return Vec::new();
    }
    let same_shape = x.shape == y.shape;
    let differing: Vec<usize> = (0..x.values.len())
        .filter(|at| !same_shape || !x.agrees(*at, &y, *at))
        .collect();
    let before = 1.0 - differing.len() as f64 / x.values.len() as f64;
    let mut findings = Vec::new();
    if differing.len() >= MIN_MISMATCHED {
        let test = Test {
            x: &x,
            y: &y,
            before,
            chance: chance(&x, &y),
            differing: spread(differing.len(), 3).map(|i| differing[i]).collect(),
        };
        findings.extend(test.best(transpositions(&x, &y)));
        if same_shape {
            findings.extend(test.best(swaps(x.shape[2], blocks)));
            findings.extend(test.best(shifts(x.shape)));
        }
    }
    if same_shape {
        // Equal codes on two grids differ by a factor, too.
        findings.extend(factor::detect(expected, found, before));
    }
    findings.sort_by(|a, b| b.explains.total_cmp(&a.explains));
    findings
}

/// Numbers with three axes; an axis that is not there has length 1.
struct Grid {
    values: Vec<f64>,
    shape: [usize; 3],
    codes: bool,
}

impl Grid {
    /// Codes are compared with codes as they are, with floats as the reals they stand for.
    fn new(side: Side<'_>, codes: bool) -> Option<Self> {
        let step = match (side.elements, side.scale) {
            (Elements::I8(_), Some(scale)) if !codes => f64::from(scale.get()),
            _ => 1.0,
        };
        let shape = match *side.shape {
            [rows, columns] => [1, rows, columns],
            [b, rows, columns] => [b, rows, columns],
            _ => return None,
        };
        let count = shape.iter().product::<usize>();
        (count == side.elements.len()).then(|| Self {
            values: (0..count).map(|i| step * side.elements.get(i)).collect(),
            shape,
            codes,
        })
    }

    /// Whether an element agrees with one of another array.
    fn agrees(&self, at: usize, other: &Grid, there: usize) -> bool {
        agree(self.codes, self.values[at], other.values[there])
    }

    fn unravel(&self, at: usize) -> [usize; 3] {
        let [_, rows, columns] = self.shape;
        [at / (rows * columns), at / columns % rows, at % columns]
    }
}

/// How many elements were paired and how many of those agree.
#[derive(Clone, Copy, Default)]
struct Agreement {
    paired: usize,
    agreeing: usize,
    all: usize,
}

impl Agreement {
    /// Share of all elements that agree.
    fn share(self) -> f64 {
        self.agreeing as f64 / self.all as f64
    }

    /// Share of the paired elements that agree.
    fn of_paired(self) -> f64 {
        self.agreeing as f64 / self.paired.max(1) as f64
    }
}

fn agree(codes: bool, x: f64, y: f64) -> bool {
    if codes {
        x == y
    } else {
        (x - y).abs() <= RELATIVE * x.abs().max(y.abs())
    }
}

/// Pairs every element of x with the one of y that `map` names.
fn agreement(x: &Grid, y: &Grid, map: impl Fn(usize) -> Option<usize>) -> Agreement {
    let mut result = Agreement {
        all: x.values.len(),
        ..Agreement::default()
    };
    for at in 0..x.values.len() {
        if let Some(other) = map(at) {
            result.paired += 1;
            result.agreeing += usize::from(x.agrees(at, y, other));
        }
    }
    result
}

/// Positions spread over an array without a period that a layout could share.
fn spread(count: usize, seed: u64) -> impl Iterator<Item = usize> {
    let mut random = Congruential(seed);
    (0..SAMPLE.min(4 * count)).map(move |_| random.below(count))
}

/// Share of agreement between elements paired at random.
fn chance(x: &Grid, y: &Grid) -> f64 {
    let count = x.values.len();
    let pairs = spread(count, 1).zip(spread(count, 2));
    let (mut agreeing, mut all) = (0usize, 0usize);
    for (i, j) in pairs {
        all += 1;
        agreeing += usize::from(x.agrees(i, y, j));
    }
    agreeing as f64 / all as f64
}

struct Test<'a> {
    x: &'a Grid,
    y: &'a Grid,
    before: f64,
    chance: f64,
    /// Some of the elements that do not agree as they lie.
    differing: Vec<usize>,
}

impl Test<'_> {
    /// The hypothesis of the list that explains most, if any explains enough.
    fn best(&self, layouts: impl IntoIterator<Item = Layout>) -> Option<RecognisedLayout> {
        let found = layouts.into_iter().filter_map(|layout| self.judge(layout));
        // Of equals the first: lists begin with the plainest.
        found.reduce(|best, next| {
            if next.explains > best.explains {
                next
            } else {
                best
            }
        })
    }

    fn judge(&self, layout: Layout) -> Option<RecognisedLayout> {
        let map = |at| self.map(layout, at);
        // A finding resolves half of what differs; of a sample, half of that. Most hypotheses fail at
        // the first look.
        let (mut paired, mut resolved) = (0usize, 0usize);
        for at in &self.differing {
            if paired == FIRST_LOOK && resolved < FIRST_LOOK / 8 {
                return None;
            }
            if let Some(other) = map(*at) {
                paired += 1;
                resolved += usize::from(self.x.agrees(*at, self.y, other));
            }
        }
        if paired == 0 || resolved < paired / 4 {
            return None;
        }
        let all = agreement(self.x, self.y, map);
        let explains = all.share();
        // Elements that a shift leaves without a partner are no evidence against it.
        let resolved = all.of_paired() - self.before >= 0.5 * (1.0 - self.before);
        let enough = all.paired >= self.x.values.len() / 2;
        (enough && resolved && explains > self.before && self.kappa(all.of_paired()) >= MIN_KAPPA)
            .then_some(RecognisedLayout {
                layout,
                explains,
                before: self.before,
            })
    }

    /// Agreement above chance: 0 at chance, 1 at full agreement; 0 where chance explains all.
    fn kappa(&self, share: f64) -> f64 {
        let room = 1.0 - self.chance;
        if room > 0.0 {
            (share - self.chance) / room
        } else {
            0.0
        }
    }

    /// Where the reference's element `at` lies in the result.
    fn map(&self, layout: Layout, at: usize) -> Option<usize> {
        let [_, rows, columns] = self.x.shape;
        let [b, row, column] = self.x.unravel(at);
        match layout {
            Layout::Transposed { axes } => {
                let index = [b, row, column];
                let [_, rows, columns] = axes.map(|axis| self.x.shape[axis]);
                let [b, row, column] = axes.map(|axis| index[axis]);
                Some((b * rows + row) * columns + column)
            }
            Layout::SwappedBlocks {
                at: start,
                first,
                second,
            } => {
                let moved = match column.checked_sub(start) {
                    Some(offset) if offset < first => column + second,
                    Some(offset) if offset < first + second => column - first,
                    _ => column,
                };
                Some(at - column + moved)
            }
            Layout::ShiftedInTime { by } => {
                let row = row.checked_add_signed(by).filter(|row| *row < rows)?;
                Some((b * rows + row) * columns + column)
            }
            Layout::ShiftedInChannels { by } => {
                let moved = column.checked_add_signed(by).filter(|c| *c < columns)?;
                Some(at - column + moved)
            }
            Layout::Factor { .. } => None,
        }
    }
}

/// Orders of axes that lead from x's shape to y's, or that fill y's shape with data of another.
fn transpositions(x: &Grid, y: &Grid) -> Vec<Layout> {
    let orders = [[0, 2, 1], [1, 0, 2], [2, 1, 0], [1, 2, 0], [2, 0, 1]];
    let moves = |axes: &[usize; 3]| {
        // Swapping axes of length 1 moves nothing.
        let long = |axis: &&usize| x.shape[**axis] > 1;
        let kept: Vec<_> = axes.iter().filter(long).collect();
        let fits = axes.map(|axis| x.shape[axis]) == y.shape || x.shape == y.shape;
        fits && !kept.is_sorted()
    };
    let fitting = orders.into_iter().filter(|axes| moves(axes));
    fitting.map(|axes| Layout::Transposed { axes }).collect()
}

/// Swaps of neighbouring blocks of channels.
fn swaps(channels: usize, blocks: &[usize]) -> Vec<Layout> {
    let swap = |at, first, second| Layout::SwappedBlocks { at, first, second };
    let mut swaps = Vec::new();
    if blocks.len() > 1 && blocks.iter().sum::<usize>() == channels {
        let mut at = 0;
        for pair in blocks.windows(2) {
            swaps.push(swap(at, pair[0], pair[1]));
            at += pair[0];
        }
    } else {
        // Two equal blocks at the end; the widest are the halves.
        swaps.extend((1..=channels / 2).map(|width| swap(channels - 2 * width, width, width)));
    }
    swaps
}

fn shifts([_, rows, columns]: [usize; 3]) -> Vec<Layout> {
    let steps = |length: usize| (1..=MAX_SHIFT.min(length / 2)).map(|by| by as isize);
    let time = steps(rows)
        .flat_map(|by| [by, -by])
        .map(|by| Layout::ShiftedInTime { by });
    let channels = steps(columns).flat_map(|by| [by, -by]);
    time.chain(channels.map(|by| Layout::ShiftedInChannels { by }))
        .collect()
}
