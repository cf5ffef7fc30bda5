//! Profile files: keys and their ranges, hashes, the chip profiles on the sample model.

use proptest::prelude::*;
use scalescope_sim::datapath::{Datapath, LogitRows};
use scalescope_sim::mode::ModeTable;
use scalescope_sim::profile::{CHIP_PROFILES, Profile};
use scalescope_sim::sample;
use scalescope_sim::score::{SequenceScore, perplexity};
use scalescope_sim::trace::{Blind, Tensor};

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
            "profile: expected one of exact, torch, deployed, asic-int8",
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
            "nonlinearity.exp.degree: expected 0 to 3",
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
