//! Profile files: keys and their ranges, hashes, the chip profiles on the sample model.

use proptest::prelude::*;
use scalescope_sim::arith::function::{Function, Inputs};
use scalescope_sim::datapath::{Datapath, LogitRows};
use scalescope_sim::mode::ModeTable;
use scalescope_sim::profile::{CHIP_PROFILES, Profile};
use scalescope_sim::quant::QWeight;
use scalescope_sim::sample;
use scalescope_sim::score::{SequenceScore, perplexity};
use scalescope_sim::trace::{Blind, Place, Recorder, Selection, Tensor, TracePoint};

fn profile(text: &str) -> Profile {
    Profile::from_toml("test", text).unwrap_or_else(|e| panic!("{text}: {e}"))
}

fn logits_of(mode: &str, profile: &Profile, tokens: &[u32]) -> Tensor {
    let model = sample::model();
    let table = ModeTable::default();
    let path = Datapath::new(&model, table.get(mode).unwrap(), profile).unwrap();
    path.prefill(tokens, LogitRows::All, &mut Blind).unwrap().0
}

fn tokens(length: u32) -> Vec<u32> {
    (0..length)
        .map(|t| (97 * t * t + 13 * t + 5) % 8192)
        .collect()
}

#[test]
fn bad_keys_and_values_are_refused_by_name() {
    for (text, parts) in [
        ("version = 2", "version: expected 1 to 1, found 2"),
        ("", "version"),
        ("version = 1\nspeed = 9", "speed"),
        (
            "version = 1\nextends = \"asic\"",
            "profile: expected one of exact, torch, torch-cpu, deployed, asic-int8",
        ),
        (
            "version = 1\n[requant]\nmultiplyer_bits = 8",
            "requant.multiplyer_bits: expected",
        ),
        (
            "version = 1\n[requant]\nscaling = \"fixed\"\nmultiplier_bits = 33",
            "requant.multiplier_bits: expected 8 to 32, found 33",
        ),
        (
            "version = 1\n[requant]\nmultiplier_bits = 8",
            "requant.multiplier_bits: expected scaling = \"fixed\" beside it",
        ),
        (
            "version = 1\n[requant]\nrounding = \"up\"",
            "requant.rounding",
        ),
        (
            "version = 1\n[requant.conv]\nscaling = \"fixed\"\nmultiplier_bits = 7",
            "requant.conv.multiplier_bits: expected 8 to 32",
        ),
        (
            "version = 1\n[accumulator]\nbits = 65",
            "accumulator.bits: expected 8 to 64, found 65",
        ),
        (
            "version = 1\n[accumulator.conv]\nbits = 7",
            "accumulator.conv.bits: expected 8 to 64, found 7",
        ),
        (
            "version = 1\n[weights]\nbits = 5",
            "weights.bits: expected 4 or 8, found 5",
        ),
        ("version = 1\n[scan]\nstate = \"int12\"", "scan.state"),
        (
            "version = 1\n[scan]\nheadroom = 2",
            "scan.headroom: expected state = \"int8\"",
        ),
        (
            "version = 1\n[scan]\nblock = 8",
            "scan.block: expected order",
        ),
        (
            "version = 1\n[scan]\norder = \"kogge-stone\"\nblock = 48",
            "scan.block: expected a power of two",
        ),
        (
            "version = 1\n[scan]\nrequantize_every = 4",
            "scan.requantize_every",
        ),
        (
            "version = 1\n[hadamard]\nbits = 16",
            "hadamard.bits: expected form = \"integer\"",
        ),
        (
            "version = 1\n[hadamard]\nform = \"integer\"\nbits = 25",
            "hadamard.bits: expected 8 to 24, found 25",
        ),
        (
            "version = 1\n[nonlinearity.exp]\nform = \"table\"\nentries = 100",
            "nonlinearity.exp.entries: expected 1 to 65536 segments",
        ),
        (
            "version = 1\n[nonlinearity.silu]\nform = \"shift\"",
            "nonlinearity.silu.form",
        ),
        (
            "version = 1\n[nonlinearity.silu]\nform = \"table\"\nrange = [-8, 8]\nbeyond = \"clamp\"",
            "nonlinearity.silu.range: expected a range that covers the input, [-16, 16] at least",
        ),
        (
            "version = 1\n[nonlinearity.exp]\nform = \"polynomial\"\ndegree = 4",
            "nonlinearity.exp.degree: expected 1 to 3, found 4",
        ),
        (
            "version = 1\n[nonlinearity.exp]\nform = \"table\"\nentries = 65537",
            "nonlinearity.exp.entries: expected 1 to 65536, found 65537",
        ),
        (
            "version = 1\nseed = -1",
            "seed: expected 0 to 4294967295, found -1",
        ),
        (
            "version = 1\n[activations]\ngranularity = \"channel\"",
            "activations.granularity: expected",
        ),
        (
            "version = 1\n[weights]\nconv_granularity = \"group\"",
            "weights.conv_granularity: expected",
        ),
    ] {
        let error = Profile::from_toml("test", text).unwrap_err().to_string();
        assert!(error.contains(parts), "{text:?}\n gave {error}");
        assert!(!error.contains('\n'), "{error}");
    }
}

