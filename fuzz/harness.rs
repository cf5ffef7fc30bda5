//! One input through one reader: no panic, no more memory than the reader's bound, no file but its own.

#[allow(unsafe_code)] // an allocator
#[path = "allocations.rs"]
pub mod allocations;
#[path = "folder.rs"]
pub mod folder;
#[allow(dead_code)] // a fuzz target has one reader and not the list
#[path = "readers.rs"]
pub mod readers;

use folder::Folder;
use readers::{BASE, Target};
use std::cell::Cell;

thread_local! { static FOLDER: Cell<Option<Folder>> = const { Cell::new(None) } }

/// Gives `data` to a reader.
pub fn run(target: &Target, data: &[u8]) {
    // Taken out: after a panic the next input gets a new one.
    let mut folder = FOLDER.take().unwrap_or_else(Folder::new);
    let peak = allocations::peak_of(|| (target.read)(&mut folder, data));
    let (name, bound) = (target.name, BASE + target.factor * data.len());
    assert!(
        peak <= bound,
        "{name}: {peak} bytes for an input of {}, bound {bound}",
        data.len()
    );
    assert!(!folder.left_outside(), "{name} wrote outside its folder");
    folder.tidy();
    FOLDER.set(Some(folder));
}
