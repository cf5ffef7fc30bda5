//! How often the diagnosis is right on faults that are no fault models: made by an emulation of its own in
//! f64, which knows nothing of the edits that are searched, put into a run and flowing on.
//!
//! ```text
//! cargo test --release -p scalescope-golden --test all diagnosis::grid -- --ignored --nocapture
//! ```

mod cases;
mod emulation;
mod fifth;
mod fourth;
mod fresh;
mod grid;
mod more;
mod third;
mod unseen;

use cases::{Case, Into, cases};
use emulation::{Faulty, Seen};
pub use grid::grid_model;
use half::f16;
use ndarray::Array2;
use scalescope_golden::diagnosis::diagnose::identify::identify;
use scalescope_golden::diagnosis::diagnose::{diagnose, formula};
use scalescope_golden::diagnosis::finding::{Finding, Severity};
use scalescope_golden::trace_file::TraceFile;
use scalescope_golden::value::Value;
use scalescope_sim::checkpoint::quantized;
use scalescope_sim::dataflow::{Block, Phase};
use scalescope_sim::datapath::{Datapath, LogitRows};
use scalescope_sim::error::Result;
use scalescope_sim::fault::Fault;
use scalescope_sim::mode::{MODES, ModeTable};
use scalescope_sim::model::Model;
use scalescope_sim::profile::unit::ActivationGranularity;
use scalescope_sim::profile::{PROFILES, Profile};
use scalescope_sim::sample;
use scalescope_sim::trace::{Place, Probe, Recorder, Selection, Tensor, TracePoint as P};
use std::sync::Arc;
use std::time::Instant;

fn tokens(length: usize, seed: u64) -> Vec<u32> {
    let mut state = seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1;
    (0..length)
        .map(|_| {
            state = state
                .wrapping_mul(6364136223846793005)
                .wrapping_add(1442695040888963407);
            (state >> 33) as u32 % 8192
        })
        .collect()
}

#[derive(Clone, Copy, PartialEq)]
enum Sort {
    Full,
    Three,
    Outputs,
    /// Every tensor of the block and of two others.
    Blocks,
}

fn selection(sort: Sort) -> Selection {
    let points = match sort {
        Sort::Full | Sort::Blocks => None,
        Sort::Three => Some(vec![P::ConvOut, P::ConvOutF32, P::SsmY, P::OutProjOut]),
        Sort::Outputs => Some(vec![P::OutProjOut]),
    };
    Selection {
        layers: None,
        points,
    }
}

fn trace(tokens: &[u32], recorder: Recorder) -> TraceFile {
    let ids = Array2::from_shape_vec((1, tokens.len()), tokens.to_vec()).unwrap();
    let mut trace = TraceFile::from_recorders(ids, [recorder]).unwrap();
    trace.scales.clear();
    trace
}

fn dump(path: &Datapath, layer: usize, case: &Case, tokens: &[u32], sort: Sort) -> TraceFile {
    let mut probe = Faulty {
        path,
        layer,
        points: case.points,
        make: &case.make,
        reading: matches!(case.into, Into::Reading),
        seen: Seen::new(),
        recorder: Recorder::new(selection(sort)),
    };
    path.prefill(tokens, LogitRows::None, &mut probe).unwrap();
    if sort == Sort::Blocks {
        let layers = path.config().n_layers;
        let kept = [0, 3, 7].map(|on| (layer + on) % layers);
        let tensors = &mut probe.recorder.tensors;
        tensors.retain(|place, _| place.layer.is_none_or(|l| kept.contains(&l)));
    }
    trace(tokens, probe.recorder)
}

