//! From arguments to models, modes and faults.

use crate::cli::{FaultArgs, ModelArgs};
use crate::interrupt;
use crate::output::{note, progress};
use crate::tokenizer;
use scalescope_sim::calibrate::{CalibrationOptions, calibrate, calibrate_head};
use scalescope_sim::checkpoint::identity::{self, ComparedBy};
use scalescope_sim::checkpoint::load::{Loaded, load_with_notes};
use scalescope_sim::checkpoint::quantize::Ends;
use scalescope_sim::checkpoint::quantize::FourBits;
use scalescope_sim::checkpoint::scales::{self, Origin};
use scalescope_sim::checkpoint::synthetic::{self, Shape};
use scalescope_sim::checkpoint::{fold, hf, quantize};
use scalescope_sim::datapath::Datapath;
use scalescope_sim::error::{Result, SimError};
use scalescope_sim::fault::Fault;
use scalescope_sim::generate::{OwnText, own_text};
use scalescope_sim::mode::{ModeSpec, ModeTable};
use scalescope_sim::model::{ActivationScales, Checkpoint, FloatModel, Model, QuantizedModel};
use scalescope_sim::profile::Profile;
use scalescope_sim::quant::Scale;
use scalescope_sim::sample;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use tokenizers::Tokenizer;

/// A model, its name for headings, and where its tokenizer is.
#[derive(Clone)]
pub struct Subject {
    /// All parts that the arguments gave.
    pub model: Model,
    /// The path, or "sample model".
    pub name: String,
    tokenizer: TokenizerSource,
}

#[derive(Clone)]
enum TokenizerSource {
    BuiltIn,
    File(PathBuf),
    /// The model came without one.
    Missing {
        beside: PathBuf,
    },
}

/// The built-in modes and those of TOML files.
pub fn mode_table(files: &[PathBuf]) -> Result<ModeTable> {
    let mut table = ModeTable::default();
    for file in files {
        table.add_file(file)?;
    }
    Ok(table)
}

/// The modes of a list: names separated by commas, of which `all` means every listed row.
pub fn select_modes(table: &ModeTable, list: &str) -> Result<Vec<ModeSpec>> {
    let mut modes: Vec<ModeSpec> = Vec::new();
    for name in list.split(',').map(str::trim) {
        let named = match name {
            "all" => table.rows(),
            name => std::slice::from_ref(table.get(name)?),
        };
        for mode in named {
            if modes.iter().all(|m| m.name != mode.name) {
                modes.push(mode.clone());
            }
        }
    }
    Ok(modes)
}

/// Of the modes that `list` selected, those that a model has the parts for: `all` leaves out the others, with
/// a note; one that was named stays, and is refused when it runs.
pub fn runnable(modes: Vec<ModeSpec>, list: &str, subject: &Subject) -> Vec<ModeSpec> {
    let named = |mode: &ModeSpec| list.split(',').any(|name| name.trim() == mode.name);
    let stays = |mode: &ModeSpec| named(mode) || subject.has_parts(mode);
    let (modes, left_out): (Vec<_>, Vec<_>) = modes.into_iter().partition(stays);
    for mode in left_out {
        let lacks = subject.lacks(&mode).unwrap_or_default();
        let what = format!("mode {} is left out: it needs {lacks}", mode.name);
        note(&subject.name, what);
    }
    modes
}

/// The same for what a profile's rules need.
pub fn runnable_with(modes: Vec<ModeSpec>, list: &str, profile: &Profile) -> Vec<ModeSpec> {
    let named = |mode: &ModeSpec| list.split(',').any(|name| name.trim() == mode.name);
    let stays = |mode: &ModeSpec| {
        let lacks = profile.lacks(mode).filter(|_| !named(mode));
        if let Some(lacks) = lacks {
            let what = format!("mode {} is left out: it lacks {lacks}", mode.name);
            note(&profile.name, what);
        }
        lacks.is_none()
    };
    modes.into_iter().filter(stays).collect()
}

