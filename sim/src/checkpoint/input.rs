//! Files from strangers: opened only if regular, read only up to a limit, quoted only on one line.

use crate::error::{Result, SimError};
use std::fmt::Write as _;
use std::fs::File;
use std::path::Path;

/// Opens a non-empty regular file; anything else (a directory, a pipe) could block or has no size.
pub(crate) fn open_regular(path: &Path) -> Result<File> {
    let metadata = std::fs::metadata(path).map_err(|e| SimError::io(path, e))?;
    let refuse = |found| Err(SimError::file(path, "file", "a non-empty file", found));
    if metadata.is_dir() {
        return refuse("a directory");
    }
    if !metadata.is_file() {
        return refuse("a pipe or device");
    }
    if metadata.len() == 0 {
        return refuse("an empty file");
    }
    File::open(path).map_err(|e| SimError::io(path, e))
}

/// Reads a whole text file of at most `limit` bytes.
pub(crate) fn read_small(path: &Path, limit: u64) -> Result<Vec<u8>> {
    use std::io::Read;
    let mut bytes = Vec::new();
    // One byte more than allowed tells a file of exactly the limit from a longer one.
    open_regular(path)?
        .take(limit + 1)
        .read_to_end(&mut bytes)
        .map_err(|e| SimError::io(path, e))?;
    if bytes.len() as u64 > limit {
        return Err(SimError::file(
            path,
            "file",
            format_args!("at most {limit} bytes"),
            "more",
        ));
    }
    Ok(bytes)
}

/// A name or message from a file on one line of bounded length.
pub(crate) fn shown(text: &str) -> String {
    const LONGEST: usize = 160;
    let mut line = String::new();
    for c in text.chars() {
        if line.len() >= LONGEST {
            line.push('…');
            break;
        }
        if c.is_control() {
            let _ = write!(line, "{}", c.escape_default());
        } else {
            line.push(c);
        }
    }
    line
}

/// The number of a layer and the rest of a tensor's name: `layers.3.norm.weight` after `layers.`. The
/// number is written as we write it, without a sign or a zero before it.
pub(crate) fn in_layer<'a>(name: &'a str, prefix: &str) -> Option<(usize, &'a str)> {
    let (number, rest) = name.strip_prefix(prefix)?.split_once('.')?;
    let plain = number.bytes().all(|b| b.is_ascii_digit());
    let plain = plain && (number == "0" || !number.starts_with('0'));
    Some((number.parse().ok().filter(|_| plain)?, rest))
}

#[cfg(test)]
mod tests {
    use super::in_layer;

    #[test]
    fn a_layer_has_one_name() {
        for (name, found) in [
            ("layers.0.norm.weight", Some((0, "norm.weight"))),
            ("layers.17.ssm.D", Some((17, "ssm.D"))),
            ("layers.00.ssm.D", None),
            ("layers.+1.ssm.D", None),
            ("layers..ssm.D", None),
            ("layers.1", None),
            ("layers.99999999999999999999.ssm.D", None),
            ("backbone.layers.1.ssm.D", None),
        ] {
            assert_eq!(in_layer(name, "layers."), found, "{name}");
        }
    }
}
