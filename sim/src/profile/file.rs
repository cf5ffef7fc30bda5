//! Profile files: TOML that changes rules of a profile. `docs/asic.md` lists the keys.
//!
//! A file's keys hold for prefill and decode, and for `cuda` and `torch` steps alike.

use super::tables::{
    AccumulatorTable, Activations, Hadamard, HadamardName, Nonlinearity, OrderName, Quantizer,
    RequantTable, Scan, StateName, Weights, needs, within,
};
use super::unit::{HadamardForm, ScanUnit, ScanUnitOrder, StateFormat, StateScale, Storage};
use super::{Profile, StepRules};
use crate::arith::accumulate::{AccOverflow, Accumulator};
use crate::arith::fixed::Scaling;
use crate::arith::function::Function;
use crate::arith::requant::QuantRule;
use crate::error::{Result, SimError};
use serde::Deserialize;
use std::borrow::Cow;

/// The version of the format.
pub const VERSION: i64 = 1;

#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct File {
    version: i64,
    extends: Option<String>,
    summary: Option<String>,
    /// Of every stochastic rounding.
    seed: Option<i64>,
    #[serde(default)]
    requant: RequantTable,
    #[serde(default)]
    quantizer: Quantizer,
    #[serde(default)]
    accumulator: AccumulatorTable,
    #[serde(default)]
    weights: Weights,
    #[serde(default)]
    activations: Activations,
    #[serde(default)]
    nonlinearity: Nonlinearity,
    #[serde(default)]
    scan: Scan,
    #[serde(default)]
    hadamard: Hadamard,
}

/// Where in a text a TOML error lies: the table and the line's key.
fn key_of(text: &str, error: &toml::de::Error) -> String {
    let Some(span) = error.span() else {
        return "profile".into();
    };
    let before = &text[..span.start.min(text.len())];
    let table = before.lines().rev().find_map(|line| {
        let line = line.trim();
        Some(line.strip_prefix('[')?.split(']').next()?.to_owned())
    });
    let start = before.rfind('\n').map_or(0, |at| at + 1);
    let line = text[start..].lines().next().unwrap_or("").trim();
    match (table, line.split_once('=')) {
        (Some(table), Some((key, _))) => format!("{table}.{}", key.trim()),
        (None, Some((key, _))) => key.trim().to_owned(),
        _ => line.trim_matches(['[', ']']).to_owned(),
    }
}

impl Profile {
    /// A profile from the text of a profile file.
    ///
    /// # Errors
    ///
    /// An unknown key, a value outside its range, a key without the one it belongs to: the error
    /// names the key and what it may be.
    pub fn from_toml(name: &str, text: &str) -> Result<Profile> {
        let file = File::read(text)?;
        let mut profile = match file.extends.as_deref() {
            None => Profile::get("exact")?,
            Some(base) if base.ends_with(".toml") => {
                return Err(SimError::value(
                    "extends",
                    "the name of a built-in profile",
                    base,
                ));
            }
            Some(base) => Profile::get(base)?,
        };
        profile.name = Cow::Owned(name.to_owned());
        profile.summary = Cow::Owned(match &file.summary {
            Some(summary) => summary.clone(),
            None => format!(
                "rules of a file over {}",
                file.extends.as_deref().unwrap_or("exact")
            ),
        });
        file.apply(&mut profile)?;
        Ok(profile)
    }
}

impl Profile {
    /// [`Profile::from_toml`] of a text, then some keys as a file over it would set them: `scan.state`
    /// to `"f16"`, whatever other keys the text has for a fixed-point state.
    pub fn with_keys(
        name: &str,
        text: &str,
        keys: &[(String, serde_json::Value)],
    ) -> Result<Profile> {
        let mut profile = Profile::from_toml(name, text)?;
        let bad = |key: &str, e: &dyn std::fmt::Display| {
            SimError::value(key, "a key of docs/asic.md and a value it may have", e)
        };
        let mut over = toml::Table::new();
        over.insert("version".to_owned(), VERSION.into());
        for (key, value) in keys {
            let (tables, last) = match key.rsplit_once('.') {
                Some((tables, last)) => (tables.split('.').collect(), last),
                None => (Vec::new(), &key[..]),
            };
            let mut table = &mut over;
            for part in tables {
                let inner = table
                    .entry(part)
                    .or_insert_with(|| toml::Table::new().into());
                table = inner
                    .as_table_mut()
                    .ok_or_else(|| bad(key, &"a value for a table"))?;
            }
            let value = toml::Value::try_from(value).map_err(|e| bad(key, &e))?;
            table.insert(last.to_owned(), value);
        }
        let text = toml::to_string(&over).map_err(|e| bad("--vary", &e))?;
        File::read(&text)?.apply(&mut profile)?;
        Ok(profile)
    }
}

