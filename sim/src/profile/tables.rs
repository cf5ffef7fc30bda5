//! The tables of a profile file, and how each changes a rule.

use super::unit::{ActivationGranularity, ConvGranularity, Granularity, ScaleGrid, StateScale};
use crate::arith::accumulate::{AccOverflow, Accumulator};
use crate::arith::fixed::Scaling;
use crate::arith::function::{
    Beyond, Form, Function, FunctionRule, FunctionUnitRule, Interpolation,
};
use crate::arith::requant::QuantRule;
use crate::arith::round::Rounding;
use crate::arith::saturate::Overflow;
use crate::error::{Result, SimError};
use serde::Deserialize;

/// A name of [`Rounding`]; `stochastic` takes the file's seed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(super) enum RoundingName {
    NearestTiesToEven,
    NearestTiesAway,
    HalfAwayByAdding,
    NearestTiesUp,
    Floor,
    Ceil,
    TowardZero,
    Stochastic,
}

impl RoundingName {
    pub(super) fn rule(self, seed: u32) -> Rounding {
        match self {
            RoundingName::NearestTiesToEven => Rounding::NearestTiesToEven,
            RoundingName::NearestTiesAway => Rounding::NearestTiesAway,
            RoundingName::HalfAwayByAdding => Rounding::HalfAwayByAdding,
            RoundingName::NearestTiesUp => Rounding::NearestTiesUp,
            RoundingName::Floor => Rounding::Floor,
            RoundingName::Ceil => Rounding::Ceil,
            RoundingName::TowardZero => Rounding::TowardZero,
            RoundingName::Stochastic => Rounding::Stochastic(seed),
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(super) enum ScalingName {
    F32,
    Fixed,
    PowerOfTwo,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(super) enum Steps {
    Single,
    Double,
}

/// Keys of `[requant]` and of `[requant.STEP]`.
macro_rules! requant {
    ($(#[$meta:meta])* $name:ident { $($step:ident),* }) => {
        $(#[$meta])*
        #[derive(Clone, Debug, Default, Deserialize)]
        #[serde(deny_unknown_fields)]
        pub(super) struct $name {
            pub(super) scaling: Option<ScalingName>,
            pub(super) multiplier_bits: Option<i64>,
            pub(super) rounding_steps: Option<Steps>,
            pub(super) first_rounding: Option<RoundingName>,
            pub(super) rounding: Option<RoundingName>,
            pub(super) overflow: Option<Overflow>,
            $( pub(super) $step: Option<Requant>, )*
        }

        impl $name {
            /// Changes a scaling and the rule after it.
            pub(super) fn apply(&self, key: &str, seed: u32, scaling: &mut Scaling, rule: Option<&mut QuantRule>) -> Result<()> {
                let (mut bits, mut first) = match *scaling {
                    Scaling::Fixed { bits, first } => (bits, first),
                    _ => (16, None),
                };
                if let Some(wanted) = self.multiplier_bits {
                    bits = within(&format!("{key}.multiplier_bits"), wanted, 8, 32)? as u8;
                }
                match self.rounding_steps {
                    Some(Steps::Single) => first = None,
                    Some(Steps::Double) => first = first.or(Some(Rounding::NearestTiesUp)),
                    None => {}
                }
                if let Some(rule) = self.first_rounding {
                    if first.is_none() || rule == RoundingName::Stochastic {
                        return Err(SimError::value(
                            format_args!("{key}.first_rounding"),
                            "a rule without a seed, beside rounding_steps = \"double\"",
                            format_args!("{rule:?}"),
                        ));
                    }
                    first = Some(rule.rule(seed));
                }
                match self.scaling {
                    Some(ScalingName::F32) => *scaling = Scaling::F32,
                    Some(ScalingName::PowerOfTwo) => *scaling = Scaling::PowerOfTwo,
                    Some(ScalingName::Fixed) => *scaling = Scaling::Fixed { bits, first },
                    None if matches!(scaling, Scaling::Fixed { .. }) => *scaling = Scaling::Fixed { bits, first },
                    None => {}
                }
                let fixed = matches!(scaling, Scaling::Fixed { .. });
                for (given, name) in [
                    (self.multiplier_bits.is_some(), "multiplier_bits"),
                    (self.rounding_steps.is_some(), "rounding_steps"),
                ] {
                    if given && !fixed {
                        return Err(SimError::value(
                            format_args!("{key}.{name}"),
                            "scaling = \"fixed\" beside it",
                            format_args!("scaling = {scaling:?}"),
                        ));
                    }
                }
                if let Some(rule) = rule {
                    if let Some(rounding) = self.rounding {
                        rule.rounding = rounding.rule(seed);
                    }
                    if let Some(overflow) = self.overflow {
                        rule.overflow = overflow;
                    }
                }
                Ok(())
            }
        }
    };
}

requant!(RequantTable {
    in_proj,
    x_proj,
    dt_proj,
    out_proj,
    conv,
    hadamard,
    scan
});
requant!(Requant {});

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Quantizer {
    pub(super) rounding: Option<RoundingName>,
    pub(super) overflow: Option<Overflow>,
}

/// Keys of `[accumulator]` and of `[accumulator.STEP]`.
macro_rules! accumulator {
    ($name:ident { $($step:ident),* }) => {
        #[derive(Clone, Debug, Default, Deserialize)]
        #[serde(deny_unknown_fields)]
        pub(super) struct $name {
            pub(super) bits: Option<i64>,
            pub(super) overflow: Option<AccOverflow>,
            $( pub(super) $step: Option<Register>, )*
        }

        impl $name {
            pub(super) fn apply(&self, key: &str, accumulator: &mut Accumulator) -> Result<()> {
                let bits = match self.bits {
                    Some(bits) => within(&format!("{key}.bits"), bits, 8, 64)? as u8,
                    None => accumulator.bits(),
                };
                let overflow = self.overflow.unwrap_or(accumulator.overflow());
                *accumulator = Accumulator::new(bits, overflow)?;
                Ok(())
            }
        }
    };
}

accumulator!(AccumulatorTable {
    in_proj,
    x_proj,
    dt_proj,
    out_proj,
    conv,
    scan
});
accumulator!(Register {});

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Weights {
    pub(super) bits: Option<i64>,
    pub(super) granularity: Option<Granularity>,
    pub(super) conv_granularity: Option<ConvGranularity>,
    pub(super) scales: Option<ScaleGrid>,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Activations {
    pub(super) granularity: Option<ActivationGranularity>,
    pub(super) scales: Option<ScaleGrid>,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Nonlinearity {
    pub(super) exp: Option<FunctionUnitTable>,
    pub(super) softplus: Option<FunctionUnitTable>,
    pub(super) silu: Option<FunctionUnitTable>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(super) enum FormName {
    Exact,
    Table,
    Polynomial,
    Shift,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct FunctionUnitTable {
    pub(super) form: Option<FormName>,
    pub(super) entries: Option<i64>,
    pub(super) interpolation: Option<Interpolation>,
    pub(super) segments: Option<i64>,
    pub(super) degree: Option<i64>,
    pub(super) input_bits: Option<i64>,
    pub(super) input_fraction: Option<i64>,
    pub(super) output_fraction: Option<i64>,
    pub(super) range: Option<[i64; 2]>,
    pub(super) beyond: Option<Beyond>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(super) enum OrderName {
    Sequential,
    KoggeStone,
    Chunked,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(super) enum StateName {
    F32,
    F16,
    Int8,
    Int16,
    Int24,
    Int32,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Scan {
    pub(super) order: Option<OrderName>,
    pub(super) block: Option<i64>,
    pub(super) state: Option<StateName>,
    pub(super) scale: Option<StateScale>,
    pub(super) headroom: Option<i64>,
    pub(super) guard: Option<i64>,
    pub(super) requantize_every: Option<i64>,
    pub(super) rounding: Option<RoundingName>,
    pub(super) overflow: Option<AccOverflow>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(super) enum HadamardName {
    F32,
    Integer,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Hadamard {
    pub(super) form: Option<HadamardName>,
    pub(super) bits: Option<i64>,
    pub(super) fraction: Option<i64>,
    pub(super) growth: Option<i64>,
}

pub(super) fn within(key: &str, value: i64, low: i64, high: i64) -> Result<i64> {
    match (low..=high).contains(&value) {
        true => Ok(value),
        false => Err(SimError::value(key, format_args!("{low} to {high}"), value)),
    }
}

/// A value that only means something beside another one.
pub(super) fn needs(key: &str, given: bool, holds: bool, other: &str) -> Result<()> {
    match given && !holds {
        true => Err(SimError::value(
            key,
            format_args!("{other} beside it"),
            "another",
        )),
        false => Ok(()),
    }
}

impl FunctionUnitTable {
    pub(super) fn rule(
        &self,
        function: Function,
        key: &str,
        before: FunctionRule,
    ) -> Result<FunctionRule> {
        let base = match before {
            FunctionRule::Unit(rule) => rule,
            FunctionRule::Exact => FunctionUnitRule {
                form: Form::Table {
                    entries: 256,
                    interpolation: Interpolation::Linear,
                },
                input_bits: 16,
                input_fraction: 11,
                output_fraction: 16,
                low: -16,
                high: if function == Function::Exp { 0 } else { 16 },
                beyond: Beyond::Asymptote,
            },
        };
        let form = self.form.unwrap_or(match (before, base.form) {
            (FunctionRule::Exact, _) => FormName::Exact,
            (_, Form::Table { .. }) => FormName::Table,
            (_, Form::Polynomial { .. }) => FormName::Polynomial,
            (_, Form::Shift) => FormName::Shift,
        });
        let key_of = |name: &str| format!("{key}.{name}");
        let unit = [
            ("input_bits", self.input_bits.is_some()),
            ("input_fraction", self.input_fraction.is_some()),
            ("output_fraction", self.output_fraction.is_some()),
            ("range", self.range.is_some()),
            ("beyond", self.beyond.is_some()),
        ];
        for (name, given) in unit {
            needs(
                &key_of(name),
                given,
                form != FormName::Exact,
                "form = \"table\", \"polynomial\" or \"shift\"",
            )?;
        }
        let table = form == FormName::Table;
        needs(
            &key_of("entries"),
            self.entries.is_some(),
            table,
            "form = \"table\"",
        )?;
        needs(
            &key_of("interpolation"),
            self.interpolation.is_some(),
            table,
            "form = \"table\"",
        )?;
        let polynomial = form == FormName::Polynomial;
        needs(
            &key_of("segments"),
            self.segments.is_some(),
            polynomial,
            "form = \"polynomial\"",
        )?;
        needs(
            &key_of("degree"),
            self.degree.is_some(),
            polynomial,
            "form = \"polynomial\"",
        )?;
        let number = |name: &str, given: Option<i64>, before: u32, low: i64, high: i64| {
            within(&key_of(name), given.unwrap_or(before.into()), low, high).map(|v| v as u32)
        };
        let form = match form {
            FormName::Exact => return Ok(FunctionRule::Exact),
            FormName::Table => {
                let (entries, interpolation) = match base.form {
                    Form::Table {
                        entries,
                        interpolation,
                    } => (entries, interpolation),
                    _ => (256, Interpolation::Linear),
                };
                Form::Table {
                    entries: number("entries", self.entries, entries, 1, 1 << 16)?,
                    interpolation: self.interpolation.unwrap_or(interpolation),
                }
            }
            FormName::Polynomial => {
                let (segments, degree) = match base.form {
                    Form::Polynomial { segments, degree } => (segments, degree),
                    _ => (16, 2),
                };
                Form::Polynomial {
                    segments: number("segments", self.segments, segments, 1, 1 << 16)?,
                    degree: number("degree", self.degree, degree.into(), 1, 3)? as u8,
                }
            }
            FormName::Shift => Form::Shift,
        };
        let [low, high] = self.range.unwrap_or([base.low.into(), base.high.into()]);
        let rule = FunctionUnitRule {
            form,
            input_bits: number("input_bits", self.input_bits, base.input_bits.into(), 4, 24)? as u8,
            input_fraction: number(
                "input_fraction",
                self.input_fraction,
                base.input_fraction.into(),
                0,
                23,
            )? as u8,
            output_fraction: number(
                "output_fraction",
                self.output_fraction,
                base.output_fraction.into(),
                4,
                24,
            )? as u8,
            low: within(&key_of("range[0]"), low, -256, 255)? as i32,
            high: within(&key_of("range[1]"), high, -255, 256)? as i32,
            beyond: self.beyond.unwrap_or(base.beyond),
        };
        rule.validate(function).map_err(|e| match e {
            SimError::Value {
                item,
                expected,
                found,
            } => SimError::value(key_of(&item), expected, found),
            other => other,
        })?;
        Ok(FunctionRule::Unit(rule))
    }
}
