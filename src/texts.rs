//! Texts from a file: one reader for every command.
//!
//! What the file holds decides what it is, its extension only what cannot be told from that: an array of
//! JSON objects, JSON objects one after another (a line each, or over several lines), or one text. An
//! object's text is its field `text`; its other fields are never looked at.

mod row;

use crate::output::note;
use row::Row;
use scalescope_sim::error::{Result, SimError};
use scalescope_sim::text::{self, MARK};
use serde::de::IgnoredAny;
use std::path::Path;

/// Rows without a usable text that a command puts up with, as a share of all rows.
pub const TOLERATED: f64 = 0.01;

/// How a file holds its texts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Form {
    /// One text, the whole file.
    Plain,
    /// A JSON object a line.
    Lines,
    /// An array of JSON objects, or objects over several lines.
    Items,
}

/// A row of a file, and the text in it or why there is none.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// Number of its line, or of the item, from 0.
    pub id: usize,
    /// The text, not blank; or what is there instead.
    pub text: Result<String, String>,
}

/// The texts of a file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Texts {
    /// How they are held.
    pub form: Form,
    /// The rows that are not blank, in order.
    pub rows: Vec<Entry>,
    /// Rows with a blank text, by id: they are passed over, but where all texts are one.
    pub blank: Vec<(usize, String)>,
    /// What was done to the text on reading, to be told.
    pub remarks: Vec<String>,
}

impl Texts {
    /// Reads a file.
    ///
    /// # Errors
    ///
    /// A file that cannot be read, is no text, or starts like a JSON array and is none.
    pub fn read(path: &Path) -> Result<Self> {
        let bytes = std::fs::read(path).map_err(|e| SimError::io(path, e))?;
        Self::parse(path, &bytes)
    }

    /// Reads the bytes of a file; the path names it and gives the extension.
    pub fn parse(path: &Path, bytes: &[u8]) -> Result<Self> {
        if let Some(kind) = container(bytes) {
            return Err(SimError::file(path, "file", "text or JSON lines", kind));
        }
        let extension = path.extension().map(|e| e.to_ascii_lowercase());
        let named_json = (extension.as_ref()).is_some_and(|e| {
            ["jsonl", "ndjson", "jsonlines", "json"]
                .iter()
                .any(|j| e == j)
        });
        let content = text::to_utf8(bytes)
            .map_err(|found| SimError::file(path, "text", "UTF-8 or UTF-16", found))?;
        let first = content.trim_ascii_start().first();
        let mut texts = match first {
            Some(b'[') => match items(&content) {
                Ok(rows) => Self::of_rows(Form::Items, rows),
                Err(e) if named_json => {
                    let expected = "an array of JSON objects with a string `text`";
                    return Err(SimError::file(path, "rows", expected, e));
                }
                Err(_) => Self::plain(path, content.into_owned())?,
            },
            _ => {
                let lines = lines(&content);
                let starts_object = lines.first().is_some_and(|(_, line)| is_json(line));
                match (starts_object, first == Some(&b'{')) {
                    (false, true) if objects(&content).is_some() => {
                        Self::of_rows(Form::Items, objects(&content).expect("just read"))
                    }
                    (false, _) if !named_json => Self::plain(path, content.into_owned())?,
                    _ => {
                        let rows = lines.into_iter().map(|(id, line)| (id, Row::of_json(line)));
                        Self::of_rows(Form::Lines, rows)
                    }
                }
            }
        };
        if texts.form != Form::Plain && !named_json && extension.is_some() {
            let what = match texts.form {
                Form::Lines => "JSON lines",
                _ => "JSON objects",
            };
            texts
                .remarks
                .insert(0, format!("read as {what}, which it holds"));
        }
        Ok(texts)
    }

    fn of_rows(form: Form, all: impl IntoIterator<Item = (usize, Row)>) -> Self {
        let (mut rows, mut blank) = (Vec::new(), Vec::new());
        for (id, Row(text)) in all {
            match text {
                Ok(text) if text.trim().is_empty() => blank.push((id, text)),
                text => rows.push(Entry { id, text }),
            }
        }
        Self {
            form,
            rows,
            blank,
            remarks: Vec::new(),
        }
    }

    /// One text. Ends of lines become LF, as in every program that opens a file as text.
    fn plain(path: &Path, content: Vec<u8>) -> Result<Self> {
        let text = text::decode(path, content)?;
        let ends = text.matches('\r').count();
        let text = match ends {
            0 => text,
            _ => text.replace("\r\n", "\n").replace('\r', "\n"),
        };
        let row = (!text.is_empty()).then_some((0, Row(Ok(text))));
        let mut texts = Self::of_rows(Form::Plain, row);
        if ends > 0 {
            texts
                .remarks
                .push(format!("{ends} CR line ends were read as LF"));
        }
        Ok(texts)
    }

    /// A row as messages name it: `line 3 (id 2)`.
    pub fn place(&self, id: usize) -> String {
        let what = match self.form {
            Form::Items => "item",
            Form::Lines | Form::Plain => "line",
        };
        format!("{what} {} (id {id})", id + 1)
    }

    /// Keeps the first `limit` rows.
    pub fn truncate(&mut self, limit: usize) {
        if let Some(next) = self.rows.get(limit) {
            let next = next.id;
            self.blank.retain(|(id, _)| *id < next);
            self.rows.truncate(limit);
        }
    }