#[test]
fn a_hash_names_rules_and_not_names() {
    let exact = Profile::get("exact").unwrap();
    assert_eq!(profile("version = 1").hash(), exact.hash());
    assert_eq!(
        profile("version = 1\nsummary = \"mine\"\n[requant]\nscaling = \"f32\"").hash(),
        exact.hash()
    );
    let mut hashes: Vec<String> = Profile::names()
        .iter()
        .map(|n| Profile::get(n).unwrap().hash())
        .collect();
    hashes.push(profile("version = 1\n[accumulator]\nbits = 31").hash());
    hashes.push(profile("version = 1\n[weights]\nbits = 4").hash());
    let count = hashes.len();
    hashes.sort();
    hashes.dedup();
    assert_eq!(hashes.len(), count);
    assert!(hashes.iter().all(|h| h.len() == 64));
}

/// Keys over a file, as a sweep sets them: what the file says of a fixed-point state does not stand in
/// the way of a float one.
#[test]
fn keys_go_over_a_file() {
    let text = Profile::text("asic-int8").unwrap();
    let with = |key: &str, value: serde_json::Value| {
        Profile::with_keys("test", &text, &[(key.to_owned(), value)])
    };
    let by_file =
        |text: &str| profile(&format!("version = 1\nextends = \"asic-int8\"\n{text}")).hash();
    for (key, value, file) in [
        (
            "scan.state",
            serde_json::json!("f16"),
            "[scan]\nstate = \"f16\"",
        ),
        (
            "scan.state",
            serde_json::json!("int8"),
            "[scan]\nstate = \"int8\"",
        ),
        (
            "requant.multiplier_bits",
            serde_json::json!(9),
            "[requant]\nmultiplier_bits = 9",
        ),
        (
            "nonlinearity.exp.entries",
            serde_json::json!(64),
            "[nonlinearity.exp]\nentries = 64",
        ),
    ] {
        assert_eq!(with(key, value).unwrap().hash(), by_file(file), "{key}");
    }
    let error = with("scan.state.bits", serde_json::json!(3))
        .unwrap_err()
        .to_string();
    assert!(error.contains("scan") && !error.contains('\n'), "{error}");
}

#[test]
fn rules_of_kernels_keep_their_kernels() {
    assert!(!profile("version = 1\n[accumulator]\nbits = 20").has_units());
    for name in ["exact", "torch", "deployed"] {
        assert!(!Profile::get(name).unwrap().has_units());
    }
    for (name, _) in CHIP_PROFILES {
        assert!(Profile::get(name).unwrap().has_units());
    }
}

#[test]
fn the_float_model_has_no_units() {
    let (asic, exact) = (
        Profile::get("asic-int8").unwrap(),
        Profile::get("exact").unwrap(),
    );
    let tokens = tokens(9);
    assert_eq!(
        logits_of("1", &asic, &tokens),
        logits_of("1", &exact, &tokens)
    );
}

/// What the scan unit computes with exact functions and an f32 state is the kernels' `exact` scan:
/// the scalar form against the vectors, bit for bit.
#[test]
fn a_plain_unit_is_the_exact_scan() {
    let exact = Profile::get("exact").unwrap();
    let mut unit = exact.clone();
    for arithmetic in [&mut unit.cuda, &mut unit.torch] {
        for rules in [&mut arithmetic.prefill, &mut arithmetic.decode] {
            rules.scan.unit = Some(scalescope_sim::profile::unit::ScanUnit::PLAIN);
        }
    }
    let tokens = tokens(33);
    assert_eq!(
        logits_of("0", &unit, &tokens),
        logits_of("0", &exact, &tokens)
    );
}

