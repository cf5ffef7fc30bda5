//! Are two modes the same computation? Proved on given data, bit for bit; or the first tensor and
//! element at which they part, and what makes them part.

mod why;

pub use why::{FaultDifference, FieldDifference, RuleDifference, Why};

use crate::trace_file::counterpart::{Pairing, Portion, pairings};
use ndarray::Array2;
use scalescope_sim::datapath::{Datapath, LogitRows};
use scalescope_sim::error::{Result, SimError};
use scalescope_sim::fault::Fault;
use scalescope_sim::mode::{MODES, ModeSpec};
use scalescope_sim::model::Model;
use scalescope_sim::profile::Profile;
use scalescope_sim::trace::{Place, Recorder, Selection, Tensor, TracePoint};
use serde::Serialize;
use std::collections::{BTreeMap, BTreeSet};

/// A mode, the profile it runs with, and what is put in.
#[derive(Clone, Copy, Debug)]
pub struct Run<'a> {
    /// The mode.
    pub mode: &'a ModeSpec,
    /// The profile.
    pub profile: &'a Profile,
    /// Defects.
    pub faults: &'a [Fault],
}

impl Run<'_> {
    fn path<'m>(&self, model: &'m Model) -> Result<Datapath<'m>> {
        Datapath::with_faults(model, self.mode, self.profile, self.faults)
    }
}

/// Modes that are one computation by the rules they run by, and in which profile if not in all
/// (`golden/tests/equiv.rs` and `sim/tests/identities.rs` hold them; docs/modes.md lists them).
pub const IDENTITIES: &[(&str, &str, Option<&str>, &str)] = &[
    (
        "2-0",
        "0",
        None,
        "a round trip through the same scale changes nothing",
    ),
    (
        "2-2",
        "2-1",
        None,
        "the scan has the same arithmetic on q·s, computed inside or outside",
    ),
    (
        "2-1",
        "0",
        Some("exact"),
        "they differ in implementation only",
    ),
];

/// Why two runs are one computation, if a rule says so.
pub fn by_rule(a: &Run, b: &Run) -> Option<&'static str> {
    if a.profile != b.profile || !a.faults.is_empty() || !b.faults.is_empty() {
        return None;
    }
    if a.mode == b.mode {
        return Some("the modes have the same fields");
    }
    let built_in = |mode: &ModeSpec, name| MODES.iter().any(|m| m.name == name && m == mode);
    let found = IDENTITIES.iter().find(|(x, y, profile, _)| {
        let modes = built_in(a.mode, *x) && built_in(b.mode, *y)
            || built_in(a.mode, *y) && built_in(b.mode, *x);
        let same = |name: &str| Profile::get(name).is_ok_and(|p| p == *a.profile);
        modes && profile.is_none_or(same)
    });
    found.map(|(.., why)| *why)
}

/// What two runs have in common.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Equivalence {
    /// Whether no compared element differs.
    pub equal: bool,
    /// Sequences run.
    pub sequences: usize,
    /// Tokens in prefill.
    pub prefill_tokens: usize,
    /// Tokens decoded one by one.
    pub decoded_tokens: usize,
    /// Elements compared.
    pub compared: usize,
    /// Tensors of unlike types, compared by their real values: point, type in A, type in B.
    pub by_value: BTreeSet<(&'static str, &'static str, &'static str)>,
    /// Points that only one of them makes.
    pub not_shared: BTreeSet<&'static str>,
    /// Where they part.
    pub divergence: Option<Divergence>,
}

