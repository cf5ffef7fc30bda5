//! f32 to binary16 and back, by integer operations and selects only, so that loops vectorise on
//! every instruction set (the `half` crate asks for the machine's instructions at each element).

use crate::isa::{Kernel, dispatch};
#[cfg(target_arch = "x86_64")]
use crate::kernels::halves;
use half::f16;
use std::hint::select_unpredictable as select;

const SIGN: u32 = 0x8000_0000;
const INFINITY: u32 = 0x7F80_0000;

/// An f32 to binary16: nearest, ties to even, subnormals kept, overflow to infinity (`f16`). NaN
/// stays NaN, quiet, with the upper bits of its payload. Source: `docs/arithmetic.md`.
#[inline(always)]
pub fn to_f16(v: f32) -> f16 {
    /// 2^-14, the smallest normal binary16.
    const NORMAL: u32 = 0x3880_0000;
    /// 2^16, where infinity begins without a look at the bits.
    const BEYOND: u32 = 0x4780_0000;
    /// 0.5: an ulp of it is 2^-24, the step of subnormal binary16.
    const HALF: u32 = 0x3F00_0000;
    let sign = v.to_bits() & SIGN;
    let magnitude = v.to_bits() ^ sign;
    // The exponent moves from bias 127 to 15; adding just under half a step, and one more where
    // the last kept bit is odd, rounds ties to even. A carry moves on into the exponent.
    let rebias = (15u32.wrapping_sub(127) << 23).wrapping_add(0xFFF);
    let odd = magnitude >> 13 & 1;
    let normal = magnitude.wrapping_add(rebias).wrapping_add(odd) >> 13;
    let subnormal = (f32::from_bits(magnitude) + 0.5)
        .to_bits()
        .wrapping_sub(HALF);
    let finite = select(magnitude < NORMAL, subnormal, normal);
    let nan = 0x7E00 | (magnitude >> 13 & 0x3FF);
    let special = select(magnitude > INFINITY, nan, 0x7C00);
    let result = select(magnitude >= BEYOND, special, finite);
    f16::from_bits((result | sign >> 16) as u16)
}

/// A binary16 as f32, exactly; NaN becomes quiet.
#[inline(always)]
pub fn from_f16(v: f16) -> f32 {
    let bits = u32::from(v.to_bits());
    let sign = (bits & 0x8000) << 16;
    let magnitude = bits & 0x7FFF;
    // Read as an f32 the shifted bits are v·2^-112, subnormals too; the product is exact.
    let scaled = f32::from_bits(magnitude << 13) * f32::from_bits(0x7780_0000);
    let quiet = select(magnitude > 0x7C00, 0x0040_0000, 0);
    let special = INFINITY | magnitude << 13 | quiet;
    let result = select(magnitude >= 0x7C00, special, scaled.to_bits());
    f32::from_bits(result | sign)
}

/// [`to_f16`] of each value.
pub fn narrow(values: &[f32], out: &mut [f16]) {
    assert_eq!(values.len(), out.len());
    #[cfg(target_arch = "x86_64")]
    if halves::narrow(values, out) {
        return;
    }
    dispatch(Narrow { values, out });
}

/// [`from_f16`] of each value.
pub fn widen(values: &[f16], out: &mut [f32]) {
    assert_eq!(values.len(), out.len());
    #[cfg(target_arch = "x86_64")]
    if halves::widen(values, out) {
        return;
    }
    dispatch(Widen { values, out });
}

struct Narrow<'a> {
    values: &'a [f32],
    out: &'a mut [f16],
}

impl Kernel for Narrow<'_> {
    type Output = ();

    #[inline(always)]
    fn run(self) {
        for (v, out) in self.values.iter().zip(self.out) {
            *out = to_f16(*v);
        }
    }
}

struct Widen<'a> {
    values: &'a [f16],
    out: &'a mut [f32],
}

impl Kernel for Widen<'_> {
    type Output = ();

    #[inline(always)]
    fn run(self) {
        for (v, out) in self.values.iter().zip(self.out) {
            *out = from_f16(*v);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_binary16_becomes_the_f32_that_half_says_and_comes_back() {
        for bits in 0..=u16::MAX {
            let h = f16::from_bits(bits);
            let v = from_f16(h);
            assert_eq!(v.to_bits(), f32::from(h).to_bits(), "{bits:04x}");
            assert_eq!(
                to_f16(v).to_bits(),
                h.to_bits() | if h.is_nan() { 0x200 } else { 0 }
            );
            if !h.is_nan() {
                assert_eq!(to_f16(v).to_bits(), bits);
            }
        }
    }

    #[test]
    fn f32_rounds_as_half_says() {
        // Every sign, exponent and kept bit, with the bits that are cut at their corners.
        for high in 0..1u32 << 19 {
            for low in [0, 1, 0x0FFF, 0x1000, 0x1001, 0x1FFF] {
                let v = f32::from_bits(high << 13 | low);
                assert_eq!(
                    to_f16(v).to_bits(),
                    f16::from_f32_const(v).to_bits(),
                    "{v:e}"
                );
            }
        }
        // Subnormal results cut more bits: a stride that meets every exponent at odd places.
        for bits in (0..0x3900_0000u32).step_by(251) {
            let v = f32::from_bits(bits);
            assert_eq!(
                to_f16(v).to_bits(),
                f16::from_f32_const(v).to_bits(),
                "{v:e}"
            );
        }
    }
}
