//! Matrix products, the loops that decide the speed of a linear step. Each is one scalar loop nest
//! compiled for every instruction set (see [`crate::isa`]); the order of every float sum is part of
//! its definition. Intrinsics stand beside the scalar code where the compiler does not find them.

#[cfg(target_arch = "x86_64")]
/// Functions of slices from functions of 16 lanes; the last lanes may be few. Each is to be called where its
/// instruction sets were found.
macro_rules! slices {
    ($features:literal; $($(#[$meta:meta])* fn $name:ident($values:ident, $x:ident $(, $other:ident: $o:ident)*) = $f:expr;)*) => {
        $(
        $(#[$meta])*
        #[target_feature(enable = $features)]
        fn $name($values: &mut [f32] $(, $other: &[f32])*) {
            $(assert_eq!($values.len(), $other.len());)*
            for from in (0..$values.len()).step_by(16) {
                let count = ($values.len() - from).min(16);
                let mask = u16::MAX >> (16 - count);
                // SAFETY: the mask keeps loads and the store inside the slices.
                unsafe {
                    let to = $values.as_mut_ptr().add(from);
                    let $x = _mm512_maskz_loadu_ps(mask, to);
                    $(let $o = _mm512_maskz_loadu_ps(mask, $other.as_ptr().add(from));)*
                    _mm512_mask_storeu_ps(to, mask, $f);
                }
            }
        }
        )*
    };
}

#[cfg(target_arch = "x86_64")]
pub(crate) mod butterflies;
pub mod columns;
#[cfg(target_arch = "x86_64")]
pub(crate) mod exp;
#[cfg(target_arch = "x86_64")]
pub(crate) mod halves;
pub(crate) mod lines;
pub mod matmul_f32;
pub mod matmul_i8;
pub mod pages;
pub mod peak;
#[cfg(target_arch = "x86_64")]
pub(crate) mod scan;
#[cfg(target_arch = "x86_64")]
pub(crate) mod sfu;
pub mod team;
#[cfg(target_arch = "x86_64")]
pub(crate) mod transpose;
