//! From arguments to models, modes and tokens.

use crate::cli::{FaultArgs, InputArgs, ModelArgs, TextSource};
use crate::interrupt;
use crate::output::progress;
use ndarray::Array2;
use scalescope_golden::npz::read_npy;
use scalescope_sim::calibrate::{CalibrationOptions, calibrate, calibrate_head};
use scalescope_sim::checkpoint::load::{Loaded, load_with_notes};
use scalescope_sim::checkpoint::quantize::Ends;
use scalescope_sim::checkpoint::quantize::FourBits;
use scalescope_sim::checkpoint::synthetic::{self, Shape};
use scalescope_sim::checkpoint::{fold, hf, quantize, scales};
use scalescope_sim::datapath::{Datapath, check_tokens};
use scalescope_sim::error::{Result, SimError};
use scalescope_sim::fault::Fault;
use scalescope_sim::generate::{OwnText, own_text};
use scalescope_sim::mode::{ModeSpec, ModeTable};
use scalescope_sim::model::{ActivationScales, Checkpoint, FloatModel, Model};
use scalescope_sim::profile::Profile;
use scalescope_sim::quant::Scale;
use scalescope_sim::sample;
use scalescope_sim::trace::TracePoint;
use std::cell::Cell;
use std::fs;
use std::panic::{self, AssertUnwindSafe};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Once};
use tokenizers::Tokenizer;

/// A model, its name for headings, and where its tokenizer is.
pub struct Subject {
    /// All parts that the arguments gave.
    pub model: Model,
    /// The path, or "sample model".
    pub name: String,
    tokenizer: TokenizerSource,
}

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

/// Loads the parts of a model that `modes` need.
pub fn load_subject(args: &ModelArgs, modes: &[ModeSpec]) -> Result<Subject> {
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
        eprintln!("note: {}: {note}", path.display());
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
        let narrow = checkpoint.into_f16().map_err(|e| e.in_file(from))?;
        let float = Arc::new(fold::fold(narrow, &args.recipe)?);
        if needs_quantized && model.quantized.is_none() {
            let scales = match &args.scales {
                Some(file) => scales::read(file)?,
                None => {
                    self_calibrated(&float, &OwnText::default(), &CalibrationOptions::default())?
                }
            };
            let quantized = quantize::quantize(&float, &scales, &args.recipe, Ends::F16)?;
            model.quantized = Some(Arc::new(quantized));
        }
        model.float = Some(float);
    }
    if let (Some(quantized), Some(float)) = (&model.quantized, &model.float)
        && !quantized.config.same_shape(&float.config)
    {
        return Err(SimError::file(
            path,
            "configuration",
            "the float model's",
            "another shape",
        ));
    }
    Ok(Subject {
        model,
        name: path.display().to_string(),
        tokenizer: find_tokenizer(args, path),
    })
}

