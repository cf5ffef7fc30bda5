//! What is wrong with vectors of an operation, and with decode steps: made with one rule, one scale, one input
//! or one layout altered, and what is named first.

use ndarray::{Array1, Array2, Array3, Axis, s};
use scalescope_golden::check::{CheckOptions, check};
use scalescope_golden::check_op::{Case, Inputs, ScaleOf, Vectors, check_op, scales};
use scalescope_golden::diagnosis::diagnose::{diagnose, diagnose_steps, diagnose_vectors};
use scalescope_golden::diagnosis::finding::{Finding, Severity};
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
use scalescope_sim::plan::ScaleUse;
use scalescope_sim::profile::{
    Arithmetic, CUDA_FAST, ConvForm, EXACT, Profile, ScanFormula, ScanOrder, StepRules,
};
use scalescope_sim::quant::{Multiplier, Scale};
use scalescope_sim::sample;
use scalescope_sim::trace::{Recorder, Selection};

/// Puts what the cases give under `rules` in the place of what is expected.
fn injected(vectors: &Vectors, rules: &Arithmetic) -> Vectors {
    let mut altered = vectors.clone();
    for case in &mut altered.cases {
        case.expected = case.compute(rules).unwrap();
    }
    altered
}

/// What is said of each output that mismatches, leads left out.
fn explain(vectors: &Vectors, rules: &Arithmetic) -> Vec<Finding> {
    let summary = check_op(vectors, rules).unwrap();
    assert!(summary.mismatched() > 0, "the change shows in the vectors");
    let mut found = diagnose_vectors(vectors, rules, &summary).unwrap();
    found.retain(|f| f.severity == Severity::Error);
    found
}

/// Whether a finding explains every element, by these words or by others that leave as little.
fn says(finding: &Finding, words: &str) -> bool {
    let whole = finding
        .explained
        .is_some_and(|e| e.explained == e.deviating);
    let own = finding.edit.iter().chain(&finding.alike);
    whole && own.into_iter().any(|w| w == words)
}

