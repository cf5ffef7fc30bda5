//! `scalescope merge`: sample files of all shards of a run, as one run.

use crate::Outcome;
use crate::cli::MergeArgs;
use crate::cmd::eval::show;
use crate::eval::samples::{SampleFile, Samples};
use crate::eval::summary::Report;
use scalescope_sim::error::Result;

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
