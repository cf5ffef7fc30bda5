//! A step from its vectors alone: the constants and inputs of a folder through the datapath's own
//! step, without the model.

use super::int4;
use super::manifest::{Role, StepVectors, Vector};
use crate::npz::Element;
use half::f16;
use ndarray::{Array1, Array2, ArrayD, Ix1, Ix2};
use scalescope_sim::arith::accumulate::Accumulator;
use scalescope_sim::arith::fixed::{FixedFactor, Scaling};
use scalescope_sim::arith::function::{Function, FunctionRule};
use scalescope_sim::arith::hadamard::HadamardSize;
use scalescope_sim::dataflow::Step;
use scalescope_sim::error::{Result, SimError};
use scalescope_sim::headroom::bits_for;
use scalescope_sim::mode::Implementation;
use scalescope_sim::profile::unit::{ActivationGranularity, GROUP, HadamardForm};
use scalescope_sim::profile::{Profile, StepRules};
use scalescope_sim::quant::{Acc, Int4Tensor, QTensor, QVector, QWeight, Scale};
use scalescope_sim::step::conv::{ConvWeight, ConvWindow, conv_silu};
use scalescope_sim::step::conv_unit;
use scalescope_sim::step::dynamic::{self, DynamicTensor};
use scalescope_sim::step::hadamard::{quantizer_factor, rotate, rotate_quantize};
use scalescope_sim::step::hadamard_unit::{IntegerRotation, hadamard_unit, rotate_tokens};
use scalescope_sim::step::linear::{LinearOutput, LinearWeight, linear};
use scalescope_sim::step::linear_unit::{self, ScaledWeight, token_linear};
use scalescope_sim::step::norm::rms_norm;
use scalescope_sim::step::scan::{ScanInputs, ScanWeight, Source, selective_scan};
use scalescope_sim::step::scan_unit::{constants, unit_scan};
use scalescope_sim::trace::Tensor;

/// The steps of a block that can be exported, in the order of the data.
pub const STEPS: [&str; 8] = [
    "norm", "in_proj", "conv", "x_proj", "dt_proj", "scan", "hadamard", "out_proj",
];

/// What a step makes of its inputs and constants: internal values first, then outputs.
pub fn simulate(step: &StepVectors) -> Result<Vec<Vector>> {
    let profile = step.rules()?;
    let find = Find {
        step,
        profile: &profile,
    };
    match Step::from_name(&step.step) {
        Some(Step::Norm) => find.norm(),
        Some(Step::Conv) => find.conv(),
        Some(Step::Scan) => find.scan(),
        Some(Step::Hadamard) => find.hadamard(),
        Some(linear @ (Step::InProj | Step::XProj | Step::DtProj | Step::OutProj)) => {
            find.linear(linear)
        }
        Some(Step::Embed | Step::Head) | None => Err(SimError::value(
            "step",
            format_args!("one of {}", STEPS.join(", ")),
            &step.step,
        )),
    }
}

struct Find<'a> {
    step: &'a StepVectors,
    profile: &'a Profile,
}

fn expected<T: Element>(name: &str, array: ArrayD<T>) -> Vector {
    made(name, Role::Expected, array)
}

fn made<T: Element>(name: &str, role: Role, array: ArrayD<T>) -> Vector {
    Vector::new(name, role, T::wrap(array.as_standard_layout().into_owned()))
}

/// Integers of so many bits, of 32 bits or, where they need them, 64 as a type.
fn integers(name: &str, role: Role, values: ArrayD<i64>, bits: u32) -> Vector {
    let vector = match bits <= 32 {
        true => made(name, role, values.mapv(|v| v as i32)),
        false => made(name, role, values),
    };
    Vector {
        bits: bits as usize,
        ..vector
    }
}

/// What a register came to.
fn sums(name: &str, values: Array2<i64>, register: Accumulator) -> Vector {
    integers(
        name,
        Role::Internal,
        values.into_dyn(),
        register.bits().into(),
    )
}

