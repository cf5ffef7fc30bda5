//! Functions of the arithmetic against their definitions: f32 operations, what is composed of them, their
//! slices, and the fixed-point units of chips.

use crate::common::corners::{SPECIAL, f32s};
use proptest::prelude::*;
use scalescope_sim::arith::elementary;
use scalescope_sim::arith::function::{
    Beyond, Form, Function, FunctionRule, FunctionUnit, FunctionUnitRule, Inputs, Interpolation,
};
use scalescope_sim::arith::real::{Ieee, LANES, RealMath};
use scalescope_sim::arith::sfu::{self, CudaFast, CudaSubnormal, Fast};

/// Units of every form, narrow and wide.
fn units() -> impl Strategy<Value = (Function, FunctionUnitRule)> {
    let functions =
        proptest::sample::select(&[Function::Exp, Function::Softplus, Function::Silu][..]);
    (
        functions,
        0..4,
        1u8..4,
        4u8..=24,
        0u8..12,
        4u8..=24,
        0u32..4,
        0u32..4,
        any::<bool>(),
    )
        .prop_map(
            |(function, form, degree, input_bits, fraction, output_fraction, reach, cut, clamp)| {
                let input_fraction = fraction.min(input_bits - 1);
                // A range of a power of two on either side of zero, or below it, that covers every X for a clamp.
                let whole = input_bits - 1 - input_fraction;
                let reach = 1i32
                    << if clamp {
                        u32::from(whole).min(8)
                    } else {
                        reach
                    };
                let high = if function == Function::Exp { 0 } else { reach };
                let inputs = u64::from((high + reach).unsigned_abs()) << input_fraction;
                let segments = (inputs >> cut).clamp(1, 256) as u32;
                let form = match form {
                    0 => Form::Table {
                        entries: segments,
                        interpolation: Interpolation::Nearest,
                    },
                    1 => Form::Table {
                        entries: segments,
                        interpolation: Interpolation::Linear,
                    },
                    2 => Form::Polynomial { segments, degree },
                    _ if function == Function::Exp => Form::Shift,
                    _ => Form::Polynomial { segments, degree },
                };
                let covers = clamp && whole <= 8;
                let beyond = if covers {
                    Beyond::Clamp
                } else {
                    Beyond::Asymptote
                };
                let rule = FunctionUnitRule {
                    form,
                    input_bits,
                    input_fraction,
                    output_fraction,
                    low: -reach,
                    high,
                    beyond,
                };
                (function, rule)
            },
        )
}

/// Words times the bits of the widest, sign included; a unit is made once.
#[test]
fn what_units_cost() {
    let rule = FunctionUnitRule {
        form: Form::Table {
            entries: 256,
            interpolation: Interpolation::Linear,
        },
        input_bits: 16,
        input_fraction: 11,
        output_fraction: 16,
        low: -16,
        high: 0,
        beyond: Beyond::Asymptote,
    };
    // 1.0 is 2^16, 17 bits; SiLU of ±16 is 16 and a sign, 22 bits.
    assert_eq!(rule.memory_bits(Function::Exp), 257 * 17);
    let both = FunctionUnitRule { high: 16, ..rule };
    assert_eq!(both.memory_bits(Function::Silu), 257 * 22);
    assert_eq!(both.memory_bits(Function::Softplus), 257 * 21);
    let shift = FunctionUnitRule {
        form: Form::Shift,
        ..rule
    };
    assert_eq!(shift.memory_bits(Function::Exp), 0);
    assert!(FunctionRule::Unit(rule).is_unit() && !FunctionRule::Exact.is_unit());
    assert!(FunctionRule::Exact.unit(Function::Exp).is_none());
    let made = || FunctionRule::Unit(rule).unit(Function::Exp).unwrap();
    assert!(std::sync::Arc::ptr_eq(&made(), &made()));
    assert_eq!(made().words()[256], 1 << 16);
}

