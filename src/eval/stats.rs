//! Intervals and tests. Sources are named at each; `docs/eval.md` says what the output calls them.

use serde::{Deserialize, Deserializer, Serialize};
use statrs::distribution::{Binomial, ContinuousCDF, DiscreteCDF, Normal};

/// Two-sided level of every interval and test.
pub const ALPHA: f64 = 0.05;
/// Chance of finding a difference of the size stated as detectable.
pub const POWER: f64 = 0.8;

/// The standard normal's quantile.
pub fn z(p: f64) -> f64 {
    Normal::standard().inverse_cdf(p)
}

/// z at the level of the intervals: 1.96.
pub fn z_interval() -> f64 {
    z(1.0 - ALPHA / 2.0)
}

/// A number and what is known of it.
#[derive(Clone, Copy, Debug, PartialEq, Deserialize, Serialize)]
pub struct Estimate {
    /// The number.
    #[serde(deserialize_with = "or_nan")]
    pub value: f64,
    /// Its standard error; NaN (in JSON null) of one sample, which tells none.
    #[serde(deserialize_with = "or_nan")]
    pub stderr: f64,
    /// 95 % interval, lower end.
    #[serde(deserialize_with = "or_nan")]
    pub low: f64,
    /// 95 % interval, upper end.
    #[serde(deserialize_with = "or_nan")]
    pub high: f64,
}

/// A number that JSON has as null where it is not finite.
pub fn or_nan<'de, D: Deserializer<'de>>(from: D) -> Result<f64, D::Error> {
    Ok(Option::deserialize(from)?.unwrap_or(f64::NAN))
}

impl Estimate {
    /// With the normal interval.
    pub fn normal(value: f64, stderr: f64) -> Self {
        Self {
            value,
            stderr,
            low: value - z_interval() * stderr,
            high: value + z_interval() * stderr,
        }
    }
}

/// A share of `n`: Wilson's score interval (J. Am. Stat. Assoc. 22, 1927), and lm-eval's standard
/// error √(p(1−p)/(n−1)).
pub fn proportion(hits: usize, n: usize) -> Estimate {
    let (hits, n) = (hits as f64, n as f64);
    let (p, z2) = (hits / n, z_interval().powi(2));
    let middle = (hits + z2 / 2.0) / (n + z2);
    let half = z_interval() / (n + z2) * (hits * (n - hits) / n + z2 / 4.0).sqrt();
    Estimate {
        value: p,
        stderr: (p * (1.0 - p) / (n - 1.0)).sqrt(),
        // At 0 and at n one end is p itself; rounding must not move it past.
        low: (middle - half).clamp(0.0, p),
        high: (middle + half).clamp(p, 1.0),
    }
}

/// Σ values / Σ weights, with the standard error of a ratio by linearization. With weights of 1 it
/// is the mean and s/√n.
pub fn ratio(values: &[f64], weights: &[f64]) -> (f64, f64) {
    let n = values.len() as f64;
    let total: f64 = weights.iter().sum();
    let mean = values.iter().sum::<f64>() / total;
    let squares: f64 = (values.iter().zip(weights))
        .map(|(v, w)| (v - mean * w).powi(2))
        .sum();
    (mean, (squares * n / (n - 1.0)).sqrt() / total)
}

/// McNemar's exact test: the chance, with both kinds of discordant pairs equally likely, of a split
/// at least as uneven as `a_only` against `b_only`.
pub fn mcnemar_exact(a_only: usize, b_only: usize) -> f64 {
    let n = (a_only + b_only) as u64;
    if n == 0 {
        return 1.0;
    }
    let binomial = Binomial::new(0.5, n).expect("a half is a probability");
    (2.0 * binomial.cdf(a_only.min(b_only) as u64)).min(1.0)
}

/// Holm's step-down correction (Scand. J. Stat. 6, 1979): adjusted p-values in the given order.
pub fn holm(p: &[f64]) -> Vec<f64> {
    let mut order: Vec<usize> = (0..p.len()).collect();
    order.sort_by(|a, b| p[*a].total_cmp(&p[*b]));
    let mut adjusted = vec![0.0; p.len()];
    let mut so_far = 0.0f64;
    for (rank, i) in order.into_iter().enumerate() {
        so_far = so_far.max(p[i] * (p.len() - rank) as f64).min(1.0);
        adjusted[i] = so_far;
    }
    adjusted
}

/// Passages McNemar's test needs to find a difference in accuracy, when `discordant` of them come
/// out differently (Connor, Biometrics 43, 1987). A difference cannot exceed that share.
pub fn passages_needed(difference: f64, discordant: f64) -> Option<f64> {
    let d = difference.abs();
    let discordant = discordant.max(d);
    let top = z_interval() * discordant.sqrt() + z(POWER) * (discordant - d * d).sqrt();
    (d > 0.0).then(|| (top / d).powi(2).ceil())
}

/// The smallest difference in accuracy that `n` passages show, with that share of them discordant.
/// Never less than what the exact test needs at the least: 6 discordant pairs, all of one kind.
pub fn detectable_accuracy(n: usize, discordant: f64) -> Option<f64> {
    let enough = |d: f64| passages_needed(d, discordant).is_some_and(|needed| needed <= n as f64);
    let least = (1..).find(|k| 2.0 * 0.5f64.powi(*k) < ALPHA)?;
    let (mut low, mut high) = (0.0, 1.0);
    if !enough(high) {
        return None;
    }
    for _ in 0..60 {
        let middle = (low + high) / 2.0;
        match enough(middle) {
            true => high = middle,
            false => low = middle,
        }
    }
    let floor = f64::from(least) / n as f64;
    (floor <= 1.0).then_some(high.max(floor))
}

