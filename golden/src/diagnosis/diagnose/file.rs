//! Files that are wrong as files: named once, and not tensor by tensor.
//!
//! The model runs freely on the file's tokens. Where most tensors do not agree as they lie, and nearly all do
//! under one map of the whole file, the map is what is wrong.

use super::formula::{self, Activation, Formula, Seen};
use super::locate::elements::values;
use crate::diagnosis::finding::{Finding, Severity};
use crate::trace_file::{Points, TraceFile, in_data_order};
use crate::value::Value;
use ndarray::Array2;
use scalescope_sim::dataflow::{Block, Format, Phase};
use scalescope_sim::datapath::{Datapath, LogitRows};
use scalescope_sim::error::Result;
use scalescope_sim::trace::{Place, Recorder, Selection, Tensor};
use std::borrow::Cow;
use std::collections::{BTreeMap, BTreeSet};

/// Elements of a tensor that are compared.
const SAMPLE: usize = 2048;
/// Of the tensors as they lie, fewer elements agree.
const BEFORE: f64 = 0.4;
/// Of the tensors as the map has them, more do.
const AFTER: f64 = 0.75;

/// What a free run makes, sequence by sequence.
type Made = Vec<BTreeMap<Place, Tensor>>;

/// The sequence and place of the run that a tensor of the file holds.
type Holds = Box<dyn Fn(usize, Place) -> Option<(usize, Place)>>;

/// A map of the whole file.
struct Map {
    kind: &'static str,
    words: String,
    place: Holds,
    /// The row and column of the run, of a dump's element in a tensor of so many rows and columns.
    at: fn([usize; 2], [usize; 2]) -> Option<[usize; 2]>,
}

fn as_it_lies(at: [usize; 2], _: [usize; 2]) -> Option<[usize; 2]> {
    Some(at)
}

fn maps(batch: usize) -> Vec<Map> {
    let map = |kind, words: &str, at| Map {
        kind,
        words: words.to_owned(),
        place: Box::new(|s, place| Some((s, place))),
        at,
    };
    let mut all = vec![
        map(
            "file-late",
            "every tensor is one token late",
            |[t, c], _| Some([t.checked_sub(1)?, c]),
        ),
        map(
            "file-early",
            "every tensor is one token early",
            |[t, c], [rows, _]| (t + 1 < rows).then_some([t + 1, c]),
        ),
        map(
            "file-halves",
            "the halves of the channels are swapped in every tensor",
            |[t, c], [_, columns]| Some([t, (c + columns / 2) % columns]),
        ),
        map(
            "file-reversed",
            "the tokens of every tensor are in reverse",
            |[t, c], [rows, _]| Some([rows - 1 - t, c]),
        ),
        map(
            "file-reversed",
            "the channels of every tensor are in reverse",
            |[t, c], [_, columns]| Some([t, columns - 1 - c]),
        ),
        map(
            "file-transposed",
            "every tensor is written channel by channel",
            |[t, c], [rows, columns]| {
                let at = t * columns + c;
                Some([at % rows, at / rows])
            },
        ),
    ];
    let by_place = |kind, words: &str, place: Holds| Map {
        kind,
        words: words.to_owned(),
        place,
        at: as_it_lies,
    };
    for (by, words) in [
        (1usize, "blocks are numbered from 1"),
        (2, "blocks are numbered from 2"),
    ] {
        let lower = move |s, place: Place| {
            let layer = match place.layer {
                Some(layer) => Some(layer.checked_sub(by)?),
                None => None,
            };
            Some((s, Place { layer, ..place }))
        };
        all.push(by_place("file-numbered-from-1", words, Box::new(lower)));
    }
    if batch > 1 {
        let words = "the sequences of the batch are in reverse";
        all.push(by_place(
            "file-batch",
            words,
            Box::new(move |s, place| Some((batch - 1 - s, place))),
        ));
        let words = "each sequence holds the tensors of the one before";
        all.push(by_place(
            "file-batch",
            words,
            Box::new(move |s, place| Some(((s + batch - 1) % batch, place))),
        ));
    }
    all
}

/// How many of some elements agree, and of how many.
fn agreement(
    dumped: &Array2<f32>,
    made: &Array2<f32>,
    codes: bool,
    at: fn([usize; 2], [usize; 2]) -> Option<[usize; 2]>,
) -> (usize, usize) {
    if dumped.dim() != made.dim() {
        return (0, 1);
    }
    let (rows, columns) = dumped.dim();
    let step = (dumped.len() / SAMPLE).max(1) | 1;
    let (mut agree, mut all) = (0, 0);
    for i in (0..dumped.len()).step_by(step) {
        let here = [i / columns, i % columns];
        let Some([t, c]) = at(here, [rows, columns]) else {
            continue;
        };
        let (a, b) = (dumped[here], made[(t, c)]);
        // Zeros agree with anything.
        if a == 0.0 && b == 0.0 {
            continue;
        }
        all += 1;
        agree += usize::from(a == b || !codes && (a - b).abs() <= 2e-3 * a.abs().max(b.abs()));
    }
    (agree, all)
}

