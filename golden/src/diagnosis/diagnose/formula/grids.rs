//! The quantizer of u with segments.

use super::{BlockInputs, Math, Operand, Output};
use ndarray::Array2;
use scalescope_sim::arith::quantizer::Quantizer as OnGrids;
use scalescope_sim::arith::real::RealRules;
use scalescope_sim::arith::requant::{Divisor, Quotient};
use scalescope_sim::dataflow::{Quantizer, Row};
use scalescope_sim::plan::ScaleUse;

/// u on the grids of a quantizer.
#[derive(Clone, Debug)]
pub struct Grids {
    /// `[L, E]`.
    pub from: Operand,
    /// The quantizer; `None` leaves the values as they are.
    pub quantizer: Option<OnGrids>,
    /// Its scale.
    pub scale: Divisor,
    /// The scale of values beyond its segments.
    pub second: Option<Divisor>,
    /// The profile's quotient.
    pub quotient: Quotient,
    /// How results are stored.
    pub output: Output,
}

impl Grids {
    pub(super) fn of(scene: &BlockInputs, row: &Row) -> Option<Self> {
        let mode = scene.path.mode();
        let scale = |by| scene.path.scale(scene.layer, by).map(Divisor::from);
        let Quantizer::Static(by) = row.quantizer? else {
            return None;
        };
        Some(Self {
            from: scene.operand(row.reads.first()?)?,
            quantizer: Some(mode.u_quantizer.clone()?),
            scale: scale(by)?,
            // The row has it where the mode's own quantizer needs it; an edit gives it to any.
            second: scale(ScaleUse::ScanUMax),
            quotient: scene.quantizer_rule(row)?.quotient,
            output: Output::real(false),
        })
    }

    /// Reals, `[L, E]`.
    pub fn run(&self) -> Array2<f32> {
        let math = Math::of(RealRules::CorrectlyRounded);
        let dim = self.from.values.dim();
        let mut u = Array2::from_shape_fn(dim, |at| self.from.real(math, at));
        let missing = |q: &&OnGrids| q.needs_second_scale() && self.second.is_none();
        if let Some(quantizer) = self.quantizer.as_ref().filter(|q| !missing(q)) {
            let prepared = quantizer.prepare(self.scale, self.quotient, self.second);
            // How many were clipped is nobody's question here.
            let _ = prepared.quantize(u.as_slice_mut().expect("fresh"));
        }
        u.mapv(|v| self.output.of(v))
    }
}
