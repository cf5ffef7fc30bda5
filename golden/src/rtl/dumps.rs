//! Dumps that another simulator left beside the vectors: found by name, whatever wrote them.

use super::difference::{Difference, against_dump};
use super::manifest::{Manifest, StepVectors, Vector};
use super::words::{Dump, Format};
use scalescope_sim::error::{Result, SimError};
use std::path::{Path, PathBuf};

/// The dumps of a folder.
#[derive(Debug, Default)]
pub struct Dumps {
    /// Each dump against its array.
    pub compared: Vec<(PathBuf, Difference)>,
    /// Dumps that cannot be read, by array.
    pub unreadable: Vec<(String, SimError)>,
    /// Files that are called dumps, of no array of the step.
    pub strays: Vec<PathBuf>,
}

impl Dumps {
    /// Finds and compares the dumps beside the vectors of a step. A dump is a file with `dump` in its
    /// name; the rest of the name, extensions aside, is the array's: `out.dump.hex`, `OUT_dump.mem`,
    /// `out.hex.dump`.
    ///
    /// # Errors
    ///
    /// A folder that cannot be listed.
    pub fn read(folder: &Path, manifest: &Manifest, step: &StepVectors) -> Result<Self> {
        let io = |e| SimError::io(folder, e);
        let mut files: Vec<PathBuf> = Vec::new();
        for entry in std::fs::read_dir(folder).map_err(io)? {
            let path = entry.map_err(io)?.path();
            let known = |file: &str| manifest.arrays.iter().any(|array| array.file == file);
            let name = path.file_name().unwrap_or_default().to_string_lossy();
            if path.is_file() && is_dump(&name) && !known(&name) {
                files.push(path);
            }
        }
        files.sort();
        let mut dumps = Self::default();
        for path in files {
            let name = path.file_name().unwrap_or_default().to_string_lossy();
            let Some(vector) = array_of(&name, &step.vectors) else {
                dumps.strays.push(path);
                continue;
            };
            match Dump::read(&path, vector.array.dtype(), vector.bits, vector.array.len()) {
                Ok(dump) => dumps.compared.push((path, against_dump(vector, &dump))),
                Err(error) => dumps.unreadable.push((vector.name.clone(), error)),
            }
        }
        Ok(dumps)
    }

    /// Whether an array has a dump.
    pub fn has(&self, name: &str) -> bool {
        let compared = self.compared.iter().map(|(_, d)| &d.name);
        let mut all = compared.chain(self.unreadable.iter().map(|(array, _)| array));
        all.any(|array| array == name)
    }
}

/// The parts of a file's name, in small letters.
fn parts(name: &str) -> Vec<String> {
    let parts = name
        .split(|c: char| !c.is_alphanumeric())
        .filter(|part| !part.is_empty());
    parts.map(str::to_lowercase).collect()
}

fn is_dump(name: &str) -> bool {
    parts(name).iter().any(|part| part == "dump")
}

/// The array that a dump's name is of.
fn array_of<'a>(name: &str, vectors: &'a [Vector]) -> Option<&'a Vector> {
    let mut parts = parts(name);
    parts.retain(|part| part != "dump" && part != "txt" && Format::from_name(part).is_none());
    let name = parts.join("_");
    vectors
        .iter()
        .find(|vector| vector.name.eq_ignore_ascii_case(&name))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::npz::Element;
    use crate::rtl::manifest::Role;
    use ndarray::{ArrayD, IxDyn};

    #[test]
    fn a_dump_is_known_by_every_name_of_its_array() {
        let one = || i8::wrap(ArrayD::zeros(IxDyn(&[1])));
        let vector = |name: &str| Vector::new(name, Role::Expected, one());
        let vectors = [vector("out"), vector("out_scale")];
        let of = |name: &str| array_of(name, &vectors).map(|v| v.name.as_str());
        for name in [
            "out.dump.hex",
            "out_dump.hex",
            "out.hex.dump",
            "OUT.dump.hex",
            "out.dump.mem",
            "out.dump",
            "out.dump.hex.txt",
            "dump_out.npy",
            "out.DUMP.BIN",
        ] {
            assert!(is_dump(name));
            assert_eq!(of(name), Some("out"), "{name}");
        }
        assert_eq!(of("out_scale.dump.hex"), Some("out_scale"));
        assert_eq!(of("x_proj.dump.hex"), None);
        assert!(!is_dump("out.hex") && !is_dump("dumped.hex"));
    }
}
