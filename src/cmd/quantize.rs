//! `scalescope quantize`: a float checkpoint to the quantized format.

use crate::Outcome;
use crate::input::{calibrated, calibration_sequences, self_calibrated};
use crate::output::print;
use crate::tokenizer;
use clap::Args;
use scalescope_sim::calibrate::CalibrationOptions;
use scalescope_sim::checkpoint::{fold, hf, identity, quantize, quantized, scales};
use scalescope_sim::error::{Result, SimError};
use scalescope_sim::generate::OwnText;
use scalescope_sim::model::ActivationScales;
use std::path::PathBuf;
use std::sync::Arc;

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
    /// Calibration text: JSON lines with `text`, one text (cut into --samples of --length), or token ids
    /// in .npy
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

pub fn run(args: &QuantizeArgs) -> Result<Outcome> {
    check_output(args)?;
    let float = Arc::new(fold::fold(hf::read(&args.checkpoint)?)?);
    let (scales, origin) = activation_scales(args, &float)?;
    let mut model = quantize::quantize(&float, &scales)?;
    model.float_digest = Some(identity::digest(&float));
    quantized::write(&args.output, &model)?;
    print(&format!(
        "{}: {} blocks, activation scales {origin}",
        args.output.display(),
        model.layers.len(),
    ));
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

fn activation_scales(
    args: &QuantizeArgs,
    float: &Arc<scalescope_sim::model::FloatModel>,
) -> Result<(Vec<ActivationScales>, String)> {
    if let Some(file) = &args.scales {
        return Ok((scales::read(file)?, format!("from {}", file.display())));
    }
    let mut options = CalibrationOptions::default();
    options.set_alpha(args.alpha);
    let Some(file) = &args.calibrate else {
        let usual = OwnText::default();
        let own = OwnText {
            sequences: args.samples.unwrap_or(usual.sequences),
            length: args.length.unwrap_or(usual.length),
            seed: args.seed.unwrap_or(usual.seed),
        };
        (options.samples, options.length) = (own.sequences, own.length);
        let scales = self_calibrated(float, &own, &options)?;
        let origin = format!(
            "calibrated on {} sequences that the model wrote",
            own.sequences
        );
        return Ok((scales, origin));
    };
    options.samples = args.samples.unwrap_or(options.samples);
    options.length = args.length.unwrap_or(options.length);
    let beside = args.checkpoint.join("tokenizer.json");
    let tokenizer = args.tokenizer.as_deref().unwrap_or(&beside);
    let samples = calibration_sequences(file, &options, || tokenizer::read(tokenizer))?;
    let scales = calibrated(float, &samples, &options).map_err(|e| e.in_file(file))?;
    let used = samples.iter().take(options.samples);
    let tokens: usize = used.clone().map(|s| s.len().min(options.length)).sum();
    Ok((
        scales,
        format!(
            "calibrated on {} sequences ({tokens} tokens) of {}",
            used.len(),
            file.display()
        ),
    ))
}
