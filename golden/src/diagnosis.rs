//! What is wrong with numbers, and what each step and scale costs. Stands on vectors, traces and checks; nothing
//! of those stands on it.
//!
//! | question | module |
//! |---|---|
//! | does a scale fit what meets it | [`fit`] |
//! | which scale meets what, and who reads with another | [`lineage`] |
//! | what error is made at a step, what arrives there | [`propagate`] |
//! | are two modes one computation | [`equiv`] |
//! | what is wrong with a dump | [`diagnose`] |
//! | which step or scale of a mode is to blame | [`attribute`] |
//!
//! What they find, and how much it matters, is a [`finding`].

pub mod attribute;
pub mod diagnose;
pub mod equiv;
pub mod finding;
pub mod fit;
pub mod lineage;
pub mod propagate;
