//! The weight files of a folder, safetensors or torch, single or in shards, behind one face.

use super::container::Container;
use super::info::Entry;
use super::input::{read_small, shown};
use super::tensor::{Dtype, FileTensor, is_row_major};
use super::torch::{Found, TorchFile};
use crate::error::{Result, SimError};
use crate::text;
use serde::Deserialize;
use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::path::{Path, PathBuf};

/// Real configurations have 1 kB, real indices 100 kB.
pub(super) const MAX_JSON: u64 = 16 << 20;
/// Names of a folder's weights, each with its index of shards, in the order of `transformers`.
const NAMES: [&str; 2] = ["model.safetensors", "pytorch_model.bin"];

/// A file of tensors.
pub(super) enum File<'a> {
    Safetensors(Container<'a>),
    Torch(TorchFile<'a>),
}

impl File<'static> {
    /// A `.safetensors` file, or else one of `torch.save` (`.bin`, `.pt`, `.pth`).
    pub fn open(path: &Path) -> Result<Self> {
        match path.extension().is_none_or(|e| e != "safetensors") {
            true => TorchFile::open(path).map(Self::Torch),
            false => Container::open(path).map(Self::Safetensors),
        }
    }
}

impl File<'_> {
    pub fn path(&self) -> &Path {
        match self {
            File::Safetensors(file) => file.path(),
            File::Torch(file) => file.path(),
        }
    }

    /// Every name, in any order.
    pub fn names(&self) -> Vec<String> {
        match self {
            File::Safetensors(file) => file.names(),
            File::Torch(file) => file.entries().map(|(name, _)| name.to_owned()).collect(),
        }
    }

    pub fn contains(&self, name: &str) -> bool {
        match self {
            File::Safetensors(file) => file.contains(name),
            File::Torch(file) => file.get(name).is_some(),
        }
    }

    /// Every key with what it holds.
    pub fn entries(&self) -> Vec<Entry> {
        match self {
            File::Safetensors(file) => {
                let entry = |name: String| Entry {
                    dtype: file
                        .dtype(&name)
                        .map_or_else(String::new, |d| d.to_string()),
                    shape: file.shape(&name).to_vec(),
                    strides: None,
                    value: None,
                    name,
                };
                file.names().into_iter().map(entry).collect()
            }
            File::Torch(file) => file.entries().map(entry).collect(),
        }
    }

    pub fn tensor(&self, name: &str, shape: &[usize]) -> Result<FileTensor<'_>> {
        match self {
            File::Safetensors(file) => file.tensor(name, shape),
            File::Torch(file) => file.tensor(name, shape),
        }
    }

    fn dtype(&self, name: &str) -> Option<Dtype> {
        match self {
            File::Safetensors(file) => file.dtype(name),
            File::Torch(file) => match file.get(name)? {
                Found::Tensor(view) => Some(view.dtype()),
                _ => None,
            },
        }
    }
}

fn entry((name, found): (&str, &Found)) -> Entry {
    let (dtype, value) = match found {
        Found::Tensor(view) => (view.dtype().to_string(), None),
        Found::Number(value) => ("a number".into(), Some(*value)),
        Found::Integer(value) => ("an integer".into(), Some(*value as f64)),
        Found::Other(kind) => ((*kind).into(), None),
    };
    let (shape, strides) = match found {
        Found::Tensor(view) => {
            let (shape, strides) = (view.shape().to_vec(), view.strides().to_vec());
            let usual = is_row_major(&shape, &strides);
            (shape, (!usual).then_some(strides))
        }
        _ => (Vec::new(), None),
    };
    Entry {
        name: name.to_owned(),
        dtype,
        shape,
        strides,
        value,
    }
}

/// The files of a model and which of them has which tensor.
pub(super) struct Weights<'a> {
    pub files: Vec<File<'a>>,
    /// From a tensor's name to its file; `None` when there is a single file.
    shards: Option<BTreeMap<String, usize>>,
    /// What a missing tensor is reported against.
    path: PathBuf,
    /// Whether the files are a base model's, saved by itself: no name has the prefix.
    bare: bool,
}

/// What a model with a head has before the names of its base model's tensors. A base model that was saved
/// by itself has no prefix.
pub(super) const PREFIX: &str = "backbone.";

/// Whether these are the names of a base model that was saved by itself.
fn is_bare(names: &[String]) -> bool {
    let prefixed = names.iter().any(|name| name.starts_with(PREFIX));
    !prefixed && names.iter().any(|name| name.starts_with("embedding"))
}

