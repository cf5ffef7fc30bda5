//! What several test binaries share.
#![allow(dead_code)] // Each binary uses its part.

pub mod corners;
pub mod npz;
pub mod oracle;
