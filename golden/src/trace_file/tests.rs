use super::*;
use crate::npz::{Array, Compression, read_npz, write_npz};
use half::f16;
use ndarray::{ArrayD, IxDyn, array};
use scalescope_sim::quant::QTensor;
use scalescope_sim::trace::{Probe, Selection, TracePoint};
use std::path::Path;

fn scale(value: f32) -> Scale {
    Scale::new(value).unwrap()
}

/// A recorder that saw five tensors of one sequence of `length` tokens.
fn recorder(length: usize, seed: i8, step: f32) -> Recorder {
    let mut recorder = Recorder::new(Selection::default());
    let codes = Array2::from_shape_fn((length, 6), |(t, c)| seed + (t * 6 + c) as i8);
    let tensors = [
        (
            Place::layer(0, TracePoint::NormOut),
            Tensor::I8(QTensor {
                codes: codes.clone(),
                scale: scale(step),
            }),
        ),
        (Place::layer(1, TracePoint::ConvIn), Tensor::Codes(codes)),
        (
            Place::layer(1, TracePoint::SsmState),
            Tensor::I8(QTensor {
                codes: array![[seed, 1], [2, 3], [4, 5]],
                scale: scale(0.5),
            }),
        ),
        (
            Place::end(TracePoint::FinalResidual),
            Tensor::F32(Array2::from_elem((length, 4), f32::from(seed))),
        ),
        (
            Place::end(TracePoint::Logits),
            Tensor::F16(Array2::from_elem((length, 8), f16::from_f32(-0.5))),
        ),
    ];
    for (place, mut tensor) in tensors {
        recorder.visit(place, &mut tensor).unwrap();
    }
    recorder
}

fn tokens(batch: usize, length: usize) -> Array2<u32> {
    Array2::from_shape_fn((batch, length), |(b, t)| (b * 100 + t) as u32)
}

fn round_trip(trace: &TraceFile) -> TraceFile {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("t.npz");
    trace.write(&path, Compression::Deflate).unwrap();
    TraceFile::read(&path).unwrap()
}

#[test]
fn prefill_round_trips() {
    for batch in [1, 3] {
        let recorders = (0..batch).map(|b| recorder(5, b as i8, 0.25));
        let mut trace = TraceFile::from_recorders(tokens(batch, 5), recorders).unwrap();
        trace.meta = Some(Meta {
            mode: Some("2-4".into()),
            ..Meta::default()
        });
        let back = round_trip(&trace);
        assert_eq!(back, trace);
        assert_eq!((back.batch(), back.layers()), (batch, 2));
        // Codes whose scale varies come back without one, the others with theirs.
        let norm = Place::layer(0, TracePoint::NormOut);
        assert_eq!(back.tensor(0, norm).unwrap().scale(), Some(scale(0.25)));
        assert!(matches!(
            back.tensor(0, Place::layer(1, TracePoint::ConvIn)),
            Some(Tensor::Codes(_))
        ));
        assert_eq!(back.places().last(), Some(&Place::end(TracePoint::Logits)));
    }
}

/// Shows a probe what a recorder saw.
fn replay(recorder: &Recorder, mut probe: SequenceProbe) {
    for (place, tensor) in &recorder.tensors {
        if probe.wants(*place) {
            probe.visit(*place, &mut tensor.clone()).unwrap();
        }
    }
}

#[test]
fn a_trace_written_as_it_comes_is_the_same_file() {
    let folder = tempfile::tempdir().unwrap();
    let [whole, streamed] = ["whole.npz", "streamed.npz"].map(|name| folder.path().join(name));
    for batch in [1, 3] {
        let recorders: Vec<_> = (0..batch).map(|b| recorder(5, b as i8, 0.25)).collect();
        let meta = Meta {
            mode: Some("2-4".into()),
            ..Meta::default()
        };
        let mut trace = TraceFile::from_recorders(tokens(batch, 5), recorders.clone()).unwrap();
        trace.meta = Some(meta.clone());
        trace.write(&whole, Compression::Deflate).unwrap();
        let spool = TraceSpool::create(&streamed).unwrap();
        // Sequences end in any order.
        for (b, recorder) in recorders.iter().enumerate().rev() {
            replay(recorder, spool.sequence(b, Selection::default()));
        }
        assert!(!streamed.exists());
        spool
            .finish(&tokens(batch, 5), &meta, Compression::Deflate)
            .unwrap();
        let read = |path| std::fs::read(path).unwrap();
        assert!(read(&whole) == read(&streamed), "{batch} sequences");
        std::fs::remove_file(&streamed).unwrap();
    }
    // What does not fit together makes no file, and leaves none.
    let refused = |recorders: &[Recorder], batch, length| {
        let spool = TraceSpool::create(&streamed).unwrap();
        for (b, recorder) in recorders.iter().enumerate() {
            replay(recorder, spool.sequence(b, Selection::default()));
        }
        let done = spool.finish(
            &tokens(batch, length),
            &Meta::default(),
            Compression::Deflate,
        );
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 1);
        done.unwrap_err().to_string()
    };
    let one = recorder(5, 0, 0.25);
    assert!(refused(std::slice::from_ref(&one), 2, 5).contains("each of 2 sequences, found 1"));
    assert!(refused(std::slice::from_ref(&one), 1, 6).contains("6 tokens"));
    let error = refused(&[one, recorder(4, 0, 0.25)], 2, 5);
    assert!(error.contains("of sequence 1: expected"), "{error}");
}

