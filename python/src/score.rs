//! Log-likelihoods of continuations, by the engine of `scalescope eval`.

use crate::simulator::Setup;
use crate::work;
use pyo3::prelude::*;
use scalescope::device::Devices;
use scalescope::eval::engine::Engine;
use scalescope::eval::task::{Encode, Encoded, Sample, SampleMaker, Task};
use scalescope::kept::Kept;
use scalescope_sim::datapath::check_tokens;
use scalescope_sim::error::{Result, SimError};
use scalescope_sim::model::Model;
use std::sync::atomic::AtomicBool;

self_cell::self_cell!(
    struct Cell {
        owner: Model,
        #[not_covariant]
        dependent: Engine,
    }
);

/// A model ready to score in one mode.
#[pyclass(frozen, module = "scalescope._scalescope")]
pub struct Scorer {
    cell: Cell,
    vocabulary: usize,
}

impl Scorer {
    /// Prepares a mode.
    pub fn new(kept: &Kept, setup: &Setup) -> Result<Self> {
        let modes = std::slice::from_ref(&setup.mode);
        let model = kept.subject(modes)?.model;
        let vocabulary = model.config()?.vocab_size;
        let cell = Cell::try_new(model, |model| {
            Engine::new(
                model,
                modes,
                None,
                &setup.profile,
                &setup.faults,
                &Devices::Cpu,
            )
        })?;
        Ok(Self { cell, vocabulary })
    }
}

#[pymethods]
impl Scorer {
    /// For each sequence of tokens, whose last `targets` are predicted from what stands before them: the sum of their
    /// log-likelihoods, and whether each was the most likely token. All cores, a sequence each.
    #[pyo3(signature = (sequences, progress = None))]
    fn score(
        &self,
        py: Python<'_>,
        sequences: Vec<(Vec<u32>, usize)>,
        progress: Option<Bound<'_, PyAny>>,
    ) -> PyResult<Vec<(f64, bool)>> {
        work::long(py, progress.as_ref(), || {
            let mut samples = Vec::with_capacity(sequences.len());
            for (id, (tokens, targets)) in sequences.into_iter().enumerate() {
                check_tokens(&tokens, self.vocabulary)
                    .map_err(|e| e.within(format_args!("sequence {id}")))?;
                if targets == 0 || targets >= tokens.len() {
                    let expected = format_args!("1 to {}", tokens.len() - 1).to_string();
                    return Err(SimError::value(
                        format_args!("sequence {id}: targets"),
                        expected,
                        targets,
                    ));
                }
                samples.push(Sample {
                    id,
                    part: 0,
                    tokens,
                    targets,
                    bytes: 0,
                });
            }
            let all: Vec<&Sample> = samples.iter().collect();
            let mut scores = Vec::with_capacity(samples.len());
            // Stopped between sequences.
            let never = AtomicBool::new(false);
            self.cell.with_dependent(|_, engine| {
                engine.run(&all, &never, |records| {
                    scores.extend(records.iter().map(|r| (r.log_likelihood, r.greedy)));
                    scalescope::embed::check()
                })
            })?;
            Ok(scores)
        })
    }
}

/// Token ids of a text that is tokenized already.
struct Ids(Vec<u32>);

impl Encode for Ids {
    fn encode_text(&self, _: &str) -> std::result::Result<Encoded, String> {
        Ok(Encoded {
            ids: self.0.clone(),
            ends: vec![0; self.0.len()],
        })
    }
}

/// The windows in which `scalescope eval` scores every token of a text: tokens, and how many of the last are targets.
#[pyfunction]
pub fn windows(ids: Vec<u32>, start: u32, window: usize) -> PyResult<Vec<(Vec<u32>, usize)>> {
    if window == 0 {
        let none = SimError::value("max_length", "at least 1", 0);
        return Err(crate::errors::raise(none));
    }
    let maker = SampleMaker {
        encoder: &Ids(ids),
        vocab_size: usize::MAX,
        start: Some(start),
        task: Task::Perplexity {
            window,
            stride: window,
        },
    };
    let samples = maker
        .samples(0, "")
        .map_err(crate::errors::Error::new_err)?;
    Ok(samples.into_iter().map(|u| (u.tokens, u.targets)).collect())
}
