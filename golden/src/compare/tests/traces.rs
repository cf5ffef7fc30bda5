//! Comparison of whole traces.

use super::f16s;
use crate::compare::*;
use crate::layout::Layout;
use crate::metrics::Metric;
use crate::npz::Compression;
use crate::trace_file::{DecodeStep, Meta, OpenTrace, Points, TraceFile};
use crate::value::Value;
use half::f16;
use ndarray::{Array2, array};
use scalescope_sim::quant::Scale;
use scalescope_sim::trace::{Place, TracePoint};

fn points(entries: &[(Place, Value)]) -> Points {
    entries.iter().cloned().collect()
}

fn at(point: TracePoint) -> Place {
    Place::layer(0, point)
}

fn trace() -> TraceFile {
    let logits = Place::end(TracePoint::Logits);
    let sequence = points(&[
        (at(TracePoint::ConvOut), Value::I8(array![[1, 2], [3, 4]])),
        (logits, f16s(array![[1.0, 2.0], [3.0, 4.0]])),
    ]);
    TraceFile {
        tokens: Some(array![[7, 8], [9, 9]]),
        sequences: vec![sequence.clone(), sequence],
        steps: vec![DecodeStep {
            index: 0,
            tokens: vec![5, 6],
            sequences: vec![points(&[(at(TracePoint::ConvOut), Value::I8(array![[9, 9]]))]); 2],
        }],
        ..TraceFile::default()
    }
}

/// Two files, tensor by tensor, one of them with blocks that are numbered from 1.
#[test]
fn blocks_numbered_from_1_can_be_numbered_from_0() {
    let folder = tempfile::tempdir().unwrap();
    let write = |name: &str, layer: usize| {
        let place = Place::layer(layer, TracePoint::ConvOut);
        let mut trace = holding(TracePoint::ConvOut, Value::I8(array![[1, 2], [3, 4]]));
        let points = trace.sequences[0].remove(&at(TracePoint::ConvOut)).unwrap();
        trace.sequences[0].insert(place, points);
        let trace = scaled(trace, 0.5);
        let path = folder.path().join(name);
        trace.write(&path, Compression::Stored).unwrap();
        OpenTrace::open(path).unwrap()
    };
    let (mut from_0, mut from_1) = (write("0.npz", 0), write("1.npz", 1));
    let options = CompareOptions::default();
    assert!(compare_traces(&from_0, &from_1, &options).is_err());
    assert!(from_1.number_from_0() && !from_0.number_from_0());
    assert!(
        compare_traces(&from_0, &from_1, &options)
            .unwrap()
            .is_equal()
    );
}

/// One tensor of one sequence.
fn holding(point: TracePoint, value: impl Into<Value>) -> TraceFile {
    TraceFile {
        sequences: vec![points(&[(at(point), value.into())])],
        ..TraceFile::default()
    }
}

fn scaled(mut trace: TraceFile, scale: f32) -> TraceFile {
    for place in trace.places() {
        trace.scales.insert(place, Scale::new(scale).unwrap());
    }
    trace
}

/// Compares traces in memory; as files, read tensor by tensor, the result is the same.
fn compare(x: &TraceFile, y: &TraceFile) -> Comparison {
    let options = CompareOptions::default();
    let whole = compare_traces(x, y, &options).unwrap();
    let folder = tempfile::tempdir().unwrap();
    let [x, y] = [("x.npz", x), ("y.npz", y)].map(|(name, trace)| {
        let path = folder.path().join(name);
        trace.write(&path, Compression::Stored).unwrap();
        OpenTrace::open(path).unwrap()
    });
    let json = |comparison: &Comparison| serde_json::to_string(comparison).unwrap();
    let read = compare_traces(&x, &y, &options).unwrap();
    // Of codes in a float type, beside their scale, a file is read as codes.
    if x.remarks().is_empty() && y.remarks().is_empty() {
        assert_eq!(json(&read), json(&whole));
    }
    whole
}

fn refusal(x: &TraceFile, y: &TraceFile) -> String {
    let error = compare_traces(x, y, &CompareOptions::default()).unwrap_err();
    error.to_string()
}

