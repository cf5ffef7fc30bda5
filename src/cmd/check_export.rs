//! `scalescope check-export`: exported vectors read back and simulated again, dumps of RTL beside
//! them.

use crate::Outcome;
use crate::output::{print, print_json, table, table_text};
use clap::Args;
use scalescope_golden::rtl::manifest::{MANIFEST, Manifest, Role, StepVectors};
use scalescope_golden::rtl::simulate::{Difference, differences, simulate};
use scalescope_golden::rtl::words::{Format, read};
use scalescope_sim::error::{Result, SimError};
use serde_json::json;
use std::path::{Path, PathBuf};

/// Arguments of `check-export`.
#[derive(Args, Debug)]
#[command(after_help = "Examples:
  scalescope check-export vectors
  scalescope check-export vectors/conv        with conv/out.dump.hex from a simulator, if it is there

Exit code 0 only if every file is the one the manifest names, the step gives the same bits again, and
every dump is equal.")]
pub struct CheckExportArgs {
    /// Folders of `scalescope export`
    #[arg(required = true, value_name = "DIR")]
    pub folders: Vec<PathBuf>,
    /// Print JSON instead of a table
    #[arg(long)]
    pub json: bool,
}

/// The outcome of one folder.
struct Checked {
    folder: PathBuf,
    step: String,
    /// Files whose sha256 is not the manifest's.
    altered: Vec<String>,
    /// What the step makes of the folder's inputs, against the folder.
    simulated: Vec<Difference>,
    /// Dumps of another simulator, against the folder.
    dumps: Vec<Difference>,
}

impl Checked {
    fn equal(&self) -> bool {
        let same = |d: &Difference| d.mismatched == 0;
        self.altered.is_empty() && self.simulated.iter().all(same) && self.dumps.iter().all(same)
    }
}

pub fn run(args: &CheckExportArgs) -> Result<Outcome> {
    let mut folders = Vec::new();
    for path in &args.folders {
        match path.join(MANIFEST).is_file() {
            true => folders.push(path.clone()),
            false => folders.extend(inner(path)?),
        }
    }
    let checked: Vec<Checked> = folders.iter().map(|f| check(f)).collect::<Result<_>>()?;
    let equal = checked.iter().all(Checked::equal);
    if args.json {
        let rows: Vec<_> = checked
            .iter()
            .map(|c| {
                json!({
                    "folder": c.folder, "step": c.step, "altered": c.altered,
                    "simulated": c.simulated, "dumps": c.dumps, "equal": c.equal(),
                })
            })
            .collect();
        print_json(&json!({ "folders": rows, "equal": equal }));
    } else {
        print(&text(&checked));
    }
    Ok(match equal {
        true => Outcome::Success,
        false => Outcome::Mismatch,
    })
}

/// The folders of steps in a folder, sorted.
fn inner(path: &Path) -> Result<Vec<PathBuf>> {
    let io = |e| SimError::io(path, e);
    let mut folders = Vec::new();
    for entry in std::fs::read_dir(path).map_err(io)? {
        let folder = entry.map_err(io)?.path();
        if folder.join(MANIFEST).is_file() {
            folders.push(folder);
        }
    }
    folders.sort();
    match folders.is_empty() {
        true => Err(SimError::file(
            path,
            MANIFEST,
            "a folder of `scalescope export`",
            "none",
        )),
        false => Ok(folders),
    }
}

fn check(folder: &Path) -> Result<Checked> {
    let (step, altered) = StepVectors::read(folder)?;
    let found = simulate(&step).map_err(|e| e.in_file(folder.join(MANIFEST)))?;
    let simulated = differences(&step, &found).map_err(|e| e.in_file(folder.join(MANIFEST)))?;
    let mut dumps = Vec::new();
    for vector in step.vectors.iter().filter(|v| v.role == Role::Expected) {
        let path = folder.join(format!("{}.dump.hex", vector.name));
        if path.is_file() {
            let array = read(
                &path,
                Format::Hex,
                vector.array.dtype(),
                vector.array.shape(),
            )?;
            let mut dump = differences(
                &step,
                &[scalescope_golden::rtl::manifest::Vector {
                    array,
                    ..vector.clone()
                }],
            )?;
            dumps.append(&mut dump);
        }
    }
    Ok(Checked {
        folder: folder.into(),
        step: Manifest::read(folder)?.step,
        altered,
        simulated,
        dumps,
    })
}

fn text(checked: &[Checked]) -> String {
    let mut rows = table(
        &[
            "step",
            "array",
            "against",
            "words",
            "mismatched",
            "first at",
        ],
        3,
    );
    let mut altered = String::new();
    for c in checked {
        for (against, found) in [("simulation", &c.simulated), ("dump", &c.dumps)] {
            for d in found {
                rows.add_row([
                    c.step.clone(),
                    d.name.clone(),
                    against.to_owned(),
                    d.words.to_string(),
                    d.mismatched.to_string(),
                    d.first.map_or("-".into(), |at| at.to_string()),
                ]);
            }
        }
        for file in &c.altered {
            altered += &format!(
                "{}: {file}: sha256 is not the manifest's\n",
                c.folder.display()
            );
        }
    }
    let equal = checked.iter().all(Checked::equal);
    let verdict = if equal {
        "every word is equal"
    } else {
        "NOT EQUAL"
    };
    format!("{}\n{altered}{verdict}\n", table_text(&rows))
}
