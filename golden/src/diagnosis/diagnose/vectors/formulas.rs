//! The formula of a case's step, one for each sequence, and what the file has of it.

use crate::check_op::{Case, Inputs};
use crate::diagnosis::diagnose::formula::{
    Activation, Add, Conv, Formula, Hadamard, Linear, Math, Meet, Norm, Operand, Output, Quantize,
    Scan,
};
use crate::npz::Array;
use crate::ops::{
    self, Conv1dSilu, Conv1dUpdate, HadamardQuant, LinearCase, LinearInput, RmsNormQuant,
    ScanParameters,
};
use half::f16;
use ndarray::{Array2, ArrayView, Axis, Ix2, RemoveAxis, s};
use scalescope_sim::arith::hadamard::HadamardSize;
use scalescope_sim::arith::requant::QuantRule;
use scalescope_sim::profile::{Arithmetic, LinearRule, SiluForm, StepRules};
use scalescope_sim::quant::{QTensor, QVector};
use scalescope_sim::step::conv::ConvWeight;
use scalescope_sim::trace::TracePoint;
use std::sync::Arc;

/// The tensor of a block that an output of an operation is.
pub(super) fn point(case: &Case, key: &str) -> TracePoint {
    match &case.inputs {
        Inputs::Conv1dSilu(_) | Inputs::Conv1dUpdate(_) => TracePoint::ConvOut,
        Inputs::SelectiveScan(_) | Inputs::SelectiveScanUpdate(_) => match key {
            "state" | "state_out" => TracePoint::SsmState,
            _ => TracePoint::SsmY,
        },
        Inputs::HadamardQuant(_) | Inputs::HadamardMatrix(_) => TracePoint::HadOut,
        Inputs::Linear(_) if key == "out_i8_channel_major" => TracePoint::InProjOut,
        Inputs::Linear(_) => TracePoint::XProjOut,
        Inputs::RmsNormQuant(_) if key.starts_with("residual") => TracePoint::ResidualOut,
        Inputs::RmsNormQuant(_) => TracePoint::NormOut,
    }
}

/// The formulas that make an output, one for each sequence; none where an operation has none (sums that are
/// given, weights of four bits, states that are copied).
pub(super) fn of(case: &Case, key: &str, rules: &Arithmetic) -> Vec<Formula> {
    let (prefill, decode) = (&rules.prefill, &rules.decode);
    match &case.inputs {
        Inputs::Conv1dSilu(c) => conv(c, key, prefill),
        Inputs::Conv1dUpdate(c) if key == "out" => conv_update(c, decode),
        Inputs::SelectiveScan(c) => (0..c.u.shape()[0])
            .map(|b| {
                let mut scan = scan(&c.parameters, prefill);
                scan.u.values = codes(c.u.index_axis(Axis(0), b));
                scan.dt.values = codes(c.dt.index_axis(Axis(0), b));
                scan.z.values = codes(c.z.index_axis(Axis(0), b));
                scan.b.values = codes(c.b.index_axis(Axis(0), b));
                scan.c.values = codes(c.c.index_axis(Axis(0), b));
                if key == "y_no_z" {
                    scan.gate = None;
                }
                Formula::Scan(Box::new(scan))
            })
            .collect(),
        Inputs::SelectiveScanUpdate(c) => (0..c.u.nrows())
            .map(|b| {
                let mut scan = scan(&c.parameters, decode);
                scan.u.values = codes(c.u.slice(s![b..=b, ..]));
                scan.dt.values = codes(c.dt.slice(s![b..=b, ..]));
                scan.z.values = codes(c.z.slice(s![b..=b, ..]));
                scan.b.values = codes(c.b.slice(s![b..=b, ..]));
                scan.c.values = codes(c.c.slice(s![b..=b, ..]));
                let step = c.parameters.scale_state.get();
                let before = codes(c.state_in.index_axis(Axis(0), b));
                scan.before = Some(before.mapv(|q| (scan.math.mul)(step, q)));
                Formula::Scan(Box::new(scan))
            })
            .collect(),
        Inputs::HadamardQuant(c) => hadamard(c, key, prefill),
        Inputs::Linear(LinearCase::Int8(c)) => match &c.input {
            LinearInput::Product { x, weight } => linear(c, (x, weight), key, rules),
            LinearInput::Accumulators(_) => Vec::new(),
        },
        Inputs::RmsNormQuant(c) => norm(c, key, prefill),
        Inputs::Conv1dUpdate(_)
        | Inputs::HadamardMatrix(_)
        | Inputs::Linear(LinearCase::Int4(_)) => Vec::new(),
    }
}

