//! Files of `torch.save`: a zip of stored members, of which `data.pkl` is a pickled dict and `data/K` are
//! the storages its tensors lie in. Only the zip format of torch 1.6 and later, little-endian.
//!
//! Opening reads the pickle and measures every tensor against its storage; data are read when asked
//! for, from the mapped file. Memory for opening is at most [`OPENING_FACTOR`] bytes for each byte of the
//! file, and all tensors together take at most [`SHARING_FACTOR`] times the file's length.

mod pickle;
pub mod write;

use super::bytes::Bytes;
use super::input::shown;
use super::tensor::FileTensor;
use crate::error::{Result, SimError};
use safetensors::Dtype;
use std::collections::BTreeMap;
use std::io::Cursor;
use std::path::{Path, PathBuf};
use zip::{CompressionMethod, ZipArchive};

/// Bytes that opening takes at most for each byte of the file.
pub const OPENING_FACTOR: usize = 256;
/// Tensors may share storages, but all of them together are no more than this many files.
pub const SHARING_FACTOR: usize = 4;
/// A model of a thousand layers has a pickle of 5 MB.
const MAX_PICKLE: usize = 64 << 20;
/// How a file of torch before 1.6 begins.
const LEGACY: &[u8] = b"\x80\x02\x8a\x0al\xfc\x9cF\xf9 j\xa8P\x19.";

/// What a key of the dict holds.
#[derive(Clone, Debug, PartialEq)]
pub enum Found {
    /// A tensor.
    Tensor(View),
    /// A Python float.
    Number(f64),
    /// A Python integer.
    Integer(i64),
    /// Anything else, in words.
    Other(&'static str),
}

/// The elements of one storage: a member of the archive.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Storage {
    dtype: Dtype,
    /// First byte in the file.
    start: usize,
    elements: usize,
}

/// Where a tensor lies; inside its storage, which is inside the file.
#[derive(Clone, Debug, PartialEq)]
pub struct View {
    storage: Storage,
    /// First element in the storage.
    offset: usize,
    shape: Vec<usize>,
    /// Elements from one to the next along each axis.
    strides: Vec<usize>,
}

impl View {
    fn new(
        storage: Storage,
        offset: usize,
        shape: Vec<usize>,
        strides: Vec<usize>,
    ) -> Result<Self, pickle::Fault> {
        let described = || format!("shape {shape:?}, strides {strides:?}, offset {offset}");
        let bad = |expected: String| Err((expected, described()));
        if shape.len() != strides.len() {
            return bad("a stride for each dimension".into());
        }
        let count = shape.iter().try_fold(1usize, |n, m| n.checked_mul(*m));
        let last = (shape.iter().zip(&strides)).try_fold(offset, |at, (n, stride)| {
            at.checked_add(n.saturating_sub(1).checked_mul(*stride)?)
        });
        let elements = storage.elements;
        let inside = match count {
            Some(0) => offset <= elements,
            Some(count) => count <= elements && last.is_some_and(|last| last < elements),
            None => false,
        };
        if !inside {
            return bad(format!(
                "a tensor within its storage of {elements} elements"
            ));
        }
        Ok(Self {
            storage,
            offset,
            shape,
            strides,
        })
    }

    /// Type of the elements.
    pub fn dtype(&self) -> Dtype {
        self.storage.dtype
    }

    /// Lengths of the axes.
    pub fn shape(&self) -> &[usize] {
        &self.shape
    }

    /// Elements from one to the next along each axis.
    pub fn strides(&self) -> &[usize] {
        &self.strides
    }

    fn bytes(&self) -> usize {
        self.shape.iter().product::<usize>() * item_size(self.dtype())
    }
}

/// Bytes of an element; all types of [`Found::Tensor`] have whole ones.
fn item_size(dtype: Dtype) -> usize {
    dtype.bitsize() / 8
}

/// A dict that `torch.save` wrote, its tensors still in the file.
#[derive(Debug)]
pub struct TorchFile<'a> {
    path: PathBuf,
    bytes: Bytes<'a>,
    entries: BTreeMap<String, Found>,
}

