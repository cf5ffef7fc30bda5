//! Reading of the safetensors container: the `safetensors` crate knows element types and entries and
//! judges the layout, `serde_json` parses the header; here are the mapping and the error lines.
//!
//! The header is not handed to `SafeTensors::deserialize` whole, because that takes the last of two
//! entries of one name, adds offsets near 2^64 with overflow, and refuses without a tensor's name.

use super::bytes::Bytes;
use super::input::{open_regular, shown};
use super::tensor::{Dtype, FileTensor, shown_shape};
use crate::error::{Result, SimError};
use safetensors::tensor::{Metadata, SafeTensorError, TensorInfo};
use serde::de::{Deserialize, Deserializer, Error as _, MapAccess, Visitor};
use std::collections::{BTreeMap, HashMap};
use std::fmt;
use std::path::{Path, PathBuf};

/// The header may not be longer than this; the crate has the same bound.
const MAX_HEADER: usize = 100_000_000;

/// A safetensors file whose header was read and found consistent.
pub struct Container<'a> {
    path: PathBuf,
    bytes: Bytes<'a>,
    data_start: usize,
    header: Metadata,
}

impl<'a> Container<'a> {
    /// Maps a file and checks its header.
    pub fn open(path: &Path) -> Result<Container<'static>> {
        Container::parse(path, Bytes::map(path)?)
    }

    /// Whether a file is a safetensors file, by its first bytes; `named` (by its extension) where these
    /// do not tell.
    pub fn is_one(path: &Path, named: bool) -> Result<bool> {
        use std::io::Read;
        let mut start = Vec::new();
        let mut file = open_regular(path)?.take(9);
        file.read_to_end(&mut start)
            .map_err(|e| SimError::io(path, e))?;
        let is_header = |start: &[u8; 8]| u64::from_le_bytes(*start) <= MAX_HEADER as u64;
        Ok(match start.split_first_chunk::<8>() {
            Some((length, [b'{'])) if is_header(length) => true,
            Some(([b'{', ..] | [0xef, 0xbb, 0xbf, ..], _)) => false,
            _ => named,
        })
    }

    /// Checks bytes in memory; `name` stands for the path in errors.
    pub fn from_bytes(name: &Path, bytes: &'a [u8]) -> Result<Container<'a>> {
        Container::parse(name, Bytes::Borrowed(bytes))
    }

    fn parse(path: &Path, bytes: Bytes<'a>) -> Result<Self> {
        let all = bytes.get();
        let Some((length, rest)) = all.split_first_chunk::<8>() else {
            let found = format_args!("a file of {} bytes", all.len());
            return Err(SimError::file(path, "header length", "8 bytes", found));
        };
        let length = u64::from_le_bytes(*length);
        let most = rest.len().min(MAX_HEADER);
        let Some(header_length) = usize::try_from(length).ok().filter(|n| *n <= most) else {
            let expected =
                format_args!("at most {most} bytes (not a safetensors file, or truncated)");
            return Err(SimError::file(path, "header length", expected, length));
        };
        let (header, data) = rest.split_at(header_length);
        let header: Header = serde_json::from_slice(header).map_err(|e| {
            let found = shown(&e.to_string());
            SimError::file(path, "header", "a JSON object of tensors", found)
        })?;
        let header = header.check(path, data.len())?;
        Ok(Self {
            path: path.to_path_buf(),
            data_start: 8 + header_length,
            bytes,
            header,
        })
    }

    /// The file, or the name it was given.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// A string of the header's `__metadata__`.
    pub fn metadata(&self, key: &str) -> Option<&str> {
        self.header
            .metadata()
            .as_ref()?
            .get(key)
            .map(String::as_str)
    }

    /// Names of all tensors, in the order of the file.
    pub fn names(&self) -> Vec<String> {
        self.header.offset_keys()
    }

    /// Whether there is a tensor of that name.
    pub fn contains(&self, name: &str) -> bool {
        self.header.info(name).is_some()
    }

    /// Type of a tensor.
    pub fn dtype(&self, name: &str) -> Option<Dtype> {
        Some(self.header.info(name)?.dtype)
    }

    /// Lengths of a tensor's axes.
    pub fn shape(&self, name: &str) -> &[usize] {
        self.header.info(name).map_or(&[], |info| &info.shape)
    }

    /// The tensor `name`, which must have exactly this shape.
    pub fn tensor(&self, name: &str, shape: &[usize]) -> Result<FileTensor<'_>> {
        let Some(info) = self.header.info(name) else {
            return Err(SimError::file(
                &self.path,
                name,
                format_args!("a tensor of shape {shape:?}"),
                "no tensor of that name",
            ));
        };
        if info.shape != shape {
            return Err(SimError::file(
                &self.path,
                name,
                format_args!("shape {shape:?}"),
                shown_shape(&info.shape),
            ));
        }
        // In range: `Header::check` found every tensor inside the file.
        let (from, to) = info.data_offsets;
        let from = self.data_start + from;
        Ok(FileTensor::new(
            &self.path,
            name,
            info.dtype,
            shape.to_vec(),
            None,
            self.bytes.part(from..self.data_start + to),
        ))
    }

    /// Refuses a file with tensors that `known` does not recognise: something would be ignored
    /// that its author meant.
    pub fn refuse_others(&self, known: impl Fn(&str) -> bool, expected: &str) -> Result<()> {
        match self.names().into_iter().find(|name| !known(name)) {
            None => Ok(()),
            Some(name) => Err(SimError::file(
                &self.path,
                shown(&name),
                expected,
                "an unexpected tensor",
            )),
        }
    }
}