/// A block's input alone, of a run that flows: where noise makes nearly all of it deviate, what is farther off
/// than noise is none.
#[test]
fn a_lone_tensor_far_beyond_noise_is_no_noise() {
    let model = sample::model();
    let table = ModeTable::default();
    let (mode, profile) = (table.get("0").unwrap(), Profile::get("exact").unwrap());
    let ids = tokens(5, 5);
    let alone = || {
        Recorder::new(Selection {
            layers: Some(vec![3]),
            points: Some(vec![P::HiddenIn]),
        })
    };
    let found = |file: &TraceFile| {
        let found = diagnose(&model, mode, file, std::slice::from_ref(&profile)).unwrap();
        assert!(4 * found.mismatched > 3 * found.compared);
        found.findings[0].clone()
    };
    for dice in 0..4 {
        let path = Datapath::new(&model, mode, &profile).unwrap();
        let mut probe = Shaken {
            flows: true,
            of: 50,
            dice,
            recorder: alone(),
            blocks: Vec::new(),
        };
        path.prefill(&ids, LogitRows::None, &mut probe).unwrap();
        let finding = found(&trace(&ids, probe.recorder));
        assert_eq!(finding.severity, Severity::Info, "{}", finding.evidence);
        assert!(finding.evidence.contains("a fault this small"));
    }
    let fault: Fault = "stale-scale@layer=1,site=x_proj_input,factor=1.7"
        .parse()
        .unwrap();
    let path = Datapath::with_faults(&model, mode, &profile, &[fault]).unwrap();
    let mut recorder = alone();
    path.prefill(&ids, LogitRows::None, &mut recorder).unwrap();
    let finding = found(&trace(&ids, recorder));
    assert_eq!(
        (finding.severity, finding.kind, finding.layer),
        (Severity::Error, "stale-scale", Some(1)),
        "{}",
        finding.evidence
    );
}

struct Shaken {
    flows: bool,
    /// One of so many floats is an ulp off.
    of: u64,
    dice: u64,
    recorder: Recorder,
    blocks: Vec<usize>,
}

impl Probe for Shaken {
    fn wants(&self, place: Place) -> bool {
        self.recorder.wants(place) || place.point == P::SsmY
    }

    fn visit(&mut self, place: Place, value: &mut Tensor) -> Result<()> {
        let own = value.clone();
        if place.point == P::SsmY
            && let Tensor::F16(y) = value
        {
            for v in y.iter_mut() {
                self.dice = self
                    .dice
                    .wrapping_mul(6364136223846793005)
                    .wrapping_add(1442695040888963407);
                if (self.dice >> 33).is_multiple_of(self.of) && v.to_f32() != 0.0 {
                    *v = f16::from_bits(v.to_bits() ^ 1);
                }
            }
        }
        if self.recorder.wants(place) {
            self.recorder.visit(place, value)?;
        }
        if !self.flows {
            *value = own;
        }
        Ok(())
    }
}

fn clean(mode: &str, profile: &str, length: usize) -> TraceFile {
    let model = sample::model();
    let table = ModeTable::default();
    let profile = Profile::get(profile).unwrap();
    let path = Datapath::new(&model, table.get(mode).unwrap(), &profile).unwrap();
    let ids = tokens(length, 5);
    let mut recorder = Recorder::new(Selection::default());
    path.prefill(&ids, LogitRows::None, &mut recorder).unwrap();
    trace(&ids, recorder)
}

fn first_of(file: &TraceFile, mode: &str, profile: &str) -> Finding {
    let model = sample::model();
    let table = ModeTable::default();
    let profile = Profile::get(profile).unwrap();
    let found = diagnose(&model, table.get(mode).unwrap(), file, &[profile]).unwrap();
    found.findings[0].clone()
}

