//! Runs the cases through the datapath's steps.

mod int4;

use super::{Inputs, Named};
use crate::npz::{Array, Element};
use crate::ops::{
    Conv1dSilu, Conv1dUpdate, HadamardQuant, Linear, LinearCase, LinearInput, RmsNormQuant,
    ScanParameters, SelectiveScan, SelectiveScanUpdate,
};
use half::f16;
use ndarray::{Array2, ArrayD, Axis, concatenate, s};
use scalescope_sim::arith::hadamard::HadamardSize;
use scalescope_sim::arith::requant::{QuantRule, ScaleOrder, to_f16};
use scalescope_sim::error::{Result, SimError};
use scalescope_sim::profile::{Arithmetic, ConvRules, LinearRule};
use scalescope_sim::quant::{Acc, Multiplier, QTensor, QVector, Scale};
use scalescope_sim::step::conv::{ConvWeight, ConvWindow, conv_silu};
use scalescope_sim::step::hadamard::rotate_quantize;
use scalescope_sim::step::linear::{LinearOutput, LinearWeight, linear};
use scalescope_sim::step::norm::rms_norm;
use scalescope_sim::step::scan::{ScanInputs, ScanWeight, Source, selective_scan};
use scalescope_sim::trace::Tensor;

/// The outputs of those keys; of all keys where none are asked for.
pub(super) fn compute(
    inputs: &Inputs,
    keys: Option<&[&str]>,
    rules: &Arithmetic,
) -> Result<Vec<Named>> {
    let mut out = Outputs {
        keys,
        named: Vec::new(),
    };
    match inputs {
        Inputs::Conv1dSilu(case) => conv1d_silu(case, rules, &mut out)?,
        Inputs::Conv1dUpdate(case) => conv1d_update(case, rules, &mut out)?,
        Inputs::SelectiveScan(case) => scan(case, rules, &mut out)?,
        Inputs::SelectiveScanUpdate(case) => scan_update(case, rules, &mut out)?,
        Inputs::HadamardQuant(case) => hadamard(case, rules, &mut out)?,
        Inputs::Linear(LinearCase::Int8(case)) => linear_case(case, rules, &mut out)?,
        Inputs::Linear(LinearCase::Int4(case)) => int4::linear_case(case, rules, &mut out)?,
        Inputs::RmsNormQuant(case) => norm(case, rules, &mut out),
        Inputs::HadamardMatrix(n) => {
            let Some([name]) = keys else {
                return Ok(Vec::new());
            };
            let size = HadamardSize::of(*n)?;
            let matrix = Array2::from_shape_fn((*n, *n), |(i, j)| size.entry(i, j) as i8);
            (out.named).push(((*name).to_owned(), i8::wrap(matrix.into_dyn())));
        }
    }
    Ok(out.named)
}

struct Outputs<'a> {
    keys: Option<&'a [&'a str]>,
    named: Vec<Named>,
}

impl Outputs<'_> {
    fn wants(&self, key: &str) -> bool {
        self.keys.is_none_or(|keys| keys.contains(&key))
    }

    fn put<T: Element>(&mut self, key: &str, shape: &[usize], values: Vec<T>) {
        if !self.wants(key) {
            return;
        }
        let array = ArrayD::from_shape_vec(shape, values).expect("one element a place");
        self.named.push((key.to_owned(), T::wrap(array)));
    }

    fn put_matrix<T: Element>(&mut self, key: &str, matrix: Array2<T>) {
        if !self.wants(key) {
            return;
        }
        let array: Array = T::wrap(matrix.as_standard_layout().into_owned().into_dyn());
        self.named.push((key.to_owned(), array));
    }
}

fn tensor(codes: Array2<i8>, scale: Scale) -> QTensor {
    QTensor {
        codes: codes.as_standard_layout().into_owned(),
        scale,
    }
}

fn vector(codes: &ndarray::Array1<i8>, scale: Scale) -> QVector {
    QVector {
        codes: codes.to_vec(),
        scale,
    }
}

