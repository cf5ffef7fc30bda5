//! Every public function of the arithmetic against its definition, written out anew in wider numbers:
//! i128 for integers, f64 for halves and f32. Exhaustive over pairs of codes and over binary16,
//! random and at corners for f32. Functions are in `functions`; what else has a test of its own is not
//! repeated: exp, log1p and the special-function unit (`correct_rounding`, `sfu_measured`, `sfu_properties`),
//! the identities of the modes (`identities`), TFLite's forms (`tflite`).

use crate::common::corners::{f32s, finite};
use half::f16;
use proptest::prelude::*;
use scalescope_sim::arith::accumulate::{AccOverflow, Accumulated, Accumulator};
use scalescope_sim::arith::binary16::{from_f16, narrow, to_f16, widen};
use scalescope_sim::arith::fixed::{FixedFactor, Requantizer, Scaling, random};
use scalescope_sim::arith::lfsr::Lfsr;
use scalescope_sim::arith::requant::{QuantRule, Quotient, ScaleOrder};
use scalescope_sim::arith::round::Rounding;
use scalescope_sim::arith::saturate::{Overflow, Status, Tally, overflows_i8};
use scalescope_sim::arith::sfu;
use scalescope_sim::quant::{Acc, Multiplier, QTensor, Scale, dequantize_slice};

fn every_rounding() -> impl Strategy<Value = Rounding> {
    let stochastic = any::<u32>().prop_map(Rounding::Stochastic);
    prop_oneof![6 => proptest::sample::select(&Rounding::ALL[..]), 1 => stochastic]
}

fn scales() -> impl Strategy<Value = Scale> {
    (-60i32..60, 1.0f32..2.0).prop_map(|(e, m)| Scale::new(m * 2f32.powi(e)).unwrap())
}

/// A rounding of `n / 2^shift`, from quotient and remainder.
fn divided(rule: Rounding, n: i128, shift: u32, random: u16) -> i128 {
    let d = 1i128 << shift;
    let (floor, rest) = (n.div_euclid(d), n.rem_euclid(d));
    let up = match rule {
        Rounding::NearestTiesToEven => 2 * rest > d || (2 * rest == d && floor % 2 != 0),
        Rounding::NearestTiesAway | Rounding::HalfAwayByAdding => {
            2 * rest > d || (2 * rest == d && n > 0)
        }
        Rounding::NearestTiesUp => 2 * rest >= d,
        Rounding::Floor => false,
        Rounding::Ceil => rest != 0,
        Rounding::TowardZero => rest != 0 && n < 0,
        // rest/d + random/2^16 ≥ 1, with the random bits below the last one of the shift dropped.
        Rounding::Stochastic(_) if shift < 16 => rest + (i128::from(random) >> (16 - shift)) >= d,
        Rounding::Stochastic(_) => rest + (i128::from(random) << (shift - 16)) >= d,
    };
    floor + i128::from(up)
}

/// A rounding of a real number, in f64, where adding a half is exact for every f32 that has a fraction.
fn rounded(rule: Rounding, v: f32) -> f64 {
    let v = f64::from(v);
    match rule {
        Rounding::NearestTiesToEven => v.round_ties_even(),
        Rounding::NearestTiesAway => (v.abs() + 0.5).floor().copysign(v),
        // The sum is one of f32.
        Rounding::HalfAwayByAdding => f64::from((v.abs() + 0.5) as f32).floor().copysign(v),
        Rounding::NearestTiesUp => (v + 0.5).floor(),
        Rounding::Floor => v.floor(),
        Rounding::Ceil => v.ceil(),
        Rounding::TowardZero => v.trunc(),
        Rounding::Stochastic(_) => unreachable!("drawn apart"),
    }
}

/// An integer-valued real number to INT8.
fn fitted(rule: Overflow, integer: f64) -> i8 {
    let bounded = integer.clamp(f64::from(i32::MIN), f64::from(i32::MAX));
    match rule {
        _ if integer.is_nan() => 0,
        Overflow::Saturate => bounded.clamp(-128.0, 127.0) as i8,
        Overflow::SaturateSymmetric => bounded.clamp(-127.0, 127.0) as i8,
        Overflow::Wrap => (bounded as i64).rem_euclid(256) as u8 as i8,
    }
}

