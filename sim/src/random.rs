//! Random numbers, in integer arithmetic: the same on every machine and in every version. What is drawn with them
//! stands in results, so neither generator may change.

const GAMMA: u64 = 0x9e37_79b9_7f4a_7c15;

/// SplitMix64 (Steele, Lea, Flood, OOPSLA 2014), read at any position: output i of a generator whose state
/// starts at the seed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stream(pub u64);

impl Stream {
    /// 64 random bits.
    pub fn at(self, position: usize) -> u64 {
        let step = (position as u64).wrapping_add(1).wrapping_mul(GAMMA);
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

/// SplitMix64, one output after another.
#[derive(Clone, Debug)]
pub struct SplitMix64(u64);

impl SplitMix64 {
    /// Starts from a seed.
    pub fn new(seed: u64) -> Self {
        Self(seed)
    }

    /// A generator of its own for each index of one seed.
    pub fn of(seed: u64, index: u64) -> Self {
        Self(seed ^ index.wrapping_mul(0xd134_2543_de82_ef95))
    }

    /// The next 64 bits.
    pub fn next_u64(&mut self) -> u64 {
        let bits = Stream(self.0).at(0);
        self.0 = self.0.wrapping_add(GAMMA);
        bits
    }

    /// A number below `n`, by multiplication; the bias is below n/2⁶⁴.
    pub fn below(&mut self, n: usize) -> usize {
        ((u128::from(self.next_u64()) * n as u128) >> 64) as usize
    }
}

/// Knuth's MMIX generator, of which the upper 31 bits are the good ones.
#[derive(Clone, Debug)]
pub struct Congruential(pub u64);

impl Congruential {
    /// The next 31 bits.
    pub fn next_u31(&mut self) -> u32 {
        self.0 = (self.0)
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) as u32
    }

    /// A number below `n`, by the remainder.
    pub fn below(&mut self, n: usize) -> usize {
        self.next_u31() as usize % n
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
        let mut one_by_one = SplitMix64::new(1_234_567);
        for (i, value) in expected.into_iter().enumerate() {
            assert_eq!(Stream(1_234_567).at(i), value);
            assert_eq!(one_by_one.next_u64(), value);
        }
    }

    #[test]
    fn numbers_below_are_even() {
        fn even(mut below: impl FnMut(usize) -> usize) {
            let mut counts = [0; 3];
            for _ in 0..30_000 {
                counts[below(3)] += 1;
            }
            let fair = counts.iter().all(|c| (9_700..10_300).contains(c));
            assert!(fair, "{counts:?}");
        }
        let mut own = SplitMix64::of(7, 3);
        even(|n| own.below(n));
        let mut congruential = Congruential(1);
        even(|n| congruential.below(n));
    }
}
