//! From [`TraceFile`] to `.npz`.

use super::{Meta, Points, TraceFile, check_sequences, in_data_order, step_key};
use crate::npz::{Array, Compression, Element, NpzWriter};
use crate::value::Value;
use ndarray::{Array2, ArrayD, IxDyn};
use scalescope_sim::error::{Result, SimError};
use scalescope_sim::quant::Scale;
use scalescope_sim::trace::Place;
use std::collections::BTreeMap;
use std::path::Path;

impl TraceFile {
    /// Writes the trace: sequences stacked to `[B, …]`, tokens first, then in the order of the
    /// data. The same trace gives the same bytes. Unknown keys of a file read are not written.
    pub fn write(&self, path: impl AsRef<Path>, compression: Compression) -> Result<()> {
        let path = path.as_ref();
        let mut npz = NpzWriter::create(path, compression)?;
        self.write_to(&mut npz).map_err(|e| e.in_file(path))?;
        npz.finish()
    }

    fn write_to(&self, npz: &mut NpzWriter) -> Result<()> {
        let batch = self.batch();
        if let Some(tokens) = &self.tokens {
            let name = if self.steps.is_empty() {
                "tokens"
            } else {
                "prefill_tokens"
            };
            self::tokens(npz, name, tokens)?;
        }
        if !self.sequences.is_empty() {
            check_sequences(&self.sequences, batch)?;
        }
        for place in self.places() {
            stack(npz, &place.key(), place, &self.sequences)?;
        }
        for step in &self.steps {
            let head = format!("step_{}", step.index);
            check_sequences(&step.sequences, batch)?;
            if !step.tokens.is_empty() {
                let ids = step
                    .tokens
                    .iter()
                    .map(|id| token(*id))
                    .collect::<Result<_>>()?;
                let ids: Vec<i32> = ids;
                let ids = ArrayD::from_shape_vec(IxDyn(&[ids.len()]), ids).expect("one axis");
                npz.add_typed(&format!("{head}/token"), &ids)?;
            }
            for place in step.places() {
                stack(
                    npz,
                    &format!("{head}/{}", step_key(place)),
                    place,
                    &step.sequences,
                )?;
            }
        }
        scales(npz, &self.scales)?;
        self.meta.iter().try_for_each(|meta| self::meta(npz, meta))
    }
}

/// Token ids of prefills, `[B, L]`.
pub(super) fn tokens(npz: &mut NpzWriter, name: &str, tokens: &Array2<u32>) -> Result<()> {
    let ids = tokens.iter().map(|id| token(*id)).collect::<Result<_>>()?;
    let shape = IxDyn(&[tokens.nrows(), tokens.ncols()]);
    let ids = ArrayD::from_shape_vec(shape, ids).expect("one id an element");
    npz.add_typed(name, &ids)
}

/// The step of codes at every place that has one.
pub(super) fn scales(npz: &mut NpzWriter, scales: &BTreeMap<Place, Scale>) -> Result<()> {
    for place in in_data_order(scales.keys().copied()) {
        let scale = Array::scalar(scales[&place].get());
        npz.add(&format!("scale/{place}"), &scale)?;
    }
    Ok(())
}

/// Where the trace comes from, as JSON.
pub(super) fn meta(npz: &mut NpzWriter, meta: &Meta) -> Result<()> {
    let json = serde_json::to_vec(meta)
        .map_err(|e| SimError::value("meta", "values that JSON can hold", e))?;
    let bytes = ArrayD::from_shape_vec(IxDyn(&[json.len()]), json).expect("one axis");
    npz.add_typed("meta", &bytes)
}

fn token(id: u32) -> Result<i32> {
    i32::try_from(id).map_err(|_| SimError::value("tokens", "ids below 2^31", id))
}

/// Writes one place of all sequences, `[B, rows, columns]`.
fn stack(npz: &mut NpzWriter, name: &str, place: Place, sequences: &[Points]) -> Result<()> {
    macro_rules! stack_as {
        ($variant:path) => {{
            let parts = sequences.iter().map(|points| match &points[&place] {
                $variant(array) => array,
                _ => unreachable!("types were checked to agree"),
            });
            npz.add_typed(name, &stacked(parts.collect()))
        }};
    }
    match &sequences[0][&place] {
        Value::I8(_) => stack_as!(Value::I8),
        Value::F16(_) => stack_as!(Value::F16),
        Value::F32(_) => stack_as!(Value::F32),
    }
}

fn stacked<T: Element>(parts: Vec<&Array2<T>>) -> ArrayD<T> {
    let (rows, columns) = parts[0].dim();
    let mut values = Vec::with_capacity(parts.len() * rows * columns);
    for part in &parts {
        values.extend(part.iter().copied());
    }
    ArrayD::from_shape_vec(IxDyn(&[parts.len(), rows, columns]), values)
        .expect("shapes were checked to agree")
}
