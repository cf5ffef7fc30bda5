//! Faults put into the sample model are found again from the dump alone, clean dumps are not blamed.
//!
//! `faults_are_named` runs a few cases of every fault model. The whole grid prints its confusion
//! tables (docs/attribution.md):
//!
//! ```text
//! cargo test --release -p scalescope-golden --test all attribution::grid -- --ignored --nocapture
//! ```

use crate::diagnosis::grid_model;
use ndarray::Array2;
use rayon::prelude::*;
use scalescope_golden::check::{CheckOptions, check};
use scalescope_golden::diagnosis::diagnose::{Diagnosis, diagnose};
use scalescope_golden::diagnosis::finding::{Finding, Severity};
use scalescope_golden::trace_file::TraceFile;
use scalescope_sim::arith::accumulate::{AccOverflow, Accumulator};
use scalescope_sim::checkpoint::quantize::to_int4;
use scalescope_sim::dataflow::Step;
use scalescope_sim::datapath::{Datapath, LogitRows};
use scalescope_sim::fault::{
    Defect, FAULTS, Fault, FourBitDefect, RoundingRule, ScaleSite, ScanParameter, WeightScale,
};
use scalescope_sim::mode::{MODES, ModeSpec};
use scalescope_sim::model::{Model, ScaleKey};
use scalescope_sim::plan::ScaleUse;
use scalescope_sim::profile::{PROFILES, Profile, QuantizerRule};
use scalescope_sim::sample;
use scalescope_sim::trace::{Recorder, Selection, TracePoint};
use std::collections::BTreeMap;
use std::sync::Arc;

/// A dice that always falls the same way.
struct Dice(u64);

impl Dice {
    fn next(&mut self) -> u64 {
        // splitmix64
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ (z >> 31)
    }

    fn below(&mut self, n: usize) -> usize {
        (self.next() % n as u64) as usize
    }

    fn of<T: Copy>(&mut self, all: &[T]) -> T {
        all[self.below(all.len())]
    }

    fn unit(&mut self) -> f64 {
        (self.next() >> 11) as f64 / (1u64 << 53) as f64
    }
}

/// Which tensors a dump holds.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Points {
    All,
    Outputs,
    Three,
}

impl Points {
    fn selection(self) -> Selection {
        let points = match self {
            Points::All => None,
            Points::Outputs => Some(vec![TracePoint::OutProjOut]),
            Points::Three => Some(vec![
                TracePoint::ConvOut,
                TracePoint::ConvOutF32,
                TracePoint::SsmY,
                TracePoint::OutProjOut,
            ]),
        };
        Selection {
            layers: None,
            points,
        }
    }
}

fn tokens(length: usize, seed: u64) -> Vec<u32> {
    let mut dice = Dice(seed);
    (0..length).map(|_| dice.below(8192) as u32).collect()
}

/// A dump as a stranger would hand it over: tokens and tensors, no metadata, no scales.
fn dump(path: &Datapath, tokens: &[u32], points: Points) -> TraceFile {
    let mut recorder = Recorder::new(points.selection());
    let rows = match points {
        Points::All => LogitRows::All,
        _ => LogitRows::None,
    };
    path.prefill(tokens, rows, &mut recorder).unwrap();
    let tokens = Array2::from_shape_vec((1, tokens.len()), tokens.to_vec()).unwrap();
    let mut trace = TraceFile::from_recorders(tokens, [recorder]).unwrap();
    trace.scales.clear();
    trace
}

struct Case {
    model: Model,
    mode: ModeSpec,
    profile: Profile,
    tokens: Vec<u32>,
    points: Points,
    fault: Fault,
    dump: TraceFile,
}

/// Steps of the sample model whose rows are groups of 128, as weights of four bits need.
const FOUR_BIT: [Step; 2] = [Step::XProj, Step::OutProj];

/// The sample model with weights of four bits where it can have them.
fn four_bits() -> Model {
    let mut model = grid_model();
    let mut quantized = model.quantized.as_deref().unwrap().clone();
    let float = model.float.as_deref().unwrap();
    to_int4(
        &mut quantized,
        float,
        &"w4a8:x_proj,out_proj".parse().unwrap(),
    )
    .unwrap();
    model.quantized = Some(Arc::new(quantized));
    model
}

