//! A Mamba-1 language model in memory: its shape, its float weights, its INT8 weights and scales.
//!
//! | letter | meaning |
//! |---|---|
//! | B, L | sequences in a batch, tokens in a sequence |
//! | M | `d_model`, width of the residual stream |
//! | E | `d_inner` = 2M, channels inside a block |
//! | N | `d_state`, states of a channel |
//! | R | `dt_rank`, width of the time-step bottleneck |
//! | K | `d_conv`, taps of the causal convolution |
//! | V | vocabulary |

use crate::arith::hadamard::HadamardSize;
use crate::error::{Result, SimError};
use crate::quant::{QTensor, QVector, QWeight, Scale};
use half::f16;
use ndarray::Array2;
use serde::Serialize;
use std::sync::Arc;

/// Shape of a model.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Config {
    /// V, rows of the embedding.
    pub vocab_size: usize,
    /// M.
    pub d_model: usize,
    /// E.
    pub d_inner: usize,
    /// N, at most 256.
    pub d_state: usize,
    /// R.
    pub dt_rank: usize,
    /// K, 2 to 4.
    pub d_conv: usize,
    /// Number of blocks.
    pub n_layers: usize,
    /// RMSNorm ε.
    pub eps: f32,
    /// The configuration this came from, of `transformers` or `mamba_ssm`, kept to be written out again.
    #[serde(skip)]
    pub json: serde_json::Value,
}

impl Config {
    /// Checks the ranges every part of the simulator relies on.
    pub fn validate(&self) -> Result<()> {
        let range = |item: &str, value: usize, low: usize, high: usize| {
            if (low..=high).contains(&value) {
                Ok(())
            } else {
                Err(SimError::value(
                    item,
                    format_args!("{low} to {high}"),
                    value,
                ))
            }
        };
        range("vocab_size", self.vocab_size, 1, 1 << 24)?;
        range("hidden_size", self.d_model, 1, 1 << 16)?;
        range("intermediate_size", self.d_inner, 1, 1 << 16)?;
        range("state_size", self.d_state, 1, 256)?;
        range("time_step_rank", self.dt_rank, 1, 1 << 16)?;
        range("conv_kernel", self.d_conv, 2, 4)?;
        range("num_hidden_layers", self.n_layers, 1, 1024)?;
        HadamardSize::of(self.d_model)?;
        HadamardSize::of(self.d_inner)?;
        if !(self.eps.is_finite() && self.eps >= 0.0) {
            return Err(SimError::value(
                "layer_norm_epsilon",
                "a finite, non-negative number",
                self.eps,
            ));
        }
        Ok(())
    }

    /// Whether another model has this shape, however its configuration is written.
    pub fn same_shape(&self, other: &Config) -> bool {
        let json = serde_json::Value::Null;
        let bare = |config: &Config| Config {
            json: json.clone(),
            ..config.clone()
        };
        bare(self) == bare(other)
    }

    /// Width of x_proj's output, dt‖B‖C: R + 2N.
    pub fn x_proj_width(&self) -> usize {
        self.dt_rank + 2 * self.d_state
    }
}

/// One block's float weights: binary16 as the reference treats them (`W` = f16), or as an f32 checkpoint
/// has them. A_log and D are FP32 in either, as `mamba_ssm` keeps them.
#[derive(Clone, Debug, PartialEq)]
pub struct FloatLayer<W = f16> {
    /// RMSNorm weight, M.
    pub norm: Vec<W>,
    /// `[2E, M]`: rows x then z.
    pub in_proj: Array2<W>,
    /// `[E, K]`.
    pub conv_weight: Array2<W>,
    /// E.
    pub conv_bias: Vec<W>,
    /// `[R + 2N, E]`: rows dt, B, C.
    pub x_proj: Array2<W>,
    /// `[E, R]`.
    pub dt_proj: Array2<W>,
    /// E.
    pub dt_bias: Vec<W>,
    /// `[E, N]`: A = −exp(A_log).
    pub a_log: Array2<f32>,
    /// E, the skip connection.
    pub d: Vec<f32>,
    /// `[M, E]`.
    pub out_proj: Array2<W>,
}

