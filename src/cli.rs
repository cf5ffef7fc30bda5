//! Arguments. What each command does with them is in `cmd`.

use crate::device::DeviceArg;
use crate::eval::settings::Shard;
use clap::{Args, Parser, Subcommand, ValueEnum};
use clap_complete::Shell;
use std::num::NonZeroUsize;
use std::path::PathBuf;

/// Bit-accurate simulator of the INT8 datapath of Mamba language models.
///
/// Runs a quantized Mamba model in any precision mode, step by step as the hardware does, and shows
/// what each quantization does to the numbers. Without a model, commands use the sample model that
/// is built in.
#[derive(Debug, Parser)]
#[command(
    name = "scalescope",
    version,
    propagate_version = true,
    after_help = "Examples:
  scalescope report                            every mode against the float model, on the sample model
  scalescope modes                             what each mode quantizes, and where
  scalescope run --mode 2-1 --text \"It was a dark\" --generate 40
  scalescope run --mode 0 --tokens t.npy --trace out.npz --layers 0,6 --points conv_out,ssm_y
  scalescope quantize path/to/mamba-130m-hf -o q.safetensors
  scalescope check --model q.safetensors --golden trace.npz --mode 0
  scalescope eval --data passages.jsonl --samples out.jsonl

Exit codes: 0 done and equal, 1 a mismatch, 2 an argument or input that cannot be used."
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
    /// Prove on data that two modes are one computation, or show where they part and why
    Equiv(EquivArgs),
    /// Follow every scale from its quantizer to its readers, and show what it meets
    Lineage(LineageArgs),
    /// Compare two traces, tensor by tensor, by every metric
    Compare(CompareArgs),
    /// Compare a run with a recorded trace, element by element
    Check(CheckArgs),
    /// Compare a GPU with the CPU, every tensor bit for bit (needs the feature `cuda`)
    Crosscheck(CrosscheckArgs),
    /// Time each step on a GPU (needs the feature `cuda`)
    BenchGpu(BenchGpuArgs),
    /// Compare one operation with vectors, such as a kernel's dump
    CheckOp(CheckOpArgs),
    /// Flip bits of golden data, scales, weights and tables, and see that each flip is noticed
    Selftest(SelftestArgs),
    /// Show what each mode assigns to each tensor
    Modes(ModesArgs),
    /// Show the fault models that --fault takes
    Faults(FaultsArgs),
    /// Say which site of a mode costs how much, or what is wrong with a dump
    Attribute(AttributeArgs),
    /// Say which small changes of a mode help most, measured
    Recommend(RecommendArgs),
    /// Show how wide accumulators, tables and values need to be
    Headroom(HeadroomArgs),
    /// Run a grid of hardware designs; show what each loses and costs
    Sweep(SweepArgs),
    /// Write the vectors of a step for RTL, and a testbench that reads them
    Export(ExportArgs),
    /// Read exported vectors back, simulate them again, and compare dumps of RTL with them
    CheckExport(CheckExportArgs),
    /// Fold, calibrate and quantize a Hugging Face checkpoint
    Quantize(QuantizeArgs),
    /// Measure accuracy and perplexity of modes, with intervals, tests and ties
    Eval(EvalArgs),
    /// Measure speed: tokens per second, where the time goes, share of the machine's peak
    Bench(BenchArgs),
    /// Join the sample files of all shards of an `eval`
    Merge(MergeArgs),
    /// Print a shell completion script
    Completions {
        /// The shell.
        shell: Shell,
    },
}

/// Which model, and how its parts are found.
#[derive(Args, Clone, Debug, Default)]
pub struct ModelArgs {
    /// A quantized .safetensors file or a Hugging Face directory [default: the built-in sample model]
    #[arg(long, value_name = "PATH")]
    pub model: Option<PathBuf>,
    /// A model of random weights in a published shape: 130m, 370m, 790m, 1.4b, 2.8b (or tiny)
    #[arg(long, value_name = "SHAPE", conflicts_with_all = ["model", "float", "scales"])]
    pub synthetic: Option<String>,
    /// Hugging Face directory of the float model, when --model is a quantized file
    #[arg(long, value_name = "DIR")]
    pub float: Option<PathBuf>,
    /// Activation scales (JSON or a quantized file), when --model is a directory
    /// [default: calibrated on text the model itself writes]
    #[arg(long, value_name = "FILE")]
    pub scales: Option<PathBuf>,
    /// tokenizer.json [default: beside the model]
    #[arg(long, value_name = "FILE")]
    pub tokenizer: Option<PathBuf>,
    /// TOML file of further modes (`[mode."2-4d"]`, `base = "2-4"`, fields to override)
    #[arg(long, value_name = "FILE")]
    pub modes_file: Vec<PathBuf>,
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
    /// Text file, or JSON lines with a `text` field (.jsonl)
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
    /// Keep at most this many sequences
    #[arg(long, value_name = "N")]
    pub limit: Option<NonZeroUsize>,
    /// Keep at most this many tokens of each sequence
    #[arg(long, value_name = "N")]
    pub length: Option<NonZeroUsize>,
}

