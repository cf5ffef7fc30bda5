//! What deviates, before any cause: which sequences, tokens and channels of a tensor, which values, and how.

use serde::Serialize;
use std::collections::BTreeMap;
use std::fmt;

/// One sequence of a tensor: what the step makes of the dump's inputs, and what the dump has.
#[derive(Clone, Copy, Debug)]
pub struct Pair<'a> {
    /// What the step makes, row by row.
    pub made: &'a [f32],
    /// What the dump has.
    pub dumped: &'a [f32],
    /// Which elements deviate.
    pub deviates: &'a [bool],
    /// Channels.
    pub columns: usize,
}

/// Indices along an axis.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(tag = "which", rename_all = "kebab-case")]
pub enum Indices {
    /// Every one.
    All,
    /// One.
    One {
        /// It.
        index: usize,
    },
    /// From `first` to `last`, both included.
    Range {
        /// The first.
        first: usize,
        /// The last.
        last: usize,
    },
    /// From `first` to the end.
    From {
        /// The first.
        first: usize,
    },
    /// Those whose index modulo `period` lies in a range.
    Every {
        /// The period.
        period: usize,
        /// The first remainder.
        first: usize,
        /// The last remainder.
        last: usize,
    },
    /// A few.
    Few {
        /// They.
        indices: Vec<usize>,
    },
    /// No rule.
    Scattered {
        /// How many.
        count: usize,
        /// Of how many.
        of: usize,
    },
}

impl Indices {
    /// Whether an index is one of them; of no rule, any.
    pub fn contains(&self, i: usize) -> bool {
        match self {
            Indices::All | Indices::Scattered { .. } => true,
            Indices::One { index } => i == *index,
            Indices::Range { first, last } => (*first..=*last).contains(&i),
            Indices::From { first } => i >= *first,
            Indices::Every {
                period,
                first,
                last,
            } => (*first..=*last).contains(&(i % period)),
            Indices::Few { indices } => indices.contains(&i),
        }
    }

    /// The power of ten of how many parts of its sort there are below `length`.
    fn choices(&self, length: usize) -> f64 {
        let log = (length.max(1) as f64).log10();
        match self {
            Indices::All | Indices::Scattered { .. } => 0.0,
            Indices::One { .. } | Indices::From { .. } => log,
            Indices::Range { .. } => 2.0 * log,
            Indices::Every { .. } => 3.0 * log,
            Indices::Few { indices } => (0..indices.len())
                .map(|i| ((length - i) as f64 / (i + 1) as f64).log10())
                .sum(),
        }
    }

    /// How many they are, where they are a few.
    pub fn few(&self) -> Option<usize> {
        match self {
            Indices::One { .. } => Some(1),
            Indices::Few { indices } => Some(indices.len()),
            Indices::Range { first, last } => Some(last - first + 1),
            Indices::All | Indices::From { .. } | Indices::Every { .. } => None,
            Indices::Scattered { .. } => None,
        }
    }

    /// Whether it leaves some out.
    pub fn is_part(&self) -> bool {
        !matches!(self, Indices::All | Indices::Scattered { .. })
    }

