//! Vectors that say what is right, and the means to compare with them.
//!
//! | what | module |
//! |---|---|
//! | NumPy files in and out | [`npz`] |
//! | vectors of single operations | [`ops`] |
//! | traces of whole runs | [`trace_file`], [`value`] |
//! | dumps of other programs as traces | [`mapping`] |
//! | how far two tensors are apart | [`metrics`], [`ulp`] |
//! | are they equal, and was everything there | [`compare`] |
//! | or do they only lie differently | [`layout`] |
//! | the datapath against a trace | [`check`] |
//! | a step against vectors of its operation | [`check_op`] |
//! | what error is made at a step, what arrives there | [`propagate`] |
//! | are two modes one computation | [`equiv`] |
//! | which scale meets what, and who reads with another | [`lineage`] |
//! | does a scale fit what meets it | [`fit`] |
//! | would a flipped bit be noticed | [`selftest`] |
//! | what is wrong with a dump | [`diagnose`] |
//! | which step or scale is to blame | [`attribute`] |

pub mod attribute;
pub mod check;
pub mod check_op;
pub mod compare;
pub mod diagnose;
pub mod equiv;
pub mod fit;
pub mod layout;
pub mod lineage;
pub mod mapping;
pub mod metrics;
pub mod npz;
pub mod ops;
pub mod propagate;
pub mod rtl;
pub mod selftest;
pub mod trace_file;
pub mod ulp;
pub mod value;
