//! `scalescope eval`: accuracy and perplexity of modes on a data file.

mod merge;

use crate::Outcome;
use crate::cli::{FaultArgs, ModelArgs};
use crate::device::{DeviceArg, Devices};
use crate::eval::data::Dataset;
use crate::eval::engine::Engine;
use crate::eval::samples::{Record, SampleFile};
use crate::eval::settings::{Origin, Settings, Shard};
use crate::eval::summary::EvalReport;
use crate::eval::task::{Sample, SampleMaker, Task};
use crate::eval::text::text;
use crate::input::{
    Subject, faults, load_subject, mode_table, runnable, runnable_with, select_modes,
};
use crate::interrupt;
use crate::output::{note, print, print_json, progress};
use crate::texts::Texts;
use clap::{Args, ValueEnum};
use scalescope_sim::atomic;
use scalescope_sim::checkpoint::recipe::Recipe;
use scalescope_sim::error::{Result, SimError};
use scalescope_sim::mode::ModeSpec;
use scalescope_sim::profile::Profile;
use scalescope_sim::sample;
use serde_json::Value;
use std::collections::HashSet;
use std::num::NonZeroUsize;
use std::path::{Path, PathBuf};

/// What `eval` asks of a model.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum EvalTask {
    /// The last word of each passage, as lm-eval's lambada_openai
    LastWord,
    /// Every token of each text, in windows
    Perplexity,
}

/// How texts are cut for a perplexity.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Protocol {
    /// Every token of each text, from a start token (lm-eval's rolling log-likelihood)
    LmEval,
    /// All texts joined by blank lines and cut into pieces; a piece's first token is given (Quamba's tables)
    Quamba,
}

/// Arguments of `eval`.
#[derive(Args, Debug)]
#[command(after_help = "Examples:
  scalescope eval --file passages.jsonl
  scalescope eval --file passages.jsonl --modes all,original --profile deployed --samples out.jsonl --json out.json
  scalescope eval --file passages.jsonl --samples out.jsonl --resume
  scalescope eval --file books.jsonl --task perplexity --window 512 --stride 256
  scalescope eval --file wikitext.jsonl --task perplexity --protocol quamba
  scalescope eval --model DIR --file passages.jsonl --samples part3.jsonl --shard 3/16
  scalescope eval --merge part*.jsonl --json report.json

docs/eval.md defines every number.")]
pub struct EvalArgs {
    /// The model.
    #[command(flatten)]
    pub model: ModelArgs,
    /// JSON lines with a `text`, or one text
    #[arg(
        long = "file",
        alias = "data",
        value_name = "FILE",
        required_unless_present = "merge"
    )]
    pub data: Option<PathBuf>,
    /// Score nothing: join the sample files of all shards of a run, in any order, and report on the whole
    /// (of one whole file, its report again); --samples writes the joined file
    #[arg(long, value_name = "FILE", num_args = 1.., conflicts_with_all = SCORING)]
    pub merge: Vec<PathBuf>,
    /// What is asked of the model
    #[arg(long, value_enum, default_value = "last-word")]
    pub task: EvalTask,
    /// Modes to run: names separated by commas; `all` is every mode of `scalescope modes`
    #[arg(long, default_value = "all", value_name = "MODES")]
    pub modes: String,
    /// Mode that KL and agreement are measured against, or `none`; left out if the model lacks it
    #[arg(
        long = "against",
        alias = "reference",
        default_value = "1",
        value_name = "MODE"
    )]
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
    /// Use at most this many rows
    #[arg(long, value_name = "N")]
    pub limit: Option<NonZeroUsize>,
    /// last-word: longest input in tokens; the left end of longer ones is cut off
    #[arg(long, value_name = "TOKENS", default_value = "2048")]
    pub max_length: NonZeroUsize,
    /// perplexity: how texts are cut
    #[arg(long, value_enum, default_value = "lm-eval")]
    pub protocol: Protocol,
    /// perplexity: longest input in tokens [default: 512; protocol quamba: pieces of 2048]
    #[arg(long, value_name = "TOKENS")]
    pub window: Option<NonZeroUsize>,
    /// perplexity: tokens each window after the first predicts [default: the window]
    #[arg(long, value_name = "TOKENS")]
    pub stride: Option<NonZeroUsize>,
    /// Keep the outcome of every sample in this file, as it goes
    #[arg(long, value_name = "FILE")]
    pub samples: Option<PathBuf>,
    /// Go on with the file of --samples, which must have the same settings
    #[arg(long, requires = "samples")]
    pub resume: bool,
    /// Score only part i of n, i from 0 (line number mod n = i); `eval --merge` joins them
    #[arg(long, value_name = "I/N", requires = "samples")]
    pub shard: Option<Shard>,
    /// Seed of the bootstrap
    #[arg(long, default_value_t = 0)]
    pub seed: u64,
    /// Print JSON instead of tables; with a file's name, write it there beside the tables
    #[arg(long, value_name = "FILE", num_args = 0..=1, default_missing_value = "-")]
    pub json: Option<PathBuf>,
}

