//! A quantizer in TOML, and which ones are refused.

use super::{Beyond, Quantizer, Segment, Until};
use crate::arith::requant::Quotient;
use crate::arith::round::Rounding;
use crate::arith::saturate::SEGMENTS;
use crate::error::{Result, SimError};
use serde::Deserialize;
use std::borrow::Cow;
use std::fmt::Display;

/// Bits of a code word at most.
const WORD: u32 = 16;

/// `[quantizer.NAME]` of a file: rounding, segments, and what becomes of the rest.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct QuantizerTable {
    quotient: Option<Quotient>,
    rounding: Option<Rounding>,
    segment: Vec<Segment>,
    beyond: Option<Beyond>,
}

impl QuantizerTable {
    /// The quantizer.
    ///
    /// # Errors
    ///
    /// Those of [`Quantizer::validate`].
    pub fn named(self, name: &str) -> Result<Quantizer> {
        let quantizer = Quantizer {
            name: Cow::Owned(name.to_owned()),
            quotient: self.quotient,
            rounding: self.rounding.unwrap_or(Rounding::HalfAwayByAdding),
            segments: Cow::Owned(self.segment),
            beyond: self.beyond.unwrap_or_default(),
        };
        quantizer.validate()?;
        Ok(quantizer)
    }
}

impl Quantizer {
    fn refused(&self, part: &str, expected: impl Display, found: impl Display) -> SimError {
        let item = format!("quantizer \"{}\": {part}", self.name);
        SimError::value(item, expected, found)
    }

    /// Checks that segments follow each other without a gap, that numbers are finite, and that words are narrow.
    ///
    /// # Errors
    ///
    /// The first thing that is wrong, by its segment (they count from 1).
    pub fn validate(&self) -> Result<()> {
        let most = SEGMENTS - 1;
        if self.rounding.lfsr().is_some() {
            let expected = "a rule without random bits";
            return Err(self.refused("rounding", expected, "stochastic"));
        }
        if self.segments.is_empty() || self.segments.len() > most {
            let expected = format!("1 to {most}");
            return Err(self.refused("segments", expected, self.segments.len()));
        }
        let mut end = 0.0;
        for (i, segment) in self.segments.iter().enumerate() {
            let last = i + 1 == self.segments.len();
            end = self.validate_segment(&format!("segment {}", i + 1), segment, end, last)?;
        }
        if let Beyond::Logarithmic { step, highest } = self.beyond {
            if !(step.is_finite() && step > 0.0) {
                return Err(self.refused("beyond, step", "a positive, finite number", step));
            }
            if !(0..=255).contains(&highest) {
                return Err(self.refused("beyond, highest", "0 to 255", highest));
            }
            if !matches!(
                self.segments.last().map(|s| s.until),
                Some(Until::Magnitude(_))
            ) {
                let expected = "a last segment that ends at a magnitude";
                return Err(self.refused("beyond", expected, "logarithmic"));
            }
        }
        let bits = self.word_bits();
        if bits > WORD {
            let expected = format!("at most {WORD} bits");
            return Err(self.refused("code word", expected, format_args!("{bits} bits")));
        }
        Ok(())
    }

    /// Checks a segment that begins at `start`, in units of s; returns where it ends.
    fn validate_segment(&self, part: &str, s: &Segment, start: f64, last: bool) -> Result<f64> {
        let refused = |what: &str, expected: String, found: String| {
            Err(self.refused(&format!("{part}{what}"), expected, found))
        };
        let [low, high] = s.codes;
        if !(s.step.is_finite() && s.step > 0.0) {
            return refused(
                ", step",
                "a positive, finite number".into(),
                s.step.to_string(),
            );
        }
        if !(s.offset.is_finite() && s.offset >= 0.0) {
            return refused(
                ", offset",
                "a finite number from 0 up".into(),
                s.offset.to_string(),
            );
        }
        if low >= high || high.unsigned_abs().max(low.unsigned_abs()) > 1 << WORD {
            let found = format!("{low}, {high}");
            return refused(
                ", codes",
                format!("a low and a higher code of {WORD} bits"),
                found,
            );
        }
        if low < 0 && s.offset != 0.0 {
            return refused(
                ", offset",
                "0 where codes have a sign".into(),
                s.offset.to_string(),
            );
        }
        // Where it ends, in units of s; a rounded code ends half a step after it.
        let end = match s.until {
            Until::End => f64::INFINITY,
            Until::Code(code) => f64::from(code) + 0.5,
            Until::Magnitude(edge) if !edge.is_finite() => {
                return refused(", until", "a finite number".into(), edge.to_string());
            }
            Until::Magnitude(edge) => edge,
        };
        let clamps = s.until == Until::End;
        if clamps != (last && self.beyond == Beyond::Clamp) {
            let expected = match clamps {
                true => "an end, since more follows",
                false => "none, since nothing follows",
            };
            return refused(", until", expected.into(), format!("{:?}", s.until));
        }
        if end <= start {
            let expected = format!("an end beyond {start} s: segments overlap");
            return refused(", until", expected, format!("{end} s"));
        }
        let (first, reach) = (
            s.offset + f64::from(low.max(0)) * s.step,
            s.offset + f64::from(high) * s.step,
        );
        if first > start + s.step {
            let expected = format!("a first value within a step of {start} s: there is a gap");
            return refused(", codes", expected, format!("{first} s"));
        }
        if !clamps && reach < end - s.step {
            let expected = format!("codes that reach {end} s: there is a gap");
            return refused(", codes", expected, format!("{reach} s"));
        }
        if clamps && reach <= start {
            let expected = format!("codes that reach beyond {start} s: segments overlap");
            return refused(", codes", expected, format!("{reach} s"));
        }
        Ok(end)
    }
}

