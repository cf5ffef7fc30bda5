//! What can go wrong with input, in one line: where, which item, what was expected, what was found.

use std::fmt::Display;
use std::path::{Path, PathBuf};

/// Result of anything that reads input.
pub type Result<T, E = SimError> = std::result::Result<T, E>;

/// An input that cannot be used.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum SimError {
    /// The operating system refused an operation on a file.
    #[error("{}: {}", path.display(), in_words(source))]
    Io {
        /// The file.
        path: PathBuf,
        /// The system's own words.
        #[source]
        source: std::io::Error,
    },
    /// An item of a file is not what the format asks for.
    #[error("{}: {item}: expected {expected}, found {found}", path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// The tensor, key or line.
        item: String,
        /// What the format asks for.
        expected: String,
        /// What the file has.
        found: String,
    },
    /// A value that came from no file (an argument, a field of a table) is out of its range.
    #[error("{item}: expected {expected}, found {found}")]
    Value {
        /// The argument, tensor or field.
        item: String,
        /// What is allowed.
        expected: String,
        /// What was given.
        found: String,
    },
    /// A device refused or failed; nothing it computed was used.
    #[error("{device}: {what}: {problem}")]
    Device {
        /// The device: its number and name.
        device: String,
        /// What was asked of it.
        what: String,
        /// What it answered.
        problem: String,
    },
    /// The user stopped the work; nothing was left half-written.
    #[error("interrupted")]
    Interrupted,
}

/// What the system says, without its number.
fn in_words(error: &std::io::Error) -> String {
    let words = error.to_string();
    match words.split_once(" (os error") {
        Some((words, _)) => words.to_owned(),
        None => words,
    }
}

impl SimError {
    /// A name that is none of those known; says which one it is like.
    pub fn unknown(item: impl Display, known: &[&str], name: &str) -> Self {
        let expected = format!("one of {}", known.join(", "));
        Self::value(item, expected, Self::like(known, name))
    }

    /// A name that is none of those known, and which one it is like.
    pub fn like(known: &[&str], name: &str) -> String {
        let changes = |known: &str| strsim::levenshtein(known, name);
        let likest = known.iter().min_by_key(|known| changes(known));
        // Names of one or two letters are all alike.
        let most = 2.min(name.chars().count().saturating_sub(1));
        let like = likest.filter(|known| changes(known) <= most);
        match (name.is_empty(), like) {
            (true, _) => "an empty name".to_owned(),
            (_, Some(like)) => format!("{name} (did you mean {like}?)"),
            (_, None) => name.to_owned(),
        }
    }

    /// A value out of its range, not tied to a file.
    pub fn value(item: impl Display, expected: impl Display, found: impl Display) -> Self {
        Self::Value {
            item: item.to_string(),
            expected: expected.to_string(),
            found: found.to_string(),
        }
    }

    /// An item of a file that is not what the format asks for.
    pub fn file(
        path: impl AsRef<Path>,
        item: impl Display,
        expected: impl Display,
        found: impl Display,
    ) -> Self {
        Self::File {
            path: path.as_ref().to_path_buf(),
            item: item.to_string(),
            expected: expected.to_string(),
            found: found.to_string(),
        }
    }

    /// An operating-system error on `path`.
    pub fn io(path: impl AsRef<Path>, source: std::io::Error) -> Self {
        Self::Io {
            path: path.as_ref().to_path_buf(),
            source,
        }
    }

    /// Names the part of the work that a [`SimError::Value`] is of: a block, a step, a row; other errors
    /// pass through.
    #[must_use]
    pub fn within(self, part: impl Display) -> Self {
        match self {
            Self::Value {
                item,
                expected,
                found,
            } => Self::value(format_args!("{part}: {item}"), expected, found),
            other => other,
        }
    }

    /// Names the file a [`SimError::Value`] came from; other errors pass through.
    #[must_use]
    pub fn in_file(self, path: impl AsRef<Path>) -> Self {
        match self {
            Self::Value {
                item,
                expected,
                found,
            } => Self::File {
                path: path.as_ref().to_path_buf(),
                item,
                expected,
                found,
            },
            other => other,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_that_is_nearly_known_is_recognised() {
        let line = |name| SimError::unknown("mode", &["2-4", "original"], name).to_string();
        assert_eq!(
            line("2-5"),
            "mode: expected one of 2-4, original, found 2-5 (did you mean 2-4?)"
        );
        assert!(line("orginl").ends_with("found orginl (did you mean original?)"));
        assert!(line("9").ends_with("found 9"));
        assert!(line("seven").ends_with("found seven"));
        assert!(line("").ends_with("found an empty name"));
    }

    #[test]
    fn what_the_system_says_has_no_number() {
        let missing = std::fs::read("/no/such/file").unwrap_err();
        assert!(missing.to_string().contains("os error"));
        let line = SimError::io("a.npz", missing).to_string();
        assert!(
            line.starts_with("a.npz: ") && !line.contains("os error"),
            "{line}"
        );
    }
}
