//! The tokenizer: text to ids, every token of it and nothing else.

use crate::output::note;
use scalescope_sim::error::{Result, SimError};
use scalescope_sim::sample;
use std::cell::Cell;
use std::fs;
use std::panic::{self, AssertUnwindSafe};
use std::path::Path;
use std::sync::Once;
use tokenizers::{ModelWrapper, Tokenizer};

/// The built-in model's.
pub fn built_in() -> Result<Tokenizer> {
    Tokenizer::from_bytes(sample::tokenizer_json())
        .map_err(|e| SimError::value("built-in tokenizer", "a tokenizer", one_line(&e)))
}

/// A tokenizer.json.
///
/// What its last user left in it that is no part of the tokenizer (truncation, padding, dropout) is
/// switched off, and said on stderr.
///
/// The `tokenizers` crate panics on some inconsistent files; such a panic is an error of the file too.
pub fn read(path: &Path) -> Result<Tokenizer> {
    let bytes = fs::read(path).map_err(|e| SimError::io(path, e))?;
    let (tokenizer, left) = parse(&bytes).map_err(|found| {
        SimError::file(path, "tokenizer", "a Hugging Face tokenizer.json", found)
    })?;
    for state in left {
        note(path.display(), format_args!("{state}: switched off"));
    }
    Ok(tokenizer)
}

/// The tokenizer of a JSON text, and the state that was left in it.
fn parse(bytes: &[u8]) -> Result<(Tokenizer, Vec<String>), String> {
    let json = scalescope_sim::text::strict_json(bytes)?;
    let read =
        quietly(|| Tokenizer::from_bytes(&json)).ok_or("one whose parts do not fit together")?;
    let mut tokenizer = read.map_err(|e| one_line(&e))?;
    let left = without_state(&mut tokenizer).map_err(|e| one_line(&e))?;
    Ok((tokenizer, left))
}

/// Switches off what makes the ids of a text other than the text's own, and names it.
fn without_state(tokenizer: &mut Tokenizer) -> Result<Vec<String>, tokenizers::Error> {
    let mut left = Vec::new();
    if let Some(found) = tokenizer.get_truncation() {
        left.push(format!("truncation to {} tokens", found.max_length));
        tokenizer.with_truncation(None)?;
    }
    if let Some(found) = tokenizer.get_padding() {
        left.push(format!("padding with {:?}", found.pad_token));
        tokenizer.with_padding(None);
    }
    if let ModelWrapper::BPE(model) = tokenizer.get_model()
        && let Some(dropout) = model.dropout.filter(|p| *p != 0.0)
    {
        let mut model = model.clone();
        left.push(format!("dropout of {dropout} of the merges"));
        model.dropout = None;
        tokenizer.with_model(model);
    }
    Ok(left)
}

/// Refuses a tokenizer that makes tokens which a model does not have. (Tokens that were added to it are none
/// of a plain text's; a model may lack them, and may have more than the tokenizer.)
pub fn check_fits(tokenizer: &Tokenizer, vocabulary: usize) -> Result<()> {
    let highest = tokenizer.get_vocab(false).into_values().max();
    match highest {
        Some(id) if id as usize >= vocabulary => Err(SimError::value(
            "tokenizer",
            format_args!("tokens below {vocabulary}, the model's vocabulary"),
            format_args!("tokens up to {id}"),
        )),
        _ => Ok(()),
    }
}

/// Texts to ids, no special tokens added.
pub fn encode(tokenizer: &Tokenizer, texts: &[impl AsRef<str>]) -> Result<Vec<Vec<u32>>> {
    texts
        .iter()
        .map(|text| {
            let encoding = tokenizer.encode(text.as_ref(), false).map_err(|e| {
                SimError::value("text", "text the tokenizer can encode", one_line(&e))
            })?;
            Ok(encoding.get_ids().to_vec())
        })
        .collect()
}

/// Runs foreign code that may panic; `None` if it did. The panic prints nothing.
fn quietly<T>(work: impl FnOnce() -> T) -> Option<T> {
    thread_local! { static QUIET: Cell<bool> = const { Cell::new(false) } }
    static HOOK: Once = Once::new();
    HOOK.call_once(|| {
        let before = panic::take_hook();
        panic::set_hook(Box::new(move |info| {
            if !QUIET.get() {
                before(info);
            }
        }));
    });
    QUIET.set(true);
    let done = panic::catch_unwind(AssertUnwindSafe(work));
    QUIET.set(false);
    done.ok()
}

fn one_line(error: &tokenizers::Error) -> String {
    error.to_string().replace('\n', " ")
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use serde_json::{Value, json};
    use std::sync::LazyLock;

    static PLAIN: LazyLock<Value> =
        LazyLock::new(|| serde_json::from_slice(sample::tokenizer_json()).unwrap());

    fn with(key: &str, state: Value) -> (Tokenizer, Vec<String>) {
        let mut json = PLAIN.clone();
        match key {
            "dropout" => json["model"]["dropout"] = state,
            key => json[key] = state,
        }
        parse(&serde_json::to_vec(&json).unwrap()).unwrap()
    }

    fn padding(strategy: Value, multiple: Value) -> Value {
        json!({
            "strategy": strategy, "direction": "Right", "pad_to_multiple_of": multiple, "pad_id": 0,
            "pad_type_id": 0, "pad_token": "<|endoftext|>",
        })
    }

    /// Every state that a file can have been left in: it is named, and text has the same ids and the same
    /// ends of tokens as without it.
    #[test]
    fn state_left_in_a_file_changes_no_token() {
        let truncation = |direction: &str, length: usize| json!({ "direction": direction, "max_length": length, "strategy": "LongestFirst", "stride": 0 });
        let plain = built_in().unwrap();
        let states = [
            (
                "truncation",
                truncation("Right", 3),
                "truncation to 3 tokens",
            ),
            (
                "truncation",
                truncation("Left", 1),
                "truncation to 1 tokens",
            ),
            (
                "padding",
                padding(json!({ "Fixed": 64 }), Value::Null),
                "padding with",
            ),
            (
                "padding",
                padding(json!("BatchLongest"), json!(8)),
                "padding with",
            ),
            ("dropout", json!(0.5), "dropout of 0.5"),
        ]
        .map(|(key, state, said)| {
            let (tokenizer, left) = with(key, state);
            assert!(left.len() == 1 && left[0].starts_with(said), "{left:?}");
            tokenizer
        });
        let (clean, left) = parse(sample::tokenizer_json()).unwrap();
        assert!(left.is_empty());
        let states: Vec<&Tokenizer> = states.iter().chain([&clean]).collect();
        proptest!(ProptestConfig::with_cases(64), |(text in "[ -~é\n]{0,60}")| {
            let want = plain.encode(text.as_str(), false).unwrap();
            for tokenizer in &states {
                let got = tokenizer.encode(text.as_str(), false).unwrap();
                prop_assert_eq!(got.get_ids(), want.get_ids());
                prop_assert_eq!(got.get_offsets(), want.get_offsets());
            }
        });
    }
}