/// The header as it stands, no name twice.
#[derive(Default)]
struct Header {
    tensors: BTreeMap<String, TensorInfo>,
    metadata: Option<HashMap<String, String>>,
}

impl Header {
    /// Sizes agree with shapes, and tensors lie one after the other over all of the data.
    fn check(self, path: &Path, data_length: usize) -> Result<Metadata> {
        let mut tensors: Vec<(String, TensorInfo)> = self.tensors.into_iter().collect();
        tensors.sort_by_key(|(_, info)| info.data_offsets);
        let header = Metadata::new(self.metadata, tensors.clone())
            .map_err(|error| layout_error(path, &tensors, &error))?;
        let past_the_end = |info: &TensorInfo| info.data_offsets.1 > data_length;
        if let Some((name, info)) = tensors.iter().find(|(_, info)| past_the_end(info)) {
            let (from, to) = info.data_offsets;
            return Err(SimError::file(
                path,
                shown(name),
                format_args!("bytes {from} to {to} of the data"),
                format_args!("only {data_length} bytes (truncated file)"),
            ));
        }
        if header.data_len() != data_length {
            return Err(SimError::file(
                path,
                "data",
                format_args!("{} bytes, the sum of all tensors", header.data_len()),
                format_args!("{data_length} bytes"),
            ));
        }
        Ok(header)
    }
}

/// Puts the crate's refusal of a layout into a line that names the first tensor at fault, where it is
/// and where it should be.
fn layout_error(
    path: &Path,
    in_order: &[(String, TensorInfo)],
    error: &SafeTensorError,
) -> SimError {
    let mut end = 0;
    for (name, info) in in_order {
        let (from, to) = info.data_offsets;
        let what = format!("{} of shape {}", info.dtype, shown_shape(&info.shape));
        let bits = info
            .shape
            .iter()
            .try_fold(info.dtype.bitsize(), |n, m| n.checked_mul(*m));
        let Some(bytes) = bits.filter(|bits| bits % 8 == 0).map(|bits| bits / 8) else {
            let expected = "a whole number of bytes below 2^61";
            return SimError::file(path, shown(name), expected, what);
        };
        if from != end || to.checked_sub(from) != Some(bytes) {
            let should = end.saturating_add(bytes);
            let expected = format_args!("data_offsets [{end}, {should}] for {what}");
            return SimError::file(path, shown(name), expected, format_args!("[{from}, {to}]"));
        }
        end = to;
    }
    SimError::file(path, "header", "a consistent layout", error)
}

impl<'de> Deserialize<'de> for Header {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct HeaderVisitor;

        impl<'de> Visitor<'de> for HeaderVisitor {
            type Value = Header;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Header, A::Error> {
                let mut header = Header::default();
                while let Some(name) = map.next_key::<String>()? {
                    let named = |e: A::Error| A::Error::custom(format_args!("{name}: {e}"));
                    if name == "__metadata__" {
                        header.metadata = Some(map.next_value().map_err(named)?);
                        continue;
                    }
                    let entry: TensorInfo = map.next_value().map_err(named)?;
                    if header.tensors.contains_key(&name) {
                        return Err(A::Error::custom(format_args!("{name} twice")));
                    }
                    header.tensors.insert(name, entry);
                }
                Ok(header)
            }
        }

        deserializer.deserialize_map(HeaderVisitor)
    }
}