#[derive(Deserialize)]
struct Index {
    weight_map: BTreeMap<String, String>,
}

impl<'a> Weights<'a> {
    pub fn single(file: File<'a>) -> Self {
        Self {
            path: file.path().to_path_buf(),
            bare: is_bare(&file.names()),
            files: vec![file],
            shards: None,
        }
    }

    /// Opens the weights of a folder.
    ///
    /// # Errors
    ///
    /// No weights; those of the files; an index that names files outside the folder or tensors that are
    /// not there.
    pub fn open(dir: &Path) -> Result<Weights<'static>> {
        for name in NAMES {
            let index = dir.join(format!("{name}.index.json"));
            if dir.join(name).exists() {
                return Ok(Weights::single(File::open(&dir.join(name))?));
            } else if index.exists() {
                return Weights::sharded(dir, &index);
            }
        }
        let [safetensors, torch] = NAMES;
        Err(SimError::file(
            dir,
            "weights",
            format_args!("{safetensors}, {torch}, or shards with {safetensors}.index.json"),
            "none of these",
        ))
    }

    fn sharded(dir: &Path, index: &Path) -> Result<Weights<'static>> {
        let map = text::from_json::<Index>(&read_small(index, MAX_JSON)?)
            .map_err(|found| SimError::file(index, "file", "a weight_map", shown(&found)))?
            .weight_map;
        let mut files: Vec<File<'static>> = Vec::new();
        let mut numbers: BTreeMap<&str, usize> = BTreeMap::new();
        let mut shards = BTreeMap::new();
        for (tensor, shard) in &map {
            // A file's own name is the whole of it: no separators, no `..`, no drive.
            let plain = Path::new(shard).file_name() == Some(OsStr::new(shard));
            if !plain || shard.contains(char::is_control) {
                return Err(SimError::file(
                    index,
                    shown(tensor),
                    "the name of a file in the same directory",
                    shown(shard),
                ));
            }
            let number = match numbers.get(shard.as_str()) {
                Some(number) => *number,
                None => {
                    files.push(File::open(&dir.join(shard))?);
                    numbers.insert(shard, files.len() - 1);
                    files.len() - 1
                }
            };
            if !files[number].contains(tensor) {
                return Err(SimError::file(
                    files[number].path(),
                    shown(tensor),
                    "the tensor the index promises",
                    "no tensor of that name",
                ));
            }
            shards.insert(tensor.clone(), number);
        }
        let names: Vec<String> = map.keys().cloned().collect();
        Ok(Weights {
            files,
            bare: is_bare(&names),
            shards: Some(shards),
            path: index.to_path_buf(),
        })
    }

    /// A tensor's name in the files.
    fn name<'n>(&self, name: &'n str) -> &'n str {
        match name.strip_prefix(PREFIX) {
            Some(rest) if self.bare => rest,
            _ => name,
        }
    }

    /// The file of a tensor.
    pub fn file(&self, tensor: &str) -> Option<&File<'a>> {
        let tensor = self.name(tensor);
        match &self.shards {
            None => self.files.first().filter(|f| f.contains(tensor)),
            Some(shards) => shards.get(tensor).map(|n| &self.files[*n]),
        }
    }

    /// The tensor `name`, which must have exactly this shape.
    pub fn tensor(&self, name: &str, shape: &[usize]) -> Result<FileTensor<'_>> {
        match self.file(name) {
            Some(file) => file.tensor(self.name(name), shape),
            None => Err(SimError::file(
                &self.path,
                self.name(name),
                format_args!("a tensor of shape {shape:?}"),
                "no tensor of that name",
            )),
        }
    }

    /// Type of a tensor.
    pub fn dtype(&self, name: &str) -> Option<Dtype> {
        self.file(name)?.dtype(self.name(name))
    }

    /// Every tensor must be one that `known` recognises. A bias nobody reads, or a thirteenth layer of a
    /// model of twelve, would silently change what is computed.
    pub fn refuse_others(&self, known: impl Fn(&str) -> bool, expected: &str) -> Result<()> {
        for file in &self.files {
            let known = |name: &String| match self.bare && !name.starts_with("lm_head.") {
                true => known(&format!("{PREFIX}{name}")),
                false => known(name),
            };
            if let Some(name) = file.names().into_iter().find(|name| !known(name)) {
                let found = "an unexpected tensor";
                return Err(SimError::file(file.path(), shown(&name), expected, found));
            }
        }
        Ok(())
    }
}
