//! The selective scan: x_t = decay·x_{t−1} + input, y_t = C·x_t + D·u, gated by SiLU(z).
//! Source: `docs/arithmetic.md`, "The rules of each arithmetic".
//!
//! Channels are independent, so every order runs on tiles of [`LANES`] channels side by side:
//! a lane is a channel, and no operation crosses lanes.
//!
//! | file | what it has |
//! |---|---|
//! | `scan` | inputs, weights, dispatch |
//! | `scan_formula` | the three formulas |
//! | `scan_codes` | what depends on channel and code alone: softplus and decays by code of dt |
//! | `scan_tile` | a tile on its way through time: loading, functions, gate |
//! | `scan_sequential`, `scan_sum`, `scan_block`, `scan_update` | the orders of the recurrence |

use super::scan_block::BlockScan;
use super::scan_codes::{CodeTable, GateTable};
use super::scan_formula::{Formula, Fused, Grouped, Separate};
use super::scan_sequential::SequentialScan;
use super::scan_sum::SummedScan;
use super::scan_tile::{Recurrence, Scratch, Tile};
use super::scan_update::GroupedUpdate;
use crate::arith::real::{Ieee, LANES, Lanes, RealMath, RealRules, lanes};
use crate::arith::requant::QuantRule;
use crate::arith::saturate::Status;
use crate::arith::sfu::{CudaFast, CudaLibm, CudaSubnormal};
use crate::fault::ScanParameter;
use crate::isa::{Kernel, dispatch};
use crate::kernels::columns::SplitColumns;
use crate::kernels::team::share;
use crate::profile::{ScanFormula, ScanOrder, ScanRules};
use crate::quant::{QTensor, QVector, Scale};
use half::f16;
use ndarray::Array2;
use std::sync::OnceLock;

/// A tensor the scan reads: codes and the scale it believes them to have, or real values.
#[derive(Clone, Copy, Debug)]
pub enum Source<'a> {
    /// INT8 codes, dequantized inside.
    Int8 {
        /// Row-major codes.
        codes: &'a Array2<i8>,
        /// Scale.
        scale: Scale,
    },
    /// Real values.
    Real(&'a Array2<f32>),
}

impl Source<'_> {
    pub(super) fn scale(&self) -> f32 {
        match self {
            Source::Int8 { scale, .. } => scale.get(),
            Source::Real(_) => 1.0,
        }
    }

    pub(super) fn rows(&self) -> usize {
        match self {
            Source::Int8 { codes, .. } => codes.nrows(),
            Source::Real(values) => values.nrows(),
        }
    }

    /// Rows `first_row..` of the columns `first..first + width` as lanes, codes as f32; lanes from
    /// `width` on are zero.
    #[inline(always)]
    pub(super) fn load(&self, first_row: usize, first: usize, width: usize, to: &mut [Lanes]) {
        match self {
            Source::Int8 { codes, .. } => {
                load_rows(codes, first_row, first, width, to, f32::from);
            }
            Source::Real(values) => load_rows(values, first_row, first, width, to, |v| v),
        }
    }

    /// Rows `first..` times the scale, as many as `to` holds.
    #[inline(always)]
    pub(super) fn rows_of<R: RealMath>(&self, first: usize, to: &mut [f32]) {
        let scale = self.scale();
        match self {
            Source::Int8 { codes, .. } => {
                let all = codes.as_slice().expect("activations are row-major");
                let from = &all[first * codes.ncols()..][..to.len()];
                for (to, q) in to.iter_mut().zip(from) {
                    *to = R::mul(scale, f32::from(*q));
                }
            }
            Source::Real(values) => {
                let all = values.as_slice().expect("activations are row-major");
                to.copy_from_slice(&all[first * values.ncols()..][..to.len()]);
            }
        }
    }

    /// All codes or values times the scale.
    fn real<R: RealMath>(&self) -> Vec<f32> {
        let scale = self.scale();
        match self {
            Source::Int8 { codes, .. } => {
                codes.iter().map(|q| R::mul(scale, f32::from(*q))).collect()
            }
            Source::Real(values) => values.iter().map(|v| R::mul(scale, *v)).collect(),
        }
    }
}

