//! Linear cases with four-bit weights.

use super::Outputs;
use crate::ops::{Expected, Int4Case, Int4Linear};
use ndarray::Array2;
use scalescope_sim::arith::int4::{self, Dequantize, GROUP, LOWEST, table_without_groups};
use scalescope_sim::arith::requant::to_f16;
use scalescope_sim::error::{Result, SimError};
use scalescope_sim::profile::{Arithmetic, LinearRule};
use scalescope_sim::quant::{Int4Tensor, QTensor, QWeight, Scale};
use scalescope_sim::step::linear::{LinearOutput, LinearWeight, linear};
use scalescope_sim::trace::Tensor;

pub(super) fn linear_case(case: &Int4Linear, rules: &Arithmetic, out: &mut Outputs) -> Result<()> {
    if let Some(weight) = &case.weight {
        // As files have codes of groups: plus 8.
        let offset = match weight.groups.is_some() {
            true => LOWEST,
            false => 0,
        };
        out.put_matrix("codes", weight.codes.t().mapv(|code| code - offset));
        if let Some(groups) = &weight.groups {
            out.put_matrix("s_group", groups.t().to_owned());
        }
        out.put_matrix("w8", int8(weight, rules.dequantize));
    }
    if let Some(Expected::F32(file)) = case.expected_of("s_channel") {
        out.put("s_channel", file.shape(), case.channels.clone());
    }
    let Some(x) = &case.x else {
        return Ok(());
    };
    // One row is decode's.
    let step = match x.nrows() {
        1 => &rules.decode,
        _ => &rules.prefill,
    };
    let rule = step.linear.out_proj;
    match &case.weight {
        Some(weight) => product(case, (x, weight), rules.dequantize, rule, out),
        None => {
            sums(case, x, rule, out);
            Ok(())
        }
    }
}

/// A whole product, by the step of the datapath.
fn product(
    case: &Int4Linear,
    (x, weight): (&Array2<i8>, &Int4Case),
    dequantize: Dequantize,
    rule: LinearRule,
    out: &mut Outputs,
) -> Result<()> {
    let scale = |key: &str, value: f32| {
        Scale::new(value)
            .map_err(|_| SimError::value(case.key(key), "a positive, finite, normal f32", value))
    };
    let channels = case.channels.iter().map(|s| scale("s_channel", *s));
    let tensor = Int4Tensor::new(
        weight.codes.view(),
        weight.groups.clone(),
        channels.collect::<Result<_>>()?,
    )?;
    let weight = QWeight::Int4(tensor);
    let weight = LinearWeight::quantized(&weight, 0..weight.dim().0, dequantize);
    let s_act = case.s_act;
    let x = Tensor::I8(QTensor {
        codes: x.as_standard_layout().into_owned(),
        scale: s_act,
    });
    let unit = Scale::new(1.0).expect("one is a scale");
    for key in ["out", "out16"] {
        let output = match case.is_f16(key) {
            true => LinearOutput::F16,
            // Channel scales are in units of the output's already.
            false => LinearOutput::Int8(unit),
        };
        if !out.wants(key) {
            continue;
        }
        match linear(&x, Some(s_act), &weight, rule, output)?.out {
            Tensor::I8(q) => out.put_matrix(key, q.codes),
            Tensor::F16(v) => out.put_matrix(key, v),
            _ => unreachable!("INT8 or binary16 was asked for"),
        }
    }
    Ok(())
}

/// Sums that are given: every one meets every channel scale.
fn sums(case: &Int4Linear, x: &Array2<i8>, rule: LinearRule, out: &mut Outputs) {
    let shape = (x.len(), case.channels.len());
    let real = Array2::from_shape_fn(shape, |(row, column)| {
        int4::real(x[(row, 0)].into(), case.channels[column], case.s_act)
    });
    for key in ["out", "out16"] {
        match case.is_f16(key) {
            true => out.put_matrix(key, real.mapv(to_f16)),
            false => out.put_matrix(key, real.mapv(|v| rule.output.code(v))),
        }
    }
}

/// The INT8 weights, `[I, O]`, whatever the scales.
fn int8(weight: &Int4Case, rule: Dequantize) -> Array2<i8> {
    let (outputs, inputs) = weight.codes.dim();
    let [table] = table_without_groups();
    Array2::from_shape_fn((inputs, outputs), |(k, n)| {
        let code = weight.codes[(n, k)];
        match &weight.groups {
            Some(groups) => rule.weight(code, groups[(n, k / GROUP)]),
            None => table[(code - LOWEST) as usize],
        }
    })
}

impl Int4Linear {
    /// Whether an output is of binary16: as the file has it, or as its name says.
    fn is_f16(&self, key: &str) -> bool {
        match self.expected_of(key) {
            Some(expected) => matches!(expected, Expected::F16(_)),
            None => key == "out16",
        }
    }

    fn expected_of(&self, key: &str) -> Option<&Expected> {
        let mut expected = self.expected.iter();
        expected
            .find(|(other, _)| *other == key)
            .map(|(_, array)| array)
    }

    fn key(&self, key: &str) -> String {
        match self.name.as_str() {
            "" => key.to_owned(),
            name => format!("{name}/{key}"),
        }
    }
}
