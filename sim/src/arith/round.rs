//! Real number to integer, and integer to integer by a right shift.

use super::lfsr::Lfsr;
use num_traits::PrimInt;
use serde::{Deserialize, Serialize};
use std::ops::RangeInclusive;

/// `v / 2^shift` as an integer of its type. `random` is read by a stochastic rule only.
#[inline(always)]
fn shifted<I: PrimInt + From<u16>>(rule: Rounding, v: I, shift: u32, random: u16) -> I {
    if shift == 0 {
        return v;
    }
    let places = shift as usize;
    let one = I::one();
    let floor = v >> places;
    let rest = v - (floor << places);
    let half = one << (places - 1);
    let up = match rule {
        Rounding::NearestTiesToEven => rest > half || (rest == half && floor & one == one),
        // Integers add their half exactly: both rules are one here.
        Rounding::NearestTiesAway | Rounding::HalfAwayByAdding => {
            rest > half || (rest == half && v > I::zero())
        }
        Rounding::NearestTiesUp => rest >= half,
        Rounding::Floor => false,
        Rounding::Ceil => rest > I::zero(),
        Rounding::TowardZero => rest > I::zero() && v < I::zero(),
        Rounding::Stochastic(_) => {
            let random = <I as From<u16>>::from(random);
            let random = match places.checked_sub(16) {
                Some(more) => random << more,
                None => random >> (16 - places),
            };
            rest + random >= one << places
        }
    };
    if up { floor + one } else { floor }
}

/// The smallest power of two that is no less than a positive, normal number.
pub fn up_to_power_of_two(v: f64) -> f64 {
    const FRACTION: u64 = (1 << 52) - 1;
    let bits = v.to_bits();
    f64::from_bits((bits + FRACTION) & !FRACTION)
}

/// The integer nearest to a number, a tie to the even one, made to fit a range; 0 of NaN.
#[inline(always)]
pub fn nearest_within(v: f64, range: RangeInclusive<i64>) -> i64 {
    (v.round_ties_even() as i64).clamp(*range.start(), *range.end())
}

/// How a real number becomes an integer. Source of the first two: `docs/arithmetic.md`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Rounding {
    /// To the nearest integer, a tie to the even one (IEEE 754 roundTiesToEven; `rne8`).
    NearestTiesToEven,
    /// To the nearest integer, a tie away from zero (`rha`): truncation of `v ± 0.5` with that
    /// addition rounded toward zero, so that 0.49999997 gives 0.
    NearestTiesAway,
    /// ⌊v ⊕ ½⌋ for v ≥ 0, ⌈v ⊖ ½⌉ below, where the sum is rounded to f32 as every sum is: half away from
    /// zero but for 0.49999997, which gives 1, and odd integers from 2^23 on, which move by one. PyTorch
    /// code writes it for the `roundf` it lacks.
    HalfAwayByAdding,
    /// To the nearest integer, a tie up: ⌊v + ½⌋, which an adder and a shift make.
    NearestTiesUp,
    /// Down: ⌊v⌋, an arithmetic shift.
    Floor,
    /// Up: ⌈v⌉.
    Ceil,
    /// Toward zero.
    TowardZero,
    /// Up with the probability of the fraction: ⌊v + r⌋, r the 16 bits of an [`Lfsr`] of this seed
    /// at the value's position, over 2^16. Only steps that know positions can follow it.
    Stochastic(u32),
}

impl Rounding {
    /// Every rule that needs no position.
    pub const ALL: [Rounding; 7] = [
        Rounding::NearestTiesToEven,
        Rounding::NearestTiesAway,
        Rounding::HalfAwayByAdding,
        Rounding::NearestTiesUp,
        Rounding::Floor,
        Rounding::Ceil,
        Rounding::TowardZero,
    ];

    /// The register of a stochastic rule.
    pub fn lfsr(self) -> Option<Lfsr> {
        match self {
            Rounding::Stochastic(seed) => Some(Lfsr::new(seed)),
            _ => None,
        }
    }