/// The faults of `--fault`, in their order.
pub fn faults(args: &FaultArgs) -> Result<Vec<Fault>> {
    args.fault.iter().map(|text| text.parse()).collect()
}

/// A mode with faults; modes without INT8 tensors, which others are held against, stay as they are.
pub fn with_faults_unless_float<'m>(
    model: &'m Model,
    mode: &ModeSpec,
    profile: &Profile,
    faults: &[Fault],
) -> Result<Datapath<'m>> {
    match mode.needs_quantized() {
        true => Datapath::with_faults(model, mode, profile, faults),
        false => Datapath::new(model, mode, profile),
    }
}

/// Faults as a heading says them: nothing if there are none.
pub fn faults_text(faults: &[Fault]) -> String {
    faults
        .iter()
        .map(|fault| format!(", fault {fault}"))
        .collect()
}

/// Loads the parts of a model that `modes` need, or takes them from a model in memory.
pub fn load_subject(args: &ModelArgs, modes: &[ModeSpec]) -> Result<Subject> {
    match &args.kept {
        Some(kept) => kept.subject(modes),
        None => load_parts(args, modes),
    }
}

/// [`load_subject`] from files.
pub(crate) fn load_parts(args: &ModelArgs, modes: &[ModeSpec]) -> Result<Subject> {
    if let Some(name) = &args.synthetic {
        return synthetic_subject(name, args, modes);
    }
    let Some(path) = &args.model else {
        for (given, option) in [(&args.float, "--float"), (&args.scales, "--scales")] {
            if given.is_some() {
                return Err(SimError::value(option, "--model beside it", "no --model"));
            }
        }
        return Ok(Subject {
            model: sample::try_model()?,
            name: "sample model".into(),
            tokenizer: match &args.tokenizer {
                Some(file) => TokenizerSource::File(file.clone()),
                None => TokenizerSource::BuiltIn,
            },
        });
    };
    let needs_float = modes.iter().any(|m| m.needs_float() && m.rotated);
    let needs_quantized = modes.iter().any(ModeSpec::needs_quantized);
    let needs_original = modes.iter().any(|m| m.needs_float() && !m.rotated);
    let mut model = Model::default();
    let (loaded, notes) = load_with_notes(path)?;
    for note in notes {
        crate::output::note(format_args!("note: {}", path.display()), note);
    }
    let ignored = match &loaded {
        Loaded::Quantized(_) => ("--scales", &args.scales, "float --model", "a quantized one"),
        Loaded::Float(_) => ("--float", &args.float, "quantized --model", "a float one"),
    };
    if let (option, Some(_), expected, found) = ignored {
        let expected = format!("a {expected} beside it");
        return Err(SimError::value(option, expected, found));
    }
    let checkpoint = match loaded {
        Loaded::Quantized(quantized) => {
            model.quantized = Some(Arc::new(quantized));
            match &args.float {
                Some(dir) if needs_original => Some(hf::read_exact(dir)?),
                Some(dir) if needs_float => Some(Checkpoint::F16(hf::read(dir)?)),
                _ => None,
            }
        }
        Loaded::Float(checkpoint) => Some(checkpoint),
    };
    if let Some(checkpoint) = checkpoint {
        if needs_original {
            model.original = Some(Arc::new(checkpoint.clone()));
        }
        let from = args.float.as_deref().unwrap_or(path);
        if needs_float || needs_quantized {
            tell_rounded(from)?;
        }
        let narrow = checkpoint.into_f16().map_err(|e| e.in_file(from))?;
        let float = Arc::new(fold::fold(narrow, &args.recipe)?);
        if needs_quantized && model.quantized.is_none() {
            let scales = match &args.scales {
                Some(file) => scales_for(file, &float)?,
                None => {
                    self_calibrated(&float, &OwnText::default(), &CalibrationOptions::default())?
                }
            };
            let quantized = quantize::quantize(&float, &scales, &args.recipe, Ends::F16)?;
            model.quantized = Some(Arc::new(quantized));
        }
        model.float = Some(float);
    }
    if let (Some(quantized), Some(float), Some(dir)) = (&model.quantized, &model.float, &args.float)
    {
        let by = identity::check_pair(quantized, float).map_err(|e| e.in_file(dir))?;
        if by == ComparedBy::Embedding {
            let what =
                "remembers no float model; that of --float was compared by its embedding alone";
            note(path.display(), what);
        }
    }
    Ok(Subject {
        model,
        name: path.display().to_string(),
        tokenizer: find_tokenizer(args, path),
    })
}

