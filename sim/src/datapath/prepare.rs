//! Weights of a model, prepared for the steps of one mode.

use super::storage;
use crate::arith::hadamard::HadamardSize;
use crate::dataflow::Step;
use crate::error::{Result, SimError};
use crate::mode::{Implementation, ModeSpec, Precision};
use crate::model::{
    ActivationScales, Checkpoint, Config, Embedding, FloatLayer, FloatModel, Head, Model, QRows,
    QuantizedLayer, QuantizedModel,
};
use crate::plan::{ScalePlan, ScaleUse};
use crate::profile::Profile;
use crate::profile::unit::ScaleGrid;
use crate::quant::{QWeight, Scale};
use crate::step::conv::ConvWeight;
use crate::step::linear::{LinearWeight, Real};
use crate::step::scan::ScanWeight;
use crate::trace::TracePoint;
use half::f16;
use ndarray::{Array2, ArrayView2, s};
use std::ops::Range;

/// Columns of x_proj's output.
#[derive(Clone, Debug)]
pub(crate) struct XProjColumns {
    pub dt: Range<usize>,
    pub b: Range<usize>,
    pub c: Range<usize>,
}

impl XProjColumns {
    /// dt‖B‖C.
    fn new(config: &Config) -> Self {
        let (r, n) = (config.dt_rank, config.d_state);
        Self {
            dt: 0..r,
            b: r..r + n,
            c: r + n..r + 2 * n,
        }
    }
}

/// A block's weights and scales.
#[derive(Clone)]
pub(crate) struct Layer<'m> {
    pub mode: ModeSpec,
    /// The arithmetic of this block.
    pub profile: Profile,
    pub norm: Vec<f32>,
    /// Rows of in_proj that make x.
    pub in_proj_x: LinearWeight<'m>,
    /// Rows of in_proj that make z.
    pub in_proj_z: LinearWeight<'m>,
    pub conv: ConvWeight,
    pub x_proj: LinearWeight<'m>,
    pub dt_proj: LinearWeight<'m>,
    pub scan: ScanWeight,
    pub rotation: Option<HadamardSize>,
    pub out_proj: LinearWeight<'m>,
    /// `None` where the mode quantizes nothing.
    pub scales: Option<ScalePlan>,
    /// Where the steps after x_proj find their parts.
    pub columns: XProjColumns,
    /// Tensors whose buffers are written channel by channel and read row by row.
    pub transposed: Vec<TracePoint>,
}

impl<'m> Layer<'m> {
    /// The weights that a linear step multiplies by: of in_proj, the rows of x and of z; none of other steps.
    pub fn linear(&self, step: Step) -> Vec<&LinearWeight<'m>> {
        match step {
            Step::InProj => vec![&self.in_proj_x, &self.in_proj_z],
            Step::XProj => vec![&self.x_proj],
            Step::DtProj => vec![&self.dt_proj],
            Step::OutProj => vec![&self.out_proj],
            Step::Embed | Step::Norm | Step::Conv | Step::Scan | Step::Hadamard | Step::Head => {
                Vec::new()
            }
        }
    }

    /// [`Layer::linear`], to be changed.
    pub fn linear_mut(&mut self, step: Step) -> Vec<&mut LinearWeight<'m>> {
        match step {
            Step::InProj => vec![&mut self.in_proj_x, &mut self.in_proj_z],
            Step::XProj => vec![&mut self.x_proj],
            Step::DtProj => vec![&mut self.dt_proj],
            Step::OutProj => vec![&mut self.out_proj],
            Step::Embed | Step::Norm | Step::Conv | Step::Scan | Step::Hadamard | Step::Head => {
                Vec::new()
            }
        }
    }
}

impl Layer<'_> {
    /// The scale of a use.
    pub fn scale(&self, scale_use: ScaleUse) -> Scale {
        self.scales
            .as_ref()
            .expect("a mode with an INT8 tensor has scales: `ModeSpec::needs_quantized`")
            .get(scale_use)
    }
}

/// The rows of the embedding.
#[derive(Clone, Copy)]
pub(crate) enum Rows<'m> {
    F16(&'m Array2<f16>),
    F32(&'m Array2<f32>),
    Quantized(&'m QRows),
}

/// What lies before the first block and after the last.
pub(super) struct Ends<'m> {
    pub embedding: Rows<'m>,
    pub norm_f: Vec<f32>,
    /// The scale of the final norm's output, where the head reads codes.
    pub head_input: Option<Scale>,
    pub head: LinearWeight<'m>,
}

fn float_ends<'m, W: Real>(
    model: &'m FloatModel<W>,
    rows: impl Fn(&'m Array2<W>) -> Rows<'m>,
) -> Ends<'m> {
    Ends {
        embedding: rows(&model.embedding),
        norm_f: model.norm_f.iter().map(|w| (*w).into()).collect(),
        head_input: None,
        head: W::weight(model.head.view()),
    }
}

