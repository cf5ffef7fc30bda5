//! What the fuzz targets need beside the harness: one thread for everything, and its clock.

/// The most processor time an input may take, in seconds. The fuzzer's own limit goes by the clock on the
/// wall, which on a busy machine says little.
pub const LONGEST: f64 = 0.2;

/// Makes this thread all of the thread pool: handing work to another and waiting for it takes longer
/// than reading a small file.
pub fn alone() {
    rayon::ThreadPoolBuilder::new()
        .num_threads(1)
        .use_current_thread()
        .build_global()
        .expect("there is no pool yet");
}

/// Does `work`, which may not take too long.
pub fn in_time(work: impl FnOnce()) {
    let before = processor_seconds();
    work();
    let took = processor_seconds() - before;
    assert!(took < LONGEST, "{took} seconds for one input");
}

/// Processor time of this thread.
pub fn processor_seconds() -> f64 {
    let mut time = libc::timespec {
        tv_sec: 0,
        tv_nsec: 0,
    };
    // SAFETY: the clock is there, and `time` is where it is told to.
    let done = unsafe { libc::clock_gettime(libc::CLOCK_THREAD_CPUTIME_ID, &mut time) };
    assert_eq!(done, 0, "the system has a clock");
    time.tv_sec as f64 + time.tv_nsec as f64 * 1e-9
}
