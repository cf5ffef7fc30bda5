//! Memory that cannot be had is a clear line and exit code 2, not an abort.

use std::alloc::{GlobalAlloc, Layout, System};
use std::io::Write;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

/// The system's allocator; where it has nothing more to give, the program ends.
struct OrExit;

#[global_allocator]
static ALLOCATOR: OrExit = OrExit;

/// Ends the program. Nothing here allocates, and no file is left under its final name: results are
/// written beside it and moved there when they are whole.
fn exit(layout: Layout) -> ! {
    // Threads run out together; one of them says it, and the others leave it the time.
    static SAID: AtomicBool = AtomicBool::new(false);
    if SAID.swap(true, Ordering::Relaxed) {
        std::thread::sleep(Duration::from_millis(100));
        std::process::exit(2)
    }
    // Enough for the words and a 64-bit number.
    let mut line = [0u8; 96];
    let mut rest = &mut line[..];
    let _ = writeln!(
        rest,
        "scalescope: out of memory: {} more bytes are needed",
        layout.size()
    );
    let unused = rest.len();
    let _ = std::io::stderr().write_all(&line[..line.len() - unused]);
    std::process::exit(2)
}

// SAFETY: every call goes to `System` as it is; null never gets out.
unsafe impl GlobalAlloc for OrExit {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        // SAFETY: the caller's promise.
        let pointer = unsafe { System.alloc(layout) };
        if pointer.is_null() {
            exit(layout);
        }
        pointer
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        // SAFETY: the caller's promise.
        let pointer = unsafe { System.alloc_zeroed(layout) };
        if pointer.is_null() {
            exit(layout);
        }
        pointer
    }

    unsafe fn realloc(&self, pointer: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        // SAFETY: the caller's promise.
        let pointer = unsafe { System.realloc(pointer, layout, size) };
        if pointer.is_null() {
            exit(layout);
        }
        pointer
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        // SAFETY: the caller's promise.
        unsafe { System.dealloc(pointer, layout) }
    }
}
