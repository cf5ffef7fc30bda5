//! The cases of every operation but the linear one.

use super::group::Group;
use super::{Op, OpCase, Output};
use half::f16;
use ndarray::{Array1, Array2, Array3};
use scalescope_sim::error::{Result, SimError};
use scalescope_sim::quant::{Multiplier, Scale};

/// Causal convolution over a sequence, with and without SiLU, to INT8 and to FP32.
#[derive(Clone, Debug, PartialEq)]
pub struct Conv1dSilu {
    /// The case's name.
    pub name: String,
    /// Input codes `[B, L, C]`.
    pub x: Array3<i8>,
    /// Weight codes `[C, K]`.
    pub weight: Array2<i8>,
    /// Bias codes `[C]`.
    pub bias: Array1<i8>,
    /// Scale of `x`.
    pub scale_x: Scale,
    /// Scale of `weight`.
    pub scale_w: Scale,
    /// Scale of `bias`.
    pub scale_b: Scale,
    /// Scale of the INT8 outputs.
    pub scale_out: Scale,
    /// Output codes `[B, L, C]`.
    pub out: Option<Array3<i8>>,
    /// Output codes without SiLU.
    pub out_no_silu: Option<Array3<i8>>,
    /// Output before quantization.
    pub out_f32: Option<Array3<f32>>,
    /// Output before quantization, without SiLU.
    pub out_f32_no_silu: Option<Array3<f32>>,
}

impl OpCase for Conv1dSilu {
    const OP: Op = Op::Conv1dSilu;

    fn parse(group: &mut Group) -> Result<Self> {
        let sequence = &["B", "L", "C"];
        Ok(Self {
            name: group.name(),
            x: group.array("x", sequence)?,
            weight: group.array("weight", &["C", "K"])?,
            bias: group.array("bias", &["C"])?,
            scale_x: group.scale("scale_x")?,
            scale_w: group.scale("scale_w")?,
            scale_b: group.scale("scale_b")?,
            scale_out: group.scale("scale_out")?,
            out: group.optional("out", sequence)?,
            out_no_silu: group.optional("out_no_silu", sequence)?,
            out_f32: group.optional("out_f32", sequence)?,
            out_f32_no_silu: group.optional("out_f32_no_silu", sequence)?,
        })
    }

    fn name(&self) -> &str {
        &self.name
    }

    fn expected(&self) -> Vec<Output<'_>> {
        let outputs = [
            Output::of("out", &self.out),
            Output::of("out_no_silu", &self.out_no_silu),
            Output::of("out_f32", &self.out_f32),
            Output::of("out_f32_no_silu", &self.out_f32_no_silu),
        ];
        outputs.into_iter().flatten().collect()
    }
}

/// Causal convolution and SiLU of one token; the state holds the last K inputs.
#[derive(Clone, Debug, PartialEq)]
pub struct Conv1dUpdate {
    /// The case's name.
    pub name: String,
    /// Input codes `[B, C]`.
    pub x: Array2<i8>,
    /// State before, `[B, C, K]`.
    pub state_in: Array3<i8>,
    /// Weight codes `[C, K]`.
    pub weight: Array2<i8>,
    /// Bias codes `[C]`.
    pub bias: Array1<i8>,
    /// Scale of `x`.
    pub scale_x: Scale,
    /// Scale of `weight`.
    pub scale_w: Scale,
    /// Scale of `bias`.
    pub scale_b: Scale,
    /// Scale of the output.
    pub scale_out: Scale,
    /// Output codes `[B, C]`.
    pub out: Option<Array2<i8>>,
    /// State after, `[B, C, K]`.
    pub state_out: Option<Array3<i8>>,
}

impl OpCase for Conv1dUpdate {
    const OP: Op = Op::Conv1dUpdate;

    fn parse(group: &mut Group) -> Result<Self> {
        Ok(Self {
            name: group.name(),
            x: group.array("x", &["B", "C"])?,
            state_in: group.array("state_in", &["B", "C", "K"])?,
            weight: group.array("weight", &["C", "K"])?,
            bias: group.array("bias", &["C"])?,
            scale_x: group.scale("scale_x")?,
            scale_w: group.scale("scale_w")?,
            scale_b: group.scale("scale_b")?,
            scale_out: group.scale("scale_out")?,
            out: group.optional("out", &["B", "C"])?,
            state_out: group.optional("state_out", &["B", "C", "K"])?,
        })
    }

    fn name(&self) -> &str {
        &self.name
    }

    fn expected(&self) -> Vec<Output<'_>> {
        let outputs = [
            Output::of("out", &self.out),
            Output::of("state_out", &self.state_out),
        ];
        outputs.into_iter().flatten().collect()
    }
}

