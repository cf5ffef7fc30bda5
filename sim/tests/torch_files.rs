//! Files of `torch.save`: what is read, and what is refused in which words. The files come from
//! Python's own pickle (`fuzz/torch_seeds.py`) and from our writer.

use crate::checkpoint_files::says;
use half::f16;
use scalescope_sim::checkpoint::tensor::Dtype;
use scalescope_sim::checkpoint::torch::write::{Elements, Value, write_to};
use scalescope_sim::checkpoint::torch::{Found, TorchFile};
use scalescope_sim::error::{Result, SimError};
use std::io::Cursor;
use std::path::{Path, PathBuf};

fn seed(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("../fuzz/corpus/torch")
        .join(name)
}

fn open(name: &str) -> Result<TorchFile<'static>> {
    TorchFile::open(&seed(name))
}

#[test]
fn files_of_every_protocol_say_the_same() {
    for name in [
        "protocol-2",
        "protocol-3",
        "protocol-4",
        "protocol-5",
        "a-plain-dict",
    ] {
        let file = open(name).unwrap();
        let names: Vec<&str> = file.entries().map(|(name, _)| name).collect();
        let all = "columns halves ids inner layers nothing rows scale";
        assert_eq!(names.join(" "), all, "{name}");
        let codes = |name| file.any_tensor(name).unwrap().codes().unwrap();
        // Element (i, j) of the matrix stored by columns is i + 4j.
        assert_eq!(codes("columns"), [0, 4, 8, 1, 5, 9, 2, 6, 10, 3, 7, 11]);
        assert_eq!(codes("rows"), (0..12).collect::<Vec<i8>>());
        assert_eq!(codes("inner"), [5, 6, 9, 10]);
        let turned = file.any_tensor("columns").unwrap().transposed();
        assert_eq!(turned.shape(), [3, 4]);
        assert_eq!(turned.codes().unwrap(), codes("rows"));
        let halves = file.tensor("halves", &[4]).unwrap().exact_f16().unwrap();
        assert_eq!(halves, [1.0, -2.0, 0.5, 65504.0].map(f16::from_f32));
        let ids = file.any_tensor("ids").unwrap();
        assert_eq!((ids.dtype(), ids.shape()), (Dtype::I64, &[1, 3][..]));
        assert_eq!(ids.bytes()[8..16], (-6i64).to_le_bytes());
        assert_eq!(file.get("scale"), Some(&Found::Number(0.25)));
        assert_eq!(file.number("scale").unwrap(), 0.25);
        assert_eq!(file.get("layers"), Some(&Found::Integer(3)));
        assert_eq!(file.get("nothing"), Some(&Found::Other("None")));
        says(file.number("nothing"), &["nothing", "a number", "None"]);
        says(file.any_tensor("scale"), &["scale", "a tensor", "a number"]);
        says(file.tensor("rows", &[4, 3]), &["rows", "[4, 3]", "[3, 4]"]);
        says(
            file.tensor("other", &[1]),
            &["other", "no tensor of that name"],
        );
    }
}

#[test]
fn hostile_files_are_refused_by_name() {
    for (name, words) in [
        (
            "asks-for-system",
            &["data.pkl", "tensors and numbers alone", "system"][..],
        ),
        (
            "asks-for-eval",
            &["data.pkl", "tensors and numbers alone", "eval"],
        ),
        (
            "a-stride-beyond",
            &["within its storage of 12 elements", "strides [1, 5]"],
        ),
        (
            "an-offset-beyond",
            &["within its storage of 12 elements", "offset 1"],
        ),
        (
            "one-element-a-billion-times",
            &["within its storage of 12", "[1073741824]"],
        ),
        ("shapes-that-overflow", &["within its storage of 12"]),
        (
            "a-storage-cut-short",
            &["12 elements of I8 in m/data/0", "11 bytes"],
        ),
        ("big-endian", &["byteorder", "little", "big"]),
        ("a-bomb", &["a stored member", "packed"]),
        ("legacy", &["zip archive of torch.save", "before torch 1.6"]),
        ("two-of-one-name", &["a", "one entry of a name", "two"]),
        ("deep", &["a dict of tensors", "a tuple"]),
        ("marks", &["data.pkl"]),
    ] {
        let message = says(open(name), words);
        assert!(message.contains(name), "{message}");
    }
}

/// A pickle in an archive of its own, with one storage of 12 bytes.
fn with_pickle(pickle: &[u8]) -> Vec<u8> {
    use std::io::Write;
    let mut zip = zip::ZipWriter::new(Cursor::new(Vec::new()));
    let options =
        zip::write::SimpleFileOptions::default().compression_method(zip::CompressionMethod::Stored);
    for (name, data) in [("m/data.pkl", pickle), ("m/data/0", &[0; 12])] {
        zip.start_file(name, options).unwrap();
        zip.write_all(data).unwrap();
    }
    zip.finish().unwrap().into_inner()
}