fn quantized<'m>(model: &'m Model, mode: &ModeSpec) -> Result<&'m QuantizedModel> {
    model.quantized.as_deref().ok_or_else(|| {
        SimError::value(
            format_args!("mode {}", mode.name),
            "a model with INT8 weights and scales",
            "a float model only (run `scalescope quantize` first)",
        )
    })
}

/// The float model a mode draws on.
enum Float<'m> {
    F16(&'m FloatModel),
    F32(&'m FloatModel<f32>),
}

fn float<'m>(model: &'m Model, mode: &ModeSpec) -> Result<Float<'m>> {
    let part = match (mode.rotated, model.original.as_deref()) {
        (true, _) => model.float.as_deref().map(Float::F16),
        (false, Some(Checkpoint::F16(original))) => Some(Float::F16(original)),
        (false, Some(Checkpoint::F32(original))) => Some(Float::F32(original)),
        (false, None) => None,
    };
    part.ok_or_else(|| {
        SimError::value(
            format_args!("mode {}", mode.name),
            "the float checkpoint (a folder of transformers or mamba_ssm)",
            "a quantized model only",
        )
    })
}

pub(super) fn ends<'m>(model: &'m Model, mode: &ModeSpec, profile: &Profile) -> Result<Ends<'m>> {
    if mode.needs_float() {
        return Ok(match float(model, mode)? {
            Float::F16(float) => float_ends(float, Rows::F16),
            Float::F32(float) => float_ends(float, Rows::F32),
        });
    }
    let quantized = quantized(model, mode)?;
    let (head_input, head) = match &quantized.head {
        Head::F16(weight) => (None, LinearWeight::float(weight.view())),
        Head::Quantized { input, weight } => {
            let rule = profile.arithmetic(Implementation::Cuda).dequantize;
            let head = LinearWeight::quantized(weight, 0..weight.dim().0, rule);
            (Some(on_grid(*input, profile)), head)
        }
    };
    Ok(Ends {
        embedding: match &quantized.embedding {
            Embedding::F16(rows) => Rows::F16(rows),
            Embedding::Rows(rows) => Rows::Quantized(rows),
        },
        norm_f: quantized.norm_f.iter().map(|w| f32::from(*w)).collect(),
        head_input,
        head,
    })
}

/// A calibrated scale on the grid of a profile.
fn on_grid(calibrated: Scale, profile: &Profile) -> Scale {
    match profile.storage.activation_scales {
        ScaleGrid::Calibrated => calibrated,
        grid @ ScaleGrid::PowerOfTwo => storage::activation_scale(calibrated, grid),
    }
}

pub(super) fn prepare_layer<'m>(
    model: &'m Model,
    mode: &ModeSpec,
    profile: &Profile,
    i: usize,
) -> Result<Layer<'m>> {
    let config = model.config()?;
    let e = config.d_inner;
    let scales = if mode.needs_quantized() {
        let calibrated = &quantized(model, mode)?.layers[i].scales;
        let scales = ActivationScales::from_fn(|key| {
            Ok::<_, SimError>(on_grid(calibrated.get(key), profile))
        })?;
        if mode.needs_second_scale() && calibrated.x_proj_input_max.is_none() {
            return Err(SimError::value(
                format_args!("mode {}: scale x_proj_input_max of block {i}", mode.name),
                "a second calibrated scale (calibrate anew: `scalescope quantize CHECKPOINT -o q.safetensors`)",
                "a model without it",
            ));
        }
        let max = calibrated.x_proj_input_max;
        let max = max.map(|scale| on_grid(scale, profile));
        Some(ScalePlan::new(&scales.with_max(max)))
    } else {
        None
    };
    let rotation = match mode.rotated {
        true => Some(HadamardSize::of(e)?),
        false => None,
    };
    let real = |w: &[f16]| w.iter().map(|v| f32::from(*v)).collect();
    Ok(match mode.weights {
        Precision::Int8 => {
            let layer = &quantized(model, mode)?.layers[i];
            let rule = profile.arithmetic(Implementation::Cuda).dequantize;
            let rows = |w: &'m QWeight, rows| LinearWeight::quantized(w, rows, rule);
            let all = |w: &'m QWeight| rows(w, 0..w.dim().0);
            if profile.storage.requantizes_linears() || profile.storage.requantizes_conv() {
                let float = &stored_float(model, mode)?.layers[i];
                return Ok(stored_layer(
                    (layer, float),
                    (config, mode, profile),
                    rotation,
                    scales,
                ));
            }
            Layer {
                mode: mode.clone(),
                profile: profile.clone(),
                norm: real(&layer.norm),
                in_proj_x: rows(&layer.in_proj, 0..e),
                in_proj_z: rows(&layer.in_proj, e..2 * e),
                conv: ConvWeight::int8(&layer.conv_weight, &layer.conv_bias),
                x_proj: all(&layer.x_proj),
                dt_proj: LinearWeight::int8(layer.dt_proj.codes.view(), layer.dt_proj.scale),
                scan: ScanWeight::int8(&layer.a_log, &layer.d, &layer.dt_bias),
                rotation,
                out_proj: all(&layer.out_proj),
                scales,
                columns: XProjColumns::new(config),
                transposed: Vec::new(),
            }
        }
        Precision::Float => match float(model, mode)? {
            Float::F16(float) => {
                float_layer(&float.layers[i], (config, mode, profile), rotation, scales)
            }
            Float::F32(float) => {
                float_layer(&float.layers[i], (config, mode, profile), rotation, scales)
            }
        },
    })
}

