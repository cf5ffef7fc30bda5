//! A model that runs in one mode and profile, and owns its weights.

use crate::datapath::{Datapath, LogitRows};
use crate::engine::{Engine, Sequence};
use crate::error::Result;
use crate::fault::Fault;
use crate::mode::ModeSpec;
use crate::model::Model;
use crate::profile::Profile;
use crate::trace::{Probe, Tensor};

self_cell::self_cell!(
    struct Prepared {
        owner: Model,
        #[not_covariant]
        dependent: Datapath,
    }
);

/// A model ready to run.
///
/// ```
/// use scalescope_sim::{ModeTable, Profile, Recorder, Selection, Simulator, sample};
///
/// # fn main() -> scalescope_sim::Result<()> {
/// let (mode, profile) = (ModeTable::default(), Profile::get("deployed")?);
/// let simulator = Simulator::new(sample::model(), mode.get("2-1")?, &profile)?;
/// let mut seen = Recorder::new(Selection::default());
/// let logits = simulator.run(&[1, 2, 3], &mut seen)?;
/// assert_eq!(logits.dim().0, 3);
/// assert!(!seen.tensors.is_empty());
/// # Ok(())
/// # }
/// ```
pub struct Simulator(Prepared);

impl Simulator {
    /// Prepares the weights that a mode needs.
    ///
    /// # Errors
    ///
    /// A model that lacks a part of them.
    pub fn new(model: Model, mode: &ModeSpec, profile: &Profile) -> Result<Self> {
        Self::with_faults(model, mode, profile, &[])
    }

    /// [`Simulator::new`] with defects, put in one after another.
    ///
    /// # Errors
    ///
    /// Those of [`Datapath::with_faults`].
    pub fn with_faults(
        model: Model,
        mode: &ModeSpec,
        profile: &Profile,
        faults: &[Fault],
    ) -> Result<Self> {
        let prepared = Prepared::try_new(model, |model| {
            Datapath::with_faults(model, mode, profile, faults)
        });
        Ok(Self(prepared?))
    }

    /// The model it was made of.
    pub fn model(&self) -> &Model {
        self.0.borrow_owner()
    }

    /// Runs a whole sequence from an empty state and shows its tensors to a probe. Returns the logits of
    /// every token, `[L, V]`, binary16 or FP32 as the mode's stream says.
    ///
    /// # Errors
    ///
    /// Tokens outside the vocabulary; what the probe refuses; a register that may not overflow and did.
    pub fn run(&self, tokens: &[u32], probe: &mut dyn Probe) -> Result<Tensor> {
        self.with(|path| path.prefill_once(tokens, LogitRows::All, probe))
    }

    /// Runs a sequence token by token, as `work` says.
    pub fn sequence<T>(&self, work: impl FnOnce(&mut dyn Sequence) -> T) -> T {
        self.with(|path| work(&mut *path.begin()))
    }

    /// Hands the datapath on, for all that it can and this type does not name.
    pub fn with<T>(&self, work: impl FnOnce(&Datapath<'_>) -> T) -> T {
        self.0.with_dependent(|_, path| work(path))
    }
}