/// The names that a key or a value may have and the one that was given, where that is what a message is about:
/// "unknown field `a`, expected one of `b`, `c`".
fn unknown_name(message: &str) -> Option<(Vec<&str>, &str)> {
    let rest = ["unknown field `", "unknown variant `"];
    let rest = rest.iter().find_map(|start| message.strip_prefix(start))?;
    let (name, known) = rest.split_once("`, expected ")?;
    let known: Vec<&str> = known.split('`').skip(1).step_by(2).collect();
    (!known.is_empty()).then_some((known, name))
}

impl File {
    pub(super) fn read(text: &str) -> Result<Self> {
        let file: File = toml::from_str(text).map_err(|e| {
            let message = e.message().replace('\n', " ");
            match unknown_name(&message) {
                Some((known, name)) => SimError::unknown(key_of(text, &e), &known, name),
                None => SimError::value(
                    key_of(text, &e),
                    "a key of docs/asic.md and a value it may have",
                    message,
                ),
            }
        })?;
        within("version", file.version, VERSION, VERSION)?;
        within("seed", file.seed.unwrap_or(1), 0, u32::MAX.into())?;
        Ok(file)
    }

    /// Changes the rules that the file names.
    pub(super) fn apply(&self, profile: &mut Profile) -> Result<()> {
        self.storage(&mut profile.storage)?;
        for arithmetic in [&mut profile.cuda, &mut profile.torch] {
            for rules in [&mut arithmetic.prefill, &mut arithmetic.decode] {
                self.rules(rules)?;
            }
        }
        Ok(())
    }

    fn seed(&self) -> u32 {
        self.seed.map_or(1, |seed| seed as u32)
    }

    fn storage(&self, storage: &mut Storage) -> Result<()> {
        if let Some(bits) = self.weights.bits {
            if ![4, 8].contains(&bits) {
                return Err(SimError::value("weights.bits", "4 or 8", bits));
            }
            storage.weight_bits = bits as u8;
        }
        let (w, a) = (&self.weights, &self.activations);
        storage.weight_granularity = w.granularity.unwrap_or(storage.weight_granularity);
        storage.conv_granularity = w.conv_granularity.unwrap_or(storage.conv_granularity);
        storage.weight_scales = w.scales.unwrap_or(storage.weight_scales);
        storage.activation_scales = a.scales.unwrap_or(storage.activation_scales);
        let granularity = &mut storage.activation_granularity;
        *granularity = a.granularity.unwrap_or(*granularity);
        Ok(())
    }

    fn rules(&self, rules: &mut StepRules) -> Result<()> {
        self.requant(rules)?;
        for rule in [
            &mut rules.norm_out,
            &mut rules.conv_in,
            &mut rules.requantize,
            &mut rules.scan.state,
        ] {
            if let Some(rounding) = self.quantizer.rounding {
                rule.rounding = rounding.rule(self.seed());
            }
            if let Some(overflow) = self.quantizer.overflow {
                rule.overflow = overflow;
            }
        }
        self.hadamard(rules)?;
        let mut unit = rules.scan.unit.unwrap_or(ScanUnit::PLAIN);
        self.scan_unit(&mut unit)?;
        self.accumulators(rules, &mut unit)?;
        let n = &self.nonlinearity;
        for (function, name, table, rule) in [
            (Function::Exp, "exp", &n.exp, &mut unit.exp),
            (
                Function::Softplus,
                "softplus",
                &n.softplus,
                &mut unit.softplus,
            ),
            (Function::Silu, "silu", &n.silu, &mut unit.silu),
        ] {
            if let Some(table) = table {
                *rule = table.rule(function, &format!("nonlinearity.{name}"), *rule)?;
            }
        }
        if n.silu.is_some() {
            rules.conv.silu = unit.silu;
        }
        // Where the unit does what the f32 scan does, the vector kernels run it.
        let plain = ScanUnit {
            accumulator: ScanUnit::PLAIN.accumulator,
            ..unit
        } == ScanUnit::PLAIN;
        rules.scan.unit = (!plain).then_some(unit);
        Ok(())
    }

