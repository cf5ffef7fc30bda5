//! Questions to the table: what a scale or a rule can alter, which codes reach which reader, what
//! stands for a tensor that a mode does not make.

use super::{Block, Columns, Field, Phase, Quantizer, Read, Row, Step};
use crate::mode::{Implementation, ModeSpec};
use crate::plan::ScaleUse;
use crate::profile::{Profile, QuantizerRule};
use crate::trace::TracePoint;

/// Codes on their way from a quantizer to a reader.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Flow {
    /// Who makes them.
    pub quantizer: Quantizer,
    /// Where they can be seen.
    pub point: TracePoint,
    /// What the reader takes of them.
    pub columns: Columns,
    /// Who reads.
    pub reader: Step,
    /// With which scale; `None` for a dynamic one, which travels with the codes.
    pub scale: Option<ScaleUse>,
}

impl Row {
    /// The rule of its quantizer, as profiles hold it.
    pub fn quantizer_rule(&self) -> Option<QuantizerRule> {
        self.quantizer?;
        QuantizerRule::ALL
            .into_iter()
            .find(|rule| rule.path() == self.rule.map_or("", |rule| rule.path))
    }
}

impl Block {
    /// The tensors that the scale of a use goes into: the first ones that a wrong one alters.
    pub fn altered_by_scale(&self, scale: ScaleUse) -> Vec<TracePoint> {
        let rows = self
            .rows
            .iter()
            .filter(|row| row.scales().any(|s| s == scale));
        rows.map(|row| row.point).collect()
    }

    /// The tensors made by rules at or below a path (`linear`, `linear.x_proj`, `scan`) of an
    /// implementation.
    pub fn altered_by_rule(&self, by: Implementation, path: &str) -> Vec<TracePoint> {
        let below =
            |of: &str| of == path || of.strip_prefix(path).is_some_and(|p| p.starts_with('.'));
        let rows = self.rows.iter();
        let rows = rows.filter(|row| row.rule.is_some_and(|r| r.by == by && below(r.path)));
        rows.map(|row| row.point).collect()
    }

    /// The tensors whose quantizer has this rule.
    pub fn quantized_by(&self, rule: QuantizerRule) -> Vec<TracePoint> {
        let rows = self
            .rows
            .iter()
            .filter(|row| row.quantizer_rule() == Some(rule));
        rows.map(|row| row.point).collect()
    }

    /// The rows that read a tensor, each with how.
    pub fn readers(&self, point: TracePoint) -> impl Iterator<Item = (&Row, &Read)> {
        self.rows.iter().flat_map(move |row| {
            let reads = row
                .reads
                .iter()
                .filter(move |read| read.point() == Some(point));
            reads.map(move |read| (row, read))
        })
    }

    /// Every flow of codes from a quantizer to a reader that dequantizes them, in the order of the data.
    /// Codes that are handed on flow from their quantizer.
    pub fn flows(&self) -> Vec<Flow> {
        let mut flows: Vec<Flow> = Vec::new();
        for row in &self.rows {
            let Some(quantizer) = row.quantizer else {
                continue;
            };
            let mut from = vec![(row.point, Columns::All)];
            while let Some((point, taken)) = from.pop() {
                for (reader, read) in self.readers(point) {
                    if reader.point.is_scale() {
                        continue;
                    }
                    let handed_on = read.scale.is_none() && !quantizer.is_dynamic();
                    let columns = match read.columns {
                        Columns::All => taken,
                        part => part,
                    };
                    if handed_on {
                        from.push((reader.point, columns));
                        continue;
                    }
                    let flow = Flow {
                        quantizer,
                        point: row.point,
                        columns,
                        reader: reader.step,
                        scale: read.scale,
                    };
                    if !flows.contains(&flow) {
                        flows.push(flow);
                    }
                }
            }
        }
        flows
    }
}

/// The tables of both phases in a mode and a profile.
pub fn phases(mode: &ModeSpec, profile: &Profile) -> [Block; 2] {
    [Phase::Prefill, Phase::Decode].map(|phase| Block::of(mode, profile, phase))
}

