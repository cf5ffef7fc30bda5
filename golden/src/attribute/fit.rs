//! The factor of a stale scale, from the data.

use scalescope_sim::error::Result;

/// Factors looked at first: every half octave from 1/16 to 16.
const OCTAVES: i32 = 4;
/// Points of a bracket.
const POINTS: usize = 5;

/// The best of a coarse grid: factor and value of `far`, which says how far off a factor is.
pub fn coarse(mut far: impl FnMut(f32) -> Result<f64>) -> Result<(f32, f64)> {
    let mut best = (1.0, f64::INFINITY);
    for half in (-2 * OCTAVES..=2 * OCTAVES).filter(|half| *half != 0) {
        let factor = (f64::from(half) / 2.0).exp2() as f32;
        let value = far(factor)?;
        if value < best.1 {
            best = (factor, value);
        }
    }
    Ok(best)
}

/// Narrows a bracket of `width` octaves on either side of `factor` by half, `rounds` times.
pub fn refine(
    factor: f32,
    mut width: f64,
    rounds: usize,
    mut far: impl FnMut(f32) -> Result<f64>,
) -> Result<(f32, f64)> {
    let mut best = (factor, far(factor)?);
    for _ in 0..rounds {
        let centre = f64::from(best.0).log2();
        let steps = (POINTS - 1) as f64;
        for i in (0..POINTS).filter(|i| 2 * i + 1 != POINTS) {
            let at = centre + width * (2.0 * i as f64 / steps - 1.0);
            let factor = at.exp2() as f32;
            let value = far(factor)?;
            if value < best.1 {
                best = (factor, value);
            }
        }
        width /= 2.0;
    }
    Ok(best)
}

/// Numbers of few digits near a factor, shortest first: what a person or a test writes.
pub fn round_numbers(factor: f32) -> Vec<f32> {
    let mut numbers: Vec<f32> = Vec::new();
    for digits in 1..=7 {
        let text = format!("{factor:.*e}", digits - 1);
        let number: f32 = text.parse().expect("a printed number reads back");
        let near = (number / factor - 1.0).abs() < 2e-3;
        if near && !numbers.contains(&number) {
            numbers.push(number);
        }
    }
    numbers
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_factor_is_found_in_a_distance_that_flattens() {
        for truth in [0.07f32, 0.8, 1.25, 1.7, 3.3, 14.0] {
            let far = |factor: f32| Ok(f64::from((factor / truth).ln().abs()).min(0.9));
            let (rough, _) = coarse(far).unwrap();
            let (factor, _) = refine(rough, 0.5, 22, far).unwrap();
            assert!((factor / truth - 1.0).abs() < 1e-5, "{factor} for {truth}");
            assert!(round_numbers(factor).contains(&truth), "{factor}");
        }
    }
}
