//! `scalescope selftest`: would a flipped bit be noticed?

use crate::Outcome;
use crate::output::{print, print_json, table, table_text};
use clap::Args;
use scalescope_golden::selftest::selftest;
use scalescope_sim::error::Result;

/// Arguments of `selftest`.
#[derive(Args, Debug)]
pub struct SelftestArgs {
    /// Seed of the sampled positions
    #[arg(long, default_value_t = 0)]
    pub seed: u64,
    /// Print JSON instead of a table
    #[arg(long)]
    pub json: bool,
}

pub fn run(args: &SelftestArgs) -> Result<Outcome> {
    let report = selftest(args.seed)?;
    if args.json {
        print_json(&report);
    } else {
        let header = ["kind", "flips", "detected", "no effect", "missed"];
        let mut rows = table(&header, 1);
        for kind in &report.kinds {
            let numbers = [kind.flips(), kind.detected, kind.no_effect, kind.missed];
            let numbers = numbers.map(|n| n.to_string());
            rows.add_row([vec![kind.kind.to_owned()], numbers.to_vec()].concat());
        }
        let missed = report.kinds.iter().flat_map(|k| &k.missed_places);
        let list: String = missed.map(|place| format!("missed: {place}\n")).collect();
        let verdict = match report.passed() {
            true => "every flip that changes a result was noticed",
            false => "FLIPS WERE MISSED",
        };
        print(&format!("{}\n{list}{verdict}\n", table_text(&rows)));
    }
    Ok(match report.passed() {
        true => Outcome::Success,
        false => Outcome::Mismatch,
    })
}
