//! The header of a `.npy` file: a magic number, a version, and a Python dictionary literal with
//! `descr`, `fortran_order` and `shape`.
//!
//! Read by hand rather than by a parser of Python: the grammar needed is three keys wide, and a
//! hostile header must neither recurse nor overflow.

use super::array::DType;
use std::io::Read;

/// `\x93NUMPY`.
pub(super) const MAGIC: [u8; 6] = *b"\x93NUMPY";
/// As NumPy itself: longer headers are refused.
const MAX_HEADER: usize = 10_000;
/// Axes that an array may have.
pub const MAX_DIMS: usize = 4;

/// What a header says of the data behind it.
#[derive(Clone, Debug, PartialEq)]
pub struct Header {
    /// Element type.
    pub dtype: DType,
    /// Whether elements have their most significant byte first.
    pub big_endian: bool,
    /// Whether the first axis varies fastest.
    pub fortran: bool,
    /// Lengths of the axes.
    pub shape: Vec<usize>,
    /// Bytes before the data.
    pub(super) length: usize,
}

/// What was wrong: expected, found.
pub(super) type Fault = (String, String);

fn fault<T>(expected: impl Into<String>, found: impl Into<String>) -> Result<T, Fault> {
    Err((expected.into(), found.into()))
}

/// Text of a file made fit for one line of a message.
pub(crate) fn shown(text: &str) -> String {
    let mut short: String = text.chars().take(80).flat_map(char::escape_debug).collect();
    if text.chars().nth(80).is_some() {
        short.push('…');
    }
    short
}

impl Header {
    /// Bytes of data; `None` if they cannot be counted.
    pub fn data_bytes(&self) -> Option<usize> {
        // Zero-length axes must not hide an overflow: every axis counts, and nothing holds an array whose other
        // axes have more places than an isize counts.
        let all = self
            .shape
            .iter()
            .try_fold(1usize, |product, axis| product.checked_mul((*axis).max(1)))
            .filter(|all| isize::try_from(*all).is_ok())?;
        let count = if self.shape.contains(&0) { 0 } else { all };
        count
            .checked_mul(self.dtype.item_size())
            .filter(|bytes| isize::try_from(*bytes).is_ok())
    }

    /// Reads a header; the reader is left at the data.
    pub(super) fn read(reader: &mut impl Read) -> Result<Self, Fault> {
        let truncated = |_| ("a .npy header".to_owned(), "the end of the data".to_owned());
        let mut start = [0u8; 8];
        reader.read_exact(&mut start).map_err(truncated)?;
        if start[..6] != MAGIC {
            return fault("a .npy file (\\x93NUMPY)", "other data");
        }
        let (length, before) = match (start[6], start[7]) {
            (1, 0) => {
                let mut bytes = [0u8; 2];
                reader.read_exact(&mut bytes).map_err(truncated)?;
                (usize::from(u16::from_le_bytes(bytes)), 10)
            }
            (2 | 3, 0) => {
                let mut bytes = [0u8; 4];
                reader.read_exact(&mut bytes).map_err(truncated)?;
                (u32::from_le_bytes(bytes) as usize, 12)
            }
            (major, minor) => {
                return fault("npy version 1.0, 2.0 or 3.0", format!("{major}.{minor}"));
            }
        };
        if length > MAX_HEADER {
            return fault(
                format!("a header of at most {MAX_HEADER} bytes"),
                format!("{length}"),
            );
        }
        let mut text = vec![0u8; length];
        reader.read_exact(&mut text).map_err(truncated)?;
        let Ok(text) = String::from_utf8(text) else {
            return fault("a header in UTF-8", "other bytes");
        };
        let mut header = Parser { rest: &text }.dictionary()?;
        header.length = before + length;
        Ok(header)
    }
}

/// A cursor in the dictionary literal.
struct Parser<'a> {
    rest: &'a str,
}

impl<'a> Parser<'a> {
    fn skip_space(&mut self) {
        self.rest = self.rest.trim_start();
    }

    fn accept(&mut self, token: char) -> bool {
        self.skip_space();
        match self.rest.strip_prefix(token) {
            Some(rest) => {
                self.rest = rest;
                true
            }
            None => false,
        }
    }

