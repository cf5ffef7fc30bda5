//! One program of every test of this crate: each program more would be linked with everything.
//! `cargo test -p scalescope-sim --test all arithmetic::` runs those of `arithmetic.rs`. Tests that
//! set something for the whole process are programs of their own, listed in `Cargo.toml`.

mod checkpoint_files;
mod common;

mod accumulators;
mod arithmetic;
mod checkpoint_corruption;
mod checkpoint_hf;
mod checkpoint_reference;
mod correct_rounding;
mod dataflow;
mod faults;
mod functions;
mod identities;
mod profiles;
mod pruned;
mod quamba;
mod sample;
mod scan_reference;
mod sfu_measured;
mod sfu_properties;
mod step_reference;
mod tflite;
mod torch_files;
