//! One text in every form a file can have.

use super::*;
use proptest::prelude::*;
use serde_json::json;

fn parse(name: &str, bytes: &[u8]) -> Texts {
    Texts::parse(Path::new(name), bytes).unwrap()
}

fn found(texts: &Texts) -> Vec<&str> {
    (texts.rows.iter())
        .map(|row| row.text.as_deref().unwrap())
        .collect()
}

fn utf16(text: &str, order: fn(u16) -> [u8; 2]) -> Vec<u8> {
    (text::MARK.to_string() + text)
        .encode_utf16()
        .flat_map(order)
        .collect()
}

fn texts() -> impl Strategy<Value = Vec<String>> {
    let text = "[ -~éπ\u{2028}😀\t\n]{0,12}[a-z]".prop_map(String::from);
    proptest::collection::vec(text, 1..6)
}

/// A field that is not read, as Python's `json` writes it.
fn unread() -> impl Strategy<Value = &'static str> {
    prop::sample::select(vec![
        "NaN",
        "-Infinity",
        "[Infinity, 1e999]",
        "123456789012345678901234567890",
        "\"\\ud83d\"",
        "{\"text\": 3}",
        "\"raw\ttab\"",
        "null",
    ])
}

proptest! {
    /// Rows are the same texts under every extension, in every encoding, with every end of line, whatever
    /// stands in fields that are not read; blank rows are passed over and counted.
    #[test]
    fn the_form_of_a_file_changes_no_text(
        want in texts(),
        unread in unread(),
        extension in prop::sample::select(vec!["jsonl", "json", "ndjson", "jsonlines", "JSONL", "txt", "data"]),
    ) {
        let name = format!("a.{extension}");
        let object = |text: &String| format!("{{\"n\": {unread}, \"text\": {}, \"m\": {unread}}}", json!(text));
        let rows: Vec<String> = want.iter().map(object).collect();
        let lines = rows.join("\n");
        let pretty = rows.iter().map(|row| row.replace(", \"text", ",\n \"text")).collect::<Vec<_>>().join("\n");
        for bytes in [
            lines.clone().into_bytes(),
            format!("\u{feff}{lines}\n").into_bytes(),
            utf16(&lines, u16::to_le_bytes),
            utf16(&lines, u16::to_be_bytes),
            rows.join("\r\n").into_bytes(),
            rows.join("\r").into_bytes(),
            rows.join("\n\n  \n").into_bytes(),
            rows.join("\n\u{feff}").into_bytes(),
            rows.iter().map(|row| format!("\x1e{row}\n")).collect::<String>().into_bytes(),
            format!("[{}]", rows.join(", ")).into_bytes(),
            pretty.into_bytes(),
            rows.join(" ").into_bytes(),
        ] {
            let got = parse(&name, &bytes);
            prop_assert_eq!(found(&got), want.iter().collect::<Vec<_>>(), "{}", String::from_utf8_lossy(&bytes));
            prop_assert!(got.blank.is_empty());
        }
        let blank = rows.iter().map(|row| format!("{{\"text\": \"\"}}\n{row}\n{{\"text\": \" \\n\"}}\n")).collect::<String>();
        let got = parse(&name, blank.as_bytes());
        prop_assert_eq!(found(&got), want.iter().collect::<Vec<_>>());
        prop_assert_eq!(got.blank.len(), 2 * want.len());
    }

    /// A plain text is one text, the same in every encoding and with every end of line.
    #[test]
    fn a_plain_text_is_one_text(text in "[a-zé][ -~é\n]{0,30}") {
        let ends = text.matches('\n').count();
        for (bytes, changed) in [
            (text.clone().into_bytes(), false),
            (format!("\u{feff}{text}").into_bytes(), false),
            (utf16(&text, u16::to_le_bytes), false),
            (text.replace('\n', "\r\n").into_bytes(), ends > 0),
            (text.replace('\n', "\r").into_bytes(), ends > 0),
        ] {
            let got = parse("a.txt", &bytes);
            prop_assert_eq!(got.form, Form::Plain);
            prop_assert_eq!(found(&got), vec![text.as_str()]);
            prop_assert_eq!(!got.remarks.is_empty(), changed);
        }
    }
}

#[test]
fn what_is_read_against_its_extension_says_so() {
    let rows = b"{\"text\": \"a b\"}\n{\"text\": \"c d\"}\n";
    assert_eq!(
        parse("a.txt", rows).remarks,
        ["read as JSON lines, which it holds"]
    );
    assert!(parse("a.jsonl", rows).remarks.is_empty());
    // Text that looks like JSON at first is text; what is called JSON must be it.
    for text in [
        "{ int x; }\nint y;",
        "[1] A footnote.",
        "\"Quoted,\" he said.",
    ] {
        assert_eq!(parse("a.txt", text.as_bytes()).form, Form::Plain, "{text}");
    }
    let footnote = Texts::parse(Path::new("a.json"), b"[1] A footnote.");
    assert!(
        footnote
            .unwrap_err()
            .to_string()
            .contains("an array of JSON objects")
    );
    let prose = parse("a.jsonl", b"It was late.\nHe came.");
    assert!(prose.rows.iter().all(|row| row.text.is_err()));
}

#[test]
fn rows_without_a_text_say_what_they_have() {
    let file = b"{\"text\": [\"a\"]}\n{\"txt\": \"a\", \"n\": 1}\n{\"text\": \"a\", \"text\": \"b\"}\nnonsense\n3\n\xff\n{\"text\": \"\\ud83d\"}\n{\"text\": NaN}\n";
    let got = parse("a.jsonl", file);
    let reasons: Vec<&str> = (got.rows.iter())
        .map(|row| row.text.as_ref().unwrap_err().as_str())
        .collect();
    for (reason, part) in reasons.iter().zip([
        "`text` is a list",
        "its fields are [\"txt\", \"n\"]",
        "`text` twice",
        "expected",
        "a number",
        "not UTF-8",
        "hex escape",
        "`text` is an object, or NaN",
    ]) {
        assert!(reason.contains(part), "{part}: {reason}");
    }
    assert_eq!(got.rows.len(), 8);
    let found = got.usable(Path::new("a.jsonl")).unwrap_err().to_string();
    assert!(found.contains("at most 1 % that cannot be used"), "{found}");
}

#[test]
fn packed_files_and_other_bytes_are_refused_by_name() {
    for (bytes, part) in [
        (&b"\x1f\x8b\x08\0"[..], "gzip"),
        (b"PAR1\x15", "Parquet"),
        (b"\x93NUMPY\x01", "--tokens"),
        (b"caf\xe9 is not UTF-8", "the byte e9 at 3, line 1"),
    ] {
        let error = Texts::parse(Path::new("a.txt"), bytes)
            .unwrap_err()
            .to_string();
        assert!(error.contains(part), "{error}");
    }
    let empty = |bytes| {
        parse("a.txt", bytes)
            .usable(Path::new("a.txt"))
            .unwrap_err()
    };
    assert!(empty(b"").to_string().contains("empty"));
    assert!(empty(b" \n").to_string().contains("1 that are blank"));
}

#[test]
fn one_percent_is_tolerated_and_no_more() {
    assert!(!too_many(2, 200));
    assert!(too_many(3, 200));
    assert!(!too_many(0, 0));
}
