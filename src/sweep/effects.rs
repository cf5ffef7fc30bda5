//! What each value of each key costs, over the designs that have it.

use super::engine::Design;
use super::page::word;

/// A value of a key.
#[derive(Clone, Debug, PartialEq)]
pub struct Effect {
    /// The key.
    pub key: String,
    /// Its value.
    pub value: String,
    /// Designs that have it.
    pub designs: usize,
    /// The lowest perplexity of these.
    pub best: f64,
    /// Geometric mean of their perplexities.
    pub perplexity: f64,
    /// Mean KL from the float model.
    pub kl: f64,
    /// Mean agreement with it.
    pub agreement: f64,
}

/// Every value of every key, in the order of the designs, key by key.
pub fn effects(designs: &[Design]) -> Vec<Effect> {
    let mut effects = Vec::new();
    for key in designs.iter().take(1).flat_map(|d| d.values.keys()) {
        let mut values = Vec::new();
        for value in designs.iter().filter_map(|d| d.values.get(key)) {
            if !values.contains(&value) {
                values.push(value);
            }
        }
        for value in values {
            let having = || designs.iter().filter(|d| d.values.get(key) == Some(value));
            let count = having().count();
            let mean = |of: fn(&Design) -> f64| having().map(of).sum::<f64>() / count as f64;
            effects.push(Effect {
                key: key.clone(),
                value: word(value),
                designs: count,
                best: having().map(|d| d.perplexity).fold(f64::INFINITY, f64::min),
                perplexity: mean(|d| d.perplexity.ln()).exp(),
                kl: mean(|d| d.kl),
                agreement: mean(|d| d.agreement),
            });
        }
    }
    effects
}

#[cfg(test)]
mod tests {
    use super::*;
    use scalescope_sim::profile::cost::Cost;
    use serde_json::json;

    #[test]
    fn values_are_judged_over_the_designs_that_have_them() {
        let design = |a: i64, b: &str, perplexity: f64| Design {
            values: [("a".to_owned(), json!(a)), ("b".to_owned(), json!(b))]
                .into_iter()
                .collect(),
            profile_hash: String::new(),
            perplexity,
            log_perplexity_se: None,
            kl: perplexity / 10.0,
            agreement: 0.5,
            cost: Cost::default(),
        };
        let designs = [
            design(1, "x", 4.0),
            design(1, "y", 9.0),
            design(2, "x", 16.0),
        ];
        let found = effects(&designs);
        let rows: Vec<(&str, &str, usize, f64)> = (found.iter())
            .map(|e| (&e.key[..], &e.value[..], e.designs, e.best))
            .collect();
        assert_eq!(
            rows,
            [
                ("a", "1", 2, 4.0),
                ("a", "2", 1, 16.0),
                ("b", "x", 2, 4.0),
                ("b", "y", 1, 9.0)
            ]
        );
        assert!((found[0].perplexity - 6.0).abs() < 1e-12);
        assert!((found[2].perplexity - 8.0).abs() < 1e-12);
        assert!((found[0].kl - 0.65).abs() < 1e-12);
    }
}
