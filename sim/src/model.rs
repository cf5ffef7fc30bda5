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
use crate::quant::{QTensor, QVector, Scale};
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
    /// The Hugging Face configuration this came from, kept to be written out again.
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

    /// Width of x_proj's output, dt‖B‖C: R + 2N.
    pub fn x_proj_width(&self) -> usize {
        self.dt_rank + 2 * self.d_state
    }
}

/// One block's float weights, all binary16 as the reference treats them.
#[derive(Clone, Debug, PartialEq)]
pub struct FloatLayer {
    /// RMSNorm weight, M.
    pub norm: Vec<f16>,
    /// `[2E, M]`: rows x then z.
    pub in_proj: Array2<f16>,
    /// `[E, K]`.
    pub conv_weight: Array2<f16>,
    /// E.
    pub conv_bias: Vec<f16>,
    /// `[R + 2N, E]`: rows dt, B, C.
    pub x_proj: Array2<f16>,
    /// `[E, R]`.
    pub dt_proj: Array2<f16>,
    /// E.
    pub dt_bias: Vec<f16>,
    /// `[E, N]`: A = −exp(A_log).
    pub a_log: Array2<f16>,
    /// E, the skip connection.
    pub d: Vec<f16>,
    /// `[M, E]`.
    pub out_proj: Array2<f16>,
}

/// A float model: a checkpoint as it is, or folded (rotated into Hadamard space).
#[derive(Clone, Debug, PartialEq)]
pub struct FloatModel {
    /// Shape.
    pub config: Config,
    /// `[V, M]`.
    pub embedding: Array2<f16>,
    /// The blocks.
    pub layers: Vec<FloatLayer>,
    /// Final RMSNorm weight, M.
    pub norm_f: Vec<f16>,
    /// `[V, M]`.
    pub head: Array2<f16>,
    /// Whether Hadamard matrices and norms are folded into the weights; then the scan's output is
    /// rotated before out_proj.
    pub rotated: bool,
}

/// The calibrated activation scales of a block: seven, and one that few modes need. Keys: datapath specification, section 3.
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

/// One block quantized to INT8, with its activation scales.
#[derive(Clone, Debug, PartialEq)]
pub struct QuantizedLayer {
    /// RMSNorm weight, M; ones after folding.
    pub norm: Vec<f16>,
    /// `[2E, M]`.
    pub in_proj: QTensor,
    /// `[E, K]`.
    pub conv_weight: QTensor,
    /// E.
    pub conv_bias: QVector,
    /// `[R + 2N, E]`.
    pub x_proj: QTensor,
    /// `[E, R]`.
    pub dt_proj: QTensor,
    /// E.
    pub dt_bias: QVector,
    /// `[E, N]`.
    pub a_log: QTensor,
    /// E.
    pub d: QVector,
    /// `[M, E]`.
    pub out_proj: QTensor,
    /// Calibrated activation scales.
    pub scales: ActivationScales,
}

/// A quantized model: the content of `quantized.safetensors`.
#[derive(Clone, Debug, PartialEq)]
pub struct QuantizedModel {
    /// Shape.
    pub config: Config,
    /// `[V, M]`, folded.
    pub embedding: Array2<f16>,
    /// The blocks.
    pub layers: Vec<QuantizedLayer>,
    /// Final RMSNorm weight, M; ones after folding.
    pub norm_f: Vec<f16>,
    /// `[V, M]`, folded.
    pub head: Array2<f16>,
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
    pub original: Option<Arc<FloatModel>>,
}

impl Model {
    /// The shape all parts share.
    pub fn config(&self) -> Result<&Config> {
        let float = self.float.as_ref().or(self.original.as_ref());
        match (&self.quantized, float) {
            (Some(quantized), _) => Ok(&quantized.config),
            (None, Some(float)) => Ok(&float.config),
            (None, None) => Err(SimError::value("model", "at least one part", "none")),
        }
    }
}
