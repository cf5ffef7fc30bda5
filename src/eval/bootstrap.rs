//! The paired bootstrap: samples are drawn with replacement, the same draw for every mode, so that
//! what a difficult passage costs all modes alike cancels.

use super::stats::{ALPHA, or_nan};
use rayon::prelude::*;
use scalescope_sim::random::SplitMix64;
use serde::{Deserialize, Serialize};

/// Resamples of each bootstrap.
pub const RESAMPLES: usize = 10_000;

/// Weighted means of every mode in every resample.
pub struct Resampled {
    modes: usize,
    samples: usize,
    /// `[RESAMPLES][modes]`.
    means: Vec<f64>,
}

/// What the bootstrap says of a difference of two modes.
#[derive(Clone, Copy, Debug, PartialEq, Deserialize, Serialize)]
pub struct PairedDifference {
    /// 95 % percentile interval, lower end; NaN of one sample.
    #[serde(deserialize_with = "or_nan")]
    pub low: f64,
    /// 95 % percentile interval, upper end.
    #[serde(deserialize_with = "or_nan")]
    pub high: f64,
    /// Share of resamples that stray from the difference by at least its own size.
    pub p: f64,
}

/// Resamples `values[mode][sample]` with `weights[sample]`; a mean is Σ values / Σ weights.
pub fn resample(values: &[Vec<f64>], weights: &[f64], seed: u64) -> Resampled {
    let (n, modes) = (weights.len(), values.len());
    // By sample, so that a draw touches one place in memory.
    let rows: Vec<f64> = (0..n)
        .flat_map(|i| values.iter().map(move |mode| mode[i]))
        .collect();
    let mut means = vec![0.0; RESAMPLES * modes];
    means
        .par_chunks_mut(modes.max(1))
        .enumerate()
        .for_each(|(r, means)| {
            // Each resample has a generator of its own: threads may take them in any order.
            let mut random = SplitMix64::of(SplitMix64::new(seed).next_u64(), r as u64);
            let mut weight = 0.0;
            for _ in 0..n {
                let i = random.below(n);
                weight += weights[i];
                for (mean, value) in means.iter_mut().zip(&rows[i * modes..]) {
                    *mean += value;
                }
            }
            means.iter_mut().for_each(|mean| *mean /= weight);
        });
    Resampled {
        modes,
        samples: n,
        means,
    }
}

impl Resampled {
    /// The difference `a − b`, which was `observed` in the sample itself.
    pub fn difference(&self, a: usize, b: usize, observed: f64) -> PairedDifference {
        // One sample is every resample of itself, and tells nothing of another.
        if self.samples < 2 {
            let (low, high, p) = (f64::NAN, f64::NAN, 1.0);
            return PairedDifference { low, high, p };
        }
        let mut differences: Vec<f64> = (self.means.chunks_exact(self.modes))
            .map(|means| means[a] - means[b])
            .collect();
        differences.sort_by(f64::total_cmp);
        let strays = (differences.iter())
            .filter(|d| (**d - observed).abs() >= observed.abs())
            .count();
        PairedDifference {
            low: quantile(&differences, ALPHA / 2.0),
            high: quantile(&differences, 1.0 - ALPHA / 2.0),
            p: (strays + 1) as f64 / (differences.len() + 1) as f64,
        }
    }
}

/// Linear interpolation between order statistics.
fn quantile(sorted: &[f64], q: f64) -> f64 {
    let place = q * (sorted.len() - 1) as f64;
    let (low, share) = (place.floor() as usize, place.fract());
    let high = (low + 1).min(sorted.len() - 1);
    sorted[low] + share * (sorted[high] - sorted[low])
}

#[cfg(test)]
mod tests {
    use super::super::stats::ratio;
    use super::*;
    use approx::assert_relative_eq;

    #[test]
    fn the_interval_is_that_of_the_central_limit() {
        let mut random = SplitMix64::new(5);
        let noise: Vec<f64> = (0..400)
            .map(|_| random.below(1000) as f64 / 1000.0)
            .collect();
        let shifted: Vec<f64> = noise.iter().map(|v| v * 1.5 + 0.1).collect();
        let weights = vec![1.0; 400];
        let differences: Vec<f64> = shifted.iter().zip(&noise).map(|(a, b)| a - b).collect();
        let (mean, stderr) = ratio(&differences, &weights);
        let resampled = resample(&[shifted, noise], &weights, 1);
        let found = resampled.difference(0, 1, mean);
        assert_relative_eq!(found.low, mean - 1.96 * stderr, epsilon = 0.1 * stderr);
        assert_relative_eq!(found.high, mean + 1.96 * stderr, epsilon = 0.1 * stderr);
        assert_relative_eq!(found.p, 1.0 / (RESAMPLES + 1) as f64);
    }

    #[test]
    fn equal_modes_differ_by_nothing() {
        let values = vec![vec![1.0, 2.0, 4.0]; 2];
        let found = resample(&values, &[1.0, 2.0, 1.0], 0).difference(0, 1, 0.0);
        assert_eq!((found.low, found.high, found.p), (0.0, 0.0, 1.0));
    }

    #[test]
    fn seeds_and_threads() {
        let values = vec![vec![1.0, 2.0, 4.0, 8.0], vec![1.5, 1.0, 4.5, 2.0]];
        let run = |seed, threads| {
            let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build();
            pool.unwrap()
                .install(|| resample(&values, &[1.0; 4], seed).means)
        };
        assert_eq!(run(7, 1), run(7, 3));
        assert_ne!(run(7, 1), run(8, 1));
    }
}
