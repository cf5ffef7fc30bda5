//! Explanations: vectors made with one rule, one scale or one layout altered, and what is named
//! first.

use ndarray::{Array1, Array2, Array3, Axis};
use scalescope_golden::attribute::Severity;
use scalescope_golden::check::{CheckOptions, check};
use scalescope_golden::check_op::{Case, Change, Inputs, Part, Vectors, check_op};
use scalescope_golden::diagnose::diagnose;
use scalescope_golden::explain::scales::{FACTORS, ScaleHypothesis, hypotheses};
use scalescope_golden::explain::{Explanation, explain_op, explain_trace};
use scalescope_golden::npz::Array;
use scalescope_golden::ops::{
    Conv1dSilu, HadamardQuant, Linear, LinearCase, LinearInput, Op, RmsNormQuant,
};
use scalescope_golden::selftest::embedded_vectors;
use scalescope_golden::trace_file::TraceFile;
use scalescope_sim::arith::real::RealRules;
use scalescope_sim::arith::requant::{Quotient, ScaleOrder};
use scalescope_sim::arith::round::Rounding;
use scalescope_sim::arith::saturate::Overflow;
use scalescope_sim::datapath::{Datapath, LogitRows};
use scalescope_sim::fault::{Defect, Fault};
use scalescope_sim::mode::ModeTable;
use scalescope_sim::model::Model;
use scalescope_sim::plan::ScaleUse;
use scalescope_sim::profile::{
    Arithmetic, CUDA_FAST, ConvForm, EXACT, Profile, ScanFormula, ScanOrder,
};
use scalescope_sim::quant::{Multiplier, Scale};
use scalescope_sim::sample;
use scalescope_sim::trace::{Recorder, Selection};
use std::sync::Arc;

/// Puts what the cases give under `rules` in the place of what is expected.
fn injected(vectors: &Vectors, rules: &Arithmetic) -> Vectors {
    let mut altered = vectors.clone();
    for case in &mut altered.cases {
        case.expected = case.compute(rules).unwrap();
    }
    altered
}

fn explain(vectors: &Vectors, rules: &Arithmetic) -> Vec<Explanation> {
    let summary = check_op(vectors, rules).unwrap();
    assert!(summary.mismatched() > 0, "the change shows in the vectors");
    explain_op(vectors, rules, &summary).unwrap()
}

/// The change is named first, and explains everything, in every output that it reaches.
fn named_first(vectors: &Vectors, base: Arithmetic, change: Change) {
    let rules = base;
    let mut changed = rules.clone();
    change.apply(&mut changed);
    let words = change
        .describe(
            &rules,
            matches!(vectors.op, Op::Conv1dUpdate | Op::SelectiveScanUpdate),
        )
        .expect("a change");
    let words = format!("{}: {words}", change.step());
    for explanation in explain(&injected(vectors, &changed), &rules) {
        let first = &explanation.findings[0];
        assert_eq!((first.share, &first.change), (1.0, &words), "{explanation}");
        let text = explanation.to_string();
        assert!(
            text.contains(&format!("100 % explained by: {words}")),
            "{text}"
        );
    }
}

fn vectors(op: Op) -> Vectors {
    embedded_vectors(op).unwrap()
}

fn one(op: Op, inputs: Inputs, key: &str) -> Vectors {
    let mut case = Case {
        name: "case_0".into(),
        inputs,
        expected: vec![(key.into(), Array::scalar(0i8))],
    };
    case.expected = case.compute(&CUDA_FAST).unwrap();
    Vectors {
        op,
        cases: vec![case],
        unknown: Vec::new(),
    }
}

/// Every x8 in a row, so that sums hit every tie.
fn ramp(rows: usize, columns: usize) -> Array2<i8> {
    Array2::from_shape_fn((rows, columns), |(i, j)| (i * 37 + j * 11) as u8 as i8)
}

#[test]
fn wrap_or_saturate() {
    let change = Change::HadamardOverflow(Overflow::Saturate);
    named_first(&vectors(Op::HadamardQuant), CUDA_FAST, change);
    let change = Change::ConvOutput(Part::Overflow(Overflow::Wrap));
    named_first(&vectors(Op::Conv1dSilu), CUDA_FAST, change);
    let change = Change::Linear(Part::Overflow(Overflow::Wrap));
    named_first(&vectors(Op::Linear), CUDA_FAST, change);
    let mut scan = vectors(Op::SelectiveScan);
    for case in &mut scan.cases {
        let Inputs::SelectiveScan(inputs) = &mut case.inputs else {
            panic!()
        };
        inputs.parameters.scale_state = inputs.parameters.scale_state.times(0.05).unwrap();
    }
    let change = Change::State(Part::Overflow(Overflow::Wrap));
    named_first(&scan, CUDA_FAST, change);
}