/// A float model: a checkpoint as it is, or folded (rotated into Hadamard space).
#[derive(Clone, Debug, PartialEq)]
pub struct FloatModel<W = f16> {
    /// Shape.
    pub config: Config,
    /// `[V, M]`.
    pub embedding: Array2<W>,
    /// The blocks.
    pub layers: Vec<FloatLayer<W>>,
    /// Final RMSNorm weight, M.
    pub norm_f: Vec<W>,
    /// `[V, M]`.
    pub head: Array2<W>,
    /// Whether Hadamard matrices and norms are folded into the weights; then the scan's output is
    /// rotated before out_proj.
    pub rotated: bool,
}

/// A checkpoint in the precision of its file.
#[derive(Clone, Debug, PartialEq)]
pub enum Checkpoint {
    /// All weights but A_log and D are binary16.
    F16(FloatModel),
    /// Some are wider (f32, bf16): all are held in FP32, which is exact.
    F32(FloatModel<f32>),
}

impl Checkpoint {
    /// The shape.
    pub fn config(&self) -> &Config {
        match self {
            Self::F16(model) => &model.config,
            Self::F32(model) => &model.config,
        }
    }

    /// The model in binary16, nearest even: what the reference folds and quantizes.
    ///
    /// # Errors
    ///
    /// A weight beyond binary16.
    pub fn into_f16(self) -> Result<FloatModel> {
        let wide = match self {
            Self::F16(model) => return Ok(model),
            Self::F32(model) => model,
        };
        let layer = |(i, l): (usize, FloatLayer<f32>)| {
            let name = |tensor: &str| format!("layers.{i}.{tensor}");
            Ok(FloatLayer {
                norm: narrow(l.norm, &name("norm.weight"))?,
                in_proj: narrow_matrix(l.in_proj, &name("in_proj.weight"))?,
                conv_weight: narrow_matrix(l.conv_weight, &name("conv1d.weight"))?,
                conv_bias: narrow(l.conv_bias, &name("conv1d.bias"))?,
                x_proj: narrow_matrix(l.x_proj, &name("x_proj.weight"))?,
                dt_proj: narrow_matrix(l.dt_proj, &name("dt_proj.weight"))?,
                dt_bias: narrow(l.dt_bias, &name("dt_proj.bias"))?,
                a_log: l.a_log,
                d: l.d,
                out_proj: narrow_matrix(l.out_proj, &name("out_proj.weight"))?,
            })
        };
        Ok(FloatModel {
            config: wide.config,
            embedding: narrow_matrix(wide.embedding, "embeddings.weight")?,
            layers: (wide.layers.into_iter().enumerate())
                .map(layer)
                .collect::<Result<_>>()?,
            norm_f: narrow(wide.norm_f, "norm_f.weight")?,
            head: narrow_matrix(wide.head, "lm_head.weight")?,
            rotated: wide.rotated,
        })
    }
}

fn narrow(values: Vec<f32>, item: &str) -> Result<Vec<f16>> {
    let narrowed: Vec<f16> = values.iter().map(|v| f16::from_f32(*v)).collect();
    match narrowed.iter().position(|v| !v.is_finite()) {
        None => Ok(narrowed),
        Some(at) => Err(SimError::value(
            format_args!("{item}, element {at}"),
            "a value within binary16 (|w| < 65520)",
            values[at],
        )),
    }
}

fn narrow_matrix(values: Array2<f32>, item: &str) -> Result<Array2<f16>> {
    let dim = values.dim();
    let narrowed = narrow(values.into_raw_vec_and_offset().0, item)?;
    Ok(Array2::from_shape_vec(dim, narrowed).expect("as many values"))
}

/// The calibrated activation scales of a block: seven, and one that few modes need. Who uses which:
/// `docs/arithmetic.md`, "Where a scale is used".
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct ActivationScales {
    /// Normed hidden state, in_proj's input.
    pub in_proj_input: Scale,
    /// x‖z: in_proj's output, conv input, gate.
    pub in_proj_output: Scale,
    /// conv+SiLU output, x_proj's input, u.
    pub x_proj_input: Scale,
    /// dt‖B‖C.
    pub x_proj_output: Scale,
    /// dt before its bias.
    pub dt_proj_output: Scale,
    /// The recurrent state.
    pub ssm_state: Scale,
    /// Rotated y: Hadamard output, out_proj's input.
    pub out_proj_input: Scale,
    /// conv+SiLU output with the quantile 1, for values beyond `x_proj_input`; files before it lack it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub x_proj_input_max: Option<Scale>,
}