/// Says how many weights of a checkpoint are rounded where it is read in binary16.
pub fn tell_rounded(dir: &Path) -> Result<()> {
    let rounded = hf::rounded_in_f16(dir)?;
    if rounded.weights > 0 {
        let what = format!(
            "{} of {} weights are rounded to binary16, by {:.1e} at most (mode original keeps them)",
            rounded.weights, rounded.of, rounded.by
        );
        note(dir.display(), what);
    }
    Ok(())
}

/// Activation scales of a file for a folded float model; says so where the file does not tell that they are its.
pub fn scales_for(file: &Path, float: &FloatModel) -> Result<Vec<ActivationScales>> {
    let (layers, origin) = scales::read_for(file, float)?;
    if let Origin::Unknown(digest) = origin {
        let what = format!(
            "names no model, so its scales were not compared with this one (\"model\": \"{digest}\")"
        );
        note(file.display(), what);
    }
    Ok(layers)
}

/// A model of random weights; it is its own float model, rotated by construction. `-w4a8` after the shape's
/// name makes linear weights four-bit, `-full` embedding and head too, or INT8.
fn synthetic_subject(name: &str, args: &ModelArgs, modes: &[ModeSpec]) -> Result<Subject> {
    let shape = name.strip_suffix("-full").unwrap_or(name);
    let full = shape != name;
    let bits = shape.rsplit_once('-').filter(|(_, bits)| *bits == "w4a8");
    let shape = Shape::named(bits.map_or(shape, |(shape, _)| shape))?;
    let mut model = Model::default();
    if bits.is_some() || modes.iter().any(ModeSpec::needs_float) {
        model.float = Some(Arc::new(synthetic::float_model(shape)));
    }
    if modes.iter().any(ModeSpec::needs_quantized) {
        let mut quantized = synthetic::quantized_model(shape);
        if let (Some((_, bits)), Some(float)) = (bits, &model.float) {
            let bits: FourBits = bits.parse().expect("matched above");
            quantize::to_int4(&mut quantized, float, &bits)?;
        }
        if full {
            synthetic::quantize_ends_of(&mut quantized)?;
        }
        model.quantized = Some(Arc::new(quantized));
    }
    if !modes.iter().any(ModeSpec::needs_float) {
        model.float = None;
    }
    Ok(Subject {
        model,
        name: format!("synthetic {name} (random weights)"),
        tokenizer: match &args.tokenizer {
            Some(file) => TokenizerSource::File(file.clone()),
            None => TokenizerSource::Missing {
                beside: PathBuf::from("synthetic model"),
            },
        },
    })
}

fn find_tokenizer(args: &ModelArgs, model: &Path) -> TokenizerSource {
    if let Some(file) = &args.tokenizer {
        return TokenizerSource::File(file.clone());
    }
    let folder = match model.is_dir() {
        true => model,
        false => model.parent().unwrap_or(Path::new(".")),
    };
    let beside = [Some(folder), args.float.as_deref()];
    for folder in beside.into_iter().flatten() {
        let file = folder.join("tokenizer.json");
        if file.is_file() {
            return TokenizerSource::File(file);
        }
    }
    TokenizerSource::Missing {
        beside: model.to_path_buf(),
    }
}

