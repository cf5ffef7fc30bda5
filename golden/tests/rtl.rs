//! Vectors for RTL: every step of a block written, read back and simulated to the same bits, in every
//! format; every corrupted line noticed.

use ndarray::array;
use scalescope_golden::check::{CheckOptions, CheckReport, Feed, check};
use scalescope_golden::npz::Array;
use scalescope_golden::rtl::difference::differences;
use scalescope_golden::rtl::export::export;
use scalescope_golden::rtl::manifest::{Role, StepVectors};
use scalescope_golden::rtl::simulate::{STEPS, simulate};
use scalescope_golden::rtl::words::Format;
use scalescope_golden::trace_file::TraceFile;
use scalescope_sim::datapath::{Datapath, LogitRows};
use scalescope_sim::mode::ModeTable;
use scalescope_sim::profile::Profile;
use scalescope_sim::sample;
use scalescope_sim::trace::{Place, Recorder, Selection, Tensor, TracePoint};
use std::collections::BTreeMap;
use std::path::Path;

const TOKENS: [u32; 6] = [46, 37, 55, 1238, 47, 300];

fn vectors(profile: &Profile, mode: &str, step: &str) -> StepVectors {
    let model = sample::model();
    let table = ModeTable::default();
    let path = Datapath::new(&model, table.get(mode).unwrap(), profile).unwrap();
    export(&path, &TOKENS, 3, step, None).unwrap_or_else(|e| panic!("{step}: {e}"))
}

/// Words of a folder that are not what its step makes of its inputs; files altered count.
fn mismatched(folder: &Path) -> usize {
    let (step, altered) = StepVectors::read(folder).unwrap();
    let found = simulate(&step).unwrap();
    let found = differences(&step, &found).unwrap();
    altered.len() + found.iter().map(|d| d.mismatched).sum::<usize>()
}

#[test]
fn every_step_comes_back_to_the_same_bits() {
    let folder = tempfile::tempdir().unwrap();
    for name in ["exact", "deployed", "asic-int8", "tflite-double", "pow2"] {
        let profile = Profile::get(name).unwrap();
        for (step, format) in STEPS.iter().zip(Format::ALL.into_iter().cycle()) {
            let written = vectors(&profile, "0", step);
            let folder = folder.path().join(format!("{name}-{step}"));
            written.write(&folder, format).unwrap();
            let (read, altered) = StepVectors::read(&folder).unwrap();
            assert_eq!(read, written, "{name} {step}");
            assert!(altered.is_empty());
            assert_eq!(mismatched(&folder), 0, "{name} {step}");
        }
    }
    // A PyTorch scan, and weights of the profile's own.
    assert!(simulate(&vectors(&Profile::get("deployed").unwrap(), "2-1", "scan")).is_ok());
}

/// Scales of tokens stream in and out beside the codes; channels of the convolution have theirs.
#[test]
fn scales_of_tokens_and_channels_come_back() {
    let folder = tempfile::tempdir().unwrap();
    for (name, keys) in [
        ("asic-int8", ""),
        ("pow2", ""),
        (
            "asic-int8",
            "[hadamard]\nform = \"f32\"\n[requant]\nscaling = \"f32\"\n",
        ),
        ("exact", ""),
        // Wider than 32 bits.
        (
            "asic-int8",
            "[hadamard]\nbits = 24\nfraction = 16\ngrowth = 24\n[accumulator]\nbits = 40\n",
        ),
    ] {
        let wide = keys.contains("bits = 40");
        let text = format!(
            "version = 1\nextends = \"{name}\"\n{keys}[activations]\ngranularity = \"token\"\n\
             [weights]\nconv_granularity = \"channel\"\n"
        );
        let file = folder.path().join("tokens.toml");
        std::fs::write(&file, text).unwrap();
        let profile = Profile::get(file.to_str().unwrap()).unwrap();
        for (step, format) in STEPS.iter().zip(Format::ALL.into_iter().cycle()) {
            let written = vectors(&profile, "0", step);
            let folder = folder.path().join(step);
            written.write(&folder, format).unwrap();
            assert_eq!(mismatched(&folder), 0, "{name} {step}");
            if let "conv" | "hadamard" = *step
                && wide
            {
                let name = if *step == "conv" { "sum" } else { "rotated" };
                assert!(matches!(written.get(name).unwrap().array, Array::I64(_)));
            }
            let scales = match *step {
                "norm" | "hadamard" => Some("out_scale"),
                "in_proj" | "out_proj" => Some("x_scale"),
                "conv" => Some("weight_scale"),
                _ => None,
            };
            // A scale that is off makes other words.
            if let Some(scales) = scales {
                let mut altered = written.clone();
                let vector = altered.vectors.iter_mut().find(|v| v.name == scales);
                let Some(Array::F32(values)) = vector.map(|v| &mut v.array) else {
                    panic!("{step}: no {scales}")
                };
                values.iter_mut().for_each(|s| *s *= 2.0);
                let found = differences(&altered, &simulate(&altered).unwrap()).unwrap();
                assert!(found.iter().any(|d| d.mismatched > 0), "{name} {step}");
            }
        }
    }
}