/// Tensors are read when they are asked for, and no others.
#[test]
fn an_open_trace_reads_what_is_asked_for() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("t.npz");
    let recorders = (0..2).map(|b| recorder(5, b as i8, 0.25));
    let mut trace = TraceFile::from_recorders(tokens(2, 5), recorders).unwrap();
    trace
        .push_step(&[3, 9], [recorder(1, 0, 0.25), recorder(1, 1, 0.25)])
        .unwrap();
    trace.write(&path, Compression::Stored).unwrap();
    let open = OpenTrace::open(&path).unwrap();
    assert_eq!((open.batch(), open.head().steps.len()), (2, 1));
    for step in [None, Some(0)] {
        let sequences = match step {
            None => &trace.sequences,
            Some(_) => &trace.steps[0].sequences,
        };
        for place in open.places(step) {
            let read = open.read(step, &[place]).unwrap();
            for (read, whole) in read.iter().zip(sequences) {
                assert_eq!((read.len(), &read[&place]), (1, &whole[&place]));
            }
        }
        assert_eq!(open.places(step).len(), 5);
    }
    // One member is damaged: the others can be read, it is named.
    let logits: Vec<u8> = [0x00, 0xb8].repeat(16);
    let mut bytes = std::fs::read(&path).unwrap();
    let at = bytes.windows(32).position(|w| w == logits).unwrap();
    bytes[at + 1] ^= 1;
    std::fs::write(&path, bytes).unwrap();
    let open = OpenTrace::open(&path).unwrap();
    let norm = Place::layer(0, TracePoint::NormOut);
    assert_eq!(open.read(None, &[norm]).unwrap().len(), 2);
    let error = open
        .read(None, &[Place::end(TracePoint::Logits)])
        .unwrap_err()
        .to_string();
    assert!(error.contains("t.npz: final/logits"), "{error}");
    assert!(TraceFile::read(&path).is_err());
}

#[test]
fn decode_round_trips() {
    let mut trace = TraceFile {
        tokens: Some(tokens(2, 7)),
        ..TraceFile::default()
    };
    trace.sequences = vec![Points::new(); 2];
    for step in 0..3 {
        let recorders = (0..2).map(|b| recorder(1, b + step, 0.25));
        trace.push_step(&[step as u32, 9], recorders).unwrap();
    }
    let back = round_trip(&trace);
    assert_eq!(back, trace);
    assert_eq!(back.steps[2].index, 2);
    assert_eq!(back.steps[2].tokens, [2, 9]);
}

#[test]
fn recorders_that_do_not_fit_together_are_refused() {
    let error = TraceFile::from_recorders(tokens(2, 5), [recorder(5, 0, 0.25)]).unwrap_err();
    assert!(error.to_string().contains("2, one for each"), "{error}");
    let error = TraceFile::from_recorders(tokens(1, 6), [recorder(5, 0, 0.25)]).unwrap_err();
    assert!(error.to_string().contains("6 tokens"), "{error}");
    let pair = [recorder(5, 0, 0.25), recorder(5, 0, 0.5)];
    let error = TraceFile::from_recorders(tokens(2, 5), pair).unwrap_err();
    assert!(error.to_string().contains("scale"), "{error}");
    let mut other = recorder(5, 0, 0.25);
    other.tensors.remove(&Place::end(TracePoint::Logits));
    let error = TraceFile::from_recorders(tokens(2, 5), [recorder(5, 0, 0.25), other]).unwrap_err();
    assert!(
        error.to_string().contains("final/logits of sequence 1"),
        "{error}"
    );
    let error = TraceFile::default()
        .push_step(&[1], [recorder(2, 0, 0.25)])
        .unwrap_err();
    assert!(error.to_string().contains("one row"), "{error}");
}

fn f32s(shape: &[usize]) -> Array {
    Array::F32(ArrayD::zeros(IxDyn(shape)))
}

fn i32s(shape: &[usize]) -> Array {
    Array::I32(ArrayD::zeros(IxDyn(shape)))
}

