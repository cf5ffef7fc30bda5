//! The checker against traces made to trip it.

use ndarray::Array2;
use scalescope_golden::check::{CheckOptions, CheckReport, Feed, check};
use scalescope_golden::trace_file::TraceFile;
use scalescope_golden::value::Value;
use scalescope_sim::datapath::{Datapath, LogitRows};
use scalescope_sim::error::Result;
use scalescope_sim::mode::ModeTable;
use scalescope_sim::model::Model;
use scalescope_sim::profile::Profile;
use scalescope_sim::sample;
use scalescope_sim::trace::{Place, Recorder, Selection, TracePoint};

fn run(trace: &TraceFile, mode: &str, profile: &str, feed: Feed) -> Result<CheckReport> {
    let model = sample::model();
    let table = ModeTable::default();
    let path = Datapath::new(&model, table.get(mode)?, &Profile::get(profile)?)?;
    let options = CheckOptions {
        feed,
        ..CheckOptions::default()
    };
    check(&path, trace, &options)
}

/// A prefill of two sequences and two decode steps, everything recorded.
fn recorded(model: &Model, mode: &str, profile: &str) -> TraceFile {
    let table = ModeTable::default();
    let profile = Profile::get(profile).unwrap();
    let path = Datapath::new(model, table.get(mode).unwrap(), &profile).unwrap();
    let tokens = Array2::from_shape_fn((2, 9), |(b, t)| (37 * b + 101 * t + 5) as u32);
    let (mut recorders, mut states) = (Vec::new(), Vec::new());
    for row in tokens.rows() {
        let mut recorder = Recorder::new(Selection::default());
        let (_, state) = path
            .prefill(&row.to_vec(), LogitRows::All, &mut recorder)
            .unwrap();
        recorders.push(recorder);
        states.push(state);
    }
    let mut trace = TraceFile::from_recorders(tokens, recorders).unwrap();
    for step in 0..2u32 {
        let next = [7 + step, 400 + step];
        let steps = next.iter().zip(&mut states).map(|(token, state)| {
            let mut recorder = Recorder::new(Selection::default());
            path.decode(*token, state, &mut recorder).unwrap();
            recorder
        });
        let steps: Vec<_> = steps.collect();
        trace.push_step(&next, steps).unwrap();
    }
    trace
}

#[test]
fn every_mode_checks_its_own_trace_with_two_sequences_and_decode() {
    let model = sample::model();
    for row in ModeTable::default().rows() {
        for profile in ["exact", "deployed"] {
            let trace = recorded(&model, &row.name, profile);
            for feed in [Feed::Local, Feed::Cumulative] {
                let report = run(&trace, &row.name, profile, feed).unwrap();
                let words = format!("{} {profile} {feed:?}: {}", row.name, report.summary);
                assert_eq!(report.exit_code(), 0, "{words}");
                assert_eq!(report.given(), 0, "{words}");
            }
        }
    }
}

#[test]
fn a_wrong_value_is_one_mismatch_with_its_place() {
    let model = sample::model();
    let clean = recorded(&model, "2-4", "deployed");
    let place = Place::layer(3, TracePoint::SsmY);
    let mut trace = clean.clone();
    let Some(Value::F16(y)) = trace.sequences[1].get_mut(&place) else {
        panic!("ssm_y is f16");
    };
    y[(4, 17)] = half::f16::from_bits(y[(4, 17)].to_bits() ^ 1);
    let report = run(&trace, "2-4", "deployed", Feed::Cumulative).unwrap();
    assert_eq!((report.exit_code(), report.summary.mismatched()), (1, 1));
    let bad = report
        .summary
        .points
        .iter()
        .find(|p| p.mismatched > 0)
        .unwrap();
    assert_eq!(bad.key(), "layer_03/ssm_y");
    assert_eq!(bad.ulp_max, Some(1));
    assert_eq!(bad.first.as_ref().unwrap().index, [1, 4, 17]);
    // A scale of another model is a mismatch, too, even if the codes are equal.
    let mut trace = clean;
    let place = Place::layer(3, TracePoint::HadOut);
    let scale = trace.scales.get_mut(&place).unwrap();
    *scale = scale.times(1.01).unwrap();
    let report = run(&trace, "2-4", "deployed", Feed::Local).unwrap();
    assert_eq!(report.exit_code(), 1);
    let bad = report
        .summary
        .points
        .iter()
        .find(|p| p.mismatched > 0)
        .unwrap();
    assert_eq!(bad.key(), "layer_03/had_out/scale");
    let bad: Vec<String> = (report.summary.points.iter())
        .filter(|p| p.mismatched > 0)
        .map(|p| p.key())
        .collect();
    assert_eq!(
        bad,
        [
            "layer_03/had_out/scale",
            "step_0/layer_03/had_out/scale",
            "step_1/layer_03/had_out/scale"
        ]
    );
}

