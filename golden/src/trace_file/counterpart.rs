//! Which tensor of one trace stands against which of another. Two modes do not make the same
//! tensors: where one has `conv_out`, the other may have `conv_out_f32`.

use super::{Points, in_data_order};
use crate::value::Value;
use ndarray::{Array2, s};
use scalescope_sim::dataflow::Columns;
use scalescope_sim::quant::Scale;
use scalescope_sim::trace::{Place, TracePoint};
use std::collections::{BTreeMap, BTreeSet};

/// A tensor of a trace, or a part of its columns.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Portion {
    /// All of it.
    Whole(Place),
    /// The left half of the columns (x of x‖z).
    Left(Place),
    /// The right half of the columns (z of x‖z).
    Right(Place),
    /// The last columns, as many as the other side has (B‖C of dt‖B‖C).
    Last(Place),
}

/// A tensor as a comparison needs it.
#[derive(Clone, Debug)]
pub struct Taken {
    /// The elements.
    pub value: Value,
    /// The step of codes, if known.
    pub scale: Option<Scale>,
}

/// Two tensors that stand against each other; `None` where a trace has nothing to show.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Pairing {
    /// What is compared.
    pub place: Place,
    /// The reference's tensor.
    pub expected: Option<Portion>,
    /// The result's tensor.
    pub found: Option<Portion>,
}

impl Portion {
    /// The tensor's place.
    pub fn place(self) -> Place {
        match self {
            Portion::Whole(place)
            | Portion::Left(place)
            | Portion::Right(place)
            | Portion::Last(place) => place,
        }
    }

    /// The columns that are taken, row-major; `other` is how many the tensor has that they stand against.
    pub fn columns_of<T: Copy>(self, values: &Array2<T>, other: usize) -> Array2<T> {
        let columns = values.ncols();
        let (first, last) = match self {
            Portion::Whole(_) => (0, columns),
            Portion::Left(_) => (0, columns / 2),
            Portion::Right(_) => (columns / 2, columns),
            Portion::Last(_) => (columns.saturating_sub(other), columns),
        };
        let cut = values.slice(s![.., first..last]);
        cut.as_standard_layout().into_owned()
    }

    /// The tensor, with all of its columns, out of those of one sequence. Codes whose scale varies come as codes.
    pub fn of(self, mut points: Points, scales: &BTreeMap<Place, Scale>) -> Option<Taken> {
        let place = self.place();
        let value = points.remove(&place)?;
        let scale = scales.get(&place).copied();
        Some(Taken { value, scale })
    }

    /// As [`Portion::of`], but codes of a dynamic quantizer as the real values they stand for.
    pub fn real_of(self, mut points: Points, scales: &BTreeMap<Place, Scale>) -> Option<Taken> {
        let place = self.place();
        let column = place.point.scales();
        let column = column.and_then(|point| points.remove(&Place { point, ..place }));
        let taken = self.of(points, scales)?;
        match (&taken.value, column) {
            (Value::I8(codes), Some(Value::F32(column))) if taken.scale.is_none() => {
                let rows = column.nrows();
                let real = Array2::from_shape_fn(codes.dim(), |(t, c)| {
                    column[(if rows == 1 { 0 } else { t }, 0)] * f32::from(codes[(t, c)])
                });
                let value = Value::F32(real);
                Some(Taken { value, scale: None })
            }
            _ => Some(taken),
        }
    }
}

impl Taken {
    /// What `take` says of its columns, against a tensor of `other` columns.
    pub fn columns(self, take: Portion, other: usize) -> Self {
        let value = match (take, self.value) {
            (Portion::Whole(_), whole) => whole,
            (_, Value::I8(a)) => Value::I8(take.columns_of(&a, other)),
            (_, Value::F16(a)) => Value::F16(take.columns_of(&a, other)),
            (_, Value::F32(a)) => Value::F32(take.columns_of(&a, other)),
        };
        Self { value, ..self }
    }
}

