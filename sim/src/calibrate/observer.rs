//! Observers: how the samples' values of one tensor become its w_max, and the scale w_max / 127.

use crate::isa::{Kernel, dispatch};

/// The least w_max of a minmax observer.
const LEAST_ABSMAX: f32 = 1e-5;
/// How far a percentile observer moves toward each further sample.
const PERCENTILE_RATE: f32 = 0.01;

/// How the samples' values of one tensor become its w_max; the scale is w_max / 127.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Observer {
    /// The largest |x| of all samples: nothing that was seen saturates.
    MinMax,
    /// The α-quantile of |x|, from the first sample's, a hundredth of the way to each further
    /// sample's: outliers saturate, and the first sample weighs most.
    Percentile {
        /// The quantile, between 0 and 1.
        alpha: f32,
    },
}

impl Observer {
    /// The percentile observer of the reference.
    pub const PERCENTILE: Observer = Observer::Percentile { alpha: 0.9995 };

    /// The share of the values it sees that its scale clips: none, or what lies above the quantile.
    pub fn clips(self) -> f64 {
        match self {
            Observer::MinMax => 0.0,
            // Of the decimal that was meant, 0.9995, and not of its f32.
            Observer::Percentile { alpha } => (1e6 * (1.0 - f64::from(alpha))).round() / 1e6,
        }
    }

    /// One sample's statistic. `None` if a value is NaN or infinite.
    pub fn statistic(self, values: &[f32]) -> Option<f32> {
        let absmax = dispatch(AbsMax { values });
        match self {
            _ if !absmax.is_finite() => None,
            Observer::MinMax => Some(absmax.max(LEAST_ABSMAX)),
            Observer::Percentile { alpha } => Some(quantile_abs(values, alpha)),
        }
    }

    /// w_max after one more sample.
    pub fn fold(self, w_max: Option<f32>, statistic: f32) -> f32 {
        match (self, w_max) {
            (_, None) => statistic,
            (Observer::MinMax, Some(w_max)) => w_max.max(statistic),
            (Observer::Percentile { .. }, Some(w_max)) => {
                w_max + PERCENTILE_RATE * (statistic - w_max)
            }
        }
    }
}

/// Largest |x|, and NaN if any is NaN.
struct AbsMax<'a> {
    values: &'a [f32],
}

impl Kernel for AbsMax<'_> {
    type Output = f32;

    #[inline(always)]
    fn run(self) -> f32 {
        // Without their signs, floats are ordered like their bits, and NaN lies above infinity.
        let bits = self.values.iter().map(|v| v.to_bits() & 0x7fff_ffff);
        f32::from_bits(bits.fold(0, u32::max))
    }
}

/// The α-quantile of |x| with linear interpolation, every operation in f32 as `torch.quantile` has
/// it: rank α ⊗ (n − 1), then `lerp` between the two neighbours in order. Values must not be NaN.
///
/// # Panics
///
/// If there are no values.
pub fn quantile_abs(values: &[f32], alpha: f32) -> f32 {
    let last = values.len() - 1;
    let rank = alpha * last as f32;
    let below = (rank.floor() as usize).min(last);
    let weight = rank - rank.floor();
    let mut bits: Vec<u32> = values.iter().map(|v| v.to_bits() & 0x7fff_ffff).collect();
    let (_, low, above) = bits.select_nth_unstable(below);
    let low = f32::from_bits(*low);
    let high = above.iter().min().map_or(low, |bits| f32::from_bits(*bits));
    if weight < 0.5 {
        low + weight * (high - low)
    } else {
        high - (high - low) * (1.0 - weight)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn quantiles_by_hand() {
        let values = [-3.0, 1.0, 2.0, -0.5];
        for (alpha, quantile) in [
            (1.0, 3.0),
            (0.5, 1.5),       // rank 1.5
            (0.75, 2.25),     // rank 2.25
            (1.0 / 3.0, 1.0), // rank 1
            (0.125, 0.6875),  // rank 0.375
        ] {
            assert_eq!(quantile_abs(&values, alpha), quantile, "{alpha}");
        }
        assert_eq!(quantile_abs(&[-7.0], 0.9995), 7.0);
        // 0.9995 of the way from 0 to 10,000, as f32 has the product.
        let ramp: Vec<f32> = (0..=10_000).rev().map(|v| v as f32).collect();
        assert_eq!(quantile_abs(&ramp, 0.9995), 0.9995 * 10_000.0);
    }

    #[test]
    fn observers_by_hand() {
        let fold = |observer: Observer, samples: &[&[f32]]| {
            samples.iter().fold(None, |w_max, values| {
                Some(observer.fold(w_max, observer.statistic(values).unwrap()))
            })
        };
        let samples: [&[f32]; 3] = [&[0.5, -2.0], &[3.0, 3.0], &[-1.0, 1.0]];
        assert_eq!(fold(Observer::MinMax, &samples), Some(3.0));
        assert_eq!(fold(Observer::MinMax, &[&[0.0], &[1e-7]]), Some(1e-5));
        // Medians 1.25, 3 and 1: 1.25 + 0.01 · 1.75 = 1.2675, less 0.01 · 0.2675.
        let median = fold(Observer::Percentile { alpha: 0.5 }, &samples).unwrap();
        assert!((median - 1.264_825).abs() < 2e-7, "{median}");
        for bad in [f32::NAN, f32::INFINITY, -f32::INFINITY] {
            assert_eq!(Observer::MinMax.statistic(&[1.0, bad, 2.0]), None);
            assert_eq!(Observer::PERCENTILE.statistic(&[1.0, bad, 2.0]), None);
        }
    }

    proptest! {
        #[test]
        fn a_quantile_lies_between_its_neighbours(
            values in prop::collection::vec(-1e6f32..1e6, 1..200),
            alpha in 0.0f32..=1.0,
        ) {
            let mut sorted: Vec<f32> = values.iter().map(|v| v.abs()).collect();
            sorted.sort_by(f32::total_cmp);
            let rank = alpha * (values.len() - 1) as f32;
            let q = quantile_abs(&values, alpha);
            prop_assert!(q >= sorted[rank.floor() as usize]);
            prop_assert!(q <= sorted[rank.ceil() as usize]);
        }
    }
}