#[inline(always)]
fn load_rows<T: Copy>(
    matrix: &Array2<T>,
    first_row: usize,
    first: usize,
    width: usize,
    to: &mut [Lanes],
    real: impl Fn(T) -> f32,
) {
    let columns = matrix.ncols();
    let all = matrix.as_slice().expect("activations are row-major");
    let rows = all[first_row * columns..].chunks_exact(columns);
    for (to, row) in to.iter_mut().zip(rows) {
        let row = &row[first..][..width];
        if let Ok(row) = <&[T; LANES]>::try_from(row) {
            *to = lanes(|e| real(row[e]));
        } else {
            *to = [0.0; LANES];
            for (lane, value) in to.iter_mut().zip(row) {
                *lane = real(*value);
            }
        }
    }
}

/// The parameters of a scan: codes (as f32) with their scales, or real values with scale 1.
#[derive(Clone, Debug)]
pub struct ScanWeight {
    /// `[N, E]`.
    pub(crate) a_log: Vec<f32>,
    pub(crate) a_log_scale: f32,
    pub(crate) d: Vec<f32>,
    pub(crate) d_scale: f32,
    pub(crate) dt_bias: Vec<f32>,
    pub(crate) dt_bias_scale: f32,
    states: usize,
    /// exp(A_log), the N vectors of each tile of channels one after another, of each [`RealRules`]
    /// that has run; lanes without a channel are zero.
    alpha: [OnceLock<Vec<Lanes>>; RealRules::ALL.len()],
}

impl ScanWeight {
    /// From INT8 codes: A_log `[E, N]`, D and dt_bias E.
    pub fn int8(a_log: &QTensor, d: &QVector, dt_bias: &QVector) -> Self {
        let (e, n) = a_log.codes.dim();
        let real = |codes: &[i8]| codes.iter().map(|q| f32::from(*q)).collect();
        Self {
            a_log: (0..n)
                .flat_map(|n| (0..e).map(move |c| (c, n)))
                .map(|at| f32::from(a_log.codes[at]))
                .collect(),
            a_log_scale: a_log.scale.get(),
            d: real(&d.codes),
            d_scale: d.scale.get(),
            dt_bias: real(&dt_bias.codes),
            dt_bias_scale: dt_bias.scale.get(),
            states: n,
            alpha: Default::default(),
        }
    }

    /// From real values: A_log `[E, N]`, D and dt_bias E.
    pub fn float<W: Copy + Into<f32>>(a_log: &Array2<f32>, d: &[f32], dt_bias: &[W]) -> Self {
        let (e, n) = a_log.dim();
        Self {
            a_log: (0..n)
                .flat_map(|n| (0..e).map(move |c| (c, n)))
                .map(|at| a_log[at])
                .collect(),
            a_log_scale: 1.0,
            d: d.to_vec(),
            d_scale: 1.0,
            dt_bias: dt_bias.iter().map(|b| (*b).into()).collect(),
            dt_bias_scale: 1.0,
            states: n,
            alpha: Default::default(),
        }
    }

    /// The parameters with the codes of one of them for real values, scale 1 (a fault).
    #[must_use]
    pub fn without_scale(&self, site: ScanParameter) -> Self {
        let mut without = Self {
            alpha: Default::default(),
            ..self.clone()
        };
        *match site {
            ScanParameter::ALog => &mut without.a_log_scale,
            ScanParameter::D => &mut without.d_scale,
            ScanParameter::DtBias => &mut without.dt_bias_scale,
        } = 1.0;
        without
    }

