use super::*;
use half::f16;
use ndarray::{ArrayD, IxDyn};
use proptest::prelude::*;
use std::io::Write;
use std::path::PathBuf;
use zip::write::SimpleFileOptions;

fn folder() -> tempfile::TempDir {
    tempfile::tempdir().unwrap()
}

fn ramp<T: Element>(shape: &[usize], f: impl Fn(usize) -> T) -> Array {
    let count = shape.iter().product();
    T::wrap(ArrayD::from_shape_vec(IxDyn(shape), (0..count).map(f).collect()).unwrap())
}

/// One array of each type and of each number of axes.
fn zoo() -> Vec<(String, Array)> {
    let mut zoo = Vec::new();
    for shape in [
        &[][..],
        &[5],
        &[2, 3],
        &[2, 0, 3],
        &[2, 3, 4],
        &[1, 2, 3, 4],
    ] {
        let arrays = [
            ramp(shape, |i| i % 2 == 1),
            ramp(shape, |i| (i as i32 - 128) as i8),
            ramp(shape, |i| (255 - i) as u8),
            ramp(shape, |i| i as i16 - 30_000),
            ramp(shape, |i| 65_535 - i as u16),
            ramp(shape, |i| i32::MIN + i as i32),
            ramp(shape, |i| u32::MAX - i as u32),
            ramp(shape, |i| i64::MIN + i as i64),
            ramp(shape, |i| u64::MAX - i as u64),
            ramp(shape, |i| f16::from_f32(i as f32 * 0.25 - 1.0)),
            ramp(shape, |i| f32::from_bits(i as u32)),
            ramp(shape, |i| -1.0 / (i as f64)),
        ];
        for array in arrays {
            zoo.push((
                format!(
                    "{}/{}",
                    array.dtype().name(),
                    shape.len() * 10 + array.len()
                ),
                array,
            ));
        }
    }
    zoo
}

fn as_refs(arrays: &[(String, Array)]) -> impl Iterator<Item = (&str, &Array)> {
    arrays.iter().map(|(name, array)| (name.as_str(), array))
}

#[test]
fn every_type_and_shape_round_trips() {
    let folder = folder();
    let zoo = zoo();
    assert_eq!(zoo.len(), 6 * DType::ALL.len());
    for compression in [Compression::Stored, Compression::Deflate] {
        let path = folder.path().join("zoo.npz");
        write_npz(&path, as_refs(&zoo), compression).unwrap();
        assert!(is_npz(&path).unwrap());
        let back = read_npz(&path).unwrap();
        assert_eq!(back.len(), zoo.len());
        for (name, array) in &zoo {
            // PartialEq on floats would call NaN unequal and -0 equal; the zoo has neither.
            assert_eq!(&back[name], array, "{name}");
        }
    }
    for (_, array) in &zoo {
        let path = folder.path().join("one.npy");
        write_npy(&path, array).unwrap();
        assert!(!is_npz(&path).unwrap());
        assert_eq!(&read_npy(&path).unwrap(), array);
    }
}

#[test]
fn the_same_arrays_give_the_same_bytes() {
    let folder = folder();
    let (a, b) = (folder.path().join("a.npz"), folder.path().join("b.npz"));
    write_npz(&a, as_refs(&zoo()), Compression::Deflate).unwrap();
    std::thread::sleep(std::time::Duration::from_millis(2100)); // zip counts time in 2 s
    write_npz(&b, as_refs(&zoo()), Compression::Deflate).unwrap();
    assert_eq!(std::fs::read(a).unwrap(), std::fs::read(b).unwrap());
    // Nothing else is left in the folder.
    assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 2);
}

/// A .npy as NumPy writes it, with any header text.
fn npy(header: &str, data: &[u8]) -> Vec<u8> {
    let mut bytes = b"\x93NUMPY\x01\x00".to_vec();
    bytes.extend((header.len() as u16).to_le_bytes());
    bytes.extend(header.as_bytes());
    bytes.extend(data);
    bytes
}

