//! Every command that reads arrays, on arrays in awkward but legal forms: big-endian, by columns, without
//! axes. The same result as on the plain form, or a refusal that names the array.

use crate::awkward::{Bench, npy, rewritten};
use crate::common::{arg, refusal, run};
use ndarray::ArrayD;
use scalescope_golden::npz::{Array, NpzReader, read_npz};
use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use zip::CompressionMethod::Stored;
use zip::write::SimpleFileOptions;

#[derive(Clone, Copy, Debug)]
enum Form {
    BigEndian,
    /// The first axis fastest.
    Columns,
    /// Both.
    BigEndianColumns,
}

const FORMS: [Form; 3] = [Form::BigEndian, Form::Columns, Form::BigEndianColumns];

/// An array as a `.npy` of another form.
fn formed(array: &Array, form: Form) -> Vec<u8> {
    fn of<T: Copy>(
        a: &ArrayD<T>,
        form: Form,
        kind: &str,
        bytes: impl Fn(T, bool) -> Vec<u8>,
    ) -> Vec<u8> {
        let big = !matches!(form, Form::Columns);
        let columns = !matches!(form, Form::BigEndian);
        let mut data = Vec::new();
        match columns {
            true => a.t().iter().for_each(|v| data.extend(bytes(*v, big))),
            false => a.iter().for_each(|v| data.extend(bytes(*v, big))),
        }
        let order = if big { '>' } else { '<' };
        let lengths: String = a.shape().iter().map(|n| format!("{n}, ")).collect();
        npy(
            &format!("{order}{kind}"),
            columns,
            &format!("({lengths})"),
            &data,
        )
    }
    macro_rules! of {
        ($a:expr, $kind:literal) => {
            of($a, form, $kind, |v, big| match big {
                true => v.to_be_bytes().to_vec(),
                false => v.to_le_bytes().to_vec(),
            })
        };
    }
    match array {
        Array::I8(a) => of!(a, "i1"),
        Array::U8(a) => of!(a, "u1"),
        Array::I32(a) => of!(a, "i4"),
        Array::I64(a) => of!(a, "i8"),
        Array::F16(a) => of!(a, "f2"),
        Array::F32(a) => of!(a, "f4"),
        other => panic!("{}", other.describe()),
    }
}

/// A `.npz` with every array in another form, but for those that `other` gives.
fn reformed(plain: &Path, to: &Path, form: Form, other: impl Fn(&str) -> Option<Vec<u8>>) {
    let mut zip = zip::ZipWriter::new(fs::File::create(to).unwrap());
    let mut npz = NpzReader::open(plain).unwrap();
    let names: Vec<String> = npz.names().map(str::to_owned).collect();
    for name in names {
        let bytes = other(&name).unwrap_or_else(|| formed(&npz.read(&name).unwrap(), form));
        let options = SimpleFileOptions::default().compression_method(Stored);
        zip.start_file(format!("{name}.npy"), options).unwrap();
        zip.write_all(&bytes).unwrap();
    }
    zip.finish().unwrap();
}

/// Exit code and standard output, the name of the file taken out.
fn said(args: &[&str], file: &Path) -> (Option<i32>, String) {
    let out = run(args);
    let text = String::from_utf8(out.stdout).unwrap();
    assert!(
        !text.is_empty(),
        "{args:?}: {}",
        String::from_utf8_lossy(&out.stderr)
    );
    (out.status.code(), text.replace(arg(file), "FILE"))
}

#[test]
fn traces_are_read_in_every_form() {
    let bench = Bench::new();
    let plain = rewritten(&bench, "plain.npz", |key, array| (key.to_owned(), array));
    let reference = bench.path("reference.npz");
    fs::copy(&plain, &reference).unwrap();
    // What is different is different in every form.
    let off = rewritten(&bench, "off.npz", |key, array| match (key, array) {
        ("layer_01/conv_out", Array::I8(mut codes)) => {
            codes[[0, 1, 5]] ^= 1;
            (key.to_owned(), Array::I8(codes))
        }
        (_, array) => (key.to_owned(), array),
    });
    let readers = |path: &Path| {
        let tiny = ["--synthetic", "tiny", "--threads", "1"];
        let check = [&["check", "--golden", arg(path)], &tiny[..]].concat();
        let attribute = [
            &["attribute", "--mode", "0", "--trace", arg(path)],
            &tiny[..],
        ]
        .concat();
        [
            said(&["compare", arg(&reference), arg(path)], path),
            said(&check, path),
            said(&attribute, path),
        ]
    };
    for (source, code) in [(&plain, Some(0)), (&off, Some(1))] {
        let want = readers(source);
        assert_eq!([want[0].0, want[1].0], [code; 2]);
        for form in FORMS {
            let path = bench.path("form.npz");
            reformed(source, &path, form, |_| None);
            assert_eq!(readers(&path), want, "{form:?}");
        }
    }
    // Without axes there are no rows.
    for (key, bytes) in [
        ("tokens", npy("<i4", false, "()", &7i32.to_le_bytes())),
        ("layer_00/conv_out", npy("|i1", false, "()", &[7])),
        ("layer_00/ssm_y", npy("<f2", false, "()", &[0, 0])),
    ] {
        let path = bench.path("0-d.npz");
        reformed(&plain, &path, Form::BigEndian, |name| {
            (name == key).then(|| bytes.clone())
        });
        for args in [
            &["compare", arg(&plain), arg(&path)][..],
            &["check", "--synthetic", "tiny", "--golden", arg(&path)],
            &[
                "attribute",
                "--synthetic",
                "tiny",
                "--mode",
                "0",
                "--trace",
                arg(&path),
            ],
        ] {
            let line = refusal(args);
            assert!(line.contains("0-d.npz") && line.contains(key), "{line}");
        }
    }
}

