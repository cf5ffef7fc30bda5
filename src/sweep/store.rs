//! The file of a sweep: a line of settings, then one line a design, as each is done.

use super::engine::Design;
use scalescope_sim::error::{Result, SimError};
use serde_json::Value;
use std::fs::{File, OpenOptions};
use std::io::Write;
use std::path::{Path, PathBuf};

/// An open file of a sweep.
pub struct Store {
    path: PathBuf,
    file: File,
    /// Designs that were done before.
    pub done: Vec<Design>,
}

impl Store {
    /// Goes on with a file of the same settings, or starts one. A last line that was cut off is
    /// dropped.
    ///
    /// # Errors
    ///
    /// A file of other settings, or one that is no sweep's.
    pub fn open(path: &Path, settings: &Value) -> Result<Self> {
        let io = |e| SimError::io(path, e);
        if !path.exists() {
            let mut file = File::create_new(path).map_err(io)?;
            writeln!(file, "{settings}").map_err(io)?;
            return Ok(Self {
                path: path.into(),
                file,
                done: Vec::new(),
            });
        }
        let text = std::fs::read_to_string(path).map_err(io)?;
        let whole = text.rfind('\n').map_or(0, |at| at + 1);
        let mut lines = text[..whole].lines();
        let header: Option<Value> = lines
            .next()
            .and_then(|line| serde_json::from_str(line).ok());
        let Some(header) = header else {
            return Err(SimError::file(
                path,
                "line 1",
                "the settings of a sweep",
                "something else",
            ));
        };
        let fields = settings.as_object().expect("settings are an object");
        for (key, want) in fields {
            let found = header.get(key).unwrap_or(&Value::Null);
            if found != want {
                return Err(SimError::file(
                    path,
                    format_args!("settings: {key}"),
                    want,
                    found,
                ));
            }
        }
        let done = lines
            .enumerate()
            .map(|(i, line)| {
                serde_json::from_str(line).map_err(|e| {
                    SimError::file(
                        path,
                        format_args!("line {}", i + 2),
                        "a design of a sweep",
                        e,
                    )
                })
            })
            .collect::<Result<_>>()?;
        let file = OpenOptions::new().append(true).open(path).map_err(io)?;
        file.set_len(whole as u64).map_err(io)?;
        Ok(Self {
            path: path.into(),
            file,
            done,
        })
    }

    /// Adds a design.
    pub fn add(&mut self, design: &Design) -> Result<()> {
        let line = serde_json::to_string(design).expect("a design is JSON") + "\n";
        self.file
            .write_all(line.as_bytes())
            .map_err(|e| SimError::io(&self.path, e))
    }
}
