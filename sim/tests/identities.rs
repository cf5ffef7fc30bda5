//! The identities of the modes, as properties. Of whole modes `golden/tests/digests.rs` says them again.

use ndarray::Array2;
use proptest::prelude::*;
use scalescope_sim::arith::hadamard::HadamardSize;
use scalescope_sim::arith::quantizer::{Beyond, QUANTIZERS};
use scalescope_sim::arith::requant::{Divisor, QuantRule, Quotient};
use scalescope_sim::arith::round::Rounding;
use scalescope_sim::arith::saturate::Overflow;
use scalescope_sim::kernels::matmul_i8::{Sums, matmul_i8};
use scalescope_sim::profile::{CUDA_FAST, EXACT, TORCH};
use scalescope_sim::quant::QVector;
use scalescope_sim::quant::{QTensor, Scale};
use scalescope_sim::step::conv::{ConvWeight, ConvWindow, conv_silu, conv_silu_quantize};
use scalescope_sim::step::scan::{ScanInputs, ScanWeight, Source, selective_scan};

/// Scales whose codes all dequantize to normal numbers.
fn scale() -> impl Strategy<Value = Scale> {
    (f32::MIN_POSITIVE..1e30f32, -100i32..90, 1.0f32..2.0).prop_map(|(_, exponent, mantissa)| {
        Scale::new(mantissa * 2f32.powi(exponent)).expect("normal")
    })
}

fn saturating_rule() -> impl Strategy<Value = QuantRule> {
    prop_oneof![
        Just(QuantRule::NEAREST_EVEN),
        Just(QuantRule::HALF_AWAY),
        Just(QuantRule::HALF_AWAY_RECIPROCAL),
        Just(QuantRule::NEAREST_EVEN_RECIPROCAL),
    ]
}