/// A local check of a trace whose tokens have scales: equal as it is; a scale or a code that differs is
/// one mismatch; without the scales in_proj cannot be judged.
#[test]
fn a_check_knows_scales_of_tokens() {
    let text = "version = 1\nextends = \"asic-int8\"\n[activations]\ngranularity = \"token\"\n";
    let profile = Profile::from_toml("test", text).unwrap();
    let (model, table) = (sample::model(), ModeTable::default());
    let path = Datapath::new(&model, table.get("0").unwrap(), &profile).unwrap();
    let mut recorder = Recorder::new(Selection {
        layers: Some(vec![3]),
        points: None,
    });
    path.prefill(&TOKENS, LogitRows::None, &mut recorder)
        .unwrap();
    let trace = |edit: &dyn Fn(&mut BTreeMap<Place, Tensor>)| {
        let mut recorder = recorder.clone();
        edit(&mut recorder.tensors);
        let trace = TraceFile::from_recorders(array![TOKENS], [recorder]).unwrap();
        check(&path, &trace, &CheckOptions::default()).unwrap()
    };
    let mismatched = |report: &CheckReport| {
        let points = report.summary.points.iter();
        let bad = points.filter(|p| p.mismatched > 0);
        bad.map(|p| (p.point.to_string(), p.mismatched))
            .collect::<Vec<_>>()
    };
    let whole = trace(&|_| {});
    assert_eq!((whole.exit_code(), mismatched(&whole)), (0, vec![]));
    let at = |point| Place::layer(3, point);
    let scaled = trace(&|tensors| {
        if let Some(Tensor::F32(scales)) = tensors.get_mut(&at(TracePoint::NormOutScale)) {
            scales[(2, 0)] *= 1.5;
        }
    });
    // The step after it is judged with the file's scale, and so has other codes.
    let found = mismatched(&scaled);
    assert_eq!(found[0], ("norm_out_scale".to_owned(), 1));
    assert_eq!(found.len(), 2, "{found:?}");
    assert_eq!(found[1].0, "in_proj_out");
    let coded = trace(&|tensors| {
        if let Some(Tensor::Codes(codes)) = tensors.get_mut(&at(TracePoint::HadOut)) {
            codes[(1, 7)] ^= 1;
        }
    });
    assert_eq!(mismatched(&coded)[0], ("had_out".to_owned(), 1));
}

#[test]
fn a_corrupted_line_of_any_file_is_noticed() {
    let folder = tempfile::tempdir().unwrap();
    let profile = Profile::get("asic-int8").unwrap();
    for step in STEPS {
        let written = vectors(&profile, "0", step);
        let folder = folder.path().join(step);
        let manifest = written.write(&folder, Format::Hex).unwrap();
        for entry in &manifest.arrays {
            let path = folder.join(&entry.file);
            let good = std::fs::read_to_string(&path).unwrap();
            let mut lines: Vec<String> = good.lines().map(str::to_owned).collect();
            let middle = lines.len() / 2;
            let flipped = u64::from_str_radix(&lines[middle], 16).unwrap() ^ 1;
            lines[middle] = format!("{flipped:0width$x}", width = lines[middle].len());
            std::fs::write(&path, lines.join("\n") + "\n").unwrap();
            let (read, altered) = StepVectors::read(&folder).unwrap();
            assert_eq!(
                altered,
                std::slice::from_ref(&entry.file),
                "{step} {}",
                entry.name
            );
            // An output is noticed by its words too, whatever the manifest says.
            if entry.role == Role::Expected {
                let found = differences(&read, &simulate(&read).unwrap()).unwrap();
                let of = found.iter().find(|d| d.name == entry.name).unwrap();
                assert_eq!(
                    (of.mismatched, of.first),
                    (1, Some(middle)),
                    "{step} {}",
                    entry.name
                );
            }
            std::fs::write(&path, good).unwrap();
        }
        assert_eq!(mismatched(&folder), 0, "{step}");
    }
}

#[test]
fn a_folder_is_a_trace() {
    let folder = tempfile::tempdir().unwrap();
    let profile = Profile::get("asic-int8").unwrap();
    let written = vectors(&profile, "0", "conv");
    written.write(folder.path(), Format::Mem).unwrap();
    let trace = TraceFile::read(folder.path()).unwrap();
    assert_eq!(
        trace.tokens().unwrap().iter().copied().collect::<Vec<_>>(),
        TOKENS
    );
    assert_eq!(
        trace.meta.as_ref().unwrap().profile_hash,
        Some(profile.hash())
    );
    let model = sample::model();
    let table = ModeTable::default();
    let path = Datapath::new(&model, table.get("0").unwrap(), &profile).unwrap();
    let options = CheckOptions {
        feed: Feed::Cumulative,
        ..CheckOptions::default()
    };
    let report = check(&path, &trace, &options).unwrap();
    assert_eq!(report.exit_code(), 0);
    // One code of the dump altered is one mismatch.
    let mut altered = written.clone();
    let out = altered
        .vectors
        .iter_mut()
        .find(|v| v.name == "out")
        .unwrap();
    let Array::I8(codes) = &mut out.array else {
        panic!()
    };
    codes[[2, 5]] ^= 1;
    altered.write(folder.path(), Format::Hex).unwrap();
    let report = check(&path, &TraceFile::read(folder.path()).unwrap(), &options).unwrap();
    assert_eq!((report.exit_code(), report.summary.mismatched()), (1, 1));
}

#[test]
fn what_cannot_be_exported_is_refused() {
    let model = sample::model();
    let table = ModeTable::default();
    let profile = Profile::get("exact").unwrap();
    let refused = |mode: &str, layer: usize, step: &str| {
        let path = Datapath::new(&model, table.get(mode).unwrap(), &profile).unwrap();
        export(&path, &TOKENS, layer, step, None)
            .unwrap_err()
            .to_string()
    };
    assert!(refused("0", 99, "conv").contains("--layer: expected a block below"));
    assert!(refused("0", 0, "head").contains("--step: expected one of norm, in_proj"));
    assert!(refused("2-4", 0, "scan").contains("ssm_u of mode 2-4: expected INT8"));
    assert!(refused("1", 0, "in_proj").contains("norm_out of mode 1"));
}
