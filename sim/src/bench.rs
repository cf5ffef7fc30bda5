//! Where the time of a run goes: throughput of a prepared model, step by step.
//!
//! The engine announces every step to its probe ([`Probe::enter`]); a stopwatch is a probe that
//! looks at nothing and notes the time. `scalescope bench` prints what it finds.

mod clock;
pub mod energy;
mod peak;
mod work;

pub use clock::processor_time;
pub use peak::{Peaks, measure as measure_peaks};
pub use work::{LinearWork, linear_work};

use crate::arith::saturate::Status;
use crate::dataflow::Step;
use crate::datapath::{Datapath, LogitRows};
use crate::error::Result;
use crate::trace::{Place, Probe, Recorder, Selection, Tensor};
use serde::Serialize;
use std::time::{Duration, Instant};

/// Time of a run, and of each of its steps over all blocks.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct StepTimes {
    /// Tokens of a run.
    pub tokens: usize,
    /// Wall time of the whole run.
    pub total: Duration,
    /// Processor time of all threads, where the system tells it.
    pub processor: Option<Duration>,
    /// Wall time of each step, indexed as [`Step::ALL`].
    pub steps: [Duration; Step::ALL.len()],
}

impl StepTimes {
    /// Tokens per second.
    pub fn tokens_per_second(&self) -> f64 {
        self.tokens as f64 / self.total.as_secs_f64()
    }

    /// Time of a step.
    pub fn step(&self, step: Step) -> Duration {
        self.steps[step as usize]
    }
}

/// A probe that only notes when each step begins.
#[derive(Clone, Debug)]
pub struct Stopwatch {
    begun: Instant,
    processor: Option<Duration>,
    since: Instant,
    running: Option<Step>,
    steps: [Duration; Step::ALL.len()],
}

impl Default for Stopwatch {
    fn default() -> Self {
        let now = Instant::now();
        Self {
            begun: now,
            processor: processor_time(),
            since: now,
            running: None,
            steps: Default::default(),
        }
    }
}

impl Stopwatch {
    /// Stops it; `tokens` were run since it was made.
    pub fn stop(mut self, tokens: usize) -> StepTimes {
        self.switch(None);
        StepTimes {
            tokens,
            total: self.since - self.begun,
            processor: processor_time()
                .zip(self.processor)
                .map(|(now, then)| now.saturating_sub(then)),
            steps: self.steps,
        }
    }

    fn switch(&mut self, next: Option<Step>) {
        let now = Instant::now();
        if let Some(step) = self.running {
            self.steps[step as usize] += now - self.since;
        }
        self.since = now;
        self.running = next;
    }
}

impl Probe for Stopwatch {
    fn wants(&self, _: Place) -> bool {
        false
    }

    fn visit(&mut self, _: Place, _: &mut Tensor) -> Result<()> {
        Ok(())
    }

    fn enter(&mut self, step: Step) {
        self.switch(Some(step));
    }
}

/// Prefills `length` tokens `repeats` times (at least once, after one run that does not count) and
/// returns the median run with the median processor time. Logits are computed for the last token only.
///
/// # Errors
///
/// Those of [`Datapath::prefill`].
pub fn throughput(datapath: &Datapath, length: usize, repeats: usize) -> Result<StepTimes> {
    let tokens = tokens(datapath, length);
    let run = || {
        let mut watch = Stopwatch::default();
        datapath.prefill(&tokens, LogitRows::Last, &mut watch)?;
        Ok(watch.stop(length))
    };
    median(repeats, run)
}

/// As [`throughput`], with the places of a selection recorded.
///
/// # Errors
///
/// Those of [`Datapath::prefill`].
pub fn traced_throughput(
    datapath: &Datapath,
    length: usize,
    repeats: usize,
    selection: &Selection,
) -> Result<StepTimes> {
    let tokens = tokens(datapath, length);
    let run = || {
        let mut probe = Recording {
            recorder: Recorder::new(selection.clone()),
            watch: Stopwatch::default(),
        };
        datapath.prefill(&tokens, LogitRows::Last, &mut probe)?;
        Ok(probe.watch.stop(length))
    };
    median(repeats, run)
}

/// A stopwatch beside a recorder.
struct Recording {
    recorder: Recorder,
    watch: Stopwatch,
}

impl Probe for Recording {
    fn wants(&self, place: Place) -> bool {
        self.recorder.wants(place)
    }

