//! The steps of a block, one file each, in the order of the data. A step takes tensors and rules
//! (never a mode or a profile) and returns tensors; it knows nothing of layers or traces.
//!
//! | file | step |
//! |---|---|
//! | [`norm`] | residual add and RMSNorm |
//! | [`linear`] | in_proj, x_proj, dt_proj, out_proj, head |
//! | [`dynamic`] | dynamic quantization of the conv input |
//! | [`conv`] | causal conv1d with SiLU |
//! | `…_unit` | the same steps as a chip has them: integer multipliers, tables, chosen registers |
//! | [`scan`] | selective scan: inputs, formulas, dispatch; `scan_sequential`, `scan_block`, `scan_update` its orders |
//! | [`hadamard`] | Hadamard rotation and quantization |

pub mod conv;
pub mod conv_unit;
pub mod dynamic;
pub mod hadamard;
pub mod hadamard_unit;
pub mod linear;
pub mod linear_unit;
pub mod next_token;
pub mod norm;
pub mod scan;
pub(crate) mod scan_block;
pub(crate) mod scan_codes;
mod scan_formula;
mod scan_sequential;
mod scan_sum;
#[allow(unsafe_code)] // threads write disjoint parts of one array
mod scan_tile;
pub mod scan_unit;
mod scan_update;

#[cfg(feature = "cuda")]
pub(crate) use scan_block::plan as scan_plan;
