//! Every reader of files that somebody else made, as a function of one file's bytes. The fuzz targets
//! and the replay of their finds (`tests/hostile_files.rs`) share this list.

use scalescope::eval::data::Dataset;
use scalescope::eval::samples::Samples;
use scalescope::eval::task::{Encode, Encoded, Task, UnitMaker};
use scalescope_golden::npz::{read_npy, read_npz};
use scalescope_golden::rtl::manifest::StepVectors;
use scalescope_golden::rtl::simulate::{differences, simulate};
use scalescope_golden::trace_file::TraceFile;
use scalescope_sim::checkpoint::{hf, quantized, scales};
use scalescope_sim::mode::ModeTable;
use scalescope_sim::profile::Profile;
use std::fs;
use std::path::Path;

/// A reader, its name, and the most it may allocate at once for each byte it is given.
pub struct Target {
    /// Name of the target and of its corpus.
    pub name: &'static str,
    /// Reads what is in `data`; `dir` is an empty folder for its files. Refusing is fine, panicking is not.
    pub read: fn(dir: &Path, data: &[u8]),
    /// Bytes allocated at most, for each byte of input; [`BASE`] comes on top.
    pub factor: usize,
}

/// What any reader may allocate, however short its input.
pub const BASE: usize = 8 << 20;

/// Deflate expands 1,032 times at most, and an array may be copied once on the way.
const DEFLATE: usize = 3 * 1032;

/// Every reader.
pub const TARGETS: &[Target] = &[
    target("safetensors", safetensors, 64),
    target(
        "quantized",
        |dir, data| drop(quantized::read(&file(dir, "q.safetensors", data))),
        64,
    ),
    target("index", index, 64),
    target("config", config, 64),
    target(
        "scales",
        |dir, data| drop(scales::read(&file(dir, "scales.json", data))),
        64,
    ),
    target(
        "npz",
        |dir, data| drop(read_npz(file(dir, "a.npz", data))),
        DEFLATE,
    ),
    target(
        "npy",
        |dir, data| drop(read_npy(file(dir, "a.npy", data))),
        64,
    ),
    target(
        "trace",
        |dir, data| drop(TraceFile::read(file(dir, "t.npz", data))),
        DEFLATE,
    ),
    target(
        "modes",
        |dir, data| drop(ModeTable::default().add_file(&file(dir, "m.toml", data))),
        256,
    ),
    target("profile", profile, 256),
    target("vectors", vectors, 256),
    target(
        "tokenizer",
        |dir, data| {
            drop(scalescope::input::read_tokenizer(&file(
                dir,
                "tokenizer.json",
                data,
            )))
        },
        1024,
    ),
    target("passages", passages, 256),
    target(
        "samples",
        |dir, data| drop(Samples::read(&file(dir, "s.jsonl", data))),
        256,
    ),
];

const fn target(name: &'static str, read: fn(&Path, &[u8]), factor: usize) -> Target {
    Target { name, read, factor }
}

fn file(dir: &Path, name: &str, data: &[u8]) -> std::path::PathBuf {
    let path = dir.join(name);
    fs::write(&path, data).expect("the folder can be written");
    path
}

/// A configuration of the smallest model.
const CONFIG: &[u8] = br#"{"model_type":"mamba","hidden_size":16,"intermediate_size":32,"state_size":4,
"conv_kernel":4,"num_hidden_layers":1,"time_step_rank":2,"vocab_size":8,"layer_norm_epsilon":1e-5}"#;

fn safetensors(dir: &Path, data: &[u8]) {
    file(dir, "config.json", CONFIG);
    file(dir, "model.safetensors", data);
    drop(hf::read(dir));
}

/// The index of a checkpoint in shards; there is one shard, without tensors.
fn index(dir: &Path, data: &[u8]) {
    file(dir, "config.json", CONFIG);
    file(dir, "a.safetensors", b"\x02\0\0\0\0\0\0\0{}");
    file(dir, "model.safetensors.index.json", data);
    drop(hf::read(dir));
}

fn config(dir: &Path, data: &[u8]) {
    file(dir, "config.json", data);
    file(dir, "model.safetensors", b"\x02\0\0\0\0\0\0\0{}");
    drop(hf::read(dir));
}

fn profile(dir: &Path, data: &[u8]) {
    let path = file(dir, "p.toml", data);
    drop(Profile::get(
        path.to_str().expect("folders have plain names"),
    ));
}

/// Exported vectors: the manifest and the files `a`, `b`, `c` of its arrays, with a NUL byte between
/// them. The rules' hash is put right, since no mutation finds one, so that the step is computed too.
fn vectors(dir: &Path, data: &[u8]) {
    let names = ["manifest.json", "a", "b", "c"];
    for (name, part) in names
        .iter()
        .zip(data.splitn(names.len(), |byte| *byte == 0))
    {
        file(dir, name, part);
    }
    drop(TraceFile::read(dir));
    let Ok((mut step, _)) = StepVectors::read(dir) else {
        return;
    };
    if let Ok(rules) = Profile::from_toml(&step.profile.name, &step.profile.toml) {
        step.profile.hash = rules.hash();
    }
    if let Ok(found) = simulate(&step) {
        drop(differences(&step, &found));
    }
}

/// A token for every byte.
struct Bytes;
impl Encode for Bytes {
    fn encode_text(&self, text: &str) -> Result<Encoded, String> {
        Ok(Encoded {
            ids: text.bytes().map(u32::from).collect(),
            ends: (1..=text.len()).collect(),
        })
    }
}

fn passages(_: &Path, data: &[u8]) {
    for task in [
        Task::LastWord { max_length: 64 },
        Task::Perplexity {
            window: 16,
            stride: 5,
        },
    ] {
        let maker = UnitMaker {
            encoder: &Bytes,
            vocab_size: 200,
            start: Some(0),
            task,
        };
        drop(Dataset::read(data, None, &maker));
    }
}
