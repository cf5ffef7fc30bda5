//! The scales of a case: their names, and changes of one.

use super::Inputs;
use crate::ops::{LinearCase, ScanParameters};
use scalescope_sim::error::Result;
use scalescope_sim::quant::{Multiplier, Scale};
use std::fmt;

/// A scale that could be another.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct ScaleOf {
    /// Its key.
    pub name: &'static str,
    /// What it is multiplied with; `None` applies it twice.
    pub factor: Option<f32>,
}

impl fmt::Display for ScaleOf {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.factor {
            Some(factor) => write!(f, "the scale {} is multiplied by {factor}", self.name),
            None => write!(f, "the scale {} is applied twice", self.name),
        }
    }
}

/// A scale or a multiplier of a case.
enum Slot<'a> {
    Scale(&'a mut Scale),
    Multiplier(&'a mut Multiplier),
}

impl ScaleOf {
    /// Changes the inputs of a case.
    ///
    /// # Errors
    ///
    /// The product is no scale.
    pub fn apply(self, inputs: &mut Inputs) -> Result<()> {
        for (name, slot) in slots(inputs) {
            if name != self.name {
                continue;
            }
            match slot {
                Slot::Scale(s) => *s = s.times(self.factor.unwrap_or(s.get()))?,
                Slot::Multiplier(m) => {
                    *m = Multiplier::new(m.get() * self.factor.unwrap_or(m.get()))?;
                }
            }
        }
        Ok(())
    }
}

/// The bits of every scale of a case, by name.
pub fn bits(inputs: &Inputs) -> Vec<(&'static str, u32)> {
    let mut inputs = inputs.clone();
    let slots = slots(&mut inputs).into_iter();
    let bits = slots.map(|(name, slot)| {
        let value = match slot {
            Slot::Scale(s) => s.get(),
            Slot::Multiplier(m) => m.get(),
        };
        (name, value.to_bits())
    });
    bits.collect()
}

/// Sets a scale of a case.
///
/// # Errors
///
/// The bits are no scale.
pub fn set_bits(inputs: &mut Inputs, scale: &str, bits: u32) -> Result<()> {
    for (name, slot) in slots(inputs) {
        if name == scale {
            match slot {
                Slot::Scale(s) => *s = Scale::new(f32::from_bits(bits))?,
                Slot::Multiplier(m) => *m = Multiplier::new(f32::from_bits(bits))?,
            }
        }
    }
    Ok(())
}

/// The names of a case's scales.
pub fn scales(inputs: &Inputs) -> Vec<&'static str> {
    bits(inputs).into_iter().map(|(name, _)| name).collect()
}

fn slots(inputs: &mut Inputs) -> Vec<(&'static str, Slot<'_>)> {
    use Slot::{Multiplier as M, Scale as S};
    match inputs {
        Inputs::Conv1dSilu(c) => vec![
            ("scale_x", S(&mut c.scale_x)),
            ("scale_w", S(&mut c.scale_w)),
            ("scale_b", S(&mut c.scale_b)),
            ("scale_out", S(&mut c.scale_out)),
        ],
        Inputs::Conv1dUpdate(c) => vec![
            ("scale_x", S(&mut c.scale_x)),
            ("scale_w", S(&mut c.scale_w)),
            ("scale_b", S(&mut c.scale_b)),
            ("scale_out", S(&mut c.scale_out)),
        ],
        Inputs::SelectiveScan(c) => of_scan(&mut c.parameters),
        Inputs::SelectiveScanUpdate(c) => of_scan(&mut c.parameters),
        Inputs::HadamardQuant(c) => {
            let mut slots = vec![("scale", M(&mut c.scale))];
            if let Some(scale) = &mut c.scale_overflow {
                slots.push(("scale_overflow", M(scale)));
            }
            slots
        }
        Inputs::Linear(LinearCase::Int8(c)) => vec![("a", M(&mut c.a)), ("b", M(&mut c.b))],
        // Its scales are a scale for each output.
        Inputs::Linear(LinearCase::Int4(_)) => Vec::new(),
        Inputs::RmsNormQuant(c) => vec![("scale", S(&mut c.scale))],
        Inputs::HadamardMatrix(_) => Vec::new(),
    }
}

fn of_scan(p: &mut ScanParameters) -> Vec<(&'static str, Slot<'_>)> {
    use Slot::Scale as S;
    vec![
        ("scale_u", S(&mut p.scale_u)),
        ("scale_dt", S(&mut p.scale_dt)),
        ("scale_A_log", S(&mut p.scale_a_log)),
        ("scale_B", S(&mut p.scale_b)),
        ("scale_C", S(&mut p.scale_c)),
        ("scale_ssm_state", S(&mut p.scale_state)),
        ("scale_D", S(&mut p.scale_d)),
        ("scale_z", S(&mut p.scale_z)),
        ("scale_dt_bias", S(&mut p.scale_dt_bias)),
    ]
}
