//! The commands, and the arguments that several of them take. Those of one command lie in its file of `cmd`.

use crate::cmd::attribute::AttributeArgs;
use crate::cmd::bench::BenchArgs;
use crate::cmd::check::{CheckArgs, CheckInstead};
use crate::cmd::compare::CompareArgs;
use crate::cmd::equiv::EquivArgs;
use crate::cmd::eval::EvalArgs;
use crate::cmd::export::ExportArgs;
use crate::cmd::faults::FaultsArgs;
use crate::cmd::headroom::HeadroomArgs;
use crate::cmd::identify::IdentifyArgs;
use crate::cmd::info::InfoArgs;
use crate::cmd::lineage::LineageArgs;
use crate::cmd::map::MapArgs;
use crate::cmd::modes::ModesArgs;
use crate::cmd::propagate::PropagateArgs;
use crate::cmd::quantize::QuantizeArgs;
use crate::cmd::recommend::RecommendArgs;
use crate::cmd::report::ReportArgs;
use crate::cmd::run::RunArgs;
use crate::cmd::selftest::SelftestArgs;
use crate::cmd::sweep::SweepArgs;
use crate::kept::Kept;
use clap::{Args, Parser, Subcommand};
use clap_complete::Shell;
use scalescope_sim::checkpoint::recipe::Recipe;
use std::num::NonZeroUsize;
use std::path::PathBuf;
use std::sync::Arc;

/// Bit-accurate simulator of the INT8 datapath of Mamba language models.
///
/// Runs a quantized Mamba model in any precision mode, step by step as the hardware does, and shows
/// what each quantization does to the numbers.
#[derive(Debug, Parser)]
#[command(
    name = "scalescope",
    version,
    propagate_version = true,
    after_help = "Examples:
  scalescope report                    every mode against the float model
  scalescope modes                     what each mode quantizes, and where
  scalescope run --mode 2-1 --text \"It was a dark\" --generate 40
  scalescope run --mode 0 --tokens t.npy --trace out.npz --layers 0,6
  scalescope quantize path/to/mamba-130m-hf -o q.safetensors
  scalescope check --model q.safetensors --golden trace.npz --mode 0
  scalescope attribute --dump dump.npz
  scalescope eval --file passages.jsonl --samples out.jsonl

Exit codes: 0 done and equal, 1 a mismatch, 2 an argument or input that cannot
be used."
)]
pub struct Cli {
    /// Number of threads (results do not depend on it) [default: one per core]
    #[arg(long, global = true, value_name = "N")]
    pub threads: Option<NonZeroUsize>,
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// The commands.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Run every mode against the float model and show where each loses accuracy
    Report(ReportArgs),
    /// Run one mode on text or tokens; write traces, generate
    Run(RunArgs),
    /// Show where error is made and what becomes of it, step by step and along time
    Propagate(PropagateArgs),
    /// Compare two modes bit for bit on a text; show where they first differ, and why
    Equiv(EquivArgs),
    /// Follow every scale from its quantizer to its readers, and show what it meets
    Lineage(LineageArgs),
    /// Compare two traces, tensor by tensor, by every metric
    Compare(CompareArgs),
    /// Print a mapping file to start from for a dump of another program
    Map(MapArgs),
    /// Compare a run with a recorded trace; an operation with vectors (check op), exported vectors and dumps of RTL
    /// (check export), a GPU with the CPU (check gpu)
    Check(Box<CheckArgs>),
    /// Flip bits of golden data, scales, weights and tables; check that each flip is noticed
    Selftest(SelftestArgs),
    /// Show what each mode assigns to each tensor
    Modes(ModesArgs),
    /// Show the fault models that --fault takes
    Faults(FaultsArgs),
    /// Find what is wrong with a dump, or what each tensor and weight of a mode costs
    Attribute(AttributeArgs),
    /// Find a device's arithmetic from its dump: a profile that reproduces it
    Identify(IdentifyArgs),
    /// Measure which small changes of a mode help most
    Recommend(RecommendArgs),
    /// Show how wide accumulators, tables and values need to be
    Headroom(HeadroomArgs),
    /// Run a grid of hardware designs; show what each loses and costs
    Sweep(SweepArgs),
    /// Write the vectors of a step for RTL, and a testbench that reads them
    Export(ExportArgs),
    /// Show what a model's folder or file holds: kind, shapes, scales, what is missing
    Info(InfoArgs),
    /// Fold, calibrate and quantize a float checkpoint
    Quantize(QuantizeArgs),
    /// Measure accuracy and perplexity of modes, with intervals, tests and ties
    Eval(EvalArgs),
    /// Measure speed: tokens per second, where the time goes, share of the machine's peak
    Bench(BenchArgs),
    /// Print a shell completion script
    Completions {
        /// The shell.
        shell: Shell,
    },
}

