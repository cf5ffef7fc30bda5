//! The simulator against every committed vector.

use scalescope_golden::check::{CheckOptions, CheckReport, Feed, check};
use scalescope_golden::check_op::{Vectors, check_op};
use scalescope_golden::ops::Op;
use scalescope_golden::trace_file::TraceFile;
use scalescope_sim::datapath::Datapath;
use scalescope_sim::error::Result;
use scalescope_sim::mode::ModeTable;
use scalescope_sim::profile::{CUDA_FAST, Profile};
use scalescope_sim::sample;
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
fn four_bit_linears_are_reproduced_by_the_kernels_rules_only() {
    use scalescope_golden::check_op::Inputs;
    use scalescope_golden::ops::{Int4Linear, LinearCase};
    use scalescope_sim::profile::EXACT;
    // The whole file, where it is: `W4A8_VECTORS=linear_w4a8.npz cargo test …`.
    let whole = std::env::var_os("W4A8_VECTORS").map(PathBuf::from);
    let path = whole.unwrap_or_else(|| data("ops/linear_w4a8.npz"));
    let vectors = Vectors::read(Op::Linear, path).unwrap();
    assert!(vectors.unknown.is_empty(), "{:?}", vectors.unknown);
    let summary = check_op(&vectors, &CUDA_FAST).unwrap();
    assert!(summary.compared() > 100_000, "{summary}");
    assert_eq!(summary.mismatched(), 0, "{summary}");
    assert!(summary.missing.is_empty(), "{:?}", summary.missing);
    let wrong = |summary: &scalescope_golden::compare::Summary| -> Vec<String> {
        let points = summary.points.iter().filter(|p| p.mismatched > 0);
        points.map(|p| p.key()).collect()
    };
    // Saturated, weights differ where they wrap, and nowhere else.
    let exact = check_op(&vectors, &EXACT).unwrap();
    assert_eq!(wrong(&exact), ["dequant_limit/w8"]);
    // One code, one scale.
    let alterations: [fn(&mut Int4Linear); 4] = [
        |case| case.weight.as_mut().unwrap().codes[(3, 5)] ^= 1,
        |case| case.channels[7] *= 1.01,
        |case| case.s_act *= 1.01,
        |case| {
            let groups = case.weight.as_mut().unwrap().groups.as_mut().unwrap();
            groups[(2, 1)] *= half::f16::from_f32(1.25);
        },
    ];
    for alter in alterations {
        let mut altered = vectors.clone();
        let case = altered.cases.iter_mut().find(|c| c.name == "case_4_o16");
        match &mut case.unwrap().inputs {
            Inputs::Linear(LinearCase::Int4(case)) => alter(case),
            other => panic!("{other:?}"),
        }
        let summary = check_op(&altered, &CUDA_FAST).unwrap();
        assert!(!wrong(&summary).is_empty());
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
