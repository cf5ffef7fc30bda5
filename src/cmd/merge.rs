//! `scalescope merge`: sample files of all shards of a run, as one run.

use crate::Outcome;
use crate::cmd::eval::show;
use crate::eval::samples::{SampleFile, Samples};
use crate::eval::summary::Report;
use clap::Args;
use scalescope_sim::error::Result;
use std::path::PathBuf;

/// Arguments of `merge`.
#[derive(Args, Debug)]
#[command(after_help = "Examples:
  scalescope merge part*.jsonl --json report.json
  scalescope merge whole.jsonl                 the report of a finished run again")]
pub struct MergeArgs {
    /// Sample files of all shards, in any order
    #[arg(required = true, value_name = "FILE")]
    pub shards: Vec<PathBuf>,
    /// Write the joined sample file
    #[arg(long, value_name = "FILE")]
    pub samples: Option<PathBuf>,
    /// Seed of the bootstrap
    #[arg(long, default_value_t = 0)]
    pub seed: u64,
    /// Print JSON instead of tables; with a file's name, write it there beside the tables
    #[arg(long, value_name = "FILE", num_args = 0..=1, default_missing_value = "-")]
    pub json: Option<PathBuf>,
}

pub fn run(args: &MergeArgs) -> Result<Outcome> {
    let shards = args
        .shards
        .iter()
        .map(|path| Ok((path.display().to_string(), Samples::read(path)?)))
        .collect::<Result<Vec<_>>>()?;
    let whole = Samples::merge(shards)?;
    if let Some(path) = &args.samples {
        SampleFile::create(path, &whole.settings)?.append(&whole.records)?;
    }
    let report = Report::new(whole.settings, whole.records, args.seed)?;
    show(&report, args.json.as_deref())?;
    Ok(Outcome::Success)
}
