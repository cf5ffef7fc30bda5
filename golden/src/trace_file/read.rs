//! From `.npz`, or a dict of tensors that `torch.save` wrote, to [`TraceFile`].

use super::{Meta, Points, Step, TraceFile, allowed_rows};
use crate::npz::{Array, Element, NpzReader, shown};
use crate::rtl::manifest::{StepVectors, is_vectors};
use crate::value::Value;
use half::f16;
use ndarray::{Array2, ArrayD, IxDyn};
use scalescope_sim::checkpoint::tensor::Dtype;
use scalescope_sim::checkpoint::torch::{Found, TorchFile};
use scalescope_sim::error::{Result, SimError};
use scalescope_sim::quant::Scale;
use scalescope_sim::text;
use scalescope_sim::trace::{Place, Selection, TracePoint};
use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

/// Sequences that a trace may have.
const MAX_SEQUENCES: usize = 1024;

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

impl TraceFile {
    /// Reads a trace.
    pub fn read(path: impl AsRef<Path>) -> Result<Self> {
        Self::read_selected(path, &Selection::default())
    }

    /// Reads the selected tensors of a trace; the others stay unread.
    pub fn read_selected(path: impl AsRef<Path>, selection: &Selection) -> Result<Self> {
        let path = path.as_ref();
        if is_vectors(path) {
            let mut folder = Folder::open(path)?;
            return read(&mut folder, selection).map_err(|e| e.in_file(path));
        }
        if path
            .extension()
            .is_some_and(|e| TORCH.iter().any(|known| e == *known))
        {
            let mut dump = TorchFile::open(path)?;
            return read(&mut dump, selection).map_err(|e| e.in_file(path));
        }
        let mut npz = NpzReader::open(path)?;
        read(&mut npz, selection).map_err(|e| e.in_file(path))
    }

    /// Reads every tensor of an open file.
    pub fn from_npz(npz: &mut NpzReader) -> Result<Self> {
        read(npz, &Selection::default())
    }
}

/// Arrays by name: an `.npz`, or a folder of vectors.
trait Arrays {
    fn names(&self) -> Vec<String>;
    fn read(&mut self, name: &str) -> Result<Array>;
}

impl Arrays for NpzReader {
    fn names(&self) -> Vec<String> {
        NpzReader::names(self).map(str::to_owned).collect()
    }

    fn read(&mut self, name: &str) -> Result<Array> {
        NpzReader::read(self, name)
    }
}

/// How names of files of `torch.save` end.
const TORCH: [&str; 3] = ["pt", "pth", "bin"];

/// A dict of tensors that `torch.save` wrote; bfloat16 becomes f32, which is exact.
impl Arrays for TorchFile<'_> {
    fn names(&self) -> Vec<String> {
        self.entries().map(|(name, _)| name.to_owned()).collect()
    }

    fn read(&mut self, name: &str) -> Result<Array> {
        match self.get(name) {
            Some(Found::Number(value)) if f64::from(*value as f32) == *value => {
                return Ok(Array::scalar(*value as f32));
            }
            Some(Found::Integer(value)) => return Ok(Array::scalar(*value)),
            _ => {}
        }
        let tensor = self.any_tensor(name)?;
        let (bytes, shape) = (tensor.bytes(), IxDyn(tensor.shape()));
        fn array<T: Element>(bytes: &[u8], shape: IxDyn) -> Array {
            let values = bytes.chunks_exact(T::SIZE).map(T::from_le).collect();
            T::wrap(ArrayD::from_shape_vec(shape, values).expect("as many elements"))
        }
        Ok(match tensor.dtype() {
            Dtype::BOOL => array::<bool>(&bytes, shape),
            Dtype::I8 => array::<i8>(&bytes, shape),
            Dtype::U8 => array::<u8>(&bytes, shape),
            Dtype::I16 => array::<i16>(&bytes, shape),
            Dtype::I32 => array::<i32>(&bytes, shape),
            Dtype::I64 => array::<i64>(&bytes, shape),
            Dtype::F16 => array::<f16>(&bytes, shape),
            Dtype::F32 => array::<f32>(&bytes, shape),
            Dtype::F64 => array::<f64>(&bytes, shape),
            Dtype::BF16 => {
                let values = ArrayD::from_shape_vec(shape, tensor.to_f32()?);
                Array::F32(values.expect("as many elements"))
            }
            other => return Err(SimError::value(name, "integers or reals", other)),
        })
    }
}

/// The arrays of a folder of vectors that are tensors of a trace, their scales, and where they come
/// from.
struct Folder(BTreeMap<String, Array>);

