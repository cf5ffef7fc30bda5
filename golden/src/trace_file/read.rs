//! Arrays of a file as what a trace has: token ids, scales, tensors in their own type and shape.

use super::open::Member;
use super::{MAX_SEQUENCES, Meta, allowed_rows};
use crate::npz::{Array, DType, shown};
use crate::value::Value;
use ndarray::{Array2, ArrayD};
use scalescope_sim::error::{Result, SimError};
use scalescope_sim::quant::Scale;
use scalescope_sim::text;
use scalescope_sim::trace::Place;
use std::collections::BTreeMap;

/// The number of sequences, and which key said so first.
#[derive(Debug, Default)]
pub(super) struct Batch(pub(super) Option<(String, usize)>);

impl Batch {
    pub(super) fn check(&mut self, name: &str, found: usize) -> Result<()> {
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

pub(super) fn prefill_tokens(name: &str, array: Array) -> Result<Array2<u32>> {
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

pub(super) fn step_tokens(name: &str, array: Array) -> Result<Vec<u32>> {
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

pub(super) fn scale(name: &str, array: Array) -> Result<Scale> {
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

pub(super) fn meta(name: &str, array: Array) -> Result<Meta> {
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

/// The codes that bytes are, and how: as they lie, or 128 more than the code. Codes crowd around zero, and so do
/// the bytes of one reading only; where they do not, nobody can tell.
fn codes_of_bytes(bytes: &ArrayD<u8>) -> Option<(ArrayD<i8>, &'static str)> {
    let small = bytes.iter().filter(|b| (**b as i8).unsigned_abs() < 64);
    let (small, all) = (small.count(), bytes.len());
    if 4 * small >= 3 * all {
        Some((bytes.mapv(|b| b as i8), "the bytes of INT8 codes"))
    } else if 4 * small <= all {
        let words = "INT8 codes with an offset of 128";
        Some((bytes.mapv(|b| (b ^ 0x80) as i8), words))
    } else {
        None
    }
}

/// An array in the type its tensor has: INT8 codes that lie in a wider type, in bytes, or in floats beside a
/// scale of their own, are codes; f64 that are f32 are f32. Also what is to be said of it.
pub(super) fn own_type(name: &str, array: Array, scaled: bool) -> Result<(Array, Option<String>)> {
    let words = array.describe();
    let expected = "i8, f16 or f32";
    let codes_of =
        |values: &mut dyn Iterator<Item = Option<i8>>| -> Option<Vec<i8>> { values.collect() };
    let whole = |v: f64| (v == f64::from(v as i8)).then_some(v as i8);
    let codes = match &array {
        Array::I8(_) => return Ok((array, None)),
        Array::U8(bytes) => {
            if let Some((codes, how)) = codes_of_bytes(bytes) {
                let remark = format!("{words}, {how}: read as i8");
                return Ok((Array::I8(codes), Some(remark)));
            }
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

/// Sequences, rows and columns of a tensor of this shape.
pub(super) fn dims(
    name: &str,
    place: Place,
    (dtype, shape): (DType, &[usize]),
    batch: &mut Batch,
    decode: bool,
) -> Result<[usize; 3]> {
    let state = place.point.is_state();
    let words = format!("{} {shape:?}", dtype.name());
    let dims = match *shape {
        [b, rows, columns] if !decode || state || rows == 1 => [b, rows, columns],
        [b, columns] if decode && !state => [b, 1, columns],
        [rows, columns] if !decode || state => {
            if !batch.is_one() {
                return Err(SimError::value(
                    name,
                    "axes [B, ., .], as there are more sequences",
                    words,
                ));
            }
            [1, rows, columns]
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
    if dims.contains(&0) {
        return Err(SimError::value(name, "at least one element", words));
    }
    batch.check(name, dims[0])?;
    Ok(dims)
}

/// One [`Value`] a sequence.
pub(super) fn split(name: &str, array: Array, dims: [usize; 3]) -> Result<Vec<Value>> {
    match array {
        Array::I8(a) => Ok(rows_of(a, dims).map(Value::I8).collect()),
        Array::F16(a) => Ok(rows_of(a, dims).map(Value::F16).collect()),
        Array::F32(a) => Ok(rows_of(a, dims).map(Value::F32).collect()),
        other => Err(SimError::value(name, "i8, f16 or f32", other.describe())),
    }
}

fn rows_of<T: Clone>(
    array: ArrayD<T>,
    [batch, rows, columns]: [usize; 3],
) -> impl Iterator<Item = Array2<T>> {
    let (mut values, _) = array.into_raw_vec_and_offset();
    let length = rows * columns;
    // From the back, so that no more than one sequence is in memory twice.
    let mut sequences: Vec<Array2<T>> = (0..batch)
        .rev()
        .map(|sequence| {
            let rest = values.split_off(sequence * length);
            values.shrink_to_fit();
            Array2::from_shape_vec((rows, columns), rest).expect("rows times columns")
        })
        .collect();
    sequences.reverse();
    sequences.into_iter()
}

/// Every tensor of a prefill has one row a token.
pub(super) fn check_lengths(
    prefill: &BTreeMap<Place, Member>,
    tokens: Option<usize>,
) -> Result<()> {
    let whole = |place: &&Place| !place.point.is_state() && !place.point.is_scale();
    let first = prefill.keys().find(whole).map(|p| &prefill[p]);
    let (source, length) = match (tokens, first) {
        (Some(length), _) => ("the tokens", length),
        (None, Some(member)) => (member.name.as_str(), member.dims[1]),
        (None, None) => return Ok(()),
    };
    for (place, Member { name, dims }) in prefill {
        let [_, rows, columns] = *dims;
        // A transposed tensor is let in, to be recognised and named where it is compared.
        if !allowed_rows(*place, rows, length) && columns != length {
            let expected = format!("{length} rows, as in {source}");
            return Err(SimError::value(name, expected, rows));
        }
    }
    Ok(())
}