    fn visit(&mut self, place: Place, value: &mut Tensor) -> Result<()> {
        self.recorder.visit(place, value)
    }

    fn count(&mut self, place: Place, status: Status) {
        self.recorder.count(place, status);
    }

    fn enter(&mut self, step: Step) {
        self.watch.enter(step);
    }
}

/// Decodes `length` tokens one by one from the empty state, `repeats` times as [`throughput`].
///
/// # Errors
///
/// Those of [`Datapath::decode`].
pub fn decode_throughput(datapath: &Datapath, length: usize, repeats: usize) -> Result<StepTimes> {
    let tokens = tokens(datapath, length);
    let run = || {
        let mut state = datapath.empty_state();
        let mut watch = Stopwatch::default();
        for token in &tokens {
            datapath.decode(*token, &mut state, &mut watch)?;
        }
        Ok(watch.stop(length))
    };
    median(repeats, run)
}

/// As [`decode_throughput`], where of each token only the most likely next one is asked for.
///
/// # Errors
///
/// Those of [`Datapath::decode_greedy`].
pub fn greedy_throughput(datapath: &Datapath, length: usize, repeats: usize) -> Result<StepTimes> {
    let tokens = tokens(datapath, length);
    let run = || {
        let mut state = datapath.empty_state();
        let mut watch = Stopwatch::default();
        for token in &tokens {
            datapath.decode_greedy(*token, &mut state, &mut watch)?;
        }
        Ok(watch.stop(length))
    };
    median(repeats, run)
}

/// Decodes `length` tokens of each of `batch` sequences together, each from the empty state, `repeats`
/// times as [`throughput`]. Steps are not told apart.
///
/// # Errors
///
/// Those of [`Datapath::decode_batch`].
pub fn batch_throughput(
    datapath: &Datapath,
    batch: usize,
    length: usize,
    repeats: usize,
) -> Result<StepTimes> {
    let tokens = tokens(datapath, length);
    let run = || {
        let mut states = vec![datapath.empty_state(); batch];
        let watch = Stopwatch::default();
        for token in &tokens {
            datapath.decode_batch(&vec![*token; batch], &mut states)?;
        }
        Ok(watch.stop(batch * length))
    };
    median(repeats, run)
}

/// A fixed sequence that visits the whole vocabulary.
fn tokens(datapath: &Datapath, length: usize) -> Vec<u32> {
    let vocabulary = datapath.config().vocab_size as u64;
    (0..length as u64)
        .map(|i| (i * 7_919 % vocabulary) as u32)
        .collect()
}

fn median(repeats: usize, run: impl Fn() -> Result<StepTimes>) -> Result<StepTimes> {
    run()?;
    let mut runs = (0..repeats.max(1))
        .map(|_| run())
        .collect::<Result<Vec<_>>>()?;
    // Each median by itself: a run that waited used no more processor time.
    runs.sort_by_key(|times| times.processor);
    let processor = runs[runs.len() / 2].processor;
    runs.sort_by_key(|times| times.total);
    Ok(StepTimes {
        processor,
        ..runs.swap_remove(runs.len() / 2)
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::checkpoint::synthetic::{self, Shape};
    use crate::mode::ModeTable;
    use crate::model::Model;
    use crate::profile::Profile;

    #[test]
    fn steps_index_their_own_entry_and_sum_to_the_total() {
        for (i, step) in Step::ALL.into_iter().enumerate() {
            assert_eq!(step as usize, i);
        }
        let quantized = synthetic::quantized_model(Shape::named("tiny").unwrap());
        let model = Model {
            quantized: Some(quantized.into()),
            ..Model::default()
        };
        let table = ModeTable::default();
        let profile = Profile::get("exact").unwrap();
        let path = Datapath::new(&model, table.get("0").unwrap(), &profile).unwrap();
        let together = batch_throughput(&path, 2, 3, 3).unwrap();
        assert_eq!(together.tokens, 6);
        assert!(together.tokens_per_second() > 0.0);
        for times in [
            throughput(&path, 9, 3),
            decode_throughput(&path, 3, 3),
            greedy_throughput(&path, 3, 3),
        ] {
            let times = times.unwrap();
            assert!(times.tokens_per_second() > 0.0);
            assert!(times.steps.iter().all(|t| !t.is_zero()));
            assert!(times.steps.iter().sum::<Duration>() <= times.total);
        }
    }
}