/// A block in floating point.
fn float_layer<'m, W: Real>(
    layer: &'m FloatLayer<W>,
    (config, mode, profile): (&Config, &ModeSpec, &Profile),
    rotation: Option<HadamardSize>,
    scales: Option<ScalePlan>,
) -> Layer<'m> {
    let e = config.d_inner;
    Layer {
        mode: mode.clone(),
        profile: profile.without_units(),
        norm: layer.norm.iter().map(|w| (*w).into()).collect(),
        in_proj_x: W::weight(layer.in_proj.slice(s![..e, ..])),
        in_proj_z: W::weight(layer.in_proj.slice(s![e.., ..])),
        conv: ConvWeight::float(&layer.conv_weight, &layer.conv_bias),
        x_proj: W::weight(layer.x_proj.view()),
        dt_proj: W::weight(layer.dt_proj.view()),
        scan: ScanWeight::float(&layer.a_log, &layer.d, &layer.dt_bias),
        rotation,
        out_proj: W::weight(layer.out_proj.view()),
        scales,
        columns: XProjColumns::new(config),
        transposed: Vec::new(),
    }
}

/// The float model that a profile's weights are quantized from.
fn stored_float<'m>(model: &'m Model, mode: &ModeSpec) -> Result<&'m FloatModel> {
    match float(model, mode) {
        Ok(Float::F16(float)) => Ok(float),
        Ok(Float::F32(_)) | Err(_) => Err(SimError::value(
            "weights",
            "the float checkpoint beside the quantized model, to quantize it as the profile says",
            "a quantized model only",
        )),
    }
}

/// A block whose weights the profile stores in its own way.
fn stored_layer<'m>(
    (layer, float): (&'m QuantizedLayer, &FloatLayer),
    (config, mode, profile): (&Config, &ModeSpec, &Profile),
    rotation: Option<HadamardSize>,
    scales: Option<ScalePlan>,
) -> Layer<'m> {
    let rule = &profile.storage;
    let dequantize = profile.arithmetic(Implementation::Cuda).dequantize;
    let linear = |own: &'m QWeight, float: ArrayView2<f16>| match rule.requantizes_linears() {
        true => LinearWeight::Scaled(storage::linear(float, rule)),
        false => LinearWeight::quantized(own, 0..own.dim().0, dequantize),
    };
    let in_proj = linear(&layer.in_proj, float.in_proj.view());
    let e = float.in_proj.nrows() / 2;
    let conv = match rule.requantizes_conv() {
        true => storage::conv(&float.conv_weight, &layer.conv_bias, rule),
        false => ConvWeight::int8(&layer.conv_weight, &layer.conv_bias),
    };
    let scan = match rule.weight_scales {
        ScaleGrid::Calibrated => ScanWeight::int8(&layer.a_log, &layer.d, &layer.dt_bias),
        ScaleGrid::PowerOfTwo => {
            ScanWeight::int8(&layer.a_log, &storage::vector(&float.d), &layer.dt_bias)
        }
    };
    Layer {
        mode: mode.clone(),
        profile: profile.clone(),
        norm: layer.norm.iter().map(|v| f32::from(*v)).collect(),
        in_proj_x: in_proj.rows(0..e),
        in_proj_z: in_proj.rows(e..2 * e),
        conv,
        x_proj: linear(&layer.x_proj, float.x_proj.view()),
        dt_proj: match rule.requantizes_linears() {
            true => LinearWeight::Scaled(storage::linear(float.dt_proj.view(), rule)),
            false => LinearWeight::int8(layer.dt_proj.codes.view(), layer.dt_proj.scale),
        },
        scan,
        rotation,
        out_proj: linear(&layer.out_proj, float.out_proj.view()),
        scales,
        columns: XProjColumns::new(config),
        transposed: Vec::new(),
    }
}
