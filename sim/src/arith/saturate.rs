//! Integer to INT8, and the counters of what did not fit.

use serde::{Deserialize, Serialize};
use std::hint::select_unpredictable as select;
use std::ops::AddAssign;

/// What happens to an integer outside [-128, 127].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Overflow {
    /// The nearest end of the range (`sat8`).
    Saturate,
    /// The nearest end of [-127, 127]: no code without its negative.
    SaturateSymmetric,
    /// The low 8 bits as two's complement (`wrap8`): 130 becomes -126.
    Wrap,
}

impl Overflow {
    /// Every rule.
    pub const ALL: [Overflow; 3] = [
        Overflow::Saturate,
        Overflow::SaturateSymmetric,
        Overflow::Wrap,
    ];

    /// The lowest code a value may have without being made to fit.
    #[inline(always)]
    pub fn lowest(self) -> f32 {
        match self {
            Overflow::SaturateSymmetric => -127.0,
            Overflow::Saturate | Overflow::Wrap => -128.0,
        }
    }

    /// A whole number to INT8, and whether it had to be made to fit.
    pub fn fit(self, integer: i128) -> (i8, bool) {
        let low = self.lowest() as i128;
        let code = match self {
            Overflow::Saturate | Overflow::SaturateSymmetric => integer.clamp(low, 127) as i8,
            Overflow::Wrap => integer as i8,
        };
        (code, !(low..=127).contains(&integer))
    }

    /// An integer-valued f32 to INT8. NaN gives 0, as the conversion instruction does; a value
    /// beyond i32 saturates to i32 first, as it does too.
    #[inline(always)]
    pub fn to_i8(self, integer: f32) -> i8 {
        // Not by `as i32`: where it saturates there is no vector instruction, and lanes go one by one.
        let number = select(integer.is_nan(), 0.0, integer);
        match self {
            Overflow::Saturate | Overflow::SaturateSymmetric => {
                let low = self.lowest();
                let number = select(number < low, low, number);
                low_byte(select(number > 127.0, 127.0, number))
            }
            Overflow::Wrap => {
                // Exact; ±∞ gives NaN, whose low byte is 0 …
                let rest = number - (number * (1.0 / 256.0)).floor() * 256.0;
                // … and i32 ends at 0x7FFF_FFFF above.
                let beyond = number >= 2_147_483_648.0;
                select(beyond, -1, low_byte(rest))
            }
        }
    }
}

/// The low byte of a whole number of at most 22 bits.
#[inline(always)]
pub(crate) fn low_byte(integer: f32) -> i8 {
    /// 1.5·2^23: the sum's low bits are the integer's.
    const TO_INTEGER: f32 = 12_582_912.0;
    (integer + TO_INTEGER).to_bits() as i8
}

/// Bits of the magnitude: they order as magnitudes do, NaN beyond all of them.
#[inline(always)]
pub(crate) fn magnitude(v: f32) -> u32 {
    v.to_bits() & 0x7FFF_FFFF
}

/// Whether an integer-valued f32 lies outside INT8.
#[inline(always)]
pub fn overflows_i8(integer: f32) -> bool {
    !(-128.0..=127.0).contains(&integer)
}

/// How many values were quantized, how many of them did not fit, and how far they reached.
#[must_use]
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub struct Status {
    /// Values quantized.
    pub values: u64,
    /// Values clamped to the end of the range.
    pub saturated: u64,
    /// Values that lost their high bits.
    pub wrapped: u64,
    /// Largest magnitude before it was made to fit, in codes.
    pub peak: f32,
    /// Values in each segment of a quantizer that has several, and after them those beyond; zeros of one that has
    /// one grid.
    #[serde(skip_serializing_if = "no_segments")]
    pub segments: [u64; SEGMENTS],
}

/// Segments of a quantizer at most, what lies beyond included.
pub const SEGMENTS: usize = 4;

fn no_segments(segments: &[u64; SEGMENTS]) -> bool {
    *segments == [0; SEGMENTS]
}

impl Status {
    /// Counts `overflows` of `values` under a rule; `peak` is their largest magnitude in codes.
    pub fn counted(values: usize, overflows: u64, peak: f32, rule: Overflow) -> Self {
        let (saturated, wrapped) = match rule {
            Overflow::Saturate | Overflow::SaturateSymmetric => (overflows, 0),
            Overflow::Wrap => (0, overflows),
        };
        Self {
            values: values as u64,
            saturated,
            wrapped,
            peak,
            segments: [0; SEGMENTS],
        }
    }

    /// `scale_ratio`: absmax over the grid's reach, peak/127. It speaks of the largest value alone: at 2 that
    /// one is clipped to half, of the others usually very few (`overflow_rate`).
    pub fn scale_ratio(&self) -> f64 {
        f64::from(self.peak) / 127.0
    }

    /// Both together.
    pub fn plus(mut self, other: Self) -> Self {
        self += other;
        self
    }