/// Integers that are no codes.
fn wide(shape: &[usize]) -> Array {
    Array::I32(ArrayD::from_elem(IxDyn(shape), 300))
}

fn read_of(arrays: &[(&str, Array)]) -> Result<TraceFile> {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("t.npz");
    write_npz(
        &path,
        arrays.iter().map(|(n, a)| (*n, a)),
        Compression::Stored,
    )
    .unwrap();
    TraceFile::read(path)
}

#[test]
fn shapes_of_other_tools_are_understood() {
    let trace = read_of(&[
        ("tokens", Array::U16(ArrayD::zeros(IxDyn(&[5])))),
        ("layer_0/norm_out", f32s(&[5, 8])),
        ("layer_11/ssm_state", f32s(&[4, 2])),
        ("layer_00/conv_in_scale", f32s(&[1, 1])),
        ("final/logits", f32s(&[1, 5, 3])),
        ("something/else", f32s(&[2])),
    ])
    .unwrap();
    assert_eq!(trace.unknown, ["something/else"]);
    assert_eq!(trace.tokens().unwrap().dim(), (1, 5));
    assert_eq!(trace.sequences[0].len(), 4);
    assert_eq!(
        trace.sequences[0][&Place::layer(11, TracePoint::SsmState)].dim(),
        (4, 2)
    );
    // No tokens at all: a few points of a dump.
    let trace = read_of(&[("layer_00/norm_out", f32s(&[2, 5, 8]))]).unwrap();
    assert_eq!(trace.batch(), 2);
    assert!(trace.tokens().is_err());
    // Decode: one token each, states of one sequence without its axis.
    let trace = read_of(&[
        ("step_0/token", i32s(&[1, 1])),
        ("step_0/layer_00/norm_out", f32s(&[1, 8])),
        ("step_0/layer_00/ssm_state_in", f32s(&[4, 2])),
        ("step_0/logits", f32s(&[1, 1, 8])),
        ("step_4/token", i32s(&[1])),
    ])
    .unwrap();
    assert_eq!(trace.steps.len(), 2);
    assert_eq!(
        (trace.steps[1].index, trace.steps[0].sequences[0].len()),
        (4, 3)
    );
    // Nothing understood: read, but nothing is there.
    let trace = read_of(&[("a", f32s(&[1]))]).unwrap();
    assert_eq!((trace.batch(), trace.unknown.len()), (0, 1));
}

#[test]
fn files_that_contradict_themselves_are_refused_by_name() {
    let cases: &[(&str, &[(&str, Array)])] = &[
        (
            "layer_00/norm_out: expected 2 sequences, as in tokens",
            &[
                ("tokens", i32s(&[2, 5])),
                ("layer_00/norm_out", f32s(&[1, 5, 8])),
            ],
        ),
        (
            "layer_00/norm_out: expected 5 rows, as in the tokens",
            &[
                ("tokens", i32s(&[1, 5])),
                ("layer_00/norm_out", f32s(&[1, 6, 8])),
            ],
        ),
        (
            "5 rows, as in layer_00/norm_out",
            &[
                ("layer_00/norm_out", f32s(&[1, 5, 8])),
                ("layer_00/ssm_u", f32s(&[1, 6, 8])),
            ],
        ),
        (
            "more sequences",
            &[
                ("tokens", i32s(&[2, 5])),
                ("layer_00/norm_out", f32s(&[5, 8])),
            ],
        ),
        (
            "one key for a tensor",
            &[
                ("layer_0/norm_out", f32s(&[1, 5, 8])),
                ("layer_00/norm_out", f32s(&[1, 5, 8])),
            ],
        ),
        (
            "the ids of prefill_tokens",
            &[("prefill_tokens", i32s(&[1, 5])), ("tokens", i32s(&[1, 6]))],
        ),
        (
            "layer_00/norm_out: expected i8, f16 or f32, found i32 [1, 5, 8], not all of them",
            &[("layer_00/norm_out", wide(&[1, 5, 8]))],
        ),
        (
            "layer_00/norm_out: expected [B, L, channels]",
            &[("layer_00/norm_out", f32s(&[5]))],
        ),
        (
            "at least one element",
            &[("layer_00/norm_out", f32s(&[1, 0, 8]))],
        ),
        ("at least one token", &[("tokens", i32s(&[1, 0]))]),
        ("integer token ids", &[("tokens", f32s(&[1, 5]))]),
        (
            "token ids from 0",
            &[("tokens", Array::I8(ArrayD::from_elem(IxDyn(&[5]), -1)))],
        ),
        (
            "step_0/token: expected token ids [B] or [B, 1]",
            &[("step_0/token", i32s(&[1, 2]))],
        ),
        (
            "expected [B, channels] or [B, 1, channels]",
            &[("step_0/layer_00/norm_out", f32s(&[1, 2, 8]))],
        ),
        (
            "scale/layer_00/norm_out: expected a positive",
            &[("scale/layer_00/norm_out", f32s(&[]))],
        ),
        (
            "scale/layer_00/norm_out: expected one f32",
            &[("scale/layer_00/norm_out", f32s(&[2]))],
        ),
        (
            "meta: expected JSON",
            &[("meta", Array::U8(ArrayD::zeros(IxDyn(&[3]))))],
        ),
        ("meta: expected JSON in u8", &[("meta", i32s(&[3]))]),
    ];
    for (word, arrays) in cases {
        let error = read_of(arrays).unwrap_err().to_string();
        assert!(
            error.contains(word) && error.contains("t.npz"),
            "{word}: {error}"
        );
    }
}

