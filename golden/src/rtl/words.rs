//! Arrays as words: two's complement or IEEE bits, of the width of their type, one element a word,
//! row-major.

use crate::npz::{Array, DType, Element, read_npy, write_npy};
use half::f16;
use ndarray::{ArrayD, IxDyn};
use scalescope_sim::error::{Result, SimError};
use serde::{Deserialize, Serialize};
use std::fmt::Write;
use std::path::Path;

/// A form of memory file.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Format {
    /// Hexadecimal digits, one word a line: `$readmemh`.
    Hex,
    /// The same after a line `@0`: the address of the first word.
    Mem,
    /// NumPy.
    Npy,
    /// Little-endian bytes, no header.
    Bin,
}

impl Format {
    /// Every format.
    pub const ALL: [Format; 4] = [Format::Hex, Format::Mem, Format::Npy, Format::Bin];

    /// Its name, and the extension of its files.
    pub fn name(self) -> &'static str {
        match self {
            Format::Hex => "hex",
            Format::Mem => "mem",
            Format::Npy => "npy",
            Format::Bin => "bin",
        }
    }

    /// The format of a name.
    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|format| format.name() == name)
    }
}

macro_rules! each_type {
    ($array:expr, $a:ident => $body:expr) => {
        match $array {
            Array::I8($a) => $body,
            Array::U8($a) => $body,
            Array::I16($a) => $body,
            Array::I32($a) => $body,
            Array::U32($a) => $body,
            Array::I64($a) => $body,
            Array::F16($a) => $body,
            Array::F32($a) => $body,
            other => unreachable!("vectors have no {}", other.describe()),
        }
    };
}

fn little_endian<T: Element>(array: &ArrayD<T>) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(array.len() * T::SIZE);
    array.iter().for_each(|v| v.put_le(&mut bytes));
    bytes
}

/// Little-endian bytes of an array.
pub fn bytes(array: &Array) -> Vec<u8> {
    each_type!(array, a => little_endian(a))
}

/// The array of a type and shape from little-endian bytes.
fn from_bytes(dtype: DType, shape: &[usize], bytes: &[u8]) -> Option<Array> {
    fn of<T: Element>(shape: &[usize], bytes: &[u8]) -> Option<Array> {
        let values = bytes.chunks_exact(T::SIZE).map(T::from_le).collect();
        Some(T::wrap(ArrayD::from_shape_vec(IxDyn(shape), values).ok()?))
    }
    match dtype {
        DType::I8 => of::<i8>(shape, bytes),
        DType::U8 => of::<u8>(shape, bytes),
        DType::I16 => of::<i16>(shape, bytes),
        DType::I32 => of::<i32>(shape, bytes),
        DType::U32 => of::<u32>(shape, bytes),
        DType::I64 => of::<i64>(shape, bytes),
        DType::F16 => of::<f16>(shape, bytes),
        DType::F32 => of::<f32>(shape, bytes),
        _ => None,
    }
}

/// The contents of a memory file.
pub fn hex(array: &Array, format: Format) -> String {
    let size = array.dtype().item_size();
    let mut text = String::new();
    if format == Format::Mem {
        text.push_str("@0\n");
    }
    for word in bytes(array).chunks_exact(size) {
        for byte in word.iter().rev() {
            let _ = write!(text, "{byte:02x}");
        }
        text.push('\n');
    }
    text
}

/// Writes an array.
pub fn write(path: &Path, array: &Array, format: Format) -> Result<()> {
    let contents = match format {
        Format::Hex | Format::Mem => hex(array, format).into_bytes(),
        Format::Bin => bytes(array),
        Format::Npy => return write_npy(path, array),
    };
    std::fs::write(path, contents).map_err(|e| SimError::io(path, e))
}

