use super::*;
use half::f16;
use ndarray::Array2;

fn scale(value: f32) -> Scale {
    Scale::new(value).unwrap()
}

fn i8s(values: &[i8]) -> Value {
    Value::I8(Array2::from_shape_vec((1, values.len()), values.to_vec()).unwrap())
}

fn f32s(values: &[f32]) -> Value {
    Value::F32(Array2::from_shape_vec((1, values.len()), values.to_vec()).unwrap())
}

fn f16s(values: &[f32]) -> Value {
    let values = values.iter().map(|v| f16::from_f32(*v)).collect::<Vec<_>>();
    Value::F16(Array2::from_shape_vec((1, values.len()), values).unwrap())
}

fn of(metrics: &Metrics, name: &str) -> f64 {
    metrics
        .get(Metric::from_name(name).unwrap())
        .value()
        .unwrap_or_else(|| panic!("{name}"))
}

fn plain(x: &Value, y: &Value) -> Metrics {
    measure((x, None), (y, None)).unwrap()
}

#[test]
fn the_table_has_the_names_of_the_conventions_once_each() {
    let names: Vec<_> = METRICS.iter().map(|row| row.name).collect();
    assert_eq!(
        names,
        [
            "mismatch_rate",
            "max_abs_lsb",
            "max_abs_error",
            "mean_error",
            "mse",
            "rmse_over_scale",
            "normalized_l2",
            "sqnr_db",
            "cosine",
            "ulp_max",
            "saturation_rate",
            "grid_occupancy",
            "scale_ratio",
        ]
    );
    for row in &METRICS {
        assert_eq!(row.metric.info().name, row.name);
        assert_eq!(row.metric.name(), row.name);
        assert_eq!(Metric::from_name(row.name), Some(row.metric));
        assert!(!row.doc.is_empty() && !row.unit.is_empty());
    }
    assert_eq!(
        METRICS
            .iter()
            .filter(|r| r.better == Better::Higher)
            .count(),
        3
    );
}

#[test]
fn codes_by_hand() {
    // x = 0.5·(3, −4, 0, 127), y = 0.5·(3, −2, 0, 127): one error of two steps, +1.0.
    let (x, y) = (i8s(&[3, -4, 0, 127]), i8s(&[3, -2, 0, 127]));
    let s = Some(scale(0.5));
    let m = measure((&x, s), (&y, s)).unwrap();
    assert_eq!((m.compared, m.mismatched, m.non_finite), (4, 1, 0));
    assert_eq!(of(&m, "mismatch_rate"), 0.25);
    assert_eq!(of(&m, "max_abs_lsb"), 2.0);
    assert_eq!(of(&m, "max_abs_error"), 1.0);
    assert_eq!(of(&m, "mean_error"), 0.25);
    assert_eq!(of(&m, "mse"), 0.25);
    assert_eq!(of(&m, "rmse_over_scale"), 1.0);
    // ‖x‖² = 2.25 + 4 + 63.5² = 4038.5, ‖x−y‖ = 1.
    assert!((of(&m, "normalized_l2") - 1.0 / 4038.5f64.sqrt()).abs() < 1e-15);
    assert!((of(&m, "sqnr_db") - 10.0 * 4038.5f64.log10()).abs() < 1e-12);
    let cosine = (2.25 + 2.0 + 4032.25) / (4038.5f64.sqrt() * 4035.5f64.sqrt());
    assert!((of(&m, "cosine") - cosine).abs() < 1e-15);
    assert_eq!(m.get(Metric::UlpMax), Reading::NotApplicable);
    assert_eq!(of(&m, "saturation_rate"), 0.25);
    assert_eq!(of(&m, "grid_occupancy"), 4.0 / 256.0);
    assert_eq!(of(&m, "scale_ratio"), 1.0);
    // Without scales: the same in steps of 1.
    let m = plain(&x, &y);
    assert_eq!(
        (
            of(&m, "max_abs_lsb"),
            of(&m, "max_abs_error"),
            of(&m, "scale_ratio")
        ),
        (2.0, 2.0, 1.0)
    );
}

#[test]
fn the_widest_code_difference_does_not_wrap() {
    let m = plain(&i8s(&[-128, 127]), &i8s(&[127, -128]));
    assert_eq!(of(&m, "max_abs_lsb"), 255.0);
    assert_eq!(of(&m, "mean_error"), 0.0);
    assert_eq!(of(&m, "saturation_rate"), 1.0);
}