    /// The rule of a set of indices below `length`, each with how many elements deviate there. `room` is how
    /// many there could be at one index.
    fn of(counts: &BTreeMap<usize, usize>, length: usize) -> Self {
        let hit: Vec<usize> = counts.keys().copied().collect();
        let all: usize = counts.values().sum();
        let (Some(first), Some(last)) = (hit.first().copied(), hit.last().copied()) else {
            return Indices::Few { indices: hit };
        };
        if hit.len() == length || length == 1 {
            return Indices::All;
        }
        if hit.len() == 1 {
            return Indices::One { index: first };
        }
        // How likely it is that so many elements, each anywhere, keep to a part: below one in a million is
        // no accident.
        let rare = |part: usize| {
            let share = part as f64 / length as f64;
            all as f64 * share.log10() < -6.0
        };
        let span = last - first + 1;
        // A period: the smallest whose remainders are few.
        let mut best: Option<(usize, Indices)> = None;
        for period in 2..=(length / 2).min(1024) {
            let (mut low, mut high) = (usize::MAX, 0);
            let mut residues = vec![false; period];
            for i in &hit {
                low = low.min(i % period);
                high = high.max(i % period);
                residues[i % period] = true;
            }
            let width = high - low + 1;
            let full = residues[low..=high].iter().filter(|r| **r).count() == width;
            let covered = (0..length).filter(|i| (low..=high).contains(&(i % period)));
            let part = covered.filter(|i| (first..=last).contains(i)).count();
            // Fewer of the indices than a range has, at least two periods seen, most of them hit.
            let periods = span.div_ceil(period);
            let enough = periods >= 2 && 2 * part <= span + 1 && 4 * hit.len() >= 3 * part;
            if full && enough && rare(part) && best.as_ref().is_none_or(|(b, _)| part < *b) {
                let every = Indices::Every {
                    period,
                    first: low,
                    last: high,
                };
                best = Some((part, every));
            }
        }
        if let Some((_, every)) = best {
            return every;
        }
        let dense = 2 * hit.len() >= span;
        // From n on: what comes after the first is hit as densely as chance allows.
        if first > 0 && last + 1 + length / 16 >= length && rare(length - first) && dense {
            return Indices::From { first };
        }
        if first == 0 && last + 1 + length / 16 >= length && dense {
            return Indices::All;
        }
        if rare(span) && (dense || span * 2 < length) && hit.len() > 2 {
            return match last + 1 == length {
                true => Indices::From { first },
                false => Indices::Range { first, last },
            };
        }
        if hit.len() <= 8 {
            return Indices::Few { indices: hit };
        }
        Indices::Scattered {
            count: hit.len(),
            of: length,
        }
    }

    /// The rule of the ones that are hit.
    pub(super) fn of_some(hit: &[bool]) -> Self {
        let counts = hit.iter().enumerate().filter(|(_, hit)| **hit);
        Self::of(&counts.map(|(i, _)| (i, 8)).collect(), hit.len())
    }

    /// In words; `None` for all.
    pub(super) fn words(&self, name: &str) -> Option<String> {
        Some(match self {
            Indices::All => return None,
            Indices::One { index } => format!("{name} {index} only"),
            Indices::Range { first, last } => format!("{name}s {first} to {last}"),
            Indices::From { first } => format!("{name}s from {first} on"),
            Indices::Every {
                period,
                first,
                last,
            } if first == last => format!("every {period}th {name} from {first} on"),
            Indices::Every {
                period,
                first,
                last,
            } => format!("{name}s {first} to {last} of every {period}"),
            Indices::Few { indices } => {
                let all: Vec<String> = indices.iter().map(ToString::to_string).collect();
                format!("{name}s {}", all.join(", "))
            }
            Indices::Scattered { count, of } => format!("{count} of {of} {name}s"),
        })
    }
}

/// Which values deviate, by what the step makes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Values {
    /// Any.
    Any,
    /// Negative ones.
    Negative,
    /// Positive ones.
    Positive,
    /// Codes at the end of their range.
    Saturated,
    /// Zeros.
    Zero,
    /// The largest tenth.
    Large,
}

/// How the dump's values differ.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
#[serde(tag = "how", rename_all = "kebab-case")]
pub enum How {
    /// NaN or infinity where the step makes a number.
    NotFinite,
    /// All have one value.
    Constant {
        /// It.
        value: f32,
    },
    /// The same number is added.
    Offset {
        /// It.
        by: f32,
    },
    /// The sign is another.
    Sign,
    /// These bits of codes are always 1, or always 0.
    Bits {
        /// Which.
        mask: u8,
        /// Whether they are 1.
        set: bool,
    },
    /// These bits of codes are turned over.
    Flipped {
        /// Which.
        mask: u8,
    },
    /// Values do not go beyond.
    Clamped {
        /// The lowest.
        low: f32,
        /// The highest.
        high: f32,
    },
    /// Times a factor.
    Factor {
        /// It.
        factor: f32,
    },
    /// By one step at most, always up or always down.
    OneStep {
        /// Whether up.
        up: bool,
    },
    /// By one step at most.
    Steps,
    /// About one unit in the last place of a float.
    LastPlace,
    /// In none of these ways.
    Other,
}

