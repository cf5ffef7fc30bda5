//! Matrix products, the loops that decide the speed of a linear step. Each is one scalar loop nest
//! compiled for every instruction set (see [`crate::isa`]); the order of every float sum is part of
//! its definition. Intrinsics stand beside the scalar code where the compiler does not find them.

pub mod columns;
pub mod matmul_f32;
pub mod matmul_i8;
pub mod peak;
#[cfg(target_arch = "x86_64")]
pub(crate) mod sfu;
#[cfg(target_arch = "x86_64")]
pub(crate) mod transpose;
