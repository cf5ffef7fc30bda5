//! Error along time: token by token, with the state carried.

use super::feed::Feeder;
use ndarray::Array2;
use scalescope_sim::dataflow::{Block, Phase};
use scalescope_sim::datapath::Datapath;
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
    let layers = path.config().n_layers;
    let block = Block::of(reference.mode(), reference.profile(), Phase::Decode);
    let longest = sequences.iter().map(Vec::len).max().unwrap_or(0);
    let width = longest.div_ceil(WINDOWS).max(1);
    let count = longest.div_ceil(width);
    let mut sums = vec![vec![[Energy::default(); 3]; layers]; count];
    for tokens in sequences {
        let mut states = [path.empty_state(), path.empty_state()];
        let mut clean_state = reference.empty_state();
        for (t, token) in tokens.iter().enumerate() {
            let mut clean = Recorder::new(Selection::default());
            reference.decode(*token, &mut clean_state, &mut clean)?;
            let mut free = Recorder::new(Selection::default());
            path.decode(*token, &mut states[0], &mut free)?;
            let makes = free.tensors.keys().copied().collect();
            let mut fed = Feeder::new(&clean.tensors, &block, makes).but(STATES);
            path.decode(*token, &mut states[1], &mut fed)?;
            let fed = fed.finish().made;
            for (layer, sums) in sums[t / width].iter_mut().enumerate() {
                let real = |tensors: &BTreeMap<Place, Tensor>, point| {
                    tensors[&Place::layer(layer, point)].to_real()
                };
                let state = real(&clean.tensors, TracePoint::SsmStateOut);
                sums[0].add(&state, &real(&free.tensors, TracePoint::SsmStateOut));
                sums[1].add(&state, &real(&fed, TracePoint::SsmStateOut));
                let y = real(&clean.tensors, TracePoint::SsmY);
                sums[2].add(&y, &real(&free.tensors, TracePoint::SsmY));
            }
            done();
        }
    }
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
    Ok(TimeError {
        mode: path.mode().name.to_string(),
        against: reference.mode().name.to_string(),
        windows: windows.collect(),
    })
}
