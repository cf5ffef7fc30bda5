//! The steps of a block by themselves: integers in and out, rules of a profile. `scalescope/ops.py` checks types and
//! shapes before it calls these.

use crate::arrays::whole;
use crate::errors::raise;
use crate::rules::{Named, find_profile};
use crate::work;
use half::f16;
use ndarray::{Array1, Array2, ArrayD};
use numpy::{PyReadonlyArray1, PyReadonlyArray2, PyReadonlyArrayDyn};
use pyo3::prelude::*;
use scalescope_sim::arith::fixed::{FixedFactor, Requantizer, Scaling};
use scalescope_sim::arith::function::{Function, FunctionRule, Inputs};
use scalescope_sim::arith::hadamard::HadamardSize;
use scalescope_sim::arith::real::{Ieee, RealMath, RealRules};
use scalescope_sim::arith::requant::QuantRule;
use scalescope_sim::arith::sfu::{CudaFast, CudaLibm, CudaSubnormal};
use scalescope_sim::dataflow::Step;
use scalescope_sim::error::{Result, SimError};
use scalescope_sim::profile::{InputScale, LinearRule, SiluForm, StepRules, TapHistory};
use scalescope_sim::quant::{Acc, QTensor, QVector, Scale};
use scalescope_sim::step::conv::{ConvWeight, ConvWindow, conv_silu, silu_product, untiled};
use scalescope_sim::step::conv_unit::{conv_unit, is_unit};
use scalescope_sim::step::hadamard::{quantizer_factor, rotate_quantize};
use scalescope_sim::step::hadamard_unit::{IntegerRotation, hadamard_unit};
use scalescope_sim::step::linear::{LinearOutput, LinearWeight, linear};
use scalescope_sim::step::norm::rms_norm;
use scalescope_sim::step::scan::{ScanInputs, ScanWeight, Source, selective_scan};
use scalescope_sim::step::scan_unit::unit_scan;
use scalescope_sim::trace::Tensor;

/// A profile, "cuda" or "torch", "prefill" or "decode".
type By = (Named, String, String);

fn rules((profile, implementation, phase): &By) -> Result<StepRules> {
    let profile = find_profile(profile)?;
    let arithmetic = match implementation.as_str() {
        "cuda" => profile.cuda,
        "torch" => profile.torch,
        other => return Err(SimError::value("implementation", "cuda or torch", other)),
    };
    match phase.as_str() {
        "prefill" => Ok(arithmetic.prefill),
        "decode" => Ok(arithmetic.decode),
        other => Err(SimError::value("phase", "prefill or decode", other)),
    }
}

fn linear_rule(rules: &StepRules, step: &str) -> Result<LinearRule> {
    let found = Step::from_name(step).and_then(|step| rules.linear.get(step).copied());
    let expected = "one of in_proj, x_proj, dt_proj, out_proj";
    found.ok_or_else(|| SimError::value("step", expected, step))
}

fn scale(name: &str, value: f32) -> Result<Scale> {
    Scale::new(value).map_err(|e| e.within(name))
}

/// The quantizer of a site.
fn quantizer(rules: &StepRules, site: &str) -> Result<QuantRule> {
    Ok(match site {
        "norm_out" => rules.norm_out,
        "conv_in" => rules.conv_in,
        "conv_out" => rules.conv.output,
        "state" => rules.scan.state,
        "requantize" => rules.requantize,
        other => match linear_rule(rules, other) {
            Ok(rule) => rule.output,
            Err(_) => {
                let expected = "one of norm_out, conv_in, conv_out, state, requantize, in_proj, x_proj, dt_proj, out_proj";
                return Err(SimError::value("site", expected, other));
            }
        },
    })
}