/// The share of elements that agree, tensor by tensor in the mean.
fn share(trace: &TraceFile, made: &Made, map: &Map) -> f64 {
    let (mut sum, mut count) = (0.0, 0usize);
    for (s, points) in trace.sequences.iter().enumerate() {
        for (place, value) in points {
            if place.point.is_state() || place.point.is_scale() {
                continue;
            }
            let Some((s, there)) = (map.place)(s, *place) else {
                continue;
            };
            let Some(tensor) = made[s].get(&there) else {
                continue;
            };
            let (own, _) = Value::from_tensor(tensor.clone());
            let (agree, all) =
                agreement(&values(value), &values(&own), own.dtype() == "i8", map.at);
            if all > 0 {
                sum += agree as f64 / all as f64;
                count += 1;
            }
        }
    }
    if count == 0 { 0.0 } else { sum / count as f64 }
}

fn free_run(path: &Datapath, trace: &TraceFile) -> Result<Made> {
    let tokens = trace.tokens()?;
    let runs = tokens.rows().into_iter().map(|row| {
        let mut recorder = Recorder::new(Selection::default());
        path.prefill(&row.to_vec(), LogitRows::None, &mut recorder)?;
        Ok(recorder.tensors)
    });
    runs.collect()
}

/// What is wrong with the file as a whole, if it is that.
pub(super) fn find(path: &Datapath, trace: &TraceFile) -> Result<Option<Finding>> {
    let made = free_run(path, trace)?;
    let plain = Map {
        kind: "",
        words: String::new(),
        place: Box::new(|s, place| Some((s, place))),
        at: as_it_lies,
    };
    let before = share(trace, &made, &plain);
    if before > BEFORE {
        return Ok(exchanged(path, trace, &made));
    }
    let judged = maps(made.len())
        .into_iter()
        .map(|map| (share(trace, &made, &map), map));
    let best = judged.max_by(|a, b| a.0.total_cmp(&b.0));
    if let Some((after, map)) = best
        && after >= AFTER
    {
        return Ok(Some(Finding {
            kind: map.kind,
            site: "file".to_owned(),
            severity: Severity::Error,
            share: 1.0,
            evidence: format!(
                "the file: {}; {:.1} % of the elements then agree with a free run, {:.1} % as stored",
                map.words,
                100.0 * after,
                100.0 * before
            ),
            edit: Some(map.words),
            ..Finding::default()
        }));
    }
    Ok(exchanged(path, trace, &made))
}

/// A tensor as it is before the last function of its step, which a hook that sits too early sees.
fn unfinished(path: &Datapath, made: &BTreeMap<Place, Tensor>, place: Place) -> Option<Unfinished> {
    let layer = place.layer?;
    let block = Block::of(path.mode(), path.profile(), Phase::Prefill);
    let here = made.iter().filter(|(p, _)| p.layer == Some(layer));
    let seen: Seen = here.map(|(p, tensor)| (p.point, tensor.clone())).collect();
    let scene = formula::BlockInputs {
        path,
        layer,
        block: &block,
        seen: &seen,
    };
    let mut formula = scene.formula(block.row(place.point)?)?;
    let what = match &mut formula {
        Formula::Conv(conv) => {
            conv.activation = Activation::Identity;
            "before SiLU"
        }
        Formula::Scan(scan) if !place.point.is_state() => {
            scan.gate = None;
            "before the gate"
        }
        _ => return None,
    };
    let own = made.get(&place)?;
    let values = formula.run().out;
    (values.dim() == own.dim()).then(|| Unfinished {
        what,
        value: Value::from_tensor(formula::like(&values, own)).0,
    })
}

/// What a tensor holds in the place of its own values.
struct Unfinished {
    what: &'static str,
    value: Value,
}