/// What deviates in a tensor.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Pattern {
    /// Elements that deviate.
    pub deviating: usize,
    /// Elements there are.
    pub elements: usize,
    /// Which sequences of the batch.
    pub sequences: Indices,
    /// Which rows: tokens, or channels of a state.
    pub tokens: Indices,
    /// Which columns: channels, or states of a state.
    pub channels: Indices,
    /// Which values.
    pub values: Values,
    /// How they differ.
    #[serde(flatten)]
    pub how: How,
    /// The largest difference, in steps of codes or in the tensor's own unit.
    pub largest: f32,
    /// The probability that so many elements scattered at random would keep to these tokens, channels and
    /// values, as a power of ten.
    pub accident: f64,
    /// Whether it is a state, whose rows are channels.
    #[serde(skip)]
    pub state: bool,
}

impl Pattern {
    /// Whether an element lies where the pattern says.
    pub fn contains(&self, sequence: usize, row: usize, column: usize) -> bool {
        self.sequences.contains(sequence)
            && self.tokens.contains(row)
            && self.channels.contains(column)
    }

    /// Whether it keeps to a part of the tensor.
    pub fn is_part(&self) -> bool {
        self.sequences.is_part() || self.tokens.is_part() || self.channels.is_part()
    }
}

/// Describes what deviates; `codes` tells whether elements are codes, `unit` an element's size for floats.
pub fn describe(pairs: &[Pair], codes: bool, state: bool) -> Pattern {
    let mut by = [BTreeMap::new(), BTreeMap::new(), BTreeMap::new()];
    let (mut deviating, mut elements) = (0usize, 0usize);
    let (mut rows, mut columns) = (0, 0);
    let mut found: Vec<(f32, f32)> = Vec::new();
    for (s, pair) in pairs.iter().enumerate() {
        columns = pair.columns.max(1);
        rows = pair.made.len() / columns;
        elements += pair.made.len();
        for (i, _) in pair.deviates.iter().enumerate().filter(|(_, d)| **d) {
            deviating += 1;
            for (map, index) in by.iter_mut().zip([s, i / columns, i % columns]) {
                *map.entry(index).or_insert(0usize) += 1;
            }
            found.push((pair.made[i], pair.dumped[i]));
        }
    }
    let sequences = Indices::of(&by[0], pairs.len());
    let tokens = Indices::of(&by[1], rows);
    // One that an order leaves in its place makes no part of the many others.
    let channels = match Indices::of(&by[2], columns) {
        Indices::From { first: 1 } if columns >= 64 => Indices::All,
        Indices::Range { first, last } if columns >= 64 && first <= 1 && last + 2 >= columns => {
            Indices::All
        }
        channels => channels,
    };
    let values = values(pairs, &found, codes);
    let share = |of: &Indices, length: usize| {
        let inside = (0..length).filter(|i| of.contains(*i)).count();
        (inside.max(1) as f64 / length.max(1) as f64).log10()
    };
    let axes = [
        (&sequences, pairs.len()),
        (&tokens, rows),
        (&channels, columns),
    ];
    let part: f64 = axes.iter().map(|(of, length)| share(of, *length)).sum();
    // The part was chosen to fit: of how many it could have been.
    let choices: f64 = axes.iter().map(|(of, length)| of.choices(*length)).sum();
    let largest = found.iter().map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
    Pattern {
        deviating,
        elements,
        accident: (part * deviating as f64 + choices).min(0.0),
        how: how(pairs, &found, codes),
        sequences,
        tokens,
        channels,
        values,
        largest,
        state,
    }
}

fn values(pairs: &[Pair], found: &[(f32, f32)], codes: bool) -> Values {
    let made = || pairs.iter().flat_map(|pair| pair.made.iter().copied());
    let total = made().count().max(1) as f64;
    let top = {
        let mut sizes: Vec<f32> = made().map(f32::abs).collect();
        let at = sizes.len() - 1 - sizes.len() / 10;
        let (_, top, _) = sizes.select_nth_unstable_by(at, f32::total_cmp);
        *top
    };
    let end = |v: f32| codes && v.abs() >= 127.0;
    let tests: [(Values, &dyn Fn(f32) -> bool); 5] = [
        (Values::Saturated, &end),
        (Values::Zero, &|v| v == 0.0),
        (Values::Negative, &|v| v < 0.0),
        (Values::Positive, &|v| v > 0.0),
        (Values::Large, &move |v: f32| v.abs() > top),
    ];
    for (values, test) in tests {
        let inside = made().filter(|v| test(*v)).count();
        let share = inside as f64 / total;
        let of_found = found.iter().filter(|(made, _)| test(*made)).count();
        // All of them, against what chance gives.
        let accident = found.len() as f64 * share.max(1e-12).log10();
        if !found.is_empty() && of_found == found.len() && accident < -6.0 {
            return values;
        }
    }
    Values::Any
}

