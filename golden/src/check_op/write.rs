//! Writes what should come out of an operation, from its inputs alone.

use super::{Inputs, Named, Vectors};
use crate::npz::{Compression, NpzReader, NpzWriter};
use crate::ops::Op;
use scalescope_sim::error::{Result, SimError};
use scalescope_sim::profile::Arithmetic;
use std::collections::BTreeMap;
use std::path::Path;

/// Writes the arrays of a file of vectors again, with every output that there is of their inputs; outputs that
/// the file has are replaced. Returns the outputs by their keys.
///
/// # Errors
///
/// Inputs that are missing, or that the datapath cannot run; keys that the operation does not have.
pub fn write_expected(op: Op, from: &Path, to: &Path, rules: &Arithmetic) -> Result<Vec<Named>> {
    let in_file = |e: SimError| e.in_file(from);
    let mut npz = NpzReader::open(from)?;
    let vectors = Vectors::of_op(op, &mut npz, false).map_err(in_file)?;
    if let Some(key) = vectors.unknown.first() {
        let expected = format!("keys of {}", op.name());
        return Err(SimError::file(from, key, expected, "one it does not have"));
    }
    let mut outputs: BTreeMap<String, _> = BTreeMap::new();
    for case in &vectors.cases {
        if matches!(case.inputs, Inputs::HadamardMatrix(_)) {
            continue;
        }
        for (key, array) in case.outputs(rules).map_err(in_file)? {
            outputs.insert(case.key(&key), array);
        }
    }
    let mut file = NpzWriter::create(to, Compression::Deflate)?;
    let names: Vec<String> = npz.names().map(str::to_owned).collect();
    for name in names.iter().filter(|name| !outputs.contains_key(*name)) {
        file.add(name, &npz.read(name)?)?;
    }
    for (name, array) in &outputs {
        file.add(name, array)?;
    }
    file.finish()?;
    Ok(outputs.into_iter().collect())
}
