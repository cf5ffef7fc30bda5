//! Runs samples in every mode. A sample runs alone, at its own length: nothing is padded, and its
//! outcome depends on nothing but the sample. Threads take one sample each, so memory holds as many
//! sequences as there are threads; a thread without a sample helps the others with their modes.

use super::samples::Record;
use super::task::Sample;
use crate::device::Devices;
use crate::input::with_faults_unless_float;
use ndarray::Array2;
use rayon::prelude::*;
use scalescope_sim::datapath::{Datapath, LogitRows};
use scalescope_sim::engine as sim;
use scalescope_sim::error::{Result, SimError};
use scalescope_sim::fault::Fault;
use scalescope_sim::mode::ModeSpec;
use scalescope_sim::model::Model;
use scalescope_sim::profile::Profile;
use scalescope_sim::score::Row;
use scalescope_sim::trace::Blind;
use std::collections::BTreeMap;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

/// A model ready to be scored in several modes.
pub struct Engine<'m> {
    /// What really runs, on each device: modes that are one computation under the profile are here
    /// once.
    devices: Vec<Vec<Box<dyn sim::Engine + 'm>>>,
    /// The modes asked for, and the path of each.
    modes: Vec<(String, usize)>,
    /// The path that KL and agreement are measured against.
    reference: Option<usize>,
}

impl<'m> Engine<'m> {
    /// Prepares the weights of every mode. Faults go into `modes`, not into the reference.
    pub fn new(
        model: &'m Model,
        modes: &[ModeSpec],
        reference: Option<&ModeSpec>,
        profile: &Profile,
        faults: &[Fault],
        devices: &Devices,
    ) -> Result<Self> {
        let mut paths: Vec<(Datapath, &[Fault])> = Vec::new();
        let mut path_of = |mode: &ModeSpec, faults| -> Result<usize> {
            let same = |(path, others): &(Datapath, &[Fault])| {
                *others == faults && profile.prefills_alike(path.mode(), mode)
            };
            if let Some(i) = paths.iter().position(same) {
                return Ok(i);
            }
            let path = with_faults_unless_float(model, mode, profile, faults)?;
            paths.push((path, faults));
            Ok(paths.len() - 1)
        };
        let reference = reference.map(|mode| path_of(mode, &[])).transpose()?;
        let modes = modes
            .iter()
            .map(|mode| Ok((mode.name.to_string(), path_of(mode, faults)?)))
            .collect::<Result<_>>()?;
        let on_device = |i| {
            let paths = paths.iter();
            let paths = paths.map(|(path, _)| devices.engine(path.clone(), i));
            paths.collect::<Result<_>>()
        };
        Ok(Self {
            devices: (0..devices.count()).map(on_device).collect::<Result<_>>()?,
            modes,
            reference,
        })
    }

    /// What runs for the calling thread: threads share the devices evenly.
    fn paths(&self) -> &[Box<dyn sim::Engine + 'm>] {
        let thread = rayon::current_thread_index().unwrap_or(0);
        &self.devices[thread % self.devices.len()]
    }

    /// The outcomes of a sample, in the order of the modes.
    pub fn score(&self, sample: &Sample) -> Result<Vec<Record>> {
        let paths = self.paths();
        let run = |path: &dyn sim::Engine| -> Result<Array2<f32>> {
            let input = sample.input();
            let rows = LogitRows::From(input.len() - sample.targets);
            let logits = path.prefill_once(input, rows, &mut Blind)?;
            Ok(logits.to_real())
        };
        let truth = match self.reference {
            Some(i) => Some((i, run(&*paths[i])?)),
            None => None,
        };
        let truth: Option<(usize, Vec<Row>)> =
            (truth.as_ref()).map(|(i, logits)| (*i, rows(logits)));
        let outcomes: Vec<Record> = (paths.par_iter().enumerate())
            .map(|(i, path)| match &truth {
                Some((reference, truth)) if *reference == i => outcome(sample, truth, Some(truth)),
                _ => outcome(
                    sample,
                    &rows(&run(&**path)?),
                    truth.as_ref().map(|t| &t.1[..]),
                ),
            })
            .collect::<Result<_>>()?;
        Ok(self
            .modes
            .iter()
            .map(|(name, path)| Record {
                mode: name.clone(),
                ..outcomes[*path].clone()
            })
            .collect())
    }

