//! Long work that tells how far it is and can be stopped.

use crate::error::{Result, SimError};
use rayon::prelude::*;
use std::ops::ControlFlow;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};

/// Told how much is done, in ascending order, from any thread; says whether to go on.
pub type Progress<'a> = &'a (dyn Fn(usize) -> ControlFlow<()> + Sync);

/// Whether runs are to end.
static STOPPED: AtomicBool = AtomicBool::new(false);

/// Ends every run of a datapath in this process at its next block, with [`SimError::Interrupted`], until it is
/// called with `false`: for a program that must be able to stop any work it called.
pub fn stop_runs(now: bool) {
    STOPPED.store(now, Ordering::Relaxed);
}

/// An error once runs are to end.
pub(crate) fn go_on() -> Result<()> {
    match STOPPED.load(Ordering::Relaxed) {
        true => Err(SimError::Interrupted),
        false => Ok(()),
    }
}

/// For those who neither want to know nor to stop.
pub fn ignore(_: usize) -> ControlFlow<()> {
    ControlFlow::Continue(())
}

/// Counts the work of several threads.
pub(crate) struct Steps<'a> {
    progress: Progress<'a>,
    /// What is done, until somebody said to stop.
    done: Mutex<Option<usize>>,
}

impl<'a> Steps<'a> {
    pub fn new(progress: Progress<'a>) -> Self {
        Self {
            progress,
            done: Mutex::new(Some(0)),
        }
    }

    /// Adds `count`, tells, and errors if the work is to stop.
    pub fn advance(&self, count: usize) -> Result<()> {
        // A panic under the lock is on its way to the caller anyway.
        let mut done = self.done.lock().unwrap_or_else(|e| e.into_inner());
        *done = done
            .map(|done| done + count)
            .filter(|done| (self.progress)(*done).is_continue());
        done.map(|_| ()).ok_or(SimError::Interrupted)
    }
}

/// `work(0), …, work(count − 1)` on all threads, two a thread at a time, so that memory is bounded.
/// Results and the first error are in order.
pub(crate) fn in_order<T: Send>(
    count: usize,
    work: impl Fn(usize) -> Result<T> + Sync,
) -> Result<Vec<T>> {
    let mut results = Vec::with_capacity(count);
    let at_once = 2 * rayon::current_num_threads();
    for first in (0..count).step_by(at_once) {
        let batch: Vec<Result<T>> = (first..count.min(first + at_once))
            .into_par_iter()
            .map(&work)
            .collect();
        for result in batch {
            results.push(result?);
        }
    }
    Ok(results)
}
