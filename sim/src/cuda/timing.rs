//! Time of each step on the device, between events of its own clock.

use super::datapath::CudaDatapath;
use super::device::Device;
use crate::dataflow::Step;
use crate::datapath::LogitRows;
use crate::error::{Result, SimError};
use crate::trace::Blind;
use cust::event::Event;
use serde::Serialize;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// Notes on the stream when each step begins, if it is running.
#[derive(Default)]
pub struct Clock {
    device: Option<Arc<Device>>,
    marks: Vec<(Option<Step>, Event)>,
}

impl Clock {
    fn running(device: &Arc<Device>) -> Self {
        Self {
            device: Some(Arc::clone(device)),
            marks: Vec::new(),
        }
    }

    pub(super) fn enter(&mut self, step: Step) -> Result<()> {
        self.mark(Some(step))
    }

    pub(super) fn stop(&mut self) -> Result<()> {
        self.mark(None)
    }

    fn mark(&mut self, step: Option<Step>) -> Result<()> {
        if let Some(device) = &self.device {
            self.marks.push((step, device.event()?));
        }
        Ok(())
    }

    /// Each step's times, in the order they ran.
    fn read(&self) -> Result<Vec<(Step, Duration)>> {
        let mut times = Vec::new();
        for pair in self.marks.windows(2) {
            if let Some(step) = pair[0].0 {
                times.push((step, between(&pair[0].1, &pair[1].1)?));
            }
        }
        Ok(times)
    }
}

/// Bytes a second that a copy on the device reads and writes together: the ceiling of what moves
/// bytes. The median of a few copies of 1 GiB.
///
/// # Errors
///
/// A device that refuses memory or work.
pub fn copy_bandwidth(device: &Arc<Device>) -> Result<f64> {
    const BYTES: usize = 1 << 30;
    let _running = device.enter()?;
    let (from, to) = (device.allocate(BYTES)?, device.allocate(BYTES)?);
    let mut events = vec![device.event()?];
    for _ in 0..8 {
        device.copy(&from, &to)?;
        events.push(device.event()?);
    }
    device.synchronize()?;
    let mut times = Vec::new();
    for pair in events.windows(2) {
        times.push(between(&pair[0], &pair[1])?);
    }
    times.sort();
    Ok(2.0 * BYTES as f64 / times[times.len() / 2].as_secs_f64())
}

fn between(begin: &Event, end: &Event) -> Result<Duration> {
    let failed = |e| SimError::value("device events", "times", format!("{e:?}"));
    let milliseconds = end.elapsed_time_f32(begin).map_err(failed)?;
    Ok(Duration::from_secs_f64(f64::from(milliseconds) * 1e-3))
}

/// Time of a step, over the blocks of one prefill.
#[derive(Clone, Debug, Serialize)]
pub struct StepTime {
    /// The step.
    pub step: Step,
    /// How often it ran.
    pub runs: usize,
    /// Its median run.
    pub median: Duration,
    /// All its runs together.
    pub total: Duration,
}

/// Median time of a token's decode, from the host's call to its logits on the host.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct DecodeTime {
    /// Every kernel launched by itself.
    pub launched: Duration,
    /// Recorded once, launched as a whole.
    pub recorded: Duration,
}

/// Decodes `tokens` tokens of `batch` sequences from empty states, both ways.
///
/// # Errors
///
/// Those of [`CudaDatapath::decode_batch`].
pub fn decode_time(path: &CudaDatapath, batch: usize, tokens: usize) -> Result<DecodeTime> {
    let vocabulary = path.prepared().config().vocab_size;
    let median = |as_launches: bool| -> Result<Duration> {
        let start = vec![vec![0]; batch];
        let (_, mut state) = path.prefill_batch(&start, LogitRows::None, &mut Blind)?;
        let mut times = Vec::new();
        for i in 0..tokens + 2 {
            let row: Vec<u32> = (0..batch)
                .map(|b| ((i * 7_919 + b * 977) % vocabulary) as u32)
                .collect();
            let begin = Instant::now();
            if as_launches {
                path.decode_launched(&row, &mut state)?;
            } else {
                path.decode_batch(&row, &mut state, &mut Blind)?;
            }
            // The first ones load kernels and record.
            if i >= 2 {
                times.push(begin.elapsed());
            }
        }
        times.sort();
        Ok(times[times.len() / 2])
    };
    Ok(DecodeTime {
        launched: median(true)?,
        recorded: median(false)?,
    })
}

/// Prefills `batch` sequences of `length` tokens `repeats` times and returns the times of the
/// steps in the median run, and that run's whole time.
///
/// The device waits for the host to queue the run, so that launches leave no gaps between steps.
///
/// # Errors
///
/// Those of [`CudaDatapath::prefill_batch`].
pub fn prefill_times(
    path: &CudaDatapath,
    batch: usize,
    length: usize,
    repeats: usize,
) -> Result<(Vec<StepTime>, Duration)> {
    let vocabulary = path.prepared().config().vocab_size;
    let sequence = |b: usize| -> Vec<u32> {
        let token = |i| ((i * 7_919 + b * 977) % vocabulary) as u32;
        (0..length).map(token).collect()
    };
    let sequences: Vec<Vec<u32>> = (0..batch).map(sequence).collect();
    let mut runs = Vec::new();
    for repeat in 0..=repeats.max(1) {
        let mut clock = Clock::running(path.device());
        path.queue_timed(&sequences, &mut clock)?;
        let times = clock.read()?;
        // The first run loads kernels and finds memory.
        if repeat > 0 {
            runs.push(times);
        }
    }
    let total =
        |times: &Vec<(Step, Duration)>| times.iter().map(|(_, time)| *time).sum::<Duration>();
    runs.sort_by_key(total);
    let run = runs.swap_remove(runs.len() / 2);
    let whole = total(&run);
    let steps = Step::ALL.into_iter().filter_map(|step| {
        let mut times: Vec<Duration> = run.iter().filter(|t| t.0 == step).map(|t| t.1).collect();
        times.sort();
        let median = *times.get(times.len() / 2)?;
        Some(StepTime {
            step,
            runs: times.len(),
            median,
            total: times.iter().sum(),
        })
    });
    Ok((steps.collect(), whole))
}
