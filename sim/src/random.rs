//! The one source of random numbers: SplitMix64, in integer arithmetic, the same on every machine
//! and in every version.

/// SplitMix64 (Steele, Lea, Flood, 2014), read at any position: output i of a generator whose state
/// starts at the seed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Stream(pub u64);

impl Stream {
    const GAMMA: u64 = 0x9e37_79b9_7f4a_7c15;

    /// 64 random bits.
    pub fn at(self, position: usize) -> u64 {
        let step = (position as u64).wrapping_add(1).wrapping_mul(Self::GAMMA);
        let mut z = self.0.wrapping_add(step);
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// A multiple of 2^-53 in [0, 1).
    pub fn uniform(self, position: usize) -> f64 {
        (self.at(position) >> 11) as f64 / (1u64 << 53) as f64
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_is_splitmix64() {
        // First outputs for seed 1234567, as published with the algorithm's reference code.
        let expected = [
            6_457_827_717_110_365_317,
            3_203_168_211_198_807_973,
            9_817_491_932_198_370_423,
        ];
        for (i, value) in expected.into_iter().enumerate() {
            assert_eq!(Stream(1_234_567).at(i), value);
        }
    }
}
