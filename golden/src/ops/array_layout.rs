//! How else the arrays of a case may lie: with other axes, with or without an axis of one, in another type. A case
//! that is refused as it lies, or that mismatches, is tried so, and the way in which it fits is told in numpy's words.

use crate::npz::{Array, Element, with_array};
use half::f16;
use ndarray::{ArrayD, Axis};
use std::collections::BTreeMap;

/// Ways told of one case.
const TOLD: usize = 3;

/// Another way to read an array.
#[derive(Clone, Debug)]
enum ArrayLayout {
    Permuted(Vec<usize>),
    Without(usize),
    WithOne,
    Int8,
    BitsOfInt8,
    F16,
    F32,
}

impl ArrayLayout {
    /// Every way in which an array of three axes at most may layout.
    fn all() -> Vec<Self> {
        let orders: [&[usize]; 6] = [
            &[1, 0],
            &[0, 2, 1],
            &[1, 0, 2],
            &[1, 2, 0],
            &[2, 0, 1],
            &[2, 1, 0],
        ];
        let orders = orders
            .iter()
            .map(|order| ArrayLayout::Permuted(order.to_vec()));
        let axes = (0..4).map(ArrayLayout::Without);
        let types = [
            ArrayLayout::Int8,
            ArrayLayout::BitsOfInt8,
            ArrayLayout::F16,
            ArrayLayout::F32,
        ];
        orders
            .chain(axes)
            .chain([ArrayLayout::WithOne])
            .chain(types)
            .collect()
    }

    /// What numpy calls it.
    fn words(&self, key: &str) -> String {
        match self {
            ArrayLayout::Permuted(order) => format!("{key}.transpose{}", tuple(order)),
            ArrayLayout::Without(axis) => format!("{key}.squeeze({axis})"),
            ArrayLayout::WithOne => format!("{key}[None]"),
            ArrayLayout::Int8 => format!("{key}.astype(np.int8)"),
            ArrayLayout::BitsOfInt8 => format!("{key}.view(np.int8)"),
            ArrayLayout::F16 => format!("{key}.astype(np.float16)"),
            ArrayLayout::F32 => format!("{key}.astype(np.float32)"),
        }
    }

    /// The array read so, if it can be without losing anything.
    fn of(&self, array: &Array) -> Option<Array> {
        match self {
            ArrayLayout::Permuted(_) | ArrayLayout::Without(_) | ArrayLayout::WithOne => {
                with_array!(array, typed => self.laid(typed))
            }
            ArrayLayout::BitsOfInt8 => match array {
                Array::U8(a) => Some(Array::I8(a.mapv(|v| v as i8))),
                _ => None,
            },
            ArrayLayout::Int8 | ArrayLayout::F16 | ArrayLayout::F32 => {
                let reals = match array {
                    Array::F16(a) => a.mapv(f64::from),
                    Array::F32(a) => a.mapv(f64::from),
                    Array::F64(a) => a.clone(),
                    // Whole numbers of more than 53 bits are no codes.
                    integers => integers.to_i64()?.mapv(|v| v as f64),
                };
                let kept = |again: &ArrayD<f64>| *again == reals;
                let cast = match self {
                    ArrayLayout::Int8 => Array::I8(reals.mapv(|v| v as i8)),
                    ArrayLayout::F16 => Array::F16(reals.mapv(f16::from_f64)),
                    _ => Array::F32(reals.mapv(|v| v as f32)),
                };
                let again = match &cast {
                    Array::I8(a) => a.mapv(f64::from),
                    Array::F16(a) => a.mapv(f64::from),
                    Array::F32(a) => a.mapv(f64::from),
                    _ => return None,
                };
                (cast.dtype() != array.dtype() && kept(&again)).then_some(cast)
            }
        }
    }

    fn laid<T: Element>(&self, array: &ArrayD<T>) -> Option<Array> {
        let laid = match self {
            ArrayLayout::Permuted(order) if order.len() == array.ndim() => {
                array.clone().permuted_axes(order.as_slice())
            }
            ArrayLayout::Without(axis)
                if array.ndim() > 1 && array.shape().get(*axis) == Some(&1) =>
            {
                array.clone().index_axis_move(Axis(*axis), 0)
            }
            ArrayLayout::WithOne => array.clone().insert_axis(Axis(0)),
            _ => return None,
        };
        Some(T::wrap(laid.as_standard_layout().into_owned()))
    }
}

fn tuple(order: &[usize]) -> String {
    let words: Vec<String> = order.iter().map(ToString::to_string).collect();
    format!("({})", words.join(", "))
}

/// How arrays may be given so that `fits` takes them: one of them read otherwise, all of its shape, or all that can be
/// read so; the fewest first, and a few at most.
pub(crate) fn ways(
    arrays: &BTreeMap<String, Array>,
    fits: impl Fn(&BTreeMap<String, Array>) -> bool,
) -> Vec<String> {
    let mut told = Vec::new();
    let mut tried: Vec<Vec<&str>> = Vec::new();
    for layout in ArrayLayout::all() {
        let able: BTreeMap<&str, Array> = (arrays.iter())
            .filter_map(|(key, array)| Some((key.as_str(), layout.of(array)?)))
            .collect();
        let shape = |key: &&str| arrays[*key].shape();
        tried.clear();
        tried.extend(able.keys().map(|key| vec![*key]));
        for key in able.keys() {
            let alike = able
                .keys()
                .copied()
                .filter(|other| shape(other) == shape(key));
            tried.push(alike.collect());
        }
        tried.push(able.keys().copied().collect());
        tried.sort_by_key(Vec::len);
        tried.dedup();
        let fitting = tried.iter().find(|keys| {
            let mut other = arrays.clone();
            other.extend(
                keys.iter()
                    .map(|key| ((*key).to_owned(), able[key].clone())),
            );
            !keys.is_empty() && fits(&other)
        });
        if let Some(keys) = fitting {
            let words: Vec<String> = keys.iter().map(|key| layout.words(key)).collect();
            told.push((keys.len(), words.join(", ")));
        }
    }
    told.sort_by_key(|(count, _)| *count);
    let fewest = told.first().map(|(count, _)| *count);
    told.retain(|(count, _)| Some(*count) == fewest);
    told.into_iter()
        .map(|(_, words)| words)
        .take(TOLD)
        .collect()
}
