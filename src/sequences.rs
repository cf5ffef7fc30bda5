//! From texts and token files to sequences of token ids.

use crate::cli::{InputArgs, TextSource};
use crate::input::Subject;
use crate::output::note;
use crate::texts::{Form, Texts};
use crate::tokenizer::encode;
use ndarray::Array2;
use scalescope_golden::npz::read_npy;
use scalescope_sim::calibrate::CalibrationOptions;
use scalescope_sim::datapath::check_tokens;
use scalescope_sim::error::{Result, SimError};
use scalescope_sim::sample;
use std::fmt::Display;
use std::fs;
use std::io::Read;
use std::path::Path;
use tokenizers::Tokenizer;

/// Tokens of each passage of the built-in text that a command takes unless it is told otherwise.
pub const SAMPLE_LENGTHS: [(&str, usize); 9] = [
    ("report", 512),
    ("attribute", 512),
    ("recommend", 128),
    ("propagate", 256),
    ("equiv", 128),
    ("lineage", 512),
    ("headroom", 512),
    ("sweep", 512),
    ("export", 16),
];

impl Subject {
    /// The sequences an input names, or the built-in text as `command` takes it.
    pub fn sequences_for(&self, command: &str, input: &InputArgs) -> Result<Vec<Vec<u32>>> {
        let length = SAMPLE_LENGTHS.iter().find(|(name, _)| *name == command);
        let (_, length) = length.expect("a command of the table");
        self.sequences_or_sample(input, *length)
    }

    /// The sequences an input names, or the first `length` tokens of each passage of the built-in
    /// text.
    pub fn sequences_or_sample(&self, input: &InputArgs, length: usize) -> Result<Vec<Vec<u32>>> {
        if let Some(sequences) = self.sequences(input)? {
            return Ok(sequences);
        }
        let mut sequences = encode(&self.tokenizer()?, &sample::texts())?;
        if let Some(limit) = input.limit {
            sequences.truncate(limit.get());
        }
        let length = input.length.map_or(length, |asked| asked.get());
        for sequence in &mut sequences {
            sequence.truncate(length);
        }
        Ok(sequences)
    }

    /// The sequences an input names: text through the tokenizer, or ids as they are. `None` if the
    /// input names nothing.
    pub fn sequences(&self, input: &InputArgs) -> Result<Option<Vec<Vec<u32>>>> {
        let vocab = self.model.config()?.vocab_size;
        let Some((mut sequences, origin, one_text)) =
            read_source(&input.source, || self.tokenizer())?
        else {
            return Ok(None);
        };
        if let Some(limit) = input.limit {
            if let Some(length) = input.length.filter(|_| one_text) {
                sequences = windows(&sequences, length.get(), limit.get());
            }
            if sequences.len() < limit.get() {
                tell_fewer(&origin, "sequences", sequences.len(), limit.get());
            }
            sequences.truncate(limit.get());
        }
        if sequences.is_empty() {
            return Err(SimError::value(origin, "at least one sequence", "none"));
        }
        for (i, sequence) in sequences.iter_mut().enumerate() {
            if let Some(length) = input.length {
                sequence.truncate(length.get());
            }
            check_tokens(sequence, vocab).map_err(|e| match e {
                SimError::Value {
                    item,
                    expected,
                    found,
                } => SimError::value(
                    format_args!("{origin}: sequence {i}: {item}"),
                    expected,
                    found,
                ),
                other => other,
            })?;
        }
        Ok(Some(sequences))
    }
}

/// Sequences, what they are called, and whether they are one plain text.
type Sequences = (Vec<Vec<u32>>, String, bool);

fn read_source(
    source: &TextSource,
    tokenizer: impl Fn() -> Result<Tokenizer>,
) -> Result<Option<Sequences>> {
    if let Some(text) = &source.text {
        return Ok(Some((
            encode(&tokenizer()?, &[text])?,
            "--text".into(),
            false,
        )));
    }
    if let Some(path) = &source.tokens {
        return Ok(Some((
            read_token_file(path)?,
            path.display().to_string(),
            false,
        )));
    }
    if let Some(path) = &source.file {
        let (sequences, one_text) = read_file(path, tokenizer)?;
        return Ok(Some((sequences, path.display().to_string(), one_text)));
    }
    Ok(None)
}

