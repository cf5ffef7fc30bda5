//! `name@key=value,…` to a [`Fault`].

use super::{
    Defect, FAULTS, Fault, FaultModel, FourBitDefect, RoundingRule, ScaleSite, ScanParameter,
    Values, WeightScale, weight_scale_sites,
};
use crate::arith::accumulate::{AccOverflow, Accumulator};
use crate::dataflow::Step;
use crate::error::{Result, SimError};
use crate::model::ScaleKey;
use crate::plan::ScaleUse;
use crate::profile::QuantizerRule;
use crate::trace::TracePoint;
use std::str::FromStr;

impl FromStr for Fault {
    type Err = SimError;

    fn from_str(text: &str) -> Result<Self> {
        let (name, rest) = text.split_once('@').unwrap_or((text, ""));
        let Some(model) = FAULTS.iter().find(|model| model.name == name) else {
            let known: Vec<&str> = FAULTS.iter().map(|model| model.name).collect();
            return Err(SimError::unknown("fault", &known, name));
        };
        let given = Parameters::parse(model, rest)?;
        let layer = match given.text("layer")? {
            "all" => None,
            number => Some(given.number("layer", number)?),
        };
        let defect = match model.name {
            "conv-double-input-scale" => Defect::ConvDoubleInputScale,
            "conv-history-loss" => Defect::ConvHistoryLoss,
            "hadamard-wrap" => Defect::HadamardWrap,
            "swapped-bc" => Defect::SwappedBc,
            "stale-scale" => given.stale_scale()?,
            "permuted-scales" => Defect::FourBit {
                site: given.one_of("site", Step::FOUR_BIT, Step::name)?,
                what: FourBitDefect::ScaleOrder(given.one_of(
                    "scales",
                    WeightScale::ALL,
                    WeightScale::name,
                )?),
            },
            "nibble-order" => Defect::FourBit {
                site: given.one_of("site", Step::FOUR_BIT, Step::name)?,
                what: FourBitDefect::WordOrder,
            },
            "missing-scale" => Defect::MissingScale {
                site: given.one_of("site", ScanParameter::ALL, ScanParameter::name)?,
            },
            "transposed" => Defect::Transposed {
                site: given.one_of("site", TracePoint::buffers(), TracePoint::name)?,
            },
            "rounding" => given.rounding()?,
            _ => Defect::NarrowAccumulator {
                site: given.one_of("site", Step::SUMS, Step::name)?,
                register: given.register()?,
            },
        };
        Ok(Fault { layer, defect })
    }
}

/// The parameters of a fault as given, checked to be the model's.
struct Parameters<'a> {
    model: &'static FaultModel,
    pairs: Vec<(&'a str, &'a str)>,
}

impl<'a> Parameters<'a> {
    fn parse(model: &'static FaultModel, text: &'a str) -> Result<Self> {
        let mut pairs: Vec<(&str, &str)> = Vec::new();
        for part in text.split(',').filter(|part| !part.is_empty()) {
            let bad = |found: &str| {
                let known: Vec<&str> = model.parameters.iter().map(|p| p.name).collect();
                let item = format!("fault {}", model.name);
                let expected = format!("parameters {}, each once", known.join(", "));
                SimError::value(item, expected, found)
            };
            let (key, value) = part.split_once('=').ok_or_else(|| bad(part))?;
            let twice = pairs.iter().any(|(other, _)| *other == key);
            if twice || model.parameters.iter().all(|p| p.name != key) {
                return Err(bad(part));
            }
            pairs.push((key, value));
        }
        Ok(Self { model, pairs })
    }

    fn item(&self, name: &str) -> String {
        format!("fault {}, {name}", self.model.name)
    }

    /// What is allowed, for errors.
    fn values(&self, name: &str) -> Values {
        let mut parameters = self.model.parameters.iter();
        let parameter = parameters.find(|p| p.name == name);
        parameter.expect("the model has the parameter").values
    }