/// Defects to put in.
#[derive(Args, Clone, Debug, Default)]
pub struct FaultArgs {
    /// Put a known defect in, such as stale-scale@layer=3,site=x_proj_input,factor=1.7 (repeatable;
    /// `scalescope faults` lists them)
    #[arg(long, value_name = "NAME@KEY=VALUE,..")]
    pub fault: Vec<String>,
}

/// Arguments of `attribute`.
#[derive(Args, Debug)]
#[command(after_help = "Examples:
  scalescope attribute --mode 2-4 --against 1
  scalescope attribute --mode 0 --file book.txt --length 512 --shapley 8
  scalescope attribute --mode 2-1 --trace dump.npz --json

The first form switches every site (a tensor or weight of a block) to the reference and back. The
second sees the model, the mode and the tensors of the dump, never its metadata. docs/attribution.md")]
pub struct AttributeArgs {
    /// The model.
    #[command(flatten)]
    pub model: ModelArgs,
    /// The text of the first form [default: 2,048 tokens of the built-in passages].
    #[command(flatten)]
    pub input: InputArgs,
    /// The mode (see `scalescope modes`)
    #[arg(long, default_value = "0")]
    pub mode: String,
    /// The mode that sites are switched to
    #[arg(long, default_value = "1", value_name = "MODE")]
    pub against: String,
    /// A dump to diagnose: tokens and any tensors of a prefill, see docs/trace-points.md
    #[arg(long, value_name = "FILE", conflicts_with_all = ["against", "text", "tokens", "file", "shapley", "fault"])]
    pub trace: Option<PathBuf>,
    /// Arithmetic: exact, torch, deployed [default: exact; of a dump the one that it follows best]
    #[arg(long)]
    pub profile: Option<String>,
    /// Defects.
    #[command(flatten)]
    pub faults: FaultArgs,
    /// Sample Shapley values over this many random orders (each as many runs as there are sites)
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(2..))]
    pub shapley: Option<u32>,
    /// Measure losses at every n-th position
    #[arg(long, value_name = "N", default_value = "4")]
    pub stride: NonZeroUsize,
    /// Sites shown in the table
    #[arg(long, value_name = "N", default_value_t = 20)]
    pub top: usize,
    /// Seed of the orders
    #[arg(long, default_value_t = 0)]
    pub seed: u64,
    /// Print JSON instead of tables
    #[arg(long)]
    pub json: bool,
}

/// Arguments of `recommend`.
#[derive(Args, Debug)]
#[command(after_help = "Examples:
  scalescope recommend --mode 2-4
  scalescope recommend --mode 0 --profile deployed --file book.jsonl --length 256 --json

Sequences 0, 2, 4, … choose the changes, the others measure them.")]
pub struct RecommendArgs {
    /// The model.
    #[command(flatten)]
    pub model: ModelArgs,
    /// The text [default: the built-in passages, cut to 128 tokens].
    #[command(flatten)]
    pub input: InputArgs,
    /// The mode (see `scalescope modes`)
    #[arg(long, default_value = "0")]
    pub mode: String,
    /// The mode that losses are measured against
    #[arg(long, default_value = "1", value_name = "MODE")]
    pub against: String,
    /// Arithmetic: exact, torch, deployed
    #[arg(long, default_value = "exact")]
    pub profile: String,
    /// Measure losses at every n-th position
    #[arg(long, value_name = "N", default_value = "2")]
    pub stride: NonZeroUsize,
    /// Print JSON instead of a table
    #[arg(long)]
    pub json: bool,
}

/// Arguments of `faults`.
#[derive(Args, Debug)]
pub struct FaultsArgs {
    /// Print JSON instead of a table
    #[arg(long)]
    pub json: bool,
}

/// Arguments of `report`.
#[derive(Args, Debug)]
#[command(after_help = "Examples:
  scalescope report
  scalescope report --modes 0,2-4 --profile deployed --file book.txt --length 512
  scalescope report --json > report.json
  scalescope report --html report.html --eval results.json")]
