//! `scalescope faults`: the fault models that `--fault` takes.

use crate::Outcome;
use crate::output::{print, print_json};
use clap::Args;
use scalescope_sim::error::Result;
use scalescope_sim::fault::{FAULTS, FaultModel};
use std::fmt::Write;

/// Arguments of `faults`.
#[derive(Args, Debug)]
pub struct FaultsArgs {
    /// Print JSON instead of a table
    #[arg(long)]
    pub json: bool,
}

pub fn run(args: &FaultsArgs) -> Result<Outcome> {
    match args.json {
        true => print_json(&FAULTS),
        false => print(&FAULTS.iter().map(text).collect::<Vec<_>>().join("\n")),
    }
    Ok(Outcome::Success)
}

fn text(model: &FaultModel) -> String {
    let mut out = format!("{}\n    {}\n", model.name, model.effect);
    for parameter in model.parameters {
        let default = match parameter.default {
            Some(default) => format!("default {default}"),
            None => "required".to_owned(),
        };
        let _ = writeln!(
            out,
            "      {:<9}{} ({default})",
            parameter.name, parameter.values
        );
    }
    let _ = writeln!(out, "    --fault {}", model.example);
    out
}