#[test]
fn equal_traces_pass_and_every_flipped_element_fails() {
    let golden = trace();
    let same = compare(&golden, &golden);
    assert_eq!((same.is_equal(), same.compared()), (true, 20));
    assert!(same.tokens_compared && same.left_out.is_empty());
    for (b, t, c) in [(0, 0, 0), (1, 1, 1)] {
        let mut broken = golden.clone();
        for value in broken.sequences[b].values_mut() {
            match value {
                Value::I8(a) => a[(t, c)] ^= 1,
                Value::F16(a) => a[(t, c)] = f16::from_bits(a[(t, c)].to_bits() ^ 1),
                Value::F32(_) => unreachable!(),
            }
        }
        let found = compare(&golden, &broken);
        assert_eq!((found.is_equal(), found.beyond_tolerance()), (false, 2));
        for point in &found.points[..2] {
            assert_eq!(point.first.as_ref().unwrap().index, [b, t, c]);
        }
    }
    let mut broken = golden.clone();
    broken.steps[0].sequences[1].insert(at(TracePoint::ConvOut), Value::I8(array![[9, 8]]));
    let found = compare(&golden, &broken);
    let bad: Vec<_> = found.points.iter().filter(|p| !p.is_equal()).collect();
    assert_eq!(
        (bad.len(), bad[0].key().as_str()),
        (1, "step_0/layer_00/conv_out")
    );
}

/// Sequences of 2 rows of 3: an element's place is told by the product of the two, not by their sum.
#[test]
fn the_first_mismatch_is_placed_in_its_sequence() {
    let of = |codes: [Array2<i8>; 2]| TraceFile {
        sequences: codes
            .map(|codes| points(&[(at(TracePoint::ConvOut), Value::I8(codes))]))
            .to_vec(),
        ..TraceFile::default()
    };
    let zeros = Array2::zeros((2, 3));
    let golden = of([zeros.clone(), zeros.clone()]);
    for b in 0..2 {
        for (at, _) in zeros.indexed_iter() {
            let mut codes = [zeros.clone(), zeros.clone()];
            codes[b][at] = 7;
            let found = compare(&golden, &of(codes));
            let first = found.points[0].first.clone().unwrap();
            assert_eq!(first.index, [b, at.0, at.1]);
            assert_eq!((first.expected, first.found), (0.0, 7.0));
        }
    }
}

/// Codes of a dynamic quantizer compare as codes with their like, as reals with codes of one scale.
#[test]
fn codes_with_scales_of_tokens_are_compared_as_what_stands_against_them() {
    let dynamic = |scales: [f32; 2]| {
        let mut trace = holding(TracePoint::ConvIn, array![[2i8, 4], [1, 3]]);
        let column = Value::F32(array![[scales[0]], [scales[1]]]);
        trace.sequences[0].insert(at(TracePoint::ConvInScale), column);
        trace
    };
    let found = compare(&dynamic([0.5, 2.0]), &dynamic([0.5, 4.0]));
    let judged: Vec<_> = (found.points.iter())
        .map(|p| (p.point, p.is_equal()))
        .collect();
    assert_eq!(judged, [("conv_in", true), ("conv_in_scale", false)]);
    let fixed = scaled(holding(TracePoint::ConvIn, array![[1i8, 2], [2, 6]]), 1.0);
    let options = CompareOptions {
        common: true,
        ..CompareOptions::default()
    };
    for (x, y) in [
        (&dynamic([0.5, 2.0]), &fixed),
        (&fixed, &dynamic([0.5, 2.0])),
    ] {
        let found = compare_traces(x, y, &options).unwrap();
        assert!(found.is_equal());
        assert_eq!(found.points[0].point, "conv_in");
    }
}