impl Command {
    /// The arguments by which a command names its model, if it takes one.
    pub fn model_args(&mut self) -> Option<&mut ModelArgs> {
        Some(match self {
            Command::Report(args) => &mut args.model,
            Command::Run(args) => &mut args.model,
            Command::Propagate(args) => &mut args.model,
            Command::Equiv(args) => &mut args.model,
            Command::Lineage(args) => &mut args.model,
            Command::Check(args) => match &mut args.instead {
                None => &mut args.model,
                Some(CheckInstead::Gpu(args)) => &mut args.model,
                Some(CheckInstead::Op(_) | CheckInstead::Export(_)) => return None,
            },
            Command::Attribute(args) => &mut args.model,
            Command::Recommend(args) => &mut args.model,
            Command::Headroom(args) => &mut args.model,
            Command::Sweep(args) => &mut args.model,
            Command::Export(args) => &mut args.model,
            Command::Eval(args) => &mut args.model,
            _ => return None,
        })
    }
}

/// Which model, and how its parts are found.
#[derive(Args, Clone, Debug)]
pub struct ModelArgs {
    /// A folder of transformers, mamba_ssm or Quamba, or a quantized .safetensors file
    /// [default: the built-in sample model]
    #[arg(long, value_name = "PATH")]
    pub model: Option<PathBuf>,
    /// A model of random weights in a published shape: 130m, 370m, 790m, 1.4b, 2.8b (or tiny); 130m-w4a8 has
    /// four-bit weights; 130m-full, 130m-w4a8-full a quantized embedding and head
    #[arg(long, value_name = "SHAPE", conflicts_with_all = ["model", "float", "scales"])]
    pub synthetic: Option<String>,
    /// Folder of the float model (transformers or mamba_ssm), when --model is quantized
    #[arg(long, value_name = "DIR")]
    pub float: Option<PathBuf>,
    /// Activation scales (JSON or a quantized model), when --model is a float model
    /// [default: calibrated on text the model itself writes]
    #[arg(long, value_name = "FILE")]
    pub scales: Option<PathBuf>,
    /// How a float model is folded and quantized: quamba, or golden as the sample model was
    #[arg(long, value_name = "NAME", default_value = "quamba", value_parser = recipe)]
    pub recipe: Recipe,
    /// tokenizer.json [default: beside the model]
    #[arg(long, value_name = "FILE")]
    pub tokenizer: Option<PathBuf>,
    /// TOML file of further modes (`[mode."2-4d"]`, `base = "2-4"`, fields to override)
    #[arg(long, value_name = "FILE")]
    pub modes_file: Vec<PathBuf>,
    /// Instead of all of these, a model that a calling program keeps in memory.
    #[arg(skip)]
    pub kept: Option<Arc<Kept>>,
}

impl Default for ModelArgs {
    fn default() -> Self {
        Self {
            model: None,
            synthetic: None,
            float: None,
            scales: None,
            recipe: Recipe::QUAMBA,
            tokenizer: None,
            modes_file: Vec::new(),
            kept: None,
        }
    }
}

/// A recipe by its name.
pub fn recipe(name: &str) -> Result<Recipe, String> {
    Recipe::named(name).map_err(|e| e.to_string())
}

/// What to run on.
#[derive(Args, Clone, Debug, Default)]
#[group(multiple = false)]
pub struct TextSource {
    /// Text on the command line
    #[arg(long, value_name = "TEXT")]
    pub text: Option<String>,
    /// Token ids, .npy of one or two dimensions
    #[arg(long, value_name = "FILE")]
    pub tokens: Option<PathBuf>,
    /// Text file, or JSON lines with a `text` field
    #[arg(long, value_name = "FILE")]
    pub file: Option<PathBuf>,
}

impl TextSource {
    /// All of it.
    pub fn whole(&self) -> InputArgs {
        InputArgs {
            source: self.clone(),
            ..InputArgs::default()
        }
    }
}

/// How much of it.
#[derive(Args, Clone, Debug, Default)]
pub struct InputArgs {
    /// Where the tokens come from.
    #[command(flatten)]
    pub source: TextSource,
    /// Keep at most this many sequences; a text file is cut into so many of --length tokens
    #[arg(long, value_name = "N")]
    pub limit: Option<NonZeroUsize>,
    /// Keep at most this many tokens of each sequence
    #[arg(long, value_name = "N")]
    pub length: Option<NonZeroUsize>,
}

/// Defects to put in.
#[derive(Args, Clone, Debug, Default)]
pub struct FaultArgs {
    /// Insert a known defect, such as stale-scale@layer=3,site=x_proj_input,factor=1.7 (repeatable;
    /// `scalescope faults` lists them)
    #[arg(long, value_name = "NAME@KEY=VALUE,..")]
    pub fault: Vec<String>,
}
