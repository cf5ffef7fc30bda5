//! A probable cause and how much it matters, as tables, JSON and the report share them.

use crate::diagnosis::diagnose::pattern::Pattern;
use serde::Serialize;
use std::fmt;

/// How much a finding matters.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Severity {
    /// Worth knowing; nothing is wrong.
    #[default]
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
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Finding {
    /// The name of a fault model (`scalescope faults`), `scale-misfit`, or `none`.
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
    /// The step that does otherwise.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub step: Option<&'static str>,
    /// What deviates, of a dump.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub pattern: Option<Pattern>,
    /// What the step does otherwise, in words.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub edit: Option<String>,
    /// How many of the elements that deviate in the first tensor this explains.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub explained: Option<Explained>,
    /// Whether it is how a device computes, in every block, and no mistake: `identify` reads its arithmetic.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub device: bool,
    /// Other edits that explain as much: these data do not tell them apart.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub alike: Vec<String>,
}

/// What an edit explains of the first tensor that deviates.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Explained {
    /// Elements that deviate no more.
    pub explained: usize,
    /// Elements that deviate.
    pub deviating: usize,
}
