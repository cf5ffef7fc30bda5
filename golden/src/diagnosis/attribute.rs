//! Which step or scale of a mode is to blame for its loss.
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