impl<'a> TorchFile<'a> {
    /// Maps a file and reads its dict. If another process cuts the file short while it is read, the
    /// system signals it, as with any mapped file.
    ///
    /// # Errors
    ///
    /// One line with file, member or key, expected and found: not a zip of `torch.save`; the format
    /// before torch 1.6; big-endian data; packed or encrypted members; a pickle with other names or
    /// instructions than a dict of tensors needs; a tensor beyond its storage, a storage that is
    /// shorter or longer than the pickle says.
    pub fn open(path: &Path) -> Result<TorchFile<'static>> {
        TorchFile::parse(path, Bytes::map(path)?)
    }

    /// Reads a dict from bytes; `name` stands for the path in errors.
    ///
    /// # Errors
    ///
    /// As [`TorchFile::open`].
    pub fn from_bytes(name: &Path, bytes: &'a [u8]) -> Result<TorchFile<'a>> {
        TorchFile::parse(name, Bytes::Borrowed(bytes))
    }

    fn parse(path: &Path, bytes: Bytes<'a>) -> Result<Self> {
        let archive = Archive::read(path, bytes.get())?;
        let pickle = archive.pickle()?;
        let fault = |(expected, found)| SimError::file(path, "data.pkl", expected, found);
        let pairs = pickle::read(pickle, |dtype, key, elements| {
            archive.storage(dtype, key, elements)
        });
        let mut entries = BTreeMap::new();
        let mut total = 0usize;
        for (name, found) in pairs.map_err(fault)? {
            if let Found::Tensor(view) = &found {
                total = total.saturating_add(view.bytes());
            }
            if entries.contains_key(&name) {
                return Err(SimError::file(
                    path,
                    shown(&name),
                    "one entry of a name",
                    "two",
                ));
            }
            entries.insert(name, found);
        }
        let most = bytes.get().len().saturating_mul(SHARING_FACTOR);
        if total > most {
            let expected = format_args!("at most {SHARING_FACTOR} times the file's bytes");
            return Err(SimError::file(
                path,
                "tensors",
                expected,
                format_args!("{total} bytes"),
            ));
        }
        Ok(Self {
            path: path.to_path_buf(),
            bytes,
            entries,
        })
    }

    /// The file, or the name it was given.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Every key with what it holds, sorted.
    pub fn entries(&self) -> impl Iterator<Item = (&str, &Found)> {
        self.entries
            .iter()
            .map(|(name, found)| (name.as_str(), found))
    }

    /// What a key holds.
    pub fn get(&self, name: &str) -> Option<&Found> {
        self.entries.get(name)
    }

    /// The tensor of a key, of whatever shape.
    ///
    /// # Errors
    ///
    /// No such key, or no tensor there.
    pub fn any_tensor(&self, name: &str) -> Result<FileTensor<'_>> {
        let refuse = |found: &str| Err(SimError::file(&self.path, shown(name), "a tensor", found));
        let view = match self.get(name) {
            Some(Found::Tensor(view)) => view,
            Some(Found::Number(_) | Found::Integer(_)) => return refuse("a number"),
            Some(Found::Other(kind)) => return refuse(kind),
            None => return refuse("no tensor of that name"),
        };
        let size = item_size(view.dtype());
        // Inside the file: `View::new` and `Archive::storage` measured it.
        let from = view.storage.start + view.offset * size;
        let to = view.storage.start + view.storage.elements * size;
        Ok(FileTensor::new(
            &self.path,
            name,
            view.dtype(),
            view.shape.clone(),
            Some(view.strides.clone()),
            self.bytes.part(from..to),
        ))
    }

    /// The tensor of a key, which must have exactly this shape.
    ///
    /// # Errors
    ///
    /// As [`TorchFile::any_tensor`]; another shape.
    pub fn tensor(&self, name: &str, shape: &[usize]) -> Result<FileTensor<'_>> {
        if !self.entries.contains_key(name) {
            let expected = format_args!("a tensor of shape {shape:?}");
            return Err(SimError::file(
                &self.path,
                name,
                expected,
                "no tensor of that name",
            ));
        }
        self.any_tensor(name)?.of_shape(shape)
    }

    /// The number of a key: a Python float, or a tensor of one f32. Quamba writes scales in both ways, each
    /// an exact f32.
    ///
    /// # Errors
    ///
    /// No such key; no number, or one that f32 does not hold.
    pub fn number(&self, name: &str) -> Result<f32> {
        let refuse = |expected: &str, found: &dyn std::fmt::Display| {
            Err(SimError::file(&self.path, name, expected, found))
        };
        match self.get(name) {
            Some(Found::Number(value)) => match (*value as f32, value.is_nan()) {
                (near, false) if f64::from(near) == *value => Ok(near),
                _ => refuse("a number that is an exact f32", value),
            },
            Some(Found::Tensor(_)) => self.any_tensor(name)?.scalar_f32(),
            Some(Found::Integer(value)) => refuse("a float", value),
            Some(Found::Other(kind)) => refuse("a number", kind),
            None => refuse("a number", &"no tensor of that name"),
        }
    }
}

