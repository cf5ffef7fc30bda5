//! A folder of vectors: `manifest.json` and one file an array.

use super::testbench::file_name;
use super::words::{Format, read, write};
use crate::npz::{Array, DType};
use scalescope_sim::error::{Result, SimError};
use scalescope_sim::profile::Profile;
use scalescope_sim::text;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use sha2::{Digest, Sha256};
use std::path::{Path, PathBuf};

/// The version of the format.
pub const VERSION: u32 = 1;
/// The manifest's name.
pub const MANIFEST: &str = "manifest.json";

/// What an array is to its step.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Role {
    /// Streams in.
    Input,
    /// Weights, scales, multipliers, shifts, tables: constant over time.
    Constant,
    /// A value inside the step, to verify a part of it with.
    Internal,
    /// Comes out.
    Expected,
}

/// An array of a manifest.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Entry {
    /// Its name within the step.
    pub name: String,
    /// What it is.
    pub role: Role,
    /// The key of a trace that it is, if it is one: `layer_03/conv_out`, `tokens`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub key: Option<String>,
    /// Its file, beside the manifest.
    pub file: String,
    /// Element type: i8, u8, i16, i32, u32, i64, f16, f32.
    pub dtype: String,
    /// Bits of a word in hardware: of a register, a factor or a table they may be fewer than its type has.
    pub bits: usize,
    /// Axes, outermost first.
    pub shape: Vec<usize>,
    /// `row-major`.
    pub layout: String,
    /// Words.
    pub depth: usize,
    /// `one element a word`.
    pub packing: String,
    /// The real value of one step of codes, as f32.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub scale: Option<f32>,
    /// The bits of that f32, in hexadecimal.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub scale_bits: Option<String>,
    /// sha256 of the file; of memory files with lines that end in LF, as they are written.
    pub sha256: String,
}

/// The rules a step ran with.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ProfileEntry {
    /// The name it was called by.
    pub name: String,
    /// [`Profile::hash`].
    pub hash: String,
    /// The profile file's text, so that the folder stands by itself.
    pub toml: String,
}

/// A manifest.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Manifest {
    /// [`VERSION`].
    pub scalescope_vectors: u32,
    /// The step: `in_proj`, `conv`, ….
    pub step: String,
    /// The block.
    pub layer: usize,
    /// The mode.
    pub mode: String,
    /// The profile.
    pub profile: ProfileEntry,
    /// Digest of the model.
    pub model: Option<String>,
    /// Form of the files.
    pub format: Format,
    /// Numbers the step needs besides arrays.
    pub parameters: Map<String, Value>,
    /// The arrays.
    pub arrays: Vec<Entry>,
}

/// An array with its place in a step.
#[derive(Clone, Debug, PartialEq)]
pub struct Vector {
    /// Its name within the step.
    pub name: String,
    /// What it is.
    pub role: Role,
    /// The key of a trace that it is.
    pub key: Option<String>,
    /// The scale of codes.
    pub scale: Option<f32>,
    /// Bits of a word in hardware, those of the elements' type at most.
    pub bits: usize,
    /// The elements.
    pub array: Array,
}

impl Vector {
    /// Words as wide as their type, without a key and a scale.
    pub fn new(name: &str, role: Role, array: Array) -> Self {
        Self {
            name: name.into(),
            role,
            key: None,
            scale: None,
            bits: 8 * array.dtype().item_size(),
            array,
        }
    }
}

/// The vectors of a step.
#[derive(Clone, Debug, PartialEq)]
pub struct StepVectors {
    /// The step.
    pub step: String,
    /// The block.
    pub layer: usize,
    /// The mode.
    pub mode: String,
    /// The profile.
    pub profile: ProfileEntry,
    /// Digest of the model.
    pub model: Option<String>,
    /// Numbers the step needs besides arrays.
    pub parameters: Map<String, Value>,
    /// The arrays.
    pub vectors: Vec<Vector>,
}

impl StepVectors {
    /// An array by name.
    pub fn get(&self, name: &str) -> Result<&Vector> {
        self.vectors
            .iter()
            .find(|vector| vector.name == name)
            .ok_or_else(|| SimError::value(&self.step, format_args!("an array {name}"), "none"))
    }

