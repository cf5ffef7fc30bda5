//! The vectors of a step of a run: its tensors as the datapath shows them, its weights as the block holds them. What
//! a step reads and makes, and with which scales, the table of the block says.

use super::difference::differences;
use super::int4;
use super::manifest::{ProfileEntry, Role, StepVectors, Vector};
use super::simulate::{STEPS, simulate};
use crate::npz::Element;
use crate::value::Value;
use ndarray::{Array1, Array2, ArrayD, Axis, concatenate, s};
use scalescope_sim::dataflow::{Block, Columns, Format, Phase, Read, Row, Step};
use scalescope_sim::datapath::{Datapath, LogitRows};
use scalescope_sim::error::{Result, SimError};
use scalescope_sim::mode::Implementation;
use scalescope_sim::plan::ScaleUse;
use scalescope_sim::profile::Profile;
use scalescope_sim::quant::{QTensor, QVector, Scale};
use scalescope_sim::step::linear_unit::ScaledWeight;
use scalescope_sim::trace::{Place, Recorder, Selection, Tensor, TracePoint};
use serde_json::{Map, json};

/// Runs a prefill and takes out one step of one block.
///
/// # Errors
///
/// A step that the mode does not run in INT8, a block that is not there.
pub fn export(
    path: &Datapath,
    tokens: &[u32],
    layer: usize,
    step: &str,
    model: Option<String>,
) -> Result<StepVectors> {
    let blocks = path.config().n_layers;
    if layer >= blocks {
        return Err(SimError::value(
            "--layer",
            format_args!("a block below {blocks}"),
            layer,
        ));
    }
    let mut recorder = Recorder::new(Selection {
        layers: Some(vec![layer]),
        points: None,
    });
    path.prefill(tokens, LogitRows::None, &mut recorder)?;
    let profile = path.profile();
    let block = Block::of(path.mode(), profile, Phase::Prefill);
    let mut made = Made {
        path,
        block: &block,
        layer,
        recorder: &recorder,
        out: StepVectors {
            step: step.to_owned(),
            layer,
            mode: path.mode().name.to_string(),
            profile: ProfileEntry {
                name: profile.name.to_string(),
                hash: profile.hash(),
                toml: Profile::text(&profile.name)?,
            },
            model,
            parameters: Map::new(),
            vectors: Vec::new(),
        },
    };
    made.inputs(step)?;
    let mut out = made.out;
    let ids = tokens.iter().map(|id| *id as i32).collect();
    let ids = ArrayD::from_shape_vec(vec![1, tokens.len()], ids).expect("one row");
    out.vectors.push(Vector {
        key: Some("tokens".into()),
        ..Vector::new("tokens", Role::Internal, i32::wrap(ids))
    });
    let found = simulate(&out)?;
    // The step by itself gives what the run gave; the folder holds the run's.
    let keys = out.parameters.remove("keys").unwrap_or_default();
    for vector in found {
        let key = keys.get(&vector.name).and_then(|k| k.as_str());
        let Some(key) = key else {
            out.vectors.push(vector);
            continue;
        };
        let place = Place::from_key(key).expect("keys are places");
        let recorded = recorder.tensors.get(&place);
        let recorded =
            recorded.ok_or_else(|| SimError::value(key, "a tensor of the run", "none"))?;
        let (value, scale) = Value::from_tensor(recorded.clone());
        let array = match value {
            Value::I8(a) => i8::wrap(a.into_dyn()),
            Value::F16(a) => half::f16::wrap(a.into_dyn()),
            Value::F32(a) => f32::wrap(a.into_dyn()),
        };
        out.vectors.push(Vector {
            key: Some(key.to_owned()),
            scale: scale.map(Scale::get),
            array,
            ..vector.clone()
        });
        let unlike = differences(&out, &[vector])?.pop();
        if let Some(found) = unlike.filter(|d| !d.equal()) {
            return Err(SimError::value(
                format_args!("{step} of block {layer}: {}", found.name),
                "the step by itself to give the run's bits",
                format_args!("{} of {} words that differ", found.mismatched, found.words),
            ));
        }
    }
    Ok(out)
}

struct Made<'a, 'm> {
    path: &'a Datapath<'m>,
    block: &'a Block,
    layer: usize,
    recorder: &'a Recorder,
    out: StepVectors,
}

