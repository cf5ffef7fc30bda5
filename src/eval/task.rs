//! From a text to the tokens that are scored, as lm-eval's tasks do it.

use serde::{Deserialize, Serialize};
use tokenizers::Tokenizer;

/// What is asked of a model about a text.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "task", rename_all = "kebab-case")]
pub enum Task {
    /// The last word with the space before it, given everything before (lm-eval `lambada_openai`).
    LastWord {
        /// Longest input; what lies further left is cut off.
        max_length: usize,
    },
    /// Every token, in windows (lm-eval's rolling log-likelihood when `stride` equals `window`).
    Perplexity {
        /// Longest input.
        window: usize,
        /// Tokens scored by each window after the first.
        stride: usize,
    },
    /// All texts as one, in pieces of one length, every token but a piece's first (Quamba's tables).
    Chunks {
        /// Tokens of a piece; what is left over at the end is dropped.
        length: usize,
    },
}

impl Task {
    /// Whether results are means over tokens rather than over passages.
    pub fn per_token(self) -> bool {
        !matches!(self, Task::LastWord { .. })
    }
}

/// One thing to score: a run of the model over `tokens`, whose last `targets` are predicted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Sample {
    /// Line of the data file, from 0.
    pub id: usize,
    /// Window of that line's text, from 0.
    pub part: usize,
    /// Context and targets.
    pub tokens: Vec<u32>,
    /// How many of the last tokens are targets, at least 1, fewer than all.
    pub targets: usize,
    /// Bytes of text the targets stand for.
    pub bytes: usize,
}

impl Sample {
    /// What the model reads: everything but the last target.
    pub fn input(&self) -> &[u32] {
        &self.tokens[..self.tokens.len() - 1]
    }

    /// The tokens to be predicted.
    pub fn target(&self) -> &[u32] {
        &self.tokens[self.tokens.len() - self.targets..]
    }
}

/// Tokens of a text and where each ends, in bytes.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Encoded {
    /// Ids.
    pub ids: Vec<u32>,
    /// End of each token in the text.
    pub ends: Vec<usize>,
}

/// Something that turns text into tokens.
pub trait Encode: Sync {
    /// Tokens of a text, no special ones added; an error in one line.
    fn encode_text(&self, text: &str) -> Result<Encoded, String>;
}

impl Encode for Tokenizer {
    fn encode_text(&self, text: &str) -> Result<Encoded, String> {
        let encoding = self
            .encode(text, false)
            .map_err(|e| e.to_string().replace('\n', " "))?;
        Ok(Encoded {
            ids: encoding.get_ids().to_vec(),
            ends: encoding.get_offsets().iter().map(|(_, end)| *end).collect(),
        })
    }
}

/// Context and target of a passage: the last word with its space, and the blanks before it, which
/// lm-eval moves from the end of the context to the target. A passage of one word has no context.
pub fn split_last_word(text: &str) -> (&str, String) {
    match text.rfind(' ') {
        None => ("", format!(" {text}")),
        Some(space) => {
            let context = trim_end(&text[..space]);
            (context, text[context.len()..].to_string())
        }
    }
}

/// Python's `str.rstrip`, which also takes the separators U+001C to U+001F for blanks.
fn trim_end(text: &str) -> &str {
    text.trim_end_matches(|c: char| c.is_whitespace() || ('\x1c'..='\x1f').contains(&c))
}

/// Makes samples; `start` is the token that stands before a text (needed where there is no context).
pub struct SampleMaker<'a> {
    /// The tokenizer.
    pub encoder: &'a dyn Encode,
    /// Ids at and above this do not exist in the model.
    pub vocab_size: usize,
    /// Beginning- or end-of-text token.
    pub start: Option<u32>,
    /// What is asked.
    pub task: Task,
}

