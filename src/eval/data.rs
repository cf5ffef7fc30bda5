//! The data file: JSON lines with a `text`. What cannot be used is counted and named.

use super::task::{Unit, UnitMaker};
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

    /// Whether so many lines are unusable that the result would describe another data set.
    pub fn too_bad(&self) -> bool {
        self.bad.len() as f64 > TOLERATED * self.lines as f64
    }
}

/// The text of a line.
fn text_of(line: &[u8]) -> Result<String, String> {
    #[derive(Deserialize)]
    struct Line {
        text: String,
    }
    let line = std::str::from_utf8(line).map_err(|e| format!("not UTF-8: {e}"))?;
    let Line { text } = serde_json::from_str(line)
        .map_err(|e| format!("not a JSON object with a string `text`: {e}"))?;
    if text.trim().is_empty() {
        return Err("an empty text".into());
    }
    Ok(text)
}

#[cfg(test)]
mod tests {
    use super::super::task::{Encode, Encoded, Task};
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
