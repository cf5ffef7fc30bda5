//! Replays what fuzzing found, and its seeds, with the compiler everybody has: `fuzz/corpus` has a
//! folder for each reader.

#[path = "../fuzz/harness.rs"]
mod harness;

use harness::readers::TARGETS;
use std::fs;
use std::path::PathBuf;

/// One test, because the allocation counters see every thread.
#[test]
fn no_reader_panics_or_takes_more_memory_than_stated() {
    let counted = harness::allocations::peak_of(|| drop(vec![1u8; 3 << 20]));
    assert!((3 << 20..4 << 20).contains(&counted), "the counter counts");
    let corpus = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("fuzz/corpus");
    for target in TARGETS {
        let folder = corpus.join(target.name);
        let mut cases: Vec<_> = fs::read_dir(&folder)
            .unwrap_or_else(|e| panic!("{}: {e}", folder.display()))
            .map(|entry| entry.unwrap().path())
            .collect();
        cases.sort();
        assert!(!cases.is_empty(), "{} has cases", target.name);
        for case in cases {
            println!("{}", case.display());
            let whole = fs::read(&case).unwrap();
            harness::run(target.name, &whole);
            // Cut short, and with one byte changed, at places spread over the file.
            for i in 0..16 {
                let at = whole.len() * i / 16;
                harness::run(target.name, &whole[..at]);
                let mut changed = whole.clone();
                if let Some(byte) = changed.get_mut(at) {
                    *byte ^= 1 << (i % 8);
                    harness::run(target.name, &changed);
                }
            }
        }
    }
}
