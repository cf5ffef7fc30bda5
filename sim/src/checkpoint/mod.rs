//! Models and scales, from files and to files.
//!
//! | file | what |
//! |---|---|
//! | [`hf`] | a folder of `transformers` or `mamba_ssm` to a [`FloatModel`](crate::model::FloatModel) |
//! | [`quamba`] | a folder that Quamba quantized |
//! | [`fold`] | Hadamard matrices and norms into the weights |
//! | [`quantize`] | folded weights to INT8 |
//! | [`recipe`] | rules of both that implementations differ in |
//! | [`quantized`] | the quantized format, `quantized.safetensors` |
//! | [`scales`] | activation scales alone, as JSON |
//! | [`identity`] | whether a quantized and a float model are one |
//! | [`load`] | any of these by its path |
//! | [`info`] | what a path holds, in words |
//! | [`torch`] | files of `torch.save` |
//! | [`tensor`] | a tensor of a file, of whatever container |
//! | [`synthetic`] | random models of published shapes |

#[allow(unsafe_code)] // maps files
mod bytes;
mod config;
pub mod container;
pub mod fold;
pub mod hf;
pub mod identity;
pub mod info;
mod input;
pub mod load;
pub mod quamba;
pub mod quantize;
pub mod quantized;
pub mod recipe;
mod rotate;
pub mod scales;
pub mod synthetic;
pub mod tensor;
pub mod torch;
pub mod w4a8;
mod weights;