    fn expect(&mut self, token: char) -> Result<(), Fault> {
        if self.accept(token) {
            Ok(())
        } else {
            fault(
                format!("'{token}' in the npy header"),
                format!("\"{}\"", shown(self.rest.trim_end())),
            )
        }
    }

    fn string(&mut self) -> Result<&'a str, Fault> {
        self.skip_space();
        let quote = match self.rest.chars().next() {
            Some(quote @ ('\'' | '"')) => quote,
            _ => return fault("a string in the npy header", shown(self.rest.trim_end())),
        };
        let body = &self.rest[1..];
        let Some(end) = body.find(quote) else {
            return fault("a closed string in the npy header", shown(body));
        };
        self.rest = &body[end + 1..];
        Ok(&body[..end])
    }

    fn boolean(&mut self) -> Result<bool, Fault> {
        self.skip_space();
        for (word, value) in [("True", true), ("False", false)] {
            if let Some(rest) = self.rest.strip_prefix(word) {
                self.rest = rest;
                return Ok(value);
            }
        }
        fault("fortran_order True or False", shown(self.rest.trim_end()))
    }

    fn shape(&mut self) -> Result<Vec<usize>, Fault> {
        self.expect('(')?;
        let mut shape = Vec::new();
        while !self.accept(')') {
            self.skip_space();
            let digits = self.rest.len()
                - self
                    .rest
                    .trim_start_matches(|c: char| c.is_ascii_digit())
                    .len();
            let Ok(axis) = self.rest[..digits].parse::<usize>() else {
                let found = self.rest.split([',', ')']).next().unwrap_or_default();
                return fault("axis lengths that fit a size", shown(found.trim()));
            };
            self.rest = &self.rest[digits..];
            if self.rest.starts_with('L') {
                // NumPy under Python 2 wrote longs.
                self.rest = &self.rest[1..];
            }
            shape.push(axis);
            if shape.len() > MAX_DIMS {
                return fault(format!("at most {MAX_DIMS} axes"), "more");
            }
            if !self.accept(',') {
                self.expect(')')?;
                break;
            }
        }
        Ok(shape)
    }

    fn dictionary(mut self) -> Result<Header, Fault> {
        let (mut descr, mut fortran, mut shape) = (None, None, None);
        self.expect('{')?;
        while !self.accept('}') {
            let key = self.string()?;
            self.expect(':')?;
            let known = match key {
                "descr" => {
                    self.skip_space();
                    if self.rest.starts_with(['[', '(']) {
                        return fault("a plain element type", "a structured type");
                    }
                    descr.replace(self.string()?).is_none()
                }
                "fortran_order" => fortran.replace(self.boolean()?).is_none(),
                "shape" => shape.replace(self.shape()?).is_none(),
                _ => false,
            };
            if !known {
                return fault(
                    "each of descr, fortran_order, shape once",
                    format!("key '{}'", shown(key)),
                );
            }
            if !self.accept(',') {
                self.expect('}')?;
                break;
            }
        }
        self.skip_space();
        if !self.rest.is_empty() {
            return fault("nothing behind the npy dictionary", shown(self.rest));
        }
        let (Some(descr), Some(fortran), Some(shape)) = (descr, fortran, shape) else {
            return fault("descr, fortran_order and shape", "not all of them");
        };
        let (dtype, big_endian) = dtype_of(descr)?;
        Ok(Header {
            dtype,
            big_endian,
            fortran,
            shape,
            length: 0,
        })
    }
}

fn dtype_of(descr: &str) -> Result<(DType, bool), Fault> {
    let native_big = cfg!(target_endian = "big");
    let (order, code) = match descr.chars().next() {
        Some(order @ ('<' | '>' | '|' | '=')) => (order, &descr[1..]),
        _ => ('=', descr),
    };
    if code.starts_with('O') {
        return fault("numbers", "pickled Python objects (dtype O)");
    }
    let dtype = DType::ALL.iter().find(|d| &d.descr()[1..] == code);
    match dtype {
        // '|' says "byte order does not matter", so only single bytes may have it.
        Some(dtype) if order != '|' || dtype.item_size() == 1 => {
            Ok((*dtype, order == '>' || (order == '=' && native_big)))
        }
        _ => {
            let names: Vec<_> = DType::ALL.iter().map(|d| d.name()).collect();
            fault(
                format!("a type of {}", names.join(", ")),
                format!("dtype '{}'", shown(descr)),
            )
        }
    }
}
