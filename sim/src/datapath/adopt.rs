//! One part of one block as another mode has it, and small changes of a block: what attribution
//! switches to float and back, what a recommendation would change.

use super::Datapath;
use crate::arith::saturate::Overflow;
use crate::dataflow::{Field, Step, Weight};
use crate::error::Result;
use crate::fault::{Defect, Fault, ScaleSite};
use crate::mode::{ConvInput, ModeSpec};
use crate::model::ScaleKey;
use crate::plan::ScaleUse;
use crate::trace::TracePoint;
use std::sync::Arc;

/// A part of a block that modes make INT8 or leave in floating point.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Part {
    /// What a field of a mode decides about.
    Field(Field),
    /// A weight.
    Weight(Weight),
}

impl Part {
    /// Every part, in the order of the data.
    pub const ALL: [Part; 18] = [
        Part::Field(Field::NormOut),
        Part::Weight(Weight::InProj),
        Part::Field(Field::X),
        Part::Field(Field::Z),
        Part::Weight(Weight::Conv),
        Part::Field(Field::ConvOut),
        Part::Field(Field::XProjIn),
        Part::Weight(Weight::XProj),
        Part::Field(Field::XProjOut),
        Part::Weight(Weight::DtProj),
        Part::Field(Field::DtProjOut),
        Part::Field(Field::Projected),
        Part::Field(Field::ScanBc),
        Part::Field(Field::U),
        Part::Weight(Weight::Scan),
        Part::Field(Field::Stream),
        Part::Field(Field::HadOut),
        Part::Weight(Weight::OutProj),
    ];

    /// The name in tables.
    pub fn name(self) -> &'static str {
        match self {
            Part::Field(Field::X | Field::Z) | Part::Weight(_) => self.own_name(),
            Part::Field(Field::Stream) => "f16 of y and out",
            Part::Field(field) => field.point().map_or(field.name(), TracePoint::name),
        }
    }

    fn own_name(self) -> &'static str {
        match self {
            Part::Field(field) => field.name(),
            Part::Weight(weight) => weight.name(),
        }
    }

    /// The step that makes the tensor or reads the weight.
    pub fn step(self) -> Step {
        match self {
            Part::Field(field) => field.step(),
            Part::Weight(weight) => weight.step(),
        }
    }

    /// The tensor that it is about, under its name in reports.
    pub fn point(self) -> Option<TracePoint> {
        match self {
            Part::Field(field) => field.point(),
            Part::Weight(_) => None,
        }
    }

    /// The calibrated scale of an activation.
    pub fn scale(self) -> Option<ScaleKey> {
        match self {
            Part::Field(field) => field.quantizer().map(ScaleUse::key),
            Part::Weight(_) => None,
        }
    }

    /// The fields that go together: x with the conv's input; u with its quantizer; the convolution's output
    /// with its two readers, which follow it.
    fn fields(self) -> Vec<Field> {
        match self {
            Part::Field(Field::X) => vec![Field::X, Field::ConvIn],
            Part::Field(Field::ConvOut) => {
                vec![Field::ConvOut, Field::XProjIn, Field::U, Field::UQuantizer]
            }
            Part::Field(Field::U) => vec![Field::U, Field::UQuantizer],
            Part::Field(field) => vec![field],
            Part::Weight(_) => vec![Field::Weights],
        }
    }

    /// Whether two modes differ in it. Where one of them quantizes the convolution's output, that is
    /// the part, and its two readers are none of their own.
    pub fn differs(self, a: &ModeSpec, b: &ModeSpec) -> bool {
        let conv = Field::ConvOut.differs(a, b);
        if self == Part::Field(Field::ConvOut) {
            return conv;
        }
        let reads_conv = [Field::XProjIn, Field::U].map(Part::Field).contains(&self);
        !(conv && reads_conv) && self.fields().into_iter().any(|field| field.differs(a, b))
    }
}

/// A small change of a block.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum BlockChange {
    /// A calibrated scale times a factor, at every use.
    Recalibrate(ScaleKey, f32),
    /// Another conv input.
    ConvInput(ConvInput),
    /// Another rule for what does not fit, at the Hadamard quantizer.
    Hadamard(Overflow),
}

