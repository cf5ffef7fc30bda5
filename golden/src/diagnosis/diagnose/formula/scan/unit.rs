//! The scan in a chip's unit: the step itself runs, with the operands and parameters that edits may have changed.

use super::super::{Activation, Decay, Delta, Made, Operand};
use super::Scan;
use ndarray::{Array2, s};
use scalescope_sim::profile::unit::ScanUnit;
use scalescope_sim::quant::{QTensor, QVector, Scale};
use scalescope_sim::step::scan::{ScanInputs, ScanWeight, Source};
use scalescope_sim::step::scan_unit::unit_scan;

/// A scan in a chip's unit: what it needs beside the operands.
#[derive(Clone, Debug)]
pub struct Chip {
    pub(super) unit: ScanUnit,
    pub(super) calibrated: Option<Scale>,
}

impl Scan {
    /// The unit's own run, with the operands and parameters as they are here; `None` for an edit of what goes on
    /// inside.
    pub(super) fn in_unit(&self, chip: &Chip) -> Option<Made> {
        let inside = self.delta != Delta::Softplus
            || !self.a_is_log
            || self.decay != Decay::Exp
            || self.running.is_some()
            || self.older.is_some()
            || self.hiccup.is_some()
            || self.chunks.is_some()
            || self.bump.is_some()
            || self.decay_of.is_some()
            || self.drive_of.is_some()
            || self.sigmoid_of.is_some()
            || self.decay_base != 1.0
            || self.delta_times != 1.0
            || self.late_bias
            || self.late_decay
            || self.held
            || self.input_decays
            || self.skip_ungated
            || self.skip.is_some()
            || self.d_by_token
            || self.output_gated
            || self.passed_on
            || self.measured_gate.is_some()
            || !self.input_delta
            || !matches!(self.gate, None | Some(Activation::Silu))
            || self.late
            || self.kept_early
            || [
                self.state,
                self.narrow_delta,
                self.narrow_gate,
                self.narrow_sum,
                self.narrow_decay,
            ] != [None; 5];
        if inside {
            return None;
        }
        let vector = |values: &[f32], scale: Scale| QVector {
            codes: values
                .iter()
                .map(|v| (v / scale.get()).round() as i8)
                .collect(),
            scale,
        };
        let weight = ScanWeight::int8(
            &QTensor {
                codes: self.a_log.values.mapv(|v| v as i8),
                scale: Scale::new(self.a_log.scale).ok()?,
            },
            &vector(&self.d, Scale::new(self.d_scale).ok()?),
            &vector(&self.dt_bias, Scale::new(self.dt_bias_scale).ok()?),
        );
        let l = self.u.values.nrows();
        // Where nothing is carried, every token is a tile of its own.
        let tile = match self.carry {
            0.0 => 1,
            _ => self.tile.unwrap_or(l).max(1),
        };
        let mut c = self.c.clone();
        for (mut column, used) in c.values.columns_mut().into_iter().zip(&self.states) {
            if !used {
                column.fill(0.0);
            }
        }
        let mut out = Array2::zeros(self.u.values.dim());
        let mut before = self.before.clone();
        for first in (0..l).step_by(tile) {
            let rows = first..(first + tile).min(l);
            let held = [&self.u, &self.dt, &self.b, &c, &self.z].map(|x| Held::of(x, rows.clone()));
            let [u, dt, b, c, z] = held
                .each_ref()
                .map(|held| held.as_ref().and_then(Held::source));
            let state = before.as_ref().filter(|_| first == 0).map(Source::Real);
            let inputs = ScanInputs {
                u: u?,
                dt: dt?,
                b: b?,
                c: c?,
                z: if self.gate.is_some() { Some(z?) } else { None },
                state,
            };
            let done = unit_scan(&chip.unit, &weight, &inputs, chip.calibrated).ok()?;
            out.slice_mut(s![rows, ..]).assign(&done.y);
            before = Some(done.state);
        }
        Some(Made {
            out: out.mapv(|v| self.output.of(v)),
            state: before.map(|state| state.mapv(|v| self.last.of(v))),
        })
    }
}

/// Some rows of an operand, as the step takes them.
enum Held {
    Codes(Array2<i8>, Scale),
    Real(Array2<f32>),
}

impl Held {
    fn of(x: &Operand, rows: std::ops::Range<usize>) -> Option<Self> {
        let values = x.values.slice(s![rows, ..]);
        let code = |v: &f32| (-128.0..=127.0).contains(v) && v.fract() == 0.0;
        match x.scale {
            // Codes whose scale is one are as real.
            1.0 => Some(Held::Real(values.as_standard_layout().into_owned())),
            _ if values.iter().all(code) => {
                let codes = values.mapv(|v| v as i8).as_standard_layout().into_owned();
                Some(Held::Codes(codes, Scale::new(x.scale).ok()?))
            }
            _ => None,
        }
    }

    fn source(&self) -> Option<Source<'_>> {
        Some(match self {
            Held::Codes(codes, scale) => Source::Int8 {
                codes,
                scale: *scale,
            },
            Held::Real(values) => Source::Real(values),
        })
    }
}
