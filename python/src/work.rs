//! Work without the interpreter's lock: panics become exceptions, Ctrl-C stops it, progress is shown.

use crate::errors::{panicked, raise};
use pyo3::exceptions::PyUserWarning;
use pyo3::prelude::*;
use scalescope::embed;
use scalescope_sim::error::{Result, SimError};
use std::ffi::CString;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::{RecvTimeoutError, channel};
use std::thread;
use std::time::Duration;

/// How often signals and progress are looked at.
const TICK: Duration = Duration::from_millis(50);
/// As the main thread of a program has it.
const STACK: usize = 8 << 20;

/// How often work was stopped. Commands may take an interrupted run for one that failed and go on, so what ran while
/// this changed gives no result.
static STOPS: AtomicUsize = AtomicUsize::new(0);

/// Work that takes no longer than a blink.
pub fn short<T: Send>(py: Python<'_>, work: impl FnOnce() -> Result<T> + Send) -> PyResult<T> {
    match py.detach(|| catch_unwind(AssertUnwindSafe(work))) {
        Ok(done) => done.map_err(raise),
        Err(panic) => Err(panicked(&*panic)),
    }
}

/// Work on a thread of its own, while this one looks after Python: `progress` is called with what is done, of how
/// many, and of what.
pub fn long<T: Send>(
    py: Python<'_>,
    progress: Option<&Bound<'_, PyAny>>,
    work: impl FnOnce() -> Result<T> + Send,
) -> PyResult<T> {
    let (say, mut done) = channel();
    let mut stopped = None;
    let stops = STOPS.load(Ordering::SeqCst);
    let outcome = thread::scope(|scope| {
        let worker = thread::Builder::new()
            .stack_size(STACK)
            .spawn_scoped(scope, move || {
                let outcome = catch_unwind(AssertUnwindSafe(work));
                // The other side waits until the end.
                let _ = say.send(());
                outcome
            })?;
        loop {
            let waited;
            (done, waited) = py.detach(move || {
                let waited = done.recv_timeout(TICK);
                (done, waited)
            });
            if waited != Err(RecvTimeoutError::Timeout) {
                break;
            }
            if stopped.is_none()
                && let Err(e) = attend(py, progress)
            {
                STOPS.fetch_add(1, Ordering::SeqCst);
                embed::stop(true);
                stopped = Some(e);
            }
        }
        let outcome = worker.join().expect("panics are caught inside");
        Ok::<_, PyErr>(outcome)
    });
    if let Some(e) = stopped {
        embed::stop(false);
        return Err(e);
    }
    if STOPS.load(Ordering::SeqCst) != stops {
        return Err(raise(SimError::Interrupted));
    }
    let done = outcome?.map_err(|panic| panicked(&*panic))?;
    for note in embed::take_notes() {
        let note = CString::new(note.replace('\0', " ")).expect("no zeros are left");
        PyErr::warn(py, &py.get_type::<PyUserWarning>(), &note, 2)?;
    }
    done.map_err(raise)
}

fn attend(py: Python<'_>, progress: Option<&Bound<'_, PyAny>>) -> PyResult<()> {
    py.check_signals()?;
    if let (Some(show), Some((done, all, what))) = (progress, embed::progress()) {
        show.call1((done, all, what))?;
    }
    Ok(())
}