impl Folder {
    fn open(path: &Path) -> Result<Self> {
        let (step, _) = StepVectors::read(path)?;
        let mut arrays = BTreeMap::new();
        for vector in step.vectors {
            let Some(key) = vector.key else { continue };
            if let Some(scale) = vector.scale {
                arrays.insert(format!("scale/{key}"), Array::scalar(scale));
            }
            arrays.insert(key, vector.array);
        }
        let meta = serde_json::json!({
            "mode": step.mode, "profile": step.profile.name,
            "profile_hash": step.profile.hash, "model": step.model,
        });
        let bytes = ndarray::Array1::from_vec(meta.to_string().into_bytes());
        arrays.insert("meta".into(), Array::U8(bytes.into_dyn()));
        Ok(Self(arrays))
    }
}

impl Arrays for Folder {
    fn names(&self) -> Vec<String> {
        self.0.keys().cloned().collect()
    }

    fn read(&mut self, name: &str) -> Result<Array> {
        let array = self.0.remove(name);
        array.ok_or_else(|| SimError::value(name, "an array of the folder", "none"))
    }
}

/// Values with the file's name for them.
type Named<T> = BTreeMap<T, (String, Vec<Value>)>;

fn read(npz: &mut impl Arrays, selection: &Selection) -> Result<TraceFile> {
    let mut trace = TraceFile::default();
    let mut keys: BTreeMap<Key, String> = BTreeMap::new();
    let mut tokens: Option<(String, Array2<u32>)> = None;
    for name in npz.names() {
        match Key::parse(&name) {
            None => trace.unknown.push(name),
            // Two names for the tokens are one key too many only if they disagree.
            Some(Key::Tokens) => {
                let found = prefill_tokens(&name, npz.read(&name)?)?;
                match &tokens {
                    Some((other, known)) if *known != found => {
                        return Err(SimError::value(
                            name,
                            format_args!("the ids of {other}"),
                            "others",
                        ));
                    }
                    _ => tokens = Some((name, found)),
                }
            }
            Some(key) => {
                if let Some(other) = keys.get(&key) {
                    return Err(SimError::value(
                        name,
                        "one key for a tensor",
                        format_args!("also {other}"),
                    ));
                }
                keys.insert(key, name);
            }
        }
    }
    let mut batch = Batch(
        tokens
            .as_ref()
            .map(|(name, ids)| (name.clone(), ids.nrows())),
    );
    let scaled: BTreeSet<Place> = (keys.keys())
        .filter_map(|key| match key {
            Key::Scale(place) => Some(*place),
            _ => None,
        })
        .collect();
    let mut remarks = Vec::new();
    let mut own_type = |name: &str, place: Place, array| {
        let (array, remark) = own_type(name, array, scaled.contains(&place))?;
        remarks.extend(remark.map(|remark| format!("{name}: {remark}")));
        Ok::<Array, SimError>(array)
    };
    let mut prefill: Named<Place> = BTreeMap::new();
    let mut steps: BTreeMap<usize, (Vec<u32>, Named<Place>)> = BTreeMap::new();
    for (key, name) in keys {
        match key {
            Key::Tokens => {}
            Key::Meta => trace.meta = Some(meta(&name, npz.read(&name)?)?),
            Key::Scale(place) => {
                trace.scales.insert(place, scale(&name, npz.read(&name)?)?);
            }
            Key::StepToken(step) => {
                let ids = step_tokens(&name, npz.read(&name)?)?;
                batch.check(&name, ids.len())?;
                steps.entry(step).or_default().0 = ids;
            }
            Key::Point(place) if selection.keeps(place) => {
                let array = own_type(&name, place, npz.read(&name)?)?;
                let values = split(&name, place, array, &mut batch, false)?;
                prefill.insert(place, (name, values));
            }
            Key::StepPoint(step, place) if selection.keeps(place) => {
                let array = own_type(&name, place, npz.read(&name)?)?;
                let values = split(&name, place, array, &mut batch, true)?;
                steps
                    .entry(step)
                    .or_default()
                    .1
                    .insert(place, (name, values));
            }
            Key::Point(_) | Key::StepPoint(..) => {}
        }
    }
    check_lengths(&prefill, tokens.as_ref().map(|(_, ids)| ids.ncols()))?;
    let batch = batch.0.map_or(0, |(_, batch)| batch);
    trace.remarks = remarks;
    trace.tokens = tokens.map(|(_, ids)| ids);
    trace.sequences = transpose(prefill, batch);
    trace.steps = steps
        .into_iter()
        .map(|(index, (tokens, named))| Step {
            index,
            tokens,
            sequences: transpose(named, batch),
        })
        .collect();
    Ok(trace)
}

/// The number of sequences, and which key said so first.
struct Batch(Option<(String, usize)>);

