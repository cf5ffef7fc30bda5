//! The steps: each checks its shapes, queues its kernel or kernels, and returns what they will make.

pub mod conv;
pub mod convert;
pub mod dynamic;
pub mod hadamard;
pub mod linear;
pub mod norm;
pub mod scan;
pub mod segments;

/// Blocks of threads for a number of elements.
fn blocks(elements: usize, threads: u32) -> u32 {
    elements.div_ceil(threads as usize).max(1) as u32
}

/// The most blocks in the second and third dimension of a grid.
const MAX_BLOCKS: usize = 65_535;