#[test]
fn tie_rules() {
    let to_even = Part::Rounding(Rounding::NearestTiesToEven);
    let away = Part::Rounding(Rounding::NearestTiesAway);
    named_first(&vectors(Op::Linear), CUDA_FAST, Change::Linear(away));
    let unit = Scale::new(1.0).unwrap();
    let conv = Conv1dSilu {
        name: String::new(),
        x: ramp(60, 8).insert_axis(Axis(0)),
        weight: Array2::from_shape_fn((8, 4), |(c, k)| i8::from(k == 3 && c % 2 == 0)),
        bias: Array1::from_elem(8, 3),
        scale_x: unit,
        scale_w: unit,
        scale_b: unit,
        scale_out: Scale::new(2.0).unwrap(),
        out: None,
        out_no_silu: None,
        out_f32: None,
        out_f32_no_silu: None,
    };
    let conv = one(Op::Conv1dSilu, Inputs::Conv1dSilu(conv), "out_no_silu");
    named_first(&conv, CUDA_FAST, Change::ConvOutput(to_even));
    let hadamard = HadamardQuant {
        name: String::new(),
        x: ramp(40, 16).mapv(|q| half::f16::from_f32(f32::from(q / 8))),
        base: 2,
        scale: Multiplier::new(0.5).unwrap(),
        out: None,
        scale_overflow: None,
        out_overflow: None,
    };
    let hadamard = one(Op::HadamardQuant, Inputs::HadamardQuant(hadamard), "out");
    let change = Change::HadamardRounding(Rounding::NearestTiesToEven);
    named_first(&hadamard, CUDA_FAST, change);
    // Rows of ±r have rstd 1/r, so that normed values are ±1 times the weight.
    let norm = RmsNormQuant {
        name: String::new(),
        x: Array2::from_shape_fn((4, 64), |(i, j)| {
            half::f16::from_f32(if (i + j) % 2 == 0 { 4.0 } else { -4.0 })
        }),
        residual: None,
        weight: Array1::from_shape_fn(64, |j| half::f16::from_f32(j as f32 + 0.5)),
        scale: unit,
        eps: 0.0,
        out: None,
        residual_out: None,
        out_no_residual: None,
        residual_out_no_residual: None,
    };
    let norm = one(
        Op::RmsNormQuant,
        Inputs::RmsNormQuant(norm),
        "out_no_residual",
    );
    named_first(&norm, CUDA_FAST, Change::Norm(away));
}

#[test]
fn reciprocal_or_division() {
    // v/s a tie: v is 2.5 s and so on, where the reciprocal is off by an ulp.
    let scale = Scale::new(0.7).unwrap();
    let conv = Conv1dSilu {
        name: String::new(),
        x: ramp(256, 4).insert_axis(Axis(0)),
        weight: Array2::from_shape_fn((4, 2), |(_, k)| i8::from(k == 1)),
        bias: Array1::zeros(4),
        scale_x: Scale::new(0.35).unwrap(),
        scale_w: Scale::new(1.0).unwrap(),
        scale_b: scale,
        scale_out: scale,
        out: None,
        out_no_silu: None,
        out_f32: None,
        out_f32_no_silu: None,
    };
    let mut found = 0;
    for step in 0..60u32 {
        let mut conv = conv.clone();
        conv.scale_x = Scale::new(f32::from_bits(0.35f32.to_bits() + 12_345 * step)).unwrap();
        conv.scale_out = conv.scale_x.times(2.0).unwrap();
        let vectors = one(Op::Conv1dSilu, Inputs::Conv1dSilu(conv), "out_no_silu");
        let change = Change::ConvOutput(Part::Quotient(Quotient::Divide));
        let mut changed = CUDA_FAST;
        change.apply(&mut changed);
        let summary = check_op(&injected(&vectors, &changed), &CUDA_FAST).unwrap();
        if summary.mismatched() > 0 {
            let explained = explain(&injected(&vectors, &changed), &CUDA_FAST);
            // Ties to even gives the same codes by chance where every tie is even: any order.
            let words = "conv: division instead of multiplication by the reciprocal";
            let finding = explained[0].findings.iter().find(|f| f.change == words);
            assert_eq!(finding.map(|f| f.share), Some(1.0), "{}", explained[0]);
            found += 1;
        }
    }
    assert!(found > 5, "{found}");
}

