//! Text from files that somebody else wrote: one way everywhere for its encoding and for the JSON that
//! Python writes.
//!
//! Text is UTF-8, or UTF-16 in either byte order, with or without a byte-order mark; the mark is no part
//! of the text. JSON may have `NaN`, `Infinity` and `-Infinity`, as Python's `json` writes them, and
//! control characters in strings.

use crate::error::{Result, SimError};
use serde::de::DeserializeOwned;
use std::borrow::Cow;
use std::path::Path;

/// The byte-order mark.
pub const MARK: char = '\u{feff}';

/// The text of a file.
///
/// # Errors
///
/// A file that cannot be read, or bytes that are neither UTF-8 nor UTF-16, by line and byte.
pub fn read(path: &Path) -> Result<String> {
    let bytes = std::fs::read(path).map_err(|e| SimError::io(path, e))?;
    decode(path, bytes)
}

/// The text of a file's bytes.
///
/// # Errors
///
/// As [`read`].
pub fn decode(path: &Path, bytes: Vec<u8>) -> Result<String> {
    let bad = |found| SimError::file(path, "text", "UTF-8 or UTF-16", found);
    let bytes = to_utf8(&bytes).map_err(bad)?.into_owned();
    String::from_utf8(bytes).map_err(|e| {
        let at = e.utf8_error().valid_up_to();
        let good = &e.as_bytes()[..at];
        let line = 1 + good.iter().filter(|b| **b == b'\n').count();
        let byte = e.as_bytes()[at];
        bad(format!(
            "the byte {byte:02x} at {at}, line {line}, which is neither"
        ))
    })
}

/// The bytes as UTF-8 without a mark, if they were UTF-16 or have a mark. Whether they are good UTF-8 is
/// not looked at.
///
/// # Errors
///
/// What was found, where UTF-16 breaks off or has half a pair, and UTF-32.
pub fn to_utf8(bytes: &[u8]) -> Result<Cow<'_, [u8]>, String> {
    match bytes {
        [0xff, 0xfe, 0, 0, ..] | [0, 0, 0xfe, 0xff, ..] => Err("UTF-32".into()),
        [0xef, 0xbb, 0xbf, rest @ ..] => Ok(Cow::Borrowed(rest)),
        [0xff, 0xfe, rest @ ..] => from_utf16(rest, u16::from_le_bytes),
        [0xfe, 0xff, rest @ ..] => from_utf16(rest, u16::from_be_bytes),
        // Text does not begin with a NUL, nor has one after its first letter.
        [0, 0, ..] => Ok(Cow::Borrowed(bytes)),
        [_, 0, ..] => from_utf16(bytes, u16::from_le_bytes),
        [0, _, ..]
            if bytes.len().is_multiple_of(2)
                && bytes.iter().skip(2).step_by(2).all(|b| *b == 0) =>
        {
            from_utf16(bytes, u16::from_be_bytes)
        }
        _ => Ok(Cow::Borrowed(bytes)),
    }
}

fn from_utf16(bytes: &[u8], unit: fn([u8; 2]) -> u16) -> Result<Cow<'_, [u8]>, String> {
    let pairs = bytes.chunks_exact(2);
    if !pairs.remainder().is_empty() {
        return Err(format!("UTF-16 of {} bytes, an odd number", bytes.len()));
    }
    let units = pairs.map(|pair| unit([pair[0], pair[1]]));
    let text: std::result::Result<String, _> = char::decode_utf16(units).collect();
    match text {
        Ok(text) => Ok(Cow::Owned(text.into_bytes())),
        Err(half) => Err(format!(
            "UTF-16 with half a pair, {:04x}",
            half.unpaired_surrogate()
        )),
    }
}

/// JSON for a strict parser: UTF-8 without a mark; `NaN`, `Infinity` and `-Infinity` as objects that name
/// them, which a reader passes over where it reads nothing and refuses where it wants a number or a text;
/// control characters in strings escaped.
///
/// # Errors
///
/// As [`to_utf8`].
pub fn strict_json(bytes: &[u8]) -> Result<Cow<'_, [u8]>, String> {
    Ok(match to_utf8(bytes)? {
        Cow::Borrowed(json) => named(json),
        Cow::Owned(json) => Cow::Owned(named(&json).into_owned()),
    })
}

/// A value from JSON that somebody else wrote; see [`strict_json`].
///
/// # Errors
///
/// What was found instead.
pub fn from_json<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, String> {
    serde_json::from_slice(&strict_json(bytes)?).map_err(|e| e.to_string())
}

/// The JSON of a value that [`from_json`] read, with Python's words again where it named them.
pub fn python_json(value: &serde_json::Value) -> String {
    let json = value.to_string();
    WORDS.iter().fold(json, |json, word| {
        let word = String::from_utf8_lossy(word);
        json.replace(&format!("{{\"{word}\":null}}"), &word)
    })
}