/// The weights of a scan and the scales of everything in it.
#[derive(Clone, Debug, PartialEq)]
pub struct ScanParameters {
    /// `[C, N]`.
    pub a_log: Array2<i8>,
    /// `[C]`.
    pub d: Array1<i8>,
    /// `[C]`.
    pub dt_bias: Array1<i8>,
    /// Scale of u.
    pub scale_u: Scale,
    /// Scale of dt.
    pub scale_dt: Scale,
    /// Scale of `a_log`.
    pub scale_a_log: Scale,
    /// Scale of B.
    pub scale_b: Scale,
    /// Scale of C.
    pub scale_c: Scale,
    /// Scale of the state.
    pub scale_state: Scale,
    /// Scale of `d`.
    pub scale_d: Scale,
    /// Scale of z.
    pub scale_z: Scale,
    /// Scale of `dt_bias`.
    pub scale_dt_bias: Scale,
}

impl ScanParameters {
    fn parse(group: &mut Group) -> Result<Self> {
        Ok(Self {
            a_log: group.array("A_log", &["C", "N"])?,
            d: group.array("D", &["C"])?,
            dt_bias: group.array("dt_bias", &["C"])?,
            scale_u: group.scale("scale_u")?,
            scale_dt: group.scale("scale_dt")?,
            scale_a_log: group.scale("scale_A_log")?,
            scale_b: group.scale("scale_B")?,
            scale_c: group.scale("scale_C")?,
            scale_state: group.scale("scale_ssm_state")?,
            scale_d: group.scale("scale_D")?,
            scale_z: group.scale("scale_z")?,
            scale_dt_bias: group.scale("scale_dt_bias")?,
        })
    }
}

/// Selective scan over a sequence, with and without the gate.
#[derive(Clone, Debug, PartialEq)]
pub struct SelectiveScan {
    /// The case's name.
    pub name: String,
    /// Input codes `[B, L, C]`.
    pub u: Array3<i8>,
    /// Step-size codes `[B, L, C]`, before the bias.
    pub dt: Array3<i8>,
    /// `[B, L, N]`.
    pub b: Array3<i8>,
    /// `[B, L, N]`.
    pub c: Array3<i8>,
    /// Gate codes `[B, L, C]`.
    pub z: Array3<i8>,
    /// Weights and scales.
    pub parameters: ScanParameters,
    /// Gated output `[B, L, C]`.
    pub y: Option<Array3<f16>>,
    /// Output without the gate.
    pub y_no_z: Option<Array3<f16>>,
    /// State after the last token, `[B, C, N]`.
    pub state: Option<Array3<i8>>,
}

impl OpCase for SelectiveScan {
    const OP: Op = Op::SelectiveScan;

    fn parse(group: &mut Group) -> Result<Self> {
        let channels = &["B", "L", "C"];
        Ok(Self {
            name: group.name(),
            u: group.array("u", channels)?,
            dt: group.array("dt", channels)?,
            parameters: ScanParameters::parse(group)?,
            b: group.array("B", &["B", "L", "N"])?,
            c: group.array("C", &["B", "L", "N"])?,
            z: group.array("z", channels)?,
            y: group.optional("y", channels)?,
            y_no_z: group.optional("y_no_z", channels)?,
            state: group.optional("state", &["B", "C", "N"])?,
        })
    }

    fn name(&self) -> &str {
        &self.name
    }

    fn expected(&self) -> Vec<Output<'_>> {
        let outputs = [
            Output::of("y", &self.y),
            Output::of("y_no_z", &self.y_no_z),
            Output::of("state", &self.state),
        ];
        outputs.into_iter().flatten().collect()
    }
}

/// Selective scan of one token with an INT8 state.
#[derive(Clone, Debug, PartialEq)]
pub struct SelectiveScanUpdate {
    /// The case's name.
    pub name: String,
    /// State before, `[B, C, N]`.
    pub state_in: Array3<i8>,
    /// Input codes `[B, C]`.
    pub u: Array2<i8>,
    /// Step-size codes `[B, C]`, before the bias.
    pub dt: Array2<i8>,
    /// `[B, N]`.
    pub b: Array2<i8>,
    /// `[B, N]`.
    pub c: Array2<i8>,
    /// Gate codes `[B, C]`.
    pub z: Array2<i8>,
    /// Weights and scales.
    pub parameters: ScanParameters,
    /// Gated output `[B, C]`.
    pub y: Option<Array2<f16>>,
    /// State after, `[B, C, N]`.
    pub state_out: Option<Array3<i8>>,
}

impl OpCase for SelectiveScanUpdate {
    const OP: Op = Op::SelectiveScanUpdate;

    fn parse(group: &mut Group) -> Result<Self> {
        Ok(Self {
            name: group.name(),
            u: group.array("u", &["B", "C"])?,
            dt: group.array("dt", &["B", "C"])?,
            parameters: ScanParameters::parse(group)?,
            state_in: group.array("state_in", &["B", "C", "N"])?,
            b: group.array("B", &["B", "N"])?,
            c: group.array("C", &["B", "N"])?,
            z: group.array("z", &["B", "C"])?,
            y: group.optional("y", &["B", "C"])?,
            state_out: group.optional("state_out", &["B", "C", "N"])?,
        })
    }

    fn name(&self) -> &str {
        &self.name
    }