/// The first tensor that differs, and its first element that does.
#[derive(Clone, Debug, Serialize)]
pub struct Divergence {
    /// The sequence.
    pub sequence: usize,
    /// The decode step, if it is one.
    pub step: Option<usize>,
    /// The block; `None` after the last one.
    pub layer: Option<usize>,
    /// The point in A.
    pub a_point: &'static str,
    /// The point in B.
    pub b_point: &'static str,
    /// Row and column.
    pub index: [usize; 2],
    /// The element in A; codes as codes if both are.
    pub a: f64,
    /// The element in B.
    pub b: f64,
    /// The value in steps of the grid before it was quantized, where one of them shows it.
    pub before_quantization: Option<f64>,
    /// Elements of the tensor that differ.
    pub mismatched: usize,
    /// Elements of the tensor.
    pub elements: usize,
    /// What makes them part.
    pub why: Why,
}

type Tensors = BTreeMap<Place, Tensor>;

/// What to run: all but the last `decode` tokens of each sequence in one prefill, those one by one.
#[derive(Clone, Copy, Debug)]
pub struct Data<'a> {
    /// Token ids.
    pub sequences: &'a [Vec<u32>],
    /// Tokens of each that are decoded, as far as a prefill of one token is left.
    pub decode: usize,
}

impl Data<'_> {
    fn split(&self, sequence: usize) -> (&[u32], &[u32]) {
        let tokens = &self.sequences[sequence];
        tokens.split_at(tokens.len() - self.decode.min(tokens.len() - 1))
    }
}

/// Runs both and compares every tensor that both make, and the logits.
///
/// # Errors
///
/// A model without a part that a mode needs; tensors that are not finite; nothing in common.
pub fn equivalence(
    model: &Model,
    (a, b): (Run, Run),
    data: Data,
    mut done: impl FnMut(),
) -> Result<Equivalence> {
    let (a_path, b_path) = (a.path(model)?, b.path(model)?);
    let mut out = Equivalence {
        sequences: data.sequences.len(),
        ..Equivalence::default()
    };
    'sequences: for sequence in 0..data.sequences.len() {
        let (prompt, rest) = data.split(sequence);
        out.prefill_tokens += prompt.len();
        let (mut x, mut y) = (
            Recorder::new(Selection::default()),
            Recorder::new(Selection::default()),
        );
        let (_, mut a_state) = a_path.prefill(prompt, LogitRows::All, &mut x)?;
        let (_, mut b_state) = b_path.prefill(prompt, LogitRows::All, &mut y)?;
        let mut steps = vec![(None, x.tensors, y.tensors)];
        for (step, token) in rest.iter().enumerate() {
            let (mut x, mut y) = (
                Recorder::new(Selection::default()),
                Recorder::new(Selection::default()),
            );
            a_path.decode(*token, &mut a_state, &mut x)?;
            b_path.decode(*token, &mut b_state, &mut y)?;
            out.decoded_tokens += 1;
            steps.push((Some(step), x.tensors, y.tensors));
        }
        for (step, x, y) in steps {
            if let Some(divergence) = out.compare(sequence, step, &x, &y)? {
                let why = why::why(model, (a, b), data, &divergence, &y)?;
                out.divergence = Some(Divergence { why, ..divergence });
                break 'sequences;
            }
        }
        done();
    }
    if out.compared == 0 {
        return Err(SimError::value("modes", "tensors that both make", "none"));
    }
    out.equal = out.divergence.is_none();
    Ok(out)
}

