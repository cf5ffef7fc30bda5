//! A model's weights on the device, as its kernels read them: uploaded once, resident.

use super::args::Pointer;
use super::device::{Buffer, Device};
use super::matrix::{Kind, Matrix};
use super::{rules, step};
use crate::arith::real::RealRules;
use crate::datapath::Layer;
use crate::error::Result;
use crate::quant::Scale;
use crate::step::conv::ConvWeight;
use crate::step::linear::LinearWeight;
use crate::step::scan::ScanWeight;
use half::f16;
use ndarray::ArrayView2;
use std::sync::Arc;

/// INT8 rows lie a multiple of this apart, filled up with zeros.
const ROW_BYTES: usize = 16;

/// A weight `[out, in]` of a linear step.
#[derive(Clone)]
pub enum Linear {
    Int8 {
        codes: Matrix,
        scale: Scale,
    },
    /// The INT8 weights of a four-bit weight, and the scale of each output.
    Int4 {
        codes: Matrix,
        channels: Matrix,
    },
    Float(Matrix),
}

/// Rows of INT8 weights below each other, each filled up with zeros.
fn upload_codes(device: &Arc<Device>, parts: &[ArrayView2<i8>]) -> Result<Matrix> {
    let mut bytes: Vec<i8> = Vec::new();
    for row in parts.iter().flat_map(|part| part.rows()) {
        bytes.extend(row.iter());
        bytes.resize(bytes.len().next_multiple_of(ROW_BYTES), 0);
    }
    let k = parts[0].ncols();
    let stride = k.next_multiple_of(ROW_BYTES);
    Ok(Matrix::upload(device, &bytes, stride, Kind::Codes)?.padded(k))
}

impl Linear {
    /// Uploads the rows of one weight, or of several of the same type below each other.
    fn upload(device: &Arc<Device>, parts: &[&LinearWeight]) -> Result<Self> {
        match parts[0] {
            LinearWeight::Scaled(_) => unreachable!("`rules::check_profile` refuses such storage"),
            LinearWeight::Int8 { scale, .. } => {
                let codes = parts.iter().map(|part| match part {
                    LinearWeight::Int8 { codes, .. } => *codes,
                    _ => unreachable!("halves of one weight have one type"),
                });
                Ok(Linear::Int8 {
                    codes: upload_codes(device, &codes.collect::<Vec<_>>())?,
                    scale: *scale,
                })
            }
            LinearWeight::Int4(_) => {
                let parts = parts.iter().map(|part| match part {
                    LinearWeight::Int4(weight) => weight,
                    _ => unreachable!("halves of one weight have one type"),
                });
                let codes = parts.clone().map(|part| part.int8());
                let channels = parts.flat_map(|part| part.channels());
                let channels: Vec<f32> = channels.map(|scale| scale.get()).collect();
                Ok(Linear::Int4 {
                    codes: upload_codes(device, &codes.collect::<Vec<_>>())?,
                    channels: Matrix::upload(device, &channels, 1, Kind::F32)?,
                })
            }
            LinearWeight::Wide(_) => {
                let mut values: Vec<f32> = Vec::new();
                let mut k = 0;
                for part in parts {
                    let LinearWeight::Wide(weight) = part else {
                        unreachable!("halves of one weight have one type");
                    };
                    k = weight.ncols();
                    values.extend(weight.iter());
                }
                let weight = Matrix::upload(device, &values, k, Kind::F32)?;
                Ok(Linear::Float(weight))
            }
            LinearWeight::Float { .. } => {
                let mut values: Vec<f16> = Vec::new();
                let mut k = 0;
                for part in parts {
                    let LinearWeight::Float { weight, .. } = part else {
                        unreachable!("halves of one weight have one type");
                    };
                    k = weight.ncols();
                    values.extend(weight.iter());
                }
                Ok(Linear::Float(Matrix::upload(
                    device,
                    &values,
                    k,
                    Kind::F16,
                )?))
            }
        }
    }

    /// The head.
    pub fn head(device: &Arc<Device>, weight: &LinearWeight) -> Result<Self> {
        Self::upload(device, &[weight])
    }

    /// Outputs `[first, last)`, at another scale if one is given.
    fn rows(&self, first: usize, last: usize, scale: Option<Scale>) -> Self {
        match self {
            Linear::Int8 { codes, scale: own } => Linear::Int8 {
                codes: codes.rows(first, last),
                scale: scale.unwrap_or(*own),
            },
            Linear::Int4 { codes, channels } => Linear::Int4 {
                codes: codes.rows(first, last),
                channels: channels.rows(first, last),
            },
            Linear::Float(weight) => Linear::Float(weight.rows(first, last)),
        }
    }