    /// The text of a parameter, or its default.
    fn text(&self, name: &str) -> Result<&'a str> {
        let given = self.pairs.iter().find(|(key, _)| *key == name);
        let default = || self.model.parameters.iter().find(|p| p.name == name);
        match given {
            Some((_, value)) => Ok(value),
            None => default().and_then(|p| p.default).ok_or_else(|| {
                let expected = self.values(name);
                SimError::value(self.item(name), expected, "nothing")
            }),
        }
    }

    fn number<T: FromStr>(&self, name: &str, text: &str) -> Result<T> {
        let wrong = |_| SimError::value(self.item(name), self.values(name), text);
        text.parse().map_err(wrong)
    }

    fn one_of<T: Copy>(
        &self,
        name: &str,
        all: impl IntoIterator<Item = T>,
        name_of: fn(T) -> &'static str,
    ) -> Result<T> {
        let text = self.text(name)?;
        let all: Vec<T> = all.into_iter().collect();
        let found = all.iter().find(|site| name_of(**site) == text);
        found.copied().ok_or_else(|| {
            let known: Vec<&str> = all.iter().map(|site| name_of(*site)).collect();
            SimError::value(
                self.item(name),
                self.values(name),
                SimError::like(&known, text),
            )
        })
    }

    fn stale_scale(&self) -> Result<Defect> {
        let text = self.text("site")?;
        let of_weight = weight_scale_sites().find(|(step, scale)| scale.of(*step) == text);
        if let Some((site, scale)) = of_weight {
            let what = FourBitDefect::StaleScale(scale, self.factor()?);
            return Ok(Defect::FourBit { site, what });
        }
        Ok(Defect::StaleScale {
            site: self.scale_site()?,
            factor: self.factor()?,
        })
    }

    fn scale_site(&self) -> Result<ScaleSite> {
        let text = self.text("site")?;
        let key = ScaleKey::ALL.into_iter().find(|key| key.name() == text);
        let scale_use = ScaleUse::ALL.into_iter().find(|u| u.name() == text);
        match (key, scale_use) {
            (Some(key), _) => Ok(ScaleSite::Key(key)),
            (None, Some(scale_use)) => Ok(ScaleSite::Use(scale_use)),
            (None, None) => Err(SimError::value(
                self.item("site"),
                self.values("site"),
                text,
            )),
        }
    }

    fn factor(&self) -> Result<f32> {
        let text = self.text("factor")?;
        let factor: f32 = self.number("factor", text)?;
        match factor.is_normal() && factor > 0.0 {
            true => Ok(factor),
            false => Err(SimError::value(
                self.item("factor"),
                "a positive number",
                text,
            )),
        }
    }

    fn rounding(&self) -> Result<Defect> {
        let site = self.one_of("site", QuantizerRule::ALL, QuantizerRule::name)?;
        let rule = self.one_of("rule", RoundingRule::ALL, RoundingRule::name)?;
        if rule.is_quotient() && !site.has_quotient() {
            let expected = "half-away or half-even, as values arrive in units of the grid";
            return Err(SimError::value(
                self.item(&format!("rule at {}", site.name())),
                expected,
                rule.name(),
            ));
        }
        Ok(Defect::Rounding { site, rule })
    }

    fn register(&self) -> Result<Accumulator> {
        let text = self.text("bits")?;
        let bits: u8 = self.number("bits", text)?;
        if !(8..=32).contains(&bits) {
            return Err(SimError::value(self.item("bits"), "8 to 32", text));
        }
        let overflow = match self.text("overflow")? {
            "wrap" => AccOverflow::Wrap,
            "saturate" => AccOverflow::Saturate,
            other => {
                let item = self.item("overflow");
                return Err(SimError::value(item, self.values("overflow"), other));
            }
        };
        Accumulator::new(bits, overflow)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_example_parses_and_prints_as_it_was() {
        for model in FAULTS {
            let fault: Fault = model.example.parse().unwrap();
            assert_eq!(fault.defect.name(), model.name);
            assert_eq!(fault.to_string(), model.example);
            if model.parameters.iter().all(|p| p.default.is_some()) {
                let bare: Fault = model.name.parse().unwrap();
                assert_eq!(bare.layer, None);
                assert_eq!(bare.to_string().parse::<Fault>().unwrap(), bare);
            }
        }
    }

    #[test]
    fn refusals_name_what_is_allowed() {
        for (text, words) in [
            ("stale", "stale-scale"),
            ("stale-scale", "x_proj_input"),
            ("stale-scale@site=x_proj_input", "factor"),
            ("stale-scale@site=x_proj_input,factor=0", "positive"),
            ("stale-scale@site=x_proj_input,factor=nan", "positive"),
            ("stale-scale@site=conv,factor=2", "conv_in"),
            ("stale-scale@site=in_proj_group,factor=-1", "positive"),
            ("permuted-scales@site=dt_proj", "in_proj, x_proj, out_proj"),
            ("permuted-scales@scales=rows", "group, channel"),
            ("nibble-order@scales=group", "parameters layer, site"),
            ("swapped-bc@layer=x", "a block, or all"),
            ("swapped-bc@layer=1,layer=2", "each once"),
            ("swapped-bc@site=conv", "parameters layer"),
            ("hadamard-wrap@", ""),
            ("transposed@site=logits", "x_proj_out"),
            ("rounding@site=x_proj_out", "half-away or half-even"),
            ("narrow-accumulator@bits=40", "8 to 32"),
            ("narrow-accumulator@overflow=trap", "wrap, saturate"),
        ] {
            match text.parse::<Fault>() {
                Ok(fault) => assert_eq!(words, "", "{text} is {fault}"),
                Err(error) => {
                    let error = error.to_string();
                    assert!(
                        !words.is_empty() && error.contains(words),
                        "{text}: {error}"
                    );
                    assert_eq!(error.lines().count(), 1);
                }
            }
        }
    }
}
