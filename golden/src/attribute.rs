//! Which step or scale is to blame, in findings that tables, JSON and the report share.
//!
//! | what | module |
//! |---|---|
//! | what is wrong with a dump | [`diagnose`] |
//! | what could be wrong | [`candidate`] |
//! | what each site of a mode costs | [`sites`] |
//! | why it costs that | [`causes`] |
//! | what would help | [`recommend`] |
//! | which weights could have four bits | [`bits`] |
//! | losses of runs, paired | [`loss`] |
//! | a block run with a dump's tensors in place, and how far it is off | [`replay`] |

pub mod bits;
pub mod candidate;
pub mod causes;
pub mod diagnose;
mod fit;
pub mod loss;
pub mod recommend;
pub mod replay;
pub mod sites;

use serde::Serialize;
use std::fmt;

/// How much a finding matters.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Severity {
    /// Worth knowing; nothing is wrong.
    Info,
    /// Looks wrong, or costs accuracy; may be meant.
    Warning,
    /// Is wrong: the data do not follow from the model in this mode.
    Error,
}

impl fmt::Display for Severity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Severity::Info => "info",
            Severity::Warning => "warning",
            Severity::Error => "error",
        })
    }
}

/// One probable cause.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Finding {
    /// The name of a fault model (`scalescope faults`), or `none`.
    pub kind: &'static str,
    /// The block; `None` for every block, or for what lies outside of blocks.
    pub layer: Option<usize>,
    /// Where in the block: the key of a scale (`x_proj_input`), or what the fault model calls its
    /// site.
    pub site: String,
    /// How much it matters.
    pub severity: Severity,
    /// Share of what was to be explained (mismatches of a dump, loss of a mode) that this explains,
    /// 0 to 1.
    pub share: f64,
    /// The evidence in words and numbers.
    pub evidence: String,
    /// The fault as `--fault` takes it, where one reproduces the data.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub fault: Option<String>,
}