    /// D and dt_bias of the channels from `first` on, dequantized.
    #[inline(always)]
    pub(super) fn skip_and_bias<R: RealMath>(&self, first: usize, width: usize) -> (Lanes, Lanes) {
        let of = |scale: f32, values: &[f32]| {
            let mut all = [0.0; LANES];
            all[..width].copy_from_slice(&values[first..][..width]);
            lanes(|e| R::mul(scale, all[e]))
        };
        (
            of(self.d_scale, &self.d),
            of(self.dt_bias_scale, &self.dt_bias),
        )
    }

    fn alpha<R: RealMath>(&self, rules: RealRules) -> &[Lanes] {
        self.alpha[rules as usize].get_or_init(|| {
            let e = self.channels();
            let mut alpha = vec![[0.0; LANES]; e.div_ceil(LANES) * self.states];
            for (i, q) in self.a_log.iter().enumerate() {
                let (n, c) = (i / e, i % e);
                let value = R::exp(R::mul(self.a_log_scale, *q));
                alpha[c / LANES * self.states + n][c % LANES] = value;
            }
            alpha
        })
    }

    /// The codes of A_log `[E, N]`, D and dt_bias. Meaningful for INT8 parameters only.
    pub fn tensors(&self) -> (QTensor, QVector, QVector) {
        let scale = |v: f32| Scale::new(v).expect("scales were checked when they were read");
        let e = self.channels();
        let codes = |values: &[f32]| values.iter().map(|q| *q as i8).collect();
        let a_log = QTensor {
            codes: Array2::from_shape_fn((e, self.states), |(c, n)| self.a_log[n * e + c] as i8),
            scale: scale(self.a_log_scale),
        };
        let d = QVector {
            codes: codes(&self.d),
            scale: scale(self.d_scale),
        };
        let dt_bias = QVector {
            codes: codes(&self.dt_bias),
            scale: scale(self.dt_bias_scale),
        };
        (a_log, d, dt_bias)
    }

    /// exp(A_log) of a channel's states, correctly rounded.
    pub(super) fn exact_alpha(&self, channel: usize) -> impl Fn(usize) -> f32 {
        let alpha = self.alpha::<Ieee>(RealRules::CorrectlyRounded);
        let tile = &alpha[channel / LANES * self.states..][..self.states];
        move |n| tile[n][channel % LANES]
    }

    /// D and dt_bias of a channel, dequantized.
    pub(super) fn exact_skip_and_bias(&self, channel: usize) -> (f32, f32) {
        let (skip, bias) = self.skip_and_bias::<Ieee>(channel, 1);
        (skip[0], bias[0])
    }

    /// Codes of D, and their scale.
    pub(super) fn skip_codes(&self) -> (Vec<i64>, f32) {
        (self.d.iter().map(|q| *q as i64).collect(), self.d_scale)
    }

    /// E.
    pub fn channels(&self) -> usize {
        self.d.len()
    }

    /// N.
    pub fn states(&self) -> usize {
        self.states
    }
}

/// What a scan reads, one sequence.
#[derive(Clone, Copy, Debug)]
pub struct ScanInputs<'a> {
    /// `[L, E]`.
    pub u: Source<'a>,
    /// `[L, E]`, before its bias.
    pub dt: Source<'a>,
    /// `[L, N]`.
    pub b: Source<'a>,
    /// `[L, N]`.
    pub c: Source<'a>,
    /// `[L, E]`; `None` leaves the output ungated.
    pub z: Option<Source<'a>>,
    /// State before the first token, `[E, N]`; zeros if `None`.
    pub state: Option<Source<'a>>,
}

impl ScanInputs<'_> {
    /// L, tokens.
    pub fn rows(&self) -> usize {
        self.u.rows()
    }
}

/// What a scan emits.
#[derive(Clone, Debug)]
pub struct ScanOutput {
    /// Gated output, `[L, E]` FP32, before any rounding to f16.
    pub y: Array2<f32>,
    /// State after the last token, `[E, N]` FP32.
    pub state: Array2<f32>,
}