    fn requant(&self, rules: &mut StepRules) -> Result<()> {
        let (r, seed) = (&self.requant, self.seed());
        let own = [&r.in_proj, &r.x_proj, &r.dt_proj, &r.out_proj];
        let names = ["in_proj", "x_proj", "dt_proj", "out_proj"];
        for ((rule, own), name) in rules.linear.each_mut().into_iter().zip(own).zip(names) {
            r.apply("requant", seed, &mut rule.scaling, Some(&mut rule.output))?;
            if let Some(own) = own {
                own.apply(
                    &format!("requant.{name}"),
                    seed,
                    &mut rule.scaling,
                    Some(&mut rule.output),
                )?;
            }
        }
        let conv = &mut rules.conv;
        r.apply("requant", seed, &mut conv.scaling, Some(&mut conv.output))?;
        if let Some(own) = &r.conv {
            own.apply(
                "requant.conv",
                seed,
                &mut conv.scaling,
                Some(&mut conv.output),
            )?;
        }
        Ok(())
    }

    fn hadamard(&self, rules: &mut StepRules) -> Result<()> {
        let (h, seed) = (&self.hadamard, self.seed());
        let (mut bits, mut fraction, mut growth, mut scaling) = match rules.hadamard.form {
            HadamardForm::Integer {
                bits,
                fraction,
                growth,
                scaling,
            } => (bits, fraction, growth, scaling),
            HadamardForm::F32 => (16, 4, 8, Scaling::F32),
        };
        let integer = match h.form {
            Some(form) => form == HadamardName::Integer,
            None => rules.hadamard.form != HadamardForm::F32,
        };
        for (key, value, low, high, to) in [
            ("hadamard.bits", h.bits, 8, 24, &mut bits),
            ("hadamard.fraction", h.fraction, 0, 16, &mut fraction),
            ("hadamard.growth", h.growth, 0, 24, &mut growth),
        ] {
            needs(key, value.is_some(), integer, "form = \"integer\"")?;
            if let Some(value) = value {
                *to = within(key, value, low, high)? as u8;
            }
        }
        let mut output = QuantRule {
            rounding: rules.hadamard.rounding,
            overflow: rules.hadamard.overflow,
            ..QuantRule::NEAREST_EVEN
        };
        self.requant
            .apply("requant", seed, &mut scaling, Some(&mut output))?;
        if let Some(own) = &self.requant.hadamard {
            own.apply("requant.hadamard", seed, &mut scaling, Some(&mut output))?;
        }
        rules.hadamard.rounding = output.rounding;
        rules.hadamard.overflow = output.overflow;
        rules.hadamard.form = match integer {
            true => HadamardForm::Integer {
                bits,
                fraction,
                growth,
                scaling,
            },
            false => HadamardForm::F32,
        };
        Ok(())
    }

    fn accumulators(&self, rules: &mut StepRules, unit: &mut ScanUnit) -> Result<()> {
        let a = &self.accumulator;
        let linear = &mut rules.linear;
        for (name, own, register) in [
            ("in_proj", &a.in_proj, &mut linear.in_proj.accumulator),
            ("x_proj", &a.x_proj, &mut linear.x_proj.accumulator),
            ("dt_proj", &a.dt_proj, &mut linear.dt_proj.accumulator),
            ("out_proj", &a.out_proj, &mut linear.out_proj.accumulator),
            ("conv", &a.conv, &mut rules.conv.accumulator),
            ("scan", &a.scan, &mut unit.accumulator),
        ] {
            // States are wider than codes: their sum has a width of its own.
            if name != "scan" {
                a.apply("accumulator", register)?;
            }
            if let Some(own) = own {
                own.apply(&format!("accumulator.{name}"), register)?;
            }
        }
        Ok(())
    }