#[test]
fn a_wrong_value_of_a_decode_step_has_its_step_and_is_kept_if_asked_for() {
    let model = sample::model();
    let mut trace = recorded(&model, "0", "exact");
    let place = Place::layer(3, TracePoint::ConvOut);
    let Some(Value::I8(codes)) = trace.steps[1].sequences[0].get_mut(&place) else {
        panic!("conv_out is i8");
    };
    codes[(0, 5)] ^= 1;
    let wrong = codes.clone();
    let table = ModeTable::default();
    let profile = Profile::get("exact").unwrap();
    let path = Datapath::new(&model, table.get("0").unwrap(), &profile).unwrap();
    for keep in [false, true] {
        let options = CheckOptions {
            feed: Feed::Cumulative,
            keep,
            ..CheckOptions::default()
        };
        let report = check(&path, &trace, &options).unwrap();
        let bad: Vec<_> = (report.summary.points.iter())
            .filter(|p| p.mismatched > 0)
            .collect();
        assert_eq!((bad.len(), bad[0].mismatched), (1, 1));
        assert_eq!(bad[0].key(), "step_1/layer_03/conv_out");
        assert_eq!(bad[0].first.as_ref().unwrap().index, [0, 0, 5]);
        let kept: Vec<_> = report.kept.into_iter().collect();
        match (keep, &kept[..]) {
            (false, []) => {}
            (true, [(at, pairs)]) => {
                assert_eq!(*at, (Some(1), place));
                // The second sequence, which is equal, comes behind the mismatch, and with it.
                assert_eq!(pairs[0].0, Value::I8(wrong.clone()));
                let equal: Vec<bool> = pairs.iter().map(|(x, y, _)| x == y).collect();
                assert_eq!(equal, [false, true]);
            }
            _ => panic!("{} kept", kept.len()),
        }
    }
}

/// Decode steps without a prefill: run freely they need its tokens, from the states of the file they do not.
#[test]
fn steps_are_checked_without_a_prefill() {
    let mut trace = recorded(&sample::model(), "0", "exact");
    trace.sequences.iter_mut().for_each(|points| points.clear());
    trace.scales.clear();
    let report = run(&trace, "0", "exact", Feed::Cumulative).unwrap();
    let words = format!("{} {:?}", report.summary, report.summary.missing);
    assert_eq!((report.exit_code(), report.given()), (0, 0), "{words}");
    assert!(report.summary.points.iter().all(|p| p.step.is_some()));
    let given = |trace: &TraceFile| -> Vec<String> {
        let report = run(trace, "0", "exact", Feed::Local).unwrap();
        assert_eq!(report.exit_code(), 0, "{}", report.summary);
        let of_block = report.given.iter().filter(|g| g.layer == Some(0));
        of_block
            .map(|g| format!("{} {}", g.step.unwrap(), g.point))
            .collect()
    };
    // Nobody vouches for the states before the first step; the second gets those that the first leaves.
    let states = ["0 conv_state_in", "0 ssm_state_in"];
    assert_eq!(given(&trace), states);
    trace.tokens = None;
    assert_eq!(given(&trace), states);
    let error = run(&trace, "0", "exact", Feed::Cumulative).unwrap_err();
    assert!(error.to_string().contains("prefill_tokens"), "{error}");
}