#[test]
fn orders_of_two_scales() {
    let linear = Linear {
        name: String::new(),
        input: LinearInput::Accumulators(Array1::from_iter(-400_000..400_000)),
        a: Multiplier::new(0.623).unwrap(),
        b: Multiplier::new(0.01).unwrap(),
        alpha: None,
        out_i8: None,
        out_f16: None,
        out_i8_channel_major: None,
        gemv_out_i8: None,
        gemv_out_f16: None,
    };
    let row = one(
        Op::Linear,
        Inputs::Linear(LinearCase::Int8(linear.clone())),
        "out_f16",
    );
    for order in [ScaleOrder::ChannelMajor, ScaleOrder::OneRow] {
        named_first(&row, CUDA_FAST, Change::LinearOrder(order));
    }
    let gemv = one(
        Op::Linear,
        Inputs::Linear(LinearCase::Int8(linear)),
        "gemv_out_f16",
    );
    for order in [ScaleOrder::ChannelMajor, ScaleOrder::RowMajor] {
        let mut changed = CUDA_FAST;
        Change::LinearOrder(order).apply(&mut changed);
        let explained = explain(&injected(&gemv, &changed), &CUDA_FAST);
        assert_eq!(explained[0].findings[0].share, 1.0, "{}", explained[0]);
        let named = &explained[0].findings[0].change;
        let want = match order {
            ScaleOrder::RowMajor => "linear: a ⊗ (b ⊗ acc) instead",
            _ => "linear: b ⊗ (a ⊗ acc) instead",
        };
        assert!(named.starts_with(want), "{named}");
    }
}

#[test]
fn conv_forms_and_functions() {
    // Before SiLU, in f32, the forms differ in the last bit.
    let mut conv = vectors(Op::Conv1dSilu);
    for case in &mut conv.cases {
        case.expected.retain(|(key, _)| key == "out_f32_no_silu");
    }
    named_first(&conv, CUDA_FAST, Change::ConvForm(ConvForm::TapChain));
    let mut conv = vectors(Op::Conv1dSilu);
    for case in &mut conv.cases {
        case.expected.retain(|(key, _)| key == "out_f32");
    }
    named_first(
        &conv,
        CUDA_FAST,
        Change::ConvReal(RealRules::CorrectlyRounded),
    );
}

#[test]
fn scans() {
    let mut scan = vectors(Op::SelectiveScan);
    scan.cases
        .retain(|case| matches!(&case.inputs, Inputs::SelectiveScan(s) if s.u.len() < 20_000));
    for case in &mut scan.cases {
        case.expected.retain(|(key, _)| key == "y_no_z");
    }
    named_first(&scan, CUDA_FAST, Change::ScanOrder(ScanOrder::Sequential));
    named_first(&scan, CUDA_FAST, Change::ScanFormula(ScanFormula::Separate));
    named_first(
        &scan,
        CUDA_FAST,
        Change::ScanReal(RealRules::CorrectlyRounded),
    );
    named_first(&scan, EXACT, Change::ScanOrder(ScanOrder::WarpBlock));
    let mut update = vectors(Op::SelectiveScanUpdate);
    let Inputs::SelectiveScanUpdate(inputs) = &mut update.cases[0].inputs else {
        panic!()
    };
    let rows = 300;
    inputs.u = ramp(rows, 64);
    inputs.dt = ramp(rows, 64);
    inputs.z = ramp(rows, 64).mapv(|q| q.wrapping_mul(3));
    inputs.b = ramp(rows, 16);
    inputs.c = ramp(rows, 16).mapv(|q| q.wrapping_mul(5));
    inputs.state_in = Array3::from_shape_fn((rows, 64, 16), |(b, c, n)| {
        (b * 41 + c * 7 + n * 3) as u8 as i8
    });
    update.cases[0].expected = update.cases[0].compute(&CUDA_FAST).unwrap();
    let change = Change::State(Part::Quotient(Quotient::Divide));
    assert_eq!(change.describe(&EXACT, true), None);
    let formula = Change::ScanFormula(ScanFormula::Fused);
    let mut changed = CUDA_FAST;
    formula.apply(&mut changed);
    for case in explain(&injected(&update, &changed), &CUDA_FAST) {
        assert!(
            case.findings[0].change.contains("prefill kernel's formula"),
            "{case}"
        );
    }
}