/// The words that Python's `json` writes where JSON has none.
const WORDS: [&[u8]; 3] = [b"NaN", b"Infinity", b"-Infinity"];

fn named(json: &[u8]) -> Cow<'_, [u8]> {
    let mut out: Vec<u8> = Vec::new();
    // What is before `kept` is in `out`, as soon as anything was changed.
    let (mut kept, mut at, mut inside) = (0, 0, false);
    while at < json.len() {
        let (taken, instead) = match json[at] {
            b'\\' if inside => (2, None),
            b'"' => {
                inside = !inside;
                (1, None)
            }
            byte if inside && byte < b' ' => (1, Some(format!("\\u{byte:04x}"))),
            b'N' | b'I' | b'-' if !inside => {
                let word = WORDS.into_iter().find(|word| json[at..].starts_with(word));
                match word {
                    Some(word) => {
                        let text = String::from_utf8_lossy(word);
                        (word.len(), Some(format!("{{\"{text}\":null}}")))
                    }
                    None => (1, None),
                }
            }
            _ => (1, None),
        };
        if let Some(instead) = instead {
            out.extend_from_slice(&json[kept..at]);
            out.extend_from_slice(instead.as_bytes());
            kept = at + taken;
        }
        at += taken;
    }
    if kept == 0 {
        return Cow::Borrowed(json);
    }
    out.extend_from_slice(&json[kept..]);
    Cow::Owned(out)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn utf16(text: &str, bytes: fn(u16) -> [u8; 2]) -> Vec<u8> {
        text.encode_utf16().flat_map(bytes).collect()
    }

    proptest! {
        /// A text is the same text in every encoding, marked or not. (Without a mark UTF-16 is known by
        /// the zero bytes of its first letter or, of the other byte order, of all; so a text has none.)
        #[test]
        fn every_encoding_is_the_same_text(first in "[ -~]", rest in "[^\\x00]{0,20}", ascii in "[ -~]{1,20}") {
            let text = format!("{first}{rest}");
            let of = |bytes: Vec<u8>| decode(Path::new("t"), bytes).unwrap();
            let marked = format!("{MARK}{text}");
            prop_assert_eq!(&of(text.clone().into_bytes()), &text);
            prop_assert_eq!(&of(marked.clone().into_bytes()), &text);
            prop_assert_eq!(&of(utf16(&marked, u16::to_le_bytes)), &text);
            prop_assert_eq!(&of(utf16(&marked, u16::to_be_bytes)), &text);
            prop_assert_eq!(&of(utf16(&text, u16::to_le_bytes)), &text);
            prop_assert_eq!(&of(utf16(&ascii, u16::to_be_bytes)), &ascii);
        }

        /// JSON that is strict already stays as it is, whatever its strings say.
        #[test]
        fn strict_json_is_left_alone(text in ".{0,20}", number in any::<f64>()) {
            let json = serde_json::to_vec(&serde_json::json!({ "NaN": text, "b": [number, "-Infinity\"NaN"] })).unwrap();
            prop_assert_eq!(strict_json(&json).unwrap(), Cow::Borrowed(&json[..]));
        }
    }

    #[test]
    fn what_python_writes_is_read() {
        let json = "{\"a\": NaN, \"b\": [-Infinity, Infinity, -1], \"c\": \"NaN\t\\\"\"}";
        let read: serde_json::Value =
            serde_json::from_slice(&strict_json(json.as_bytes()).unwrap()).unwrap();
        let word = |word: &str| serde_json::json!({ word: null });
        let want = serde_json::json!({ "a": word("NaN"), "b": [word("-Infinity"), word("Infinity"), -1], "c": "NaN\t\"" });
        assert_eq!(read, want);
        let again = python_json(&read);
        assert_eq!(
            again,
            "{\"a\":NaN,\"b\":[-Infinity,Infinity,-1],\"c\":\"NaN\\t\\\"\"}"
        );
        assert_eq!(from_json::<serde_json::Value>(again.as_bytes()), Ok(want));
    }

    #[test]
    fn what_is_no_text_says_what_it_is() {
        for (bytes, part) in [
            (&b"\xff\xfe\0\0a\0\0\0"[..], "UTF-32"),
            (b"\xff\xfea\0b", "odd number"),
            (b"\xff\xfe\x3d\xd8", "half a pair, d83d"),
            (b"ab\ncd\xffe", "the byte ff at 5, line 2"),
        ] {
            let error = decode(Path::new("t.txt"), bytes.to_vec()).unwrap_err();
            let error = error.to_string();
            assert!(error.starts_with("t.txt: text: expected UTF-8"), "{error}");
            assert!(error.contains(part), "{error}");
        }
    }
}
