//! Files that appear whole or not at all.

use crate::error::{Result, SimError};
use std::fs::{self, File};
use std::io::{self, BufWriter, Write};
use std::path::Path;
use tempfile::NamedTempFile;

/// Writes `path` through a temporary file in the same directory: written, flushed to the disk,
/// renamed. Whatever was there before stays until the rename.
///
/// # Errors
///
/// A path that is no place for a regular file; what the system says about writing.
pub fn write(
    path: &Path,
    fill: impl FnOnce(&mut BufWriter<&mut File>) -> io::Result<()>,
) -> Result<()> {
    let mut file = temporary_beside(path)?;
    let mut out = BufWriter::with_capacity(1 << 20, file.as_file_mut());
    fill(&mut out)
        .and_then(|()| out.flush())
        .map_err(|e| SimError::io(path, e))?;
    drop(out);
    put_in_place(file, path)
}

/// Writes a text file as a whole.
pub fn write_text(path: &Path, text: &str) -> Result<()> {
    write(path, |out| out.write_all(text.as_bytes()))
}

/// A temporary file in the folder of `path`, for [`put_in_place`]. It goes away when dropped.
pub fn temporary_beside(path: &Path) -> Result<NamedTempFile> {
    // Renaming over a device or a folder would replace or fail late.
    if let Ok(meta) = fs::metadata(path)
        && !meta.is_file()
    {
        let found = "something else";
        return Err(SimError::file(path, "output", "a regular file", found));
    }
    if path.file_name().is_none() {
        return Err(SimError::file(path, "output", "a file name", "none"));
    }
    if !folder(path).is_dir() {
        let expected = "a folder that exists";
        return Err(SimError::file(
            path,
            "output",
            expected,
            folder(path).display(),
        ));
    }
    let mut builder = tempfile::Builder::new();
    builder.prefix(".scalescope-").suffix(".tmp");
    // Temporary files are private by default; the result is an ordinary file, less the umask.
    #[cfg(unix)]
    builder.permissions(std::os::unix::fs::PermissionsExt::from_mode(0o666));
    builder
        .tempfile_in(folder(path))
        // Without the name of the temporary file, which nobody asked for.
        .map_err(|e| SimError::io(path, e.kind().into()))
}

/// Brings a temporary file to the disk and moves it to `path`.
pub fn put_in_place(file: NamedTempFile, path: &Path) -> Result<()> {
    let moved = file
        .as_file()
        .sync_all()
        .and_then(|()| file.persist(path).map_err(|e| e.error));
    moved.map_err(|e| SimError::io(path, e))?;
    // The rename itself must survive a power cut; not every file system lets a directory sync.
    #[cfg(unix)]
    let _ = File::open(folder(path)).and_then(|dir| dir.sync_all());
    Ok(())
}

fn folder(path: &Path) -> &Path {
    match path.parent() {
        Some(dir) if dir != Path::new("") => dir,
        _ => Path::new("."),
    }
}
