//! The arithmetic: every rounding, clamp, scale and function rule, each stated once, in scalar
//! code. This module is normative; everything else in the crate calls it or is tested against it.
//!
//! | file | rules |
//! |---|---|
//! | [`round`] | real number to integer |
//! | [`lfsr`] | the random bits of stochastic rounding |
//! | [`fixed`] | accumulator to grid by an integer multiplier and a shift |
//! | [`function`] | exp, softplus and SiLU from tables, polynomials and shifts |
//! | [`saturate`] | integer to INT8, and the counters of what did not fit |
//! | [`accumulate`] | sums of products in registers of a chosen width |
//! | [`requant`] | accumulator or real number to a grid: scale orders, quotients, [`requant::QuantRule`] |
//! | [`int4`] | four-bit codes to INT8 weights, and real weights to codes |
//! | [`quantizer`] | quantizers with several segments, policies for what lies beyond |
//! | [`binary16`] | f32 to binary16 and back |
//! | [`real`] | f32 operations and functions of an arithmetic: flush, exp, log1p, division, SiLU, softplus |
//! | [`elementary`] | correctly rounded exp and log1p |
//! | [`sfu`] | the GPU special-function unit's `ex2` and `rcp`, and what `cuda-fast` builds on them |
//! | [`hadamard`] | Hadamard transforms in f32, in their defined order |

#![forbid(unsafe_code)]

pub mod accumulate;
pub mod binary16;
pub mod elementary;
pub mod fixed;
pub mod function;
pub mod hadamard;
pub mod int4;
pub mod lfsr;
pub mod quantizer;
pub mod real;
pub mod requant;
pub mod round;
pub mod saturate;
pub mod sfu;
