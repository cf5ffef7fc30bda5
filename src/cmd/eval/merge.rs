//! `scalescope eval --merge`: sample files of all shards of a run, as one run.

use super::{EvalArgs, show};
use crate::Outcome;
use crate::eval::samples::{SampleFile, Samples};
use crate::eval::summary::EvalReport;
use scalescope_sim::error::Result;

pub fn run(args: &EvalArgs) -> Result<Outcome> {
    let shards = args
        .merge
        .iter()
        .map(|path| Ok((path.display().to_string(), Samples::read(path)?)))
        .collect::<Result<Vec<_>>>()?;
    let whole = Samples::merge(shards)?;
    if let Some(path) = &args.samples {
        SampleFile::create(path, &whole.settings)?.append(&whole.records)?;
    }
    let report = EvalReport::new(whole.settings, whole.records, args.seed)?;
    show(&report, args.json.as_deref())?;
    Ok(Outcome::Success)
}