fn check_taps(taps: usize) -> Result<()> {
    match taps {
        2..=4 => Ok(()),
        _ => Err(SimError::value("weight", "2 to 4 taps", taps)),
    }
}

fn conv1d_silu(case: &Conv1dSilu, rules: &Arithmetic, out: &mut Outputs) -> Result<()> {
    let ConvRules {
        real, form, output, ..
    } = rules.prefill.conv;
    let (channels, taps) = case.weight.dim();
    check_taps(taps)?;
    let weight = ConvWeight::int8(
        &tensor(case.weight.clone(), case.scale_w),
        &vector(&case.bias, case.scale_b),
    );
    let history = Array2::<i8>::zeros((taps - 1, channels));
    for (silu, codes_key, real_key) in [
        (true, "out", "out_f32"),
        (false, "out_no_silu", "out_f32_no_silu"),
    ] {
        if !out.wants(codes_key) && !out.wants(real_key) {
            continue;
        }
        let (mut codes, mut values) = (Vec::new(), Vec::new());
        for x in case.x.outer_iter() {
            let rows = concatenate(Axis(0), &[history.view(), x]).expect("C columns each");
            let window = ConvWindow::Int8 {
                codes: rows.as_standard_layout().into_owned(),
                scale: case.scale_x,
            };
            let y = conv_silu(real, form, &weight, &window, silu);
            let (q, _) = QTensor::quantize(&y, case.scale_out, output);
            codes.extend(q.codes);
            values.extend(y);
        }
        let shape = case.x.shape();
        out.put(codes_key, shape, codes);
        out.put(real_key, shape, values);
    }
    Ok(())
}

fn conv1d_update(case: &Conv1dUpdate, rules: &Arithmetic, out: &mut Outputs) -> Result<()> {
    let ConvRules {
        real, form, output, ..
    } = rules.decode.conv;
    let (channels, taps) = case.weight.dim();
    check_taps(taps)?;
    let weight = ConvWeight::int8(
        &tensor(case.weight.clone(), case.scale_w),
        &vector(&case.bias, case.scale_b),
    );
    let (mut codes, mut states) = (Vec::new(), Vec::new());
    for (x, state) in case.x.outer_iter().zip(case.state_in.outer_iter()) {
        let mut rows = Array2::<i8>::zeros((taps, channels));
        rows.slice_mut(s![..taps - 1, ..])
            .assign(&state.slice(s![.., 1..]).t());
        rows.row_mut(taps - 1).assign(&x);
        states.extend(rows.t().iter().copied());
        let window = ConvWindow::Int8 {
            codes: rows,
            scale: case.scale_x,
        };
        let y = conv_silu(real, form, &weight, &window, true);
        codes.extend(QTensor::quantize(&y, case.scale_out, output).0.codes);
    }
    out.put("out", case.x.shape(), codes);
    out.put("state_out", case.state_in.shape(), states);
    Ok(())
}

fn scan_weight(p: &ScanParameters) -> Result<ScanWeight> {
    if p.a_log.ncols() > 256 {
        return Err(SimError::value(
            "A_log",
            "at most 256 states",
            p.a_log.ncols(),
        ));
    }
    Ok(ScanWeight::int8(
        &tensor(p.a_log.clone(), p.scale_a_log),
        &vector(&p.d, p.scale_d),
        &vector(&p.dt_bias, p.scale_dt_bias),
    ))
}

/// A matrix of one sequence, row-major.
fn rows<D: ndarray::RemoveAxis>(array: &ndarray::Array<i8, D>, b: usize) -> Array2<i8> {
    let one = array.index_axis(Axis(0), b);
    let columns = one.shape()[one.ndim() - 1];
    let count = one.len() / columns;
    Array2::from_shape_vec((count, columns), one.iter().copied().collect()).expect("rows")
}

/// Codes of a state `[E, N]`, row-major.
fn state_codes(state: &Array2<f32>, scale: Scale, rule: QuantRule) -> Vec<i8> {
    QTensor::quantize(state, scale, rule)
        .0
        .codes
        .into_raw_vec_and_offset()
        .0
}