fn header(descr: &str, fortran: &str, shape: &str) -> String {
    format!("{{'descr': {descr}, 'fortran_order': {fortran}, 'shape': {shape}, }}\n")
}

fn read_bytes(bytes: &[u8]) -> scalescope_sim::error::Result<Array> {
    let folder = folder();
    let path = folder.path().join("x.npy");
    std::fs::write(&path, bytes).unwrap();
    read_npy(&path)
}

#[test]
fn both_byte_orders_and_memory_orders() {
    let values: Vec<i16> = vec![1, -2, 300, 4, 5, -600];
    let little: Vec<u8> = values.iter().flat_map(|v| v.to_le_bytes()).collect();
    let big: Vec<u8> = values.iter().flat_map(|v| v.to_be_bytes()).collect();
    let c = ArrayD::from_shape_vec(IxDyn(&[2, 3]), values).unwrap();
    let f = ArrayD::from_shape_vec(IxDyn(&[2, 3]), vec![1i16, 300, 5, -2, 4, -600]).unwrap();
    for (descr, order, data, expected) in [
        ("'<i2'", "False", &little, &c),
        ("'>i2'", "False", &big, &c),
        ("'<i2'", "True", &little, &f),
        ("'>i2'", "True", &big, &f),
        ("'i2'", "False", &little, &c),
    ] {
        let array = read_bytes(&npy(&header(descr, order, "(2, 3)"), data)).unwrap();
        let Array::I16(array) = array else {
            panic!("{descr}")
        };
        assert_eq!(&array, expected, "{descr} {order}");
        assert!(array.is_standard_layout());
    }
}

#[test]
fn hostile_headers_are_refused_by_name() {
    let many = format!("({})", "1,".repeat(40));
    let deep = "(".repeat(9_000);
    let cases: &[(&str, &str, &str, &str)] = &[
        ("'|O'", "False", "(1,)", "pickled"),
        ("'O'", "False", "(1,)", "pickled"),
        (
            "[('a', '<i4'), ('b', '<f4')]",
            "False",
            "(1,)",
            "structured",
        ),
        ("'<c8'", "False", "(1,)", "dtype '<c8'"),
        ("'<U3'", "False", "(1,)", "dtype '<U3'"),
        ("'|i2'", "False", "(1,)", "dtype '|i2'"),
        ("'<i1", "False", "(1,)", "npy header"),
        ("'<i1\u{1b}[2J'", "False", "(1,)", "\\u{1b}"),
        ("'|i1'", "false", "(1,)", "fortran_order"),
        ("'|i1'", "False", "(-1,)", "axis lengths"),
        (
            "'|i1'",
            "False",
            "(99999999999999999999999,)",
            "axis lengths",
        ),
        (
            "'<f8'",
            "False",
            "(4294967296, 4294967296, 4294967296)",
            "counted",
        ),
        (
            "'<f8'",
            "False",
            "(0, 4294967296, 4294967296, 2)",
            "counted",
        ),
        ("'|i1'", "False", "(9223372036854775808,)", "counted"),
        ("'<i8'", "False", "(0, 9223372036854775808)", "counted"),
        ("'|i1'", "False", "(4000000000000,)", "4000000000000 bytes"),
        ("'|i1'", "False", &many, "at most 4 axes"),
        ("'|i1'", "False", &deep, "axis lengths"),
        ("'|i1'", "False", "(8,), 'shape': (8,)", "key 'shape'"),
        ("'|i1'", "False", "(8,), 'extra': 1", "key 'extra'"),
        ("'|i1'", "False", "(8,)} {", "behind"),
    ];
    for (descr, order, shape, word) in cases {
        let error = read_bytes(&npy(&header(descr, order, shape), &[0; 8])).unwrap_err();
        let text = error.to_string();
        assert!(text.contains(word), "{shape:.40}: {text}");
        assert!(
            text.contains("x.npy") && text.contains("expected"),
            "{text}"
        );
        assert!(!text.contains('\u{1b}'), "{text}");
    }
    for bytes in [
        &b""[..],
        b"\x93NUMPY",
        b"PK\x03\x04",
        b"\x93NUMPY\x09\x00\x10\x00",
    ] {
        assert!(read_bytes(bytes).is_err());
    }
    // A header that claims 4 GiB of text.
    let error = read_bytes(b"\x93NUMPY\x02\x00\xff\xff\xff\xff{").unwrap_err();
    assert!(error.to_string().contains("at most 10000"), "{error}");
}