impl SampleMaker<'_> {
    /// The samples of line `id`, or why it has none.
    pub fn samples(&self, id: usize, text: &str) -> Result<Vec<Sample>, String> {
        match self.task {
            Task::LastWord { max_length } => Ok(vec![self.last_word(id, text, max_length)?]),
            Task::Perplexity { window, stride } => self.windows(id, text, window, stride),
            Task::Chunks { length } => self.chunks(text, length),
        }
    }

    /// The pieces of a text that is all texts, numbered by `id`.
    pub fn chunks(&self, text: &str, length: usize) -> Result<Vec<Sample>, String> {
        let Encoded { ids, ends } = self.encode(text)?;
        let piece = |(i, tokens): (usize, &[u32])| {
            let ends = &ends[i * length..][..length];
            Sample {
                id: i,
                part: 0,
                tokens: tokens.to_vec(),
                targets: length - 1,
                bytes: ends[length - 1].saturating_sub(ends[0]),
            }
        };
        let pieces: Vec<Sample> = ids.chunks_exact(length).enumerate().map(piece).collect();
        match pieces.is_empty() {
            true => Err(format!(
                "{} tokens, fewer than one piece of {length}",
                ids.len()
            )),
            false => Ok(pieces),
        }
    }

    fn encode(&self, text: &str) -> Result<Encoded, String> {
        let encoded = self.encoder.encode_text(text)?;
        match encoded.ids.iter().find(|t| **t as usize >= self.vocab_size) {
            None => Ok(encoded),
            Some(token) => Err(format!(
                "token {token} is not in the model's vocabulary of {}",
                self.vocab_size
            )),
        }
    }

    fn start(&self) -> Result<u32, String> {
        self.start
            .ok_or_else(|| "nothing before the target and no start token in config.json".into())
    }

    fn last_word(&self, id: usize, text: &str, max_length: usize) -> Result<Sample, String> {
        let (context, target) = split_last_word(text);
        let bytes = target.len();
        let whole = self.encode(&format!("{context}{target}"))?.ids;
        let mut tokens = self.encode(context)?.ids;
        let target = whole.get(tokens.len()..).unwrap_or_default();
        let targets = target.len();
        if targets == 0 {
            return Err("the last word has no tokens of its own".into());
        }
        if targets > max_length {
            return Err(format!(
                "a last word of {targets} tokens, more than {max_length}"
            ));
        }
        if tokens.is_empty() {
            tokens.push(self.start()?);
        }
        tokens.extend_from_slice(target);
        // lm-eval: the last max_length + 1 tokens, of which the last is not read.
        tokens.drain(..tokens.len().saturating_sub(max_length + 1));
        Ok(Sample {
            id,
            part: 0,
            tokens,
            targets,
            bytes,
        })
    }

    fn windows(
        &self,
        id: usize,
        text: &str,
        window: usize,
        stride: usize,
    ) -> Result<Vec<Sample>, String> {
        let Encoded { ids, ends } = self.encode(text)?;
        if ids.is_empty() {
            return Err("no tokens".into());
        }
        let mut tokens = vec![self.start()?];
        tokens.extend_from_slice(&ids);
        // Target i is `ids[i]`, which is `tokens[i + 1]`.
        let mut samples: Vec<Sample> = Vec::new();
        let (mut first, mut byte) = (0, 0);
        while first < ids.len() {
            let new = if first == 0 { window } else { stride };
            let end = (first + new).min(ids.len());
            let end_byte = if end == ids.len() {
                text.len()
            } else {
                ends[end - 1].max(byte)
            };
            samples.push(Sample {
                id,
                part: samples.len(),
                tokens: tokens[end.saturating_sub(window)..=end].to_vec(),
                targets: end - first,
                bytes: end_byte - byte,
            });
            (first, byte) = (end, end_byte);
        }
        Ok(samples)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// One token a character, its code; digits are no token at all.
    struct Letters;
    impl Encode for Letters {
        fn encode_text(&self, text: &str) -> Result<Encoded, String> {
            let kept = text.char_indices().filter(|(_, c)| !c.is_ascii_digit());
            let (ids, ends) = kept.map(|(i, c)| (c as u32, i + c.len_utf8())).unzip();
            Ok(Encoded { ids, ends })
        }
    }

    fn maker(task: Task) -> SampleMaker<'static> {
        SampleMaker {
            encoder: &Letters,
            vocab_size: 128,
            start: Some(1),
            task,
        }
    }

    fn last_word(max_length: usize) -> SampleMaker<'static> {
        maker(Task::LastWord { max_length })
    }

    fn ids(text: &str) -> Vec<u32> {
        text.chars().map(|c| c as u32).collect()
    }

    #[test]
    fn the_last_word_takes_the_blanks_before_it() {
        for (text, context, target) in [
            ("the cat sat", "the cat", " sat"),
            ("the cat  sat", "the cat", "  sat"),
            ("he said.\n \"No", "he said.", "\n \"No"),
            ("line\nbreak", "", " line\nbreak"),
            ("cat", "", " cat"),
            ("cat ", "cat", " "),
            (" cat", "", " cat"),
            ("a\u{1f} b", "a", "\u{1f} b"),
            ("", "", " "),
        ] {
            assert_eq!(
                split_last_word(text),
                (context, target.to_string()),
                "{text:?}"
            );
        }
    }

    #[test]
    fn a_passage_becomes_context_and_target() {
        let sample = &last_word(100).samples(7, "ab cd").unwrap()[0];
        assert_eq!((sample.id, sample.targets, sample.bytes), (7, 3, 3));
        assert_eq!(sample.input(), ids("ab c"));
        assert_eq!(sample.target(), ids(" cd"));
    }

    #[test]
    fn one_word_is_predicted_from_the_start_token() {
        let sample = &last_word(100).samples(0, "cd").unwrap()[0];
        assert_eq!(sample.tokens, [&[1], &ids(" cd")[..]].concat());
        let without = SampleMaker {
            start: None,
            ..last_word(100)
        };
        assert!(
            without
                .samples(0, "cd")
                .unwrap_err()
                .contains("no start token")
        );
    }

    #[test]
    fn long_passages_lose_their_left_end() {
        let sample = &last_word(4).samples(0, "abcdefgh xy").unwrap()[0];
        assert_eq!(sample.tokens, ids("gh xy"));
        assert_eq!(sample.input().len(), 4);
        assert!(
            last_word(2)
                .samples(0, "ab xy")
                .unwrap_err()
                .contains("3 tokens")
        );
    }

    #[test]
    fn what_cannot_be_scored_says_why() {
        let maker = last_word(10);
        assert!(maker.samples(0, "ab é").unwrap_err().contains("vocabulary"));
        let digits = SampleMaker {
            encoder: &NoBlank,
            ..last_word(10)
        };
        assert!(
            digits
                .samples(0, "ab 12")
                .unwrap_err()
                .contains("no tokens of its own")
        );
    }

    /// As [`Letters`], and blanks are no tokens either.
    struct NoBlank;
    impl Encode for NoBlank {
        fn encode_text(&self, text: &str) -> Result<Encoded, String> {
            Letters.encode_text(&text.replace(' ', ""))
        }
    }

    #[test]
    fn all_texts_as_one_are_cut_into_pieces_whose_first_tokens_are_given() {
        let maker = maker(Task::Chunks { length: 4 });
        let samples = maker.samples(9, "abcdefghij").unwrap();
        assert_eq!(samples.len(), 2);
        assert_eq!(
            (samples[1].id, samples[1].part, samples[1].bytes),
            (1, 0, 3)
        );
        assert_eq!(samples[0].tokens, ids("abcd"));
        assert_eq!(
            (samples[1].input(), samples[1].target()),
            (&ids("efg")[..], &ids("fgh")[..])
        );
        let short = maker.samples(0, "abc").unwrap_err();
        assert!(
            short.contains("3 tokens") && short.contains("one piece of 4"),
            "{short}"
        );
    }

    proptest! {
        /// Every token is a target exactly once, every byte counted once, no input too long, and
        /// the context of a target is what stands before it.
        #[test]
        fn windows_cover_the_text_once(text in "[a-zé]{1,60}", window in 1usize..20, part in 1usize..20) {
            let stride = part.min(window);
            let maker = SampleMaker { vocab_size: 256, ..maker(Task::Perplexity { window, stride }) };
            let samples = maker.samples(3, &text).unwrap();
            let targets: Vec<u32> = samples.iter().flat_map(|u| u.target().to_vec()).collect();
            prop_assert_eq!(&targets, &ids(&text));
            prop_assert_eq!(samples.iter().map(|u| u.bytes).sum::<usize>(), text.len());
            let stream = [&[1], &ids(&text)[..]].concat();
            let mut end = 1;
            for (i, sample) in samples.iter().enumerate() {
                end += sample.targets;
                prop_assert_eq!(sample.part, i);
                prop_assert!(sample.input().len() <= window);
                prop_assert!(sample.input().len() >= sample.targets);
                prop_assert_eq!(&sample.tokens[..], &stream[end - sample.tokens.len()..end]);
                if i > 0 { prop_assert!(sample.targets <= stride); }
            }
        }
    }
}