/// The members of the zip, and where the storages are among them.
struct Archive<'a> {
    path: &'a Path,
    bytes: &'a [u8],
    /// Name to first byte and length.
    members: BTreeMap<String, (usize, usize)>,
    /// What lies before `data.pkl`: `pytorch_model/`.
    folder: String,
}

impl<'a> Archive<'a> {
    fn read(path: &'a Path, bytes: &'a [u8]) -> Result<Self> {
        let expected = "a zip archive of torch.save";
        if !bytes.starts_with(b"PK") {
            let found = match bytes {
                [..] if bytes.starts_with(LEGACY) => {
                    "the format before torch 1.6 (load and save it once with a later torch)"
                }
                [..] if bytes.starts_with(b"version https://git-lfs") => {
                    "a Git LFS pointer (the file itself was not downloaded)"
                }
                _ => "other data",
            };
            return Err(SimError::file(path, "file", expected, found));
        }
        let bad = |found: zip::result::ZipError| SimError::file(path, "archive", expected, found);
        let mut zip = ZipArchive::new(Cursor::new(bytes)).map_err(bad)?;
        if zip.has_duplicate_names() || zip.has_overlapping_entries().map_err(bad)? {
            let found = "members of one name, or that overlap";
            return Err(SimError::file(path, "archive", expected, found));
        }
        let mut members = BTreeMap::new();
        for index in 0..zip.len() {
            let member = zip.by_index_raw(index).map_err(bad)?;
            let name = String::from_utf8_lossy(member.name_raw()).into_owned();
            let stored = member.compression() == CompressionMethod::Stored && !member.encrypted();
            if !stored || member.size() != member.compressed_size() {
                let found = "a packed or encrypted one";
                return Err(SimError::file(path, shown(&name), "a stored member", found));
            }
            let range = member.data_start().and_then(|start| {
                let end = start.checked_add(member.size())?;
                (end <= bytes.len() as u64).then_some((start as usize, member.size() as usize))
            });
            let Some(range) = range else {
                let expected = format_args!("{} bytes", member.size());
                return Err(SimError::file(
                    path,
                    shown(&name),
                    expected,
                    "the end of the file",
                ));
            };
            members.insert(name, range);
        }
        let mut folders = members
            .keys()
            .filter_map(|name| name.strip_suffix("data.pkl"));
        let folder = match (folders.next(), folders.next()) {
            (Some(folder), None) if folder.is_empty() || folder.ends_with('/') => folder.to_owned(),
            _ => {
                return Err(SimError::file(
                    path,
                    "archive",
                    "one data.pkl",
                    "none or several",
                ));
            }
        };
        let archive = Self {
            path,
            bytes,
            members,
            folder,
        };
        match archive.member("byteorder") {
            None | Some(b"little") => Ok(archive),
            Some(other) => {
                let found = shown(&String::from_utf8_lossy(&other[..other.len().min(16)]));
                Err(SimError::file(path, "byteorder", "little", found))
            }
        }
    }

    fn member(&self, name: &str) -> Option<&'a [u8]> {
        let (start, length) = self.members.get(&format!("{}{name}", self.folder))?;
        Some(&self.bytes[*start..][..*length])
    }

    fn pickle(&self) -> Result<&'a [u8]> {
        let pickle = self.member("data.pkl").expect("the folder was found by it");
        match pickle.len() <= MAX_PICKLE {
            true => Ok(pickle),
            false => Err(SimError::file(
                self.path,
                "data.pkl",
                format_args!("at most {MAX_PICKLE} bytes"),
                pickle.len(),
            )),
        }
    }

    fn storage(&self, dtype: Dtype, key: &str, elements: usize) -> Result<Storage, pickle::Fault> {
        let name = format!("{}data/{key}", self.folder);
        let Some((start, length)) = self.members.get(&name).copied() else {
            return Err((format!("a member {}", shown(&name)), "none".into()));
        };
        if elements.checked_mul(item_size(dtype)) != Some(length) {
            let expected = format!("{elements} elements of {dtype} in {}", shown(&name));
            return Err((expected, format!("{length} bytes")));
        }
        Ok(Storage {
            dtype,
            start,
            elements,
        })
    }
}