/// A model of random weights; it is its own float model, rotated by construction. Of four bits where the
/// name ends so.
fn synthetic_subject(name: &str, args: &ModelArgs, modes: &[ModeSpec]) -> Result<Subject> {
    let bits = name.rsplit_once('-').filter(|(_, bits)| *bits == "w4a8");
    let shape = Shape::named(bits.map_or(name, |(shape, _)| shape))?;
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
    /// The tokenizer, loaded.
    pub fn tokenizer(&self) -> Result<Tokenizer> {
        match &self.tokenizer {
            TokenizerSource::BuiltIn => Tokenizer::from_bytes(sample::tokenizer_json())
                .map_err(|e| SimError::value("built-in tokenizer", "a tokenizer", one_line(&e))),
            TokenizerSource::File(path) => read_tokenizer(path),
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

    /// The sequences an input names, or the first `length` tokens of each passage of the built-in
    /// text.
    pub fn sequences_or_sample(&self, input: &InputArgs, length: usize) -> Result<Vec<Vec<u32>>> {
        if let Some(sequences) = self.sequences(input)? {
            return Ok(sequences);
        }
        let mut sequences = encode(&self.tokenizer()?, &sample::texts())?;
        if let Some(limit) = input.limit {
            sequences.truncate(limit.get());
        }
        let length = input.length.map_or(length, |asked| asked.get());
        for sequence in &mut sequences {
            sequence.truncate(length);
        }
        Ok(sequences)
    }

    /// The sequences an input names: text through the tokenizer, or ids as they are. `None` if the
    /// input names nothing.
    pub fn sequences(&self, input: &InputArgs) -> Result<Option<Vec<Vec<u32>>>> {
        let vocab = self.model.config()?.vocab_size;
        let Some((mut sequences, origin)) = read_source(&input.source, || self.tokenizer())? else {
            return Ok(None);
        };
        if let Some(limit) = input.limit {
            sequences.truncate(limit.get());
        }
        if sequences.is_empty() {
            return Err(SimError::value(origin, "at least one sequence", "none"));
        }
        for (i, sequence) in sequences.iter_mut().enumerate() {
            if let Some(length) = input.length {
                sequence.truncate(length.get());
            }
            check_tokens(sequence, vocab).map_err(|e| match e {
                SimError::Value {
                    item,
                    expected,
                    found,
                } => SimError::value(
                    format_args!("{origin}: sequence {i}: {item}"),
                    expected,
                    found,
                ),
                other => other,
            })?;
        }
        Ok(Some(sequences))
    }
}

type Sequences = (Vec<Vec<u32>>, String);

fn read_source(
    source: &TextSource,
    tokenizer: impl Fn() -> Result<Tokenizer>,
) -> Result<Option<Sequences>> {
    if let Some(text) = &source.text {
        return Ok(Some((encode(&tokenizer()?, &[text])?, "--text".into())));
    }
    if let Some(path) = &source.tokens {
        return Ok(Some((read_token_file(path)?, path.display().to_string())));
    }
    if let Some(path) = &source.file {
        let texts = read_texts(path)?;
        return Ok(Some((
            encode(&tokenizer()?, &texts)?,
            path.display().to_string(),
        )));
    }
    Ok(None)
}

/// Sequences of a calibration file: `.npy` token ids, JSON lines, or text.
pub fn calibration_sequences(
    path: &Path,
    tokenizer: impl Fn() -> Result<Tokenizer>,
) -> Result<Vec<Vec<u32>>> {
    if path.extension().is_some_and(|e| e == "npy") {
        return read_token_file(path);
    }
    encode(&tokenizer()?, &read_texts(path)?)
}

/// A tokenizer.json.
///
/// The `tokenizers` crate panics on some inconsistent files; such a panic is an error of the file too.
pub fn read_tokenizer(path: &Path) -> Result<Tokenizer> {
    let bytes = fs::read(path).map_err(|e| SimError::io(path, e))?;
    let bad =
        |found: String| SimError::file(path, "tokenizer", "a Hugging Face tokenizer.json", found);
    match quietly(|| Tokenizer::from_bytes(bytes)) {
        Some(read) => read.map_err(|e| bad(one_line(&e))),
        None => Err(bad("one whose parts do not fit together".into())),
    }
}

/// Runs foreign code that may panic; `None` if it did. The panic prints nothing.
fn quietly<T>(work: impl FnOnce() -> T) -> Option<T> {
    thread_local! { static QUIET: Cell<bool> = const { Cell::new(false) } }
    static HOOK: Once = Once::new();
    HOOK.call_once(|| {
        let before = panic::take_hook();
        panic::set_hook(Box::new(move |info| {
            if !QUIET.get() {
                before(info);
            }
        }));
    });
    QUIET.set(true);
    let done = panic::catch_unwind(AssertUnwindSafe(work));
    QUIET.set(false);
    done.ok()
}

/// Texts to ids, no special tokens added.
pub fn encode(tokenizer: &Tokenizer, texts: &[impl AsRef<str>]) -> Result<Vec<Vec<u32>>> {
    texts
        .iter()
        .map(|text| {
            let encoding = tokenizer.encode(text.as_ref(), false).map_err(|e| {
                SimError::value("text", "text the tokenizer can encode", one_line(&e))
            })?;
            Ok(encoding.get_ids().to_vec())
        })
        .collect()
}

/// A text file as one text, or the `text` fields of JSON lines.
pub fn read_texts(path: &Path) -> Result<Vec<String>> {
    let text = fs::read_to_string(path).map_err(|e| SimError::io(path, e))?;
    if path.extension().is_none_or(|e| e != "jsonl") {
        return Ok(vec![text]);
    }
    #[derive(serde::Deserialize)]
    struct Line {
        text: String,
    }
    text.lines()
        .enumerate()
        .filter(|(_, line)| !line.trim().is_empty())
        .map(|(i, line)| {
            serde_json::from_str::<Line>(line)
                .map(|line| line.text)
                .map_err(|e| {
                    SimError::file(
                        path,
                        format_args!("line {}", i + 1),
                        "a JSON object with a string `text`",
                        e,
                    )
                })
        })
        .collect()
}

/// Token ids of an `.npy` of one dimension (a sequence) or two (`[B, L]`), any integer type.
pub fn read_token_file(path: &Path) -> Result<Vec<Vec<u32>>> {
    let array = read_npy(path)?;
    let bad = |found: String| {
        SimError::file(
            path,
            "array",
            "token ids, integers of shape [L] or [B, L]",
            found,
        )
    };
    let ids = array.to_i64().ok_or_else(|| bad(array.describe()))?;
    let width = match ids.shape() {
        [l] | [_, l] => *l,
        _ => return Err(bad(array.describe())),
    };
    let ids: Vec<u32> = (ids.iter().enumerate())
        .map(|(i, id)| {
            u32::try_from(*id)
                .map_err(|_| SimError::file(path, format_args!("element {i}"), "a token id", id))
        })
        .collect::<Result<_>>()?;
    match width {
        0 => Err(bad(array.describe())),
        _ => Ok(ids.chunks_exact(width).map(<[u32]>::to_vec).collect()),
    }
}

/// The array `[B, L]` of sequences of one length; `None` if lengths differ.
pub fn rectangular(sequences: &[Vec<u32>]) -> Option<Array2<u32>> {
    let length = sequences.first()?.len();
    if sequences.iter().any(|s| s.len() != length) {
        return None;
    }
    let flat = sequences.iter().flatten().copied().collect();
    Array2::from_shape_vec((sequences.len(), length), flat).ok()
}

fn one_line(error: &tokenizers::Error) -> String {
    error.to_string().replace('\n', " ")
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

/// The trace points of these names.
pub fn trace_points(names: &[String]) -> Result<Vec<TracePoint>> {
    let known = || TracePoint::ALL.map(|p| p.name()).join(", ");
    names
        .iter()
        .map(|name| {
            TracePoint::from_name(name).ok_or_else(|| {
                SimError::value("--points", format_args!("some of {}", known()), name)
            })
        })
        .collect()
}