    /// The profile, from its text.
    ///
    /// # Errors
    ///
    /// Rules whose hash is not the manifest's.
    pub fn rules(&self) -> Result<Profile> {
        let profile = Profile::from_toml(&self.profile.name, &self.profile.toml)?;
        match profile.hash() == self.profile.hash {
            true => Ok(profile),
            false => Err(SimError::value(
                "profile.hash",
                profile.hash(),
                &self.profile.hash,
            )),
        }
    }

    /// Writes every array and, last, the manifest.
    pub fn write(&self, folder: &Path, format: Format) -> Result<Manifest> {
        std::fs::create_dir_all(folder).map_err(|e| SimError::io(folder, e))?;
        let arrays = self.vectors.iter().map(|vector| {
            let file = format!("{}.{}", vector.name, format.name());
            let path = folder.join(&file);
            write(&path, &vector.array, vector.bits, format)?;
            let array = &vector.array;
            Ok(Entry {
                name: vector.name.clone(),
                role: vector.role,
                key: vector.key.clone(),
                dtype: array.dtype().name().to_owned(),
                bits: vector.bits,
                shape: array.shape().to_vec(),
                layout: "row-major".into(),
                depth: array.len(),
                packing: "one element a word".into(),
                scale: vector.scale,
                scale_bits: vector.scale.map(|s| format!("{:08x}", s.to_bits())),
                sha256: digest(&path, format)?,
                file,
            })
        });
        let manifest = Manifest {
            scalescope_vectors: VERSION,
            step: self.step.clone(),
            layer: self.layer,
            mode: self.mode.clone(),
            profile: self.profile.clone(),
            model: self.model.clone(),
            format,
            parameters: self.parameters.clone(),
            arrays: arrays.collect::<Result<_>>()?,
        };
        let path = folder.join(MANIFEST);
        let text = serde_json::to_string_pretty(&manifest).expect("a manifest is JSON") + "\n";
        std::fs::write(&path, text).map_err(|e| SimError::io(&path, e))?;
        Ok(manifest)
    }

    /// Reads a folder (or its manifest). The files whose sha256 is not the manifest's are named, not
    /// refused: they may be dumps of another simulator.
    pub fn read(path: &Path) -> Result<(Self, Vec<String>)> {
        let folder = folder_of(path);
        let manifest = Manifest::read(&folder)?;
        let mut altered = Vec::new();
        let mut vectors = Vec::new();
        for entry in &manifest.arrays {
            let file = folder.join(&entry.file);
            if digest(&file, manifest.format)? != entry.sha256 {
                altered.push(entry.file.clone());
            }
            vectors.push(Vector {
                name: entry.name.clone(),
                role: entry.role,
                key: entry.key.clone(),
                scale: entry.scale,
                bits: entry.bits,
                array: entry.array(&folder, manifest.format)?,
            });
        }
        let read = Self {
            step: manifest.step,
            layer: manifest.layer,
            mode: manifest.mode,
            profile: manifest.profile,
            model: manifest.model,
            parameters: manifest.parameters,
            vectors,
        };
        Ok((read, altered))
    }
}

/// The folder of a folder or of the manifest in it.
fn folder_of(path: &Path) -> PathBuf {
    match path.file_name() {
        Some(name) if name == MANIFEST => path.parent().unwrap_or(Path::new("")).to_path_buf(),
        _ => path.to_path_buf(),
    }
}

/// Whether a path is a folder of vectors, or its manifest.
pub fn is_vectors(path: &Path) -> bool {
    folder_of(path).join(MANIFEST).is_file()
}

/// The sha256 of a file. A checkout may have changed the ends of lines of a text, which changes no word.
fn digest(path: &Path, format: Format) -> Result<String> {
    let mut bytes = std::fs::read(path).map_err(|e| SimError::io(path, e))?;
    if matches!(format, Format::Hex | Format::Mem) {
        bytes.retain(|byte| *byte != b'\r');
    }
    let digest = Sha256::digest(bytes);
    Ok(digest.iter().map(|b| format!("{b:02x}")).collect())
}