#[test]
fn without_tokens_a_local_check_takes_the_embedding_as_it_is() {
    let mut trace = recorded(&sample::model(), "0", "exact");
    let mut no_ids = trace.clone();
    no_ids.steps.iter_mut().for_each(|step| step.tokens.clear());
    let error = run(&no_ids, "0", "exact", Feed::Cumulative).unwrap_err();
    assert!(error.to_string().contains("step_0/token"), "{error}");
    let report = run(&no_ids, "0", "exact", Feed::Local).unwrap();
    let given: Vec<_> = (report.given.iter())
        .map(|g| (g.step, g.layer, g.point))
        .collect();
    assert_eq!(report.exit_code(), 0);
    assert_eq!(given, [0, 1].map(|s| (Some(s), Some(0), "hidden_in")));
    trace.tokens = None;
    let error = run(&trace, "0", "exact", Feed::Cumulative).unwrap_err();
    assert!(error.to_string().contains("prefill_tokens"), "{error}");
    let report = run(&trace, "0", "exact", Feed::Local).unwrap();
    let given: Vec<_> = (report.given.iter())
        .map(|g| (g.step, g.layer, g.point))
        .collect();
    assert_eq!(report.exit_code(), 0);
    assert_eq!(given, [(None, Some(0), "hidden_in")]);
    // The number of tokens is not told by a state, even if that comes first.
    let keep = [
        TracePoint::SsmState,
        TracePoint::OutProjOut,
        TracePoint::HadOut,
    ];
    for points in &mut trace.sequences {
        points.retain(|place, _| keep.contains(&place.point) && place.layer == Some(0));
    }
    trace.steps.clear();
    trace.scales.clear();
    let report = run(&trace, "0", "exact", Feed::Local).unwrap();
    let words = format!("{} {:?}", report.summary, report.given);
    assert_eq!((report.exit_code(), report.given.len()), (0, 2), "{words}");
    for points in &mut trace.sequences {
        points.retain(|place, _| place.point.is_state());
    }
    let error = run(&trace, "0", "exact", Feed::Local).unwrap_err();
    assert!(error.to_string().contains("states alone"), "{error}");
}

/// What goes in without being judged still has to have the datapath's shape and type.
#[test]
fn inputs_of_another_shape_or_type_are_refused() {
    let mut trace = recorded(&sample::model(), "0", "exact");
    trace.tokens = None;
    trace.steps.clear();
    let place = Place::layer(0, TracePoint::HiddenIn);
    let Value::F16(good) = trace.sequences[0][&place].clone() else {
        panic!("hidden_in is f16");
    };
    for bad in [
        Value::F16(Array2::zeros((good.nrows(), good.ncols() - 1))),
        // Not binary16 that lies in a wider type.
        Value::F32(good.mapv(|v| v.to_f32() * 1.0001)),
    ] {
        for points in &mut trace.sequences {
            points.insert(place, bad.clone());
        }
        let error = run(&trace, "0", "exact", Feed::Local).unwrap_err();
        let error = error.to_string();
        assert!(
            error.contains("layer_00/hidden_in: expected f16"),
            "{error}"
        );
        assert!(error.contains(&bad.describe()), "{error}");
    }
}

#[test]
fn scales_of_tensors_that_are_not_there_are_missing() {
    let mut trace = recorded(&sample::model(), "0", "exact");
    let scale = *trace.scales.values().next().unwrap();
    let place = Place::layer(2, TracePoint::ConvOutF32);
    trace.scales.insert(place, scale);
    let report = run(&trace, "0", "exact", Feed::Local).unwrap();
    assert_eq!(report.summary.missing, ["scale/layer_02/conv_out_f32"]);
    assert_eq!(report.exit_code(), 1);
}

#[test]
fn a_report_of_nothing_is_no_success() {
    assert_eq!(CheckReport::default().exit_code(), 1);
}

#[test]
fn points_that_the_run_never_makes_are_missing() {
    let mut trace = recorded(&sample::model(), "0", "exact");
    for points in &mut trace.sequences {
        let dim = points[&Place::layer(2, TracePoint::ConvOut)].dim();
        let fake = Value::F32(Array2::zeros(dim));
        points.insert(Place::layer(2, TracePoint::ConvOutF32), fake);
    }
    trace.unknown.push("layer_02/conv_owt".into());
    let report = run(&trace, "0", "exact", Feed::Local).unwrap();
    assert_eq!(report.summary.mismatched(), 0);
    assert_eq!(report.exit_code(), 1);
    assert_eq!(
        report.summary.missing,
        ["layer_02/conv_out_f32", "layer_02/conv_owt"]
    );
}