/// What a file has of an output, in as many tensors of rows as there are formulas, or in one.
pub(super) fn tensors(
    array: &Array,
    key: &str,
    point: TracePoint,
    count: usize,
) -> Vec<Array2<f32>> {
    let numbers = match array {
        Array::I8(a) => a.mapv(f32::from),
        Array::F16(a) => a.mapv(f16::to_f32),
        Array::F32(a) => a.clone(),
        other => unreachable!("outputs are i8, f16 or f32, not {}", other.describe()),
    };
    let columns = match numbers.ndim() {
        1 => 1,
        n => numbers.shape()[n - 1],
    };
    let rows = numbers.len() / columns.max(1);
    let all = numbers
        .into_shape_with_order((rows, columns))
        .expect("row-major");
    if point == TracePoint::InProjOut && key == "out_i8_channel_major" {
        return vec![all.reversed_axes().as_standard_layout().into_owned()];
    }
    let count = if rows.is_multiple_of(count.max(1)) {
        count.max(1)
    } else {
        1
    };
    let each = rows / count;
    (0..count)
        .map(|i| all.slice(s![i * each..(i + 1) * each, ..]).to_owned())
        .collect()
}

fn codes<D: RemoveAxis>(array: ArrayView<'_, i8, D>) -> Array2<f32> {
    let array = array.mapv(f32::from);
    array.into_dimensionality::<Ix2>().expect("rows")
}

fn quantized(scale: f32, rule: QuantRule) -> Output {
    Output {
        quantizer: Some(Quantize::of(scale, rule)),
        ..Output::real(false)
    }
}

fn conv(c: &Conv1dSilu, key: &str, rules: &StepRules) -> Vec<Formula> {
    let weight = ConvWeight::int8(
        &QTensor {
            codes: c.weight.clone(),
            scale: c.scale_w,
        },
        &QVector {
            codes: c.bias.to_vec(),
            scale: c.scale_b,
        },
    );
    let taps = c.weight.t().mapv(f32::from);
    let output = match key.starts_with("out_f32") {
        true => Output::real(false),
        false => quantized(c.scale_out.get(), rules.conv.output),
    };
    let own = Conv {
        math: Math::of(rules.conv.real),
        x: Operand::new(Array2::zeros((0, 0)), c.scale_x.get()),
        history: Array2::zeros((taps.nrows() - 1, taps.ncols())),
        bias: (0..taps.ncols()).map(|i| weight.bias(i)).collect(),
        bias_scale: Some(c.scale_b.get()),
        tap_scale: vec![c.scale_w.get()],
        taps,
        bias_after: false,
        integer: rules.conv.form == scalescope_sim::profile::ConvForm::IntegerSum,
        chip: None,
        product: rules.conv.silu_form == SiluForm::Product,
        activation: match key.ends_with("no_silu") {
            true => Activation::Identity,
            false => Activation::Silu,
        },
        measured: None,
        scale_through: None,
        narrow_sum: None,
        running: None,
        sigmoid_of: None,
        channels: None,
        halo: None,
        dilation: 1,
        tile: None,
        output,
    };
    let of = |x| {
        let mut conv = own.clone();
        conv.x.values = codes(x);
        Formula::Conv(Box::new(conv))
    };
    c.x.outer_iter().map(of).collect()
}

/// A token for each sequence, whose history is in the state.
fn conv_update(c: &Conv1dUpdate, rules: &StepRules) -> Vec<Formula> {
    let as_rows = Conv1dSilu {
        name: String::new(),
        x: c.x.clone().insert_axis(Axis(1)),
        weight: c.weight.clone(),
        bias: c.bias.clone(),
        scale_x: c.scale_x,
        scale_w: c.scale_w,
        scale_b: c.scale_b,
        scale_out: c.scale_out,
        out: None,
        out_no_silu: None,
        out_f32: None,
        out_f32_no_silu: None,
    };
    let mut all = conv(&as_rows, "out", rules);
    for (formula, state) in all.iter_mut().zip(c.state_in.outer_iter()) {
        if let Formula::Conv(conv) = formula {
            let history = state.slice(s![.., 1..]);
            conv.history = history
                .t()
                .mapv(f32::from)
                .as_standard_layout()
                .into_owned();
        }
    }
    all
}