fn scan(case: &SelectiveScan, rules: &Arithmetic, out: &mut Outputs) -> Result<()> {
    let p = &case.parameters;
    let rules = rules.prefill.scan;
    let weight = scan_weight(p)?;
    let channels = weight.channels();
    for (gate, key) in [(true, "y"), (false, "y_no_z")] {
        let state = gate && out.wants("state");
        if !out.wants(key) && !state {
            continue;
        }
        let (mut y, mut states) = (Vec::new(), Vec::new());
        for b in 0..case.u.shape()[0] {
            let (u, dt, z) = (rows(&case.u, b), rows(&case.dt, b), rows(&case.z, b));
            let (in_b, in_c) = (rows(&case.b, b), rows(&case.c, b));
            let int8 = |codes, scale| Source::Int8 { codes, scale };
            let done = selective_scan(
                &rules,
                &weight,
                &ScanInputs {
                    u: int8(&u, p.scale_u),
                    dt: int8(&dt, p.scale_dt),
                    b: int8(&in_b, p.scale_b),
                    c: int8(&in_c, p.scale_c),
                    z: gate.then_some(int8(&z, p.scale_z)),
                    state: None,
                },
            );
            y.extend(done.y.iter().map(|v| to_f16(*v)));
            if state {
                states.extend(state_codes(&done.state, p.scale_state, rules.state));
            }
        }
        out.put(key, case.u.shape(), y);
        if state {
            let shape = [case.u.shape()[0], channels, weight.states()];
            out.put("state", &shape, states);
        }
    }
    Ok(())
}

fn scan_update(case: &SelectiveScanUpdate, rules: &Arithmetic, out: &mut Outputs) -> Result<()> {
    let p = &case.parameters;
    let rules = rules.decode.scan;
    let weight = scan_weight(p)?;
    let (mut y, mut states) = (Vec::new(), Vec::new());
    for b in 0..case.u.nrows() {
        let row = |array: &Array2<i8>| rows(array, b);
        let (u, dt, z) = (row(&case.u), row(&case.dt), row(&case.z));
        let (in_b, in_c) = (row(&case.b), row(&case.c));
        let before = rows(&case.state_in, b);
        let int8 = |codes, scale| Source::Int8 { codes, scale };
        let done = selective_scan(
            &rules,
            &weight,
            &ScanInputs {
                u: int8(&u, p.scale_u),
                dt: int8(&dt, p.scale_dt),
                b: int8(&in_b, p.scale_b),
                c: int8(&in_c, p.scale_c),
                z: Some(int8(&z, p.scale_z)),
                state: Some(int8(&before, p.scale_state)),
            },
        );
        y.extend(done.y.iter().map(|v| to_f16(*v)));
        states.extend(state_codes(&done.state, p.scale_state, rules.state));
    }
    out.put("y", case.u.shape(), y);
    out.put("state_out", case.state_in.shape(), states);
    Ok(())
}

fn hadamard(case: &HadamardQuant, rules: &Arithmetic, out: &mut Outputs) -> Result<()> {
    let size = HadamardSize::of(case.x.ncols())?;
    // Powers of two are 1·2^k here and 2·2^k in files.
    if size.base() != case.base && size.base() * case.base != 2 {
        return Err(SimError::value("base", size.base(), case.base));
    }
    let rules = rules.prefill.hadamard;
    let unit = Scale::new(1.0).expect("one is a scale");
    for (key, factor) in [
        ("out", Some(case.scale)),
        ("out_overflow", case.scale_overflow),
    ] {
        let (Some(factor), true) = (factor, out.wants(key)) else {
            continue;
        };
        let x = Tensor::F32(case.x.mapv(f32::from));
        let (q, _) = rotate_quantize(&x, size, factor.get(), unit, rules);
        out.put_matrix(key, q.codes);
    }
    Ok(())
}