fn how(pairs: &[Pair], found: &[(f32, f32)], codes: bool) -> How {
    if found.is_empty() {
        return How::Other;
    }
    let most = |test: &dyn Fn(f32, f32) -> bool| {
        let hits = found.iter().filter(|(a, b)| test(*a, *b)).count();
        hits as f64 >= 0.98 * found.len() as f64
    };
    if found.iter().any(|(a, b)| a.is_finite() && !b.is_finite()) {
        return How::NotFinite;
    }
    if let Some(clamped) = clamped(pairs, found, codes) {
        return clamped;
    }
    let first = found[0].1;
    if found.len() > 8 && most(&|_, b| b == first) {
        return How::Constant { value: first };
    }
    if codes {
        if let Some(how) = of_codes(found) {
            return how;
        }
    } else if most(&|a, b| (a - b).abs() <= 1.5e-3 * a.abs().max(b.abs())) {
        let up = found.iter().filter(|(a, b)| b.abs() > a.abs()).count();
        let balanced = (0.1..0.9).contains(&(up as f64 / found.len() as f64));
        if balanced || found.len() < 16 {
            return How::LastPlace;
        }
    }
    if most(&|a, b| a == -b || (a + b).abs() <= 1e-3 * a.abs()) {
        return How::Sign;
    }
    let difference = found[0].1 - found[0].0;
    let near = |x: f32, y: f32| (x - y).abs() <= 1e-3 * x.abs().max(y.abs());
    if found.len() > 3 && most(&|a, b| near(b - a, difference)) {
        return How::Offset { by: difference };
    }
    if let Some(factor) = factor(found, codes) {
        return How::Factor { factor };
    }
    if codes && most(&|a, b| (a - b).abs() <= 1.0) {
        let up = found.iter().filter(|(a, b)| b > a).count();
        return match up {
            up if up as f64 >= 0.98 * found.len() as f64 => How::OneStep { up: true },
            up if up as f64 <= 0.02 * found.len() as f64 => How::OneStep { up: false },
            _ => How::Steps,
        };
    }
    How::Other
}

/// Bits of codes that are otherwise.
fn of_codes(found: &[(f32, f32)]) -> Option<How> {
    let byte = |v: f32| v as i8 as u8;
    let here = |test: &dyn Fn(f32) -> f32| {
        let hits = found.iter().filter(|(a, b)| test(*a) == *b).count();
        hits as f64 >= 0.98 * found.len() as f64
    };
    let (mut all_set, mut all_clear, mut flipped, mut same) = (0u8, 0u8, 0u8, 0xffu8);
    let first = byte(found[0].0) ^ byte(found[0].1);
    for (a, b) in found {
        let x = byte(*a) ^ byte(*b);
        flipped |= x;
        same &= x;
        all_set |= x & byte(*b);
        all_clear |= x & !byte(*b);
    }
    if flipped.count_ones() <= 2
        && all_clear == 0
        && here(&|a| f32::from((byte(a) | flipped) as i8))
    {
        return Some(How::Bits {
            mask: flipped,
            set: true,
        });
    }
    if flipped.count_ones() <= 4 && all_set == 0 && here(&|a| f32::from((byte(a) & !flipped) as i8))
    {
        return Some(How::Bits {
            mask: flipped,
            set: false,
        });
    }
    if same != 0 && flipped == first && first.count_ones() <= 2 {
        return Some(How::Flipped { mask: first });
    }
    None
}