/// Every pair of two traces' places, in the order of the data. Without `stand_ins` only tensors of
/// one name stand against each other.
///
/// | where one has | and the other lacks it | there stands |
/// |---|---|---|
/// | `conv_out`, `conv_out_f32` | | the other of the two |
/// | `x_proj_in` | | `conv_out`, `conv_out_f32` |
/// | `in_proj_x`, `in_proj_z` | | half of `in_proj_out` |
/// | `ssm_bc` | | the last columns of `x_proj_out` |
/// | `conv_in` | | `in_proj_x`, half of `in_proj_out` |
/// | `conv_in_scale` | and `conv_in` | nothing, and nothing is missing |
/// | `norm_out_scale`, `had_out_scale` | | nothing, and nothing is missing: the other's scale is static |
pub fn pairings(
    expected: &BTreeSet<Place>,
    found: &BTreeSet<Place>,
    stand_ins: bool,
) -> Vec<Pairing> {
    let mut places: BTreeSet<Place> = expected.union(found).copied().collect();
    if stand_ins {
        split_in_proj(&mut places, expected, found);
    }
    let mut pairs: Vec<Pairing> = Vec::new();
    for place in in_data_order(places) {
        let find = |side: &BTreeSet<Place>| match stand_ins {
            true => find(side, place),
            false => side.contains(&place).then_some(Portion::Whole(place)),
        };
        let (expected_take, found_take) = (find(expected), find(found));
        let conv_in = Place {
            point: TracePoint::ConvIn,
            ..place
        };
        let lacks = |take: Option<Portion>, side: &BTreeSet<Place>| {
            // Of a tensor other than the conv's input, the other's scale may be a static one.
            let is_conv_in = place.point == TracePoint::ConvInScale;
            take.is_none() && (!is_conv_in || (stand_ins && !side.contains(&conv_in)))
        };
        let idle_scale =
            place.point.is_scale() && (lacks(expected_take, expected) || lacks(found_take, found));
        let known = pairs
            .iter()
            .any(|p| (p.expected, p.found) == (expected_take, found_take));
        if !idle_scale && !known {
            pairs.push(Pairing {
                place,
                expected: expected_take,
                found: found_take,
            });
        }
    }
    pairs
}

/// Where one side has x‖z and the other x and z, halves are compared.
fn split_in_proj(
    places: &mut BTreeSet<Place>,
    expected: &BTreeSet<Place>,
    found: &BTreeSet<Place>,
) {
    let whole: Vec<Place> = (places.iter().copied())
        .filter(|place| place.point == TracePoint::InProjOut)
        .collect();
    for place in whole {
        let halves =
            [TracePoint::InProjX, TracePoint::InProjZ].map(|point| Place { point, ..place });
        let split = [expected, found]
            .iter()
            .any(|side| !side.contains(&place) && halves.iter().any(|half| side.contains(half)));
        if split {
            places.remove(&place);
            places.extend(halves);
        }
    }
}

/// The tensor of a place, or what stands for it; see [`pairings`].
pub fn find(places: &BTreeSet<Place>, place: Place) -> Option<Portion> {
    let at = |point| {
        let place = Place { point, ..place };
        places.contains(&place).then_some(place)
    };
    if let Some(place) = at(place.point) {
        return Some(Portion::Whole(place));
    }
    let mut others = place.point.stand_ins().iter();
    others.find_map(|(point, _)| Some(standing_for(place.point, at(*point)?)))
}

/// What of the tensor at a place stands for a point.
pub fn standing_for(point: TracePoint, place: Place) -> Portion {
    let mut all = point.stand_ins().iter();
    let columns = all.find(|(other, _)| *other == place.point);
    match columns.map_or(Columns::All, |(_, columns)| *columns) {
        Columns::X => Portion::Left(place),
        Columns::Z => Portion::Right(place),
        Columns::BAndC => Portion::Last(place),
        Columns::All | Columns::Dt | Columns::B | Columns::C => Portion::Whole(place),
    }
}
