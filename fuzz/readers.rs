//! Every reader of files that somebody else made, as a function of one file's bytes. The fuzz targets
//! and the replay of their finds (`tests/hostile_files.rs`) share this list.

use super::folder::Folder;
use scalescope::eval::data::Dataset;
use scalescope::eval::samples::Samples;
use scalescope::eval::summary::EvalReport;
use scalescope::eval::task::{Encode, Encoded, SampleMaker, Task};
use scalescope::eval::text::text;
use scalescope::report::eval::section;
use scalescope::sequences::read_token_file;
use scalescope::sweep::{engine::pareto, page::page, store::Store};
use scalescope::texts::Texts;
use scalescope::tokenizer;
use scalescope_golden::npz::{read_npy, read_npz};
use scalescope_golden::rtl::difference::differences;
use scalescope_golden::rtl::manifest::StepVectors;
use scalescope_golden::rtl::simulate::simulate;
use scalescope_golden::trace_file::TraceFile;
use scalescope_sim::checkpoint::info::info;
use scalescope_sim::checkpoint::load::load;
use scalescope_sim::checkpoint::torch::{OPENING_FACTOR, SHARING_FACTOR, TorchFile};
use scalescope_sim::checkpoint::{hf, quantized, scales};
use scalescope_sim::mode::ModeTable;
use scalescope_sim::profile::Profile;
use std::path::Path;

/// A reader, its name, and the most it may allocate at once for each byte it is given.
pub struct Target {
    /// Name of the target and of its corpus.
    pub name: &'static str,
    /// Reads what is in `data`; `dir` is an empty folder for its files. Refusing is fine, panicking is not.
    pub read: fn(dir: &mut Folder, data: &[u8]),
    /// Bytes allocated at most, for each byte of input; [`BASE`] comes on top.
    pub factor: usize,
}

/// What any reader may allocate, however short its input.
pub const BASE: usize = 8 << 20;

/// Deflate expands 1,032 times at most, and an array may be copied once on the way.
const DEFLATE: usize = 3 * 1032;

/// Every reader.
pub const TARGETS: &[Target] = &[
    SAFETENSORS,
    TORCH,
    QUAMBA,
    QUANTIZED,
    INDEX,
    CONFIG,
    SCALES,
    STORED_SCALES,
    NPZ,
    NPY,
    TOKENS,
    TRACE,
    MODES,
    PROFILE,
    VECTORS,
    TOKENIZER,
    PASSAGES,
    SAMPLES,
    RESULTS,
    DESIGNS,
];

// A constant each, so that a fuzz target is linked with its own reader alone: what is linked is looked
// through for coverage after each input.

pub const SAFETENSORS: Target = target("safetensors", safetensors, 64);
pub const TORCH: Target = target("torch", torch, OPENING_FACTOR + 3 * SHARING_FACTOR);
pub const QUAMBA: Target = target("quamba", quamba, OPENING_FACTOR + 3 * SHARING_FACTOR);
pub const QUANTIZED: Target = target(
    "quantized",
    |dir, data| drop(quantized::read(&dir.put("q.safetensors", data))),
    64,
);
pub const INDEX: Target = target("index", index, 64);
pub const CONFIG: Target = target("config", config, 64);
pub const SCALES: Target = target(
    "scales",
    |dir, data| drop(scales::read(&dir.put("scales.json", data))),
    64,
);
pub const STORED_SCALES: Target = target(
    "stored_scales",
    |dir, data| drop(scales::read(&dir.put("s.safetensors", data))),
    64,
);
pub const NPZ: Target = target(
    "npz",
    |dir, data| drop(read_npz(dir.put("a.npz", data))),
    DEFLATE,
);
pub const NPY: Target = target(
    "npy",
    |dir, data| drop(read_npy(dir.put("a.npy", data))),
    64,
);
pub const TOKENS: Target = target("tokens", tokens, 64);
pub const TRACE: Target = target(
    "trace",
    |dir, data| drop(TraceFile::read(dir.put("t.npz", data))),
    // Token ids of one byte become four.
    2 * DEFLATE,
);
pub const MODES: Target = target(
    "modes",
    |dir, data| drop(ModeTable::default().add_file(&dir.put("m.toml", data))),
    256,
);
pub const PROFILE: Target = target("profile", profile, 256);
pub const VECTORS: Target = target("vectors", vectors, 256);
pub const TOKENIZER: Target = target(
    "tokenizer",
    |dir, data| drop(tokenizer::read(&dir.put("tokenizer.json", data))),
    1024,
);
pub const PASSAGES: Target = target("passages", passages, 256);
pub const SAMPLES: Target = target("samples", samples, 256);
pub const RESULTS: Target = target("results", results, 1024);
pub const DESIGNS: Target = target("designs", designs, 1024);