/// Whether values end earlier: all that deviate end at one above, or at one below. Of floats several have to.
fn clamped(pairs: &[Pair], found: &[(f32, f32)], codes: bool) -> Option<How> {
    let (mut low, mut high) = match codes {
        true => (-128.0f32, 127.0f32),
        false => (f32::NEG_INFINITY, f32::INFINITY),
    };
    if !codes && found.len() < 8 {
        return None;
    }
    for (a, b) in found {
        match a > b {
            true => high = high.min(*b),
            false => low = low.max(*b),
        }
    }
    let (mut right, mut wrong) = (0usize, 0usize);
    for pair in pairs {
        for (made, dumped) in pair.made.iter().zip(pair.dumped) {
            match (made.clamp(low.min(high), high) == *dumped, made == dumped) {
                (true, true) => {}
                (true, false) => right += 1,
                (false, _) => wrong += 1,
            }
        }
    }
    (low < high && right > 0 && 50 * wrong <= right).then_some(How::Clamped { low, high })
}

/// The factor that most pairs have, from those whose size tells it.
fn factor(found: &[(f32, f32)], codes: bool) -> Option<f32> {
    let large = |a: &f32| !codes || a.abs() >= 16.0;
    let mut ratios: Vec<f32> = (found.iter())
        .filter(|(a, b)| large(a) && a.abs() > 0.0 && b.is_finite() && !(codes && b.abs() >= 127.0))
        .map(|(a, b)| b / a)
        .collect();
    if ratios.len() < 8 {
        return None;
    }
    ratios.sort_by(f32::total_cmp);
    let middle = ratios[ratios.len() / 2];
    let slack = |a: f32| {
        if codes {
            1.01 / a.abs()
        } else {
            2e-3 * middle.abs()
        }
    };
    let hits = found.iter().filter(|(a, _)| large(a));
    let (mut near, mut all) = (0usize, 0usize);
    for (a, b) in hits {
        if codes && b.abs() >= 127.0 {
            continue;
        }
        all += 1;
        near += usize::from((b / a - middle).abs() <= slack(*a));
    }
    let apart = if codes { 0.02 } else { 2e-3 };
    (near as f64 >= 0.98 * all as f64 && (middle - 1.0).abs() > apart && middle != 0.0)
        .then_some(middle)
}

impl fmt::Display for Pattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (token, channel) = match self.state {
            true => ("channel", "state"),
            false => ("token", "channel"),
        };
        let mut words: Vec<String> = [
            self.sequences.words("sequence"),
            self.tokens.words(token),
            self.channels.words(channel),
        ]
        .into_iter()
        .flatten()
        .collect();
        if words.is_empty() {
            words.push(format!("all {token}s and {channel}s"));
        }
        words.extend(match self.values {
            Values::Any => None,
            Values::Negative => Some("only negative values".to_owned()),
            Values::Positive => Some("only positive values".to_owned()),
            Values::Saturated => Some("only codes at the end of the range".to_owned()),
            Values::Zero => Some("only zeros".to_owned()),
            Values::Large => Some("only the largest values".to_owned()),
        });
        words.push(match self.how {
            How::NotFinite => "NaN or infinity".to_owned(),
            How::Constant { value } => format!("all are {value}"),
            How::Offset { by } => format!("offset by {by:+}"),
            How::Sign => "the sign is flipped".to_owned(),
            How::Bits { mask, set } => {
                let bits: Vec<String> = (0..8)
                    .filter(|bit| mask >> bit & 1 == 1)
                    .map(|bit| bit.to_string())
                    .collect();
                let value = if set { 1 } else { 0 };
                format!("bit {} is always {value}", bits.join(" and "))
            }
            How::Flipped { mask } => format!("bits {mask:#010b} are flipped"),
            How::Clamped { low, high } => match (low.is_finite(), high.is_finite()) {
                (true, false) => format!("values end at {low}"),
                (false, true) => format!("values end at {high}"),
                _ => format!("values end at {low} and {high}"),
            },
            How::Factor { factor } => format!("times {factor:.4}"),
            How::OneStep { up: true } => "one step up".to_owned(),
            How::OneStep { up: false } => "one step down".to_owned(),
            How::Steps => "one step up or down".to_owned(),
            How::LastPlace => "about one unit in the last place".to_owned(),
            How::Other => format!("by up to {}", self.largest),
        });
        f.write_str(&words.join("; "))
    }
}