#[test]
fn some_points_of_some_blocks_are_judged_from_what_is_there() {
    let mut trace = recorded(&sample::model(), "0", "deployed");
    let keep = [TracePoint::ConvOut, TracePoint::SsmY];
    let steps = trace.steps.iter_mut().flat_map(|s| &mut s.sequences);
    for points in trace.sequences.iter_mut().chain(steps) {
        points.retain(|place, _| keep.contains(&place.point) && place.layer != Some(5));
    }
    trace.scales.clear();
    let report = run(&trace, "0", "deployed", Feed::Local).unwrap();
    assert_eq!(report.exit_code(), 0, "{}", report.summary);
    let given: Vec<_> = (report.given.iter())
        .map(|g| (g.step, g.layer, g.point))
        .collect();
    // What block 5 hands on is unknown: conv_out and (through z) ssm_y of block 6 are inputs, and
    // so is everything behind them, for the residual stream never becomes known again.
    assert!(given.contains(&(None, Some(6), "conv_out")));
    assert!(given.contains(&(None, Some(6), "ssm_y")));
    assert!(!given.iter().any(|g| g.1 < Some(5)));
    // Two sequences of 9 tokens and 384 channels.
    let first = report.given.iter().find(|g| g.point == "conv_out").unwrap();
    assert_eq!(first.elements, 2 * 9 * 384);
    let elements: Vec<usize> = report.given.iter().map(|g| g.elements).collect();
    assert_eq!(report.given(), elements.iter().sum::<usize>());
    // Nothing at all to judge is an error, not a success.
    for points in &mut trace.sequences {
        points.retain(|place, _| place.layer == Some(9));
    }
    trace.steps.clear();
    let error = run(&trace, "0", "deployed", Feed::Local).unwrap_err();
    assert!(error.to_string().contains("--cumulative"), "{error}");
    assert_eq!(
        run(&trace, "0", "deployed", Feed::Cumulative)
            .unwrap()
            .exit_code(),
        0
    );
}

#[test]
fn traces_that_do_not_fit_are_refused() {
    let trace = recorded(&sample::model(), "0", "exact");
    let refuse = |trace: &TraceFile, part: &str| {
        let error = run(trace, "0", "exact", Feed::Local)
            .unwrap_err()
            .to_string();
        assert!(error.contains(part) && !error.contains('\n'), "{error}");
    };
    let mut ids = trace.clone();
    ids.tokens.as_mut().unwrap()[(1, 3)] = 8192;
    refuse(&ids, "token 3");
    let mut blocks = trace.clone();
    let value = blocks.sequences[0][&Place::layer(0, TracePoint::NormOut)].clone();
    for points in &mut blocks.sequences {
        points.insert(Place::layer(12, TracePoint::NormOut), value.clone());
    }
    refuse(&blocks, "blocks 0 to 11");
    let mut shape = trace.clone();
    for points in &mut shape.sequences {
        points.insert(
            Place::layer(0, TracePoint::NormOut),
            Value::I8(Array2::zeros((9, 191))),
        );
    }
    refuse(&shape, "layer_00/norm_out");
    let mut empty = trace;
    empty.sequences.iter_mut().for_each(|points| points.clear());
    empty.steps.clear();
    refuse(&empty, "at least one tensor");
}

#[test]
fn a_local_check_stops_errors_and_a_cumulative_one_lets_them_flow() {
    // The same trace under another rule: Hadamard saturates in `exact`, wraps in `deployed`.
    let trace = recorded(&sample::model(), "0", "exact");
    let local = run(&trace, "0", "deployed", Feed::Local).unwrap();
    let flowing = run(&trace, "0", "deployed", Feed::Cumulative).unwrap();
    assert!(local.summary.mismatched() > 0);
    assert!(flowing.summary.mismatched() > 100 * local.summary.mismatched());
}
