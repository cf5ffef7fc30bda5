//! Arrays as words: two's complement or IEEE bits, one element a word, row-major. In a memory file a word is as
//! wide as in hardware; elsewhere as its type.

use super::memory;
use crate::npz::{Array, DType, Element, read_npy, write_npy};
use half::f16;
use ndarray::{ArrayD, IxDyn};
use scalescope_sim::error::{Result, SimError};
use scalescope_sim::text;
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

/// The contents of a memory file of words of `bits` bits, the lowest of their type's.
pub fn hex(array: &Array, bits: usize, format: Format) -> String {
    let (mask, digits) = (u64::MAX >> (64 - bits), bits.div_ceil(4));
    let mut text = String::new();
    if format == Format::Mem {
        text.push_str("@0\n");
    }
    for word in words_of(array) {
        let _ = writeln!(text, "{:0digits$x}", word & mask);
    }
    text
}

/// Writes an array whose words have `bits` bits in hardware.
pub fn write(path: &Path, array: &Array, bits: usize, format: Format) -> Result<()> {
    let contents = match format {
        Format::Hex | Format::Mem => hex(array, bits, format).into_bytes(),
        Format::Bin => bytes(array),
        Format::Npy => return write_npy(path, array),
    };
    std::fs::write(path, contents).map_err(|e| SimError::io(path, e))
}

/// Reads an array that a manifest describes. What simulators write is read whole ([`memory`]); an array of
/// the export has every word, known and once.
pub fn read(
    path: &Path,
    format: Format,
    dtype: DType,
    bits: usize,
    shape: &[usize],
) -> Result<Array> {
    let depth: usize = shape.iter().product();
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
            let bytes = std::fs::metadata(path)
                .map_err(|e| SimError::io(path, e))?
                .len();
            if depth as u64 > bytes {
                return Err(wrong_size(
                    path,
                    depth,
                    dtype,
                    Dump::read(path, dtype, bits, 0)?.extra,
                ));
            }
            let dump = Dump::read(path, dtype, bits, depth)?;
            if let Some(at) = dump.first_unknown {
                let expected = format!("a known word of {bits} bits");
                return Err(SimError::file(path, at, expected, "x or z"));
            }
            if dump.missing + dump.extra > 0 {
                let found = depth - dump.missing + dump.extra;
                return Err(wrong_size(path, depth, dtype, found));
            }
            let size = dtype.item_size();
            let words = dump.words.iter().flatten();
            words
                .flat_map(|word| word.to_le_bytes().into_iter().take(size))
                .collect()
        }
    };
    let words = data.len().div_ceil(dtype.item_size());
    if depth.checked_mul(dtype.item_size()) != Some(data.len()) {
        return Err(wrong_size(path, depth, dtype, words));
    }
    from_bytes(dtype, shape, &data)
        .ok_or_else(|| SimError::file(path, "contents", "a known type", dtype.name()))
}

fn wrong_size(path: &Path, depth: usize, dtype: DType, found: usize) -> SimError {
    let expected = format!("{depth} words of {} bits", dtype.item_size() * 8);
    SimError::file(path, "contents", expected, format_args!("{found} words"))
}

/// What a device gave for an array: as many words as it sent, known or not.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Dump {
    /// The array's words; `None` where the dump has none or has unknown bits.
    pub words: Vec<Option<u64>>,
    /// Of these: words with unknown bits (`x`, `z`).
    pub unknown: usize,
    /// Of these: words that the dump does not have.
    pub missing: usize,
    /// Words beyond the array's.
    pub extra: usize,
    first_unknown: Option<memory::At>,
}

