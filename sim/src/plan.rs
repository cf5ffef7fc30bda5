//! Which scale each step of a block uses where. A calibrated scale has one producer and often
//! several consumers; each *use* has an entry of its own, so that a producer and a consumer can
//! disagree (a defect to study), and so that every edge can be checked.

use crate::error::Result;
use crate::model::{ActivationScales, ScaleKey};
use crate::quant::Scale;
use serde::Serialize;

/// One use of an activation scale by one step.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum ScaleUse {
    /// RMSNorm's quantizer.
    NormOut,
    /// in_proj dequantizes its input.
    InProjIn,
    /// in_proj's requantizer.
    InProjOut,
    /// conv dequantizes x.
    ConvIn,
    /// conv's fused quantizer.
    ConvOut,
    /// Quantizer of an FP32 conv output on route A (x_proj's input).
    XProjQuant,
    /// x_proj dequantizes its input.
    XProjIn,
    /// Quantizer of an FP32 conv output, or of a round trip, on route B (u).
    ScanUQuant,
    /// Quantizer of u beyond the codes of the first scale.
    ScanUMax,
    /// The scan dequantizes u.
    ScanU,
    /// x_proj's requantizer.
    XProjOut,
    /// dt_proj dequantizes its input.
    DtProjIn,
    /// The scan dequantizes B.
    ScanB,
    /// The scan dequantizes C.
    ScanC,
    /// dt_proj's requantizer.
    DtProjOut,
    /// The scan dequantizes dt.
    ScanDt,
    /// The scan dequantizes z.
    ScanZ,
    /// The state's quantizer.
    StateOut,
    /// The state's dequantizer, at the next token.
    StateIn,
    /// The Hadamard quantizer.
    HadOut,
    /// out_proj dequantizes its input.
    OutProjIn,
}

impl ScaleUse {
    /// Every use, in the order of the datapath.
    pub const ALL: [ScaleUse; 21] = [
        ScaleUse::NormOut,
        ScaleUse::InProjIn,
        ScaleUse::InProjOut,
        ScaleUse::ConvIn,
        ScaleUse::ConvOut,
        ScaleUse::XProjQuant,
        ScaleUse::XProjIn,
        ScaleUse::ScanUQuant,
        ScaleUse::ScanUMax,
        ScaleUse::ScanU,
        ScaleUse::XProjOut,
        ScaleUse::DtProjIn,
        ScaleUse::ScanB,
        ScaleUse::ScanC,
        ScaleUse::DtProjOut,
        ScaleUse::ScanDt,
        ScaleUse::ScanZ,
        ScaleUse::StateOut,
        ScaleUse::StateIn,
        ScaleUse::HadOut,
        ScaleUse::OutProjIn,
    ];

    /// The name in files and on the command line: `x_proj_quant`, ….
    pub fn name(self) -> &'static str {
        match self {
            ScaleUse::NormOut => "norm_out",
            ScaleUse::InProjIn => "in_proj_in",
            ScaleUse::InProjOut => "in_proj_out",
            ScaleUse::ConvIn => "conv_in",
            ScaleUse::ConvOut => "conv_out",
            ScaleUse::XProjQuant => "x_proj_quant",
            ScaleUse::XProjIn => "x_proj_in",
            ScaleUse::ScanUQuant => "scan_u_quant",
            ScaleUse::ScanUMax => "scan_u_max",
            ScaleUse::ScanU => "scan_u",
            ScaleUse::XProjOut => "x_proj_out",
            ScaleUse::DtProjIn => "dt_proj_in",
            ScaleUse::ScanB => "scan_b",
            ScaleUse::ScanC => "scan_c",
            ScaleUse::DtProjOut => "dt_proj_out",
            ScaleUse::ScanDt => "scan_dt",
            ScaleUse::ScanZ => "scan_z",
            ScaleUse::StateOut => "state_out",
            ScaleUse::StateIn => "state_in",
            ScaleUse::HadOut => "had_out",
            ScaleUse::OutProjIn => "out_proj_in",
        }
    }

    /// The name of a quantizer that finds its scale at run time in the place of this one.
    pub fn dynamic_name(self) -> &'static str {
        match self {
            ScaleUse::NormOut => "norm_out_dynamic",
            ScaleUse::ConvIn => "conv_in_dynamic",
            ScaleUse::HadOut => "had_out_dynamic",
            other => other.name(),
        }
    }

    /// The calibrated scale this use should have.
    pub fn key(self) -> ScaleKey {
        match self {
            ScaleUse::NormOut | ScaleUse::InProjIn => ScaleKey::InProjInput,
            ScaleUse::InProjOut | ScaleUse::ConvIn | ScaleUse::ScanZ => ScaleKey::InProjOutput,
            ScaleUse::ConvOut
            | ScaleUse::XProjQuant
            | ScaleUse::XProjIn
            | ScaleUse::ScanUQuant
            | ScaleUse::ScanU => ScaleKey::XProjInput,
            ScaleUse::ScanUMax => ScaleKey::XProjInputMax,
            ScaleUse::XProjOut | ScaleUse::DtProjIn | ScaleUse::ScanB | ScaleUse::ScanC => {
                ScaleKey::XProjOutput
            }
            ScaleUse::DtProjOut | ScaleUse::ScanDt => ScaleKey::DtProjOutput,
            ScaleUse::StateOut | ScaleUse::StateIn => ScaleKey::SsmState,
            ScaleUse::HadOut | ScaleUse::OutProjIn => ScaleKey::OutProjInput,
        }
    }

    /// Whether this use makes codes (a quantizer) rather than reads them.
    pub fn produces(self) -> bool {
        matches!(
            self,
            ScaleUse::NormOut
                | ScaleUse::InProjOut
                | ScaleUse::ConvOut
                | ScaleUse::XProjQuant
                | ScaleUse::ScanUQuant
                | ScaleUse::ScanUMax
                | ScaleUse::XProjOut
                | ScaleUse::DtProjOut
                | ScaleUse::StateOut
                | ScaleUse::HadOut
        )
    }
}

/// The scales of a block, one for each use.
#[derive(Clone, Debug, PartialEq)]
pub struct ScalePlan([Scale; ScaleUse::ALL.len()]);

impl ScalePlan {
    /// Every use gets its calibrated scale.
    pub fn new(scales: &ActivationScales) -> Self {
        Self(ScaleUse::ALL.map(|scale_use| scales.get(scale_use.key())))
    }

    /// The scale of a use.
    pub fn get(&self, scale_use: ScaleUse) -> Scale {
        self.0[scale_use as usize]
    }

    /// Multiplies one use's scale (a fault, or a recommendation to try).
    pub fn multiply(&mut self, scale_use: ScaleUse, factor: f32) -> Result<()> {
        let scale = &mut self.0[scale_use as usize];
        *scale = scale.times(factor)?;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn uses_index_their_own_entry_and_every_key_has_a_producer_and_a_consumer() {
        for (i, scale_use) in ScaleUse::ALL.into_iter().enumerate() {
            assert_eq!(scale_use as usize, i);
        }
        for key in ScaleKey::ALL {
            for produces in [true, false] {
                assert!(
                    ScaleUse::ALL
                        .into_iter()
                        .any(|u| u.key() == key && u.produces() == produces)
                );
            }
        }
    }
}
