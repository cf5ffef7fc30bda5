//! Reading, with hostile input in mind: nothing is allocated on the word of a header alone.

use super::array::{Array, Element, with_type};
use super::header::{Fault, Header, MAGIC, shown};
use ndarray::{ArrayD, IxDyn, ShapeBuilder};
use scalescope_sim::error::{Result, SimError};
use std::collections::BTreeMap;
use std::fs::File;
use std::io::{BufReader, Cursor, Read, Seek};
use std::path::{Path, PathBuf};
use zip::ZipArchive;
use zip::result::ZipError;

/// Deflate cannot shrink data by more than this.
const MAX_DEFLATE_RATIO: u64 = 1032;
/// An archive that expands to more than this, and to more than 100 times its size, is refused.
const SUSPICIOUS_TOTAL: u64 = 1 << 30;
/// Longest name of a member.
const MAX_NAME: usize = 256;
/// Elements of the first allocation for data; more only as data arrive.
const FIRST_CHUNK: usize = 1 << 18;
/// Bytes that are read at a time; a multiple of every element's size.
const PIECE: usize = 1 << 16;

/// Where an archive is read from.
trait Source: Read + Seek + std::fmt::Debug + Send {}
impl<T: Read + Seek + std::fmt::Debug + Send> Source for T {}

type Archive = ZipArchive<Box<dyn Source>>;

/// An open `.npz`: its members are checked, their data are read on demand.
#[derive(Debug)]
pub struct NpzReader {
    path: PathBuf,
    archive: Archive,
    /// Array name to index in the archive.
    members: BTreeMap<String, usize>,
}

impl NpzReader {
    /// Opens a file and checks its table of members: names unique and harmless, data not shared
    /// between members, sizes plausible.
    pub fn open(path: impl AsRef<Path>) -> Result<Self> {
        let path = path.as_ref().to_path_buf();
        let (file, file_size) = open_regular(&path)?;
        let source = BufReader::with_capacity(1 << 16, file);
        Self::from_source(path, Box::new(source), file_size)
    }

    /// Opens bytes that are part of the program; `name` stands for the path in errors.
    pub fn from_bytes(name: &str, bytes: &'static [u8]) -> Result<Self> {
        let source = Box::new(Cursor::new(bytes));
        Self::from_source(PathBuf::from(name), source, bytes.len() as u64)
    }

    fn from_source(path: PathBuf, source: Box<dyn Source>, file_size: u64) -> Result<Self> {
        let bad = |expected: &str, found: String| SimError::file(&path, "archive", expected, found);
        let mut archive = ZipArchive::new(source).map_err(|e| zip_error(&path, "archive", e))?;
        if archive.has_duplicate_names() {
            return Err(bad("one member for each name", duplicated(&archive)));
        }
        let overlaps = archive
            .has_overlapping_entries()
            .map_err(|e| zip_error(&path, "archive", e))?;
        if overlaps {
            return Err(bad(
                "members that do not overlap",
                "overlapping members".into(),
            ));
        }
        let mut members = BTreeMap::new();
        let mut total = 0u64;
        for index in 0..archive.len() {
            let entry = archive
                .by_index_data(index)
                .map_err(|e| zip_error(&path, "archive", e))?;
            let raw = String::from_utf8_lossy(entry.name_raw()).into_owned();
            if raw.ends_with('/') && entry.size() == 0 {
                continue; // a folder; it carries nothing
            }
            let name = array_name(&raw).map_err(|expected| {
                SimError::file(
                    &path,
                    format_args!("member \"{}\"", shown(&raw)),
                    expected,
                    "this name",
                )
            })?;
            if entry.encrypted() {
                return Err(SimError::file(
                    &path,
                    name,
                    "plain data",
                    "an encrypted member",
                ));
            }
            total = total.saturating_add(entry.size());
            members.insert(name.to_owned(), index);
        }
        if total > SUSPICIOUS_TOTAL && total / 100 > file_size {
            return Err(bad(
                "data of at most 100 times the file's size",
                format!("{total} bytes in a file of {file_size}"),
            ));
        }
        Ok(Self {
            path,
            archive,
            members,
        })
    }