const fn target(name: &'static str, read: fn(&mut Folder, &[u8]), factor: usize) -> Target {
    Target { name, read, factor }
}

/// A configuration of the smallest model.
const SMALL: &[u8] = br#"{"model_type":"mamba","hidden_size":16,"intermediate_size":32,"state_size":4,
"conv_kernel":4,"num_hidden_layers":1,"time_step_rank":2,"vocab_size":8,"layer_norm_epsilon":1e-5}"#;

fn safetensors(dir: &mut Folder, data: &[u8]) {
    dir.put("config.json", SMALL);
    dir.put("model.safetensors", data);
    drop(hf::read(dir.path()));
}

/// A dict of tensors, every one read.
fn torch(dir: &mut Folder, data: &[u8]) {
    let Ok(file) = TorchFile::open(&dir.put("t.bin", data)) else {
        return;
    };
    for (name, _) in file.entries() {
        drop(file.number(name));
        if let Ok(tensor) = file.any_tensor(name) {
            drop(tensor.bytes());
            drop(tensor.transposed().bytes());
        }
    }
}

/// A model's folder of the smallest shape; keys decide whether it is a checkpoint or quantized.
fn quamba(dir: &mut Folder, data: &[u8]) {
    dir.put("config.json", SMALL);
    let path = dir.put("pytorch_model.bin", data);
    let folder = path.parent().expect("a file of a folder");
    drop(load(folder));
    drop(info(folder));
}

/// The index of a checkpoint in shards; there is one shard, without tensors.
fn index(dir: &mut Folder, data: &[u8]) {
    dir.put("config.json", SMALL);
    dir.put("a.safetensors", b"\x02\0\0\0\0\0\0\0{}");
    dir.put("model.safetensors.index.json", data);
    drop(hf::read(dir.path()));
}

fn config(dir: &mut Folder, data: &[u8]) {
    dir.put("config.json", data);
    dir.put("model.safetensors", b"\x02\0\0\0\0\0\0\0{}");
    drop(hf::read(dir.path()));
}

fn profile(dir: &mut Folder, data: &[u8]) {
    let path = dir.put("p.toml", data);
    drop(Profile::get(
        path.to_str().expect("folders have plain names"),
    ));
}

/// Exported vectors: the manifest and the files `a`, `b`, `c` of its arrays, with a NUL byte between
/// them. The rules' hash is put right, since no mutation finds one, so that the step is computed too.
fn vectors(dir: &mut Folder, data: &[u8]) {
    let names = ["manifest.json", "a", "b", "c"];
    let mut parts = data.splitn(names.len(), |byte| *byte == 0);
    for name in names {
        match parts.next() {
            Some(part) => drop(dir.put(name, part)),
            None => dir.remove(name),
        }
    }
    let dir = dir.path();
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

fn passages(_: &mut Folder, data: &[u8]) {
    for task in [
        Task::LastWord { max_length: 64 },
        Task::Perplexity {
            window: 16,
            stride: 5,
        },
        Task::Chunks { length: 8 },
    ] {
        let maker = SampleMaker {
            encoder: &Bytes,
            vocab_size: 200,
            start: Some(0),
            task,
        };
        for name in ["a.jsonl", "a.txt"] {
            if let Ok(texts) = Texts::parse(Path::new(name), data) {
                drop(Dataset::new(&texts, &maker));
            }
        }
    }
}

/// A file of samples, and the run whose only part it is.
fn samples(dir: &mut Folder, data: &[u8]) {
    if let Ok(samples) = Samples::read(&dir.put("s.jsonl", data)) {
        drop(Samples::merge(vec![("s.jsonl".into(), samples)]));
    }
}

/// Token ids, and texts in JSON lines.
fn tokens(dir: &mut Folder, data: &[u8]) {
    drop(read_token_file(&dir.put("t.npy", data)));
    drop(Texts::read(&dir.put("t.jsonl", data)));
}

/// What `eval --json` wrote, and what `report` makes of it.
fn results(dir: &mut Folder, data: &[u8]) {
    if let Ok(report) = EvalReport::read(&dir.put("r.json", data)) {
        drop(text(&report));
        drop(section(&report));
    }
}

/// The file a sweep goes on with, and its page.
fn designs(dir: &mut Folder, data: &[u8]) {
    let path = dir.put("d.jsonl", data);
    if let Ok(store) = Store::open(&path, &serde_json::json!({})) {
        drop(page("designs", &store.done, &pareto(&store.done)));
    }
}