#[test]
fn codes_on_two_grids_are_compared_by_value() {
    let (x, y) = (i8s(&[2, 4]), i8s(&[1, 2]));
    let m = measure((&x, Some(scale(0.5))), (&y, Some(scale(1.0)))).unwrap();
    assert!(m.is_equal());
    let m = measure((&x, Some(scale(0.5))), (&y, Some(scale(0.5)))).unwrap();
    assert_eq!((m.mismatched, of(&m, "max_abs_lsb")), (2, 2.0));
    // 2.0 against 2.5 on a grid of 0.25: two steps; max|x| = 2 of a reach of 31.75.
    let m = measure(
        (&i8s(&[4]), Some(scale(0.5))),
        (&i8s(&[10]), Some(scale(0.25))),
    )
    .unwrap();
    assert_eq!(of(&m, "max_abs_lsb"), 2.0);
    assert_eq!(of(&m, "scale_ratio"), 2.0 / 31.75);
}

#[test]
fn codes_against_floats_need_the_scale() {
    let (x, y) = (f32s(&[1.0, -2.0, 0.1]), i8s(&[2, -4, 0]));
    let m = measure((&x, None), (&y, Some(scale(0.5)))).unwrap();
    assert_eq!(m.mismatched, 1);
    assert!((of(&m, "max_abs_lsb") - 0.2).abs() < 1e-7);
    assert_eq!(of(&m, "grid_occupancy"), 3.0 / 256.0);
    assert_eq!(m.get(Metric::UlpMax), Reading::NotApplicable);
    let error = measure((&x, None), (&y, None)).unwrap_err();
    assert!(
        error.to_string().contains("scale of the found codes"),
        "{error}"
    );
    // The other way round there is no grid of y to speak of.
    let m = measure((&y, Some(scale(0.5))), (&x, None)).unwrap();
    assert_eq!(m.get(Metric::ScaleRatio), Reading::NotApplicable);
    assert_eq!(m.get(Metric::SaturationRate), Reading::NotApplicable);
    assert!(m.get(Metric::MaxAbsLsb).value().is_some());
}

#[test]
fn floats_by_hand() {
    let (x, y) = (f32s(&[3.0, 4.0]), f32s(&[3.0, 4.0f32.next_up()]));
    let m = plain(&x, &y);
    let ulp = f64::from(4.0f32.next_up()) - 4.0;
    assert_eq!(
        (m.mismatched, of(&m, "ulp_max"), of(&m, "max_abs_error")),
        (1, 1.0, ulp)
    );
    assert_eq!(of(&m, "normalized_l2"), ulp / 5.0);
    for name in [
        "max_abs_lsb",
        "rmse_over_scale",
        "saturation_rate",
        "grid_occupancy",
        "scale_ratio",
    ] {
        assert_eq!(
            m.get(Metric::from_name(name).unwrap()),
            Reading::NotApplicable,
            "{name}"
        );
    }
    // 20·log10(5/0.5) = 20 dB.
    let m = plain(&f32s(&[3.0, 4.0]), &f32s(&[3.0, 4.5]));
    assert!((of(&m, "sqnr_db") - 20.0).abs() < 1e-12);
    // Opposite and orthogonal.
    assert_eq!(
        of(&plain(&f32s(&[1.0, 2.0]), &f32s(&[-1.0, -2.0])), "cosine"),
        -1.0
    );
    assert_eq!(
        of(&plain(&f32s(&[1.0, 0.0]), &f32s(&[0.0, 1.0])), "cosine"),
        0.0
    );
    // Binary16 against FP32: by value, distance in binary16.
    let m = plain(&f16s(&[1.0, 2.0]), &f32s(&[1.0, 2.001]));
    assert_eq!((m.mismatched, of(&m, "ulp_max")), (1, 1.0));
    let m = plain(&f32s(&[1.0, 2.001]), &f16s(&[1.0, 2.0]));
    assert_eq!((m.mismatched, of(&m, "ulp_max")), (1, 1.0));
    for (x, y) in [(f16s(&[1.0]), f32s(&[1.0])), (f32s(&[1.0]), f16s(&[1.0]))] {
        assert!(plain(&x, &y).is_equal());
    }
    assert_eq!(of(&plain(&f16s(&[1.0]), &f32s(&[1e6])), "ulp_max"), 65535.0);
}

#[test]
fn equality_is_infinite_quality_and_nothing_else() {
    for v in [
        f32s(&[1.0, -3.0]),
        f16s(&[1.0, 2.0]),
        i8s(&[5, -7]),
        f32s(&[0.0, 0.0]),
    ] {
        let m = plain(&v, &v);
        assert!(m.is_equal());
        assert_eq!(of(&m, "sqnr_db"), f64::INFINITY);
        assert_eq!(of(&m, "cosine"), 1.0);
        assert_eq!(of(&m, "normalized_l2"), 0.0);
    }
}