/// Quantizers of u with segments: u as it was is named, in every mode that has one.
#[test]
fn a_quantizer_of_u_is_searched() {
    let model = sample::model();
    let profile = Profile::get("exact").unwrap();
    let ids = tokens(16, 3);
    let mut named = 0;
    for mode in MODES.iter().filter(|m| m.u_quantizer.is_some()) {
        let path = Datapath::new(&model, mode, &profile).unwrap();
        let mut recorder = Recorder::new(Selection {
            layers: Some(vec![1]),
            points: Some(vec![P::ConvOutF32, P::SsmU]),
        });
        path.prefill(&ids, LogitRows::None, &mut recorder).unwrap();
        let mut file = trace(&ids, recorder);
        let at = |point| Place::layer(1, point);
        let real = file.sequences[0].get(&at(P::ConvOutF32)).cloned();
        let Some(Value::F32(real)) = real else {
            continue;
        };
        file.sequences[0].insert(at(P::SsmU), Value::F32(real));
        let found = diagnose(&model, mode, &file, std::slice::from_ref(&profile)).unwrap();
        let first = &found.findings[0];
        let words = first.edit.as_deref();
        assert_eq!(
            words,
            Some("u is not quantized"),
            "{}: {}",
            mode.name,
            first.evidence
        );
        named += 1;
    }
    assert!(named > 5, "{named}");
}

/// Files that are wrong as files are named once, by what is wrong with all of them.
#[test]
fn wrong_files_are_named_once() {
    let file = clean("0", "exact", 24);
    let mut late = file.clone();
    for (place, value) in &mut late.sequences[0] {
        if let (Value::I8(a), false) = (value, place.point.is_state()) {
            let before = a.clone();
            for t in 1..a.nrows() {
                a.row_mut(t).assign(&before.row(t - 1));
            }
        }
    }
    late.sequences[0].retain(|place, value| value.dtype() == "i8" && !place.point.is_state());
    assert_eq!(first_of(&late, "0", "exact").kind, "file-late");
    let mut from_1 = file.clone();
    from_1.sequences[0] = (file.sequences[0].iter())
        .map(|(place, value)| {
            let layer = place.layer.map(|layer| layer + 1);
            (Place { layer, ..*place }, value.clone())
        })
        .collect();
    assert_eq!(first_of(&from_1, "0", "exact").kind, "file-numbered-from-1");
    let mut floats = file;
    for value in floats.sequences[0].values_mut() {
        if let Value::I8(a) = value {
            *value = Value::F32(a.mapv(f32::from));
        }
    }
    let model = sample::model();
    let table = ModeTable::default();
    let found = diagnose(&model, table.get("0").unwrap(), &floats, &PROFILES[..1]).unwrap();
    assert_eq!(found.mismatched, 0);
    let kinds: Vec<&str> = found.findings.iter().map(|f| f.kind).collect();
    assert_eq!(kinds, ["none", "file-types"]);
}

/// A dump whose conv outputs are from before SiLU, or whose y is from before the gate, while the run goes on as it
/// should.
#[test]
fn a_hook_that_sits_too_early_is_named() {
    let (model, table) = (sample::model(), ModeTable::default());
    let exact = Profile::get("exact").unwrap();
    let path = Datapath::new(&model, table.get("0").unwrap(), &exact).unwrap();
    let ids = tokens(24, 5);
    let mut recorder = Recorder::new(Selection::default());
    path.prefill(&ids, LogitRows::None, &mut recorder).unwrap();
    let before_silu = emulation::conv(|_, _, _, _| {}, usize::MAX, |v| v);
    let before_gate = emulation::scan(|_, _, _, s| s.gate = |_| 1.0);
    for (point, make, words) in [
        (P::ConvOut, before_silu, "before SiLU"),
        (P::SsmY, before_gate, "before the gate"),
    ] {
        let mut file = clean("0", "exact", 24);
        for layer in 0..12 {
            let here = recorder.tensors.iter();
            let here = here.filter(|(place, _)| place.layer == Some(layer));
            let seen: Seen = here.map(|(place, t)| (place.point, t.clone())).collect();
            let early = make(&path, layer, &seen, point, &seen[&point]);
            let value = Value::from_tensor(early).0;
            file.sequences[0].insert(Place::layer(layer, point), value);
        }
        let found = first_of(&file, "0", "exact");
        assert_eq!(found.kind, "file-unfinished", "{found:#?}");
        assert!(found.evidence.contains(words), "{found:#?}");
    }
}