/// Names of the calibrated scales, in file order.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
#[allow(missing_docs)] // each is the field of ActivationScales with the same name
pub enum ScaleKey {
    InProjInput,
    InProjOutput,
    XProjInput,
    XProjOutput,
    DtProjOutput,
    SsmState,
    OutProjInput,
    XProjInputMax,
}

impl ScaleKey {
    /// Every key that all models have.
    pub const ALL: [ScaleKey; 7] = [
        ScaleKey::InProjInput,
        ScaleKey::InProjOutput,
        ScaleKey::XProjInput,
        ScaleKey::XProjOutput,
        ScaleKey::DtProjOutput,
        ScaleKey::SsmState,
        ScaleKey::OutProjInput,
    ];

    /// Every key, the one that a model may lack last.
    pub const WITH_OPTIONAL: [ScaleKey; 8] = [
        ScaleKey::InProjInput,
        ScaleKey::InProjOutput,
        ScaleKey::XProjInput,
        ScaleKey::XProjOutput,
        ScaleKey::DtProjOutput,
        ScaleKey::SsmState,
        ScaleKey::OutProjInput,
        ScaleKey::XProjInputMax,
    ];

    /// The name in files: `in_proj_input`, ….
    pub fn name(self) -> &'static str {
        match self {
            ScaleKey::InProjInput => "in_proj_input",
            ScaleKey::InProjOutput => "in_proj_output",
            ScaleKey::XProjInput => "x_proj_input",
            ScaleKey::XProjOutput => "x_proj_output",
            ScaleKey::DtProjOutput => "dt_proj_output",
            ScaleKey::SsmState => "ssm_state",
            ScaleKey::OutProjInput => "out_proj_input",
            ScaleKey::XProjInputMax => "x_proj_input_max",
        }
    }
}

impl ActivationScales {
    /// Builds the set from a function of the key, without the scale that a model may lack.
    pub fn from_fn<E>(mut f: impl FnMut(ScaleKey) -> Result<Scale, E>) -> Result<Self, E> {
        Ok(Self {
            in_proj_input: f(ScaleKey::InProjInput)?,
            in_proj_output: f(ScaleKey::InProjOutput)?,
            x_proj_input: f(ScaleKey::XProjInput)?,
            x_proj_output: f(ScaleKey::XProjOutput)?,
            dt_proj_output: f(ScaleKey::DtProjOutput)?,
            ssm_state: f(ScaleKey::SsmState)?,
            out_proj_input: f(ScaleKey::OutProjInput)?,
            x_proj_input_max: None,
        })
    }

    /// The set with a scale for values beyond `x_proj_input`.
    #[must_use]
    pub fn with_max(self, x_proj_input_max: Option<Scale>) -> Self {
        Self {
            x_proj_input_max,
            ..self
        }
    }

    /// The scale of a key; of one that is lacking, `x_proj_input`, whose values it would hold.
    pub fn get(&self, key: ScaleKey) -> Scale {
        match key {
            ScaleKey::InProjInput => self.in_proj_input,
            ScaleKey::InProjOutput => self.in_proj_output,
            ScaleKey::XProjInput => self.x_proj_input,
            ScaleKey::XProjOutput => self.x_proj_output,
            ScaleKey::DtProjOutput => self.dt_proj_output,
            ScaleKey::SsmState => self.ssm_state,
            ScaleKey::OutProjInput => self.out_proj_input,
            ScaleKey::XProjInputMax => self.x_proj_input_max.unwrap_or(self.x_proj_input),
        }
    }
}

