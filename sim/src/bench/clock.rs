//! Processor time of this process, all threads together.

use std::time::Duration;

/// Processor time used so far; `None` where the system does not say.
#[cfg(unix)]
#[allow(unsafe_code)] // asks the system for the time
pub fn processor_time() -> Option<Duration> {
    let mut time = libc::timespec {
        tv_sec: 0,
        tv_nsec: 0,
    };
    // SAFETY: the pointer is to a timespec.
    let failed = unsafe { libc::clock_gettime(libc::CLOCK_PROCESS_CPUTIME_ID, &mut time) } != 0;
    let seconds = u64::try_from(time.tv_sec).ok().filter(|_| !failed)?;
    Some(Duration::new(seconds, u32::try_from(time.tv_nsec).ok()?))
}

/// As above.
#[cfg(not(unix))]
pub fn processor_time() -> Option<Duration> {
    None
}
