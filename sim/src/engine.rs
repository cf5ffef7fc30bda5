//! What runs a model: the CPU's [`Datapath`], or a GPU's `CudaDatapath` (feature `cuda`). Both give
//! the same bits and show every tensor to a [`Probe`].

use crate::datapath::{Datapath, LogitRows, State};
use crate::error::Result;
use crate::mode::ModeSpec;
use crate::model::Config;
use crate::profile::Profile;
use crate::score::most_likely;
use crate::trace::{Probe, Tensor};

/// A model ready to run in one mode and profile.
pub trait Engine: Send + Sync {
    /// Shape of the model.
    fn config(&self) -> &Config;

    /// The mode it runs in.
    fn mode(&self) -> &ModeSpec;

    /// The profile it runs with.
    fn profile(&self) -> &Profile;

    /// A sequence before its first token.
    fn begin(&self) -> Box<dyn Sequence + '_>;

    /// Runs a whole sequence and forgets its state; see [`Sequence::prefill`].
    fn prefill_once(
        &self,
        tokens: &[u32],
        rows: LogitRows,
        probe: &mut dyn Probe,
    ) -> Result<Tensor> {
        self.begin().prefill(tokens, rows, probe)
    }
}

/// A sequence that runs: its state, wherever that lies.
pub trait Sequence {
    /// Runs a whole sequence from an empty state. Returns the logits asked for, `[rows, V]`, f16 or
    /// FP32 as the mode's stream says.
    fn prefill(&mut self, tokens: &[u32], rows: LogitRows, probe: &mut dyn Probe)
    -> Result<Tensor>;

    /// Runs one more token. Returns its logits, `[1, V]`.
    fn decode(&mut self, token: u32, probe: &mut dyn Probe) -> Result<Tensor>;

    /// Runs one more token. Returns the most likely token after it, the first of equals; the probe need not
    /// see logits.
    fn decode_greedy(&mut self, token: u32, probe: &mut dyn Probe) -> Result<u32> {
        let logits = self.decode(token, probe)?.to_real();
        most_likely(logits.as_slice().expect("logits are row-major"))
    }
}

impl Engine for Datapath<'_> {
    fn config(&self) -> &Config {
        Datapath::config(self)
    }

    fn mode(&self) -> &ModeSpec {
        Datapath::mode(self)
    }

    fn profile(&self) -> &Profile {
        Datapath::profile(self)
    }

    fn begin(&self) -> Box<dyn Sequence + '_> {
        Box::new(Running {
            path: self,
            state: self.empty_state(),
        })
    }
}

/// A sequence on the CPU.
struct Running<'a, 'm> {
    path: &'a Datapath<'m>,
    state: State,
}

impl Sequence for Running<'_, '_> {
    fn prefill(
        &mut self,
        tokens: &[u32],
        rows: LogitRows,
        probe: &mut dyn Probe,
    ) -> Result<Tensor> {
        let (logits, state) = self.path.prefill(tokens, rows, probe)?;
        self.state = state;
        Ok(logits)
    }

    fn decode(&mut self, token: u32, probe: &mut dyn Probe) -> Result<Tensor> {
        self.path.decode(token, &mut self.state, probe)
    }

    fn decode_greedy(&mut self, token: u32, probe: &mut dyn Probe) -> Result<u32> {
        self.path.decode_greedy(token, &mut self.state, probe)
    }
}
