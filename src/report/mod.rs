//! `report --html`: everything known of some modes on one page.
//!
//! | part of the page | module |
//! |---|---|
//! | what is measured for every mode | [`measure`] |
//! | how much of the text it is measured on | [`depth`] |
//! | what it says, with intervals and ties | [`verdict`] |
//! | the page around all parts | [`page`] |
//! | heat maps of local and propagated error | [`heat`] |
//! | distributions over the INT8 grid, scale lineage | [`scales`] |
//! | lines, intervals, histograms as inline SVG | [`chart`] |
//! | what each site costs | [`costs`] |
//! | findings in words | [`remarks`] |
//! | tables of an `eval` run | [`eval`] |

pub mod chart;
pub mod costs;
pub mod depth;
pub mod eval;
pub mod heat;
pub mod measure;
pub mod page;
pub mod remarks;
pub mod scales;
pub mod verdict;

use crate::eval::summary::EvalReport;
use costs::Attribution;
use depth::Depth;
use measure::ModeResult;
use remarks::Remark;
use scalescope_golden::diagnosis::lineage::Lineage;
use scalescope_golden::diagnosis::propagate::{Propagation, TimeError};
use scalescope_sim::datapath::Datapath;
use scalescope_sim::error::Result;
use serde::Serialize;
use verdict::Verdict;

/// What the page shows.
pub struct Report {
    /// The model's name.
    pub model: String,
    /// Its shape in words.
    pub shape: String,
    /// The profile's name and what it is.
    pub profile: (String, String),
    /// The mode the others are held against.
    pub reference: String,
    /// Sequences run.
    pub sequences: usize,
    /// Their tokens.
    pub tokens: usize,
    /// Tokens of the whole text, where it was sampled.
    pub sampled_of: Option<usize>,
    /// What they say.
    pub verdict: Verdict,
    /// The reference in a line.
    pub reference_line: ModeResult,
    /// Every mode in a line.
    pub modes: Vec<ModeResult>,
    /// Every mode but the reference in depth.
    pub details: Vec<ModeDetail>,
    /// Tokens that the details are measured on.
    pub detail_tokens: usize,
    /// An `eval` run beside.
    pub eval: Option<EvalReport>,
}

/// A mode in depth.
#[derive(Clone, Debug, Serialize)]
pub struct ModeDetail {
    /// Its name.
    pub mode: String,
    /// What it does.
    pub summary: String,
    /// An earlier mode in which every number is the same.
    pub same_as: Option<String>,
    /// What the numbers say.
    pub remarks: Vec<Remark>,
    /// Local and propagated error of every step.
    pub propagation: Propagation,
    /// Every scale.
    pub lineage: Lineage,
    /// The state's error along tokens.
    pub time: TimeError,
    /// What each site costs; not measured again where every number is another mode's, nor where
    /// nothing is quantized, nor where it would take too long.
    pub attribution: Option<Attribution>,
    /// Whether it would take too long.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub sites_left_out: bool,
}

/// Examines a mode in depth, its sites if they are asked for; its errors are known. `done` is told how many of how many
/// sites are switched.
pub fn detail<'m>(
    path: &Datapath<'m>,
    reference: &Datapath<'m>,
    depth: &Depth,
    ((propagation, lineage), time): ((Propagation, Lineage), TimeError),
    sites: bool,
    earlier: &[ModeDetail],
    done: &(dyn Fn(usize, usize) + Sync),
) -> Result<ModeDetail> {
    let same = earlier.iter().find(|other| {
        let sites = other.propagation.sites.iter().zip(&propagation.sites);
        other.propagation.sites.len() == propagation.sites.len()
            && other.time.windows == time.windows
            && { sites }.all(|(a, b)| (&a.local, &a.propagated) == (&b.local, &b.propagated))
    });
    let wanted = same.is_none() && path.mode().needs_quantized();
    let attribution = match wanted && sites {
        true => Some(costs::attribution(path, reference, depth, done)?),
        false => None,
    };
    let mut detail = ModeDetail {
        mode: path.mode().name.to_string(),
        summary: path.mode().summary.to_string(),
        same_as: same.map(|other| other.mode.clone()),
        remarks: Vec::new(),
        propagation,
        lineage,
        time,
        attribution,
        sites_left_out: wanted && !sites,
    };
    detail.remarks = remarks::remarks(&detail);
    Ok(detail)
}