impl Dump {
    /// Reads a dump of an array of `depth` words of a type, of which hardware has `bits` bits. What the file holds decides how it is read:
    /// NumPy, a memory file, or (named `.bin`) little-endian bytes.
    ///
    /// # Errors
    ///
    /// What no simulator writes, by line and column; a NumPy array of another kind of numbers.
    pub fn read(path: &Path, dtype: DType, bits: usize, depth: usize) -> Result<Self> {
        let data = std::fs::read(path).map_err(|e| SimError::io(path, e))?;
        let size = dtype.item_size();
        if data.starts_with(b"\x93NUMPY") {
            let array = read_npy(path)?;
            let words = array_words(&array, dtype).ok_or_else(|| {
                let expected = format!("{} or integers that fit it", dtype.name());
                SimError::file(path, "array", expected, array.describe())
            })?;
            return Ok(Self::of(words.into_iter().map(Some), depth));
        }
        if path
            .extension()
            .is_some_and(|e| e.eq_ignore_ascii_case("bin"))
        {
            let words = data
                .chunks(size)
                .map(|word| word.len() == size)
                .zip(data.chunks(size));
            let words = words.map(|(whole, word)| whole.then(|| little_endian_word(word)));
            return Ok(Self::of(words, depth));
        }
        let text = text::decode(path, data)?;
        let words = memory::parse(&text, bits)
            .map_err(|e| SimError::file(path, e.at, e.expected, e.found))?;
        let mut dump = Self::of([], depth);
        let mut given = vec![false; depth];
        for word in words {
            let place = usize::try_from(word.address).unwrap_or(usize::MAX);
            let Some(slot) = dump.words.get_mut(place) else {
                dump.extra += 1;
                continue;
            };
            // A word given again replaces the one before, as when a simulator loads the file.
            *slot = word.value.map(|value| extended(value, dtype, bits));
            given[place] = true;
            if word.value.is_none() {
                dump.first_unknown.get_or_insert(word.at);
            }
        }
        dump.missing = given.iter().filter(|given| !**given).count();
        dump.unknown = dump.words.iter().filter(|word| word.is_none()).count() - dump.missing;
        Ok(dump)
    }

    /// Words one after another from the first.
    fn of(words: impl IntoIterator<Item = Option<u64>>, depth: usize) -> Self {
        let mut all: Vec<Option<u64>> = words.into_iter().collect();
        let (extra, missing) = (
            all.len().saturating_sub(depth),
            depth.saturating_sub(all.len()),
        );
        all.truncate(depth);
        let unknown = all.iter().filter(|word| word.is_none()).count();
        all.resize(depth, None);
        Self {
            words: all,
            unknown,
            missing,
            extra,
            first_unknown: None,
        }
    }
}

/// The words of an array, if it is of the type, or of integers that the type holds.
fn array_words(array: &Array, dtype: DType) -> Option<Vec<u64>> {
    let size = dtype.item_size();
    if array.dtype() == dtype {
        return Some(words_of(array));
    }
    let low = match dtype {
        DType::I8 | DType::I16 | DType::I32 | DType::I64 => -1i128 << (8 * size - 1),
        DType::U8 | DType::U32 => 0,
        _ => return None,
    };
    let range = low..low + (1i128 << (8 * size));
    let mask = u64::MAX >> (64 - 8 * size);
    let words = array.to_i64()?.into_iter().map(|v| {
        let fits = range.contains(&i128::from(v));
        fits.then_some(v as u64 & mask)
    });
    words.collect()
}

/// A word of `bits` bits in the width of its type: integers with a sign keep their value.
fn extended(word: u64, dtype: DType, bits: usize) -> u64 {
    let signed = matches!(dtype, DType::I8 | DType::I16 | DType::I32 | DType::I64);
    match signed && word >> (bits - 1) == 1 {
        true => word | (u64::MAX << (bits - 1)) & (u64::MAX >> (64 - 8 * dtype.item_size())),
        false => word,
    }
}

fn little_endian_word(bytes: &[u8]) -> u64 {
    let byte = |word, byte: &u8| word << 8 | u64::from(*byte);
    bytes.iter().rev().fold(0, byte)
}