#[test]
fn scales_off_by_a_factor_and_applied_twice() {
    let base = CUDA_FAST;
    for op in [
        Op::Conv1dSilu,
        Op::Conv1dUpdate,
        Op::SelectiveScanUpdate,
        Op::Linear,
    ] {
        let mut vectors = vectors(op);
        vectors.cases.truncate(1);
        vectors.cases[0].expected.truncate(1);
        let all = hypotheses(&vectors.cases[0].inputs);
        assert!(all.len() >= 2 * FACTORS.len());
        for hypothesis in all {
            let mut altered = vectors.clone();
            hypothesis.apply(&mut altered.cases[0].inputs).unwrap();
            let mut golden = vectors.clone();
            golden.cases[0].expected = altered.cases[0].compute(&base).unwrap();
            let summary = check_op(&golden, &base).unwrap();
            // A few codes prove no factor; and x·2, w·2, 1/out·2 are one and the same.
            if summary.mismatched() < 200 {
                continue;
            }
            let explained = explain_op(&golden, &base, &summary).unwrap();
            let first = &explained[0].findings[0];
            assert_eq!(first.share, 1.0, "{hypothesis}: {}", explained[0]);
            assert!(
                first.change.starts_with("scale:"),
                "{hypothesis}: {}",
                explained[0]
            );
        }
    }
    let twice = ScaleHypothesis {
        scale: "scale_x",
        factor: None,
    };
    let vectors = vectors(Op::Conv1dSilu);
    let mut golden = vectors.clone();
    for (case, golden) in vectors.cases.iter().zip(&mut golden.cases) {
        let mut altered = case.clone();
        twice.apply(&mut altered.inputs).unwrap();
        golden.expected = altered.compute(&base).unwrap();
    }
    for explanation in explain(&golden, &base) {
        assert_eq!(
            explanation.findings[0].change,
            "scale: scale_x applied twice"
        );
        assert_eq!(explanation.findings[0].share, 1.0);
    }
}

#[test]
fn layouts() {
    let base = CUDA_FAST;
    let mut vectors = vectors(Op::Conv1dSilu);
    vectors.cases.retain(|case| case.name == "case_2");
    vectors.cases[0]
        .expected
        .retain(|(key, _)| key == "out_no_silu");
    let Array::I8(out) = &vectors.cases[0].expected[0].1 else {
        panic!()
    };
    let out: Array3<i8> = out.clone().into_dimensionality().unwrap();
    let (rows, channels) = (out.dim().1, out.dim().2);
    // Right data, transposed and poured into the old shape.
    let poured: Vec<i8> = out.index_axis(Axis(0), 0).t().iter().copied().collect();
    let transposed = Array3::from_shape_vec((1, rows, channels), poured).unwrap();
    let shifted = Array3::from_shape_fn(out.dim(), |(b, t, c)| match t {
        0 => 0,
        _ => out[(b, t - 1, c)],
    });
    for (altered, word) in [
        (transposed, "transposed"),
        (shifted, "shifted by +1 tokens"),
    ] {
        let mut golden = vectors.clone();
        golden.cases[0].expected[0].1 = altered.into_dyn().into();
        let explained = explain(&golden, &base);
        let first = &explained[0].findings[0];
        assert!(first.change.contains(word), "{}", explained[0]);
        assert!(first.share > 0.9, "{}", explained[0]);
    }
}

