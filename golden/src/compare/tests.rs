mod traces;

use super::*;
use ndarray::{Array2, array};
use scalescope_sim::trace::TracePoint;
use serde_json::json;

fn one(x: impl Into<Value>, y: impl Into<Value>, tolerance: Tolerance) -> PointResult {
    let mut result = PointResult::named("p", tolerance);
    result.add_value(0, &x.into(), &y.into()).unwrap();
    result
}

impl From<Array2<i8>> for Value {
    fn from(a: Array2<i8>) -> Self {
        Value::I8(a)
    }
}

impl From<Array2<f32>> for Value {
    fn from(a: Array2<f32>) -> Self {
        Value::F32(a)
    }
}

fn f16s(a: Array2<f32>) -> Value {
    Value::F16(a.mapv(f16::from_f32))
}

#[test]
fn codes_compare_exactly() {
    let r = one(
        array![[1i8, -128], [3, 4]],
        array![[1i8, 127], [3, 5]],
        Tolerance::Exact,
    );
    assert_eq!(
        (r.compared, r.mismatched, r.max_abs_lsb, r.ulp_max),
        (4, 2, Some(255), None)
    );
    assert_eq!(r.max_abs_error, 255.0);
    let first = r.first.unwrap();
    assert_eq!(
        (first.index, first.expected, first.found),
        (vec![0, 0, 1], -128.0, 127.0)
    );
    let r = one(array![[1i8, 2]], array![[1i8, 2]], Tolerance::Exact);
    assert_eq!((r.mismatched, r.max_abs_lsb, r.first), (0, Some(0), None));
    // A tolerance of one step is one step.
    let (x, y) = (array![[1i8, 2, 3]], array![[1i8, 3, 5]]);
    let r = one(x.clone(), y.clone(), Tolerance::Atol(1.0));
    assert_eq!(
        (r.mismatched, r.within_tolerance, r.max_abs_lsb),
        (1, 1, Some(2))
    );
    assert_eq!(r.first.unwrap().index, [0, 0, 2]);
    // Codes have no ulp to be forgiven.
    assert_eq!(one(x, y, Tolerance::Ulp(9)).mismatched, 2);
}

#[test]
fn floats_compare_by_bits() {
    let x = array![[1.0f32, 2.0]];
    let y = array![[1.0f32, 2.0f32.next_up()]];
    let r = one(x.clone(), y.clone(), Tolerance::Exact);
    assert_eq!((r.mismatched, r.ulp_max, r.max_abs_lsb), (1, Some(1), None));
    assert_eq!(one(x.clone(), x.clone(), Tolerance::Exact).ulp_max, Some(0));
    let r = one(x.clone(), y.clone(), Tolerance::Ulp(1));
    assert_eq!((r.mismatched, r.within_tolerance), (0, 1));
    assert_eq!(one(x.clone(), y.clone(), Tolerance::Ulp(0)).mismatched, 1);
    assert_eq!(
        one(x.clone(), y.clone(), Tolerance::Atol(1e-6)).mismatched,
        0
    );
    assert_eq!(one(x, y, Tolerance::Atol(0.0)).mismatched, 1);
}

#[test]
fn the_sign_of_zero_is_a_mismatch_and_counted_apart() {
    let r = one(
        array![[0.0f32, 1.0]],
        array![[-0.0f32, 1.0]],
        Tolerance::Exact,
    );
    assert_eq!(
        (r.mismatched, r.signed_zeros, r.ulp_max, r.max_abs_error),
        (1, 1, Some(0), 0.0)
    );
    assert!(r.first.unwrap().found.is_sign_negative());
    // Zero against anything else is no matter of sign.
    let (x, y) = (array![[0.0f32, 1.0]], array![[1.0f32, 0.0]]);
    assert_eq!(one(x, y, Tolerance::Exact).signed_zeros, 0);
    let r = one(array![[0.0f32]], array![[-0.0f32]], Tolerance::Atol(0.0));
    assert_eq!((r.mismatched, r.within_tolerance), (0, 1));
}

