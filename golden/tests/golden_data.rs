//! The committed vectors: complete, unchanged, within their budget, and read whole.

use scalescope_golden::compare::{CompareOptions, compare_traces};
use scalescope_golden::npz::{Compression, read_npz};
use scalescope_golden::trace_file::TraceFile;
use scalescope_golden::value::Value;
use scalescope_sim::trace::{Place, TracePoint};
use serde::Deserialize;
use sha2::{Digest, Sha256};
use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Manifest {
    file: Vec<Entry>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Entry {
    file: String,
    origin: String,
    profile: String,
    sha256: String,
}

fn data() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("data")
}

fn manifest() -> Manifest {
    toml::from_str(&std::fs::read_to_string(data().join("manifest.toml")).unwrap()).unwrap()
}

/// Every file below a folder, by its path from there.
fn files(folder: &Path) -> BTreeMap<String, PathBuf> {
    let mut found = BTreeMap::new();
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        let name = path.file_name().unwrap().to_str().unwrap().to_owned();
        if path.is_dir() {
            let inner = files(&path).into_iter();
            found.extend(inner.map(|(rest, path)| (format!("{name}/{rest}"), path)));
        } else {
            found.insert(name, path);
        }
    }
    found
}

/// Names whose content is not what the manifest says, or that only one side has.
fn faults(manifest: &Manifest, files: &BTreeMap<String, PathBuf>) -> Vec<String> {
    let listed: BTreeSet<&str> = manifest.file.iter().map(|e| e.file.as_str()).collect();
    assert_eq!(listed.len(), manifest.file.len(), "a file is listed twice");
    let unlisted = files.keys().filter(|f| !listed.contains(f.as_str()));
    let mut faults: Vec<String> = unlisted
        .map(|f| format!("{f}: not in the manifest"))
        .collect();
    for entry in &manifest.file {
        match files
            .get(&entry.file)
            .map(|path| std::fs::read(path).unwrap())
        {
            None => faults.push(format!("{}: no such file", entry.file)),
            Some(bytes) => {
                let digest = Sha256::digest(bytes);
                let hex: String = digest.iter().map(|b| format!("{b:02x}")).collect();
                if hex != entry.sha256 {
                    faults.push(format!("{}: sha256 is {hex}", entry.file));
                }
            }
        }
    }
    faults
}

#[test]
fn the_manifest_and_the_files_agree() {
    let mut files = files(&data());
    assert!(files.remove("manifest.toml").is_some());
    let mut manifest = manifest();
    assert_eq!(faults(&manifest, &files), Vec::<String>::new());
    for entry in &manifest.file {
        // The only file that does not come from the device.
        if entry.file == "digests.toml" {
            assert!(entry.origin.starts_with("this simulator"));
            continue;
        }
        assert!(entry.origin.contains("NVIDIA H200"), "{}", entry.file);
        assert_eq!(entry.profile, "deployed", "{}", entry.file);
    }
    // The check itself: a wrong digest, a file too many, one too few.
    let wrong = manifest.file[0].sha256.replacen(|c: char| c != '0', "0", 1);
    manifest.file[0].sha256 = wrong;
    let extra = files.values().next().unwrap().clone();
    files.insert("trace/extra.npz".into(), extra);
    files.remove("trace/mode_0_len171.npz").unwrap();
    assert_eq!(faults(&manifest, &files).len(), 3);
}

#[test]
fn the_vectors_stay_within_twelve_megabytes() {
    let sizes = files(&data())
        .into_values()
        .map(|path| path.metadata().unwrap().len());
    let total: u64 = sizes.sum();
    assert!(total <= 12_000_000, "{total} bytes");
}

fn trace(name: &str) -> TraceFile {
    TraceFile::read(data().join("trace").join(name)).unwrap()
}