/// What says how samples are scored: nothing that a file of scored samples could be asked.
const SCORING: [&str; 21] = [
    "model",
    "synthetic",
    "float",
    "scales",
    "recipe",
    "tokenizer",
    "modes_file",
    "data",
    "task",
    "modes",
    "reference",
    "profile",
    "fault",
    "device",
    "limit",
    "max_length",
    "protocol",
    "window",
    "stride",
    "resume",
    "shard",
];

pub fn run(args: &EvalArgs) -> Result<Outcome> {
    match &args.data {
        Some(data) => score(args, data),
        None => merge::run(args),
    }
}

/// Scores a file.
fn score(args: &EvalArgs, path: &Path) -> Result<Outcome> {
    let known = mode_table(&args.model.modes_file)?;
    let modes = select_modes(&known, &args.modes)?;
    let profile = Profile::get(&args.profile)?;
    let reference = match &*args.reference {
        "none" => None,
        name => Some(known.get(name)?.clone()),
    };
    let devices = Devices::open(&args.device)?;
    let needed: Vec<ModeSpec> = modes.iter().chain(&reference).cloned().collect();
    let subject = load_subject(&args.model, &needed)?;
    let reference = reference.filter(|mode| subject.has_parts(mode));
    let modes = runnable(modes, &args.modes, &subject);
    let modes = runnable_with(modes, &args.modes, &profile);
    let faults = faults(&args.faults)?;
    let task = task(args)?;
    let bytes = std::fs::read(path).map_err(|e| SimError::io(path, e))?;
    let data = read_data(args, &subject, task, (path, &bytes))?;

    let settings = Settings {
        version: env!("CARGO_PKG_VERSION").into(),
        model: model_origin(&args.model, &subject)?,
        data: Origin::of_bytes(&crate::eval::settings::last_part(path), &bytes),
        limit: args.limit.map(Into::into),
        lines: data.lines,
        blank_lines: data.blank,
        samples: data.samples.len(),
        bad_lines: data.bad,
        task,
        profile: profile.label(),
        faults: faults.iter().map(ToString::to_string).collect(),
        modes: modes.iter().map(row).collect(),
        reference: reference.as_ref().map(row),
        shard: args.shard.unwrap_or(Shard::WHOLE),
    };
    let (mut file, mut records) = open(args, &settings)?;
    let done: HashSet<(usize, usize)> = records.iter().map(Record::sample).collect();
    let mine: Vec<&Sample> = (data.samples.iter())
        .filter(|sample| settings.shard.has(sample))
        .collect();
    let left: Vec<&Sample> = (mine.iter().copied())
        .filter(|sample| !done.contains(&(sample.id, sample.part)))
        .collect();

    let engine = Engine::new(
        &subject.model,
        &modes,
        reference.as_ref(),
        &profile,
        &faults,
        &devices,
    )?;
    let stop = interrupt::flag()?;
    let bar = progress(mine.len() as u64, "scoring");
    bar.set_position(done.len() as u64);
    let end = engine.run(&left, stop, |new| {
        if let Some(file) = &mut file {
            file.append(&new)?;
        }
        records.extend(new);
        bar.inc(1);
        Ok(())
    });
    bar.finish_and_clear();
    if let (Err(SimError::Interrupted), Some(path)) = (&end, &args.samples) {
        let (kept, all) = (records.len() / modes.len(), mine.len());
        eprintln!(
            "{kept} of {all} samples are in {}; --resume goes on from there",
            path.display()
        );
    }
    end?;
    show(
        &EvalReport::new(settings, records, args.seed)?,
        args.json.as_deref(),
    )?;
    Ok(Outcome::Success)
}

/// Prints a report, and writes it as JSON where asked; `-` prints the JSON instead.
pub fn show(report: &EvalReport, json: Option<&Path>) -> Result<()> {
    match json {
        Some(path) if path == Path::new("-") => print_json(report),
        path => {
            if let Some(path) = path {
                let mut json = serde_json::to_string_pretty(report).expect("plain data");
                json.push('\n');
                atomic::write_text(path, &json)?;
            }
            print(&text(report));
        }
    }
    Ok(())
}

fn row(mode: &ModeSpec) -> Value {
    serde_json::to_value(mode).expect("a mode is plain data")
}