impl Manifest {
    /// Removes what an earlier export left in a folder: the files of its manifest, its testbench, the dumps that
    /// this wrote. Returns how many.
    ///
    /// # Errors
    ///
    /// A manifest that cannot be read: then it is not ours to remove.
    pub fn clear(folder: &Path) -> Result<usize> {
        if !folder.join(MANIFEST).is_file() {
            return Ok(0);
        }
        let old = Self::read(folder)?;
        let dumps = old.arrays.iter().map(|a| format!("{}.dump.hex", a.name));
        let files = old.arrays.iter().map(|a| a.file.clone());
        let own = [file_name(&old), MANIFEST.to_owned()];
        let mut removed = 0;
        for file in files.chain(dumps).chain(own) {
            let path = folder.join(file);
            match std::fs::remove_file(&path) {
                Ok(()) => removed += 1,
                Err(e) if e.kind() == std::io::ErrorKind::NotFound => {}
                Err(e) => return Err(SimError::io(path, e)),
            }
        }
        Ok(removed)
    }

    /// The manifest of a folder.
    ///
    /// # Errors
    ///
    /// JSON that is no manifest, another version, an array whose fields disagree or whose file lies
    /// elsewhere.
    pub fn read(folder: &Path) -> Result<Self> {
        let path = folder.join(MANIFEST);
        let bytes = std::fs::read(&path).map_err(|e| SimError::io(&path, e))?;
        let manifest: Manifest = text::from_json(&bytes)
            .map_err(|e| SimError::file(&path, "manifest", "a manifest of vectors", e))?;
        let bad = |item: String, expected: String, found: String| {
            Err(SimError::file(&path, item, expected, found))
        };
        if manifest.scalescope_vectors != VERSION {
            return bad(
                "scalescope_vectors".into(),
                VERSION.to_string(),
                manifest.scalescope_vectors.to_string(),
            );
        }
        for entry in &manifest.arrays {
            let item = |field: &str| format!("array {}: {field}", entry.name);
            let Some(dtype) = entry.element() else {
                return bad(
                    item("dtype"),
                    "i8, u8, i16, i32, u32, i64, f16 or f32".into(),
                    entry.dtype.clone(),
                );
            };
            let depth = entry
                .shape
                .iter()
                .try_fold(1usize, |n, axis| n.checked_mul(*axis));
            if depth == Some(0) {
                return bad(
                    item("shape"),
                    "axes of 1 at least".into(),
                    format!("{:?}", entry.shape),
                );
            }
            if depth != Some(entry.depth) {
                return bad(
                    item("depth"),
                    format!("the words of shape {:?}", entry.shape),
                    entry.depth.to_string(),
                );
            }
            let (fewest, most) = match dtype {
                DType::F16 | DType::F32 => (8 * dtype.item_size(), 8 * dtype.item_size()),
                _ => (1, 8 * dtype.item_size()),
            };
            if !(fewest..=most).contains(&entry.bits) {
                return bad(
                    item("bits"),
                    format!("{fewest} to {most}, as {} has them", dtype.name()),
                    entry.bits.to_string(),
                );
            }
            if entry.layout != "row-major" {
                return bad(item("layout"), "row-major".into(), entry.layout.clone());
            }
            if Path::new(&entry.file).components().count() != 1 || entry.file == ".." {
                return bad(
                    item("file"),
                    "a file beside the manifest".into(),
                    entry.file.clone(),
                );
            }
        }
        Ok(manifest)
    }
}

impl Entry {
    fn element(&self) -> Option<DType> {
        let known = DType::ALL.iter().find(|dtype| dtype.name() == self.dtype);
        known.copied().filter(|dtype| {
            matches!(
                dtype,
                DType::I8
                    | DType::U8
                    | DType::I16
                    | DType::I32
                    | DType::U32
                    | DType::I64
                    | DType::F16
                    | DType::F32
            )
        })
    }

    /// The array, from its file.
    pub fn array(&self, folder: &Path, format: Format) -> Result<Array> {
        let dtype = self.element().expect("checked when the manifest was read");
        read(
            &folder.join(&self.file),
            format,
            dtype,
            self.bits,
            &self.shape,
        )
    }
}
