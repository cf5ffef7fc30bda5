//! What kernels take, laid out as `kernels/tensor.cuh` and the `.cu` files declare it.

use std::any::Any;
use std::ffi::c_void;

/// A value that can be handed to a kernel as it lies in memory.
///
/// # Safety
///
/// The type must have the layout of the kernel's parameter.
pub unsafe trait Arg: Any + Send {
    /// Where it lies.
    fn address(&self) -> *mut c_void {
        std::ptr::from_ref(self).cast::<c_void>().cast_mut()
    }

    /// A copy, for a launch later on.
    fn keep(&self) -> Box<dyn Arg>;
}

/// Address in device memory; 0 is null.
pub type Pointer = u64;

/// A tensor's type, by the numbers of `tensor.cuh`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(i32)]
pub enum Type {
    I8 = 0,
    F16 = 1,
    F32 = 2,
}

/// A tensor to read: codes (times `scale`), or real values (with scale 1).
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub struct Source {
    pub data: Pointer,
    /// Elements from one row to the next.
    pub stride: i64,
    pub scale: f32,
    pub of: Type,
}

impl Source {
    /// No tensor.
    pub const NONE: Source = Source {
        data: 0,
        stride: 0,
        scale: 1.0,
        of: Type::F32,
    };
}

/// A quantization rule with its scale, and where it counts (0 for nowhere).
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub struct Quantizer {
    /// Of a quotient that is a product, the reciprocal.
    pub scale: f32,
    pub quotient: i32,
    pub rounding: i32,
    pub overflow: i32,
    pub status: Pointer,
}

/// A tensor to write.
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub struct Sink {
    pub data: Pointer,
    /// Elements from one row to the next.
    pub stride: i64,
    pub of: Type,
    pub quantizer: Quantizer,
}

/// An INT8 × INT8 product.
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub struct LinearI8 {
    pub x: Pointer,
    pub weight: Pointer,
    pub x_stride: i64,
    pub weight_stride: i64,
    pub rows: i64,
    pub n: i32,
    pub k: i32,
    pub a: f32,
    pub b: f32,
    pub order: i32,
    pub channels: Pointer,
}

/// A residual add and RMSNorm.
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub struct Norm {
    pub hidden: Source,
    pub residual: Pointer,
    pub weight: Pointer,
    pub residual_out: Pointer,
    pub out: Sink,
    pub rows: i32,
    pub m: i32,
    pub eps: f32,
    pub torch_device: i32,
}

/// A convolution over sequences.
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub struct Conv {
    pub x: Source,
    pub x_step: i64,
    pub before: Pointer,
    pub before_step: i64,
    pub scales: Pointer,
    pub codes: Pointer,
    pub weights: Pointer,
    pub bias: Pointer,
    pub weight_scale: f32,
    pub bias_scale: f32,
    pub taps: i32,
    pub channels: i32,
    pub length: i32,
    pub form: i32,
    pub scales_each: i32,
    pub silu_product: i32,
}

/// A selective scan over sequences.
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub struct Scan {
    pub u: Source,
    pub dt: Source,
    pub b: Source,
    pub c: Source,
    pub z: Source,
    pub before: Source,
    pub alpha: Pointer,
    pub d: Pointer,
    pub dt_bias: Pointer,
    pub d_scale: f32,
    pub dt_bias_scale: f32,
    pub channels: i32,
    pub states: i32,
    pub length: i32,
    pub sum: i32,
    pub y: Sink,
    pub after: Sink,
}

/// A segment of a quantizer.
#[derive(Clone, Copy, Debug, Default)]
#[repr(C)]
pub struct Segment {
    pub scale: f32,
    pub step: f32,
    pub low: f32,
    pub high: f32,
    pub offset: f32,
    pub end: f32,
    pub is_signed: i32,
    pub until: i32,
}

/// A quantizer with segments.
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub struct Segments {
    pub segments: [Segment; 3],
    pub base_scale: f32,
    pub base_step: f32,
    pub beyond_scale: f32,
    pub beyond_step: f32,
    pub edge: f32,
    pub highest: f32,
    pub count: i32,
    pub quotient: i32,
    pub rounding: i32,
    pub beyond: i32,
}

/// What a quantizer counted.
#[derive(Clone, Copy, Debug, Default, bytemuck::Pod, bytemuck::Zeroable)]
#[repr(C)]
pub struct Status {
    pub overflows: u64,
    /// Bits of the largest magnitude.
    pub peak: u32,
    pub unused: u32,
}

macro_rules! args {
    ($($of:ty),*) => { $(
        // SAFETY: a C scalar, or a structure declared alike in the kernels.
        unsafe impl Arg for $of {
            fn keep(&self) -> Box<dyn Arg> {
                Box::new(*self)
            }
        }
    )* };
}
args!(
    i32, i64, f32, u64, Source, Sink, LinearI8, Norm, Conv, Scan, Segments
);