    /// The file.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Names of the arrays, sorted.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.members.keys().map(String::as_str)
    }

    /// Whether there is an array of this name.
    pub fn contains(&self, name: &str) -> bool {
        self.members.contains_key(name)
    }

    /// Element type and shape of an array; its data stay unread.
    pub fn header(&mut self, name: &str) -> Result<Header> {
        let fault = |path: &Path, (expected, found)| SimError::file(path, name, expected, found);
        let index = self.index(name)?;
        let mut member = self
            .archive
            .by_index(index)
            .map_err(|e| zip_error(&self.path, name, e))?;
        Header::read(&mut member).map_err(|f| fault(&self.path, f))
    }

    /// Reads one array.
    pub fn read(&mut self, name: &str) -> Result<Array> {
        let index = self.index(name)?;
        let mut member = self
            .archive
            .by_index(index)
            .map_err(|e| zip_error(&self.path, name, e))?;
        let (claimed, packed) = (member.size(), member.compressed_size());
        if claimed / MAX_DEFLATE_RATIO > packed {
            return Err(SimError::file(
                &self.path,
                name,
                format_args!("at most {MAX_DEFLATE_RATIO} bytes for each compressed one"),
                format_args!("a claim of {claimed} bytes from {packed}"),
            ));
        }
        read_array(&mut member, claimed).map_err(|fault| fault.at(&self.path, name))
    }

    fn index(&self, name: &str) -> Result<usize> {
        self.members
            .get(name)
            .copied()
            .ok_or_else(|| SimError::file(&self.path, shown(name), "an array of this name", "none"))
    }
}

/// Reads every array of a `.npz`, by name.
pub fn read_npz(path: impl AsRef<Path>) -> Result<BTreeMap<String, Array>> {
    let mut reader = NpzReader::open(path)?;
    let names: Vec<String> = reader.names().map(str::to_owned).collect();
    names
        .into_iter()
        .map(|name| {
            let array = reader.read(&name)?;
            Ok((name, array))
        })
        .collect()
}

/// Reads a `.npy`.
pub fn read_npy(path: impl AsRef<Path>) -> Result<Array> {
    let path = path.as_ref();
    let (file, size) = open_regular(path)?;
    read_array(&mut BufReader::new(file), size).map_err(|fault| fault.at(path, "array"))
}

/// Whether a file starts like a `.npz` (true) or a `.npy` (false), whatever its name says.
pub fn is_npz(path: impl AsRef<Path>) -> Result<bool> {
    let path = path.as_ref();
    let (mut file, _) = open_regular(path)?;
    let mut start = Vec::with_capacity(8);
    file.by_ref()
        .take(6)
        .read_to_end(&mut start)
        .map_err(|e| SimError::io(path, e))?;
    if start.starts_with(b"PK") {
        Ok(true)
    } else if start == MAGIC {
        Ok(false)
    } else {
        Err(SimError::file(
            path,
            "file",
            "a .npz or .npy file",
            "other data",
        ))
    }
}

fn open_regular(path: &Path) -> Result<(File, u64)> {
    let file = File::open(path).map_err(|e| SimError::io(path, e))?;
    let meta = file.metadata().map_err(|e| SimError::io(path, e))?;
    if !meta.is_file() {
        let found = if meta.is_dir() {
            "a folder"
        } else {
            "something else"
        };
        return Err(SimError::file(path, "file", "a regular file", found));
    }
    Ok((file, meta.len()))
}

/// The array that a member holds; on failure, what its name should have been.
fn array_name(raw: &str) -> Result<&str, &'static str> {
    let name = raw
        .strip_suffix(".npy")
        .ok_or("a member name that ends in .npy")?;
    let harmless = !name.is_empty()
        && name.len() <= MAX_NAME
        && !name.contains(['\\', char::REPLACEMENT_CHARACTER])
        && !name.chars().any(char::is_control)
        && name.split('/').all(|part| !matches!(part, "" | "." | ".."));
    if harmless {
        Ok(name)
    } else {
        Err("a plain relative member name")
    }
}

/// Names in the table that come more than once cannot be read back from the parsed archive, which
/// keeps the last of each, so only their number can be given.
fn duplicated(archive: &Archive) -> String {
    format!("names used twice ({} distinct)", archive.len())
}

