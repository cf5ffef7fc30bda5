//! Headroom: how wide each accumulator, table and value needs to be, by interval arithmetic and on
//! data.

use crate::arith::accumulate::{Accumulated, Accumulator};
use crate::arith::function::{Function, Inputs};
use crate::error::Result;
use crate::trace::{Place, Probe, Tensor};
use serde::Serialize;
use std::collections::BTreeMap;

/// The fewest bits, sign included, that hold a range.
pub fn bits_for(low: i128, high: i128) -> u32 {
    let magnitude = high.max(-1 - low).max(0);
    129 - magnitude.leading_zeros()
}

/// What an accumulator can reach whatever its input: the extremes over rows of the sum of terms,
/// each input anywhere on its grid.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Bound {
    /// The step.
    #[serde(skip)]
    pub place: Place,
    /// The register.
    pub register: Accumulator,
    /// The lowest value of any prefix; `None` where no interval bounds it (a recurrence).
    pub reach: Option<(i64, i64)>,
}

impl Bound {
    /// The fewest bits that are always enough.
    pub fn bits(&self) -> Option<u32> {
        self.reach
            .map(|(low, high)| bits_for(low.into(), high.into()))
    }
}

/// Codes of a value: the lowest and the highest.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Codes {
    /// The lowest code.
    pub low: i8,
    /// The highest code.
    pub high: i8,
}

impl Codes {
    /// High bits that no code needed.
    pub fn unused_bits(&self) -> u32 {
        8 - bits_for(self.low.into(), self.high.into())
    }
}

/// Watches every accumulator term by term, every function's inputs and every INT8 value.
#[derive(Clone, Debug, Default)]
pub struct Watch {
    /// Accumulators by the place their step makes.
    pub accumulators: BTreeMap<Place, Accumulated>,
    /// Functions by the place their step makes.
    pub functions: Vec<((Place, Function), Inputs)>,
    /// INT8 values.
    pub codes: BTreeMap<Place, Codes>,
}

impl Probe for Watch {
    fn wants(&self, place: Place) -> bool {
        place.point.in_layer()
    }

    fn visit(&mut self, place: Place, value: &mut Tensor) -> Result<()> {
        let codes = match value {
            Tensor::I8(q) => &q.codes,
            Tensor::Codes(codes) => codes,
            Tensor::F16(_) | Tensor::F32(_) => return Ok(()),
        };
        let seen = self.codes.entry(place).or_insert(Codes { low: 0, high: 0 });
        for q in codes {
            seen.low = seen.low.min(*q);
            seen.high = seen.high.max(*q);
        }
        Ok(())
    }

    fn accumulate(&mut self, place: Place, seen: Accumulated) {
        *self.accumulators.entry(place).or_default() += seen;
    }

    fn function(&mut self, place: Place, function: Function, seen: Inputs) {
        let key = (place, function);
        match self.functions.iter_mut().find(|(known, _)| *known == key) {
            Some((_, inputs)) => *inputs += seen,
            None => self.functions.push((key, seen)),
        }
    }

    fn watches(&self) -> bool {
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bits_of_ranges() {
        for (low, high, bits) in [
            (0, 0, 1),
            (-1, 0, 1),
            (-1, 1, 2),
            (-128, 127, 8),
            (-128, 128, 9),
            (-129, 0, 9),
            (0, 1 << 30, 32),
        ] {
            assert_eq!(bits_for(low, high), bits, "{low} {high}");
        }
    }
}
