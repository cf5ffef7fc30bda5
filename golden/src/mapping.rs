//! Dumps of other programs as traces, by a mapping file: which array is which tensor, and how it lies.
//!
//! ```toml
//! version = 1
//! first_layer = 0                     # what the dump calls the first block
//!
//! [tokens]
//! source = "input_ids.npy"            # or ids = [[5, 6, 7]]
//!
//! [[tensor]]
//! source = "layer{layer}_conv1d_output_int8.pt"
//! point = "conv_out"
//! layout = "bdl"                      # axes as they lie: b sequences, l tokens, d channels; states b, e, n
//! scale = "layer{layer}_scales.pt:output_scale"
//! ```
//!
//! `docs/mapping.md` lists every key.

mod dump;
mod suggest;
#[cfg(test)]
mod tests;

pub use suggest::suggest;

use crate::npz::{Array, Compression, Element, NpzWriter};
use crate::trace_file::TraceFile;
use dump::Dump;
use half::f16;
use ndarray::{ArrayD, IxDyn};
use scalescope_sim::error::{Result, SimError};
use scalescope_sim::text;
use scalescope_sim::trace::{Place, TracePoint};
use serde::Deserialize;
use std::collections::BTreeMap;
use std::path::Path;

/// The version of the format.
const VERSION: u32 = 1;

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    version: u32,
    #[serde(default)]
    first_layer: usize,
    tokens: Option<Tokens>,
    #[serde(default)]
    tensor: Vec<TensorEntry>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Tokens {
    source: Option<String>,
    ids: Option<Vec<Vec<u32>>>,
    dtype: Option<Dtype>,
    shape: Option<Vec<usize>>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct TensorEntry {
    source: String,
    point: String,
    layer: Option<usize>,
    step: Option<usize>,
    scale: Option<Scale>,
    /// What it holds, whatever type it is stored in; the type of a raw file.
    dtype: Option<Dtype>,
    /// Lengths of the axes, where the file does not say them or says others.
    shape: Option<Vec<usize>>,
    layout: Option<String>,
    #[serde(default)]
    transpose: bool,
}

impl TensorEntry {
    fn layout(&self) -> DumpedLayout {
        DumpedLayout {
            dtype: self.dtype,
            shape: self.shape.clone(),
            letters: self.layout.clone(),
            transpose: self.transpose,
        }
    }
}

/// How an array lies in the dump.
#[derive(Clone, Debug, Default)]
struct DumpedLayout {
    dtype: Option<Dtype>,
    shape: Option<Vec<usize>>,
    letters: Option<String>,
    transpose: bool,
}

#[derive(Clone, Copy, Debug, Deserialize, PartialEq, Eq)]
enum Dtype {
    #[serde(rename = "int8")]
    I8,
    #[serde(rename = "float16")]
    F16,
    #[serde(rename = "float32")]
    F32,
    #[serde(rename = "int32")]
    I32,
    #[serde(rename = "int64")]
    I64,
}

#[derive(Clone, Debug, Deserialize)]
#[serde(untagged)]
enum Scale {
    Number(f32),
    Source(String),
}

/// Reads a dump by a mapping file.
///
/// # Errors
///
/// One line: the mapping file and its entry, or the dump and its array, what was expected and found. An entry whose
/// source is not in the dump is an error, and so is a mapping that maps nothing.
pub fn read(dump: &Path, mapping: &Path) -> Result<TraceFile> {
    let in_mapping = |e: SimError| e.in_file(mapping);
    let text = text::read(mapping)?;
    let file: File = toml::from_str(&text).map_err(|e| {
        let line = e
            .span()
            .map_or(0, |span| text[..span.start].matches('\n').count() + 1);
        let found = e.message().replace('\n', " ");
        SimError::file(mapping, format_args!("line {line}"), "a mapping", found)
    })?;
    if file.version != VERSION {
        return Err(SimError::file(mapping, "version", VERSION, file.version));
    }
    let mut arrays = Dump::open(dump)?;
    let mut made: BTreeMap<String, Array> = BTreeMap::new();
    let mut put = |key: String, source: &str, array: Array| match made.insert(key.clone(), array) {
        None => Ok(()),
        Some(_) => Err(SimError::value(
            source,
            "one source for a tensor",
            format_args!("a second one of {key}"),
        )),
    };
    if let Some(tokens) = &file.tokens {
        let has_steps = file.tensor.iter().any(|tensor| tensor.step.is_some());
        let key = if has_steps {
            "prefill_tokens"
        } else {
            "tokens"
        };
        put(
            key.into(),
            "tokens",
            tokens_of(tokens, &mut arrays).map_err(in_mapping)?,
        )
        .map_err(in_mapping)?;
    }
    for tensor in &file.tensor {
        let point = TracePoint::from_name(&tensor.point).ok_or_else(|| {
            let known = TracePoint::ALL.map(TracePoint::name).join(", ");
            in_mapping(SimError::value(
                format_args!("{}: point", tensor.source),
                format_args!("one of {known}"),
                &tensor.point,
            ))
        })?;
        let found = sources(tensor, point, file.first_layer, &arrays).map_err(in_mapping)?;
        for (layer, source) in found {
            let place = Place { layer, point };
            let layout = tensor.layout();
            let array = lay(arrays.read(&source, &layout)?, &source, &layout, point)
                .map_err(|e| e.in_file(dump))?;
            let key = match tensor.step {
                None => place.key(),
                Some(step) => format!("step_{step}/{}", crate::trace_file::step_key(place)),
            };
            if let Some(scale) = &tensor.scale {
                let value = scale_of(scale, layer, file.first_layer, &mut arrays)?;
                let known = format!("scale/{}", place.key());
                match tensor.step {
                    None | Some(0) => {
                        put(known, &source, Array::scalar(value)).map_err(in_mapping)?
                    }
                    Some(_) => {}
                }
            }
            put(key, &source, array).map_err(in_mapping)?;
        }
    }
    if made.is_empty() {
        return Err(SimError::file(mapping, "tensor", "one at least", "none"));
    }
    trace_of(&made, dump)
}

/// The trace that these arrays are, by the one reader of traces.
fn trace_of(arrays: &BTreeMap<String, Array>, dump: &Path) -> Result<TraceFile> {
    let folder = tempfile::tempdir().map_err(|e| SimError::io(dump, e))?;
    let path = folder.path().join("mapped.npz");
    let mut npz = NpzWriter::create(&path, Compression::Stored)?;
    for (name, array) in arrays {
        npz.add(name, array)?;
    }
    npz.finish()?;
    TraceFile::read(&path).map_err(|e| match e {
        SimError::File {
            item,
            expected,
            found,
            ..
        } => SimError::file(dump, item, expected, found),
        other => other,
    })
}

/// Every block that a tensor's source names, and its name in the dump.
fn sources(
    tensor: &TensorEntry,
    point: TracePoint,
    first: usize,
    arrays: &Dump,
) -> Result<Vec<(Option<usize>, String)>> {
    let missing = || {
        let near = arrays.near(&tensor.source);
        SimError::value(
            &tensor.source,
            "an array or file of the dump",
            format_args!("none; near it: {near}"),
        )
    };
    let wild = tensor.source.split_once("{layer}");
    match (wild, tensor.layer, point.in_layer()) {
        (Some(_), Some(layer), _) => Err(SimError::value(
            &tensor.source,
            "{layer} in the source or a layer beside it",
            format_args!("both, layer {layer}"),
        )),
        (None, None, true) => Err(SimError::value(
            &tensor.source,
            "a layer, or {layer} in the source",
            "neither",
        )),
        (None, layer, in_layer) => match arrays.contains(&tensor.source) {
            true => Ok(vec![(layer.filter(|_| in_layer), tensor.source.clone())]),
            false => Err(missing()),
        },
        (Some((head, tail)), None, _) => {
            let found: Vec<(Option<usize>, String)> = (arrays.names())
                .filter_map(|name| {
                    let number = name.strip_prefix(head)?.strip_suffix(tail)?;
                    let layer = number.parse::<usize>().ok()?.checked_sub(first)?;
                    Some((Some(layer), name.to_owned()))
                })
                .collect();
            match found.is_empty() {
                true => Err(missing()),
                false => Ok(found),
            }
        }
    }
}

fn scale_of(scale: &Scale, layer: Option<usize>, first: usize, arrays: &mut Dump) -> Result<f32> {
    let source = match scale {
        Scale::Number(value) => return Ok(*value),
        Scale::Source(source) => source,
    };
    // The number as the dump writes it, with zeros before it or without.
    let number = layer.map_or(0, |layer| layer + first);
    let names = [
        number.to_string(),
        format!("{number:02}"),
        format!("{number:03}"),
    ];
    let name = names.iter().map(|number| source.replace("{layer}", number));
    let name = name
        .into_iter()
        .find(|name| arrays.contains(name))
        .ok_or_else(|| {
            SimError::file(
                arrays.path(),
                source,
                "an array that holds one scale",
                "no such array",
            )
        })?;
    let array = arrays.read(&name, &DumpedLayout::default())?;
    let value = reals(&array)
        .filter(|values| values.len() == 1)
        .map(|values| values[0]);
    value
        .map(|v| v as f32)
        .ok_or_else(|| SimError::file(arrays.path(), name, "one real number", array.describe()))
}

fn tokens_of(tokens: &Tokens, arrays: &mut Dump) -> Result<Array> {
    match (&tokens.source, &tokens.ids) {
        (None, Some(ids)) => {
            let length = ids.first().map_or(0, Vec::len);
            if length == 0 || ids.iter().any(|row| row.len() != length) {
                return Err(SimError::value(
                    "tokens: ids",
                    "rows of one length",
                    "others",
                ));
            }
            let flat = ids.iter().flatten().map(|id| i64::from(*id)).collect();
            let array = ArrayD::from_shape_vec(IxDyn(&[ids.len(), length]), flat);
            Ok(Array::I64(array.expect("one id an element")))
        }
        (Some(source), None) => {
            if !arrays.contains(source) {
                let near = arrays.near(source);
                return Err(SimError::value(
                    source,
                    "an array or file of the dump",
                    format_args!("none; near it: {near}"),
                ));
            }
            let layout = DumpedLayout {
                dtype: tokens.dtype,
                shape: tokens.shape.clone(),
                ..DumpedLayout::default()
            };
            let array = arrays.read(source, &layout)?;
            // Ids may lie in a float type, as in a dump of one type.
            let ids = match array.to_i64() {
                Some(ids) => Some(ids),
                None => reals(&array).and_then(|values| {
                    let whole = values
                        .iter()
                        .all(|v| v.fract() == 0.0 && (0.0..4e9).contains(v));
                    let ids = values.iter().map(|v| *v as i64).collect();
                    let shape = IxDyn(array.shape());
                    whole.then(|| ArrayD::from_shape_vec(shape, ids).expect("one id an element"))
                }),
            };
            ids.map(Array::I64)
                .ok_or_else(|| SimError::value(source, "token ids", array.describe()))
        }
        _ => Err(SimError::value(
            "tokens",
            "a source or ids",
            "both or neither",
        )),
    }
}

/// The values of an array of reals or integers, in f64.
fn reals(array: &Array) -> Option<Vec<f64>> {
    match array {
        Array::F16(a) => Some(a.iter().map(|v| f64::from(*v)).collect()),
        Array::F32(a) => Some(a.iter().map(|v| f64::from(*v)).collect()),
        Array::F64(a) => Some(a.iter().copied().collect()),
        other => other
            .integers()
            .map(|values| values.map(|v| v as f64).collect()),
    }
}

/// An array with its axes in the order of traces and the type of its tensor.
fn lay(array: Array, source: &str, layout: &DumpedLayout, point: TracePoint) -> Result<Array> {
    let array = match layout.dtype {
        Some(Dtype::I8) => exactly(&array, source, "int8", |v| (v as i8, f64::from(v as i8)))?,
        Some(Dtype::F16) => exactly(&array, source, "float16", |v| {
            (f16::from_f64(v), f64::from(f16::from_f64(v)))
        })?,
        Some(Dtype::F32) => exactly(&array, source, "float32", |v| {
            (v as f32, f64::from(v as f32))
        })?,
        Some(other) => {
            return Err(SimError::value(
                source,
                "dtype int8, float16 or float32",
                format_args!("{other:?}"),
            ));
        }
        None => match array {
            // No tensor is wider.
            Array::F64(_) => exactly(&array, source, "float32", |v| {
                (v as f32, f64::from(v as f32))
            })?,
            other => other,
        },
    };
    let axes = axes(layout, array.shape().len(), source, point)?;
    Ok(match array {
        Array::I8(a) => Array::I8(turned(a, &axes)),
        Array::F16(a) => Array::F16(turned(a, &axes)),
        Array::F32(a) => Array::F32(turned(a, &axes)),
        other => {
            let expected = "int8, float16 or float32, or a dtype that it holds";
            return Err(SimError::value(source, expected, other.describe()));
        }
    })
}

/// Which axis comes first, second, third in a trace.
fn axes(
    layout: &DumpedLayout,
    count: usize,
    source: &str,
    point: TracePoint,
) -> Result<Vec<usize>> {
    let order = if point.is_state() { "benk" } else { "bld" };
    let mut axes: Vec<usize> = match &layout.letters {
        None => (0..count).collect(),
        Some(layout) => {
            let mut letters: Vec<(usize, usize)> = Vec::new();
            for (at, letter) in layout.chars().enumerate() {
                let rank = order.find(letter);
                match rank.filter(|rank| letters.iter().all(|(other, _)| other != rank)) {
                    Some(rank) => letters.push((rank, at)),
                    None => {
                        let expected =
                            format_args!("the letters of {order}, each once").to_string();
                        return Err(SimError::value(
                            format_args!("{source}: layout"),
                            expected,
                            layout,
                        ));
                    }
                }
            }
            if letters.len() != count {
                let expected = format_args!("a letter for each of {count} axes").to_string();
                return Err(SimError::value(
                    format_args!("{source}: layout"),
                    expected,
                    layout,
                ));
            }
            letters.sort_unstable();
            letters.into_iter().map(|(_, at)| at).collect()
        }
    };
    if layout.transpose {
        if count < 2 {
            return Err(SimError::value(
                format_args!("{source}: transpose"),
                "two axes at least",
                count,
            ));
        }
        axes.swap(count - 2, count - 1);
    }
    Ok(axes)
}

fn turned<T: Element>(array: ArrayD<T>, axes: &[usize]) -> ArrayD<T> {
    array
        .permuted_axes(IxDyn(axes))
        .as_standard_layout()
        .into_owned()
}

/// The values in another type, if it holds every one of them.
fn exactly<T: Element>(
    array: &Array,
    source: &str,
    what: &str,
    to: impl Fn(f64) -> (T, f64),
) -> Result<Array> {
    let values =
        reals(array).ok_or_else(|| SimError::value(source, "numbers", array.describe()))?;
    let mut out = Vec::with_capacity(values.len());
    for (at, v) in values.iter().enumerate() {
        let (typed, back) = to(*v);
        if back != *v && !(back.is_nan() && v.is_nan()) {
            return Err(SimError::value(
                format_args!("{source}: element {at}"),
                format_args!("a value of {what}"),
                v,
            ));
        }
        out.push(typed);
    }
    let array = ArrayD::from_shape_vec(IxDyn(array.shape()), out);
    Ok(T::wrap(array.expect("one value an element")))
}