/// The smallest mean difference that samples with this standard error of it show.
pub fn detectable_mean(stderr: f64) -> f64 {
    (z_interval() + z(POWER)) * stderr
}

/// Samples needed to find a mean difference, when `n` of them gave this standard error of it.
pub fn samples_needed(difference: f64, stderr: f64, n: usize) -> Option<f64> {
    let needed = n as f64 * (detectable_mean(stderr) / difference).powi(2);
    (difference != 0.0 && needed.is_finite()).then(|| needed.ceil())
}

#[cfg(test)]
mod tests {
    use super::*;
    use approx::assert_relative_eq;
    use proptest::prelude::*;

    #[test]
    fn wilson_by_published_values() {
        // Newcombe, Stat. Med. 17 (1998), table I, method 3.
        for (hits, n, low, high) in [
            (81, 263, 0.2553, 0.3662),
            (15, 148, 0.0624, 0.1605),
            (0, 20, 0.0, 0.1611),
            (1, 29, 0.0061, 0.1718),
        ] {
            let found = proportion(hits, n);
            assert_relative_eq!(found.low, low, epsilon = 5e-5);
            assert_relative_eq!(found.high, high, epsilon = 5e-5);
        }
        // Almost five points at 100 samples.
        assert_relative_eq!(proportion(36, 100).stderr, 0.04824, epsilon = 5e-5);
    }

    #[test]
    fn mcnemar_by_hand() {
        assert_eq!(mcnemar_exact(0, 0), 1.0);
        assert_relative_eq!(mcnemar_exact(0, 5), 2.0 / 32.0, epsilon = 1e-12);
        assert_relative_eq!(mcnemar_exact(6, 0), 2.0 / 64.0, epsilon = 1e-12);
        // 2·(1 + 10 + 45) / 2¹⁰
        assert_relative_eq!(mcnemar_exact(2, 8), 112.0 / 1024.0, epsilon = 1e-12);
        assert_relative_eq!(mcnemar_exact(8, 2), 112.0 / 1024.0, epsilon = 1e-12);
        assert_eq!(mcnemar_exact(5, 5), 1.0);
    }

    #[test]
    fn holm_by_hand() {
        // 4·0.005, 3·0.01, 2·0.03, then no less than the one before.
        let found = holm(&[0.01, 0.04, 0.03, 0.005]);
        for (found, expected) in found.iter().zip([0.03, 0.06, 0.06, 0.02]) {
            assert_relative_eq!(*found, expected, epsilon = 1e-12);
        }
        assert_eq!(holm(&[0.9, 0.8]), [1.0, 1.0]);
        assert!(holm(&[]).is_empty());
    }

    #[test]
    fn ratio_of_equal_weights_is_the_mean() {
        // Mean 2, s² = 1, s/√3.
        let (mean, stderr) = ratio(&[1.0, 2.0, 3.0], &[1.0; 3]);
        assert_relative_eq!(mean, 2.0);
        assert_relative_eq!(stderr, (1.0f64 / 3.0).sqrt(), epsilon = 1e-12);
        // Values in proportion to weights: no error at all.
        assert_eq!(ratio(&[2.0, 6.0], &[1.0, 3.0]), (2.0, 0.0));
    }

    #[test]
    fn sizes_by_published_values() {
        // Discordant 0.2 and 0.1 of pairs, so 0.3 in all, difference 0.1:
        // (1.95996·√0.3 + 0.84162·√0.29)² / 0.01 = 233.2.
        assert_eq!(passages_needed(0.1, 0.3), Some(234.0));
        assert_eq!(passages_needed(-0.1, 0.3), Some(234.0));
        assert_eq!(passages_needed(0.0, 0.3), None);
        let found = detectable_accuracy(234, 0.3).unwrap();
        assert!((0.0995..=0.1).contains(&found), "{found}");
        // Too few discordant pairs for any test: the floor of six.
        assert_eq!(
            detectable_accuracy(1000, 0.0),
            detectable_accuracy(1000, 0.001)
        );
        assert!(detectable_accuracy(1000, 0.0).unwrap() >= 0.006);
        assert_eq!(detectable_accuracy(5, 0.5), None);
        // (1.95996 + 0.84162)² = 7.8489 times the variance over the difference squared.
        assert_eq!(samples_needed(0.1, 0.1, 100), Some(785.0));
        assert_eq!(samples_needed(0.0, 0.1, 100), None);
    }

    proptest! {
        #[test]
        fn holm_keeps_order_and_never_lowers(p in prop::collection::vec(0.0f64..=1.0, 0..12)) {
            let adjusted = holm(&p);
            for i in 0..p.len() {
                prop_assert!(adjusted[i] >= p[i] && adjusted[i] <= 1.0);
                for j in 0..p.len() {
                    prop_assert!(p[i] > p[j] || adjusted[i] <= adjusted[j]);
                }
            }
        }

        #[test]
        fn mcnemar_matches_its_sum(a in 0usize..40, b in 0usize..40) {
            let n = a + b;
            let choose = |k: usize| (0..k).fold(1.0, |c, i| c * (n - i) as f64 / (i + 1) as f64);
            let tail: f64 = (0..=a.min(b)).map(choose).sum::<f64>() * 0.5f64.powi(n as i32);
            prop_assert!((mcnemar_exact(a, b) - (2.0 * tail).min(1.0)).abs() < 1e-9);
        }

        #[test]
        fn intervals_hold_their_value(n in 2usize..500, share in 0.0f64..=1.0) {
            let hits = (share * n as f64) as usize;
            let e = proportion(hits, n);
            prop_assert!(0.0 <= e.low && e.low <= e.value && e.value <= e.high && e.high <= 1.0);
        }
    }
}
