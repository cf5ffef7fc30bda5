//! Accumulators of a chosen width: what happens to a sum of products that does not fit.
//!
//! An accumulator is a two's complement register of `bits` bits that starts at zero. A dot product
//! adds its terms **one after another, k ascending**, and the overflow rule applies after every
//! addition. With `wrap` the order cannot matter; with `saturate` and `trap` it can, and this is the
//! order. A tree or a blocked order is another design and has no rule here.
//!
//! Where no prefix can leave the range (the bound of [`Accumulator::holds`]) the sum is exact in any
//! order, and the vector kernels compute it.

use crate::error::{Result, SimError};
use serde::{Deserialize, Serialize};

/// What an accumulator does with a sum outside its range.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum AccOverflow {
    /// Stays at the nearest end of the range; later terms move it from there.
    Saturate,
    /// Keeps the low bits.
    Wrap,
    /// Ends the run with an error that names the place.
    Trap,
}

impl AccOverflow {
    /// Every rule.
    pub const ALL: [AccOverflow; 3] = [AccOverflow::Saturate, AccOverflow::Wrap, AccOverflow::Trap];
}

/// A register that sums.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "kebab-case")]
pub struct Accumulator {
    bits: u8,
    overflow: AccOverflow,
}

impl Accumulator {
    /// 32 bits: exact for every dot product of INT8 codes up to [`crate::quant::Acc::MAX_LENGTH`].
    pub const I32: Accumulator = Accumulator {
        bits: 32,
        overflow: AccOverflow::Wrap,
    };

    /// 48 bits, saturating: the sum over states of a fixed-point scan.
    pub const I48: Accumulator = Accumulator {
        bits: 48,
        overflow: AccOverflow::Saturate,
    };

    /// A register of `bits` bits, 8 to 64, sign included.
    pub fn new(bits: u8, overflow: AccOverflow) -> Result<Self> {
        match bits {
            8..=64 => Ok(Self { bits, overflow }),
            _ => Err(SimError::value("accumulator bits", "8 to 64", bits)),
        }
    }

    /// Width, sign included.
    pub fn bits(self) -> u8 {
        self.bits
    }

    /// What it does with a sum that does not fit.
    pub fn overflow(self) -> AccOverflow {
        self.overflow
    }

    /// The largest value it can hold; the smallest is `−max − 1`.
    pub fn max(self) -> i64 {
        i64::MAX >> (64 - self.bits)
    }

    /// Whether no sum of terms whose magnitudes add up to `bound` can leave the range, in any order.
    #[inline(always)]
    pub fn holds(self, bound: u64) -> bool {
        bound <= self.max() as u64
    }

    /// The register after one more term, and whether the sum left the range. `trap` goes on with the
    /// low bits; whoever runs the step reports the error.
    #[inline(always)]
    pub fn add(self, acc: i64, term: i64) -> (i64, bool) {
        let (max, min) = (self.max(), !self.max());
        let (sum, beyond) = acc.overflowing_add(term);
        if !beyond && (min..=max).contains(&sum) {
            return (sum, false);
        }
        let sum = match self.overflow {
            AccOverflow::Saturate if term > 0 => max,
            AccOverflow::Saturate => min,
            AccOverflow::Wrap | AccOverflow::Trap => {
                let unused = 64 - self.bits;
                sum << unused >> unused
            }
        };
        (sum, true)
    }

    /// A dot product of codes, k ascending; the sum and what happened on the way.
    pub fn dot(self, x: &[i8], weight: &[i8]) -> (i64, Accumulated) {
        let products = x.iter().zip(weight);
        self.sum(products.map(|(x, w)| i64::from(*x) * i64::from(*w)))
    }

    /// The sum of terms in their order, and what happened on the way.
    #[inline(always)]
    pub fn sum(self, terms: impl Iterator<Item = i64>) -> (i64, Accumulated) {
        let (mut acc, mut seen) = (0, Accumulated::default());
        for term in terms {
            let beyond;
            (acc, beyond) = self.add(acc, term);
            seen.see(acc, beyond);
        }
        seen.sums = 1;
        (acc, seen)
    }
}