#[test]
fn every_pair_of_codes() {
    // The longest sum of the largest product that 32 bits hold.
    let longest = i64::from(i32::MAX) / (128 * 128);
    assert_eq!(Acc::MAX_LENGTH as i64, longest);
    for x in i8::MIN..=i8::MAX {
        for w in i8::MIN..=i8::MAX {
            let product = i64::from(x) * i64::from(w);
            for bits in [8, 12, 15, 16, 32] {
                let half = 1i64 << (bits - 1);
                let fits = (-half..half).contains(&product);
                for overflow in AccOverflow::ALL {
                    let acc = Accumulator::new(bits, overflow).unwrap();
                    assert_eq!((acc.bits(), acc.overflow()), (bits, overflow));
                    let (sum, seen) = acc.dot(&[x], &[w]);
                    let want = match overflow {
                        AccOverflow::Saturate => product.clamp(-half, half - 1),
                        _ => (product + half).rem_euclid(2 * half) - half,
                    };
                    assert_eq!(sum, want, "{x} · {w} in {bits} bits, {overflow:?}");
                    let seen = (seen.sums, seen.overflows, seen.low, seen.high);
                    assert_eq!(seen, (1, u64::from(!fits), sum.min(0), sum.max(0)));
                }
            }
        }
    }
}

#[test]
fn every_binary16_is_quantized_as_defined() {
    for bits in 0..=u16::MAX {
        let v = from_f16(f16::from_bits(bits));
        for rounding in Rounding::ALL {
            let (got, want) = (rounding.round(v), rounded(rounding, v));
            let same = f64::from(got) == want || got.is_nan() && want.is_nan();
            assert!(same, "{rounding:?} of {v:e}: {got} for {want}");
            for overflow in Overflow::ALL {
                let rule = QuantRule {
                    quotient: Quotient::Divide,
                    rounding,
                    overflow,
                };
                assert_eq!(
                    overflow.to_i8(got),
                    fitted(overflow, want),
                    "{overflow:?} of {v:e}"
                );
                for s in [1.0, 0.037, 1e-6, 3000.0] {
                    let want = fitted(overflow, rounded(rounding, v / s));
                    assert_eq!(
                        rule.quantize(v, Scale::new(s).unwrap()),
                        want,
                        "{rule:?} of {v:e} by {s}"
                    );
                }
            }
        }
    }
}

