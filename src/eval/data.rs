//! The data file: JSON lines with a `text`. What cannot be used is counted and named.

use super::task::{Task, Unit, UnitMaker};
use rayon::prelude::*;
use serde::{Deserialize, Serialize};

/// Unusable lines that a run puts up with, as a share of all lines.
pub const TOLERATED: f64 = 0.01;

/// A line that cannot be used, and why.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct BadLine {
    /// Number of the line, from 0, as in sample files.
    pub id: usize,
    /// What is wrong with it.
    pub reason: String,
}

/// What a data file holds for a task.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Dataset {
    /// Lines looked at; blank ones do not count.
    pub lines: usize,
    /// What to score, by line and window.
    pub units: Vec<Unit>,
    /// Lines that cannot be used.
    pub bad: Vec<BadLine>,
}

impl Dataset {
    /// Reads the first `limit` lines that are not blank.
    pub fn read(bytes: &[u8], limit: Option<usize>, maker: &UnitMaker) -> Self {
        let lines: Vec<(usize, &[u8])> = bytes
            .split(|b| *b == b'\n')
            .enumerate()
            .filter(|(_, line)| !line.trim_ascii().is_empty())
            .take(limit.unwrap_or(usize::MAX))
            .collect();
        if let Task::Chunks { length } = maker.task {
            return Self::joined(&lines, length, maker);
        }
        let read: Vec<_> = lines
            .par_iter()
            .map(|(id, line)| (*id, text_of(line).and_then(|text| maker.units(*id, &text))))
            .collect();
        let mut data = Self {
            lines: lines.len(),
            ..Self::default()
        };
        for (id, units) in read {
            match units {
                Ok(units) => data.units.extend(units),
                Err(reason) => data.bad.push(BadLine { id, reason }),
            }
        }
        data
    }

    /// All texts as one, with a blank line between two.
    fn joined(lines: &[(usize, &[u8])], length: usize, maker: &UnitMaker) -> Self {
        let mut data = Self {
            lines: lines.len(),
            ..Self::default()
        };
        let mut texts = Vec::new();
        for (id, line) in lines {
            match any_text_of(line) {
                Ok(text) => texts.push(text),
                Err(reason) => data.bad.push(BadLine { id: *id, reason }),
            }
        }
        match maker.chunks(&texts.join("\n\n"), length) {
            Ok(units) => data.units = units,
            // Of the texts together, said of the first.
            Err(reason) => data.bad.push(BadLine {
                id: lines.first().map_or(0, |(id, _)| *id),
                reason: format!("all texts: {reason}"),
            }),
        }
        data
    }

    /// Whether so many lines are unusable that the result would describe another data set.
    pub fn too_bad(&self) -> bool {
        self.bad.len() as f64 > TOLERATED * self.lines as f64
    }
}

/// The text of a line, which has one.
fn text_of(line: &[u8]) -> Result<String, String> {
    let text = any_text_of(line)?;
    match text.trim().is_empty() {
        true => Err("an empty text".into()),
        false => Ok(text),
    }
}

/// The text of a line, which may be empty.
fn any_text_of(line: &[u8]) -> Result<String, String> {
    #[derive(Deserialize)]
    struct Line {
        text: String,
    }
    let line = std::str::from_utf8(line).map_err(|e| format!("not UTF-8: {e}"))?;
    let Line { text } = serde_json::from_str(line)
        .map_err(|e| format!("not a JSON object with a string `text`: {e}"))?;
    Ok(text)
}

#[cfg(test)]
mod tests {
    use super::super::task::{Encode, Encoded};
    use super::*;

    struct Letters;
    impl Encode for Letters {
        fn encode_text(&self, text: &str) -> Result<Encoded, String> {
            Ok(Encoded {
                ids: text.bytes().map(u32::from).collect(),
                ends: (1..=text.len()).collect(),
            })
        }
    }

    #[test]
    fn bad_lines_are_named_and_blank_ones_passed_over() {
        let maker = UnitMaker {
            encoder: &Letters,
            vocab_size: 256,
            start: Some(0),
            task: Task::LastWord { max_length: 9 },
        };
        let file = b"{\"text\": \"a b\"}\r\n\n{\"text\": 3}\n{\"txt\": \"a b\"}\nnonsense\n{\"text\": \" \"}\n\xff\n{\"text\": \"c d\", \"n\": 1}";
        let data = Dataset::read(file, None, &maker);
        assert_eq!(data.lines, 7);
        let ids: Vec<usize> = data.units.iter().map(|u| u.id).collect();
        assert_eq!(ids, [0, 7]);
        let bad: Vec<usize> = data.bad.iter().map(|b| b.id).collect();
        assert_eq!(bad, [2, 3, 4, 5, 6]);
        assert!(data.bad[4].reason.contains("UTF-8"));
        assert!(data.too_bad());
        let first = Dataset::read(file, Some(1), &maker);
        assert_eq!((first.lines, first.units.len()), (1, 1));
        assert!(!first.too_bad());
    }

    #[test]
    fn texts_are_joined_by_blank_lines_empty_ones_too() {
        let maker = UnitMaker {
            encoder: &Letters,
            vocab_size: 256,
            start: None,
            task: Task::Chunks { length: 3 },
        };
        let file = b"{\"text\": \"ab\"}\n{\"text\": \"\"}\n\n{\"text\": \"cd\"}\n{\"txt\": 1}\n";
        let data = Dataset::read(file, None, &maker);
        let tokens: Vec<u32> = data.units.iter().flat_map(|u| u.tokens.clone()).collect();
        // "ab\n\n\n\ncd", of which two letters are left over.
        assert_eq!(tokens, b"ab\n\n\n\n".map(u32::from));
        assert_eq!((data.lines, data.bad.len(), data.bad[0].id), (4, 1, 4));
        let none = Dataset::read(b"{\"text\": \"ab\"}", None, &maker);
        assert!(none.units.is_empty() && none.bad[0].reason.contains("2 tokens"));
    }

    #[test]
    fn one_percent_is_tolerated_and_no_more() {
        let mut data = Dataset {
            lines: 200,
            ..Dataset::default()
        };
        let line = BadLine {
            id: 0,
            reason: String::new(),
        };
        data.bad = vec![line.clone(); 2];
        assert!(!data.too_bad());
        data.bad.push(line);
        assert!(data.too_bad());
    }
}
