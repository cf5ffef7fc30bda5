//! A datapath that owns the model it runs.

use scalescope::kept::Kept;
use scalescope_sim::datapath::Datapath;
use scalescope_sim::error::Result;
use scalescope_sim::fault::Fault;
use scalescope_sim::mode::ModeSpec;
use scalescope_sim::model::Model;
use scalescope_sim::profile::Profile;

self_cell::self_cell!(
    /// A model and the datapath that borrows it.
    pub struct Simulator {
        owner: Model,
        #[not_covariant]
        dependent: Datapath,
    }
);

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
    Simulator::try_new(subject.model, |model| {
        Datapath::with_faults(model, &setup.mode, &setup.profile, &setup.faults)
    })
}
