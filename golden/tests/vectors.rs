//! The simulator against every committed vector.

use scalescope_golden::check::{CheckOptions, CheckReport, Feed, check};
use scalescope_golden::check_op::{Vectors, check_op};
use scalescope_golden::compare::PointResult;
use scalescope_golden::npz::{Array, read_npz};
use scalescope_golden::ops::Op;
use scalescope_golden::trace_file::TraceFile;
use scalescope_sim::arith::binary16::from_f16;
use scalescope_sim::arith::quantizer::QUANTIZERS;
use scalescope_sim::arith::requant::{Divisor, QuantRule, Quotient};
use scalescope_sim::arith::round::Rounding;
use scalescope_sim::datapath::Datapath;
use scalescope_sim::error::Result;
use scalescope_sim::mode::ModeTable;
use scalescope_sim::profile::{CUDA_FAST, Profile, SumOrder};
use scalescope_sim::sample;
use std::collections::BTreeMap;
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
        |case| case.s_act = case.s_act.times(1.01).unwrap(),
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

/// A path that a variable names, for data that are not in the repository.
fn path_of(variable: &str) -> PathBuf {
    let path = std::env::var_os(variable).unwrap_or_else(|| panic!("{variable} names no file"));
    PathBuf::from(path)
}

#[test]
#[ignore = "needs a W4A8 model and its trace, which are too large for the repository; W4A8_MODEL=FOLDER W4A8_TRACE=FILE.npz cargo test -p scalescope-golden --test all vectors -- --ignored"]
fn a_w4a8_model_of_quamba_is_reproduced_step_by_step_and_as_it_flows() {
    use scalescope_sim::checkpoint::load::{Loaded, load};
    use scalescope_sim::model::Model;
    let Loaded::Quantized(quantized) = load(&path_of("W4A8_MODEL")).unwrap() else {
        panic!("a quantized model")
    };
    let model = Model {
        quantized: Some(quantized.into()),
        ..Model::default()
    };
    let trace = TraceFile::read(path_of("W4A8_TRACE")).unwrap();
    let table = ModeTable::default();
    let deployed = Profile::get("deployed").unwrap();
    let path = Datapath::new(&model, table.get("0").unwrap(), &deployed).unwrap();
    for feed in [Feed::Local, Feed::Cumulative] {
        let options = CheckOptions {
            feed,
            ..CheckOptions::default()
        };
        let report = check(&path, &trace, &options).unwrap();
        println!("{feed:?}: {}, given {}", report.summary, report.given());
        assert_eq!(report.exit_code(), 0, "{}", report.summary);
        let forgiven = report.summary.points.iter().map(|p| p.within_tolerance);
        assert_eq!(forgiven.sum::<usize>(), 0);
    }
}

