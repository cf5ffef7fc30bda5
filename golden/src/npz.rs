//! NumPy's `.npy` and `.npz` files: 12 element types, 0 to 4 axes, both byte orders and both memory
//! orders in; row-major little endian out.
//!
//! Files come from strangers. What a header claims is checked against what the container claims
//! before anything is allocated, and the container against what it can deliver; every refusal names
//! file, member, expected and found.

mod array;
mod header;
mod read;
#[cfg(test)]
mod tests;
mod write;

pub(crate) use array::with_array;
pub use array::{Array, DType, Element};
pub(crate) use header::shown;
pub use header::{Header, MAX_DIMS};
pub use read::{NpzReader, is_npz, read_npy, read_npz};
pub use write::{Compression, NpzWriter, write_npy, write_npz};
