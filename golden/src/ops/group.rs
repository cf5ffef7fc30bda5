//! The arrays of one case, taken out one by one under names of axes that must agree.

use crate::npz::{Array, DType, Element};
use ndarray::{Array1, Dimension};
use scalescope_sim::error::{Result, SimError};
use scalescope_sim::quant::{Multiplier, Scale};
use std::collections::BTreeMap;

/// The arrays of one case.
#[derive(Debug)]
pub struct Group {
    case: String,
    arrays: BTreeMap<String, Array>,
    /// Length of each axis met so far, and which key had it first.
    axes: BTreeMap<&'static str, (usize, String)>,
}

impl Group {
    pub(super) fn new(case: &str) -> Self {
        Self {
            case: case.to_owned(),
            arrays: BTreeMap::new(),
            axes: BTreeMap::from([("one", (1, "the one-row form".to_owned()))]),
        }
    }

    pub(super) fn insert(&mut self, key: &str, array: Array) {
        self.arrays.insert(key.to_owned(), array);
    }

    /// The case's name.
    pub(super) fn name(&self) -> String {
        self.case.clone()
    }

    /// A key as the file has it.
    pub(super) fn key(&self, key: &str) -> String {
        match self.case.as_str() {
            "" => key.to_owned(),
            case => format!("{case}/{key}"),
        }
    }

    /// What was not taken.
    pub(super) fn leftover(self) -> Vec<String> {
        self.arrays.keys().map(|key| self.key(key)).collect()
    }

    pub(super) fn has(&self, key: &str) -> bool {
        self.arrays.contains_key(key)
    }

    fn take(&mut self, key: &str) -> Result<Array> {
        self.arrays
            .remove(key)
            .ok_or_else(|| SimError::value(self.key(key), "an array", "no such key"))
    }

    /// An array with these axes. Axes of one name have one length throughout the case.
    pub(super) fn array<T: Element, D: Dimension>(
        &mut self,
        key: &str,
        axes: &[&'static str],
    ) -> Result<ndarray::Array<T, D>> {
        let array = self.take(key)?;
        let lengths = |group: &Self| {
            let words = axes.iter().map(|axis| match group.axes.get(axis) {
                Some((length, first)) => format!("{axis} = {length} as in {first}"),
                None => (*axis).to_owned(),
            });
            format!(
                "{} [{}]",
                T::DTYPE.name(),
                words.collect::<Vec<_>>().join(", ")
            )
        };
        let shape = array.shape().to_vec();
        let fits = array.dtype() == T::DTYPE
            && shape.len() == axes.len()
            && axes.iter().zip(&shape).all(|(axis, length)| {
                *length > 0 && self.axes.get(axis).is_none_or(|(known, _)| known == length)
            });
        if !fits {
            let found = array.describe();
            return Err(SimError::value(self.key(key), lengths(self), found));
        }
        for (axis, length) in axes.iter().zip(shape) {
            self.axes
                .entry(axis)
                .or_insert_with(|| (length, key.to_owned()));
        }
        let typed = T::unwrap(array).expect("the type was checked");
        Ok(typed.into_dimensionality().expect("the axes were counted"))
    }

    /// The same, if the case has it.
    pub(super) fn optional<T: Element, D: Dimension>(
        &mut self,
        key: &str,
        axes: &[&'static str],
    ) -> Result<Option<ndarray::Array<T, D>>> {
        self.has(key).then(|| self.array(key, axes)).transpose()
    }

    /// How many axes an array has, if the case has it.
    pub(super) fn axes_of(&self, key: &str) -> Option<usize> {
        self.arrays.get(key).map(|array| array.shape().len())
    }

    /// Whether an array is of binary16.
    pub(super) fn is_f16(&self, key: &str) -> bool {
        (self.arrays.get(key)).is_some_and(|array| array.dtype() == DType::F16)
    }

    /// Says that an axis has this length because of what `key` has.
    pub(super) fn expect_axis(
        &mut self,
        axis: &'static str,
        length: usize,
        key: &str,
    ) -> Result<()> {
        let (known, first) = (self.axes.entry(axis)).or_insert_with(|| (length, key.to_owned()));
        if *known == length {
            return Ok(());
        }
        let expected = format!("{axis} = {known} as in {first}");
        Err(SimError::value(self.key(key), expected, length))
    }

    /// Takes an array that has to be empty if the case has it.
    pub(super) fn take_empty(&mut self, key: &str) -> Result<()> {
        match self.arrays.remove(key) {
            Some(array) if !array.shape().contains(&0) => {
                let expected = "an empty array: rows of 128 codes have no groups";
                Err(SimError::value(self.key(key), expected, array.describe()))
            }
            _ => Ok(()),
        }
    }

    /// An error about an array's content, under the array's name.
    pub(super) fn of_key(&self, key: &str, error: SimError) -> SimError {
        match error {
            SimError::Value {
                expected, found, ..
            } => SimError::value(self.key(key), expected, found),
            other => other,
        }
    }

    /// Integers of any type along one axis.
    pub(super) fn integers(&mut self, key: &str, axis: &'static str) -> Result<Array1<i64>> {
        let array = self.take(key)?;
        match array.to_i64() {
            Some(wide) => {
                self.insert(key, Array::I64(wide));
                self.array(key, &[axis])
            }
            None => Err(SimError::value(self.key(key), "integers", array.describe())),
        }
    }

    /// One f32, as a scalar or an array of one. An f64 will do if f32 can hold it.
    pub(super) fn number(&mut self, key: &str) -> Result<f32> {
        let array = self.take(key)?;
        let narrowed = match &array {
            Array::F32(a) if a.len() == 1 => a.first().copied(),
            Array::F64(a) if a.len() == 1 => a
                .first()
                .map(|v| *v as f32)
                .filter(|v| Some(&f64::from(*v)) == a.first()),
            _ => None,
        };
        narrowed.ok_or_else(|| SimError::value(self.key(key), "one f32", array.describe()))
    }

    /// A scale.
    pub(super) fn scale(&mut self, key: &str) -> Result<Scale> {
        let value = self.number(key)?;
        Scale::new(value)
            .map_err(|_| SimError::value(self.key(key), "a positive, finite, normal f32", value))
    }

    /// A multiplier.
    pub(super) fn multiplier(&mut self, key: &str) -> Result<Multiplier> {
        let value = self.number(key)?;
        Multiplier::new(value)
            .map_err(|_| SimError::value(self.key(key), "a positive, finite f32", value))
    }

    /// One integer of any type.
    pub(super) fn integer(&mut self, key: &str) -> Result<i64> {
        let array = self.take(key)?;
        let wide = array.to_i64().filter(|a| a.len() == 1);
        wide.and_then(|a| a.first().copied())
            .ok_or_else(|| SimError::value(self.key(key), "one integer", array.describe()))
    }
}