/// Runs a scan by its rules.
pub fn selective_scan(rules: &ScanRules, weight: &ScanWeight, inputs: &ScanInputs) -> ScanOutput {
    let mut y = Array2::zeros((inputs.u.rows(), weight.channels()));
    let mut state = Array2::zeros((weight.channels(), weight.states()));
    let (to, last) = (Outputs::f32(&mut y), States::real(&mut state));
    let _ = scan(rules, weight, inputs, to, last);
    ScanOutput { y, state }
}

/// [`selective_scan`] with its output rounded to binary16; the state is FP32 all the same.
pub fn selective_scan_f16(
    rules: &ScanRules,
    weight: &ScanWeight,
    inputs: &ScanInputs,
) -> (Array2<f16>, Array2<f32>) {
    let mut y = Array2::zeros((inputs.u.rows(), weight.channels()));
    let mut state = Array2::zeros((weight.channels(), weight.states()));
    let (to, last) = (Outputs::f16(&mut y), States::real(&mut state));
    let _ = scan(rules, weight, inputs, to, last);
    (y, state)
}

/// A scan with the quantizer of its state, tile by tile: one token, or a few. The output goes where
/// `y` says. `None` if the quantizer must see the whole state.
pub fn selective_scan_quantize(
    rules: &ScanRules,
    weight: &ScanWeight,
    inputs: &ScanInputs,
    y: Outputs,
    scale: Scale,
) -> Option<(QTensor, Status)> {
    if inputs.rows() > STRETCH || rules.state.rounding.lfsr().is_some() {
        return None;
    }
    let mut codes = Array2::zeros((weight.channels(), weight.states()));
    let last = States::Int8(SplitColumns::new(&mut codes), scale, rules.state);
    let status = scan(rules, weight, inputs, y, last);
    Some((QTensor { codes, scale }, status))
}

/// Tokens whose inputs and outputs fit the second-level cache.
const STRETCH: usize = 512;

