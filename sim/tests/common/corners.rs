//! f32 values where arithmetic goes wrong: drawn by proptest, and so shrunk to a readable one.

use proptest::prelude::*;

/// Zeros, infinities, NaN, the ends of the normal and of the subnormal range.
pub const SPECIAL: [f32; 14] = [
    0.0,
    -0.0,
    f32::INFINITY,
    f32::NEG_INFINITY,
    f32::NAN,
    f32::MAX,
    f32::MIN,
    f32::MIN_POSITIVE,
    -f32::MIN_POSITIVE,
    f32::from_bits(0x007F_FFFF),
    f32::from_bits(0x807F_FFFF),
    f32::from_bits(1),
    f32::from_bits(0x8000_0001),
    f32::EPSILON,
];

/// Any bits, and corners: special values, powers of two and ties of integers with their neighbours,
/// subnormals.
pub fn f32s() -> impl Strategy<Value = f32> {
    let near = |v: f32, by: i32| match by {
        0 => v,
        1 => v.next_up(),
        _ => v.next_down(),
    };
    prop_oneof![
        any::<u32>().prop_map(f32::from_bits),
        proptest::sample::select(&SPECIAL[..]),
        (-149i32..=127, any::<bool>(), 0..3).prop_map(move |(exponent, negative, by)| {
            let power = 2f32.powi(exponent);
            near(if negative { -power } else { power }, by)
        }),
        (-40_000i32..40_000, 0..3).prop_map(move |(half, by)| near(half as f32 / 2.0, by)),
        (any::<bool>(), 0u32..0x0100_0000)
            .prop_map(|(negative, bits)| f32::from_bits(bits | u32::from(negative) << 31)),
    ]
}

/// Those of [`f32s`] that are finite.
pub fn finite() -> impl Strategy<Value = f32> {
    f32s().prop_filter("finite", |v| v.is_finite())
}
