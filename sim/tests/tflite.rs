//! `tflite-single` and `tflite-double` against TFLite's and gemmlowp's published definitions, written
//! out here in big integers: `SaturatingRoundingDoublingHighMul`, `RoundingDivideByPOT`
//! (gemmlowp/fixedpoint/fixedpoint.h), `QuantizeMultiplier`, `MultiplyByQuantizedMultiplier` in both
//! forms (tensorflow/lite/kernels/internal).

use num_bigint::BigInt;
use scalescope_sim::arith::fixed::{FixedFactor, Scaling};
use scalescope_sim::arith::round::Rounding;

const SINGLE: Scaling = Scaling::Fixed {
    bits: 32,
    first: None,
};
const DOUBLE: Scaling = Scaling::Fixed {
    bits: 32,
    first: Some(Rounding::NearestTiesUp),
};

/// Toward minus infinity.
fn floor_div(n: &BigInt, shift: u32) -> BigInt {
    n >> shift
}

/// C++'s division, toward zero.
fn trunc_div(n: BigInt, shift: u32) -> BigInt {
    n / (BigInt::from(1) << shift)
}

/// `QuantizeMultiplier`: (quantized multiplier, shift).
fn quantize_multiplier(real: f64) -> (i64, i32) {
    let exponent = real.log2().floor() as i32 + 1;
    let mut fixed = (real / 2f64.powi(exponent) * 2f64.powi(31)).round() as i64;
    let mut shift = exponent;
    if fixed == 1 << 31 {
        fixed /= 2;
        shift += 1;
    }
    (fixed, shift)
}

/// `SaturatingRoundingDoublingHighMul(a, b)`.
fn high_mul(a: &BigInt, b: i64) -> BigInt {
    let product = a * b;
    let nudge = if product >= BigInt::from(0) {
        BigInt::from(1i64 << 30)
    } else {
        BigInt::from(1 - (1i64 << 30))
    };
    trunc_div(product + nudge, 31)
}

/// `RoundingDivideByPOT(x, exponent)`.
fn divide_by_pot(x: BigInt, exponent: u32) -> BigInt {
    let mask = (BigInt::from(1) << exponent) - 1;
    let floor = floor_div(&x, exponent);
    let remainder = &x - (&floor << exponent);
    let negative = BigInt::from(u8::from(x < BigInt::from(0)));
    let threshold = floor_div(&mask, 1) + negative;
    floor + u8::from(remainder > threshold)
}

fn double_rounding(x: i32, (multiplier, shift): (i64, i32)) -> BigInt {
    let (left, right) = (shift.max(0) as u32, (-shift).max(0) as u32);
    divide_by_pot(high_mul(&(BigInt::from(x) << left), multiplier), right)
}

fn single_rounding(x: i32, (multiplier, shift): (i64, i32)) -> BigInt {
    let total = (31 - shift) as u32;
    let round = BigInt::from(1) << (total - 1);
    floor_div(&(BigInt::from(x) * multiplier + round), total)
}

struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }
}

/// Accumulators around those where a multiplier's result changes: for outputs all over INT8 and
/// beyond, the input nearest to each rounding boundary and every one within 8 of it; and the ends
/// of i32.
fn windows(real: f64) -> Vec<i32> {
    let ends = [i32::MIN, i32::MIN + 1, -1, 0, 1, i32::MAX - 1, i32::MAX];
    let mut inputs = ends.to_vec();
    for output in -140..=140 {
        let boundary = (f64::from(output) + 0.5) / real;
        if boundary.abs() < f64::from(i32::MAX) - 16.0 {
            let centre = boundary.round() as i32;
            inputs.extend(centre - 8..=centre + 8);
        }
    }
    inputs
}

