//! Large pages for memory that is read from end to end again and again.

/// Slices below this are not worth a system call.
#[cfg(target_os = "linux")]
const WORTH: usize = 1 << 18;
/// `MADV_COLLAPSE`, of Linux 6.1.
#[cfg(target_os = "linux")]
const COLLAPSE: libc::c_int = 25;
/// A large page of the processors at hand.
#[cfg(target_os = "linux")]
const LARGE: usize = 2 << 20;

/// Asks the system to put what lies around `values` on large pages: a processor then finds a new page
/// once in 2 MiB instead of 4 KiB, which in a virtual machine decides how fast it reads. A wish: where
/// the system does not know or grant it, nothing happens. Takes some 0.3 ms a MiB the first time.
#[cfg(target_os = "linux")]
pub fn enlarge<T>(values: &[T]) {
    let bytes = size_of_val(values);
    if bytes < WORTH {
        return;
    }
    let start = values.as_ptr() as usize;
    for page in (start / LARGE * LARGE..start + bytes).step_by(LARGE) {
        // SAFETY: moves memory of this process to other pages and changes nothing in it; addresses that
        // are not mapped, or not as one, are refused.
        unsafe { libc::madvise(page as *mut libc::c_void, LARGE, COLLAPSE) };
    }
}

/// As above: other systems decide for themselves.
#[cfg(not(target_os = "linux"))]
pub fn enlarge<T>(_: &[T]) {}

/// Asks the C library to keep freed memory for the next tensor. It would give large blocks back to the system
/// and get them anew, page by page, for each step of each block: at thousands of tokens a sixth of the time.
/// A wish as well; for a program to call once, before it starts threads.
#[cfg(all(target_os = "linux", target_env = "gnu"))]
pub fn keep_freed() {
    /// What glibc took before it took any size.
    const ONCE: libc::c_int = 32 << 20;
    // SAFETY: sets parameters of the allocator; no thread but this one runs.
    unsafe {
        libc::mallopt(libc::M_TRIM_THRESHOLD, libc::c_int::MAX);
        if libc::mallopt(libc::M_MMAP_THRESHOLD, libc::c_int::MAX) == 0 {
            libc::mallopt(libc::M_MMAP_THRESHOLD, ONCE);
        }
    }
}

/// As above: other allocators decide for themselves.
#[cfg(not(all(target_os = "linux", target_env = "gnu")))]
pub fn keep_freed() {}
