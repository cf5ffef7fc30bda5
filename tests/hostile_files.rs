//! Replays what fuzzing found, and its seeds, with the compiler everybody has: `fuzz/corpus` has a
//! folder for each reader.

#[allow(dead_code, unsafe_code)] // what the fuzz targets alone need; a clock
#[path = "../fuzz/alone.rs"]
mod alone;
#[path = "../fuzz/harness.rs"]
mod harness;

use harness::folder::Folder;
use harness::readers::{BASE, TARGETS, Target};
use std::fs;
use std::hint::black_box;
use std::panic::catch_unwind;
use std::path::{Path, PathBuf};

/// One test, because the allocation counters see every thread.
#[test]
fn no_reader_panics_or_takes_more_memory_than_stated() {
    let counted = harness::allocations::peak_of(|| drop(vec![1u8; 3 << 20]));
    assert!((3 << 20..4 << 20).contains(&counted), "the counter counts");
    every_check_can_fail();
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
            harness::run(target, &whole);
            // Cut short, and with one byte changed, at places spread over the file.
            for i in 0..16 {
                let at = whole.len() * i / 16;
                harness::run(target, &whole[..at]);
                let mut changed = whole.clone();
                if let Some(byte) = changed.get_mut(at) {
                    *byte ^= 1 << (i % 8);
                    harness::run(target, &changed);
                }
            }
        }
    }
}

/// A reader, and what its refusal says; nothing where it is fine.
type Bad = (fn(&mut Folder, &[u8]), &'static str);

/// Readers that do what none may, each refused for it.
fn every_check_can_fail() {
    const MEMORY: &str = "bytes for an input of 0, bound 8388608";
    const OUTSIDE: &str = "wrote outside its folder";
    let bad: &[Bad] = &[
        (|_, _| panic!("a panic"), "a panic"),
        (
            |_, _| drop(black_box(Vec::<u8>::with_capacity(BASE + 1))),
            MEMORY,
        ),
        (|_, _| drop(black_box(vec![0u8; BASE + 1])), MEMORY),
        // In all, but not at once.
        (
            |_, _| (0..9).for_each(|_| drop(black_box(vec![0u8; 1 << 20]))),
            "",
        ),
        (
            |_, _| {
                let mut grown = vec![0u8; BASE / 2];
                grown.reserve_exact(BASE / 2 + 1);
            },
            MEMORY,
        ),
        (|dir, _| write(&dir.path().join("../x")), OUTSIDE),
        (|dir, _| write(&dir.path().join("../../x")), OUTSIDE),
        (|dir, _| write(&dir.path().join("../../../x")), OUTSIDE),
        (
            |dir, _| {
                let path = dir.path().join("../x");
                write(&path);
                fs::remove_file(path).unwrap();
            },
            OUTSIDE,
        ),
        (
            |dir, _| fs::create_dir(dir.path().join("../folder")).unwrap(),
            OUTSIDE,
        ),
        (
            |dir, _| {
                let path = dir.put("a", b"moved");
                fs::rename(path, dir.path().join("../a")).unwrap();
            },
            OUTSIDE,
        ),
    ];
    for (i, (read, message)) in bad.iter().enumerate() {
        let target = Target {
            name: "bad",
            read: *read,
            factor: 0,
        };
        let caught = catch_unwind(|| harness::run(&target, b"")).err();
        let said = caught.map(|panic| match panic.downcast::<String>() {
            Ok(said) => *said,
            Err(panic) => panic.downcast_ref::<&str>().unwrap().to_string(),
        });
        assert_eq!(said.is_some(), !message.is_empty(), "reader {i}");
        let said = said.unwrap_or_default();
        assert!(said.contains(message), "reader {i}: {said}");
    }
    let slow = || {
        let before = alone::processor_seconds();
        while alone::processor_seconds() - before < alone::LONGEST {}
    };
    assert!(catch_unwind(|| alone::in_time(slow)).is_err());
    alone::in_time(|| ());
    // What a reader leaves in its folder, or takes from it, is not there for the next input.
    let good = |read: fn(&mut Folder, &[u8])| {
        let target = Target {
            name: "good",
            read,
            factor: 0,
        };
        harness::run(&target, b"");
    };
    good(|dir, _| {
        dir.put("a", b"1");
        write(&dir.path().join("left"));
        fs::create_dir(dir.path().join("folder")).unwrap();
        write(&dir.path().join("folder/left"));
    });
    good(|dir, _| {
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0);
        let path = dir.put("a", b"22");
        assert_eq!(fs::read(&path).unwrap(), b"22");
        fs::remove_file(path).unwrap();
    });
    good(|dir, _| {
        let path = dir.put("a", b"3");
        assert_eq!(fs::read(&path).unwrap(), b"3");
        dir.remove("a");
        assert!(!path.exists());
    });
}

fn write(path: &Path) {
    fs::write(path, "x").unwrap();
}
