//! `scalescope quantize`: a float checkpoint to the quantized format, or to a folder as Quamba writes it.

use crate::Outcome;
use crate::cli::recipe;
use crate::input::{calibrated, calibrated_head, own_samples, scales_for, tell_rounded};
use crate::output::{print, print_json};
use crate::sequences::calibration_sequences;
use crate::tokenizer;
use clap::{Args, ValueEnum};
use scalescope_sim::calibrate::CalibrationOptions;
use scalescope_sim::checkpoint::load::{Loaded, load};
use scalescope_sim::checkpoint::quantize::{Ends, FourBits};
use scalescope_sim::checkpoint::recipe::Recipe;
use scalescope_sim::checkpoint::{fold, hf, identity, quamba, quantize, quantized, scales};
use scalescope_sim::error::{Result, SimError};
use scalescope_sim::generate::OwnText;
use scalescope_sim::model::{ActivationScales, FloatModel, Head};
use scalescope_sim::quant::Scale;
use std::path::PathBuf;
use std::sync::Arc;

/// What embedding, final norm and head become.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum EndsArg {
    /// They stay binary16
    F16,
    /// INT8
    Int8,
    /// Embedding and head in four bits, the final norm's output INT8
    Int4,
}

/// What is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Format {
    /// One file, the quantized format of this program
    Safetensors,
    /// A folder as Quamba writes it: config.json and pytorch_model.bin
    Quamba,
}

/// Arguments of `quantize`.
#[derive(Args, Debug)]
#[command(after_help = "Examples:
  scalescope quantize mamba-130m-hf -o q.safetensors
  scalescope quantize mamba-130m-hf -o q.safetensors --calibrate pile.jsonl --limit 512 --alpha 0.9995
  scalescope quantize mamba-130m -o quamba-130m --format quamba --scales scales.json
  scalescope quantize mamba-130m -o q.safetensors --ends int8
  scalescope quantize mamba-130m -o q.safetensors --weights w4a8
  scalescope quantize mamba-130m -o q.safetensors --weights w4a8:out_proj,in_proj@3")]
pub struct QuantizeArgs {
    /// Folder of transformers or mamba_ssm: config.json and its weights
    #[arg(value_name = "DIR")]
    pub checkpoint: PathBuf,
    /// The quantized model to write: a file, or a folder for --format quamba
    #[arg(short, long, value_name = "PATH")]
    pub output: PathBuf,
    /// What to write
    #[arg(long, value_enum, default_value = "safetensors")]
    pub format: Format,
    /// How weights are folded and quantized: quamba, or golden as the sample model was
    #[arg(long, value_name = "NAME", default_value = "quamba", value_parser = recipe)]
    pub recipe: Recipe,
    /// What embedding, final norm and head become
    #[arg(long, value_enum, default_value = "f16")]
    pub ends: EndsArg,
    /// Scale of the final norm's output, for --ends int8 and int4
    /// [default: that of the model of --scales, or calibrated]
    #[arg(long, value_name = "SCALE")]
    pub head_scale: Option<f32>,
    /// Use these activation scales (JSON or a quantized model) instead of calibrating
    #[arg(long, value_name = "FILE", conflicts_with = "calibrate")]
    pub scales: Option<PathBuf>,
    /// Calibration text: JSON lines with `text`, one text (cut into --limit of --length), or token ids
    /// in .npy
    /// [default: text the model itself writes from --seed]
    #[arg(long, value_name = "FILE")]
    pub calibrate: Option<PathBuf>,
    /// tokenizer.json [default: in the directory]
    #[arg(long, value_name = "FILE")]
    pub tokenizer: Option<PathBuf>,
    /// Calibration sequences [default: 128 of a file, 32 self-written]
    #[arg(long, value_name = "N")]
    pub limit: Option<usize>,
    /// Tokens of a calibration sequence [default: 512 of a file, 256 self-written]
    #[arg(long, value_name = "N")]
    pub length: Option<usize>,
    /// Percentile of the percentile observers (x_proj_input, ssm_state)
    #[arg(long, default_value_t = 0.9995)]
    pub alpha: f32,
    /// Bits of in_proj, x_proj and out_proj: w8a8, w4a8, or w4a8:STEP,STEP@BLOCK for some of them
    #[arg(long, default_value = "w8a8", value_name = "BITS")]
    pub weights: FourBits,
    /// Seed of the self-written calibration text
    #[arg(long)]
    pub seed: Option<u64>,
    /// Print JSON instead of a line
    #[arg(long)]
    pub json: bool,
}