#[test]
fn what_one_trace_lacks_is_refused_or_listed() {
    let golden = trace();
    let mut part = golden.clone();
    for sequence in &mut part.sequences {
        sequence.remove(&Place::end(TracePoint::Logits));
    }
    part.steps.clear();
    part.unknown.push("layer_00/conv_owt".into());
    let error = refusal(&golden, &part);
    assert!(
        error.contains("final/logits") && error.contains("A only"),
        "{error}"
    );
    assert!(error.contains("2 more"), "{error}");
    let error = refusal(&part, &golden);
    assert!(error.contains("B only"), "{error}");
    let common = CompareOptions {
        common: true,
        ..CompareOptions::default()
    };
    let found = compare_traces(&golden, &part, &common).unwrap();
    let left: Vec<&str> = found.left_out.iter().map(|l| l.key.as_str()).collect();
    let keys = [
        "final/logits",
        "step_0/layer_00/conv_out",
        "layer_00/conv_owt",
    ];
    assert_eq!((left, found.compared()), (keys.to_vec(), 8));
    // Nothing in common is never a pass.
    let other = holding(TracePoint::NormOut, array![[1i8]]);
    let mine = holding(TracePoint::DtProjOut, array![[1i8]]);
    assert!(compare_traces(&mine, &other, &common).is_err());
    // A trace without sequences has no other number of them.
    for (x, y) in [
        (&golden, &TraceFile::default()),
        (&TraceFile::default(), &golden),
    ] {
        let error = compare_traces(x, y, &common).unwrap_err().to_string();
        assert!(error.contains("at least one tensor"), "{error}");
    }
    assert!(compare_traces(&TraceFile::default(), &TraceFile::default(), &common).is_err());
}

#[test]
fn traces_of_other_inputs_are_refused() {
    let golden = trace();
    let mut other = golden.clone();
    other.tokens = Some(array![[7, 8], [9, 1]]);
    assert_eq!(
        refusal(&golden, &other),
        "tokens[1, 1]: expected 9, found 1"
    );
    other.tokens = Some(array![[7, 8, 1], [9, 9, 1]]);
    assert!(refusal(&golden, &other).contains("[2, 3]"));
    let mut other = golden.clone();
    other.steps[0].tokens = vec![5, 7];
    assert!(refusal(&golden, &other).contains("step_0/token"));
    let mut other = golden.clone();
    other.tokens = None;
    other.sequences.pop();
    other.steps.clear();
    assert!(refusal(&golden, &other).contains("sequences"));
    let of = |model: &str| TraceFile {
        meta: Some(Meta {
            model: Some(model.into()),
            ..Meta::default()
        }),
        ..trace()
    };
    assert!(refusal(&of("a"), &of("b")).contains("meta: model"));
    assert!(compare(&of("a"), &of("a")).is_equal());
    // Another shape that no layout explains.
    let narrow = holding(TracePoint::NormOut, array![[1i8, 2]]);
    let wide = holding(TracePoint::NormOut, array![[1i8, 2, 3]]);
    assert!(refusal(&narrow, &wide).contains("layer_00/norm_out: expected i8 [1, 1, 2]"));
}

#[test]
fn nan_and_infinity_are_refused_on_either_side_and_on_both() {
    let good = holding(TracePoint::SsmU, array![[1.0f32, 2.0]]);
    for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
        let bad = holding(TracePoint::SsmU, array![[1.0f32, bad]]);
        for (x, y) in [(&good, &bad), (&bad, &good), (&bad, &bad)] {
            let error = refusal(x, y);
            assert!(
                error.contains("layer_00/ssm_u") && error.contains("[0, 0, 1]"),
                "{error}"
            );
        }
    }
}

