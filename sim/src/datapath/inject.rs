//! Faults put into prepared blocks: each is an edit of what the steps read.

use super::Datapath;
use super::prepare::Layer;
use crate::arith::saturate::Overflow;
use crate::checkpoint::w4a8;
use crate::error::{Result, SimError};
use crate::fault::{Defect, Fault, FourBitDefect, WeightScale};
use crate::mode::ModeSpec;
use crate::model::Model;
use crate::profile::{InputScale, Profile, StepRules, TapHistory};
use crate::quant::{Int4Tensor, Int4Weight};
use crate::step::linear::LinearWeight;
use half::f16;
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

    /// Changes the rules of one block, whichever implementation and phase reads them.
    pub fn edit_rules(&mut self, layer: usize, edit: impl FnMut(&mut StepRules)) {
        each_rules(Arc::make_mut(&mut self.layers[layer]), edit);
    }

    /// The arithmetic of one block, edits included.
    pub fn layer_profile(&self, layer: usize) -> &Profile {
        &self.layers[layer].profile
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
        if let Defect::FourBit { site, what } = fault.defect {
            let has = |layer: &Layer| {
                let weight = layer.linear(site).into_iter().next()?.int4()?;
                Some(!what.is_of_groups() || weight.source().groups.is_some())
            };
            if !self.layers[blocks.clone()]
                .iter()
                .any(|layer| has(layer) == Some(true))
            {
                let expected = match what.is_of_groups() {
                    true => "a weight of four bits with scales of groups",
                    false => "a weight of four bits",
                };
                return Err(SimError::value(format!("fault {fault}"), expected, "none"));
            }
        }
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
        Defect::FourBit { site, what } => {
            for weight in layer.linear_mut(site) {
                if let LinearWeight::Int4(weight) = weight {
                    *weight = misread(weight, what)?;
                }
            }
        }
        Defect::MissingScale { site } => layer.scan = layer.scan.without_scale(site),
        Defect::SwappedBc => std::mem::swap(&mut layer.columns.b, &mut layer.columns.c),
        Defect::Transposed { site } => layer.transposed.extend(site.names()),
        Defect::Rounding { site, rule } => each_rules(layer, |rules| {
            site.edit(rules, |quantizer| rule.apply(quantizer));
        }),
        Defect::NarrowAccumulator { site, register } => each_rules(layer, |rules| {
            *rules.accumulator_mut(site).expect("a step that sums") = register;
        }),
    }
    Ok(())
}

/// A weight of four bits read with a defect.
fn misread<'m>(weight: &Int4Weight<'m>, what: FourBitDefect) -> Result<Int4Weight<'m>> {
    let source = weight.source();
    let mut groups = source.groups.clone();
    let mut channels = source.channels.clone();
    let mut codes = source.codes();
    // A packed file has whole tiles of outputs; those that a weight lacks are filled up.
    let outputs = source.dim().0.next_multiple_of(w4a8::OUTPUTS);
    match what {
        FourBitDefect::StaleScale(WeightScale::Group, factor) => {
            if let Some(groups) = &mut groups {
                groups.map_inplace(|s| *s = f16::from_f32(f32::from(*s) * factor));
            }
        }
        FourBitDefect::StaleScale(WeightScale::Channel, factor) => {
            for scale in &mut channels {
                *scale = scale.times(factor)?;
            }
        }
        FourBitDefect::ScaleOrder(WeightScale::Group) => {
            let order = w4a8::group_order(outputs);
            if let Some(groups) = &mut groups {
                for (output, mut row) in groups.rows_mut().into_iter().enumerate() {
                    let taken = source
                        .groups
                        .as_ref()
                        .map(|all| all.row(order(output).min(all.nrows() - 1)));
                    row.assign(&taken.expect("the same groups"));
                }
            }
        }
        FourBitDefect::ScaleOrder(WeightScale::Channel) => {
            let order = w4a8::channel_order(outputs);
            let last = channels.len() - 1;
            channels = (0..=last)
                .map(|output| channels[order(output).min(last)])
                .collect();
        }
        FourBitDefect::WordOrder => codes = w4a8::misread_words(codes.view()),
    }
    let changed = Int4Tensor::new(codes.view(), groups, channels)?;
    Ok(weight.altered(|source| *source = changed))
}

/// The rules of a block, whichever implementation and phase reads them.
fn each_rules(layer: &mut Layer, mut edit: impl FnMut(&mut StepRules)) {
    for arithmetic in [&mut layer.profile.cuda, &mut layer.profile.torch] {
        edit(&mut arithmetic.prefill);
        edit(&mut arithmetic.decode);
    }
}