    /// `v` as an integer-valued f32. NaN and infinities stay what they are. A stochastic rule needs
    /// [`Rounding::round_at`] and is none of this function's.
    #[inline(always)]
    pub fn round(self, v: f32) -> f32 {
        match self {
            Rounding::NearestTiesToEven => v.round_ties_even(),
            // Adding 0.5 toward zero and truncating is exact round-half-away for every f32: below
            // 2^23 the sum keeps its half bit, above it v is an integer already.
            Rounding::NearestTiesAway => v.round(),
            Rounding::HalfAwayByAdding if v >= 0.0 => (v + 0.5).floor(),
            Rounding::HalfAwayByAdding => (v - 0.5).ceil(),
            // v − ⌊v⌋ is exact.
            Rounding::NearestTiesUp => v.floor() + f32::from(u8::from(v - v.floor() >= 0.5)),
            Rounding::Floor => v.floor(),
            Rounding::Ceil => v.ceil(),
            Rounding::TowardZero => v.trunc(),
            Rounding::Stochastic(_) => unreachable!("a stochastic rule needs a position"),
        }
    }

    /// [`Rounding::round`] with the 16 random bits of a position.
    pub fn round_at(self, v: f32, random: u16) -> f32 {
        match self {
            // In f64 the sum is exact where it decides: |v| < 2^30.
            Rounding::Stochastic(_) => {
                (f64::from(v) + f64::from(random) / f64::from(1u32 << 16)).floor() as f32
            }
            rule => rule.round(v),
        }
    }

    /// `v / 2^shift` as an integer, for shifts of 0 to 126. `random` is read by a stochastic rule
    /// only.
    #[inline(always)]
    pub fn shift(self, v: i128, shift: u32, random: u16) -> i128 {
        // Most values are narrow, and 64-bit integers several times faster.
        match i64::try_from(v) {
            Ok(narrow) if shift < 62 => shifted(self, narrow, shift, random).into(),
            _ => self.shift_wide(v, shift, random),
        }
    }

    /// `a · b / 2^shift`, the product exact, for shifts of 0 to 126.
    #[inline(always)]
    pub fn shift_product(self, a: i64, b: i64, shift: u32, random: u16) -> i128 {
        match a.checked_mul(b) {
            Some(narrow) if shift < 62 => shifted(self, narrow, shift, random).into(),
            _ => self.shift_wide(i128::from(a) * i128::from(b), shift, random),
        }
    }