/// A factor from 1.01 to 4, or its inverse: as many small ones as large ones.
fn strength(dice: &mut Dice) -> f32 {
    let strength = 1.0 + 0.01 * (dice.unit() * 300f64.log2()).exp2();
    match dice.below(2) {
        0 => strength as f32,
        _ => (1.0 / strength) as f32,
    }
}

/// A random fault of a model: another mode, profile, block, site and strength each time.
fn draw(kind: &str, dice: &mut Dice, (uses, four_bits): (bool, bool), layers: usize) -> Fault {
    let defect = match kind {
        "conv-double-input-scale" => Defect::ConvDoubleInputScale,
        "conv-history-loss" => Defect::ConvHistoryLoss,
        "hadamard-wrap" => Defect::HadamardWrap,
        "swapped-bc" => Defect::SwappedBc,
        "missing-scale" => Defect::MissingScale {
            site: dice.of(&ScanParameter::ALL),
        },
        "stale-scale" if four_bits => {
            let site = dice.of(&FOUR_BIT);
            let scale = dice.of(&[WeightScale::Group, WeightScale::Channel]);
            let what = FourBitDefect::StaleScale(scale, strength(dice));
            Defect::FourBit { site, what }
        }
        "permuted-scales" => {
            let site = dice.of(&FOUR_BIT);
            let scale = dice.of(&[WeightScale::Group, WeightScale::Channel]);
            let what = FourBitDefect::ScaleOrder(scale);
            Defect::FourBit { site, what }
        }
        "nibble-order" => {
            let (site, what) = (dice.of(&FOUR_BIT), FourBitDefect::WordOrder);
            Defect::FourBit { site, what }
        }
        "stale-scale" => {
            let factor = strength(dice);
            let site = match uses {
                true => ScaleSite::Use(dice.of(&ScaleUse::ALL)),
                false => ScaleSite::Key(dice.of(&ScaleKey::ALL)),
            };
            Defect::StaleScale { site, factor }
        }
        "transposed" => Defect::Transposed {
            site: dice.of(&TracePoint::buffers().collect::<Vec<_>>()),
        },
        "rounding" => loop {
            let (site, rule) = (dice.of(&QuantizerRule::ALL), dice.of(&RoundingRule::ALL));
            if site.has_quotient() || !rule.is_quotient() {
                break Defect::Rounding { site, rule };
            }
        },
        "narrow-accumulator" => Defect::NarrowAccumulator {
            site: dice.of(&Step::SUMS),
            register: Accumulator::new(
                12 + dice.below(9) as u8,
                dice.of(&[AccOverflow::Wrap, AccOverflow::Saturate]),
            )
            .unwrap(),
        },
        other => panic!("a fault model without a draw: {other}"),
    };
    Fault {
        layer: Some(dice.below(layers)),
        defect,
    }
}

/// A case whose fault shows in its dump, and how many drawn before it did not.
fn case(kind: &str, seed: u64, points: Points, uses: bool) -> (Case, usize) {
    let mut dice = Dice(seed);
    // Scales of weights are stale in one case of five.
    let of_weights =
        kind == "stale-scale" && !uses && seed % 5 == 4 && grid_model().float.is_some();
    let model = match kind {
        "permuted-scales" | "nibble-order" => four_bits(),
        _ if of_weights => four_bits(),
        // The calibrated scales hold every value of random tokens; tighter ones overflow.
        "hadamard-wrap" => tight(0.2 + 0.3 * dice.unit() as f32),
        _ => grid_model(),
    };
    let config = model.config().unwrap();
    let (layers, words) = (config.n_layers, config.vocab_size);
    // Ties, and quotients a last bit off, are rare.
    let length = if kind == "rounding" { 256 } else { 64 };
    let modes: Vec<&ModeSpec> = MODES.iter().filter(|m| m.needs_quantized()).collect();
    for silent in 0..1000 {
        let mode = dice.of(&modes).clone();
        let profile = PROFILES[dice.below(PROFILES.len())].clone();
        let mut fault = draw(kind, &mut dice, (uses, of_weights), layers);
        let mut tokens = tokens(length, dice.next());
        tokens.iter_mut().for_each(|t| *t %= words as u32);
        let clean = Datapath::new(&model, &mode, &profile).unwrap();
        if kind == "rounding" {
            let Some(layer) = block_that_shows(&model, &clean, &fault, &tokens, &mut dice) else {
                continue;
            };
            fault.layer = Some(layer);
        }
        let faulty = Datapath::with_faults(&model, &mode, &profile, &[fault]).unwrap();
        let dump_of = |path| dump(path, &tokens, points);
        let dump = dump_of(&faulty);
        // What a faultless device of some profile makes has no fault to be found.
        let without = |profile: &Profile| {
            let clean = Datapath::new(&model, &mode, profile).unwrap();
            dump == self::dump(&clean, &tokens, points)
        };
        if dump == dump_of(&clean) || PROFILES.iter().any(without) {
            continue;
        }
        let case = Case {
            model: model.clone(),
            mode,
            profile,
            tokens,
            points,
            fault,
            dump,
        };
        return (case, silent);
    }
    panic!("{kind}: no fault of a thousand shows");
}

