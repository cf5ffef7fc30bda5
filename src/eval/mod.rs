//! Accuracy and perplexity of modes, with honest statistics.
//!
//! | stage | module |
//! |---|---|
//! | a line of the data file becomes tokens to score | [`data`], [`task`] |
//! | which of them this machine runs, and with what settings | [`settings`] |
//! | every mode scores them | [`engine`] |
//! | each outcome is kept | [`samples`] |
//! | outcomes become intervals, tests and ties | [`stats`], [`bootstrap`], [`ties`], [`summary`] |
//! | and are shown | [`text`] |
//!
//! `docs/eval.md` defines every number.

pub mod bootstrap;
pub mod data;
pub mod engine;
pub mod samples;
pub mod settings;
pub mod stats;
pub mod summary;
pub mod task;
pub mod text;
pub mod ties;