/// Accuracy of every chip profile on the sample text: the figures of docs/asic.md, on fewer tokens.
#[test]
fn chip_profiles_stay_near_the_kernels() {
    let tokenizer = tokenizers::Tokenizer::from_bytes(sample::tokenizer_json()).unwrap();
    let text = &sample::texts()[0];
    let mut ids = tokenizer
        .encode(&text[..], false)
        .unwrap()
        .get_ids()
        .to_vec();
    ids.truncate(192);
    let perplexity_of = |name: &str| {
        let logits = logits_of("0", &Profile::get(name).unwrap(), &ids).to_real();
        perplexity(&SequenceScore::new(&ids, &logits).log_likelihood)
    };
    let exact = perplexity_of("exact");
    for (name, within) in [
        ("asic-int8", 0.02),
        ("tflite-single", 0.02),
        ("tflite-double", 0.02),
        ("pow2", 0.06),
    ] {
        let ratio = perplexity_of(name) / exact;
        assert!((ratio - 1.0).abs() < within, "{name}: {ratio}");
    }
}

#[test]
fn results_do_not_depend_on_threads() {
    // Every quantizer stochastic, those of the kernels too.
    let f32s = profile(
        "version = 1\n[requant]\nrounding = \"stochastic\"\n[quantizer]\nrounding = \"stochastic\"",
    );
    let logits = |threads: usize| {
        let pool = rayon::ThreadPoolBuilder::new()
            .num_threads(threads)
            .build()
            .unwrap();
        pool.install(|| logits_of("0", &f32s, &tokens(40)))
    };
    assert_eq!(logits(1), logits(5));
    let text = "version = 1\nextends = \"asic-int8\"\nseed = 9\n[requant]\nrounding = \"stochastic\"\n\
                [quantizer]\nrounding = \"stochastic\"\n[scan]\nrounding = \"stochastic\"";
    let (profile, tokens) = (profile(text), tokens(40));
    let run = |threads: usize| {
        let pool = rayon::ThreadPoolBuilder::new()
            .num_threads(threads)
            .build()
            .unwrap();
        pool.install(|| logits_of("0", &profile, &tokens))
    };
    let one = run(1);
    assert_eq!(run(3), one);
    assert_eq!(run(8), one);
    let other = Profile::from_toml("test", &text.replace("seed = 9", "seed = 10")).unwrap();
    assert_ne!(logits_of("0", &other, &tokens), one);
}

/// Every design that the keys can name runs, in every mode of INT8 weights, prefill and decode.
#[test]
fn designs_of_every_kind_run() {
    let model = sample::model();
    let table = ModeTable::default();
    let designs = [
        "[weights]\nbits = 4\ngranularity = \"group\"",
        "[weights]\ngranularity = \"channel\"\n[accumulator]\nbits = 20\noverflow = \"wrap\"",
        "[scan]\nstate = \"int8\"\n",
        "[scan]\nstate = \"int32\"\nscale = \"power-of-two\"\norder = \"kogge-stone\"\nblock = 8",
        "[scan]\nstate = \"int24\"\norder = \"chunked\"\nblock = 5\noverflow = \"wrap\"",
        "[scan]\nstate = \"int16\"\nrequantize_every = 4\nguard = 6\nrounding = \"floor\"",
        "[scan]\nstate = \"f16\"\norder = \"kogge-stone\"\nblock = 4",
        "[nonlinearity.exp]\nform = \"shift\"\n[nonlinearity.silu]\nform = \"polynomial\"\nsegments = 32\ndegree = 2",
        "[nonlinearity.exp]\nform = \"exact\"\n[nonlinearity.softplus]\nform = \"exact\"\n[nonlinearity.silu]\nform = \"exact\"",
        "[requant]\nscaling = \"fixed\"\nmultiplier_bits = 8\nrounding_steps = \"double\"\nrounding = \"ceil\"\noverflow = \"saturate-symmetric\"",
        "[hadamard]\nbits = 12\nfraction = 0\ngrowth = 0",
        "[activations]\ngranularity = \"token\"\n[weights]\nconv_granularity = \"channel\"",
        "[activations]\ngranularity = \"token\"\nscales = \"power-of-two\"\n[hadamard]\nform = \"f32\"\n[weights]\ngranularity = \"group\"",
    ];
    for design in designs {
        let profile = profile(&format!("version = 1\nextends = \"asic-int8\"\n{design}"));
        for mode in ["0", "2-1", "2-4", "3"] {
            let path = Datapath::new(&model, table.get(mode).unwrap(), &profile).unwrap();
            let (logits, mut state) = path
                .prefill(&tokens(7), LogitRows::Last, &mut Blind)
                .unwrap();
            assert!(logits.to_real().iter().all(|v| v.is_finite()), "{design}");
            path.decode(5, &mut state, &mut Blind).unwrap();
        }
    }
}