pub struct ReportArgs {
    /// The model.
    #[command(flatten)]
    pub model: ModelArgs,
    /// The text.
    #[command(flatten)]
    pub input: InputArgs,
    /// Modes to run: `all`, or names separated by commas
    #[arg(long, default_value = "all", value_name = "MODES")]
    pub modes: String,
    /// Arithmetic: exact, torch, deployed, asic-int8, tflite-single, tflite-double, pow2, or a .toml
    /// file (docs/asic.md)
    #[arg(long, default_value = "exact")]
    pub profile: String,
    /// Defects.
    #[command(flatten)]
    pub faults: FaultArgs,
    /// Write one self-contained page: every mode in depth, in a browser and on paper
    #[arg(long, value_name = "FILE")]
    pub html: Option<PathBuf>,
    /// Results of `scalescope eval --json` to show on the page
    #[arg(long, value_name = "FILE", requires = "html")]
    pub eval: Option<PathBuf>,
    /// Print JSON instead of tables
    #[arg(long)]
    pub json: bool,
}

/// Arguments of `run`.
#[derive(Args, Debug)]
#[command(after_help = "Examples:
  scalescope run --text \"The old captain\"
  scalescope run --mode 2-4 --profile deployed --file book.txt --length 512 --trace out.npz
  scalescope run --model q.safetensors --mode 0 --tokens t.npy --trace out.npz --points conv_out,ssm_y")]
pub struct RunArgs {
    /// The model.
    #[command(flatten)]
    pub model: ModelArgs,
    /// The text.
    #[command(flatten)]
    pub input: InputArgs,
    /// The mode (see `scalescope modes`)
    #[arg(long, default_value = "0")]
    pub mode: String,
    /// Arithmetic: exact, torch, deployed, asic-int8, tflite-single, tflite-double, pow2, or a .toml
    /// file (docs/asic.md)
    #[arg(long, default_value = "exact")]
    pub profile: String,
    /// Defects.
    #[command(flatten)]
    pub faults: FaultArgs,
    /// Where to run: cpu, cuda or cuda:I (needs the feature `cuda`)
    #[arg(long, default_value = "cpu", value_name = "DEVICE")]
    pub device: DeviceArg,
    /// Write the tensors of the run to this .npz
    #[arg(long, value_name = "FILE")]
    pub trace: Option<PathBuf>,
    /// Blocks to trace, separated by commas [default: every one]
    #[arg(long, value_name = "LIST", value_delimiter = ',', requires = "trace")]
    pub layers: Option<Vec<usize>>,
    /// Points to trace, separated by commas [default: every one; see docs/trace-points.md]
    #[arg(long, value_name = "LIST", value_delimiter = ',', requires = "trace")]
    pub points: Option<Vec<String>>,
    /// Continue each sequence by this many tokens, greedily
    #[arg(long, value_name = "N")]
    pub generate: Option<NonZeroUsize>,
    /// Print JSON instead of text
    #[arg(long)]
    pub json: bool,
}

/// Arguments of `propagate`.
#[derive(Args, Debug)]
#[command(after_help = "Examples:
  scalescope propagate --mode 2-4
  scalescope propagate --mode 0 --against 2-1 --profile deployed --file book.txt --length 256
  scalescope propagate --mode 0 --time --metric sqnr_db

Local: the step and the reference's step, both fed the reference's clean tensors. Propagated: with
the mode's own inputs. docs/diagnosis.md defines both.")]
pub struct PropagateArgs {
    /// The model.
    #[command(flatten)]
    pub model: ModelArgs,
    /// The text.
    #[command(flatten)]
    pub input: InputArgs,
    /// The mode (see `scalescope modes`)
    #[arg(long, default_value = "0")]
    pub mode: String,
    /// The mode that is held to be clean
    #[arg(long, default_value = "1", value_name = "MODE")]
    pub against: String,
    /// Arithmetic: exact, torch, deployed
    #[arg(long, default_value = "exact")]
    pub profile: String,
    /// Defects.
    #[command(flatten)]
    pub faults: FaultArgs,
    /// What the tables show (JSON has every metric)
    #[arg(long, default_value = "normalized_l2")]
    pub metric: String,
    /// Also decode token by token and show the error of the recurrent state along time
    #[arg(long)]
    pub time: bool,
    /// Print JSON instead of tables
    #[arg(long)]
    pub json: bool,
}

/// Arguments of `equiv`.
#[derive(Args, Debug)]
#[command(after_help = "Examples:
  scalescope equiv 2-0 0 --profile deployed
  scalescope equiv 2-3 2-1 --profile deployed --file book.txt --length 512
  scalescope equiv 0 0 --profile exact,deployed      one mode in two profiles

