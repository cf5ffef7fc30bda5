//! Writing: all or nothing, and the same bytes for the same arrays.

use super::array::{Array, Element, with_array};
use super::header::{Header, MAX_DIMS, shown};
use ndarray::ArrayD;
use scalescope_sim::error::{Result, SimError};
use std::io::{BufWriter, Write};
use std::path::{Path, PathBuf};
use tempfile::NamedTempFile;
use zip::write::SimpleFileOptions;
use zip::{CompressionMethod, DateTime, ZipWriter};

/// Whether arrays of a `.npz` are compressed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Compression {
    /// As they are (`numpy.savez`).
    Stored,
    /// Deflate at its usual level (`numpy.savez_compressed`).
    #[default]
    Deflate,
}

/// Writes a `.npz` array by array. The file appears under its name only in
/// [`finish`](NpzWriter::finish); dropped before, it leaves nothing.
#[derive(Debug)]
pub struct NpzWriter {
    path: PathBuf,
    zip: ZipWriter<BufWriter<NamedTempFile>>,
    options: SimpleFileOptions,
}

impl NpzWriter {
    /// Starts a file.
    pub fn create(path: impl AsRef<Path>, compression: Compression) -> Result<Self> {
        let path = path.as_ref().to_path_buf();
        let temporary = temporary_beside(&path)?;
        let options = SimpleFileOptions::default().last_modified_time(DateTime::DEFAULT);
        let options = options.compression_method(match compression {
            Compression::Stored => CompressionMethod::Stored,
            Compression::Deflate => CompressionMethod::Deflated,
        });
        let zip = ZipWriter::new(BufWriter::with_capacity(1 << 16, temporary));
        Ok(Self { path, zip, options })
    }

    /// Adds an array. Names are unique.
    pub fn add(&mut self, name: &str, array: &Array) -> Result<()> {
        with_array!(array, typed => self.add_typed(name, typed))
    }

    /// Adds an array whose type is known.
    pub fn add_typed<T: Element>(&mut self, name: &str, array: &ArrayD<T>) -> Result<()> {
        let bytes = encode(array).map_err(|e| e.in_file(&self.path))?;
        let options = self
            .options
            .large_file(bytes.len() as u64 >= u64::from(u32::MAX));
        self.zip
            .start_file(format!("{name}.npy"), options)
            .map_err(|e| match e {
                zip::result::ZipError::Io(e) => SimError::io(&self.path, e),
                other => SimError::file(&self.path, shown(name), "a name for a new member", other),
            })?;
        self.zip
            .write_all(&bytes)
            .map_err(|e| SimError::io(&self.path, e))
    }

    /// Completes the file and puts it in its place.
    pub fn finish(self) -> Result<()> {
        let buffered = self.zip.finish().map_err(|e| match e {
            zip::result::ZipError::Io(e) => SimError::io(&self.path, e),
            other => SimError::file(&self.path, "archive", "to be written", other),
        })?;
        let temporary = buffered
            .into_inner()
            .map_err(|e| SimError::io(&self.path, e.into_error()))?;
        put_in_place(temporary, &self.path)
    }
}

/// Writes arrays in the given order.
pub fn write_npz<'a>(
    path: impl AsRef<Path>,
    arrays: impl IntoIterator<Item = (&'a str, &'a Array)>,
    compression: Compression,
) -> Result<()> {
    let mut writer = NpzWriter::create(path, compression)?;
    for (name, array) in arrays {
        writer.add(name, array)?;
    }
    writer.finish()
}

/// Writes one array.
pub fn write_npy(path: impl AsRef<Path>, array: &Array) -> Result<()> {
    let path = path.as_ref();
    let bytes = with_array!(array, typed => encode(typed)).map_err(|e| e.in_file(path))?;
    let mut temporary = temporary_beside(path)?;
    temporary
        .write_all(&bytes)
        .map_err(|e| SimError::io(path, e))?;
    put_in_place(temporary, path)
}

fn encode<T: Element>(array: &ArrayD<T>) -> Result<Vec<u8>> {
    if array.ndim() > MAX_DIMS {
        return Err(SimError::value(
            "array",
            format_args!("at most {MAX_DIMS} axes"),
            array.ndim(),
        ));
    }
    let mut bytes = Header::write(T::DTYPE, array.shape());
    bytes.reserve_exact(array.len() * T::SIZE);
    // Iteration is row-major whatever the memory layout.
    match array.as_slice() {
        Some(values) => values.iter().for_each(|v| v.put_le(&mut bytes)),
        None => array.iter().for_each(|v| v.put_le(&mut bytes)),
    }
    Ok(bytes)
}

/// A temporary file in the folder of `path`, so that a rename can put it in place.
fn temporary_beside(path: &Path) -> Result<NamedTempFile> {
    // Renaming over a device or a folder would replace or fail late.
    if let Ok(meta) = std::fs::metadata(path)
        && !meta.is_file()
    {
        return Err(SimError::file(
            path,
            "output",
            "a regular file",
            "something else",
        ));
    }
    let folder = match path.parent() {
        Some(folder) if !folder.as_os_str().is_empty() => folder,
        _ => Path::new("."),
    };
    if path.file_name().is_none() {
        return Err(SimError::file(path, "output", "a file name", "none"));
    }
    let mut builder = tempfile::Builder::new();
    builder.prefix(".scalescope-").suffix(".tmp");
    #[cfg(unix)]
    {
        use std::os::unix::fs::PermissionsExt;
        // As any other new file; the umask applies.
        builder.permissions(std::fs::Permissions::from_mode(0o666));
    }
    builder
        .tempfile_in(folder)
        .map_err(|e| SimError::io(path, e))
}

fn put_in_place(temporary: NamedTempFile, path: &Path) -> Result<()> {
    temporary
        .persist(path)
        .map(drop)
        .map_err(|e| SimError::io(path, e.error))
}