/// Codes of real values. `rule` is JSON of quotient, rounding and overflow; without it a profile's at `site`.
#[pyfunction]
pub fn quantize<'py>(
    py: Python<'py>,
    values: PyReadonlyArrayDyn<'py, f32>,
    step: f32,
    rule: Option<String>,
    by: By,
    site: String,
) -> PyResult<(Bound<'py, PyAny>, u64)> {
    let values = values.as_array().to_owned();
    let (codes, lost) = work::short(py, || {
        let rule = match rule {
            Some(json) => serde_json::from_str(&json)
                .map_err(|e| SimError::value("rule", "quotient, rounding and overflow", e))?,
            None => quantizer(&rules(&by)?, &site)?,
        };
        let scale = scale("scale", step)?;
        let values = values.as_standard_layout();
        let mut codes = ArrayD::<i8>::zeros(values.raw_dim());
        let to = codes.as_slice_mut().expect("fresh arrays are row-major");
        let status = rule.quantize_slice(values.as_slice().expect("just made so"), scale, to);
        Ok((codes, status.saturated + status.wrapped))
    })?;
    Ok((whole(py, codes), lost))
}

/// Accumulators to codes as a linear step's last stage does it.
#[pyfunction]
pub fn requantize<'py>(
    py: Python<'py>,
    acc: PyReadonlyArrayDyn<'py, i64>,
    s_in: f32,
    s_weight: f32,
    s_out: f32,
    by: By,
    step: String,
) -> PyResult<Bound<'py, PyAny>> {
    let acc = acc.as_array().to_owned();
    let codes = work::short(py, || {
        let rule = linear_rule(&rules(&by)?, &step)?;
        let (a, b) = (scale("s_in", s_in)?, scale("s_weight", s_weight)?);
        let to = scale("s_out", s_out)?;
        if rule.scaling == Scaling::F32 && rule.output.rounding.lfsr().is_none() {
            let a = a.ratio(to);
            let narrow = |acc: i64| {
                let expected = "an accumulator of 32 bits";
                i32::try_from(acc).map_err(|_| SimError::value("acc", expected, acc))
            };
            let codes = acc.iter().map(|acc| {
                let v = rule.order.apply(a, b, Acc(narrow(*acc)?));
                Ok(rule.output.code(v))
            });
            let codes = codes.collect::<Result<Vec<i8>>>()?;
            return Ok(ArrayD::from_shape_vec(acc.raw_dim(), codes).expect("one each"));
        }
        let factor = f64::from(a.get()) * f64::from(b.get()) / f64::from(to.get());
        fixed_codes(&acc, &Requantizer::new(rule.scaling, factor, rule.output)?)
    })?;
    Ok(whole(py, codes))
}

fn fixed_codes(acc: &ArrayD<i64>, by: &Requantizer) -> Result<ArrayD<i8>> {
    let acc = acc.as_standard_layout();
    let mut codes = ArrayD::<i8>::zeros(acc.raw_dim());
    let to = codes.as_slice_mut().expect("fresh arrays are row-major");
    let _ = by.codes(acc.as_slice().expect("just made so"), 0, to);
    Ok(codes)
}

/// Multiplier and shift of a real factor under a linear step's scaling; None under f32 scaling.
#[pyfunction]
pub fn multiplier(factor: f64, by: By, step: String) -> PyResult<Option<(i64, i32)>> {
    let rule = rules(&by)
        .and_then(|r| linear_rule(&r, &step))
        .map_err(raise)?;
    let fixed = FixedFactor::new(rule.scaling, factor).map_err(raise)?;
    Ok(fixed.map(|f| (f.multiplier, f.shift)))
}