#[test]
fn a_reference_of_zeros_forgives_nothing() {
    let m = plain(&f32s(&[0.0, 0.0]), &f32s(&[0.0, 1e-30]));
    assert_eq!(of(&m, "normalized_l2"), f64::INFINITY);
    assert_eq!(of(&m, "sqnr_db"), f64::NEG_INFINITY);
    assert_eq!(of(&m, "cosine"), 0.0);
    assert!(of(&m, "ulp_max") > 1e8);
    assert!(!m.is_equal());
}

#[test]
fn the_sign_of_zero_is_a_mismatch_without_error() {
    for (x, y) in [
        (f32s(&[0.0]), f32s(&[-0.0])),
        (f16s(&[0.0]), f16s(&[-0.0])),
        (f16s(&[0.0]), f32s(&[-0.0])),
    ] {
        let m = plain(&x, &y);
        assert_eq!(
            (m.mismatched, of(&m, "ulp_max"), of(&m, "max_abs_error")),
            (1, 0.0, 0.0)
        );
        assert!(!m.is_equal());
    }
}

#[test]
fn nan_and_infinity_fail_even_against_themselves() {
    for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
        for (x, y) in [
            ([1.0, bad], [1.0, bad]),
            ([1.0, bad], [1.0, 2.0]),
            ([1.0, 2.0], [1.0, bad]),
        ] {
            for (x, y) in [(f32s(&x), f32s(&y)), (f16s(&x), f16s(&y))] {
                let m = plain(&x, &y);
                assert_eq!((m.non_finite, m.mismatched), (1, 1));
                assert!(!m.is_equal());
                assert_eq!(of(&m, "mismatch_rate"), 0.5);
                for (info, reading) in m.iter().skip(1) {
                    assert!(
                        matches!(reading, Reading::NonFinite | Reading::NotApplicable),
                        "{}: {reading:?}",
                        info.name
                    );
                }
            }
        }
    }
    // Codes against a float gone bad.
    let m = measure((&f32s(&[f32::NAN]), None), (&i8s(&[1]), Some(scale(1.0)))).unwrap();
    assert_eq!(m.get(Metric::MaxAbsLsb), Reading::NonFinite);
    assert_eq!(of(&m, "grid_occupancy"), 1.0 / 256.0);
}

#[test]
fn nothing_to_compare_is_an_error() {
    assert!(Accumulator::new(None, None).finish().is_err());
    let empty = Value::F32(Array2::zeros((0, 3)));
    assert!(measure((&empty, None), (&empty, None)).is_err());
    assert!(measure((&i8s(&[1]), None), (&i8s(&[1, 2]), None)).is_err());
    let mut a = Accumulator::new(None, None);
    a.add(i8s(&[1]).elements(), i8s(&[1]).elements()).unwrap();
    assert!(
        a.add(f32s(&[1.0]).elements(), f32s(&[1.0]).elements())
            .is_err()
    );
    assert!(a.add(i8s(&[1]).elements(), i8s(&[]).elements()).is_err());
}

#[test]
fn pieces_give_what_the_whole_gives() {
    let x: Vec<f32> = (0..1000).map(|i| (i as f32 * 0.37).sin()).collect();
    let y: Vec<f32> = x
        .iter()
        .enumerate()
        .map(|(i, v)| v + 1e-3 * (i % 7) as f32)
        .collect();
    let whole = plain(&f32s(&x), &f32s(&y));
    let mut pieces = Accumulator::new(None, None);
    for at in (0..1000).step_by(125) {
        pieces
            .add((&x[at..at + 125]).into(), (&y[at..at + 125]).into())
            .unwrap();
    }
    assert_eq!(pieces.finish().unwrap(), whole);
}

#[test]
fn json_keeps_every_state_apart() {
    let m = measure(
        (&i8s(&[1, 2]), Some(scale(1.0))),
        (&i8s(&[1, 2]), Some(scale(1.0))),
    )
    .unwrap();
    let json = serde_json::to_value(&m).unwrap();
    assert_eq!(json["mismatch_rate"], 0.0);
    assert_eq!(json["sqnr_db"], "inf");
    assert_eq!(json["ulp_max"], serde_json::Value::Null);
    let m = plain(&f32s(&[f32::NAN]), &f32s(&[1.0]));
    let json = serde_json::to_value(&m).unwrap();
    assert_eq!(json["mse"], "non-finite");
    assert_eq!(json.as_object().unwrap().len(), 16);
}