pub fn run(args: &QuantizeArgs) -> Result<Outcome> {
    check_output(args)?;
    let float = Arc::new(fold::fold(hf::read(&args.checkpoint)?, &args.recipe)?);
    tell_rounded(&args.checkpoint)?;
    let (scales, ends, origin) = all_scales(args, &float)?;
    let mut model = quantize::quantize(&float, &scales, &args.recipe, ends)?;
    quantize::to_int4(&mut model, &float, &args.weights)
        .map_err(|e| e.in_file(&args.checkpoint))?;
    model.float_digest = Some(identity::digest(&float));
    match args.format {
        Format::Safetensors => quantized::write(&args.output, &model)?,
        Format::Quamba => quamba::write(&args.output, &model)?,
    }
    match args.json {
        true => print_json(&serde_json::json!({
            "output": args.output,
            "blocks": model.layers.len(),
            "recipe": args.recipe.name,
            "activation_scales": origin,
        })),
        false => print(&format!(
            "{}: {} blocks, recipe {}, activation scales {origin}",
            args.output.display(),
            model.layers.len(),
            args.recipe.name,
        )),
    }
    Ok(Outcome::Success)
}

/// Refuses an output folder that does not exist before minutes are spent on calibration.
fn check_output(args: &QuantizeArgs) -> Result<()> {
    let folder = match args.output.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => return Ok(()),
    };
    let metadata = std::fs::metadata(folder).map_err(|e| SimError::io(folder, e))?;
    match metadata.is_dir() {
        true => Ok(()),
        false => Err(SimError::file(
            folder,
            "--output",
            "a folder to write into",
            "a file",
        )),
    }
}

/// Sequences to calibrate on, how, and what to say of them.
struct Samples {
    sequences: Vec<Vec<u32>>,
    options: CalibrationOptions,
    origin: String,
}

fn samples(args: &QuantizeArgs, float: &Arc<FloatModel>) -> Result<Samples> {
    let mut options = CalibrationOptions::default();
    options.set_alpha(args.alpha);
    let Some(file) = &args.calibrate else {
        let usual = OwnText::default();
        let own = OwnText {
            sequences: args.limit.unwrap_or(usual.sequences),
            length: args.length.unwrap_or(usual.length),
            seed: args.seed.unwrap_or(usual.seed),
        };
        (options.samples, options.length) = (own.sequences, own.length);
        return Ok(Samples {
            sequences: own_samples(float, &own)?,
            options,
            origin: format!("{} sequences generated by the model", own.sequences),
        });
    };
    options.samples = args.limit.unwrap_or(options.samples);
    options.length = args.length.unwrap_or(options.length);
    let beside = args.checkpoint.join("tokenizer.json");
    let tokenizer = args.tokenizer.as_deref().unwrap_or(&beside);
    let sequences = calibration_sequences(file, &options, || tokenizer::read(tokenizer))?;
    let used = sequences.iter().take(options.samples);
    let tokens: usize = used.clone().map(|s| s.len().min(options.length)).sum();
    let origin = format!(
        "{} sequences ({tokens} tokens) of {}",
        used.len(),
        file.display()
    );
    Ok(Samples {
        sequences,
        options,
        origin,
    })
}

/// Activation scales, what the ends become, and where the scales come from.
fn all_scales(
    args: &QuantizeArgs,
    float: &Arc<FloatModel>,
) -> Result<(Vec<ActivationScales>, Ends, String)> {
    let in_file = |e: SimError| match &args.calibrate {
        Some(file) => e.in_file(file),
        None => e,
    };
    let mut text = None;
    let (layers, origin) = match &args.scales {
        Some(file) => (scales_for(file, float)?, format!("from {}", file.display())),
        None => {
            let samples = text.insert(samples(args, float)?);
            let scales = calibrated(float, &samples.sequences, &samples.options);
            (
                scales.map_err(in_file)?,
                format!("calibrated on {}", samples.origin),
            )
        }
    };
    if args.ends == EndsArg::F16 {
        return Ok((layers, Ends::F16, origin));
    }
    let head_input = match (args.head_scale, stored_head_scale(args)?) {
        (Some(scale), _) => Scale::new(scale)?,
        (None, Some(scale)) => scale,
        (None, None) => {
            let samples = match text {
                Some(samples) => samples,
                None => samples(args, float)?,
            };
            calibrated_head(float, &samples.sequences, &samples.options).map_err(in_file)?
        }
    };
    let ends = match args.ends {
        EndsArg::F16 => Ends::F16,
        EndsArg::Int8 => Ends::Int8 { head_input },
        EndsArg::Int4 => Ends::Int4 { head_input },
    };
    Ok((layers, ends, origin))
}

/// The scale of the head's input in the model of --scales.
fn stored_head_scale(args: &QuantizeArgs) -> Result<Option<Scale>> {
    let Some(path) = &args.scales else {
        return Ok(None);
    };
    if !scales::is_model(path)? {
        return Ok(None);
    }
    Ok(match load(path)? {
        Loaded::Quantized(model) => match model.head {
            Head::Quantized { input, .. } => Some(input),
            Head::F16(_) => None,
        },
        Loaded::Float(_) => None,
    })
}
