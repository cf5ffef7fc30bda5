//! Faults put into prepared blocks: each is an edit of what the steps read.

use super::Datapath;
use super::prepare::Layer;
use crate::arith::requant::{QuantRule, Quotient};
use crate::arith::round::Rounding;
use crate::arith::saturate::Overflow;
use crate::error::{Result, SimError};
use crate::fault::{BufferSite, Defect, Fault, QuantizerSite, RoundingRule, SumSite};
use crate::mode::ModeSpec;
use crate::model::Model;
use crate::profile::{InputScale, Profile, StepRules, TapHistory};
use crate::trace::TracePoint;
use std::sync::Arc;

impl<'m> Datapath<'m> {
    /// A datapath with faults.
    ///
    /// # Errors
    ///
    /// Those of [`Datapath::new`] and [`Datapath::inject`].
    pub fn with_faults(
        model: &'m Model,
        mode: &ModeSpec,
        profile: &Profile,
        faults: &[Fault],
    ) -> Result<Self> {
        let mut path = Self::new(model, mode, profile)?;
        faults.iter().try_for_each(|fault| path.inject(fault))?;
        Ok(path)
    }

    /// Puts a fault into the block it names, or into every one.
    ///
    /// # Errors
    ///
    /// A block that the model does not have; a mode without INT8 tensors (it is what others are held
    /// against); a scale that a factor takes out of the range of f32.
    pub fn inject(&mut self, fault: &Fault) -> Result<()> {
        if !self.mode.needs_quantized() {
            let item = format!("fault in mode {}", self.mode.name);
            return Err(SimError::value(item, "a mode with INT8 tensors", fault));
        }
        let count = self.layers.len();
        let blocks = match fault.layer {
            None => 0..count,
            Some(layer) if layer < count => layer..layer + 1,
            Some(layer) => {
                let expected = format!("a block below {count}, or all");
                return Err(SimError::value("fault, layer", expected, layer));
            }
        };
        for layer in &mut self.layers[blocks] {
            edit(Arc::make_mut(layer), fault.defect)?;
        }
        Ok(())
    }
}

fn edit(layer: &mut Layer, defect: Defect) -> Result<()> {
    match defect {
        Defect::ConvDoubleInputScale => {
            each_rules(layer, |rules| rules.conv.input_scale = InputScale::Twice);
        }
        Defect::ConvHistoryLoss => {
            each_rules(layer, |rules| rules.conv.history = TapHistory::LostEvery8);
        }
        Defect::HadamardWrap => {
            each_rules(layer, |rules| rules.hadamard.overflow = Overflow::Wrap);
        }
        Defect::StaleScale { site, factor } => {
            if let Some(scales) = &mut layer.scales {
                for scale_use in site.uses() {
                    scales.multiply(scale_use, factor)?;
                }
            }
        }
        Defect::SwappedBc => std::mem::swap(&mut layer.columns.b, &mut layer.columns.c),
        Defect::Transposed { site } => layer.transposed.extend(
            TracePoint::ALL
                .into_iter()
                .filter(|point| BufferSite::of(*point) == Some(site)),
        ),
        Defect::Rounding { site, rule } => each_rules(layer, |rules| round(rules, site, rule)),
        Defect::NarrowAccumulator { site, register } => each_rules(layer, |rules| {
            let linear = &mut rules.linear;
            *match site {
                SumSite::InProj => &mut linear.in_proj.accumulator,
                SumSite::XProj => &mut linear.x_proj.accumulator,
                SumSite::DtProj => &mut linear.dt_proj.accumulator,
                SumSite::OutProj => &mut linear.out_proj.accumulator,
                SumSite::Conv => &mut rules.conv.accumulator,
            } = register;
        }),
    }
    Ok(())
}

/// The rules of a block, whichever implementation and phase reads them.
fn each_rules(layer: &mut Layer, mut edit: impl FnMut(&mut StepRules)) {
    for arithmetic in [&mut layer.profile.cuda, &mut layer.profile.torch] {
        edit(&mut arithmetic.prefill);
        edit(&mut arithmetic.decode);
    }
}

fn round(rules: &mut StepRules, site: QuantizerSite, rule: RoundingRule) {
    let quantizer: &mut QuantRule = match site {
        QuantizerSite::NormOut => &mut rules.norm_out,
        QuantizerSite::InProjOut => &mut rules.linear.in_proj.output,
        QuantizerSite::ConvOut => &mut rules.conv.output,
        QuantizerSite::Requantize => &mut rules.requantize,
        QuantizerSite::XProjOut => &mut rules.linear.x_proj.output,
        QuantizerSite::DtProjOut => &mut rules.linear.dt_proj.output,
        QuantizerSite::SsmState => &mut rules.scan.state,
        QuantizerSite::HadOut => {
            rules.hadamard.rounding = match rule {
                RoundingRule::HalfEven => Rounding::NearestTiesToEven,
                _ => Rounding::NearestTiesAway,
            };
            return;
        }
    };
    match rule {
        RoundingRule::HalfAway => quantizer.rounding = Rounding::NearestTiesAway,
        RoundingRule::HalfEven => quantizer.rounding = Rounding::NearestTiesToEven,
        RoundingRule::Reciprocal => quantizer.quotient = Quotient::ApproxReciprocal,
        RoundingRule::Division => quantizer.quotient = Quotient::Divide,
    }
}
