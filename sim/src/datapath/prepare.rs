//! Weights of a model, prepared for the steps of one mode.

use super::storage;
use crate::arith::hadamard::HadamardSize;
use crate::error::{Result, SimError};
use crate::mode::{ModeSpec, Precision};
use crate::model::{
    ActivationScales, Config, FloatLayer, FloatModel, Model, QuantizedLayer, QuantizedModel,
};
use crate::plan::{ScalePlan, ScaleUse};
use crate::profile::Profile;
use crate::profile::unit::ScaleGrid;
use crate::quant::{QTensor, Scale};
use crate::step::conv::ConvWeight;
use crate::step::linear::LinearWeight;
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

impl Layer<'_> {
    /// The scale of a use.
    pub fn scale(&self, scale_use: ScaleUse) -> Scale {
        self.scales
            .as_ref()
            .expect("a mode with an INT8 tensor has scales: `ModeSpec::needs_quantized`")
            .get(scale_use)
    }
}

/// What lies before the first block and after the last.
pub(super) struct Ends<'m> {
    pub embedding: &'m Array2<f16>,
    pub norm_f: &'m [f16],
    pub head: &'m Array2<f16>,
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

fn float<'m>(model: &'m Model, mode: &ModeSpec) -> Result<&'m FloatModel> {
    let part = if mode.rotated {
        &model.float
    } else {
        &model.original
    };
    part.as_deref().ok_or_else(|| {
        SimError::value(
            format_args!("mode {}", mode.name),
            "the float checkpoint (a Hugging Face directory)",
            "a quantized model only",
        )
    })
}

pub(super) fn ends<'m>(model: &'m Model, mode: &ModeSpec) -> Result<Ends<'m>> {
    if mode.needs_float() {
        let float = float(model, mode)?;
        Ok(Ends {
            embedding: &float.embedding,
            norm_f: &float.norm_f,
            head: &float.head,
        })
    } else {
        let quantized = quantized(model, mode)?;
        Ok(Ends {
            embedding: &quantized.embedding,
            norm_f: &quantized.norm_f,
            head: &quantized.head,
        })
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
        let grid = profile.storage.activation_scales;
        let scales = ActivationScales::from_fn(|key| {
            Ok::<_, SimError>(match grid {
                ScaleGrid::Calibrated => calibrated.get(key),
                ScaleGrid::PowerOfTwo => storage::activation_scale(calibrated.get(key), grid),
            })
        })?;
        if mode.needs_second_scale() && calibrated.x_proj_input_max.is_none() {
            return Err(SimError::value(
                format_args!("mode {}: scale x_proj_input_max of block {i}", mode.name),
                "a second calibrated scale (calibrate anew: `scalescope quantize CHECKPOINT -o q.safetensors`)",
                "a model without it",
            ));
        }
        let max = calibrated.x_proj_input_max.map(|scale| match grid {
            ScaleGrid::Calibrated => scale,
            ScaleGrid::PowerOfTwo => storage::activation_scale(scale, grid),
        });
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
            let int8 = |w: &'m QTensor| LinearWeight::int8(w.codes.view(), w.scale);
            let in_proj = &layer.in_proj;
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
                in_proj_x: LinearWeight::int8(in_proj.codes.slice(s![..e, ..]), in_proj.scale),
                in_proj_z: LinearWeight::int8(in_proj.codes.slice(s![e.., ..]), in_proj.scale),
                conv: ConvWeight::int8(&layer.conv_weight, &layer.conv_bias),
                x_proj: int8(&layer.x_proj),
                dt_proj: int8(&layer.dt_proj),
                scan: ScanWeight::int8(&layer.a_log, &layer.d, &layer.dt_bias),
                rotation,
                out_proj: int8(&layer.out_proj),
                scales,
                columns: XProjColumns::new(config),
                transposed: Vec::new(),
            }
        }
        Precision::Float => {
            let layer = &float(model, mode)?.layers[i];
            Layer {
                mode: mode.clone(),
                profile: profile.without_units(),
                norm: real(&layer.norm),
                in_proj_x: LinearWeight::float(layer.in_proj.slice(s![..e, ..])),
                in_proj_z: LinearWeight::float(layer.in_proj.slice(s![e.., ..])),
                conv: ConvWeight::float(&layer.conv_weight, &layer.conv_bias),
                x_proj: LinearWeight::float(layer.x_proj.view()),
                dt_proj: LinearWeight::float(layer.dt_proj.view()),
                scan: ScanWeight::float(&layer.a_log, &layer.d, &layer.dt_bias),
                rotation,
                out_proj: LinearWeight::float(layer.out_proj.view()),
                scales,
                columns: XProjColumns::new(config),
                transposed: Vec::new(),
            }
        }
    })
}

/// The float model that a profile's weights are quantized from.
fn stored_float<'m>(model: &'m Model, mode: &ModeSpec) -> Result<&'m FloatModel> {
    float(model, mode).map_err(|_| {
        SimError::value(
            "weights",
            "the float checkpoint beside the quantized model, to quantize it as the profile says",
            "a quantized model only",
        )
    })
}

/// A block whose weights the profile stores in its own way.
fn stored_layer<'m>(
    (layer, float): (&'m QuantizedLayer, &FloatLayer),
    (config, mode, profile): (&Config, &ModeSpec, &Profile),
    rotation: Option<HadamardSize>,
    scales: Option<ScalePlan>,
) -> Layer<'m> {
    let rule = &profile.storage;
    let linear = |own: &'m QTensor, float: ArrayView2<f16>| match rule.requantizes_linears() {
        true => LinearWeight::Scaled(storage::linear(float, rule)),
        false => LinearWeight::int8(own.codes.view(), own.scale),
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
        dt_proj: linear(&layer.dt_proj, float.dt_proj.view()),
        scan,
        rotation,
        out_proj: linear(&layer.out_proj, float.out_proj.view()),
        scales,
        columns: XProjColumns::new(config),
        transposed: Vec::new(),
    }
}
