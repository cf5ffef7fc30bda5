use super::*;
use crate::npz::{Compression, read_npz, write_npz};
use ndarray::{ArrayD, IxDyn};
use std::path::PathBuf;

type Arrays = BTreeMap<String, Array>;

fn data(op: Op) -> PathBuf {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("data/ops");
    folder.join(format!("{}.npz", op.name()))
}

/// Loads arrays that were changed on purpose.
fn load_changed<T: OpCase>(change: impl FnOnce(&mut Arrays)) -> Result<OpVectors<T>> {
    let mut arrays = read_npz(data(T::OP)).unwrap();
    change(&mut arrays);
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("op.npz");
    let entries = arrays.iter().map(|(name, array)| (name.as_str(), array));
    write_npz(&path, entries, Compression::Stored).unwrap();
    load(path)
}

/// Every array of the file is an input, an output or a matrix of some case, and each output
/// compares equal with itself and unequal after one change.
fn check<T: OpCase>(cases: usize, outputs: usize) -> OpVectors<T> {
    let vectors: OpVectors<T> = load(data(T::OP)).unwrap();
    assert_eq!(vectors.cases.len(), cases);
    assert!(vectors.unknown.is_empty(), "{:?}", vectors.unknown);
    let mut summary = Summary::default();
    for case in &vectors.cases {
        compare(case, &case.expected(), Tolerance::Exact, &mut summary).unwrap();
    }
    assert_eq!((summary.points.len(), summary.exit_code()), (outputs, 0));
    for case in &vectors.cases {
        for wrong in case.expected() {
            let mut found = case.expected();
            let at = found.iter().position(|o| o.key == wrong.key).unwrap();
            let last = wrong.elements.len() - 1;
            let (mut codes, mut halves, mut floats);
            found[at].elements = match wrong.elements {
                Elements::I8(a) => {
                    codes = a.to_vec();
                    codes[last] ^= 1;
                    (&codes[..]).into()
                }
                Elements::F16(a) => {
                    halves = a.to_vec();
                    halves[last] = half::f16::from_bits(halves[last].to_bits() ^ 1);
                    (&halves[..]).into()
                }
                Elements::F32(a) => {
                    floats = a.to_vec();
                    floats[last] = f32::from_bits(floats[last].to_bits() ^ 1);
                    (&floats[..]).into()
                }
            };
            let mut summary = Summary::default();
            compare(case, &found, Tolerance::Exact, &mut summary).unwrap();
            assert_eq!((summary.mismatched(), summary.exit_code()), (1, 1));
            found.remove(at);
            let mut summary = Summary::default();
            compare(case, &found, Tolerance::Exact, &mut summary).unwrap();
            assert_eq!(summary.missing.len(), 1);
            assert_ne!(summary.exit_code(), 0);
        }
    }
    vectors
}

#[test]
fn every_operation_has_vectors_that_load_whole() {
    for op in Op::ALL {
        assert_eq!(Op::from_name(op.name()), Some(op));
        // No wildcard: a new operation must bring its vectors.
        match op {
            Op::Conv1dSilu => drop(check::<Conv1dSilu>(5, 20)),
            Op::Conv1dUpdate => drop(check::<Conv1dUpdate>(1, 2)),
            Op::SelectiveScan => {
                let vectors = check::<SelectiveScan>(8, 24);
                let names: Vec<_> = vectors.cases.iter().map(|c| c.name.as_str()).collect();
                assert_eq!((names[1], names[7]), ("case_2", "case_14"));
                assert_eq!(vectors.cases[7].parameters.a_log.dim(), (8, 64));
            }
            Op::SelectiveScanUpdate => drop(check::<SelectiveScanUpdate>(1, 2)),
            Op::HadamardQuant => {
                let vectors = check::<HadamardQuant>(6, 12);
                assert_eq!(vectors.matrices.len(), 7);
                assert_eq!(vectors.matrices["h28"].shape(), [28, 28]);
            }
            Op::Linear => {
                let vectors = check::<LinearCase>(5, 18);
                let ties = |c: &&LinearCase| match c {
                    LinearCase::Int8(c) => matches!(c.input, LinearInput::Accumulators(_)),
                    LinearCase::Int4(_) => false,
                };
                assert_eq!(vectors.cases.iter().filter(ties).count(), 2);
            }
            Op::RmsNormQuant => drop(check::<RmsNormQuant>(2, 8)),
        }
    }
    assert_eq!(Op::from_name("conv"), None);
}

fn set(arrays: &mut Arrays, key: &str, array: impl Into<Array>) {
    let old = arrays.insert(key.to_owned(), array.into());
    assert!(old.is_some(), "{key}");
}

fn zeros<T: crate::npz::Element + num_like::Zero>(shape: &[usize]) -> ArrayD<T> {
    ArrayD::from_elem(IxDyn(shape), T::ZERO)
}

mod num_like {
    pub trait Zero {
        const ZERO: Self;
    }
    impl Zero for i8 {
        const ZERO: Self = 0;
    }
    impl Zero for f32 {
        const ZERO: Self = 0.0;
    }
    impl Zero for i64 {
        const ZERO: Self = 0;
    }
}