    /// Scores samples with all threads and hands over the records of each, in the order of the samples
    /// as far as they got. Setting `stop` ends it early, with [`SimError::Interrupted`]; a sample that
    /// fails ends it with the error of the first such sample, after every sample begun is kept.
    pub fn run(
        &self,
        samples: &[&Sample],
        stop: &AtomicBool,
        keep: impl FnMut(Vec<Record>) -> Result<()> + Send,
    ) -> Result<()> {
        let next = AtomicUsize::new(0);
        let output = Mutex::new(InOrder {
            keep,
            next: 0,
            waiting: BTreeMap::new(),
            refused: None,
            failed: None,
        });
        let lock = || output.lock().expect("no thread panics with the lock");
        rayon::broadcast(|_| {
            while !stop.load(Ordering::Relaxed) {
                let i = next.fetch_add(1, Ordering::Relaxed);
                let Some(sample) = samples.get(i) else { break };
                let result = self.score(sample);
                let mut output = lock();
                match result {
                    Ok(records) => output.push(i, records),
                    Err(error) => output.fail(i, error),
                }
                if output.is_over() {
                    break;
                }
            }
        });
        let mut output = output.into_inner().expect("no thread panics with the lock");
        let done = output.next + output.waiting.len();
        // What is done is kept, whatever ended the run.
        for records in std::mem::take(&mut output.waiting).into_values() {
            (output.keep)(records)?;
        }
        match output.refused.or(output.failed.map(|(_, error)| error)) {
            Some(error) => Err(error),
            None if done == samples.len() => Ok(()),
            None => Err(SimError::Interrupted),
        }
    }
}

/// Hands over results in the order of their numbers.
struct InOrder<F> {
    keep: F,
    next: usize,
    waiting: BTreeMap<usize, Vec<Record>>,
    /// Why `keep` took no more.
    refused: Option<SimError>,
    /// The first sample without a result, and why.
    failed: Option<(usize, SimError)>,
}

impl<F: FnMut(Vec<Record>) -> Result<()>> InOrder<F> {
    fn push(&mut self, i: usize, records: Vec<Record>) {
        if self.refused.is_some() {
            // What cannot be kept now cannot be kept later.
            return;
        }
        self.waiting.insert(i, records);
        while let Some(records) = self.waiting.remove(&self.next) {
            if let Err(error) = (self.keep)(records) {
                self.waiting.clear();
                self.refused = Some(error);
                return;
            }
            self.next += 1;
        }
    }

    fn fail(&mut self, i: usize, error: SimError) {
        if self.failed.as_ref().is_none_or(|(first, _)| i < *first) {
            self.failed = Some((i, error));
        }
    }

    /// Whether no further sample need be begun.
    fn is_over(&self) -> bool {
        self.refused.is_some() || self.failed.is_some()
    }
}

fn rows(logits: &Array2<f32>) -> Vec<Row<'_>> {
    (logits.outer_iter())
        .map(|row| Row::new(row.to_slice().expect("logits are row-major")))
        .collect()
}

