//! What each step and scale of a mode costs, as loss of accuracy.
//!
//! | what | module |
//! |---|---|
//! | what each site of a mode costs | [`sites`] |
//! | why it costs that | [`causes`] |
//! | what would help | [`recommend`] |
//! | which weights could have four bits | [`bits`] |
//! | losses of runs, paired | [`loss`] |

pub mod bits;
pub mod causes;
pub mod loss;
pub mod recommend;
pub mod sites;
