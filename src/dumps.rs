//! Dumps: reading them, by a mapping file too, and telling the mode that they were made in.

use crate::cli::ModelArgs;
use crate::input::{Subject, load_subject};
use crate::output::note;
use scalescope_golden::check::{Recognised, recognise};
use scalescope_golden::mapping;
use scalescope_golden::trace_file::TraceFile;
use scalescope_sim::error::{Result, SimError};
use scalescope_sim::mode::{ModeSpec, ModeTable};
use scalescope_sim::profile::{PROFILES, Profile};
use scalescope_sim::trace::TracePoint;
use std::path::Path;

/// The name by which `--mode` asks for the mode that a dump was made in.
pub const AUTO: &str = "auto";

/// A dump's mode, the model loaded for it, and how the mode was told if it was.
pub struct Dumped {
    /// The model.
    pub subject: Subject,
    /// The mode.
    pub mode: ModeSpec,
    /// What tells it.
    pub recognised: Option<Recognised>,
}

/// A dump's mode by its name; [`AUTO`] tells it from the dump's tensors.
pub fn mode_of_dump(
    args: &ModelArgs,
    known: &ModeTable,
    name: &str,
    profiles: &[Profile],
    (path, trace): (&Path, &TraceFile),
) -> Result<Dumped> {
    let modes = match name {
        AUTO => known.rows(),
        name => std::slice::from_ref(known.get(name)?),
    };
    let subject = load_subject(args, modes)?;
    let recognised = match name {
        AUTO => {
            let found = recognised(&subject, known, profiles, trace, None);
            Some(found.map_err(|e| e.in_file(path))?)
        }
        _ => None,
    };
    let name = recognised.as_ref().map_or(name, |found| &found.mode);
    Ok(Dumped {
        mode: known.get(name)?.clone(),
        subject,
        recognised,
    })
}

/// The mode that a dump follows best, of those that the model has the parts for.
pub fn recognised(
    subject: &Subject,
    known: &ModeTable,
    profiles: &[Profile],
    trace: &TraceFile,
    asked: Option<&ModeSpec>,
) -> Result<Recognised> {
    let mut modes = known.rows().to_vec();
    modes.retain(|mode| subject.has_parts(mode));
    if let Some(asked) = asked.filter(|asked| modes.iter().all(|mode| mode.name != asked.name)) {
        modes.push(asked.clone());
    }
    let asked = asked.map(|mode| &*mode.name);
    recognise(&subject.model, &modes, profiles, trace, asked)
}

/// These profiles, the first one first, and the built-in ones.
pub fn profiles_from(first: &Profile) -> Vec<Profile> {
    let mut all = vec![first.clone()];
    all.extend(PROFILES.iter().filter(|p| p.name != first.name).cloned());
    all
}

/// The trace points of these names.
pub fn trace_points(names: &[String]) -> Result<Vec<TracePoint>> {
    let known = TracePoint::ALL.map(|p| p.name());
    names
        .iter()
        .map(|name| {
            TracePoint::from_name(name).ok_or_else(|| {
                let expected = format!("some of {}", known.join(", "));
                SimError::value("--points", expected, SimError::like(&known, name))
            })
        })
        .collect()
}

/// [`read_trace`] of a dump by a mapping file, where there is one (docs/mapping.md).
pub fn read_mapped(path: &Path, map: Option<&Path>) -> Result<TraceFile> {
    let Some(map) = map else {
        return read_trace(path);
    };
    let trace = mapping::read(path, map)?;
    for remark in &trace.remarks {
        note(path.display(), remark);
    }
    Ok(trace)
}

/// A trace; says on stderr which of its tensors lie in another type than their own.
pub fn read_trace(path: &Path) -> Result<TraceFile> {
    let trace = TraceFile::read(path)?;
    for remark in &trace.remarks {
        note(path.display(), remark);
    }
    Ok(trace)
}

/// What is said of a trace that is equal once its blocks are numbered from 0.
pub const NUMBERED_FROM_1: &str =
    "its blocks are numbered from 1: with layer_01 as layer_00, and so on, all is equal";

/// Says on stderr that a trace's blocks are numbered from 1, if it is `equal` once they are numbered from 0.
pub fn tell_numbered_from_1(path: &Path, trace: &TraceFile, equal: impl Fn(&TraceFile) -> bool) {
    if trace.numbered_from_0().is_some_and(|from_0| equal(&from_0)) {
        note(path.display(), NUMBERED_FROM_1);
    }
}
