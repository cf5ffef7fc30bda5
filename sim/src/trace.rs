//! Trace points: the named tensors of the datapath, and who looks at them.
//!
//! The engine shows every value it computes to a [`Probe`]. A probe may record it, compare it, or
//! put another in its place; what follows then uses that one. Recording, golden checks with local
//! inputs, and fault studies are all probes on the one engine.
//!
//! `docs/trace-points.md` lists names, shapes and units, checked by a test.

use crate::arith::accumulate::Accumulated;
use crate::arith::binary16::{from_f16, narrow, to_f16, widen};
use crate::arith::function::{Function, Inputs};
use crate::arith::saturate::Status;
use crate::dataflow::Step;
pub use crate::dataflow::TracePoint;
use crate::error::{Result, SimError};
use crate::quant::{QTensor, Scale, dequantize_slice};
use half::f16;
use ndarray::{Array2, s};
use std::collections::BTreeMap;
use std::fmt;

/// Where a tensor was made: a point of a block, or of the end of the model.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Place {
    /// The block, `None` for points after the last one. (`None` sorts first; tables that follow the
    /// data put it last.)
    pub layer: Option<usize>,
    /// The point.
    pub point: TracePoint,
}

impl Place {
    /// A point of block `layer`.
    pub fn layer(layer: usize, point: TracePoint) -> Self {
        Self {
            layer: Some(layer),
            point,
        }
    }

    /// A point after the last block.
    pub fn end(point: TracePoint) -> Self {
        Self { layer: None, point }
    }

    /// The key in a trace file: `layer_07/conv_out`, `final/logits`.
    pub fn key(self) -> String {
        match self.layer {
            Some(layer) => format!("layer_{layer:02}/{}", self.point.name()),
            None => format!("final/{}", self.point.name()),
        }
    }

    /// The place of a key; `None` if it is not one.
    pub fn from_key(key: &str) -> Option<Self> {
        let (head, name) = key.split_once('/')?;
        let point = TracePoint::from_name(name)?;
        if head == "final" {
            return (!point.in_layer()).then(|| Self::end(point));
        }
        let layer = head.strip_prefix("layer_")?.parse().ok()?;
        (point.in_layer()).then(|| Self::layer(layer, point))
    }
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.key())
    }
}

/// A tensor as the datapath holds it; two-dimensional, one sequence.
#[derive(Clone, Debug, PartialEq)]
pub enum Tensor {
    /// INT8 codes and the scale of one step.
    I8(QTensor),
    /// INT8 codes whose scale varies (see [`TracePoint::scales`]).
    Codes(Array2<i8>),
    /// Binary16.
    F16(Array2<f16>),
    /// FP32.
    F32(Array2<f32>),
}

impl Tensor {
    /// Rows and columns.
    pub fn dim(&self) -> (usize, usize) {
        match self {
            Tensor::I8(t) => t.codes.dim(),
            Tensor::Codes(t) => t.dim(),
            Tensor::F16(t) => t.dim(),
            Tensor::F32(t) => t.dim(),
        }
    }

    /// The type's name as files have it.
    pub fn dtype(&self) -> &'static str {
        match self {
            Tensor::I8(_) | Tensor::Codes(_) => "i8",
            Tensor::F16(_) => "f16",
            Tensor::F32(_) => "f32",
        }
    }

    /// The codes of an INT8 tensor of one scale.
    pub fn codes(&self) -> Option<&Array2<i8>> {
        match self {
            Tensor::I8(t) => Some(&t.codes),
            _ => None,
        }
    }

    /// The one scale of an INT8 tensor.
    pub fn scale(&self) -> Option<Scale> {
        match self {
            Tensor::I8(t) => Some(t.scale),
            _ => None,
        }
    }

    /// Binary16 of real values, nearest even.
    pub fn f16(values: &Array2<f32>) -> Self {
        let mut rounded = Array2::zeros(values.dim());
        let to = rounded.as_slice_mut().expect("fresh arrays are row-major");
        match values.as_slice() {
            Some(values) => narrow(values, to),
            None => return Tensor::F16(values.mapv(to_f16)),
        }
        Tensor::F16(rounded)
    }

    /// Rows `first..`.
    pub fn rows_from(&self, first: usize) -> Tensor {
        let cut = s![first.., ..];
        match self {
            Tensor::I8(q) => Tensor::I8(QTensor {
                codes: q.codes.slice(cut).to_owned(),
                scale: q.scale,
            }),
            Tensor::Codes(t) => Tensor::Codes(t.slice(cut).to_owned()),
            Tensor::F16(t) => Tensor::F16(t.slice(cut).to_owned()),
            Tensor::F32(t) => Tensor::F32(t.slice(cut).to_owned()),
        }
    }

    /// [`Tensor::to_real`] of one row.
    pub fn real_row(&self, row: usize, real: &mut [f32]) {
        fn of<T>(values: &Array2<T>, row: usize) -> &[T] {
            let columns = values.ncols();
            &values.as_slice().expect("tensors are row-major")[row * columns..][..columns]
        }
        match self {
            Tensor::I8(t) => dequantize_slice(of(&t.codes, row), t.scale, real),
            Tensor::Codes(t) => {
                for (real, q) in real.iter_mut().zip(of(t, row)) {
                    *real = f32::from(*q);
                }
            }
            Tensor::F16(t) => widen(of(t, row), real),
            Tensor::F32(t) => real.copy_from_slice(of(t, row)),
        }
    }

    /// Real values; codes with a varying scale stay in units of it.
    pub fn to_real(&self) -> Array2<f32> {
        match self {
            Tensor::I8(t) => t.dequantize(),
            Tensor::Codes(t) => t.mapv(f32::from),
            Tensor::F16(t) => {
                let mut real = Array2::zeros(t.dim());
                let to = real.as_slice_mut().expect("fresh arrays are row-major");
                match t.as_slice() {
                    Some(values) => widen(values, to),
                    None => return t.mapv(from_f16),
                }
                real
            }
            Tensor::F32(t) => t.clone(),
        }
    }
}

