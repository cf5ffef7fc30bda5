//! Every command on awkward but legal forms of its inputs: the same result as on the plain form, or a
//! refusal that names the thing. One reader serves all commands; what it does to every form is tested beside
//! it (`src/texts/tests.rs`, `sim/src/text.rs`), here that no command goes around it.

use crate::common::{arg, checkpoint, flowing, refusal, run, scales, stdout};
use ndarray::ArrayD;
use scalescope_golden::npz::{Array, Compression, NpzReader, NpzWriter};
use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

/// A folder with a tokenizer of bytes and plain inputs; the tiny model has 256 tokens.
pub struct Bench(pub tempfile::TempDir);

const WORDS: [&str; 3] = ["He went home - late.", "It was \"dark\" out", "a b c d"];

impl Bench {
    pub fn new() -> Self {
        let bench = Self(tempfile::tempdir().unwrap());
        bench.put("tokenizer.json", tokenizer().as_bytes());
        bench
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    pub fn put(&self, name: &str, bytes: &[u8]) -> PathBuf {
        fs::write(self.path(name), bytes).unwrap();
        self.path(name)
    }

    /// The arguments that name the tiny model.
    pub fn model(&self) -> Vec<String> {
        let tokenizer = self.path("tokenizer.json");
        [
            "--synthetic",
            "tiny",
            "--tokenizer",
            arg(&tokenizer),
            "--threads",
            "1",
        ]
        .map(str::to_owned)
        .to_vec()
    }
}

/// A byte-level tokenizer without merges: every byte is a token.
fn tokenizer() -> String {
    // GPT-2's letters for bytes: printable ones stand for themselves, the others from U+0100 on.
    let mut next = 0x100;
    let letters = (0u32..256).map(|byte| match byte {
        0x21..=0x7e | 0xa1..=0xac | 0xae..=0xff => byte,
        _ => {
            next += 1;
            next - 1
        }
    });
    let vocab: BTreeMap<String, usize> = letters
        .map(|letter| char::from_u32(letter).unwrap().to_string())
        .enumerate()
        .map(|(byte, letter)| (letter, byte))
        .collect();
    let level = serde_json::json!({
        "type": "ByteLevel", "add_prefix_space": false, "trim_offsets": false, "use_regex": false,
    });
    serde_json::json!({
        "version": "1.0", "truncation": null, "padding": null, "added_tokens": [], "normalizer": null,
        "pre_tokenizer": level, "post_processor": null, "decoder": level,
        "model": { "type": "BPE", "vocab": vocab, "merges": [] },
    })
    .to_string()
}

fn utf16(text: &str, order: fn(u16) -> [u8; 2]) -> Vec<u8> {
    let marked = format!("\u{feff}{text}");
    marked.encode_utf16().flat_map(order).collect()
}

/// Texts as JSON lines: plainly, and in every awkward form.
pub fn rows() -> (Vec<u8>, Vec<(&'static str, Vec<u8>)>) {
    let row = |text: &&str| serde_json::json!({ "text": text }).to_string();
    let rows: Vec<String> = WORDS.iter().map(row).collect();
    let plain = rows.join("\n");
    let noisy: Vec<String> = (rows.iter())
        .map(|row| row.replacen('{', "{\"score\": NaN, \"n\": [1e999, \"\\ud83d\"], ", 1))
        .collect();
    let forms = vec![
        ("bom.txt", format!("\u{feff}{plain}").into_bytes()),
        ("utf16-le.jsonl", utf16(&plain, u16::to_le_bytes)),
        ("utf16-be.json", utf16(&plain, u16::to_be_bytes)),
        ("crlf.JSONL", rows.join("\r\n").into_bytes()),
        (
            "blank.ndjson",
            rows.join("\n\n{\"text\": \" \"}\n").into_bytes(),
        ),
        ("fields.data", noisy.join("\n").into_bytes()),
        (
            "array.json",
            format!("[{}]", rows.join(",\n ")).into_bytes(),
        ),
        ("no-extension", plain.clone().into_bytes()),
    ];
    (plain.into_bytes(), forms)
}

/// Every command that reads texts, and what else it is asked.
const READERS: [(&str, &[&str]); 9] = [
    ("run", &["--mode", "0", "--json"]),
    ("report", &["--modes", "0,1"]),
    ("propagate", &["--mode", "2-4"]),
    ("lineage", &["--mode", "0"]),
    ("equiv", &["2-3", "2-1"]),
    ("headroom", &["--profile", "asic-int8"]),
    ("sweep", &["--vary", "scan.state=int8", "--json"]),
    ("recommend", &["--mode", "0", "--json"]),
    ("attribute", &["--mode", "2-4", "--json"]),
];

/// Standard output of a command, the name of its input taken out.
pub fn answer(bench: &Bench, command: &str, more: &[&str], option: &str, input: &Path) -> String {
    let model = bench.model();
    let mut args = vec![command];
    args.extend(model.iter().map(String::as_str));
    args.extend([option, arg(input)]);
    args.extend(more);
    let out = run(&args);
    let (said, error) = (
        String::from_utf8_lossy(&out.stdout).into_owned(),
        String::from_utf8_lossy(&out.stderr),
    );
    let ended = matches!(out.status.code(), Some(0 | 1));
    assert!(ended && !said.is_empty(), "{args:?}: {error}");
    said.replace(arg(input), "INPUT")
}

#[test]
fn every_form_of_a_text_is_the_same_text_to_every_command() {
    let bench = Bench::new();
    let (plain, forms) = rows();
    let plain = bench.put("plain.jsonl", &plain);
    // One command on every form, every command on one.
    for (i, (command, more)) in READERS.into_iter().enumerate() {
        let want = answer(&bench, command, more, "--file", &plain);
        for (j, (name, bytes)) in forms.iter().enumerate() {
            if command == "run" || j == i % forms.len() {
                let found = answer(&bench, command, more, "--file", &bench.put(name, bytes));
                assert_eq!(found, want, "{command} {name}");
            }
        }
    }
    let more = ["--modes", "0,1", "--limit", "3"];
    let want = answer(&bench, "eval", &more, "--data", &plain);
    for (name, bytes) in &forms {
        let found = answer(&bench, "eval", &more, "--data", &bench.put(name, bytes));
        // What was passed over is counted.
        let counted: String = found
            .lines()
            .filter(|line| !line.contains("blank rows"))
            .fold(String::new(), |all, line| all + line + "\n");
        assert_eq!(counted.trim_end(), want.trim_end(), "{name}");
        assert_eq!(
            found.contains("2 blank rows were skipped"),
            *name == "blank.ndjson"
        );
    }
}

#[test]
fn every_form_of_a_plain_text_is_the_same_text() {
    let bench = Bench::new();
    let text = "He went home.\n\nIt was late – very late.\nNobody saw \u{1f600} him.\n";
    let plain = bench.put("plain.txt", text.as_bytes());
    let read = |path: &Path| answer(&bench, "run", &["--json", "--mode", "0"], "--file", path);
    let want = read(&plain);
    for (name, bytes) in [
        ("bom.txt", format!("\u{feff}{text}").into_bytes()),
        ("le.txt", utf16(text, u16::to_le_bytes)),
        ("be.md", utf16(text, u16::to_be_bytes)),
        ("crlf.txt", text.replace('\n', "\r\n").into_bytes()),
        ("cr", text.replace('\n', "\r").into_bytes()),
    ] {
        assert_eq!(read(&bench.put(name, &bytes)), want, "{name}");
    }
    // Cut into the sequences asked for; fewer are said, with both numbers.
    let model = bench.model();
    let cut = |limit: &str| {
        let mut args = vec!["run", "--json", "--mode", "0", "--file", arg(&plain)];
        args.extend(model.iter().map(String::as_str));
        args.extend(["--length", "20", "--limit", limit]);
        let out = run(&args);
        let json: serde_json::Value = serde_json::from_slice(&out.stdout).unwrap();
        let lengths: Vec<u64> = (json["sequences"].as_array().unwrap().iter())
            .map(|s| s["tokens"].as_u64().unwrap())
            .collect();
        (lengths, String::from_utf8(out.stderr).unwrap())
    };
    assert_eq!(cut("2"), (vec![20, 20], String::new()));
    let bytes = text.len() as u64;
    let (lengths, said) = cut("9");
    assert_eq!(lengths.iter().sum::<u64>(), bytes);
    assert!(
        said.contains(&format!(
            "{} sequences, fewer than the 9 asked for",
            lengths.len()
        )),
        "{said}"
    );
}

/// Calibration texts: the same scales from every form, a text cut into samples, a shortfall said.
#[test]
fn calibration_reads_every_form_and_says_what_it_used() {
    let bench = Bench::new();
    let model = checkpoint(bench.0.path());
    let quantize = |name: &str, samples: &str| {
        let (input, output) = (bench.path(name), bench.path("q.safetensors"));
        let args = [
            "quantize",
            arg(&model),
            "-o",
            arg(&output),
            "--calibrate",
            arg(&input),
            "--limit",
            samples,
            "--length",
            "6",
        ];
        let out = run(&args);
        let error = String::from_utf8(out.stderr).unwrap();
        assert_eq!(out.status.code(), Some(0), "{error}");
        (
            fs::read(&output).unwrap(),
            String::from_utf8(out.stdout).unwrap(),
            error,
        )
    };
    let (plain, forms) = rows();
    bench.put("plain.jsonl", &plain);
    let (want, said, error) = quantize("plain.jsonl", "3");
    assert!(
        said.contains("3 sequences (") && error.is_empty(),
        "{said}{error}"
    );
    let (name, bytes) = &forms[4];
    bench.put(name, bytes);
    let (found, _, error) = quantize(name, "3");
    assert!(found == want, "{name}");
    assert!(
        error.contains("2 of 5 rows are blank and were skipped"),
        "{error}"
    );
    bench.put("book.txt", WORDS.join("\n\n").as_bytes());
    let (_, said, error) = quantize("book.txt", "2");
    assert!(
        said.contains("2 sequences (12 tokens)") && error.is_empty(),
        "{said}{error}"
    );
    let (_, _, error) = quantize("book.txt", "500");
    assert!(
        error.contains("samples, fewer than the 500 asked for"),
        "{error}"
    );
}

/// A `.npy` by hand: type, order, shape and bytes as a header says them.
pub fn npy(descr: &str, fortran: bool, shape: &str, bytes: &[u8]) -> Vec<u8> {
    let fortran = if fortran { "True" } else { "False" };
    let mut header =
        format!("{{'descr': '{descr}', 'fortran_order': {fortran}, 'shape': {shape}, }}");
    while (header.len() + 11) % 64 != 0 {
        header.push(' ');
    }
    header.push('\n');
    let length = (header.len() as u16).to_le_bytes();
    [b"\x93NUMPY\x01\0", &length[..], header.as_bytes(), bytes].concat()
}

#[test]
fn token_ids_lie_in_any_type_and_order() {
    let bench = Bench::new();
    let ids: [[u16; 3]; 2] = [[1, 200, 3], [77, 0, 255]];
    let rows: Vec<u16> = ids.concat();
    let columns: Vec<u16> = (0..3).flat_map(|k| [ids[0][k], ids[1][k]]).collect();
    let bytes = |ids: &[u16], of: &dyn Fn(u16) -> Vec<u8>| {
        ids.iter().flat_map(|id| of(*id)).collect::<Vec<u8>>()
    };
    let plain = npy(
        "<i8",
        false,
        "(2, 3)",
        &bytes(&rows, &|id| i64::from(id).to_le_bytes().to_vec()),
    );
    let plain = bench.put("plain.npy", &plain);
    let run =
        |path: &Path, option: &str| answer(&bench, "run", &["--json", "--mode", "0"], option, path);
    let want = run(&plain, "--tokens");
    for (name, array) in [
        (
            "i32.npy",
            npy(
                "<i4",
                false,
                "(2, 3)",
                &bytes(&rows, &|id| i32::from(id).to_le_bytes().to_vec()),
            ),
        ),
        (
            "big-endian.npy",
            npy(
                ">i8",
                false,
                "(2, 3)",
                &bytes(&rows, &|id| i64::from(id).to_be_bytes().to_vec()),
            ),
        ),
        (
            "u2-big-endian.npy",
            npy(
                ">u2",
                false,
                "(2, 3)",
                &bytes(&rows, &|id| id.to_be_bytes().to_vec()),
            ),
        ),
        (
            "fortran.npy",
            npy(
                "<i4",
                true,
                "(2, 3)",
                &bytes(&columns, &|id| i32::from(id).to_le_bytes().to_vec()),
            ),
        ),
        (
            "bytes.npy",
            npy("|u1", false, "(2, 3)", &bytes(&rows, &|id| vec![id as u8])),
        ),
        ("no-extension", fs::read(&plain).unwrap()),
    ] {
        let path = bench.put(name, &array);
        assert_eq!(run(&path, "--tokens"), want, "{name}");
        // Known by its first bytes where any file may stand.
        assert_eq!(run(&path, "--file"), want, "{name}");
    }
    let model = bench.model();
    for (name, array, part) in [
        (
            "0-d.npy",
            npy("<i8", false, "()", &7i64.to_le_bytes()),
            "token ids, integers of shape [L] or [B, L]",
        ),
        ("empty.npy", npy("<i8", false, "(0,)", &[]), "token ids"),
        (
            "reals.npy",
            npy("<f4", false, "(1,)", &7f32.to_le_bytes()),
            "token ids",
        ),
        (
            "beyond.npy",
            npy("<i8", false, "(1,)", &256i64.to_le_bytes()),
            "256",
        ),
    ] {
        let path = bench.put(name, &array);
        let mut args = vec!["run", "--mode", "0", "--tokens", arg(&path)];
        args.extend(model.iter().map(String::as_str));
        let line = refusal(&args);
        assert!(line.contains(name) && line.contains(part), "{line}");
    }
}

/// Profiles, modes, scales and results that an editor saved its own way.
#[test]
fn settings_are_read_in_every_encoding() {
    let bench = Bench::new();
    let forms = |text: &str| {
        [
            text.as_bytes().to_vec(),
            format!("\u{feff}{text}").into_bytes(),
            utf16(text, u16::to_le_bytes),
            text.replace('\n', "\r\n").into_bytes(),
        ]
    };
    let tokens = npy("<i4", false, "(3,)", &[1, 0, 0, 0, 2, 0, 0, 0, 3, 0, 0, 0]);
    let tokens = bench.put("t.npy", &tokens);
    let profile = "version = 1\nextends = \"asic-int8\"\n[accumulator]\nbits = 24\n";
    let modes = "[mode.mine]\nbase = \"2-4\"\nconv_in = \"dynamic-token\"\n";
    let asked = |profile: &[u8], modes: &[u8]| {
        let (profile, modes) = (bench.put("p.TOML", profile), bench.put("m.toml", modes));
        let more = [
            "--json",
            "--mode",
            "mine",
            "--profile",
            arg(&profile),
            "--modes-file",
            arg(&modes),
        ];
        answer(&bench, "run", &more, "--tokens", &tokens)
    };
    let want = asked(profile.as_bytes(), modes.as_bytes());
    for (profile, modes) in forms(profile).into_iter().zip(forms(modes)) {
        assert_eq!(asked(&profile, &modes), want);
    }
    let model = checkpoint(bench.0.path());
    let plain = fs::read_to_string(scales()).unwrap();
    let with = |bytes: &[u8]| {
        let scales = bench.put("s.json", bytes);
        stdout(&[
            "run",
            "--model",
            arg(&model),
            "--scales",
            arg(&scales),
            "--text",
            "It was",
            "--json",
        ])
    };
    let want = with(plain.as_bytes());
    let [_, marked, wide, _] = forms(&plain);
    assert_eq!((with(&marked), with(&wide)), (want.clone(), want));
    // Samples of an eval, and its results.
    let data = bench.put("d.jsonl", &rows().0);
    let samples = bench.path("s.jsonl");
    let more = ["--modes", "0,1", "--samples", arg(&samples)];
    answer(&bench, "eval", &more, "--data", &data);
    let want = stdout(&["eval", "--merge", arg(&samples)]);
    let written = fs::read_to_string(&samples).unwrap();
    for bytes in forms(&written) {
        fs::write(&samples, bytes).unwrap();
        assert_eq!(stdout(&["eval", "--merge", arg(&samples)]), want);
    }
}

/// A trace of the tiny model, with keys renamed and arrays changed.
pub fn rewritten(
    bench: &Bench,
    name: &str,
    edit: impl Fn(&str, Array) -> (String, Array),
) -> PathBuf {
    let plain = bench.path("trace.npz");
    if !plain.exists() {
        let tokens = npy(
            "<i4",
            false,
            "(3,)",
            &[9, 0, 0, 0, 200, 0, 0, 0, 3, 0, 0, 0],
        );
        let tokens = bench.put("t.npy", &tokens);
        let more = [
            "--mode",
            "0",
            "--profile",
            "deployed",
            "--trace",
            arg(&plain),
        ];
        answer(bench, "run", &more, "--tokens", &tokens);
    }
    let path = bench.path(name);
    let mut from = NpzReader::open(&plain).unwrap();
    let names: Vec<String> = from.names().map(str::to_owned).collect();
    let mut to = NpzWriter::create(&path, Compression::Stored).unwrap();
    for name in names {
        let (name, array) = edit(&name, from.read(&name).unwrap());
        to.add(&name, &array).unwrap();
    }
    to.finish().unwrap();
    path
}

const CODES: &str = "layer_01/conv_out";

/// A trace whose codes of one point lie in another type.
fn stored(bench: &Bench, name: &str, make: impl Fn(ArrayD<i8>) -> Array) -> PathBuf {
    rewritten(bench, name, |key, array| match (key, array) {
        (CODES, Array::I8(codes)) => (key.to_owned(), make(codes)),
        (_, array) => (key.to_owned(), array),
    })
}

#[test]
fn codes_in_another_type_are_codes_and_a_type_that_does_not_fit_is_named_by_side() {
    let bench = Bench::new();
    let plain = rewritten(&bench, "plain.npz", |key, array| (key.to_owned(), array));
    let asked = |path: &Path| {
        let compare = run(&["compare", arg(&plain), arg(path)]);
        let check = run(&["check", "--synthetic", "tiny", "--golden", arg(path)]);
        [compare, check].map(|out| {
            let said = [out.stdout, out.stderr].concat();
            let said = flowing(std::str::from_utf8(&said).unwrap());
            (out.status.code().unwrap(), said)
        })
    };
    type Make = fn(ArrayD<i8>) -> Array;
    let makes: [(&str, Make); 8] = [
        ("u8", |a| Array::U8(a.mapv(|v| v as u8))),
        ("u8", |a| Array::U8(a.mapv(|v| v as u8 ^ 0x80))),
        ("i16", |a| Array::I16(a.mapv(i16::from))),
        ("i32", |a| Array::I32(a.mapv(i32::from))),
        ("i64", |a| Array::I64(a.mapv(i64::from))),
        ("f16", |a| Array::F16(a.mapv(half::f16::from))),
        ("f32", |a| Array::F32(a.mapv(f32::from))),
        ("f64", |a| Array::F64(a.mapv(f64::from))),
    ];
    for (dtype, make) in makes {
        let path = stored(&bench, "codes.npz", make);
        for (code, said) in asked(&path) {
            assert_eq!(code, 0, "{dtype}: {said}");
            let of_type = format!("{CODES}: {dtype} [1, 3, 128], ");
            assert!(
                said.contains(&of_type) && said.contains("INT8 codes"),
                "{said}"
            );
        }
        // One code off is one mismatch, in whatever type.
        let path = stored(&bench, "off.npz", |mut codes| {
            codes[[0, 1, 5]] ^= 1;
            make(codes)
        });
        let [(compare, said), (check, _)] = asked(&path);
        assert_eq!((compare, check), (1, 1), "{dtype}");
        assert!(
            said.contains(&format!("first failure: {CODES} [0, 1, 5]")),
            "{said}"
        );
        assert!(!said.contains("multiplied"), "{said}");
    }
    for (make, part) in [
        (
            (|a| {
                let mut next = 0u8;
                Array::U8(a.mapv(|_| {
                    next = next.wrapping_add(97);
                    next
                }))
            }) as Make,
            "bytes of codes, or codes with an offset",
        ),
        (
            |a| Array::I32(a.mapv(|v| 300 + i32::from(v))),
            "not all of them INT8 codes",
        ),
    ] {
        let path = stored(&bench, "bad.npz", make);
        for (code, said) in asked(&path) {
            assert_eq!(code, 2, "{said}");
            assert!(said.contains(CODES) && said.contains(part), "{said}");
        }
    }
    // Reals where the run has codes: equal as reals, no codes for a check.
    let reals = stored(&bench, "reals.npz", |codes| {
        Array::F32(codes.mapv(|v| 0.37 * f32::from(v)))
    });
    let [(compare, said), (check, refused)] = asked(&reals);
    assert_eq!((compare, check), (1, 2), "{said}{refused}");
    assert!(
        said.contains("(A), found") && said.contains("code "),
        "{said}"
    );
    assert!(
        refused.contains("expected i8, as the run has it, found f32 in the file"),
        "{refused}"
    );
}

#[test]
fn blocks_numbered_from_1_are_named() {
    let bench = Bench::new();
    let plain = rewritten(&bench, "plain.npz", |key, array| (key.to_owned(), array));
    let shifted = rewritten(&bench, "shifted.npz", |key, array| {
        let key = key
            .replace("layer_01", "layer_02")
            .replace("layer_00", "layer_01");
        (key, array)
    });
    let check = run(&["check", "--synthetic", "tiny", "--golden", arg(&shifted)]);
    let compare = run(&["compare", arg(&plain), arg(&shifted), "--common"]);
    for out in [check, compare] {
        let error = String::from_utf8(out.stderr).unwrap();
        assert_ne!(out.status.code(), Some(0));
        assert!(error.contains("its blocks are numbered from 1"), "{error}");
    }
}

/// A quantized file and `--float`: harmless keys do not matter, one bit of a weight does.
#[test]
fn a_quantized_model_knows_its_float_model() {
    let bench = Bench::new();
    let (float, q) = (checkpoint(bench.0.path()), bench.path("q.safetensors"));
    let scales = scales();
    stdout(&[
        "quantize",
        arg(&float),
        "-o",
        arg(&q),
        "--scales",
        arg(&scales),
    ]);
    let args = [
        "run",
        "--model",
        arg(&q),
        "--float",
        arg(&float),
        "--mode",
        "1",
        "--text",
        "It",
    ];
    let want = stdout(&args);
    let config = float.join("config.json");
    let plain = fs::read_to_string(&config).unwrap();
    let harmless = plain.replacen(
        '{',
        "{\"transformers_version\": \"5.1.0\", \"dtype\": \"float32\",",
        1,
    );
    fs::write(&config, harmless).unwrap();
    assert_eq!(stdout(&args), want);
    let mut json: serde_json::Value = serde_json::from_str(&plain).unwrap();
    json["layer_norm_epsilon"] = 1e-6.into();
    fs::write(&config, json.to_string()).unwrap();
    assert!(refusal(&args).contains("float model: layer_norm_epsilon: expected"));
    fs::write(&config, plain).unwrap();
    let weights = float.join("model.safetensors");
    let mut bytes = fs::read(&weights).unwrap();
    let last = bytes.len() - 2;
    bytes[last] ^= 1;
    fs::write(&weights, bytes).unwrap();
    let line = refusal(&args);
    assert!(
        line.contains("float model: expected the one it was quantized from"),
        "{line}"
    );
}

#[test]
fn one_sample_has_no_interval() {
    let bench = Bench::new();
    let data = bench.put("d.jsonl", &rows().0);
    let json = bench.path("r.json");
    let more = ["--modes", "0,1", "--limit", "1", "--json", arg(&json)];
    let said = answer(&bench, "eval", &more, "--data", &data);
    assert!(
        !said.contains("NaN") && said.contains("none of 1 pairs can be told apart"),
        "{said}"
    );
    let page = bench.path("r.html");
    let model = bench.model();
    let mut args = vec!["report", "--modes", "0,1", "--tokens"];
    let tokens = npy(
        "<i4",
        false,
        "(3,)",
        &[9, 0, 0, 0, 200, 0, 0, 0, 3, 0, 0, 0],
    );
    let tokens = bench.put("t.npy", &tokens);
    args.push(arg(&tokens));
    args.extend(["--eval", arg(&json), "--html", arg(&page)]);
    args.extend(model.iter().map(String::as_str));
    stdout(&args);
    assert!(!fs::read_to_string(&page).unwrap().contains("NaN"));
}