/// Calibration samples of a file: `.npy` token ids, texts, or one text cut into as many samples of
/// `length` tokens as are asked for. Says on stderr where there are fewer than asked.
pub fn calibration_sequences(
    path: &Path,
    options: &CalibrationOptions,
    tokenizer: impl Fn() -> Result<Tokenizer>,
) -> Result<Vec<Vec<u32>>> {
    let (mut sequences, one_text) = read_file(path, tokenizer)?;
    if one_text {
        sequences = windows(&sequences, options.length, options.samples);
    }
    let (found, asked) = (sequences.len(), options.samples);
    if found < asked {
        tell_fewer(path.display(), "samples", found, asked);
    }
    let longest = sequences.iter().map(Vec::len).max().unwrap_or(0);
    if longest < options.length {
        tell_fewer(
            path.display(),
            "tokens in its longest sample",
            longest,
            options.length,
        );
    }
    Ok(sequences)
}

/// A text in parts of `length` tokens, of which the last may be shorter; the first `count` of them.
fn windows(text: &[Vec<u32>], length: usize, count: usize) -> Vec<Vec<u32>> {
    let parts = text.iter().flat_map(|ids| ids.chunks(length.max(1)));
    parts.take(count).map(<[u32]>::to_vec).collect()
}

fn tell_fewer(file: impl Display, what: &str, found: usize, asked: usize) {
    note(
        file,
        format_args!("{found} {what}, fewer than the {asked} asked for"),
    );
}

/// The sequences of a file of any kind, and whether they are one plain text.
fn read_file(
    path: &Path,
    tokenizer: impl Fn() -> Result<Tokenizer>,
) -> Result<(Vec<Vec<u32>>, bool)> {
    if is_npy(path)? {
        return Ok((read_token_file(path)?, false));
    }
    let texts = Texts::read(path)?;
    let one_text = texts.form == Form::Plain;
    Ok((encode(&tokenizer()?, &texts.usable(path)?)?, one_text))
}

fn is_npy(path: &Path) -> Result<bool> {
    let io = |e| SimError::io(path, e);
    let mut start = Vec::new();
    let file = fs::File::open(path).map_err(io)?;
    file.take(6).read_to_end(&mut start).map_err(io)?;
    Ok(start == b"\x93NUMPY")
}

/// Token ids of an `.npy` of one dimension (a sequence) or two (`[B, L]`), any integer type.
pub fn read_token_file(path: &Path) -> Result<Vec<Vec<u32>>> {
    let array = read_npy(path)?;
    let bad = |found: String| {
        SimError::file(
            path,
            "array",
            "token ids, integers of shape [L] or [B, L]",
            found,
        )
    };
    let ids = array.to_i64().ok_or_else(|| bad(array.describe()))?;
    let width = match ids.shape() {
        [l] | [_, l] => *l,
        _ => return Err(bad(array.describe())),
    };
    let ids: Vec<u32> = (ids.iter().enumerate())
        .map(|(i, id)| {
            u32::try_from(*id)
                .map_err(|_| SimError::file(path, format_args!("element {i}"), "a token id", id))
        })
        .collect::<Result<_>>()?;
    match width {
        0 => Err(bad(array.describe())),
        _ => Ok(ids.chunks_exact(width).map(<[u32]>::to_vec).collect()),
    }
}

/// The array `[B, L]` of sequences of one length; `None` if lengths differ.
pub fn rectangular(sequences: &[Vec<u32>]) -> Option<Array2<u32>> {
    let length = sequences.first()?.len();
    if sequences.iter().any(|s| s.len() != length) {
        return None;
    }
    let flat = sequences.iter().flatten().copied().collect();
    Array2::from_shape_vec((sequences.len(), length), flat).ok()
}
