//! A model file that somebody cuts short while it is mapped: a clear line and exit code 2, not a death by
//! signal.

use std::sync::atomic::{AtomicBool, Ordering};

/// Takes over the signal by which the system reports pages that a file no longer has.
pub fn install() {
    let handler: extern "C" fn(libc::c_int) = exit;
    // SAFETY: the handler makes no call but those that are allowed in a handler.
    unsafe { libc::signal(libc::SIGBUS, handler as libc::sighandler_t) };
}

/// Ends the program. No result lies half-written under its final name: it is moved there when it is whole.
extern "C" fn exit(_signal: libc::c_int) {
    const LINE: &[u8] = b"scalescope: a file was cut short while it was read, or its disk failed\n";
    /// Several threads may meet the end of the file; one of them says so.
    static SAID: AtomicBool = AtomicBool::new(false);
    if SAID.swap(true, Ordering::Relaxed) {
        loop {
            // SAFETY: async-signal-safe; the thread that speaks ends this one with the program.
            unsafe { libc::pause() };
        }
    }
    // SAFETY: both are async-signal-safe; the line is static.
    unsafe {
        libc::write(libc::STDERR_FILENO, LINE.as_ptr().cast(), LINE.len());
        libc::_exit(2)
    }
}
