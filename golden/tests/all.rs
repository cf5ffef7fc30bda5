//! One program of every test of this crate: each program more would be linked with everything.
//! `cargo test -p scalescope-golden --test all check::` runs those of `check.rs`.

mod attribution;
mod check;
mod compare;
mod diagnosis;
mod digests;
mod equiv;
mod explain;
mod golden_data;
mod lineage;
mod propagate;
mod rtl;
mod selftest;
mod vectors;
