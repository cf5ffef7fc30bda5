//! An open trace: what it holds is known, its tensors are read when they are asked for.

use super::read::{
    Batch, check_lengths, dims, meta, own_type, prefill_tokens, scale, split, step_tokens,
};
use super::source::{self, Arrays};
use super::{DecodeStep, Points, TraceFile, one_block_lower};
use crate::npz::NpzReader;
use ndarray::Array2;
use scalescope_sim::error::{Result, SimError};
use scalescope_sim::trace::{Place, Selection, TracePoint};
use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard};

/// What a key means.
#[derive(Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Key {
    Tokens,
    StepToken(usize),
    Point(Place),
    StepPoint(usize, Place),
    Scale(Place),
    Meta,
}

impl Key {
    fn parse(name: &str) -> Option<Self> {
        match name {
            "tokens" | "prefill_tokens" => return Some(Self::Tokens),
            "meta" => return Some(Self::Meta),
            _ => {}
        }
        if let Some(place) = Place::from_key(name) {
            return Some(Self::Point(place));
        }
        let (head, rest) = name.split_once('/')?;
        if head == "scale" {
            return Place::from_key(rest).map(Self::Scale);
        }
        let step = head.strip_prefix("step_")?.parse().ok()?;
        if rest == "token" {
            return Some(Self::StepToken(step));
        }
        let bare = || TracePoint::from_name(rest).filter(|point| !point.in_layer());
        let place = Place::from_key(rest).or_else(|| bare().map(Place::end))?;
        Some(Self::StepPoint(step, place))
    }
}

/// A tensor in its file.
#[derive(Clone, Debug)]
pub(super) struct Member {
    /// Its key as the file has it.
    pub name: String,
    /// Sequences, rows, columns.
    pub dims: [usize; 3],
}

/// A trace whose tensors stay in the file until they are asked for, one place at a time: however long the
/// file, memory holds what was asked for and the key of everything else.
pub struct OpenTrace<'a> {
    path: Option<PathBuf>,
    source: Mutex<Reader<'a>>,
    /// The trace without its tensors; `remarks` come with them.
    head: TraceFile,
    batch: usize,
    /// Tensors of the prefill and of decode steps.
    members: BTreeMap<Option<usize>, BTreeMap<Place, Member>>,
}

struct Reader<'a> {
    arrays: Box<dyn Arrays + 'a>,
    remarks: BTreeSet<String>,
}

impl OpenTrace<'static> {
    /// Opens a trace: reads everything but its tensors, and of these types and shapes.
    pub fn open(path: impl AsRef<Path>) -> Result<Self> {
        Self::open_selected(path.as_ref(), &Selection::default())
    }

    fn open_selected(path: &Path, selection: &Selection) -> Result<Self> {
        let opened = Self::of(source::open(path)?, selection).map_err(|e| e.in_file(path))?;
        Ok(Self {
            path: Some(path.to_path_buf()),
            ..opened
        })
    }
}

impl<'a> OpenTrace<'a> {
    fn of(mut arrays: Box<dyn Arrays + 'a>, selection: &Selection) -> Result<Self> {
        let mut head = TraceFile::default();
        let (keys, tokens) = keys(&mut *arrays, &mut head.unknown)?;
        let mut batch = Batch(
            tokens
                .as_ref()
                .map(|(name, ids)| (name.clone(), ids.nrows())),
        );
        let mut members: BTreeMap<Option<usize>, BTreeMap<Place, Member>> = BTreeMap::new();
        let mut steps: BTreeMap<usize, Vec<u32>> = BTreeMap::new();
        for (key, name) in keys {
            let (step, place) = match key {
                Key::Tokens => continue,
                Key::Meta => {
                    head.meta = Some(meta(&name, arrays.read(&name)?)?);
                    continue;
                }
                Key::Scale(place) => {
                    let scale = scale(&name, arrays.read(&name)?)?;
                    head.scales.insert(place, scale);
                    continue;
                }
                Key::StepToken(step) => {
                    let ids = step_tokens(&name, arrays.read(&name)?)?;
                    batch.check(&name, ids.len())?;
                    steps.insert(step, ids);
                    continue;
                }
                Key::Point(place) => (None, place),
                Key::StepPoint(step, place) => (Some(step), place),
            };
            if !selection.keeps(place) {
                continue;
            }
            if let Some(step) = step {
                steps.entry(step).or_default();
            }
            let (dtype, shape) = arrays.header(&name)?;
            let dims = dims(&name, place, (dtype, &shape), &mut batch, step.is_some())?;
            let of_step = members.entry(step).or_default();
            of_step.insert(place, Member { name, dims });
        }
        if let Some(prefill) = members.get(&None) {
            check_lengths(prefill, tokens.as_ref().map(|(_, ids)| ids.ncols()))?;
        }
        head.tokens = tokens.map(|(_, ids)| ids);
        head.steps = (steps.into_iter())
            .map(|(index, tokens)| DecodeStep {
                index,
                tokens,
                sequences: Vec::new(),
            })
            .collect();
        let remarks = BTreeSet::new();
        Ok(Self {
            path: None,
            source: Mutex::new(Reader { arrays, remarks }),
            head,
            batch: batch.0.map_or(0, |(_, batch)| batch),
            members,
        })
    }

    fn source(&self) -> MutexGuard<'_, Reader<'a>> {
        self.source.lock().expect("reading does not panic")
    }

    /// The trace without its tensors.
    pub fn head(&self) -> &TraceFile {
        &self.head
    }

    /// Number of sequences B.
    pub fn batch(&self) -> usize {
        self.batch
    }

    /// Places of the prefill or of a decode step.
    pub fn places(&self, step: Option<usize>) -> BTreeSet<Place> {
        let members = self.members.get(&step);
        members
            .into_iter()
            .flat_map(|m| m.keys().copied())
            .collect()
    }