/// Codes whose tokens have scales of their own, as outputs.
fn token_codes(q: DynamicTensor) -> Vec<Vector> {
    let scales = Array2::from_shape_fn((q.scales.len(), 1), |(t, _)| q.scales[t].get());
    vec![
        expected("out", q.codes.into_dyn()),
        expected("out_scale", scales.into_dyn()),
    ]
}

/// Multiplier and shift as arrays, where a step has integer factors.
fn factors(name: &str, role: Role, fixed: Option<&[FixedFactor]>, scaling: Scaling) -> Vec<Vector> {
    let Some(fixed) = fixed else {
        return Vec::new();
    };
    let of = |part: &str, value: fn(&FixedFactor) -> i64, bits: u32| {
        let values = fixed.iter().map(value).collect();
        let values = ArrayD::from_shape_vec(vec![fixed.len()], values).expect("one value each");
        integers(&format!("{name}{part}"), role, values, bits)
    };
    let multiplier_bits = match scaling {
        Scaling::Fixed { bits, .. } => bits.into(),
        // The multiplier of a shift alone is 1.
        Scaling::PowerOfTwo | Scaling::F32 => bits_for(0, 1),
    };
    vec![
        of("multiplier", |f| f.multiplier, multiplier_bits),
        of("shift", |f| f.shift.into(), FixedFactor::SHIFT_BITS),
    ]
}

/// The table of a function, where it has one.
fn table(name: &str, rule: FunctionRule, function: Function) -> Option<Vector> {
    let unit = rule.unit(function)?;
    let (words, bits) = (unit.words().to_vec(), unit.word_bits().max(1));
    let words = ArrayD::from_shape_vec(vec![words.len()], words).expect("one axis");
    let name = format!("{name}_table");
    let signed = words.iter().any(|w| *w < 0);
    Some(match signed || bits > 32 {
        true => integers(&name, Role::Constant, words, bits + u32::from(!signed)),
        false => Vector {
            bits: bits as usize,
            ..made(&name, Role::Constant, words.mapv(|w| w as u32))
        },
    })
}