/// One quantized block, with its activation scales. Weights of in_proj, x_proj and out_proj have eight
/// bits or four, all others eight.
#[derive(Clone, Debug, PartialEq)]
pub struct QuantizedLayer {
    /// RMSNorm weight, M; ones after folding.
    pub norm: Vec<f16>,
    /// `[2E, M]`.
    pub in_proj: QWeight,
    /// `[E, K]`.
    pub conv_weight: QTensor,
    /// E.
    pub conv_bias: QVector,
    /// `[R + 2N, E]`.
    pub x_proj: QWeight,
    /// `[E, R]`.
    pub dt_proj: QTensor,
    /// E.
    pub dt_bias: QVector,
    /// `[E, N]`.
    pub a_log: QTensor,
    /// E.
    pub d: QVector,
    /// `[M, E]`.
    pub out_proj: QWeight,
    /// Calibrated activation scales.
    pub scales: ActivationScales,
}

/// Rows of codes, each with a scale of its own: an embedding in 8 or 4 bits.
#[derive(Clone, Debug, PartialEq)]
pub struct QRows {
    /// `[V, M]`, −128 to 127, or −8 to 7 of 4 bits.
    pub codes: Array2<i8>,
    /// V. Signed, and zero for a row of zeros.
    pub scales: Vec<f16>,
    /// 8 or 4: what the codes are stored in.
    pub bits: u8,
}

impl QRows {
    /// A row's real values: `f16(code) ⊗ scale` in binary16.
    pub fn row(&self, row: usize) -> impl Iterator<Item = f16> {
        let scale = f32::from(self.scales[row]);
        // Exact in f32: a product of 8 and 11 bits. One rounding to binary16 remains.
        let value = move |code: &i8| f16::from_f32(f32::from(*code) * scale);
        self.codes.row(row).into_iter().map(value)
    }
}

/// The embedding of a quantized model, folded.
#[derive(Clone, Debug, PartialEq)]
pub enum Embedding {
    /// `[V, M]`.
    F16(Array2<f16>),
    /// `[V, M]`, read back to binary16 row by row.
    Rows(QRows),
}

impl Embedding {
    /// The values of a row of the vocabulary.
    pub fn row(&self, row: usize) -> Vec<f16> {
        match self {
            Embedding::F16(rows) => rows.row(row).to_vec(),
            Embedding::Rows(rows) => rows.row(row).collect(),
        }
    }
}

/// What follows the last block of a quantized model.
#[derive(Clone, Debug, PartialEq)]
pub enum Head {
    /// `[V, M]`, folded; the final norm's output is binary16.
    F16(Array2<f16>),
    /// The final norm's output is INT8; logits are binary16.
    Quantized {
        /// Scale of the norm's output.
        input: Scale,
        /// `[V, M]`, folded.
        weight: QWeight,
    },
}

/// A quantized model: the content of `quantized.safetensors`, or of a Quamba folder.
#[derive(Clone, Debug, PartialEq)]
pub struct QuantizedModel {
    /// [`digest`](crate::checkpoint::identity::digest) of the float model it was made from, where that is
    /// known.
    pub float_digest: Option<String>,
    /// Shape.
    pub config: Config,
    /// Rows of the vocabulary.
    pub embedding: Embedding,
    /// The blocks.
    pub layers: Vec<QuantizedLayer>,
    /// Final RMSNorm weight, M; ones after folding.
    pub norm_f: Vec<f16>,
    /// Rows of the vocabulary.
    pub head: Head,
}

/// What a run can draw on: INT8 weights, the float model they came from, the checkpoint itself. A
/// mode that needs a part that is missing is refused by name.
#[derive(Clone, Debug, Default)]
pub struct Model {
    /// For modes with INT8 tensors.
    pub quantized: Option<Arc<QuantizedModel>>,
    /// The folded float model, for mode 1 and for sites switched to float.
    pub float: Option<Arc<FloatModel>>,
    /// The checkpoint as it is, for modes that are not rotated.
    pub original: Option<Arc<Checkpoint>>,
}

impl Model {
    /// The shape all parts share.
    pub fn config(&self) -> Result<&Config> {
        match (&self.quantized, &self.float, &self.original) {
            (Some(quantized), ..) => Ok(&quantized.config),
            (None, Some(float), _) => Ok(&float.config),
            (None, None, Some(original)) => Ok(original.config()),
            (None, None, None) => Err(SimError::value("model", "at least one part", "none")),
        }
    }
}
