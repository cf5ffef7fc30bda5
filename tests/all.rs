//! One program of every test of the command line: each program more would be linked with everything.
//! `cargo test --test all check::` runs those of `check.rs`. Tests that count what the whole process
//! does are programs of their own, listed in `Cargo.toml`.

mod common;

mod asic;
mod attribution;
mod awkward;
mod awkward_arrays;
mod check;
mod cli;
mod compare;
mod counts;
mod device;
mod diagnosis;
mod docs;
mod eval;
mod examples;
mod guides;
mod model_files;
mod models;
mod pages;
mod printed;
mod readme;
mod report_html;
mod rtl;
mod severity;
mod twin;
