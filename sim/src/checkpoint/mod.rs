//! Models and scales, from files and to files.
//!
//! | file | what |
//! |---|---|
//! | [`hf`] | a Hugging Face directory to a [`FloatModel`](crate::model::FloatModel) |
//! | [`fold`] | Hadamard matrices and norms into the weights |
//! | [`quantize`] | folded weights to INT8 |
//! | [`quantized`] | the quantized format, `quantized.safetensors` |
//! | [`scales`] | activation scales alone, as JSON |
//! | [`load`] | any of these by its path |
//! | [`torch`] | files of `torch.save` |
//! | [`tensor`] | a tensor of a file, of whatever container |
//! | [`synthetic`] | random models of published shapes |

#[allow(unsafe_code)] // maps files
mod bytes;
mod config;
mod container;
pub mod fold;
pub mod hf;
mod input;
pub mod load;
pub mod quantize;
pub mod quantized;
mod rotate;
pub mod scales;
pub mod synthetic;
pub mod tensor;
pub mod torch;
