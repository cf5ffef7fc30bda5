//! Words against the words of the export, counted.

use super::manifest::{StepVectors, Vector};
use super::words::{Dump, words_of};
use scalescope_sim::error::{Result, SimError};

/// How two arrays of words differ.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize)]
pub struct Difference {
    /// The array.
    pub name: String,
    /// Its words.
    pub words: usize,
    /// Words that differ, and words whose bits are not all known.
    pub mismatched: usize,
    /// Words whose bits are not all known.
    pub unknown: usize,
    /// Words of the array that were not given.
    pub missing: usize,
    /// Words given beyond the array's.
    pub extra: usize,
    /// The first word, from 0, that is not given as it should be.
    pub first: Option<usize>,
}

impl Difference {
    /// Whether every word was there and equal, and no word more. Nothing compared is not equal.
    pub fn equal(&self) -> bool {
        self.words > 0 && self.mismatched + self.missing + self.extra == 0
    }
}

/// Each of `found` against the array of its name in `step`, bit for bit.
///
/// # Errors
///
/// An array that the step does not have, or of another type or shape.
pub fn differences(step: &StepVectors, found: &[Vector]) -> Result<Vec<Difference>> {
    let difference = |vector: &Vector| {
        let expected = &step.get(&vector.name)?.array;
        if expected.dtype() != vector.array.dtype() || expected.shape() != vector.array.shape() {
            let (expected, found) = (expected.describe(), vector.array.describe());
            return Err(SimError::value(&vector.name, found, expected));
        }
        let words = words_of(&vector.array).into_iter().map(Some);
        Ok(compare(&vector.name, &words_of(expected), words))
    };
    found.iter().map(difference).collect()
}

/// A dump against its array.
pub fn against_dump(vector: &Vector, dump: &Dump) -> Difference {
    let mut found = compare(
        &vector.name,
        &words_of(&vector.array),
        dump.words.iter().copied(),
    );
    found.unknown = dump.unknown;
    found.missing = dump.missing;
    found.extra = dump.extra;
    // Words that are missing have no value, and so were counted as mismatched.
    found.mismatched -= dump.missing;
    if dump.extra > 0 {
        found.first.get_or_insert(found.words);
    }
    found
}

fn compare(name: &str, expected: &[u64], found: impl Iterator<Item = Option<u64>>) -> Difference {
    let unlike: Vec<usize> = (expected.iter().zip(found).enumerate())
        .filter(|(_, (expected, found))| Some(**expected) != *found)
        .map(|(i, _)| i)
        .collect();
    Difference {
        name: name.to_owned(),
        words: expected.len(),
        mismatched: unlike.len(),
        unknown: 0,
        missing: 0,
        extra: 0,
        first: unlike.first().copied(),
    }
}
