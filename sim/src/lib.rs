//! The simulator: every step of the INT8 datapath of a Mamba language model, to the last bit.
//!
//! Most programs need [`Simulator`], [`Model`], [`ModeTable`] and [`ModeSpec`], [`Profile`], a [`Recorder`] or a
//! [`Probe`] of their own, and [`Error`]: what stands at the top of the crate is kept as it is. The modules
//! below are open for the tools that are built on them and may change with any version.
//!
//! Follow the data:
//!
//! | stage | module |
//! |---|---|
//! | what a rounding, a scale, a function *is* | [`arith`], [`quant`] |
//! | a model in memory | [`model`] |
//! | a model on disk: reading, folding, quantizing, writing | [`checkpoint`] |
//! | activation scales from a float model | [`calibrate`] |
//! | which tensor is INT8, who makes it | [`mode`] |
//! | with which rules | [`profile`] |
//! | the block as a table: who reads what, with which scale | [`dataflow`] |
//! | the scales of a block, one for each use | [`plan`] |
//! | the steps; what is made from what, in order; a model that runs | [`step`], `block`, [`datapath`] |
//! | known defects, to be put in on purpose | [`fault`] |
//! | what runs a model, CPU or GPU | [`engine`], `cuda` (feature `cuda`) |
//! | what its logits say, what it writes | [`score`], [`generate`] |
//! | what can be seen while it runs | [`trace`] |
//! | how wide its registers must be | [`headroom`] |
//! | random numbers | [`random`] |
//! | how far long work is | [`progress`] |
//! | files that appear whole or not at all | [`mod@atomic`] |
//! | the encoding of text files, the JSON that Python writes | [`mod@text`] |
//! | where its time goes | [`mod@bench`] |
//! | the same loops for every instruction set | [`isa`], [`kernels`] |

pub mod arith;
pub mod atomic;
pub mod bench;
mod block;
pub mod calibrate;
pub mod checkpoint;
#[cfg(feature = "cuda")]
pub mod cuda;
pub mod dataflow;
pub mod datapath;
pub mod engine;
pub mod error;
pub mod fault;
pub mod generate;
pub mod headroom;
#[allow(unsafe_code)] // calls functions compiled for a found instruction set
pub mod isa;
#[allow(unsafe_code)] // vector intrinsics
pub mod kernels;
pub mod mode;
pub mod model;
pub mod plan;
pub mod profile;
pub mod progress;
pub mod quant;
pub mod random;
#[cfg(feature = "sample")]
pub mod sample;
pub mod score;
mod simulator;
pub mod step;
pub mod text;
pub mod trace;

pub use error::{Result, SimError as Error};
pub use mode::{ModeSpec, ModeTable};
pub use model::Model;
pub use profile::Profile;
pub use simulator::Simulator;
pub use trace::{Place, Probe, Recorder, Selection, Tensor, TracePoint};