/// The sample model with tighter scales of the Hadamard quantizers.
fn tight(factor: f32) -> Model {
    let mut model = grid_model();
    let mut quantized = model.quantized.as_deref().unwrap().clone();
    for layer in &mut quantized.layers {
        let scale = &mut layer.scales.out_proj_input;
        *scale = scale.times(factor).unwrap();
    }
    model.quantized = Some(Arc::new(quantized));
    model
}

/// A block in which a fault alters a code when it has clean inputs.
fn block_that_shows(
    model: &Model,
    clean: &Datapath,
    fault: &Fault,
    tokens: &[u32],
    dice: &mut Dice,
) -> Option<usize> {
    let everywhere = Fault {
        layer: None,
        ..*fault
    };
    let path = Datapath::with_faults(model, clean.mode(), clean.profile(), &[everywhere]).unwrap();
    let report = check(
        &path,
        &dump(clean, tokens, Points::All),
        &CheckOptions::default(),
    )
    .unwrap();
    let bad = report.summary.points.iter().filter(|p| p.mismatched > 0);
    let blocks: Vec<usize> = bad.filter_map(|p| p.layer).collect();
    (!blocks.is_empty()).then(|| dice.of(&blocks))
}

/// The place among the findings, from 0, of the right kind, block and site, or of another fault that makes
/// the very same dump.
fn rank(case: &Case, found: &Diagnosis) -> Option<usize> {
    let defect = case.fault.defect;
    let names = |f: &Finding| {
        (f.kind, f.layer, f.site.as_str()) == (defect.name(), case.fault.layer, defect.site())
    };
    let makes = |f: &Finding| {
        let Some(Ok(fault)) = f.fault.as_deref().map(str::parse::<Fault>) else {
            return false;
        };
        let path = Datapath::with_faults(&case.model, &case.mode, &case.profile, &[fault]);
        path.is_ok_and(|path| dump(&path, &case.tokens, case.points) == case.dump)
    };
    let all = &found.findings;
    all.iter().position(|f| names(f) || makes(f))
}

fn judged(case: &Case) -> (Option<usize>, Diagnosis) {
    let found = diagnose(&case.model, &case.mode, &case.dump, PROFILES).unwrap();
    (rank(case, &found), found)
}

#[test]
fn faults_are_named() {
    FAULTS.par_iter().for_each(|fault| {
        let (case, _) = case(fault.name, 1, Points::All, false);
        let (rank, found) = judged(&case);
        let first = &found.findings[0];
        assert_eq!(rank, Some(0), "{}: {first:#?}", case.fault);
        assert_eq!(first.severity, Severity::Error);
        assert!(first.share > 0.99, "{}: {first:#?}", case.fault);
    });
}

/// Codes taken for real values: every parameter of the scan that could be, in one block each.
#[test]
fn a_missing_scale_is_named_by_its_parameter() {
    let model = sample::model();
    let (mode, exact) = (&MODES[0], Profile::get("exact").unwrap());
    for (i, site) in ScanParameter::ALL.into_iter().enumerate() {
        let fault = Fault {
            layer: Some(2 + 3 * i),
            defect: Defect::MissingScale { site },
        };
        let path = Datapath::with_faults(&model, mode, &exact, &[fault]).unwrap();
        let dump = dump(&path, &tokens(24, 3), Points::All);
        let found = diagnose(&model, mode, &dump, std::slice::from_ref(&exact)).unwrap();
        let first = &found.findings[0];
        let named = (first.kind, first.layer, &first.site[..]);
        let expected = ("missing-scale", fault.layer, site.name());
        assert_eq!(named, expected, "{first:#?}");
        assert_eq!(first.fault.as_deref(), Some(&fault.to_string()[..]));
    }
}

