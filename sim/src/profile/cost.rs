//! A sketch of what a profile costs in hardware: widths and memories, no areas.

use super::Profile;
use super::unit::{HadamardForm, StateFormat};
use crate::arith::fixed::Scaling;
use crate::arith::function::{Function, FunctionRule};
use crate::model::Config;
use serde::{Deserialize, Serialize};

/// Widths and memories of the prefill datapath of one block; lower is cheaper.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Cost {
    /// The widest requantization multiplier: its bits, 24 for f32 (the significand), 0 for shifts.
    pub multiplier_bits: u64,
    /// Bits of all function tables, each once.
    pub table_bits: u64,
    /// Functions without a unit (correctly rounded f32), which no table prices.
    pub exact_functions: u64,
    /// Bits of the recurrent state.
    pub state_bits: u64,
    /// The widest accumulator of linears and convolution.
    pub accumulator_bits: u64,
    /// Bits of all linear weights of the model; those of four bits with their scales.
    pub weight_bits: u64,
}

impl Cost {
    /// The fields by name.
    pub fn fields(&self) -> [(&'static str, u64); 6] {
        [
            ("multiplier_bits", self.multiplier_bits),
            ("table_bits", self.table_bits),
            ("exact_functions", self.exact_functions),
            ("state_bits", self.state_bits),
            ("accumulator_bits", self.accumulator_bits),
            ("weight_bits", self.weight_bits),
        ]
    }
}

impl Profile {
    /// The cost of the datapath of `cuda` steps on a model of this shape.
    pub fn cost(&self, config: &Config) -> Cost {
        let rules = &self.cuda.prefill;
        let linear = rules.linear.each();
        let mut scalings: Vec<Scaling> = linear.iter().map(|rule| rule.scaling).collect();
        scalings.push(rules.conv.scaling);
        if let HadamardForm::Integer { scaling, .. } = rules.hadamard.form {
            scalings.push(scaling);
        }
        let unit = rules.scan.unit;
        let fixed = unit.filter(|unit| matches!(unit.state, StateFormat::Fixed { .. }));
        scalings.extend(fixed.map(|unit| unit.scaling));
        let width = |scaling: &Scaling| match scaling {
            Scaling::F32 => 24,
            Scaling::Fixed { bits, .. } => u64::from(*bits),
            Scaling::PowerOfTwo => 0,
        };
        let exact = FunctionRule::Exact;
        let mut functions = vec![
            (Function::Silu, rules.conv.silu),
            (Function::Silu, unit.map_or(exact, |unit| unit.silu)),
            (Function::Exp, unit.map_or(exact, |unit| unit.exp)),
            (Function::Softplus, unit.map_or(exact, |unit| unit.softplus)),
        ];
        if functions[0] == functions[1] {
            functions.remove(0);
        }
        let memory = functions.iter().filter_map(|(function, rule)| match rule {
            FunctionRule::Unit(rule) => Some(rule.memory_bits(*function)),
            FunctionRule::Exact => None,
        });
        let state = match unit.map(|unit| unit.state) {
            None | Some(StateFormat::F32) => 32,
            Some(StateFormat::F16) => 16,
            Some(StateFormat::Fixed {
                register, guard, ..
            }) => {
                let several = unit.is_some_and(|unit| unit.requantize_every > 1);
                u64::from(register.bits()) + if several { u64::from(guard) } else { 0 }
            }
        };
        let accumulators = linear.iter().map(|rule| rule.accumulator.bits());
        let widest = accumulators.chain([rules.conv.accumulator.bits()]).max();
        Cost {
            multiplier_bits: scalings.iter().map(width).max().unwrap_or(0),
            table_bits: memory.sum(),
            exact_functions: functions.iter().filter(|(_, rule)| *rule == exact).count() as u64,
            state_bits: state * (config.d_inner * config.d_state) as u64,
            accumulator_bits: widest.map_or(0, u64::from),
            weight_bits: u64::from(self.storage.weight_bits) * linear_weights(config),
        }
    }
}

/// Linear weights of a model of this shape.
fn linear_weights(config: &Config) -> u64 {
    let (m, e) = (config.d_model, config.d_inner);
    let block = 2 * e * m + config.x_proj_width() * e + e * config.dt_rank + m * e;
    (config.n_layers * block) as u64
}