    /// The texts alone, for commands that take them as they come. Says what was done on reading and which
    /// rows are left out.
    ///
    /// # Errors
    ///
    /// No text at all, or more rows without one than are [`TOLERATED`].
    pub fn usable(self, path: &Path) -> Result<Vec<String>> {
        self.tell(path);
        let bad: Vec<(usize, &str)> = (self.rows.iter())
            .filter_map(|row| Some((row.id, row.text.as_ref().err()?.as_str())))
            .collect();
        self.judge(path, &bad)?;
        Ok(self
            .rows
            .into_iter()
            .filter_map(|row| row.text.ok())
            .collect())
    }

    /// Says on stderr what was done on reading.
    pub fn tell(&self, path: &Path) {
        for remark in &self.remarks {
            note(path.display(), remark);
        }
        if !self.blank.is_empty() {
            let (blank, all) = (self.blank.len(), self.blank.len() + self.rows.len());
            note(
                path.display(),
                format_args!("{blank} of {all} rows are blank and were skipped"),
            );
        }
    }

    /// Names the rows that cannot be used, and says whether they are too many.
    ///
    /// # Errors
    ///
    /// No row at all, or more bad ones than are [`TOLERATED`].
    pub fn judge(&self, path: &Path, bad: &[(usize, &str)]) -> Result<()> {
        const SHOWN: usize = 20;
        for (id, reason) in bad.iter().take(SHOWN) {
            note(
                path.display(),
                format_args!("{}: {reason}", self.place(*id)),
            );
        }
        if bad.len() > SHOWN {
            note(
                path.display(),
                format_args!("… and {} more rows", bad.len() - SHOWN),
            );
        }
        let found =
            |what: String| SimError::file(path, "rows", "at most 1 % that cannot be used", what);
        if too_many(bad.len(), self.rows.len()) {
            return Err(found(format!("{} of {}", bad.len(), self.rows.len())));
        }
        match (self.rows.is_empty(), self.blank.len()) {
            (false, _) => Ok(()),
            (true, 0) => Err(SimError::file(path, "rows", "a text", "an empty file")),
            (true, blank) => Err(SimError::file(
                path,
                "rows",
                "a text",
                format_args!("{blank} that are blank"),
            )),
        }
    }
}

/// Whether so many rows are unusable that the result would describe another data set.
pub fn too_many(bad: usize, rows: usize) -> bool {
    bad as f64 > TOLERATED * rows as f64
}

/// The lines that are not blank, with their numbers from 0. Lines end with LF, CR LF or, where there is no
/// LF, CR; a mark or a record separator (RFC 7464) before an object is no part of it.
fn lines(content: &[u8]) -> Vec<(usize, &[u8])> {
    let end = match content.contains(&b'\n') {
        true => b'\n',
        false => b'\r',
    };
    let mut mark = [0; 4];
    let mark = MARK.encode_utf8(&mut mark).as_bytes();
    (content.split(|b| *b == end).enumerate())
        .map(|(id, line)| {
            let line = line.strip_prefix(mark).unwrap_or(line);
            (id, line.strip_prefix(b"\x1e").unwrap_or(line).trim_ascii())
        })
        .filter(|(_, line)| !line.is_empty())
        .collect()
}

/// Whether a line is a JSON object.
fn is_json(line: &[u8]) -> bool {
    line.starts_with(b"{") && text::from_json::<IgnoredAny>(line).is_ok()
}

fn items(content: &[u8]) -> Result<Vec<(usize, Row)>, String> {
    let rows: Vec<Row> = text::from_json(content)?;
    Ok(rows.into_iter().enumerate().collect())
}

/// Objects over several lines, if the whole content is that.
fn objects(content: &[u8]) -> Option<Vec<(usize, Row)>> {
    let json = text::strict_json(content).ok()?;
    let rows = serde_json::Deserializer::from_slice(&json).into_iter::<Row>();
    let rows: Vec<Row> = rows.collect::<Result<_, _>>().ok()?;
    Some(rows.into_iter().enumerate().collect())
}

/// Which kind of packed or columnar file begins so.
fn container(bytes: &[u8]) -> Option<&'static str> {
    let kinds: [(&[u8], &str); 10] = [
        (b"\x93NUMPY", "a NumPy array: --tokens takes token ids"),
        (b"\x1f\x8b", "gzip: unpack it first"),
        (b"BZh", "bzip2: unpack it first"),
        (b"\xfd7zXZ", "xz: unpack it first"),
        (b"\x28\xb5\x2f\xfd", "zstd: unpack it first"),
        (b"PK\x03\x04", "a ZIP archive: unpack it first"),
        (b"PAR1", "Parquet: convert it to JSON lines first"),
        (b"ARROW1", "Arrow: convert it to JSON lines first"),
        (b"%PDF-", "PDF: convert it to text first"),
        (
            b"\x80\x04\x95",
            "a Python pickle: convert it to JSON lines first",
        ),
    ];
    let found = kinds
        .into_iter()
        .find(|(magic, _)| bytes.starts_with(magic));
    found.map(|(_, kind)| kind)
}

#[cfg(test)]
mod tests;