/// All but the inputs' values.
fn scan(p: &ScanParameters, rules: &StepRules) -> Scan {
    let scales = [p.scale_u, p.scale_dt, p.scale_b, p.scale_c, p.scale_z];
    let reads = scales.map(|scale| Operand::new(Array2::zeros((0, 0)), scale.get()));
    let vector = |codes: &ndarray::Array1<i8>, scale| QVector {
        codes: codes.to_vec(),
        scale,
    };
    let a_log = QTensor {
        codes: p.a_log.clone(),
        scale: p.scale_a_log,
    };
    let (d, dt_bias) = (vector(&p.d, p.scale_d), vector(&p.dt_bias, p.scale_dt_bias));
    Scan {
        formula: rules.scan.formula,
        state_scale: Some(p.scale_state.get()),
        last: quantized(p.scale_state.get(), rules.scan.state),
        ..Scan::new(Math::of(rules.scan.real), reads, &a_log, [&d, &dt_bias])
    }
}

fn hadamard(c: &HadamardQuant, key: &str, rules: &StepRules) -> Vec<Formula> {
    let factor = match key {
        "out_overflow" => c.scale_overflow,
        _ => Some(c.scale),
    };
    let (Some(factor), Ok(size)) = (factor, HadamardSize::of(c.x.ncols())) else {
        return Vec::new();
    };
    let stages = (size.n() / size.base()).ilog2() as usize + 1;
    // The factor holds the grid of the codes.
    let mut output = quantized(1.0, rules.hadamard.quantizer());
    output.quantizer.iter_mut().for_each(|q| q.in_units = true);
    vec![Formula::Hadamard(Hadamard {
        y: Operand::new(c.x.mapv(f16::to_f32), 1.0),
        size: Some(size),
        stages: vec![true; stages],
        flipped: None,
        factor: None,
        norm: f64::from(factor.get()) / size.norm(),
        integer: None,
        output,
    })]
}

fn linear(
    c: &ops::Linear,
    (x, w): (&Array2<i8>, &Array2<i8>),
    key: &str,
    rules: &Arithmetic,
) -> Vec<Formula> {
    let one_row = key.starts_with("gemv");
    let LinearRule {
        order,
        accumulator,
        output: rule,
        ..
    } = match key {
        "out_i8_channel_major" => rules.prefill.linear.in_proj,
        _ if one_row => rules.decode.linear.x_proj,
        _ => rules.prefill.linear.x_proj,
    };
    let rows = if one_row { 1 } else { x.nrows() };
    let mut output = match key.ends_with("f16") {
        true => Output::real(true),
        false => quantized(1.0, rule),
    };
    output.quantizer.iter_mut().for_each(|q| q.in_units = true);
    vec![Formula::Linear(Linear {
        x: Operand::new(x.slice(s![..rows, ..]).mapv(f32::from), c.a.get()),
        times: vec![1.0; x.ncols()],
        w: Arc::new(w.mapv(f32::from)),
        w_scales: vec![c.b.get()],
        meet: Meet::Order(order),
        bias: Vec::new(),
        accumulator,
        running: None,
        blocks: None,
        scale_through: None,
        uncleared: None,
        channels: None,
        sums: None,
        output,
    })]
}

fn norm(c: &RmsNormQuant, key: &str, rules: &StepRules) -> Vec<Formula> {
    let residual = c
        .residual
        .as_ref()
        .filter(|_| !key.ends_with("no_residual"));
    let hidden = Operand::new(c.x.mapv(f16::to_f32), 1.0);
    let residual = residual.map(|r| Operand::new(r.clone(), 1.0));
    let add = Add::new(hidden, residual);
    if key.starts_with("residual") {
        return vec![Formula::Add(add)];
    }
    let residual = Operand::new(add.run(), 1.0);
    let weight = c.weight.iter().map(|w| w.to_f32()).collect();
    let output = quantized(c.scale.get(), rules.norm_out);
    vec![Formula::Norm(Norm::new(
        residual,
        weight,
        c.eps.into(),
        output,
    ))]
}