fn refusal<T: OpCase + std::fmt::Debug>(change: impl FnOnce(&mut Arrays)) -> String {
    let text = load_changed::<T>(change).unwrap_err().to_string();
    assert!(text.contains("op.npz"), "{text}");
    text
}

#[test]
fn inputs_that_do_not_fit_together_are_refused_by_name() {
    let text = refusal::<Conv1dSilu>(|a| set(a, "case_0/weight", zeros::<i8>(&[15, 4])));
    assert!(
        text.contains("case_0/weight: expected i8 [C = 16 as in x, K], found i8 [15, 4]"),
        "{text}"
    );
    let text = refusal::<Conv1dSilu>(|a| set(a, "case_2/out", zeros::<f32>(&[1, 171, 16])));
    assert!(
        text.contains("case_2/out: expected i8") && text.contains("found f32"),
        "{text}"
    );
    let text = refusal::<Conv1dSilu>(|a| drop(a.remove("case_4/bias")));
    assert!(
        text.contains("case_4/bias: expected an array, found no such key"),
        "{text}"
    );
    for bad in [0.0f32, -1.0, f32::NAN, f32::INFINITY, 1e-40] {
        let text = refusal::<Conv1dSilu>(|a| set(a, "case_0/scale_x", Array::scalar(bad)));
        assert!(
            text.contains("case_0/scale_x: expected a positive"),
            "{text}"
        );
    }
    let text = refusal::<Conv1dSilu>(|a| set(a, "case_0/scale_x", zeros::<f32>(&[2])));
    assert!(text.contains("expected one f32"), "{text}");
    let text = refusal::<SelectiveScan>(|a| set(a, "case_0/B", zeros::<i8>(&[1, 1, 8])));
    assert!(
        text.contains("case_0/B: expected i8 [B = 1 as in u, L = 1 as in u, N = 16 as in A_log]"),
        "{text}"
    );
    let text = refusal::<SelectiveScanUpdate>(|a| set(a, "state_in", zeros::<i8>(&[3, 64, 16])));
    assert!(
        text.contains("state_in: expected i8 [B = 2 as in u"),
        "{text}"
    );
    let text = refusal::<HadamardQuant>(|a| set(a, "case_6/base", Array::scalar(20i32)));
    assert!(
        text.contains("case_6/base: expected c with C = 384"),
        "{text}"
    );
    let text = refusal::<HadamardQuant>(|a| drop(a.remove("case_0/scale_overflow")));
    assert!(text.contains("the factor of out_overflow"), "{text}");
    let text = refusal::<LinearCase>(|a| {
        set(
            a,
            "tie_half/acc",
            ArrayD::from_elem(IxDyn(&[256]), 1i64 << 31),
        )
    });
    assert!(text.contains("fit i32"), "{text}");
    let text = refusal::<LinearCase>(|a| set(a, "case_0/gemv_out_i8", zeros::<i8>(&[2, 32])));
    assert!(text.contains("one = 1"), "{text}");
    let text = refusal::<RmsNormQuant>(|a| drop(a.remove("case_0/residual")));
    assert!(text.contains("case_0/residual"), "{text}");
    let text = refusal::<RmsNormQuant>(|a| set(a, "case_0/eps", Array::scalar(-1.0f32)));
    assert!(text.contains("case_0/eps"), "{text}");
}

#[test]
fn a_file_of_another_operation_or_of_none_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("op.npz");
    write_npz(&path, [], Compression::Stored).unwrap();
    assert!(
        load::<LinearCase>(&path)
            .unwrap_err()
            .to_string()
            .contains("at least one case")
    );
    assert!(load::<LinearCase>(data(Op::RmsNormQuant)).is_err());
    let text = refusal::<Conv1dUpdate>(|a| {
        a.remove("out");
        a.remove("state_out");
    });
    assert!(text.contains("at least one output"), "{text}");
}

#[test]
fn keys_that_are_not_understood_are_listed_and_cases_keep_their_order() {
    let vectors = load_changed::<Conv1dSilu>(|arrays| {
        arrays.insert("case_0/notes".into(), Array::scalar(1u8));
        for (key, array) in arrays.clone() {
            if let Some(rest) = key.strip_prefix("case_8/") {
                arrays.insert(format!("case_10/{rest}"), array);
            }
        }
        arrays.insert("case_10/scale_x".into(), Array::scalar(0.5f64));
    })
    .unwrap();
    assert_eq!(vectors.unknown, ["case_0/notes"]);
    assert_eq!(vectors.cases.last().unwrap().name, "case_10");
    assert_eq!(vectors.cases.last().unwrap().scale_x.get(), 0.5);
    // An f64 that f32 cannot hold is not a scale.
    let text = refusal::<Conv1dSilu>(|a| set(a, "case_0/scale_x", Array::scalar(0.1f64)));
    assert!(text.contains("one f32"), "{text}");
}