/// Reads an array that a manifest describes. Memory files may have comments (`//`), `_` between
/// digits, several words a line, and the addresses that `$writememh` gives, if they count up from 0.
/// Simulators write unknown bits as `x` or `z`; those are refused by line.
pub fn read(path: &Path, format: Format, dtype: DType, shape: &[usize]) -> Result<Array> {
    let depth: usize = shape.iter().product();
    let words = |found: String| {
        let expected = format!("{depth} words of {} bits", dtype.item_size() * 8);
        SimError::file(path, "contents", expected, found)
    };
    let data = match format {
        Format::Npy => {
            let array = read_npy(path)?;
            let same = array.dtype() == dtype && array.shape() == shape;
            let expected = format!("{} {shape:?}", dtype.name());
            return match same {
                true => Ok(array),
                false => Err(SimError::file(path, "array", expected, array.describe())),
            };
        }
        Format::Bin => std::fs::read(path).map_err(|e| SimError::io(path, e))?,
        Format::Hex | Format::Mem => {
            let text = std::fs::read_to_string(path).map_err(|e| SimError::io(path, e))?;
            parse(path, &text, dtype)?
        }
    };
    if depth.checked_mul(dtype.item_size()) != Some(data.len()) {
        return Err(words(format!("{} bytes of words", data.len())));
    }
    from_bytes(dtype, shape, &data).ok_or_else(|| words(format!("type {}", dtype.name())))
}

fn parse(path: &Path, text: &str, dtype: DType) -> Result<Vec<u8>> {
    let size = dtype.item_size();
    let mut data = Vec::new();
    for (number, line) in text.lines().enumerate() {
        let bad = |expected: &str, found: &str| {
            SimError::file(path, format_args!("line {}", number + 1), expected, found)
        };
        for word in line.split("//").next().unwrap_or("").split_whitespace() {
            if let Some(address) = word.strip_prefix('@') {
                if hexadecimal(address) != Some((data.len() / size) as u64) {
                    return Err(bad("the address of the next word", word));
                }
                continue;
            }
            let digits = word.replace('_', "");
            let fits = digits.trim_start_matches('0').len() <= 2 * size;
            let value = hexadecimal(&digits)
                .filter(|_| fits)
                .ok_or_else(|| bad(&format!("a hexadecimal word of {} bits", 8 * size), word))?;
            data.extend_from_slice(&value.to_le_bytes()[..size]);
        }
    }
    Ok(data)
}

/// Digits alone; Rust's own parser takes a sign too.
fn hexadecimal(digits: &str) -> Option<u64> {
    let plain = digits.bytes().all(|digit| digit.is_ascii_hexdigit());
    plain.then(|| u64::from_str_radix(digits, 16).ok())?
}

#[cfg(test)]
mod tests {
    use super::*;

    fn array<T: Element>(values: &[T]) -> Array {
        T::wrap(ArrayD::from_shape_vec(IxDyn(&[values.len()]), values.to_vec()).unwrap())
    }

    #[test]
    fn every_type_in_every_format_comes_back() {
        let folder = tempfile::tempdir().unwrap();
        for array in [
            array(&[-128i8, -1, 0, 127]),
            array(&[0u8, 255]),
            array(&[i16::MIN, -2, i16::MAX]),
            array(&[i32::MIN, -3, i32::MAX]),
            array(&[u32::MAX, 7]),
            array(&[i64::MIN, -4, i64::MAX]),
            array(&[f16::from_f32(-0.0), f16::INFINITY, f16::from_f32(1.5)]),
            array(&[f32::MIN_POSITIVE, -0.0, f32::INFINITY]),
        ] {
            for format in Format::ALL {
                let path = folder.path().join(format!("a.{}", format.name()));
                write(&path, &array, format).unwrap();
                let again = read(&path, format, array.dtype(), array.shape()).unwrap();
                assert_eq!(
                    bytes(&again),
                    bytes(&array),
                    "{} {format:?}",
                    array.describe()
                );
            }
        }
        assert_eq!(hex(&array(&[-2i16, 10]), Format::Mem), "@0\nfffe\n000a\n");
    }

    #[test]
    fn what_simulators_write_is_read_and_unknown_bits_are_refused() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.hex");
        let read = |text: &str| {
            std::fs::write(&path, text).unwrap();
            read(&path, Format::Hex, DType::I8, &[3]).map_err(|e| e.to_string())
        };
        assert_eq!(
            read("// dump\n@00000000\nff 0_1\n@2\n7F // last\n").unwrap(),
            array(&[-1i8, 1, 127])
        );
        for (text, part) in [
            (
                "ff\nxx\n00\n",
                "line 2: expected a hexadecimal word of 8 bits, found xx",
            ),
            ("ff\n1ff\n00\n", "line 2"),
            (
                "ff\n@5\n00\n",
                "line 2: expected the address of the next word",
            ),
            ("ff\n00\n", "expected 3 words of 8 bits"),
        ] {
            let error = read(text).unwrap_err();
            assert!(error.contains(part), "{error}");
        }
    }
}