impl<'a> Made<'a, '_> {
    fn tensor(&self, point: TracePoint) -> Option<&Tensor> {
        self.recorder.tensors.get(&Place::layer(self.layer, point))
    }

    fn key(&self, point: TracePoint) -> Option<String> {
        Some(Place::layer(self.layer, point).key())
    }

    /// INT8 codes of a point.
    fn codes(&self, point: TracePoint) -> Result<&QTensor> {
        match self.tensor(point) {
            Some(Tensor::I8(q)) => Ok(q),
            other => Err(SimError::value(
                format_args!("{} of mode {}", point.name(), self.out.mode),
                "INT8 of a static scale, which vectors hold",
                match other {
                    None => "no such tensor",
                    Some(Tensor::Codes(_)) => "INT8 of scales found at run time",
                    Some(real) => real.dtype(),
                },
            )),
        }
    }

    /// The row of a tensor; of none, the error of [`Made::codes`].
    fn row(&self, point: TracePoint) -> Result<&'a Row> {
        match self.block.row(point) {
            Some(row) => Ok(row),
            None => Err(self.codes(point).err().unwrap_or_else(|| {
                SimError::value(point.name(), "a row of the block's table", "none")
            })),
        }
    }

    /// Codes of a static scale that a step reads, that scale, and their key if the step reads all of them.
    fn read(&self, read: &Read) -> Result<(Array2<i8>, f32, Option<String>)> {
        let Some(point) = read.point() else {
            let expected = "inputs of its own block, which vectors hold";
            return Err(SimError::value(&self.out.step, expected, "others"));
        };
        let codes = &self.codes(point)?.codes;
        let by = read.scale.ok_or_else(|| {
            let item = format_args!("{} of mode {}", point.name(), self.out.mode);
            SimError::value(item, "a static scale, which vectors hold", "none")
        })?;
        let columns = read.columns.range(self.path.config(), codes.ncols());
        let key = match read.columns {
            Columns::All => self.key(point),
            Columns::X | Columns::Z | Columns::Dt | Columns::B | Columns::C | Columns::BAndC => {
                None
            }
        };
        let codes = codes.slice(s![.., columns]).to_owned();
        Ok((codes, self.scale(by)?, key))
    }

    /// Whether a point has codes whose tokens have scales of their own.
    fn is_dynamic(&self, point: TracePoint) -> bool {
        matches!(self.tensor(point), Some(Tensor::Codes(_)))
    }

    /// Codes whose tokens have scales of their own, and these, which stream in too.
    fn dynamic_input(&mut self, point: TracePoint) -> Result<()> {
        let scales = point.scales().expect("a point that can be dynamic");
        let (Some(Tensor::Codes(codes)), Some(Tensor::F32(column))) =
            (self.tensor(point).cloned(), self.tensor(scales).cloned())
        else {
            return Err(SimError::value(scales.name(), "a column of scales", "none"));
        };
        let (key, scales_key) = (self.key(point), self.key(scales));
        self.put("x", Role::Input, key, None, codes.into_dyn());
        self.put("x_scale", Role::Input, scales_key, None, column.into_dyn());
        Ok(())
    }

    /// Codes that come out, with their scales where tokens have their own.
    fn codes_out(&mut self, point: TracePoint) -> Result<()> {
        match (self.is_dynamic(point), point.scales()) {
            (true, Some(scales)) => self.is("out_scale", scales),
            _ => self.codes(point).map(|_| ())?,
        }
        self.is("out", point);
        Ok(())
    }

    fn scale(&self, scale_use: ScaleUse) -> Result<f32> {
        let scale = self.path.scale(self.layer, scale_use);
        let none = || SimError::value("mode", "one with INT8 tensors", &self.out.mode);
        Ok(scale.ok_or_else(none)?.get())
    }

    fn put<T: Element>(
        &mut self,
        name: &str,
        role: Role,
        key: Option<String>,
        scale: Option<f32>,
        array: ArrayD<T>,
    ) {
        let array = T::wrap(array.as_standard_layout().into_owned());
        self.out.vectors.push(Vector {
            key,
            scale,
            ..Vector::new(name, role, array)
        });
    }

    /// Codes that stream in.
    fn input(&mut self, name: &str, key: Option<String>, codes: Array2<i8>, scale: f32) {
        self.put(name, Role::Input, key, Some(scale), codes.into_dyn());
    }

    fn constant(&mut self, name: &str, q: QTensor) {
        self.put(
            name,
            Role::Constant,
            None,
            Some(q.scale.get()),
            q.codes.into_dyn(),
        );
    }

    fn constant_vector(&mut self, name: &str, q: QVector) {
        let codes = Array1::from_vec(q.codes);
        self.put(
            name,
            Role::Constant,
            None,
            Some(q.scale.get()),
            codes.into_dyn(),
        );
    }

    /// Which recorded tensor an output is.
    fn is(&mut self, name: &str, point: TracePoint) {
        let key = self.key(point);
        let keys = self
            .out
            .parameters
            .entry("keys")
            .or_insert_with(|| json!({}));
        keys[name] = json!(key);
    }

    fn parameter(&mut self, name: &str, value: impl Into<serde_json::Value>) {
        self.out.parameters.insert(name.to_owned(), value.into());
    }

    /// A scale as a number that reads back to the same f32: of the codes that a row stands for.
    fn output_scale(&mut self, row: &Row) -> Result<()> {
        let quantizer = row.quantizer.ok_or_else(|| {
            let item = format_args!("{} of mode {}", row.point.name(), self.out.mode);
            SimError::value(item, "INT8, which vectors hold", row.format.dtype())
        })?;
        let scale = self.scale(quantizer.scale_use())?;
        self.parameter("output_scale", f64::from(scale));
        Ok(())
    }

    fn implementation(&mut self, by: Implementation) {
        let name = match by {
            Implementation::Cuda => "cuda",
            Implementation::Torch => "torch",
        };
        self.parameter("implementation", name);
    }

    fn inputs(&mut self, step: &str) -> Result<()> {
        match Step::from_name(step) {
            Some(Step::Norm) => self.norm(),
            Some(Step::Conv) => self.conv(),
            Some(Step::Scan) => self.scan(),
            Some(Step::Hadamard) => self.hadamard(),
            Some(step @ (Step::InProj | Step::XProj | Step::DtProj | Step::OutProj)) => {
                self.linear(step)
            }
            Some(Step::Embed | Step::Head) | None => Err(SimError::value(
                "--step",
                format_args!("one of {}", STEPS.join(", ")),
                step,
            )),
        }
    }

    fn linear(&mut self, step: Step) -> Result<()> {
        let products: Vec<&Row> = (self.block.of_step(step))
            .filter(|row| !row.weights.is_empty())
            .collect();
        let [row] = products[..] else {
            return Err(SimError::value(
                format_args!("{} of mode {}", step.name(), self.out.mode),
                "one tensor, which vectors hold",
                products.len(),
            ));
        };
        let input = row.reads.first().expect("a product reads something");
        match input.point() {
            Some(from) if self.is_dynamic(from) => self.dynamic_input(from)?,
            _ => {
                let (codes, scale, key) = self.read(input)?;
                self.input("x", key, codes, scale);
            }
        }
        let weights = self.path.linear_weights(self.layer, step);
        let stored: Option<Vec<ScaledWeight>> = weights.iter().map(|w| w.stored()).collect();
        let stored = stored
            .ok_or_else(|| SimError::value("mode", "one with INT8 weights", &self.out.mode))?;
        let weight = ScaledWeight::stacked(&stored);
        self.put(
            "weight",
            Role::Constant,
            None,
            None,
            weight.codes.into_dyn(),
        );
        let scales = Array1::from_iter(weight.scales.iter().map(|s| s.get()));
        self.put(
            "weight_scale",
            Role::Constant,
            None,
            None,
            scales.into_dyn(),
        );
        if let Some(int4) = weights[0].int4() {
            // Of in_proj, x and z are rows of one weight.
            let source = int4.source();
            self.parameter("weight_bits", 4);
            let words = int4::pack(&source.codes());
            self.put(
                "weight_packed",
                Role::Constant,
                None,
                None,
                words.into_dyn(),
            );
            if let Some(groups) = source.groups.clone() {
                self.put("group_scale", Role::Constant, None, None, groups.into_dyn());
            }
        }
        if let Some(groups) = weight.groups {
            self.put(
                "group_multiplier",
                Role::Constant,
                None,
                None,
                groups.into_dyn(),
            );
        }
        match row.format {
            Format::F16 => self.parameter("output", "f16"),
            Format::Int8(_) | Format::Codes | Format::F32 => {
                self.codes(row.point)?;
                self.parameter("output", "i8");
                self.output_scale(row)?;
            }
        }
        self.is("out", row.point);
        Ok(())
    }

    fn conv(&mut self) -> Result<()> {
        let row = self.row(TracePoint::ConvOut)?;
        let (x, scale, _) = self.read(&row.reads[0])?;
        let weight = self.path.conv_weight(self.layer);
        let tensors = weight.tensors();
        let (weight, bias) = tensors
            .ok_or_else(|| SimError::value("mode", "one with INT8 weights", &self.out.mode))?;
        let history = Array2::zeros((weight.codes.ncols() - 1, x.ncols()));
        let window =
            concatenate(Axis(0), &[history.view(), x.view()]).expect("both have E columns");
        self.input("x", None, window, scale);
        match self.path.conv_weight(self.layer).channel_scales() {
            None => self.constant("weight", weight),
            Some(scales) => {
                let scales = Array1::from_iter(scales.iter().map(|s| s.get())).into_dyn();
                let codes = weight.codes.into_dyn();
                self.put("weight", Role::Constant, None, None, codes);
                self.put("weight_scale", Role::Constant, None, None, scales);
            }
        }
        self.constant_vector("bias", bias);
        self.output_scale(row)?;
        self.implementation(self.path.mode().conv);
        self.is("out", row.point);
        Ok(())
    }

    fn scan(&mut self) -> Result<()> {
        let (y, state) = (self.row(TracePoint::SsmY)?, self.row(TracePoint::SsmState)?);
        let names = ["u", "dt", "b", "c", "z"];
        assert_eq!(names.len(), y.reads.len(), "what a scan reads in prefill");
        let inputs: Vec<_> = y
            .reads
            .iter()
            .map(|read| self.read(read))
            .collect::<Result<_>>()?;
        self.codes(state.point)?;
        let quantizer = state.quantizer.expect("codes have a quantizer");
        let s_state = self.scale(quantizer.scale_use())?;
        for (name, (codes, scale, key)) in names.into_iter().zip(inputs) {
            self.input(name, key, codes, scale);
        }
        let (a_log, d, dt_bias) = self.path.scan_weight(self.layer).tensors();
        self.constant("a_log", a_log);
        self.constant_vector("d", d);
        self.constant_vector("dt_bias", dt_bias);
        self.parameter("state_scale", f64::from(s_state));
        self.implementation(self.path.mode().scan);
        self.is("y", y.point);
        self.is("state", state.point);
        Ok(())
    }

    fn hadamard(&mut self) -> Result<()> {
        let row = self.row(TracePoint::HadOut)?;
        self.codes_out(row.point)?;
        let y = match self.tensor(TracePoint::SsmY) {
            Some(Tensor::F16(y)) if self.path.rotation(self.layer).is_some() => y.clone(),
            _ => {
                return Err(SimError::value(
                    "mode",
                    "one that rotates a binary16 y",
                    &self.out.mode,
                ));
            }
        };
        let key = self.key(TracePoint::SsmY);
        self.put("y", Role::Input, key, None, y.into_dyn());
        self.output_scale(row)?;
        Ok(())
    }

    fn norm(&mut self) -> Result<()> {
        let row = self.row(TracePoint::NormOut)?;
        self.codes_out(row.point)?;
        let hidden = match self.tensor(TracePoint::HiddenIn) {
            Some(Tensor::F16(hidden)) => hidden.clone(),
            _ => {
                return Err(SimError::value(
                    "mode",
                    "one with a binary16 stream",
                    &self.out.mode,
                ));
            }
        };
        let key = self.key(TracePoint::HiddenIn);
        self.put("hidden", Role::Input, key, None, hidden.into_dyn());
        if let Some(Tensor::F32(residual)) = self.tensor(TracePoint::ResidualIn) {
            let (key, residual) = (self.key(TracePoint::ResidualIn), residual.clone());
            self.put("residual", Role::Input, key, None, residual.into_dyn());
        }
        let weight = Array1::from_iter(self.path.norm_weight(self.layer).iter().copied());
        self.put("weight", Role::Constant, None, None, weight.into_dyn());
        self.parameter("eps", f64::from(self.path.config().eps));
        self.output_scale(row)?;
        self.is("residual_out", TracePoint::ResidualOut);
        Ok(())
    }
}
