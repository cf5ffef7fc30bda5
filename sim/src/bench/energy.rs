//! A proxy for the energy of a token's linear steps: published energies of single operations, times how many there are.
//!
//! | operation | pJ |
//! |---|---|
//! | multiply INT8 / add INT32 | 0.2 / 0.1 |
//! | multiply FP32 / add FP32 | 3.7 / 0.9 |
//! | read 64 bits of an SRAM of 8 KB / of DRAM | 10 / 1,300 to 2,600 (1,300 is taken) |
//!
//! 45 nm, 0.9 V: M. Horowitz, "Computing's energy problem (and what we can do about it)", ISSCC 2014, pages 10 to 14;
//! docs/asic.md names where its table is quoted.
//!
//! It ranks designs. It leaves out registers, wires, control, the scan and the convolution, and no process of today
//! has these numbers.

use super::LinearWork;
use crate::dataflow::Step;
use serde::Serialize;

/// pJ of a multiplication and an addition.
const INT8: f64 = 0.2 + 0.1;
const FP32: f64 = 3.7 + 0.9;
/// pJ a byte.
const SRAM: f64 = 10.0 / 8.0;
const DRAM: f64 = 1300.0 / 8.0;

/// Energy of a linear step over all blocks, for one token, in µJ.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Energy {
    /// The step.
    pub step: Step,
    /// Multiplications, each with an addition.
    pub products: u64,
    /// Whether they are INT8 by INT8.
    pub integer: bool,
    /// Of the arithmetic.
    pub arithmetic: f64,
    /// Of the same arithmetic in FP32.
    pub in_fp32: f64,
    /// Of reading every weight once from an SRAM of 8 KB.
    pub weights_sram: f64,
    /// Of reading every weight once from DRAM.
    pub weights_dram: f64,
}

/// The energy of linear steps, each for one token.
pub fn energy(work: &[LinearWork]) -> Vec<Energy> {
    const MICRO: f64 = 1e-6;
    let of = |work: &LinearWork| {
        let (products, bytes) = (work.products as f64, work.bytes as f64);
        let own = if work.integer { INT8 } else { FP32 };
        Energy {
            step: work.step,
            products: work.products,
            integer: work.integer,
            arithmetic: products * own * MICRO,
            in_fp32: products * FP32 * MICRO,
            weights_sram: bytes * SRAM * MICRO,
            weights_dram: bytes * DRAM * MICRO,
        }
    };
    work.iter().map(of).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn energy_follows_the_operations_and_bytes() {
        let work = |integer, bytes| LinearWork {
            step: Step::InProj,
            products: 1_000_000,
            integer,
            bytes,
        };
        let found = energy(&[work(true, 1_000_000), work(false, 2_000_000)]);
        let near = |a: f64, b: f64| (a - b).abs() < 1e-9;
        assert!(near(found[0].arithmetic, 0.3) && near(found[0].in_fp32, 4.6));
        assert!(near(found[0].weights_sram, 1.25) && near(found[0].weights_dram, 162.5));
        assert!(near(found[1].arithmetic, 4.6) && near(found[1].weights_dram, 325.0));
    }
}