proptest! {
    /// Identity 1: quantize(dequantize(q, s), s) = q, by division and by approximate reciprocal.
    #[test]
    fn round_trip(s in scale(), rule in saturating_rule()) {
        for q in i8::MIN..=i8::MAX {
            let real = s.get() * f32::from(q);
            prop_assert_eq!(rule.quantize(real, s), q);
        }
    }

    /// Identity 2: the scan on s·q computed inside equals the scan on s·q computed outside.
    #[test]
    fn scan_inside_or_outside(seed in 0u64..1000, l in 1usize..70, e in 1usize..40) {
        let codes = |rows: usize, cols: usize, salt: u64| {
            Array2::from_shape_fn((rows, cols), |(i, j)| {
                let x = (seed * 7919 + salt * 104_729 + (i * cols + j) as u64).wrapping_mul(0x9E37_79B9_7F4A_7C15);
                (x >> 56) as u8 as i8
            })
        };
        let n = 16;
        let weight = ScanWeight::int8(
            &QTensor { codes: codes(e, n, 1), scale: Scale::new(0.02).unwrap() },
            &QVector { codes: codes(1, e, 2).into_raw_vec_and_offset().0, scale: Scale::new(0.01).unwrap() },
            &QVector { codes: codes(1, e, 3).into_raw_vec_and_offset().0, scale: Scale::new(0.04).unwrap() },
        );
        let (u, dt, b, c, z) = (codes(l, e, 4), codes(l, e, 5), codes(l, n, 6), codes(l, n, 7), codes(l, e, 8));
        let s = |v: f32| Scale::new(v).unwrap();
        let real = QTensor { codes: u.clone(), scale: s(0.021) }.dequantize();
        for rules in [EXACT, TORCH, CUDA_FAST] {
            let mut inputs = ScanInputs {
                u: Source::Int8 { codes: &u, scale: s(0.021) },
                dt: Source::Int8 { codes: &dt, scale: s(0.043) },
                b: Source::Int8 { codes: &b, scale: s(0.017) },
                c: Source::Int8 { codes: &c, scale: s(0.019) },
                z: Some(Source::Int8 { codes: &z, scale: s(0.035) }),
                state: None,
            };
            let inside = selective_scan(&rules.prefill.scan, &weight, &inputs);
            inputs.u = Source::Real(&real);
            let outside = selective_scan(&rules.prefill.scan, &weight, &inputs);
            prop_assert_eq!(inside.y, outside.y);
            prop_assert_eq!(inside.state, outside.state);
        }
    }

    /// Identity 3: the conv's FP32 output, requantized by the conv's own rule, is its INT8 output; by
    /// `rne8(y / s)` it is too, but where y lies on a tie or, with an approximate reciprocal, beside one.
    #[test]
    fn requantized_conv_output(seed: u64, l in 1usize..40, e in 1usize..40, s_out in 0.01f32..0.1) {
        let codes = |rows: usize, cols: usize, salt: u64| {
            Array2::from_shape_fn((rows, cols), |(i, j)| {
                let x = (seed ^ salt << 32).wrapping_add((i * cols + j) as u64);
                (x.wrapping_mul(0x9E37_79B9_7F4A_7C15) >> 56) as u8 as i8
            })
        };
        let s = |v: f32| Scale::new(v).unwrap();
        let weight = ConvWeight::int8(
            &QTensor { codes: codes(e, 4, 1), scale: s(0.004) },
            &QVector { codes: codes(1, e, 2).into_raw_vec_and_offset().0, scale: s(0.01) },
        );
        let window = ConvWindow::Int8 { codes: codes(l + 3, e, 3), scale: s(0.03) };
        let s_out = s(s_out);
        for rules in [EXACT, TORCH, CUDA_FAST].map(|arithmetic| arithmetic.prefill.conv) {
            let real = conv_silu(rules.real, rules.form, &weight, &window, true);
            let (fused, status) =
                conv_silu_quantize(rules.real, rules.form, &weight, &window, rules.output, s_out);
            let (own, counted) = QTensor::quantize(&real, s_out, rules.output);
            prop_assert_eq!(&own, &fused);
            prop_assert_eq!(counted, status);
            let (nearest_even, _) = QTensor::quantize(&real, s_out, QuantRule::NEAREST_EVEN);
            let near = match rules.output.quotient {
                Quotient::Divide => 0.0,
                _ => 1e-4,
            };
            for ((y, a), b) in real.iter().zip(&fused.codes).zip(&nearest_even.codes) {
                let units = f64::from(*y) / f64::from(s_out.get());
                // A quotient rounds onto a tie from half an ulp away.
                let tie = ((units - units.floor()) - 0.5).abs();
                prop_assert!(a == b || a.abs_diff(*b) == 1 && tie <= near + units.abs() * 6e-8, "{} {} {}", units, a, b);
            }
        }
    }

    /// Identity 4: Hadamard is orthonormal: norms are kept, and the transpose undoes it.
    #[test]
    fn hadamard_is_orthonormal(x in prop::collection::vec(-100.0f32..100.0, 384)) {
        for n in [16usize, 12, 384, 40, 80, 28, 56, 20] {
            let size = HadamardSize::of(n).unwrap();
            let x = &x[..n];
            let mut h = x.to_vec();
            size.transform(&mut h);
            let scale = size.norm();
            let norm = |v: &[f32]| v.iter().map(|v| f64::from(*v).powi(2)).sum::<f64>();
            let (before, after) = (norm(x), norm(&h) * scale * scale);
            prop_assert!((after - before).abs() <= 1e-5 * before.max(1e-3));
            for (j, want) in x.iter().enumerate() {
                let back: f64 = (0..n).map(|i| f64::from(size.entry(i, j)) * f64::from(h[i])).sum();
                prop_assert!((back * scale * scale - f64::from(*want)).abs() < 1e-3);
            }
        }
    }

    /// Identity 5: an INT8 product gives the same i32 in any blocking and for any thread count.
    #[test]
    fn integer_product(l in 1usize..40, n in 1usize..40, k in 1usize..200, threads in 1usize..5) {
        let a = Array2::from_shape_fn((l, k), |(i, j)| ((i * 31 + j * 17) % 256) as u8 as i8);
        let b = Array2::from_shape_fn((n, k), |(i, j)| ((i * 13 + j * 29 + 5) % 256) as u8 as i8);
        let mut got = Array2::<i32>::zeros((l, n));
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
        let _ = pool.install(|| matmul_i8(&a, b.view(), &mut got, &Sums));
        for i in 0..l {
            for j in 0..n {
                let want: i64 = (0..k).map(|x| i64::from(a[(i, x)]) * i64::from(b[(j, x)])).sum();
                prop_assert_eq!(i64::from(got[(i, j)]), want);
            }
        }
    }

    /// Identity 6: saturation moves a value toward zero, at most to the grid's edge, and inside the
    /// range a value is at most half a step from its code.
    #[test]
    fn saturation_and_half_a_step(s in scale(), v in -300.0f32..300.0, rule in saturating_rule()) {
        let x = v * s.get();
        let back = f64::from(rule.quantize(x, s)) * f64::from(s.get());
        if (-128.5..127.5).contains(&v) {
            // The approximate reciprocal may be off by an ulp, which only matters near a tie.
            let slack = if rule.quotient == Quotient::Divide { 1e-6 } else { 1e-4 };
            prop_assert!((f64::from(x) - back).abs() <= f64::from(s.get()) * (0.5 + slack));
        } else {
            let edge = if v > 0.0 { 127 } else { -128 };
            prop_assert_eq!(rule.quantize(x, s), edge);
            prop_assert!(back.abs() <= f64::from(x).abs() + 0.5 * f64::from(s.get()));
        }
    }

    /// Identity 7: x ≤ y implies quant(x) ≤ quant(y); ties away are odd but for the grid's ends.
    #[test]
    fn monotone_and_odd(s in scale(), x in -200.0f32..200.0, y in -200.0f32..200.0, rule in saturating_rule()) {
        let (low, high) = if x <= y { (x, y) } else { (y, x) };
        prop_assert!(rule.quantize(low * s.get(), s) <= rule.quantize(high * s.get(), s));
        let positive = rule.quantize(x * s.get(), s);
        let negative = rule.quantize(-x * s.get(), s);
        if positive.abs_diff(0) < 127 && negative.abs_diff(0) < 127 {
            prop_assert_eq!(positive, -negative);
        }
    }

    /// A built-in quantizer is odd but for the code −128, moves a value within its segments by half a step at most,
    /// leaves what it made as it is, and keeps order. Two kinds are known not to: a second scale begins anew beyond
    /// the first one's codes; a logarithm keeps order, but not what it made.
    #[test]
    fn quantizers_with_segments(s in scale(), x in -700.0f32..700.0, y in -700.0f32..700.0, near in prop::bool::ANY) {
        let second = Divisor::from(s.times(4.5).unwrap());
        let y = if near { x + y / 350.0 } else { y };
        for quantizer in QUANTIZERS {
            let with = quantizer.prepare(s.into(), Quotient::RoundedReciprocal, Some(second));
            let of = |v: f32| {
                let mut value = [v];
                let status = with.quantize(&mut value);
                prop_assert_eq!(status.segments.iter().sum::<u64>(), 1);
                Ok((value[0], status))
            };
            let (x, y) = (x * s.get(), y * s.get());
            let ((qx, status), (qy, _)) = (of(x)?, of(y)?);
            let name = &quantizer.name;
            let word = with.word(x, &[x]);
            prop_assert_eq!(status.segments[word.segment], 1);
            match quantizer.segments.get(word.segment) {
                Some(segment) if status.saturated == 0 => {
                    let half = 0.500_1 * segment.step * f64::from(s.get());
                    prop_assert!((f64::from(qx) - f64::from(x)).abs() <= half, "{}: {} is {}", name, x, qx);
                    prop_assert!(word.code.unwrap() >= segment.codes[0] && word.code.unwrap() <= segment.codes[1]);
                }
                Some(_) => prop_assert!(qx.abs() < x.abs(), "{}: {} is {}", name, x, qx),
                None => prop_assert!(quantizer.beyond != Beyond::Keep || qx == x),
            }
            let logarithmic = matches!(quantizer.beyond, Beyond::Logarithmic { .. });
            let second_scale = matches!(quantizer.beyond, Beyond::SecondScale | Beyond::FoundScale);
            if !second_scale {
                prop_assert!((x <= y) == (qx <= qy) || qx == qy, "{}: {} {} are {} {}", name, x, y, qx, qy);
                // The last fine value below a border may round across it: 31.5 of quarter steps to 32.
                let across = with.word(qx, &[qx]).segment != word.segment;
                let again = of(qx)?.0;
                prop_assert!(again == qx || logarithmic || across, "{}: {} is {}", name, x, qx);
                prop_assert!(!across || (again - qx).abs() <= 0.5001 * s.get(), "{}: {} is {}", name, qx, again);
            }
            // Code −128 has no opposite: there −x saturates and x does not.
            let (mirrored, of_mirrored) = of(-x)?;
            if status.saturated == 0 && of_mirrored.saturated == 0 && !second_scale {
                prop_assert_eq!(mirrored, -qx, "{}: {}", name, x);
            }
        }
    }

    /// Wrapping keeps the low byte, saturation the nearest code: they agree inside the range, and
    /// outside it only where the low byte happens to be the grid's end.
    #[test]
    fn wrap_and_saturate_agree_inside(v in -1000.0f32..1000.0) {
        wrap_against_saturate(v);
    }
}

