//! Models and scales, from files and to files.
//!
//! | file | what |
//! |---|---|
//! | [`hf`] | a Hugging Face directory to a [`FloatModel`](crate::model::FloatModel) |
//! | [`fold`] | Hadamard matrices and norms into the weights |
//! | [`quantize`] | folded weights to INT8 |
//! | [`quantized`] | the quantized format, `quantized.safetensors` |
//! | [`scales`] | activation scales alone, as JSON |
//! | [`identity`] | whether a quantized and a float model are one |
//! | [`load`] | any of these by its path |
//! | [`synthetic`] | random models of published shapes |

mod config;
#[allow(unsafe_code)] // maps files
mod container;
pub mod fold;
pub mod hf;
pub mod identity;
mod input;
pub mod load;
pub mod quantize;
pub mod quantized;
mod rotate;
pub mod scales;
pub mod synthetic;