/// A step that is no power of two: the differences are its multiples all the same.
#[test]
fn codes_on_one_grid_are_whole_steps_apart() {
    let s = Some(scale(0.1));
    for steps in 0..=255u8 {
        let (x, y) = (i8s(&[-128]), i8s(&[(i16::from(steps) - 128) as i8]));
        let m = measure((&x, s), (&y, s)).unwrap();
        assert_eq!(of(&m, "max_abs_lsb"), f64::from(steps));
    }
}

/// Unless both scales are known codes compare as integers, and so does what is forgiven.
#[test]
fn one_scale_alone_is_no_unit_of_what_is_forgiven() {
    let (x, y) = (i8s(&[1, 2, 3]), i8s(&[1, 3, 5]));
    let beyond = |expected: Option<Scale>, found: Option<Scale>| {
        let mut sums = Accumulator::new(expected, found).forgiving(Some(1.0));
        sums.add(x.elements(), y.elements()).unwrap();
        sums.beyond()
    };
    let s = Some(scale(0.25));
    for (expected, found) in [(None, None), (None, s), (s, None), (s, s)] {
        assert_eq!(beyond(expected, found), 1, "{expected:?} {found:?}");
    }
}

/// Each of two pieces has something of every count, and the first element beyond is in the second.
#[test]
fn counts_and_places_merge() {
    let merged = |pieces: [(Value, Value); 2], atol: f64| {
        let [mut sums, other] = pieces.map(|(x, y)| {
            let mut sums = Accumulator::new(None, None).forgiving(Some(atol));
            sums.add(x.elements(), y.elements()).unwrap();
            sums
        });
        sums.merge(other).unwrap();
        sums
    };
    let codes = [
        (i8s(&[1, 127]), i8s(&[2, 127])),
        (i8s(&[0, 5, -128]), i8s(&[0, 8, -128])),
    ];
    let sums = merged(codes.clone(), 1.0);
    assert_eq!((sums.beyond(), sums.first()), (1, Some(3)));
    let m = sums.finish().unwrap();
    assert_eq!(of(&m, "max_abs_lsb"), 3.0);
    assert_eq!(of(&m, "saturation_rate"), 2.0 / 5.0);
    assert_eq!(of(&m, "grid_occupancy"), 5.0 / 256.0);
    assert_eq!(merged(codes, 0.0).beyond(), 2);
    let near = f32s(&[2.0f32.next_up(), f32::NAN]);
    let pieces = [(f32s(&[2.0, 1.0]), near.clone()), (near.clone(), near)];
    let sums = merged(pieces, 0.0);
    assert_eq!((sums.beyond(), sums.first()), (3, Some(0)));
    let m = sums.finish().unwrap();
    assert_eq!((m.compared, m.mismatched, m.non_finite), (4, 3, 2));
    let far = (f32s(&[1.0]), f32s(&[1.0f32.next_up().next_up()]));
    let m = merged([far, (f32s(&[1.0]), f32s(&[1.0]))], 0.0);
    assert_eq!(of(&m.finish().unwrap(), "ulp_max"), 2.0);
}

#[test]
fn pieces_merge_as_if_added_one_after_another() {
    let pieces = [
        (f32s(&[1.0, -2.0, 0.5]), i8s(&[4, -8, 127])),
        (f32s(&[0.0, 3.0]), i8s(&[-1, 12])),
    ];
    let collect = |pieces: &[(Value, Value)]| {
        let mut sums = Accumulator::new(None, Some(scale(0.25))).forgiving(Some(0.3));
        for (x, y) in pieces {
            sums.add(x.elements(), y.elements()).unwrap();
        }
        sums
    };
    let together = collect(&pieces);
    let mut merged = collect(&pieces[..1]);
    merged.merge(collect(&pieces[1..])).unwrap();
    assert_eq!((merged.beyond(), merged.first()), (1, Some(2)));
    assert_eq!((together.beyond(), together.first()), (1, Some(2)));
    assert_eq!(merged.finish().unwrap(), together.finish().unwrap());
    let mut empty = collect(&[]);
    empty.merge(collect(&pieces)).unwrap();
    assert_eq!(empty.finish().unwrap(), collect(&pieces).finish().unwrap());
    let mut other = Accumulator::new(None, None);
    let one = f32s(&[1.0]);
    other.add(one.elements(), one.elements()).unwrap();
    assert!(other.merge(collect(&pieces)).is_err());
}
