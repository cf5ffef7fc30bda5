//! The folder a reader is given. A process makes one and keeps it, because making and deleting one for
//! each input took longer than reading the input.

use std::fs::{self, File};
use std::io::{Seek, Write};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};
use tempfile::TempDir;

/// Folders around the reader's own that nothing may be written to: `../x` to `../../../x` are seen.
const AROUND: [&str; 3] = ["one", "two", "three"];

/// A file that was put into the folder, open to be written again.
struct Kept {
    name: &'static str,
    path: PathBuf,
    open: File,
}

/// When a folder's entries last changed, and its size (in a file system in memory: their number).
type Stamp = (SystemTime, u64);

/// A folder for a reader's files within folders that must stay as they are.
pub struct Folder {
    inside: PathBuf,
    /// What `inside` was when the files of an input had been put there.
    made: Stamp,
    kept: Vec<Kept>,
    around: Vec<(PathBuf, Stamp)>,
    _all: TempDir,
}

fn stamp(folder: &Path) -> Stamp {
    let metadata = fs::metadata(folder).expect("the folder is there");
    let changed = metadata.modified().expect("a file system with times");
    (changed, metadata.len())
}

impl Folder {
    /// A new one, in memory where the system offers that.
    pub fn new() -> Self {
        let memory = Some(Path::new("/dev/shm")).filter(|p| p.is_dir());
        let parent = memory.map_or_else(std::env::temp_dir, Path::to_path_buf);
        let all = tempfile::tempdir_in(parent).expect("a temporary folder");
        let mut last = all.path().to_path_buf();
        let mut around = Vec::new();
        for name in AROUND {
            around.push(last.join(name));
            last.push(name);
        }
        let inside = last.join("input");
        fs::create_dir_all(&inside).expect("a temporary folder");
        // The clock of a file system may tick every 10 ms only. What is written later has another time.
        std::thread::sleep(Duration::from_millis(30));
        let around = around.into_iter().map(|path| {
            let stamp = stamp(&path);
            (path, stamp)
        });
        Self {
            around: around.collect(),
            made: stamp(&inside),
            inside,
            kept: Vec::new(),
            _all: all,
        }
    }

    /// The folder's path.
    pub fn path(&self) -> &Path {
        &self.inside
    }

    /// The file `name` with these contents.
    pub fn put(&mut self, name: &'static str, data: &[u8]) -> PathBuf {
        let known = self.kept.iter().position(|kept| kept.name == name);
        let at = known.unwrap_or_else(|| {
            let path = self.inside.join(name);
            let open = File::create(&path).expect("the folder can be written");
            self.made = stamp(&self.inside);
            self.kept.push(Kept { name, path, open });
            self.kept.len() - 1
        });
        let Kept { path, open, .. } = &mut self.kept[at];
        open.rewind()
            .and_then(|()| open.write_all(data))
            .and_then(|()| open.set_len(data.len() as u64))
            .expect("the file can be written");
        path.clone()
    }

    /// No file `name`.
    pub fn remove(&mut self, name: &str) {
        if let Some(at) = self.kept.iter().position(|kept| kept.name == name) {
            fs::remove_file(&self.kept.swap_remove(at).path).expect("the file was put there");
            self.made = stamp(&self.inside);
        }
    }

    /// Empties the folder if a reader left or took something, so that no input sees another's files.
    pub fn tidy(&mut self) {
        if stamp(&self.inside) == self.made {
            return;
        }
        self.kept.clear();
        for entry in fs::read_dir(&self.inside).expect("the folder is there") {
            let entry = entry.expect("the folder can be read");
            match entry.file_type().expect("an entry has a type").is_dir() {
                true => fs::remove_dir_all(entry.path()),
                false => fs::remove_file(entry.path()),
            }
            .expect("the folder can be written");
        }
        self.made = stamp(&self.inside);
    }

    /// Whether anything was made, renamed or deleted in the folders around it, even if it is gone again.
    pub fn left_outside(&self) -> bool {
        self.around
            .iter()
            .any(|(path, before)| stamp(path) != *before)
    }
}
