//! A function of which only values are known: read off a dump, where no listed function fits.

/// Points for each value that is read off: more values than that would explain anything.
const POINTS: usize = 20;

/// A value that a function has, at a place, and how much it counts.
#[derive(Clone, Copy, Debug)]
pub struct Sample {
    /// Where.
    pub at: f32,
    /// The value there.
    pub value: f32,
    /// How much it counts beside others of the same place.
    pub weight: f32,
}

/// A function by its values.
#[derive(Clone, Debug, PartialEq)]
pub struct Measured {
    /// First and last place of a value, and the value: one after another.
    runs: Vec<(f32, f32, f32)>,
    /// Whether it goes in straight lines from value to value, and not in steps.
    lines: bool,
}

impl Measured {
    /// The function that gives the samples; `None` where it would need more than one value for `POINTS` of them,
    /// which is no function of the place.
    pub fn of(mut samples: Vec<Sample>) -> Option<Self> {
        samples.retain(|s| s.at.is_finite() && s.value.is_finite() && s.weight > 0.0);
        let most = samples.len() / POINTS;
        if most < 4 {
            return None;
        }
        samples.sort_by(|a, b| a.at.total_cmp(&b.at));
        let steps = runs(samples.chunk_by(|a, b| a.value == b.value));
        if steps.len() <= most {
            let lines = false;
            return Some(Self { runs: steps, lines });
        }
        // As many values as places, of few places; of many places straight lines.
        let places = runs(samples.chunk_by(|a, b| a.at == b.at));
        let lines = places.len() > most;
        let runs = match lines {
            false => places,
            true => runs(samples.chunks(POINTS)),
        };
        Some(Self { runs, lines })
    }

    /// How many values it has.
    pub fn values(&self) -> usize {
        self.runs.len()
    }

    /// The function whose every value is known by many elements: one for each place.
    pub fn of_places(mut samples: Vec<Sample>) -> Option<Self> {
        samples.retain(|s| s.at.is_finite() && s.value.is_finite() && s.weight > 0.0);
        samples.sort_by(|a, b| a.at.total_cmp(&b.at));
        let runs = runs(samples.chunk_by(|a, b| a.at == b.at));
        (runs.len() >= 4).then_some(Self { runs, lines: false })
    }

    /// Some of its values, each over what it should be.
    pub fn over(&self, expected: impl Fn(f32) -> f32) -> String {
        let step = (self.runs.len() / 4).max(1);
        let some = self.runs.iter().step_by(step).take(4);
        let some: Vec<String> = some
            .map(|(at, _, value)| format!("{:.4} times as large at {at:.4}", value / expected(*at)))
            .collect();
        some.join(", ")
    }

    /// At a place.
    pub fn at(&self, at: f32) -> f32 {
        if self.lines {
            let middle = |run: &(f32, f32, f32)| 0.5 * (run.0 + run.1);
            let next = self.runs.partition_point(|run| middle(run) < at);
            // Beyond either end the last line goes on.
            let next = next.clamp(1, self.runs.len() - 1);
            let (below, above) = (&self.runs[next - 1], &self.runs[next]);
            let share = (at - middle(below)) / (middle(above) - middle(below));
            return below.2 + share * (above.2 - below.2);
        }
        let next = self.runs.partition_point(|run| run.1 < at);
        let below = next.checked_sub(1).map(|i| &self.runs[i]);
        match (below, self.runs.get(next)) {
            (Some(below), Some(above)) if at < above.0 && above.0 - at > at - below.1 => below.2,
            (_, Some(above)) => above.2,
            (below, None) => below.map_or(f32::NAN, |run| run.2),
        }
    }

    /// Whether no value is more than a code's step away from its places, but where these lie beyond the ends of eight
    /// bits: it rounds, and does nothing else.
    pub fn rounds(&self, step: f32) -> bool {
        let near = |at: f32, value: f32| {
            let ends = value.abs() >= 126.5 * step && at * value > 0.0 && at.abs() >= value.abs();
            ends || (at - value).abs() <= 1.001 * step
        };
        let run = |run: &(f32, f32, f32)| near(run.0, run.2) && near(run.1, run.2);
        !self.lines && self.runs.iter().all(run)
    }

    /// Some of its values, in words.
    pub fn words(&self) -> String {
        let (first, last) = (self.runs[0].0, self.runs[self.runs.len() - 1].1);
        let whole = [-8.0f32, -4.0, -2.0, -1.0, 0.0, 1.0, 2.0, 4.0, 8.0];
        let within = whole.into_iter().filter(|v| (first..=last).contains(v));
        let values: Vec<String> = within
            .map(|v| format!("{:.4} at {v}", self.at(v)))
            .collect();
        values.join(", ")
    }
}

/// First and last place and mean value of each part.
fn runs<'a>(parts: impl Iterator<Item = &'a [Sample]>) -> Vec<(f32, f32, f32)> {
    parts
        .map(|part| {
            let (sum, weight) = part.iter().fold((0.0f64, 0.0f64), |(sum, weight), s| {
                let own = f64::from(s.weight);
                (sum + own * f64::from(s.value), weight + own)
            });
            (part[0].at, part[part.len() - 1].at, (sum / weight) as f32)
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn samples(of: impl Fn(usize, f32) -> f32) -> Vec<Sample> {
        samples_of(4096, of)
    }

    fn samples_of(count: usize, of: impl Fn(usize, f32) -> f32) -> Vec<Sample> {
        let at = |i: usize| (i * 7919 % count) as f32 * 16.0 / count as f32 - 8.0;
        let sample = |i| Sample {
            at: at(i),
            value: of(i, at(i)),
            weight: 1.0,
        };
        (0..count).map(sample).collect()
    }

    #[test]
    fn steps_and_lines_are_read_off_and_noise_is_not() {
        let steps = Measured::of(samples(|_, v| (4.0 * v).floor())).unwrap();
        assert!(!steps.lines && !steps.rounds(1.0));
        let floors = Measured::of(samples(|_, v| v.floor())).unwrap();
        assert!(floors.rounds(1.0) && !floors.rounds(0.5));
        // What lies beyond the ends is no rounding where it has the other end's value.
        let saturates = |_, v: f32| (32.0 * v).round().clamp(-128.0, 127.0) / 32.0;
        let ends = Measured::of(samples_of(8192, saturates));
        assert!(ends.unwrap().rounds(1.0 / 32.0));
        let wrong = Measured::of(samples(|_, v| if v < 0.0 { 127.0 / 32.0 } else { 0.0 }));
        assert!(!wrong.unwrap().rounds(1.0 / 32.0));
        for sample in samples(|_, v| (4.0 * v).floor()) {
            assert_eq!(steps.at(sample.at), sample.value);
        }
        let lines = Measured::of(samples(|_, v| v * v)).unwrap();
        assert!(lines.lines);
        for sample in samples(|_, v| v * v) {
            let off = (lines.at(sample.at) - sample.value).abs();
            assert!(off < 0.3, "{off} at {}", sample.at);
        }
        // What is no function of the place is not explained by one.
        let noise = |i: usize, _| (i * 7919 % 101) as f32;
        let none = Measured::of(samples(noise)).unwrap();
        let near = |s: &Sample| (none.at(s.at) - s.value).abs() < 1.0;
        assert!(samples(noise).iter().filter(|s| near(s)).count() < 400);
    }
}
