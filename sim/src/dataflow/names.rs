//! The names of the places in a model: its steps, the tensors they make, and the scales they use. Each is
//! one line here, in the order of the data.

use crate::model::ScaleKey;
use serde::{Serialize, Serializer};

/// An enum whose variants have names, listed once: the type, `ALL`, `name` and `from_name`.
macro_rules! named {
    ($(#[$of_type:meta])* $type:ident { $($(#[$of_variant:meta])* $variant:ident = $name:literal,)* }) => {
        $(#[$of_type])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
        pub enum $type {
            $($(#[$of_variant])* $variant,)*
        }

        impl $type {
            /// Every one, in the order of the data.
            pub const ALL: [Self; [$($name),*].len()] = [$(Self::$variant),*];

            /// The name in files and on the command line.
            pub fn name(self) -> &'static str {
                match self {
                    $(Self::$variant => $name,)*
                }
            }

            /// The one of a name.
            pub fn from_name(name: &str) -> Option<Self> {
                Self::ALL.into_iter().find(|one| one.name() == name)
            }
        }

        impl Serialize for $type {
            fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
                to.serialize_str(self.name())
            }
        }
    };
}

named! {
    /// A step of the datapath: what makes tensors, and what timings name.
    Step {
        /// Rows of the embedding.
        Embed = "embed",
        /// Residual add, RMSNorm and its quantizer.
        Norm = "norm",
        /// x and z.
        InProj = "in_proj",
        /// Convolution, SiLU, quantizer, and the conv state.
        Conv = "conv",
        /// dt, B and C.
        XProj = "x_proj",
        /// dt before its bias.
        DtProj = "dt_proj",
        /// The scan's input, the selective scan, the gate, and the state's quantizer.
        Scan = "scan",
        /// Rotation and its quantizer.
        Hadamard = "hadamard",
        /// The block's output.
        OutProj = "out_proj",
        /// The last norm and the logits.
        Head = "head",
    }
}

named! {
    /// A tensor of the datapath.
    TracePoint {
        /// Output of the block before, or the embedding; `[L, M]`.
        HiddenIn = "hidden_in",
        /// Residual stream before this block; `[L, M]`, absent in block 0.
        ResidualIn = "residual_in",
        /// Residual stream including `HiddenIn`; `[L, M]`.
        ResidualOut = "residual_out",
        /// Normed hidden state, in_proj's input; `[L, M]`.
        NormOut = "norm_out",
        /// The scales of `NormOut`, where each token has its own; `[L, 1]`.
        NormOutScale = "norm_out_scale",
        /// x‖z when both are of one type; `[L, 2E]`.
        InProjOut = "in_proj_out",
        /// x alone, when z has another type; `[L, E]`.
        InProjX = "in_proj_x",
        /// z alone, when x has another type; `[L, E]`.
        InProjZ = "in_proj_z",
        /// Last K conv inputs before the token (decode); `[E, K]`.
        ConvStateIn = "conv_state_in",
        /// What a dynamic quantizer made of x; codes `[L, E]`.
        ConvIn = "conv_in",
        /// The scale or scales of `ConvIn`; `[1, 1]` or `[L, 1]`.
        ConvInScale = "conv_in_scale",
        /// Last K conv inputs after the token; `[E, K]`.
        ConvStateOut = "conv_state_out",
        /// conv+SiLU as INT8; `[L, E]`.
        ConvOut = "conv_out",
        /// conv+SiLU as true FP32; `[L, E]`.
        ConvOutF32 = "conv_out_f32",
        /// x_proj's input where it is not the conv's own codes; `[L, E]`.
        XProjIn = "x_proj_in",
        /// dt‖B‖C; `[L, R + 2N]`.
        XProjOut = "x_proj_out",
        /// dt before its bias; `[L, E]`.
        DtProjOut = "dt_proj_out",
        /// B‖C as the scan reads them, where they are quantized after dt was projected; `[L, 2N]`.
        SsmBc = "ssm_bc",
        /// The scan's main input; `[L, E]`.
        SsmU = "ssm_u",
        /// State before the token (decode); `[E, N]`.
        SsmStateIn = "ssm_state_in",
        /// Gated scan output; `[L, E]`.
        SsmY = "ssm_y",
        /// State after the sequence (prefill); `[E, N]`.
        SsmState = "ssm_state",
        /// State after the token (decode); `[E, N]`.
        SsmStateOut = "ssm_state_out",
        /// Rotated y, out_proj's input; `[L, E]`.
        HadOut = "had_out",
        /// The scales of `HadOut`, where each token has its own; `[L, 1]`.
        HadOutScale = "had_out_scale",
        /// Block output; `[L, M]`.
        OutProjOut = "out_proj_out",
        /// Residual stream after the last block; `[L, M]`.
        FinalResidual = "residual",
        /// Normed residual stream where the head is INT8, its input; `[L, M]`.
        NormFOut = "norm_f_out",
        /// Logits; `[L, V]`.
        Logits = "logits",
    }
}

/// [`ScaleUse`], with the calibrated scale of each and whether it makes codes or reads them.
macro_rules! scale_uses {
    ($($(#[$of_variant:meta])* $variant:ident = $name:literal $does:ident $key:ident,)*) => {
        named! {
            /// One use of an activation scale by one step. A calibrated scale has one producer and often several
            /// consumers; each use has a scale of its own, so that a producer and a consumer can disagree (a
            /// defect to study), and so that every edge can be checked.
            ScaleUse {
                $($(#[$of_variant])* $variant = $name,)*
            }
        }

        impl ScaleUse {
            /// The calibrated scale this use should have.
            pub fn key(self) -> ScaleKey {
                match self {
                    $(Self::$variant => ScaleKey::$key,)*
                }
            }

            /// Whether this use makes codes (a quantizer) rather than reads them.
            pub fn produces(self) -> bool {
                match self {
                    $(Self::$variant => does!($does),)*
                }
            }
        }
    };
}

macro_rules! does {
    (makes) => {
        true
    };
    (reads) => {
        false
    };
}

scale_uses! {
    /// RMSNorm's quantizer.
    NormOut = "norm_out" makes InProjInput,
    /// in_proj dequantizes its input.
    InProjIn = "in_proj_in" reads InProjInput,
    /// in_proj's requantizer.
    InProjOut = "in_proj_out" makes InProjOutput,
    /// conv dequantizes x.
    ConvIn = "conv_in" reads InProjOutput,
    /// conv's fused quantizer.
    ConvOut = "conv_out" makes XProjInput,
    /// Quantizer of an FP32 conv output on route A (x_proj's input).
    XProjQuant = "x_proj_quant" makes XProjInput,
    /// x_proj dequantizes its input.
    XProjIn = "x_proj_in" reads XProjInput,
    /// Quantizer of an FP32 conv output, or of a round trip, on route B (u).
    ScanUQuant = "scan_u_quant" makes XProjInput,
    /// Quantizer of u beyond the codes of the first scale.
    ScanUMax = "scan_u_max" makes XProjInputMax,
    /// The scan dequantizes u.
    ScanU = "scan_u" reads XProjInput,
    /// x_proj's requantizer.
    XProjOut = "x_proj_out" makes XProjOutput,
    /// dt_proj dequantizes its input.
    DtProjIn = "dt_proj_in" reads XProjOutput,
    /// The scan dequantizes B.
    ScanB = "scan_b" reads XProjOutput,
    /// The scan dequantizes C.
    ScanC = "scan_c" reads XProjOutput,
    /// dt_proj's requantizer.
    DtProjOut = "dt_proj_out" makes DtProjOutput,
    /// The scan dequantizes dt.
    ScanDt = "scan_dt" reads DtProjOutput,
    /// The scan dequantizes z.
    ScanZ = "scan_z" reads InProjOutput,
    /// The state's quantizer.
    StateOut = "state_out" makes SsmState,
    /// The state's dequantizer, at the next token.
    StateIn = "state_in" reads SsmState,
    /// The Hadamard quantizer.
    HadOut = "had_out" makes OutProjInput,
    /// out_proj dequantizes its input.
    OutProjIn = "out_proj_in" reads OutProjInput,
}

impl Step {
    /// The steps that multiply by a weight matrix inside a block.
    pub const LINEAR: [Step; 4] = [Step::InProj, Step::XProj, Step::DtProj, Step::OutProj];

    /// The steps whose weights can have four bits.
    pub const FOUR_BIT: [Step; 3] = [Step::InProj, Step::XProj, Step::OutProj];

    /// The steps that sum products of codes.
    pub const SUMS: [Step; 5] = [
        Step::InProj,
        Step::Conv,
        Step::XProj,
        Step::DtProj,
        Step::OutProj,
    ];

    /// The part of an arithmetic that holds its rules, as profile files write it; empty for the
    /// embedding, which has none.
    pub fn rule(self) -> &'static str {
        match self {
            Step::Embed => "",
            Step::Norm => "norm_out",
            Step::InProj => "linear.in_proj",
            Step::Conv => "conv",
            Step::XProj => "linear.x_proj",
            Step::DtProj => "linear.dt_proj",
            Step::Scan => "scan",
            Step::Hadamard => "hadamard",
            Step::OutProj => "linear.out_proj",
            Step::Head => "final_norm",
        }
    }
}

/// The quantizers that may find their scales at run time: their codes, the tensor of the scales, the use of a
/// scale that they have else, and their name then.
const DYNAMIC: [(TracePoint, TracePoint, ScaleUse, &str); 3] = [
    (
        TracePoint::NormOut,
        TracePoint::NormOutScale,
        ScaleUse::NormOut,
        "norm_out_dynamic",
    ),
    (
        TracePoint::ConvIn,
        TracePoint::ConvInScale,
        ScaleUse::ConvIn,
        "conv_in_dynamic",
    ),
    (
        TracePoint::HadOut,
        TracePoint::HadOutScale,
        ScaleUse::HadOut,
        "had_out_dynamic",
    ),
];

impl TracePoint {
    /// Whether the point belongs to a block (the others come once, after the last block).
    pub fn in_layer(self) -> bool {
        !matches!(
            self,
            TracePoint::FinalResidual | TracePoint::NormFOut | TracePoint::Logits
        )
    }

    /// Whether the tensor is a state `[E, …]` rather than a sequence `[L, …]`.
    pub fn is_state(self) -> bool {
        matches!(
            self,
            TracePoint::ConvStateIn
                | TracePoint::ConvStateOut
                | TracePoint::SsmStateIn
                | TracePoint::SsmState
                | TracePoint::SsmStateOut
        )
    }

    /// Where the scales of codes are that a dynamic quantizer makes at this point.
    pub fn scales(self) -> Option<Self> {
        let mut all = DYNAMIC.iter();
        all.find(|(codes, ..)| *codes == self)
            .map(|(_, scales, ..)| *scales)
    }

    /// Whether the tensor holds the scales of another, `[L, 1]` or `[1, 1]`.
    pub fn is_scale(self) -> bool {
        DYNAMIC.iter().any(|(_, scales, ..)| *scales == self)
    }
}

impl ScaleUse {
    /// The name of a quantizer that finds its scale at run time in the place of this one.
    pub fn dynamic_name(self) -> &'static str {
        let mut all = DYNAMIC.iter();
        all.find(|(.., by, _)| *by == self)
            .map_or(self.name(), |(.., name)| *name)
    }
}
