//! `scalescope check export`: exported vectors read back and simulated again, dumps of RTL beside
//! them.

use crate::Outcome;
use crate::output::{print, print_json, table, table_text};
use clap::Args;
use scalescope_golden::rtl::difference::{Difference, differences};
use scalescope_golden::rtl::dumps::Dumps;
use scalescope_golden::rtl::manifest::{MANIFEST, Manifest, Role, StepVectors};
use scalescope_golden::rtl::simulate::simulate;
use scalescope_sim::error::{Result, SimError};
use serde_json::json;
use std::path::{Path, PathBuf};

/// Arguments of `check export`.
#[derive(Args, Debug)]
#[command(after_help = "Examples:
  scalescope check export vectors/conv            with conv/out.dump.hex from a simulator
  scalescope check export vectors --no-dumps      the vectors alone

A dump is a file beside the vectors with `dump` and the name of an array in its name, in any form that
export writes. Exit code 0 only if every file is the one the manifest names, the step gives the same bits
again, and every output has a dump, each of which is equal.")]
pub struct CheckExportArgs {
    /// Folders of `scalescope export`
    #[arg(required = true, value_name = "DIR")]
    pub folders: Vec<PathBuf>,
    /// Check the vectors alone: no device is looked at
    #[arg(long)]
    pub no_dumps: bool,
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
    /// Dumps of another simulator, against the folder; `None` if they were not asked for.
    dumps: Option<Dumps>,
    /// Outputs that have no dump.
    missing: Vec<String>,
}

impl Checked {
    fn equal(&self) -> bool {
        let dumps = (self.dumps.as_ref()).is_none_or(|dumps| {
            let equal = dumps.compared.iter().all(|(_, d)| d.equal());
            equal && dumps.strays.is_empty() && dumps.unreadable.is_empty()
        });
        let simulated = !self.simulated.is_empty() && self.simulated.iter().all(Difference::equal);
        simulated && dumps && self.altered.is_empty() && self.missing.is_empty()
    }

    fn compared(&self) -> &[(PathBuf, Difference)] {
        self.dumps.as_ref().map_or(&[], |dumps| &dumps.compared)
    }

    /// What keeps it from being equal besides words, in sentences.
    fn faults(&self) -> Vec<String> {
        let folder = self.folder.display();
        let altered = |file: &String| format!("{folder}: {file}: sha256 is not the manifest's");
        let mut faults: Vec<String> = self.altered.iter().map(altered).collect();
        if let Some(dumps) = &self.dumps {
            faults.extend(dumps.unreadable.iter().map(|(_, e)| e.to_string()));
            let stray =
                |path: &PathBuf| format!("{}: a dump of no array of {}", path.display(), self.step);
            faults.extend(dumps.strays.iter().map(stray));
        }
        let missing =
            |name: &String| format!("{folder}: {name}: no dump of a device ({name}.dump.hex)");
        faults.extend(self.missing.iter().map(missing));
        faults
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
    let mut checked: Vec<Checked> = (folders.iter())
        .map(|folder| check(folder, !args.no_dumps))
        .collect::<Result<_>>()?;
    let equal = checked.iter().all(Checked::equal);
    if args.json {
        let rows: Vec<_> = checked
            .iter()
            .map(|c| {
                let unreadable = c.dumps.iter().flat_map(|d| &d.unreadable);
                json!({
                    "folder": c.folder, "step": c.step, "altered": c.altered,
                    "simulated": c.simulated,
                    "dumps": c.compared().iter().map(|(_, d)| d).collect::<Vec<_>>(),
                    "unreadable": unreadable.map(|(_, e)| e.to_string()).collect::<Vec<_>>(),
                    "strays": c.dumps.as_ref().map(|d| &d.strays),
                    "without_dump": c.missing, "equal": c.equal(),
                })
            })
            .collect();
        print_json(&json!({ "folders": rows, "equal": equal }));
    } else {
        print(&text(&checked));
    }
    let unreadable = checked.iter_mut().flat_map(|c| c.dumps.take());
    match unreadable.flat_map(|dumps| dumps.unreadable).next() {
        Some((_, error)) => Err(error),
        None if equal => Ok(Outcome::Success),
        None => Ok(Outcome::Mismatch),
    }
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

fn check(folder: &Path, with_dumps: bool) -> Result<Checked> {
    let manifest = Manifest::read(folder)?;
    let (step, altered) = StepVectors::read(folder)?;
    let found = simulate(&step).map_err(|e| e.in_file(folder.join(MANIFEST)))?;
    let simulated = differences(&step, &found).map_err(|e| e.in_file(folder.join(MANIFEST)))?;
    let dumps = match with_dumps {
        true => Some(Dumps::read(folder, &manifest, &step)?),
        false => None,
    };
    let without = |dumps: &Dumps| {
        let outputs = step.vectors.iter().filter(|v| v.role == Role::Expected);
        let missing = outputs.filter(|v| !dumps.has(&v.name));
        missing.map(|v| v.name.clone()).collect()
    };
    Ok(Checked {
        folder: folder.into(),
        missing: dumps.as_ref().map(without).unwrap_or_default(),
        step: manifest.step,
        altered,
        simulated,
        dumps,
    })
}

fn text(checked: &[Checked]) -> String {
    let header = [
        "step",
        "array",
        "against",
        "words",
        "mismatched",
        "unknown",
        "missing",
        "extra",
        "first at",
    ];
    let mut rows = table(&header, 3);
    let mut words = [0, 0];
    for c in checked {
        let simulated = c.simulated.iter().map(|d| (0, "simulation", d));
        let dumps = c.compared().iter().map(|(_, d)| (1, "dump", d));
        for (kind, against, d) in simulated.chain(dumps) {
            words[kind] += d.words;
            rows.add_row([
                c.step.clone(),
                d.name.clone(),
                against.to_owned(),
                d.words.to_string(),
                d.mismatched.to_string(),
                d.unknown.to_string(),
                d.missing.to_string(),
                d.extra.to_string(),
                d.first.map_or("-".into(), |at| at.to_string()),
            ]);
        }
    }
    let faults: String = (checked.iter().flat_map(Checked::faults))
        .map(|fault| fault + "\n")
        .collect();
    let verdict = match checked.iter().all(Checked::equal) {
        true => "every word is equal",
        false => "MISMATCH",
    };
    let [simulated, dumped] = words;
    format!(
        "{}\n{faults}{simulated} words against the simulation, {dumped} words of dumps: {verdict}\n",
        table_text(&rows)
    )
}