#[test]
fn prefill_traces_are_read_whole() {
    for (name, layers, tensors) in [
        ("mode_0_len171.npz", &[0, 6, 11][..], 40),
        ("mode_2-1_len171.npz", &[0, 11], 25),
    ] {
        let started = std::time::Instant::now();
        let trace = trace(name);
        assert!(started.elapsed().as_secs() < 5, "{:?}", started.elapsed());
        assert!(trace.unknown.is_empty(), "{:?}", trace.unknown);
        assert_eq!(trace.tokens().unwrap().dim(), (1, 171));
        assert_eq!(
            (trace.batch(), trace.layers(), trace.steps.len()),
            (1, 12, 0)
        );
        let places = trace.places();
        assert_eq!(places.len(), tensors);
        let found: BTreeSet<usize> = places.iter().filter_map(|p| p.layer).collect();
        assert_eq!(found.into_iter().collect::<Vec<_>>(), layers);
        let logits = &trace.sequences[0][&Place::end(TracePoint::Logits)];
        assert_eq!(logits.describe(), "f16 [171, 8192]");
        assert!(!trace.sequences[0].contains_key(&Place::layer(0, TracePoint::ResidualIn)));
        // Read, written and read again it is the same file, array for array.
        let folder = tempfile::tempdir().unwrap();
        let copy = folder.path().join("copy.npz");
        trace.write(&copy, Compression::Stored).unwrap();
        assert_eq!(TraceFile::read(&copy).unwrap(), trace);
        let original = data().join("trace").join(name);
        assert!(read_npz(&copy).unwrap() == read_npz(original).unwrap());
    }
}

#[test]
fn decode_traces_are_read_whole() {
    let trace = trace("decode_after64_steps0-3.npz");
    assert!(trace.unknown.is_empty(), "{:?}", trace.unknown);
    assert_eq!(trace.tokens().unwrap().dim(), (1, 64));
    assert_eq!(trace.steps.len(), 4);
    assert_eq!(trace.steps[0].tokens, [1116]);
    for (number, step) in trace.steps.iter().enumerate() {
        assert_eq!((step.index, step.tokens.len()), (number, 1));
        assert_eq!(step.places().len(), 3 * 12 + 1);
        let points = &step.sequences[0];
        let of = |point| points[&Place::layer(6, point)].describe();
        assert_eq!(of(TracePoint::InProjOut), "i8 [1, 768]");
        assert_eq!(of(TracePoint::ConvStateIn), "i8 [384, 4]");
        assert_eq!(of(TracePoint::SsmStateOut), "i8 [384, 16]");
        assert_eq!(
            points[&Place::end(TracePoint::Logits)].describe(),
            "f32 [1, 8192]"
        );
    }
    // States are carried from step to step.
    for pair in trace.steps.windows(2) {
        for layer in [0, 6, 11] {
            let (before, after) = (&pair[0].sequences[0], &pair[1].sequences[0]);
            let out = &before[&Place::layer(layer, TracePoint::SsmStateOut)];
            assert_eq!(out, &after[&Place::layer(layer, TracePoint::SsmStateIn)]);
        }
    }
    let folder = tempfile::tempdir().unwrap();
    let copy = folder.path().join("copy.npz");
    trace.write(&copy, Compression::Deflate).unwrap();
    assert_eq!(TraceFile::read(&copy).unwrap(), trace);
}

#[test]
fn one_changed_bit_anywhere_in_a_trace_is_found() {
    let golden = trace("mode_0_len171.npz");
    let options = CompareOptions::default();
    let same = compare_traces(&golden, &golden, &options).unwrap();
    assert_eq!((same.is_equal(), same.points.len()), (true, 40));
    for (number, place) in golden.places().into_iter().enumerate() {
        let mut broken = golden.clone();
        let value = broken.sequences[0].get_mut(&place).unwrap();
        let (rows, columns) = value.dim();
        let at = (number * 31 % rows, number * 17 % columns);
        match value {
            Value::I8(a) => a[at] ^= 1 << (number % 8),
            Value::F16(a) => a[at] = half::f16::from_bits(a[at].to_bits() ^ 1),
            Value::F32(a) => a[at] = f32::from_bits(a[at].to_bits() ^ 1),
        }
        let found = compare_traces(&golden, &broken, &options).unwrap();
        assert_eq!(found.beyond_tolerance(), 1, "{place}");
        let point = found.points.iter().find(|p| !p.is_equal()).unwrap();
        assert_eq!(point.key(), place.key());
        assert_eq!(point.first.as_ref().unwrap().index, [0, at.0, at.1]);
    }
}