/// 1,000 random multipliers, every rounding boundary of INT8, both forms: no difference.
#[test]
fn both_forms_around_every_boundary() {
    let mut random = Random(0x1234_5678_9ABC_DEF1);
    let mut compared = 0u64;
    for _ in 0..1000 {
        // Exponents from 2^-30 to 2^6, any mantissa.
        let exponent = (random.next() % 37) as i32 - 30;
        let mantissa = 0.5 + (random.next() >> 12) as f64 / 2f64.powi(53);
        let real = mantissa * 2f64.powi(exponent);
        let reference = quantize_multiplier(real);
        let single = FixedFactor::new(SINGLE, real).unwrap().unwrap();
        let double = FixedFactor::new(DOUBLE, real).unwrap().unwrap();
        assert_eq!(
            (single.multiplier, 31 - single.shift),
            reference,
            "{real:e}"
        );
        assert_eq!(
            (double.multiplier, 31 - double.shift),
            reference,
            "{real:e}"
        );
        for x in windows(real) {
            let got = single.apply(x.into(), Rounding::NearestTiesUp, 0);
            assert_eq!(
                BigInt::from(got),
                single_rounding(x, reference),
                "{x} · {real:e}"
            );
            let got = double.apply(x.into(), Rounding::NearestTiesAway, 0);
            assert_eq!(
                BigInt::from(got),
                double_rounding(x, reference),
                "{x} · {real:e}"
            );
            compared += 2;
        }
    }
    println!("{compared} results compared");
    assert!(compared > 5_000_000, "{compared}");
}

/// The values that TFLite's own tests state (tensorflow/lite/kernels/internal/quantization_util_test.cc):
/// `QuantizeMultiplier`, and `MultiplyByQuantizedMultiplier` in either form.
#[test]
fn published_values() {
    const ONE: i64 = 1 << 30;
    for (real, multiplier, shift) in [
        (0.125, ONE, -2),
        (0.25, ONE, -1),
        (0.5 - 5e-9, 2_147_483_627, -1),
        (0.5 - 1e-10, ONE, 0),
        (0.5, ONE, 0),
        (0.75, 1_610_612_736, 0),
        (1.0 - 1e-9, 2_147_483_646, 0),
        (1.0, ONE, 1),
        (1.0 + 1e-11, ONE, 1),
        (1.25, 1_342_177_280, 1),
        (1.5, 1_610_612_736, 1),
        (1.75, 1_879_048_192, 1),
        (2.0 - 1e-9, 2_147_483_647, 1),
        (2.0 - 1e-11, ONE, 2),
        (2.0, ONE, 2),
        (4.0, ONE, 3),
    ] {
        for scaling in [SINGLE, DOUBLE] {
            let fixed = FixedFactor::new(scaling, real).unwrap().unwrap();
            assert_eq!(
                (fixed.multiplier, 31 - fixed.shift),
                (multiplier, shift),
                "{real}"
            );
        }
        assert_eq!(quantize_multiplier(real), (multiplier, shift), "{real}");
    }
    for (x, real, product) in [
        (0, 0.1, 0),
        (10_000, 0.00097656, 10),
        (-10_000, 0.00097656, -10),
        (i32::MIN, 0.00001, -21_475),
        (i32::MAX, 0.00001, 21_475),
    ] {
        let fixed = |scaling| FixedFactor::new(scaling, real).unwrap().unwrap();
        let single = fixed(SINGLE).apply(x.into(), Rounding::NearestTiesUp, 0);
        let double = fixed(DOUBLE).apply(x.into(), Rounding::NearestTiesAway, 0);
        assert_eq!((single, double), (product, product), "{x} · {real}");
    }
}

/// The ties that tell the forms apart, worked out by hand from the definitions.
#[test]
fn published_ties() {
    let half = |scaling| FixedFactor::new(scaling, 0.5).unwrap().unwrap();
    // 0.5 is M = 2^30 with shift 0: high_mul alone rounds, ties up.
    let apply = |scaling, rule, x| half(scaling).apply(x, rule, 0);
    for (x, want) in [(1, 1), (-1, 0), (3, 2), (-3, -1), (5, 3), (-5, -2)] {
        assert_eq!(apply(DOUBLE, Rounding::NearestTiesAway, x), want, "{x}");
        assert_eq!(apply(SINGLE, Rounding::NearestTiesUp, x), want, "{x}");
    }
    // A quarter is M = 2^30 with right shift 1: −3/4 first becomes −1.5 → −1 (up), then −0.5 → −1
    // (away); rounded once it is −1. But 1/4·2 = 0.5: 1 → 1 (up of 0.5·…), and −2 differs.
    let quarter = |scaling| FixedFactor::new(scaling, 0.25).unwrap().unwrap();
    let twice = |x| quarter(DOUBLE).apply(x, Rounding::NearestTiesAway, 0);
    let once = |x| quarter(SINGLE).apply(x, Rounding::NearestTiesUp, 0);
    assert_eq!((twice(-2), once(-2)), (-1, 0));
    assert_eq!((twice(1), once(1)), (1, 0));
    assert_eq!((twice(2), once(2)), (1, 1));
    assert_eq!((twice(-3), once(-3)), (-1, -1));
}