/// The words of an array of the export, in order.
pub fn words_of(array: &Array) -> Vec<u64> {
    let size = array.dtype().item_size();
    bytes(array)
        .chunks_exact(size)
        .map(little_endian_word)
        .collect()
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
                let bits = 8 * array.dtype().item_size();
                write(&path, &array, bits, format).unwrap();
                let again = read(&path, format, array.dtype(), bits, array.shape()).unwrap();
                assert_eq!(
                    bytes(&again),
                    bytes(&array),
                    "{} {format:?}",
                    array.describe()
                );
            }
        }
        assert_eq!(
            hex(&array(&[-2i16, 10]), 16, Format::Mem),
            "@0\nfffe\n000a\n"
        );
    }

    /// A register of 13 bits has words of four digits, whose sign comes back; what it cannot hold is refused.
    #[test]
    fn words_are_as_wide_as_in_hardware() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.hex");
        for (array, text) in [
            (array(&[-4096i32, -1, 4095]), "1000\n1fff\n0fff\n"),
            (array(&[0u32, 8191, 4096]), "0000\n1fff\n1000\n"),
        ] {
            write(&path, &array, 13, Format::Hex).unwrap();
            assert_eq!(std::fs::read_to_string(&path).unwrap(), text);
            let again = read(&path, Format::Hex, array.dtype(), 13, array.shape()).unwrap();
            assert_eq!(bytes(&again), bytes(&array));
        }
        for (word, good) in [
            ("fffff000", true),
            ("f000", true),
            ("2fff", false),
            ("effff000", false),
        ] {
            std::fs::write(&path, word).unwrap();
            let found = Dump::read(&path, DType::I32, 13, 1);
            let found = found.map(|dump| dump.words).map_err(|e| e.to_string());
            match good {
                true => assert_eq!(found, Ok(vec![Some(0xffff_f000)]), "{word}"),
                false => assert!(found.unwrap_err().contains("word of 13 bits"), "{word}"),
            }
        }
    }

    #[test]
    fn what_simulators_write_is_read_and_what_is_off_is_counted() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.hex");
        let read = |text: &str| {
            std::fs::write(&path, text).unwrap();
            read(&path, Format::Hex, DType::I8, 8, &[3]).map_err(|e| e.to_string())
        };
        let whole = array(&[-1i8, 1, 127]);
        assert_eq!(
            read("// dump\n@00000000\nff 0_1\n@2\n7F // last\n").unwrap(),
            whole
        );
        assert_eq!(
            read("\u{feff}@1 01 7f /* up */\r\n@0 ffffffff\r\n").unwrap(),
            whole
        );
        for (text, part) in [
            (
                "ff\n x1\n00\n",
                "line 2, column 2: expected a known word of 8 bits, found x or z",
            ),
            (
                "ff\n1ff\n00\n",
                "line 2, column 1: expected a hexadecimal word of 8 bits, found 1ff",
            ),
            ("ff\n@5\n00\n", "expected 3 words of 8 bits, found 2 words"),
            ("ff\n00\n", "expected 3 words of 8 bits, found 2 words"),
            ("0 0 0 0", "expected 3 words of 8 bits, found 4 words"),
        ] {
            let error = read(text).unwrap_err();
            assert!(error.contains(part), "{error}");
        }
        let dump = |name: &str, contents: &[u8]| {
            let path = folder.path().join(name);
            std::fs::write(&path, contents).unwrap();
            let dump = Dump::read(&path, DType::I16, 16, 3).unwrap();
            (dump.words, dump.unknown, dump.missing, dump.extra)
        };
        assert_eq!(
            dump("d.hex", b"ffff zz01"),
            (vec![Some(65535), None, None], 1, 1, 0)
        );
        assert_eq!(
            dump("d.hex", b"@3 1 @ffffffffffffffff 2"),
            (vec![None; 3], 0, 3, 2)
        );
        assert_eq!(
            dump("d.bin", b"\x01\0\xff\xff\x02"),
            (vec![Some(1), Some(65535), None], 1, 0, 0)
        );
        let path = folder.path().join("d.npy");
        write_npy(&path, &array(&[-1i64, 2, 3, 4])).unwrap();
        let read = Dump::read(&path, DType::I16, 16, 3).unwrap();
        assert_eq!(
            (read.words, read.extra),
            (vec![Some(65535), Some(2), Some(3)], 1)
        );
        write_npy(&path, &array(&[40000i64])).unwrap();
        assert!(Dump::read(&path, DType::I16, 16, 3).is_err());
    }
}
