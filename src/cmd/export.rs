//! `scalescope export`: the vectors of a step for RTL, and a testbench that reads them.

use crate::Outcome;
use crate::cli::{InputArgs, ModelArgs};
use crate::input::{load_subject, mode_table};
use crate::output::{counted, note, print, print_json, table, table_text};
use clap::Args;
use scalescope_golden::rtl::export::export;
use scalescope_golden::rtl::manifest::Manifest;
use scalescope_golden::rtl::simulate::STEPS;
use scalescope_golden::rtl::testbench::{file_name, testbench};
use scalescope_golden::rtl::words::Format;
use scalescope_golden::trace_file::model_digest;
use scalescope_sim::datapath::Datapath;
use scalescope_sim::error::{Result, SimError};
use scalescope_sim::profile::Profile;
use std::path::{Path, PathBuf};

/// Arguments of `export`.
#[derive(Args, Debug)]
#[command(after_help = "Examples:
  scalescope export --layer 3 --step conv --profile asic-int8 -o conv
  scalescope export --layer 3 --step all --mode 0 --profile a.toml --format mem --length 32 -o vectors

Steps: norm, in_proj, conv, x_proj, dt_proj, scan, hadamard, out_proj; `all` makes a folder for each.
The first sequence of the text is taken [default: 16 tokens of the built-in one].")]
pub struct ExportArgs {
    /// The model.
    #[command(flatten)]
    pub model: ModelArgs,
    /// The text.
    #[command(flatten)]
    pub input: InputArgs,
    /// The block
    #[arg(long, alias = "layers", default_value = "0", value_name = "L")]
    pub layer: usize,
    /// The step
    #[arg(long, default_value = "all", value_name = "STEP")]
    pub step: String,
    /// The mode (see `scalescope modes`)
    #[arg(long, default_value = "0")]
    pub mode: String,
    /// Arithmetic: a built-in profile or a .toml file (docs/asic.md)
    #[arg(long, default_value = "asic-int8")]
    pub profile: String,
    /// Form of the files: hex, mem, npy, bin
    #[arg(long, default_value = "hex", value_name = "FORMAT")]
    pub format: String,
    /// The folder to write
    #[arg(short, long, value_name = "DIR")]
    pub output: PathBuf,
    /// Print the manifests as JSON instead of a table
    #[arg(long)]
    pub json: bool,
}

/// Removes the files of an earlier export, of one step or of all.
fn clear(folder: &Path) -> Result<()> {
    let mut removed = Manifest::clear(folder)?;
    for step in STEPS {
        removed += Manifest::clear(&folder.join(step))?;
    }
    if removed > 0 {
        let what = format!("{} of an earlier export removed", counted(removed, "file"));
        note(folder.display(), what);
    }
    Ok(())
}

pub fn run(args: &ExportArgs) -> Result<Outcome> {
    let known = mode_table(&args.model.modes_file)?;
    let mode = known.get(&args.mode)?.clone();
    let profile = Profile::get(&args.profile)?;
    let format = Format::from_name(&args.format)
        .ok_or_else(|| SimError::value("--format", "hex, mem, npy or bin", &args.format))?;
    let steps: Vec<&str> = match args.step.as_str() {
        "all" => STEPS.to_vec(),
        step => vec![step],
    };
    let subject = load_subject(&args.model, std::slice::from_ref(&mode))?;
    let tokens = subject.sequences_for("export", &args.input)?.swap_remove(0);
    let path = Datapath::new(&subject.model, &mode, &profile)?;
    let digest = model_digest(&subject.model);
    let mut written: Vec<(PathBuf, Manifest)> = Vec::new();
    for (i, step) in steps.iter().enumerate() {
        let vectors = export(&path, &tokens, args.layer, step, digest.clone())?;
        if i == 0 {
            clear(&args.output)?;
        }
        let folder = match steps.len() {
            1 => args.output.clone(),
            _ => args.output.join(step),
        };
        let manifest = vectors.write(&folder, format)?;
        if matches!(format, Format::Hex | Format::Mem) {
            let file = folder.join(file_name(&manifest));
            std::fs::write(&file, testbench(&manifest, &vectors)?)
                .map_err(|e| SimError::io(&file, e))?;
        }
        written.push((folder, manifest));
    }
    if args.json {
        let manifests: Vec<&Manifest> = written.iter().map(|(_, manifest)| manifest).collect();
        print_json(&manifests);
        return Ok(Outcome::Success);
    }
    let mut rows = table(&["step", "array", "role", "type", "shape", "words"], 5);
    for (_, manifest) in &written {
        for a in &manifest.arrays {
            rows.add_row([
                manifest.step.clone(),
                a.name.clone(),
                format!("{:?}", a.role).to_lowercase(),
                a.dtype.clone(),
                format!("{:?}", a.shape),
                a.depth.to_string(),
            ]);
        }
    }
    let folders: Vec<String> = written
        .iter()
        .map(|(folder, _)| folder.display().to_string())
        .collect();
    print(&format!(
        "{}, block {}, mode {}, profile {} ({})\n\n{}\nwritten to {}\n",
        subject.name,
        args.layer,
        mode.name,
        profile.name,
        &profile.hash()[..12],
        table_text(&rows),
        folders.join(", ")
    ));
    Ok(Outcome::Success)
}
