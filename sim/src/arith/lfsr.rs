//! The random bits of stochastic rounding: a linear feedback shift register whose state can be had
//! at any position, so that results depend on where a value stands and not on who computes it.

/// A 32-bit Galois register, x^32 + x^22 + x^2 + x + 1 (feedback `0x8020_0003`), one step a value:
/// `s ← (s >> 1) ^ (feedback if s is odd)`. Its period is 2^32 − 1. Position 0 has the seed itself; a
/// seed of 0, where the register would stay, stands for 1.
///
/// A quantizer has a register of its own, which starts with the seed at the first value of each
/// call: a position is `row · columns + column` of the tensor it makes, rows counted from the first
/// token of a prefill, or 0 in decode.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Lfsr(u32);

/// The taps.
const FEEDBACK: u32 = 0x8020_0003;

/// The register after 2^k steps from each single bit.
const JUMPS: [[u32; 32]; 48] = jumps();

const fn step(state: u32) -> u32 {
    (state >> 1) ^ (FEEDBACK & (state & 1).wrapping_neg())
}

const fn apply(columns: &[u32; 32], state: u32) -> u32 {
    let (mut out, mut bit) = (0, 0);
    while bit < 32 {
        out ^= columns[bit] & (state >> bit & 1).wrapping_neg();
        bit += 1;
    }
    out
}

const fn jumps() -> [[u32; 32]; 48] {
    let mut all = [[0; 32]; 48];
    let mut bit = 0;
    while bit < 32 {
        all[0][bit] = step(1 << bit);
        bit += 1;
    }
    let mut k = 1;
    while k < 48 {
        let mut bit = 0;
        while bit < 32 {
            all[k][bit] = apply(&all[k - 1], all[k - 1][bit]);
            bit += 1;
        }
        k += 1;
    }
    all
}

impl Lfsr {
    /// The register at position 0.
    pub fn new(seed: u32) -> Self {
        Self(if seed == 0 { 1 } else { seed })
    }

    /// The register `position` steps on, below 2^48.
    #[must_use]
    pub fn at(self, position: u64) -> Self {
        let mut state = self.0;
        for (k, columns) in JUMPS.iter().enumerate() {
            if position >> k & 1 == 1 {
                state = apply(columns, state);
            }
        }
        Self(state)
    }

    /// The 16 bits of this position, and the register at the next one.
    #[inline(always)]
    pub fn next_bits(&mut self) -> u16 {
        let bits = self.0 as u16;
        self.0 = step(self.0);
        bits
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn jumping_is_stepping() {
        for seed in [0, 1, 0xDEAD_BEEF] {
            let mut walked = Lfsr::new(seed);
            for position in 0..5000 {
                assert_eq!(Lfsr::new(seed).at(position), walked);
                let _ = walked.next_bits();
            }
        }
    }

    /// The period is exactly 2^32 − 1: back after that many steps, and not after it over any of its
    /// prime factors.
    #[test]
    fn the_period_is_maximal() {
        let start = Lfsr::new(1);
        let period = u64::from(u32::MAX);
        assert_eq!(start.at(period), start);
        for prime in [3, 5, 17, 257, 65_537] {
            assert_eq!(period % prime, 0);
            assert_ne!(start.at(period / prime), start, "{prime}");
        }
    }
}