fn read(bytes: &[u8]) -> Result<(), SimError> {
    TorchFile::from_bytes(Path::new("a.bin"), bytes).map(drop)
}

#[test]
fn pickles_that_mean_nothing_are_refused() {
    for (pickle, word) in [
        (&b"\x80\x02}."[..], ""),
        (b"\x80\x02}", "its end"),
        (b"\x80\x01}.", "protocol 2 to 5"),
        (b"\x80\x02.", "a value on the stack"),
        (b"\x80\x02K\x01.", "an integer"),
        (b"\x80\x02}K\x01K\x02s.", "names for keys"),
        (b"\x80\x02}(K\x01u.", "a value for each key"),
        (b"\x80\x02h\x07.", "a value stored before"),
        (b"\x80\x02(K\x01h", "its end"),
        (b"\x80\x02u.", "a mark"),
        (b"\x80\x02K\x01(K\x02\x86.", "too few"),
        (b"\x80\x02)R.", "a value on the stack"),
        (b"\x80\x02K\x01)R.", "a function of torch"),
        (b"\x80\x02K\x01K\x01R.", "a tuple of arguments"),
        (
            b"\x80\x02ctorch._utils\n_rebuild_tensor_v2\n)R.",
            "the arguments of a tensor",
        ),
        (b"\x80\x02K\x01Q.", "('storage'"),
        (b"\x80\x02K\x01}b.", "attributes of a dict"),
        (b"\x80\x02i", "instruction 0x69"),
        (b"\x80\x02\x8a\x09123456789.", "at most 64 bits"),
        (b"\x80\x02X\x02\0\0\0\xff\xff.", "UTF-8"),
    ] {
        let result = read(&with_pickle(pickle));
        match word {
            "" => result.unwrap(),
            word => drop(says(result, &["a.bin", "data.pkl", word])),
        }
    }
    // Nesting costs no stack.
    let deep = [&b"\x80\x02)"[..], &[0x85; 3_000_000], b"."].concat();
    says(read(&with_pickle(&deep)), &["a tuple"]);
}

fn dict() -> Vec<(String, Value<'static>)> {
    let codes: Vec<i8> = (-60..60).collect();
    let reals: Vec<f32> = vec![1.5, -2.25];
    vec![
        (
            "w".into(),
            Value::columns([12, 10], Elements::I8(codes.into())),
        ),
        ("s".into(), Value::Number(0.1f32.into())),
        (
            "a".into(),
            Value::tensor(&[1, 2], Elements::F32(reals.into())),
        ),
        (
            "z".into(),
            Value::tensor(&[], Elements::F32(vec![7.0].into())),
        ),
        (
            "packed".into(),
            Value::tensor(&[2, 1], Elements::I32(vec![-1, 9].into())),
        ),
    ]
}

fn written() -> Vec<u8> {
    let mut out = Cursor::new(Vec::new());
    write_to(&mut out, "pytorch_model", &dict()).unwrap();
    out.into_inner()
}

#[test]
fn what_is_written_is_read_back() {
    let bytes = written();
    let file = TorchFile::from_bytes(Path::new("a.bin"), &bytes).unwrap();
    let weight = file.tensor("w", &[12, 10]).unwrap().transposed();
    assert_eq!(weight.codes().unwrap(), (-60..60).collect::<Vec<i8>>());
    let Some(Found::Tensor(view)) = file.get("w") else {
        panic!("a tensor")
    };
    assert_eq!(
        (view.shape(), view.strides()),
        (&[12, 10][..], &[1, 12][..])
    );
    assert_eq!(file.number("s").unwrap(), 0.1);
    assert_eq!(file.number("z").unwrap(), 7.0);
    says(file.number("a"), &["a:", "one element", "[1, 2]"]);
    assert_eq!(
        file.tensor("packed", &[2, 1]).unwrap().integers().unwrap(),
        [-1, 9]
    );
    assert_eq!(
        file.tensor("a", &[1, 2]).unwrap().to_f32().unwrap(),
        [1.5, -2.25]
    );
    // One bit of the weight.
    let at = bytes
        .windows(4)
        .position(|w| w == [196, 197, 198, 199])
        .unwrap();
    let mut broken = bytes.clone();
    broken[at] ^= 1;
    let broken = TorchFile::from_bytes(Path::new("a.bin"), &broken).unwrap();
    assert_eq!(
        broken
            .any_tensor("w")
            .unwrap()
            .transposed()
            .codes()
            .unwrap()[0],
        -59
    );
}

#[test]
fn a_file_cut_anywhere_is_refused() {
    let bytes = written();
    for end in (0..bytes.len()).step_by(7) {
        assert!(
            read(&bytes[..end]).is_err(),
            "{end} of {} bytes",
            bytes.len()
        );
    }
    says(
        read(b"version https://git-lfs.github.com/spec/v1"),
        &["Git LFS pointer"],
    );
    says(
        read(b"#!/bin/sh"),
        &["zip archive of torch.save", "other data"],
    );
}
