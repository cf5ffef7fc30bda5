//! The special-function unit and what is built on it, against the functions they stand for.

use proptest::prelude::*;
use scalescope_sim::arith::real::RealMath;
use scalescope_sim::arith::requant::QuantRule;
use scalescope_sim::arith::sfu::{self, CudaFast, CudaSubnormal};
use scalescope_sim::quant::Scale;

/// |got − want| in units of the last place of `want`; subnormal values have that of 2^-126.
fn ulps(got: f32, want: f64) -> f64 {
    let exponent = (want.abs().log2().floor() as i32).max(-126);
    (f64::from(got) - want).abs() / 2f64.powi(exponent - 23)
}

#[test]
fn ulps_measures() {
    assert_eq!(ulps(1.0, 1.0), 0.0);
    assert_eq!(ulps(1.0 + f32::EPSILON, 1.0), 1.0);
    assert_eq!(ulps(0.0, 1.0), 8_388_608.0);
    assert_eq!(ulps(f32::from_bits(1), 2f64.powi(-148)), 1.0);
    assert!(ulps(f32::NAN, 1.0).is_nan() && ulps(f32::INFINITY, 1.0).is_infinite());
}

/// f32 bit patterns of [low, high], uniform in bits, so that every binade has its share.
fn between(low: f32, high: f32) -> impl Strategy<Value = f32> {
    assert!(0.0 < low && low < high);
    (low.to_bits()..=high.to_bits()).prop_map(f32::from_bits)
}

fn any_bits() -> impl Strategy<Value = f32> {
    any::<u32>().prop_map(f32::from_bits)
}

/// Zero, subnormals and their normal neighbours of either sign.
fn tiny() -> impl Strategy<Value = f32> {
    (0u32..0x0100_0000, any::<bool>()).prop_map(|(b, s)| f32::from_bits(b | u32::from(s) << 31))
}

const FEW: f32 = 1e-9;

proptest! {
    #![proptest_config(ProptestConfig {
        cases: 20_000,
        failure_persistence: None, // A failure becomes a named bit pattern in a test of its own.
        ..ProptestConfig::default()
    })]

    #[test]
    fn ex2_error(x in between(FEW, 126.0)) {
        prop_assert!(ulps(sfu::ex2(x), f64::from(x).exp2()) <= 1.4);
        prop_assert!(ulps(sfu::ex2(-x), f64::from(-x).exp2()) <= 2.1);
        prop_assert!(ulps(sfu::exp2a(-x), f64::from(-x).exp2()) <= 2.5);
    }

    #[test]
    fn ex2_subnormal_error(t in between(126.0, 150.0)) {
        prop_assert!(ulps(sfu::exp2a(-t), f64::from(-t).exp2()) <= 2.5);
    }

    #[test]
    fn rcp_error(x in between(2f32.powi(-126), 2f32.powi(126))) {
        prop_assert!(ulps(sfu::rcp(x), 1.0 / f64::from(x)) <= 1.0);
        prop_assert_eq!(sfu::rcp(-x), -sfu::rcp(x));
    }

    #[test]
    fn exp_error(x in between(FEW, 87.0)) {
        let bound = 2.1 + 1.2 * f64::from(x);
        for x in [x, -x] {
            let want = f64::from(x).exp();
            prop_assert!(ulps(sfu::exp_fast(x), want) <= bound);
            prop_assert!(ulps(sfu::expa(x), want) <= bound);
        }
    }

    #[test]
    fn expa_subnormal_error(x in between(87.0, 104.0)) {
        prop_assert!(ulps(sfu::expa(-x), f64::from(-x).exp()) <= 2.1 + 1.2 * f64::from(x));
    }

    #[test]
    fn log_error(a in between(f32::MIN_POSITIVE, f32::MAX)) {
        prop_assert!(ulps(sfu::log1p_fast(a), f64::from(a).ln_1p()) <= 0.9);
        if a > 1.0 {
            prop_assert!(ulps(sfu::loga(a), f64::from(a).ln()) <= 0.9);
        }
    }

    #[test]
    fn diva_error(n in between(1e-3, 1e3), d in between(1e-30, 1e30)) {
        prop_assert!(ulps(sfu::diva(n, d), f64::from(n) / f64::from(d)) <= 2.0);
    }

    /// Between any two inputs; neighbours are the hardest.
    #[test]
    fn monotone(x in between(FEW, 200.0), y in between(FEW, 200.0), near in any::<bool>()) {
        let y = if near { x.next_up() } else { y };
        let (x, y) = if x <= y { (x, y) } else { (y, x) };
        for f in [sfu::ex2, sfu::exp2a, sfu::exp_fast, sfu::expa] {
            prop_assert!(f(x) <= f(y));
            prop_assert!(f(-y) <= f(-x));
        }
        for f in [sfu::log1p_fast, |a| sfu::loga(1.0 + a)] {
            prop_assert!(f(x) <= f(y));
        }
        prop_assert!(sfu::rcp(x) >= sfu::rcp(y));
    }

    /// Flush to zero: operands and results, in every operation.
    #[test]
    fn fast_operations_flush(a in prop_oneof![any_bits(), tiny()],
                             b in prop_oneof![any_bits(), tiny()],
                             c in prop_oneof![any_bits(), tiny()]) {
        let zeroed = |x: f32| if x.is_subnormal() { 0f32.copysign(x) } else { x };
        let (za, zb, zc) = (zeroed(a), zeroed(b), zeroed(c));
        let pairs = [
            (CudaFast::mul(a, b), za * zb),
            (CudaFast::add(a, b), za + zb),
            (CudaFast::fma(a, b, c), za.mul_add(zb, zc)),
            (CudaFast::div(a, b), za * sfu::rcp(zb)),
        ];
        for (got, plain) in pairs {
            prop_assert!(got.to_bits() == zeroed(plain).to_bits() || got.is_nan() && plain.is_nan());
        }
        for value in [CudaFast::exp(a), CudaFast::exp_neg(a), CudaFast::log1p(a.abs())] {
            prop_assert!(!value.is_subnormal());
        }
        prop_assert_eq!(sfu::flush(a).to_bits(), zeroed(a).to_bits());
    }

    /// Modes identity 1: every code survives dequantization and quantization, whichever quotient.
    #[test]
    fn round_trip(scale in between(f32::MIN_POSITIVE, f32::MAX / 128.0)) {
        let s = Scale::new(scale).unwrap();
        let values: Vec<f32> = (-128..=127).map(|q| CudaFast::mul(scale, q as f32)).collect();
        for rule in [
            QuantRule::NEAREST_EVEN,
            QuantRule::HALF_AWAY,
            QuantRule::HALF_AWAY_RECIPROCAL,
        ] {
            let mut codes = [0i8; 256];
            let _ = rule.quantize_slice(&values, s, &mut codes);
            for (q, (v, code)) in (-128..=127).zip(values.iter().zip(codes)) {
                prop_assert_eq!((rule.quantize(*v, s), code), (q, q), "{:?}", rule);
            }
        }
    }
}