#[test]
fn written_files_are_what_the_specification_says() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("t.npz");
    let trace = TraceFile::from_recorders(tokens(1, 5), [recorder(5, 3, 0.25)]).unwrap();
    trace.write(&path, Compression::Stored).unwrap();
    let arrays = read_npz(&path).unwrap();
    let described: Vec<String> = arrays
        .iter()
        .map(|(n, a)| format!("{n} {}", a.describe()))
        .collect();
    assert_eq!(
        described,
        [
            "final/logits f16 [1, 5, 8]",
            "final/residual f32 [1, 5, 4]",
            "layer_00/norm_out i8 [1, 5, 6]",
            "layer_01/conv_in i8 [1, 5, 6]",
            "layer_01/ssm_state i8 [1, 3, 2]",
            "scale/layer_00/norm_out f32 []",
            "scale/layer_01/ssm_state f32 []",
            "tokens i32 [1, 5]",
        ]
    );
}

#[test]
fn a_selection_reads_only_what_it_keeps() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("t.npz");
    let trace = TraceFile::from_recorders(tokens(1, 5), [recorder(5, 3, 0.25)]).unwrap();
    trace.write(&path, Compression::Stored).unwrap();
    let selection = Selection {
        layers: Some(vec![1]),
        points: Some(vec![TracePoint::SsmState, TracePoint::NormOut]),
    };
    let part = TraceFile::read_selected(&path, &selection).unwrap();
    assert_eq!(part.places(), [Place::layer(1, TracePoint::SsmState)]);
    assert!(TraceFile::read(Path::new("/nonexistent/x.npz")).is_err());
}

/// The same trace as a dict of tensors, stored by columns where torch might.
#[test]
fn a_dict_of_tensors_is_the_trace_of_its_arrays() {
    use scalescope_sim::checkpoint::torch::write::{Elements, Value, write_to};
    let dir = tempfile::tempdir().unwrap();
    let codes: Vec<i8> = (0..6).collect();
    let scale = Elements::F32(vec![0.5].into());
    let mut entries = vec![
        (
            "tokens".to_owned(),
            Value::tensor(&[1, 3], Elements::I32(vec![4, 5, 6].into())),
        ),
        (
            "scale/layer_02/conv_out".to_owned(),
            Value::tensor(&[], scale),
        ),
        (
            "layer_02/conv_out".to_owned(),
            Value::columns([3, 2], Elements::I8(codes.into())),
        ),
    ];
    let path = dir.path().join("dump.pt");
    let write = |entries: &[(String, Value)]| {
        write_to(std::fs::File::create(&path).unwrap(), "dump", entries).unwrap();
        TraceFile::read(&path)
    };
    let trace = write(&entries).unwrap();
    assert_eq!(trace.tokens.unwrap().row(0).to_vec(), [4, 5, 6]);
    let place = Place::layer(2, TracePoint::ConvOut);
    assert_eq!(trace.scales[&place].get(), 0.5);
    let crate::value::Value::I8(codes) = &trace.sequences[0][&place] else {
        panic!("codes")
    };
    assert_eq!(
        codes.iter().copied().collect::<Vec<i8>>(),
        [0, 3, 1, 4, 2, 5]
    );
    // Whatever it is called.
    for name in ["dump.PT", "dump.npz", "dump"] {
        let other = dir.path().join(name);
        std::fs::copy(&path, &other).unwrap();
        assert_eq!(TraceFile::read(&other).unwrap().scales[&place].get(), 0.5);
    }
    // A number is a scale too.
    entries[1].1 = Value::Number(0.25);
    assert_eq!(write(&entries).unwrap().scales[&place].get(), 0.25);
    entries[1].1 = Value::Number(0.0);
    let refused = write(&entries).unwrap_err().to_string();
    assert!(
        refused.contains("dump.pt: scale/layer_02/conv_out"),
        "{refused}"
    );
}
