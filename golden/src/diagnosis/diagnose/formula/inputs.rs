//! The formula of a row of the block's table, from what a datapath and its tensors have of it. No tensor and no
//! scale is named here: the row says what is read, by which scale, and how the result is stored.

use super::{
    Add, Conv, Dynamic, Formula, Grids, Hadamard, Linear, Norm, Operand, Output, Quantize, Scan,
    numbers,
};
use ndarray::s;
use scalescope_sim::arith::requant::QuantRule;
use scalescope_sim::dataflow::{Block, Field, Format, Quantizer, Read, Row, Step};
use scalescope_sim::datapath::Datapath;
use scalescope_sim::mode::Implementation;
use scalescope_sim::plan::ScaleUse;
use scalescope_sim::profile::{QuantizerRule, StepRules};
use scalescope_sim::trace::{Tensor, TracePoint};
use std::collections::BTreeMap;
use std::sync::Arc;

/// The tensors of a block as they went in, by point.
pub type Seen = BTreeMap<TracePoint, Tensor>;

/// What steps are made from: a block of a datapath, and the tensors that went in.
pub struct BlockInputs<'a, 'm> {
    /// The datapath, for weights and scales.
    pub path: &'a Datapath<'m>,
    /// The block.
    pub layer: usize,
    /// Its table.
    pub block: &'a Block,
    /// The tensors.
    pub seen: &'a Seen,
}

impl BlockInputs<'_, '_> {
    pub(super) fn rules(&self, row: &Row) -> Option<&StepRules> {
        let by = row.rules.first()?.by;
        Some(&self.path.layer_profile(self.layer).arithmetic(by).prefill)
    }

    /// The channels of what a row makes.
    pub fn width(&self, row: &Row) -> usize {
        row.shape[1].of(self.path.config(), 1)
    }

    /// The scale of a use.
    pub fn scale(&self, by: ScaleUse) -> Option<f32> {
        Some(self.path.scale(self.layer, by)?.get())
    }

    /// A tensor that a row reads.
    pub fn operand(&self, read: &Read) -> Option<Operand> {
        let point = read.point()?;
        let tensor = self.seen.get(&point)?;
        let values = numbers(tensor);
        let columns = read.columns.range(self.path.config(), values.ncols());
        let mut operand = Operand::new(values.slice(s![.., columns.clone()]).to_owned(), 1.0);
        if columns.len() < values.ncols() {
            operand.whole = Some(Arc::new((values, columns.start)));
        }
        match (tensor, read.scale) {
            (Tensor::I8(_), Some(by)) => operand.scale = self.scale(by)?,
            (Tensor::Codes(_), _) => match self.seen.get(&point.scales()?)? {
                Tensor::F32(scales) if scales.len() == 1 => operand.scale = scales[(0, 0)],
                Tensor::F32(scales) => operand.rows = Some(scales.iter().copied().collect()),
                _ => return None,
            },
            _ => {}
        }
        Some(operand)
    }

    /// The rule of a row's quantizer, with what the mode says of those between steps.
    pub(super) fn quantizer_rule(&self, row: &Row) -> Option<QuantRule> {
        let by = row.rules.last()?.by;
        let site = row.quantizer_rule()?;
        let rules = self.path.layer_profile(self.layer).arithmetic(by);
        let (rule, mode) = (site.of(&rules.prefill), self.path.mode());
        Some(match site {
            QuantizerRule::Requantize if row.fields.contains(&Field::RequantizeRounding) => {
                mode.requantize(rule)
            }
            QuantizerRule::Requantize => mode.conv_in_quotient.of(rule),
            QuantizerRule::NormOut
            | QuantizerRule::InProjOut
            | QuantizerRule::ConvIn
            | QuantizerRule::ConvOut
            | QuantizerRule::XProjOut
            | QuantizerRule::DtProjOut
            | QuantizerRule::SsmState
            | QuantizerRule::HadOut => rule,
        })
    }

    /// How a row's results are stored; `in_units`: whether its quantizer gets values in units of its grid.
    pub(super) fn output(&self, row: &Row, in_units: bool) -> Option<Output> {
        let quantize = |scale| Some(Quantize::of(scale, self.quantizer_rule(row)?));
        let found = |dynamic| {
            let dynamic = Some(dynamic);
            Some(Quantize {
                dynamic,
                ..quantize(1.0)?
            })
        };
        let quantizer = match (row.quantizer, row.format) {
            (None, Format::F16 | Format::F32) => None,
            // Codes that are handed on.
            (None, Format::Int8(_) | Format::Codes) => return None,
            (Some(Quantizer::Static(by)), format) => {
                let dequantized = format == Format::F32;
                Some(Quantize {
                    in_units: in_units && !dequantized,
                    dequantized,
                    ..quantize(self.scale(by)?)?
                })
            }
            (Some(Quantizer::Tensor(_)), _) => Some(found(Dynamic::Tensor)?),
            (Some(Quantizer::Token(_)), _) => Some(found(match row.rules.last()?.by {
                Implementation::Torch => Dynamic::TorchToken,
                Implementation::Cuda => {
                    let storage = self.path.layer_profile(self.layer).storage;
                    Dynamic::Token(storage.activation_scales)
                }
            })?),
        };
        Some(Output {
            quantizer,
            ..Output::real(row.format == Format::F16)
        })
    }

    /// The formula of the row that makes a tensor; `None` where there is none here: of scales that are found
    /// together with their codes, of states that are copied, beyond the block.
    pub fn formula(&self, row: &Row) -> Option<Formula> {
        if row.point.is_scale() {
            return None;
        }
        if row.is_between_steps() {
            return self.requantize(row);
        }
        let copied = row.weights.is_empty();
        match row.step {
            Step::Norm if copied => Add::of(self, row).map(Formula::Add),
            Step::Norm => Norm::of(self, row).map(Formula::Norm),
            Step::InProj | Step::XProj | Step::DtProj | Step::OutProj => {
                Linear::of(self, row).map(Formula::Linear)
            }
            Step::Conv | Step::Scan if copied => None,
            Step::Conv => Conv::of(self, row).map(|conv| Formula::Conv(Box::new(conv))),
            Step::Scan => Scan::of(self).map(|scan| Formula::Scan(Box::new(scan))),
            Step::Hadamard => Hadamard::of(self, row).map(Formula::Hadamard),
            Step::Embed | Step::Head => None,
        }
    }

    /// One tensor in another form, or on the grids of a quantizer that leaves it FP32.
    fn requantize(&self, row: &Row) -> Option<Formula> {
        let [read] = &row.reads[..] else { return None };
        if row.quantizer.is_some() && row.format == Format::F32 {
            return Grids::of(self, row).map(Formula::Grids);
        }
        let output = self.output(row, false)?;
        Some(Formula::Requantize(self.operand(read)?, output))
    }
}