fn task(args: &EvalArgs) -> Result<Task> {
    Ok(match args.task {
        EvalTask::LastWord => Task::LastWord {
            max_length: args.max_length.into(),
        },
        EvalTask::Perplexity if args.protocol == Protocol::Quamba => {
            let length = args.window.map_or(2048, Into::into);
            if length < 2 {
                let expected = "at least 2: the first token of a piece is given";
                return Err(SimError::value("--window", expected, length));
            }
            if let Some(stride) = args.stride {
                let expected = "none with --protocol quamba, whose pieces do not overlap";
                return Err(SimError::value("--stride", expected, stride));
            }
            Task::Chunks { length }
        }
        EvalTask::Perplexity => {
            let window: usize = args.window.map_or(512, Into::into);
            let stride = args.stride.map_or(window, Into::into);
            if stride > window {
                return Err(SimError::value(
                    "--stride",
                    format_args!("at most the window of {window}"),
                    stride,
                ));
            }
            Task::Perplexity { window, stride }
        }
    })
}

fn read_data(
    args: &EvalArgs,
    subject: &Subject,
    task: Task,
    (path, bytes): (&Path, &[u8]),
) -> Result<Dataset> {
    let config = subject.model.config()?;
    let tokenizer = subject.tokenizer()?;
    let start = ["bos_token_id", "eos_token_id"]
        .iter()
        .find_map(|key| config.json[*key].as_u64())
        .and_then(|id| u32::try_from(id).ok())
        // A configuration of mamba_ssm names none; its models use the tokenizer of GPT-NeoX.
        .or_else(|| tokenizer.token_to_id("<|endoftext|>"))
        .filter(|id| (*id as usize) < config.vocab_size);
    let maker = SampleMaker {
        encoder: &tokenizer,
        vocab_size: config.vocab_size,
        start,
        task,
    };
    let mut texts = Texts::parse(path, bytes)?;
    if let Some(limit) = args.limit {
        let (found, asked) = (texts.rows.len(), limit.get());
        if found < asked {
            let fewer = format_args!("{found} rows, fewer than the {asked} asked for");
            note(path.display(), fewer);
        }
        texts.truncate(asked);
    }
    let data = Dataset::new(&texts, &maker);
    texts.tell(path);
    let bad: Vec<(usize, &str)> = data.bad.iter().map(|b| (b.id, &*b.reason)).collect();
    texts.judge(path, &bad)?;
    Ok(data)
}

fn open(args: &EvalArgs, settings: &Settings) -> Result<(Option<SampleFile>, Vec<Record>)> {
    Ok(match &args.samples {
        None => (None, vec![]),
        Some(path) if args.resume => {
            let (file, records) = SampleFile::resume(path, settings)?;
            (Some(file), records)
        }
        Some(path) => (Some(SampleFile::create(path, settings)?), vec![]),
    })
}

/// Hash of every file that makes the model, and of its tokenizer.
fn model_origin(args: &ModelArgs, subject: &Subject) -> Result<Origin> {
    let tokenizer = subject.tokenizer_file().map(Path::to_path_buf);
    let Some(model) = &args.model else {
        let mut content: Vec<u8> = match &args.synthetic {
            Some(name) => name.to_string().into_bytes(),
            None => sample::files().concat(),
        };
        if let Some(path) = tokenizer {
            content.extend(std::fs::read(&path).map_err(|e| SimError::io(&path, e))?);
        }
        return Ok(Origin::of_bytes(&subject.name, &content));
    };
    let mut files = Vec::new();
    for path in [Some(model), args.float.as_ref(), args.scales.as_ref()] {
        files.extend(
            path.map(|p| model_files(p))
                .transpose()?
                .unwrap_or_default(),
        );
    }
    files.extend(tokenizer);
    let origin = Origin::of_files(model, &files)?;
    // The usual recipe goes without saying.
    Ok(match args.recipe {
        Recipe::QUAMBA => origin,
        other => Origin::of_bytes(
            &origin.name,
            format!("{} by {}", origin.sha256, other.name).as_bytes(),
        ),
    })
}

fn model_files(path: &Path) -> Result<Vec<PathBuf>> {
    if !path.is_dir() {
        return Ok(vec![path.to_path_buf()]);
    }
    let mut files: Vec<PathBuf> = std::fs::read_dir(path)
        .and_then(|entries| entries.map(|e| e.map(|e| e.path())).collect())
        .map_err(|e| SimError::io(path, e))?;
    files.retain(|file| {
        file.extension()
            .is_some_and(|e| e == "safetensors" || e == "bin")
            || file.file_name().is_some_and(|n| n == "config.json")
    });
    files.sort();
    Ok(files)
}

#[cfg(test)]
mod tests {
    use super::SCORING;
    use crate::cli::Cli;
    use clap::CommandFactory;

    #[test]
    fn merging_takes_no_option_of_scoring() {
        let program = Cli::command();
        let eval = program.find_subcommand("eval").unwrap();
        let all = eval.get_arguments().map(|arg| arg.get_id().as_str());
        let others = ["merge", "samples", "seed", "json"];
        let scoring: Vec<&str> = all.filter(|id| !others.contains(id)).collect();
        assert_eq!(scoring, SCORING);
    }
}