/// Tensors that hold another tensor of their block, or their own before its last function, in every block.
fn exchanged(path: &Datapath, trace: &TraceFile, made: &Made) -> Option<Finding> {
    let mut renamed: BTreeMap<(&'static str, String), usize> = BTreeMap::new();
    let mut blocks = BTreeSet::new();
    let first = trace.sequences.first()?;
    let places = in_data_order(first.keys().copied());
    for place in &places {
        if place.point.is_state() || place.point.is_scale() {
            continue;
        }
        let own = |place: &Place| Some(Value::from_tensor(made[0].get(place)?.clone()).0);
        let dumped = values(&first[place]);
        let agrees = |made: &Value| {
            let (agree, all) = agreement(&dumped, &values(made), made.dtype() == "i8", as_it_lies);
            agree * 10 >= all * 9 && all > 16
        };
        let Some(here) = own(place) else { continue };
        blocks.extend(place.layer);
        if agrees(&here) {
            continue;
        }
        let others = made[0].keys();
        let mut others = others.filter(|other| other.layer == place.layer && *other != place);
        let other = others.find(|other| own(other).is_some_and(|made| agrees(&made)));
        let holds = match other {
            Some(other) => Some(other.point.name().to_owned()),
            None => unfinished(path, &made[0], *place)
                .filter(|before| agrees(&before.value))
                .map(|before| format!("its values {}", before.what)),
        };
        if let Some(holds) = holds {
            *renamed.entry((place.point.name(), holds)).or_default() += 1;
        }
    }
    let often: Vec<_> = renamed
        .iter()
        .filter(|(_, count)| **count >= 2.max(blocks.len() / 2))
        .collect();
    let own_values = often
        .iter()
        .all(|((_, holds), _)| holds.starts_with("its values"));
    let kind = match own_values {
        true => "file-unfinished",
        false => "file-exchanged",
    };
    let often: Vec<String> = often
        .iter()
        .map(|((name, holds), count)| format!("{name} holds {holds} in {count} blocks"))
        .collect();
    (!often.is_empty()).then(|| Finding {
        kind,
        site: "file".to_owned(),
        severity: Severity::Error,
        share: 1.0,
        evidence: format!(
            "the file: tensors do not hold what their names say: {}",
            often.join("; ")
        ),
        edit: Some(often.join("; ")),
        ..Finding::default()
    })
}

/// Tensors in the types that the model makes them in: codes that lie as floats, or as the reals they stand
/// for. Says what was changed.
pub(super) fn own_types(path: &Datapath, sequences: &[Points]) -> (Vec<Points>, Vec<Finding>) {
    let block = Block::of(path.mode(), path.profile(), Phase::Prefill);
    let mut floats: Vec<String> = Vec::new();
    let mut reals: Vec<String> = Vec::new();
    let mut wide: Vec<String> = Vec::new();
    let changed = sequences
        .iter()
        .map(|points| {
            let mut own = Points::new();
            for (place, value) in points {
                let format = block.row(place.point).map(|row| row.format);
                let codes = matches!(format, Some(Format::Int8(_) | Format::Codes));
                let value = match (codes, value) {
                    (true, Value::F16(_) | Value::F32(_)) => match value.codes() {
                        Some(codes) => {
                            floats.push(place.key());
                            Value::I8(codes)
                        }
                        None => {
                            let scale = match (format, place.layer) {
                                (Some(Format::Int8(by)), Some(layer)) => path.scale(layer, by),
                                _ => None,
                            };
                            match scale.and_then(|s| codes_of(value, s.get())) {
                                Some(codes) => {
                                    reals.push(place.key());
                                    Value::I8(codes)
                                }
                                None => value.clone(),
                            }
                        }
                    },
                    (true, Value::I8(_)) => value.clone(),
                    (false, _) => match format.and_then(|f| value.in_type(f.dtype())) {
                        Some(Cow::Owned(narrow)) => {
                            wide.push(place.key());
                            narrow
                        }
                        _ => value.clone(),
                    },
                };
                own.insert(*place, value);
            }
            own
        })
        .collect();
    let told = |keys: Vec<String>, kind, (words, read): (&str, &str), severity| {
        let count = keys.len();
        keys.into_iter().next().map(|first| Finding {
            kind,
            site: "file".to_owned(),
            severity,
            evidence: format!("the file: {count} tensors ({first} first) {words}; read as {read}"),
            edit: Some(words.to_owned()),
            ..Finding::default()
        })
    };
    let found = [
        told(
            floats,
            "file-types",
            ("hold INT8 codes in a float type", "codes"),
            Severity::Warning,
        ),
        told(
            reals,
            "file-dequantized",
            (
                "hold dequantized values, code times scale, in the place of codes",
                "codes",
            ),
            Severity::Warning,
        ),
        told(
            wide,
            "file-types",
            ("hold f16 values in f32", "f16"),
            Severity::Info,
        ),
    ];
    (changed, found.into_iter().flatten().collect())
}

/// Tensors that were read as the codes they are, of a type that holds more.
pub(super) fn other_types(trace: &TraceFile) -> Option<Finding> {
    let first = trace.remarks.first()?;
    let count = trace.remarks.len();
    let words = "are stored in another type and read as their own";
    Some(Finding {
        kind: "file-types",
        site: "file".to_owned(),
        severity: Severity::Warning,
        evidence: format!("the file: {count} tensors {words}, the first {first}"),
        edit: Some(words.to_owned()),
        ..Finding::default()
    })
}

/// The codes of reals that lie on the grid of a scale.
fn codes_of(value: &Value, scale: f32) -> Option<Array2<i8>> {
    let reals = values(value);
    let slack = if value.dtype() == "f16" { 0.06 } else { 1e-3 };
    let on_grid = |v: &f32| {
        let units = v / scale;
        (units - units.round()).abs() <= slack && units.abs() <= 128.5
    };
    let on = reals.iter().filter(|v| on_grid(v)).count();
    (on * 100 >= reals.len() * 99)
        .then(|| reals.mapv(|v| (v / scale).round().clamp(-128.0, 127.0) as i8))
}
