//! Linear weights to four bits, as Quamba quantizes them without GPTQ.

use crate::arith::int4::{GROUP, Row, quantize_row};
use crate::dataflow::Step;
use crate::error::{Result, SimError};
use crate::model::{Config, FloatModel, QuantizedModel};
use crate::quant::{Int4Tensor, QWeight, Scale};
use half::f16;
use ndarray::Array2;
use rayon::prelude::*;
use std::str::FromStr;

/// Which weights have four bits: `w8a8`, none; `w4a8`, all that can; `w4a8:x_proj,out_proj@3` (or with `+`
/// between them), those of the steps, or of the step in one block, that are named.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct FourBits(Vec<(Step, Option<usize>)>);

impl FourBits {
    /// Every weight of a model of this shape that can have four bits: rows of whole groups of 128, more
    /// than one.
    pub fn possible(config: &Config) -> Self {
        let inputs = [config.d_model, config.d_inner, config.d_inner];
        let can = |step: &Step| has_groups(of_step(*step, inputs));
        Self(
            (Step::FOUR_BIT.into_iter().filter(can))
                .map(|step| (step, None))
                .collect(),
        )
    }

    /// Whether a weight has four bits.
    pub fn has(&self, layer: usize, step: Step) -> bool {
        let mut named = self.0.iter();
        named.any(|(of, at)| *of == step && at.is_none_or(|at| at == layer))
    }

    /// The last block that is named.
    fn last(&self) -> Option<usize> {
        self.0.iter().filter_map(|(_, at)| *at).max()
    }
}

impl FromStr for FourBits {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let all = || Step::FOUR_BIT.map(|step| (step, None)).to_vec();
        match text {
            "w8a8" => return Ok(Self::default()),
            "w4a8" => return Ok(Self(all())),
            _ => {}
        }
        let list = text
            .strip_prefix("w4a8:")
            .ok_or("expected w8a8, w4a8 or w4a8:STEP,STEP@BLOCK,…")?;
        let one = |item: &str| {
            let (step, at) = match item.split_once('@') {
                Some((step, at)) => (step, Some(at.parse().ok()?)),
                None => (item, None),
            };
            let step = Step::from_name(step).filter(|step| Step::FOUR_BIT.contains(step));
            Some((step?, at))
        };
        let items = list.split([',', '+']).map(|item| {
            one(item).ok_or_else(|| {
                format!("{item:?}: expected in_proj, x_proj or out_proj, with @BLOCK or without")
            })
        });
        items.collect::<Result<_, _>>().map(Self)
    }
}

/// Puts four-bit weights into a quantized model: those that `which` names, quantized from the folded
/// model it was made from. dt_proj's stay as they are.
///
/// # Errors
///
/// A float model of another shape; a block that the model does not have; weights whose rows are not groups of 128, more than one. Then the
/// model is as it was.
pub fn to_int4(model: &mut QuantizedModel, float: &FloatModel, which: &FourBits) -> Result<()> {
    let count = model.layers.len();
    if let Some(block) = which.last().filter(|block| *block >= count) {
        let expected = format!("blocks below {count}");
        return Err(SimError::value("four-bit weights", expected, block));
    }
    if float.layers.len() != model.layers.len() || float.config != model.config {
        return Err(SimError::value(
            "float model",
            "the one that the quantized model was made from",
            "one of another shape",
        ));
    }
    let all: Vec<(usize, Step)> = (0..model.layers.len())
        .flat_map(|i| Step::FOUR_BIT.map(|step| (i, step)))
        .filter(|(i, step)| which.has(*i, *step))
        .collect();
    let made: Vec<Result<Int4Tensor>> = all
        .par_iter()
        .map(|(i, step)| {
            let layer = &float.layers[*i];
            let weights = [&layer.in_proj, &layer.x_proj, &layer.out_proj];
            let weight = of_step(*step, weights);
            int4(&format!("layers.{i}.{}.weight", step.name()), weight)
        })
        .collect();
    let made: Vec<Int4Tensor> = made.into_iter().collect::<Result<_>>()?;
    for ((i, step), weight) in all.into_iter().zip(made) {
        let layer = &mut model.layers[i];
        let weights = [&mut layer.in_proj, &mut layer.x_proj, &mut layer.out_proj];
        *of_step(step, weights) = QWeight::Int4(weight);
    }
    Ok(())
}

/// What belongs to a step of [`Step::FOUR_BIT`], of one for each.
fn of_step<T>(step: Step, all: [T; 3]) -> T {
    let mut pairs = Step::FOUR_BIT.into_iter().zip(all);
    let own = pairs.find(|(one, _)| *one == step);
    own.expect("a step whose weights can have four bits").1
}

/// Whether rows of so many codes are groups, more than one. Kernels read rows of 128 without groups, but
/// how Quamba quantizes them was not established.
fn has_groups(inputs: usize) -> bool {
    inputs.is_multiple_of(GROUP) && inputs > GROUP
}

/// A weight in four bits, row by row.
pub(super) fn int4(name: &str, weight: &Array2<f16>) -> Result<Int4Tensor> {
    let (outputs, inputs) = weight.dim();
    if !has_groups(inputs) {
        return Err(SimError::value(
            format_args!("{name} in four bits"),
            format_args!("inputs in groups of {GROUP}, two or more"),
            format_args!("{inputs} inputs"),
        ));
    }
    let weight = weight.as_slice().expect("weights are row-major");
    let rows: Vec<Row> = weight.par_chunks(inputs).map(quantize_row).collect();
    let codes: Vec<i8> = rows.iter().flat_map(|row| &row.codes).copied().collect();
    let groups: Vec<f16> = rows.iter().flat_map(|row| &row.groups).copied().collect();
    let channels = rows.iter().map(|row| Scale::new(row.channel));
    let matrix = Array2::from_shape_vec((outputs, inputs), codes).expect("a code for each weight");
    let groups = Array2::from_shape_vec((outputs, inputs / GROUP), groups);
    Int4Tensor::new(
        matrix.view(),
        Some(groups.expect("a scale for each group")),
        channels.collect::<Result<_>>()?,
    )
}