/// Somebody who looks at the datapath while it runs (on a thread of the pool, hence `Send`).
pub trait Probe: Send {
    /// Whether the probe wants to see a place; nothing is copied for those it does not.
    fn wants(&self, place: Place) -> bool;

    /// Shows the value just made. The probe may replace it by one of the same type and shape.
    fn visit(&mut self, place: Place, value: &mut Tensor) -> Result<()>;

    /// Whether the probe listens to [`Probe::count`]; a device counts only for those who do.
    fn counts(&self) -> bool {
        true
    }

    /// Whether the probe neither sees nor counts anything; a device then runs recorded work.
    fn is_blind(&self) -> bool {
        false
    }

    /// Tells how many values a quantizer at this place handled and how many did not fit.
    fn count(&mut self, _place: Place, _status: Status) {}

    /// Tells what the accumulators of the step that makes this place came to.
    fn accumulate(&mut self, _place: Place, _seen: Accumulated) {}

    /// Whether every accumulator is to be watched term by term, also those that provably fit: slow.
    fn watches(&self) -> bool {
        false
    }

    /// Tells what the inputs of a function's unit came to in the step that makes this place.
    fn function(&mut self, _place: Place, _function: Function, _seen: Inputs) {}

    /// Tells that a step begins (and the one before it is over).
    fn enter(&mut self, _step: Step) {}
}

/// Looks at nothing.
#[derive(Clone, Copy, Debug, Default)]
pub struct Blind;

impl Probe for Blind {
    fn is_blind(&self) -> bool {
        true
    }
    fn wants(&self, _: Place) -> bool {
        false
    }
    fn counts(&self) -> bool {
        false
    }
    fn visit(&mut self, _: Place, _: &mut Tensor) -> Result<()> {
        Ok(())
    }
}

/// Which places a recording keeps.
#[derive(Clone, Debug, Default)]
pub struct Selection {
    /// Blocks to keep; `None` keeps every one.
    pub layers: Option<Vec<usize>>,
    /// Points to keep; `None` keeps every one.
    pub points: Option<Vec<TracePoint>>,
}

impl Selection {
    /// Whether a place is kept. Points after the last block are kept unless points exclude them.
    pub fn keeps(&self, place: Place) -> bool {
        let layer = match (&self.layers, place.layer) {
            (Some(layers), Some(layer)) => layers.contains(&layer),
            _ => true,
        };
        let point = self
            .points
            .as_ref()
            .is_none_or(|p| p.contains(&place.point));
        layer && point
    }
}

/// Keeps the selected tensors, and the counters of every quantizer.
#[derive(Clone, Debug, Default)]
pub struct Recorder {
    selection: Selection,
    /// What was seen, in the order of the datapath within a block.
    pub tensors: BTreeMap<Place, Tensor>,
    /// Counters of every quantizer that ran.
    pub counts: BTreeMap<Place, Status>,
}

impl Recorder {
    /// Records the places of a selection.
    pub fn new(selection: Selection) -> Self {
        Self {
            selection,
            ..Self::default()
        }
    }
}

impl Probe for Recorder {
    fn wants(&self, place: Place) -> bool {
        self.selection.keeps(place)
    }

    fn visit(&mut self, place: Place, value: &mut Tensor) -> Result<()> {
        self.tensors.insert(place, value.clone());
        Ok(())
    }

    fn count(&mut self, place: Place, status: Status) {
        *self.counts.entry(place).or_default() += status;
    }
}

/// Shows `value` to the probe if it wants the place, and checks what it put back.
pub(crate) fn show(probe: &mut dyn Probe, place: Place, mut value: Tensor) -> Result<Tensor> {
    if !probe.wants(place) {
        return Ok(value);
    }
    let (dtype, dim) = (value.dtype(), value.dim());
    probe.visit(place, &mut value)?;
    if value.dtype() != dtype || value.dim() != dim {
        return Err(SimError::value(
            place,
            format_args!("{dtype} {dim:?}"),
            format_args!("{} {:?}", value.dtype(), value.dim()),
        ));
    }
    Ok(value)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_unique_and_round_trip() {
        for point in TracePoint::ALL {
            assert_eq!(TracePoint::from_name(point.name()), Some(point));
            let place = if point.in_layer() {
                Place::layer(3, point)
            } else {
                Place::end(point)
            };
            assert_eq!(Place::from_key(&place.key()), Some(place));
        }
        for key in [
            "layer_x/norm_out",
            "final/norm_out",
            "layer_01/logits",
            "tokens",
        ] {
            assert_eq!(Place::from_key(key), None, "{key}");
        }
    }
}
