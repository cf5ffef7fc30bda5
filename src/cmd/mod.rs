//! One file for each command.

pub mod attribute;
pub mod bench;
mod blocks;
pub mod check;
pub mod compare;
pub mod equiv;
pub mod eval;
pub mod export;
pub mod faults;
pub mod headroom;
pub mod identify;
pub mod info;
pub mod lineage;
pub mod map;
pub mod modes;
pub mod propagate;
pub mod quantize;
pub mod recommend;
pub mod report;
pub mod run;
pub mod selftest;
pub mod sweep;

use crate::Outcome;
use crate::cli::Cli;
use clap::CommandFactory;
use scalescope_sim::error::Result;

/// Prints a completion script.
pub fn completions(shell: clap_complete::Shell) -> Result<Outcome> {
    let mut script = Vec::new();
    clap_complete::generate(shell, &mut Cli::command(), "scalescope", &mut script);
    crate::output::print_as_is(&String::from_utf8_lossy(&script));
    Ok(Outcome::Success)
}
