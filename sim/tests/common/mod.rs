//! What several test binaries share.

pub mod corners;
pub mod npz;
pub mod oracle;