impl Batch {
    fn check(&mut self, name: &str, found: usize) -> Result<()> {
        not_too_many(name, found)?;
        match &self.0 {
            None => self.0 = Some((name.to_owned(), found)),
            Some((first, batch)) if *batch != found => {
                return Err(SimError::value(
                    name,
                    format_args!("{batch} sequences, as in {first}"),
                    found,
                ));
            }
            Some(_) => {}
        }
        Ok(())
    }

    fn is_one(&self) -> bool {
        self.0.as_ref().is_none_or(|(_, batch)| *batch == 1)
    }
}

/// Each sequence takes a kilobyte or more beside its elements, and a small file can claim millions.
fn not_too_many(name: &str, sequences: usize) -> Result<()> {
    match sequences > MAX_SEQUENCES {
        false => Ok(()),
        true => {
            let expected = format_args!("at most {MAX_SEQUENCES} sequences").to_string();
            Err(SimError::value(name, expected, sequences))
        }
    }
}

fn prefill_tokens(name: &str, array: Array) -> Result<Array2<u32>> {
    let words = array.describe();
    let ids = ids(name, &array)?;
    let shape = match *array.shape() {
        [batch, length] => (batch, length),
        [length] => (1, length),
        _ => return Err(SimError::value(name, "token ids [B, L]", words)),
    };
    if shape.0 == 0 || shape.1 == 0 {
        return Err(SimError::value(name, "at least one token", words));
    }
    not_too_many(name, shape.0)?;
    Ok(Array2::from_shape_vec(shape, ids).expect("one id an element"))
}

fn step_tokens(name: &str, array: Array) -> Result<Vec<u32>> {
    match *array.shape() {
        [] | [_] | [_, 1] if !array.is_empty() => ids(name, &array),
        _ => Err(SimError::value(
            name,
            "token ids [B] or [B, 1]",
            array.describe(),
        )),
    }
}

/// The elements of an array as token ids.
fn ids(name: &str, array: &Array) -> Result<Vec<u32>> {
    let integers = array
        .integers()
        .ok_or_else(|| SimError::value(name, "integer token ids", array.describe()))?;
    // One by one: widened to i64 first, bytes would take eight times their memory.
    let mut ids = Vec::with_capacity(array.len());
    for id in integers {
        let id = u32::try_from(id)
            .map_err(|_| SimError::value(name, "token ids from 0 to 2^32 - 1", id))?;
        ids.push(id);
    }
    Ok(ids)
}

fn scale(name: &str, array: Array) -> Result<Scale> {
    let words = array.describe();
    let value = match &array {
        Array::F32(a) if a.len() == 1 => a.first().copied(),
        // NumPy's own numbers are f64; a scale that was f32 is f32 still.
        Array::F64(a) if a.len() == 1 => narrowed(a).and_then(|a| a.first().copied()),
        _ => None,
    };
    let value = value.ok_or_else(|| SimError::value(name, "one f32", words))?;
    Scale::new(value).map_err(|_| SimError::value(name, "a positive, finite, normal f32", value))
}

fn meta(name: &str, array: Array) -> Result<Meta> {
    let words = array.describe();
    let Array::U8(bytes) = array else {
        return Err(SimError::value(name, "JSON in u8", words));
    };
    let (bytes, _) = bytes.into_raw_vec_and_offset();
    text::from_json(&bytes).map_err(|found| {
        let expected = "JSON with mode, profile, model as texts";
        SimError::value(name, expected, shown(&found))
    })
}

/// The f32 of f64 that are f32, every one.
fn narrowed(values: &ArrayD<f64>) -> Option<ArrayD<f32>> {
    let exact = |v: &f64| f64::from(*v as f32) == *v || v.is_nan();
    values.iter().all(exact).then(|| values.mapv(|v| v as f32))
}