/// How the targets fare under `rows`, one row a target.
fn outcome(sample: &Sample, rows: &[Row], truth: Option<&[Row]>) -> Result<Record> {
    let mut record = Record {
        id: sample.id,
        part: sample.part,
        mode: String::new(),
        greedy: false,
        log_likelihood: 0.0,
        target_tokens: sample.targets,
        greedy_tokens: 0,
        bytes: sample.bytes,
        kl: truth.map(|_| 0.0),
        agreed_tokens: truth.map(|_| 0),
    };
    for (t, (row, target)) in rows.iter().zip(sample.target()).enumerate() {
        let greedy = row.greedy();
        record.log_likelihood += row.log_likelihood(*target);
        record.greedy_tokens += usize::from(greedy == *target);
        if let Some(truth) = truth {
            *record.kl.get_or_insert(0.0) += row.kl_from(&truth[t]);
            *record.agreed_tokens.get_or_insert(0) += usize::from(greedy == truth[t].greedy());
        }
    }
    record.greedy = record.greedy_tokens == record.target_tokens;
    match record.log_likelihood.is_finite() && record.kl.is_none_or(f64::is_finite) {
        true => Ok(record),
        false => Err(SimError::value(
            format_args!("sample {}: log-likelihood", sample.id),
            "a finite number",
            record.log_likelihood,
        )),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use scalescope_sim::mode::ModeTable;
    use scalescope_sim::sample;

    fn samples() -> Vec<Sample> {
        (0..5)
            .map(|id| Sample {
                id,
                part: 0,
                tokens: (0..7 + 3 * id as u32)
                    .map(|t| (t * 977 + 5) % 8000)
                    .collect(),
                targets: 1 + id % 3,
                bytes: 4,
            })
            .collect()
    }

    fn modes(names: &[&str]) -> Vec<ModeSpec> {
        let table = ModeTable::default();
        (names.iter())
            .map(|name| table.get(name).unwrap().clone())
            .collect()
    }

    #[test]
    fn any_number_of_threads_gives_the_same_records_in_order() {
        let model = sample::model();
        let modes = modes(&["0", "1", "2-4"]);
        let profile = Profile::get("deployed").unwrap();
        let engine = Engine::new(
            &model,
            &modes,
            Some(&modes[1]),
            &profile,
            &[],
            &Devices::Cpu,
        )
        .unwrap();
        let samples = samples();
        let alone: Vec<Record> = (samples.iter())
            .flat_map(|sample| engine.score(sample).unwrap())
            .collect();
        assert!(alone.iter().all(|r| r.mode != "1" || r.kl == Some(0.0)));
        for threads in [1, 3] {
            let pool = rayon::ThreadPoolBuilder::new()
                .num_threads(threads)
                .build()
                .unwrap();
            let mut kept = Vec::new();
            let all: Vec<&Sample> = samples.iter().collect();
            pool.install(|| {
                engine.run(&all, &AtomicBool::new(false), |records| {
                    kept.extend(records);
                    Ok(())
                })
            })
            .unwrap();
            assert_eq!(kept, alone, "{threads} threads");
        }
    }

    #[test]
    fn a_stop_keeps_what_is_done_and_says_so() {
        let model = sample::model();
        let modes = modes(&["0"]);
        let exact = Profile::get("exact").unwrap();
        let engine = Engine::new(&model, &modes, None, &exact, &[], &Devices::Cpu).unwrap();
        let samples = samples();
        let all: Vec<&Sample> = samples.iter().collect();
        let stop = AtomicBool::new(false);
        let mut kept = 0;
        let one_thread = rayon::ThreadPoolBuilder::new().num_threads(1).build();
        let end = one_thread.unwrap().install(|| {
            engine.run(&all, &stop, |records| {
                assert_eq!(records[0].kl, None);
                kept += 1;
                stop.store(true, Ordering::Relaxed);
                Ok(())
            })
        });
        assert!(matches!(end, Err(SimError::Interrupted)));
        assert_eq!(kept, 1);
    }

    #[test]
    fn an_error_keeps_what_is_done_before_it_ends_the_run() {
        let model = sample::model();
        let modes = modes(&["0"]);
        let exact = Profile::get("exact").unwrap();
        let engine = Engine::new(&model, &modes, None, &exact, &[], &Devices::Cpu).unwrap();
        let mut samples = samples();
        samples[3].tokens[0] = u32::MAX;
        // Samples are begun in order, so those before the failing one are always done; with several
        // threads the one after it may be too.
        for threads in [1, 2, 2, 3, 3, 8] {
            let all: Vec<&Sample> = samples.iter().collect();
            let mut kept = Vec::new();
            let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build();
            let end = pool.unwrap().install(|| {
                engine.run(&all, &AtomicBool::new(false), |records| {
                    kept.extend(records.into_iter().map(|r| r.id));
                    Ok(())
                })
            });
            let error = end.unwrap_err().to_string();
            assert!(error.contains(&u32::MAX.to_string()), "{error}");
            assert!(kept == [0, 1, 2] || kept == [0, 1, 2, 4], "{kept:?}");
        }
    }

    #[test]
    fn modes_that_are_one_computation_run_once() {
        let model = sample::model();
        let modes = modes(&["0", "2-1", "2-0"]);
        let count = |profile| {
            let profile = Profile::get(profile).unwrap();
            let engine = Engine::new(&model, &modes, None, &profile, &[], &Devices::Cpu).unwrap();
            engine.devices[0].len()
        };
        assert_eq!(count("exact"), 2);
        assert_eq!(count("deployed"), 3);
    }

    #[test]
    fn targets_are_the_last_tokens() {
        let sample = Sample {
            id: 1,
            part: 0,
            tokens: vec![0, 1, 2],
            targets: 2,
            bytes: 2,
        };
        let logits = ndarray::arr2(&[[0.0, 2f32.ln(), 0.0], [9.0, 0.0, 0.0]]);
        let record = outcome(&sample, &rows(&logits), None).unwrap();
        assert_eq!((record.greedy, record.greedy_tokens), (false, 1));
        let second = -(9f64.exp() + 2.0).ln();
        approx::assert_relative_eq!(record.log_likelihood, 0.5f64.ln() + second, epsilon = 1e-6);
    }
}
