//! The simulator against every committed vector, and the checker against traces made to trip it.

use ndarray::Array2;
use scalescope_golden::check::{CheckOptions, CheckReport, Feed, check};
use scalescope_golden::check_op::{Vectors, check_op};
use scalescope_golden::ops::Op;
use scalescope_golden::trace_file::TraceFile;
use scalescope_golden::value::Value;
use scalescope_sim::datapath::{Datapath, LogitRows};
use scalescope_sim::error::Result;
use scalescope_sim::mode::ModeTable;
use scalescope_sim::model::Model;
use scalescope_sim::profile::{CUDA_FAST, Profile};
use scalescope_sim::sample;
use scalescope_sim::trace::{Place, Recorder, Selection, TracePoint};
use std::path::{Path, PathBuf};

fn data(file: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("data")
        .join(file)
}

fn golden(name: &str) -> TraceFile {
    TraceFile::read(data("trace").join(name)).unwrap()
}

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

fn deployed(trace: &TraceFile, mode: &str, feed: Feed) -> CheckReport {
    run(trace, mode, "deployed", feed).unwrap()
}

#[test]
fn every_operation_has_vectors_and_all_are_reproduced() {
    for op in Op::ALL {
        let vectors = Vectors::read(op, data(&format!("ops/{}.npz", op.name()))).unwrap();
        let summary = check_op(&vectors, &CUDA_FAST).unwrap();
        assert!(summary.compared() > 500, "{}: {summary}", op.name());
        assert_eq!(summary.mismatched(), 0, "{}: {summary}", op.name());
        assert!(summary.missing.is_empty(), "{:?}", summary.missing);
    }
}

#[test]
fn mode_0_is_reproduced_step_by_step_and_as_it_flows() {
    let trace = golden("mode_0_len171.npz");
    let local = deployed(&trace, "0", Feed::Local);
    assert_eq!(local.exit_code(), 0, "{}", local.summary);
    // hidden_in and residual_in of blocks 6 and 11 come from blocks that are not in the file.
    assert_eq!(local.given(), 4 * 171 * 192);
    let flowing = deployed(&trace, "0", Feed::Cumulative);
    assert_eq!(flowing.exit_code(), 0, "{}", flowing.summary);
    assert_eq!(flowing.given(), 0);
    let all = flowing.summary.compared();
    assert_eq!(local.summary.compared() + local.given(), all);
    // Not only within the tolerance of logits.
    for report in [local, flowing] {
        let forgiven: usize = report
            .summary
            .points
            .iter()
            .map(|p| p.within_tolerance)
            .sum();
        assert_eq!(forgiven, 0);
    }
}

#[test]
fn mode_2_1_is_reproduced_but_for_a_few_ulps_of_the_pytorch_scan() {
    let report = deployed(&golden("mode_2-1_len171.npz"), "2-1", Feed::Local);
    assert!(report.summary.missing.is_empty());
    for point in &report.summary.points {
        if point.point == "ssm_y" {
            assert!(point.mismatched * 1000 <= point.compared, "{point:?}");
            assert_eq!(point.ulp_max, Some(1));
        } else {
            assert_eq!(point.mismatched, 0, "{}", point.key());
        }
    }
}

#[test]
fn decode_is_reproduced_from_given_states_and_from_the_prefill() {
    let trace = golden("decode_after64_steps0-3.npz");
    let flowing = deployed(&trace, "0", Feed::Cumulative);
    assert_eq!(flowing.exit_code(), 0, "{}", flowing.summary);
    assert_eq!(flowing.given(), 0);
    let local = deployed(&trace, "0", Feed::Local);
    assert_eq!(local.exit_code(), 0, "{}", local.summary);
    let judged = |step, layer, point: &str| {
        local
            .summary
            .points
            .iter()
            .any(|p| (p.step, p.layer, p.point.as_str()) == (Some(step), Some(layer), point))
    };
    // The first states are inputs, later ones come from the step before.
    assert!(!judged(0, 6, "ssm_state_in") && judged(1, 6, "ssm_state_in"));
    assert!(judged(0, 6, "conv_out") && judged(0, 6, "ssm_state_out"));
    // Block 0 sees the token; block 6 gets what block 5 made, which is not in the file.
    assert!(judged(0, 0, "norm_out") && !judged(0, 6, "norm_out"));
}

#[test]
fn decode_without_the_prefill_runs_from_its_states_only() {
    let mut trace = golden("decode_after64_steps0-3.npz");
    trace.tokens = None;
    assert_eq!(deployed(&trace, "0", Feed::Local).exit_code(), 0);
    let error = run(&trace, "0", "deployed", Feed::Cumulative).unwrap_err();
    assert!(error.to_string().contains("prefill_tokens"), "{error}");
    // Without tokens, block 0's norm is an input, too.
    let with = deployed(&trace, "0", Feed::Local).given();
    for step in &mut trace.steps {
        step.tokens.clear();
    }
    let without = deployed(&trace, "0", Feed::Local);
    assert_eq!(without.exit_code(), 0);
    assert_eq!(without.given(), with + 4 * 192);
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