#[test]
#[ignore = "needs a W4A8 model, which is too large for the repository; W4A8_MODEL=FOLDER W4A8_FLOAT=FOLDER W4A8_SCALES=FILE cargo test -p scalescope-golden --test all vectors -- --ignored"]
fn quantizing_gives_every_bit_of_a_w4a8_model_of_quamba() {
    use scalescope_sim::checkpoint::load::{Loaded, load};
    use scalescope_sim::checkpoint::quantize::{Ends, quantize, to_int4};
    use scalescope_sim::checkpoint::recipe::Recipe;
    use scalescope_sim::checkpoint::{fold, hf, scales};
    use scalescope_sim::model::Head;
    let Loaded::Quantized(theirs) = load(&path_of("W4A8_MODEL")).unwrap() else {
        panic!("a quantized model")
    };
    let float = hf::read(&path_of("W4A8_FLOAT")).unwrap();
    let float = fold::fold(float, &Recipe::QUAMBA).unwrap();
    let scales = scales::read(&path_of("W4A8_SCALES")).unwrap().layers;
    let ends = match theirs.head {
        Head::F16(_) => Ends::F16,
        Head::Quantized {
            input: head_input, ..
        } => Ends::Int4 { head_input },
    };
    let mut ours = quantize(&float, &scales, &Recipe::QUAMBA, ends).unwrap();
    to_int4(&mut ours, &float, &"w4a8".parse().unwrap()).unwrap();
    for (i, (ours, theirs)) in ours.layers.iter().zip(&theirs.layers).enumerate() {
        assert!(ours.in_proj == theirs.in_proj, "block {i}, in_proj");
        assert!(ours.x_proj == theirs.x_proj, "block {i}, x_proj");
        assert!(ours.out_proj == theirs.out_proj, "block {i}, out_proj");
        assert!(ours == theirs, "block {i}");
    }
    assert_eq!(ours.layers.len(), theirs.layers.len());
    assert!(ours.embedding == theirs.embedding && ours.norm_f == theirs.norm_f);
    assert!(ours.head == theirs.head);
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
fn mode_2_1_is_reproduced_step_by_step_and_as_it_flows() {
    let trace = golden("mode_2-1_len171.npz");
    for feed in [Feed::Local, Feed::Cumulative] {
        let report = deployed(&trace, "2-1", feed);
        assert_eq!(report.exit_code(), 0, "{}", report.summary);
        let exact = |p: &&PointResult| p.mismatched == 0 && p.within_tolerance == 0;
        assert_eq!(
            report.summary.points.iter().filter(exact).count(),
            report.summary.points.len()
        );
    }
    // The order of the sum is part of what is checked.
    let mut profile = Profile::get("deployed").unwrap();
    profile.torch.prefill.scan.sum = SumOrder::Ascending;
    let model = sample::model();
    let table = ModeTable::default();
    let path = Datapath::new(&model, table.get("2-1").unwrap(), &profile).unwrap();
    let report = check(&path, &trace, &CheckOptions::default()).unwrap();
    assert!(report.summary.mismatched() > 0);
}

/// Quotients by a Python number and by a tensor, and the rounding rule that adds a half.
#[test]
fn pytorch_s_quotients_are_reproduced() {
    let cases = read_npz(data("ops/torch_scalars.npz")).unwrap();
    let mut parted = [0; 3];
    for case in 0..5 {
        let of = |name: &str| &cases[&format!("case_{case}/{name}")];
        let Array::F64(scale) = of("scale_f64") else {
            panic!("scale_f64 is f64")
        };
        let scale = Divisor::new(scale.iter().copied().next().unwrap()).unwrap();
        let (Array::F32(x), Array::F16(half)) = (of("x"), of("x_f16")) else {
            panic!("x is f32 and f16")
        };
        let x: Vec<f32> = x.iter().copied().collect();
        let half: Vec<f32> = half.iter().map(|v| from_f16(*v)).collect();
        let rule = QuantRule::NEAREST_EVEN_RECIPROCAL;
        let with = |quotient| QuantRule { quotient, ..rule };
        let codes = |rule: QuantRule, values: &[f32]| {
            let mut codes = vec![0; values.len()];
            let _ = rule.quantize_slice(values, scale, &mut codes);
            codes
        };
        let half_away = QuantRule {
            rounding: Rounding::HalfAwayByAdding,
            ..rule
        };
        for (i, (name, values, rule, other)) in [
            ("codes_python_scale", &x, rule, QuantRule::NEAREST_EVEN),
            ("codes_tensor_scale", &x, QuantRule::NEAREST_EVEN, rule),
            (
                "codes_f16_python_scale",
                &half,
                with(Quotient::RoundedReciprocalInHalf),
                rule,
            ),
            ("codes_half_up_away", &x, half_away, rule),
        ]
        .into_iter()
        .enumerate()
        {
            let Array::I8(want) = of(name) else {
                panic!("{name} is i8")
            };
            let wrong = |got: Vec<i8>| got.iter().zip(want).filter(|(a, b)| a != b).count();
            assert_eq!(wrong(codes(rule, values)), 0, "case {case}: {name}");
            if i > 0 {
                parted[i - 1] += wrong(codes(other, values));
            }
        }
    }
    // The vectors tell each rule from its neighbour.
    assert!(parted.iter().all(|count| *count > 100), "{parted:?}");
}

/// What PyTorch made of u in the modes 5-2 to 6-4.
#[test]
fn quantizers_with_segments_are_reproduced() {
    let cases = read_npz(data("ops/torch_scalars.npz")).unwrap();
    let mut parted = BTreeMap::new();
    for case in 0..5 {
        let of = |name: &str| &cases[&format!("case_{case}/{name}")];
        let scale = |name: &str| match of(name) {
            Array::F64(scale) => Divisor::new(*scale.iter().next().unwrap()).unwrap(),
            _ => panic!("{name} is f64"),
        };
        let floats = |name: &str| match of(name) {
            Array::F32(values) => values.iter().copied().collect::<Vec<f32>>(),
            _ => panic!("{name} is f32"),
        };
        let (s, second) = (scale("scale_f64"), scale("scale_max_f64"));
        for (name, quantizer) in [
            ("u_5_2", "keep"),
            ("u_5_3", "found-scale"),
            ("u_5_4", "quarter-steps"),
            ("u_5_6", "log-tail"),
            ("u_5_7", "three-segments"),
            ("u_6_3", "half-steps-even"),
            ("u_6_4", "second-scale-even"),
        ] {
            let quantizer = QUANTIZERS.iter().find(|q| q.name == quantizer).unwrap();
            let with = quantizer.prepare(s, Quotient::RoundedReciprocal, Some(second));
            let mut values = floats("x");
            let status = with.quantize(&mut values);
            let want = floats(name);
            let wrong = values.iter().zip(&want);
            let wrong = wrong.filter(|(a, b)| a.to_bits() != b.to_bits()).count();
            assert_eq!(wrong, 0, "case {case}: {name}");
            assert_eq!(status.segments.iter().sum::<u64>(), values.len() as u64);
            // Another quotient is seen.
            let other = quantizer.prepare(s, Quotient::Divide, Some(second));
            let mut values = floats("x");
            let _ = other.quantize(&mut values);
            let differ = values.iter().zip(&want).filter(|(a, b)| a != b).count();
            *parted.entry(name).or_insert(0) += differ;
        }
    }
    assert!(parted.values().all(|count| *count > 0), "{parted:?}");
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
