//! Writing what [`super::TorchFile`] reads: a dict as `torch.save` writes it, pickle protocol 2, tensors on
//! the CPU.

use half::f16;
use safetensors::Dtype;
use std::borrow::Cow;
use std::io::{self, Seek, Write};
use zip::write::SimpleFileOptions;
use zip::{CompressionMethod, ZipWriter};

/// torch aligns storages to this many bytes.
const ALIGNMENT: u16 = 64;

/// Elements of a storage, in the order of the file.
#[derive(Clone, Debug)]
pub enum Elements<'a> {
    /// Binary16.
    F16(Cow<'a, [f16]>),
    /// FP32.
    F32(Cow<'a, [f32]>),
    /// INT8.
    I8(Cow<'a, [i8]>),
    /// 32-bit integers.
    I32(Cow<'a, [i32]>),
}

impl Elements<'_> {
    fn dtype(&self) -> Dtype {
        match self {
            Elements::F16(_) => Dtype::F16,
            Elements::F32(_) => Dtype::F32,
            Elements::I8(_) => Dtype::I8,
            Elements::I32(_) => Dtype::I32,
        }
    }

    /// torch's class of storages.
    fn class(&self) -> &'static str {
        match self {
            Elements::F16(_) => "HalfStorage",
            Elements::F32(_) => "FloatStorage",
            Elements::I8(_) => "CharStorage",
            Elements::I32(_) => "IntStorage",
        }
    }

    fn len(&self) -> usize {
        match self {
            Elements::F16(values) => values.len(),
            Elements::F32(values) => values.len(),
            Elements::I8(values) => values.len(),
            Elements::I32(values) => values.len(),
        }
    }

    fn write_to(&self, out: &mut impl Write) -> io::Result<()> {
        fn each<T: Copy, const N: usize>(
            out: &mut impl Write,
            values: &[T],
            bytes: impl Fn(T) -> [u8; N],
        ) -> io::Result<()> {
            let mut buffer = Vec::new();
            for chunk in values.chunks(1 << 15) {
                buffer.clear();
                buffer.extend(chunk.iter().flat_map(|v| bytes(*v)));
                out.write_all(&buffer)?;
            }
            Ok(())
        }
        match self {
            Elements::I8(values) => out.write_all(bytemuck::cast_slice(values)),
            Elements::F16(values) => each(out, values, f16::to_le_bytes),
            Elements::F32(values) => each(out, values, f32::to_le_bytes),
            Elements::I32(values) => each(out, values, i32::to_le_bytes),
        }
    }
}

/// What a key of the dict gets.
#[derive(Clone, Debug)]
pub enum Value<'a> {
    /// A Python float.
    Number(f64),
    /// A tensor with a storage of its own.
    Tensor {
        /// Lengths of the axes.
        shape: Vec<usize>,
        /// Elements from one to the next along each axis.
        strides: Vec<usize>,
        /// The storage.
        elements: Elements<'a>,
    },
}

impl<'a> Value<'a> {
    /// A tensor in row-major order.
    pub fn tensor(shape: &[usize], elements: Elements<'a>) -> Self {
        Self::Tensor {
            shape: shape.to_vec(),
            strides: super::super::tensor::row_major(shape),
            elements,
        }
    }

    /// A matrix stored column after column: strides (1, rows).
    pub fn columns([rows, columns]: [usize; 2], elements: Elements<'a>) -> Self {
        Self::Tensor {
            shape: vec![rows, columns],
            strides: vec![1, rows],
            elements,
        }
    }
}

/// Writes a dict. `folder` is the name of the archive's one folder; `torch.save` takes the file's.
///
/// # Errors
///
/// The stream's.
pub fn write_to(
    out: impl Write + Seek,
    folder: &str,
    entries: &[(String, Value<'_>)],
) -> io::Result<()> {
    let mut zip = ZipWriter::new(out);
    let member = |zip: &mut ZipWriter<_>, name: &str, large: bool| {
        let options = SimpleFileOptions::default()
            .compression_method(CompressionMethod::Stored)
            .last_modified_time(zip::DateTime::default())
            .large_file(large)
            .with_alignment(ALIGNMENT);
        zip.start_file(format!("{folder}/{name}"), options)
    };
    member(&mut zip, "data.pkl", false)?;
    zip.write_all(&pickled(entries))?;
    for (name, content) in [
        (".format_version", "1"),
        (".storage_alignment", "64"),
        ("byteorder", "little"),
    ] {
        member(&mut zip, name, false)?;
        zip.write_all(content.as_bytes())?;
    }
    let tensors = entries.iter().filter_map(|(_, value)| match value {
        Value::Tensor { elements, .. } => Some(elements),
        Value::Number(_) => None,
    });
    for (key, elements) in tensors.enumerate() {
        let bytes = elements.len() as u64 * elements.dtype().bitsize() as u64 / 8;
        member(&mut zip, &format!("data/{key}"), bytes >= u32::MAX.into())?;
        elements.write_to(&mut zip)?;
    }
    member(&mut zip, "version", false)?;
    zip.write_all(b"3\n")?;
    zip.finish()?.flush()
}

/// The dict, its tensors in storages 0, 1, …
fn pickled(entries: &[(String, Value<'_>)]) -> Vec<u8> {
    const EMPTY_DICT: &[u8] = b"ccollections\nOrderedDict\n)R";
    let mut out = b"\x80\x02".to_vec();
    out.extend(EMPTY_DICT);
    out.push(b'(');
    let mut key = 0;
    for (name, value) in entries {
        text(&mut out, name);
        match value {
            Value::Number(value) => {
                out.push(b'G');
                out.extend(value.to_be_bytes());
            }
            Value::Tensor {
                shape,
                strides,
                elements,
            } => {
                out.extend(b"ctorch._utils\n_rebuild_tensor_v2\n((");
                text(&mut out, "storage");
                out.extend(b"ctorch\n");
                out.extend(elements.class().as_bytes());
                out.push(b'\n');
                text(&mut out, &key.to_string());
                text(&mut out, "cpu");
                size(&mut out, elements.len());
                out.extend(b"tQ");
                size(&mut out, 0);
                for axes in [shape, strides] {
                    out.push(b'(');
                    axes.iter().for_each(|n| size(&mut out, *n));
                    out.push(b't');
                }
                // No gradient, no hooks.
                out.push(0x89);
                out.extend(EMPTY_DICT);
                out.extend(b"tR");
                key += 1;
            }
        }
    }
    out.extend(b"u.");
    out
}

fn text(out: &mut Vec<u8>, text: &str) {
    out.push(b'X');
    out.extend((text.len() as u32).to_le_bytes());
    out.extend(text.as_bytes());
}

/// An integer of 9 bytes: any size without a sign.
fn size(out: &mut Vec<u8>, value: usize) {
    match i32::try_from(value) {
        Ok(value) => {
            out.push(b'J');
            out.extend(value.to_le_bytes());
        }
        Err(_) => {
            out.extend([0x8a, 8]);
            out.extend((value as i64).to_le_bytes());
        }
    }
}