#[test]
fn a_tolerance_is_per_point_and_in_steps_between_codes() {
    let options = |setting: &str| CompareOptions {
        tolerances: Tolerances::parse([setting]).unwrap(),
        ..CompareOptions::default()
    };
    let x = scaled(holding(TracePoint::ConvOut, array![[1i8, 2, 3]]), 0.25);
    let y = scaled(holding(TracePoint::ConvOut, array![[1i8, 3, 5]]), 0.25);
    let beyond = |setting: &str| compare_traces(&x, &y, &options(setting)).unwrap();
    assert_eq!(beyond("conv_out:1").beyond_tolerance(), 1);
    assert_eq!(
        beyond("conv_out:1").points[0].first.as_ref().unwrap().index,
        [0, 0, 2]
    );
    assert!(beyond("conv_out:2").is_equal());
    assert_eq!(beyond("ssm_y:2").beyond_tolerance(), 2);
    // The metrics are those of the whole tensor, forgiven or not.
    let metrics = beyond("conv_out:2").points[0].metrics.clone().unwrap();
    assert_eq!(metrics.mismatched, 2);
    let x = holding(TracePoint::SsmU, array![[1.0f32, 0.0]]);
    let y = holding(TracePoint::SsmU, array![[1.5f32, -0.0]]);
    assert_eq!(compare(&x, &y).beyond_tolerance(), 2);
    assert!(
        compare_traces(&x, &y, &options("ssm_u:0.5"))
            .unwrap()
            .is_equal()
    );
    let compared = compare_traces(&x, &y, &options("ssm_u:0.49")).unwrap();
    assert_eq!(compared.beyond_tolerance(), 1);
    // Logits are no exception here.
    let logits = |v: f32| TraceFile {
        sequences: vec![points(&[(
            Place::end(TracePoint::Logits),
            f16s(array![[v]]),
        )])],
        ..TraceFile::default()
    };
    assert!(!compare(&logits(1.0), &logits(1.0 + 1.0 / 1024.0)).is_equal());
}

#[test]
fn tensors_of_two_modes_stand_against_each_other() {
    let real = array![[0.5f32, -1.0], [0.75, 0.0]];
    let codes = array![[2i8, -4], [3, 0]];
    let float = holding(TracePoint::ConvOutF32, real.clone());
    let int8 = scaled(holding(TracePoint::ConvOut, codes.clone()), 0.25);
    let found = compare(&float, &int8);
    assert!(found.is_equal());
    let [point] = &found.points[..] else { panic!() };
    assert_eq!(
        (point.point, point.expected.point),
        ("conv_out", "conv_out_f32")
    );
    // A requantized x_proj_in stands against the codes of a convolution that makes its own.
    let mut requantized = holding(TracePoint::ConvOutF32, real.clone());
    requantized.sequences[0].insert(at(TracePoint::XProjIn), Value::I8(codes.clone()));
    requantized
        .scales
        .insert(at(TracePoint::XProjIn), Scale::new(0.25).unwrap());
    let found = compare(&int8, &requantized);
    assert!(found.is_equal());
    assert_eq!(found.points.len(), 2);
    // x and z apart against x‖z.
    let both = holding(TracePoint::InProjOut, array![[1.0f32, 2.0, 3.0, 4.0]]);
    let mut apart = holding(TracePoint::InProjX, f16s(array![[1.0, 2.0]]));
    let z = at(TracePoint::InProjZ);
    apart.sequences[0].insert(z, Value::I8(array![[3, 5]]));
    apart.scales.insert(z, Scale::new(1.0).unwrap());
    for (x, y) in [(&both, &apart), (&apart, &both)] {
        let found = compare(x, y);
        let judged: Vec<_> = found
            .points
            .iter()
            .map(|p| (p.point, p.is_equal()))
            .collect();
        assert_eq!(judged, [("in_proj_x", true), ("in_proj_z", false)]);
    }
    // Half of it is missing.
    apart.sequences[0].remove(&z);
    assert!(refusal(&both, &apart).contains("layer_00/in_proj_z"));
    // A dynamic quantizer's codes stand for what they mean.
    let mut dynamic = holding(TracePoint::ConvIn, array![[2i8, 4], [1, 3]]);
    let column = at(TracePoint::ConvInScale);
    dynamic.sequences[0].insert(column, Value::F32(array![[0.5], [2.0]]));
    let x = holding(TracePoint::InProjX, array![[1.0f32, 2.0], [2.0, 6.0]]);
    dynamic.sequences[0].extend(x.sequences[0].clone());
    let found = compare(&x, &dynamic);
    assert!(found.is_equal());
    let points: Vec<_> = found.points.iter().map(|p| p.point).collect();
    assert_eq!(points, ["in_proj_x", "conv_in"]);
    // One mode holds one set of tensors: nothing stands in.
    let of_mode = |trace: &TraceFile| TraceFile {
        meta: Some(Meta {
            mode: Some("0".into()),
            ..Meta::default()
        }),
        ..trace.clone()
    };
    assert!(refusal(&of_mode(&float), &of_mode(&int8)).contains("conv_out"));
}

