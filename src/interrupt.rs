//! Ctrl-C and termination signals in long work: what is done stays, temporary files go.

use scalescope_sim::error::{Result, SimError};
use scalescope_sim::progress::stop_runs;
use std::ops::ControlFlow;
use std::sync::LazyLock;
use std::sync::atomic::{AtomicBool, Ordering};

static STOP: AtomicBool = AtomicBool::new(false);

/// Whether another program calls commands and has its own handler; see [`embed`].
static EMBEDDED: AtomicBool = AtomicBool::new(false);

/// Leaves signals to the calling program, from now on; it calls [`stop`] for one.
pub fn embed() {
    EMBEDDED.store(true, Ordering::Relaxed);
}

/// Whether signals are left to the calling program.
pub fn is_embedded() -> bool {
    EMBEDDED.load(Ordering::Relaxed)
}

/// Asks the work at hand to stop; `false` once it has.
pub fn stop(now: bool) {
    stop_runs(now);
    STOP.store(now, Ordering::Relaxed);
}

/// The first signal sets the flag, a second one ends the program at once.
static HANDLER: LazyLock<std::result::Result<(), String>> = LazyLock::new(|| {
    ctrlc::set_handler(|| {
        if STOP.swap(true, Ordering::Relaxed) {
            std::process::exit(130);
        }
        eprintln!("finishing the current work; interrupt again to stop at once");
    })
    .map_err(|e| e.to_string())
});

/// A flag that a signal sets, from now on. Work that asks for it must look at it often.
pub fn flag() -> Result<&'static AtomicBool> {
    if is_embedded() {
        return Ok(&STOP);
    }
    match &*HANDLER {
        Ok(()) => Ok(&STOP),
        Err(e) => Err(SimError::value("Ctrl-C", "a handler", e)),
    }
}

/// An error once somebody asked to stop.
pub fn check() -> Result<()> {
    match flag()?.load(Ordering::Relaxed) {
        true => Err(SimError::Interrupted),
        false => Ok(()),
    }
}

/// The same for work that reports its progress.
pub fn go_on() -> ControlFlow<()> {
    match check() {
        Ok(()) => ControlFlow::Continue(()),
        Err(_) => ControlFlow::Break(()),
    }
}
