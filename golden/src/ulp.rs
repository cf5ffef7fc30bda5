//! Distances between floats, counted in representable values.
//!
//! Floats of one type, ordered by value, map to consecutive integers; +0 and −0 map to the same one.
//! The distance is the difference of those integers, so it is 0 for equal values, 1 for neighbours,
//! also across zero and across powers of two. It says nothing of NaN and ∞, which have none.

use half::f16;
use num_traits::PrimInt;

/// Distance of two floats by their bits: a sign, and a magnitude that counts up.
fn steps<B: PrimInt + Into<i64>>(a: B, b: B) -> u64 {
    let key = |bits: B| {
        let magnitude: i64 = (bits & (B::max_value() >> 1)).into();
        match bits.leading_zeros() {
            0 => -magnitude,
            _ => magnitude,
        }
    };
    key(a).abs_diff(key(b))
}

/// Distance of two finite f32 in units in the last place; `None` if either is NaN or ∞.
pub fn ulp_f32(a: f32, b: f32) -> Option<u64> {
    (a.is_finite() && b.is_finite()).then(|| steps(a.to_bits(), b.to_bits()))
}

/// Distance of two finite binary16 in units in the last place; `None` if either is NaN or ∞.
pub fn ulp_f16(a: f16, b: f16) -> Option<u64> {
    (a.is_finite() && b.is_finite()).then(|| steps(a.to_bits(), b.to_bits()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn neighbours_are_one_apart_everywhere() {
        // Every finite binary16 and the next one up.
        for bits in 0..0x7bffu16 {
            let (a, b) = (f16::from_bits(bits), f16::from_bits(bits + 1));
            assert_eq!(ulp_f16(a, b), Some(1));
            assert_eq!(ulp_f16(-a, -b), Some(1));
            assert_eq!(ulp_f16(b, a), Some(1));
        }
        for v in [0.0f32, f32::MIN_POSITIVE, 1.0, 1.5, 3.0e38, 1e-45] {
            assert_eq!(ulp_f32(v, v.next_up()), Some(1), "{v}");
            assert_eq!(ulp_f32(v, v.next_down()), Some(1), "{v}");
        }
    }

    #[test]
    fn zero_is_not_a_trap() {
        assert_eq!(ulp_f32(0.0, -0.0), Some(0));
        // The smallest values on both sides of zero are two steps apart.
        assert_eq!(
            ulp_f32(f32::from_bits(1), f32::from_bits(0x8000_0001)),
            Some(2)
        );
        // A finite error against zero is far, not negative and not near.
        assert_eq!(ulp_f32(0.0, 1.0), Some(0x3f80_0000));
        assert_eq!(ulp_f32(-1.0, 1.0), Some(2 * 0x3f80_0000));
        assert_eq!(ulp_f16(f16::ZERO, f16::NEG_ZERO), Some(0));
        assert_eq!(ulp_f16(f16::ZERO, f16::ONE), Some(0x3c00));
        assert_eq!(ulp_f16(f16::NEG_ONE, f16::ONE), Some(2 * 0x3c00));
        assert_eq!(ulp_f32(f32::MIN, f32::MAX), Some(2 * 0x7f7f_ffff));
    }

    #[test]
    fn nan_and_infinity_have_no_distance() {
        for v in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
            assert_eq!(ulp_f32(v, 1.0), None);
            assert_eq!(ulp_f32(1.0, v), None);
            assert_eq!(ulp_f32(v, v), None);
            assert_eq!(ulp_f16(f16::from_f32(v), f16::ONE), None);
        }
    }
}