    /// Reads tensors of the prefill or of a decode step; of those the file does not hold there is none.
    pub fn read(&self, step: Option<usize>, places: &[Place]) -> Result<Vec<Points>> {
        let mut sequences = vec![Points::new(); self.batch];
        let Some(members) = self.members.get(&step) else {
            return Ok(sequences);
        };
        for place in places {
            let Some(Member { name, dims }) = members.get(place) else {
                continue;
            };
            let scaled = self.head.scales.contains_key(place);
            let values = self.source().tensor(name, *dims, scaled);
            let values = values.map_err(|e| match &self.path {
                Some(path) => e.in_file(path),
                None => e,
            })?;
            for (points, value) in sequences.iter_mut().zip(values) {
                points.insert(*place, value);
            }
        }
        Ok(sequences)
    }

    /// What is to be said of the tensors read so far: those that lie in another type than their own.
    pub fn remarks(&self) -> Vec<String> {
        self.source().remarks.iter().cloned().collect()
    }

    /// Lowers the number of every block by one, where no tensor is of block 0; whether it did.
    pub fn number_from_0(&mut self) -> bool {
        let places = || self.members.values().flat_map(|m| m.keys());
        let mut layers = places().filter_map(|place| place.layer).peekable();
        if layers.peek().is_none() || layers.any(|layer| layer == 0) {
            return false;
        }
        for members in self.members.values_mut() {
            *members = (std::mem::take(members).into_iter())
                .map(|(place, member)| (one_block_lower(place), member))
                .collect();
        }
        self.head.scales = (self.head.scales.iter())
            .filter(|(place, _)| place.layer != Some(0))
            .map(|(place, scale)| (one_block_lower(*place), *scale))
            .collect();
        true
    }

    fn into_trace(self) -> Result<TraceFile> {
        let all = |step| -> Result<Vec<Points>> {
            let places: Vec<Place> = self.places(step).into_iter().collect();
            self.read(step, &places)
        };
        let sequences = all(None)?;
        let mut trace = self.head.clone();
        trace.sequences = sequences;
        for step in &mut trace.steps {
            step.sequences = all(Some(step.index))?;
        }
        trace.remarks = self.remarks();
        Ok(trace)
    }
}

impl Reader<'_> {
    fn tensor(
        &mut self,
        name: &str,
        dims: [usize; 3],
        scaled: bool,
    ) -> Result<Vec<crate::value::Value>> {
        let (array, remark) = own_type(name, self.arrays.read(name)?, scaled)?;
        self.remarks
            .extend(remark.map(|remark| format!("{name}: {remark}")));
        split(name, array, dims)
    }
}

/// What the keys of a file mean, and its tokens; names that mean nothing go to `unknown`.
#[expect(clippy::type_complexity, reason = "used once, below its only caller")]
fn keys(
    arrays: &mut dyn Arrays,
    unknown: &mut Vec<String>,
) -> Result<(BTreeMap<Key, String>, Option<(String, Array2<u32>)>)> {
    let mut keys: BTreeMap<Key, String> = BTreeMap::new();
    let mut tokens: Option<(String, Array2<u32>)> = None;
    for name in arrays.names() {
        match Key::parse(&name) {
            None => unknown.push(name),
            // Two names for the tokens are one key too many only if they disagree.
            Some(Key::Tokens) => {
                let found = prefill_tokens(&name, arrays.read(&name)?)?;
                match &tokens {
                    Some((other, known)) if *known != found => {
                        let expected = format!("the ids of {other}");
                        return Err(SimError::value(name, expected, "others"));
                    }
                    _ => tokens = Some((name, found)),
                }
            }
            Some(key) => {
                if let Some(other) = keys.get(&key) {
                    let found = format!("also {other}");
                    return Err(SimError::value(name, "one key for a tensor", found));
                }
                keys.insert(key, name);
            }
        }
    }
    Ok((keys, tokens))
}

impl TraceFile {
    /// Reads a trace.
    pub fn read(path: impl AsRef<Path>) -> Result<Self> {
        Self::read_selected(path, &Selection::default())
    }

    /// Reads the selected tensors of a trace; the others stay unread.
    pub fn read_selected(path: impl AsRef<Path>, selection: &Selection) -> Result<Self> {
        OpenTrace::open_selected(path.as_ref(), selection)?.into_trace()
    }

    /// Reads every tensor of an open file.
    pub fn from_npz(npz: &mut NpzReader) -> Result<Self> {
        OpenTrace::of(Box::new(npz), &Selection::default())?.into_trace()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_are_told_apart() {
        let conv = Place::layer(7, TracePoint::ConvOut);
        let logits = Place::end(TracePoint::Logits);
        for (name, key) in [
            ("tokens", Some(Key::Tokens)),
            ("prefill_tokens", Some(Key::Tokens)),
            ("meta", Some(Key::Meta)),
            ("layer_07/conv_out", Some(Key::Point(conv))),
            ("final/logits", Some(Key::Point(logits))),
            ("step_12/token", Some(Key::StepToken(12))),
            ("step_12/layer_07/conv_out", Some(Key::StepPoint(12, conv))),
            ("step_12/logits", Some(Key::StepPoint(12, logits))),
            ("step_12/final/logits", Some(Key::StepPoint(12, logits))),
            ("scale/layer_07/conv_out", Some(Key::Scale(conv))),
            ("layer_07/conv_owt", None),
            ("step_x/logits", None),
            ("step_1/norm_out", None),
            ("logits", None),
            ("scale/x", None),
        ] {
            assert_eq!(Key::parse(name), key, "{name}");
        }
    }
}