    #[cold]
    fn shift_wide(self, v: i128, shift: u32, random: u16) -> i128 {
        shifted(self, v, shift, random)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn powers_of_two_are_no_less_and_the_next_smaller_is() {
        for exponent in -1000..1000 {
            let power = 2f64.powi(exponent);
            assert_eq!(up_to_power_of_two(power), power);
            assert_eq!(up_to_power_of_two(power.next_up()), 2.0 * power);
            assert_eq!(up_to_power_of_two(power.next_down()), power);
        }
    }

    #[test]
    fn ties() {
        let cases = [
            // v, to even, away
            (0.5, 0.0, 1.0),
            (1.5, 2.0, 2.0),
            (2.5, 2.0, 3.0),
            (-0.5, 0.0, -1.0),
            (-2.5, -2.0, -3.0),
            (0.499_999_97, 0.0, 0.0),
            (126.5, 126.0, 127.0),
            (127.5, 128.0, 128.0),
            (8_388_609.0, 8_388_609.0, 8_388_609.0),
        ];
        for (v, even, away) in cases {
            assert_eq!(Rounding::NearestTiesToEven.round(v), even, "{v} to even");
            assert_eq!(Rounding::NearestTiesAway.round(v), away, "{v} away");
        }
    }

    /// Where adding a half is not rounding half away.
    #[test]
    fn a_half_added_in_f32_is_rounded() {
        let rule = Rounding::HalfAwayByAdding;
        for (v, want) in [
            (0.499_999_97, 1.0),
            (0.499_999_94, 0.0),
            (0.5, 1.0),
            (1.5, 2.0),
            (2.499_999_8, 2.0),
            (8_388_609.0, 8_388_610.0),
            (8_388_610.0, 8_388_610.0),
            (0.0, 0.0),
            (f32::INFINITY, f32::INFINITY),
        ] {
            assert_eq!(rule.round(v), want, "{v}");
            assert_eq!(rule.round(-v), -want, "-{v}");
        }
        assert!(rule.round(f32::NAN).is_nan());
    }

    /// The definition with integers only: |v| = m·2^e, add half a unit, drop the fraction.
    fn half_away_by_integers(v: f32) -> f32 {
        let bits = v.to_bits() & 0x7fff_ffff;
        let exponent = (bits >> 23) as i32 - 150;
        let mantissa = u128::from((bits & 0x7f_ffff) | 0x80_0000);
        let magnitude = if exponent >= 0 {
            return v;
        } else if exponent < -60 {
            0
        } else {
            ((mantissa << 1) + (1u128 << -exponent)) >> (1 - exponent)
        };
        (magnitude as f32).copysign(v)
    }

    #[test]
    fn half_away_equals_its_integer_definition() {
        // Every f32 whose low 9 mantissa bits are at a corner, over all exponents of interest.
        for high in 0..(1u32 << 23) {
            for low in [0u32, 1, 255, 256, 257, 511] {
                let v = f32::from_bits(((high << 9) | low) & 0x7fff_ffff);
                if !v.is_finite() || v.abs() < 1e-30 {
                    continue;
                }
                let got = Rounding::NearestTiesAway.round(v);
                assert!(got == half_away_by_integers(v), "{v:e}");
            }
        }
    }

    /// Every rule over a window, against the definition in exact quarters.
    #[test]
    fn shifts_and_reals_agree() {
        for rule in Rounding::ALL {
            for v in -600i128..600 {
                for shift in 0..6 {
                    let real = rule.round(v as f32 / (1 << shift) as f32);
                    assert_eq!(
                        rule.shift(v, shift, 0),
                        real as i128,
                        "{rule:?} {v} >> {shift}"
                    );
                }
            }
        }
        assert_eq!(Rounding::NearestTiesUp.round(-2.5), -2.0);
        assert_eq!(Rounding::NearestTiesUp.round(0.499_999_97), 0.0);
        assert_eq!(Rounding::TowardZero.shift(-7, 2, 0), -1);
        assert_eq!(Rounding::Ceil.shift(i128::from(i64::MIN), 100, 0), 0);
    }

    /// Products that fit 64 bits, and those that do not.
    #[test]
    fn products_are_exact_before_they_are_shifted() {
        let factors = [0, 1, -1, 3, -7, 1 << 31, -(1 << 33), i64::MAX, i64::MIN];
        for rule in Rounding::ALL {
            for (a, b) in factors.iter().flat_map(|a| factors.map(|b| (*a, b))) {
                for shift in [0, 1, 17, 61, 62, 63, 100, 126] {
                    let product = i128::from(a) * i128::from(b);
                    let want = rule.shift_wide(product, shift, 0);
                    assert_eq!(rule.shift_product(a, b, shift, 0), want);
                    assert_eq!(rule.shift(product, shift, 0), want);
                }
            }
        }
    }

    /// Of the 2^16 positions' bits exactly the share of the fraction rounds up.
    #[test]
    fn stochastic_rounding_has_the_mean_of_its_fraction() {
        let rule = Rounding::Stochastic(1);
        for (v, up) in [(5i128, 0.625), (-3, 0.625), (8, 0.0), (1, 0.125)] {
            let (mut shifted, mut real) = (0, 0);
            for random in 0..=u16::MAX {
                let floor = v >> 3;
                shifted += rule.shift(v, 3, random) - floor;
                real += rule.round_at(v as f32 / 8.0, random) as i128 - floor;
            }
            assert_eq!(shifted as f64 / 65_536.0, up);
            assert_eq!(real, shifted);
        }
        assert_eq!(rule.shift(1 << 40, 41, 0x8000), 1);
        assert_eq!(rule.shift(1 << 40, 41, 0x7FFF), 0);
    }
}
