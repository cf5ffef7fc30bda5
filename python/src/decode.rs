//! A sequence that runs token by token, with its state in hand.

use crate::arrays::{tensor, whole};
use crate::model::selection;
use crate::trace::{Parts, parts};
use crate::work;
use pyo3::prelude::*;
use scalescope_golden::trace_file::TraceFile;
use scalescope_sim::Simulator;
use scalescope_sim::datapath::{ConvHistory, LogitRows, State};
use scalescope_sim::error::{Result, SimError};
use scalescope_sim::generate::Sampler;
use scalescope_sim::trace::{Place, Recorder, Selection, Tensor, TracePoint};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// A sequence and its state.
#[pyclass(frozen, module = "scalescope._scalescope")]
pub struct Decoder {
    simulator: Arc<Simulator>,
    state: Mutex<Run>,
}

/// Conv inputs and their scale, the recurrent state and its scale.
type StateParts<'py> = (
    Bound<'py, PyAny>,
    Option<f32>,
    Bound<'py, PyAny>,
    Option<f32>,
);

/// How far a sequence is.
#[derive(Clone)]
struct Run {
    /// `None` before the first token, and after an error in one.
    state: Option<State>,
    tokens: usize,
}

const BEGINNING: Run = Run {
    state: None,
    tokens: 0,
};

impl Decoder {
    /// A sequence before its first token.
    pub fn new(simulator: Arc<Simulator>) -> Self {
        Self {
            simulator,
            state: Mutex::new(BEGINNING),
        }
    }

    /// One thread at a time; the state that a panic interrupted is gone already.
    fn lock(&self) -> MutexGuard<'_, Run> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Runs tokens one by one from the state, all at once from the beginning. The logits of the last, and a trace of
    /// this call alone.
    fn feed_tokens(&self, tokens: &[u32], selection: &Selection) -> Result<(Tensor, TraceFile)> {
        let mut run = self.lock();
        let Run {
            state,
            tokens: done,
        } = std::mem::replace(&mut *run, BEGINNING);
        self.simulator.with(|path| {
            scalescope_sim::datapath::check_tokens(tokens, path.config().vocab_size).inspect_err(
                |_| {
                    *run = Run {
                        state: state.clone(),
                        tokens: done,
                    };
                },
            )?;
            let (logits, after, trace) = match state {
                None => {
                    let mut recorder = Recorder::new(selection.clone());
                    // A trace has the logits of every token.
                    let rows = match selection.keeps(Place::end(TracePoint::Logits)) {
                        true => LogitRows::All,
                        false => LogitRows::Last,
                    };
                    let (logits, state) = path.prefill(tokens, rows, &mut recorder)?;
                    let ids = ndarray::Array2::from_shape_vec((1, tokens.len()), tokens.to_vec());
                    let ids = ids.expect("one row");
                    (logits, state, TraceFile::from_recorders(ids, [recorder])?)
                }
                Some(mut state) => {
                    let mut trace = TraceFile::default();
                    let mut logits = None;
                    for token in tokens {
                        scalescope::embed::check()?;
                        let mut recorder = Recorder::new(selection.clone());
                        logits = Some(path.decode(*token, &mut state, &mut recorder)?);
                        trace.push_step(&[*token], [recorder])?;
                    }
                    let logits = logits.expect("tokens are not empty");
                    (logits, state, trace)
                }
            };
            *run = Run {
                state: Some(after),
                tokens: done + tokens.len(),
            };
            Ok((logits, trace))
        })
    }
}

#[pymethods]
impl Decoder {
    /// Tokens that the state has seen.
    #[getter]
    fn position(&self, py: Python<'_>) -> usize {
        py.detach(|| self.lock().tokens)
    }

    /// Runs tokens on; `[V]` logits after the last, and what was recorded.
    #[pyo3(signature = (tokens, points = None, layers = None))]
    fn feed<'py>(
        &self,
        py: Python<'py>,
        tokens: Vec<u32>,
        points: Option<Vec<String>>,
        layers: Option<Vec<usize>>,
    ) -> PyResult<(Bound<'py, PyAny>, Parts<'py>)> {
        let (logits, trace) = work::long(py, None, || {
            self.feed_tokens(&tokens, &selection(points, layers)?)
        })?;
        let logits = logits.to_real();
        let last = logits.row(logits.nrows() - 1).to_owned();
        Ok((whole(py, last), parts(py, trace)?))
    }

    /// Chooses the token after `logits`: the most likely, or by chance at a temperature.
    #[staticmethod]
    #[pyo3(signature = (logits, position, temperature = None, seed = 0))]
    fn pick(
        py: Python<'_>,
        logits: numpy::PyReadonlyArray1<'_, f32>,
        position: usize,
        temperature: Option<f32>,
        seed: u64,
    ) -> PyResult<u32> {
        let logits = logits.as_array().to_vec();
        let sampler = match temperature {
            None => Sampler::Greedy,
            Some(temperature) => Sampler::Random { temperature, seed },
        };
        work::short(py, || sampler.pick(&logits, position))
    }

    /// Continues by up to `count` tokens, until one of `stop`.
    fn generate(
        &self,
        py: Python<'_>,
        tokens: Vec<u32>,
        count: usize,
        stop: Vec<u32>,
    ) -> PyResult<Vec<u32>> {
        let nothing = Selection {
            layers: Some(vec![]),
            points: Some(vec![]),
        };
        work::long(py, None, || {
            let mut made = Vec::new();
            let (mut logits, _) = self.feed_tokens(&tokens, &nothing)?;
            while made.len() < count {
                scalescope::embed::check()?;
                let row = logits.to_real();
                let next = Sampler::Greedy.pick(row.as_slice().expect("one row"), made.len())?;
                made.push(next);
                if stop.contains(&next) || made.len() == count {
                    break;
                }
                (logits, _) = self.feed_tokens(&[next], &nothing)?;
            }
            Ok(made)
        })
    }

    /// Copies the sequence and its state.
    fn copy(&self, py: Python<'_>) -> Self {
        let run = py.detach(|| self.lock().clone());
        Self {
            simulator: Arc::clone(&self.simulator),
            state: Mutex::new(run),
        }
    }

    /// The last conv inputs `[K, E]` and the recurrent state `[E, N]` of a block, each with its scale if it is INT8.
    fn state<'py>(&self, py: Python<'py>, layer: usize) -> PyResult<StateParts<'py>> {
        let found = work::short(py, || {
            let run = self.lock();
            let state = run.state.as_ref();
            let state = state
                .ok_or_else(|| SimError::value("state", "one token at least before it", "none"))?;
            let blocks = state.layers.len();
            let expected = format!("blocks below {blocks}");
            let layer = state
                .layers
                .get(layer)
                .ok_or_else(|| SimError::value("layer", expected, layer))?;
            Ok((layer.conv.clone(), layer.ssm.clone()))
        })?;
        let conv = match found.0 {
            ConvHistory::Int8(q) => Tensor::I8(q),
            ConvHistory::Real(values) => Tensor::F32(values),
        };
        let scale = |t: &Tensor| t.scale().map(|s| s.get());
        let (conv_scale, ssm_scale) = (scale(&conv), scale(&found.1));
        Ok((tensor(py, conv), conv_scale, tensor(py, found.1), ssm_scale))
    }
}