impl Equivalence {
    /// Compares the tensors of one pass; the first that differs, if any does.
    fn compare(
        &mut self,
        sequence: usize,
        step: Option<usize>,
        x: &Tensors,
        y: &Tensors,
    ) -> Result<Option<Divergence>> {
        for pair in shared(x, y, &mut self.not_shared) {
            let (a, b) = (pair.expected.expect("shared"), pair.found.expect("shared"));
            let (x_tensor, y_tensor) = (&x[&a.place()], &y[&b.place()]);
            let types = (x_tensor.dtype(), y_tensor.dtype());
            if types.0 != types.1 {
                self.by_value
                    .insert((pair.place.point.name(), types.0, types.1));
            }
            let (x_values, y_values) = values(x, a, y, b);
            self.compared += x_values.len();
            let differs = |(p, q): (&f32, &f32)| match types.0 == types.1 {
                true => p.to_bits() != q.to_bits(),
                false => p != q,
            };
            if let Some(bad) = x_values.iter().chain(&y_values).find(|v| !v.is_finite()) {
                return Err(SimError::value(pair.place, "finite numbers", bad));
            }
            let columns = x_values.ncols();
            let pairs = || x_values.iter().zip(&y_values);
            let mismatched = pairs().filter(|pair| differs(*pair)).count();
            let Some(at) = pairs().position(differs) else {
                continue;
            };
            let index = [at / columns, at % columns];
            return Ok(Some(Divergence {
                sequence,
                step,
                layer: pair.place.layer,
                a_point: a.place().point.name(),
                b_point: b.place().point.name(),
                index,
                a: f64::from(x_values[index]),
                b: f64::from(y_values[index]),
                before_quantization: before(x, y, pair.place, index),
                mismatched,
                elements: x_values.len(),
                why: Why::default(),
            }));
        }
        Ok(None)
    }
}

/// Pairs that both runs make, in the order of the data. Halves of x‖z are the same tensor; any other
/// stand-in is shared only if it is of the same type.
fn shared(x: &Tensors, y: &Tensors, not_shared: &mut BTreeSet<&'static str>) -> Vec<Pairing> {
    let places = |t: &Tensors| t.keys().copied().collect::<BTreeSet<Place>>();
    let all = pairings(&places(x), &places(y), true);
    let is_shared = |pair: &Pairing| {
        let (Some(a), Some(b)) = (pair.expected, pair.found) else {
            return false;
        };
        let half = matches!(pair.place.point, TracePoint::InProjX | TracePoint::InProjZ);
        let (x, y) = (&x[&a.place()], &y[&b.place()]);
        // Codes whose scale varies say nothing beside those of a fixed one.
        let alike = x.dtype() == y.dtype() && x.scale().is_some() == y.scale().is_some();
        a.place() == b.place() || half || alike
    };
    let (shared, others): (Vec<Pairing>, Vec<Pairing>) = all.into_iter().partition(is_shared);
    not_shared.extend(others.iter().map(|pair| pair.place.point.name()));
    shared
}

/// What is compared: codes if both are codes of one scale, real values otherwise.
fn values(x: &Tensors, a: Portion, y: &Tensors, b: Portion) -> (Array2<f32>, Array2<f32>) {
    let codes = |tensor: &Tensor| match tensor {
        Tensor::I8(q) => Some(q.codes.mapv(f32::from)),
        Tensor::Codes(codes) => Some(codes.mapv(f32::from)),
        _ => None,
    };
    let (x_tensor, y_tensor) = (&x[&a.place()], &y[&b.place()]);
    let one_grid = x_tensor.scale() == y_tensor.scale();
    let (x, y) = match (codes(x_tensor), codes(y_tensor)) {
        (Some(x), Some(y)) if one_grid => (x, y),
        _ => (x_tensor.to_real(), y_tensor.to_real()),
    };
    (a.columns_of(&x, y.ncols()), b.columns_of(&y, x.ncols()))
}

/// The conv's real output at an element of a tensor quantized from it, in steps of the grid.
fn before(x: &Tensors, y: &Tensors, place: Place, index: [usize; 2]) -> Option<f64> {
    use TracePoint as P;
    if !matches!(place.point, P::ConvOut | P::XProjIn | P::SsmU) {
        return None;
    }
    let at = |point| Place { point, ..place };
    let scale = [x, y].iter().find_map(|run| {
        let points = [place.point, P::ConvOut, P::XProjIn, P::SsmU];
        points
            .iter()
            .find_map(|point| run.get(&at(*point))?.scale())
    })?;
    let real = [x, y]
        .iter()
        .find_map(|run| match run.get(&at(P::ConvOutF32)) {
            Some(Tensor::F32(values)) => values.get(index).copied(),
            _ => None,
        })?;
    Some(f64::from(real) / f64::from(scale.get()))
}
