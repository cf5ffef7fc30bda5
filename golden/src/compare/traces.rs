//! Two traces, tensor by tensor: every metric, layouts that differ, scales that differ.

use super::{
    Comparison, Difference, LeftOut, Mismatch, OneTrace, TensorInfo, Tolerance, Tolerances, unravel,
};
use crate::layout::{RecognisedLayout, Side, detect_in};
use crate::metrics::{Accumulator, Metric, Reading};
use crate::trace_file::counterpart::{Pairing, Portion, Taken, pairings};
use crate::trace_file::{OpenTrace, Points, TraceFile, step_key};
use crate::value::Value;
use ndarray::Array2;
use rayon::prelude::*;
use scalescope_sim::error::{Result, SimError};
use scalescope_sim::trace::Place;
use std::collections::BTreeSet;

/// How two traces are compared.
#[derive(Clone, Debug, Default)]
pub struct CompareOptions {
    /// What differences are forgiven; nothing is unless set here, logits included.
    pub tolerances: Tolerances,
    /// Compare what both hold and list the rest, instead of refusing traces that hold different
    /// tensors.
    pub common: bool,
}

/// A trace as a comparison reads it: what it holds, and its tensors when they are asked for.
pub trait Source: Sync {
    /// The trace; its tensors may be missing.
    fn head(&self) -> &TraceFile;
    /// Number of sequences B.
    fn batch(&self) -> usize;
    /// Places of the prefill or of a decode step.
    fn places(&self, step: Option<usize>) -> BTreeSet<Place>;
    /// Tensors of the prefill or of a decode step, one map a sequence.
    fn read(&self, step: Option<usize>, places: &[Place]) -> Result<Vec<Points>>;
}

impl Source for TraceFile {
    fn head(&self) -> &TraceFile {
        self
    }

    fn batch(&self) -> usize {
        TraceFile::batch(self)
    }

    fn places(&self, step: Option<usize>) -> BTreeSet<Place> {
        let points = sequences(self, step).first();
        points.into_iter().flat_map(|p| p.keys().copied()).collect()
    }

    fn read(&self, step: Option<usize>, places: &[Place]) -> Result<Vec<Points>> {
        let points = |of: &Points| -> Points {
            let values = places.iter().filter_map(|p| Some((*p, of.get(p)?.clone())));
            values.collect()
        };
        Ok(sequences(self, step).iter().map(points).collect())
    }
}

impl Source for OpenTrace<'_> {
    fn head(&self) -> &TraceFile {
        OpenTrace::head(self)
    }

    fn batch(&self) -> usize {
        OpenTrace::batch(self)
    }

    fn places(&self, step: Option<usize>) -> BTreeSet<Place> {
        OpenTrace::places(self, step)
    }

    fn read(&self, step: Option<usize>, places: &[Place]) -> Result<Vec<Points>> {
        OpenTrace::read(self, step, places)
    }
}

/// Compares every tensor of two traces, prefill and decode; `expected` is the reference. A thread of the
/// pool has one pair of tensors in memory at a time.
///
/// # Errors
///
/// Traces of other tokens, other numbers of sequences or another model; tensors that only one of them
/// holds, unless that is asked for; shapes that no layout explains; NaN or infinity; nothing to
/// compare.
pub fn compare_traces(
    expected: &impl Source,
    found: &impl Source,
    options: &CompareOptions,
) -> Result<Comparison> {
    same_origin(expected, found)?;
    let pairs = pairs(expected, found);
    let left_out = left_out(&pairs, expected.head(), found.head());
    if let (false, Some(first)) = (options.common, left_out.first()) {
        let more = match left_out.len() - 1 {
            0 => String::new(),
            more => format!(" (and {more} more keys in one of them only)"),
        };
        return Err(SimError::value(
            &first.key,
            "a tensor that both traces hold, or --common to compare only those",
            format_args!("it in {} only{more}", first.only_in),
        ));
    }
    let both: Vec<&(Option<usize>, Pairing)> = (pairs.iter())
        .filter(|(_, pair)| pair.expected.is_some() && pair.found.is_some())
        .collect();
    if both.is_empty() {
        return Err(SimError::value(
            "traces",
            "at least one tensor that both hold",
            "none",
        ));
    }
    let points: Vec<Difference> = both
        .into_par_iter()
        .map(|(step, pair)| difference((expected, found), *step, *pair, options))
        .collect::<Result<_>>()?;
    Ok(Comparison {
        points,
        left_out,
        tokens_compared: expected.head().tokens.is_some() && found.head().tokens.is_some(),
    })
}