    /// Share of values that did not fit, clamped or wrapped; 0 when nothing was quantized.
    pub fn overflow_rate(&self) -> f64 {
        if self.values == 0 {
            0.0
        } else {
            (self.saturated + self.wrapped) as f64 / self.values as f64
        }
    }
}

impl AddAssign for Status {
    fn add_assign(&mut self, other: Self) {
        self.values += other.values;
        self.saturated += other.saturated;
        self.wrapped += other.wrapped;
        self.peak = self.peak.max(other.peak);
        for (count, more) in self.segments.iter_mut().zip(other.segments) {
            *count += more;
        }
    }
}

/// Counts while a loop quantizes, in 32-bit lanes so that the loop vectorises. For at most 2^32
/// values.
#[derive(Clone, Copy, Debug)]
pub struct Tally {
    /// The lowest code that fits.
    lowest: f32,
    overflows: u32,
    /// Bits of the largest magnitude: those of non-negative floats order as the floats do.
    peak: u32,
}

impl Default for Tally {
    /// For codes down to −128.
    #[inline(always)]
    fn default() -> Self {
        Self {
            lowest: -128.0,
            overflows: 0,
            peak: 0,
        }
    }
}

impl Tally {
    /// For the codes that fit a rule.
    #[inline(always)]
    pub fn of(rule: Overflow) -> Self {
        Self {
            lowest: rule.lowest(),
            ..Self::default()
        }
    }

    /// Counts an integer-valued f32 before it is made to fit. NaN overflows and has no magnitude.
    #[inline(always)]
    pub fn add(&mut self, integer: f32) {
        self.overflows += u32::from(!(self.lowest..=127.0).contains(&integer));
        let magnitude = select(integer.is_nan(), 0, magnitude(integer));
        self.peak = self.peak.max(magnitude);
    }

    /// Counts integers whose largest [`magnitude`] this is, if all of them surely are codes of any rule;
    /// if not, does nothing.
    #[inline(always)]
    pub(crate) fn add_fitting(&mut self, peak: u32) -> bool {
        let fits = peak <= magnitude(127.0);
        if fits {
            self.peak = self.peak.max(peak);
        }
        fits
    }

    /// What was counted over `values` values under a rule.
    #[inline(always)]
    pub fn status(self, values: usize, rule: Overflow) -> Status {
        let peak = f32::from_bits(self.peak);
        Status::counted(values, self.overflows.into(), peak, rule)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_exponent_goes_to_the_code_that_a_conversion_to_i32_gives() {
        let words = (0..1u32 << 21).map(|i| i << 11 | i.wrapping_mul(0x9E5) & 0x7FF);
        let edges = [f32::NAN, -f32::NAN, f32::INFINITY, f32::NEG_INFINITY, -0.0]
            .map(f32::to_bits)
            .into_iter()
            .chain((0..64).map(|i| 0x4EFF_FFE0 + i))
            .chain((0..64).map(|i| 0xCEFF_FFE0 + i))
            .chain([0x7F80_0001, 0xFFFF_FFFF, 0x7FC0_0055]);
        for word in words.chain(edges) {
            let v = f32::from_bits(word);
            for v in [v, v.round_ties_even(), (v % 70_000.0).trunc()] {
                if v.fract() != 0.0 {
                    continue;
                }
                let integer = v as i32;
                let name = format!("{v:e} {:08x}", v.to_bits());
                assert_eq!(Overflow::Wrap.to_i8(v), integer as i8, "{name}");
                let fits = |low: i32| integer.clamp(low, 127) as i8;
                assert_eq!(Overflow::Saturate.to_i8(v), fits(-128), "{name}");
                assert_eq!(Overflow::SaturateSymmetric.to_i8(v), fits(-127), "{name}");
            }
        }
    }

    #[test]
    fn saturate_and_wrap_over_a_window() {
        for i in -70_000i32..70_000 {
            let v = i as f32;
            assert_eq!(Overflow::Saturate.to_i8(v), i.clamp(-128, 127) as i8);
            assert_eq!(Overflow::Wrap.to_i8(v), (i & 0xff) as u8 as i8);
            let symmetric = i.clamp(-127, 127) as i8;
            assert_eq!(Overflow::SaturateSymmetric.to_i8(v), symmetric);
            for rule in Overflow::ALL {
                let mut tally = Tally::of(rule);
                tally.add(v);
                let status = tally.status(1, rule);
                let beyond = status.saturated + status.wrapped == 1;
                assert_eq!(rule.fit(i.into()), (rule.to_i8(v), beyond), "{rule:?} {i}");
            }
            assert_eq!(overflows_i8(v), !(-128..=127).contains(&i));
        }
        assert_eq!(Overflow::Wrap.to_i8(130.0), -126);
        assert_eq!(Overflow::Saturate.to_i8(f32::NAN), 0);
        assert!(overflows_i8(f32::NAN));
    }
}