#[test]
fn codes_compare_with_reals_only_if_their_scale_is_known() {
    let codes = holding(TracePoint::ConvOut, array![[2i8]]);
    let real = holding(TracePoint::ConvOut, array![[0.5f32]]);
    for (x, y) in [(&codes, &real), (&real, &codes)] {
        assert!(refusal(x, y).contains("scale/layer_00/conv_out"));
    }
    assert!(compare(&scaled(codes.clone(), 0.25), &real).is_equal());
    // Two dumps without scales compare as codes, two grids as values.
    assert!(compare(&codes, &codes).is_equal());
    let wider = scaled(codes.clone(), 0.5);
    let found = compare(&scaled(codes, 0.25), &wider);
    let metrics = found.points[0].metrics.as_ref().unwrap();
    assert_eq!(metrics.get(Metric::MaxAbsError).value(), Some(0.5));
}

#[test]
fn layouts_are_named_and_are_no_pass() {
    let codes = Array2::from_shape_fn((9, 16), |(t, c)| (t * t * 7 + c * 13) as i8);
    let golden = holding(TracePoint::NormOut, codes.clone());
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("t.npz");
    let mut across = holding(
        TracePoint::NormOut,
        codes.t().as_standard_layout().into_owned(),
    );
    across.tokens = Some(Array2::zeros((1, 9)));
    across
        .write(&path, crate::npz::Compression::Stored)
        .unwrap();
    let found = compare(&golden, &TraceFile::read(&path).unwrap());
    assert!(!found.is_equal() && !found.tokens_compared);
    let [point] = &found.points[..] else { panic!() };
    assert_eq!(
        (point.metrics.is_none(), point.beyond_tolerance),
        (true, 144)
    );
    assert!(matches!(point.layouts[0].layout, Layout::Transposed { .. }));
    let mut swapped = codes.clone();
    for mut row in swapped.rows_mut() {
        let (mut left, mut right) = row.multi_slice_mut((ndarray::s![..8], ndarray::s![8..]));
        ndarray::Zip::from(&mut left)
            .and(&mut right)
            .for_each(std::mem::swap);
    }
    let found = compare(&golden, &holding(TracePoint::NormOut, swapped));
    let point = &found.points[0];
    let halves = Layout::SwappedBlocks {
        at: 0,
        first: 8,
        second: 8,
    };
    assert_eq!(point.layouts[0].layout, halves);
    assert!(point.metrics.is_some() && !point.is_equal());
}

#[test]
fn dt_b_and_c_stand_for_b_and_c() {
    // Codes of B‖C with a scale of their own, against dt‖B‖C as reals: the last columns.
    let all = holding(TracePoint::XProjOut, array![[9.0f32, 9.0, 9.0, 1.0, -0.5]]);
    let bc = scaled(holding(TracePoint::SsmBc, array![[2i8, -1]]), 0.5);
    let common = CompareOptions {
        common: true,
        ..CompareOptions::default()
    };
    for (x, y) in [(&all, &bc), (&bc, &all)] {
        let found = compare_traces(x, y, &common).unwrap();
        assert!(found.is_equal(), "{found:?}");
        assert_eq!((found.points[0].point, found.compared()), ("ssm_bc", 2));
    }
    let off = scaled(holding(TracePoint::SsmBc, array![[2i8, 9]]), 0.5);
    let found = compare_traces(&all, &off, &common).unwrap();
    let first = found.points[0].first.as_ref().unwrap();
    assert_eq!((&first.index[..], first.expected), (&[0, 0, 1][..], -0.5));
}