/// The change is named, and explains everything, in every output that it reaches.
fn named(vectors: &Vectors, base: &Arithmetic, change: fn(&mut StepRules), words: &str) {
    let mut changed = base.clone();
    change(&mut changed.prefill);
    change(&mut changed.decode);
    for finding in explain(&injected(vectors, &changed), base) {
        assert!(says(&finding, words), "{words}: {}", finding.evidence);
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
    let beyond = |what| format!("the quantizer treats values beyond its range differently: {what}");
    let (saturate, wrap) = (beyond("saturate"), beyond("wrap"));
    let change = |r: &mut StepRules| r.hadamard.overflow = Overflow::Saturate;
    named(&vectors(Op::HadamardQuant), &CUDA_FAST, change, &saturate);
    let change = |r: &mut StepRules| r.conv.output.overflow = Overflow::Wrap;
    named(&vectors(Op::Conv1dSilu), &CUDA_FAST, change, &wrap);
    let change = |r: &mut StepRules| {
        for l in r.linear.each_mut() {
            l.output.overflow = Overflow::Wrap;
        }
    };
    named(&vectors(Op::Linear), &CUDA_FAST, change, &wrap);
    let mut scan = vectors(Op::SelectiveScan);
    for case in &mut scan.cases {
        let Inputs::SelectiveScan(inputs) = &mut case.inputs else {
            panic!()
        };
        inputs.parameters.scale_state = inputs.parameters.scale_state.times(0.05).unwrap();
    }
    for case in &mut scan.cases {
        case.expected.retain(|(key, _)| key == "state");
    }
    let change = |r: &mut StepRules| r.scan.state.overflow = Overflow::Wrap;
    named(&scan, &CUDA_FAST, change, &wrap);
}

#[test]
fn tie_rules() {
    let rounds = |what| format!("the quantizer rounds differently: {what}");
    let (to_even, away) = (rounds("ties to even"), rounds("ties away from zero"));
    let change = |r: &mut StepRules| {
        for l in r.linear.each_mut() {
            l.output.rounding = Rounding::NearestTiesAway;
        }
    };
    named(&vectors(Op::Linear), &CUDA_FAST, change, &away);
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
    let change = |r: &mut StepRules| r.conv.output.rounding = Rounding::NearestTiesToEven;
    named(&conv, &CUDA_FAST, change, &to_even);
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
    let change = |r: &mut StepRules| r.hadamard.rounding = Rounding::NearestTiesToEven;
    named(&hadamard, &CUDA_FAST, change, &to_even);
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
    let change = |r: &mut StepRules| r.norm_out.rounding = Rounding::NearestTiesAway;
    named(&norm, &CUDA_FAST, change, &away);
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
    for step in 0..12u32 {
        let mut conv = conv.clone();
        conv.scale_x = Scale::new(f32::from_bits(0.35f32.to_bits() + 12_345 * step)).unwrap();
        conv.scale_out = conv.scale_x.times(2.0).unwrap();
        let vectors = one(Op::Conv1dSilu, Inputs::Conv1dSilu(conv), "out_no_silu");
        let mut changed = CUDA_FAST;
        changed.prefill.conv.output.quotient = Quotient::Divide;
        let summary = check_op(&injected(&vectors, &changed), &CUDA_FAST).unwrap();
        if summary.mismatched() > 0 {
            let explained = explain(&injected(&vectors, &changed), &CUDA_FAST);
            // Ties to even gives the same codes by chance where every tie is even: any order.
            let words = "the quantizer divides differently: division";
            assert!(says(&explained[0], words), "{}", explained[0].evidence);
            found += 1;
        }
    }
    assert!(found > 1, "{found}");
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
    let change = |r: &mut StepRules| {
        for l in r.linear.each_mut() {
            l.order = ScaleOrder::OneRow;
        }
    };
    named(
        &row,
        &CUDA_FAST,
        change,
        "factors in another order: (b ⊗ a) ⊗ acc",
    );
    let change = |r: &mut StepRules| {
        for l in r.linear.each_mut() {
            l.order = ScaleOrder::ChannelMajor;
        }
    };
    let words = "factors in another order: b ⊗ (a ⊗ acc)";
    named(&row, &CUDA_FAST, change, words);
    let gemv = one(
        Op::Linear,
        Inputs::Linear(LinearCase::Int8(linear)),
        "gemv_out_f16",
    );
    named(&gemv, &CUDA_FAST, change, words);
}

#[test]
fn conv_forms_and_functions() {
    // Before SiLU, in f32, the forms differ in the last bit.
    let mut conv = vectors(Op::Conv1dSilu);
    for case in &mut conv.cases {
        case.expected.retain(|(key, _)| key == "out_f32_no_silu");
    }
    let change = |r: &mut StepRules| r.conv.form = ConvForm::TapChain;
    named(&conv, &CUDA_FAST, change, "conv: fma tap by tap");
    let mut conv = vectors(Op::Conv1dSilu);
    for case in &mut conv.cases {
        case.expected.retain(|(key, _)| key == "out_f32");
    }
    let change = |r: &mut StepRules| r.conv.real = RealRules::CorrectlyRounded;
    named(
        &conv,
        &CUDA_FAST,
        change,
        "conv: correctly rounded functions",
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
    let change = |r: &mut StepRules| r.scan.order = ScanOrder::Sequential;
    named(&scan, &CUDA_FAST, change, "scan: sequential scan");
    let change = |r: &mut StepRules| r.scan.formula = ScanFormula::Separate;
    let words = "scan: PyTorch's formula (separate roundings)";
    named(&scan, &CUDA_FAST, change, words);
    let change = |r: &mut StepRules| r.scan.real = RealRules::CorrectlyRounded;
    named(
        &scan,
        &CUDA_FAST,
        change,
        "scan: correctly rounded functions",
    );
    let change = |r: &mut StepRules| r.scan.order = ScanOrder::WarpBlock;
    named(&scan, &EXACT, change, "scan: block scan");
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
    let change = |r: &mut StepRules| r.scan.formula = ScanFormula::Fused;
    let words = "scan: prefill kernel's formula (fma)";
    named(&update, &CUDA_FAST, change, words);
}

/// What the file has is what other inputs make: no rule and no scale is in question.
#[test]
fn edits_of_the_formula() {
    let altered = |op, key: &str, alter: &dyn Fn(&mut Inputs)| -> Finding {
        let mut vectors = vectors(op);
        // As many channels as rows.
        let most = |case: &Case| {
            let array = &case.expected[0].1;
            let channels = *array.shape().last().unwrap();
            channels.min(array.len() / channels)
        };
        vectors
            .cases
            .retain(|case| case.expected.iter().any(|(k, _)| k == key));
        let largest = vectors.cases.iter().map(most).max().unwrap();
        vectors.cases.retain(|case| most(case) == largest);
        vectors.cases.truncate(1);
        let case = &mut vectors.cases[0];
        case.expected.retain(|(k, _)| k == key);
        let mut other = case.clone();
        alter(&mut other.inputs);
        case.expected = other.compute(&CUDA_FAST).unwrap();
        let found = explain(&vectors, &CUDA_FAST);
        found.into_iter().next().unwrap()
    };
    let conv = |inputs: &mut Inputs, f: &dyn Fn(&mut Conv1dSilu)| match inputs {
        Inputs::Conv1dSilu(c) => f(c),
        _ => panic!(),
    };
    let found = altered(Op::Conv1dSilu, "out", &|i| conv(i, &|c| c.bias.fill(0)));
    assert!(says(&found, "the bias is missing"), "{}", found.evidence);
    assert_eq!(found.kind, "left-out");
    let found = altered(Op::Conv1dSilu, "out", &|i| {
        conv(i, &|c| c.weight = c.weight.slice(s![.., ..;-1]).to_owned());
    });
    assert!(
        says(&found, "the taps are in reverse"),
        "{}",
        found.evidence
    );
    // Channels from 8 on alone: the pattern says so, and the edit keeps to it.
    let found = altered(Op::Conv1dSilu, "out", &|i| {
        conv(i, &|c| c.bias.slice_mut(s![8..]).fill(0));
    });
    assert_eq!(
        found.edit.as_deref(),
        Some("the bias is missing"),
        "{}",
        found.evidence
    );
    assert!(found.pattern.unwrap().channels.is_part());
    for (words, alter) in [
        (
            "the skip term D·u is missing",
            (|s| s.parameters.d.fill(0)) as fn(&mut scalescope_golden::ops::SelectiveScan),
        ),
        ("C is B", |s| {
            s.c = s.b.clone();
            s.parameters.scale_c = s.parameters.scale_b;
        }),
    ] {
        let found = altered(Op::SelectiveScan, "y", &|i| match i {
            Inputs::SelectiveScan(scan) => alter(scan),
            _ => panic!(),
        });
        assert!(says(&found, words), "{words}: {}", found.evidence);
    }
    let product = |inputs: &mut Inputs| match inputs {
        Inputs::Linear(LinearCase::Int8(Linear {
            input: LinearInput::Product { weight, .. },
            ..
        })) => {
            let k = weight.ncols();
            weight.slice_mut(s![.., k - 16..]).fill(0);
            k
        }
        _ => panic!(),
    };
    let mut vectors = vectors(Op::Linear);
    let is_product = |case: &Case| {
        let Inputs::Linear(LinearCase::Int8(c)) = &case.inputs else {
            return false;
        };
        matches!(&c.input, LinearInput::Product { weight, .. } if weight.ncols() > 32)
    };
    vectors.cases.retain(is_product);
    let case = &mut vectors.cases[0];
    case.expected.retain(|(key, _)| key == "out_i8");
    let mut other = case.clone();
    let k = product(&mut other.inputs);
    case.expected = other.compute(&CUDA_FAST).unwrap();
    vectors.cases.truncate(1);
    let found = &explain(&vectors, &CUDA_FAST)[0];
    let words = format!("the last 16 of {k} inputs are not summed");
    assert!(says(found, &words), "{}", found.evidence);
}

/// Noise is no cause: a tenth of the codes are any.
#[test]
fn what_nothing_explains_is_none() {
    let mut vectors = vectors(Op::Conv1dSilu);
    vectors.cases.truncate(1);
    vectors.cases[0].expected.retain(|(key, _)| key == "out");
    let Array::I8(out) = &mut vectors.cases[0].expected[0].1 else {
        panic!()
    };
    for (i, code) in out.iter_mut().enumerate().filter(|(i, _)| i * i % 10 == 1) {
        *code = (i * 7919 % 251) as u8 as i8;
    }
    let found = explain(&vectors, &CUDA_FAST);
    assert_eq!(found[0].kind, "none", "{}", found[0].evidence);
}

#[test]
fn scales_off_by_a_factor_and_applied_twice() {
    let base = CUDA_FAST;
    for op in [Op::Conv1dSilu, Op::SelectiveScanUpdate, Op::Linear] {
        let mut vectors = vectors(op);
        vectors.cases.truncate(1);
        vectors.cases[0].expected.truncate(1);
        let names = scales(&vectors.cases[0].inputs);
        assert!(names.len() >= 2);
        for (i, name) in names.into_iter().enumerate() {
            let factor = [2.0, 0.93, 1.26][i % 3];
            let scale = ScaleOf {
                name,
                factor: Some(factor),
            };
            let mut golden = vectors.clone();
            let mut altered = vectors.cases[0].clone();
            scale.apply(&mut altered.inputs).unwrap();
            golden.cases[0].expected = altered.compute(&base).unwrap();
            let summary = check_op(&golden, &base).unwrap();
            // A few codes prove no factor; and x·2, w·2, 1/out·2 are one and the same.
            if summary.mismatched() < 200 {
                continue;
            }
            let found = &explain(&golden, &base)[0];
            let whole = found.explained.is_some_and(|e| e.explained == e.deviating);
            assert!(whole, "{scale}: {}", found.evidence);
            assert_eq!(found.kind, "stale-scale", "{scale}: {}", found.evidence);
        }
    }
    let twice = ScaleOf {
        name: "scale_x",
        factor: None,
    };
    let mut golden = vectors(Op::Conv1dSilu);
    golden.cases.truncate(2);
    for case in &mut golden.cases {
        let mut altered = case.clone();
        twice.apply(&mut altered.inputs).unwrap();
        case.expected = altered.compute(&base).unwrap();
    }
    for found in explain(&golden, &base) {
        assert!(
            says(&found, "the scale scale_x is applied twice"),
            "{}",
            found.evidence
        );
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
    for (altered, words) in [
        (transposed, "it is written column by column"),
        (shifted, "each token has the output of the previous token"),
    ] {
        let mut golden = vectors.clone();
        golden.cases[0].expected[0].1 = altered.into_dyn().into();
        let found = &explain(&golden, &base)[0];
        assert!(says(found, words), "{}", found.evidence);
    }
}

/// Decode steps with a fault: the step, the block and the fault are named; a clean prefill before them is in
/// order.
#[test]
fn decode_steps() {
    let (model, table) = (sample::model(), ModeTable::default());
    let (mode, profile) = (table.get("0").unwrap(), Profile::get("exact").unwrap());
    let clean = Datapath::new(&model, mode, &profile).unwrap();
    let prompt: Vec<u32> = (0..8).map(|t| 97 * t * t + 13 * t).collect();
    for (fault, words) in [
        (
            "stale-scale@layer=3,site=x_proj_in,factor=1.26",
            "the scale x_proj_in is multiplied by 1.26",
        ),
        ("swapped-bc@layer=5", "the scan takes C for B and B for C"),
    ] {
        let fault: Fault = fault.parse().unwrap();
        let faulty = Datapath::with_faults(&model, mode, &profile, &[fault]).unwrap();
        let mut recorder = Recorder::new(Selection::default());
        let (_, mut state) = clean
            .prefill(&prompt, LogitRows::None, &mut recorder)
            .unwrap();
        let ids = Array2::from_shape_vec((1, prompt.len()), prompt.clone()).unwrap();
        let mut trace = TraceFile::from_recorders(ids, [recorder]).unwrap();
        let mut recorder = Recorder::new(Selection::default());
        faulty.decode(40, &mut state, &mut recorder).unwrap();
        trace.push_step(&[40], [recorder]).unwrap();
        let options = CheckOptions {
            keep: true,
            ..CheckOptions::default()
        };
        let report = check(&clean, &trace, &options).unwrap();
        assert_eq!(report.exit_code(), 1);
        let found = diagnose_steps((&model, mode, &profile), &trace, &options, &report).unwrap();
        let first = &found[0];
        assert_eq!(
            (first.edit.as_deref(), first.layer),
            (Some(words), fault.layer),
            "{found:?}"
        );
        let again: Fault = first.fault.as_deref().unwrap_or_default().parse().unwrap();
        assert_eq!(again, fault);
        assert!(
            first.evidence.starts_with("decode step 0, block"),
            "{}",
            first.evidence
        );
        let one = std::slice::from_ref(&profile);
        let prefill = diagnose(&model, mode, &trace, one).unwrap();
        assert!(
            prefill
                .findings
                .iter()
                .all(|f| f.severity == Severity::Info)
        );
    }
}

/// A scale that is stale in every block: the use that is wrong is named, and nothing else before it.
#[test]
fn a_stale_scale_in_every_block_is_one_cause() {
    let model = sample::model();
    let table = ModeTable::default();
    let profile = Profile::get("exact").unwrap();
    let tokens = Array2::from_shape_fn((1, 24), |(_, t)| (97 * t * t + 13 * t) as u32 % 8192);
    for (mode, scale) in [
        ("0", "scan_dt"),
        ("0", "scan_u"),
        ("0", "scan_b"),
        ("3", "in_proj_out"),
        ("3-grid", "conv_in"),
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
