//! A model that stays in memory between commands, for programs that call several.

use crate::cli::ModelArgs;
use crate::input::{Subject, load_parts, mode_table};
use scalescope_sim::error::Result;
use scalescope_sim::mode::{ModeSpec, ModeTable};
use std::sync::{Arc, Mutex, OnceLock};
use tokenizers::Tokenizer;

/// The arguments of a model and what of it was loaded so far. A part that a mode needs is loaded when the first
/// such mode runs; commands see the parts that they would have loaded themselves.
#[derive(Debug)]
pub struct Kept {
    args: ModelArgs,
    loaded: Mutex<Loaded>,
    /// Read when it is first asked for: a vocabulary takes longer to read than a text to be cut into tokens.
    tokenizer: OnceLock<Tokenizer>,
}

struct Loaded {
    /// The modes whose parts are there.
    modes: Vec<ModeSpec>,
    subject: Subject,
    /// What comes with the files whatever the mode: quantized, float and original part.
    always: [bool; 3],
}

impl std::fmt::Debug for Loaded {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.subject.name)
    }
}

impl Kept {
    /// Opens a model: its files are read and checked, nothing is calibrated or quantized yet.
    ///
    /// # Errors
    ///
    /// Those of the commands for the same arguments.
    pub fn open(args: ModelArgs) -> Result<Arc<Self>> {
        // A model of random weights is nothing but what modes need.
        let modes = match args.synthetic {
            Some(_) => vec![ModeTable::default().get("0")?.clone()],
            None => vec![],
        };
        let subject = load_parts(&args, &modes)?;
        let always = match args.synthetic {
            Some(_) => [false; 3],
            None => parts(&subject),
        };
        let loaded = Mutex::new(Loaded {
            modes,
            subject,
            always,
        });
        let tokenizer = OnceLock::new();
        Ok(Arc::new(Self {
            args,
            loaded,
            tokenizer,
        }))
    }

    /// The arguments it was opened with.
    pub fn args(&self) -> &ModelArgs {
        &self.args
    }

    /// The model's tokenizer.
    ///
    /// # Errors
    ///
    /// No tokenizer, or one that is not the model's.
    pub fn tokenizer(&self) -> Result<&Tokenizer> {
        match self.tokenizer.get() {
            Some(tokenizer) => Ok(tokenizer),
            None => {
                let tokenizer = self.subject(&[])?.tokenizer()?;
                Ok(self.tokenizer.get_or_init(|| tokenizer))
            }
        }
    }

    /// The built-in modes and those of the files it was opened with.
    ///
    /// # Errors
    ///
    /// A file that is no longer one of modes.
    pub fn modes(&self) -> Result<ModeTable> {
        mode_table(&self.args.modes_file)
    }

    /// The model with the parts that `modes` need, as a command loads it; without modes what is there, for its shape
    /// and its tokenizer.
    ///
    /// # Errors
    ///
    /// Those of reading, folding, calibrating and quantizing.
    pub fn subject(&self, modes: &[ModeSpec]) -> Result<Subject> {
        // A panic while it was held left the model as it was before.
        let mut loaded = self.loaded.lock().unwrap_or_else(|e| e.into_inner());
        let needs = needs(modes);
        let there = parts(&loaded.subject);
        // What the files do not have is not looked for again.
        let tried = self::needs(&loaded.modes);
        if (0..3).any(|part| needs[part] && !there[part] && !tried[part]) {
            let mut all = loaded.modes.clone();
            all.extend(modes.iter().filter(|m| !loaded.modes.contains(m)).cloned());
            loaded.subject = load_parts(&self.args, &all)?;
            loaded.modes = all;
        }
        let mut subject = loaded.subject.clone();
        if modes.is_empty() {
            return Ok(subject);
        }
        let keep = |part: usize| loaded.always[part] || needs[part];
        let model = &mut subject.model;
        model.quantized = model.quantized.take().filter(|_| keep(0));
        model.float = model.float.take().filter(|_| keep(1));
        model.original = model.original.take().filter(|_| keep(2));
        Ok(subject)
    }
}

fn parts(subject: &Subject) -> [bool; 3] {
    let model = &subject.model;
    [
        model.quantized.is_some(),
        model.float.is_some(),
        model.original.is_some(),
    ]
}

/// What modes need of a model: the quantized, the folded float and the original part.
fn needs(modes: &[ModeSpec]) -> [bool; 3] {
    [
        modes.iter().any(ModeSpec::needs_quantized),
        // The original part is folded too.
        modes.iter().any(ModeSpec::needs_float),
        modes.iter().any(|m| m.needs_float() && !m.rotated),
    ]
}