    fn scan_unit(&self, unit: &mut ScanUnit) -> Result<()> {
        let (s, seed) = (&self.scan, self.seed());
        self.requant
            .apply("requant", seed, &mut unit.scaling, None)?;
        if let Some(own) = &self.requant.scan {
            own.apply("requant.scan", seed, &mut unit.scaling, None)?;
        }
        self.scan_order(unit)?;
        if let Some(rounding) = s.rounding {
            unit.rounding = rounding.rule(seed);
        }
        self.scan_state(unit)?;
        if let Some(every) = s.requantize_every {
            unit.requantize_every = within("scan.requantize_every", every, 1, 4096)? as u16;
        }
        let fixed = matches!(unit.state, StateFormat::Fixed { .. });
        let several = unit.requantize_every > 1;
        needs(
            "scan.requantize_every",
            several,
            fixed && unit.order == ScanUnitOrder::Sequential,
            "a fixed-point state and order = \"sequential\"",
        )?;
        needs(
            "scan.guard",
            s.guard.is_some(),
            several,
            "requantize_every above 1",
        )?;
        // A float scan has no integer factors.
        if !fixed {
            unit.scaling = Scaling::F32;
        }
        Ok(())
    }

    fn scan_order(&self, unit: &mut ScanUnit) -> Result<()> {
        let s = &self.scan;
        let order = s.order.unwrap_or(match unit.order {
            ScanUnitOrder::Sequential => OrderName::Sequential,
            ScanUnitOrder::KoggeStone { .. } => OrderName::KoggeStone,
            ScanUnitOrder::Chunked { .. } => OrderName::Chunked,
        });
        let before = match unit.order {
            ScanUnitOrder::Sequential => 32,
            ScanUnitOrder::KoggeStone { width } => width.into(),
            ScanUnitOrder::Chunked { length } => length.into(),
        };
        needs(
            "scan.block",
            s.block.is_some(),
            order != OrderName::Sequential,
            "order = \"kogge-stone\" or \"chunked\"",
        )?;
        let block = within("scan.block", s.block.unwrap_or(before), 2, 1024)? as u16;
        unit.order = match order {
            OrderName::Sequential => ScanUnitOrder::Sequential,
            OrderName::KoggeStone if !block.is_power_of_two() => {
                return Err(SimError::value(
                    "scan.block",
                    "a power of two, 2 to 1024",
                    block,
                ));
            }
            OrderName::KoggeStone => ScanUnitOrder::KoggeStone { width: block },
            OrderName::Chunked => ScanUnitOrder::Chunked { length: block },
        };
        Ok(())
    }

    fn scan_state(&self, unit: &mut ScanUnit) -> Result<()> {
        let s = &self.scan;
        let (mut bits, mut overflow, mut scale, mut headroom, mut guard) = match unit.state {
            StateFormat::Fixed {
                register,
                scale,
                headroom,
                guard,
            } => (
                Some(register.bits()),
                register.overflow(),
                scale,
                headroom,
                guard,
            ),
            _ => (None, AccOverflow::Saturate, StateScale::Calibrated, 0, 8),
        };
        let mut float = unit.state;
        match s.state {
            Some(StateName::F32) => (bits, float) = (None, StateFormat::F32),
            Some(StateName::F16) => (bits, float) = (None, StateFormat::F16),
            Some(StateName::Int8) => bits = Some(8),
            Some(StateName::Int16) => bits = Some(16),
            Some(StateName::Int24) => bits = Some(24),
            Some(StateName::Int32) => bits = Some(32),
            None => {}
        }
        let fixed = "state = \"int8\", \"int16\", \"int24\" or \"int32\"";
        needs("scan.scale", s.scale.is_some(), bits.is_some(), fixed)?;
        needs("scan.headroom", s.headroom.is_some(), bits.is_some(), fixed)?;
        needs("scan.overflow", s.overflow.is_some(), bits.is_some(), fixed)?;
        needs("scan.rounding", s.rounding.is_some(), bits.is_some(), fixed)?;
        scale = s.scale.unwrap_or(scale);
        overflow = s.overflow.unwrap_or(overflow);
        if let Some(wanted) = s.headroom {
            headroom = within("scan.headroom", wanted, 0, 8)? as u8;
        }
        if let Some(wanted) = s.guard {
            guard = within("scan.guard", wanted, 0, 16)? as u8;
        }
        unit.state = match bits {
            Some(bits) => StateFormat::Fixed {
                register: Accumulator::new(bits, overflow)?,
                scale,
                headroom,
                guard,
            },
            None => float,
        };
        Ok(())
    }
}