/// Where outputs go, `[L, E]`.
pub enum Outputs<'a> {
    /// Rounded to binary16.
    F16(SplitColumns<'a, f16>),
    /// As they are.
    F32(SplitColumns<'a, f32>),
}

impl<'a> Outputs<'a> {
    /// Rounded to binary16.
    pub fn f16(y: &'a mut Array2<f16>) -> Self {
        Self::F16(SplitColumns::new(y))
    }

    /// As they are.
    pub fn f32(y: &'a mut Array2<f32>) -> Self {
        Self::F32(SplitColumns::new(y))
    }
}

/// Where states go, `[E, N]`.
pub(super) enum States<'a> {
    Real(SplitColumns<'a, f32>),
    /// Quantized after the last token.
    Int8(SplitColumns<'a, i8>, Scale, QuantRule),
}

impl<'a> States<'a> {
    fn real(state: &'a mut Array2<f32>) -> Self {
        Self::Real(SplitColumns::new(state))
    }
}

fn scan(
    rules: &ScanRules,
    weight: &ScanWeight,
    inputs: &ScanInputs,
    y: Outputs,
    state: States,
) -> Status {
    match rules.real {
        RealRules::CorrectlyRounded => scan_in::<Ieee>(rules, weight, inputs, y, state),
        RealRules::SpecialFunctionUnit => scan_in::<CudaFast>(rules, weight, inputs, y, state),
        RealRules::CudaLibm => scan_in::<CudaLibm>(rules, weight, inputs, y, state),
        RealRules::SpecialFunctionUnitSubnormal => {
            scan_in::<CudaSubnormal>(rules, weight, inputs, y, state)
        }
    }
}

fn scan_in<R: RealMath>(
    rules: &ScanRules,
    weight: &ScanWeight,
    inputs: &ScanInputs,
    y: Outputs,
    state: States,
) -> Status {
    match (rules.formula, rules.order) {
        (ScanFormula::Fused, ScanOrder::Sequential) => {
            tiles::<R, Fused, SequentialScan>(rules, weight, inputs, y, state)
        }
        (ScanFormula::Fused, ScanOrder::WarpBlock) => {
            tiles::<R, Fused, BlockScan>(rules, weight, inputs, y, state)
        }
        (ScanFormula::Separate, _) => {
            tiles::<R, Separate, SummedScan>(rules, weight, inputs, y, state)
        }
        (ScanFormula::Grouped, _) => {
            tiles::<R, Grouped, GroupedUpdate>(rules, weight, inputs, y, state)
        }
    }
}

/// Runs every tile of channels, one stretch of time after another: a tile reads a quarter of each line
/// of the cache, and its neighbours find the rest there.
fn tiles<R, F, O>(
    rules: &ScanRules,
    weight: &ScanWeight,
    inputs: &ScanInputs,
    y: Outputs,
    state: States,
) -> Status
where
    R: RealMath,
    F: Formula<R> + Formula<R::OfResults>,
    O: Recurrence<R::OfResults, F>,
{
    /// Token-states that are worth a thread of their own.
    const TASK: usize = 1 << 13;
    let (e, n, l) = (weight.channels(), weight.states(), inputs.u.rows());
    let (b, c) = (inputs.b.real::<R>(), inputs.c.real::<R>());
    let alpha = weight.alpha::<R>(rules.real);
    let terms = O::terms(rules.sum, n);
    let gate = GateTable::of::<R, F>(inputs.z.as_ref(), l);
    let mut status = Status::default();
    let stretch = STRETCH.next_multiple_of(O::chunk(l));
    let scratch = || {
        let table = CodeTable::of(&inputs.dt, stretch.min(l), n);
        let chunk = O::chunk(l).min(l);
        let decays = O::decays(l, n, table.is_some()).min(chunk);
        Scratch::new(chunk, decays, n, &terms, table)
    };
    for from in (0..l).step_by(stretch) {
        let tokens = from..(from + stretch).min(l);
        let at_once = (TASK / (tokens.len() * n * LANES)).max(1);
        status += share(e.div_ceil(LANES), at_once, scratch, |scratch, tile| {
            let first = tile * LANES;
            dispatch(Channels::<R, F, O> {
                tile: Tile {
                    weight,
                    inputs,
                    b: &b,
                    c: &c,
                    alpha: &alpha[tile * n..][..n],
                    sum: rules.sum,
                    terms: &terms,
                    gate: gate.as_ref(),
                    first,
                    width: LANES.min(e - first),
                    y: &y,
                    state: &state,
                },
                tokens: tokens.clone(),
                scratch,
                rules: std::marker::PhantomData,
            })
        });
    }
    status
}

/// One tile of channels through a stretch of time.
struct Channels<'a, R, F, O> {
    tile: Tile<'a>,
    tokens: std::ops::Range<usize>,
    scratch: &'a mut Scratch,
    rules: std::marker::PhantomData<(R, F, O)>,
}

impl<R, F, O> Kernel for Channels<'_, R, F, O>
where
    R: RealMath,
    F: Formula<R> + Formula<R::OfResults>,
    O: Recurrence<R::OfResults, F>,
{
    type Output = Status;

    #[inline(always)]
    fn run(self) -> Status {
        let (tile, scratch) = (self.tile, self.scratch);
        let length = tile.inputs.u.rows();
        if self.tokens.start == 0 {
            tile.first_state::<R>(scratch);
        } else {
            tile.load_state(scratch);
        }
        tile.parameters::<R>(scratch);
        if let Some(mut table) = scratch.table.take() {
            table.learn::<R, F>(&tile, self.tokens.clone());
            scratch.table = Some(table);
        }
        let chunk = O::chunk(length);
        for first in self.tokens.clone().step_by(chunk) {
            let tokens = chunk.min(self.tokens.end - first);
            tile.begin::<R, F>(scratch, first, tokens);
            O::advance(&tile, scratch, first, tokens, length);
            tile.finish::<R, F>(scratch, first, tokens);
        }
        tile.store_state(scratch)
    }
}