fn linear_case(case: &Linear, rules: &Arithmetic, out: &mut Outputs) -> Result<()> {
    let b = Scale::new(case.b.get())
        .map_err(|_| SimError::value("b", "a positive, finite, normal f32", case.b.get()))?;
    let (prefill, decode) = (rules.prefill.linear, rules.decode.linear);
    let one_row = decode.x_proj;
    match &case.input {
        LinearInput::Accumulators(acc) => {
            let alpha = case.alpha.map(Multiplier::get);
            let real = |rule: LinearRule| {
                let alpha = alpha.filter(|_| rule.order == ScaleOrder::OneRow);
                acc.iter().map(move |acc| match alpha {
                    Some(alpha) => alpha * *acc as f32,
                    None => rule.order.apply(case.a, b, Acc(*acc)),
                })
            };
            let codes = |rule: LinearRule| real(rule).map(|v| rule.output.code(v)).collect();
            let shape = [acc.len()];
            let row = prefill.x_proj;
            out.put("out_i8", &shape, codes(row));
            out.put("out_f16", &shape, real(row).map(to_f16).collect());
            out.put("out_i8_channel_major", &shape, codes(prefill.in_proj));
            out.put("gemv_out_i8", &shape, codes(one_row));
            out.put("gemv_out_f16", &shape, real(one_row).map(to_f16).collect());
        }
        LinearInput::Product { x, weight } => {
            let product = Product {
                x: x.as_standard_layout().into_owned(),
                weight: LinearWeight::int8(weight.view(), b),
                a: Scale::new(case.a.get()).map_err(|_| {
                    SimError::value("a", "a positive, finite, normal f32", case.a.get())
                })?,
            };
            let row = prefill.x_proj;
            if out.wants("out_i8") {
                out.put_matrix("out_i8", product.codes(x.nrows(), row));
            }
            if out.wants("out_f16") {
                out.put_matrix("out_f16", product.halves(x.nrows(), row));
            }
            if out.wants("out_i8_channel_major") {
                let codes = product.codes(x.nrows(), prefill.in_proj);
                out.put_matrix("out_i8_channel_major", codes.reversed_axes());
            }
            if out.wants("gemv_out_i8") {
                out.put_matrix("gemv_out_i8", product.codes(1, one_row));
            }
            if out.wants("gemv_out_f16") {
                out.put_matrix("gemv_out_f16", product.halves(1, one_row));
            }
        }
    }
    Ok(())
}

struct Product<'a> {
    x: Array2<i8>,
    weight: LinearWeight<'a>,
    /// Stands for `s_in / s_out`, with an output scale of 1.
    a: Scale,
}

impl Product<'_> {
    fn run(&self, rows: usize, rule: LinearRule, output: LinearOutput) -> Tensor {
        let x = Tensor::I8(QTensor {
            codes: self.x.slice(s![..rows, ..]).to_owned(),
            scale: self.a,
        });
        linear(&x, Some(self.a), &self.weight, rule, output)
            .expect("f32 factors are never refused")
            .out
    }

    fn codes(&self, rows: usize, rule: LinearRule) -> Array2<i8> {
        let unit = Scale::new(1.0).expect("one is a scale");
        match self.run(rows, rule, LinearOutput::Int8(unit)) {
            Tensor::I8(q) => q.codes,
            _ => unreachable!("INT8 was asked for"),
        }
    }

    fn halves(&self, rows: usize, rule: LinearRule) -> Array2<f16> {
        match self.run(rows, rule, LinearOutput::F16) {
            Tensor::F16(v) => v,
            _ => unreachable!("binary16 was asked for"),
        }
    }
}

fn norm(case: &RmsNormQuant, rules: &Arithmetic, out: &mut Outputs) {
    let weight: Vec<f32> = case.weight.iter().map(|w| f32::from(*w)).collect();
    let x = Tensor::F16(case.x.clone());
    for (residual, codes_key, stream_key) in [
        (case.residual.as_ref(), "out", "residual_out"),
        (None, "out_no_residual", "residual_out_no_residual"),
    ] {
        if !out.wants(codes_key) && !out.wants(stream_key) {
            continue;
        }
        let done = rms_norm(&x, residual, &weight, case.eps);
        let (q, _) = QTensor::quantize(&done.normed, case.scale, rules.prefill.norm_out);
        out.put_matrix(codes_key, q.codes);
        out.put_matrix(stream_key, done.residual);
    }
}