/// A fault of no fault model is named with its step, pattern and edit.
#[test]
fn a_missing_bias_is_named() {
    let all = cases();
    let case = all.iter().find(|c| c.name == "conv bias missing").unwrap();
    let model = sample::model();
    let table = ModeTable::default();
    let exact = Profile::get("exact").unwrap();
    let path = Datapath::new(&model, table.get("0").unwrap(), &exact).unwrap();
    let file = dump(&path, 2, case, &tokens(16, 3), Sort::Full);
    let found = first_of(&file, "0", "exact");
    assert!(grid::is_right(&found, case, 2), "{found:#?}");
    assert_eq!(found.edit.as_deref(), Some("the bias is missing"));
    let explained = found.explained.unwrap();
    assert_eq!(explained.explained, explained.deviating);
    assert_eq!(found.step, Some("conv"));
}

/// A cause that leaves elements which noise does not make is not said to be it: something else is wrong too.
#[test]
fn a_cause_that_leaves_some_elements_is_a_warning() {
    let all = cases();
    let case = all.iter().find(|c| c.name == "conv bias missing").unwrap();
    let model = sample::model();
    let table = ModeTable::default();
    let (mode, exact) = (table.get("0").unwrap(), Profile::get("exact").unwrap());
    let path = Datapath::new(&model, mode, &exact).unwrap();
    let mut file = dump(&path, 2, case, &tokens(16, 3), Sort::Full);
    let conv_out = Place::layer(2, P::ConvOut);
    let Some(Value::I8(codes)) = file.sequences[0].get_mut(&conv_out) else {
        panic!("codes");
    };
    // One element in 400, far off.
    for code in codes.iter_mut().step_by(400) {
        *code ^= 0x40;
    }
    let found = diagnose(&model, mode, &file, &[exact]).unwrap().findings;
    let of_conv = |kind: &str| {
        let mut of_conv = found.iter().filter(|f| f.step == Some("conv"));
        of_conv.find(|f| f.kind == kind)
    };
    let (first, second) = (of_conv("none").unwrap(), of_conv("left-out").unwrap());
    assert_eq!(first.severity, Severity::Error);
    let left = "deviate also with the edit that explains most (the bias is missing)";
    assert!(first.evidence.contains(left), "{}", first.evidence);
    assert_eq!(second.site, "bias");
    assert_eq!(second.severity, Severity::Warning);
    let explained = second.explained.unwrap();
    assert!(explained.explained < explained.deviating);
}

