//! What a run was asked for: the first line of a sample file. Two runs with the same settings give
//! the same outcomes, whatever the machine, the number of threads or the order.

use super::data::BadLine;
use super::task::{Sample, Task};
use scalescope_sim::error::{Result, SimError};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::str::FromStr;

/// A fixed part of the work: the samples with (id + part) mod count = index.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Shard {
    /// Which part, from 0.
    pub index: usize,
    /// Of how many.
    pub count: usize,
}

impl Shard {
    /// All the work.
    pub const WHOLE: Shard = Shard { index: 0, count: 1 };

    /// Whether a sample belongs to this part.
    pub fn has(&self, sample: &Sample) -> bool {
        (sample.id + sample.part) % self.count == self.index
    }
}

impl FromStr for Shard {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let parsed = text.split_once('/').and_then(|(index, count)| {
            Some(Shard {
                index: index.trim().parse().ok()?,
                count: count.trim().parse().ok()?,
            })
        });
        parsed
            .filter(|s| s.index < s.count)
            .ok_or_else(|| format!("expected i/n with i from 0 to n-1, found {text}"))
    }
}

/// Something read from files: what it is called, what it contains.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Origin {
    /// Last part of the path. Informative: two names may stand for one content.
    pub name: String,
    /// Hash of the content.
    pub sha256: String,
}

impl Origin {
    /// Name and hash of some files, read in order.
    pub fn of_files(name: &Path, files: &[PathBuf]) -> Result<Self> {
        let mut hash = Sha256::new();
        let mut buffer = vec![0; 1 << 20];
        for path in files {
            let mut file = File::open(path).map_err(|e| SimError::io(path, e))?;
            loop {
                let n = file.read(&mut buffer).map_err(|e| SimError::io(path, e))?;
                if n == 0 {
                    break;
                }
                hash.update(&buffer[..n]);
            }
        }
        Ok(Self::hashed(&last_part(name), hash))
    }

    /// Name and hash of bytes in memory.
    pub fn of_bytes(name: &str, bytes: &[u8]) -> Self {
        Self::hashed(name, Sha256::new().chain_update(bytes))
    }

    fn hashed(name: &str, hash: Sha256) -> Self {
        let digest = hash.finalize();
        Self {
            name: name.to_string(),
            sha256: digest.iter().map(|b| format!("{b:02x}")).collect(),
        }
    }
}

/// The last part of a path.
pub fn last_part(path: &Path) -> String {
    path.file_name()
        .unwrap_or(path.as_os_str())
        .to_string_lossy()
        .into_owned()
}

/// Everything the outcomes depend on.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Settings {
    /// Version of the program.
    pub version: String,
    /// The model: every file that went into it.
    pub model: Origin,
    /// The data file.
    pub data: Origin,
    /// Lines of it that were asked for.
    pub limit: Option<usize>,
    /// Rows of it that were looked at.
    pub lines: usize,
    /// Rows with a blank text, which were passed over.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub blank_lines: usize,
    /// Samples of all shards.
    #[serde(rename = "units")]
    pub samples: usize,
    /// Lines that could not be used.
    pub bad_lines: Vec<BadLine>,
    /// What is asked.
    pub task: Task,
    /// The profile.
    pub profile: String,
    /// Faults put into the modes (not into the reference), as `--fault` takes them.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub faults: Vec<String>,
    /// The rows of the mode table, whole: a row of that name with other fields is another mode.
    pub modes: Vec<serde_json::Value>,
    /// The mode that KL and top-1 agreement are measured against.
    pub reference: Option<serde_json::Value>,
    /// Which part of the samples.
    pub shard: Shard,
}

impl Settings {
    /// Names of the modes, in order.
    pub fn mode_names(&self) -> Vec<String> {
        self.modes.iter().map(name_of).collect()
    }

    /// Name of the reference.
    pub fn reference_name(&self) -> Option<String> {
        self.reference.as_ref().map(name_of)
    }

    /// The settings of the whole that this is a part of.
    pub fn whole(&self) -> Self {
        Self {
            shard: Shard::WHOLE,
            ..self.clone()
        }
    }

    /// The first field in which two runs differ, names of files aside.
    pub fn difference(&self, other: &Self) -> Option<Difference> {
        let fields = |settings: &Self| match serde_json::to_value(settings) {
            Ok(serde_json::Value::Object(map)) => map,
            _ => unreachable!("settings are a struct"),
        };
        let content = |value: &serde_json::Value| match value.get("sha256") {
            Some(hash) => hash.clone(),
            None => value.clone(),
        };
        let (own, others) = (fields(self), fields(other));
        own.iter().find_map(|(field, value)| {
            let (here, there) = (content(value), content(&others[field]));
            (here != there).then(|| Difference {
                field: field.clone(),
                here: here.to_string(),
                there: there.to_string(),
            })
        })
    }
}

/// A field in which settings differ.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Difference {
    /// Its name.
    pub field: String,
    /// Its value in the first settings.
    pub here: String,
    /// And in the second.
    pub there: String,
}

fn is_zero(count: &usize) -> bool {
    *count == 0
}

fn name_of(mode: &serde_json::Value) -> String {
    mode["name"].as_str().unwrap_or_default().to_string()
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// Settings of a made-up run of these modes.
    pub fn settings(modes: &[&str], samples: usize) -> Settings {
        let origin = |name: &str| Origin::of_bytes(name, name.as_bytes());
        Settings {
            version: "0".into(),
            model: origin("model"),
            data: origin("data"),
            limit: None,
            lines: samples,
            blank_lines: 0,
            samples,
            bad_lines: vec![],
            task: Task::LastWord { max_length: 8 },
            profile: "exact".into(),
            faults: vec![],
            modes: (modes.iter())
                .map(|name| serde_json::json!({ "name": name, "summary": "" }))
                .collect(),
            reference: modes
                .first()
                .map(|name| serde_json::json!({ "name": name })),
            shard: Shard::WHOLE,
        }
    }

    #[test]
    fn shards_are_written_from_zero() {
        assert_eq!("2/3".parse(), Ok(Shard { index: 2, count: 3 }));
        for bad in ["3/3", "1", "0/0", "-1/2", "a/b", ""] {
            assert!(bad.parse::<Shard>().is_err(), "{bad}");
        }
    }

    #[test]
    fn a_difference_is_named_and_file_names_are_none() {
        let a = settings(&["0", "1"], 4);
        let mut b = a.clone();
        b.model.name = "elsewhere".into();
        assert_eq!(a.difference(&b), None);
        b.profile = "deployed".into();
        let found = a.difference(&b).unwrap();
        assert_eq!((&*found.field, &*found.here), ("profile", "\"exact\""));
        b = a.clone();
        b.modes[1]["summary"] = "other".into();
        assert_eq!(a.difference(&b).unwrap().field, "modes");
    }

    #[test]
    fn settings_survive_a_file() {
        let mut a = settings(&["0", "2-4"], 4);
        a.task = Task::Perplexity {
            window: 512,
            stride: 256,
        };
        let text = serde_json::to_string(&a).unwrap();
        assert_eq!(serde_json::from_str::<Settings>(&text).unwrap(), a);
    }
}
