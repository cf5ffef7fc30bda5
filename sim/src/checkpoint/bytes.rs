//! The bytes of a file, mapped, or bytes in memory.

use super::input::open_regular;
use crate::error::{Result, SimError};
use memmap2::Mmap;
#[cfg(unix)]
use memmap2::UncheckedAdvice;
use std::ops::Range;
use std::path::Path;

/// The bytes of a file.
#[derive(Debug)]
pub(super) enum Bytes<'a> {
    Mapped(Mmap),
    Borrowed(&'a [u8]),
}

impl Bytes<'_> {
    /// Maps a file.
    ///
    /// The mapping is private and read-only. If another process truncates the file during the read,
    /// the system signals it (SIGBUS), as with any mapped file; the program says so and ends.
    pub fn map(path: &Path) -> Result<Bytes<'static>> {
        let file = open_regular(path)?;
        // SAFETY: read-only; the file is treated as bytes of any value. See above for truncation.
        let map = unsafe { Mmap::map(&file) }.map_err(|e| SimError::io(path, e))?;
        Ok(Bytes::Mapped(map))
    }

    /// All of them.
    pub fn get(&self) -> &[u8] {
        match self {
            Bytes::Mapped(map) => map,
            Bytes::Borrowed(bytes) => bytes,
        }
    }

    /// Some of them, to be read once.
    pub fn part(&self, range: Range<usize>) -> ReadOnce<'_> {
        ReadOnce {
            data: &self.get()[range.clone()],
            mapped: match self {
                Bytes::Mapped(map) => Some((map, range.start)),
                Bytes::Borrowed(_) => None,
            },
        }
    }
}

/// Bytes that are read once: when they are dropped, their pages of the file need not stay in memory beside
/// what was made of them.
#[derive(Debug)]
pub(super) struct ReadOnce<'a> {
    pub data: &'a [u8],
    /// The mapping and where in it the data begin.
    #[cfg_attr(not(unix), expect(dead_code))]
    mapped: Option<(&'a Mmap, usize)>,
}

impl Drop for ReadOnce<'_> {
    fn drop(&mut self) {
        #[cfg(unix)]
        if let Some((map, from)) = self.mapped {
            // SAFETY: the mapping is of a file and never written to, so a page that is read once more
            // comes back as it was.
            let advice = unsafe {
                map.unchecked_advise_range(UncheckedAdvice::DontNeed, from, self.data.len())
            };
            // Advice only.
            let _ = advice;
        }
    }
}
