//! The datapath on an NVIDIA GPU: a second implementation of every step, to the same bits.
//!
//! Kernels are CUDA C++ (`kernels/`), each named like its twin in [`crate::step`]; they are compiled
//! ahead of time to PTX (`sim/ptx`, made by its `build.sh`), which the driver translates when it is
//! loaded. What a step computes is decided in `crate::block`, once for CPU and GPU. A rule without a
//! kernel is an error, never a substitute.
//!
//! | file | what it has |
//! |---|---|
//! | `device`, `download` | context, stream, memory, launches; what the host gets |
//! | `args` | structures that kernels take, as `tensor.cuh` declares them |
//! | `matrix` | tensors on the device, to and from [`Tensor`](crate::trace::Tensor) |
//! | `rules` | rules to the numbers kernels know |
//! | `weights` | a model's weights, resident on the device |
//! | `step` | one launch, or a few, for each step |
//! | `gpu` | the steps as `crate::block` asks for them |
//! | `counts`, `show` | what quantizers counted; tensors for a probe |
//! | `datapath` | a model on the device, prefill |
//! | `fuse` | which launches of a token become one |
//! | `graph`, `decode` | work recorded once and queued as a whole; decode, token by token |
//! | `timing` | time of each step by device events |

#[allow(unsafe_code)] // says which types kernels take
mod args;
mod counts;
mod datapath;
mod decode;
#[allow(unsafe_code)] // calls the driver
mod device;
#[allow(unsafe_code)] // calls the driver
mod download;
mod functions;
mod fuse;
mod gpu;
#[allow(unsafe_code)] // calls the driver
mod graph;
mod matrix;
mod rules;
mod show;
mod step;
mod timing;
mod weights;

pub use datapath::CudaDatapath;
pub use device::{Device, device_count};
pub use functions::{Function, values};
pub use timing::{DecodeTime, StepTime, copy_bandwidth, decode_time, prefill_times};