/// Without an edit a formula makes what the step makes, in every built-in profile and in storages of a chip's.
#[test]
fn formulas_make_what_steps_make() {
    let model = sample::model();
    let table = ModeTable::default();
    let own = |text: &str| Profile::from_toml("own", &format!("version = 1\n{text}")).unwrap();
    let mut profiles: Vec<Profile> = Profile::names()
        .into_iter()
        .map(|name| Profile::get(name).unwrap())
        .collect();
    profiles.extend(
        [
            "weights.granularity = \"channel\"\nweights.conv_granularity = \"channel\"",
            "weights.bits = 4\nweights.granularity = \"group\"\nrequant.scaling = \"fixed\"",
            "activations.granularity = \"token\"",
            "scan.state = \"int16\"\nhadamard.form = \"integer\"\nrequant.scaling = \"power-of-two\"",
        ]
        .map(own),
    );
    let modes = ["0", "2-1", "3", "6-0", "6-4"];
    let ids = tokens(24, 5);
    let (mut seen_formulas, mut wrong) = (0, Vec::new());
    for profile in &profiles {
        for mode in modes {
            let Ok(path) = Datapath::new(&model, table.get(mode).unwrap(), profile) else {
                continue;
            };
            let mut recorder = Recorder::new(Selection::default());
            if path.prefill(&ids, LogitRows::None, &mut recorder).is_err() {
                continue;
            }
            let block = Block::of(path.mode(), path.profile(), Phase::Prefill);
            for layer in [0, 5] {
                let here = recorder
                    .tensors
                    .iter()
                    .filter(|(p, _)| p.layer == Some(layer));
                let seen: formula::Seen = here.map(|(p, t)| (p.point, t.clone())).collect();
                let scene = formula::BlockInputs {
                    path: &path,
                    layer,
                    block: &block,
                    seen: &seen,
                };
                for row in block.rows() {
                    let words = format!(
                        "{} mode {mode} block {layer}: {:?}",
                        profile.name, row.point
                    );
                    let Some(formula) = scene.formula(row) else {
                        let steps = [P::NormOut, P::ConvOut, P::SsmY, P::HadOut, P::OutProjOut];
                        let by_token =
                            profile.storage.activation_granularity == ActivationGranularity::Token;
                        if !by_token && steps.contains(&row.point) {
                            wrong.push(format!("{words}: no formula"));
                        }
                        continue;
                    };
                    let made = formula.run();
                    let made = match row.point.is_state() {
                        true => made.state.unwrap(),
                        false => made.out,
                    };
                    let own = formula::numbers(&seen[&row.point]);
                    assert_eq!(made.dim(), own.dim(), "{words}");
                    let apart =
                        |(a, b): &(&f32, &f32)| (**a - **b).abs() > 1e-3 * b.abs().max(1e-3);
                    let apart = made.iter().zip(&own).filter(apart).count();
                    if apart * 200 > own.len() {
                        wrong.push(format!("{words}: {apart} of {}", own.len()));
                    }
                    seen_formulas += 1;
                }
            }
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
    assert!(seen_formulas > 500, "{seen_formulas}");
}

/// The file of `SCALESCOPE_DUMP`, in the mode of `SCALESCOPE_MODE`.
#[test]
#[ignore = "needs a dump of one's own; SCALESCOPE_DUMP=dump.npz cargo test --release -p scalescope-golden --test all of_a_file -- --ignored --nocapture"]
fn of_a_file() {
    let path = std::env::var("SCALESCOPE_DUMP").expect("SCALESCOPE_DUMP=dump.npz");
    let mode = std::env::var("SCALESCOPE_MODE").unwrap_or("0".into());
    let file = TraceFile::read(path).unwrap();
    let table = ModeTable::default();
    let begun = Instant::now();
    let found = diagnose(&sample::model(), table.get(&mode).unwrap(), &file, PROFILES).unwrap();
    println!(
        "{:.1} s, profile {}",
        begun.elapsed().as_secs_f64(),
        found.profile
    );
    for f in &found.findings {
        println!(
            "{} {} {:?} {}: {}",
            f.severity, f.kind, f.layer, f.site, f.evidence
        );
    }
}

/// Profiles read off clean dumps of theirs.
#[test]
#[ignore = "minutes: reads the built-in profiles off their dumps; cargo test --release -p scalescope-golden --test all diagnosis::identified -- --ignored --nocapture"]
fn identified() {
    let table = ModeTable::default();
    let model = sample::model();
    let mut names: Vec<(String, Option<&str>)> = [
        "exact",
        "torch",
        "deployed",
        "asic-int8",
        "tflite-single",
        "tflite-double",
        "pow2",
    ]
    .map(|name| (name.to_owned(), None))
    .to_vec();
    names.extend(
        DRAWN
            .iter()
            .enumerate()
            .map(|(i, text)| (format!("drawn {i}"), Some(*text))),
    );
    let wanted = std::env::var("SCALESCOPE_PROFILE").unwrap_or_default();
    names.retain(|(name, _)| name.contains(&wanted));
    let (mut right, mut same_rules, mut seconds) = (0, 0, Vec::new());
    for (name, text) in &names {
        let profile = match text {
            Some(text) => Profile::from_toml(name, &format!("version = 1\n{text}")).unwrap(),
            None => Profile::get(name).unwrap(),
        };
        let path = Datapath::new(&model, table.get("0").unwrap(), &profile).unwrap();
        let ids = tokens(64, 9);
        let mut recorder = Recorder::new(Selection::default());
        path.prefill(&ids, LogitRows::None, &mut recorder).unwrap();
        let file = trace(&ids, recorder);
        let begun = Instant::now();
        let found = identify(&model, table.get("0").unwrap(), &file).unwrap();
        seconds.push(begun.elapsed().as_secs_f64());
        let same = Profile::from_toml("found", &found.toml).unwrap().hash() == profile.hash();
        right += usize::from(found.mismatched == 0 && found.compared > 2_000_000);
        same_rules += usize::from(same);
        println!(
            "{name}: {} of {} not made, the same rules: {same}, {:.1} s: {}",
            found.mismatched,
            found.compared,
            seconds[seconds.len() - 1],
            found.toml.replace('\n', "; ")
        );
    }
    seconds.sort_by(f64::total_cmp);
    println!(
        "no element left: {right} of {}, the same rules: {same_rules}, median {:.1} s, at most {:.1} s",
        names.len(),
        seconds[seconds.len() / 2],
        seconds[seconds.len() - 1]
    );
    assert_eq!(right, names.len());
}

/// Profiles drawn from the rules.
const DRAWN: &[&str] = &[
    "requant.scaling = \"fixed\"\nrequant.multiplier_bits = 12\nrequant.rounding = \"floor\"",
    "requant.x_proj.rounding = \"toward-zero\"\naccumulator.in_proj.bits = 18\naccumulator.in_proj.overflow = \"saturate\"",
    "scan.state = \"f16\"\nquantizer.rounding = \"nearest-ties-up\"",
    "scan.state = \"int16\"\nscan.headroom = 1\nhadamard.form = \"integer\"\nhadamard.bits = 14",
    "nonlinearity.silu.form = \"table\"\nnonlinearity.silu.entries = 64\nrequant.conv.scaling = \"fixed\"\nrequant.conv.multiplier_bits = 16",
    "scan.order = \"chunked\"\nscan.block = 16\nscan.state = \"f16\"",
    "requant.out_proj.scaling = \"power-of-two\"",
    "quantizer.overflow = \"wrap\"\nrequant.rounding = \"nearest-ties-away\"",
    "nonlinearity.exp.form = \"shift\"\nscan.state = \"int16\"",
    "nonlinearity.softplus.form = \"table\"\nnonlinearity.softplus.entries = 128\nnonlinearity.softplus.interpolation = \"nearest\"",
    "weights.conv_granularity = \"channel\"",
    "weights.granularity = \"channel\"\nrequant.in_proj.rounding = \"floor\"",
    "accumulator.x_proj.bits = 16\naccumulator.x_proj.overflow = \"wrap\"",
    "hadamard.form = \"integer\"\nhadamard.bits = 12\nhadamard.fraction = 2",
    "scan.state = \"int8\"\nscan.requantize_every = 4",
    "scan.order = \"kogge-stone\"\nscan.block = 32",
    "nonlinearity.silu.form = \"polynomial\"\nnonlinearity.silu.segments = 16\nnonlinearity.silu.degree = 2",
    "activations.scales = \"power-of-two\"",
    "requant.scaling = \"fixed\"\nrequant.multiplier_bits = 32\nrequant.rounding_steps = \"double\"\nrequant.first_rounding = \"nearest-ties-up\"\nrequant.rounding = \"nearest-ties-away\"",
    "requant.dt_proj.rounding = \"ceil\"\nscan.state = \"int24\"\nscan.scale = \"power-of-two\"",
];