#[cfg(test)]
mod tests {
    use super::super::QUANTIZERS;
    use super::*;

    fn read(text: &str) -> Result<Quantizer> {
        let table: QuantizerTable = toml::from_str(text).unwrap();
        table.named("mine")
    }

    #[test]
    fn built_in_quantizers_are_valid_and_their_words_have_these_bits() {
        let bits = |q: &Quantizer| {
            q.validate().unwrap();
            (q.name.to_string(), q.word_bits())
        };
        let bits: Vec<_> = QUANTIZERS.iter().map(bits).collect();
        let want = [
            ("int8", 8),
            ("int8-even", 8),
            ("keep", 9),
            ("keep-even", 9),
            ("found-scale", 9),
            ("second-scale-even", 9),
            ("quarter-steps", 9),
            ("half-steps-even", 9),
            ("log-tail", 10),
            ("three-segments", 10),
        ];
        assert_eq!(bits, want.map(|(name, bits)| (name.to_owned(), bits)));
    }

    #[test]
    fn a_built_in_quantizer_in_toml() {
        let text = "
            [[segment]]
            step = 0.25
            codes = [-127, 127]
            until = { magnitude = 8.0 }
            [beyond.logarithmic]
            step = 0.25
            highest = 255
        ";
        let mut mine = read(text).unwrap();
        mine.name = "log-tail".into();
        assert!(QUANTIZERS.contains(&mine));
    }

    #[test]
    fn what_is_refused() {
        let two = |first: &str, second: &str| {
            format!("beyond = \"keep\"\n[[segment]]\n{first}\n[[segment]]\n{second}")
        };
        let usual = "step = 1\ncodes = [-128, 127]\nuntil = { code = 127 }";
        for (text, part) in [
            (
                two(
                    "step = 0.25\ncodes = [-127, 127]\nuntil = { code = 127 }",
                    usual,
                ),
                "segment 1, codes",
            ),
            (
                two(
                    "step = 1\ncodes = [-128, 127]\nuntil = { code = 127 }",
                    usual,
                ),
                "segments overlap",
            ),
            (
                two(
                    "step = 0.25\ncodes = [-63, 63]\nuntil = { magnitude = inf }",
                    usual,
                ),
                "segment 1, until",
            ),
            (
                two("step = 0.25\ncodes = [-63, 63]", usual),
                "segment 1, until",
            ),
            (
                two(
                    "step = 0.25\ncodes = [-63, 63]\nuntil = { magnitude = 15.75 }",
                    "step = 1\ncodes = [20, 120]\nuntil = { magnitude = 120 }",
                ),
                "there is a gap",
            ),
            (
                two(
                    "step = nan\ncodes = [-63, 63]\nuntil = { magnitude = 15.75 }",
                    usual,
                ),
                "segment 1, step",
            ),
            (
                "[[segment]]\nstep = 0.0001\ncodes = [-40000, 40000]".into(),
                "code word",
            ),
            ("segment = []".into(), "segments"),
            (
                "rounding = { stochastic = 1 }\n[[segment]]\nstep = 1\ncodes = [-8, 7]".into(),
                "rounding",
            ),
        ] {
            let error = read(&text).unwrap_err().to_string();
            assert!(
                error.contains(part) && error.contains("mine"),
                "{text}: {error}"
            );
        }
    }
}
