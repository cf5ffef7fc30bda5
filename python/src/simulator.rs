//! A simulator from what Python names.

use scalescope::kept::Kept;
use scalescope_sim::Simulator;
use scalescope_sim::error::Result;
use scalescope_sim::fault::Fault;
use scalescope_sim::mode::ModeSpec;
use scalescope_sim::profile::Profile;

/// What runs: a mode, its rules and its defects.
#[derive(Clone, Debug)]
pub struct Setup {
    /// The mode.
    pub mode: ModeSpec,
    /// The profile.
    pub profile: Profile,
    /// The faults, in their order.
    pub faults: Vec<Fault>,
}

/// Prepares the weights that a mode needs.
pub fn simulator(kept: &Kept, setup: &Setup) -> Result<Simulator> {
    let subject = kept.subject(std::slice::from_ref(&setup.mode))?;
    Simulator::with_faults(subject.model, &setup.mode, &setup.profile, &setup.faults)
}