    fn expected(&self) -> Vec<Output<'_>> {
        let outputs = [
            Output::of("y", &self.y),
            Output::of("state_out", &self.state_out),
        ];
        outputs.into_iter().flatten().collect()
    }
}

/// Hadamard transform over the last axis, then quantization that wraps. The second pair of scale
/// and output is made to overflow.
#[derive(Clone, Debug, PartialEq)]
pub struct HadamardQuant {
    /// The case's name.
    pub name: String,
    /// Input `[L, C]`.
    pub x: Array2<f16>,
    /// c of C = c·2^k; 2 where C is a power of two.
    pub base: usize,
    /// Factor from the plain transform to codes: 1/√C over the output's scale.
    pub scale: Multiplier,
    /// Output codes `[L, C]`.
    pub out: Option<Array2<i8>>,
    /// A factor that makes codes wrap.
    pub scale_overflow: Option<Multiplier>,
    /// Output codes under `scale_overflow`.
    pub out_overflow: Option<Array2<i8>>,
}

impl OpCase for HadamardQuant {
    const OP: Op = Op::HadamardQuant;

    fn parse(group: &mut Group) -> Result<Self> {
        let x: Array2<f16> = group.array("x", &["L", "C"])?;
        let channels = x.ncols();
        let base = group.integer("base")?;
        let fits = usize::try_from(base).ok().filter(|base| {
            *base > 0 && channels.is_multiple_of(*base) && (channels / base).is_power_of_two()
        });
        let Some(base) = fits else {
            let expected = format!("c with C = {channels} = c·2^k");
            return Err(SimError::value(group.key("base"), expected, base));
        };
        let overflow = group.has("scale_overflow");
        let case = Self {
            name: group.name(),
            x,
            base,
            scale: group.multiplier("scale")?,
            out: group.optional("out", &["L", "C"])?,
            scale_overflow: overflow
                .then(|| group.multiplier("scale_overflow"))
                .transpose()?,
            out_overflow: group.optional("out_overflow", &["L", "C"])?,
        };
        if case.out_overflow.is_some() && case.scale_overflow.is_none() {
            let key = group.key("scale_overflow");
            return Err(SimError::value(
                key,
                "the factor of out_overflow",
                "no such key",
            ));
        }
        Ok(case)
    }

    fn name(&self) -> &str {
        &self.name
    }

    fn expected(&self) -> Vec<Output<'_>> {
        let outputs = [
            Output::of("out", &self.out),
            Output::of("out_overflow", &self.out_overflow),
        ];
        outputs.into_iter().flatten().collect()
    }
}

/// Residual sum, RMSNorm and quantization, with and without a residual.
#[derive(Clone, Debug, PartialEq)]
pub struct RmsNormQuant {
    /// The case's name.
    pub name: String,
    /// Hidden state `[L, C]`.
    pub x: Array2<f16>,
    /// Residual stream `[L, C]`.
    pub residual: Option<Array2<f32>>,
    /// `[C]`.
    pub weight: Array1<f16>,
    /// Scale of the outputs.
    pub scale: Scale,
    /// Added to the mean square.
    pub eps: f32,
    /// Output codes with the residual, `[L, C]`.
    pub out: Option<Array2<i8>>,
    /// Residual stream after, `[L, C]`.
    pub residual_out: Option<Array2<f32>>,
    /// Output codes of `x` alone.
    pub out_no_residual: Option<Array2<i8>>,
    /// Residual stream after, of `x` alone.
    pub residual_out_no_residual: Option<Array2<f32>>,
}

impl OpCase for RmsNormQuant {
    const OP: Op = Op::RmsNormQuant;

    fn parse(group: &mut Group) -> Result<Self> {
        let rows = &["L", "C"];
        let case = Self {
            name: group.name(),
            x: group.array("x", rows)?,
            residual: group.optional("residual", rows)?,
            weight: group.array("weight", &["C"])?,
            scale: group.scale("scale")?,
            eps: group.number("eps")?,
            out: group.optional("out", rows)?,
            residual_out: group.optional("residual_out", rows)?,
            out_no_residual: group.optional("out_no_residual", rows)?,
            residual_out_no_residual: group.optional("residual_out_no_residual", rows)?,
        };
        if !(case.eps.is_finite() && case.eps >= 0.0) {
            return Err(SimError::value(
                group.key("eps"),
                "a finite f32 from 0",
                case.eps,
            ));
        }
        if case.residual.is_none() && (case.out.is_some() || case.residual_out.is_some()) {
            let key = group.key("residual");
            return Err(SimError::value(
                key,
                "the residual of out and residual_out",
                "no such key",
            ));
        }
        Ok(case)
    }

    fn name(&self) -> &str {
        &self.name
    }

    fn expected(&self) -> Vec<Output<'_>> {
        let outputs = [
            Output::of("out", &self.out),
            Output::of("residual_out", &self.residual_out),
            Output::of("out_no_residual", &self.out_no_residual),
            Output::of("residual_out_no_residual", &self.residual_out_no_residual),
        ];
        outputs.into_iter().flatten().collect()
    }
}