/// A whole trace made with one rule altered.
#[test]
fn traces() {
    // Scales a third of what fits, so that quantizers overflow.
    let mut quantized = sample::model().quantized.unwrap().as_ref().clone();
    for layer in &mut quantized.layers {
        let scales = &mut layer.scales;
        scales.out_proj_input = scales.out_proj_input.times(0.3).unwrap();
        scales.x_proj_input = scales.x_proj_input.times(0.3).unwrap();
    }
    let model = Model {
        quantized: Some(Arc::new(quantized)),
        ..Model::default()
    };
    let table = ModeTable::default();
    let mode = table.get("0").unwrap();
    let profile = Profile::get("deployed").unwrap();
    let tokens = Array2::from_shape_fn((1, 64), |(_, t)| (97 * t * t + 13 * t) as u32 % 8192);
    let options = CheckOptions {
        keep: true,
        ..CheckOptions::default()
    };
    let path = Datapath::new(&model, mode, &profile).unwrap();
    for (change, point, words) in [
        (
            Change::HadamardOverflow(Overflow::Saturate),
            "had_out",
            "Hadamard (cuda): saturate instead of wrap",
        ),
        (
            Change::ScanOrder(ScanOrder::Sequential),
            "ssm_y",
            "scan (cuda): sequential scan instead of block scan",
        ),
        (
            Change::ConvOutput(Part::Overflow(Overflow::Wrap)),
            "conv_out",
            "conv (cuda): wrap instead of saturate",
        ),
    ] {
        let mut altered = profile.clone();
        change.apply(&mut altered.cuda);
        let mut recorder = Recorder::new(Selection::default());
        Datapath::new(&model, mode, &altered)
            .unwrap()
            .prefill(&tokens.row(0).to_vec(), LogitRows::None, &mut recorder)
            .unwrap();
        let trace = TraceFile::from_recorders(tokens.clone(), [recorder]).unwrap();
        let report = check(&path, &trace, &options).unwrap();
        assert_eq!(report.exit_code(), 1, "{words}");
        let explained = explain_trace((&model, mode, &profile), &trace, &options, &report).unwrap();
        assert_eq!(explained.len(), 1, "{explained:?}");
        assert_eq!(explained[0].group, point);
        assert_eq!(explained[0].findings[0].change, words, "{}", explained[0]);
        assert_eq!(explained[0].findings[0].share, 1.0);
    }
}

/// A scale that is stale in every block: `check --explain` and `attribute` name the use that is wrong, in
/// every tensor that it alters, and nothing else before it.
#[test]
fn a_stale_scale_in_every_block_is_one_cause_for_both_engines() {
    let model = sample::model();
    let table = ModeTable::default();
    let profile = Profile::get("exact").unwrap();
    let tokens = Array2::from_shape_fn((1, 24), |(_, t)| (97 * t * t + 13 * t) as u32 % 8192);
    let options = CheckOptions {
        keep: true,
        ..CheckOptions::default()
    };
    for (mode, scale, points) in [
        ("0", "scan_dt", &["ssm_y", "ssm_state"][..]),
        ("0", "scan_u", &["ssm_y", "ssm_state"]),
        ("0", "scan_b", &["ssm_y", "ssm_state"]),
        ("3", "in_proj_out", &["in_proj_z"]),
        ("3-grid", "conv_in", &["conv_in_scale"]),
    ] {
        let fault: Fault = format!("stale-scale@site={scale},factor=2")
            .parse()
            .unwrap();
        let mode = table.get(mode).unwrap();
        let mut recorder = Recorder::new(Selection::default());
        Datapath::with_faults(&model, mode, &profile, &[fault])
            .unwrap()
            .prefill(&tokens.row(0).to_vec(), LogitRows::None, &mut recorder)
            .unwrap();
        // Scales would tell; a dump has none.
        let mut trace = TraceFile::from_recorders(tokens.clone(), [recorder]).unwrap();
        trace.scales.clear();
        let path = Datapath::new(&model, mode, &profile).unwrap();
        let report = check(&path, &trace, &options).unwrap();
        let explained = explain_trace((&model, mode, &profile), &trace, &options, &report).unwrap();
        let groups: Vec<&str> = explained.iter().map(|e| e.group.as_str()).collect();
        assert_eq!(groups, points, "{} {scale}", mode.name);
        for explanation in &explained {
            let first = &explanation.findings[0];
            let words = format!("scale: {scale} times 2");
            assert_eq!((&first.change, first.share), (&words, 1.0), "{explanation}");
        }
        let found = diagnose(&model, mode, &trace, std::slice::from_ref(&profile)).unwrap();
        let first = &found.findings[0];
        assert_eq!(first.severity, Severity::Error);
        // A calibrated scale's name means its quantizers: here one.
        let named: Fault = first.fault.as_deref().unwrap_or_default().parse().unwrap();
        let (Defect::StaleScale { site, factor }, None) = (named.defect, named.layer) else {
            panic!("{} {scale}: {:?}", mode.name, found.findings);
        };
        let uses: Vec<&str> = site.uses().map(ScaleUse::name).collect();
        assert_eq!((uses, factor), (vec![scale], 2.0), "{:?}", found.findings);
        let wrong = found
            .findings
            .iter()
            .filter(|f| f.severity == Severity::Error);
        assert_eq!(wrong.count(), 1, "{:?}", found.findings);
    }
}