/// What profiles without the keys that came later hash to: the text that they hashed to before.
#[test]
fn rules_that_a_profile_does_not_name_are_not_hashed() {
    let exact = serde_json::to_string(&Profile::get("exact").unwrap().storage).unwrap();
    assert_eq!(
        exact,
        "{\"weight-bits\":8,\"weight-granularity\":\"tensor\",\"weight-scales\":\"calibrated\",\
         \"activation-scales\":\"calibrated\"}"
    );
    let plain = Profile::get("asic-int8").unwrap().hash();
    for (key, value) in [
        ("activations", "granularity = \"token\""),
        ("weights", "conv_granularity = \"channel\""),
    ] {
        let text = format!("version = 1\nextends = \"asic-int8\"\n[{key}]\n");
        assert_eq!(profile(&text).hash(), plain);
        assert_ne!(profile(&format!("{text}{value}")).hash(), plain);
    }
}

fn recorded(profile: &Profile, tokens: &[u32]) -> Recorder {
    let model = sample::model();
    let table = ModeTable::default();
    let path = Datapath::new(&model, table.get("0").unwrap(), profile).unwrap();
    let mut recorder = Recorder::new(Selection::default());
    path.prefill(tokens, LogitRows::None, &mut recorder)
        .unwrap();
    recorder
}

/// Scales of tokens: the largest magnitude of each row on code 127, in_proj's and out_proj's results
/// from codes, scales and weights in exact integers.
#[test]
fn tokens_have_scales_of_their_own() {
    let (model, tokens) = (sample::model(), tokens(11));
    for (scales, forms) in [
        ("calibrated", "[hadamard]\nform = \"f32\""),
        ("power-of-two", "[requant]\nrounding = \"floor\""),
    ] {
        let profile = profile(&format!(
            "version = 1\nextends = \"asic-int8\"\n{forms}\n\
             [activations]\ngranularity = \"token\"\nscales = \"{scales}\"\n"
        ));
        let seen = recorded(&profile, &tokens);
        let layer = &model.quantized.as_ref().unwrap().layers[5];
        let QWeight::Int8(in_proj) = &layer.in_proj else {
            panic!("the sample model has eight bits")
        };
        let at = |point| &seen.tensors[&Place::layer(5, point)];
        for (point, of) in [
            (TracePoint::NormOut, TracePoint::NormOutScale),
            (TracePoint::HadOut, TracePoint::HadOutScale),
        ] {
            let (Tensor::Codes(codes), Tensor::F32(column)) = (at(point), at(of)) else {
                panic!("{point:?}")
            };
            assert_eq!(column.dim(), (11, 1));
            let mut distinct: Vec<u32> = column.iter().map(|s| s.to_bits()).collect();
            distinct.sort_unstable();
            distinct.dedup();
            // Normed rows are so alike that their powers of two may be one.
            assert!(distinct.len() > 2 || scales == "power-of-two", "{point:?}");
            for (row, scale) in codes.rows().into_iter().zip(column) {
                let top = row.iter().map(|q| i32::from(*q).abs()).max().unwrap();
                match scales {
                    "calibrated" => assert_eq!(top, 127),
                    // Within a factor of two, and floored below zero.
                    _ => assert!((63..=128).contains(&top) && scale.log2().fract() == 0.0),
                }
            }
        }
        let (Tensor::Codes(x), Tensor::F32(s_x)) =
            (at(TracePoint::NormOut), at(TracePoint::NormOutScale))
        else {
            panic!()
        };
        let Tensor::I8(out) = at(TracePoint::InProjOut) else {
            panic!()
        };
        for ((t, n), code) in out.codes.indexed_iter() {
            let terms = x.row(t).into_iter().zip(in_proj.codes.row(n));
            let acc: i128 = terms.map(|(x, w)| i128::from(*x) * i128::from(*w)).sum();
            let m = f64::from(s_x[(t, 0)]) * f64::from(in_proj.scale.get())
                / f64::from(out.scale.get());
            let shift = 14 - m.log2().floor() as i32;
            let multiplier = (m * 2f64.powi(shift)).round() as i128;
            let half = match scales {
                "calibrated" => 1i128 << (shift - 1),
                _ => 0,
            };
            let want = ((acc * multiplier + half) >> shift).clamp(-128, 127);
            assert_eq!(i128::from(*code), want, "{scales}: {t} {n}");
        }
    }
}