proptest! {
    #![proptest_config(ProptestConfig {
        failure_persistence: None, // A failure becomes a named test.
        ..ProptestConfig::default()
    })]

    /// Y of any X from the unit's own words, in f64; beyond the range the function's asymptote.
    #[test]
    fn units_are_their_tables((function, rule) in units(), x: i64) {
        prop_assert!(rule.validate(function).is_ok());
        let unit = FunctionUnit::new(function, rule);
        prop_assert_eq!(unit.rule(), &rule);
        let x = x >> (64 - rule.input_bits);
        let mut seen = Inputs::default();
        let y = unit.eval(x, &mut seen) as f64;
        let point = 2f64.powi(rule.input_fraction.into());
        let out = 2f64.powi(rule.output_fraction.into());
        let (low, high) = (f64::from(rule.low) * point, f64::from(rule.high) * point);
        let at = x as f64;
        let beyond = rule.form != Form::Shift && (at < low || at >= high);
        prop_assert_eq!(seen, Inputs { count: 1, low: x, high: x, beyond: beyond.into() });
        let words = unit.words();
        let held = if beyond && rule.beyond == Beyond::Clamp { at.clamp(low, high - 1.0) } else { at };
        // The segment, and how far into it.
        let place = |segments: u32| {
            let f = (held - low) / (high - low) * f64::from(segments);
            (f.floor() as usize, f - f.floor())
        };
        match rule.form {
            _ if beyond && rule.beyond == Beyond::Asymptote && at < low => prop_assert_eq!(y, 0.0),
            _ if beyond && rule.beyond == Beyond::Asymptote && function == Function::Exp => prop_assert_eq!(y, out),
            _ if beyond && rule.beyond == Beyond::Asymptote => prop_assert_eq!(y, (at / point * out + 0.5).floor()),
            Form::Table { entries, interpolation: Interpolation::Nearest } => {
                prop_assert_eq!(words.len(), entries as usize);
                prop_assert_eq!(y, words[place(entries).0] as f64);
            }
            Form::Table { entries, .. } => {
                prop_assert_eq!(words.len(), entries as usize + 1);
                let (i, f) = place(entries);
                let (y0, y1) = (words[i] as f64, words[i + 1] as f64);
                prop_assert_eq!(y, (y0 + (y1 - y0) * f + 0.5).floor());
            }
            Form::Polynomial { segments, degree } => {
                let terms = usize::from(degree) + 1;
                prop_assert_eq!(words.len(), segments as usize * terms);
                let (i, f) = place(segments);
                let exact = words[i * terms..][..terms].iter().rev().fold(0.0, |y, c| y * f + *c as f64) / 256.0;
                // Half a guard bit a product, and half a bit at the end.
                prop_assert!((y - exact).abs() <= 0.5 + f64::from(degree) / 512.0, "{} for {}", y, exact);
            }
            Form::Shift => {
                prop_assert!(words.is_empty());
                let x = x.min(0);
                let t = x + x.div_euclid(2) - x.div_euclid(16);
                let t = t as f64 / point;
                let exact = (1.0 + (t - t.floor())) * 2f64.powf(t.floor()) * out;
                prop_assert!(y <= exact && exact < y + 1.0, "{} for {}", y, exact);
            }
        }
        // By way of real numbers: the nearest X, and Y in units of the output.
        let mut seen = Inputs::default();
        prop_assert_eq!(unit.input(at / point), x);
        prop_assert_eq!(unit.real(at / point, &mut seen), y / out);
        let top = 1i128 << (rule.input_bits - 1);
        prop_assert_eq!([unit.fit(-top - 1), unit.fit(top)], [-top as i64, top as i64 - 1]);
    }

    #[test]
    fn inputs_add_up(a in prop::collection::vec(-400i64..400, 0..9), b in prop::collection::vec(-400i64..400, 0..9)) {
        let rule = FunctionUnitRule { low: -1, high: 1, input_fraction: 8, input_bits: 12, output_fraction: 8,
            form: Form::Table { entries: 16, interpolation: Interpolation::Nearest }, beyond: Beyond::Asymptote };
        let unit = FunctionUnit::new(Function::Silu, rule);
        let see = |values: &[i64]| {
            let mut seen = Inputs::default();
            for x in values {
                unit.eval(*x, &mut seen);
            }
            seen
        };
        let mut both = see(&a);
        both += see(&b);
        let all: Vec<i64> = a.iter().chain(&b).copied().collect();
        prop_assert_eq!(both, see(&all));
        prop_assert_eq!(both, Inputs {
            count: all.len() as u64,
            low: all.iter().copied().min().unwrap_or(0),
            high: all.iter().copied().max().unwrap_or(0),
            beyond: all.iter().filter(|x| !(-256..256).contains(*x)).count() as u64,
        });
    }

    #[test]
    fn correctly_rounded_operations(a in f32s(), b in f32s(), c in f32s()) {
        let same = |x: f32, y: f32| x.to_bits() == y.to_bits() || x.is_nan() && y.is_nan();
        prop_assert!(same(Ieee::mul(a, b), (f64::from(a) * f64::from(b)) as f32));
        prop_assert!(same(Ieee::add(a, b), (f64::from(a) + f64::from(b)) as f32));
        prop_assert!(same(Ieee::div(a, b), (f64::from(a) / f64::from(b)) as f32));
        prop_assert!(same(Ieee::fma(a, b, c), a.mul_add(b, c)));
        prop_assert!(same(Ieee::exp(a), elementary::exp(a)) && same(Ieee::exp_neg(a), elementary::exp(-a)));
        prop_assert!(same(Ieee::log1p(a), elementary::log1p(a)) && same(Ieee::operand(a), a));
        prop_assert!(same(CudaSubnormal::mul(a, b), a * b) && same(CudaSubnormal::add(a, b), a + b));
        prop_assert!(same(CudaSubnormal::fma(a, b, c), a.mul_add(b, c)));
        prop_assert!(same(CudaSubnormal::div(a, b), sfu::diva(a, b)));
        prop_assert!(same(CudaSubnormal::exp(a), sfu::expa(a)) && same(CudaSubnormal::exp_neg(a), sfu::expa(-a)));
        prop_assert!(same(CudaSubnormal::log1p(a), sfu::loga(a + 1.0)));
        prop_assert!(same(CudaSubnormal::softplus(a), sfu::loga(sfu::expa(a) + 1.0)));
        prop_assert!(same(CudaFast::exp(a), sfu::exp_fast(a)) && same(CudaFast::log1p(a), sfu::log1p_fast(a)));
    }

    #[test]
    fn composed_functions(n in f32s(), z in f32s()) {
        composed::<Ieee>(n, z)?;
        composed::<CudaFast>(n, z)?;
        let x = n;
        let threshold = |soft: f32, log: f32| if x > 20.0 { x.to_bits() == soft.to_bits() } else { same(soft, log) };
        prop_assert!(threshold(Ieee::softplus(x), elementary::log1p(elementary::exp(x))));
        prop_assert!(threshold(CudaFast::softplus(x), sfu::log1p_fast(sfu::exp_fast(x))));
    }

    /// Slices of odd lengths from odd places, each against the function of one value.
    #[test]
    fn slices_are_their_functions(values in prop::collection::vec(f32s(), 0..70), skip in 0usize..9, lanes in 0usize..5) {
        let values = &values[skip.min(values.len())..];
        slices::<Ieee>(values, lanes)?;
        slices::<CudaFast>(values, lanes)?;
        slices::<CudaSubnormal>(values, lanes)?;
        let flushed: Vec<f32> = values.iter().map(|v| sfu::flush(*v)).collect();
        slices::<Fast<true>>(&flushed, lanes)?;
    }
}