/// What sums of one accumulator came to.
#[must_use]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Accumulated {
    /// Sums that were watched term by term. Sums that provably fit are not, unless asked for.
    pub sums: u64,
    /// Additions that left the range.
    pub overflows: u64,
    /// The lowest value the register held, 0 or below.
    pub low: i64,
    /// The highest value the register held, 0 or above.
    pub high: i64,
}

impl Accumulated {
    /// Takes in a value of the register.
    #[inline(always)]
    pub fn see(&mut self, value: i64, beyond: bool) {
        self.low = self.low.min(value);
        self.high = self.high.max(value);
        self.overflows += u64::from(beyond);
    }

    /// Both together.
    pub fn plus(mut self, other: Self) -> Self {
        self += other;
        self
    }
}

impl std::ops::AddAssign for Accumulated {
    fn add_assign(&mut self, other: Self) {
        self.sums += other.sums;
        self.overflows += other.overflows;
        self.low = self.low.min(other.low);
        self.high = self.high.max(other.high);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn accumulator(bits: u8, overflow: AccOverflow) -> Accumulator {
        Accumulator::new(bits, overflow).unwrap()
    }

    #[test]
    fn widths_have_a_range() {
        for bits in [0, 7, 65, 255] {
            assert!(Accumulator::new(bits, AccOverflow::Wrap).is_err());
        }
        assert_eq!(accumulator(8, AccOverflow::Wrap).max(), 127);
        assert_eq!(accumulator(64, AccOverflow::Wrap).max(), i64::MAX);
        assert_eq!(accumulator(32, AccOverflow::Wrap), Accumulator::I32);
    }

    /// Against sums in i128: wrapping is the low bits of the exact sum, saturation clamps after
    /// every term.
    #[test]
    fn every_width_against_wide_arithmetic() {
        let terms: Vec<i64> = (0..400i64)
            .map(|i| (i * i * 7919 + i * 104_729) % 32_769 - 16_000)
            .collect();
        for bits in 8..=64u8 {
            // Terms as large as the register is wide, so that every width overflows.
            let scaled = |t: &i64| (i128::from(*t) << bits >> 15) as i64;
            let half = 1i128 << (bits - 1);
            let (mut exact, mut clamped, mut leaves) = (0i128, 0i128, 0);
            for term in terms.iter().map(scaled) {
                exact += i128::from(term);
                clamped += i128::from(term);
                leaves += u64::from(!(-half..half).contains(&clamped));
                clamped = clamped.clamp(-half, half - 1);
            }
            let wrapped = (exact + half).rem_euclid(2 * half) - half;
            let run = |rule| accumulator(bits, rule).sum(terms.iter().map(scaled));
            assert_eq!(i128::from(run(AccOverflow::Wrap).0), wrapped, "{bits}");
            let (sum, seen) = run(AccOverflow::Saturate);
            assert_eq!(i128::from(sum), clamped, "{bits}");
            assert_eq!(seen.overflows, leaves, "{bits}");
            assert!(leaves > 0, "{bits}");
            assert_eq!(i128::from(seen.high.max(-1 - seen.low)), half - 1, "{bits}");
        }
    }

    #[test]
    fn the_order_of_terms_decides_saturated_sums_only() {
        let narrow = |rule| accumulator(8, rule);
        let (up, down) = ([127i8, 127, -127], [-127i8, 127, 127]);
        let ones = [1i8; 3];
        assert_eq!(narrow(AccOverflow::Saturate).dot(&up, &ones).0, 0);
        assert_eq!(narrow(AccOverflow::Saturate).dot(&down, &ones).0, 127);
        assert_eq!(narrow(AccOverflow::Wrap).dot(&up, &ones).0, 127);
        assert_eq!(narrow(AccOverflow::Wrap).dot(&down, &ones).0, 127);
        assert_eq!(narrow(AccOverflow::Trap).dot(&up, &ones).1.overflows, 2);
        assert_eq!(narrow(AccOverflow::Trap).dot(&down, &ones).1.overflows, 0);
    }

    #[test]
    fn what_holds_never_overflows() {
        let acc = accumulator(16, AccOverflow::Trap);
        assert!(acc.holds(32_767) && !acc.holds(32_768));
        let (sum, seen) = acc.sum([-16_384, -16_383, 32_767].into_iter());
        assert_eq!((sum, seen.overflows), (0, 0));
        assert_eq!((seen.low, seen.high), (-32_767, 0));
    }
}
