//! Flips in the coefficients of the special-function unit, against the results of the device: the
//! correctly rounded function plus the measured correction.

use super::{Fate, Kind, broken};
use crate::npz::{Array, NpzReader};
use scalescope_sim::arith::sfu;
use scalescope_sim::error::{Result, SimError};

static CORRECTIONS: &[u8] = include_bytes!("../../data/sfu/mufu_corrections_h200.npz");

/// Bits of a coefficient that are flipped: C0 has 26, C1 16, C2 10.
const BITS: [u32; 3] = [26, 16, 10];

pub(super) fn kinds() -> Result<Vec<Kind>> {
    let mut npz = NpzReader::from_bytes("measured corrections", CORRECTIONS)?;
    let (ex2, rcp) = sfu::coefficients();
    Ok(vec![
        flips(&EX2, ex2, &read(&mut npz, "ex2")?)?,
        flips(&RCP, rcp, &read(&mut npz, "rcp")?)?,
    ])
}

/// One of the two interpolations.
struct Function {
    kind: &'static str,
    /// Bits of x, the position in a segment.
    width: u32,
    /// The result's bits from a row of the table.
    interpolate: fn([i32; 3], u32) -> i64,
    /// The correctly rounded result's bits, without the exponent of 1.
    rounded: fn(u32) -> i64,
}

const EX2: Function = Function {
    kind: "ex2 coefficients",
    width: 17,
    interpolate: sfu::ex2_of,
    rounded: |m| {
        let v = (f64::from(m) / 8_388_608.0).exp2() - 1.0;
        (v * 8_388_608.0).round_ties_even() as i64
    },
};

const RCP: Function = Function {
    kind: "rcp coefficients",
    width: 16,
    interpolate: sfu::rcp_of,
    rounded: |m| i64::from((1.0 / f32::from_bits(0x3F80_0000 | m)).to_bits()),
};

/// Measured corrections, four 2-bit codes a byte, lowest bits first, code = c + 1.
fn read(npz: &mut NpzReader, key: &str) -> Result<Vec<u8>> {
    match npz.read(key)? {
        Array::U8(bytes) if bytes.len() == 1 << 21 => Ok(bytes.into_raw_vec_and_offset().0),
        other => Err(SimError::value(key, "2^21 bytes", other.describe())),
    }
}

fn flips(function: &Function, table: &[[i32; 3]], corrections: &[u8]) -> Result<Kind> {
    let mut kind = Kind::new(function.kind);
    for (segment, row) in table.iter().enumerate() {
        let length = 1u32 << function.width;
        let measured: Vec<i64> = (0..length)
            .map(|x| {
                let m = segment as u32 * length + x;
                let code = corrections[m as usize / 4] >> (2 * (m % 4)) & 3;
                (function.rounded)(m) + i64::from(code) - 1
            })
            .collect();
        // From both ends inwards: a small flip shows at the far end of a segment first.
        let differs = |row: [i32; 3]| {
            (0..length)
                .rev()
                .any(|x| (function.interpolate)(row, x) != measured[x as usize])
        };
        if differs(*row) {
            return Err(broken(
                function.kind,
                format_args!("segment {segment} differs"),
            ));
        }
        for (coefficient, bits) in BITS.into_iter().enumerate() {
            for bit in 0..bits {
                let mut flipped = *row;
                flipped[coefficient] ^= 1 << bit;
                // Every mantissa of the segment was tried: what does not differ has no effect.
                let fate = Fate::of(differs(flipped), false);
                kind.add(fate, String::new);
            }
        }
    }
    Ok(kind)
}