fn zip_error(path: &Path, item: &str, error: ZipError) -> SimError {
    match error {
        ZipError::Io(e) if e.kind() != std::io::ErrorKind::UnexpectedEof => SimError::io(path, e),
        ZipError::Io(_) => {
            SimError::file(path, item, "a complete zip archive", "the end of the file")
        }
        // The library's words for a file without an archive's end: any other kind of file.
        ZipError::InvalidArchive(why) if why.contains("EOCD") => {
            SimError::file(path, item, "a zip archive (.npz)", "another kind of file")
        }
        other => SimError::file(path, item, "a zip archive (.npz)", other),
    }
}

/// What can be wrong with one array.
enum ArrayFault {
    Io(std::io::Error),
    Format(Fault),
}

impl From<Fault> for ArrayFault {
    fn from(fault: Fault) -> Self {
        Self::Format(fault)
    }
}

impl ArrayFault {
    fn at(self, path: &Path, name: &str) -> SimError {
        match self {
            // A wrong checksum or broken deflate data arrive as errors of the read.
            Self::Io(e) => SimError::file(path, name, "intact data", e),
            Self::Format((expected, found)) => SimError::file(path, name, expected, found),
        }
    }
}

/// Reads header and data of an array that claims `claimed` bytes in all.
fn read_array(reader: &mut impl Read, claimed: u64) -> Result<Array, ArrayFault> {
    let header = Header::read(reader)?;
    let bytes = header.data_bytes().ok_or_else(|| {
        let shape = format!("shape {:?}", header.shape);
        ("a shape whose bytes can be counted".to_owned(), shape)
    })?;
    let present = claimed.checked_sub(header.length as u64);
    if present != Some(bytes as u64) {
        let shape = format!("{} {:?}", header.dtype.name(), header.shape);
        let found = present.map_or("fewer than none".into(), |p| p.to_string());
        return Err((format!("{bytes} bytes of data for {shape}"), found).into());
    }
    Ok(with_type!(header.dtype, T => T::wrap(decode::<T>(reader, bytes, &header)?)))
}

/// Reads the elements in `bytes` bytes and the end behind them (where zip checks its checksum), a piece at a
/// time: memory holds the elements alone, and no more of them than have arrived.
fn elements<T: Element>(
    reader: &mut impl Read,
    bytes: usize,
    big_endian: bool,
) -> Result<Vec<T>, ArrayFault> {
    let short = |found: String| Err((format!("{bytes} bytes of data"), found).into());
    let count = bytes / T::SIZE;
    let from = if big_endian { T::from_be } else { T::from_le };
    let mut values = Vec::with_capacity(count.min(FIRST_CHUNK));
    let mut piece = Vec::with_capacity(PIECE.min(bytes));
    while values.len() < count {
        let rest = (count - values.len()) * T::SIZE;
        piece.clear();
        let mut some = reader.by_ref().take(rest.min(PIECE) as u64);
        some.read_to_end(&mut piece).map_err(ArrayFault::Io)?;
        if piece.len() < rest.min(PIECE) {
            return short((values.len() * T::SIZE + piece.len()).to_string());
        }
        if values.len() == values.capacity() {
            // Twice as many, but never more than there will be.
            values.reserve_exact(values.len().min(count - values.len()));
        }
        values.extend(piece.chunks_exact(T::SIZE).map(from));
    }
    let behind = reader.take(1).read_to_end(&mut piece);
    match behind.map_err(ArrayFault::Io)? {
        0 => Ok(values),
        _ => short("more".into()),
    }
}

fn decode<T: Element>(
    reader: &mut impl Read,
    bytes: usize,
    header: &Header,
) -> Result<ArrayD<T>, ArrayFault> {
    let values = elements::<T>(reader, bytes, header.big_endian)?;
    let shape = IxDyn(&header.shape);
    let fit = "the data were measured against the shape";
    Ok(if header.fortran && header.shape.len() > 1 {
        let array = ArrayD::from_shape_vec(shape.f(), values).expect(fit);
        let mut rows = Vec::with_capacity(array.len());
        rows.extend(array.iter().copied());
        ArrayD::from_shape_vec(IxDyn(&header.shape), rows).expect(fit)
    } else {
        ArrayD::from_shape_vec(shape, values).expect(fit)
    })
}