Exit code 0 if every tensor that both make and the logits are the same bits, 1 if not.")]
pub struct EquivArgs {
    /// The first mode, A
    #[arg(value_name = "MODE")]
    pub a: String,
    /// The second mode, B
    #[arg(value_name = "MODE")]
    pub b: String,
    /// The model.
    #[command(flatten)]
    pub model: ModelArgs,
    /// The text.
    #[command(flatten)]
    pub input: InputArgs,
    /// Arithmetic: exact, torch, deployed; two separated by a comma give A and B one each
    #[arg(long, default_value = "exact", value_name = "PROFILE")]
    pub profile: String,
    /// Defects of B.
    #[command(flatten)]
    pub faults: FaultArgs,
    /// Decode the last tokens of each sequence one by one
    #[arg(long, default_value_t = 8, value_name = "N")]
    pub decode: usize,
    /// Print JSON instead of text
    #[arg(long)]
    pub json: bool,
}

/// Arguments of `lineage`.
#[derive(Args, Debug)]
#[command(after_help = "Examples:
  scalescope lineage --mode 2-4
  scalescope lineage --mode 3 --profile deployed --file book.txt --layers 0,7
  scalescope lineage --mode 0 --layers 7 --dot | dot -Tsvg > block7.svg

A ratio absmax/(127·scale) outside [0.67, 1.5] is a warning, outside [0.5, 2] an error, and so are
wrapped values. Exit code 1 if a reader has another scale than the quantizer it reads from.")]
pub struct LineageArgs {
    /// The model.
    #[command(flatten)]
    pub model: ModelArgs,
    /// The text.
    #[command(flatten)]
    pub input: InputArgs,
    /// The mode (see `scalescope modes`)
    #[arg(long, default_value = "0")]
    pub mode: String,
    /// Arithmetic: exact, torch, deployed
    #[arg(long, default_value = "exact")]
    pub profile: String,
    /// Defects.
    #[command(flatten)]
    pub faults: FaultArgs,
    /// Blocks to show, separated by commas [default: every one]
    #[arg(long, value_name = "LIST", value_delimiter = ',')]
    pub layers: Option<Vec<usize>>,
    /// Print the graph for Graphviz
    #[arg(long, conflicts_with = "json")]
    pub dot: bool,
    /// Print JSON instead of a table
    #[arg(long)]
    pub json: bool,
}

/// Arguments of `compare`.
#[derive(Args, Debug)]
#[command(after_help = "Examples:
  scalescope compare float.npz int8.npz
  scalescope compare simulated.npz device.npz --atol ssm_y:1e-3 --atol layer_07/conv_out:1
  scalescope compare a.npz b.npz --metrics sqnr_db,cosine,scale_ratio
  scalescope compare a.npz dump.npz --common --csv > differences.csv

Exit code 0 only if everything is equal (within --atol), 1 if not. Traces of other tokens, lengths
or models, tensors that only one trace holds, NaN and infinity are refused with 2.")]
pub struct CompareArgs {
    /// The reference: a trace, see docs/trace-points.md
    #[arg(value_name = "A.npz")]
    pub a: PathBuf,
    /// The trace to compare with it
    #[arg(value_name = "B.npz")]
    pub b: PathBuf,
    /// Forgive differences up to X at a point, in every block or in one (layer_07/ssm_y:0.5);
    /// steps between two tensors of codes
    #[arg(long, value_name = "POINT:X")]
    pub atol: Vec<String>,
    /// Compare the tensors that both hold and list the others, instead of refusing the traces
    #[arg(long)]
    pub common: bool,
    /// Columns of the table, separated by commas [default: every metric]
    #[arg(long, value_name = "LIST", value_delimiter = ',')]
    pub metrics: Option<Vec<String>>,
    /// Print CSV instead of a table, one row a block and point
    #[arg(long, conflicts_with = "json")]
    pub csv: bool,
    /// Print JSON instead of a table
    #[arg(long)]
    pub json: bool,
}

/// Arguments of `check`.
#[derive(Args, Debug)]
#[command(after_help = "Examples:
  scalescope check --golden trace.npz --mode 0
  scalescope check --model q.safetensors --golden trace.npz --mode 2-1 --cumulative --json
  scalescope check --golden trace.npz --mode 0 --atol ssm_y:1e-3 --explain