#[test]
fn nan_and_infinity_never_pass() {
    let rules = [
        Tolerance::Exact,
        Tolerance::Atol(1e300),
        Tolerance::Ulp(u64::MAX),
        Tolerance::LogitsF16,
    ];
    for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
        for rule in rules {
            for (x, y) in [(bad, bad), (1.0, bad), (bad, 1.0)] {
                let r = one(array![[x, 1.0]], array![[y, 1.0]], rule);
                assert_eq!((r.mismatched, r.non_finite), (1, 1), "{x} {y} {rule}");
                let r = one(f16s(array![[x]]), f16s(array![[y]]), rule);
                assert_eq!((r.mismatched, r.non_finite), (1, 1), "{x} {y} {rule}");
                let summary = Summary {
                    points: vec![r],
                    missing: vec![],
                };
                assert_eq!(summary.exit_code(), 2);
                assert!(
                    !serde_json::to_string(&summary)
                        .unwrap()
                        .contains("null,\"found\":null")
                );
            }
        }
    }
}

#[test]
fn logits_have_the_stated_tolerance_and_no_more() {
    let rule = Tolerance::of(TracePoint::Logits);
    assert_eq!(rule, Tolerance::LogitsF16);
    for point in TracePoint::ALL {
        assert_eq!(
            Tolerance::of(point) == Tolerance::Exact,
            point != TracePoint::Logits
        );
    }
    // At 8 one ulp of binary16 is 2^-7: one passes, two do not.
    let ulp = 0.0078125f32;
    let x = f16s(array![[8.0, 8.0, 0.0, 0.0]]);
    let y = f16s(array![[8.0 + ulp, 8.0 + 2.0 * ulp, 9e-5, 2e-4]]);
    let r = one(x.clone(), y.clone(), rule);
    assert_eq!((r.mismatched, r.within_tolerance), (2, 2));
    assert_eq!(r.first.as_ref().unwrap().index, [0, 0, 1]);
    // On two sides of zero the distance counts, not the sum.
    let (x6, y6) = (f16s(array![[6e-5, 4e-5]]), f16s(array![[-6e-5, -4e-5]]));
    let r = one(x6, y6, rule);
    assert_eq!((r.mismatched, r.within_tolerance), (1, 1));
    // FP32 is judged in binary16, and may stand against it.
    let y32 = Value::F32(array![[8.0 + ulp, 8.0 + 2.0 * ulp, 9e-5, 2e-4]]);
    for (x, y) in [(x.clone(), y32.clone()), (y32.clone(), x.clone())] {
        let r = one(x, y, rule);
        assert_eq!((r.mismatched, r.compared), (2, 4));
    }
    let x32 = Value::F32(array![[8.0, 8.0, 0.0, 0.0]]);
    assert_eq!(one(x32, y32, rule).mismatched, 2);
    // A finite value beyond binary16 is far from any.
    assert_eq!(one(array![[1e6f32]], array![[2e6f32]], rule).mismatched, 1);
}

#[test]
fn shapes_and_types_must_agree() {
    let mut r = PointResult::named("p", Tolerance::Exact);
    let narrow = Value::I8(array![[1, 2]]);
    let error = r
        .add_value(0, &narrow, &Value::I8(array![[1], [2]]))
        .unwrap_err();
    assert_eq!(error.to_string(), "p: expected i8 [1, 2], found i8 [2, 1]");
    let error = r
        .add_value(0, &narrow, &Value::F32(array![[1.0, 2.0]]))
        .unwrap_err();
    assert_eq!(error.to_string(), "p: expected i8, found f32");
    // Binary16 and FP32 are compared as reals, whichever side has which.
    let (f16, same) = (f16s(array![[1.0]]), Value::F32(array![[1.0]]));
    let next = Value::F32(array![[1.0f32.next_up()]]);
    for (x, y, mismatched) in [
        (&f16, &same, 0),
        (&same, &f16, 0),
        (&f16, &next, 1),
        (&next, &f16, 1),
    ] {
        let mut r = PointResult::named("p", Tolerance::Exact);
        r.add_value(0, x, y).unwrap();
        assert_eq!((r.compared, r.mismatched), (1, mismatched));
    }
    let codes = [1i8, 2, 3];
    assert!(
        r.add(&[], &[2, 2], (&codes[..]).into(), (&codes[..]).into())
            .is_err()
    );
    r.add(&[], &[3], (&codes[..]).into(), (&codes[..]).into())
        .unwrap();
    assert_eq!(r.compared, 3);
}