#[test]
fn vectors_of_operations_are_read_in_every_form() {
    let bench = Bench::new();
    let golden = Path::new(env!("CARGO_MANIFEST_DIR")).join("golden/data/ops");
    for op in [
        "conv1d_silu",
        "selective_scan",
        "hadamard_quant",
        "linear",
        "rmsnorm_quant",
    ] {
        let plain = golden.join(format!("{op}.npz"));
        let want = said(&["check", "op", op, arg(&plain)], &plain);
        assert_eq!(want.0, Some(0));
        let path = bench.path("op.npz");
        for form in FORMS {
            reformed(&plain, &path, form, |_| None);
            assert_eq!(
                said(&["check", "op", op, arg(&path)], &path),
                want,
                "{op} {form:?}"
            );
        }
        // Without axes, the first array that has some.
        let arrays = read_npz(&plain).unwrap();
        let (key, _) = arrays.iter().find(|(_, a)| a.shape().len() > 1).unwrap();
        reformed(&plain, &path, Form::Columns, |name| {
            (name == key).then(|| npy("<f4", false, "()", &[0; 4]))
        });
        let line = refusal(&["check", "op", op, arg(&path)]);
        assert!(line.contains("op.npz"), "{line}");
    }
}

/// Dumps of a device as NumPy wrote them, and token ids of every command that exports.
#[test]
fn exports_and_dumps_are_read_in_every_form() {
    let bench = Bench::new();
    let ids = Array::I32(ArrayD::from_shape_vec(vec![2, 3], vec![1, 200, 3, 77, 0, 255]).unwrap());
    let export = |name: &str, tokens: &Path| -> PathBuf {
        let folder = bench.path(name);
        let model = bench.model();
        let mut args = vec![
            "export",
            "--step",
            "x_proj",
            "-o",
            arg(&folder),
            "--tokens",
            arg(tokens),
        ];
        args.extend(model.iter().map(String::as_str));
        assert_eq!(run(&args).status.code(), Some(0));
        folder
    };
    let plain = bench.put("plain.npy", &formed(&ids, Form::Columns));
    let vectors = export("plain", &plain);
    for form in FORMS {
        let tokens = bench.put("t.npy", &formed(&ids, form));
        let other = export("other", &tokens);
        for name in ["x.hex", "out.hex", "tokens.hex"] {
            let read = |folder: &Path| fs::read(folder.join(name)).unwrap();
            assert!(read(&vectors) == read(&other), "{form:?} {name}");
        }
    }
    let words = fs::read_to_string(vectors.join("out.hex")).unwrap();
    let codes: Vec<i32> = words
        .lines()
        .map(|word| i32::from(u8::from_str_radix(word, 16).unwrap() as i8))
        .collect();
    let shape = vec![3, codes.len() / 3];
    let dump = vectors.join("out.dump.npy");
    let check = || run(&["check", "export", arg(&vectors)]).status.code();
    for form in FORMS {
        let mut out = ArrayD::from_shape_vec(shape.clone(), codes.clone()).unwrap();
        fs::write(&dump, formed(&Array::I32(out.clone()), form)).unwrap();
        assert_eq!(check(), Some(0), "{form:?}");
        out[[1, 2]] ^= 1;
        fs::write(&dump, formed(&Array::I32(out), form)).unwrap();
        assert_eq!(check(), Some(1), "{form:?}");
    }
    fs::write(&dump, npy("<i4", false, "()", &[0; 4])).unwrap();
    assert_ne!(check(), Some(0));
}
