//! Error along time: token by token, with the state carried.

use super::feed::Feeder;
use ndarray::Array2;
use rayon::prelude::*;
use scalescope_sim::dataflow::{Block, Phase};
use scalescope_sim::datapath::{Datapath, State};
use scalescope_sim::error::Result;
use scalescope_sim::trace::{Place, Recorder, Selection, Tensor, TracePoint};
use serde::Serialize;
use std::collections::BTreeMap;

/// Windows that a sequence is cut into.
const WINDOWS: usize = 32;

/// States, which a run with clean inputs keeps as its own.
const STATES: &[TracePoint] = &[
    TracePoint::ConvStateIn,
    TracePoint::ConvStateOut,
    TracePoint::SsmStateIn,
    TracePoint::SsmStateOut,
];

/// Error of a mode against a reference along the tokens of a sequence, decoded one by one from an
/// empty state: `normalized_l2`, a value for each block.
#[derive(Clone, Debug, Serialize)]
pub struct TimeError {
    /// The mode.
    pub mode: String,
    /// The reference.
    pub against: String,
    /// Stretches of tokens, in order.
    pub windows: Vec<Window>,
}

/// Some tokens in a row.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Window {
    /// The first token.
    pub first: usize,
    /// The last one.
    pub last: usize,
    /// Error of the recurrent state after each token, everything with its own inputs.
    pub ssm_state: Vec<f64>,
    /// Error of the recurrent state if the mode carries its own state but every step gets the
    /// reference's clean inputs: what the state itself gathers.
    pub ssm_state_clean_inputs: Vec<f64>,
    /// Error of the gated scan output, everything with its own inputs.
    pub ssm_y: Vec<f64>,
}

/// Σ x², Σ (y − x)².
#[derive(Clone, Copy, Default)]
struct Energy(f64, f64);

impl Energy {
    fn add(&mut self, x: &Array2<f32>, y: &Array2<f32>) {
        for (x, y) in x.iter().zip(y) {
            let (x, y) = (f64::from(*x), f64::from(*y));
            self.0 += x * x;
            self.1 += (y - x) * (y - x);
        }
    }

    /// ‖x − y‖ / ‖x‖; 0 if both are zero.
    fn l2(self) -> f64 {
        match self.1 == 0.0 {
            true => 0.0,
            false => (self.1 / self.0).sqrt(),
        }
    }
}

/// Decodes sequences in both and compares states and scan outputs after every token.
pub fn error_over_time(
    path: &Datapath,
    reference: &Datapath,
    sequences: &[Vec<u32>],
    mut done: impl FnMut(),
) -> Result<TimeError> {
    let done = || {
        done();
        Ok(())
    };
    let mut one = errors_over_time(std::slice::from_ref(path), reference, sequences, done)?;
    Ok(one.remove(0))
}

/// As [`error_over_time`], of several modes, which share the reference's run. `done` is called after every token and
/// may end the work.
///
/// # Errors
///
/// Those of the runs and of `done`.
pub fn errors_over_time(
    paths: &[Datapath],
    reference: &Datapath,
    sequences: &[Vec<u32>],
    mut done: impl FnMut() -> Result<()>,
) -> Result<Vec<TimeError>> {
    let longest = sequences.iter().map(Vec::len).max().unwrap_or(0);
    let width = longest.div_ceil(WINDOWS).max(1);
    let windows = longest.div_ceil(width);
    let layers = reference.config().n_layers;
    let block = Block::of(reference.mode(), reference.profile(), Phase::Decode);
    let mut sums: Vec<Sums> =
        vec![vec![vec![[Energy::default(); 3]; layers]; windows]; paths.len()];
    for tokens in sequences {
        let mut states: Vec<[State; 2]> = (paths.iter())
            .map(|path| [path.empty_state(), path.empty_state()])
            .collect();
        let mut clean_state = reference.empty_state();
        for (t, token) in tokens.iter().enumerate() {
            let mut clean = Recorder::new(Selection::default());
            reference.advance(*token, &mut clean_state, &mut clean)?;
            let clean = (&clean.tensors, &block);
            (paths.par_iter().zip(&mut states).zip(&mut sums)).try_for_each(
                |((path, states), sums)| {
                    add_token(path, clean, *token, states, &mut sums[t / width])
                },
            )?;
            done()?;
        }
    }
    let error = |(path, sums): (&Datapath, Sums)| {
        let windows = sums.into_iter().enumerate().map(|(i, layers)| {
            let column = |which: usize| layers.iter().map(|sums| sums[which].l2()).collect();
            Window {
                first: i * width,
                last: ((i + 1) * width).min(longest) - 1,
                ssm_state: column(0),
                ssm_state_clean_inputs: column(1),
                ssm_y: column(2),
            }
        });
        TimeError {
            mode: path.mode().name.to_string(),
            against: reference.mode().name.to_string(),
            windows: windows.collect(),
        }
    };
    Ok(paths.iter().zip(sums).map(error).collect())
}

/// Of every window and block: the state, the state with clean inputs, the scan's output.
type Sums = Vec<Vec<[Energy; 3]>>;

/// Decodes a token freely and fed, and adds what differs in each block.
fn add_token(
    path: &Datapath,
    (clean, block): (&BTreeMap<Place, Tensor>, &Block),
    token: u32,
    states: &mut [State; 2],
    sums: &mut [[Energy; 3]],
) -> Result<()> {
    let mut free = Recorder::new(Selection::default());
    path.advance(token, &mut states[0], &mut free)?;
    let makes = free.tensors.keys().copied().collect();
    let mut fed = Feeder::new(clean, block, makes).but(STATES);
    path.advance(token, &mut states[1], &mut fed)?;
    let fed = fed.finish().made;
    for (layer, sums) in sums.iter_mut().enumerate() {
        let real = |tensors: &BTreeMap<Place, Tensor>, point| {
            tensors[&Place::layer(layer, point)].to_real()
        };
        let state = real(clean, TracePoint::SsmStateOut);
        sums[0].add(&state, &real(&free.tensors, TracePoint::SsmStateOut));
        sums[1].add(&state, &real(&fed, TracePoint::SsmStateOut));
        let y = real(clean, TracePoint::SsmY);
        sums[2].add(&y, &real(&free.tensors, TracePoint::SsmY));
    }
    Ok(())
}