#[test]
fn tolerances_are_set_by_point_and_by_place() {
    let rules = Tolerances::parse(["ssm_y:1e-3", "layer_07/ssm_y:0.5", "logits:0"]).unwrap();
    let ssm_y = |layer| rules.of(Place::layer(layer, TracePoint::SsmY));
    assert_eq!(ssm_y(0), Tolerance::Atol(1e-3));
    assert_eq!(ssm_y(7), Tolerance::Atol(0.5));
    assert_eq!(
        rules.of(Place::end(TracePoint::Logits)),
        Tolerance::Atol(0.0)
    );
    assert_eq!(
        rules.of(Place::layer(0, TracePoint::ConvOut)),
        Tolerance::Exact
    );
    for bad in [
        "ssm_y",
        "ssm_y:",
        "ssm_y:-1",
        "ssm_y:nan",
        "ssm_y:inf",
        "ssm_z:1",
        ":1",
        "",
    ] {
        let error = Tolerances::parse([bad]).unwrap_err();
        assert!(
            error.to_string().starts_with("--atol: expected"),
            "{bad}: {error}"
        );
    }
}

#[test]
fn a_tolerance_set_for_a_point_holds_in_every_block() {
    let mut rules = Tolerances::default();
    let place = Place::layer(4, TracePoint::SsmY);
    assert_eq!(rules.set_for(place), None);
    rules.set(TracePoint::SsmY, Tolerance::Ulp(3));
    assert_eq!(rules.set_for(place), Some(Tolerance::Ulp(3)));
    assert_eq!(rules.of(place), Tolerance::Ulp(3));
}

#[test]
fn json_has_the_promised_form() {
    let mut result = PointResult::new(Place::layer(7, TracePoint::ConvOut), Tolerance::Exact);
    result
        .add_value(0, &Value::I8(array![[1, 2]]), &Value::I8(array![[1, 4]]))
        .unwrap();
    let summary = Summary {
        points: vec![result],
        missing: vec!["final/logits".into()],
    };
    assert_eq!(
        serde_json::to_value(&summary).unwrap(),
        json!({
            "verdict": "mismatch",
            "compared": 2,
            "mismatched": 1,
            "non_finite": 0,
            "missing": ["final/logits"],
            "points": [{
                "layer": 7,
                "point": "conv_out",
                "compared": 2,
                "mismatched": 1,
                "within_tolerance": 0,
                "non_finite": 0,
                "signed_zeros": 0,
                "max_abs_lsb": 2,
                "ulp_max": null,
                "max_abs_error": 2.0,
                "tolerance": "exact",
                "first": {"index": [0, 0, 1], "expected": 2.0, "found": 4.0}
            }]
        })
    );
}

#[test]
fn a_summary_says_what_it_counts() {
    let of = |points: &[&PointResult]| Summary {
        points: points.iter().copied().cloned().collect(),
        missing: vec![],
    };
    let equal = one(array![[1i8, 2]], array![[1i8, 2]], Tolerance::Exact);
    let differs = one(array![[1.0f32]], array![[2.0f32]], Tolerance::Exact);
    let nan = one(array![[1.0f32]], array![[f32::NAN]], Tolerance::Exact);
    let summary = of(&[&equal]);
    assert_eq!(
        (summary.verdict(), summary.exit_code()),
        (Verdict::Equal, 0)
    );
    assert_eq!(summary.to_string(), "compared 2, mismatched 0, missing 0");
    let summary = of(&[&equal, &differs]);
    assert_eq!(
        (summary.verdict(), summary.exit_code()),
        (Verdict::Mismatch, 1)
    );
    assert_eq!(summary.to_string(), "compared 3, mismatched 1, missing 0");
    let summary = of(&[&equal, &differs, &nan]);
    assert_eq!(
        (summary.verdict(), summary.exit_code()),
        (Verdict::NonFinite, 2)
    );
    assert_eq!(
        summary.to_string(),
        "compared 4, mismatched 2, missing 0, NaN or infinite 1"
    );
}

#[test]
fn what_was_not_compared_never_passes() {
    assert_eq!(Summary::default().exit_code(), 2);
    let hollow = PointResult::named("empty", Tolerance::Exact);
    let full = one(array![[1i8]], array![[1i8]], Tolerance::Exact);
    let summary = Summary {
        points: vec![full.clone(), hollow],
        missing: vec![],
    };
    assert_eq!(summary.verdict(), Verdict::Incomplete);
    let summary = Summary {
        points: vec![full],
        missing: vec!["final/logits".into()],
    };
    assert_eq!(
        (summary.verdict(), summary.exit_code()),
        (Verdict::Incomplete, 2)
    );
}