impl Subject {
    /// Whether the model has the parts that a mode runs on.
    pub fn has_parts(&self, mode: &ModeSpec) -> bool {
        self.lacks(mode).is_none()
    }

    /// What a mode runs on and the model lacks.
    fn lacks(&self, mode: &ModeSpec) -> Option<&'static str> {
        let model = &self.model;
        let float = match mode.rotated {
            true => model.float.is_some(),
            false => model.original.is_some(),
        };
        let second = |model: &QuantizedModel| {
            let mut layers = model.layers.iter();
            layers.all(|layer| layer.scales.x_proj_input_max.is_some())
        };
        let quantized = model.quantized.as_deref();
        if mode.needs_float() && !float {
            Some("the float model (--float)")
        } else if mode.needs_quantized() && quantized.is_none() {
            Some("a quantized model")
        } else if mode.needs_second_scale() && !quantized.is_some_and(second) {
            Some("a second calibrated scale, x_proj_input_max (scalescope quantize writes it)")
        } else {
            None
        }
    }

    /// The tokenizer, loaded; its tokens are the model's.
    pub fn tokenizer(&self) -> Result<Tokenizer> {
        match &self.tokenizer {
            TokenizerSource::BuiltIn => tokenizer::built_in(),
            TokenizerSource::File(path) => {
                let tokenizer = tokenizer::read(path)?;
                let vocabulary = self.model.config()?.vocab_size;
                tokenizer::check_fits(&tokenizer, vocabulary).map_err(|e| e.in_file(path))?;
                Ok(tokenizer)
            }
            TokenizerSource::Missing { beside } => Err(SimError::file(
                beside,
                "tokenizer",
                "a tokenizer.json beside the model, or --tokenizer",
                "none",
            )),
        }
    }

    /// The file the tokenizer is read from, unless it is built in or missing.
    pub fn tokenizer_file(&self) -> Option<&Path> {
        match &self.tokenizer {
            TokenizerSource::File(path) => Some(path),
            TokenizerSource::BuiltIn | TokenizerSource::Missing { .. } => None,
        }
    }
}

/// Activation scales from calibration on text the float model itself writes.
fn self_calibrated(
    float: &Arc<FloatModel>,
    own: &OwnText,
    options: &CalibrationOptions,
) -> Result<Vec<ActivationScales>> {
    calibrated(float, &own_samples(float, own)?, options)
}

/// Text that the float model itself writes.
pub fn own_samples(float: &Arc<FloatModel>, own: &OwnText) -> Result<Vec<Vec<u32>>> {
    let model = only_float(float);
    let bar = progress(own.tokens() as u64, "writing calibration text");
    let samples = own_text(&model, own, &|done| {
        bar.set_position(done as u64);
        interrupt::go_on()
    })?;
    bar.finish_and_clear();
    Ok(samples)
}

/// Scale of the head's input from calibration on sequences.
pub fn calibrated_head(
    float: &Arc<FloatModel>,
    samples: &[Vec<u32>],
    options: &CalibrationOptions,
) -> Result<Scale> {
    calibrate_head(&only_float(float), samples, options, &|_| {
        interrupt::go_on()
    })
}

/// Activation scales from calibration on sequences.
pub fn calibrated(
    float: &Arc<FloatModel>,
    samples: &[Vec<u32>],
    options: &CalibrationOptions,
) -> Result<Vec<ActivationScales>> {
    let total = samples.len().min(options.samples);
    let bar = progress(total as u64, "calibrating");
    let scales = calibrate(&only_float(float), samples, options, &|done| {
        bar.set_position(done as u64);
        interrupt::go_on()
    });
    bar.finish_and_clear();
    scales
}

fn only_float(float: &Arc<FloatModel>) -> Model {
    Model {
        float: Some(Arc::clone(float)),
        ..Model::default()
    }
}