#[test]
fn too_little_and_too_much_data_are_refused() {
    for length in [0, 7, 9] {
        let error =
            read_bytes(&npy(&header("'|i1'", "False", "(8,)"), &vec![0; length])).unwrap_err();
        assert!(error.to_string().contains("8 bytes of data"), "{error}");
    }
}

/// An archive of raw members, names and contents as given.
fn archive(members: &[(&str, &[u8])]) -> Vec<u8> {
    let mut zip = zip::ZipWriter::new(std::io::Cursor::new(Vec::new()));
    for (name, data) in members {
        zip.start_file(*name, SimpleFileOptions::default()).unwrap();
        zip.write_all(data).unwrap();
    }
    zip.finish().unwrap().into_inner()
}

fn open_bytes(bytes: &[u8]) -> (tempfile::TempDir, PathBuf) {
    let folder = folder();
    let path = folder.path().join("t.npz");
    std::fs::write(&path, bytes).unwrap();
    (folder, path)
}

fn refusal(bytes: &[u8]) -> String {
    let (_folder, path) = open_bytes(bytes);
    read_npz(&path).unwrap_err().to_string()
}

#[test]
fn hostile_archives_are_refused_by_name() {
    let good = npy(&header("'|i1'", "False", "(8,)"), &[7; 8]);
    let (_folder, path) = open_bytes(&archive(&[("b/", b""), ("b/a.npy", &good)]));
    assert_eq!(read_npz(path).unwrap().len(), 1);
    for name in [
        "../a.npy", "/a.npy", "a", "a.NPY", ".npy", "a//b.npy", "a\\b.npy", "a\nb.npy", "./a.npy",
    ] {
        let text = refusal(&archive(&[(name, &good)]));
        assert!(text.contains("member name"), "{name}: {text}");
        assert!(!text.contains('\n'));
    }
    // Two members of one name: write two names, rename one in the bytes.
    let mut bytes = archive(&[("aa.npy", &good), ("ab.npy", &good)]);
    for at in 0..bytes.len() - 6 {
        if &bytes[at..at + 6] == b"ab.npy" {
            bytes[at + 1] = b'a';
        }
    }
    assert!(refusal(&bytes).contains("one member for each name"));
    // Not a zip at all, an empty file, a folder, nothing.
    assert!(refusal(b"hello").contains("zip"));
    assert!(refusal(b"").contains("zip"));
    assert!(read_npz(std::env::temp_dir()).is_err());
    assert!(
        read_npz("/nonexistent/t.npz")
            .unwrap_err()
            .to_string()
            .contains("/nonexistent/t.npz")
    );
}

#[test]
fn a_claim_of_more_than_there_is_allocates_nothing() {
    // 2^40 bytes claimed by the header, 8 there.
    let liar = npy(&header("'|i1'", "False", "(1099511627776,)"), &[0; 8]);
    let text = refusal(&archive(&[("a.npy", &liar)]));
    assert!(text.contains("a: expected 1099511627776 bytes"), "{text}");
    // The zip directory claims as much as the header: 4 GB from a few bytes.
    let claim = 4_000_000_000u32;
    let header = header("'|i1'", "False", &format!("({claim},)"));
    let liar = npy(&header, &[0; 8]);
    let mut bytes = archive(&[("a.npy", &liar)]);
    let directory = bytes.windows(4).position(|w| w == b"PK\x01\x02").unwrap();
    let total = claim + header.len() as u32 + 10;
    bytes[directory + 24..directory + 28].copy_from_slice(&total.to_le_bytes());
    let text = refusal(&bytes);
    assert!(text.contains("100 times"), "{text}");
    // A claim small enough to be believed, but false.
    let liar = npy(&self::header("'|i1'", "False", "(10000,)"), &[0; 8]);
    let total = liar.len() as u32 - 8 + 10_000;
    let mut bytes = archive(&[("a.npy", &liar)]);
    let directory = bytes.windows(4).position(|w| w == b"PK\x01\x02").unwrap();
    bytes[directory + 24..directory + 28].copy_from_slice(&total.to_le_bytes());
    let text = refusal(&bytes);
    assert!(text.contains("10000 bytes"), "{text}");
}