/// An array in the type its tensor has: INT8 codes that lie in a wider type, or in floats beside a scale of
/// their own, are codes; f64 that are f32 are f32. Also what is to be said of it.
fn own_type(name: &str, array: Array, scaled: bool) -> Result<(Array, Option<String>)> {
    let words = array.describe();
    let expected = "i8, f16 or f32";
    let codes_of =
        |values: &mut dyn Iterator<Item = Option<i8>>| -> Option<Vec<i8>> { values.collect() };
    let whole = |v: f64| (v == f64::from(v as i8)).then_some(v as i8);
    let codes = match &array {
        Array::I8(_) => return Ok((array, None)),
        Array::U8(_) => {
            let found = format!(
                "{words}: bytes of codes, or codes with an offset? Both are i8 to be told apart"
            );
            return Err(SimError::value(name, expected, found));
        }
        Array::F16(a) if scaled => codes_of(&mut a.iter().map(|v| whole((*v).into()))),
        Array::F32(a) if scaled => codes_of(&mut a.iter().map(|v| whole((*v).into()))),
        Array::F64(a) => match narrowed(a) {
            Some(single) if !scaled => {
                let remark = format!("{words}, all of them f32: read as that");
                return Ok((Array::F32(single), Some(remark)));
            }
            _ => codes_of(&mut a.iter().map(|v| whole(*v))),
        },
        Array::F16(_) | Array::F32(_) => None,
        integers => {
            let mut all = integers.integers().into_iter().flatten();
            codes_of(&mut all.by_ref().map(|v| i8::try_from(v).ok()))
        }
    };
    let is_float = matches!(array, Array::F16(_) | Array::F32(_));
    match codes {
        Some(codes) => {
            let codes = ArrayD::from_shape_vec(array.shape(), codes).expect("a code an element");
            Ok((
                Array::I8(codes),
                Some(format!("{words}, INT8 codes all of them: read as i8")),
            ))
        }
        None if is_float => Ok((array, None)),
        None => Err(SimError::value(
            name,
            expected,
            format_args!("{words}, not all of them INT8 codes or f32"),
        )),
    }
}

/// One [`Value`] a sequence.
fn split(
    name: &str,
    place: Place,
    array: Array,
    batch: &mut Batch,
    decode: bool,
) -> Result<Vec<Value>> {
    let state = place.point.is_state();
    let words = array.describe();
    let shape = match *array.shape() {
        [b, rows, columns] if !decode || state || rows == 1 => (b, rows, columns),
        [b, columns] if decode && !state => (b, 1, columns),
        [rows, columns] if !decode || state => {
            if !batch.is_one() {
                return Err(SimError::value(
                    name,
                    "axes [B, ., .], as there are more sequences",
                    words,
                ));
            }
            (1, rows, columns)
        }
        _ => {
            let expected = match (state, decode) {
                (true, _) => "a state [B, E, N]",
                (false, true) => "[B, channels] or [B, 1, channels]",
                (false, false) => "[B, L, channels]",
            };
            return Err(SimError::value(name, expected, words));
        }
    };
    if shape.0 == 0 || shape.1 == 0 || shape.2 == 0 {
        return Err(SimError::value(name, "at least one element", words));
    }
    batch.check(name, shape.0)?;
    match array {
        Array::I8(a) => Ok(rows_of(a, shape).map(Value::I8).collect()),
        Array::F16(a) => Ok(rows_of(a, shape).map(Value::F16).collect()),
        Array::F32(a) => Ok(rows_of(a, shape).map(Value::F32).collect()),
        _ => Err(SimError::value(name, "i8, f16 or f32", words)),
    }
}

fn rows_of<T: Clone>(
    array: ArrayD<T>,
    (batch, rows, columns): (usize, usize, usize),
) -> impl Iterator<Item = Array2<T>> {
    let (mut values, _) = array.into_raw_vec_and_offset();
    let length = rows * columns;
    // From the back, so that each sequence is split off without copying what remains.
    let mut sequences: Vec<Array2<T>> = (0..batch)
        .rev()
        .map(|sequence| values.split_off(sequence * length))
        .map(|rest| Array2::from_shape_vec((rows, columns), rest).expect("rows times columns"))
        .collect();
    sequences.reverse();
    sequences.into_iter()
}

/// Every tensor has one row a token.
fn check_lengths(prefill: &Named<Place>, tokens: Option<usize>) -> Result<()> {
    let rows = |values: &[Value]| values.first().map_or(0, |v| v.dim().0);
    let whole = |place: &&Place| !place.point.is_state() && !place.point.is_scale();
    let first = prefill.keys().find(whole).map(|p| &prefill[p]);
    let (source, length) = match (tokens, first) {
        (Some(length), _) => ("the tokens", length),
        (None, Some((name, values))) => (name.as_str(), rows(values)),
        (None, None) => return Ok(()),
    };
    for (place, (name, values)) in prefill {
        // A transposed tensor is let in, to be recognised and named where it is compared.
        let columns = values.first().map_or(0, |v| v.dim().1);
        if !allowed_rows(*place, rows(values), length) && columns != length {
            return Err(SimError::value(
                name,
                format_args!("{length} rows, as in {source}"),
                rows(values),
            ));
        }
    }
    Ok(())
}

fn transpose(named: Named<Place>, batch: usize) -> Vec<Points> {
    let mut sequences = vec![Points::new(); batch];
    for (place, (_, values)) in named {
        for (points, value) in sequences.iter_mut().zip(values) {
            points.insert(place, value);
        }
    }
    sequences
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
