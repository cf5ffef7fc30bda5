//! Vectors for RTL: the inputs, weights, factors and outputs of one step of one block, as memory
//! files with a manifest, and back. `docs/export.md` states the format.
//!
//! | file | what it has |
//! |---|---|
//! | `words` | arrays as words of fixed width: `.hex`, `.mem`, `.npy`, `.bin` |
//! | `int4` | four-bit weights as words |
//! | `manifest` | the manifest, writing and reading a folder |
//! | `export` | the vectors of a step of a run |
//! | `simulate` | a step from its vectors alone |
//! | `memory` | the grammar of `$readmemh` |
//! | `dumps` | what another simulator left beside the vectors |
//! | `difference` | words against words, counted |
//! | `testbench` | the self-checking SystemVerilog testbench |

pub mod difference;
pub mod dumps;
pub mod export;
mod int4;
pub mod manifest;
pub mod memory;
pub mod simulate;
pub mod testbench;
pub mod words;