/// Refuses traces of other inputs.
fn same_origin(expected: &impl Source, found: &impl Source) -> Result<()> {
    let batches = (expected.batch(), found.batch());
    let (expected, found) = (expected.head(), found.head());
    let model = |trace: &TraceFile| trace.meta.as_ref().and_then(|meta| meta.model.clone());
    if let (Some(x), Some(y)) = (model(expected), model(found))
        && x != y
    {
        return Err(SimError::value("meta: model", x, y));
    }
    if let (Some(x), Some(y)) = (&expected.tokens, &found.tokens) {
        if x.dim() != y.dim() {
            let words = |dim: (usize, usize)| format!("[{}, {}]", dim.0, dim.1);
            return Err(SimError::value("tokens", words(x.dim()), words(y.dim())));
        }
        if let Some(((b, t), id)) = x.indexed_iter().find(|(at, id)| y[*at] != **id) {
            return Err(SimError::value(
                format_args!("tokens[{b}, {t}]"),
                id,
                y[(b, t)],
            ));
        }
    }
    for step in &expected.steps {
        if let Some(other) = found.steps.iter().find(|other| other.index == step.index)
            && !step.tokens.is_empty()
            && !other.tokens.is_empty()
            && step.tokens != other.tokens
        {
            return Err(SimError::value(
                format_args!("step_{}/token", step.index),
                format_args!("{:?}", step.tokens),
                format_args!("{:?}", other.tokens),
            ));
        }
    }
    match batches {
        (x, y) if x != y && x > 0 && y > 0 => Err(SimError::value("sequences", x, y)),
        _ => Ok(()),
    }
}

/// Tensors that stand against each other, of the prefill and of every decode step.
fn pairs(expected: &impl Source, found: &impl Source) -> Vec<(Option<usize>, Pairing)> {
    let mode = |trace: &TraceFile| trace.meta.as_ref().and_then(|meta| meta.mode.clone());
    let (x, y) = (expected.head(), found.head());
    let stand_ins = mode(x).is_none() || mode(x) != mode(y);
    let steps: BTreeSet<Option<usize>> = (x.steps.iter().chain(&y.steps))
        .map(|step| Some(step.index))
        .chain([None])
        .collect();
    let of_step = |step| {
        pairings(&expected.places(step), &found.places(step), stand_ins)
            .into_iter()
            .map(move |pair| (step, pair))
    };
    steps.into_iter().flat_map(of_step).collect()
}

fn sequences(trace: &TraceFile, step: Option<usize>) -> &[Points] {
    match step {
        None => &trace.sequences,
        Some(index) => trace
            .steps
            .iter()
            .find(|step| step.index == index)
            .map_or(&[], |step| &step.sequences),
    }
}

fn left_out(
    pairs: &[(Option<usize>, Pairing)],
    expected: &TraceFile,
    found: &TraceFile,
) -> Vec<LeftOut> {
    let of_pairs = pairs.iter().filter_map(|(step, pair)| {
        let only_in = match (pair.expected, pair.found) {
            (Some(_), None) => OneTrace::Expected,
            (None, Some(_)) => OneTrace::Found,
            _ => return None,
        };
        let key = match step {
            Some(step) => format!("step_{step}/{}", step_key(pair.place)),
            None => pair.place.key(),
        };
        Some(LeftOut { key, only_in })
    });
    let unknown = [(expected, OneTrace::Expected), (found, OneTrace::Found)];
    let unknown = unknown.into_iter().flat_map(|(trace, only_in)| {
        let keys = trace.unknown.iter().cloned();
        keys.map(move |key| LeftOut { key, only_in })
    });
    of_pairs.chain(unknown).collect()
}

