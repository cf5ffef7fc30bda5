//! One part of one block as another mode has it, and small changes of a block: what attribution
//! switches to float and back, what a recommendation would change.

use super::Datapath;
use crate::arith::saturate::Overflow;
use crate::error::Result;
use crate::fault::{Defect, Fault, ScaleSite};
use crate::mode::{ConvInput, ModeSpec};
use crate::model::ScaleKey;
use crate::plan::ScaleUse;
use std::sync::Arc;

/// A part of a block that modes make INT8 or leave in floating point: a tensor or a weight.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[allow(missing_docs)] // `name` and `step` say what each is
pub enum Part {
    NormOut,
    InProjWeight,
    X,
    Z,
    ConvWeight,
    ConvOut,
    XProjIn,
    XProjWeight,
    XProjOut,
    DtProjWeight,
    DtProjOut,
    SsmU,
    ScanWeight,
    Stream,
    HadOut,
    OutProjWeight,
}

impl Part {
    /// Every part, in the order of the data.
    pub const ALL: [Part; 16] = [
        Part::NormOut,
        Part::InProjWeight,
        Part::X,
        Part::Z,
        Part::ConvWeight,
        Part::ConvOut,
        Part::XProjIn,
        Part::XProjWeight,
        Part::XProjOut,
        Part::DtProjWeight,
        Part::DtProjOut,
        Part::SsmU,
        Part::ScanWeight,
        Part::Stream,
        Part::HadOut,
        Part::OutProjWeight,
    ];

    /// The name in tables.
    pub fn name(self) -> &'static str {
        match self {
            Part::NormOut => "norm_out",
            Part::InProjWeight => "in_proj.weight",
            Part::X => "x",
            Part::Z => "z",
            Part::ConvWeight => "conv1d.weight",
            Part::ConvOut => "conv_out",
            Part::XProjIn => "x_proj_in",
            Part::XProjWeight => "x_proj.weight",
            Part::XProjOut => "x_proj_out",
            Part::DtProjWeight => "dt_proj.weight",
            Part::DtProjOut => "dt_proj_out",
            Part::SsmU => "ssm_u",
            Part::ScanWeight => "A_log, D, dt_bias",
            Part::Stream => "f16 of y and out",
            Part::HadOut => "had_out",
            Part::OutProjWeight => "out_proj.weight",
        }
    }

    /// The step that makes or reads it.
    pub fn step(self) -> &'static str {
        match self {
            Part::NormOut => "norm",
            Part::InProjWeight | Part::X | Part::Z => "in_proj",
            Part::ConvWeight | Part::ConvOut | Part::XProjIn | Part::SsmU => "conv",
            Part::XProjWeight | Part::XProjOut => "x_proj",
            Part::DtProjWeight | Part::DtProjOut => "dt_proj",
            Part::ScanWeight | Part::Stream => "scan",
            Part::HadOut => "hadamard",
            Part::OutProjWeight => "out_proj",
        }
    }

    /// The calibrated scale of an activation.
    pub fn scale(self) -> Option<ScaleKey> {
        match self {
            Part::NormOut => Some(ScaleKey::InProjInput),
            Part::X | Part::Z => Some(ScaleKey::InProjOutput),
            Part::ConvOut | Part::XProjIn | Part::SsmU => Some(ScaleKey::XProjInput),
            Part::XProjOut => Some(ScaleKey::XProjOutput),
            Part::DtProjOut => Some(ScaleKey::DtProjOutput),
            Part::HadOut => Some(ScaleKey::OutProjInput),
            _ => None,
        }
    }

    /// Whether two modes differ in it. Where one of them quantizes the convolution's output, that is
    /// the part, and its two readers are none of their own.
    pub fn differs(self, a: &ModeSpec, b: &ModeSpec) -> bool {
        let same_conv = a.conv_out == b.conv_out;
        match self {
            Part::NormOut => a.norm_out != b.norm_out,
            Part::X => (a.x, a.conv_in) != (b.x, b.conv_in),
            Part::Z => a.z != b.z,
            Part::ConvOut => !same_conv,
            Part::XProjIn => same_conv && a.x_proj_in != b.x_proj_in,
            Part::SsmU => same_conv && a.u != b.u,
            Part::XProjOut => a.x_proj_out != b.x_proj_out,
            Part::DtProjOut => a.dt_proj_out != b.dt_proj_out,
            Part::Stream => a.stream != b.stream,
            Part::HadOut => a.had_out != b.had_out,
            Part::InProjWeight
            | Part::ConvWeight
            | Part::XProjWeight
            | Part::DtProjWeight
            | Part::ScanWeight
            | Part::OutProjWeight => a.weights != b.weights,
        }
    }
}

/// A small change of a block.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Amendment {
    /// A calibrated scale times a factor, at every use.
    Recalibrate(ScaleKey, f32),
    /// Another conv input.
    ConvInput(ConvInput),
    /// Another rule for what does not fit, at the Hadamard quantizer.
    Hadamard(Overflow),
}

impl<'m> Datapath<'m> {
    /// Makes a part of block `index` as `from` has it. Implementations and rules stay.
    pub fn adopt(&mut self, index: usize, part: Part, from: &Datapath<'m>) {
        let theirs = &from.layers[index];
        let layer = Arc::make_mut(&mut self.layers[index]);
        if layer.scales.is_none() {
            layer.scales = theirs.scales.clone();
        }
        let (mode, other) = (&mut layer.mode, &theirs.mode);
        match part {
            Part::NormOut => mode.norm_out = other.norm_out,
            Part::X => (mode.x, mode.conv_in) = (other.x, other.conv_in),
            Part::Z => mode.z = other.z,
            Part::ConvOut => {
                (mode.conv_out, mode.x_proj_in, mode.u) =
                    (other.conv_out, other.x_proj_in, other.u);
            }
            Part::XProjIn => mode.x_proj_in = other.x_proj_in,
            Part::SsmU => mode.u = other.u,
            Part::XProjOut => mode.x_proj_out = other.x_proj_out,
            Part::DtProjOut => mode.dt_proj_out = other.dt_proj_out,
            Part::Stream => mode.stream = other.stream,
            Part::HadOut => mode.had_out = other.had_out,
            Part::InProjWeight => {
                layer.in_proj_x = theirs.in_proj_x.clone();
                layer.in_proj_z = theirs.in_proj_z.clone();
            }
            Part::ConvWeight => layer.conv = theirs.conv.clone(),
            Part::XProjWeight => layer.x_proj = theirs.x_proj.clone(),
            Part::DtProjWeight => layer.dt_proj = theirs.dt_proj.clone(),
            Part::ScanWeight => layer.scan = theirs.scan.clone(),
            Part::OutProjWeight => layer.out_proj = theirs.out_proj.clone(),
        }
    }

    /// Changes block `index`.
    ///
    /// # Errors
    ///
    /// A scale that a factor takes out of the range of f32.
    pub fn amend(&mut self, index: usize, amendment: Amendment) -> Result<()> {
        match amendment {
            Amendment::Recalibrate(key, factor) => {
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
            Amendment::ConvInput(input) => {
                Arc::make_mut(&mut self.layers[index]).mode.conv_in = input;
            }
            Amendment::Hadamard(overflow) => {
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
