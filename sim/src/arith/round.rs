//! Real number to integer.

use serde::{Deserialize, Serialize};

/// How a real number becomes an integer. Source: datapath specification, section 1.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Rounding {
    /// To the nearest integer, a tie to the even one (IEEE 754 roundTiesToEven; `rne8`).
    NearestTiesToEven,
    /// To the nearest integer, a tie away from zero (`rha`): truncation of `v ± 0.5` with that
    /// addition rounded toward zero, so that 0.49999997 gives 0.
    NearestTiesAway,
}

impl Rounding {
    /// Every rule.
    pub const ALL: [Rounding; 2] = [Rounding::NearestTiesToEven, Rounding::NearestTiesAway];

    /// The integer nearest to `v`, as an f32. NaN and infinities stay what they are.
    #[inline(always)]
    pub fn round(self, v: f32) -> f32 {
        match self {
            Rounding::NearestTiesToEven => v.round_ties_even(),
            // Adding 0.5 toward zero and truncating is exact round-half-away for every f32: below
            // 2^23 the sum keeps its half bit, above it v is an integer already.
            Rounding::NearestTiesAway => v.round(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

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
}