fn same(x: f32, y: f32) -> bool {
    x.to_bits() == y.to_bits() || x.is_nan() && y.is_nan()
}

fn composed<M: RealMath>(n: f32, z: f32) -> Result<(), TestCaseError> {
    let gate = M::div(n, M::add(1.0, M::exp_neg(z)));
    prop_assert!(same(M::times_sigmoid(n, z), gate));
    Ok(())
}

fn slices<M: RealMath>(values: &[f32], lanes: usize) -> Result<(), TestCaseError> {
    let z: Vec<f32> = values.iter().rev().copied().collect();
    let of = |work: fn(&mut [f32])| {
        let mut out = values.to_vec();
        work(&mut out);
        out
    };
    let mut gated = values.to_vec();
    M::times_sigmoid_slice(&mut gated, &z);
    let (soft, silu) = (of(M::softplus_slice), of(M::silu_slice));
    for (i, v) in values.iter().enumerate() {
        prop_assert!(same(soft[i], M::softplus(*v)), "softplus {:e}", v);
        prop_assert!(same(silu[i], M::times_sigmoid(*v, *v)), "silu {:e}", v);
        prop_assert!(
            same(gated[i], M::times_sigmoid(*v, z[i])),
            "gate {:e} {:e}",
            v,
            z[i]
        );
    }
    // Decays are of operands that are results already, and α is positive.
    let at = |i: usize| M::operand(values.get(i % values.len().max(1)).copied().unwrap_or(0.5));
    let alpha: [f32; LANES] = std::array::from_fn(|e| at(e).abs());
    let delta: Vec<[f32; LANES]> = (0..lanes)
        .map(|t| std::array::from_fn(|e| at(7 * t + e)))
        .collect();
    let mut decay = vec![[0.0; LANES]; lanes];
    M::decays(&alpha, &delta, &mut decay);
    for (t, row) in decay.iter().enumerate() {
        for (e, got) in row.iter().enumerate() {
            let want = M::exp_neg(M::mul(alpha[e], delta[t][e]));
            prop_assert!(
                same(*got, want),
                "decay of {:e} · {:e}",
                alpha[e],
                delta[t][e]
            );
        }
    }
    Ok(())
}

/// The threshold of softplus is at 20, not beside it.
#[test]
fn softplus_of_20() {
    let log = |x: f32| elementary::log1p(elementary::exp(x));
    assert_eq!(Ieee::softplus(20.0), log(20.0));
    assert_eq!(Ieee::softplus(20f32.next_up()), 20f32.next_up());
    assert_eq!(
        CudaFast::softplus(20.0),
        sfu::log1p_fast(sfu::exp_fast(20.0))
    );
    for v in SPECIAL {
        assert_eq!(Ieee::softplus(v).is_nan(), v.is_nan(), "{v}");
    }
}