/// `x` times the transposed weight.
#[pyfunction]
pub fn linear_step<'py>(
    py: Python<'py>,
    x: PyReadonlyArray2<'py, i8>,
    weight: PyReadonlyArray2<'py, i8>,
    s_in: f32,
    s_weight: f32,
    s_out: Option<f32>,
    half: bool,
    by: By,
    step: String,
) -> PyResult<Bound<'py, PyAny>> {
    let (x, weight) = (standard(&x), standard(&weight));
    let out = work::short(py, || {
        let rule = linear_rule(&rules(&by)?, &step)?;
        let s_in = scale("s_in", s_in)?;
        let weight = LinearWeight::int8(weight.view(), scale("s_weight", s_weight)?);
        let output = match (s_out, half) {
            (Some(to), _) => LinearOutput::Int8(scale("s_out", to)?),
            (None, true) => LinearOutput::F16,
            (None, false) => LinearOutput::F32,
        };
        let x = Tensor::I8(QTensor {
            codes: x,
            scale: s_in,
        });
        Ok(linear(&x, Some(s_in), &weight, rule, output)?.out)
    })?;
    Ok(crate::arrays::tensor(py, out))
}

/// Convolution and SiLU; `history` are the K − 1 inputs before the first row.
#[pyfunction]
pub fn conv1d_silu<'py>(
    py: Python<'py>,
    x: PyReadonlyArray2<'py, i8>,
    history: PyReadonlyArray2<'py, i8>,
    weight: PyReadonlyArray2<'py, i8>,
    bias: PyReadonlyArray1<'py, i8>,
    scales: (f32, f32, f32),
    s_out: Option<f32>,
    by: By,
) -> PyResult<Bound<'py, PyAny>> {
    let (x, history, weight) = (standard(&x), standard(&history), standard(&weight));
    let bias = bias.as_array().to_vec();
    let out = work::short(py, || {
        let rules = rules(&by)?.conv;
        let (_, taps) = weight.dim();
        if !(2..=4).contains(&taps) {
            return Err(SimError::value("weight", "2 to 4 taps", taps));
        }
        let s_x = scale("s_x", scales.0)?;
        let tensor = QTensor {
            codes: weight,
            scale: scale("s_weight", scales.1)?,
        };
        let vector = QVector {
            codes: bias,
            scale: scale("s_bias", scales.2)?,
        };
        let weight = ConvWeight::int8(&tensor, &vector);
        let to = s_out.map(|to| scale("s_out", to)).transpose()?;
        let rows = ndarray::concatenate(ndarray::Axis(0), &[history.view(), x.view()]);
        let window = ConvWindow::Int8 {
            codes: rows.expect("one width"),
            scale: s_x,
        };
        let window = match rules.input_scale {
            InputScale::Once => window,
            InputScale::Twice => window.with_scale_twice()?,
        };
        let tiles = match rules.history {
            TapHistory::Kept => None,
            TapHistory::LostEvery8 => window.tiled(taps),
        };
        let (window, tiled) = match tiles {
            Some(tiles) => (tiles, true),
            None => (window, false),
        };
        if let (true, ConvWindow::Int8 { codes, scale }) =
            (is_unit(&rules, &weight, &window), &window)
        {
            let done = conv_unit(&rules, &weight, codes, *scale, to)?;
            return Ok(match done.codes {
                Some((q, _)) => Tensor::I8(QTensor {
                    codes: again(q.codes, tiled, taps),
                    scale: q.scale,
                }),
                None => Tensor::F32(again(done.real, tiled, taps)),
            });
        }
        let product = rules.silu_form == SiluForm::Product;
        let y = conv_silu(rules.real, rules.form, &weight, &window, !product);
        let mut y = again(y, tiled, taps);
        if product {
            silu_product(rules.real, y.as_slice_mut().expect("outputs are row-major"));
        }
        Ok(match to {
            Some(to) => Tensor::I8(QTensor::quantize(&y, to, rules.output).0),
            None => Tensor::F32(y),
        })
    })?;
    Ok(crate::arrays::tensor(py, out))
}

/// Rows of tiles laid end to end, if they are tiled.
fn again<T: Clone + Default>(rows: Array2<T>, tiled: bool, taps: usize) -> Array2<T> {
    match tiled {
        true => untiled(&rows, taps),
        false => rows,
    }
}