A local check puts the file's tensors in place of the run's, so that each step is judged by itself;
tensors whose own inputs are not in the file are given, not judged. Exit code 0 only if something
was compared, everything is equal and nothing is missing.")]
pub struct CheckArgs {
    /// The model.
    #[command(flatten)]
    pub model: ModelArgs,
    /// The trace: tokens and any tensors, see docs/trace-points.md
    #[arg(long, value_name = "FILE")]
    pub golden: PathBuf,
    /// The mode (see `scalescope modes`) [default: the file's own, else 0]
    #[arg(long)]
    pub mode: Option<String>,
    /// Arithmetic: a built-in profile or a .toml file [default: the file's own, else deployed]
    #[arg(long)]
    pub profile: Option<String>,
    /// Defects.
    #[command(flatten)]
    pub faults: FaultArgs,
    /// Where to run: cpu, cuda or cuda:I (needs the feature `cuda`)
    #[arg(long, default_value = "cpu", value_name = "DEVICE")]
    pub device: DeviceArg,
    /// Feed each step the file's own inputs (the default)
    #[arg(long, conflicts_with = "cumulative")]
    pub local: bool,
    /// Feed each step what the run made: errors flow on
    #[arg(long)]
    pub cumulative: bool,
    /// Forgive differences up to X at a point, in every block or in one (layer_07/ssm_y:0.5)
    #[arg(long, value_name = "POINT:X")]
    pub atol: Vec<String>,
    /// Say which single change of the rules would explain the mismatches
    #[arg(long, conflicts_with = "fault")]
    pub explain: bool,
    /// Print JSON instead of a table
    #[arg(long)]
    pub json: bool,
}

/// Arguments of `crosscheck`.
#[derive(Args, Debug)]
#[command(after_help = "Examples:
  scalescope crosscheck
  scalescope crosscheck --modes 0,2-1 --profile deployed --length 2500 --decode 64
  scalescope crosscheck --synthetic 130m --profile exact,deployed --layers 0,11,23 --json

Exit code 0 only if every tensor of every run is equal, bit for bit.")]
pub struct CrosscheckArgs {
    /// The model.
    #[command(flatten)]
    pub model: ModelArgs,
    /// Where the tokens come from [default: the sample model's text, or any tokens].
    #[command(flatten)]
    pub source: TextSource,
    /// Modes to run: `all`, or names separated by commas
    #[arg(long, default_value = "all", value_name = "MODES")]
    pub modes: String,
    /// Arithmetics, separated by commas: exact, torch, deployed
    #[arg(long, default_value = "exact,deployed", value_delimiter = ',')]
    pub profile: Vec<String>,
    /// Blocks to compare, separated by commas [default: every one]
    #[arg(long, value_name = "LIST", value_delimiter = ',')]
    pub layers: Option<Vec<usize>>,
    /// Tokens of the prefill [default: 512]
    #[arg(long, value_name = "N")]
    pub length: Option<NonZeroUsize>,
    /// Tokens decoded one by one after it
    #[arg(long, value_name = "N", default_value_t = 0)]
    pub decode: usize,
    /// The GPU: cuda or cuda:I
    #[arg(long, default_value = "cuda", value_name = "DEVICE")]
    pub device: DeviceArg,
    /// Print JSON instead of tables
    #[arg(long)]
    pub json: bool,
}

/// Arguments of `bench-gpu`.
#[derive(Args, Debug)]
#[command(after_help = "Examples:
  scalescope bench-gpu
  scalescope bench-gpu --synthetic 370m --mode 2-1 --profile exact --shapes 4x1024

Times are of the device's own clock, the median block of the median run. docs/cuda.md says what is
counted as bytes and operations.")]
pub struct BenchGpuArgs {
    /// A model of random weights in a published shape
    #[arg(long, value_name = "SHAPE", default_value = "130m")]
    pub synthetic: String,
    /// The mode (see `scalescope modes`)
    #[arg(long, default_value = "0")]
    pub mode: String,
    /// Arithmetic: exact, torch, deployed
    #[arg(long, default_value = "deployed")]
    pub profile: String,
    /// Sequences and their tokens, separated by commas
    #[arg(
        long,
        value_name = "BxL",
        value_delimiter = ',',
        default_value = "1x512,1x2048,8x2048"
    )]
    pub shapes: Vec<String>,
    /// Runs, of which the median counts
    #[arg(long, value_name = "N", default_value = "5")]
    pub repeats: NonZeroUsize,
    /// The GPU: cuda or cuda:I
    #[arg(long, default_value = "cuda", value_name = "DEVICE")]
    pub device: DeviceArg,
    /// Print JSON instead of tables
    #[arg(long)]
    pub json: bool,
}

/// Arguments of `check-op`.
#[derive(Args, Debug)]
#[command(after_help = "Examples:
  scalescope check-op selective_scan vectors.npz
  scalescope check-op linear vectors.npz --arith exact --explain