impl TracePoint {
    /// The tensors that stand for this one where it is not made, the nearest first, each with the columns
    /// that do: what its readers read instead.
    pub fn stand_ins(self) -> &'static [(TracePoint, Columns)] {
        use Columns::{All, X, Z};
        use TracePoint as P;
        match self {
            P::InProjX => &[(P::InProjOut, X)],
            P::InProjZ => &[(P::InProjOut, Z)],
            P::ConvIn => &[(P::InProjX, All), (P::InProjOut, X)],
            P::ConvOut => &[(P::ConvOutF32, All)],
            P::ConvOutF32 => &[(P::ConvOut, All)],
            P::XProjIn => &[(P::ConvOut, All), (P::ConvOutF32, All)],
            P::HiddenIn
            | P::ResidualIn
            | P::ResidualOut
            | P::NormOut
            | P::NormOutScale
            | P::InProjOut
            | P::ConvStateIn
            | P::ConvInScale
            | P::ConvStateOut
            | P::XProjOut
            | P::DtProjOut
            | P::SsmU
            | P::SsmStateIn
            | P::SsmY
            | P::SsmState
            | P::SsmStateOut
            | P::HadOut
            | P::HadOutScale
            | P::OutProjOut
            | P::FinalResidual
            | P::NormFOut
            | P::Logits => &[],
        }
    }

    /// The names of this tensor in every mode and phase, its own included.
    pub fn names(self) -> &'static [TracePoint] {
        use TracePoint as P;
        const FAMILIES: [&[TracePoint]; 3] = [
            &[P::InProjOut, P::InProjX, P::InProjZ],
            &[P::ConvOut, P::ConvOutF32],
            &[P::SsmState, P::SsmStateOut],
        ];
        let family = FAMILIES.into_iter().find(|names| names.contains(&self));
        family.unwrap_or_else(|| {
            let at = TracePoint::ALL.iter().position(|point| *point == self);
            std::slice::from_ref(&TracePoint::ALL[at.expect("every point is listed")])
        })
    }
}

impl Field {
    /// Every field, in the order of the data.
    pub const ALL: [Field; 16] = [
        Field::Weights,
        Field::NormOut,
        Field::X,
        Field::Z,
        Field::ConvIn,
        Field::ConvOut,
        Field::XProjIn,
        Field::XProjOut,
        Field::DtProjOut,
        Field::U,
        Field::State,
        Field::Stream,
        Field::HadOut,
        Field::Conv,
        Field::Scan,
        Field::Rotated,
    ];

    /// The name in mode files.
    pub fn name(self) -> &'static str {
        match self {
            Field::Weights => "weights",
            Field::NormOut => "norm_out",
            Field::X => "x",
            Field::Z => "z",
            Field::ConvIn => "conv_in",
            Field::ConvOut => "conv_out",
            Field::XProjIn => "x_proj_in",
            Field::XProjOut => "x_proj_out",
            Field::DtProjOut => "dt_proj_out",
            Field::U => "u",
            Field::State => "state",
            Field::Stream => "stream",
            Field::HadOut => "had_out",
            Field::Conv => "conv",
            Field::Scan => "scan",
            Field::Rotated => "rotated",
        }
    }

    /// Gives `mode` this field of `other`.
    pub fn copy(self, mode: &mut ModeSpec, other: &ModeSpec) {
        match self {
            Field::Weights => mode.weights = other.weights,
            Field::NormOut => mode.norm_out = other.norm_out,
            Field::X => mode.x = other.x,
            Field::Z => mode.z = other.z,
            Field::ConvIn => mode.conv_in = other.conv_in,
            Field::ConvOut => mode.conv_out = other.conv_out,
            Field::XProjIn => mode.x_proj_in = other.x_proj_in,
            Field::XProjOut => mode.x_proj_out = other.x_proj_out,
            Field::DtProjOut => mode.dt_proj_out = other.dt_proj_out,
            Field::U => mode.u = other.u,
            Field::State => mode.state = other.state,
            Field::Stream => mode.stream = other.stream,
            Field::HadOut => mode.had_out = other.had_out,
            Field::Conv => mode.conv = other.conv,
            Field::Scan => mode.scan = other.scan,
            Field::Rotated => mode.rotated = other.rotated,
        }
    }

    /// Whether two modes differ in it.
    pub fn differs(self, a: &ModeSpec, b: &ModeSpec) -> bool {
        let mut changed = a.clone();
        self.copy(&mut changed, b);
        changed != *a
    }
}
