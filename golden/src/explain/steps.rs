//! A step of a traced block as a case of its operation, for the rules that the datapath does not
//! take as data: quantizers of norm and linears, ties of the Hadamard quantizer.

use crate::check_op::{Case, Inputs, Rules};
use crate::npz::Element;
use crate::ops::{HadamardQuant, Linear, LinearInput, Op, RmsNormQuant};
use crate::trace_file::Points;
use crate::value::Value;
use half::f16;
use ndarray::{Array1, Array2, s};
use scalescope_sim::arith::hadamard::HadamardSize;
use scalescope_sim::model::{QuantizedModel, ScaleKey};
use scalescope_sim::quant::Multiplier;
use scalescope_sim::step::rotate::quantizer_factor;
use scalescope_sim::trace::{Place, TracePoint};

/// The step that makes a point of a block, with the trace's own tensors as its inputs; `None` if
/// the trace lacks them or the point has no such operation.
pub(super) fn as_case(
    model: &QuantizedModel,
    rules: &mut Rules,
    points: &Points,
    place: Place,
    decode: bool,
) -> Option<(Op, Case)> {
    let index = place.layer?;
    let layer = &model.layers[index];
    let value = |point| points.get(&Place::layer(index, point));
    let codes = |point| match value(point)? {
        Value::I8(codes) => Some(codes),
        _ => None,
    };
    let expected = codes(place.point)?;
    let case = |op, inputs| {
        let expected = i8::wrap(expected.clone().into_dyn());
        let case = Case {
            name: String::new(),
            inputs,
            expected: vec![("out".to_owned(), expected)],
        };
        Some((op, case))
    };
    let scale = |key| layer.scales.get(key);
    match place.point {
        TracePoint::HadOut => {
            let Value::F16(x) = value(TracePoint::SsmY)? else {
                return None;
            };
            let size = HadamardSize::of(x.ncols()).ok()?;
            let factor = quantizer_factor(size, scale(ScaleKey::OutProjInput));
            let inputs = HadamardQuant {
                name: String::new(),
                x: x.clone(),
                base: size.base().max(2),
                scale: Multiplier::new(factor).ok()?,
                out: None,
                scale_overflow: None,
                out_overflow: None,
            };
            case(Op::HadamardQuant, Inputs::HadamardQuant(inputs))
        }
        TracePoint::NormOut => {
            let Value::F32(residual) = value(TracePoint::ResidualOut)? else {
                return None;
            };
            let inputs = RmsNormQuant {
                name: String::new(),
                // Nothing is added: the stream goes in as it came out.
                x: Array2::from_elem(residual.dim(), f16::ZERO),
                residual: Some(residual.clone()),
                weight: Array1::from_vec(layer.norm.clone()),
                scale: scale(ScaleKey::InProjInput),
                eps: model.config.eps,
                out: None,
                residual_out: None,
                out_no_residual: None,
                residual_out_no_residual: None,
            };
            case(Op::RmsNormQuant, Inputs::RmsNormQuant(inputs))
        }
        TracePoint::InProjOut | TracePoint::XProjOut | TracePoint::DtProjOut => {
            let arithmetic = &mut rules.arithmetic;
            let step = match decode {
                true => arithmetic.decode,
                false => arithmetic.prefill,
            };
            let (x, weight, from, to, order) = match place.point {
                TracePoint::InProjOut => (
                    codes(TracePoint::NormOut)?.clone(),
                    &layer.in_proj,
                    ScaleKey::InProjInput,
                    ScaleKey::InProjOutput,
                    step.linear.in_proj,
                ),
                TracePoint::XProjOut => (
                    codes(TracePoint::XProjIn)
                        .or_else(|| codes(TracePoint::ConvOut))?
                        .clone(),
                    &layer.x_proj,
                    ScaleKey::XProjInput,
                    ScaleKey::XProjOutput,
                    step.linear.x_proj,
                ),
                _ => (
                    codes(TracePoint::XProjOut)?
                        .slice(s![.., ..model.config.dt_rank])
                        .to_owned(),
                    &layer.dt_proj,
                    ScaleKey::XProjOutput,
                    ScaleKey::DtProjOutput,
                    step.linear.dt_proj,
                ),
            };
            arithmetic.prefill.linear.x_proj = order;
            let inputs = Linear {
                name: String::new(),
                input: LinearInput::Product {
                    x,
                    weight: weight.codes.clone(),
                },
                a: scale(from).ratio(scale(to)),
                b: weight.scale.to_real(),
                alpha: None,
                out_i8: None,
                out_f16: None,
                out_i8_channel_major: None,
                gemv_out_i8: None,
                gemv_out_f16: None,
            };
            let (op, mut case) = case(Op::Linear, Inputs::Linear(inputs))?;
            case.expected[0].0 = "out_i8".to_owned();
            Some((op, case))
        }
        _ => None,
    }
}