Operations: conv1d_silu, conv1d_update, selective_scan, selective_scan_update, hadamard_quant,
linear, rmsnorm_quant. Keys of a file: see docs/golden.md.")]
pub struct CheckOpArgs {
    /// The operation
    #[arg(value_name = "NAME")]
    pub op: String,
    /// Vectors, .npz: inputs, scales and outputs of one or more cases
    #[arg(value_name = "FILE")]
    pub vectors: PathBuf,
    /// Arithmetic: exact, torch, cuda-fast
    #[arg(long, default_value = "cuda-fast")]
    pub arith: String,
    /// Say which single change of the rules would explain the mismatches
    #[arg(long)]
    pub explain: bool,
    /// Print JSON instead of a table
    #[arg(long)]
    pub json: bool,
}

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

/// Arguments of `modes`.
#[derive(Args, Debug)]
pub struct ModesArgs {
    /// TOML file of further modes
    #[arg(long, value_name = "FILE")]
    pub modes_file: Vec<PathBuf>,
    /// Print JSON instead of a table
    #[arg(long)]
    pub json: bool,
}

/// Arguments of `quantize`.
#[derive(Args, Debug)]
#[command(after_help = "Examples:
  scalescope quantize mamba-130m-hf -o q.safetensors
  scalescope quantize mamba-130m-hf -o q.safetensors --calibrate pile.jsonl --samples 512 --alpha 0.9995
  scalescope quantize mamba-130m-hf -o q.safetensors --scales scales.json")]
pub struct QuantizeArgs {
    /// Hugging Face directory: config.json, model.safetensors or its sharded index
    #[arg(value_name = "DIR")]
    pub checkpoint: PathBuf,
    /// The quantized model to write
    #[arg(short, long, value_name = "FILE")]
    pub output: PathBuf,
    /// Use these activation scales (JSON or a quantized file) instead of calibrating
    #[arg(long, value_name = "FILE", conflicts_with = "calibrate")]
    pub scales: Option<PathBuf>,
    /// Calibration text: .txt, .jsonl with `text`, or token ids in .npy
    /// [default: text the model itself writes from --seed]
    #[arg(long, value_name = "FILE")]
    pub calibrate: Option<PathBuf>,
    /// tokenizer.json [default: in the directory]
    #[arg(long, value_name = "FILE")]
    pub tokenizer: Option<PathBuf>,
    /// Calibration sequences [default: 128 of a file, 32 self-written]
    #[arg(long, value_name = "N")]
    pub samples: Option<usize>,
    /// Tokens of a calibration sequence [default: 512 of a file, 256 self-written]
    #[arg(long, value_name = "N")]
    pub length: Option<usize>,
    /// Percentile of the percentile observers (x_proj_input, ssm_state)
    #[arg(long, default_value_t = 0.9995)]
    pub alpha: f32,
    /// Seed of the self-written calibration text
    #[arg(long)]
    pub seed: Option<u64>,
}

/// What `eval` asks of a model.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum EvalTask {
    /// The last word of each passage, as lm-eval's lambada_openai
    LastWord,
    /// Every token of each text, in windows
    Perplexity,
}

/// Arguments of `eval`.
#[derive(Args, Debug)]
#[command(after_help = "Examples:
  scalescope eval --data passages.jsonl
  scalescope eval --data passages.jsonl --modes all,original --profile deployed --samples out.jsonl --json out.json
  scalescope eval --data passages.jsonl --samples out.jsonl --resume
  scalescope eval --data books.jsonl --task perplexity --window 512 --stride 256
  scalescope eval --model DIR --data passages.jsonl --samples part3.jsonl --shard 3/16

