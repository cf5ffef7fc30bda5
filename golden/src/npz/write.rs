//! Writing: all or nothing, and the same bytes for the same arrays.

use super::array::{Array, DType, Element, with_array, with_type};
use super::header::{MAX_DIMS, shown};
use ndarray::ArrayD;
use npyz::WriterBuilder;
use scalescope_sim::atomic::{put_in_place, temporary_beside};
use scalescope_sim::error::{Result, SimError};
use std::io::{self, BufWriter, Read, Seek, SeekFrom, Write};
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
    zip: ZipWriter<Careful>,
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
        let zip = ZipWriter::new(Careful::new(temporary));
        Ok(Self { path, zip, options })
    }

    /// Adds an array. Names are unique.
    pub fn add(&mut self, name: &str, array: &Array) -> Result<()> {
        with_array!(array, typed => self.add_typed(name, typed))
    }

    /// Adds an array whose type is known.
    pub fn add_typed<T: Element>(&mut self, name: &str, array: &ArrayD<T>) -> Result<()> {
        let bytes = encode(array).map_err(|e| e.in_file(&self.path))?;
        self.start(name, bytes.len())?;
        self.zip
            .write_all(&bytes)
            .map_err(|e| SimError::io(&self.path, e))
    }

    /// Adds an array whose data come from a reader, row-major and little-endian: memory holds a piece of
    /// them at a time.
    pub fn add_from(
        &mut self,
        name: &str,
        dtype: DType,
        shape: &[usize],
        data: &mut impl Read,
    ) -> Result<()> {
        let bytes = shape.iter().product::<usize>() * dtype.item_size();
        let header = with_type!(dtype, T => header::<T>(shape));
        self.start(name, bytes)?;
        let written = (header.and_then(|header| self.zip.write_all(&header)))
            .and_then(|()| io::copy(data, &mut self.zip))
            .map_err(|e| SimError::io(&self.path, e))?;
        match written == bytes as u64 {
            true => Ok(()),
            false => {
                let expected = format!("{bytes} bytes of data");
                Err(SimError::file(&self.path, shown(name), expected, written))
            }
        }
    }

    fn start(&mut self, name: &str, bytes: usize) -> Result<()> {
        // The header comes on top, and nobody minds a large member that is not.
        let options = self.options.large_file(bytes >= 1 << 31);
        self.zip
            .start_file(format!("{name}.npy"), options)
            .map_err(|e| match e {
                zip::result::ZipError::Io(e) => SimError::io(&self.path, e),
                other => SimError::file(&self.path, shown(name), "a name for a new member", other),
            })
    }

    /// Completes the file and puts it in its place.
    pub fn finish(self) -> Result<()> {
        let written = self.zip.finish().map_err(|e| match e {
            zip::result::ZipError::Io(e) => SimError::io(&self.path, e),
            other => SimError::file(&self.path, "archive", "to be written", other),
        })?;
        let temporary =
            (written.file.into_inner()).map_err(|e| SimError::io(&self.path, e.into_error()))?;
        put_in_place(temporary, &self.path)
    }
}

/// A file that takes no more after an error and then says nothing: a dropped `ZipWriter` would try
/// again and print what happened.
#[derive(Debug)]
struct Careful {
    file: BufWriter<NamedTempFile>,
    failed: bool,
}

impl Careful {
    fn new(file: NamedTempFile) -> Self {
        Self {
            file: BufWriter::with_capacity(1 << 16, file),
            failed: false,
        }
    }

    fn once<T>(
        &mut self,
        instead: T,
        work: impl FnOnce(&mut BufWriter<NamedTempFile>) -> io::Result<T>,
    ) -> io::Result<T> {
        if self.failed {
            return Ok(instead);
        }
        let done = work(&mut self.file);
        self.failed = done.is_err();
        done
    }
}

impl Write for Careful {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.once(bytes.len(), |file| file.write(bytes))
    }

    fn flush(&mut self) -> io::Result<()> {
        self.once((), |file| file.flush())
    }
}

impl Seek for Careful {
    fn seek(&mut self, to: SeekFrom) -> io::Result<u64> {
        self.once(0, |file| file.seek(to))
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
    let mut bytes = Vec::with_capacity(128 + array.len() * T::SIZE);
    let mut writer = begin::<T>(array.shape(), &mut bytes).expect("memory takes bytes");
    // Row-major whatever the memory layout.
    writer
        .extend(array.iter().copied())
        .expect("memory takes bytes");
    writer.finish().expect("as many elements as the shape has");
    Ok(bytes)
}

fn begin<'w, T: Element>(
    shape: &[usize],
    to: &'w mut Vec<u8>,
) -> io::Result<npyz::NpyWriter<T, &'w mut Vec<u8>>> {
    let shape: Vec<u64> = shape.iter().map(|axis| *axis as u64).collect();
    let options = npyz::WriteOptions::new().default_dtype().shape(&shape);
    options.writer(to).begin_nd()
}

/// What stands before the data of an array.
fn header<T: Element>(shape: &[usize]) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    // It is written at once, and complains of the data that are missing only when it is asked to finish.
    drop(begin::<T>(shape, &mut bytes)?);
    Ok(bytes)
}