#[test]
fn any_flipped_bit_of_the_data_is_noticed() {
    let data: Vec<u8> = (0..64).map(|i| (i * 37) as u8).collect();
    let good = npy(&header("'|u1'", "False", "(64,)"), &data);
    let bytes = archive(&[("a.npy", &good)]);
    let (_folder, path) = open_bytes(&bytes);
    let original = read_npz(&path).unwrap();
    let (mut refused, mut same) = (0, 0);
    for bit in 0..bytes.len() * 8 {
        let mut broken = bytes.clone();
        broken[bit / 8] ^= 1 << (bit % 8);
        std::fs::write(&path, &broken).unwrap();
        match read_npz(&path) {
            Err(_) => refused += 1,
            // Times, attributes, versions: bits that say nothing of the data. A name may change.
            Ok(arrays) => {
                assert_eq!(
                    arrays.values().next(),
                    original.values().next(),
                    "bit {bit}"
                );
                same += 1;
            }
        }
    }
    assert!(refused > same, "{refused} {same}");
}

#[test]
fn a_file_cut_anywhere_is_refused() {
    let good = npy(&header("'|u1'", "False", "(64,)"), &[9; 64]);
    let bytes = archive(&[("a.npy", &good), ("b.npy", &good)]);
    let (_folder, path) = open_bytes(&bytes);
    for length in 0..bytes.len() {
        std::fs::write(&path, &bytes[..length]).unwrap();
        assert!(read_npz(&path).is_err(), "{length}");
    }
}

#[test]
fn output_that_cannot_be_written_is_an_error_and_leaves_nothing() {
    let one = Array::scalar(1.0f32);
    for path in ["/nonexistent/x.npz", "/dev/null", "/", ""] {
        let error = write_npz(path, [("a", &one)], Compression::Stored).unwrap_err();
        assert!(error.to_string().contains(path), "{error}");
        assert!(write_npy(path, &one).is_err());
    }
    let folder = folder();
    let path = folder.path().join("x.npz");
    std::fs::write(&path, "before").unwrap();
    let mut writer = NpzWriter::create(&path, Compression::Deflate).unwrap();
    writer.add("a", &one).unwrap();
    assert!(writer.add("a", &one).is_err());
    drop(writer);
    assert_eq!(std::fs::read(&path).unwrap(), b"before");
    assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 1);
    write_npz(&path, [("a", &one)], Compression::Deflate).unwrap();
    assert_eq!(read_npz(&path).unwrap()["a"], one);
}

proptest! {
    #[test]
    fn random_bytes_never_panic(bytes in prop::collection::vec(any::<u8>(), 0..300), prefix in 0usize..3) {
        let mut data = [&b""[..], b"\x93NUMPY\x01\x00\x76\x00{'descr': '", b"PK\x03\x04"][prefix].to_vec();
        data.extend(bytes);
        let (_folder, path) = open_bytes(&data);
        prop_assert!(read_npz(&path).is_err());
        let _ = read_npy(&path);
    }

    #[test]
    fn damaged_archives_never_panic(
        edits in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..6)
    ) {
        let good = npy(&header("'<f4'", "True", "(2, 8)"), &[9; 64]);
        let mut bytes = archive(&[("layer_00/a.npy", &good), ("b.npy", &good)]);
        for (at, value) in edits {
            let at = at.index(bytes.len());
            bytes[at] = value;
        }
        let (_folder, path) = open_bytes(&bytes);
        if let Ok(arrays) = read_npz(&path) {
            for array in arrays.values() {
                prop_assert!(array.len() <= 64);
            }
        }
    }
}