/// A convolution whose channels have scales of their own, from codes and scales in exact integers.
#[test]
fn channels_of_the_convolution_have_scales_of_their_own() {
    let model = sample::model();
    let text = "version = 1\nextends = \"tflite-single\"\n[weights]\nconv_granularity = \"channel\"\n\
                [nonlinearity.silu]\nform = \"table\"\nentries = 512\n";
    let profile = profile(text);
    let seen = recorded(&profile, &tokens(9));
    let at = |point| match &seen.tensors[&Place::layer(2, point)] {
        Tensor::I8(q) => q.clone(),
        other => panic!("{other:?}"),
    };
    let (x, out) = (at(TracePoint::InProjOut), at(TracePoint::ConvOut));
    let weight = &model.float.as_ref().unwrap().layers[2].conv_weight;
    let bias = &model.quantized.as_ref().unwrap().layers[2].conv_bias;
    let silu = profile.cuda.prefill.conv.silu.unit(Function::Silu).unwrap();
    let fixed = |factor: f64| {
        let shift = 30 - factor.log2().floor() as i32;
        ((factor * 2f64.powi(shift)).round() as i128, shift)
    };
    let round = |v: i128, (m, shift): (i128, i32)| (v * m + (1 << (shift - 1))) >> shift;
    for ((t, c), code) in out.codes.indexed_iter() {
        let taps: Vec<f64> = weight.row(c).iter().map(|w| f64::from(*w)).collect();
        let top = taps.iter().fold(0.0f64, |a, w| a.max(w.abs()));
        let s_w = f64::from((top / 127.0) as f32);
        let per_sum = s_w * f64::from(x.scale.get());
        let mut acc = (f64::from(bias.scale.get() * f32::from(bias.codes[c])) / per_sum)
            .round_ties_even() as i128;
        for (tap, w) in taps.iter().enumerate() {
            if let Some(row) = (t + tap + 1).checked_sub(taps.len()) {
                let q = (w / s_w).round_ties_even() as i128;
                acc += q * i128::from(x.codes[(row, c)]);
            }
        }
        let fraction = 2f64.powi(silu.rule().input_fraction.into());
        let input = silu.fit(round(acc, fixed(per_sum * fraction)));
        let y = silu.eval(input, &mut Inputs::default());
        let one = 2f64.powi(-i32::from(silu.rule().output_fraction));
        let want = round(y.into(), fixed(one / f64::from(out.scale.get()))).clamp(-128, 127);
        assert_eq!(i128::from(*code), want, "{t} {c}");
    }
}

/// A trapping state ends the run with its place and width.
#[test]
fn a_state_that_may_not_overflow_says_so() {
    let text = "version = 1\nextends = \"asic-int8\"\n[scan]\nstate = \"int8\"\nheadroom = 0\noverflow = \"trap\"";
    let model = sample::model();
    let table = ModeTable::default();
    let path = Datapath::new(&model, table.get("0").unwrap(), &profile(text)).unwrap();
    let error = path
        .prefill(&tokens(300), LogitRows::Last, &mut Blind)
        .unwrap_err()
        .to_string();
    assert!(
        error.contains("ssm_state: accumulator: expected sums within 8 bits"),
        "{error}"
    );
}

proptest! {
    /// No text makes the reader panic, and what it refuses it refuses in one line.
    #[test]
    fn any_text_is_read_or_refused(text in "(version = 1\n)?(\\[[a-z.]{1,14}\\]\n[a-z_]{1,12} = [-a-z0-9\"\\[\\], .]{0,12}\n){0,3}") {
        if let Err(error) = Profile::from_toml("test", &text) {
            prop_assert!(!error.to_string().contains('\n'));
        }
    }
}