/// A tensor of every sequence.
fn take(trace: &impl Source, step: Option<usize>, take: Portion, real: bool) -> Result<Vec<Taken>> {
    let place = take.place();
    let scales = place.point.scales().filter(|_| real);
    let scales = scales.map(|point| Place { point, ..place });
    let places: Vec<Place> = [place].into_iter().chain(scales).collect();
    let sequences = trace.read(step, &places)?.into_iter();
    let taken = sequences.map(|points| match real {
        true => take.real_of(points, &trace.head().scales),
        false => take.of(points, &trace.head().scales),
    });
    let taken = taken.map(|t| t.expect("sequences hold the same places"));
    Ok(taken.collect())
}

fn difference(
    (expected, found): (&impl Source, &impl Source),
    step: Option<usize>,
    pair: Pairing,
    options: &CompareOptions,
) -> Result<Difference> {
    let (Some(x_take), Some(y_take)) = (pair.expected, pair.found) else {
        unreachable!("pairs with one side are left out");
    };
    // Codes with a varying scale compare as codes with their like, as reals with anything else.
    let is_static = |trace: &TraceFile, take: Portion| trace.scales.contains_key(&take.place());
    let real = x_take.place().point != y_take.place().point
        || is_static(expected.head(), x_take) != is_static(found.head(), y_take);
    let x = take(expected, step, x_take, real)?;
    let y = take(found, step, y_take, real)?;
    let columns = |taken: &[Taken]| taken[0].value.dim().1;
    let (of_x, of_y) = (columns(&x), columns(&y));
    let cut = |taken: Vec<Taken>, take, other| -> Vec<Taken> {
        let cut = taken.into_iter().map(|one| one.columns(take, other));
        cut.collect()
    };
    let (x, y) = (cut(x, x_take, of_y), cut(y, y_take, of_x));
    let (labels, x, y) = of_one_type(x, y);
    let tolerance = options.tolerances.set_for(pair.place);
    let mut out = Difference {
        step,
        layer: pair.place.layer,
        point: pair.place.point.name(),
        expected: describe(&x, x_take),
        found: describe(&y, y_take),
        beyond_tolerance: 0,
        tolerance: tolerance.unwrap_or(Tolerance::Exact),
        first: None,
        metrics: None,
        layouts: Vec::new(),
    };
    if out.expected.shape == out.found.shape {
        measure(&mut out, &x, &y)?;
    } else {
        out.beyond_tolerance = out.compared();
    }
    (out.expected.dtype, out.found.dtype) = labels;
    if out.beyond_tolerance > 0 {
        out.layouts = layouts(&out, &x, &y);
    }
    if out.metrics.is_none() && out.layouts.is_empty() {
        let words = |side: &TensorInfo| format!("{} {:?}", side.dtype, side.shape);
        return Err(SimError::value(
            out.key(),
            words(&out.expected),
            words(&out.found),
        ));
    }
    Ok(out)
}

/// Codes in a float type, against codes, are codes, of the scale of the others if they have none. Also
/// the types as they lie in the files.
fn of_one_type(
    x: Vec<Taken>,
    y: Vec<Taken>,
) -> ((&'static str, &'static str), Vec<Taken>, Vec<Taken>) {
    let label = |taken: &[Taken]| taken[0].value.dtype();
    let (x_type, y_type) = (label(&x), label(&y));
    let codes = |floats: &[Taken], codes: &[Taken]| -> Option<Vec<Taken>> {
        let scale = codes[0].scale;
        let read = |taken: &Taken| {
            let value = Value::I8(taken.value.codes()?);
            let scale = taken.scale.or(scale);
            Some(Taken { value, scale })
        };
        floats.iter().map(read).collect()
    };
    let stored = |dtype| match dtype {
        "f16" => "i8 in f16",
        _ => "i8 in f32",
    };
    let (read, label) = match (x_type, y_type) {
        ("i8", "i8") => return ((x_type, y_type), x, y),
        ("i8", _) => (codes(&y, &x), (x_type, stored(y_type))),
        (_, "i8") => (codes(&x, &y), (stored(x_type), y_type)),
        _ => (None, (x_type, y_type)),
    };
    match (read, x_type) {
        (Some(read), "i8") => (label, x, read),
        (Some(read), _) => (label, read, y),
        (None, _) => ((x_type, y_type), x, y),
    }
}

