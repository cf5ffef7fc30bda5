//! Feeding a run with another's tensors, as it stores them.

use crate::trace_file::counterpart::{Portion, find};
use ndarray::{Array2, Axis, CowArray, Ix2, concatenate, s};
use scalescope_sim::arith::requant::QuantRule;
use scalescope_sim::dataflow::{Block, Columns, Read};
use scalescope_sim::error::{Result, SimError};
use scalescope_sim::quant::QTensor;
use scalescope_sim::trace::{Place, Probe, Tensor, TracePoint};
use std::collections::{BTreeMap, BTreeSet};

/// What a fed run made, and what it was given instead.
pub struct Fed {
    /// The output of every step, from given inputs.
    pub made: BTreeMap<Place, Tensor>,
    /// What went on in its place.
    pub given: BTreeMap<Place, Tensor>,
}

/// Puts tensors of a source in the place of those a run makes, as the run stores them: codes and f16
/// are rounded to the nearest.
pub struct Feeder<'a> {
    source: &'a BTreeMap<Place, Tensor>,
    /// The dataflow that made the source.
    block: &'a Block,
    places: BTreeSet<Place>,
    /// The places that the run makes.
    makes: BTreeSet<Place>,
    fed: Fed,
    /// Points that keep the run's own value.
    own: &'static [TracePoint],
}

impl<'a> Feeder<'a> {
    /// Feeds a run, which makes the places `makes`, every tensor from a source that `block` made.
    pub fn new(
        source: &'a BTreeMap<Place, Tensor>,
        block: &'a Block,
        makes: BTreeSet<Place>,
    ) -> Self {
        Self {
            source,
            block,
            places: source.keys().copied().collect(),
            makes,
            fed: Fed {
                made: BTreeMap::new(),
                given: BTreeMap::new(),
            },
            own: &[],
        }
    }

    /// Leaves some points alone.
    pub fn but(self, own: &'static [TracePoint]) -> Self {
        Self { own, ..self }
    }

    /// What was made and given.
    pub fn finish(self) -> Fed {
        self.fed
    }

    /// The values that a reader of this place gets in the source.
    fn read_at(&self, place: Place) -> Option<Array2<f32>> {
        let at = |point| find(&self.places, Place { point, ..place });
        // Where the source quantizes once more for a reader, and this run does not, the reader finds its
        // values in what it reads instead.
        let again = |point| {
            let place = Place { point, ..place };
            self.places.contains(&place) && !self.makes.contains(&place)
        };
        let real = |take| real_of(self.source, take);
        // The quantizer that may come once more behind a tensor.
        let requantized = |site: TracePoint| {
            let reads = |point| self.block.row(point).into_iter().flat_map(|row| &row.reads);
            let is_behind = |point: &TracePoint| {
                let read = |read: &Read| read.point().map(|point| point.site(read.columns));
                reads(*point).any(|input| read(input) == Some(site))
            };
            let mut behind = [TracePoint::ConvIn, TracePoint::XProjIn].into_iter();
            let found = behind.find(|point| is_behind(point) && again(*point));
            found.unwrap_or(site)
        };
        if place.point == TracePoint::XProjOut && again(TracePoint::SsmBc) {
            // dt as it is, B‖C from their own quantizer.
            let (all, bc) = (real(at(place.point)?), real(at(TracePoint::SsmBc)?));
            let dt = all.slice(s![.., ..all.ncols() - bc.ncols()]);
            let both = concatenate(Axis(1), &[dt, bc.view()]).expect("both have L rows");
            return Some(both.as_standard_layout().into_owned());
        }
        if place.point != TracePoint::InProjOut {
            return Some(real(at(requantized(place.point.site(Columns::All)))?));
        }
        let x = requantized(TracePoint::InProjX);
        if x == TracePoint::InProjX && !again(x) {
            return Some(real(at(place.point)?));
        }
        let (x, z) = (real(at(x)?), real(at(TracePoint::InProjZ)?));
        let both = concatenate(Axis(1), &[x.view(), z.view()]).expect("both have L rows");
        Some(both.as_standard_layout().into_owned())
    }
}

impl Probe for Feeder<'_> {
    fn wants(&self, _: Place) -> bool {
        true
    }

    fn visit(&mut self, place: Place, value: &mut Tensor) -> Result<()> {
        self.fed.made.insert(place, value.clone());
        // Codes of a dynamic quantizer follow from its input, which was fed.
        let follows = matches!(value, Tensor::Codes(_)) || place.point.is_scale();
        if !follows && !self.own.contains(&place.point) {
            let Some(real) = self.read_at(place) else {
                return Err(SimError::value(place, "a tensor to feed", "none"));
            };
            let real = as_wide(&real, place.point, value.dim().1);
            if real.dim() != value.dim() {
                return Err(SimError::value(
                    place,
                    format_args!("{:?}", value.dim()),
                    format_args!("{:?}", real.dim()),
                ));
            }
            *value = stored_as(value, real.into_owned());
        }
        self.fed.given.insert(place, value.clone());
        Ok(())
    }
}

/// What stands for a tensor of so many columns: where dt‖B‖C stands for B‖C, its last columns.
pub(super) fn as_wide(
    values: &Array2<f32>,
    point: TracePoint,
    columns: usize,
) -> CowArray<'_, f32, Ix2> {
    if point != TracePoint::SsmBc {
        return values.into();
    }
    let from = values.ncols().saturating_sub(columns);
    let last = values.slice(s![.., from..]);
    last.as_standard_layout().into_owned().into()
}

/// Real values as a tensor of another's type and grid.
fn stored_as(like: &Tensor, real: Array2<f32>) -> Tensor {
    match like {
        Tensor::I8(q) => {
            let (q, _) = QTensor::quantize(&real, q.scale, QuantRule::NEAREST_EVEN);
            Tensor::I8(q)
        }
        Tensor::F16(_) => Tensor::f16(&real),
        Tensor::F32(_) | Tensor::Codes(_) => Tensor::F32(real),
    }
}

/// The real values of a tensor, or of half its columns; of dynamic codes with their scales.
pub fn real_of(tensors: &BTreeMap<Place, Tensor>, take: Portion) -> Array2<f32> {
    let place = take.place();
    let real = match &tensors[&place] {
        Tensor::Codes(codes) => {
            let point = place.point.scales().expect("codes of a dynamic quantizer");
            let scales = tensors[&Place { point, ..place }].to_real();
            let rows = scales.nrows();
            Array2::from_shape_fn(codes.dim(), |(t, c)| {
                scales[(if rows == 1 { 0 } else { t }, 0)] * f32::from(codes[(t, c)])
            })
        }
        other => other.to_real(),
    };
    take.columns_of(&real)
}