/// The selective scan of codes: y in binary16, and the state's codes, or its real values where it has no scale.
#[pyfunction]
pub fn scan<'py>(
    py: Python<'py>,
    inputs: [PyReadonlyArray2<'py, i8>; 4],
    z: Option<PyReadonlyArray2<'py, i8>>,
    a_log: PyReadonlyArray2<'py, i8>,
    d: PyReadonlyArray1<'py, i8>,
    dt_bias: PyReadonlyArray1<'py, i8>,
    state: Option<PyReadonlyArray2<'py, i8>>,
    scales: [f32; 8],
    s_state: Option<f32>,
    by: By,
) -> PyResult<(Bound<'py, PyAny>, Bound<'py, PyAny>)> {
    let [u, dt, b, c] = inputs.map(|a| standard(&a));
    let (z, state) = (z.as_ref().map(standard), state.as_ref().map(standard));
    let (a_log, d, dt_bias) = (
        standard(&a_log),
        d.as_array().to_vec(),
        dt_bias.as_array().to_vec(),
    );
    let (y, last) = work::short(py, || {
        let rules = rules(&by)?.scan;
        let names = [
            "s_u",
            "s_dt",
            "s_B",
            "s_C",
            "s_z",
            "s_A_log",
            "s_D",
            "s_dt_bias",
        ];
        let mut of = [scale("1", 1.0)?; 8];
        for i in 0..8 {
            of[i] = scale(names[i], scales[i])?;
        }
        let [s_u, s_dt, s_b, s_c, s_z, s_a, s_d, s_bias] = of;
        let weight = ScanWeight::int8(
            &QTensor {
                codes: a_log,
                scale: s_a,
            },
            &QVector {
                codes: d,
                scale: s_d,
            },
            &QVector {
                codes: dt_bias,
                scale: s_bias,
            },
        );
        let calibrated = s_state.map(|s| scale("s_state", s)).transpose()?;
        let int8 = |codes, scale| Source::Int8 { codes, scale };
        let before = match (&state, calibrated) {
            (Some(codes), Some(scale)) => Some(int8(codes, scale)),
            (Some(_), None) => {
                return Err(SimError::value(
                    "s_state",
                    "a scale beside the state",
                    "none",
                ));
            }
            (None, _) => None,
        };
        let inputs = ScanInputs {
            u: int8(&u, s_u),
            dt: int8(&dt, s_dt),
            b: int8(&b, s_b),
            c: int8(&c, s_c),
            z: z.as_ref().map(|z| int8(z, s_z)),
            state: before,
        };
        let (y, last) = match &rules.unit {
            Some(unit) => {
                let done = unit_scan(unit, &weight, &inputs, calibrated)?;
                (done.y, done.state)
            }
            None => {
                let done = selective_scan(&rules, &weight, &inputs);
                (done.y, done.state)
            }
        };
        let last = match calibrated {
            Some(scale) => Tensor::I8(QTensor::quantize(&last, scale, rules.state).0),
            None => Tensor::F32(last),
        };
        Ok((Tensor::f16(&y), last))
    })?;
    Ok((
        crate::arrays::tensor(py, y),
        crate::arrays::tensor(py, last),
    ))
}

/// Residual sum, RMSNorm and quantizer: codes and the residual stream.
#[pyfunction]
pub fn rmsnorm_quantize<'py>(
    py: Python<'py>,
    hidden: PyReadonlyArray2<'py, f16>,
    residual: Option<PyReadonlyArray2<'py, f32>>,
    weight: PyReadonlyArray1<'py, f32>,
    eps: f32,
    step: f32,
    by: By,
) -> PyResult<(Bound<'py, PyAny>, Bound<'py, PyAny>)> {
    let hidden = Tensor::F16(standard(&hidden));
    let residual = residual.as_ref().map(standard);
    let weight = weight.as_array().to_vec();
    let (codes, stream) = work::short(py, || {
        let rule = rules(&by)?.norm_out;
        let scale = scale("scale", step)?;
        let done = rms_norm(&hidden, residual.as_ref(), &weight, eps);
        Ok((
            QTensor::quantize(&done.normed, scale, rule).0.codes,
            done.residual,
        ))
    })?;
    Ok((whole(py, codes), whole(py, stream)))
}