    /// Outputs.
    pub fn outputs(&self) -> usize {
        match self {
            Linear::Int8 { codes: weight, .. }
            | Linear::Int4 { codes: weight, .. }
            | Linear::Float(weight) => weight.rows,
        }
    }
}

/// in_proj: rows that make x, then rows that make z.
pub struct InProj {
    /// All rows, if both halves have one scale.
    pub both: Option<Linear>,
    pub x: Linear,
    pub z: Linear,
}

impl InProj {
    fn upload<'m>(
        device: &Arc<Device>,
        x: &LinearWeight<'m>,
        z: &LinearWeight<'m>,
    ) -> Result<Self> {
        let all = Linear::upload(device, &[x, z])?;
        let scale = |weight: &LinearWeight| match weight {
            LinearWeight::Int8 { scale, .. } => Some(*scale),
            _ => None,
        };
        let half = all.outputs() / 2;
        Ok(Self {
            x: all.rows(0, half, scale(x)),
            z: all.rows(half, 2 * half, scale(z)),
            both: (scale(x) == scale(z)).then_some(all),
        })
    }
}

/// Weights of a convolution.
pub struct Conv {
    pub codes: Option<Arc<Buffer>>,
    pub taps: Arc<Buffer>,
    pub tap_scale: f32,
    pub bias: Arc<Buffer>,
    pub bias_scale: f32,
}

impl Conv {
    fn upload(device: &Arc<Device>, weight: &ConvWeight) -> Result<Self> {
        Ok(Self {
            codes: (weight.codes.as_ref())
                .map(|codes| device.upload(codes))
                .transpose()?,
            taps: device.upload(&weight.taps)?,
            tap_scale: weight.tap_scale,
            bias: device.upload(&weight.bias)?,
            bias_scale: weight.bias_scale,
        })
    }
}

/// Parameters of a scan; exp(A_log) for the operations of prefill and of decode.
pub struct Scan {
    alpha: Vec<(RealRules, Arc<Buffer>)>,
    pub d: Arc<Buffer>,
    pub d_scale: f32,
    pub dt_bias: Arc<Buffer>,
    pub dt_bias_scale: f32,
}

impl Scan {
    fn upload(device: &Arc<Device>, weight: &ScanWeight, rules: [RealRules; 2]) -> Result<Self> {
        let a_log = device.upload(&weight.a_log)?;
        let mut alpha = Vec::new();
        for real in rules {
            let count = weight.a_log.len();
            let rates = step::scan::decay_rates(device, real, &a_log, weight.a_log_scale, count)?;
            alpha.push((real, rates));
        }
        Ok(Self {
            alpha,
            d: device.upload(&weight.d)?,
            d_scale: weight.d_scale,
            dt_bias: device.upload(&weight.dt_bias)?,
            dt_bias_scale: weight.dt_bias_scale,
        })
    }

    /// exp(A_log), `[N, E]`, by a set of operations that the block's rules name.
    pub fn alpha(&self, real: RealRules) -> Pointer {
        let found = self.alpha.iter().find(|(of, _)| *of == real);
        found
            .expect("prepared for the rules of both phases")
            .1
            .pointer()
    }
}

/// A block's weights.
pub struct Weights {
    pub norm: Arc<Buffer>,
    pub in_proj: InProj,
    pub conv: Conv,
    pub x_proj: Linear,
    pub dt_proj: Linear,
    pub scan: Scan,
    pub out_proj: Linear,
}

impl Weights {
    /// Uploads a prepared block. Errors on rules without a kernel.
    pub fn upload(device: &Arc<Device>, layer: &Layer) -> Result<Self> {
        rules::check_profile(&layer.profile)?;
        let scan = layer.profile.arithmetic(layer.mode.scan);
        Ok(Self {
            norm: device.upload(&layer.norm)?,
            in_proj: InProj::upload(device, &layer.in_proj_x, &layer.in_proj_z)?,
            conv: Conv::upload(device, &layer.conv)?,
            x_proj: Linear::upload(device, &[&layer.x_proj])?,
            dt_proj: Linear::upload(device, &[&layer.dt_proj])?,
            scan: Scan::upload(
                device,
                &layer.scan,
                [scan.prefill.scan.real, scan.decode.scan.real],
            )?,
            out_proj: Linear::upload(device, &[&layer.out_proj])?,
        })
    }
}
