//! What is wrong with numbers, and what each step and scale costs. Stands on vectors, traces and checks; nothing
//! of those stands on it.
//!
//! | question | module |
//! |---|---|
//! | does a scale fit what meets it | [`fit`] |
//! | which scale meets what, and who reads with another | [`lineage`] |
//! | what error is made at a step, what arrives there | [`propagate`] |
//! | are two modes one computation | [`equiv`] |
//! | what each step and scale of a mode costs | [`cost`] |
//! | what is wrong with a dump | [`diagnose`] |
//!
//! What they find, and how much it matters, is a [`finding`].

pub mod cost;
pub mod diagnose;
pub mod equiv;
pub mod finding;
pub mod fit;
pub mod lineage;
pub mod propagate;
