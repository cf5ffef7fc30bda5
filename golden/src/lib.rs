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
//! | would a flipped bit be noticed | [`selftest`] |
//! | what is wrong, and what it costs | [`diagnosis`] |

pub mod check;
pub mod check_op;
pub mod compare;
pub mod diagnosis;
pub mod layout;
pub mod mapping;
pub mod metrics;
pub mod npz;
pub mod ops;
pub mod rtl;
pub mod selftest;
pub mod trace_file;
pub mod ulp;
pub mod value;
