//! One input through one reader: no panic, no more memory than the reader's bound, no file but its own.

#[allow(unsafe_code)] // an allocator
#[path = "allocations.rs"]
pub mod allocations;
#[path = "readers.rs"]
pub mod readers;

use readers::{BASE, TARGETS};
use std::fs;
use std::path::Path;

/// Gives `data` to the reader `name`.
pub fn run(name: &str, data: &[u8]) {
    let target = TARGETS
        .iter()
        .find(|t| t.name == name)
        .expect("a target of that name");
    // In memory where the system offers it.
    let parent = Some(Path::new("/dev/shm")).filter(|p| p.is_dir());
    let parent = parent.map_or_else(std::env::temp_dir, Path::to_path_buf);
    let outside = tempfile::tempdir_in(parent).expect("a temporary folder");
    let inside = outside.path().join("input");
    fs::create_dir(&inside).expect("a temporary folder");
    let peak = allocations::peak_of(|| (target.read)(&inside, data));
    let bound = BASE + target.factor * data.len();
    assert!(
        peak <= bound,
        "{name}: {peak} bytes for an input of {}, bound {bound}",
        data.len()
    );
    let beside = fs::read_dir(outside.path())
        .expect("the folder is there")
        .count();
    assert_eq!(beside, 1, "{name} wrote outside its folder");
}