#[test]
fn clean_dumps_are_not_blamed() {
    let model = sample::model();
    // Every mode in one profile after the other, and so every profile in several modes.
    let all: Vec<(&ModeSpec, &Profile)> = MODES.iter().zip(PROFILES.iter().cycle()).collect();
    all.into_par_iter().for_each(|(mode, profile)| {
        let path = Datapath::new(&model, mode, profile).unwrap();
        let dump = dump(&path, &tokens(40, 7), Points::All);
        let found = diagnose(&model, mode, &dump, PROFILES).unwrap();
        assert_eq!(found.mismatched, 0);
        assert_eq!(found.findings.len(), 1);
        assert_eq!(found.findings[0].kind, "none");
        assert_eq!(found.findings[0].severity, Severity::Info);
    });
}

/// 30 random faults of every model (or `SCALESCOPE_GRID` of them), for each sort of dumps whose words contain
/// `SCALESCOPE_DUMPS`; of another model with `SCALESCOPE_MODEL=quantized.safetensors`.
#[test]
#[ignore = "minutes: the whole grid; cargo test --release -p scalescope-golden --test all attribution::grid -- --ignored --nocapture"]
fn grid() {
    let count: u64 = std::env::var("SCALESCOPE_GRID").map_or(30, |n| n.parse().unwrap());
    let sorts = [
        (Points::All, false, "all points"),
        (Points::Three, false, "conv_out, ssm_y, out_proj_out"),
        (Points::Outputs, false, "out_proj_out"),
        (Points::All, true, "all points, stale scales at single uses"),
    ];
    let wanted = std::env::var("SCALESCOPE_DUMPS").unwrap_or_default();
    let matches = |(_, _, words): &(_, _, &str)| words.contains(&wanted);
    assert!(sorts.iter().any(matches), "no sort of dumps is {wanted}");
    let mut enough = true;
    for (points, uses, words) in sorts {
        if !words.contains(&wanted) {
            continue;
        }
        // Weights of four bits are made of the float model.
        let of_floats = ["permuted-scales", "nibble-order"];
        let without = grid_model().float.is_none();
        let kinds = FAULTS
            .iter()
            .filter(|f| !uses || f.name == "stale-scale")
            .filter(|f| !without || !of_floats.contains(&f.name));
        println!(
            "\n{words}\n| fault | cases | first | first three | without effect | named instead |\n|---|---|---|---|---|---|"
        );
        let (mut all, mut firsts, mut threes) = (0, 0, 0);
        for kind in kinds {
            let results: Vec<(Option<usize>, usize, String)> = (0..count)
                .into_par_iter()
                .map(|i| {
                    let (case, silent) = case(kind.name, 1000 + i, points, uses);
                    let (rank, found) = judged(&case);
                    let f = &found.findings[0];
                    if rank != Some(0) {
                        eprintln!(
                            "mode {} {} {}: rank {rank:?}",
                            case.mode.name, found.profile, case.fault
                        );
                        for f in found.findings.iter().take(4) {
                            eprintln!(
                                "   {} {:?} {} {:.4} {:?} {}",
                                f.kind, f.layer, f.site, f.share, f.fault, f.evidence
                            );
                        }
                    }
                    (rank, silent, format!("{} {}", f.kind, f.site))
                })
                .collect();
            let first = results.iter().filter(|r| r.0 == Some(0)).count();
            let three = results
                .iter()
                .filter(|r| r.0.is_some_and(|r| r < 3))
                .count();
            let silent: usize = results.iter().map(|r| r.1).sum();
            let mut instead: BTreeMap<&str, usize> = BTreeMap::new();
            for (rank, _, name) in &results {
                if *rank != Some(0) {
                    *instead.entry(name).or_default() += 1;
                }
            }
            let instead: Vec<String> = instead.iter().map(|(n, c)| format!("{c} {n}")).collect();
            println!(
                "| {} | {} | {first} | {three} | {silent} | {} |",
                kind.name,
                results.len(),
                instead.join(", ")
            );
            all += results.len();
            firsts += first;
            threes += three;
        }
        let percent = |n: usize| 100.0 * n as f64 / all as f64;
        println!(
            "| all | {all} | {:.1} % | {:.1} % | | |",
            percent(firsts),
            percent(threes)
        );
        enough &= points != Points::All || percent(firsts) >= 95.0 && percent(threes) >= 99.0;
    }
    assert!(enough);
}