impl Find<'_> {
    fn array<T: Element>(&self, name: &str) -> Result<ArrayD<T>> {
        let vector = self.step.get(name)?;
        T::get(&vector.array).cloned().ok_or_else(|| {
            SimError::value(
                name,
                format_args!("elements of type {}", T::DTYPE.name()),
                vector.array.describe(),
            )
        })
    }

    fn matrix<T: Element>(&self, name: &str) -> Result<Array2<T>> {
        let array = self.array::<T>(name)?;
        let words = format!("{:?}", array.shape());
        array
            .into_dimensionality::<Ix2>()
            .map_err(|_| SimError::value(name, "two axes", words))
    }

    fn list<T: Element>(&self, name: &str) -> Result<Vec<T>> {
        let array = self.array::<T>(name)?;
        let words = format!("{:?}", array.shape());
        let list = array
            .into_dimensionality::<Ix1>()
            .map_err(|_| SimError::value(name, "one axis", words))?;
        Ok(list.to_vec())
    }

    fn has(&self, name: &str) -> bool {
        self.step.get(name).is_ok()
    }

    /// The scale of an array's codes.
    fn scale(&self, name: &str) -> Result<Scale> {
        let scale = self.step.get(name)?.scale;
        Scale::new(scale.ok_or_else(|| SimError::value(name, "a scale", "none"))?)
    }

    /// Scales of tokens or channels.
    fn scales(&self, name: &str) -> Result<Vec<Scale>> {
        let values = self.array::<f32>(name)?;
        values.iter().map(|scale| Scale::new(*scale)).collect()
    }

    /// Whether the outputs of norm and Hadamard have a scale for each token.
    fn by_token(&self) -> bool {
        self.profile.storage.activation_granularity == ActivationGranularity::Token
    }

    /// A number among the parameters.
    fn parameter(&self, name: &str) -> Result<f32> {
        let value = self
            .step
            .parameters
            .get(name)
            .and_then(serde_json::Value::as_f64);
        let value =
            value.ok_or_else(|| SimError::value(name, "a number among the parameters", "none"))?;
        Ok(value as f32)
    }

    fn tensor(&self, name: &str) -> Result<QTensor> {
        Ok(QTensor {
            codes: self.matrix(name)?,
            scale: self.scale(name)?,
        })
    }

    fn vector(&self, name: &str) -> Result<QVector> {
        Ok(QVector {
            codes: self.list(name)?,
            scale: self.scale(name)?,
        })
    }

    /// The rules of prefill, of the implementation that the parameters name.
    fn rules(&self) -> &StepRules {
        let torch = self
            .step
            .parameters
            .get("implementation")
            .and_then(|v| v.as_str())
            == Some("torch");
        let by = if torch {
            Implementation::Torch
        } else {
            Implementation::Cuda
        };
        &self.profile.arithmetic(by).prefill
    }

    fn linear(&self, which: Step) -> Result<Vec<Vector>> {
        let rule = *self.rules().linear.get(which).expect("a linear step");
        let x = DynamicTensor {
            codes: self.matrix("x")?,
            scales: match self.has("x_scale") {
                true => self.scales("x_scale")?,
                false => vec![self.scale("x")?],
            },
        };
        let by_token = self.has("x_scale");
        if by_token && x.scales.len() != x.codes.nrows() {
            let expected = format!("{} scales", x.codes.nrows());
            return Err(SimError::value("x_scale", expected, x.scales.len()));
        }
        let stored = ScaledWeight {
            codes: self.matrix("weight")?,
            scales: self.scales("weight_scale")?,
            groups: match self.has("group_multiplier") {
                true => Some(self.matrix("group_multiplier")?),
                false => None,
            },
        };
        let rows = stored.codes.nrows();
        if stored.scales.len() != 1 && stored.scales.len() != rows {
            return Err(SimError::value(
                "weight_scale",
                format_args!("1 or {rows} scales"),
                stored.scales.len(),
            ));
        }
        if stored.codes.ncols() != x.codes.ncols() || stored.codes.ncols() > Acc::MAX_LENGTH {
            return Err(SimError::value(
                "weight",
                format_args!("{} columns, {} at most", x.codes.ncols(), Acc::MAX_LENGTH),
                stored.codes.ncols(),
            ));
        }
        let groups = (rows, stored.codes.ncols().div_ceil(GROUP));
        if let Some(found) = stored.groups.as_ref().filter(|g| g.dim() != groups) {
            return Err(SimError::value(
                "group_multiplier",
                format_args!("{groups:?}"),
                format_args!("{:?}", found.dim()),
            ));
        }
        let half = self.step.parameters.get("output").and_then(|v| v.as_str()) == Some("f16");
        let output = match half {
            true => LinearOutput::F16,
            false => LinearOutput::Int8(Scale::new(self.parameter("output_scale")?)?),
        };
        // Factors of tokens are made at run time.
        let role = match by_token {
            true => Role::Internal,
            false => Role::Constant,
        };
        let fixed = linear_unit::factors(&x.scales, &stored.scales, rule, output)?;
        let mut out = factors("", role, fixed.as_deref(), rule.scaling);
        let first = stored.scales[0];
        let int4 = match self.has("weight_packed") {
            true => Some(self.int4(&stored)?),
            false => None,
        };
        let weight = match (&int4, self.profile.storage.requantizes_linears()) {
            (Some(weight), _) => {
                let rule = self.profile.arithmetic(Implementation::Cuda).dequantize;
                let weight = LinearWeight::quantized(weight, 0..rows, rule);
                let int8 = weight.stored().expect("not a real weight").codes;
                out.push(made("weight", Role::Constant, int8.into_dyn()));
                weight
            }
            (None, true) => LinearWeight::Scaled(stored.clone()),
            (None, false) => LinearWeight::int8(stored.codes.view(), first),
        };
        let register = rule.accumulator;
        out.push(sums("sum", weight.sums(&x.codes, register), register));
        let done = match by_token {
            true => token_linear(&x, &weight, rule, output)?,
            false => {
                let (codes, scale) = (x.codes, x.scales[0]);
                let x = Tensor::I8(QTensor { codes, scale });
                linear(&x, Some(scale), &weight, rule, output)?
            }
        };
        out.push(match done.out {
            Tensor::I8(q) => expected("out", q.codes.into_dyn()),
            Tensor::F16(v) => expected("out", v.into_dyn()),
            _ => unreachable!("INT8 or binary16 was asked for"),
        });
        Ok(out)
    }

    /// The four-bit weight that the INT8 weights come from.
    fn int4(&self, stored: &ScaledWeight) -> Result<QWeight> {
        let codes = int4::unpack(&self.matrix("weight_packed")?);
        if codes.dim() != stored.codes.dim() {
            let (expected, found) = (stored.codes.dim(), codes.dim());
            return Err(SimError::value(
                "weight_packed",
                format_args!("{expected:?} codes"),
                format_args!("{found:?}"),
            ));
        }
        let groups = match self.has("group_scale") {
            true => Some(self.matrix("group_scale")?),
            false => None,
        };
        let weight = Int4Tensor::new(codes.view(), groups, stored.scales.clone())?;
        Ok(QWeight::Int4(weight))
    }

    fn conv(&self) -> Result<Vec<Vector>> {
        let rules = self.rules().conv;
        let weight = self.matrix::<i8>("weight")?;
        let taps = weight.ncols();
        let window = self.tensor("x")?;
        if !(2..=4).contains(&taps)
            || window.codes.nrows() < taps
            || window.codes.ncols() != weight.nrows()
        {
            return Err(SimError::value(
                "x",
                "a window of K − 1 + L rows of E codes",
                format_args!("{:?}", window.codes.dim()),
            ));
        }
        let bias = self.vector("bias")?;
        if bias.codes.len() != weight.nrows() {
            return Err(SimError::value(
                "bias",
                format_args!("{} codes", weight.nrows()),
                bias.codes.len(),
            ));
        }
        let weight = match self.has("weight_scale") {
            true => {
                let (scales, channels) = (self.scales("weight_scale")?, weight.nrows());
                if scales.len() != channels {
                    let expected = format!("{channels} scales");
                    return Err(SimError::value("weight_scale", expected, scales.len()));
                }
                ConvWeight::int8_channels(weight, scales, &bias)
            }
            false => {
                let (codes, scale) = (weight, self.scale("weight")?);
                ConvWeight::int8(&QTensor { codes, scale }, &bias)
            }
        };
        let s_out = Scale::new(self.parameter("output_scale")?)?;
        let (s_x, codes) = (window.scale, window.codes.clone());
        let window = ConvWindow::Int8 {
            codes: window.codes,
            scale: s_x,
        };
        let mut out: Vec<Vector> = table("silu", rules.silu, Function::Silu)
            .into_iter()
            .collect();
        let found = conv_unit::sums(&rules, &weight, &codes, s_x);
        out.push(sums("sum", found, rules.accumulator));
        if let Some(terms) = conv_unit::bias_terms(&rules, &weight, s_x) {
            let terms = ArrayD::from_shape_vec(vec![terms.len()], terms).expect("one axis");
            let (low, high) = terms
                .iter()
                .fold((0, 0), |(l, h), v| (*v.min(&l), *v.max(&h)));
            let register = rules.accumulator.bits().into();
            let bits = bits_for(low.into(), high.into()).max(register);
            out.push(integers("bias_sum", Role::Constant, terms, bits));
        }
        for (name, fixed) in conv_unit::factors(&rules, &weight, s_x, s_out)? {
            out.extend(factors(name, Role::Constant, Some(&fixed), rules.scaling));
        }
        let q = match conv_unit::is_unit(&rules, &weight, &window) {
            true => {
                let done = conv_unit::conv_unit(&rules, &weight, &codes, s_x, Some(s_out))?;
                done.codes.expect("a scale was given").0
            }
            false => {
                let y = conv_silu(rules.real, rules.form, &weight, &window, true);
                QTensor::quantize(&y, s_out, rules.output).0
            }
        };
        out.push(expected("out", q.codes.into_dyn()));
        Ok(out)
    }

    fn scan(&self) -> Result<Vec<Vector>> {
        let rules = self.rules().scan;
        let (u, dt, z) = (self.tensor("u")?, self.tensor("dt")?, self.tensor("z")?);
        let (b, c) = (self.tensor("b")?, self.tensor("c")?);
        let (a_log, d, dt_bias) = (
            self.tensor("a_log")?,
            self.vector("d")?,
            self.vector("dt_bias")?,
        );
        let (l, e) = u.codes.dim();
        let n = a_log.codes.ncols();
        for (name, dim, want) in [
            ("dt", dt.codes.dim(), (l, e)),
            ("z", z.codes.dim(), (l, e)),
            ("b", b.codes.dim(), (l, n)),
            ("c", c.codes.dim(), (l, n)),
            ("a_log", a_log.codes.dim(), (e, n)),
            ("d", (d.codes.len(), 1), (e, 1)),
            ("dt_bias", (dt_bias.codes.len(), 1), (e, 1)),
        ] {
            if dim != want || n > 256 {
                return Err(SimError::value(
                    name,
                    format_args!("{want:?}"),
                    format_args!("{dim:?}"),
                ));
            }
        }
        let weight = ScanWeight::int8(&a_log, &d, &dt_bias);
        fn int8(q: &QTensor) -> Source<'_> {
            Source::Int8 {
                codes: &q.codes,
                scale: q.scale,
            }
        }
        let inputs = ScanInputs {
            u: int8(&u),
            dt: int8(&dt),
            b: int8(&b),
            c: int8(&c),
            z: Some(int8(&z)),
            state: None,
        };
        let s_state = Scale::new(self.parameter("state_scale")?)?;
        let mut out = Vec::new();
        let (y, state) = match &rules.unit {
            Some(unit) => {
                for (name, rule, function) in [
                    ("softplus", unit.softplus, Function::Softplus),
                    ("exp", unit.exp, Function::Exp),
                    ("silu", unit.silu, Function::Silu),
                ] {
                    out.extend(table(name, rule, function));
                }
                if let Some(kept) = constants(unit, &weight, &inputs, Some(s_state))? {
                    for (name, factor) in &kept.factors {
                        out.extend(factors(
                            name,
                            Role::Constant,
                            Some(&[*factor]),
                            unit.scaling,
                        ));
                    }
                    let alpha = kept.alpha.mapv(|v| v as i32).into_dyn();
                    out.push(made("alpha", Role::Constant, alpha));
                    let bias = Array1::from_iter(kept.bias.iter().map(|v| *v as i32)).into_dyn();
                    out.push(made("dt_bias_input", Role::Constant, bias));
                    let step = ArrayD::from_elem(vec![1], kept.sum_step);
                    out.push(made("sum_step", Role::Constant, step));
                }
                let done = unit_scan(unit, &weight, &inputs, Some(s_state))?;
                (done.y, done.state)
            }
            None => {
                let done = selective_scan(&rules, &weight, &inputs);
                (done.y, done.state)
            }
        };
        let Tensor::F16(y) = Tensor::f16(&y) else {
            unreachable!("`f16` gives binary16")
        };
        out.push(expected("y", y.into_dyn()));
        let (q, _) = QTensor::quantize(&state, s_state, rules.state);
        out.push(expected("state", q.codes.into_dyn()));
        Ok(out)
    }

    fn hadamard(&self) -> Result<Vec<Vector>> {
        let rules = self.rules().hadamard;
        let y = self.matrix::<f16>("y")?;
        let size = HadamardSize::of(y.ncols())?;
        let s_out = Scale::new(self.parameter("output_scale")?)?;
        let grid = self.profile.storage.activation_scales;
        let (Some(rotation), HadamardForm::Integer { bits, scaling, .. }) =
            (IntegerRotation::of(size, rules.form), rules.form)
        else {
            if self.by_token() {
                let rotated = rotate(y.mapv(f32::from), size);
                let (q, _) = dynamic::tokens(&rotated, grid, rules.quantizer());
                return Ok(token_codes(q));
            }
            let factor = quantizer_factor(size, s_out);
            let (q, _) = rotate_quantize(&Tensor::F16(y), size, factor, s_out, rules);
            return Ok(vec![expected("out", q.codes.into_dyn())]);
        };
        let y = y.mapv(f32::from);
        let (outputs, role, scales) = match self.by_token() {
            true => {
                let (q, ..) = rotate_tokens(&y, &rotation, s_out, grid, rules)?;
                let scales = q.scales.clone();
                (token_codes(q), Role::Internal, scales)
            }
            false => {
                let (q, ..) = hadamard_unit(&y, &rotation, s_out, rules)?;
                let out = expected("out", q.codes.into_dyn());
                (vec![out], Role::Constant, vec![s_out])
            }
        };
        let fixed: Option<Vec<FixedFactor>> = (scales.iter())
            .map(|scale| rotation.to_grid(s_out, *scale, rules))
            .map(|requantizer| requantizer.map(|r| r.fixed()))
            .collect::<Result<_>>()?;
        let mut out = factors("", role, fixed.as_deref(), scaling);
        let shifts: Vec<i64> = rotation.stage_shifts().iter().map(|s| *s as i64).collect();
        let most = shifts.iter().copied().max().unwrap_or(0);
        let shifts = ArrayD::from_shape_vec(vec![shifts.len()], shifts).expect("one axis");
        let shift_bits = bits_for(0, most.into());
        out.push(integers("stage_shift", Role::Constant, shifts, shift_bits));
        let (base, block) = (size.base(), size.n() / size.base());
        let signs = Array2::from_shape_fn((base, base), |(i, j)| {
            size.entry(i * block, j * block) as i8
        });
        out.push(made("base", Role::Constant, signs.into_dyn()));
        let input = y.mapv(|y| rotation.input(y, s_out));
        let mut rotated = input.clone();
        let mut seen = Default::default();
        for mut row in rotated.rows_mut() {
            rotation.transform(row.as_slice_mut().expect("rows are contiguous"), &mut seen);
        }
        let input = input.into_dyn();
        out.push(integers("input", Role::Internal, input, bits.into()));
        out.push(sums("rotated", rotated, rotation.register()));
        out.extend(outputs);
        Ok(out)
    }

    fn norm(&self) -> Result<Vec<Vector>> {
        let hidden = self.matrix::<f16>("hidden")?;
        let residual = match self.has("residual") {
            true => Some(self.matrix::<f32>("residual")?),
            false => None,
        };
        let weight = self.list::<f32>("weight")?;
        let shape = hidden.dim();
        if weight.len() != shape.1 || residual.as_ref().is_some_and(|r| r.dim() != shape) {
            return Err(SimError::value(
                "hidden",
                format_args!("[L, {}]", weight.len()),
                format_args!("{shape:?}"),
            ));
        }
        let eps = self.parameter("eps")?;
        let done = rms_norm(&Tensor::F16(hidden), residual.as_ref(), &weight, eps);
        let rule = self.rules().norm_out;
        let mut out = vec![expected("residual_out", done.residual.into_dyn())];
        if self.by_token() {
            let grid = self.profile.storage.activation_scales;
            out.extend(token_codes(dynamic::tokens(&done.normed, grid, rule).0));
        } else {
            let s_out = Scale::new(self.parameter("output_scale")?)?;
            let (q, _) = QTensor::quantize(&done.normed, s_out, rule);
            out.push(expected("out", q.codes.into_dyn()));
        }
        Ok(out)
    }
}
