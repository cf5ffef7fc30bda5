//! What a data file holds for a task. What cannot be used is counted and named.

use super::task::{Sample, SampleMaker, Task};
use crate::texts::Texts;
use rayon::prelude::*;
use serde::{Deserialize, Serialize};

/// A line that cannot be used, and why.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct BadLine {
    /// Number of the line (or of the item of an array), from 0, as in sample files.
    pub id: usize,
    /// What is wrong with it.
    pub reason: String,
}

/// What a data file holds for a task.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Dataset {
    /// Rows looked at; blank ones do not count.
    pub lines: usize,
    /// Rows with a blank text.
    pub blank: usize,
    /// What to score, by line and window.
    pub samples: Vec<Sample>,
    /// Lines that cannot be used.
    pub bad: Vec<BadLine>,
}

impl Dataset {
    /// The samples of texts.
    pub fn new(texts: &Texts, maker: &SampleMaker) -> Self {
        if let Task::Chunks { length } = maker.task {
            return Self::joined(texts, length, maker);
        }
        let read: Vec<_> = (texts.rows.par_iter())
            .map(|row| {
                let text = row.text.as_deref().map_err(Clone::clone);
                (row.id, text.and_then(|text| maker.samples(row.id, text)))
            })
            .collect();
        let mut data = Self {
            lines: texts.rows.len(),
            blank: texts.blank.len(),
            ..Self::default()
        };
        for (id, samples) in read {
            match samples {
                Ok(samples) => data.samples.extend(samples),
                Err(reason) => data.bad.push(BadLine { id, reason }),
            }
        }
        data
    }

    /// All texts as one, blank ones too, with a blank line between two.
    fn joined(texts: &Texts, length: usize, maker: &SampleMaker) -> Self {
        let mut data = Self {
            lines: texts.rows.len() + texts.blank.len(),
            ..Self::default()
        };
        let mut all: Vec<(usize, &str)> = Vec::new();
        for row in &texts.rows {
            match &row.text {
                Ok(text) => all.push((row.id, text)),
                Err(reason) => data.bad.push(BadLine {
                    id: row.id,
                    reason: reason.clone(),
                }),
            }
        }
        all.extend(texts.blank.iter().map(|(id, text)| (*id, text.as_str())));
        all.sort_by_key(|(id, _)| *id);
        let parts: Vec<&str> = all.iter().map(|(_, text)| *text).collect();
        match maker.chunks(&parts.join("\n\n"), length) {
            Ok(samples) => data.samples = samples,
            // Of the texts together, said of the first.
            Err(reason) => data.bad.push(BadLine {
                id: all.first().map_or(0, |(id, _)| *id),
                reason: format!("all texts: {reason}"),
            }),
        }
        data
    }
}

#[cfg(test)]
mod tests {
    use super::super::task::{Encode, Encoded};
    use super::*;
    use std::path::Path;

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
        let maker = SampleMaker {
            encoder: &Letters,
            vocab_size: 256,
            start: Some(0),
            task: Task::LastWord { max_length: 9 },
        };
        let file = b"{\"text\": \"a b\"}\r\n\n{\"text\": 3}\n{\"txt\": \"a b\"}\nnonsense\n{\"text\": \" \"}\n\xff\n{\"text\": \"c d\", \"n\": 1}";
        let mut texts = Texts::parse(Path::new("a.jsonl"), file).unwrap();
        let data = Dataset::new(&texts, &maker);
        assert_eq!((data.lines, data.blank), (6, 1));
        let ids: Vec<usize> = data.samples.iter().map(|u| u.id).collect();
        assert_eq!(ids, [0, 7]);
        let bad: Vec<usize> = data.bad.iter().map(|b| b.id).collect();
        assert_eq!(bad, [2, 3, 4, 6]);
        assert!(data.bad[3].reason.contains("UTF-8"));
        texts.truncate(1);
        let first = Dataset::new(&texts, &maker);
        assert_eq!((first.lines, first.blank, first.samples.len()), (1, 0, 1));
    }

    #[test]
    fn texts_are_joined_by_blank_lines_empty_ones_too() {
        let maker = SampleMaker {
            encoder: &Letters,
            vocab_size: 256,
            start: None,
            task: Task::Chunks { length: 3 },
        };
        let file = b"{\"text\": \"ab\"}\n{\"text\": \"\"}\n\n{\"text\": \"cd\"}\n{\"txt\": 1}\n";
        let of = |bytes: &[u8]| Texts::parse(Path::new("t.jsonl"), bytes).unwrap();
        let data = Dataset::new(&of(file), &maker);
        let tokens: Vec<u32> = data.samples.iter().flat_map(|u| u.tokens.clone()).collect();
        // "ab\n\n\n\ncd", of which two letters are left over.
        assert_eq!(tokens, b"ab\n\n\n\n".map(u32::from));
        assert_eq!((data.lines, data.bad.len(), data.bad[0].id), (4, 1, 4));
        let none = Dataset::new(&of(b"{\"text\": \"ab\"}"), &maker);
        assert!(none.samples.is_empty() && none.bad[0].reason.contains("2 tokens"));
    }
}
