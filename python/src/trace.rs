//! Traces as NumPy arrays, and back to files.

use crate::arrays::{for_file, stacked, whole};
use crate::work;
use pyo3::prelude::*;
use pyo3::types::PyDict;
use scalescope_golden::mapping;
use scalescope_golden::npz::{Compression, write_npz as write};
use scalescope_golden::trace_file::{Points, TraceFile, in_data_order};
use scalescope_sim::error::Result;
use std::path::PathBuf;

/// Arrays by name in the order of the data, scales by name, metadata as JSON, keys that were not understood, remarks.
pub type Parts<'py> = (
    Bound<'py, PyDict>,
    Bound<'py, PyDict>,
    Option<String>,
    Vec<String>,
    Vec<String>,
);

/// Gives a trace's arrays to NumPy.
pub fn parts(py: Python<'_>, trace: TraceFile) -> PyResult<Parts<'_>> {
    let arrays = PyDict::new(py);
    let names = match trace.steps.is_empty() {
        true => "tokens",
        false => "prefill_tokens",
    };
    if let Some(tokens) = trace.tokens {
        arrays.set_item(names, whole(py, tokens.mapv(|id| id as i32)))?;
    }
    put(&arrays, trace.sequences, |place| place.key())?;
    for step in trace.steps {
        let head = format!("step_{}", step.index);
        if !step.tokens.is_empty() {
            let ids: Vec<i32> = step.tokens.iter().map(|id| *id as i32).collect();
            let ids = ndarray::Array1::from_vec(ids);
            arrays.set_item(format!("{head}/token"), whole(py, ids))?;
        }
        put(&arrays, step.sequences, |place| match place.layer {
            Some(_) => format!("{head}/{}", place.key()),
            None => format!("{head}/{}", place.point.name()),
        })?;
    }
    let scales = PyDict::new(py);
    for place in in_data_order(trace.scales.keys().copied()) {
        scales.set_item(place.key(), trace.scales[&place].get())?;
    }
    let meta = trace
        .meta
        .as_ref()
        .map(|meta| serde_json::to_string(meta).expect("metadata came from JSON or from names"));
    Ok((arrays, scales, meta, trace.unknown, trace.remarks))
}

fn put(
    arrays: &Bound<'_, PyDict>,
    mut sequences: Vec<Points>,
    name: impl Fn(scalescope_sim::trace::Place) -> String,
) -> PyResult<()> {
    for place in in_data_order(sequences.iter().flat_map(|s| s.keys().copied())) {
        let values = sequences.iter_mut().filter_map(|s| s.remove(&place));
        let values = stacked(arrays.py(), values.collect());
        arrays.set_item(name(place), values)?;
    }
    Ok(())
}

/// Reads a trace: an .npz, a folder of vectors, a file of torch.save, or any dump with a mapping file.
#[pyfunction]
#[pyo3(signature = (path, map = None))]
pub fn read_trace(py: Python<'_>, path: PathBuf, map: Option<PathBuf>) -> PyResult<Parts<'_>> {
    let trace = work::long(py, None, || match map {
        Some(map) => mapping::read(&path, &map),
        None => TraceFile::read(path),
    })?;
    parts(py, trace)
}

/// Writes arrays of any layout in the given order; the file appears when it is whole.
#[pyfunction]
pub fn write_npz(
    py: Python<'_>,
    path: PathBuf,
    arrays: Vec<(String, Bound<'_, PyAny>)>,
    compress: bool,
) -> PyResult<()> {
    let arrays: Vec<_> = (arrays.iter())
        .map(|(name, array)| Ok((name.as_str(), for_file(array)?)))
        .collect::<PyResult<_>>()?;
    let compression = match compress {
        true => Compression::Deflate,
        false => Compression::Stored,
    };
    work::long(py, None, || -> Result<()> {
        write(
            path,
            arrays.iter().map(|(name, array)| (*name, array)),
            compression,
        )
    })
}