impl<'m> Datapath<'m> {
    /// Whether the profile can run this mode with a part as `from` has it.
    pub fn can_adopt(&self, part: Part, from: &Datapath) -> bool {
        let mut mode = self.mode().clone();
        if let Part::Field(_) = part {
            for field in part.fields() {
                field.copy(&mut mode, from.mode());
            }
        }
        self.profile().lacks(&mode).is_none()
    }

    /// Makes a part of block `index` as `from` has it. Implementations and rules stay.
    pub fn adopt(&mut self, index: usize, part: Part, from: &Datapath<'m>) {
        let theirs = &from.layers[index];
        let layer = Arc::make_mut(&mut self.layers[index]);
        if layer.scales.is_none() {
            layer.scales = theirs.scales.clone();
        }
        let weight = match part {
            Part::Field(_) => {
                for field in part.fields() {
                    field.copy(&mut layer.mode, &theirs.mode);
                }
                return;
            }
            Part::Weight(weight) => weight,
        };
        match weight {
            Weight::InProj => {
                layer.in_proj_x = theirs.in_proj_x.clone();
                layer.in_proj_z = theirs.in_proj_z.clone();
            }
            Weight::Conv => layer.conv = theirs.conv.clone(),
            Weight::XProj => layer.x_proj = theirs.x_proj.clone(),
            Weight::DtProj => layer.dt_proj = theirs.dt_proj.clone(),
            Weight::Scan => layer.scan = theirs.scan.clone(),
            Weight::OutProj => layer.out_proj = theirs.out_proj.clone(),
            Weight::Norm => layer.norm = theirs.norm.clone(),
            // They belong to no block.
            Weight::FinalNorm | Weight::Head => {}
        }
    }

    /// Changes block `index`.
    ///
    /// # Errors
    ///
    /// A scale that a factor takes out of the range of f32.
    pub fn amend(&mut self, index: usize, amendment: BlockChange) -> Result<()> {
        match amendment {
            BlockChange::Recalibrate(key, factor) => {
                for scale_use in ScaleUse::ALL.into_iter().filter(|u| u.key() == key) {
                    self.inject(&Fault {
                        layer: Some(index),
                        defect: Defect::StaleScale {
                            site: ScaleSite::Use(scale_use),
                            factor,
                        },
                    })?;
                }
            }
            BlockChange::ConvInput(input) => {
                Arc::make_mut(&mut self.layers[index]).mode.conv_in = input;
            }
            BlockChange::Hadamard(overflow) => {
                let layer = Arc::make_mut(&mut self.layers[index]);
                for arithmetic in [&mut layer.profile.cuda, &mut layer.profile.torch] {
                    arithmetic.prefill.hadamard.overflow = overflow;
                    arithmetic.decode.hadamard.overflow = overflow;
                }
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::mode::MODES;

    #[test]
    fn what_a_mode_quantizes_is_a_part() {
        let mode = |name: &str| MODES.iter().find(|mode| mode.name == name).unwrap();
        let names = |name: &str| -> Vec<&str> {
            let parts = Part::ALL.into_iter();
            let differing = parts.filter(|part| part.differs(mode(name), mode("1")));
            let activations = differing.filter(|part| matches!(part, Part::Field(_)));
            activations.map(Part::name).collect()
        };
        assert!(names("5-4").contains(&"ssm_u") && !names("5-1").contains(&"ssm_u"));
        assert!(names("6-0").contains(&"projected") && !names("6-1").contains(&"projected"));
        assert!(names("6-4").contains(&"scan_bc") && names("6-4").contains(&"dt_proj_out"));
        // Two modes that differ in a quantizer of u differ in nothing else.
        let between: Vec<Part> = (Part::ALL.into_iter())
            .filter(|part| part.differs(mode("5-4"), mode("5-7")))
            .collect();
        assert_eq!(between, [Part::Field(Field::U)]);
    }
}
