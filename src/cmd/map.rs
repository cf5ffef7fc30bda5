//! `scalescope map`: a mapping file to start from.

use crate::Outcome;
use crate::output::print_as_is;
use clap::Args;
use scalescope_golden::mapping::suggest;
use scalescope_sim::error::Result;
use std::path::PathBuf;

/// Arguments of `map`.
#[derive(Args, Debug)]
#[command(after_help = "Examples:
  scalescope map dumps/ > map.toml
  scalescope attribute --mode 2-4 --dump dumps/ --map map.toml")]
pub struct MapArgs {
    /// A dump: .npz, .npy, .pt, .pth, .safetensors, or a folder of such and of raw .bin files
    #[arg(value_name = "PATH")]
    pub path: PathBuf,
}

pub fn run(args: &MapArgs) -> Result<Outcome> {
    print_as_is(&suggest(&args.path)?);
    Ok(Outcome::Success)
}