docs/eval.md defines every number.")]
pub struct EvalArgs {
    /// The model.
    #[command(flatten)]
    pub model: ModelArgs,
    /// JSON lines with a `text`
    #[arg(long, value_name = "FILE")]
    pub data: PathBuf,
    /// What is asked of the model
    #[arg(long, value_enum, default_value = "last-word")]
    pub task: EvalTask,
    /// Modes to run: names separated by commas; `all` is every mode of `scalescope modes`
    #[arg(long, default_value = "all", value_name = "MODES")]
    pub modes: String,
    /// Mode that KL and agreement are measured against, or `none`; left out if the model lacks it
    #[arg(long, default_value = "1", value_name = "MODE")]
    pub reference: String,
    /// Arithmetic: exact, torch, deployed, asic-int8, tflite-single, tflite-double, pow2, or a .toml
    /// file (docs/asic.md)
    #[arg(long, default_value = "exact")]
    pub profile: String,
    /// Defects.
    #[command(flatten)]
    pub faults: FaultArgs,
    /// Where to run: cpu, cuda, cuda:I, or several as cuda:0,cuda:1 (needs the feature `cuda`)
    #[arg(long, default_value = "cpu", value_name = "DEVICE")]
    pub device: DeviceArg,
    /// Use at most this many lines
    #[arg(long, value_name = "N")]
    pub limit: Option<NonZeroUsize>,
    /// last-word: longest input in tokens; the left end of longer ones is cut off
    #[arg(long, value_name = "TOKENS", default_value = "2048")]
    pub max_length: NonZeroUsize,
    /// perplexity: longest input in tokens
    #[arg(long, value_name = "TOKENS", default_value = "512")]
    pub window: NonZeroUsize,
    /// perplexity: tokens each window after the first predicts [default: the window]
    #[arg(long, value_name = "TOKENS")]
    pub stride: Option<NonZeroUsize>,
    /// Keep the outcome of every sample in this file, as it goes
    #[arg(long, value_name = "FILE")]
    pub samples: Option<PathBuf>,
    /// Go on with the file of --samples, which must have the same settings
    #[arg(long, requires = "samples")]
    pub resume: bool,
    /// Score only part i of n, i from 0 (line number mod n = i); `scalescope merge` joins them
    #[arg(long, value_name = "I/N", requires = "samples")]
    pub shard: Option<Shard>,
    /// Seed of the bootstrap
    #[arg(long, default_value_t = 0)]
    pub seed: u64,
    /// Write the report as JSON too; `-` prints it instead of tables
    #[arg(long, value_name = "FILE")]
    pub json: Option<PathBuf>,
}

/// Arguments of `merge`.
#[derive(Args, Debug)]
#[command(after_help = "Examples:
  scalescope merge part*.jsonl --json report.json
  scalescope merge whole.jsonl                 the report of a finished run again")]
pub struct MergeArgs {
    /// Sample files of all shards, in any order
    #[arg(required = true, value_name = "FILE")]
    pub shards: Vec<PathBuf>,
    /// Write the joined sample file
    #[arg(long, value_name = "FILE")]
    pub samples: Option<PathBuf>,
    /// Seed of the bootstrap
    #[arg(long, default_value_t = 0)]
    pub seed: u64,
    /// Write the report as JSON too; `-` prints it instead of tables
    #[arg(long, value_name = "FILE")]
    pub json: Option<PathBuf>,
}

/// Arguments of `bench`.
#[derive(Args, Debug)]
#[command(after_help = "Examples:
  scalescope bench
  scalescope bench --synthetic 370m --modes 0,1 --profile exact,deployed --threads 2
  scalescope bench --length 512,2048,16384 --decode 0 --json
  scalescope bench --batch 1,8,32

tok/s is by wall time; beside it stands processor time, which other work on the machine disturbs
less. docs/performance.md says how to read both.")]
pub struct BenchArgs {
    /// The model [default: random weights of the 130m shape].
    #[command(flatten)]
    pub model: ModelArgs,
    /// Modes to run: `all`, or names separated by commas
    #[arg(long, default_value = "0", value_name = "MODES")]
    pub modes: String,
    /// Arithmetics, separated by commas: exact, torch, deployed
    #[arg(
        long,
        default_value = "exact",
        value_name = "LIST",
        value_delimiter = ','
    )]
    pub profile: Vec<String>,
    /// Tokens of a prefill; more than one length, separated by commas, shows growth
    #[arg(
        long,
        default_value = "512",
        value_name = "LIST",
        value_delimiter = ','
    )]
    pub length: Vec<NonZeroUsize>,
    /// Tokens of a decode, one by one from the empty state; 0 for none
    #[arg(long, default_value_t = 32, value_name = "N")]
    pub decode: usize,
    /// Sequences decoded together, separated by commas
    #[arg(long, default_value = "1", value_name = "LIST", value_delimiter = ',')]
    pub batch: Vec<NonZeroUsize>,
    /// Prefill once more with these points recorded in every block, separated by commas
    #[arg(long, value_name = "LIST", value_delimiter = ',')]
    pub points: Option<Vec<String>>,
    /// Runs of each, after one that does not count
    #[arg(long, default_value = "5", value_name = "N")]
    pub repeat: NonZeroUsize,
    /// Print JSON instead of tables
    #[arg(long)]
    pub json: bool,
}

/// Arguments of `headroom`.
#[derive(Args, Debug)]
#[command(after_help = "Examples:
  scalescope headroom
  scalescope headroom --mode 0 --profile asic-int8 --file book.txt --length 512 --json