fn wrap_against_saturate(v: f32) {
    for rounding in Rounding::ALL {
        let i = rounding.round(v);
        let (wrapped, saturated) = (Overflow::Wrap.to_i8(i), Overflow::Saturate.to_i8(i));
        assert_eq!(
            (i64::from(wrapped) - i as i64) % 256,
            0,
            "the low byte of {i}"
        );
        if (-128.0..=127.0).contains(&i) {
            assert_eq!(wrapped, saturated);
        } else {
            assert_eq!(saturated, if i > 0.0 { i8::MAX } else { i8::MIN });
        }
    }
}

/// Found by proptest: not every value of a quantizer with segments is a fixed point.
#[test]
fn the_last_fine_value_rounds_across_its_border() {
    for (name, v, first, second) in [
        ("half-steps-even", 63.32679, 63.5, 64.0),
        ("quarter-steps", 31.4, 31.5, 32.0),
    ] {
        let quantizer = QUANTIZERS.iter().find(|q| q.name == name).unwrap();
        let one = Scale::new(1.0).unwrap();
        let with = quantizer.prepare(one.into(), Quotient::RoundedReciprocal, None);
        let mut value = [v];
        for expected in [first, second, second] {
            let _ = with.quantize(&mut value);
            assert_eq!(value, [expected], "{name}");
        }
    }
}