/// Hadamard rotation and quantizer.
#[pyfunction]
pub fn hadamard_quantize<'py>(
    py: Python<'py>,
    y: PyReadonlyArray2<'py, f16>,
    step: f32,
    by: By,
) -> PyResult<Bound<'py, PyAny>> {
    let y = Tensor::F16(standard(&y));
    let codes = work::short(py, || {
        let rules = rules(&by)?.hadamard;
        let scale = scale("scale", step)?;
        let size = HadamardSize::of(y.dim().1)?;
        Ok(match IntegerRotation::of(size, rules.form) {
            Some(rotation) => {
                hadamard_unit(&y.to_real(), &rotation, scale, rules)?
                    .0
                    .codes
            }
            None => {
                rotate_quantize(&y, size, quantizer_factor(size, scale), scale, rules)
                    .0
                    .codes
            }
        })
    })?;
    Ok(whole(py, codes))
}

/// exp, log1p, softplus or silu of real values: by the scan's rules, silu by the convolution's.
#[pyfunction]
pub fn function<'py>(
    py: Python<'py>,
    name: String,
    values: PyReadonlyArray1<'py, f32>,
    by: By,
) -> PyResult<Bound<'py, PyAny>> {
    let mut values = values.as_array().to_vec();
    let out = work::short(py, || {
        let rules = rules(&by)?;
        let none = FunctionRule::Exact;
        let scan = rules.scan.unit;
        let (real, unit) = match name.as_str() {
            "exp" => (
                rules.scan.real,
                scan.map_or(none, |u| u.exp).unit(Function::Exp),
            ),
            "softplus" => (
                rules.scan.real,
                scan.map_or(none, |u| u.softplus).unit(Function::Softplus),
            ),
            "silu" => (rules.conv.real, rules.conv.silu.unit(Function::Silu)),
            "log1p" => (rules.scan.real, None),
            other => {
                return Err(SimError::value(
                    "function",
                    "exp, log1p, softplus or silu",
                    other,
                ));
            }
        };
        match unit {
            Some(unit) => {
                let seen = &mut Inputs::default();
                values
                    .iter_mut()
                    .for_each(|v| *v = unit.real(f64::from(*v), seen) as f32);
            }
            None => match real {
                RealRules::CorrectlyRounded => exact::<Ieee>(&name, &mut values),
                RealRules::SpecialFunctionUnit => exact::<CudaFast>(&name, &mut values),
                RealRules::CudaLibm => exact::<CudaLibm>(&name, &mut values),
                RealRules::SpecialFunctionUnitSubnormal => {
                    exact::<CudaSubnormal>(&name, &mut values)
                }
            },
        }
        Ok(Array1::from_vec(values))
    })?;
    Ok(whole(py, out))
}

fn exact<R: RealMath>(name: &str, values: &mut [f32]) {
    match name {
        "softplus" => R::softplus_slice(values),
        "silu" => R::silu_slice(values),
        "exp" => values.iter_mut().for_each(|v| *v = R::exp(*v)),
        _ => values.iter_mut().for_each(|v| *v = R::log1p(*v)),
    }
}

/// A row-major copy, whatever the strides are.
fn standard<T: numpy::Element + Copy>(array: &PyReadonlyArray2<'_, T>) -> Array2<T> {
    let view = array.as_array();
    let values = view.iter().copied().collect();
    Array2::from_shape_vec(view.raw_dim(), values).expect("one value an element")
}