/// The special operands of section 6, and what the two arithmetics make of them.
#[test]
fn special_operands() {
    let (inf, nan, subnormal) = (f32::INFINITY, f32::NAN, f32::from_bits(1));
    let bits = f32::to_bits;
    assert_eq!(bits(sfu::ex2(nan)), 0x7FFF_FFFF);
    assert_eq!(bits(sfu::ex2(-nan)), 0x7FFF_FFFF);
    assert_eq!(bits(sfu::rcp(nan)), 0x7FFF_FFFF);
    assert_eq!([sfu::ex2(inf), sfu::ex2(128.0)], [inf, inf]);
    assert_eq!([sfu::ex2(-inf), sfu::ex2(-127.0)].map(bits), [0, 0]);
    assert_eq!(sfu::ex2(-126.0), f32::MIN_POSITIVE);
    assert_eq!([0.0, -0.0, subnormal, -subnormal].map(sfu::ex2), [1.0; 4]);
    assert_eq!([0.0, subnormal].map(sfu::rcp), [inf, inf]);
    assert_eq!([-0.0, -subnormal].map(sfu::rcp), [-inf, -inf]);
    assert_eq!([inf, 2f32.powi(127)].map(|x| bits(sfu::rcp(x))), [0, 0]);
    assert_eq!(bits(sfu::rcp(-inf)), 0x8000_0000);
    assert_eq!(sfu::rcp(2f32.powi(126)), f32::MIN_POSITIVE);

    assert_eq!(
        [0.0, -0.0].map(|a| bits(sfu::log1p_fast(a))),
        [0, 0x8000_0000]
    );
    assert_eq!(bits(sfu::log1p_fast(subnormal)), 0);
    assert_eq!([sfu::log1p_fast(inf), sfu::loga(inf)], [inf, inf]);
    assert!(sfu::log1p_fast(nan).is_nan() && sfu::loga(nan).is_nan());
    assert_eq!(bits(sfu::loga(1.0)), 0);

    // Scaled division reaches where rcp alone flushes.
    assert_eq!(sfu::diva(2f32.powi(127), 2f32.powi(127)), 1.0);
    assert_eq!(sfu::diva(subnormal, subnormal), 1.0);
    assert_eq!(CudaFast::div(2f32.powi(127), 2f32.powi(127)), 0.0);
    // exp(-100) is subnormal: flushed in prefill, kept in decode.
    assert_eq!(bits(CudaFast::exp(-100.0)), 0);
    assert!(CudaSubnormal::exp(-100.0).is_subnormal());
}

/// Decode has no threshold: above 20 its softplus is loga(expa(x) ⊕ 1), infinite where expa is.
#[test]
fn softplus_of_decode_has_no_threshold() {
    assert_eq!(CudaFast::softplus(100.0), 100.0);
    assert_eq!(CudaSubnormal::softplus(100.0), f32::INFINITY);
    let x = 30.1;
    let composed = sfu::loga(sfu::expa(x) + 1.0);
    assert_eq!(CudaSubnormal::softplus(x), composed);
}