/// What the f64 definitions above cannot see: NaN stays NaN, zeros and infinities keep their sign.
#[test]
fn special_values_are_rounded_to_themselves() {
    for rounding in Rounding::ALL {
        assert!(rounding.round(f32::NAN).is_nan(), "{rounding:?}");
        for v in [0.0f32, f32::INFINITY, f32::NEG_INFINITY] {
            assert_eq!(rounding.round(v), v, "{rounding:?}");
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig {
        failure_persistence: None, // A failure becomes a named test.
        ..ProptestConfig::default()
    })]

    #[test]
    fn every_rounding_of_a_real(v in finite(), random: u16) {
        for rule in Rounding::ALL {
            prop_assert_eq!(f64::from(rule.round(v)), rounded(rule, v), "{:?}", rule);
            prop_assert_eq!(rule.round_at(v, random).to_bits(), rule.round(v).to_bits());
            prop_assert_eq!(rule.lfsr(), None);
        }
    }

    #[test]
    fn every_rounding_of_a_quotient(rule in every_rounding(), v: i128, drop in 1u32..127, shift in 0u32..=126, random: u16) {
        // Every width of value, and shifts narrower and wider than the value.
        let v = v >> drop;
        prop_assert_eq!(rule.shift(v, shift, random), divided(rule, v, shift, random));
        let tie = (v >> 1 << 1 | 1) << (shift.clamp(1, 60) - 1);
        if tie >> (shift.clamp(1, 60) - 1) & 1 == 1 && drop > 64 {
            let shift = shift.clamp(1, 60);
            prop_assert_eq!(rule.shift(tie, shift, random), divided(rule, tie, shift, random));
        }
    }

    /// Up with the probability of the fraction: never more than one from the floor, and by the bits.
    #[test]
    fn stochastic_rounding_of_a_real(seed: u32, whole in -1000i32..1000, fraction in 0u32..1 << 16, random: u16) {
        let v = whole as f32 + fraction as f32 / 65_536.0;
        prop_assume!(f64::from(v) == f64::from(whole) + f64::from(fraction) / 65_536.0);
        let up = fraction + u32::from(random) >= 1 << 16;
        let rule = Rounding::Stochastic(seed);
        prop_assert_eq!(rule.round_at(v, random), (whole + i32::from(up)) as f32);
        prop_assert_eq!(rule.lfsr(), Some(Lfsr::new(seed)));
    }

    #[test]
    fn every_overflow_rule(v in f32s(), integer: i128) {
        let whole = v.round_ties_even();
        for rule in Overflow::ALL {
            prop_assert_eq!(rule.to_i8(whole), fitted(rule, whole.into()), "{:?}", rule);
            let low = if rule == Overflow::SaturateSymmetric { -127 } else { -128 };
            prop_assert_eq!(rule.lowest(), low as f32);
            let (code, beyond) = rule.fit(integer);
            prop_assert_eq!(beyond, integer < low || integer > 127);
            prop_assert_eq!(code, match rule {
                Overflow::Wrap => integer.rem_euclid(256) as u8 as i8,
                _ => integer.max(low).min(127) as i8,
            });
        }
        prop_assert_eq!(overflows_i8(whole), !(-128.0..=127.0).contains(&whole));
    }

    /// The tally of a loop is the sum of what each value says, however it is cut.
    #[test]
    fn tallies_and_statuses_add_up(values in prop::collection::vec(f32s(), 1..40), cut in 0usize..40) {
        for rule in Overflow::ALL {
            let status = |values: &[f32]| {
                let mut tally = Tally::of(rule);
                values.iter().for_each(|v| tally.add(v.trunc()));
                tally.status(values.len(), rule)
            };
            let whole = status(&values);
            let beyond = |v: &&f32| { let v = v.trunc(); !(v >= rule.lowest() && v <= 127.0) };
            let count = values.iter().filter(beyond).count() as u64;
            let peak = values.iter().map(|v| v.trunc().abs()).filter(|v| !v.is_nan()).fold(0.0, f32::max);
            prop_assert_eq!(whole, Status::counted(values.len(), count, peak, rule));
            let (saturated, wrapped) = if rule == Overflow::Wrap { (0, count) } else { (count, 0) };
            prop_assert_eq!((whole.values, whole.saturated, whole.wrapped), (values.len() as u64, saturated, wrapped));
            prop_assert_eq!(whole.overflow_rate(), count as f64 / values.len() as f64);
            prop_assert_eq!(whole.scale_ratio(), f64::from(peak) / 127.0);
            let (left, right) = values.split_at(cut.min(values.len()));
            prop_assert_eq!(status(left).plus(status(right)), whole);
        }
    }

    /// One term more, against a sum in i128.
    #[test]
    fn every_register_adds_one_term(bits in 8u8..=64, start: i64, term: i64, narrow in 0u32..64) {
        let half = 1i128 << (bits - 1);
        let start = start >> (64 - bits);
        let term = term >> narrow;
        let exact = i128::from(start) + i128::from(term);
        let fits = (-half..half).contains(&exact);
        for overflow in AccOverflow::ALL {
            let acc = Accumulator::new(bits, overflow).unwrap();
            prop_assert_eq!(i128::from(acc.max()), half - 1);
            prop_assert_eq!(acc.holds(exact.unsigned_abs() as u64), exact.unsigned_abs() < half as u128);
            let (got, beyond) = acc.add(start, term);
            prop_assert_eq!(beyond, !fits);
            let want = match overflow {
                AccOverflow::Saturate => exact.clamp(-half, half - 1),
                _ => (exact + half).rem_euclid(2 * half) - half,
            };
            prop_assert_eq!(i128::from(got), want, "{:?}", overflow);
        }
    }

    #[test]
    fn what_registers_saw_adds_up(a in prop::collection::vec(-300i64..300, 0..20), b in prop::collection::vec(-300i64..300, 0..20)) {
        let acc = Accumulator::new(9, AccOverflow::Wrap).unwrap();
        let ((_, x), (_, y)) = (acc.sum(a.iter().copied()), acc.sum(b.iter().copied()));
        let both = x.plus(y);
        prop_assert_eq!((both.sums, both.overflows), (2, x.overflows + y.overflows));
        prop_assert_eq!((both.low, both.high), (x.low.min(y.low), x.high.max(y.high)));
        let mut seen = Accumulated::default();
        seen.see(-5, true);
        seen.see(3, false);
        prop_assert_eq!((seen.sums, seen.overflows, seen.low, seen.high), (0, 1, -5, 3));
    }

    #[test]
    fn f32_and_binary16(values in prop::collection::vec(f32s(), 0..70), skip in 0usize..8) {
        let values = &values[skip.min(values.len())..];
        let mut halves = vec![f16::ZERO; values.len()];
        narrow(values, &mut halves);
        let mut back = vec![0.0; values.len()];
        widen(&halves, &mut back);
        for ((v, half), back) in values.iter().zip(&halves).zip(back) {
            prop_assert_eq!(half.to_bits(), to_f16(*v).to_bits());
            prop_assert_eq!(back.to_bits(), from_f16(*half).to_bits());
            // Nearest: no other binary16 is nearer. Exact in f64.
            if v.is_finite() && half.is_finite() {
                let error = |h: f16| (f64::from(*v) - f64::from(h)).abs();
                for other in [half.to_bits().wrapping_sub(1), half.to_bits() + 1].map(f16::from_bits) {
                    prop_assert!(!other.is_finite() || error(*half) <= error(other));
                }
            }
            prop_assert_eq!(half.is_nan(), v.is_nan());
            prop_assert_eq!(half.is_infinite(), v.abs() >= 65_520.0);
        }
    }

    #[test]
    fn scales_and_multipliers(v in f32s(), other in scales()) {
        let normal = v.is_normal() && v > 0.0;
        prop_assert_eq!(Scale::new(v).is_ok(), normal);
        prop_assert_eq!(Multiplier::new(v).is_ok(), v > 0.0 && v < f32::INFINITY);
        prop_assert_eq!(Multiplier::new(v).map(Multiplier::get).unwrap_or(v).to_bits(), v.to_bits());
        prop_assert_eq!(other.times(v).ok(), Scale::new(other.get() * v).ok());
        prop_assert_eq!(Scale::from_absmax(v, 1e-6).ok(), Scale::new(if v / 127.0 > 1e-6 { v / 127.0 } else { 1e-6 }).ok());
        if let Ok(s) = Scale::new(v) {
            prop_assert_eq!(s.to_real().get(), v);
            prop_assert_eq!(s.ratio(other).get(), (f64::from(v) / f64::from(other.get())) as f32);
            prop_assert_eq!(format!("{s:?}"), format!("{v:e}"));
        }
    }

    #[test]
    fn the_three_orders_of_scaling(a in scales(), b in scales(), acc: i32) {
        let m = a.to_real();
        let (a, b, v) = (a.get(), b.get(), acc as f32);
        prop_assert_eq!(ScaleOrder::RowMajor.apply(m, Scale::new(b).unwrap(), Acc(acc)).to_bits(), (a * (b * v)).to_bits());
        prop_assert_eq!(ScaleOrder::ChannelMajor.apply(m, Scale::new(b).unwrap(), Acc(acc)).to_bits(), (b * (a * v)).to_bits());
        prop_assert_eq!(ScaleOrder::OneRow.apply(m, Scale::new(b).unwrap(), Acc(acc)).to_bits(), ((b * a) * v).to_bits());
    }

    /// A slice, a part of it at its position, and single values say the same; every quotient.
    #[test]
    fn slices_parts_and_single_values(values in prop::collection::vec(finite(), 1..60), s in scales(),
                                      rounding in every_rounding(), skip in 0usize..60) {
        let skip = skip.min(values.len());
        for quotient in Quotient::ALL {
            for overflow in Overflow::ALL {
                let rule = QuantRule { quotient, rounding, overflow };
                let mut codes = vec![0; values.len()];
                let status = rule.quantize_slice(&values, s, &mut codes);
                let mut part = vec![0; values.len() - skip];
                let rest = rule.quantize_part(&values[skip..], s, &mut part, skip);
                prop_assert_eq!(&part, &codes[skip..]);
                let mut lfsr = rounding.lfsr();
                let mut tally = Tally::of(overflow);
                let mut tally_of_rest = Tally::of(overflow);
                for (i, (v, code)) in values.iter().zip(&codes).enumerate() {
                    let units = match quotient {
                        Quotient::Divide => v / s.get(),
                        Quotient::ApproxReciprocal => v * sfu::rcp(s.get()),
                        Quotient::ScaledApproxDivision => sfu::diva(v * 100.0, s.get() * 100.0),
                        Quotient::RoundedReciprocal => v * f64::from(s.get()).recip() as f32,
                        Quotient::DivideInHalf => f32::from(f16::from_f32(v / s.get())),
                        Quotient::RoundedReciprocalInHalf => {
                            f32::from(f16::from_f32(v * f64::from(s.get()).recip() as f32))
                        }
                    };
                    let integer = rounding.round_at(units, random(&mut lfsr));
                    prop_assert_eq!(*code, overflow.to_i8(integer), "{:?} {}", rule, v);
                    tally.add(integer);
                    if i >= skip {
                        tally_of_rest.add(integer);
                    }
                    if rounding.lfsr().is_none() {
                        prop_assert_eq!(rule.quantize(*v, s), *code);
                        prop_assert_eq!(rule.integer(*v, s).to_bits(), integer.to_bits());
                    }
                }
                prop_assert_eq!(status, tally.status(values.len(), overflow));
                prop_assert_eq!(rest, tally_of_rest.status(part.len(), overflow));
            }
        }
    }

    /// M has its width and is the nearest, away on a tie; the product is exact and rounded once or twice.
    #[test]
    fn integer_factors(bits in 8u8..=32, factor in (1e-6f64..1.0, -3i32..4), first in prop::option::of(every_rounding()),
                       rule in every_rounding(), acc in any::<i64>(), narrow in 16u32..64, random: u16) {
        let factor = factor.0 * 2f64.powi(factor.1);
        let acc = acc >> narrow;
        let fixed = FixedFactor::new(Scaling::Fixed { bits, first }, factor).unwrap().unwrap();
        let top = 1i64 << (bits - 1);
        prop_assert!((top / 2..top).contains(&fixed.multiplier), "{:?}", fixed);
        let exact = factor * 2f64.powi(fixed.shift);
        prop_assert!((fixed.multiplier as f64 - exact).abs() <= 0.5, "{:?} for {}", fixed, exact);
        prop_assert_eq!(fixed.real(), fixed.multiplier as f64 / 2f64.powi(fixed.shift));
        prop_assert_eq!(fixed.first, first.map(|rule| (u32::from(bits) - 1, rule)));
        let product = i128::from(acc) * i128::from(fixed.multiplier);
        let digits = i32::from(bits) - 1;
        let want = match first {
            None if fixed.shift >= 0 => divided(rule, product, fixed.shift as u32, random),
            None => product << -fixed.shift,
            Some(first) => {
                let right = fixed.shift - digits;
                let high = divided(first, product << (-right).max(0), digits as u32, random);
                divided(rule, high, right.max(0) as u32, random)
            }
        };
        prop_assert_eq!(fixed.apply(acc, rule, random), want);
    }

    #[test]
    fn powers_of_two(factor in (0.5f64..1.0, -20i32..20), rule in every_rounding(), acc: i32, random: u16) {
        let factor = factor.0 * 2f64.powi(factor.1);
        let fixed = FixedFactor::new(Scaling::PowerOfTwo, factor).unwrap().unwrap();
        prop_assert_eq!((fixed.multiplier, fixed.first), (1, None));
        // No other power is nearer in logarithms.
        let miss = |shift: i32| (factor.log2() + f64::from(shift)).abs();
        prop_assert!(miss(fixed.shift) <= miss(fixed.shift + 1).min(miss(fixed.shift - 1)) + 1e-12);
        let want = match fixed.shift {
            left @ ..0 => i128::from(acc) << -left,
            right => divided(rule, acc.into(), right as u32, random),
        };
        prop_assert_eq!(fixed.apply(acc.into(), rule, random), want);
    }

    #[test]
    fn rows_of_accumulators(acc in prop::collection::vec(-2_000_000i64..2_000_000, 1..40), factor in 1e-5f64..1e-3,
                            rounding in every_rounding(), position in 0u64..1 << 40) {
        for scaling in [Scaling::F32, Scaling::PowerOfTwo, Scaling::Fixed { bits: 16, first: None }] {
            for overflow in Overflow::ALL {
                let rule = QuantRule { rounding, overflow, ..QuantRule::NEAREST_EVEN };
                let requantizer = Requantizer::new(scaling, factor, rule).unwrap();
                let fixed = FixedFactor::new(scaling, factor).unwrap();
                prop_assert_eq!(requantizer.fixed(), fixed);
                prop_assert_eq!(requantizer.real(), fixed.map_or(f64::from(factor as f32), FixedFactor::real));
                let mut codes = vec![0; acc.len()];
                let status = requantizer.codes(&acc, position, &mut codes);
                let mut lfsr = rounding.lfsr().map(|lfsr| lfsr.at(position));
                let mut tally = Tally::of(overflow);
                for (acc, code) in acc.iter().zip(codes) {
                    let bits = random(&mut lfsr);
                    let integer = match fixed {
                        Some(fixed) => fixed.apply(*acc, rounding, bits),
                        None => rounding.round_at(*acc as f32 * factor as f32, bits) as i128,
                    };
                    prop_assert_eq!(requantizer.integer(*acc, bits), integer);
                    prop_assert_eq!(code, overflow.fit(integer).0);
                    tally.add(integer as f32);
                }
                prop_assert_eq!(status, tally.status(acc.len(), overflow));
            }
        }
    }

    /// The register bit by bit: x^32 + x^22 + x^2 + x + 1 over GF(2).
    #[test]
    fn the_register_is_its_polynomial(seed: u32, steps in 0u64..100) {
        let mut walked = Lfsr::new(seed);
        let mut state = [false; 32];
        (0..32).for_each(|i| state[i] = seed.max(1) >> i & 1 == 1);
        for position in 0..steps {
            let bits = (0..16).map(|i| u16::from(state[i]) << i).sum::<u16>();
            prop_assert_eq!(Lfsr::new(seed).at(position), walked);
            prop_assert_eq!(walked.next_bits(), bits);
            let out = state[0];
            state.rotate_left(1);
            // What leaves at the bottom enters at the top (bit 31) and is added at the taps.
            for tap in [21, 1, 0] {
                state[tap] ^= out;
            }
        }
    }

    #[test]
    fn codes_to_reals(codes in prop::collection::vec(any::<i8>(), 0..70), s in scales(), skip in 0usize..9) {
        let codes = &codes[skip.min(codes.len())..];
        let mut values = vec![0.0; codes.len()];
        dequantize_slice(codes, s, &mut values);
        for (code, v) in codes.iter().zip(&values) {
            prop_assert_eq!(f64::from(*v), (f64::from(*code) * f64::from(s.get())) as f32 as f64);
        }
        let array = ndarray::Array2::from_shape_vec((1, values.len()), values).unwrap();
        let (q, status) = QTensor::quantize(&array, s, QuantRule::NEAREST_EVEN);
        prop_assert_eq!(q.codes.as_slice().unwrap(), codes);
        prop_assert_eq!((q.scale, status.values, status.saturated), (s, codes.len() as u64, 0));
        prop_assert_eq!(q.dequantize(), array);
    }
}

/// Nothing was quantized: nothing overflowed.
#[test]
fn an_empty_status_has_no_rate() {
    assert_eq!(Status::default().overflow_rate(), 0.0);
    assert_eq!(
        Tally::default().status(0, Overflow::Saturate),
        Status::default()
    );
}
