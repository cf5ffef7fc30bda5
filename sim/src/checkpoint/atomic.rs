//! Files that appear whole or not at all.

use crate::error::{Result, SimError};
use std::fs::File;
use std::io::{self, BufWriter, Write};
use std::path::Path;

/// Writes `path` through a temporary file in the same directory: written, flushed to the disk,
/// renamed. Whatever was there before stays until the rename.
pub(crate) fn write(
    path: &Path,
    fill: impl FnOnce(&mut BufWriter<&mut File>) -> io::Result<()>,
) -> Result<()> {
    let dir = match path.parent() {
        Some(dir) if dir != Path::new("") => dir,
        _ => Path::new("."),
    };
    let result = (|| {
        let mut builder = tempfile::Builder::new();
        builder.prefix(".scalescope-").suffix(".tmp");
        // Temporary files are private by default; the result is an ordinary file, less the umask.
        #[cfg(unix)]
        builder.permissions(std::os::unix::fs::PermissionsExt::from_mode(0o666));
        let mut file = builder.tempfile_in(dir)?;
        let mut out = BufWriter::with_capacity(1 << 20, file.as_file_mut());
        fill(&mut out)?;
        out.flush()?;
        drop(out);
        file.as_file().sync_all()?;
        file.persist(path).map_err(|e| e.error)?;
        // The rename itself must survive a power cut; not every file system lets a directory sync.
        #[cfg(unix)]
        let _ = File::open(dir).and_then(|dir| dir.sync_all());
        Ok(())
    })();
    result.map_err(|e| SimError::io(path, e))
}