Always enough: by interval arithmetic, from the weights and the grids of what they multiply. Enough
here: on this text. Without text, the built-in sample is used.")]
pub struct HeadroomArgs {
    /// The model.
    #[command(flatten)]
    pub model: ModelArgs,
    /// The text.
    #[command(flatten)]
    pub input: InputArgs,
    /// The mode (see `scalescope modes`)
    #[arg(long, default_value = "0")]
    pub mode: String,
    /// Arithmetic: a built-in profile or a .toml file (docs/asic.md)
    #[arg(long, default_value = "asic-int8")]
    pub profile: String,
    /// Print JSON instead of tables
    #[arg(long)]
    pub json: bool,
}

/// Arguments of `sweep`.
#[derive(Args, Debug)]
#[command(after_help = "Examples:
  scalescope sweep --vary requant.multiplier_bits=8..16 --vary scan.state=int8,int16,f16
  scalescope sweep --profile a.toml --vary nonlinearity.exp.entries=32..512*2 -o sweep.jsonl --html sweep.html
  scalescope sweep --profile a.toml --choices

Keys are those of a profile file (docs/asic.md). Values: 8..16, 8..32+8, 64..1024*2, or a list. With -o
a sweep that was stopped goes on where it was.")]
pub struct SweepArgs {
    /// The model.
    #[command(flatten)]
    pub model: ModelArgs,
    /// The text.
    #[command(flatten)]
    pub input: InputArgs,
    /// The mode (see `scalescope modes`)
    #[arg(long, default_value = "0")]
    pub mode: String,
    /// The profile that designs start from: a built-in one or a .toml file
    #[arg(long, default_value = "asic-int8")]
    pub profile: String,
    /// A key and the values it takes; several make a grid
    #[arg(long, value_name = "KEY=VALUES", required_unless_present = "choices", num_args = 1..)]
    pub vary: Vec<String>,
    /// Instead of a grid, the tables of the profile one at a time: what each costs by itself, and what
    /// the others cost without it
    #[arg(long, conflicts_with = "vary")]
    pub choices: bool,
    /// Use at most this many tokens in all
    #[arg(long, value_name = "TOKENS", default_value = "2048")]
    pub budget: NonZeroUsize,
    /// Keep every design in this file, as it is done, and go on with it
    #[arg(short, long, value_name = "FILE")]
    pub output: Option<PathBuf>,
    /// Write a page with plots
    #[arg(long, value_name = "FILE")]
    pub html: Option<PathBuf>,
    /// Print JSON instead of tables
    #[arg(long)]
    pub json: bool,
}

/// Arguments of `export`.
#[derive(Args, Debug)]
#[command(after_help = "Examples:
  scalescope export --layer 3 --step conv --profile asic-int8 -o conv
  scalescope export --layer 3 --step all --mode 0 --profile a.toml --format mem --length 32 -o vectors

Steps: norm, in_proj, conv, x_proj, dt_proj, scan, hadamard, out_proj; `all` makes a folder for each.
The first sequence of the text is taken [default: 16 tokens of the built-in one].")]
pub struct ExportArgs {
    /// The model.
    #[command(flatten)]
    pub model: ModelArgs,
    /// The text.
    #[command(flatten)]
    pub input: InputArgs,
    /// The block
    #[arg(long, default_value = "0", value_name = "L")]
    pub layer: usize,
    /// The step
    #[arg(long, default_value = "all", value_name = "STEP")]
    pub step: String,
    /// The mode (see `scalescope modes`)
    #[arg(long, default_value = "0")]
    pub mode: String,
    /// Arithmetic: a built-in profile or a .toml file (docs/asic.md)
    #[arg(long, default_value = "asic-int8")]
    pub profile: String,
    /// Form of the files: hex, mem, npy, bin
    #[arg(long, default_value = "hex", value_name = "FORMAT")]
    pub format: String,
    /// The folder to write
    #[arg(short, long, value_name = "DIR")]
    pub output: PathBuf,
    /// Print the manifests as JSON instead of a table
    #[arg(long)]
    pub json: bool,
}

/// Arguments of `check-export`.
#[derive(Args, Debug)]
#[command(after_help = "Examples:
  scalescope check-export vectors
  scalescope check-export vectors/conv        with conv/out.dump.hex from a simulator, if it is there

Exit code 0 only if every file is the one the manifest names, the step gives the same bits again, and
every dump is equal.")]
pub struct CheckExportArgs {
    /// Folders of `scalescope export`
    #[arg(required = true, value_name = "DIR")]
    pub folders: Vec<PathBuf>,
    /// Print JSON instead of a table
    #[arg(long)]
    pub json: bool,
}