fn describe(taken: &[Taken], take: Portion) -> TensorInfo {
    let first = taken.first().expect("a trace with tensors has sequences");
    let (rows, columns) = first.value.dim();
    TensorInfo {
        point: take.place().point.name(),
        dtype: first.value.dtype(),
        shape: [taken.len(), rows, columns],
        scale: first.scale,
    }
}

fn measure(out: &mut Difference, x: &[Taken], y: &[Taken]) -> Result<()> {
    let key = out.key();
    for (side, other, whose) in [
        (&out.expected, &out.found, "A"),
        (&out.found, &out.expected, "B"),
    ] {
        if side.dtype == "i8" && side.scale.is_none() && other.dtype != "i8" {
            return Err(SimError::value(
                format_args!("scale/{key}"),
                format_args!(
                    "the scale of {whose}'s codes, to compare them with {}",
                    other.dtype
                ),
                "no such key",
            ));
        }
    }
    let atol = match out.tolerance {
        Tolerance::Atol(atol) => Some(atol),
        _ => None,
    };
    let mut sums = Accumulator::new(out.expected.scale, out.found.scale).forgiving(atol);
    for (x, y) in x.iter().zip(y) {
        sums.add(x.value.elements(), y.value.elements())?;
    }
    out.beyond_tolerance = sums.beyond();
    out.first = sums.first().map(|at| {
        let [_, rows, columns] = out.expected.shape;
        let (sequence, within) = (at / (rows * columns), at % (rows * columns));
        Mismatch {
            index: unravel(&[sequence], &[rows, columns], within),
            expected: x[sequence].value.elements().get(within),
            found: y[sequence].value.elements().get(within),
        }
    });
    let metrics = sums.finish()?;
    if metrics.get(Metric::MaxAbsError) == Reading::NonFinite {
        return Err(non_finite(&key, x, y, metrics.non_finite));
    }
    out.metrics = Some(metrics);
    Ok(())
}

/// NaN and infinity are refused: no metric says anything about them.
fn non_finite(key: &str, x: &[Taken], y: &[Taken], count: usize) -> SimError {
    let sides = [("A", x), ("B", y)];
    let first = sides.iter().find_map(|(whose, taken)| {
        taken.iter().enumerate().find_map(|(b, taken)| {
            let elements = taken.value.elements();
            let at = (0..elements.len()).find(|at| !elements.get(*at).is_finite())?;
            let columns = taken.value.dim().1;
            let (row, column) = (at / columns, at % columns);
            Some(format!(
                "{} in {whose} at [{b}, {row}, {column}], {count} such elements",
                elements.get(at)
            ))
        })
    });
    SimError::value(key, "finite numbers", first.unwrap_or_default())
}

fn layouts(out: &Difference, x: &[Taken], y: &[Taken]) -> Vec<RecognisedLayout> {
    let (x, y) = (stacked(x), stacked(y));
    detect_in(
        Side {
            elements: x.elements(),
            shape: &out.expected.shape,
            scale: out.expected.scale,
        },
        Side {
            elements: y.elements(),
            shape: &out.found.shape,
            scale: out.found.scale,
        },
        &[],
    )
}

/// Sequences one below the other, as one tensor.
fn stacked(taken: &[Taken]) -> Value {
    fn rows<'a, T: Copy + 'a>(parts: impl Iterator<Item = &'a Array2<T>>) -> Array2<T> {
        let parts: Vec<_> = parts.map(|a| a.view()).collect();
        ndarray::concatenate(ndarray::Axis(0), &parts).expect("sequences have one shape")
    }
    macro_rules! rows_as {
        ($variant:path) => {
            $variant(rows(taken.iter().map(|t| match &t.value {
                $variant(array) => array,
                _ => unreachable!("sequences have one type"),
            })))
        };
    }
    match &taken[0].value {
        Value::I8(_) => rows_as!(Value::I8),
        Value::F16(_) => rows_as!(Value::F16),
        Value::F32(_) => rows_as!(Value::F32),
    }
}