/// Found by proptest: the low byte of −896 is −128, which saturation gives too.
#[test]
fn wrap_to_the_end_of_the_grid() {
    wrap_against_saturate(-896.038);
    wrap_against_saturate(383.0);
}

/// Identity 5, the bound: the longest allowed dot product of the largest codes fits i32.
#[test]
fn no_overflow_up_to_the_stated_length() {
    let k = scalescope_sim::quant::Acc::MAX_LENGTH as i64;
    assert!(k * 128 * 128 <= i64::from(i32::MAX));
    assert!((k + 1) * 128 * 128 > i64::from(i32::MAX));
}

/// Where a second scale begins, a larger value may become a smaller one.
#[test]
fn a_second_scale_is_not_monotone() {
    let scale = Scale::new(1.0).unwrap();
    let second = Divisor::from(Scale::new(4.5).unwrap());
    for name in ["second-scale-even", "found-scale"] {
        let quantizer = QUANTIZERS.iter().find(|q| q.name == name).unwrap();
        let with = quantizer.prepare(scale.into(), Quotient::Divide, Some(second));
        // One of the second grid's steps for the third value: 571.5 / 127 = 4.5.
        let mut values = [127.4, 127.6, 571.5];
        let status = with.quantize(&mut values);
        let near = values.iter().zip([127.0f32, 126.0, 571.5]);
        assert!(
            near.clone().all(|(a, b)| (a - b).abs() < 1e-3),
            "{name}: {values:?}"
        );
        assert_eq!(status.segments, [1, 2, 0, 0], "{name}");
    }
}

/// At its two borders three segments meet within one step.
#[test]
fn three_segments_are_continuous() {
    let quantizer = QUANTIZERS
        .iter()
        .find(|q| q.name == "three-segments")
        .unwrap();
    let scale = Scale::new(0.5).unwrap();
    let with = quantizer.prepare(scale.into(), Quotient::RoundedReciprocal, None);
    for (border, step) in [(15.75f32, 0.25f32), (143.0, 4.0)] {
        for sign in [1.0, -1.0] {
            let at = sign * border * 0.5;
            let mut values = [at, f32::from_bits(at.to_bits() + 1)];
            let _ = with.quantize(&mut values);
            assert!((values[1] - values[0]).abs() <= 0.5 * step, "{values:?}");
            assert_ne!(
                with.word(at, &[]).segment,
                with.word(at + sign * 0.1, &[]).segment
            );
        }
    }
}
