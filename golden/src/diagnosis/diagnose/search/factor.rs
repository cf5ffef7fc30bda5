//! The factor of a stale scale, from the data.

use scalescope_sim::error::Result;

/// Points of a bracket.
const POINTS: usize = 5;

/// Octaves of the factors that are looked at first, on either side of one: finer near it, since a scale that
/// is one percent off shows in few codes.
const OCTAVES: [f64; 12] = [
    0.004, 0.012, 0.03, 0.06, 0.12, 0.22, 0.36, 0.6, 1.0, 1.6, 2.6, 4.0,
];

/// A factor between its neighbours of the grid.
#[derive(Clone, Copy, Debug)]
pub struct Bracket {
    /// The best of the grid.
    pub factor: f32,
    /// The distance to the next one, in octaves.
    pub width: f64,
    /// How far off it is.
    pub value: f64,
}

/// Octaves between the factors of a dense grid.
const DENSE: f64 = 0.04;

/// The best of a coarse grid; `far` says how far off a factor is.
pub fn coarse(far: &mut dyn FnMut(f32) -> Result<f64>) -> Result<Bracket> {
    of_grid(&OCTAVES, far)
}

/// The best of a dense grid.
pub fn dense(far: &mut dyn FnMut(f32) -> Result<f64>) -> Result<Bracket> {
    let octaves: Vec<f64> = (1..=100).map(|i| DENSE * f64::from(i)).collect();
    of_grid(&octaves, far)
}

fn of_grid(octaves: &[f64], far: &mut dyn FnMut(f32) -> Result<f64>) -> Result<Bracket> {
    let mut best = Bracket {
        factor: 1.0,
        width: 1.0,
        value: f64::INFINITY,
    };
    for (i, octave) in octaves.iter().enumerate() {
        let next = octaves.get(i + 1).map_or(1.0, |next| next - octave);
        for log in [*octave, -octave] {
            let factor = log.exp2() as f32;
            let value = far(factor)?;
            if value < best.value {
                best = Bracket {
                    factor,
                    width: next,
                    value,
                };
            }
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

/// A factor, and those up to some last places beside it, the nearest first.
pub fn neighbours(factor: f32, places: usize) -> Vec<f32> {
    let (mut below, mut above, mut all) = (factor, factor, vec![factor]);
    for _ in 0..places {
        (below, above) = (below.next_down(), above.next_up());
        all.extend([below, above]);
    }
    all
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_factor_is_found_in_a_distance_that_flattens() {
        for truth in [0.07f32, 0.8, 1.01, 0.97, 1.25, 1.7, 3.3, 14.0] {
            let far = |factor: f32| Ok(f64::from((factor / truth).ln().abs()).min(0.9));
            for grid in [coarse, dense] {
                let rough = grid(&mut |factor| far(factor)).unwrap();
                let (factor, _) = refine(rough.factor, rough.width, 22, far).unwrap();
                assert!((factor / truth - 1.0).abs() < 1e-5, "{factor} for {truth}");
                assert!(round_numbers(factor).contains(&truth), "{factor}");
            }
        }
    }
}
